//! From a block as a source read it to batches on their way: framing, pre-filter, decoding, event times, fused operators.
//! Pure, and for any block on any thread.

use std::sync::Arc;

use vrl::value::Value;

use crate::chain::Passage;
use crate::codec::{DecodeError, FieldPath};
use crate::event::{Batch, Lane, Selection, Span, Times};
use crate::fault;
use crate::graph::{Intake, Link, OnDecodeError};
use crate::operator::{Reason, dead_letter};
use crate::poison;
use crate::source::{Block, Framing};
use crate::tally::{Book, Counts};
use crate::time::Timestamp;
use crate::timestamp::TimestampOptions;

/// The port of dead letters in a source's counts.
const REJECTED: usize = 1;

/// What became of a block.
pub struct Taken {
    pub lane: Arc<Lane>,
    pub passage: Passage,
    /// What was counted of the source itself.
    pub own: Counts,
    /// The greatest event time in the block; `Timestamp::MIN` where times are not asked for.
    pub seen_max: Timestamp,
    /// What the lane had shown before each record came with it ([`Notes::before`](crate::event::Notes::before)): then what the
    /// lane has shown is told by [`SourceEvent::Watermark`](crate::source::SourceEvent::Watermark) alone.
    pub is_told: bool,
}

impl Taken {
    pub(crate) fn of(intake: &Intake, lane: Arc<Lane>) -> Self {
        Self {
            lane,
            passage: Passage::of(&intake.chain),
            own: Counts::default(),
            seen_max: Timestamp::MIN,
            is_told: false,
        }
    }

    /// Puts what was counted into the book of the source's task; done when the block's turn has come.
    pub fn settle(&self, book: &mut Book) {
        book.add(std::iter::once(&self.own).chain(&self.passage.counts));
    }
}

impl Intake {
    /// Takes a block in and runs its records through the fused operators.
    pub fn take(&self, lane: Arc<Lane>, block: Block) -> Taken {
        let mut taken = Taken::of(self, Arc::clone(&lane));
        let bytes = block.bytes.len();
        let (records, spans) = match (&block.framing, &self.prefilter) {
            (Framing::Lines, Some(prefilter)) => {
                let mut spans = Vec::new();
                prefilter.candidates(&block.bytes, &mut spans);
                (count_lines(&block.bytes), spans)
            }
            (Framing::Lines, None) => {
                let spans = lines(&block.bytes);
                (spans.len(), spans)
            }
            (Framing::Spans(spans), _) => (spans.len(), spans.clone()),
        };
        taken.own.receive(records, bytes);
        if records > spans.len() {
            self.skipped(records - spans.len(), &mut taken);
        }
        let mut whole = Batch::new(lane, block.bytes, block.base, spans, block.arrival);
        taken.is_told = block.notes.as_ref().is_some_and(|notes| !notes.before.is_empty());
        whole.notes = block.notes.map(Arc::new);
        let (batch, rejected) = self.read_guarded(&whole, &mut taken);
        if self.needs_time {
            taken.seen_max = batch.times.as_ref().map_or(Timestamp::MIN, |times| times.max);
        }
        self.pass(batch, &rejected, &mut taken);
        taken
    }

    /// As [`Self::read`], less the records that the codec fails on.
    pub(crate) fn read_guarded(&self, whole: &Batch, taken: &mut Taken) -> (Batch, Vec<(u32, DecodeError)>) {
        let held = poison::held(&self.name, whole);
        match self.chain.guard.catch(held, || self.read(whole.clone())) {
            Ok(read) => read,
            Err(_) => {
                let sound = self.without_culprits(whole, taken);
                self.read(sound)
            }
        }
    }

    /// Hands on what was read: the records that the codec refuses as dead letters.
    pub(crate) fn pass(&self, batch: Batch, rejected: &[(u32, DecodeError)], taken: &mut Taken) {
        if !rejected.is_empty() {
            self.reject(&batch, rejected, taken);
        }
        if !batch.is_empty() {
            taken.own.leave(0, &batch, !self.entry.is_empty());
            self.chain.run(&self.entry, batch, &mut taken.passage);
        }
    }

