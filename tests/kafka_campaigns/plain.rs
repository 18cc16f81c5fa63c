//! The source and the sink one at a time: what records are besides their values, where reading begins, what becomes of brokers that
//! are away, and of receivers that are.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value as Json, json};

use crate::scene::{Keeper, Scene, records};
use crate::stage::{PIPELINE, Stage, beside};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::{Cluster, Isolation, PASSWORD, Record, Setup, USER};
use crate::support::receiver::{Manner, Receiver};
use crate::support::{Daemon, wait_for};

const OFTEN: [&str; 2] = ["--set", "daemon.checkpoint_interval=50ms"];

const ORDER: Order = Order { size: 1, seed: 1, planted: None };

/// At least once: killed as often as one likes, nothing is missing.
pub const AGAIN: Campaign =
    Campaign { name: "kafka-again", variable: "TOCSIN_KAFKA_AGAIN", sizes: (10, 500), body: again };

fn again(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let cluster = Cluster::shared();
    let mut random = order.random();
    let pipeline = PIPELINE.replace("exactly_once", "at_least_once");
    let stage = Stage::new(order, cluster, &cluster.bootstrap(), &pipeline);
    let mut follower = stage.follower();
    let (feed, ()) = beside(stage.feed(), || {
        while outcome.runs < order.size {
            let mut daemon = Daemon::start(&mut stage.scene.command(&OFTEN));
            std::thread::sleep(Duration::from_millis(200 + random.below(1000)));
            ensure!(daemon.ended().is_none(), "it ended by itself\n{}", stage.scene.told());
            daemon.kill();
            outcome.runs += 1;
        }
        Ok(())
    })?;
    Keeper::new(&stage.scene).finish()?;
    for _ in 0..5 {
        follower.read();
    }
    let mut seen = Outcome::default();
    feed.compare("what a reader sees", &follower.seen, &mut seen);
    outcome.lost = seen.lost;
    outcome.note("repeated", seen.duplicated);
    outcome.violations = seen.violations;
    stage.scene.audit(outcome);
    Ok(())
}

