//! Opening sources and sinks, and starting the tasks: nothing runs before everything is open.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use serde_json::Value as Json;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::deadlines::Deadlines;
use super::edge::{EDGE_MESSAGES, Level, Signal, Ticket};
use super::journal::{self, Events, Journal, OpenJournal};
use super::source::SourceDriver;
use super::spill::{self, Lanes, Shares, Spill};
use super::stage::{Relay, run_gate, run_stage};
use super::wiring::Wiring;
use super::{Deciding, Done, Failure, Report, RunError, Settings};
use crate::checkpoint::{Buffer, Checkpoints, LanePosition, Restored};
use crate::codec::Codec;
use crate::graph::{Intake, JournalOptions, SinkTask, SourceTask, StageTask, TaskId, WhenFull};
use crate::inquiry::Inquiry;
use crate::sink::{Answer, Connected, Deliveries, Inputs, Queued, Rejected, Sink, SinkContext, SinkInput, Till};
use crate::source::{Positions, Source, SourceContext};
use crate::store::log::{Log, SEGMENT_BYTES};
use crate::tally::Book;
use crate::time::Timestamp;
use crate::watermark::SourceWatermark;

/// How many events of a source may wait for its driver.
const SOURCE_EVENTS: usize = 2;

/// A source that is open, with what it is run with.
pub(super) struct OpenSource {
    source: Box<dyn Source>,
    context: SourceContext,
    driver: SourceDriver,
    journal: Option<Journal>,
    barriers: mpsc::Sender<Arc<Ticket>>,
}

/// A sink that is open.
pub(super) struct OpenSink {
    name: Arc<str>,
    sink: Box<dyn Sink>,
    context: SinkContext,
    relay: Option<Relay>,
    buffer: Option<OpenBuffer>,
}

/// The buffer of a sink, with its log open.
struct OpenBuffer {
    log: Log,
    restored: Buffer,
    /// What the sink is opened with, and how many records it holds in that.
    state: Option<Bytes>,
    held: u64,
    lanes: Lanes,
    shares: Shares,
    max_disk: u64,
    input: mpsc::Receiver<Queued>,
    /// To the sink.
    queue: mpsc::Sender<Queued>,
    complete: watch::Receiver<(u64, u64)>,
}

/// Who is told that an epoch is complete for a sink: its queue, or its buffer together with what that need not hold any more.
pub(super) enum Told {
    Sink(mpsc::Sender<Queued>),
    Buffer(watch::Sender<(u64, u64)>),
}

pub(super) struct Runner<'a> {
    pub settings: &'a Settings,
    pub stop: CancellationToken,
    pub drain: CancellationToken,
    pub set: JoinSet<Result<Done, Failure>>,
    pub reports: mpsc::Sender<Report>,
    pub sinks: Vec<Told>,
    pub sink_names: Vec<Arc<str>>,
    pub barriers: Vec<mpsc::Sender<Arc<Ticket>>>,
    /// By sink: where its relay is told about barriers and the end.
    pub relays: Vec<Option<mpsc::Sender<Signal>>>,
    /// By sink: what it has counted.
    pub tills: Vec<Till>,
    /// By source that has one: what its journal need not hold any more.
    pub journals: BTreeMap<Arc<str>, watch::Sender<u64>>,
    /// By source: where it is told what the last complete epoch holds.
    pub completed: Vec<(Arc<str>, watch::Sender<Arc<Positions>>)>,
    pub hurry: Arc<Notify>,
    /// What the stages wait for.
    pub deadlines: Arc<Deadlines>,
    pub activity: Arc<AtomicU64>,
}

