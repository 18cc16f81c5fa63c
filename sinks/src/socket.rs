//! Records over TCP, UDP or a unix socket.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::fault;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::{Queued, Sink, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::time::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;

use crate::client::TlsConfig;
use crate::encoding::{self, Encoder};
use crate::retry::{self, Backoff};

/// So much may be encoded and not yet written: then the input waits. It is also what a checkpoint holds at most, give or
/// take a batch.
const PENDING_BYTES: usize = 1 << 20;

/// So much is gathered for one write while more is waiting.
const WRITE_BYTES: usize = 256 * 1024;

/// The longest record that fits into a datagram (UDP over IPv4).
const DATAGRAM_BYTES: usize = 65_507;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends records over TCP, UDP or a unix socket.
///
/// What is waiting is written at once and together; there is no timer. When the other side is away, the sink tries again
/// with growing waits. Checkpoints hold what is not written; beyond 1 MiB of it the sink takes no more, and the pipeline
/// waits. A record that was written in part when a connection broke is written anew on the next one.
///
/// **State:** the bytes not written yet, 1 MiB and a batch at most.
///
/// **Late events:** sent like any other.
///
/// **After a crash:** what was sent since the last checkpoint is sent again. These protocols do not acknowledge, so what
/// the system had taken for a connection that then breaks is lost without anyone knowing; where that matters, use `http`.
/// Datagrams can always be lost.
///
/// ```toml
/// [sinks.next]
/// type = "socket"
/// inputs = ["server_errors"]
/// mode = "tcp"
/// address = "collector.example.org:9000"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// How to send: `"tcp"`, `"udp"`, `"unix"` (stream) or `"unix_datagram"`.
    mode: Mode,
    /// Host and port to send to, for `tcp` and `udp`.
    address: Option<String>,
    /// The file of the socket, for `unix` and `unix_datagram`.
    path: Option<PathBuf>,
    /// What ends a record: `"newline"`, `"nul"`, or `"octet_counted"`: the number of its bytes and a space before it
    /// (RFC 6587). A datagram holds one record and nothing else.
    #[serde(default)]
    framing: Framing,
    /// How a record is written: `"json"`, `"logfmt"`, `"text"`, `"raw"`, `"pretty"` or `{ template = "…" }`. Default: as it
    /// came in; as JSON where an operator changed it. A record that holds newlines needs `"json"`, `"logfmt"` or another
    /// `framing` to stay one record.
    encoding: Option<encoding::Config>,
    /// Encrypts the connection, for `tcp`: `{}` trusts what the machine trusts.
    tls: Option<TlsConfig>,
    /// How attempts to connect follow each other.
    #[serde(default)]
    retry: retry::Config,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Tcp,
    Udp,
    Unix,
    UnixDatagram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Framing {
    #[default]
    Newline,
    Nul,
    OctetCounted,
}

