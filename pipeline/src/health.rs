//! What is wrong with the daemon itself, for whoever wants to be told: the source `internal` makes records of it.
//!
//! It is kept in memory alone, so that it can be told when no disk takes anything. Telling costs little and never waits:
//! who listens too slowly misses changes, and is told so, but finds what is wrong now in [`Health::standing`].

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus::IntGaugeVec;
use tokio::sync::broadcast;

/// How many changes a slow listener may be behind.
const CHANGES_MAX: usize = 256;
/// So much can be wrong at a time; further troubles are told and not kept.
const STANDING_MAX: usize = 1024;
/// A message is not longer.
const MESSAGE_MAX: usize = 1024;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// A checkpoint could not be written, or a sink could not prepare for it; the one before stays the truth.
    CheckpointFailed,
    /// A checkpoint takes far longer than it should.
    CheckpointSlow,
    /// Damaged checkpoints were passed over at the start.
    CheckpointDamaged,
    /// Records are not accounted for.
    Imbalance,
    /// The journal of an outbox cannot be written: a crash may repeat notifications.
    OutboxJournal,
    /// An outbox holds as much as it may: what comes is told in digests.
    OutboxFull,
    /// A receiver fails again and again: attempts to tell it something are paused.
    ReceiverAway,
    /// Who is to be told of a rule that fires was told later than its `slo` says, or still is not.
    AlertLate,
    /// The journal of a source cannot be written: its clients are not answered.
    IngestJournal,
    /// A buffer on disk cannot be written.
    Buffer,
    /// A source cannot read what it should.
    SourceStalled,
    /// A sink cannot write what it should.
    SinkStalled,
    /// The state of a component has reached its bound, and records were dropped for it.
    StateFull,
    /// A record that stopped a component was left out.
    PoisonSkipped,
}

impl Trouble {
    pub const ALL: [Self; 14] = [
        Self::CheckpointFailed,
        Self::CheckpointSlow,
        Self::CheckpointDamaged,
        Self::Imbalance,
        Self::OutboxJournal,
        Self::OutboxFull,
        Self::ReceiverAway,
        Self::AlertLate,
        Self::IngestJournal,
        Self::Buffer,
        Self::SourceStalled,
        Self::SinkStalled,
        Self::StateFull,
        Self::PoisonSkipped,
    ];

    /// As events and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CheckpointFailed => "checkpoint_failed",
            Self::CheckpointSlow => "checkpoint_slow",
            Self::CheckpointDamaged => "checkpoint_damaged",
            Self::Imbalance => "imbalance",
            Self::OutboxJournal => "outbox_journal",
            Self::OutboxFull => "outbox_full",
            Self::ReceiverAway => "receiver_away",
            Self::AlertLate => "alert_late",
            Self::IngestJournal => "ingest_journal",
            Self::Buffer => "buffer",
            Self::SourceStalled => "source_stalled",
            Self::SinkStalled => "sink_stalled",
            Self::StateFull => "state_full",
            Self::PoisonSkipped => "poison_skipped",
        }
    }
}

/// What has become of a trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has begun, or still is there.
    Raised,
    Cleared,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Cleared => "cleared",
        }
    }
}

/// A change that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub trouble: Trouble,
    pub state: State,
    /// Of which component; `checkpoints` and `audit` where it is of none.
    pub component: Arc<str>,
    pub message: Arc<str>,
}

/// The messages of what is wrong, by trouble and component.
type Standing = BTreeMap<(Trouble, Arc<str>), Arc<str>>;

