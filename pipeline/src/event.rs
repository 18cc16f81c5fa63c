//! What flows: batches of raw records, their boundaries, and the fields decoded so far.
//!
//! A batch is a shared block of bytes as a source read them. Records are spans of it; a filter only narrows the selection; a
//! field is decoded when an operator first asks for it, once, for the selected records; a record is turned into a
//! [`Value`] only when an operator changes it. What nobody changed is written out as the bytes it came in.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use vrl::value::{KeyString, ObjectMap, Value};

use crate::codec::{Codec, Columns, FieldPath, Projection};
use crate::time::Timestamp;

/// A piece of a block: `len` bytes from `start`. Blocks are below 4 GiB by construction (see `source::Block`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    pub start: u32,
    pub len: u32,
}

impl Span {
    /// # Panics
    /// When the piece does not lie below 4 GiB.
    pub fn new(start: usize, len: usize) -> Self {
        Self {
            start: u32::try_from(start).expect("blocks are below 4 GiB"),
            len: u32::try_from(len).expect("blocks are below 4 GiB"),
        }
    }

    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.start as usize + self.len as usize]
    }

    pub fn end(self) -> usize {
        self.start as usize + self.len as usize
    }
}

/// One decoded field of one record, as compact as it can be kept (16 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Cell {
    /// The record has no such field.
    #[default]
    Missing,
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    /// Text as it stands in the block.
    Text(Span),
    /// Text that had to be unescaped: a piece of the columns' arena.
    Owned(Span),
    /// An array or object: its JSON text in the block.
    Json(Span),
    /// An array or object that has no JSON text in the block: its JSON text in the columns' arena.
    OwnedJson(Span),
    Time(Timestamp),
}

/// A field of a record as an expression sees it.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Missing,
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    /// Bytes that need not be UTF-8.
    Text(&'a [u8]),
    Time(Timestamp),
    /// The JSON text of an array or object that was not decoded further.
    Json(&'a [u8]),
    /// An array, object or regex of a record that an operator changed.
    Value(&'a Value),
}

impl<'a> Field<'a> {
    /// The field as a value of its own; `Missing` becomes `None`.
    pub fn to_value(self) -> Option<Value> {
        Some(match self {
            Self::Missing => return None,
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Boolean(value),
            Self::Integer(value) => Value::Integer(value),
            Self::Float(value) => vrl::prelude::NotNan::new(value).map_or(Value::Null, Value::Float),
            Self::Text(text) => Value::Bytes(Bytes::copy_from_slice(text)),
            Self::Time(time) => Value::Timestamp(time.to_datetime()),
            Self::Json(text) => crate::json::parse_value(text).unwrap_or(Value::Null),
            Self::Value(value) => value.clone(),
        })
    }

    pub fn of_value(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Boolean(value) => Self::Bool(*value),
            Value::Integer(value) => Self::Integer(*value),
            Value::Float(value) => Self::Float(value.into_inner()),
            Value::Bytes(text) => Self::Text(text),
            Value::String(text) => Self::Text(text.as_bytes()),
            Value::Timestamp(time) => Self::Time(Timestamp::from_datetime(time)),
            Value::Object(_) | Value::Array(_) | Value::Regex(_) => Self::Value(value),
        }
    }

    /// The field as a number; text is not one.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    /// The field as text for keys, labels and templates; arrays and objects as JSON, null and missing as `None`.
    pub fn to_text(self) -> Option<Cow<'a, [u8]>> {
        Some(match self {
            Self::Missing | Self::Null => return None,
            Self::Bool(value) => Cow::Borrowed(if value { b"true" as &[u8] } else { b"false" }),
            Self::Integer(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Float(value) => Cow::Owned(crate::json::float_text(value).into_bytes()),
            Self::Text(text) | Self::Json(text) => Cow::Borrowed(text),
            Self::Time(time) => Cow::Owned(time.to_string().into_bytes()),
            Self::Value(value) => {
                let mut text = Vec::new();
                crate::json::write_value(value, &mut text);
                Cow::Owned(text)
            }
        })
    }
}

/// A source partition: an ordered stream with positions of its own. Shared by all batches of it.
#[derive(Debug)]
pub struct Lane {
    /// The name of the source in the configuration; of the operator where an operator made the records.
    pub source: Arc<str>,
    /// What tells this partition from the others of the source: a file's identity, a Kafka partition, empty if there is one.
    pub partition: String,
    /// How its coordinates are told.
    pub origin: Origin,
    pub codec: Arc<dyn Codec>,
    /// How far behind the newest event time seen a record may be before it counts as late against the watermark.
    pub out_of_order: std::time::Duration,
}

impl Lane {
    /// The lane of the records that the operator `name` makes: [`Origin::Operator`] or [`Origin::Keyed`].
    pub fn of_operator(name: Arc<str>, origin: Origin) -> Self {
        let out_of_order = std::time::Duration::ZERO;
        Self { source: name, partition: String::new(), origin, codec: Arc::new(Made), out_of_order }
    }
}

/// The codec of records that have no bytes to decode.
#[derive(Debug)]
struct Made;

impl Codec for Made {
    fn name(&self) -> &'static str {
        "made"
    }

    fn decode(&self, _: &[u8], _: &mut crate::codec::Row<'_>) -> Result<(), crate::codec::DecodeError> {
        Ok(())
    }

    fn value(&self, _: &[u8]) -> Result<Value, crate::codec::DecodeError> {
        Ok(Value::Object(ObjectMap::new()))
    }

    fn accepts_all(&self) -> bool {
        true
    }
}

