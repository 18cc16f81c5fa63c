//! The source `kafka`.

mod blocks;
mod offsets;
mod past;
mod reader;
mod sharing;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::BaseConsumer;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, Partitioned, Problem, Relay, RelayOptions, SourceConfig};
use tocsin_config::types::{self, ByteSize};
use tocsin_kafka::client::Listener;
use tocsin_kafka::connection::{Connection, Sasl, Tls};
use tocsin_kafka::place::Inputs;
use tocsin_kafka::topics::{is_topic, pattern};
use tocsin_pipeline::replay::Kept;
use tocsin_pipeline::sharing::Sharing;
use tocsin_pipeline::source::{Source, SourceContext, SourceError};
use tocsin_pipeline::time::Timestamp;

use self::past::Past;
use self::reader::Reader;
use self::sharing::Member;

/// Reads topics of Apache Kafka, from the offsets in the checkpoint.
///
/// Every partition is read in order; the offset after what is in a complete checkpoint is what decides where reading goes on.
/// The brokers are told of it under `group`, for dashboards. Partitions and topics that appear later are found within half a
/// minute and read from their beginning. Brokers that are away, at the start or later, are waited for: `/readyz` and
/// `tocsin_trouble` show it, and event time stands still meanwhile. How many records a partition holds that are not read yet
/// is in `tocsin_source_lag_events`.
///
/// A record's time is that in the record, as `timestamp` says; else the time that Kafka keeps of it. Programs find `%topic`,
/// `%partition`, `%offset`, `%key`, `%headers` and `%timestamp`. A record without a value (a tombstone) has nothing to decode:
/// it is counted under `tombstone` and goes to `NAME.rejected`.
///
/// With `daemon.checkpoint_store` several daemons share the partitions of the group; see docs/kafka.md.
///
/// **State:** an offset per partition.
///
/// **Late events:** records of a partition are late against those before them in it.
///
/// **After a crash:** goes on at the offsets of the checkpoint: nothing is lost, and state counts each record once. With a
/// `kafka` sink that writes `exactly_once` the transaction decides which checkpoint that is.
///
/// ```toml
/// [sources.orders]
/// type = "kafka"
/// brokers = ["kafka-1.example.org:9092", "kafka-2.example.org:9092"]
/// topics = ["orders"]
/// group = "tocsin-orders"
/// codec = "json"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// `host:port` of some brokers; the others are learnt from them.
    brokers: Vec<String>,
    /// The topics. One that begins with `^` is a regular expression: all topics whose names it matches as a whole, those that
    /// appear later included.
    topics: Vec<String>,
    /// The consumer group that offsets are told under, and whose members share the partitions where several daemons do.
    group: String,
    /// Where to begin on the first start: `"beginning"`, `"end"`, `{ time = "2026-11-20T12:00:00Z" }` (the first record at or
    /// after that time) or `{ offset = 42 }` (of each partition). Kafka's own words `"earliest"` and `"latest"` mean the same as
    /// the first two.
    #[serde(default)]
    read_from: ReadFrom,
    /// What becomes of an offset in the checkpoint that the topic does not hold any more (deleted by retention) or yet (made
    /// anew): `"stop"`, so that a person decides, or `"beginning"`, which goes on with what is there and counts what is missing
    /// in `tocsin_component_errors_total{error="records_missing"}`.
    #[serde(default)]
    out_of_range: OutOfRange,
    /// Which records of transactions are read: `"read_committed"`, or also those of open and aborted ones with
    /// `"read_uncommitted"`.
    #[serde(default)]
    isolation: Isolation,
    /// The fields whose values decide in which partition a record is, such as `[".host"]`: what whoever writes the topic takes
    /// as the key. Needed only where several daemons share the topic and something is kept by key.
    keyed_by: Option<Vec<String>>,
    /// How much may be read ahead; a part of `daemon.memory`, of which twice as much is set aside. At least `"1MiB"`.
    #[serde(default = "sixteen_mebibytes")]
    prefetch: ByteSize,
    /// How connections are encrypted; `tls = {}` trusts what the machine trusts. Without it they are not.
    tls: Option<Tls>,
    /// Who we are to the brokers: `{ mechanism = "scram-sha-512", username = "…", password = "…" }`.
    sasl: Option<Sasl>,
    /// Further settings of librdkafka, such as `{ "fetch.wait.max.ms" = "100" }`.
    #[serde(default)]
    options: BTreeMap<String, String>,
    /// Not to be written: what `repartition` says of the topic that it reads from.
    relay: Option<RelayEnd>,
}

