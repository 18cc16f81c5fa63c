//! The outbox in a model: notifications come, are sent and answered, checkpoints are taken, journals written anew, and the
//! process dies between any two of these steps. What receivers were told must add up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tocsin_pipeline::time::Timestamp;

use super::book::{Book, Entered, undelivered};
use super::digest::Item;
use super::journal::{self, Entry};
use super::queue::{Answer, Limits, Next, Row};
use crate::conformance::NOON;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

fn limits() -> Limits {
    Limits::of(4, 1 << 20, Duration::from_secs(86_400))
}

/// A notification of one of six alerts, to one of two receivers.
struct Given {
    row: Row,
    state: &'static str,
}

fn given(number: usize) -> Given {
    let alert = (number * 7 + number / 5) % 6;
    let receiver = if alert < 3 { "one" } else { "other" };
    let row = Row {
        id: format!("n{number}"),
        receiver: receiver.into(),
        thread: format!("alert{alert}"),
        payload: Bytes::from(format!("{number}")),
        record: Bytes::from_static(b"12345678{}"),
        attempts: 0,
        is_handed_on: false,
        next: NOON,
        created: NOON,
        arrival: NOON,
    };
    Given { row, state: if (number / 6).is_multiple_of(2) { "firing" } else { "resolved" } }
}

#[derive(Default)]
struct World {
    /// Whether the journal may be broken for a while: then some is told again.
    may_break: bool,
    /// Whether receivers may refuse: then it goes on from the last checkpoint, since going back further twice can forget what
    /// was handed on.
    may_refuse: bool,
    /// How many notifications have been offered, of those there are.
    position: usize,
    reached: usize,
    /// The checkpoints: where reading goes on, and the state.
    checkpoints: Vec<(usize, Vec<u8>)>,
    journal: Vec<u8>,
    in_flight: Vec<Row>,
    now: i64,
    /// How often each notification was told one by one, and in which digests it went.
    told: BTreeMap<String, u64>,
    folded: BTreeSet<String>,
    /// The digests that were told, with what they counted.
    digests: BTreeMap<String, u64>,
    /// What was refused and handed on: the number of the first checkpoint that holds it.
    handed: BTreeMap<String, usize>,
    /// The alerts of which anything was ever refused.
    refused: BTreeSet<String>,
    /// What was on its way when the process died, and may be told again.
    forgiven: BTreeSet<String>,
    /// How each alert stands as far as its receiver knows.
    known: BTreeMap<String, String>,
}

impl World {
    fn now(&self) -> Timestamp {
        NOON.saturating_add(Duration::from_secs(self.now as u64))
    }

