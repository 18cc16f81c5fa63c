//! Alerts to Opsgenie.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::Secret;
use tocsin_pipeline::sink::{Notification, Sink};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use crate::client::Response;
use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, Severity, State, Wording, WordingConfig, as_it_is, cut};
use crate::outbox::{self, Answer, Row};
use crate::service::{self, Connection, Service};

/// What Opsgenie takes at most.
const MESSAGE_MAX: usize = 130;
const ALIAS_MAX: usize = 512;
const DESCRIPTION_MAX: usize = 15_000;
const TAG_MAX: usize = 50;
const TAGS_MAX: usize = 20;
/// Names and values of all details together.
const DETAILS_MAX: usize = 8000;

/// Creates and closes alerts of Opsgenie: one for each alert, or for each group of a `notify`.
///
/// *Firing* creates, *resolved* closes what it created: both have the same `alias`, made of the fingerprint and the episode. The
/// priority is made of the label `severity`: P1 for `critical`, P2 for `error` and where there is none, P3 for `warning`, P5 for
/// `info`. Labels become details; links and all else stand in the description. Records that are no alerts create an alert each,
/// of priority P5, which nothing closes. *Pending*,
/// *amended* and what `notify` tells at the end of a silence are not told; `tocsin check` refuses the input `NAME.amended`.
///
/// Answers 200 to 299 mean delivered: Opsgenie has taken the request. 401, 403, 429 and 500 to 599, no answer and a broken
/// connection mean to try again, for `max_age`. Every other answer refuses the record: it goes to `NAME.rejected`, and as it came
/// to `NAME.failed`.
///
/// When `max_waiting` notifications wait, or 64 MiB of them, what comes is told as one, a digest, which is an alert of its own.
///
/// **State:** what is not delivered yet, and the digest of what came beyond. The names of the last 100,000 that are settled.
///
/// **Late events:** sent like all others.
///
/// **After a crash:** nothing is lost. What was on its way when the daemon died is sent again, with the same `alias`.
///
/// ```toml
/// [sinks.pager]
/// type = "opsgenie"
/// inputs = ["high_error_rate"]
/// api_key = "${file:/run/secrets/opsgenie}"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The key of an API integration.
    api_key: Secret,
    /// Where the API is. Default `"https://api.opsgenie.com"`; of accounts in the EU `"https://api.eu.opsgenie.com"`.
    #[serde(default = "opsgenie")]
    url: String,
    /// Tags of all alerts, at most 20.
    #[serde(default)]
    tags: Vec<String>,
    #[serde(flatten)]
    wording: WordingConfig,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

fn opsgenie() -> String {
    "https://api.opsgenie.com".to_owned()
}

impl SinkConfig for Config {
    const NAME: &'static str = "opsgenie";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(self.connection.url_problem("url", &self.url));
        if self.authorization().is_none() {
            problems.push(Problem::new("api_key", "is empty, or holds letters that a header may not"));
        }
        if self.tags.len() > TAGS_MAX {
            problems.push(Problem::new("tags", format!("must not be more than {TAGS_MAX}")));
        }
        problems.extend(self.wording.problems());
        problems.extend(self.delivery.problems(Usual::HTTP));
        problems.extend(self.connection.problems());
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once, with one identity"
    }

    fn undelivered(state: &[u8]) -> u64 {
        outbox::undelivered(state)
    }

    fn hands_on(&self) -> bool {
        true
    }

    fn takes_amendments(&self) -> bool {
        false
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        service::sink(Opsgenie::new(self), &self.delivery, &self.connection, context)
    }
}

impl Config {
    fn authorization(&self) -> Option<HeaderValue> {
        let key = self.api_key.reveal().trim();
        let mut value = HeaderValue::try_from(format!("GenieKey {key}")).ok().filter(|_| !key.is_empty())?;
        value.set_sensitive(true);
        Some(value)
    }
}

