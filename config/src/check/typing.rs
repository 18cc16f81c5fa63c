//! The options of each component, in the type that it has, and what is said of those that are not.

use schemars::JsonSchema as _;
use serde::Deserialize as _;
use toml::de::ValueDeserializer;

use super::{Checker, Component, Draft, DraftSink, DraftSource};
use crate::component::{AnyCodec, Problem, Type};
use crate::graph::{Inputs, Kind, Vertex};
use crate::options::{SinkOptions, SourceOptions};
use crate::report::Found;
use crate::shape::{Shape, Walk, list, nearest};
use crate::tree::{Key, Node, Place, Table, Value};

impl<'a> Checker<'a> {
    pub(super) fn component(&mut self, component: Component<'a>) -> (Vertex, Draft) {
        let Component { kind, key, mut node } = component;
        let inputs = match kind {
            Kind::Source => Inputs { are_known: true, ..Inputs::default() },
            Kind::Operator | Kind::Sink => self.inputs(&key, kind, &mut node),
        };
        let (name, place) = (key.name.clone(), node.place.clone());
        let mut vertex = Vertex { name, kind, place, ports: None, inputs, is_relay: false };
        let rejected = || Some(vec!["rejected".to_owned()]);
        let draft = match kind {
            Kind::Source => {
                vertex.ports = rejected();
                Draft::Source(self.source(&key, node).map(Box::new))
            }
            Kind::Operator => {
                let types = self.catalog.operators;
                let options = self.typed(&key, &mut node, kind, types, &["inputs"], |options| options.problems());
                vertex.ports = options.as_ref().map(|(_, options)| options.ports());
                vertex.is_relay = options.as_ref().is_some_and(|(_, options)| options.repartition().is_some());
                Draft::Operator(options.map(|(name, options)| {
                    let shape = options.state_shape(node.to_json());
                    (name, options, shape)
                }))
            }
            Kind::Sink => {
                let sink = self.sink(&key, node);
                vertex.ports = sink.as_ref().map(|(_, options, _)| options.ports());
                Draft::Sink(sink)
            }
        };
        (vertex, draft)
    }

    pub(super) fn sink(&mut self, key: &Key, mut node: Node<'_>) -> Option<DraftSink> {
        let common = split(&mut node, &["buffer"]);
        let (types, further) = (self.catalog.sinks, ["inputs", "buffer"]);
        let options = self.typed(key, &mut node, Kind::Sink, types, &further, |options| options.problems());
        let common = self.sink_options(key, common);
        options.zip(common).map(|((name, options), common)| (name, options, common))
    }

    pub(super) fn source(&mut self, key: &Key, mut node: Node<'_>) -> Option<DraftSource> {
        let shape = Shape::of(SourceOptions::json_schema);
        let names = shape.options();
        let mut common = split(&mut node, &names);
        let codec = node.take("codec");
        let further: Vec<&str> = names.iter().copied().chain(["codec"]).collect();
        let types = self.catalog.sources;
        let options = self.typed(key, &mut node, Kind::Source, types, &further, |options| options.problems());
        self.examine(&shape, &mut common, &[], &key.name);
        let journal = common.get("journal").map(|node| node.place.clone());
        let read = |value: ValueDeserializer<'_>| SourceOptions::deserialize(value);
        let common = self.parse(&common, &shape, &key.name, read, |options| options.check().0);
        let codec = match (codec, &options) {
            (Some((codec_key, codec)), _) => self.codec(&codec_key, codec),
            (None, Some((_, options))) => self.codec(key, Node::text(options.default_codec(), node.place.clone())),
            (None, None) => None,
        };
        if let (Some(true), Some((type_name, options)), Some(place)) =
            (common.as_ref().and_then(|common| common.journal), &options, journal)
            && options.is_replayable()
        {
            let message = format!("`{type_name}` can be read again after a crash, so it needs no journal");
            self.problems.push(Found::new(&place, message).help("remove it"));
        }
        let ((type_name, options), (codec_name, codec)) = (options?, codec?);
        let common = common?;
        let (_, records, timestamp) = common.check();
        Some(DraftSource { type_name, options, codec_name, codec, common, timestamp, records })
    }

