//! Accumulators by key, in columns: one table for each pane, and one for what a batch adds to panes.
//!
//! Every accumulator is a function of the multiset of what was folded into it, whatever the order and however it was split and
//! merged. So batches are folded in parallel and merged, and no result depends on threads, batches or lanes.

use std::cmp::Ordering;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use vrl::value::Value;

use super::aggregate::{Aggregate, Function};
use super::distinct::Distinct;
use super::number::{Number, Sum, float};
use super::quantile::Sketch;
use crate::key::{self, Damaged, Reader, write_bytes, write_number};

/// The value of the record that came first or last: by event time, then by lane, then by position in it, and where an operator made
/// the records, which have no position, by the value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub time: i64,
    pub lane: Arc<str>,
    pub offset: u64,
    /// Encoded as keys are.
    pub value: Box<[u8]>,
}

/// The accumulators of one aggregate, by row.
#[derive(Clone, Debug)]
pub(super) enum Column {
    Count(Vec<u64>),
    Sum(Vec<Sum>),
    /// The least (`Less`) or the greatest.
    Extreme(Ordering, Vec<Option<Number>>),
    Quantile(Vec<Sketch>),
    Distinct(Vec<Distinct>),
    /// The first (`Less`) or the last.
    Edge(Ordering, Vec<Option<Box<Edge>>>),
}

/// Does the same with the vector of accumulators of any column.
macro_rules! each {
    ($column:expr, $rows:ident => $do:expr) => {
        match $column {
            Column::Count($rows) => $do,
            Column::Sum($rows) => $do,
            Column::Extreme(_, $rows) => $do,
            Column::Quantile($rows) => $do,
            Column::Distinct($rows) => $do,
            Column::Edge(_, $rows) => $do,
        }
    };
}

impl Column {
    fn of(function: Function) -> Self {
        match function {
            Function::Count | Function::Rate => Self::Count(Vec::new()),
            Function::Sum | Function::Mean => Self::Sum(Vec::new()),
            Function::Min => Self::Extreme(Ordering::Less, Vec::new()),
            Function::Max => Self::Extreme(Ordering::Greater, Vec::new()),
            Function::Quantile(_) => Self::Quantile(Vec::new()),
            Function::Distinct => Self::Distinct(Vec::new()),
            Function::First => Self::Edge(Ordering::Less, Vec::new()),
            Function::Last => Self::Edge(Ordering::Greater, Vec::new()),
        }
    }

    fn push(&mut self) {
        each!(self, rows => rows.push(Default::default()));
    }

    /// Bytes that a row takes beside its place in the column.
    fn heap(&self, row: usize) -> usize {
        match self {
            Self::Count(_) | Self::Extreme(..) => 0,
            Self::Sum(rows) => rows[row].heap(),
            Self::Quantile(rows) => rows[row].heap(),
            Self::Distinct(rows) => rows[row].heap(),
            Self::Edge(_, rows) => rows[row].as_ref().map_or(0, |edge| size_of::<Edge>() + edge.value.len()),
        }
    }

