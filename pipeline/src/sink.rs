//! The contract of sinks: async, thin, answering for every record.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use vrl::value::Value;

use crate::checkpoint::Buffer;
use crate::decider::Decider;
use crate::event::{Batch, Lane, Origin};
use crate::health::Health;
use crate::ledger::{Account, Kind};
use crate::metrics::ComponentMetrics;
use crate::operator::Reason;
use crate::store::Storage;
use crate::time::{Clock, Timestamp};

/// What a sink is handed, in order.
#[derive(Debug)]
pub enum SinkInput {
    Batch(Batch),
    /// Everything before this belongs to `epoch`. The sink makes durable what it has written of it, or says in its state
    /// what is still to be done, and answers. It must not wait for a peer that may be away: what is not delivered yet goes
    /// into the state. What it has counted when it answers belongs to the epoch too, so it takes nothing further before.
    Barrier {
        epoch: u64,
        prepared: Prepared,
    },
    /// All that follows comes behind this watermark. Only for sinks that ask for it ([`Sink::wants_watermarks`]).
    Watermark(Timestamp),
    /// The checkpoint of `epoch` is complete: what was prepared for it is now the truth.
    Committed {
        epoch: u64,
    },
    /// Nothing follows. The sink finishes what it has, within the context's `stop`, and returns.
    End,
}

/// What a sink needs to go on from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// As in the epoch before.
    Unchanged,
    /// Its own format, handed back to [`Sink::open`].
    State(Bytes),
    /// It could not prepare (full disk, failed fsync): the epoch is abandoned, the one before stays the truth.
    Failed(String),
}

/// Where a sink answers a barrier.
#[derive(Debug)]
pub struct Prepared {
    answer: oneshot::Sender<Answer>,
    till: Till,
    /// Of a buffered sink: whether its answer still counts as that of the epoch.
    claim: Claim,
}

/// Something that only the first who takes it gets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim(Arc<AtomicBool>);

impl Claim {
    pub fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// What a sink needs to go on from an epoch, and what it has counted by then.
#[derive(Debug)]
pub struct Answer {
    pub state: SinkState,
    pub account: Account,
    /// What is in its buffer behind that state, where it has one that can be on disk.
    pub buffer: Option<Buffer>,
}

impl Prepared {
    pub fn new(till: Till) -> (Self, oneshot::Receiver<Answer>) {
        Self::claimed(till, Claim::default())
    }

    /// A barrier that the buffer of a sink may answer before the sink does: `claim` says who was first.
    pub(crate) fn claimed(till: Till, claim: Claim) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        (Self { answer, till, claim }, answered)
    }

    /// Answers.
    ///
    /// # Errors
    /// Gives the state back when nobody waits for it any more.
    pub fn send(self, state: SinkState) -> Result<(), SinkState> {
        let account = self.till.account();
        if self.claim.take() {
            self.till.barriers.fetch_add(1, Ordering::Release);
        }
        self.answer.send(Answer { state, account, buffer: None }).map_err(|answer| answer.state)
    }

    /// Answers for the sink; `is_first`: it has not answered this barrier itself.
    pub(crate) fn answer(self, answer: Answer, is_first: bool) {
        if is_first {
            self.till.barriers.fetch_add(1, Ordering::Release);
        }
        // Nobody waits for the answer of an epoch that was abandoned.
        let _ = self.answer.send(answer);
    }
}

/// What a sink has counted since it was opened.
#[derive(Clone, Debug)]
pub struct Till {
    metrics: ComponentMetrics,
    /// What the metrics showed then.
    opened: Account,
    /// How many barriers the sink has answered.
    barriers: Arc<AtomicU64>,
}

impl Till {
    pub fn open(metrics: &ComponentMetrics) -> Self {
        Self { metrics: metrics.clone(), opened: metrics.of_sink(), barriers: Arc::default() }
    }

    pub fn name(&self) -> &str {
        self.metrics.name()
    }

    /// The sink's account. Only what the sink's own task counts is in it, so that it is exact when that task asks.
    pub fn account(&self) -> Account {
        let now = self.metrics.of_sink();
        let less = |now: u64, before: u64| now.saturating_sub(before);
        let before = |reason: &String| self.opened.dropped.get(reason).copied().unwrap_or(0);
        let mut dropped = now.dropped;
        dropped.iter_mut().for_each(|(reason, records)| *records = less(*records, before(reason)));
        dropped.retain(|_, records| *records > 0);
        Account {
            kind: Kind::Sink,
            received: less(now.received, self.opened.received),
            made: less(now.made, self.opened.made),
            delivered: less(now.delivered, self.opened.delivered),
            held: now.held,
            dropped,
            ..Account::default()
        }
    }
}

/// What comes to a sink; counted as it is taken.
#[derive(Debug)]
pub struct Inputs {
    queue: mpsc::Receiver<Queued>,
    metrics: ComponentMetrics,
    /// How far in its buffer the sink has come.
    taken: Arc<AtomicU64>,
}

impl Inputs {
    pub fn new(queue: mpsc::Receiver<Queued>, metrics: ComponentMetrics) -> Self {
        Self { queue, metrics, taken: Arc::default() }
    }

