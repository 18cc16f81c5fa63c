//! The part that `socket` and `syslog` share: records from connections and datagrams, handed over as they arrive.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use memchr::memchr_iter;
use rustix::fd::AsFd;
use tocsin_pipeline::event::Span;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::source::{Framing, Gone, RecordOptions, Source, SourceContext, SourceError, TooLong};
use tocsin_pipeline::time::Clock;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{UdpSocket, UnixDatagram};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::framing::{Delimiter, Framed, LineFramer};
use crate::net::{
    Admission, Gate, Listener, Output, STOP_GRACE, SocketFile, TlsOptions, bind_tcp, bind_udp, bind_unix_datagram,
    bind_unix_stream,
};
use crate::octets::{Cutter, End, Piece, Style};

/// A connection's buffer begins so small, as most are quiet, and doubles while reads fill it.
const BUFFER_MIN: usize = 8 << 10;
const BUFFER_MAX: usize = 256 << 10;
/// No datagram is longer: UDP ends at 64 KiB, and unix sockets at the sender's buffer, of which this is the usual most.
const DATAGRAM_MAX: usize = 256 << 10;
/// How long a stopping source goes on reading what its connections had sent.
const DRAIN: Duration = Duration::from_millis(200);
const DRAIN_READS: usize = 64;
const DRAIN_WAIT: Duration = Duration::from_millis(10);
/// How often the kernel is asked how many datagrams it dropped.
const DROPS_INTERVAL: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Clone, Debug)]
pub(crate) enum Endpoint {
    Tcp(String),
    Udp(String),
    Unix { path: PathBuf, permissions: u32 },
    UnixDatagram { path: PathBuf, permissions: u32 },
}

/// How a connection's records are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    Delimited(Delimiter),
    Octets(Style),
    /// Of datagrams: each is one record.
    Whole,
}

/// A source of connections or datagrams, not open yet.
pub(crate) struct Streams {
    pub(crate) endpoint: Endpoint,
    pub(crate) records: Records,
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_address: usize,
    /// Zero: never.
    pub(crate) connection_timeout: Duration,
    pub(crate) receive_buffer: usize,
    pub(crate) bound: Option<Bound>,
}

/// What was opened.
pub(crate) enum Bound {
    Connections(Listener, Option<TlsAcceptor>),
    Datagrams(Datagrams),
}

pub(crate) enum Datagrams {
    Udp(UdpSocket),
    Unix { socket: UnixDatagram, _file: SocketFile },
}

impl Streams {
    #[cfg(test)]
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        match &self.bound {
            Some(Bound::Connections(Listener::Tcp(listener), _)) => listener.local_addr().unwrap(),
            Some(Bound::Datagrams(Datagrams::Udp(socket))) => socket.local_addr().unwrap(),
            _ => panic!("not bound to an address"),
        }
    }
}

impl Source for Streams {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let tls = self.tls.as_ref().map(TlsOptions::acceptor).transpose()?;
            self.bound = Some(match &self.endpoint {
                Endpoint::Tcp(address) => Bound::Connections(Listener::Tcp(bind_tcp(address).await?), tls),
                Endpoint::Udp(address) => {
                    Bound::Datagrams(Datagrams::Udp(bind_udp(address, self.receive_buffer).await?))
                }
                Endpoint::Unix { path, permissions } => {
                    let (listener, _file) = bind_unix_stream(path, *permissions)?;
                    Bound::Connections(Listener::Unix { listener, _file }, tls)
                }
                Endpoint::UnixDatagram { path, permissions } => {
                    let (socket, _file) = bind_unix_datagram(path, *permissions)?;
                    Bound::Datagrams(Datagrams::Unix { socket, _file })
                }
            });
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let bound = self.bound.ok_or_else(|| SourceError("the source was not opened".to_owned()))?;
            let output = Output::new(&context);
            let stop = context.stop.clone();
            let shared = Arc::new(Shared { output, context, records: self.records, timeout: self.connection_timeout });
            let tasks = TaskTracker::new();
            let serving = async {
                match bound {
                    Bound::Connections(listener, tls) => {
                        let admission = Admission::new(self.max_connections, self.max_connections_per_address);
                        let gate = Gate { listener, tls, admission, metrics: shared.context.metrics.clone() };
                        let shared = Arc::clone(&shared);
                        let serve = move |wire| {
                            let shared = Arc::clone(&shared);
                            async move { shared.connection(wire).await }
                        };
                        gate.serve(&stop, &tasks, serve).await;
                        Ok(())
                    }
                    Bound::Datagrams(datagrams) => shared.datagrams(&datagrams).await,
                }
            };
            let served = tokio::select! {
                served = serving => served,
                () = shared.output.tell_idle() => Ok(()),
                // Where nobody connects, nobody else would find out.
                () = shared.context.events.closed() => Err(Gone),
            };
            tasks.close();
            // Connections end by themselves within the drain; only a pipeline that takes nothing holds them longer.
            let _ = tokio::time::timeout(STOP_GRACE, tasks.wait()).await;
            shared.output.close();
            Ok(served?)
        })
    }
}

