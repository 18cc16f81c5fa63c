//! How far event time has come: per lane, merged over the lanes of a source, and merged again where streams meet.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Timestamp;

/// Whether a lane holds the watermark of its source back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Active,
    /// Nothing to read since then, by the clock.
    Idle(Timestamp),
    /// It should be readable and is not: event time stands still, so that nobody takes its silence for absence.
    Stalled,
}

#[derive(Clone, Debug)]
struct LaneState {
    /// The greatest event time seen.
    seen: Timestamp,
    out_of_order: Duration,
    activity: Activity,
}

/// The event time of one source: the least of its lanes, where idle ones follow the clock.
#[derive(Debug)]
pub struct SourceWatermark {
    lanes: BTreeMap<String, LaneState>,
    idle_timeout: Duration,
    out_of_order: Duration,
    /// Having no lane says nothing: they are not known yet.
    awaits_lanes: bool,
    /// Since when there has been no lane at all.
    empty_since: Option<Timestamp>,
    merged: Timestamp,
}

impl SourceWatermark {
    pub fn new(idle_timeout: Duration, out_of_order: Duration) -> Self {
        Self {
            lanes: BTreeMap::new(),
            idle_timeout,
            out_of_order,
            awaits_lanes: false,
            empty_since: None,
            merged: Timestamp::MIN,
        }
    }

    /// It will have lanes: nobody takes it for absence that they are not known yet.
    pub fn await_lanes(&mut self) {
        self.awaits_lanes = true;
    }

    /// Takes the lane's past from a checkpoint.
    pub fn restore(&mut self, partition: &str, seen: Timestamp) {
        self.lane(partition).seen = seen;
    }

    fn lane(&mut self, partition: &str) -> &mut LaneState {
        if !self.lanes.contains_key(partition) {
            let state = LaneState { seen: Timestamp::MIN, out_of_order: self.out_of_order, activity: Activity::Active };
            self.lanes.insert(partition.to_owned(), state);
        }
        self.lanes.get_mut(partition).expect("just inserted")
    }

    /// The lane is there, and holds the source back until it has shown something.
    pub fn open(&mut self, partition: &str) {
        self.lane(partition);
    }

    /// What the lane had shown so far, before `seen_max` is added to it.
    pub fn observe(&mut self, partition: &str, seen_max: Timestamp) -> Timestamp {
        let lane = self.lane(partition);
        lane.activity = Activity::Active;
        let before = lane.seen;
        lane.seen = before.max(seen_max);
        before
    }

    /// Whoever writes to the lane tells that all that follows in it comes behind `watermark`.
    pub fn told(&mut self, partition: &str, watermark: Timestamp) {
        let is_told = watermark > Timestamp::MIN;
        let seen = if is_told { watermark.saturating_add(self.out_of_order) } else { watermark };
        self.observe(partition, seen);
    }

    pub fn seen(&self, partition: &str) -> Timestamp {
        self.lanes.get(partition).map_or(Timestamp::MIN, |lane| lane.seen)
    }

    pub fn idle(&mut self, partition: &str, now: Timestamp) {
        let lane = self.lane(partition);
        if !matches!(lane.activity, Activity::Idle(_)) {
            lane.activity = Activity::Idle(now);
        }
    }

    pub fn stalled(&mut self, partition: &str) {
        self.lane(partition).activity = Activity::Stalled;
    }

    pub fn close(&mut self, partition: &str) {
        self.lanes.remove(partition);
    }

    /// The watermark of the source if it has moved since it was asked last.
    pub fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        let merged = match self.lanes.values().map(|lane| lane.watermark(now, self.idle_timeout)).min() {
            Some(merged) => {
                self.empty_since = None;
                merged
            }
            None if self.awaits_lanes => Timestamp::MIN,
            None => {
                let since = *self.empty_since.get_or_insert(now);
                follow(Timestamp::MIN, since, now, self.idle_timeout, self.out_of_order)
            }
        };
        (merged > self.merged).then(|| {
            self.merged = merged;
            merged
        })
    }
}

impl SourceWatermark {
    /// When, by the clock, it comes to `watermark` if nothing is read before; `None`: not by the clock alone.
    pub fn reaches(&self, watermark: Timestamp) -> Option<Timestamp> {
        if watermark <= self.merged {
            return Some(Timestamp::MIN);
        }
        let least = Timestamp(watermark.0.saturating_sub(INCLUDED.0));
        let shown = least.saturating_add(self.idle_timeout).saturating_add(self.out_of_order);
        let follows = |since: Timestamp| since.saturating_add(self.idle_timeout).max(shown);
        if self.lanes.is_empty() {
            return self.empty_since.filter(|_| !self.awaits_lanes).map(follows);
        }
        let reached = self.lanes.values().map(|lane| match lane.activity {
            _ if lane.own() >= watermark => Some(Timestamp::MIN),
            Activity::Idle(since) => Some(follows(since)),
            Activity::Active | Activity::Stalled => None,
        });
        reached.reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other)))?
    }
}

impl LaneState {
    /// What it has shown by itself.
    fn own(&self) -> Timestamp {
        if self.seen == Timestamp::MIN { self.seen } else { self.seen.saturating_sub(self.out_of_order) }
    }

    fn watermark(&self, now: Timestamp, idle_timeout: Duration) -> Timestamp {
        match self.activity {
            Activity::Idle(since) => follow(self.own(), since, now, idle_timeout, self.out_of_order),
            Activity::Active | Activity::Stalled => self.own(),
        }
    }
}

