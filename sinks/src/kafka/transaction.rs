//! Transactions: one holds the output of an epoch, the offsets of what was read for it, and the epoch's number, and its commit
//! is what makes the epoch the truth.
//!
//! librdkafka cannot go on with a transaction that another process has left open: it is undone when the next one starts. So
//! a checkpoint is never committed after the fact; what was not committed is done again from the checkpoint before. The
//! number is the metadata of the offsets, so that it is committed or not together with them (KIP-98, KIP-447).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value as Json;
use tocsin_kafka::client::Listener;
use tocsin_kafka::connection::Connection;
use tocsin_kafka::marker::Marker;
use tocsin_kafka::place::{Inputs, Place};
use tocsin_kafka::topics::discover;
use tocsin_pipeline::checkpoint::{Decided, Recovery, settle};
use tocsin_pipeline::decider::{Decider, DeciderContext, DeciderError};
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::health::Trouble;
use tocsin_pipeline::time::Clock;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::producer::Producer;

/// How long the brokers may take to answer before the fault is told; they are asked again for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(200);

/// Connections that nothing has come through for so long are closed. librdkafka waits for a group coordinator that is gone until
/// some connection changes, whatever time it was given (librdkafka#5456, #5511): one that is closed, and opened when it is
/// needed, is a change.
const IDLE: Duration = Duration::from_secs(3);

/// So many attempts are nobody's concern.
const TELL_AFTER: u32 = 5;

/// What transactions are made with.
pub(super) struct Setup {
    pub settings: ClientConfig,
    pub connection: Connection,
    /// `None`: it is made of the group of a source.
    pub id: Option<String>,
    /// The topic of all output, if there is one.
    pub topic: Option<String>,
    /// In milliseconds.
    pub timeout: u32,
}

pub(super) struct Transaction {
    shared: Arc<Shared>,
}

/// By group, topic and partition: the number of an epoch, and the offset that was committed with it.
type Offsets = BTreeMap<(String, String, i32), (u64, Offset)>;

struct Shared {
    setup: Setup,
    /// What was begun with.
    open: Mutex<Option<Open>>,
    /// Since when something of the next epoch is in the transaction.
    begun: Mutex<Option<Duration>>,
    /// The last epoch that was committed.
    committed: AtomicU64,
    /// What the brokers say of the epoch that was decided last, at the start: its number and the offset, by group, topic and
    /// partition.
    offsets: Mutex<Offsets>,
    /// Why the transaction cannot be committed any more.
    spoilt: Mutex<Option<String>>,
    /// The last epoch that was decided or abandoned.
    decided: watch::Sender<u64>,
}

