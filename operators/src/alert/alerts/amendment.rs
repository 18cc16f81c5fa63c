//! What late data says of decisions: the records of amendments.

use std::sync::Arc;

use tocsin_pipeline::event::Batch;
use tocsin_pipeline::operator::key_group;
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use super::super::record::{fingerprint, identity, object, texts};
use super::super::rule::{Alert, Phase};
use super::{Alerts, DECIDED_MAX, Seen};

/// A decision that would have been another one.
struct Amended<'a> {
    whole: &'a Alert,
    /// As what it was told, if it was.
    state: Option<&'static str>,
    time: Timestamp,
    /// Whether the condition held then, as was decided, and as is known now.
    was: bool,
    is: bool,
    /// What says so, of all that say something of that time.
    by: i64,
}

impl Alerts {
    /// A value of a time that was decided already: where it is a correction that decides otherwise, that is told.
    pub(super) fn correct(&mut self, key: &Arc<str>, seen: &Seen<'_>) {
        let value = seen.batch.value(seen.row);
        let Some(by) = update_of(&value) else { return };
        let (time, is) = (seen.batch.time(seen.row), seen.level.is_some());
        let entry = self.entries.get_mut(key).expect("asked for by its owner");
        let oldest = entry.decided.front().map_or(i64::MAX, |(oldest, _)| *oldest);
        if entry.decided.len() >= DECIDED_MAX && time.0 < oldest {
            return;
        }
        // A value that is not known did not hold, or was never there: an alert remembers those that did.
        let was = entry.decide(time, is).unwrap_or(false);
        self.changed.insert(key_group(key.as_bytes()));
        if was != is {
            let whole = entry.course.whole().clone();
            let state = match whole.phase {
                _ if whole.episode == 0 => None,
                Phase::Firing | Phase::Inactive if whole.started == time => Some("firing"),
                Phase::Inactive if whole.heard == time => Some("resolved"),
                _ => None,
            };
            self.amend(&Amended { whole: &whole, state, time, was, is, by }, seen);
        }
    }

    /// A plain record that came late says that an alert was resolved too early.
    pub(super) fn contradict(&mut self, key: &Arc<str>, seen: &Seen<'_>) {
        let whole = self.entries[key].course.whole();
        let (time, ended) = (seen.batch.time(seen.row), whole.heard);
        let is_resolved = whole.phase == Phase::Inactive && whole.episode > 0 && whole.started >= whole.since;
        let patience = self.rule.patience(seen.batch, seen.row, false);
        let end = time.saturating_add(patience).saturating_add(self.rule.times.keep_firing_for);
        if is_resolved && (whole.since..ended).contains(&time) && end > ended {
            let whole = whole.clone();
            let (state, by) = (Some("resolved"), time.0);
            self.amend(&Amended { whole: &whole, state, time: ended, was: false, is: true, by }, seen);
        }
    }

    /// Makes the record of an amendment.
    fn amend(&mut self, amended: &Amended<'_>, seen: &Seen<'_>) {
        let rule = Arc::clone(&self.rule);
        let Amended { whole, state, time, was, is, by } = *amended;
        let context = rule.context(seen.batch, seen.row, &seen.names, seen.level.unwrap_or(0));
        let mut labels = rule.labels(&seen.names, &context, &mut self.errors);
        let fingerprint = fingerprint(&rule.name, &labels);
        let amends = state.map(|state| identity(&rule.name, &fingerprint, whole, state));
        let id = identity(&rule.name, &fingerprint, whole, &format!("amended {} {is} {by}", time.0));
        if let Some(severity) = seen.level.and_then(|level| rule.severity(level)) {
            labels.insert(rule.level_label.clone(), severity.to_owned());
        }
        let record = object([
            ("alert", Value::from(&*rule.name)),
            ("state", Value::from("amended")),
            ("fingerprint", Value::from(fingerprint)),
            ("labels", texts(&labels)),
            ("amends", amends.map_or(Value::Null, Value::from)),
            ("time", Value::from(time.to_string())),
            ("was", Value::Boolean(was)),
            ("is", Value::Boolean(is)),
            ("values", rule.values(seen.batch, seen.row, &seen.names, seen.is_keyed)),
            ("id", Value::from(id.as_str())),
        ]);
        self.remember(&id, &record);
        if rule.tells_amended {
            self.amended.push((time, record));
        }
    }
}

/// Whether what tells a window anew says that a later window of the same key has decided already.
pub(super) fn is_superseded(batch: &Batch, row: u32) -> bool {
    let value = batch.value(row);
    let is_superseded = value.as_object().and_then(|fields| fields.get("superseded")) == Some(&Value::Boolean(true));
    is_superseded && update_of(&value).is_some()
}

/// The how manieth time it is that a window is told anew, if that is what a record does.
fn update_of(value: &Value) -> Option<i64> {
    match value.as_object()?.get("update")? {
        Value::Integer(update @ 1..) => Some(*update),
        _ => None,
    }
}