    fn offer(&mut self, book: &mut Book) {
        let Given { row, state } = given(self.position);
        let (id, now) = (row.id.clone(), self.now());
        let entered = book.enter(row, now, |row| {
            let record = format!(r#"{{"alert":"a","state":"{state}"}}"#);
            Item::of(&tocsin_pipeline::json::parse_value(record.as_bytes()).unwrap(), &row.thread, now)
        });
        self.position += 1;
        self.reached = self.reached.max(self.position);
        if matches!(entered, Entered::Folded { .. }) {
            self.folded.insert(id);
        }
    }

    fn tell(&mut self, book: &mut Book) {
        let Some(digest) = book.due() else { return };
        let row = Row {
            id: digest.id.clone(),
            receiver: digest.receiver.clone(),
            thread: digest.threads(),
            payload: serde_json::to_vec(&digest.record()).unwrap().into(),
            ..given(0).row
        };
        book.tell(row);
    }

    fn deliver(&mut self, row: &Row) {
        let record: serde_json::Value = serde_json::from_slice(&row.payload).unwrap();
        match record["digest"].as_bool() {
            Some(true) => {
                let counted = self.digests.insert(row.id.clone(), record["count"].as_u64().unwrap());
                let may_repeat = self.may_break || self.forgiven.contains(&row.id);
                assert!(counted.is_none() || may_repeat, "{} is told twice", row.id);
                for alert in record["alerts"].as_array().unwrap() {
                    let text = |name: &str| alert[name].as_str().unwrap().to_owned();
                    self.known.insert(text("fingerprint"), text("state"));
                }
            }
            _ => {
                *self.told.entry(row.id.clone()).or_default() += 1;
                let number = record.as_u64().unwrap() as usize;
                self.known.insert(row.thread.clone(), given(number).state.to_owned());
            }
        }
    }

    fn write(&mut self, book: &mut Book) {
        self.journal.extend(book.take_frames());
    }

    /// The process dies and starts again, from one of the last checkpoints and the journal.
    fn crash(&mut self, random: &mut Random) -> Book {
        self.forgiven.extend(self.in_flight.drain(..).map(|row| row.id));
        let mut book = Book::new(limits(), true);
        self.position = 0;
        if let Some(back) =
            self.checkpoints.len().checked_sub(1 + random.below(if self.may_refuse { 1 } else { 2 }) as usize)
        {
            self.checkpoints.truncate(back + 1);
            let (position, state) = &self.checkpoints[back];
            book.restore(state).unwrap();
            self.position = *position;
            self.handed.retain(|_, checkpoint| *checkpoint <= back);
        } else {
            self.checkpoints.clear();
            self.handed.clear();
        }
        let contents = journal::read(&self.journal).unwrap();
        assert_eq!(contents.whole, self.journal.len());
        contents.entries.into_iter().for_each(|entry| book.roll_forward(entry));
        if book.has_passed_journal() {
            self.journal = fresh(book.whole());
        }
        book
    }
}

fn fresh(frames: Vec<u8>) -> Vec<u8> {
    [journal::HEADER.to_vec(), frames].concat()
}

/// Runs one history; a journal that is whole all the time makes it exact.
fn run(seed: u64, may_break: bool, may_refuse: bool) {
    let mut random = Random(seed);
    let mut book = Book::new(limits(), true);
    let mut world = World { may_break, may_refuse, ..World::default() };
    let mut is_broken = false;
    world.journal = fresh(Vec::new());
    for _ in 0..400 {
        world.now += 1;
        match random.below(20) {
            0..8 => world.offer(&mut book),
            8..10 => world.tell(&mut book),
            10..13 => {
                if let Next::Send(row) = book.next(world.now()) {
                    world.in_flight.push(row);
                }
            }
            13..16 if !world.in_flight.is_empty() => {
                let at = random.below(world.in_flight.len() as u64) as usize;
                let row = world.in_flight.remove(at);
                let answer = match random.below(9) {
                    0..3 => Answer::Again { why: "busy".into(), wish: None },
                    3 if may_refuse && row.payload[0] != b'{' => {
                        world.handed.insert(row.id.clone(), world.checkpoints.len());
                        world.refused.insert(row.thread.clone());
                        Answer::Never { why: "no".into() }
                    }
                    _ => {
                        world.deliver(&row);
                        Answer::Delivered
                    }
                };
                if answer == Answer::Delivered && random.below(8) == 0 {
                    // It dies between the delivery and the entry that follows.
                    world.forgiven.insert(row.id);
                    book = world.crash(&mut random);
                } else {
                    book.answered(&row.id, answer, world.now());
                }
            }
            16..18 => {
                if let Some(state) = book.state() {
                    let epoch = world.checkpoints.len() as u64;
                    world.checkpoints.push((world.position, state));
                    book.prepared(epoch);
                    book.committed(epoch);
                }
                if random.below(3) == 0 {
                    world.journal = fresh(book.whole());
                    is_broken = false;
                }
            }
            18 if may_break && random.below(2) == 0 => is_broken = true,
            19 => book = world.crash(&mut random),
            _ => {}
        }
        match is_broken {
            true => drop(book.take_frames()),
            false => world.write(&mut book),
        }
    }
    // No more failures: everything is told.
    while world.position < world.reached {
        world.offer(&mut book);
    }
    for row in std::mem::take(&mut world.in_flight) {
        world.deliver(&row);
        book.answered(&row.id, Answer::Delivered, world.now());
    }
    while !book.is_empty() {
        world.tell(&mut book);
        world.now += 3600;
        while let Next::Send(row) = book.next(world.now()) {
            world.deliver(&row);
            book.answered(&row.id, Answer::Delivered, world.now());
        }
    }
    let counted: u64 = world.digests.values().sum();
    for number in 0..world.reached {
        let Given { row, .. } = given(number);
        let told = world.told.get(&row.id).copied().unwrap_or(0);
        let is_folded = world.folded.contains(&row.id);
        let is_handed = world.handed.contains_key(&row.id);
        assert!(told > 0 || is_folded || is_handed, "{} is lost", row.id);
        if !may_break {
            assert!(told == 0 || !is_folded, "{} is told one by one and in a digest", row.id);
            assert!(told <= 1 || world.forgiven.contains(&row.id), "{} is told {told} times", row.id);
        }
    }
    match may_break {
        true => assert!(counted >= world.folded.iter().filter(|id| !world.told.contains_key(*id)).count() as u64),
        false => assert_eq!(counted, world.folded.len() as u64, "{:?}", world.digests),
    }
    for number in (0..world.reached).rev().collect::<Vec<_>>() {
        let Given { row, state } = given(number);
        let is_last = (number + 1..world.reached).all(|later| given(later).row.thread != row.thread);
        // Whoever is told instead may be told of the end of an alert, and the receiver of its beginning.
        if is_last && !world.refused.contains(&row.thread) {
            assert_eq!(world.known.get(&row.thread).map(String::as_str), Some(state), "{} as it is known", row.thread);
        }
    }
}

fn seeds() -> impl Iterator<Item = u64> {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("TOCSIN_OUTBOX_SEED").unwrap_or(1);
    let count = number("TOCSIN_OUTBOX_RUNS").unwrap_or(200);
    println!("TOCSIN_OUTBOX_SEED={first} TOCSIN_OUTBOX_RUNS={count}");
    first..first + count
}

#[test]
fn everything_is_told_once_one_by_one_or_in_a_digest_whenever_the_process_dies() {
    for seed in seeds() {
        println!("seed {seed}");
        run(seed, false, false);
    }
}

#[test]
fn nothing_is_lost_although_the_journal_cannot_be_written_for_a_while() {
    for seed in seeds() {
        println!("seed {seed}");
        run(seed, true, false);
    }
}

#[test]
fn what_is_handed_on_to_another_is_in_a_checkpoint_or_handed_on_again() {
    for seed in seeds() {
        println!("seed {seed}");
        run(seed, false, true);
    }
}

#[test]
fn the_entries_of_digests_are_read_as_they_were_written() {
    let mut book = Book::new(Limits { rows: 0, ..limits() }, true);
    let mut world = World::default();
    (0..2).for_each(|_| world.offer(&mut book));
    world.tell(&mut book);
    world.offer(&mut book);
    assert_eq!(undelivered(&book.state().unwrap()), 2, "a digest that is told, and one of one notification");
    let mut bytes = journal::HEADER.to_vec();
    bytes.extend(book.take_frames());
    bytes.extend(book.whole());
    let entries = journal::read(&bytes).unwrap().entries;
    let kinds = entries.iter().map(|entry| match entry {
        Entry::Intent(_) => "intent",
        Entry::Settled(_) => "settled",
        Entry::Folded(_) => "folded",
        Entry::Told(..) => "told",
        Entry::Digests(..) => "digests",
        Entry::Digest(_) => "digest",
    });
    let kinds: Vec<_> = kinds.collect();
    assert_eq!(kinds.join(" "), "folded folded told folded digests digest settled settled settled intent");
    let mut again = Vec::new();
    entries.iter().for_each(|entry| entry.append(&mut again));
    assert_eq!(again, bytes[journal::HEADER.len()..]);
}
