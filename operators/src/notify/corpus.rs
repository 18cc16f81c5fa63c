//! Alertmanager's own cases, where they are (`TOCSIN_CORPUS`), translated by rule into our configuration. What cannot
//! be translated is told with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration as Span;

use chrono::DateTime;
use serde::Deserialize;
use serde_json::Value as Json;
use serde_yaml_ng::Value as Yaml;
use tocsin_config::component::OperatorConfig as _;
use tocsin_config::interval::{Interval, IntervalOptions};
use tocsin_config::matcher::{self, Matcher, Matchers, quoted};
use tocsin_pipeline::time::Timestamp;

use super::Config;
use super::route::{GroupBy, Tree};

/// The cases of a file, or `None` (said on stdout) where it is not on this machine.
fn cases(name: &str) -> Option<Vec<Json>> {
    let folder = std::env::var_os("TOCSIN_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    match std::fs::read_to_string(folder.join("alertmanager").join(name)) {
        Ok(text) => Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()),
        Err(error) => {
            println!("skipped: {name}: {error}");
            None
        }
    }
}

/// Why a case was not translated, why the outcome differs on purpose from what is published, or how it does.
pub(super) enum Other {
    NotTranslated(String),
    OnPurpose(String),
    Differs(String),
}

/// Runs all cases, tells how it went, and fails where an outcome differs.
pub(super) fn judge(name: &str, judge: impl Fn(&Json) -> Result<(), Other>) {
    let Some(cases) = cases(name) else { return };
    let (mut agreeing, mut not_translated, mut differing) = (0, String::new(), String::new());
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        match judge(case) {
            Ok(()) => agreeing += 1,
            Err(Other::NotTranslated(why)) => writeln!(not_translated, "not translated: {id}: {why}").unwrap(),
            Err(Other::OnPurpose(why)) => writeln!(not_translated, "different on purpose: {id}: {why}").unwrap(),
            Err(Other::Differs(how)) => writeln!(differing, "{id}: {how}").unwrap(),
        }
    }
    print!("{name}: {agreeing} of {} agree\n{not_translated}", cases.len());
    assert!(differing.is_empty(), "{differing}");
}

pub(super) fn require(is_so: bool, told: impl FnOnce() -> String) -> Result<(), Other> {
    if is_so { Ok(()) } else { Err(Other::Differs(told())) }
}

pub(super) fn not_translated<T>(why: impl Into<String>) -> Result<T, Other> {
    Err(Other::NotTranslated(why.into()))
}

#[test]
fn matchers_are_read_as_alertmanager_reads_them() {
    judge("matcher_parse.jsonl", |case| {
        let (id, input) = (case["id"].as_str().unwrap(), case["input"].as_str().unwrap());
        if id.contains("/TestIsValid") {
            return not_translated("a name of a label, without what is expected of it");
        }
        let expected = case.get("error").is_none().then(|| {
            let part = |matcher: &Json, part: &str| matcher[part].as_str().unwrap().to_owned();
            let matchers = case["matchers"].as_array().unwrap().iter();
            matchers.map(|one| [part(one, "name"), part(one, "op"), part(one, "value")]).collect::<Vec<_>>()
        });
        let parts = |matchers: Vec<Matcher>| {
            let parts = |one: Matcher| [one.name, one.relation.as_str().to_owned(), one.value];
            matchers.into_iter().map(parts).collect::<Vec<_>>()
        };
        let by_both = Matchers::parse(input).ok().map(|matchers| parts(matchers.0));
        let mut by_new = matcher::parse(input).ok().map(parts);
        if id.contains("/TestMatcher/") {
            by_new = by_new.filter(|matchers| matchers.len() == 1);
        }
        let is_of_new =
            id.starts_with("parse/") || (id.starts_with("compliance/") && case.get("skip_in_compliance").is_none());
        if is_of_new {
            require(by_new == expected, || format!("{by_new:?} by the new grammar"))?;
        }
        if !id.starts_with("parse/") {
            require(by_both == expected, || format!("{by_both:?} by both grammars"))?;
        }
        Ok(())
    });
}

