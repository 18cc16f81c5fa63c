//! The edges between tasks: channels bounded in bytes, and the inbox that brings several of them together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::chain::Sent;
use crate::graph::{TaskId, WhenFull};
use crate::metrics::ComponentMetrics;
use crate::operator::{Input, Reason};
use crate::sink::{Queued, SinkInput, SinkState};
use crate::source::Gone;
use crate::time::Timestamp;
use crate::watermark::MergedWatermark;

/// How many messages an edge holds at the most, however small they are.
pub const EDGE_MESSAGES: usize = 256;

/// What travels with the data of an epoch: its number, and where every sink answers.
#[derive(Debug)]
pub struct Ticket {
    pub epoch: u64,
    /// All state is to be handed out, not only what changed.
    pub full: bool,
    /// One for each sink, taken by whoever brings the sink its barrier.
    pub prepared: Mutex<Vec<Option<oneshot::Sender<SinkState>>>>,
    /// Told when the epoch is complete: clients of push sources that wait for their records to be durable.
    pub acknowledgements: Mutex<Vec<oneshot::Sender<()>>>,
}

/// What tells the tasks about the flow, in the same edges as the data.
#[derive(Clone, Debug)]
pub enum Signal {
    Watermark(Timestamp),
    Barrier(Arc<Ticket>),
    End,
}

pub enum Message {
    Data { entry: usize, input: Input },
    Signal(Signal),
}

/// A message in an inbox, with the edge it came by and what it counts there.
pub struct Envelope {
    pub from: usize,
    pub message: Message,
    /// What it counts against the edge, until it is dropped.
    permit: Option<OwnedSemaphorePermit>,
}

/// The door of a task.
#[derive(Clone)]
pub enum Door {
    Inbox(mpsc::Sender<Envelope>),
    /// A sink that one task feeds: without an inbox between them.
    Sink(mpsc::Sender<Queued>, usize),
}

/// One end of an edge: what a task writes to.
#[derive(Clone)]
pub struct Edge {
    pub to: TaskId,
    pub door: Door,
    /// Which of the receiver's edges it is.
    pub from: usize,
    pub budget: Arc<Semaphore>,
    pub capacity: usize,
    pub when_full: WhenFull,
    /// Where a full edge that drops counts.
    pub metrics: ComponentMetrics,
}

impl Edge {
    /// Hands data over, waiting while the edge holds all it may.
    pub async fn send(&self, entry: usize, input: Input) -> Result<(), Gone> {
        let bytes = input.bytes().clamp(1, self.capacity);
        let wanted = u32::try_from(bytes).expect("edges are below 4 GiB");
        let permit = match Arc::clone(&self.budget).try_acquire_many_owned(wanted) {
            Ok(permit) => permit,
            Err(_) if self.when_full == WhenFull::DropNewest => {
                self.metrics.dropped(Reason::BufferFull, input.records() as u64);
                return Ok(());
            }
            Err(_) => Arc::clone(&self.budget).acquire_many_owned(wanted).await.map_err(|_| Gone)?,
        };
        match &self.door {
            Door::Inbox(sender) => {
                let message = Message::Data { entry, input };
                sender.send(Envelope { from: self.from, message, permit: Some(permit) }).await.map_err(|_| Gone)
            }
            Door::Sink(sender, _) => {
                let Input::Batch(batch) = input else { unreachable!("sinks have no prepared input") };
                sender.send(Queued { input: SinkInput::Batch(batch), _permit: Some(permit) }).await.map_err(|_| Gone)
            }
        }
    }

    pub async fn signal(&self, signal: Signal) -> Result<(), Gone> {
        match &self.door {
            Door::Inbox(sender) => {
                let message = Message::Signal(signal);
                sender.send(Envelope { from: self.from, message, permit: None }).await.map_err(|_| Gone)
            }
            Door::Sink(sender, sink) => match sink_input(signal, *sink) {
                Some(input) => sender.send(Queued { input, _permit: None }).await.map_err(|_| Gone),
                None => Ok(()),
            },
        }
    }
}

