//! Alerts and records to a channel of Discord.

use std::time::Duration;

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

use crate::client::Response;
use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, State, Wording, WordingConfig, cut};
use crate::outbox::{self, Answer, Row};
use crate::service::{self, Connection, Service};

/// What Discord takes at most: of a title, of a description with the links, and 6000 letters of all together.
const TITLE_MAX: usize = 256;
const TEXT_MAX: usize = 3500;
const DESCRIPTION_MAX: usize = 4096;
/// A name is not longer.
const USERNAME_MAX: usize = 80;

/// Tells a channel of Discord of each record, through a webhook: alerts in the first place, other records just as well.
///
/// A message is an embed with the title, the text, a colour by state and severity, and the links: where to acknowledge, and
/// annotations that are URLs, such as `runbook`. What stands in records is shown as it is, and mentions nobody. In `title` and
/// `text`, Discord's Markdown works; `mention` is what may be mentioned.
///
/// Answers 200 to 299 mean delivered. 429 and 500 to 599, no answer and a broken connection mean to try again, not sooner than
/// `Retry-After` or `retry_after` in the answer says, for `max_age`. Every other answer refuses the record, such as that of a
/// webhook that was removed: it goes to `NAME.rejected`, and as it came to `NAME.failed`.
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
/// type = "discord"
/// inputs = ["high_error_rate"]
/// url = "${file:/run/secrets/discord_url}"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The URL of the webhook, which is a secret: `https://discord.com/api/webhooks/…`.
    url: Secret,
    /// The name that messages come from. Default: that of the webhook.
    username: Option<String>,
    /// What stands before each message of an alert that fires, such as `"<@&ROLE>"` or `"@here"`: who is named there is notified.
    mention: Option<String>,
    #[serde(flatten)]
    wording: WordingConfig,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

impl SinkConfig for Config {
    const NAME: &'static str = "discord";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(self.connection.url_problem("url", self.url.reveal()));
        if self.username.as_ref().is_some_and(|name| !(1..=USERNAME_MAX).contains(&name.chars().count())) {
            problems.push(Problem::new("username", format!("must have from 1 to {USERNAME_MAX} letters")));
        }
        if self.mention.as_ref().is_some_and(|mention| mention.chars().count() > TITLE_MAX) {
            problems.push(Problem::new("mention", format!("must not have more than {TITLE_MAX} letters")));
        }
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
        service::sink(Discord::new(self), &self.delivery, &self.connection, context)
    }
}

struct Discord {
    url: Secret,
    username: Option<String>,
    mention: Option<String>,
    wording: Wording,
}

impl Discord {
    fn new(config: &Config) -> Self {
        let Config { url, username, mention, .. } = config.clone();
        Self { url, username, mention, wording: config.wording.build(escape) }
    }
}

/// Puts a backslash before letters that mean something in Discord's Markdown.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        if matches!(letter, '\\' | '*' | '_' | '[' | ']' | '(' | ')' | '`' | '~' | '#' | '|' | '<' | '>' | '@') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

impl Service for Discord {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let notice = Notice::of(record);
        let words = self.wording.of(&notice, record);
        let mut description = cut(&words.text, TEXT_MAX);
        for link in &notice.links {
            let line = format!("\n[{}]({})", escape(&link.text), link.url.replace(')', "%29"));
            if description.chars().count() + line.chars().count() <= DESCRIPTION_MAX {
                description.push_str(&line);
            }
        }
        let mut embed = json!({
            "title": cut(&words.title, TITLE_MAX),
            "description": description.trim(),
            "color": notice.colour(),
        });
        if !notice.starts_at.is_empty() {
            embed["timestamp"] = notice.starts_at.clone().into();
        }
        let mut message = json!({ "embeds": [embed], "allowed_mentions": { "parse": [] } });
        if let Some(username) = &self.username {
            message["username"] = username.clone().into();
        }
        if let Some(mention) = self.mention.as_ref().filter(|_| notice.state == State::Firing) {
            message["content"] = mention.clone().into();
            message["allowed_mentions"]["parse"] = json!(["roles", "users", "everyone"]);
        }
        Ok(Some(message.to_string().into_bytes()))
    }

    fn request(&self, row: &Row, _: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        service::post(self.url.reveal(), row.payload.clone())
    }

    fn answer(&self, response: &Response, now: Timestamp) -> Answer {
        match response.status.as_u16() {
            429 => service::again(response, response.retry_after(now).max(retry_after(&response.body))),
            _ => service::by_status(response, now),
        }
    }

    fn preview(&self, record: &Value) -> Option<Notification> {
        Some(self.wording.preview(record))
    }
}

