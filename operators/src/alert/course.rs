//! What becomes of one alert over all levels of its rule, and whether it flaps. No records, no texts: moments in, transitions
//! out.
//!
//! Levels rise: where one holds, those below it hold too. Each is an [`Alert`] of its own, and as none ends before one above
//! it, the lowest tells what has become of the whole.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tocsin_pipeline::time::Timestamp;

use super::rule::{Alert, Phase, Timing};

/// What a rule says of time.
#[derive(Clone, Debug)]
pub(super) struct Times {
    /// How long each level must have held before it fires, from the lowest on. At least one.
    pub(super) pending_for: Vec<Duration>,
    /// How long a level goes on firing after it has ceased to hold.
    pub(super) keep_firing_for: Duration,
    pub(super) flapping: Option<Flapping>,
}

/// When an alert flaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flapping {
    /// So many changes …
    pub(super) changes: usize,
    /// … within this time.
    pub(super) within: Duration,
}

/// What is known of the time of a record that a level holds of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) time: Timestamp,
    /// As it stood before the record: see [`Alert::holds`].
    pub(super) watermark: Timestamp,
    /// How long the alert may go without being heard of from now on.
    pub(super) patience: Option<Duration>,
    /// Whether each value decides: then the levels above it do not hold.
    pub(super) is_value: bool,
}

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// The condition holds; an episode begins.
    Pending,
    /// It has held for long enough.
    Firing,
    /// It goes on firing, on another level, or flaps no more.
    Changed(Timestamp),
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
pub(super) struct Course {
    /// From the lowest level on.
    levels: Vec<Alert>,
    /// When it last began to fire, went to another level or was resolved, where flapping is watched; no more than make it
    /// flap. While it flaps, when a level began or ceased to hold.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    changes: VecDeque<i64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    flaps: bool,
}

impl Course {
    /// An alert that has never been.
    pub(super) fn new(times: &Times) -> Self {
        Self { levels: vec![Alert::new(); times.pending_for.len()], changes: VecDeque::new(), flaps: false }
    }

    /// Something is known of an alert that has never been, and so for a while.
    pub(super) fn remember(&mut self, time: Timestamp) {
        self.levels[0].heard = time;
    }

    /// Takes up the levels that the rule has now.
    pub(super) fn fit(&mut self, times: &Times) {
        self.levels.resize(times.pending_for.len().max(1), Alert::new());
        match times.flapping {
            Some(flapping) => self.changes.truncate(flapping.changes),
            None => (self.changes, self.flaps) = (VecDeque::new(), false),
        }
    }

    /// The alert as a whole: when it began, which episode it is, what has become of it.
    pub(super) fn whole(&self) -> &Alert {
        &self.levels[0]
    }

    pub(super) fn phase(&self) -> Phase {
        self.whole().phase
    }

    /// The highest level that is in the phase of the whole.
    pub(super) fn level(&self) -> usize {
        self.levels.iter().rposition(|alert| alert.phase == self.phase()).unwrap_or(0)
    }

    /// Whether it goes on firing although it should be resolved and fire again time after time.
    pub(super) fn flaps(&self) -> bool {
        self.flaps
    }

    /// Whether a value of this time says nothing new: a window that was corrected after a later one had decided.
    pub(super) fn is_outdated(&self, time: Timestamp) -> bool {
        let whole = self.whole();
        match whole.phase {
            Phase::Inactive => whole.episode > 0 && time <= whole.heard,
            Phase::Pending | Phase::Firing => time < whole.heard,
        }
    }

    fn timing(&self, level: usize, times: &Times) -> Timing {
        let damped = times.flapping.filter(|_| self.flaps).map_or(Duration::ZERO, |flapping| flapping.within);
        Timing { pending_for: times.pending_for[level], keep_firing_for: times.keep_firing_for.max(damped) }
    }

