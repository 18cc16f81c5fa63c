//! Alerts that keep others silent: while a source fires, the targets that go with it are not told.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;

use super::route::problems_of_matchers;
use tocsin_config::facts::InhibitFacts;
use tocsin_config::matcher::Matchers;

/// No list of rules is longer.
const RULES_MAX: usize = 1000;

/// While an alert fires that the source matchers are true of, those that the target matchers are true of are not told,
/// if they have the same `equal` labels. An alert that both are true of is not kept silent by another of which the same
/// is true, itself included.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InhibitOptions {
    /// Matchers of the alerts that keep others silent, such as `'severity="critical"'`. All must be true.
    #[serde(default)]
    source: Vec<String>,
    /// Matchers of the alerts that are kept silent. All must be true.
    #[serde(default)]
    target: Vec<String>,
    /// The labels that must be the same in both. One that both do not have is the same.
    #[serde(default)]
    equal: Vec<String>,
}

/// What is wrong with `inhibit`.
pub(super) fn problems(rules: &[InhibitOptions]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if rules.len() > RULES_MAX {
        problems.push(Problem::new("inhibit", format!("there are more than {RULES_MAX} rules")));
    }
    for (at, rule) in rules.iter().enumerate() {
        for (side, matchers) in [("source", &rule.source), ("target", &rule.target)] {
            problems.extend(problems_of_matchers(&format!("inhibit[{at}].{side}"), matchers));
        }
        for (place, label) in rule.equal.iter().enumerate().filter(|(_, label)| label.is_empty()) {
            let option = format!("inhibit[{at}].equal[{place}]");
            problems.push(Problem::new(option, format!("{label:?} is not a name of a label")));
        }
    }
    problems
}

/// What the rules tell of themselves. Only called when there are no problems.
pub(super) fn facts(rules: &[InhibitOptions]) -> Vec<InhibitFacts> {
    let rules = rules.iter().enumerate().map(|(at, rule)| InhibitFacts {
        option: format!("inhibit[{at}]"),
        source: Matchers::all(&rule.source),
        target: Matchers::all(&rule.target),
        equal: rule.equal.clone(),
    });
    rules.collect()
}

/// The alerts that fire, by the rules of which they are sources. It follows from them, and is made anew after a
/// restart.
#[derive(Debug, Default)]
pub(super) struct Inhibitor {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    source: Matchers,
    target: Matchers,
    equal: BTreeSet<String>,
    /// By the values of the `equal` labels.
    sources: BTreeMap<Vec<String>, Sources>,
}

/// The names of the alerts that fire and are sources of a rule, with the same `equal` labels.
#[derive(Debug, Default)]
struct Sources {
    /// Those that are no targets of it.
    plain: BTreeSet<String>,
    /// Those that are.
    two_sided: BTreeSet<String>,
}

impl Inhibitor {
    /// Only called when there are no problems.
    pub(super) fn build(rules: &[InhibitOptions]) -> Self {
        let rules = rules.iter().map(|rule| Rule {
            source: Matchers::all(&rule.source),
            target: Matchers::all(&rule.target),
            equal: rule.equal.iter().cloned().collect(),
            sources: BTreeMap::new(),
        });
        Self { rules: rules.collect() }
    }

    /// An alert begins to fire or ceases to. `name` is what it is known by. There are as many entries as alerts that
    /// fire, for each rule at most.
    /// Gives whether it is a source of any.
    pub(super) fn set<'a>(&mut self, name: &str, label: impl Fn(&str) -> Option<&'a str>, is_firing: bool) -> bool {
        let mut is_source = false;
        for rule in self.rules.iter_mut().filter(|rule| rule.source.matches(&label)) {
            let key = rule.key(&label);
            let is_target = rule.target.matches(&label);
            let sources = rule.sources.entry(key.clone()).or_default();
            let names = if is_target { &mut sources.two_sided } else { &mut sources.plain };
            if is_firing {
                names.insert(name.to_owned());
            } else {
                names.remove(name);
            }
            if sources.plain.is_empty() && sources.two_sided.is_empty() {
                rule.sources.remove(&key);
            }
            is_source = true;
        }
        is_source
    }

    /// The rule and the alert that keep one with these labels silent: of the first such rule the first by name.
    pub(super) fn inhibiting<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> Option<(usize, &str)> {
        self.rules.iter().enumerate().find_map(|(at, rule)| {
            let sources = Some(rule).filter(|rule| rule.target.matches(&label))?.sources.get(&rule.key(&label))?;
            // One that is a source itself is kept silent only by those that are no targets.
            let two_sided = if rule.source.matches(&label) { None } else { sources.two_sided.first() };
            sources.plain.first().into_iter().chain(two_sided).min().map(|name| (at, name.as_str()))
        })
    }
}

