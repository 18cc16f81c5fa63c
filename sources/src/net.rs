//! What every source that listens needs: sockets bound with errors that say what to do, limits on who may connect, TLS, and
//! the one lane that all connections of a source share.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tocsin_config::component::Problem;
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::metrics::ComponentMetrics;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::source::{Block, Framing, Gone, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::time::Clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listeners;

/// How long accepting pauses when the machine has no descriptors or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that has not finished the TLS handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A lane that has shown nothing for so long is told to be idle.
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// How long a stopping source waits for its connections to hand over what had arrived.
pub(crate) const STOP_GRACE: Duration = Duration::from_millis(500);

/// The lane of a source that listens. Its records are those of all connections, mixed at the ends of records, so what is
/// remembered does not grow with the connections; its position counts the bytes since the source was first started.
pub(crate) struct Output {
    lane: Arc<Lane>,
    /// Taken away when the source has ended, so that requests still waiting for an acknowledgement do not keep the
    /// pipeline alive.
    events: Mutex<Option<mpsc::Sender<SourceEvent>>>,
    offset: Mutex<u64>,
    /// How many tasks wait for the engine: a lane is not idle as long as any does.
    waiting: AtomicUsize,
    clock: Arc<dyn Clock>,
}

impl Output {
    pub(crate) fn new(context: &SourceContext) -> Self {
        let position = context.positions.get("").and_then(|position| position["offset"].as_u64());
        Self {
            lane: context.lane("", Origin::Stream),
            events: Mutex::new(Some(context.events.clone())),
            offset: Mutex::new(position.unwrap_or(0)),
            waiting: AtomicUsize::new(0),
            clock: Arc::clone(&context.clock),
        }
    }

    /// Hands records over, waiting while the engine is busy. `length` is how far they reach in what was received.
    pub(crate) async fn records(
        &self,
        bytes: Bytes,
        framing: Framing,
        length: u64,
        acknowledgement: Option<oneshot::Sender<()>>,
    ) -> Result<(), Gone> {
        self.send(length, |base| {
            let position = json!({ "offset": base + length });
            let block =
                Block { bytes, framing, base, position, arrival: self.clock.now(), acknowledgement, notes: None };
            SourceEvent::Block(Arc::clone(&self.lane), block)
        })
        .await
    }

    /// Hands over what is no record: it stands `start` bytes on and takes `length` bytes, or none where what it stands in
    /// is handed over afterwards.
    pub(crate) async fn refused(
        &self,
        raw: Bytes,
        reason: Reason,
        message: String,
        start: u64,
        length: u64,
    ) -> Result<(), Gone> {
        self.send(length, |offset| {
            let position = json!({ "offset": offset + length });
            let (lane, offset) = (Arc::clone(&self.lane), offset + start);
            SourceEvent::Rejected { lane, offset, reason, message, raw, position }
        })
        .await
    }

    /// Bytes that were received and passed over.
    pub(crate) fn skip(&self, bytes: u64) {
        *lock(&self.offset) += bytes;
    }

    /// `event` is made and sent while the offset is held, so that positions rise in the order of the channel.
    async fn send(&self, length: u64, event: impl FnOnce(u64) -> SourceEvent) -> Result<(), Gone> {
        let events = lock(&self.events).clone().ok_or(Gone)?;
        let permit = match events.try_reserve() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                events.reserve().await.map_err(|_| Gone)?
            }
        };
        let mut offset = lock(&self.offset);
        permit.send(event(*offset));
        *offset += length;
        Ok(())
    }

    /// Tells the engine whenever nothing has come for a while, until the source has ended. Runs beside the source.
    pub(crate) async fn tell_idle(&self) {
        let (mut told, mut before) = (false, *lock(&self.offset));
        loop {
            let now = *lock(&self.offset);
            if now != before {
                (told, before) = (false, now);
            } else if !told && self.waiting.load(Ordering::Relaxed) == 0 {
                let Some(events) = lock(&self.events).clone() else { return };
                told = events.try_send(SourceEvent::Idle(Arc::clone(&self.lane))).is_ok();
            }
            tokio::time::sleep(IDLE_AFTER).await;
        }
    }

    /// Nothing more is handed over.
    pub(crate) fn close(&self) {
        lock(&self.events).take();
    }
}