/// What the connections of a source have in common.
struct Shared {
    output: Output,
    context: SourceContext,
    records: Records,
    timeout: Duration,
}

/// How reading from a connection ended.
enum Read {
    Some,
    End(End),
    /// No more came for a while, and lines wait for it.
    Due,
}

impl Shared {
    async fn connection(&self, mut wire: impl AsyncRead + Unpin) {
        let mut framer = Framer::new(self.records, &self.context.records);
        let (mut buffer, mut size) = (BytesMut::new(), BUFFER_MIN);
        let end = loop {
            if self.context.stop.is_cancelled() {
                break End::Broken;
            }
            if buffer.capacity() - buffer.len() < size / 4 {
                buffer.reserve(size);
            }
            let before = buffer.len();
            match self.read(&mut wire, &mut buffer, framer.deadline()).await {
                Read::Some => {
                    let (arrived, room) = (buffer.len() - before, buffer.capacity() - buffer.len());
                    if framer.push(&mut buffer, &self.output, &*self.context.clock).await.is_err() {
                        return;
                    }
                    if framer.is_lost() {
                        return self.context.metrics.error("framing");
                    }
                    if room == 0 {
                        size = (size * 2).min(BUFFER_MAX);
                    } else if arrived < size / 8 && size > BUFFER_MIN {
                        size /= 2;
                        if buffer.is_empty() {
                            // So that a connection that has become quiet does not keep what it needed when it was not.
                            buffer = BytesMut::new();
                        }
                    }
                }
                Read::Due => {
                    if framer.flush_due(&self.output, &*self.context.clock).await.is_err() {
                        return;
                    }
                }
                Read::End(end) => break end,
            }
        };
        let drained = tokio::time::timeout(DRAIN, async {
            if end == End::Broken && self.context.stop.is_cancelled() {
                // What the kernel has received already cannot be asked for again. It is given a moment, as the runtime may
                // not have heard of it yet.
                for _ in 0..DRAIN_READS {
                    buffer.reserve(BUFFER_MAX);
                    match tokio::time::timeout(DRAIN_WAIT, wire.read_buf(&mut buffer)).await {
                        Ok(Ok(1..)) => framer.push(&mut buffer, &self.output, &*self.context.clock).await?,
                        _ => break,
                    }
                }
            }
            framer.end(&mut buffer, end, &self.output).await
        });
        if drained.await.is_err() {
            self.context.metrics.error("stopped_while_busy");
        }
    }

