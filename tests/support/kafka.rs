//! A cluster of real Apache Kafka brokers for tests: processes of Java on free ports of the loopback, gone with the test.
//!
//! The jars come from `tests/kafka/fetch` and stay in `target/kafka-VERSION`. Tests that need a broker are skipped by name
//! until they are there: run that script once, or `tests/kafka/run`, which skips nothing. `TOCSIN_KAFKA_FETCH=1` lets the
//! tests fetch them; with `TOCSIN_NO_SKIP` they do so too, and where they cannot be had that is an error.
//!
//! Each node listens at three places, and at a fourth where security is wanted:
//! `CLIENT` for tests and other nodes, `PROXIED` for the program (it advertises the address of a [`Proxy`], so that every
//! connection a client opens leads through it), `CONTROLLER` for the quorum, `SECURE` for clients with TLS and a password.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientContext, Message as _};

use super::proxy::{Faults, Proxy};

/// How long anything may take that a broker is asked for: a machine with two busy cores is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sixteen bytes, as formatting wants them: "tocsin-tests-001".
const CLUSTER_ID: &str = "dG9jc2luLXRlc3RzLTAwMQ";

/// Those of the archive of classes that `tests/kafka/fetch` makes. The log of the JVM is off as it goes to where tools answer.
const JAVA_OPTIONS: [&str; 3] = ["-XX:+UseSerialGC", "-Xmx384m", "-Xlog:disable"];

/// For what ends soon, or is not measured: the compiler that starts quickly, whose code is slower.
const QUICK_START: &str = "-XX:TieredStopAtLevel=1";

/// The user whom `SECURE` lets in, by PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
pub const USER: &str = "tocsin";
pub const PASSWORD: &str = "a secret";

/// What parts the fields of Kafka's console tools: characters that no test sends.
const FIELD: &str = "\u{1f}";
const LINE: &str = "\u{1e}";
const HEADER: &str = "\u{1d}";
const HEADER_VALUE: &str = "\u{1c}";
const NULL: &str = "\u{1a}";

/// The folder with jars and archive, or why there is none. Asked for once in a process.
fn release() -> Result<&'static Path, String> {
    static RELEASE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    RELEASE.get_or_init(find_release).as_ref().map(PathBuf::as_path).map_err(String::clone)
}

fn find_release() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pom = fs::read_to_string(root.join("tests/kafka/pom.xml")).unwrap();
    let version = pom.split("<kafka.version>").nth(1).and_then(|rest| rest.split('<').next()).unwrap();
    let is_there = root.join(format!("target/kafka-{version}/libs")).exists();
    let may_fetch = ["TOCSIN_KAFKA_FETCH", "TOCSIN_NO_SKIP"].iter().any(|name| std::env::var_os(name).is_some());
    if !has_program("java", "-version") {
        return Err("java is not installed".to_owned());
    }
    if !is_there && !may_fetch {
        return Err(format!("Kafka {version} has not been fetched; run tests/kafka/fetch"));
    }
    if !is_there && !has_program("mvn", "--version") {
        return Err("mvn is not installed".to_owned());
    }
    // It is asked in any case, as it knows what else belongs to a whole folder.
    let output = Command::new("bash").arg(root.join("tests/kafka/fetch")).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("running tests/kafka/fetch: {error}"))?;
    if !output.status.success() {
        return Err(format!("Kafka {version} cannot be fetched: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end()))
}

fn has_program(name: &str, argument: &str) -> bool {
    let status = Command::new(name).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Why tests with a broker cannot be run here.
pub fn obstacle() -> Option<String> {
    release().err()
}

/// Whether a test with a broker cannot be run here; where it must be, that is an error.
pub fn is_missing(test: &str) -> bool {
    let Some(why) = obstacle() else { return false };
    assert!(std::env::var_os("TOCSIN_NO_SKIP").is_none(), "{test}: {why}");
    println!("skipped: {test}: {why}");
    true
}

/// What is written to a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    pub fn new(key: Option<&str>, payload: Option<&str>) -> Self {
        let owned = |text: Option<&str>| text.map(|text| text.as_bytes().to_vec());
        Self { key: owned(key), payload: owned(payload), headers: Vec::new() }
    }

    pub fn with_header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.push((name.to_owned(), value.map(|value| value.as_bytes().to_vec())));
        self
    }
}

