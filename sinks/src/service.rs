//! What all receivers share that are told by HTTP: which addresses are connected to, how an answer is taken, and all that is
//! around it. A receiver's own file says what a request looks like.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::sink::{Notification, Sink, SinkContext, SinkError, SinkState};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use crate::client::{self, AddressRule, Client, RequestError, Response, TlsConfig};
use crate::delivery::{Delivery, Usual};
use crate::outbox::{Answer, Courier, Digest, Draft, Identity, Outbox, Row, Settings};

/// How much of a response is read: it is shown in logs and dead letters, and some hold how long to wait.
const RESPONSE_MAX: usize = 4 << 10;

/// What is said of itself.
pub(crate) const AGENT: &str = concat!("tocsin/", env!("CARGO_PKG_VERSION"));

/// How sinks that tell somebody by HTTP connect.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Connection {
    /// How connections are encrypted.
    #[serde(default)]
    tls: TlsConfig,
    /// Whether a URL without encryption is accepted, at public addresses. Default false.
    #[serde(default)]
    allow_http: bool,
    /// Whether addresses of this machine and of private networks may be connected to, with `http` too. Default false.
    #[serde(default)]
    allow_private: bool,
}

impl Connection {
    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.tls.problems()
    }

    /// What is wrong with a URL; messages never repeat it, since it may be secret.
    pub(crate) fn url_problem(&self, option: &str, url: &str) -> Option<Problem> {
        let Some(uri) = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty())) else {
            return Some(Problem::new(option, "is not a URL").help("write https://HOST/PATH"));
        };
        match uri.scheme_str() {
            Some("https" | "http") if !client::may_lead_to(&uri, self.allowed()) => Some(
                Problem::new(option, "leads to this machine, to a private network, or to an address of special use")
                    .help("if that is meant, set `allow_private = true`, which accepts http there too"),
            ),
            Some("https") => None,
            Some("http") if self.allow_http || self.allow_private => None,
            Some("http") => {
                Some(Problem::new(option, "is not encrypted").help("write https://…, or set `allow_http = true`"))
            }
            // A scheme is no secret, however little else is shown.
            Some(other) => Some(Problem::new(option, format!("is neither https nor http, but {other}"))),
            None => Some(Problem::new(option, "is not a URL").help("write https://HOST/PATH")),
        }
    }

    fn allowed(&self) -> AddressRule {
        if self.allow_private { client::any_address } else { client::is_public }
    }
}

/// A kind of receiver that is told by HTTP.
pub(crate) trait Service: Send + Sync + 'static {
    /// What a request says of a record; `None`: nothing is to be said of it; an error refuses it. It is kept on disk, so secrets come
    /// with the request.
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String>;

    /// What a request says of many records that were not told one by one.
    fn digest(&self, digest: &Digest) -> Vec<u8> {
        self.payload(&digest.value()).ok().flatten().unwrap_or_default()
    }

    /// Who is told: each of them in requests of its own.
    fn receivers(&self) -> Vec<String> {
        vec![String::new()]
    }

    /// The request that tells it.
    fn request(&self, row: &Row, now: Timestamp) -> Result<Request<Full<Bytes>>, String>;

    /// What follows from a response.
    fn answer(&self, response: &Response, now: Timestamp) -> Answer {
        by_status(response, now)
    }

    /// What somebody would read, for `tocsin test`.
    fn preview(&self, record: &Value) -> Option<Notification> {
        let payload = self.payload(record).ok()??;
        Some(Notification { subject: None, body: String::from_utf8_lossy(&payload).into_owned() })
    }
}

/// 200 to 299: delivered. 408, 425, 429 and 500 to 599: again, when the peer asks for it. All else: never.
pub(crate) fn by_status(response: &Response, now: Timestamp) -> Answer {
    match response.status.as_u16() {
        200..=299 => Answer::Delivered,
        408 | 425 | 429 | 500..=599 => again(response, response.retry_after(now)),
        _ => Answer::Never { why: response.told() },
    }
}

/// As [`by_status`], where a key that is not accepted is put right by somebody: until then nothing may be thrown away.
pub(crate) fn by_status_and_key(response: &Response, now: Timestamp) -> Answer {
    match response.status.as_u16() {
        401 | 403 => again(response, None),
        _ => by_status(response, now),
    }
}

pub(crate) fn again(response: &Response, wish: Option<Duration>) -> Answer {
    Answer::Again { why: response.told(), wish }
}

/// A request that posts JSON.
pub(crate) fn post(url: &str, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
    Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(USER_AGENT, AGENT)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(Full::new(body))
        // The error does not repeat the URL.
        .map_err(|error| error.to_string())
}