    /// The codec, named by a string or by `type` in a table of options.
    pub(super) fn codec(&mut self, key: &Key, mut node: Node<'_>) -> Option<(&'static str, Box<dyn AnyCodec>)> {
        if let Some(name) = node.as_text() {
            let name =
                (Key { name: "type".to_owned(), place: node.place.clone() }, Node::text(name, node.place.clone()));
            node.value = Value::Table(vec![name]);
        }
        if node.as_table().is_none() {
            let message = format!("`codec` is a name or a table, not {}", node.kind());
            self.problems.push(
                Found::new(&node.place, message).help("write `codec = \"json\"`, or `codec = { type = \"csv\", … }`"),
            );
            return None;
        }
        let type_place = node.get("type").map(|name| name.place.clone());
        let type_name = self.type_name(key, &mut node, "codec", "", &names(self.catalog.codecs))?;
        let Some(found) = self.catalog.codecs.iter().find(|known| known.name == type_name) else {
            let place = type_place.unwrap_or(node.place);
            self.unknown_type("codec", &type_name, &place, &names(self.catalog.codecs));
            return None;
        };
        let shape = Shape::of(found.schema);
        self.examine(&shape, &mut node, &["type"], found.name);
        let codec = self.parse(&node, &shape, found.name, found.parse, |codec| codec.problems())?;
        Some((found.name, codec))
    }

    pub(super) fn sink_options(&mut self, key: &Key, mut common: Node<'_>) -> Option<SinkOptions> {
        let shape = Shape::of(SinkOptions::json_schema);
        self.examine(&shape, &mut common, &[], &key.name);
        self.parse(&common, &shape, &key.name, |value| SinkOptions::deserialize(value), SinkOptions::problems)
    }

    /// Takes `inputs` out of a component's table.
    pub(super) fn inputs(&mut self, key: &Key, kind: Kind, node: &mut Node<'a>) -> Inputs {
        let help = "name the sources or operators it reads: `inputs = [\"NAME\"]`";
        let mut named = Inputs::default();
        let Some((_, inputs)) = node.take("inputs") else {
            let message = format!("the {} `{}` has no `inputs`", kind.noun(), key.name);
            self.problems.push(Found::new(&node.place, message).help(help));
            return named;
        };
        let Value::List(values) = &inputs.value else {
            let help = match inputs.as_text() {
                Some(name) => format!("write it as a list: `inputs = [{name:?}]`"),
                None => help.to_owned(),
            };
            let message = format!("`inputs` is a list of names, not {}", inputs.kind());
            self.problems.push(Found::new(&inputs.place, message).help(help));
            return named;
        };
        if values.is_empty() {
            let message = format!("the {} `{}` has no inputs", kind.noun(), key.name);
            self.problems.push(Found::new(&inputs.place, message).help(help));
        }
        named.are_known = true;
        for value in values {
            match value.as_text() {
                Some(name) => named.names.push((name.to_owned(), value.place.clone())),
                None => {
                    let message = format!("`inputs` is a list of names; this is {}", value.kind());
                    self.problems.push(Found::new(&value.place, message).help(help));
                    named.are_known = false;
                }
            }
        }
        named
    }

