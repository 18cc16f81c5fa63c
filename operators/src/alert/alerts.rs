//! The alerts of a rule: records in, transitions out.

mod amendment;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json as as_json};
use tocsin_config::component::Told;
use tocsin_pipeline::event::{Batch, Lane, Origin};
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Input, KEY_GROUPS, Operator, Output, Reason, StateError, key_group};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use self::amendment::is_superseded;
use super::course::{Course, Heard, Transition};
use super::evidence::{self, AroundPiece, Context, Evidence};
use super::history::History;
use super::record::{fingerprint, identity, json_text, object, texts};
use super::rule::Phase;
use super::series::Series;
use super::watch::{Rule, Selected};

/// How much memory the evidence of all alerts of a rule may take. Beyond it, records are counted and not kept.
const EVIDENCE_MAX: usize = 64 << 20;
/// Who asks how a rule stands is shown so many alerts and so many transitions.
const SHOWN_MAX: usize = 1000;
/// How many it names of all there are.
const KNOWN_MAX: usize = 10;
/// How many lanes have a watermark of their own here. With more, timers follow the merged watermark alone.
const LANES_MAX: usize = 4096;
/// Of so many values of an alert it is remembered what they decided, so that it is known whether a correction changes it.
const DECIDED_MAX: usize = 16;

/// An alert and what is told of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    course: Course,
    /// Whether its records come from windows.
    is_keyed: bool,
    /// The severity that was told last, where the rule has levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    severity: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// JSON of the last values.
    values: String,
    evidence: Evidence,
    /// The value over time, while it is active.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    series: Series,
    /// What its last values decided, by their time; of windows only.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    decided: VecDeque<(i64, bool)>,
    /// The moment in `timers`; never after the deadline. Armed again when it has come and the deadline has moved.
    #[serde(skip)]
    timer: Option<Timestamp>,
}

impl Entry {
    /// Remembers what a value decided; gives what one of the same time decided before.
    fn decide(&mut self, time: Timestamp, holds: bool) -> Option<bool> {
        let at = self.decided.partition_point(|(decided, _)| *decided < time.0);
        if let Some((decided, before)) = self.decided.get_mut(at)
            && *decided == time.0
        {
            return Some(std::mem::replace(before, holds));
        }
        self.decided.insert(at, (time.0, holds));
        if self.decided.len() > DECIDED_MAX {
            self.decided.pop_front();
        }
        None
    }
}

/// The alerts of a rule.
pub(super) struct Alerts {
    rule: Arc<Rule>,
    /// Whether pending is told too.
    tells_pending: bool,
    lane: Arc<Lane>,
    /// By key, which is the JSON of the keys by name. Ordered, so that what is written never depends on a hash.
    entries: BTreeMap<Arc<str>, Entry>,
    /// Every entry's next moment, in the order in which they come.
    timers: BTreeSet<(Timestamp, Arc<str>)>,
    /// The keys of each key group.
    members: Vec<BTreeSet<Arc<str>>>,
    /// The key groups that have changed since the last snapshot.
    changed: BTreeSet<u16>,
    history: History,
    context: Context,
    /// The watermarks of the lanes as of the last record of each.
    lanes: BTreeMap<(Arc<str>, String), Timestamp>,
    /// The merged watermark as it was told last.
    merged: Timestamp,
    /// Up to here all timers have fired.
    now: Timestamp,
    pending: usize,
    firing: usize,
    evidence_bytes: usize,
    arrival: Timestamp,
    /// What the input that is being taken has led to.
    told: Vec<(Timestamp, Value)>,
    amended: Vec<(Timestamp, Value)>,
    errors: u64,
}

/// A piece of a snapshot, as JSON.
#[derive(Default, Serialize, Deserialize)]
struct Piece {
    entries: Vec<(String, Entry)>,
    /// The records that were told whose `id` is in this key group, by their number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    told: Vec<(u64, String)>,
    /// In the piece of group 0 only.
    clock: Option<ClockPiece>,
}

