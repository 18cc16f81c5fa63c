//! The outbox of sinks that tell somebody something: rows that are kept until they are delivered or refused.
//!
//! A notification leaves at once, not at the next checkpoint. Before its first byte does, the journal holds it; after its
//! end, the journal holds that too. So after a crash nothing is forgotten, and only what was on its way in that moment is
//! told again, under the same name. A barrier is answered with the rows as they stand and never waits for a peer.

mod journal;
mod queue;

use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tocsin_pipeline::event::{Batch, Field, Lane, Origin, Span};
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::{SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::time::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use vrl::value::Value;

use journal::{Entry, Journal};
pub(crate) use queue::{Answer, Row};
use queue::{Limits, Next, Outcome, Queue};

use crate::retry;

/// A rendered notification is not longer: what is, is refused.
const PAYLOAD_MAX: usize = 4 << 20;
/// How many rows wait at most; with more, no input is read, which slows the pipeline down.
const ROWS_MAX: usize = 100_000;
/// How much the waiting rows may take.
const BYTES_MAX: usize = 64 << 20;
/// How many names of settled rows the checkpoint holds; the journal holds more.
const SETTLED_IN_STATE: usize = 10_000;
/// How long written entries may be without an fsync: what a power cut may make the journal forget.
const SYNC_WITHIN: Duration = Duration::from_millis(20);
/// The journal is written anew when it has grown by this and to more than twice what it was.
const JOURNAL_GROWTH: u64 = 1 << 20;
/// Waits are cut to this, so that a clock that is set is noticed.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// The version of the state.
const STATE_VERSION: u8 = 1;

/// What a record is to be told as: one for each receiver.
pub(crate) struct Draft {
    pub(crate) id: String,
    pub(crate) receiver: String,
    pub(crate) thread: String,
    pub(crate) payload: Vec<u8>,
}

/// Renders records and carries rows to their receivers.
pub(crate) trait Courier: Send + Sync + 'static {
    /// What is to be told of a record; an error refuses it.
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String>;

    /// Makes one attempt, within a time of its own.
    fn deliver(self: Arc<Self>, row: Row, now: Timestamp) -> BoxFuture<'static, Answer>;
}

/// What the sinks with an outbox let users set of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) concurrency: usize,
    pub(crate) max_age: Duration,
    pub(crate) retry: retry::Config,
}

/// An outbox, open.
pub(crate) struct Outbox {
    settings: Settings,
    queue: Queue,
    journal: Option<Recorder>,
    /// Whether anything has changed since the last answer to a barrier.
    is_changed: bool,
}

/// Where an alert's record says who it is.
pub(crate) struct Identity {
    pub(crate) id: String,
    /// What keeps its transitions in order: the fingerprint.
    pub(crate) thread: String,
}

impl Identity {
    /// Alerts have a name of their own; other records are named by what they are and where they stood.
    pub(crate) fn of(record: &Value, batch: &Batch, row: u32) -> Self {
        let text = |name: &str| match Field::of_value(record.as_object()?.get(name)?) {
            Field::Text(text)
                if !text.is_empty() && text.len() <= 128 && text.iter().all(u8::is_ascii_alphanumeric) =>
            {
                Some(String::from_utf8_lossy(text).into_owned())
            }
            _ => None,
        };
        if let (Some(id), Some(thread), Some(_)) = (text("id"), text("fingerprint"), text("state")) {
            if fault::is_planted(Defect::UnstableIdentity) {
                return Self { id: format!("{id}-{}", std::process::id()), thread };
            }
            return Self { id, thread };
        }
        let mut told = batch.lane.partition.as_bytes().to_vec();
        for value in [&Value::from(&*batch.lane.source), &batch.coordinate(row), record] {
            told.push(0);
            tocsin_pipeline::json::write_value(value, &mut told);
        }
        Self { id: blake3::hash(&told).to_hex()[..32].to_owned(), thread: String::new() }
    }
}

