//! Event time out of a field: the formats that people write times in, and where a moment lacks something, what is assumed.
//!
//! Everything here is pure. What a text does not say (the year of a syslog line, the zone of a local time) comes from the
//! record's arrival and from the options, so the same record always gets the same time.

use std::fmt::Write as _;

use chrono::format::{Item, Parsed, StrftimeItems};
use chrono::{DateTime, Datelike, FixedOffset, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;
use vrl::path::OwnedValuePath;

use crate::event::Field;
use crate::time::{Timestamp, days_from_civil, days_in_month, two};

/// Where the event time of a record is, and how it is written.
#[derive(Clone, Debug, Default)]
pub struct TimestampOptions {
    /// `None`: where the codec says, or else the arrival.
    pub path: Option<OwnedValuePath>,
    pub format: TimestampFormat,
    /// The zone of times that do not say theirs.
    pub timezone: Tz,
}

/// How a time is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TimestampFormat {
    /// Any of `Rfc3339`, `Clf` and `Syslog`, told apart by their shape. Numbers are not guessed at.
    #[default]
    Auto,
    /// `2026-11-20T12:00:00.5+01:00`; also with a space for the `T`, a comma before the fraction, or without a zone.
    Rfc3339,
    /// Seconds since 1970 as a number or text, with decimals or without.
    Unix,
    UnixMillis,
    UnixMicros,
    UnixNanos,
    /// The time of access logs: `20/Nov/2026:12:00:00 +0100`.
    Clf,
    /// The time of BSD syslog: `Nov 20 12:00:00`, in the year that puts it nearest before the arrival.
    Syslog,
    /// A strftime pattern.
    Pattern(Pattern),
}

/// A strftime pattern that has been found to say enough.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    items: Vec<Item<'static>>,
    lacks_year: bool,
}

/// How far ahead of its arrival a time without a year may be before it is taken for last year's: clocks differ, and so do
/// time zones that nobody configured.
const AHEAD: i64 = 86_400;

impl TimestampFormat {
    /// Reads the name of a format, or a strftime pattern. The error says what is wrong, in lower case.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "auto" => Self::Auto,
            "rfc3339" => Self::Rfc3339,
            "unix" => Self::Unix,
            "unix_ms" => Self::UnixMillis,
            "unix_us" => Self::UnixMicros,
            "unix_ns" => Self::UnixNanos,
            "clf" => Self::Clf,
            "syslog" => Self::Syslog,
            pattern if pattern.contains('%') => Self::Pattern(Pattern::parse(pattern)?),
            other => return Err(format!("{other:?} is not a format of time")),
        })
    }

    /// What [`Self::parse`] accepts beside patterns, for messages.
    pub const NAMES: [&'static str; 8] = ["auto", "rfc3339", "unix", "unix_ms", "unix_us", "unix_ns", "clf", "syslog"];
}

impl Pattern {
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let Ok(items) = StrftimeItems::new(pattern).parse_to_owned() else {
            return Err(format!("{pattern:?} has a specifier that strftime lacks"));
        };
        let sample = DateTime::from_timestamp(1_795_176_723, 0).expect("a moment of 2026").fixed_offset();
        let mut text = String::new();
        if write!(text, "{}", sample.format_with_items(items.iter())).is_err() {
            return Err(format!("{pattern:?} cannot be read back"));
        }
        let mut parsed = Parsed::new();
        if chrono::format::parse(&mut parsed, &text, items.iter()).is_err() {
            return Err(format!("{pattern:?} cannot be read back"));
        }
        let lacks_year = parsed.timestamp().is_none()
            && parsed.year().is_none()
            && parsed.year_mod_100().is_none()
            && parsed.isoyear().is_none()
            && parsed.isoyear_mod_100().is_none();
        let pattern_checked = Self { items, lacks_year };
        match pattern_checked.event_time(&text, Timestamp::from_datetime(&sample.to_utc()), Tz::UTC) {
            Some(_) => Ok(pattern_checked),
            None => Err(format!("{pattern:?} does not tell a day and a time of day")),
        }
    }

    fn event_time(&self, text: &str, arrival: Timestamp, timezone: Tz) -> Option<Timestamp> {
        let mut parsed = Parsed::new();
        chrono::format::parse(&mut parsed, text, self.items.iter()).ok()?;
        if !self.lacks_year {
            return moment(&parsed, timezone);
        }
        latest_year(arrival, |year| {
            let mut parsed = parsed.clone();
            parsed.set_year(year).ok()?;
            moment(&parsed, timezone)
        })
    }
}

