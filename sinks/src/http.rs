//! Batches of records by HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::{self, ByteSize, Secret};
use tocsin_pipeline::event::{Batch, Lane, Origin, Span};
use tocsin_pipeline::fault;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::{Queued, Sink, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::time::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use crate::client::{Client, RequestError, Response, TlsConfig, any_address};
use crate::encoding::{self, Encoder};
use crate::retry::{self, Backoff};

/// How much of a response is read: enough for what it says of an error.
const RESPONSE_BYTES: usize = 16 * 1024;

/// Sends batches of records by HTTP.
///
/// A response of 2xx means taken. After 408, 425, 429, 5xx, no answer in time or a broken connection the same request is
/// made again, with growing waits and with the same `Idempotency-Key`, for as long as it takes; meanwhile the input waits.
/// After 413 the batch is halved. After every other response the records are dead letters. Redirects
/// are not followed.
///
/// **State:** the requests not answered yet: `concurrency` + 1 at most.
///
/// **Late events:** sent like any other.
///
/// **After a crash:** requests made since the last checkpoint are made again, those that were in it with the same
/// `Idempotency-Key`; nothing is lost.
///
/// ```toml
/// [sinks.collector]
/// type = "http"
/// inputs = ["server_errors"]
/// url = "https://collector.example.org/v1/events"
/// encoding = "ndjson"
/// headers = { "X-Tenant" = "shop" }
/// auth = { token = "${file:/run/secrets/collector}" }
/// batch = { max_events = 500, timeout = "1s" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to: `https://…` or `http://…`.
    url: String,
    /// The method of the requests.
    #[serde(default = "post")]
    method: String,
    /// Further headers. Values are treated as secrets.
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    /// What a body holds: `"json"`, an array of the records, or `"ndjson"`, one a line.
    #[serde(default)]
    encoding: Format,
    /// When a batch is full. The first limit reached decides.
    #[serde(default)]
    batch: Limits,
    /// `"none"`, `"gzip"` or `"zstd"`.
    #[serde(default)]
    compression: Compression,
    /// How long one request may take.
    #[serde(default = "half_a_minute")]
    timeout: types::Duration,
    /// Who we are: `{ token = "…" }` or `{ username = "…", password = "…" }`.
    auth: Option<Auth>,
    /// How attempts follow each other.
    #[serde(default)]
    retry: retry::Config,
    /// How many requests may be under way. More than one can change the order in which batches arrive.
    #[serde(default = "one")]
    concurrency: usize,
    /// How connections are encrypted.
    #[serde(default)]
    tls: TlsConfig,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Json,
    Ndjson,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

/// When a batch is full.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Limits {
    /// So many records.
    #[serde(default = "a_thousand")]
    max_events: usize,
    /// So many bytes before compression. A record that is larger is a batch of its own.
    #[serde(default = "one_mebibyte")]
    max_bytes: ByteSize,
    /// So long after its first record.
    #[serde(default = "one_second")]
    timeout: types::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_events: a_thousand(), max_bytes: one_mebibyte(), timeout: one_second() }
    }
}

/// How we say who we are.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected { token = \"…\" } or { username = \"…\", password = \"…\" }")]
enum Auth {
    Token(Token),
    Basic(Basic),
}

/// `Authorization: Bearer …`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Token {
    token: Secret,
}

/// `Authorization: Basic …`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Basic {
    username: String,
    password: Secret,
}

fn post() -> String {
    "POST".to_owned()
}

fn half_a_minute() -> types::Duration {
    types::Duration(Duration::from_secs(30))
}

fn one() -> usize {
    1
}

fn a_thousand() -> usize {
    1000
}

fn one_mebibyte() -> ByteSize {
    ByteSize(1 << 20)
}

fn one_second() -> types::Duration {
    types::Duration(Duration::from_secs(1))
}

