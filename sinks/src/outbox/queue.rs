//! What is to be sent, to whom, in what order, and what follows from an answer: decisions only, no I/O and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tocsin_pipeline::time::Timestamp;

use super::breaker::{Breaker, Rate};
use super::digest::{Digest, Folded, Item};
use crate::delivery::{self, RateLimit};
use crate::retry::{self, Backoff};

/// How many names of settled notifications are remembered. A replay offers again what was decided since the last
/// checkpoint, which is far less; beyond the bound the oldest are forgotten and would be told again, under the same name.
const SETTLED_MAX: usize = 100_000;
/// How much all digests together may list beyond their first and last.
const DIGESTS_WEIGHT_MAX: usize = 100_000;

/// One notification for one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Names the notification for ever: the same on each attempt, after a restart and in a replay.
    pub(crate) id: String,
    /// Who is to be told.
    pub(crate) receiver: String,
    /// Rows of one receiver and thread are sent one after the other, in the order in which they came. Empty: of no thread.
    /// A digest belongs to several, with spaces between them: it waits for the rows before it in each, as later rows of each
    /// wait for it.
    pub(crate) thread: String,
    /// What is sent, rendered.
    pub(crate) payload: Bytes,
    /// The record itself, for whoever is told where this receiver cannot be: its event time, little-endian, and JSON. Empty
    /// where there is nobody.
    pub(crate) record: Bytes,
    pub(crate) attempts: u32,
    /// It was handed on to somebody else although attempts go on.
    pub(crate) is_handed_on: bool,
    /// Not before this moment.
    pub(crate) next: Timestamp,
    pub(crate) created: Timestamp,
    /// When the record was read.
    pub(crate) arrival: Timestamp,
}

impl Row {
    fn threads(&self) -> impl Iterator<Item = (String, String)> {
        let threads = self.thread.split(' ').filter(|thread| !thread.is_empty());
        threads.map(|thread| (self.receiver.clone(), thread.to_owned()))
    }

    /// Whether it has more than rows had in the first version of journals.
    pub(crate) fn has_record(&self) -> bool {
        !self.record.is_empty() || self.is_handed_on
    }

    pub(crate) fn bytes(&self) -> usize {
        self.payload.len() + self.record.len() + self.thread.len()
    }
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

/// What follows from an answer for those that wait for the same receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    None,
    /// It is left alone until this moment.
    Paused(Timestamp),
    /// It is there again.
    Back,
}

/// What follows from time alone, while a receiver is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// It has not been delivered for so long that somebody else is told; attempts go on.
    HandOn(Row),
    /// It is given up.
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

/// What became of a row that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    Taken,
    /// It is known or settled already: a replay has brought it again.
    Known,
    /// There is no room: it is to be folded into the digest of its receiver.
    Full(Row),
}

/// The limits of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// What comes beyond so many rows goes into a digest.
    pub(crate) rows: usize,
    /// As well as what comes beyond so many bytes.
    pub(crate) bytes: usize,
    /// A row that was not delivered in this time is refused.
    pub(crate) age: Duration,
    pub(crate) retry: retry::Config,
    pub(crate) breaker: delivery::Breaker,
    pub(crate) rate: Option<RateLimit>,
    /// After which time somebody else is told of a row that was not delivered, although attempts go on.
    pub(crate) fallback_after: Option<Duration>,
}

impl Limits {
    /// All else as it usually is.
    pub(crate) fn of(rows: usize, bytes: usize, age: Duration) -> Self {
        let (retry, breaker) = (retry::Config::default(), delivery::Breaker::default());
        Self { rows, bytes, age, retry, breaker, rate: None, fallback_after: None }
    }
}

