//! What is to be sent, to whom, in what order, and what follows from an answer: decisions only, no I/O and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tocsin_pipeline::time::Timestamp;

use crate::retry::{self, Backoff};

/// How many names of settled notifications are remembered. A replay offers again what was decided since the last
/// checkpoint, which is far less; beyond the bound the oldest are forgotten and would be told again, under the same name.
const SETTLED_MAX: usize = 100_000;

/// One notification for one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Names the notification for ever: the same on each attempt, after a restart and in a replay.
    pub(crate) id: String,
    /// Who is to be told.
    pub(crate) receiver: String,
    /// Rows of one receiver and thread are sent one after the other, in the order in which they came. Empty: of no thread.
    pub(crate) thread: String,
    /// What is sent, rendered.
    pub(crate) payload: Bytes,
    pub(crate) attempts: u32,
    /// Not before this moment.
    pub(crate) next: Timestamp,
    pub(crate) created: Timestamp,
    /// When the record was read.
    pub(crate) arrival: Timestamp,
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Delivered,
    /// It may go better another time, not before the peer's wish.
    Again {
        why: String,
        wish: Option<Duration>,
    },
    /// It never will.
    Never {
        why: String,
    },
}

/// What follows from an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered(Row),
    Retry { at: Timestamp },
    Refused { row: Row, why: String },
}

/// What can be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Send(Row),
    /// Nothing before this moment.
    At(Timestamp),
    /// Nothing until a row comes or an answer.
    Idle,
}

/// The limits of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    /// A row that was not delivered in this time is refused.
    pub(crate) age: Duration,
    pub(crate) retry: retry::Config,
}

/// The rows that are not settled, and the names of those that are.
pub(crate) struct Queue {
    limits: Limits,
    rows: BTreeMap<u64, Row>,
    sequence: u64,
    names: HashMap<String, u64>,
    /// The rows of each thread in order; only the first may be sent.
    threads: HashMap<(String, String), VecDeque<u64>>,
    /// The rows that may be sent, by the moment from which they may.
    ready: BTreeSet<(Timestamp, u64)>,
    in_flight: HashSet<u64>,
    settled: HashSet<String>,
    settled_order: VecDeque<String>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            rows: BTreeMap::new(),
            sequence: 0,
            names: HashMap::new(),
            threads: HashMap::new(),
            ready: BTreeSet::new(),
            in_flight: HashSet::new(),
            settled: HashSet::new(),
            settled_order: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes a row, unless it is known or settled already: then a replay has brought it again.
    pub(crate) fn offer(&mut self, row: Row) -> bool {
        if self.names.contains_key(&row.id) || self.settled.contains(&row.id) {
            return false;
        }
        let sequence = self.sequence;
        self.sequence += 1;
        self.bytes += row.payload.len();
        self.names.insert(row.id.clone(), sequence);
        if row.thread.is_empty() {
            self.ready.insert((row.next, sequence));
        } else {
            let thread = self.threads.entry((row.receiver.clone(), row.thread.clone())).or_default();
            thread.push_back(sequence);
            if thread.len() == 1 {
                self.ready.insert((row.next, sequence));
            }
        }
        self.rows.insert(sequence, row);
        true
    }

