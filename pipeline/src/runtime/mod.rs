//! Running a pipeline: the tasks, their edges, the checkpoints, and an ordered end.

mod coordinator;
mod deadlines;
mod edge;
mod journal;
mod offload;
mod restore;
mod source;
mod spill;
mod stage;
mod start;
mod stored;
mod wiring;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value as Json;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::coordinator::{Books, Coordinator};
use self::deadlines::Deadlines;
pub use self::offload::offload;
use self::restore::SetAside;
pub use self::restore::State;
use self::start::{OpenSink, OpenSource, Runner};
use self::wiring::Wiring;
use crate::checkpoint::{Checkpoints, Decided, LanePosition};
use crate::decider::{Decider, DeciderContext, DeciderError};
use crate::fault::{self, Defect};
use crate::graph::{Graph, StageTask, Tasks, Work};
use crate::health::Health;
use crate::inquiry::{Inquiries, Inquiry};
use crate::ledger::{Account, Audit, Ledger};
use crate::metrics::Metrics;
use crate::poison::{Guard, Held, Panicked};
use crate::sink::{Answer, DeliveryLog};
use crate::source::Gone;
use crate::store::{Lock, Storage};
use crate::time::Clock;

/// What troubles with checkpoints are told under, since they belong to no component.
const CHECKPOINTS: &str = "checkpoints";
/// What an imbalance is told under.
const AUDIT: &str = "audit";

/// Checkpoints in a place that several daemons see: whoever opens them last goes on with them.
pub struct Shared {
    pub storage: Arc<dyn Storage>,
    /// Of this pipeline alone.
    pub folder: PathBuf,
    /// Who we are, for people.
    pub who: String,
}

/// How a pipeline is run.
pub struct Settings {
    /// Where state is kept; `None`: nowhere, and a restart begins afresh.
    pub data_dir: Option<PathBuf>,
    /// Where checkpoints are kept instead, where several daemons may run the pipeline in turn.
    pub shared: Option<Shared>,
    /// Told what positions complete epochs hold that nobody else tells, in place of the sources.
    pub completed: Option<watch::Sender<Arc<Vec<Json>>>>,
    pub checkpoint_interval: Duration,
    /// How long the sinks may take to finish once all sources have stopped.
    pub shutdown_timeout: Duration,
    /// How many blocks of a source may be worked on at once.
    pub threads: usize,
    /// How many bytes the edges between sources and operators may hold together.
    pub memory: usize,
    /// Sources read to their end and finish.
    pub once: bool,
    /// State that would be lost because the configuration has changed is a reason not to start.
    pub no_state_loss: bool,
    /// What is known of records that components fail on.
    pub guard: Arc<Guard>,
    /// How many records the state of a sink of a type holds that are still to be delivered; `None` where that is not known.
    pub undelivered: fn(&str, &[u8]) -> Option<u64>,
    pub clock: Arc<dyn Clock>,
    /// Where everything in the data directory is read and written.
    pub storage: Arc<dyn Storage>,
    pub metrics: Metrics,
    /// What is wrong with the daemon.
    pub health: Health,
    pub status: Arc<Status>,
}

/// What the daemon tells about itself while it runs.
#[derive(Debug, Default)]
pub struct Status {
    /// All sources and sinks are open and running.
    pub is_ready: std::sync::atomic::AtomicBool,
    /// The ledger as of the last barrier.
    pub audit: Mutex<Option<Arc<Audit>>>,
    /// Where its operators are asked.
    pub inquiries: Inquiries,
    /// How its sinks' attempts to tell somebody went.
    pub deliveries: DeliveryLog,
}

/// Why a pipeline could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Start(String),
    #[error("{component}: {message}")]
    Component { component: String, message: String },
    /// An operator failed on a record. What it holds cannot be relied on any more: go on from the checkpoint, with a guard
    /// that has learnt of it.
    #[error("{component} failed on a record: {message}")]
    Poisoned { component: String, message: String, held: Option<Held> },
    #[error("{0}")]
    State(String),
    /// What was written since the checkpoint is undone: go on from there.
    #[error("{component}: {message}")]
    Undone { component: String, message: String },
    /// Somebody else goes on in our place.
    #[error("{component}: {message}")]
    Superseded { component: String, message: String },
    /// It was told to stop before it had started.
    #[error("stopped before it had started")]
    Stopped,
}

