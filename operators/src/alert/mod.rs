//! Alerts in: what a rule watches becomes alerts with a life of their own.

mod alerts;
mod course;
mod evidence;
mod history;
mod record;
mod rule;
mod series;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;
use tocsin_config::AMENDED;
use tocsin_config::component::{BuildContext, FieldRead, Keying, Makes, OperatorConfig, Problem, Told};
use tocsin_config::facts::{Facts, LabelText, RuleFacts, Watched};
use tocsin_config::types::Duration;
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::expression::{Condition, Diagnostic, Expression};
use tocsin_pipeline::operator::{Built, Ports};
use tocsin_pipeline::template::{Escape, Template, TemplateError};
use vrl::path::{OwnedSegment, OwnedValuePath};

use self::alerts::Alerts;
use self::course::{Flapping, Times};
use self::watch::{Keys, Level, Rule, Select};
use crate::fields::{of_condition, of_expression, of_template};

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
/// text is left out. **Annotations** tell about it and are rendered when it begins to fire and when a record takes it to another level.
/// In both, `{{ field }}` stands for a field of the record; one that is missing stands for nothing and is counted as an expression error.
/// On a window, where it is known which fields its records have, a field that they never have is a problem that `tocsin check` tells.
///
/// **Levels** are severities of one rule in the place of `condition`, rising. There is one alert per key at a time, on the highest level
/// that holds; a level holds where its own condition or one above it is true. The label `severity` says which it is and is no part of
/// `fingerprint`, which stays the same over all levels. Going to another level while it fires is a record too, of the state
/// `firing` with the severity before as `previous_level`, a new `id`, and the same `episode` and `firing_id`. A level that ceases to hold goes as
/// an alert would: after `keep_firing_for`, and on plain records after `resolve_after` without a match. When none holds any more,
/// it is resolved, and its label then says which level was the last.
///
/// **Flapping** is an alert that begins to fire, goes to another level or is resolved so often as `flapping` says. The last of these rises, and
/// is told with `"flapping": true`; from then on the alert stays as high as it was, however often the condition ceases to hold and
/// holds again, and nobody is told, unless it rises to a level above. When it has not held for the time `within` it is resolved; when it has held for that time without
/// a break, it is told once more, as firing and `"flapping": false`, and goes on as any other.
///
/// **Evidence** is the first and last records that matched: their text, what they come from, their coordinate, and the BLAKE3 `hash` of the
/// whole record as it came in, so that `tocsin evidence ID` can look whether it still is there. With `context`, a plain record also has
/// the lines that stood around it in its file, connection or partition as `before` and `after`: of those that the rule reads, so what a
/// `filter` before it leaves out is not among them, and `after` holds those that have come by the time that the alert is told.
///
/// **The value over time**, while it is active, is told as `history`: `[[unix seconds, number], …]`, at most 60 points, of the first number that the
/// condition reads, or the first there is. When there are more values, every second point is left out.
///
/// **What was told** is kept too, the last `history` records of it, and is what `tocsin evidence` and `tocsin explain` read.
///
/// **State:** for each alert its phase, its texts, and its first and last records (2 KiB of each at most, 512 bytes of lines around them, 64 MiB in all);
/// for a day of event time after the end a few numbers. What was told last: 16 MiB at most. At most `max_alerts`: those that are over are forgotten first; if
/// all are active, records of further keys are dropped and counted as `state_full`.
///
/// **When options change:** alerts are kept, whatever changes: each is known by its labels, and the next value decides by the new
/// condition and times. One that the new `group_by` or `labels` do not make any more is over after `resolve_after`, and that is told. A rule
/// that is removed while it fires tells nothing more: to have its alerts resolved, give it the condition `"false"` first.
///
/// **Late events:** an update of a window older than the one that decided last (or one that says it is `superseded`) changes nothing. If it says
/// otherwise than the window did (one of the last 16 that decided), that is handed on as `NAME.amended`. So is a plain record that comes after its
/// alert was resolved, but happened early enough that it would not have been resolved then; it also fires anew.
///
/// ```json
/// {"alert": "high_error_rate", "state": "amended", "labels": {"vhost": "shop"}, "amends": "b3c2…", "time": "2026-11-20T12:03:00Z",
///  "was": false, "is": true, "values": {"errors": 212}, "fingerprint": "8d1f…", "id": "77e0…"}
/// ```
///
/// `was` and `is` say whether the condition held at `time`, as was decided and as is known now; `amends` is the `id` of what was told
/// of that decision, null if nothing was.
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
    condition: Option<String>,
    /// Instead of `condition`: several severities, from the lowest to the highest, each with what is to be true. At most 16.
    #[serde(default)]
    levels: Vec<LevelOptions>,
    /// The label that tells the severity, where there are `levels`.
    #[serde(default = "severity")]
    level_label: String,
    /// How long the condition must hold before the alert fires. Default `"0s"`: at once.
    #[serde(rename = "for", default = "nothing")]
    pending_for: Duration,
    /// How long it goes on firing after the condition has ceased to hold. Default `"0s"`.
    #[serde(default = "nothing")]
    keep_firing_for: Duration,
    /// How long without a match (on windows: without a value) before the alert is over, in event time. Default `"5m"`; on
    /// windows twice the length of the window if that is longer.
    resolve_after: Option<Duration>,
    /// When an alert counts as flapping. Default: never.
    flapping: Option<FlappingOptions>,
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
    /// How many lines before and how many after each record of the evidence are kept with it. Default 0, at most 10.
    #[serde(default)]
    context: usize,
    /// How many of the records that it has told are kept. Default 1000, at most 100000.
    #[serde(default = "thousand")]
    history: usize,
    /// How many alerts are known at a time, those that ended within a day included. Default 100000, at most 10000000.
    #[serde(default = "hundred_thousand")]
    max_alerts: usize,
    /// Within which time from the arrival of the record that makes it fire each receiver must have accepted it. Where that takes longer, the
    /// source `internal` tells `alert_late` of this rule. What it takes is measured in any case: `tocsin_alert_latency_seconds`.
    slo: Option<Duration>,
    /// Whether the transition to pending is a record too. Default false: then sinks are not told of it.
    #[serde(default)]
    emit_pending: bool,
}

