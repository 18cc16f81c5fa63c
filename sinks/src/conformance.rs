//! Test support: what every sink must withstand, and the parts that its tests are made of.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tocsin_config::component::{BuildContext, SinkConfig};
use tocsin_pipeline::codec::{Codec, DecodeError, PathTable, Row};
use tocsin_pipeline::event::{Batch, Cell, Lane, Origin, Span};
use tocsin_pipeline::health::Health;
use tocsin_pipeline::ledger::Account;
use tocsin_pipeline::metrics::{ComponentMetrics, Metrics};
use tocsin_pipeline::sink::{
    Answer, Deliveries, Inputs, Prepared, Queued, Rejected, Sink, SinkContext, SinkError, SinkInput, SinkState, Till,
};
use tocsin_pipeline::store::{Append, Disk, Storage};
use tocsin_pipeline::time::{ManualClock, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vrl::value::Value;

/// Longer than anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// 2026-11-20T12:00:00Z: when everything in tests happens.
pub(crate) const NOON: Timestamp = Timestamp::from_secs(1_795_176_000);

/// Lines are `.message`, or JSON.
#[derive(Debug)]
struct Lines {
    name: &'static str,
}

impl Codec for Lines {
    fn name(&self) -> &'static str {
        self.name
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        let value = self.value(record)?;
        for (slot, path) in row.projection().paths().to_vec().iter().enumerate() {
            match value.get(path.path()) {
                Some(Value::Bytes(text)) => row.owned(slot, text),
                Some(Value::String(text)) => row.owned(slot, text.as_bytes()),
                Some(Value::Integer(number)) => row.set(slot, Cell::Integer(*number)),
                _ => row.set(slot, Cell::Missing),
            }
        }
        Ok(())
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        if self.name == "json" {
            return tocsin_pipeline::json::parse_value(record);
        }
        let message = Value::from(Bytes::copy_from_slice(record));
        Ok(Value::Object([("message".into(), message)].into_iter().collect()))
    }
}

fn read(text: &str, codec: &'static str) -> Batch {
    let origin = Origin::File("input.log".into());
    let codec = Arc::new(Lines { name: codec });
    let lane = Lane { source: "test".into(), partition: String::new(), origin, codec, out_of_order: Duration::ZERO };
    let mut start = 0;
    let mut spans = Vec::new();
    for line in text.split_inclusive('\n') {
        spans.push(Span::new(start, line.trim_end_matches('\n').len()));
        start += line.len();
    }
    Batch::new(Arc::new(lane), Bytes::copy_from_slice(text.as_bytes()), 0, spans, NOON)
}

/// Lines of text as a source reads them.
pub(crate) fn lines(text: &str) -> Batch {
    read(text, "text")
}

/// Lines of JSON as a source reads them.
pub(crate) fn json_lines(text: &str) -> Batch {
    read(text, "json")
}

/// Records that an operator made, given as JSON, one a second from noon on.
pub(crate) fn records(records: &[&str]) -> Batch {
    let lane = Arc::new(Lane::of_operator("made".into(), Origin::Operator));
    let values = records.iter().zip(0..).map(|(record, second)| {
        let value = tocsin_pipeline::json::parse_value(record.as_bytes()).expect("a test writes JSON");
        (NOON.saturating_add(Duration::from_secs(second)), value)
    });
    Batch::of_values(lane, values.collect(), NOON)
}

/// Builds a sink from its options, given as JSON; they must be without problems.
pub(crate) fn sink<C: SinkConfig>(options: &str, folder: &Path) -> Box<dyn Sink> {
    let config: C = serde_json::from_str(options).expect("the options of the test are right");
    assert_eq!(config.problems(), []);
    let mut paths = PathTable::default();
    config.build(&mut BuildContext {
        name: "out".into(),
        paths: &mut paths,
        folder: folder.to_owned(),
        connected: Vec::new(),
        silences: [].into(),
        partition: None,
    })
}

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    WriteNew,
    Write,
    Sync,
    SyncDir,
}

