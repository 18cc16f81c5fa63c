//! Stretches of time that recur: nights, weekends, the last days of a month. No clock: moments in, yes or no out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use crate::component::Problem;
use chrono::{DateTime, Datelike, NaiveDate, Offset, TimeZone};
use chrono_tz::Tz;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tocsin_pipeline::time::Timestamp;

/// No interval has more entries, no entry more of one kind.
const ENTRIES_MAX: usize = 100;
/// How far ahead a change is looked for.
const AHEAD_MAX: i64 = 5 * 366 * DAY;
const DAY: i64 = 86_400;

/// An interval as it is written: one entry, or a list of them of which one has to hold.
#[derive(Debug, Clone)]
pub struct IntervalOptions {
    entries: Vec<EntryOptions>,
    is_list: bool,
}

/// What is wrong with `intervals`.
pub fn problems(intervals: &BTreeMap<String, IntervalOptions>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, interval) in intervals {
        let option = format!("intervals.{name}");
        if name.is_empty() {
            problems.push(Problem::new(&option, "an interval has no name"));
        }
        problems.extend(interval.problems(&option));
    }
    problems
}

/// When it holds. Each kind that is given must hold; of a kind, one of its ranges. Without any it always holds.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryOptions {
    /// Times of the day, such as `"09:00-17:00"`, the end not included. A night is two: `"22:00-24:00"` and
    /// `"00:00-07:00"`.
    times: Option<Vec<String>>,
    /// Days of the week or ranges of them, such as `"saturday"` and `"monday:friday"`. The week begins on Sunday.
    weekdays: Option<Vec<String>>,
    /// Days of the month or ranges of them, such as `"1"` and `"1:5"`; `"-3:-1"` counts from the end of the month.
    days_of_month: Option<Vec<String>>,
    /// Months or ranges of them, by name or number, such as `"december"` and `"6:8"`.
    months: Option<Vec<String>>,
    /// Years or ranges of them, such as `"2026"` and `"2026:2028"`.
    years: Option<Vec<String>>,
    /// The time zone, such as `"Europe/Berlin"`. Default: `"UTC"`.
    location: Option<String>,
}

impl<'de> Deserialize<'de> for IntervalOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = IntervalOptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table such as `{ weekdays = [\"saturday\"] }`, or a list of such")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<IntervalOptions, A::Error> {
                let entry = EntryOptions::deserialize(MapAccessDeserializer::new(map))?;
                Ok(IntervalOptions { entries: vec![entry], is_list: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<IntervalOptions, A::Error> {
                let entries = Vec::deserialize(SeqAccessDeserializer::new(values))?;
                Ok(IntervalOptions { entries, is_list: true })
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for IntervalOptions {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IntervalOptions".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let entry = generator.subschema_for::<EntryOptions>();
        json_schema!({ "anyOf": [entry, { "type": "array", "items": entry }] })
    }
}

impl IntervalOptions {
    /// What is wrong with it; `option` is where it stands.
    pub fn problems(&self, option: &str) -> Vec<Problem> {
        if self.entries.is_empty() {
            return vec![Problem::new(option, "an interval without entries never holds")];
        }
        if self.entries.len() > ENTRIES_MAX {
            return vec![Problem::new(option, format!("an interval has at most {ENTRIES_MAX} entries"))];
        }
        let mut problems = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let option = if self.is_list { format!("{option}[{at}]") } else { option.to_owned() };
            entry.read(&option, &mut problems);
        }
        problems
    }

    /// As it is written.
    pub fn to_json(&self) -> serde_json::Value {
        let mut entries = serde_json::to_value(&self.entries).expect("lists of texts");
        let tables = entries.as_array_mut().into_iter().flatten().filter_map(serde_json::Value::as_object_mut);
        tables.for_each(|table| table.retain(|_, value| !value.is_null()));
        entries
    }

    /// Only called when there are no problems.
    pub fn build(&self) -> Interval {
        Interval { entries: self.entries.iter().map(|entry| entry.read("", &mut Vec::new())).collect() }
    }
}

impl EntryOptions {
    /// What is written, and what is wrong with it.
    fn read(&self, option: &str, problems: &mut Vec<Problem>) -> Entry {
        let location = self.location.as_deref().unwrap_or("UTC").parse().unwrap_or_else(|_| {
            let name = self.location.as_deref().unwrap_or_default();
            problems.push(
                Problem::new(format!("{option}.location"), format!("{name:?} is not a time zone"))
                    .help("write a name such as \"Europe/Berlin\""),
            );
            Tz::UTC
        });
        Entry {
            location,
            times: ranges(option, "times", self.times.as_ref(), times, problems),
            weekdays: ranges(option, "weekdays", self.weekdays.as_ref(), weekdays, problems),
            days_of_month: ranges(option, "days_of_month", self.days_of_month.as_ref(), days_of_month, problems),
            months: ranges(option, "months", self.months.as_ref(), months, problems),
            years: ranges(option, "years", self.years.as_ref(), years, problems),
        }
    }
}

/// Both ends are part of it.
type Range = RangeInclusive<i32>;

fn ranges(
    option: &str,
    kind: &str,
    texts: Option<&Vec<String>>,
    read: fn(&str) -> Result<Range, String>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<Range>> {
    let texts = texts?;
    if texts.is_empty() {
        problems.push(Problem::new(format!("{option}.{kind}"), "an empty list never holds").help("leave it out"));
    }
    if texts.len() > ENTRIES_MAX {
        problems.push(Problem::new(format!("{option}.{kind}"), format!("there are more than {ENTRIES_MAX}")));
    }
    let mut ranges = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        match read(text) {
            Ok(range) => ranges.push(range),
            Err(message) => problems.push(Problem::new(format!("{option}.{kind}[{at}]"), message)),
        }
    }
    Some(ranges)
}

/// `09:00-17:00` as the minutes of the day in it.
fn times(text: &str) -> Result<Range, String> {
    let bad = || format!("{text:?} is not a range of times; write \"09:00-17:00\"");
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end) = minute(start).zip(minute(end)).ok_or_else(bad)?;
    if start < end {
        return Ok(start..=end - 1);
    }
    if start == end {
        return Err(format!("{text:?} ends where it begins; the whole day is \"00:00-24:00\""));
    }
    let (from, to) = text.split_once('-').ok_or_else(bad)?;
    Err(format!("{text:?} ends before it begins; write two ranges, \"{from}-24:00\" and \"00:00-{to}\""))
}

