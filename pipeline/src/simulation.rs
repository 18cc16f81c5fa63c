//! The simulated driver: runs the same plan as the daemon, single-threaded, on a virtual clock, without opening anything.
//!
//! What a sink would be handed is collected with the moment at which it would be. Results equal those of the daemon because
//! the code between a source's blocks and a sink's inputs is the same; only who calls it differs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::chain::{Content, Passage, Sent};
use crate::checkpoint::Snapshot;
use crate::event::{Batch, Lane, Origin, Span};
use crate::graph::{Graph, Intake, TaskId, Tasks, Work};
use crate::intake::Taken;
use crate::ledger::Account;
use crate::metrics::Metrics;
use crate::operator::StateError;
use crate::sink::Notification;
use crate::source::{Block, Framing};
use crate::tally::Book;
use crate::time::Timestamp;
use crate::watermark::{MergedWatermark, SourceWatermark};

/// How finely the virtual clock moves for operators that do not know what they wait for: as often as the daemon looks at idle
/// sources.
const STEP: Duration = Duration::from_secs(1);

/// A stretch without input is looked at so often at most in steps: after a wrong clock it may be decades long.
const STEPS_MAX: u32 = 86_400;

/// The clock stops at whole milliseconds, as the daemon's timers do.
const TICK: i64 = 1_000_000;

/// Something a sink would have been handed.
#[derive(Debug)]
pub struct Arrival {
    /// The number of the sink in the graph.
    pub sink: usize,
    pub at: Timestamp,
    pub batch: Batch,
}

/// A pipeline under a virtual clock.
pub struct Simulation {
    tasks: Tasks,
    /// By source: the lane of what [`Self::input`] is given.
    lanes: Vec<Arc<Lane>>,
    offsets: Vec<u64>,
    watermarks: Vec<SourceWatermark>,
    /// By source: the partitions that something was delivered of and that are not settled yet.
    delivered: Vec<BTreeSet<String>>,
    /// By stage: its writers, and how far they have come.
    merged: Vec<(Vec<TaskId>, MergedWatermark)>,
    /// By stage: the sources whose watermarks come to it; `None` where some writer never has one.
    roots: Vec<Option<BTreeSet<usize>>>,
    books: BTreeMap<TaskId, Book>,
    now: Timestamp,
    arrivals: Vec<Arrival>,
    steps: u64,
}

