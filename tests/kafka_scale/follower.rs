//! A reader of what comes out, while it comes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::kafka::{Cluster, Message};

/// Reads committed records on a thread of its own until it is dropped.
pub struct Follower {
    seen: Arc<Mutex<Seen>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    texts: Vec<String>,
    /// By key: when the last came, and the longest time between two.
    gaps: BTreeMap<Vec<u8>, (Option<Instant>, Duration)>,
}

impl Follower {
    pub fn start(cluster: &Cluster, topic: &str, partitions: i32) -> Self {
        let mut config = cluster.client();
        config
            .set("group.id", "tests-follower")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "50")
            .set("auto.offset.reset", "error");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut positions = TopicPartitionList::new();
        for partition in 0..partitions {
            positions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&positions).unwrap();
        let (seen, is_over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (seen, is_over) = (Arc::clone(&seen), Arc::clone(&is_over));
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
                    let (mut seen, now) = (seen.lock().unwrap(), Instant::now());
                    seen.texts.push(String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned());
                    let gap = seen.gaps.entry(message.key().unwrap_or_default().to_vec()).or_default();
                    if let Some(before) = gap.0.replace(now) {
                        gap.1 = gap.1.max(now - before);
                    }
                }
            }
        });
        Self { seen, is_over, thread: Some(thread) }
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().texts.len()
    }

    pub fn texts(&self) -> Vec<String> {
        self.seen.lock().unwrap().texts.clone()
    }

    /// The longest time that nothing came of a key.
    pub fn pause_max(&self) -> Duration {
        self.seen.lock().unwrap().gaps.values().map(|gap| gap.1).max().unwrap_or_default()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// By key: who has written, in the order of the topic, each once for as long as it went on.
pub fn writers(messages: &[Message]) -> BTreeMap<String, Vec<String>> {
    let mut writers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in messages {
        let text = |bytes: &Option<Vec<u8>>| String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
        let by = message.record.headers.iter().find(|(name, _)| name == "by").map(|(_, by)| text(by));
        let of_key = writers.entry(text(&message.record.key)).or_default();
        let by = by.unwrap_or_default();
        if of_key.last() != Some(&by) {
            of_key.push(by);
        }
    }
    writers
}
