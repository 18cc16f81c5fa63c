//! Alerts and records to an HTTP endpoint, one request each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::Sha256;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::{Duration, Secret};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::json;
use tocsin_pipeline::sink::{Notification, Sink, SinkContext, SinkError, SinkState};
use tocsin_pipeline::template::{Escape, Template};
use tocsin_pipeline::time::Timestamp;
use vrl::value::{ObjectMap, Value};

use crate::client::{self, Client, RequestError, TlsConfig};
use crate::outbox::{self, Answer, Courier, Digest, Draft, Identity, Outbox, ROWS_MAX, Row, Settings};
use crate::retry;

/// How much of a response is read: it is shown in logs and dead letters only.
const RESPONSE_MAX: usize = 4 << 10;

/// Tells an HTTP endpoint of each record, in a request of its own: alerts in the first place, other records just as well.
///
/// Every request carries the record's identity as `Idempotency-Key` and `webhook-id`, the same on each attempt, after a
/// restart and in a replay, so that the receiver can tell a repetition. With `secret`, requests are signed as in Standard
/// Webhooks: `webhook-signature: v1,BASE64` is the HMAC-SHA256 of `ID.TIMESTAMP.BODY`.
///
/// Answers 200 to 299 mean delivered. 408, 425, 429, 500 to 599, no answer and a broken connection mean to try again, with
/// growing waits that depend on chance, not sooner than `Retry-After` says, for `max_age`. Every other answer refuses the
/// record: it goes to `NAME.rejected`. Redirects are not followed. The *firing* and the *resolved* of an alert are sent in
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
    /// in which Alertmanager sends them (version 4), other records as JSON.
    #[serde(default)]
    preset: Preset,
    /// The body as a text with `{{ field }}`; `{{ field | tojson }}` writes a value as JSON. At most 64 KiB.
    body: Option<String>,
    /// The type of the body. Default `"application/json"`.
    #[serde(default = "json_type")]
    content_type: String,
    /// Signs requests: text, or `whsec_` and base64.
    secret: Option<Secret>,
    /// How long an attempt may take. Default `"10s"`.
    #[serde(default = "ten_seconds")]
    timeout: Duration,
    /// How many requests are on their way at a time. Default 8, from 1 to 256.
    #[serde(default = "eight")]
    concurrency: usize,
    /// How many notifications may wait; what comes beyond is told as one. Default 100,000, from 1 to 100,000.
    #[serde(default = "all_rows")]
    max_waiting: usize,
    /// How long to go on trying. Default `"24h"`.
    #[serde(default = "one_day")]
    max_age: Duration,
    /// How attempts follow each other.
    #[serde(default)]
    retry: retry::Config,
    /// How connections are encrypted.
    #[serde(default)]
    tls: TlsConfig,
    /// Whether a URL without encryption is accepted. Default false.
    #[serde(default)]
    allow_http: bool,
    /// Whether addresses of this machine and of private networks may be connected to, with `http` too. Default false.
    #[serde(default)]
    allow_private: bool,
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

fn ten_seconds() -> Duration {
    Duration(std::time::Duration::from_secs(10))
}

fn eight() -> usize {
    8
}

fn all_rows() -> usize {
    ROWS_MAX
}

fn one_day() -> Duration {
    Duration(std::time::Duration::from_secs(86_400))
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
        let mut problems = Vec::new();
        // Messages never repeat the URL, which may be secret.
        match self.url.reveal().parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty())) {
            None => problems.push(Problem::new("url", "is not a URL").help("write https://HOST/PATH")),
            Some(uri) => match uri.scheme_str() {
                Some("https") => {}
                Some("http") if self.allow_http || self.allow_private => {}
                Some("http") => problems
                    .push(Problem::new("url", "is not encrypted").help("write https://…, or set `allow_http = true`")),
                _ => problems.push(Problem::new("url", "is neither https nor http")),
            },
        }
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
        if !(1..=256).contains(&self.concurrency) {
            problems.push(Problem::new("concurrency", "must be from 1 to 256"));
        }
        if !(1..=ROWS_MAX).contains(&self.max_waiting) {
            problems.push(Problem::new("max_waiting", format!("must be from 1 to {ROWS_MAX}")));
        }
        if self.timeout.0.is_zero() {
            problems.push(Problem::new("timeout", "must be longer than nothing"));
        }
        problems.extend(self.retry.problems());
        problems.extend(self.tls.problems());
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once, with one identity"
    }

    fn undelivered(state: &[u8]) -> u64 {
        outbox::undelivered(state)
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let mut config = self.clone();
        config.tls = self.tls.within(&context.folder);
        let wording = Arc::new(Wording {
            body: self.body.as_ref().map(|body| Template::compile(body, Escape::None).expect("checked")),
            preset: self.preset,
            name: Arc::clone(&context.name),
        });
        Box::new(Webhook { config, wording, open: None })
    }
}