/// One severity of a rule.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LevelOptions {
    /// Its name: what the label says.
    severity: String,
    /// VRL: what is to be true of a record for it.
    condition: String,
    /// How long it must hold. Default: the rule's `for`.
    #[serde(rename = "for")]
    pending_for: Option<Duration>,
}

/// When an alert flaps.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FlappingOptions {
    /// So many changes, each a beginning to fire, a going to another level, or a being resolved. From 2 to 100.
    changes: usize,
    /// Within this event time. At most `"1d"`.
    within: Duration,
}

fn severity() -> String {
    "severity".to_owned()
}

fn thousand() -> usize {
    1000
}

fn nothing() -> Duration {
    Duration(std::time::Duration::ZERO)
}

fn five() -> usize {
    5
}

fn hundred_thousand() -> usize {
    100_000
}

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

fn diagnosed(option: String, diagnostic: Diagnostic) -> Problem {
    Problem { option, within: Some(diagnostic.within), message: diagnostic.message, help: diagnostic.help }
}

impl Config {
    /// The severities, from the lowest on, with their conditions and how long they must hold.
    fn conditions(&self) -> Vec<(Option<&str>, &str, Duration)> {
        let alone = self.condition.iter().map(|condition| (None, condition.as_str(), self.pending_for));
        let levels = self.levels.iter().map(|level| {
            let pending_for = level.pending_for.unwrap_or(self.pending_for);
            (Some(level.severity.as_str()), level.condition.as_str(), pending_for)
        });
        alone.chain(levels).collect()
    }