    /// This level, and so all below it, holds of a record.
    pub(super) fn holds(&mut self, level: usize, heard: Heard, times: &Times, told: &mut Vec<Transition>) {
        let Heard { time, watermark, patience, is_value } = heard;
        let heard = time.max(watermark);
        while let Some(transition) = self.elapse(heard, true, times) {
            told.push(transition);
        }
        let (phase, was) = (self.phase(), self.level());
        if self.flaps {
            let quiet = self.quiet_at(level, times).is_some_and(|silent| silent < heard);
            let begins = self.levels[..=level].iter().any(|alert| alert.phase == Phase::Firing && alert.is_refuted());
            let ceases = is_value && self.is_held_above(level);
            if quiet || begins || ceases {
                self.note(time, times);
            }
        }
        for at in 0..self.levels.len() {
            let timing = self.timing(at, times);
            if at <= level {
                self.levels[at].holds(time, watermark, patience, &timing);
            } else if is_value {
                self.levels[at].fails(time, patience, &timing);
            }
        }
        if let Some(highest) = self.levels.iter().rposition(|alert| alert.phase == Phase::Firing) {
            // What is enough for a level is enough for those below it.
            for below in &mut self.levels[..highest] {
                below.fire(time);
            }
        }
        if phase == Phase::Inactive {
            told.push(Transition::Pending);
        }
        if self.phase() != Phase::Firing {
            return;
        }
        let level = self.level();
        if phase != Phase::Firing {
            self.change(time, true, times);
            told.push(Transition::Firing);
        } else if level != was {
            self.change(time, level > was, times);
            told.push(Transition::Changed(time));
        }
    }

    /// A value of this time says that no level holds.
    pub(super) fn fails(
        &mut self,
        time: Timestamp,
        patience: Option<Duration>,
        times: &Times,
        told: &mut Vec<Transition>,
    ) {
        while let Some(transition) = self.elapse(time, true, times) {
            told.push(transition);
        }
        if self.flaps && self.levels.iter().any(|alert| alert.phase == Phase::Firing && !alert.is_refuted()) {
            self.note(time, times);
        }
        let (phase, was) = (self.phase(), self.level());
        for at in 0..self.levels.len() {
            let timing = self.timing(at, times);
            self.levels[at].fails(time, patience, &timing);
        }
        told.extend(self.outcome(phase, was, self.flaps, time, times));
    }

    /// When something becomes of it (or it is forgotten) if nothing is heard of it. Where `silence` says nothing, as after the
    /// end of all input, only what values have said counts.
    pub(super) fn deadline(&self, silence: bool, times: &Times) -> Option<Timestamp> {
        let is_active = self.phase() != Phase::Inactive;
        let levels = self.levels.iter().enumerate().filter(|(at, alert)| *at == 0 || alert.phase != Phase::Inactive);
        let levels = levels.filter_map(|(at, alert)| alert.deadline(silence, &self.timing(at, times)));
        let calm = self.calm_at(times).filter(|_| silence && is_active);
        levels.chain(calm).min()
    }