/// A path behind a base URL, which may end with a slash.
pub(crate) fn join(base: &str, path: &str) -> String {
    format!("{}{path}", base.trim_end_matches('/'))
}

/// A sink that tells a service.
pub(crate) fn sink<S: Service>(
    service: S,
    delivery: &Delivery,
    connection: &Connection,
    context: &BuildContext<'_>,
) -> Box<dyn Sink> {
    Box::new(Receiver {
        service: Arc::new(service),
        settings: delivery.settings(Usual::HTTP),
        timeout: delivery.timeout(Usual::HTTP),
        tls: connection.tls.within(&context.folder),
        allowed: connection.allowed(),
        open: None,
    })
}

struct Receiver<S> {
    service: Arc<S>,
    settings: Settings,
    timeout: Duration,
    tls: TlsConfig,
    allowed: AddressRule,
    open: Option<(Outbox, Arc<Endpoint<S>>)>,
}

impl<S: Service> Sink for Receiver<S> {
    fn preview(&self, batch: &Batch, row: u32) -> Option<Notification> {
        self.service.preview(&batch.value(row))
    }

    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let client = Client::new(self.tls.load().map_err(SinkError)?, self.allowed);
            let endpoint = Endpoint { service: Arc::clone(&self.service), client, timeout: self.timeout };
            self.open = Some((Outbox::open(self.settings, context).await?, Arc::new(endpoint)));
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        let (outbox, endpoint) = self.open.expect("opened before it is run");
        Box::pin(outbox.run(endpoint, context))
    }
}

/// Makes requests and reads answers.
struct Endpoint<S> {
    service: Arc<S>,
    client: Client,
    timeout: Duration,
}

impl<S: Service> Courier for Endpoint<S> {
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String> {
        let record = batch.value(row);
        let Some(payload) = self.service.payload(&record)? else { return Ok(Vec::new()) };
        let Identity { id, thread } = Identity::of(&record, batch, row);
        let draft = |receiver: String| {
            let id = named(&id, &receiver);
            Draft { id, receiver, thread: thread.clone(), payload: payload.clone() }
        };
        Ok(self.service.receivers().into_iter().map(draft).collect())
    }

    fn digest(&self, digest: &Digest) -> Draft {
        let payload = self.service.digest(digest);
        Draft { id: digest.id.clone(), receiver: digest.receiver.clone(), thread: digest.threads(), payload }
    }

    fn deliver(self: Arc<Self>, row: Row, now: Timestamp) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let request = match self.service.request(&row, now) {
                Ok(request) => request,
                Err(why) => return Answer::Never { why },
            };
            match self.client.send(request, self.timeout, RESPONSE_MAX).await {
                Ok(response) => self.service.answer(&response, now),
                Err(error @ RequestError::Forbidden(_)) => {
                    Answer::Never { why: format!("{error}; `allow_private = true` would allow it") }
                }
                Err(error) => Answer::Again { why: error.to_string(), wish: None },
            }
        })
    }
}

/// The name of a notification for one of several receivers.
fn named(id: &str, receiver: &str) -> String {
    match receiver {
        "" => id.to_owned(),
        _ => format!("{id}.{}", &blake3::hash(receiver.as_bytes()).to_hex()[..12]),
    }
}