impl RunError {
    fn decider(component: &str, error: DeciderError) -> Self {
        let component = component.to_owned();
        match error {
            DeciderError::Undone(message) => Self::Undone { component, message },
            DeciderError::Superseded(message) => Self::Superseded { component, message },
            DeciderError::Failed(message) => Self::Component { component, message },
        }
    }
}

/// A task ended otherwise than it should.
#[derive(Debug)]
pub(crate) struct Failure {
    component: String,
    /// `None`: because a task it writes to is gone, which tells its own reason.
    message: Option<String>,
    /// An operator panicked, with this in hand.
    panicked: Option<Option<Held>>,
}

impl Failure {
    fn bug(component: &str, error: &dyn std::fmt::Display) -> Self {
        Self { component: component.to_owned(), message: Some(format!("a bug: {error}")), panicked: None }
    }

    fn of(component: &str, error: &dyn std::fmt::Display) -> Self {
        Self { component: component.to_owned(), message: Some(error.to_string()), panicked: None }
    }
}

impl From<Gone> for Failure {
    fn from(_: Gone) -> Self {
        Self { component: String::new(), message: None, panicked: None }
    }
}

impl From<Panicked> for Failure {
    fn from(Panicked { component, why, held }: Panicked) -> Self {
        Self { component, message: Some(why), panicked: Some(held) }
    }
}

/// What the tasks tell the coordinator.
pub(crate) enum Report {
    Source {
        name: Arc<str>,
        positions: BTreeMap<String, LanePosition>,
        /// Where its journal goes on, if it has one.
        journal: Option<u64>,
        accounts: Accounts,
    },
    SourceEnded,
    Stage {
        operators: Vec<StateReport>,
        accounts: Accounts,
    },
    Relay {
        accounts: Accounts,
    },
    Sink {
        number: usize,
        answer: Answer,
    },
}

/// What a task has counted since it was started, by component.
pub(crate) type Accounts = Vec<(Arc<str>, Account)>;

/// What changed of an operator's state: pieces by key group.
pub(crate) struct StateReport {
    name: Arc<str>,
    version: u16,
    pieces: BTreeMap<u16, Bytes>,
}

/// A task that ended well: which, and what a sink said last.
enum Done {
    Task,
    Source,
    /// A stage or a relay, with its last counts.
    Counted(Accounts),
    Sink(usize, Answer),
}

/// How a run has ended.
pub enum Outcome {
    /// The sources have ended, or it was stopped.
    Ended,
    /// It was suspended: what another graph goes on from. Windows are open as they were, nothing was flushed.
    Suspended(Box<State>),
}

/// Where a running graph is asked to leave everything to another: the request is answered when it is heeded. One whose
/// sender has gone away meanwhile is not.
pub type Suspensions = mpsc::Receiver<oneshot::Sender<()>>;

/// Runs one graph until its sources have ended or `stop` is cancelled.
///
/// # Errors
/// When something cannot be opened (then nothing has been read), the state cannot be used, or a component cannot go on.
pub async fn run(graph: Graph, settings: Settings, stop: CancellationToken) -> Result<(), RunError> {
    let state = State::open(&settings)?;
    // Nobody asks for a suspension.
    let (_, suspensions) = mpsc::channel(1);
    match open(graph, &settings, state, &stop, suspensions).await {
        Ok(ready) => ready.run().await.map(drop),
        Err((error, _)) => Err(error),
    }
}

/// A graph that is open: nothing has been read yet.
pub struct Ready<'a> {
    runner: Runner<'a>,
    coordinator: Coordinator,
    lock: Option<Lock>,
    sources: Vec<OpenSource>,
    /// Each with the questions to its operators, which wait from now on until it runs.
    stages: Vec<(StageTask, mpsc::Receiver<Inquiry>)>,
    sinks: Vec<OpenSink>,
    wiring: Wiring,
}

