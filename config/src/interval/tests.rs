use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn read(toml: &str) -> IntervalOptions {
    #[derive(Deserialize)]
    struct File {
        it: IntervalOptions,
    }
    toml::from_str::<File>(toml).unwrap().it
}

fn moment(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text.as_bytes()).unwrap()
}

/// The moments at which it changes after `from`, in the clocks of `location`.
#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(toml: &str, location: Tz, from: &str, count: usize, expected: Expect) {
    let options = read(toml);
    assert_eq!(options.problems("it"), []);
    let interval = options.build();
    let mut at = moment(from);
    let mut text = format!("{}\n", if interval.contains(at) { "holds" } else { "does not hold" });
    for _ in 0..count {
        let Some(next) = interval.next_change(at) else {
            text += "never again\n";
            break;
        };
        assert_ne!(interval.contains(Timestamp(next.0 - 1)), interval.contains(next), "{next}");
        let shown = next.to_datetime().with_timezone(&location).to_rfc3339();
        text += &format!("{} at {shown}\n", if interval.contains(next) { "begins" } else { "ends" });
        at = next;
    }
    expected.assert_eq(&text);
}

#[test]
fn it_changes_when_the_clocks_of_its_place_say_so() {
    check(
        r#"it = { times = ["22:00-24:00", "00:00-07:00"] }"#,
        Tz::UTC,
        "2026-11-20T12:00:00.5Z",
        3,
        expect![[r#"
            does not hold
            begins at 2026-11-20T22:00:00+00:00
            ends at 2026-11-21T07:00:00+00:00
            begins at 2026-11-21T22:00:00+00:00
        "#]],
    );
    check(
        r#"it = { weekdays = ["monday:friday"], times = ["09:00-17:00"], location = "Europe/Berlin" }"#,
        Tz::Europe__Berlin,
        "2026-11-20T15:59:59.999999999Z",
        3,
        expect![[r#"
            holds
            ends at 2026-11-20T17:00:00+01:00
            begins at 2026-11-23T09:00:00+01:00
            ends at 2026-11-23T17:00:00+01:00
        "#]],
    );
    check(
        r#"
        it = [
            { weekdays = ["saturday", "sunday"], location = "America/New_York" },
            { days_of_month = ["-1"], months = ["december"] },
            { months = ["1"], days_of_month = ["1"] },
        ]"#,
        Tz::UTC,
        "2026-12-28T12:00:00Z",
        4,
        expect![[r#"
            does not hold
            begins at 2026-12-31T00:00:00+00:00
            ends at 2027-01-02T00:00:00+00:00
            begins at 2027-01-02T05:00:00+00:00
            ends at 2027-01-04T05:00:00+00:00
        "#]],
    );
}

#[test]
fn clocks_that_are_put_forward_or_back_are_followed() {
    // 02:00 to 03:00 does not exist on 2026-03-29, and is there twice on 2026-10-25.
    check(
        r#"it = { times = ["02:30-04:00"], months = ["march"], location = "Europe/Berlin" }"#,
        Tz::Europe__Berlin,
        "2026-03-28T12:00:00Z",
        4,
        expect![[r#"
            does not hold
            begins at 2026-03-29T03:00:00+02:00
            ends at 2026-03-29T04:00:00+02:00
            begins at 2026-03-30T02:30:00+02:00
            ends at 2026-03-30T04:00:00+02:00
        "#]],
    );
    check(
        r#"it = { times = ["02:10-02:30"], location = "Europe/Berlin" }"#,
        Tz::Europe__Berlin,
        "2026-10-24T12:00:00Z",
        6,
        expect![[r#"
            does not hold
            begins at 2026-10-25T02:10:00+02:00
            ends at 2026-10-25T02:30:00+02:00
            begins at 2026-10-25T02:10:00+01:00
            ends at 2026-10-25T02:30:00+01:00
            begins at 2026-10-26T02:10:00+01:00
            ends at 2026-10-26T02:30:00+01:00
        "#]],
    );
    check(
        r#"it = { weekdays = ["monday:friday"], times = ["09:00-17:00"], months = ["11"], location = "Australia/Sydney" }"#,
        Tz::Australia__Sydney,
        "2021-10-31T21:00:00Z",
        2,
        expect![[r#"
            does not hold
            begins at 2021-11-01T09:00:00+11:00
            ends at 2021-11-01T17:00:00+11:00
        "#]],
    );
    // A day that begins at 01:00, and one that was left out.
    check(
        r#"it = { days_of_month = ["4"], months = ["11"], years = ["2018"], location = "America/Sao_Paulo" }"#,
        Tz::America__Sao_Paulo,
        "2018-01-01T00:00:00Z",
        3,
        expect![[r#"
            does not hold
            begins at 2018-11-04T01:00:00-02:00
            ends at 2018-11-05T00:00:00-02:00
            never again
        "#]],
    );
    check(
        r#"it = { weekdays = ["friday"], location = "Pacific/Apia" }"#,
        Tz::Pacific__Apia,
        "2011-12-24T12:00:00Z",
        3,
        expect![[r#"
            does not hold
            begins at 2012-01-06T00:00:00+14:00
            ends at 2012-01-07T00:00:00+14:00
            begins at 2012-01-13T00:00:00+14:00
        "#]],
    );
}

#[test]
fn a_change_that_never_comes_is_not_waited_for() {
    check(
        "it = {}",
        Tz::UTC,
        "2026-01-01T00:00:00Z",
        1,
        expect![[r#"
        holds
        never again
    "#]],
    );
    check(
        r#"it = { days_of_month = ["1:-1"] }"#,
        Tz::UTC,
        "2026-01-01T00:00:00Z",
        1,
        expect![[r#"
        holds
        never again
    "#]],
    );
    check(
        r#"it = { days_of_month = ["30"], months = ["february"] }"#,
        Tz::UTC,
        "2026-01-01T00:00:00Z",
        1,
        expect![[r#"
        does not hold
        never again
    "#]],
    );
    check(
        r#"it = { years = ["2025"] }"#,
        Tz::UTC,
        "2025-06-01T00:00:00Z",
        2,
        expect![[r#"
        holds
        ends at 2026-01-01T00:00:00+00:00
        never again
    "#]],
    );
    check(
        r#"it = { years = ["2036"] }"#,
        Tz::UTC,
        "2026-01-01T00:00:00Z",
        1,
        expect![[r#"
        does not hold
        never again
    "#]],
    );
    let interval = read(r#"it = { weekdays = ["friday"] }"#).build();
    for end in [Timestamp::MIN, Timestamp::MAX, Timestamp(0)] {
        interval.contains(end);
        interval.next_change(end);
    }
}

#[test]
fn what_cannot_be_is_told() {
    let problems = read(
        r#"
        it = [
            { times = ["9:00-17:00", "22:00-07:00", "10:00-10:00", "24:00-24:01", "09:00", "01:99-02:00"] },
            { weekdays = ["friday:monday", "1:3", "mon"], location = "Berlin" },
            { days_of_month = ["0", "1:50", "-15:5", "-1:-5", "20:-20", "a"], months = ["junius", "13", "december:january"] },
            { years = ["2022:2020", "x"], months = [], times = ["00:00-24:00"] },
        ]"#,
    )
    .problems("intervals.it");
    let told = problems.iter().map(|problem| {
        format!(
            "{}: {}{}\n",
            problem.option,
            problem.message,
            problem.help.as_ref().map_or(String::new(), |help| format!(" ({help})"))
        )
    });
    expect![[r#"
        intervals.it[0].times[0]: "9:00-17:00" is not a range of times; write "09:00-17:00"
        intervals.it[0].times[1]: "22:00-07:00" ends before it begins; write two ranges, "22:00-24:00" and "00:00-07:00"
        intervals.it[0].times[2]: "10:00-10:00" ends where it begins; the whole day is "00:00-24:00"
        intervals.it[0].times[3]: "24:00-24:01" is not a range of times; write "09:00-17:00"
        intervals.it[0].times[4]: "09:00" is not a range of times; write "09:00-17:00"
        intervals.it[0].times[5]: "01:99-02:00" is not a range of times; write "09:00-17:00"
        intervals.it[1].location: "Berlin" is not a time zone (write a name such as "Europe/Berlin")
        intervals.it[1].weekdays[0]: "friday:monday" ends before it begins, since the week begins on Sunday; write two ranges
        intervals.it[1].weekdays[1]: "1" is not a day of the week; write "monday" or "monday:friday"
        intervals.it[1].weekdays[2]: "mon" is not a day of the week; write "monday" or "monday:friday"
        intervals.it[2].days_of_month[0]: "0" is not a day of the month; write 1 to 31, or -1 to -31 from its end
        intervals.it[2].days_of_month[1]: "50" is not a day of the month; write 1 to 31, or -1 to -31 from its end
        intervals.it[2].days_of_month[2]: "-15:5" begins before the end of a month and ends in its beginning; write two ranges
        intervals.it[2].days_of_month[3]: "-1:-5" ends before it begins
        intervals.it[2].days_of_month[4]: "20:-20" ends before it begins
        intervals.it[2].days_of_month[5]: "a" is not a day of the month; write 1 to 31, or -1 to -31 from its end
        intervals.it[2].months[0]: "junius" is not a month; write "march", "3" or "march:may"
        intervals.it[2].months[1]: "13" is not a month; write "march", "3" or "march:may"
        intervals.it[2].months[2]: "december:january" ends before it begins; write two ranges, up to december and from january
        intervals.it[3].months: an empty list never holds (leave it out)
        intervals.it[3].years[0]: "2022:2020" ends before it begins
        intervals.it[3].years[1]: "x" is not a year; write "2026" or "2026:2028"
    "#]].assert_eq(&told.collect::<String>());
    assert_eq!(read("it = []").problems("it").len(), 1);
    expect![[r#"
        TOML parse error at line 1, column 1
          |
        1 | day = []
          | ^^^
        unknown field `day`, expected one of `times`, `weekdays`, `days_of_month`, `months`, `years`, `location`
    "#]]
    .assert_eq(&toml::from_str::<IntervalOptions>("day = []").unwrap_err().to_string());
}

proptest! {
    /// Against looking at every minute.
    #[test]
    fn the_next_change_is_the_first(
        times in proptest::collection::vec((0i32..24, 0i32..60, 1i32..300), 0..3),
        weekdays in proptest::collection::vec(0usize..7, 0..3),
        days in proptest::collection::vec((1i32..29, 0i32..5), 0..3),
        place in 0usize..6,
        start in 1_200_000_000i64..1_900_000_000,
    ) {
        let minute = |minute: i32| format!("{:02}:{:02}", minute / 60, minute % 60);
        let times: Vec<_> = times.iter().map(|(hour, past, length)| {
            let start = hour * 60 + past;
            format!("{}-{}", minute(start), minute((start + length).min(1440)))
        }).collect();
        let weekdays: Vec<_> = weekdays.iter().map(|day| WEEKDAYS[*day].to_owned()).collect();
        let days: Vec<_> = days.iter().map(|(day, length)| format!("{day}:{}", day + length)).collect();
        let given = |texts: Vec<String>| Some(texts).filter(|texts| !texts.is_empty());
        let places = [
            "UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana",
        ];
        let entry = EntryOptions {
            times: given(times),
            weekdays: given(weekdays),
            days_of_month: given(days),
            months: None,
            years: None,
            location: Some(places[place].to_owned()),
        };
        let interval = IntervalOptions { entries: vec![entry], is_list: false }.build();
        let is_now = interval.contains(Timestamp::from_secs(start));
        let first = (start / 60 + 1..start / 60 + 7 * 1440)
            .map(|minute| Timestamp::from_secs(minute * 60))
            .find(|moment| interval.contains(*moment) != is_now);
        let told = interval.next_change(Timestamp::from_secs(start));
        match first {
            Some(first) => prop_assert_eq!(told, Some(first)),
            None => prop_assert!(told.is_none_or(|told| told >= Timestamp::from_secs(start + 6 * DAY))),
        }
    }
}
