//! Alerts in: what a rule watches becomes alerts with a life of their own.

mod evidence;
mod rule;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration as Span;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tocsin_config::component::{BuildContext, Keying, Makes, OperatorConfig, Problem};
use tocsin_config::types::Duration;
use tocsin_pipeline::codec::{FieldPath, Projection};
use tocsin_pipeline::event::{Batch, Field, Lane, Origin};
use tocsin_pipeline::expression::{Condition, Expression};
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{
    Built, Input, KEY_GROUPS, Operator, Output, Prepare, Prepared, Reason, StateError, key_group,
};
use tocsin_pipeline::template::{self, Escape, Template, TemplateError};
use tocsin_pipeline::time::Timestamp;
use vrl::path::{OwnedSegment, OwnedValuePath};
use vrl::value::{ObjectMap, Value};

use evidence::Evidence;
use rule::{Alert, Phase, Timing, Transition};

/// No text of a label or a key is longer; longer ones are cut and end in a hash of the whole, so that they stay apart.
const LABEL_MAX: usize = 512;
/// How much memory the evidence of all alerts of a rule may take. Beyond it, records are counted and not kept.
const EVIDENCE_MAX: usize = 64 << 20;
/// How many lanes have a watermark of their own here. With more, timers follow the merged watermark alone.
const LANES_MAX: usize = 4096;

/// Watches a condition and tells when it begins to hold and when it ceases to: an alert goes from *inactive* over *pending*
/// to *firing*, and ends as *resolved*. Each transition to firing and to resolved is one record:
///
/// ```json
/// {"alert": "high_error_rate", "state": "firing", "fingerprint": "8d1f…", "labels": {"vhost": "shop", "severity": "critical"},
///  "annotations": {"summary": "shop: 212 server errors in a minute"}, "starts_at": "2026-11-20T12:03:00Z", "ends_at": null,
///  "values": {"errors": 212}, "evidence": [{"raw": "…", "source": "error_rate", "coordinate": {…}}], "matches": 3,
///  "episode": 1, "id": "b3c2…", "firing_id": "b3c2…"}
/// ```
///
/// `id` names the transition for ever: the same input gives the same `id` again, after a crash and in a replay. Sinks use
/// it so that nobody is told twice; `firing_id` is the `id` of the transition to firing of the same episode. `starts_at` is when it began to fire, in event time.
///
/// **On the records of a window** each value decides: one that fulfils the condition fires (once it has done so for the
/// time `for`), the next of the same key that does not resolves (once it has not for the time `keep_firing_for`). There is
/// one alert for each key of the window. A key that has no value at all any more is over after `resolve_after`.
///
/// **On plain records** the first that matches fires (with `for`: the first that comes at least `for` after the first of an
/// unbroken row of matches), and `resolve_after` of event time without another match resolves. A match that comes late,
/// behind the watermark, counts as heard at the watermark.
///
/// **Labels** name an alert and are rendered when its episode begins; the keys of `group_by` are labels too. A label without
/// text is left out. **Annotations** tell about it and are rendered when it begins to fire. In both, `{{ field }}` stands for
/// a field of the record; one that is missing stands for nothing and is counted as an expression error.
///
/// **State:** for each alert its phase, its texts, and its first and last records (2 KiB of each at most, 64 MiB in all);
/// for a day of event time after the end a few numbers. At most `max_alerts`: those that are over are forgotten first; if
/// all are active, records of further keys are dropped and counted as `state_full`.
///
/// **When options change:** alerts are kept, whatever changes: each is known by its labels, and the next value decides by the new
/// condition and times. One that the new `group_by` or `labels` do not make any more is over after `resolve_after`, and that is told. A rule
/// that is removed while it fires tells nothing more: to have its alerts resolved, give it the condition `"false"` first.
///
/// **Late events:** an update of a window older than the one that decided last changes nothing.
///
/// **After a crash:** alerts come back with the last checkpoint and the records after it are read again: the same
/// transitions are made again under the same `id`, which sinks do not tell twice.
///
/// ```toml
/// [operators.high_error_rate]
/// type = "alert"
/// inputs = ["error_rate"]
/// condition = ".errors > 100"
/// for = "2m"
/// labels = { severity = "critical" }
/// annotations = { summary = "{{ vhost }}: {{ errors }} server errors in a minute" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// VRL: what is to be true of a record. Where it fails it is false, and counted.
    condition: String,
    /// How long the condition must hold before the alert fires. Default `"0s"`: at once.
    #[serde(rename = "for", default = "nothing")]
    pending_for: Duration,
    /// How long it goes on firing after the condition has ceased to hold. Default `"0s"`.
    #[serde(default = "nothing")]
    keep_firing_for: Duration,
    /// How long without a match (on windows: without a value) before the alert is over, in event time. Default `"5m"`; on
    /// windows twice the length of the window if that is longer.
    resolve_after: Option<Duration>,
    /// VRL expressions whose values tell alerts apart. Default: on windows the window's `group_by`; on plain records the
    /// fields that `labels` name.
    group_by: Option<Vec<String>>,
    /// Labels by name: texts with `{{ field }}`. At most 64.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Annotations by name: texts with `{{ field }}`. At most 64.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// How many of the first and how many of the last records that matched are kept as evidence. Default 5, at most 100.
    #[serde(default = "five")]
    evidence: usize,
    /// How many alerts are known at a time, those that ended within a day included. Default 100000, at most 10000000.
    #[serde(default = "hundred_thousand")]
    max_alerts: usize,
    /// Whether the transition to pending is a record too. Default false: then sinks are not told of it.
    #[serde(default)]
    emit_pending: bool,
}

