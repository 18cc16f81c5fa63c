//! Folding a batch: what it adds to each pane and key, computed by itself so that batches can be folded in parallel.

use std::any::Any;
use std::cmp::Ordering;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::event::{Batch, Cell, Field, Origin};
use tocsin_pipeline::expression::Expression;
use tocsin_pipeline::operator::{Prepare, Prepared, key_group};
use tocsin_pipeline::time::Timestamp;

use super::aggregate::{Aggregate, Argument};
use super::distinct;
use super::number::Number;
use super::table::{Column, Edge, Table, fold_extreme};
use crate::key;

/// Where in time a record is folded: into the pane that starts at `start`, for windows that end at `first_end` or later.
///
/// A window is the panes of its length that end with it; a tumbling window is one pane. A record that is late for some of the windows that its
/// pane belongs to counts for the others alone; mostly it is late for none, and `first_end` is the end of its pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub start: i64,
    pub first_end: i64,
}

/// A window's rule, compiled.
#[derive(Debug)]
pub(super) struct Plan {
    pub size: i64,
    /// How far apart windows start; as long as `size` where they tumble. The length of a pane.
    pub every: i64,
    pub lateness: i64,
    /// Whether a window is told at its end, and again when a late record changes it; else once, when it closes.
    pub updates: bool,
    pub key: Vec<Expression>,
    pub aggregates: Vec<Aggregate>,
    pub reads: Projection,
    pub max_value_bytes: usize,
    /// Whether something reads the late records, so that their batches must be kept until it is decided which they are.
    pub keeps_late: bool,
    pub hasher: RandomState,
}

/// Times nearer than this to the ends of what a timestamp can say are moved in, so that no sum below overflows.
/// Four times the longest window and lateness that can be configured, ten years.
const MARGIN: i64 = 4 * super::LONGEST.as_nanos() as i64;

impl Plan {
    /// The start of the pane that a time falls into.
    fn pane_of(&self, time: Timestamp) -> i64 {
        let time = time.0.clamp(i64::MIN + MARGIN, i64::MAX - MARGIN);
        time.div_euclid(self.every) * self.every
    }

    /// The end of the last window that a watermark closes.
    pub fn closed_by(&self, watermark: Timestamp) -> i64 {
        self.last_end(watermark, self.lateness)
    }

    /// The end of the last window that is told when the watermark stands there.
    pub fn told_by(&self, watermark: Timestamp) -> i64 {
        self.last_end(watermark, self.told_after())
    }

    /// How long after its end a window is told.
    pub fn told_after(&self) -> i64 {
        if self.updates { 0 } else { self.lateness }
    }

    fn last_end(&self, watermark: Timestamp, after: i64) -> i64 {
        let limit = watermark.0.clamp(i64::MIN + MARGIN, i64::MAX - MARGIN) - after;
        limit.div_euclid(self.every) * self.every
    }

    /// Whether a place is one that this window folds into.
    pub fn is_place(&self, place: Place) -> bool {
        let is_pane = place.start.saturating_abs() <= i64::MAX - MARGIN / 2 && place.start.rem_euclid(self.every) == 0;
        is_pane
            && (self.every..=self.size).contains(&place.first_end.saturating_sub(place.start))
            && place.first_end.rem_euclid(self.every) == 0
    }

    /// The end of the first window of a pane that is later than `closed`; `None` if the pane has no such window.
    pub fn first_end(&self, start: i64, closed: i64) -> Option<i64> {
        let first_end = (start + self.every).max(closed + self.every);
        (first_end <= start + self.size).then_some(first_end)
    }
}

/// What a batch adds.
pub(super) struct Partial {
    pub places: Vec<Place>,
    /// Keys have the number of their place before them, as 4 bytes. In the order in which the records had them first.
    pub table: Table,
    /// How many records each row stands for.
    pub records: Vec<u32>,
    /// Records that are late against those before them in their own batch.
    pub late: usize,
    /// Records whose key is too long.
    pub too_long: usize,
    pub expression_errors: u64,
    /// The batch, and for each of its rows the row of the table; kept where late records are to be handed on or each counts by
    /// itself.
    pub rows: Option<(Batch, Vec<u32>)>,
}

/// In place of a row of the table: the record is late.
pub(super) const LATE: u32 = u32::MAX;
/// In place of a row of the table: the record is not in the batch, or its key is too long.
const NONE: u32 = u32::MAX - 1;
/// In place of a row of the table: a window of the record had ended before it and is told anew with it, so that it counts by itself.
pub(super) const ENDED: u32 = u32::MAX - 2;

