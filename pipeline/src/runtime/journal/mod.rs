//! The ingest journal: what a source that cannot read again has received is made durable before it is worked on, and its
//! clients are told so then. After a crash what is behind the checkpoint is read from here, as if it came in again.
//!
//! The task stands between a source and its driver. Whatever comes in while a group is being made durable is the next group.
//! While the disk is full or broken, clients that wait for an acknowledgement are refused and all others wait; it is tried
//! again, each time in a new segment, until it works.

mod record;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use serde_json::Value as Json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::record::Record;
use super::Failure;
use crate::codec::Codec;
use crate::fault::{self, Defect};
use crate::health::{Health, Trouble};
use crate::metrics::ComponentMetrics;
use crate::source::{Gone, SourceEvent};
use crate::store::Storage;
use crate::store::log::{Cursor, Log, LogError, SEGMENT_BYTES};
use crate::time::{Clock, Timestamp};

/// The folder of a journal, in that of its source.
pub(super) const FOLDER: &str = "journal";
/// So much is waited for where nobody waits for an acknowledgement, …
const GROUP_BYTES: usize = 64 << 10;
/// … and so long.
const GROUP_WAIT: Duration = Duration::from_millis(5);
/// How much may wait to be made durable; beyond it the source waits.
const WAITING_BYTES: usize = 4 << 20;
/// How many events may, however small they are.
const WAITING_EVENTS: usize = 4096;
/// How much is read back at once.
const REPLAY_BYTES: usize = 1 << 20;
/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a source told, on its way to the driver.
pub(super) struct Journaled {
    pub event: SourceEvent,
    /// When it came, where the event itself does not say.
    pub arrival: Option<Timestamp>,
    /// Where the journal goes on after it; `None` where it is not in one.
    pub next: Option<u64>,
}

/// Where a driver gets its events from.
pub(super) enum Events {
    Direct(mpsc::Receiver<SourceEvent>),
    Journaled(mpsc::Receiver<Journaled>),
}

impl Events {
    pub async fn recv(&mut self) -> Option<Journaled> {
        match self {
            Self::Direct(events) => {
                let event = events.recv().await?;
                Some(Journaled { event, arrival: None, next: None })
            }
            Self::Journaled(events) => events.recv().await,
        }
    }
}

/// A journal, opened.
pub(super) struct OpenJournal {
    pub log: Log,
    /// Where replaying begins.
    pub from: u64,
    /// The positions of the source's lanes at the journal's end, where they differ from the checkpoint's; `None`: forgotten.
    pub positions: BTreeMap<String, Option<Json>>,
}

/// Opens the journal in a folder. Blocks: everything behind the checkpoint is read, to see that it can be, and where the
/// source goes on.
pub(super) fn open(
    storage: Arc<dyn Storage>,
    folder: &Path,
    max_bytes: u64,
    from: Option<u64>,
    source: &Arc<str>,
    codec: &Arc<dyn Codec>,
) -> Result<OpenJournal, String> {
    // Several segments, so that there is always one to delete.
    let segment_bytes = SEGMENT_BYTES.min(max_bytes / 8);
    let (log, found) =
        Log::open(storage, folder, segment_bytes, from.unwrap_or(0)).map_err(|error| error.to_string())?;
    if found.torn > 0 {
        tracing::info!(%source, bytes = found.torn, "the end of the journal was being written when it was interrupted");
    }
    let from = from.unwrap_or_else(|| log.begin());
    let mut positions = BTreeMap::new();
    let mut cursor = Log::cursor(from);
    while let Some((position, record)) = log.next(&mut cursor).map_err(|error| error.to_string())? {
        match record::read(record, source, codec).map_err(|problem| unreadable(position, &problem))?.0 {
            SourceEvent::Block(lane, block) => {
                positions.insert(lane.partition.clone(), Some(block.position));
            }
            SourceEvent::Closed { lane, keep } => {
                positions.insert(lane.partition.clone(), keep);
            }
            _ => {}
        }
    }
    Ok(OpenJournal { log, from, positions })
}

