//! Which log is of which source, and reading them: blocks are decoded on several threads, and come back in their order.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use tocsin_config::Plan;
use tocsin_config::plan::PlannedSource;
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::graph::Intake;
use tocsin_pipeline::intake::Taken;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::replay::{Decoded, Log, Piece, cell};
use tocsin_pipeline::source::Block;
use tocsin_pipeline::time::Timestamp;
use tocsin_sources::archive::{self, Archive};

/// How much of a log is looked at at once for its first moment.
const PROBE_BYTES: usize = 64 << 10;

/// A log, and the number of the source that would have read it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub source: usize,
    pub place: Place,
}

/// Where a log is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    File(PathBuf),
    /// What the brokers keep of the source's topics, from a moment on.
    Kafka(Option<Timestamp>),
}

/// What stands for a file where the brokers' topics are meant.
const KAFKA: &str = "kafka:";

/// The logs that were named: as `PATH` or as `SOURCE=PATH`, each a pattern of paths, or as `SOURCE=kafka:` with a moment behind it,
/// without which it is `since`.
///
/// # Errors
/// When there is no such file, or it is not clear whose it is.
pub fn assign(plan: &Plan, named: &[String], since: Option<Timestamp>) -> anyhow::Result<Vec<Named>> {
    let mut logs = Vec::new();
    for name in named {
        let source_of = |prefix: &str| candidates(plan).find(|(_, source)| &*source.name == prefix).map(|(at, _)| at);
        let (source, pattern) = match name.split_once('=') {
            Some((prefix, pattern)) if source_of(prefix).is_some() => (source_of(prefix), pattern),
            Some((prefix, _)) if !prefix.contains('/') && !Path::new(name).exists() => {
                bail!("there is no source `{prefix}`; {}", sources(plan));
            }
            _ => (None, name.as_str()),
        };
        if let Some((source, from)) = source.zip(pattern.strip_prefix(KAFKA)) {
            let from = match from {
                "" => since,
                from => {
                    Some(crate::cli::moment(from).map_err(|error| anyhow!("{name}: {from:?} is no moment; {error}"))?)
                }
            };
            logs.push(Named { source, place: Place::Kafka(from) });
            continue;
        }
        let paths = archive::find(pattern).map_err(|error| anyhow!("{pattern:?} is no pattern of paths: {error}"))?;
        if paths.is_empty() {
            bail!("there is no file {pattern}");
        }
        for path in paths {
            let source = source.map_or_else(|| owner(plan, &path), Ok)?;
            logs.push(Named { source, place: Place::File(path) });
        }
    }
    logs.sort();
    logs.dedup();
    Ok(logs)
}

/// The sources that can have logs, with their numbers: what goes through a topic between goes right to its readers here.
fn candidates(plan: &Plan) -> impl Iterator<Item = (usize, &PlannedSource)> {
    let is_between = |source: usize| plan.relays.iter().any(|relay| relay.source == source);
    plan.sources.iter().enumerate().filter(move |(number, _)| !is_between(*number))
}

/// The source whose own `paths` name a file, or the only one there is.
fn owner(plan: &Plan, path: &Path) -> anyhow::Result<usize> {
    let names = |source: &PlannedSource| {
        let folder = std::path::absolute(".").unwrap_or_default().join(&source.folder);
        // As it was typed, and with the links in its folders followed: patterns may name it either way.
        let resolved = resolved(path).zip(folder.canonicalize().ok());
        source.options.names_file(path, &folder)
            || resolved.is_some_and(|(path, folder)| source.options.names_file(&path, &folder))
    };
    let naming: Vec<_> = candidates(plan).filter(|(_, source)| names(source)).collect();
    let files: Vec<_> = candidates(plan).filter(|(_, source)| source.type_name == "file").collect();
    match (&naming[..], &files[..], candidates(plan).count()) {
        ([(number, _)], ..) | ([], [(number, _)], _) => Ok(*number),
        ([], [], 1) => Ok(0),
        ([], ..) => bail!("which source is {} of? write SOURCE={0}; {}", path.display(), sources(plan)),
        _ => bail!("several sources read {}; write SOURCE={0}; {}", path.display(), sources(plan)),
    }
}

