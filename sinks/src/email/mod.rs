//! Alerts and records by mail.

mod chart;
mod message;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::Uri;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::Secret;
use tocsin_pipeline::event::{Batch, Field};
use tocsin_pipeline::sink::{Notification, Sink, SinkContext, SinkError, SinkState};
use tocsin_pipeline::template::{self, Escape, Template};
use tocsin_pipeline::time::Timestamp;
use vrl::value::{ObjectMap, Value};

use crate::client::chain;
use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, as_it_is};
use crate::outbox::{self, Answer, Courier, Digest, Draft, Identity, Outbox, Row};

/// Sends a mail for each record to each recipient: alerts in the first place, other records just as well.
///
/// Each recipient gets a mail in an SMTP transaction of its own, so that one bad address does not keep the others from
/// being told. A mail has a text and an HTML part; what stands in records is escaped in the one and harmless in both. Its
/// `Message-ID` follows from the record's identity: it is the same on each attempt, after a restart and in a replay. The
/// mail that tells of the end of an alert answers the one that told of its beginning, so that they form one thread;
/// one that tells of an amendment answers the one that told what it amends. The
/// headers `Auto-Submitted: auto-generated` and `X-Auto-Response-Suppress` keep answering machines from answering, and
/// `List-Id: <SINK.tocsin.DOMAIN>`, with the domain of `from`, is for filters.
///
/// Where the record has a `history` (`[[UNIX SECONDS, NUMBER], …]`), the HTML part has a chart of it that needs no images, and the
/// text part a line of letters.
///
/// Answers 400 to 499, refused logins, no answer and broken connections mean to try again, with growing waits that depend on
/// chance, for `max_age`. Answers 500 to 599 refuse the mail: it goes to `NAME.rejected`, and its record to `NAME.failed`. A server that breaks the
/// connection after the end of a mail leaves open whether it took it: the mail is sent again with the same `Message-ID`.
///
/// When `max_waiting` mails wait, or 64 MiB of them, what comes is told in one mail to each recipient, a digest, as soon as
/// there is room, or as soon as nothing else waits for the recipient: how many, since when, the first 100, the last 10 and
/// each end of an alert whose beginning had been sent before (up to 1000), as they stood in the end. What an alert does
/// after that is sent after it.
///
/// **State:** what is not delivered yet, at most `max_waiting` mails or 64 MiB, and the digests of what came beyond. The
/// names of the last 100,000 that are settled.
///
/// **Late events:** sent like all others.
///
/// **After a crash:** nothing is lost. What was on its way when the daemon died is sent again with the same `Message-ID`;
/// what the server had taken is not. Without a `data_dir` everything since the last checkpoint may be sent again.
///
/// ```toml
/// [sinks.mail]
/// type = "email"
/// inputs = ["high_error_rate"]
/// smtp = "smtps://mail.example.org:465"
/// username = "tocsin"
/// password = "${file:/run/secrets/smtp}"
/// from = "tocsin@example.org"
/// to = ["oncall@example.org"]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The server: `smtps://HOST:PORT` (encrypted from the start, port 465 if none is given) or `smtp://HOST:PORT` (port 587
    /// if none is given).
    smtp: String,
    /// For `smtp://`: `"required"` (default): STARTTLS, or nothing is sent; `"none"`: unencrypted.
    starttls: Option<StartTls>,
    /// Who logs in. Needs `password`.
    username: Option<String>,
    /// The password of `username`.
    password: Option<Secret>,
    /// The address that mails come from.
    from: String,
    /// The addresses that mails go to; at least one, at most 1000.
    to: Vec<String>,
    /// The subject as a text with `{{ field }}`; the record as a whole is `record`. `notice` is what is made of it: `title`,
    /// `summary` (of an amendment what it says in words), `severity`, `alerts` (a line for each of several), `urls` (annotations that are
    /// URLs, and where to acknowledge), `chart` (`bars`, `line`, `low`, `high`, `last`, `since`, `until`; only if there is a history). It is one line of at most 200 letters.
    #[serde(default = "default_subject")]
    subject: String,
    /// The text part.
    #[serde(default = "default_text")]
    text: String,
    /// The HTML part; fields are escaped.
    #[serde(default = "default_html")]
    html: String,
    /// A PEM file of a further authority that may have signed the server's certificate.
    ca: Option<PathBuf>,
    #[serde(flatten)]
    delivery: Delivery,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum StartTls {
    Required,
    None,
}

fn default_subject() -> String {
    include_str!("subject.txt").trim_end().to_owned()
}

fn default_text() -> String {
    include_str!("text.txt").to_owned()
}

fn default_html() -> String {
    include_str!("html.txt").to_owned()
}

/// Where the server is.
struct Server {
    host: String,
    port: u16,
    is_encrypted: bool,
}

