//! What came of a replay: alerts and notifications in order of time, episodes, and counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tocsin_config::plan::AlertState;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::json::write_value;
use tocsin_pipeline::simulation::Simulation;
use tocsin_pipeline::time::Timestamp;

/// How many alerts and how many notifications are told one by one; further ones are only counted.
const TOLD_MAX: usize = 1_000_000;
/// How much memory the bodies of notifications may take; of further ones the first line is kept.
const BODIES_MAX: usize = 256 << 20;
/// No first line is kept longer.
const LINE_MAX: usize = 1024;

/// A transition of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Event time.
    pub time: Timestamp,
    pub rule: Arc<str>,
    pub state: AlertState,
    pub fingerprint: String,
    pub labels: BTreeMap<String, String>,
    /// The annotation `summary`, as it reads at the moment; of an amendment, what it says.
    pub summary: Option<String>,
}

/// Something that a receiver would have been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// When: the clock, had the records come when they happened.
    pub time: Timestamp,
    pub receiver: Arc<str>,
    /// The operator that the record comes from.
    pub from: Arc<str>,
    pub subject: Option<String>,
    pub body: String,
}

impl Sent {
    /// What tells it in one line.
    pub fn line(&self) -> &str {
        let body = || self.body.lines().find(|line| !line.trim().is_empty());
        self.subject.as_deref().or_else(body).unwrap_or_default()
    }
}

/// From firing to resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Episode {
    pub rule: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub start: Timestamp,
    /// `None`: it fires at the end.
    pub end: Option<Timestamp>,
}

/// What became of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSummary {
    pub fired: u64,
    pub resolved: u64,
    /// The longest episode; one that fires at the end counts up to there.
    pub longest: Duration,
    /// How many fire at the end.
    pub firing: u64,
    /// How many decisions would have been others with what came late.
    pub amended: u64,
}

/// All that came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Ordered by time.
    pub transitions: Vec<Transition>,
    /// Ordered by time.
    pub sent: Vec<Sent>,
    /// Those that are told begin here at the earliest.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// The rules of the configuration.
    pub rules: Vec<Arc<str>>,
    /// How many alerts and notifications there were beyond those above.
    pub left_out: u64,
    pub read: u64,
    pub undecodable: u64,
    pub late: u64,
    /// The times of the first and of the last record; `None`: there was none.
    pub span: Option<(Timestamp, Timestamp)>,
}

impl Outcome {
    /// Where what is told begins and ends.
    pub fn stretch(&self) -> Option<(Timestamp, Timestamp)> {
        let (first, last) = self.span?;
        let end = self.until.unwrap_or_else(|| self.transitions.iter().fold(last, |end, told| end.max(told.time)));
        Some((self.since.unwrap_or(first).min(end), end))
    }

    pub fn is_told(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since)
    }

    /// All episodes that reach into what is told, ordered by rule, labels and time.
    pub fn episodes(&self) -> Vec<Episode> {
        let mut open: BTreeMap<(&str, &str), Episode> = BTreeMap::new();
        let mut episodes = Vec::new();
        for told in &self.transitions {
            let key = (&*told.rule, told.fingerprint.as_str());
            match told.state {
                AlertState::Pending | AlertState::Amended => {}
                AlertState::Firing => {
                    let (rule, labels) = (Arc::clone(&told.rule), told.labels.clone());
                    let begun = Episode { rule, labels, start: told.time, end: None };
                    episodes.extend(open.insert(key, begun));
                }
                AlertState::Resolved => {
                    if let Some(mut episode) = open.remove(&key) {
                        episode.end = Some(told.time);
                        episodes.push(episode);
                    }
                }
            }
        }
        episodes.extend(open.into_values());
        episodes.retain(|episode| episode.end.is_none_or(|end| self.is_told(end)));
        episodes.sort();
        episodes
    }

    /// What became of each rule, by name.
    pub fn by_rule(&self) -> BTreeMap<&str, RuleSummary> {
        let mut rules: BTreeMap<&str, RuleSummary> =
            self.rules.iter().map(|rule| (&**rule, RuleSummary::default())).collect();
        for told in self.transitions.iter().filter(|told| self.is_told(told.time)) {
            let rule = rules.entry(&told.rule).or_default();
            match told.state {
                AlertState::Pending => {}
                AlertState::Firing => rule.fired += 1,
                AlertState::Resolved => rule.resolved += 1,
                AlertState::Amended => rule.amended += 1,
            }
        }
        let end = self.stretch().map_or(Timestamp::MIN, |(_, end)| end);
        let episodes = self.episodes();
        for episode in &episodes {
            let Some(rule) = rules.get_mut(&*episode.rule) else { continue };
            rule.longest = rule.longest.max(episode.end.unwrap_or(end).since(episode.start));
            rule.firing += u64::from(episode.end.is_none());
        }
        rules
    }

    /// How many notifications each receiver would have been sent.
    pub fn by_receiver(&self) -> BTreeMap<&str, u64> {
        let mut receivers = BTreeMap::new();
        for sent in self.sent.iter().filter(|sent| self.is_told(sent.time)) {
            *receivers.entry(&*sent.receiver).or_default() += 1;
        }
        receivers
    }
}