/// A configuration of Alertmanager as one of ours, as text.
#[derive(Default)]
pub(super) struct Translation {
    pub(super) notify: String,
    /// The receivers that routes name.
    told: BTreeSet<String>,
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn toml_list(texts: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", texts.into_iter().map(|text| toml_text(&text)).collect::<Vec<_>>().join(", "))
}

pub(super) fn scalar(value: &Yaml) -> String {
    match value {
        Yaml::String(text) => text.clone(),
        Yaml::Number(number) => number.to_string(),
        Yaml::Bool(value) => value.to_string(),
        Yaml::Null => String::new(),
        other => panic!("{other:?} is not a scalar"),
    }
}

fn list(value: &Yaml) -> Vec<String> {
    value.as_sequence().into_iter().flatten().map(scalar).collect()
}

pub(super) fn entries(value: &Yaml) -> impl Iterator<Item = (String, &Yaml)> {
    value.as_mapping().into_iter().flatten().map(|(key, value)| (scalar(key), value))
}

/// A name as one that can stand among inputs.
pub(super) fn port(name: &str) -> String {
    name.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "_")
}

/// Matchers of the three kinds that there are: `match`, `match_re`, `matchers`.
fn matchers(kind: &str, value: &Yaml) -> Vec<String> {
    let written = |relation: &'static str| {
        entries(value).map(move |(name, text)| {
            let text = scalar(text);
            // What Alertmanager keeps of a pattern in `match_re`, and shows in its keys.
            let text = if relation == "=~" { format!("^(?:{text})$") } else { text };
            format!("{}{relation}{}", quoted(&name), quoted(&text))
        })
    };
    match kind {
        "match" => written("=").collect(),
        "match_re" => written("=~").collect(),
        _ => list(value),
    }
}

impl Translation {
    fn routes(&mut self, routes: &Yaml) -> Result<String, Other> {
        let routes: Result<Vec<String>, Other> = routes
            .as_sequence()
            .into_iter()
            .flatten()
            .map(|route| Ok(format!("{{ {} }}", self.route(route)?.join(", "))))
            .collect();
        Ok(format!("[{}]", routes?.join(", ")))
    }

    /// The options of a route, each `name = value`.
    fn route(&mut self, route: &Yaml) -> Result<Vec<String>, Other> {
        let (mut options, mut conditions) = (Vec::new(), Vec::new());
        for (key, value) in entries(route) {
            let (name, value) = match key.as_str() {
                "match" | "match_re" | "matchers" => {
                    conditions.extend(matchers(&key, value));
                    continue;
                }
                "receiver" => {
                    self.told.insert(port(&scalar(value)));
                    ("receiver", toml_text(&port(&scalar(value))))
                }
                "continue" => ("continue", scalar(value)),
                // An empty list is none to Alertmanager, which is nothing at all.
                "group_by" if list(value).is_empty() => continue,
                "group_by" => ("group_by", toml_list(list(value))),
                "group_wait" | "group_interval" | "repeat_interval" => (key.as_str(), toml_text(&scalar(value))),
                "mute_time_intervals" => ("mute", toml_list(list(value))),
                "active_time_intervals" => ("active", toml_list(list(value))),
                "routes" => ("routes", self.routes(value)?),
                other => return not_translated(format!("routes have no `{other}`")),
            };
            options.push(format!("{name} = {value}"));
        }
        if !conditions.is_empty() {
            options.push(format!("matchers = {}", toml_list(conditions)));
        }
        Ok(options)
    }

    pub(super) fn root(&mut self, route: &Yaml) -> Result<(), Other> {
        if route.get("receiver").is_none() {
            return not_translated("the receiver of the root is `default` where none is named");
        }
        for option in self.route(route)? {
            writeln!(self.notify, "{option}").unwrap();
        }
        // What Alertmanager does where it is not said is not what is done here.
        let defaults =
            [("group_by", "[]"), ("group_wait", "'30s'"), ("group_interval", "'5m'"), ("repeat_interval", "'4h'")];
        for (name, value) in defaults {
            if route.get(name).is_none_or(|given| given.as_sequence().is_some_and(Vec::is_empty)) {
                writeln!(self.notify, "{name} = {value}").unwrap();
            }
        }
        Ok(())
    }