    /// Decodes records and finds their times; gives those that the codec refuses.
    fn read(&self, mut batch: Batch) -> (Batch, Vec<(u32, DecodeError)>) {
        fault::strike(&self.name, &batch);
        let rejected = self.decode(&mut batch);
        if self.needs_time {
            batch.times = Some(Arc::new(times(&batch, self.options.timestamp.as_ref())));
        }
        (batch, rejected)
    }

    /// The records of a block less those that the codec fails on, which become dead letters.
    fn without_culprits(&self, whole: &Batch, taken: &mut Taken) -> Batch {
        let of_spans = |spans: Vec<Span>| {
            let lane = Arc::clone(&whole.lane);
            Batch {
                notes: whole.notes.clone(),
                ..Batch::new(lane, whole.block.clone(), whole.base, spans, whole.arrival)
            }
        };
        let alone = |row: u32| of_spans(vec![whole.spans[row as usize]]);
        let mut sound = Vec::new();
        for row in whole.rows() {
            match poison::catch(|| drop(self.read(alone(row)))) {
                Ok(()) => sound.push(whole.spans[row as usize]),
                Err(why) => {
                    let letter = dead_letter(&self.name, Reason::Poison.as_str(), &why, whole, row);
                    tracing::error!(source = %self.name, why, %letter, "the codec failed on a record; it is passed over");
                    taken.own.drop(Reason::Poison, 1);
                    if !self.rejected.is_empty() {
                        self.tell(vec![(whole.arrival, letter)], whole, taken);
                    }
                }
            }
        }
        of_spans(sound)
    }

    /// Counts records that the pre-filter passed over where the filter would have counted them.
    fn skipped(&self, records: usize, taken: &mut Taken) {
        taken.own.hand_on(0, records);
        if let Some(Link::Node { node, .. }) = self.entry.first() {
            let counts = &mut taken.passage.counts[*node];
            counts.receive(records, 0);
            counts.drop(Reason::Filtered, records);
        }
    }

    /// A dead letter for a record that the source itself had to refuse.
    pub fn refuse(
        &self,
        lane: Arc<Lane>,
        offset: u64,
        reason: Reason,
        message: &str,
        raw: bytes::Bytes,
        arrival: Timestamp,
    ) -> Taken {
        let span = Span::new(0, raw.len());
        let mut taken = Taken::of(self, Arc::clone(&lane));
        taken.own.receive(1, raw.len());
        taken.own.drop(reason, 1);
        if !self.rejected.is_empty() {
            let batch = Batch::new(lane, raw, offset, vec![span], arrival);
            let letter = dead_letter(&self.name, reason.as_str(), message, &batch, 0);
            self.tell(vec![(arrival, letter)], &batch, &mut taken);
        }
        taken
    }

    /// Checks the records and decodes what is read first; deselects those that the codec refuses.
    fn decode(&self, batch: &mut Batch) -> Vec<(u32, DecodeError)> {
        let codec = &*self.options.codec;
        let mut rejected = Vec::new();
        if self.decode.is_empty() && codec.accepts_all() {
            return rejected;
        }
        let mut columns = crate::codec::Columns::default();
        let rows = 0..batch.spans.len() as u32;
        columns.decode_rows(codec, &batch.block, &batch.spans, &mut rows.into_iter(), &self.decode, &mut rejected);
        batch.columns = Arc::new(columns);
        if !rejected.is_empty() {
            let mut refused = rejected.iter().map(|(row, _)| *row).peekable();
            let rows = (0..batch.spans.len() as u32).filter(|row| refused.next_if_eq(row).is_none());
            batch.selection = Selection::Rows(rows.collect());
        }
        rejected
    }

    fn reject(&self, batch: &Batch, rejected: &[(u32, DecodeError)], taken: &mut Taken) {
        taken.own.drop(Reason::Undecodable, rejected.len());
        if self.rejected.is_empty() || self.options.on_decode_error == OnDecodeError::Drop {
            return;
        }
        let letters = rejected
            .iter()
            .map(|(row, error)| (batch.arrival, dead_letter(&self.name, error.reason, &error.message, batch, *row)))
            .collect();
        self.tell(letters, batch, taken);
    }

    /// Hands dead letters of records of `batch` to those who take them.
    fn tell(&self, letters: Vec<(Timestamp, Value)>, batch: &Batch, taken: &mut Taken) {
        taken.own.made += letters.len() as u64;
        let letters = Batch::of_values(Arc::clone(&batch.lane), letters, batch.arrival);
        taken.own.hand_on(REJECTED, letters.len());
        self.chain.run(&self.rejected, letters, &mut taken.passage);
    }
}