/// The clients of a writer that has kept all others out.
#[derive(Clone)]
struct Open {
    id: Arc<str>,
    producer: Producer,
    /// By group. They are no members: what a transaction commits needs none.
    groups: Arc<BTreeMap<String, BaseConsumer<Listener>>>,
    /// Where the number of an epoch is noted that holds no offset of what is read from these brokers: with a partition that the
    /// source has not opened yet, or, where nothing is read from them, in a group of its own.
    note: Note,
    /// The partitions whose offsets may say what was decided.
    asked: Arc<Vec<(String, TopicPartitionList)>>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Note {
    group: String,
    topic: String,
    partition: i32,
    /// Nothing is read there, so what stands as the offset is the number once more.
    is_own: bool,
}

impl Transaction {
    pub fn new(setup: Setup) -> Self {
        let shared = Shared {
            setup,
            open: Mutex::default(),
            begun: Mutex::default(),
            committed: AtomicU64::new(0),
            offsets: Mutex::default(),
            spoilt: Mutex::default(),
            decided: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The client to write with, once others are kept out.
    pub fn producer(&self) -> Option<Producer> {
        self.shared.open().map(|open| open.producer)
    }

    /// Something is about to be written; `false`: it would be undone.
    pub fn begin(&self) -> bool {
        if self.is_spoilt() {
            return false;
        }
        let Some(open) = self.shared.open() else { return false };
        match self.shared.begin(&open) {
            Ok(()) => true,
            Err(error) => {
                self.spoil(&error.to_string());
                false
            }
        }
    }

    /// What was written cannot be committed any more.
    pub fn spoil(&self, why: &str) {
        self.shared.spoilt.lock().expect("no holder of this lock panics").get_or_insert_with(|| why.to_owned());
    }

    pub fn is_spoilt(&self) -> bool {
        self.shared.spoilt().is_some()
    }

    /// Waits until an epoch is decided or abandoned, or everything ends.
    pub async fn decided(&self, epoch: u64, stop: &CancellationToken) {
        let mut decided = self.shared.decided.subscribe();
        tokio::select! {
            _ = decided.wait_for(|decided| *decided >= epoch) => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Decider for Transaction {
    fn recover<'a>(&'a self, context: DeciderContext) -> BoxFuture<'a, Result<Option<u64>, DeciderError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(on_thread(move |is_wanted| shared.recover(&context, is_wanted)))
    }

    fn commit<'a>(&'a self, epoch: u64, positions: Vec<Json>) -> BoxFuture<'a, Result<(), DeciderError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(on_thread(move |is_wanted| shared.commit(epoch, &positions, is_wanted)))
    }

    fn abandon(&self, epoch: u64) {
        self.shared.decided.send_replace(epoch);
    }

    fn contradicts(&self, positions: &[Json]) -> Option<String> {
        let offsets = self.shared.offsets.lock().expect("no holder of this lock panics");
        let places = Place::least(positions.iter().filter_map(Place::read).filter(|place| self.shared.is_near(place)));
        places.into_iter().find_map(|((group, topic, partition), next)| {
            let (_, committed) = offsets.get(&(group, topic.clone(), partition))?;
            (*committed != Offset::Offset(next)).then(|| {
                format!(
                    "it says that {topic}/{partition} was read up to {next}, and the transaction says {committed:?}"
                )
            })
        })
    }

    fn tells(&self, position: &Json) -> bool {
        Place::read(position).is_some_and(|place| self.shared.is_near(&place))
    }
}

/// Runs calls that block, for as long as brokers are away, on a thread of their own: they would starve those of others.
/// `work` is told when nobody waits for it any more.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, DeciderError> + Send + 'static,
) -> Result<T, DeciderError> {
    let (answer, answered) = oneshot::channel();
    let started = std::thread::Builder::new().name("kafka-commit".to_owned()).spawn(move || {
        let outcome = work(&|| !answer.is_closed());
        let _ = answer.send(outcome);
    });
    if let Err(error) = started {
        return Err(DeciderError::Failed(format!("cannot start a thread: {error}")));
    }
    answered.await.map_err(|_| DeciderError::Failed("the thread of the transaction has ended by a bug".to_owned()))?
}

/// What to do after an error.
enum Next {
    Again,
    End(DeciderError),
}

impl Shared {
    /// Whether a place is on the brokers that transactions are written to.
    fn is_near(&self, place: &Place) -> bool {
        self.setup.connection.is_same_cluster(&place.brokers)
    }

    fn open(&self) -> Option<Open> {
        self.open.lock().expect("no holder of this lock panics").clone()
    }

    fn spoilt(&self) -> Option<String> {
        self.spoilt.lock().expect("no holder of this lock panics").clone()
    }

    fn begin(&self, open: &Open) -> Result<(), KafkaError> {
        let mut begun = self.begun.lock().expect("no holder of this lock panics");
        if begun.is_none() {
            open.producer.client().begin_transaction()?;
            *begun = Some(open.clock.monotonic());
        }
        Ok(())
    }