    async fn read(&self, wire: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut, due: Option<Duration>) -> Read {
        // What has arrived is taken without setting a timer, which would cost as much as the read.
        if let Some(read) = wire.read_buf(buffer).now_or_never() {
            return self.outcome(read);
        }
        let now = self.context.clock.monotonic();
        let due = due.map(|due| due.saturating_sub(now));
        let wait =
            if self.timeout.is_zero() { due } else { Some(due.map_or(self.timeout, |due| due.min(self.timeout))) };
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => Read::End(End::Broken),
            read = wire.read_buf(buffer) => self.outcome(read),
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {
                if due.is_some() {
                    return Read::Due;
                }
                self.context.metrics.error("connection_timeout");
                Read::End(End::Broken)
            }
        }
    }

    fn outcome(&self, read: std::io::Result<usize>) -> Read {
        match read {
            Ok(0) => Read::End(End::Closed),
            Ok(_) => Read::Some,
            Err(error) => {
                tracing::debug!("a connection broke: {error}");
                self.context.metrics.error("read");
                Read::End(End::Broken)
            }
        }
    }

    /// Datagrams until the source is to stop, and those that had arrived by then.
    async fn datagrams(&self, datagrams: &Datagrams) -> Result<(), Gone> {
        let mut drops = tokio::time::interval(DROPS_INTERVAL);
        let mut dropped = None;
        let mut buffer = BytesMut::new();
        loop {
            let readable = tokio::select! {
                biased;
                () = self.context.stop.cancelled() => break,
                readable = datagrams.readable() => readable,
                _ = drops.tick() => {
                    self.count_drops(datagrams, &mut dropped);
                    continue;
                }
            };
            let taken = match readable {
                Ok(()) => self.take_datagrams(datagrams, &mut buffer).await?,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                // Told of a socket that only receives, such errors are about memory: they pass.
                tracing::debug!("cannot receive: {error}");
                self.context.metrics.error("receive");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // What had arrived, and what comes while it is taken: bounded by time and by number.
        let rest = async {
            for _ in 0..DRAIN_READS {
                self.take_datagrams(datagrams, &mut buffer).await?.ok();
            }
            Ok::<_, Gone>(())
        };
        let _ = tokio::time::timeout(DRAIN, rest).await;
        self.count_drops(datagrams, &mut dropped);
        Ok(())
    }

    /// All that has arrived, as one block, up to its greatest size.
    async fn take_datagrams(&self, datagrams: &Datagrams, buffer: &mut BytesMut) -> Result<std::io::Result<()>, Gone> {
        let options = &self.context.records;
        let (mut spans, mut refused, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        while buffer.len() < BUFFER_MAX {
            buffer.reserve(DATAGRAM_MAX);
            let start = buffer.len();
            match datagrams.try_receive(buffer) {
                Ok(_) => split_datagram(&buffer[start..], start, self.records, options, &mut spans, &mut refused),
                Err(error) => {
                    if error.kind() != std::io::ErrorKind::WouldBlock {
                        outcome = Err(error);
                    }
                    break;
                }
            }
        }
        if !buffer.is_empty() {
            let bytes = buffer.split().freeze();
            let length = bytes.len() as u64;
            for span in refused {
                let message = too_long(options.max_record_bytes);
                let head = bytes.slice(span.start as usize..(span.start + span.len.min(4096)) as usize);
                let start = u64::from(span.start);
                self.output.refused(head, Reason::TooLong, message, start, 0).await?;
            }
            self.output.records(bytes, Framing::Spans(spans), length, None).await?;
        }
        Ok(outcome)
    }

    fn count_drops(&self, datagrams: &Datagrams, before: &mut Option<u64>) {
        let Datagrams::Udp(socket) = datagrams else { return };
        let Some(now) = kernel_drops(socket) else { return };
        // What was dropped before the source ran is also lost to it.
        let count = now.saturating_sub(before.unwrap_or(0));
        if count > 0 {
            tracing::warn!("the kernel dropped {count} datagrams; raise receive_buffer and net.core.rmem_max");
            self.context.metrics.errors("kernel_drop", count);
        }
        *before = Some(now);
    }
}

fn too_long(max: usize) -> String {
    format!("longer than max_record_bytes, which is {max}")
}

impl Datagrams {
    async fn readable(&self) -> std::io::Result<()> {
        match self {
            Self::Udp(socket) => socket.readable().await,
            Self::Unix { socket, .. } => socket.readable().await,
        }
    }

    fn try_receive(&self, buffer: &mut BytesMut) -> std::io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.try_recv_buf(buffer),
            Self::Unix { socket, .. } => socket.try_recv_buf(buffer),
        }
    }
}

/// The records of one datagram, which stands at `start` of its block.
fn split_datagram(
    datagram: &[u8],
    start: usize,
    records: Records,
    options: &RecordOptions,
    spans: &mut Vec<Span>,
    refused: &mut Vec<Span>,
) {
    let mut add = |at: usize, record: &[u8]| {
        let span = Span::new(start + at, record.len());
        match options.too_long {
            _ if record.is_empty() => {}
            _ if record.len() <= options.max_record_bytes => spans.push(span),
            TooLong::Truncate => spans.push(Span::new(start + at, options.max_record_bytes)),
            TooLong::Reject => refused.push(span),
        }
    };
    match records {
        Records::Delimited(delimiter) => {
            let mut at = 0;
            let byte = if delimiter == Delimiter::Newline { b'\n' } else { 0 };
            for end in memchr_iter(byte, datagram).chain([datagram.len()]) {
                let record = &datagram[at..end];
                let record = match delimiter {
                    Delimiter::Newline => record.strip_suffix(b"\r").unwrap_or(record),
                    Delimiter::Nul => record,
                };
                add(at, record);
                at = end + 1;
            }
        }
        // One record; some senders end it all the same.
        Records::Whole | Records::Octets(_) => {
            let end = datagram.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
            add(0, &datagram[..end]);
        }
    }
}

/// How many datagrams the kernel could not keep for this socket, from its own table.
fn kernel_drops(socket: &UdpSocket) -> Option<u64> {
    let inode = rustix::fs::fstat(socket.as_fd()).ok()?.st_ino;
    let table = if socket.local_addr().ok()?.is_ipv4() { "/proc/net/udp" } else { "/proc/net/udp6" };
    drops_of(&std::fs::read_to_string(table).ok()?, inode)
}

