//! Alerts to PagerDuty, as events of its API in version 2.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::Secret;
use tocsin_pipeline::sink::{Notification, Sink};
use tocsin_pipeline::template::{Escape, Template};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use crate::client::Response;
use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, State, Wording, WordingConfig, as_it_is, cut};
use crate::outbox::{self, Answer, Row};
use crate::service::{self, Connection, Service};

/// PagerDuty cuts longer ones off, or refuses them.
const SUMMARY_MAX: usize = 1024;
const KEY_MAX: usize = 255;
/// An event has 512 KiB at most.
const DETAILS_MAX: usize = 32 << 10;

/// Triggers and resolves incidents of PagerDuty (Events API v2): one for each alert, or for each group of a `notify`.
///
/// *Firing* triggers, *resolved* resolves what it triggered: both have the same `dedup_key`, made of the fingerprint and the
/// episode. So a repetition changes the incident that is there, and a new episode makes a new one. The severity is that of the
/// label `severity` in PagerDuty's words (`critical`, `error`, `warning`, `info`; `error` if there is none). Records that are no
/// alerts trigger an incident each, of severity `info`, which nothing resolves. *Pending*,
/// *amended* and what `notify` tells at the end of a silence are not told; `tocsin check` refuses the input `NAME.amended`.
///
/// Links are where to acknowledge, and annotations that are URLs, such as `runbook`. `title` is the summary of an incident,
/// `text` the field `text` of its details.
///
/// Answers 200 to 299 mean delivered. 401, 403, 429 and 500 to 599, no answer and a broken connection mean to try again, for
/// `max_age`. Every other answer refuses the record: it goes to `NAME.rejected`, and as it came to `NAME.failed`.
///
/// When `max_waiting` notifications wait, or 64 MiB of them, what comes is told as one, a digest, which is an incident of its own.
///
/// **State:** what is not delivered yet, and the digest of what came beyond. The names of the last 100,000 that are settled.
///
/// **Late events:** sent like all others.
///
/// **After a crash:** nothing is lost. What was on its way when the daemon died is sent again, with the same `dedup_key`.
///
/// ```toml
/// [sinks.pager]
/// type = "pagerduty"
/// inputs = ["high_error_rate"]
/// routing_key = "${file:/run/secrets/pagerduty}"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The integration key of a service or of an orchestration.
    routing_key: Secret,
    /// Where the API is. Default `"https://events.pagerduty.com"`; of accounts in the EU `"https://events.eu.pagerduty.com"`.
    #[serde(default = "pagerduty")]
    url: String,
    /// What is named as the source of an incident: a text with `{{ field }}`. Default: the label `instance` or `host`, else
    /// `tocsin`.
    source: Option<String>,
    #[serde(flatten)]
    wording: WordingConfig,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

fn pagerduty() -> String {
    "https://events.pagerduty.com".to_owned()
}

impl SinkConfig for Config {
    const NAME: &'static str = "pagerduty";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(self.connection.url_problem("url", &self.url));
        if self.routing_key.reveal().trim().is_empty() {
            problems.push(Problem::new("routing_key", "is empty"));
        }
        problems.extend(template_problem("source", self.source.as_deref()));
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
        service::sink(PagerDuty::new(self), &self.delivery, &self.connection, context)
    }
}

/// What is wrong with a template that may be given.
fn template_problem(option: &str, text: Option<&str>) -> Option<Problem> {
    let error = Template::compile(text?, Escape::None).err()?;
    Some(Problem::new(option, error.message).within(error.within))
}

struct PagerDuty {
    routing_key: Secret,
    url: String,
    source: Option<Template>,
    wording: Wording,
}

impl PagerDuty {
    fn new(config: &Config) -> Self {
        let compile = |text: &String| Template::compile(text, Escape::None).expect("checked");
        Self {
            routing_key: config.routing_key.clone(),
            url: service::join(&config.url, "/v2/enqueue"),
            source: config.source.as_ref().map(compile),
            wording: config.wording.build(as_it_is),
        }
    }

