//! Alerts and records to an HTTP endpoint, one request each.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::Sha256;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::Secret;
use tocsin_pipeline::json;
use tocsin_pipeline::sink::Sink;
use tocsin_pipeline::template::{Escape, Template};
use tocsin_pipeline::time::Timestamp;
use vrl::value::{ObjectMap, Value};

use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, State};
use crate::outbox::{self, Digest, Row};
use crate::service::{self, AGENT, Connection, Service};

/// Tells an HTTP endpoint of each record, in a request of its own: alerts in the first place, other records just as well.
///
/// Every request carries the record's identity as `Idempotency-Key` and `webhook-id`, the same on each attempt, after a
/// restart and in a replay, so that the receiver can tell a repetition. With `secret`, requests are signed as in Standard
/// Webhooks: `webhook-signature: v1,BASE64` is the HMAC-SHA256 of `ID.TIMESTAMP.BODY`.
///
/// Answers 200 to 299 mean delivered. 408, 425, 429, 500 to 599, no answer and a broken connection mean to try again, with
/// growing waits that depend on chance, not sooner than `Retry-After` says, for `max_age`. Every other answer refuses the
/// record: it goes to `NAME.rejected`, and as it came to `NAME.failed`. Redirects are not followed. The *firing* and the *resolved* of an alert are sent in
/// this order, the second once the first is delivered or refused.
///
/// Only `https` URLs at public addresses are connected to, unless `allow_http` and `allow_private` say otherwise.
///
/// When `max_waiting` notifications wait, or 64 MiB of them, what comes is told as one, a digest, as soon as there is room:
/// `{"alert": "digest", "digest": true, "id": "…", "count": 12345, "firing": 17, "since": "…", "until": "…", "labels": {},
/// "annotations": {"summary": "12,345 notifications were not sent one by one since …"}, "alerts": [{"alert": "…",
/// "state": "firing", "fingerprint": "…", "labels": {…}, "time": "…"}, …], "more": 12235}`. `alerts` holds the first 100, the
/// last 10 and each *resolved* whose *firing* had been sent before (up to 1000), as they stood in the end; other records are
/// `{"record": "…", "time": "…"}`. `more` were not listed. `body` is rendered from it like from any record. What an
/// alert does after that is sent after it.
///
/// **State:** what is not delivered yet, at most `max_waiting` notifications or 64 MiB, and the digest of what came beyond.
/// The names of the last 100,000 that are settled.
///
/// **Late events:** sent like all others.
///
/// **After a crash:** nothing is lost. What was on its way when the daemon died is sent again with the same identity; what
/// had been answered is not. Without a `data_dir` everything since the last checkpoint may be sent again.
///
/// ```toml
/// [sinks.hook]
/// type = "webhook"
/// inputs = ["high_error_rate"]
/// url = "${file:/run/secrets/hook_url}"
/// secret = "${file:/run/secrets/hook_key}"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to. May hold a secret: it is never shown.
    url: Secret,
    /// `POST` (default), `PUT` or `PATCH`.
    #[serde(default)]
    method: HttpMethod,
    /// Headers to send, by name. They may hold secrets.
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    /// What to send when there is no `body`: `"tocsin"` (default): the record as JSON; `"alertmanager"`: alerts in the form
    /// in which Alertmanager sends them (version 4), other records as JSON. An amendment has one field more as JSON: `summary`,
    /// what it says in words.
    #[serde(default)]
    preset: Preset,
    /// The body as a text with `{{ field }}`; `{{ field | tojson }}` writes a value as JSON. At most 64 KiB.
    body: Option<String>,
    /// The type of the body. Default `"application/json"`.
    #[serde(default = "json_type")]
    content_type: String,
    /// Signs requests: text, or `whsec_` and base64.
    secret: Option<Secret>,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum HttpMethod {
    #[default]
    Post,
    Put,
    Patch,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Preset {
    #[default]
    Tocsin,
    Alertmanager,
}

fn json_type() -> String {
    "application/json".to_owned()
}

/// The headers that the sink writes itself.
const OWN_HEADERS: [&str; 7] = [
    "content-length",
    "host",
    "transfer-encoding",
    "idempotency-key",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

impl SinkConfig for Config {
    const NAME: &'static str = "webhook";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(self.connection.url_problem("url", self.url.reveal()));
        for (name, value) in &self.headers {
            let option = format!("headers.{name}");
            match HeaderName::try_from(name) {
                Err(_) => problems.push(Problem::new(option, format!("{name:?} is not a name of a header"))),
                Ok(known) if OWN_HEADERS.contains(&known.as_str()) => {
                    problems.push(Problem::new(option, format!("`{known}` is written by the sink itself")));
                }
                Ok(_) if HeaderValue::try_from(value.reveal()).is_err() => {
                    problems.push(Problem::new(option, "holds letters that a header may not"));
                }
                Ok(_) => {}
            }
        }
        if HeaderValue::try_from(&self.content_type).is_err() {
            problems.push(Problem::new("content_type", "holds letters that a header may not"));
        }
        if let Some(Err(error)) = self.body.as_ref().map(|body| Template::compile(body, Escape::None)) {
            problems.push(Problem::new("body", error.message).within(error.within));
        }
        if self.body.is_some() && self.preset != Preset::Tocsin {
            problems.push(Problem::new("preset", "has no effect beside `body`").help("leave one of them out"));
        }
        if self.secret.as_ref().is_some_and(|secret| key(secret).is_none_or(|key| key.is_empty())) {
            problems.push(Problem::new("secret", "is empty, or not base64 after `whsec_`"));
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

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let webhook = Webhook {
            body: self.body.as_ref().map(|body| Template::compile(body, Escape::None).expect("checked")),
            key: self.secret.as_ref().and_then(key),
            name: Arc::clone(&context.name),
            config: self.clone(),
        };
        service::sink(webhook, &self.delivery, &self.connection, context)
    }
}

/// The bytes that sign.
fn key(secret: &Secret) -> Option<Vec<u8>> {
    match secret.reveal().strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).ok(),
        None => Some(secret.reveal().as_bytes().to_vec()),
    }
}

