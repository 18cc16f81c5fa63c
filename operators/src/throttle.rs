//! So many records per key and stretch of event time pass.

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
use tocsin_pipeline::operator::{Built, Input, KEY_GROUPS, Operator, Output, Ports, Reason, StateError, key_group};
use tocsin_pipeline::time::{Timestamp, nanos};

use crate::dedupe::{compile_key, key_problems, one_kibibyte, one_million, reads_of, trimmed};
use crate::key::{self, Damaged, Reader, write_number};

/// Lets at most `events` records of a `key` pass in each stretch of event time of the length `per`; the others go to
/// `NAME.throttled`, or are dropped under the reason `throttled` where nothing is connected to that.
///
/// Stretches start at whole multiples of `per` since 1970-01-01T00:00:00Z, whenever the first record came: so what passes depends
/// on event times alone. Around the end of a stretch up to twice `events` may pass within one `per`.
///
/// **State:** one count per key and stretch, forgotten once the watermark is past its end. At most `max_keys`: beyond that
/// the oldest is forgotten early, and counts from nothing if it comes again.
///
/// **When options change:** the counts are kept as long as `key` and `per` are the same; another `events` holds at once.
///
/// **Late records:** count for the stretch that the watermark of their own lane is in.
///
/// **After a crash:** the counts come back with the last checkpoint, so records replayed in the same order pass or not as they
/// did the first time.
///
/// ```toml
/// [operators.hundred_a_minute]
/// type = "throttle"
/// inputs = ["access"]
/// key = [".client"]
/// events = 100
/// per = "1m"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// How many records of a key pass in each stretch.
    events: u64,
    /// How long a stretch is, in event time. Default: `"1s"`.
    #[serde(default = "one_second")]
    per: Duration,
    /// VRL expressions, mostly paths, whose values together are the key; one without a value counts as null. Default: none, all
    /// records have one key.
    #[serde(default)]
    key: Vec<String>,
    /// How many counts are kept at most; beyond that the oldest is forgotten. Default: 1,000,000.
    #[serde(default = "one_million")]
    max_keys: usize,
    /// The longest key, encoded. Records with a longer one are dropped under the reason `state_full`. Default: `"1KiB"`.
    #[serde(default = "one_kibibyte")]
    max_key_bytes: ByteSize,
}

fn one_second() -> Duration {
    Duration(std::time::Duration::from_secs(1))
}

/// The port of records that are over the rate.
const THROTTLED: usize = 1;

impl OperatorConfig for Config {
    const NAME: &'static str = "throttle";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = key_problems("key", &self.key);
        if self.events == 0 {
            problems.push(Problem::new("events", "must be at least 1"));
        }
        if self.per.0.is_zero() {
            problems.push(Problem::new("per", "must be longer than nothing"));
        }
        if self.max_keys == 0 {
            problems.push(Problem::new("max_keys", "must be at least 1"));
        }
        problems
    }

    fn ports(&self) -> Ports {
        vec!["throttled".into()]
    }

    fn needs_time(&self) -> bool {
        true
    }

    /// What is remembered is how many passed in each stretch: how many may can change.
    fn state_shape(&self, _: Json) -> Json {
        json!({ "key": trimmed(&self.key), "per": self.per.to_string() })
    }

    fn keying(&self) -> Keying {
        Keying::By { option: "key", key: self.key.clone() }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let key = compile_key(&self.key, context);
        let reads = reads_of(&key);
        let throttle = Throttle {
            key,
            reads: reads.clone(),
            events: self.events,
            per: nanos(self.per.0),
            max_keys: self.max_keys,
            max_key_bytes: usize::try_from(self.max_key_bytes.0).unwrap_or(usize::MAX),
            keeps_throttled: context.connected.iter().any(|port| port == "throttled"),
            counts: HashMap::default(),
            oldest: BTreeSet::new(),
            changed: [false; KEY_GROUPS as usize],
            key_bytes: 0,
            scratch: Vec::new(),
        };
        Built::Operator { operator: Box::new(throttle), prepare: None, reads }
    }
}

