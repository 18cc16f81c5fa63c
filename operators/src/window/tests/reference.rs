//! Random stories, held against what going record by record makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;
use tocsin_pipeline::event::Field;
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Built, Input, Output};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use super::super::Config;
use super::super::number::{Number, float};
use super::super::quantile::Sketch;
use crate::{key, script};

/// One record of a generated story.
#[derive(Clone, Debug)]
struct Given {
    lane: usize,
    second: i64,
    host: Option<&'static str>,
    value: Option<&'static str>,
    /// Whether the batch of its lane ends with it, the watermark is told then, and a crash follows.
    ends_batch: bool,
    tells_watermark: bool,
    crashes: bool,
}

impl Given {
    fn time(&self) -> Timestamp {
        Timestamp::from_secs(self.second)
    }

    fn json(&self) -> String {
        let mut fields = Vec::new();
        fields.extend(self.host.map(|host| format!("\"host\":\"{host}\"")));
        fields.extend(self.value.map(|value| format!("\"v\":{value}")));
        format!("{{{}}}", fields.join(","))
    }
}

fn given() -> impl Strategy<Value = Given> {
    let host = prop::sample::select(vec![Some("a"), Some("b"), Some("c"), None]);
    let value = prop::sample::select(vec![
        Some("1"),
        Some("7"),
        Some("-2.5"),
        Some("0.25"),
        Some("6.696928794914171e299"),
        Some("\"x\""),
        Some("null"),
        None,
    ]);
    (0..2usize, 0i64..60, host, value, any::<[bool; 3]>()).prop_map(|(lane, second, host, value, flags)| Given {
        lane,
        second,
        host,
        value,
        ends_batch: flags[0],
        tells_watermark: flags[1],
        crashes: flags[2],
    })
}

/// The windows that a test runs, as numbers of seconds.
#[derive(Clone, Copy, Debug)]
struct Rule {
    size: i64,
    every: i64,
    lateness: i64,
    out_of_order: i64,
    updates: bool,
}

impl Rule {
    fn config(self) -> String {
        let Self { size, every, lateness, updates, .. } = self;
        let emit = if updates { "update" } else { "close" };
        let kind = match size == every {
            true => format!("tumbling = \"{size}s\""),
            false => format!("hopping = {{ size = \"{size}s\", every = \"{every}s\" }}"),
        };
        format!(
            r#"
            {kind}
            lateness = "{lateness}s"
            emit = "{emit}"
            group_by = [".host"]
            [aggregates]
            count = "count()"
            distinct = "distinct(.v)"
            first = "first(.v)"
            last = "last(.v)"
            max = "max(.v)"
            mean = "mean(.v)"
            median = "quantile(.v, 0.5)"
            min = "min(.v)"
            positive = "count(.v > 0)"
            sum = "sum(.v)"
            "#
        )
    }
}

/// A record of a window: its second, lane and position, and what it holds.
type Row = (i64, usize, usize, Value);

/// A late record: the windows that it changes, its key and itself.
type LateRow = (Vec<i64>, Vec<u8>, Row);

/// What a window makes of its records, the naive way: a line for each window and key, one for each time that it is told anew, and one for each late
/// record.
fn reference(rule: Rule, story: &[Given]) -> Vec<String> {
    let mut windows: BTreeMap<(i64, Vec<u8>), Vec<Row>> = BTreeMap::new();
    // By the watermark that they came behind, lane and position.
    let mut updates: BTreeMap<(i64, usize, usize), LateRow> = BTreeMap::new();
    let mut late = Vec::new();
    for lane in 0..2 {
        let mut seen = i64::MIN / 2;
        for (position, given) in story.iter().enumerate().filter(|(_, given)| given.lane == lane) {
            let watermark = seen - rule.out_of_order;
            let record = json::parse_value(given.json().as_bytes()).unwrap();
            let mut host = Vec::new();
            key::encode(record.as_object().unwrap().get("host").map_or(Field::Missing, Field::of_value), &mut host);
            let row = (given.second, lane, position, record.clone());
            let first = given.second.div_euclid(rule.every) * rule.every + rule.every;
            let ends = (first..first + rule.size).step_by(rule.every as usize);
            let open: Vec<i64> = ends.filter(|end| end + rule.lateness > watermark).collect();
            let (ended, others): (Vec<_>, Vec<_>) =
                open.iter().copied().partition(|end| rule.updates && *end <= watermark);
            for end in others {
                windows.entry((end, host.clone())).or_default().push(row.clone());
            }
            if !ended.is_empty() {
                updates.insert((watermark, lane, position), (ended, host, row));
            }
            if open.is_empty() {
                late.push(line(&format!("late {lane}"), &record));
            }
            seen = seen.max(given.second);
        }
    }
    let mut lines = Vec::new();
    let mut counts: BTreeMap<(i64, Vec<u8>), i64> = BTreeMap::new();
    let mut waiting = windows.keys().cloned().collect::<Vec<_>>().into_iter().peekable();
    let turns = updates.into_iter().map(|((watermark, ..), update)| (watermark, Some(update)));
    for (watermark, update) in turns.chain([(i64::MAX, None)]) {
        while let Some(window) = waiting.next_if(|(end, _)| *end <= watermark) {
            lines.push(line(&format!("{}", window.0), &told(rule, &window, windows[&window].clone(), None)));
        }
        let Some((ends, host, row)) = update else { continue };
        ends.iter().for_each(|end| windows.entry((*end, host.clone())).or_default().push(row.clone()));
        for end in ends {
            let is_superseded =
                windows.keys().any(|(other, key)| *key == host && (end + 1..=watermark).contains(other));
            let window = (end, host.clone());
            let count = counts.entry(window.clone()).or_default();
            *count += 1;
            let record = told(rule, &window, windows[&window].clone(), Some((*count, is_superseded)));
            lines.push(line(&format!("{end}"), &record));
        }
    }
    lines.extend(late);
    lines
}

