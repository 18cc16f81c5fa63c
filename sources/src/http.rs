//! The source `http`.

pub(crate) mod body;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SourceConfig};
use tocsin_config::types::{ByteSize, Duration, Secret};
use tocsin_pipeline::event::Span;
use tocsin_pipeline::metrics::ComponentMetrics;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::source::{Framing, Gone, RecordOptions, Source, SourceContext, SourceError, TooLong};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::body::{Packing, Unpacker};
use crate::framing::{Delimiter, Framed, LineFramer};
use crate::net::{Admission, Gate, Listener, Output, STOP_GRACE, TlsOptions, Wire, address_problem, bind_tcp};

/// The memory for bodies is counted in pieces of this size.
const BUDGET_UNIT: usize = 64 << 10;
/// Longer bodies are taken apart on a thread of their own, as it takes a while.
const LONG_BODY: usize = 1 << 20;
/// For one request's headers.
const HEADER_BYTES: usize = 64 << 10;
const RETRY_AFTER_SECS: u32 = 1;

/// Receives records by HTTP POST.
///
/// A body is JSON (an object is one record, an array holds one object for each), newline-delimited JSON, or lines of text;
/// plain, or packed with gzip or zstd. A body of JSON is taken as a whole or not at all: if any part of it is not well formed,
/// the answer is 400. Lines are taken as they are, and those that the codec cannot read become dead letters.
///
/// Answers: 200 taken; 400 malformed; 401 not authorized; 404 another path; 405 not POST; 408 too slow; 413 too large;
/// 415 packed in an unknown way; 503 with `Retry-After`: busy or not acknowledged in time, send it again.
///
/// **State:** a byte counter. While it runs, the bodies being received, `max_pending_bytes` at most in all.
///
/// **Late events:** all requests are one stream: where clients are behind each other, set `out_of_order`.
///
/// **After a crash:** with `acknowledge = true` nothing that was answered with 200 is lost, and what was not answered may
/// repeat if its client sends it again. Where there is a `data_dir`, what comes in is journaled then (see `journal`): the
/// answer waits for one fsync, a few milliseconds that many requests share, and what was answered is read again from the
/// journal. With `journal = false` it waits for the next checkpoint. Without `acknowledge`, what was answered and is in
/// neither a checkpoint nor a journal is lost.
///
/// ```toml
/// [sources.events]
/// type = "http"
/// address = "0.0.0.0:8080"
/// path = "/events"
/// token = "${file:/run/secrets/ingest}"
/// acknowledge = true
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Host and port to listen on.
    address: String,
    /// The path to post to; any other is not found.
    #[serde(default = "root")]
    path: String,
    /// What bodies hold: `"json"`, `"ndjson"`, `"text"` (lines), or `"auto"`: as their `Content-Type` says, and where it does
    /// not say, JSON if they begin with `[` or `{`, lines otherwise. The codec is `text` for `"text"` and `json` for the
    /// others, unless one is named.
    #[serde(default)]
    encoding: Encoding,
    /// The longest body, unpacked. One that grows more than a hundredfold is refused earlier.
    #[serde(default = "sixteen_mebibytes")]
    max_body_bytes: ByteSize,
    /// How much memory the bodies being received may take in all; beyond it the answer is 503.
    #[serde(default = "a_hundred_mebibytes")]
    max_pending_bytes: ByteSize,
    /// Clients must send `Authorization: Bearer …` with this token, or with one of these: two while it changes.
    #[serde(default)]
    token: Option<Tokens>,
    /// Clients may log in with this name and `password` (basic authentication).
    #[serde(default)]
    username: Option<String>,
    /// The password of `username`.
    #[serde(default)]
    password: Option<Secret>,
    /// Certificate and key; without them the port speaks plain HTTP.
    #[serde(default)]
    tls: Option<TlsOptions>,
    /// Whether 200 means that the records are durable: in the journal or in a checkpoint. Otherwise it means that the
    /// pipeline took them.
    #[serde(default)]
    acknowledge: bool,
    /// How long a request waits for its acknowledgement before it is answered with 503.
    #[serde(default = "thirty_seconds")]
    acknowledge_timeout: Duration,
    /// How long a client may take to send a request's headers, again for its body, and how long the request then waits for a
    /// busy pipeline. A connection that is quiet for so long is closed.
    #[serde(default = "thirty_seconds")]
    request_timeout: Duration,
    /// How many requests may be worked on; more are answered with 503.
    #[serde(default = "two_hundred_fifty_six")]
    max_requests: usize,
    /// How many connections there may be; more are closed at once.
    #[serde(default = "a_thousand")]
    max_connections: usize,
    /// How many of them from one address, or from one /64 of IPv6.
    #[serde(default = "two_hundred_fifty_six")]
    max_connections_per_address: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    #[default]
    Auto,
    Json,
    Ndjson,
    Text,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Tokens {
    One(Secret),
    Several(Vec<Secret>),
}

