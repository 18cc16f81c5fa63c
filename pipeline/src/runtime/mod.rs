//! Running a pipeline: the tasks, their edges, the checkpoints, and an ordered end.

mod edge;
mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::edge::{Arrived, Door, EDGE_MESSAGES, Edge, Envelope, Inbox, Level, Outlets, Signal, Ticket, sink_input};
use self::source::SourceDriver;
use crate::chain::Sent;
use crate::checkpoint::{CheckpointError, Checkpoints, LanePosition, Restored, Snapshot};
use crate::event::Batch;
use crate::graph::{Graph, Link, SinkTask, StageTask, Stateless, TaskId, Tasks, WhenFull, Work};
use crate::metrics::Metrics;
use crate::sink::{Queued, Rejected, SinkContext, SinkInput, SinkState};
use crate::source::{Gone, SourceContext};
use crate::store::{Disk, Lock};
use crate::time::{Clock, Timestamp};
use crate::watermark::SourceWatermark;

/// What an edge between sources and operators holds at the least and at the most, in bytes; in between, the edges share
/// what the daemon may take.
const EDGE_BYTES: (usize, usize) = (1 << 20, 16 << 20);
/// How many events of a source may wait for its driver.
const SOURCE_EVENTS: usize = 2;
/// A checkpoint that takes longer is told about; the one before stays the truth meanwhile.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(30);
/// Checkpoints that clients wait for are taken at most this often.
const HURRIED_INTERVAL: Duration = Duration::from_millis(20);

/// How a pipeline is run.
pub struct Settings {
    /// Where state is kept; `None`: nowhere, and a restart begins afresh.
    pub data_dir: Option<PathBuf>,
    pub checkpoint_interval: Duration,
    /// How long the sinks may take to finish once all sources have stopped.
    pub shutdown_timeout: Duration,
    /// How many blocks of a source may be worked on at once.
    pub threads: usize,
    /// How many bytes the edges between sources and operators may hold together.
    pub memory: usize,
    /// Sources read to their end and finish.
    pub once: bool,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub status: Arc<Status>,
}

/// What the daemon tells about itself while it runs.
#[derive(Debug, Default)]
pub struct Status {
    /// All sources and sinks are open and running.
    pub is_ready: std::sync::atomic::AtomicBool,
}

/// Why a pipeline could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Start(String),
    #[error("{component}: {message}")]
    Component { component: String, message: String },
    #[error("{0}")]
    State(String),
}

/// A task ended otherwise than it should.
#[derive(Debug)]
pub(crate) struct Failure {
    component: String,
    /// `None`: because a task it writes to is gone, which tells its own reason.
    message: Option<String>,
}

impl Failure {
    fn bug(component: &str, error: &dyn std::fmt::Display) -> Self {
        Self { component: component.to_owned(), message: Some(format!("a bug: {error}")) }
    }

    fn of(component: &str, error: &dyn std::fmt::Display) -> Self {
        Self { component: component.to_owned(), message: Some(error.to_string()) }
    }
}

impl From<Gone> for Failure {
    fn from(_: Gone) -> Self {
        Self { component: String::new(), message: None }
    }
}

/// What the tasks tell the coordinator.
pub(crate) enum Report {
    Source { name: Arc<str>, positions: BTreeMap<String, LanePosition> },
    SourceEnded,
    Stage { operators: Vec<(Arc<str>, u16, BTreeMap<u16, Vec<u8>>)> },
    Sink { number: usize, state: SinkState },
}

/// A task that ended well: which, and what a sink said last.
enum Done {
    Task,
    Source,
    Sink(usize, SinkState),
}