/// The bytes that sign.
fn key(secret: &Secret) -> Option<Vec<u8>> {
    match secret.reveal().strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).ok(),
        None => Some(secret.reveal().as_bytes().to_vec()),
    }
}

/// Whether an address is one of the public internet: not of this machine, of a private network, or of special use.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || first == 0
        || first >= 240
        || (first == 100 && second & 0xc0 == 64)
        || (first == 192 && second == 0 && third == 0)
        || (first == 198 && second & 0xfe == 18))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Addresses that stand for an IPv4 address (mapped, translated, 6to4) are as public as that.
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Only 2000::/3 is given out; of it, not what is for documentation and tunnels.
        [first, second, ..] => first & 0xe000 == 0x2000 && !(first == 0x2001 && (second < 0x200 || second == 0xdb8)),
    }
}

struct Webhook {
    config: Config,
    wording: Arc<Wording>,
    open: Option<(Outbox, Arc<Endpoint>)>,
}

impl Sink for Webhook {
    fn preview(&self, batch: &Batch, row: u32) -> Option<Notification> {
        let body = self.wording.of(&batch.value(row));
        Some(Notification { subject: None, body: String::from_utf8_lossy(&body).into_owned() })
    }

    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let config = &self.config;
            let tls = config.tls.load().map_err(SinkError)?;
            let endpoint = Endpoint {
                client: Client::new(tls, if config.allow_private { client::any_address } else { is_public }),
                wording: Arc::clone(&self.wording),
                key: config.secret.as_ref().and_then(key),
                config: config.clone(),
            };
            let settings = Settings {
                concurrency: config.concurrency,
                max_waiting: config.max_waiting,
                max_age: config.max_age.0,
                retry: config.retry,
            };
            self.open = Some((Outbox::open(settings, context).await?, Arc::new(endpoint)));
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        let (outbox, endpoint) = self.open.expect("opened before it is run");
        Box::pin(outbox.run(endpoint, context))
    }
}

/// What a request says of a record.
struct Wording {
    body: Option<Template>,
    preset: Preset,
    /// The sink's name, which Alertmanager's form holds.
    name: Arc<str>,
}

impl Wording {
    fn of(&self, record: &Value) -> Vec<u8> {
        match (&self.body, self.preset) {
            (Some(body), _) => body.render(record).text.into_bytes(),
            (None, Preset::Alertmanager) => match alertmanager(record, &self.name) {
                Some(payload) => payload.to_string().into_bytes(),
                None => json_bytes(record),
            },
            (None, Preset::Tocsin) => json_bytes(record),
        }
    }
}

/// Makes requests and reads answers.
struct Endpoint {
    config: Config,
    client: Client,
    wording: Arc<Wording>,
    key: Option<Vec<u8>>,
}

impl Endpoint {
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
            .header(USER_AGENT, concat!("tocsin/", env!("CARGO_PKG_VERSION")))
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

impl Courier for Endpoint {
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String> {
        let record = batch.value(row);
        let Identity { id, thread } = Identity::of(&record, batch, row);
        let payload = self.wording.of(&record);
        Ok(vec![Draft { id, receiver: String::new(), thread, payload }])
    }