/// What the tests of receivers are made of.
#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use expect_test::{Expect, expect};
    use tocsin_config::component::SinkConfig;
    use tocsin_pipeline::time::Clock as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::conformance::{Running, records};

    /// Requests that a server was sent, whole.
    pub(crate) type Requests = Arc<Mutex<Vec<String>>>;

    /// Answers requests as it is told (a status, a body after it), 200 when it is told nothing more, and keeps them.
    pub(crate) async fn serve(answers: &[&'static str]) -> (String, Requests) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Requests::default();
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
                let (status, body) = answer.split_once('\n').unwrap_or((answer, ""));
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, requests)
    }

    /// Runs a sink over records; time passes by itself. Gives how many notifications were delivered, tried again and refused.
    pub(crate) async fn run<C: SinkConfig>(options: &str, given: &[&str]) -> [u64; 3] {
        let folder = tempfile::tempdir().unwrap();
        run_sink(crate::conformance::sink::<C>(options, folder.path()), given).await
    }

    pub(crate) async fn run_sink(sink: Box<dyn Sink>, given: &[&str]) -> [u64; 3] {
        let running = Running::start(sink, None, None).await.unwrap();
        let (clock, metrics) = (Arc::clone(&running.clock), running.metrics.clone());
        running.send(records(given)).await;
        let end = tokio::spawn(running.end());
        while !end.is_finished() {
            clock.set(clock.now().saturating_add(Duration::from_secs(1)));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        end.await.unwrap().unwrap();
        ["delivered", "retried", "refused"].map(|result| metrics.notification_count(result))
    }

    /// The body of a request.
    pub(crate) fn body(request: &str) -> &str {
        request.split_once("\r\n\r\n").unwrap().1
    }

    /// What a sink sends for records, and its requests without what differs each time.
    pub(crate) async fn delivers<C: SinkConfig>(options: impl Fn(&str) -> String, given: &[&str], expected: Expect) {
        // The first attempt fails, the second does not.
        let (url, requests) = serve(&["503 Busy"]).await;
        assert_eq!(run::<C>(&options(&url), given).await, [given.len() as u64, 1, 0]);
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), given.len() + 1);
        assert_eq!(requests[0], requests[1], "an attempt is like the one before");
        let requests = requests[1..].iter().map(|request| {
            let is_told = |line: &&str| {
                let name = line.split(':').next().unwrap_or_default().to_lowercase();
                !["host", "user-agent", "content-length", "content-type"].contains(&&*name)
            };
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            let head: Vec<_> = head.lines().filter(is_told).collect();
            format!("{}\n\n{body}\n", head.join("\n"))
        });
        expected.assert_eq(&requests.collect::<Vec<_>>().join("\n"));
    }

    /// What is wrong with options; they must not be repeated where they are secret (`canary`).
    pub(crate) fn problems<C: SinkConfig>(options: &str, expected: Expect) {
        let config: C = serde_json::from_str(options).unwrap();
        let told: Vec<_> =
            config.problems().iter().map(|found| format!("{}: {}\n", found.option, found.message)).collect();
        let told = told.concat();
        assert!(!told.contains("canary"), "{told}");
        expected.assert_eq(&told);
    }

    /// What a sink would send for a record, as JSON that people can read.
    pub(crate) fn payload<S: Service>(service: &S, record: &str, expected: Expect) {
        let record = tocsin_pipeline::json::parse_value(record.as_bytes()).unwrap();
        let payload = service.payload(&record).unwrap().map(|payload| {
            let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            serde_json::to_string_pretty(&json).unwrap()
        });
        expected.assert_eq(&payload.unwrap_or_default());
    }

    /// Options of a type.
    pub(crate) fn config<C: SinkConfig>(options: &str) -> C {
        let config: C = serde_json::from_str(options).unwrap();
        assert_eq!(config.problems(), []);
        config
    }

    #[test]
    fn urls_are_checked_without_being_repeated() {
        let of = |options: &str| serde_json::from_str::<Connection>(options).unwrap();
        let (strict, http) = (of("{}"), of(r#"{"allow_http":true}"#));
        let told = |connection: &Connection, url: &str| connection.url_problem("url", url).map(|found| found.message);
        assert_eq!(told(&strict, "https://example.org/x"), None);
        assert_eq!(told(&strict, "http://example.org/x").as_deref(), Some("is not encrypted"));
        assert_eq!(told(&http, "http://example.org/x"), None);
        assert_eq!(told(&http, "ftp://example.org/x").as_deref(), Some("is neither https nor http, but ftp"));
        assert_eq!(told(&http, "example.org").as_deref(), Some("is not a URL"));
        assert_eq!(told(&http, "/x").as_deref(), Some("is not a URL"));
    }

    #[test]
    fn what_a_run_would_not_connect_to_is_no_url_of_a_receiver() {
        let of = |options: &str| serde_json::from_str::<Connection>(options).unwrap();
        let is_private = |options: &str, url: &str| {
            of(options).url_problem("url", url).is_some_and(|found| found.message.starts_with("leads to this machine"))
        };
        let urls = [
            "http://127.0.0.1:80/x",
            "https://[::1]/x",
            "https://10.0.0.1",
            "http://localhost",
            "https://a.localhost.",
        ];
        for url in urls {
            assert!(is_private("{}", url) && is_private(r#"{"allow_http":true}"#, url), "{url}");
            assert_eq!(of(r#"{"allow_private":true}"#).url_problem("url", url), None, "{url}");
        }
        for url in ["https://9.9.9.9/x", "https://localhost.example.org", "https://[2606:4700::1]"] {
            assert!(!is_private("{}", url), "{url}");
        }
    }

    #[test]
    fn a_path_follows_a_base() {
        assert_eq!(
            (join("https://a/", "/b"), join("https://a/x", "/b")),
            ("https://a/b".into(), "https://a/x/b".into())
        );
    }

    #[test]
    fn each_of_several_receivers_has_notifications_of_its_own() {
        expect!["a a.b2dea48d667b"].assert_eq(&format!("{} {}", named("a", ""), named("a", "r")));
    }
}
