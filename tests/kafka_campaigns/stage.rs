//! A pipeline from one topic to another, the numbered records that go in, and what must come out.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value as Json;
use tocsin_pipeline::checkpoint::read_epoch;
use tocsin_pipeline::store::Disk;

use crate::scene::Scene;
use crate::support::campaign::{Order, Outcome};
use crate::support::kafka::{Cluster, Isolation, Record};
use crate::support::tocsin;

/// How many partitions the input has.
pub const PARTITIONS: i32 = 4;
/// How many writers there are: two in each partition.
const PRODUCERS: u64 = 8;

/// Filtered records and the statistics of each producer, in one transaction.
pub const PIPELINE: &str = r#"
[sources.log]
type = "kafka"
brokers = ["${BROKERS}"]
topics = ["${INPUT}"]
group = "${GROUP}"
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1h"

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG"'

[operators.stats]
type = "window"
inputs = ["kept"]
tumbling = "1s"
group_by = [".p"]
aggregates = { count = "count()", sum = "sum(.seq)" }

[sinks.out]
type = "kafka"
inputs = ["kept", "stats"]
brokers = ["${BROKERS}"]
topic = "${OUTPUT}"
key = [".p"]
delivery = "exactly_once"
"#;

/// Topics and a group of their own, and a place for the daemon that goes between them.
pub struct Stage<'c> {
    pub cluster: &'c Cluster,
    pub scene: Scene,
    pub name: String,
    /// Asks where the group stands.
    group: BaseConsumer,
}

impl<'c> Stage<'c> {
    /// The daemon finds the brokers at `brokers`.
    pub fn new(order: &Order, cluster: &'c Cluster, brokers: &str, pipeline: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stage-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        cluster.create_topic(&format!("{name}-in"), PARTITIONS);
        cluster.create_topic(&format!("{name}-out"), 2);
        let variables = [
            // Several are one text in the list.
            ("BROKERS", brokers.replace(',', "\", \"")),
            ("INPUT", format!("{name}-in")),
            ("OUTPUT", format!("{name}-out")),
            ("GROUP", name.clone()),
        ];
        let pipeline = variables
            .iter()
            .fold(pipeline.to_owned(), |text, (name, value)| text.replace(&format!("${{{name}}}"), value));
        let mut config = cluster.client();
        config.set("group.id", &name).set("isolation.level", "read_uncommitted");
        let group = config.create().unwrap();
        Self { cluster, scene: Scene::new(order, &pipeline, Vec::new()), name, group }
    }

    pub fn input(&self) -> String {
        format!("{}-in", self.name)
    }

    pub fn output(&self) -> String {
        format!("{}-out", self.name)
    }

