//! `[[tests]]`: what a configuration does, as part of the configuration. Reading them is here; `tocsin test` runs them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;
use tocsin_pipeline::time::Timestamp;

use crate::component::Problem;
use crate::plan::{ComponentId, ExpectedAlert, ExpectedNotification, ExpectedRecords, Outlet, Place, Test, TestInput};
use crate::shape::nearest;
use crate::types::Duration;

/// A test of the pipeline: records arrive at its sources at given times on a virtual clock, and what comes out of its
/// components is compared with what is expected. No source is opened and nothing is sent.
///
/// A moment is written `"2026-11-20T12:00:00Z"`, or `"+90s"` after the test's `start`. Expected records name only the fields
/// that matter, unless `exact`.
///
/// Between inputs sources are idle: after their `idle_timeout` event time follows the clock that far behind, as in the daemon, and
/// what an operator waits for happens at its very moment. So an alert that is over 90 seconds after a record of noon, read with
/// `idle_timeout = "10s"`, is told as resolved at 12:01:40.
///
/// ```toml
/// [[tests]]
/// name = "a burst of errors pages the person on call"
/// input = [
///   { source = "access", at = "2026-11-20T12:00:00Z", records = ['{"status": 500}', '{"status": 502}'] },
///   { source = "access", at = "+30s", record = '{"status": 200}' },
/// ]
/// advance = "5m"
/// expect = [{ from = "error_rate", records = [{ errors = 2 }] }]
/// alerts = [{ rule = "high_error_rate", at = "+1m", state = "firing", labels = { severity = "critical" } }]
/// notifications = [{ receiver = "mail", at = "+1m", subject = "[FIRING] high_error_rate" }]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestOptions {
    /// What the test shows, as a sentence.
    pub name: String,
    /// What the clock shows at first: a moment with a date. Default: the first `at` of `input` if that has a date, else
    /// `"2026-01-01T00:00:00Z"`.
    pub start: Option<String>,
    /// What arrives, and when. Moments do not go back.
    pub input: Vec<TestInputOptions>,
    /// How far the clock goes on after the last input. With neither this nor `until` the input ends there: every window
    /// closes, as with `run --once`.
    pub advance: Option<Duration>,
    /// The moment up to which the clock goes on after the last input, instead of `advance`.
    pub until: Option<String>,
    /// Records that must come out of components.
    #[serde(default)]
    pub expect: Vec<ExpectOptions>,
    /// Transitions that rules must make.
    #[serde(default)]
    pub alerts: Vec<ExpectAlertOptions>,
    /// Exactly the notifications that must be sent, in order; `[]`: none at all. What several receivers are told at one moment has no
    /// order. Left out, they are not looked at.
    pub notifications: Option<Vec<ExpectNotificationOptions>>,
}

/// Records that arrive at one moment.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestInputOptions {
    /// The name of the source.
    pub source: String,
    /// When they arrive. Default: with the input before, or at `start`.
    pub at: Option<String>,
    /// One record, as text that the source's codec reads.
    pub record: Option<String>,
    /// Several records.
    pub records: Option<Vec<String>>,
}

/// Records that must come out of a component.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectOptions {
    /// The output, as `inputs` would have it: `NAME` or `NAME.port`. Of a sink `NAME` means what it is handed.
    pub from: String,
    /// The records: a table of fields, or text that must be the whole record. They come in this order; others may come
    /// between them unless `exact`.
    pub records: Vec<Json>,
    /// Whether these are all the records, and their fields all the fields.
    #[serde(default)]
    pub exact: bool,
}

/// A transition that a rule must make.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectAlertOptions {
    /// The name of an operator that emits alerts.
    pub rule: String,
    /// When, in event time. Default: some time.
    pub at: Option<String>,
    /// The state it changes to. `pending` can be asked for also where the rule does not tell it (`emit_pending`).
    pub state: AlertState,
    /// Labels that the alert must have.
    #[serde(default)]
    pub labels: BTreeMap<String, Json>,
}

/// The state of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The condition is true, but not for long enough.
    Pending,
    /// Somebody is told.
    Firing,
    /// It is over.
    Resolved,
    /// What came late says that a decision of the time `at` was wrong: what `NAME.amended` tells.
    Amended,
}

impl AlertState {
    /// The word it is written as, in the configuration and in alerts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
            Self::Amended => "amended",
        }
    }
}

/// A notification that must be sent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectNotificationOptions {
    /// The name of the sink.
    pub receiver: String,
    /// When it is sent.
    pub at: String,
    /// Its subject, in full. Default: does not matter.
    pub subject: Option<String>,
    /// Its body, in full. Default: does not matter.
    pub body: Option<String>,
}

/// The components by name: which, and its ports if they are known.
pub(crate) type Names = BTreeMap<String, (ComponentId, Option<Vec<String>>)>;

