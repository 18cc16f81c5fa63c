//! The value of an alert over time: so few points that they fit into a notification.

use serde::{Deserialize, Serialize};
use tocsin_pipeline::time::Timestamp;
use vrl::prelude::NotNan;
use vrl::value::Value;

/// No more points are kept.
const POINTS_MAX: usize = 60;

/// Seconds since 1970 and the number, oldest first. When there is no room for one more, every second point goes, and from
/// then on points are taken half as often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Series {
    /// The number as the bits of a float, since JSON does not give every float back.
    points: Vec<(i64, u64)>,
    /// Points are at least so many values apart.
    stride: u64,
    /// How many values there were.
    seen: u64,
}

impl Series {
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    pub(super) fn add(&mut self, time: Timestamp, number: f64) {
        let stride = self.stride.max(1);
        let is_due = self.seen.is_multiple_of(stride);
        self.seen += 1;
        let point = (time.0.div_euclid(1_000_000_000), number.to_bits());
        if !is_due {
            return;
        }
        if self.points.len() == POINTS_MAX {
            let mut at = 0;
            self.points.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.stride = stride * 2;
        }
        self.points.push(point);
    }

    /// `[[seconds, number], …]`; `None` where one point says no more than the value itself.
    pub(super) fn to_value(&self) -> Option<Value> {
        if self.points.len() < 2 {
            return None;
        }
        let number = |bits: u64| {
            let number = f64::from_bits(bits);
            // Counts are written as counts.
            match number.fract() == 0.0 && number.abs() < 9.0e15 {
                true => Value::Integer(number as i64),
                false => NotNan::new(number).map_or(Value::Null, Value::Float),
            }
        };
        let points =
            self.points.iter().map(|(seconds, bits)| Value::Array(vec![Value::Integer(*seconds), number(*bits)]));
        Some(Value::Array(points.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_thin_out_over_the_whole_time() {
        let mut series = Series::default();
        for second in 0..1000 {
            series.add(Timestamp::from_secs(second), 0.5 * second as f64);
            assert!(series.points.len() <= POINTS_MAX);
        }
        let seconds: Vec<_> = series.points.iter().map(|(second, _)| *second).collect();
        let step = seconds[1] - seconds[0];
        assert!(seconds.windows(2).all(|pair| pair[1] - pair[0] == step), "{seconds:?}");
        assert_eq!((seconds[0], step), (0, 32));
        assert!(1000 - seconds.last().unwrap() <= step);
    }
}
