//! Notifications that a test expects beside those that would have been sent: which is missing, which is too many, and where the
//! texts of those that belong together differ.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tocsin_config::plan::{ExpectedNotification, Plan, Test};
use tocsin_pipeline::sink::Notification;
use tocsin_pipeline::time::Timestamp;

use crate::replay::text::short;

/// Longer texts are not compared line by line.
const LINES_MAX: usize = 2000;
/// How many lines are shown on each side of what differs.
const AROUND: usize = 3;

/// Something that would have been sent.
pub struct Sent {
    pub at: Timestamp,
    /// The number of the sink.
    pub receiver: usize,
    pub told: Notification,
}

/// What is expected and what was sent of one moment and receiver, as far as there is either.
type Pair<'a> = (Option<&'a ExpectedNotification>, Option<&'a Sent>);

/// Compares what a test expects with what was sent; the text says how they differ. What several receivers are told at one
/// moment has no order.
pub fn check(plan: &Plan, test: &Test, sent: &[Sent]) -> Option<String> {
    let expected = test.notifications.as_ref()?;
    let pairs = pair(expected, sent);
    let is_met = |(want, got): &Pair<'_>| want.zip(*got).is_some_and(|(want, got)| differences(want, got).is_empty());
    if pairs.iter().all(is_met) {
        return None;
    }
    let mut text = format!("{}: other notifications are sent than expected", super::place(&test.place));
    text.push_str("\n  - expected and not sent, + sent and not expected, ~ with another text");
    for (want, got) in pairs {
        let (at, receiver) = match (want, got) {
            (Some(want), _) => (want.at, want.receiver),
            (None, Some(got)) => (got.at, got.receiver),
            (None, None) => unreachable!("a pair has one side at least"),
        };
        let subject =
            got.map_or_else(|| want.and_then(|want| want.subject.as_deref()), |got| got.told.subject.as_deref());
        let subject = subject.map_or(String::new(), |subject| format!(" {subject:?}"));
        let others = want.zip(got).map(|(want, got)| differences(want, got)).unwrap_or_default();
        let mark = match (want, got) {
            (Some(_), None) => '-',
            (None, Some(_)) => '+',
            _ if others.is_empty() => ' ',
            _ => '~',
        };
        let after = short(at.since(test.start));
        write!(text, "\n  {mark} {at} (+{after}) {}{subject}", plan.sinks[receiver].name).expect("writing to a string");
        let lines = match (want, got) {
            (None, Some(got)) => got.told.body.lines().map(str::to_owned).collect(),
            (Some(want), None) => want.body.iter().flat_map(|body| body.lines()).map(str::to_owned).collect(),
            _ => others,
        };
        lines.iter().for_each(|line| write!(text, "\n      {line}").expect("writing to a string"));
    }
    Some(text)
}

/// Puts together what belongs together: of each moment and receiver, what is expected and what was sent, in their order; those
/// with the same text first. Ordered by time.
fn pair<'a>(expected: &'a [ExpectedNotification], sent: &'a [Sent]) -> Vec<Pair<'a>> {
    let mut moments: BTreeMap<(Timestamp, usize), (Vec<_>, Vec<_>)> = BTreeMap::new();
    for want in expected {
        moments.entry((want.at, want.receiver)).or_default().0.push(want);
    }
    for got in sent {
        moments.entry((got.at, got.receiver)).or_default().1.push(got);
    }
    let mut pairs = Vec::new();
    for (mut wanted, mut got) in moments.into_values() {
        let is_in_order = wanted.iter().zip(&got).all(|(want, got)| differences(want, got).is_empty());
        if !is_in_order && wanted.len() != got.len() {
            wanted.retain(|want| match got.iter().position(|got| differences(want, got).is_empty()) {
                Some(same) => {
                    pairs.push((Some(*want), Some(got.remove(same))));
                    false
                }
                None => true,
            });
        }
        let (mut wanted, mut got) = (wanted.into_iter(), got.into_iter());
        loop {
            match (wanted.next(), got.next()) {
                (None, None) => break,
                pair => pairs.push(pair),
            }
        }
    }
    pairs
}

