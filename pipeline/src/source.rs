//! The contract of sources: async, thin, and ignorant of barriers.
//!
//! A source reads blocks of whole records and hands each over with the position *after* it. The engine stamps barriers
//! between blocks, so a checkpoint holds, per lane, the position after the last block that went before the barrier. A source
//! that starts with positions goes on exactly there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value as Json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::codec::Codec;
use crate::event::{Lane, Notes, Origin, Span};
use crate::health::Health;
use crate::metrics::ComponentMetrics;
use crate::operator::Reason;
use crate::store::Storage;
use crate::time::{Clock, Timestamp};

/// The size of the blocks a busy source should cut. An idle one hands over what has arrived, at once.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Where the records of a block are.
#[derive(Clone, Debug)]
pub enum Framing {
    /// One record per line; every line is complete (the last need not end in a newline if it is the last of its lane).
    /// A `\r` before the newline does not belong to the record. Empty lines are no records.
    Lines,
    /// Where the source found them.
    Spans(Vec<Span>),
}

/// A piece of a lane: whole records, as read.
#[derive(Debug)]
pub struct Block {
    /// Below 1 GiB.
    pub bytes: Bytes,
    pub framing: Framing,
    /// The position of the first byte in the lane, for coordinates.
    pub base: u64,
    /// Where reading goes on after this block; whatever the source needs to find the place again.
    pub position: Json,
    pub arrival: Timestamp,
    /// Told when the block's records are durable: in a complete checkpoint. Only for sources that answer their clients.
    pub acknowledgement: Option<oneshot::Sender<()>>,
    /// What it knows of the records beside their bytes.
    pub notes: Option<Notes>,
}

/// The positions of a source's lanes, by [`Lane::partition`].
pub type Positions = BTreeMap<String, Json>;

/// What a source tells the engine, in the order it happened.
#[derive(Debug)]
pub enum SourceEvent {
    Block(Arc<Lane>, Block),
    /// Records the source itself had to refuse (too long, cut short, not framed): a dead letter each.
    Rejected {
        lane: Arc<Lane>,
        offset: u64,
        reason: Reason,
        message: String,
        raw: Bytes,
        /// Where reading goes on after it, as of a block.
        position: Json,
    },
    /// The lane is there, and is read from this position on: nothing has been read of it yet. It holds the watermark of the
    /// source back until it has been read, or is idle.
    Opened {
        lane: Arc<Lane>,
        position: Json,
    },
    /// Everything that follows in the lane comes behind this watermark, as whoever wrote it tells: one for each record is in
    /// [`Notes::before`]. `Timestamp::MIN` tells nothing but how far the lane has been read.
    Watermark {
        lane: Arc<Lane>,
        at: Timestamp,
        /// Where reading goes on after it, as of a block.
        position: Json,
    },
    /// The lane has nothing to read just now: the engine may let its watermark follow the clock after `idle_timeout`.
    Idle(Arc<Lane>),
    /// The lane cannot be read although it should be (its disk, its broker is away): its watermark stands still.
    Stalled(Arc<Lane>),
    /// The lane will not give any more: its watermark holds nothing back, and its position is kept if `keep` is given,
    /// forgotten otherwise.
    Closed {
        lane: Arc<Lane>,
        keep: Option<Json>,
    },
}

/// How a source that frames lines makes records of them. The same options on every source; see `docs/reference.md`.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// Longer records are cut or refused, without being buffered.
    pub max_record_bytes: usize,
    pub too_long: TooLong,
    /// Lines that belong together.
    pub multiline: Option<Multiline>,
}

impl Default for RecordOptions {
    fn default() -> Self {
        Self { max_record_bytes: 1 << 20, too_long: TooLong::Reject, multiline: None }
    }
}

/// What becomes of a record that is longer than `max_record_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// Its head goes on, the rest is left out.
    Truncate,
    /// It becomes a dead letter that holds its head.
    Reject,
}

/// Which lines make one record.
#[derive(Clone, Debug)]
pub struct Multiline {
    pub pattern: regex::bytes::Regex,
    pub mode: MultilineMode,
    /// A record is complete when no further line has come for so long.
    pub timeout: Duration,
    pub max_lines: usize,
}

/// What a match of the pattern says of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultilineMode {
    /// It begins a record; all others continue one.
    Start,
    /// It ends a record.
    End,
    /// It is continued by the next line, as one that ends in a backslash.
    ContinuePast,
    /// It continues the record before it, as one that is indented.
    ContinueThrough,
}

/// What a running source is given.
pub struct SourceContext {
    /// Its name in the configuration.
    pub name: Arc<str>,
    pub codec: Arc<dyn Codec>,
    pub out_of_order: Duration,
    pub records: RecordOptions,
    /// The positions of its lanes in the checkpoint it starts from, by [`Lane::partition`].
    pub positions: Positions,
    /// The positions of the last complete checkpoint, for sources that tell others how far they have come. What decides
    /// where reading goes on is the checkpoint alone.
    pub completed: watch::Receiver<Arc<Positions>>,
    /// Whether it is in the checkpoint that the daemon starts from: then `read_from` speaks only of what is new since.
    pub restored: bool,
    /// Where every source reads to its end and finishes (`run --once`).
    pub once: bool,
    /// A folder of its own for what must survive.
    pub data_dir: Option<PathBuf>,
    pub clock: Arc<dyn Clock>,
    /// What is in `data_dir` is read and written through this.
    pub storage: Arc<dyn Storage>,
    /// Where it says what is wrong beyond single records.
    pub health: Health,
    pub metrics: ComponentMetrics,
    /// Cancelled when the source is to stop reading: return soon, without reading to the end.
    pub stop: CancellationToken,
    /// Bounded: waits while what is downstream is busy.
    pub events: mpsc::Sender<SourceEvent>,
}

impl SourceContext {
    /// A partition of this source.
    pub fn lane(&self, partition: impl Into<String>, origin: Origin) -> Arc<Lane> {
        Arc::new(Lane {
            source: Arc::clone(&self.name),
            partition: partition.into(),
            origin,
            codec: Arc::clone(&self.codec),
            out_of_order: self.out_of_order,
        })
    }

    /// Hands an event over, waiting while downstream is busy.
    ///
    /// # Errors
    /// When the engine is gone: the source should return.
    pub async fn emit(&self, event: SourceEvent) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }
}

/// The engine does not take any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the pipeline has stopped")]
pub struct Gone;

/// A source could not go on, or could not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

impl From<Gone> for SourceError {
    fn from(gone: Gone) -> Self {
        Self(gone.to_string())
    }
}

/// A source, built but not yet open.
pub trait Source: Send {
    /// How many bytes it may hold beside what it has handed over: part of what the daemon may take.
    fn memory(&self) -> usize {
        0
    }

    /// Whether it has lanes as soon as it can know of them: then event time stands still until it does. That of others follows the
    /// clock while they have none.
    fn awaits_lanes(&self) -> bool {
        false
    }

    /// What it reads, for a sink that decides which epoch is the truth ([`Decider`](crate::decider::Decider)): where that may
    /// have been noted. `None`: nowhere.
    fn inputs(&self) -> Option<Json> {
        None
    }

    /// Opens what the source reads from or listens on. Called for all sources before any runs, so that a wrong
    /// configuration never starts half a pipeline.
    fn open<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Reads until the end (of input, or [`SourceContext::stop`]). Errors that pass are retried inside, forever, and
    /// counted; only what cannot be mended by waiting is returned.
    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>>;
}
