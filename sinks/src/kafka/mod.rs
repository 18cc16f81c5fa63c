//! The sink `kafka`.

mod marks;
mod message;
mod producer;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::{self, ByteSize};
use tocsin_kafka::connection::{Connection, Sasl, Tls};
use tocsin_kafka::place::Place;
use tocsin_pipeline::decider::Decider;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::fault;
use tocsin_pipeline::health::Trouble;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::{Prepared, Sink, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::template::{Escape, Template};
use tokio::sync::OwnedSemaphorePermit;

use self::marks::Marks;
use self::message::{Messages, Refusal};
use self::producer::{Failure, InFlight, Of, Producer};
use self::transaction::Transaction;
use crate::encoding;

/// How long a transaction may stay open: what brokers allow unless they are told otherwise.
const TRANSACTION_TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);
/// How often it is looked whether what was sent has arrived.
const LOOK: Duration = Duration::from_millis(1);
/// Between two attempts to find out what the brokers do not say.
const AGAIN: Duration = Duration::from_millis(200);
/// What has not arrived for so long is told about.
const SLOW: Duration = Duration::from_secs(5);

/// Writes records to topics of Apache Kafka.
///
/// A record is a message: its value as `encoding` says, its key and headers from fields, its time the event's. Messages with one
/// key go to one partition, the same that Java clients choose. Every message is acknowledged by all replicas that are in
/// sync, and retried without being written twice for as long as it takes. Brokers that are away are waited for: checkpoints wait
/// with them, unless `buffer.when_full = "spill"`. What can never be written (too large, a topic that cannot be, no right to
/// write it) is a dead letter.
///
/// With `delivery = "exactly_once"` the output of each epoch is one transaction, together with the offsets of what was read from
/// the same brokers. It is committed when the checkpoint is durable, and says after a crash which checkpoint that is. Readers
/// that read committed messages see each record once, at most a `daemon.checkpoint_interval` later. There can be one such sink in a
/// pipeline. Another daemon that starts with the same transactional id takes over, and this one stops.
///
/// **State:** none.
///
/// **Late events:** written like any other.
///
/// **After a crash:** with `delivery = "exactly_once"` nothing is lost and nothing repeats; with `"at_least_once"` what was written since
/// the last checkpoint is written again.
///
/// ```toml
/// [sinks.errors]
/// type = "kafka"
/// inputs = ["server_errors"]
/// brokers = ["kafka-1.example.org:9092"]
/// topic = "errors"
/// key = [".host"]
/// delivery = "exactly_once"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// `host:port` of some brokers; the others are learnt from them.
    brokers: Vec<String>,
    /// The topic, which must be there. It may hold fields after a beginning that is fixed: `"errors-{{ service }}"`; a record
    /// whose fields make no name of a topic is a dead letter.
    topic: String,
    /// The fields that the key is made of: the text of one, or a JSON array of several. A record that has none of them has no key,
    /// and goes to any partition.
    #[serde(default)]
    key: Vec<String>,
    /// Headers by name; values may hold `{{ fields }}`.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// How a record is written. Default: as it came in where nothing changed it, else as JSON.
    encoding: Option<encoding::Config>,
    /// `"at_least_once"`: visible at once, and again after a crash. `"exactly_once"`: in transactions, with each checkpoint.
    #[serde(default)]
    delivery: Delivery,
    /// With `"exactly_once"`: what this writer is called, unique among all that write to these brokers. Default:
    /// `tocsin.GROUP.NAME` of the group that a `kafka` source reads from the same brokers.
    transactional_id: Option<String>,
    /// With `"exactly_once"`: a transaction that is open for longer, since checkpoints take so long or the process stands still, is
    /// undone by the brokers and done again. From `"1s"` to `"15m"`, the most that brokers allow unless told otherwise.
    #[serde(default = "ten_minutes")]
    transaction_timeout: types::Duration,
    /// How batches of messages are compressed.
    #[serde(default)]
    compression: Compression,
    /// How the partition of a message is chosen.
    #[serde(default)]
    partitioner: Partitioner,
    /// How long messages are held back so that they travel together.
    #[serde(default = "five_milliseconds")]
    linger: types::Duration,
    /// How much may be on its way to the brokers; a part of `daemon.memory`. At least `"1MiB"`.
    #[serde(default = "thirty_two_mebibytes")]
    queue: ByteSize,
    /// Longer messages, key and headers included, are dead letters. The topic must take as much (`max.message.bytes`).
    #[serde(default = "one_megabyte")]
    max_message_bytes: ByteSize,
    /// How connections are encrypted; `tls = {}` trusts what the machine trusts. Without it they are not.
    tls: Option<Tls>,
    /// Who we are to the brokers: `{ mechanism = "scram-sha-512", username = "…", password = "…" }`.
    sasl: Option<Sasl>,
    /// Further settings of librdkafka, such as `{ "batch.num.messages" = "50000" }`.
    #[serde(default)]
    options: BTreeMap<String, String>,
    /// Not to be written: `repartition` says so of the topic that it writes to.
    #[serde(default)]
    relay: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Delivery {
    #[default]
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Compression {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// How the partition of a message is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Partitioner {
    /// By the murmur2 hash of the key, as Java clients do; any partition without one.
    #[default]
    Murmur2,
    /// By the CRC-32 of the key, as librdkafka does by itself; any partition without one.
    Crc32,
    /// By the FNV-1a hash of the key, as Sarama does; any partition without one.
    Fnv1a,
    /// Any partition, whatever the key.
    Random,
}

impl Partitioner {
    fn as_str(self) -> &'static str {
        match self {
            Self::Murmur2 => "murmur2_random",
            Self::Crc32 => "consistent_random",
            Self::Fnv1a => "fnv1a_random",
            Self::Random => "random",
        }
    }
}

