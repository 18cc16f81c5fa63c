//! The contracts of operators: pure values that turn batches into batches.
//!
//! There are two. A [`Transform`] keeps nothing: the engine runs it on whole blocks on any thread and restores their order
//! afterwards. An [`Operator`] has state: it sees the batches of its inputs one after the other, in order, and its time is
//! the watermark. Neither has a clock, I/O, a task, randomness or a lock; hash iteration order never reaches an output.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use vrl::value::{ObjectMap, Value};

use crate::codec::Projection;
use crate::event::{Batch, Lane};
use crate::time::Timestamp;

/// Why a record did not go on. Every drop is counted under one of these, per component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A condition was false.
    Filtered,
    /// Folded into a window or another state.
    Aggregated,
    /// A repeat of a key.
    Duplicate,
    /// Left out by `sample`.
    Sampled,
    /// Over the rate that `throttle` allows.
    Throttled,
    /// Came after its window had closed.
    Late,
    /// A program failed or said `abort`.
    ProgramError,
    /// The codec could not read it.
    Undecodable,
    /// Longer than `max_record_bytes`.
    TooLong,
    /// The outside refused it for good.
    Refused,
    /// A full buffer whose policy is to drop.
    BufferFull,
    /// A bound on state was reached.
    StateFull,
    /// It went to an output that nothing is connected to.
    Unconnected,
    /// It made the component fail, and is passed over.
    Poison,
    /// A record of Kafka that has no value: it says that there is nothing under its key any more.
    Tombstone,
}

impl Reason {
    pub const ALL: [Self; 15] = [
        Self::Filtered,
        Self::Aggregated,
        Self::Duplicate,
        Self::Sampled,
        Self::Throttled,
        Self::Late,
        Self::ProgramError,
        Self::Undecodable,
        Self::TooLong,
        Self::Refused,
        Self::BufferFull,
        Self::StateFull,
        Self::Unconnected,
        Self::Poison,
        Self::Tombstone,
    ];

    /// The word it is counted under in metrics and told in dead letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filtered => "filtered",
            Self::Aggregated => "aggregated",
            Self::Duplicate => "duplicate",
            Self::Sampled => "sampled",
            Self::Throttled => "throttled",
            Self::Late => "late",
            Self::ProgramError => "program_error",
            Self::Undecodable => "undecodable",
            Self::TooLong => "too_long",
            Self::Refused => "refused",
            Self::BufferFull => "buffer_full",
            Self::StateFull => "state_full",
            Self::Unconnected => "unconnected",
            Self::Poison => "poison",
            Self::Tombstone => "tombstone",
        }
    }
}

/// What an operator hands on: batches by port, and the records it did not hand on by reason.
///
/// The account must balance: what it received and made is what it hands on and drops. Each of the four is said where it
/// happens, none is computed from the others, so that a mistake shows.
#[derive(Debug, Default)]
pub struct Output {
    pub batches: Vec<(usize, Batch)>,
    pub dropped: Vec<(Reason, u64)>,
    /// Records that came to be here: see [`Self::make`].
    pub made: u64,
    /// Conditions and expressions that failed (missing field, wrong type) and so counted as false or as no value.
    pub expression_errors: u64,
}

impl Output {
    /// Hands a batch on at a port: 0 is the operator's own name, the others are its [`Ports`] in order. Empty ones are not
    /// passed on.
    pub fn emit(&mut self, port: usize, batch: Batch) {
        if !batch.is_empty() {
            self.batches.push((port, batch));
        }
    }

    /// Says that `count` of the records handed on were not received: windows, alerts, dead letters, and the copies of a
    /// record that leaves by more than one port.
    pub fn make(&mut self, count: usize) {
        self.made += count as u64;
    }

    /// Says that `count` records end here.
    pub fn drop(&mut self, reason: Reason, count: usize) {
        if count > 0 {
            self.dropped.push((reason, count as u64));
        }
    }
}

/// A dead letter: what became of a record that could not be used, in the shape that `NAME.rejected` offers.
pub fn dead_letter(component: &str, reason: &str, message: &str, batch: &Batch, row: u32) -> Value {
    let text = |text: &str| Value::from(text);
    let mut error = ObjectMap::new();
    error.insert("component".into(), text(component));
    error.insert("reason".into(), text(reason));
    error.insert("message".into(), text(message));
    let mut letter = ObjectMap::new();
    letter.insert("error".into(), Value::Object(error));
    letter.insert("source".into(), text(&batch.lane.source));
    letter.insert("coordinate".into(), batch.coordinate(row));
    let (key, raw) = raw_field(batch, row);
    letter.insert(key.into(), raw);
    Value::Object(letter)
}

/// The record as text under `raw`, or as base64 under `raw_base64` where it is not UTF-8.
pub fn raw_field(batch: &Batch, row: u32) -> (&'static str, Value) {
    let mut json = Vec::new();
    let raw = match batch.changed(row) {
        Some(value) => {
            crate::json::write_value(value, &mut json);
            &json[..]
        }
        None => batch.record(row),
    };
    raw_text(raw)
}

/// Bytes as text under `raw`, or as base64 under `raw_base64` where they are not UTF-8.
pub fn raw_text(raw: &[u8]) -> (&'static str, Value) {
    match std::str::from_utf8(raw) {
        Ok(raw) => ("raw", Value::from(raw)),
        Err(_) => ("raw_base64", Value::from(vrl_base64(raw))),
    }
}

/// Base64 with padding (RFC 4648 §4).
fn vrl_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The outputs of an operator: its own name is port 0, `NAME.<port>` the following ones in this order.
pub type Ports = Vec<String>;

/// A stateless operator: every batch by itself, on any thread.
pub trait Transform: Send + Sync {
    /// Turns one batch into batches. Rows keep their order within each output.
    fn apply(&self, batch: Batch, output: &mut Output);

