//! How a batch is written to a buffer on disk: as a sink sees it, so that what the sink makes of it is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::stored::{StoredLane, head, split_head};
use super::value;
use crate::codec::Codec;
use crate::event::{Batch, Lane, Origin, Place, Span, Stored};
use crate::time::Timestamp;

/// The head of a record. What follows, for each record of the batch: its place (offset, length), the lengths of what a sink
/// reads and of what came in, its time if `is_timed`, its value if `has_values`. Then the bytes of all, a newline after each.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    source: String,
    lane: StoredLane,
    arrival: i64,
    records: usize,
    is_rewritten: bool,
    is_timed: bool,
    has_values: bool,
}

/// Writes the records that are in a batch.
pub(super) fn encode(batch: &Batch) -> Vec<u8> {
    let is_rewritten = batch.is_rewritten();
    let stored = Head {
        source: batch.lane.source.to_string(),
        lane: StoredLane::of(&batch.lane),
        arrival: batch.arrival.0,
        records: batch.len(),
        is_rewritten,
        is_timed: batch.times.is_some(),
        has_values: !batch.changed.is_empty(),
    };
    let mut bytes = head(&stored);
    let length = |text: &[u8]| u32::try_from(text.len()).expect("blocks are below 4 GiB").to_le_bytes();
    for row in batch.rows() {
        let place = batch.place(row);
        bytes.extend_from_slice(&place.offset.to_le_bytes());
        bytes.extend_from_slice(&place.length.to_le_bytes());
        bytes.extend_from_slice(&length(batch.record(row)));
        if is_rewritten {
            bytes.extend_from_slice(&length(batch.raw(row)));
        }
        if stored.is_timed {
            bytes.extend_from_slice(&batch.time(row).0.to_le_bytes());
        }
        if stored.has_values {
            value::write_some(batch.changed(row), &mut bytes);
        }
    }
    for row in batch.rows() {
        bytes.extend_from_slice(batch.record(row));
        bytes.push(b'\n');
    }
    if is_rewritten {
        for row in batch.rows() {
            bytes.extend_from_slice(batch.raw(row));
            bytes.push(b'\n');
        }
    }
    bytes
}

/// The codecs of the sources, by name; and the lane read last, as one often follows another of it.
#[derive(Debug)]
pub(crate) struct Lanes {
    codecs: BTreeMap<Arc<str>, Arc<dyn Codec>>,
    last: Option<(StoredLane, Arc<Lane>)>,
}

impl Lanes {
    pub(crate) fn new(codecs: BTreeMap<Arc<str>, Arc<dyn Codec>>) -> Self {
        Self { codecs, last: None }
    }

    fn lane(&mut self, source: &str, stored: StoredLane) -> Result<Arc<Lane>, String> {
        if let Some((known, lane)) = &self.last
            && *known == stored
            && *lane.source == *source
        {
            return Ok(Arc::clone(lane));
        }
        let made = stored.lane(source.into(), Arc::new(crate::json::JsonCodec::new()));
        let lane = match (&made.origin, self.codecs.get(source)) {
            (Origin::Operator | Origin::Keyed(_), _) => {
                Arc::new(Lane::of_operator(Arc::clone(&made.source), made.origin.clone()))
            }
            (_, Some(codec)) => stored.lane(Arc::clone(&made.source), Arc::clone(codec)),
            (_, None) => return Err(format!("it is of the source `{source}`, which is not configured any more")),
        };
        self.last = Some((stored, Arc::clone(&lane)));
        Ok(lane)
    }
}

/// Reads a batch back.
pub(super) fn decode(record: Vec<u8>, lanes: &mut Lanes) -> Result<Batch, String> {
    let (head, at) = split_head::<Head>(&record)?;
    let record = Bytes::from(record);
    let mut reader = value::Reader::new(&record[at..]);
    let cut = || "it is cut short".to_owned();
    let (mut places, mut times, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spans, mut raw_spans) = (Vec::new(), Vec::new());
    let (mut end, mut raw_end) = (0, 0);
    for _ in 0..head.records {
        let offset = reader.u64().ok_or_else(cut)?;
        places.push(Place { offset, length: reader.u32().ok_or_else(cut)? });
        end = push(&mut spans, end, reader.u32().ok_or_else(cut)?).ok_or_else(cut)?;
        if head.is_rewritten {
            raw_end = push(&mut raw_spans, raw_end, reader.u32().ok_or_else(cut)?).ok_or_else(cut)?;
        }
        if head.is_timed {
            times.push(Timestamp(reader.u64().ok_or_else(cut)?.cast_signed()));
        }
        if head.has_values {
            changed.push(reader.some_value().ok_or_else(cut)?);
        }
    }
    let start = record.len() - reader.rest();
    let middle = start + end as usize;
    let whole = middle + raw_end as usize;
    if record.len() != whole {
        return Err(cut());
    }
    let block = record.slice(start..middle);
    let (raw_block, raw_spans) = match head.is_rewritten {
        true => (record.slice(middle..whole), raw_spans),
        false => (block.clone(), spans.clone()),
    };
    // Where all are values there is no block, and whoever looks for one finds none.
    let block = if spans.iter().all(|span| span.len == 0) { Bytes::new() } else { block };
    Ok(Batch::of_stored(Stored {
        lane: lanes.lane(&head.source, head.lane)?,
        arrival: Timestamp(head.arrival),
        spans: if block.is_empty() { vec![Span::default(); head.records] } else { spans },
        block,
        raw_block,
        raw_spans,
        places,
        is_rewritten: head.is_rewritten,
        changed,
        times,
    }))
}