    /// Everything up to `now`, and not that moment itself, has been heard: gives the first of what becomes of it.
    pub(super) fn elapse(&mut self, now: Timestamp, silence: bool, times: &Times) -> Option<Transition> {
        while self.phase() != Phase::Inactive {
            let moment = self.deadline(silence, times).filter(|deadline| *deadline < now)?;
            let (phase, was, flapped) = (self.phase(), self.level(), self.flaps);
            for at in (0..self.levels.len()).rev() {
                let timing = self.timing(at, times);
                let is_over = self.levels[at].phase != Phase::Inactive
                    && self.levels[at].deadline(silence, &timing).is_some_and(|deadline| deadline <= moment);
                if is_over {
                    if flapped && let Some(silent) = self.silent_at(at, times) {
                        self.note(silent, times);
                    }
                    self.levels[at].end(moment);
                }
            }
            if silence && self.calm_at(times).is_some_and(|calm| calm <= moment) {
                self.flaps = false;
            }
            let outcome = self.outcome(phase, was, flapped, moment, times);
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    /// What has become of it at a moment, from what it was before.
    fn outcome(
        &mut self,
        phase: Phase,
        was: usize,
        flapped: bool,
        moment: Timestamp,
        times: &Times,
    ) -> Option<Transition> {
        match (phase, self.phase()) {
            (Phase::Pending, Phase::Inactive) => Some(Transition::Withdrawn),
            (Phase::Firing, Phase::Inactive) => {
                if flapped {
                    // It was calm for long enough.
                    (self.changes, self.flaps) = (VecDeque::new(), false);
                } else {
                    self.change(moment, false, times);
                }
                Some(Transition::Resolved(self.whole().heard))
            }
            (Phase::Firing, Phase::Firing) if self.level() != was || self.flaps != flapped => {
                if !flapped {
                    self.change(moment, false, times);
                }
                Some(Transition::Changed(moment))
            }
            _ => None,
        }
    }

    /// It begins to fire, goes to another level or is resolved: with enough of these, one that `rises` begins its flapping.
    fn change(&mut self, time: Timestamp, rises: bool, times: &Times) {
        let Some(flapping) = times.flapping else { return };
        self.note(time, times);
        let since = time.saturating_sub(flapping.within);
        let recent = self.changes.iter().filter(|change| **change >= since.0).count();
        self.flaps |= rises && recent >= flapping.changes;
    }

    fn note(&mut self, time: Timestamp, times: &Times) {
        let Some(flapping) = times.flapping else { return };
        if self.changes.len() >= flapping.changes {
            self.changes.pop_front();
        }
        self.changes.push_back(time.0);
    }

    /// When a level would be over by silence if it did not flap.
    fn silent_at(&self, level: usize, times: &Times) -> Option<Timestamp> {
        let undamped = Timing { pending_for: times.pending_for[level], keep_firing_for: times.keep_firing_for };
        let alert = &self.levels[level];
        if alert.phase != Phase::Firing || alert.is_refuted() { None } else { alert.deadline(true, &undamped) }
    }

    /// When the first of the levels up to this one would be over by silence if it did not flap.
    fn quiet_at(&self, level: usize, times: &Times) -> Option<Timestamp> {
        (0..=level).filter_map(|at| self.silent_at(at, times)).min()
    }

    /// Whether a level above this one holds, as far as is known.
    fn is_held_above(&self, level: usize) -> bool {
        self.levels[level + 1..].iter().any(|alert| alert.phase == Phase::Firing && !alert.is_refuted())
    }

    /// When it flaps no more if nothing becomes of it until then. Silence is a change too, once it has been long enough.
    fn calm_at(&self, times: &Times) -> Option<Timestamp> {
        let flapping = times.flapping.filter(|_| self.flaps)?;
        let last = self.changes.iter().max().map_or(Timestamp::MIN, |last| Timestamp(*last));
        let calm = last.saturating_add(flapping.within);
        let is_quiet = self.quiet_at(self.levels.len() - 1, times).is_some_and(|silent| silent < calm);
        (!is_quiet).then_some(calm)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Runs a story of values, `SECOND LEVEL` (`-` for one that no level holds of) or `SECOND watermark`, and tells the
    /// transitions with the level and whether it flaps.
    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(pending_for: &[u64], keep: u64, flapping: Option<(usize, u64)>, story: &str, expected: Expect) {
        check_with_patience(pending_for, keep, flapping, None, story, &expected);
    }

    fn check_with_patience(
        pending_for: &[u64],
        keep: u64,
        flapping: Option<(usize, u64)>,
        patience: Option<u64>,
        story: &str,
        expected: &Expect,
    ) {
        let times = Times {
            pending_for: pending_for.iter().map(|seconds| Duration::from_secs(*seconds)).collect(),
            keep_firing_for: Duration::from_secs(keep),
            flapping: flapping.map(|(changes, seconds)| Flapping { changes, within: Duration::from_secs(seconds) }),
        };
        let is_value = patience.is_none();
        let patience = patience.map(Duration::from_secs);
        let mut course = Course::new(&times);
        let mut text = String::new();
        for step in story.split(',') {
            let (second, what) = step.trim().split_once(' ').unwrap();
            let time = Timestamp::from_secs(second.parse().unwrap());
            let mut told = Vec::new();
            match what.parse() {
                Ok(level) => {
                    let heard = Heard { time, watermark: Timestamp::MIN, patience, is_value };
                    course.holds(level, heard, &times, &mut told);
                }
                Err(_) if what == "-" => course.fails(time, patience, &times, &mut told),
                Err(_) => {
                    while let Some(transition) = course.elapse(time, true, &times) {
                        told.push(transition);
                    }
                }
            }
            for transition in told {
                let transition = match transition {
                    Transition::Resolved(at) => format!("Resolved at {}", at.0 / 1_000_000_000),
                    Transition::Changed(at) => format!("Changed at {}", at.0 / 1_000_000_000),
                    other => format!("{other:?}"),
                };
                let flaps = if course.flaps() { ", flaps" } else { "" };
                text += &format!("{second}: {transition} (level {}{flaps})\n", course.level());
            }
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn the_highest_level_that_holds_is_told_in_one_episode() {
        check(
            &[0, 0],
            0,
            None,
            "10 0, 20 1, 30 1, 40 0, 50 -",
            expect![[r#"
            10: Pending (level 0)
            10: Firing (level 0)
            20: Changed at 20 (level 1)
            40: Changed at 40 (level 0)
            50: Resolved at 50 (level 1)
        "#]],
        );
    }

    #[test]
    fn a_level_may_have_to_hold_for_longer_than_another() {
        check(
            &[0, 30],
            0,
            None,
            "10 0, 20 1, 30 1, 40 0, 50 1, 60 1, 80 1, 90 -",
            expect![[r#"
            10: Pending (level 0)
            10: Firing (level 0)
            80: Changed at 80 (level 1)
            90: Resolved at 90 (level 1)
        "#]],
        );
        // A high level that fires at once makes the low one fire, however long that must hold by itself.
        check(
            &[300, 0],
            0,
            None,
            "10 0, 20 1, 30 0, 40 -, 50 0, 60 -",
            expect![[r#"
            10: Pending (level 0)
            20: Firing (level 1)
            30: Changed at 30 (level 0)
            40: Resolved at 40 (level 1)
            50: Pending (level 0)
            60: Withdrawn (level 1)
        "#]],
        );
    }

    #[test]
    fn a_level_is_kept_over_a_short_relief() {
        check(
            &[0, 0],
            15,
            None,
            "10 1, 20 0, 30 1, 40 0, 50 0, 60 0, 70 -, 90 watermark",
            expect![[r#"
            10: Pending (level 1)
            10: Firing (level 1)
            60: Changed at 55 (level 0)
            90: Resolved at 85 (level 1)
        "#]],
        );
    }

    #[test]
    fn silence_ends_level_by_level() {
        check_with_patience(
            &[0, 0],
            0,
            None,
            Some(60),
            "10 1, 50 0, 100 watermark, 200 watermark",
            &expect![[r#"
            10: Pending (level 1)
            10: Firing (level 1)
            100: Changed at 70 (level 0)
            200: Resolved at 110 (level 1)
        "#]],
        );
        check_with_patience(
            &[0, 0],
            0,
            None,
            Some(60),
            "10 1, 200 watermark",
            &expect![[r#"
            10: Pending (level 1)
            10: Firing (level 1)
            200: Resolved at 70 (level 1)
        "#]],
        );
    }

    #[test]
    fn one_that_flaps_goes_on_firing_until_it_is_calm() {
        check(
            &[0],
            0,
            Some((3, 60)),
            "10 0, 20 -, 30 0, 40 -, 50 0, 60 -, 70 0, 80 -, 139 -, 140 -, 150 0",
            expect![[r#"
                10: Pending (level 0)
                10: Firing (level 0)
                20: Resolved at 20 (level 0)
                30: Pending (level 0, flaps)
                30: Firing (level 0, flaps)
                140: Resolved at 140 (level 0)
                150: Pending (level 0)
                150: Firing (level 0)
            "#]],
        );
    }

    #[test]
    fn one_that_flapped_and_holds_steadily_flaps_no_more() {
        check(
            &[0],
            0,
            Some((3, 60)),
            "10 0, 20 -, 30 0, 50 0, 70 0, 90 0, 91 0, 100 -, 110 watermark",
            expect![[r#"
                10: Pending (level 0)
                10: Firing (level 0)
                20: Resolved at 20 (level 0)
                30: Pending (level 0, flaps)
                30: Firing (level 0, flaps)
                91: Changed at 90 (level 0)
                100: Resolved at 100 (level 0)
            "#]],
        );
    }

    #[test]
    fn changes_that_are_far_apart_are_no_flapping() {
        check(
            &[0],
            0,
            Some((3, 60)),
            "10 0, 20 -, 71 0, 80 -, 140 0, 150 -",
            expect![[r#"
            10: Pending (level 0)
            10: Firing (level 0)
            20: Resolved at 20 (level 0)
            71: Pending (level 0)
            71: Firing (level 0)
            80: Resolved at 80 (level 0)
            140: Pending (level 0)
            140: Firing (level 0)
            150: Resolved at 150 (level 0)
        "#]],
        );
    }

    #[test]
    fn going_from_level_to_level_is_flapping_too() {
        check(
            &[0, 0],
            0,
            Some((3, 60)),
            "10 0, 20 1, 30 0, 40 1, 50 0, 60 1, 70 0, 129 0, 131 0, 140 -",
            expect![[r#"
                10: Pending (level 0)
                10: Firing (level 0)
                20: Changed at 20 (level 1)
                30: Changed at 30 (level 0)
                40: Changed at 40 (level 1, flaps)
                131: Changed at 130 (level 0)
                140: Resolved at 140 (level 1)
            "#]],
        );
    }

    #[test]
    fn silence_is_a_change_too() {
        check_with_patience(
            &[0],
            0,
            Some((3, 60)),
            Some(20),
            "10 0, 40 0, 70 0, 100 0, 130 0, 300 watermark",
            &expect![[r#"
                10: Pending (level 0)
                10: Firing (level 0)
                40: Resolved at 30 (level 0, flaps)
                40: Pending (level 0, flaps)
                40: Firing (level 0, flaps)
                300: Resolved at 210 (level 0)
            "#]],
        );
    }

    /// A story of a rule without levels: `SECOND true|false|watermark`, and the episode in the place of the level.
    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check_one(pending_for: u64, keep: u64, patience: Option<u64>, story: &str, expected: Expect) {
        let times = Times {
            pending_for: vec![Duration::from_secs(pending_for)],
            keep_firing_for: Duration::from_secs(keep),
            flapping: None,
        };
        let patience = patience.map(Duration::from_secs);
        let mut course = Course::new(&times);
        let mut text = String::new();
        for step in story.split(',') {
            let (second, what) = step.trim().split_once(' ').unwrap();
            let time = Timestamp::from_secs(second.parse().unwrap());
            let mut told = Vec::new();
            match what {
                "true" => {
                    let heard = Heard { time, watermark: Timestamp::MIN, patience, is_value: true };
                    course.holds(0, heard, &times, &mut told);
                }
                "false" => course.fails(time, patience, &times, &mut told),
                _ => told.extend(course.elapse(time, true, &times)),
            }
            for transition in told {
                let transition = match transition {
                    Transition::Resolved(at) => format!("Resolved at {}", at.0 / 1_000_000_000),
                    other => format!("{other:?}"),
                };
                text += &format!("{second}: {transition} (episode {})\n", course.whole().episode);
            }
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_value_that_holds_fires_and_one_that_does_not_resolves() {
        check_one(
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
        check_one(
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
        check_one(
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
        check_one(
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
        check_one(
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
        check_one(
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
        check_one(
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
        check_one(
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
        let times = Times { pending_for: vec![Duration::ZERO], keep_firing_for: Duration::ZERO, flapping: None };
        let mut course = Course::new(&times);
        let patience = Some(Duration::from_secs(60));
        let (time, watermark) = (Timestamp::from_secs(10), Timestamp::from_secs(1000));
        let heard = Heard { time, watermark, patience, is_value: false };
        course.holds(0, heard, &times, &mut Vec::new());
        assert_eq!(course.whole().since, Timestamp::from_secs(10));
        assert_eq!(course.deadline(true, &times), Some(Timestamp::from_secs(1060)));
    }
}