/// What was silent up to a moment has nothing to tell of that moment either: so a timer of then is over then, and not at the
/// next look.
const INCLUDED: Timestamp = Timestamp(1);

/// The watermark of what has been idle since `since`: from `idle_timeout` on, the clock less that timeout.
fn follow(
    own: Timestamp,
    since: Timestamp,
    now: Timestamp,
    idle_timeout: Duration,
    out_of_order: Duration,
) -> Timestamp {
    if now.since(since) < idle_timeout {
        return own;
    }
    let silent = now.saturating_sub(idle_timeout).saturating_sub(out_of_order);
    own.max(Timestamp(silent.0.saturating_add(INCLUDED.0)))
}

/// The least watermark of several inputs.
#[derive(Debug)]
pub struct MergedWatermark {
    inputs: Vec<Timestamp>,
    merged: Timestamp,
}

impl MergedWatermark {
    pub fn new(inputs: usize) -> Self {
        Self { inputs: vec![Timestamp::MIN; inputs], merged: Timestamp::MIN }
    }

    /// Takes the watermark of an input; gives the merged one if it has moved.
    pub fn update(&mut self, input: usize, watermark: Timestamp) -> Option<Timestamp> {
        self.inputs[input] = watermark.max(self.inputs[input]);
        let merged = self.inputs.iter().copied().min().unwrap_or(Timestamp::MAX);
        (merged > self.merged).then(|| {
            self.merged = merged;
            merged
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn the_slowest_lane_holds_it_back_until_it_is_idle_for_long() {
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::from_secs(2));
        watermark.observe("a", at(100));
        watermark.observe("b", at(50));
        assert_eq!(watermark.advance(at(1000)), Some(at(48)));
        watermark.idle("b", at(1000));
        assert_eq!(watermark.advance(at(1005)), None);
        assert_eq!(watermark.advance(at(1010)), Some(at(98)));
        watermark.observe("b", at(60));
        assert_eq!(watermark.advance(at(1011)), None, "a watermark never goes back");
    }

    #[test]
    fn a_stalled_lane_does_not_follow_the_clock() {
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::ZERO);
        watermark.observe("a", at(100));
        watermark.stalled("a");
        assert_eq!(watermark.advance(at(9000)), Some(at(100)));
        assert_eq!(watermark.advance(at(99000)), None);
    }

    #[test]
    fn a_source_without_lanes_follows_the_clock() {
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::ZERO);
        assert_eq!(watermark.advance(at(1000)), None);
        assert_eq!(watermark.advance(at(1020)), Some(Timestamp(at(1010).0 + 1)));
    }

    #[test]
    fn it_tells_when_it_comes_to_a_moment_if_nothing_is_read() {
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::from_secs(2));
        assert_eq!(watermark.reaches(at(100)), None, "since when it has no lane is not known");
        watermark.observe("a", at(100));
        watermark.observe("b", at(50));
        watermark.idle("b", at(1000));
        assert_eq!(watermark.advance(at(1000)), Some(at(48)));
        assert_eq!(watermark.reaches(at(40)), Some(Timestamp::MIN), "it has been there");
        assert_eq!(watermark.reaches(at(99)), None, "more is to be read of `a`");
        watermark.idle("a", at(1001));
        for (wanted, hidden) in [(at(60), at(1010)), (at(99), at(1011)), (Timestamp(at(1200).0 + 1), at(1212))] {
            let reached = watermark.reaches(wanted).unwrap();
            assert_eq!(reached, hidden);
            let mut later = SourceWatermark {
                lanes: watermark.lanes.clone(),
                ..SourceWatermark::new(Duration::from_secs(10), Duration::from_secs(2))
            };
            assert!(later.advance(Timestamp(reached.0 - 1)) < Some(wanted), "not a moment before");
            assert!(later.advance(reached) >= Some(wanted), "{wanted}");
        }
    }

    #[test]
    fn a_source_that_does_not_know_its_lanes_yet_does_not_follow_the_clock() {
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::ZERO);
        watermark.await_lanes();
        assert_eq!(watermark.advance(at(1000)), None);
        assert_eq!(watermark.advance(at(1020)), None);
        watermark.observe("a", at(5));
        assert_eq!(watermark.advance(at(1020)), Some(at(5)));
    }

    #[test]
    fn what_is_told_holds_for_a_lane_and_the_one_that_has_told_nothing_holds_it_back() {
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::from_secs(2));
        for lane in ["relay/0<orders/0", "relay/0<orders/1", "relay/0<orders/2"] {
            watermark.open(lane);
        }
        watermark.told("relay/0<orders/0", at(100));
        watermark.told("relay/0<orders/1", at(70));
        assert_eq!(
            watermark.advance(at(9000)),
            None,
            "the third may still tell of earlier ones, however long it takes"
        );
        watermark.told("relay/0<orders/2", Timestamp::MIN);
        assert_eq!(watermark.advance(at(9000)), None, "that says how far it was read, and no more");
        watermark.told("relay/0<orders/2", at(80));
        assert_eq!(watermark.advance(at(9000)), Some(at(70)), "it was told less what may be out of order");
        watermark.told("relay/0<orders/1", at(60));
        watermark.told("relay/0<orders/1", at(90));
        assert_eq!(watermark.advance(at(9000)), Some(at(80)), "what is told again changes nothing");
    }

    #[test]
    fn inputs_are_merged_by_the_least() {
        let mut merged = MergedWatermark::new(2);
        assert_eq!(merged.update(0, at(5)), None);
        assert_eq!(merged.update(1, at(3)), Some(at(3)));
        assert_eq!(merged.update(1, Timestamp::MAX), Some(at(5)));
    }
}