/// Runs a graph until its sources have ended or `stop` is cancelled.
///
/// # Errors
/// When something cannot be opened (then nothing has been read), the state cannot be used, or a component cannot go on.
pub async fn run(graph: Graph, settings: Settings, stop: CancellationToken) -> Result<(), RunError> {
    let metrics = settings.metrics.clone();
    let mut tasks = graph.into_tasks(&metrics);
    let (lock, checkpoints, mut restored) = open_state(&settings)?;
    restore_stages(&mut tasks.stages, &mut restored)?;
    let wiring = Wiring::new(&tasks, &settings);
    let (reports_sender, reports) = mpsc::channel(64);
    let mut runner = Runner {
        settings: &settings,
        stop: stop.clone(),
        drain: CancellationToken::new(),
        set: JoinSet::new(),
        reports: reports_sender,
        sinks: Vec::new(),
        sink_names: Vec::new(),
        barriers: Vec::new(),
        relays: Vec::new(),
        hurry: Arc::new(Notify::new()),
        activity: Arc::new(AtomicU64::new(0)),
    };
    let Tasks { sources, stages, sinks } = tasks;
    let sinks = runner.open_sinks(sinks, &wiring, &mut restored).await?;
    let sources = runner.open_sources(sources, &wiring, &mut restored).await?;
    let counts = (sources.len(), stages.len(), sinks.len());
    let levels = runner.start(sources, stages, sinks, wiring);
    settings.status.is_ready.store(true, Ordering::Relaxed);
    let coordinator = Coordinator {
        counts,
        checkpoints,
        reports,
        ended: 0,
        is_broken: false,
        sink_states: vec![None; counts.2],
        levels,
    };
    let outcome = coordinator.run(&mut runner).await;
    settings.status.is_ready.store(false, Ordering::Relaxed);
    runner.set.shutdown().await;
    drop(lock);
    outcome
}

fn open_state(settings: &Settings) -> Result<(Option<Lock>, Option<Checkpoints>, Restored), RunError> {
    let Some(data_dir) = &settings.data_dir else { return Ok((None, None, Restored::default())) };
    std::fs::create_dir_all(data_dir).map_err(|error| {
        RunError::Start(format!(
            "cannot make the data directory {}: {error}; give another with --data-dir",
            data_dir.display()
        ))
    })?;
    let lock = Lock::take(data_dir).map_err(RunError::Start)?;
    let (checkpoints, restored, passed_over) =
        Checkpoints::open(Arc::new(Disk), data_dir).map_err(|error| match error {
            CheckpointError::Io { .. } => RunError::Start(error.to_string()),
            CheckpointError::Refused(reason) => RunError::State(format!("{}: {reason}", data_dir.display())),
        })?;
    for found in &passed_over {
        tracing::error!(
            epoch = found.epoch,
            damage = found.damage.as_deref(),
            "a damaged checkpoint is passed over; what came after the one before it is read again"
        );
    }
    Ok((Some(lock), Some(checkpoints), restored))
}

/// Gives the operators their state back.
fn restore_stages(stages: &mut [StageTask], restored: &mut Restored) -> Result<(), RunError> {
    for stage in stages {
        for node in &mut stage.chain.nodes {
            let Work::Operator(operator) = &mut node.work else { continue };
            let Some((version, pieces)) = restored.operators.remove(&*node.name) else { continue };
            let refuse = |reason: &dyn std::fmt::Display| {
                RunError::State(format!(
                    "the state of operator `{}` cannot be used: {reason}; give it another name, or start with another data_dir",
                    node.name
                ))
            };
            if version != operator.state_version() {
                return Err(refuse(&format!("it is of version {version}, not {}", operator.state_version())));
            }
            for (group, piece) in pieces {
                operator.restore(group, &piece).map_err(|error| refuse(&error))?;
            }
        }
    }
    for operator in restored.operators.keys() {
        tracing::warn!(operator, "its state is in the checkpoint, but no such operator is configured; it is kept");
    }
    Ok(())
}

/// Who writes to whom.
struct Wiring {
    /// By receiver, its writers in order.
    writers: BTreeMap<TaskId, Vec<TaskId>>,
    inboxes: BTreeMap<TaskId, (mpsc::Sender<Envelope>, Mutex<Option<mpsc::Receiver<Envelope>>>)>,
    sink_queues: Vec<(mpsc::Sender<Queued>, Mutex<Option<mpsc::Receiver<Queued>>>)>,
    sink_budgets: Vec<(Arc<Semaphore>, usize, WhenFull)>,
    names: BTreeMap<TaskId, String>,
    metrics: Metrics,
    levels: Mutex<Vec<Level>>,
    /// How many bytes an edge to a stage holds.
    edge_bytes: usize,
}