/// What `GET` says at an address.
fn get(address: &str, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

pub fn brokers_that_are_away_are_waited_for() {
    let cluster = Cluster::start_with(Setup::default());
    for delivery in ["at_least_once", "exactly_once"] {
        let pipeline = PIPELINE.replace("exactly_once", delivery);
        let stage = Stage::new(&ORDER, &cluster, &cluster.bootstrap(), &pipeline);
        let (mut feed, mut follower) = (stage.feed(), stage.follower());
        feed.write(100);
        let admin = free_address();
        let argument = format!("daemon.admin={admin}");
        let arguments = ["--set", &argument, OFTEN[0], OFTEN[1]];
        let is_ready = || get(&admin, "/readyz").starts_with("HTTP/1.1 200");
        let is_waiting = || {
            let answer = get(&admin, "/readyz");
            answer.starts_with("HTTP/1.1 503") && answer.contains("cannot reach the brokers")
        };
        cluster.node(0).kill();
        let mut keeper = Keeper::new(&stage.scene);
        keeper.start(&arguments);
        keeper.wait("it to say what it waits for", is_waiting).unwrap();
        // A stop is not waited for, and the next waits as this one did.
        keeper.until_it_listens().unwrap();
        keeper.terminate().unwrap();
        keeper.restart();
        keeper.wait("it to say again what it waits for", is_waiting).unwrap();
        cluster.node(0).restart();
        keeper.wait("it to be ready", is_ready).unwrap();
        keeper.wait("the records", || follower.has_kept(&feed)).unwrap();
        cluster.node(0).kill();
        keeper.wait("it to say that they have gone away", is_waiting).unwrap();
        cluster.node(0).restart();
        keeper.wait("it to be ready again", is_ready).unwrap();
        feed.write(100);
        keeper.wait("the records that came afterwards", || follower.has_kept(&feed)).unwrap();
        keeper.terminate().unwrap();
        keeper.finish().unwrap();
        let mut outcome = Outcome::default();
        for _ in 0..5 {
            follower.read();
        }
        feed.compare(delivery, &follower.seen, &mut outcome);
        assert_eq!((outcome.lost, &outcome.violations), (0, &Vec::new()));
        assert!(delivery == "at_least_once" || outcome.duplicated == 0);
        let told = std::fs::read_to_string(stage.scene.path("told")).unwrap();
        assert!(!told.contains("ERROR"), "{told}");
    }
}

/// A source and a file that holds what it reads.
const TO_FILE: &str = r#"
[sources.log]
type = "kafka"
brokers = ["${BROKERS}"]
topics = ["${TOPIC}"]
group = "${TOPIC}"
codec = "text"
${OPTIONS}

[operators.seen]
type = "remap"
inputs = ["log"]
program = '''
. = { "value": .message, "key": %key, "headers": %headers, "topic": %topic, "partition": %partition, "offset": %offset,
      "time": to_unix_timestamp(timestamp!(%timestamp), unit: "milliseconds") }
'''

[sinks.out]
type = "file"
inputs = ["seen"]
path = "${OUT}/out.ndjson"

[sinks.dead]
type = "file"
inputs = ["*.rejected"]
path = "${OUT}/dead.ndjson"
"#;

fn to_file(cluster: &Cluster, topic: &str, options: &str) -> Scene {
    let text = TO_FILE.replace("${BROKERS}", &cluster.bootstrap()).replace("${OPTIONS}", options);
    Scene::new(&ORDER, &text.replace("${TOPIC}", topic), Vec::new())
}

fn read_once(scene: &Scene) -> Vec<Json> {
    Keeper::new(scene).finish().unwrap();
    read_so_far(scene)
}

fn read_so_far(scene: &Scene) -> Vec<Json> {
    let text = std::fs::read_to_string(scene.out().join("out.ndjson")).unwrap_or_default();
    records(&text, "out.ndjson", &mut Outcome::default())
}

fn values(read: &[Json]) -> Vec<String> {
    let mut values: Vec<_> =
        read.iter().map(|record| record["value"].as_str().unwrap_or_default().to_owned()).collect();
    values.sort();
    values
}

pub fn what_a_record_is_besides_its_value() {
    let cluster = Cluster::shared();
    cluster.create_topic("besides", 2);
    cluster.produce(
        "besides",
        1,
        vec![
            Record::new(Some("k"), Some("one")).with_header("trace", Some("1")).with_header("none", None),
            Record::new(None, Some("two")),
            Record::new(Some("gone"), None),
            Record::new(Some(""), Some("")),
            Record::new(None, Some("a\nb")),
        ],
    );
    let scene = to_file(cluster, "besides", "");
    let read = read_once(&scene);
    let written = cluster.read_committed("besides");
    let time = |at: usize| written[at].timestamp.unwrap();
    let record = |at: usize, value: &str, key: Json, headers: Json| {
        json!({ "value": value, "key": key, "headers": headers, "topic": "besides", "partition": 1, "offset": at,
                "time": time(at) })
    };
    assert_eq!(
        read,
        [
            record(0, "one", json!("k"), json!({ "trace": "1", "none": null })),
            record(1, "two", Json::Null, json!({})),
            record(3, "", json!(""), json!({})),
            record(4, "a\nb", Json::Null, json!({})),
        ]
    );
    let dead = std::fs::read_to_string(scene.out().join("dead.ndjson")).unwrap();
    assert!(dead.lines().count() == 1 && dead.contains("tombstone"), "{dead}");
}

pub fn compressed_topics() {
    let cluster = Cluster::shared();
    for kind in ["gzip", "snappy", "lz4", "zstd"] {
        let (from, to) = (format!("packed-{kind}"), format!("packed-{kind}-out"));
        cluster.create_topic(&from, 1);
        cluster.create_topic(&to, 1);
        cluster.perf_producer(&from, 500, 200, &[&format!("compression.type={kind}"), "linger.ms=20"]);
        let text = format!(
            "[sources.log]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopics = [\"{from}\"]\ngroup = \"{from}\"\ncodec = \"text\"\n\
             [sinks.out]\ntype = \"kafka\"\ninputs = [\"log\"]\nbrokers = [\"{brokers}\"]\ntopic = \"{to}\"\n\
             compression = \"{kind}\"\nencoding = \"raw\"\n",
            brokers = cluster.bootstrap()
        );
        let scene = Scene::new(&ORDER, &text, Vec::new());
        Keeper::new(&scene).finish().unwrap();
        let texts = |topic: &str| -> Vec<String> {
            cluster.console_consumer(topic, Isolation::Committed, 500).iter().map(|message| message.text()).collect()
        };
        let written = texts(&to);
        assert_eq!(written.len(), 500, "{kind}");
        assert_eq!(written, texts(&from), "{kind}");
    }
}

pub fn topics_and_partitions_that_appear_later() {
    let cluster = Cluster::shared();
    cluster.create_topic("later-a", 1);
    cluster.produce("later-a", 0, ["a"]);
    let text = TO_FILE.replace("${BROKERS}", &cluster.bootstrap()).replace("${OPTIONS}", "read_from = \"end\"");
    let text = text.replace("topics = [\"${TOPIC}\"]", "topics = [\"^later-.*\"]").replace("${TOPIC}", "later");
    let scene = Scene::new(&ORDER, &text, Vec::new());
    let mut keeper = Keeper::new(&scene);
    keeper.start(&OFTEN);
    keeper.wait("a checkpoint", || scene.newest_checkpoint() > 0).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    cluster.create_topic("later-b", 2);
    cluster.produce("later-b", 1, ["b"]);
    cluster.produce("later-a", 0, ["c"]);
    // Though reading began at the end: what is new has come since.
    keeper.wait("them", || values(&read_so_far(&scene)) == ["b", "c"]).unwrap();
    keeper.kill();
    cluster.create_topic("later-c", 1);
    cluster.produce("later-c", 0, ["d"]);
    keeper.start(&OFTEN);
    keeper.wait("what appeared while it was away", || values(&read_so_far(&scene)) == ["b", "c", "d"]).unwrap();
    keeper.terminate().unwrap();
}

pub fn where_reading_begins() {
    let cluster = Cluster::shared();
    cluster.create_topic("begin", 1);
    cluster.produce("begin", 0, ["a", "b"]);
    // Kafka keeps times to the millisecond.
    std::thread::sleep(Duration::from_millis(20));
    cluster.produce("begin", 0, ["c", "d"]);
    let millis = cluster.read_committed("begin")[2].timestamp.unwrap();
    let time = chrono::DateTime::from_timestamp_millis(millis).unwrap().to_rfc3339();
    for (from, expected) in [
        ("\"beginning\"".to_owned(), &["a", "b", "c", "d"][..]),
        ("\"end\"".to_owned(), &[]),
        ("{ offset = 3 }".to_owned(), &["d"]),
        ("{ offset = 99 }".to_owned(), &[]),
        (format!("{{ time = \"{time}\" }}"), &["c", "d"]),
        ("{ time = \"2099-01-01T00:00:00Z\" }".to_owned(), &[]),
    ] {
        let scene = to_file(cluster, "begin", &format!("read_from = {from}"));
        assert_eq!(values(&read_once(&scene)), expected, "{from}");
    }
}

fn delete_before(cluster: &Cluster, topic: &str, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = cluster.client().create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(admin.delete_records(&list, &AdminOptions::new())).unwrap();
}

pub fn records_that_were_deleted_before_they_were_read() {
    let cluster = Cluster::shared();
    cluster.create_topic("deleted", 1);
    cluster.produce("deleted", 0, ["a", "b"]);
    let scene = to_file(cluster, "deleted", "out_of_range = \"stop\"");
    assert_eq!(values(&read_once(&scene)), ["a", "b"]);
    cluster.produce("deleted", 0, ["c", "d", "e"]);
    delete_before(cluster, "deleted", 4);
    let mut keeper = Keeper::new(&scene);
    keeper.start(&["--once"]);
    assert!(!keeper.end().unwrap().success());
    assert!(scene.told().contains("2 records after it were deleted before they were read"), "{}", scene.told());
    let path = scene.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"stop\"", "\"beginning\"")).unwrap();
    assert_eq!(values(&read_once(&scene)), ["a", "b", "e"]);
    assert!(scene.told().contains("records are missing"), "{}", scene.told());
}

