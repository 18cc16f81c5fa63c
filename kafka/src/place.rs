//! A place in a topic, as checkpoints hold it: everything it takes to read on from there, and to tell the brokers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

/// Where reading of a partition goes on. Checkpoints are opaque to the engine, so it says itself what it is: a sink that
/// commits a transaction finds in it where its input came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub brokers: Vec<String>,
    /// Under which the brokers keep it for dashboards.
    pub group: String,
    pub topic: String,
    pub partition: i32,
    /// The offset of the first record that has not been read.
    pub next: i64,
}

impl Place {
    pub fn write(&self) -> Json {
        json!({ "kafka": self })
    }

    /// `None`: it is a place in something else.
    pub fn read(position: &Json) -> Option<Self> {
        Self::deserialize(position.get("kafka")?).ok()
    }

    /// How its lane is called within its source.
    pub fn lane(topic: &str, partition: i32) -> String {
        format!("{topic}/{partition}")
    }

    /// How the lane of a source is called that holds what another lane, `writer`, has written to a partition: `relay/3<orders/7`. No
    /// topic has such letters in its name.
    pub fn branch(topic: &str, partition: i32, writer: &str) -> String {
        format!("{topic}/{partition}<{writer}")
    }

    /// Who has written what is in a lane of such a name, if it is in this partition.
    pub fn writer<'a>(lane: &'a str, topic: &str, partition: i32) -> Option<&'a str> {
        lane.strip_prefix(topic)?.strip_prefix('/')?.strip_prefix(&format!("{partition}<"))
    }

    /// How far each partition has been read, by group, topic and number: several lanes of a source may be in one partition, and what
    /// comes behind the first of them is yet to be read of it.
    pub fn least(places: impl IntoIterator<Item = Self>) -> BTreeMap<(String, String, i32), i64> {
        let mut least = BTreeMap::new();
        for Self { group, topic, partition, next, .. } in places {
            let known = least.entry((group, topic, partition)).or_insert(next);
            *known = next.min(*known);
        }
        least
    }
}

/// The partitions that a source reads of, as the engine hands them to whoever decides about its epochs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub brokers: Vec<String>,
    pub group: String,
    /// Names, and patterns that begin with `^`.
    pub topics: Vec<String>,
    /// `None`: all partitions of the topics.
    pub partition: Option<i32>,
}

impl Inputs {
    pub fn write(&self) -> Json {
        json!({ "kafka": self })
    }

    /// `None`: it is something else that is read.
    pub fn read(inputs: &Json) -> Option<Self> {
        Self::deserialize(inputs.get("kafka")?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written_and_others_are_not_taken_for_one() {
        let brokers = vec!["k:9092".to_owned()];
        let place = Place { brokers, group: "g".to_owned(), topic: "orders".to_owned(), partition: 3, next: 42 };
        assert_eq!(Place::read(&place.write()), Some(place.clone()));
        let (behind, other) = (Place { next: 40, ..place.clone() }, Place { partition: 4, ..place.clone() });
        let least = Place::least([place.clone(), behind, other]);
        assert_eq!(
            least.into_iter().map(|((.., partition), next)| (partition, next)).collect::<Vec<_>>(),
            [(3, 40), (4, 42)]
        );
        assert_eq!(Place::writer(&Place::branch("relay", 3, "orders/7"), "relay", 3), Some("orders/7"));
        assert_eq!(Place::writer("relay/33<orders/7", "relay", 3), None);
        assert_eq!(Place::writer("relay/3", "relay", 3), None);
        assert_eq!(Place::read(&json!({ "offset": 3 })), None);
        assert_eq!(Place::read(&json!({ "kafka": { "topic": "orders" } })), None);
    }
}