fn nothing() -> Duration {
    Duration(Span::ZERO)
}

fn five() -> usize {
    5
}

fn hundred_thousand() -> usize {
    100_000
}

const FIVE_MINUTES: Span = Span::from_secs(300);

impl OperatorConfig for Config {
    const NAME: &'static str = "alert";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let diagnosed = |option: String, diagnostic: tocsin_pipeline::expression::Diagnostic| Problem {
            option,
            within: Some(diagnostic.within),
            message: diagnostic.message,
            help: diagnostic.help,
        };
        problems
            .extend(Condition::check(&self.condition).into_iter().map(|found| diagnosed("condition".into(), found)));
        for (at, source) in self.group_by.iter().flatten().enumerate() {
            let found = Expression::check(source);
            problems.extend(found.into_iter().map(|found| diagnosed(format!("group_by[{at}]"), found)));
        }
        for (option, texts) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if texts.len() > 64 {
                problems.push(Problem::new(option, format!("{} are more than 64", texts.len())));
            }
            for (name, text) in texts {
                let option = format!("{option}.{name}");
                if !is_label_name(name) {
                    problems.push(
                        Problem::new(&option, format!("{name:?} is not a name of a label"))
                            .help("write letters, digits and `_`, not beginning with a digit"),
                    );
                }
                if let Err(TemplateError { within, message }) = Template::compile(text, Escape::None) {
                    problems.push(Problem::new(option, message).within(within));
                }
            }
        }
        if self.evidence > 100 {
            problems.push(Problem::new("evidence", "must be at most 100"));
        }
        if !(1..=10_000_000).contains(&self.max_alerts) {
            problems.push(Problem::new("max_alerts", "must be from 1 to 10000000"));
        }
        if self.resolve_after.is_some_and(|after| after.0.is_zero()) {
            problems.push(Problem::new("resolve_after", "must be longer than nothing"));
        }
        problems
    }

    fn needs_time(&self) -> bool {
        true
    }

    /// An alert that was told as firing must be told as resolved, so no option is reason enough to forget it.
    fn state_shape(&self, _: Json) -> Json {
        Json::Null
    }

    fn keying(&self) -> Keying {
        match &self.group_by {
            Some(sources) => {
                let names: Vec<_> = sources.iter().map(|source| key_name(source)).collect();
                // Of two values under one name, one is not part of the key.
                let is_alone = |name: &&String| names.iter().filter(|other| other == name).count() == 1;
                let key = sources.iter().zip(&names).filter(|(_, name)| is_alone(name));
                Keying::By { option: "group_by", key: key.map(|(source, _)| source.clone()).collect() }
            }
            None => {
                let labels = self.labels.values().filter_map(|text| Template::compile(text, Escape::None).ok());
                let fields: BTreeSet<_> = labels.flat_map(|label| label.variables().clone()).collect();
                Keying::ByWindow { otherwise: fields.iter().map(|name| format!(".{}", path_of_field(name))).collect() }
            }
        }
    }

    /// Keys are labels too, unless a label of the same name says something else.
    fn makes(&self) -> Makes {
        let is_the_field = |name: &str, text: &str| {
            let inner = text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
            inner.is_some_and(|inner| inner.trim() == name)
        };
        let others = self.labels.iter().filter(|(name, text)| !is_the_field(name, text));
        Makes::Within { path: ".labels", except: others.map(|(name, _)| name.clone()).collect() }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let condition = Condition::compile(&self.condition, context.paths).expect("checked");
        let templates = |texts: &BTreeMap<String, String>| -> Vec<(String, Template)> {
            let compile = |text: &String| Template::compile(text, Escape::None).expect("checked");
            texts.iter().map(|(name, text)| (name.clone(), compile(text))).collect()
        };
        let labels = templates(&self.labels);
        let keys = match &self.group_by {
            Some(sources) => {
                let mut compile = |source: &String| Expression::compile(source, context.paths).expect("checked");
                let keys: Vec<_> = sources.iter().map(|source| (key_name(source), compile(source))).collect();
                Keys::Given(keys)
            }
            None => {
                let names: BTreeSet<_> =
                    labels.iter().flat_map(|(_, label)| label.variables().iter().cloned()).collect();
                let mut intern = |name: &String| context.paths.intern(&path_of_field(name));
                Keys::Fields(names.iter().map(|name| (name.clone(), intern(name))).collect())
            }
        };
        let watched = condition.reads();
        let reads = watched.union(&keys.reads());
        let rule = Arc::new(Rule {
            name: Arc::clone(&context.name),
            condition,
            watched,
            reads: reads.clone(),
            keys,
            labels,
            annotations: templates(&self.annotations),
            timing: Timing { pending_for: self.pending_for.0, keep_firing_for: self.keep_firing_for.0 },
            resolve_after: self.resolve_after.map(|after| after.0),
            evidence: self.evidence,
            max_alerts: self.max_alerts,
            emit_pending: self.emit_pending,
        });
        Built::Operator {
            operator: Box::new(Alerts::new(Arc::clone(&rule))),
            prepare: Some(Arc::new(Select(rule))),
            reads,
        }
    }
}

