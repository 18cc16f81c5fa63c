//! Windows over event time.

mod aggregate;
mod distinct;
mod fold;
mod number;
mod quantile;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod updates;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, FieldRead, Keying, Makes, OperatorConfig, Problem};
use tocsin_config::facts::{Facts, WindowFacts};
use tocsin_config::types::{ByteSize, Duration};
use tocsin_pipeline::codec::PathTable;
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::expression::Expression;
use tocsin_pipeline::operator::{Built, Ports};
use tocsin_pipeline::time::nanos;
use vrl::path::OwnedSegment;

use self::aggregate::Aggregate;
use self::fold::{Folder, Plan};
use self::state::Window;
use crate::dedupe::{compile_key, key_problems, one_kibibyte, one_million, trimmed};
use crate::fields::of_expression;

/// The longest window and lateness.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(3650 * 86_400);
/// The most panes a hopping window may have.
const PANES: u128 = 100_000;
/// The most it may have where a late record tells anew all the windows that it is in.
const UPDATED_PANES: u128 = 100;

/// Computes aggregates of the records of each stretch of event time, by key. When a window closes it becomes one record for each
/// key: `{"window_start": "2026-11-20T12:00:00Z", "window_end": "…", <keys>, <aggregates>}`, in order of window end, then
/// key, with the window's end as its event time.
///
/// Windows start at whole multiples of their length (of `every` where they hop) since 1970-01-01T00:00:00Z. A window closes when the
/// watermark is `lateness` past its end.
///
/// With `emit = "update"` a window is told as soon as the watermark passes its end, and once more for each late record that changes it until it
/// closes, with the whole of what is known then, `"update": n`, counted from 1, and `"superseded"`, which is true when a later window of the key has been
/// told. Who keeps the record of a window and key that came last has the same as with `"close"`, and has something at once. `alert` goes by
/// what was told first of each window, and makes an amendment where an update of one that is superseded says otherwise. Each late record is an update by itself, behind the watermark that it came behind: how many there are and
/// what each says depends neither on batches nor on threads. With several lanes, what a window tells first and last does not depend on how
/// they were interleaved either; of records of different lanes that came behind the same watermark, either may be told first.
///
/// Aggregates:
///
/// | | |
/// |---|---|
/// | `count()`, `count(CONDITION)` | records; those for which it is true |
/// | `rate()`, `rate(CONDITION)` | the same per second |
/// | `sum(EXPRESSION)` | exact, then rounded once; an integer where all are and it fits; 0 of nothing |
/// | `mean(EXPRESSION)` | the exact sum, rounded, by how many there are |
/// | `min(EXPRESSION)`, `max(EXPRESSION)` | of numbers and times |
/// | `quantile(EXPRESSION, q)` | within 0.8 % of the value at rank q · (n - 1); of the 2³² times smaller ones than the greatest only that they are small |
/// | `distinct(EXPRESSION)` | how many different values; exact up to 256, then ± 1.6 % (one standard deviation) |
/// | `first(EXPRESSION)`, `last(EXPRESSION)` | the value of the record with the least or greatest event time; among equals by source and position |
///
/// Expressions are VRL. A record for which one has no value (a missing field, null, text where a number is needed) is left out of
/// that aggregate and counted under `tocsin_expression_errors_total`; an aggregate of no values is null. Results do not
/// depend on the order in which records come, on threads, or on batches.
///
/// **State:** the aggregates of each key in each open window, and with `emit = "update"` what late records add that wait until all lanes have come to
/// where they came; a hopping window is kept in panes of `every`, so that a record is
/// folded once however many windows overlap. At most `max_keys` keys over all panes, and new ones only while less than `max_bytes` are
/// taken: records of further keys are dropped under the reason `state_full`.
///
/// **When options change:** open windows are kept as long as their length, `group_by` and `aggregates` are the same. Other lengths,
/// keys or aggregates begin with new windows, and what was in the open ones is lost; `tocsin plan` tells before. Another `lateness` or `emit`
/// holds for the windows that are open; where they are told once from now on, those that were told already are told again when they close.
///
/// **Late records:** a record is late for a window that ended `lateness` or more before the watermark of the record's own lane, just before it,
/// or that has closed already. One that is late for all its windows goes to `NAME.late`, or is dropped under the reason `late`
/// where nothing is connected to that.
///
/// **After a crash:** open windows come back with the last checkpoint and the records since are read again: nothing is lost or counted
/// twice where the source can be read again. What was told since is told again, updates under the same numbers.
///
/// ```toml
/// [operators.error_rate]
/// type = "window"
/// inputs = ["server_errors"]
/// tumbling = "1m"                       # or: hopping = { size = "5m", every = "10s" }
/// lateness = "10s"
/// group_by = [".vhost"]
/// aggregates = { errors = "count()", p99 = "quantile(.request_time, 0.99)", clients = "distinct(.client)" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Windows of this length, one after the other. At most ten years.
    tumbling: Option<Duration>,
    /// Windows of the length `size` that start `every` so often, and so overlap.
    hopping: Option<Hopping>,
    #[schemars(skip)]
    session: Option<IgnoredAny>,
    #[schemars(skip)]
    count: Option<IgnoredAny>,
    /// How long after its end a window stays open for late records, in event time. Default: `"0s"`.
    #[serde(default = "nothing")]
    lateness: Duration,
    /// VRL expressions, mostly paths, whose values together are the key; one without a value counts as null. The record
    /// holds each under the last part of its path. Default: none, all records have one key.
    #[serde(default)]
    group_by: Vec<String>,
    /// What to compute, by the name it has in the record.
    aggregates: BTreeMap<String, String>,
    /// When a window is emitted. Default: `"close"`.
    #[serde(default)]
    emit: Emit,
    /// The most keys, over all panes. Default: 1,000,000.
    #[serde(default = "one_million")]
    max_keys: usize,
    /// The memory beyond which no new keys are taken. Default: `"1GiB"`.
    #[serde(default = "one_gibibyte")]
    max_bytes: ByteSize,
    /// The longest key, and the longest value that `first` and `last` remember; encoded, which is a few bytes more than the text. Records with a
    /// longer key are dropped under the reason `state_full`; longer values count as none. Default: `"1KiB"`.
    #[serde(default = "one_kibibyte")]
    max_value_bytes: ByteSize,
}