fn root() -> String {
    "/".to_owned()
}

fn sixteen_mebibytes() -> ByteSize {
    ByteSize(16 << 20)
}

fn a_hundred_mebibytes() -> ByteSize {
    ByteSize(100 << 20)
}

fn thirty_seconds() -> Duration {
    Duration(StdDuration::from_secs(30))
}

fn two_hundred_fifty_six() -> usize {
    256
}

fn a_thousand() -> usize {
    1000
}

impl Tokens {
    fn all(&self) -> &[Secret] {
        match self {
            Self::One(token) => std::slice::from_ref(token),
            Self::Several(tokens) => tokens,
        }
    }
}

impl SourceConfig for Config {
    const NAME: &'static str = "http";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(address_problem("address", &self.address));
        if !self.path.starts_with('/') || self.path.contains(['?', '#', ' ']) {
            let problem = Problem::new("path", format!("{:?} is not the path of a URL", self.path));
            problems.push(problem.help("write it as in \"/events\""));
        }
        let tokens = self.token.as_ref().map(Tokens::all);
        if tokens.is_some_and(|tokens| tokens.is_empty() || tokens.iter().any(|token| token.reveal().is_empty())) {
            problems.push(Problem::new("token", "an empty token lets everybody in").help("leave it out to mean that"));
        }
        if self.username.is_some() != self.password.is_some() {
            problems.push(Problem::new("", "`username` and `password` go together").help("give both or neither"));
        }
        if self.username.as_ref().is_some_and(|name| name.contains(':')) {
            problems.push(Problem::new("username", "the name cannot hold a colon in basic authentication"));
        }
        if self.max_pending_bytes < self.max_body_bytes {
            let problem =
                Problem::new("max_pending_bytes", "is less than max_body_bytes, so that a long body never fits");
            problems.push(problem.help("make it several times as large"));
        }
        // Blocks are below 1 GiB.
        for (option, bytes) in [("max_body_bytes", self.max_body_bytes)] {
            if bytes.0 == 0 || bytes.0 >= 1 << 30 {
                problems.push(Problem::new(option, format!("{bytes} is not between 1B and 1GiB")));
            }
        }
        if self.max_pending_bytes.0 >= 1 << 40 {
            problems.push(Problem::new("max_pending_bytes", "must be less than 1TiB"));
        }
        for (option, limit) in [
            ("max_requests", self.max_requests),
            ("max_connections", self.max_connections),
            ("max_connections_per_address", self.max_connections_per_address),
        ] {
            if limit == 0 || limit > Semaphore::MAX_PERMITS {
                problems.push(Problem::new(option, "must be at least 1"));
            }
        }
        for (option, duration) in
            [("request_timeout", self.request_timeout), ("acknowledge_timeout", self.acknowledge_timeout)]
        {
            if duration.0.is_zero() {
                problems.push(Problem::new(option, "must be longer than nothing"));
            }
        }
        problems
    }

    fn acknowledges(&self) -> bool {
        self.acknowledge
    }

    fn default_codec(&self) -> &'static str {
        if self.encoding == Encoding::Text { "text" } else { "json" }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        let mut config = self.clone();
        config.tls = self.tls.as_ref().map(|tls| tls.within(&context.folder));
        Box::new(Http { config, bound: None })
    }
}

