//! How a lane is written where records are kept: in the ingest journal and in the disk buffers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::event::{Lane, Origin};

/// A lane without its source and codec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredLane {
    partition: String,
    origin: StoredOrigin,
    /// In nanoseconds.
    out_of_order: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredOrigin {
    File(String),
    Stream,
    Kafka { topic: String, partition: i32 },
    Operator,
    Keyed(Vec<String>),
}

impl StoredLane {
    pub fn of(lane: &Lane) -> Self {
        let origin = match &lane.origin {
            Origin::File(file) => StoredOrigin::File(file.to_string()),
            Origin::Stream => StoredOrigin::Stream,
            Origin::Kafka { topic, partition } => {
                StoredOrigin::Kafka { topic: topic.to_string(), partition: *partition }
            }
            Origin::Operator => StoredOrigin::Operator,
            Origin::Keyed(names) => StoredOrigin::Keyed(names.to_vec()),
        };
        let out_of_order = u64::try_from(lane.out_of_order.as_nanos()).unwrap_or(u64::MAX);
        Self { partition: lane.partition.clone(), origin, out_of_order }
    }

    pub fn lane(&self, source: Arc<str>, codec: Arc<dyn Codec>) -> Arc<Lane> {
        let origin = match &self.origin {
            StoredOrigin::File(file) => Origin::File(file.as_str().into()),
            StoredOrigin::Stream => Origin::Stream,
            StoredOrigin::Kafka { topic, partition } => {
                Origin::Kafka { topic: topic.as_str().into(), partition: *partition }
            }
            StoredOrigin::Operator => Origin::Operator,
            StoredOrigin::Keyed(names) => Origin::Keyed(names.as_slice().into()),
        };
        let out_of_order = Duration::from_nanos(self.out_of_order);
        Arc::new(Lane { source, partition: self.partition.clone(), origin, codec, out_of_order })
    }
}

/// The parts of a record that is kept: how long its head is, and the head as JSON. What follows is the caller's.
pub(super) fn head(head: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, head).expect("heads have string keys");
    let length = u32::try_from(bytes.len() - 4).expect("heads are short");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Takes a record apart into its head and what follows.
pub(super) fn split_head<'a, T: Deserialize<'a>>(record: &'a [u8]) -> Result<(T, usize), String> {
    let cut = || "it is cut short".to_owned();
    let (length, rest) = record.split_first_chunk::<4>().ok_or_else(cut)?;
    let length = u32::from_le_bytes(*length) as usize;
    let head = serde_json::from_slice(rest.get(..length).ok_or_else(cut)?).map_err(|error| error.to_string())?;
    Ok((head, 4 + length))
}