impl SinkConfig for Config {
    const NAME: &'static str = "socket";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = encoding::problems(self.encoding.as_ref());
        problems.extend(self.retry.problems());
        problems.extend(self.tls.iter().flat_map(TlsConfig::problems));
        let is_unix = matches!(self.mode, Mode::Unix | Mode::UnixDatagram);
        match (&self.address, &self.path) {
            (Some(address), _) if !is_unix => problems.extend(address_problem(address)),
            (None, _) if !is_unix => problems.push(
                Problem::new("address", "`address` is missing").help("say where to, as in address = \"host:9000\""),
            ),
            (_, None) => problems.push(
                Problem::new("path", "`path` is missing").help("say which file, as in path = \"/run/next.sock\""),
            ),
            _ => {}
        }
        if is_unix && self.address.is_some() {
            problems.push(Problem::new("address", "`address` is for tcp and udp").help("leave it out"));
        }
        if !is_unix && self.path.is_some() {
            problems.push(Problem::new("path", "`path` is for unix sockets").help("leave it out"));
        }
        if self.tls.is_some() && self.mode != Mode::Tcp {
            problems.push(Problem::new("tls", "only `tcp` can be encrypted").help("leave it out"));
        }
        if self.framing != Framing::Newline && matches!(self.mode, Mode::Udp | Mode::UnixDatagram) {
            problems.push(Problem::new("framing", "a datagram holds one record").help("leave it out"));
        }
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once, as far as the protocol can tell"
    }

    /// The state is what would go over the wire, so this is as many as it has ends of records, or one.
    fn undelivered(state: &[u8]) -> u64 {
        let ends = memchr::memchr2_iter(b'\n', 0, state).count() as u64;
        if state.is_empty() { 0 } else { ends.max(1) }
    }

    /// What is not delivered is framed already.
    fn state_shape(&self) -> Json {
        json!({ "framing": self.framing })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let path = || context.folder.join(self.path.clone().unwrap_or_default());
        let address = || self.address.clone().unwrap_or_default();
        let (target, framing) = match self.mode {
            Mode::Tcp => (Target::Tcp(address()), Some(self.framing)),
            Mode::Udp => (Target::Udp(address()), None),
            Mode::Unix => (Target::Unix(path()), Some(self.framing)),
            Mode::UnixDatagram => (Target::UnixDatagram(path()), None),
        };
        Box::new(Socket {
            target,
            tls: self.tls.as_ref().map(|tls| tls.within(&context.folder)),
            connector: None,
            retry: self.retry,
            encoder: Encoder::new(self.encoding.as_ref()),
            framing,
        })
    }
}

fn address_problem(address: &str) -> Option<Problem> {
    let is_right = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    (!is_right)
        .then(|| Problem::new("address", format!("{address:?} is not a host and a port")).help("write \"host:9000\""))
}

#[derive(Debug, Clone)]
enum Target {
    Tcp(String),
    Udp(String),
    Unix(PathBuf),
    UnixDatagram(PathBuf),
}

struct Socket {
    target: Target,
    tls: Option<TlsConfig>,
    connector: Option<TlsConnector>,
    retry: retry::Config,
    encoder: Encoder,
    /// `None` for datagrams.
    framing: Option<Framing>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// A connection.
enum Link {
    Stream(Box<dyn Stream>),
    Udp(UdpSocket),
    UnixDatagram(UnixDatagram),
}

impl Sink for Socket {
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            context.metrics.hold(Pending::restore(self.framing, context.restored.as_deref()).ends.len());
            if let Some(tls) = &self.tls {
                self.connector = Some(TlsConnector::from(Arc::new(tls.load().map_err(SinkError)?)));
            }
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            let backoff = Backoff::new(self.retry, &context.name);
            let pending = Pending::restore(self.framing, context.restored.as_deref());
            let was_empty = pending.is_empty();
            let sender = Sender {
                socket: *self,
                pending,
                is_committed_empty: was_empty,
                answered: (0, was_empty),
                has_ended: false,
                context,
            };
            sender.run(backoff).await
        })
    }
}

impl Socket {
    async fn connect(&self) -> io::Result<Link> {
        let connecting = async {
            Ok(match &self.target {
                Target::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    match &self.connector {
                        None => Link::Stream(Box::new(stream)),
                        Some(connector) => {
                            let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
                            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                            let name = ServerName::try_from(host).map_err(io::Error::other)?;
                            Link::Stream(Box::new(connector.connect(name, stream).await?))
                        }
                    }
                }
                Target::Unix(path) => Link::Stream(Box::new(UnixStream::connect(path).await?)),
                Target::Udp(address) => {
                    let to = tokio::net::lookup_host(address)
                        .await?
                        .next()
                        .ok_or_else(|| io::Error::other("the host has no address"))?;
                    let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(from).await?;
                    socket.connect(to).await?;
                    Link::Udp(socket)
                }
                Target::UnixDatagram(path) => {
                    let socket = UnixDatagram::unbound()?;
                    socket.connect(path)?;
                    Link::UnixDatagram(socket)
                }
            })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")))
    }
}

