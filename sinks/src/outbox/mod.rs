//! The outbox of sinks that tell somebody something: rows that are kept until they are delivered or refused.
//!
//! A notification leaves at once, not at the next checkpoint. Before its first byte does, the journal holds it; after its
//! end, the journal holds that too. So after a crash nothing is forgotten, and only what was on its way in that moment is
//! told again, under the same name. A barrier is answered with the rows as they stand and never waits for a peer.
//!
//! When there is no room for more rows, what comes is folded into one digest for each receiver, which is told in their place
//! as soon as there is room again. So input is always taken, and nothing is dropped without a word.

mod book;
mod breaker;
#[cfg(test)]
mod crashes;
mod digest;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod journal;
mod latency;
mod queue;

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tocsin_pipeline::event::{Batch, Field, Lane, Origin, Span};
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::health::Trouble;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::{Delivery, DeliveryOutcome, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::time::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use vrl::value::Value;

pub(crate) use book::undelivered;
use book::{Answered, Book, Entered};
pub(crate) use digest::Digest;
use digest::Item;
use journal::Journal;
use latency::Latencies;
pub(crate) use queue::{Answer, Row};
use queue::{Limits, Next, Outcome, Overdue, Turn};

use crate::delivery::{Breaker, RateLimit};
use crate::retry::{self, Backoff};

/// A rendered notification is not longer: what is, is refused.
const PAYLOAD_MAX: usize = 4 << 20;
/// A record that may have to be handed on is not longer.
const RECORD_MAX: usize = 3 << 20;
/// How many rows wait at most; what comes beyond is folded into digests.
pub(crate) const ROWS_MAX: usize = 100_000;
/// How much the waiting rows may take, as before.
const BYTES_MAX: usize = 64 << 20;
/// How many names of settled rows the checkpoint holds; the journal holds more.
const SETTLED_IN_STATE: usize = 10_000;
/// How long written entries may be without an fsync: what a power cut may make the journal forget.
const SYNC_WITHIN: Duration = Duration::from_millis(20);
/// The journal is written anew when it has grown by this and to more than twice what it was.
const JOURNAL_GROWTH: u64 = 1 << 20;
/// Waits are cut to this, so that a clock that is set is noticed.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// What a record is to be told as: one for each receiver.
pub(crate) struct Draft {
    pub(crate) id: String,
    pub(crate) receiver: String,
    pub(crate) thread: String,
    pub(crate) payload: Vec<u8>,
}

/// Renders records and carries rows to their receivers.
pub(crate) trait Courier: Send + Sync + 'static {
    /// What is to be told of a record: nothing, or something for each receiver; an error refuses it.
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String>;

    /// What is to be told of many records that were not told one by one.
    fn digest(&self, digest: &Digest) -> Draft;

    /// Makes one attempt, within a time of its own.
    fn deliver(self: Arc<Self>, row: Row, now: Timestamp) -> BoxFuture<'static, Answer>;
}

/// What the sinks with an outbox let users set of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) concurrency: usize,
    /// How many rows may wait.
    pub(crate) max_waiting: usize,
    pub(crate) max_age: Duration,
    pub(crate) retry: retry::Config,
    pub(crate) breaker: Breaker,
    pub(crate) rate_limit: Option<RateLimit>,
    /// After which time somebody else is told, where somebody is.
    pub(crate) fallback_after: Option<Duration>,
}

