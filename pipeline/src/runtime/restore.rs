//! What a pipeline starts from: the data directory, what has become of its state, and the operators that take it back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CHECKPOINTS, RunError, Settings, Shared};
use crate::checkpoint::{CheckpointError, Checkpoints, Decided, Found, Restored};
use crate::evolution::{self, Facts, Fate, Role, Verdict};
use crate::graph::{StageTask, Work};
use crate::health::Trouble;
use crate::store::Lock;
use crate::store::term::Term;

/// What a graph starts from and leaves behind: the data directory, which stays locked, and what is kept in it. Without a
/// data directory the same in memory alone.
pub struct State {
    /// Held for as long as anything may be written.
    pub(super) lock: Option<Lock>,
    pub(super) checkpoints: Option<Checkpoints>,
    pub(super) restored: Restored,
}

impl State {
    /// Takes the data directory and reads what was kept in it.
    ///
    /// # Errors
    /// When the folder cannot be used, another daemon has it, or nothing in it can be read.
    pub fn open(settings: &Settings) -> Result<Self, RunError> {
        if let Some(shared) = &settings.shared {
            return Self::take_over(shared, settings);
        }
        let Some(data_dir) = &settings.data_dir else {
            return Ok(Self { lock: None, checkpoints: None, restored: Restored::default() });
        };
        settings.storage.create_dir(data_dir).map_err(|error| {
            RunError::Start(format!(
                "cannot make the data directory {}: {error}; give another with --data-dir",
                data_dir.display()
            ))
        })?;
        let lock = settings.storage.lock(data_dir).map_err(RunError::Start)?;
        let (checkpoints, restored, passed_over) =
            Checkpoints::open(Arc::clone(&settings.storage), data_dir).map_err(|error| match error {
                CheckpointError::Io { .. } | CheckpointError::Superseded { .. } => RunError::Start(error.to_string()),
                CheckpointError::Refused(reason) => RunError::State(format!("{}: {reason}", data_dir.display())),
            })?;
        tell_damage(&passed_over, settings);
        Ok(Self { lock: Some(lock), checkpoints: Some(checkpoints), restored })
    }

    /// Becomes the owner of checkpoints that others may have written, and still be writing without knowing that they were
    /// followed.
    fn take_over(shared: &Shared, settings: &Settings) -> Result<Self, RunError> {
        let Shared { storage, folder, who } = shared;
        let component = || CHECKPOINTS.to_owned();
        // What cannot be reached now can be later.
        let again = |error: &dyn std::fmt::Display| RunError::Undone {
            component: component(),
            message: format!("{}: {error}", folder.display()),
        };
        let term = Term::take(&**storage, folder, who).map_err(|error| again(&error))?;
        let opened = Checkpoints::open_term(Arc::clone(storage), folder, term);
        let (checkpoints, restored, passed_over) = opened.map_err(|error| match error {
            CheckpointError::Refused(reason) => RunError::State(format!("{}: {reason}", folder.display())),
            error @ CheckpointError::Superseded { .. } => {
                RunError::Superseded { component: component(), message: error.to_string() }
            }
            error @ CheckpointError::Io { .. } => again(&error),
        })?;
        tell_damage(&passed_over, settings);
        Ok(Self { lock: None, checkpoints: Some(checkpoints), restored })
    }

    /// Goes back to the epoch that was decided.
    ///
    /// # Errors
    /// When there is nowhere to keep what is to be decided about, or nobody but a person can know what to go on from.
    pub fn settle(&mut self, decided: Decided) -> Result<(), RunError> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        let newest = checkpoints.epoch();
        match checkpoints.settle(decided) {
            Ok(None) => {}
            Ok(Some(restored)) => {
                let epoch = restored.epoch;
                tracing::info!(
                    newest,
                    epoch,
                    "the newest checkpoint was prepared and not decided; going on from the one before"
                );
                self.restored = restored;
            }
            Err(error @ CheckpointError::Superseded { .. }) => {
                return Err(RunError::Superseded { component: CHECKPOINTS.to_owned(), message: error.to_string() });
            }
            // As in `take_over`: in a place that is shared it is tried again.
            Err(error @ CheckpointError::Io { .. }) if self.lock.is_none() => {
                return Err(RunError::Undone { component: CHECKPOINTS.to_owned(), message: error.to_string() });
            }
            Err(error @ CheckpointError::Io { .. }) => return Err(RunError::Start(error.to_string())),
            Err(CheckpointError::Refused(reason)) => {
                return Err(RunError::State(format!(
                    "{reason}; bring back the data directory that belongs to it, or see docs/kafka.md for what can be done"
                )));
            }
        }
        Ok(())
    }

    /// What becomes of it under a graph of these facts.
    pub fn compare(&mut self, facts: &Facts, undelivered: fn(&str, &[u8]) -> Option<u64>) -> Vec<Verdict> {
        self.restored.count_undelivered(facts, undelivered);
        evolution::compare(&self.restored.facts, facts)
    }
}