struct Http {
    config: Config,
    bound: Option<(TcpListener, Option<TlsAcceptor>)>,
}

impl Source for Http {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let tls = self.config.tls.as_ref().map(TlsOptions::acceptor).transpose()?;
            self.bound = Some((bind_tcp(&self.config.address).await?, tls));
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let Self { config, bound } = *self;
            let (listener, tls) = bound.ok_or_else(|| SourceError("the source was not opened".to_owned()))?;
            let admission = Admission::new(config.max_connections, config.max_connections_per_address);
            let gate = Gate { listener: Listener::Tcp(listener), tls, admission, metrics: context.metrics.clone() };
            let (stop, tasks) = (context.stop.clone(), TaskTracker::new());
            let shared = Arc::new(Shared::new(config, &context));
            let serve = {
                let shared = Arc::clone(&shared);
                move |wire| Arc::clone(&shared).connection(wire)
            };
            let gone = tokio::select! {
                () = gate.serve(&stop, &tasks, serve) => false,
                () = shared.output.tell_idle() => false,
                // Where nobody posts, nobody else would find out.
                () = context.events.closed() => true,
            };
            // Requests whose bodies are being received may still hand them over. Those that only wait for their
            // acknowledgement go on waiting after this source has ended: the last checkpoint is still to come.
            tasks.close();
            let _ = timeout(STOP_GRACE, shared.all_handed_over(&tasks)).await;
            shared.output.close();
            if gone { Err(Gone.into()) } else { Ok(()) }
        })
    }
}

/// Why a request was not taken: what its client is told.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn busy(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The word under which it is counted.
    fn word(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "unauthorized",
            404 | 405 => "wrong_request",
            408 => "request_timeout",
            413 => "too_large",
            415 => "unknown_encoding",
            503 => "busy",
            _ => "malformed",
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.message + "\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("POST"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer, Basic realm=\"tocsin\""));
            }
            _ => {}
        }
        response
    }
}

/// What the connections of a source have in common.
struct Shared {
    config: Config,
    /// Hashes of what `Authorization` may be: comparing hashes takes the same time whatever they are of.
    credentials: Vec<blake3::Hash>,
    records: RecordOptions,
    metrics: ComponentMetrics,
    stop: CancellationToken,
    output: Output,
    requests: Arc<Semaphore>,
    budget: Arc<Semaphore>,
}