    fn digest(&self, digest: &Digest) -> Draft {
        let record = digest.record();
        let payload = match (&self.wording.body, self.wording.preset) {
            (Some(body), _) => {
                let record = json::parse_value(record.to_string().as_bytes()).expect("it was written as JSON");
                body.render(&record).text.into_bytes()
            }
            (None, Preset::Alertmanager) => alertmanager_digest(&record, &self.wording.name).to_string().into_bytes(),
            (None, Preset::Tocsin) => record.to_string().into_bytes(),
        };
        Draft { id: digest.id.clone(), receiver: digest.receiver.clone(), thread: digest.threads(), payload }
    }

    fn deliver(self: Arc<Self>, row: Row, now: Timestamp) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let request = match self.request(&row, now) {
                Ok(request) => request,
                Err(why) => return Answer::Never { why },
            };
            match self.client.send(request, self.config.timeout.0, RESPONSE_MAX).await {
                Ok(response) => match response.status.as_u16() {
                    200..=299 => Answer::Delivered,
                    408 | 425 | 429 | 500..=599 => {
                        Answer::Again { why: response.told(), wish: response.retry_after(now) }
                    }
                    _ => Answer::Never { why: response.told() },
                },
                Err(error @ RequestError::Forbidden(_)) => {
                    Answer::Never { why: format!("{error}; `allow_private = true` would allow it") }
                }
                Err(error) => Answer::Again { why: error.to_string(), wish: None },
            }
        })
    }
}

fn json_bytes(record: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    json::write_value(record, &mut text);
    text
}

