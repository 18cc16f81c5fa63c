//! Alerts to Alertmanager, as Prometheus sends them: its API in version 2.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, Uri};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::{self, Secret};
use tocsin_pipeline::json::write_value;
use tocsin_pipeline::sink::Sink;
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use crate::client::Response;
use crate::delivery::{Delivery, Usual};
use crate::outbox::{self, Answer, Digest, Row};
use crate::service::{self, Connection, Service};

/// How many Alertmanagers may be told.
const URLS_MAX: usize = 16;

/// Sends alerts to Alertmanager (API v2), each to all of its `urls`, which may be those of a cluster.
///
/// An alert has its labels, `alertname` (the rule) and `labels` of the sink's own; annotations; `startsAt`; and `generatorURL`. The
/// letters of label names that Prometheus does not know become `_`. A notification of several alerts (`notify`) sends each of
/// them. Records that are no alerts are refused: they go to `NAME.rejected`. *Pending*, *amended* and what
/// `notify` tells at the end of a silence are not sent; `tocsin check` refuses the input `NAME.amended`.
///
/// Alertmanager takes an alert as resolved at its `endsAt`. Of *resolved* alerts that is when they ended; of *firing* ones
/// `ends_after` from the moment of sending. It also forgets alerts when it is started again. So firing alerts must come again from
/// time to time: put a `notify` before the sink whose `repeat_interval` is at most half of `ends_after`. Without one, an alert that
/// fires for longer than `ends_after` counts as resolved there.
///
/// Answers 200 to 299 mean delivered. 401, 403, 408, 429 and 500 to 599, no answer and a broken connection mean to try again, for
/// `max_age`. Every other answer refuses the alert: it goes to `NAME.rejected`, and its record as it came to `NAME.failed`. Each
/// Alertmanager is told for itself: one that is away does not hold up the others.
///
/// When `max_waiting` notifications wait, or 64 MiB of them, what comes is sent as one: the alerts that its digest lists, without
/// annotations.
///
/// **State:** what is not delivered yet, and the digest of what came beyond. The names of the last 100,000 that are settled.
///
/// **Late events:** sent like all others.
///
/// **After a crash:** nothing is lost. What was on its way when the daemon died is sent again; Alertmanager knows an alert by its
/// labels.
///
/// ```toml
/// [sinks.alertmanagers]
/// type = "alertmanager"
/// inputs = ["oncall"]
/// urls = ["https://am1.example.org", "https://am2.example.org"]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where they are: `https://HOST:PORT` and what stands before `/api/v2`; at most 16.
    urls: Vec<String>,
    /// Labels of all alerts, where the alert has none of the name.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// How long after it was sent a firing alert counts as resolved if it is not sent again. Default `"24h"`, at least `"1m"`.
    #[serde(default = "one_day")]
    ends_after: types::Duration,
    /// The `generatorURL`. Default: the annotation `url`, `dashboard` or `runbook` if that is a URL.
    generator_url: Option<String>,
    /// Who logs in. Needs `password`.
    username: Option<String>,
    /// The password of `username`.
    password: Option<Secret>,
    /// A token instead, sent as `Authorization: Bearer`.
    token: Option<Secret>,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

fn one_day() -> types::Duration {
    types::Duration(Duration::from_secs(86_400))
}

impl Config {
    fn authorization(&self) -> Result<Option<HeaderValue>, &'static str> {
        let text = match (&self.username, &self.password, &self.token) {
            (None, None, None) => return Ok(None),
            (None, None, Some(token)) => format!("Bearer {}", token.reveal()),
            (Some(username), Some(password), None) => {
                format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal())))
            }
            (_, _, Some(_)) => return Err("cannot be used beside `username` and `password`"),
            _ => return Err("`username` and `password` belong together"),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| "holds letters that a header may not")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl SinkConfig for Config {
    const NAME: &'static str = "alertmanager";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(1..=URLS_MAX).contains(&self.urls.len()) {
            problems.push(Problem::new("urls", format!("must be from 1 to {URLS_MAX}")));
        }
        for (at, url) in self.urls.iter().enumerate() {
            let option = format!("urls[{at}]");
            problems.extend(self.connection.url_problem(&option, url));
            if url.parse::<Uri>().is_ok_and(|uri| uri.authority().is_some_and(|host| host.as_str().contains('@'))) {
                let help = "who logs in is `username` and `password`";
                problems.push(Problem::new(option, "must not say who logs in").help(help));
            } else if self.urls[..at].iter().any(|other| trimmed(other) == trimmed(url)) {
                problems.push(Problem::new(option, "is there twice"));
            }
        }
        if let Err(message) = self.authorization() {
            problems.push(Problem::new(if self.token.is_some() { "token" } else { "username" }, message));
        }
        if self.ends_after.0 < Duration::from_secs(60) {
            problems.push(Problem::new("ends_after", "must be at least \"1m\""));
        }
        problems.extend(self.delivery.problems(Usual::HTTP));
        problems.extend(self.connection.problems());
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once, with one identity"
    }

    fn undelivered(state: &[u8]) -> u64 {
        outbox::undelivered(state)
    }

    fn hands_on(&self) -> bool {
        true
    }

    fn takes_amendments(&self) -> bool {
        false
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        service::sink(Alertmanager::new(self), &self.delivery, &self.connection, context)
    }
}