    /// Where it is noted how far in its buffer the sink has come.
    pub(crate) fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }

    /// The next input, as soon as there is one; `None` when nothing can follow. May be given up and called again.
    pub async fn recv(&mut self) -> Option<Queued> {
        let queued = self.queue.recv().await?;
        Some(self.taken(queued))
    }

    /// The next input if there is one.
    pub fn try_recv(&mut self) -> Result<Queued, TryRecvError> {
        let queued = self.queue.try_recv()?;
        Ok(self.taken(queued))
    }

    fn taken(&self, queued: Queued) -> Queued {
        if let SinkInput::Batch(batch) = &queued.input {
            self.metrics.received(batch.len(), batch.bytes());
        }
        if let Some(place) = queued.place {
            self.taken.store(place, Ordering::Release);
        }
        queued
    }
}

/// What a running sink is given.
pub struct SinkContext {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What it said at the barrier of the checkpoint that the daemon starts from; `None` on a fresh start.
    pub restored: Option<Bytes>,
    /// A folder of its own for what must survive (`DATA_DIR/sinks/NAME`, already made); `None` where there is no data_dir.
    pub data_dir: Option<PathBuf>,
    pub clock: Arc<dyn Clock>,
    /// What is in `data_dir` is read and written through this.
    pub storage: Arc<dyn Storage>,
    /// Where it says what is wrong beyond single records.
    pub health: Health,
    pub metrics: ComponentMetrics,
    /// Cancelled when the time for draining is over: give up waiting for peers, keep what is undelivered in the state.
    pub stop: CancellationToken,
    pub input: Inputs,
    /// Dead letters: records refused for good. Where `NAME.rejected` is connected they go there, else they are counted.
    pub rejected: Rejected,
    /// Who wants to hear how attempts go.
    pub deliveries: Deliveries,
}

/// How an attempt to tell somebody something went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The name of the notification.
    pub id: String,
    /// Who was told; empty where the sink tells only one.
    pub receiver: String,
    pub outcome: DeliveryOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    Delivered,
    /// It may go better another time.
    Again(String),
    /// It never will.
    Refused(String),
}

/// Tells whoever wants to hear it how attempts go.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(Option<Listener>);

#[derive(Clone)]
enum Listener {
    Channel(mpsc::Sender<Delivery>),
    Log { log: DeliveryLog, sink: Arc<str>, clock: Arc<dyn Clock> },
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Channel(_) => "Channel",
            Self::Log { .. } => "Log",
        })
    }
}

impl Deliveries {
    pub fn to(listener: mpsc::Sender<Delivery>) -> Self {
        Self(Some(Listener::Channel(listener)))
    }

    /// What the sink of that name tells stands in a log.
    pub fn logged(log: DeliveryLog, sink: Arc<str>, clock: Arc<dyn Clock>) -> Self {
        Self(Some(Listener::Log { log, sink, clock }))
    }

    /// A listener who is too slow misses some.
    pub fn tell(&self, delivery: impl FnOnce() -> Delivery) {
        match &self.0 {
            None => {}
            Some(Listener::Channel(listener)) => drop(listener.try_send(delivery())),
            Some(Listener::Log { log, sink, clock }) => log.push(Arc::clone(sink), clock.now(), delivery()),
        }
    }
}

/// How the last attempts of all sinks of a pipeline went; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct DeliveryLog(Arc<Mutex<VecDeque<Logged>>>);

/// The sink, when, and how it went.
type Logged = (Arc<str>, Timestamp, Delivery);

/// How many attempts a log holds.
const LOGGED_MAX: usize = 1000;

impl DeliveryLog {
    fn push(&self, sink: Arc<str>, at: Timestamp, delivery: Delivery) {
        let mut log = self.0.lock().expect("no holder of this lock panics");
        log.push_back((sink, at, delivery));
        if log.len() > LOGGED_MAX {
            log.pop_front();
        }
    }

    /// The last attempts, as `{"sink", "at", "id", "receiver", "outcome", "why"}`, the newest first.
    pub fn newest(&self) -> Vec<serde_json::Value> {
        let log = self.0.lock().expect("no holder of this lock panics");
        let told = log.iter().rev().map(|(sink, at, delivery)| {
            let (outcome, why) = match &delivery.outcome {
                DeliveryOutcome::Delivered => ("delivered", None),
                DeliveryOutcome::Again(why) => ("again", Some(why)),
                DeliveryOutcome::Refused(why) => ("refused", Some(why)),
            };
            let (id, receiver) = (&delivery.id, &delivery.receiver);
            serde_json::json!({
                "sink": **sink, "at": at.to_string(), "id": id, "receiver": receiver, "outcome": outcome, "why": why,
            })
        });
        told.collect()
    }
}

/// An input that still counts against the bytes of the edge it came by. It stops counting when dropped: a sink that holds
/// it until the records are delivered thereby slows its writer down.
#[derive(Debug)]
pub struct Queued {
    pub input: SinkInput,
    pub(crate) _permit: Option<tokio::sync::OwnedSemaphorePermit>,
    /// The place behind it in the sink's buffer.
    pub(crate) place: Option<u64>,
}