    fn condition_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.condition, &self.levels[..]) {
            (None, []) => problems.push(
                Problem::new("", "it does not say what to watch for")
                    .help("add `condition = \".errors > 100\"`, or `levels` for several severities"),
            ),
            (Some(_), [_, ..]) => problems.push(
                Problem::new("levels", "each of the `levels` has a condition of its own")
                    .help("remove `condition`, or make it the lowest of the levels"),
            ),
            _ => {}
        }
        if let Some(condition) = &self.condition {
            let found = Condition::check(condition).into_iter();
            problems.extend(found.map(|found| diagnosed("condition".into(), found)));
        }
        if self.levels.len() > 16 {
            problems.push(Problem::new("levels", format!("{} are more than 16", self.levels.len())));
        }
        for (at, level) in self.levels.iter().enumerate() {
            let found = Condition::check(&level.condition).into_iter();
            problems.extend(found.map(|found| diagnosed(format!("levels[{at}].condition"), found)));
            if level.severity.is_empty() {
                problems.push(Problem::new(format!("levels[{at}].severity"), "a severity has a name"));
            } else if self.levels[..at].iter().any(|other| other.severity == level.severity) {
                problems.push(
                    Problem::new(
                        format!("levels[{at}].severity"),
                        format!("there is a level {:?} already", level.severity),
                    )
                    .help("combine their conditions with `||`"),
                );
            }
        }
        if !self.levels.is_empty() {
            problems.extend(self.level_label_problems());
        }
        problems
    }

    fn level_label_problems(&self) -> Vec<Problem> {
        let name = &self.level_label;
        let keys = self.group_by.iter().flatten();
        if !is_label_name(name) {
            let message = format!("{name:?} is not a name of a label");
            return vec![
                Problem::new("level_label", message).help("write letters, digits and `_`, not beginning with a digit"),
            ];
        }
        let taken = self.labels.contains_key(name).then(|| format!("labels.{name}"));
        let taken = taken.or_else(|| {
            let at = keys.enumerate().find(|(_, source)| key_name(source) == *name)?.0;
            Some(format!("group_by[{at}]"))
        });
        let problem = |option| {
            Problem::new(option, format!("the label `{name}` says which of the `levels` it is"))
                .help("give it another name, or set `level_label`")
        };
        taken.map(problem).into_iter().collect()
    }

    fn bound_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(FlappingOptions { changes, within }) = &self.flapping {
            if !(2..=100).contains(changes) {
                problems.push(Problem::new("flapping.changes", "must be from 2 to 100"));
            }
            if within.0.is_zero() || within.0 > DAY {
                problems.push(Problem::new("flapping.within", "must be longer than nothing and at most a day"));
            }
        }
        if self.evidence > 100 {
            problems.push(Problem::new("evidence", "must be at most 100"));
        }
        if self.context > 10 {
            problems.push(Problem::new("context", "must be at most 10"));
        }
        if self.history > 100_000 {
            problems.push(Problem::new("history", "must be at most 100000"));
        }
        if !(1..=10_000_000).contains(&self.max_alerts) {
            problems.push(Problem::new("max_alerts", "must be from 1 to 10000000"));
        }
        if self.slo.is_some_and(|slo| slo.0.is_zero()) {
            problems.push(Problem::new("slo", "must be longer than nothing"));
        }
        if self.resolve_after.is_some_and(|after| after.0.is_zero()) {
            problems.push(Problem::new("resolve_after", "must be longer than nothing"));
        }
        problems
    }
}