impl Wiring {
    fn new(tasks: &Tasks, settings: &Settings) -> Self {
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
            add(TaskId::Sink(index), task.chain.receivers(&[&task.rejected]));
            names.insert(TaskId::Sink(index), task.name.to_string());
        }
        let mut inboxes = BTreeMap::new();
        for (to, from) in &writers {
            if matches!(to, TaskId::Stage(_)) || from.len() > 1 {
                let (sender, receiver) = mpsc::channel(EDGE_MESSAGES);
                inboxes.insert(*to, (sender, Mutex::new(Some(receiver))));
            }
        }
        let edges =
            writers.iter().filter(|(to, _)| matches!(to, TaskId::Stage(_))).map(|(_, from)| from.len()).sum::<usize>();
        let edge_bytes = (settings.memory / edges.max(1)).clamp(EDGE_BYTES.0, EDGE_BYTES.1);
        let sink_queues = tasks
            .sinks
            .iter()
            .map(|_| {
                let (sender, receiver) = mpsc::channel(EDGE_MESSAGES);
                (sender, Mutex::new(Some(receiver)))
            })
            .collect();
        let sink_budgets = tasks
            .sinks
            .iter()
            .map(|sink| (Arc::new(Semaphore::new(sink.buffer_bytes)), sink.buffer_bytes, sink.when_full))
            .collect();
        Self {
            writers,
            inboxes,
            sink_queues,
            sink_budgets,
            names,
            metrics: settings.metrics.clone(),
            levels: Mutex::default(),
            edge_bytes,
        }
    }

    /// The edges a task writes to.
    fn outlets(&self, from: TaskId) -> Outlets {
        let edges = self.writers.iter().filter_map(|(to, writers)| {
            let number = writers.iter().position(|writer| *writer == from)?;
            let door = match (self.inboxes.get(to), to) {
                (Some((sender, _)), _) => Door::Inbox(sender.clone()),
                (None, TaskId::Sink(sink)) => Door::Sink(self.sink_queues[*sink].0.clone(), *sink),
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
            Some(Edge { to: *to, door, from: number, budget, capacity, when_full, metrics })
        });
        Outlets { edges: edges.collect() }
    }

    fn inbox(&self, to: TaskId) -> Option<Inbox> {
        let (_, receiver) = self.inboxes.get(&to)?;
        let receiver = receiver.lock().expect("no holder of this lock panics").take()?;
        Some(Inbox::new(receiver, self.writers[&to].len()))
    }
}

/// A source that is open, with what it is run with.
struct OpenSource {
    source: Box<dyn crate::source::Source>,
    context: SourceContext,
    driver: SourceDriver,
    barriers: mpsc::Sender<Arc<Ticket>>,
}

/// A sink that is open.
struct OpenSink {
    name: Arc<str>,
    sink: Box<dyn crate::sink::Sink>,
    context: SinkContext,
    relay: Option<Relay>,
}

/// Brings a sink's dead letters to those who take them.
struct Relay {
    letters: mpsc::Receiver<Batch>,
    chain: Stateless,
    entry: Vec<Link>,
    outlets: Outlets,
    signals: mpsc::Receiver<Signal>,
}

struct Runner<'a> {
    settings: &'a Settings,
    stop: CancellationToken,
    drain: CancellationToken,
    set: JoinSet<Result<Done, Failure>>,
    reports: mpsc::Sender<Report>,
    sinks: Vec<mpsc::Sender<Queued>>,
    sink_names: Vec<Arc<str>>,
    barriers: Vec<mpsc::Sender<Arc<Ticket>>>,
    /// By sink: where its relay is told about barriers and the end.
    relays: Vec<Option<mpsc::Sender<Signal>>>,
    hurry: Arc<Notify>,
    activity: Arc<AtomicU64>,
}

