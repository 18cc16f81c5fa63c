//! Two replays of the same logs, compared: which alerts came, went and moved, and what each receiver is told more or less.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;
use tocsin_pipeline::time::Timestamp;

use super::outcome::{Episode, Outcome, Sent};
use super::text::labels_text;

/// How two replays differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Ordered by time.
    pub changes: Vec<Change>,
    /// How many episodes are the same.
    pub same: u64,
    pub receivers: BTreeMap<String, Told>,
}

/// What became of an episode: in the old configuration, and in the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Gained(Episode),
    Lost(Episode),
    /// It begins or ends at another time.
    Moved(Episode, Episode),
}

/// What a receiver is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub old: u64,
    pub new: u64,
    /// How many of the new ones are not among the old ones, at their time and word for word.
    pub others: u64,
}

impl Told {
    fn is_same(self) -> bool {
        self.old == self.new && self.others == 0
    }
}

impl Difference {
    pub fn is_none(&self) -> bool {
        self.changes.is_empty() && self.receivers.values().all(|told| told.is_same())
    }
}

/// Compares two replays of the same logs.
pub fn compare(old: &Outcome, new: &Outcome) -> Difference {
    let mut difference = Difference::default();
    let mut sides: BTreeMap<_, (Vec<Episode>, Vec<Episode>)> = BTreeMap::new();
    let key = |episode: &Episode| (episode.rule.clone(), episode.labels.clone());
    for episode in old.episodes() {
        sides.entry(key(&episode)).or_default().0.push(episode);
    }
    for episode in new.episodes() {
        sides.entry(key(&episode)).or_default().1.push(episode);
    }
    for (old, new) in sides.into_values() {
        pair(old, new, &mut difference);
    }
    difference.changes.sort_by_key(|change| {
        let episode = change.episode();
        (episode.start, episode.rule.clone(), episode.labels.clone())
    });
    fn told(sent: &Sent) -> (Timestamp, &str, Option<&str>, &str) {
        (sent.time, &sent.receiver, sent.subject.as_deref(), &sent.body)
    }
    let mut unmatched: BTreeMap<_, u64> = BTreeMap::new();
    for sent in &old.sent {
        *unmatched.entry(told(sent)).or_default() += 1;
        difference.receivers.entry(sent.receiver.to_string()).or_default().old += 1;
    }
    for sent in &new.sent {
        let counts = difference.receivers.entry(sent.receiver.to_string()).or_default();
        counts.new += 1;
        match unmatched.get_mut(&told(sent)).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => counts.others += 1,
        }
    }
    difference
}

/// Pairs the episodes of one alert that overlap, in their order.
fn pair(old: Vec<Episode>, new: Vec<Episode>, difference: &mut Difference) {
    let end = |episode: &Episode| episode.end.unwrap_or(Timestamp::MAX);
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (Some(one), Some(other)) if end(one) < other.start => {
                difference.changes.extend(old.next().map(Change::Lost))
            }
            (Some(one), Some(other)) if end(other) < one.start => {
                difference.changes.extend(new.next().map(Change::Gained));
            }
            (Some(_), Some(_)) => match old.next().zip(new.next()) {
                Some((one, other)) if one == other => difference.same += 1,
                moved => difference.changes.extend(moved.map(|(one, other)| Change::Moved(one, other))),
            },
            (Some(_), None) => difference.changes.extend(old.next().map(Change::Lost)),
            (None, Some(_)) => difference.changes.extend(new.next().map(Change::Gained)),
            (None, None) => return,
        }
    }
}

impl Change {
    /// The newer of its episodes.
    fn episode(&self) -> &Episode {
        match self {
            Self::Gained(episode) | Self::Lost(episode) | Self::Moved(_, episode) => episode,
        }
    }
}

/// The difference for people; nothing if there is none but what stays the same.
pub fn text(difference: &Difference) -> String {
    let mut text = String::new();
    let (mut gained, mut lost, mut moved) = (0, 0, 0);
    for change in &difference.changes {
        let episode = change.episode();
        let name = format!("{} {}", episode.rule, labels_text(&episode.labels));
        match change {
            Change::Gained(episode) => {
                gained += 1;
                writeln!(text, "+ {name}  {}", times(episode))
            }
            Change::Lost(episode) => {
                lost += 1;
                writeln!(text, "- {name}  {}", times(episode))
            }
            Change::Moved(old, new) => {
                moved += 1;
                writeln!(text, "~ {name}  {} -> {}", times(old), times(new))
            }
        }
        .expect("writing to a string");
    }
    if !text.is_empty() {
        text.push('\n');
    }
    writeln!(text, "alerts: {gained} gained, {lost} lost, {moved} changed, {} the same", difference.same)
        .expect("writing to a string");
    for (receiver, told) in &difference.receivers {
        let others = match told {
            Told { others: 0, .. } => String::new(),
            Told { others, .. } => format!(", {others} of them not as before"),
        };
        writeln!(text, "{receiver}: {} -> {}{others}", told.old, told.new).expect("writing to a string");
    }
    text
}

fn times(episode: &Episode) -> String {
    match episode.end {
        Some(end) => format!("{} to {end}", episode.start),
        None => format!("{} to the end", episode.start),
    }
}

/// The difference for programs.
pub fn json(difference: &Difference) -> String {
    let times = |episode: &Episode| json!({ "starts_at": episode.start.to_string(), "ends_at": episode.end.map(|end| end.to_string()) });
    let mut lines = Vec::new();
    for change in &difference.changes {
        let (word, old, new) = match change {
            Change::Gained(episode) => ("gained", None, Some(episode)),
            Change::Lost(episode) => ("lost", Some(episode), None),
            Change::Moved(old, new) => ("changed", Some(old), Some(new)),
        };
        let episode = change.episode();
        lines.push(json!({
            "kind": "alert", "change": word, "rule": &*episode.rule, "labels": episode.labels, "old": old.map(times),
            "new": new.map(times),
        }));
    }
    for (receiver, told) in &difference.receivers {
        let Told { old, new, others } = told;
        lines
            .push(json!({ "kind": "receiver", "receiver": receiver, "old": old, "new": new, "not_as_before": others }));
    }
    lines.push(json!({ "kind": "summary", "is_same": difference.is_none(), "same_alerts": difference.same }));
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}