/// A moment as it is written.
enum Moment {
    At(Timestamp),
    /// After the start.
    After(std::time::Duration),
}

impl Moment {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix('+') {
            Some(duration) => Some(Self::After(duration.parse::<Duration>().ok()?.0)),
            None => Timestamp::parse_rfc3339(text.as_bytes()).map(Self::At),
        }
    }

    fn from(self, start: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::After(duration) => start.saturating_add(duration),
        }
    }
}

/// Where a test begins that says nothing of it: 2026-01-01T00:00:00Z.
const START: Timestamp = Timestamp::from_secs(1_767_225_600);

impl TestOptions {
    /// Resolves names and moments. `place` tells where an option is written.
    pub(crate) fn resolve(
        &self,
        names: &Names,
        place: &dyn Fn(&str) -> Place,
        problems: &mut Vec<Problem>,
    ) -> Option<Test> {
        let found = problems.len();
        let first = self.input.first().and_then(|input| input.at.as_deref());
        let start = match (&self.start, first.and_then(Moment::parse)) {
            (Some(start), _) => Timestamp::parse_rfc3339(start.as_bytes()).unwrap_or_else(|| {
                problems.push(
                    Problem::new("start", format!("{start:?} is not a moment"))
                        .help("write a date and time such as \"2026-11-20T12:00:00Z\""),
                );
                START
            }),
            (None, Some(Moment::At(at))) => at,
            (None, _) => START,
        };
        let mut resolver = Resolver { names, start, problems };
        let input = resolver.input(&self.input);
        let last = input.last().map_or(start, |input| input.at);
        let until = match (self.advance, self.until.as_deref()) {
            (Some(_), Some(_)) => {
                resolver
                    .problem(Problem::new("until", "`advance` and `until` say the same").help("remove one of them"));
                None
            }
            (Some(advance), None) => Some(last.saturating_add(advance.0)),
            (None, Some(until)) => {
                let until = resolver.moment("until", until);
                if until < last {
                    resolver
                        .problem(Problem::new("until", "this is before the last input").help("write a later moment"));
                }
                Some(until)
            }
            (None, None) => None,
        };
        let expect = resolver.expect(&self.expect, place);
        let alerts = resolver.alerts(&self.alerts, place);
        let notifications =
            self.notifications.as_ref().map(|notifications| resolver.notifications(notifications, place));
        if self.expect.is_empty() && self.alerts.is_empty() && self.notifications.is_none() {
            resolver.problem(
                Problem::new("", format!("the test {:?} expects nothing, so it cannot fail", self.name))
                    .help("add `expect`, `alerts` or `notifications`"),
            );
        }
        let is_right = resolver.problems.len() == found;
        is_right.then(|| Test {
            name: self.name.clone(),
            start,
            input,
            until,
            expect,
            alerts,
            notifications,
            place: place(""),
        })
    }
}

struct Resolver<'a> {
    names: &'a Names,
    start: Timestamp,
    problems: &'a mut Vec<Problem>,
}

