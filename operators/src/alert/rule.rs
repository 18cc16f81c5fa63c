//! What becomes of one alert: inactive, pending, firing, resolved. No records, no texts: moments in, transitions out.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tocsin_pipeline::time::Timestamp;

/// How long an alert that is over is remembered, so that its next episode goes on counting.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// The times of a rule.
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

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// The condition holds; an episode begins.
    Pending,
    /// It has held for long enough.
    Firing,
    /// It has ceased to hold while pending: nobody was told.
    Withdrawn,
    /// It has ceased to hold at this moment.
    Resolved(Timestamp),
}

impl Transition {
    /// Whether an episode ends with it.
    pub(super) fn is_ending(self) -> bool {
        matches!(self, Self::Withdrawn | Self::Resolved(_))
    }
}

/// One alert as it stands.
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
    heard: Timestamp,
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
    /// as heard at the watermark, since otherwise each late match would fire and be over in the same moment.
    pub(super) fn holds(
        &mut self,
        time: Timestamp,
        watermark: Timestamp,
        patience: Option<Duration>,
        timing: &Timing,
        told: &mut Vec<Transition>,
    ) {
        let heard = time.max(watermark);
        told.extend(self.elapse(heard, timing));
        self.patience = patience;
        self.heard = if self.phase == Phase::Inactive { heard } else { self.heard.max(heard) };
        self.refuted = None;
        if self.phase == Phase::Inactive {
            self.phase = Phase::Pending;
            self.episode += 1;
            self.since = time;
            told.push(Transition::Pending);
        }
        if self.phase == Phase::Pending && time.since(self.since) >= timing.pending_for {
            self.phase = Phase::Firing;
            self.started = time;
            told.push(Transition::Firing);
        }
    }

    /// A value of this time says that the condition does not hold.
    pub(super) fn fails(
        &mut self,
        time: Timestamp,
        patience: Option<Duration>,
        timing: &Timing,
        told: &mut Vec<Transition>,
    ) {
        told.extend(self.elapse(time, timing));
        match self.phase {
            Phase::Inactive => {}
            Phase::Pending => {
                self.end(time);
                told.push(Transition::Withdrawn);
            }
            Phase::Firing => {
                self.heard = self.heard.max(time);
                self.patience = patience;
                let end = self.refuted.get_or_insert(time).saturating_add(timing.keep_firing_for);
                if end <= time {
                    self.end(end);
                    told.push(Transition::Resolved(end));
                }
            }
        }
    }

    /// Whether a value of this time says nothing new: a window that was corrected after a later one had decided.
    pub(super) fn is_outdated(&self, time: Timestamp) -> bool {
        self.phase != Phase::Inactive && time < self.heard
    }

    /// When it is over (or forgotten) if nothing is heard of it.
    pub(super) fn deadline(&self, timing: &Timing) -> Option<Timestamp> {
        let silent = self.patience.map(|patience| self.heard.saturating_add(patience));
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

    /// Whether it is its silence alone that would end it.
    pub(super) fn is_merely_silent(&self) -> bool {
        self.refuted.is_none()
    }

    /// Everything up to `now`, and not that moment itself, has been heard.
    pub(super) fn elapse(&mut self, now: Timestamp, timing: &Timing) -> Option<Transition> {
        let deadline = self.deadline(timing).filter(|deadline| *deadline < now)?;
        let transition = match self.phase {
            Phase::Inactive => return None,
            Phase::Pending => Transition::Withdrawn,
            Phase::Firing => Transition::Resolved(deadline),
        };
        self.end(deadline);
        Some(transition)
    }

    fn end(&mut self, at: Timestamp) {
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

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Runs a story of values, `SECOND true|false|watermark`, and tells the transitions.
    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(pending_for: u64, keep_firing_for: u64, patience: Option<u64>, story: &str, expected: Expect) {
        let timing = Timing {
            pending_for: Duration::from_secs(pending_for),
            keep_firing_for: Duration::from_secs(keep_firing_for),
        };
        let patience = patience.map(Duration::from_secs);
        let mut alert = Alert::new();
        let mut text = String::new();
        for step in story.split(',') {
            let (second, what) = step.trim().split_once(' ').unwrap();
            let time = Timestamp::from_secs(second.parse().unwrap());
            let mut told = Vec::new();
            match what {
                "true" => alert.holds(time, Timestamp::MIN, patience, &timing, &mut told),
                "false" => alert.fails(time, patience, &timing, &mut told),
                _ => told.extend(alert.elapse(time, &timing)),
            }
            for transition in told {
                let transition = match transition {
                    Transition::Resolved(at) => format!("Resolved at {}", at.0 / 1_000_000_000),
                    other => format!("{other:?}"),
                };
                text += &format!("{second}: {transition} (episode {})\n", alert.episode);
            }
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_value_that_holds_fires_and_one_that_does_not_resolves() {
        check(
            0,
            0,
            None,
            "10 true, 20 true, 30 false, 40 false, 50 true",
            expect![[r#"
            10: Pending (episode 1)
            10: Firing (episode 1)
            30: Resolved at 30 (episode 1)
            50: Pending (episode 2)
            50: Firing (episode 2)
        "#]],
        );
    }

    #[test]
    fn it_fires_once_the_condition_has_held_for_long_enough() {
        check(
            20,
            0,
            None,
            "10 true, 20 true, 29 true, 30 true, 40 true, 50 false",
            expect![[r#"
            10: Pending (episode 1)
            30: Firing (episode 1)
            50: Resolved at 50 (episode 1)
        "#]],
        );
    }

    #[test]
    fn one_value_that_fails_begins_the_waiting_anew() {
        check(
            20,
            0,
            None,
            "10 true, 20 false, 30 true, 40 true, 50 true",
            expect![[r#"
            10: Pending (episode 1)
            20: Withdrawn (episode 1)
            30: Pending (episode 2)
            50: Firing (episode 2)
        "#]],
        );
    }

    #[test]
    fn it_keeps_firing_over_a_short_relief() {
        check(
            0,
            15,
            None,
            "10 true, 20 false, 30 true, 40 false, 50 false, 56 watermark",
            expect![[r#"
            10: Pending (episode 1)
            10: Firing (episode 1)
            56: Resolved at 55 (episode 1)
        "#]],
        );
        check(
            0,
            10,
            None,
            "10 true, 20 false, 30 false",
            expect![[r#"
            10: Pending (episode 1)
            10: Firing (episode 1)
            30: Resolved at 30 (episode 1)
        "#]],
        );
    }

    #[test]
    fn silence_ends_it() {
        check(
            0,
            0,
            Some(60),
            "10 true, 50 true, 110 watermark, 111 watermark, 200 true",
            expect![[r#"
            10: Pending (episode 1)
            10: Firing (episode 1)
            111: Resolved at 110 (episode 1)
            200: Pending (episode 2)
            200: Firing (episode 2)
        "#]],
        );
        // The same without the watermark having been told: the match itself shows that time has passed.
        check(
            0,
            0,
            Some(60),
            "10 true, 70 true, 131 true",
            expect![[r#"
                10: Pending (episode 1)
                10: Firing (episode 1)
                131: Resolved at 130 (episode 2)
                131: Pending (episode 2)
                131: Firing (episode 2)
            "#]],
        );
        check(
            30,
            0,
            Some(20),
            "10 true, 25 true, 50 true, 60 true, 79 true, 80 true",
            expect![[r#"
                10: Pending (episode 1)
                50: Withdrawn (episode 2)
                50: Pending (episode 2)
                80: Firing (episode 2)
            "#]],
        );
    }

    #[test]
    fn a_late_match_counts_as_heard_at_the_watermark() {
        let timing = Timing { pending_for: Duration::ZERO, keep_firing_for: Duration::ZERO };
        let (mut alert, mut told) = (Alert::new(), Vec::new());
        let patience = Some(Duration::from_secs(60));
        alert.holds(Timestamp::from_secs(10), Timestamp::from_secs(1000), patience, &timing, &mut told);
        assert_eq!(alert.since, Timestamp::from_secs(10));
        assert_eq!(alert.deadline(&timing), Some(Timestamp::from_secs(1060)));
    }
}