impl From<&str> for Record {
    fn from(payload: &str) -> Self {
        Self::new(None, Some(payload))
    }
}

impl From<String> for Record {
    fn from(payload: String) -> Self {
        Self::from(payload.as_str())
    }
}

impl From<(&str, &str)> for Record {
    fn from((key, payload): (&str, &str)) -> Self {
        Self::new(Some(key), Some(payload))
    }
}

/// What is read from a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds of the epoch; absent where the record has none.
    pub timestamp: Option<i64>,
    pub record: Record,
}

impl Message {
    /// The payload as text; empty where there is none.
    pub fn text(&self) -> String {
        String::from_utf8(self.record.payload.clone().unwrap_or_default()).unwrap()
    }
}

/// Which records a reader is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    /// Those of open and of aborted transactions as well.
    Uncommitted,
}

impl Isolation {
    fn name(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// What kind of cluster a test wants.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// One, or three of which one may be away. All are broker and controller.
    pub nodes: usize,
    /// Whether there is a listener with TLS and passwords.
    pub is_secure: bool,
    /// Whether something is measured, which [`QUICK_START`] would falsify.
    pub is_measured: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { nodes: 1, is_secure: false, is_measured: false }
    }
}

/// Running brokers; killed when dropped, and when the process of the test ends in any other way.
pub struct Cluster {
    // The nodes go before their folder.
    nodes: Vec<Node>,
    folder: tempfile::TempDir,
    faults: Arc<Faults>,
    // Kept from one call to the next: getting a number for what it writes takes a producer a second.
    producer: Mutex<Option<BaseProducer<Deliveries>>>,
}

impl Cluster {
    pub fn start(nodes: usize) -> Self {
        Self::start_with(Setup { nodes, ..Setup::default() })
    }