/// The moment that a parsed text tells.
fn moment(parsed: &Parsed, timezone: Tz) -> Option<Timestamp> {
    let datetime: DateTime<FixedOffset> = match parsed.offset() {
        Some(_) => parsed.to_datetime().ok()?,
        None if parsed.timestamp().is_some() => parsed.to_naive_datetime_with_offset(0).ok()?.and_utc().fixed_offset(),
        None => return local(parsed.to_naive_datetime_with_offset(0).ok()?, timezone),
    };
    Some(Timestamp(datetime.timestamp_nanos_opt()?))
}

/// The latest year in which a moment is not more than [`AHEAD`] after the arrival. A 29 February goes back to a leap year.
fn latest_year(arrival: Timestamp, in_year: impl Fn(i64) -> Option<Timestamp>) -> Option<Timestamp> {
    let limit = Timestamp(arrival.0.saturating_add(AHEAD * 1_000_000_000));
    let latest = i64::from(limit.to_datetime().year());
    // Eight years reach the leap year on the other side of 1900 or 2100. One more before that: a local New Year's Eve.
    (latest - 8..=latest + 1).rev().find_map(|year| in_year(year).filter(|time| *time <= limit))
}

/// A local time in a zone. Where the clocks were set back the earlier of its two moments; where they were set forward and it
/// did not exist, what it would have been without that.
fn local(naive: NaiveDateTime, timezone: Tz) -> Option<Timestamp> {
    if timezone == Tz::UTC {
        return naive.and_utc().timestamp_nanos_opt().map(Timestamp);
    }
    let datetime = match timezone.from_local_datetime(&naive) {
        MappedLocalTime::Single(datetime) | MappedLocalTime::Ambiguous(datetime, _) => datetime.to_utc(),
        MappedLocalTime::None => {
            let before = naive.checked_sub_signed(TimeDelta::days(1))?;
            let offset = timezone.offset_from_utc_datetime(&before).fix().local_minus_utc();
            naive.and_utc().checked_sub_signed(TimeDelta::seconds(i64::from(offset)))?
        }
    };
    datetime.timestamp_nanos_opt().map(Timestamp)
}

/// Reads the times of the records of one batch.
#[derive(Debug)]
pub struct TimestampParser<'a> {
    options: &'a TimestampOptions,
    /// Whether reading the same text again is dearer than comparing it.
    remembers: bool,
    last: Vec<u8>,
    last_arrival: Timestamp,
    last_time: Option<Timestamp>,
}

impl TimestampParser<'_> {
    /// As [`TimestampOptions::event_time`]. Times without fractions repeat from record to record, so where reading is slow
    /// (patterns, zones, years to be found) the last one is remembered.
    pub fn event_time(&mut self, field: Field<'_>, arrival: Timestamp) -> Option<Timestamp> {
        let Field::Text(text) = field else { return self.options.event_time(field, arrival) };
        if !self.remembers || text.len() > 64 {
            return self.options.event_time(field, arrival);
        }
        if text != self.last || arrival != self.last_arrival {
            self.last_time = self.options.event_time(field, arrival);
            self.last_arrival = arrival;
            self.last.clear();
            self.last.extend_from_slice(text);
        }
        self.last_time
    }
}

