//! What the harness for tests with Kafka promises: a real broker that can be killed, and a proxy that makes things go wrong.
//!
//! Those with a broker are skipped by name until `tests/kafka/fetch` has been run; `tests/kafka/run` skips nothing.
#![allow(clippy::disallowed_methods, reason = "brokers live in real time")]

mod support;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::kafka::{Cluster, Isolation, Message, Record, Setup, is_missing};
use support::proxy::{Api, Fault, Faults, Proxy, When};

fn start(setup: Setup) -> Cluster {
    let begin = Instant::now();
    let cluster = Cluster::start_with(setup);
    println!("{setup:?}: started in {:.1} s", begin.elapsed().as_secs_f64());
    cluster
}

fn records() -> Vec<Record> {
    vec![
        Record::new(Some("k"), Some("v")),
        Record::new(Some("k"), None),
        Record::new(None, Some("")),
        Record::new(Some(""), Some("tab\tand: colon, comma")).with_header("a", Some("1")).with_header("a", None),
        Record::new(None, Some("null")).with_header("trace", Some("x:y,z")),
        "plain text, ünïcode".into(),
    ]
}

fn contents(messages: &[Message]) -> Vec<Record> {
    messages.iter().map(|message| message.record.clone()).collect()
}

#[test]
fn what_is_written_is_read_by_either_client_and_survives_a_kill() {
    if is_missing("what_is_written_is_read_by_either_client_and_survives_a_kill") {
        return;
    }
    let cluster = start(Setup::default());
    cluster.create_topic("t", 1);
    cluster.produce("t", 0, records());
    cluster.console_producer("t", records());
    let expected = [records(), records()].concat();
    let read = cluster.read_committed("t");
    assert_eq!(contents(&read), expected);
    assert!(read.iter().zip(0..).all(|(message, offset)| message.offset == offset && message.timestamp.is_some()));
    assert_eq!(cluster.console_consumer("t", Isolation::Committed, expected.len()), read);
    cluster.node(0).kill();
    let begin = Instant::now();
    cluster.node(0).restart();
    println!("restarted in {:.1} s", begin.elapsed().as_secs_f64());
    assert_eq!(cluster.read_committed("t"), read);
}