#[derive(Serialize, Deserialize)]
struct ClockPiece {
    lanes: Vec<(String, String, i64)>,
    merged: i64,
    now: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    context: Vec<AroundPiece>,
}

/// Whose evidence a record has become: the alert's key and the number of the match.
type Matched = Option<(Arc<str>, u64)>;

/// A record that says something of an alert.
struct Seen<'a> {
    batch: &'a Batch,
    row: u32,
    /// What tells the alert apart.
    names: BTreeMap<String, String>,
    /// The highest level that holds of it.
    level: Option<usize>,
    is_keyed: bool,
}

impl Alerts {
    pub(super) fn new(rule: Arc<Rule>) -> Self {
        Self {
            lane: Arc::new(Lane::of_operator(Arc::clone(&rule.name), Origin::Operator)),
            history: History::new(rule.history),
            context: Context::new(rule.context),
            tells_pending: rule.emit_pending,
            rule,
            entries: BTreeMap::new(),
            timers: BTreeSet::new(),
            members: vec![BTreeSet::new(); usize::from(KEY_GROUPS)],
            changed: BTreeSet::new(),
            lanes: BTreeMap::new(),
            merged: Timestamp::MIN,
            now: Timestamp::MIN,
            pending: 0,
            firing: 0,
            evidence_bytes: 0,
            arrival: Timestamp(0),
            told: Vec::new(),
            amended: Vec::new(),
            errors: 0,
        }
    }

    fn take(&mut self, selected: Selected, output: &mut Output) {
        let Selected { batch, matching, errors } = selected;
        let is_keyed = matches!(batch.lane.origin, Origin::Keyed(_));
        // What stands around a record that an operator made is nothing a reader knows.
        let has_context = self.context.is_kept() && !matches!(batch.lane.origin, Origin::Keyed(_) | Origin::Operator);
        self.arrival = batch.arrival;
        self.errors += errors;
        let (mut aggregated, mut full) = (0, 0);
        // On plain records, one that does not match says nothing.
        let rows: Vec<u32> = match is_keyed || has_context {
            true => batch.rows().collect(),
            false => matching.iter().map(|(row, _)| *row).collect(),
        };
        let mut matching = matching.into_iter().peekable();
        let mut filtered = batch.len() - rows.len();
        for row in rows {
            let level = matching.next_if(|(at, _)| *at == row).map(|(_, level)| level);
            // The record itself shows how far time has come: what is over before it is told before it.
            let shown = batch.time(row).saturating_sub(batch.lane.out_of_order);
            self.see(&batch, batch.watermark_before(row).max(shown));
            self.fire_timers();
            if has_context {
                self.follow(&batch, row);
            }
            let mut matched = None;
            match level.is_some() || is_keyed {
                true => match self.decide(&batch, row, level, is_keyed) {
                    Ok(of) if level.is_some() => (matched, aggregated) = (of, aggregated + 1),
                    Ok(_) => filtered += 1,
                    Err(Full) => full += 1,
                },
                false => filtered += 1,
            }
            if has_context {
                self.context.end(&batch, row, matched);
            }
        }
        self.see(&batch, batch.watermark_after());
        self.fire_timers();
        output.drop(Reason::Aggregated, aggregated);
        output.drop(Reason::StateFull, full);
        output.drop(Reason::Filtered, filtered);
        self.hand_on(output);
    }

    /// The lane of a batch has come to `watermark`.
    fn see(&mut self, batch: &Batch, watermark: Timestamp) {
        let lane = (Arc::clone(&batch.lane.source), batch.lane.partition.clone());
        if self.lanes.len() < LANES_MAX || self.lanes.contains_key(&lane) {
            let seen = self.lanes.entry(lane).or_insert(Timestamp::MIN);
            *seen = watermark.max(*seen);
        }
        // An idle lane may hold its own watermark back for long: the merged one, which knows of that, may be ahead.
        let least = self.lanes.values().min().copied().filter(|_| self.lanes.len() < LANES_MAX);
        self.now = self.now.max(self.merged).max(least.unwrap_or(Timestamp::MIN));
    }