impl Config {
    /// The headers of every request but the key; the error names the option.
    fn request_headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, Problem> {
        let secret = |value: &str, option: &str| {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| Problem::new(option, "holds characters that no header may hold"))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let content_type = match self.encoding {
            Format::Json => "application/json",
            Format::Ndjson => "application/x-ndjson",
        };
        let mut headers = vec![
            (USER_AGENT, HeaderValue::from_static("tocsin")),
            (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        ];
        match self.compression {
            Compression::None => {}
            Compression::Gzip => headers.push((CONTENT_ENCODING, HeaderValue::from_static("gzip"))),
            Compression::Zstd => headers.push((CONTENT_ENCODING, HeaderValue::from_static("zstd"))),
        }
        match &self.auth {
            None => {}
            Some(Auth::Token(auth)) => {
                headers.push((AUTHORIZATION, secret(&format!("Bearer {}", auth.token.reveal()), "auth.token")?));
            }
            Some(Auth::Basic(auth)) => {
                let pair = format!("{}:{}", auth.username, auth.password.reveal());
                let pair = base64::engine::general_purpose::STANDARD.encode(pair);
                headers.push((AUTHORIZATION, secret(&format!("Basic {pair}"), "auth.password")?));
            }
        }
        for (name, value) in &self.headers {
            let option = format!("headers.{name}");
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| Problem::new(&*option, format!("{name:?} is not the name of a header")))?;
            headers.push((name, secret(value.reveal(), &option)?));
        }
        Ok(headers)
    }
}

impl SinkConfig for Config {
    const NAME: &'static str = "http";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.retry.problems();
        problems.extend(self.tls.problems());
        problems.extend(self.request_headers().err());
        let uri = self.url.parse::<Uri>().ok();
        if !uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()) {
            problems
                .push(Problem::new("url", format!("{:?} is not a URL", self.url)).help("write \"https://host/path\""));
        }
        if Method::from_bytes(self.method.as_bytes()).is_err() {
            problems.push(Problem::new("method", format!("{:?} is not a method", self.method)));
        }
        for (option, is_right) in [
            ("batch.max_events", self.batch.max_events > 0),
            ("batch.max_bytes", self.batch.max_bytes.0 > 0),
            ("concurrency", self.concurrency > 0),
            ("timeout", !self.timeout.0.is_zero()),
        ] {
            if !is_right {
                problems.push(Problem::new(option, "must be more than nothing"));
            }
        }
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once, with one identity"
    }

    fn undelivered(state: &[u8]) -> u64 {
        let waiting = restore(Some(&Bytes::copy_from_slice(state))).map(|(_, waiting)| waiting);
        waiting.iter().flatten().map(|body| body.ends.len() as u64).sum()
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        Box::new(Http {
            url: self.url.parse().expect("`problems` has parsed it before"),
            method: Method::from_bytes(self.method.as_bytes()).expect("`problems` has parsed it before"),
            headers: self.request_headers().expect("`problems` has made them before"),
            format: self.encoding,
            limits: self.batch,
            compression: self.compression,
            timeout: self.timeout.0,
            retry: self.retry,
            concurrency: self.concurrency,
            tls: self.tls.within(&context.folder),
            client: None,
        })
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Taken,
    /// The same again, not before the peer wishes.
    Again {
        wish: Option<Duration>,
        told: String,
    },
    TooLarge {
        told: String,
    },
    Refused {
        told: String,
    },
}

/// What an answer, or none, means.
fn judge(outcome: Result<Response, RequestError>, now: Timestamp) -> Verdict {
    let response = match outcome {
        Ok(response) => response,
        Err(error) => return Verdict::Again { wish: None, told: error.to_string() },
    };
    let told = response.told();
    match response.status {
        status if status.is_success() => Verdict::Taken,
        StatusCode::PAYLOAD_TOO_LARGE => Verdict::TooLarge { told },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Again { wish: response.retry_after(now), told }
        }
        status if status.is_server_error() => Verdict::Again { wish: response.retry_after(now), told },
        _ => Verdict::Refused { told },
    }
}

/// Records on their way, encoded, one after the other.
#[derive(Debug)]
struct Body {
    /// What `Idempotency-Key` says.
    key: String,
    records: Bytes,
    /// Where each record ends in `records`.
    ends: Vec<u32>,
    arrival: Timestamp,
    /// What it counts against: the edge it came by, until it is answered.
    permits: Vec<OwnedSemaphorePermit>,
}

