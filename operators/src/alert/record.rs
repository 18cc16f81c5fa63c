//! The records that a rule makes: their fields, and what names them for ever.

use std::collections::BTreeMap;

use tocsin_pipeline::json;
use vrl::value::{ObjectMap, Value};

use super::rule::Alert;

/// The fields that the record of a transition can have.
pub(super) const FIELDS: [&str; 16] = [
    "alert",
    "annotations",
    "ends_at",
    "episode",
    "evidence",
    "fingerprint",
    "firing_id",
    "flapping",
    "history",
    "id",
    "labels",
    "matches",
    "previous_level",
    "starts_at",
    "state",
    "values",
];

pub(super) fn texts(texts: &BTreeMap<String, String>) -> Value {
    Value::Object(texts.iter().map(|(name, text)| (name.as_str().into(), text.as_str().into())).collect())
}

pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name.into(), value)).collect::<ObjectMap>())
}

pub(super) fn json_text(value: &Value) -> String {
    let mut text = Vec::new();
    json::write_value(value, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The hash of the labels, but for the severity, and of the rule's name: the same for all episodes and levels of an alert.
pub(super) fn fingerprint(rule: &str, labels: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(rule);
    labels.iter().for_each(|(name, text)| [name, text].into_iter().for_each(|text| add(text)));
    hasher.finalize().to_hex()[..16].to_owned()
}

/// What a transition is called for ever. The moment at which the condition began to hold is part of it, so that it stays
/// unique when the count of episodes has been forgotten.
pub(super) fn identity(rule: &str, fingerprint: &str, alert: &Alert, state: &str) -> String {
    let text = format!("tocsin alert 1\n{rule}\n{fingerprint}\n{}\n{}\n{state}", alert.since.0, alert.episode);
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}