    pub fn feed(&self) -> Feed<'c> {
        Feed { cluster: self.cluster, topic: self.input(), next: 0 }
    }

    pub fn follower(&self) -> Follower {
        Follower::new(self.cluster, &self.output())
    }

    /// The epoch that was committed last, by what stands with the offsets of the group; 0 if there is none. What is being
    /// committed is not waited for.
    pub fn epoch(&self) -> anyhow::Result<u64> {
        Ok(self.committed()?.map_or(0, |(epoch, _)| epoch))
    }

    fn committed(&self) -> anyhow::Result<Option<(u64, BTreeMap<i32, i64>)>> {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_range(&self.input(), 0, PARTITIONS - 1);
        // A broker that has just started may not lead the group yet.
        let mut patience = 50;
        let found = loop {
            match self.group.committed_offsets(wanted.clone(), Duration::from_secs(2)) {
                Ok(found) => break found,
                Err(error) if patience == 0 => return Err(error.into()),
                Err(_) => patience -= 1,
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let known = found.elements().into_iter().filter_map(|one| match one.offset() {
            Offset::Offset(offset) => Some((one.partition(), offset, one.metadata().to_owned())),
            _ => None,
        });
        let committed: Vec<_> = known.collect();
        let markers: BTreeSet<&str> = committed.iter().map(|(_, _, metadata)| metadata.as_str()).collect();
        let Some(marker) = markers.first() else { return Ok(None) };
        ensure!(markers.len() == 1, "offsets of several epochs are committed: {markers:?}");
        let by = format!("tocsin.{}.out", self.name);
        let epoch = marker.strip_prefix("tocsin;epoch=").and_then(|rest| rest.strip_suffix(&format!(";by={by}")));
        let epoch = epoch.with_context(|| format!("{marker:?} is no marker of {by}"))?.parse()?;
        Ok(Some((epoch, committed.into_iter().map(|(partition, offset, _)| (partition, offset)).collect())))
    }

    /// The offsets of the group are those of the checkpoint that stands with them. No daemon runs.
    pub fn require_agreement(&self) -> anyhow::Result<()> {
        let Some((number, mut offsets)) = self.committed()? else { return Ok(()) };
        let epoch = read_epoch(&Disk, &self.scene.state(), number);
        let epoch = epoch.map_err(|why| anyhow::anyhow!("the group names epoch {number}: {why}"))?;
        let place = |position: &Json| {
            let place = position.get("kafka")?;
            Some((i32::try_from(place["partition"].as_i64()?).ok()?, place["next"].as_i64()?))
        };
        let lanes = epoch.restored.sources.values().flat_map(|lanes| lanes.values());
        let mut positions: BTreeMap<i32, i64> = lanes.filter_map(|lane| place(&lane.position)).collect();
        // An epoch in which nothing was read yet stands with the beginning of a partition: somewhere it must.
        for places in [&mut offsets, &mut positions] {
            places.retain(|_, next| *next > 0);
        }
        ensure!(positions == offsets, "epoch {number} has come to {positions:?}, and the group says {offsets:?}");
        Ok(())
    }

    /// Holds what a reader of committed messages has seen against what it should, once everything has come to its end.
    pub fn judge(&self, feed: &Feed<'_>, follower: &mut Follower, outcome: &mut Outcome) -> anyhow::Result<()> {
        self.require_agreement()?;
        let (kept, windows) = (feed.kept().len(), feed.windows().len());
        // The last ones may still be on their way, and what is too many comes with them.
        for _ in 0..50 {
            follower.read();
            if follower.seen.len() >= kept + windows {
                break;
            }
        }
        feed.compare("what a reader sees", &follower.seen, outcome);
        self.scene.audit(outcome);
        let told = std::fs::read_to_string(self.scene.path("told")).unwrap_or_default();
        outcome
            .violations
            .extend(told.lines().filter(|line| line.contains("ERROR")).map(|line| format!("told: {line}")));
        Ok(())
    }

    /// The same for Kafka's own consumer.
    pub fn judge_with_kafka(&self, feed: &Feed<'_>, outcome: &mut Outcome) {
        // One more than there should be: it waits until nothing comes any more.
        let wanted = feed.kept().len() + feed.windows().len() + 1;
        let messages = self.cluster.console_consumer(&self.output(), Isolation::Committed, wanted);
        let seen: Vec<String> = messages.iter().map(|message| message.text()).collect();
        feed.compare("what Kafka's own consumer sees", &seen, outcome);
    }

    /// `tocsin run` with a data directory of its own.
    pub fn command(&self, data_dir: &str, arguments: &[&str]) -> Command {
        let mut command = tocsin(&["run"]);
        command.args(arguments).arg(self.scene.path("pipeline.toml")).arg("--data-dir").arg(self.scene.path(data_dir));
        self.scene.dress(&mut command);
        command
    }
}

/// Writes numbered records to the input and knows what must come of them.
///
/// Every fifth is of level DEBUG. They are 10 ms of event time apart.
pub struct Feed<'c> {
    cluster: &'c Cluster,
    topic: String,
    pub next: u64,
}