pub fn several_topics_are_read_to_their_ends() {
    let cluster = Cluster::shared();
    let mut expected = Vec::new();
    for topic in ["ends-a", "ends-b", "ends-c"] {
        cluster.create_topic(topic, 3);
        for partition in 0..if topic == "ends-b" { 0 } else { 3 } {
            let texts: Vec<_> = (0..50).map(|number| format!("{topic}/{partition}/{number}")).collect();
            cluster.produce(topic, partition, texts.clone());
            expected.extend(texts);
        }
    }
    expected.sort();
    let text = TO_FILE.replace("${BROKERS}", &cluster.bootstrap()).replace("${OPTIONS}", "");
    let text = text.replace("[\"${TOPIC}\"]", "[\"ends-a\", \"ends-b\", \"^ends-[bc]\"]").replace("${TOPIC}", "ends");
    let scene = Scene::new(&ORDER, &text, Vec::new());
    assert_eq!(values(&read_once(&scene)), expected);
}

pub fn a_receiver_that_hangs() {
    let cluster = Cluster::shared();
    cluster.create_topic("held", 2);
    let total: u64 = 60_000;
    for partition in 0..2 {
        let padding = "x".repeat(1000);
        let numbers = (0..total).filter(|number| number % 2 == partition);
        cluster.produce(
            "held",
            partition as i32,
            numbers.map(|number| format!("{{\"seq\":{number},\"p\":\"{padding}\"}}")),
        );
    }
    let receiver = Receiver::start(1);
    receiver.set(Manner::Hang);
    let text = format!(
        "[daemon]\nmemory = \"48MiB\"\n[sources.log]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopics = [\"held\"]\ngroup = \"held\"\n\
         codec = \"json\"\nprefetch = \"4MiB\"\n[sinks.out]\ntype = \"http\"\ninputs = [\"log\"]\n\
         url = \"http://127.0.0.1:{}/held\"\nencoding = \"ndjson\"\ntimeout = \"2s\"\nretry = {{ initial = \"10ms\", max = \"50ms\" }}\n",
        cluster.bootstrap(),
        receiver.port()
    );
    let scene = Scene::new(&ORDER, &text, Vec::new());
    let daemon = Daemon::start(&mut scene.command(&OFTEN));
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() >> 10
    };
    wait_for("the first request", || !receiver.requests().is_empty());
    let mut most = 0;
    for _ in 0..60 {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(resident());
    }
    println!("{most} MiB at most while the receiver hangs");
    // As much as may be on its way, and the process itself without optimisation.
    assert!(most < 48 + 200, "{most} MiB");
    receiver.set(Manner::Well);
    let seen = || -> usize {
        let mut seen: BTreeMap<u64, ()> = BTreeMap::new();
        for request in receiver.accepted("/held") {
            for line in request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let record: Json = serde_json::from_slice(line).unwrap();
                seen.insert(record["seq"].as_u64().unwrap(), ());
            }
        }
        seen.len()
    };
    let begun = std::time::Instant::now();
    while seen() < total as usize {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} of {total}: {}", seen(), scene.told());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(daemon.terminate().success());
}

