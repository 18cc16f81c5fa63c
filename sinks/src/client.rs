//! The HTTP client of all sinks that speak HTTP, and the TLS settings of all that connect: bounded in time and in what it
//! reads, following no redirects, and connecting only to addresses that its owner allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as LegacyClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;

/// How connections are encrypted. Host names are always checked; there is no way to switch that off.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsConfig {
    /// A PEM file of the authorities that may have signed the peer's certificate. Default: those the machine trusts.
    pub(crate) ca: Option<PathBuf>,
    /// A PEM file of the certificate chain to show to the peer. Needs `key`.
    pub(crate) certificate: Option<PathBuf>,
    /// A PEM file of the private key of `certificate`.
    pub(crate) key: Option<PathBuf>,
}

impl TlsConfig {
    /// What is wrong with it, told of the option `tls`.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        match (&self.certificate, &self.key) {
            (Some(_), None) => vec![Problem::new("tls.certificate", "a certificate needs its `key`")],
            (None, Some(_)) => vec![Problem::new("tls.key", "a key needs its `certificate`")],
            _ => Vec::new(),
        }
    }

    /// Paths that do not begin at the root begin at the folder of the configuration.
    #[must_use]
    pub(crate) fn within(&self, folder: &std::path::Path) -> Self {
        let within = |path: &Option<PathBuf>| path.as_ref().map(|path| folder.join(path));
        Self { ca: within(&self.ca), certificate: within(&self.certificate), key: within(&self.key) }
    }

    /// Reads the files. The error names the file.
    pub(crate) fn load(&self) -> Result<ClientConfig, String> {
        let roots = match &self.ca {
            None => Arc::clone(native_roots()),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
                Arc::new(roots)
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring offers the cipher suites of TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| format!("{}: {error}", certificate.display()))
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error: rustls::pki_types::pem::Error| told(&error))?;
    if chain.is_empty() {
        return Err(told(&"holds no certificate"));
    }
    Ok(chain)
}

/// The authorities that the machine trusts, read once. None of them may be readable: then every peer is refused, and says
/// so when it is connected to.
fn native_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "reading the machine's trusted certificates");
        }
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    })
}

/// Which addresses may be connected to.
pub(crate) type AddressRule = fn(IpAddr) -> bool;

/// Every address: for peers that the configuration names outright.
pub(crate) fn any_address(_: IpAddr) -> bool {
    true
}

/// Whether an address is one of the public internet: not of this machine, of a private network, or of special use.
pub(crate) fn is_public(address: IpAddr) -> bool {
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

/// A request did not lead to a response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Nothing was sent. Trying again repeats nothing.
    #[error("connecting: {0}")]
    Unreachable(String),
    /// The name resolves to no address that may be connected to. Trying again is of little use until the name changes.
    #[error("{0} is at no address that may be connected to")]
    Forbidden(String),
    /// No complete response in time: the request may or may not have been acted upon.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke: the request may or may not have been acted upon.
    #[error("{0}")]
    Broken(String),
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The first bytes of the body, at most as many as asked for.
    pub(crate) body: Bytes,
}

impl Response {
    /// What the peer said, in one printable line: for logs and dead letters.
    pub(crate) fn told(&self) -> String {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]);
        let body: String =
            body.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect::<String>();
        format!("{} {}", self.status, body.trim()).trim_end().to_owned()
    }

    /// How long the peer asks to be left alone.
    pub(crate) fn retry_after(&self, now: tocsin_pipeline::time::Timestamp) -> Option<Duration> {
        crate::retry::retry_after(self.headers.get(hyper::header::RETRY_AFTER)?.to_str().ok()?, now)
    }
}

/// Sends requests; keeps idle connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    inner: LegacyClient<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    allowed: AddressRule,
}

impl Client {
    pub(crate) fn new(tls: ClientConfig, allowed: AddressRule) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver { allowed });
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(10)));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let inner = LegacyClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(8)
            // A request is retried by its sink, which counts it and waits, never behind its back.
            .retry_canceled_requests(false)
            .http1_max_buf_size(64 * 1024)
            .build(https);
        Self { inner, allowed }
    }

    /// Sends one request and reads at most `body_max` bytes of the response's body, all within `timeout`. Redirects are
    /// responses like others.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
        body_max: usize,
    ) -> Result<Response, RequestError> {
        // An address written out is not resolved, so the resolver would not see it.
        if let Some(address) = literal_address(request.uri())
            && !(self.allowed)(address)
        {
            return Err(RequestError::Forbidden(address.to_string()));
        }
        tokio::time::timeout(timeout, self.exchange(request, body_max))
            .await
            .unwrap_or(Err(RequestError::Timeout(timeout)))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, body_max: usize) -> Result<Response, RequestError> {
        let response = self.inner.request(request).await.map_err(|error| {
            let told = chain(&error);
            match error.is_connect() {
                true if told.contains(FORBIDDEN) => RequestError::Forbidden("the host".to_owned()),
                true => RequestError::Unreachable(told),
                false => RequestError::Broken(told),
            }
        })?;
        let (head, mut body) = response.into_parts();
        let mut read = BytesMut::new();
        while read.len() < body_max && !body.is_end_stream() {
            match body.frame().await {
                None => break,
                Some(Err(error)) => return Err(RequestError::Broken(chain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        read.extend_from_slice(&data[..data.len().min(body_max - read.len())]);
                    }
                }
            }
        }
        Ok(Response { status: head.status, headers: head.headers, body: read.freeze() })
    }
}