/// `hh:mm` up to `24:00`.
fn minute(text: &str) -> Option<i32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |text: &str| (text.len() == 2).then(|| text.bytes().all(|digit| digit.is_ascii_digit())).filter(|is| *is);
    two(hours).and(two(minutes))?;
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && (hours < 24 || (hours, minutes) == (24, 0))).then_some(hours * 60 + minutes)
}

const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// One value, or two with a colon between them.
fn ends(text: &str, member: impl Fn(&str) -> Result<i32, String>) -> Result<(i32, i32), String> {
    let text = text.to_lowercase();
    match text.split_once(':') {
        Some((begin, end)) => Ok((member(begin)?, member(end)?)),
        None => member(&text).map(|value| (value, value)),
    }
}

fn weekdays(text: &str) -> Result<Range, String> {
    let member = |name: &str| {
        let place = (0..).zip(WEEKDAYS).find(|(_, known)| *known == name).map(|(place, _)| place);
        place.ok_or_else(|| format!("{name:?} is not a day of the week; write \"monday\" or \"monday:friday\""))
    };
    let (begin, end) = ends(text, member)?;
    if begin > end {
        return Err(format!("{text:?} ends before it begins, since the week begins on Sunday; write two ranges"));
    }
    Ok(begin..=end)
}

fn days_of_month(text: &str) -> Result<Range, String> {
    let member = |day: &str| match day.parse::<i32>() {
        Ok(day) if day != 0 && (-31..=31).contains(&day) => Ok(day),
        _ => Err(format!("{day:?} is not a day of the month; write 1 to 31, or -1 to -31 from its end")),
    };
    let (begin, end) = ends(text, member)?;
    if begin < 0 && end > 0 {
        return Err(format!("{text:?} begins before the end of a month and ends in its beginning; write two ranges"));
    }
    // Of a range that begins at the one end and ends at the other it cannot be said for all months. What is wrong even
    // in the shortest is.
    let least = |day: i32| if day < 0 { 28 + day } else { day };
    if least(begin) > least(end) {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(begin..=end)
}

fn months(text: &str) -> Result<Range, String> {
    let member = |name: &str| {
        let named = (1..).zip(MONTHS).find(|(_, known)| *known == name).map(|(month, _)| month);
        let month = named.or_else(|| name.parse().ok().filter(|month| (1..=12).contains(month)));
        month.ok_or_else(|| format!("{name:?} is not a month; write \"march\", \"3\" or \"march:may\""))
    };
    let (begin, end) = ends(text, member)?;
    if begin > end {
        return Err(format!("{text:?} ends before it begins; write two ranges, up to december and from january"));
    }
    Ok(begin..=end)
}

fn years(text: &str) -> Result<Range, String> {
    let member = |year: &str| match year.parse::<i32>() {
        Ok(year) if (0..=9999).contains(&year) => Ok(year),
        _ => Err(format!("{year:?} is not a year; write \"2026\" or \"2026:2028\"")),
    };
    let (begin, end) = ends(text, member)?;
    if begin > end {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(begin..=end)
}

/// Stretches of time that recur, ready to be asked.
#[derive(Debug, Clone)]
pub struct Interval {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    location: Tz,
    /// In minutes of the day.
    times: Option<Vec<Range>>,
    weekdays: Option<Vec<Range>>,
    days_of_month: Option<Vec<Range>>,
    months: Option<Vec<Range>>,
    years: Option<Vec<Range>>,
}

impl Interval {
    pub fn contains(&self, time: Timestamp) -> bool {
        self.holds(second(time))
    }

    /// The first moment after this one at which it holds and did not before, or the other way round. `None` if that is
    /// more than five years ahead.
    pub fn next_change(&self, time: Timestamp) -> Option<Timestamp> {
        let start = second(time);
        let is_now = self.holds(start);
        let mut at = start;
        loop {
            at = self.entries.iter().filter_map(|entry| entry.next_boundary(at)).min()?;
            if at - start > AHEAD_MAX {
                return None;
            }
            if self.holds(at) != is_now {
                return at.checked_mul(1_000_000_000).map(Timestamp);
            }
        }
    }

    fn holds(&self, second: i64) -> bool {
        self.entries.iter().any(|entry| entry.holds(&Local::at(entry.location, second)))
    }
}

/// The second that a moment is in: no interval begins or ends within one.
fn second(time: Timestamp) -> i64 {
    time.0.div_euclid(1_000_000_000)
}

/// How far the clocks of a place are ahead of UTC, in seconds.
fn ahead(location: Tz, second: i64) -> i64 {
    let moment = DateTime::from_timestamp(second, 0).unwrap_or_default();
    i64::from(location.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc())
}

/// What the clocks and calendars of a place show.
struct Local {
    /// Days since 1970-01-01.
    day: i64,
    second_of_day: i64,
    date: NaiveDate,
}

impl Local {
    fn at(location: Tz, second: i64) -> Self {
        let shown = second.saturating_add(ahead(location, second));
        let day = shown.div_euclid(DAY);
        let date = DateTime::from_timestamp(day * DAY, 0).unwrap_or_default().date_naive();
        Self { day, second_of_day: shown.rem_euclid(DAY), date }
    }
}

fn is_within(ranges: &Option<Vec<Range>>, value: i32) -> bool {
    ranges.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&value)))
}

