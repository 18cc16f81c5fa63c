//! Kafka → filter + window → Kafka with the real binary and a real broker on the same machine, beside Kafka's own tools and a bare
//! client with the same settings, in one run; and how long a record takes from topic to topic. Nothing here asserts a time.
//!
//! `cargo bench --bench kafka [-- throughput latency]`, after `tests/kafka/fetch`. `TOCSIN_BENCH_EVENTS` sets how many events are read
//! (default 4,000,000 of 250 bytes), `TOCSIN_BENCH_RATE` how many a second are sent for latencies (default 50,000).
#![expect(clippy::disallowed_methods, reason = "benchmarks measure real time")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use support::kafka::{Cluster, Setup};

const PARTITIONS: i32 = 4;
/// What Kafka calls an event here.
const EVENT_BYTES: usize = 250;
/// Settings that every client has: those of the source, as far as they show.
const FETCH: [(&str, &str); 3] =
    [("queued.max.messages.kbytes", "8192"), ("fetch.max.bytes", "8388608"), ("fetch.message.max.bytes", "1048576")];
/// How long latencies are measured, after a second to warm up.
const LATENCY_SECONDS: u64 = 10;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if let Some(why) = support::kafka::obstacle() {
        println!("skipped: there is no broker: {why}");
        return;
    }
    let cluster = Cluster::start_with(Setup { is_measured: true, ..Setup::default() });
    let folder = tempfile::tempdir().expect("a temporary folder");
    if is_wanted("throughput") {
        throughput(&cluster, folder.path(), number("TOCSIN_BENCH_EVENTS", 4_000_000));
    }
    if is_wanted("latency") {
        let rate = number("TOCSIN_BENCH_RATE", 50_000);
        latency(&cluster, folder.path(), rate, "at_least_once", "1s");
        latency(&cluster, folder.path(), rate, "exactly_once", "100ms");
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn row(name: &str, events: u64, took: Duration, cpu: Option<f64>) {
    let seconds = took.as_secs_f64();
    let (rate, megabytes) = (events as f64 / seconds, (events * EVENT_BYTES as u64) as f64 / seconds / 1e6);
    let cpu = cpu.map_or(String::new(), |cpu| format!("{cpu:.1}"));
    println!("{name:<58} {rate:>11.0} {megabytes:>8.1} {seconds:>7.2} {cpu:>7}");
}

fn throughput(cluster: &Cluster, folder: &Path, events: u64) {
    println!("{:<58} {:>11} {:>8} {:>7} {:>7}", "", "events/s", "MB/s", "s", "CPU s");
    let retention = [("retention.ms", "-1")];
    cluster.create_topic_with("in", PARTITIONS, &retention);
    let begun = Instant::now();
    load(cluster, "in", events);
    row("written by a bare client (acks=all, idempotent)", events, begun.elapsed(), None);
    cluster.create_topic_with("perf", PARTITIONS, &retention);
    let told = cluster.perf_producer("perf", events / 4, EVENT_BYTES, &["acks=all"]);
    println!("kafka-producer-perf-test: {told}");
    let told = cluster.perf_consumer("in", events, &[]);
    println!("kafka-consumer-perf-test: {told}");
    let (took, copied) = copy(cluster, "in", events);
    assert_eq!(copied, events);
    row("read by a bare client with the same settings, bytes copied", events, took, None);
    for (name, delivery, expected) in [
        ("P11 filter + window, at least once", "at_least_once", None),
        ("P11 filter + window, exactly once", "exactly_once", Some(())),
    ] {
        let out = format!("out-{delivery}");
        cluster.create_topic_with(&out, PARTITIONS, &retention);
        let pipeline = pipeline(cluster, folder, "in", &out, delivery, "1s");
        let begun = Instant::now();
        let mut daemon = start(&pipeline, &folder.join(format!("state-{delivery}")), true);
        let (status, cpu) = wait(&mut daemon);
        let took = begun.elapsed();
        assert!(status, "the daemon failed");
        row(name, events, took, Some(cpu));
        let counted: u64 = cluster
            .read_committed(&out)
            .iter()
            .map(|message| {
                serde_json::from_str::<serde_json::Value>(&message.text()).unwrap_or_default()["n"]
                    .as_u64()
                    .unwrap_or(0)
            })
            .sum();
        if expected.is_some() {
            println!("{:<58} {counted:>11}", "  events in the windows that came out");
        }
    }
}

/// JSON events of about 250 bytes, in event time a thousand a second, four in five of which the filter keeps.
fn event(number: u64, text: &mut String) {
    use std::fmt::Write as _;
    text.clear();
    let (second, milli) = (number / 1000, number % 1000);
    write!(
        text,
        "{{\"ts\":\"2026-11-20T{:02}:{:02}:{:02}.{milli:03}Z\",\"level\":\"{}\",\"service\":\"s{}\",\"host\":\"web-{}\",\"trace_id\":\"{:032x}\",\
         \"latency_ms\":{}.{:03},\"status\":200,\"seq\":{number},\"msg\":\"request handled for a returning customer from the page number {:07}\"}}",
        second / 3600 % 24,
        second / 60 % 60,
        second % 60,
        ["INFO", "INFO", "DEBUG", "WARN", "ERROR"][(number % 5) as usize],
        number % 8,
        number % 20,
        u128::from(number) * 0x9E37_79B9_7F4A_7C15,
        number % 400,
        number % 1000,
        number % 10_000_000,
    )
    .expect("strings take everything");
}

fn producer(cluster: &Cluster, linger: &str) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = cluster.client();
    config.set("enable.idempotence", "true").set("linger.ms", linger).set("queue.buffering.max.messages", "1000000");
    ThreadedProducer::from_config(&config).expect("a client")
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, partition: i32, payload: &str) {
    let mut record = BaseRecord::<(), str>::to(topic).partition(partition).payload(payload);
    while let Err((error, back)) = producer.send(record) {
        assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
        std::thread::sleep(Duration::from_millis(1));
        record = back;
    }
}