impl Config {
    fn server(&self) -> Option<Server> {
        let uri: Uri = self.smtp.parse().ok()?;
        let (is_encrypted, port) = match uri.scheme_str()? {
            "smtps" => (true, 465),
            "smtp" => (false, 587),
            _ => return None,
        };
        let is_bare = uri.path_and_query().is_none_or(|path| matches!(path.as_str(), "" | "/"));
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let has_user = uri.authority()?.as_str().contains('@');
        (is_bare && !has_user && !host.is_empty()).then(|| Server {
            host,
            port: uri.port_u16().unwrap_or(port),
            is_encrypted,
        })
    }
}

impl SinkConfig for Config {
    const NAME: &'static str = "email";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match self.server() {
            None => problems.push(
                // Not repeated: somebody may have written a password into it.
                Problem::new("smtp", "is not the URL of a mail server")
                    .help("write smtps://HOST:465 or smtp://HOST:587; who logs in is `username` and `password`"),
            ),
            Some(server) if server.is_encrypted && self.starttls.is_some() => {
                problems.push(Problem::new("starttls", "has no effect on smtps://, which is encrypted from the start"));
            }
            Some(_) => {}
        }
        match (&self.username, &self.password) {
            (Some(_), None) => problems.push(Problem::new("username", "needs its `password`")),
            (None, Some(_)) => problems.push(Problem::new("password", "needs its `username`")),
            _ => {}
        }
        let mut check = |option: String, address: &String| {
            if let Err(error) = address.parse::<Address>() {
                problems.push(Problem::new(option, format!("{address:?} is not an address: {error}")));
            }
        };
        check("from".to_owned(), &self.from);
        self.to.iter().enumerate().for_each(|(at, address)| check(format!("to[{at}]"), address));
        if !(1..=1000).contains(&self.to.len()) {
            problems.push(Problem::new("to", "must have from 1 to 1000 addresses"));
        }
        let texts = [
            ("subject", &self.subject, Escape::None),
            ("text", &self.text, Escape::None),
            ("html", &self.html, Escape::Html),
        ];
        for (option, text, escape) in texts {
            if let Err(error) = Template::compile(text, escape) {
                problems.push(Problem::new(option, error.message).within(error.within));
            }
        }
        problems.extend(self.delivery.problems(Usual::SLOW));
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

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let mut config = self.clone();
        config.ca = self.ca.as_ref().map(|path| context.folder.join(path));
        let wording = Arc::new(Wording {
            subject: Template::compile(&self.subject, Escape::None).expect("checked"),
            text: Template::compile(&self.text, Escape::None).expect("checked"),
            html: Template::compile(&self.html, Escape::Html).expect("checked"),
        });
        Box::new(Email { config, wording, open: None })
    }
}

struct Email {
    config: Config,
    wording: Arc<Wording>,
    open: Option<(Outbox, Arc<Post>)>,
}

impl Sink for Email {
    fn preview(&self, batch: &Batch, row: u32) -> Option<Notification> {
        let Worded { subject, text, .. } = self.wording.of(&batch.value(row));
        Some(Notification { subject: Some(subject), body: text })
    }

    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let config = &self.config;
            let post = Post {
                transport: transport(config)?,
                wording: Arc::clone(&self.wording),
                from: config.from.clone(),
                to: config.to.clone(),
                list: message::list_id(&context.name, &config.from),
                timeout: config.delivery.timeout(Usual::SLOW),
            };
            let settings = config.delivery.settings(Usual::SLOW);
            self.open = Some((Outbox::open(settings, context).await?, Arc::new(post)));
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        let (outbox, post) = self.open.expect("opened before it is run");
        Box::pin(outbox.run(post, context))
    }
}

fn transport(config: &Config) -> Result<AsyncSmtpTransport<Tokio1Executor>, SinkError> {
    let server = config.server().expect("checked");
    let tls = || {
        let mut parameters = TlsParameters::builder(server.host.clone());
        if let Some(path) = &config.ca {
            let told = |error: &dyn std::fmt::Display| SinkError(format!("{}: {error}", path.display()));
            let pem = std::fs::read(path).map_err(|error| told(&error))?;
            parameters = parameters.add_root_certificate(Certificate::from_pem(&pem).map_err(|error| told(&error))?);
        }
        parameters.build().map_err(|error| SinkError(chain(&error)))
    };
    let tls = match (server.is_encrypted, config.starttls) {
        (true, _) => Tls::Wrapper(tls()?),
        (false, Some(StartTls::None)) => Tls::None,
        (false, _) => Tls::Required(tls()?),
    };
    let domain = config.from.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&server.host)
        .port(server.port)
        .tls(tls)
        .hello_name(ClientId::Domain(domain.to_owned()))
        .timeout(Some(config.delivery.timeout(Usual::SLOW)));
    if let (Some(username), Some(password)) = (&config.username, &config.password) {
        transport = transport.credentials(Credentials::new(username.clone(), password.reveal().to_owned()));
    }
    Ok(transport.build())
}

/// What a mail says of a record.
struct Wording {
    subject: Template,
    text: Template,
    html: Template,
}

/// A record in words.
struct Worded {
    subject: String,
    text: String,
    html: String,
}

