//! Records go through a topic, so that all of one key are in one partition.

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, OperatorConfig, Problem, Repartition};
use tocsin_pipeline::operator::Built;

/// Brings all records of a `key` together where several daemons share the work (`daemon.checkpoint_store`): it writes them to a topic
/// of its own, where the key decides the partition, and reads them from there. What comes after it is run by whichever daemon
/// has the partition, beside what comes before.
///
/// Each daemon sees some of the partitions of a topic only. An operator that keeps state by key is right there if all records of a key are
/// in one partition, which `tocsin check` sees to: the topic may be keyed so by whoever writes it (`keyed_by` of the source), or
/// this operator stands between. Several topics meet in it as well: what keeps state of both reads from here.
///
/// The topic is on the servers of the source that the records come from, and is read in its group. It is made if it does not exist.
/// `tocsin test` needs no topic: there, records go right on to what reads from here.
///
/// **State:** none of its own; what is on its way is in the topic.
///
/// **Late records:** late behind it as they were before it. The event time of a record stays what the source found it to be, and the
/// topic also holds what it came behind; each partition before it tells, with each checkpoint, how far its event time has come, and what
/// reads from here goes by the slowest. A record that somebody else has written to the topic is a dead letter.
///
/// **After a crash:** records come out once: what is written belongs to the transaction that the checkpoint ends. So nothing else that it
/// shares a source with can write in transactions.
///
/// ```toml
/// [daemon]
/// checkpoint_store = "s3://state/tocsin"
///
/// [sources.orders]
/// type = "kafka"
/// brokers = ["kafka-1.example.org:9092"]
/// topics = ["orders"]
/// group = "tocsin"
///
/// [operators.by_host]
/// type = "repartition"
/// inputs = ["orders"]
/// key = [".host"]
///
/// [operators.orders_per_host]
/// type = "window"
/// inputs = ["by_host"]
/// tumbling = "1m"
/// group_by = [".host"]
/// aggregates = { orders = "count()" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The paths of the fields whose values together are the key, such as `.host`; one without a value counts as null. What keeps state
    /// behind it needs all of them in its own key.
    key: Vec<String>,
    /// The topic. Default: the group, a dot, and the name of the operator.
    topic: Option<String>,
    /// How many partitions the topic is made with, if it does not exist. Default: as many as the topic has that the records
    /// come from.
    partitions: Option<u32>,
}

/// Kafka allows no longer name.
const TOPIC_MAX: usize = 249;

impl OperatorConfig for Config {
    const NAME: &'static str = "repartition";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.key.is_empty() {
            problems.push(
                Problem::new("key", "there is nothing to bring records together by")
                    .help("name at least one field, `key = [\".host\"]`"),
            );
        }
        for (at, text) in self.key.iter().enumerate() {
            let text = text.trim();
            // What is computed here could not be found again in the key of what comes behind.
            if !text.starts_with('.') || tocsin_pipeline::path::parse(text).is_none_or(|path| path.is_root()) {
                problems
                    .push(Problem::new(format!("key.{at}"), format!("{text:?} is not the path of a field")).help(
                        "write one such as \".host\"; let a `remap` before it put what is computed into a field",
                    ));
            }
        }
        if let Some(topic) = &self.topic {
            let is_plain = |letter: u8| letter.is_ascii_alphanumeric() || matches!(letter, b'.' | b'_' | b'-');
            let is_name = !matches!(topic.as_str(), "" | "." | "..");
            if !is_name || topic.len() > TOPIC_MAX || !topic.bytes().all(is_plain) {
                problems.push(
                    Problem::new("topic", format!("{topic:?} cannot be the name of a topic"))
                        .help("use at most 249 letters, digits, `.`, `_` and `-`"),
                );
            }
        }
        if self.partitions.is_some_and(|partitions| !(1..=1_000_000).contains(&partitions)) {
            problems.push(
                Problem::new("partitions", "must be from 1 to 1000000")
                    .help("as many daemons as there are partitions can share the work"),
            );
        }
        problems
    }

    fn repartition(&self) -> Option<Repartition> {
        let key = self.key.iter().map(|text| text.trim().to_owned()).collect();
        Some(Repartition { key, topic: self.topic.clone(), partitions: self.partitions })
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Built {
        unreachable!("the plan has a sink and a source in its place")
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::script::problems;

    fn check(options: &str, expected: Expect) {
        expected.assert_eq(&problems::<Config>(options));
    }

    #[test]
    fn what_no_topic_could_be_made_of_is_told() {
        check("key = [' .host', '.a.\"b c\"[0]']\ntopic = \"orders.by-host_2\"\npartitions = 1", expect![[""]]);
        check(
            "key = []\ntopic = \"orders/by_host\"\npartitions = 0",
            expect![[r#"
            key: there is nothing to bring records together by (name at least one field, `key = [".host"]`)
            topic: "orders/by_host" cannot be the name of a topic (use at most 249 letters, digits, `.`, `_` and `-`)
            partitions: must be from 1 to 1000000 (as many daemons as there are partitions can share the work)
        "#]],
        );
        check(
            "key = [\".\", \"host\", \"downcase(.host)\", \"%partition\", \"..\"]\ntopic = \"..\"",
            expect![[r#"
            key.0: "." is not the path of a field (write one such as ".host"; let a `remap` before it put what is computed into a field)
            key.1: "host" is not the path of a field (write one such as ".host"; let a `remap` before it put what is computed into a field)
            key.2: "downcase(.host)" is not the path of a field (write one such as ".host"; let a `remap` before it put what is computed into a field)
            key.3: "%partition" is not the path of a field (write one such as ".host"; let a `remap` before it put what is computed into a field)
            key.4: ".." is not the path of a field (write one such as ".host"; let a `remap` before it put what is computed into a field)
            topic: ".." cannot be the name of a topic (use at most 249 letters, digits, `.`, `_` and `-`)
        "#]],
        );
    }
}