impl Runner<'_> {
    /// Opens everything, the sinks first.
    pub async fn open(
        &mut self,
        sources: Vec<SourceTask>,
        sinks: Vec<SinkTask>,
        wiring: &Wiring,
        restored: &mut Restored,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<(Vec<OpenSource>, Vec<OpenSink>), RunError> {
        let codecs = sources.iter().map(|task| (Arc::clone(&task.name), Arc::clone(&task.intake.options.codec)));
        let codecs = codecs.collect();
        let sinks = self.open_sinks(sinks, wiring, restored, &codecs).await?;
        let sources = self.open_sources(sources, wiring, restored, checkpoints).await?;
        Ok((sources, sinks))
    }

    async fn open_sinks(
        &mut self,
        tasks: Vec<SinkTask>,
        wiring: &Wiring,
        restored: &mut Restored,
        codecs: &BTreeMap<Arc<str>, Arc<dyn Codec>>,
    ) -> Result<Vec<OpenSink>, RunError> {
        let mut open = Vec::new();
        for (index, task) in tasks.into_iter().enumerate() {
            let SinkTask { name, mut sink, chain, rejected, failed, metrics, buffer_bytes, when_full } = task;
            let data_dir = self.folder("sinks", &name)?;
            let (letters_sender, letters) = mpsc::channel(64);
            let (signals_sender, signals) = mpsc::channel(4);
            let connected = Connected { rejected: !rejected.is_empty(), failed: !failed.is_empty() };
            let is_connected = connected.rejected || connected.failed;
            let till = Till::open(&metrics);
            let mut input = wiring.queued(index).expect("every sink has its queue");
            let buffer = restored.buffers.get(&*name).copied();
            let epoch = restored.epoch;
            let account = restored.ledger.as_ref().and_then(|ledger| ledger.components.get(&*name));
            // The ledger counts what is in the buffer as held by the sink.
            let held = account.map_or(0, |account| account.held).saturating_sub(buffer.unwrap_or_default().records);
            let mut buffer =
                self.open_buffer(&name, when_full, buffer, epoch).await?.map(|(log, restored, max_disk)| {
                    let (queue, queued) = mpsc::channel(EDGE_MESSAGES);
                    let (complete_sender, complete) = watch::channel((0, 0));
                    self.sinks.push(Told::Buffer(complete_sender));
                    let input = std::mem::replace(&mut input, queued);
                    let (lanes, shares) = (Lanes::new(codecs.clone()), Shares::of(buffer_bytes));
                    OpenBuffer { log, restored, state: None, held, lanes, shares, max_disk, input, queue, complete }
                });
            if buffer.is_none() {
                self.sinks.push(Told::Sink(wiring.queue(index)));
            }
            let context = SinkContext {
                name: Arc::clone(&name),
                restored: restored.sinks.remove(&*name),
                data_dir,
                clock: Arc::clone(&self.settings.clock),
                storage: Arc::clone(&self.settings.storage),
                health: self.settings.health.clone(),
                metrics: metrics.clone(),
                stop: self.drain.clone(),
                input: Inputs::new(input, metrics.clone()),
                rejected: Rejected::new(letters_sender, connected, Arc::clone(&name), metrics, &till),
                deliveries: Deliveries::logged(
                    self.settings.status.deliveries.clone(),
                    Arc::clone(&name),
                    Arc::clone(&self.settings.clock),
                ),
            };
            if let Some(buffer) = &mut buffer {
                buffer.state.clone_from(&context.restored);
            }
            sink.open(&context)
                .await
                .map_err(|error| RunError::Component { component: name.to_string(), message: error.to_string() })?;
            let outlets = wiring.outlets(TaskId::Sink(index));
            let book = Book::of_chain(&chain);
            let relay = is_connected.then(|| Relay {
                sink: Arc::clone(&name),
                letters,
                chain,
                rejected,
                failed,
                outlets,
                signals,
                reports: self.reports.clone(),
                book,
                handed: [0; 2],
            });
            self.tills.push(till);
            self.sink_names.push(Arc::clone(&name));
            self.relays.push(is_connected.then_some(signals_sender));
            open.push(OpenSink { name, sink, context, relay, buffer });
        }
        Ok(open)
    }

    async fn open_sources(
        &mut self,
        tasks: Vec<SourceTask>,
        wiring: &Wiring,
        restored: &mut Restored,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Vec<OpenSource>, RunError> {
        let mut open = Vec::new();
        for (number, task) in tasks.into_iter().enumerate() {
            let SourceTask { name, mut source, intake, journal, metrics } = task;
            let (was_there, positions) = match restored.sources.remove(&*name) {
                Some(positions) => (true, positions),
                None => (false, BTreeMap::new()),
            };
            let options = &intake.options;
            let mut watermark = SourceWatermark::new(options.idle_timeout, options.out_of_order);
            for (partition, lane) in &positions {
                watermark.restore(partition, Timestamp(lane.seen));
            }
            if source.awaits_lanes() {
                watermark.await_lanes();
            }
            let (events_sender, events) = mpsc::channel(SOURCE_EVENTS);
            let data_dir = self.folder("sources", &name)?;
            let mut lanes: BTreeMap<String, Json> =
                positions.iter().map(|(partition, lane)| (partition.clone(), lane.position.clone())).collect();
            let journal_position = restored.journals.get(&*name).copied();
            let (events, journal) = match self.open_journal(&name, journal, journal_position, &intake).await? {
                None => (Events::Direct(events), None),
                Some((opened, is_kept, max_bytes)) => {
                    for (partition, position) in opened.positions {
                        match position {
                            Some(position) => drop(lanes.insert(partition, position)),
                            None => drop(lanes.remove(&partition)),
                        }
                    }
                    let (output, journaled) = mpsc::channel(SOURCE_EVENTS);
                    let kept = checkpoints.map_or(0, |checkpoints| checkpoints.journal_floor(&name));
                    let (floor_sender, floor) = watch::channel(kept);
                    self.journals.insert(Arc::clone(&name), floor_sender);
                    let journal = Journal {
                        source: Arc::clone(&name),
                        codec: Arc::clone(&intake.options.codec),
                        log: Some(opened.log),
                        from: opened.from,
                        is_kept,
                        max_bytes,
                        input: events,
                        output,
                        floor,
                        activity: Arc::clone(&self.activity),
                        clock: Arc::clone(&self.settings.clock),
                        metrics: metrics.clone(),
                        gauge: self.settings.metrics.journal_bytes.with_label_values(&[&*name]),
                        health: self.settings.health.clone(),
                    };
                    (Events::Journaled(journaled), Some(journal))
                }
            };
            let (barriers_sender, barriers) = mpsc::channel(1);
            let (completed_sender, completed) = watch::channel(Arc::default());
            self.completed.push((Arc::clone(&name), completed_sender));
            let context = SourceContext {
                name: Arc::clone(&name),
                codec: Arc::clone(&options.codec),
                out_of_order: options.out_of_order,
                records: options.records.clone(),
                positions: lanes,
                completed,
                restored: was_there,
                once: self.settings.once,
                data_dir,
                clock: Arc::clone(&self.settings.clock),
                storage: Arc::clone(&self.settings.storage),
                health: self.settings.health.clone(),
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
                book: Book::of_intake(&intake),
                intake,
                outlets: wiring.outlets(TaskId::Source(number)),
                events,
                barriers,
                reports: self.reports.clone(),
                clock: Arc::clone(&self.settings.clock),
                watermark,
                positions,
                journal: journal.as_ref().map(|journal| journal.from),
                parallel: self.settings.threads.max(1) * 2,
                hurry: Arc::clone(&self.hurry),
                deadlines: Arc::clone(&self.deadlines),
                health: self.settings.health.clone(),
                stalled: BTreeSet::new(),
                activity: Arc::clone(&self.activity),
                is_stopping: Box::new(move || stop.is_cancelled()),
            };
            open.push(OpenSource { source, context, driver, journal, barriers: barriers_sender });
        }
        Ok(open)
    }

    /// The journal of a source: also of one that has none any more, but left something in it. With whether what comes is
    /// kept in it, and its bound.
    async fn open_journal(
        &self,
        name: &Arc<str>,
        options: Option<JournalOptions>,
        from: Option<u64>,
        intake: &Intake,
    ) -> Result<Option<(OpenJournal, bool, u64)>, RunError> {
        if options.is_none() && from.is_none() {
            return Ok(None);
        }
        let Some(folder) = self.folder("sources", name)? else {
            if options.is_some_and(|options| options.is_asked_for) {
                return Err(RunError::Start(format!(
                    "the source `{name}` has `journal = true`, and there is nowhere to keep it; give [daemon] a data_dir"
                )));
            }
            return Ok(None);
        };
        let (storage, folder) = (Arc::clone(&self.settings.storage), folder.join(journal::FOLDER));
        let max_bytes = options.map_or(u64::MAX, |options| options.max_bytes);
        let (source, codec) = (Arc::clone(name), Arc::clone(&intake.options.codec));
        let opening =
            tokio::task::spawn_blocking(move || journal::open(storage, &folder, max_bytes, from, &source, &codec));
        let opened = opening.await.expect("opening a journal does not panic");
        let opened = opened.map_err(|message| RunError::Component { component: name.to_string(), message })?;
        Ok(Some((opened, options.is_some(), max_bytes)))
    }

    /// The buffer of a sink that continues on disk; also of one that no longer does, but left something there. With what
    /// the checkpoint says of it, and its bound.
    async fn open_buffer(
        &self,
        name: &Arc<str>,
        when_full: WhenFull,
        restored: Option<Buffer>,
        epoch: u64,
    ) -> Result<Option<(Log, Buffer, u64)>, RunError> {
        let max_disk = match when_full {
            WhenFull::Spill { max_disk } => max_disk,
            WhenFull::Block | WhenFull::DropNewest if restored.is_some_and(|buffer| buffer.from < buffer.to) => 0,
            WhenFull::Block | WhenFull::DropNewest => return Ok(None),
        };
        let Some(folder) = self.folder("sinks", name)? else {
            return Err(RunError::Start(format!(
                "the sink `{name}` has `buffer.when_full = \"spill\"`, and there is nowhere to write; give [daemon] a data_dir"
            )));
        };
        let (storage, folder) = (Arc::clone(&self.settings.storage), folder.join(spill::FOLDER));
        // Several segments, so that there is always one to delete.
        let segment_bytes = SEGMENT_BYTES.min(max_disk / 8);
        let mut restored = restored.unwrap_or_default();
        // A state from before there was the buffer is of an epoch's barrier.
        restored.barrier = restored.barrier.max(epoch);
        let opening = tokio::task::spawn_blocking(move || Log::open(storage, &folder, segment_bytes, restored.to));
        let opened = opening.await.expect("opening a log does not panic");
        let (log, _) =
            opened.map_err(|error| RunError::Component { component: name.to_string(), message: error.to_string() })?;
        Ok(Some((log, restored, max_disk)))
    }

    /// Tells the sinks that an epoch is complete, and the journals and buffers what they need not hold any more.
    pub fn tell_complete(&self, epoch: u64, checkpoints: &Checkpoints) {
        for (sink, told) in self.sink_names.iter().zip(&self.sinks) {
            match told {
                // A sink whose queue is full hears of the next one.
                Told::Sink(queue) => drop(queue.try_send(Queued::free(SinkInput::Committed { epoch }))),
                Told::Buffer(complete) => drop(complete.send_replace((epoch, checkpoints.buffer_floor(sink)))),
            }
        }
        self.tell_journals(checkpoints);
    }

    /// Tells the sources how far an epoch that is complete has come, where `decider` does not tell it to whom it concerns.
    pub fn tell_sources<'a>(
        &self,
        positions: impl Iterator<Item = (&'a str, &'a BTreeMap<String, LanePosition>)>,
        decider: Option<&Deciding>,
    ) {
        let is_untold = |position: &Json| !decider.is_some_and(|it| it.decider.tells(position));
        if let Some(completed) = &self.settings.completed {
            let all = positions.flat_map(|(_, lanes)| lanes.values().map(|lane| lane.position.clone()));
            completed.send_replace(Arc::new(all.filter(is_untold).collect()));
            return;
        }
        for (source, lanes) in positions {
            let Some((_, completed)) = self.completed.iter().find(|(name, _)| &**name == source) else { continue };
            let lanes = lanes.iter().map(|(partition, lane)| (partition.clone(), lane.position.clone()));
            completed.send_replace(Arc::new(lanes.filter(|(_, position)| is_untold(position)).collect()));
        }
    }

    /// Tells the journals what they need not hold any more.
    fn tell_journals(&self, checkpoints: &Checkpoints) {
        for (source, floor) in &self.journals {
            floor.send_replace(checkpoints.journal_floor(source));
        }
    }

    fn folder(&self, kind: &str, name: &str) -> Result<Option<PathBuf>, RunError> {
        let Some(data_dir) = &self.settings.data_dir else { return Ok(None) };
        let folder = data_dir.join(kind).join(name);
        self.settings
            .storage
            .create_dir(&folder)
            .map_err(|error| RunError::Start(format!("cannot make {}: {error}", folder.display())))?;
        Ok(Some(folder))
    }

    pub fn start(
        &mut self,
        sources: Vec<OpenSource>,
        stages: Vec<(StageTask, mpsc::Receiver<Inquiry>)>,
        sinks: Vec<OpenSink>,
        wiring: Wiring,
    ) -> Vec<Level> {
        for (index, open) in sinks.into_iter().enumerate() {
            let OpenSink { name, sink, context, relay, buffer } = open;
            let till = self.tills[index].clone();
            match buffer {
                None => drop(self.set.spawn(async move {
                    let state = sink.run(context).await.map_err(|error| Failure::of(&name, &error))?;
                    Ok(Done::Sink(index, Answer { state, account: till.account(), buffer: None }))
                })),
                Some(buffer) => self.start_buffered(index, name, sink, context, buffer),
            }
            if let Some(inbox) = wiring.inbox(TaskId::Sink(index)) {
                self.set.spawn(run_gate(inbox, wiring.queue(index), wiring.door(index)));
            }
            if let Some(relay) = relay {
                self.set.spawn(relay.run());
            }
        }
        for (index, (stage, inquiries)) in stages.into_iter().enumerate() {
            // A stage that nothing feeds would wait for ever; a checked configuration has none.
            if let Some(inbox) = wiring.inbox(TaskId::Stage(index)) {
                let outlets = wiring.outlets(TaskId::Stage(index));
                let metrics = self.settings.metrics.clone();
                let deadlines = Arc::clone(&self.deadlines);
                let tell = move |deadline| deadlines.tell(index, deadline);
                let reports = self.reports.clone();
                self.set.spawn(run_stage(stage, inbox, inquiries, outlets, reports, metrics, tell));
            }
        }
        for open in sources {
            let OpenSource { source, context, driver, journal, barriers } = open;
            self.barriers.push(barriers);
            let name = Arc::clone(&driver.name);
            self.set.spawn(async move {
                source.run(context).await.map_err(|error| Failure::of(&name, &error))?;
                Ok(Done::Source)
            });
            if let Some(journal) = journal {
                self.set.spawn(async move { journal.run().await.map(|()| Done::Task) });
            }
            self.set.spawn(async move { driver.run().await.map(|()| Done::Task) });
        }
        wiring.into_levels()
    }

    fn start_buffered(
        &mut self,
        number: usize,
        name: Arc<str>,
        sink: Box<dyn Sink>,
        context: SinkContext,
        buffer: OpenBuffer,
    ) {
        let OpenBuffer { log, restored, state, held, lanes, shares, max_disk, input, queue, complete } = buffer;
        let (metrics, taken) = (context.metrics.clone(), context.input.progress());
        let mut running = JoinSet::new();
        running.spawn(sink.run(context));
        let gauges = &self.settings.metrics;
        let spill = Spill {
            number,
            lanes,
            shares,
            max_disk,
            input,
            complete,
            queue,
            running,
            taken,
            till: self.tills[number].clone(),
            metrics,
            health: self.settings.health.clone(),
            memory_gauge: gauges.buffer_bytes.with_label_values(&[&*name]),
            disk_gauge: gauges.buffer_disk_bytes.with_label_values(&[&*name]),
            sink: name,
        };
        self.set.spawn(spill.run(log, restored, state, held));
    }

    pub fn sink_name(&self, number: usize) -> String {
        self.sink_names[number].to_string()
    }
}