    /// Puts a record behind those of its lane that wait for what follows them.
    fn follow(&mut self, batch: &Batch, row: u32) {
        let Self { context, entries, evidence_bytes, changed, .. } = self;
        context.begin(batch, row, |key, line| {
            let Some(entry) = entries.get_mut(key) else { return };
            let grown = line.put(&mut entry.evidence, EVIDENCE_MAX.saturating_sub(*evidence_bytes));
            *evidence_bytes = evidence_bytes.saturating_add_signed(grown);
            changed.insert(key_group(key.as_bytes()));
        });
    }

    /// A record says something: that a level holds or, where each value decides, that none does.
    fn decide(&mut self, batch: &Batch, row: u32, level: Option<usize>, is_keyed: bool) -> Result<Matched, Full> {
        let rule = Arc::clone(&self.rule);
        let names = rule.key(batch, row, &mut self.errors);
        let key: Arc<str> = serde_json::to_string(&names).expect("texts by text").into();
        let seen = Seen { batch, row, names, level, is_keyed };
        let time = batch.time(row);
        let known = self.entries.get(&key);
        let is_over = known.is_none_or(|entry| entry.course.phase() == Phase::Inactive);
        let is_outdated = known.is_some_and(|entry| entry.course.is_outdated(time))
            || is_over && (level.is_some() || known.is_some()) && is_superseded(batch, row);
        if is_keyed && is_outdated {
            if known.is_none() {
                self.insert(&key, is_keyed)?;
                let now = if self.now == Timestamp::MAX { time } else { self.now };
                self.entries.get_mut(&key).expect("just put in").course.remember(time.max(now));
                self.touch(&key);
            }
            self.correct(&key, &seen);
            return Ok(None);
        }
        if level.is_none() && is_over {
            return Ok(None);
        }
        let before = known.map_or(Phase::Inactive, |entry| entry.course.phase());
        if known.is_none() {
            self.insert(&key, is_keyed)?;
        }
        // A value is heard of its own time, however late it comes.
        let watermark = if is_keyed { time } else { batch.watermark_before(row).max(self.now) };
        let watermark = if watermark == Timestamp::MAX || level.is_none() { time } else { watermark };
        // What silence has ended is told with what was known of it.
        while let Some(transition) = self.elapse(&key, time.max(watermark), true) {
            self.tell(&key, transition);
        }
        if !is_keyed {
            self.contradict(&key, &seen);
        }
        let patience = Some(rule.patience(batch, row, is_keyed));
        let entry = self.entries.get_mut(&key).expect("known or just put in");
        let mut transitions = Vec::new();
        match level {
            Some(level) => {
                let heard = Heard { time, watermark, patience, is_value: is_keyed };
                entry.course.holds(level, heard, &rule.times, &mut transitions);
            }
            None => entry.course.fails(time, patience, &rule.times, &mut transitions),
        }
        if transitions.iter().any(|transition| !transition.is_ending()) {
            self.render(&key, &transitions, &seen);
        }
        let values = rule.values(batch, row, &seen.names, is_keyed);
        let entry = self.entries.get_mut(&key).expect("still there");
        let mut matched = None;
        if level.is_some() {
            let around = self.context.of(batch);
            let room = EVIDENCE_MAX.saturating_sub(self.evidence_bytes);
            let grown = entry.evidence.add(batch, row, around, rule.evidence, room);
            self.evidence_bytes = self.evidence_bytes.saturating_add_signed(grown);
            matched = Some((Arc::clone(&key), entry.evidence.matches));
        }
        if is_keyed {
            entry.decide(time, level.is_some());
        }
        if let Some(number) = rule.number(&values) {
            entry.series.add(time, number);
        }
        entry.values = json_text(&values);
        transitions.into_iter().for_each(|transition| self.tell(&key, transition));
        self.count(before, self.entries[&key].course.phase());
        self.touch(&key);
        Ok(matched)
    }