fn trimmed(url: &str) -> &str {
    url.trim_end_matches('/')
}

struct Alertmanager {
    config: Config,
    authorization: Option<HeaderValue>,
}

impl Alertmanager {
    fn new(config: &Config) -> Self {
        Self { config: config.clone(), authorization: config.authorization().expect("checked") }
    }

    /// An alert as it waits in the outbox: while it fires, `endsAt` is added when it is sent. `None`: it is not sent.
    fn alert(&self, record: &Json) -> Option<Json> {
        let is_firing = match record["state"].as_str()? {
            "firing" => true,
            "resolved" => false,
            _ => return None,
        };
        let mut labels: BTreeMap<String, String> =
            self.config.labels.iter().map(|(name, value)| (label_name(name), value.clone())).collect();
        labels.extend(texts(&record["labels"]).map(|(name, value)| (label_name(name), value)));
        labels.insert("alertname".to_owned(), record["alert"].as_str()?.to_owned());
        let annotations: BTreeMap<_, _> = texts(&record["annotations"]).collect();
        let generator = self.config.generator_url.clone().or_else(|| {
            let named = ["url", "dashboard", "runbook"].iter().filter_map(|name| annotations.get(name));
            named.into_iter().find(|text| text.starts_with("https://") || text.starts_with("http://")).cloned()
        });
        // A digest knows only when it was told.
        let time = |name: &str| [&record[name], &record["time"]].into_iter().find(|time| time.is_string()).cloned();
        let mut alert = json!({ "labels": labels, "annotations": annotations });
        if let Some(starts_at) = time("starts_at") {
            alert["startsAt"] = starts_at;
        }
        if let (false, Some(ends_at)) = (is_firing, time("ends_at")) {
            alert["endsAt"] = ends_at;
        }
        if let Some(generator) = generator {
            alert["generatorURL"] = generator.into();
        }
        Some(alert)
    }
}

