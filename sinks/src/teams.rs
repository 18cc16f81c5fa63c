//! Alerts and records to a channel or chat of Microsoft Teams.

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
use crate::notice::{Notice, Severity, State, Wording, WordingConfig, cut};
use crate::outbox::{self, Row};
use crate::service::{self, Connection, Service};

/// Teams refuses messages of more than 28 KiB; a letter may take six bytes as JSON.
const TITLE_MAX: usize = 500;
const TEXT_MAX: usize = 3000;
const LINKS_MAX: usize = 6;
const URL_MAX: usize = 1000;
const LINK_TEXT_MAX: usize = 50;

/// Tells a channel or chat of Microsoft Teams of each record, through a workflow that posts what a webhook is sent: alerts in the
/// first place, other records just as well.
///
/// A message is an Adaptive Card with the title in a colour by state and severity, the text, and a button for each link: where to
/// acknowledge, and annotations that are URLs, such as `runbook`. What stands in records is shown as it is. In `title` and `text`,
/// the Markdown of cards works: `**bold**`, `[text](url)`.
///
/// In Teams, make a workflow from the template "Send webhook alerts to a channel" (or "to a chat"), and give its URL as `url`.
///
/// Answers 200 to 299 mean delivered: the workflow has started. 408, 429 and 500 to 599, no answer and a broken connection mean to
/// try again, not sooner than `Retry-After` says, for `max_age`. Every other answer refuses the record: it goes to
/// `NAME.rejected`, and as it came to `NAME.failed`.
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
/// type = "teams"
/// inputs = ["high_error_rate"]
/// url = "${file:/run/secrets/teams_url}"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The URL of the workflow, which is a secret.
    url: Secret,
    #[serde(flatten)]
    wording: WordingConfig,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

impl SinkConfig for Config {
    const NAME: &'static str = "teams";

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
        service::sink(Teams::new(self), &self.delivery, &self.connection, context)
    }
}

struct Teams {
    url: Secret,
    wording: Wording,
}

impl Teams {
    fn new(config: &Config) -> Self {
        Self { url: config.url.clone(), wording: config.wording.build(escape) }
    }
}

/// Puts a backslash before letters that mean something in the Markdown of cards, and a line end where Markdown would have none.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        if matches!(letter, '\\' | '*' | '_' | '[' | ']' | '(' | ')' | '`' | '~' | '#' | '|') {
            escaped.push('\\');
        }
        escaped.push(letter);
        if letter == '\n' {
            escaped.push('\n');
        }
    }
    escaped
}

impl Service for Teams {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let notice = Notice::of(record);
        let words = self.wording.of(&notice, record);
        let colour = match (notice.state, notice.severity) {
            (State::Resolved, _) => "Good",
            (State::Amended, _) => "Default",
            (State::None, _) if !notice.is_digest => "Default",
            (_, Severity::Critical | Severity::Error) => "Attention",
            (_, Severity::Warning) => "Warning",
            (_, Severity::Info) => "Accent",
        };
        let block = |text: String| json!({ "type": "TextBlock", "text": text, "wrap": true });
        let mut title = block(cut(&words.title, TITLE_MAX));
        title["weight"] = "Bolder".into();
        title["size"] = "Medium".into();
        title["color"] = colour.into();
        let mut body = vec![title];
        if !words.text.trim().is_empty() {
            body.push(block(cut(&words.text, TEXT_MAX)));
        }
        let links = notice.links.iter().filter(|link| link.url.len() <= URL_MAX).take(LINKS_MAX);
        let open = "Action.OpenUrl";
        let actions =
            links.map(|link| json!({ "type": open, "title": cut(&link.text, LINK_TEXT_MAX), "url": link.url }));
        let card = json!({
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "msteams": { "width": "Full" },
            "body": body,
            "actions": actions.collect::<Vec<_>>(),
        });
        let kind = "application/vnd.microsoft.card.adaptive";
        let attachment = json!({ "contentType": kind, "contentUrl": null, "content": card });
        let message = json!({ "type": "message", "attachments": [attachment] });
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
    use crate::service::tests::{config, delivers, payload, problems};