/// Adds the span of a record that is followed by a newline; gives the end of that.
fn push(spans: &mut Vec<Span>, start: u32, len: u32) -> Option<u32> {
    spans.push(Span { start, len });
    start.checked_add(len)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vrl::value::Value;

    use super::*;
    use crate::testing::{TextCodec, text_lane};

    fn lanes() -> Lanes {
        Lanes::new(BTreeMap::from([("in".into(), Arc::new(TextCodec) as Arc<dyn Codec>)]))
    }

    /// All that a sink can see of a record.
    fn seen(batch: &Batch) -> Vec<String> {
        batch
            .rows()
            .map(|row| {
                format!(
                    "{:?} {:?} {:?} {:?} {} {:?} {:?}",
                    batch.record(row),
                    batch.raw(row),
                    batch.changed(row),
                    batch.value(row),
                    batch.coordinate(row),
                    batch.time(row),
                    (batch.codec.name(), &batch.lane.source, &batch.lane.origin, batch.arrival, batch.offset(row)),
                )
            })
            .collect()
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Boolean),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>()
                .prop_filter_map("not a number", |float| Some(Value::Float(vrl::prelude::NotNan::new(float).ok()?))),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| Value::Bytes(bytes.into())),
            (-1_000_000_000i64..4_000_000_000, 0u32..1_999_999_999)
                .prop_filter_map("no such time", |(seconds, nanos)| {
                    chrono::DateTime::from_timestamp(seconds, nanos).map(Value::Timestamp)
                }),
            "[a-z]{0,5}".prop_map(|text| Value::Regex(Arc::new(regex::Regex::new(&text).unwrap()).into())),
            "[a-zé]{0,5}".prop_map(|text| Value::String(text.into())),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map("[a-z\"]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().map(|(key, value)| (key.into(), value)).collect())),
            ]
        })
    }

    fn origins() -> impl Strategy<Value = Origin> {
        prop_oneof![
            Just(Origin::Stream),
            Just(Origin::File("/var/log/a".into())),
            Just(Origin::Kafka { topic: "t".into(), partition: 3 }),
        ]
    }

    /// Records of a source: plain, filtered, partly or wholly rewritten, with and without times.
    fn batches() -> impl Strategy<Value = Batch> {
        let rows = prop::collection::vec((r"[a-z \r\t]{0,6}", any::<bool>(), prop::option::of(values())), 1..8);
        (rows, origins(), 0u8..4, any::<bool>(), any::<i64>()).prop_map(|(rows, origin, kind, is_timed, arrival)| {
            let text: String = rows.iter().map(|(text, ..)| format!("{text}\n")).collect();
            let mut spans = Vec::new();
            let mut start = 0;
            for (text, ..) in &rows {
                spans.push(Span::new(start, text.len()));
                start += text.len() + 1;
            }
            let lane = Arc::new(Lane {
                source: "in".into(),
                partition: "p".into(),
                origin,
                codec: Arc::new(TextCodec),
                out_of_order: std::time::Duration::from_millis(5),
            });
            let mut batch = Batch::new(lane, text.into(), 1000, spans, Timestamp(arrival));
            if is_timed {
                let at: Vec<_> = (0..rows.len() as i64).map(|row| Timestamp(row * 7 - 3)).collect();
                let before = vec![Timestamp::MIN; rows.len()];
                batch.times = Some(Arc::new(crate::event::Times { at, before, max: Timestamp(99) }));
            }
            if kind == 1 {
                for (row, (_, _, value)) in rows.iter().enumerate() {
                    if let Some(value) = value {
                        batch.replace(row as u32, value.clone());
                    }
                }
            }
            if kind >= 2 {
                let (mut json, mut spans) = (Vec::new(), Vec::new());
                for (text, ..) in &rows {
                    let start = json.len();
                    json.extend_from_slice(format!("{{\"length\":{}}}", text.len()).as_bytes());
                    spans.push(Span::new(start, json.len() - start));
                    json.push(b'\n');
                }
                let changed = match kind {
                    2 => Vec::new(),
                    _ => rows.iter().map(|(_, _, value)| value.clone()).collect(),
                };
                batch.rewrite(json.into(), spans, changed);
            }
            let kept: Vec<u32> = (0..rows.len() as u32).filter(|row| rows[*row as usize].1).collect();
            if kept.len() < rows.len() { batch.select(kept) } else { batch }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_batch_that_was_on_disk_looks_to_a_sink_as_it_did(batch in batches()) {
            let stored = encode(&batch);
            let back = decode(stored.clone(), &mut lanes()).unwrap();
            prop_assert_eq!(seen(&back), seen(&batch));
            // And again: it may be on its way to another sink that buffers.
            prop_assert_eq!(seen(&decode(encode(&back), &mut lanes()).unwrap()), seen(&batch));
            for length in 0..stored.len() {
                prop_assert!(decode(stored[..length].to_vec(), &mut lanes()).is_err());
            }
        }

        #[test]
        fn what_an_operator_made_comes_back_as_it_was(values in prop::collection::vec((any::<i64>(), values()), 1..6)) {
            let lane = Arc::new(Lane::of_operator("window".into(), Origin::Keyed(["host".to_owned()].as_slice().into())));
            let values = values.into_iter().map(|(time, value)| (Timestamp(time / 2), value)).collect();
            let batch = Batch::of_values(lane, values, Timestamp(5));
            let back = decode(encode(&batch), &mut lanes()).unwrap();
            prop_assert_eq!(seen(&back), seen(&batch));
        }
    }

    #[test]
    fn a_source_that_is_not_configured_any_more_is_told() {
        let batch = crate::testing::text_batch(&text_lane("gone"), "one");
        let told = decode(encode(&batch), &mut lanes()).unwrap_err();
        assert!(told.contains("the source `gone`"), "{told}");
    }
}