fn texts(object: &Json) -> impl Iterator<Item = (&str, String)> {
    let fields = object.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.as_str(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
}

/// A name as Prometheus knows it: letters, digits and `_`, and no digit at the beginning.
fn label_name(name: &str) -> String {
    let known = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let begins_with_digit = name.starts_with(|letter: char| letter.is_ascii_digit());
    let name: String = name.chars().map(known).collect();
    if begins_with_digit || name.is_empty() { format!("_{name}") } else { name }
}

impl Service for Alertmanager {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let mut text = Vec::new();
        write_value(record, &mut text);
        let record: Json = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if !record["alert"].is_string() || !(record["state"].is_string() || record["alerts"].is_array()) {
            return Err("the record is no alert".to_owned());
        }
        // What still fires after a silence comes by itself.
        if record["reason"] == "summary" {
            return Ok(None);
        }
        let alerts: Vec<_> = match record["alerts"].as_array() {
            Some(alerts) => alerts.iter().filter_map(|alert| self.alert(alert)).collect(),
            None => self.alert(&record).into_iter().collect(),
        };
        match alerts.is_empty() {
            true => Ok(None),
            false => serde_json::to_vec(&alerts).map(Some).map_err(|error| error.to_string()),
        }
    }

    fn digest(&self, digest: &Digest) -> Vec<u8> {
        // Of a digest of other records there is nothing to be sent: an empty list says nothing.
        self.payload(&digest.value()).ok().flatten().unwrap_or_else(|| b"[]".to_vec())
    }

    fn receivers(&self) -> Vec<String> {
        self.config.urls.iter().map(|url| trimmed(url).to_owned()).collect()
    }

    fn request(&self, row: &Row, now: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        let mut alerts: Vec<Json> =
            serde_json::from_slice(&row.payload).map_err(|error| format!("the alerts do not read: {error}"))?;
        let ends_at = now.saturating_add(self.config.ends_after.0).to_string();
        for alert in alerts.iter_mut().filter(|alert| alert["endsAt"].is_null()) {
            alert["endsAt"] = ends_at.clone().into();
        }
        let body = Json::Array(alerts).to_string();
        let mut request = service::post(&service::join(&row.receiver, "/api/v2/alerts"), body.into())?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    fn answer(&self, response: &Response, now: Timestamp) -> Answer {
        service::by_status_and_key(response, now)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::notice::tests::{AMENDED, DIGEST, FIRING, GROUP, RESOLVED, summary};
    use crate::service::tests::{body, config, payload, problems, run, serve};

    fn check(record: &str, expected: expect_test::Expect) {
        let options =
            r#"{"urls":["https://am/"],"labels":{"env":"prod","host":"none"},"generator_url":"https://tocsin/"}"#;
        payload(&Alertmanager::new(&config(options)), record, expected);
    }

    #[test]
    fn alerts_are_sent_one_by_one() {
        check(
            FIRING,
            expect![[r#"
            [
              {
                "annotations": {
                  "hint": "look at *this*",
                  "runbook": "https://example.org/r?a=1&b=2",
                  "summary": "too many & more"
                },
                "generatorURL": "https://tocsin/",
                "labels": {
                  "alertname": "errors",
                  "env": "prod",
                  "host": "a<b>",
                  "severity": "critical"
                },
                "startsAt": "2026-11-20T12:00:00Z"
              }
            ]"#]],
        );
        check(
            RESOLVED,
            expect![[r#"
            [
              {
                "annotations": {
                  "summary": "too many & more"
                },
                "endsAt": "2026-11-20T12:05:00Z",
                "generatorURL": "https://tocsin/",
                "labels": {
                  "alertname": "errors",
                  "env": "prod",
                  "host": "a<b>",
                  "severity": "critical"
                },
                "startsAt": "2026-11-20T12:00:00Z"
              }
            ]"#]],
        );
        check(
            GROUP,
            expect![[r#"
            [
              {
                "annotations": {
                  "summary": "bad"
                },
                "generatorURL": "https://tocsin/",
                "labels": {
                  "alertname": "errors",
                  "env": "prod",
                  "host": "a",
                  "severity": "warning"
                },
                "startsAt": "2026-11-20T12:00:00Z"
              },
              {
                "annotations": {},
                "generatorURL": "https://tocsin/",
                "labels": {
                  "alertname": "errors",
                  "env": "prod",
                  "host": "b",
                  "severity": "warning"
                },
                "startsAt": "2026-11-20T12:01:00Z"
              },
              {
                "annotations": {},
                "endsAt": "2026-11-20T12:02:00Z",
                "generatorURL": "https://tocsin/",
                "labels": {
                  "alertname": "errors",
                  "env": "prod",
                  "host": "c",
                  "severity": "warning"
                },
                "startsAt": "2026-11-20T12:00:00Z"
              }
            ]"#]],
        );
        check(
            DIGEST,
            expect![[r#"
            [
              {
                "annotations": {},
                "generatorURL": "https://tocsin/",
                "labels": {
                  "alertname": "errors",
                  "env": "prod",
                  "host": "a"
                },
                "startsAt": "2026-11-20T12:00:00Z"
              }
            ]"#]],
        );
        for nothing in [&FIRING.replace("\"firing\"", "\"pending\""), AMENDED, &summary()] {
            check(nothing, expect![[""]]);
        }
        let manager = Alertmanager::new(&config(r#"{"urls":["https://am"]}"#));
        assert!(manager.payload(&crate::notice::tests::record(r#"{"message":"x"}"#)).is_err());
    }

    #[test]
    fn labels_have_names_that_prometheus_knows() {
        for (name, known) in [("host", "host"), ("k8s.pod", "k8s_pod"), ("5xx", "_5xx"), ("", "_"), ("ä b", "__b")] {
            assert_eq!(label_name(name), known);
        }
    }

    #[tokio::test]
    async fn each_is_told_and_one_that_fails_does_not_hold_up_the_other() {
        let ((one, first), (two, second)) = (serve(&["503 Busy"]).await, serve(&["401 No", "400 Bad"]).await);
        let options = format!(
            r#"{{"urls":["{one}","{two}/am/"],"username":"u","password":"p","ends_after":"1h","allow_private":true}}"#
        );
        assert_eq!(run::<Config>(&options, &[FIRING, r#"{"message":"x"}"#]).await, [1, 2, 1]);
        let (first, second) = (first.lock().unwrap(), second.lock().unwrap());
        assert_eq!((first.len(), second.len()), (2, 2));
        for part in ["POST /api/v2/alerts HTTP/1.1\r\n", "authorization: Basic dTpw\r\n"] {
            assert!(first[0].contains(part), "{}", first[0]);
        }
        assert!(second[0].starts_with("POST /am/api/v2/alerts "), "{}", second[0]);
        let ends_at = |request: &str| serde_json::from_str::<Json>(body(request)).unwrap()[0]["endsAt"].clone();
        assert!(ends_at(&first[0]).as_str().unwrap().starts_with("2026-11-20T13:00:"), "{}", first[0]);
        assert_ne!(ends_at(&first[0]), ends_at(&first[1]), "from the moment of sending");
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"urls":["https://u:canary@am","https://am","https://am/"],"token":"t","username":"u","ends_after":"1s"}"#,
            expect![[r#"
                urls[0]: must not say who logs in
                urls[2]: is there twice
                token: cannot be used beside `username` and `password`
                ends_after: must be at least "1m"
            "#]],
        );
    }
}
