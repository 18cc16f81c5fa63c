//! Who writes to whom, and the channels between them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, mpsc};

use super::Settings;
use super::edge::{Door, EDGE_MESSAGES, Edge, Envelope, Inbox, Level, Outlets, SinkDoor};
use super::spill::Shares;
use crate::graph::{TaskId, Tasks, WhenFull};
use crate::metrics::Metrics;
use crate::sink::Queued;

/// What an edge between sources and operators holds at the least and at the most, in bytes; in between, the edges share
/// what the daemon may take.
const EDGE_BYTES: (usize, usize) = (1 << 20, 16 << 20);

/// Who writes to whom.
pub(super) struct Wiring {
    /// By receiver, its writers in order.
    writers: BTreeMap<TaskId, Vec<TaskId>>,
    inboxes: BTreeMap<TaskId, Channel<Envelope>>,
    sink_queues: Vec<Channel<Queued>>,
    sink_budgets: Vec<(Arc<Semaphore>, usize, WhenFull)>,
    sink_doors: Vec<SinkDoor>,
    names: BTreeMap<TaskId, String>,
    metrics: Metrics,
    levels: Mutex<Vec<Level>>,
    /// How many bytes an edge to a stage holds.
    edge_bytes: usize,
}

impl Wiring {
    pub fn new(tasks: &Tasks, settings: &Settings) -> Self {
        let mut writers: BTreeMap<TaskId, Vec<TaskId>> = BTreeMap::new();
        let mut names = BTreeMap::new();
        let mut add = |from: TaskId, links: Vec<TaskId>| {
            for to in links {
                let writers: &mut Vec<TaskId> = writers.entry(to).or_default();
                if !writers.contains(&from) {
                    writers.push(from);
                }
            }
        };
        for (index, task) in tasks.sources.iter().enumerate() {
            let intake = &task.intake;
            add(TaskId::Source(index), intake.chain.receivers(&[&intake.entry, &intake.rejected]));
            names.insert(TaskId::Source(index), task.name.to_string());
        }
        for (index, task) in tasks.stages.iter().enumerate() {
            add(TaskId::Stage(index), task.chain.receivers(&[]));
            names.insert(TaskId::Stage(index), task.name.clone());
        }
        for (index, task) in tasks.sinks.iter().enumerate() {
            add(TaskId::Sink(index), task.chain.receivers(&[&task.rejected, &task.failed]));
            names.insert(TaskId::Sink(index), task.name.to_string());
        }
        let mut inboxes = BTreeMap::new();
        for (to, from) in &writers {
            if matches!(to, TaskId::Stage(_)) || from.len() > 1 {
                inboxes.insert(*to, Channel::new());
            }
        }
        let edges =
            writers.iter().filter(|(to, _)| matches!(to, TaskId::Stage(_))).map(|(_, from)| from.len()).sum::<usize>();
        let memory = settings.memory.saturating_sub(tasks.memory());
        let edge_bytes = (memory / edges.max(1)).clamp(EDGE_BYTES.0, EDGE_BYTES.1);
        let sink_queues = tasks.sinks.iter().map(|_| Channel::new()).collect();
        let sink_budgets = tasks
            .sinks
            .iter()
            .map(|sink| {
                let bytes = match sink.when_full {
                    WhenFull::Spill { .. } => Shares::of(sink.buffer_bytes).edge,
                    WhenFull::Block | WhenFull::DropNewest => sink.buffer_bytes,
                };
                (Arc::new(Semaphore::new(bytes)), bytes, sink.when_full)
            })
            .collect();
        let sink_doors = (0..).zip(&tasks.sinks);
        let sink_doors =
            sink_doors.map(|(sink, task)| SinkDoor { sink, wants_watermarks: task.sink.wants_watermarks() }).collect();
        Self {
            writers,
            inboxes,
            sink_queues,
            sink_budgets,
            sink_doors,
            names,
            metrics: settings.metrics.clone(),
            levels: Mutex::default(),
            edge_bytes,
        }
    }

    /// The edges a task writes to.
    pub fn outlets(&self, from: TaskId) -> Outlets {
        let edges = self.writers.iter().filter_map(|(to, writers)| {
            let number = writers.iter().position(|writer| *writer == from)?;
            let door = match (self.inboxes.get(to), to) {
                (Some(inbox), _) => Door::Inbox(inbox.sender.clone()),
                (None, TaskId::Sink(sink)) => Door::Sink(self.sink_queues[*sink].sender.clone(), self.door(*sink)),
                (None, _) => unreachable!("stages have inboxes"),
            };
            let (budget, capacity, when_full) = match to {
                TaskId::Sink(sink) => self.sink_budgets[*sink].clone(),
                _ => (Arc::new(Semaphore::new(self.edge_bytes)), self.edge_bytes, WhenFull::Block),
            };
            let gauge =
                self.metrics.edge_bytes.with_label_values(&[self.names[&from].as_str(), self.names[to].as_str()]);
            let level = Level { budget: Arc::clone(&budget), capacity, gauge };
            self.levels.lock().expect("no holder of this lock panics").push(level);
            let metrics = self.metrics.component(&self.names[to], "sink");
            Some(Edge {
                to: *to,
                door,
                from: number,
                budget,
                capacity,
                when_full,
                metrics,
                overflowed: AtomicU64::new(0),
            })
        });
        Outlets { edges: edges.collect() }
    }

    pub fn inbox(&self, to: TaskId) -> Option<Inbox> {
        let receiver = self.inboxes.get(&to)?.take()?;
        Some(Inbox::new(receiver, self.writers[&to].len()))
    }

    /// What of the flow a sink is told.
    pub fn door(&self, sink: usize) -> SinkDoor {
        self.sink_doors[sink]
    }

    /// The queue of a sink: what writes to it.
    pub fn queue(&self, sink: usize) -> mpsc::Sender<Queued> {
        self.sink_queues[sink].sender.clone()
    }

    /// The queue of a sink: what it reads. `None` if it was taken before.
    pub fn queued(&self, sink: usize) -> Option<mpsc::Receiver<Queued>> {
        self.sink_queues[sink].take()
    }

    /// How full the edges are.
    pub fn into_levels(self) -> Vec<Level> {
        self.levels.into_inner().expect("no holder of this lock panics")
    }
}

/// A channel whose reader is yet to be handed out.
struct Channel<T> {
    sender: mpsc::Sender<T>,
    receiver: Mutex<Option<mpsc::Receiver<T>>>,
}

impl<T> Channel<T> {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(EDGE_MESSAGES);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }

    fn take(&self) -> Option<mpsc::Receiver<T>> {
        self.receiver.lock().expect("no holder of this lock panics").take()
    }
}