    fn source(&self, notice: &Notice, record: &Value) -> String {
        let named = self.source.as_ref().map(|source| source.render(record).text);
        let labelled = || ["instance", "host"].iter().find_map(|label| notice.labels.get(*label).cloned());
        let source = named.or_else(labelled).filter(|source| !source.trim().is_empty());
        cut(&source.unwrap_or_else(|| "tocsin".to_owned()), SUMMARY_MAX)
    }
}

impl Service for PagerDuty {
    /// An event without its key, which is a secret.
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let notice = Notice::of(record);
        if notice.opens_nothing() {
            return Ok(None);
        }
        let key = cut(&notice.key, KEY_MAX);
        if notice.state == State::Resolved {
            let event = json!({ "event_action": "resolve", "dedup_key": key });
            return Ok(Some(event.to_string().into_bytes()));
        }
        let words = self.wording.of(&notice, record);
        let links = notice.links.iter().map(|link| json!({ "href": link.url, "text": link.text }));
        let mut payload = json!({
            "summary": cut(&words.title, SUMMARY_MAX),
            "source": self.source(&notice, record),
            "severity": notice.severity.as_str(),
            "custom_details": { "text": cut(&words.text, DETAILS_MAX), "labels": notice.labels },
        });
        if !notice.starts_at.is_empty() {
            payload["timestamp"] = notice.starts_at.clone().into();
        }
        if !notice.name.is_empty() {
            payload["class"] = notice.name.clone().into();
        }
        let event = json!({
            "event_action": "trigger",
            "dedup_key": key,
            "client": "tocsin",
            "payload": payload,
            "links": links.collect::<Vec<_>>(),
        });
        Ok(Some(event.to_string().into_bytes()))
    }

    fn request(&self, row: &Row, _: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        let mut event: serde_json::Value =
            serde_json::from_slice(&row.payload).map_err(|error| format!("the event does not read: {error}"))?;
        event["routing_key"] = self.routing_key.reveal().into();
        service::post(&self.url, event.to_string().into())
    }

    fn answer(&self, response: &Response, now: Timestamp) -> Answer {
        service::by_status_and_key(response, now)
    }

    fn preview(&self, record: &Value) -> Option<Notification> {
        (!Notice::of(record).opens_nothing()).then(|| self.wording.preview(record))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use tocsin_pipeline::operator::Reason;

    use super::*;
    use crate::conformance::{Running, records};
    use crate::notice::tests::{AMENDED, DIGEST, FIRING, GROUP, RESOLVED, summary};
    use crate::service::tests::{config, delivers, payload, problems, run, serve};

    fn check(record: &str, expected: expect_test::Expect) {
        payload(&PagerDuty::new(&config(r#"{"routing_key":"k"}"#)), record, expected);
    }

    #[test]
    fn firing_triggers_and_resolved_resolves_the_same() {
        check(
            FIRING,
            expect![[r#"
            {
              "client": "tocsin",
              "dedup_key": "f1-abc",
              "event_action": "trigger",
              "links": [
                {
                  "href": "https://example.org/r?a=1&b=2",
                  "text": "runbook"
                }
              ],
              "payload": {
                "class": "errors",
                "custom_details": {
                  "labels": {
                    "host": "a<b>",
                    "severity": "critical"
                  },
                  "text": "too many & more\nhint: look at *this*\nhost=a<b>, severity=critical\nerrors: 7\nsince: 2026-11-20T12:00:00Z\naccess: GET / [2J"
                },
                "severity": "critical",
                "source": "a<b>",
                "summary": "[FIRING] errors: too many & more",
                "timestamp": "2026-11-20T12:00:00Z"
              }
            }"#]],
        );
        check(
            RESOLVED,
            expect![[r#"
            {
              "dedup_key": "f1-abc",
              "event_action": "resolve"
            }"#]],
        );
        check(
            GROUP,
            expect![[r#"
            {
              "client": "tocsin",
              "dedup_key": "g1-i1",
              "event_action": "trigger",
              "links": [
                {
                  "href": "https://tocsin.example.org/ack/1",
                  "text": "acknowledge"
                }
              ],
              "payload": {
                "class": "errors",
                "custom_details": {
                  "labels": {
                    "severity": "warning"
                  },
                  "text": "severity=warning\nsince: 2026-11-20T12:00:00Z\nFIRING errors {host=a, severity=warning}: bad\nFIRING errors {host=b, severity=warning}\nRESOLVED errors {host=c, severity=warning}\nand 4 more"
                },
                "severity": "warning",
                "source": "tocsin",
                "summary": "[FIRING:2, RESOLVED:1] errors (escalated): severity=warning",
                "timestamp": "2026-11-20T12:00:00Z"
              }
            }"#]],
        );
        check(
            DIGEST,
            expect![[r#"
            {
              "client": "tocsin",
              "dedup_key": "d1",
              "event_action": "trigger",
              "links": [],
              "payload": {
                "class": "digest",
                "custom_details": {
                  "labels": {},
                  "text": "FIRING errors {host=a}\n2026-11-20T12:00:01Z a line\nand 10 more"
                },
                "severity": "error",
                "source": "tocsin",
                "summary": "[DIGEST] 12 notifications were not sent one by one"
              }
            }"#]],
        );
        for nothing in [&FIRING.replace("\"firing\"", "\"pending\""), AMENDED, &summary()] {
            check(nothing, expect![[""]]);
        }
    }

    #[tokio::test]
    async fn what_is_not_told_counts_as_neither_delivered_nor_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pager = crate::conformance::sink::<Config>(r#"{"routing_key":"k"}"#, folder.path());
        let running = Running::start(pager, None, None).await.unwrap();
        running.send(records(&[AMENDED, &summary()])).await;
        running.barrier(1).await;
        let metrics = &running.metrics;
        assert_eq!((metrics.sent_events(), metrics.dropped_events(Reason::Filtered)), (0, 2));
        assert_eq!(metrics.dropped_events(Reason::Refused), 0);
        running.end().await.unwrap();
    }

    #[tokio::test]
    async fn the_key_comes_with_the_request() {
        let options = |url: &str| {
            format!(
                r#"{{"url":"{url}","routing_key":"secret","allow_private":true,"source":"{{{{ labels.host }}}}","text":"x"}}"#
            )
        };
        delivers::<Config>(options, &[FIRING, RESOLVED], expect![[r#"
            POST /v2/enqueue HTTP/1.1

            {"client":"tocsin","dedup_key":"f1-abc","event_action":"trigger","links":[{"href":"https://example.org/r?a=1&b=2","text":"runbook"}],"payload":{"class":"errors","custom_details":{"labels":{"host":"a<b>","severity":"critical"},"text":"x"},"severity":"critical","source":"a<b>","summary":"[FIRING] errors: too many & more","timestamp":"2026-11-20T12:00:00Z"},"routing_key":"secret"}

            POST /v2/enqueue HTTP/1.1

            {"dedup_key":"f1-abc","event_action":"resolve","routing_key":"secret"}
        "#]]).await;
    }

    #[tokio::test]
    async fn an_event_that_is_not_understood_is_refused_and_a_key_that_is_not_known_is_not() {
        let (url, _) = serve(&["202 Accepted", "400 Bad\n{\"status\":\"invalid event\"}", "403 No", "429 Slow"]).await;
        let options = format!(r#"{{"url":"{url}","routing_key":"k","allow_private":true,"concurrency":1}}"#);
        let other = r#"{"message":"x"}"#;
        assert_eq!(run::<Config>(&options, &[FIRING, RESOLVED, other]).await, [2, 2, 1]);
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"routing_key":"","url":"x","source":"{{ a"}"#,
            expect![[r#"
                url: is not a URL
                routing_key: is empty
                source: unexpected end of input, expected end of variable block
            "#]],
        );
    }
}
