//! What the admin address tells of alerts and takes from people and other programs: Alertmanager's API under `/api/v2/`, our own
//! under `/api/v1/`, and the page on which somebody says that they take care.
//!
//! It keeps nothing: the operators `notify` are asked how they stand, and what is to change goes to them as records of the
//! source `commands`. So it is in the journal and in checkpoints like everything else, before it is answered.

mod acknowledge;
mod alertmanager;
mod known;
mod own;
mod posted;
mod request;
mod silences;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use hyper::{Method, StatusCode};
use serde_json::Value as Json;
use tocsin_pipeline::time::{Clock, Timestamp};
use tocsin_sources::desk::{self, DeskError};

use crate::views::Views;
pub use request::{Answer, Asked, Failure, answer, text};

/// How long it is waited until the operators have done what they were told.
const DONE_WITHIN: Duration = Duration::from_secs(5);
/// How often they are asked whether they have.
const ASKED_EVERY: Duration = Duration::from_millis(5);

/// What is answered to whoever says something where nobody is told of alerts.
const NOBODY: &str = "the configuration has no `notify`, so there is nobody to tell; see: tocsin help notify";

/// What answers.
#[derive(Clone)]
pub struct Api {
    views: Views,
    clock: Arc<dyn Clock>,
    started: Timestamp,
}

impl Api {
    pub fn new(views: Views, clock: Arc<dyn Clock>) -> Self {
        let started = clock.now();
        Self { views, clock, started }
    }

    /// Answers what is asked under its paths; `None` for all others.
    pub async fn answer(&self, asked: &Asked) -> Option<Answer> {
        let parts: Vec<_> = asked.path.split('/').skip(1).collect();
        let answered = match &parts[..] {
            ["api", "v2", rest @ ..] => alertmanager::answer(self, asked, rest).await,
            ["api", "v1", rest @ ..] => own::answer(self, asked, rest).await?,
            ["acknowledge", operator, id, signature] => {
                return Some(acknowledge::answer(self, asked, operator, id, signature).await);
            }
            _ => return None,
        };
        Some(answered.unwrap_or_else(|failure| failure.answer()))
    }

    /// What each running `notify` says.
    async fn ask(&self, question: Json) -> Result<Vec<Json>, Failure> {
        self.ask_about("notify", question).await
    }

    /// What each running operator says that knows about something.
    async fn ask_about(&self, subject: &str, question: Json) -> Result<Vec<Json>, Failure> {
        let mut asked = Vec::new();
        for status in self.views.statuses() {
            for name in status.inquiries.about(subject) {
                let (status, question) = (Arc::clone(&status), question.clone());
                asked.push(async move {
                    let told = status.inquiries.ask(&name, question).await;
                    told.ok_or_else(|| {
                        Failure::busy(format!("`{name}` does not answer: the pipeline is busy or stopping"))
                    })
                });
            }
        }
        if asked.is_empty() && !self.views.is_running() {
            return Err(Failure::busy("the pipeline is starting"));
        }
        join_all(asked).await.into_iter().collect()
    }

    /// Whether what runs here has no `notify` at all. Who stands by does not know.
    fn has_no_notify(&self) -> bool {
        let has_some = self.views.statuses().iter().any(|status| !status.inquiries.about("notify").is_empty());
        !has_some && self.views.is_running() && !self.views.is_standing_by()
    }

    /// Brings records to the sources of a type. `nobody` is told where there is none.
    async fn deliver(&self, kind: &'static str, records: Vec<Bytes>, nobody: &str) -> Result<(), Failure> {
        match desk::deliver(kind, records).await {
            Ok(()) => Ok(()),
            Err(DeskError::Nobody(_)) if self.views.is_running() => Err(Failure::not_found(nobody)),
            Err(DeskError::Nobody(_)) => Err(Failure::busy("the pipeline is starting")),
            Err(error @ DeskError::Busy) => Err(Failure::busy(error.to_string())),
        }
    }

    /// Tells the operators something and waits until it is safe, and until they say that it is done.
    async fn tell<'a>(
        &self,
        commands: &[Json],
        is_done: impl Fn() -> BoxFuture<'a, Result<bool, Failure>> + Send + Sync,
    ) -> Result<(), Failure> {
        let records = commands.iter().map(|command| Bytes::from(command.to_string())).collect();
        self.deliver(tocsin_config::COMMANDS, records, NOBODY).await?;
        let done = async {
            while !is_done().await? {
                tokio::time::sleep(ASKED_EVERY).await;
            }
            Ok(())
        };
        match tokio::time::timeout(DONE_WITHIN, done).await {
            Ok(done) => done,
            Err(_) => Err(Failure::busy("it is kept, but the pipeline has not done it yet: it is busy, or refuses it")),
        }
    }
}

fn only_look(asked: &Asked) -> Result<(), Failure> {
    if asked.is_look() {
        Ok(())
    } else {
        Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here"))
    }
}

fn only_post(asked: &Asked) -> Result<(), Failure> {
    if asked.method == Method::POST {
        Ok(())
    } else {
        Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "only POST is answered here"))
    }
}

/// A moment as people and programs write it.
fn moment(name: &str, text: &str) -> Result<Timestamp, Failure> {
    Timestamp::parse_rfc3339(text.as_bytes()).ok_or_else(|| {
        Failure::bad(format!("`{name}`: {text:?} is not a moment; write it as \"2026-12-01T08:00:00Z\""))
    })
}

/// The same where a program of others may mean none: Go writes that as the first moment of the year 1.
fn moment_of_go(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, Failure> {
    text.filter(|text| !text.is_empty() && !text.starts_with("0001-01-01T00:00:00"))
        .map(|text| moment(name, text))
        .transpose()
}

/// A moment as it is shown to people, who do not count in nanoseconds.
pub fn to_the_second(text: &str) -> String {
    match Timestamp::parse_rfc3339(text.as_bytes()) {
        Some(time) => Timestamp::from_secs(time.0.div_euclid(1_000_000_000)).to_string(),
        None => text.to_owned(),
    }
}
