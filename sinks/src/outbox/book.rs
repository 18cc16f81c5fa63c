//! The outbox without its I/O: the queue, and what of its changes the journal must hold.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use tocsin_pipeline::time::Timestamp;

use super::SETTLED_IN_STATE;
use super::digest::{Digest, Folded, Item};
use super::journal::{self, Entry};
use super::queue::{Answer, Limits, Next, Offered, Outcome, Overdue, Queue, Row, Turn};

/// The version of the state; 1 had no digests.
const STATE_VERSION: u8 = 2;
/// The version of a state whose rows have their records.
const STATE_VERSION_RECORDS: u8 = 3;

/// What became of a notification that was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Taken,
    /// A replay has brought it again.
    Known,
    /// It went into a digest, perhaps as the first.
    Folded {
        is_first: bool,
    },
}

/// A row that was refused, whose record is on its way to whoever is told instead. Until that is in a checkpoint, the journal
/// takes the row for one that is still to be sent: else a crash could lose it.
struct Handed {
    row: Row,
    /// The epoch that it belongs to, once a state was taken.
    epoch: Option<u64>,
}

/// So many threads are remembered of which somebody else was told; of others, only what fails is told there.
const ELSEWHERE_MAX: usize = 10_000;

/// What follows from an answer.
pub(super) struct Answered {
    pub(super) outcome: Outcome,
    pub(super) turn: Turn,
    /// Whether the record is to be handed on: it was refused, or it is the end of what somebody else was told of.
    pub(super) must_hand_on: bool,
}

/// A queue whose changes are written down.
pub(super) struct Book {
    queue: Queue,
    /// At most as many as rows may wait, and as many bytes: where checkpoints fail, the oldest are let go.
    handed: VecDeque<Handed>,
    handed_bytes: usize,
    limits: Limits,
    /// The threads, by receiver, of which something was handed on, and not yet their end.
    elsewhere: BTreeSet<(String, String)>,
    /// What is to be written to the journal before anything leaves; `None` where there is no journal.
    frames: Option<Vec<u8>>,
    /// Whether anything has changed since the last state was taken.
    is_changed: bool,
    /// The number of the last change in the journal that was read.
    journal_number: u64,
    /// Reading a journal: the digests that a list has promised, and those read of it.
    listed: Option<(u64, u32, Vec<Digest>)>,
}

impl Book {
    pub(super) fn new(limits: Limits, has_journal: bool) -> Self {
        Self {
            queue: Queue::new(limits),
            handed: VecDeque::new(),
            handed_bytes: 0,
            limits,
            elsewhere: BTreeSet::new(),
            frames: has_journal.then(Vec::new),
            is_changed: true,
            journal_number: 0,
            listed: None,
        }
    }

    /// Takes a notification, or folds it into a digest, listed as `item` says.
    pub(super) fn enter(&mut self, row: Row, now: Timestamp, item: impl FnOnce(&Row) -> Item) -> Entered {
        self.is_changed = true;
        match self.queue.offer(row.clone()) {
            Offered::Known => Entered::Known,
            Offered::Taken => {
                self.note(|| Entry::Intent(row));
                Entered::Taken
            }
            Offered::Full(row) => {
                let item = item(&row);
                let is_first = !self.queue.has_digest(&row.receiver);
                let folded = self.queue.fold(row, item, now);
                self.note(|| Entry::Folded(folded));
                Entered::Folded { is_first }
            }
        }
    }

    /// Whether a row of this name is to be delivered.
    pub(super) fn is_waiting(&self, id: &str) -> bool {
        self.queue.is_waiting(id)
    }

    pub(super) fn next(&mut self, now: Timestamp) -> Next {
        self.queue.next(now)
    }

    pub(super) fn answered(&mut self, id: &str, answer: Answer, now: Timestamp) -> Answered {
        self.is_changed = true;
        let (outcome, turn) = self.queue.answered(id, answer, now);
        let must_hand_on = match &outcome {
            Outcome::Retry { .. } => false,
            Outcome::Delivered(row) => self.elsewhere.contains(&thread(row)) && is_end(row),
            Outcome::Refused { row, .. } => !row.record.is_empty(),
        };
        match &outcome {
            Outcome::Delivered(row) | Outcome::Refused { row, .. } if must_hand_on => self.handed_on(row),
            Outcome::Delivered(_) | Outcome::Refused { .. } => self.note(|| Entry::Settled(id.to_owned())),
            Outcome::Retry { .. } => {}
        }
        Answered { outcome, turn, must_hand_on }
    }