impl Queued {
    /// An input that counts against nothing: for tests.
    pub fn free(input: SinkInput) -> Self {
        Self { input, _permit: None, place: None }
    }

    /// The input, and the guard that makes it count while it lives.
    pub fn split(self) -> (SinkInput, Option<tokio::sync::OwnedSemaphorePermit>) {
        (self.input, self._permit)
    }
}

/// Where a sink puts the records that it could not deliver and never will.
#[derive(Clone, Debug)]
pub struct Rejected {
    sender: Option<mpsc::Sender<Letters>>,
    /// Whether somebody takes the records themselves, at `NAME.failed`; and whether somebody takes dead letters.
    connected: Connected,
    metrics: ComponentMetrics,
    name: Arc<str>,
    /// How many barriers the sink has answered: its letters belong after that many.
    barriers: Arc<AtomicU64>,
}

/// Which outputs of a sink somebody reads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Connected {
    pub rejected: bool,
    pub failed: bool,
}

/// The output of a sink that something goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Dead letters.
    Rejected,
    /// Records that could not be delivered, as they came.
    Failed,
}

/// Dead letters of a sink, and records that it hands on, on their way to those who take them.
#[derive(Debug)]
pub(crate) struct Letters {
    pub port: Port,
    pub batch: Batch,
    /// How many barriers the sink had answered before it wrote them.
    pub barriers: u64,
}

impl Rejected {
    /// Counts only: for tests and for sinks whose dead letters nobody reads.
    pub fn counting(name: Arc<str>, metrics: ComponentMetrics) -> Self {
        Self { sender: None, connected: Connected::default(), metrics, name, barriers: Arc::default() }
    }

    pub(crate) fn new(
        sender: mpsc::Sender<Letters>,
        connected: Connected,
        name: Arc<str>,
        metrics: ComponentMetrics,
        till: &Till,
    ) -> Self {
        Self { sender: Some(sender), connected, metrics, name, barriers: Arc::clone(&till.barriers) }
    }

    /// Refuses one record of a batch, which ends here.
    pub async fn reject(&self, batch: &Batch, row: u32, reason: Reason, message: &str) {
        self.metrics.dropped(reason, 1);
        self.tell(batch, row, reason, message).await;
    }

    /// Writes a dead letter of what does not count as a record of the sink: one of the notifications that a record has
    /// become.
    pub async fn tell(&self, batch: &Batch, row: u32, reason: Reason, message: &str) {
        if !self.connected.rejected {
            return;
        }
        let letter = crate::operator::dead_letter(&self.name, reason.as_str(), message, batch, row);
        let batch = Batch::of_values(Arc::clone(&batch.lane), vec![(batch.time(row), letter)], batch.arrival);
        self.send(Port::Rejected, batch).await;
    }

    /// Whether somebody takes the records that could not be delivered, as they came.
    pub fn hands_on(&self) -> bool {
        self.connected.failed
    }

    /// Gives a record that could not be delivered to those who read `NAME.failed`. Does not count as a record of the sink.
    pub async fn hand_on(&self, record: Value, time: Timestamp, arrival: Timestamp) {
        if self.connected.failed {
            let lane = Arc::new(Lane::of_operator(Arc::clone(&self.name), Origin::Operator));
            self.send(Port::Failed, Batch::of_values(lane, vec![(time, record)], arrival)).await;
        }
    }

    async fn send(&self, port: Port, batch: Batch) {
        let Some(sender) = &self.sender else { return };
        let barriers = self.barriers.load(Ordering::Acquire);
        // The reader is gone only when the pipeline stops; the record was counted.
        if sender.send(Letters { port, batch, barriers }).await.is_ok() {
            self.metrics.made(1);
        }
    }
}

/// A sink could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// What a person would be sent for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// `None` where the receiver knows no subjects.
    pub subject: Option<String>,
    pub body: String,
}

/// A sink, built but not yet open.
pub trait Sink: Send {
    /// What it would send for a record, without sending: for `tocsin test`. `None` for sinks that tell nobody.
    fn preview(&self, _batch: &Batch, _row: u32) -> Option<Notification> {
        None
    }

    /// How many bytes it may hold beside what is in its buffer: part of what the daemon may take.
    fn memory(&self) -> usize {
        0
    }

    /// Whether it is told watermarks. Behind a buffer that continues on disk it is told none: there, time does not stand in
    /// order with the records.
    fn wants_watermarks(&self) -> bool {
        false
    }

    /// What decides which epoch is the truth, where what it writes becomes visible in a transaction. After it has answered
    /// a barrier such a sink writes nothing until the epoch is decided or abandoned.
    fn decider(&self) -> Option<Arc<dyn Decider>> {
        None
    }

    /// Opens what can be opened without a peer: files (cut back to what the checkpoint says), folders, certificates. A peer
    /// that is away is no reason to fail. Called for all sinks before any source runs.
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>>;

    /// Takes inputs until [`SinkInput::End`], finishes what it has within the context's `stop`, and says what it needs to
    /// go on from: as at a barrier, `Unchanged` if nothing has changed since the last one.
    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>>;
}