/// What records add each by itself.
pub(super) struct Each {
    /// A row for each of `records`.
    pub table: Table,
    pub records: Vec<Late>,
    /// The rows of those that are late for all windows.
    pub late: Vec<u32>,
    /// Records whose key is too long.
    pub too_long: usize,
}

/// A record that comes when a window of its own has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub place: Place,
    /// The watermark that it came behind: windows that end there or before are told anew.
    pub watermark: i64,
}

/// What was known before a batch came.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The watermark of its lane.
    pub watermark: Timestamp,
    /// The ends of the last windows that were told and closed.
    pub told: i64,
    pub closed: i64,
}

/// Bytes before the key in the table of a [`Partial`].
pub(super) const PLACE_BYTES: usize = 4;

impl Plan {
    pub fn fold(&self, mut batch: Batch) -> Partial {
        batch.decode(&self.reads);
        let mut partial = Partial {
            places: Vec::new(),
            table: Table::new(&self.aggregates, &self.hasher),
            records: Vec::new(),
            late: 0,
            too_long: 0,
            expression_errors: 0,
            rows: None,
        };
        let rows = self.assign(&batch, &mut partial);
        let mut errors = 0;
        for (aggregate, column) in self.aggregates.iter().zip(&mut partial.table.columns) {
            self.fold_column(aggregate, column, &partial.records, &batch, &rows, &mut errors);
        }
        partial.expression_errors += errors;
        for row in 0..partial.table.len() {
            let group = key_group(&partial.table.key(row)[PLACE_BYTES..]);
            partial.table.set_group(row, group as u8);
        }
        partial.rows = (self.keeps_late || self.updates).then_some((batch, rows));
        partial
    }

    /// Folds some of a batch's records each by itself. What fails in their expressions was counted when the batch was folded.
    pub fn fold_each(&self, batch: &Batch, wanted: Vec<u32>, known: Known) -> Each {
        let batch = batch.select(wanted);
        let table = Table::new(&self.aggregates, &self.hasher);
        let mut each = Each { table, records: Vec::new(), late: Vec::new(), too_long: 0 };
        let mut rows = vec![NONE; batch.spans.len()];
        let keys = KeyReader::new(&self.key, &batch);
        let (mut key, mut errors) = (Vec::new(), 0);
        for row in batch.rows() {
            let watermark = self.limit(&batch, row).max(known.watermark.0).max(known.told);
            let start = self.pane_of(batch.time(row));
            let Some(first_end) = self.first_end(start, self.closed_by(Timestamp(watermark)).max(known.closed)) else {
                each.late.push(row);
                continue;
            };
            key.clear();
            key.extend_from_slice(&(each.records.len() as u32).to_le_bytes());
            keys.read(row, &mut errors, &mut key);
            let is_short = key.len() - PLACE_BYTES <= self.max_value_bytes;
            let group = key_group(&key[PLACE_BYTES..]) as u8;
            let Some(found) = is_short.then(|| each.table.row(&key, group, || true)).flatten() else {
                each.too_long += 1;
                continue;
            };
            each.records.push(Late { place: Place { start, first_end }, watermark });
            rows[row as usize] = found as u32;
        }
        let records = vec![1; each.records.len()];
        for (aggregate, column) in self.aggregates.iter().zip(&mut each.table.columns) {
            self.fold_column(aggregate, column, &records, &batch, &rows, &mut errors);
        }
        each
    }

    /// The watermark of its lane just before a record, as far as its own batch tells.
    fn limit(&self, batch: &Batch, row: u32) -> i64 {
        let before = batch.times.as_ref().map_or(Timestamp::MIN, |times| times.before[row as usize]);
        if before == Timestamp::MIN { i64::MIN } else { before.saturating_sub(batch.lane.out_of_order).0 }
    }

