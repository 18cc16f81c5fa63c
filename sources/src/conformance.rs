//! What every source must withstand, and what tests of sources share: a rig that runs a source as the engine would and
//! remembers what it was told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tocsin_pipeline::codec::{Codec, DecodeError, Row};
use tocsin_pipeline::event::Origin;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::source::{Framing, RecordOptions, Source, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::time::SystemClock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vrl::value::Value;

/// How long a source may take for what should take a moment, before its test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file of the folder with published inputs, or `None` (said on stdout) where it is not on this machine.
pub(crate) fn corpus(name: &str) -> Option<Vec<u8>> {
    let folder = std::env::var_os("TOCSIN_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            println!("skipped: {name}: {error}");
            None
        }
    }
}

/// A codec that looks at nothing.
#[derive(Debug)]
struct Opaque;

impl Codec for Opaque {
    fn name(&self) -> &'static str {
        "opaque"
    }

    fn decode(&self, _: &[u8], _: &mut Row<'_>) -> Result<(), DecodeError> {
        Ok(())
    }

    fn value(&self, _: &[u8]) -> Result<Value, DecodeError> {
        Ok(Value::Null)
    }

    fn accepts_all(&self) -> bool {
        true
    }
}

/// What a run begins with.
#[derive(Clone)]
pub(crate) struct Start {
    pub positions: Option<BTreeMap<String, Json>>,
    pub once: bool,
    pub records: RecordOptions,
    /// How many events may wait.
    pub room: usize,
}

impl Default for Start {
    fn default() -> Self {
        Self { positions: None, once: false, records: RecordOptions::default(), room: 16 }
    }
}

/// A record as it was told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    pub partition: String,
    pub file: String,
    pub offset: u64,
    pub record: Vec<u8>,
}

/// A source that runs, and what it has told so far.
pub(crate) struct Running {
    events: mpsc::Receiver<SourceEvent>,
    pub stop: CancellationToken,
    task: JoinHandle<Result<(), SourceError>>,
    pub positions: BTreeMap<String, Json>,
    pub told: Vec<Told>,
    /// How many of `told` were given out by [`Self::records`].
    given: usize,
    /// Everything that happened beside records, in order.
    pub notes: Vec<String>,
}

impl Running {
    pub(crate) async fn new(mut source: Box<dyn Source>, start: Start) -> Self {
        let (sender, events) = mpsc::channel(start.room);
        let stop = CancellationToken::new();
        let context = SourceContext {
            name: "source".into(),
            codec: Arc::new(Opaque),
            out_of_order: Duration::ZERO,
            records: start.records,
            restored: start.positions.is_some(),
            positions: start.positions.clone().unwrap_or_default(),
            completed: tokio::sync::watch::channel(Arc::default()).1,
            once: start.once,
            data_dir: None,
            clock: Arc::new(SystemClock::default()),
            storage: Arc::new(tocsin_pipeline::store::Disk),
            health: tocsin_pipeline::health::Health::default(),
            metrics: Metrics::new().component("source", "source"),
            stop: stop.clone(),
            events: sender,
        };
        source.open(&context).await.unwrap();
        let task = tokio::spawn(source.run(context));
        let positions = start.positions.unwrap_or_default();
        Self { events, stop, task, positions, told: Vec::new(), given: 0, notes: Vec::new() }
    }

    /// Takes the next event in; `false` at the end.
    pub(crate) async fn step(&mut self) -> bool {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let Some(event) = event.unwrap_or_else(|_| panic!("nothing happens; so far: {:#?}", self.tail())) else {
            return false;
        };
        self.take(event);
        true
    }