fn drops_of(table: &str, inode: u64) -> Option<u64> {
    let inode = inode.to_string();
    let row = table.lines().find(|row| row.split_ascii_whitespace().nth(9) == Some(inode.as_str()))?;
    row.split_ascii_whitespace().next_back()?.parse().ok()
}

/// Cuts one connection.
enum Framer {
    Lines(LineFramer),
    Octets(Cutter),
}

impl Framer {
    fn new(records: Records, options: &RecordOptions) -> Self {
        match records {
            // Lines that belong together are found among lines, whatever else could be.
            Records::Octets(Style::Syslog) if options.multiline.is_some() => {
                Self::Lines(LineFramer::new(options, Delimiter::Newline, 0))
            }
            Records::Octets(style) => Self::Octets(Cutter::new(style, options.max_record_bytes, options.too_long)),
            Records::Delimited(delimiter) => Self::Lines(LineFramer::new(options, delimiter, 0)),
            Records::Whole => Self::Lines(LineFramer::new(options, Delimiter::Newline, 0)),
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self, Self::Octets(cutter) if cutter.is_lost())
    }

    fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Lines(framer) => framer.deadline(),
            Self::Octets(_) => None,
        }
    }

    /// Hands over the records that are whole.
    async fn push(&mut self, buffer: &mut BytesMut, output: &Output, clock: &dyn Clock) -> Result<(), Gone> {
        match self {
            Self::Lines(framer) => {
                let mut framed = Vec::new();
                framer.push(buffer.split().freeze(), clock.monotonic(), &mut framed);
                hand_over(framed, output).await
            }
            Self::Octets(cutter) => {
                while let Some(piece) = cutter.cut(buffer) {
                    hand_over_piece(piece, output).await?;
                }
                Ok(())
            }
        }
    }

    async fn flush_due(&mut self, output: &Output, clock: &dyn Clock) -> Result<(), Gone> {
        let mut framed = Vec::new();
        if let Self::Lines(framer) = self {
            framer.flush_due(clock.monotonic(), &mut framed);
        }
        hand_over(framed, output).await
    }

    async fn end(&mut self, buffer: &mut BytesMut, end: End, output: &Output) -> Result<(), Gone> {
        match self {
            Self::Lines(framer) => {
                let mut framed = Vec::new();
                let rest = framer.next_offset() - framer.position();
                if end == End::Closed {
                    framer.finish(&mut framed);
                } else if rest > 0 {
                    let message = "the connection was cut in the middle of a record".to_owned();
                    return output.refused(Bytes::new(), Reason::Undecodable, message, 0, rest).await;
                }
                hand_over(framed, output).await
            }
            Self::Octets(cutter) => match cutter.end(buffer, end) {
                Some(piece) => hand_over_piece(piece, output).await,
                None => Ok(()),
            },
        }
    }
}

async fn hand_over(framed: Vec<Framed>, output: &Output) -> Result<(), Gone> {
    for framed in framed {
        match framed {
            Framed::Records { bytes, framing, base, end } => {
                output.records(bytes, framing, end - base, None).await?;
            }
            Framed::Rejected { offset, end, message, head } => {
                output.refused(head, Reason::TooLong, message, 0, end - offset).await?;
            }
        }
    }
    Ok(())
}

async fn hand_over_piece(piece: Piece, output: &Output) -> Result<(), Gone> {
    output.skip(piece.skipped);
    let length = piece.bytes.len() as u64;
    for refused in piece.refused {
        let raw = piece.bytes.slice(refused.span.start as usize..(refused.span.start + refused.span.len) as usize);
        output.refused(raw, refused.reason, refused.message, u64::from(refused.span.start), 0).await?;
    }
    output.records(piece.bytes, Framing::Spans(piece.records), length, None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_may_hold_several_lines_and_one_syslog_message() {
        let (mut spans, mut refused) = (Vec::new(), Vec::new());
        let options = RecordOptions { max_record_bytes: 3, ..RecordOptions::default() };
        let newline = Records::Delimited(Delimiter::Newline);
        split_datagram(b"ab\r\n\nlong\nc", 100, newline, &options, &mut spans, &mut refused);
        assert_eq!(spans, [Span::new(100, 2), Span::new(110, 1)]);
        assert_eq!(refused, [Span::new(105, 4)]);
        spans.clear();
        split_datagram(b"a\nb\n\0", 0, Records::Whole, &options, &mut spans, &mut refused);
        assert_eq!(spans, [Span::new(0, 3)]);
    }

    #[test]
    fn the_kernel_tells_how_many_datagrams_it_dropped() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     2156: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0000000000000000 17\n";
        assert_eq!(drops_of(table, 4242), Some(17));
        assert_eq!(drops_of(table, 17), None);
    }
}
