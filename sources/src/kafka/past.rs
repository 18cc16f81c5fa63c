//! What a topic holds, read once from a moment on: for `tocsin replay`. Partitions are assigned, no group is joined and nothing is
//! told to the brokers.

use std::io;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value as Json;
use tocsin_kafka::client::Listener;
use tocsin_kafka::connection::Connection;
use tocsin_kafka::place::Place;
use tocsin_kafka::topics::discover;
use tocsin_pipeline::event::Origin;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::replay::{Kept, KeptLog, Log, Piece as LogPiece};
use tocsin_pipeline::source::{RecordOptions, TooLong};
use tocsin_pipeline::time::Timestamp;

use super::Config;
use super::blocks::{self, Gathering, Piece};

/// How long brokers may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long nothing may come before reading is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// The topics of a source.
pub(super) struct Past {
    pub connection: Connection,
    pub config: Config,
}

type Client = BaseConsumer<Listener>;

fn client(settings: &ClientConfig) -> Result<(Client, Listener), String> {
    let listener = Listener::new("replay".into(), Metrics::new().component("replay", "source"));
    let client = BaseConsumer::from_config_and_context(settings, listener.clone());
    Ok((client.map_err(|error| format!("cannot set up the client: {error}"))?, listener))
}

impl Kept for Past {
    fn logs(&self, from: Option<Timestamp>, records: &RecordOptions) -> Result<Vec<KeptLog>, String> {
        let settings = self.config.settings(&self.connection, true);
        let (client, listener) = client(&settings)?;
        let fault = |error: String| match listener.take_fault() {
            Some(fault) => format!("{error}: {fault}"),
            None => error,
        };
        let (partitions, missing) = discover(&client, &self.config.topics, PATIENCE).map_err(&fault)?;
        if let [topic, ..] = &missing[..] {
            return Err(format!("there is no topic {topic}"));
        }
        let mut logs = Vec::new();
        for (topic, partition) in partitions {
            let bounds = client.fetch_watermarks(&topic, partition, PATIENCE);
            let (low, high) = bounds.map_err(|error| fault(error.to_string()))?;
            let first = match from {
                None => low,
                Some(from) => {
                    first(&client, &topic, partition, from).map_err(|error| fault(error.to_string()))?.unwrap_or(high)
                }
            };
            let (settings, records, name) = (settings.clone(), records.clone(), topic.clone());
            let open = move |block_bytes: usize| -> io::Result<Box<dyn Log>> {
                Range::open(&settings, &name, partition, first..high, &records, block_bytes)
                    .map(|range| Box::new(range) as Box<dyn Log>)
                    .map_err(io::Error::other)
            };
            logs.push(KeptLog {
                partition: Place::lane(&topic, partition),
                origin: Origin::Kafka { topic: topic.into(), partition },
                open: Box::new(open),
            });
        }
        Ok(logs)
    }
}

/// The offset of the first record of a moment or later.
fn first(client: &Client, topic: &str, partition: i32, from: Timestamp) -> Result<Option<i64>, KafkaError> {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition_offset(topic, partition, Offset::Offset(from.0.div_euclid(1_000_000)))?;
    let found = client.offsets_for_times(wanted, PATIENCE)?;
    Ok(match found.find_partition(topic, partition).map(|found| found.offset()) {
        Some(Offset::Offset(offset)) => Some(offset),
        _ => None,
    })
}

/// A stretch of a partition that is being read.
struct Range {
    client: Client,
    listener: Listener,
    /// The offset that is not read any more.
    end: i64,
    is_at_end: bool,
    records: RecordOptions,
    block_bytes: usize,
    gathering: Gathering,
    /// The time of the last message.
    last: Timestamp,
}

impl Range {
    fn open(
        settings: &ClientConfig,
        topic: &str,
        partition: i32,
        offsets: std::ops::Range<i64>,
        records: &RecordOptions,
        block_bytes: usize,
    ) -> Result<Self, String> {
        let (client, listener) = client(settings)?;
        let mut assignment = TopicPartitionList::new();
        let assigned = assignment
            .add_partition_offset(topic, partition, Offset::Offset(offsets.start))
            .and_then(|()| client.assign(&assignment));
        assigned.map_err(|error| error.to_string())?;
        Ok(Self {
            client,
            listener,
            end: offsets.end,
            is_at_end: offsets.is_empty(),
            records: records.clone(),
            block_bytes,
            gathering: Gathering::default(),
            last: Timestamp::from_secs(0),
        })
    }

    fn hand_over(&mut self) -> Option<LogPiece> {
        (!self.gathering.is_empty()).then(|| LogPiece::Block(Box::new(self.gathering.take(Json::Null, self.last))))
    }
}

impl Log for Range {
    fn read(&mut self) -> io::Result<Vec<LogPiece>> {
        let mut pieces = Vec::new();
        while !self.is_at_end && pieces.is_empty() {
            match self.client.poll(SILENCE) {
                Some(Ok(message)) => {
                    let (offset, last) = (message.offset(), self.last);
                    self.is_at_end = offset + 1 >= self.end;
                    if offset >= self.end {
                        break;
                    }
                    self.last = blocks::time(&message, || last);
                    // A tombstone is no record.
                    let Some(mut value) = message.payload() else { continue };
                    let most = self.records.max_record_bytes;
                    if value.len() > most && self.records.too_long == TooLong::Truncate {
                        value = &value[..most];
                    }
                    if value.len() > most {
                        let head = bytes::Bytes::copy_from_slice(&value[..most]);
                        let message = format!("{} bytes are more than {most}", value.len());
                        pieces.extend(self.hand_over());
                        pieces.push(LogPiece::Rejected { offset: offset.unsigned_abs(), message, head });
                        break;
                    }
                    let (key, headers) = (message.key(), blocks::headers(&message));
                    self.gathering.push(Piece { offset, value, key, time: self.last, before: None, headers });
                    if self.gathering.len() >= self.block_bytes {
                        pieces.extend(self.hand_over());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.is_at_end = true,
                Some(Err(error)) => return Err(io::Error::other(error.to_string())),
                None => {
                    let fault = self.listener.take_fault().unwrap_or_else(|| "the brokers give nothing".to_owned());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, fault));
                }
            }
        }
        if pieces.is_empty() {
            pieces.extend(self.hand_over());
        }
        Ok(pieces)
    }
}
