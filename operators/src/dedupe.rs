//! Repeats of a key within a time are dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, Keying, OperatorConfig, Problem};
use tocsin_config::types::{ByteSize, Duration};
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::expression::Expression;
use tocsin_pipeline::operator::{Built, Input, KEY_GROUPS, Operator, Output, Reason, StateError, key_group};
use tocsin_pipeline::time::Timestamp;

use crate::key::{self, Damaged, Reader};

/// Drops a record when one with the same `key` has passed, less than `within` away from it in event time. The first
/// passes; a dropped one does not prolong the time.
///
/// **State:** one timestamp per key, forgotten once the watermark is `within` past it. At most
/// `max_keys`: beyond that the oldest key is forgotten early, and a repeat of it passes.
///
/// **When options change:** the keys are kept as long as `key` is the same; another `within` counts from when each passed.
///
/// **Late records:** compared like any other while their key is remembered; afterwards they pass.
///
/// **After a crash:** the keys come back with the last checkpoint, so records replayed in the same
/// order are dropped or passed as they were the first time.
///
/// ```toml
/// [operators.once_per_host]
/// type = "dedupe"
/// inputs = ["access"]
/// key = [".host", ".message"]
/// within = "10m"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// VRL expressions, mostly paths, whose values together name a record. One without a value counts as null.
    key: Vec<String>,
    /// How long a key is remembered, in event time. Default: `"10m"`.
    #[serde(default = "ten_minutes")]
    within: Duration,
    /// How many keys are remembered at most; beyond that the oldest is forgotten. Default: 1,000,000.
    #[serde(default = "one_million")]
    max_keys: usize,
    /// The longest key, encoded. Records with a longer one are dropped under the reason `state_full`. Default: `"1KiB"`.
    #[serde(default = "one_kibibyte")]
    max_key_bytes: ByteSize,
}

fn ten_minutes() -> Duration {
    Duration(std::time::Duration::from_secs(600))
}

pub(crate) fn one_million() -> usize {
    1_000_000
}

pub(crate) fn one_kibibyte() -> ByteSize {
    ByteSize(1024)
}

/// The problems of a list of key expressions under `option`.
pub(crate) fn key_problems(option: &str, key: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (at, source) in key.iter().enumerate() {
        for found in Expression::check(source) {
            let mut problem = Problem::new(format!("{option}.{at}"), found.message).within(found.within);
            problem.help = found.help;
            problems.push(problem);
        }
    }
    problems
}

/// Compiles the expressions of a key, which [`key_problems`] has found none with.
pub(crate) fn compile_key(key: &[String], context: &mut BuildContext<'_>) -> Vec<Expression> {
    key.iter()
        .map(|source| Expression::compile(source, context.paths).expect("the configuration was checked"))
        .collect()
}

/// Expressions as parts of a shape: the same expression in other spaces around it is the same.
pub(crate) fn trimmed(expressions: &[String]) -> Vec<&str> {
    expressions.iter().map(|source| source.trim()).collect()
}

pub(crate) fn reads_of(key: &[Expression]) -> Projection {
    key.iter().fold(Projection::default(), |reads, expression| reads.union(&expression.reads()))
}

impl OperatorConfig for Config {
    const NAME: &'static str = "dedupe";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = key_problems("key", &self.key);
        if self.key.is_empty() {
            problems.push(
                Problem::new("key", "there is nothing to tell records apart by")
                    .help("name at least one field, `key = [\".host\"]`"),
            );
        }
        if self.within.0.is_zero() {
            problems.push(Problem::new("within", "must be longer than nothing"));
        }
        if self.max_keys == 0 {
            problems.push(Problem::new("max_keys", "must be at least 1"));
        }
        problems
    }

    fn needs_time(&self) -> bool {
        true
    }

    /// What is remembered is when each key passed: how long that matters may change.
    fn state_shape(&self, _: Json) -> Json {
        json!({ "key": trimmed(&self.key) })
    }

    fn keying(&self) -> Keying {
        Keying::By { option: "key", key: self.key.clone() }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let key = compile_key(&self.key, context);
        let reads = reads_of(&key);
        let operator = Dedupe {
            key,
            reads: reads.clone(),
            within: self.within.0,
            max_keys: self.max_keys,
            max_key_bytes: usize::try_from(self.max_key_bytes.0).unwrap_or(usize::MAX),
            passed: HashMap::default(),
            oldest: BTreeSet::new(),
            changed: [false; KEY_GROUPS as usize],
            key_bytes: 0,
            scratch: Vec::new(),
        };
        Built::Operator { operator: Box::new(operator), prepare: None, reads }
    }
}