fn unreadable(position: u64, problem: &str) -> String {
    format!(
        "record {position} of the journal cannot be used: {problem}; `tocsin recover` moves the journal aside, and what it holds is lost"
    )
}

/// What waits to be made durable.
struct Waiting {
    event: SourceEvent,
    arrival: Timestamp,
    /// `None`: it is not kept, and only its turn matters.
    record: Option<Record>,
    next: Option<u64>,
}

impl Waiting {
    fn is_acknowledged(&self) -> bool {
        matches!(&self.event, SourceEvent::Block(_, block) if block.acknowledgement.is_some())
    }

    fn acknowledge(&mut self) -> bool {
        let SourceEvent::Block(_, block) = &mut self.event else { return false };
        // A client that has gone away does not wait any more.
        block.acknowledgement.take().is_some_and(|acknowledgement| acknowledgement.send(()).is_ok())
    }
}

/// The disk does not take any more just now.
struct Outage {
    until: Instant,
    wait: Duration,
}

/// A group that is being made durable.
type Commit = JoinHandle<(Log, io::Result<()>)>;

/// The task of a journal.
pub(super) struct Journal {
    pub source: Arc<str>,
    pub codec: Arc<dyn Codec>,
    /// Away while a thread works with it.
    pub log: Option<Log>,
    /// Where replaying begins.
    pub from: u64,
    /// Whether what comes is kept; otherwise only what was is read back.
    pub is_kept: bool,
    pub max_bytes: u64,
    pub input: mpsc::Receiver<SourceEvent>,
    pub output: mpsc::Sender<Journaled>,
    /// What is before this is not needed any more.
    pub floor: watch::Receiver<u64>,
    /// Bumped so that checkpoints go on, and with them the floor, when the journal has become too large.
    pub activity: Arc<AtomicU64>,
    pub clock: Arc<dyn Clock>,
    pub metrics: ComponentMetrics,
    pub gauge: IntGauge,
    pub health: Health,
}

impl Journal {
    pub async fn run(mut self) -> Result<(), Failure> {
        self.replay().await?;
        let mut work = Work { waiting: Vec::new(), bytes: 0, since: None, is_open: true, outage: None };
        let mut commit: Option<(Commit, Vec<Waiting>)> = None;
        loop {
            if let Some(group) = self.due(&mut work, commit.is_some()) {
                match self.begin(group) {
                    Begun::Nothing(group) => self.hand_on(group).await?,
                    Begun::Commit(under_way, group) => commit = Some((under_way, group)),
                    Begun::Full(group) => {
                        self.failed(&mut work, group, "journal_full", &"it has reached its bound").await?
                    }
                }
                continue;
            }
            if !work.is_open && work.waiting.is_empty() && commit.is_none() {
                return Ok(());
            }
            let due = work.wakes_at();
            let has_room = work.bytes < WAITING_BYTES && work.waiting.len() < WAITING_EVENTS;
            tokio::select! {
                biased;
                done = finished(&mut commit) => {
                    let (_, group) = commit.take().expect("it was waited for");
                    let (log, outcome) = done.map_err(|error| Failure::bug(&self.source, &error))?;
                    self.log = Some(log);
                    match outcome {
                        Ok(()) => {
                            if work.outage.take().is_some() {
                                self.health.clear(Trouble::IngestJournal, &self.source);
                                tracing::info!(source = %self.source, "the journal can be written again");
                            }
                            self.durable(group).await?;
                        }
                        Err(error) => {
                            self.log.as_mut().expect("just put back").give_up();
                            self.failed(&mut work, group, "journal", &error).await?;
                        }
                    }
                }
                event = self.input.recv(), if work.is_open && has_room => match event {
                    Some(event) => self.take(event, &mut work),
                    None => work.is_open = false,
                },
                Ok(()) = self.floor.changed(), if commit.is_none() => self.trim().await?,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && commit.is_none() => {}
            }
        }
    }