/// An outbox, open.
pub(crate) struct Outbox {
    settings: Settings,
    book: Book,
    journal: Option<Recorder>,
    /// The receivers that are left alone for a while.
    paused: BTreeSet<String>,
    latencies: Latencies,
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
        let limits = Limits {
            rows: settings.max_waiting,
            bytes: BYTES_MAX,
            age: settings.max_age,
            retry: settings.retry,
            breaker: settings.breaker,
            rate: settings.rate_limit,
            fallback_after: settings.fallback_after,
        };
        let mut book = Book::new(limits, context.data_dir.is_some());
        if let Some(state) = &context.restored {
            book.restore(state).ok_or_else(|| SinkError("the state in the checkpoint does not read".into()))?;
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
                    book.roll_forward(entry);
                }
                Some(Recorder::start(journal))
            }
        };
        let mut outbox = Self { settings, book, journal, paused: BTreeSet::new(), latencies: Latencies::default() };
        if outbox.book.has_passed_journal() {
            outbox.rewrite(context).await;
        }
        Ok(outbox)
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
            if !is_stopping {
                self.tell_digests(&*courier, &context).await;
                self.overdue(&context).await;
            }
            let mut wait = self.mend(&context).await.map(|wait| wait.min(WAIT_MAX));
            if let Some(late) = self.latencies.look(&context) {
                wait = Some(wait.map_or(late, |wait| wait.min(late)).min(WAIT_MAX));
            }
            while !is_stopping && attempts.len() < self.settings.concurrency {
                let now = context.clock.now();
                match self.book.next(now) {
                    Next::Idle => break,
                    Next::At(at) => {
                        let due = at.since(now).min(WAIT_MAX);
                        wait = Some(wait.map_or(due, |wait| wait.min(due)));
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
            if has_ended && (is_stopping || self.book.is_empty()) {
                break;
            }
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
                input = context.input.recv(), if !has_ended => match input.map(|input| input.split().0) {
                    // The pipeline is gone without a word.
                    None => break,
                    Some(SinkInput::End) => has_ended = true,
                    Some(SinkInput::Batch(batch)) => self.take(&*courier, &batch, &context).await,
                    Some(SinkInput::Barrier { epoch, prepared }) => {
                        // Nobody waits for the answer of an epoch that was given up.
                        let _ = prepared.send(self.state());
                        self.book.prepared(epoch);
                    }
                    Some(SinkInput::Committed { epoch }) => {
                        self.book.committed(epoch);
                        self.record(&context).await;
                        self.tidy(&context).await;
                    }
                    Some(SinkInput::Watermark(_)) => {}
                },
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.close().await;
        }
        // Who goes on makes attempts at once.
        context.health.clear(Trouble::ReceiverAway, &context.name);
        self.latencies.close(&context);
        Ok(self.state())
    }

    /// Puts what is to be told of a batch into the queue, and into the journal before anything of it leaves.
    async fn take<C: Courier>(&mut self, courier: &C, batch: &Batch, context: &SinkContext) {
        let now = context.clock.now();
        let mut accepted = 0;
        for row in batch.rows() {
            let drafts = match courier.drafts(batch, row) {
                Ok(drafts) => drafts,
                Err(why) => {
                    context.rejected.reject(batch, row, Reason::Refused, &why).await;
                    continue;
                }
            };
            // Of some records there is nothing to be told: it is not delivered, and nobody has refused it.
            if drafts.is_empty() {
                context.metrics.dropped(Reason::Filtered, 1);
                continue;
            }
            let (mut is_accepted, mut refused) = (false, None);
            let record = match context.rejected.hands_on() {
                true => record_of(&batch.value(row), batch.time(row)),
                false => Bytes::new(),
            };
            for Draft { id, receiver, thread, payload } in drafts {
                if payload.len() > PAYLOAD_MAX || record.len() > RECORD_MAX {
                    let length = payload.len().max(record.len());
                    refused = Some(format!("{length} bytes are more than a notification may have"));
                    continue;
                }
                let item = |draft: &Row| Item::of(&batch.value(row), &draft.thread, batch.time(row));
                let receiving = receiver.clone();
                let draft = Draft { id, receiver, thread, payload };
                let name = draft.id.clone();
                let draft = row_of(draft, record.clone(), now, batch.arrival);
                let entered = self.book.enter(draft, now, item);
                if self.book.is_waiting(&name) {
                    self.latencies.taken(name, &batch.value(row), batch.arrival, context);
                }
                is_accepted |= entered != Entered::Known;
                if let Entered::Folded { is_first } = entered {
                    context.metrics.notification("digested");
                    if is_first {
                        let message = format!(
                            "{receiving} has as many notifications waiting as may; what comes is told in a digest"
                        );
                        context.health.raise(Trouble::OutboxFull, &context.name, message.trim_start());
                        tracing::warn!(
                            sink = %context.name, receiver = receiving,
                            "as many notifications wait as may; what comes now is told as one digest when there is room"
                        );
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
        fault::point("outbox.intent");
        self.record(context).await;
        fault::point("outbox.intended");
        context.metrics.sent(accepted);
    }

    /// Puts the digests that can be told into the queue.
    async fn tell_digests<C: Courier>(&mut self, courier: &C, context: &SinkContext) {
        while let Some(digest) = self.book.due() {
            let now = context.clock.now();
            let draft = courier.digest(&digest);
            tracing::warn!(
                sink = %context.name, receiver = draft.receiver, id = draft.id, count = digest.count(),
                "telling notifications as one digest"
            );
            let record = match context.rejected.hands_on() {
                true => record_of(&digest.value(), digest.until()),
                false => Bytes::new(),
            };
            self.book.tell(row_of(draft, record, now, digest.arrival()));
            self.record(context).await;
            if !self.book.has_digests() {
                context.health.clear(Trouble::OutboxFull, &context.name);
            }
        }
    }

    async fn answered(&mut self, id: &str, answer: Answer, context: &SinkContext) {
        let now = context.clock.now();
        let why = match &answer {
            Answer::Again { why, .. } => why.clone(),
            _ => String::new(),
        };
        context.deliveries.tell(|| {
            let outcome = match &answer {
                Answer::Delivered => DeliveryOutcome::Delivered,
                Answer::Again { why, .. } => DeliveryOutcome::Again(why.clone()),
                Answer::Never { why } => DeliveryOutcome::Refused(why.clone()),
            };
            Delivery { id: id.to_owned(), receiver: self.book.receiver(id).unwrap_or_default().to_owned(), outcome }
        });
        let Answered { outcome, turn, must_hand_on } = self.book.answered(id, answer, now);
        match outcome {
            Outcome::Delivered(row) => {
                if must_hand_on {
                    hand_on(&row, context).await;
                }
                context.metrics.notification("delivered");
                context.metrics.latency(now.since(row.arrival).as_secs_f64());
                self.latencies.delivered(id, now, context);
                self.turned(&row.receiver, turn, &why, context);
            }
            Outcome::Retry { at } => {
                context.metrics.notification("retried");
                tracing::warn!(sink = %context.name, id, error = why, next = %at, "not delivered, trying again");
                let receiver = self.book.receiver(id).unwrap_or_default().to_owned();
                self.turned(&receiver, turn, &why, context);
                return;
            }
            Outcome::Refused { row, why } => {
                self.latencies.gone(id);
                self.turned(&row.receiver, turn, &why, context);
                Self::refused(row, &why, context).await;
            }
        }
        self.record(context).await;
        fault::point("outbox.settled");
    }

    /// Does what follows from the age of rows that are not delivered.
    async fn overdue(&mut self, context: &SinkContext) {
        let mut is_changed = false;
        while let Some(overdue) = self.book.overdue(context.clock.now()) {
            is_changed = true;
            match overdue {
                Overdue::HandOn(row) => {
                    tracing::warn!(
                        sink = %context.name, id = row.id, receiver = row.receiver,
                        "not delivered for so long that it is handed on; attempts go on"
                    );
                    hand_on(&row, context).await;
                }
                Overdue::Refused { row, why } => {
                    self.latencies.gone(&row.id);
                    Self::refused(row, &why, context).await;
                }
            }
        }
        if is_changed {
            self.record(context).await;
        }
    }

    /// A row will never be delivered: it becomes a dead letter, and its record goes to whoever is told instead.
    async fn refused(row: Row, why: &str, context: &SinkContext) {
        context.metrics.notification("refused");
        tracing::error!(sink = %context.name, id = row.id, receiver = row.receiver, error = why, "refused for good");
        // First of all: what a crash forgets of it must be told again.
        hand_on(&row, context).await;
        let lane = Arc::new(Lane::of_operator(Arc::clone(&context.name), Origin::Operator));
        let spans = vec![Span::new(0, row.payload.len())];
        let letter = Batch::new(lane, row.payload, 0, spans, row.arrival);
        context.rejected.tell(&letter, 0, Reason::Refused, why).await;
    }

    /// A receiver is left alone from now on, or is there again.
    fn turned(&mut self, receiver: &str, turn: Turn, why: &str, context: &SinkContext) {
        match turn {
            Turn::None => {}
            Turn::Paused(until) => {
                tracing::warn!(sink = %context.name, receiver, error = why, %until, "it fails again and again: no attempts until then");
                let whose = if receiver.is_empty() { &*context.name } else { receiver };
                let message = format!("`{whose}` fails again and again, so that attempts are paused: {why}");
                context.health.raise(Trouble::ReceiverAway, &context.name, message);
                self.paused.insert(receiver.to_owned());
            }
            Turn::Back => {
                tracing::info!(sink = %context.name, receiver, "it answers again");
                self.paused.remove(receiver);
                if self.paused.is_empty() {
                    context.health.clear(Trouble::ReceiverAway, &context.name);
                }
            }
        }
    }

    /// Writes to the journal what has changed. Where that fails, notifications go on leaving: without the journal a crash may repeat
    /// some, but keeping quiet about an alert is worse.
    async fn record(&mut self, context: &SinkContext) {
        let Some(journal) = &mut self.journal else { return };
        let frames = self.book.take_frames();
        if frames.is_empty() || journal.broken.is_some() {
            return;
        }
        if let Err(error) = journal.order(|done| Order::Append { frames, done }).await {
            tracing::error!(sink = %context.name, %error, "writing the journal of the outbox; going on without it");
            self.broken(&error, context);
        }
    }

    /// The journal cannot be written: that is told, and tried again after a while.
    fn broken(&mut self, error: &std::io::Error, context: &SinkContext) {
        let Some(journal) = &mut self.journal else { return };
        context.metrics.error("journal");
        let message =
            format!("the journal of the outbox cannot be written, so that a crash may repeat notifications: {error}");
        context.health.raise(Trouble::OutboxJournal, &context.name, message);
        let mut backoff = journal
            .broken
            .take()
            .map_or_else(|| Backoff::new(retry::Config::default(), &context.name), |broken| broken.backoff);
        let at = context.clock.monotonic().saturating_add(backoff.next(None));
        journal.broken = Some(Broken { backoff, at });
    }

    /// Writes a broken journal anew when it is time to try; gives how long that is not yet so. Checkpoints cannot be waited
    /// for: where the disk is full, there are none.
    async fn mend(&mut self, context: &SinkContext) -> Option<Duration> {
        let at = self.journal.as_ref()?.broken.as_ref()?.at;
        if at <= context.clock.monotonic() {
            self.rewrite(context).await;
        }
        let at = self.journal.as_ref()?.broken.as_ref()?.at;
        Some(at.saturating_sub(context.clock.monotonic()))
    }

    /// Writes the journal anew, with what is known and no more, where that is much shorter. It then holds all that a
    /// checkpoint does, so that no older checkpoint can lack what was cut.
    async fn tidy(&mut self, context: &SinkContext) {
        let Some(journal) = &self.journal else { return };
        if journal.broken.is_none() && journal.length > JOURNAL_GROWTH + 2 * journal.length_fresh {
            self.rewrite(context).await;
        }
    }

    async fn rewrite(&mut self, context: &SinkContext) {
        let Some(journal) = &mut self.journal else { return };
        let frames = self.book.whole();
        match journal.order(|done| Order::Rewrite { frames, done }).await {
            Ok(()) => {
                if journal.broken.take().is_some() {
                    tracing::info!(sink = %context.name, "the journal of the outbox is written again");
                    context.health.clear(Trouble::OutboxJournal, &context.name);
                }
                journal.length_fresh = journal.length;
            }
            Err(error) => {
                tracing::error!(sink = %context.name, %error, "writing the journal of the outbox anew");
                self.broken(&error, context);
            }
        }
    }

    fn state(&mut self) -> SinkState {
        self.book.state().map_or(SinkState::Unchanged, |state| SinkState::State(state.into()))
    }
}

/// A row that was not sent yet.
pub(crate) fn row_of(draft: Draft, record: Bytes, now: Timestamp, arrival: Timestamp) -> Row {
    let Draft { id, receiver, thread, payload } = draft;
    let payload = Bytes::from(payload);
    let (next, created) = (now, now);
    Row { id, receiver, thread, payload, record, attempts: 0, is_handed_on: false, next, created, arrival }
}

/// A record as rows keep it.
fn record_of(record: &Value, time: Timestamp) -> Bytes {
    let mut bytes = time.0.to_le_bytes().to_vec();
    tocsin_pipeline::json::write_value(record, &mut bytes);
    bytes.into()
}

/// Gives the record of a row to whoever is told instead. It has the same identity there, so that it is told once however often it
/// is handed on.
async fn hand_on(row: &Row, context: &SinkContext) {
    let Some((time, record)) = row.record.split_first_chunk::<8>() else { return };
    // What is not read was not written by this.
    let Ok(record) = tocsin_pipeline::json::parse_value(record) else { return };
    context.rejected.hand_on(record, Timestamp(i64::from_le_bytes(*time)), row.arrival).await;
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
    broken: Option<Broken>,
}

/// A journal that cannot be written.
struct Broken {
    backoff: Backoff,
    /// When to try again, by the monotonic clock.
    at: Duration,
}

impl Recorder {
    fn start(journal: Journal) -> Self {
        let length = journal.length;
        let (orders, received) = blocking::sync_channel(16);
        tokio::task::spawn_blocking(move || keep(journal, &received));
        Self { orders, length, length_fresh: 0, broken: None }
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
