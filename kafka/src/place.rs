//! A place in a topic, as checkpoints hold it: everything it takes to read on from there, and to tell the brokers.

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
        assert_eq!(Place::read(&place.write()), Some(place));
        assert_eq!(Place::read(&json!({ "offset": 3 })), None);
        assert_eq!(Place::read(&json!({ "kafka": { "topic": "orders" } })), None);
    }
}