/// Opens a graph and gives it the state. `stop` ends it.
///
/// # Errors
/// When something cannot be opened or the state cannot be used. Nothing has been read then, and the state is given back for
/// another graph.
pub async fn open<'a>(
    graph: Graph,
    settings: &'a Settings,
    mut state: State,
    stop: &CancellationToken,
    suspensions: Suspensions,
) -> Result<Ready<'a>, (RunError, State)> {
    let (links, facts, names) = (graph.links(), graph.facts(), graph.names());
    let mut tasks = graph.into_tasks(&settings.metrics);
    tasks.guard(&settings.guard);
    let settled = match deciding(&tasks, settings, &state) {
        Ok(deciding) => settle(deciding, &mut state, stop).await,
        Err(error) => Err(error),
    };
    let decider = match settled {
        Ok(decider) => decider,
        Err(error) => return Err((error, state)),
    };
    let verdicts = state.compare(&facts, settings.undelivered);
    let mut restored = state.restored.clone();
    restored.forget(&verdicts);
    let prepared = restore::tell(&verdicts, settings)
        .and_then(|()| fits(&tasks, settings))
        .and_then(|()| restore::stages(&mut tasks.stages, &mut restored))
        .and_then(|()| SetAside::new(settings, &verdicts, restored.epoch));
    let aside = match prepared {
        Ok(aside) => aside,
        Err(error) => return Err((error, state)),
    };
    let wiring = Wiring::new(&tasks, settings);
    let (reports_sender, reports) = mpsc::channel(64);
    let mut runner = Runner {
        settings,
        stop: stop.child_token(),
        drain: CancellationToken::new(),
        set: JoinSet::new(),
        reports: reports_sender,
        sinks: Vec::new(),
        sink_names: Vec::new(),
        barriers: Vec::new(),
        relays: Vec::new(),
        tills: Vec::new(),
        journals: BTreeMap::new(),
        completed: Vec::new(),
        hurry: Arc::new(Notify::new()),
        deadlines: Deadlines::new(tasks.stages.len()),
        activity: Arc::new(AtomicU64::new(0)),
    };
    let Tasks { sources, stages, sinks } = tasks;
    // What a sink says is unchanged is what it was given.
    let sink_states = sinks.iter().map(|sink| restored.sinks.get(&*sink.name).cloned()).collect();
    let opened = runner.open(sources, sinks, &wiring, &mut restored, state.checkpoints.as_ref()).await;
    let (sources, sinks) = match opened {
        Ok(open) => open,
        Err(error) => {
            drop(runner);
            aside.undo(settings);
            return Err((error, state));
        }
    };
    let held = runner.tills.iter().map(|till| (till.name().to_owned(), till.account().held)).collect::<Vec<_>>();
    let State { lock, mut checkpoints, restored: before } = state;
    let ledger = before.ledger.unwrap_or_else(|| Ledger::opening(held));
    if let Some(checkpoints) = &mut checkpoints {
        checkpoints.adopt(facts.clone(), &verdicts);
    }
    settings.health.forget(|name| [CHECKPOINTS, AUDIT].contains(&name) || names.contains(name));
    let coordinator = Coordinator {
        counts: (sources.len(), stages.len(), sinks.len()),
        checkpoints,
        reports,
        ended: 0,
        is_broken: false,
        sink_states,
        counted: runner.relays.iter().flatten().count() + stages.len(),
        books: Books { restored: ledger, links, of_sources: Vec::new(), dropped: BTreeMap::new() },
        levels: Vec::new(),
        waiting: Vec::new(),
        is_behind: false,
        suspensions,
        left: None,
        facts,
        epoch_before: before.epoch,
        decider,
    };
    let inquiries = &settings.status.inquiries;
    let stages = stages.into_iter().map(|stage| (inquiries.open(operators(&stage)), stage));
    let stages = stages.map(|(asked, stage)| (stage, asked)).collect();
    // Whoever is told that it is open finds it so.
    settings.status.is_ready.store(true, Ordering::Relaxed);
    Ok(Ready { runner, coordinator, lock, sources, stages, sinks, wiring })
}

/// The operators of a stage, each with what it answers about.
fn operators(stage: &StageTask) -> impl Iterator<Item = (Arc<str>, Option<&'static str>)> {
    stage.chain.nodes.iter().map(|node| match &node.work {
        Work::Operator(operator) => (Arc::clone(&node.name), operator.subject()),
        _ => (Arc::clone(&node.name), None),
    })
}

/// The sink that decides about epochs, if there is one.
#[derive(Clone)]
pub(crate) struct Deciding {
    sink: Arc<str>,
    decider: Arc<dyn Decider>,
}

