//! The names of topics, and which partitions they have.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

/// Kafka takes no longer name.
const NAME_MAX: usize = 249;

/// Kafka's rule for the names of topics.
pub fn is_topic(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_plain) && name != "." && name != ".."
}

/// A text that begins with `^` is a pattern that has to match the name of a topic as a whole.
pub fn pattern(topic: &str) -> Option<Result<regex::Regex, regex::Error>> {
    let pattern = topic.strip_prefix('^')?;
    let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
    Some(regex::Regex::new(&format!("^(?:{pattern})$")))
}

/// A partition of a topic.
pub type Partition = (String, i32);

/// The partitions of topics, and those topics that are not there. Blocks for `patience` at most, for each topic.
///
/// # Errors
/// When no broker answers, or one refuses.
///
/// # Panics
/// When a pattern is no regular expression.
pub fn discover<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[String],
    patience: Duration,
) -> Result<(Vec<Partition>, Vec<String>), String> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for topic in topics {
        let pattern = pattern(topic).map(|pattern| pattern.expect("the configuration was checked"));
        let name = if pattern.is_some() { None } else { Some(topic.as_str()) };
        let metadata = consumer.fetch_metadata(name, patience).map_err(|error| error.to_string())?;
        for known in metadata.topics() {
            if pattern.as_ref().is_some_and(|pattern| !pattern.is_match(known.name())) {
                continue;
            }
            match known.error().map(RDKafkaErrorCode::from) {
                None => found.extend(known.partitions().iter().map(|it| (known.name().to_owned(), it.id()))),
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                    missing.push(known.name().to_owned());
                }
                Some(error) => return Err(format!("topic {}: {error}", known.name())),
            }
        }
    }
    found.sort();
    found.dedup();
    Ok((found, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names() {
        let pattern = pattern("^logs-.*|audit$").unwrap().unwrap();
        assert!(pattern.is_match("logs-web") && pattern.is_match("audit"));
        assert!(!pattern.is_match("my-logs-web") && !pattern.is_match("audits"));
    }

    #[test]
    fn names_are_those_that_kafka_takes() {
        for (name, is_one) in
            [("a.b_c-9", true), ("", false), (".", false), ("..", false), ("a b", false), ("a/b", false)]
        {
            assert_eq!(is_topic(name), is_one, "{name:?}");
        }
        assert!(is_topic(&"a".repeat(249)) && !is_topic(&"a".repeat(250)));
    }
}
