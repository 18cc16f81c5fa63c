//! The numbered records that go in, and what must come out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::Value as Json;
use tocsin_pipeline::time::Timestamp;

use crate::support::campaign::Outcome;
use crate::support::kafka::Cluster;

/// Hosts of each partition.
const HOSTS: u64 = 2;
/// Between two records of a host, in milliseconds of event time.
const STEP: u64 = 50;
/// How long a window is, in milliseconds.
pub const WINDOW: u64 = 2000;
/// How many records of a host lie behind one that came before them, at most: less than `out_of_order` of event time.
const BEHIND: u64 = 10;
/// In milliseconds since 1970: 2026-11-20T10:00:00Z, which is older than what a topic keeps by default.
const BEGIN: u64 = 1_795_168_800_000;

/// Writes records and knows what must come of them. All of a host are in one partition, and there are as many of each.
pub struct Feed<'c> {
    cluster: &'c Cluster,
    topic: String,
    partitions: u64,
    producer: ThreadedProducer<DefaultProducerContext>,
    /// The number of the next record of each host.
    next: u64,
    /// Whether all windows were closed by records of a much later time.
    is_closed: bool,
}

impl<'c> Feed<'c> {
    pub fn new(cluster: &'c Cluster, topic: String, partitions: i32) -> Self {
        let mut config = cluster.client();
        config.set("enable.idempotence", "true").set("linger.ms", "5");
        let producer = config.create().unwrap();
        Self { cluster, topic, partitions: partitions.unsigned_abs().into(), producer, next: 0, is_closed: false }
    }

    /// The next `count` records of each host; they may be still on their way.
    pub fn write(&mut self, count: u64) {
        for number in self.next..self.next + count {
            for host in 0..self.partitions * HOSTS {
                self.send(host, &line(host, number, time(host, number)));
            }
        }
        self.next += count;
    }

    fn send(&self, host: u64, line: &str) {
        let key = name(host);
        let partition = i32::try_from(host % self.partitions).unwrap();
        let record = BaseRecord::to(&self.topic).partition(partition).key(&key).payload(line);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// Goes on writing until told to stop: a few hundred records a second.
    pub fn flow(&mut self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            self.write(1);
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Closes all windows and returns when the brokers have everything.
    pub fn close(&mut self) -> anyhow::Result<()> {
        for host in 0..self.partitions * HOSTS {
            self.send(host, &line(host, self.next, BEGIN + self.next * STEP + 3_600_000));
        }
        self.is_closed = true;
        self.producer.flush(Duration::from_secs(60))?;
        let written: i64 = self.ends()?.iter().sum();
        let expected = (self.next + 1) * self.partitions * HOSTS;
        ensure!(written.unsigned_abs() == expected, "{expected} records were sent, and {written} are there");
        Ok(())
    }

    /// The offset behind the last record of each partition.
    pub fn ends(&self) -> anyhow::Result<Vec<i64>> {
        let consumer: BaseConsumer = self.cluster.client().create()?;
        let ends = (0..self.partitions).map(|partition| {
            let partition = i32::try_from(partition)?;
            Ok(consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(30))?.1)
        });
        ends.collect()
    }

    /// What was written: host, number, time.
    fn records(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let closing = self.is_closed.then_some((self.next, BEGIN + self.next * STEP + 3_600_000));
        (0..self.partitions * HOSTS).flat_map(move |host| {
            let usual = (0..self.next).map(move |number| (host, number, time(host, number)));
            usual.chain(closing.map(|(number, time)| (host, number, time)))
        })
    }

    /// The records that pass the filter, as they were written.
    pub fn kept(&self) -> Vec<String> {
        let kept = self.records().filter(|(host, number, _)| is_kept(*host, *number));
        kept.map(|(host, number, time)| line(host, number, time)).collect()
    }

    /// The windows that are closed, as [`shown`] shows them.
    pub fn windows(&self) -> Vec<String> {
        let mut windows: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        for (host, number, time) in self.records().filter(|(host, number, _)| is_kept(*host, *number)) {
            let window = windows.entry((time / WINDOW, host)).or_default();
            window.0 += 1;
            window.1 += number;
        }
        let last = (BEGIN + self.next * STEP + 3_600_000) / WINDOW;
        let closed = windows.into_iter().filter(|((window, _), _)| *window < last);
        closed
            .map(|((window, host), (count, sum))| format!("{} {} {count} {sum}", text(window * WINDOW), name(host)))
            .collect()
    }

    /// How many records must come out.
    pub fn expected(&self) -> usize {
        self.kept().len() + self.windows().len()
    }

    /// Holds what a reader sees against what it should see.
    pub fn compare(&self, what: &str, seen: &[String], outcome: &mut Outcome) {
        let (windows, kept) = parted(seen);
        outcome.compare(&format!("{what}: records"), self.kept(), kept);
        outcome.compare(&format!("{what}: windows"), self.windows(), windows);
    }

    /// The same, where what comes again is no fault.
    pub fn compare_once(&self, what: &str, seen: &[String], outcome: &mut Outcome) {
        let (mut windows, mut kept) = parted(seen);
        for seen in [&mut windows, &mut kept] {
            seen.sort_unstable();
            seen.dedup();
        }
        outcome.note("repeated", seen.len() - windows.len() - kept.len());
        outcome.compare(&format!("{what}: records"), self.kept(), kept);
        outcome.compare(&format!("{what}: windows"), self.windows(), windows);
    }
}

/// Windows, as they are to be compared, and records.
fn parted(seen: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut windows, mut kept) = (Vec::new(), Vec::new());
    for text in seen {
        match shown(text) {
            Some(window) => windows.push(window),
            None => kept.push(text.clone()),
        }
    }
    (windows, kept)
}

/// A window as text: begin, host, count, sum. `None`: it is a record.
fn shown(text: &str) -> Option<String> {
    let window: Json = serde_json::from_str(text).ok()?;
    let begin = Timestamp::parse_rfc3339(window["window_start"].as_str()?.as_bytes())?;
    Some(format!("{begin} {} {} {}", window["host"].as_str()?, window["count"], window["sum"].as_f64()?))
}

fn name(host: u64) -> String {
    format!("h{host:02}")
}

/// Records of a host come out of order.
fn time(host: u64, number: u64) -> u64 {
    BEGIN + number * STEP - (number * 7 + host) % BEHIND * STEP
}

fn is_kept(host: u64, number: u64) -> bool {
    !(host + number).is_multiple_of(4)
}

fn line(host: u64, number: u64, time: u64) -> String {
    let level = if is_kept(host, number) { "INFO" } else { "DEBUG" };
    let (time, name) = (text(time), name(host));
    format!(r#"{{"ts":"{time}","level":"{level}","host":"{name}","seq":{number},"msg":"request {number} at {name}"}}"#)
}

fn text(millis: u64) -> String {
    Timestamp::from_millis(i64::try_from(millis).unwrap()).to_string()
}