    /// Renders the texts of an alert that begins an episode, begins to fire, or goes to another level.
    fn render(&mut self, key: &str, transitions: &[Transition], seen: &Seen<'_>) {
        let entry = self.entries.get_mut(key).expect("asked for by its owner");
        let context = self.rule.context(seen.batch, seen.row, &seen.names, entry.course.level());
        if transitions.contains(&Transition::Pending) {
            self.evidence_bytes -= entry.evidence.bytes();
            entry.evidence = Evidence::default();
            entry.series = Series::default();
            entry.annotations.clear();
            entry.severity = None;
            entry.labels = self.rule.labels(&seen.names, &context, &mut self.errors);
        }
        if transitions.iter().any(|transition| matches!(transition, Transition::Firing | Transition::Changed(_))) {
            let errors = &mut self.errors;
            let annotations = self.rule.annotations.iter().map(|(name, annotation)| {
                let rendered = annotation.render_context(&context);
                *errors += u64::from(rendered.failure.is_some());
                (name.clone(), rendered.text)
            });
            entry.annotations = annotations.collect();
        }
    }

    /// Makes the record of a transition, where it has one.
    fn tell(&mut self, key: &str, transition: Transition) {
        let rule = Arc::clone(&self.rule);
        let entry = self.entries.get_mut(key).expect("asked for by its owner");
        let course = &entry.course;
        let alert = course.whole();
        let (state, time, starts_at, ends_at) = match transition {
            Transition::Pending if self.tells_pending => ("pending", alert.since, alert.since, None),
            Transition::Firing => ("firing", alert.started, alert.started, None),
            Transition::Changed(at) => ("firing", at, alert.started, None),
            Transition::Resolved(at) => ("resolved", at, alert.started, Some(at)),
            Transition::Pending | Transition::Withdrawn => return,
        };
        let before = entry.severity.take();
        entry.severity = match transition {
            // The highest that was told.
            Transition::Resolved(_) => before.clone(),
            _ => rule.severity(course.level()).map(str::to_owned),
        };
        let fingerprint = fingerprint(&rule.name, &entry.labels);
        let change = |at: Timestamp| {
            let severity = entry.severity.as_deref().unwrap_or_default();
            format!("changed {} {severity} {}", at.0, course.flaps())
        };
        let id = match transition {
            Transition::Changed(at) => identity(&rule.name, &fingerprint, alert, &change(at)),
            _ => identity(&rule.name, &fingerprint, alert, state),
        };
        let firing_id = identity(&rule.name, &fingerprint, alert, "firing");
        let mut labels = entry.labels.clone();
        labels.extend(entry.severity.clone().map(|severity| (rule.level_label.clone(), severity)));
        let moment = |time: Timestamp| Value::from(time.to_string());
        let mut record = object([
            ("alert", Value::from(&*rule.name)),
            ("state", Value::from(state)),
            ("fingerprint", Value::from(fingerprint)),
            ("labels", texts(&labels)),
            ("annotations", texts(&entry.annotations)),
            ("starts_at", moment(starts_at)),
            ("ends_at", ends_at.map_or(Value::Null, moment)),
            ("values", json::parse_value(entry.values.as_bytes()).unwrap_or(Value::Null)),
            ("evidence", entry.evidence.to_value()),
            ("matches", Value::Integer(entry.evidence.matches as i64)),
            ("episode", Value::Integer(alert.episode as i64)),
            ("id", Value::from(id.as_str())),
            ("firing_id", Value::from(firing_id)),
        ]);
        let mut further = |name: &str, value: Option<Value>| {
            if let (Some(value), Some(fields)) = (value, record.as_object_mut()) {
                fields.insert(name.into(), value);
            }
        };
        further("history", entry.series.to_value());
        further("flapping", rule.times.flapping.map(|_| Value::Boolean(course.flaps())));
        let is_change = matches!(transition, Transition::Changed(_)) && before != entry.severity;
        further("previous_level", before.filter(|_| is_change).map(Value::from));
        self.remember(&id, &record);
        self.told.push((time, record));
    }