    /// Finds the row of the table for each record.
    fn assign(&self, batch: &Batch, partial: &mut Partial) -> Vec<u32> {
        let mut rows = vec![NONE; batch.spans.len()];
        let keys = KeyReader::new(&self.key, batch);
        let out_of_order = tocsin_pipeline::time::nanos(batch.lane.out_of_order);
        let times = batch.times.as_deref();
        let mut places: HashMap<Place, u32, RandomState> = HashMap::with_hasher(self.hasher.clone());
        // Most records are of the same pane as the one before: its start, its number, and the key with its row.
        let (mut pane, mut place, mut place_number) = (None, None, 0u32);
        let (mut last_key, mut last_row) = (Vec::new(), NONE);
        let mut key = Vec::with_capacity(64);
        for row in batch.rows() {
            let (time, before) = match times {
                Some(times) => (times.at[row as usize], times.before[row as usize]),
                None => (batch.arrival, Timestamp::MIN),
            };
            let start = match pane {
                Some(start) if time.0 >= start && time.0.saturating_sub(start) < self.every => start,
                _ => self.pane_of(time),
            };
            pane = Some(start);
            // The key is read of late records too: whether its expressions fail is counted for each record alike.
            key.clear();
            key.extend_from_slice(&place_number.to_le_bytes());
            keys.read(row, &mut partial.expression_errors, &mut key);
            let limit = if before == Timestamp::MIN { i64::MIN } else { before.0.saturating_sub(out_of_order) };
            let first_end = if limit.saturating_sub(self.lateness) < start + self.every {
                Some(start + self.every)
            } else {
                self.first_end(start, self.closed_by(Timestamp(limit)))
            };
            let Some(first_end) = first_end else {
                partial.late += 1;
                rows[row as usize] = LATE;
                continue;
            };
            if self.updates && first_end <= limit {
                rows[row as usize] = ENDED;
                continue;
            }
            let here = Place { start, first_end };
            if place != Some(here) {
                place = Some(here);
                place_number = *places.entry(here).or_insert_with(|| {
                    partial.places.push(here);
                    partial.places.len() as u32 - 1
                });
                key[..PLACE_BYTES].copy_from_slice(&place_number.to_le_bytes());
            }
            if key.len() - PLACE_BYTES > self.max_value_bytes {
                partial.too_long += 1;
                continue;
            }
            if key != last_key {
                // A block is below 4 GiB, but its keys with the numbers before them may not be.
                let Some(found) = partial.table.row(&key, 0, || true) else {
                    partial.too_long += 1;
                    continue;
                };
                last_row = found as u32;
                if partial.records.len() <= found {
                    partial.records.push(0);
                }
                std::mem::swap(&mut key, &mut last_key);
            }
            partial.records[last_row as usize] += 1;
            rows[row as usize] = last_row;
        }
        rows
    }

    /// Folds one aggregate's argument of all records.
    fn fold_column(
        &self,
        aggregate: &Aggregate,
        column: &mut Column,
        records: &[u32],
        batch: &Batch,
        rows: &[u32],
        errors: &mut u64,
    ) {
        let expression = match (&aggregate.argument, &mut *column) {
            (Argument::Record, Column::Count(counts)) => {
                counts.iter_mut().zip(records).for_each(|(count, records)| *count = u64::from(*records));
                return;
            }
            (Argument::Condition(condition), Column::Count(counts)) => {
                for row in condition.select(batch, errors) {
                    if let Some(count) = counts.get_mut(rows[row as usize] as usize) {
                        *count += 1;
                    }
                }
                return;
            }
            (Argument::Value(expression), _) => expression,
            _ => unreachable!("only what counts is without an expression"),
        };
        match column {
            Column::Count(_) => unreachable!("what counts takes no expression"),
            Column::Sum(sums) => each_number(expression, batch, rows, errors, |row, number| match sums.get_mut(row) {
                Some(sum) => sum.add(number),
                None => !matches!(number, Number::Time(_)),
            }),
            Column::Extreme(wanted, extremes) => each_number(expression, batch, rows, errors, |row, number| {
                if let Some(extreme) = extremes.get_mut(row) {
                    fold_extreme(*wanted, extreme, number);
                }
                true
            }),
            Column::Quantile(sketches) => {
                each_number(expression, batch, rows, errors, |row, number| match sketches.get_mut(row) {
                    Some(sketch) => sketch.add(number),
                    None => !matches!(number, Number::Time(_)),
                })
            }
            Column::Distinct(counts) => {
                let mut value = Vec::new();
                each_field(expression, batch, errors, |row, field| {
                    if matches!(field, Field::Missing | Field::Null) {
                        return false;
                    }
                    if let Some(count) = counts.get_mut(rows[row as usize] as usize) {
                        value.clear();
                        key::encode(field, &mut value);
                        count.add(distinct::hash(&value));
                    }
                    true
                });
            }
            Column::Edge(wanted, edges) => self.fold_edges(*wanted, edges, expression, batch, rows, errors),
        }
    }

