//! A fixed part of the records, chosen by hash.

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{Assigns, BuildContext, Keying, OperatorConfig, Problem};
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::event::{Batch, Origin};
use tocsin_pipeline::expression::Expression;
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Built, Output, Reason, Transform};

use crate::dedupe::{compile_key, key_problems, reads_of};
use crate::key;

/// Lets a part of the records pass: one of every `rate` on average, or the part `ratio`.
///
/// Which ones is decided by a hash: of the `key` where there is one, so that all records of a key pass or none does; else of
/// where the record stood in its source. So the same records pass at every run and replay.
///
/// **State:** none.
///
/// **Late records:** as any other.
///
/// **After a crash:** records that are read again pass or not as they did the first time.
///
/// ```toml
/// [operators.tenth_of_users]
/// type = "sample"
/// inputs = ["access"]
/// rate = 10                             # or: ratio = 0.1
/// key = [".user"]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// One of so many records passes.
    rate: Option<u64>,
    /// The part of the records that passes, from 0 to 1.
    ratio: Option<f64>,
    /// VRL expressions, mostly paths, whose values together decide for all records that have them; one without a value counts
    /// as null. Default: none, each record is decided by itself.
    #[serde(default)]
    key: Vec<String>,
}

impl OperatorConfig for Config {
    const NAME: &'static str = "sample";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = key_problems("key", &self.key);
        match (self.rate, self.ratio) {
            (None, None) => problems.push(
                Problem::new("", "it does not say how many records pass").help("add `rate = 10` or `ratio = 0.1`"),
            ),
            (Some(_), Some(_)) => {
                problems.push(Problem::new("ratio", "give `rate` or `ratio`, not both"));
            }
            (Some(0), None) => {
                problems.push(Problem::new("rate", "must be at least 1").help("`rate = 10` lets one of ten pass"));
            }
            (None, Some(ratio)) if !(0.0..=1.0).contains(&ratio) => {
                problems.push(Problem::new("ratio", "must be from 0 to 1"));
            }
            _ => {}
        }
        problems
    }

    fn keying(&self) -> Keying {
        Keying::Stateless { assigns: Assigns::Nothing }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let key = compile_key(&self.key, context);
        let ratio = match (self.rate, self.ratio) {
            (Some(rate), _) => 1.0 / rate as f64,
            (None, ratio) => ratio.unwrap_or(1.0),
        };
        // Hashes below 2^64 times the part pass; `as` takes what is 2^64 to the greatest number.
        let below = (ratio * 2f64.powi(64)) as u64;
        Built::Transform(std::sync::Arc::new(Sample { reads: reads_of(&key), key, below, passes_all: ratio >= 1.0 }))
    }
}

struct Sample {
    key: Vec<Expression>,
    reads: Projection,
    /// Hashes below this pass.
    below: u64,
    passes_all: bool,
}

impl Sample {
    /// Writes what decides of a record.
    fn identity(&self, batch: &Batch, row: u32, errors: &mut u64, identity: &mut Vec<u8>) {
        if !self.key.is_empty() {
            return key::encode_row(&self.key, batch, row, errors, identity);
        }
        identity.extend_from_slice(batch.lane.source.as_bytes());
        identity.push(0);
        identity.extend_from_slice(batch.lane.partition.as_bytes());
        identity.push(0);
        let position = match batch.lane.origin {
            Origin::File(_) | Origin::Stream => batch.offset(row),
            Origin::Kafka { .. } => batch.base + u64::from(row),
            // They stand nowhere, so the record itself decides, with its time.
            Origin::Operator | Origin::Keyed(_) => {
                json::write_value(&batch.value(row), identity);
                batch.time(row).0.cast_unsigned()
            }
        };
        identity.extend_from_slice(&position.to_le_bytes());
    }
}

impl Transform for Sample {
    fn apply(&self, mut batch: Batch, output: &mut Output) {
        batch.decode(&self.reads);
        let mut identity = Vec::new();
        let mut rows: Vec<u32> = batch.rows().collect();
        let records = rows.len();
        rows.retain(|row| {
            identity.clear();
            self.identity(&batch, *row, &mut output.expression_errors, &mut identity);
            // XXH3 has a specification: the same records pass whatever the version and the machine.
            self.passes_all || twox_hash::XxHash3_64::oneshot(&identity) < self.below
        });
        output.drop(Reason::Sampled, records - rows.len());
        output.emit(0, batch.select(rows));
    }

    fn reads(&self) -> Projection {
        self.reads.clone()
    }

    fn is_selective(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;

    use super::*;
    use crate::script;

    fn story(records: usize) -> String {
        (0..records).fold(String::new(), |mut story, n| {
            writeln!(story, "00:00 {{\"n\":{n},\"user\":{}}}", n % 100).unwrap();
            story
        })
    }

    fn passed(config: &str, records: usize) -> Vec<String> {
        let outcome = script::run::<Config>(config, &story(records));
        outcome.lines().filter(|line| !line.starts_with('(')).map(str::to_owned).collect()
    }

    #[test]
    fn about_one_of_so_many_passes() {
        let count = passed("rate = 10", 2000).len();
        assert!((140..260).contains(&count), "{count}");
        assert_eq!(passed("rate = 1", 50).len(), 50);
        assert_eq!(passed("ratio = 1.0", 50).len(), 50);
        assert_eq!(passed("ratio = 0", 50).len(), 0);
    }

    #[test]
    fn records_of_a_key_pass_together() {
        let passed = passed("ratio = 0.3\nkey = [\".user\"]", 1000);
        let users: std::collections::BTreeSet<_> = passed.iter().map(|line| line.split("user").nth(1)).collect();
        assert_eq!(passed.len(), users.len() * 10);
        assert!((10..50).contains(&users.len()), "{}", users.len());
    }

    #[test]
    fn the_same_records_pass_at_every_run() {
        expect![[r#"
            00:00 {"n":1,"user":1}
            00:00 {"n":7,"user":7}
            (sampled 8)
        "#]]
        .assert_eq(&script::run::<Config>("rate = 3", &story(10)));
    }

    #[test]
    fn every_problem_is_told() {
        let problems = ["", "rate = 0", "ratio = 1.5", "rate = 2\nratio = 0.5"].map(script::problems::<Config>);
        expect![[r#"
            : it does not say how many records pass (add `rate = 10` or `ratio = 0.1`)
            rate: must be at least 1 (`rate = 10` lets one of ten pass)
            ratio: must be from 0 to 1
            ratio: give `rate` or `ratio`, not both
        "#]]
        .assert_eq(&problems.concat());
    }
}