impl Resolver<'_> {
    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn moment(&mut self, option: &str, text: &str) -> Timestamp {
        match Moment::parse(text) {
            Some(moment) => moment.from(self.start),
            None => {
                self.problem(
                    Problem::new(option, format!("{text:?} is not a moment"))
                        .help("write \"2026-11-20T12:00:00Z\", or \"+90s\" for so long after the start"),
                );
                self.start
            }
        }
    }

    /// The component of a name, if it is what it should be.
    fn component<T>(
        &mut self,
        option: &str,
        name: &str,
        noun: &str,
        pick: impl Fn(ComponentId) -> Option<T>,
    ) -> Option<T> {
        let known = self.names.get(name).and_then(|(id, _)| pick(*id));
        if known.is_none() {
            let candidates =
                self.names.iter().filter(|(_, (id, _))| pick(*id).is_some()).map(|(name, _)| name.as_str());
            let help = nearest(name, candidates).map(|meant| format!("did you mean `{meant}`?"));
            let mut problem = Problem::new(option, format!("there is no {noun} called `{name}`"));
            problem.help = help;
            self.problem(problem);
        }
        known
    }

    fn input(&mut self, inputs: &[TestInputOptions]) -> Vec<TestInput> {
        let mut at = self.start;
        let mut resolved = Vec::new();
        for (number, input) in inputs.iter().enumerate() {
            let source = self.component(&format!("input.{number}.source"), &input.source, "source", |id| match id {
                ComponentId::Source(at) => Some(at),
                ComponentId::Operator(_) | ComponentId::Sink(_) => None,
            });
            if let Some(text) = &input.at {
                let option = format!("input.{number}.at");
                let moment = self.moment(&option, text);
                if moment < at && Moment::parse(text).is_some() {
                    self.problem(
                        Problem::new(option, format!("{text:?} is before the input above it or before the start"))
                            .help("the clock does not go back: order the input by time"),
                    );
                }
                at = moment.max(at);
            }
            let records = match (&input.record, &input.records) {
                (Some(record), None) => vec![record.clone()],
                (None, Some(records)) => records.clone(),
                _ => {
                    self.problem(
                        Problem::new(format!("input.{number}"), "an input has either `record` or `records`")
                            .help("write `record = \"…\"` for one, `records = [\"…\", \"…\"]` for several"),
                    );
                    Vec::new()
                }
            };
            resolved.extend(source.map(|source| TestInput { source, at, records }));
        }
        resolved
    }

    fn expect(&mut self, expect: &[ExpectOptions], place: &dyn Fn(&str) -> Place) -> Vec<ExpectedRecords> {
        let mut resolved = Vec::new();
        for (number, expected) in expect.iter().enumerate() {
            let option = format!("expect.{number}.from");
            let (name, port) = match expected.from.split_once('.') {
                Some((name, port)) => (name, Some(port)),
                None => (expected.from.as_str(), None),
            };
            let Some(component) = self.component(&option, name, "component", Some) else { continue };
            let port = match (port, self.names.get(name).and_then(|(_, ports)| ports.as_ref())) {
                (None, _) => 0,
                (Some(port), Some(ports)) => match ports.iter().position(|known| known == port) {
                    Some(at) => at + 1,
                    None => {
                        let mut problem = Problem::new(&option, format!("`{name}` has no output `{port}`"));
                        problem.help = nearest(port, ports.iter().map(String::as_str))
                            .map(|meant| format!("did you mean `{name}.{meant}`?"));
                        self.problem(problem);
                        continue;
                    }
                },
                // Its options are wrong, which is told already.
                (Some(_), None) => continue,
            };
            let records: Vec<Json> = expected.records.iter().cloned().map(plain).collect();
            for (at, record) in records.iter().enumerate() {
                if !record.is_object() && !record.is_string() {
                    self.problem(
                        Problem::new(format!("expect.{number}.records.{at}"), "a record is a table of fields, or text")
                            .help("write `{ field = value }`, or `'…'` for the whole record"),
                    );
                }
            }
            resolved.push(ExpectedRecords {
                from: Outlet { component, port },
                name: expected.from.clone(),
                records,
                exact: expected.exact,
                place: place(&format!("expect.{number}")),
            });
        }
        resolved
    }

    fn alerts(&mut self, alerts: &[ExpectAlertOptions], place: &dyn Fn(&str) -> Place) -> Vec<ExpectedAlert> {
        let mut resolved = Vec::new();
        for (number, alert) in alerts.iter().enumerate() {
            let rule = self.component(&format!("alerts.{number}.rule"), &alert.rule, "operator", |id| match id {
                ComponentId::Operator(at) => Some(at),
                ComponentId::Source(_) | ComponentId::Sink(_) => None,
            });
            let at = alert.at.as_deref().map(|at| self.moment(&format!("alerts.{number}.at"), at));
            let labels = alert.labels.iter().map(|(name, value)| (name.clone(), plain(value.clone()))).collect();
            let place = place(&format!("alerts.{number}"));
            resolved.extend(rule.map(|rule| ExpectedAlert { rule, at, state: alert.state, labels, place }));
        }
        resolved
    }

    fn notifications(
        &mut self,
        notifications: &[ExpectNotificationOptions],
        place: &dyn Fn(&str) -> Place,
    ) -> Vec<ExpectedNotification> {
        let mut resolved = Vec::new();
        for (number, expected) in notifications.iter().enumerate() {
            let option = format!("notifications.{number}.receiver");
            let receiver = self.component(&option, &expected.receiver, "sink", |id| match id {
                ComponentId::Sink(at) => Some(at),
                ComponentId::Source(_) | ComponentId::Operator(_) => None,
            });
            let at = self.moment(&format!("notifications.{number}.at"), &expected.at);
            resolved.extend(receiver.map(|receiver| ExpectedNotification {
                receiver,
                at,
                subject: expected.subject.clone(),
                body: expected.body.clone(),
                place: place(&format!("notifications.{number}")),
            }));
        }
        resolved
    }
}

/// JSON as a record has it: TOML's dates, which serde hands over as tables with a name of their own, are text there.
fn plain(json: Json) -> Json {
    match json {
        Json::Object(object) => {
            if let (1, Some(date)) = (object.len(), object.get("$__toml_private_datetime")) {
                return date.clone();
            }
            Json::Object(object.into_iter().map(|(name, value)| (name, plain(value))).collect())
        }
        Json::Array(values) => Json::Array(values.into_iter().map(plain).collect()),
        other => other,
    }
}