/// What is told of a window and key whose records are `rows`.
fn told(rule: Rule, (end, host): &(i64, Vec<u8>), mut rows: Vec<Row>, update: Option<(i64, bool)>) -> Value {
    rows.sort_by_key(|(second, lane, position, _)| (*second, *lane, *position));
    let values: Vec<&Value> =
        rows.iter().filter_map(|row| row.3.as_object().unwrap().get("v")).filter(|v| !v.is_null()).collect();
    let mut numbers: Vec<Number> = values.iter().filter_map(|value| Number::of(Field::of_value(value))).collect();
    numbers.sort_by(|left, right| left.order(*right));
    let mut sketch = Sketch::default();
    numbers.iter().for_each(|number| assert!(sketch.add(*number)));
    // Sums of small multiples of 1/4 are exact; one of 2^996 hides them, and several make an exact product, so that nothing
    // small decides how that is rounded.
    let (huge, small): (Vec<f64>, Vec<f64>) = numbers
        .iter()
        .map(|number| match number {
            Number::Integer(value) => *value as f64,
            Number::Float(value) => *value,
            Number::Time(_) => unreachable!(),
        })
        .partition(|value| value.abs() > 1e200);
    let total = huge.len() as f64 * 2f64.powi(996) + small.iter().sum::<f64>();
    let sum = match numbers.iter().any(|number| matches!(number, Number::Float(_))) {
        true => float(total),
        false => Value::Integer(total as i64),
    };
    let mean = if numbers.is_empty() { Value::Null } else { float(total / numbers.len() as f64) };
    let shown = |number: Option<&Number>| number.map_or(Value::Null, |number| number.to_value());
    let edge = |value: Option<&&Value>| value.map_or(Value::Null, |value| (*value).clone());
    let distinct = values.iter().map(|value| value.to_string()).collect::<BTreeSet<_>>().len();
    let positive = numbers.iter().filter(|number| number.order(Number::Integer(0)).is_gt()).count();
    let fields = [
        ("count", Value::Integer(rows.len() as i64)),
        ("distinct", Value::Integer(distinct as i64)),
        ("first", edge(values.first())),
        ("host", key::decode(&mut &host[..]).unwrap()),
        ("last", edge(values.last())),
        ("max", shown(numbers.last())),
        ("mean", mean),
        ("median", sketch.quantile(0.5)),
        ("min", shown(numbers.first())),
        ("positive", Value::Integer(positive as i64)),
        ("sum", sum),
        ("window_end", Value::from(Timestamp::from_secs(*end).to_string().as_str())),
        ("window_start", Value::from(Timestamp::from_secs(*end - rule.size).to_string().as_str())),
    ];
    let update = update.map(|(count, is_superseded)| {
        [("update", Value::Integer(count)), ("superseded", Value::Boolean(is_superseded))]
    });
    let update = update.into_iter().flatten();
    Value::Object(fields.into_iter().chain(update).map(|(name, value)| (name.into(), value)).collect())
}

fn line(prefix: &str, record: &Value) -> String {
    let mut json = Vec::new();
    json::write_value(record, &mut json);
    format!("{prefix} {}", String::from_utf8(json).unwrap())
}

