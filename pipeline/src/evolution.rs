//! What becomes of state when the configuration or the program has changed since it was written. Pure: facts in, fates out.
//!
//! The state of an operator means something only together with some of its options, which are its *shape*: a window's counts
//! are those of its length and its keys. State of the same version and shape is gone on from; of an older version, if the
//! operator can read that; any other is lost, and told to be. Sources and sinks go by their type, and by a shape where they
//! have one.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// What a component is in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Source,
    Operator,
    Sink,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Operator => "operator",
            Self::Sink => "sink",
        }
    }
}

/// What gives the state of a component its meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    pub role: Role,
    /// The word behind `type`; `None` where the checkpoint was written by a version that did not say.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Of an operator's state. Sources and sinks tell theirs within it.
    pub version: u16,
    /// `None` where the checkpoint was written by a version that did not say: then the version alone decides.
    pub shape: Option<Json>,
    /// The older versions of the state that can be read: of a component of the program, not of a checkpoint.
    #[serde(skip)]
    pub migrates: Vec<u16>,
    /// What would be missed: positions of a source, records that a sink has not delivered. `None`: not known.
    #[serde(skip)]
    pub held: Option<u64>,
}

/// What a component is told to be, as far as its state goes: its part of a [`Fact`].
#[derive(Clone, Debug, PartialEq)]
pub struct Meaning {
    /// The word behind `type`.
    pub kind: &'static str,
    /// The options that give its state its meaning, as canonical JSON.
    pub shape: Json,
}

impl Meaning {
    /// A component whose state means the same whatever its options are.
    pub fn of(kind: &'static str) -> Self {
        Self { kind, shape: Json::Null }
    }
}

/// The components that have state to keep, by name.
pub type Facts = BTreeMap<String, Fact>;

/// What becomes of a component's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Kept,
    /// Written by an older version and read by this one.
    Migrated {
        from: u16,
    },
    /// Started afresh, or no longer there, and why.
    Lost(String),
    /// Another one has its name now, and nothing of it is missed.
    Replaced(String),
    /// It has none yet.
    New,
    /// No longer there, and nothing is missed.
    Gone,
}

impl Fate {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Migrated { .. } => "migrated",
            Self::Lost(_) => "lost",
            Self::Replaced(_) => "replaced",
            Self::New => "new",
            Self::Gone => "gone",
        }
    }

    /// Why, where there is more to say.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Migrated { from } => Some(format!("its state is of version {from}")),
            Self::Lost(reason) | Self::Replaced(reason) => Some(reason.clone()),
            Self::Kept | Self::New | Self::Gone => None,
        }
    }

    /// Whether there was something that nobody goes on from.
    pub fn is_left(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Replaced(_) | Self::Gone)
    }

    /// Whether the state is handed to the component.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Kept | Self::Migrated { .. })
    }
}

/// What becomes of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub role: Role,
    pub name: String,
    pub fate: Fate,
}