/// A disk of which one kind of call fails while that is set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failing {
    failing: Arc<Mutex<Vec<Call>>>,
}

impl Failing {
    pub(crate) fn fail(&self, calls: impl IntoIterator<Item = Call>) {
        *self.failing.lock().unwrap() = calls.into_iter().collect();
    }

    fn check(&self, call: Call) -> io::Result<()> {
        match self.failing.lock().unwrap().contains(&call) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl Storage for Failing {
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.check(Call::WriteNew)?;
        Disk.write_new(path, content)
    }

    fn create_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.check(Call::WriteNew)?;
        Disk.create_new(path, content)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Append>> {
        Ok(Box::new(FailingFile { storage: self.clone(), file: Disk.append(path)? }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Disk.read(path)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Disk.read_at(path, offset, length)
    }

    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        Disk.cut(path, length)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.check(Call::SyncDir)?;
        Disk.sync_dir(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        Disk.list(folder)
    }

    fn create_dir(&self, folder: &Path) -> io::Result<()> {
        Disk.create_dir(folder)
    }
}

#[derive(Debug)]
struct FailingFile {
    storage: Failing,
    file: Box<dyn Append>,
}

impl Append for FailingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.storage.check(Call::Write)?;
        self.file.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.storage.check(Call::Sync)?;
        self.file.sync()
    }
}

/// A rule that the daemon of these tests has; its `slo` is two seconds.
pub(crate) const RULE: &str = "watched";

/// A sink that runs.
pub(crate) struct Running {
    input: mpsc::Sender<Queued>,
    /// What it counts, unless it goes on with records of an earlier run.
    till: Option<Till>,
    task: JoinHandle<Result<SinkState, SinkError>>,
    pub(crate) stop: CancellationToken,
    pub(crate) metrics: ComponentMetrics,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) health: Health,
}

impl Running {
    /// Opens a sink and lets it run.
    pub(crate) async fn start(
        sink: Box<dyn Sink>,
        restored: Option<Bytes>,
        data_dir: Option<PathBuf>,
    ) -> Result<Self, SinkError> {
        Self::start_on(Arc::new(Disk), sink, restored, data_dir).await
    }

    pub(crate) async fn start_on(
        storage: Arc<dyn Storage>,
        mut sink: Box<dyn Sink>,
        restored: Option<Bytes>,
        data_dir: Option<PathBuf>,
    ) -> Result<Self, SinkError> {
        let health = Health::default();
        let name: Arc<str> = "out".into();
        let all = Metrics::new();
        all.rule(RULE, Some(Duration::from_secs(2)));
        let metrics = all.component(&name, "sink");
        let clock = Arc::new(ManualClock::new(NOON));
        let stop = CancellationToken::new();
        let (sender, input) = mpsc::channel(64);
        let till = restored.is_none().then(|| Till::open(&metrics));
        let context = SinkContext {
            restored,
            data_dir,
            clock: clock.clone(),
            storage,
            health: health.clone(),
            metrics: metrics.clone(),
            stop: stop.clone(),
            input: Inputs::new(input, metrics.clone()),
            rejected: Rejected::counting(Arc::clone(&name), metrics.clone()),
            deliveries: Deliveries::default(),
            name,
        };
        sink.open(&context).await?;
        let task = tokio::spawn(sink.run(context));
        Ok(Self { input: sender, till, task, stop, metrics, clock, health })
    }

    pub(crate) async fn send(&self, batch: Batch) {
        self.input.send(Queued::free(SinkInput::Batch(batch))).await.expect("the sink runs");
    }