fn load(cluster: &Cluster, topic: &str, events: u64) {
    let producer = producer(cluster, "20");
    let mut text = String::new();
    for number in 0..events {
        event(number, &mut text);
        send(&producer, topic, (number % PARTITIONS as u64) as i32, &text);
    }
    producer.flush(Duration::from_secs(120)).expect("the broker takes them");
}

/// What a client can reach that does nothing with what it reads but copy it.
fn copy(cluster: &Cluster, topic: &str, events: u64) -> (Duration, u64) {
    let mut config = cluster.client();
    config.set("group.id", "bench-copy").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    for (name, value) in FETCH {
        config.set(name, value);
    }
    let consumer = BaseConsumer::from_config(&config).expect("a client");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("it has room");
    }
    let begun = Instant::now();
    consumer.assign(&list).expect("they are there");
    let (mut copied, mut buffer) = (0, Vec::with_capacity(1 << 20));
    while copied < events {
        let Some(message) = consumer.poll(Duration::from_secs(10)) else { break };
        let message = message.expect("the broker answers");
        if buffer.len() > (1 << 20) - 1024 {
            buffer.clear();
        }
        buffer.extend_from_slice(message.payload().unwrap_or_default());
        copied += 1;
    }
    (begun.elapsed(), copied)
}

fn pipeline(
    cluster: &Cluster,
    folder: &Path,
    topic: &str,
    out: &str,
    delivery: &str,
    interval: &str,
) -> std::path::PathBuf {
    let path = folder.join(format!("{out}.toml"));
    let brokers = cluster.bootstrap();
    let text = format!(
        r#"
[daemon]
checkpoint_interval = "{interval}"

[sources.in]
type = "kafka"
brokers = ["{brokers}"]
topics = ["{topic}"]
group = "bench-{out}"
codec = "json"
timestamp = {{ field = ".ts" }}
out_of_order = "10s"

[operators.kept]
type = "filter"
inputs = ["in"]
condition = '.level != "DEBUG"'

[operators.by_service]
type = "window"
inputs = ["kept"]
tumbling = "10s"
group_by = [".service"]
aggregates = {{ n = "count()", mean = "mean(.latency_ms)", p99 = "quantile(.latency_ms, 0.99)" }}

[sinks.out]
type = "kafka"
inputs = ["by_service"]
brokers = ["{brokers}"]
topic = "{out}"
key = [".service"]
delivery = "{delivery}"
"#
    );
    fs::write(&path, text).expect("the folder is ours");
    path
}