    /// The fields it reads, so that the engine can decode them in the same pass as others.
    fn reads(&self) -> Projection {
        Projection::default()
    }

    /// Whether it lets only some of the records through: what stands after it is then decoded after it.
    fn is_selective(&self) -> bool {
        false
    }

    /// Literals of which one must stand in a record (in its raw bytes) for it to leave any output but a counter; `None` if
    /// nothing can be said.
    fn prefilter(&self) -> Option<Vec<Vec<u8>>> {
        None
    }

    /// What `tocsin explain` says of it, a line each.
    fn explain(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The key group of a key: the unit in which keyed state is saved and moved. A number of the format: never change it.
pub const KEY_GROUPS: u16 = 128;

/// The key group of an encoded key. blake3 rather than a seeded hash: the group is part of the checkpoint's format.
pub fn key_group(key: &[u8]) -> u16 {
    let hash = blake3::hash(key);
    u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]) % KEY_GROUPS
}

/// What an operator with state is handed.
pub enum Input {
    Batch(Batch),
    /// What its [`Prepare`] made of a batch.
    Prepared(Prepared),
}

/// The stateless part of an operator with state: runs on blocks in parallel, before order is restored, and keeps only what
/// the operator needs of them, so that not the records but a few columns or partial results cross to it.
pub trait Prepare: Send + Sync {
    fn prepare(&self, batch: Batch) -> Prepared;
}

/// See [`Prepare`]. What the watermark needs to know of the batch stays beside it.
pub struct Prepared {
    pub lane: Arc<Lane>,
    /// As in [`Batch`]: set when the order of blocks is restored.
    pub seen_before: Timestamp,
    /// The greatest event time in the block.
    pub seen_max: Timestamp,
    pub arrival: Timestamp,
    /// How many records it stands for.
    pub records: usize,
    /// About how much memory it holds.
    pub bytes: usize,
    pub content: Box<dyn Any + Send>,
}

impl Prepared {
    /// The watermark of a record of it, where `before` is the greatest event time of its block that stood before it.
    pub fn watermark(&self, before: Timestamp) -> Timestamp {
        let seen = before.max(self.seen_before);
        if seen == Timestamp::MIN { seen } else { seen.saturating_sub(self.lane.out_of_order) }
    }
}

/// State could not be read back.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub String);

/// A stateful operator. It is called by one thread at a time, with the batches of each lane in order.
pub trait Operator: Send {
    /// Takes a batch from one of its inputs (by number, in the order of `inputs`).
    fn on_input(&mut self, input: usize, batch: Input, output: &mut Output);

    /// No record earlier than `watermark` is expected on any input any more: time to close windows and to let timers
    /// fire, in the order of their deadlines. `Timestamp::MAX` when all input has ended.
    fn on_watermark(&mut self, watermark: Timestamp, output: &mut Output);

    /// The least watermark at which [`Self::on_watermark`] may hand something on if no input comes before: whoever moves the
    /// clock of idle sources stops there, so that timers are told at their very moment. `Timestamp::MAX`: not before all input
    /// has ended. `Timestamp::MIN`: it does not know; then it is asked each second.
    fn next_deadline(&self) -> Timestamp {
        Timestamp::MIN
    }

    /// Hands out the state that changed since the last call, by key group (all of it if `full`); an empty piece says that
    /// nothing is left of the group. Must be quick: it runs between two batches.
    fn snapshot(&mut self, full: bool, piece: &mut dyn FnMut(u16, Vec<u8>));

    /// Takes back one piece of a snapshot. Called before anything else.
    fn restore(&mut self, group: u16, piece: &[u8]) -> Result<(), StateError>;

    /// The version of the pieces it writes, and of those that [`Self::restore`] is handed.
    fn state_version(&self) -> u16 {
        1
    }

    /// The older versions of pieces that [`Self::migrate`] reads. State of any other version is lost.
    fn migrates_from(&self) -> &'static [u16] {
        &[]
    }

    /// Takes back one piece of a snapshot of an older version, one of [`Self::migrates_from`].
    fn migrate(&mut self, version: u16, _group: u16, _piece: &[u8]) -> Result<(), StateError> {
        Err(StateError(format!("state of version {version} is not read")))
    }

    /// About how much memory its state takes.
    fn state_bytes(&self) -> usize {
        0
    }

    /// Has a rule tell when an alert becomes pending too, whatever it is configured to: for tests that look at that.
    fn tell_pending(&mut self) {}

    /// What `tocsin explain` says of it, a line each.
    fn explain(&self) -> Vec<String> {
        Vec::new()
    }

    /// What [`view`](Self::view) tells about, so that those who ask find who can answer: `"notify"`, for instance.
    fn subject(&self) -> Option<&'static str> {
        None
    }

    /// How it stands, for those who ask while it runs or look at a checkpoint. What may be asked is the operator's own affair; one
    /// that has nothing to say gives null.
    fn view(&self, _question: &serde_json::Value) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// How many alerts are in each state, for `tocsin_alerts{rule,state}`; empty for operators that are no rule.
    fn alerts(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }

    /// Of a rule: within which time from a record's arrival whoever is to be told of it must be. `None`: nobody says.
    fn slo(&self) -> Option<Duration> {
        None
    }
}

/// What building an operator gives.
pub enum Built {
    Transform(Arc<dyn Transform>),
    Operator {
        operator: Box<dyn Operator>,
        prepare: Option<Arc<dyn Prepare>>,
        /// The fields it reads.
        reads: Projection,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(vrl_base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn reasons_are_told_apart() {
        let words: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(
            Reason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at),
            "counts stand in this order"
        );
    }
}