    fn tail(&self) -> (Vec<String>, &[String]) {
        let from = self.told.len().saturating_sub(5);
        let told =
            self.told[from..].iter().map(|told| String::from_utf8_lossy(&told.record).chars().take(80).collect());
        (told.collect(), &self.notes)
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Block(lane, block) => {
                let spans = match &block.framing {
                    Framing::Lines => lines(&block.bytes),
                    Framing::Spans(spans) => {
                        spans.iter().map(|span| (span.start as usize, span.of(&block.bytes).to_vec())).collect()
                    }
                };
                for (start, record) in spans {
                    let file = match &lane.origin {
                        Origin::File(file) => file.to_string(),
                        _ => String::new(),
                    };
                    let offset = block.base + start as u64;
                    self.told.push(Told { partition: lane.partition.clone(), file, offset, record });
                }
                self.positions.insert(lane.partition.clone(), block.position);
            }
            SourceEvent::Rejected { lane, offset, reason, message, raw, position } => {
                self.positions.insert(lane.partition.clone(), position);
                self.notes.push(format!(
                    "rejected at {offset}, {} bytes of it kept: {}: {message}",
                    raw.len(),
                    reason.as_str()
                ));
            }
            SourceEvent::Opened { lane, position } => {
                self.positions.entry(lane.partition.clone()).or_insert(position);
            }
            SourceEvent::Watermark { lane, position, .. } => {
                self.positions.insert(lane.partition.clone(), position);
            }
            SourceEvent::Idle(_) => self.notes.push("idle".into()),
            SourceEvent::Stalled(_) => self.notes.push("stalled".into()),
            SourceEvent::Closed { lane, keep } => {
                self.notes.push(if keep.is_some() { "closed" } else { "forgotten" }.into());
                match keep {
                    Some(position) => self.positions.insert(lane.partition.clone(), position),
                    None => self.positions.remove(&lane.partition),
                };
            }
        }
    }

    /// The next `count` records, as text.
    pub(crate) async fn records(&mut self, count: usize) -> Vec<String> {
        while self.told.len() < self.given + count {
            assert!(self.step().await, "the source ended: {:#?}", self.tail());
        }
        let records = &self.told[self.given..self.given + count];
        self.given += count;
        records.iter().map(|told| String::from_utf8_lossy(&told.record).into_owned()).collect()
    }

    /// Waits for a note.
    pub(crate) async fn note(&mut self, wanted: &str) {
        let mut seen = 0;
        loop {
            if self.notes[seen..].iter().any(|note| note == wanted) {
                self.notes.clear();
                return;
            }
            seen = self.notes.len();
            assert!(self.step().await, "the source ended: {:#?}", self.tail());
        }
    }

    /// Stops the source as the engine does, and gives the records that had not been given out and the positions.
    pub(crate) async fn stop(mut self) -> (Vec<String>, BTreeMap<String, Json>) {
        self.stop.cancel();
        while self.step().await {}
        self.task.await.unwrap().unwrap();
        (texts(&self.told[self.given..]), self.positions)
    }

    /// Runs a source that ends by itself.
    pub(crate) async fn read_to_end(
        mut self,
    ) -> (Vec<Told>, Vec<String>, BTreeMap<String, Json>, Result<(), SourceError>) {
        while self.step().await {}
        let outcome = self.task.await.unwrap();
        (self.told, self.notes, self.positions, outcome)
    }
}

fn lines(bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut start = 0;
    let mut lines = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let record = line.strip_suffix(b"\n").unwrap_or(line);
        let record = record.strip_suffix(b"\r").unwrap_or(record);
        if !record.is_empty() {
            lines.push((start, record.to_vec()));
        }
        start += line.len();
    }
    lines
}

pub(crate) fn texts(told: &[Told]) -> Vec<String> {
    told.iter().map(|told| String::from_utf8_lossy(&told.record).into_owned()).collect()
}

/// A source that is read to its end, from any place it had come to, gives exactly the rest, partition by partition.
pub(crate) async fn goes_on_from_every_position(make: impl Fn() -> Box<dyn Source>, start: Start) {
    let mut places = vec![(Vec::new(), BTreeMap::new())];
    let mut running = Running::new(make(), Start { once: true, ..start.clone() }).await;
    while running.step().await {
        places.push((running.told.clone(), running.positions.clone()));
    }
    let mut all = running.told;
    all.sort();
    assert!(places.len() > 2, "there are places to go on from");
    for (at, (told, positions)) in places.into_iter().enumerate().skip(1) {
        let start = Start { once: true, positions: Some(positions), ..start.clone() };
        let (rest, ..) = Running::new(make(), start).await.read_to_end().await;
        let mut both = [told, rest].concat();
        both.sort();
        assert_eq!(both.len(), all.len(), "after event {at}");
        assert!(both == all, "after event {at} the records differ");
    }
}

/// A source stops at once although nobody takes its events, and has not told more than there is room for.
pub(crate) async fn stops_though_nobody_listens(source: Box<dyn Source>) {
    let mut running = Running::new(source, Start { room: 1, ..Start::default() }).await;
    while running.events.is_empty() {
        tokio::task::yield_now().await;
    }
    running.stop.cancel();
    let outcome = tokio::time::timeout(PATIENCE, &mut running.task).await.expect("it stops");
    outcome.unwrap().unwrap();
    let mut left = 0;
    while running.step().await {
        left += 1;
    }
    assert_eq!(left, 1);
}
