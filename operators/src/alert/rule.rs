//! What becomes of one level of an alert: inactive, pending, firing, and over. No records, no texts: moments alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tocsin_pipeline::time::Timestamp;

/// How long an alert that is over is remembered, so that its next episode goes on counting.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// The times of a level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How long the condition must have held before it fires.
    pub(super) pending_for: Duration,
    /// How long it goes on firing after the condition has ceased to hold.
    pub(super) keep_firing_for: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Over, and remembered for a while.
    Inactive,
    Pending,
    Firing,
}

/// A level of an alert as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Alert {
    pub(super) phase: Phase,
    /// Counts from 1. Together with `since` it names the episode for ever.
    pub(super) episode: u64,
    /// When the condition began to hold.
    #[serde(with = "nanoseconds")]
    pub(super) since: Timestamp,
    /// When it began to fire.
    #[serde(with = "nanoseconds")]
    pub(super) started: Timestamp,
    /// When it was last heard of: by a match, or where each value decides by a value. After the end: when it ended.
    #[serde(with = "nanoseconds")]
    pub(super) heard: Timestamp,
    /// Since when values have said that the condition does not hold.
    #[serde(with = "optional_nanoseconds")]
    refuted: Option<Timestamp>,
    /// How long without being heard of before it is over. `None`: only a value ends it.
    patience: Option<Duration>,
}

impl Alert {
    /// An alert that has never been.
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Inactive,
            episode: 0,
            since: Timestamp::MIN,
            started: Timestamp::MIN,
            heard: Timestamp::MIN,
            refuted: None,
            patience: None,
        }
    }

    /// The condition holds of a record of this time. `watermark` is that of the record: a record that comes late counts
    /// as heard at the watermark, since otherwise each late match would fire and be over in the same moment. All that was over
    /// before has been ended.
    pub(super) fn holds(&mut self, time: Timestamp, watermark: Timestamp, patience: Option<Duration>, timing: &Timing) {
        let heard = time.max(watermark);
        self.patience = patience;
        self.heard = if self.phase == Phase::Inactive { heard } else { self.heard.max(heard) };
        self.refuted = None;
        if self.phase == Phase::Inactive {
            self.phase = Phase::Pending;
            self.episode += 1;
            self.since = time;
        }
        if time.since(self.since) >= timing.pending_for {
            self.fire(time);
        }
    }

    /// It has held for long enough.
    pub(super) fn fire(&mut self, time: Timestamp) {
        if self.phase == Phase::Pending {
            self.phase = Phase::Firing;
            self.started = time;
        }
    }

    /// A value of this time says that the condition does not hold.
    pub(super) fn fails(&mut self, time: Timestamp, patience: Option<Duration>, timing: &Timing) {
        match self.phase {
            Phase::Inactive => {}
            Phase::Pending => self.end(time),
            Phase::Firing => {
                self.heard = self.heard.max(time);
                self.patience = patience;
                let end = self.refuted.get_or_insert(time).saturating_add(timing.keep_firing_for);
                if end <= time {
                    self.end(end);
                }
            }
        }
    }

    /// When it is over (or forgotten) if nothing is heard of it. Where `silence` says nothing, only values end it.
    pub(super) fn deadline(&self, silence: bool, timing: &Timing) -> Option<Timestamp> {
        let silent = self.patience.filter(|_| silence).map(|patience| self.heard.saturating_add(patience));
        match self.phase {
            Phase::Inactive => Some(self.heard.saturating_add(REMEMBERED)),
            Phase::Pending => silent,
            Phase::Firing => {
                let silent = silent.map(|silent| silent.saturating_add(timing.keep_firing_for));
                let refuted = self.refuted.map(|refuted| refuted.saturating_add(timing.keep_firing_for));
                silent.into_iter().chain(refuted).min()
            }
        }
    }

    /// Whether the last value has said that the condition does not hold.
    pub(super) fn is_refuted(&self) -> bool {
        self.refuted.is_some()
    }

    /// It is over.
    pub(super) fn end(&mut self, at: Timestamp) {
        self.phase = Phase::Inactive;
        self.heard = at;
        self.refuted = None;
    }
}

mod nanoseconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use tocsin_pipeline::time::Timestamp;

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp)
    }
}

mod optional_nanoseconds {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use tocsin_pipeline::time::Timestamp;

    pub(super) fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp))
    }
}