fn ten_minutes() -> types::Duration {
    types::Duration(Duration::from_secs(10 * 60))
}

fn five_milliseconds() -> types::Duration {
    types::Duration(Duration::from_millis(5))
}

fn thirty_two_mebibytes() -> ByteSize {
    ByteSize(32 << 20)
}

fn one_megabyte() -> ByteSize {
    ByteSize(1_000_000)
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

    /// The settings of the client, but for the transactional id.
    fn settings(&self, connection: &Connection) -> ClientConfig {
        let mut settings = connection.settings();
        settings
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // What cannot be written now can be later; what never can be is told at once all the same.
            .set("message.timeout.ms", "0")
            .set("compression.type", self.compression.as_str())
            .set("partitioner", self.partitioner.as_str())
            .set("linger.ms", self.linger.0.as_millis().to_string())
            .set("queue.buffering.max.kbytes", (self.queue.0 >> 10).to_string())
            .set("queue.buffering.max.messages", "1000000")
            .set("message.max.bytes", self.max_message_bytes.0.to_string());
        settings
    }
}

impl SinkConfig for Config {
    const NAME: &'static str = "kafka";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.connection().problems();
        problems.extend(encoding::problems(self.encoding.as_ref()));
        problems.extend(message::topic_problem(&self.topic));
        for (name, value) in &self.headers {
            if let Err(error) = Template::compile(value, Escape::None) {
                problems.push(Problem::new(format!("headers.{name}"), error.message).within(error.within));
            }
        }
        for (at, field) in self.key.iter().enumerate() {
            if tocsin_pipeline::path::parse(field).is_none_or(|path| path.segments.is_empty()) {
                problems.push(
                    Problem::new(format!("key.{at}"), format!("{field:?} is not a path to a field"))
                        .help("write a path such as \".host\""),
                );
            }
        }
        if self.transactional_id.as_ref().is_some_and(String::is_empty) {
            problems.push(Problem::new("transactional_id", "a transactional id without a name"));
        }
        if self.transactional_id.is_some() && self.delivery == Delivery::AtLeastOnce {
            problems.push(
                Problem::new("transactional_id", "there are no transactions with `delivery = \"at_least_once\"`")
                    .help("remove it, or write `delivery = \"exactly_once\"`"),
            );
        }
        if !(Duration::from_secs(1)..=TRANSACTION_TIMEOUT_MAX).contains(&self.transaction_timeout.0) {
            problems.push(Problem::new("transaction_timeout", "not between \"1s\" and \"15m\""));
        }
        if self.queue.0 < 1 << 20 {
            problems.push(Problem::new("queue", "too little for what is on its way").help("write at least \"1MiB\""));
        }
        if !(1000..=1_000_000_000).contains(&self.max_message_bytes.0) {
            problems.push(Problem::new("max_message_bytes", "not between 1000 and 1000000000 bytes"));
        }
        if self.linger.0 > Duration::from_secs(60) {
            problems.push(Problem::new("linger", "messages may be held back for a minute at most"));
        }
        problems
    }

    fn needs_time(&self) -> bool {
        true
    }

    fn is_transactional(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    fn guarantee(&self) -> &'static str {
        match self.delivery {
            Delivery::AtLeastOnce => "at least once",
            Delivery::ExactlyOnce => "exactly once, for readers of committed messages",
        }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let connection = self.connection().within(&context.folder);
        let mut config = self.clone();
        if let Some(assigned) = &context.partition {
            config.queue.0 = (config.queue.0 / assigned.of.max(1) as u64).max(1 << 20);
        }
        let settings = config.settings(&connection);
        // A pipeline of a partition writes in the name of that.
        let assigned = context.partition.as_ref().filter(|_| self.relay);
        let lane = assigned.map(|assigned| Place::lane(&assigned.topic, assigned.partition));
        let messages = Messages::new(self, context.paths, lane.clone());
        let marks = lane.map(|lane| Marks::new(self.topic.clone(), lane));
        let transaction = (self.delivery == Delivery::ExactlyOnce).then(|| {
            Arc::new(Transaction::new(transaction::Setup {
                settings: settings.clone(),
                connection,
                id: self.transactional_id.clone(),
                topic: messages.fixed_topic(),
                timeout: u32::try_from(self.transaction_timeout.0.as_millis()).unwrap_or(u32::MAX),
            }))
        });
        Box::new(Kafka { settings, messages, marks, memory: config.queue.0, transaction, producer: None })
    }
}