    pub(super) fn inhibit(&mut self, rules: &Yaml) -> Result<(), Other> {
        let mut translated = Vec::new();
        for rule in rules.as_sequence().into_iter().flatten() {
            let (mut source, mut target, mut equal) = (Vec::new(), Vec::new(), Vec::new());
            for (key, value) in entries(rule) {
                match key.split_once('_') {
                    Some(("source", kind)) => source.extend(matchers(kind, value)),
                    Some(("target", kind)) => target.extend(matchers(kind, value)),
                    None if key == "equal" => equal.extend(list(value)),
                    _ => return not_translated(format!("inhibition has no `{key}`")),
                }
            }
            let [source, target, equal] = [source, target, equal].map(toml_list);
            translated.push(format!("{{ source = {source}, target = {target}, equal = {equal} }}"));
        }
        writeln!(self.notify, "inhibit = [{}]", translated.join(", ")).unwrap();
        Ok(())
    }

    fn intervals(&mut self, intervals: &Yaml) -> Result<(), Other> {
        for interval in intervals.as_sequence().into_iter().flatten() {
            let name = interval.get("name").map(scalar).unwrap_or_default();
            let entries = translated_interval(interval.get("time_intervals").unwrap_or(&Yaml::Null))?;
            writeln!(self.notify, "intervals.{} = {entries}", toml_text(&name)).unwrap();
        }
        Ok(())
    }
}

/// The entries of a time interval as a list of ours.
fn translated_interval(entries_of: &Yaml) -> Result<String, Other> {
    let mut translated = Vec::new();
    for entry in entries_of.as_sequence().into_iter().flatten() {
        let mut options = Vec::new();
        for (key, value) in entries(entry) {
            let value = match key.as_str() {
                "times" => {
                    let end = |range: &Yaml, end: &str| range.get(end).map(scalar).unwrap_or_default();
                    let ranges = value.as_sequence().into_iter().flatten();
                    toml_list(ranges.map(|range| format!("{}-{}", end(range, "start_time"), end(range, "end_time"))))
                }
                "weekdays" | "days_of_month" | "months" | "years" => toml_list(list(value)),
                "location" => toml_text(&scalar(value)),
                other => return not_translated(format!("intervals have no `{other}`")),
            };
            options.push(format!("{key} = {value}"));
        }
        translated.push(format!("{{ {} }}", options.join(", ")));
    }
    Ok(format!("[{}]", translated.join(", ")))
}

pub(super) fn yaml(text: &str) -> Yaml {
    serde_yaml_ng::from_str(text).unwrap()
}

#[test]
fn alerts_take_the_routes_that_alertmanager_sends_them() {
    judge("route_match.jsonl", |case| {
        let mut translation = Translation::default();
        translation.root(&yaml(case["route_yaml"].as_str().unwrap()))?;
        let notify: Config = toml::from_str(&translation.notify).map_err(|error| Other::Differs(error.to_string()))?;
        let problems = notify.problems();
        require(problems.is_empty(), || format!("{problems:?}"))?;
        let tree = Tree::build(&notify.root());
        let labels = case["labels"].as_object().unwrap();
        let routes = tree.matching(|name| labels.get(name).and_then(Json::as_str));
        let expected = case["expect"].as_array().unwrap();
        require(routes.len() == expected.len(), || format!("{} routes", routes.len()))?;
        let times = |text: &Json, default: Span| match text.as_str().unwrap() {
            "default" => default,
            text => {
                let (count, unit) = text.split_once(" * ").unwrap();
                let seconds = match unit {
                    "Second" => 1,
                    "Minute" => 60,
                    "Hour" => 3600,
                    other => panic!("{other} is not a unit of time"),
                };
                Span::from_secs(count.parse::<u64>().unwrap() * seconds)
            }
        };
        let keys = case["keys"].as_array().unwrap();
        for ((route, expected), key) in routes.iter().zip(expected).zip(keys) {
            let labels = expected["group_by"].as_array().into_iter().flatten();
            let labels = labels.map(|label| label.as_str().unwrap().to_owned()).collect();
            let is_all = expected.get("group_by_all").is_some_and(|all| all.as_bool().unwrap());
            let group_by = if is_all { GroupBy::All } else { GroupBy::Labels(labels) };
            let is_so = route.receiver == expected["receiver"].as_str().unwrap()
                && route.group_wait == times(&expected["group_wait"], Span::from_secs(30))
                && route.group_interval == times(&expected["group_interval"], Span::from_secs(300))
                && route.repeat_interval == times(&expected["repeat_interval"], Span::from_secs(4 * 3600))
                && route.group_by == group_by
                && route.key == key.as_str().unwrap();
            require(is_so, || format!("{route:?}"))?;
        }
        Ok(())
    });
}