    /// Keeps a record that is told.
    fn remember(&mut self, id: &str, record: &Value) {
        if self.history.is_kept() {
            let changed = &mut self.changed;
            self.history.push(id, json_text(record), |group| _ = changed.insert(group));
        }
    }

    /// Makes room for one more alert: those that are over go first.
    fn insert(&mut self, key: &Arc<str>, is_keyed: bool) -> Result<(), Full> {
        if self.entries.len() >= self.rule.max_alerts {
            let over = self.timers.iter().find(|(_, key)| self.entries[key].course.phase() == Phase::Inactive);
            let over = over.map(|(_, key)| Arc::clone(key)).ok_or(Full)?;
            self.forget(&over);
        }
        let entry = Entry {
            course: Course::new(&self.rule.times),
            is_keyed,
            severity: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            values: String::new(),
            evidence: Evidence::default(),
            series: Series::default(),
            decided: VecDeque::new(),
            timer: None,
        };
        self.members[usize::from(key_group(key.as_bytes()))].insert(Arc::clone(key));
        self.entries.insert(Arc::clone(key), entry);
        Ok(())
    }

    fn forget(&mut self, key: &Arc<str>) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, Arc::clone(key)));
        }
        self.evidence_bytes -= entry.evidence.bytes();
        let group = key_group(key.as_bytes());
        self.members[usize::from(group)].remove(key);
        self.changed.insert(group);
    }

    /// An alert has changed: it belongs into the next snapshot, and its timer may have to come sooner.
    fn touch(&mut self, key: &Arc<str>) {
        self.changed.insert(key_group(key.as_bytes()));
        let entry = self.entries.get_mut(key).expect("asked for by its owner");
        if entry.course.phase() == Phase::Inactive {
            // What was told of it has been told: only its number and what it decided last is remembered.
            self.evidence_bytes -= entry.evidence.bytes();
            entry.evidence = Evidence::default();
            entry.series = Series::default();
            entry.annotations = BTreeMap::new();
            entry.labels = BTreeMap::new();
            entry.values = String::new();
            entry.severity = None;
        }
        let deadline = entry.course.deadline(true, &self.rule.times);
        if let Some(deadline) = deadline
            && entry.timer.is_none_or(|timer| deadline < timer)
        {
            if let Some(timer) = entry.timer.replace(deadline) {
                self.timers.remove(&(timer, Arc::clone(key)));
            }
            self.timers.insert((deadline, Arc::clone(key)));
        }
    }

    /// Lets the timers of all moments before `now` fire, in their order.
    fn fire_timers(&mut self) {
        while self.timers.first().is_some_and(|(moment, _)| *moment < self.now) {
            let Some((moment, key)) = self.timers.pop_first() else { return };
            let rule = Arc::clone(&self.rule);
            let entry = self.entries.get_mut(&key).expect("timers are of entries");
            entry.timer = None;
            let deadline = entry.course.deadline(true, &rule.times);
            if deadline.is_none_or(|deadline| deadline > moment) {
                self.touch(&key);
                continue;
            }
            let before = entry.course.phase();
            if before == Phase::Inactive {
                self.forget(&key);
                continue;
            }
            // At the end of all input no further value can come, so that none comes says nothing.
            let is_at_end = self.now == Timestamp::MAX && entry.is_keyed;
            // One moment at a time, so that what becomes of several alerts is told in its order.
            let until = if is_at_end { self.now } else { moment.saturating_add(std::time::Duration::from_nanos(1)) };
            let mut is_told = false;
            while let Some(transition) = self.elapse(&key, until, !is_at_end) {
                self.tell(&key, transition);
                is_told = true;
            }
            self.count(before, self.entries[&key].course.phase());
            if !is_at_end || is_told {
                self.touch(&key);
            }
        }
    }

    fn elapse(&mut self, key: &str, until: Timestamp, silence: bool) -> Option<Transition> {
        self.entries.get_mut(key)?.course.elapse(until, silence, &self.rule.times)
    }

    fn count(&mut self, before: Phase, after: Phase) {
        for (phase, step) in [(before, -1), (after, 1)] {
            match phase {
                Phase::Inactive => {}
                Phase::Pending => self.pending = self.pending.saturating_add_signed(step),
                Phase::Firing => self.firing = self.firing.saturating_add_signed(step),
            }
        }
    }

    fn hand_on(&mut self, output: &mut Output) {
        output.expression_errors += std::mem::take(&mut self.errors);
        for (port, told) in [(0, std::mem::take(&mut self.told)), (1, std::mem::take(&mut self.amended))] {
            if !told.is_empty() {
                output.make(told.len());
                output.emit(port, Batch::of_values(Arc::clone(&self.lane), told, self.arrival));
            }
        }
    }

    fn clock(&self) -> ClockPiece {
        let lanes = self.lanes.iter();
        let lanes = lanes.map(|((source, partition), seen)| (source.to_string(), partition.clone(), seen.0)).collect();
        ClockPiece { lanes, merged: self.merged.0, now: self.now.0, context: self.context.to_pieces() }
    }

    fn take_back(&mut self, group: u16, piece: Piece) {
        for (key, mut entry) in piece.entries {
            let key: Arc<str> = key.into();
            entry.course.fit(&self.rule.times);
            self.context.wait_for(&key, &entry.evidence);
            self.evidence_bytes += entry.evidence.bytes();
            self.count(Phase::Inactive, entry.course.phase());
            self.members[usize::from(key_group(key.as_bytes()))].insert(Arc::clone(&key));
            self.entries.insert(Arc::clone(&key), entry);
            self.touch(&key);
        }
        self.history.restore(group, piece.told);
        if let Some(clock) = piece.clock {
            let lanes = clock.lanes.into_iter();
            self.lanes = lanes.map(|(source, partition, seen)| ((source.into(), partition), Timestamp(seen))).collect();
            self.merged = Timestamp(clock.merged);
            self.now = Timestamp(clock.now);
            self.context.restore(clock.context);
        }
        self.changed.remove(&group);
    }
}

