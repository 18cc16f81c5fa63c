//! How several daemons share what a source reads: each runs a pipeline of its own for every partition that is its.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::ComponentMetrics;

/// A partition that can be a daemon's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    pub topic: String,
    pub partition: i32,
}

/// Positions by partition.
pub type Told = BTreeMap<Partition, Arc<Vec<Json>>>;

/// What partitions are a daemon's from now on.
#[derive(Debug)]
pub enum Change {
    /// These are, beside those that are already; none: this daemon is a member, and has no more. `of`: how many there are in
    /// all, over all daemons.
    Assigned { partitions: Vec<Partition>, of: usize },
    /// These are not any more. Told when nothing of them runs: another daemon begins with them then, or after a while anyway.
    Revoked { partitions: Vec<Partition>, done: oneshot::Sender<()> },
    /// It cannot be known any more what is ours.
    Failed(String),
}

/// What a member of those who share is given.
pub struct SharingContext {
    /// The source's name in the configuration.
    pub name: Arc<str>,
    /// What this daemon is called among those that share: under the same name it gets the same partitions back after a restart.
    pub instance: Option<String>,
    pub metrics: ComponentMetrics,
    /// How long what is revoked may take to come to its end.
    pub patience: Duration,
    /// Bounded: partitions are not given out while nobody takes them.
    pub changes: mpsc::Sender<Change>,
    /// The positions of the last complete epoch of each partition that is ours or was, which others are to be told of.
    pub told: watch::Receiver<Told>,
    /// Cancelled when nothing of ours runs any more: the others may have it.
    pub stop: CancellationToken,
}

/// Membership among the daemons that share what a source reads.
pub trait Sharing: Send {
    /// Joins, on a thread of its own, and goes on until it is stopped. Faults that pass are waited out.
    ///
    /// # Errors
    /// What is wrong with the options, without asking anybody.
    fn join(self: Box<Self>, context: SharingContext) -> Result<(), String>;
}