/// The sink that decides about epochs, if there is one, with what it is given.
fn deciding(tasks: &Tasks, settings: &Settings, state: &State) -> Result<Option<(Deciding, DeciderContext)>, RunError> {
    let mut deciding = tasks.sinks.iter().filter_map(|task| {
        let decider = task.sink.decider()?;
        Some((Deciding { sink: Arc::clone(&task.name), decider }, task.metrics.clone()))
    });
    let Some((found, metrics)) = deciding.next() else { return Ok(None) };
    let sink = &found.sink;
    if let Some((other, _)) = deciding.next() {
        return Err(RunError::Start(format!(
            "`{sink}` and `{}` both write in transactions, and no protocol makes two of them one; split the pipeline",
            other.sink
        )));
    }
    let context = DeciderContext {
        name: Arc::clone(sink),
        metrics,
        health: settings.health.clone(),
        clock: Arc::clone(&settings.clock),
        inputs: tasks.sources.iter().filter_map(|task| task.source.inputs()).collect(),
        epochs: state.checkpoints.as_ref().and_then(Checkpoints::kept),
    };
    Ok(Some((found, context)))
}

/// Finds out which epoch is the truth and goes back to it.
async fn settle(
    deciding: Option<(Deciding, DeciderContext)>,
    state: &mut State,
    stop: &CancellationToken,
) -> Result<Option<Deciding>, RunError> {
    let Some((found, context)) = deciding else {
        state.settle(Decided::ByItself)?;
        return Ok(None);
    };
    let Deciding { sink, decider } = &found;
    if state.checkpoints.is_none() {
        return Err(RunError::Start(format!(
            "`{sink}` writes each record exactly once, and there is nowhere to keep checkpoints; give [daemon] a data_dir"
        )));
    }
    let decided = tokio::select! {
        decided = decider.recover(context) => decided.map_err(|error| RunError::decider(sink, error))?,
        () = stop.cancelled() => return Err(RunError::Stopped),
    };
    let newest = state.checkpoints.as_ref().map(Checkpoints::epoch);
    let decided = if fault::is_planted(Defect::NewestCheckpoint) { newest.filter(|epoch| *epoch > 0) } else { decided };
    state.settle(decided.map_or(Decided::Nothing, Decided::Epoch))?;
    let positions: Vec<_> = state.checkpoints.iter().flat_map(positions).collect();
    if let (Some(epoch), Some(why)) = (decided, decider.contradicts(&positions))
        && state.checkpoints.as_ref().is_some_and(|checkpoints| checkpoints.epoch() == epoch)
    {
        return Err(RunError::State(format!(
            "the checkpoint of epoch {epoch} is not the one that was committed: {why}; this is a copy of the data directory that \
             went its own way, see docs/kafka.md"
        )));
    }
    Ok(Some(found))
}

/// The positions of all lanes in the last complete epoch.
fn positions(checkpoints: &Checkpoints) -> Vec<Json> {
    checkpoints.positions().flat_map(|(_, lanes)| lanes.values().map(|lane| lane.position.clone())).collect()
}

/// Whether what sources and sinks hold beside the edges leaves those enough.
fn fits(tasks: &Tasks, settings: &Settings) -> Result<(), RunError> {
    let held = tasks.memory();
    if held <= settings.memory / 4 * 3 {
        return Ok(());
    }
    Err(RunError::Start(format!(
        "sources and sinks hold up to {} MiB beside what is on its way, which is too much of the {} MiB of `daemon.memory`; give it more, \
         or them less",
        held >> 20,
        settings.memory >> 20
    )))
}

impl Ready<'_> {
    /// Runs until the sources have ended, `stop` is cancelled, or a suspension is heeded.
    ///
    /// # Errors
    /// When a component cannot go on.
    pub async fn run(self) -> Result<Outcome, RunError> {
        let Self { mut runner, mut coordinator, lock, sources, stages, sinks, wiring } = self;
        coordinator.levels = runner.start(sources, stages, sinks, wiring);
        let status = Arc::clone(&runner.settings.status);
        let outcome = coordinator.run(&mut runner).await;
        status.is_ready.store(false, Ordering::Relaxed);
        runner.set.shutdown().await;
        Ok(match outcome? {
            Some((checkpoints, restored)) => Outcome::Suspended(Box::new(State { lock, checkpoints, restored })),
            None => Outcome::Ended,
        })
    }
}
