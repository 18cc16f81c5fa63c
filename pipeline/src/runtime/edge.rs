//! The edges between tasks: channels bounded in bytes, and the inbox that brings several of them together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::chain::{Content, Sent};
use crate::fault::{self, Defect};
use crate::graph::{TaskId, WhenFull};
use crate::ledger::{Account, Kind};
use crate::metrics::ComponentMetrics;
use crate::operator::Reason;
use crate::sink::{Prepared, Queued, SinkInput};
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
    pub prepared: Mutex<Vec<Option<Prepared>>>,
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
    Data { entry: usize, content: Content },
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
pub enum Door {
    Inbox(mpsc::Sender<Envelope>),
    /// A sink that one task feeds: without an inbox between them.
    Sink(mpsc::Sender<Queued>, SinkDoor),
}

/// What of the flow a sink is told.
#[derive(Clone, Copy, Debug)]
pub struct SinkDoor {
    /// The sink's number.
    pub sink: usize,
    pub wants_watermarks: bool,
}

/// One end of an edge: what a task writes to.
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
    /// How many records it has dropped.
    pub overflowed: AtomicU64,
}

impl Edge {
    /// Hands data over, waiting while the edge holds all it may.
    pub async fn send(&self, entry: usize, content: Content) -> Result<(), Gone> {
        let bytes = content.bytes().clamp(1, self.capacity);
        let wanted = u32::try_from(bytes).expect("edges are below 4 GiB");
        let permit = match Arc::clone(&self.budget).try_acquire_many_owned(wanted) {
            Ok(permit) => permit,
            Err(_) if self.when_full == WhenFull::DropNewest => {
                self.metrics.dropped(Reason::BufferFull, content.records() as u64);
                self.overflowed.fetch_add(content.records() as u64, Ordering::Relaxed);
                return Ok(());
            }
            Err(_) => Arc::clone(&self.budget).acquire_many_owned(wanted).await.map_err(|_| Gone)?,
        };
        match &self.door {
            Door::Inbox(sender) => {
                let message = Message::Data { entry, content };
                sender.send(Envelope { from: self.from, message, permit: Some(permit) }).await.map_err(|_| Gone)
            }
            Door::Sink(sender, _) => {
                let Content::Batch(batch) = content else { unreachable!("sinks have no prepared input") };
                let input = SinkInput::Batch(batch);
                sender.send(Queued { input, _permit: Some(permit), place: None }).await.map_err(|_| Gone)
            }
        }
    }

