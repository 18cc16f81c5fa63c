//! Old records, taken in as if each came when it happened: a block is decoded and cut where event time passes from one
//! second into the next, so that whoever replays several lanes can merge them, and so that how blocks are cut does not show.
//! Pure, and for any block on any thread: only records without a time of their own look at the block before.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::DecodeError;
use crate::event::{Batch, Lane, Origin, Times};
use crate::graph::Intake;
use crate::intake::{Taken, lines};
use crate::source::{Block, Framing, RecordOptions};
use crate::time::Timestamp;

/// How finely old records are merged and time moves, in nanoseconds.
const CELL: i64 = 1_000_000_000;

/// The second that a moment is in.
pub fn cell(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_euclid(CELL).saturating_mul(CELL))
}

/// What a log gives, in its order.
#[derive(Debug)]
pub enum Piece {
    Block(Box<Block>),
    /// A record that was too long.
    Rejected {
        offset: u64,
        message: String,
        head: Bytes,
    },
}

/// A log that is read once from its beginning to its end.
pub trait Log: Send {
    /// The next pieces; none at the end.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self) -> std::io::Result<Vec<Piece>>;
}

/// What somebody else keeps of what a source has read.
pub trait Kept: Send {
    /// A log for each lane, from a moment on and up to now.
    ///
    /// # Errors
    /// When nobody answers, or there is no such thing.
    fn logs(&self, from: Option<Timestamp>, records: &RecordOptions) -> Result<Vec<KeptLog>, String>;
}

/// One of [`Kept::logs`].
pub struct KeptLog {
    pub partition: String,
    pub origin: Origin,
    /// Begins to read it, so many bytes at a time. May be asked for more than once.
    pub open: Box<dyn Fn(usize) -> std::io::Result<Box<dyn Log>> + Send>,
}

/// A block whose records are decoded.
pub struct Decoded {
    intake: Arc<Intake>,
    batch: Batch,
    rejected: Vec<(u32, DecodeError)>,
    /// What was counted of records that the codec failed on.
    failed: Taken,
    /// By row: the time of the record, or `None` where it has none of its own.
    times: Vec<Option<Timestamp>>,
}

impl Decoded {
    /// Decodes a block. Its arrival is about when the last of its records were written: what a time without a year goes by.
    pub fn of(intake: &Arc<Intake>, lane: Arc<Lane>, block: Block) -> Self {
        let spans = match block.framing {
            Framing::Lines => lines(&block.bytes),
            Framing::Spans(spans) => spans,
        };
        let mut failed = Taken::of(intake, Arc::clone(&lane));
        let records = spans.len();
        let mut whole = Batch::new(lane, block.bytes, block.base, spans, block.arrival);
        whole.notes = block.notes.map(Arc::new);
        let (mut batch, rejected) = intake.read_guarded(&whole, &mut failed);
        failed.own.receive(records - batch.spans.len(), 0);
        // Records that the codec refuses have none, and of the others those that count as of their arrival.
        let mut times = vec![None; batch.spans.len()];
        if let Some(found) = batch.times.take() {
            for row in batch.rows() {
                let at = found.at[row as usize];
                times[row as usize] = (batch.notes.is_some() || at != block.arrival).then_some(at);
            }
        }
        Self { intake: Arc::clone(intake), batch, rejected, failed, times }
    }

    /// The time of its first record that has one.
    pub fn first(&self) -> Option<Timestamp> {
        self.times.iter().copied().flatten().next()
    }

    /// The time of its last record that has one: what those that have none go by in the block behind it.
    pub fn last(&self) -> Option<Timestamp> {
        self.times.iter().rev().copied().flatten().next()
    }

    /// Whether its first records have no time, so that [`Self::into_slices`] must be told that of the last one before it.
    pub fn is_open(&self) -> bool {
        self.times.first().is_some_and(Option::is_none)
    }

    /// Runs the records through the fused operators: a piece for each second that the greatest time seen comes to, in the order
    /// of the lane. A record without a time counts as one of the moment of the last before it that has one.
    pub fn into_slices(self, before: Timestamp) -> Vec<Taken> {
        let Self { intake, batch, rejected, failed, times } = self;
        let mut slices = Vec::new();
        if failed.own.received > 0 {
            slices.push(failed);
        }
        let (mut last, mut start) = (before, 0);
        let mut part = Times { max: Timestamp::MIN, ..Times::default() };
        let mut rejected = rejected.into_iter().peekable();
        let mut close = |rows: std::ops::Range<usize>, part: Times| {
            let (first, end) = (rows.start as u32, rows.end as u32);
            let mut refused = Vec::new();
            while let Some((row, error)) = rejected.next_if(|(row, _)| *row < end) {
                refused.push((row - first, error));
            }
            let mut taken = Taken::of(&intake, Arc::clone(&batch.lane));
            let bytes = batch.spans[rows.clone()].iter().map(|span| span.len as usize + 1).sum();
            taken.own.receive(rows.len(), bytes);
            taken.seen_max = part.max;
            let arrival = part.max;
            intake.pass(batch.cut(rows, part, arrival), &refused, &mut taken);
            slices.push(taken);
        };
        for (row, time) in times.into_iter().enumerate() {
            let time = time.unwrap_or(last);
            last = time;
            if row > start && cell(time) > cell(part.max) {
                let whole = std::mem::replace(&mut part, Times { max: Timestamp::MIN, ..Times::default() });
                close(start..row, whole);
                start = row;
            }
            part.at.push(time);
            part.before.push(part.max);
            part.max = part.max.max(time);
        }
        if !part.at.is_empty() {
            close(start..start + part.at.len(), part);
        }
        slices
    }
}
