//! Alerts and records to a chat of Telegram.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Uri};
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
use crate::notice::{Notice, State, Wording, WordingConfig, Words, cut};
use crate::outbox::{self, Answer, Row};
use crate::service::{self, Connection, Service};

/// Telegram refuses longer messages; its count leaves markup out, this one does not.
const MESSAGE_MAX: usize = 4096;
const TITLE_MAX: usize = 500;
const LINKS_MAX: usize = 5;
const URL_MAX: usize = 300;

/// Tells a chat, group or channel of Telegram of each record, through a bot: alerts in the first place, other records just as well.
///
/// A message has the title in bold, the text, and the links: where to acknowledge, and annotations that are URLs, such as
/// `runbook`. What stands in records is shown as it is. In `title` and `text`, Telegram's HTML works: `<b>`, `<i>`, `<code>`,
/// `<a href="…">`. A message that would be longer than Telegram takes is cut off, then without markup.
///
/// Answers 200 mean delivered. 401 and 404 (a token that is not known), 429 and 500 to 599, no answer and a broken connection
/// mean to try again, not sooner than `parameters.retry_after` in the answer says, for `max_age`. Every other answer refuses the
/// record, such as that of a chat that the bot is not in: it goes to `NAME.rejected`, and as it came to `NAME.failed`.
///
/// Telegram takes about one message a second for one chat, and 20 a minute for a group: `rate_limit = { attempts = 20, per =
/// "1m" }`.
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
/// type = "telegram"
/// inputs = ["high_error_rate"]
/// token = "${file:/run/secrets/telegram}"
/// chat_id = "-1001234567890"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The token of the bot.
    token: Secret,
    /// The number of the chat, or `@NAME` of a public channel.
    chat_id: String,
    /// The number of a topic in a group with topics.
    message_thread_id: Option<i64>,
    /// Whether the end of an alert arrives without a sound. Default true.
    #[serde(default = "yes")]
    quiet_resolved: bool,
    /// Where the API is. Default `"https://api.telegram.org"`.
    #[serde(default = "telegram")]
    url: String,
    #[serde(flatten)]
    wording: WordingConfig,
    #[serde(flatten)]
    delivery: Delivery,
    #[serde(flatten)]
    connection: Connection,
}

fn yes() -> bool {
    true
}

fn telegram() -> String {
    "https://api.telegram.org".to_owned()
}

impl Config {
    /// The URL that messages are posted to, with the token in it.
    fn method(&self) -> String {
        service::join(&self.url, &format!("/bot{}/sendMessage", self.token.reveal()))
    }
}

impl SinkConfig for Config {
    const NAME: &'static str = "telegram";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::from_iter(self.connection.url_problem("url", &self.url));
        if self.token.reveal().is_empty() || self.method().parse::<Uri>().is_err() {
            problems.push(Problem::new("token", "is not the token of a bot").help("it looks like 123456:ABC-DEF…"));
        }
        let is_name = self.chat_id.strip_prefix('@').is_some_and(|name| !name.is_empty());
        if !is_name && self.chat_id.parse::<i64>().is_err() {
            problems.push(
                Problem::new("chat_id", format!("{:?} is neither a number nor a name", self.chat_id))
                    .help("write \"-1001234567890\" or \"@channel\""),
            );
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
        service::sink(Telegram::new(self), &self.delivery, &self.connection, context)
    }
}

struct Telegram {
    config: Config,
    wording: Wording,
}

