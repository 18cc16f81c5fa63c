//! What a window that is told anew needs to know of the late records that change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tocsin_pipeline::operator::key_group;

use super::fold::{Late, PLACE_BYTES, Place, Plan};
use super::table::Table;
use crate::key::{Damaged, Reader, write_bytes, write_number};

/// About what a count takes beside its key.
const COUNT_BYTES: usize = 64;

/// Where a late record stands among the others: by the watermark that it came behind, then in the order of its lane. So updates come in one
/// order, whatever batches the records were in and how lanes were interleaved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    watermark: i64,
    lane: Arc<str>,
    number: u64,
}

/// A late record that waits for its turn.
struct Held {
    place: Place,
    /// What it adds, in a row of this table.
    table: Arc<Table>,
    row: usize,
    bytes: usize,
}

/// A late record whose turn has come.
pub(super) struct Due {
    pub late: Late,
    table: Arc<Table>,
    pub row: usize,
}

impl Due {
    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn key(&self) -> &[u8] {
        &self.table.key(self.row)[PLACE_BYTES..]
    }
}

/// Late records that wait until all lanes have come to where they came, and how often each window was told anew.
#[derive(Default)]
pub(super) struct Updates {
    held: BTreeMap<Turn, Held>,
    next: u64,
    bytes: usize,
    /// By the window's end, then by key.
    told: BTreeMap<i64, BTreeMap<Box<[u8]>, u64>>,
}

impl Updates {
    /// How many records wait.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// About how much memory they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets a record of a lane wait for its turn: a row of a table in which each key stands behind [`PLACE_BYTES`].
    pub fn hold(&mut self, lane: &Arc<str>, late: Late, table: &Arc<Table>, row: usize, bytes: usize) {
        let turn = Turn { watermark: late.watermark, lane: Arc::clone(lane), number: self.next };
        self.next = self.next.saturating_add(1);
        self.bytes += bytes;
        self.held.insert(turn, Held { place: late.place, table: Arc::clone(table), row, bytes });
    }

    /// The watermark that the next record waits for.
    pub fn next_turn(&self) -> Option<i64> {
        self.held.first_key_value().map(|(turn, _)| turn.watermark)
    }

    /// The next record, whose turn it is.
    pub fn take(&mut self) -> Option<Due> {
        let (Turn { watermark, .. }, Held { place, table, row, bytes }) = self.held.pop_first()?;
        self.bytes -= bytes;
        Some(Due { late: Late { place, watermark }, table, row })
    }

    /// Counts one more time that a window is told anew; gives the count.
    pub fn count(&mut self, end: i64, key: &[u8]) -> u64 {
        let keys = self.told.entry(end).or_default();
        if let Some(count) = keys.get_mut(key) {
            *count = count.saturating_add(1);
            return *count;
        }
        self.bytes += key.len() + COUNT_BYTES;
        keys.insert(key.into(), 1);
        1
    }

    /// Forgets how often the windows that have closed were told; gives the keys.
    pub fn forget(&mut self, closed: i64) -> Vec<Box<[u8]>> {
        let open = self.told.split_off(&closed.saturating_add(1));
        let closed = std::mem::replace(&mut self.told, open).into_values();
        let keys: Vec<_> = closed.flat_map(BTreeMap::into_keys).collect();
        self.bytes -= keys.iter().map(|key| key.len() + COUNT_BYTES).sum::<usize>();
        keys
    }

    /// What is known of each key group: how many records wait; for each of them the watermark it came behind, the start of its pane and the end
    /// of the first window that it counts for, 8 bytes each, its lane behind its length, its number in it, its key and its
    /// accumulators; then how many counts there are; for each of them the end of the window in 8 bytes, the key behind its length, and
    /// the count.
    pub fn pieces(&self) -> BTreeMap<u16, Vec<u8>> {
        let mut parts: BTreeMap<u16, [(u64, Vec<u8>); 2]> = BTreeMap::new();
        for (turn, held) in &self.held {
            let [(count, out), _] = parts.entry(u16::from(held.table.group(held.row))).or_default();
            *count += 1;
            for time in [turn.watermark, held.place.start, held.place.first_end] {
                out.extend_from_slice(&time.to_le_bytes());
            }
            write_bytes(turn.lane.as_bytes(), out);
            write_number(turn.number, out);
            held.table.write_row(held.row, out);
        }
        for (end, key, told) in self.told.iter().flat_map(|(end, keys)| keys.iter().map(move |(key, n)| (end, key, n)))
        {
            let [_, (count, out)] = parts.entry(key_group(key)).or_default();
            *count += 1;
            out.extend_from_slice(&end.to_le_bytes());
            write_bytes(key, out);
            write_number(*told, out);
        }
        let joined = |parts: [(u64, Vec<u8>); 2]| {
            let mut piece = Vec::new();
            for (count, part) in parts {
                write_number(count, &mut piece);
                piece.extend_from_slice(&part);
            }
            piece
        };
        parts.into_iter().map(|(group, parts)| (group, joined(parts))).collect()
    }

    /// Reads what [`Self::pieces`] wrote.
    pub fn read(&mut self, plan: &Plan, group: u8, reader: &mut Reader<'_>) -> Result<(), Damaged> {
        for _ in 0..reader.count(1)? {
            let (watermark, place) = (reader.i64()?, Place { start: reader.i64()?, first_end: reader.i64()? });
            let lane = std::str::from_utf8(reader.bytes()?).map_err(|_| Damaged)?.into();
            let number = reader.number()?;
            let mut table = Table::new(&plan.aggregates, &plan.hasher);
            table.read_row(group, reader)?;
            if !plan.is_place(place) || table.key(0).len() < PLACE_BYTES {
                return Err(Damaged);
            }
            self.next = self.next.max(number.saturating_add(1));
            let bytes = table.bytes();
            self.bytes += bytes;
            self.held.insert(Turn { watermark, lane, number }, Held { place, table: Arc::new(table), row: 0, bytes });
        }
        for _ in 0..reader.count(1)? {
            let (end, key, count) = (reader.i64()?, reader.bytes()?, reader.number()?);
            if self.told.entry(end).or_default().insert(key.into(), count).is_none() {
                self.bytes += key.len() + COUNT_BYTES;
            }
        }
        Ok(())
    }
}