/// Counts a task that waits, also when it is cancelled.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What these locks guard is whole at every step, so a panic of another holder does not matter.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many connections there may be at a time.
pub(crate) struct Admission {
    total: usize,
    per_address: usize,
    open: Mutex<Open>,
}

/// At most as many entries as there are connections.
#[derive(Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Admission {
    pub(crate) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, open: Mutex::default() })
    }

    /// A place for a connection, given back when the ticket is dropped; `None` where there is none left.
    pub(crate) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Ticket> {
        let address = address.map(network);
        let mut open = lock(&self.open);
        if open.total >= self.total {
            return None;
        }
        if let Some(address) = address {
            let count = open.by_address.entry(address).or_default();
            if *count >= self.per_address {
                return None;
            }
            *count += 1;
        }
        open.total += 1;
        Some(Ticket { admission: Arc::clone(self), address })
    }
}

/// One user of IPv6 has a whole /64, so that counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

/// The place of one connection.
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut open = lock(&self.admission.open);
        open.total -= 1;
        if let Some(address) = self.address
            && let Some(count) = open.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&address);
            }
        }
    }
}

/// The certificate that a listener shows, and whose clients it lets in.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsOptions {
    /// The file with the certificate and those that lead to its authority, in PEM.
    certificate: PathBuf,
    /// The file with its private key, in PEM.
    key: PathBuf,
    /// The file with the authorities of client certificates, in PEM. Where it is given, clients must show a certificate.
    #[serde(default)]
    client_ca: Option<PathBuf>,
}

impl TlsOptions {
    /// The same with relative paths taken from `folder`.
    #[must_use]
    pub(crate) fn within(&self, folder: &Path) -> Self {
        Self {
            certificate: folder.join(&self.certificate),
            key: folder.join(&self.key),
            client_ca: self.client_ca.as_ref().map(|path| folder.join(path)),
        }
    }

    /// Reads the files. TLS 1.2 and 1.3, with the ciphers that rustls offers.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, SourceError> {
        let provider = Arc::new(ring::default_provider());
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unreadable("key", &self.key, &error))?;
        let certificates = certificates("certificate", &self.certificate)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| SourceError(format!("cannot set up TLS: {error}")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in self::certificates("client_ca", path)? {
                    roots.add(authority).map_err(|error| unreadable("client_ca", path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unreadable("client_ca", path, &error))?)
            }
        };
        let config = builder.with_single_cert(certificates, key);
        let config = config.map_err(|error| unreadable("certificate", &self.certificate, &error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| unreadable(option, path, &error))?;
    if certificates.is_empty() {
        return Err(unreadable(option, path, &"there is no certificate in it; it must be in PEM"));
    }
    Ok(certificates)
}

fn unreadable(option: &str, path: &Path, error: &dyn std::fmt::Display) -> SourceError {
    SourceError(format!("cannot use {} as tls.{option}: {error}", path.display()))
}

/// A connection, whatever carries it.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
pub(crate) type Wire = Box<dyn Duplex>;

/// Where connections come from.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

impl Listener {
    async fn accept(&self) -> io::Result<(Wire, Option<IpAddr>)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Neither is needed to go on: answers are only a little later, dead peers are found by the timeout.
                let _ = stream.set_nodelay(true);
                let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                (Box::new(stream), Some(address.ip()))
            }
            Self::Unix { listener, .. } => (Box::new(listener.accept().await?.0), None),
        })
    }
}

/// Whom to let in, and how.
pub(crate) struct Gate {
    pub(crate) listener: Listener,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: ComponentMetrics,
}