impl Display for Verdict {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} `{}`: {}", self.role.as_str(), self.name, self.fate.as_str())?;
        match self.fate.reason() {
            Some(reason) => write!(formatter, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// What becomes of each component: sources, operators, sinks, each by name.
pub fn compare(old: &Facts, new: &Facts) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (name, before) in old {
        let after = new.get(name).filter(|after| after.role == before.role);
        let fate = match after {
            Some(after) => fate(before, after),
            None => lost(before, "it is no longer configured".to_owned()).unwrap_or(Fate::Gone),
        };
        verdicts.push(Verdict { role: before.role, name: name.clone(), fate });
    }
    for (name, after) in new {
        if old.get(name).is_none_or(|before| before.role != after.role) {
            verdicts.push(Verdict { role: after.role, name: name.clone(), fate: Fate::New });
        }
    }
    verdicts.sort_by(|one, other| (one.role, &one.name).cmp(&(other.role, &other.name)));
    verdicts
}

fn fate(before: &Fact, after: &Fact) -> Fate {
    let lost = |reason: String| lost(before, reason.clone()).unwrap_or(Fate::Replaced(reason));
    if let (Some(was), Some(is)) = (&before.kind, &after.kind)
        && was != is
    {
        return lost(format!("type {was} → {is}"));
    }
    if let (Some(was), Some(is)) = (&before.shape, &after.shape)
        && was != is
    {
        return lost(differences(was, is));
    }
    if before.version == after.version {
        return Fate::Kept;
    }
    if after.migrates.contains(&before.version) {
        return Fate::Migrated { from: before.version };
    }
    lost(format!("its state is of version {}, and this program reads version {}", before.version, after.version))
}

/// `None`: nothing is.
fn lost(before: &Fact, reason: String) -> Option<Fate> {
    match (before.role, before.held) {
        (_, Some(0)) => None,
        (Role::Sink, Some(held)) => {
            Some(Fate::Lost(format!("{reason}, and {held} of what it was given {} not delivered", is_or_are(held))))
        }
        (Role::Sink, None) => Some(Fate::Lost(format!("{reason}; what it has not delivered"))),
        (Role::Source | Role::Operator, _) => Some(Fate::Lost(reason)),
    }
}

fn is_or_are(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// The verdicts that say that something is lost.
pub fn losses(verdicts: &[Verdict]) -> impl Iterator<Item = &Verdict> {
    verdicts.iter().filter(|verdict| matches!(verdict.fate, Fate::Lost(_)))
}

/// How many differences are told; it takes one to lose the state.
const DIFFERENCES: usize = 4;

/// How one shape differs from another: `tumbling 1m → 5m, aggregates.p99 is new`.
fn differences(old: &Json, new: &Json) -> String {
    let mut found = Vec::new();
    differ("", Some(old), Some(new), &mut found);
    let more = found.len().saturating_sub(DIFFERENCES);
    found.truncate(DIFFERENCES);
    let told = found.join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}

fn differ(path: &str, old: Option<&Json>, new: Option<&Json>, found: &mut Vec<String>) {
    let named = if path.is_empty() { "its options" } else { path };
    match (old, new) {
        (Some(Json::Object(old)), Some(Json::Object(new))) => {
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                differ(&below, old.get(name), new.get(name), found);
            }
        }
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) => found.push(format!("{named} {} → {}", word(old), word(new))),
        (None, Some(new)) => found.push(format!("{named} {} is new", word(new))),
        (Some(old), None) => found.push(format!("{named} {} is gone", word(old))),
        (None, None) => {}
    }
}

