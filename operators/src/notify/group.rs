//! Groups: alerts that one receiver is told of together, and what it has been told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tocsin_pipeline::time::Timestamp;

use super::alert::Alert;
use super::route::Route;

/// Somebody takes care of what a group tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Acknowledgement {
    pub by: String,
    #[serde(with = "super::nanoseconds")]
    pub at: Timestamp,
    /// The alerts, by fingerprint, that it is of: those that had been told.
    pub alerts: BTreeSet<String>,
}

impl Acknowledgement {
    /// As it is told.
    pub(super) fn brief(&self) -> Json {
        json!({ "by": self.by, "at": self.at.to_string() })
    }
}

/// Alerts that are told together, from the first until all are over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Group {
    /// The key of its route.
    pub route: String,
    /// The values of the labels that it is made by.
    pub labels: BTreeMap<String, String>,
    /// Its alerts, by fingerprint.
    pub members: BTreeSet<String>,
    /// Those that have other labels now and do not belong to it any more, as they were: to it they are over.
    pub moved: BTreeMap<String, Alert>,
    /// Those that the last notification told as firing.
    pub told: BTreeSet<String>,
    /// Those that were told as firing and not as resolved since.
    pub owed: BTreeSet<String>,
    /// How many notifications there were.
    pub number: u64,
    /// What the first notification is called: others are told under it.
    pub firing_id: Option<String>,
    /// When it was told last.
    #[serde(with = "super::optional_nanoseconds")]
    pub last: Option<Timestamp>,
    /// When what has changed is to be told.
    #[serde(with = "super::optional_nanoseconds")]
    pub due: Option<Timestamp>,
    /// Since when there is something that nobody takes care of.
    #[serde(with = "super::optional_nanoseconds")]
    pub unattended_since: Option<Timestamp>,
    pub acknowledgement: Option<Acknowledgement>,
    /// How many steps were taken as nobody took care.
    pub escalated: usize,
    /// The receivers that were told in those steps, and not of the end since.
    pub others: BTreeSet<String>,
    /// The last look kept something quiet that may have to be told later.
    pub is_suppressed: bool,
    /// The moment in the timers.
    #[serde(skip)]
    pub timer: Option<Timestamp>,
    #[serde(skip)]
    pub key_group: u16,
}

/// Why a receiver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The group is new to it.
    First,
    /// Alerts have come or ended.
    Changed,
    /// All of it is over.
    Resolved,
    /// Nothing has changed for long.
    Repeat,
}

impl Cause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Changed => "changed",
            Self::Resolved => "resolved",
            Self::Repeat => "repeat",
        }
    }
}

impl Group {
    pub(super) fn new(route: &str, labels: BTreeMap<String, String>, key_group: u16) -> Self {
        Self {
            route: route.to_owned(),
            labels,
            members: BTreeSet::new(),
            moved: BTreeMap::new(),
            told: BTreeSet::new(),
            owed: BTreeSet::new(),
            number: 0,
            firing_id: None,
            last: None,
            due: None,
            unattended_since: None,
            acknowledgement: None,
            escalated: 0,
            others: BTreeSet::new(),
            is_suppressed: false,
            timer: None,
            key_group,
        }
    }

    /// Something of it has changed at that time: it is to be told, but neither before its first wait is over nor sooner after
    /// the last notification than `group_interval`.
    pub(super) fn schedule(&mut self, at: Timestamp, route: &Route) {
        let waited = at.saturating_add(route.group_wait);
        let allowed = self.last.map_or(Timestamp::MIN, |last| last.saturating_add(route.group_interval));
        let due = if allowed > at { allowed } else { waited };
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// Whether the alerts that fire are all taken care of.
    pub(super) fn is_attended(&self, firing: &BTreeSet<String>) -> bool {
        self.acknowledgement.as_ref().is_some_and(|acknowledgement| firing.is_subset(&acknowledgement.alerts))
    }

    /// What there is to tell of its alerts that fire and that are over, both without those that are kept quiet.
    pub(super) fn cause(
        &self,
        firing: &BTreeSet<String>,
        resolved: &BTreeSet<String>,
        tells_resolved: bool,
    ) -> Option<Cause> {
        let has_ended = resolved.iter().any(|alert| self.owed.contains(alert));
        match () {
            () if firing.is_empty() => (tells_resolved && has_ended).then_some(Cause::Resolved),
            () if self.owed.is_empty() => Some(Cause::First),
            () if !firing.is_subset(&self.told) => Some(Cause::Changed),
            () => (tells_resolved && has_ended).then_some(Cause::Changed),
        }
    }

    /// When it is told again if nothing changes.
    pub(super) fn repeats_at(&self, route: &Route) -> Option<Timestamp> {
        let after = route.repeat_interval.max(route.group_interval);
        self.last.filter(|_| !self.told.is_empty()).map(|last| last.saturating_add(after))
    }

    /// When the next receiver is told if nobody takes care, and its number among the steps.
    pub(super) fn escalates_at(&self, steps: &[(Duration, String)]) -> Option<Timestamp> {
        let since = self.unattended_since.filter(|_| self.acknowledgement.is_none() && !self.told.is_empty())?;
        steps.get(self.escalated).map(|(after, _)| since.saturating_add(*after))
    }
}