    /// Hands on what is behind the checkpoint, as it came.
    async fn replay(&mut self) -> Result<(), Failure> {
        let mut cursor = Log::cursor(self.from);
        let (from, end) = (self.from, self.log().end());
        loop {
            let log = self.log.take().expect("nobody else works with it yet");
            let read = tokio::task::spawn_blocking(move || {
                let part = read_part(&log, &mut cursor);
                (log, cursor, part)
            });
            let (log, moved, part) = read.await.map_err(|error| Failure::bug(&self.source, &error))?;
            (self.log, cursor) = (Some(log), moved);
            let part = part.map_err(|error| Failure::of(&self.source, &error))?;
            if part.is_empty() {
                break;
            }
            for (position, record) in part {
                let (event, arrival) = record::read(record, &self.source, &self.codec)
                    .map_err(|problem| Failure::of(&self.source, &unreadable(position, &problem)))?;
                let journaled = Journaled { event, arrival: Some(arrival), next: Some(position + 1) };
                self.output.send(journaled).await.map_err(|_| Gone)?;
            }
        }
        if end > from {
            fault::point("journal.replayed");
            tracing::info!(source = %self.source, records = end - from, "what came in since the checkpoint was read from the journal");
        }
        self.trim().await
    }

    fn log(&self) -> &Log {
        self.log.as_ref().expect("no thread works with it")
    }

    fn take(&self, event: SourceEvent, work: &mut Work) {
        let arrival = self.clock.now();
        let record = if self.is_kept { Record::of(&event, arrival) } else { None };
        let waiting = Waiting { event, arrival, record, next: None };
        if work.outage.as_ref().is_some_and(|outage| Instant::now() < outage.until) && waiting.is_acknowledged() {
            // Dropped with its acknowledgement: the client is told to send it again.
            self.metrics.error("journal");
            return;
        }
        work.push(waiting);
    }

    /// What is to be made durable now.
    fn due(&self, work: &mut Work, is_busy: bool) -> Option<Vec<Waiting>> {
        let is_due = !is_busy && !work.waiting.is_empty() && work.wakes_at().is_none_or(|due| due <= Instant::now());
        is_due.then(|| work.take())
    }

    fn begin(&mut self, mut group: Vec<Waiting>) -> Begun {
        if group.iter().all(|waiting| waiting.record.is_none()) {
            return Begun::Nothing(group);
        }
        if self.log().bytes() >= self.max_bytes {
            return Begun::Full(group);
        }
        let mut log = self.log.take().expect("no thread works with it");
        for waiting in &mut group {
            if let Some(record) = &waiting.record {
                waiting.next = Some(log.append(&[&record.head, &record.bytes]) + 1);
            }
        }
        if fault::is_planted(Defect::EarlyAcknowledgement) {
            group.iter_mut().for_each(|waiting| _ = waiting.acknowledge());
        }
        let commit = tokio::task::spawn_blocking(move || {
            fault::point("journal.append");
            let outcome = log.write().and_then(|()| {
                fault::point("journal.appended");
                log.sync()
            });
            if outcome.is_ok() {
                fault::point("journal.synced");
            }
            (log, outcome)
        });
        Begun::Commit(commit, group)
    }

    async fn durable(&mut self, mut group: Vec<Waiting>) -> Result<(), Failure> {
        self.gauge.set(self.log().bytes() as i64);
        let told = group.iter_mut().filter(|waiting| waiting.is_acknowledged()).map(Waiting::acknowledge).count();
        if told > 0 {
            fault::point("journal.acknowledged");
        }
        self.hand_on(group).await
    }