pub fn passwords_and_tls() {
    let cluster = Cluster::start_with(Setup { is_secure: true, ..Setup::default() });
    for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
        let connection = |password: &str| {
            format!(
                "brokers = [\"{}\"]\ntls = {{ ca = \"{}\" }}\n\
                 sasl = {{ mechanism = \"{mechanism}\", username = \"{USER}\", password = \"{password}\" }}\n",
                cluster.bootstrap_secure(),
                cluster.authority().display()
            )
        };
        let (from, to) = (format!("{mechanism}-in"), format!("{mechanism}-out"));
        cluster.create_topic(&from, 1);
        cluster.create_topic(&to, 1);
        cluster.produce(&from, 0, ["{\"a\":1}", "{\"a\":2}"]);
        let text = |password: &str| {
            format!(
                "[sources.log]\ntype = \"kafka\"\n{0}topics = [\"{from}\"]\ngroup = \"{from}\"\ncodec = \"json\"\n\
                 [sinks.out]\ntype = \"kafka\"\ninputs = [\"log\"]\n{0}topic = \"{to}\"\ndelivery = \"exactly_once\"\n",
                connection(password)
            )
        };
        let scene = Scene::new(&ORDER, &text(PASSWORD), Vec::new());
        Keeper::new(&scene).finish().unwrap();
        let texts: Vec<_> = cluster.read_committed(&to).iter().map(|message| message.text()).collect();
        assert_eq!(texts, ["{\"a\":1}", "{\"a\":2}"], "{mechanism}");
        // Another password is told about, and tried again: it may be about to be changed.
        let scene = Scene::new(&ORDER, &text("another"), Vec::new());
        let daemon = Daemon::start(&mut scene.command(&OFTEN));
        wait_for("the refusal to be told", || scene.told().contains("uthentication"));
        assert!(!scene.told().contains("another"), "{}", scene.told());
        daemon.kill();
    }
}