/// How a notification differs from what is expected of it, in lines; none if it does not.
fn differences(want: &ExpectedNotification, got: &Sent) -> Vec<String> {
    let mut lines = Vec::new();
    let subject = got.told.subject.as_deref();
    if let Some(want) = want.subject.as_deref().filter(|want| Some(*want) != subject) {
        let subject = subject.map_or("+ no subject".to_owned(), |subject| format!("+ subject: {subject}"));
        lines.extend([format!("- subject: {want}"), subject]);
    }
    if let Some(want) = want.body.as_deref().filter(|want| *want != got.told.body) {
        lines.extend(unified(want, &got.told.body));
    }
    lines
}

/// Two texts line by line: what is only in the first with `-`, what is only in the second with `+`.
fn unified(one: &str, other: &str) -> Vec<String> {
    let (one, other) = match (one.strip_suffix('\n'), other.strip_suffix('\n')) {
        (Some(one), Some(other)) => (one, other),
        _ => (one, other),
    };
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split('\n').collect(), other.split('\n').collect());
    if one.len().max(other.len()) > LINES_MAX {
        let (one, other) = (one.iter().map(|line| format!("- {line}")), other.iter().map(|line| format!("+ {line}")));
        return one.chain(other).collect();
    }
    let common = lengths(&one, &other);
    let (mut at, mut lines) = ((0, 0), Vec::new());
    while at != (one.len(), other.len()) {
        let (left, right) = at;
        let is_same = left < one.len() && right < other.len() && one[left] == other[right];
        let is_lost = !is_same
            && left < one.len()
            && (right == other.len() || common[left + 1][right] >= common[left][right + 1]);
        let (mark, line) = match (is_same, is_lost) {
            (true, _) => (' ', one[left]),
            (_, true) => ('-', one[left]),
            _ => ('+', other[right]),
        };
        at = (left + usize::from(is_same || is_lost), right + usize::from(!is_lost));
        lines.push((mark, line));
    }
    let is_near = |number: usize| {
        let around = number.saturating_sub(AROUND)..(number + AROUND + 1).min(lines.len());
        lines[around].iter().any(|(mark, _)| *mark != ' ')
    };
    let mut shown: Vec<String> = Vec::new();
    for (number, (mark, line)) in lines.iter().enumerate() {
        match is_near(number) {
            true => shown.push(format!("{mark} {line}").trim_end().to_owned()),
            false if shown.last().is_none_or(|last| last != "  …") => shown.push("  …".to_owned()),
            false => {}
        }
    }
    shown
}

/// How many lines two texts have in common, from each pair of lines on.
fn lengths(one: &[&str], other: &[&str]) -> Vec<Vec<u16>> {
    let mut common = vec![vec![0u16; other.len() + 1]; one.len() + 1];
    for left in (0..one.len()).rev() {
        for right in (0..other.len()).rev() {
            common[left][right] = match one[left] == other[right] {
                true => common[left + 1][right + 1] + 1,
                false => common[left + 1][right].max(common[left][right + 1]),
            };
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn texts_are_compared_line_by_line() {
        let one = "same\n1\n2\n3\n4\n5\n6\nold\nlast\n";
        let other = "same\n1\n2\n3\n4\n5\n6\nnew\nmore\nlast\n";
        expect![[r#"
              …
              4
              5
              6
            - old
            + new
            + more
              last"#]]
        .assert_eq(&unified(one, other).join("\n"));
        assert_eq!(unified("a\nb", "b"), ["- a", "  b"]);
        assert_eq!(unified("", "a"), ["-", "+ a"]);
        assert_eq!(unified("a\n", "a"), ["  a", "-"], "the end of the last line");
    }
}