    /// Keeps out whoever wrote before, and finds out which epoch was committed last.
    fn recover(&self, context: &DeciderContext, is_wanted: &dyn Fn() -> bool) -> Result<Option<u64>, DeciderError> {
        let read = context.inputs.iter().filter_map(Inputs::read);
        let inputs: Vec<_> = read.filter(|it| self.setup.connection.is_same_cluster(&it.brokers)).collect();
        let id: Arc<str> = match (&self.setup.id, inputs.first()) {
            (None, None) => {
                return Err(DeciderError::Failed(
                    "nothing is read from the brokers that it writes to, so it needs a `transactional_id`".to_owned(),
                ));
            }
            (Some(id), input) => identity(id.clone(), input),
            (None, Some(input)) => identity(format!("tocsin.{}.{}", input.group, context.name), Some(input)),
        };
        let own = match (inputs.is_empty(), &self.setup.topic) {
            (false, _) => None,
            (true, Some(topic)) => Some((format!("{id}.epochs"), topic.clone())),
            (true, None) => {
                return Err(DeciderError::Failed(
                    "nothing is read from the brokers that it writes to, so its `topic` may hold no fields: the number of the \
                     checkpoint is noted there"
                        .to_owned(),
                ));
            }
        };
        let mut settings = self.setup.settings.clone();
        settings.set("transactional.id", &*id).set("transaction.timeout.ms", self.setup.timeout.to_string());
        if settings.get("connections.max.idle.ms").is_none() {
            settings.set("connections.max.idle.ms", IDLE.as_millis().to_string());
        }
        let failed = |error: KafkaError| DeciderError::Failed(format!("cannot set up the client: {error}"));
        let producer =
            Producer::new(&settings, Arc::clone(&context.name), context.metrics.clone(), Arc::clone(&context.clock))
                .map_err(failed)?;
        let listener = Listener::new(Arc::clone(&context.name), context.metrics.clone());
        let groups = inputs.iter().map(|input| &input.group).chain(own.iter().map(|(group, _)| group));
        let clients = |isolation| -> KafkaResult<BTreeMap<String, BaseConsumer<Listener>>> {
            let client = |group: &String| {
                let mut settings = self.setup.connection.settings();
                settings.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", isolation);
                Ok((group.clone(), BaseConsumer::from_config_and_context(&settings, listener.clone())?))
            };
            groups.clone().map(client).collect()
        };
        // An offset that a transaction is about to commit is waited for.
        let consumers = clients("read_committed").map_err(failed)?;
        let attempts = std::cell::Cell::new(0);
        let wait = |why: String| {
            std::thread::sleep(AGAIN);
            // Coordinators are found, and found to be elsewhere, in the first moments.
            attempts.set(attempts.get() + 1);
            if attempts.get() < TELL_AFTER {
                return;
            }
            if context.health.standing().iter().all(|it| it.component != context.name) {
                tracing::warn!(sink = &*context.name, "{why}; nothing can start before they say what was committed");
            }
            context.health.raise(Trouble::SinkStalled, &context.name, why);
        };
        let away = |why: &str| {
            let why = producer.fault().unwrap_or_else(|| why.to_owned());
            wait(format!("cannot reach the brokers {}: {why}", self.setup.connection.brokers.join(", ")));
        };
        let (mut note, mut asked) = (None, Vec::new());
        let topics = inputs.iter().map(|input| (&input.group, input.topics.clone(), input.partition));
        let topics = topics.chain(own.iter().map(|(group, topic)| (group, vec![topic.clone()], Some(0))));
        for (group, topics, partition) in topics {
            let found = loop {
                let found = discover(&consumers[group], &topics, PATIENCE).map(|(found, _)| {
                    let is_ours = |(_, it): &(String, i32)| partition.is_none_or(|ours| ours == *it);
                    found.into_iter().filter(is_ours).collect::<Vec<_>>()
                });
                match found {
                    Ok(found) if !found.is_empty() => break found,
                    _ if !is_wanted() => return Err(DeciderError::Failed("it was told to stop".to_owned())),
                    // There would be nowhere to note what is decided.
                    Ok(_) => wait(format!("there is no topic {}", topics.join(", "))),
                    Err(why) => away(&why),
                }
            };
            let mut list = TopicPartitionList::new();
            for (topic, partition) in &found {
                list.add_partition(topic, *partition);
            }
            let (topic, partition) = found.into_iter().next().expect("one was found");
            note.get_or_insert(Note { group: group.clone(), topic, partition, is_own: own.is_some() });
            asked.push((group.clone(), list));
        }
        let decided_last = |consumers: &BTreeMap<String, BaseConsumer<Listener>>| {
            let (mut decided, mut offsets) = (None, Offsets::new());
            for (group, list) in &asked {
                let ask = || consumers[group].committed_offsets(list.clone(), PATIENCE);
                let committed = self.insist(&id, is_wanted, away, ask)?;
                for element in committed.elements() {
                    let Some(marker) = Marker::read(element.metadata()) else { continue };
                    if marker.by != *id {
                        return Err(DeciderError::Failed(format!(
                            "the offsets of the group {group} were committed by {}, and this is {id}; give this pipeline a group of \
                             its own, or the transactional id it had",
                            marker.by
                        )));
                    }
                    decided = decided.max(Some(marker.epoch));
                    let place = (group.clone(), element.topic().to_owned(), element.partition());
                    offsets.insert(place, (marker.epoch, element.offset()));
                }
            }
            offsets.retain(|_, (epoch, _)| Some(*epoch) == decided);
            Ok((decided, offsets))
        };
        // A first look that waits for nothing, and keeps nobody out where we could not go on ourselves.
        let (decided, _) = decided_last(&clients("read_uncommitted").map_err(failed)?)?;
        if let (Some(decided), Some(epochs)) = (decided, &context.epochs)
            && let Recovery::Refuse(_) = settle(epochs.clone(), Decided::Epoch(decided))
        {
            return Ok(Some(decided));
        }
        fault::point("kafka.init");
        self.insist(&id, is_wanted, away, || producer.client().init_transactions(PATIENCE))?;
        let (decided, offsets) = decided_last(&consumers)?;
        *self.offsets.lock().expect("no holder of this lock panics") = offsets;
        self.committed.store(decided.unwrap_or(0), Ordering::Release);
        let clock = Arc::clone(&context.clock);
        let note = note.expect("something is read from these brokers, or there is a group of its own");
        context.health.clear(Trouble::SinkStalled, &context.name);
        tracing::debug!(sink = &*context.name, id = &*id, ?decided, "transactions can begin");
        *self.open.lock().expect("no holder of this lock panics") =
            Some(Open { id, producer, groups: Arc::new(consumers), note, asked: Arc::new(asked), clock });
        fault::point("kafka.recovered");
        Ok(decided)
    }