/// How long to wait, in seconds, as the body of an answer says.
fn retry_after(body: &[u8]) -> Option<Duration> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Duration::try_from_secs_f64(body.get("retry_after")?.as_f64()?).ok()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::notice::tests::{AMENDED, DIGEST, FIRING, GROUP, RESOLVED};
    use crate::service::tests::{config, delivers, payload, problems, run, serve};

    fn check(record: &str, expected: expect_test::Expect) {
        let options = r#"{"url":"https://discord.com/api/webhooks/1/x","username":"tocsin","mention":"<@&7>"}"#;
        payload(&Discord::new(&config(options)), record, expected);
    }

    #[test]
    fn an_amendment_is_told_in_words_and_in_no_colour_of_alerts() {
        check(
            AMENDED,
            expect![[r#"
            {
              "allowed_mentions": {
                "parse": []
              },
              "embeds": [
                {
                  "color": 5533306,
                  "description": "what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not\nhost=a\\<b\\>, severity=critical\nerrors: 9\nupdate: 1\namends: abc",
                  "title": "\\[AMENDED\\] errors {host=\"a\\<b\\>\", severity=\"critical\"}"
                }
              ],
              "username": "tocsin"
            }"#]],
        );
    }

    #[test]
    fn an_alert_is_an_embed_with_a_colour_and_links() {
        check(
            FIRING,
            expect![[r#"
                {
                  "allowed_mentions": {
                    "parse": [
                      "roles",
                      "users",
                      "everyone"
                    ]
                  },
                  "content": "<@&7>",
                  "embeds": [
                    {
                      "color": 12986408,
                      "description": "too many & more\nhint: look at \\*this\\*\nhost=a\\<b\\>, severity=critical\nerrors: 7\nsince: 2026-11-20T12:00:00Z\naccess: GET / \\[2J\n[runbook](https://example.org/r?a=1&b=2)",
                      "timestamp": "2026-11-20T12:00:00Z",
                      "title": "\\[FIRING\\] errors: too many & more"
                    }
                  ],
                  "username": "tocsin"
                }"#]],
        );
        check(
            RESOLVED,
            expect![[r#"
                {
                  "allowed_mentions": {
                    "parse": []
                  },
                  "embeds": [
                    {
                      "color": 3046706,
                      "description": "too many & more\nhost=a\\<b\\>, severity=critical\nerrors: 0\nsince: 2026-11-20T12:00:00Z\nuntil: 2026-11-20T12:05:00Z",
                      "timestamp": "2026-11-20T12:00:00Z",
                      "title": "\\[RESOLVED\\] errors: too many & more"
                    }
                  ],
                  "username": "tocsin"
                }"#]],
        );
        check(
            GROUP,
            expect![[r#"
                {
                  "allowed_mentions": {
                    "parse": [
                      "roles",
                      "users",
                      "everyone"
                    ]
                  },
                  "content": "<@&7>",
                  "embeds": [
                    {
                      "color": 16361509,
                      "description": "severity=warning\nsince: 2026-11-20T12:00:00Z\nFIRING errors {host=a, severity=warning}: bad\nFIRING errors {host=b, severity=warning}\nRESOLVED errors {host=c, severity=warning}\nand 4 more\n[acknowledge](https://tocsin.example.org/ack/1)",
                      "timestamp": "2026-11-20T12:00:00Z",
                      "title": "\\[FIRING:2, RESOLVED:1\\] errors \\(escalated\\): severity=warning"
                    }
                  ],
                  "username": "tocsin"
                }"#]],
        );
        check(
            DIGEST,
            expect![[r#"
                {
                  "allowed_mentions": {
                    "parse": []
                  },
                  "embeds": [
                    {
                      "color": 15094016,
                      "description": "FIRING errors {host=a}\n2026-11-20T12:00:01Z a line\nand 10 more",
                      "title": "\\[DIGEST\\] 12 notifications were not sent one by one"
                    }
                  ],
                  "username": "tocsin"
                }"#]],
        );
    }

    #[test]
    fn an_embed_is_not_longer_than_discord_takes() {
        let long = FIRING.replace("too many & more", &"*".repeat(9000));
        let record = crate::notice::tests::record(&long);
        let discord = Discord::new(&config(r#"{"url":"https://discord.com/x","text":"{{ annotations.summary }}"}"#));
        let message: serde_json::Value = serde_json::from_slice(&discord.payload(&record).unwrap().unwrap()).unwrap();
        let length = |name: &str| message["embeds"][0][name].as_str().unwrap().chars().count();
        assert!(length("title") <= 256 && length("description") <= 4096, "{message}");
    }

    #[tokio::test]
    async fn it_is_posted_to_the_webhook() {
        let options = |url: &str| format!(r#"{{"url":"{url}/api/webhooks/1/x","allow_private":true,"text":"t"}}"#);
        delivers::<Config>(options, &[FIRING], expect![[r#"
            POST /api/webhooks/1/x HTTP/1.1

            {"allowed_mentions":{"parse":[]},"embeds":[{"color":12986408,"description":"t\n[runbook](https://example.org/r?a=1&b=2)","timestamp":"2026-11-20T12:00:00Z","title":"\\[FIRING\\] errors: too many & more"}]}
        "#]]).await;
    }

    #[tokio::test]
    async fn a_wait_that_the_answer_asks_for_is_kept() {
        assert_eq!(
            retry_after(br#"{"message":"You are being rate limited.","retry_after":1.5}"#),
            Some(Duration::from_millis(1500))
        );
        assert_eq!(retry_after(br#"{"retry_after":-1}"#), None);
        let (url, _) = serve(&["429 Slow\n{\"retry_after\":64.57}", "404 Gone", "204 None"]).await;
        let options = format!(r#"{{"url":"{url}/x","allow_private":true,"concurrency":1}}"#);
        assert_eq!(run::<Config>(&options, &[FIRING, RESOLVED]).await, [1, 1, 1]);
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"url":"http://canary/","username":""}"#,
            expect![[r#"
            url: is not encrypted
            username: must have from 1 to 80 letters
        "#]],
        );
    }
}