impl TimestampOptions {
    pub fn parser(&self) -> TimestampParser<'_> {
        let is_slow =
            matches!(self.format, TimestampFormat::Auto | TimestampFormat::Syslog | TimestampFormat::Pattern(_));
        TimestampParser {
            options: self,
            remembers: is_slow || self.timezone != Tz::UTC,
            last: Vec::new(),
            last_arrival: Timestamp::MIN,
            // What no text tells: right for the empty text that is remembered at first.
            last_time: None,
        }
    }

    /// The time a field tells; `None` where it is missing or cannot be read. Moments outside of 1678 to 2261 cannot.
    pub fn event_time(&self, field: Field<'_>, arrival: Timestamp) -> Option<Timestamp> {
        let text = match field {
            Field::Time(time) => return Some(time),
            Field::Text(text) => text.trim_ascii(),
            Field::Integer(value) => return self.of_integer(value, arrival),
            Field::Float(value) => return self.of_float(value),
            _ => return None,
        };
        match &self.format {
            TimestampFormat::Auto => match text.first()? {
                b'0'..=b'9' if text.get(4) == Some(&b'-') => parse_iso(text, self.timezone),
                b'0'..=b'9' => parse_clf(text),
                _ => parse_syslog(text)?.at(arrival, self.timezone),
            },
            TimestampFormat::Rfc3339 => parse_iso(text, self.timezone),
            TimestampFormat::Unix => parse_decimal(text, 9),
            TimestampFormat::UnixMillis => parse_decimal(text, 6),
            TimestampFormat::UnixMicros => parse_decimal(text, 3),
            TimestampFormat::UnixNanos => parse_decimal(text, 0),
            TimestampFormat::Clf => parse_clf(text),
            // Relays that were told to write better times do so in the same place.
            TimestampFormat::Syslog => match parse_syslog(text) {
                Some(time) => time.at(arrival, self.timezone),
                None => parse_iso(text, self.timezone),
            },
            TimestampFormat::Pattern(pattern) => {
                pattern.event_time(std::str::from_utf8(text).ok()?, arrival, self.timezone)
            }
        }
    }

    fn of_integer(&self, value: i64, arrival: Timestamp) -> Option<Timestamp> {
        let factor = match &self.format {
            TimestampFormat::Unix => 1_000_000_000,
            TimestampFormat::UnixMillis => 1_000_000,
            TimestampFormat::UnixMicros => 1_000,
            TimestampFormat::UnixNanos => 1,
            TimestampFormat::Pattern(pattern) => return pattern.event_time(&value.to_string(), arrival, self.timezone),
            _ => return None,
        };
        value.checked_mul(factor).map(Timestamp)
    }

    /// Rounded to microseconds: a 64-bit float of today's seconds tells no more, and its further digits are noise.
    fn of_float(&self, value: f64) -> Option<Timestamp> {
        let micros = match &self.format {
            TimestampFormat::Unix => value * 1e6,
            TimestampFormat::UnixMillis => value * 1e3,
            TimestampFormat::UnixMicros => value,
            TimestampFormat::UnixNanos => value / 1e3,
            _ => return None,
        };
        (micros.is_finite() && micros.abs() < 9.2e15).then(|| Timestamp(micros.round() as i64 * 1_000))
    }
}

