//! Alerts that others send: checked as Alertmanager does, and brought to the sources `alerts` in the shape in which `alert` tells its own.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tocsin_pipeline::time::Timestamp;

use super::{Answer, Api, Asked, Failure, answer, moment_of_go};

/// An alert of which nothing more is heard for so long is over, where the sender does not say when: Alertmanager's `resolve_timeout`.
pub(super) const RESOLVED_AFTER: Duration = Duration::from_secs(300);

/// An alert as Prometheus sends it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Posted {
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    starts_at: Option<String>,
    ends_at: Option<String>,
    #[serde(rename = "generatorURL")]
    generator_url: Option<String>,
}

/// The record of an alert.
///
/// # Errors
/// Why it is none.
fn record(posted: Posted, now: Timestamp) -> Result<Bytes, String> {
    let told = |failure: Failure| failure.message;
    let starts_at = moment_of_go("startsAt", posted.starts_at.as_deref()).map_err(told)?;
    let ends_at = moment_of_go("endsAt", posted.ends_at.as_deref()).map_err(told)?;
    let starts_at = starts_at.or(ends_at).unwrap_or(now);
    let ends_at = ends_at.unwrap_or_else(|| now.saturating_add(RESOLVED_AFTER));
    if ends_at < starts_at {
        return Err("the alert must begin before it ends".to_owned());
    }
    let mut labels = posted.labels;
    labels.retain(|_, value| !value.is_empty());
    if labels.is_empty() {
        return Err("the alert has no label".to_owned());
    }
    if labels.keys().chain(posted.annotations.keys()).any(String::is_empty) {
        return Err("a label or annotation has no name".to_owned());
    }
    let record = json!({
        "alert": labels.get("alertname").map_or("", String::as_str),
        "state": if ends_at > now { "firing" } else { "resolved" },
        "fingerprint": fingerprint(&labels),
        "labels": labels,
        "annotations": posted.annotations,
        "starts_at": starts_at.to_string(),
        "ends_at": ends_at.to_string(),
        "generator_url": posted.generator_url,
    });
    Ok(Bytes::from(record.to_string()))
}

/// What Alertmanager and Prometheus call an alert: FNV-1a of its labels in the order of their names, each text ended by a byte
/// that none contains.
fn fingerprint(labels: &BTreeMap<String, String>) -> String {
    let texts = labels.iter().flat_map(|(name, value)| [name, value]);
    let bytes = texts.flat_map(|text| text.bytes().chain([0xff]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Takes alerts. Those that are right are taken even where others are not.
pub(super) async fn take(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let posted: Vec<Posted> = asked.json()?;
    let now = api.clock.now();
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for alert in posted {
        match record(alert, now) {
            Ok(record) => records.push(record),
            Err(problem) => problems.push(problem),
        }
    }
    if !records.is_empty() {
        let nobody = "the configuration has no source of the type `alerts`, so nobody takes alerts; add `[sources.prometheus]` with \
                      `type = \"alerts\"`, and its name to the `inputs` of a `notify`";
        api.deliver("alerts", records, nobody).await?;
    }
    if !problems.is_empty() {
        problems.dedup();
        return Err(Failure::bad(problems.join("; ")));
    }
    Ok(answer(StatusCode::OK, "application/json", Bytes::new()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(posted: &str, expected: Expect) {
        let now = Timestamp::parse_rfc3339(b"2026-11-29T12:00:00Z").unwrap();
        let posted: Vec<Posted> = serde_json::from_str(posted).unwrap();
        let told = posted.into_iter().map(|posted| match record(posted, now) {
            Ok(record) => format!("{}\n", String::from_utf8_lossy(&record)),
            Err(problem) => format!("{problem}\n"),
        });
        expected.assert_eq(&told.collect::<String>());
    }

    #[test]
    fn an_alert_of_others_becomes_a_record_in_the_shape_of_our_own() {
        check(
            r#"[
                {"labels": {"alertname": "Down", "instance": "a:9100", "none": ""}, "annotations": {"summary": "gone"},
                 "generatorURL": "http://prometheus/graph"},
                {"labels": {"a": "b"}, "startsAt": "2026-11-29T11:00:00Z", "endsAt": "2026-11-29T11:30:00Z"},
                {"labels": {"a": "b"}, "startsAt": "0001-01-01T00:00:00Z", "endsAt": "2026-11-29T11:30:00Z"},
                {"labels": {"a": "b"}, "startsAt": "2026-11-29T11:00:00+01:00", "endsAt": "0001-01-01T00:00:00Z"}
            ]"#,
            expect![[r#"
                {"alert":"Down","annotations":{"summary":"gone"},"ends_at":"2026-11-29T12:05:00Z","fingerprint":"2d96b846feda2766","generator_url":"http://prometheus/graph","labels":{"alertname":"Down","instance":"a:9100"},"starts_at":"2026-11-29T12:00:00Z","state":"firing"}
                {"alert":"","annotations":{},"ends_at":"2026-11-29T11:30:00Z","fingerprint":"d2b371819297f98a","generator_url":null,"labels":{"a":"b"},"starts_at":"2026-11-29T11:00:00Z","state":"resolved"}
                {"alert":"","annotations":{},"ends_at":"2026-11-29T11:30:00Z","fingerprint":"d2b371819297f98a","generator_url":null,"labels":{"a":"b"},"starts_at":"2026-11-29T11:30:00Z","state":"resolved"}
                {"alert":"","annotations":{},"ends_at":"2026-11-29T12:05:00Z","fingerprint":"d2b371819297f98a","generator_url":null,"labels":{"a":"b"},"starts_at":"2026-11-29T10:00:00Z","state":"firing"}
            "#]],
        );
    }

    #[test]
    fn what_is_no_alert_is_refused_with_the_reason() {
        check(
            r#"[
                {"labels": {}},
                {"labels": {"alertname": ""}},
                {"labels": {"": "a"}},
                {"labels": {"a": "b"}, "startsAt": "2026-11-29T11:00:00Z", "endsAt": "2026-11-29T10:59:59Z"},
                {"labels": {"a": "b"}, "startsAt": "yesterday"}
            ]"#,
            expect![[r#"
                the alert has no label
                the alert has no label
                a label or annotation has no name
                the alert must begin before it ends
                `startsAt`: "yesterday" is not a moment; write it as "2026-12-01T08:00:00Z"
            "#]],
        );
    }

    #[test]
    fn the_fingerprint_is_that_of_prometheus() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        // The offset of FNV for no labels at all; the others are those that its own tests of labels know.
        assert_eq!(fingerprint(&labels(&[])), "cbf29ce484222325");
        assert_eq!(
            fingerprint(&labels(&[("name", "garland, briggs"), ("fear", "love is not enough")])),
            format!("{:016x}", 5_799_056_148_416_392_346_u64)
        );
    }
}