    /// Takes `type` out of a table.
    pub(super) fn type_name(
        &mut self,
        key: &Key,
        node: &mut Node<'_>,
        noun: &str,
        whose: &str,
        known: &[&'static str],
    ) -> Option<String> {
        let Some((_, name)) = node.take("type") else {
            let message = format!("the {noun} {whose}has no `type`");
            self.problems
                .push(Found::new(&node.place, message).help(format!("it is one of {}", list(known.iter().copied()))));
            self.hide_deep(node, &key.name);
            return None;
        };
        if let Some(text) = name.as_text() {
            return Some(text.to_owned());
        }
        let message = format!("`type` is the name of a kind of {noun}, not {}", name.kind());
        self.problems
            .push(Found::new(&name.place, message).help(format!("it is one of {}", list(known.iter().copied()))));
        self.hide_deep(node, &key.name);
        None
    }

    pub(super) fn unknown_type(&mut self, noun: &str, name: &str, place: &Place, known: &[&'static str]) {
        let help = match nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("it is one of {}", list(known.iter().copied())),
        };
        self.problems.push(Found::new(place, format!("there is no {noun} of type {name:?}")).help(help));
    }

    /// Reads a component's own options; `further` are the names of others that it has.
    pub(super) fn typed<C: ?Sized>(
        &mut self,
        key: &Key,
        node: &mut Node<'_>,
        kind: Kind,
        types: &'static [Type<C>],
        further: &[&str],
        problems: impl Fn(&C) -> Vec<Problem>,
    ) -> Option<(&'static str, Box<C>)> {
        let known = names(types);
        let place = node.get("type").map_or(node.place.clone(), |name| name.place.clone());
        let name = self.type_name(key, node, kind.noun(), &format!("`{}` ", key.name), &known)?;
        let Some(found) = types.iter().find(|known| known.name == name) else {
            self.unknown_type(kind.noun(), &name, &place, &known);
            self.hide_deep(node, &key.name);
            return None;
        };
        let shape = Shape::of(found.schema);
        let further: Vec<&str> = further.iter().copied().chain(["type"]).collect();
        self.examine(&shape, node, &further, found.name);
        Some((found.name, self.parse(node, &shape, &key.name, found.parse, |options| problems(options))?))
    }

    pub(super) fn examine(&mut self, shape: &Shape, node: &mut Node<'_>, further: &[&str], what: &str) {
        let all = &self.sources.all;
        let (problems, secrets, secret_names) = (&mut self.problems, &mut self.secrets, &self.secret_names[..]);
        shape.examine(node, further, what, &mut Walk { all, problems, secrets, secret_names });
    }

    /// Reads options from a table and has them checked. Reading stops at the first problem, so what is wrong is taken out
    /// and the rest read again, until all is told.
    pub(super) fn parse<T>(
        &mut self,
        node: &Node<'_>,
        shape: &Shape,
        what: &str,
        parse: impl Fn(ValueDeserializer<'_>) -> Result<T, toml::de::Error>,
        problems: impl Fn(&T) -> Vec<Problem>,
    ) -> Option<T> {
        let mut node = node.clone();
        let mut removed: Vec<String> = Vec::new();
        loop {
            let error = match parse(node.deserializer()) {
                Ok(options) => {
                    let mut problems = problems(&options);
                    // What was taken out has its default now or none: what is said of it, of what goes with it, or of the
                    // component as a whole means nothing.
                    problems.retain(|problem| {
                        removed.is_empty()
                            || !problem.option.is_empty()
                                && removed.iter().all(|name| {
                                    !problem.option.starts_with(name.as_str())
                                        && !problem.message.contains(&format!("`{name}`"))
                                })
                    });
                    self.told(problems, &node);
                    return removed.is_empty().then_some(options);
                }
                Err(error) => error,
            };
            let place = error.span().unwrap_or_else(|| node.place.clone());
            let table = node.as_table_mut()?;
            let wrong = table.iter().position(|(key, value)| {
                value.covers(&place) || (key.place.start <= place.start && place.end <= key.place.end)
            });
            if let Some(at) = wrong {
                let (key, _) = table.remove(at);
                let (message, help) = in_words(error.message());
                self.problems.push(Found::new(&place, message).maybe_help(help));
                removed.push(key.name);
                continue;
            }
            // Nothing in the table is wrong, so something is missing.
            let missing = error.message().strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            if let (None, Some(at)) = (missing, blamed(&node, &error, &parse)) {
                let (key, value) = node.as_table_mut()?.remove(at);
                let (message, help) = in_words(error.message());
                self.problems.push(Found::new(&value.place, message).maybe_help(help));
                removed.push(key.name);
                continue;
            }
            let Some(missing) = missing else {
                let (message, help) = in_words(error.message());
                self.problems.push(Found::new(&node.place, message).maybe_help(help));
                return None;
            };
            let mut all: Vec<&str> = shape.required();
            if !all.contains(&missing) {
                all.push(missing);
            }
            for name in all {
                if removed.iter().all(|removed| removed != name) && node.get(name).is_none() {
                    let help = shape.summary(name).map(|summary| format!("`{name}`: {summary}"));
                    self.problems.push(Found::new(&node.place, format!("`{what}` needs `{name}`")).maybe_help(help));
                }
            }
            return None;
        }
    }

    /// Adds places to what a component found wrong with its options.
    pub(super) fn told(&mut self, problems: Vec<Problem>, node: &Node<'_>) {
        for problem in problems {
            let found = node.find(&problem.option);
            let place = match (found, &problem.within) {
                (Some(option), Some(within)) => option.place_within(within, &self.sources.all),
                (Some(option), None) => option.place.clone(),
                (None, _) => node.place.clone(),
            };
            self.problems.push(Found::new(&place, problem.message).maybe_help(problem.help));
        }
    }
}

pub(super) fn names<C: ?Sized>(types: &'static [Type<C>]) -> Vec<&'static str> {
    types.iter().map(|known| known.name).collect()
}

/// Takes the entries of these names out of a table, into one of the same place.
pub(super) fn split<'a>(node: &mut Node<'a>, names: &[&str]) -> Node<'a> {
    let mut part = Node::table(node.place.clone());
    let taken: Table<'a> = names.iter().filter_map(|name| node.take(name)).collect();
    if let Some(table) = part.as_table_mut() {
        *table = taken;
    }
    part
}

/// The option that is wrong where an error has no place, as with options that several types of component share: the one without
/// which something else is said, or nothing.
fn blamed<T>(
    node: &Node<'_>,
    error: &toml::de::Error,
    parse: &impl Fn(ValueDeserializer<'_>) -> Result<T, toml::de::Error>,
) -> Option<usize> {
    (0..node.as_table()?.len()).find(|at| {
        let mut less = node.clone();
        let Some(table) = less.as_table_mut() else { return false };
        table.remove(*at);
        match parse(less.deserializer()) {
            Ok(_) => true,
            Err(other) => other.message() != error.message() && !other.message().starts_with("missing field `"),
        }
    })
}

/// What serde says, in the words of a configuration; and the way out, if it tells one.
fn in_words(message: &str) -> (String, Option<String>) {
    if let Some((message, help)) = message.rsplit_once("; write ") {
        return (message.to_owned(), Some(format!("write {help}")));
    }
    if let Some(rest) = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))
        && let Some((found, expected)) = rest.rsplit_once(", expected ")
    {
        return (format!("expected {}, found {}", expected_words(expected), found_words(found)), None);
    }
    if let Some(rest) = message.strip_prefix("unknown variant `")
        && let Some((found, expected)) = rest.split_once("`, ")
    {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let help = match nearest(found, known.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("it is one of {}", list(known)),
        };
        return (format!("{found:?} is not one of the values it can have"), Some(help));
    }
    if message.starts_with("wanted exactly 1 element") {
        return ("exactly one of the forms of the option must be given".to_owned(), None);
    }
    if message.starts_with("data did not match any variant") {
        return ("this is none of the forms that the option has".to_owned(), Some("see `tocsin help TYPE`".to_owned()));
    }
    if let Some(rest) = message.strip_prefix("missing field `") {
        return (format!("`{}` is missing", rest.trim_end_matches('`')), None);
    }
    (message.to_owned(), None)
}

fn expected_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a nonzero u8" | "a nonzero u16" | "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => {
            "a whole number above zero"
        }
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "str" | "a path string" => "text",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") || other.starts_with("internally tagged") => "a table",
        other => other,
    }
}

fn found_words(found: &str) -> String {
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let value = value.trim_matches('`');
    match kind {
        "integer" | "floating" => format!("the number {}", value.trim_start_matches("point `")),
        "boolean" => value.to_owned(),
        "string" => format!("the text {value}"),
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        _ => found.to_owned(),
    }
}
