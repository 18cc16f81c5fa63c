//! The thread that writes files: takes batches, spreads them over files, makes them durable at barriers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::{SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::store::Storage;
use tocsin_pipeline::time::{Timestamp, nanos};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TryRecvError;

use super::Settings;
use super::ledger::{self, Journal, OpenFile, STATE_VERSION, State, Step};
use super::output::Output;
use super::path::{Folder, PathTemplate};
use crate::encoding::Piece;
use crate::receipts::Receipts;
use crate::retry::{self, Backoff};

/// So much is buffered, over all files, before it is written although more is waiting.
const BUFFER_BYTES: usize = 512 * 1024;

/// So many batches are buffered at most: small ones on a busy machine.
const BUFFER_BATCHES: usize = 256;

/// How often files are looked at that may have been idle for long enough.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was found, and put right, before the first record.
pub(super) struct Recovered {
    folder: Folder,
    journal: Journal,
    state: State,
}

/// Cuts all files back to what the checkpoint says.
pub(super) fn recover(
    folder: &Path,
    storage: Arc<dyn Storage>,
    data_dir: Option<&Path>,
    restored: Option<&[u8]>,
    keeps_all: bool,
) -> Result<Recovered, SinkError> {
    let told = |action: String| move |error: io::Error| SinkError(format!("{action}: {error}"));
    let state: Option<State> = restored
        .map(|bytes| match serde_json::from_slice::<State>(bytes) {
            Ok(state) if state.version == STATE_VERSION => Ok(state),
            Ok(state) => Err(SinkError(format!("the checkpoint is of version {}, not {STATE_VERSION}", state.version))),
            Err(error) => Err(SinkError(format!("reading the checkpoint: {error}"))),
        })
        .transpose()?;
    let base = Folder::open(folder).map_err(told(format!("opening {}", folder.display())))?;
    let mut journal =
        Journal::open(storage, data_dir).map_err(told("reading the journal of opened files".to_owned()))?;
    for step in ledger::recovery(state.as_ref(), &journal) {
        if fault::is_planted(Defect::NoCut) {
            continue;
        }
        fault::point("output.cut");
        let (Step::Remove { name } | Step::Cut { name, .. }) = &step;
        let action = format!("cutting {} back to the checkpoint", folder.join(name).display());
        apply(&base, &step, keeps_all).map_err(told(action))?;
    }
    let state = state.unwrap_or(State { version: STATE_VERSION, ..State::default() });
    journal.recovered(state.epoch).map_err(told("writing the journal of opened files".to_owned()))?;
    fault::point("output.recovered");
    Ok(Recovered { folder: base, journal, state })
}

/// Does one step of a recovery. Doing it twice does no harm: the daemon may die in between.
fn apply(folder: &Folder, step: &Step, keeps_all: bool) -> io::Result<()> {
    let Step::Cut { name, identity: expected, length, was_opened_again } = step else {
        let Step::Remove { name } = step else { return Ok(()) };
        return folder.remove(name);
    };
    let (found, is) = match folder.look(name)? {
        Some(found) => found,
        None => {
            // Taken away by someone: what it held is theirs now. Where old files are deleted, it was one of them.
            if keeps_all {
                tracing::warn!(file = %name, "a file of the checkpoint has gone; a new one begins");
            }
            return Ok(());
        }
    };
    if found != *expected {
        if *was_opened_again {
            tracing::warn!(file = %name, "a file was moved away after the checkpoint; what it got since stands in it twice");
            return folder.remove(name);
        }
        return Err(io::Error::other("it is another file than the one the checkpoint speaks of; move it away"));
    }
    if is < *length {
        return Err(io::Error::other(format!(
            "it holds {is} bytes and the checkpoint says {length}: someone cut it; move it away"
        )));
    }
    let file = folder.append_to(name, 0, false)?;
    file.set_len(*length)?;
    file.sync_all()
}

