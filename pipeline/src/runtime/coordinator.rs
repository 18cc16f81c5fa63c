//! Takes the checkpoints and leads the pipeline to its end.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::edge::{Level, Signal, Ticket};
use super::offload::offload;
use super::start::Runner;
use super::{
    AUDIT, Accounts, CHECKPOINTS, Deciding, Done, Failure, Report, RunError, Settings, StateReport, Suspensions,
};
use crate::checkpoint::{CheckpointError, Checkpoints, Restored, Snapshot};
use crate::evolution::{Facts, Role};
use crate::fault::{self, Defect};
use crate::health::Trouble;
use crate::ledger::{Account, Audit, Ledger, LinkAccount};
use crate::operator::Reason;
use crate::sink::{Answer, Prepared, SinkState};

/// A checkpoint that takes longer is told about; the one before stays the truth meanwhile.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the sinks may take to deliver what they have before a reload; what they have not then is left to the next graph.
const SUSPEND_PATIENCE: Duration = Duration::from_secs(1);
/// Checkpoints that clients wait for are taken at most this often.
const HURRIED_INTERVAL: Duration = Duration::from_millis(20);

/// What a decider has noted does not last for ever where nothing is added to it (Kafka forgets the offsets of a group after a
/// week), so epochs are decided anew at least so often.
const DECIDED_ANEW: Duration = Duration::from_secs(12 * 3600);

/// Whether the pipeline can go on after a task has ended.
enum Health {
    Well,
    /// A task writes to one that is gone.
    Broken,
}

/// Takes the checkpoints and leads the pipeline to its end.
pub(super) struct Coordinator {
    /// How many sources, stages and sinks there are.
    pub counts: (usize, usize, usize),
    pub checkpoints: Option<Checkpoints>,
    pub reports: mpsc::Receiver<Report>,
    /// How many sources have come to an end, their own or because they were told to stop.
    pub ended: usize,
    /// A task has failed: no barrier can pass any more.
    pub is_broken: bool,
    /// What each sink said last.
    pub sink_states: Vec<Option<Bytes>>,
    /// How many stages and relays there are: what counts and is neither a source nor a sink.
    pub counted: usize,
    pub books: Books,
    pub levels: Vec<Level>,
    /// Clients that wait for their records to be in a complete epoch, of epochs that could not be written.
    pub waiting: Vec<oneshot::Sender<()>>,
    /// The last epoch did not become complete: the next is due even if nothing happens.
    pub is_behind: bool,
    /// Where it is asked to leave everything to another graph.
    pub suspensions: Suspensions,
    /// What the last checkpoint before the end holds, all of it: collected when another graph goes on from it.
    pub left: Option<Snapshot>,
    /// What gives the state its meaning.
    pub facts: Facts,
    /// The epoch that the run began with.
    pub epoch_before: u64,
    /// Who decides that an epoch is the truth, where that is not the checkpoint itself.
    pub decider: Option<Deciding>,
}

/// What a graph that goes on starts from.
type Left = (Option<Checkpoints>, Restored);

/// What the counts of the tasks are put together with.
pub(super) struct Books {
    /// What had become of records when the run began.
    pub restored: Ledger,
    pub links: Vec<LinkAccount>,
    /// What sources said at the last barrier, after which they count nothing.
    pub of_sources: Accounts,
    /// How many records each component had dropped at the last barrier, for a reason that somebody should know of.
    pub dropped: BTreeMap<(Arc<str>, &'static str), u64>,
}

impl Books {
    /// Tells of records that were dropped since the last barrier because a component could not keep or take them.
    fn tell_drops(&mut self, settings: &Settings, others: &Accounts) {
        let mut sums = BTreeMap::new();
        for (name, account) in self.of_sources.iter().chain(others) {
            for reason in [Reason::StateFull.as_str(), Reason::Poison.as_str()] {
                let sum: &mut u64 = sums.entry((Arc::clone(name), reason)).or_default();
                *sum += account.dropped.get(reason).copied().unwrap_or(0);
            }
        }
        for (of, sum) in &sums {
            let more = sum.saturating_sub(self.dropped.get(of).copied().unwrap_or(0));
            let (name, is_poison) = (&of.0, of.1 == Reason::Poison.as_str());
            match more {
                0 if is_poison => {}
                0 => settings.health.clear(Trouble::StateFull, name),
                more if is_poison => {
                    let message = format!("{more} records made it fail, and are passed over");
                    settings.health.note(Trouble::PoisonSkipped, name, message);
                }
                more => {
                    let message = format!("{more} records were dropped since the last checkpoint: the state is full");
                    settings.health.raise(Trouble::StateFull, name, message);
                }
            }
        }
        self.dropped = sums;
    }

