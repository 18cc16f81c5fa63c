//! The half of a window that keeps state: panes, what closes them, and their snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value as Json, json as as_json};
use tocsin_pipeline::event::{Batch, Lane};
use tocsin_pipeline::operator::{Input, KEY_GROUPS, Operator, Output, Reason, StateError, key_group};
use tocsin_pipeline::time::Timestamp;
use vrl::value::{KeyString, ObjectMap, Value};

use super::fold::{ENDED, Each, Known, LATE, Late, PLACE_BYTES, Partial, Place, Plan};
use super::table::Table;
use super::updates::{Due, Updates};
use crate::is_named;
use crate::key::{self, Damaged, Reader, write_number};

/// Who asks how a window stands is shown so many windows that are open, and so many records of each; of one with more keys than
/// [`KEYS_SHOWN`] none, as it would take too long.
const WINDOWS_SHOWN: usize = 12;
const RECORDS_SHOWN: usize = 100;
const KEYS_SHOWN: usize = 100_000;
/// The port of late records.
const LATE_PORT: usize = 1;
/// In a snapshot: in place of the start of a pane, before what is known of updates. No pane starts there.
const UPDATES: i64 = i64::MIN;

/// A record that is made: its event time, the watermark that it comes behind, and what it holds.
type Made = (Timestamp, Timestamp, Value);

