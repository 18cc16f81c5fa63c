//! A mail as it waits in the outbox, and as it goes over the wire.

use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};
use serde::{Deserialize, Serialize};
use tocsin_pipeline::time::Timestamp;

/// A subject is not longer.
const SUBJECT_MAX: usize = 200;

/// One mail to one address, rendered. Kept as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mail {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) subject: String,
    pub(super) message_id: String,
    /// The mail that this one answers.
    pub(super) in_reply_to: Option<String>,
    pub(super) text: String,
    /// Empty: a mail of text alone.
    pub(super) html: String,
}

impl Mail {
    /// The message, the same on each attempt.
    ///
    /// Bodies hold what stood in logs, and lettre up to 0.11.23 lets bare carriage returns and dots of a body end the
    /// message and begin commands (RUSTSEC-2026-0561). So carriage returns are taken out and both parts are written as
    /// base64, in which no line can begin with a dot.
    pub(super) fn message(&self, created: Timestamp, list: &str) -> Result<Message, String> {
        let address = |text: &str| -> Result<Mailbox, String> {
            let address: Address = text.parse().map_err(|error| format!("{text:?} is no address: {error}"))?;
            Ok(Mailbox::new(None, address))
        };
        let date = std::time::UNIX_EPOCH + created.since(Timestamp(0));
        let mut message = Message::builder()
            .from(address(&self.from)?)
            .to(address(&self.to)?)
            .subject(one_line(&self.subject))
            .date(date)
            .message_id(Some(one_line(&self.message_id)));
        if let Some(answered) = &self.in_reply_to {
            message = message.in_reply_to(one_line(answered)).references(one_line(answered));
        }
        let further = [("Auto-Submitted", "auto-generated"), ("X-Auto-Response-Suppress", "All"), ("List-Id", list)];
        for (name, value) in further {
            let name = HeaderName::new_from_ascii(name.to_owned()).map_err(|error| error.to_string())?;
            message = message.raw_header(HeaderValue::new(name, one_line(value)));
        }
        let part = |kind: ContentType, text: &str| {
            SinglePart::builder().header(kind).header(ContentTransferEncoding::Base64).body(lines(text))
        };
        if self.html.is_empty() {
            return message.singlepart(part(ContentType::TEXT_PLAIN, &self.text)).map_err(|error| error.to_string());
        }
        // A boundary by chance would make each attempt another message.
        let boundary = format!("=_{}", &blake3::hash(self.message_id.as_bytes()).to_hex()[..32]);
        let parts = MultiPart::alternative().boundary(boundary).singlepart(part(ContentType::TEXT_PLAIN, &self.text));
        let parts = parts.singlepart(part(ContentType::TEXT_HTML, &self.html));
        message.multipart(parts).map_err(|error| error.to_string())
    }
}

/// What mails of a sink can be told by (RFC 2919).
pub(super) fn list_id(sink: &str, from: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '-' };
    let domain = from.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
    format!("<{}.tocsin.{domain}>", sink.chars().map(plain).collect::<String>())
}

/// A text as it may stand in a header: one line, without controls, of bounded length.
pub(super) fn one_line(text: &str) -> String {
    let clean =
        |letter: char| if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') { ' ' } else { letter };
    let mut line: String = text.chars().take(SUBJECT_MAX).map(clean).collect();
    if text.chars().nth(SUBJECT_MAX).is_some() {
        line.push('…');
    }
    line.trim().to_owned()
}

/// A text without carriage returns and without controls other than line ends and tabs.
fn lines(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control() || matches!(letter, '\n' | '\t')).collect()
}