/// A path whose folder is named without links.
fn resolved(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

fn sources(plan: &Plan) -> String {
    let names: Vec<_> = candidates(plan).map(|(_, source)| &*source.name).collect();
    format!("the sources are: {}", names.join(", "))
}

/// A log that is there and not read yet.
pub struct Waiting {
    pub source: usize,
    lane: Arc<Lane>,
    intake: Arc<Intake>,
    open: Open,
    /// The time of its first record that has one.
    pub first: Timestamp,
}

/// Begins to read a log, so many bytes at a time.
type Open = Box<dyn Fn(usize) -> io::Result<Box<dyn Log>> + Send>;

impl Waiting {
    /// Looks at the beginnings of logs; those in which there is nothing are left out.
    ///
    /// # Errors
    /// When they cannot be read, or no record has a time.
    pub fn of(plan: &Plan, named: &Named, intake: &Arc<Intake>) -> anyhow::Result<Vec<Self>> {
        let (source, options) = (&plan.sources[named.source], &intake.options);
        let name = &source.name;
        let found: Vec<(String, Origin, Open)> = match &named.place {
            Place::File(path) => {
                if options.timestamp.is_none() {
                    bail!(
                        "the source `{name}` has no event time: its records count as having happened when they arrive, which a \
                         replay does not know; give it a `timestamp`"
                    );
                }
                let shown = path.display().to_string();
                let (path, records) = (path.clone(), options.records.clone());
                let open =
                    move |block_bytes| Ok(Box::new(Archive::open(&path, &records, block_bytes)?) as Box<dyn Log>);
                vec![(shown.clone(), Origin::File(shown.into()), Box::new(open))]
            }
            Place::Kafka(from) => {
                let Some(kept) = source.options.kept(&source.folder) else {
                    bail!("the source `{name}` is of type `{}`: nobody keeps what it has read", source.type_name);
                };
                let logs = kept.logs(*from, &options.records);
                let logs = logs.map_err(|error| anyhow!("asking for what the source `{name}` reads: {error}"))?;
                logs.into_iter().map(|log| (log.partition, log.origin, log.open)).collect()
            }
        };
        let mut waiting = Vec::new();
        for (partition, origin, open) in found {
            let lane = Arc::new(Lane {
                source: Arc::clone(&intake.name),
                partition,
                origin,
                codec: Arc::clone(&options.codec),
                out_of_order: options.out_of_order,
            });
            if let Some(first) = first(&lane, intake, &open)? {
                waiting.push(Self { source: named.source, lane, intake: Arc::clone(intake), open, first });
            }
        }
        Ok(waiting)
    }

    /// In which order logs are opened.
    pub fn order(&self) -> (Timestamp, usize, &str) {
        (self.first, self.source, &self.lane.partition)
    }
}

/// The time of the first record of a log that has one; `None` if there is nothing in it.
fn first(lane: &Arc<Lane>, intake: &Arc<Intake>, open: &Open) -> anyhow::Result<Option<Timestamp>> {
    let shown = &lane.partition;
    let mut log = open(PROBE_BYTES).with_context(|| format!("opening {shown}"))?;
    let mut is_empty = true;
    loop {
        let pieces = log.read().with_context(|| format!("reading {shown}"))?;
        if pieces.is_empty() && is_empty {
            return Ok(None);
        }
        if pieces.is_empty() {
            let name = &lane.source;
            bail!("no record of {shown} has a time that the source `{name}` can read; is it a log of this source?");
        }
        is_empty = false;
        let blocks = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Block(block) => Some(block),
            Piece::Rejected { .. } => None,
        });
        let mut found = blocks.filter_map(|block| Decoded::of(intake, Arc::clone(lane), *block).first());
        if let Some(first) = found.next() {
            return Ok(Some(first));
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads that decode.
pub struct Pool {
    jobs: SyncSender<Job>,
}

impl Pool {
    /// Starts them; they end when the pool is dropped.
    pub fn start<'scope>(scope: &'scope std::thread::Scope<'scope, '_>, threads: usize) -> Self {
        let (jobs, queue) = sync_channel::<Job>(64);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            scope.spawn(move || {
                loop {
                    let job = queue.lock().expect("no holder of this lock panics").recv();
                    let Ok(job) = job else { return };
                    job();
                }
            });
        }
        Self { jobs }
    }
}

/// What comes next of a log.
enum Ahead {
    Decoding(Receiver<Vec<Taken>>),
    Rejected { offset: u64, message: String, head: Bytes },
}