struct Webhook {
    config: Config,
    body: Option<Template>,
    key: Option<Vec<u8>>,
    /// The sink's name, which Alertmanager's form holds.
    name: Arc<str>,
}

impl Service for Webhook {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(match (&self.body, self.config.preset) {
            (Some(body), _) => body.render(record).text.into_bytes(),
            (None, Preset::Alertmanager) => match alertmanager(record, &self.name) {
                Some(payload) => payload.to_string().into_bytes(),
                None => json_bytes(&worded(record)),
            },
            (None, Preset::Tocsin) => json_bytes(&worded(record)),
        }))
    }

    fn digest(&self, digest: &Digest) -> Vec<u8> {
        match (&self.body, self.config.preset) {
            (Some(body), _) => body.render(&digest.value()).text.into_bytes(),
            (None, Preset::Alertmanager) => alertmanager_digest(&digest.record(), &self.name).to_string().into_bytes(),
            (None, Preset::Tocsin) => digest.record().to_string().into_bytes(),
        }
    }

    fn request(&self, row: &Row, now: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        let method = match self.config.method {
            HttpMethod::Post => Method::POST,
            HttpMethod::Put => Method::PUT,
            HttpMethod::Patch => Method::PATCH,
        };
        let seconds = now.0.div_euclid(1_000_000_000);
        let mut request = Request::builder()
            .method(method)
            .uri(self.config.url.reveal())
            .header(USER_AGENT, AGENT)
            .header(CONTENT_TYPE, &self.config.content_type)
            .header("idempotency-key", &row.id)
            .header("webhook-id", &row.id)
            .header("webhook-timestamp", seconds);
        if let Some(key) = &self.key {
            let signature = STANDARD.encode(sign(key, &row.id, seconds, &row.payload));
            request = request.header("webhook-signature", format!("v1,{signature}"));
        }
        let mut request = request.body(Full::new(row.payload.clone())).map_err(|error| error.to_string())?;
        for (name, value) in &self.config.headers {
            // Names and values were checked with the configuration.
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value.reveal())) {
                value.set_sensitive(true);
                request.headers_mut().insert(name, value);
            }
        }
        Ok(request)
    }
}

