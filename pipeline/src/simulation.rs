//! The simulated driver: runs the same plan as the daemon, single-threaded, on a virtual clock, without opening anything.
//!
//! What a sink would be handed is collected with the moment at which it would be. Results equal those of the daemon because
//! the code between a source's blocks and a sink's inputs is the same; only who calls it differs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::chain::{Content, Passage, Sent};
use crate::checkpoint::Snapshot;
use crate::event::{Batch, Lane, Origin, Span};
use crate::graph::{Graph, TaskId, Tasks, Work};
use crate::metrics::Metrics;
use crate::operator::StateError;
use crate::source::{Block, Framing};
use crate::time::Timestamp;
use crate::watermark::{MergedWatermark, SourceWatermark};

/// How finely the virtual clock moves: as often as the daemon looks at idle sources.
const STEP: Duration = Duration::from_secs(1);

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
    /// By source.
    lanes: Vec<Arc<Lane>>,
    offsets: Vec<u64>,
    watermarks: Vec<SourceWatermark>,
    /// By stage: its writers, and how far they have come.
    merged: Vec<(Vec<TaskId>, MergedWatermark)>,
    now: Timestamp,
    arrivals: Vec<Arrival>,
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
        let merged =
            writers.into_iter().map(|writers| (writers.clone(), MergedWatermark::new(writers.len()))).collect();
        Self { offsets: vec![0; lanes.len()], lanes, watermarks, merged, tasks, now: start, arrivals: Vec::new() }
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
        let seen_before = self.watermarks[source].observe("", taken.seen_max);
        let mut queue = VecDeque::new();
        for mut sent in taken.passage.sent {
            sent.content.set_seen_before(seen_before);
            queue.push_back(sent);
        }
        self.run(queue);
        self.propagate(source);
        self.watermarks[source].idle("", self.now);
    }

    /// Moves the clock, in steps as the daemon would see them.
    pub fn advance(&mut self, to: Timestamp) {
        while self.now < to {
            self.now = self.now.saturating_add(STEP).min(to);
            for source in 0..self.watermarks.len() {
                self.propagate(source);
            }
        }
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
            self.run(passage.sent.into());
            self.signal(TaskId::Stage(stage), watermark);
        }
    }

    fn run(&mut self, mut queue: VecDeque<Sent>) {
        while let Some(Sent { to, entry, content }) = queue.pop_front() {
            match (to, content) {
                (TaskId::Stage(stage), content) => {
                    let stage = &mut self.tasks.stages[stage];
                    let (node, number) = stage.entries[entry];
                    let mut passage = Passage::of(&stage.chain);
                    let delivered = stage.chain.deliver(node, number, content, &mut passage);
                    delivered.unwrap_or_else(|panicked| panicked.resume());
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