    pub async fn signal(&self, signal: Signal) -> Result<(), Gone> {
        match &self.door {
            Door::Inbox(sender) => {
                let message = Message::Signal(signal);
                sender.send(Envelope { from: self.from, message, permit: None }).await.map_err(|_| Gone)
            }
            Door::Sink(sender, door) => match door.input(signal) {
                Some(input) => sender.send(Queued::free(input)).await.map_err(|_| Gone),
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

impl SinkDoor {
    /// What the sink is told of a signal.
    pub fn input(self, signal: Signal) -> Option<SinkInput> {
        match signal {
            Signal::Watermark(watermark) => self.wants_watermarks.then_some(SinkInput::Watermark(watermark)),
            Signal::End => Some(SinkInput::End),
            Signal::Barrier(ticket) => {
                let prepared = ticket.prepared.lock().expect("no holder of this lock panics")[self.sink].take();
                prepared.map(|prepared| SinkInput::Barrier { epoch: ticket.epoch, prepared })
            }
        }
    }
}

/// All edges a task writes to.
pub struct Outlets {
    pub edges: Vec<Edge>,
}

impl Outlets {
    pub async fn send(&self, sent: Sent) -> Result<(), Gone> {
        let edge = self.edges.iter().find(|edge| edge.to == sent.to).expect("every link of a chain has its edge");
        edge.send(sent.entry, sent.content).await
    }

    /// What the edges have dropped, as accounts of the sinks behind them.
    pub fn accounts(&self) -> impl Iterator<Item = (Arc<str>, Account)> {
        self.edges.iter().filter_map(|edge| {
            let overflowed = edge.overflowed.load(Ordering::Relaxed);
            let account = Account { kind: Kind::Sink, overflowed, ..Account::default() };
            (overflowed > 0).then(|| (edge.metrics.name().into(), account))
        })
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
    Data { entry: usize, content: Content, permit: Option<OwnedSemaphorePermit> },
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
    /// The epoch of the last barrier handed on without the others: only where that defect is planted.
    handed_on: Option<u64>,
    watermark: MergedWatermark,
}

impl Inbox {
    pub fn new(receiver: mpsc::Receiver<Envelope>, edges: usize) -> Self {
        Self {
            receiver,
            blocked: vec![false; edges],
            ended: vec![false; edges],
            held: VecDeque::new(),
            handed_on: None,
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
            Message::Data { entry, content } => Some(Arrived::Data { entry, content, permit }),
            Message::Signal(Signal::Watermark(watermark)) => {
                self.watermark.update(from, watermark).map(Arrived::Watermark)
            }
            Message::Signal(Signal::Barrier(ticket)) => {
                if fault::is_planted(Defect::UnalignedBarrier) {
                    // Handed on as soon as the first edge has brought it; what the others bring of it is too late.
                    let is_first = self.handed_on < Some(ticket.epoch);
                    self.handed_on = self.handed_on.max(Some(ticket.epoch));
                    return is_first.then_some(Arrived::Barrier(ticket));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{text_batch, text_lane};

    fn ticket(epoch: u64) -> Arc<Ticket> {
        Arc::new(Ticket { epoch, full: false, prepared: Mutex::default(), acknowledgements: Mutex::default() })
    }

    fn edges(count: usize, capacity: usize) -> (Vec<Edge>, Inbox) {
        let (sender, receiver) = mpsc::channel(EDGE_MESSAGES);
        let edges = (0..count).map(|from| Edge {
            to: TaskId::Stage(0),
            door: Door::Inbox(sender.clone()),
            from,
            budget: Arc::new(Semaphore::new(capacity)),
            capacity,
            when_full: WhenFull::Block,
            metrics: crate::metrics::Metrics::new().component("to", "operator"),
            overflowed: AtomicU64::new(0),
        });
        (edges.collect(), Inbox::new(receiver, count))
    }

    fn data(text: &str) -> Content {
        Content::Batch(text_batch(&text_lane("in"), text))
    }

    /// What an inbox hands over, in words, until `count` things have come.
    async fn read(inbox: &mut Inbox, count: usize) -> String {
        let mut words = Vec::new();
        for _ in 0..count {
            words.push(match inbox.next().await {
                Some(Arrived::Data { content: Content::Batch(batch), .. }) => {
                    String::from_utf8_lossy(batch.record(0)).into_owned()
                }
                Some(Arrived::Data { .. }) => unreachable!("nothing is prepared here"),
                Some(Arrived::Watermark(watermark)) => format!("watermark {}", watermark.0),
                Some(Arrived::Barrier(ticket)) => format!("barrier {}", ticket.epoch),
                Some(Arrived::End) => "end".to_owned(),
                None => "nothing".to_owned(),
            });
        }
        words.join(", ")
    }

    #[tokio::test]
    async fn an_edge_that_has_delivered_its_barrier_is_not_read_until_all_have() {
        let (edges, mut inbox) = edges(2, 1 << 20);
        let (first, second) = (ticket(1), ticket(2));
        edges[0].signal(Signal::Barrier(Arc::clone(&first))).await.unwrap();
        edges[0].send(0, data("a after")).await.unwrap();
        edges[0].signal(Signal::Barrier(Arc::clone(&second))).await.unwrap();
        edges[1].send(0, data("b before")).await.unwrap();
        edges[1].signal(Signal::Barrier(first)).await.unwrap();
        edges[1].send(0, data("b after")).await.unwrap();
        edges[1].signal(Signal::Barrier(second)).await.unwrap();
        assert_eq!(read(&mut inbox, 5).await, "b before, barrier 1, a after, b after, barrier 2");
    }

    #[tokio::test]
    async fn an_inbox_ends_when_all_its_edges_have_and_barriers_do_not_wait_for_those() {
        let (edges, mut inbox) = edges(2, 1 << 20);
        edges[0].signal(Signal::End).await.unwrap();
        edges[1].signal(Signal::Watermark(Timestamp(5))).await.unwrap();
        edges[1].signal(Signal::Barrier(ticket(1))).await.unwrap();
        edges[0].signal(Signal::Watermark(Timestamp(7))).await.unwrap();
        edges[1].signal(Signal::End).await.unwrap();
        assert_eq!(read(&mut inbox, 3).await, "barrier 1, watermark 5, end");
    }

    #[tokio::test]
    async fn a_full_edge_makes_its_writer_wait_until_what_it_holds_is_gone() {
        let (edges, mut inbox) = edges(1, 10);
        edges[0].send(0, data("larger than the edge")).await.unwrap();
        let mut second = Box::pin(edges[0].send(0, data("second")));
        assert!(futures_util::poll!(second.as_mut()).is_pending(), "the edge is full");
        let Some(Arrived::Data { permit, .. }) = inbox.next().await else { panic!("the first has arrived") };
        assert!(futures_util::poll!(second.as_mut()).is_pending(), "the first is still worked on");
        drop(permit);
        second.await.unwrap();
        assert_eq!(read(&mut inbox, 1).await, "second");
    }

    #[tokio::test]
    async fn a_full_edge_that_may_drop_counts_what_it_drops() {
        let (mut edges, _inbox) = edges(1, 10);
        edges[0].when_full = WhenFull::DropNewest;
        edges[0].send(0, data("larger than the edge")).await.unwrap();
        edges[0].send(0, data("second")).await.unwrap();
        assert_eq!(edges[0].metrics.dropped_events(Reason::BufferFull), 1);
        let (to, account) = Outlets { edges }.accounts().next().unwrap();
        assert_eq!((&*to, account.overflowed), ("to", 1));
    }

    #[cfg(feature = "faults")]
    #[tokio::test]
    async fn a_planted_inbox_does_not_wait_for_all_edges() {
        let (edges, mut inbox) = edges(2, 1 << 20);
        let barrier = ticket(1);
        edges[0].signal(Signal::Barrier(Arc::clone(&barrier))).await.unwrap();
        edges[1].send(0, data("before")).await.unwrap();
        edges[1].signal(Signal::Barrier(barrier)).await.unwrap();
        edges[1].send(0, data("after")).await.unwrap();
        fault::plant(Some(Defect::UnalignedBarrier));
        let read = read(&mut inbox, 3).await;
        fault::plant(None);
        assert_eq!(read, "barrier 1, before, after");
    }
}