struct Kafka {
    settings: ClientConfig,
    messages: Messages,
    /// Of a relay.
    marks: Option<Marks>,
    memory: u64,
    /// With exactly once.
    transaction: Option<Arc<Transaction>>,
    producer: Option<Producer>,
}

impl Sink for Kafka {
    fn memory(&self) -> usize {
        usize::try_from(self.memory).unwrap_or(usize::MAX)
    }

    fn wants_watermarks(&self) -> bool {
        self.marks.is_some()
    }

    fn decider(&self) -> Option<Arc<dyn Decider>> {
        self.transaction.clone().map(|transaction| transaction as _)
    }

    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let producer = match &self.transaction {
                Some(transaction) => transaction.producer(),
                None => Some(
                    Producer::new(
                        &self.settings,
                        Arc::clone(&context.name),
                        context.metrics.clone(),
                        Arc::clone(&context.clock),
                    )
                    .map_err(|error| SinkError(format!("cannot set up the client: {error}")))?,
                ),
            };
            self.producer = Some(producer.ok_or_else(|| SinkError("its transactions were not begun".to_owned()))?);
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            let producer = self.producer.clone().ok_or_else(|| SinkError("the sink was not opened".to_owned()))?;
            let Self { messages, marks, transaction, .. } = *self;
            Writer { messages, marks, transaction, producer, context, taken: 0, refused: 0 }.run().await
        })
    }
}

/// A running sink.
struct Writer {
    messages: Messages,
    marks: Option<Marks>,
    transaction: Option<Arc<Transaction>>,
    producer: Producer,
    context: SinkContext,
    /// How many records it has taken, and how many of them can never be written.
    taken: u64,
    refused: u64,
}

impl Writer {
    async fn run(mut self) -> Result<SinkState, SinkError> {
        loop {
            let queued = tokio::select! {
                queued = self.context.input.recv() => queued,
                () = tokio::time::sleep(SLOW), if self.producer.has_failures() => {
                    self.mend().await?;
                    continue;
                }
                () = self.context.stop.cancelled() => None,
            };
            let (input, permit) = match queued {
                Some(queued) => queued.split(),
                None => (SinkInput::End, None),
            };
            match input {
                SinkInput::Batch(batch) => self.write(batch, permit).await?,
                SinkInput::Barrier { epoch, prepared } => self.barrier(epoch, prepared).await?,
                SinkInput::Watermark(watermark) => {
                    if let Some(marks) = &mut self.marks {
                        marks.see(watermark);
                    }
                }
                SinkInput::Committed { .. } => {}
                SinkInput::End => {
                    return Ok(if self.arrive().await? { SinkState::Unchanged } else { undelivered() });
                }
            }
        }
    }

