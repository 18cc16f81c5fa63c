use std::sync::Mutex;

use tocsin_pipeline::sink::Sink;

use super::*;
use crate::conformance::{Call, Failing, RULE, Running, records};

/// A peer that notes what it is told and answers as it is set.
#[derive(Default)]
struct Peer {
    told: Mutex<Vec<String>>,
    /// Answers to come; none left: delivered.
    answers: Mutex<Vec<Answer>>,
    /// While set, no attempt ends.
    is_silent: std::sync::atomic::AtomicBool,
}

impl Peer {
    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

impl Courier for Peer {
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String> {
        let record = batch.value(row);
        let text = |name: &str| record.get(vrl::path::parse_value_path(name).unwrap().segments.as_slice()).map(text_of);
        let id = text(".id").ok_or("no id")?;
        if id == "nothing" {
            return Ok(Vec::new());
        }
        let draft =
            Draft { id, receiver: "r".into(), thread: text(".thread").unwrap_or_default(), payload: vec![b'x'] };
        Ok(vec![draft])
    }

    fn digest(&self, digest: &Digest) -> Draft {
        let payload = digest.summary().into_bytes();
        Draft { id: digest.id.clone(), receiver: digest.receiver.clone(), thread: digest.threads(), payload }
    }

    fn deliver(self: Arc<Self>, row: Row, _: Timestamp) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            if self.is_silent.load(std::sync::atomic::Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let is_digest = row.payload.len() > 1;
            self.told.lock().unwrap().push(match is_digest {
                true => String::from_utf8(row.payload.to_vec()).unwrap(),
                false => row.id,
            });
            let mut answers = self.answers.lock().unwrap();
            if answers.is_empty() { Answer::Delivered } else { answers.remove(0) }
        })
    }
}

fn text_of(value: &Value) -> String {
    value.to_string_lossy().into_owned()
}

struct Told {
    peer: Arc<Peer>,
    max_waiting: usize,
    fallback_after: Option<Duration>,
    outbox: Option<Outbox>,
}

impl Sink for Told {
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let settings = Settings {
                concurrency: 4,
                max_waiting: self.max_waiting,
                max_age: Duration::from_secs(86_400),
                retry: retry::Config::default(),
                breaker: Breaker::default(),
                rate_limit: None,
                fallback_after: self.fallback_after,
            };
            self.outbox = Some(Outbox::open(settings, context).await?);
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(self.outbox.expect("opened").run(self.peer, context))
    }
}

async fn start(peer: &Arc<Peer>, state: Option<Bytes>, folder: Option<&std::path::Path>) -> Running {
    start_with(ROWS_MAX, peer, state, folder).await
}

async fn start_with(
    max_waiting: usize,
    peer: &Arc<Peer>,
    state: Option<Bytes>,
    folder: Option<&std::path::Path>,
) -> Running {
    let sink = Told { peer: Arc::clone(peer), max_waiting, fallback_after: None, outbox: None };
    Running::start(Box::new(sink), state, folder.map(Into::into)).await.unwrap()
}