/// Records that are encoded and not yet written.
///
/// Datagrams are kept with their length in four bytes before each, streams as they go out. The bytes begin at the beginning
/// of a record, of which some may be written already.
struct Pending {
    framing: Option<Framing>,
    bytes: Vec<u8>,
    /// How many of `bytes` are written.
    written: usize,
    /// How many bytes went before `bytes`.
    passed: u64,
    /// Where the records end that are not wholly written.
    ends: VecDeque<u64>,
    /// Where the first of them begins in `bytes`.
    boundary: usize,
    /// Where each batch ends and when it came. Its permit slows the writer down until it is out.
    batches: VecDeque<(u64, Timestamp, Option<OwnedSemaphorePermit>)>,
}

impl Pending {
    fn new(framing: Option<Framing>) -> Self {
        let (ends, batches) = (VecDeque::new(), VecDeque::new());
        Self { framing, bytes: Vec::new(), written: 0, passed: 0, ends, boundary: 0, batches }
    }

    fn restore(framing: Option<Framing>, state: Option<&[u8]>) -> Self {
        let mut pending = Self::new(framing);
        pending.bytes.extend_from_slice(state.unwrap_or_default());
        let mut at = 0;
        while let Some(end) = pending.end_of(at) {
            pending.ends.push_back(end as u64);
            at = end;
        }
        pending
    }

    /// Where the record ends that begins at `start`.
    fn end_of(&self, start: usize) -> Option<usize> {
        let rest = self.bytes.get(start..)?;
        match self.framing {
            Some(Framing::Newline) => memchr::memchr(b'\n', rest).map(|at| start + at + 1),
            Some(Framing::Nul) => memchr::memchr(0, rest).map(|at| start + at + 1),
            Some(Framing::OctetCounted) => counted_end(&self.bytes, start).filter(|end| *end <= self.bytes.len()),
            None => {
                let end = start + 4 + u32::from_le_bytes(*rest.first_chunk()?) as usize;
                (end <= self.bytes.len()).then_some(end)
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn has_room(&self) -> bool {
        self.bytes.len() - self.written < PENDING_BYTES
    }

    /// What a checkpoint must hold.
    fn state(&self) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[self.boundary..])
    }

    /// A connection broke: what it got of an unfinished record does not count.
    fn rewind(&mut self) {
        self.written = self.boundary;
    }

    /// `count` more bytes are written. Gives back when the batches came that are out by that, and how many records are.
    fn advance(&mut self, count: usize, mut out: impl FnMut(Timestamp)) -> usize {
        self.written += count;
        let position = self.passed + self.written as u64;
        let mut records = 0;
        while let Some(end) = self.ends.pop_front_if(|end| *end <= position) {
            self.boundary = (end - self.passed) as usize;
            records += 1;
        }
        while let Some((_, arrival, permit)) = self.batches.pop_front_if(|batch| batch.0 <= position) {
            out(arrival);
            drop(permit);
        }
        if self.is_empty() || self.written > PENDING_BYTES {
            self.bytes.drain(..self.boundary);
            self.passed += self.boundary as u64;
            self.written -= self.boundary;
            self.boundary = 0;
        }
        records
    }

    /// The datagram to be sent next.
    fn datagram(&self) -> Option<&[u8]> {
        let (length, rest) = self.bytes[self.written..].split_first_chunk::<4>()?;
        rest.get(..u32::from_le_bytes(*length) as usize)
    }
}

/// Where the octet-counted record at `at` ends.
fn counted_end(bytes: &[u8], at: usize) -> Option<usize> {
    let space = at + memchr::memchr(b' ', bytes.get(at..)?)?;
    let length: usize = std::str::from_utf8(&bytes[at..space]).ok()?.parse().ok()?;
    Some(space + 1 + length)
}

/// A running sink.
struct Sender {
    socket: Socket,
    pending: Pending,
    /// Whether the state in the last complete checkpoint is empty.
    is_committed_empty: bool,
    /// The epoch answered last and whether its state was empty.
    answered: (u64, bool),
    has_ended: bool,
    context: SinkContext,
}

/// Why a connection is over.
enum Over {
    Broken(io::Error),
    /// Nothing more to do, or no more time.
    Done,
}

impl Sender {
    async fn run(mut self, mut backoff: Backoff) -> Result<SinkState, SinkError> {
        while !self.is_done() {
            let Some(connected) = self.connect().await else { break };
            let error = match connected {
                Ok(link) => match self.serve(link, &mut backoff).await {
                    Over::Done => break,
                    Over::Broken(error) => error,
                },
                Err(error) => error,
            };
            self.pending.rewind();
            self.context.metrics.error("connection");
            if backoff.attempts() == 0 {
                tracing::warn!(sink = %self.context.name, %error, "no connection; trying again until there is one");
            }
            let wait = tokio::time::sleep(backoff.next(None));
            tokio::pin!(wait);
            loop {
                let has_room = self.pending.has_room();
                tokio::select! {
                    () = &mut wait => break,
                    () = self.context.stop.cancelled() => return Ok(self.state()),
                    queued = self.context.input.recv(), if has_room && !self.has_ended => self.take(queued).await,
                }
            }
        }
        Ok(self.state())
    }