struct Dedupe {
    key: Vec<Expression>,
    reads: Projection,
    within: std::time::Duration,
    max_keys: usize,
    max_key_bytes: usize,
    /// When a record of each key passed last. The hasher is seeded at random, for keys come from outside; nothing goes by
    /// the order of this map.
    passed: HashMap<Arc<[u8]>, Timestamp, RandomState>,
    /// The same, the oldest first: what is forgotten next.
    oldest: BTreeSet<(Timestamp, Arc<[u8]>)>,
    /// The key groups that the next snapshot must hold.
    changed: [bool; KEY_GROUPS as usize],
    /// The lengths of all keys together.
    key_bytes: usize,
    /// The key in hand, so that none is allocated for repeats.
    scratch: Vec<u8>,
}

/// What becomes of a record.
enum Verdict {
    Pass,
    Repeat,
    KeyTooLong,
}

impl Dedupe {
    fn judge(&mut self, batch: &Batch, row: u32, errors: &mut u64) -> Verdict {
        self.scratch.clear();
        key::encode_row(&self.key, batch, row, errors, &mut self.scratch);
        if self.scratch.len() > self.max_key_bytes {
            return Verdict::KeyTooLong;
        }
        let time = batch.time(row);
        if let Some((known, passed)) = self.passed.get_key_value(&self.scratch[..]) {
            let (known, passed) = (Arc::clone(known), *passed);
            // Whether a key is forgotten is decided by the watermark of the record's own lane just before it, not by when
            // `on_watermark` happens to be called: batches must not matter.
            let is_forgotten = passed.saturating_add(self.within) <= batch.watermark_before(row);
            let apart = time.max(passed).since(time.min(passed));
            if !is_forgotten && apart < self.within {
                return Verdict::Repeat;
            }
            if time > passed {
                self.remember(known, time);
            }
        } else {
            self.remember(Arc::from(&self.scratch[..]), time);
        }
        Verdict::Pass
    }

    fn remember(&mut self, key: Arc<[u8]>, time: Timestamp) {
        self.changed[usize::from(key_group(&key))] = true;
        match self.passed.insert(Arc::clone(&key), time) {
            Some(earlier) => {
                self.oldest.remove(&(earlier, Arc::clone(&key)));
            }
            None => self.key_bytes += key.len(),
        }
        self.oldest.insert((time, key));
        if self.passed.len() > self.max_keys {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.oldest.pop_first() {
            self.changed[usize::from(key_group(&key))] = true;
            self.key_bytes -= key.len();
            self.passed.remove(&key);
        }
    }
}

impl Operator for Dedupe {
    fn on_input(&mut self, _: usize, input: Input, output: &mut Output) {
        let Input::Batch(mut batch) = input else { unreachable!("dedupe has no Prepare") };
        batch.decode(&self.reads);
        let (mut passing, mut repeats, mut too_long) = (Vec::with_capacity(batch.len()), 0, 0);
        for row in batch.rows() {
            match self.judge(&batch, row, &mut output.expression_errors) {
                Verdict::Pass => passing.push(row),
                Verdict::Repeat => repeats += 1,
                Verdict::KeyTooLong => too_long += 1,
            }
        }
        output.drop(Reason::Duplicate, repeats);
        output.drop(Reason::StateFull, too_long);
        output.emit(0, batch.select(passing));
    }

    fn on_watermark(&mut self, watermark: Timestamp, _: &mut Output) {
        while self.oldest.first().is_some_and(|(time, _)| time.saturating_add(self.within) <= watermark) {
            self.forget_oldest();
        }
    }

    fn next_deadline(&self) -> Timestamp {
        Timestamp::MAX
    }