/// See [`Config::hopping`].
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Hopping {
    /// The length of a window: a multiple of `every`, and at most ten years.
    size: Duration,
    /// How far apart windows start.
    every: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Emit {
    /// Once, when the window closes.
    #[default]
    Close,
    /// At its end, and again, with `"update": n`, when a late record changes it, until it closes.
    Update,
}

fn nothing() -> Duration {
    Duration(std::time::Duration::ZERO)
}

fn one_gibibyte() -> ByteSize {
    ByteSize(1 << 30)
}

/// The name under which a record holds the value of a key expression: the last field of the only path that it reads.
fn name_of(source: &str) -> Option<String> {
    let expression = Expression::compile(source, &mut PathTable::default()).ok()?;
    let reads = expression.reads();
    let [path] = reads.paths() else { return None };
    path.path().segments.iter().rev().find_map(|segment| match segment {
        OwnedSegment::Field(name) => Some(name.to_string()),
        OwnedSegment::Index(_) => None,
    })
}

impl Config {
    fn window_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (option, is_given) in [("session", self.session.is_some()), ("count", self.count.is_some())] {
            if is_given {
                problems.push(
                    Problem::new(option, format!("windows by {option} are not supported yet"))
                        .help("use `tumbling` or `hopping`"),
                );
            }
        }
        match (&self.tumbling, &self.hopping) {
            (Some(_), Some(_)) => {
                problems.push(Problem::new("hopping", "a window cannot be both `tumbling` and `hopping`"));
            }
            (None, None) if problems.is_empty() => {
                problems.push(
                    Problem::new("", "it does not say which windows")
                        .help("add `tumbling = \"1m\"` or `hopping = { size = \"5m\", every = \"10s\" }`"),
                );
            }
            _ => {}
        }
        let lengths = [
            ("tumbling", self.tumbling),
            ("hopping.size", self.hopping.as_ref().map(|hopping| hopping.size)),
            ("hopping.every", self.hopping.as_ref().map(|hopping| hopping.every)),
        ];
        for (option, length) in lengths {
            if length.is_some_and(|length| length.0.is_zero() || length.0 > LONGEST) {
                problems.push(Problem::new(option, "must be longer than nothing and at most ten years"));
            }
        }
        if self.lateness.0 > LONGEST {
            problems.push(Problem::new("lateness", "must be at most ten years"));
        }
        if let Some(Hopping { size, every }) = self.hopping
            && !every.0.is_zero()
        {
            let panes = size.0.as_nanos() / every.0.as_nanos();
            if !size.0.as_nanos().is_multiple_of(every.0.as_nanos()) || panes == 0 {
                problems.push(
                    Problem::new("hopping.size", format!("{size} is not a multiple of `every`, which is {every}"))
                        .help("windows are put together from panes of `every`"),
                );
            } else if panes > PANES {
                problems.push(Problem::new("hopping.every", format!("more than {PANES} windows would overlap")));
            } else if panes > UPDATED_PANES && self.emit == Emit::Update {
                problems.push(
                    Problem::new("hopping.every", format!("each late record would tell {panes} windows anew"))
                        .help(format!("with `emit = \"update\"` at most {UPDATED_PANES} may overlap")),
                );
            }
        }
        problems
    }

    /// The fields that a record has whatever is computed.
    fn own_names(&self) -> impl Iterator<Item = &'static str> {
        ["window_start", "window_end"]
            .into_iter()
            .chain((self.emit == Emit::Update).then_some(["update", "superseded"]).into_iter().flatten())
    }

    fn name_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut names: BTreeMap<_, _> = self.own_names().map(|name| (name.to_owned(), name)).collect();
        for (at, source) in self.group_by.iter().enumerate() {
            if !Expression::check(source).is_empty() {
                continue;
            }
            let option = format!("group_by.{at}");
            let Some(name) = name_of(source) else {
                problems.push(
                    Problem::new(option, "which name its value should have is not clear: it does not read one field")
                        .help("compute it in a `remap` before, and name the field"),
                );
                continue;
            };
            match names.get(&name) {
                Some(other) => problems.push(
                    Problem::new(option, format!("its value would be named `{name}`, as `{other}` is"))
                        .help("rename the field in a `remap` before"),
                ),
                None => {
                    names.insert(name, source);
                }
            }
        }
        for name in self.aggregates.keys() {
            if let Some(other) = names.get(name) {
                problems.push(Problem::new(
                    format!("aggregates.{name}"),
                    format!("the record has a field of this name already: `{other}`"),
                ));
            }
        }
        problems
    }
}