/// How the coordinate of a record is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `{"file": …, "offset": n, "length": n}`
    File(Arc<str>),
    /// `{"offset": n, "length": n}`: bytes since the connection or the process began.
    Stream,
    /// `{"topic": …, "partition": n, "offset": n}`
    Kafka { topic: Arc<str>, partition: i32 },
    /// Made by an operator.
    Operator,
    /// Made by an operator that gives one record per key and turn, as windows do: what becomes of a key stands in the
    /// record itself, so that `alert` lets each of them decide and tells them apart by the fields named here: the names
    /// under which the records hold the key (the last segment of each `group_by` path; none where there is no key).
    Keyed(Arc<[String]>),
}

/// Which records of a batch are still in it.
#[derive(Clone, Debug, Default)]
pub enum Selection {
    #[default]
    All,
    /// Rows in rising order.
    Rows(Arc<[u32]>),
}

/// The event times of a batch's records and what had been seen before each of them.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Event time by row.
    pub at: Vec<Timestamp>,
    /// The greatest event time of the records of this block that stood before the row, filtered out or not;
    /// `Timestamp::MIN` for the first.
    pub before: Vec<Timestamp>,
    /// The greatest event time of all records of the block, filtered out or not.
    pub max: Timestamp,
}

/// The block of a batch as its source read it, and where the records stood in it.
#[derive(Debug)]
pub struct Original {
    block: Bytes,
    spans: Arc<Vec<Span>>,
    /// The places of the records in their lane, where the spans do not tell them: in batches read back from a buffer.
    places: Vec<Place>,
}

/// Where a record stood in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The position of its first byte; for Kafka, its offset.
    pub offset: u64,
    pub length: u32,
}

/// What a batch is put together from when it is read back from a buffer.
#[derive(Debug)]
pub(crate) struct Stored {
    pub lane: Arc<Lane>,
    pub arrival: Timestamp,
    /// The records as a sink reads them, and as they came in.
    pub block: Bytes,
    pub spans: Vec<Span>,
    pub raw_block: Bytes,
    pub raw_spans: Vec<Span>,
    pub places: Vec<Place>,
    /// An operator wrote them anew, as JSON.
    pub is_rewritten: bool,
    /// Empty: none is a value.
    pub changed: Vec<Option<Value>>,
    /// Empty: nobody asked for event times.
    pub times: Vec<Timestamp>,
}

