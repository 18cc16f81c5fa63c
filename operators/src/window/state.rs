//! The half of a window that keeps state: panes, what closes them, and their snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value as Json, json as as_json};
use tocsin_pipeline::event::{Batch, Lane};
use tocsin_pipeline::operator::{Input, KEY_GROUPS, Operator, Output, Reason, StateError};
use tocsin_pipeline::time::Timestamp;
use vrl::value::{KeyString, ObjectMap, Value};

use super::fold::{LATE, PLACE_BYTES, Partial, Place, Plan};
use super::table::Table;
use crate::key::{self, Damaged, Reader, write_number};

/// Who asks how a window stands is shown so many windows that are open, and so many records of each; of one with more keys than
/// [`KEYS_SHOWN`] none, as it would take too long.
const WINDOWS_SHOWN: usize = 12;
const RECORDS_SHOWN: usize = 100;
const KEYS_SHOWN: usize = 100_000;
/// The port of late records.
const LATE_PORT: usize = 1;

pub(super) struct Window {
    plan: Arc<Plan>,
    lane: Arc<Lane>,
    /// The names under which records hold the parts of their key.
    names: Vec<KeyString>,
    max_keys: usize,
    max_bytes: usize,
    panes: BTreeMap<Place, Table>,
    /// The end of the last window that has closed; `i64::MIN` before the first has.
    closed: i64,
    /// Rows of all panes.
    keys: usize,
    /// Bytes of all panes, as of the last batch.
    bytes: usize,
    /// The key groups that the next snapshot must hold.
    changed: [bool; KEY_GROUPS as usize],
    /// When the newest batch came, which the records made of it count as their own arrival.
    arrival: Timestamp,
}

impl Window {
    pub fn new(plan: Arc<Plan>, lane: Arc<Lane>, names: &[String], max_keys: usize, max_bytes: usize) -> Self {
        Self {
            plan,
            lane,
            names: names.iter().map(|name| name.as_str().into()).collect(),
            max_keys,
            max_bytes,
            panes: BTreeMap::new(),
            closed: i64::MIN,
            keys: 0,
            bytes: 0,
            // The piece of group 0 is never without its mark.
            changed: std::array::from_fn(|group| group == 0),
            arrival: Timestamp(0),
        }
    }

    /// Adds what was folded of a batch. `watermark` is that of its lane just before the batch.
    fn add(&mut self, partial: Partial, watermark: Timestamp, output: &mut Output) {
        let Partial { places, table, records, mut late, too_long, expression_errors, rows } = partial;
        output.expression_errors += expression_errors;
        // A window is closed for a record by the watermark of its lane or by having been emitted (the merged watermark may be ahead of
        // that of a lane which was idle). What both of them close is closed for all records of the batch; what the batch's own
        // earlier records close was found when it was folded.
        let closed = match watermark {
            Timestamp::MIN => self.closed,
            watermark => self.plan.closed_by(watermark).max(self.closed),
        };
        let closed = closed.max(i64::MIN / 2);
        let places: Vec<_> = places.iter().map(|place| self.place_now(*place, closed)).collect();
        let touched: BTreeSet<_> = places.iter().flatten().copied().collect();
        let before = self.bytes_of(&touched);
        let (mut aggregated, mut refused) = (0, too_long);
        for (row, count) in records.iter().enumerate() {
            let key = table.key(row);
            let number = u32::from_le_bytes(key[..PLACE_BYTES].try_into().expect("the length was cut"));
            let count = *count as usize;
            let Some(place) = places[number as usize] else {
                late += count;
                continue;
            };
            let pane = self.panes.entry(place).or_insert_with(|| Table::new(&self.plan.aggregates, &self.plan.hasher));
            let has_room = self.keys < self.max_keys && self.bytes < self.max_bytes;
            let keys_before = pane.len();
            match pane.row(&key[PLACE_BYTES..], table.group(row), || has_room) {
                Some(pane_row) => {
                    pane.merge_row(pane_row, &table, row);
                    self.keys += pane.len() - keys_before;
                    self.changed[usize::from(table.group(row))] = true;
                    aggregated += count;
                }
                None => refused += count,
            }
        }
        if refused > too_long {
            self.panes.retain(|_, pane| pane.len() > 0);
        }
        self.bytes = self.bytes.saturating_sub(before) + self.bytes_of(&touched);
        output.drop(Reason::Aggregated, aggregated);
        output.drop(Reason::StateFull, refused);
        match rows {
            Some((batch, rows)) => {
                let is_late = |row: &u32| match rows[*row as usize] {
                    LATE => true,
                    row => {
                        (row as usize) < table.len() && {
                            let key = table.key(row as usize);
                            let number = u32::from_le_bytes(key[..PLACE_BYTES].try_into().expect("the length was cut"));
                            places[number as usize].is_none()
                        }
                    }
                };
                if late > 0 {
                    output.emit(LATE_PORT, batch.select(batch.rows().filter(is_late).collect()));
                }
            }
            None => output.drop(Reason::Late, late),
        }
    }