#[test]
fn a_transaction_is_seen_when_it_is_committed_and_its_offsets_with_it() {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
    use rdkafka::{Offset, TopicPartitionList};

    if is_missing("a_transaction_is_seen_when_it_is_committed_and_its_offsets_with_it") {
        return;
    }
    let cluster = Cluster::shared();
    cluster.create_topic("transactions", 2);
    let mut config = cluster.client();
    let producer: ThreadedProducer<DefaultProducerContext> =
        config.clone().set("transactional.id", "transactions").create().unwrap();
    let group: BaseConsumer = config.set("group.id", "transactions").create().unwrap();
    producer.init_transactions(Duration::from_secs(30)).unwrap();
    let write = |payload: &str| {
        producer.begin_transaction().unwrap();
        let record = BaseRecord::to("transactions").partition(1).key("k").payload(payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    write("aborted");
    producer.abort_transaction(Duration::from_secs(30)).unwrap();
    assert_eq!(cluster.committed_offset("transactions", "transactions", 0), None);
    write("committed");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("transactions", 0, Offset::Offset(7)).unwrap();
    offsets.find_partition("transactions", 0).unwrap().set_metadata("epoch=3");
    let metadata = group.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&offsets, &metadata, Duration::from_secs(30)).unwrap();
    assert_eq!(cluster.read_committed("transactions"), [], "it is still open");
    let uncommitted = cluster.read("transactions", Isolation::Uncommitted);
    assert_eq!(uncommitted.iter().map(Message::text).collect::<Vec<_>>(), ["aborted", "committed"]);
    producer.commit_transaction(Duration::from_secs(30)).unwrap();
    assert_eq!(cluster.committed_offset("transactions", "transactions", 0), Some((7, "epoch=3".to_owned())));
    let committed = cluster.read_committed("transactions");
    assert_eq!(committed, uncommitted[1..]);
    assert_eq!(cluster.console_consumer("transactions", Isolation::Committed, 1), committed);
    let groups = cluster.consumer_groups(&["--describe", "--group", "transactions"]);
    assert!(groups.contains("transactions"), "{groups}");
}

#[test]
fn kafkas_own_measurements_run() {
    if is_missing("kafkas_own_measurements_run") {
        return;
    }
    let cluster = Cluster::shared();
    cluster.create_topic("measured", 2);
    let produced = cluster.perf_producer("measured", 20_000, 100, &["linger.ms=5", "compression.type=zstd"]);
    assert!(produced.starts_with("20000 records sent"), "{produced}");
    let consumed = cluster.perf_consumer("measured", 20_000, &["isolation.level=read_committed"]);
    assert_eq!(consumed.split(", ").count(), 10, "{consumed}");
    println!("{produced}\n{consumed}");
}

#[test]
fn of_three_nodes_one_may_be_away() {
    if is_missing("of_three_nodes_one_may_be_away") {
        return;
    }
    let cluster = start(Setup { nodes: 3, ..Setup::default() });
    cluster.create_topic("t", 3);
    cluster.produce("t", 0, ["before"]);
    let leader = cluster.leader("t", 0);
    cluster.node(leader).kill();
    let begin = Instant::now();
    cluster.produce("t", 0, ["while it is away"]);
    println!("produced {:.1} s after the leader was killed", begin.elapsed().as_secs_f64());
    assert_ne!(cluster.leader("t", 0), leader);
    let begin = Instant::now();
    cluster.node(leader).restart();
    println!("restarted in {:.1} s", begin.elapsed().as_secs_f64());
    cluster.produce("t", 0, ["after"]);
    let texts: Vec<_> = cluster.read_committed("t").iter().map(Message::text).collect();
    assert_eq!(texts, ["before", "while it is away", "after"]);
}

#[test]
fn a_client_comes_in_by_tls_and_password() {
    if is_missing("a_client_comes_in_by_tls_and_password") {
        return;
    }
    use support::kafka::{PASSWORD, USER};

    let cluster = start(Setup { is_secure: true, ..Setup::default() });
    cluster.create_topic("t", 1);
    let folder = tempfile::tempdir().unwrap();
    let bootstrap = cluster.bootstrap_secure();
    for (mechanism, module) in [
        ("PLAIN", "plain.PlainLoginModule"),
        ("SCRAM-SHA-256", "scram.ScramLoginModule"),
        ("SCRAM-SHA-512", "scram.ScramLoginModule"),
    ] {
        let list = |password: &str| {
            let settings = format!(
                "security.protocol=SASL_SSL\nsasl.mechanism={mechanism}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
                 sasl.jaas.config=org.apache.kafka.common.security.{module} required username=\"{USER}\" password=\"{password}\";\n",
                cluster.authority().display(),
            );
            let path = folder.path().join("client.properties");
            std::fs::write(&path, settings).unwrap();
            let arguments = ["--bootstrap-server", &bootstrap, "--list", "--command-config", path.to_str().unwrap()];
            cluster.try_tool("org.apache.kafka.tools.TopicCommand", &arguments, b"")
        };
        assert_eq!(list(PASSWORD), Ok("t\n".to_owned()), "{mechanism}");
        let refused = list("another").unwrap_err();
        assert!(refused.contains("SaslAuthenticationException"), "{mechanism}: {refused}");
    }
}

#[test]
fn a_client_of_proxied_nodes_stays_behind_the_proxies() {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    if is_missing("a_client_of_proxied_nodes_stays_behind_the_proxies") {
        return;
    }
    let cluster = start(Setup::default());
    cluster.create_topic("t", 1);
    let mut config = cluster.client();
    config.set("bootstrap.servers", cluster.bootstrap_proxied());
    let write = |payload: &str, is_idempotent: bool| {
        let producer: BaseProducer =
            config.clone().set("enable.idempotence", is_idempotent.to_string()).create().unwrap();
        producer.send(BaseRecord::<str, str>::to("t").payload(payload)).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    // The broker has it, the client does not know, and what comes again is known by its number, or is not.
    for is_idempotent in [true, false] {
        cluster.faults().inject(Api::Produce, 1, When::After, Fault::Cut);
        write(&format!("idempotent: {is_idempotent}"), is_idempotent);
    }
    cluster.faults().inject(Api::Produce, 1, When::Before, Fault::Reset);
    write("reset", false);
    let texts: Vec<_> = cluster.read_committed("t").iter().map(Message::text).collect();
    assert_eq!(texts, ["idempotent: true", "idempotent: false", "idempotent: false", "reset"]);
    let faults = cluster.faults();
    assert_eq!((faults.struck(), faults.seen()[&Api::Produce]), (3, 6), "{:?}", faults.seen());
    println!("{:?}", faults.seen());
}

/// A broker that answers each request with its number and nothing else, and remembers the kinds of those it got.
struct Echo {
    address: SocketAddr,
    got: Arc<Mutex<Vec<i16>>>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::<Mutex<Vec<i16>>>::default();
        let shared = Arc::clone(&got);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, got) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || {
                    let mut request = [0; 12];
                    while stream.read_exact(&mut request).is_ok() {
                        let key = i16::from_be_bytes([request[4], request[5]]);
                        got.lock().unwrap().push(key);
                        // A request that wants no answer.
                        if request[6..8] == [0, 1] {
                            continue;
                        }
                        if stream.write_all(&[&4_i32.to_be_bytes(), &request[8..12]].concat()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, got }
    }

    fn got(&self) -> Vec<i16> {
        self.got.lock().unwrap().clone()
    }
}

/// A proxy before an [`Echo`], and a client of it.
struct Scene {
    echo: Echo,
    faults: Arc<Faults>,
    proxy: Proxy,
    client: TcpStream,
}

impl Scene {
    fn start() -> Self {
        let (echo, faults) = (Echo::start(), Arc::<Faults>::default());
        let proxy = Proxy::start(echo.address, Arc::clone(&faults));
        let client = TcpStream::connect(proxy.address()).unwrap();
        Self { echo, faults, proxy, client }
    }

    fn reconnect(&mut self) {
        self.client = TcpStream::connect(self.proxy.address()).unwrap();
    }

    fn send(&self, key: i16, version: i16, number: i32) {
        let frame =
            [&8_i32.to_be_bytes()[..], &key.to_be_bytes(), &version.to_be_bytes(), &number.to_be_bytes()].concat();
        (&self.client).write_all(&frame).unwrap();
    }

    /// The number that the next answer repeats.
    fn answer(&self) -> io::Result<i32> {
        let mut answer = [0; 8];
        (&self.client).read_exact(&mut answer)?;
        Ok(i32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]))
    }

    fn ask(&self, key: i16, number: i32) -> Result<i32, io::ErrorKind> {
        self.send(key, 0, number);
        self.answer().map_err(|error| error.kind())
    }
}