/// What a source knows of the records of a block beside their bytes: one of each for every record, in order.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Where the record begins in the block: what finds its note again, whatever has been left out of a batch since.
    pub starts: Vec<u32>,
    /// Its position in the lane. Kafka leaves some out.
    pub offsets: Vec<u64>,
    /// The time that whoever wrote it, or keeps it, gave it.
    pub times: Vec<Timestamp>,
    /// As [`Times::before`], where whoever wrote the records tells it: then their times are their event times, and the block
    /// itself says nothing of how far event time has come. Empty: nobody tells.
    pub before: Vec<Timestamp>,
    /// Its key, a piece of `texts`.
    pub keys: Vec<Option<Span>>,
    /// Empty: no record of the block has any.
    pub headers: Vec<Headers>,
    /// The bytes of the keys.
    pub texts: Vec<u8>,
}

/// The headers of a record, in order; a name may come more than once.
pub type Headers = Vec<(String, Option<Bytes>)>;

impl Notes {
    /// The number of the record that begins there.
    fn number(&self, start: u32) -> usize {
        self.starts.binary_search(&start).expect("every record of the block has its note")
    }

    /// About how much memory they take.
    fn bytes(&self) -> usize {
        self.texts.len() + self.starts.len() * 32 + self.before.len() * 8 + self.headers.len() * 64
    }
}

/// Records that travel together: all of one lane, in its order.
#[derive(Clone, Debug)]
pub struct Batch {
    pub lane: Arc<Lane>,
    /// The bytes as they were read. Empty where an operator made the records.
    pub block: Bytes,
    /// The position of the block's first byte in its lane.
    pub base: u64,
    pub spans: Arc<Vec<Span>>,
    /// How the records are read: the lane's codec, or JSON where an operator wrote them anew.
    pub codec: Arc<dyn Codec>,
    /// The records as they came in, where an operator wrote them anew.
    pub original: Option<Arc<Original>>,
    pub selection: Selection,
    pub columns: Arc<Columns>,
    /// What operators made of the records, by row; `None` where a record is as it came in. Empty: none was changed.
    pub changed: Arc<Vec<Option<Value>>>,
    /// `None` where nothing downstream needs event time.
    pub times: Option<Arc<Times>>,
    /// The greatest event time the lane had shown before this block. Set when the order of blocks is restored.
    pub seen_before: Timestamp,
    /// When the block was read.
    pub arrival: Timestamp,
    /// What the source knows of the records beside.
    pub notes: Option<Arc<Notes>>,
}

impl Batch {
    pub fn new(lane: Arc<Lane>, block: Bytes, base: u64, spans: Vec<Span>, arrival: Timestamp) -> Self {
        Self {
            codec: Arc::clone(&lane.codec),
            original: None,
            lane,
            block,
            base,
            spans: Arc::new(spans),
            selection: Selection::All,
            columns: Arc::default(),
            changed: Arc::default(),
            times: None,
            seen_before: Timestamp::MIN,
            arrival,
            notes: None,
        }
    }

    /// Records that an operator made, each with its event time. They are in order: nothing among them is late.
    pub fn of_values(lane: Arc<Lane>, values: Vec<(Timestamp, Value)>, arrival: Timestamp) -> Self {
        let just_before = |time: Timestamp| Timestamp(time.0.saturating_sub(1));
        let values = values.into_iter().map(|(time, value)| (time, just_before(time), value)).collect();
        Self::of_values_behind(lane, values, arrival)
    }

    /// The same of records that do not come in time: each with its event time and the watermark that it came behind.
    pub fn of_values_behind(lane: Arc<Lane>, values: Vec<(Timestamp, Timestamp, Value)>, arrival: Timestamp) -> Self {
        let spans = vec![Span::default(); values.len()];
        let mut batch = Self::new(lane, Bytes::new(), 0, spans, arrival);
        let max = values.iter().map(|(time, ..)| *time).max().unwrap_or(Timestamp::MIN);
        let mut times = Times { at: Vec::new(), before: Vec::new(), max };
        let mut changed = Vec::with_capacity(values.len());
        for (time, before, value) in values {
            times.at.push(time);
            times.before.push(before);
            changed.push(Some(value));
        }
        batch.times = Some(Arc::new(times));
        batch.changed = Arc::new(changed);
        batch
    }

