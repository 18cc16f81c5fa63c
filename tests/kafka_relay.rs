//! `repartition` with a real broker: what comes out is what one daemon without it would have made, record by record, whatever happens
//! meanwhile.
//!
//! Skipped by name until `tests/kafka/fetch` has been run.
#![allow(clippy::disallowed_methods, reason = "brokers live in real time")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use support::kafka::{Cluster, Message, is_missing};
use support::random::Random;
use support::{Daemon, tocsin};

/// The partitions of the topic that is read.
const PARTITIONS: usize = 3;
const HOSTS: u64 = 7;
/// In seconds.
const WINDOW: i64 = 10;
const OUT_OF_ORDER: i64 = 5;
/// When the last record of each partition happened: behind all others.
const END: i64 = 1_000_000;
/// What is waited for in vain takes no longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// A record of a partition.
#[derive(Clone, Debug)]
struct Order {
    at: i64,
    host: u64,
    number: u64,
}

impl Order {
    fn text(&self) -> String {
        let Self { at, host, number } = self;
        format!(r#"{{"ts":"{}","host":"h{host}","n":{number}}}"#, time(*at))
    }
}

fn time(secs: i64) -> String {
    chrono::DateTime::from_timestamp(1_700_000_000 + secs, 0)
        .unwrap()
        .to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Records of all partitions, which are not at the same time, nor in order: some of each are late.
fn orders(seed: u64, count: u64) -> Vec<Vec<Order>> {
    let mut random = Random(seed);
    let mut partitions: Vec<Vec<Order>> = vec![Vec::new(); PARTITIONS];
    for (partition, orders) in partitions.iter_mut().enumerate() {
        let mut now = 100 + 37 * partition as i64;
        for number in 0..count {
            now += random.below(3 + partition as u64) as i64;
            let behind = if random.below(8) == 0 { random.below(60) } else { random.below(OUT_OF_ORDER as u64) };
            let host = random.below(HOSTS);
            orders.push(Order { at: now - behind as i64, host, number: number * PARTITIONS as u64 + partition as u64 });
        }
        assert!(now < END / 2);
    }
    partitions
}

/// The last record of a partition.
fn last() -> Order {
    Order { at: END, host: 0, number: 0 }
}

/// What is to come out: of each window how many records and their sum, and the records that are late, each by its text.
fn expected(partitions: &[Vec<Order>]) -> Vec<String> {
    let mut windows: BTreeMap<(i64, u64), (u64, u64)> = BTreeMap::new();
    let mut told = Vec::new();
    for orders in partitions {
        let mut seen = i64::MIN / 2;
        for order in orders {
            let end = order.at.div_euclid(WINDOW) * WINDOW + WINDOW;
            if end <= seen - OUT_OF_ORDER {
                told.push(format!("late {} h{}", order.number, order.host));
            } else {
                let (count, sum) = windows.entry((end, order.host)).or_default();
                (*count, *sum) = (*count + 1, *sum + order.number);
            }
            seen = seen.max(order.at);
        }
    }
    told.extend(
        windows.iter().map(|((end, host), (count, sum))| format!("window {} h{host}: {count} {sum}", time(*end))),
    );
    told.sort();
    told
}

/// What records say, in words.
fn told(read: &[Message]) -> Vec<String> {
    let mut told: Vec<_> = read
        .iter()
        .map(|message| {
            let record: serde_json::Value = serde_json::from_str(&message.text()).unwrap();
            match record.get("window_end") {
                Some(end) => format!(
                    "window {} {}: {} {}",
                    end.as_str().unwrap(),
                    record["host"].as_str().unwrap(),
                    record["orders"],
                    record["sum"]
                ),
                None => format!("late {} {}", record["n"], record["host"].as_str().unwrap()),
            }
        })
        .collect();
    told.sort();
    told
}

/// A pipeline with topics of its own.
struct Scene {
    cluster: &'static Cluster,
    name: &'static str,
    folder: tempfile::TempDir,
    daemons: u32,
}

impl Scene {
    fn new(name: &'static str) -> Self {
        let cluster = Cluster::shared();
        cluster.create_topic(name, PARTITIONS as i32);
        // Times in Kafka are event times, and these are long past: the broker would delete the results.
        cluster.create_topic_with(&format!("{name}-results"), 2, &[("retention.ms", "-1")]);
        let folder = tempfile::tempdir().unwrap();
        let configuration = format!(
            r#"
[daemon]
checkpoint_store = "store"
checkpoint_interval = "100ms"
shutdown_timeout = "10s"

[sources.orders]
type = "kafka"
brokers = ["{brokers}"]
topics = ["{name}"]
group = "{name}"
codec = "json"
timestamp = {{ field = ".ts" }}
out_of_order = "{OUT_OF_ORDER}s"
idle_timeout = "1h"

[operators.by_host]
type = "repartition"
inputs = ["orders"]
key = [".host"]

[operators.per_host]
type = "window"
inputs = ["by_host"]
tumbling = "{WINDOW}s"
group_by = [".host"]
aggregates = {{ orders = "count()", sum = "sum(.n)" }}

[sinks.out]
type = "kafka"
brokers = ["{brokers}"]
inputs = ["per_host", "per_host.late"]
topic = "{name}-results"
delivery = "exactly_once"
encoding = "json"
"#,
            brokers = cluster.bootstrap(),
        );
        std::fs::create_dir(folder.path().join("store")).unwrap();
        std::fs::write(folder.path().join("tocsin.toml"), configuration).unwrap();
        Self { cluster, name, folder, daemons: 0 }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let path = self.folder.path().join("tocsin.toml");
        let mut command = tocsin(&[arguments, &[path.to_str().unwrap()]].concat());
        command.env("TOCSIN_LOG", std::env::var("TOCSIN_TEST_LOG").unwrap_or_else(|_| "warn".to_owned()));
        command
    }

    fn daemon(&mut self) -> Daemon {
        self.daemons += 1;
        println!("daemon {}", self.daemons);
        Daemon::start(&mut self.command(&["run"]))
    }

    fn produce(&self, partition: usize, orders: &[Order]) {
        self.cluster.produce(self.name, partition as i32, orders.iter().map(Order::text));
    }

    /// What has come out.
    fn results(&self) -> Vec<String> {
        told(&self.cluster.read_committed(&format!("{}-results", self.name)))
    }

    fn relay(&self) -> String {
        format!("{}.by_host", self.name)
    }

    /// The topic between has told each of its partitions, behind everything else, how far each of those before it has come; and what is
    /// in it is as old as it is, not as what happened.
    fn check_marks(&self) {
        let read = self.cluster.read_committed(&self.relay());
        let mut told = BTreeMap::new();
        for message in &read {
            let [(name, Some(stamp))] = &message.record.headers[..] else { panic!("{message:?}") };
            assert_eq!((name.as_str(), stamp[0]), ("tocsin", 1));
            let is_mark = stamp[1] == 1;
            assert_eq!(message.record.payload.is_none() && message.record.key.is_none(), is_mark);
            let age = chrono::Utc::now().timestamp_millis() - message.timestamp.unwrap();
            assert!((0..10 * 60 * 1000).contains(&age), "{age} ms old");
            if is_mark {
                let watermark = i64::from_le_bytes(stamp[2..10].try_into().unwrap());
                let lane = String::from_utf8(stamp[10..].to_vec()).unwrap();
                let before = told.insert((message.partition, lane), watermark);
                assert!(before < Some(watermark), "it is told when it has moved");
            }
        }
        let last = (1_700_000_000 + END - OUT_OF_ORDER) * 1_000_000_000;
        let lanes = (0..3).flat_map(|to| (0..PARTITIONS).map(move |from| (to, format!("{}/{from}", self.name))));
        assert_eq!(told, lanes.map(|of| (of, last)).collect());
        assert_eq!(read.iter().filter(|message| message.record.payload.is_some()).count(), PARTITIONS * 2_001);
    }

    /// Waits until so much has come out, while all daemons live.
    fn wait_for(&self, count: usize, daemons: &mut [Daemon]) {
        let begin = Instant::now();
        loop {
            let results = self.results();
            for daemon in &mut *daemons {
                assert_eq!(daemon.ended(), None, "a daemon ended by itself");
            }
            if results.len() >= count {
                println!("{} of {count} results after {:.1} s", results.len(), begin.elapsed().as_secs_f64());
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{} of {count} results have come", results.len());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Tells where two lists differ, for a person.
fn compare(results: &[String], expected: &[String]) {
    let less = |some: &[String], others: &[String]| {
        some.iter().filter(|it| !others.contains(it)).take(20).cloned().collect::<Vec<_>>().join("\n  ")
    };
    assert!(
        results == expected,
        "{} results, {} expected; only in the results:\n  {}\nmissing:\n  {}",
        results.len(),
        expected.len(),
        less(results, expected),
        less(expected, results)
    );
}

#[test]
fn one_daemon_makes_of_a_topic_between_what_it_would_make_without() {
    if is_missing("one_daemon_makes_of_a_topic_between_what_it_would_make_without") {
        return;
    }
    let mut scene = Scene::new("relay-one");
    let orders = orders(1, 2_000);
    let expected = expected(&orders);
    assert!(expected.iter().filter(|told| told.starts_with("late")).count() > 100);
    let daemon = scene.daemon();
    // One partition after the other: time stands still until the last has told what it has.
    for (partition, orders) in orders.iter().enumerate() {
        scene.produce(partition, orders);
        scene.produce(partition, &[last()]);
    }
    let mut daemons = [daemon];
    scene.wait_for(expected.len(), &mut daemons);
    let [daemon] = daemons;
    assert!(daemon.terminate().success());
    compare(&scene.results(), &expected);
    scene.check_marks();
    // It goes on where it was: nothing comes again. What somebody else writes to its topic is refused, and nothing more.
    scene.cluster.produce(&scene.relay(), 0, ["{\"host\":\"h1\"}"]);
    let mut daemons = [scene.daemon()];
    scene.produce(1, &[Order { at: END + 3, host: 3, number: 77 }, Order { at: 0, host: 3, number: 78 }]);
    scene.wait_for(expected.len() + 1, &mut daemons);
    let results = scene.results();
    let late: Vec<_> = results.iter().filter(|told| !expected.contains(told)).collect();
    assert_eq!(late, ["late 78 h3"]);
}

#[test]
fn two_daemons_make_the_same_though_one_is_killed() {
    if is_missing("two_daemons_make_the_same_though_one_is_killed") {
        return;
    }
    let mut scene = Scene::new("relay-two");
    let orders = orders(2, 3_000);
    let expected = expected(&orders);
    let mut daemons = vec![scene.daemon(), scene.daemon()];
    let thirds: Vec<Vec<_>> = orders.iter().map(|orders| orders.chunks(1_000).collect()).collect();
    for part in 0..3 {
        for (partition, thirds) in thirds.iter().enumerate() {
            for some in thirds[part].chunks(100) {
                scene.produce(partition, some);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if part == 1 {
            daemons.remove(0).kill();
            daemons.push(scene.daemon());
        }
    }
    (0..PARTITIONS).for_each(|partition| scene.produce(partition, &[last()]));
    scene.wait_for(expected.len(), &mut daemons);
    for daemon in daemons {
        assert!(daemon.terminate().success());
    }
    compare(&scene.results(), &expected);
}

#[test]
fn what_has_no_end_is_not_read_to_it() {
    if is_missing("what_has_no_end_is_not_read_to_it") {
        return;
    }
    let scene = Scene::new("relay-once");
    let ran = scene.command(&["run", "--once"]).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && told.contains("`run --once` ends where its input does"), "{told}");
}
