//! How far event time has come, as a relay tells it to whoever reads its topic. Pure.

use std::time::Duration;

use tocsin_kafka::stamp::{Content, Stamp};
use tocsin_pipeline::time::Timestamp;

/// After so long it is looked whether the topic has more partitions: whoever reads those waits for a mark.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What is to be told, and what has been.
#[derive(Debug)]
pub(super) struct Marks {
    topic: String,
    lane: String,
    /// How far event time has come.
    watermark: Timestamp,
    /// What the partitions were told last. After a restart they are told again: it says nothing new to them.
    marked: Timestamp,
    /// How many there are, and when that was found.
    partitions: Option<(i32, Duration)>,
}

impl Marks {
    pub fn new(topic: String, lane: String) -> Self {
        Self { topic, lane, watermark: Timestamp::MIN, marked: Timestamp::MIN, partitions: None }
    }

    pub fn see(&mut self, watermark: Timestamp) {
        self.watermark = watermark.max(self.watermark);
    }

    /// The topic and what its partitions are to be told; `None` where they know.
    pub fn due(&self) -> Option<(String, Stamp)> {
        let stamp = || Stamp { content: Content::Mark, watermark: self.watermark, lane: self.lane.clone() };
        (self.watermark > self.marked).then(|| (self.topic.clone(), stamp()))
    }

    /// All partitions have been told.
    pub fn is_marked(&mut self, watermark: Timestamp) {
        self.marked = watermark;
    }

    /// How many partitions there are; `None` where that is to be found out.
    pub fn partitions(&self, now: Duration) -> Option<i32> {
        let (partitions, found) = self.partitions?;
        (now.saturating_sub(found) < LOOK_AGAIN).then_some(partitions)
    }

    pub fn found(&mut self, partitions: usize, now: Duration) {
        self.partitions = Some((i32::try_from(partitions).unwrap_or(i32::MAX), now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_told_what_has_moved_since_they_were_told_last() {
        let mut marks = Marks::new("relay".to_owned(), "orders/7".to_owned());
        let due = |marks: &Marks| marks.due().map(|(_, stamp)| stamp.watermark);
        assert_eq!(due(&marks), None, "nothing is known");
        marks.see(Timestamp(5));
        marks.see(Timestamp(3));
        assert_eq!(due(&marks), Some(Timestamp(5)));
        assert_eq!(due(&marks), Some(Timestamp(5)), "as long as they were not told");
        marks.is_marked(Timestamp(5));
        assert_eq!(due(&marks), None);
        marks.see(Timestamp::MAX);
        assert_eq!(due(&marks), Some(Timestamp::MAX));
    }

    #[test]
    fn new_partitions_are_looked_for_now_and_then() {
        let mut marks = Marks::new("relay".to_owned(), "orders/7".to_owned());
        let at = Duration::from_secs;
        assert_eq!(marks.partitions(at(0)), None);
        marks.found(3, at(100));
        assert_eq!((marks.partitions(at(129)), marks.partitions(at(130))), (Some(3), None));
    }
}