pub(super) struct Window {
    plan: Arc<Plan>,
    lane: Arc<Lane>,
    /// The names under which records hold the parts of their key.
    names: Vec<KeyString>,
    max_keys: usize,
    max_bytes: usize,
    panes: BTreeMap<Place, Table>,
    /// The end of the last window that was told; `i64::MIN` before the first was.
    told: i64,
    /// The end of the last window that has closed, so that nothing can change it any more: the same, unless windows are told anew.
    closed: i64,
    /// The merged watermark, as far as it was told since the last start.
    watermark: i64,
    updates: Updates,
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
            told: i64::MIN,
            closed: i64::MIN,
            watermark: i64::MIN,
            updates: Updates::default(),
            keys: 0,
            bytes: 0,
            // The piece of group 0 is never without its mark.
            changed: std::array::from_fn(|group| group == 0),
            arrival: Timestamp(0),
        }
    }

    /// Adds what was folded of a batch. `watermark` is that of its lane just before the batch.
    fn add(&mut self, partial: Partial, lane: &Lane, watermark: Timestamp, output: &mut Output) {
        let Partial { places, table, records, mut late, mut too_long, expression_errors, rows } = partial;
        // Which keys there is room for must not depend on what else is in the batch.
        if let Some((batch, _)) = &rows
            && self.plan.updates
            && batch.len() > 1
            && self.keys + self.updates.len() + batch.len() > self.max_keys
        {
            for row in batch.rows() {
                self.add(self.plan.fold(batch.select(vec![row])), lane, watermark, output);
            }
            return;
        }
        output.expression_errors += expression_errors;
        // A window is closed for a record by the watermark of its lane or by having been emitted (the merged watermark may be ahead of
        // that of a lane which was idle). What both of them close is closed for all records of the batch; what the batch's own
        // earlier records close was found when it was folded.
        let closed = match watermark {
            Timestamp::MIN => self.closed,
            watermark => self.plan.closed_by(watermark).max(self.closed),
        };
        let closed = closed.max(i64::MIN / 2);
        let fates: Vec<_> = places.iter().map(|place| self.fate(*place, closed, watermark)).collect();
        let touched: BTreeSet<_> = fates.iter().filter_map(Fate::place).collect();
        let before = self.bytes_of(&touched);
        let (held, held_bytes) = (self.updates.len(), self.updates.bytes());
        let (mut aggregated, mut refused) = (0, 0);
        for (row, count) in records.iter().enumerate() {
            let key = table.key(row);
            let count = *count as usize;
            let place = match fates[number_of(key)] {
                Fate::In(place) => place,
                Fate::Late => {
                    late += count;
                    continue;
                }
                Fate::Ended => continue,
            };
            let pane = self.panes.entry(place).or_insert_with(|| Table::new(&self.plan.aggregates, &self.plan.hasher));
            let has_room = self.keys + held < self.max_keys && self.bytes + held_bytes < self.max_bytes;
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
        if refused > 0 {
            self.panes.retain(|_, pane| pane.len() > 0);
        }
        self.bytes = self.bytes.saturating_sub(before) + self.bytes_of(&touched);
        if let Some((batch, rows)) = rows {
            let fate = |row: u32| match rows[row as usize] {
                LATE => Some(&Fate::Late),
                ENDED => Some(&Fate::Ended),
                row => ((row as usize) < table.len()).then(|| &fates[number_of(table.key(row as usize))]),
            };
            let ended: Vec<_> = batch.rows().filter(|row| matches!(fate(*row), Some(Fate::Ended))).collect();
            let mut later = Vec::new();
            if !ended.is_empty() {
                let known = Known { watermark, told: self.told, closed };
                let each = self.plan.fold_each(&batch, ended, known);
                let counted = each.records.len();
                too_long += each.too_long;
                late += each.late.len();
                later.clone_from(&each.late);
                let full = self.hold(&format!("{}\0{}", lane.source, lane.partition).into(), each);
                aggregated += counted - full;
                refused += full;
            }
            if late > 0 && self.plan.keeps_late {
                let is_late = |row: &u32| matches!(fate(*row), Some(Fate::Late)) || later.binary_search(row).is_ok();
                output.emit(LATE_PORT, batch.select(batch.rows().filter(is_late).collect()));
                late = 0;
            }
        }
        output.drop(Reason::Late, late);
        output.drop(Reason::Aggregated, aggregated);
        output.drop(Reason::StateFull, refused + too_long);
        // Those whose turn it is.
        self.advance(self.watermark, self.told, output);
    }

    /// What becomes of the records of a place when windows until `closed` have closed for them, and their lane's watermark was there.
    fn fate(&self, place: Place, closed: i64, watermark: Timestamp) -> Fate {
        let Some(first_end) = self.plan.first_end(place.start, closed.max(place.first_end - self.plan.every)) else {
            return Fate::Late;
        };
        if self.plan.updates && first_end <= watermark.0.max(self.told) {
            return Fate::Ended;
        }
        Fate::In(self.kept(Place { start: place.start, first_end }))
    }

    /// Where records of a place are kept: what no window can tell any more from the pane's other records is kept with them.
    fn kept(&self, place: Place) -> Place {
        let is_first = self.closed != i64::MIN && place.first_end <= self.closed + self.plan.every;
        let first_end = if is_first { place.start + self.plan.every } else { place.first_end };
        Place { start: place.start, first_end }
    }

    /// Lets late records that count each by itself wait for their turn; gives how many there is no room for.
    fn hold(&mut self, lane: &Arc<str>, each: Each) -> usize {
        let Each { table: found, records, .. } = each;
        // What is not taken must not be kept either.
        let mut table = Table::new(&self.plan.aggregates, &self.plan.hasher);
        let (count, has_bytes) = (records.len(), self.state_bytes() < self.max_bytes);
        let mut taken = Vec::new();
        for (row, late) in records.into_iter().enumerate().filter(|_| has_bytes) {
            let pane = self.panes.get(&self.kept(late.place));
            let is_known = pane.is_some_and(|pane| pane.find(&found.key(row)[PLACE_BYTES..]).is_some());
            let has_keys = is_known || self.keys + self.updates.len() + taken.len() < self.max_keys;
            if let Some(at) = table.row(found.key(row), found.group(row), || has_keys) {
                table.merge_row(at, &found, row);
                taken.push(late);
            }
        }
        let (table, full) = (Arc::new(table), count - taken.len());
        let bytes = table.bytes() / taken.len().max(1);
        for (row, late) in taken.into_iter().enumerate() {
            self.changed[usize::from(table.group(row))] = true;
            self.updates.hold(lane, late, &table, row, bytes);
        }
        full
    }

    /// Tells the windows that end at `until` or before, and tells anew what the late records change whose turn has come by `watermark`:
    /// in the order in which it would have come if each record had been a batch.
    fn advance(&mut self, watermark: i64, until: i64, output: &mut Output) {
        let mut made = Vec::new();
        loop {
            let end = self.next_end().filter(|end| *end <= until);
            let turn = self.updates.next_turn().filter(|turn| *turn <= watermark);
            match (end, turn) {
                (Some(end), turn) if turn.is_none_or(|turn| end <= turn) => {
                    self.tell(end, &mut made);
                    self.told = end;
                    self.changed[0] = true;
                    if !self.plan.updates {
                        self.close(end);
                    }
                }
                (_, Some(turn)) => {
                    // What ended before it had nothing to tell.
                    self.told = self.told.max(self.plan.told_by(Timestamp(turn)));
                    self.changed[0] = true;
                    let due = self.updates.take().expect("it was looked at");
                    self.update(&due, &mut made);
                }
                (_, None) => break,
            }
        }
        if !made.is_empty() {
            output.make(made.len());
            output.emit(0, Batch::of_values_behind(Arc::clone(&self.lane), made, self.arrival));
        }
    }

    fn bytes_of(&self, places: &BTreeSet<Place>) -> usize {
        places.iter().filter_map(|place| self.panes.get(place)).map(Table::bytes).sum()
    }

    /// The panes of the window that ends at `end`, without those whose records are late for it.
    fn members(&self, end: i64) -> impl Iterator<Item = &Table> {
        let from = Place { start: end - self.plan.size, first_end: i64::MIN };
        let panes = self.panes.range(from..).take_while(move |(place, _)| place.start < end);
        panes.filter(move |(place, _)| place.first_end <= end).map(|(_, pane)| pane)
    }

    /// The end of the next window that is to be told and may hold something. Others are not visited, however long the stretch
    /// between them.
    fn next_end(&self) -> Option<i64> {
        let last_told = Place { start: self.told.saturating_sub(self.plan.size), first_end: i64::MAX };
        let (first, _) = self.panes.range((Bound::Excluded(last_told), Bound::Unbounded)).next()?;
        Some((first.start + self.plan.every).max(self.told.saturating_add(self.plan.every)))
    }

    /// Tells the window that ends at `end`.
    fn tell(&self, end: i64, made: &mut Vec<Made>) {
        let mut members: Vec<_> = self.members(end).collect();
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
        let before = Timestamp(end.saturating_sub(1));
        made.extend(
            table.sorted().into_iter().map(|row| (Timestamp(end), before, self.record(table, row as usize, end, None))),
        );
    }

    /// Adds a late record and tells its windows anew that had ended before it.
    fn update(&mut self, due: &Due, made: &mut Vec<Made>) {
        let (Late { place, watermark }, group) = (due.late, due.table().group(due.row));
        self.changed[usize::from(group)] = true;
        let kept = self.kept(place);
        let pane = self.panes.entry(kept).or_insert_with(|| Table::new(&self.plan.aggregates, &self.plan.hasher));
        let (keys_before, bytes_before) = (pane.len(), pane.bytes());
        // There was room when it came.
        if let Some(row) = pane.row(due.key(), group, || true) {
            pane.merge_row(row, due.table(), due.row);
        }
        self.keys += pane.len() - keys_before;
        self.bytes = (self.bytes + pane.bytes()).saturating_sub(bytes_before);
        // The key in all panes of all its windows.
        let from = Place { start: place.first_end - self.plan.size, first_end: i64::MIN };
        let panes = self.panes.range(from..).filter_map(|(place, pane)| Some((*place, pane, pane.find(due.key())?)));
        let panes: Vec<_> = panes.collect();
        // The last window that holds something of it and was told.
        let told = self.plan.told_by(Timestamp(watermark));
        let latest = panes.iter().rev().find(|(place, ..)| place.first_end <= told);
        let latest = latest.map_or(i64::MIN, |(place, ..)| told.min(place.start + self.plan.size));
        let last = watermark.min(place.start + self.plan.size);
        let mut end = place.first_end;
        while end <= last {
            let mut table = Table::new(&self.plan.aggregates, &self.plan.hasher);
            let row = table.row(due.key(), group, || true).expect("an empty table has room");
            for (place, pane, from) in &panes {
                if (end - self.plan.size..end).contains(&place.start) && place.first_end <= end {
                    table.merge_row(row, pane, *from);
                }
            }
            let update = Update { count: self.updates.count(end, due.key()), is_superseded: latest > end };
            made.push((Timestamp(end), Timestamp(watermark), self.record(&table, row, end, Some(update))));
            end += self.plan.every;
        }
    }

    /// What is told of a key in the window that ends at `end`.
    fn record(&self, table: &Table, row: usize, end: i64, update: Option<Update>) -> Value {
        let text = |nanos: i64| Value::Bytes(Timestamp(nanos).to_string().into());
        let seconds = self.plan.size as f64 / 1e9;
        let mut record = ObjectMap::new();
        record.insert("window_start".into(), text(end - self.plan.size));
        record.insert("window_end".into(), text(end));
        if let Some(Update { count, is_superseded }) = update {
            record.insert("update".into(), Value::Integer(count as i64));
            record.insert("superseded".into(), Value::Boolean(is_superseded));
        }
        let mut rest = table.key(row);
        for name in &self.names {
            record.insert(name.clone(), key::decode(&mut rest).unwrap_or(Value::Null));
        }
        for (aggregate, column) in self.plan.aggregates.iter().zip(&table.columns) {
            record.insert(aggregate.name.as_str().into(), column.value(row, aggregate.function, seconds));
        }
        Value::Object(record)
    }

    /// The windows that are not told yet, the next first, with what they would tell now of the keys of which one value is `key`.
    fn open_windows(&self, key: Option<&str>) -> Vec<Json> {
        let Some(next) = self.next_end() else { return Vec::new() };
        let last = self.panes.last_key_value().map_or(next, |(place, _)| place.start.saturating_add(self.plan.size));
        let ends = (0..).map(|turn| next.saturating_add(self.plan.every.saturating_mul(turn)));
        let mut windows = Vec::new();
        for end in ends.take_while(|end| *end <= last).take(WINDOWS_SHOWN) {
            let mut made = Vec::new();
            if self.keys <= KEYS_SHOWN {
                self.tell(end, &mut made);
            }
            let records = made.into_iter().filter_map(|(_, _, record)| {
                let mut text = Vec::new();
                tocsin_pipeline::json::write_value(&record, &mut text);
                serde_json::from_slice::<Json>(&text).ok()
            });
            let names_of = |record: &Json| -> Json {
                let names = self.names.iter().map(|name| (name.to_string(), record[name.as_str()].clone()));
                Json::Object(names.collect())
            };
            let is_asked = |record: &Json| key.is_none_or(|key| is_named(key, &names_of(record)));
            let records: Vec<_> = records.filter(is_asked).take(RECORDS_SHOWN).collect();
            let closes_at = Timestamp(end.saturating_add(self.plan.told_after()));
            windows.push(as_json!({
                "window_end": Timestamp(end).to_string(),
                "closes_at": closes_at.to_string(),
                "records": records,
            }));
        }
        windows
    }

    /// Forgets what only windows need that end at `closed` or before.
    fn close(&mut self, closed: i64) {
        if closed <= self.closed {
            return;
        }
        self.closed = closed;
        self.changed[0] = true;
        while let Some(entry) = self.panes.first_entry() {
            if entry.key().start + self.plan.size > closed {
                break;
            }
            let pane = entry.remove();
            self.keys -= pane.len();
            self.bytes = self.bytes.saturating_sub(pane.bytes());
            (0..pane.len()).for_each(|row| self.changed[usize::from(pane.group(row))] = true);
        }
        for key in self.updates.forget(closed) {
            self.changed[usize::from(key_group(&key))] = true;
        }
    }

    /// Where windows are told once, those that were told already are told again when they close, and nothing waits for its turn.
    fn restore_updates(&mut self, told: i64, group: u8, reader: &mut Reader<'_>) -> Result<(), Damaged> {
        self.updates.read(&self.plan, group, reader)?;
        if self.plan.updates {
            self.told = self.told.max(told);
            self.watermark = self.told;
            return Ok(());
        }
        while let Some(due) = self.updates.take() {
            self.update(&due, &mut Vec::new());
        }
        self.updates = Updates::default();
        self.changed[usize::from(group)] = true;
        Ok(())
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
                let lane = Arc::clone(&batch.lane);
                let partial = self.plan.fold(batch);
                self.add(partial, &lane, watermark, output);
            }
            Input::Prepared(prepared) => {
                let watermark = prepared.watermark(Timestamp::MIN);
                self.arrival = self.arrival.max(prepared.arrival);
                let partial = prepared.content.downcast::<Partial>().expect("made by this window's Prepare");
                self.add(*partial, &prepared.lane, watermark, output);
            }
        }
    }

    fn on_watermark(&mut self, watermark: Timestamp, output: &mut Output) {
        if watermark == Timestamp::MIN {
            return;
        }
        if watermark == Timestamp::MAX {
            // At the end of all input only what there was is closed, so that input that is appended later finds its windows open.
            self.advance(i64::MAX, i64::MAX, output);
            return self.close(self.told);
        }
        self.watermark = self.watermark.max(watermark.0);
        let until = self.plan.told_by(watermark);
        self.advance(watermark.0, until, output);
        if until > self.told {
            self.told = until;
            self.changed[0] = true;
        }
        self.close(self.plan.closed_by(watermark));
    }

    fn next_deadline(&self) -> Timestamp {
        let told = self.next_end().map_or(i64::MAX, |end| end.saturating_add(self.plan.told_after()));
        Timestamp(self.updates.next_turn().unwrap_or(i64::MAX).min(told))
    }

    /// The piece of group 0 starts with the end of the last window that closed, as 8 bytes. Then each piece holds, for each
    /// pane with keys of the group: its start and the end of the first window it counts for, 8 bytes each; how many keys; and for each of them its bytes behind
    /// their length and its accumulators in the order of the aggregates' names, each as its type describes.
    /// Numbers of 8 bytes are written lowest first, lengths and counts as LEB128. Where windows are told anew [`UPDATES`] follows, in 8 bytes, in the piece of
    /// group 0 the end of the last window that was told, and [`Updates::pieces`].
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
        let mut updates = self.updates.pieces();
        if self.plan.updates {
            updates.entry(0).or_insert_with(|| vec![0, 0]);
        }
        for (group, known) in updates.into_iter().filter(|(group, _)| is_wanted[usize::from(*group)]) {
            let out = &mut pieces[usize::from(group)];
            let told = if group == 0 { self.told } else { i64::MIN };
            [UPDATES, told].iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
            out.extend_from_slice(&known);
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
            self.told = self.told.max(self.closed);
        }
        let group = u8::try_from(group).map_err(|_| Damaged)?;
        while !reader.is_empty() {
            let place = Place { start: reader.i64()?, first_end: reader.i64()? };
            if place.start == UPDATES {
                self.restore_updates(place.first_end, group, &mut reader)?;
                break;
            }
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
        self.bytes + self.updates.bytes()
    }

    fn view(&self, question: &Json) -> Json {
        as_json!({
            "window": &*self.lane.source,
            "closed": if self.told == i64::MIN { Json::Null } else { Timestamp(self.told).to_string().into() },
            "keys": self.keys,
            "open": self.open_windows(question["key"].as_str()),
        })
    }
}

/// What is told of a window beside its content when it is told anew.
struct Update {
    /// How often it has been.
    count: u64,
    /// Whether a later window of the key has been told.
    is_superseded: bool,
}

/// What becomes of the records of a place.
enum Fate {
    /// They count in a pane.
    In(Place),
    /// A window of theirs has ended and is told anew, so that each counts by itself.
    Ended,
    /// All of their windows have closed.
    Late,
}

impl Fate {
    fn place(&self) -> Option<Place> {
        match self {
            Self::In(place) => Some(*place),
            Self::Ended | Self::Late => None,
        }
    }
}

/// The number of its place, which stands before a key.
fn number_of(key: &[u8]) -> usize {
    u32::from_le_bytes(key[..PLACE_BYTES].try_into().expect("the length was cut")) as usize
}