fn path_of_field(name: &str) -> OwnedValuePath {
    OwnedValuePath { segments: vec![OwnedSegment::Field(name.into())] }
}

fn is_label_name(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_')
}

/// The label under which the value of a `group_by` expression stands: the last field of a path, else the text itself.
fn key_name(source: &str) -> String {
    let source = source.trim();
    match tocsin_pipeline::path::parse(source).and_then(|path| path.segments.last().cloned()) {
        Some(OwnedSegment::Field(name)) => name.to_string(),
        _ => source.to_owned(),
    }
}

/// What tells alerts apart.
enum Keys {
    Given(Vec<(String, Expression)>),
    Fields(Vec<(String, FieldPath)>),
}

impl Keys {
    fn reads(&self) -> Projection {
        match self {
            Self::Given(keys) => {
                keys.iter().fold(Projection::default(), |reads, (_, expression)| reads.union(&expression.reads()))
            }
            Self::Fields(fields) => Projection::new(fields.iter().map(|(_, path)| path.clone())),
        }
    }
}

/// The configuration as it runs.
struct Rule {
    name: Arc<str>,
    condition: Condition,
    /// What the condition reads: the values that alerts on plain records tell.
    watched: Projection,
    reads: Projection,
    keys: Keys,
    labels: Vec<(String, Template)>,
    annotations: Vec<(String, Template)>,
    timing: Timing,
    resolve_after: Option<Span>,
    evidence: usize,
    max_alerts: usize,
    emit_pending: bool,
}

