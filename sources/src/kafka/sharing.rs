//! Membership of a consumer group: which partitions are ours. Nothing is read here; each partition has a pipeline with a client of
//! its own.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tocsin_kafka::client::Listener;
use tocsin_kafka::connection::Connection;
use tocsin_kafka::place::Place;
use tocsin_kafka::topics::discover;
use tocsin_pipeline::sharing::{Change, Partition, Sharing, SharingContext, Told};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::RelayEnd;

/// How often it is looked whether something else is to be done.
const LOOK: Duration = Duration::from_millis(100);
/// So many looks after they were told offsets are told again, for the first time and for the last: about a second, and half a minute.
const AGAIN: (u32, u32) = (10, 320);
/// How long the brokers may take to answer before they are asked again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A member that has not joined yet.
pub(super) struct Member {
    pub connection: Connection,
    pub group: String,
    pub topics: Vec<String>,
    /// Its topic is that of a `repartition`, which is made where there is none.
    pub relay: Option<RelayEnd>,
}

impl Sharing for Member {
    fn join(self: Box<Self>, context: SharingContext) -> Result<(), String> {
        let mut settings = self.connection.settings();
        settings
            .set("group.id", &self.group)
            // One partition after the other changes hands, and the others go on meanwhile (KIP-429).
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A restart of a member that has a name is no change of the group (KIP-345).
            .set("session.timeout.ms", if context.instance.is_some() { "30000" } else { "10000" })
            .set("heartbeat.interval.ms", "1000")
            // Topics and partitions that appear later are given out in time.
            .set("topic.metadata.refresh.interval.ms", "10000")
            // Nothing is fetched but what slips through before it is paused.
            .set("queued.max.messages.kbytes", "64")
            .set("message.max.bytes", "65536")
            .set("fetch.max.bytes", "65536")
            .set("fetch.message.max.bytes", "16384");
        if let Some(instance) = &context.instance {
            settings.set("group.instance.id", instance);
        }
        for (name, value) in &self.connection.options {
            settings.set(name, value);
        }
        let listener = Listener::new(Arc::clone(&context.name), context.metrics.clone());
        let ear = Ear {
            listener: listener.clone(),
            topics: self.topics.clone(),
            changes: context.changes.clone(),
            patience: context.patience,
            handle: Handle::current(),
        };
        let consumer = BaseConsumer::from_config_and_context(&settings, ear)
            .map_err(|error| format!("cannot set up the client: {error}"))?;
        let handle = Handle::current();
        std::thread::Builder::new()
            .name("kafka-group".to_owned())
            .spawn(move || {
                if let Some(relay) = &self.relay {
                    self.make_topic(relay, &consumer, &listener, &context, &handle);
                }
                let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
                match consumer.subscribe(&topics) {
                    Ok(()) => belong(consumer, context),
                    Err(error) => {
                        let why = format!("cannot join the group {}: {error}", self.group);
                        let _ = context.changes.blocking_send(Change::Failed(why));
                    }
                }
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(())
    }
}

impl Member {
    /// Makes the topic of a `repartition` where there is none, and tries until it is there.
    fn make_topic(
        &self,
        relay: &RelayEnd,
        consumer: &BaseConsumer<Ear>,
        listener: &Listener,
        context: &SharingContext,
        handle: &Handle,
    ) {
        let made = || -> Result<(), String> {
            let (_, missing) = discover(consumer, &self.topics, PATIENCE)?;
            let [topic] = &missing[..] else { return Ok(()) };
            let partitions = match relay.partitions {
                Some(partitions) => i32::try_from(partitions).unwrap_or(i32::MAX),
                None => {
                    let (before, missing) = discover(consumer, &relay.topics, PATIENCE)?;
                    if !missing.is_empty() || before.is_empty() {
                        return Err(format!("there is no topic {}", relay.topics.join(", ")));
                    }
                    before.iter().map(|(_, partition)| partition + 1).max().unwrap_or(1)
                }
            };
            let client = AdminClient::from_config_and_context(&self.connection.settings(), listener.clone())
                .map_err(|error| error.to_string())?;
            // As many replicas as the brokers give a topic by themselves.
            let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
            let outcome = handle.block_on(client.create_topics([&wanted], &AdminOptions::new()));
            match outcome.map_err(|error| error.to_string())?.into_iter().next() {
                Some(Err((name, error))) if error != RDKafkaErrorCode::TopicAlreadyExists => {
                    Err(format!("topic {name}: {error}"))
                }
                _ => {
                    tracing::info!(source = &*context.name, topic, partitions, "the topic is made");
                    Ok(())
                }
            }
        };
        while let Err(why) = made() {
            tracing::warn!(
                source = &*context.name,
                "its topic cannot be made: {why}; it is tried again until it works"
            );
            let stopped = async { tokio::time::timeout(PATIENCE, context.stop.cancelled()).await.is_ok() };
            if handle.block_on(stopped) {
                return;
            }
        }
    }
}

/// Is a member until it is stopped.
fn belong(consumer: BaseConsumer<Ear>, mut context: SharingContext) {
    let mut teller = Teller::default();
    while !context.stop.is_cancelled() {
        match consumer.poll(LOOK) {
            // What slipped through is read where its partition is.
            None | Some(Ok(_)) => {}
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                let why = format!(
                    "this member was put out of the group: {code}; has another daemon the same `daemon.instance`?"
                );
                let _ = context.changes.blocking_send(Change::Failed(why));
                return;
            }
            Some(Err(error)) => {
                context.metrics.error("broker");
                tracing::debug!(source = &*context.name, "the group: {error}");
            }
        }
        teller.tell(&consumer, &mut context);
    }
    // What came to its end with everything else.
    teller.tell(&consumer, &mut context);
    // Leaves the group, unless it has a name: then it is expected back.
    drop(consumer);
}

/// Tells the brokers what was read, for dashboards.
///
/// While partitions change hands brokers refuse it, and librdkafka says nothing of that. So it is told again after a while, and less and less often, until
/// that must be over.
#[derive(Default)]
struct Teller {
    told: Told,
    /// How long it was waited for last, in looks, and how long it is still waited until all is told again.
    pause: u32,
    left: u32,
}

impl Teller {
    fn tell(&mut self, consumer: &BaseConsumer<Ear>, context: &mut SharingContext) {
        let newest = context.told.borrow_and_update().clone();
        let is_due = self.left == 1;
        self.left = self.left.saturating_sub(1);
        let ours = if is_due { consumer.assignment().map(|list| partitions(&list)) } else { Ok(Vec::new()) };
        let ours = ours.unwrap_or_default();
        let mut list = TopicPartitionList::new();
        let mut is_new = false;
        for (partition, positions) in &newest {
            let is_told = self.told.get(partition).is_some_and(|told| Arc::ptr_eq(told, positions));
            if is_told && !ours.contains(partition) {
                continue;
            }
            is_new |= !is_told;
            for ((_, topic, partition), next) in Place::least(positions.iter().filter_map(Place::read)) {
                let _ = list.add_partition_offset(&topic, partition, Offset::Offset(next));
            }
        }
        self.told = newest;
        if is_new {
            self.pause = AGAIN.0;
            // What comes of one partition must not keep another from being told of again.
            self.left = if self.left == 0 { AGAIN.0 } else { self.left.min(AGAIN.0) };
        } else if is_due {
            self.pause *= 2;
            self.left = if self.pause <= AGAIN.1 { self.pause } else { 0 };
        }
        if list.count() == 0 {
            return;
        }
        if let Err(error) = consumer.commit(&list, CommitMode::Async) {
            tracing::debug!(source = &*context.name, "the group's offsets cannot be told: {error}");
        }
    }
}

/// Hears which partitions are ours.
struct Ear {
    listener: Listener,
    topics: Vec<String>,
    changes: mpsc::Sender<Change>,
    patience: Duration,
    handle: Handle,
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.listener.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.listener.error(error, reason);
    }
}

impl ConsumerContext for Ear {
    /// Before others get them, what runs of them is brought to its end.
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(list) = rebalance else { return };
        let (done, is_done) = oneshot::channel();
        if self.changes.blocking_send(Change::Revoked { partitions: partitions(list), done }).is_ok() {
            // One that takes too long is kept out by the transaction and the checkpoints of whoever begins.
            let _ = self.handle.block_on(async { tokio::time::timeout(self.patience, is_done).await });
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        if let Err(error) = consumer.pause(list) {
            tracing::debug!("what is read by others could not be paused: {error}");
        }
        let partitions = partitions(list);
        // Each may take its part of what all may take, however many become ours.
        let of = match partitions.len() {
            0 => 0,
            ours => discover(consumer, &self.topics, PATIENCE).map_or(ours, |(found, _)| found.len()),
        };
        let _ = self.changes.blocking_send(Change::Assigned { partitions, of });
    }

    fn commit_callback(&self, result: KafkaResult<()>, list: &TopicPartitionList) {
        self.listener.commit_callback(result, list);
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|it| Partition { topic: it.topic().to_owned(), partition: it.partition() }).collect()
}
