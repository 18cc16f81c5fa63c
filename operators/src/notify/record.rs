//! What receivers are handed: notifications, digests, summaries.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};
use tocsin_config::silence::Silence;
use tocsin_pipeline::time::Timestamp;

use super::alert::Alert;
use super::budget::Spent;
use super::group::Group;
use super::notifier::Settings;

/// How many alerts a notification lists.
const LISTED_MAX: usize = 100;
/// How many of them with their evidence.
const EVIDENT_MAX: usize = 10;

/// Where people say that they take care: the page that a notification links to, and the key that its links are signed with.
#[derive(Clone)]
pub(super) struct Link {
    pub url: String,
    pub key: [u8; 32],
}

impl Link {
    /// What stands in a link to the notification `id` so that nobody else can make one up: a MAC of it (BLAKE3, keyed).
    fn signature(&self, id: &str) -> String {
        blake3::keyed_hash(&self.key, id.as_bytes()).to_hex()[..32].to_owned()
    }

    pub(super) fn is_signed(&self, id: &str, signature: &str) -> bool {
        // Hashed once more, so that how long the comparison takes says nothing.
        blake3::hash(self.signature(id).as_bytes()) == blake3::hash(signature.as_bytes())
    }
}

/// A notification of a group.
#[derive(Clone, Copy)]
pub(super) struct Notification<'a> {
    pub settings: &'a Settings,
    pub key: &'a str,
    pub group: &'a Group,
    pub receiver: &'a str,
    pub reason: &'a str,
    pub id: &'a str,
    pub firing_id: &'a str,
    pub at: Timestamp,
}

impl<'a> Notification<'a> {
    /// The same to another receiver.
    pub(super) fn to(self, receiver: &'a str) -> Self {
        Self { receiver, ..self }
    }

    /// The record, with these alerts by fingerprint.
    pub(super) fn record(&self, alerts: &[(&str, &Alert)]) -> Json {
        let mut alerts: Vec<_> = alerts.to_vec();
        alerts.sort_by_key(|(fingerprint, alert)| (!alert.is_firing, alert.starts_at, *fingerprint));
        let firing = alerts.iter().filter(|(_, alert)| alert.is_firing).count();
        let mut record =
            envelope(self.settings, self.receiver, self.reason, self.at, alerts.iter().map(|(_, alert)| *alert));
        let own = |id: &str| own_identity(id, self.receiver);
        record.insert("fingerprint".into(), blake3::hash(self.key.as_bytes()).to_hex()[..16].into());
        record.insert("group_key".into(), self.key.into());
        record.insert("group_labels".into(), json!(self.group.labels));
        record.insert("id".into(), own(self.id).into());
        record.insert("firing_id".into(), own(self.firing_id).into());
        record.insert("firing".into(), firing.into());
        record.insert("resolved".into(), (alerts.len() - firing).into());
        record.insert("more".into(), alerts.len().saturating_sub(LISTED_MAX).into());
        let list = alerts.iter().take(LISTED_MAX).enumerate().map(|(at, (_, alert))| {
            let mut record = alert.record.clone();
            if at >= EVIDENT_MAX
                && let Some(fields) = record.as_object_mut()
            {
                fields.remove("evidence");
            }
            record
        });
        record.insert("alerts".into(), list.collect());
        if let (Some(link), true) = (&self.settings.link, firing > 0) {
            let (name, signature) = (&self.settings.name, link.signature(self.firing_id));
            let url = format!("{}/acknowledge/{name}/{}/{signature}", link.url, self.firing_id);
            record.insert("acknowledge".into(), json!({ "url": url }));
        }
        Json::Object(record)
    }
}

/// A notification has one identity for each receiver: they are told, and repeat, independently.
pub(super) fn own_identity(id: &str, receiver: &str) -> String {
    blake3::hash(format!("{id}\n{receiver}").as_bytes()).to_hex()[..32].to_owned()
}

