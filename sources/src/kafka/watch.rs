//! Asks the brokers, beside the reading, how far the partitions go: what is lag, what is silence, and what is a fault.
//!
//! That nothing comes from a partition says nothing by itself. Only where its leader answers is it idle, and event time may
//! follow the clock.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tocsin_kafka::client::Listener;
use tocsin_kafka::topics::{Partition, discover};
use tokio_util::sync::CancellationToken;

/// How often each partition is asked for.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so many rounds new topics and partitions are looked for.
const ROUNDS_TO_DISCOVER: u64 = 30;

/// What was learnt.
#[derive(Debug)]
pub(super) enum Note {
    /// The leader of the partition answers, and holds records up to this offset.
    Reached { partition: Partition, high: i64 },
    /// It does not.
    Unreachable { partition: Partition, why: String },
    /// These partitions are there.
    Found(Vec<Partition>),
}

/// The partitions that are read, as the reader keeps them up to date.
pub(super) type Watched = Arc<Mutex<Vec<Partition>>>;

pub(super) struct Watch {
    /// Gone when the reader is.
    pub consumer: Weak<BaseConsumer<Listener>>,
    pub listener: Listener,
    pub topics: Vec<String>,
    pub watched: Watched,
    pub notes: SyncSender<Note>,
    pub stop: CancellationToken,
    pub handle: tokio::runtime::Handle,
}

impl Watch {
    /// Runs until the reader is gone.
    pub fn run(self) {
        let mut round = 0u64;
        loop {
            let stopped = async { tokio::time::timeout(EVERY, self.stop.cancelled()).await.is_ok() };
            if self.handle.block_on(stopped) {
                return;
            }
            round += 1;
            let Some(consumer) = self.consumer.upgrade() else { return };
            let watched = self.watched.lock().expect("no holder of this lock panics").clone();
            let mut failure: Option<String> = None;
            for partition in watched {
                // Where one leader does not answer the next is asked all the same; but not for long, and not all of many.
                let patience = if failure.is_none() { PATIENCE } else { PATIENCE / 10 };
                let note = match consumer.fetch_watermarks(&partition.0, partition.1, patience) {
                    Ok((_, high)) => Note::Reached { partition, high },
                    Err(error) => {
                        let why = self.listener.fault().unwrap_or_else(|| error.to_string());
                        failure = Some(why.clone());
                        Note::Unreachable { partition, why }
                    }
                };
                match self.notes.try_send(note) {
                    // A reader that is held up learns of it in the next round.
                    Ok(()) | Err(TrySendError::Full(_)) => {}
                    Err(TrySendError::Disconnected(_)) => return,
                }
                if self.stop.is_cancelled() {
                    return;
                }
            }
            if round.is_multiple_of(ROUNDS_TO_DISCOVER)
                && let Ok((found, _)) = discover(&consumer, &self.topics, PATIENCE)
            {
                let _ = self.notes.try_send(Note::Found(found));
            }
        }
    }
}