    fn fold_edges(
        &self,
        wanted: Ordering,
        edges: &mut [Option<Box<Edge>>],
        expression: &Expression,
        batch: &Batch,
        rows: &[u32],
        errors: &mut u64,
    ) {
        let lane: Arc<str> = format!("{}\0{}", batch.lane.source, batch.lane.partition).into();
        let mut value = Vec::new();
        each_field(expression, batch, errors, |row, field| {
            if matches!(field, Field::Missing | Field::Null) {
                return false;
            }
            value.clear();
            key::encode(field, &mut value);
            if value.len() > self.max_value_bytes {
                return false;
            }
            if let Some(edge) = edges.get_mut(rows[row as usize] as usize) {
                let offset = match batch.lane.origin {
                    Origin::File(_) | Origin::Stream => batch.offset(row),
                    Origin::Kafka { .. } => batch.base + u64::from(row),
                    Origin::Operator | Origin::Keyed(_) => 0,
                };
                let time = batch.time(row).0;
                let order = edge.as_ref().map(|known| {
                    (time, &lane, offset, &value[..]).cmp(&(known.time, &known.lane, known.offset, &known.value))
                });
                if order.is_none_or(|order| order == wanted) {
                    let (lane, value) = (Arc::clone(&lane), value.as_slice().into());
                    *edge = Some(Box::new(Edge { time, lane, offset, value }));
                }
            }
            true
        });
    }
}

/// Hands the number of each record on, with the row of the table that it belongs to (which is none for late records); a record without a
/// number, or with one that is not taken, is counted in `errors`.
#[inline]
fn each_number(
    expression: &Expression,
    batch: &Batch,
    rows: &[u32],
    errors: &mut u64,
    mut take: impl FnMut(usize, Number) -> bool,
) {
    each_field(expression, batch, errors, |row, field| match Number::of(field) {
        Some(number) => take(rows[row as usize] as usize, number),
        None => false,
    });
}

/// Hands the value of an expression for each record on; one that is not taken is counted in `errors`.
#[inline]
fn each_field(expression: &Expression, batch: &Batch, errors: &mut u64, mut take: impl FnMut(u32, Field<'_>) -> bool) {
    if let Some(cells) = column_of(expression, batch) {
        for row in batch.rows() {
            let field = batch.columns.cell(&batch.block, cells[row as usize]);
            *errors += u64::from(!take(row, field));
        }
        return;
    }
    for row in batch.rows() {
        if let Some(field) = expression.field(batch, row) {
            *errors += u64::from(!take(row, field));
            continue;
        }
        let before = *errors;
        let is_taken = expression.eval(batch, row, errors).is_some_and(|value| take(row, Field::of_value(&value)));
        if !is_taken && *errors == before {
            *errors += 1;
        }
    }
}

/// The decoded column of an expression that is nothing but a path, if all records are as they came in.
fn column_of<'a>(expression: &Expression, batch: &'a Batch) -> Option<&'a [Cell]> {
    let path = expression.path().filter(|_| batch.changed.is_empty())?;
    batch.columns.cells(path)
}

/// Reads keys, from columns where it can.
struct KeyReader<'a> {
    parts: Vec<(&'a Expression, Option<&'a [Cell]>)>,
    batch: &'a Batch,
}

impl<'a> KeyReader<'a> {
    fn new(key: &'a [Expression], batch: &'a Batch) -> Self {
        Self { parts: key.iter().map(|expression| (expression, column_of(expression, batch))).collect(), batch }
    }

    #[inline]
    fn read(&self, row: u32, errors: &mut u64, out: &mut Vec<u8>) {
        for (expression, cells) in &self.parts {
            match cells {
                Some(cells) => key::encode(self.batch.columns.cell(&self.batch.block, cells[row as usize]), out),
                None => key::encode_row(std::slice::from_ref(*expression), self.batch, row, errors, out),
            }
        }
    }
}

/// The stateless half of a window.
pub(super) struct Folder(pub Arc<Plan>);

impl Prepare for Folder {
    fn prepare(&self, batch: Batch) -> Prepared {
        let (lane, arrival, records) = (Arc::clone(&batch.lane), batch.arrival, batch.len());
        let seen_max = batch.times.as_ref().map_or(Timestamp::MIN, |times| times.max);
        // Where operators stand before the window the order is restored already; else this is set when it is.
        let seen_before = batch.seen_before;
        let block_bytes = if self.0.keeps_late || self.0.updates { batch.bytes() } else { 0 };
        let partial = self.0.fold(batch);
        let bytes = partial.table.bytes() + block_bytes;
        Prepared {
            lane,
            seen_before,
            seen_max,
            arrival,
            records,
            bytes,
            content: Box::new(partial) as Box<dyn Any + Send>,
        }
    }
}