    fn is_done(&self) -> bool {
        self.has_ended && self.pending.is_empty()
    }

    /// Connects while it goes on taking input; `None` when the time is over.
    async fn connect(&mut self) -> Option<io::Result<Link>> {
        let socket = Socket {
            target: self.socket.target.clone(),
            tls: None,
            connector: self.socket.connector.clone(),
            retry: self.socket.retry,
            encoder: self.socket.encoder.clone(),
            framing: self.socket.framing,
        };
        let connecting = socket.connect();
        tokio::pin!(connecting);
        loop {
            let has_room = self.pending.has_room();
            tokio::select! {
                connected = &mut connecting => return Some(connected),
                () = self.context.stop.cancelled() => return None,
                queued = self.context.input.recv(), if has_room && !self.has_ended => self.take(queued).await,
            }
        }
    }

    /// Writes what comes until the connection breaks or nothing follows.
    async fn serve(&mut self, mut link: Link, backoff: &mut Backoff) -> Over {
        // What the other side says is not read, but its end is: else the end would show only at the second write.
        let mut said = [0; 512];
        loop {
            // Everything that waits goes out in one write.
            while self.pending.has_room() && self.pending.bytes.len() - self.pending.written < WRITE_BYTES {
                match self.context.input.try_recv() {
                    Ok(queued) => self.take(Some(queued)).await,
                    Err(_) => break,
                }
            }
            if self.is_done() {
                if let Link::Stream(stream) = &mut link {
                    let _ = stream.flush().await;
                    let _ = stream.shutdown().await;
                }
                return Over::Done;
            }
            let (has_room, has_pending) = (self.pending.has_room(), !self.pending.is_empty());
            let stop = self.context.stop.clone();
            match &mut link {
                Link::Stream(stream) => {
                    if has_pending {
                        fault::point("socket.write");
                        let (mut read, mut write) = tokio::io::split(&mut *stream);
                        tokio::select! {
                            biased;
                            written = write.write(&self.pending.bytes[self.pending.written..]) => match written {
                                Ok(0) => return Over::Broken(io::ErrorKind::WriteZero.into()),
                                Ok(count) => {
                                    backoff.reset();
                                    fault::point("socket.written");
                                    self.written(count);
                                    if self.pending.is_empty() && let Err(error) = write.flush().await {
                                        return Over::Broken(error);
                                    }
                                }
                                Err(error) => return Over::Broken(error),
                            },
                            read = read.read(&mut said) => match read {
                                Ok(0) => return Over::Broken(io::ErrorKind::ConnectionReset.into()),
                                Ok(_) => {}
                                Err(error) => return Over::Broken(error),
                            },
                            queued = self.context.input.recv(), if has_room && !self.has_ended => self.take(queued).await,
                            () = stop.cancelled() => return Over::Done,
                        }
                    } else {
                        tokio::select! {
                            biased;
                            queued = self.context.input.recv() => self.take(queued).await,
                            read = stream.read(&mut said) => match read {
                                Ok(0) => return Over::Broken(io::ErrorKind::ConnectionReset.into()),
                                Ok(_) => {}
                                Err(error) => return Over::Broken(error),
                            },
                            () = stop.cancelled() => return Over::Done,
                        }
                    }
                }
                Link::Udp(_) | Link::UnixDatagram(_) => {
                    if has_pending {
                        let datagram = self.pending.datagram().unwrap_or_default();
                        let length = datagram.len();
                        let sending = async {
                            match &link {
                                Link::Udp(socket) => socket.send(datagram).await,
                                Link::UnixDatagram(socket) => socket.send(datagram).await,
                                Link::Stream(_) => Ok(0),
                            }
                        };
                        let sent = tokio::select! {
                            biased;
                            sent = sending => Some(sent),
                            () = stop.cancelled() => return Over::Done,
                            queued = self.context.input.recv(), if has_room && !self.has_ended => {
                                self.take(queued).await;
                                None
                            }
                        };
                        match sent {
                            None => {}
                            Some(Ok(_)) => {
                                backoff.reset();
                                self.written(4 + length);
                            }
                            // Told of an earlier datagram that nobody took: with UDP that is nobody's fault.
                            Some(Err(error))
                                if matches!(link, Link::Udp(_)) && error.kind() == io::ErrorKind::ConnectionRefused =>
                            {
                                self.context.metrics.error("refused");
                            }
                            Some(Err(error)) if is_too_long(&error) => {
                                self.context.metrics.error("too_long");
                                let records = self.advance(4 + length);
                                self.context.metrics.dropped(Reason::TooLong, records as u64);
                            }
                            Some(Err(error)) => return Over::Broken(error),
                        }
                    } else {
                        tokio::select! {
                            queued = self.context.input.recv() => self.take(queued).await,
                            () = stop.cancelled() => return Over::Done,
                        }
                    }
                }
            }
        }
    }