const PRODUCE: i16 = 0;
const END_TXN: i16 = 26;

#[test]
fn a_proxy_without_rules_passes_everything_on_and_counts_it() {
    let scene = Scene::start();
    for number in 0..3 {
        assert_eq!(scene.ask(PRODUCE, number), Ok(number));
    }
    assert_eq!(scene.ask(END_TXN, 9), Ok(9));
    assert_eq!(scene.faults.seen(), BTreeMap::from([(Api::Produce, 3), (Api::EndTxn, 1)]));
}

#[test]
fn a_rule_for_an_answer_that_is_not_wanted_does_not_strike_another_one() {
    let scene = Scene::start();
    scene.faults.inject(Api::Produce, 1, When::After, Fault::Cut);
    scene.send(PRODUCE, 1, 1);
    assert_eq!(scene.ask(77, 2), Ok(2));
    assert_eq!(scene.faults.seen(), BTreeMap::from([(Api::Produce, 1), (Api::Other(77), 1)]));
    assert_eq!(scene.faults.struck(), 0);
}

#[test]
fn a_cut_before_the_broker_loses_the_request_and_one_after_it_the_answer() {
    let mut scene = Scene::start();
    scene.faults.inject(Api::EndTxn, 2, When::Before, Fault::Cut);
    scene.faults.inject(Api::EndTxn, 3, When::After, Fault::Cut);
    assert_eq!(scene.ask(END_TXN, 1), Ok(1));
    assert_eq!(scene.ask(PRODUCE, 2), Ok(2));
    assert_eq!(scene.ask(END_TXN, 3), Err(io::ErrorKind::UnexpectedEof));
    assert_eq!((scene.echo.got(), scene.faults.struck()), (vec![END_TXN, PRODUCE], 1));
    scene.reconnect();
    assert_eq!(scene.ask(END_TXN, 4), Err(io::ErrorKind::UnexpectedEof));
    assert_eq!((scene.echo.got(), scene.faults.struck()), (vec![END_TXN, PRODUCE, END_TXN], 2));
    scene.reconnect();
    assert_eq!(scene.ask(END_TXN, 5), Ok(5));
}

