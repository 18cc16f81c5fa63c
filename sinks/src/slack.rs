//! Alerts and records to a channel of Slack.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::Secret;
use tocsin_pipeline::sink::{Notification, Sink};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, Wording, WordingConfig, cut};
use crate::outbox::{self, Row};
use crate::service::{self, Connection, Service};

/// Slack refuses longer texts of a section, and of a button.
const TEXT_MAX: usize = 3000;
const BUTTON_MAX: usize = 75;
/// A URL of a button is not longer.
const URL_MAX: usize = 3000;
/// How many buttons a message has.
const BUTTONS_MAX: usize = 5;

/// Tells a channel of Slack of each record, through an incoming webhook: alerts in the first place, other records just as well.
///
/// A message has the title, the text, a colour by state and severity, and a button for each link: where to acknowledge, and
/// annotations that are URLs, such as `runbook`. What stands in records is shown as it is: it can neither mention anybody nor be
/// a link. In `title` and `text`, Slack's own markup works: `*bold*`, `<!here>`.
///
/// Answers 200 mean delivered. 429 and 500 to 599, no answer and a broken connection mean to try again, not sooner than
/// `Retry-After` says, for `max_age`. Every other answer refuses the record, such as that of a channel that is archived or a
/// webhook that was removed: it goes to `NAME.rejected`, and as it came to `NAME.failed`.
///
/// Slack takes about one message a second through one webhook: `rate_limit = { attempts = 1, per = "1s" }`.
///
/// When `max_waiting` notifications wait, or 64 MiB of them, what comes is told as one, a digest, as soon as there is room.
///
/// **State:** what is not delivered yet, and the digest of what came beyond. The names of the last 100,000 that are settled.
///
/// **Late events:** sent like all others.
///
/// **After a crash:** nothing is lost. What was on its way when the daemon died is sent again, and may then be read twice.
///
/// ```toml
/// [sinks.chat]
/// type = "slack"
/// inputs = ["high_error_rate"]
/// url = "${file:/run/secrets/slack_url}"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The URL of the incoming webhook, which is a secret: `https://hooks.slack.com/services/…`.
    url: Secret,
    #[serde(flatten)]
    wording: WordingConfig,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

impl SinkConfig for Config {
    const NAME: &'static str = "slack";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(self.connection.url_problem("url", self.url.reveal()));
        problems.extend(self.wording.problems());
        problems.extend(self.delivery.problems(Usual::HTTP));
        problems.extend(self.connection.problems());
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once"
    }

    fn undelivered(state: &[u8]) -> u64 {
        outbox::undelivered(state)
    }

    fn hands_on(&self) -> bool {
        true
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        service::sink(Slack::new(self), &self.delivery, &self.connection, context)
    }
}

struct Slack {
    url: Secret,
    wording: Wording,
}

impl Slack {
    fn new(config: &Config) -> Self {
        Self { url: config.url.clone(), wording: config.wording.build(escape) }
    }
}