impl Runner<'_> {
    async fn open_sinks(
        &mut self,
        tasks: Vec<SinkTask>,
        wiring: &Wiring,
        restored: &mut Restored,
    ) -> Result<Vec<OpenSink>, RunError> {
        let mut open = Vec::new();
        for (index, task) in tasks.into_iter().enumerate() {
            let SinkTask { name, mut sink, chain, rejected, metrics, .. } = task;
            let data_dir = self.folder("sinks", &name)?;
            let receiver = wiring.sink_queues[index].1.lock().expect("no holder of this lock panics").take();
            let (letters_sender, letters) = mpsc::channel(64);
            let (signals_sender, signals) = mpsc::channel(4);
            let is_connected = !rejected.is_empty();
            let context = SinkContext {
                name: Arc::clone(&name),
                restored: restored.sinks.remove(&*name),
                data_dir,
                clock: Arc::clone(&self.settings.clock),
                metrics: metrics.clone(),
                stop: self.drain.clone(),
                input: receiver.expect("every sink has its queue"),
                rejected: Rejected { sender: is_connected.then_some(letters_sender), metrics, name: Arc::clone(&name) },
            };
            sink.open(&context)
                .await
                .map_err(|error| RunError::Component { component: name.to_string(), message: error.to_string() })?;
            let outlets = wiring.outlets(TaskId::Sink(index));
            let relay = is_connected.then_some(Relay { letters, chain, entry: rejected, outlets, signals });
            self.sink_names.push(Arc::clone(&name));
            self.relays.push(is_connected.then_some(signals_sender));
            open.push(OpenSink { name, sink, context, relay });
        }
        for sink in restored.sinks.keys() {
            tracing::warn!(sink, "its state is in the checkpoint, but no such sink is configured; it is kept");
        }
        Ok(open)
    }

    async fn open_sources(
        &mut self,
        tasks: Vec<crate::graph::SourceTask>,
        wiring: &Wiring,
        restored: &mut Restored,
    ) -> Result<Vec<OpenSource>, RunError> {
        let mut open = Vec::new();
        for (number, task) in tasks.into_iter().enumerate() {
            let crate::graph::SourceTask { name, mut source, intake, metrics } = task;
            let positions = restored.sources.remove(&*name).unwrap_or_default();
            let options = &intake.options;
            let mut watermark = SourceWatermark::new(options.idle_timeout, options.out_of_order);
            for (partition, lane) in &positions {
                watermark.restore(partition, Timestamp(lane.seen));
            }
            let (events_sender, events) = mpsc::channel(SOURCE_EVENTS);
            let (barriers_sender, barriers) = mpsc::channel(1);
            let context = SourceContext {
                name: Arc::clone(&name),
                codec: Arc::clone(&options.codec),
                out_of_order: options.out_of_order,
                records: options.records.clone(),
                positions: positions
                    .iter()
                    .map(|(partition, lane)| (partition.clone(), lane.position.clone()))
                    .collect(),
                restored: restored.epoch > 0,
                once: self.settings.once,
                data_dir: self.folder("sources", &name)?,
                clock: Arc::clone(&self.settings.clock),
                metrics,
                stop: self.stop.clone(),
                events: events_sender,
            };
            source
                .open(&context)
                .await
                .map_err(|error| RunError::Component { component: name.to_string(), message: error.to_string() })?;
            let stop = self.stop.clone();
            let driver = SourceDriver {
                name,
                intake,
                outlets: wiring.outlets(TaskId::Source(number)),
                events,
                barriers,
                reports: self.reports.clone(),
                clock: Arc::clone(&self.settings.clock),
                watermark,
                positions,
                parallel: self.settings.threads.max(1) * 2,
                hurry: Arc::clone(&self.hurry),
                activity: Arc::clone(&self.activity),
                is_stopping: Box::new(move || stop.is_cancelled()),
            };
            open.push(OpenSource { source, context, driver, barriers: barriers_sender });
        }
        Ok(open)
    }

    fn folder(&self, kind: &str, name: &str) -> Result<Option<PathBuf>, RunError> {
        let Some(data_dir) = &self.settings.data_dir else { return Ok(None) };
        let folder = data_dir.join(kind).join(name);
        std::fs::create_dir_all(&folder)
            .map_err(|error| RunError::Start(format!("cannot make {}: {error}", folder.display())))?;
        Ok(Some(folder))
    }

    fn start(
        &mut self,
        sources: Vec<OpenSource>,
        stages: Vec<StageTask>,
        sinks: Vec<OpenSink>,
        wiring: Wiring,
    ) -> Vec<Level> {
        for (index, open) in sinks.into_iter().enumerate() {
            let OpenSink { name, sink, context, relay } = open;
            self.sinks.push(wiring.sink_queues[index].0.clone());
            self.set.spawn(async move {
                let state = sink.run(context).await.map_err(|error| Failure::of(&name, &error))?;
                Ok(Done::Sink(index, state))
            });
            if let Some(inbox) = wiring.inbox(TaskId::Sink(index)) {
                self.set.spawn(run_gate(inbox, wiring.sink_queues[index].0.clone(), index));
            }
            if let Some(relay) = relay {
                self.set.spawn(relay.run());
            }
        }
        for (index, stage) in stages.into_iter().enumerate() {
            // A stage that nothing feeds would wait for ever; a checked configuration has none.
            if let Some(inbox) = wiring.inbox(TaskId::Stage(index)) {
                let outlets = wiring.outlets(TaskId::Stage(index));
                let metrics = self.settings.metrics.clone();
                self.set.spawn(run_stage(stage, inbox, outlets, self.reports.clone(), metrics));
            }
        }
        for open in sources {
            let OpenSource { source, context, driver, barriers } = open;
            self.barriers.push(barriers);
            let name = Arc::clone(&driver.name);
            self.set.spawn(async move {
                source.run(context).await.map_err(|error| Failure::of(&name, &error))?;
                Ok(Done::Source)
            });
            self.set.spawn(async move { driver.run().await.map(|()| Done::Task) });
        }
        wiring.levels.into_inner().expect("no holder of this lock panics")
    }
}