impl Entry {
    fn holds(&self, local: &Local) -> bool {
        let minute = i32::try_from(local.second_of_day / 60).unwrap_or_default();
        is_within(&self.times, minute) && self.holds_on(local.date)
    }

    fn holds_on(&self, date: NaiveDate) -> bool {
        is_within(&self.years, date.year())
            && is_within(&self.months, number(date.month()))
            && is_within(&self.weekdays, number(date.weekday().num_days_from_sunday()))
            && self.holds_in_month(date)
    }

    fn holds_in_month(&self, date: NaiveDate) -> bool {
        let Some(ranges) = &self.days_of_month else { return true };
        let (day, length) = (number(date.day()), i32::from(date.num_days_in_month()));
        let counted = |day: i32| if day < 0 { length + day + 1 } else { day };
        ranges.iter().any(|range| {
            let (begin, end) = (counted(*range.start()), counted(*range.end()));
            // A range that begins after the end of a month does not hold in it; the end may be beyond.
            begin <= length && (begin..=end).contains(&day)
        })
    }

    /// A later moment before which nothing changes for this entry; not each is one at which something does.
    fn next_boundary(&self, second: i64) -> Option<i64> {
        let limits = [&self.times, &self.weekdays, &self.days_of_month, &self.months, &self.years];
        if limits.iter().all(|limit| limit.is_none()) {
            return None;
        }
        let offset = ahead(self.location, second);
        let local = Local::at(self.location, second);
        let shown = match self.skipped(&local) {
            Some(shown) => shown,
            None => {
                let midnight = (local.day + 1) * DAY;
                let is_day = self.holds_on(local.date);
                let ends = self.times.iter().flatten().filter(|_| is_day);
                let ends = ends.flat_map(|range| [*range.start(), *range.end() + 1]);
                let ends = ends.map(|minute| local.day * DAY + i64::from(minute) * 60);
                ends.filter(|end| *end > second + offset).chain([midnight]).min()?
            }
        };
        let boundary = shown - offset;
        if ahead(self.location, boundary) == offset {
            return Some(boundary);
        }
        // The clocks are put forward or back before then: that moment is a boundary too, since what they show leaps.
        let (mut before, mut after) = (second, boundary);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if ahead(self.location, middle) == offset {
                before = middle;
            } else {
                after = middle;
            }
        }
        Some(after)
    }

    /// Where nothing can hold before the next year or month: what clocks show two days before it begins, unless that is
    /// over. Two days are more than clocks are ever put forward.
    fn skipped(&self, local: &Local) -> Option<i64> {
        let next = if !is_within(&self.years, local.date.year()) {
            NaiveDate::from_ymd_opt(local.date.year() + 1, 1, 1)
        } else if !is_within(&self.months, number(local.date.month())) {
            local.date.with_day(1).and_then(|first| first.checked_add_months(chrono::Months::new(1)))
        } else {
            None
        };
        let shown = next?.and_hms_opt(0, 0, 0)?.and_utc().timestamp() - 2 * DAY;
        (shown > (local.day + 1) * DAY).then_some(shown)
    }
}

fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
