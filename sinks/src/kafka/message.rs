//! From a record to a message: topic, key, headers, value, time.

use rdkafka::message::{Header, OwnedHeaders};
use tocsin_config::component::Problem;
use tocsin_kafka::stamp::{self, Stamp};
use tocsin_kafka::topics::is_topic;
use tocsin_pipeline::codec::{FieldPath, PathTable, Projection};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::json;
use tocsin_pipeline::metrics::ComponentMetrics;
use tocsin_pipeline::template::{Escape, Template};
use vrl::value::Value;

use super::Config;
use crate::encoding::Encoder;

/// Why a record can be no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub String);

/// A message to be sent.
#[derive(Debug)]
pub(super) struct Message {
    pub topic: String,
    pub key: Option<Vec<u8>>,
    pub headers: Option<OwnedHeaders>,
    pub value: Vec<u8>,
    /// In milliseconds since 1970. `None`: the time at which it is sent. What is in the topic of a relay tells event time by itself, and
    /// is not to be deleted for having happened long ago before it is read.
    pub time: Option<i64>,
}

/// Makes messages of records.
#[derive(Debug)]
pub(super) struct Messages {
    topic: Template,
    /// What the name of every topic begins with.
    prefix: String,
    is_fixed: bool,
    key: Vec<FieldPath>,
    /// It is the key of a `repartition`: every record has one, and values that operators take for the same are.
    is_relay: bool,
    /// What a relay's messages say where they come from; `None`: they say nothing.
    lane: Option<String>,
    headers: Vec<(String, Template)>,
    encoder: Encoder,
}

impl Messages {
    pub fn new(config: &Config, paths: &mut PathTable, lane: Option<String>) -> Self {
        let compile = |text: &str| Template::compile(text, Escape::None).expect("`problems` has compiled it before");
        let path =
            |text: &String| paths.intern(&tocsin_pipeline::path::parse(text).expect("`problems` has parsed it before"));
        Self {
            topic: compile(&config.topic),
            prefix: prefix(&config.topic).to_owned(),
            is_fixed: prefix(&config.topic) == config.topic,
            key: config.key.iter().map(path).collect(),
            is_relay: config.relay,
            lane,
            headers: config.headers.iter().map(|(name, value)| (name.clone(), compile(value))).collect(),
            encoder: Encoder::new(config.encoding.as_ref()),
        }
    }

    /// The topic, if it is the same for all records.
    pub fn fixed_topic(&self) -> Option<String> {
        self.is_fixed.then(|| self.prefix.clone())
    }

    /// Decodes what keys are made of, for all records at once.
    pub fn decode(&self, batch: &mut Batch) {
        if !self.key.is_empty() {
            batch.decode(&Projection::new(self.key.iter().cloned()));
        }
    }

    /// What becomes of a record; its batch must have been decoded.
    pub fn message(&self, batch: &Batch, row: u32, metrics: &ComponentMetrics) -> Result<Message, Refusal> {
        let record = (!self.is_fixed || !self.headers.is_empty()).then(|| batch.value(row));
        let topic = match &record {
            Some(record) if !self.is_fixed => self.topic(record)?,
            _ => self.prefix.clone(),
        };
        let mut headers = None;
        if let Some(record) = &record {
            for (name, value) in &self.headers {
                let rendered = value.render(record);
                metrics.expression_errors(u64::from(rendered.failure.is_some()));
                let value = Some(rendered.text.as_bytes());
                headers = Some(headers.unwrap_or_else(OwnedHeaders::new).insert(Header { key: name, value }));
            }
        }
        if let Some(lane) = &self.lane {
            let content = stamp::Content::Record(batch.time(row));
            let stamp = Stamp { content, watermark: batch.watermark_before(row), lane: lane.clone() };
            headers = Some(stamped(headers.unwrap_or_else(OwnedHeaders::new), &stamp));
        }
        let mut value = Vec::new();
        metrics.expression_errors(self.encoder.append(batch, row, &mut value));
        let time = (!self.is_relay).then(|| batch.time(row).0.div_euclid(1_000_000).max(0));
        Ok(Message { topic, key: self.key(batch, row), headers, value, time })
    }