fn start(pipeline: &Path, state: &Path, is_once: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
    command.arg("run").arg(pipeline).arg("--data-dir").arg(state).env("TOCSIN_LOG", "warn");
    if is_once {
        command.arg("--once");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the binary was built")
}

/// Whether it ended well, and the processor time that it took.
fn wait(daemon: &mut Child) -> (bool, f64) {
    let mut cpu = 0.0;
    loop {
        cpu = processor_seconds(daemon.id()).unwrap_or(cpu);
        if let Some(status) = daemon.try_wait().expect("it is our child") {
            return (status.success(), cpu);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// User and system time of a process, from `/proc`.
fn processor_seconds(process: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64
}

/// From the moment a record is given to a client until another client has read what became of it.
fn latency(cluster: &Cluster, folder: &Path, rate: u64, delivery: &str, interval: &str) {
    let (topic, out) = (format!("latency-{delivery}"), format!("latency-{delivery}-out"));
    for topic in [&topic, &out] {
        cluster.create_topic_with(topic, PARTITIONS, &[("retention.ms", "-1")]);
    }
    let brokers = cluster.bootstrap();
    let path = folder.join(format!("{out}.toml"));
    let text = format!(
        r#"
[daemon]
checkpoint_interval = "{interval}"

[sources.in]
type = "kafka"
brokers = ["{brokers}"]
topics = ["{topic}"]
group = "bench-{out}"
codec = "json"
read_from = "end"
options = {{ "fetch.wait.max.ms" = "10" }}

[operators.kept]
type = "filter"
inputs = ["in"]
condition = '.level != "DEBUG"'

[sinks.out]
type = "kafka"
inputs = ["kept"]
brokers = ["{brokers}"]
topic = "{out}"
linger = "1ms"
delivery = "{delivery}"
"#
    );
    fs::write(&path, text).expect("the folder is ours");
    let mut daemon = start(&path, &folder.join(format!("state-{out}")), false);
    // It reads from the end on: what is sent before it has begun is not seen.
    std::thread::sleep(Duration::from_secs(4));
    let is_over = AtomicBool::new(false);
    let mut took: Vec<u64> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let producer = producer(cluster, "1");
            let mut text = String::new();
            let begun = Instant::now();
            let mut sent = 0;
            while begun.elapsed() < Duration::from_secs(LATENCY_SECONDS + 1) {
                let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
                while sent < due {
                    event(sent, &mut text);
                    let stamped = format!("{{\"sent\":\"{:020}\",{}", now(), &text[1..]);
                    send(&producer, &topic, (sent % PARTITIONS as u64) as i32, &stamped);
                    sent += 1;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            producer.flush(Duration::from_secs(30)).expect("the broker takes them");
            std::thread::sleep(Duration::from_secs(2));
            is_over.store(true, Ordering::Release);
        });
        read_latencies(cluster, &out, &is_over)
    });
    let _ = daemon.kill();
    let _ = daemon.wait();
    took.sort_unstable();
    let of = |part: usize| {
        took.get((took.len() * part / 1000).min(took.len().saturating_sub(1))).copied().unwrap_or(0) as f64 / 1e6
    };
    println!(
        "latency, {rate} events/s, {delivery}, checkpoints each {interval}: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, {} records",
        of(500),
        of(990),
        of(999),
        took.len()
    );
}

fn read_latencies(cluster: &Cluster, topic: &str, is_over: &AtomicBool) -> Vec<u64> {
    let mut config = cluster.client();
    config
        .set("group.id", "bench-latency")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "5");
    let consumer = BaseConsumer::from_config(&config).expect("a client");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("it has room");
    }
    consumer.assign(&list).expect("they are there");
    let (mut took, mut first) = (Vec::new(), None);
    while !is_over.load(Ordering::Acquire) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let payload = message.payload().unwrap_or_default();
        let sent = std::str::from_utf8(&payload[9..29]).ok().and_then(|text| text.parse::<u64>().ok());
        let Some(sent) = sent else { continue };
        // The first second is for warming up.
        if sent > *first.get_or_insert(sent) + 1_000_000_000 {
            took.push(now().saturating_sub(sent));
        }
    }
    took
}