impl Rule {
    /// The keys of a record by name; those without a value are left out.
    fn key(&self, batch: &Batch, row: u32, errors: &mut u64) -> BTreeMap<String, String> {
        let mut key = BTreeMap::new();
        let mut add = |name: &str, field: Field<'_>| {
            if let Some(text) = field.to_text().filter(|text| !text.is_empty()) {
                key.insert(name.to_owned(), label_text(&String::from_utf8_lossy(&text)));
            }
        };
        match (&self.keys, &batch.lane.origin) {
            (Keys::Fields(_), Origin::Keyed(names)) => {
                let value = batch.value(row);
                let fields = value.as_object();
                for name in names.iter() {
                    if let Some(value) = fields.and_then(|fields| fields.get(name.as_str())) {
                        add(name, Field::of_value(value));
                    }
                }
            }
            (Keys::Fields(fields), _) => {
                for (name, path) in fields {
                    add(name, batch.field(row, path));
                }
            }
            (Keys::Given(keys), _) => {
                for (name, expression) in keys {
                    if let Some(value) = expression.eval(batch, row, errors) {
                        add(name, Field::of_value(&value));
                    }
                }
            }
        }
        key
    }

    /// How long an alert may go without being heard of.
    fn patience(&self, batch: &Batch, row: u32, is_keyed: bool) -> Span {
        if let Some(after) = self.resolve_after {
            return after;
        }
        if !is_keyed {
            return FIVE_MINUTES;
        }
        let value = batch.value(row);
        let moment = |name: &str| match value.as_object()?.get(name)? {
            Value::Timestamp(time) => Some(Timestamp::from_datetime(time)),
            text => Timestamp::parse_rfc3339(text.as_bytes()?),
        };
        let length = moment("window_end").zip(moment("window_start")).map(|(end, start)| end.since(start));
        FIVE_MINUTES.max(length.unwrap_or_default().saturating_mul(2))
    }

    /// What an alert tells of the record: of a window its aggregates, else the fields that the condition reads.
    fn values(&self, batch: &Batch, row: u32, key: &BTreeMap<String, String>, is_keyed: bool) -> Value {
        if !is_keyed {
            let value = |path: &FieldPath| batch.field(row, path).to_value();
            let named = |path: &FieldPath| Some((path.path().to_string().into(), value(path)?));
            return Value::Object(self.watched.paths().iter().filter_map(named).collect());
        }
        match &*batch.value(row) {
            Value::Object(fields) => {
                let is_value = |name: &str| !matches!(name, "window_start" | "window_end") && !key.contains_key(name);
                let values = fields.iter().filter(|(name, _)| is_value(name.as_str()));
                Value::Object(values.map(|(name, value)| (name.clone(), value.clone())).collect())
            }
            value => value.clone(),
        }
    }

    /// The rows that the condition is true of.
    fn select(&self, mut batch: Batch) -> Selected {
        batch.decode(&self.reads);
        let mut errors = 0;
        let matching = self.condition.select(&batch, &mut errors);
        Selected { batch, matching, errors }
    }
}

/// A text as a label: of bounded length, still told apart from others.
fn label_text(text: &str) -> String {
    if text.len() <= LABEL_MAX {
        return text.to_owned();
    }
    let cut = (0..=LABEL_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let hash = blake3::hash(text.as_bytes()).to_hex();
    format!("{}…{}", &text[..cut], &hash[..16])
}

/// The part that needs no state: runs the condition in parallel.
struct Select(Arc<Rule>);

/// A batch and the rows of it that the condition is true of.
struct Selected {
    batch: Batch,
    matching: Vec<u32>,
    errors: u64,
}

impl Prepare for Select {
    fn prepare(&self, batch: Batch) -> Prepared {
        let selected = self.0.select(batch);
        let batch = &selected.batch;
        Prepared {
            lane: Arc::clone(&batch.lane),
            seen_before: batch.seen_before,
            seen_max: batch.times.as_ref().map_or(Timestamp::MIN, |times| times.max),
            arrival: batch.arrival,
            records: batch.len(),
            bytes: batch.bytes(),
            content: Box::new(selected) as Box<dyn Any + Send>,
        }
    }
}

/// An alert and what is told of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    alert: Alert,
    /// Whether its records come from windows.
    is_keyed: bool,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// JSON of the last values.
    values: String,
    evidence: Evidence,
    /// The moment in `timers`; never after the deadline. Armed again when it has come and the deadline has moved.
    #[serde(skip)]
    timer: Option<Timestamp>,
}