/// The moments of a list, such as `02 Jan 06 15:04 +0000`.
fn moments(list: &Json) -> Vec<Timestamp> {
    let moment = |text: &Json| DateTime::parse_from_str(text.as_str().unwrap(), "%d %b %y %H:%M %z").unwrap();
    list.as_array().into_iter().flatten().map(|text| Timestamp::from_datetime(&moment(text).to_utc())).collect()
}

/// A list of entries as our configuration reads it: an interval, or what is wrong.
fn read_interval(entries: &str) -> Result<Interval, String> {
    #[derive(Deserialize)]
    struct File {
        intervals: BTreeMap<String, IntervalOptions>,
    }
    let file: File = toml::from_str(&format!("intervals.it = {entries}")).map_err(|error| error.to_string())?;
    let interval = &file.intervals["it"];
    match interval.problems("intervals.it").as_slice() {
        [] => Ok(interval.build()),
        problems => Err(format!("{problems:?}")),
    }
}

fn minute(minute: &Json) -> String {
    let minute = minute.as_u64().unwrap();
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

/// An interval that is written as a value of Alertmanager's own type. Of one that is written as source text, all ranges
/// must be there up to their end.
fn of_value(value: &Json) -> Result<String, Other> {
    let mut options = Vec::new();
    if let Some(source) = value.get("$unextracted").and_then(Json::as_str) {
        let number = |text: &str, name: &str| {
            let rest = text.split_once(&format!("{name}: "))?.1;
            let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '-')?;
            rest[..end].parse::<i64>().ok()
        };
        for line in source.lines().map(str::trim).filter(|line| line.contains(": ") && !line.ends_with("TimeInterval{"))
        {
            let (name, written) = line.split_once(':').unwrap();
            let range = |begin: &str, end: &str| number(written, begin).zip(number(written, end));
            let option = match name {
                "Location" => written.split('"').nth(1).map(|name| format!("location = {}", toml_text(name))),
                "Times" => range("StartMinute", "EndMinute").map(|(start, end)| {
                    let range = format!("{}-{}", minute(&start.into()), minute(&end.into()));
                    format!("times = {}", toml_list([range]))
                }),
                _ => range("Begin", "End").map(|(begin, end)| member(name, begin, end)),
            };
            match option {
                Some(option) => options.push(option),
                None => return not_translated(format!("cut off in the data at {line:?}")),
            }
        }
        return Ok(format!("[{{ {} }}]", options.join(", ")));
    }
    for (name, ranges) in value.as_object().into_iter().flatten() {
        for range in ranges.as_array().unwrap() {
            let range = range.get(0).unwrap_or(range);
            options.push(match name.as_str() {
                "Times" => {
                    let range = format!("{}-{}", minute(&range["StartMinute"]), minute(&range["EndMinute"]));
                    format!("times = {}", toml_list([range]))
                }
                _ => member(name, range["Begin"].as_i64().unwrap(), range["End"].as_i64().unwrap()),
            });
        }
    }
    Ok(format!("[{{ {} }}]", options.join(", ")))
}

fn member(name: &str, begin: i64, end: i64) -> String {
    const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
    let (name, written): (_, fn(i64) -> String) = match name {
        "Weekdays" => ("weekdays", |day| WEEKDAYS[usize::try_from(day).unwrap()].to_owned()),
        "DaysOfMonth" => ("days_of_month", |day| day.to_string()),
        "Months" => ("months", |month| month.to_string()),
        "Years" => ("years", |year| year.to_string()),
        other => panic!("{other} is not a part of an interval"),
    };
    format!("{name} = {}", toml_list([format!("{}:{}", written(begin), written(end))]))
}