impl OperatorConfig for Config {
    const NAME: &'static str = "alert";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.condition_problems();
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
        problems.extend(self.bound_problems());
        problems
    }

    fn ports(&self) -> Ports {
        vec![AMENDED.to_owned()]
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

    fn facts(&self) -> Facts {
        let text = |text: &String| match Template::compile(text, Escape::None) {
            Ok(label) if text.contains("{{") || text.contains("{%") => LabelText::Of(label.variables().clone()),
            _ => LabelText::Fixed(vec![text.clone()]),
        };
        let alone = self.condition.iter().map(|condition| Watched {
            option: "condition".to_owned(),
            condition: condition.clone(),
            for_option: "for".to_owned(),
            pending_for: self.pending_for.0,
        });
        let levels = self.levels.iter().enumerate().map(|(at, level)| Watched {
            option: format!("levels[{at}].condition"),
            condition: level.condition.clone(),
            for_option: level.pending_for.map_or_else(|| "for".to_owned(), |_| format!("levels[{at}].for")),
            pending_for: level.pending_for.unwrap_or(self.pending_for).0,
        });
        let mut labels: BTreeMap<_, _> = self.labels.iter().map(|(name, label)| (name.clone(), text(label))).collect();
        if !self.levels.is_empty() {
            let severities = self.levels.iter().map(|level| level.severity.clone()).collect();
            labels.insert(self.level_label.clone(), LabelText::Fixed(severities));
        }
        Facts::Rule(RuleFacts {
            conditions: alone.chain(levels).collect(),
            keep_firing_for: self.keep_firing_for.0,
            resolve_after: self.resolve_after.map(|after| after.0),
            flapping: self.flapping.as_ref().map(|flapping| (flapping.changes, flapping.within.0)),
            keys: self.group_by.as_ref().map(|keys| keys.iter().map(|source| key_name(source)).collect()),
            labels,
            annotations: self.annotations.keys().cloned().collect(),
        })
    }

    /// Keys are labels too, unless a label of the same name says something else.
    fn makes(&self) -> Makes {
        let is_the_field = |name: &str, text: &str| {
            let inner = text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
            inner.is_some_and(|inner| inner.trim() == name)
        };
        let others = self.labels.iter().filter(|(name, text)| !is_the_field(name, text));
        let severity = (!self.levels.is_empty()).then(|| self.level_label.clone());
        Makes::Within { path: ".labels", except: others.map(|(name, _)| name.clone()).chain(severity).collect() }
    }

    fn fields(&self) -> Option<BTreeSet<String>> {
        Some(record::FIELDS.map(str::to_owned).into())
    }

    fn reads_fields(&self) -> Vec<FieldRead> {
        let mut read: Vec<_> =
            self.condition.iter().flat_map(|condition| of_condition("condition", condition)).collect();
        for (at, level) in self.levels.iter().enumerate() {
            read.extend(of_condition(&format!("levels[{at}].condition"), &level.condition));
        }
        for (at, source) in self.group_by.iter().flatten().enumerate() {
            read.extend(of_expression(&format!("group_by[{at}]"), source));
        }
        let keys: BTreeSet<_> = self.group_by.iter().flatten().map(|source| key_name(source)).collect();
        let is_ours = |field: &str| keys.contains(field) || !self.levels.is_empty() && field == self.level_label;
        for (option, texts) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            let named = texts.iter().flat_map(|(name, text)| of_template(&format!("{option}.{name}"), text));
            read.extend(named.filter(|named| !is_ours(&named.field)));
        }
        read
    }

    fn told(rule: &str, pieces: &[&[u8]]) -> Told {
        alerts::told(rule, pieces)
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let level = |(severity, condition, _): (Option<&str>, &str, Duration)| Level {
            severity: severity.map(str::to_owned),
            condition: Condition::compile(condition, context.paths).expect("checked"),
        };
        let levels: Vec<_> = self.conditions().into_iter().map(level).collect();
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
        let watched = levels.iter().fold(Projection::default(), |reads, level| reads.union(&level.condition.reads()));
        let reads = watched.union(&keys.reads());
        let flapping = self.flapping.as_ref();
        let rule = Arc::new(Rule {
            name: Arc::clone(&context.name),
            levels,
            level_label: self.level_label.clone(),
            watched,
            reads: reads.clone(),
            keys,
            labels,
            annotations: templates(&self.annotations),
            times: Times {
                pending_for: self.conditions().into_iter().map(|(_, _, pending_for)| pending_for.0).collect(),
                keep_firing_for: self.keep_firing_for.0,
                flapping: flapping
                    .map(|FlappingOptions { changes, within }| Flapping { changes: *changes, within: within.0 }),
            },
            resolve_after: self.resolve_after.map(|after| after.0),
            evidence: self.evidence,
            context: self.context,
            history: self.history,
            max_alerts: self.max_alerts,
            slo: self.slo.map(|slo| slo.0),
            emit_pending: self.emit_pending,
            tells_amended: context.connected.iter().any(|port| port == AMENDED),
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

#[cfg(test)]
mod tests;
