//! The buffer of a sink that continues on disk: the task between a sink's queue and the sink.
//!
//! Every batch has a place, its number over the life of the buffer. The sink is handed one after the other. What it was handed
//! is kept until it has answered a barrier behind it: its answer, a state `S` and the place `R` that it speaks of, is what a
//! restart goes on from. So that not too much is kept, it is handed barriers between those of epochs too; its barriers are
//! numbered by themselves. Batches pass in memory; beyond a bound the oldest are written to a log, in which a record's
//! position is its batch's place, and those that were not handed over are read back.
//!
//! The barrier of an epoch is answered for the sink: with `S`, `R`, and the place `W` of the barrier, everything from `R` to
//! `W` being on disk. Where the sink keeps up, it answers a barrier of its own first, `R` is `W`, and nothing is written. Where
//! it does not answer within [`PATIENCE`], its last answer is told, and the one it owes is used in a later epoch. So a sink
//! that is stuck holds no checkpoint, and after a restart it is handed exactly what its state does not know.

mod batch;
mod value;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;

pub(super) use self::batch::Lanes;
use super::{Done, Failure};
use crate::checkpoint::Buffer;
use crate::event::Batch;
use crate::fault::{self, Defect};
use crate::health::{Health, Trouble};
use crate::ledger::Account;
use crate::metrics::ComponentMetrics;
use crate::sink::{Answer, Claim, Prepared, Queued, SinkError, SinkInput, SinkState, Till};
use crate::store::log::{Cursor, Log, LogError};

/// The folder of a buffer, in that of its sink.
pub(super) const FOLDER: &str = "buffer";
/// How long the barrier of an epoch waits for the sink's answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the sink's barrier waits for its place before it is put in where the sink has come to.
const PLACE_PATIENCE: Duration = Duration::from_millis(200);
/// How much is read back at once.
const READ_BYTES: usize = 1 << 20;
/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How the memory of a buffer is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// On its way into the buffer.
    pub edge: usize,
    /// Handed to the sink and not let go of by it.
    pub window: usize,
    /// Beyond so much, the sink is handed a barrier, so that what it was handed need not be kept.
    pub kept: usize,
    /// Beyond so much, the oldest batches are written to disk.
    pub memory: usize,
    /// Beyond so much, whoever writes to the sink waits until something is on disk.
    pub limit: usize,
}

impl Shares {
    pub fn of(max: usize) -> Self {
        let part = (max / 8).max(1);
        // The window is large, as a sink may hold several batches until it has put a request together.
        Self { edge: part, window: 4 * part, kept: part, memory: 2 * part, limit: 3 * part }
    }
}

/// A batch in memory.
struct Held {
    batch: Batch,
    bytes: usize,
}

/// What the sink said last, and of which place.
struct Told {
    /// The number of its barrier.
    barrier: u64,
    state: Option<Bytes>,
    account: Account,
    place: u64,
    /// How many records there were before that place, since the run began.
    records: u64,
}

/// A barrier that the sink has been handed and owes an answer to.
struct Asked {
    barrier: u64,
    /// The epoch that it is for; `None`: it is between those.
    epoch: Option<u64>,
    place: u64,
    records: u64,
    since: Instant,
    answer: oneshot::Receiver<Answer>,
}

/// The barrier of an epoch, not answered yet.
struct Wanted {
    epoch: u64,
    place: u64,
    records: u64,
    prepared: Prepared,
    since: Instant,
    /// The sink has been handed a barrier for it.
    is_asked: bool,
    /// It has answered.
    is_answered: bool,
    /// It is answered with what the sink said before.
    is_late: bool,
    /// Who says that the sink has answered: the sink itself, unless this task was first. Dead letters go by it.
    claim: Claim,
    /// This task was first.
    is_claimed: bool,
}

/// The disk takes nothing just now.
struct Outage {
    until: Instant,
    wait: Duration,
}

/// What a thread does with the log.
type Job = JoinHandle<(Log, Outcome)>;

