//! Budgets: how many notifications a receiver is sent in a stretch of time. What goes beyond is told in one, a digest.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tocsin_pipeline::time::Timestamp;

/// How many alerts a digest lists; further ones are counted by rule.
const LISTED_MAX: usize = 20_000;

/// How many may be sent, and in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    pub max: usize,
    pub per: Duration,
    /// How long a digest waits for more before it is sent, if it may be.
    pub wait: Duration,
}

/// What a receiver with a budget has been sent, and what waits to be told in a digest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spent {
    /// When notifications were sent last: as many as the budget has.
    sent: VecDeque<i64>,
    /// What waits, by fingerprint: each alert as it stands.
    pub waiting: BTreeMap<String, Json>,
    /// How many wait that are not listed, by rule.
    pub more: BTreeMap<String, u64>,
    /// How many notifications were not sent.
    pub count: u64,
    /// Since when something waits.
    #[serde(with = "super::optional_nanoseconds")]
    pub since: Option<Timestamp>,
    #[serde(skip)]
    pub timer: Option<Timestamp>,
}

impl Spent {
    /// Whether one may be sent at that time. Half of the budget is kept for digests, so that what goes beyond it is not told long
    /// after.
    pub(super) fn may_send(&self, budget: Budget, at: Timestamp) -> bool {
        self.since.is_none() && self.used(budget, at) + budget.max / 2 < budget.max
    }

    fn used(&self, budget: Budget, at: Timestamp) -> usize {
        let from = at.saturating_sub(budget.per);
        self.sent.iter().filter(|sent| **sent > from.0).count()
    }

    pub(super) fn spend(&mut self, budget: Budget, at: Timestamp) {
        self.sent.push_back(at.0);
        while self.sent.len() > budget.max {
            self.sent.pop_front();
        }
    }

    /// An alert waits for the digest, in the state that it is in.
    pub(super) fn hold(&mut self, fingerprint: &str, rule: &str, brief: Json) {
        if self.waiting.len() < LISTED_MAX || self.waiting.contains_key(fingerprint) {
            self.waiting.insert(fingerprint.to_owned(), brief);
        } else {
            *self.more.entry(rule.to_owned()).or_default() += 1;
        }
    }

    /// When the digest is sent: digests are spread over the time of the budget.
    pub(super) fn due(&self, budget: Budget) -> Option<Timestamp> {
        let waited = self.since?.saturating_add(budget.wait);
        let share = budget.per / u32::try_from(budget.max).unwrap_or(u32::MAX).max(1);
        let spread = self.sent.back().map_or(Timestamp::MIN, |last| Timestamp(*last).saturating_add(share));
        let free = match self.sent.len().checked_sub(budget.max) {
            Some(at) => Timestamp(self.sent[at]).saturating_add(budget.per),
            None => Timestamp::MIN,
        };
        Some(waited.max(spread).max(free))
    }

    /// What was waiting, which is told now.
    pub(super) fn take(&mut self) -> Self {
        let sent = self.sent.clone();
        let timer = self.timer;
        std::mem::replace(self, Self { sent, timer, ..Self::default() })
    }
}
