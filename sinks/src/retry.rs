//! When to try again: exponential backoff with full jitter, and what a peer asks for in `Retry-After`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;
use tocsin_config::types;
use tocsin_pipeline::time::Timestamp;

/// How long a peer may ask to be left alone. Longer wishes are cut to this, so that a mistaken header does not stop a
/// sink for days.
const LONGEST_WISH: Duration = Duration::from_secs(3600);

/// How attempts follow each other when the peer is away or busy.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The wait after the first failure is a random part of this; it doubles with each failure.
    #[serde(default = "half_a_second")]
    pub(crate) initial: types::Duration,
    /// Waits are not longer than this.
    #[serde(default = "half_a_minute")]
    pub(crate) max: types::Duration,
}

fn half_a_second() -> types::Duration {
    types::Duration(Duration::from_millis(500))
}

fn half_a_minute() -> types::Duration {
    types::Duration(Duration::from_secs(30))
}

impl Default for Config {
    fn default() -> Self {
        Self { initial: half_a_second(), max: half_a_minute() }
    }
}

impl Config {
    /// What is wrong with it, told of the option `retry`.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.initial.0 < Duration::from_millis(1) {
            problems.push(Problem::new("retry.initial", "must be at least \"1ms\""));
        }
        if self.max < self.initial {
            problems.push(Problem::new("retry.max", "must not be shorter than `retry.initial`"));
        }
        problems
    }
}

/// The waits between the attempts at one thing.
///
/// Full jitter: each wait is drawn evenly from zero to the bound, so that many sinks that lost the same peer do not come
/// back in step. The draw depends on the seed and the attempt alone: a simulation repeats itself, and two sinks of
/// different names differ.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    config: Config,
    seed: [u8; 32],
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(config: Config, seed: &str) -> Self {
        Self { config, seed: *blake3::hash(seed.as_bytes()).as_bytes(), attempts: 0 }
    }

    /// How many waits there were since the last success.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Goes on counting from a number of failures, as a checkpoint tells it.
    pub(crate) fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// It worked: the next failure is the first again.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait before the next attempt; at least what the peer asked for.
    pub(crate) fn next(&mut self, wish: Option<Duration>) -> Duration {
        let bound = self.bound();
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&self.attempts.to_le_bytes());
        let hash = hasher.finalize();
        let draw = u32::from_le_bytes(hash.as_bytes()[..4].try_into().expect("four bytes of thirty-two"));
        self.attempts = self.attempts.saturating_add(1);
        let wait = bound.mul_f64(f64::from(draw) / f64::from(u32::MAX));
        wait.max(wish.unwrap_or_default().min(LONGEST_WISH))
    }

    /// As [`Self::next`], and at least half of what it may be: for a pause that must be one.
    pub(crate) fn pause(&mut self, wish: Option<Duration>) -> Duration {
        let half = self.bound() / 2;
        (half + self.next(None) / 2).max(wish.unwrap_or_default().min(LONGEST_WISH))
    }

    fn bound(&self) -> Duration {
        // 2^20 times the first wait is beyond every sensible maximum, and the shift cannot overflow.
        self.config.initial.0.saturating_mul(1 << self.attempts.min(20)).min(self.config.max.0)
    }
}

/// What a `Retry-After` header asks for (RFC 9110 §10.2.3): seconds, or a date to be compared with the wall clock.
pub(crate) fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean "for ever", which the bound on wishes cuts.
        return Some(Duration::from_secs(value.parse().unwrap_or(u32::MAX.into())));
    }
    let date: DateTime<Utc> = DateTime::parse_from_rfc2822(value).ok()?.into();
    Some(Timestamp::from_datetime(&date).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(seed: &str, count: usize) -> Vec<Duration> {
        let mut backoff = Backoff::new(Config::default(), seed);
        (0..count).map(|_| backoff.next(None)).collect()
    }

    #[test]
    fn waits_stay_within_a_bound_that_doubles_up_to_the_maximum() {
        for seed in ["a", "b", "c", "d"] {
            for (attempt, wait) in waits(seed, 40).into_iter().enumerate() {
                let bound =
                    Duration::from_millis(500).saturating_mul(1 << attempt.min(20)).min(Duration::from_secs(30));
                assert!(wait <= bound, "{seed} {attempt}: {wait:?}");
            }
        }
        assert!(waits("a", 40).iter().any(|wait| *wait > Duration::from_secs(15)));
    }

    #[test]
    fn the_same_name_waits_alike_and_another_name_does_not() {
        assert_eq!(waits("a", 5), waits("a", 5));
        assert_ne!(waits("a", 5), waits("b", 5));
    }

    #[test]
    fn a_success_begins_anew_and_a_restart_goes_on() {
        let mut backoff = Backoff::new(Config::default(), "a");
        let first = backoff.next(None);
        let second = backoff.next(None);
        backoff.reset();
        assert_eq!(backoff.next(None), first);
        assert_eq!(Backoff::new(Config::default(), "a").with_attempts(1).next(None), second);
    }

    #[test]
    fn a_peer_that_asks_for_time_gets_it_within_reason() {
        let mut backoff = Backoff::new(Config::default(), "a");
        assert!(backoff.next(Some(Duration::from_secs(120))) >= Duration::from_secs(120));
        assert_eq!(backoff.next(Some(Duration::from_secs(999_999))), LONGEST_WISH);
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = Timestamp::parse_rfc3339(b"2026-11-20T12:00:00Z").unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Fri, 20 Nov 2026 12:00:30 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Fri, 20 Nov 2026 11:00:30 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("99999999999999999999999", now), Some(Duration::from_secs(u32::MAX.into())));
        for value in ["", "soon", "-1", "1.5"] {
            assert_eq!(retry_after(value, now), None, "{value}");
        }
    }
}