/// Why the writer cannot go on.
enum Halt {
    /// The time for draining is over.
    Stopped,
    /// What was written may be lost; only going back to the checkpoint is right.
    Broken(String),
}

/// The state of the writing thread.
pub(super) struct Writer {
    path: PathTemplate,
    settings: Arc<Settings>,
    context: SinkContext,
    runtime: Handle,
    folder: Folder,
    journal: Journal,
    /// The open files by path.
    outputs: BTreeMap<String, Output>,
    /// The files of the checkpoint that have not been opened since, by path: where their sequences go on. Their lengths
    /// need not be in later states: opening them writes a line of the journal.
    restored: BTreeMap<String, OpenFile>,
    /// The names in the state prepared last: these files need no line in the journal.
    prepared: BTreeSet<String>,
    /// Files made since the last barrier, whose entries in their folders are not durable yet.
    created: BTreeSet<String>,
    /// Rotated files that may be deleted once a checkpoint later than this epoch is complete.
    outdated: Vec<(u64, String)>,
    /// The epoch of the barrier seen last.
    epoch: u64,
    /// Counts what changes the state; it stood at `committed_changes` for the state of the last complete checkpoint.
    changes: u64,
    committed_changes: u64,
    /// The epoch of the state answered last, and the count then.
    answered: (u64, u64),
    /// About how many bytes are buffered.
    buffered: usize,
    receipts: Receipts,
    looked: Duration,
}

impl Writer {
    pub(super) fn new(
        path: PathTemplate,
        settings: Arc<Settings>,
        recovered: Recovered,
        context: SinkContext,
        runtime: Handle,
    ) -> Self {
        let Recovered { folder, journal, state } = recovered;
        let prepared = state.files.iter().map(OpenFile::name).collect();
        let restored = state.files.into_iter().map(|file| (file.path.clone(), file)).collect();
        Self {
            path,
            settings,
            runtime,
            folder,
            journal,
            outputs: BTreeMap::new(),
            restored,
            prepared,
            created: BTreeSet::new(),
            outdated: Vec::new(),
            epoch: state.epoch,
            // The restored state is of another run: the first barrier says it anew.
            changes: 1,
            committed_changes: 0,
            answered: (0, 0),
            buffered: 0,
            receipts: Receipts::default(),
            looked: context.clock.monotonic(),
            context,
        }
    }

    pub(super) fn run(mut self) -> Result<SinkState, SinkError> {
        match self.work() {
            Ok(state) => Ok(state),
            Err(Halt::Stopped) => Ok(SinkState::Failed("stopped before everything was written".to_owned())),
            Err(Halt::Broken(message)) => Err(SinkError(message)),
        }
    }