    /// How many records are in it.
    pub fn len(&self) -> usize {
        match &self.selection {
            Selection::All => self.spans.len(),
            Selection::Rows(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows that are in it, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = u32> + DoubleEndedIterator + '_ {
        let selected = match &self.selection {
            Selection::All => None,
            Selection::Rows(rows) => Some(&rows[..]),
        };
        let rows = selected.map_or(self.spans.len(), <[u32]>::len);
        (0..rows).map(move |at| selected.map_or(at as u32, |rows| rows[at]))
    }

    /// The same records less those not in `rows`, which must be a rising subset of [`Self::rows`].
    #[must_use]
    pub fn select(&self, rows: Vec<u32>) -> Self {
        let mut batch = self.clone();
        batch.selection = Selection::Rows(rows.into());
        batch
    }

    /// The records of some rows alone, numbered from 0, with these times and this arrival. Only for batches as they are read.
    #[must_use]
    pub(crate) fn cut(&self, rows: std::ops::Range<usize>, times: Times, arrival: Timestamp) -> Self {
        let (first, end) = (rows.start as u32, rows.end as u32);
        let selection = match &self.selection {
            Selection::All => Selection::All,
            Selection::Rows(selected) => {
                let from = selected.partition_point(|row| *row < first);
                let to = selected.partition_point(|row| *row < end);
                Selection::Rows(selected[from..to].iter().map(|row| row - first).collect())
            }
        };
        Self {
            spans: Arc::new(self.spans[rows.clone()].to_vec()),
            selection,
            columns: Arc::new(self.columns.cut(rows)),
            times: Some(Arc::new(times)),
            arrival,
            ..self.undecoded()
        }
    }

    /// The same records, with nothing decoded: it shares nothing that decoding changes.
    #[must_use]
    pub fn undecoded(&self) -> Self {
        Self {
            lane: Arc::clone(&self.lane),
            block: self.block.clone(),
            base: self.base,
            spans: Arc::clone(&self.spans),
            codec: Arc::clone(&self.codec),
            original: self.original.clone(),
            selection: self.selection.clone(),
            columns: Arc::default(),
            changed: Arc::clone(&self.changed),
            times: self.times.clone(),
            seen_before: self.seen_before,
            arrival: self.arrival,
            notes: self.notes.clone(),
        }
    }

    /// The bytes of a record: as they came in, or as an operator wrote them anew. Empty where it is in [`Self::changed`].
    pub fn record(&self, row: u32) -> &[u8] {
        self.spans[row as usize].of(&self.block)
    }

    /// What an operator made of a record; `None` where it is as it came in.
    pub fn changed(&self, row: u32) -> Option<&Value> {
        self.changed.get(row as usize).and_then(Option::as_ref)
    }

    /// Puts `value` in the place of a record.
    pub fn replace(&mut self, row: u32, value: Value) {
        let changed = Arc::make_mut(&mut self.changed);
        if changed.is_empty() {
            changed.resize(self.spans.len(), None);
        }
        changed[row as usize] = Some(value);
    }

    /// Puts records that an operator wrote anew, as JSON, in the place of all of them. `changed` holds those that JSON cannot
    /// spell, by row; where they stand came in, their coordinates, stays.
    pub fn rewrite(&mut self, block: Bytes, spans: Vec<Span>, changed: Vec<Option<Value>>) {
        let spans = Arc::new(spans);
        let original = Original {
            block: std::mem::replace(&mut self.block, block),
            spans: std::mem::replace(&mut self.spans, spans),
            places: Vec::new(),
        };
        self.original.get_or_insert_with(|| Arc::new(original));
        self.codec = Arc::new(crate::json::JsonCodec::new());
        self.columns = Arc::default();
        self.changed = Arc::new(changed);
    }

    /// The bytes of a record as its source read them, whatever operators have made of it; empty where an operator made it.
    pub fn raw(&self, row: u32) -> &[u8] {
        match &self.original {
            Some(original) => original.spans[row as usize].of(&original.block),
            None => self.record(row),
        }
    }

    /// Where a record stood in its lane.
    pub(crate) fn place(&self, row: u32) -> Place {
        if let Some(place) = self.original.as_ref().and_then(|original| original.places.get(row as usize)) {
            return *place;
        }
        let span = self.original.as_ref().map_or(&self.spans, |original| &original.spans)[row as usize];
        let offset = match (&self.notes, &self.lane.origin) {
            (Some(notes), _) => notes.offsets[notes.number(span.start)],
            (None, Origin::Kafka { .. }) => self.base + u64::from(row),
            (None, _) => self.base + u64::from(span.start),
        };
        Place { offset, length: span.len }
    }

    /// The notes on a record, and its number in them.
    fn note(&self, row: u32) -> Option<(&Notes, usize)> {
        let notes = self.notes.as_ref()?;
        let span = self.original.as_ref().map_or(&self.spans, |original| &original.spans)[row as usize];
        Some((notes, notes.number(span.start)))
    }

    /// The time that the record came with, beside what stands in it; its arrival where it came with none.
    pub fn own_time(&self, row: u32) -> Timestamp {
        self.note(row).map_or(self.arrival, |(notes, number)| notes.times[number])
    }

    /// What its lane had shown before a record, where whoever wrote it tells that.
    pub(crate) fn told_before(&self, row: u32) -> Option<Timestamp> {
        let (notes, number) = self.note(row)?;
        notes.before.get(number).copied()
    }

    /// The position of a record's first byte in its lane; for Kafka, its offset.
    pub fn offset(&self, row: u32) -> u64 {
        self.place(row).offset
    }

    /// A batch as it was before it went into a buffer, as far as a sink can see.
    pub(crate) fn of_stored(stored: Stored) -> Self {
        let Stored { lane, arrival, block, spans, raw_block, raw_spans, places, is_rewritten, changed, times } = stored;
        let mut batch = Self::new(lane, block, 0, spans, arrival);
        if is_rewritten {
            batch.codec = Arc::new(crate::json::JsonCodec::new());
        }
        batch.original = Some(Arc::new(Original { block: raw_block, spans: Arc::new(raw_spans), places }));
        batch.changed = Arc::new(changed);
        if !times.is_empty() {
            let max = times.iter().copied().max().unwrap_or(Timestamp::MIN);
            let before = vec![Timestamp::MIN; times.len()];
            batch.times = Some(Arc::new(Times { at: times, before, max }));
        }
        batch
    }

    /// Whether an operator wrote the records anew, as JSON.
    pub(crate) fn is_rewritten(&self) -> bool {
        !std::ptr::addr_eq(Arc::as_ptr(&self.codec), Arc::as_ptr(&self.lane.codec))
    }

    /// Decodes the fields of `projection` that are not decoded yet. The records have been through the source's check, so
    /// decoding cannot fail any more; a field that has no value is missing.
    pub fn decode(&mut self, projection: &Projection) {
        if self.block.is_empty() || self.columns.has(projection) {
            return;
        }
        let codec = Arc::clone(&self.codec);
        let mut columns = std::mem::take(&mut self.columns);
        Arc::make_mut(&mut columns).decode(&*codec, self, projection);
        self.columns = columns;
    }

    /// A field of a record. It must have been decoded, or the record changed.
    pub fn field(&self, row: u32, path: &FieldPath) -> Field<'_> {
        if let Some(value) = self.changed(row) {
            return value.get(path.path()).map_or(Field::Missing, Field::of_value);
        }
        self.columns.field(&self.block, row, path)
    }

    /// The whole record as a value.
    pub fn value(&self, row: u32) -> Cow<'_, Value> {
        match self.changed(row) {
            Some(value) => Cow::Borrowed(value),
            None => Cow::Owned(self.codec.value(self.record(row)).unwrap_or_else(|_| Value::Object(ObjectMap::new()))),
        }
    }

