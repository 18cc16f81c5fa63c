//! How long it takes from a line to whoever is told of it, by rule, and which rules are later than they may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tocsin_pipeline::health::Trouble;
use tocsin_pipeline::sink::SinkContext;
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

/// The rows that tell that a rule fires, until they are delivered: no more than rows wait. It is kept in memory alone: of
/// a row that waits over a restart nothing is known but what the replay brings again.
#[derive(Default)]
pub(super) struct Latencies {
    /// By the row's name: which rule, and when the record arrived.
    waiting: BTreeMap<String, (String, Timestamp)>,
    /// When rows are late, with their names; of rules with an `slo` alone.
    due: BTreeSet<(Timestamp, String)>,
    /// The rules that are late now.
    late: BTreeSet<String>,
}

/// The rule of which a record tells that it fires. Only the first notice counts: a repetition, or an end that silence has
/// brought, has no record whose arrival would say anything.
fn rule_of(record: &Value) -> Option<String> {
    let text = |name: &str| record.as_object()?.get(name)?.as_bytes();
    let is_first = text("reason").is_none_or(|reason| &reason[..] == b"first");
    let rule = text("alert").filter(|_| is_first && text("state").is_some_and(|state| &state[..] == b"firing"))?;
    std::str::from_utf8(rule).ok().map(str::to_owned)
}

impl Latencies {
    /// A row waits that tells of this record.
    pub(super) fn taken(&mut self, id: String, record: &Value, arrival: Timestamp, context: &SinkContext) {
        let Some(rule) = rule_of(record) else { return };
        // Of no rule: somebody else's record that has fields of these names.
        let Some(slo) = context.metrics.slo(&rule) else { return };
        if let Some(slo) = slo {
            self.due.insert((arrival.saturating_add(slo), id.clone()));
        }
        self.waiting.insert(id, (rule, arrival));
    }

    /// A row was accepted.
    pub(super) fn delivered(&mut self, id: &str, now: Timestamp, context: &SinkContext) {
        let Some((rule, arrival)) = self.waiting.remove(id) else { return };
        let took = now.since(arrival);
        context.metrics.alert_latency(&rule, took.as_secs_f64());
        let Some(Some(slo)) = context.metrics.slo(&rule) else { return };
        self.due.remove(&(arrival.saturating_add(slo), id.to_owned()));
        if took > slo {
            self.raise(&rule, slo, &format!("it took {took:?}"), context);
        } else if self.late.remove(&rule) {
            context.health.clear(Trouble::AlertLate, &rule);
        }
    }

    /// A row was refused, and will never be accepted.
    pub(super) fn gone(&mut self, id: &str) {
        if self.waiting.remove(id).is_some() {
            self.due.retain(|(_, due)| due != id);
        }
    }

    /// Tells which rows are late although they still wait, and for how long the next is in time.
    pub(super) fn look(&mut self, context: &SinkContext) -> Option<Duration> {
        if self.due.is_empty() {
            return None;
        }
        let now = context.clock.now();
        while let Some((at, id)) = self.due.pop_first() {
            if at > now {
                let wait = at.since(now);
                self.due.insert((at, id));
                return Some(wait);
            }
            if let Some((rule, _)) = self.waiting.get(&id).cloned()
                && let Some(Some(slo)) = context.metrics.slo(&rule)
            {
                self.raise(&rule, slo, "it still is not", context);
            }
        }
        None
    }

    fn raise(&mut self, rule: &str, slo: Duration, how: &str, context: &SinkContext) {
        self.late.insert(rule.to_owned());
        let sink = &context.name;
        context.health.raise(
            Trouble::AlertLate,
            rule,
            format!("`{sink}` is to have told that `{rule}` fires within {slo:?}: {how}"),
        );
    }

    /// The sink ends: whoever goes on looks for itself.
    pub(super) fn close(&mut self, context: &SinkContext) {
        for rule in std::mem::take(&mut self.late) {
            context.health.clear(Trouble::AlertLate, &rule);
        }
    }
}
