//! Leaving a receiver alone that fails again and again, and how many attempts are made in a time. Decisions only.

use std::collections::VecDeque;
use std::time::Duration;

use tocsin_pipeline::time::Timestamp;

use crate::delivery::{Breaker as Config, RateLimit};
use crate::retry::{self, Backoff};

/// The breaker of a receiver.
///
/// It is closed until as many attempts have failed in a row as may. Then it is open: no attempt is made for a while. After
/// that one is, and only one; if it fails the breaker stays open, for longer. Any answer that shows the receiver to be there
/// closes it, be it a refusal. A daemon that starts begins with closed breakers.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// How many attempts have failed in a row.
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    until: Timestamp,
    /// The one attempt that is made when the pause is over is on its way.
    is_probing: bool,
    pauses: Backoff,
    /// How the last attempt failed.
    why: String,
}

impl Breaker {
    /// From when on an attempt may be made; `None`: not until one that is on its way is answered.
    pub(super) fn free_from(&self) -> Option<Timestamp> {
        match &self.open {
            None => Some(Timestamp::MIN),
            Some(open) if open.is_probing => None,
            Some(open) => Some(open.until),
        }
    }

    /// An attempt is made.
    pub(super) fn attempted(&mut self) {
        if let Some(open) = &mut self.open {
            open.is_probing = true;
        }
    }

    /// An attempt has failed. Gives until when no other is made if this opened the breaker, or kept it open.
    pub(super) fn failed(
        &mut self,
        config: &Config,
        receiver: &str,
        now: Timestamp,
        wish: Option<Duration>,
        why: &str,
    ) -> Option<Timestamp> {
        self.failures = self.failures.saturating_add(1);
        if config.failures == 0 || self.failures < config.failures {
            return None;
        }
        let open = self.open.get_or_insert_with(|| Open {
            until: now,
            is_probing: true,
            pauses: Backoff::new(retry::Config { initial: config.pause, max: config.pause_max }, receiver),
            why: String::new(),
        });
        why.clone_into(&mut open.why);
        // One that was on its way before says nothing new.
        if !std::mem::take(&mut open.is_probing) {
            return None;
        }
        open.until = now.saturating_add(open.pauses.pause(wish));
        Some(open.until)
    }

    /// The receiver has answered. Whether it was taken to be away.
    pub(super) fn answered(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// How the last attempt failed, while it is open.
    pub(super) fn why(&self) -> Option<&str> {
        self.open.as_ref().map(|open| &*open.why)
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.open.is_none() && self.failures == 0
    }
}

/// When attempts were made, as many as count.
#[derive(Debug)]
pub(super) struct Rate {
    limit: RateLimit,
    /// At most as many as may be made; oldest first.
    made: VecDeque<Timestamp>,
}

impl Rate {
    pub(super) fn new(limit: RateLimit) -> Self {
        Self { limit, made: VecDeque::new() }
    }

    /// From when on the next attempt may be made.
    pub(super) fn free_from(&self, now: Timestamp) -> Timestamp {
        match self.made.front() {
            // A clock that was set back must not stop everything.
            Some(oldest) if self.made.len() >= self.limit.attempts && *oldest <= now => {
                oldest.saturating_add(self.limit.per.0)
            }
            _ => Timestamp::MIN,
        }
    }

    pub(super) fn attempted(&mut self, now: Timestamp) {
        self.made.push_back(now);
        if self.made.len() > self.limit.attempts {
            self.made.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;
    use tocsin_config::types;

    use super::*;
    use crate::conformance::NOON;

    #[test]
    fn it_opens_after_failures_in_a_row_and_pauses_grow_until_it_is_answered() {
        let config = Config { failures: 3, ..Config::default() };
        let (mut breaker, mut now, mut told) = (Breaker::default(), NOON, String::new());
        for attempt in 0..9 {
            assert!(breaker.free_from().is_some_and(|from| from <= now));
            breaker.attempted();
            let until = breaker.failed(&config, "r", now, None, "busy");
            let pause = until.map_or(Duration::ZERO, |until| until.since(now));
            let _ = writeln!(told, "{attempt}: {}s", pause.as_secs());
            now = now.saturating_add(pause);
        }
        expect![[r#"
            0: 0s
            1: 0s
            2: 3s
            3: 5s
            4: 14s
            5: 24s
            6: 43s
            7: 44s
            8: 58s
        "#]]
        .assert_eq(&told);
        assert_eq!(breaker.why(), Some("busy"));
        assert!(breaker.answered() && breaker.is_at_rest());
    }

    #[test]
    fn one_attempt_is_made_at_a_time_when_the_pause_is_over() {
        let config = Config { failures: 1, ..Config::default() };
        let mut breaker = Breaker::default();
        let until = breaker.failed(&config, "r", NOON, None, "").unwrap();
        assert_eq!(breaker.free_from(), Some(until));
        // Attempts that were on their way before do not make the pause longer.
        assert_eq!(breaker.failed(&config, "r", NOON, None, ""), None);
        breaker.attempted();
        assert_eq!(breaker.free_from(), None);
        let wish = Some(Duration::from_secs(600));
        assert!(
            breaker.failed(&config, "r", until, wish, "").unwrap() >= until.saturating_add(Duration::from_secs(600))
        );
    }

    #[test]
    fn without_a_number_of_failures_it_never_opens() {
        let config = Config { failures: 0, ..Config::default() };
        let mut breaker = Breaker::default();
        assert!((0..100).all(|_| breaker.failed(&config, "r", NOON, None, "").is_none()));
    }

    #[test]
    fn no_stretch_has_more_attempts_than_may_be() {
        let per = types::Duration(Duration::from_secs(10));
        let mut rate = Rate::new(RateLimit { attempts: 3, per });
        let mut made = Vec::new();
        let mut now = NOON;
        while made.len() < 10 {
            if rate.free_from(now) <= now {
                rate.attempted(now);
                made.push(now.since(NOON).as_secs());
            }
            now = now.saturating_add(Duration::from_secs(if made.len().is_multiple_of(2) { 1 } else { 2 }));
        }
        assert!(made.windows(4).all(|four| four[3] - four[0] >= 10), "{made:?}");
        // The clock was set back.
        assert!(rate.free_from(NOON) <= NOON);
    }
}
