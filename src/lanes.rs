//! Running a share of a pipeline: the same configuration runs on several daemons, and each partition of its sources is a
//! pipeline of its own, run by whichever daemon has it.
//!
//! A lane has its own graph, its own checkpoints in the place that all daemons see, and its own transactions. So a lane that
//! moves is a crash and a recovery, on another machine; nothing else knows that there are several.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::Value as Json;
use tocsin_config::Plan;
use tocsin_config::build::build_lane;
use tocsin_config::component::AssignedPartition;
use tocsin_config::scale::{Section, sections};
use tocsin_pipeline::health::Health;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::poison::Guard;
use tocsin_pipeline::runtime::{self, RunError, Settings, Shared, State, Status};
use tocsin_pipeline::sharing::{Change, Partition, SharingContext, Told};
use tocsin_pipeline::store::{Storage, object, term};
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::poison;
use crate::reload::Request;
use crate::run::{Daemon, memory};
use crate::views::{View, Views};

/// A lane that another daemon has taken over, and that is still said to be ours, is tried again after so long: who is right shows by
/// then.
const CONTESTED: Duration = Duration::from_secs(5);
/// Changes that wait to be heeded.
const CHANGES: usize = 16;
/// Beside the time that draining takes, what the last checkpoint may take until a partition is given away.
const MARGIN: Duration = Duration::from_secs(5);

/// What a lane may take at the least, whatever its part of `daemon.memory` is.
const LANE_MEMORY: usize = 8 << 20;

/// A partition of a section's source.
type Key = (usize, Partition);

/// A lane that runs.
struct Lane {
    task: task::Id,
    stop: CancellationToken,
    /// Told when it has ended.
    ended: watch::Receiver<bool>,
}

/// What all lanes have in common.
struct Common {
    daemon: Arc<Daemon>,
    plan: Plan,
    sections: Vec<Section>,
    views: Views,
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    who: String,
    /// By section: where positions of complete epochs are told.
    told: Vec<watch::Sender<Told>>,
}