/// The same by the operator: batches cut as the story says, the lanes interleaved as it says.
fn outcome(rule: Rule, story: &[Given], is_prepared: bool) -> Vec<String> {
    let build = || match script::build::<Config>(&rule.config()) {
        Built::Operator { operator, prepare, .. } => (operator, prepare.unwrap()),
        Built::Transform(_) => unreachable!(),
    };
    let (mut operator, mut prepare) = build();
    let lanes = ["0", "1"].map(|name| script::lane(name, Duration::from_secs(rule.out_of_order as u64)));
    let (mut seen, mut offsets) = ([Timestamp::MIN; 2], [0u64; 2]);
    let mut waiting: [Vec<&Given>; 2] = [Vec::new(), Vec::new()];
    let (mut lines, mut late) = (Vec::new(), [Vec::new(), Vec::new()]);
    let mut tell = |output: Output| {
        for (port, batch) in output.batches {
            for row in batch.rows() {
                let record = batch.value(row);
                match port {
                    0 => lines.push(line(&format!("{}", batch.time(row).0 / 1_000_000_000), &record)),
                    _ => {
                        let lane: usize = batch.lane.partition.parse().unwrap();
                        late[lane].push(line(&format!("late {lane}"), &record));
                    }
                }
            }
        }
    };
    for (at, given) in story.iter().enumerate() {
        let lane = given.lane;
        waiting[lane].push(given);
        let is_last = !story[at + 1..].iter().any(|next| next.lane == lane);
        if !given.ends_batch && !is_last {
            continue;
        }
        let jsons: Vec<_> = waiting[lane].iter().map(|given| (given.time(), given.json())).collect();
        waiting[lane].clear();
        let records: Vec<_> = jsons.iter().map(|(time, json)| (*time, json.as_str())).collect();
        let mut batch = script::batch(&lanes[lane], offsets[lane], Timestamp::MIN, &records);
        offsets[lane] += batch.block.len() as u64;
        let (before, max) = (seen[lane], batch.times.as_ref().unwrap().max);
        let input = if is_prepared {
            let mut prepared = prepare.prepare(batch);
            prepared.seen_before = before;
            Input::Prepared(prepared)
        } else {
            batch.seen_before = before;
            Input::Batch(batch)
        };
        seen[lane] = seen[lane].max(max);
        let mut output = Output::default();
        operator.on_input(0, input, &mut output);
        // A lane without a record says nothing yet; one that the story does not have does not exist.
        let lanes = (0..2).filter(|lane| story.iter().any(|given| given.lane == *lane));
        let least = lanes.map(|lane| seen[lane]).min().unwrap_or(Timestamp::MIN);
        if given.tells_watermark && least != Timestamp::MIN {
            let merged = least.saturating_sub(Duration::from_secs(rule.out_of_order as u64));
            operator.on_watermark(merged, &mut output);
        }
        tell(output);
        if given.crashes {
            let mut pieces = Vec::new();
            operator.snapshot(true, &mut |group, piece| pieces.push((group, piece)));
            (operator, prepare) = build();
            for (group, piece) in pieces {
                operator.restore(group, &piece).unwrap();
            }
        }
    }
    let mut output = Output::default();
    operator.on_watermark(Timestamp::MAX, &mut output);
    tell(output);
    lines.extend(late.into_iter().flatten());
    lines
}

fn text(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the batches, the interleaving of lanes, the moments at which watermarks are told, and the crashes.
    #[test]
    fn the_outcome_is_that_of_going_record_by_record(
        story in prop::collection::vec(given(), 0..60),
        hops in 1i64..6,
        every in 1i64..15,
        lateness in prop::sample::select(vec![0i64, 3, 20]),
        out_of_order in prop::sample::select(vec![0i64, 5]),
    ) {
        let rule = Rule { size: hops * every, every, lateness, out_of_order, updates: false };
        let expected = text(&reference(rule, &story));
        prop_assert_eq!(&text(&outcome(rule, &story, true)), &expected);
        prop_assert_eq!(&text(&outcome(rule, &story, false)), &expected);
    }
}

/// Leaves of the times that a window is told anew the last alone, in no order, and without what was told before it.
fn without_steps(lines: Vec<String>) -> (Vec<String>, BTreeMap<String, String>) {
    let (mut others, mut last) = (Vec::new(), BTreeMap::new());
    for line in lines {
        let line = line.replace("\"superseded\":true,", "").replace("\"superseded\":false,", "");
        let record = line
            .split_once(' ')
            .map_or(Value::Null, |(_, json)| json::parse_value(json.as_bytes()).unwrap_or(Value::Null));
        let fields = record.as_object().filter(|fields| fields.contains_key("update"));
        match fields {
            Some(fields) => drop(last.insert(format!("{} {}", fields["window_end"], fields["host"]), line)),
            None => others.push(line),
        }
    }
    (others, last)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Windows that are told anew: of one lane each step is the same. Of several lanes, what is told first and last; which of two records of
    /// different lanes that came behind the same watermark is told before the other is not defined.
    #[test]
    fn updates_are_those_of_going_record_by_record(
        mut story in prop::collection::vec(given(), 0..60),
        is_one_lane in any::<bool>(),
        hops in 1i64..4,
        every in 1i64..15,
        lateness in prop::sample::select(vec![3i64, 20, 50]),
        out_of_order in prop::sample::select(vec![0i64, 5]),
    ) {
        let rule = Rule { size: hops * every, every, lateness, out_of_order, updates: true };
        story.iter_mut().filter(|_| is_one_lane).for_each(|given| given.lane = 0);
        let expected = reference(rule, &story);
        for is_prepared in [true, false] {
            let outcome = outcome(rule, &story, is_prepared);
            if is_one_lane {
                prop_assert_eq!(&text(&outcome), &text(&expected));
            }
            prop_assert_eq!(without_steps(outcome), without_steps(expected.clone()));
        }
    }
}