enum Outcome {
    /// So many batches were written, or none.
    Written(usize, io::Result<()>),
    Read(Cursor, Result<Vec<(u64, Vec<u8>)>, LogError>),
    Trimmed(io::Result<()>),
}

/// What the sink is handed next.
#[derive(Clone, Copy)]
enum Next {
    Barrier,
    Batch,
    End,
}

/// A buffer and what it needs.
pub(super) struct Spill {
    pub sink: Arc<str>,
    pub number: usize,
    pub lanes: Lanes,
    pub shares: Shares,
    pub max_disk: u64,
    pub input: mpsc::Receiver<Queued>,
    /// The last complete epoch, and the place that no kept epoch goes on before.
    pub complete: watch::Receiver<(u64, u64)>,
    /// To the sink.
    pub queue: mpsc::Sender<Queued>,
    /// The sink.
    pub running: JoinSet<Result<SinkState, SinkError>>,
    /// The place behind the last batch that the sink has taken from its queue.
    pub taken: Arc<AtomicU64>,
    pub till: Till,
    pub metrics: ComponentMetrics,
    pub health: Health,
    pub memory_gauge: IntGauge,
    pub disk_gauge: IntGauge,
}

impl Spill {
    /// Runs the buffer from what a checkpoint says of it and of the sink, which holds so many records in its state, until the
    /// sink has ended.
    pub async fn run(self, mut log: Log, restored: Buffer, state: Option<Bytes>, held: u64) -> Result<Done, Failure> {
        let Buffer { mut from, to, mut records, barrier } = restored;
        if fault::is_planted(Defect::ForgottenSpill) {
            (from, records) = (to, 0);
        }
        // What is behind it was written after the checkpoint: it comes again.
        log.restart_at(to);
        self.taken.store(from, Ordering::Release);
        let account = Account { held, ..self.till.account() };
        let task = Task {
            log: Some(log),
            window: Arc::new(Semaphore::new(self.shares.window)),
            tail: VecDeque::new(),
            tail_bytes: 0,
            written: to,
            next: from,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            cursor: None,
            records_in: records,
            records_out: 0,
            restored_records: records,
            handed: VecDeque::new(),
            told: Told { barrier, state, account, place: from, records: 0 },
            asked: None,
            wanted: None,
            barrier,
            asks_again: None,
            reported: (0, barrier),
            committed: barrier,
            job: None,
            floor: None,
            outage: None,
            is_ending: false,
            is_end_told: false,
            is_gone: false,
            spill: self,
        };
        task.run().await
    }
}

/// A running buffer.
struct Task {
    spill: Spill,
    /// Away while a thread works with it.
    log: Option<Log>,
    window: Arc<Semaphore>,
    /// The newest batches, in order. Everything before is on disk or not needed any more.
    tail: VecDeque<Held>,
    tail_bytes: usize,
    /// The place of the first in `tail`.
    written: u64,
    /// The place of the next batch for the sink.
    next: u64,
    /// Batches read back, from `next` on.
    ahead: VecDeque<Held>,
    ahead_bytes: usize,
    cursor: Option<Cursor>,
    /// How many records have come and how many were handed on, since the run began; those in the buffer at its start have
    /// come.
    records_in: u64,
    records_out: u64,
    restored_records: u64,
    /// The places and records of what the sink was handed and had not taken from its queue when that was looked at last.
    handed: VecDeque<(u64, u64)>,
    told: Told,
    asked: Option<Asked>,
    wanted: Option<Wanted>,
    /// The number of the sink's last barrier.
    barrier: u64,
    /// Before this it is handed none between those of epochs, as it could not prepare.
    asks_again: Option<Instant>,
    /// The epoch answered last, and the barrier of the sink that the answer was of.
    reported: (u64, u64),
    /// The last of its barriers that the sink was told to be in a complete epoch.
    committed: u64,
    job: Option<Job>,
    /// What is before this place can be deleted.
    floor: Option<u64>,
    outage: Option<Outage>,
    is_ending: bool,
    is_end_told: bool,
    /// The sink takes nothing any more.
    is_gone: bool,
}

