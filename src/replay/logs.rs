//! Which log is of which source, and reading them: blocks are decoded on several threads, and come back in their order.

use std::collections::VecDeque;
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
use tocsin_pipeline::replay::{Decoded, cell};
use tocsin_pipeline::source::Block;
use tocsin_pipeline::time::Timestamp;
use tocsin_sources::archive::{self, Archive, Piece};

/// How much of a log is looked at at once for its first moment.
const PROBE_BYTES: usize = 64 << 10;

/// A log, and the number of the source that would have read it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Log {
    pub source: usize,
    pub path: PathBuf,
}

/// The logs that were named: as `PATH`, or as `SOURCE=PATH`, each a pattern of paths.
///
/// # Errors
/// When there is no such file, or it is not clear whose it is.
pub fn assign(plan: &Plan, named: &[String]) -> anyhow::Result<Vec<Log>> {
    let mut logs = Vec::new();
    for name in named {
        let source_of = |prefix: &str| plan.sources.iter().position(|source| &*source.name == prefix);
        let (source, pattern) = match name.split_once('=') {
            Some((prefix, pattern)) if source_of(prefix).is_some() => (source_of(prefix), pattern),
            Some((prefix, _)) if !prefix.contains('/') && !Path::new(name).exists() => {
                bail!("there is no source `{prefix}`; {}", sources(plan));
            }
            _ => (None, name.as_str()),
        };
        let paths = archive::find(pattern).map_err(|error| anyhow!("{pattern:?} is no pattern of paths: {error}"))?;
        if paths.is_empty() {
            bail!("there is no file {pattern}");
        }
        for path in paths {
            let source = source.map_or_else(|| owner(plan, &path), Ok)?;
            logs.push(Log { source, path });
        }
    }
    logs.sort();
    logs.dedup();
    Ok(logs)
}

/// The source whose own `paths` name a file, or the only one there is.
fn owner(plan: &Plan, path: &Path) -> anyhow::Result<usize> {
    let numbered = || plan.sources.iter().enumerate();
    let names = |source: &PlannedSource| {
        let folder = std::path::absolute(".").unwrap_or_default().join(&source.folder);
        // As it was typed, and with the links in its folders followed: patterns may name it either way.
        let resolved = resolved(path).zip(folder.canonicalize().ok());
        source.options.names_file(path, &folder)
            || resolved.is_some_and(|(path, folder)| source.options.names_file(&path, &folder))
    };
    let naming: Vec<_> = numbered().filter(|(_, source)| names(source)).collect();
    let files: Vec<_> = numbered().filter(|(_, source)| source.type_name == "file").collect();
    match (&naming[..], &files[..], plan.sources.len()) {
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
    let names: Vec<_> = plan.sources.iter().map(|source| &*source.name).collect();
    format!("the sources are: {}", names.join(", "))
}

/// A log that is there and not read yet.
pub struct Waiting {
    pub log: Log,
    pub lane: Arc<Lane>,
    /// The time of its first record that has one.
    pub first: Timestamp,
}

impl Waiting {
    /// Looks at the beginning of a log; `None` if there is nothing in it.
    ///
    /// # Errors
    /// When it cannot be read, or no record has a time.
    pub fn of(log: Log, name: &str, intake: &Arc<Intake>) -> anyhow::Result<Option<Self>> {
        let options = &intake.options;
        let shown = log.path.display().to_string();
        if options.timestamp.is_none() {
            bail!(
                "the source `{name}` has no event time: its records count as having happened when they arrive, which a replay \
                 does not know; give it a `timestamp`"
            );
        }
        let lane = Arc::new(Lane {
            source: Arc::clone(&intake.name),
            partition: shown.clone(),
            origin: Origin::File(shown.as_str().into()),
            codec: Arc::clone(&options.codec),
            out_of_order: options.out_of_order,
        });
        let mut archive = open(&log.path, intake, PROBE_BYTES)?;
        let mut is_empty = true;
        loop {
            let pieces = archive.read().with_context(|| format!("reading {shown}"))?;
            if pieces.is_empty() && is_empty {
                return Ok(None);
            }
            if pieces.is_empty() {
                bail!("no record of {shown} has a time that the source `{name}` can read; is it a log of this source?");
            }
            is_empty = false;
            let blocks = pieces.into_iter().filter_map(|piece| match piece {
                Piece::Block(block) => Some(block),
                Piece::Rejected { .. } => None,
            });
            let mut found = blocks.filter_map(|block| Decoded::of(intake, Arc::clone(&lane), block).first());
            if let Some(first) = found.next() {
                return Ok(Some(Self { log, lane, first }));
            }
        }
    }
}

fn open(path: &Path, intake: &Intake, block_bytes: usize) -> anyhow::Result<Archive> {
    Archive::open(path, &intake.options.records, block_bytes).with_context(|| format!("opening {}", path.display()))
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
    archive: Archive,
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
    pub fn new(waiting: &Waiting, intake: &Arc<Intake>, block_bytes: usize) -> anyhow::Result<Self> {
        let (after, before) = sync_channel(1);
        after.send(waiting.first).expect("there is room for one");
        Ok(Self {
            source: waiting.log.source,
            lane: Arc::clone(&waiting.lane),
            intake: Arc::clone(intake),
            archive: open(&waiting.log.path, intake, block_bytes)?,
            ahead: VecDeque::new(),
            slices: VecDeque::new(),
            before,
            seen: Timestamp::MIN,
            is_at_end: false,
        })
    }

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
            let pieces = self.archive.read().with_context(|| format!("reading {}", self.lane.partition))?;
            self.is_at_end = pieces.is_empty();
            for piece in pieces {
                let ahead = match piece {
                    Piece::Block(block) => Ahead::Decoding(self.decode(block, pool)),
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