/// The alerts of a rule.
struct Alerts {
    rule: Arc<Rule>,
    lane: Arc<Lane>,
    /// By key, which is the JSON of the keys by name. Ordered, so that what is written never depends on a hash.
    entries: BTreeMap<Arc<str>, Entry>,
    /// Every entry's next moment, in the order in which they come.
    timers: BTreeSet<(Timestamp, Arc<str>)>,
    /// The keys of each key group.
    members: Vec<BTreeSet<Arc<str>>>,
    /// The key groups that have changed since the last snapshot.
    changed: BTreeSet<u16>,
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
    /// Whether pending is told too.
    tells_pending: bool,
    errors: u64,
}

/// A piece of a snapshot, as JSON.
#[derive(Default, Serialize, Deserialize)]
struct Piece {
    entries: Vec<(String, Entry)>,
    /// In the piece of group 0 only.
    clock: Option<ClockPiece>,
}

#[derive(Serialize, Deserialize)]
struct ClockPiece {
    lanes: Vec<(String, String, i64)>,
    merged: i64,
    now: i64,
}

impl Alerts {
    fn new(rule: Arc<Rule>) -> Self {
        Self {
            lane: Arc::new(Lane::of_operator(Arc::clone(&rule.name), Origin::Operator)),
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
            tells_pending: rule.emit_pending,
            rule,
            errors: 0,
        }
    }