/// `[-]digits[.digits]` times ten to `exponent`, without going through a float.
fn parse_decimal(text: &[u8], exponent: usize) -> Option<Timestamp> {
    let (is_negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match memchr::memchr(b'.', digits) {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let fraction = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(exponent);
    let mut value = 0i64;
    for digit in whole.iter().copied().chain(fraction) {
        value = value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(Timestamp(if is_negative { -value } else { value }))
}

/// Seconds since 1970 of a date and time that exist, a leap second being the first of the next minute.
fn seconds(year: i64, month: i64, day: i64, time: (i64, i64, i64)) -> Option<i64> {
    let (hour, minute, second) = time;
    let is_valid = (1678..2262).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    is_valid.then(|| days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// `hh:mm:ss` at the start of `text`.
fn time_of_day(text: &[u8]) -> Option<(i64, i64, i64)> {
    if text.len() < 8 || text[2] != b':' || text[5] != b':' {
        return None;
    }
    Some((two(text, 0)?, two(text, 3)?, two(text, 6)?))
}

/// A fraction of a second at the start of `text`, in nanoseconds, and how long it is; further digits are cut off.
fn fraction(text: &[u8]) -> (i64, usize) {
    if !matches!(text.first(), Some(b'.' | b',')) {
        return (0, 0);
    }
    let digits = text[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return (0, 0);
    }
    let nanos = text[1..].iter().copied().take(digits).chain(std::iter::repeat(b'0')).take(9);
    (nanos.fold(0, |value, digit| value * 10 + i64::from(digit - b'0')), digits + 1)
}

/// An offset from UTC in seconds: `Z`, `±hh:mm`, `±hhmm` or `±hh`.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        b"Z" | b"z" | b"UTC" | b"GMT" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest.len() {
        2 => (two(rest, 0)?, 0),
        4 => (two(rest, 0)?, two(rest, 2)?),
        5 if rest[2] == b':' => (two(rest, 0)?, two(rest, 3)?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// RFC 3339 and its relatives: a space, `t` or `_` for the `T`, a comma before the fraction, `+0100`, no zone at all.
pub fn parse_iso(text: &[u8], timezone: Tz) -> Option<Timestamp> {
    if let Some(timestamp) = crate::time::parse_rfc3339_fast(text) {
        return Some(timestamp);
    }
    if text.len() < 19 || text[4] != b'-' || text[7] != b'-' || !matches!(text[10], b'T' | b't' | b' ' | b'_') {
        return None;
    }
    let year = two(text, 0)? * 100 + two(text, 2)?;
    let seconds = seconds(year, two(text, 5)?, two(text, 8)?, time_of_day(&text[11..])?)?;
    let (nanos, len) = fraction(&text[19..]);
    let zone = text[19 + len..].trim_ascii_start();
    if zone.is_empty() {
        let naive = DateTime::from_timestamp(seconds, u32::try_from(nanos).ok()?)?.naive_utc();
        return local(naive, timezone);
    }
    Some(Timestamp((seconds - offset(zone)?) * 1_000_000_000 + nanos))
}

/// The number of an English month's first three letters, in any case.
fn month(text: &[u8]) -> Option<i64> {
    const MONTHS: [&[u8; 3]; 12] =
        [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];
    let name = [text[0] | 0x20, text[1] | 0x20, text[2] | 0x20];
    MONTHS.iter().position(|month| **month == name).map(|at| at as i64 + 1)
}

/// The time of access logs, `20/Nov/2026:12:00:00 +0100`, the fraction of a second being optional.
pub fn parse_clf(text: &[u8]) -> Option<Timestamp> {
    if text.len() < 26 || text[2] != b'/' || text[6] != b'/' || text[11] != b':' {
        return None;
    }
    let year = two(text, 7)? * 100 + two(text, 9)?;
    let seconds = seconds(year, month(&text[3..6])?, two(text, 0)?, time_of_day(&text[12..])?)?;
    let (nanos, len) = fraction(&text[20..]);
    let [b' ', zone @ ..] = &text[20 + len..] else { return None };
    Some(Timestamp((seconds - offset(zone)?) * 1_000_000_000 + nanos))
}

/// A time of BSD syslog, whose year may be unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyslogTime {
    pub year: Option<i64>,
    month: i64,
    day: i64,
    time: (i64, i64, i64),
    nanos: i64,
}

impl SyslogTime {
    /// The moment in a year that the text did not say.
    pub fn in_year(&self, year: i64, timezone: Tz) -> Option<Timestamp> {
        let seconds = seconds(year, self.month, self.day, self.time)?;
        if timezone == Tz::UTC {
            return Some(Timestamp(seconds * 1_000_000_000 + self.nanos));
        }
        local(DateTime::from_timestamp(seconds, u32::try_from(self.nanos).ok()?)?.naive_utc(), timezone)
    }

    /// The moment; without a year, in the year that puts it nearest before the arrival.
    pub fn at(&self, arrival: Timestamp, timezone: Tz) -> Option<Timestamp> {
        match self.year {
            Some(year) => self.in_year(year, timezone),
            None => latest_year(arrival, |year| self.in_year(year, timezone)),
        }
    }
}

/// `Nov 20 12:00:00`, the whole text.
pub fn parse_syslog(text: &[u8]) -> Option<SyslogTime> {
    parse_syslog_prefix(text).filter(|(_, len)| *len == text.len()).map(|(time, _)| time)
}

/// The time of BSD syslog at the start of `text`, and how long it is: `Nov 20 12:00:00`, `Nov  2 …`, `Nov 2 …`, with a year
/// before or after the time of day, with a fraction of a second.
pub fn parse_syslog_prefix(text: &[u8]) -> Option<(SyslogTime, usize)> {
    if text.len() < 14 || text[3] != b' ' {
        return None;
    }
    let month = month(text)?;
    let mut at = if text[4] == b' ' { 5 } else { 4 };
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let day = match digits {
        1 => i64::from(text[at] - b'0'),
        2 => two(text, at)?,
        _ => return None,
    };
    at += digits;
    if text.get(at) != Some(&b' ') {
        return None;
    }
    at += 1;
    let mut year = None;
    if let Some(found) = four_digits(&text[at..]).filter(|_| text.get(at + 4) == Some(&b' ')) {
        year = Some(found);
        at += 5;
    }
    let time = time_of_day(&text[at..])?;
    at += 8;
    let (nanos, len) = fraction(&text[at..]);
    at += len;
    if year.is_none()
        && text.get(at) == Some(&b' ')
        && let Some(found) = four_digits(&text[at + 1..])
        && (1970..2262).contains(&found)
        && text.get(at + 5).is_none_or(|byte| *byte == b' ' || *byte == b':')
    {
        year = Some(found);
        at += 5;
    }
    // In a leap year every day that any year has exists.
    seconds(year.unwrap_or(2000), month, day, time)?;
    Some((SyslogTime { year, month, day, time, nanos }, at))
}

fn four_digits(text: &[u8]) -> Option<i64> {
    if text.len() < 4 {
        return None;
    }
    Some(two(text, 0)? * 100 + two(text, 2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: &str, timezone: &str, field: Field<'_>) -> String {
        let options = TimestampOptions {
            path: None,
            format: TimestampFormat::parse(format).unwrap(),
            timezone: timezone.parse().unwrap(),
        };
        let arrival = Timestamp::parse_rfc3339(b"2026-01-10T12:00:00Z").unwrap();
        options.event_time(field, arrival).map_or_else(|| "none".to_owned(), |time| time.to_string())
    }

    fn text(format: &str, text: &str) -> String {
        read(format, "UTC", Field::Text(text.as_bytes()))
    }

    #[test]
    fn a_time_is_told_by_its_shape() {
        assert_eq!(text("auto", "2026-11-20T12:00:00.25+01:00"), "2026-11-20T11:00:00.250Z");
        assert_eq!(text("auto", "20/Nov/2026:12:00:00 -0330"), "2026-11-20T15:30:00Z");
        assert_eq!(text("auto", "Jan  2 03:04:05"), "2026-01-02T03:04:05Z");
        assert_eq!(text("auto", " 2026-11-20 12:00:00,123 "), "2026-11-20T12:00:00.123Z");
        for no_time in ["", "x", "1700000000", "2026", "20/Nov/2026", "Nov 31 00:00:00", "Foo 11 00:00:00"] {
            assert_eq!(text("auto", no_time), "none", "{no_time}");
        }
        assert_eq!(read("auto", "UTC", Field::Integer(1_700_000_000)), "none");
    }

    #[test]
    fn relatives_of_rfc_3339_are_read() {
        for same in [
            "2026-11-20T12:00:00Z",
            "2026-11-20 12:00:00",
            "2026-11-20t12:00:00z",
            "2026-11-20T13:00:00+0100",
            "2026-11-20T13:00:00+01",
            "2026-11-20 12:00:00 UTC",
            "2026-11-20T12:00:00.0000000000001Z",
            "2026-11-20T11:59:60Z",
        ] {
            assert_eq!(text("rfc3339", same), "2026-11-20T12:00:00Z", "{same}");
        }
        for not in ["2026-02-29T00:00:00Z", "2026-11-20T12:00:00+25:00", "2026-11-20T12:00:00 CET", "2026-11-20T12:00"]
        {
            assert_eq!(text("rfc3339", not), "none", "{not}");
        }
    }

    #[test]
    fn numbers_are_read_by_the_format_alone() {
        assert_eq!(read("unix", "UTC", Field::Integer(1_700_000_000)), "2023-11-14T22:13:20Z");
        assert_eq!(read("unix", "UTC", Field::Float(1_700_000_000.123)), "2023-11-14T22:13:20.123Z");
        assert_eq!(text("unix", "1700000000.123456789"), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(text("unix", "-1.5"), "1969-12-31T23:59:58.500Z");
        assert_eq!(read("unix_ms", "UTC", Field::Integer(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert_eq!(text("unix_us", "1700000000123456"), "2023-11-14T22:13:20.123456Z");
        assert_eq!(text("unix_ns", "1700000000123456789"), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(read("unix", "UTC", Field::Integer(i64::MAX)), "none");
        assert_eq!(read("unix", "UTC", Field::Float(f64::INFINITY)), "none");
        for no_number in ["", "-", ".5", "1e9", "0x10", "99999999999999999999", "1.2.3"] {
            assert_eq!(text("unix", no_number), "none", "{no_number}");
        }
    }

    #[test]
    fn a_year_that_is_not_said_is_the_latest_that_is_not_ahead_of_the_arrival() {
        assert_eq!(text("syslog", "Jan 10 11:59:59"), "2026-01-10T11:59:59Z");
        assert_eq!(text("syslog", "Jan 11 11:00:00"), "2026-01-11T11:00:00Z", "a clock may be ahead");
        assert_eq!(text("syslog", "Jan 11 13:00:00"), "2025-01-11T13:00:00Z");
        assert_eq!(text("syslog", "Dec 31 23:59:59"), "2025-12-31T23:59:59Z");
        assert_eq!(text("syslog", "Feb 29 00:00:00"), "2024-02-29T00:00:00Z");
        assert_eq!(text("%b %d %H:%M:%S", "Dec 31 23:59:59"), "2025-12-31T23:59:59Z");
        assert_eq!(text("syslog", "Mar  7 2008 19:06:53.5"), "2008-03-07T19:06:53.500Z");
        assert_eq!(text("syslog", "Mar 7 19:06:53 2008"), "2008-03-07T19:06:53Z");
    }

    #[test]
    fn local_times_are_of_the_configured_zone() {
        let prague = |time: &str| read("%Y-%m-%d %H:%M:%S", "Europe/Prague", Field::Text(time.as_bytes()));
        assert_eq!(prague("2026-07-01 12:00:00"), "2026-07-01T10:00:00Z");
        assert_eq!(prague("2026-12-01 12:00:00"), "2026-12-01T11:00:00Z");
        assert_eq!(prague("2026-10-25 02:30:00"), "2026-10-25T00:30:00Z", "the earlier of two");
        assert_eq!(prague("2026-03-29 02:30:00"), "2026-03-29T01:30:00Z", "one that did not exist");
        assert_eq!(read("rfc3339", "Europe/Prague", Field::Text(b"2026-07-01T12:00:00")), "2026-07-01T10:00:00Z");
        assert_eq!(read("syslog", "Europe/Prague", Field::Text(b"Jan  1 00:30:00")), "2025-12-31T23:30:00Z");
    }

    #[test]
    fn a_pattern_must_tell_a_moment() {
        assert_eq!(text("%d/%b/%Y:%H:%M:%S %z", "20/Nov/2026:12:00:00 +0100"), "2026-11-20T11:00:00Z");
        assert_eq!(text("%s", "1700000000"), "2023-11-14T22:13:20Z");
        assert_eq!(read("%Y%m%d%H%M%S", "UTC", Field::Integer(20_261_120_120_000)), "2026-11-20T12:00:00Z");
        assert_eq!(text("%Y-%m-%d %H:%M:%S", "2026-11-20"), "none");
        for (pattern, message) in [
            ("%H:%M:%S", "\"%H:%M:%S\" does not tell a day and a time of day"),
            ("%Y-%m-%d", "\"%Y-%m-%d\" does not tell a day and a time of day"),
            ("%Q", "\"%Q\" has a specifier that strftime lacks"),
            ("iso", "\"iso\" is not a format of time"),
        ] {
            assert_eq!(TimestampFormat::parse(pattern).unwrap_err(), message);
        }
    }
}