    /// Whether no more should be offered for now.
    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= self.limits.rows || self.bytes >= self.limits.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.values()
    }

    /// The names of settled rows, oldest first.
    pub(crate) fn settled(&self) -> impl ExactSizeIterator<Item = &String> {
        self.settled_order.iter()
    }

    /// Takes out what is to be sent now, if anything.
    pub(crate) fn next(&mut self, now: Timestamp) -> Next {
        let Some((at, sequence)) = self.ready.first().copied() else { return Next::Idle };
        if at > now {
            return Next::At(at);
        }
        self.ready.pop_first();
        self.in_flight.insert(sequence);
        Next::Send(self.rows[&sequence].clone())
    }

    /// Takes the answer to a row that was sent.
    ///
    /// # Panics
    /// When the row was not sent.
    pub(crate) fn answered(&mut self, id: &str, answer: Answer, now: Timestamp) -> Outcome {
        let sequence = *self.names.get(id).expect("only known rows are sent");
        assert!(self.in_flight.remove(&sequence), "only rows that were sent are answered");
        let (why, wish) = match answer {
            Answer::Delivered => return Outcome::Delivered(self.take(sequence)),
            Answer::Never { why } => return Outcome::Refused { row: self.take(sequence), why },
            Answer::Again { why, wish } => (why, wish),
        };
        let row = self.rows.get_mut(&sequence).expect("in flight");
        row.attempts += 1;
        let end = row.created.saturating_add(self.limits.age);
        if now >= end {
            let row = self.take(sequence);
            let why = format!("given up after {} attempts: {why}", row.attempts);
            return Outcome::Refused { row, why };
        }
        let wait = Backoff::new(self.limits.retry, &row.id).with_attempts(row.attempts - 1).next(wish);
        // The last attempt is made at the end of the time, not before it.
        row.next = now.saturating_add(wait).min(end);
        let at = row.next;
        self.ready.insert((at, sequence));
        Outcome::Retry { at }
    }

    /// A journal says that this row is settled.
    pub(crate) fn settle(&mut self, id: &str) {
        match self.names.get(id) {
            Some(sequence) => drop(self.take(*sequence)),
            None => self.remember(id.to_owned()),
        }
    }

    fn take(&mut self, sequence: u64) -> Row {
        let row = self.rows.remove(&sequence).expect("asked for by name");
        self.bytes -= row.payload.len();
        self.names.remove(&row.id);
        self.ready.remove(&(row.next, sequence));
        let thread = (row.receiver.clone(), row.thread.clone());
        if let Some(followers) = self.threads.get_mut(&thread) {
            followers.retain(|follower| *follower != sequence);
            match followers.front() {
                None => drop(self.threads.remove(&thread)),
                Some(first) if !self.in_flight.contains(first) => {
                    self.ready.insert((self.rows[first].next, *first));
                }
                Some(_) => {}
            }
        }
        self.remember(row.id.clone());
        row
    }

    fn remember(&mut self, id: String) {
        if self.settled.insert(id.clone()) {
            self.settled_order.push_back(id);
        }
        while self.settled_order.len() > SETTLED_MAX {
            if let Some(oldest) = self.settled_order.pop_front() {
                self.settled.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { rows: 3, bytes: 100, age: Duration::from_secs(3600), retry: retry::Config::default() }
    }

    fn row(id: &str, thread: &str) -> Row {
        let noon = crate::conformance::NOON;
        Row {
            id: id.into(),
            receiver: "r".into(),
            thread: thread.into(),
            payload: Bytes::from_static(b"0123456789"),
            attempts: 0,
            next: noon,
            created: noon,
            arrival: noon,
        }
    }

    const NOON: Timestamp = crate::conformance::NOON;

    fn sent(queue: &mut Queue, now: Timestamp) -> Vec<String> {
        let mut ids = Vec::new();
        while let Next::Send(row) = queue.next(now) {
            ids.push(row.id);
        }
        ids
    }

    fn again() -> Answer {
        Answer::Again { why: "busy".into(), wish: None }
    }

    #[test]
    fn rows_are_sent_in_order_and_those_of_a_thread_one_after_the_other() {
        let mut queue = Queue::new(limits());
        for (id, thread) in [("firing", "a"), ("resolved", "a"), ("other", "b")] {
            assert!(queue.offer(row(id, thread)));
        }
        assert!(queue.is_full());
        assert_eq!(sent(&mut queue, NOON), ["firing", "other"]);
        let Outcome::Retry { at } = queue.answered("firing", again(), NOON) else { panic!("a retry") };
        assert_eq!(queue.next(at.saturating_sub(Duration::from_nanos(1))), Next::At(at));
        assert_eq!(sent(&mut queue, at), ["firing"]);
        assert!(matches!(queue.answered("firing", Answer::Delivered, at), Outcome::Delivered(_)));
        assert_eq!(sent(&mut queue, at), ["resolved"]);
    }

    #[test]
    fn what_is_known_or_settled_is_not_taken_again() {
        let mut queue = Queue::new(limits());
        assert!(queue.offer(row("a", "t")));
        assert!(!queue.offer(row("a", "t")));
        sent(&mut queue, NOON);
        queue.answered("a", Answer::Delivered, NOON);
        assert!(!queue.offer(row("a", "t")));
        queue.settle("b");
        assert!(!queue.offer(row("b", "t")));
        assert!(queue.is_empty());
        assert_eq!(queue.settled().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_row_settled_by_the_journal_lets_the_next_of_its_thread_go() {
        let mut queue = Queue::new(limits());
        queue.offer(row("a", "t"));
        queue.offer(row("b", "t"));
        queue.settle("a");
        assert_eq!(sent(&mut queue, NOON), ["b"]);
    }

    #[test]
    fn a_peer_that_stays_away_is_given_up_on_in_the_end() {
        let mut queue = Queue::new(limits());
        queue.offer(row("a", ""));
        let mut now = NOON;
        let mut attempts = 0;
        let why = loop {
            assert_eq!(sent(&mut queue, now), ["a"]);
            attempts += 1;
            match queue.answered("a", again(), now) {
                Outcome::Retry { at } => now = at.max(now.saturating_add(Duration::from_nanos(1))),
                Outcome::Refused { why, .. } => break why,
                Outcome::Delivered(_) => unreachable!(),
            }
        };
        assert_eq!(now, NOON.saturating_add(Duration::from_secs(3600)));
        assert_eq!(why, format!("given up after {attempts} attempts: busy"));
        assert!((100..1000).contains(&attempts), "{attempts}");
    }

    #[test]
    fn a_peer_that_asks_for_time_gets_it() {
        let mut queue = Queue::new(limits());
        queue.offer(row("a", ""));
        sent(&mut queue, NOON);
        let wish = Some(Duration::from_secs(120));
        let outcome = queue.answered("a", Answer::Again { why: "busy".into(), wish }, NOON);
        assert_eq!(outcome, Outcome::Retry { at: NOON.saturating_add(Duration::from_secs(120)) });
    }
}
