//! Event time, and the one clock everything else asks.
//!
//! Operators never see a clock: time reaches them as watermarks. Sources, sinks and the engine take a [`Clock`], so that a
//! test or a replay can drive them without waiting.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// A moment in nanoseconds since 1970-01-01T00:00:00Z; from year 1677 to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Before every moment: the watermark of a partition that has shown no event.
    pub const MIN: Self = Self(i64::MIN);
    /// After every moment: the watermark of input that has ended.
    pub const MAX: Self = Self(i64::MAX);

    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Moments outside the range are moved to its nearest end.
    pub fn from_datetime(datetime: &DateTime<Utc>) -> Self {
        Self(datetime.timestamp_nanos_opt().unwrap_or(if datetime.timestamp() < 0 { i64::MIN } else { i64::MAX }))
    }

    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(self.0)
    }

    /// Parses an RFC 3339 date and time, with `T` or a space between them.
    pub fn parse_rfc3339(text: &[u8]) -> Option<Self> {
        if let Some(timestamp) = parse_rfc3339_fast(text) {
            return Some(timestamp);
        }
        let text = std::str::from_utf8(text).ok()?;
        let datetime = DateTime::parse_from_rfc3339(text).ok()?;
        Some(Self(datetime.timestamp_nanos_opt()?))
    }

    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// RFC 3339 in UTC, with as many groups of three decimals as the moment needs.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_datetime().to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

/// A duration in whole nanoseconds, at most 292 years.
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Two decimal digits at `at`, which the caller has checked to exist.
pub(crate) fn two(text: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| i64::from(tens) * 10 + i64::from(ones))
}

/// The common spellings `2026-11-20T12:00:00[.fraction](Z|±hh:mm)`, some ten times as fast as chrono; `None` sends
/// everything else (leap seconds, lower case, odd fractions) to chrono.
pub(crate) fn parse_rfc3339_fast(text: &[u8]) -> Option<Timestamp> {
    if text.len() < 20
        || text[4] != b'-'
        || text[7] != b'-'
        || !matches!(text[10], b'T' | b' ')
        || text[13] != b':'
        || text[16] != b':'
    {
        return None;
    }
    let year = two(text, 0)? * 100 + two(text, 2)?;
    let (month, day) = (two(text, 5)?, two(text, 8)?);
    let (hour, minute, second) = (two(text, 11)?, two(text, 14)?, two(text, 17)?);
    if !(1678..2262).contains(&year)
        || !(1..=12).contains(&month)
        || day < 1
        || day > days_in_month(year, month)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let (mut fraction, mut digits, mut at) = (0i64, 0u32, 19);
    if text[at] == b'.' {
        at += 1;
        while at < text.len() && text[at].is_ascii_digit() && digits < 9 {
            fraction = fraction * 10 + i64::from(text[at] - b'0');
            digits += 1;
            at += 1;
        }
        if digits == 0 {
            return None;
        }
        fraction *= 10i64.pow(9 - digits);
    }
    let offset = match text.get(at)? {
        b'Z' if text.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if text.len() == at + 6 && text[at + 3] == b':' => {
            let (hours, minutes) = (two(text, at + 1)?, two(text, at + 4)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(Timestamp(seconds * 1_000_000_000 + fraction))
}

pub(crate) fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Where the time comes from. Everything outside operators that needs the time asks one of these.
pub trait Clock: Send + Sync {
    /// The wall clock: only to stamp and display, never to measure.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(nanos(since))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is set: for tests and simulation.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Timestamp>,
}

impl ManualClock {
    pub fn new(now: Timestamp) -> Self {
        Self { now: Mutex::new(now) }
    }

    /// Moves the clock; never back.
    pub fn set(&self, now: Timestamp) {
        let mut current = self.now.lock().expect("no holder of this lock panics");
        *current = now.max(*current);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().expect("no holder of this lock panics")
    }

    fn monotonic(&self) -> Duration {
        self.now().since(Timestamp(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_agrees_with_chrono() {
        for text in [
            "2026-11-20T12:00:00Z",
            "2024-02-29 23:59:59.123456789+05:30",
            "2000-01-01T00:00:00.5-00:01",
            "1999-12-31T23:59:59.000001Z",
        ] {
            let expected = DateTime::parse_from_rfc3339(text).unwrap().timestamp_nanos_opt().unwrap();
            assert_eq!(parse_rfc3339_fast(text.as_bytes()), Some(Timestamp(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["2023-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-11-20T24:00:00Z", "2026-11-20", "", "x"] {
            assert_eq!(Timestamp::parse_rfc3339(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_moment_is_written_as_short_as_it_can_be() {
        assert_eq!(Timestamp::from_secs(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp(1_500_000_000).to_string(), "1970-01-01T00:00:01.500Z");
    }
}
