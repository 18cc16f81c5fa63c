//! `tocsin run`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tocsin_config::build::build;
use tocsin_config::plan::Plan;
use tocsin_pipeline::health::Health;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::runtime::{self, Settings, Status};
use tocsin_pipeline::store::Disk;
use tocsin_pipeline::time::{Clock, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::SignalStream;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::catalog::CATALOG;
use crate::progress;

/// How the daemon is run beside what the configuration says.
pub struct Options {
    pub once: bool,
    pub data_dir: Option<PathBuf>,
    /// State that would be lost is a reason not to start.
    pub no_state_loss: bool,
}

/// Runs the plan to its end.
pub fn run(plan: Plan, options: Options) -> anyhow::Result<ExitCode> {
    crate::logging::init(plan.daemon.log.as_str());
    let threads = match plan.daemon.threads {
        Some(threads) => threads.get(),
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
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

async fn serve(plan: Plan, options: Options, threads: usize) -> anyhow::Result<ExitCode> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let begun = clock.monotonic();
    let metrics = Metrics::new();
    let status = Arc::new(Status::default());
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let admin = match plan.daemon.admin {
        Some(address) => Some(tokio::spawn(Admin::bind(address, metrics.clone(), Arc::clone(&status)).await?.serve())),
        None => None,
    };
    let sources: Vec<_> = plan.sources.iter().map(|source| metrics.component(&source.name, "source")).collect();
    let told = options.once.then(|| tokio::spawn(progress::tell(sources.clone(), Arc::clone(&clock))));
    let data_dir = options.data_dir.or_else(|| plan.daemon.data_dir.clone());
    if data_dir.is_none() && !options.once {
        tracing::warn!("no data_dir is configured: positions, windows and alerts do not survive a restart");
    }
    let settings = Settings {
        data_dir,
        checkpoint_interval: plan.daemon.checkpoint_interval.0,
        shutdown_timeout: plan.daemon.shutdown_timeout.0,
        threads,
        memory: usize::try_from(plan.daemon.memory.0).unwrap_or(usize::MAX),
        once: options.once,
        guard: Arc::default(),
        no_state_loss: options.no_state_loss,
        undelivered: |sink, state| CATALOG.undelivered(sink, state),
        clock: Arc::clone(&clock),
        storage: Arc::new(Disk),
        health: Health::new(Some(metrics.troubles.clone())),
        metrics,
        status: Arc::clone(&status),
    };
    let graph = build(&plan);
    drop(plan);
    let notified = tokio::spawn(tell_supervisor(Arc::clone(&status), stop.clone()));
    let outcome = runtime::run(graph, settings, stop).await;
    for task in [told, admin, Some(notified)].into_iter().flatten() {
        task.abort();
    }
    outcome?;
    let elapsed = clock.monotonic().saturating_sub(begun);
    tracing::info!("stopped; {}", progress::Read::of(&sources).line(elapsed));
    Ok(ExitCode::SUCCESS)
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
            stop.cancel();
        }
    });
    Ok(())
}

/// systemd's notify protocol: ready, alive, stopping.
async fn tell_supervisor(status: Arc<Status>, stop: CancellationToken) {
    let tell = |state: &[sd_notify::NotifyState<'_>]| {
        // Without NOTIFY_SOCKET this does nothing; a supervisor that is gone is no reason to stop.
        let _ = sd_notify::notify(state);
    };
    while !status.is_ready.load(std::sync::atomic::Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tell(&[sd_notify::NotifyState::Ready]);
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