    /// Does something until it is done.
    fn insist<T>(
        &self,
        id: &str,
        is_wanted: &dyn Fn() -> bool,
        away: impl Fn(&str),
        mut attempt: impl FnMut() -> Result<T, KafkaError>,
    ) -> Result<T, DeciderError> {
        loop {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            match judge(&error, id) {
                Next::Again if is_wanted() => away(&error.to_string()),
                Next::Again => return Err(DeciderError::Failed(error.to_string())),
                Next::End(error) => return Err(error),
            }
        }
    }

    fn commit(&self, epoch: u64, positions: &[Json], is_wanted: &dyn Fn() -> bool) -> Result<(), DeciderError> {
        let open = self.open().ok_or_else(|| DeciderError::Failed("its transactions were not begun".to_owned()))?;
        let outcome = match self.spoilt() {
            Some(why) => Err(DeciderError::Undone(why)),
            None => self.committed(&open, epoch, positions, is_wanted),
        };
        let outcome = outcome.map_err(|error| self.judge_fence(&open, error));
        if let Err(DeciderError::Undone(_)) = &outcome {
            // Whoever starts next would undo it as well; readers that wait for it need not wait so long.
            if let Err(error) = open.producer.client().abort_transaction(PATIENCE) {
                tracing::debug!(id = &*open.id, "the transaction could not be aborted: {error}");
            }
        }
        if outcome.is_ok() {
            *self.begun.lock().expect("no holder of this lock panics") = None;
            self.committed.store(epoch, Ordering::Release);
            self.decided.send_replace(epoch);
        }
        outcome
    }

    /// A writer is kept out by another one that has taken its place, and by the brokers where its transaction was open for too
    /// long: the protocol says the same of both. Who mistook the first for the second would keep the other one out in turn.
    fn judge_fence(&self, open: &Open, error: DeciderError) -> DeciderError {
        let fatal = open.producer.client().client().fatal_error();
        let error = match (error, fatal) {
            (DeciderError::Undone(_), Some((code, why))) if is_fenced(Some(code)) => superseded(&open.id, &why),
            (error, _) => error,
        };
        let begun = *self.begun.lock().expect("no holder of this lock panics");
        let open_for = begun.map_or(Duration::ZERO, |begun| open.clock.monotonic().saturating_sub(begun));
        let timeout = Duration::from_millis(self.setup.timeout.into());
        // It is shorter for the brokers, for whom it begins when they hear of it.
        if !matches!(error, DeciderError::Superseded(_)) || open_for < timeout {
            return error;
        }
        let known = self.committed.load(Ordering::Acquire);
        for (group, list) in &*open.asked {
            match open.groups[group].committed_offsets(list.clone(), PATIENCE) {
                Ok(committed) if markers(&committed).all(|marker| marker.epoch <= known) => {}
                // Somebody has gone on, or may have.
                Ok(_) | Err(_) => return error,
            }
        }
        DeciderError::Undone(format!("it was open for {} s, longer than `transaction_timeout`", open_for.as_secs()))
    }