impl Relay {
    async fn run(mut self) -> Result<Done, Failure> {
        loop {
            tokio::select! {
                // Letters first: those written before the sink answered a barrier belong to its epoch.
                biased;
                Some(letters) = self.letters.recv() => {
                    let mut sent = Vec::new();
                    self.chain.run(&self.entry, letters, &mut sent);
                    for sent in sent {
                        self.outlets.send(sent).await?;
                    }
                }
                signal = self.signals.recv() => match signal {
                    Some(signal) => {
                        let is_end = matches!(signal, Signal::End);
                        self.outlets.signal(signal).await?;
                        if is_end {
                            return Ok(Done::Task);
                        }
                    }
                    None => return Ok(Done::Task),
                },
            }
        }
    }
}

/// The task of a stage: hands what arrives to its operators, in order.
async fn run_stage(
    mut stage: StageTask,
    mut inbox: Inbox,
    outlets: Outlets,
    reports: mpsc::Sender<Report>,
    metrics: Metrics,
) -> Result<Done, Failure> {
    let gauge = metrics.watermark.with_label_values(&[stage.name.as_str()]);
    let mut sent: Vec<Sent> = Vec::new();
    while let Some(arrived) = inbox.next().await {
        match arrived {
            Arrived::Data { entry, input, permit } => {
                let (node, number) = stage.entries[entry];
                stage.chain.deliver(node, number, input, &mut sent);
                drop(permit);
            }
            Arrived::Watermark(watermark) => {
                if watermark != Timestamp::MAX {
                    gauge.set(watermark.0 as f64 / 1e9);
                }
                stage.chain.on_watermark(watermark, &mut sent);
                for sent in sent.drain(..) {
                    outlets.send(sent).await?;
                }
                outlets.signal(Signal::Watermark(watermark)).await?;
            }
            Arrived::Barrier(ticket) => {
                let operators = snapshot(&mut stage, ticket.full, &metrics);
                let _ = reports.send(Report::Stage { operators }).await;
                outlets.signal(Signal::Barrier(ticket)).await?;
            }
            Arrived::End => {
                outlets.signal(Signal::End).await?;
                return Ok(Done::Task);
            }
        }
        for sent in sent.drain(..) {
            outlets.send(sent).await?;
        }
    }
    Ok(Done::Task)
}

fn snapshot(stage: &mut StageTask, full: bool, metrics: &Metrics) -> Vec<(Arc<str>, u16, BTreeMap<u16, Vec<u8>>)> {
    let mut operators = Vec::new();
    for node in &mut stage.chain.nodes {
        let Work::Operator(operator) = &mut node.work else { continue };
        let mut pieces = BTreeMap::new();
        operator.snapshot(full, &mut |group, piece| {
            pieces.insert(group, piece);
        });
        metrics.state_bytes.with_label_values(&[&*node.name]).set(operator.state_bytes() as i64);
        for (state, count) in operator.alerts() {
            metrics.alerts.with_label_values(&[&*node.name, state]).set(count as i64);
        }
        operators.push((Arc::clone(&node.name), operator.state_version(), pieces));
    }
    operators
}