    /// What the sink answers to a barrier.
    pub(crate) async fn barrier(&self, epoch: u64) -> SinkState {
        let till = self.till.clone().unwrap_or_else(|| Till::open(&self.metrics));
        let (prepared, answer) = Prepared::new(till);
        self.input.send(Queued::free(SinkInput::Barrier { epoch, prepared })).await.expect("the sink runs");
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let Answer { state, account, .. } = answer.expect("a barrier does not wait for a peer").expect("an answer");
        if self.till.is_some() {
            balances(&account, &state);
        }
        state
    }

    /// The state at a barrier that must have one.
    pub(crate) async fn state(&self, epoch: u64) -> Bytes {
        match self.barrier(epoch).await {
            SinkState::State(state) => state,
            other => panic!("no state: {other:?}"),
        }
    }

    pub(crate) async fn commit(&self, epoch: u64) {
        self.input.send(Queued::free(SinkInput::Committed { epoch })).await.expect("the sink runs");
    }

    /// Nothing follows; waits until the sink has finished. Gives what it needs to go on.
    pub(crate) async fn end(self) -> Result<SinkState, SinkError> {
        self.input.send(Queued::free(SinkInput::End)).await.expect("the sink runs");
        self.finished().await
    }

    /// Waits until the sink has ended by itself.
    pub(crate) async fn finished(self) -> Result<SinkState, SinkError> {
        let done = tokio::time::timeout(PATIENCE, self.task).await;
        let state = done.expect("a sink ends").expect("a sink does not panic")?;
        if let Some(till) = self.till {
            balances(&till.account(), &state);
        }
        Ok(state)
    }

    /// The daemon dies: nothing is flushed, nothing is said.
    pub(crate) async fn crash(self) {
        drop(self.input);
        self.stop.cancel();
        let _ = tokio::time::timeout(PATIENCE, self.task).await.expect("a sink without input ends");
    }

    /// Waits until `condition` holds of the counters.
    pub(crate) async fn until(&self, condition: impl Fn(&ComponentMetrics) -> bool) {
        let wait = async {
            while !condition(&self.metrics) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the counters get there");
    }
}

/// Every record that a sink has taken is delivered, refused, or in its state.
fn balances(account: &Account, state: &SinkState) {
    let dropped: u64 = account.dropped.values().sum();
    if !matches!(state, SinkState::Failed(_)) {
        assert_eq!(account.received, account.delivered + dropped + account.held, "{account:?}");
    }
}

/// What every sink must do whose peer takes everything: write batches in order, answer barriers, go on from its state, and
/// return at the end. `read` gives what was written so far, `expected` what three batches are to become.
pub(crate) async fn withstands(
    make: impl Fn() -> Box<dyn Sink>,
    data_dir: Option<&Path>,
    read: impl AsyncFn() -> String,
    expected: &str,
) {
    let data_dir = || data_dir.map(Path::to_owned);
    // A sink that is told nothing ends.
    Running::start(make(), None, data_dir()).await.unwrap().end().await.unwrap();

    let running = Running::start(make(), None, data_dir()).await.unwrap();
    // Empty batches and a barrier before anything else hurt nobody.
    running.send(lines("nothing\n").select(Vec::new())).await;
    assert!(!matches!(running.barrier(1).await, SinkState::Failed(_)));
    running.send(lines("one\ntwo\n")).await;
    let first = running.barrier(2).await;
    running.commit(2).await;
    running.send(records(&[r#"{"three": 3}"#])).await;
    let second = running.barrier(3).await;
    assert!(!matches!(second, SinkState::Failed(_)), "{second:?}");
    running.commit(3).await;
    // What it still delivered after the last barrier must not be delivered again.
    let last = running.end().await.unwrap();

    let state = [last, second, first].into_iter().find_map(|state| match state {
        SinkState::State(state) => Some(state),
        _ => None,
    });
    let running = Running::start(make(), state, data_dir()).await.unwrap();
    running.send(lines("four\nfive\n").select(vec![1])).await;
    assert!(!matches!(running.barrier(4).await, SinkState::Failed(_)));
    running.end().await.unwrap();
    assert_eq!(read().await, expected);
}