/// Collects what arrives at sinks.
pub struct Collector {
    /// The rules, by the number of the sink that reads each.
    rules: BTreeMap<usize, Arc<str>>,
    /// The names of sinks, by number.
    names: Vec<Arc<str>>,
    since: Option<Timestamp>,
    transitions: Vec<Transition>,
    sent: Vec<Sent>,
    left_out: u64,
    body_bytes: usize,
    /// The time of the last record, once there are no more.
    end: Option<Timestamp>,
}

impl Collector {
    pub fn new(rules: BTreeMap<usize, Arc<str>>, names: Vec<Arc<str>>, since: Option<Timestamp>) -> Self {
        let (transitions, sent) = (Vec::new(), Vec::new());
        Self { rules, names, since, transitions, sent, left_out: 0, body_bytes: 0, end: None }
    }

    /// All input has ended: windows close. That nothing more comes resolves nothing, as logs end where they were cut off.
    pub fn ends(&mut self, last: Timestamp) {
        self.end = Some(last);
    }

    /// Takes what has arrived.
    pub fn take(&mut self, simulation: &mut Simulation) {
        for arrival in simulation.take_arrivals() {
            for row in arrival.batch.rows() {
                let time = arrival.batch.time(row);
                if let Some(rule) = self.rules.get(&arrival.sink) {
                    let transition = transition(rule, time, &record(&arrival.batch, row));
                    self.extend(transition);
                    continue;
                }
                let Some(told) = simulation.preview(&arrival, row) else { continue };
                if self.end.is_some_and(|end| time > end) && record(&arrival.batch, row)["state"] == "resolved" {
                    continue;
                }
                let receiver = Arc::clone(&self.names[arrival.sink]);
                let (time, from) = (arrival.at.max(time), Arc::clone(&arrival.batch.lane.source));
                self.send(Sent { time, receiver, from, subject: told.subject, body: told.body });
            }
        }
    }

    fn extend(&mut self, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        if transition.state == AlertState::Resolved && self.end.is_some_and(|end| transition.time > end) {
            return;
        }
        if self.transitions.len() >= TOLD_MAX {
            self.left_out += 1;
            return;
        }
        self.transitions.push(transition);
    }

    fn send(&mut self, mut sent: Sent) {
        if self.since.is_some_and(|since| sent.time < since) {
            return;
        }
        if self.sent.len() >= TOLD_MAX {
            self.left_out += 1;
            return;
        }
        if self.body_bytes + sent.body.len() > BODIES_MAX {
            sent.body = sent.line().chars().take(LINE_MAX).collect();
        }
        self.body_bytes += sent.body.len();
        self.sent.push(sent);
    }

    /// All that was taken, in order of time. Which of several rules was first within a second does not show: that may depend on
    /// how blocks were cut.
    pub fn finish(mut self) -> Outcome {
        // What came late shows after what was decided.
        let amended = |told: &Transition| (told.state == AlertState::Amended).then(|| told.fingerprint.clone());
        self.transitions.sort_by_cached_key(|told| (told.time, Arc::clone(&told.rule), amended(told)));
        self.sent.sort_by(|one, other| {
            (one.time, &one.receiver, &one.from).cmp(&(other.time, &other.receiver, &other.from))
        });
        let mut rules: Vec<_> = self.rules.into_values().collect();
        rules.sort();
        rules.dedup();
        Outcome {
            transitions: self.transitions,
            sent: self.sent,
            since: self.since,
            rules,
            left_out: self.left_out,
            ..Outcome::default()
        }
    }
}

fn record(batch: &Batch, row: u32) -> Json {
    let mut json = Vec::new();
    write_value(&batch.value(row), &mut json);
    serde_json::from_slice(&json).unwrap_or(Json::Null)
}

/// The transition that a record of a rule tells of.
fn transition(rule: &Arc<str>, time: Timestamp, record: &Json) -> Option<Transition> {
    let state = match record["state"].as_str()? {
        "pending" => AlertState::Pending,
        "firing" => AlertState::Firing,
        "resolved" => AlertState::Resolved,
        "amended" => AlertState::Amended,
        _ => return None,
    };
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let labels = record["labels"].as_object().into_iter().flatten();
    let labels = labels.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect();
    let summary = match (state, &record["is"]) {
        (AlertState::Amended, Json::Bool(true)) => Some("what came late says that the condition held".to_owned()),
        (AlertState::Amended, _) => Some("what came late says that the condition did not hold".to_owned()),
        _ => text(&record["annotations"]["summary"]),
    };
    Some(Transition {
        time,
        rule: Arc::clone(rule),
        state,
        fingerprint: text(&record["fingerprint"]).unwrap_or_default(),
        labels,
        summary,
    })
}
