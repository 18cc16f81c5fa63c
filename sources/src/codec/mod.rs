//! How the bytes of a record become fields: one file per codec, and what they share.
//!
//! A codec with a known set of fields is a [`Scan`]: it goes over a record once and tells what it finds to [`Fields`], which
//! is either the row of a projection or the whole event. So the two cannot disagree.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod agreement;
pub(crate) mod combined;
pub(crate) mod common;
pub(crate) mod csv;
pub(crate) mod json;
mod kind;
pub(crate) mod logfmt;
pub(crate) mod regex;
pub(crate) mod syslog;
pub(crate) mod text;

use std::fmt;

use bytes::Bytes;
use tocsin_config::component::CodecType;
use tocsin_pipeline::codec::{Codec, DecodeError, Projection, Records, Row};
use tocsin_pipeline::event::Cell;
use tocsin_pipeline::time::Timestamp;
use vrl::path::{OwnedSegment, OwnedValuePath};
use vrl::value::{KeyString, ObjectMap, Value};

/// Every codec that a source can name.
pub static CODECS: &[CodecType] = &[
    CodecType::of::<combined::Config>(),
    CodecType::of::<common::Config>(),
    CodecType::of::<csv::Config>(),
    CodecType::of::<json::Config>(),
    CodecType::of::<logfmt::Config>(),
    CodecType::of::<regex::Config>(),
    CodecType::of::<syslog::Config>(),
    CodecType::of::<text::Config>(),
];

/// What was found of one field.
enum Piece<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Time(Timestamp),
    /// Text that stands in the record at `start`.
    At {
        start: usize,
        len: usize,
    },
    /// Text that does not stand in the record as it is.
    Text(&'a [u8]),
}

/// Who is told the fields of a record, by their number.
trait Fields {
    /// Whether telling the field does anything: worth asking only before work.
    fn wants(&self, field: usize) -> bool;
    fn put(&mut self, field: usize, piece: Piece<'_>);
}

/// A codec whose fields are known before any record.
trait Scan: Send + Sync + fmt::Debug {
    const NAME: &'static str;
    /// What is worth keeping from record to record of a batch: memory, never content.
    type Scratch;

    fn scratch(&self) -> Self::Scratch;

    /// Goes over one record. What it accepts must not depend on which fields are wanted.
    fn scan(&self, record: &[u8], scratch: &mut Self::Scratch, fields: &mut impl Fields) -> Result<(), DecodeError>;

    /// See [`Codec::accepts_all`].
    fn accepts_all(&self) -> bool {
        false
    }

    /// See [`Codec::keeps_text`].
    fn keeps_text(&self) -> bool {
        true
    }

    /// See [`Codec::timestamp_path`].
    fn timestamp_field(&self) -> Option<&'static str> {
        None
    }
}

/// The codec that a [`Scan`] makes.
#[derive(Debug)]
struct Scanned<S> {
    scan: S,
    /// The fields in the order of their numbers.
    names: Vec<KeyString>,
}

impl<S: Scan> Scanned<S> {
    fn new(scan: S, names: impl IntoIterator<Item = impl Into<KeyString>>) -> Self {
        Self { scan, names: names.into_iter().map(Into::into).collect() }
    }

    fn slots(&self, projection: &Projection) -> Vec<Option<usize>> {
        self.names.iter().map(|name| projection.slot(name.as_bytes())).collect()
    }

    fn record(
        &self,
        record: &[u8],
        scratch: &mut S::Scratch,
        slots: &[Option<usize>],
        row: &mut Row<'_>,
    ) -> Result<(), DecodeError> {
        let outcome = self.scan.scan(record, scratch, &mut RowFields { row: &mut *row, slots });
        if outcome.is_err() {
            row.clear();
        }
        outcome
    }
}

impl<S: Scan> Codec for Scanned<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        let slots = self.slots(row.projection());
        self.record(record, &mut self.scan.scratch(), &slots, row)
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        let mut fields = ObjectFields { record, names: &self.names, object: ObjectMap::new() };
        self.scan.scan(record, &mut self.scan.scratch(), &mut fields)?;
        Ok(Value::Object(fields.object))
    }

    fn decode_all(&self, records: &mut Records<'_>) {
        let slots = self.slots(records.projection());
        let mut scratch = self.scan.scratch();
        while let Some((record, mut row)) = records.next() {
            let outcome = self.record(record, &mut scratch, &slots, &mut row);
            records.done(outcome);
        }
    }

    fn accepts_all(&self) -> bool {
        self.scan.accepts_all()
    }

    fn keeps_text(&self) -> bool {
        self.scan.keeps_text()
    }

    fn timestamp_path(&self) -> Option<OwnedValuePath> {
        self.scan.timestamp_field().map(top_level)
    }
}

/// The path of a field at the top of a record.
fn top_level(name: &str) -> OwnedValuePath {
    OwnedValuePath { segments: vec![OwnedSegment::field(name)] }
}

/// The fields that a projection wants.
struct RowFields<'r, 'a> {
    row: &'r mut Row<'a>,
    /// By number of the field.
    slots: &'r [Option<usize>],
}

impl Fields for RowFields<'_, '_> {
    #[inline]
    fn wants(&self, field: usize) -> bool {
        self.slots[field].is_some()
    }

    #[inline]
    fn put(&mut self, field: usize, piece: Piece<'_>) {
        let Some(slot) = self.slots[field] else { return };
        put_cell(self.row, slot, piece);
    }
}

#[inline]
fn put_cell(row: &mut Row<'_>, slot: usize, piece: Piece<'_>) {
    match piece {
        Piece::Null => row.set(slot, Cell::Null),
        Piece::Bool(value) => row.set(slot, Cell::Bool(value)),
        Piece::Integer(value) => row.set(slot, Cell::Integer(value)),
        Piece::Float(value) => row.set(slot, Cell::Float(value)),
        Piece::Time(time) => row.set(slot, Cell::Time(time)),
        Piece::At { start, len } => row.text(slot, start, len),
        Piece::Text(text) => row.owned(slot, text),
    }
}

/// All fields, as an object.
struct ObjectFields<'a> {
    record: &'a [u8],
    names: &'a [KeyString],
    object: ObjectMap,
}

impl Fields for ObjectFields<'_> {
    fn wants(&self, _: usize) -> bool {
        true
    }

    fn put(&mut self, field: usize, piece: Piece<'_>) {
        self.object.insert(self.names[field].clone(), value_of(self.record, piece));
    }
}

fn value_of(record: &[u8], piece: Piece<'_>) -> Value {
    match piece {
        Piece::Null => Value::Null,
        Piece::Bool(value) => Value::Boolean(value),
        Piece::Integer(value) => Value::Integer(value),
        Piece::Float(value) => vrl::prelude::NotNan::new(value).map_or(Value::Null, Value::Float),
        Piece::Time(time) => Value::Timestamp(time.to_datetime()),
        Piece::At { start, len } => Value::Bytes(Bytes::copy_from_slice(&record[start..start + len])),
        Piece::Text(text) => Value::Bytes(Bytes::copy_from_slice(text)),
    }
}

/// The record is not of the codec's format; `at` counts bytes from 0, people count from 1.
fn malformed(message: &str, at: usize) -> DecodeError {
    DecodeError::new("malformed", format!("{message} at byte {}", at + 1))
}