    /// One node for all tests of the process that only want a broker: they name their topics, groups and transactions after
    /// themselves, kill nothing and inject nothing. It ends with the process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(1))
    }

    pub fn start_with(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::<Faults>::default();
        if setup.is_secure {
            write_certificates(folder.path());
        }
        let quorum: Vec<u16> = (0..setup.nodes).map(|_| free_port()).collect();
        let nodes: Vec<_> =
            (0..setup.nodes).map(|id| Node::prepare(id, &setup, folder.path(), &quorum, Arc::clone(&faults))).collect();
        format(&nodes, setup.is_secure);
        nodes.iter().for_each(Node::launch);
        nodes.iter().for_each(Node::wait_until_started);
        Self { nodes, folder, faults, producer: Mutex::default() }
    }

    /// Where tests and tools connect to.
    pub fn bootstrap(&self) -> String {
        self.addresses(|node| node.client.to_string())
    }

    /// The same brokers through proxies, which do what [`Self::faults`] says.
    pub fn bootstrap_proxied(&self) -> String {
        self.addresses(|node| node.proxy.address().to_string())
    }

    /// The same brokers with TLS, for clients that trust [`Self::authority`] and are [`USER`].
    pub fn bootstrap_secure(&self) -> String {
        self.addresses(|node| node.secure.expect("the setup asks for security").to_string())
    }

    fn addresses(&self, address: impl Fn(&Node) -> String) -> String {
        self.nodes.iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// The certificate, in PEM, of whoever signed those of the nodes.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    pub fn node(&self, id: usize) -> &Node {
        &self.nodes[id]
    }

    /// Settings of a client of the nodes that are there.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap());
        // A node that comes back is to be found at once.
        config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
        config
    }

    /// With a copy on every node. It can be used when this returns.
    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    pub fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let copies = i32::try_from(self.nodes.len()).unwrap();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies));
        for (name, value) in settings {
            topic = topic.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let results = runtime.block_on(admin.create_topics([&topic], &options)).unwrap();
        results.into_iter().for_each(|result| assert_eq!(result, Ok(name.to_owned())));
        wait_patiently(&format!("leaders of {name}"), || {
            self.leaders(name).len() == usize::try_from(partitions).unwrap()
        });
    }

    /// The node that leads a partition now.
    pub fn leader(&self, topic: &str, partition: i32) -> usize {
        let mut leader = None;
        wait_patiently("a leader", || {
            leader = self.leaders(topic).iter().find(|(id, _)| *id == partition).map(|(_, leader)| *leader);
            leader.is_some()
        });
        leader.unwrap()
    }

    /// Partitions with their leaders; those without one are left out.
    fn leaders(&self, topic: &str) -> Vec<(i32, usize)> {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)) else { return Vec::new() };
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        partitions.filter_map(|one| Some((one.id(), usize::try_from(one.leader()).ok()?))).collect()
    }

    /// Writes records in order and returns when every node that must has them.
    pub fn produce(&self, topic: &str, partition: i32, records: impl IntoIterator<Item: Into<Record>>) {
        let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let producer = kept.get_or_insert_with(|| {
            let mut config = self.client();
            config.set("enable.idempotence", "true").set("linger.ms", "5");
            config.create_with_context(Deliveries::default()).unwrap()
        });
        for record in records {
            let record: Record = record.into();
            let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
                headers.insert(Header { key: name, value: value.as_deref() })
            });
            let mut next = BaseRecord::<[u8], [u8]>::to(topic).partition(partition);
            next.key = record.key.as_deref();
            next.payload = record.payload.as_deref();
            next.headers = (!record.headers.is_empty()).then_some(headers);
            while let Err((error, unsent)) = producer.send(next) {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
                producer.poll(Duration::from_millis(10));
                next = unsent;
            }
        }
        // Flushing looks ten times a second whether it is done.
        let end = Instant::now() + PATIENCE;
        while producer.in_flight_count() > 0 {
            assert!(Instant::now() < end, "{topic} takes too long to be written");
            producer.poll(Duration::from_millis(1));
        }
        let failures = std::mem::take(&mut *producer.context().0.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// What a topic holds up to its end, by partition and offset. An open transaction is such an end.
    pub fn read_committed(&self, topic: &str) -> Vec<Message> {
        self.read(topic, Isolation::Committed)
    }

    pub fn read(&self, topic: &str, isolation: Isolation) -> Vec<Message> {
        let mut config = self.client();
        config
            // Nothing is committed for it, but without a name nothing is read either.
            .set("group.id", "tests-reader")
            .set("isolation.level", isolation.name())
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            // The end is told by an answer without records, which is not to be waited for.
            .set("fetch.wait.max.ms", "10")
            .set("auto.offset.reset", "error");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut unfinished: Vec<i32> = self.leaders(topic).iter().map(|(partition, _)| *partition).collect();
        assert!(!unfinished.is_empty(), "{topic} is not there, or has no leader");
        let mut positions = TopicPartitionList::new();
        for partition in &unfinished {
            positions.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&positions).unwrap();
        let mut messages = Vec::new();
        let end = Instant::now() + PATIENCE;
        while !unfinished.is_empty() {
            assert!(Instant::now() < end, "reading {topic} takes too long");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => messages.push(owned(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => unfinished.retain(|one| *one != partition),
                // A node is away; the client goes on trying.
                Some(Err(_)) | None => {}
            }
        }
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
    }

    /// Where a group stands in a partition: the next offset, and what was committed with it. Waits for open transactions.
    pub fn committed_offset(&self, group: &str, topic: &str, partition: i32) -> Option<(i64, String)> {
        let mut config = self.client();
        config.set("group.id", group).set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, partition);
        let found = consumer.committed_offsets(wanted, PATIENCE).unwrap();
        let found = found.find_partition(topic, partition).unwrap();
        match found.offset() {
            Offset::Offset(offset) => Some((offset, found.metadata().to_owned())),
            _ => None,
        }
    }

    /// What Kafka's own console consumer reads from a topic, from its beginning: as many records as are asked for, or as
    /// come before none has come for five seconds.
    pub fn console_consumer(&self, topic: &str, isolation: Isolation, records_max: usize) -> Vec<Message> {
        let bootstrap = self.bootstrap();
        let count = records_max.to_string();
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", topic, "--from-beginning"];
        arguments.extend(["--isolation-level", isolation.name(), "--max-messages", &count, "--timeout-ms", "5000"]);
        let shown = ["timestamp", "partition", "offset", "headers", "key", "value"];
        let mut properties: Vec<_> = shown.iter().map(|field| format!("print.{field}=true")).collect();
        properties.extend([
            format!("key.separator={FIELD}"),
            format!("line.separator={LINE}"),
            format!("headers.separator={HEADER}"),
            format!("null.literal={NULL}"),
        ]);
        properties.iter().for_each(|property| arguments.extend(["--formatter-property", property]));
        // It calls it an error when nothing comes any more.
        let ran = run_tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &arguments, b"");
        let told = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() || told.contains("Processed a total of"), "the console consumer: {told}");
        let lines = ran.stdout.split(|byte| *byte == LINE.as_bytes()[0]).filter(|line| !line.is_empty());
        let mut messages: Vec<_> = lines.map(|line| shown_message(line, shown.len())).collect();
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
    }

    /// Writes records with Kafka's own console producer, which reads them as lines of text.
    pub fn console_producer(&self, topic: &str, records: impl IntoIterator<Item: Into<Record>>) {
        let mut lines = Vec::new();
        for record in records {
            let record: Record = record.into();
            let or_null = |bytes: &Option<Vec<u8>>| bytes.clone().unwrap_or_else(|| NULL.as_bytes().to_vec());
            let headers: Vec<_> = record
                .headers
                .iter()
                .map(|(name, value)| [name.as_bytes(), HEADER_VALUE.as_bytes(), &or_null(value)].concat())
                .collect();
            let headers = (!headers.is_empty()).then(|| headers.join(HEADER.as_bytes()));
            let line = [or_null(&headers), or_null(&record.key), or_null(&record.payload)].join(FIELD.as_bytes());
            assert!(!line.contains(&b'\n'), "the console producer takes lines");
            lines.extend([line.as_slice(), b"\n"].concat());
        }
        let bootstrap = self.bootstrap();
        let properties = [
            "parse.headers=true".to_owned(),
            "parse.key=true".to_owned(),
            format!("headers.delimiter={FIELD}"),
            format!("headers.separator={HEADER}"),
            format!("headers.key.separator={HEADER_VALUE}"),
            format!("key.separator={FIELD}"),
            format!("null.marker={NULL}"),
        ];
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", topic];
        properties.iter().for_each(|property| arguments.extend(["--reader-property", property]));
        self.tool("org.apache.kafka.tools.ConsoleProducer", &arguments, &lines);
    }

    /// What `kafka-consumer-groups` says.
    pub fn consumer_groups(&self, arguments: &[&str]) -> String {
        let bootstrap = self.bootstrap();
        let arguments = [&["--bootstrap-server", &bootstrap], arguments].concat();
        self.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments, b"")
    }

    /// Writes records as fast as Kafka's own producer can; the last line tells how fast that was.
    pub fn perf_producer(&self, topic: &str, records: u64, record_bytes: usize, properties: &[&str]) -> String {
        let (bootstrap, records, record_bytes) = (self.bootstrap(), records.to_string(), record_bytes.to_string());
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", topic, "--throughput", "-1"];
        arguments.extend(["--num-records", &records, "--record-size", &record_bytes]);
        if !properties.is_empty() {
            arguments.push("--command-property");
            arguments.extend(properties);
        }
        last_line(&self.tool("org.apache.kafka.tools.ProducerPerformance", &arguments, b""))
    }

    /// Reads records as fast as Kafka's own consumer can. The last line tells how fast that was: start, end, MB, MB/s,
    /// records, records/s, then milliseconds of joining and of fetching, MB/s and records/s of fetching alone.
    pub fn perf_consumer(&self, topic: &str, records: u64, properties: &[&str]) -> String {
        let (bootstrap, records) = (self.bootstrap(), records.to_string());
        let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", topic, "--num-records", &records];
        properties.iter().for_each(|property| arguments.extend(["--command-property", property]));
        last_line(&self.tool("org.apache.kafka.tools.ConsumerPerformance", &arguments, b""))
    }

    /// Runs one of Kafka's own tools and returns what it says.
    pub fn tool(&self, class: &str, arguments: &[&str], input: &[u8]) -> String {
        self.try_tool(class, arguments, input).unwrap_or_else(|told| panic!("{class}: {told}"))
    }

    /// The same, and what it says where it fails.
    pub fn try_tool(&self, class: &str, arguments: &[&str], input: &[u8]) -> Result<String, String> {
        let ran = run_tool(class, arguments, input);
        if ran.status.success() {
            return Ok(String::from_utf8(ran.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned())
    }
}

/// Counts for nothing but failures: a record that nobody took.
#[derive(Default)]
struct Deliveries(Mutex<Vec<KafkaError>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(error.clone());
        }
    }
}