fn sign(key: &[u8], id: &str, seconds: i64, body: &[u8]) -> Vec<u8> {
    let mut signer = Hmac::<Sha256>::new_from_slice(key).expect("keys of every length are keys");
    signer.update(format!("{id}.{seconds}.").as_bytes());
    signer.update(body);
    signer.finalize().into_bytes().to_vec()
}

fn json_bytes(record: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    json::write_value(record, &mut text);
    text
}

/// A record as it is sent: an amendment with what it says in words, as its fields alone are told by few.
fn worded(record: &Value) -> Cow<'_, Value> {
    let notice = Notice::of(record);
    let Some(fields) = record.as_object().filter(|_| notice.state == State::Amended) else {
        return Cow::Borrowed(record);
    };
    let mut fields = fields.clone();
    fields.insert("summary".into(), notice.summary.into());
    Cow::Owned(Value::Object(fields))
}

/// Says that an alert has not ended: the moment that Go's empty time stands for.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// An alert, or a notification of several, as Alertmanager sends it to webhooks; `None` for a record that is no alert.
fn alertmanager(record: &Value, receiver: &str) -> Option<serde_json::Value> {
    let record: &ObjectMap = record.as_object()?;
    if record.get("alerts").is_some_and(Value::is_array) && record.contains_key("group_key") {
        return alertmanager_group(
            &serde_json::from_slice(&json_bytes(&Value::Object(record.clone()))).ok()?,
            receiver,
        );
    }
    let field = |name: &str| record.get(name).and_then(|value| serde_json::to_value(value).ok());
    // Alertmanager knows no amendments.
    let status = field("state").filter(|state| state != "amended")?;
    let (rule, mut labels) = (field("alert")?, field("labels")?);
    labels.as_object_mut()?.insert("alertname".to_owned(), rule.clone());
    let annotations = field("annotations").unwrap_or_else(|| serde_json::json!({}));
    let ends_at = field("ends_at").filter(|end| end.is_string()).unwrap_or_else(|| NEVER.into());
    Some(serde_json::json!({
        "version": "4",
        "groupKey": format!("{{}}:{{alertname={rule}}}"),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": receiver,
        "groupLabels": { "alertname": rule },
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [{
            "status": status,
            "labels": labels,
            "annotations": annotations,
            "startsAt": field("starts_at"),
            "endsAt": ends_at,
            "generatorURL": "",
            "fingerprint": field("fingerprint"),
        }],
    }))
}

/// A notification of a group as Alertmanager would send it.
fn alertmanager_group(record: &serde_json::Value, receiver: &str) -> Option<serde_json::Value> {
    use serde_json::json;
    let alerts = record["alerts"].as_array()?;
    let alert = |alert: &serde_json::Value| {
        let mut labels = alert["labels"].as_object().cloned().unwrap_or_default();
        labels.insert("alertname".to_owned(), alert["alert"].clone());
        let ends_at = if alert["ends_at"].is_string() { alert["ends_at"].clone() } else { NEVER.into() };
        json!({
            "status": alert["state"],
            "labels": labels,
            "annotations": alert["annotations"],
            "startsAt": alert["starts_at"],
            "endsAt": ends_at,
            "generatorURL": "",
            "fingerprint": alert["fingerprint"],
        })
    };
    let mut common = record["labels"].as_object().cloned().unwrap_or_default();
    if let Some(first) = alerts.first()
        && alerts.iter().all(|alert| alert["alert"] == first["alert"])
    {
        common.insert("alertname".to_owned(), first["alert"].clone());
    }
    Some(json!({
        "version": "4",
        "groupKey": record["group_key"],
        "truncatedAlerts": record["more"].as_u64().unwrap_or(0),
        "status": record["state"],
        "receiver": receiver,
        "groupLabels": record["group_labels"],
        "commonLabels": common,
        "commonAnnotations": record["annotations"],
        "externalURL": "",
        "alerts": alerts.iter().map(alert).collect::<Vec<_>>(),
    }))
}