/// Tells of damaged checkpoints that were passed over.
fn tell_damage(passed_over: &[Found], settings: &Settings) {
    for found in passed_over {
        tracing::error!(
            epoch = found.epoch,
            damage = found.damage.as_deref(),
            "a damaged checkpoint is passed over; what came after the one before it is read again"
        );
    }
    if let Some(found) = passed_over.first() {
        let damage = found.damage.as_deref().unwrap_or("damaged");
        let message = format!("checkpoint {} is passed over: {damage}", found.epoch);
        settings.health.raise(Trouble::CheckpointDamaged, CHECKPOINTS, message);
    }
}

/// Tells what is given up; an error if that is forbidden.
pub(super) fn tell(verdicts: &[Verdict], settings: &Settings) -> Result<(), RunError> {
    let losses: Vec<_> = evolution::losses(verdicts).map(ToString::to_string).collect();
    if settings.no_state_loss && !losses.is_empty() {
        return Err(RunError::State(format!(
            "state would be lost, which --no-state-loss forbids:\n  {}\ntocsin plan tells the same without starting",
            losses.join("\n  ")
        )));
    }
    for verdict in verdicts {
        let (component, reason) = (&verdict.name, verdict.fate.reason());
        match &verdict.fate {
            Fate::Lost(_) => tracing::warn!(component, reason, "its state is lost"),
            Fate::Migrated { .. } => tracing::info!(component, reason, "its state is migrated"),
            Fate::Replaced(_) => tracing::info!(component, reason, "it begins afresh; nothing is lost"),
            Fate::Kept | Fate::New | Fate::Gone => {}
        }
    }
    Ok(())
}

/// The folders that the engine keeps in those of components.
const LOGS: [&str; 2] = [super::journal::FOLDER, super::spill::FOLDER];

/// The folders of sources and sinks that nobody goes on from, moved out of the way of others of the same name: what is in
/// them speaks of another configuration.
#[derive(Default)]
pub(super) struct SetAside {
    moved: Vec<(PathBuf, PathBuf)>,
}

impl SetAside {
    pub(super) fn new(settings: &Settings, verdicts: &[Verdict], epoch: u64) -> Result<Self, RunError> {
        let mut aside = Self::default();
        let Some(data_dir) = &settings.data_dir else { return Ok(aside) };
        for Verdict { role, name, .. } in verdicts.iter().filter(|verdict| verdict.fate.is_left()) {
            let above = match role {
                Role::Source => data_dir.join("sources"),
                Role::Sink => data_dir.join("sinks"),
                Role::Operator => continue,
            };
            let (from, to) = (above.join(name), above.join(format!("{name}.left-{epoch}")));
            // A component that never kept anything has no folder, or an empty one.
            let files = |folder: &Path| settings.storage.list(folder).unwrap_or_default();
            let is_empty = |folder: &PathBuf| {
                files(folder).is_empty() && LOGS.iter().all(|log| files(&folder.join(log)).is_empty())
            };
            // Where it was done before a crash, the folder is that of the new one by now.
            if is_empty(&from) || !is_empty(&to) {
                continue;
            }
            let moved = settings.storage.rename(&from, &to).and_then(|()| settings.storage.sync_dir(&above));
            if let Err(error) = moved {
                aside.undo(settings);
                return Err(RunError::Start(format!("cannot move {} to {}: {error}", from.display(), to.display())));
            }
            tracing::info!(folder = %to.display(), "what it kept is put aside here; delete it when it is not needed");
            aside.moved.push((from, to));
        }
        Ok(aside)
    }

    /// Puts everything back: the pipeline could not start.
    pub(super) fn undo(&self, settings: &Settings) {
        for (from, to) in &self.moved {
            // What is there by now was made by a pipeline that never ran.
            for folder in LOGS.iter().map(|log| from.join(log)).chain([from.clone()]) {
                for name in settings.storage.list(&folder).unwrap_or_default() {
                    let _ = settings.storage.remove(&folder.join(name));
                }
            }
            if let Err(error) = settings.storage.rename(to, from) {
                tracing::error!(%error, folder = %to.display(), "cannot put it back");
            }
        }
    }
}

/// Gives the operators their state back. What should read and does not is damage.
pub(super) fn stages(stages: &mut [StageTask], restored: &mut Restored) -> Result<(), RunError> {
    for stage in stages {
        for node in &mut stage.chain.nodes {
            let Work::Operator(operator) = &mut node.work else { continue };
            let Some((version, pieces)) = restored.operators.remove(&*node.name) else { continue };
            for (group, piece) in pieces {
                let read = if version == operator.state_version() {
                    operator.restore(group, &piece)
                } else {
                    operator.migrate(version, group, &piece)
                };
                read.map_err(|error| {
                    RunError::State(format!(
                        "the state of operator `{}` in epoch {} is damaged (key group {group}): {error}; go back to an earlier \
                         epoch with `tocsin recover`, or give the operator another name to start it afresh",
                        node.name, restored.epoch
                    ))
                })?;
            }
        }
    }
    Ok(())
}