    fn written(&mut self, count: usize) {
        let records = self.advance(count);
        self.context.metrics.sent(records);
    }

    /// `count` more bytes need not be kept; gives the records that are out by that.
    fn advance(&mut self, count: usize) -> usize {
        let metrics = &self.context.metrics;
        let now = self.context.clock.now();
        self.pending.advance(count, |arrival| metrics.latency(now.since(arrival).as_secs_f64()))
    }

    async fn take(&mut self, queued: Option<Queued>) {
        let Some(queued) = queued else {
            self.has_ended = true;
            return;
        };
        let (input, permit) = queued.split();
        match input {
            SinkInput::Batch(batch) => self.encode(&batch, permit).await,
            SinkInput::Barrier { epoch, prepared } => {
                self.answered = (epoch, self.pending.is_empty());
                let state = self.state();
                // Nobody waits for the answer of an epoch that was abandoned.
                let _ = prepared.send(state);
            }
            SinkInput::Committed { epoch } => {
                if self.answered.0 == epoch {
                    self.is_committed_empty = self.answered.1;
                }
            }
            SinkInput::Watermark(_) => {}
            SinkInput::End => self.has_ended = true,
        }
    }

    fn state(&self) -> SinkState {
        self.context.metrics.hold(self.pending.ends.len());
        if self.pending.is_empty() && self.is_committed_empty {
            SinkState::Unchanged
        } else {
            SinkState::State(self.pending.state())
        }
    }

