//! How the bytes of a record become fields: the contract of codecs, and the columns they fill.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use vrl::path::OwnedSegment;
use vrl::path::OwnedValuePath;
use vrl::value::Value;

use crate::event::{Batch, Cell, Field, Span};

/// Why a record could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// A word that can be counted under: `invalid_json`, `no_match`, `too_deep`, …
    pub reason: &'static str,
    /// What is wrong and where in the record, for a person.
    pub message: String,
}

impl DecodeError {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Turns the bytes of a record into fields.
///
/// A codec is shared between threads and keeps nothing between batches. [`Codec::decode`] and [`Codec::value`] must agree:
/// a field read through a projection is the field of the whole value, for every record that either accepts, and both accept
/// the same records.
pub trait Codec: Send + Sync + fmt::Debug {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// Decodes the fields of one projection of one record, and checks the record as a whole.
    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError>;

    /// The whole record.
    fn value(&self, record: &[u8]) -> Result<Value, DecodeError>;

    /// Decodes many records; worth overriding where one record helps with the next.
    fn decode_all(&self, records: &mut Records<'_>) {
        while let Some((record, mut row)) = records.next() {
            let outcome = self.decode(record, &mut row);
            records.done(outcome);
        }
    }

    /// Whether text can be spelled in a record in another way than letter by letter (escapes): then a literal that is not
    /// found in the raw bytes may still be in a field.
    fn escapes(&self) -> bool {
        true
    }

    /// Whether the text of every field stands in the raw bytes of its record, letter by letter or escaped. Not where a codec
    /// writes names for numbers, as syslog's severities: then nothing can be looked for in the raw bytes.
    fn keeps_text(&self) -> bool {
        true
    }

    /// Whether it accepts every record: then records that nobody reads need not be looked at.
    fn accepts_all(&self) -> bool {
        false
    }

    /// Where the event time is if the source does not say: a field of the decoded record.
    fn timestamp_path(&self) -> Option<OwnedValuePath> {
        None
    }
}

/// A path into a record, known by number to every batch of a plan.
#[derive(Clone, Debug)]
pub struct FieldPath(Arc<(usize, OwnedValuePath)>);

impl FieldPath {
    pub fn index(&self) -> usize {
        self.0.0
    }

    pub fn path(&self) -> &OwnedValuePath {
        &self.0.1
    }

    /// The name of the top-level field it begins with; `None` for the root or an index.
    pub fn first(&self) -> Option<&str> {
        match self.path().segments.first() {
            Some(OwnedSegment::Field(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether it is a top-level field: all that codecs without nesting can have.
    pub fn is_top_level(&self) -> bool {
        self.path().segments.len() == 1
    }
}

/// The paths that the expressions of one plan read; each has a column number.
#[derive(Debug, Default)]
pub struct PathTable {
    paths: BTreeMap<OwnedValuePath, FieldPath>,
}

impl PathTable {
    pub fn intern(&mut self, path: &OwnedValuePath) -> FieldPath {
        if let Some(known) = self.paths.get(path) {
            return known.clone();
        }
        let interned = FieldPath(Arc::new((self.paths.len(), path.clone())));
        self.paths.insert(path.clone(), interned.clone());
        interned
    }
}

/// A set of paths to decode in one pass, in column order. The place of a path in it is its slot.
#[derive(Clone, Debug, Default)]
pub struct Projection {
    paths: Vec<FieldPath>,
}

impl Projection {
    pub fn new(paths: impl IntoIterator<Item = FieldPath>) -> Self {
        let mut paths: Vec<_> = paths.into_iter().collect();
        paths.sort_by_key(FieldPath::index);
        paths.dedup_by_key(|path| path.index());
        Self { paths }
    }

    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.paths.iter().chain(&other.paths).cloned())
    }

    pub fn paths(&self) -> &[FieldPath] {
        &self.paths
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The slot of a top-level field of this name.
    pub fn slot(&self, name: &[u8]) -> Option<usize> {
        self.paths
            .iter()
            .position(|path| path.is_top_level() && path.first().is_some_and(|first| first.as_bytes() == name))
    }
}

/// The fields of a batch decoded so far, by column number and row.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    columns: Vec<Option<Vec<Cell>>>,
    /// Text that could not be taken from the block as it stands.
    arena: Vec<u8>,
}

impl Columns {
    pub fn has(&self, projection: &Projection) -> bool {
        projection.paths.iter().all(|path| self.columns.get(path.index()).is_some_and(Option::is_some))
    }

    /// Decodes what is missing of `projection` for the selected rows of `batch`.
    pub(crate) fn decode(&mut self, codec: &dyn Codec, batch: &Batch, projection: &Projection) {
        let missing = Projection::new(projection.paths.iter().filter(|path| !self.has_one(path)).cloned());
        let mut rejected = Vec::new();
        self.decode_rows(codec, &batch.block, &batch.spans, &mut batch.rows(), &missing, &mut rejected);
    }

    fn has_one(&self, path: &FieldPath) -> bool {
        self.columns.get(path.index()).is_some_and(Option::is_some)
    }

    /// Decodes `projection` for `rows`; rows that the codec refuses are told in `rejected`.
    pub fn decode_rows(
        &mut self,
        codec: &dyn Codec,
        block: &[u8],
        spans: &[Span],
        rows: &mut dyn Iterator<Item = u32>,
        projection: &Projection,
        rejected: &mut Vec<(u32, DecodeError)>,
    ) {
        let mut cells: Vec<Vec<Cell>> = projection.paths.iter().map(|_| vec![Cell::Missing; spans.len()]).collect();
        let mut records =
            Records { block, spans, rows, row: 0, projection, cells: &mut cells, arena: &mut self.arena, rejected };
        codec.decode_all(&mut records);
        for (path, cells) in projection.paths.iter().zip(cells) {
            if self.columns.len() <= path.index() {
                self.columns.resize(path.index() + 1, None);
            }
            self.columns[path.index()] = Some(cells);
        }
    }

    /// The columns of some rows alone, numbered from 0.
    pub(crate) fn cut(&self, rows: std::ops::Range<usize>) -> Self {
        let mut arena = Vec::new();
        let mut moved = |span: Span| {
            let start = arena.len();
            arena.extend_from_slice(span.of(&self.arena));
            Span::new(start, span.len as usize)
        };
        let mut cut = |cells: &Vec<Cell>| -> Vec<Cell> {
            let cells = cells[rows.clone()].iter();
            let cells = cells.map(|cell| match *cell {
                Cell::Owned(span) => Cell::Owned(moved(span)),
                Cell::OwnedJson(span) => Cell::OwnedJson(moved(span)),
                cell => cell,
            });
            cells.collect()
        };
        let columns = self.columns.iter().map(|cells| cells.as_ref().map(&mut cut)).collect();
        Self { columns, arena }
    }

    /// A whole column; `None` if it was not decoded. Faster than asking field by field.
    pub fn cells(&self, path: &FieldPath) -> Option<&[Cell]> {
        self.columns.get(path.index()).and_then(Option::as_deref)
    }

    /// Text that was unescaped into the arena.
    pub fn owned(&self, span: Span) -> &[u8] {
        span.of(&self.arena)
    }

    pub fn field<'a>(&'a self, block: &'a [u8], row: u32, path: &FieldPath) -> Field<'a> {
        let Some(cells) = self.cells(path) else { return Field::Missing };
        self.cell(block, cells[row as usize])
    }

    /// What a cell of these columns stands for.
    pub fn cell<'a>(&'a self, block: &'a [u8], cell: Cell) -> Field<'a> {
        match cell {
            Cell::Missing => Field::Missing,
            Cell::Null => Field::Null,
            Cell::Bool(value) => Field::Bool(value),
            Cell::Integer(value) => Field::Integer(value),
            Cell::Float(value) => Field::Float(value),
            Cell::Text(span) => Field::Text(span.of(block)),
            Cell::Owned(span) => Field::Text(span.of(&self.arena)),
            Cell::Json(span) => Field::Json(span.of(block)),
            Cell::OwnedJson(span) => Field::Json(span.of(&self.arena)),
            Cell::Time(time) => Field::Time(time),
        }
    }
}

/// The records of a block that are to be decoded, one after the other, each with the row to write its fields to.
pub struct Records<'a> {
    block: &'a [u8],
    spans: &'a [Span],
    rows: &'a mut dyn Iterator<Item = u32>,
    row: u32,
    projection: &'a Projection,
    cells: &'a mut [Vec<Cell>],
    arena: &'a mut Vec<u8>,
    rejected: &'a mut Vec<(u32, DecodeError)>,
}

impl<'a> Records<'a> {
    pub fn projection(&self) -> &'a Projection {
        self.projection
    }