impl OperatorConfig for Config {
    const NAME: &'static str = "window";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.window_problems();
        problems.extend(key_problems("group_by", &self.group_by));
        if self.aggregates.is_empty() {
            problems.push(
                Problem::new("aggregates", "there is nothing to compute")
                    .help("write `aggregates = { n = \"count()\" }`"),
            );
        }
        for (name, source) in &self.aggregates {
            for found in Aggregate::check(source) {
                let mut problem = Problem::new(format!("aggregates.{name}"), found.message).within(found.within);
                problem.help = found.help;
                problems.push(problem);
            }
        }
        problems.extend(self.name_problems());
        if self.emit == Emit::Update && self.lateness.0.is_zero() {
            problems.push(
                Problem::new("emit", "no record is late and still counts: `lateness` is nothing")
                    .help("say for how long windows are told anew, such as `lateness = \"10m\"`"),
            );
        }
        if self.max_keys == 0 {
            problems.push(Problem::new("max_keys", "must be at least 1"));
        }
        problems
    }

    fn ports(&self) -> Ports {
        vec!["late".into()]
    }

    fn needs_time(&self) -> bool {
        true
    }

    /// Panes are of one length and hold accumulators by key in the order of the aggregates. When windows close, and how much may
    /// be kept, is not in them.
    fn state_shape(&self, _: Json) -> Json {
        let aggregates: BTreeMap<_, _> = self.aggregates.iter().map(|(name, source)| (name, source.trim())).collect();
        let mut shape = json!({ "group_by": trimmed(&self.group_by), "aggregates": aggregates });
        match (&self.tumbling, &self.hopping) {
            (Some(size), _) => shape["tumbling"] = json!(size.to_string()),
            // A window that starts as often as it is long is a tumbling one.
            (None, Some(Hopping { size, every })) if size == every => shape["tumbling"] = json!(size.to_string()),
            (None, Some(Hopping { size, every })) => {
                shape["hopping"] = json!({ "size": size.to_string(), "every": every.to_string() });
            }
            (None, None) => {}
        }
        shape
    }

    fn keying(&self) -> Keying {
        Keying::By { option: "group_by", key: self.group_by.clone() }
    }

    fn makes(&self) -> Makes {
        Makes::Windows
    }

    fn fields(&self) -> Option<BTreeSet<String>> {
        let mut fields: BTreeSet<_> = self.own_names().map(str::to_owned).collect();
        fields.extend(self.aggregates.keys().cloned());
        for source in &self.group_by {
            fields.insert(name_of(source)?);
        }
        Some(fields)
    }

    fn reads_fields(&self) -> Vec<FieldRead> {
        let keys = self.group_by.iter().enumerate();
        keys.flat_map(|(at, source)| of_expression(&format!("group_by.{at}"), source)).collect()
    }

    fn facts(&self) -> Facts {
        let (size, every) = match (&self.tumbling, &self.hopping) {
            (Some(size), _) => (*size, *size),
            (None, Some(hopping)) => (hopping.size, hopping.every),
            (None, None) => return Facts::Nothing,
        };
        Facts::Window(WindowFacts {
            size: size.0,
            every: every.0,
            told_after: if self.emit == Emit::Update { std::time::Duration::ZERO } else { self.lateness.0 },
            keys: self.group_by.iter().filter_map(|source| name_of(source)).collect(),
            aggregates: self.aggregates.iter().map(|(name, call)| (name.clone(), aggregate::known(call))).collect(),
        })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let (size, every) = match (&self.tumbling, &self.hopping) {
            (Some(size), _) => (*size, *size),
            (None, Some(hopping)) => (hopping.size, hopping.every),
            (None, None) => unreachable!("the configuration was checked"),
        };
        let key = compile_key(&self.group_by, context);
        let aggregates: Vec<_> =
            self.aggregates.iter().map(|(name, source)| Aggregate::compile(name, source, context.paths)).collect();
        let reads = aggregates.iter().fold(crate::dedupe::reads_of(&key), |reads, it| reads.union(&it.reads()));
        let plan = Arc::new(Plan {
            size: nanos(size.0),
            every: nanos(every.0),
            lateness: nanos(self.lateness.0),
            updates: self.emit == Emit::Update,
            key,
            aggregates,
            reads: reads.clone(),
            max_value_bytes: usize::try_from(self.max_value_bytes.0).unwrap_or(usize::MAX),
            keeps_late: context.connected.iter().any(|port| port == "late"),
            hasher: RandomState::default(),
        });
        let names: Vec<_> =
            self.group_by.iter().map(|source| name_of(source).expect("the configuration was checked")).collect();
        let lane = Arc::new(Lane::of_operator(Arc::clone(&context.name), Origin::Keyed(names.clone().into())));
        let max_bytes = usize::try_from(self.max_bytes.0).unwrap_or(usize::MAX);
        let window = Window::new(Arc::clone(&plan), lane, &names, self.max_keys, max_bytes);
        Built::Operator { operator: Box::new(window), prepare: Some(Arc::new(Folder(plan))), reads }
    }
}