    async fn encode(&mut self, batch: &Batch, permit: Option<OwnedSemaphorePermit>) {
        let encoder = &self.socket.encoder;
        let Pending { bytes, ends, passed, .. } = &mut self.pending;
        let mut failures = 0;
        match self.socket.framing {
            Some(Framing::Newline) => {
                failures += encoder.append_each(batch, bytes, |end| ends.push_back(*passed + end as u64));
            }
            Some(Framing::Nul) => {
                for row in batch.rows() {
                    failures += encoder.append(batch, row, bytes);
                    bytes.push(0);
                    ends.push_back(*passed + bytes.len() as u64);
                }
            }
            Some(Framing::OctetCounted) => {
                let mut record = Vec::new();
                for row in batch.rows() {
                    record.clear();
                    failures += encoder.append(batch, row, &mut record);
                    bytes.extend_from_slice(format!("{} ", record.len()).as_bytes());
                    bytes.extend_from_slice(&record);
                    ends.push_back(*passed + bytes.len() as u64);
                }
            }
            None => {
                for row in batch.rows() {
                    let start = bytes.len();
                    bytes.extend_from_slice(&[0; 4]);
                    failures += encoder.append(batch, row, bytes);
                    let length = bytes.len() - start - 4;
                    if length > DATAGRAM_BYTES {
                        bytes.truncate(start);
                        let told = format!("{length} bytes do not fit into a datagram");
                        self.context.rejected.reject(batch, row, Reason::TooLong, &told).await;
                        continue;
                    }
                    let length = u32::try_from(length).expect("at most DATAGRAM_BYTES");
                    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
                    ends.push_back(*passed + bytes.len() as u64);
                }
            }
        }
        self.context.metrics.expression_errors(failures);
        // The permit goes with the last of the batch; of one that was refused whole nothing is waited for.
        if let Some(end) = self.pending.ends.back() {
            self.pending.batches.push_back((*end, batch.arrival, permit));
        }
    }
}

fn is_too_long(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::MSGSIZE)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;
    use crate::conformance::{PATIENCE, Running, lines, sink, withstands};

