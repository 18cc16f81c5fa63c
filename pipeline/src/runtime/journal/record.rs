//! How what a source tells is written to its journal.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::super::stored::{StoredLane, head, split_head};
use crate::codec::Codec;
use crate::event::{Lane, Span};
use crate::operator::Reason;
use crate::source::{Block, Framing, SourceEvent};
use crate::time::Timestamp;

/// The head of a record; the spans of a block (two `u32` each) and the bytes follow.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Head {
    Block {
        lane: StoredLane,
        base: u64,
        arrival: i64,
        position: Json,
        /// How many there are; `None`: the block is framed by lines.
        spans: Option<usize>,
    },
    Rejected {
        lane: StoredLane,
        offset: u64,
        reason: String,
        message: String,
        position: Json,
        arrival: i64,
    },
    Closed {
        lane: StoredLane,
        keep: Option<Json>,
    },
}

/// A record of the journal: what stands before the bytes, and the bytes.
pub(super) struct Record {
    pub head: Vec<u8>,
    pub bytes: Bytes,
}

impl Record {
    /// `None` for what is not kept: that a lane is idle or stalled is only true while the process lives.
    pub fn of(event: &SourceEvent, arrival: Timestamp) -> Option<Self> {
        let (stored, spans, bytes) = match event {
            SourceEvent::Block(lane, block) => {
                let spans = match &block.framing {
                    Framing::Lines => None,
                    Framing::Spans(spans) => Some(&spans[..]),
                };
                let stored = Head::Block {
                    lane: StoredLane::of(lane),
                    base: block.base,
                    arrival: block.arrival.0,
                    position: block.position.clone(),
                    spans: spans.map(<[Span]>::len),
                };
                (stored, spans.unwrap_or_default(), block.bytes.clone())
            }
            SourceEvent::Rejected { lane, offset, reason, message, raw, position } => {
                let stored = Head::Rejected {
                    lane: StoredLane::of(lane),
                    offset: *offset,
                    reason: reason.as_str().to_owned(),
                    message: message.clone(),
                    position: position.clone(),
                    arrival: arrival.0,
                };
                (stored, &[][..], raw.clone())
            }
            SourceEvent::Closed { lane, keep } => {
                (Head::Closed { lane: StoredLane::of(lane), keep: keep.clone() }, &[][..], Bytes::new())
            }
            // What can be opened or told at a position can be read again from there, and needs no journal.
            SourceEvent::Opened { .. }
            | SourceEvent::Watermark { .. }
            | SourceEvent::Idle(_)
            | SourceEvent::Stalled(_) => return None,
        };
        let mut head = head(&stored);
        head.reserve(spans.len() * 8);
        for span in spans {
            head.extend_from_slice(&span.start.to_le_bytes());
            head.extend_from_slice(&span.len.to_le_bytes());
        }
        Some(Self { head, bytes })
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.bytes.len()
    }
}

/// Reads a record back: what the source told, and when it came.
pub(super) fn read(
    record: Vec<u8>,
    source: &Arc<str>,
    codec: &Arc<dyn Codec>,
) -> Result<(SourceEvent, Timestamp), String> {
    let (head, mut at) = split_head::<Head>(&record)?;
    let lane = |lane: StoredLane| -> Arc<Lane> { lane.lane(Arc::clone(source), Arc::clone(codec)) };
    Ok(match head {
        Head::Block { lane: stored, base, arrival, position, spans } => {
            let framing = match spans {
                None => Framing::Lines,
                Some(count) => {
                    let end = count.checked_mul(8).and_then(|length| at.checked_add(length));
                    let written = end.and_then(|end| record.get(at..end)).ok_or("it is cut short")?;
                    at += written.len();
                    let number =
                        |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("chunks of eight are two fours"));
                    let spans = written.chunks_exact(8);
                    Framing::Spans(
                        spans.map(|span| Span { start: number(&span[..4]), len: number(&span[4..]) }).collect(),
                    )
                }
            };
            let bytes = Bytes::from(record).slice(at..);
            if let Framing::Spans(spans) = &framing
                && spans.iter().any(|span| span.end() > bytes.len())
            {
                return Err("a record of its block reaches beyond it".to_owned());
            }
            let arrival = Timestamp(arrival);
            let block = Block { bytes, framing, base, position, arrival, acknowledgement: None, notes: None };
            (SourceEvent::Block(lane(stored), block), arrival)
        }
        Head::Rejected { lane: stored, offset, reason, message, position, arrival } => {
            let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason);
            let reason = reason.ok_or("its reason is not known to this version")?;
            let raw = Bytes::from(record).slice(at..);
            let event = SourceEvent::Rejected { lane: lane(stored), offset, reason, message, raw, position };
            (event, Timestamp(arrival))
        }
        Head::Closed { lane: stored, keep } => (SourceEvent::Closed { lane: lane(stored), keep }, Timestamp::MIN),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TextCodec, text_lane};

    #[test]
    fn what_a_source_told_is_read_back_as_it_was() {
        let lane = text_lane("in");
        let block = |framing| Block {
            bytes: Bytes::from_static(b"one\ntwo\n"),
            framing,
            base: 7,
            position: serde_json::json!({ "offset": 15 }),
            arrival: Timestamp(12),
            acknowledgement: None,
            notes: None,
        };
        let events = [
            SourceEvent::Block(Arc::clone(&lane), block(Framing::Lines)),
            SourceEvent::Block(Arc::clone(&lane), block(Framing::Spans(vec![Span::new(0, 3), Span::new(4, 3)]))),
            SourceEvent::Rejected {
                lane: Arc::clone(&lane),
                offset: 9,
                reason: Reason::TooLong,
                message: "longer".into(),
                raw: Bytes::from_static(b"\xff\0"),
                position: serde_json::json!({ "offset": 14 }),
            },
            SourceEvent::Closed { lane: Arc::clone(&lane), keep: None },
            SourceEvent::Closed { lane, keep: Some(Json::from(3)) },
        ];
        let codec: Arc<dyn Codec> = Arc::new(TextCodec);
        for event in events {
            let record = Record::of(&event, Timestamp(12)).unwrap();
            let whole = [&record.head[..], &record.bytes].concat();
            let (back, arrival) = read(whole.clone(), &"in".into(), &codec).unwrap();
            assert_eq!(format!("{back:?}"), format!("{event:?}"));
            assert!(matches!(back, SourceEvent::Closed { .. }) || arrival == Timestamp(12));
            for length in 0..record.head.len() {
                assert!(read(whole[..length].to_vec(), &"in".into(), &codec).is_err(), "length {length}");
            }
        }
    }
}