    /// The event time of a record; its arrival where the plan did not ask for event times.
    pub fn time(&self, row: u32) -> Timestamp {
        self.times.as_ref().map_or(self.arrival, |times| times.at[row as usize])
    }

    /// The watermark of this lane as it stood just before a record.
    pub fn watermark_before(&self, row: u32) -> Timestamp {
        let Some(times) = &self.times else { return Timestamp::MIN };
        let seen = times.before[row as usize].max(self.seen_before);
        if seen == Timestamp::MIN { seen } else { seen.saturating_sub(self.lane.out_of_order) }
    }

    /// The watermark of this lane after the batch.
    pub fn watermark_after(&self) -> Timestamp {
        let Some(times) = &self.times else { return Timestamp::MIN };
        let seen = times.max.max(self.seen_before);
        if seen == Timestamp::MIN { seen } else { seen.saturating_sub(self.lane.out_of_order) }
    }

    /// Where a record stood in its source.
    pub fn coordinate(&self, row: u32) -> Value {
        let offset = Value::Integer(self.offset(row) as i64);
        let length = Value::Integer(i64::from(self.place(row).length));
        let fields: Vec<(&str, Value)> = match &self.lane.origin {
            Origin::File(file) => vec![("file", text(file)), ("offset", offset), ("length", length)],
            Origin::Stream => vec![("offset", offset), ("length", length)],
            Origin::Kafka { topic, partition } => {
                vec![("topic", text(topic)), ("partition", Value::Integer(i64::from(*partition))), ("offset", offset)]
            }
            // Not the row: where batches are cut must not show in any output.
            Origin::Operator | Origin::Keyed(_) => {
                vec![("operator", text(&self.lane.source)), ("time", text(&self.time(row).to_string()))]
            }
        };
        Value::Object(fields.into_iter().map(|(key, value)| (KeyString::from(key), value)).collect())
    }