/// A [`Body`] in a checkpoint, before its bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    key: String,
    ends: Vec<u32>,
    arrival: i64,
}

/// What a checkpoint begins with: the length of the JSON that follows, then all bodies.
#[derive(Debug, Serialize, Deserialize)]
struct StoredHead {
    version: u16,
    next: u64,
    bodies: Vec<Stored>,
}

impl Body {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn record(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.records[start..self.ends[at] as usize]
    }

    /// The bytes of a request.
    fn encode(&self, format: Format, compression: Compression) -> Bytes {
        let mut body = Vec::with_capacity(self.records.len() + self.len() + 2);
        for at in 0..self.len() {
            match format {
                Format::Json => body.push(if at == 0 { b'[' } else { b',' }),
                Format::Ndjson => {}
            }
            body.extend_from_slice(self.record(at));
            if format == Format::Ndjson {
                body.push(b'\n');
            }
        }
        if format == Format::Json {
            body.push(b']');
        }
        match compression {
            Compression::None => body.into(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(&body).expect("memory takes everything");
                encoder.finish().expect("memory takes everything").into()
            }
            Compression::Zstd => zstd::bulk::compress(&body, 0).expect("memory takes everything").into(),
        }
    }

    /// Two halves with keys of their own; `None` if it is one record.
    fn split(mut self) -> Result<[Self; 2], Self> {
        if self.len() < 2 {
            return Err(self);
        }
        let middle = self.len() / 2;
        let at = self.ends[middle - 1];
        let second = Self {
            key: format!("{}.2", self.key),
            records: self.records.slice(at as usize..),
            ends: self.ends[middle..].iter().map(|end| end - at).collect(),
            arrival: self.arrival,
            permits: std::mem::take(&mut self.permits),
        };
        self.key.push_str(".1");
        self.records.truncate(at as usize);
        self.ends.truncate(middle);
        Ok([self, second])
    }

    /// The records as a batch, for dead letters.
    fn batch(&self, name: &Arc<str>) -> Batch {
        let lane = Arc::new(Lane::of_operator(Arc::clone(name), Origin::Operator));
        let spans = (0..self.len()).map(|at| {
            let record = self.record(at);
            Span::new(self.ends[at] as usize - record.len(), record.len())
        });
        Batch::new(lane, self.records.clone(), 0, spans.collect(), self.arrival)
    }
}

/// What is being gathered for the next request.
#[derive(Debug, Default)]
struct Gathering {
    records: BytesMut,
    ends: Vec<u32>,
    arrival: Option<Timestamp>,
    permits: Vec<OwnedSemaphorePermit>,
}

struct Http {
    url: Uri,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    format: Format,
    limits: Limits,
    compression: Compression,
    timeout: Duration,
    retry: retry::Config,
    concurrency: usize,
    tls: TlsConfig,
    client: Option<Client>,
}

impl Sink for Http {
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            self.client = Some(Client::new(self.tls.load().map_err(SinkError)?, any_address));
            let (_, waiting) = restore(context.restored.as_ref())?;
            context.metrics.hold(waiting.iter().map(|body| body.len()).sum());
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            let (next, waiting) = restore(context.restored.as_ref())?;
            let is_idle = waiting.is_empty();
            let sender = Sender {
                http: Arc::new(*self),
                gathering: Gathering::default(),
                next,
                waiting,
                committed_idle: (context.restored.is_none() || is_idle).then_some(next),
                answered: (0, None),
                has_ended: false,
                context,
            };
            sender.run().await
        })
    }
}