    fn topic(&self, record: &Value) -> Result<String, Refusal> {
        let rendered = self.topic.render(record);
        if let Some(why) = rendered.failure {
            return Err(Refusal(format!("it names no topic: {why}")));
        }
        let is_topic = is_topic(&rendered.text) && rendered.text.len() > self.prefix.len();
        // The fields come from outside; they fill in what the configuration left open, and nothing else.
        if !is_topic || !rendered.text.starts_with(&self.prefix) {
            let name: String = rendered.text.chars().take(80).collect();
            return Err(Refusal(format!("{name:?} cannot be the name of a topic")));
        }
        Ok(rendered.text)
    }

    fn key(&self, batch: &Batch, row: u32) -> Option<Vec<u8>> {
        if self.is_relay {
            let text = |path: &FieldPath| {
                let text = batch.field(row, path).to_text().unwrap_or_default();
                Value::Bytes(text.into_owned().into())
            };
            let mut key = Vec::new();
            json::write_value(&Value::Array(self.key.iter().map(text).collect()), &mut key);
            return Some(key);
        }
        if let [path] = &self.key[..] {
            return batch.field(row, path).to_text().map(|text| text.into_owned());
        }
        let values: Vec<_> = self.key.iter().map(|path| batch.field(row, path).to_value()).collect();
        if values.iter().all(Option::is_none) {
            return None;
        }
        let array = Value::Array(values.into_iter().map(|value| value.unwrap_or(Value::Null)).collect());
        let mut text = Vec::new();
        json::write_value(&array, &mut text);
        Some(text)
    }
}

/// Headers with a stamp.
pub(super) fn stamped(headers: OwnedHeaders, stamp: &Stamp) -> OwnedHeaders {
    headers.insert(Header { key: stamp::HEADER, value: Some(&stamp.write()) })
}

/// What stands before the first field of a template.
fn prefix(template: &str) -> &str {
    let end = ["{{", "{%", "{#"].iter().filter_map(|mark| template.find(mark)).min();
    &template[..end.unwrap_or(template.len())]
}

