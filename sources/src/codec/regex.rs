//! `regex`: named groups of a regular expression.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::bytes::{CaptureLocations, Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{CodecConfig, Problem};
use tocsin_pipeline::codec::{Codec, DecodeError};

use super::kind::Kind;
use super::{Fields, Scan, Scanned};

/// Finds a regular expression in a record; its named groups are the fields.
///
/// With `pattern = '^(?P<job>\w+) took (?P<ms>\d+) ms(?: \((?P<note>.*)\))?$'` and `types = { ms = "integer" }`, the record
/// `backup took 812 ms` becomes
///
/// ```json
/// {"job": "backup", "ms": 812}
/// ```
///
/// A group that took no part in the match is missing. A record that does not match is unreadable, with the reason
/// `no_match`. The syntax is that of Rust's `regex` crate: no look-around and no back-references, and so no record can make
/// it slow. The pattern may match anywhere: write `^` and `$` to tie it to the ends.
///
/// **Event time:** the arrival, unless the source's `timestamp` names a group.
///
/// ```toml
/// [sources.jobs]
/// type = "file"
/// paths = ["/var/log/jobs.log"]
/// codec = { type = "regex", pattern = '^(?P<job>\w+) took (?P<ms>\d+) ms', types = { ms = "integer" } }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The regular expression, with at least one named group: `(?P<name>…)` or `(?<name>…)`. Compiled it must stay below
    /// 10 MiB.
    pattern: String,
    /// What the text of groups is read as: `"text"`, `"integer"`, `"float"` or `"boolean"`. Default: text. A group whose text is
    /// not of its type makes the record unreadable.
    #[serde(default)]
    types: BTreeMap<String, Kind>,
}

/// How large a compiled pattern may be.
const SIZE_MAX: usize = 10 << 20;

impl Config {
    fn compile(&self) -> Result<Regex, regex::Error> {
        RegexBuilder::new(&self.pattern).size_limit(SIZE_MAX).dfa_size_limit(SIZE_MAX).build()
    }
}

impl CodecConfig for Config {
    const NAME: &'static str = "regex";

    fn problems(&self) -> Vec<Problem> {
        let regex = match self.compile() {
            Ok(regex) => regex,
            Err(error) => return vec![problem_of(&self.pattern, &error)],
        };
        let names: Vec<_> = regex.capture_names().flatten().collect();
        let mut problems = Vec::new();
        if names.is_empty() {
            problems.push(
                Problem::new("pattern", "it has no named group, so events would have no fields")
                    .help("name what is of interest: (?P<name>…)"),
            );
        }
        for name in self.types.keys().filter(|name| !names.contains(&name.as_str())) {
            problems.push(
                Problem::new(format!("types.{name}"), format!("there is no group {name:?}"))
                    .help(format!("the groups are {names:?}")),
            );
        }
        problems
    }

    fn build(&self) -> Arc<dyn Codec> {
        let regex = self.compile().expect("problems() has compiled it");
        let groups: Vec<_> = regex
            .capture_names()
            .enumerate()
            .filter_map(|(number, name)| name.map(|name| (number, name.to_owned())))
            .map(|(number, name)| Group { number, kind: self.types.get(&name).copied().unwrap_or_default(), name })
            .collect();
        let names: Vec<_> = groups.iter().map(|group| group.name.clone()).collect();
        Arc::new(Scanned::new(Pattern { regex, groups }, names))
    }
}

/// What is wrong with a pattern, and where.
fn problem_of(pattern: &str, error: &regex::Error) -> Problem {
    if let regex::Error::CompiledTooBig(limit) = error {
        return Problem::new("pattern", format!("compiled it is larger than {limit} bytes"))
            .help("write smaller repetitions, or (?-u:\\w) for \\w where ASCII is enough");
    }
    let (message, span) = match regex_syntax::ParserBuilder::new().utf8(false).build().parse(pattern) {
        Err(regex_syntax::Error::Parse(error)) => (error.kind().to_string(), Some(*error.span())),
        Err(regex_syntax::Error::Translate(error)) => (error.kind().to_string(), Some(*error.span())),
        _ => (error.to_string(), None),
    };
    let problem = Problem::new("pattern", message);
    match span {
        Some(span) => problem.within(span.start.offset..span.end.offset),
        None => problem,
    }
}