/// The number of the next request, and those that a checkpoint holds.
fn restore(state: Option<&Bytes>) -> Result<(u64, VecDeque<Arc<Body>>), SinkError> {
    let Some(state) = state else { return Ok((0, VecDeque::new())) };
    let damaged = || SinkError("the checkpoint of the sink is damaged".to_owned());
    let (length, rest) = state.split_first_chunk::<4>().ok_or_else(damaged)?;
    let length = u32::from_le_bytes(*length) as usize;
    let head: StoredHead = serde_json::from_slice(rest.get(..length).ok_or_else(damaged)?).map_err(|_| damaged())?;
    if head.version != 1 {
        return Err(SinkError(format!("the checkpoint is of version {}, not 1", head.version)));
    }
    let mut at = 4 + length;
    let mut waiting = VecDeque::new();
    for stored in head.bodies {
        let end = at + stored.ends.last().map_or(0, |end| *end as usize);
        if end > state.len() || !stored.ends.is_sorted() || stored.ends.is_empty() {
            return Err(damaged());
        }
        let records = state.slice(at..end);
        let arrival = Timestamp(stored.arrival);
        waiting.push_back(Arc::new(Body { key: stored.key, records, ends: stored.ends, arrival, permits: Vec::new() }));
        at = end;
    }
    Ok((head.next, waiting))
}

/// A running sink.
struct Sender {
    http: Arc<Http>,
    gathering: Gathering,
    /// The number of the next request.
    next: u64,
    /// Requests that are not answered, in order; the first `concurrency` of them are under way.
    waiting: VecDeque<Arc<Body>>,
    /// The number of the next request in the last complete checkpoint, if it holds no request.
    committed_idle: Option<u64>,
    /// The epoch answered last, and what `committed_idle` becomes when it is complete.
    answered: (u64, Option<u64>),
    has_ended: bool,
    context: SinkContext,
}

type Answers = FuturesOrdered<BoxFuture<'static, (Arc<Body>, Verdict)>>;

impl Sender {
    async fn run(mut self) -> Result<SinkState, SinkError> {
        // In the order of the requests, so that `waiting` loses its first.
        let mut answers = Answers::new();
        let deadline = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(deadline);
        loop {
            if self.gathering.ends.is_empty() {
                deadline.set(tokio::time::sleep(self.http.limits.timeout.0));
            } else if self.has_ended {
                self.seal();
            }
            while answers.len() < self.http.concurrency.min(self.waiting.len()) {
                let body = Arc::clone(&self.waiting[answers.len()]);
                answers.push_back(Box::pin(deliver(Arc::clone(&self.http), &self.context, body)));
            }
            if self.has_ended && self.waiting.is_empty() {
                return Ok(self.state());
            }
            let has_room = self.waiting.len() <= self.http.concurrency && !self.has_ended;
            tokio::select! {
                biased;
                () = self.context.stop.cancelled() => {
                    self.seal();
                    return Ok(self.state());
                }
                Some((body, verdict)) = answers.next() => self.answered(body, verdict, &mut answers).await,
                queued = self.context.input.recv(), if has_room => self.take(queued),
                () = &mut deadline, if !self.gathering.ends.is_empty() => self.seal(),
            }
        }
    }

    /// What was gathered becomes a request.
    fn seal(&mut self) {
        let Gathering { records, ends, arrival, permits } = std::mem::take(&mut self.gathering);
        let Some(arrival) = arrival else { return };
        // After a crash the same number may stand for other records, since batches are cut as records come. A receiver must
        // not take those for a repeat, so the key also says what is inside.
        let hash = blake3::hash(&records).to_hex();
        let key = format!("{}-{}-{}", self.context.name, self.next, &hash[..16]);
        self.next += 1;
        self.waiting.push_back(Arc::new(Body { key, records: records.freeze(), ends, arrival, permits }));
    }