impl Rule {
    fn key<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
        self.equal.iter().map(|name| label(name).unwrap_or_default().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[derive(Deserialize)]
    struct File {
        inhibit: Vec<InhibitOptions>,
    }

    fn labels(text: &str) -> BTreeMap<String, String> {
        let labels = text.split_whitespace().filter_map(|label| label.split_once('='));
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// A story of lines `NAME fires LABELS`, `NAME ends LABELS`, `? LABELS`: what keeps such an alert silent.
    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(rules: &str, story: &str, expected: Expect) {
        let rules = toml::from_str::<File>(rules).unwrap().inhibit;
        assert_eq!(problems(&rules), []);
        let mut inhibitor = Inhibitor::build(&rules);
        let mut text = String::new();
        for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, rest) = line.split_once(' ').unwrap();
            let labels = labels(rest);
            let label = |name: &str| labels.get(name).map(String::as_str);
            match name {
                "?" => text += &format!("{line}: {:?}\n", inhibitor.inhibiting(label)),
                _ => drop(inhibitor.set(name, label, rest.starts_with("fires"))),
            }
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_source_keeps_its_targets_silent_while_it_fires() {
        check(
            r#"inhibit = [{ source = ['severity="critical"'], target = ['severity=~"warning|info"'], equal = ["cluster", "zone"] }]"#,
            "
            one fires severity=critical cluster=a
            two fires severity=critical cluster=a zone=z
            three fires severity=critical cluster=a
            ? severity=warning cluster=a
            ? severity=warning cluster=a zone=z
            ? severity=info cluster=b
            ? severity=critical cluster=a
            ? severity=page cluster=a
            one ends severity=critical cluster=a
            ? severity=warning cluster=a
            three ends severity=critical cluster=a
            ? severity=warning cluster=a
            ",
            expect![[r#"
                ? severity=warning cluster=a: Some((0, "one"))
                ? severity=warning cluster=a zone=z: Some((0, "two"))
                ? severity=info cluster=b: None
                ? severity=critical cluster=a: None
                ? severity=page cluster=a: None
                ? severity=warning cluster=a: Some((0, "three"))
                ? severity=warning cluster=a: None
            "#]],
        );
    }

    #[test]
    fn an_alert_of_both_sides_is_not_silenced_by_such_another() {
        check(
            r#"inhibit = [{ source = ["a=1"], target = ["b=1"] }, { source = ["c=1"], target = ["c=1"] }]"#,
            "
            both fires a=1 b=1
            ? a=1 b=1
            ? b=1
            source fires a=1
            ? a=1 b=1
            source ends a=1
            ? a=1 b=1
            self fires c=1
            ? c=1
            ",
            expect![[r#"
                ? a=1 b=1: None
                ? b=1: Some((0, "both"))
                ? a=1 b=1: Some((0, "source"))
                ? a=1 b=1: None
                ? c=1: None
            "#]],
        );
        check(
            "inhibit = [{}]",
            "any fires a=1\n? a=1\n? b=1",
            expect![[r#"
            ? a=1: None
            ? b=1: None
        "#]],
        );
    }

    #[test]
    fn rules_that_cannot_be_are_told() {
        let rules =
            toml::from_str::<File>(r#"inhibit = [{ source = ["a=~\"(\""], target = ["a"], equal = [""] }]"#).unwrap();
        let told = problems(&rules.inhibit);
        let told = told.iter().map(|problem| format!("{} {:?}: {}\n", problem.option, problem.within, problem.message));
        expect![[r#"
            inhibit[0].source[0] Some(3..6): not a regular expression: unclosed group
            inhibit[0].target[0] Some(1..1): expected one of `=`, `!=`, `=~` and `!~` after a label's name, and this is the end
            inhibit[0].equal[0] None: "" is not a name of a label
        "#]].assert_eq(&told.collect::<String>());
    }
}