#[derive(Debug)]
struct Pattern {
    regex: Regex,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    /// Its number in the pattern.
    number: usize,
    name: String,
    kind: Kind,
}

impl Scan for Pattern {
    const NAME: &'static str = "regex";
    type Scratch = CaptureLocations;

    fn scratch(&self) -> CaptureLocations {
        self.regex.capture_locations()
    }

    fn scan(&self, record: &[u8], found: &mut CaptureLocations, fields: &mut impl Fields) -> Result<(), DecodeError> {
        // Finding whether it matches is much faster than finding where its groups are.
        let needs_groups =
            self.groups.iter().enumerate().any(|(at, group)| group.kind != Kind::Text || fields.wants(at));
        let is_match =
            if needs_groups { self.regex.captures_read(found, record).is_some() } else { self.regex.is_match(record) };
        if !is_match {
            return Err(DecodeError::new("no_match", "the pattern does not match"));
        }
        if !needs_groups {
            return Ok(());
        }
        for (at, group) in self.groups.iter().enumerate() {
            if let Some((start, end)) = found.get(group.number) {
                group.kind.put(at, &group.name, (start, &record[start..end]), None, fields)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::agreement::check_events;
    use super::*;

    fn config(options: &str) -> Config {
        toml::from_str(options).unwrap()
    }

    fn check(options: &str, records: &[&str], expected: Expect) {
        check_events::<Config>(options, records, expected);
    }

    #[test]
    fn named_groups_are_fields() {
        check(
            r"pattern = '^(?P<job>\w+) took (\d+)(?<ms>\d) ms(?: \((?P<note>.*)\))?$'",
            &["backup took 812 ms", "b took 81 ms (slow)", "b took 1 ms", ""],
            expect![[r#"
                { "job": "backup", "ms": "2" }
                { "job": "b", "ms": "1", "note": "slow" }
                no_match: the pattern does not match
                no_match: the pattern does not match"#]],
        );
    }

    #[test]
    fn groups_have_types() {
        check(
            "pattern = '(?P<i>\\S+) (?P<f>\\S+) (?P<b>\\S+)'\ntypes = { i = 'integer', f = 'float', b = 'boolean' }",
            &["-7 2.5e3 TRUE", "+7 1 off", "x 1 on", "1 inf on", "1 1 maybe", "99999999999999999999 1 1"],
            expect![[r#"
                { "b": true, "f": 2500, "i": -7 }
                { "b": false, "f": 1, "i": 7 }
                wrong_type: i is not an integer: "x"
                wrong_type: f is not a number: "inf"
                wrong_type: b is not a boolean: "maybe"
                wrong_type: i is not an integer: "99999999999999999999""#]],
        );
    }

    #[test]
    fn a_bad_pattern_is_told_with_its_place() {
        let show = |options: &str| {
            let problems = config(options).problems();
            let lines = problems.iter().map(|p| format!("{} {:?}: {}", p.option, p.within, p.message));
            lines.collect::<Vec<_>>().join("\n")
        };
        let shown = [
            "pattern = 'é(?P<a>x'",
            "pattern = '(?P<a>\\pX)'",
            "pattern = '(?P<a>x)(?P<a>y)'",
            "pattern = '(?P<a>\\w{1000}){1000}'",
            "pattern = 'x'",
            "pattern = '(?P<a>x)'\ntypes = { b = 'integer' }",
        ]
        .map(show);
        expect![[r#"
            pattern Some(2..3): unclosed group
            pattern Some(6..9): Unicode property not found
            pattern Some(12..13): duplicate capture group name
            pattern None: compiled it is larger than 10485760 bytes
            pattern None: it has no named group, so events would have no fields
            types.b None: there is no group "b""#]]
        .assert_eq(&shown.join("\n"));
    }
}
