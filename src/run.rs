//! `tocsin run`: the daemon. Runs one graph after the other, each from the state that the one before left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tocsin_config::COMMANDS;
use tocsin_config::Plan;
use tocsin_config::build::build;
use tocsin_pipeline::evolution::{Fate, Role, losses};
use tocsin_pipeline::fault;
use tocsin_pipeline::health::Health;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::poison::Guard;
use tocsin_pipeline::runtime::{self, Outcome, Ready, RunError, Settings, State, Status};
use tocsin_pipeline::store::Disk;
use tocsin_pipeline::time::{Clock, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::SignalStream;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::catalog::CATALOG;
use crate::cli::ConfigurationArguments;
use crate::commands::read;
use crate::reload::{self, Answer, Reloads, Request};
use crate::views::{View, Views};
use crate::{lanes, poison, progress};

/// The code of the lint that finds alerts which a restart forgets.
const FORGOTTEN: &str = "T056";

/// A graph that is busy with a checkpoint that does not come to its end is not waited for longer.
const HEEDED_WITHIN: Duration = Duration::from_secs(5);

/// How the daemon is run beside what the configuration says.
pub struct Options {
    pub configuration: ConfigurationArguments,
    pub once: bool,
    pub data_dir: Option<PathBuf>,
    /// State that would be lost is a reason not to start, and not to reload.
    pub no_state_loss: bool,
    /// A change of the configuration's files reloads it.
    pub watch: bool,
}

/// Runs the plan to its end.
pub fn run(plan: Plan, options: Options) -> anyhow::Result<ExitCode> {
    crate::logging::init(plan.daemon.log.as_str());
    tell_findings(&plan, options.data_dir.is_some());
    let threads = threads(&plan);
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        // A worker that found nothing to do for so long gives its memory back; new ones start in microseconds.
        .thread_keep_alive(Duration::from_secs(30))
        .thread_name("tocsin")
        .enable_all()
        .build()
        .context("starting the threads")?;
    let outcome = executor.block_on(serve(plan, options, threads));
    // A thread that is stuck in a read of a terminal or in a write to a full disk would be waited for, and one that is
    // interrupted would complain: the process ends here, and they with it.
    std::mem::forget(executor);
    outcome
}

/// Logs what lints have found: the daemon starts with it.
fn tell_findings(plan: &Plan, has_data_dir: bool) {
    // That nothing is kept is told by itself, and is not so where the folder is given on the command line.
    let is_told = |code: Option<&str>| !has_data_dir || code != Some(FORGOTTEN);
    for finding in plan.findings.problems.iter().filter(|finding| is_told(finding.code)) {
        let code = finding.code.unwrap_or_default();
        tracing::warn!(code, "{} ({})", finding.line(), finding.help.as_deref().unwrap_or_default());
    }
}

/// How many threads work on records.
pub fn threads(plan: &Plan) -> usize {
    match plan.daemon.threads {
        Some(threads) => threads.get(),
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// How many bytes the records that are on their way may take.
pub fn memory(plan: &Plan) -> usize {
    usize::try_from(plan.daemon.memory.0).unwrap_or(usize::MAX)
}

/// What stays the same from graph to graph.
pub struct Daemon {
    options: Options,
    /// Where state is kept: fixed when the daemon starts.
    data_dir: Option<PathBuf>,
    threads: usize,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    health: Health,
    status: Arc<Status>,
    pub stop: CancellationToken,
}

impl Daemon {
    /// Whether sources are read to their end.
    pub fn is_once(&self) -> bool {
        self.options.once
    }

    /// How a pipeline of the plan is run.
    pub fn settings(&self, plan: &Plan, guard: &Arc<Guard>) -> Settings {
        Settings {
            data_dir: self.data_dir.clone(),
            shared: None,
            completed: None,
            checkpoint_interval: plan.daemon.checkpoint_interval.0,
            shutdown_timeout: plan.daemon.shutdown_timeout.0,
            threads: self.threads,
            memory: memory(plan),
            once: self.options.once,
            guard: Arc::clone(guard),
            no_state_loss: self.options.no_state_loss,
            undelivered: |sink, state| CATALOG.undelivered(sink, state),
            clock: Arc::clone(&self.clock),
            storage: Arc::new(Disk),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            status: Arc::clone(&self.status),
        }
    }
}

async fn serve(plan: Plan, options: Options, threads: usize) -> anyhow::Result<ExitCode> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let begun = clock.monotonic();
    let metrics = Metrics::new();
    let status = Arc::new(Status::default());
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let (reloads, requests) = Reloads::new();
    reload::on_signal(reloads.clone())?;
    if options.watch {
        reload::on_change(reloads.clone(), options.configuration.files.clone())?;
    }
    let health = Health::new(Some(metrics.troubles.clone()));
    let views = Views::default();
    // Lanes have views of their own.
    if plan.daemon.checkpoint_store.is_none() {
        views.add("", View { metrics: metrics.clone(), status: Arc::clone(&status), health: health.clone() });
    }
    let admin = match plan.daemon.admin {
        Some(address) => {
            let admin = Admin::bind(address, views.clone(), reloads, Arc::clone(&clock)).await?;
            Some(tokio::spawn(admin.serve()))
        }
        None => None,
    };
    let sources: Vec<_> = plan.sources.iter().map(|source| metrics.component(&source.name, "source")).collect();
    let told = options.once.then(|| tokio::spawn(progress::tell(sources.clone(), Arc::clone(&clock))));
    let data_dir = options.data_dir.clone().or_else(|| plan.daemon.data_dir.clone());
    if data_dir.is_none() && plan.daemon.checkpoint_store.is_none() && !options.once {
        tracing::warn!("no data_dir is configured: positions, windows and alerts do not survive a restart");
    }
    tell_start(&plan, data_dir.as_deref());
    let notified = tokio::spawn(tell_supervisor(views.clone(), stop.clone()));
    let daemon = Daemon { options, data_dir, threads, clock: Arc::clone(&clock), metrics, health, status, stop };
    let outcome = match plan.daemon.checkpoint_store {
        Some(_) => {
            views.make(plan.labels.clone());
            lanes::run(Arc::new(daemon), plan, views, requests).await
        }
        None => graphs(&daemon, plan, &views, requests).await,
    };
    for task in [told, admin, Some(notified)].into_iter().flatten() {
        task.abort();
    }
    outcome?;
    let elapsed = clock.monotonic().saturating_sub(begun);
    tracing::info!("stopped; {}", progress::Read::of(&sources).line(elapsed));
    Ok(ExitCode::SUCCESS)
}

/// Runs one graph after the other, until one ends.
async fn graphs(
    daemon: &Daemon,
    first: Plan,
    views: &Views,
    mut requests: mpsc::Receiver<Request>,
) -> anyhow::Result<()> {
    let mut plan = first;
    let mut guard = Arc::default();
    let mut settings = daemon.settings(&plan, &guard);
    let mut state = State::open(&settings)?;
    if let Some(data_dir) = &daemon.data_dir {
        // Only now: the folder is ours since its state was opened.
        guard = Arc::new(poison::guard(data_dir)?);
        settings = daemon.settings(&plan, &guard);
    }
    let mut failures = poison::Failures::default();
    // The reload that the graph to come is the outcome of, with what is to be told of it; and the plan to go back to.
    let mut underway: Option<(Waiting, Vec<String>, Plan)> = None;
    loop {
        if let Some((waiting, told, old)) = underway.take() {
            let undelivered = undelivered(&mut state, &plan, &settings);
            if undelivered.is_empty() {
                underway = Some((waiting, told, old));
            } else {
                waiting.answer(daemon, Err(Refusal::Refused(undelivered)));
                plan = old;
                settings = daemon.settings(&plan, &guard);
            }
        }
        let (suspend, suspensions) = mpsc::channel(1);
        views.make(plan.labels.clone());
        let opened = runtime::open(build(&plan), &settings, state, &daemon.stop, suspensions).await;
        let ready = match (opened, underway.take()) {
            (Ok(ready), None) => ready,
            (Ok(ready), Some((waiting, told, _))) => {
                tocsin_sources::listeners::release();
                fault::point("reload.started");
                tell_ready();
                waiting.answer(daemon, Ok(told));
                ready
            }
            (Err((RunError::Stopped, _)), _) => return Ok(()),
            (Err((error, _)), None) => return Err(error.into()),
            (Err((error, before)), Some((waiting, _, old))) => {
                waiting.answer(daemon, Err(Refusal::Failed(error.to_string())));
                (plan, state) = (old, before);
                settings = daemon.settings(&plan, &guard);
                tocsin_sources::listeners::hand_over();
                continue;
            }
        };
        let next = follow(daemon, ready, &plan, &settings, &suspend, &mut requests).await;
        let (left, new, waiting, told) = match next {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(()),
            Err(error) => {
                guard = Arc::new(failures.learn(&guard, error, daemon.data_dir.is_some(), daemon.clock.monotonic())?);
                settings = daemon.settings(&plan, &guard);
                tokio::time::sleep(failures.pause()).await;
                state = State::open(&settings)?;
                continue;
            }
        };
        tocsin_sources::listeners::hand_over();
        state = left;
        let old = std::mem::replace(&mut plan, new);
        settings = daemon.settings(&plan, &guard);
        underway = Some((waiting, told, old));
    }
}

/// What sinks have not delivered and a reload would lose, in words; empty if that is nothing. Waiting costs nothing here, and a
/// restart gives it up knowingly.
fn undelivered(state: &mut State, plan: &Plan, settings: &Settings) -> String {
    let verdicts = state.compare(&build(plan).facts(), settings.undelivered);
    let lost: Vec<_> = losses(&verdicts)
        .filter(|verdict| verdict.role == Role::Sink)
        .map(|verdict| format!("\n  {verdict}"))
        .collect();
    match lost.is_empty() {
        true => String::new(),
        false => format!("reload when it is delivered, or restart to give it up:{}", lost.concat()),
    }
}

/// What follows a graph: the state it left, the plan to go on with, and who waits for that, with what is to be told.
type Next = (State, Plan, Waiting, Vec<String>);

/// Runs a graph until it ends, or until another follows.
async fn follow(
    daemon: &Daemon,
    ready: Ready<'_>,
    plan: &Plan,
    settings: &Settings,
    suspend: &mpsc::Sender<oneshot::Sender<()>>,
    requests: &mut mpsc::Receiver<Request>,
) -> anyhow::Result<Option<Next>> {
    let facts = build(plan).facts();
    let mut running = std::pin::pin!(ready.run());
    let ended = |outcome: Outcome| match outcome {
        Outcome::Ended => None,
        Outcome::Suspended(state) => Some(*state),
    };
    loop {
        let waiting = tokio::select! {
            outcome = &mut running => {
                // Nobody asked: a suspension that was withdrawn in the same moment is none.
                return Ok(ended(outcome?).and(None));
            }
            Some(request) = requests.recv() => Waiting::with(request, requests),
        };
        if daemon.stop.is_cancelled() {
            waiting.answer(daemon, Err(Refusal::Refused("the daemon is stopping".to_owned())));
            continue;
        }
        tell_reloading();
        let configuration = daemon.options.configuration.clone();
        let checked = tokio::task::spawn_blocking(move || read(&configuration));
        // The pipeline goes on meanwhile.
        let checked = tokio::select! {
            outcome = &mut running => return Ok(ended(outcome?).and(None)),
            checked = checked => checked.context("checking the configuration")?,
        };
        let new = match checked {
            Ok(new) => new,
            Err(report) => {
                tell_ready();
                waiting.answer(daemon, Err(Refusal::Refused(report.render(false))));
                continue;
            }
        };
        tell_findings(&new, daemon.options.data_dir.is_some());
        fault::point("reload.checked");
        let verdicts = tocsin_pipeline::evolution::compare(&facts, &build(&new).facts());
        let forbidden: Vec<_> = losses(&verdicts)
            // What a sink has not delivered is known only when it has ended.
            .filter(|verdict| settings.no_state_loss && verdict.role != Role::Sink)
            .map(|verdict| format!("\n  {verdict}"))
            .collect();
        if !forbidden.is_empty() {
            tell_ready();
            let told = format!("state would be lost, which --no-state-loss forbids:{}", forbidden.concat());
            waiting.answer(daemon, Err(Refusal::Refused(told)));
            continue;
        }
        let mut told: Vec<_> =
            verdicts.iter().filter(|verdict| verdict.fate != Fate::Kept).map(ToString::to_string).collect();
        told.extend(needs_restart(daemon, plan, &new));
        let (heed, mut heeded) = oneshot::channel();
        // The channel holds one request, and this is the only place that makes them: it is full only if one was withdrawn
        // and not looked at yet.
        let is_asked = suspend.try_send(heed).is_ok();
        let is_heeded = is_asked
            && tokio::select! {
                outcome = &mut running => {
                    return Ok(ended(outcome?).map(|state| (state, new, waiting, told)));
                }
                answer = tokio::time::timeout(HEEDED_WITHIN, &mut heeded) => matches!(answer, Ok(Ok(()))),
            };
        // Where it was heeded in the last moment, it was.
        heeded.close();
        if !is_heeded && heeded.try_recv().is_err() {
            tell_ready();
            let told = "a checkpoint does not come to its end, so something downstream is stuck; nothing was changed";
            waiting.answer(daemon, Err(Refusal::Refused(told.to_owned())));
            continue;
        }
        return Ok(ended(running.await?).map(|state| (state, new, waiting, told)));
    }
}

/// What is fixed for as long as the daemon lives.
fn needs_restart(daemon: &Daemon, old: &Plan, new: &Plan) -> Vec<String> {
    let (old, new) = (&old.daemon, &new.daemon);
    let is_data_dir_given = daemon.options.data_dir.is_some();
    [
        ("data_dir", !is_data_dir_given && old.data_dir != new.data_dir),
        ("admin", old.admin != new.admin),
        ("threads", old.threads != new.threads),
        ("log", old.log != new.log),
    ]
    .into_iter()
    .filter(|(_, has_changed)| *has_changed)
    .map(|(option, _)| format!("`daemon.{option}` needs a restart to change"))
    .collect()
}

/// Why everything goes on as it was.
enum Refusal {
    /// Nothing was touched.
    Refused(String),
    /// The new graph could not be opened, and the old one was opened again.
    Failed(String),
}

/// Those who wait for the outcome of one reload.
struct Waiting(Vec<oneshot::Sender<Answer>>);

impl Waiting {
    /// All that have asked by now have asked for the same.
    fn with(request: Request, requests: &mut mpsc::Receiver<Request>) -> Self {
        let mut waiting: Vec<_> = request.into_iter().collect();
        while let Ok(request) = requests.try_recv() {
            waiting.extend(request);
        }
        Self(waiting)
    }

    fn answer(self, daemon: &Daemon, outcome: Result<Vec<String>, Refusal>) {
        let (result, answer) = match outcome {
            Ok(told) => {
                let more = told.iter().map(|line| format!("{line}\n")).collect::<String>();
                tracing::info!(
                    "the configuration is reloaded; {}",
                    if told.is_empty() { "all state is kept".to_owned() } else { told.join("; ") }
                );
                ("reloaded", Ok(format!("reloaded\n{more}")))
            }
            Err(Refusal::Refused(reason)) => {
                tracing::error!("the configuration is not reloaded, everything goes on as it was: {reason}");
                ("refused", Err(reason))
            }
            Err(Refusal::Failed(reason)) => {
                tracing::error!("the new configuration cannot run, the old one goes on: {reason}");
                ("failed", Err(reason))
            }
        };
        daemon.metrics.reloads.with_label_values(&[result]).inc();
        for client in self.0 {
            // One that has gone away is told by the log.
            let _ = client.send(answer.clone());
        }
    }
}

/// The first SIGTERM or SIGINT drains, the second exits at once: safe, as a crash is.
fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut signals = SignalStream::new(terminate).merge(SignalStream::new(interrupt));
    tokio::spawn(async move {
        while signals.next().await.is_some() {
            if stop.is_cancelled() {
                tracing::warn!("stopping at once; what was under way is read again after the next start");
                std::process::exit(130);
            }
            tracing::info!("stopping: bringing what has been read to the sinks; a second signal stops at once");
            // Nobody is to connect to what will not answer.
            tocsin_sources::listeners::close();
            stop.cancel();
        }
    });
    Ok(())
}

/// Tells systemd. Without NOTIFY_SOCKET this does nothing; a supervisor that is gone is no reason to stop.
fn tell(state: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

fn tell_reloading() {
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        tell(&[sd_notify::NotifyState::Reloading, now]);
    }
}

/// What is started, and where it is asked and keeps its state.
fn tell_start(plan: &Plan, data_dir: Option<&Path>) {
    // Nobody has written the source of what people say.
    let written = plan.sources.iter().filter(|source| source.type_name != COMMANDS).count();
    let counts = [("source", written), ("operator", plan.operators.len()), ("sink", plan.sinks.len())];
    let [sources, operators, sinks] = counts.map(|(what, count)| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    });
    let admin = plan.daemon.admin.map_or(String::new(), |address| format!("; admin address http://{address}"));
    let state = data_dir.map_or(String::new(), |folder| format!("; state in {}", folder.display()));
    tracing::info!("starting {sources}, {operators}, {sinks}{admin}{state}");
}

fn tell_ready() {
    tell(&[sd_notify::NotifyState::Ready]);
}

/// systemd's notify protocol: ready, alive, stopping.
async fn tell_supervisor(views: Views, stop: CancellationToken) {
    while !views.is_running() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tell_ready();
    let watchdog = sd_notify::watchdog_enabled();
    let mut ticks = tokio::time::interval(watchdog.map_or(Duration::from_secs(3600), |every| every / 2));
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                tell(&[sd_notify::NotifyState::Stopping]);
                return;
            }
            _ = ticks.tick(), if watchdog.is_some() => tell(&[sd_notify::NotifyState::Watchdog]),
        }
    }
}