struct Opsgenie {
    authorization: HeaderValue,
    url: String,
    tags: Vec<String>,
    wording: Wording,
}

/// What is to be done, as it waits in the outbox.
#[derive(serde::Serialize, Deserialize)]
struct Order {
    /// The alias of the alert that is to be closed; `None`: one is to be created.
    close: Option<String>,
    body: serde_json::Value,
}

impl Opsgenie {
    fn new(config: &Config) -> Self {
        Self {
            authorization: config.authorization().expect("checked"),
            url: service::join(&config.url, "/v2/alerts"),
            tags: config.tags.iter().map(|tag| cut(tag, TAG_MAX)).collect(),
            wording: config.wording.build(as_it_is),
        }
    }

    fn order(&self, notice: &Notice, record: &Value) -> Order {
        let alias = cut(&notice.key, ALIAS_MAX);
        let words = self.wording.of(notice, record);
        if notice.state == State::Resolved {
            let note = cut(&words.title, DESCRIPTION_MAX);
            return Order { close: Some(alias), body: json!({ "source": "tocsin", "note": note }) };
        }
        let mut description = words.text;
        for link in &notice.links {
            description.push_str(&format!("\n{}: {}", link.text, link.url));
        }
        let (mut room, mut details) = (DETAILS_MAX, serde_json::Map::new());
        for (name, value) in &notice.labels {
            let length = name.chars().count() + value.chars().count();
            if length <= room {
                room -= length;
                details.insert(name.clone(), value.clone().into());
            }
        }
        let priority = match notice.severity {
            Severity::Critical => "P1",
            Severity::Error => "P2",
            Severity::Warning => "P3",
            Severity::Info => "P5",
        };
        let body = json!({
            "message": cut(&words.title, MESSAGE_MAX),
            "alias": alias,
            "description": cut(description.trim(), DESCRIPTION_MAX),
            "details": details,
            "entity": cut(&notice.name, ALIAS_MAX),
            "priority": priority,
            "source": "tocsin",
            "tags": self.tags,
        });
        Order { close: None, body }
    }
}

impl Service for Opsgenie {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let notice = Notice::of(record);
        if notice.opens_nothing() {
            return Ok(None);
        }
        let order = self.order(&notice, record);
        serde_json::to_vec(&order).map(Some).map_err(|error| error.to_string())
    }

    fn request(&self, row: &Row, _: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        let order: Order =
            serde_json::from_slice(&row.payload).map_err(|error| format!("the order does not read: {error}"))?;
        let url = match &order.close {
            Some(alias) => format!("{}/{}/close?identifierType=alias", self.url, escaped(alias)),
            None => self.url.clone(),
        };
        let mut request = service::post(&url, order.body.to_string().into())?;
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        Ok(request)
    }

    fn answer(&self, response: &Response, now: Timestamp) -> Answer {
        service::by_status_and_key(response, now)
    }

    fn preview(&self, record: &Value) -> Option<Notification> {
        (!Notice::of(record).opens_nothing()).then(|| self.wording.preview(record))
    }
}

