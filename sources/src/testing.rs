//! Runs a source as the engine would, for the tests of sources that listen.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tocsin_config::component::{BuildContext, SourceConfig};
use tocsin_pipeline::codec::{Codec, DecodeError, PathTable, Row};
use tocsin_pipeline::metrics::{ComponentMetrics, Metrics};
use tocsin_pipeline::source::{Block, Framing, RecordOptions, Source, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::time::SystemClock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vrl::value::Value;

/// A source's context, with the engine's end of it.
pub(crate) struct TestContext {
    pub(crate) source: SourceContext,
    pub(crate) events: mpsc::Receiver<SourceEvent>,
}

/// The engine takes so many events before it makes the source wait.
pub(crate) fn context_of(capacity: usize) -> TestContext {
    let (sender, events) = mpsc::channel(capacity);
    let source = SourceContext {
        name: "test".into(),
        codec: Arc::new(AnyBytes),
        out_of_order: Duration::ZERO,
        records: RecordOptions::default(),
        positions: BTreeMap::new(),
        restored: false,
        completed: tokio::sync::watch::channel(Arc::default()).1,
        once: false,
        data_dir: None,
        clock: Arc::new(SystemClock::default()),
        storage: Arc::new(tocsin_pipeline::store::Disk),
        health: tocsin_pipeline::health::Health::default(),
        metrics: Metrics::new().component("test", "source"),
        stop: CancellationToken::new(),
        events: sender,
    };
    TestContext { source, events }
}

pub(crate) fn context() -> TestContext {
    context_of(64)
}

pub(crate) fn build(config: &impl SourceConfig) -> Box<dyn Source> {
    let mut paths = PathTable::default();
    config.build(&mut BuildContext {
        name: "test".into(),
        paths: &mut paths,
        folder: PathBuf::new(),
        connected: Vec::new(),
        silences: [].into(),
        partition: None,
    })
}

#[derive(Debug)]
struct AnyBytes;

impl Codec for AnyBytes {
    fn name(&self) -> &'static str {
        "any"
    }

    fn decode(&self, _: &[u8], _: &mut Row<'_>) -> Result<(), DecodeError> {
        Ok(())
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        Ok(Value::Bytes(record.to_vec().into()))
    }
}

/// A source that runs.
pub(crate) struct Running {
    events: mpsc::Receiver<SourceEvent>,
    pub(crate) metrics: ComponentMetrics,
    stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), SourceError>>,
}

impl Running {
    pub(crate) async fn start(mut source: Box<dyn Source>, context: TestContext) -> Self {
        source.open(&context.source).await.unwrap();
        Self::run(source, context)
    }

    /// Of a source that is open.
    pub(crate) fn run(source: Box<dyn Source>, context: TestContext) -> Self {
        let TestContext { source: context, events } = context;
        let (metrics, stop) = (context.metrics.clone(), context.stop.clone());
        Self { events, metrics, stop, task: tokio::spawn(source.run(context)) }
    }

    /// The next event that is not about idleness; `None` when the source has ended.
    pub(crate) async fn event(&mut self) -> Option<SourceEvent> {
        loop {
            match self.any_event().await {
                Some(SourceEvent::Idle(_)) => {}
                event => return event,
            }
        }
    }

    pub(crate) async fn any_event(&mut self) -> Option<SourceEvent> {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
        event.expect("the source says nothing for long")
    }

    /// The next event as a block.
    pub(crate) async fn whole_block(&mut self) -> Block {
        match self.event().await {
            Some(SourceEvent::Block(_, block)) => block,
            event => panic!("no block but {event:?}"),
        }
    }

    /// The bytes of the next block, and the position after it.
    pub(crate) async fn block(&mut self) -> (Vec<u8>, Json) {
        let block = self.whole_block().await;
        (block.bytes.to_vec(), block.position)
    }

    pub(crate) async fn bytes_to_the_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match self.event().await {
                Some(SourceEvent::Block(_, block)) => bytes.extend_from_slice(&block.bytes),
                Some(SourceEvent::Closed { .. }) | None => return bytes,
                event => panic!("no block but {event:?}"),
            }
        }
    }

    /// What comes until there were `count` records and refusals: records as text, refusals as their message in `<>`.
    pub(crate) async fn told(&mut self, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        while told.len() < count {
            match self.event().await {
                Some(SourceEvent::Block(_, block)) => told.extend(records_of(&block)),
                Some(SourceEvent::Rejected { message, .. }) => told.push(format!("<{message}>")),
                Some(event) => panic!("unexpected: {event:?}"),
                None => break,
            }
        }
        told
    }

    /// Stops it; what it still hands over is left out.
    pub(crate) async fn stop(mut self) -> Result<(), SourceError> {
        self.stop.cancel();
        while self.event().await.is_some() {}
        self.task.await.unwrap()
    }

    /// Stops it and keeps what it still hands over.
    pub(crate) async fn stop_and_tell(mut self) -> Vec<String> {
        self.stop.cancel();
        self.told(usize::MAX).await
    }
}

/// The records of a block as the engine would find them.
pub(crate) fn records_of(block: &Block) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match &block.framing {
        Framing::Spans(spans) => spans.iter().map(|span| text(span.of(&block.bytes))).collect(),
        Framing::Lines => block
            .bytes
            .split(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| !line.is_empty())
            .map(text)
            .collect(),
    }
}