impl Gate {
    /// Lets connections in until `stop`, each served by a task of its own. Never waits for a client: handshakes are part
    /// of those tasks.
    pub(crate) async fn serve<F, S>(self, stop: &CancellationToken, tasks: &TaskTracker, serve: F)
    where
        F: Fn(Wire) -> S + Clone + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let mut has_warned = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (wire, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.metrics.error("accept");
                    // These are the fault of one client that has left already; all others are the machine's.
                    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                        if !has_warned {
                            tracing::warn!("cannot accept connections: {error}; trying again every {ACCEPT_PAUSE:?}");
                            has_warned = true;
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            has_warned = false;
            let Some(ticket) = self.admission.admit(address) else {
                self.metrics.error("too_many_connections");
                continue;
            };
            let (tls, metrics, serve, stop) = (self.tls.clone(), self.metrics.clone(), serve.clone(), stop.clone());
            tasks.spawn(async move {
                let _ticket = ticket;
                let wire = match tls {
                    None => wire,
                    Some(tls) => {
                        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(wire));
                        let handshake = tokio::select! {
                            () = stop.cancelled() => return,
                            handshake = handshake => handshake,
                        };
                        match handshake {
                            Ok(Ok(wire)) => Box::new(wire) as Wire,
                            Ok(Err(error)) => {
                                tracing::debug!("a TLS handshake failed: {error}");
                                return metrics.error("tls_handshake");
                            }
                            Err(_) => return metrics.error("tls_handshake_timeout"),
                        }
                    }
                };
                serve(wire).await;
            });
        }
    }
}

/// What is wrong with an address to listen on.
pub(crate) fn address_problem(option: &str, address: &str) -> Option<Problem> {
    let well_formed = address.rsplit_once(':').is_some_and(|(host, port)| {
        let is_bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && !is_bare_v6 && port.parse::<u16>().is_ok()
    });
    (!well_formed).then(|| {
        Problem::new(option, format!("{address:?} is not an address to listen on"))
            .help("write host and port, as in \"0.0.0.0:5140\", \"127.0.0.1:5140\" or \"[::]:5140\"")
    })
}

pub(crate) async fn bind_tcp(address: &str) -> Result<TcpListener, SourceError> {
    listeners::tcp(address).await.map_err(|error| cannot_listen(address, &error))
}

/// A UDP socket whose receive buffer is as near to `receive_buffer` as the kernel allows.
pub(crate) async fn bind_udp(address: &str, receive_buffer: usize) -> Result<UdpSocket, SourceError> {
    let socket = listeners::udp(address).await.map_err(|error| cannot_listen(address, &error))?;
    use rustix::net::sockopt;
    // Beyond `net.core.rmem_max` only with CAP_NET_ADMIN; without it the kernel gives what it allows, silently.
    if sockopt::set_socket_recv_buffer_size_force(&socket, receive_buffer).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, receive_buffer);
    }
    // The kernel tells twice of what can be used.
    if let Ok(given) = sockopt::socket_recv_buffer_size(&socket)
        && given / 2 < receive_buffer
    {
        tracing::warn!(
            "the receive buffer of {address} is {} bytes instead of {receive_buffer}: raise net.core.rmem_max",
            given / 2
        );
    }
    Ok(socket)
}

fn cannot_listen(address: &str, error: &io::Error) -> SourceError {
    let port = address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let (what, way_out) = match error.kind() {
        io::ErrorKind::PermissionDenied if port.is_some_and(|port| port < 1024) => (
            "permission denied".to_owned(),
            "ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in the systemd unit); or choose a higher port",
        ),
        io::ErrorKind::PermissionDenied => ("permission denied".to_owned(), "check the permissions of its folder"),
        io::ErrorKind::AddrInUse => {
            ("it is in use".to_owned(), "stop the program that listens there (`ss -lntup` shows it) or choose another")
        }
        io::ErrorKind::AddrNotAvailable => {
            ("this machine does not have that address".to_owned(), "use 0.0.0.0 or [::] to listen on all of them")
        }
        io::ErrorKind::NotFound => ("its folder does not exist".to_owned(), "create it, or choose another"),
        _ => (error.to_string(), "check the address"),
    };
    SourceError(format!("cannot listen on {address}: {what}; {way_out}"))
}

/// A unix socket's place in the file system; removed when the source ends.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If it cannot be removed, the next start finds that nobody listens and removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the socket of a listener that is gone; anything else at its place is left alone.
fn make_way(path: &Path, somebody_listens: impl FnOnce() -> io::Result<()>) -> Result<(), SourceError> {
    let shown = path.display().to_string();
    let in_use = |what: &str| SourceError(format!("cannot listen on {shown}: {what}; choose another path"));
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(in_use("there is a file that is no socket")),
        Ok(_) => match somebody_listens() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| cannot_listen(&shown, &error))
            }
            _ => Err(in_use("another program listens there")),
        },
    }
}