/// How full an edge is, for `tocsin_edge_bytes`.
pub struct Level {
    pub budget: Arc<Semaphore>,
    pub capacity: usize,
    pub gauge: IntGauge,
}

impl Level {
    pub fn measure(&self) {
        self.gauge.set(self.capacity.saturating_sub(self.budget.available_permits()) as i64);
    }
}

/// What a sink is told of a signal.
pub fn sink_input(signal: Signal, sink: usize) -> Option<SinkInput> {
    match signal {
        Signal::Watermark(_) => None,
        Signal::End => Some(SinkInput::End),
        Signal::Barrier(ticket) => {
            let prepared = ticket.prepared.lock().expect("no holder of this lock panics")[sink].take();
            prepared.map(|prepared| SinkInput::Barrier { epoch: ticket.epoch, prepared })
        }
    }
}

/// All edges a task writes to.
#[derive(Clone, Default)]
pub struct Outlets {
    pub edges: Vec<Edge>,
}

impl Outlets {
    pub async fn send(&self, sent: Sent) -> Result<(), Gone> {
        let edge = self.edges.iter().find(|edge| edge.to == sent.to).expect("every link of a chain has its edge");
        edge.send(sent.entry, sent.input).await
    }

    pub async fn signal(&self, signal: Signal) -> Result<(), Gone> {
        for edge in &self.edges {
            edge.signal(signal.clone()).await?;
        }
        Ok(())
    }
}

/// What an inbox hands its task, barriers and ends of all edges brought together.
pub enum Arrived {
    Data { entry: usize, input: Input, permit: Option<OwnedSemaphorePermit> },
    Watermark(Timestamp),
    Barrier(Arc<Ticket>),
    End,
}

/// Brings several edges together: an edge that has delivered a barrier is not read until all have (aligned snapshots after
/// Chandy and Lamport, as in Flink).
pub struct Inbox {
    receiver: mpsc::Receiver<Envelope>,
    blocked: Vec<bool>,
    ended: Vec<bool>,
    /// What came by blocked edges; bounded by what those edges may hold.
    held: VecDeque<Envelope>,
    watermark: MergedWatermark,
}

impl Inbox {
    pub fn new(receiver: mpsc::Receiver<Envelope>, edges: usize) -> Self {
        Self {
            receiver,
            blocked: vec![false; edges],
            ended: vec![false; edges],
            held: VecDeque::new(),
            watermark: MergedWatermark::new(edges),
        }
    }

    /// What comes next. After [`Arrived::End`], or when all writers are gone, it is `None`.
    pub async fn next(&mut self) -> Option<Arrived> {
        loop {
            let held = self.held.iter().position(|envelope| !self.blocked[envelope.from]);
            let envelope = match held {
                Some(at) => self.held.remove(at).expect("just found"),
                None => {
                    let envelope = self.receiver.recv().await?;
                    if self.blocked[envelope.from] {
                        self.held.push_back(envelope);
                        continue;
                    }
                    envelope
                }
            };
            if let Some(arrived) = self.take(envelope) {
                return Some(arrived);
            }
        }
    }

    fn take(&mut self, envelope: Envelope) -> Option<Arrived> {
        let Envelope { from, message, permit } = envelope;
        match message {
            Message::Data { entry, input } => Some(Arrived::Data { entry, input, permit }),
            Message::Signal(Signal::Watermark(watermark)) => {
                self.watermark.update(from, watermark).map(Arrived::Watermark)
            }
            Message::Signal(Signal::Barrier(ticket)) => {
                self.blocked[from] = true;
                self.is_aligned().then(|| {
                    self.blocked.fill(false);
                    Arrived::Barrier(ticket)
                })
            }
            // Ends come when all epochs are complete, so no barrier waits for this edge.
            Message::Signal(Signal::End) => {
                self.ended[from] = true;
                self.ended.iter().all(|ended| *ended).then_some(Arrived::End)
            }
        }
    }

    fn is_aligned(&self) -> bool {
        self.blocked.iter().zip(&self.ended).all(|(blocked, ended)| *blocked || *ended)
    }
}
