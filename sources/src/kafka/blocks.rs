//! Messages put together to blocks: the values one after the other, and beside them what else a message has.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use serde_json::Value as Json;
use tocsin_kafka::stamp::{self, Stamp};
use tocsin_pipeline::event::{Headers, Notes, Span};
use tocsin_pipeline::source::{Block, Framing};
use tocsin_pipeline::time::Timestamp;

/// The records of a lane that have not been handed over yet.
#[derive(Debug)]
pub(super) struct Gathering {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    notes: Notes,
    /// Every record is one line: then lines can be looked for in the block as a whole.
    is_lines: bool,
}

impl Default for Gathering {
    fn default() -> Self {
        Self { bytes: Vec::new(), spans: Vec::new(), notes: Notes::default(), is_lines: true }
    }
}

/// A message that has a value.
pub(super) struct Piece<'a> {
    pub offset: i64,
    pub value: &'a [u8],
    pub key: Option<&'a [u8]>,
    pub time: Timestamp,
    /// What its lane had shown before it, where that is told: of all that is gathered together, or of none.
    pub before: Option<Timestamp>,
    pub headers: Headers,
}

impl Gathering {
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len() + self.notes.texts.len()
    }

    pub fn push(&mut self, piece: Piece<'_>) {
        let Piece { offset, value, key, time, before, headers } = piece;
        self.is_lines &= !value.is_empty() && value.last() != Some(&b'\r') && memchr::memchr(b'\n', value).is_none();
        let span = Span::new(self.bytes.len(), value.len());
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
        let notes = &mut self.notes;
        notes.starts.push(span.start);
        notes.offsets.push(offset.unsigned_abs());
        notes.times.push(time);
        notes.before.extend(before);
        notes.keys.push(key.map(|key| {
            let span = Span::new(notes.texts.len(), key.len());
            notes.texts.extend_from_slice(key);
            span
        }));
        if !headers.is_empty() && notes.headers.is_empty() {
            notes.headers.resize(self.spans.len(), Headers::new());
        }
        if !headers.is_empty() || !notes.headers.is_empty() {
            notes.headers.push(headers);
        }
        self.spans.push(span);
    }

    /// What was gathered, as a block; begins anew.
    pub fn take(&mut self, position: Json, arrival: Timestamp) -> Block {
        // The next will be about as large.
        let next = Self { bytes: Vec::with_capacity(self.bytes.len()), ..Self::default() };
        let Self { bytes, spans, notes, is_lines } = std::mem::replace(self, next);
        let base = notes.offsets.first().copied().unwrap_or(0);
        let framing = if is_lines { Framing::Lines } else { Framing::Spans(spans) };
        Block { bytes: Bytes::from(bytes), framing, base, position, arrival, acknowledgement: None, notes: Some(notes) }
    }
}

/// The time that Kafka keeps of a message; `now` where it keeps none.
pub(super) fn time(message: &BorrowedMessage<'_>, now: impl FnOnce() -> Timestamp) -> Timestamp {
    message.timestamp().to_millis().filter(|millis| *millis >= 0).map_or_else(now, Timestamp::from_millis)
}

pub(super) fn headers(message: &BorrowedMessage<'_>) -> Headers {
    let Some(headers) = message.headers() else { return Headers::new() };
    headers.iter().map(|header| (header.key.to_owned(), header.value.map(Bytes::copy_from_slice))).collect()
}

/// What a message in the topic of a relay says.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn stamp(message: &BorrowedMessage<'_>) -> Result<Stamp, String> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let found = headers.filter(|header| header.key == stamp::HEADER).find_map(|header| header.value);
    Stamp::read(found.ok_or("is not there")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(values: &[&str]) -> Block {
        let mut gathering = Gathering::default();
        for (at, value) in values.iter().enumerate() {
            gathering.push(Piece {
                offset: 10 + 2 * at as i64,
                value: value.as_bytes(),
                key: (at % 2 == 1).then_some(b"key"),
                time: Timestamp(at as i64),
                before: None,
                headers: if at == 2 { vec![("name".to_owned(), None)] } else { Headers::new() },
            });
        }
        gathering.take(Json::Null, Timestamp(0))
    }

    #[test]
    fn a_block_of_lines_says_so_and_no_other_does() {
        assert!(matches!(gather(&["one", "two"]).framing, Framing::Lines));
        for value in ["", "a\nb", "a\r"] {
            let Framing::Spans(spans) = gather(&["one", value]).framing else { panic!("{value:?} is no line") };
            assert_eq!(spans[1], Span::new(4, value.len()));
        }
    }

    #[test]
    fn every_record_has_its_notes() {
        let block = gather(&["one", "two", "three", "four"]);
        let notes = block.notes.unwrap();
        assert_eq!(
            (block.base, &notes.offsets[..], &notes.starts[..]),
            (10, &[10, 12, 14, 16][..], &[0, 4, 8, 14][..])
        );
        assert_eq!(notes.keys.iter().filter(|key| key.is_some_and(|key| key.of(&notes.texts) == b"key")).count(), 2);
        assert_eq!(notes.headers.len(), 4, "of each from the first that has any on");
        assert_eq!(notes.headers.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 1, 0]);
    }
}