/// What is wrong with the option `topic`.
pub(super) fn topic_problem(topic: &str) -> Option<Problem> {
    if let Err(error) = Template::compile(topic, Escape::None) {
        return Some(Problem::new("topic", error.message).within(error.within));
    }
    let prefix = prefix(topic);
    if prefix.is_empty() && !topic.is_empty() {
        return Some(
            Problem::new("topic", "records could name any topic there is")
                .help("let it begin with fixed text, as in \"logs-{{ service }}\""),
        );
    }
    if prefix == topic && !is_topic(topic) || !prefix.is_empty() && !is_topic(prefix) {
        return Some(
            Problem::new("topic", format!("{prefix:?} cannot be the name of a topic"))
                .help("use letters, digits, `.`, `_` and `-`, 249 at most"),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tocsin_pipeline::event::{Lane, Origin, Times};
    use tocsin_pipeline::metrics::Metrics;
    use tocsin_pipeline::time::Timestamp;

    fn message(options: &str, record: &str) -> String {
        let config: Config = toml::from_str(&format!("brokers = [\"k:1\"]\n{options}")).unwrap();
        let mut paths = PathTable::default();
        let lane = config.relay.then(|| "orders/7".to_owned());
        let messages = Messages::new(&config, &mut paths, lane);
        let value: Value = serde_json::from_str::<serde_json::Value>(record).unwrap().into();
        let lane = Arc::new(Lane::of_operator("test".into(), Origin::Operator));
        let mut batch = Batch::of_values(lane, vec![(Timestamp::from_millis(7), value)], Timestamp(0));
        messages.decode(&mut batch);
        match messages.message(&batch, 0, &Metrics::new().component("test", "sink")) {
            Ok(Message { topic, key, headers, value, time }) => format!(
                "{topic} {:?} {:?} {} {}",
                key.map(|key| String::from_utf8(key).unwrap()),
                headers.map(|headers| rdkafka::message::Headers::count(&headers)),
                String::from_utf8(value).unwrap(),
                time.map_or("now".to_owned(), |time| time.to_string())
            ),
            Err(Refusal(why)) => format!("refused: {why}"),
        }
    }

    #[test]
    fn a_record_becomes_a_message() {
        assert_eq!(message("topic = \"t\"", r#"{"a":1}"#), r#"t None None {"a":1} 7"#);
        assert_eq!(message("topic = \"t\"\nkey = [\".a\"]", r#"{"a":1}"#), r#"t Some("1") None {"a":1} 7"#);
        assert_eq!(message("topic = \"t\"\nkey = [\".b\"]", r#"{"a":1}"#), r#"t None None {"a":1} 7"#);
        let several = "topic = \"t\"\nkey = [\".a\", \".b\"]\nheaders = { h = \"{{ a }}\" }";
        assert_eq!(message(several, r#"{"a":"x"}"#), r#"t Some("[\"x\",null]") Some(1) {"a":"x"} 7"#);
    }

    #[test]
    fn what_is_repartitioned_has_a_key_that_is_the_same_for_what_operators_take_for_the_same() {
        let key =
            |record: &str| message("topic = \"t\"\nkey = [\".a\"]\nrelay = true\ndelivery = \"exactly_once\"", record);
        assert_eq!(key(r#"{"a":1}"#), r#"t Some("[\"1\"]") Some(1) {"a":1} now"#);
        assert!(key(r#"{"a":"1"}"#).starts_with(r#"t Some("[\"1\"]")"#));
        for none in ["{}", r#"{"a":null}"#, r#"{"a":""}"#] {
            assert!(key(none).starts_with(r#"t Some("[\"\"]")"#), "{none}");
        }
    }

    #[test]
    fn what_is_repartitioned_says_when_it_happened_and_what_it_came_behind() {
        let config = "brokers = [\"k:1\"]\ntopic = \"t\"\nkey = [\".a\"]\nrelay = true";
        let mut paths = PathTable::default();
        let messages = Messages::new(&toml::from_str(config).unwrap(), &mut paths, Some("orders/7".to_owned()));
        let lane = Lane {
            out_of_order: std::time::Duration::from_nanos(10),
            ..Lane::of_operator("test".into(), Origin::Stream)
        };
        let times = [Timestamp(100), Timestamp(70), Timestamp(130)];
        let values = times.map(|time| (time, Value::Object([("a".into(), Value::Integer(time.0))].into())));
        let mut batch = Batch::of_values(Arc::new(lane), values.into(), Timestamp(0));
        let before = vec![Timestamp::MIN, Timestamp(100), Timestamp(100)];
        batch.times = Some(Arc::new(Times { at: times.into(), before, max: Timestamp(130) }));
        batch.seen_before = Timestamp(40);
        messages.decode(&mut batch);
        let stamp = |row| {
            let message = messages.message(&batch, row, &Metrics::new().component("test", "sink")).unwrap();
            let headers = message.headers.unwrap();
            let header = rdkafka::message::Headers::get(&headers, 0);
            assert_eq!(header.key, "tocsin");
            Stamp::read(header.value.unwrap()).unwrap()
        };
        let expected = |at, watermark| Stamp {
            content: stamp::Content::Record(Timestamp(at)),
            watermark: Timestamp(watermark),
            lane: "orders/7".to_owned(),
        };
        assert_eq!([stamp(0), stamp(1), stamp(2)], [expected(100, 30), expected(70, 90), expected(130, 90)]);
    }

    #[test]
    fn fields_fill_in_the_name_of_a_topic_and_choose_no_other() {
        let options = "topic = \"logs-{{ service }}\"";
        assert!(message(options, r#"{"service":"web"}"#).starts_with("logs-web "));
        for service in ["a b", "a/b", "", "ä"] {
            let record = serde_json::json!({ "service": service }).to_string();
            assert!(message(options, &record).starts_with("refused: "), "{service:?}");
        }
        assert!(message(options, "{}").starts_with("refused: it names no topic"));
        let long = serde_json::json!({ "service": "x".repeat(249) }).to_string();
        assert!(message(options, &long).starts_with("refused: "));
    }

    #[test]
    fn a_topic_that_records_choose_freely_is_refused() {
        for (topic, is_fine) in [
            ("logs", true),
            ("logs-{{ a }}", true),
            ("{{ a }}", false),
            ("", false),
            ("a b", false),
            ("a b{{ c }}", false),
            ("x{{", false),
        ] {
            assert_eq!(topic_problem(topic).is_none(), is_fine, "{topic:?}");
        }
    }
}