    /// Closes the books of an epoch: puts together what the tasks have counted, checks it, and publishes it.
    fn close(&mut self, settings: &Settings, epoch: u64, others: Accounts) -> Ledger {
        self.tell_drops(settings, &others);
        let counted = self.of_sources.iter().cloned().chain(others);
        let ledger = self.restored.and(&self.links, counted.map(|(name, account)| (name.to_string(), account)));
        let imbalances = ledger.imbalances();
        let gauge = &settings.metrics.audit_imbalance;
        if gauge.get() == 0 {
            for found in &imbalances {
                tracing::error!(epoch, component = found.component, "the audit does not balance: {}", found.equation);
            }
        }
        gauge.set(imbalances.len() as i64);
        let wrong = imbalances.first().map(|found| format!("{}: {}", found.component, found.equation));
        settings.health.set(Trouble::Imbalance, AUDIT, wrong);
        let audit = Audit { epoch, taken_at: settings.clock.now().to_string(), ledger: ledger.clone() };
        *settings.status.audit.lock().expect("no holder of this lock panics") = Some(Arc::new(audit));
        ledger
    }
}

impl Coordinator {
    /// What it leaves to another graph, if it was suspended.
    pub async fn run(mut self, runner: &mut Runner<'_>) -> Result<Option<Left>, RunError> {
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
        let mut decided_at = runner.settings.clock.monotonic();
        while self.ended < self.counts.0 && !self.is_broken {
            tokio::select! {
                report = self.reports.recv() => self.between(report),
                _ = ticks.tick() => self.levels.iter().for_each(Level::measure),
                () = &mut overdue => {
                    if self.left.is_some() {
                        return Err(RunError::State("the sources did not stop in time for the reload".to_owned()));
                    }
                    tracing::warn!("the sources did not stop in time; what is under way is read again after the next start");
                    return Ok(None);
                }
                Some(request) = self.suspensions.recv(), if self.left.is_none() && !runner.stop.is_cancelled() => {
                    // A request that is withdrawn has no one to answer.
                    if request.send(()).is_ok() {
                        self.left = Some(Snapshot::default());
                        runner.stop.cancel();
                    }
                    continue;
                }
                () = hurry.notified() => tokio::time::sleep(HURRIED_INTERVAL).await,
                done = runner.set.join_next(), if !runner.set.is_empty() => {
                    match self.joined(runner, done)? {
                        Health::Well => continue,
                        Health::Broken => return self.explain(runner).await.map(|()| None),
                    }
                }
            }
            let now = activity.load(Ordering::Relaxed);
            let is_old =
                self.decider.is_some() && runner.settings.clock.monotonic().saturating_sub(decided_at) > DECIDED_ANEW;
            // An idle daemon writes nothing.
            if (now != covered || self.is_behind || is_old) && self.ended < self.counts.0 {
                covered = now;
                decided_at = runner.settings.clock.monotonic();
                self.checkpoint(runner).await?;
            }
        }
        if self.is_broken {
            return Ok(None);
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
            None | Some(Ok(Ok(Done::Source | Done::Task | Done::Counted(_)))) => Ok(Health::Well),
            Some(Ok(Ok(Done::Sink(..)))) => {
                // A sink whose reader has gone away (`tocsin run … | head`): the pipeline has nowhere to write.
                runner.stop.cancel();
                Ok(Health::Well)
            }
            Some(Ok(Err(Failure { message: None, .. }))) => Ok(Health::Broken),
            Some(Ok(Err(Failure { component, message: Some(message), panicked: Some(held) }))) => {
                Err(RunError::Poisoned { component, message, held })
            }
            Some(Ok(Err(Failure { component, message: Some(message), .. }))) => {
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
            let full = self.left.is_some();
            if let Some((snapshot, ticket)) = self.pass_barrier(runner, 0, full).await? {
                runner.tell_sources(snapshot.sources.iter().map(|(source, lanes)| (source.as_str(), lanes)), None);
                self.left = self.left.is_some().then_some(snapshot);
                acknowledge(&mut ticket.acknowledgements.lock().expect("no holder of this lock panics"));
            }
            return Ok(());
        };
        let epoch = checkpoints.next_epoch();
        let full = checkpoints.wants_full() || self.left.is_some();
        let begun = runner.settings.clock.monotonic();
        self.is_behind = true;
        fault::point("checkpoint.barrier");
        let Some((snapshot, ticket)) = self.pass_barrier(runner, epoch, full).await? else { return Ok(()) };
        fault::point("checkpoint.collected");
        if self.left.is_some() {
            self.left = Some(snapshot.clone());
        }
        let is_written = self.write(runner, epoch, snapshot).await?;
        self.is_behind = !is_written;
        if self.checkpoints.is_some() {
            let took = runner.settings.clock.monotonic().saturating_sub(begun);
            runner.settings.metrics.checkpoint_duration.observe(took.as_secs_f64());
        }
        fault::point("checkpoint.told");
        let waiting = std::mem::take(&mut *ticket.acknowledgements.lock().expect("no holder of this lock panics"));
        self.waiting.extend(waiting);
        if is_written || fault::is_planted(Defect::EarlyAcknowledgement) {
            acknowledge(&mut self.waiting);
        }
        // Those that have given up need not be told; the others are with the next epoch.
        self.waiting.retain(|client| !client.is_closed());
        Ok(())
    }

    /// Writes a snapshot, has it decided, and tells the sinks. A failure to write is told and counted: the pipeline stays up on
    /// the epoch before.
    async fn write(&mut self, runner: &mut Runner<'_>, epoch: u64, snapshot: Snapshot) -> Result<bool, RunError> {
        let Some(mut checkpoints) = self.checkpoints.take() else { return Ok(false) };
        let now = runner.settings.clock.now();
        let written = offload(move || {
            let outcome = checkpoints.write(epoch, snapshot, now);
            (checkpoints, outcome)
        });
        let (checkpoints, outcome) = written.await.expect("writing a checkpoint does not panic");
        let is_decided = match (&self.decider, &outcome) {
            (Some(deciding), Ok(_)) => is_decided(deciding, epoch, &checkpoints, runner).await?,
            (Some(deciding), Err(_)) => {
                deciding.decider.abandon(epoch);
                false
            }
            (None, _) => true,
        };
        if outcome.is_ok() && is_decided {
            runner.tell_complete(epoch, &checkpoints);
            runner.tell_sources(checkpoints.positions(), self.decider.as_ref());
        }
        self.checkpoints = Some(checkpoints);
        if outcome.is_ok() && !is_decided {
            self.is_broken = true;
            return Ok(false);
        }
        let (metrics, health) = (&runner.settings.metrics, &runner.settings.health);
        match outcome {
            Ok(bytes) => {
                for over in [Trouble::CheckpointFailed, Trouble::CheckpointDamaged] {
                    health.clear(over, CHECKPOINTS);
                }
                metrics.checkpoint_bytes.set(bytes as i64);
                metrics.checkpoint_epoch.set(epoch as i64);
                fault::point("checkpoint.told");
                Ok(true)
            }
            Err(error @ CheckpointError::Superseded { .. }) => {
                Err(RunError::Superseded { component: CHECKPOINTS.to_owned(), message: error.to_string() })
            }
            Err(error) => {
                metrics.checkpoint_failures.inc();
                health.raise(Trouble::CheckpointFailed, CHECKPOINTS, &error);
                tracing::error!(%error, epoch, "a checkpoint could not be written; the one before stays, and the next is tried");
                Ok(false)
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
        fault::point("checkpoint.barrier");
        let mut prepared = Vec::new();
        for number in 0..self.counts.2 {
            let (sender, receiver) = Prepared::new(runner.tills[number].clone());
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
            let till = runner.tills[number].clone();
            runner.set.spawn(async move {
                // A sink that is gone says nothing any more: its last state stays.
                let gone = || Answer { state: SinkState::Unchanged, account: till.account(), buffer: None };
                let answer = receiver.await.unwrap_or_else(|_| gone());
                if let Some(relay) = relay {
                    let _ = relay.send(Signal::Barrier(ticket)).await;
                }
                let _ = reports.send(Report::Sink { number, answer }).await;
                Ok(Done::Task)
            });
        }
        let mut expected = self.counts.0 + self.counted + self.counts.2;
        self.books.of_sources.clear();
        let (mut counted, mut buffered) = (Accounts::new(), Vec::new());
        for barriers in &runner.barriers {
            if barriers.send(Arc::clone(&ticket)).await.is_err() {
                return Ok(None);
            }
        }
        let mut snapshot = Snapshot::default();
        let mut failed = None;
        let mut patience = std::pin::pin!(tokio::time::sleep(CHECKPOINT_TIMEOUT));
        let (stop, shutdown_timeout) = (runner.stop.clone(), runner.settings.shutdown_timeout);
        let overdue = async move {
            stop.cancelled().await;
            tokio::time::sleep(shutdown_timeout).await;
        };
        let mut overdue = std::pin::pin!(overdue);
        while expected > 0 {
            tokio::select! {
                () = &mut overdue => {
                    // A sink that cannot write (a full disk) would hold the end for ever; what it has not written is read
                    // again after the next start.
                    tracing::warn!(epoch, "the last checkpoint did not come in time; the one before stays");
                    self.is_broken = true;
                    return Ok(None);
                }
                report = self.reports.recv() => match report {
                    None => return Ok(None),
                    Some(Report::SourceEnded) => self.ended += 1,
                    Some(Report::Source { name, positions, journal, accounts }) => {
                        expected -= 1;
                        self.books.of_sources.extend(accounts);
                        if let Some(journal) = journal {
                            snapshot.journals.insert(name.to_string(), journal);
                        }
                        snapshot.sources.insert(name.to_string(), positions);
                    }
                    Some(Report::Relay { accounts }) => {
                        expected -= 1;
                        counted.extend(accounts);
                    }
                    Some(Report::Stage { operators, accounts }) => {
                        expected -= 1;
                        counted.extend(accounts);
                        for StateReport { name, version, pieces } in operators {
                            snapshot.operators.insert(name.to_string(), (version, pieces));
                        }
                    }
                    Some(Report::Sink { number, answer: Answer { state, account, buffer } }) => {
                        expected -= 1;
                        if let Some(buffer) = buffer {
                            buffered.push(Arc::clone(&runner.sink_names[number]));
                            snapshot.buffers.insert(runner.sink_name(number), buffer);
                        }
                        counted.push((Arc::clone(&runner.sink_names[number]), account));
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
                    let message = format!("checkpoint {epoch} is waited for: something downstream is slow or away");
                    runner.settings.health.raise(Trouble::CheckpointSlow, CHECKPOINTS, message);
                    tracing::warn!(epoch, "a checkpoint takes long: something downstream is slow or away");
                    patience.set(tokio::time::sleep(CHECKPOINT_TIMEOUT));
                }
            }
        }
        runner.settings.health.clear(Trouble::CheckpointSlow, CHECKPOINTS);
        count_letters(&buffered, &mut counted);
        snapshot.ledger = Some(self.books.close(runner.settings, epoch, counted));
        if let Some((sink, reason)) = failed {
            runner.settings.metrics.checkpoint_failures.inc();
            tracing::error!(
                sink = runner.sink_name(sink),
                reason,
                "a sink could not prepare; the checkpoint before stays"
            );
            let message = format!("sink {} could not prepare: {reason}", runner.sink_name(sink));
            runner.settings.health.raise(Trouble::CheckpointFailed, CHECKPOINTS, message);
            if let Some(checkpoints) = &mut self.checkpoints {
                checkpoints.hold(snapshot);
            }
            if let Some(deciding) = &self.decider {
                deciding.decider.abandon(epoch);
            }
            return Ok(None);
        }
        fault::point("checkpoint.collected");
        Ok(Some((snapshot, ticket)))
    }

    /// All sources have stopped: a last checkpoint, then the end, then what the sinks said last.
    async fn finish(mut self, runner: &mut Runner<'_>) -> Result<Option<Left>, RunError> {
        let is_suspended = self.left.is_some();
        self.checkpoint(runner).await?;
        if self.is_broken {
            return match is_suspended {
                true => Err(RunError::State("the last checkpoint before the reload did not come in time".to_owned())),
                false => Ok(None),
            };
        }
        if is_suspended {
            fault::point("reload.suspended");
        }
        runner.barriers.clear();
        // What is not delivered stays in the state: another graph goes on with it at once.
        let patience = if is_suspended { SUSPEND_PATIENCE } else { runner.settings.shutdown_timeout };
        let deadline = tokio::time::sleep(patience);
        let mut deadline = std::pin::pin!(deadline);
        let mut lost_patience = std::pin::pin!(tokio::time::sleep(patience + runner.settings.shutdown_timeout));
        let (mut is_overdue, mut is_whole) = (false, true);
        let mut failed = None;
        let mut snapshot = Snapshot::default();
        let (mut sinks, mut counted, mut accounts) = (0, 0, Accounts::new());
        let mut buffered = Vec::new();
        // A relay tells those behind it before it tells its own end here.
        while sinks < self.counts.2 || counted < self.counted {
            tokio::select! {
                done = runner.set.join_next() => match done {
                    Some(Ok(Ok(Done::Counted(last)))) => {
                        counted += 1;
                        accounts.extend(last);
                    }
                    Some(Ok(Ok(Done::Sink(number, Answer { state, account, buffer })))) => {
                        sinks += 1;
                        if let Some(buffer) = buffer {
                            buffered.push(Arc::clone(&runner.sink_names[number]));
                            snapshot.buffers.insert(runner.sink_name(number), buffer);
                            if let Some(left) = &mut self.left {
                                left.buffers.insert(runner.sink_name(number), buffer);
                            }
                        }
                        accounts.push((Arc::clone(&runner.sink_names[number]), account));
                        match state {
                            SinkState::Unchanged => {}
                            SinkState::State(state) => {
                                self.sink_states[number] = Some(state.clone());
                                snapshot.sinks.insert(runner.sink_name(number), state);
                            }
                            SinkState::Failed(reason) => failed = Some((runner.sink_name(number), reason)),
                        }
                        if let Some(relay) = &runner.relays[number] {
                            let _ = relay.send(Signal::End).await;
                        }
                    }
                    None => break,
                    other => {
                        if let Health::Broken = self.joined(runner, other)? {
                            is_whole = false;
                            counted += 1;
                        }
                    }
                },
                () = &mut deadline, if !is_overdue => {
                    is_overdue = true;
                    if !is_suspended {
                        tracing::warn!("the time for draining is over; what is not delivered stays in the checkpoint");
                    }
                    runner.drain.cancel();
                }
                () = &mut lost_patience, if is_suspended => {
                    // Another graph must not write what a sink of this one may still be writing.
                    return Err(RunError::State("a sink did not come to its end for the reload".to_owned()));
                }
            }
        }
        if let Some((sink, reason)) = failed {
            // It may not have written what it was handed: positions behind that must not be kept.
            tracing::error!(
                sink,
                reason,
                "a sink could not finish; what it has not written is read again after the next start"
            );
            return match is_suspended {
                true => Err(RunError::State(format!("{sink} could not finish for the reload: {reason}"))),
                false => Ok(None),
            };
        }
        let known = runner.settings.status.audit.lock().expect("no holder of this lock panics").clone();
        let epoch = self.checkpoints.as_mut().map_or(0, Checkpoints::next_epoch);
        count_letters(&buffered, &mut accounts);
        if is_whole {
            let ledger = self.books.close(runner.settings, epoch, accounts);
            let imbalances = ledger.imbalances();
            self.books.restored = ledger.clone();
            match imbalances.len() {
                0 if is_suspended => {}
                0 => tracing::info!("every record is accounted for: {}", ledger.summary()),
                _ => tracing::error!(
                    imbalances = imbalances.len(),
                    "records are not accounted for: {}",
                    ledger.summary()
                ),
            }
            snapshot.ledger = known.is_none_or(|known| known.ledger != ledger).then_some(ledger);
        }
        let has_news = !snapshot.sinks.is_empty() || !snapshot.buffers.is_empty() || snapshot.ledger.is_some();
        let is_written = self.checkpoints.is_none() || !has_news || self.write(runner, epoch, snapshot).await?;
        // What another graph goes on from is in memory: it is written with its first epoch.
        if !is_written && !is_suspended {
            return Err(RunError::State("the last checkpoint could not be written; some output may repeat".to_owned()));
        }
        if !is_suspended {
            return Ok(None);
        }
        // Tasks that have said all they had to say: they close what they hold before another opens it.
        let _ = tokio::time::timeout(SUSPEND_PATIENCE, async { while runner.set.join_next().await.is_some() {} }).await;
        Ok(Some(self.leave(runner)))
    }

    /// Puts together what another graph goes on from.
    fn leave(self, runner: &Runner<'_>) -> Left {
        let Snapshot { sources, mut operators, journals, buffers, .. } = self.left.unwrap_or_default();
        for (_, pieces) in operators.values_mut() {
            pieces.retain(|_, piece| !piece.is_empty());
        }
        let names = runner.sink_names.iter().map(ToString::to_string);
        let sinks = names.zip(self.sink_states).filter_map(|(name, state)| Some((name, state?))).collect();
        let epoch = self.checkpoints.as_ref().map_or(0, Checkpoints::epoch).max(self.epoch_before);
        let mut facts = self.facts;
        for (name, fact) in &mut facts {
            fact.held = match fact.role {
                Role::Source => sources.get(name).map(|lanes| lanes.len() as u64),
                Role::Operator => operators.get(name).map(|(_, pieces)| pieces.len() as u64),
                Role::Sink => None,
            };
        }
        let ledger = Some(self.books.restored);
        let restored = Restored { epoch, sources, journals, operators, sinks, buffers, ledger, facts };
        (self.checkpoints, restored)
    }
}

/// Has an epoch decided whose checkpoint is durable; `false`: not in the time that is left before the end, so nobody knows.
async fn is_decided(
    deciding: &Deciding,
    epoch: u64,
    checkpoints: &Checkpoints,
    runner: &Runner<'_>,
) -> Result<bool, RunError> {
    fault::point("decider.commit");
    let mut commit = deciding.decider.commit(epoch, super::positions(checkpoints));
    let (stop, shutdown_timeout) = (&runner.stop, runner.settings.shutdown_timeout);
    let mut overdue = std::pin::pin!(async {
        stop.cancelled().await;
        tokio::time::sleep(shutdown_timeout).await;
    });
    let mut patience = std::pin::pin!(tokio::time::sleep(CHECKPOINT_TIMEOUT));
    loop {
        tokio::select! {
            committed = &mut commit => {
                runner.settings.health.clear(Trouble::CheckpointSlow, CHECKPOINTS);
                fault::point("decider.committed");
                return committed.map(|()| true).map_err(|error| RunError::decider(&deciding.sink, error));
            }
            () = &mut overdue => {
                tracing::warn!(epoch, "the last transaction was not committed in time; after the next start it is, or done again");
                return Ok(false);
            }
            () = &mut patience => {
                let message = format!("the transaction of epoch {epoch} is waited for: {} cannot commit it", deciding.sink);
                runner.settings.health.raise(Trouble::CheckpointSlow, CHECKPOINTS, message);
                patience.set(tokio::time::sleep(CHECKPOINT_TIMEOUT));
            }
        }
    }
}

/// A buffered sink may be counted as of an earlier barrier than the relay of its dead letters: those that were handed on are
/// those that were made.
fn count_letters(buffered: &[Arc<str>], accounts: &mut Accounts) {
    for sink in buffered {
        let of_sink = |(name, _): &&(Arc<str>, Account)| name == sink;
        let handed = accounts.iter().filter(of_sink).flat_map(|(_, account)| account.handed.values()).sum();
        // The relay's account of the sink is the one that has handed something on, if only nothing.
        let own = accounts.iter_mut().find(|(name, account)| name == sink && account.handed.is_empty());
        if let Some((_, account)) = own {
            account.made = handed;
        }
    }
}

fn acknowledge(waiting: &mut Vec<oneshot::Sender<()>>) {
    for client in waiting.drain(..) {
        // A client that has gone away does not wait any more.
        let _ = client.send(());
    }
}