    fn work(&mut self) -> Result<SinkState, Halt> {
        loop {
            let queued = match self.context.input.try_recv() {
                Ok(queued) => Some(queued),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    self.flush()?;
                    self.close_idle()?;
                    let input = &mut self.context.input;
                    let has_files = !self.outputs.is_empty();
                    let received = self.runtime.block_on(async {
                        match has_files {
                            true => tokio::time::timeout(LOOK_EVERY, input.recv()).await,
                            false => Ok(input.recv().await),
                        }
                    });
                    match received {
                        Ok(received) => received,
                        Err(_) => continue,
                    }
                }
            };
            // Without an end the daemon has failed: what is not in a checkpoint will be written again.
            let Some(queued) = queued else { return Ok(SinkState::Unchanged) };
            let (input, _permit) = queued.split();
            match input {
                SinkInput::Batch(batch) => self.take(batch)?,
                SinkInput::Barrier { epoch, prepared } => {
                    let (state, broken) = self.prepare(epoch);
                    // Nobody waits for the answer of an epoch that was abandoned.
                    let _ = prepared.send(state);
                    if let Some(message) = broken {
                        return Err(Halt::Broken(message));
                    }
                }
                SinkInput::Committed { epoch } => self.committed(epoch),
                SinkInput::Watermark(_) => {}
                SinkInput::End => {
                    self.flush()?;
                    // What is written now is after the last barrier and before every later one.
                    let (state, broken) = self.prepare(self.epoch + 1);
                    return broken.map_or(Ok(state), |message| Err(Halt::Broken(message)));
                }
            }
        }
    }

    /// Calls `attempt` until it succeeds: a full disk is waited for, however long it takes.
    fn insist<T>(&mut self, action: &str, mut attempt: impl FnMut(&mut Self) -> io::Result<T>) -> Result<T, Halt> {
        let mut backoff = Backoff::new(retry::Config::default(), &self.context.name);
        loop {
            let error = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            self.context.metrics.error("write");
            if backoff.attempts() == 0 {
                tracing::error!(sink = %self.context.name, %error, "{action}; trying again until it works");
            }
            let wait = backoff.next(None);
            let stop = self.context.stop.clone();
            self.runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            });
            if self.context.stop.is_cancelled() {
                return Err(Halt::Stopped);
            }
        }
    }

    fn take(&mut self, mut batch: Batch) -> Result<(), Halt> {
        if batch.is_empty() {
            return Ok(());
        }
        self.changes += 1;
        let files = self.path.split(&mut batch);
        // More files than may be open are taken in parts, so that none is closed before it is written.
        for files in files.chunks(self.settings.max_open_files) {
            let refused = self.open_all(files, &batch)?;
            for (path, rows) in files {
                let part = match rows {
                    Some(rows) => &batch.select(rows.clone()),
                    None => &batch,
                };
                if let Some(message) = refused.get(path) {
                    for row in part.rows() {
                        let rejected = self.context.rejected.reject(part, row, Reason::Refused, message);
                        self.runtime.block_on(rejected);
                    }
                    continue;
                }
                self.receipts.taken(part);
                self.append(path, part)?;
            }
        }
        if self.buffered >= BUFFER_BYTES || self.receipts.len() >= BUFFER_BATCHES {
            self.flush()?;
        }
        Ok(())
    }

    /// Opens the files that are not open yet; gives those that cannot be opened, with the reason.
    fn open_all(
        &mut self,
        files: &[(String, Option<Vec<u32>>)],
        batch: &Batch,
    ) -> Result<BTreeMap<String, String>, Halt> {
        let mut refused = BTreeMap::new();
        let missing: Vec<_> = files.iter().filter(|(path, _)| !self.outputs.contains_key(path)).collect();
        if missing.is_empty() {
            return Ok(refused);
        }
        let wanted: BTreeSet<&str> = files.iter().map(|(path, _)| &**path).collect();
        let mut opening = Vec::new();
        let mut lines = Vec::new();
        for (path, rows) in missing {
            let first = rows.as_ref().and_then(|rows| rows.first().copied()).or_else(|| batch.rows().next());
            let period = first.and_then(|row| self.period(batch.time(row)));
            match self.insist("looking for a file", |writer| retriable(writer.choose(path, period)))? {
                Ok((sequence, period, before)) => {
                    let name = ledger::name(path, sequence);
                    if !self.prepared.contains(&name) && !self.journal.knows(&name) {
                        lines.push((name, before));
                    }
                    opening.push((path.clone(), sequence, period));
                }
                Err(error) => {
                    refused.insert(path.clone(), error.to_string());
                }
            }
        }
        self.insist("writing the journal of opened files", |writer| writer.journal.opened(lines.clone()))?;
        for (path, sequence, period) in opening {
            self.make_room(&wanted)?;
            if let Err(error) = self.open_one(&path, sequence, period)? {
                refused.insert(path, error.to_string());
            }
        }
        Ok(refused)
    }

    /// Closes the file unused for longest if there are as many as there may be.
    fn make_room(&mut self, wanted: &BTreeSet<&str>) -> Result<(), Halt> {
        while self.outputs.len() >= self.settings.max_open_files {
            let unused = self.outputs.values().filter(|output| !wanted.contains(&*output.path));
            let Some(path) = unused.min_by_key(|output| output.touched).map(|output| output.path.clone()) else {
                break;
            };
            self.close(&path)?;
        }
        Ok(())
    }

    /// Which stretch of time a moment is in, where files are rotated by time.
    fn period(&self, time: Timestamp) -> Option<i64> {
        let every = self.settings.rotation?.every?;
        Some(time.0.div_euclid(nanos(every.0).max(1)))
    }

    /// Which file of a sequence to write on with, and what it is now.
    #[expect(clippy::type_complexity, reason = "three facts, used once")]
    fn choose(
        &mut self,
        path: &str,
        period: Option<i64>,
    ) -> io::Result<(u64, Option<i64>, Option<(super::path::Identity, u64)>)> {
        let restored = self.restored.get(path).map(|file| (file.sequence, file.period));
        let Some(rotation) = self.settings.rotation else {
            let (sequence, period) = restored.unwrap_or((0, None));
            return Ok((sequence, period, self.folder.look(&ledger::name(path, sequence))?));
        };
        let sequences = self.folder.sequences(path)?;
        let last = restored.map_or(sequences.last().copied().unwrap_or(0), |(sequence, _)| sequence);
        if let Some(keep) = rotation.keep {
            // Also those whose turn came before a crash: nobody else remembers them.
            let old = sequences.iter().filter(|sequence| last.saturating_sub(**sequence) > keep);
            self.outdated.extend(old.map(|sequence| (self.epoch, ledger::name(path, *sequence))));
        }
        if let Some((sequence, period)) = restored {
            return Ok((sequence, period, self.folder.look(&ledger::name(path, sequence))?));
        }
        // Which stretch of time a file found holds is not known, so none is continued.
        if last > 0 && rotation.every.is_none() {
            let found = self.folder.look(&ledger::name(path, last))?;
            if found.is_some_and(|(_, length)| rotation.size.is_none_or(|size| length < size.0)) {
                return Ok((last, None, found));
            }
        }
        Ok((last + 1, period, None))
    }

    /// Opens a file; the inner error is one that trying again would not cure.
    fn open_one(&mut self, path: &str, sequence: u64, period: Option<i64>) -> Result<io::Result<()>, Halt> {
        let name = ledger::name(path, sequence);
        let opened = self.insist("opening a file", |writer| {
            let is_new = match writer.folder.look(&name) {
                Ok(found) => found.is_none(),
                Err(error) => return retriable(Err(error)),
            };
            let compression = writer.settings.compression;
            fault::point("output.open");
            let output = writer
                .folder
                .append_to(&name, writer.settings.mode, true)
                .and_then(|file| Output::new(path.to_owned(), sequence, period, file, compression));
            retriable(output.map(|output| (output, is_new)))
        })?;
        Ok(opened.map(|(mut output, is_new)| {
            fault::point("output.opened");
            if is_new {
                self.created.insert(name);
            }
            output.touched = self.context.clock.monotonic();
            self.restored.remove(path);
            self.outputs.insert(path.to_owned(), output);
        }))
    }

    /// Appends the records of a batch to an open file.
    fn append(&mut self, path: &str, batch: &Batch) -> Result<(), Halt> {
        let settings = Arc::clone(&self.settings);
        let touched = self.context.clock.monotonic();
        let mut failures = 0;
        if settings.rotation.is_none() {
            let Some(output) = self.outputs.get_mut(path) else { return Ok(()) };
            output.touched = touched;
            let before = output.buffer().len();
            let mut outcome = Ok(());
            settings.encoder.pieces(batch, |piece| match piece {
                // A failed write keeps what it could not write, and what follows waits behind it.
                Piece::Lines(bytes) => {
                    outcome = output.append_lines(bytes).and(std::mem::replace(&mut outcome, Ok(())))
                }
                Piece::Row(row) => {
                    failures += settings.encoder.append(batch, row, output.buffer());
                    output.buffer().push(b'\n');
                }
            });
            self.buffered += output.buffer().len().saturating_sub(before);
            self.context.metrics.expression_errors(failures);
            if outcome.is_err() {
                self.flush()?;
            }
            return Ok(());
        }
        for row in batch.rows() {
            self.rotate_before(path, batch.time(row))?;
            let Some(output) = self.outputs.get_mut(path) else { return Ok(()) };
            output.touched = touched;
            let before = output.buffer().len();
            failures += settings.encoder.append(batch, row, output.buffer());
            output.buffer().push(b'\n');
            self.buffered += output.buffer().len().saturating_sub(before);
        }
        self.context.metrics.expression_errors(failures);
        Ok(())
    }

    /// Begins the next file of a sequence if the one being written is full or its stretch of time is over.
    fn rotate_before(&mut self, path: &str, time: Timestamp) -> Result<(), Halt> {
        let period = self.period(time);
        let (Some(rotation), Some(output)) = (self.settings.rotation, self.outputs.get_mut(path)) else {
            return Ok(());
        };
        if output.length() == 0 {
            output.period = output.period.max(period);
        }
        let is_full = rotation.size.is_some_and(|size| output.length() >= size.0);
        // Only forward: a late record does not bring an old stretch back.
        let is_over = output.period < period;
        if !is_full && !is_over {
            return Ok(());
        }
        let sequence = output.sequence + 1;
        let period = output.period.max(period);
        fault::point("output.rotate");
        self.close(path)?;
        if let Some(old) = rotation.keep.and_then(|keep| sequence.checked_sub(keep + 1)).filter(|old| *old > 0) {
            self.outdated.push((self.epoch, ledger::name(path, old)));
        }
        let name = ledger::name(path, sequence);
        let before = self.insist("looking for a file", |writer| writer.folder.look(&name))?;
        self.insist("writing the journal of opened files", |writer| {
            writer.journal.opened(vec![(name.clone(), before)])
        })?;
        loop {
            match self.open_one(path, sequence, period)? {
                Ok(()) => return Ok(()),
                // The one before could be opened, so this is no fault of the name.
                Err(error) => self.insist("opening the next file", |_| Err(io::Error::other(error.to_string())))?,
            }
        }
    }

    /// Hands everything to the system, and says that it was accepted.
    fn flush(&mut self) -> Result<(), Halt> {
        if self.receipts.len() == 0 {
            return Ok(());
        }
        self.insist("writing to a file", |writer| all(writer.outputs.values_mut().map(Output::flush)))?;
        self.buffered = 0;
        self.receipts.accepted(&self.context);
        Ok(())
    }

    /// Closes a file for good: a later record opens it again.
    fn close(&mut self, path: &str) -> Result<(), Halt> {
        self.changes += 1;
        self.insist("writing to a file", |writer| writer.outputs.get_mut(path).map_or(Ok(()), Output::finish))?;
        let Some(mut output) = self.outputs.remove(path) else { return Ok(()) };
        let synced = output.sync(self.settings.sync);
        synced.map(drop).map_err(|error| Halt::Broken(broken(&output.name(), &error)))
    }

    /// Closes files that were not written to for long.
    fn close_idle(&mut self) -> Result<(), Halt> {
        let now = self.context.clock.monotonic();
        if now.saturating_sub(self.looked) < LOOK_EVERY {
            return Ok(());
        }
        self.looked = now;
        let idle_close = self.settings.idle_close;
        let is_idle = |output: &&Output| now.saturating_sub(output.touched) >= idle_close;
        let idle: Vec<_> = self.outputs.values().filter(is_idle).map(|output| output.path.clone()).collect();
        idle.iter().try_for_each(|path| self.close(path))
    }

    /// Makes everything durable and says how long the files are. The message is there when the sink cannot go on.
    fn prepare(&mut self, epoch: u64) -> (SinkState, Option<String>) {
        if self.changes == self.committed_changes {
            self.journal.barrier(epoch);
            self.epoch = epoch;
            return (SinkState::Unchanged, None);
        }
        // A barrier does not wait for a disk that is full: this epoch is abandoned, and writing is tried again.
        if let Err(error) = all(self.outputs.values_mut().map(Output::finish)) {
            self.context.metrics.error("write");
            return (SinkState::Failed(format!("writing to a file: {error}")), None);
        }
        self.buffered = 0;
        self.receipts.accepted(&self.context);
        let mut files = Vec::new();
        let mut moved = Vec::new();
        for output in self.outputs.values_mut() {
            let name = output.name();
            let length = match output.sync(self.settings.sync) {
                Ok(length) => length,
                Err(error) => {
                    self.context.metrics.error("sync");
                    let message = broken(&name, &error);
                    return (SinkState::Failed(message.clone()), Some(message));
                }
            };
            // Someone may have moved it away, to compress it perhaps. Then a new one begins.
            match self.folder.look(&name) {
                Ok(Some((identity, _))) if identity == output.identity => files.push(OpenFile {
                    path: output.path.clone(),
                    sequence: output.sequence,
                    period: output.period,
                    identity,
                    length,
                }),
                _ => moved.push(output.path.clone()),
            }
        }
        for path in moved {
            self.outputs.remove(&path);
        }
        if self.settings.sync {
            for name in &self.created {
                match self.folder.sync_to(name) {
                    Ok(()) => {}
                    // Moved away together with its folder.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        let message = broken(name, &error);
                        return (SinkState::Failed(message.clone()), Some(message));
                    }
                }
            }
        }
        fault::point("output.named");
        self.created.clear();
        self.prepared = files.iter().map(OpenFile::name).collect();
        self.epoch = epoch;
        self.journal.barrier(epoch);
        self.answered = (epoch, self.changes);
        let state = State { version: STATE_VERSION, epoch, files };
        (SinkState::State(Bytes::from(serde_json::to_vec(&state).expect("states have string keys"))), None)
    }

    fn committed(&mut self, epoch: u64) {
        if self.answered.0 == epoch {
            self.committed_changes = self.answered.1;
        }
        if let Err(error) = self.journal.committed(epoch) {
            tracing::warn!(sink = %self.context.name, %error, "shortening the journal of opened files");
        }
        let (due, later) = std::mem::take(&mut self.outdated).into_iter().partition(|(since, _)| *since < epoch);
        self.outdated = later;
        let due: Vec<(u64, String)> = due;
        for (_, name) in due {
            fault::point("output.delete");
            if let Err(error) = self.folder.remove(&name) {
                self.context.metrics.error("delete");
                tracing::warn!(sink = %self.context.name, file = %name, %error, "deleting an old file");
            }
            fault::point("output.deleted");
        }
    }
}

/// Does all, even after one has failed, and tells the first failure: a folder may be on a disk that works.
fn all(outcomes: impl Iterator<Item = io::Result<()>>) -> io::Result<()> {
    let mut first = Ok(());
    for outcome in outcomes {
        first = first.and(outcome);
    }
    first
}

/// Sorts errors: those that time may cure stay errors, the others become an answer.
fn retriable<T>(outcome: io::Result<T>) -> io::Result<io::Result<T>> {
    match outcome {
        Ok(done) => Ok(Ok(done)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidFilename
                    | io::ErrorKind::InvalidInput
            ) || matches!(
                rustix::io::Errno::from_io_error(&error),
                Some(rustix::io::Errno::NXIO | rustix::io::Errno::LOOP)
            ) =>
        {
            Ok(Err(error))
        }
        Err(error) => Err(error),
    }
}

fn broken(name: &str, error: &io::Error) -> String {
    format!(
        "making {name} durable: {error}; what was written since the last checkpoint may be lost, so it must be written again from there"
    )
}