    async fn write(&mut self, mut batch: Batch, permit: Option<OwnedSemaphorePermit>) -> Result<(), SinkError> {
        self.taken += batch.len() as u64;
        // What would follow in a transaction that cannot be committed any more is read again with the rest.
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.begin()) {
            return Ok(());
        }
        self.messages.decode(&mut batch);
        let delivery = self.producer.delivery(batch, permit);
        for row in delivery.rows() {
            if !self.send(&delivery, row).await? {
                return Ok(());
            }
        }
        self.mend().await
    }

    /// Sends a record on its way, as soon as there is room; `false`: there will be none.
    async fn send(&mut self, delivery: &Arc<InFlight>, row: u32) -> Result<bool, SinkError> {
        let message = match self.messages.message(delivery.batch(), row, &self.context.metrics) {
            Ok(message) => message,
            Err(Refusal(why)) => {
                self.refuse(delivery, row, &why).await;
                return Ok(true);
            }
        };
        match self.insist(|producer| producer.send(&message, delivery, row)).await? {
            Sent::OnItsWay => Ok(true),
            Sent::Refused(why) => {
                self.refuse(delivery, row, &why).await;
                Ok(true)
            }
            Sent::Stopped => Ok(false),
        }
    }

    /// Sends something as soon as there is room.
    async fn insist(&self, send: impl Fn(&Producer) -> Result<(), Failure>) -> Result<Sent, SinkError> {
        let mut is_told = false;
        loop {
            match send(&self.producer) {
                Ok(()) => {
                    if is_told {
                        self.context.health.clear(Trouble::SinkStalled, &self.context.name);
                    }
                    return Ok(Sent::OnItsWay);
                }
                Err(Failure::Refused(why)) => return Ok(Sent::Refused(why)),
                Err(Failure::Broken(why)) => match &self.transaction {
                    Some(transaction) => {
                        transaction.spoil(&why);
                        return Ok(Sent::Stopped);
                    }
                    None => return Err(SinkError(format!("the client cannot go on: {why}"))),
                },
                Err(Failure::Full) => {}
                Err(Failure::Away(why)) if is_told => drop(why),
                Err(Failure::Away(why)) => {
                    is_told = true;
                    tracing::warn!(sink = &*self.context.name, "{why}; it is waited for");
                    self.context.health.raise(Trouble::SinkStalled, &self.context.name, why);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.context.stop.cancelled() => return Ok(Sent::Stopped),
            }
        }
    }

    /// Tells each partition of a relay how far event time has come, behind all records that came before; `false`: the time is over.
    async fn mark(&mut self) -> Result<bool, SinkError> {
        let Some((topic, stamp)) = self.marks.as_ref().and_then(Marks::due) else { return Ok(true) };
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.begin()) {
            return Ok(true);
        }
        let Some(partitions) = self.partitions(&topic).await else { return Ok(false) };
        for partition in 0..partitions {
            match self.insist(|producer| producer.mark(&topic, partition, &stamp)).await? {
                Sent::OnItsWay => {}
                Sent::Refused(why) => {
                    return Err(SinkError(format!("a watermark cannot be written to {topic}: {why}")));
                }
                // Where the transaction is spoilt, that is told when it is to be committed.
                Sent::Stopped => {
                    return Ok(self.transaction.as_ref().is_some_and(|transaction| transaction.is_spoilt()));
                }
            }
        }
        if let Some(marks) = &mut self.marks {
            marks.is_marked(stamp.watermark);
        }
        Ok(true)
    }

    /// How many partitions a topic has, as soon as the brokers say so; `None`: the time is over.
    async fn partitions(&mut self, topic: &str) -> Option<i32> {
        let mut is_told = false;
        loop {
            let now = self.context.clock.monotonic();
            if let Some(partitions) = self.marks.as_ref().and_then(|marks| marks.partitions(now)) {
                return Some(partitions);
            }
            let (producer, asked) = (self.producer.clone(), topic.to_owned());
            let asking = tokio::task::spawn_blocking(move || producer.partitions(&asked, SLOW));
            let answer = tokio::select! {
                answer = asking => answer.expect("asking brokers does not panic"),
                () = self.context.stop.cancelled() => return None,
            };
            match answer {
                Ok(partitions) => {
                    if let Some(marks) = &mut self.marks {
                        marks.found(partitions, now);
                    }
                    if is_told {
                        self.context.health.clear(Trouble::SinkStalled, &self.context.name);
                    }
                }
                Err(why) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(sink = &*self.context.name, "{why}; it is waited for");
                        self.context.health.raise(Trouble::SinkStalled, &self.context.name, why);
                    }
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => {}
                        () = self.context.stop.cancelled() => return None,
                    }
                }
            }
        }
    }

    async fn refuse(&mut self, delivery: &InFlight, row: u32, why: &str) {
        self.refused += 1;
        delivery.forget_one();
        self.context.rejected.reject(delivery.batch(), row, Reason::Refused, why).await;
    }

    /// Messages that did not arrive: dead letters if they never can, else sent again. In a transaction they spoil it.
    async fn mend(&mut self) -> Result<(), SinkError> {
        for failed in self.producer.take_failures() {
            if let Some(transaction) = &self.transaction {
                transaction.spoil(&failed.why);
                continue;
            }
            // Marks are in transactions only.
            let Of::Record(delivery, row) = failed.of else { continue };
            if failed.is_final {
                self.refuse(&delivery, row, &failed.why).await;
            } else {
                self.context.metrics.error("delivery");
                self.send(&delivery, row).await?;
            }
        }
        Ok(())
    }

    /// Waits until everything that was sent has arrived; `false`: the time is over.
    async fn arrive(&mut self) -> Result<bool, SinkError> {
        let name = Arc::clone(&self.context.name);
        let begun = self.context.clock.monotonic();
        let mut is_slow = false;
        while self.producer.in_flight() > 0 || self.producer.has_failures() {
            self.mend().await?;
            if self.transaction.as_ref().is_some_and(|transaction| transaction.is_spoilt()) {
                break;
            }
            if !is_slow && self.context.clock.monotonic().saturating_sub(begun) > SLOW {
                is_slow = true;
                let why = self.producer.fault().unwrap_or_else(|| "they do not answer".to_owned());
                let why = format!("messages wait for the brokers: {why}");
                tracing::warn!(sink = &*name, "{why}; they are tried again until they arrive");
                self.context.health.raise(Trouble::SinkStalled, &name, why);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.context.stop.cancelled() => return Ok(false),
            }
        }
        if is_slow {
            self.context.health.clear(Trouble::SinkStalled, &name);
        }
        Ok(true)
    }

    async fn barrier(&mut self, epoch: u64, prepared: Prepared) -> Result<(), SinkError> {
        fault::point("kafka.prepare");
        // A mark is behind all that came before it, in each partition.
        let has_arrived = self.arrive().await? && self.mark().await? && self.arrive().await?;
        fault::point("kafka.prepared");
        // What is undone with a transaction is not delivered.
        let held = self.taken - self.producer.arrived() - self.refused;
        self.context.metrics.hold(usize::try_from(held).unwrap_or(usize::MAX));
        // Nobody waits for the answer of an epoch that was abandoned.
        let is_waited_for = prepared.send(if has_arrived { SinkState::Unchanged } else { undelivered() }).is_ok();
        if let Some(transaction) = &self.transaction
            && is_waited_for
            && has_arrived
        {
            transaction.decided(epoch, &self.context.stop).await;
        }
        Ok(())
    }
}