impl Shared {
    fn new(config: Config, context: &SourceContext) -> Self {
        let tokens = config.token.iter().flat_map(Tokens::all).map(|token| format!("Bearer {}", token.reveal()));
        let login = config.username.iter().zip(&config.password).map(|(username, password)| {
            format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal())))
        });
        let credentials = tokens.chain(login).map(|text| blake3::hash(text.as_bytes())).collect();
        let output = Output::new(context);
        let requests = Arc::new(Semaphore::new(config.max_requests));
        let budget = Arc::new(Semaphore::new(units(usize::try_from(config.max_pending_bytes.0).unwrap_or(usize::MAX))));
        let (records, metrics, stop) = (context.records.clone(), context.metrics.clone(), context.stop.clone());
        Self { config, credentials, records, metrics, stop, output, requests, budget }
    }

    async fn connection(self: Arc<Self>, wire: Wire) {
        let service = {
            let shared = Arc::clone(&self);
            service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            })
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.request_timeout.0)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(wire), service);
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!("a connection broke: {error}");
            self.metrics.error(if error.is_timeout() { "request_timeout" } else { "connection" });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.take(request).await {
            Ok(()) => Response::new(Full::default()),
            Err(refusal) => {
                self.metrics.error(refusal.word());
                refusal.response()
            }
        }
    }

    async fn take(&self, request: Request<Incoming>) -> Result<(), Refusal> {
        self.check(&request)?;
        let request_permit = self.requests.clone().try_acquire_owned();
        let request_permit = request_permit.map_err(|_| Refusal::busy("there are too many requests just now"))?;
        let encoding = self.encoding(request.headers());
        let mut held = None;
        let receive = self.receive(request, &mut held);
        let body = timeout(self.config.request_timeout.0, receive)
            .await
            .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))??;
        let options = self.records.clone();
        let blocks = if body.len() > LONG_BODY {
            let split = tokio::task::spawn_blocking(move || split(body, encoding, &options));
            split.await.map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read"))?
        } else {
            split(body, encoding, &options)
        }?;
        let (acknowledgement, acknowledged) = oneshot::channel();
        let hand_over = self.hand_over(blocks, self.config.acknowledge.then_some(acknowledgement));
        match timeout(self.config.request_timeout.0, hand_over).await {
            Ok(Ok(())) => {}
            Ok(Err(Gone)) => return Err(Refusal::busy("the pipeline is stopping")),
            Err(_) => return Err(Refusal::busy("the pipeline is busy")),
        }
        drop((held, request_permit));
        if !self.config.acknowledge {
            return Ok(());
        }
        match timeout(self.config.acknowledge_timeout.0, acknowledged).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Refusal::busy("the records could not be made durable")),
            Err(_) => Err(Refusal::busy("the records were not durable in time")),
        }
    }

    fn check(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        if !self.credentials.is_empty() {
            let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
            let given = blake3::hash(&with_usual_scheme(given));
            // All are compared, so that the time does not tell which one it was.
            let known = self.credentials.iter().fold(false, |known, hash| known | (*hash == given));
            if !known {
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, "not authorized"));
            }
        }
        if request.uri().path() != self.config.path {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path"));
        }
        if request.method() != Method::POST {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "records are sent by POST"));
        }
        Ok(())
    }

    fn encoding(&self, headers: &HeaderMap) -> Encoding {
        if self.config.encoding != Encoding::Auto {
            return self.config.encoding;
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match content_type.as_str() {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
                Encoding::Ndjson
            }
            "text/plain" => Encoding::Text,
            // Many clients say `application/json` and send a value per line: so both are taken where nothing else is said.
            _ => Encoding::Auto,
        }
    }

    /// Receives and unpacks the body, holding room for it in `held`.
    async fn receive(
        &self,
        request: Request<Incoming>,
        held: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Bytes, Refusal> {
        let max = usize::try_from(self.config.max_body_bytes.0).unwrap_or(usize::MAX);
        let packing = packing(request.headers())?;
        let mut body = request.into_body();
        if body.size_hint().lower() > max as u64 {
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than max_body_bytes"));
        }
        let unpacker = Unpacker::new(packing, max);
        let mut unpacker =
            unpacker.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let mut room = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the body was cut"))?;
            let Ok(chunk) = frame.into_data() else { continue };
            unpacker.push(&chunk)?;
            let wanted = units(unpacker.len());
            if wanted > room {
                let more = u32::try_from(wanted - room).unwrap_or(u32::MAX);
                let more = self.budget.clone().try_acquire_many_owned(more);
                let more = more.map_err(|_| Refusal::busy("there is no room for the body just now"))?;
                match held {
                    Some(held) => held.merge(more),
                    None => *held = Some(more),
                }
                room = wanted;
            }
        }
        unpacker.finish()
    }

    async fn hand_over(
        &self,
        blocks: Vec<Piece>,
        mut acknowledgement: Option<oneshot::Sender<()>>,
    ) -> Result<(), Gone> {
        let last = blocks.len().saturating_sub(1);
        for (at, piece) in blocks.into_iter().enumerate() {
            let acknowledgement = acknowledgement.take_if(|_| at == last);
            match piece {
                Piece::Records { bytes, framing, length } => {
                    self.output.records(bytes, framing, length, acknowledgement).await?;
                }
                Piece::TooLong { head, message, start, length } => {
                    self.output.refused(head, Reason::TooLong, message, start, length).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until no request holds records that the engine does not have.
    async fn all_handed_over(&self, tasks: &TaskTracker) {
        let requests = u32::try_from(self.config.max_requests).unwrap_or(u32::MAX);
        tokio::select! {
            () = tasks.wait() => {}
            _ = self.requests.acquire_many(requests) => {}
        }
    }
}

/// The scheme may be written in any case; what follows it may not.
fn with_usual_scheme(authorization: &[u8]) -> Vec<u8> {
    let mut authorization = authorization.to_vec();
    for scheme in ["Bearer ", "Basic "] {
        if let Some(given) = authorization.get_mut(..scheme.len())
            && given.eq_ignore_ascii_case(scheme.as_bytes())
        {
            given.copy_from_slice(scheme.as_bytes());
        }
    }
    authorization
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(BUDGET_UNIT)
}

fn packing(headers: &HeaderMap) -> Result<Packing, Refusal> {
    let mut named = headers.get_all(CONTENT_ENCODING).iter();
    let packing = match named.next().map(HeaderValue::as_bytes) {
        None => Packing::Identity,
        Some(name) if name.eq_ignore_ascii_case(b"identity") => Packing::Identity,
        Some(name) if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => Packing::Gzip,
        Some(name) if name.eq_ignore_ascii_case(b"zstd") => Packing::Zstd,
        Some(_) => return Err(unknown_packing()),
    };
    // Packed twice is only ever meant badly.
    if named.next().is_some() { Err(unknown_packing()) } else { Ok(packing) }
}

fn unknown_packing() -> Refusal {
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the Content-Encoding may be gzip, zstd or identity")
}

/// A part of a body.
enum Piece {
    Records { bytes: Bytes, framing: Framing, length: u64 },
    TooLong { head: Bytes, message: String, start: u64, length: u64 },
}

/// Takes a body apart.
fn split(body: Bytes, encoding: Encoding, options: &RecordOptions) -> Result<Vec<Piece>, Refusal> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let is_json = match encoding {
        Encoding::Json => true,
        Encoding::Auto => matches!(first, Some(b'{' | b'[')),
        Encoding::Ndjson | Encoding::Text => false,
    };
    if first.is_none() {
        return Ok(vec![Piece::Records {
            length: body.len() as u64,
            bytes: body,
            framing: Framing::Spans(Vec::new()),
        }]);
    }
    if !is_json {
        // The last line is one whether or not it is ended; ended, all of them are one block.
        let body = if body.ends_with(b"\n") {
            body
        } else {
            let mut ended = body.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            ended.extend_from_slice(b"\n");
            ended.freeze()
        };
        let (mut framer, mut framed) = (LineFramer::new(options, Delimiter::Newline, 0), Vec::new());
        framer.push(body, StdDuration::ZERO, &mut framed);
        framer.finish(&mut framed);
        let mut pieces: Vec<Piece> = framed.into_iter().map(Piece::from).collect();
        // Where the last line was too long, something must still carry the acknowledgement.
        if !matches!(pieces.last(), Some(Piece::Records { .. })) {
            pieces.push(Piece::Records { bytes: Bytes::new(), framing: Framing::Lines, length: 0 });
        }
        return Ok(pieces);
    }
    let (mut records, mut pieces) = (body::json_objects(&body, encoding == Encoding::Json)?, Vec::new());
    let max = options.max_record_bytes;
    records.retain_mut(|span| {
        if span.len as usize <= max {
            return true;
        }
        match options.too_long {
            TooLong::Truncate => *span = Span::new(span.start as usize, max),
            TooLong::Reject => pieces.push(Piece::TooLong {
                head: body.slice(span.start as usize..span.start as usize + max.min(4096)),
                message: format!("a record of {} bytes is longer than max_record_bytes, which is {max}", span.len),
                start: u64::from(span.start),
                length: 0,
            }),
        }
        options.too_long == TooLong::Truncate
    });
    pieces.push(Piece::Records { length: body.len() as u64, bytes: body, framing: Framing::Spans(records) });
    Ok(pieces)
}

impl From<Framed> for Piece {
    fn from(framed: Framed) -> Self {
        match framed {
            Framed::Records { bytes, framing, base, end } => Self::Records { bytes, framing, length: end - base },
            Framed::Rejected { offset, end, message, head } => {
                Self::TooLong { head, message, start: 0, length: end - offset }
            }
        }
    }
}

#[cfg(test)]
mod tests;