    /// A piece holds, for each key of the group, its length and bytes and then its time as 8 bytes, lowest first.
    fn snapshot(&mut self, full: bool, piece: &mut dyn FnMut(u16, Vec<u8>)) {
        let mut pieces = vec![Vec::new(); usize::from(KEY_GROUPS)];
        for (time, key) in &self.oldest {
            let group = usize::from(key_group(key));
            if full || self.changed[group] {
                key::write_bytes(key, &mut pieces[group]);
                pieces[group].extend_from_slice(&time.0.to_le_bytes());
            }
        }
        for (group, bytes) in (0..).zip(pieces) {
            if std::mem::take(&mut self.changed[usize::from(group)]) || full && !bytes.is_empty() {
                piece(group, bytes);
            }
        }
    }

    fn restore(&mut self, _: u16, piece: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader(piece);
        while !reader.is_empty() {
            let key: Arc<[u8]> = Arc::from(reader.bytes()?);
            let time = Timestamp(reader.i64()?);
            self.key_bytes += key.len();
            if self.passed.insert(Arc::clone(&key), time).is_some() {
                return Err(Damaged.into());
            }
            self.oldest.insert((time, key));
        }
        // The bound may have been lowered since.
        while self.passed.len() > self.max_keys {
            self.forget_oldest();
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        // The key behind two counters, and its place in a map and a tree, each with some room to spare.
        self.key_bytes + self.passed.len() * 96
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::script;

    fn check(config: &str, story: &str, outcome: Expect) {
        outcome.assert_eq(&script::run::<Config>(config, story));
    }

    #[test]
    fn a_repeat_passes_again_when_its_time_is_over() {
        check(
            r#"key = [".host"]
               within = "1m""#,
            r#"
            00:00 {"host":"a","n":1}
            00:59 {"host":"a","n":2}
            00:59 {"host":"b","n":3}
            01:00 {"host":"a","n":4}
            01:59 {"host":"a","n":5}
            02:30 {"n":6}
            02:31 {"host":null,"n":7}
            "#,
            expect![[r#"
                00:00 {"host":"a","n":1}
                00:59 {"host":"b","n":3}
                01:00 {"host":"a","n":4}
                02:30 {"n":6}
                (duplicate 3)
            "#]],
        );
    }

    #[test]
    fn a_crash_does_not_let_a_repeat_through() {
        check(
            r#"key = [".host"]"#,
            r#"
            00:00 {"host":"a"}
            barrier
            00:01 {"host":"b"}
            crash
            00:01 {"host":"b"}
            00:02 {"host":"a"}
            00:02 {"host":"b"}
            "#,
            expect![[r#"
                00:00 {"host":"a"}
                00:01 {"host":"b"}
                00:01 {"host":"b"}
                (duplicate 2)
            "#]],
        );
    }

    #[test]
    fn the_watermark_of_its_lane_forgets_a_key_for_late_records() {
        check(
            r#"key = [".host"]
               within = "10s""#,
            r#"
            00:00 {"host":"a"}
            00:30 {"host":"b"}
            watermark 00:30
            barrier
            crash
            00:05 {"host":"a"}
            00:25 {"host":"b"}
            end
            barrier
            "#,
            expect![[r#"
                00:00 {"host":"a"}
                00:30 {"host":"b"}
                00:05 {"host":"a"}
                (duplicate 1)
            "#]],
        );
    }

    #[test]
    fn the_oldest_key_is_forgotten_when_there_are_too_many() {
        check(
            r#"key = [".host"]
               max_keys = 2
               max_key_bytes = "8""#,
            r#"
            00:02 {"host":"b"}
            00:01 {"host":"a"}
            00:03 {"host":"c"}
            00:04 {"host":"b"}
            00:05 {"host":"a"}
            00:06 {"host":"far too long"}
            "#,
            expect![[r#"
                00:02 {"host":"b"}
                00:01 {"host":"a"}
                00:03 {"host":"c"}
                00:05 {"host":"a"}
                (duplicate 1)
                (state_full 1)
            "#]],
        );
    }

    #[test]
    fn every_problem_is_told() {
        expect![[r#"
            key.1[0..4]: call to undefined variable: did you mean "null"?
            within: must be longer than nothing
            max_keys: must be at least 1
        "#]]
        .assert_eq(&script::problems::<Config>("key = [\".a\", \"nope\"]\nwithin = \"0s\"\nmax_keys = 0"));
    }
}
