//! How alerts stand, for who asks.

use std::sync::Arc;

use serde_json::{Value as Json, json as as_json};
use tocsin_pipeline::time::Timestamp;

use super::super::record::fingerprint;
use super::super::rule::Phase;
use super::{Alerts, Entry, KNOWN_MAX, SHOWN_MAX};
use crate::is_named;

impl Alerts {
    pub(super) fn standing(&self, question: &Json) -> Json {
        let key = question["key"].as_str();
        let phase = question.get("phase").filter(|phase| !phase.is_null());
        let is_meant = |names: &Json, fingerprint: &str| {
            let rule = as_json!({ "alertname": &*self.rule.name });
            key.is_none_or(|key| key == fingerprint || is_named(key, names) || is_named(key, &rule))
        };
        let is_in_phase = |entry: &Entry| phase.is_none_or(|phase| *phase == as_json!(entry.course.phase()));
        let is_active = |entry: &Entry| entry.course.phase() != Phase::Inactive;
        let is_shown = |(names, entry): &(&Arc<str>, &Entry)| {
            let is_asked = || is_meant(&self.names(names, entry), &fingerprint(&self.rule.name, &entry.labels));
            is_in_phase(entry) && (key.is_none() || is_asked())
        };
        let by_activity = |active: bool| self.entries.iter().filter(move |(_, entry)| is_active(entry) == active);
        let active: Vec<_> = by_activity(true).filter(is_shown).collect();
        let idle = by_activity(false).filter(is_shown);
        let alerts = active.iter().copied().chain(idle).take(SHOWN_MAX);
        let known = by_activity(true).chain(by_activity(false)).take(KNOWN_MAX);
        let told = self.history.newest().filter_map(|record| {
            let mut record: Json = serde_json::from_str(record).ok()?;
            if !is_meant(&record["labels"], record["fingerprint"].as_str().unwrap_or_default()) {
                return None;
            }
            record.as_object_mut()?.remove("evidence");
            Some(record)
        });
        as_json!({
            "rule": &*self.rule.name,
            "now": moment(self.now),
            "alerts": alerts.map(|(key, entry)| self.alert_view(key, entry)).collect::<Vec<_>>(),
            "active": active.len(),
            "known": known.map(|(key, entry)| self.names(key, entry)).collect::<Vec<_>>(),
            "told": told.take(SHOWN_MAX).collect::<Vec<_>>(),
        })
    }

    /// What an alert can be called by: its key and the labels that it is told with.
    fn names(&self, key: &str, entry: &Entry) -> Json {
        let mut names: Json = serde_json::from_str(key).unwrap_or_default();
        if let Some(names) = names.as_object_mut() {
            names.extend(entry.labels.iter().map(|(name, text)| (name.clone(), text.as_str().into())));
            names.extend(entry.severity.iter().map(|level| (self.rule.level_label.clone(), level.as_str().into())));
        }
        names
    }

    fn alert_view(&self, key: &str, entry: &Entry) -> Json {
        let whole = entry.course.whole();
        let is_active = whole.phase != Phase::Inactive;
        let fires_at = whole.since.saturating_add(self.rule.times.pending_for[0]);
        as_json!({
            "key": serde_json::from_str::<Json>(key).unwrap_or_default(),
            "names": self.names(key, entry),
            "phase": whole.phase,
            "fingerprint": fingerprint(&self.rule.name, &entry.labels),
            "labels": entry.labels,
            "severity": entry.severity,
            "flapping": entry.course.flaps(),
            "episode": whole.episode,
            "since": is_active.then(|| moment(whole.since)),
            "fires_at": (whole.phase == Phase::Pending).then(|| moment(fires_at)),
            "started": (whole.phase == Phase::Firing).then(|| moment(whole.started)),
            "heard": moment(whole.heard),
            "ends_at": entry.course.deadline(true, &self.rule.times).filter(|_| is_active).map(moment),
            "values": serde_json::from_str::<Json>(&entry.values).unwrap_or(Json::Null),
            "matches": entry.evidence.matches,
        })
    }
}

fn moment(time: Timestamp) -> Json {
    if time == Timestamp::MIN { Json::Null } else { time.to_string().into() }
}