    fn bytes_of(&self, places: &BTreeSet<Place>) -> usize {
        places.iter().filter_map(|place| self.panes.get(place)).map(Table::bytes).sum()
    }

    /// Where records of a place go when windows until `closed` have closed for them; nowhere if all of theirs have.
    fn place_now(&self, place: Place, closed: i64) -> Option<Place> {
        let first_end = self.plan.first_end(place.start, closed.max(place.first_end - self.plan.every))?;
        // What no window can tell any more from the pane's other records is kept with them.
        let is_first = self.closed != i64::MIN && first_end <= self.closed + self.plan.every;
        let first_end = if is_first { place.start + self.plan.every } else { first_end };
        Some(Place { start: place.start, first_end })
    }

    /// Emits the window that ends at `end`.
    fn close(&self, end: i64, made: &mut Vec<(Timestamp, Value)>) {
        let start = end - self.plan.size;
        let from = Place { start, first_end: i64::MIN };
        let mut members = self.panes.range(from..).take_while(|(place, _)| place.start < end);
        let mut members: Vec<_> = members.by_ref().filter(|(place, _)| place.first_end <= end).map(|it| it.1).collect();
        let merged;
        let table = match members.len() {
            0 => return,
            1 => members.remove(0),
            _ => {
                let mut table = Table::new(&self.plan.aggregates, &self.plan.hasher);
                members.iter().for_each(|member| table.merge(member));
                merged = table;
                &merged
            }
        };
        let text = |nanos: i64| Value::Bytes(Timestamp(nanos).to_string().into());
        let (window_start, window_end) = (text(start), text(end));
        let seconds = self.plan.size as f64 / 1e9;
        for row in table.sorted() {
            let row = row as usize;
            let mut record = ObjectMap::new();
            record.insert("window_start".into(), window_start.clone());
            record.insert("window_end".into(), window_end.clone());
            let mut rest = table.key(row);
            for name in &self.names {
                record.insert(name.clone(), key::decode(&mut rest).unwrap_or(Value::Null));
            }
            for (aggregate, column) in self.plan.aggregates.iter().zip(&table.columns) {
                record.insert(aggregate.name.as_str().into(), column.value(row, aggregate.function, seconds));
            }
            made.push((Timestamp(end), Value::Object(record)));
        }
    }

    /// The windows that are open, the next to close first, with what they would tell if they closed now of the keys of which one value is
    /// `key`.
    fn open_windows(&self, key: Option<&str>) -> Vec<Json> {
        let Some((first, _)) = self.panes.first_key_value() else { return Vec::new() };
        let next = (first.start + self.plan.every).max(self.closed.saturating_add(self.plan.every));
        let last = self.panes.last_key_value().map_or(next, |(place, _)| place.start.saturating_add(self.plan.size));
        let ends = (0..).map(|turn| next.saturating_add(self.plan.every.saturating_mul(turn)));
        let mut windows = Vec::new();
        for end in ends.take_while(|end| *end <= last).take(WINDOWS_SHOWN) {
            let mut made = Vec::new();
            if self.keys <= KEYS_SHOWN {
                self.close(end, &mut made);
            }
            let records = made.into_iter().filter_map(|(_, record)| {
                let mut text = Vec::new();
                tocsin_pipeline::json::write_value(&record, &mut text);
                serde_json::from_slice::<Json>(&text).ok()
            });
            let is_asked = |record: &Json| {
                key.is_none_or(|key| self.names.iter().any(|name| is_text(&record[name.as_str()], key)))
            };
            let records: Vec<_> = records.filter(is_asked).take(RECORDS_SHOWN).collect();
            let closes_at = Timestamp(end.saturating_add(self.plan.lateness));
            windows.push(as_json!({
                "window_end": Timestamp(end).to_string(),
                "closes_at": closes_at.to_string(),
                "records": records,
            }));
        }
        windows
    }

    /// Forgets the panes whose last window has closed.
    fn forget_panes(&mut self) {
        while let Some(entry) = self.panes.first_entry() {
            if entry.key().start + self.plan.size > self.closed {
                break;
            }
            let pane = entry.remove();
            self.keys -= pane.len();
            self.bytes = self.bytes.saturating_sub(pane.bytes());
            (0..pane.len()).for_each(|row| self.changed[usize::from(pane.group(row))] = true);
        }
    }
}