impl Outbox {
    /// Goes on from a checkpoint and rolls the journal forward: what was said since then stays said.
    pub(crate) async fn open(settings: Settings, context: &SinkContext) -> Result<Self, SinkError> {
        let limits = Limits { rows: ROWS_MAX, bytes: BYTES_MAX, age: settings.max_age, retry: settings.retry };
        let mut queue = Queue::new(limits);
        if let Some(state) = &context.restored {
            restore(&mut queue, state).ok_or_else(|| SinkError("the state in the checkpoint does not read".into()))?;
        }
        let journal = match context.data_dir.clone() {
            None => None,
            Some(folder) => {
                let told =
                    |error: &dyn std::fmt::Display| SinkError(format!("{}/outbox.log: {error}", folder.display()));
                let opened = {
                    let (storage, folder) = (Arc::clone(&context.storage), folder.clone());
                    tokio::task::spawn_blocking(move || Journal::open(storage, &folder)).await
                };
                let (journal, entries) = opened.map_err(|error| told(&error))?.map_err(|error| told(&error))?;
                for entry in entries {
                    if fault::is_planted(Defect::NoRollForward) {
                        break;
                    }
                    match entry {
                        Entry::Intent(row) => drop(queue.offer(row)),
                        Entry::Settled(id) => queue.settle(&id),
                    }
                }
                Some(Recorder::start(journal))
            }
        };
        Ok(Self { settings, queue, journal, is_changed: true })
    }