    fn take(&mut self, selected: Selected, output: &mut Output) {
        let Selected { batch, matching, errors } = selected;
        let is_keyed = matches!(batch.lane.origin, Origin::Keyed(_));
        self.arrival = batch.arrival;
        self.errors += errors;
        let (mut aggregated, mut full) = (0, 0);
        let mut matching = matching.into_iter().peekable();
        // On plain records, one that does not match says nothing.
        let rows: Vec<u32> = if is_keyed { batch.rows().collect() } else { matching.clone().collect() };
        let mut filtered = batch.len() - rows.len();
        for row in rows {
            let holds = matching.next_if_eq(&row).is_some();
            // The record itself shows how far time has come: what is over before it is told before it.
            let shown = batch.time(row).saturating_sub(batch.lane.out_of_order);
            self.see(&batch, batch.watermark_before(row).max(shown));
            self.fire_timers();
            match self.decide(&batch, row, holds, is_keyed) {
                Ok(()) if holds => aggregated += 1,
                Ok(()) => filtered += 1,
                Err(Full) => full += 1,
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

    fn decide(&mut self, batch: &Batch, row: u32, holds: bool, is_keyed: bool) -> Result<(), Full> {
        let rule = Arc::clone(&self.rule);
        let names = rule.key(batch, row, &mut self.errors);
        let key: Arc<str> = serde_json::to_string(&names).expect("texts by text").into();
        let time = batch.time(row);
        let known = self.entries.get(&key);
        if !holds && known.is_none_or(|entry| entry.alert.phase == Phase::Inactive) {
            return Ok(());
        }
        if is_keyed && known.is_some_and(|entry| entry.alert.is_outdated(time)) {
            return Ok(());
        }
        if known.is_none() {
            self.insert(&key, is_keyed)?;
        }
        let watermark = batch.watermark_before(row).max(if is_keyed { Timestamp::MIN } else { self.now });
        let watermark = if watermark == Timestamp::MAX { time } else { watermark };
        let patience = Some(rule.patience(batch, row, is_keyed));
        let entry = self.entries.get_mut(&key).expect("known or just put in");
        let before = entry.alert.phase;
        let mut transitions = Vec::new();
        match holds {
            true => entry.alert.holds(time, watermark, patience, &rule.timing, &mut transitions),
            false => entry.alert.fails(time, patience, &rule.timing, &mut transitions),
        }
        let values = json_text(&rule.values(batch, row, &names, is_keyed));
        if holds {
            // An episode that silence has ended is told with what was known of it.
            let over = transitions.iter().position(|transition| !transition.is_ending()).unwrap_or(transitions.len());
            transitions.drain(..over).for_each(|transition| self.tell(&key, transition));
            if !transitions.is_empty() {
                self.render(&key, &transitions, batch, row, &names);
            }
            let entry = self.entries.get_mut(&key).expect("still there");
            let grown = entry.evidence.add(batch, row, rule.evidence, EVIDENCE_MAX.saturating_sub(self.evidence_bytes));
            self.evidence_bytes = self.evidence_bytes.saturating_add_signed(grown);
        }
        self.entries.get_mut(&key).expect("still there").values = values;
        transitions.into_iter().for_each(|transition| self.tell(&key, transition));
        self.count(before, self.entries[&key].alert.phase);
        self.touch(&key);
        Ok(())
    }

    /// Renders the texts of an alert that begins an episode or begins to fire.
    fn render(
        &mut self,
        key: &str,
        transitions: &[Transition],
        batch: &Batch,
        row: u32,
        names: &BTreeMap<String, String>,
    ) {
        let entry = self.entries.get_mut(key).expect("asked for by its owner");
        let mut record = batch.value(row).into_owned();
        if let Some(fields) = record.as_object_mut() {
            // Keys that are no plain field of the record can be named too.
            for (name, text) in names {
                fields.entry(name.as_str().into()).or_insert_with(|| Value::from(text.as_str()));
            }
        }
        let record = template::context(&record);
        let errors = &mut self.errors;
        let mut text = |template: &Template| {
            let rendered = template.render_context(&record);
            *errors += u64::from(rendered.failure.is_some());
            rendered.text
        };
        if transitions.contains(&Transition::Pending) {
            self.evidence_bytes -= entry.evidence.bytes();
            entry.evidence = Evidence::default();
            entry.annotations.clear();
            entry.labels = names.clone();
            for (name, label) in &self.rule.labels {
                match text(label) {
                    text if text.is_empty() => entry.labels.remove(name),
                    text => entry.labels.insert(name.clone(), label_text(&text)),
                };
            }
        }
        if transitions.contains(&Transition::Firing) {
            let annotations = self.rule.annotations.iter();
            entry.annotations = annotations.map(|(name, annotation)| (name.clone(), text(annotation))).collect();
        }
    }

    /// Makes the record of a transition, where it has one.
    fn tell(&mut self, key: &str, transition: Transition) {
        let entry = &self.entries[key];
        let alert = &entry.alert;
        let (state, time, starts_at, ends_at) = match transition {
            Transition::Pending if self.tells_pending => ("pending", alert.since, alert.since, None),
            Transition::Firing => ("firing", alert.started, alert.started, None),
            Transition::Resolved(at) => ("resolved", at, alert.started, Some(at)),
            Transition::Pending | Transition::Withdrawn => return,
        };
        let fingerprint = fingerprint(&self.rule.name, &entry.labels);
        let id = identity(&self.rule.name, &fingerprint, alert, state);
        let texts = |texts: &BTreeMap<String, String>| {
            Value::Object(texts.iter().map(|(name, text)| (name.as_str().into(), text.as_str().into())).collect())
        };
        let moment = |time: Timestamp| Value::from(time.to_string());
        let firing_id = identity(&self.rule.name, &fingerprint, alert, "firing");
        let record: [(&str, Value); 13] = [
            ("alert", Value::from(&*self.rule.name)),
            ("state", Value::from(state)),
            ("fingerprint", Value::from(fingerprint)),
            ("labels", texts(&entry.labels)),
            ("annotations", texts(&entry.annotations)),
            ("starts_at", moment(starts_at)),
            ("ends_at", ends_at.map_or(Value::Null, moment)),
            ("values", json::parse_value(entry.values.as_bytes()).unwrap_or(Value::Null)),
            ("evidence", entry.evidence.to_value()),
            ("matches", Value::Integer(entry.evidence.matches as i64)),
            ("episode", Value::Integer(alert.episode as i64)),
            ("id", Value::from(id)),
            ("firing_id", Value::from(firing_id)),
        ];
        let record: ObjectMap = record.into_iter().map(|(name, value)| (name.into(), value)).collect();
        self.told.push((time, Value::Object(record)));
    }

    /// Makes room for one more alert: those that are over go first.
    fn insert(&mut self, key: &Arc<str>, is_keyed: bool) -> Result<(), Full> {
        if self.entries.len() >= self.rule.max_alerts {
            let over = self.timers.iter().find(|(_, key)| self.entries[key].alert.phase == Phase::Inactive);
            let over = over.map(|(_, key)| Arc::clone(key)).ok_or(Full)?;
            self.forget(&over);
        }
        let entry = Entry {
            alert: Alert::new(),
            is_keyed,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            values: String::new(),
            evidence: Evidence::default(),
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
        if entry.alert.phase == Phase::Inactive {
            // What was told of it has been told: only its number is remembered.
            self.evidence_bytes -= entry.evidence.bytes();
            entry.evidence = Evidence::default();
            entry.annotations = BTreeMap::new();
            entry.labels = BTreeMap::new();
            entry.values = String::new();
        }
        let deadline = entry.alert.deadline(&self.rule.timing);
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
            let entry = self.entries.get_mut(&key).expect("timers are of entries");
            entry.timer = None;
            let deadline = entry.alert.deadline(&self.rule.timing);
            if deadline.is_none_or(|deadline| deadline > moment) {
                self.touch(&key);
                continue;
            }
            let before = entry.alert.phase;
            if before == Phase::Inactive {
                self.forget(&key);
                continue;
            }
            // At the end of all input no further value can come, so that none comes says nothing.
            if self.now == Timestamp::MAX && entry.is_keyed && entry.alert.is_merely_silent() {
                continue;
            }
            if let Some(transition) = entry.alert.elapse(self.now, &self.rule.timing) {
                self.tell(&key, transition);
            }
            self.count(before, self.entries[&key].alert.phase);
            self.touch(&key);
        }
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
        if !self.told.is_empty() {
            let told = std::mem::take(&mut self.told);
            output.make(told.len());
            output.emit(0, Batch::of_values(Arc::clone(&self.lane), told, self.arrival));
        }
    }

    fn clock(&self) -> ClockPiece {
        let lanes = self.lanes.iter();
        let lanes = lanes.map(|((source, partition), seen)| (source.to_string(), partition.clone(), seen.0)).collect();
        ClockPiece { lanes, merged: self.merged.0, now: self.now.0 }
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
            if members.is_empty() && group != 0 {
                piece(group, Vec::new());
                continue;
            }
            let entries = members.iter().map(|key| (key.to_string(), self.entries[key].clone())).collect();
            let content = Piece { entries, clock: (group == 0).then(|| self.clock()) };
            piece(group, serde_json::to_vec(&content).expect("texts and numbers"));
        }
    }

    fn restore(&mut self, group: u16, piece: &[u8]) -> Result<(), StateError> {
        if piece.is_empty() {
            return Ok(());
        }
        let unreadable = |error| StateError(format!("alerts of key group {group}: {error}"));
        let piece: Piece = serde_json::from_slice(piece).map_err(unreadable)?;
        for (key, entry) in piece.entries {
            let key: Arc<str> = key.into();
            self.evidence_bytes += entry.evidence.bytes();
            self.count(Phase::Inactive, entry.alert.phase);
            self.members[usize::from(key_group(key.as_bytes()))].insert(Arc::clone(&key));
            self.entries.insert(Arc::clone(&key), entry);
            self.touch(&key);
        }
        if let Some(clock) = piece.clock {
            let lanes = clock.lanes.into_iter();
            self.lanes = lanes.map(|(source, partition, seen)| ((source.into(), partition), Timestamp(seen))).collect();
            self.merged = Timestamp(clock.merged);
            self.now = Timestamp(clock.now);
        }
        self.changed.remove(&group);
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.entries.len() * 1024 + self.evidence_bytes
    }

    fn explain(&self) -> Vec<String> {
        vec![format!("condition: {}", self.rule.condition.way())]
    }

    fn tell_pending(&mut self) {
        self.tells_pending = true;
    }

    fn alerts(&self) -> Vec<(&'static str, usize)> {
        vec![("pending", self.pending), ("firing", self.firing)]
    }
}

fn json_text(value: &Value) -> String {
    let mut text = Vec::new();
    json::write_value(value, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The hash of the labels and the rule's name: the same for all episodes of an alert.
fn fingerprint(rule: &str, labels: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(rule);
    labels.iter().for_each(|(name, text)| [name, text].into_iter().for_each(|text| add(text)));
    hasher.finalize().to_hex()[..16].to_owned()
}

/// What a transition is called for ever. The moment at which the condition began to hold is part of it, so that it stays
/// unique when the count of episodes has been forgotten.
fn identity(rule: &str, fingerprint: &str, alert: &Alert, state: &str) -> String {
    let text = format!("tocsin alert 1\n{rule}\n{fingerprint}\n{}\n{}\n{state}", alert.since.0, alert.episode);
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests;
