//! The client that writes, and what becomes of each message.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext, ThreadedProducer,
};
use tocsin_kafka::client::Listener;
use tocsin_kafka::stamp::Stamp;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::metrics::ComponentMetrics;
use tocsin_pipeline::time::Clock;
use tokio::sync::OwnedSemaphorePermit;

use super::message::{Message, stamped};

/// The records of a batch on their way: kept until all have arrived, so that those that cannot be written are dead letters
/// and those that were not are sent again.
pub(super) struct InFlight {
    batch: Batch,
    /// How many have not arrived.
    left: AtomicUsize,
    metrics: ComponentMetrics,
    /// What it counts against: the edge it came by.
    _permit: Option<OwnedSemaphorePermit>,
}

impl InFlight {
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    pub fn rows(&self) -> Vec<u32> {
        self.batch.rows().collect()
    }

    /// One is not waited for any more.
    pub fn forget_one(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// What a message is of.
pub(super) enum Of {
    Record(Arc<InFlight>, u32),
    /// No record: it counts for nothing, but has to arrive.
    Mark,
}

/// A message that did not arrive.
pub(super) struct Failed {
    pub of: Of,
    pub why: String,
    /// Another attempt would end the same way.
    pub is_final: bool,
}

/// Why a message could not be sent.
pub(super) enum Failure {
    /// As much is on its way as may be.
    Full,
    /// It never can be.
    Refused(String),
    /// The topic is not there, or nobody has said so far that it is.
    Away(String),
    /// The client cannot go on: in a transaction, that cannot be committed any more.
    Broken(String),
}

/// Hears of each message what has become of it.
pub(super) struct Ear {
    listener: Listener,
    clock: Arc<dyn Clock>,
    failed: Mutex<Vec<Failed>>,
    has_failed: AtomicBool,
    /// How many messages of records have arrived.
    arrived: AtomicU64,
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.listener.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.listener.error(error, reason);
    }
}

impl ProducerContext<NoCustomPartitioner> for Ear {
    type DeliveryOpaque = Box<Of>;

    fn delivery(&self, result: &DeliveryResult<'_>, of: Self::DeliveryOpaque) {
        match (result, *of) {
            (Ok(_), Of::Record(delivery, _)) => {
                self.arrived.fetch_add(1, Ordering::Relaxed);
                delivery.metrics.sent(1);
                if delivery.forget_one() {
                    let took = self.clock.now().since(delivery.batch.arrival);
                    delivery.metrics.latency(took.as_secs_f64());
                }
            }
            (Ok(_), Of::Mark) => {}
            (Err((error, message)), of) => {
                let code = error.rdkafka_error_code();
                let why = format!("topic {}: {error}", message.topic());
                self.failed.lock().expect("no holder of this lock panics").push(Failed {
                    of,
                    why,
                    is_final: code.is_some_and(is_final),
                });
                self.has_failed.store(true, Ordering::Release);
            }
        }
    }
}

/// Whether a message that was refused so would be again, whatever is waited for.
fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::TopicAuthorizationFailed
    )
}

/// A client that writes; clones are the same.
#[derive(Clone)]
pub(super) struct Producer {
    client: ThreadedProducer<Ear>,
    metrics: ComponentMetrics,
}

impl Producer {
    /// Reads certificates and starts threads; brokers are not waited for.
    pub fn new(
        settings: &ClientConfig,
        name: Arc<str>,
        metrics: ComponentMetrics,
        clock: Arc<dyn Clock>,
    ) -> KafkaResult<Self> {
        let ear = Ear {
            listener: Listener::new(name, metrics.clone()),
            clock,
            failed: Mutex::default(),
            has_failed: AtomicBool::new(false),
            arrived: AtomicU64::new(0),
        };
        let client = ThreadedProducer::from_config_and_context(settings, ear)?;
        Ok(Self { client, metrics })
    }

    pub fn client(&self) -> &ThreadedProducer<Ear> {
        &self.client
    }

    fn ear(&self) -> &Ear {
        self.client.client().context()
    }

    pub fn delivery(&self, batch: Batch, permit: Option<OwnedSemaphorePermit>) -> Arc<InFlight> {
        let left = AtomicUsize::new(batch.len());
        Arc::new(InFlight { batch, left, metrics: self.metrics.clone(), _permit: permit })
    }

    pub fn send(&self, message: &Message, delivery: &Arc<InFlight>, row: u32) -> Result<(), Failure> {
        let of = Box::new(Of::Record(Arc::clone(delivery), row));
        let mut record = BaseRecord::with_opaque_to(&message.topic, of).payload(&message.value[..]);
        record.timestamp = message.time;
        if let Some(key) = &message.key {
            record = record.key(&key[..]);
        }
        if let Some(headers) = &message.headers {
            record = record.headers(headers.clone());
        }
        self.dispatch(record)
    }

    /// Sends a message without a record to a partition.
    pub fn mark(&self, topic: &str, partition: i32, stamp: &Stamp) -> Result<(), Failure> {
        let record: BaseRecord<'_, [u8], [u8], _> = BaseRecord::with_opaque_to(topic, Box::new(Of::Mark));
        self.dispatch(record.partition(partition).headers(stamped(OwnedHeaders::new(), stamp)))
    }

    /// How many partitions a topic has; blocks for `patience` at most.
    pub fn partitions(&self, topic: &str, patience: Duration) -> Result<usize, String> {
        let metadata = self.client.client().fetch_metadata(Some(topic), patience).map_err(|error| error.to_string())?;
        match metadata.topics().first().map_or(0, |topic| topic.partitions().len()) {
            0 => Err(format!("there is no topic {topic}")),
            partitions => Ok(partitions),
        }
    }

    fn dispatch(&self, record: BaseRecord<'_, [u8], [u8], Box<Of>>) -> Result<(), Failure> {
        let topic = record.topic;
        let Err((error, _)) = self.client.send(record) else { return Ok(()) };
        let code = error.rdkafka_error_code();
        Err(match code {
            Some(RDKafkaErrorCode::QueueFull) => Failure::Full,
            Some(code) if is_final(code) => Failure::Refused(error.to_string()),
            Some(
                RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicOrPartition,
            ) => Failure::Away(format!("there is no topic {topic}")),
            _ => Failure::Broken(error.to_string()),
        })
    }

    pub fn in_flight(&self) -> i32 {
        self.client.in_flight_count()
    }

    /// How many messages of records have arrived.
    pub fn arrived(&self) -> u64 {
        self.ear().arrived.load(Ordering::Relaxed)
    }

    pub fn has_failures(&self) -> bool {
        self.ear().has_failed.load(Ordering::Acquire)
    }

    pub fn take_failures(&self) -> Vec<Failed> {
        if !self.has_failures() {
            return Vec::new();
        }
        self.ear().has_failed.store(false, Ordering::Release);
        std::mem::take(&mut *self.ear().failed.lock().expect("no holder of this lock panics"))
    }

    /// Why nothing moves, as far as that was heard of.
    pub fn fault(&self) -> Option<String> {
        self.ear().listener.fault()
    }
}