/// What is kept of a receiver while rows wait for it or it fails.
#[derive(Debug, Default)]
struct Receiver {
    /// Its rows by their age.
    waiting: BTreeSet<(Timestamp, u64)>,
    /// Those of them that nobody else was told of yet, where somebody is to be after a while.
    unhanded: BTreeSet<(Timestamp, u64)>,
    /// Those of these that have failed before.
    failing: BTreeSet<(Timestamp, u64)>,
    /// Those that may be sent, by the moment from which they may.
    ready: BTreeSet<(Timestamp, u64)>,
    breaker: Breaker,
}

/// The rows that are not settled, the names of those that are, and the digests of what did not fit.
///
/// Changes to digests are numbered, so that going on from a checkpoint and a journal, each of which may be the newer, makes
/// each change once.
pub(crate) struct Queue {
    limits: Limits,
    rows: BTreeMap<u64, Row>,
    sequence: u64,
    names: HashMap<String, u64>,
    /// The rows of each thread in order; only one that is the first of all its threads may be sent.
    threads: HashMap<(String, String), VecDeque<u64>>,
    /// By name: as many as the configuration has, and those of rows that wait since before it changed.
    receivers: BTreeMap<String, Receiver>,
    rate: Option<Rate>,
    in_flight: HashSet<u64>,
    settled: HashSet<String>,
    settled_order: VecDeque<String>,
    bytes: usize,
    /// By receiver: what is to be told as one when there is room.
    digests: BTreeMap<String, Digest>,
    digests_weight: usize,
    /// The number of the last change to the digests.
    number: u64,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            rows: BTreeMap::new(),
            sequence: 0,
            names: HashMap::new(),
            threads: HashMap::new(),
            receivers: BTreeMap::new(),
            rate: limits.rate.map(Rate::new),
            in_flight: HashSet::new(),
            settled: HashSet::new(),
            settled_order: VecDeque::new(),
            bytes: 0,
            digests: BTreeMap::new(),
            digests_weight: 0,
            number: 0,
        }
    }

    /// Takes a row if there is room, and if no digest of its receiver waits: what comes later is told later.
    pub(crate) fn offer(&mut self, row: Row) -> Offered {
        if self.knows(&row.id) {
            return Offered::Known;
        }
        let is_full = self.rows.len() >= self.limits.rows || self.bytes >= self.limits.bytes;
        if is_full || self.has_digest(&row.receiver) {
            return Offered::Full(row);
        }
        self.insert(row);
        Offered::Taken
    }

    /// Takes a row that was taken before, from a checkpoint or a journal.
    pub(crate) fn restore(&mut self, row: Row) {
        if !self.knows(&row.id) {
            self.insert(row);
        }
    }

    /// Whether a row of this name is to be delivered.
    pub(crate) fn is_waiting(&self, id: &str) -> bool {
        self.names.contains_key(id)
    }

    fn knows(&self, id: &str) -> bool {
        self.names.contains_key(id) || self.settled.contains(id)
    }

    fn insert(&mut self, row: Row) {
        let sequence = self.sequence;
        self.sequence += 1;
        self.bytes += row.bytes();
        self.names.insert(row.id.clone(), sequence);
        let receiver = self.receivers.entry(row.receiver.clone()).or_default();
        receiver.waiting.insert((row.created, sequence));
        if self.limits.fallback_after.is_some() && !row.is_handed_on && !row.record.is_empty() {
            receiver.unhanded.insert((row.created, sequence));
            if row.attempts > 0 {
                receiver.failing.insert((row.created, sequence));
            }
        }
        for thread in row.threads() {
            self.threads.entry(thread).or_default().push_back(sequence);
        }
        self.rows.insert(sequence, row);
        self.make_ready(sequence);
    }

    /// For whom the row of this name is.
    pub(crate) fn receiver(&self, id: &str) -> Option<&str> {
        Some(&self.rows.get(self.names.get(id)?)?.receiver)
    }

    /// Lets a row be sent if it is the first of all its threads.
    fn make_ready(&mut self, sequence: u64) {
        let row = &self.rows[&sequence];
        let is_first = row.threads().all(|thread| self.threads[&thread].front() == Some(&sequence));
        if is_first && !self.in_flight.contains(&sequence) {
            let receiver = self.receivers.get_mut(&row.receiver).expect("it has a row");
            receiver.ready.insert((row.next, sequence));
        }
    }

    pub(crate) fn has_digest(&self, receiver: &str) -> bool {
        self.digests.contains_key(receiver)
    }

    /// Folds a row that there is no room for into the digest of its receiver; its name is settled by that.
    pub(crate) fn fold(&mut self, row: Row, item: Item, now: Timestamp) -> Folded {
        let Row { id, receiver, arrival, .. } = row;
        let folded = Folded { number: self.number + 1, id, receiver, item, now: now.0, arrival: arrival.0 };
        self.fold_again(&folded);
        folded
    }

    /// As [`Self::fold`], from a journal: a change that is known already is not made twice.
    pub(crate) fn fold_again(&mut self, folded: &Folded) {
        if folded.number > self.number {
            self.number = folded.number;
            let has_room = self.digests_weight < DIGESTS_WEIGHT_MAX;
            let digest = self.digests.entry(folded.receiver.clone()).or_insert_with(|| Digest::new(folded));
            self.digests_weight -= digest.weight();
            digest.fold(folded, has_room);
            self.digests_weight += digest.weight();
        }
        self.remember(folded.id.clone());
    }

    /// A digest that is to be told now: there is room again, more than for a few, or its receiver waits for nothing else.
    pub(crate) fn due(&self) -> Option<&Digest> {
        let slack = |limit: usize| limit - (limit / 8).max(1).min(limit);
        let has_room = self.rows.len() <= slack(self.limits.rows) && self.bytes <= slack(self.limits.bytes);
        let is_waited_for = |receiver: &String| self.receivers.get(receiver).is_some_and(|all| !all.waiting.is_empty());
        self.digests.values().find(|digest| has_room || !is_waited_for(&digest.receiver))
    }

    /// The digest of the row's receiver has become this row. Gives the number of this change.
    pub(crate) fn tell(&mut self, row: Row) -> u64 {
        let number = self.number + 1;
        self.tell_again(number, row);
        number
    }

    /// As [`Self::tell`], from a journal.
    pub(crate) fn tell_again(&mut self, number: u64, row: Row) {
        if number > self.number {
            self.number = number;
            let digest = self.digests.remove(&row.receiver);
            self.digests_weight -= digest.map_or(0, |digest| digest.weight());
        }
        self.restore(row);
    }

    /// The digests that wait, and the number of the last change to them.
    pub(crate) fn digests(&self) -> (u64, impl ExactSizeIterator<Item = &Digest>) {
        (self.number, self.digests.values())
    }

    /// How the digests stood after a change, from a checkpoint or a journal. Not for one that is passed.
    pub(crate) fn restore_digests(&mut self, number: u64, digests: Vec<Digest>) {
        if number > self.number {
            self.number = number;
            self.digests_weight = digests.iter().map(Digest::weight).sum();
            self.digests = digests.into_iter().map(|digest| (digest.receiver.clone(), digest)).collect();
        }
    }

    /// Whether nothing is left to be told.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.digests.is_empty()
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
        let first = |receiver: &Receiver| {
            let (at, sequence) = receiver.ready.first().copied()?;
            Some((at.max(receiver.breaker.free_from()?), sequence))
        };
        let Some((at, sequence)) = self.receivers.values().filter_map(first).min() else { return Next::Idle };
        let at = self.rate.as_ref().map_or(at, |rate| at.max(rate.free_from(now)));
        if at > now {
            return Next::At(at);
        }
        let row = self.rows[&sequence].clone();
        let receiver = self.receivers.get_mut(&row.receiver).expect("it has a row");
        receiver.ready.remove(&(row.next, sequence));
        receiver.breaker.attempted();
        if let Some(rate) = &mut self.rate {
            rate.attempted(now);
        }
        self.in_flight.insert(sequence);
        Next::Send(row)
    }

    /// Takes the answer to a row that was sent.
    ///
    /// # Panics
    /// When the row was not sent.
    pub(crate) fn answered(&mut self, id: &str, answer: Answer, now: Timestamp) -> (Outcome, Turn) {
        let sequence = *self.names.get(id).expect("only known rows are sent");
        assert!(self.in_flight.remove(&sequence), "only rows that were sent are answered");
        let receiver = self.receivers.get_mut(&self.rows[&sequence].receiver).expect("it has a row");
        let (why, wish) = match answer {
            Answer::Again { why, wish } => (why, wish),
            Answer::Delivered | Answer::Never { .. } => {
                let turn = if receiver.breaker.answered() { Turn::Back } else { Turn::None };
                let row = self.take(sequence);
                let outcome = match answer {
                    Answer::Never { why } => Outcome::Refused { row, why },
                    _ => Outcome::Delivered(row),
                };
                return (outcome, turn);
            }
        };
        let row = self.rows.get_mut(&sequence).expect("in flight");
        let paused = receiver.breaker.failed(&self.limits.breaker, &row.receiver, now, wish, &why);
        let turn = paused.map_or(Turn::None, Turn::Paused);
        row.attempts += 1;
        let end = row.created.saturating_add(self.limits.age);
        if now >= end {
            let row = self.take(sequence);
            let why = given_up(&row, &why);
            return (Outcome::Refused { row, why }, turn);
        }
        let wait = Backoff::new(self.limits.retry, &row.id).with_attempts(row.attempts - 1).next(wish);
        // The last attempt is made at the end of the time, not before it.
        row.next = now.saturating_add(wait).min(end);
        let at = row.next;
        receiver.ready.insert((at, sequence));
        if receiver.unhanded.contains(&(row.created, sequence)) {
            receiver.failing.insert((row.created, sequence));
        }
        (Outcome::Retry { at }, turn)
    }

    /// What is due by the age of a row whose receiver fails: that somebody else is told of it, or that it is given up.
    ///
    /// Rows of a receiver that is left alone are not attempted first: one attempt each would take them very long to be given up.
    /// Of others, only rows are looked at that have failed before: what waits for its turn has not failed.
    pub(crate) fn overdue(&mut self, now: Timestamp) -> Option<Overdue> {
        let (limits, in_flight) = (&self.limits, &self.in_flight);
        let mut hand_on = None;
        let given_up = self.receivers.values_mut().find_map(|receiver| {
            let why = receiver.breaker.why();
            let mut aged = receiver.waiting.iter().take_while(|(created, _)| created.saturating_add(limits.age) <= now);
            if let (Some(why), Some((_, sequence))) = (why, aged.find(|(_, sequence)| !in_flight.contains(sequence))) {
                return Some((*sequence, why.to_owned()));
            }
            if let (Some(after), None) = (limits.fallback_after, &hand_on) {
                let all = if why.is_some() { &receiver.unhanded } else { &receiver.failing };
                let oldest = all.first().copied();
                if let Some(place) = oldest.filter(|(created, _)| created.saturating_add(after) <= now) {
                    receiver.unhanded.remove(&place);
                    receiver.failing.remove(&place);
                    hand_on = Some(place.1);
                }
            }
            None
        });
        if let Some((sequence, why)) = given_up {
            let row = self.take(sequence);
            let why = self::given_up(&row, &why);
            return Some(Overdue::Refused { row, why });
        }
        let row = self.rows.get_mut(&hand_on?).expect("it waits");
        row.is_handed_on = true;
        Some(Overdue::HandOn(row.clone()))
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
        self.bytes -= row.bytes();
        self.names.remove(&row.id);
        if let Some(receiver) = self.receivers.get_mut(&row.receiver) {
            receiver.ready.remove(&(row.next, sequence));
            receiver.waiting.remove(&(row.created, sequence));
            receiver.unhanded.remove(&(row.created, sequence));
            receiver.failing.remove(&(row.created, sequence));
            if receiver.waiting.is_empty() && receiver.breaker.is_at_rest() {
                self.receivers.remove(&row.receiver);
            }
        }
        for thread in row.threads() {
            let Some(followers) = self.threads.get_mut(&thread) else { continue };
            followers.retain(|follower| *follower != sequence);
            match followers.front().copied() {
                None => drop(self.threads.remove(&thread)),
                Some(first) => self.make_ready(first),
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

fn given_up(row: &Row, why: &str) -> String {
    format!("given up after {} attempts: {why}", row.attempts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let breaker = delivery::Breaker { failures: 0, ..delivery::Breaker::default() };
        Limits { breaker, ..Limits::of(3, 100, Duration::from_secs(3600)) }
    }

    fn row(id: &str, thread: &str) -> Row {
        let noon = crate::conformance::NOON;
        Row {
            id: id.into(),
            receiver: "r".into(),
            thread: thread.into(),
            payload: Bytes::from_static(b"0123456789"),
            record: Bytes::new(),
            attempts: 0,
            is_handed_on: false,
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
            assert_eq!(queue.offer(row(id, thread)), Offered::Taken);
        }
        assert_eq!(queue.offer(row("more", "a")), Offered::Full(row("more", "a")));
        assert_eq!(sent(&mut queue, NOON), ["firing", "other"]);
        let (Outcome::Retry { at }, Turn::None) = queue.answered("firing", again(), NOON) else { panic!("a retry") };
        assert_eq!(queue.next(at.saturating_sub(Duration::from_nanos(1))), Next::At(at));
        assert_eq!(sent(&mut queue, at), ["firing"]);
        assert!(matches!(queue.answered("firing", Answer::Delivered, at).0, Outcome::Delivered(_)));
        assert_eq!(sent(&mut queue, at), ["resolved"]);
    }

    #[test]
    fn what_is_known_or_settled_is_not_taken_again() {
        let mut queue = Queue::new(limits());
        assert_eq!(queue.offer(row("a", "t")), Offered::Taken);
        assert_eq!(queue.offer(row("a", "t")), Offered::Known);
        sent(&mut queue, NOON);
        queue.answered("a", Answer::Delivered, NOON);
        assert_eq!(queue.offer(row("a", "t")), Offered::Known);
        queue.settle("b");
        assert_eq!(queue.offer(row("b", "t")), Offered::Known);
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
            match queue.answered("a", again(), now).0 {
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
        let (outcome, _) = queue.answered("a", Answer::Again { why: "busy".into(), wish }, NOON);
        assert_eq!(outcome, Outcome::Retry { at: NOON.saturating_add(Duration::from_secs(120)) });
    }

    fn fold(queue: &mut Queue, id: &str, state: &str, thread: &str) -> Folded {
        let record = format!(r#"{{"alert":"{thread}","state":"{state}"}}"#);
        let record = tocsin_pipeline::json::parse_value(record.as_bytes()).unwrap();
        let Offered::Full(row) = queue.offer(row(id, thread)) else { panic!("{id} fits") };
        queue.fold(row, Item::of(&record, thread, NOON), NOON)
    }

    /// Tells the digest that is due, under the name `id`.
    fn tell(queue: &mut Queue, id: &str) -> u64 {
        let digest = queue.due().expect("a digest is due");
        queue.tell(Row { thread: digest.threads(), ..row(id, "") })
    }

    #[test]
    fn what_does_not_fit_is_told_as_one_when_there_is_room_again() {
        let mut queue = Queue::new(limits());
        for (id, thread) in [("1", "a"), ("2", "b"), ("3", "c")] {
            queue.offer(row(id, thread));
        }
        fold(&mut queue, "4", "resolved", "a");
        fold(&mut queue, "5", "firing", "d");
        assert_eq!(queue.offer(row("4", "a")), Offered::Known);
        assert_eq!(queue.due(), None);
        assert_eq!(sent(&mut queue, NOON), ["1", "2", "3"]);
        queue.answered("2", Answer::Delivered, NOON);
        // There is room, but what comes after the digest must not be told before it.
        fold(&mut queue, "6", "resolved", "d");
        tell(&mut queue, "digest");
        assert_eq!(queue.offer(row("7", "d")), Offered::Full(row("7", "d")), "the digest takes the room");
        // It tells of the end of `a`, whose beginning is still on its way.
        assert_eq!(sent(&mut queue, NOON), Vec::<String>::new());
        queue.answered("3", Answer::Delivered, NOON);
        assert_eq!(queue.offer(row("7", "d")), Offered::Taken);
        queue.answered("1", Answer::Delivered, NOON);
        assert_eq!(sent(&mut queue, NOON), ["digest"]);
        queue.answered("digest", Answer::Delivered, NOON);
        assert_eq!(sent(&mut queue, NOON), ["7"]);
    }

    #[test]
    fn a_receiver_that_waits_for_nothing_is_told_although_others_fill_the_queue() {
        let mut queue = Queue::new(limits());
        for id in ["1", "2", "3"] {
            queue.offer(Row { receiver: "dead".into(), ..row(id, "") });
        }
        fold(&mut queue, "4", "firing", "a");
        assert_eq!(queue.due().map(Digest::count), Some(1));
        tell(&mut queue, "digest");
        assert_eq!(queue.due(), None);
        fold(&mut queue, "5", "resolved", "a");
        assert_eq!(queue.due(), None, "one after the other");
    }

    #[test]
    fn a_change_to_a_digest_is_made_once() {
        let mut queue = Queue::new(Limits { rows: 0, ..limits() });
        let first = fold(&mut queue, "1", "firing", "a");
        let second = fold(&mut queue, "2", "firing", "b");
        let told = Row { thread: "a b".into(), ..row("digest", "") };
        let number = queue.tell(told.clone());
        let third = fold(&mut queue, "3", "firing", "c");
        let standing = |queue: &Queue| queue.digests().1.map(|digest| digest.count()).collect::<Vec<_>>();
        assert_eq!(standing(&queue), [1]);
        // A checkpoint from after the second, and a journal from the beginning on.
        let mut again = Queue::new(Limits { rows: 0, ..limits() });
        again.restore_digests(2, {
            let mut digest = Digest::new(&first);
            digest.fold(&first, true);
            digest.fold(&second, true);
            vec![digest]
        });
        for folded in [&first, &second] {
            again.fold_again(folded);
            assert_eq!(standing(&again), [2]);
        }
        again.tell_again(number, told);
        assert_eq!(standing(&again), Vec::<u64>::new());
        again.fold_again(&third);
        assert_eq!(standing(&again), [1]);
        again.restore_digests(3, Vec::new());
        assert_eq!(standing(&again), [1], "it is older");
        assert_eq!(again.settled().collect::<Vec<_>>(), ["1", "2", "3"]);
    }

    /// A queue of rows that are handed on, for two receivers, the breakers of which open at the second failure.
    fn failing(age: u64, fallback_after: u64) -> Queue {
        let breaker = delivery::Breaker { failures: 2, ..delivery::Breaker::default() };
        let fallback_after = Some(Duration::from_secs(fallback_after));
        let age = Duration::from_secs(age);
        let mut queue = Queue::new(Limits { rows: 100, bytes: 1000, age, breaker, fallback_after, ..limits() });
        for (id, receiver) in [("1", "away"), ("2", "away"), ("3", "away"), ("4", "there")] {
            queue.offer(Row { receiver: receiver.into(), record: Bytes::from_static(b"12345678{}"), ..row(id, "") });
        }
        queue
    }

    fn seconds(seconds: u64) -> Timestamp {
        NOON.saturating_add(Duration::from_secs(seconds))
    }

    #[test]
    fn a_receiver_that_fails_is_left_alone_and_the_others_are_not() {
        let mut queue = failing(3600, 3600);
        assert_eq!(sent(&mut queue, NOON), ["1", "2", "3", "4"]);
        assert_eq!(queue.answered("1", again(), NOON).1, Turn::None);
        let (_, Turn::Paused(until)) = queue.answered("2", again(), NOON) else { panic!("it opens") };
        assert_eq!(queue.answered("3", again(), NOON).1, Turn::None, "it was on its way before");
        assert!(matches!(queue.answered("4", again(), NOON), (Outcome::Retry { .. }, Turn::None)));
        assert_eq!(sent(&mut queue, until.saturating_sub(Duration::from_nanos(1))), ["4"]);
        // One is tried, and no other before it is answered.
        let probe = sent(&mut queue, until);
        assert_eq!(probe.len(), 1);
        let (Outcome::Retry { .. }, Turn::Paused(again_until)) = queue.answered(&probe[0], again(), until) else {
            panic!("it stays open")
        };
        assert!(again_until > until);
        let probe = sent(&mut queue, again_until);
        assert_eq!(queue.answered(&probe[0], Answer::Delivered, again_until).1, Turn::Back);
        assert_eq!(sent(&mut queue, seconds(600)).len(), 2);
    }

    #[test]
    fn what_is_too_old_is_given_up_without_an_attempt_while_the_receiver_is_left_alone() {
        let mut queue = failing(60, 3600);
        sent(&mut queue, NOON);
        for id in ["1", "2"] {
            queue.answered(id, again(), NOON);
        }
        queue.answered("4", again(), NOON);
        assert_eq!(queue.overdue(seconds(59)), None);
        let mut told = Vec::new();
        while let Some(Overdue::Refused { row, why }) = queue.overdue(seconds(60)) {
            told.push(format!("{}: {why}", row.id));
        }
        // The third is on its way, and the fourth is for another.
        assert_eq!(told, ["1: given up after 1 attempts: busy", "2: given up after 1 attempts: busy"]);
    }

    #[test]
    fn what_fails_for_a_while_is_handed_on_once_and_tried_further() {
        let mut queue = failing(3600, 60);
        sent(&mut queue, NOON);
        for id in ["1", "2"] {
            queue.answered(id, again(), NOON);
        }
        assert_eq!(queue.overdue(seconds(59)), None);
        let mut told = Vec::new();
        while let Some(Overdue::HandOn(row)) = queue.overdue(seconds(60)) {
            told.push(row.id);
        }
        assert_eq!(told, ["1", "2", "3"], "all that wait for the one that is left alone");
        queue.answered("4", again(), seconds(61));
        assert!(matches!(queue.overdue(seconds(61)), Some(Overdue::HandOn(row)) if row.id == "4"));
        assert_eq!((queue.overdue(seconds(100)), queue.rows().len()), (None, 4));
    }

    #[test]
    fn attempts_beyond_the_rate_wait_and_are_made() {
        let per = tocsin_config::types::Duration(Duration::from_secs(10));
        let mut queue = Queue::new(Limits { rate: Some(RateLimit { attempts: 2, per }), ..limits() });
        for id in ["1", "2", "3"] {
            queue.offer(row(id, ""));
        }
        assert_eq!(sent(&mut queue, NOON), ["1", "2"]);
        assert_eq!(queue.next(seconds(9)), Next::At(seconds(10)));
        assert_eq!(queue.overdue(seconds(4000)), None, "what waits for its turn is not given up");
        assert_eq!(sent(&mut queue, seconds(10)), ["3"]);
    }
}