/// Brings together the edges of a sink that several tasks feed.
async fn run_gate(mut inbox: Inbox, queue: mpsc::Sender<Queued>, sink: usize) -> Result<Done, Failure> {
    while let Some(arrived) = inbox.next().await {
        let queued = match arrived {
            Arrived::Data { input: crate::operator::Input::Batch(batch), permit, .. } => {
                Queued { input: SinkInput::Batch(batch), _permit: permit }
            }
            Arrived::Data { .. } => unreachable!("sinks have no prepared input"),
            Arrived::Watermark(_) => continue,
            Arrived::Barrier(ticket) => match sink_input(Signal::Barrier(ticket), sink) {
                Some(input) => Queued::free(input),
                None => continue,
            },
            Arrived::End => {
                queue.send(Queued::free(SinkInput::End)).await.map_err(|_| Gone)?;
                return Ok(Done::Task);
            }
        };
        queue.send(queued).await.map_err(|_| Gone)?;
    }
    Ok(Done::Task)
}

/// Whether the pipeline can go on after a task has ended.
enum Health {
    Well,
    /// A task writes to one that is gone.
    Broken,
}

/// Takes the checkpoints and leads the pipeline to its end.
struct Coordinator {
    /// How many sources, stages and sinks there are.
    counts: (usize, usize, usize),
    checkpoints: Option<Checkpoints>,
    reports: mpsc::Receiver<Report>,
    /// How many sources have come to an end, their own or because they were told to stop.
    ended: usize,
    /// A task has failed: no barrier can pass any more.
    is_broken: bool,
    /// What each sink said last.
    sink_states: Vec<Option<Bytes>>,
    levels: Vec<Level>,
}