impl Feed<'_> {
    /// The next `count` records, those of a producer to its partition. Returns when the brokers have them.
    pub fn write(&mut self, count: u64) {
        let range = self.next..self.next + count;
        for partition in 0..PARTITIONS {
            let of = |number: &u64| number % PRODUCERS % PARTITIONS as u64 == partition as u64;
            let records = range
                .clone()
                .filter(of)
                .map(|number| Record::new(Some(&format!("p{}", number % PRODUCERS)), Some(&line(number))));
            self.cluster.produce(&self.topic, partition, records);
        }
        self.next += count;
    }

    /// Goes on writing until told to stop.
    pub fn flow(&mut self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            self.write(20);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The records that pass the filter: producer and number.
    pub fn kept(&self) -> Vec<(u64, u64)> {
        (0..self.next)
            .filter(|number| is_kept(*number))
            .map(|number| (number % PRODUCERS, number / PRODUCERS))
            .collect()
    }

    /// Second, producer, count and sum of what is kept.
    pub fn windows(&self) -> Vec<(String, u64, u64, u64)> {
        let mut windows: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        for number in (0..self.next).filter(|number| is_kept(*number)) {
            let window = windows.entry((number / 100, number % PRODUCERS)).or_default();
            window.0 += 1;
            window.1 += number / PRODUCERS;
        }
        windows.into_iter().map(|((second, p), (count, sum))| (time(second * 1000, false), p, count, sum)).collect()
    }

    /// Holds lines that were read against what was written.
    pub fn compare(&self, what: &str, seen: &[String], outcome: &mut Outcome) {
        let (mut kept, mut windows) = (Vec::new(), Vec::new());
        for text in seen {
            match parsed(text) {
                Some(Seen::Record(record)) => kept.push(record),
                Some(Seen::Window(window)) => windows.push(window),
                None => outcome.violations.push(format!("{what}: {text:?} is nothing that was to be written")),
            }
        }
        outcome.compare(&format!("{what}: records"), self.kept(), kept);
        outcome.compare(&format!("{what}: windows"), self.windows(), windows);
    }
}

fn is_kept(number: u64) -> bool {
    !number.is_multiple_of(5)
}

fn line(number: u64) -> String {
    let level = if is_kept(number) { "INFO" } else { "DEBUG" };
    format!(
        "{{\"p\":{},\"seq\":{},\"ts\":\"{}\",\"level\":\"{level}\"}}",
        number % PRODUCERS,
        number / PRODUCERS,
        time(number * 10, true)
    )
}

fn time(millis: u64, has_millis: bool) -> String {
    let (hour, minute, second) = (millis / 3_600_000 % 24, millis / 60_000 % 60, millis / 1000 % 60);
    let fraction = if has_millis { format!(".{:03}", millis % 1000) } else { String::new() };
    format!("2026-11-{:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z", 1 + millis / 86_400_000)
}

/// What an output line says.
pub enum Seen {
    Record((u64, u64)),
    Window((String, u64, u64, u64)),
}

pub fn parsed(text: &str) -> Option<Seen> {
    let json: Json = serde_json::from_str(text).ok()?;
    let number = |name: &str| json[name].as_f64().map(|number| number as u64);
    let p = number("p")?;
    Some(match json["window_start"].as_str() {
        Some(start) => Seen::Window((start.to_owned(), p, number("count")?, number("sum")?)),
        None => Seen::Record((p, number("seq")?)),
    })
}

/// Follows a topic as a reader of committed messages does.
pub struct Follower {
    consumer: BaseConsumer,
    pub seen: Vec<String>,
    /// How many of them are records, not windows.
    records: usize,
}

impl Follower {
    fn new(cluster: &Cluster, topic: &str) -> Self {
        let mut config = cluster.client();
        config
            .set("group.id", "tests-follower")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "20")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("auto.offset.reset", "error");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut positions = TopicPartitionList::new();
        for partition in 0..2 {
            positions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&positions).unwrap();
        Self { consumer, seen: Vec::new(), records: 0 }
    }

    /// Takes what is there.
    pub fn read(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end
            && let Some(read) = self.consumer.poll(Duration::from_millis(30))
        {
            // Brokers come and go.
            let Ok(message) = read else { continue };
            let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
            self.records += usize::from(!text.contains("window_start"));
            self.seen.push(text);
        }
    }

    /// Whether all records that pass the filter have been seen, windows aside.
    pub fn has_kept(&mut self, feed: &Feed<'_>) -> bool {
        self.read();
        self.records >= feed.kept().len()
    }
}

/// Writes records beside whatever is done, and gives back the feed.
pub fn beside<'c, T>(mut feed: Feed<'c>, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Feed<'c>, T)> {
    let is_over = Arc::<AtomicBool>::default();
    std::thread::scope(|scope| {
        let flag = Arc::clone(&is_over);
        let writing = scope.spawn(move || {
            feed.flow(&flag);
            feed
        });
        // However it ends, the other must.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_over.store(true, Ordering::Relaxed);
        let feed = writing.join().map_err(|_| anyhow::anyhow!("the records could not be written"))?;
        match done {
            Ok(done) => Ok((feed, done?)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