    fn take(&mut self, queued: Option<Queued>) {
        let Some(queued) = queued else {
            self.has_ended = true;
            return;
        };
        let (input, mut permit) = queued.split();
        match input {
            SinkInput::Batch(batch) => {
                let encoder = Encoder::new(Some(&encoding::Config::Named(encoding::Named::Json)));
                let mut record = Vec::new();
                for row in batch.rows() {
                    record.clear();
                    self.context.metrics.expression_errors(encoder.append(&batch, row, &mut record));
                    let gathered = &self.gathering;
                    let is_full = gathered.ends.len() >= self.http.limits.max_events
                        || gathered.records.len() + record.len() > self.http.limits.max_bytes.0 as usize;
                    if is_full && !gathered.ends.is_empty() {
                        self.seal();
                    }
                    self.gathering.records.put_slice(&record);
                    self.gathering.ends.push(Span::new(self.gathering.records.len(), 0).start);
                    self.gathering.arrival.get_or_insert(batch.arrival);
                }
                // Held by the last request that has records of the batch.
                self.gathering.permits.extend(permit.take());
                if self.gathering.ends.len() >= self.http.limits.max_events {
                    self.seal();
                }
            }
            SinkInput::Barrier { epoch, prepared } => {
                // Sealed, so that what is in the checkpoint has a key.
                self.seal();
                self.answered = (epoch, self.waiting.is_empty().then_some(self.next));
                let state = self.state();
                // Nobody waits for the answer of an epoch that was abandoned.
                let _ = prepared.send(state);
            }
            SinkInput::Committed { epoch } => {
                if self.answered.0 == epoch {
                    self.committed_idle = self.answered.1;
                }
            }
            SinkInput::Watermark(_) => {}
            SinkInput::End => self.has_ended = true,
        }
    }

    fn state(&self) -> SinkState {
        self.context.metrics.hold(self.waiting.iter().map(|body| body.len()).sum());
        if self.waiting.is_empty() && self.committed_idle == Some(self.next) {
            return SinkState::Unchanged;
        }
        let stored =
            |body: &Arc<Body>| Stored { key: body.key.clone(), ends: body.ends.clone(), arrival: body.arrival.0 };
        let head = StoredHead { version: 1, next: self.next, bodies: self.waiting.iter().map(stored).collect() };
        let head = serde_json::to_vec(&head).expect("states have string keys");
        let mut state = BytesMut::new();
        state.put_u32_le(u32::try_from(head.len()).expect("a few requests"));
        state.put_slice(&head);
        for body in &self.waiting {
            state.put_slice(&body.records);
        }
        SinkState::State(state.freeze())
    }

    /// The first of the requests under way has been answered for good.
    async fn answered(&mut self, body: Arc<Body>, verdict: Verdict, answers: &mut Answers) {
        // Answers come in the order of requests.
        drop(self.waiting.pop_front());
        match verdict {
            Verdict::Taken => {
                self.context.metrics.sent(body.len());
                self.context.metrics.latency(self.context.clock.now().since(body.arrival).as_secs_f64());
            }
            Verdict::Refused { told } | Verdict::Again { told, .. } => self.refuse(&body, &told).await,
            Verdict::TooLarge { told } => {
                let body = Arc::into_inner(body).expect("it was taken from the only other holder");
                match body.split() {
                    Err(body) => self.refuse(&body, &told).await,
                    Ok([first, second]) => {
                        // In the place of the whole. Requests under way behind it stay where they are.
                        let under_way = answers.len();
                        self.waiting.insert(under_way, Arc::new(second));
                        self.waiting.insert(under_way, Arc::new(first));
                    }
                }
            }
        }
    }

    async fn refuse(&self, body: &Body, told: &str) {
        self.context.metrics.error("refused");
        let batch = body.batch(&self.context.name);
        for row in batch.rows() {
            self.context.rejected.reject(&batch, row, Reason::Refused, told).await;
        }
    }
}