    /// What follows from the age of rows.
    pub(super) fn overdue(&mut self, now: Timestamp) -> Option<Overdue> {
        let overdue = self.queue.overdue(now)?;
        self.is_changed = true;
        match &overdue {
            Overdue::HandOn(row) => self.note_elsewhere(row),
            Overdue::Refused { row, .. } if row.record.is_empty() => self.note(|| Entry::Settled(row.id.clone())),
            Overdue::Refused { row, .. } => self.handed_on(row),
        }
        Some(overdue)
    }

    /// A row that is not sent any more has been handed on.
    fn handed_on(&mut self, row: &Row) {
        self.note_elsewhere(row);
        if self.frames.is_none() {
            return;
        }
        self.handed_bytes += row.bytes();
        self.handed.push_back(Handed { row: row.clone(), epoch: None });
        while self.handed.len() > self.limits.rows || self.handed_bytes > self.limits.bytes {
            self.let_go();
        }
    }

    fn note_elsewhere(&mut self, row: &Row) {
        let thread = thread(row);
        if is_end(row) {
            self.elsewhere.remove(&thread);
        } else if !thread.1.is_empty() && !thread.1.contains(' ') && self.elsewhere.len() < ELSEWHERE_MAX {
            self.elsewhere.insert(thread);
        }
    }

    /// What was handed on until now belongs to this epoch.
    pub(super) fn prepared(&mut self, epoch: u64) {
        self.handed.iter_mut().for_each(|handed| handed.epoch = handed.epoch.or(Some(epoch)));
    }