/// A digest as Alertmanager would send a group of which it left some out.
fn alertmanager_digest(record: &serde_json::Value, receiver: &str) -> serde_json::Value {
    use serde_json::json;
    let listed = record["alerts"].as_array().into_iter().flatten();
    let alert = |alert: &serde_json::Value| {
        let mut labels = alert["labels"].clone();
        let name = [&alert["alert"], &alert["record"]].into_iter().find(|name| name.is_string()).cloned();
        match labels.as_object_mut() {
            Some(labels) => drop(labels.insert("alertname".to_owned(), name.unwrap_or_default())),
            None => labels = json!({ "alertname": name }),
        }
        let is_resolved = alert["state"] == "resolved";
        json!({
            "status": if is_resolved { "resolved" } else { "firing" },
            "labels": labels,
            "annotations": {},
            "startsAt": alert["time"],
            "endsAt": if is_resolved { alert["time"].clone() } else { NEVER.into() },
            "generatorURL": "",
            "fingerprint": alert["fingerprint"],
        })
    };
    json!({
        "version": "4",
        "groupKey": "{}:{digest=\"true\"}",
        "truncatedAlerts": record["more"],
        "status": if record["firing"] == 0 { "resolved" } else { "firing" },
        "receiver": receiver,
        "groupLabels": { "digest": "true" },
        "commonLabels": {},
        "commonAnnotations": record["annotations"],
        "externalURL": "",
        "alerts": listed.map(alert).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::conformance::{Running, records, sink};
    use crate::notice::tests::AMENDED;
    use crate::service::tests::{body, problems, serve};

    const ALERT: &str = r#"{"alert":"errors","state":"firing","fingerprint":"f1","id":"abc","labels":{"host":"a"},"annotations":{"summary":"bad"},"starts_at":"2026-11-20T12:00:00Z","ends_at":null}"#;

    async fn run(options: &str, given: &[&str]) -> (u64, u64) {
        let [delivered, _, refused] = service::tests::run::<Config>(options, given).await;
        (delivered, refused)
    }

    #[tokio::test]
    async fn an_alert_is_posted_with_its_identity_again_after_a_failure() {
        let (url, requests) = serve(&["503 Busy"]).await;
        let options = format!(r#"{{"url":"{url}/hook","allow_private":true,"headers":{{"x-token":"t"}}}}"#);
        assert_eq!(run(&options, &[ALERT]).await, (1, 0));
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 2);
        for request in requests.iter() {
            for part in ["POST /hook HTTP/1.1", "idempotency-key: abc\r\n", "webhook-id: abc\r\n", "x-token: t\r\n"] {
                assert!(request.contains(part), "{part}: {request}");
            }
            assert_eq!(
                json::parse_value(body(request).as_bytes()).unwrap(),
                json::parse_value(ALERT.as_bytes()).unwrap()
            );
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_not_sent_again() {
        let (url, requests) = serve(&["400 Bad", "302 Found"]).await;
        let options = format!(r#"{{"url":"{url}/hook","allow_private":true,"concurrency":1}}"#);
        assert_eq!(run(&options, &[r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#]).await, (1, 2));
        assert_eq!(requests.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_connected_to_unless_it_is_allowed() {
        let (url, requests) = serve(&[]).await;
        // As a name that only resolves to it would: `check` sees through this one.
        let options = format!(r#"{{"url":"{url}/hook","allow_http":true}}"#).replace("127.0.0.1", "localhost");
        let config: Config = serde_json::from_str(&options).unwrap();
        let problems: Vec<_> = config.problems().into_iter().map(|found| found.option).collect();
        assert_eq!(problems, ["url"]);
        let sink = config.build(&mut BuildContext {
            name: "out".into(),
            paths: &mut tocsin_pipeline::codec::PathTable::default(),
            folder: std::path::PathBuf::new(),
            connected: Vec::new(),
            silences: [].into(),
            partition: None,
        });
        assert_eq!(service::tests::run_sink(sink, &[ALERT]).await, [0, 0, 1]);
        assert!(requests.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_amendment_comes_with_words_and_not_as_an_alert() {
        let (url, requests) = serve(&[]).await;
        for preset in ["tocsin", "alertmanager"] {
            let options = format!(r#"{{"url":"{url}/hook","allow_private":true,"preset":"{preset}"}}"#);
            assert_eq!(run(&options, &[AMENDED]).await, (1, 0));
        }
        let requests = requests.lock().unwrap();
        assert_eq!(body(&requests[0]), body(&requests[1]));
        expect![[r#"{"alert":"errors","amends":"abc","fingerprint":"f1","id":"ghi","is":true,"labels":{"host":"a<b>","severity":"critical"},"state":"amended","summary":"what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not","time":"2026-11-20T12:03:00Z","values":{"errors":9,"update":1},"was":false}"#]].assert_eq(body(&requests[0]));
    }

    #[tokio::test]
    async fn a_body_is_rendered_from_the_record() {
        let (url, requests) = serve(&[]).await;
        let options = format!(
            r#"{{"url":"{url}/hook","allow_private":true,"body":"{{\"text\": {{{{ annotations.summary | tojson }}}}}}"}}"#
        );
        assert_eq!(run(&options, &[ALERT]).await, (1, 0));
        assert_eq!(body(&requests.lock().unwrap()[0]), r#"{"text": "bad"}"#);
    }

    #[test]
    fn an_alert_is_told_as_alertmanager_would() {
        let record = json::parse_value(ALERT.as_bytes()).unwrap();
        expect![[r#"{"alerts":[{"annotations":{"summary":"bad"},"endsAt":"0001-01-01T00:00:00Z","fingerprint":"f1","generatorURL":"","labels":{"alertname":"errors","host":"a"},"startsAt":"2026-11-20T12:00:00Z","status":"firing"}],"commonAnnotations":{"summary":"bad"},"commonLabels":{"alertname":"errors","host":"a"},"externalURL":"","groupKey":"{}:{alertname=\"errors\"}","groupLabels":{"alertname":"errors"},"receiver":"hook","status":"firing","truncatedAlerts":0,"version":"4"}"#]]
            .assert_eq(&alertmanager(&record, "hook").unwrap().to_string());
        assert_eq!(alertmanager(&json::parse_value(b"{}").unwrap(), "hook"), None);
    }

    #[test]
    fn a_notification_of_several_alerts_is_told_as_alertmanager_would() {
        let record = json::parse_value(crate::notice::tests::GROUP.as_bytes()).unwrap();
        let told = serde_json::to_string_pretty(&alertmanager(&record, "hook").unwrap()).unwrap();
        expect![[r#"
            {
              "alerts": [
                {
                  "annotations": {
                    "summary": "bad"
                  },
                  "endsAt": "0001-01-01T00:00:00Z",
                  "fingerprint": "f1",
                  "generatorURL": "",
                  "labels": {
                    "alertname": "errors",
                    "host": "a",
                    "severity": "warning"
                  },
                  "startsAt": "2026-11-20T12:00:00Z",
                  "status": "firing"
                },
                {
                  "annotations": {},
                  "endsAt": "0001-01-01T00:00:00Z",
                  "fingerprint": "f2",
                  "generatorURL": "",
                  "labels": {
                    "alertname": "errors",
                    "host": "b",
                    "severity": "warning"
                  },
                  "startsAt": "2026-11-20T12:01:00Z",
                  "status": "firing"
                },
                {
                  "annotations": {},
                  "endsAt": "2026-11-20T12:02:00Z",
                  "fingerprint": "f3",
                  "generatorURL": "",
                  "labels": {
                    "alertname": "errors",
                    "host": "c",
                    "severity": "warning"
                  },
                  "startsAt": "2026-11-20T12:00:00Z",
                  "status": "resolved"
                }
              ],
              "commonAnnotations": {},
              "commonLabels": {
                "alertname": "errors",
                "severity": "warning"
              },
              "externalURL": "",
              "groupKey": "{}:{severity=\"warning\"}",
              "groupLabels": {
                "severity": "warning"
              },
              "receiver": "hook",
              "status": "firing",
              "truncatedAlerts": 4,
              "version": "4"
            }"#]]
        .assert_eq(&told);
    }

    #[tokio::test]
    async fn what_may_not_wait_is_told_as_a_digest() {
        let alert = |name: &str, state: &str| {
            ALERT.replace("f1", name).replace("abc", &format!("{name}{state}")).replace("firing", state)
        };
        let given = [alert("f1", "firing"), alert("f2", "firing"), alert("f1", "resolved"), alert("f3", "firing")];
        let mut told = String::new();
        for more in
            [r#""preset":"tocsin""#, r#""preset":"alertmanager""#, r#""body":"{{ alert }}: {{ annotations.summary }}""#]
        {
            let (url, requests) = serve(&[]).await;
            let options =
                format!(r#"{{"url":"{url}/hook","allow_private":true,"concurrency":1,"max_waiting":1,{more}}}"#);
            let given: Vec<_> = given.iter().map(String::as_str).collect();
            let folder = tempfile::tempdir().unwrap();
            let running = Running::start(sink::<Config>(&options, folder.path()), None, None).await.unwrap();
            running.send(records(&given)).await;
            running.end().await.unwrap();
            let requests = requests.lock().unwrap();
            told += body(&requests[1]);
            told.push('\n');
        }
        expect![[r#"
            {"alert":"digest","alerts":[{"alert":"errors","fingerprint":"f1","labels":{"host":"a"},"state":"resolved","time":"2026-11-20T12:00:02Z"},{"alert":"errors","fingerprint":"f2","labels":{"host":"a"},"state":"firing","time":"2026-11-20T12:00:01Z"},{"alert":"errors","fingerprint":"f3","labels":{"host":"a"},"state":"firing","time":"2026-11-20T12:00:03Z"}],"annotations":{"summary":"3 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: errors resolved, errors firing, errors firing"},"count":3,"digest":true,"firing":2,"id":"9cdad028bf2f24cd21845aff490661b0","labels":{},"more":0,"since":"2026-11-20T12:00:00Z","until":"2026-11-20T12:00:00Z"}
            {"alerts":[{"annotations":{},"endsAt":"2026-11-20T12:00:02Z","fingerprint":"f1","generatorURL":"","labels":{"alertname":"errors","host":"a"},"startsAt":"2026-11-20T12:00:02Z","status":"resolved"},{"annotations":{},"endsAt":"0001-01-01T00:00:00Z","fingerprint":"f2","generatorURL":"","labels":{"alertname":"errors","host":"a"},"startsAt":"2026-11-20T12:00:01Z","status":"firing"},{"annotations":{},"endsAt":"0001-01-01T00:00:00Z","fingerprint":"f3","generatorURL":"","labels":{"alertname":"errors","host":"a"},"startsAt":"2026-11-20T12:00:03Z","status":"firing"}],"commonAnnotations":{"summary":"3 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: errors resolved, errors firing, errors firing"},"commonLabels":{},"externalURL":"","groupKey":"{}:{digest=\"true\"}","groupLabels":{"digest":"true"},"receiver":"out","status":"firing","truncatedAlerts":0,"version":"4"}
            digest: 3 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: errors resolved, errors firing, errors firing
        "#]].assert_eq(&told);
    }

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // Computed with: printf 'msg_1.1614265330.{"test": 2432232314}' | openssl dgst -sha256 -hmac KEY -binary | base64
        let signature = STANDARD.encode(sign(b"MyKey", "msg_1", 1_614_265_330, br#"{"test": 2432232314}"#));
        expect!["0G/M5JYw6MeZsCI8xcBlyr6RnND/kz82ED6v00uT5AQ="].assert_eq(&signature);
    }

    #[test]
    fn problems_are_told_without_the_secrets() {
        problems::<Config>(
            r#"{"url":"http://canary.example/","headers":{"a b":"x","host":"x","c":"a\nb"},"body":"{{ x","preset":"alertmanager",
                "secret":"whsec_%%%","concurrency":0,"max_waiting":0,"timeout":"0s","content_type":"a\nb"}"#,
            expect![[r#"
                url: is not encrypted
                headers.a b: "a b" is not a name of a header
                headers.c: holds letters that a header may not
                headers.host: `host` is written by the sink itself
                content_type: holds letters that a header may not
                body: unexpected end of input, expected end of variable block
                preset: has no effect beside `body`
                secret: is empty, or not base64 after `whsec_`
                concurrency: must be from 1 to 256
                max_waiting: must be from 1 to 100000
                timeout: must be longer than nothing
            "#]],
        );
    }
}
