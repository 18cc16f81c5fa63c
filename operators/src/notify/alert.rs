//! The alerts that `notify` knows: what was said of each last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tocsin_pipeline::time::Timestamp;

/// Under this name matchers and groups see the rule of an alert, unless it has a label of that name.
pub(super) const RULE: &str = "alertname";
/// How many pieces of evidence of an alert are kept: a notification shows no more.
const EVIDENCE_MAX: usize = 3;
/// No record of an alert is longer, as JSON; of a longer one the evidence and the annotations are left out.
const RECORD_MAX: usize = 32 << 10;

/// One alert as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Alert {
    pub labels: BTreeMap<String, String>,
    /// What was told of it last, in the shape in which `alert` tells it.
    pub record: Json,
    pub is_firing: bool,
    #[serde(with = "super::nanoseconds")]
    pub starts_at: Timestamp,
    /// Of one that is over: when it ended. Of one that fires: when it is over unless something more is heard of it.
    #[serde(with = "super::optional_nanoseconds")]
    pub ends_at: Option<Timestamp>,
    /// When something was heard of it last.
    #[serde(with = "super::nanoseconds")]
    pub updated: Timestamp,
}

impl Alert {
    /// What a record says of an alert, with its fingerprint. `time` is the record's.
    ///
    /// # Errors
    /// Why the record is no alert.
    pub(super) fn of(mut record: Json, time: Timestamp) -> Result<(String, Self), &'static str> {
        let Some(fields) = record.as_object_mut() else { return Err("it is no table of fields") };
        let is_firing = match fields.get("state").and_then(Json::as_str) {
            Some("firing") => true,
            Some("resolved") => false,
            Some("pending") => return Err("nobody is told of what is pending"),
            _ => return Err("it has no `state` that is firing or resolved"),
        };
        let Some(rule) = fields.get("alert").and_then(Json::as_str).map(str::to_owned) else {
            return Err("it has no `alert`");
        };
        let Some(Json::Object(texts)) = fields.get("labels") else { return Err("it has no `labels`") };
        let mut labels: BTreeMap<_, _> = texts.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
        labels.retain(|_, value| !value.is_empty());
        labels.entry(RULE.to_owned()).or_insert(rule);
        let fingerprint = match fields.get("fingerprint").and_then(Json::as_str) {
            Some(fingerprint) => fingerprint.to_owned(),
            None => fingerprint(&labels),
        };
        let moment = |name: &str| Timestamp::parse_rfc3339(fields.get(name)?.as_str()?.as_bytes());
        let starts_at = moment("starts_at").unwrap_or(time);
        let ends_at = moment("ends_at").or_else(|| (!is_firing).then_some(time));
        let is_firing = is_firing && ends_at.is_none_or(|ends_at| ends_at > time);
        if !is_firing {
            fields.insert("state".to_owned(), "resolved".into());
        }
        if let Some(Json::Array(evidence)) = fields.get_mut("evidence") {
            evidence.truncate(EVIDENCE_MAX);
        }
        fields.entry("fingerprint").or_insert_with(|| fingerprint.clone().into());
        if record.to_string().len() > RECORD_MAX
            && let Some(fields) = record.as_object_mut()
        {
            fields.remove("evidence");
            fields.insert("annotations".to_owned(), Json::Object(serde_json::Map::new()));
        }
        Ok((fingerprint, Self { labels, record, is_firing, starts_at, ends_at, updated: time }))
    }

    /// Takes what is said of the same alert later. Where both tell of one stretch of time, it began with the earlier beginning
    /// and ends with the later end, as Alertmanager has it.
    pub(super) fn follow(&mut self, mut next: Self) {
        let overlaps = self.starts_at <= next.ends_at.unwrap_or(Timestamp::MAX)
            && next.starts_at <= self.ends_at.unwrap_or(Timestamp::MAX);
        let is_of_a_rule =
            self.record.get("firing_id").is_some() && self.record["firing_id"] == next.record["firing_id"];
        if overlaps || is_of_a_rule {
            next.starts_at = next.starts_at.min(self.starts_at);
            if !next.is_firing && !self.is_firing {
                next.ends_at = next.ends_at.max(self.ends_at);
            }
            if let Some(fields) = next.record.as_object_mut() {
                fields.insert("starts_at".to_owned(), next.starts_at.to_string().into());
                if let (false, Some(ends_at)) = (next.is_firing, next.ends_at) {
                    fields.insert("ends_at".to_owned(), ends_at.to_string().into());
                }
            }
        }
        *self = next;
    }

    /// Nothing more was heard of it in time.
    pub(super) fn expire(&mut self) {
        let at = self.ends_at.unwrap_or(self.updated);
        self.end(at);
    }

    fn end(&mut self, at: Timestamp) {
        (self.is_firing, self.ends_at) = (false, Some(at));
        if let Some(fields) = self.record.as_object_mut() {
            fields.insert("state".to_owned(), "resolved".into());
            fields.insert("ends_at".to_owned(), at.to_string().into());
        }
    }

    /// It, as if it had been over at that time.
    pub(super) fn ended(&self, at: Timestamp) -> Self {
        let mut ended = self.clone();
        if ended.is_firing {
            ended.end(at);
        }
        ended
    }

    /// When it is over if nothing more is heard of it.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.ends_at.filter(|_| self.is_firing)
    }

    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// Its entry in a digest: what it is and how it stands.
    pub(super) fn brief(&self) -> Json {
        let mut brief = serde_json::Map::new();
        for name in ["alert", "state", "fingerprint", "labels", "starts_at", "ends_at"] {
            brief.insert(name.to_owned(), self.record.get(name).cloned().unwrap_or(Json::Null));
        }
        if let Some(summary) = self.record["annotations"].get("summary") {
            brief.insert("summary".to_owned(), summary.clone());
        }
        Json::Object(brief)
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.labels.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>() + 1024
    }
}

/// A value as the text of a label.
fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => String::new(),
        other => other.to_string(),
    }
}

/// The hash of labels: what tells alerts apart that do not say it themselves.
pub(super) fn fingerprint(labels: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, value) in labels {
        for text in [name, value] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