/// Binds under another name and moves the socket to its place once its permissions are right, so that nobody can connect
/// before.
fn place<S>(
    path: &Path,
    permissions: u32,
    bind: impl FnOnce(&Path) -> io::Result<S>,
) -> Result<(S, SocketFile), SourceError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    // Left by a process that had this number and was killed just here.
    let _ = std::fs::remove_file(&temporary);
    let bound = bind(&temporary).and_then(|socket| {
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(permissions))?;
        std::fs::rename(&temporary, path)?;
        Ok(socket)
    });
    match bound {
        Ok(socket) => Ok((socket, SocketFile(path.to_owned()))),
        Err(error) => {
            let _ = std::fs::remove_file(&temporary);
            Err(cannot_listen(&path.display().to_string(), &error))
        }
    }
}

pub(crate) fn bind_unix_stream(path: &Path, permissions: u32) -> Result<(UnixListener, SocketFile), SourceError> {
    make_way(path, || std::os::unix::net::UnixStream::connect(path).map(drop))?;
    place(path, permissions, |path| UnixListener::bind(path))
}

pub(crate) fn bind_unix_datagram(path: &Path, permissions: u32) -> Result<(UnixDatagram, SocketFile), SourceError> {
    make_way(path, || std::os::unix::net::UnixDatagram::unbound()?.connect(path))?;
    place(path, permissions, |path| UnixDatagram::bind(path))
}

/// Permissions as `chmod` takes them: three or four octal digits.
pub(crate) fn permissions(option: &str, text: &str) -> Result<u32, Problem> {
    let parsed = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && text.len() >= 3);
    parsed.ok_or_else(|| {
        Problem::new(option, format!("{text:?} are no permissions")).help("write them in octal, as in \"0660\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_network_and_in_all() {
        let admission = Admission::new(3, 2);
        let admit = |address: &str| admission.admit(Some(address.parse().unwrap()));
        let first = admit("10.0.0.1");
        let second = admit("::ffff:10.0.0.1");
        assert!(first.is_some() && second.is_some());
        assert!(admit("10.0.0.1").is_none(), "two of one address");
        let third = admit("2001:db8::1");
        assert!(third.is_some());
        assert!(admit("10.0.0.2").is_none(), "three in all");
        drop((first, second));
        assert!(lock(&admission.open).by_address.len() == 1, "addresses without connections are forgotten");
        let fourth = admit("2001:db8::2");
        assert!(fourth.is_some());
        assert!(admit("2001:db8::ffff").is_none(), "two of one /64");
    }

    #[tokio::test]
    async fn what_cannot_be_bound_says_what_to_do() {
        let taken = bind_tcp("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = bind_tcp(&address).await.unwrap_err().to_string();
        let expected = "it is in use; stop the program that listens there (`ss -lntup` shows it) or choose another";
        assert_eq!(error, format!("cannot listen on {address}: {expected}"));
        let error = bind_udp("192.0.2.1:0", 1 << 16).await.unwrap_err().to_string();
        assert!(error.contains("this machine does not have that address"), "{error}");
        let denied = cannot_listen("127.0.0.1:514", &io::Error::from(io::ErrorKind::PermissionDenied)).to_string();
        assert!(denied.starts_with("cannot listen on 127.0.0.1:514: permission denied; ports below 1024"), "{denied}");
    }

    #[tokio::test]
    async fn a_socket_file_is_taken_over_only_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.sock");
        let (listener, file) = bind_unix_stream(&path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = bind_unix_stream(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("another program listens there"), "{error}");
        // As after a kill: the descriptor is gone, the file is not.
        drop(listener);
        std::mem::forget(file);
        assert!(path.exists());
        let (_listener, file) = bind_unix_stream(&path, 0o600).unwrap();
        drop(file);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        let error = bind_unix_datagram(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("there is a file that is no socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn addresses_are_checked_before_anything_is_bound() {
        for good in ["127.0.0.1:514", "[::]:5140", "localhost:0", "[::1]:65535"] {
            assert_eq!(address_problem("address", good), None, "{good}");
        }
        for bad in ["", "127.0.0.1", ":514", "::1:514", "host:70000", "tcp://host:1x"] {
            assert!(address_problem("address", bad).is_some(), "{bad}");
        }
    }
}