/// Makes one request until it is answered for good.
fn deliver(
    http: Arc<Http>,
    context: &SinkContext,
    body: Arc<Body>,
) -> impl Future<Output = (Arc<Body>, Verdict)> + Send + 'static {
    let (clock, metrics, name) = (Arc::clone(&context.clock), context.metrics.clone(), Arc::clone(&context.name));
    async move {
        let bytes = body.encode(http.format, http.compression);
        let mut backoff = Backoff::new(http.retry, &body.key);
        let client = http.client.clone().expect("a sink is opened before it runs");
        loop {
            let mut request = Request::new(Full::new(bytes.clone()));
            *request.method_mut() = http.method.clone();
            *request.uri_mut() = http.url.clone();
            for (header, value) in &http.headers {
                request.headers_mut().insert(header.clone(), value.clone());
            }
            let key = HeaderValue::from_str(&body.key).unwrap_or_else(|_| HeaderValue::from_static("unnamed"));
            request.headers_mut().insert("idempotency-key", key);
            fault::point("http.send");
            let verdict = judge(client.send(request, http.timeout, RESPONSE_BYTES).await, clock.now());
            fault::point("http.answered");
            let Verdict::Again { wish, told } = verdict else { return (body, verdict) };
            metrics.error("request");
            if backoff.attempts() == 0 {
                tracing::warn!(sink = %name, "{told}; trying again until it works");
            }
            tokio::time::sleep(backoff.next(wish)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use expect_test::{Expect, expect};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::conformance::{PATIENCE, Running, json_lines, lines, records, sink, withstands};

    /// The head and the body of a request.
    type Sent = (String, Vec<u8>);

    /// A server that answers each request as `answers` say, then with 200, and keeps what it was sent.
    struct Server {
        url: String,
        requests: Arc<Mutex<Vec<Sent>>>,
    }

    async fn serve(answers: &'static [&'static str]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/in", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            let mut answers = answers.iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = Vec::new();
                let (head, length) = loop {
                    let mut buffer = [0; 4096];
                    let count = stream.read(&mut buffer).await.unwrap();
                    text.extend_from_slice(&buffer[..count]);
                    let Some(end) = memchr::memmem::find(&text, b"\r\n\r\n") else { continue };
                    let head = String::from_utf8(text[..end].to_vec()).unwrap();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                    let length: usize = length.parse().unwrap();
                    if text.len() >= end + 4 + length {
                        break (head, end + 4);
                    }
                };
                kept.lock().unwrap().push((head, text[length..].to_vec()));
                let answer = answers.next().unwrap_or(&"200 OK\r\n");
                if !answer.is_empty() {
                    let answer = format!("HTTP/1.1 {answer}content-length: 0\r\nconnection: close\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        Server { url, requests }
    }

    impl Server {
        /// The bodies in the order they came.
        fn bodies(&self) -> Vec<String> {
            self.requests.lock().unwrap().iter().map(|(_, body)| String::from_utf8(body.clone()).unwrap()).collect()
        }

        fn header(&self, request: usize, name: &str) -> Option<String> {
            let requests = self.requests.lock().unwrap();
            requests[request].0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
        }

        fn sink(&self, options: &str) -> Box<dyn Sink> {
            let more = if options.is_empty() { "" } else { ", " };
            let retry = r#""retry": {"initial": "1ms", "max": "2ms"}"#;
            sink::<Config>(&format!(r#"{{"url": "{}", {retry}{more}{options}}}"#, self.url), Path::new(""))
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(server: &Server, expected: Expect) {
        expected.assert_eq(&server.bodies().join("\n"));
    }

    #[tokio::test]
    async fn it_withstands_what_every_sink_must() {
        let server = serve(&[]).await;
        let read = async || server.bodies().concat();
        let expected = "{\"message\":\"one\"}\n{\"message\":\"two\"}\n{\"three\":3}\n{\"message\":\"five\"}\n";
        withstands(|| server.sink(r#""encoding": "ndjson""#), None, read, expected).await;
    }

    #[tokio::test]
    async fn records_travel_in_batches_with_headers() {
        let server = serve(&[]).await;
        let options = r#""batch": {"max_events": 2}, "headers": {"X-Tenant": "shop"}, "auth": {"username": "u", "password": "p"}"#;
        let running = Running::start(server.sink(options), None, None).await.unwrap();
        running.send(json_lines("{\"a\": 1}\n{\"a\": 2}\n{\"a\": 3}\n")).await;
        running.end().await.unwrap();
        check(
            &server,
            expect![[r#"
            [{"a": 1},{"a": 2}]
            [{"a": 3}]"#]],
        );
        assert_eq!(server.header(0, "x-tenant").as_deref(), Some("shop"));
        assert_eq!(server.header(0, "authorization").as_deref(), Some("Basic dTpw"));
        assert_ne!(server.header(0, "idempotency-key"), server.header(1, "idempotency-key"));
    }

    #[tokio::test]
    async fn what_may_have_failed_is_sent_again_with_the_same_key() {
        let server = serve(&["503 Busy\r\n", "429 Slow\r\nretry-after: 0\r\n", ""]).await;
        let running = Running::start(server.sink(""), None, None).await.unwrap();
        running.send(records(&["1"])).await;
        running.send(records(&["2"])).await;
        running.barrier(1).await;
        running.send(records(&["3"])).await;
        running.end().await.unwrap();
        check(
            &server,
            expect![[r#"
            [1,2]
            [1,2]
            [1,2]
            [1,2]
            [3]"#]],
        );
        let key = server.header(0, "idempotency-key");
        assert!(key.is_some());
        assert!((1..4).all(|request| server.header(request, "idempotency-key") == key));
    }

    #[tokio::test]
    async fn what_is_too_large_is_halved_and_what_is_refused_is_a_dead_letter() {
        let server = serve(&["413 Large\r\n", "200 OK\r\n", "413 Large\r\n", "400 Bad\r\n", "413 Large\r\n"]).await;
        let running = Running::start(server.sink(""), None, None).await.unwrap();
        running.send(records(&["1", "2", "3", "4"])).await;
        running.until(|metrics| metrics.dropped_events(Reason::Refused) == 2).await;
        assert_eq!(running.metrics.sent_events(), 2);
        running.end().await.unwrap();
        check(
            &server,
            expect![[r#"
            [1,2,3,4]
            [1,2]
            [3,4]
            [3]
            [4]"#]],
        );
    }

    #[tokio::test]
    async fn a_checkpoint_holds_what_is_not_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = format!(r#"{{"url": "http://{}/"}}"#, listener.local_addr().unwrap());
        let running = Running::start(sink::<Config>(&options, Path::new("")), None, None).await.unwrap();
        assert_eq!(running.barrier(1).await, SinkState::Unchanged);
        running.send(lines("one\ntwo\n")).await;
        let state = running.state(2).await;
        running.crash().await;

        let server = serve(&[]).await;
        let running = Running::start(server.sink(""), Some(state), None).await.unwrap();
        running.until(|metrics| metrics.sent_events() == 2).await;
        let idle = running.state(3).await;
        running.commit(3).await;
        assert_eq!(running.barrier(4).await, SinkState::Unchanged);
        running.end().await.unwrap();
        check(&server, expect![[r#"[{"message":"one"},{"message":"two"}]"#]]);
        assert!(Running::start(server.sink(""), Some(idle.slice(..idle.len() - 1)), None).await.is_err());
    }

    #[tokio::test]
    async fn bodies_are_compressed() {
        for (compression, magic) in [("gzip", &[0x1f, 0x8b][..]), ("zstd", &[0x28, 0xb5][..])] {
            let server = serve(&[]).await;
            let options = format!(r#""compression": "{compression}""#);
            let running = Running::start(server.sink(&options), None, None).await.unwrap();
            running.send(records(&["1"])).await;
            running.end().await.unwrap();
            assert_eq!(server.header(0, "content-encoding").as_deref(), Some(compression));
            assert!(server.requests.lock().unwrap()[0].1.starts_with(magic));
        }
    }

    #[tokio::test]
    async fn a_batch_does_not_wait_longer_than_it_may() {
        let server = serve(&[]).await;
        let running = Running::start(server.sink(r#""batch": {"timeout": "1ms"}"#), None, None).await.unwrap();
        running.send(records(&["1"])).await;
        tokio::time::timeout(PATIENCE, running.until(|metrics| metrics.sent_events() == 1)).await.unwrap();
        running.end().await.unwrap();
    }

    #[test]
    fn secrets_are_not_shown_and_faults_are_told() {
        let told = |options: &str| {
            let config: Config = serde_json::from_str(options).unwrap();
            assert!(!format!("{config:?}").contains("canary"));
            config.problems().into_iter().map(|problem| problem.option).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            told(r#"{"url": "ftp://x", "auth": {"token": "canary\n"}, "concurrency": 0}"#),
            "auth.token url concurrency"
        );
        assert_eq!(told(r#"{"url": "http://x", "headers": {"a b": "canary"}, "method": "a b"}"#), "headers.a b method");
    }
}