    /// Takes inputs and tells receivers, until the end.
    pub(crate) async fn run<C: Courier>(
        mut self,
        courier: Arc<C>,
        mut context: SinkContext,
    ) -> Result<SinkState, SinkError> {
        let mut attempts = JoinSet::new();
        let (mut has_ended, mut is_stopping) = (false, false);
        loop {
            let mut wait = None;
            while !is_stopping && attempts.len() < self.settings.concurrency {
                let now = context.clock.now();
                match self.queue.next(now) {
                    Next::Idle => break,
                    Next::At(at) => {
                        wait = Some(at.since(now).min(WAIT_MAX));
                        break;
                    }
                    Next::Send(row) => {
                        let (courier, id) = (Arc::clone(&courier), row.id.clone());
                        attempts.spawn(async move {
                            fault::point("outbox.send");
                            let answer = courier.deliver(row, now).await;
                            fault::point("outbox.answered");
                            (id, answer)
                        });
                    }
                }
            }
            if has_ended && (is_stopping || self.queue.is_empty()) {
                break;
            }
            // While it is being stopped everything is taken in, so that it is in the last state.
            let has_room = is_stopping || !self.queue.is_full();
            tokio::select! {
                biased;
                () = context.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    attempts.abort_all();
                }
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok((id, answer)) => self.answered(&id, answer, &context).await,
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(SinkError(format!("an attempt to deliver failed: {error}"))),
                },
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                input = context.input.recv(), if !has_ended && has_room => match input.map(|input| input.split().0) {
                    // The pipeline is gone without a word.
                    None => break,
                    Some(SinkInput::End) => has_ended = true,
                    Some(SinkInput::Batch(batch)) => self.take(&*courier, &batch, &context).await,
                    Some(SinkInput::Barrier { prepared, .. }) => {
                        // Nobody waits for the answer of an epoch that was given up.
                        let _ = prepared.send(self.state());
                    }
                    Some(SinkInput::Committed { .. }) => self.tidy(&context).await,
                },
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.close().await;
        }
        Ok(self.state())
    }

    /// Puts what is to be told of a batch into the queue, and into the journal before anything of it leaves.
    async fn take<C: Courier>(&mut self, courier: &C, batch: &Batch, context: &SinkContext) {
        let now = context.clock.now();
        let (mut frames, mut accepted) = (Vec::new(), 0);
        for row in batch.rows() {
            let drafts = match courier.drafts(batch, row) {
                Ok(drafts) => drafts,
                Err(why) => {
                    context.rejected.reject(batch, row, Reason::Refused, &why).await;
                    continue;
                }
            };
            let (mut is_accepted, mut refused) = (false, None);
            for Draft { id, receiver, thread, payload } in drafts {
                if payload.len() > PAYLOAD_MAX {
                    refused = Some(format!("{} bytes are more than a notification may have", payload.len()));
                    continue;
                }
                let payload = Bytes::from(payload);
                let arrival = batch.arrival;
                let draft = Row { id, receiver, thread, payload, attempts: 0, next: now, created: now, arrival };
                if self.queue.offer(draft.clone()) {
                    is_accepted = true;
                    if self.journal.is_some() {
                        Entry::Intent(draft).append(&mut frames);
                    }
                }
            }
            // A record counts once, however many are told of it; how it went with each is told by the notifications.
            match (is_accepted, refused) {
                (true, None) => accepted += 1,
                (true, Some(why)) => {
                    accepted += 1;
                    context.rejected.tell(batch, row, Reason::Refused, &why).await;
                }
                (false, Some(why)) => context.rejected.reject(batch, row, Reason::Refused, &why).await,
                (false, None) => context.metrics.dropped(Reason::Duplicate, 1),
            }
        }
        self.is_changed = true;
        fault::point("outbox.intent");
        self.record(frames, context).await;
        fault::point("outbox.intended");
        context.metrics.sent(accepted);
    }

    async fn answered(&mut self, id: &str, answer: Answer, context: &SinkContext) {
        let now = context.clock.now();
        self.is_changed = true;
        let why = match &answer {
            Answer::Again { why, .. } => why.clone(),
            _ => String::new(),
        };
        match self.queue.answered(id, answer, now) {
            Outcome::Delivered(row) => {
                context.metrics.notification("delivered");
                context.metrics.latency(now.since(row.arrival).as_secs_f64());
            }
            Outcome::Retry { at } => {
                context.metrics.notification("retried");
                tracing::warn!(sink = %context.name, id, error = why, next = %at, "not delivered, trying again");
                return;
            }
            Outcome::Refused { row, why } => {
                context.metrics.notification("refused");
                tracing::error!(sink = %context.name, id, receiver = row.receiver, error = why, "refused for good");
                let lane = Arc::new(Lane::of_operator(Arc::clone(&context.name), Origin::Operator));
                let spans = vec![Span::new(0, row.payload.len())];
                let letter = Batch::new(lane, row.payload, 0, spans, row.arrival);
                context.rejected.tell(&letter, 0, Reason::Refused, &why).await;
            }
        }
        let mut frames = Vec::new();
        Entry::Settled(id.to_owned()).append(&mut frames);
        self.record(frames, context).await;
        fault::point("outbox.settled");
    }

    /// Writes frames to the journal. Where that fails, notifications go on leaving: without the journal a crash may repeat
    /// some, but keeping quiet about an alert is worse.
    async fn record(&mut self, frames: Vec<u8>, context: &SinkContext) {
        let Some(journal) = &mut self.journal else { return };
        if frames.is_empty() || journal.is_broken {
            return;
        }
        if let Err(error) = journal.order(|done| Order::Append { frames, done }).await {
            journal.is_broken = true;
            context.metrics.error("journal");
            tracing::error!(sink = %context.name, %error, "writing the journal of the outbox; going on without it");
        }
    }

    /// Writes the journal anew, with what is known and no more, where that is much shorter or the old one is broken.
    /// It then holds all that a checkpoint does, so that no older checkpoint can lack what was cut.
    async fn tidy(&mut self, context: &SinkContext) {
        let Some(journal) = &mut self.journal else { return };
        if !journal.is_broken && journal.length <= JOURNAL_GROWTH + 2 * journal.length_fresh {
            return;
        }
        let mut frames = Vec::new();
        self.queue.settled().for_each(|id| Entry::Settled(id.clone()).append(&mut frames));
        self.queue.rows().for_each(|row| Entry::Intent(row.clone()).append(&mut frames));
        match journal.order(|done| Order::Rewrite { frames, done }).await {
            Ok(()) => {
                journal.is_broken = false;
                journal.length_fresh = journal.length;
            }
            Err(error) => {
                journal.is_broken = true;
                context.metrics.error("journal");
                tracing::error!(sink = %context.name, %error, "writing the journal of the outbox anew");
            }
        }
    }

    /// What a checkpoint holds: the rows, and the names of those settled last.
    fn state(&mut self) -> SinkState {
        if !std::mem::take(&mut self.is_changed) {
            return SinkState::Unchanged;
        }
        let mut state = vec![STATE_VERSION];
        let rows = self.queue.rows();
        state.extend_from_slice(&(rows.len() as u32).to_le_bytes());
        rows.for_each(|row| journal::append_row(row, &mut state));
        let settled = self.queue.settled();
        let beyond = settled.len().saturating_sub(SETTLED_IN_STATE);
        settled.skip(beyond).for_each(|id| journal::append_bytes(id.as_bytes(), &mut state));
        SinkState::State(state.into())
    }
}