    fn check(record: &str, expected: expect_test::Expect) {
        payload(&Teams::new(&config(r#"{"url":"https://example.org/workflows/x"}"#)), record, expected);
    }

    #[test]
    fn an_amendment_is_told_in_words_and_in_no_colour_of_alerts() {
        check(
            AMENDED,
            expect![[r#"
            {
              "attachments": [
                {
                  "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "actions": [],
                    "body": [
                      {
                        "color": "Default",
                        "size": "Medium",
                        "text": "\\[AMENDED\\] errors {host=\"a<b>\", severity=\"critical\"}",
                        "type": "TextBlock",
                        "weight": "Bolder",
                        "wrap": true
                      },
                      {
                        "text": "what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not\n\nhost=a<b>, severity=critical\n\nerrors: 9\n\nupdate: 1\n\namends: abc",
                        "type": "TextBlock",
                        "wrap": true
                      }
                    ],
                    "msteams": {
                      "width": "Full"
                    },
                    "type": "AdaptiveCard",
                    "version": "1.4"
                  },
                  "contentType": "application/vnd.microsoft.card.adaptive",
                  "contentUrl": null
                }
              ],
              "type": "message"
            }"#]],
        );
    }

    #[test]
    fn an_alert_is_a_card_with_buttons() {
        check(
            FIRING,
            expect![[r#"
            {
              "attachments": [
                {
                  "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "actions": [
                      {
                        "title": "runbook",
                        "type": "Action.OpenUrl",
                        "url": "https://example.org/r?a=1&b=2"
                      }
                    ],
                    "body": [
                      {
                        "color": "Attention",
                        "size": "Medium",
                        "text": "\\[FIRING\\] errors: too many & more",
                        "type": "TextBlock",
                        "weight": "Bolder",
                        "wrap": true
                      },
                      {
                        "text": "too many & more\n\nhint: look at \\*this\\*\n\nhost=a<b>, severity=critical\n\nerrors: 7\n\nsince: 2026-11-20T12:00:00Z\n\naccess: GET / \\[2J",
                        "type": "TextBlock",
                        "wrap": true
                      }
                    ],
                    "msteams": {
                      "width": "Full"
                    },
                    "type": "AdaptiveCard",
                    "version": "1.4"
                  },
                  "contentType": "application/vnd.microsoft.card.adaptive",
                  "contentUrl": null
                }
              ],
              "type": "message"
            }"#]],
        );
        check(
            RESOLVED,
            expect![[r#"
            {
              "attachments": [
                {
                  "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "actions": [],
                    "body": [
                      {
                        "color": "Good",
                        "size": "Medium",
                        "text": "\\[RESOLVED\\] errors: too many & more",
                        "type": "TextBlock",
                        "weight": "Bolder",
                        "wrap": true
                      },
                      {
                        "text": "too many & more\n\nhost=a<b>, severity=critical\n\nerrors: 0\n\nsince: 2026-11-20T12:00:00Z\n\nuntil: 2026-11-20T12:05:00Z",
                        "type": "TextBlock",
                        "wrap": true
                      }
                    ],
                    "msteams": {
                      "width": "Full"
                    },
                    "type": "AdaptiveCard",
                    "version": "1.4"
                  },
                  "contentType": "application/vnd.microsoft.card.adaptive",
                  "contentUrl": null
                }
              ],
              "type": "message"
            }"#]],
        );
        check(
            GROUP,
            expect![[r#"
            {
              "attachments": [
                {
                  "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "actions": [
                      {
                        "title": "acknowledge",
                        "type": "Action.OpenUrl",
                        "url": "https://tocsin.example.org/ack/1"
                      }
                    ],
                    "body": [
                      {
                        "color": "Warning",
                        "size": "Medium",
                        "text": "\\[FIRING:2, RESOLVED:1\\] errors \\(escalated\\): severity=warning",
                        "type": "TextBlock",
                        "weight": "Bolder",
                        "wrap": true
                      },
                      {
                        "text": "severity=warning\n\nsince: 2026-11-20T12:00:00Z\n\nFIRING errors {host=a, severity=warning}: bad\n\nFIRING errors {host=b, severity=warning}\n\nRESOLVED errors {host=c, severity=warning}\n\nand 4 more",
                        "type": "TextBlock",
                        "wrap": true
                      }
                    ],
                    "msteams": {
                      "width": "Full"
                    },
                    "type": "AdaptiveCard",
                    "version": "1.4"
                  },
                  "contentType": "application/vnd.microsoft.card.adaptive",
                  "contentUrl": null
                }
              ],
              "type": "message"
            }"#]],
        );
        check(
            DIGEST,
            expect![[r#"
            {
              "attachments": [
                {
                  "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "actions": [],
                    "body": [
                      {
                        "color": "Attention",
                        "size": "Medium",
                        "text": "\\[DIGEST\\] 12 notifications were not sent one by one",
                        "type": "TextBlock",
                        "weight": "Bolder",
                        "wrap": true
                      },
                      {
                        "text": "FIRING errors {host=a}\n\n2026-11-20T12:00:01Z a line\n\nand 10 more",
                        "type": "TextBlock",
                        "wrap": true
                      }
                    ],
                    "msteams": {
                      "width": "Full"
                    },
                    "type": "AdaptiveCard",
                    "version": "1.4"
                  },
                  "contentType": "application/vnd.microsoft.card.adaptive",
                  "contentUrl": null
                }
              ],
              "type": "message"
            }"#]],
        );
    }

    #[test]
    fn a_card_is_not_longer_than_teams_takes() {
        let links: Vec<_> =
            (0..20).map(|number| format!(r#""l{number}":"https://example.org/{}""#, "x".repeat(900))).collect();
        let long = FIRING
            .replace("too many & more", &"\\u0001*".repeat(5000))
            .replace(r#""hint":"#, &format!("{},\"hint\":", links.join(",")));
        let record = crate::notice::tests::record(&long);
        let card = Teams::new(&config(r#"{"url":"https://example.org/x"}"#)).payload(&record).unwrap().unwrap();
        assert!(card.len() <= 28 << 10, "{}", card.len());
    }

    #[tokio::test]
    async fn it_is_posted_to_the_workflow() {
        let options =
            |url: &str| format!(r#"{{"url":"{url}/workflows/x","allow_private":true,"title":"t","text":""}}"#);
        delivers::<Config>(options, &[FIRING], expect![[r#"
            POST /workflows/x HTTP/1.1

            {"attachments":[{"content":{"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","actions":[{"title":"runbook","type":"Action.OpenUrl","url":"https://example.org/r?a=1&b=2"}],"body":[{"color":"Attention","size":"Medium","text":"t","type":"TextBlock","weight":"Bolder","wrap":true}],"msteams":{"width":"Full"},"type":"AdaptiveCard","version":"1.4"},"contentType":"application/vnd.microsoft.card.adaptive","contentUrl":null}],"type":"message"}
        "#]]).await;
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"url":"canary","text":"{{ a"}"#,
            expect![[r#"
                url: is not a URL
                text: unexpected end of input, expected end of variable block
            "#]],
        );
    }
}