    fn merge(&mut self, row: usize, other: &Self, other_row: usize) {
        match (self, other) {
            (Self::Count(rows), Self::Count(others)) => rows[row] += others[other_row],
            (Self::Sum(rows), Self::Sum(others)) => rows[row].merge(&others[other_row]),
            (Self::Extreme(wanted, rows), Self::Extreme(_, others)) => {
                if let Some(number) = others[other_row] {
                    fold_extreme(*wanted, &mut rows[row], number);
                }
            }
            (Self::Quantile(rows), Self::Quantile(others)) => rows[row].merge(&others[other_row]),
            (Self::Distinct(rows), Self::Distinct(others)) => rows[row].merge(&others[other_row]),
            (Self::Edge(wanted, rows), Self::Edge(_, others)) => {
                if let Some(edge) = &others[other_row]
                    && rows[row].as_ref().is_none_or(|known| edge.cmp(known) == *wanted)
                {
                    rows[row] = Some(edge.clone());
                }
            }
            _ => unreachable!("tables of one window have the same columns"),
        }
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Count(rows) => write_number(rows[row], out),
            Self::Sum(rows) => rows[row].write(out),
            Self::Extreme(_, rows) => {
                out.push(u8::from(rows[row].is_some()));
                rows[row].iter().for_each(|number| number.write(out));
            }
            Self::Quantile(rows) => rows[row].write(out),
            Self::Distinct(rows) => rows[row].write(out),
            Self::Edge(_, rows) => {
                out.push(u8::from(rows[row].is_some()));
                if let Some(edge) = &rows[row] {
                    out.extend_from_slice(&edge.time.to_le_bytes());
                    write_bytes(edge.lane.as_bytes(), out);
                    write_number(edge.offset, out);
                    write_bytes(&edge.value, out);
                }
            }
        }
    }

    fn read(&mut self, row: usize, reader: &mut Reader<'_>) -> Result<(), Damaged> {
        match self {
            Self::Count(rows) => rows[row] = reader.number()?,
            Self::Sum(rows) => rows[row] = Sum::read(reader)?,
            Self::Extreme(_, rows) => {
                rows[row] = if reader.byte()? == 1 { Some(Number::read(reader)?) } else { None };
            }
            Self::Quantile(rows) => rows[row] = Sketch::read(reader)?,
            Self::Distinct(rows) => rows[row] = Distinct::read(reader)?,
            Self::Edge(_, rows) => {
                if reader.byte()? == 1 {
                    let time = reader.i64()?;
                    let lane = std::str::from_utf8(reader.bytes()?).map_err(|_| Damaged)?.into();
                    let offset = reader.number()?;
                    rows[row] = Some(Box::new(Edge { time, lane, offset, value: reader.bytes()?.into() }));
                }
            }
        }
        Ok(())
    }

    /// The outcome of an aggregate for a key, of a window of `seconds`.
    pub fn value(&self, row: usize, function: Function, seconds: f64) -> Value {
        match (self, function) {
            (Self::Count(rows), Function::Rate) => float(rows[row] as f64 / seconds),
            (Self::Count(rows), _) => Value::Integer(rows[row] as i64),
            (Self::Sum(rows), Function::Mean) => rows[row].mean(),
            (Self::Sum(rows), _) => rows[row].sum(),
            (Self::Extreme(_, rows), _) => rows[row].map_or(Value::Null, Number::to_value),
            (Self::Quantile(rows), Function::Quantile(q)) => rows[row].quantile(q),
            (Self::Quantile(_), _) => unreachable!("sketches are kept for quantiles alone"),
            (Self::Distinct(rows), _) => Value::Integer(rows[row].count() as i64),
            (Self::Edge(_, rows), _) => {
                rows[row].as_ref().and_then(|edge| key::decode(&mut &edge.value[..])).unwrap_or(Value::Null)
            }
        }
    }
}

/// Takes `number` if it is further out.
#[inline]
pub(super) fn fold_extreme(wanted: Ordering, extreme: &mut Option<Number>, number: Number) {
    if extreme.is_none_or(|known| number.order(known) == wanted) {
        *extreme = Some(number);
    }
}

/// Accumulators by key. Keys stand one after the other in one buffer and the hash table holds row numbers alone, so that a key of a
/// counting window costs its own bytes and some thirty more.
pub(super) struct Table {
    index: HashTable<u32>,
    hasher: RandomState,
    /// Where the key of each row ends in `keys`.
    ends: Vec<u32>,
    keys: Vec<u8>,
    /// The key group of each row.
    groups: Vec<u8>,
    pub columns: Vec<Column>,
    /// What accumulators hold beside their places in the columns.
    heap: usize,
}

