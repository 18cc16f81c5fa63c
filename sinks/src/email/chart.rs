//! The value of an alert over time, drawn with what every mail client shows: cells of a table, and letters.
//!
//! Clients show neither SVG nor, before they are asked, images; a table of coloured cells needs neither.

use tocsin_pipeline::time::Timestamp;
use vrl::value::{ObjectMap, Value};

/// How many bars there are at most.
const BARS_MAX: usize = 60;
/// How many points are looked at.
const POINTS_MAX: usize = 10_000;
/// How high the highest bar is, in pixels.
const HEIGHT: f64 = 48.0;
/// The letters of the line, from the lowest.
const LETTERS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What templates know of the chart: `bars`, the height of each in pixels; `line`, the same in letters; `low`, `high` and `last`, the
/// least, greatest and last value; `since` and `until`, the first and the last moment. `None` where there are fewer than two points.
pub(super) fn of(history: &Value) -> Option<Value> {
    let points: Vec<(f64, f64)> = history.as_array()?.iter().take(POINTS_MAX).filter_map(point).collect();
    let ((since, _), (until, last)) = (*points.first()?, *points.last()?);
    if points.len() < 2 {
        return None;
    }
    let values = points.iter().map(|(_, value)| *value);
    let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.clone().fold(f64::NEG_INFINITY, f64::max));
    // Of several that share a bar, the greatest.
    let each = points.len().div_ceil(BARS_MAX);
    let tops = points.chunks(each).map(|chunk| chunk.iter().fold(f64::NEG_INFINITY, |top, (_, value)| top.max(*value)));
    let base = low.min(0.0);
    let span = (high - base).max(f64::MIN_POSITIVE);
    let shares: Vec<f64> = tops.map(|top| ((top - base) / span).clamp(0.0, 1.0)).collect();
    let bars = shares.iter().map(|share| Value::from((share * HEIGHT).round().max(1.0) as i64));
    let line: String = shares.iter().map(|share| LETTERS[(share * 7.0).round() as usize]).collect();
    let time = |seconds: f64| Value::from(Timestamp((seconds * 1e9) as i64).to_string());
    let number = |number: f64| Value::from(told(number));
    let fields = [
        ("bars", Value::Array(bars.collect())),
        ("line", Value::from(line)),
        ("low", number(low)),
        ("high", number(high)),
        ("last", number(last)),
        ("since", time(since)),
        ("until", time(until)),
    ];
    Some(Value::Object(fields.into_iter().map(|(name, value)| (name.into(), value)).collect::<ObjectMap>()))
}

/// A moment in seconds, and a value.
fn point(value: &Value) -> Option<(f64, f64)> {
    let number = |value: &Value| match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(number.into_inner()),
        _ => None,
    };
    let [time, value] = value.as_array()?.get(..2)? else { return None };
    Some((number(time)?, number(value)?)).filter(|(time, value)| time.abs() < 9e9 && value.is_finite())
}

/// A number with at most four digits that say something, or all of those before the point.
fn told(number: f64) -> String {
    let before = number.abs().log10().floor().clamp(-12.0, 12.0) as i32;
    let text = format!("{number:.*}", (3 - before).clamp(0, 12) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(history: &str, expected: Expect) {
        let history = tocsin_pipeline::json::parse_value(history.as_bytes()).unwrap();
        let mut text = Vec::new();
        if let Some(chart) = of(&history) {
            tocsin_pipeline::json::write_value(&chart, &mut text);
        }
        expected.assert_eq(&String::from_utf8(text).unwrap());
    }

    #[test]
    fn values_are_bars_and_letters() {
        check(
            "[[1795176000,0],[1795176060,3.5],[1795176120,7],[1795176180,70.25]]",
            expect![[
                r#"{"bars":[1,2,5,48],"high":"70.25","last":"70.25","line":"▁▁▂█","low":"0","since":"2026-11-20T12:00:00Z","until":"2026-11-20T12:03:00Z"}"#
            ]],
        );
        check(
            "[[1795176000,-5],[1795176060,5],[1795176120,0]]",
            expect![[
                r#"{"bars":[1,48,24],"high":"5","last":"0","line":"▁█▅","low":"-5","since":"2026-11-20T12:00:00Z","until":"2026-11-20T12:02:00Z"}"#
            ]],
        );
        check(
            "[[1795176000,0],[1795176060,0]]",
            expect![[
                r#"{"bars":[1,1],"high":"0","last":"0","line":"▁▁","low":"0","since":"2026-11-20T12:00:00Z","until":"2026-11-20T12:01:00Z"}"#
            ]],
        );
        check(
            "[[1795176000,12345678],[1795176060,12345678]]",
            expect![[
                r#"{"bars":[48,48],"high":"12345678","last":"12345678","line":"██","low":"12345678","since":"2026-11-20T12:00:00Z","until":"2026-11-20T12:01:00Z"}"#
            ]],
        );
    }

    #[test]
    fn many_points_share_bars_and_the_greatest_shows() {
        let points: Vec<_> = (0..6000).map(|at| format!("[{at},{}]", if at == 3000 { 100 } else { 1 })).collect();
        let history = tocsin_pipeline::json::parse_value(format!("[{}]", points.join(",")).as_bytes()).unwrap();
        let chart = of(&history).unwrap();
        let bars = chart.as_object().unwrap()["bars"].as_array().unwrap();
        assert_eq!(bars.len(), 60);
        assert_eq!(bars.iter().filter(|bar| **bar == Value::from(48)).count(), 1);
    }

    #[test]
    fn what_is_no_history_is_no_chart() {
        for history in ["null", "[]", "[[1,2]]", "[1,2,3]", "[[1],[2]]", r#"[["a",1],[2,"b"]]"#, "{}"] {
            check(history, expect![[""]]);
        }
    }

    #[test]
    fn numbers_are_short() {
        let told: Vec<_> = [0.0, 1.0, 0.123456, 1234.5678, 99.999, -0.00012345, 1e30].into_iter().map(told).collect();
        assert_eq!(told, ["0", "1", "0.1235", "1235", "100", "-0.0001234", "1000000000000000019884624838656"]);
    }
}
