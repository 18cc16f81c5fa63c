use std::io::Write as _;
use std::sync::Arc;

use serde_json::json;
use tocsin_pipeline::source::{SourceEvent, TooLong};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};

use super::*;
use crate::testing::{Running, TestContext, build, context, context_of};

fn config(options: &str) -> Config {
    let config: Config = toml::from_str(options).unwrap();
    assert_eq!(config.problems(), []);
    config
}

/// Opens and runs a source, and tells where it listens.
async fn listen(options: &str, test: TestContext) -> (Running, std::net::SocketAddr) {
    let build_context = &mut tocsin_pipeline::codec::PathTable::default();
    let build_context = BuildContext {
        name: "test".into(),
        paths: build_context,
        folder: PathBuf::new(),
        connected: Vec::new(),
        silences: [].into(),
        partition: None,
    };
    let mut streams = config(options).streams(&build_context);
    streams.open(&test.source).await.unwrap();
    let address = streams.address();
    (Running::run(Box::new(streams), test), address)
}

const TCP: &str = "mode = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
const UDP: &str = "mode = \"udp\"\naddress = \"127.0.0.1:0\"\n";

#[test]
fn what_does_not_go_together_is_told() {
    let problems = |options: &str| -> Vec<String> {
        let config: Config = toml::from_str(options).unwrap();
        config.problems().into_iter().map(|problem| problem.message).collect()
    };
    assert_eq!(problems("mode = \"tcp\""), ["`address` is missing"]);
    assert_eq!(problems("mode = \"unix\"\naddress = \"a:1\""), ["`path` is missing"]);
    assert_eq!(problems("mode = \"udp\"\naddress = \"a:1\"\npath = \"x\""), ["`path` is for unix sockets"]);
    assert_eq!(problems("mode = \"unix\"\npath = \"x\"\npermissions = \"999\""), ["\"999\" are no permissions"]);
    assert_eq!(
        problems("mode = \"udp\"\naddress = \"a:1\"\nframing = \"octet_counted\""),
        ["datagrams are not counted"]
    );
    let tls = "tls = { certificate = \"c\", key = \"k\" }";
    assert_eq!(problems(&format!("mode = \"udp\"\naddress = \"a:1\"\n{tls}")), ["TLS needs `mode = \"tcp\"`"]);
    assert_eq!(problems("mode = \"tcp\"\naddress = \"a:1\"\nmax_connections = 0"), ["must be at least 1"]);
}