/// An alert as Alertmanager sends it to webhooks; `None` for a record that is no alert.
fn alertmanager(record: &Value, receiver: &str) -> Option<serde_json::Value> {
    let record: &ObjectMap = record.as_object()?;
    let field = |name: &str| record.get(name).and_then(|value| serde_json::to_value(value).ok());
    let (rule, status, mut labels) = (field("alert")?, field("state")?, field("labels")?);
    labels.as_object_mut()?.insert("alertname".to_owned(), rule.clone());
    let annotations = field("annotations").unwrap_or_else(|| serde_json::json!({}));
    // The moment that Go's empty time stands for says that an alert has not ended.
    let ends_at = field("ends_at").filter(|end| end.is_string()).unwrap_or_else(|| "0001-01-01T00:00:00Z".into());
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
            "endsAt": if is_resolved { alert["time"].clone() } else { "0001-01-01T00:00:00Z".into() },
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
    use std::sync::Mutex;

    use expect_test::expect;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::conformance::{Running, records, sink};

    /// Answers requests as it is told, 200 when it is told nothing more, and keeps them.
    async fn serve(answers: &[&'static str]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        let mut answers: Vec<_> = answers.iter().rev().copied().collect();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                loop {
                    let text = String::from_utf8_lossy(&request).to_lowercase();
                    if let Some((head, body)) = text.split_once("\r\n\r\n") {
                        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                            break;
                        }
                    }
                    let mut piece = [0; 4096];
                    let read = stream.read(&mut piece).await.unwrap();
                    assert!(read > 0, "a request is whole");
                    request.extend_from_slice(&piece[..read]);
                }
                kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                let answer = answers.pop().unwrap_or("200 OK");
                let _ = stream
                    .write_all(
                        format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").as_bytes(),
                    )
                    .await;
            }
        });
        (url, requests)
    }

    const ALERT: &str = r#"{"alert":"errors","state":"firing","fingerprint":"f1","id":"abc","labels":{"host":"a"},"annotations":{"summary":"bad"},"starts_at":"2026-11-20T12:00:00Z","ends_at":null}"#;

    async fn run(options: &str, given: &[&str]) -> (u64, u64) {
        let folder = tempfile::tempdir().unwrap();
        let running = Running::start(sink::<Config>(options, folder.path()), None, None).await.unwrap();
        let (clock, metrics) = (Arc::clone(&running.clock), running.metrics.clone());
        running.send(records(given)).await;
        let end = tokio::spawn(running.end());
        while !end.is_finished() {
            use tocsin_pipeline::time::Clock as _;
            clock.set(clock.now().saturating_add(std::time::Duration::from_secs(1)));
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        end.await.unwrap().unwrap();
        (metrics.notification_count("delivered"), metrics.notification_count("refused"))
    }

    #[tokio::test]
    async fn an_alert_is_posted_with_its_identity_again_after_a_failure() {
        let (url, requests) = serve(&["503 Busy"]).await;
        let options = format!(r#"{{"url":"{url}","allow_private":true,"headers":{{"x-token":"t"}}}}"#);
        assert_eq!(run(&options, &[ALERT]).await, (1, 0));
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 2);
        for request in requests.iter() {
            for part in ["POST /hook HTTP/1.1", "idempotency-key: abc\r\n", "webhook-id: abc\r\n", "x-token: t\r\n"] {
                assert!(request.contains(part), "{part}: {request}");
            }
            let body = request.split_once("\r\n\r\n").unwrap().1;
            assert_eq!(json::parse_value(body.as_bytes()).unwrap(), json::parse_value(ALERT.as_bytes()).unwrap());
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_not_sent_again() {
        let (url, requests) = serve(&["400 Bad", "302 Found"]).await;
        let options = format!(r#"{{"url":"{url}","allow_private":true,"concurrency":1}}"#);
        assert_eq!(run(&options, &[r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#]).await, (1, 2));
        assert_eq!(requests.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn an_address_of_this_machine_is_not_connected_to_unless_it_is_allowed() {
        let (url, requests) = serve(&[]).await;
        let options = format!(r#"{{"url":"{url}","allow_http":true}}"#);
        assert_eq!(run(&options, &[ALERT]).await, (0, 1));
        assert!(requests.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_body_is_rendered_from_the_record() {
        let (url, requests) = serve(&[]).await;
        let options = format!(
            r#"{{"url":"{url}","allow_private":true,"body":"{{\"text\": {{{{ annotations.summary | tojson }}}}}}"}}"#
        );
        assert_eq!(run(&options, &[ALERT]).await, (1, 0));
        let body = requests.lock().unwrap()[0].split_once("\r\n\r\n").unwrap().1.to_owned();
        assert_eq!(body, r#"{"text": "bad"}"#);
    }

    #[test]
    fn an_alert_is_told_as_alertmanager_would() {
        let record = json::parse_value(ALERT.as_bytes()).unwrap();
        expect![[r#"{"alerts":[{"annotations":{"summary":"bad"},"endsAt":"0001-01-01T00:00:00Z","fingerprint":"f1","generatorURL":"","labels":{"alertname":"errors","host":"a"},"startsAt":"2026-11-20T12:00:00Z","status":"firing"}],"commonAnnotations":{"summary":"bad"},"commonLabels":{"alertname":"errors","host":"a"},"externalURL":"","groupKey":"{}:{alertname=\"errors\"}","groupLabels":{"alertname":"errors"},"receiver":"hook","status":"firing","truncatedAlerts":0,"version":"4"}"#]]
            .assert_eq(&alertmanager(&record, "hook").unwrap().to_string());
        assert_eq!(alertmanager(&json::parse_value(b"{}").unwrap(), "hook"), None);
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
            let options = format!(r#"{{"url":"{url}","allow_private":true,"concurrency":1,"max_waiting":1,{more}}}"#);
            let given: Vec<_> = given.iter().map(String::as_str).collect();
            let folder = tempfile::tempdir().unwrap();
            let running = Running::start(sink::<Config>(&options, folder.path()), None, None).await.unwrap();
            running.send(records(&given)).await;
            running.end().await.unwrap();
            let requests = requests.lock().unwrap();
            told += requests[1].split_once("\r\n\r\n").unwrap().1;
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
    fn what_is_public_is_told_from_what_is_not() {
        for address in ["8.8.8.8", "1.1.1.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn problems_are_told_without_the_secrets() {
        let config: Config = serde_json::from_str(
            r#"{"url":"http://canary.example/","headers":{"a b":"x","host":"x","c":"a\nb"},"body":"{{ x","preset":"alertmanager",
                "secret":"whsec_%%%","concurrency":0,"max_waiting":0,"timeout":"0s","content_type":"a\nb"}"#,
        )
        .unwrap();
        let told: Vec<_> =
            config.problems().iter().map(|found| format!("{}: {}", found.option, found.message)).collect();
        let told = told.join("\n");
        assert!(!told.contains("canary"), "{told}");
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
            timeout: must be longer than nothing"#]]
        .assert_eq(&told);
    }
}