#[test]
fn a_reset_is_told_to_the_client_as_one() {
    let mut scene = Scene::start();
    for when in [When::Before, When::After] {
        scene.faults.inject(Api::Produce, 1, when, Fault::Reset);
        assert_eq!(scene.ask(PRODUCE, 1), Err(io::ErrorKind::ConnectionReset), "{when:?}");
        scene.reconnect();
    }
    assert_eq!(scene.echo.got(), [PRODUCE]);
}

#[test]
fn a_delay_holds_what_comes_behind_it_in_order() {
    let scene = Scene::start();
    for when in [When::Before, When::After] {
        let begin = Instant::now();
        scene.faults.inject(Api::EndTxn, 1, when, Fault::Delay(Duration::from_millis(60)));
        scene.send(END_TXN, 0, 1);
        scene.send(PRODUCE, 0, 2);
        assert_eq!((scene.answer().unwrap(), scene.answer().unwrap()), (1, 2));
        assert!(begin.elapsed() >= Duration::from_millis(60), "{when:?}");
    }
}

#[test]
fn in_silence_nothing_is_answered_on_any_connection_and_afterwards_all_is_well() {
    let mut scene = Scene::start();
    let length = Duration::from_millis(100);
    scene.faults.inject(Api::Produce, 1, When::After, Fault::Silence(length));
    let begin = Instant::now();
    scene.send(PRODUCE, 0, 1);
    support::wait_for("the silence", || scene.faults.struck() == 1);
    let taken = TcpStream::connect(scene.proxy.address()).unwrap();
    assert_eq!(scene.answer().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(begin.elapsed() >= length);
    assert_eq!((&taken).read(&mut [0]).unwrap(), 0, "it led nowhere, and is closed");
    assert_eq!(scene.echo.got(), [PRODUCE]);
    scene.reconnect();
    assert_eq!(scene.ask(PRODUCE, 2), Ok(2));
}

#[test]
fn connections_end_when_the_test_the_broker_or_the_proxy_says_so() {
    let mut scene = Scene::start();
    assert_eq!(scene.ask(PRODUCE, 1), Ok(1));
    scene.faults.cut_all();
    assert_eq!(scene.answer().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    scene.reconnect();
    assert_eq!(scene.ask(PRODUCE, 2), Ok(2));
    let Scene { proxy, client, .. } = scene;
    drop(proxy);
    assert_eq!((&client).read(&mut [0]).unwrap(), 0);
    // Nobody is behind it.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(nobody, Arc::default());
    assert_eq!(TcpStream::connect(proxy.address()).unwrap().read(&mut [0]).unwrap(), 0);
}