/// Reads what [`Outbox::state`] wrote.
fn restore(queue: &mut Queue, state: &[u8]) -> Option<()> {
    let (version, rest) = state.split_first()?;
    let (count, mut rest) = rest.split_at_checked(4)?;
    if *version != STATE_VERSION {
        return None;
    }
    for _ in 0..u32::from_le_bytes(count.try_into().ok()?) {
        queue.offer(journal::read_row(&mut rest)?);
    }
    while !rest.is_empty() {
        queue.settle(&journal::read_text(&mut rest)?);
    }
    Some(())
}

/// How many rows a state holds.
pub(crate) fn undelivered(state: &[u8]) -> u64 {
    match state {
        [STATE_VERSION, a, b, c, d, ..] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => 0,
    }
}

/// What the thread of the journal is asked to do; it answers with the length of the journal.
enum Order {
    Append { frames: Vec<u8>, done: oneshot::Sender<std::io::Result<u64>> },
    Rewrite { frames: Vec<u8>, done: oneshot::Sender<std::io::Result<u64>> },
    Close { done: oneshot::Sender<std::io::Result<u64>> },
}

/// The journal on a thread of its own, since writing and fsync may block.
struct Recorder {
    orders: blocking::SyncSender<Order>,
    length: u64,
    /// As it was when the journal was written anew last.
    length_fresh: u64,
    is_broken: bool,
}

impl Recorder {
    fn start(journal: Journal) -> Self {
        let length = journal.length;
        let (orders, received) = blocking::sync_channel(16);
        tokio::task::spawn_blocking(move || keep(journal, &received));
        Self { orders, length, length_fresh: 0, is_broken: false }
    }

    async fn order(
        &mut self,
        order: impl FnOnce(oneshot::Sender<std::io::Result<u64>>) -> Order,
    ) -> std::io::Result<()> {
        let gone = || std::io::Error::other("the journal's thread has ended");
        let (done, answer) = oneshot::channel();
        // Every order waits for its answer, so the channel is never full and this does not block.
        self.orders.try_send(order(done)).map_err(|_| gone())?;
        self.length = answer.await.map_err(|_| gone())??;
        Ok(())
    }

    async fn close(&mut self) {
        // What fails here has been told when it was written; the state that is handed back holds the rows.
        let _ = self.order(|done| Order::Close { done }).await;
    }
}

/// Takes orders until the outbox is gone; syncs what was appended, many entries at a time.
fn keep(mut journal: Journal, orders: &blocking::Receiver<Order>) {
    let mut is_dirty = false;
    loop {
        let order = match is_dirty {
            true => orders.recv_timeout(SYNC_WITHIN),
            false => orders.recv().map_err(|_| blocking::RecvTimeoutError::Disconnected),
        };
        match order {
            Ok(Order::Append { frames, done }) => {
                let result = journal.append(&frames);
                is_dirty = result.is_ok();
                let _ = done.send(result.map(|()| journal.length));
            }
            Ok(Order::Rewrite { frames, done }) => {
                fault::point("outbox.rewrite");
                let result = journal.rewrite(&frames);
                fault::point("outbox.rewritten");
                is_dirty = false;
                let _ = done.send(result.map(|()| journal.length));
            }
            Ok(Order::Close { done }) => {
                let result = if is_dirty { journal.sync() } else { Ok(()) };
                is_dirty = false;
                let _ = done.send(result.map(|()| journal.length));
            }
            Err(blocking::RecvTimeoutError::Timeout) => {
                is_dirty = false;
                fault::point("outbox.sync");
                // A failure is told by the next order: the journal takes nothing more.
                let _ = journal.sync();
                fault::point("outbox.synced");
            }
            Err(blocking::RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests;
