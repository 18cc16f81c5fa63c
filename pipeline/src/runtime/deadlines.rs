//! What operators wait for, told to the sources: the timers of idle streams then fire at their very moment and not at the next
//! look.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::graph::{StageTask, Work};
use crate::time::Timestamp;
use crate::watermark::SourceWatermark;

/// The next deadline of each stage, see [`Operator::next_deadline`](crate::operator::Operator::next_deadline).
pub(super) struct Deadlines {
    stages: Mutex<Vec<Timestamp>>,
    changed: watch::Sender<()>,
}

impl Deadlines {
    pub fn new(stages: usize) -> Arc<Self> {
        Arc::new(Self { stages: Mutex::new(vec![Timestamp::MAX; stages]), changed: watch::Sender::new(()) })
    }

    /// A stage waits for this watermark.
    pub fn tell(&self, stage: usize, deadline: Timestamp) {
        let mut stages = self.stages.lock().expect("no holder of this lock panics");
        if std::mem::replace(&mut stages[stage], deadline) != deadline {
            drop(stages);
            self.changed.send_replace(());
        }
    }

    /// Told whenever a stage waits for something else.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How long it takes until an idle source comes to something that a stage waits for; `None`: not by waiting. A stage that
    /// does not know what it waits for is served by looking regularly.
    pub fn soonest(&self, watermark: &SourceWatermark, now: Timestamp) -> Option<Duration> {
        let stages = self.stages.lock().expect("no holder of this lock panics");
        let known = stages.iter().filter(|deadline| !matches!(**deadline, Timestamp::MIN | Timestamp::MAX));
        let moments = known.filter_map(|deadline| watermark.reaches(*deadline));
        moments.filter(|moment| *moment > now).min().map(|moment| moment.since(now))
    }
}

/// What the operators of a stage wait for.
pub(super) fn next_deadline(stage: &StageTask) -> Timestamp {
    let deadlines = stage.chain.nodes.iter().filter_map(|node| match &node.work {
        Work::Operator(operator) => Some(operator.next_deadline()),
        Work::Transform(_) => None,
    });
    deadlines.min().unwrap_or(Timestamp::MAX)
}

/// Waits for a deadline, for ever if there is none.
pub(super) async fn wait(due: Option<Duration>) {
    match due {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_waits_for_what_it_comes_to_next() {
        let at = Timestamp::from_secs;
        let deadlines = Deadlines::new(3);
        let mut changed = deadlines.changed();
        let mut watermark = SourceWatermark::new(Duration::from_secs(10), Duration::ZERO);
        watermark.observe("a", at(100));
        watermark.advance(at(100));
        watermark.idle("a", at(100));
        assert_eq!(deadlines.soonest(&watermark, at(100)), None, "nobody waits for anything");
        for (stage, deadline) in [(0, at(130)), (1, Timestamp(at(120).0 + 500_000_001)), (2, at(99))] {
            deadlines.tell(stage, deadline);
        }
        assert_eq!(deadlines.soonest(&watermark, at(101)), Some(Duration::from_millis(29_500)));
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        deadlines.tell(0, at(130));
        assert!(!changed.has_changed().unwrap(), "it waits for the same as before");
        deadlines.tell(1, Timestamp::MIN);
        assert_eq!(deadlines.soonest(&watermark, at(101)), Some(Duration::from_nanos(38_999_999_999)));
        watermark.observe("a", at(102));
        assert_eq!(deadlines.soonest(&watermark, at(101)), None, "more is being read");
    }
}