/// What all notifications have: to whom, why, when, and what is common to the alerts.
fn envelope<'a>(
    settings: &Settings,
    receiver: &str,
    reason: &str,
    at: Timestamp,
    alerts: impl Iterator<Item = &'a Alert> + Clone,
) -> Map<String, Json> {
    let mut record = Map::new();
    let is_firing = alerts.clone().any(|alert| alert.is_firing);
    let rules: BTreeSet<_> = alerts.clone().filter_map(|alert| alert.record["alert"].as_str()).collect();
    let rule = match (rules.len(), rules.first()) {
        (1, Some(rule)) => (*rule).to_owned(),
        _ => settings.name.to_string(),
    };
    let first = alerts.clone().min_by_key(|alert| (!alert.is_firing, alert.starts_at));
    let field = |name: &str| first.map_or(Json::Null, |alert| alert.record[name].clone());
    let starts_at = alerts.clone().map(|alert| alert.starts_at).min().unwrap_or(at);
    let ends_at = alerts.clone().filter_map(|alert| alert.ends_at).max().filter(|_| !is_firing);
    record.insert("notification".into(), settings.name.as_ref().into());
    record.insert("receiver".into(), receiver.into());
    record.insert("reason".into(), reason.into());
    record.insert("alert".into(), rule.into());
    record.insert("state".into(), if is_firing { "firing" } else { "resolved" }.into());
    record.insert("labels".into(), common(alerts.clone(), "labels"));
    record.insert("annotations".into(), common(alerts, "annotations"));
    record.insert("starts_at".into(), starts_at.to_string().into());
    record.insert("ends_at".into(), ends_at.map_or(Json::Null, |ends_at| ends_at.to_string().into()));
    record.insert("time".into(), at.to_string().into());
    for name in ["values", "evidence", "history"] {
        match field(name) {
            Json::Null => {}
            value => drop(record.insert(name.to_owned(), value)),
        }
    }
    record
}

/// The labels or annotations that all alerts have with the same value.
fn common<'a>(mut alerts: impl Iterator<Item = &'a Alert>, what: &str) -> Json {
    let Some(Json::Object(first)) = alerts.next().map(|alert| alert.record[what].clone()) else {
        return Json::Object(Map::new());
    };
    let mut common = first;
    for alert in alerts {
        common.retain(|name, value| alert.record[what].get(name) == Some(value));
    }
    Json::Object(common)
}

/// What the next notification of a group is called for ever.
pub(super) fn identity(operator: &str, key: &str, group: &Group, at: Timestamp) -> String {
    // The moment keeps it unique when the group has been forgotten and begins anew.
    let text = format!("tocsin notification 1\n{operator}\n{key}\n{}\n{}", group.number, at.0);
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

/// One notification for many that a budget had no room for: it lists every alert once, as it stands.
pub(super) fn digest(settings: &Settings, receiver: &str, waiting: &Spent, at: Timestamp) -> Json {
    let since = waiting.since.unwrap_or(at);
    let alerts: Vec<_> = waiting.waiting.values().cloned().collect();
    let firing = alerts.iter().filter(|alert| alert["state"] == "firing").count();
    let more: u64 = waiting.more.values().sum();
    let total = alerts.len() as u64 + more;
    let text = format!("tocsin digest 1\n{}\n{receiver}\n{}\n{}", settings.name, since.0, at.0);
    let id = blake3::hash(text.as_bytes()).to_hex()[..32].to_owned();
    json!({
        "notification": settings.name.as_ref(),
        "receiver": receiver,
        "reason": "digest",
        "digest": true,
        "alert": "digest",
        "fingerprint": &id[..16],
        "labels": {},
        "annotations": {
            "summary": format!("{total} alerts in {} notifications were not sent one by one since {since}", waiting.count),
        },
        "starts_at": since.to_string(),
        "ends_at": null,
        "since": since.to_string(),
        "time": at.to_string(),
        "count": waiting.count,
        "firing": firing,
        "resolved": alerts.len() - firing,
        "more": more,
        "more_by_rule": waiting.more,
        "alerts": alerts,
        "id": id,
        "firing_id": id,
    })
}

/// What a silence that is over kept from a receiver.
pub(super) fn summary(
    settings: &Settings,
    receiver: &str,
    silence: &Silence,
    muted: &BTreeMap<String, Json>,
    more: u64,
    alerts: &BTreeMap<String, Alert>,
    at: Timestamp,
) -> Json {
    let listed: Vec<_> = muted
        .iter()
        .map(|(fingerprint, brief)| match alerts.get(fingerprint) {
            Some(alert) => alert.brief(),
            // It is over and forgotten.
            None => {
                let mut brief = brief.clone();
                brief["state"] = "resolved".into();
                brief
            }
        })
        .collect();
    let firing = listed.iter().filter(|alert| alert["state"] == "firing").count();
    let text = format!("tocsin summary 1\n{}\n{receiver}\n{}\n{}", settings.name, silence.id, at.0);
    let id = blake3::hash(text.as_bytes()).to_hex()[..32].to_owned();
    let total = listed.len() as u64 + more;
    json!({
        "notification": settings.name.as_ref(),
        "receiver": receiver,
        "reason": "summary",
        "digest": true,
        "alert": "silence",
        "fingerprint": &id[..16],
        "labels": {},
        "annotations": {
            "summary": format!(
                "a silence of {} is over ({}): it muted {total} alerts, of which {firing} still fire",
                silence.owner, silence.reason
            ),
        },
        "silence": silence.to_json(),
        "starts_at": silence.starts_at.to_string(),
        "ends_at": at.to_string(),
        "time": at.to_string(),
        "firing": firing,
        "resolved": listed.len() - firing,
        "more": more,
        "alerts": listed,
        "id": id,
        "firing_id": id,
    })
}
