//! The loop of the `file` source: looks what is there, reads what is new, waits for changes.

mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::source::{BLOCK_BYTES, Block, Framing, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::time::{Timestamp, nanos};
use tokio::runtime::Handle;

use super::content::{self, Buffers, Content, Form};
use super::find::{self, Matches, Pattern};
use super::generation::{Generation, State, to_json};
use super::identity::{
    Candidate, Found, Guards, Identity, Look, Original, Position, Resume, on_found, on_look, on_resume,
};
use super::watch::Watch;
use super::{Config, ReadFrom};
use crate::framing::{self, Framed};

/// How many generations are known at most. Beyond that, new files are left alone, and counted, until others are forgotten.
const GENERATIONS_MAX: usize = 100_000;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// After so many failures, a file that does not change is given up: a compressed one, or any with `once`.
const FAILURES_MAX: u32 = 6;

/// A file that was written to so recently and cannot be understood may not be complete.
const HALF_WRITTEN: Duration = Duration::from_secs(60);

/// Why the worker returns before its end: it was told to stop, or nobody listens.
struct End;

/// A file that is there.
#[derive(Clone, Debug)]
struct There {
    path: PathBuf,
    identity: Identity,
    size: u64,
    modified: Timestamp,
}

pub(super) struct Worker {
    options: Config,
    paths: Vec<Pattern>,
    exclude: Vec<Pattern>,
    once: bool,
    context: SourceContext,
    runtime: Handle,
    watch: Option<Watch>,
    buffers: Buffers,
    /// In the order they were found in, which is the order they are read in.
    generations: BTreeMap<u64, Generation>,
    by_partition: BTreeMap<String, u64>,
    next: u64,
    /// Those with a smaller number come from the checkpoint.
    restored: u64,
    /// What has something to read, or may have.
    dirty: BTreeSet<u64>,
    /// What has to be looked at when some time has passed.
    timed: BTreeSet<u64>,
    open: BTreeSet<u64>,
    /// Copies of what is read elsewhere, as they were when they were found to be.
    shadows: BTreeMap<Identity, (u64, Timestamp)>,
    /// What the paths said that could not be opened, so that it is told once.
    troubled: BTreeSet<PathBuf>,
    is_first_look: bool,
    looked: Duration,
    /// Names have changed since the last look.
    is_stale: bool,
    /// The first of the files that `once` had to leave unread.
    given_up: Option<String>,
}

impl Worker {
    pub(super) fn new(
        options: Config,
        paths: Vec<Pattern>,
        exclude: Vec<Pattern>,
        context: SourceContext,
        runtime: Handle,
    ) -> Self {
        let once = options.once || context.once;
        let watch = if once {
            None
        } else {
            let _entered = runtime.enter();
            Watch::new()
        };
        Self {
            options,
            paths,
            exclude,
            once,
            context,
            runtime,
            watch,
            buffers: Buffers::default(),
            generations: BTreeMap::new(),
            by_partition: BTreeMap::new(),
            next: 0,
            restored: 0,
            dirty: BTreeSet::new(),
            timed: BTreeSet::new(),
            open: BTreeSet::new(),
            shadows: BTreeMap::new(),
            troubled: BTreeSet::new(),
            is_first_look: true,
            looked: Duration::ZERO,
            is_stale: true,
            given_up: None,
        }
    }

    pub(super) fn run(mut self) -> Result<(), SourceError> {
        // Told to stop, or nobody listens any more: there is nobody to tell more to.
        let Ok(()) = self.work() else { return Ok(()) };
        match self.given_up {
            Some(message) => Err(SourceError(message)),
            None => Ok(()),
        }
    }

    fn work(&mut self) -> Result<(), End> {
        loop {
            if self.context.stop.is_cancelled() {
                return Err(End);
            }
            let mut more = self.take_changes();
            let now = self.context.clock.monotonic();
            if self.is_stale || now.saturating_sub(self.looked) >= self.options.poll_interval.0 {
                self.look(now)?;
            }
            self.look_at_timed(now)?;
            let ready: Vec<u64> = self.dirty.iter().copied().filter(|number| self.is_ready(*number, now)).collect();
            for number in &ready {
                self.read(*number)?;
                more = true;
                if self.once {
                    // One after the other: the first goes on until it is finished.
                    break;
                }
            }
            if self.once && self.dirty.is_empty() && !self.is_stale {
                return Ok(());
            }
            if !more && !self.is_stale {
                self.wait()?;
            }
        }
    }

    fn is_ready(&self, number: u64, now: Duration) -> bool {
        let generation = &self.generations[&number];
        generation.retry.is_none_or(|retry| retry <= now)
            && generation.after.is_none_or(|before| !self.dirty.contains(&before))
    }

    fn take_changes(&mut self) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        let changes = watch.take();
        self.is_stale |= changes.names || changes.all;
        if changes.all {
            self.context.metrics.error("changes_lost");
            self.dirty
                .extend(self.generations.iter().filter(|(_, it)| it.state == State::Live).map(|(number, _)| number));
        }
        for partition in changes.written {
            if let Some(number) = self.by_partition.get(&partition) {
                if self.generations[number].state == State::Live {
                    self.dirty.insert(*number);
                } else {
                    // Finished and written to again: whether it is read depends on what it is called now.
                    self.is_stale = true;
                }
            }
        }
        changes.more
    }

    /// Sleeps until something changes, is due, or the worker is to stop.
    fn wait(&mut self) -> Result<(), End> {
        let now = self.context.clock.monotonic();
        let mut wake = self.looked + self.options.poll_interval.0;
        for number in &self.timed {
            let generation = &self.generations[number];
            let due = [
                generation.framer.deadline(),
                generation.retry,
                generation.displaced.map(|since| since.max(generation.grown) + self.options.rotate_wait.0),
            ];
            wake = due.into_iter().flatten().fold(wake, Duration::min);
        }
        // At least a little: what is due and cannot be done yet must not keep a core busy.
        let rest = wake.saturating_sub(now).max(Duration::from_millis(1));
        let Self { context, watch, runtime, .. } = self;
        runtime.block_on(async {
            let changed = async {
                match watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = context.stop.cancelled() => Err(End),
                () = context.events.closed() => Err(End),
                () = changed => Ok(()),
                () = tokio::time::sleep(rest) => Ok(()),
            }
        })
    }

    fn emit(&self, event: SourceEvent) -> Result<(), End> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.context.stop.cancelled() => Err(End),
                sent = self.context.emit(event) => sent.map_err(|_| End),
            }
        })
    }

    /// Tells of the lanes that were found at the start, before the first is read: so the time of one does not run ahead of
    /// those that wait. With `once`, of the first of each rotation, as its files follow each other in time.
    fn announce(&mut self) -> Result<(), End> {
        let mut families = BTreeSet::new();
        for number in self.dirty.clone() {
            if !self.once || families.insert(self.generations[&number].family.clone()) {
                self.announce_lane(number)?;
            }
        }
        Ok(())
    }

    fn announce_lane(&self, number: u64) -> Result<(), End> {
        let generation = &self.generations[&number];
        let block = Block {
            bytes: Bytes::new(),
            framing: Framing::Lines,
            base: generation.position.offset,
            position: to_json(&generation.position),
            arrival: self.context.clock.now(),
            acknowledgement: None,
            notes: None,
        };
        self.emit(SourceEvent::Block(Arc::clone(&generation.lane), block))
    }

    fn close_lane(&self, number: u64) -> Result<(), End> {
        let generation = &self.generations[&number];
        let keep = Some(to_json(&generation.position));
        self.emit(SourceEvent::Closed { lane: Arc::clone(&generation.lane), keep })
    }

    // --- reading ---------------------------------------------------------------------------------------------------

    /// Reads the next block of a generation.
    fn read(&mut self, number: u64) -> Result<(), End> {
        if !self.ensure_open(number)? {
            return Ok(());
        }
        let now = self.context.clock.monotonic();
        let generation = self.generations.get_mut(&number).expect("it is dirty");
        let content = generation.content.as_mut().expect("it was just opened");
        let size = match content.size() {
            Ok(size) => size,
            Err(error) => return self.fail(number, &error),
        };
        let mut wanted = BLOCK_BYTES;
        if let Some(size) = size {
            let offset = content.offset();
            match on_look(size, offset, || tail_matches(content, &generation.position)) {
                Look::Truncated => return self.truncated(number),
                Look::Nothing => return self.at_end(number),
                Look::Read => wanted = usize::try_from(size - offset).map_or(BLOCK_BYTES, |size| size.min(BLOCK_BYTES)),
            }
        }
        let mut buffer = self.buffers.get(wanted);
        generation.framer.carry(&mut buffer);
        if buffer.capacity() < BLOCK_BYTES {
            buffer.reserve_exact(wanted);
        }
        let (start, carried) = (generation.framer.next_offset(), buffer.len());
        let outcome = content.read(&mut buffer);
        // Once more: it may have been truncated and written anew while it was looked at and read.
        let is_truncated = !tail_matches(content, &generation.position);
        if is_truncated {
            buffer.truncate(carried);
        }
        let chunk = self.buffers.share(buffer);
        let mut framed = Vec::new();
        generation.framer.push(chunk.clone(), now, &mut framed);
        if is_truncated {
            return self.truncated(number);
        }
        if !framed.is_empty() {
            generation.is_idle_told = false;
        }
        self.hand_over(number, framed, &chunk, start)?;
        let generation = self.generations.get_mut(&number).expect("it was here before");
        generation.remember(&chunk, start);
        if generation.framer.deadline().is_some() {
            self.timed.insert(number);
        }
        match outcome {
            Ok(0) => self.at_end(number),
            Ok(_) => {
                generation.grown = now;
                generation.failures = 0;
                generation.retry = None;
                Ok(())
            }
            Err(error) => self.fail(number, &error),
        }
    }

    fn hand_over(&mut self, number: u64, framed: Vec<Framed>, chunk: &Bytes, start: u64) -> Result<(), End> {
        if framed.is_empty() {
            return Ok(());
        }
        let arrival = self.context.clock.now();
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        let lane = Arc::clone(&generation.lane);
        let context = &self.context;
        fault::point("input.hand");
        let handed = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = context.stop.cancelled() => Err(End),
                sent = framing::emit(context, &lane, framed, arrival, |end| {
                    generation.advance(chunk, start, end, arrival)
                }) => sent.map_err(|_| End),
            }
        });
        fault::point("input.handed");
        handed
    }

    /// Opens a generation's file where it is not and goes to its position; `false` where that could not be.
    fn ensure_open(&mut self, number: u64) -> Result<bool, End> {
        let generation = &self.generations[&number];
        if generation.content.is_some() {
            return Ok(true);
        }
        fault::point("input.open");
        let opened = content::open(&generation.path);
        let (file, identity) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // It will be looked for under the names there are now.
                self.is_stale = true;
                self.dirty.remove(&number);
                self.seek_elsewhere(number)?;
                return Ok(false);
            }
            Err(error) => return self.fail(number, &error).map(|()| false),
        };
        if identity != generation.identity() {
            // Renamed since it was looked at.
            self.is_stale = true;
            self.dirty.remove(&number);
            self.seek_elsewhere(number)?;
            return Ok(false);
        }
        let compared = Content::new(file).and_then(|mut content| {
            let guards = content.guards(&generation.position)?;
            Ok((content, guards))
        });
        let (content, guards) = match compared {
            Ok(compared) => compared,
            Err(error) => return self.fail(number, &error).map(|()| false),
        };
        if on_resume(guards) == Resume::Fresh {
            self.truncated(number)?;
            return Ok(false);
        }
        if self.open.len() >= self.options.max_open_files {
            self.close_quietest(number);
        }
        if let Some(watch) = &mut self.watch {
            watch.file(&content.file, &self.generations[&number].lane.partition);
        }
        self.troubled.remove(&self.generations[&number].path);
        let generation = self.generations.get_mut(&number).expect("it was here before");
        generation.content = Some(content);
        self.open.insert(number);
        fault::point("input.opened");
        Ok(true)
    }

    /// Makes room for another open file.
    fn close_quietest(&mut self, but: u64) {
        let quiet = |number: &&u64| **number != but && self.generations[number].displaced.is_none();
        let quietest = self
            .open
            .iter()
            .filter(quiet)
            .min_by_key(|number| (self.dirty.contains(number), self.generations[number].grown));
        if let Some(number) = quietest.copied() {
            self.open.remove(&number);
            if let Some(generation) = self.generations.get_mut(&number) {
                generation.close(&self.context.records);
            }
        }
    }

    /// There is nothing more to read just now.
    fn at_end(&mut self, number: u64) -> Result<(), End> {
        if fault::is_planted(Defect::PartialLine) {
            self.hand_over_rest(number)?;
        }
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        self.dirty.remove(&number);
        let is_compressed = generation.content.as_ref().is_some_and(|content| content.form.is_compressed());
        if self.once || generation.is_ending || is_compressed {
            return self.finish(number);
        }
        if generation.displaced.is_some() || generation.framer.deadline().is_some() {
            self.timed.insert(number);
        }
        if !std::mem::replace(&mut generation.is_idle_told, true) {
            let lane = Arc::clone(&generation.lane);
            self.emit(SourceEvent::Idle(lane))?;
        }
        Ok(())
    }

    /// What is left of a generation that will not grow any more.
    fn hand_over_rest(&mut self, number: u64) -> Result<(), End> {
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        let mut framed = Vec::new();
        generation.framer.finish(&mut framed);
        self.hand_over(number, framed, &Bytes::new(), u64::MAX)
    }

    /// Ends a generation that was read to its end.
    fn finish(&mut self, number: u64) -> Result<(), End> {
        if self.once {
            self.announce_successor(number)?;
        }
        self.hand_over_rest(number)?;
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        let size = generation.content.as_ref().and_then(|content| content.file.metadata().ok());
        generation.position.finished = size.map(|metadata| metadata.len());
        fault::point("input.finished");
        generation.state = State::Finished;
        generation.displaced = None;
        generation.close(&self.context.records);
        self.open.remove(&number);
        self.dirty.remove(&number);
        self.timed.remove(&number);
        self.close_lane(number)?;
        fault::point("input.closed");
        Ok(())
    }

    /// The next file of a rotation is told of before the one before it is closed: time goes on from one to the other.
    fn announce_successor(&self, number: u64) -> Result<(), End> {
        let family = &self.generations[&number].family;
        let successor = self.dirty.range(number + 1..).find(|next| self.generations[next].family == *family);
        successor.map_or(Ok(()), |next| self.announce_lane(*next))
    }

    /// The file of a generation holds something else now: the rest of it is in a copy, or nowhere.
    fn truncated(&mut self, number: u64) -> Result<(), End> {
        fault::point("input.truncated");
        let generation = &self.generations[&number];
        let (identity, next) = (generation.identity(), generation.position.generation + 1);
        let (origin, place) = (generation.position.path.clone(), generation.path.clone());
        let siblings: Vec<There> =
            find::siblings(Path::new(&origin)).iter().filter_map(|path| self.stat(path)).collect();
        self.is_stale = true;
        let mut after = None;
        if let Some((found, content)) = self.copy_among(number, &siblings) {
            self.continue_in(number, found, Some(content));
            after = Some(number);
        } else {
            tracing::info!(path = %place.display(), "truncated; its new content is read");
            self.hand_over_rest(number)?;
            self.retire(number)?;
        }
        // A checkpoint may have known of the next generation and not yet where this one goes on.
        if let Some(begun) = self.generations.values_mut().find(|other| other.identity() == identity) {
            begun.after = after;
            return Ok(());
        }
        // At once, and not at the next look: it may have been renamed to where the patterns do not reach.
        match self.stat(&place) {
            Some(found) if found.identity == identity => self.begin(&found, origin, next, after, false),
            _ => Ok(()),
        }
    }

    /// Ends a generation whose file holds something else now. Its position is kept for a while, as that of a file that is
    /// gone: a copy that was made a moment before the truncation is known by it, and holds nothing new.
    fn retire(&mut self, number: u64) -> Result<(), End> {
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        generation.position.identity = Identity::default();
        generation.position.finished = Some(generation.position.offset);
        generation.state = State::Vanished;
        generation.displaced = None;
        generation.close(&self.context.records);
        self.open.remove(&number);
        self.dirty.remove(&number);
        self.timed.remove(&number);
        self.close_lane(number)
    }

    /// Does what is due: lines that waited for more, files that were renamed and have been quiet.
    fn look_at_timed(&mut self, now: Duration) -> Result<(), End> {
        for number in self.timed.clone() {
            let Some(generation) = self.generations.get_mut(&number) else {
                self.timed.remove(&number);
                continue;
            };
            let mut framed = Vec::new();
            generation.framer.flush_due(now, &mut framed);
            self.hand_over(number, framed, &Bytes::new(), u64::MAX)?;
            let generation = self.generations.get_mut(&number).expect("handing over removes none");
            let quiet_since = generation.displaced.map(|since| since.max(generation.grown));
            let is_quiet = quiet_since.is_some_and(|since| since + self.options.rotate_wait.0 <= now);
            if is_quiet && !self.dirty.contains(&number) && generation.retry.is_none() {
                let is_replaced = generation
                    .content
                    .as_ref()
                    .is_none_or(|content| !is_linked(content) || Path::new(&generation.position.path).exists());
                if is_replaced && generation.content.is_some() {
                    // Looked at once more: nothing tells of what is written to files that cannot be watched.
                    generation.is_ending = true;
                    self.dirty.insert(number);
                } else {
                    // Renamed, and nothing has come in its place: its writer may go on with it for long.
                    generation.displaced = Some(now);
                }
            }
            let generation = &self.generations[&number];
            let is_due_no_more = generation.framer.deadline().is_none() && generation.displaced.is_none();
            if is_due_no_more && generation.retry.is_none() {
                self.timed.remove(&number);
            }
        }
        Ok(())
    }

    /// Notes that a file could not be read; it is tried again later, each time after longer.
    fn fail(&mut self, number: u64, error: &io::Error) -> Result<(), End> {
        let path = self.generations[&number].path.clone();
        self.trouble(&path, error);
        let now = self.context.clock.monotonic();
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        let is_compressed = generation.content.as_ref().is_some_and(|content| content.form.is_compressed());
        let is_hopeless = error.kind() == io::ErrorKind::Unsupported;
        generation.close(&self.context.records);
        self.open.remove(&number);
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        generation.failures += 1;
        if is_hopeless || (generation.failures >= FAILURES_MAX && (self.once || is_compressed)) {
            if self.once {
                self.given_up.get_or_insert(format!("reading {}: {error}", path.display()));
                self.announce_successor(number)?;
            }
            let generation = self.generations.get_mut(&number).expect("the caller has it");
            generation.state = State::Finished;
            // As long as it stays as it is, it is left alone.
            generation.position.finished = generation.looked.map(|looked| looked.0);
            self.dirty.remove(&number);
            self.timed.remove(&number);
            return self.close_lane(number);
        }
        let delay = RETRY_MIN.saturating_mul(1 << generation.failures.min(16)).min(RETRY_MAX);
        generation.retry = Some(now + delay);
        self.dirty.insert(number);
        self.timed.insert(number);
        generation.is_idle_told = false;
        let lane = Arc::clone(&generation.lane);
        if generation.failures == 1 { self.emit(SourceEvent::Stalled(lane)) } else { Ok(()) }
    }

    fn trouble(&mut self, path: &Path, error: &io::Error) {
        self.context.metrics.error("read");
        if self.troubled.len() < GENERATIONS_MAX && self.troubled.insert(path.to_path_buf()) {
            tracing::warn!(path = %path.display(), %error, "a file cannot be read; it is tried again");
        }
    }
}

fn modified(metadata: &std::fs::Metadata) -> Timestamp {
    let since = metadata.modified().ok().and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
    since.map_or(Timestamp(0), |since| Timestamp(nanos(since)))
}

/// Whether an open file still has a name.
fn is_linked(content: &Content) -> bool {
    content.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

/// Whether what stands before the position is still what was read. A tail that cannot be read now says nothing; reading
/// will tell.
fn tail_matches(content: &mut Content, position: &Position) -> bool {
    if fault::is_planted(Defect::SizeAlone) {
        return true;
    }
    match content.tail(position.offset) {
        Ok(tail) => position.tail.is_none() || content.form != Form::Plain || tail == position.tail,
        Err(_) => true,
    }
}

/// What has become of a file that is open.
fn original(content: &Content) -> Original {
    match content.file.metadata() {
        Ok(metadata) if metadata.nlink() > 0 => match content.size() {
            Ok(Some(size)) if size < content.offset() => Original::Gone,
            _ => Original::Intact { size: metadata.len().max(content.offset()) },
        },
        _ => Original::Gone,
    }
}