/// A text as a part of a path.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::notice::tests::{AMENDED, DIGEST, FIRING, GROUP, RESOLVED, summary};
    use crate::service::tests::{config, delivers, payload, problems, run, serve};

    fn check(record: &str, expected: expect_test::Expect) {
        payload(&Opsgenie::new(&config(r#"{"api_key":"k","tags":["prod"]}"#)), record, expected);
    }

    #[test]
    fn firing_creates_and_resolved_closes_the_same() {
        check(
            FIRING,
            expect![[r#"
            {
              "body": {
                "alias": "f1-abc",
                "description": "too many & more\nhint: look at *this*\nhost=a<b>, severity=critical\nerrors: 7\nsince: 2026-11-20T12:00:00Z\naccess: GET / [2J\nrunbook: https://example.org/r?a=1&b=2",
                "details": {
                  "host": "a<b>",
                  "severity": "critical"
                },
                "entity": "errors",
                "message": "[FIRING] errors: too many & more",
                "priority": "P1",
                "source": "tocsin",
                "tags": [
                  "prod"
                ]
              },
              "close": null
            }"#]],
        );
        check(
            RESOLVED,
            expect![[r#"
            {
              "body": {
                "note": "[RESOLVED] errors: too many & more",
                "source": "tocsin"
              },
              "close": "f1-abc"
            }"#]],
        );
        check(
            GROUP,
            expect![[r#"
            {
              "body": {
                "alias": "g1-i1",
                "description": "severity=warning\nsince: 2026-11-20T12:00:00Z\nFIRING errors {host=a, severity=warning}: bad\nFIRING errors {host=b, severity=warning}\nRESOLVED errors {host=c, severity=warning}\nand 4 more\nacknowledge: https://tocsin.example.org/ack/1",
                "details": {
                  "severity": "warning"
                },
                "entity": "errors",
                "message": "[FIRING:2, RESOLVED:1] errors (escalated): severity=warning",
                "priority": "P3",
                "source": "tocsin",
                "tags": [
                  "prod"
                ]
              },
              "close": null
            }"#]],
        );
        check(
            DIGEST,
            expect![[r#"
            {
              "body": {
                "alias": "d1",
                "description": "FIRING errors {host=a}\n2026-11-20T12:00:01Z a line\nand 10 more",
                "details": {},
                "entity": "digest",
                "message": "[DIGEST] 12 notifications were not sent one by one",
                "priority": "P2",
                "source": "tocsin",
                "tags": [
                  "prod"
                ]
              },
              "close": null
            }"#]],
        );
        for nothing in [&FIRING.replace("\"firing\"", "\"pending\""), AMENDED, &summary()] {
            check(nothing, expect![[""]]);
        }
    }

    #[test]
    fn labels_beyond_what_is_taken_are_left_out() {
        let long = FIRING.replace("a<b>", &"x".repeat(9000));
        let order = Opsgenie::new(&config(r#"{"api_key":"k"}"#)).payload(&crate::notice::tests::record(&long));
        let order: Order = serde_json::from_slice(&order.unwrap().unwrap()).unwrap();
        assert_eq!(order.body["details"], json!({ "severity": "critical" }));
    }

    #[tokio::test]
    async fn the_key_is_in_a_header() {
        let options = |url: &str| format!(r#"{{"url":"{url}","api_key":"secret","allow_private":true,"text":"x"}}"#);
        delivers::<Config>(options, &[FIRING, RESOLVED], expect![[r#"
            POST /v2/alerts HTTP/1.1
            authorization: GenieKey secret

            {"alias":"f1-abc","description":"x\nrunbook: https://example.org/r?a=1&b=2","details":{"host":"a<b>","severity":"critical"},"entity":"errors","message":"[FIRING] errors: too many & more","priority":"P1","source":"tocsin","tags":[]}

            POST /v2/alerts/f1-abc/close?identifierType=alias HTTP/1.1
            authorization: GenieKey secret

            {"note":"[RESOLVED] errors: too many & more","source":"tocsin"}
        "#]]).await;
    }

    #[tokio::test]
    async fn a_request_that_is_not_understood_is_refused_and_a_key_that_is_not_known_is_not() {
        let (url, _) = serve(&["422 Bad", "401 No", "202 Accepted"]).await;
        let options = format!(r#"{{"url":"{url}","api_key":"k","allow_private":true,"concurrency":1}}"#);
        assert_eq!(run::<Config>(&options, &[FIRING, RESOLVED]).await, [1, 1, 1]);
    }

    #[test]
    fn an_alias_is_a_part_of_a_path() {
        assert_eq!(escaped("a-b_1.x/ä"), "a-b_1.x%2F%C3%A4");
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"api_key":" ","url":"http://canary"}"#,
            expect![[r#"
                url: is not encrypted
                api_key: is empty, or holds letters that a header may not
            "#]],
        );
    }
}