    /// The next record and its row.
    #[expect(clippy::should_implement_trait, reason = "what it returns borrows from itself")]
    pub fn next(&mut self) -> Option<(&'a [u8], Row<'_>)> {
        self.row = self.rows.next()?;
        let span = self.spans[self.row as usize];
        let row = Row {
            row: self.row as usize,
            start: span.start,
            projection: self.projection,
            cells: self.cells,
            arena: self.arena,
        };
        Some((span.of(self.block), row))
    }

    /// How decoding the record that [`Self::next`] gave last went.
    pub fn done(&mut self, outcome: Result<(), DecodeError>) {
        if let Err(error) = outcome {
            self.rejected.push((self.row, error));
        }
    }
}

/// Where the fields of one record are written.
pub struct Row<'a> {
    row: usize,
    /// Where the record starts in its block.
    start: u32,
    projection: &'a Projection,
    cells: &'a mut [Vec<Cell>],
    arena: &'a mut Vec<u8>,
}

impl<'a> Row<'a> {
    pub fn projection(&self) -> &'a Projection {
        self.projection
    }

    /// Writes a field that needs no bytes. Spans within `cell` would be of the block: use [`Self::text`] and its like.
    pub fn set(&mut self, slot: usize, cell: Cell) {
        self.cells[slot][self.row] = cell;
    }

    /// Writes text that stands in the record at `start` (counted from the record's first byte), `len` bytes long.
    pub fn text(&mut self, slot: usize, start: usize, len: usize) {
        self.set(slot, Cell::Text(Span { start: self.start + start as u32, len: len as u32 }));
    }

    /// Writes an array or object whose JSON text stands in the record at `start`.
    pub fn json(&mut self, slot: usize, start: usize, len: usize) {
        self.set(slot, Cell::Json(Span { start: self.start + start as u32, len: len as u32 }));
    }

    /// Writes text that does not stand in the record as it is.
    pub fn owned(&mut self, slot: usize, text: &[u8]) {
        let span = Span::new(self.arena.len(), text.len());
        self.arena.extend_from_slice(text);
        self.set(slot, Cell::Owned(span));
    }

    /// Writes an array or object that does not stand in the record as JSON text.
    pub fn owned_json(&mut self, slot: usize, json: &[u8]) {
        let span = Span::new(self.arena.len(), json.len());
        self.arena.extend_from_slice(json);
        self.set(slot, Cell::OwnedJson(span));
    }

    /// Forgets all that was written of this record.
    pub fn clear(&mut self) {
        for cells in self.cells.iter_mut() {
            cells[self.row] = Cell::Missing;
        }
    }
}