impl Wording {
    fn of(&self, record: &Value) -> Worded {
        let about = Notice::of(record);
        if about.is_digest {
            // It has to list everything, however long that is: templates are for what people read as a whole.
            let lines = Notice::all_alerts(record).join("\n");
            let text = format!("{}\n\n{lines}\n", about.summary);
            return Worded { subject: message::one_line(&about.title), text, html: String::new() };
        }
        let mut fields = record.as_object().cloned().unwrap_or_else(ObjectMap::new);
        fields.insert("record".into(), record.clone());
        fields.insert("notice".into(), notice(record, &about));
        let context = template::context(&Value::Object(fields));
        let subject = about.marked(self.subject.render_context(&context).text, as_it_is);
        Worded {
            subject: message::one_line(&subject),
            text: self.text.render_context(&context).text,
            html: self.html.render_context(&context).text,
        }
    }
}

/// What templates are given besides the record.
fn notice(record: &Value, notice: &Notice) -> Value {
    let urls = notice.links.iter().map(|link| (link.text.as_str().into(), link.url.as_str().into()));
    let lines = Notice::alerts(record).into_iter().map(Value::from);
    let mut fields: ObjectMap = [
        ("title".into(), Value::from(notice.title.as_str())),
        ("summary".into(), Value::from(notice.summary.as_str())),
        ("severity".into(), Value::from(notice.severity.as_str())),
        ("urls".into(), Value::Object(urls.collect())),
        ("alerts".into(), Value::Array(lines.collect())),
    ]
    .into_iter()
    .collect();
    if let Some(chart) = record.as_object().and_then(|fields| chart::of(fields.get("history")?)) {
        fields.insert("chart".into(), chart);
    }
    Value::Object(fields)
}

/// Renders mails and hands them to the server.
struct Post {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    wording: Arc<Wording>,
    from: String,
    to: Vec<String>,
    /// What mails of this sink can be told by.
    list: String,
    timeout: std::time::Duration,
}

impl Post {
    /// The name of a mail: of a transition, for one recipient.
    fn message_id(&self, id: &str, to: &str) -> String {
        let recipient = &blake3::hash(to.as_bytes()).to_hex()[..12];
        let domain = self.from.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
        format!("<{id}.{recipient}@{domain}>")
    }
}

impl Courier for Post {
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String> {
        let record = batch.value(row);
        let Identity { id, thread } = Identity::of(&record, batch, row);
        let text = |name: &str| match Field::of_value(record.as_object()?.get(name)?) {
            Field::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        };
        let begun = match text("state").as_deref() {
            Some("resolved") => text("firing_id"),
            Some("amended") => text("amends"),
            _ => None,
        };
        let Worded { subject, text, html } = self.wording.of(&record);
        let draft = |to: &String| {
            let mail = message::Mail {
                from: self.from.clone(),
                to: to.clone(),
                subject: subject.clone(),
                message_id: self.message_id(&id, to),
                in_reply_to: begun.as_ref().map(|begun| self.message_id(begun, to)),
                text: text.clone(),
                html: html.clone(),
            };
            let payload = serde_json::to_vec(&mail).expect("a mail is texts");
            Draft { id: mail.message_id, receiver: to.clone(), thread: thread.clone(), payload }
        };
        Ok(self.to.iter().map(draft).collect())
    }

    fn digest(&self, digest: &Digest) -> Draft {
        let mail = message::Mail {
            from: self.from.clone(),
            to: digest.receiver.clone(),
            subject: message::one_line(&format!("[DIGEST] {}", digest.summary())),
            message_id: self.message_id(&digest.id, &digest.receiver),
            in_reply_to: None,
            text: digest.text(),
            html: String::new(),
        };
        let payload = serde_json::to_vec(&mail).expect("a mail is texts");
        Draft { id: mail.message_id, receiver: mail.to, thread: digest.threads(), payload }
    }

    fn deliver(self: Arc<Self>, row: Row, _: Timestamp) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let mail: Result<message::Mail, _> = serde_json::from_slice(&row.payload);
            let message =
                mail.map_err(|error| error.to_string()).and_then(|mail| mail.message(row.created, &self.list));
            let message = match message {
                Ok(message) => message,
                Err(why) => return Answer::Never { why },
            };
            let sent = tokio::time::timeout(self.timeout, self.transport.send(message)).await;
            match sent {
                Ok(Ok(_)) => Answer::Delivered,
                Err(_) => Answer::Again { why: format!("no answer within {:?}", self.timeout), wish: None },
                Ok(Err(error)) => {
                    let why = message::one_line(&chain(&error));
                    // A wrong password is put right by somebody; until then no alert may be thrown away.
                    let code = error.status().map(|code| code.to_string());
                    let is_login = matches!(code.as_deref(), Some("530" | "534" | "535" | "538"));
                    match error.is_permanent() && !is_login {
                        true => Answer::Never { why },
                        false => Answer::Again { why, wish: None },
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