/// All alerts that may be known are active.
struct Full;

impl Operator for Alerts {
    fn on_input(&mut self, _: usize, input: Input, output: &mut Output) {
        let selected = match input {
            Input::Batch(batch) => self.rule.select(batch),
            Input::Prepared(prepared) => {
                let content = prepared.content.downcast::<Selected>().expect("made by the `Select` beside it");
                let mut selected = *content;
                selected.batch.seen_before = prepared.seen_before;
                selected
            }
        };
        self.take(selected, output);
    }

    fn on_watermark(&mut self, watermark: Timestamp, output: &mut Output) {
        self.merged = self.merged.max(watermark);
        self.now = self.now.max(watermark);
        self.fire_timers();
        self.hand_on(output);
    }

    fn next_deadline(&self) -> Timestamp {
        self.timers.first().map_or(Timestamp::MAX, |(moment, _)| Timestamp(moment.0.saturating_add(1)))
    }

    fn snapshot(&mut self, full: bool, piece: &mut dyn FnMut(u16, Vec<u8>)) {
        let changed = std::mem::take(&mut self.changed);
        for group in 0..KEY_GROUPS {
            // The clock moves with every batch, so its piece is always written.
            if !full && group != 0 && !changed.contains(&group) {
                continue;
            }
            let members = &self.members[usize::from(group)];
            let told = self.history.of_group(group);
            if members.is_empty() && told.is_empty() && group != 0 {
                piece(group, Vec::new());
                continue;
            }
            let entries = members.iter().map(|key| (key.to_string(), self.entries[key].clone())).collect();
            let content = Piece { entries, told, clock: (group == 0).then(|| self.clock()) };
            piece(group, serde_json::to_vec(&content).expect("texts and numbers"));
        }
    }