#[tokio::test]
async fn lines_are_handed_on_as_soon_as_they_are_whole() {
    let (mut running, address) = listen(TCP, context()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"one\r\ntwo\nthr").await.unwrap();
    assert_eq!(running.told(2).await, ["one", "two"]);
    client.write_all(b"ee\nlast").await.unwrap();
    assert_eq!(running.told(1).await, ["three"]);
    drop(client);
    assert_eq!(running.told(1).await, ["last"]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_offset_counts_on_after_a_restart() {
    let mut test = context();
    test.source.positions.insert(String::new(), json!({ "offset": 100 }));
    let (mut running, address) = listen(TCP, test).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"one\n").await.unwrap();
    let block = running.whole_block().await;
    assert_eq!((block.base, block.position), (100, json!({ "offset": 104 })));
    drop(client);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"two\n").await.unwrap();
    let block = running.whole_block().await;
    assert_eq!((block.base, block.position), (104, json!({ "offset": 108 })));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_no_text_pass_unchanged() {
    let (mut running, address) = listen(TCP, context()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"\xff\x00\xfe\x80\n").await.unwrap();
    assert_eq!(running.block().await.0, b"\xff\x00\xfe\x80\n");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_line_that_never_ends_costs_no_memory_and_no_other_line() {
    let mut test = context();
    test.source.records.max_record_bytes = 1000;
    let (mut running, address) = listen(TCP, test).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let sender = tokio::spawn(async move {
        client.write_all(b"before\n").await.unwrap();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            client.write_all(&chunk).await.unwrap();
        }
        client.write_all(b"\nafter\n").await.unwrap();
        client
    });
    let told = running.told(3).await;
    assert_eq!((told[0].as_str(), told[2].as_str()), ("before", "after"));
    assert!(told[1].contains("longer than max_record_bytes"), "{}", told[1]);
    drop(sender.await.unwrap());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_cannot_count_is_cut_off() {
    let (mut running, address) = listen(&format!("{TCP}framing = \"octet_counted\""), context()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"3 a\nbGET / HTTP/1.1\r\n").await.unwrap();
    let told = running.told(2).await;
    assert!(told.contains(&"a\nb".to_owned()), "{told:?}");
    assert!(told.contains(&"<a record must begin with the count of its bytes and a space>".to_owned()), "{told:?}");
    // Closed, whether by its end or by a reset because it had sent more.
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(running.metrics.error_count("framing"), 1);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let (mut running, address) = listen(&format!("{TCP}max_connections_per_address = 2"), context()).await;
    let mut clients = Vec::new();
    for number in 0..2 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(format!("{number}\n").as_bytes()).await.unwrap();
        assert_eq!(running.told(1).await, [number.to_string()]);
        clients.push(client);
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    assert!(matches!(third.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(running.metrics.error_count("too_many_connections"), 1);
    clients[0].write_all(b"still here\n").await.unwrap();
    assert_eq!(running.told(1).await, ["still here"]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_quiet_connection_is_closed() {
    let (running, address) = listen(&format!("{TCP}connection_timeout = \"20ms\""), context()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(running.metrics.error_count("connection_timeout"), 1);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_busy_pipeline_makes_clients_wait_and_loses_nothing() {
    let (mut running, address) = listen(TCP, context_of(1)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let text: String = (0..200_000).map(|number| format!("{number:050}\n")).collect();
    let sent = text.clone();
    let sender = tokio::spawn(async move { client.write_all(sent.as_bytes()).await.map(drop) });
    let mut received = Vec::new();
    while received.len() < text.len() {
        received.extend(running.block().await.0);
    }
    assert!(received == text.as_bytes());
    sender.await.unwrap().unwrap();
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_connections_of_a_source_meet_only_between_records() {
    let (mut running, address) = listen(TCP, context_of(4)).await;
    for client in 0..8 {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            for number in 0..500 {
                // In two parts, so that lines are often cut between reads.
                stream.write_all(format!("{client} {number}").as_bytes()).await.unwrap();
                stream.write_all(b" end\n").await.unwrap();
            }
        });
    }
    let (mut next, mut offset) = ([0; 8], 0);
    while next.iter().sum::<usize>() < 4000 {
        let block = running.whole_block().await;
        assert_eq!(block.base, offset, "offsets rise without a gap");
        offset = block.position["offset"].as_u64().unwrap();
        for record in crate::testing::records_of(&block) {
            let (client, rest) = record.split_once(' ').unwrap();
            let client: usize = client.parse().unwrap();
            assert_eq!(rest, format!("{} end", next[client]), "client {client}");
            next[client] += 1;
        }
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn stopping_takes_what_had_arrived_and_no_half_line() {
    let (running, address) = listen(TCP, context()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"first\n").await.unwrap();
    let mut running = running;
    assert_eq!(running.told(1).await, ["first"]);
    // Written in full before the stop, so it is in the kernel's hands.
    client.write_all(b"second\nhalf").await.unwrap();
    let told = running.stop_and_tell().await;
    assert_eq!(told, ["second", "<the connection was cut in the middle of a record>"]);
}

#[tokio::test]
async fn a_datagram_is_a_record_or_several_lines() {
    let (mut running, address) = listen(UDP, context()).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(b"one", address).await.unwrap();
    client.send_to(b"two\nthree\n", address).await.unwrap();
    client.send_to(b"", address).await.unwrap();
    client.send_to(b"\xff", address).await.unwrap();
    assert_eq!(running.told(4).await, ["one", "two", "three", "\u{fffd}"]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_datagram_that_is_too_long_is_cut_or_refused() {
    for (too_long, expected) in
        [(TooLong::Truncate, "xxxxxxxxxx"), (TooLong::Reject, "<longer than max_record_bytes, which is 10>")]
    {
        let mut test = context();
        test.source.records.max_record_bytes = 10;
        test.source.records.too_long = too_long;
        let (mut running, address) = listen(UDP, test).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&[b'x'; 60_000], address).await.unwrap();
        assert_eq!(running.told(1).await, [expected]);
        running.stop().await.unwrap();
    }
}

#[tokio::test]
async fn unix_sockets_carry_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.sock");
    for mode in ["unix", "unix_datagram"] {
        let options = format!("mode = \"{mode}\"\npath = {:?}\npermissions = \"0600\"", path.to_str().unwrap());
        let mut running = Running::start(build(&config(&options)), context()).await;
        if mode == "unix" {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"hello\n").await.unwrap();
            assert_eq!(running.told(1).await, ["hello"]);
        } else {
            let client = UnixDatagram::unbound().unwrap();
            client.send_to(b"hello", &path).await.unwrap();
            assert_eq!(running.told(1).await, ["hello"]);
        }
        running.stop().await.unwrap();
        assert!(!path.exists(), "the file goes with the source");
    }
}

#[tokio::test]
async fn a_source_that_hears_nothing_says_so_once() {
    let (mut running, address) = listen(TCP, context()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"one\n").await.unwrap();
    assert_eq!(running.told(1).await, ["one"]);
    assert!(matches!(running.any_event().await, Some(SourceEvent::Idle(_))));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn when_the_pipeline_is_gone_the_source_ends() {
    let TestContext { source, events } = context();
    let mut streams = build(&config(TCP));
    streams.open(&source).await.unwrap();
    let running = tokio::spawn(streams.run(source));
    drop(events);
    assert_eq!(running.await.unwrap().unwrap_err().to_string(), "the pipeline has stopped");
}

/// A certificate for `localhost` signed by an authority of its own, as files.
struct Certificates {
    folder: tempfile::TempDir,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        let certificates = Self { folder: tempfile::tempdir().unwrap(), authority };
        certificates.write("ca.pem", certificates.authority.pem().as_bytes());
        certificates.issue("server");
        certificates.issue("client");
        certificates
    }

    fn issue(&self, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.authority).unwrap();
        self.write(&format!("{name}.pem"), certificate.pem().as_bytes());
        self.write(&format!("{name}.key"), key.serialize_pem().as_bytes());
    }

    fn write(&self, name: &str, text: &[u8]) {
        std::fs::File::create(self.path(name)).unwrap().write_all(text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn connect(
        &self,
        address: std::net::SocketAddr,
        shows_certificate: bool,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let config = if shows_certificate {
            let certificate = CertificateDer::from_pem_file(self.path("client.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(self.path("client.key")).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let stream = TcpStream::connect(address).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
    }
}

#[tokio::test]
async fn tls_lets_in_who_shows_a_certificate_and_waits_for_nobody() {
    let certificates = Certificates::new();
    let path = |name| certificates.path(name).to_str().unwrap().to_owned();
    let options = format!(
        "{TCP}tls = {{ certificate = {:?}, key = {:?}, client_ca = {:?} }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let (mut running, address) = listen(&options, context()).await;
    // Says nothing, and holds nobody up.
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut client = certificates.connect(address, true).await.unwrap();
    client.write_all(b"hello\n").await.unwrap();
    assert_eq!(running.told(1).await, ["hello"]);
    // With TLS 1.3 the client learns only after its handshake that it is not wanted.
    if let Ok(mut stranger) = certificates.connect(address, false).await {
        let _ = stranger.write_all(b"let me in\n").await;
        assert!(matches!(stranger.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    assert_eq!(running.metrics.error_count("tls_handshake"), 1);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_told_of_before_anything_runs() {
    let certificates = Certificates::new();
    let missing = certificates.path("missing.pem");
    let options = format!("{TCP}tls = {{ certificate = {missing:?}, key = {:?} }}", certificates.path("server.key"));
    let error = build(&config(&options)).open(&context().source).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot use {} as tls.certificate: ", missing.display())), "{error}");
}
