//! What matchers can be true of: whether one follows from others, whether some can be true together. What is said is certain; where
//! patterns are too much to reason about, nothing is said.

use std::collections::{BTreeMap, BTreeSet};

use regex_syntax::hir::{Class, Hir, HirKind};

use crate::matcher::{Matcher, Matchers, Relation};

/// So many alternatives of a pattern are looked at.
const ALTERNATIVES_MAX: usize = 100;

/// The label that every alert has: the name of its rule.
pub(super) const RULE: &str = "alertname";

/// What the labels of an alert can be.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels {
    /// What each label can say; `None`: nobody knows.
    pub(super) values: BTreeMap<String, Option<Vec<String>>>,
    /// Whether there may be others.
    pub(super) is_open: bool,
}

impl Labels {
    /// What a label can say; one that is not there is empty.
    pub(super) fn of(&self, name: &str) -> Option<Vec<String>> {
        match self.values.get(name) {
            Some(values) => values.clone(),
            None if self.is_open => None,
            None => Some(vec![String::new()]),
        }
    }

    /// Whether an alert with such labels may have this one.
    pub(super) fn may_have(&self, name: &str) -> bool {
        self.is_open || self.values.contains_key(name)
    }

    /// Whether all matchers may be true of such an alert.
    pub(super) fn may_match(&self, matchers: &[&Matcher]) -> bool {
        by_label(matchers).into_iter().all(|(name, of_label)| match self.of(name) {
            Some(values) => values.iter().any(|value| of_label.iter().all(|matcher| matcher.is_true_of(value))),
            None => is_possible(&of_label),
        })
    }

    /// Whether all matchers are true of every such alert.
    pub(super) fn must_match(&self, matchers: &[&Matcher]) -> bool {
        matchers.iter().all(|matcher| match self.of(&matcher.name) {
            Some(values) => values.iter().all(|value| matcher.is_true_of(value)),
            None => is_universal(matcher),
        })
    }
}

pub(super) fn all(matchers: &Matchers) -> Vec<&Matcher> {
    matchers.0.iter().collect()
}

fn by_label<'m>(matchers: &[&'m Matcher]) -> BTreeMap<&'m str, Vec<&'m Matcher>> {
    let mut labels: BTreeMap<&str, Vec<&Matcher>> = BTreeMap::new();
    for matcher in matchers {
        labels.entry(&matcher.name).or_default().push(matcher);
    }
    labels
}

/// The values that a matcher is true of, where they can be listed.
fn listed(matcher: &Matcher) -> Option<BTreeSet<String>> {
    match matcher.relation {
        Relation::Equal => Some(BTreeSet::from([matcher.value.clone()])),
        Relation::Matches => {
            let mut values = BTreeSet::new();
            literals(&regex_syntax::parse(&matcher.value).ok()?, &mut values).then_some(values)
        }
        Relation::NotEqual | Relation::MatchesNot => None,
    }
}

/// Adds the texts that a pattern matches as a whole, if they are few and can be listed.
fn literals(pattern: &Hir, values: &mut BTreeSet<String>) -> bool {
    match pattern.kind() {
        HirKind::Empty => {
            values.insert(String::new());
            true
        }
        HirKind::Literal(text) => match std::str::from_utf8(&text.0) {
            Ok(text) => {
                values.insert(text.to_owned());
                values.len() <= ALTERNATIVES_MAX
            }
            Err(_) => false,
        },
        HirKind::Capture(group) => literals(&group.sub, values),
        HirKind::Alternation(branches) => branches.iter().all(|branch| literals(branch, values)),
        // `ab|ac` is parsed as `a(?:b|c)`.
        HirKind::Concat(parts) => {
            let mut heads = BTreeSet::from([String::new()]);
            for part in parts {
                let mut tails = BTreeSet::new();
                if !literals(part, &mut tails) || heads.len() * tails.len() > ALTERNATIVES_MAX {
                    return false;
                }
                heads = heads.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect();
            }
            values.extend(heads);
            values.len() <= ALTERNATIVES_MAX
        }
        HirKind::Class(Class::Unicode(class)) => {
            let letters = class.ranges().iter().flat_map(|range| range.start()..=range.end());
            let letters: Vec<_> = letters.take(ALTERNATIVES_MAX + 1).map(String::from).collect();
            values.extend(letters);
            values.len() <= ALTERNATIVES_MAX
        }
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) | HirKind::Repetition(_) => false,
    }
}

/// Whether a matcher is true of every value that its label can have.
pub(super) fn is_universal(matcher: &Matcher) -> bool {
    let is_there = matcher.name == RULE;
    match matcher.relation {
        Relation::Equal => false,
        Relation::NotEqual => is_there && matcher.value.is_empty(),
        Relation::Matches => match regex_syntax::parse(&matcher.value) {
            Ok(pattern) => is_anything(&pattern, is_there),
            Err(_) => false,
        },
        Relation::MatchesNot => is_there && matcher.value.is_empty(),
    }
}

/// Whether a pattern matches any text; `is_there`: any that is not empty.
fn is_anything(pattern: &Hir, is_there: bool) -> bool {
    match pattern.kind() {
        HirKind::Capture(group) => is_anything(&group.sub, is_there),
        HirKind::Alternation(branches) => branches.iter().any(|branch| is_anything(branch, is_there)),
        HirKind::Repetition(repetition) => {
            let is_any_letter = match repetition.sub.kind() {
                // `.` leaves out the end of a line, which no label is about.
                HirKind::Class(Class::Unicode(class)) => {
                    let (first, last) = (class.ranges().first(), class.ranges().last());
                    class.ranges().len() <= 2
                        && first.is_some_and(|range| range.start() == '\0' && range.end() >= '\t')
                        && last.is_some_and(|range| range.start() <= '\u{b}' && range.end() == char::MAX)
                }
                _ => false,
            };
            is_any_letter && repetition.max.is_none() && repetition.min <= u32::from(is_there)
        }
        _ => false,
    }
}