    /// The checkpoint of an epoch is complete, with what was handed on in it. Three are kept; any of them may be gone back to.
    pub(super) fn committed(&mut self, epoch: u64) {
        let is_kept = |of: u64| of.saturating_add(2) > epoch;
        while self.handed.front().is_some_and(|handed| handed.epoch.is_some_and(|of| !is_kept(of))) {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        if let Some(Handed { row, .. }) = self.handed.pop_front() {
            self.handed_bytes -= row.bytes();
            self.note(|| Entry::Settled(row.id));
        }
    }

    /// A digest that is to be told now.
    pub(super) fn due(&self) -> Option<Digest> {
        self.queue.due().cloned()
    }

    /// The digest of the row's receiver has become the row.
    pub(super) fn tell(&mut self, row: Row) {
        self.is_changed = true;
        let number = self.queue.tell(row.clone());
        self.note(|| Entry::Told(number, row));
    }

    /// For whom the notification of this name is that waits.
    pub(super) fn receiver(&self, id: &str) -> Option<&str> {
        self.queue.receiver(id)
    }

    pub(super) fn has_digests(&self) -> bool {
        self.queue.digests().1.len() > 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn note(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(frames) = &mut self.frames {
            entry().append(frames);
        }
    }

    /// What is to be added to the journal, or must have been before anything leaves.
    pub(super) fn take_frames(&mut self) -> Vec<u8> {
        self.frames.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A journal that says what is known, and no more.
    pub(super) fn whole(&mut self) -> Vec<u8> {
        // What was to be added is in it.
        self.take_frames();
        let mut frames = Vec::new();
        let (number, digests) = self.queue.digests();
        Entry::Digests(number, digests.len() as u32).append(&mut frames);
        digests.for_each(|digest| Entry::Digest(digest.clone()).append(&mut frames));
        let handed: HashSet<&str> = self.handed.iter().map(|handed| &*handed.row.id).collect();
        let settled = self.queue.settled().filter(|id| !handed.contains(id.as_str()));
        settled.for_each(|id| Entry::Settled(id.clone()).append(&mut frames));
        let handed = self.handed.iter().map(|handed| &handed.row);
        handed.chain(self.queue.rows()).for_each(|row| Entry::Intent(row.clone()).append(&mut frames));
        frames
    }

    /// Makes a change again that the journal speaks of.
    pub(super) fn roll_forward(&mut self, entry: Entry) {
        if let Entry::Folded(Folded { number, .. }) | Entry::Told(number, _) | Entry::Digests(number, _) = &entry {
            self.journal_number = self.journal_number.max(*number);
        }
        match entry {
            Entry::Intent(row) => self.queue.restore(row),
            Entry::Settled(id) => self.queue.settle(&id),
            Entry::Folded(folded) => self.queue.fold_again(&folded),
            Entry::Told(number, row) => self.queue.tell_again(number, row),
            Entry::Digests(number, 0) => self.queue.restore_digests(number, Vec::new()),
            Entry::Digests(number, count) => self.listed = Some((number, count, Vec::new())),
            Entry::Digest(digest) => {
                let Some((number, count, mut digests)) = self.listed.take() else { return };
                digests.push(digest);
                match digests.len() < count as usize {
                    true => self.listed = Some((number, count, digests)),
                    false => self.queue.restore_digests(number, digests),
                }
            }
        }
    }

    /// Whether the checkpoint holds changes that the journal has missed, since it could not be written or was taken away:
    /// then it is to be written anew before it is added to.
    pub(super) fn has_passed_journal(&self) -> bool {
        self.queue.digests().0 > self.journal_number
    }

    /// What a checkpoint holds: the rows, the digests, and the names of those settled last. `None`: as before.
    pub(super) fn state(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let has_records = !self.elsewhere.is_empty() || self.queue.rows().any(Row::has_record);
        let mut state = vec![if has_records { STATE_VERSION_RECORDS } else { STATE_VERSION }];
        let rows = self.queue.rows();
        state.extend_from_slice(&(rows.len() as u32).to_le_bytes());
        let append = if has_records { journal::append_row_with_record } else { journal::append_row };
        rows.for_each(|row| append(row, &mut state));
        let (number, digests) = self.queue.digests();
        state.extend_from_slice(&number.to_le_bytes());
        let digests: Vec<_> = digests.collect();
        let mut json = Vec::new();
        journal::append_json(&digests, &mut json);
        journal::append_bytes(&json, &mut state);
        if has_records {
            state.extend_from_slice(&(self.elsewhere.len() as u64).to_le_bytes());
            for (receiver, thread) in &self.elsewhere {
                journal::append_bytes(receiver.as_bytes(), &mut state);
                journal::append_bytes(thread.as_bytes(), &mut state);
            }
        }
        let settled = self.queue.settled();
        let beyond = settled.len().saturating_sub(SETTLED_IN_STATE);
        settled.skip(beyond).for_each(|id| journal::append_bytes(id.as_bytes(), &mut state));
        Some(state)
    }

    /// Reads what [`Self::state`] wrote.
    pub(super) fn restore(&mut self, state: &[u8]) -> Option<()> {
        let (version, rest) = state.split_first()?;
        let (count, mut rest) = rest.split_at_checked(4)?;
        if !(1..=STATE_VERSION_RECORDS).contains(version) {
            return None;
        }
        for _ in 0..u32::from_le_bytes(count.try_into().ok()?) {
            self.queue.restore(journal::read_row(&mut rest, *version == STATE_VERSION_RECORDS)?);
        }
        if *version >= 2 {
            let number = journal::read_number(&mut rest)?;
            let digests = serde_json::from_slice(journal::read_bytes(&mut rest)?).ok()?;
            self.queue.restore_digests(number, digests);
        }
        if *version == STATE_VERSION_RECORDS {
            for _ in 0..journal::read_number(&mut rest)? {
                self.elsewhere.insert((journal::read_text(&mut rest)?, journal::read_text(&mut rest)?));
            }
        }
        while !rest.is_empty() {
            self.queue.settle(&journal::read_text(&mut rest)?);
        }
        Some(())
    }
}

fn thread(row: &Row) -> (String, String) {
    (row.receiver.clone(), row.thread.clone())
}

/// Whether a row tells of the end of an alert.
fn is_end(row: &Row) -> bool {
    let record = row.record.get(8..).and_then(|record| tocsin_pipeline::json::parse_value(record).ok());
    let state = record.as_ref().and_then(|record| record.as_object()?.get("state")?.to_str_lossy());
    state.is_some_and(|state| state == "resolved")
}

/// How many notifications a state holds that are not delivered.
pub(crate) fn undelivered(state: &[u8]) -> u64 {
    let mut book = Book::new(Limits::of(usize::MAX, usize::MAX, Duration::MAX), false);
    match book.restore(state) {
        Some(()) => book.queue.rows().len() as u64 + book.queue.digests().1.map(Digest::count).sum::<u64>(),
        None => 0,
    }
}