/// A log that is being read.
pub struct Reading {
    pub source: usize,
    lane: Arc<Lane>,
    intake: Arc<Intake>,
    log: Box<dyn Log>,
    /// In the order of the log.
    ahead: VecDeque<Ahead>,
    slices: VecDeque<Taken>,
    /// Where the time of the last record of the block before is told.
    before: Receiver<Timestamp>,
    /// The greatest event time of what was taken.
    seen: Timestamp,
    is_at_end: bool,
}

impl Reading {
    /// Begins to read a log.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(waiting: Waiting, block_bytes: usize) -> anyhow::Result<Self> {
        let (after, before) = sync_channel(1);
        after.send(waiting.first).expect("there is room for one");
        let log = (waiting.open)(block_bytes).with_context(|| format!("opening {}", waiting.lane.partition))?;
        Ok(Self {
            source: waiting.source,
            lane: waiting.lane,
            intake: waiting.intake,
            log,
            ahead: VecDeque::new(),
            slices: VecDeque::new(),
            before,
            seen: Timestamp::MIN,
            is_at_end: false,
        })
    }

    /// The name of its lane.
    pub fn partition(&self) -> &str {
        &self.lane.partition
    }

    /// The second that the next slice belongs to; `None` at the end. `depth` blocks are worked on ahead.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn next_cell(&mut self, pool: &Pool, depth: usize) -> anyhow::Result<Option<Timestamp>> {
        loop {
            if let Some(taken) = self.slices.front() {
                return Ok(Some(cell(self.seen.max(taken.seen_max))));
            }
            self.read_ahead(pool, depth)?;
            match self.ahead.pop_front() {
                None => return Ok(None),
                Some(Ahead::Decoding(done)) => {
                    let slices = done.recv();
                    let slices = slices.map_err(|_| anyhow!("a thread failed on a block of {}", self.partition()))?;
                    self.slices.extend(slices);
                }
                Some(Ahead::Rejected { offset, message, head }) => {
                    let (lane, reason) = (Arc::clone(&self.lane), Reason::TooLong);
                    self.slices.push_back(self.intake.refuse(lane, offset, reason, &message, head, self.seen));
                }
            }
            self.read_ahead(pool, depth)?;
        }
    }

    /// The slice that [`Self::next_cell`] told of.
    pub fn take(&mut self) -> Option<Taken> {
        let taken = self.slices.pop_front()?;
        self.seen = self.seen.max(taken.seen_max);
        Some(taken)
    }

    /// Whether all of it was taken.
    pub fn is_done(&self) -> bool {
        self.is_at_end && self.ahead.is_empty() && self.slices.is_empty()
    }

    fn read_ahead(&mut self, pool: &Pool, depth: usize) -> anyhow::Result<()> {
        while !self.is_at_end && self.ahead.len() < depth {
            let pieces = self.log.read().with_context(|| format!("reading {}", self.lane.partition))?;
            self.is_at_end = pieces.is_empty();
            for piece in pieces {
                let ahead = match piece {
                    Piece::Block(block) => Ahead::Decoding(self.decode(*block, pool)),
                    Piece::Rejected { offset, message, head } => Ahead::Rejected { offset, message, head },
                };
                self.ahead.push_back(ahead);
            }
        }
        Ok(())
    }

    fn decode(&mut self, block: Block, pool: &Pool) -> Receiver<Vec<Taken>> {
        let (after, next) = sync_channel(1);
        let (done, slices) = sync_channel(1);
        let before = std::mem::replace(&mut self.before, next);
        let (intake, lane) = (Arc::clone(&self.intake), Arc::clone(&self.lane));
        let job = move || {
            let decoded = Decoded::of(&intake, lane, block);
            // The block before was given to a thread before this one, so what is waited for comes.
            let mut told = None;
            let mut before = || *told.get_or_insert_with(|| before.recv().unwrap_or(Timestamp::MIN));
            // Nobody listens any more where the replay has ended.
            let _ = after.send(decoded.last().unwrap_or_else(&mut before));
            let before = if decoded.is_open() { before() } else { Timestamp::MIN };
            let _ = done.send(decoded.into_slices(before));
        };
        pool.jobs.send(Box::new(job)).expect("threads live as long as the pool");
        slices
    }
}