    fn committed(
        &self,
        open: &Open,
        epoch: u64,
        positions: &[Json],
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(), DeciderError> {
        let client = open.producer.client();
        let away = |why: &str| {
            tracing::debug!(id = &*open.id, epoch, "the transaction is tried again: {why}");
            std::thread::sleep(AGAIN);
        };
        self.begin(open).map_err(|error| match judge(&error, &open.id) {
            Next::End(error) => error,
            Next::Again => DeciderError::Undone(error.to_string()),
        })?;
        let metadata = Marker { epoch, by: open.id.to_string() }.write();
        for (group, list) in offsets(self, open, epoch, positions, &metadata)? {
            let consumer = &open.groups[&group];
            // It is no member; what it is told besides is for nobody.
            drop(consumer.poll(Duration::ZERO));
            let member = consumer
                .group_metadata()
                .ok_or_else(|| DeciderError::Failed(format!("the client knows nothing of the group {group}")))?;
            fault::point("kafka.offsets");
            self.insist(&open.id, is_wanted, away, || client.send_offsets_to_transaction(&list, &member, PATIENCE))?;
        }
        fault::point("kafka.commit");
        // One that was not answered in time may have happened: it is asked for again, and never given up. Another timeout than
        // none could leave the client in another state than the brokers.
        self.insist(&open.id, is_wanted, away, || client.commit_transaction(Timeout::Never))?;
        fault::point("kafka.committed");
        Ok(())
    }
}

/// The transactional id: where a partition is a pipeline of its own, each has its own.
fn identity(id: String, input: Option<&Inputs>) -> Arc<str> {
    match input.and_then(|input| Some((input.topics.first()?, input.partition?))) {
        Some((topic, partition)) => format!("{id}.{topic}.{partition}").into(),
        None => id.into(),
    }
}

/// The offsets of an epoch by group, each with the number of the epoch.
fn offsets(
    shared: &Shared,
    open: &Open,
    epoch: u64,
    positions: &[Json],
    metadata: &str,
) -> Result<BTreeMap<String, TopicPartitionList>, DeciderError> {
    let mut lists: BTreeMap<String, TopicPartitionList> = BTreeMap::new();
    let add = |lists: &mut BTreeMap<String, TopicPartitionList>, group: &str, topic: &str, partition, offset| {
        let list = lists.entry(group.to_owned()).or_default();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        let mut added = list.find_partition(topic, partition).expect("just added");
        if !fault::is_planted(Defect::NoMarker) {
            added.set_metadata(metadata);
        }
        Ok::<(), KafkaError>(())
    };
    let failed = |error: KafkaError| DeciderError::Failed(error.to_string());
    let is_ours = |place: &Place| shared.is_near(place) && open.groups.contains_key(&place.group);
    for ((group, topic, partition), next) in Place::least(positions.iter().filter_map(Place::read).filter(is_ours)) {
        let next = next + i64::from(fault::is_planted(Defect::OffsetsAhead));
        add(&mut lists, &group, &topic, partition, next).map_err(failed)?;
    }
    let Note { group, topic, partition, is_own } = &open.note;
    if lists.is_empty() {
        // A checkpoint may be taken before the source knows its partitions. Were its number noted nowhere, the next start would
        // take it for one that was never committed.
        let offset = if *is_own { i64::try_from(epoch).unwrap_or(i64::MAX) } else { 0 };
        add(&mut lists, group, topic, *partition, offset).map_err(failed)?;
    }
    Ok(lists)
}

/// What stands with offsets that were committed.
fn markers(committed: &TopicPartitionList) -> impl Iterator<Item = Marker> {
    let elements = committed.elements();
    elements.into_iter().filter_map(|it| Marker::read(it.metadata())).collect::<Vec<_>>().into_iter()
}

fn is_fenced(code: Option<RDKafkaErrorCode>) -> bool {
    matches!(
        code,
        Some(
            RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
                | RDKafkaErrorCode::FencedInstanceId
        )
    )
}

fn superseded(id: &str, why: &dyn Display) -> DeciderError {
    DeciderError::Superseded(format!(
        "another daemon has taken over the transactional id {id}, so this one has stopped writing: {why}"
    ))
}

/// What an error means for the transaction with this id.
fn judge(error: &KafkaError, id: &str) -> Next {
    let code = error.rdkafka_error_code();
    if is_fenced(code) {
        return Next::End(superseded(id, error));
    }
    if let KafkaError::Transaction(error) = error {
        if error.is_fatal() {
            return Next::End(DeciderError::Failed(format!("the transactional id {id} cannot be used: {error}")));
        }
        if error.txn_requires_abort() {
            return Next::End(DeciderError::Undone(error.to_string()));
        }
        if error.is_retriable() {
            return Next::Again;
        }
    }
    match code {
        Some(
            RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::WaitingForCoordinator
            | RDKafkaErrorCode::CoordinatorLoadInProgress
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::UnstableOffsetCommit
            | RDKafkaErrorCode::Retry,
        ) => Next::Again,
        _ => Next::End(DeciderError::Failed(format!("the transaction of {id} cannot go on: {error}"))),
    }
}