impl Operator for Window {
    fn on_input(&mut self, _: usize, input: Input, output: &mut Output) {
        match input {
            Input::Batch(batch) => {
                let watermark = match batch.seen_before {
                    Timestamp::MIN => Timestamp::MIN,
                    seen => seen.saturating_sub(batch.lane.out_of_order),
                };
                self.arrival = self.arrival.max(batch.arrival);
                let partial = self.plan.fold(batch);
                self.add(partial, watermark, output);
            }
            Input::Prepared(prepared) => {
                let watermark = prepared.watermark(Timestamp::MIN);
                self.arrival = self.arrival.max(prepared.arrival);
                let partial = prepared.content.downcast::<Partial>().expect("made by this window's Prepare");
                self.add(*partial, watermark, output);
            }
        }
    }

    fn on_watermark(&mut self, watermark: Timestamp, output: &mut Output) {
        if watermark == Timestamp::MIN {
            return;
        }
        let limit = if watermark == Timestamp::MAX { i64::MAX } else { self.plan.closed_by(watermark) };
        let mut made = Vec::new();
        // Only ends at which a window may hold something are visited, however long the stretch between them.
        while let Some((first, _)) = self.panes.first_key_value() {
            let next = (first.start + self.plan.every).max(self.closed.saturating_add(self.plan.every));
            if next > limit {
                break;
            }
            self.close(next, &mut made);
            self.closed = next;
            self.changed[0] = true;
            self.forget_panes();
        }
        // At the end of all input only what there was is closed, so that input that is appended later finds its windows open.
        if watermark != Timestamp::MAX && limit > self.closed {
            self.closed = limit;
            self.changed[0] = true;
        }
        if !made.is_empty() {
            output.make(made.len());
            output.emit(0, Batch::of_values(Arc::clone(&self.lane), made, self.arrival));
        }
    }

    fn next_deadline(&self) -> Timestamp {
        let Some((first, _)) = self.panes.first_key_value() else { return Timestamp::MAX };
        let next = (first.start + self.plan.every).max(self.closed.saturating_add(self.plan.every));
        Timestamp(next.saturating_add(self.plan.lateness))
    }

    /// The piece of group 0 starts with the end of the last window that closed, as 8 bytes. Then each piece holds, for each
    /// pane with keys of the group: its start and the end of the first window it counts for, 8 bytes each; how many keys; and for each of them its bytes behind
    /// their length and its accumulators in the order of the aggregates' names, each as its type describes.
    /// Numbers of 8 bytes are written lowest first, lengths and counts as LEB128.
    fn snapshot(&mut self, full: bool, piece: &mut dyn FnMut(u16, Vec<u8>)) {
        let mut pieces: [Vec<u8>; KEY_GROUPS as usize] = [const { Vec::new() }; KEY_GROUPS as usize];
        let is_wanted = self.changed.map(|changed| full || changed);
        if is_wanted[0] {
            pieces[0].extend_from_slice(&self.closed.to_le_bytes());
        }
        for (place, pane) in &self.panes {
            let mut counts = [0u64; KEY_GROUPS as usize];
            (0..pane.len()).for_each(|row| counts[usize::from(pane.group(row))] += 1);
            for (group, count) in counts.iter().enumerate() {
                if *count > 0 && is_wanted[group] {
                    let out = &mut pieces[group];
                    out.extend_from_slice(&place.start.to_le_bytes());
                    out.extend_from_slice(&place.first_end.to_le_bytes());
                    write_number(*count, out);
                }
            }
            for row in 0..pane.len() {
                let group = usize::from(pane.group(row));
                if is_wanted[group] {
                    pane.write_row(row, &mut pieces[group]);
                }
            }
        }
        for (group, bytes) in (0..).zip(pieces) {
            if std::mem::take(&mut self.changed[usize::from(group)]) || full && !bytes.is_empty() {
                piece(group, bytes);
            }
        }
    }

    fn restore(&mut self, group: u16, piece: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader(piece);
        if group == 0 && !reader.is_empty() {
            self.closed = reader.i64()?;
        }
        let group = u8::try_from(group).map_err(|_| Damaged)?;
        while !reader.is_empty() {
            let place = Place { start: reader.i64()?, first_end: reader.i64()? };
            if !self.plan.is_place(place) {
                return Err(StateError("the saved panes are not those of this window".into()));
            }
            let pane = self.panes.entry(place).or_insert_with(|| Table::new(&self.plan.aggregates, &self.plan.hasher));
            for _ in 0..reader.count(1)? {
                pane.read_row(group, &mut reader)?;
                self.keys += 1;
            }
        }
        self.bytes = self.panes.values().map(Table::bytes).sum();
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.bytes
    }

    fn view(&self, question: &Json) -> Json {
        as_json!({
            "window": &*self.lane.source,
            "closed": if self.closed == i64::MIN { Json::Null } else { Timestamp(self.closed).to_string().into() },
            "keys": self.keys,
            "open": self.open_windows(question["key"].as_str()),
        })
    }
}

/// Whether a value is written like this.
fn is_text(value: &Json, text: &str) -> bool {
    match value {
        Json::String(value) => value == text,
        value => {
            let written = value.to_string();
            written == text
        }
    }
}