/// A stretch, as its number since 1970 in 8 bytes, and then the encoded key.
type StretchKey = Arc<[u8]>;

struct Throttle {
    key: Vec<Expression>,
    reads: Projection,
    events: u64,
    per: i64,
    max_keys: usize,
    max_key_bytes: usize,
    /// Whether something reads the records that are over the rate.
    keeps_throttled: bool,
    /// How many records have passed. The hasher is seeded at random, for keys come from outside; nothing goes by the order of
    /// this map.
    counts: HashMap<StretchKey, u64, RandomState>,
    /// The same, the oldest stretch first: what is forgotten next.
    oldest: BTreeSet<(i64, StretchKey)>,
    /// The key groups that the next snapshot must hold.
    changed: [bool; KEY_GROUPS as usize],
    /// The lengths of all keys together.
    key_bytes: usize,
    /// The key in hand, so that none is allocated for those that are known.
    scratch: Vec<u8>,
}

/// Bytes before the key.
const STRETCH_BYTES: usize = 8;

/// What becomes of a record.
#[derive(PartialEq, Eq)]
enum Verdict {
    Pass,
    Throttle,
    KeyTooLong,
}

impl Throttle {
    fn judge(&mut self, batch: &Batch, row: u32, errors: &mut u64) -> Verdict {
        // What is behind the watermark of its lane counts as at it: its stretch may be forgotten already.
        let time = batch.time(row).max(batch.watermark_before(row));
        let stretch = time.0.div_euclid(self.per);
        self.scratch.clear();
        self.scratch.extend_from_slice(&stretch.to_le_bytes());
        key::encode_row(&self.key, batch, row, errors, &mut self.scratch);
        if self.scratch.len() - STRETCH_BYTES > self.max_key_bytes {
            return Verdict::KeyTooLong;
        }
        if let Some(count) = self.counts.get_mut(&self.scratch[..]) {
            if *count >= self.events {
                return Verdict::Throttle;
            }
            *count += 1;
            self.changed[usize::from(key_group(&self.scratch[STRETCH_BYTES..]))] = true;
            return Verdict::Pass;
        }
        self.remember(stretch, Arc::from(&self.scratch[..]), 1);
        Verdict::Pass
    }

    fn remember(&mut self, stretch: i64, key: StretchKey, count: u64) {
        self.changed[usize::from(key_group(&key[STRETCH_BYTES..]))] = true;
        self.key_bytes += key.len();
        self.counts.insert(Arc::clone(&key), count);
        self.oldest.insert((stretch, key));
        if self.counts.len() > self.max_keys {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.oldest.pop_first() {
            self.changed[usize::from(key_group(&key[STRETCH_BYTES..]))] = true;
            self.key_bytes -= key.len();
            self.counts.remove(&key);
        }
    }
}

impl Operator for Throttle {
    fn on_input(&mut self, _: usize, input: Input, output: &mut Output) {
        let Input::Batch(mut batch) = input else { unreachable!("throttle has no Prepare") };
        batch.decode(&self.reads);
        let (mut passing, mut throttled, mut too_long) = (Vec::with_capacity(batch.len()), Vec::new(), 0);
        for row in batch.rows() {
            match self.judge(&batch, row, &mut output.expression_errors) {
                Verdict::Pass => passing.push(row),
                Verdict::Throttle => throttled.push(row),
                Verdict::KeyTooLong => too_long += 1,
            }
        }
        output.drop(Reason::StateFull, too_long);
        match self.keeps_throttled {
            true => output.emit(THROTTLED, batch.select(throttled)),
            false => output.drop(Reason::Throttled, throttled.len()),
        }
        output.emit(0, batch.select(passing));
    }

    fn on_watermark(&mut self, watermark: Timestamp, _: &mut Output) {
        let current = match watermark {
            Timestamp::MAX => i64::MAX,
            watermark => watermark.0.div_euclid(self.per),
        };
        while self.oldest.first().is_some_and(|(stretch, _)| *stretch < current) {
            self.forget_oldest();
        }
    }