    /// What expressions read as `%name`: `source`, `file`, `offset`, `partition`, `ingest_time`; of records from Kafka also
    /// `topic`, `key`, `headers` and `timestamp`.
    pub fn metadata(&self, row: u32) -> Value {
        let mut metadata = ObjectMap::new();
        metadata.insert("source".into(), text(&self.lane.source));
        if let Origin::File(file) = &self.lane.origin {
            metadata.insert("file".into(), text(file));
        }
        metadata.insert("offset".into(), Value::Integer(self.offset(row) as i64));
        match &self.lane.origin {
            Origin::Kafka { topic, partition } => {
                metadata.insert("topic".into(), text(topic));
                metadata.insert("partition".into(), Value::Integer(i64::from(*partition)));
            }
            _ => drop(metadata.insert("partition".into(), text(&self.lane.partition))),
        }
        if let Some((notes, number)) = self.note(row) {
            metadata.insert("timestamp".into(), Value::Timestamp(notes.times[number].to_datetime()));
            let key = notes.keys[number].map(|key| Value::Bytes(Bytes::copy_from_slice(key.of(&notes.texts))));
            metadata.insert("key".into(), key.unwrap_or(Value::Null));
            let headers = notes.headers.get(number).into_iter().flatten();
            // Of several with one name the last counts, as with most clients.
            let headers = headers
                .map(|(name, value)| (KeyString::from(name.as_str()), value.clone().map_or(Value::Null, Value::Bytes)));
            metadata.insert("headers".into(), Value::Object(headers.collect()));
        }
        metadata.insert("ingest_time".into(), Value::Timestamp(self.arrival.to_datetime()));
        Value::Object(metadata)
    }

    /// About how much memory the batch holds: what bounded edges count.
    pub fn bytes(&self) -> usize {
        // Read back from a buffer, a record that nobody changed stands in the same bytes twice.
        let original = self.original.as_ref().filter(|original| original.block.as_ptr() != self.block.as_ptr());
        let original = original.map_or(0, |original| original.block.len());
        let notes = self.notes.as_ref().map_or(0, |notes| notes.bytes());
        self.block.len() + notes + original + self.spans.len() * 32 + self.changed.len() * 256
    }
}

fn text(text: &str) -> Value {
    Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}