/// Whether a URL may lead to an address that the rule allows, as far as it says itself; what names resolve to is seen when they do.
pub(crate) fn may_lead_to(uri: &Uri, allowed: AddressRule) -> bool {
    let host = uri.host().unwrap_or_default().trim_end_matches('.').to_lowercase();
    // These are of this machine everywhere (RFC 6761).
    let is_local = host == "localhost" || host.ends_with(".localhost");
    let address = if is_local { Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { literal_address(uri) };
    address.is_none_or(allowed)
}

fn literal_address(uri: &Uri) -> Option<IpAddr> {
    uri.host()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told.push_str(": ");
            told.push_str(&text);
        }
        cause = error.source();
    }
    told
}

/// How the resolver says that a rule left no address; found again in the error of the connection.
const FORBIDDEN: &str = "no address of the host may be connected to";

/// Resolves names with the machine's resolver and keeps the addresses that may be connected to. What is connected to is
/// what was checked: the name is not resolved again.
#[derive(Clone)]
struct Resolver {
    allowed: AddressRule,
}

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let allowed = self.allowed;
        let resolved: BoxFuture<'static, _> = Box::pin(async move {
            // The connector puts the port of the URL in place of 0.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<_> = found.filter(|address| allowed(address.ip())).collect();
            if addresses.is_empty() {
                return Err(std::io::Error::other(FORBIDDEN));
            }
            Ok(addresses.into_iter())
        });
        resolved
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve_once(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        address
    }

    fn client(allowed: AddressRule) -> Client {
        Client::new(TlsConfig::default().load().unwrap(), allowed)
    }

    fn request(url: &str) -> Request<Full<Bytes>> {
        Request::post(url).body(Full::new(Bytes::from_static(b"x"))).unwrap()
    }

    const SECONDS: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_response_is_read_up_to_the_bound() {
        let address = serve_once(b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 10\r\n\r\n0123456789").await;
        let response = client(any_address).send(request(&format!("http://{address}/")), SECONDS, 4).await.unwrap();
        assert_eq!(response.told(), "503 Service Unavailable 0123");
        assert_eq!(response.retry_after(tocsin_pipeline::time::Timestamp(0)), Some(Duration::from_secs(7)));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let address = serve_once(b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n").await;
        let response = client(any_address).send(request(&format!("http://{address}/")), SECONDS, 4).await.unwrap();
        assert_eq!(response.status, StatusCode::FOUND);
    }

    #[tokio::test]
    async fn an_address_that_is_not_allowed_is_not_connected_to_by_number_or_by_name() {
        let public = |address: IpAddr| !address.is_loopback();
        for url in ["http://127.0.0.1:9/", "http://[::1]:9/", "http://localhost:9/"] {
            let error = client(public).send(request(url), SECONDS, 4).await.unwrap_err();
            assert!(matches!(error, RequestError::Forbidden(_)), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn what_broke_on_the_way_is_told_from_what_was_never_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = client(any_address).send(request(&format!("http://{address}/")), SECONDS, 4).await.unwrap_err();
        assert!(matches!(error, RequestError::Unreachable(_)), "{error}");
        let address = serve_once(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0").await;
        let error = client(any_address).send(request(&format!("http://{address}/")), SECONDS, 99).await.unwrap_err();
        assert!(matches!(error, RequestError::Broken(_)), "{error}");
    }

    #[tokio::test]
    async fn a_peer_that_never_answers_is_given_up_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let error = client(any_address).send(request(&url), Duration::from_millis(20), 4).await.unwrap_err();
        assert!(matches!(error, RequestError::Timeout(_)), "{error}");
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tls = TlsConfig { ca: Some(file.path().to_owned()), ..TlsConfig::default() };
        assert_eq!(tls.load().unwrap_err(), format!("{}: holds no certificate", file.path().display()));
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
}