impl Telegram {
    fn new(config: &Config) -> Self {
        Self { config: config.clone(), wording: config.wording.build(escape) }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A message in Telegram's HTML; `None` where that would be too long.
fn marked_up(notice: &Notice, words: &Words) -> Option<String> {
    let mut text = format!("<b>{}</b>", cut(&words.title, TITLE_MAX));
    if !words.text.trim().is_empty() {
        text.push_str(&format!("\n{}", words.text.trim_end()));
    }
    for link in notice.links.iter().filter(|link| link.url.len() <= URL_MAX).take(LINKS_MAX) {
        text.push_str(&format!("\n<a href=\"{}\">{}</a>", escape(&link.url), escape(&link.text)));
    }
    (text.chars().count() <= MESSAGE_MAX).then_some(text)
}

impl Service for Telegram {
    fn payload(&self, record: &Value) -> Result<Option<Vec<u8>>, String> {
        let notice = Notice::of(record);
        let words = self.wording.of(&notice, record);
        let mut message = json!({
            "chat_id": self.config.chat_id,
            "link_preview_options": { "is_disabled": true },
        });
        match marked_up(&notice, &words) {
            Some(text) => {
                message["text"] = text.into();
                message["parse_mode"] = "HTML".into();
            }
            // Cut anywhere, markup would not be understood, and nothing would be told at all.
            None => message["text"] = cut(&format!("{}\n{}", notice.title, notice.text()), MESSAGE_MAX).into(),
        }
        if let Some(thread) = self.config.message_thread_id {
            message["message_thread_id"] = thread.into();
        }
        if self.config.quiet_resolved && notice.state == State::Resolved {
            message["disable_notification"] = true.into();
        }
        Ok(Some(message.to_string().into_bytes()))
    }

    fn request(&self, row: &Row, _: Timestamp) -> Result<Request<Full<Bytes>>, String> {
        service::post(&self.config.method(), row.payload.clone())
    }

    fn answer(&self, response: &Response, now: Timestamp) -> Answer {
        match response.status.as_u16() {
            429 => service::again(response, response.retry_after(now).max(retry_after(&response.body))),
            // A token that is not known is put right by somebody.
            401 | 404 => service::again(response, None),
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
    body.get("parameters")?.get("retry_after")?.as_u64().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::notice::tests::{AMENDED, DIGEST, FIRING, GROUP, RESOLVED};
    use crate::service::tests::{config, delivers, payload, problems, run, serve};

    fn check(record: &str, expected: expect_test::Expect) {
        let options = r#"{"token":"1:x","chat_id":"-100","message_thread_id":7}"#;
        payload(&Telegram::new(&config(options)), record, expected);
    }

    #[test]
    fn an_amendment_is_told_in_words_and_in_no_colour_of_alerts() {
        check(
            AMENDED,
            expect![[r#"
            {
              "chat_id": "-100",
              "link_preview_options": {
                "is_disabled": true
              },
              "message_thread_id": 7,
              "parse_mode": "HTML",
              "text": "<b>[AMENDED] errors {host=&quot;a&lt;b&gt;&quot;, severity=&quot;critical&quot;}</b>\nwhat came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not\nhost=a&lt;b&gt;, severity=critical\nerrors: 9\nupdate: 1\namends: abc"
            }"#]],
        );
    }

    #[test]
    fn an_alert_is_a_message_in_html() {
        check(
            FIRING,
            expect![[r#"
            {
              "chat_id": "-100",
              "link_preview_options": {
                "is_disabled": true
              },
              "message_thread_id": 7,
              "parse_mode": "HTML",
              "text": "<b>[FIRING] errors: too many &amp; more</b>\ntoo many &amp; more\nhint: look at *this*\nhost=a&lt;b&gt;, severity=critical\nerrors: 7\nsince: 2026-11-20T12:00:00Z\naccess: GET / [2J\n<a href=\"https://example.org/r?a=1&amp;b=2\">runbook</a>"
            }"#]],
        );
        check(
            RESOLVED,
            expect![[r#"
            {
              "chat_id": "-100",
              "disable_notification": true,
              "link_preview_options": {
                "is_disabled": true
              },
              "message_thread_id": 7,
              "parse_mode": "HTML",
              "text": "<b>[RESOLVED] errors: too many &amp; more</b>\ntoo many &amp; more\nhost=a&lt;b&gt;, severity=critical\nerrors: 0\nsince: 2026-11-20T12:00:00Z\nuntil: 2026-11-20T12:05:00Z"
            }"#]],
        );
        check(
            GROUP,
            expect![[r#"
            {
              "chat_id": "-100",
              "link_preview_options": {
                "is_disabled": true
              },
              "message_thread_id": 7,
              "parse_mode": "HTML",
              "text": "<b>[FIRING:2, RESOLVED:1] errors (escalated): severity=warning</b>\nseverity=warning\nsince: 2026-11-20T12:00:00Z\nFIRING errors {host=a, severity=warning}: bad\nFIRING errors {host=b, severity=warning}\nRESOLVED errors {host=c, severity=warning}\nand 4 more\n<a href=\"https://tocsin.example.org/ack/1\">acknowledge</a>"
            }"#]],
        );
        check(
            DIGEST,
            expect![[r#"
            {
              "chat_id": "-100",
              "link_preview_options": {
                "is_disabled": true
              },
              "message_thread_id": 7,
              "parse_mode": "HTML",
              "text": "<b>[DIGEST] 12 notifications were not sent one by one</b>\nFIRING errors {host=a}\n2026-11-20T12:00:01Z a line\nand 10 more"
            }"#]],
        );
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_and_has_no_markup() {
        let long = FIRING.replace("GET /", &"<b>".repeat(300)).replace("look at", &"&".repeat(400));
        let long = long.replace("too many", &"<".repeat(4000));
        let telegram = Telegram::new(&config(r#"{"token":"1:x","chat_id":"@c"}"#));
        let record = crate::notice::tests::record(&long);
        let message: serde_json::Value = serde_json::from_slice(&telegram.payload(&record).unwrap().unwrap()).unwrap();
        assert_eq!(message["text"].as_str().unwrap().chars().count(), MESSAGE_MAX);
        assert_eq!(message.get("parse_mode"), None);
    }

    #[tokio::test]
    async fn the_token_is_in_the_path() {
        let options = |url: &str| {
            format!(r#"{{"url":"{url}","token":"1:secret","chat_id":"@c","allow_private":true,"text":"t"}}"#)
        };
        delivers::<Config>(options, &[FIRING], expect![[r#"
            POST /bot1:secret/sendMessage HTTP/1.1

            {"chat_id":"@c","link_preview_options":{"is_disabled":true},"parse_mode":"HTML","text":"<b>[FIRING] errors: too many &amp; more</b>\nt\n<a href=\"https://example.org/r?a=1&amp;b=2\">runbook</a>"}
        "#]]).await;
    }

    #[tokio::test]
    async fn a_wait_that_the_answer_asks_for_is_kept_and_a_chat_that_is_not_there_refuses() {
        let busy =
            br#"{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":35}}"#;
        assert_eq!(retry_after(busy), Some(Duration::from_secs(35)));
        let (url, _) = serve(&[
            "429 Slow\n{\"parameters\":{\"retry_after\":35}}",
            "400 Bad\n{\"description\":\"chat not found\"}",
        ])
        .await;
        let options = format!(r#"{{"url":"{url}","token":"1:x","chat_id":"1","allow_private":true,"concurrency":1}}"#);
        assert_eq!(run::<Config>(&options, &[FIRING, RESOLVED]).await, [1, 1, 1]);
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"token":"canary x","chat_id":"me"}"#,
            expect![[r#"
            token: is not the token of a bot
            chat_id: "me" is neither a number nor a name
        "#]],
        );
    }
}