impl Task {
    async fn run(mut self) -> Result<Done, Failure> {
        loop {
            self.step();
            let next = self.next_input();
            let bytes = match next {
                Some(Next::Batch) => self.front().map_or(1, |held| held.bytes).clamp(1, self.spill.shares.window),
                _ => 0,
            };
            let (window, queue) = (Arc::clone(&self.window), self.spill.queue.clone());
            let has_room = !self.is_ending && self.tail_bytes < self.spill.shares.limit;
            let due = self.due();
            tokio::select! {
                biased;
                ended = self.spill.running.join_next() => return self.ended(ended).await,
                done = finished(&mut self.job) => {
                    self.job = None;
                    let (log, outcome) = done.map_err(|error| Failure::bug(&self.spill.sink, &error))?;
                    self.spill.disk_gauge.set(log.bytes() as i64);
                    self.log = Some(log);
                    self.worked(outcome)?;
                }
                answer = answered(&mut self.asked) => self.answered(answer),
                Ok(()) = self.spill.complete.changed() => self.completed(),
                slot = slot(window, &queue, bytes), if next.is_some() => {
                    match (slot, next) {
                        (Some((permit, slot)), Some(next)) => slot.send(self.take_next(next, permit)),
                        // Its task tells why.
                        _ => self.is_gone = true,
                    }
                }
                queued = self.spill.input.recv(), if has_room => match queued {
                    Some(queued) => self.take(queued),
                    // Without an end the daemon has failed: the sink is not told one either.
                    None => return Ok(Done::Task),
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// The place behind the newest batch.
    fn end(&self) -> u64 {
        self.written + self.tail.len() as u64
    }

    fn take(&mut self, queued: Queued) {
        // It counts against the buffer from now on, not against the edge.
        let (input, _) = queued.split();
        match input {
            SinkInput::Batch(batch) => {
                let bytes = batch.bytes();
                self.records_in += batch.len() as u64;
                self.tail_bytes += bytes;
                self.tail.push_back(Held { batch, bytes });
            }
            SinkInput::Barrier { epoch, prepared } => {
                let (place, records, since) = (self.end(), self.records_in, Instant::now());
                // An answer that the sink has owed for long is not waited for again.
                let is_late = self.asked.as_ref().is_some_and(|asked| asked.since.elapsed() >= PATIENCE);
                let claim = Claim::default();
                let is_claimed = is_late && claim.take();
                self.wanted = Some(Wanted {
                    epoch,
                    place,
                    records,
                    prepared,
                    since,
                    is_asked: is_late,
                    is_answered: false,
                    is_late,
                    claim,
                    is_claimed,
                });
            }
            SinkInput::Committed { .. } | SinkInput::Watermark(_) => {}
            SinkInput::End => self.is_ending = true,
        }
    }

    /// Does whatever needs no waiting: answers the barrier, starts a thread on the log.
    fn step(&mut self) {
        self.spill.memory_gauge.set((self.tail_bytes + self.ahead_bytes) as i64);
        self.give_up_waiting();
        self.report();
        if self.job.is_some() {
            return;
        }
        if let Some(floor) = self.floor.take() {
            return self.start(move |mut log| {
                let before = log.begin();
                let outcome = log.trim(floor);
                if log.begin() > before {
                    fault::point("buffer.trimmed");
                }
                (log, Outcome::Trimmed(outcome))
            });
        }
        let must_write = self.must_write();
        if must_write > 0 && self.outage.as_ref().is_none_or(|outage| outage.until <= Instant::now()) {
            return self.write(must_write);
        }
        if self.next < self.written && self.ahead_bytes < self.spill.shares.edge {
            self.read();
        }
    }

    /// How many of the batches in memory are to be written now.
    fn must_write(&self) -> usize {
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| self.is_decided(wanted))
            && self.told.place.max(self.written) < wanted.place
        {
            return usize::try_from(wanted.place - self.written).expect("it is what is in memory");
        }
        let memory = self.spill.shares.memory;
        if self.tail_bytes <= memory {
            return 0;
        }
        let mut bytes = self.tail_bytes;
        self.tail
            .iter()
            .take_while(|held| {
                let goes = bytes > self.spill.shares.kept;
                bytes -= held.bytes;
                goes
            })
            .count()
    }

    fn write(&mut self, count: usize) {
        if self.log().bytes() >= self.spill.max_disk {
            return self.failed("buffer_full", &"it has reached max_disk");
        }
        let batches: Vec<Batch> = self.tail.iter().take(count).map(|held| held.batch.clone()).collect();
        let place = self.written;
        self.start(move |mut log| {
            fault::point("buffer.spill");
            if log.end() != place {
                log.restart_at(place);
            }
            let outcome = write_all(&mut log, &batches);
            (log, Outcome::Written(batches.len(), outcome))
        });
    }

    fn read(&mut self) {
        let ahead = self.next + self.ahead.len() as u64;
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.position() == ahead => cursor,
            _ => Log::cursor(ahead),
        };
        let (end, bytes) = (self.written, READ_BYTES.min(self.spill.shares.edge));
        if ahead >= end {
            return;
        }
        self.start(move |log| {
            let part = read_part(&log, &mut cursor, end, bytes);
            fault::point("buffer.read");
            (log, Outcome::Read(cursor, part))
        });
    }

    fn log(&self) -> &Log {
        self.log.as_ref().expect("no thread works with it")
    }

    fn start(&mut self, work: impl FnOnce(Log) -> (Log, Outcome) + Send + 'static) {
        let log = self.log.take().expect("no thread works with it");
        self.job = Some(tokio::task::spawn_blocking(move || work(log)));
    }

    fn worked(&mut self, outcome: Outcome) -> Result<(), Failure> {
        match outcome {
            Outcome::Written(count, Ok(())) => {
                if self.outage.take().is_some() {
                    self.spill.health.clear(Trouble::Buffer, &self.spill.sink);
                    tracing::info!(sink = %self.spill.sink, "the buffer can be written again");
                }
                // An answer of the sink may have freed some of them meanwhile.
                let freed = self.log().end().saturating_sub(self.written);
                self.free(count.min(usize::try_from(freed).unwrap_or(usize::MAX)));
            }
            Outcome::Written(_, Err(error)) => self.failed("buffer", &error),
            Outcome::Read(cursor, part) => {
                let of = |error: &dyn std::fmt::Display| Failure::of(&self.spill.sink, error);
                for (position, record) in part.map_err(|error| of(&error))? {
                    let batch = batch::decode(record, &mut self.spill.lanes).map_err(|problem| {
                        of(&format!(
                            "record {position} of its buffer cannot be used: {problem}; configure the source again, or move \
                             the buffer away to go on without what it holds"
                        ))
                    })?;
                    let bytes = batch.bytes();
                    self.ahead_bytes += bytes;
                    self.ahead.push_back(Held { batch, bytes });
                }
                self.cursor = Some(cursor);
            }
            Outcome::Trimmed(Ok(())) => {}
            Outcome::Trimmed(Err(error)) => {
                self.spill.metrics.error("buffer_trim");
                tracing::warn!(sink = %self.spill.sink, %error, "a segment of the buffer cannot be deleted; it is tried again");
            }
        }
        Ok(())
    }

    /// Lets go of the oldest batches in memory.
    fn free(&mut self, count: usize) {
        for held in self.tail.drain(..count) {
            self.tail_bytes -= held.bytes;
        }
        self.written += count as u64;
    }

    fn failed(&mut self, word: &str, problem: &dyn std::fmt::Display) {
        let wait = self.outage.as_ref().map_or(RETRY.0, |outage| (outage.wait * 2).min(RETRY.1));
        if self.outage.is_none() && self.spill.max_disk > 0 {
            self.spill.metrics.error(word);
            self.spill.health.raise(Trouble::Buffer, &self.spill.sink, problem);
            tracing::error!(
                sink = %self.spill.sink,
                "the buffer cannot be written: {problem}; whoever writes to the sink waits when memory is full, and it is \
                 tried again"
            );
        }
        self.outage = Some(Outage { until: Instant::now() + wait, wait });
    }

    /// What the sink is handed next, if it is time for anything.
    fn next_input(&self) -> Option<Next> {
        if self.is_gone {
            return None;
        }
        let has_batch = self.front().is_some();
        if let Some(wanted) = &self.wanted {
            // While nothing can be written only an answer at the very place helps.
            let may_ask = self.asked.is_none() && (!wanted.is_asked || self.outage.is_some());
            let is_at_place = self.next == wanted.place;
            let is_behind = !wanted.is_asked
                && self.outage.is_none()
                && (self.next < self.written || wanted.since.elapsed() >= PLACE_PATIENCE);
            if may_ask && self.next <= wanted.place && (is_at_place || is_behind) {
                return Some(Next::Barrier);
            }
            return (has_batch && self.next < wanted.place).then_some(Next::Batch);
        }
        let is_kept = self.next > self.told.place.max(self.written) && self.tail_bytes > self.spill.shares.kept;
        let may_ask = self.asked.is_none() && self.asks_again.is_none_or(|again| again <= Instant::now());
        if is_kept && may_ask && !self.is_ending {
            return Some(Next::Barrier);
        }
        if has_batch {
            return Some(Next::Batch);
        }
        (self.is_ending && !self.is_end_told && self.next == self.end()).then_some(Next::End)
    }

    /// The next batch for the sink, if it is in memory.
    fn front(&self) -> Option<&Held> {
        match self.next.checked_sub(self.written) {
            Some(at) => self.tail.get(usize::try_from(at).ok()?),
            None => self.ahead.front(),
        }
    }

    fn take_next(&mut self, next: Next, permit: Option<OwnedSemaphorePermit>) -> Queued {
        match next {
            Next::Batch => {
                let batch = self.front().expect("it was there").batch.clone();
                if self.next < self.written
                    && let Some(held) = self.ahead.pop_front()
                {
                    self.ahead_bytes -= held.bytes;
                }
                self.next += 1;
                self.records_out += batch.len() as u64;
                let taken = self.spill.taken.load(Ordering::Acquire);
                while self.handed.front().is_some_and(|(place, _)| *place < taken) {
                    self.handed.pop_front();
                }
                self.handed.push_back((self.next - 1, batch.len() as u64));
                Queued { input: SinkInput::Batch(batch), _permit: permit, place: Some(self.next) }
            }
            Next::Barrier => {
                let (epoch, claim) = match &mut self.wanted {
                    Some(wanted) => {
                        wanted.is_asked = true;
                        (Some(wanted.epoch), wanted.claim.clone())
                    }
                    None => {
                        let claim = Claim::default();
                        claim.take();
                        (None, claim)
                    }
                };
                self.barrier += 1;
                let (prepared, answer) = Prepared::claimed(self.spill.till.clone(), claim);
                let (barrier, place, records, since) = (self.barrier, self.next, self.records_out, Instant::now());
                self.asked = Some(Asked { barrier, epoch, place, records, since, answer });
                Queued::free(SinkInput::Barrier { epoch: barrier, prepared })
            }
            Next::End => {
                self.is_end_told = true;
                Queued::free(SinkInput::End)
            }
        }
    }

    /// The sink has answered the barrier that it was handed, or is gone.
    fn answered(&mut self, answer: Option<Answer>) {
        let Some(Asked { barrier, epoch, place, records, .. }) = self.asked.take() else { return };
        let wanted = self.wanted.as_mut().filter(|wanted| epoch == Some(wanted.epoch));
        // Where it is gone its task tells why.
        let Some(Answer { state, account, .. }) = answer else { return };
        let state = match state {
            SinkState::Unchanged => self.told.state.take(),
            SinkState::State(state) => Some(state),
            SinkState::Failed(reason) => {
                tracing::warn!(sink = %self.spill.sink, reason, "the sink could not prepare; what it was handed is kept");
                self.asks_again = Some(Instant::now() + PATIENCE);
                if let Some(wanted) = wanted {
                    wanted.is_late = true;
                }
                return;
            }
        };
        if let Some(wanted) = wanted {
            wanted.is_answered = true;
        }
        self.told = Told { barrier, state, account, place, records };
        let in_memory = usize::try_from(place.saturating_sub(self.written)).unwrap_or(usize::MAX);
        if in_memory > 0 {
            self.free(in_memory);
        }
    }

    /// Whether it is known what the barrier is answered with.
    fn is_decided(&self, wanted: &Wanted) -> bool {
        wanted.is_late || wanted.is_answered
    }

    /// A barrier that has waited long enough is answered with what the sink said before.
    fn give_up_waiting(&mut self) {
        let undecided = self.wanted.as_mut().filter(|wanted| !wanted.is_late && !wanted.is_answered);
        let Some(wanted) = undecided.filter(|wanted| wanted.since.elapsed() >= PATIENCE) else { return };
        // Where that is not granted the answer is on its way.
        wanted.is_claimed = wanted.claim.take();
        wanted.is_late = wanted.is_claimed;
        wanted.is_asked |= wanted.is_late;
    }

    fn report(&mut self) {
        let is_ready = self.wanted.as_ref().is_some_and(|wanted| {
            let is_durable = self.told.place >= wanted.place || self.written >= wanted.place;
            self.is_decided(wanted) && is_durable
        });
        if !is_ready {
            return;
        }
        let Some(Wanted { epoch, place, records, prepared, is_claimed, .. }) = self.wanted.take() else { return };
        let answer = self.answer(place, records);
        self.reported = (epoch, self.told.barrier);
        fault::point("buffer.answered");
        prepared.answer(answer, is_claimed);
    }

    /// What the sink said last, with what is in the buffer from there to `place`.
    fn answer(&self, place: u64, records: u64) -> Answer {
        let state = self.told.state.clone().map_or(SinkState::Unchanged, SinkState::State);
        let buffer = Buffer {
            from: self.told.place,
            to: place,
            records: records - self.told.records,
            barrier: self.told.barrier,
        };
        let mut account = self.told.account.clone();
        // What was in the buffer when the run began counts as received already.
        account.received = (account.received + buffer.records).saturating_sub(self.restored_records);
        account.held += buffer.records;
        Answer { state, account, buffer: Some(buffer) }
    }

    /// An epoch is complete: the sink is told which of its barriers is in it.
    fn completed(&mut self) {
        let (epoch, floor) = *self.spill.complete.borrow_and_update();
        self.floor = Some(floor);
        let (reported, barrier) = self.reported;
        if reported == epoch && barrier > self.committed {
            // A sink whose queue is full hears of the next one.
            let told = self.spill.queue.try_send(Queued::free(SinkInput::Committed { epoch: barrier }));
            if told.is_ok() {
                self.committed = barrier;
            }
        }
    }

    /// The sink has ended: all is said, or the time for it is over and the rest stays in the buffer.
    async fn ended(mut self, ended: Option<Result<Result<SinkState, SinkError>, JoinError>>) -> Result<Done, Failure> {
        let sink = Arc::clone(&self.spill.sink);
        let state = match ended {
            Some(Ok(state)) => state.map_err(|error| Failure::of(&sink, &error))?,
            Some(Err(error)) => return Err(Failure::bug(&sink, &error)),
            None => SinkState::Unchanged,
        };
        if let Some(job) = self.job.take() {
            let (log, outcome) = job.await.map_err(|error| Failure::bug(&sink, &error))?;
            self.log = Some(log);
            self.worked(outcome)?;
        }
        let place = self.spill.taken.load(Ordering::Acquire);
        let left = self.handed.iter().filter(|(handed, _)| *handed >= place).map(|(_, records)| records).sum::<u64>();
        match state {
            // What it said before stays, and with it all since then.
            SinkState::Failed(_) => {}
            state => {
                let state = match state {
                    SinkState::State(state) => Some(state),
                    _ => self.told.state.take(),
                };
                let account = self.spill.till.account();
                self.told = Told { barrier: self.barrier + 1, state, account, place, records: self.records_out - left };
            }
        }
        let (end, records) = (self.end(), self.records_in);
        let answer = self.answer(end, records);
        if self.told.place < end && self.written < end {
            let (batches, written) = (self.tail.into_iter().map(|held| held.batch).collect::<Vec<_>>(), self.written);
            let mut log = self.log.take().expect("no thread works with it");
            let writing = tokio::task::spawn_blocking(move || {
                if log.end() != written {
                    log.restart_at(written);
                }
                write_all(&mut log, &batches)
            });
            if let Err(error) = writing.await.map_err(|error| Failure::bug(&sink, &error))? {
                tracing::error!(%sink, %error, "what is left in the buffer cannot be written; the last checkpoint stays");
                let account = answer.account;
                let unchanged = Answer { state: SinkState::Unchanged, account, buffer: None };
                return Ok(Done::Sink(self.spill.number, unchanged));
            }
        }
        Ok(Done::Sink(self.spill.number, answer))
    }

    /// When something is to be done though nothing comes.
    fn due(&self) -> Option<Instant> {
        let wanted = self.wanted.as_ref().filter(|wanted| !self.is_decided(wanted));
        let place = wanted.filter(|wanted| !wanted.is_asked).map(|wanted| wanted.since + PLACE_PATIENCE);
        let place = place.filter(|due| *due > Instant::now());
        let answer = wanted.map(|wanted| wanted.since + PATIENCE);
        // Where that is past, the answer is on its way.
        let answer = answer.filter(|due| *due > Instant::now());
        let retry = self.outage.as_ref().filter(|_| self.must_write() > 0 && self.job.is_none());
        [place, answer, retry.map(|outage| outage.until), self.asks_again.filter(|again| *again > Instant::now())]
            .into_iter()
            .flatten()
            .min()
    }
}

fn write_all(log: &mut Log, batches: &[Batch]) -> io::Result<()> {
    for batch in batches {
        log.append(&[&batch::encode(batch)]);
    }
    let outcome = log.sync();
    match outcome {
        Ok(()) => fault::point("buffer.synced"),
        Err(_) => log.give_up(),
    }
    outcome
}

fn read_part(log: &Log, cursor: &mut Cursor, end: u64, most: usize) -> Result<Vec<(u64, Vec<u8>)>, LogError> {
    let (mut part, mut bytes) = (Vec::new(), 0);
    while bytes < most
        && cursor.position() < end
        && let Some((position, record)) = log.next(cursor)?
    {
        bytes += record.len();
        part.push((position, record));
    }
    Ok(part)
}

/// Waits for the thread that works with the log, for ever if there is none.
async fn finished(job: &mut Option<Job>) -> Result<(Log, Outcome), JoinError> {
    match job {
        Some(job) => job.await,
        None => std::future::pending().await,
    }
}

/// Waits for the sink's answer, for ever if it owes none.
async fn answered(asked: &mut Option<Asked>) -> Option<Answer> {
    match asked {
        Some(asked) => (&mut asked.answer).await.ok(),
        None => std::future::pending().await,
    }
}

/// Waits until the sink has room for `bytes`; `None` when it is gone.
async fn slot(
    window: Arc<Semaphore>,
    queue: &mpsc::Sender<Queued>,
    bytes: usize,
) -> Option<(Option<OwnedSemaphorePermit>, mpsc::Permit<'_, Queued>)> {
    let permit = match u32::try_from(bytes).expect("shares are below 4 GiB") {
        0 => None,
        bytes => Some(window.acquire_many_owned(bytes).await.ok()?),
    };
    Some((permit, queue.reserve().await.ok()?))
}

#[cfg(test)]
mod tests;