impl Table {
    /// The hasher is seeded at random and shared by all tables of an operator, for keys come from outside; nothing goes by the
    /// order of the hash table.
    pub fn new(aggregates: &[Aggregate], hasher: &RandomState) -> Self {
        Self {
            index: HashTable::new(),
            hasher: hasher.clone(),
            ends: Vec::new(),
            keys: Vec::new(),
            groups: Vec::new(),
            columns: aggregates.iter().map(|aggregate| Column::of(aggregate.function)).collect(),
            heap: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub fn key(&self, row: usize) -> &[u8] {
        key_of(&self.ends, &self.keys, row)
    }

    pub fn group(&self, row: usize) -> u8 {
        self.groups[row]
    }

    pub fn set_group(&mut self, row: usize, group: u8) {
        self.groups[row] = group;
    }

    #[inline]
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let found = self.index.find(self.hasher.hash_one(key), |row| self.key(*row as usize) == key);
        found.map(|row| *row as usize)
    }

    /// The row of a key, which is added if `may_add` says so and there is room.
    #[inline]
    pub fn row(&mut self, key: &[u8], group: u8, may_add: impl FnOnce() -> bool) -> Option<usize> {
        let hash = self.hasher.hash_one(key);
        let (ends, keys) = (&self.ends, &self.keys);
        if let Some(row) = self.index.find(hash, |row| key_of(ends, keys, *row as usize) == key) {
            return Some(*row as usize);
        }
        let end = u32::try_from(self.keys.len() + key.len()).ok()?;
        let row = u32::try_from(self.ends.len()).ok()?;
        if !may_add() {
            return None;
        }
        self.keys.extend_from_slice(key);
        self.ends.push(end);
        self.groups.push(group);
        self.columns.iter_mut().for_each(Column::push);
        let (ends, keys, hasher) = (&self.ends, &self.keys, &self.hasher);
        self.index.insert_unique(hash, row, |row| hasher.hash_one(key_of(ends, keys, *row as usize)));
        Some(row as usize)
    }

    /// Adds what `other` holds in a row to a row of this one.
    pub fn merge_row(&mut self, row: usize, other: &Self, other_row: usize) {
        for (column, others) in self.columns.iter_mut().zip(&other.columns) {
            let before = column.heap(row);
            column.merge(row, others, other_row);
            self.heap = (self.heap + column.heap(row)).saturating_sub(before);
        }
    }

    /// Adds all of `other`, whose keys must be written as this one's.
    pub fn merge(&mut self, other: &Self) {
        for other_row in 0..other.len() {
            let row = self.row(other.key(other_row), other.group(other_row), || true);
            // A table of 4 GiB of keys cannot take more; no bound that can be configured is as high.
            if let Some(row) = row {
                self.merge_row(row, other, other_row);
            }
        }
    }

    /// The rows in the order of their keys.
    pub fn sorted(&self) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..self.ends.len() as u32).collect();
        rows.sort_unstable_by(|left, right| self.key(*left as usize).cmp(self.key(*right as usize)));
        rows
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        let columns: usize = self
            .columns
            .iter()
            .map(|column| each!(column, rows => rows.capacity() * size_of_val(&rows[..]).checked_div(rows.len()).unwrap_or(0)))
            .sum();
        columns + self.heap + self.keys.capacity() + self.ends.capacity() * 5 + self.index.capacity() * 40 / 7
    }

    /// Writes a row: its key behind its length, and its accumulators.
    pub fn write_row(&self, row: usize, out: &mut Vec<u8>) {
        write_bytes(self.key(row), out);
        self.columns.iter().for_each(|column| column.write(row, out));
    }

    /// Reads what [`Self::write_row`] wrote, of a key that is not in it yet.
    pub fn read_row(&mut self, group: u8, reader: &mut Reader<'_>) -> Result<(), Damaged> {
        let key = reader.bytes()?;
        if self.find(key).is_some() {
            return Err(Damaged);
        }
        let row = self.row(key, group, || true).ok_or(Damaged)?;
        for column in &mut self.columns {
            column.read(row, reader)?;
            self.heap += column.heap(row);
        }
        Ok(())
    }
}

#[inline]
fn key_of<'a>(ends: &[u32], keys: &'a [u8], row: usize) -> &'a [u8] {
    let start = if row == 0 { 0 } else { ends[row - 1] as usize };
    &keys[start..ends[row] as usize]
}