/// One broker of a cluster, which is a controller as well.
pub struct Node {
    id: usize,
    folder: PathBuf,
    client: SocketAddr,
    secure: Option<SocketAddr>,
    is_measured: bool,
    proxy: Proxy,
    process: Mutex<Option<Process>>,
}

impl Node {
    /// Chooses its ports, starts its proxy and writes its settings.
    fn prepare(id: usize, setup: &Setup, folder: &Path, quorum: &[u16], faults: Arc<Faults>) -> Self {
        let listen = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (client, proxied, secure) = (listen(), listen(), setup.is_secure.then(listen));
        let proxy = Proxy::start(proxied, faults);
        let voters: Vec<_> = quorum.iter().enumerate().map(|(id, port)| format!("{id}@127.0.0.1:{port}")).collect();
        let (voters, controller, advertised) = (voters.join(","), quorum[id], proxy.address());
        let authority = folder.join("authority.pem");
        let folder = folder.join(format!("node-{id}"));
        fs::create_dir(&folder).unwrap();
        let data = folder.join("data");
        let (copies, copies_min) = (setup.nodes, setup.nodes.div_ceil(2));
        let secure_listener = secure.map_or(String::new(), |address| format!(",SECURE://{address}"));
        let mut settings = format!(
            "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CLIENT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listeners=CLIENT://{client},PROXIED://{proxied},CONTROLLER://127.0.0.1:{controller}{secure_listener}
advertised.listeners=CLIENT://{client},PROXIED://{advertised}{secure_listener}
log.dirs={}
log.retention.ms=-1
auto.create.topics.enable=false
num.partitions=1
default.replication.factor={copies}
min.insync.replicas={copies_min}
offsets.topic.num.partitions=4
offsets.topic.replication.factor={copies}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={copies_min}
transaction.abort.timed.out.transaction.cleanup.interval.ms=200
transaction.max.timeout.ms=86400000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=500
broker.heartbeat.interval.ms=400
broker.session.timeout.ms=2000
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
",
            data.display()
        );
        if setup.is_secure {
            let user = format!("username=\"{USER}\" password=\"{PASSWORD}\" user_{USER}=\"{PASSWORD}\"");
            settings += &format!(
                "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {user};
listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={}
",
                authority.with_file_name("node.pem").display()
            );
        }
        fs::write(folder.join("settings"), settings).unwrap();
        Self { id, folder, client, secure, is_measured: setup.is_measured, proxy, process: Mutex::default() }
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self) {
        let log = self.folder.join("log");
        // The log of the start before says the same words.
        let _ = fs::remove_file(&log);
        let output = File::create(self.folder.join("output")).unwrap();
        let mut command = java(if self.is_measured { &[] } else { &[QUICK_START] });
        command
            .arg(format!("-Dorg.slf4j.simpleLogger.logFile={}", log.display()))
            .arg("-Dorg.slf4j.simpleLogger.showDateTime=true")
            .arg("kafka.Kafka")
            .arg(self.folder.join("settings"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let before = self.process().replace(Process::start(&mut command, &self.folder));
        assert!(before.is_none(), "node {} runs already", self.id);
    }

    /// Until it takes part in the cluster.
    fn wait_until_started(&self) {
        wait_patiently(&format!("node {}", self.id), || {
            let is_alive = self.process().as_mut().is_some_and(Process::is_alive);
            assert!(is_alive, "node {} ended by itself:\n{}", self.id, self.log());
            self.log().contains("Kafka Server started")
        });
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&[read("log"), read("output")].concat()).into_owned()
    }

    /// SIGKILL: no chance to hand anything over.
    pub fn kill(&self) {
        assert!(self.process().take().is_some(), "node {} does not run", self.id);
    }

    /// Starts it again after it was killed, with its data and at its addresses, and waits until it takes part.
    pub fn restart(&self) {
        self.launch();
        self.wait_until_started();
    }
}

/// A running JVM; killed and waited for when dropped.
struct Process {
    child: Child,
    // Ends it and removes its folder when the process of the test is gone, which shows by the end of this one's input.
    watchdog: Child,
}

impl Process {
    fn start(command: &mut Command, folder: &Path) -> Self {
        let child = command.spawn().unwrap();
        let watchdog = Command::new("sh")
            .args(["-c", r#"read -r _; kill -9 "$1"; rm -rf "$2"; rmdir "$(dirname "$2")""#, "watchdog"])
            .arg(child.id().to_string())
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, watchdog }
    }

    fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The watchdog first: once the other is waited for, its number may be somebody else's.
        for child in [&mut self.watchdog, &mut self.child] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody listens at, below those that the system gives to outgoing connections: while a node is away, its
/// port must not become somebody else's, nor a client that looks for it find itself there.
fn free_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = ASKED.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + (std::process::id().wrapping_mul(61).wrapping_add(step)) % 20_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn java(options: &[&str]) -> Command {
    let release = release().unwrap();
    let classes = format!("-XX:SharedArchiveFile={}", release.join("classes.jsa").display());
    let mut command = Command::new("java");
    command.args(JAVA_OPTIONS).args(options).arg(classes).arg("-cp").arg(release.join("libs/*"));
    command
}

fn run_tool(class: &str, arguments: &[&str], input: &[u8]) -> std::process::Output {
    let options: &[&str] = if class.ends_with("Performance") { &[] } else { &[QUICK_START] };
    let mut command = java(options);
    command.arg(class).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It may answer before it has read everything.
    let writing = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// Makes the data folders of nodes: the first one's by Kafka's own tool, and the others' by copying, as they differ in a
/// number only and each run of it costs seconds.
fn format(nodes: &[Node], is_secure: bool) {
    let settings = nodes[0].folder.join("settings");
    let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"].map(|name| format!("{name}=[name={USER},password={PASSWORD}]"));
    let mut arguments = vec!["format", "--cluster-id", CLUSTER_ID, "--config", settings.to_str().unwrap()];
    if is_secure {
        users.iter().for_each(|user| arguments.extend(["--add-scram", user]));
    }
    let ran = run_tool("kafka.tools.StorageTool", &arguments, b"");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()));
    for node in &nodes[1..] {
        let data = node.folder.join("data");
        super::copy_folder(&nodes[0].folder.join("data"), &data);
        let meta = data.join("meta.properties");
        // A node without an identity of its folder gives it one.
        let lines = BufReader::new(File::open(&meta).unwrap()).lines().map(Result::unwrap);
        let kept = lines.filter(|line| !line.starts_with("directory.id") && !line.starts_with("node.id"));
        let text: Vec<_> = kept.chain([format!("node.id={}\n", node.id)]).collect();
        fs::write(&meta, text.join("\n")).unwrap();
    }
}

/// An authority of our own, and what it signed for nodes on the loopback: key and certificate in one file, as Kafka wants.
fn write_certificates(folder: &Path) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // Under one name with what it signs, that would be taken for signed by itself.
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority of the tests");
    let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    fs::write(folder.join("authority.pem"), authority.pem()).unwrap();
    fs::write(folder.join("node.pem"), key.serialize_pem() + &certificate.pem()).unwrap();
}

fn owned(message: &rdkafka::message::BorrowedMessage<'_>) -> Message {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Message {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        record: Record {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect(),
        },
    }
}

