//! `[[tests]]`: what a configuration does, as part of the configuration. Reading them is here; `tocsin test` runs them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::types::Duration;

/// A test of the pipeline: records arrive at its sources at given times on a virtual clock, and what comes out of its
/// components is compared with what is expected. No source is opened and nothing is sent.
///
/// A moment is written `"2026-11-20T12:00:00Z"`, or `"+90s"` after the test's `start`. Expected records name only the fields
/// that matter, unless `exact`.
///
/// ```toml
/// [[tests]]
/// name = "a burst of errors pages the person on call"
/// input = [
///   { source = "access", at = "2026-11-20T12:00:00Z", records = ['{"status": 500}', '{"status": 502}'] },
///   { source = "access", at = "+30s", record = '{"status": 200}' },
/// ]
/// advance = "5m"
/// expect = [{ from = "error_rate", records = [{ errors = 2 }] }]
/// alerts = [{ rule = "high_error_rate", at = "+1m", state = "firing", labels = { severity = "critical" } }]
/// notifications = [{ receiver = "mail", at = "+1m", subject = "[FIRING] high_error_rate" }]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestOptions {
    /// What the test shows, as a sentence.
    pub name: String,
    /// What the clock shows at first: a moment with a date. Default: the first `at` of `input` if that has a date, else
    /// `"2026-01-01T00:00:00Z"`.
    pub start: Option<String>,
    /// What arrives, and when. Moments do not go back.
    pub input: Vec<TestInputOptions>,
    /// How far the clock goes on after the last input. With neither this nor `until` the input ends there: every window
    /// closes, as with `run --once`.
    pub advance: Option<Duration>,
    /// The moment up to which the clock goes on after the last input, instead of `advance`.
    pub until: Option<String>,
    /// Records that must come out of components.
    #[serde(default)]
    pub expect: Vec<ExpectOptions>,
    /// Transitions that rules must make.
    #[serde(default)]
    pub alerts: Vec<ExpectAlertOptions>,
    /// Exactly the notifications that must be sent, in order; `[]`: none at all. Left out, they are not looked at.
    pub notifications: Option<Vec<ExpectNotificationOptions>>,
}

/// Records that arrive at one moment.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestInputOptions {
    /// The name of the source.
    pub source: String,
    /// When they arrive. Default: with the input before, or at `start`.
    pub at: Option<String>,
    /// One record, as text that the source's codec reads.
    pub record: Option<String>,
    /// Several records.
    pub records: Option<Vec<String>>,
}

/// Records that must come out of a component.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectOptions {
    /// The output, as `inputs` would have it: `NAME` or `NAME.port`. Of a sink `NAME` means what it is handed.
    pub from: String,
    /// The records: a table of fields, or text that must be the whole record. They come in this order; others may come
    /// between them unless `exact`.
    pub records: Vec<Json>,
    /// Whether these are all the records, and their fields all the fields.
    #[serde(default)]
    pub exact: bool,
}

/// A transition that a rule must make.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectAlertOptions {
    /// The name of an operator that emits alerts.
    pub rule: String,
    /// When, in event time. Default: some time.
    pub at: Option<String>,
    /// The state it changes to.
    pub state: AlertState,
    /// Labels that the alert must have.
    #[serde(default)]
    pub labels: BTreeMap<String, Json>,
}

/// The state of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The condition is true, but not for long enough.
    Pending,
    /// Somebody is told.
    Firing,
    /// It is over.
    Resolved,
}

impl AlertState {
    /// The word it is written as, in the configuration and in alerts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// A notification that must be sent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectNotificationOptions {
    /// The name of the sink.
    pub receiver: String,
    /// When it is sent.
    pub at: String,
    /// Its subject, in full. Default: does not matter.
    pub subject: Option<String>,
    /// Its body, in full. Default: does not matter.
    pub body: Option<String>,
}