/// Runs the lanes that become ours until the daemon is stopped.
pub async fn run(
    daemon: Arc<Daemon>,
    plan: Plan,
    views: Views,
    mut requests: mpsc::Receiver<Request>,
) -> anyhow::Result<()> {
    let store = plan.daemon.checkpoint_store.clone().context("there is no `daemon.checkpoint_store`")?;
    let (storage, folder) = object::open(&store).map_err(|error| anyhow!("`daemon.checkpoint_store`: {error}"))?;
    if daemon.is_once() && !plan.relays.is_empty() {
        return Err(anyhow!(
            "`run --once` ends where its input does, and what a `repartition` reads from its topic has no end: run the daemon without \
             `--once` and stop it when it has done its work, or leave out `daemon.checkpoint_store` and the `repartition`"
        ));
    }
    let sections = sections(&plan);
    let instance = plan.daemon.instance.clone();
    let who = format!(
        "{} (process {})",
        instance.as_deref().unwrap_or("a daemon without `daemon.instance`"),
        std::process::id()
    );
    spawn_blocking({
        let (storage, folder) = (Arc::clone(&storage), folder.clone());
        move || term::check(&*storage, &folder)
    })
    .await
    .context("looking at the checkpoint store")?
    .with_context(|| format!("`daemon.checkpoint_store` {store} cannot be used"))?;
    views.keep(daemon.metrics.clone());
    views.wait_for(Some("it is not yet a member of the daemons that share the work".to_owned()));
    // Who is a member and has nothing to do stands by, and that is being ready: a group has more members than partitions, and
    // an update that waits for each new one to get some never ends.
    let mut unjoined: BTreeSet<usize> = (0..sections.len()).collect();
    let (changes_sender, mut changes) = mpsc::channel::<(usize, Change)>(CHANGES);
    let leave = CancellationToken::new();
    let mut told = Vec::new();
    for (number, section) in sections.iter().enumerate() {
        let source = &plan.sources[section.source];
        let sharing = source
            .options
            .sharing(&source.folder)
            .with_context(|| format!("the source `{}` cannot be shared", source.name))?;
        let (changes, mut of_section) = mpsc::channel(CHANGES);
        let (told_sender, told_receiver) = watch::channel(Told::new());
        told.push(told_sender);
        let joined = sharing.join(SharingContext {
            name: Arc::clone(&section.name),
            instance: instance.clone(),
            metrics: daemon.metrics.component(&section.name, "source"),
            patience: plan.daemon.shutdown_timeout.0 + MARGIN,
            changes,
            told: told_receiver,
            stop: leave.clone(),
        });
        joined.map_err(|error| anyhow!("{}: {error}", section.name))?;
        let sender = changes_sender.clone();
        tokio::spawn(async move {
            while let Some(change) = of_section.recv().await {
                if sender.send((number, change)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(changes_sender);
    let common = Arc::new(Common {
        daemon: Arc::clone(&daemon),
        plan,
        sections,
        views: views.clone(),
        storage,
        folder,
        who,
        told,
    });
    let mut lanes: BTreeMap<Key, Lane> = BTreeMap::new();
    let mut set: JoinSet<(Key, anyhow::Result<()>)> = JoinSet::new();
    let mut has_begun = false;
    let outcome = loop {
        tokio::select! {
            () = daemon.stop.cancelled() => break Ok(()),
            Some(request) = requests.recv() => {
                let told = "daemons that share a pipeline are not reloaded: restart them one after the other, and their partitions move \
                            with their state";
                tracing::error!("{told}");
                daemon.metrics.reloads.with_label_values(&["refused"]).inc();
                if let Some(waiting) = request {
                    let _ = waiting.send(Err(told.to_owned()));
                }
            }
            change = changes.recv() => match change {
                None => break Err(anyhow!("the group of daemons was left by a bug")),
                Some((_, Change::Failed(why))) => break Err(anyhow!(why)),
                Some((section, Change::Assigned { partitions, of })) => {
                    let source = &*common.sections[section].name;
                    unjoined.remove(&section);
                    if unjoined.is_empty() {
                        views.wait_for(None);
                    }
                    match partitions.is_empty() {
                        false => tracing::info!(source, "assigned: {}", names(&partitions)),
                        true if lanes.keys().all(|key| key.0 != section) => {
                            tracing::info!(source, "it is a member, and stands by: others have all partitions");
                        }
                        true => {}
                    }
                    has_begun |= !partitions.is_empty();
                    for partition in partitions {
                        let key = (section, partition);
                        let before = lanes.get(&key);
                        if before.is_none_or(|lane| lane.stop.is_cancelled()) {
                            // One that was given away and took too long is waited for.
                            let before = before.map(|lane| lane.ended.clone());
                            lanes.insert(key.clone(), start(&mut set, &common, key, of, before));
                        }
                    }
                }
                Some((section, Change::Revoked { partitions, done })) => {
                    tracing::info!(source = &*common.sections[section].name, "given away: {}", names(&partitions));
                    let leaving = partitions.into_iter().filter_map(|partition| lanes.get(&(section, partition)));
                    let ended: Vec<_> = leaving.inspect(|lane| lane.stop.cancel()).map(|lane| lane.ended.clone()).collect();
                    // Others go on meanwhile; whoever takes these over waits.
                    tokio::spawn(async move {
                        for mut ended in ended {
                            let _ = ended.wait_for(|ended| *ended).await;
                        }
                        let _ = done.send(());
                    });
                }
            },
            Some(ended) = set.join_next_with_id() => match ended {
                Ok((task, (key, Ok(())))) => {
                    // Another may have begun in its place.
                    if lanes.get(&key).is_some_and(|lane| lane.task == task) {
                        lanes.remove(&key);
                    }
                    if daemon.is_once() && has_begun && lanes.is_empty() {
                        break Ok(());
                    }
                }
                Ok((_, (_, Err(error)))) => break Err(error),
                Err(error) => break Err(anyhow!("a lane was stopped by a bug: {error}")),
            },
        }
    };
    // All lanes come to their end before the others are told that they may have them.
    lanes.values().for_each(|lane| lane.stop.cancel());
    let mut outcome = outcome;
    while let Some(ended) = set.join_next().await {
        if let Ok((_, Err(error))) = ended {
            outcome = outcome.and(Err(error));
        }
    }
    leave.cancel();
    // The group is left in the time that takes; who does not wait for that finds out by itself.
    let _ = tokio::time::timeout(MARGIN, async { while changes.recv().await.is_some() {} }).await;
    outcome
}

fn names(partitions: &[Partition]) -> String {
    let names: Vec<_> = partitions.iter().map(name).collect();
    names.join(", ")
}

fn name(partition: &Partition) -> String {
    format!("{}/{}", partition.topic, partition.partition)
}

/// Starts a lane, once one that ran before in its place has ended.
fn start(
    set: &mut JoinSet<(Key, anyhow::Result<()>)>,
    common: &Arc<Common>,
    key: Key,
    of: usize,
    before: Option<watch::Receiver<bool>>,
) -> Lane {
    let stop = CancellationToken::new();
    let (ended_sender, ended) = watch::channel(false);
    let (common, lane_stop) = (Arc::clone(common), stop.clone());
    let task = set.spawn(async move {
        if let Some(mut before) = before {
            let _ = before.wait_for(|ended| *ended).await;
        }
        let outcome = run_lane(&common, &key, of, lane_stop).await;
        ended_sender.send_replace(true);
        (key, outcome)
    });
    Lane { task: task.id(), stop, ended }
}

/// Runs a lane until it is stopped, comes to its end, or cannot go on.
async fn run_lane(common: &Common, key: &Key, of: usize, stop: CancellationToken) -> anyhow::Result<()> {
    let (section, partition) = (&common.sections[key.0], &key.1);
    let lane = name(partition);
    let view_name = format!("{} {lane}", section.name);
    let metrics = Metrics::of_lane(&lane);
    let health = Health::new(Some(metrics.troubles.clone()));
    let status = Arc::new(Status::default());
    common
        .views
        .add(&view_name, View { metrics: metrics.clone(), status: Arc::clone(&status), health: health.clone() });
    let (completed, mut complete) = watch::channel(Arc::default());
    let told = common.told[key.0].clone();
    // Where it came to here before says nothing any more: others have gone on with it.
    told.send_modify(|told| drop(told.remove(partition)));
    let teller = tokio::spawn({
        let partition = partition.clone();
        async move {
            while complete.changed().await.is_ok() {
                let positions: Arc<Vec<Json>> = Arc::clone(&complete.borrow_and_update());
                told.send_modify(|told| drop(told.insert(partition.clone(), positions)));
            }
        }
    });
    let folder = common.folder.join(&*section.name).join(&partition.topic).join(partition.partition.to_string());
    let settings_with = |guard: &Arc<Guard>| {
        let shared = Shared { storage: Arc::clone(&common.storage), folder: folder.clone(), who: common.who.clone() };
        Arc::new(Settings {
            // What is kept on this machine does not move; all that counts is in the checkpoints.
            data_dir: None,
            shared: Some(shared),
            completed: Some(completed.clone()),
            memory: (memory(&common.plan) / of.max(1)).max(LANE_MEMORY),
            metrics: metrics.clone(),
            health: health.clone(),
            status: Arc::clone(&status),
            ..common.daemon.settings(&common.plan, guard)
        })
    };
    // Which records operators fail on is found out again where the lane goes on.
    let mut guard = Arc::default();
    let mut settings = settings_with(&guard);
    let assigned = AssignedPartition { topic: partition.topic.clone(), partition: partition.partition, of };
    let mut failures = poison::Failures::default();
    let outcome = loop {
        // Whoever goes on with it is not to be disturbed.
        if stop.is_cancelled() {
            break Ok(());
        }
        let opening = Arc::clone(&settings);
        let opened = spawn_blocking(move || State::open(&opening)).await.context("opening checkpoints")?;
        let error = match opened {
            Err(error) => error,
            Ok(state) => {
                let (_, suspensions) = mpsc::channel(1);
                let graph = build_lane(&common.plan, section, &assigned);
                match runtime::open(graph, &settings, state, &stop, suspensions).await {
                    Err((error, _)) => error,
                    Ok(ready) => match ready.run().await {
                        Ok(_) => break Ok(()),
                        Err(error) => error,
                    },
                }
            }
        };
        match error {
            RunError::Stopped => break Ok(()),
            RunError::Superseded { component, message } => {
                tracing::warn!(lane, component, "another daemon goes on with it: {message}");
                tokio::select! {
                    () = stop.cancelled() => break Ok(()),
                    () = tokio::time::sleep(CONTESTED) => {}
                }
            }
            error if stop.is_cancelled() => {
                tracing::warn!(lane, "it ended with a fault, and goes on from its checkpoint elsewhere: {error}");
                break Ok(());
            }
            error => match failures.learn(&guard, error.into(), true, common.daemon.clock.monotonic()) {
                Ok(learnt) => {
                    guard = Arc::new(learnt);
                    settings = settings_with(&guard);
                    tokio::time::sleep(failures.pause()).await;
                }
                Err(error) => break Err(error.context(lane.clone())),
            },
        }
    };
    // What it came to last is told as well.
    drop((settings, completed));
    let _ = teller.await;
    common.views.remove(&view_name);
    outcome
}
