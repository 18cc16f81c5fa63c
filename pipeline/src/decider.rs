//! Who decides that an epoch is the truth, where that is not the data directory: a sink whose output becomes visible in a
//! transaction of its own.
//!
//! Two things that can fail apart cannot both decide. So where a sink has a transaction, that is what decides: it holds the
//! output of an epoch together with its number, and is committed once the checkpoint of that epoch is durable. After a crash
//! the transaction tells which of the checkpoints that are there is the truth; a later one was prepared and never was.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value as Json;

use crate::health::Health;
use crate::metrics::ComponentMetrics;
use crate::time::Clock;

/// What a decider is given before anything is restored.
pub struct DeciderContext {
    /// The name of its sink.
    pub name: Arc<str>,
    pub metrics: ComponentMetrics,
    pub health: Health,
    pub clock: Arc<dyn Clock>,
    /// What the sources read: where what was decided may have been noted.
    pub inputs: Vec<Json>,
    /// The epochs that are there, each with whether it was prepared, where they are known before others are kept out. Where they
    /// cannot be gone on from ([`settle`](crate::checkpoint::settle)) nobody is kept out: whoever decided last goes on.
    pub epochs: Option<Vec<(u64, bool)>>,
}

impl Debug for DeciderContext {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DeciderContext").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An epoch could not be decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeciderError {
    /// What was written of the epoch is undone: everything since the epoch before is to be done again from there.
    #[error("{0}")]
    Undone(String),
    /// Somebody else goes on in our place.
    #[error("{0}")]
    Superseded(String),
    /// It cannot be mended by waiting.
    #[error("{0}")]
    Failed(String),
}

/// Decides which epoch is the truth.
pub trait Decider: Send + Sync {
    /// Keeps out whoever decided before, ends what they have left unfinished, and says which epoch was decided last; `None`
    /// if none ever was. Waits for peers that are away.
    ///
    /// # Errors
    /// What cannot be mended by waiting.
    fn recover<'a>(&'a self, context: DeciderContext) -> BoxFuture<'a, Result<Option<u64>, DeciderError>>;

    /// What of the positions in the checkpoint that is gone on from is not what was decided with its number; `None` if it is that
    /// very checkpoint. Another may have the number in a copy of the data directory.
    fn contradicts(&self, positions: &[Json]) -> Option<String>;

    /// Makes `epoch` the truth: its output, the positions of its lanes (as sources wrote them), its number. Its checkpoint
    /// is durable. Asks again until the outcome is known. Afterwards what comes next may be written.
    ///
    /// # Errors
    /// The epoch is not the truth, and never will be.
    fn commit<'a>(&'a self, epoch: u64, positions: Vec<Json>) -> BoxFuture<'a, Result<(), DeciderError>>;

    /// The checkpoint of `epoch` could not be written: what was written of it is decided with the next.
    fn abandon(&self, epoch: u64);

    /// Whether it tells, with an epoch, how far a source has come that is at this position: then the source need not.
    fn tells(&self, position: &Json) -> bool;
}