#[test]
fn intervals_hold_when_alertmanagers_do() {
    judge("time_intervals.jsonl", |case| {
        let id = case["id"].as_str().unwrap();
        let holds = |interval: &Interval, inside: &Json, outside: &Json| {
            for (list, is_inside) in [(inside, true), (outside, false)] {
                for moment in moments(list) {
                    require(interval.contains(moment) == is_inside, || format!("{moment} is inside: {}", !is_inside))?;
                    let next = interval.next_change(moment);
                    let is_right = next.is_none_or(|next| next > moment && interval.contains(next) != is_inside);
                    require(is_right, || format!("the next change after {moment} is {next:?}"))?;
                }
            }
            Ok(())
        };
        if id.contains("/timeIntervalTestCases/") {
            let interval = read_interval(&of_value(&case["timeInterval"])?).map_err(Other::Differs)?;
            return holds(&interval, &case["validTimeStrings"], &case["invalidTimeStrings"]);
        }
        let is_error_expected = case.get("expectError").is_some_and(|is| is.as_bool().unwrap());
        if id.contains("/timeStringTestCases/") {
            let range = yaml(case["timeString"].as_str().unwrap());
            let text = format!("{}-{}", scalar(&range["start_time"]), scalar(&range["end_time"]));
            let interval = read_interval(&format!("[{{ times = {} }}]", toml_list([text])));
            require(interval.is_err() == is_error_expected, || format!("{interval:?}"))?;
            let Ok(interval) = interval else { return Ok(()) };
            let range = ["StartMinute", "EndMinute"].map(|end| case["TimeRange"][end].as_i64().unwrap());
            let is_so = (0..1440).all(|minute| {
                interval.contains(Timestamp::from_secs(minute * 60)) == (range[0]..range[1]).contains(&minute)
            });
            return require(is_so, || format!("{interval:?}"));
        }
        let interval = read_interval(&translated_interval(&yaml(case["in"].as_str().unwrap()))?);
        require(interval.is_err() == is_error_expected, || format!("{interval:?}"))?;
        match interval {
            Ok(interval) => holds(&interval, &case["contains"], &case["excludes"]),
            Err(_) => Ok(()),
        }
    });
}

/// Our configuration as far as these cases go: the operator, and a sink for each receiver that is told.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pipeline {
    notify: Config,
    #[serde(default)]
    sinks: BTreeMap<String, Sink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sink {
    inputs: [String; 1],
}

#[test]
fn configurations_are_valid_where_alertmanagers_are() {
    judge("config_validity.jsonl", |case| {
        let is_valid_expected = case["expect"].get("ok").is_some();
        let configuration = yaml(case["yaml"].as_str().unwrap());
        let mut translation = Translation::default();
        let (mut sinks, mut providers) = (String::new(), BTreeSet::new());
        for (key, value) in entries(&configuration) {
            match key.as_str() {
                "route" => translation.root(value)?,
                "inhibit_rules" => translation.inhibit(value)?,
                "time_intervals" | "mute_time_intervals" => translation.intervals(value)?,
                "receivers" | "templates" => {}
                "global" => providers.extend(entries(value).map(|(key, _)| format!("global.{key}"))),
                other => return not_translated(format!("there is no `{other}`")),
            }
        }
        let mut defined = BTreeSet::new();
        for receiver in configuration.get("receivers").and_then(Yaml::as_sequence).into_iter().flatten() {
            let name = port(&scalar(&receiver["name"]));
            for (key, _) in entries(receiver).filter(|(key, _)| key != "name") {
                if key == "labels" {
                    return not_translated("receivers have no labels");
                }
                providers.insert(key);
            }
            // A receiver that no route tells is fine there; here it would be a sink that reads from nowhere.
            if translation.told.contains(&name) {
                writeln!(sinks, "[sinks.{}]\ninputs = [{}]", toml_text(&name), toml_text(&format!("notify.{name}")))
                    .unwrap();
                defined.insert(name);
            }
        }
        if !is_valid_expected && !providers.is_empty() {
            let providers = providers.into_iter().collect::<Vec<_>>().join(", ");
            return not_translated(format!("an error in options of receivers, which are sinks here: {providers}"));
        }
        let text = format!("[notify]\n{}{sinks}", translation.notify);
        let problems = match toml::from_str::<Pipeline>(&text) {
            Err(error) => vec![error.to_string()],
            Ok(pipeline) => {
                let problems = pipeline.notify.problems();
                if problems.is_empty() {
                    let receivers = pipeline.notify.ports();
                    for sink in pipeline.sinks.values() {
                        let read = sink.inputs[0].trim_start_matches("notify.");
                        let is_read = receivers.iter().any(|receiver| receiver == read);
                        require(is_read, || format!("{read} is no output"))?;
                    }
                }
                problems.iter().map(|problem| format!("{}: {}", problem.option, problem.message)).collect()
            }
        };
        if problems.is_empty() && !is_valid_expected && !translation.told.is_subset(&defined) {
            return not_translated("whether anybody reads what a receiver is told is not known to the operator");
        }
        require(problems.is_empty() == is_valid_expected, || format!("{problems:?}\n{text}"))
    });
}