/// What is wrong now; clones are the same.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    standing: Mutex<Standing>,
    changes: broadcast::Sender<Change>,
    gauges: Option<IntGaugeVec>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Health {
    /// `gauges` are set by trouble and component: 1 while it is wrong, then 0.
    pub fn new(gauges: Option<IntGaugeVec>) -> Self {
        let changes = broadcast::Sender::new(CHANGES_MAX);
        Self(Arc::new(Inner { standing: Mutex::default(), changes, gauges }))
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.standing.lock().expect("no holder of this lock panics")
    }

    /// Something is wrong from now on. Told once, however often it is said, until it is cleared.
    pub fn raise(&self, trouble: Trouble, component: &str, message: impl Display) {
        let mut standing = self.lock();
        let key = (trouble, Arc::from(component));
        if standing.contains_key(&key) {
            return;
        }
        let message = bounded(&message);
        if standing.len() < STANDING_MAX {
            self.gauge(trouble, component, 1);
            standing.insert(key, Arc::clone(&message));
        }
        self.tell(trouble, State::Raised, component, message);
    }

    /// It is not wrong any more. Does nothing where it was not.
    pub fn clear(&self, trouble: Trouble, component: &str) {
        let mut standing = self.lock();
        // Called far more often than something is wrong.
        if standing.is_empty() {
            return;
        }
        if let Some(message) = standing.remove(&(trouble, Arc::from(component))) {
            self.gauge(trouble, component, 0);
            self.tell(trouble, State::Cleared, component, message);
        }
    }

    /// Raises or clears.
    pub fn set(&self, trouble: Trouble, component: &str, wrong: Option<impl Display>) {
        match wrong {
            Some(message) => self.raise(trouble, component, message),
            None => self.clear(trouble, component),
        }
    }

    /// Something has happened that does not last: told, and not kept.
    pub fn note(&self, trouble: Trouble, component: &str, message: impl Display) {
        let _standing = self.lock();
        self.tell(trouble, State::Raised, component, bounded(&message));
    }

    fn gauge(&self, trouble: Trouble, component: &str, value: i64) {
        if let Some(gauges) = &self.0.gauges {
            gauges.with_label_values(&[trouble.as_str(), component]).set(value);
        }
    }

    fn tell(&self, trouble: Trouble, state: State, component: &str, message: Arc<str>) {
        // Nobody may be listening.
        let _ = self.0.changes.send(Change { trouble, state, component: component.into(), message });
    }

    /// Clears what was wrong with components that are no longer there. `is_there` is asked for the names of all.
    pub fn forget(&self, is_there: impl Fn(&str) -> bool) {
        for Change { trouble, component, .. } in self.standing() {
            if !is_there(&component) {
                self.clear(trouble, &component);
            }
        }
    }

    /// What is wrong now.
    pub fn standing(&self) -> Vec<Change> {
        changes(&self.lock())
    }

    /// What is wrong now, and where changes after that are told.
    pub fn listen(&self) -> (Vec<Change>, broadcast::Receiver<Change>) {
        let standing = self.lock();
        (changes(&standing), self.0.changes.subscribe())
    }
}

fn changes(standing: &Standing) -> Vec<Change> {
    let change = |((trouble, component), message): (&(Trouble, Arc<str>), &Arc<str>)| Change {
        trouble: *trouble,
        state: State::Raised,
        component: Arc::clone(component),
        message: Arc::clone(message),
    };
    standing.iter().map(change).collect()
}

fn bounded(message: &impl Display) -> Arc<str> {
    let mut text = message.to_string();
    text.truncate(text.floor_char_boundary(MESSAGE_MAX));
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_of_what_is_gone_are_over() {
        let health = Health::default();
        health.raise(Trouble::Buffer, "gone", "full");
        health.raise(Trouble::Buffer, "there", "full");
        health.forget(|name| name == "there");
        assert_eq!(health.standing().iter().map(|change| &*change.component).collect::<Vec<_>>(), ["there"]);
    }

    #[test]
    fn a_trouble_is_told_when_it_begins_and_when_it_ends() {
        let health = Health::default();
        health.raise(Trouble::Buffer, "early", "before anybody listens");
        let (standing, mut told) = health.listen();
        assert_eq!(standing.iter().map(|change| &*change.component).collect::<Vec<_>>(), ["early"]);
        health.clear(Trouble::CheckpointFailed, "checkpoints");
        for _ in 0..3 {
            health.raise(Trouble::CheckpointFailed, "checkpoints", "disk full");
        }
        health.clear(Trouble::CheckpointFailed, "checkpoints");
        health.note(Trouble::PoisonSkipped, "parse", "x".repeat(2 * MESSAGE_MAX));
        let mut changes = Vec::new();
        while let Ok(change) = told.try_recv() {
            changes.push((change.trouble, change.state, change.message.len()));
        }
        assert_eq!(
            changes,
            [
                (Trouble::CheckpointFailed, State::Raised, 9),
                (Trouble::CheckpointFailed, State::Cleared, 9),
                (Trouble::PoisonSkipped, State::Raised, MESSAGE_MAX)
            ]
        );
        assert_eq!(health.standing(), standing);
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Trouble::ALL.map(Trouble::as_str).into();
        assert_eq!(names.len(), Trouble::ALL.len());
    }
}