impl Simulation {
    /// A built graph whose clock shows `start`.
    pub fn new(graph: Graph, start: Timestamp) -> Self {
        let tasks = graph.into_tasks(&Metrics::new());
        let lanes: Vec<_> = tasks
            .sources
            .iter()
            .map(|source| {
                let options = &source.intake.options;
                Arc::new(Lane {
                    source: Arc::clone(&source.name),
                    partition: String::new(),
                    origin: Origin::Stream,
                    codec: Arc::clone(&options.codec),
                    out_of_order: options.out_of_order,
                })
            })
            .collect();
        let watermarks = tasks
            .sources
            .iter()
            .map(|source| {
                let options = &source.intake.options;
                let mut watermark = SourceWatermark::new(options.idle_timeout, options.out_of_order);
                // From the beginning there is one lane, which has nothing to read.
                watermark.idle("", start);
                watermark
            })
            .collect();
        let mut writers: Vec<Vec<TaskId>> = vec![Vec::new(); tasks.stages.len()];
        let mut add = |from: TaskId, links: Vec<TaskId>| {
            for to in links {
                if let TaskId::Stage(stage) = to
                    && !writers[stage].contains(&from)
                {
                    writers[stage].push(from);
                }
            }
        };
        for (index, source) in tasks.sources.iter().enumerate() {
            let intake = &source.intake;
            add(TaskId::Source(index), intake.chain.receivers(&[&intake.entry, &intake.rejected]));
        }
        for (index, stage) in tasks.stages.iter().enumerate() {
            add(TaskId::Stage(index), stage.chain.receivers(&[]));
        }
        let roots = (0..writers.len()).map(|stage| roots(&tasks, &writers, stage)).collect();
        let merged =
            writers.into_iter().map(|writers| (writers.clone(), MergedWatermark::new(writers.len()))).collect();
        let sources = (0..).zip(&tasks.sources).map(|(at, task)| (TaskId::Source(at), Book::of_intake(&task.intake)));
        let stages = (0..).zip(&tasks.stages).map(|(at, task)| (TaskId::Stage(at), Book::of_chain(&task.chain)));
        Self {
            offsets: vec![0; lanes.len()],
            delivered: vec![BTreeSet::new(); lanes.len()],
            books: sources.chain(stages).collect(),
            lanes,
            watermarks,
            merged,
            roots,
            tasks,
            now: start,
            arrivals: Vec::new(),
            steps: 0,
        }
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Records arrive at a source, at the moment the clock shows.
    pub fn input(&mut self, source: usize, records: &[&[u8]]) {
        let mut bytes = Vec::new();
        let mut spans = Vec::new();
        for record in records {
            spans.push(Span::new(bytes.len(), record.len()));
            bytes.extend_from_slice(record);
            bytes.push(b'\n');
        }
        let base = self.offsets[source];
        self.offsets[source] += bytes.len() as u64;
        let block = Block {
            bytes: Bytes::from(bytes),
            framing: Framing::Spans(spans),
            base,
            position: serde_json::Value::Null,
            arrival: self.now,
            acknowledgement: None,
            notes: None,
        };
        let lane = Arc::clone(&self.lanes[source]);
        let taken = self.tasks.sources[source].intake.take(lane, block);
        self.deliver(source, taken);
        self.settle();
    }

    /// What the blocks of a source go through; whoever takes them in elsewhere hands over what came of it.
    pub fn intake(&self, source: usize) -> Arc<Intake> {
        Arc::clone(&self.tasks.sources[source].intake)
    }

    /// What was taken in of a source arrives, at the moment the clock shows. [`Self::settle`] follows once all is there that
    /// arrives at this moment.
    pub fn deliver(&mut self, source: usize, taken: Taken) {
        taken.settle(self.book(TaskId::Source(source)));
        let Taken { lane, passage, seen_max, .. } = taken;
        let seen_before = self.watermarks[source].observe(&lane.partition, seen_max);
        let mut queue = VecDeque::new();
        for mut sent in passage.sent {
            sent.content.set_seen_before(seen_before);
            queue.push_back(sent);
        }
        self.run(queue);
        if !self.delivered[source].contains(&lane.partition) {
            self.delivered[source].insert(lane.partition.clone());
        }
    }

    /// All that arrives at this moment has: event time moves, and the lanes have nothing more to read.
    pub fn settle(&mut self) {
        for source in 0..self.delivered.len() {
            let partitions = std::mem::take(&mut self.delivered[source]);
            if !partitions.is_empty() {
                self.propagate(source);
            }
            partitions.iter().for_each(|partition| self.watermarks[source].idle(partition, self.now));
        }
    }

    /// Begins at `start` with sources that have no lanes yet, instead of one each that has nothing to read.
    pub fn without_lanes(&mut self, start: Timestamp) {
        self.now = start;
        for (watermark, source) in self.watermarks.iter_mut().zip(&self.tasks.sources) {
            let options = &source.intake.options;
            *watermark = SourceWatermark::new(options.idle_timeout, options.out_of_order);
            watermark.advance(start);
        }
    }

    /// A lane of a source is there, and holds event time back until it has shown something.
    pub fn open(&mut self, source: usize, partition: &str) {
        self.watermarks[source].open(partition);
    }

    /// A lane of a source gives no more.
    pub fn close(&mut self, source: usize, partition: &str) {
        self.watermarks[source].close(partition);
        self.propagate(source);
    }

    /// Moves the clock. It stops wherever an idle source comes to what an operator waits for.
    pub fn advance(&mut self, to: Timestamp) {
        let step = STEP.max(to.since(self.now) / STEPS_MAX);
        while self.now < to {
            self.now = self.next_stop(to, step);
            self.steps += 1;
            for source in 0..self.watermarks.len() {
                self.propagate(source);
            }
        }
    }

    /// How often the clock was moved so far: what a test costs, whatever the machine.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn next_stop(&self, to: Timestamp, step: Duration) -> Timestamp {
        let mut stop = to;
        for (stage, task) in self.tasks.stages.iter().enumerate() {
            let Some(roots) = &self.roots[stage] else { continue };
            let deadlines = task.chain.nodes.iter().filter_map(|node| match &node.work {
                Work::Operator(operator) => Some(operator.next_deadline()),
                Work::Transform(_) => None,
            });
            let deadline = deadlines.min().unwrap_or(Timestamp::MAX);
            if deadline == Timestamp::MAX {
                continue;
            }
            let reached = roots.iter().map(|source| self.watermarks[*source].reaches(deadline));
            let Some(reached) =
                reached.reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other))).flatten()
            else {
                continue;
            };
            let tick = Timestamp(reached.0.saturating_add(TICK - 1).div_euclid(TICK).saturating_mul(TICK));
            // What it waits for is there already: it does not know what that is, or has other reasons to wait.
            let tick = if tick > self.now { tick } else { self.now.saturating_add(step) };
            stop = stop.min(tick);
        }
        stop
    }

    /// All sources have come to their end.
    pub fn end(&mut self) {
        for source in 0..self.watermarks.len() {
            self.signal(TaskId::Source(source), Timestamp::MAX);
        }
    }

    /// What the sinks would have been handed since this was asked last, in order.
    pub fn take_arrivals(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// What a sink would tell for a record that has arrived.
    pub fn preview(&self, arrival: &Arrival, row: u32) -> Option<Notification> {
        self.tasks.sinks[arrival.sink].sink.preview(&arrival.batch, row)
    }

    /// What became of records so far, by source and operator. What runs behind several feeders is there several times.
    pub fn accounts(&self) -> impl Iterator<Item = (Arc<str>, Account)> {
        self.books.values().flat_map(Book::accounts)
    }

    /// What an operator says of how it stands, see [`Operator::view`](crate::operator::Operator::view).
    pub fn view(&self, name: &str, question: &serde_json::Value) -> Option<serde_json::Value> {
        let nodes = self.tasks.stages.iter().flat_map(|stage| &stage.chain.nodes);
        let node = nodes.into_iter().find(|node| *node.name == *name)?;
        match &node.work {
            Work::Operator(operator) => Some(operator.view(question)),
            Work::Transform(_) => None,
        }
    }

    /// The state of all operators, as a checkpoint would hold it.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for stage in &mut self.tasks.stages {
            for node in &mut stage.chain.nodes {
                let Work::Operator(operator) = &mut node.work else { continue };
                let mut pieces = BTreeMap::new();
                operator.snapshot(true, &mut |group, piece| {
                    pieces.insert(group, Bytes::from(piece));
                });
                snapshot.operators.insert(node.name.to_string(), (operator.state_version(), pieces));
            }
        }
        snapshot
    }

    /// Takes back what [`Self::snapshot`] gave.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), StateError> {
        for stage in &mut self.tasks.stages {
            for node in &mut stage.chain.nodes {
                let Work::Operator(operator) = &mut node.work else { continue };
                let Some((_, pieces)) = snapshot.operators.get(&*node.name) else { continue };
                for (group, piece) in pieces.iter().filter(|(_, piece)| !piece.is_empty()) {
                    operator.restore(*group, piece)?;
                }
            }
        }
        Ok(())
    }

    fn book(&mut self, task: TaskId) -> &mut Book {
        self.books.get_mut(&task).expect("every source and stage has its book")
    }

    fn propagate(&mut self, source: usize) {
        if self.tasks.sources[source].intake.needs_time
            && let Some(watermark) = self.watermarks[source].advance(self.now)
        {
            self.signal(TaskId::Source(source), watermark);
        }
    }

    /// Tells the stages that `from` writes to how far it has come, and so on.
    fn signal(&mut self, from: TaskId, watermark: Timestamp) {
        for stage in 0..self.merged.len() {
            let (writers, merged) = &mut self.merged[stage];
            let Some(input) = writers.iter().position(|writer| *writer == from) else { continue };
            let Some(watermark) = merged.update(input, watermark) else { continue };
            let chain = &mut self.tasks.stages[stage].chain;
            let mut passage = Passage::of(chain);
            chain.on_watermark(watermark, &mut passage).unwrap_or_else(|panicked| panicked.resume());
            passage.settle(self.book(TaskId::Stage(stage)));
            self.run(passage.sent.into());
            self.signal(TaskId::Stage(stage), watermark);
        }
    }

    fn run(&mut self, mut queue: VecDeque<Sent>) {
        while let Some(Sent { to, entry, content }) = queue.pop_front() {
            match (to, content) {
                (TaskId::Stage(index), content) => {
                    let stage = &mut self.tasks.stages[index];
                    let (node, input) = stage.entries[entry];
                    let mut passage = Passage::of(&stage.chain);
                    let delivered = stage.chain.deliver(node, input, content, &mut passage);
                    delivered.unwrap_or_else(|panicked| panicked.resume());
                    passage.settle(self.book(TaskId::Stage(index)));
                    queue.extend(passage.sent);
                }
                (TaskId::Sink(sink), Content::Batch(batch)) => {
                    self.arrivals.push(Arrival { sink, at: self.now, batch });
                }
                (TaskId::Sink(_), _) => unreachable!("sinks have no prepared input"),
                (TaskId::Source(_), _) => unreachable!("nothing is written to a source"),
            }
        }
    }
}

/// The sources whose watermarks come to a stage, through others or not; `None` where one of its writers never has any.
fn roots(tasks: &Tasks, writers: &[Vec<TaskId>], stage: usize) -> Option<BTreeSet<usize>> {
    let mut found = BTreeSet::new();
    let (mut seen, mut open) = (BTreeSet::from([stage]), vec![stage]);
    while let Some(stage) = open.pop() {
        for writer in &writers[stage] {
            match *writer {
                TaskId::Source(source) if tasks.sources[source].intake.needs_time => drop(found.insert(source)),
                TaskId::Stage(feeder) => {
                    if seen.insert(feeder) {
                        open.push(feeder);
                    }
                }
                TaskId::Source(_) | TaskId::Sink(_) => return None,
            }
        }
    }
    Some(found)
}