    /// A server that keeps what every connection says, one after the other.
    async fn listen() -> (String, Arc<Mutex<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    kept.lock().unwrap().extend_from_slice(&buffer[..count]);
                }
            }
        });
        (address, heard)
    }

    /// What was heard, as soon as it is as long as it should be.
    async fn heard(kept: &Mutex<Vec<u8>>, length: usize) -> String {
        let wait = async {
            while kept.lock().unwrap().len() < length {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, wait).await;
        String::from_utf8(kept.lock().unwrap().clone()).unwrap()
    }

    #[tokio::test]
    async fn it_withstands_what_every_sink_must() {
        for (framing, expected) in [
            ("newline", "one\ntwo\n{\"three\":3}\nfive\n"),
            ("nul", "one\0two\0{\"three\":3}\0five\0"),
            ("octet_counted", "3 one3 two11 {\"three\":3}4 five"),
        ] {
            let (address, kept) = listen().await;
            let options = format!(r#"{{"mode": "tcp", "address": "{address}", "framing": "{framing}"}}"#);
            let make = || sink::<Config>(&options, Path::new(""));
            withstands(make, None, async || heard(&kept, expected.len()).await, expected).await;
        }
    }

    #[tokio::test]
    async fn a_checkpoint_holds_what_an_absent_peer_did_not_get() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let options = format!(r#"{{"mode": "tcp", "address": "{address}"}}"#);
        let running = Running::start(sink::<Config>(&options, Path::new("")), None, None).await.unwrap();
        assert_eq!(running.barrier(1).await, SinkState::Unchanged);
        running.send(lines("one\ntwo\n")).await;
        assert_eq!(running.state(2).await, "one\ntwo\n");
        running.commit(2).await;
        running.stop.cancel();
        let state = running.finished().await.unwrap();
        assert_eq!(state, SinkState::State("one\ntwo\n".into()));

        let (address, kept) = listen().await;
        let options = format!(r#"{{"mode": "tcp", "address": "{address}"}}"#);
        let made = sink::<Config>(&options, Path::new(""));
        let running = Running::start(made, Some("one\ntwo\n".into()), None).await.unwrap();
        assert_eq!(heard(&kept, 8).await, "one\ntwo\n");
        // The checkpoint still holds them, so that they are gone must be said.
        assert_eq!(running.end().await.unwrap(), SinkState::State(Bytes::new()));
    }

    #[tokio::test]
    async fn it_comes_back_when_the_peer_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let options =
            format!(r#"{{"mode": "tcp", "address": "{address}", "retry": {{"initial": "1ms", "max": "2ms"}}}}"#);
        let running = Running::start(sink::<Config>(&options, Path::new("")), None, None).await.unwrap();
        let (first, _) = listener.accept().await.unwrap();
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        running.send(lines("one\n")).await;
        let mut text = [0; 4];
        second.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"one\n");
        running.end().await.unwrap();
    }

    #[tokio::test]
    async fn a_datagram_holds_one_record_and_one_that_does_not_fit_is_a_dead_letter() {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let options = format!(r#"{{"mode": "udp", "address": "{}"}}"#, receiver.local_addr().unwrap());
        let running = Running::start(sink::<Config>(&options, Path::new("")), None, None).await.unwrap();
        running.send(lines(&format!("one\n{}\n\n", "x".repeat(70_000)))).await;
        let mut buffer = [0; 100];
        let mut received = Vec::new();
        for _ in 0..2 {
            let count = tokio::time::timeout(PATIENCE, receiver.recv(&mut buffer)).await.unwrap().unwrap();
            received.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        assert_eq!(received, ["one", ""]);
        assert_eq!(running.metrics.dropped_events(Reason::TooLong), 1);
        running.end().await.unwrap();
    }

    #[tokio::test]
    async fn a_unix_socket_is_sent_to() {
        let folder = tempfile::tempdir().unwrap();
        let receiver = UnixDatagram::bind(folder.path().join("in.sock")).unwrap();
        let made = sink::<Config>(r#"{"mode": "unix_datagram", "path": "in.sock"}"#, folder.path());
        let running = Running::start(made, None, None).await.unwrap();
        running.send(lines("one\n")).await;
        let mut buffer = [0; 100];
        let count = tokio::time::timeout(PATIENCE, receiver.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..count], b"one");
        running.end().await.unwrap();
    }

    #[test]
    fn what_is_half_written_counts_as_not_written() {
        let cases: [(Framing, &[u8], usize, &str); 3] = [
            (Framing::Newline, b"one\ntwo\nthree\n", 9, "three\n"),
            (Framing::Nul, b"one\0two\0three\0", 8, "three\0"),
            (Framing::OctetCounted, b"3 one3 two5 three", 9, "3 two5 three"),
        ];
        for (framing, bytes, written, expected) in cases {
            let mut pending = Pending::restore(Some(framing), Some(bytes));
            pending.advance(written, |_| ());
            assert_eq!(pending.state(), expected, "{framing:?}");
            pending.rewind();
            assert_eq!(&pending.bytes[pending.written..], expected.as_bytes());
        }
    }

    #[test]
    fn options_that_do_not_fit_together_are_told() {
        let told = |options: &str| {
            let config: Config = serde_json::from_str(options).unwrap();
            config.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(told(r#"{"mode": "tcp"}"#), "`address` is missing");
        assert_eq!(told(r#"{"mode": "tcp", "address": "host"}"#), "\"host\" is not a host and a port");
        assert_eq!(told(r#"{"mode": "unix", "address": "host:1"}"#), "`path` is missing; `address` is for tcp and udp");
        assert_eq!(
            told(r#"{"mode": "udp", "address": "host:1", "tls": {}, "framing": "nul"}"#),
            "only `tcp` can be encrypted; a datagram holds one record"
        );
    }
}