/// A value for a person: text without quotes.
fn word(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// A line a component: `source in file`, `operator op window v2 {"tumbling":"1m"}`, `… migrates 1`, `sink out webhook held 3`.
    /// `?` stands for what an older checkpoint does not say.
    fn facts(text: &str) -> Facts {
        let known = |word: &str| (word != "?").then(|| word.to_owned());
        let mut facts = Facts::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split(' ');
            let mut next = || words.next().unwrap();
            let role = match next() {
                "source" => Role::Source,
                "operator" => Role::Operator,
                "sink" => Role::Sink,
                other => panic!("no role: {other}"),
            };
            let (name, kind) = (next().to_owned(), known(next()));
            let mut fact = Fact { role, kind, version: 1, shape: Some(Json::Null), migrates: vec![], held: None };
            while let Some(word) = words.next() {
                match word {
                    "migrates" => fact.migrates.push(words.next().unwrap().parse().unwrap()),
                    "held" => fact.held = Some(words.next().unwrap().parse().unwrap()),
                    "?" => fact.shape = None,
                    word if word.starts_with('v') => fact.version = word[1..].parse().unwrap(),
                    shape => fact.shape = Some(serde_json::from_str(shape).unwrap()),
                }
            }
            facts.insert(name, fact);
        }
        facts
    }

    fn check(old: &str, new: &str, expected: Expect) {
        let verdicts = compare(&facts(old), &facts(new));
        expected.assert_eq(&verdicts.iter().map(|verdict| format!("{verdict}\n")).collect::<String>());
    }

    #[test]
    fn state_is_kept_where_type_version_and_shape_are_the_same() {
        check(
            "sink out file\n source in file\n operator op window {\"tumbling\":\"1m\",\"group_by\":[]}",
            "source in file\n operator op window {\"group_by\":[],\"tumbling\":\"1m\"}\n sink out file",
            expect![[r#"
                source `in`: kept
                operator `op`: kept
                sink `out`: kept
            "#]],
        );
    }

    #[test]
    fn state_of_another_shape_is_lost_and_told_how_it_differs() {
        check(
            r#"operator op window {"tumbling":"1m","group_by":[".a"],"aggregates":{"n":"count()","p":"max(.x)"}}"#,
            r#"operator op window {"tumbling":"5m","group_by":[".a",".b"],"aggregates":{"n":"count()","q":"min(.x)"}}"#,
            expect![[r#"
                operator `op`: lost: aggregates.p max(.x) is gone, aggregates.q min(.x) is new, group_by [".a"] → [".a",".b"], tumbling 1m → 5m
            "#]],
        );
        check(
            r#"operator op window {"a":1,"b":1,"c":1,"d":1,"e":1,"f":1}"#,
            r#"operator op window {"a":2,"b":2,"c":2,"d":2,"e":2,"f":2}"#,
            expect![[r#"
                operator `op`: lost: a 1 → 2, b 1 → 2, c 1 → 2, d 1 → 2 and 2 more
            "#]],
        );
    }

    #[test]
    fn state_of_another_version_is_migrated_or_lost() {
        check(
            "operator a window v1\n operator b window v1\n operator c window v3\n operator d window v1 {\"x\":1}",
            "operator a window v2\n operator b window v2 migrates 1\n operator c window v2 migrates 1\n operator d window v2 {\"x\":2} migrates 1",
            expect![[r#"
                operator `a`: lost: its state is of version 1, and this program reads version 2
                operator `b`: migrated: its state is of version 1
                operator `c`: lost: its state is of version 3, and this program reads version 2
                operator `d`: lost: x 1 → 2
            "#]],
        );
    }

    #[test]
    fn what_an_older_checkpoint_does_not_say_is_taken_to_be_the_same() {
        check(
            "operator a ? v1 ?\n operator b ? v1 ?\n source in ? ?\n sink out ? ?",
            "operator a window {\"tumbling\":\"1m\"}\n operator b window v2\n source in file\n sink out webhook",
            expect![[r#"
                source `in`: kept
                operator `a`: kept
                operator `b`: lost: its state is of version 1, and this program reads version 2
                sink `out`: kept
            "#]],
        );
    }

    #[test]
    fn what_is_no_longer_configured_is_lost_only_if_it_held_something() {
        check(
            "source in file held 2\n source silent file held 0\n operator op dedupe\n sink a webhook held 1\n sink b webhook held 12\n sink c webhook held 0\n sink d webhook",
            "",
            expect![[r#"
                source `in`: lost: it is no longer configured
                source `silent`: gone
                operator `op`: lost: it is no longer configured
                sink `a`: lost: it is no longer configured, and 1 of what it was given is not delivered
                sink `b`: lost: it is no longer configured, and 12 of what it was given are not delivered
                sink `c`: gone
                sink `d`: lost: it is no longer configured; what it has not delivered
            "#]],
        );
    }

    #[test]
    fn another_type_under_the_same_name_begins_afresh() {
        check(
            "source in file\n operator op window\n sink a webhook held 3\n sink b file held 0\n operator x dedupe",
            "source in stdin\n operator op alert\n sink a email\n sink b webhook\n sink x file",
            expect![[r#"
                source `in`: lost: type file → stdin
                operator `op`: lost: type window → alert
                operator `x`: lost: it is no longer configured
                sink `a`: lost: type webhook → email, and 3 of what it was given are not delivered
                sink `b`: replaced: type file → webhook
                sink `x`: new
            "#]],
        );
    }
}