fn alert(id: &str) -> Batch {
    records(&[&format!(r#"{{"id":"{id}","thread":"t"}}"#)])
}

#[tokio::test]
async fn what_was_delivered_is_not_told_again_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Arc::<Peer>::default();
    let running = start(&peer, None, Some(folder.path())).await;
    let state = running.state(1).await;
    running.send(alert("a")).await;
    running.send(alert("b")).await;
    running.until(|metrics| metrics.notification_count("delivered") == 2).await;
    // The entry that follows the answer is written before the next input is taken.
    running.barrier(2).await;
    running.crash().await;
    // The replay brings both again, and one that is new.
    let running = start(&peer, Some(state), Some(folder.path())).await;
    for id in ["a", "b", "c"] {
        running.send(alert(id)).await;
    }
    running.end().await.unwrap();
    assert_eq!(peer.told(), ["a", "b", "c"]);
}

#[tokio::test]
async fn what_was_about_to_be_sent_is_sent_after_a_crash_even_if_no_replay_brings_it() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Arc::<Peer>::default();
    peer.is_silent.store(true, std::sync::atomic::Ordering::SeqCst);
    let running = start(&peer, None, Some(folder.path())).await;
    running.send(alert("a")).await;
    running.send(alert("b")).await;
    running.barrier(1).await;
    running.crash().await;
    peer.is_silent.store(false, std::sync::atomic::Ordering::SeqCst);
    let running = start(&peer, None, Some(folder.path())).await;
    running.end().await.unwrap();
    assert_eq!(peer.told(), ["a", "b"]);
}

#[tokio::test]
async fn a_barrier_is_answered_while_the_peer_is_silent_and_its_state_suffices_to_go_on() {
    let peer = Arc::<Peer>::default();
    peer.is_silent.store(true, std::sync::atomic::Ordering::SeqCst);
    let running = start(&peer, None, None).await;
    running.send(alert("a")).await;
    let state = running.state(1).await;
    assert_eq!(running.barrier(2).await, SinkState::Unchanged);
    running.stop.cancel();
    running.end().await.unwrap();
    peer.is_silent.store(false, std::sync::atomic::Ordering::SeqCst);
    start(&peer, Some(state), None).await.end().await.unwrap();
    assert_eq!(peer.told(), ["a"]);
}

#[tokio::test]
async fn what_fails_is_tried_again_before_what_follows_it_and_what_never_works_is_refused() {
    let peer = Arc::<Peer>::default();
    let again = || Answer::Again { why: "busy".into(), wish: None };
    *peer.answers.lock().unwrap() = vec![again(), again(), Answer::Delivered, Answer::Never { why: "no".into() }];
    let running = start(&peer, None, None).await;
    running.send(alert("firing")).await;
    running.send(alert("resolved")).await;
    let clock = Arc::clone(&running.clock);
    let metrics = running.metrics.clone();
    let end = tokio::spawn(running.end());
    while !end.is_finished() {
        // Time passes without anybody waiting for it.
        use tocsin_pipeline::time::Clock as _;
        clock.set(clock.now().saturating_add(Duration::from_secs(1)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    end.await.unwrap().unwrap();
    assert_eq!(peer.told(), ["firing", "firing", "firing", "resolved"]);
    assert_eq!((metrics.notification_count("delivered"), metrics.notification_count("refused")), (1, 1));
}

#[tokio::test]
async fn a_journal_that_grows_is_written_anew_and_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Arc::<Peer>::default();
    let running = start(&peer, None, Some(folder.path())).await;
    let count = 20_000;
    for number in 0..count {
        running.send(records(&[&format!(r#"{{"id":"{number}"}}"#)])).await;
    }
    running.until(|metrics| metrics.notification_count("delivered") == count).await;
    running.barrier(1).await;
    let length = || std::fs::metadata(folder.path().join("outbox.log")).unwrap().len();
    let before = length();
    assert!(before > JOURNAL_GROWTH, "{before}");
    running.commit(1).await;
    running.barrier(2).await;
    assert!(length() < before / 2, "{} of {before}", length());
    running.crash().await;
    let running = start(&peer, None, Some(folder.path())).await;
    running.send(records(&[r#"{"id":"0"}"#, r#"{"id":"19999"}"#])).await;
    running.end().await.unwrap();
    assert_eq!(peer.told().len() as u64, count);
}

#[tokio::test]
async fn a_damaged_journal_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("outbox.log"), b"not a journal, but long enough").unwrap();
    let sink = Told { peer: Arc::default(), max_waiting: ROWS_MAX, fallback_after: None, outbox: None };
    let error = Running::start(Box::new(sink), None, Some(folder.path().into())).await.err().unwrap();
    assert!(error.0.contains("outbox.log: damaged at byte 0: not a journal"), "{error}");
}

#[tokio::test]
async fn a_receiver_that_fails_again_and_again_is_left_alone_and_that_is_told() {
    use tocsin_pipeline::health::{State, Trouble};
    use tocsin_pipeline::time::Clock as _;

    let peer = Arc::<Peer>::default();
    *peer.answers.lock().unwrap() = vec![Answer::Again { why: "busy".into(), wish: None }; 5];
    let running = start(&peer, None, None).await;
    let (_, mut told) = running.health.listen();
    let given: Vec<_> = (0..5).map(|number| format!(r#"{{"id":"{number}"}}"#)).collect();
    running.send(records(&given.iter().map(String::as_str).collect::<Vec<_>>())).await;
    running.until(|metrics| metrics.notification_count("retried") == 5).await;
    let clock = Arc::clone(&running.clock);
    let metrics = running.metrics.clone();
    let pass = async {
        while metrics.notification_count("delivered") < 5 {
            clock.set(clock.now().saturating_add(Duration::from_millis(100)));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let raised = async {
        let change = told.recv().await.unwrap();
        (change, peer.told().len())
    };
    let ((change, attempts), ()) = tokio::join!(raised, pass);
    assert_eq!((change.trouble, change.state), (Trouble::ReceiverAway, State::Raised));
    assert_eq!(&*change.message, "`r` fails again and again, so that attempts are paused: busy");
    assert_eq!(attempts, 5, "no attempt is made in the pause");
    let change = told.recv().await.unwrap();
    assert_eq!((change.trouble, change.state), (Trouble::ReceiverAway, State::Cleared));
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_record_of_which_there_is_nothing_to_be_told_is_done_with() {
    let peer = Arc::<Peer>::default();
    let running = start(&peer, None, None).await;
    let metrics = running.metrics.clone();
    running.send(records(&[r#"{"id":"nothing"}"#, r#"{"id":"a"}"#])).await;
    running.end().await.unwrap();
    assert_eq!(peer.told(), ["a"]);
    assert_eq!((metrics.sent_events(), metrics.dropped_events(Reason::Filtered)), (1, 1));
}

#[tokio::test]
async fn a_record_that_cannot_be_told_is_refused_and_the_others_go_on() {
    let peer = Arc::<Peer>::default();
    let running = start(&peer, None, None).await;
    let metrics = running.metrics.clone();
    running.send(records(&[r#"{"no":"id"}"#, r#"{"id":"a"}"#])).await;
    running.end().await.unwrap();
    assert_eq!(peer.told(), ["a"]);
    assert_eq!(metrics.dropped_events(Reason::Refused), 1);
}

#[tokio::test]
async fn what_does_not_fit_is_told_as_one_whatever_happens_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Arc::<Peer>::default();
    peer.is_silent.store(true, std::sync::atomic::Ordering::SeqCst);
    let running = start_with(2, &peer, None, Some(folder.path())).await;
    for id in ["a", "b", "c", "d"] {
        running.send(alert(id)).await;
    }
    // Input is taken although nothing leaves.
    let state = running.state(1).await;
    running.send(alert("e")).await;
    running.barrier(2).await;
    running.crash().await;
    peer.is_silent.store(false, std::sync::atomic::Ordering::SeqCst);
    let running = start_with(2, &peer, Some(state), Some(folder.path())).await;
    let metrics = running.metrics.clone();
    running.send(alert("e")).await;
    running.end().await.unwrap();
    let summary =
        "3 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: {\"id\":\"c\",\"thread\":\"t\"}";
    let told = peer.told();
    assert_eq!(told[..2], ["a", "b"]);
    assert!(told[2].starts_with(summary) && told.len() == 3, "{told:?}");
    assert_eq!(metrics.dropped_events(Reason::Duplicate), 1);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_is_told_and_mended_without_any_checkpoint() {
    use tocsin_pipeline::health::{State, Trouble};
    use tocsin_pipeline::time::Clock as _;

    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Failing::default());
    let peer = Arc::<Peer>::default();
    let sink = Told { peer: Arc::clone(&peer), max_waiting: ROWS_MAX, fallback_after: None, outbox: None };
    let running = Running::start_on(storage.clone(), Box::new(sink), None, Some(folder.path().into())).await.unwrap();
    let (_, mut told) = running.health.listen();
    storage.fail([Call::Write, Call::WriteNew]);
    running.send(alert("a")).await;
    // It is told of, journal or not.
    running.until(|metrics| metrics.sent_events() == 1).await;
    let change = told.recv().await.unwrap();
    assert_eq!((change.trouble, change.state, &*change.component), (Trouble::OutboxJournal, State::Raised, "out"));
    let clock = Arc::clone(&running.clock);
    let pass = || clock.set(clock.now().saturating_add(Duration::from_secs(60)));
    for tries in 2..4 {
        pass();
        running.until(|metrics| metrics.error_count("journal") >= tries).await;
    }
    storage.fail(None);
    pass();
    let change = told.recv().await.unwrap();
    assert_eq!((change.trouble, change.state), (Trouble::OutboxJournal, State::Cleared));
    running.crash().await;
    let running = start(&peer, None, Some(folder.path())).await;
    running.send(alert("a")).await;
    running.end().await.unwrap();
    assert_eq!(peer.told(), ["a"], "the journal knows it");
}

#[tokio::test]
async fn a_rule_of_which_receivers_are_told_too_late_is_told_of_itself() {
    use tocsin_pipeline::health::{State, Trouble};
    use tocsin_pipeline::time::Clock as _;

    let firing =
        |id: &str, more: &str| records(&[&format!(r#"{{"alert":"{RULE}","state":"firing","id":"{id}"{more}}}"#)]);
    let peer = Arc::<Peer>::default();
    peer.is_silent.store(true, std::sync::atomic::Ordering::SeqCst);
    let running = start(&peer, None, None).await;
    let (_, mut told) = running.health.listen();
    running.send(firing("a", "")).await;
    // Neither a repetition nor an end nor what is of no rule has a line that it could be late for.
    running.send(firing("b", r#","reason":"repeat""#)).await;
    running.send(records(&[&format!(r#"{{"alert":"{RULE}","state":"resolved","id":"c"}}"#)])).await;
    running.send(records(&[r#"{"alert":"unheard of","state":"firing","id":"d"}"#])).await;
    let state = running.state(1).await;
    running.clock.set(running.clock.now().saturating_add(Duration::from_secs(3)));
    let change = told.recv().await.unwrap();
    assert_eq!((change.trouble, change.state, &*change.component), (Trouble::AlertLate, State::Raised, RULE));
    assert!(change.message.ends_with("it still is not"), "{}", change.message);
    // The attempts that are under way never end; those of the next run do.
    running.stop.cancel();
    running.end().await.unwrap();
    assert_eq!(told.recv().await.unwrap().state, State::Cleared);
    peer.is_silent.store(false, std::sync::atomic::Ordering::SeqCst);
    *peer.answers.lock().unwrap() = vec![Answer::Delivered; 4];
    let running = start(&peer, Some(state), None).await;
    running.until(|metrics| metrics.notification_count("delivered") == 4).await;
    let (_, mut told) = running.health.listen();
    running.clock.set(running.clock.now().saturating_add(Duration::from_secs(3)));
    running.send(firing("e", "")).await;
    running.until(|metrics| metrics.alert_latency_count(RULE) == 1).await;
    let change = told.recv().await.unwrap();
    assert_eq!((change.trouble, change.state), (Trouble::AlertLate, State::Raised));
    let mut in_time = firing("f", r#","reason":"first""#);
    in_time.arrival = running.clock.now();
    running.send(in_time).await;
    assert_eq!(told.recv().await.unwrap().state, State::Cleared);
    running.end().await.unwrap();
}
