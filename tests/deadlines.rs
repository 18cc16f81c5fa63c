//! Timers of idle streams in the real engine, under a paused clock: they are told at their very moment, not at the next look.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use expect_test::expect;
use futures_util::future::BoxFuture;
use tocsin_config::component::Catalog;
use tocsin_config::{EmptyEnvironment, SourceFile};
use tocsin_pipeline::event::Origin;
use tocsin_pipeline::json::write_value;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::runtime::{self, Settings};
use tocsin_pipeline::sink::{Sink, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::source::{Block, Framing, Source, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::store::simulated::SimulatedDisk;
use tocsin_pipeline::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;

static CATALOG: Catalog = Catalog {
    sources: tocsin_sources::SOURCES,
    codecs: tocsin_sources::CODECS,
    operators: tocsin_operators::OPERATORS,
    sinks: tocsin_sinks::SINKS,
};

const RULES: &str = r#"
[sources.app]
type = "stdin"
codec = "json"
timestamp = { field = ".ts" }

[operators.seen]
type = "alert"
inputs = ["app"]
condition = 'exists(.disk)'
resolve_after = "1500ms"

[operators.counted]
type = "window"
inputs = ["app"]
tumbling = "1700ms"
aggregates = { records = "count()" }

[sinks.told]
type = "blackhole"
inputs = ["seen", "counted"]
"#;

/// 2026-11-20T12:00:00Z.
const NOON: i64 = 1_795_176_000;

/// Tokio's clock, which a test pauses.
struct PausedClock(tokio::time::Instant);

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(NOON).saturating_add(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Reads one record after 250 ms, and then nothing more.
struct Once;

impl Source for Once {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let lane = context.lane("", Origin::Stream);
            let block = Block {
                bytes: Bytes::from_static(b"{\"ts\":\"2026-11-20T12:00:00.250Z\",\"disk\":1}\n"),
                framing: Framing::Lines,
                base: 0,
                position: serde_json::Value::Null,
                arrival: context.clock.now(),
                acknowledgement: None,
                notes: None,
            };
            context.emit(SourceEvent::Block(Arc::clone(&lane), block)).await?;
            context.emit(SourceEvent::Idle(lane)).await?;
            context.stop.cancelled().await;
            Ok(())
        })
    }
}

/// Writes down what comes, and when.
struct Told(Arc<Mutex<String>>);

impl Sink for Told {
    fn open<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, mut context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            while let Some(queued) = context.input.recv().await {
                match queued.split().0 {
                    SinkInput::Batch(batch) => {
                        for row in batch.rows() {
                            let mut json = Vec::new();
                            write_value(&batch.value(row), &mut json);
                            let record: serde_json::Value = serde_json::from_slice(&json).unwrap();
                            let what = record["state"].as_str().unwrap_or("window");
                            let (at, time) = (context.clock.now(), batch.time(row));
                            writeln!(self.0.lock().unwrap(), "{at}: {what} at {time}").unwrap();
                        }
                    }
                    SinkInput::Barrier { prepared, .. } => {
                        let _ = prepared.send(SinkState::Unchanged);
                    }
                    SinkInput::End => break,
                    SinkInput::Watermark(_) | SinkInput::Committed { .. } => {}
                }
            }
            Ok(SinkState::Unchanged)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_timer_of_an_idle_source_is_told_to_the_millisecond() {
    let files = [SourceFile { name: "rules.toml".into(), text: RULES.into() }];
    let plan = tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[]);
    let plan = plan.unwrap_or_else(|report| panic!("{}", report.render(false)));
    let mut graph = tocsin_config::build::build(&plan);
    let told = Arc::new(Mutex::new(String::new()));
    graph.sources[0].source = Box::new(Once);
    graph.sinks[0].sink = Box::new(Told(Arc::clone(&told)));
    let settings = Settings {
        data_dir: None,
        shared: None,
        completed: None,
        checkpoint_interval: Duration::from_secs(10),
        shutdown_timeout: Duration::from_secs(15),
        threads: 1,
        memory: 4 << 20,
        once: false,
        no_state_loss: false,
        guard: Arc::default(),
        undelivered: |_, _| None,
        clock: Arc::new(PausedClock(tokio::time::Instant::now())),
        storage: Arc::new(SimulatedDisk::default()),
        health: Default::default(),
        metrics: Metrics::new(),
        status: Arc::default(),
    };
    let stop = CancellationToken::new();
    let stopped = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(runtime::run(graph, settings, stop.clone()), stopped);
    outcome.map_err(|error| error.to_string()).unwrap();
    // The source is idle after ten seconds; from then on event time follows the clock that far behind.
    expect![[r#"
        2026-11-20T12:00:00.250Z: firing at 2026-11-20T12:00:00.250Z
        2026-11-20T12:00:11.100Z: window at 2026-11-20T12:00:01.100Z
        2026-11-20T12:00:11.750Z: resolved at 2026-11-20T12:00:01.750Z
    "#]]
    .assert_eq(&told.lock().unwrap());
}