    async fn hand_on(&mut self, group: Vec<Waiting>) -> Result<(), Failure> {
        for Waiting { event, arrival, next, .. } in group {
            self.output.send(Journaled { event, arrival: Some(arrival), next }).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// The group could not be made durable: those who wait for that are refused, the others wait on.
    async fn failed(
        &mut self,
        work: &mut Work,
        group: Vec<Waiting>,
        word: &str,
        problem: &(dyn std::fmt::Display + Sync),
    ) -> Result<(), Failure> {
        self.metrics.error(word);
        if work.outage.is_none() {
            self.health.raise(Trouble::IngestJournal, &self.source, problem);
            tracing::error!(
                source = %self.source,
                "the journal cannot be written: {problem}; clients that wait for it are refused, others wait, and it is tried again"
            );
        }
        let wait = work.outage.as_ref().map_or(RETRY.0, |outage| (outage.wait * 2).min(RETRY.1));
        work.outage = Some(Outage { until: Instant::now() + wait, wait });
        let later = work.take();
        let mut kept: Vec<Waiting> =
            group.into_iter().chain(later).filter(|waiting| !waiting.is_acknowledged()).collect();
        self.activity.fetch_add(1, Ordering::Relaxed);
        if !work.is_open {
            // The last checkpoint is to come: what is not in the journal can still be in that.
            kept.iter_mut().for_each(|waiting| waiting.next = None);
            return self.hand_on(kept).await;
        }
        kept.into_iter().for_each(|waiting| work.push(waiting));
        Ok(())
    }

    /// Deletes what no kept checkpoint needs.
    async fn trim(&mut self) -> Result<(), Failure> {
        let floor = *self.floor.borrow_and_update();
        let mut log = self.log.take().expect("no thread works with it");
        let trim = tokio::task::spawn_blocking(move || {
            let before = log.begin();
            let outcome = log.trim(floor);
            if log.begin() > before {
                fault::point("journal.trimmed");
            }
            (log, outcome)
        });
        let (log, outcome) = trim.await.map_err(|error| Failure::bug(&self.source, &error))?;
        if let Err(error) = outcome {
            self.metrics.error("journal_trim");
            tracing::warn!(source = %self.source, %error, "a segment of the journal cannot be deleted; it is tried again");
        }
        self.gauge.set(log.bytes() as i64);
        self.log = Some(log);
        Ok(())
    }
}

enum Begun {
    /// There is nothing in it to be made durable.
    Nothing(Vec<Waiting>),
    Commit(Commit, Vec<Waiting>),
    Full(Vec<Waiting>),
}

/// What a journal has to do.
struct Work {
    waiting: Vec<Waiting>,
    bytes: usize,
    /// Since when the first of it waits.
    since: Option<Instant>,
    is_open: bool,
    outage: Option<Outage>,
}

impl Work {
    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.record.as_ref().map_or(0, Record::len);
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(waiting);
    }

    fn take(&mut self) -> Vec<Waiting> {
        (self.bytes, self.since) = (0, None);
        std::mem::take(&mut self.waiting)
    }

    /// When what waits is to be made durable; `None`: when something comes.
    fn wakes_at(&self) -> Option<Instant> {
        let since = self.since?;
        let is_urgent = self.bytes >= GROUP_BYTES
            || !self.is_open
            || self.waiting.iter().any(|waiting| waiting.is_acknowledged() || waiting.record.is_none());
        let due = if is_urgent { since } else { since + GROUP_WAIT };
        Some(self.outage.as_ref().map_or(due, |outage| due.max(outage.until)))
    }
}

/// Waits for the group that is being made durable, for ever if there is none.
async fn finished(
    commit: &mut Option<(Commit, Vec<Waiting>)>,
) -> Result<(Log, io::Result<()>), tokio::task::JoinError> {
    match commit {
        Some((commit, _)) => commit.await,
        None => std::future::pending().await,
    }
}

fn read_part(log: &Log, cursor: &mut Cursor) -> Result<Vec<(u64, Vec<u8>)>, LogError> {
    let (mut part, mut bytes) = (Vec::new(), 0);
    while bytes < REPLAY_BYTES
        && let Some((position, record)) = log.next(cursor)?
    {
        bytes += record.len();
        part.push((position, record));
    }
    Ok(part)
}

#[cfg(test)]
mod tests;
