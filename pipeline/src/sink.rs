//! The contract of sinks: async, thin, answering for every record.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::event::Batch;
use crate::metrics::ComponentMetrics;
use crate::operator::Reason;
use crate::store::Storage;
use crate::time::Clock;

/// What a sink is handed, in order.
#[derive(Debug)]
pub enum SinkInput {
    Batch(Batch),
    /// Everything before this belongs to `epoch`. The sink makes durable what it has written of it, or says in its state
    /// what is still to be done, and answers. It must not wait for a peer that may be away: what is not delivered yet goes
    /// into the state.
    Barrier {
        epoch: u64,
        prepared: oneshot::Sender<SinkState>,
    },
    /// The checkpoint of `epoch` is complete: what was prepared for it is now the truth.
    Committed {
        epoch: u64,
    },
    /// Nothing follows. The sink finishes what it has, within the context's `stop`, and returns.
    End,
}

/// What a sink needs to go on from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// As in the epoch before.
    Unchanged,
    /// Its own format, handed back to [`Sink::open`].
    State(Bytes),
    /// It could not prepare (full disk, failed fsync): the epoch is abandoned, the one before stays the truth.
    Failed(String),
}

/// What a running sink is given.
pub struct SinkContext {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What it said at the barrier of the checkpoint that the daemon starts from; `None` on a fresh start.
    pub restored: Option<Bytes>,
    /// A folder of its own for what must survive (`DATA_DIR/sinks/NAME`, already made); `None` where there is no data_dir.
    pub data_dir: Option<PathBuf>,
    pub clock: Arc<dyn Clock>,
    /// What is in `data_dir` is read and written through this.
    pub storage: Arc<dyn Storage>,
    pub metrics: ComponentMetrics,
    /// Cancelled when the time for draining is over: give up waiting for peers, keep what is undelivered in the state.
    pub stop: CancellationToken,
    pub input: mpsc::Receiver<Queued>,
    /// Dead letters: records refused for good. Where `NAME.rejected` is connected they go there, else they are counted.
    pub rejected: Rejected,
}

/// An input that still counts against the bytes of the edge it came by. It stops counting when dropped: a sink that holds
/// it until the records are delivered thereby slows its writer down.
#[derive(Debug)]
pub struct Queued {
    pub input: SinkInput,
    pub(crate) _permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Queued {
    /// An input that counts against nothing: for tests.
    pub fn free(input: SinkInput) -> Self {
        Self { input, _permit: None }
    }

    /// The input, and the guard that makes it count while it lives.
    pub fn split(self) -> (SinkInput, Option<tokio::sync::OwnedSemaphorePermit>) {
        (self.input, self._permit)
    }
}

/// Where a sink puts the records that it could not deliver and never will.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub(crate) sender: Option<mpsc::Sender<Batch>>,
    pub(crate) metrics: ComponentMetrics,
    pub(crate) name: Arc<str>,
}

impl Rejected {
    /// Counts only: for tests and for sinks whose dead letters nobody reads.
    pub fn counting(name: Arc<str>, metrics: ComponentMetrics) -> Self {
        Self { sender: None, metrics, name }
    }

    /// Refuses one record of a batch.
    pub async fn reject(&self, batch: &Batch, row: u32, reason: Reason, message: &str) {
        self.metrics.dropped(reason, 1);
        if let Some(sender) = &self.sender {
            let letter = crate::operator::dead_letter(&self.name, reason.as_str(), message, batch, row);
            let letters = Batch::of_values(Arc::clone(&batch.lane), vec![(batch.time(row), letter)], batch.arrival);
            // The reader is gone only when the pipeline stops; the record was counted.
            let _ = sender.send(letters).await;
        }
    }
}

/// A sink could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// What a person would be sent for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// `None` where the receiver knows no subjects.
    pub subject: Option<String>,
    pub body: String,
}

/// A sink, built but not yet open.
pub trait Sink: Send {
    /// What it would send for a record, without sending: for `tocsin test`. `None` for sinks that tell nobody.
    fn preview(&self, _batch: &Batch, _row: u32) -> Option<Notification> {
        None
    }

    /// Opens what can be opened without a peer: files (cut back to what the checkpoint says), folders, certificates. A peer
    /// that is away is no reason to fail. Called for all sinks before any source runs.
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>>;

    /// Takes inputs until [`SinkInput::End`], finishes what it has within the context's `stop`, and says what it needs to
    /// go on from: as at a barrier, `Unchanged` if nothing has changed since the last one.
    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>>;
}
