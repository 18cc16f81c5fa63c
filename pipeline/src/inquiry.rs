//! Questions to the operators of a pipeline that runs: they are answered between two inputs, by the task that has the operator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::{mpsc, oneshot};

/// How many questions wait at a task; whoever asks further ones waits.
const WAITING_MAX: usize = 16;
/// A task that is busy for longer is not waited for: something downstream is stuck, most likely.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A question to an operator, and where its answer goes.
#[derive(Debug)]
pub struct Inquiry {
    pub operator: Arc<str>,
    pub question: Json,
    pub answer: oneshot::Sender<Json>,
}

/// Where one operator is asked.
#[derive(Clone, Debug)]
struct Door {
    /// What it answers questions about, if anything.
    subject: Option<&'static str>,
    sender: mpsc::Sender<Inquiry>,
}

/// Where the operators of a pipeline are asked; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Inquiries {
    doors: Arc<Mutex<BTreeMap<Arc<str>, Door>>>,
}

impl Inquiries {
    /// A task answers for these operators, each with what it answers about, from now on: in the place of whichever did before.
    pub fn open(
        &self,
        operators: impl IntoIterator<Item = (Arc<str>, Option<&'static str>)>,
    ) -> mpsc::Receiver<Inquiry> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut doors = self.doors.lock().expect("no holder of this lock panics");
        // Those of a configuration from before that are in this one no more.
        doors.retain(|_, door| !door.sender.is_closed());
        doors.extend(
            operators.into_iter().map(|(operator, subject)| (operator, Door { subject, sender: sender.clone() })),
        );
        receiver
    }

    /// The operators that there are.
    pub fn operators(&self) -> Vec<Arc<str>> {
        self.doors.lock().expect("no holder of this lock panics").keys().cloned().collect()
    }

    /// The operators that run now and answer questions about this, by name.
    pub fn about(&self, subject: &str) -> Vec<Arc<str>> {
        let doors = self.doors.lock().expect("no holder of this lock panics");
        let open = doors.iter().filter(|(_, door)| door.subject == Some(subject) && !door.sender.is_closed());
        open.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// What an operator says; `None` where there is none of that name, or it cannot answer in time.
    pub async fn ask(&self, operator: &str, question: Json) -> Option<Json> {
        let (name, door) = {
            let doors = self.doors.lock().expect("no holder of this lock panics");
            doors.get_key_value(operator).map(|(name, door)| (Arc::clone(name), door.sender.clone()))?
        };
        let (answer, answered) = oneshot::channel();
        let asked = async {
            door.send(Inquiry { operator: name, question, answer }).await.ok()?;
            answered.await.ok()
        };
        tokio::time::timeout(ANSWERED_WITHIN, asked).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_operator_is_asked_by_name_and_not_waited_for_for_ever() {
        let inquiries = Inquiries::default();
        assert_eq!(inquiries.ask("rule", Json::Null).await, None, "nobody is there");
        let mut door = inquiries.open([("rule".into(), Some("alert")), ("other".into(), None)]);
        let answering = tokio::spawn(async move {
            let inquiry = door.recv().await.unwrap();
            let told = format!("{} was asked {}", inquiry.operator, inquiry.question);
            inquiry.answer.send(told.into()).unwrap();
            door
        });
        assert_eq!(inquiries.ask("rule", 7.into()).await, Some("rule was asked 7".into()));
        let door = answering.await.unwrap();
        assert_eq!(inquiries.ask("other", Json::Null).await, None, "the task is busy");
        assert_eq!(inquiries.about("alert"), ["rule".into()]);
        drop(door);
        assert_eq!(inquiries.about("alert"), [], "another configuration runs");
    }
}