    fn restore(&mut self, group: u16, piece: &[u8]) -> Result<(), StateError> {
        if piece.is_empty() {
            return Ok(());
        }
        let unreadable = |error| StateError(format!("alerts of key group {group}: {error}"));
        let piece = serde_json::from_slice(piece).map_err(unreadable)?;
        self.take_back(group, piece);
        Ok(())
    }

    fn state_version(&self) -> u16 {
        2
    }

    fn migrates_from(&self) -> &'static [u16] {
        &[1]
    }

    /// The first version knew neither levels nor what was told before.
    fn migrate(&mut self, _: u16, group: u16, piece: &[u8]) -> Result<(), StateError> {
        if piece.is_empty() {
            return Ok(());
        }
        let unreadable = |error| StateError(format!("alerts of key group {group}: {error}"));
        let mut piece: Json = serde_json::from_slice(piece).map_err(unreadable)?;
        for entry in piece["entries"].as_array_mut().into_iter().flatten() {
            let alert = entry[1]["alert"].take();
            entry[1]["course"] = as_json!({ "levels": [alert] });
            evidence::migrate(&mut entry[1]["evidence"]);
        }
        let piece = serde_json::from_value(piece).map_err(unreadable)?;
        self.take_back(group, piece);
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.entries.len() * 1024 + self.evidence_bytes + self.history.bytes() + self.context.bytes()
    }

    fn explain(&self) -> Vec<String> {
        let levels = self.rule.levels.iter().map(|level| match &level.severity {
            Some(severity) => format!("condition of {severity}: {}", level.condition.way()),
            None => format!("condition: {}", level.condition.way()),
        });
        levels.collect()
    }

    fn subject(&self) -> Option<&'static str> {
        Some("alert")
    }

    /// Those that a `key` means (see [`is_named`]; the fingerprint too), or in a `phase`, where one is asked for: the active ones first.
    /// `active` counts them, however many are shown; `known` names some of all there are.
    fn view(&self, question: &Json) -> Json {
        self.standing(question)
    }

    fn tell_pending(&mut self) {
        self.tells_pending = true;
    }

    fn alerts(&self) -> Vec<(&'static str, usize)> {
        vec![("pending", self.pending), ("firing", self.firing)]
    }

    fn slo(&self) -> Option<std::time::Duration> {
        self.rule.slo
    }
}

/// What the pieces of a snapshot say of the past of a rule and of its alerts.
pub(super) fn told(rule: &str, pieces: &[&[u8]]) -> Told {
    let pieces = pieces.iter().filter_map(|piece| serde_json::from_slice::<Piece>(piece).ok());
    let (mut transitions, mut active) = (BTreeMap::new(), Vec::new());
    for piece in pieces {
        let records = piece.told.into_iter();
        transitions.extend(records.filter_map(|(number, record)| Some((number, serde_json::from_str(&record).ok()?))));
        let entries = piece.entries.into_iter().filter(|(_, entry)| entry.course.phase() != Phase::Inactive);
        active.extend(entries.map(|(key, entry)| {
            let alert = entry.course.whole();
            let values: Json = serde_json::from_str(&entry.values).unwrap_or_default();
            let key: Json = serde_json::from_str(&key).unwrap_or_default();
            let firing = (alert.phase == Phase::Firing).then(|| alert.started.to_string());
            as_json!({
                "alert": rule, "state": if firing.is_some() { "firing" } else { "pending" }, "key": key,
                "fingerprint": fingerprint(rule, &entry.labels), "labels": entry.labels, "level": entry.severity,
                "annotations": entry.annotations, "since": alert.since.to_string(), "starts_at": firing,
                "values": values, "matches": entry.evidence.matches, "episode": alert.episode,
                "flapping": entry.course.flaps(),
                "firing_id": identity(rule, &fingerprint(rule, &entry.labels), alert, "firing"),
            })
        }));
    }
    Told { transitions: transitions.into_values().collect(), active }
}