/// A line of the console consumer, such as `CreateTime:7 Partition:0 Offset:3 name:value key payload`.
fn shown_message(line: &[u8], fields: usize) -> Message {
    let [timestamp, partition, offset, headers, key, payload] = line
        .splitn(fields, |byte| *byte == FIELD.as_bytes()[0])
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| panic!("not a record: {}", String::from_utf8_lossy(line)));
    let number = |field: &[u8]| std::str::from_utf8(field).unwrap().split_once(':').map(|(_, text)| text.to_owned());
    let nullable = |field: &[u8]| (field != NULL.as_bytes()).then(|| field.to_vec());
    let header = |text: &[u8]| {
        let colon = text.iter().position(|byte| *byte == b':').unwrap();
        (String::from_utf8(text[..colon].to_vec()).unwrap(), nullable(&text[colon + 1..]))
    };
    let headers = match headers {
        b"NO_HEADERS" => Vec::new(),
        all => all.split(|byte| *byte == HEADER.as_bytes()[0]).map(header).collect(),
    };
    Message {
        partition: number(partition).unwrap().parse().unwrap(),
        offset: number(offset).unwrap().parse().unwrap(),
        // A record without one is shown by words that have no colon.
        timestamp: number(timestamp).map(|text| text.parse().unwrap()),
        record: Record { key: nullable(key), payload: nullable(payload), headers },
    }
}

fn last_line(text: &str) -> String {
    text.trim_end().lines().next_back().unwrap_or_default().to_owned()
}

/// Like [`super::wait_for`], for what a JVM does.
fn wait_patiently(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