    fn next_deadline(&self) -> Timestamp {
        Timestamp::MAX
    }

    /// A piece holds, for each stretch and key of the group: its stretch and key behind their length, and its count.
    fn snapshot(&mut self, full: bool, piece: &mut dyn FnMut(u16, Vec<u8>)) {
        let mut pieces = vec![Vec::new(); usize::from(KEY_GROUPS)];
        for (_, key) in &self.oldest {
            let group = usize::from(key_group(&key[STRETCH_BYTES..]));
            if full || self.changed[group] {
                key::write_bytes(key, &mut pieces[group]);
                write_number(self.counts.get(key).copied().unwrap_or(0), &mut pieces[group]);
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
            let key: StretchKey = Arc::from(reader.bytes()?);
            let stretch = i64::from_le_bytes(*key.first_chunk().ok_or(Damaged)?);
            let count = reader.number()?;
            if self.counts.contains_key(&key) {
                return Err(Damaged.into());
            }
            self.remember(stretch, key, count);
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        // The key behind two counters, and its place in a map and a tree, each with some room to spare.
        self.key_bytes + self.counts.len() * 96
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
    fn so_many_of_a_key_pass_in_each_stretch() {
        check(
            r#"
            key = [".client"]
            events = 2
            per = "1m"
            "#,
            r#"
            00:01 {"client":"a","n":1}
            00:02 {"client":"a","n":2}
            00:03 {"client":"b","n":3}
            00:59 {"client":"a","n":4}
            01:00 {"client":"a","n":5}
            watermark 01:00
            00:58 {"client":"a","n":6}
            00:58 {"client":"a","n":7}
            end
            "#,
            expect![[r#"
                00:01 {"client":"a","n":1}
                00:02 {"client":"a","n":2}
                00:03 {"client":"b","n":3}
                01:00 {"client":"a","n":5}
                throttled: 00:59 {"client":"a","n":4}
                00:58 {"client":"a","n":6}
                throttled: 00:58 {"client":"a","n":7}
            "#]],
        );
    }

    #[test]
    fn a_crash_lets_no_more_pass() {
        check(
            "events = 3",
            r#"
            00:01 {"n":1}
            00:01.100 {"n":2}
            barrier
            00:01.200 {"n":3}
            crash
            00:01.200 {"n":3}
            00:01.300 {"n":4}
            barrier
            watermark 00:02
            barrier
            crash
            00:02 {"n":5}
            "#,
            expect![[r#"
                00:01 {"n":1}
                00:01.100 {"n":2}
                00:01.200 {"n":3}
                00:01.200 {"n":3}
                throttled: 00:01.300 {"n":4}
                00:02 {"n":5}
            "#]],
        );
    }

    #[test]
    fn the_oldest_count_is_forgotten_when_there_are_too_many() {
        check(
            r#"
            key = [".client"]
            events = 1
            max_keys = 1
            max_key_bytes = "8"
            "#,
            r#"
            00:01 {"client":"a"}
            00:01 {"client":"a"}
            00:01 {"client":"b"}
            00:01 {"client":"a"}
            00:01 {"client":"far too long"}
            "#,
            expect![[r#"
                00:01 {"client":"a"}
                00:01 {"client":"b"}
                00:01 {"client":"a"}
                throttled: 00:01 {"client":"a"}
                (state_full 1)
            "#]],
        );
    }

    #[test]
    fn every_problem_is_told() {
        expect![[r#"
            events: must be at least 1
            per: must be longer than nothing
            max_keys: must be at least 1
        "#]]
        .assert_eq(&script::problems::<Config>("events = 0\nper = \"0s\"\nmax_keys = 0"));
    }

    #[test]
    fn counts_are_kept_by_key() {
        expect![[r#"By { option: "key", key: [".host"] }, Same"#]]
            .assert_eq(&script::keying::<Config>("events = 1\nkey = ['.host']"));
        expect![[r#"By { option: "key", key: [] }, Same"#]].assert_eq(&script::keying::<Config>("events = 1"));
    }
}