/// The three letters that mean something to Slack.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Service for Slack {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let notice = Notice::of(record);
        let words = self.wording.of(&notice, record);
        let (title, text) = (cut(&words.title, TEXT_MAX - 2), cut(&words.text, TEXT_MAX));
        let section = |text: &str| json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } });
        let mut blocks = Vec::new();
        if !text.trim().is_empty() {
            blocks.push(section(&text));
        }
        let links = notice.links.iter().filter(|link| link.url.len() <= URL_MAX).take(BUTTONS_MAX);
        let buttons: Vec<_> = links
            .map(|link| {
                let text = json!({ "type": "plain_text", "text": cut(&link.text, BUTTON_MAX) });
                json!({ "type": "button", "text": text, "url": link.url })
            })
            .collect();
        if !buttons.is_empty() {
            blocks.push(json!({ "type": "actions", "elements": buttons }));
        }
        // What stands at the top has no colour, and notifications of the phone show it.
        let mut message = json!({ "text": title, "blocks": [section(&format!("*{title}*"))] });
        if !blocks.is_empty() {
            message["attachments"] = json!([{ "color": format!("#{:06x}", notice.colour()), "blocks": blocks }]);
        }
        Ok(Some(message.to_string().into_bytes()))
    }

    fn request(&self, row: &Row, _: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        service::post(self.url.reveal(), row.payload.clone())
    }

    fn preview(&self, record: &Value) -> Option<Notification> {
        Some(self.wording.preview(record))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::notice::tests::{AMENDED, DIGEST, FIRING, GROUP, RESOLVED};
    use crate::service::tests::{body, config, delivers, payload, problems, run, serve};

    fn check(record: &str, expected: expect_test::Expect) {
        payload(&Slack::new(&config(r#"{"url":"https://hooks.slack.com/services/T/B/x"}"#)), record, expected);
    }

    #[test]
    fn an_amendment_is_told_in_words_and_in_no_colour_of_alerts() {
        check(
            AMENDED,
            expect![[r##"
            {
              "attachments": [
                {
                  "blocks": [
                    {
                      "text": {
                        "text": "what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not\nhost=a&lt;b&gt;, severity=critical\nerrors: 9\nupdate: 1\namends: abc",
                        "type": "mrkdwn"
                      },
                      "type": "section"
                    }
                  ],
                  "color": "#546e7a"
                }
              ],
              "blocks": [
                {
                  "text": {
                    "text": "*[AMENDED] errors {host=\"a&lt;b&gt;\", severity=\"critical\"}*",
                    "type": "mrkdwn"
                  },
                  "type": "section"
                }
              ],
              "text": "[AMENDED] errors {host=\"a&lt;b&gt;\", severity=\"critical\"}"
            }"##]],
        );
    }

    #[test]
    fn an_alert_is_a_message_with_a_colour_and_buttons() {
        check(
            FIRING,
            expect![[r##"
            {
              "attachments": [
                {
                  "blocks": [
                    {
                      "text": {
                        "text": "too many &amp; more\nhint: look at *this*\nhost=a&lt;b&gt;, severity=critical\nerrors: 7\nsince: 2026-11-20T12:00:00Z\naccess: GET / [2J",
                        "type": "mrkdwn"
                      },
                      "type": "section"
                    },
                    {
                      "elements": [
                        {
                          "text": {
                            "text": "runbook",
                            "type": "plain_text"
                          },
                          "type": "button",
                          "url": "https://example.org/r?a=1&b=2"
                        }
                      ],
                      "type": "actions"
                    }
                  ],
                  "color": "#c62828"
                }
              ],
              "blocks": [
                {
                  "text": {
                    "text": "*[FIRING] errors: too many &amp; more*",
                    "type": "mrkdwn"
                  },
                  "type": "section"
                }
              ],
              "text": "[FIRING] errors: too many &amp; more"
            }"##]],
        );
        check(
            RESOLVED,
            expect![[r##"
            {
              "attachments": [
                {
                  "blocks": [
                    {
                      "text": {
                        "text": "too many &amp; more\nhost=a&lt;b&gt;, severity=critical\nerrors: 0\nsince: 2026-11-20T12:00:00Z\nuntil: 2026-11-20T12:05:00Z",
                        "type": "mrkdwn"
                      },
                      "type": "section"
                    }
                  ],
                  "color": "#2e7d32"
                }
              ],
              "blocks": [
                {
                  "text": {
                    "text": "*[RESOLVED] errors: too many &amp; more*",
                    "type": "mrkdwn"
                  },
                  "type": "section"
                }
              ],
              "text": "[RESOLVED] errors: too many &amp; more"
            }"##]],
        );
        check(
            GROUP,
            expect![[r##"
            {
              "attachments": [
                {
                  "blocks": [
                    {
                      "text": {
                        "text": "severity=warning\nsince: 2026-11-20T12:00:00Z\nFIRING errors {host=a, severity=warning}: bad\nFIRING errors {host=b, severity=warning}\nRESOLVED errors {host=c, severity=warning}\nand 4 more",
                        "type": "mrkdwn"
                      },
                      "type": "section"
                    },
                    {
                      "elements": [
                        {
                          "text": {
                            "text": "acknowledge",
                            "type": "plain_text"
                          },
                          "type": "button",
                          "url": "https://tocsin.example.org/ack/1"
                        }
                      ],
                      "type": "actions"
                    }
                  ],
                  "color": "#f9a825"
                }
              ],
              "blocks": [
                {
                  "text": {
                    "text": "*[FIRING:2, RESOLVED:1] errors (escalated): severity=warning*",
                    "type": "mrkdwn"
                  },
                  "type": "section"
                }
              ],
              "text": "[FIRING:2, RESOLVED:1] errors (escalated): severity=warning"
            }"##]],
        );
        check(
            DIGEST,
            expect![[r##"
            {
              "attachments": [
                {
                  "blocks": [
                    {
                      "text": {
                        "text": "FIRING errors {host=a}\n2026-11-20T12:00:01Z a line\nand 10 more",
                        "type": "mrkdwn"
                      },
                      "type": "section"
                    }
                  ],
                  "color": "#e65100"
                }
              ],
              "blocks": [
                {
                  "text": {
                    "text": "*[DIGEST] 12 notifications were not sent one by one*",
                    "type": "mrkdwn"
                  },
                  "type": "section"
                }
              ],
              "text": "[DIGEST] 12 notifications were not sent one by one"
            }"##]],
        );
    }

    #[test]
    fn texts_are_as_long_as_slack_takes_them() {
        let long = FIRING.replace("too many & more", &"<&>".repeat(2000));
        let slack = Slack::new(&config(r#"{"url":"https://hooks.slack.com/x","text":"{{ annotations.summary }}"}"#));
        let record = crate::notice::tests::record(&long);
        let message: serde_json::Value = serde_json::from_slice(&slack.payload(&record).unwrap().unwrap()).unwrap();
        let text = message["attachments"][0]["blocks"][0]["text"]["text"].as_str().unwrap();
        assert!(text.chars().count() <= TEXT_MAX && text.ends_with(";…"), "{text}");
    }

    #[tokio::test]
    async fn it_is_posted_to_the_webhook() {
        let options = |url: &str| format!(r#"{{"url":"{url}/services/T/B/x","allow_private":true,"text":""}}"#);
        delivers::<Config>(options, &[FIRING, RESOLVED], expect![[r##"
            POST /services/T/B/x HTTP/1.1

            {"attachments":[{"blocks":[{"elements":[{"text":{"text":"runbook","type":"plain_text"},"type":"button","url":"https://example.org/r?a=1&b=2"}],"type":"actions"}],"color":"#c62828"}],"blocks":[{"text":{"text":"*[FIRING] errors: too many &amp; more*","type":"mrkdwn"},"type":"section"}],"text":"[FIRING] errors: too many &amp; more"}

            POST /services/T/B/x HTTP/1.1

            {"blocks":[{"text":{"text":"*[RESOLVED] errors: too many &amp; more*","type":"mrkdwn"},"type":"section"}],"text":"[RESOLVED] errors: too many &amp; more"}
        "##]]).await;
    }

    #[tokio::test]
    async fn it_withstands_what_every_sink_must() {
        let (url, requests) = serve(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        let options = format!(r#"{{"url":"{url}/x","allow_private":true,"concurrency":1,"text":""}}"#);
        let make = || crate::conformance::sink::<Config>(&options, folder.path());
        let read = async || {
            let titles = |request: &String| {
                let message: serde_json::Value = serde_json::from_str(body(request)).unwrap();
                message["text"].as_str().unwrap().to_owned()
            };
            requests.lock().unwrap().iter().map(titles).collect::<Vec<_>>().join("\n")
        };
        let expected = "one\ntwo\n{\"three\":3}\nfive";
        crate::conformance::withstands(make, Some(folder.path()), read, expected).await;
    }

    #[tokio::test]
    async fn a_channel_that_is_gone_refuses_the_record() {
        let (url, _) = serve(&["410 Gone\nchannel_is_archived", "429 Slow"]).await;
        let options = format!(r#"{{"url":"{url}/","allow_private":true,"concurrency":1}}"#);
        assert_eq!(run::<Config>(&options, &[FIRING, RESOLVED]).await, [1, 1, 1]);
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"url":"http://canary/","title":"{{ a","breaker":{"failures":0}}"#,
            expect![[r#"
            url: is not encrypted
            title: unexpected end of input, expected end of variable block
        "#]],
        );
    }
}
