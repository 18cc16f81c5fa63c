//! What all sinks that tell somebody let users set of how it is delivered: one after the other, again, and to whom else.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;
use tocsin_config::types;

use crate::outbox::{ROWS_MAX, Settings};
use crate::retry;

/// No more attempts are counted for a rate.
const ATTEMPTS_MAX: usize = 100_000;

/// How notifications are delivered.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(crate) struct Delivery {
    /// How long an attempt may take. Default `"10s"`; of `email` and `exec` `"30s"`.
    timeout: Option<types::Duration>,
    /// How many notifications are on their way at a time. Default 8, from 1 to 256; of `email` and `exec` 4, from 1 to 64.
    concurrency: Option<usize>,
    /// How many notifications may wait; what comes beyond is told as one. Default 100,000, from 1 to 100,000.
    #[serde(default = "all_rows")]
    max_waiting: usize,
    /// How long to go on trying. Default `"24h"`.
    #[serde(default = "one_day")]
    max_age: types::Duration,
    /// How attempts follow each other.
    #[serde(default)]
    retry: retry::Config,
    /// When to leave a receiver alone that fails again and again.
    #[serde(default)]
    breaker: Breaker,
    /// How many attempts are made at most: what is beyond waits for its turn, and nothing is dropped for that. Default: as many
    /// as there are.
    rate_limit: Option<RateLimit>,
    /// When a notification that could not be delivered is handed on at `NAME.failed` although attempts go on. Default: only when
    /// it is refused or given up.
    fallback_after: Option<types::Duration>,
}

/// When to leave a receiver alone: after so many failures in a row no attempts are made for a while, then one. If that fails
/// too, the next pause is twice as long.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Breaker {
    /// After how many failures in a row. 0: never.
    #[serde(default = "five")]
    pub(crate) failures: u32,
    /// The first pause; half of it or more, by chance.
    #[serde(default = "five_seconds")]
    pub(crate) pause: types::Duration,
    /// Pauses are not longer than this, unless the receiver asks for it.
    #[serde(default = "one_minute")]
    pub(crate) pause_max: types::Duration,
}

/// So many attempts within any stretch of that length.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimit {
    /// How many attempts.
    pub(crate) attempts: usize,
    /// Within which time.
    pub(crate) per: types::Duration,
}

fn all_rows() -> usize {
    ROWS_MAX
}

fn one_day() -> types::Duration {
    types::Duration(Duration::from_secs(86_400))
}

fn five() -> u32 {
    5
}

fn five_seconds() -> types::Duration {
    types::Duration(Duration::from_secs(5))
}

fn one_minute() -> types::Duration {
    types::Duration(Duration::from_secs(60))
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: five(), pause: five_seconds(), pause_max: one_minute() }
    }
}

/// What differs between sinks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    pub(crate) timeout: Duration,
    pub(crate) concurrency: usize,
    pub(crate) concurrency_max: usize,
}

impl Usual {
    /// Of those that speak HTTP.
    pub(crate) const HTTP: Self = Self { timeout: Duration::from_secs(10), concurrency: 8, concurrency_max: 256 };
    /// Of those to whom one notification is more work.
    pub(crate) const SLOW: Self = Self { timeout: Duration::from_secs(30), concurrency: 4, concurrency_max: 64 };
}

impl Delivery {
    pub(crate) fn problems(&self, usual: Usual) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |is_wrong: bool, option: &str, message: String| {
            if is_wrong {
                problems.push(Problem::new(option, message));
            }
        };
        let longer = || "must be longer than nothing".to_owned();
        let most = usual.concurrency_max;
        check(
            self.concurrency.is_some_and(|concurrency| !(1..=most).contains(&concurrency)),
            "concurrency",
            format!("must be from 1 to {most}"),
        );
        check(!(1..=ROWS_MAX).contains(&self.max_waiting), "max_waiting", format!("must be from 1 to {ROWS_MAX}"));
        check(self.timeout.is_some_and(|timeout| timeout.0.is_zero()), "timeout", longer());
        check(self.breaker.pause.0.is_zero(), "breaker.pause", longer());
        check(
            self.breaker.pause_max < self.breaker.pause,
            "breaker.pause_max",
            "must not be shorter than `breaker.pause`".to_owned(),
        );
        if let Some(RateLimit { attempts, per }) = self.rate_limit {
            check(
                !(1..=ATTEMPTS_MAX).contains(&attempts),
                "rate_limit.attempts",
                format!("must be from 1 to {ATTEMPTS_MAX}"),
            );
            check(per.0.is_zero(), "rate_limit.per", longer());
        }
        problems.extend(self.retry.problems());
        problems
    }

    pub(crate) fn timeout(&self, usual: Usual) -> Duration {
        self.timeout.map_or(usual.timeout, |timeout| timeout.0)
    }

    pub(crate) fn settings(&self, usual: Usual) -> Settings {
        Settings {
            concurrency: self.concurrency.unwrap_or(usual.concurrency),
            max_waiting: self.max_waiting,
            max_age: self.max_age.0,
            retry: self.retry,
            breaker: self.breaker,
            rate_limit: self.rate_limit,
            fallback_after: self.fallback_after.map(|after| after.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn problems_are_told() {
        let delivery: Delivery = serde_json::from_str(
            r#"{"timeout":"0s","concurrency":65,"max_waiting":0,"breaker":{"pause":"0s","pause_max":"0s"},
                "rate_limit":{"attempts":0,"per":"0s"},"retry":{"initial":"0s"}}"#,
        )
        .unwrap();
        let told = delivery.problems(Usual::SLOW);
        let told: Vec<_> = told.iter().map(|found| format!("{}: {}", found.option, found.message)).collect();
        expect![[r#"
            concurrency: must be from 1 to 64
            max_waiting: must be from 1 to 100000
            timeout: must be longer than nothing
            breaker.pause: must be longer than nothing
            rate_limit.attempts: must be from 1 to 100000
            rate_limit.per: must be longer than nothing
            retry.initial: must be at least "1ms""#]]
        .assert_eq(&told.join("\n"));
    }
}