/// The event times of a block's records: where its source told what came before each, those it told, else those that stand in them.
fn times(batch: &Batch, timestamp: Option<&(TimestampOptions, FieldPath)>) -> Times {
    let mut times = Times {
        at: vec![batch.arrival; batch.spans.len()],
        before: vec![Timestamp::MIN; batch.spans.len()],
        max: Timestamp::MIN,
    };
    let mut parser = timestamp.map(|(options, path)| (options.parser(), path));
    for row in batch.rows() {
        let own = batch.own_time(row);
        let told = batch.told_before(row);
        let at = match &mut parser {
            Some((parser, path)) if told.is_none() => {
                let field = batch.columns.field(&batch.block, row, path);
                parser.event_time(field, own).unwrap_or(own)
            }
            _ => own,
        };
        times.at[row as usize] = at;
        times.before[row as usize] = told.unwrap_or(times.max);
        times.max = times.max.max(at);
    }
    times
}

/// The lines of a block, without their ends; empty ones are no records.
pub fn lines(block: &[u8]) -> Vec<Span> {
    // About one line per 128 bytes: growing once or twice is cheaper than counting first.
    let mut spans = Vec::with_capacity(block.len() / 128 + 1);
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', block) {
        push_line(block, start, end, &mut spans);
        start = end + 1;
    }
    push_line(block, start, block.len(), &mut spans);
    spans
}

/// Adds the line `start..end` if it is one.
pub fn push_line(block: &[u8], start: usize, end: usize, spans: &mut Vec<Span>) {
    let end = if end > start && block[end - 1] == b'\r' { end - 1 } else { end };
    if end > start {
        spans.push(Span { start: start as u32, len: (end - start) as u32 });
    }
}

/// How many records [`lines`] would find.
fn count_lines(block: &[u8]) -> usize {
    let (mut count, mut start) = (0, 0);
    for end in memchr::memchr_iter(b'\n', block).chain([block.len()]) {
        let is_empty = end == start || (end == start + 1 && block[start] == b'\r');
        count += usize::from(!is_empty);
        start = end + 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{Notes, Origin};
    use crate::testing::{text_batch, text_lane};

    #[test]
    fn a_record_comes_behind_what_its_writer_told_whatever_came_before_it_here() {
        let lane = Lane { out_of_order: Duration::from_nanos(10), ..Lane::of_operator("relay".into(), Origin::Stream) };
        let lane = Arc::new(lane);
        let notes = |before: &[i64]| Notes {
            starts: vec![0, 2, 4],
            times: [100, 50, 70].map(Timestamp).into(),
            before: before.iter().copied().map(Timestamp).collect(),
            ..Notes::default()
        };
        let watermarks = |notes: Notes| {
            let mut batch = Batch {
                lane: Arc::clone(&lane),
                notes: Some(Arc::new(notes)),
                ..text_batch(&text_lane("relay"), "a\nb\nc\n")
            };
            let times = times(&batch, None);
            assert_eq!(
                (&times.at[..], times.max),
                (&[Timestamp(100), Timestamp(50), Timestamp(70)][..], Timestamp(100))
            );
            batch.times = Some(Arc::new(times));
            [0, 1, 2].map(|row| batch.watermark_before(row))
        };
        assert_eq!(watermarks(notes(&[])), [Timestamp::MIN, Timestamp(90), Timestamp(90)]);
        // Another lane wrote between them; neither is later for that than it was.
        assert_eq!(watermarks(notes(&[i64::MIN, 40, 60])), [Timestamp::MIN, Timestamp(30), Timestamp(50)]);
    }

    #[test]
    fn lines_are_counted_as_they_are_split() {
        for block in ["", "\n", "a", "a\n", "a\r\n\r\n\nb", "\r", "\n\na\n"] {
            assert_eq!(count_lines(block.as_bytes()), lines(block.as_bytes()).len(), "{block:?}");
        }
        let block = b"one\r\n\ntwo";
        let found: Vec<_> = lines(block).iter().map(|span| span.of(block)).collect();
        assert_eq!(found, [&b"one"[..], b"two"]);
    }
}