/// The topic of a `repartition`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RelayEnd {
    /// Where the records come from: the topic is made with as many partitions, and each of theirs writes to it.
    topics: Vec<String>,
    /// As many as were asked for.
    partitions: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"beginning\", \"end\", { time = \"…\" } or { offset = … }")]
enum ReadFrom {
    #[default]
    #[serde(skip)]
    Default,
    Named(Named),
    Time(FromTime),
    Offset(FromOffset),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Named {
    /// With the first record that the topic still holds.
    #[serde(alias = "earliest")]
    Beginning,
    /// With the records that come from now on.
    #[serde(alias = "latest")]
    End,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FromTime {
    /// The first record whose time in Kafka is this or later; the end if there is none.
    time: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FromOffset {
    /// In each partition.
    offset: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OutOfRange {
    #[default]
    Stop,
    Beginning,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Isolation {
    #[default]
    ReadCommitted,
    ReadUncommitted,
}

fn sixteen_mebibytes() -> ByteSize {
    ByteSize(16 << 20)
}

impl Config {
    fn connection(&self) -> Connection {
        Connection {
            brokers: self.brokers.clone(),
            tls: self.tls.clone(),
            sasl: self.sasl.clone(),
            options: self.options.clone(),
        }
    }
}

impl Config {
    /// What a client is set up with; `ends`: it is told where a partition ends.
    fn settings(&self, connection: &Connection, ends: bool) -> ClientConfig {
        let mut settings = connection.settings();
        let half = self.prefetch.0 / 2;
        settings
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // An offset that is not there is for a person to decide about.
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", if ends { "true" } else { "false" })
            .set(
                "isolation.level",
                match self.isolation {
                    Isolation::ReadCommitted => "read_committed",
                    Isolation::ReadUncommitted => "read_uncommitted",
                },
            )
            // What is waiting, and one answer of a broker on top of that.
            .set("queued.max.messages.kbytes", (half >> 10).to_string())
            // A second, unless told otherwise: far longer than it takes to make room.
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.max.bytes", half.clamp(1 << 20, 50 << 20).to_string())
            .set("fetch.message.max.bytes", (half / 4).clamp(64 << 10, 1 << 20).to_string());
        for (name, value) in &connection.options {
            settings.set(name, value);
        }
        settings
    }
}

impl SourceConfig for Config {
    const NAME: &'static str = "kafka";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.connection().problems();
        if self.topics.is_empty() {
            problems.push(Problem::new("topics", "no topics").help("write `topics = [\"orders\"]`"));
        }
        for (at, topic) in self.topics.iter().enumerate() {
            let option = format!("topics.{at}");
            match pattern(topic) {
                Some(Ok(_)) => {}
                Some(Err(error)) => problems.push(Problem::new(option, format!("not a regular expression: {error}"))),
                None if is_topic(topic) => {}
                None => problems.push(
                    Problem::new(option, format!("{topic:?} cannot be the name of a topic"))
                        .help("use letters, digits, `.`, `_` and `-`; a pattern begins with `^`"),
                ),
            }
        }
        if self.group.is_empty() {
            problems.push(Problem::new("group", "a group without a name").help("write `group = \"tocsin-orders\"`"));
        }
        if let ReadFrom::Time(from) = &self.read_from
            && Timestamp::parse_rfc3339(from.time.as_bytes()).is_none()
        {
            let problem = Problem::new("read_from.time", format!("{:?} is no time", from.time));
            problems.push(problem.help("write it as in \"2026-11-20T12:00:00Z\""));
        }
        for (at, field) in self.keyed_by.iter().flatten().enumerate() {
            if tocsin_pipeline::path::parse(field).is_none_or(|path| path.segments.is_empty()) {
                problems.push(
                    Problem::new(format!("keyed_by.{at}"), format!("{field:?} is not a path to a field"))
                        .help("write a path such as \".host\""),
                );
            }
        }
        if self.prefetch.0 < 1 << 20 {
            problems.push(Problem::new("prefetch", "too little to read ahead").help("write at least \"1MiB\""));
        }
        problems
    }

    fn is_replayable(&self) -> bool {
        true
    }

    fn partitioned(&self) -> Option<Partitioned> {
        // Records of one key in two topics are in two lanes.
        let is_one = self.topics.len() == 1 && pattern(&self.topics[0]).is_none();
        let keyed_by = self.keyed_by.clone().filter(|_| is_one);
        Some(Partitioned { group: self.group.clone(), keyed_by })
    }

    fn sharing(&self, folder: &Path) -> Option<Box<dyn Sharing>> {
        Some(Box::new(Member {
            connection: self.connection().within(folder),
            group: self.group.clone(),
            topics: self.topics.clone(),
            relay: self.relay.clone(),
        }))
    }

    fn kept(&self, folder: &Path) -> Option<Box<dyn Kept>> {
        Some(Box::new(Past { connection: self.connection().within(folder), config: self.clone() }))
    }

    fn relay(&self, relay: &Relay, written: &Json) -> Option<RelayOptions> {
        let Relay { name, repartition, others } = relay;
        let topic = repartition.topic.clone().unwrap_or_else(|| format!("{}.{name}", self.group));
        let mut common = serde_json::Map::from_iter([("type".to_owned(), json!(Self::NAME))]);
        for option in ["brokers", "tls", "sasl"] {
            if let Some(value) = written.get(option) {
                common.insert(option.to_owned(), value.clone());
            }
        }
        let with = |options: Json| {
            let mut all = common.clone();
            all.extend(options.as_object().expect("it is an object").clone());
            all
        };
        let sink = with(json!({
            "topic": topic,
            "key": repartition.key,
            "encoding": "json",
            "delivery": "exactly_once",
            "relay": true,
        }));
        let mut topics = self.topics.clone();
        for other in others.iter().filter_map(|other| Vec::<String>::deserialize(other.get("topics")?).ok()).flatten() {
            if !topics.contains(&other) {
                topics.push(other);
            }
        }
        let mut end = json!({ "topics": topics });
        if let Some(partitions) = repartition.partitions {
            end["partitions"] = json!(partitions);
        }
        let mut source = with(json!({
            "topics": [topic],
            "group": format!("{}.{name}", self.group),
            "codec": "json",
            "keyed_by": repartition.key,
            "relay": end,
        }));
        // Where a record shows by itself how far event time has come, it shows as much behind the topic.
        let all = std::iter::once(written).chain(others).filter_map(|written| written.get("out_of_order"));
        let lengths = all.filter_map(|text| Some((text, text.as_str()?.parse::<types::Duration>().ok()?)));
        if let Some((longest, _)) = lengths.max_by_key(|(_, length)| *length) {
            source.insert("out_of_order".to_owned(), longest.clone());
        }
        Some(RelayOptions { sink, source })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        let mut config = self.clone();
        let mut inputs = Inputs {
            brokers: self.brokers.clone(),
            group: self.group.clone(),
            topics: self.topics.clone(),
            partition: None,
        };
        if let Some(assigned) = &context.partition {
            inputs.topics = vec![assigned.topic.clone()];
            inputs.partition = Some(assigned.partition);
            config.prefetch.0 = (config.prefetch.0 / assigned.of.max(1) as u64).max(1 << 20);
        }
        Box::new(Kafka { connection: self.connection().within(&context.folder), inputs, config, consumer: None })
    }
}

/// A client that reads.
type Consumer = Arc<BaseConsumer<Listener>>;

struct Kafka {
    config: Config,
    connection: Connection,
    inputs: Inputs,
    consumer: Option<(Consumer, Listener)>,
}

impl Source for Kafka {
    /// As much as is read ahead again is taken together to blocks.
    fn memory(&self) -> usize {
        usize::try_from(self.config.prefetch.0).unwrap_or(usize::MAX).saturating_mul(2)
    }

    fn awaits_lanes(&self) -> bool {
        true
    }

    fn inputs(&self) -> Option<Json> {
        Some(self.inputs.write())
    }

    fn open<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let settings = self.config.settings(&self.connection, context.once);
            let listener = Listener::new(Arc::clone(&context.name), context.metrics.clone());
            // Reads certificates and starts threads; brokers are not waited for.
            let consumer = BaseConsumer::from_config_and_context(&settings, listener.clone())
                .map_err(|error| SourceError(format!("cannot set up the client: {error}")))?;
            self.consumer = Some((Arc::new(consumer), listener));
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let (consumer, listener) =
                self.consumer.ok_or_else(|| SourceError("the source was not opened".to_owned()))?;
            let (answer, answered) = tokio::sync::oneshot::channel();
            let reader = Reader::new(self.config, self.inputs, consumer, listener, context);
            // The calls of the client block.
            std::thread::Builder::new()
                .name("kafka".to_owned())
                .spawn(move || {
                    // Nobody waits any more where the pipeline has been given up.
                    let _ = answer.send(reader.run());
                })
                .map_err(|error| SourceError(format!("cannot start the thread that reads: {error}")))?;
            answered.await.map_err(|_| SourceError("the thread that reads has ended by a bug".to_owned()))?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_between_knows_who_writes_to_it_and_how_far_behind_their_records_may_be() {
        let text = "brokers = [\"k:9092\"]\ngroup = \"g\"\ntopics = [\"orders\", \"^returns-.*\"]";
        let config: Config = toml::from_str(text).unwrap();
        let relay = Relay {
            name: "by_host".to_owned(),
            repartition: tocsin_config::component::Repartition {
                key: vec![".host".to_owned()],
                topic: None,
                partitions: None,
            },
            others: vec![
                json!({ "topics": ["payments", "orders"], "out_of_order": "1m" }),
                json!({ "topics": ["audit"], "out_of_order": "90s" }),
            ],
        };
        let RelayOptions { sink, source } =
            SourceConfig::relay(&config, &relay, &json!({ "out_of_order": "5s" })).unwrap();
        assert_eq!(sink["topic"], "g.by_host");
        assert_eq!(source["relay"], json!({ "topics": ["orders", "^returns-.*", "payments", "audit"] }));
        assert_eq!(source["out_of_order"], "90s");
    }

    fn told(options: &str) -> String {
        let text = format!("brokers = [\"k:9092\"]\ngroup = \"g\"\n{options}");
        match toml::from_str::<Config>(&text) {
            Ok(config) => {
                config.problems().iter().map(|problem| format!("{}: {}\n", problem.option, problem.message)).collect()
            }
            Err(error) => error.message().to_owned(),
        }
    }

    #[test]
    fn what_cannot_work_is_told_of_its_option() {
        assert_eq!(told("topics = [\"orders\", \"^logs-.*\"]\nread_from = \"latest\""), "");
        assert_eq!(
            told("topics = [\"a\"]\nread_from = { offset = 3 }\nkeyed_by = [\".host\"]\nprefetch = \"1MiB\""),
            ""
        );
        assert_eq!(told("topics = []"), "topics: no topics\n");
        assert_eq!(told("topics = [\"a b\"]"), "topics.0: \"a b\" cannot be the name of a topic\n");
        assert!(told("topics = [\"^(\"]").starts_with("topics.0: not a regular expression"));
        assert_eq!(told("topics = [\"a\"]\nread_from = { time = \"noon\" }"), "read_from.time: \"noon\" is no time\n");
        assert!(told("topics = [\"a\"]\nread_from = \"middle\"").contains("expected \"beginning\""));
        assert_eq!(
            told("topics = [\"a\"]\nkeyed_by = [\"host]\"]"),
            "keyed_by.0: \"host]\" is not a path to a field\n"
        );
        assert_eq!(told("topics = [\"a\"]\nprefetch = \"1KiB\""), "prefetch: too little to read ahead\n");
    }
}