/// What became of something that was to be sent.
enum Sent {
    OnItsWay,
    /// It never can be.
    Refused(String),
    /// The time is over, or the transaction cannot be committed any more.
    Stopped,
}

/// Not everything has arrived: what was read since the last checkpoint is read again.
fn undelivered() -> SinkState {
    SinkState::Failed("messages have not arrived at the brokers".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(options: &str) -> String {
        let text = format!("brokers = [\"k:9092\"]\n{options}");
        match toml::from_str::<Config>(&text) {
            Ok(config) => {
                config.problems().iter().map(|problem| format!("{}: {}\n", problem.option, problem.message)).collect()
            }
            Err(error) => error.message().to_owned(),
        }
    }

    #[test]
    fn what_cannot_work_is_told_of_its_option() {
        assert_eq!(told("topic = \"errors\"\nkey = [\".host\"]\nheaders = { a = \"{{ b }}\" }"), "");
        assert_eq!(told("topic = \"errors\"\ndelivery = \"exactly_once\"\ntransactional_id = \"t\""), "");
        assert!(
            told("topic = \"errors\"\ntransactional_id = \"t\"")
                .starts_with("transactional_id: there are no transactions")
        );
        assert_eq!(told("topic = \"errors\"\nkey = [\"host]\"]"), "key.0: \"host]\" is not a path to a field\n");
        assert!(told("topic = \"errors\"\nheaders = { a = \"{{ b\" }").starts_with("headers.a: "));
        for timeout in ["500ms", "16m"] {
            let told =
                told(&format!("topic = \"errors\"\ndelivery = \"exactly_once\"\ntransaction_timeout = \"{timeout}\""));
            assert!(told.starts_with("transaction_timeout: not between"), "{told}");
        }
        assert_eq!(told("topic = \"errors\"\nqueue = \"1KiB\""), "queue: too little for what is on its way\n");
        assert!(told("topic = \"errors\"\nmax_message_bytes = \"1\"").starts_with("max_message_bytes: "));
    }
}