impl Coordinator {
    async fn run(mut self, runner: &mut Runner<'_>) -> Result<(), RunError> {
        let mut ticks = tokio::time::interval(runner.settings.checkpoint_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let hurry = Arc::clone(&runner.hurry);
        let activity = Arc::clone(&runner.activity);
        let mut covered = u64::MAX;
        let stop = runner.stop.clone();
        let patience = runner.settings.shutdown_timeout;
        let overdue = async move {
            stop.cancelled().await;
            tokio::time::sleep(patience).await;
        };
        let mut overdue = std::pin::pin!(overdue);
        while self.ended < self.counts.0 && !self.is_broken {
            tokio::select! {
                report = self.reports.recv() => self.between(report),
                _ = ticks.tick() => self.levels.iter().for_each(Level::measure),
                () = &mut overdue => {
                    tracing::warn!("the sources did not stop in time; what is under way is read again after the next start");
                    return Ok(());
                }
                () = hurry.notified() => tokio::time::sleep(HURRIED_INTERVAL).await,
                done = runner.set.join_next(), if !runner.set.is_empty() => {
                    match self.joined(runner, done)? {
                        Health::Well => continue,
                        Health::Broken => return self.explain(runner).await,
                    }
                }
            }
            let now = activity.load(Ordering::Relaxed);
            // An idle daemon writes nothing.
            if now != covered && self.ended < self.counts.0 {
                covered = now;
                self.checkpoint(runner).await?;
            }
        }
        if self.is_broken {
            return Ok(());
        }
        self.finish(runner).await
    }

    /// A report outside a checkpoint: only the end of a source.
    fn between(&mut self, report: Option<Report>) {
        if let Some(Report::SourceEnded) = report {
            self.ended += 1;
        }
    }

    /// A task has ended before its time: only sources may, and sinks that nobody reads any more.
    fn joined(
        &mut self,
        runner: &Runner<'_>,
        done: Option<Result<Result<Done, Failure>, tokio::task::JoinError>>,
    ) -> Result<Health, RunError> {
        match done {
            None | Some(Ok(Ok(Done::Source | Done::Task))) => Ok(Health::Well),
            Some(Ok(Ok(Done::Sink(..)))) => {
                // A sink whose reader has gone away (`tocsin run … | head`): the pipeline has nowhere to write.
                runner.stop.cancel();
                Ok(Health::Well)
            }
            Some(Ok(Err(Failure { message: None, .. }))) => Ok(Health::Broken),
            Some(Ok(Err(Failure { component, message: Some(message) }))) => {
                Err(RunError::Component { component, message })
            }
            Some(Err(error)) if error.is_panic() => {
                let panic = error.into_panic();
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                Err(RunError::Component {
                    component: "a task".to_owned(),
                    message: format!("stopped by a bug: {text}"),
                })
            }
            Some(Err(_)) => Ok(Health::Well),
        }
    }

    /// A task found that one it writes to is gone. That one tells why; if it ended well, because its reader has gone away,
    /// so does the pipeline.
    async fn explain(&mut self, runner: &mut Runner<'_>) -> Result<(), RunError> {
        let patience = tokio::time::sleep(Duration::from_secs(1));
        let mut patience = std::pin::pin!(patience);
        while !runner.stop.is_cancelled() {
            tokio::select! {
                done = runner.set.join_next() => match done {
                    None => break,
                    done => {
                        self.joined(runner, done)?;
                    }
                },
                () = &mut patience => break,
            }
        }
        Ok(())
    }

    /// Sends a barrier through the pipeline, collects what every task says, and writes it.
    async fn checkpoint(&mut self, runner: &mut Runner<'_>) -> Result<(), RunError> {
        let Some(checkpoints) = &mut self.checkpoints else {
            // Nothing is kept, so an acknowledgement can only mean that the record was taken.
            return self.pass_barrier(runner, 0, false).await.map(|collected| {
                if let Some((_, ticket)) = collected {
                    acknowledge(&ticket);
                }
            });
        };
        let epoch = checkpoints.next_epoch();
        let full = checkpoints.wants_full();
        let begun = runner.settings.clock.monotonic();
        let Some((snapshot, ticket)) = self.pass_barrier(runner, epoch, full).await? else { return Ok(()) };
        self.write(runner, epoch, snapshot).await;
        if self.checkpoints.is_some() {
            let took = runner.settings.clock.monotonic().saturating_sub(begun);
            runner.settings.metrics.checkpoint_duration.observe(took.as_secs_f64());
        }
        acknowledge(&ticket);
        Ok(())
    }

    /// Writes a snapshot and tells the sinks. A failure is told and counted: the pipeline stays up on the epoch before.
    async fn write(&mut self, runner: &mut Runner<'_>, epoch: u64, snapshot: Snapshot) -> bool {
        let Some(mut checkpoints) = self.checkpoints.take() else { return false };
        let now = runner.settings.clock.now();
        let written = tokio::task::spawn_blocking(move || {
            let outcome = checkpoints.write(epoch, snapshot, now);
            (checkpoints, outcome)
        });
        let (checkpoints, outcome) = written.await.expect("writing a checkpoint does not panic");
        self.checkpoints = Some(checkpoints);
        let metrics = &runner.settings.metrics;
        match outcome {
            Ok(bytes) => {
                metrics.checkpoint_bytes.set(bytes as i64);
                metrics.checkpoint_epoch.set(epoch as i64);
                for sink in &runner.sinks {
                    // A sink whose queue is full hears of the next one.
                    let _ = sink.try_send(Queued::free(SinkInput::Committed { epoch }));
                }
                true
            }
            Err(error) => {
                metrics.checkpoint_failures.inc();
                tracing::error!(%error, epoch, "a checkpoint could not be written; the one before stays, and the next is tried");
                false
            }
        }
    }

    /// `None`: a sink could not prepare, or everything has ended meanwhile.
    async fn pass_barrier(
        &mut self,
        runner: &mut Runner<'_>,
        epoch: u64,
        full: bool,
    ) -> Result<Option<(Snapshot, Arc<Ticket>)>, RunError> {
        let mut prepared = Vec::new();
        for number in 0..self.counts.2 {
            let (sender, receiver) = oneshot::channel();
            let reports = runner.reports.clone();
            let relay = runner.relays[number].clone();
            prepared.push((sender, receiver, reports, relay));
        }
        let (senders, waiting): (Vec<_>, Vec<_>) = prepared
            .into_iter()
            .map(|(sender, receiver, reports, relay)| (Some(sender), (receiver, reports, relay)))
            .unzip();
        let ticket =
            Arc::new(Ticket { epoch, full, prepared: Mutex::new(senders), acknowledgements: Mutex::new(Vec::new()) });
        for (number, (receiver, reports, relay)) in waiting.into_iter().enumerate() {
            let ticket = Arc::clone(&ticket);
            runner.set.spawn(async move {
                // A sink that is gone says nothing any more: its last state stays.
                let state = receiver.await.unwrap_or(SinkState::Unchanged);
                if let Some(relay) = relay {
                    let _ = relay.send(Signal::Barrier(ticket)).await;
                }
                let _ = reports.send(Report::Sink { number, state }).await;
                Ok(Done::Task)
            });
        }
        let mut expected = self.counts.0 + self.counts.1 + self.counts.2;
        for barriers in &runner.barriers {
            if barriers.send(Arc::clone(&ticket)).await.is_err() {
                return Ok(None);
            }
        }
        let mut snapshot = Snapshot::default();
        let mut failed = None;
        let mut patience = std::pin::pin!(tokio::time::sleep(CHECKPOINT_TIMEOUT));
        while expected > 0 {
            tokio::select! {
                report = self.reports.recv() => match report {
                    None => return Ok(None),
                    Some(Report::SourceEnded) => self.ended += 1,
                    Some(Report::Source { name, positions }) => {
                        expected -= 1;
                        snapshot.sources.insert(name.to_string(), positions);
                    }
                    Some(Report::Stage { operators }) => {
                        expected -= 1;
                        for (name, version, pieces) in operators {
                            snapshot.operators.insert(name.to_string(), (version, pieces));
                        }
                    }
                    Some(Report::Sink { number, state }) => {
                        expected -= 1;
                        match state {
                            SinkState::Unchanged => {}
                            SinkState::State(state) => {
                                if self.sink_states[number].as_ref() != Some(&state) {
                                    self.sink_states[number] = Some(state.clone());
                                    snapshot.sinks.insert(runner.sink_name(number), state);
                                }
                            }
                            SinkState::Failed(reason) => failed = Some((number, reason)),
                        }
                    }
                },
                done = runner.set.join_next() => {
                    if let Health::Broken = self.joined(runner, done)? {
                        self.is_broken = true;
                        self.explain(runner).await?;
                        return Ok(None);
                    }
                }
                () = &mut patience => {
                    runner.settings.metrics.checkpoint_failures.inc();
                    tracing::warn!(epoch, "a checkpoint takes long: something downstream is slow or away");
                    patience.set(tokio::time::sleep(CHECKPOINT_TIMEOUT));
                }
            }
        }
        if let Some((sink, reason)) = failed {
            runner.settings.metrics.checkpoint_failures.inc();
            tracing::error!(
                sink = runner.sink_name(sink),
                reason,
                "a sink could not prepare; the checkpoint before stays"
            );
            if let Some(checkpoints) = &mut self.checkpoints {
                checkpoints.hold(snapshot);
            }
            return Ok(None);
        }
        Ok(Some((snapshot, ticket)))
    }

    /// All sources have stopped: a last checkpoint, then the end, then what the sinks said last.
    async fn finish(&mut self, runner: &mut Runner<'_>) -> Result<(), RunError> {
        self.checkpoint(runner).await?;
        if self.is_broken {
            return Ok(());
        }
        runner.barriers.clear();
        let deadline = tokio::time::sleep(runner.settings.shutdown_timeout);
        let mut deadline = std::pin::pin!(deadline);
        let mut is_overdue = false;
        let mut snapshot = Snapshot::default();
        let mut sinks = 0;
        while sinks < self.counts.2 {
            tokio::select! {
                done = runner.set.join_next() => match done {
                    Some(Ok(Ok(Done::Sink(number, state)))) => {
                        sinks += 1;
                        if let SinkState::State(state) = state {
                            snapshot.sinks.insert(runner.sink_name(number), state);
                        }
                        if let Some(relay) = &runner.relays[number] {
                            let _ = relay.send(Signal::End).await;
                        }
                    }
                    None => break,
                    other => {
                        self.joined(runner, other)?;
                    }
                },
                () = &mut deadline, if !is_overdue => {
                    is_overdue = true;
                    tracing::warn!("the time for draining is over; what is not delivered stays in the checkpoint");
                    runner.drain.cancel();
                }
            }
        }
        if let Some(checkpoints) = &mut self.checkpoints
            && !snapshot.sinks.is_empty()
        {
            let epoch = checkpoints.next_epoch();
            if !self.write(runner, epoch, snapshot).await {
                return Err(RunError::State(
                    "the last checkpoint could not be written; some output may repeat".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

impl Runner<'_> {
    fn sink_name(&self, number: usize) -> String {
        self.sink_names[number].to_string()
    }
}

fn acknowledge(ticket: &Ticket) {
    let waiting = std::mem::take(&mut *ticket.acknowledgements.lock().expect("no holder of this lock panics"));
    for client in waiting {
        // A client that has gone away does not wait any more.
        let _ = client.send(());
    }
}