/// Whether a value of one label may be that all matchers, all of that label, are true of.
fn is_possible(of_label: &[&Matcher]) -> bool {
    if let Some(values) = of_label.iter().find_map(|matcher| listed(matcher)) {
        return values.iter().any(|value| of_label.iter().all(|matcher| matcher.is_true_of(value)));
    }
    // Nothing is listed, so only what is said and denied in the same words excludes itself.
    !of_label.iter().any(|one| {
        of_label.iter().any(|other| {
            one.value == other.value
                && matches!(
                    (one.relation, other.relation),
                    (Relation::Equal, Relation::NotEqual) | (Relation::Matches, Relation::MatchesNot)
                )
        })
    })
}

/// The label of which no value can be that all matchers are true of.
pub(super) fn contradiction<'m>(matchers: &[&'m Matcher]) -> Option<&'m str> {
    by_label(matchers).into_iter().find(|(_, of_label)| !is_possible(of_label)).map(|(name, _)| name)
}

/// Whether one matcher is true wherever all of the others are.
fn follows(matcher: &Matcher, from: &[&Matcher]) -> bool {
    if is_universal(matcher) || from.contains(&matcher) {
        return true;
    }
    let of_label: Vec<_> = from.iter().copied().filter(|other| other.name == matcher.name).collect();
    let Some(values) = of_label.iter().find_map(|other| listed(other)) else { return false };
    let mut values = values.iter().filter(|value| of_label.iter().all(|other| other.is_true_of(value)));
    values.all(|value| matcher.is_true_of(value))
}

/// Whether all of some matchers are true wherever all of the others are.
pub(super) fn all_follow(matchers: &[&Matcher], from: &[&Matcher]) -> bool {
    matchers.iter().all(|matcher| follows(matcher, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matchers(text: &str) -> Matchers {
        Matchers::parse(text).unwrap()
    }

    #[test]
    fn what_follows_from_matchers_is_known() {
        for (from, to, is_known) in [
            ("a=x", "a=x", true),
            ("a=x", "", true),
            ("", "a=x", false),
            ("a=x,b=y", "b=y", true),
            ("a=x", "a=~\"x|y\"", true),
            ("a=~\"x|y\"", "a=x", false),
            ("a=~\"xa|xb\"", "a=~\"x.\"", true),
            ("a=~\"web-[12]\"", "a!=\"db\"", true),
            ("a=x", "a!=y", true),
            ("a!=x", "a!=x", true),
            ("a!=x", "a!=y", false),
            ("a=~\"x.*\"", "a=~\"x.*\"", true),
            ("a=~\"x.*\"", "a!=y", false),
            ("b=1", "a=~\".*\"", true),
            ("b=1", "alertname=~\".+\"", true),
            ("b=1", "a=~\".+\"", false),
        ] {
            let (from, to) = (matchers(from), matchers(to));
            assert_eq!(all_follow(&all(&to), &all(&from)), is_known, "{from} -> {to}");
        }
    }

    #[test]
    fn what_excludes_itself_is_known() {
        for (text, label) in [
            ("a=x,a=y", Some("a")),
            ("a=x,a!=x", Some("a")),
            ("a=~\"x|y\",a=~\"z|u\"", Some("a")),
            ("b=1,a=x,a!~\"x.*\"", Some("a")),
            ("a=~\"x.*\",a!~\"x.*\"", Some("a")),
            ("a=x,b=y", None),
            ("a=~\"x|y\",a!=x", None),
            ("a=~\"x.*\",a!~\"y.*\"", None),
            ("a!=x,a!=y", None),
        ] {
            let text = matchers(text);
            assert_eq!(contradiction(&all(&text)), label, "{text}");
        }
    }

    #[test]
    fn what_matches_everything_is_known() {
        for (text, is) in [
            ("a=~\".*\"", true),
            ("a=~\"(.*)\"", true),
            ("a=~\"x|.*\"", true),
            ("alertname=~\".+\"", true),
            ("alertname!=\"\"", true),
            ("a=~\".+\"", false),
            ("a!=\"\"", false),
            ("a=~\"[a-z]*\"", false),
            ("a=~\"x.*\"", false),
            ("alertname=x", false),
        ] {
            assert_eq!(is_universal(&matchers(text).0[0]), is, "{text}");
        }
    }

    #[test]
    fn labels_tell_what_can_match() {
        let fixed = |text: &str| Some(vec![text.to_owned()]);
        let values = BTreeMap::from([("severity".to_owned(), fixed("critical")), ("host".to_owned(), None)]);
        let labels = Labels { values, is_open: false };
        for (text, may, must) in [
            ("severity=critical", true, true),
            ("severity=~\"warning|critical\"", true, true),
            ("severity=warning", false, false),
            ("host=a", true, false),
            ("host=~\".*\"", true, true),
            ("host=a,host=b", false, false),
            ("team=x", false, false),
            ("team=\"\"", true, true),
        ] {
            let matchers = matchers(text);
            assert_eq!(labels.may_match(&all(&matchers)), may, "{text}");
            assert_eq!(labels.must_match(&all(&matchers)), must, "{text}");
        }
    }
}
