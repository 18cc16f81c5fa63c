//! Checking: text in, a plan or all its problems out. Nothing but the [`Environment`] is asked of the outside world.

mod findings;
mod unwritten;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema as _;
use serde::Deserialize;
use serde_json::Value as Json;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use self::unwritten::Ends;
use crate::component::{AnyCodec, AnyOperator, AnySink, AnySource, Catalog, Partitioned, Problem, Type};
use crate::fields::{self, Operators, Reader};
use crate::graph::{self, Graph, Inputs, Kind, Vertex};
use crate::lints;
use crate::options::{DaemonOptions, SinkOptions, SourceOptions};
use crate::plan::{
    ComponentId, Place as PlanPlace, Plan, PlannedOperator, PlannedRelay, PlannedSink, PlannedSource, Test,
};
use crate::report::{Found, Report, Secrets, Sources};
use crate::scale::{self, Member, Members, Role};
use crate::shape::{Shape, Walk, list, nearest};
use crate::silence::{Silence, SilenceOptions};
use crate::substitute::{Environment, FILE_BYTES, Piece, expand, written};
use crate::testing::{Names, TestOptions};
use crate::tree::{Key, Node, Place, Table, Value, table_from_toml};

/// The option whose value is the path of a file that holds a program.
const PROGRAM_FILE: &str = "program_file";

/// A file of the configuration, as read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Its path as it was given: relative paths in it start at the path's folder.
    pub name: String,
    pub text: String,
}

/// What overrides are called in places.
const SET: &str = "--set";

/// Checks files that together are one configuration. Each override is `key=value` with a dotted key, such as
/// `sinks.mail.smtp=smtp://localhost`; the value is TOML, or text as it stands if it is not TOML.
///
/// # Errors
/// All problems there are.
pub fn check(
    files: &[SourceFile],
    environment: &dyn Environment,
    catalog: &Catalog,
    overrides: &[String],
) -> Result<Plan, Report> {
    let texts = files.iter().map(|file| (file.name.as_str(), file.text.as_str()));
    let sources = Sources::new(texts.chain(overrides.iter().map(|set| (SET, set.as_str()))));
    let mut checker = Checker {
        sources: &sources,
        environment,
        catalog,
        problems: Vec::new(),
        secrets: Secrets::default(),
        secret_names: secret_names(catalog),
        is_partial: false,
        daemon: Table::new(),
        components: Vec::new(),
        silences: Vec::new(),
        tests: Vec::new(),
    };
    let ranges: Vec<_> = sources.ranges().map(|(_, range)| range).collect();
    let (of_files, of_overrides) = ranges.split_at(files.len());
    for range in of_files {
        checker.file(range.clone());
    }
    checker.components.sort_by_key(|component| component.key.place.start);
    for range in of_overrides {
        checker.set(range.clone());
    }
    checker.finish()
}

/// A table of `sources`, `operators` or `sinks`.
struct Component<'a> {
    kind: Kind,
    key: Key,
    node: Node<'a>,
}

/// Components as far as they could be read; the order is that of the vertices of the graph.
enum Draft {
    Source(Option<Box<DraftSource>>),
    Operator(Option<(&'static str, Box<dyn AnyOperator>, Json)>),
    Sink(Option<DraftSink>),
}

type DraftSink = (&'static str, Box<dyn AnySink>, SinkOptions);

struct DraftSource {
    type_name: &'static str,
    options: Box<dyn AnySource>,
    codec_name: &'static str,
    codec: Box<dyn AnyCodec>,
    common: SourceOptions,
    timestamp: Option<tocsin_pipeline::timestamp::TimestampOptions>,
    records: tocsin_pipeline::source::RecordOptions,
}

/// How a component is written, and where.
struct Written<'a> {
    node: Node<'a>,
    place: PlanPlace,
    /// The folder of its file.
    folder: PathBuf,
}

/// What a component of the plan is made of.
struct Part {
    name: Arc<str>,
    draft: Draft,
    /// How many entries its `inputs` has.
    inputs: usize,
    place: PlanPlace,
    folder: PathBuf,
}

struct Checker<'a> {
    sources: &'a Sources,
    environment: &'a dyn Environment,
    catalog: &'a Catalog,
    problems: Vec<Found>,
    secrets: Secrets,
    secret_names: Vec<String>,
    /// Whether a file could not be read as TOML: what it would have defined is not known.
    is_partial: bool,
    daemon: Table<'a>,
    components: Vec<Component<'a>>,
    silences: Vec<Node<'a>>,
    tests: Vec<Node<'a>>,
}

/// The top-level tables.
const SECTIONS: [&str; 8] = ["daemon", "sources", "operators", "sinks", "tests", "silences", "tables", "templates"];

impl<'a> Checker<'a> {
    fn file(&mut self, range: Place) {
        let text: &'a str = &self.sources.all[range.clone()];
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            self.is_partial = true;
            for error in errors {
                let span = error.span().unwrap_or(0..0);
                let place = range.start + span.start..range.start + span.end;
                self.problems.push(Found::new(&place, format!("not TOML: {}", error.message())));
            }
            self.hide_by_name(range);
            return;
        }
        let folder = self.folder(range.start);
        for (key, mut value) in table_from_toml(table.into_inner(), range.start) {
            self.substitute(&mut value, &folder);
            match key.name.as_str() {
                "daemon" => self.daemon_table(&key, value),
                "sources" => self.component_tables(Kind::Source, &key, value),
                "operators" => self.component_tables(Kind::Operator, &key, value),
                "sinks" => self.component_tables(Kind::Sink, &key, value),
                name @ ("silences" | "tests") => match value.value {
                    Value::List(tests) if name == "tests" => self.tests.extend(tests),
                    Value::List(silences) => self.silences.extend(silences),
                    _ => self.problems.push(
                        Found::new(&value.place, format!("`{name}` is a list of tables"))
                            .help(format!("write each as `[[{name}]]`")),
                    ),
                },
                "tables" | "templates" => {
                    let message = format!("`{}` is not supported yet", key.name);
                    self.problems.push(Found::new(&key.place, message).help("remove it"));
                }
                name => {
                    let help = match nearest(name, SECTIONS) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None => {
                            "a configuration has `[daemon]`, `[sources.NAME]`, `[operators.NAME]`, `[sinks.NAME]`, \
                                 `[[silences]]` and `[[tests]]`"
                                .to_owned()
                        }
                    };
                    self.hide_deep(&value, name);
                    self.problems.push(Found::new(&key.place, format!("unknown table `{name}`")).help(help));
                }
            }
        }
    }

    /// The folder of the file that an offset is in.
    fn folder(&self, offset: usize) -> PathBuf {
        let (name, _) = self.sources.line(offset);
        if &*name == SET {
            return PathBuf::new();
        }
        Path::new(&*name).parent().map(Path::to_owned).unwrap_or_default()
    }

    fn plan_place(&self, place: &Place) -> PlanPlace {
        let (file, line) = self.sources.line(place.start);
        PlanPlace { file, line }
    }

    fn substitute(&mut self, node: &mut Node<'a>, folder: &Path) {
        match &mut node.value {
            Value::Text { text, .. } if text.contains("${") => {
                let expanded = expand(text, self.environment, folder);
                for (within, message, help) in expanded.problems {
                    let place = node.place_within(&within, &self.sources.all);
                    self.problems.push(Found::new(&place, message).help(help));
                }
                self.secrets.values.extend(expanded.secrets);
                node.value = Value::Text { text: expanded.text, pieces: expanded.pieces };
            }
            Value::Text { .. } | Value::Scalar(_) => {}
            Value::List(values) => values.iter_mut().for_each(|value| self.substitute(value, folder)),
            Value::Table(table) => {
                for (key, value) in table {
                    self.substitute(value, folder);
                    if key.name == PROGRAM_FILE {
                        self.include(value, folder);
                    }
                }
            }
        }
    }

    /// Puts the content of a file in the place of its path, so that a component can check it without reading anything.
    fn include(&mut self, node: &mut Node<'a>, folder: &Path) {
        let Value::Text { text: path, pieces } = &node.value else { return };
        let from = written(pieces, &(0..path.len()));
        let file = folder.join(path);
        match self.environment.file(&file, FILE_BYTES) {
            Ok(text) => {
                let pieces = vec![Piece { from, to: 0..text.len() }];
                node.value = Value::Text { text, pieces };
            }
            Err(reason) => {
                let message = format!("cannot read the file {path:?}: {reason}");
                let help = format!("it is looked for at {:?}", file.display().to_string());
                self.problems.push(Found::new(&node.place, message).help(help));
                // Nothing is wrong with a program that is not there.
                node.value = Value::Text { text: ".".to_owned(), pieces: vec![Piece { from, to: 0..1 }] };
            }
        }
    }

    /// Several files may each say something of the daemon.
    fn daemon_table(&mut self, key: &Key, value: Node<'a>) {
        let Value::Table(table) = value.value else {
            let message = format!("`daemon` is a table, not {}", value.kind());
            self.problems.push(Found::new(&key.place, message).help("write its options below `[daemon]`"));
            return;
        };
        for (key, value) in table {
            match self.daemon.iter().find(|(known, _)| known.name == key.name) {
                Some((first, _)) => self.problems.push(
                    Found::new(&key.place, format!("`daemon.{}` is given twice", key.name))
                        .note(&first.place, "here first"),
                ),
                None => self.daemon.push((key, value)),
            }
        }
    }

    fn component_tables(&mut self, kind: Kind, section: &Key, value: Node<'a>) {
        let (word, noun) = (kind.section(), kind.noun());
        let Value::Table(table) = value.value else {
            let message = format!("`{word}` is a table of {word}, not {}", value.kind());
            self.hide_deep(&value, &section.name);
            self.problems
                .push(Found::new(&section.place, message).help(format!("write each {noun} as `[{word}.NAME]`")));
            return;
        };
        for (key, node) in table {
            if node.as_table().is_none() {
                let message = format!("the {noun} `{}` is a table, not {}", key.name, node.kind());
                self.hide_deep(&node, &key.name);
                self.problems
                    .push(Found::new(&key.place, message).help(format!("write each {noun} as `[{word}.NAME]`")));
                continue;
            }
            let is_plain = |character: char| character.is_ascii_alphanumeric() || character == '_' || character == '-';
            if key.name.is_empty() || !key.name.chars().all(is_plain) {
                let message = format!("{:?} cannot be the name of a {noun}", key.name);
                self.problems.push(Found::new(&key.place, message).help("use letters, digits, `_` and `-`"));
            }
            match self.components.iter().find(|known| known.key.name == key.name) {
                Some(first) => {
                    let message = format!("there are two components called `{}`", key.name);
                    let found = Found::new(&key.place, message).help("give one of them another name");
                    self.problems.push(found.note(&first.key.place, "here first"));
                }
                None => self.components.push(Component { kind, key, node }),
            }
        }
    }

    /// Where a file is not even TOML, nobody knows which values are secrets; their names must do.
    fn hide_by_name(&mut self, range: Place) {
        let text = &self.sources.all[range.clone()];
        for name in &self.secret_names {
            for (at, _) in text.match_indices(name.as_str()) {
                let rest = text[at + name.len()..].trim_start_matches(['"', '\'', ' ', '\t']);
                let Some(value) = rest.strip_prefix('=') else { continue };
                let value = value.trim_start_matches([' ', '\t']);
                let start = text.len() - value.len();
                let quotes = ["\"\"\"", "'''"].into_iter().find(|quotes| value.starts_with(quotes));
                let end = match quotes {
                    Some(quotes) => value[3..].find(quotes).map_or(value.len(), |end| end + 6),
                    None => value.find('\n').unwrap_or(value.len()),
                };
                self.secrets.places.push(range.start + start..range.start + start + end);
            }
        }
    }

    /// Of tables that nothing is known of, hides what is called like a secret.
    fn hide_deep(&mut self, node: &Node<'_>, name: &str) {
        let is_secret = self.secret_names.iter().any(|secret| secret == name);
        let all = &self.sources.all;
        let (problems, secrets, secret_names) = (&mut self.problems, &mut self.secrets, &self.secret_names[..]);
        let mut walk = Walk { all, problems, secrets, secret_names };
        if is_secret {
            walk.secret(node);
            return;
        }
        match &node.value {
            Value::Table(table) => table.iter().for_each(|(key, value)| self.hide_deep(value, &key.name)),
            Value::List(values) => values.iter().for_each(|value| self.hide_deep(value, name)),
            Value::Text { .. } | Value::Scalar(_) => {}
        }
    }

    /// One `key=value` of the command line.
    fn set(&mut self, range: Place) {
        let text: &'a str = &self.sources.all[range.clone()];
        let Some((key, value)) = text.split_once('=') else {
            let help = "write `key=value`, such as `sinks.mail.smtp=smtp://localhost`";
            self.problems.push(Found::new(&range, "an override without `=`").help(help));
            return;
        };
        let at = range.start + key.len() + 1;
        let place = at..range.end;
        let mut node = match DeValue::parse(value) {
            Ok(parsed) => Node::from_toml(parsed, at),
            Err(_) => Node::text(value, place),
        };
        // A key within a wrong path must not make a secret visible.
        let last = key.rsplit('.').next().unwrap_or(key).trim_matches(['"', '\'', ' ']).to_owned();
        self.hide_deep(&node, &last);
        self.substitute(&mut node, Path::new(""));
        let Some(path) = parse_key(key, range.start) else {
            let place = range.start..range.start + key.len();
            let help = "write the table and the option with dots between them: `sinks.mail.smtp=…`";
            self.problems.push(Found::new(&place, format!("{key:?} is not a key")).help(help));
            return;
        };
        let (table, rest) = match path.as_slice() {
            [section, rest @ ..] if section.name == "daemon" && !rest.is_empty() => (&mut self.daemon, rest),
            [section, name, rest @ ..]
                if !rest.is_empty() && ["sources", "operators", "sinks"].contains(&section.name.as_str()) =>
            {
                let component = self
                    .components
                    .iter_mut()
                    .find(|component| component.key.name == name.name && component.kind.section() == section.name);
                match component.and_then(|component| component.node.as_table_mut()) {
                    Some(table) => (table, rest),
                    None => {
                        if !self.is_partial {
                            let known = self.components.iter().filter(|known| known.kind.section() == section.name);
                            let meant = nearest(&name.name, known.map(|known| known.key.name.as_str()));
                            let message = format!("there is no `{}.{}`", section.name, name.name);
                            let help = meant.map(|meant| format!("did you mean `{}.{meant}`?", section.name));
                            self.problems.push(Found::new(&name.place, message).maybe_help(help));
                        }
                        return;
                    }
                }
            }
            [first, ..] => {
                let help = "it sets an option of the daemon or of a component: `daemon.memory=…`, `sinks.mail.smtp=…`";
                self.problems.push(Found::new(&first.place, format!("{key:?} is not an option's key")).help(help));
                return;
            }
            [] => return,
        };
        if let Err(at) = insert(table, rest, node) {
            let message = format!("`{}` is no table, so nothing in it can be set", at.name);
            self.problems.push(Found::new(&at.place, message));
        }
    }

    fn finish(mut self) -> Result<Plan, Report> {
        let store = self.daemon.iter().find(|(key, _)| key.name == "checkpoint_store");
        let store = store.map(|(_, node)| node.place.clone());
        let daemon_place = self.daemon.first().map_or(0..0, |(key, _)| key.place.clone());
        let daemon_node = Node { place: daemon_place, value: Value::Table(self.daemon.clone()) };
        let daemon = self.daemon_options();
        let components = std::mem::take(&mut self.components);
        let (mut vertices, mut drafts, mut written) = (Vec::new(), Vec::new(), Vec::new());
        for component in components {
            written.push(Written {
                node: component.node.clone(),
                place: self.plan_place(&component.key.place),
                folder: self.folder(component.key.place.start),
            });
            let (vertex, draft) = self.component(component);
            vertices.push(vertex);
            drafts.push(draft);
        }
        self.commands(&mut vertices, &mut drafts, &mut written);
        let silences = self.silences();
        self.problems.extend(findings::problems_of_allowances(&daemon_node, &vertices, self.is_partial));
        let is_empty = !self.is_partial && self.problems.is_empty();
        if is_empty && !vertices.iter().any(|vertex| vertex.kind == Kind::Source) {
            let message = "the configuration has no source";
            self.problems.push(Found::new(&(0..0), message).help("begin with a table `[sources.NAME]`"));
        }
        let graph = graph::resolve(&vertices, self.is_partial, &mut self.problems);
        let tests = self.test_cases(&vertices, &graph);
        self.fields(&vertices, &drafts, &written, &graph);
        self.scale(&members(&vertices, &drafts, &written, &graph), &graph, store);
        let ends =
            if self.problems.is_empty() { self.relays(&vertices, &drafts, &written, &graph) } else { Vec::new() };
        if !self.problems.is_empty() {
            return Err(self.sources.report(self.problems, &self.secrets));
        }
        let daemon = daemon.unwrap_or_default();
        let view = lints::View {
            members: findings::members(&vertices, &drafts, &written, &graph),
            edges: findings::edges(&graph),
            daemon: &daemon,
            daemon_node: &daemon_node,
            silences: &silences,
            tests: &tests,
            secrets: &self.secrets.places,
            now: self.environment.now(),
        };
        let found = lints::find(&view, &self.sources.all);
        let mut plan = Plan {
            daemon,
            sources: Vec::new(),
            operators: Vec::new(),
            sinks: Vec::new(),
            edges: graph.edges,
            relays: Vec::new(),
            silences: silences.into_iter().map(|(silence, _)| silence).collect(),
            tests,
            findings: self.sources.report(found, &self.secrets),
        };
        let mut parts: Vec<_> = drafts
            .into_iter()
            .zip(written)
            .zip(vertices)
            .zip(graph.ids)
            .map(|(((draft, Written { place, folder, .. }), vertex), id)| {
                let inputs = vertex.inputs.names.len();
                (id, Part { name: Arc::from(vertex.name), draft, inputs, place, folder })
            })
            .collect();
        for Ends { vertex, source, sink, reader, folder, .. } in ends {
            let ComponentId::Sink(number) = parts[vertex].0 else { unreachable!("a relay is numbered as a sink") };
            plan.relays.push(PlannedRelay { sink: number, source });
            let written = &mut parts[vertex].1;
            let place = written.place.clone();
            (written.draft, written.folder) = (sink, folder.clone());
            let name = Arc::from(format!("{}{}", written.name, scale::OUT));
            parts.push((ComponentId::Source(source), Part { name, draft: reader, inputs: 0, place, folder }));
        }
        parts.sort_by_key(|(id, _)| *id);
        for (_, Part { name, draft, inputs, place, folder }) in parts {
            match draft {
                Draft::Source(draft) => {
                    let draft = *draft.expect("there are no problems, so it was read");
                    plan.sources.push(PlannedSource {
                        name,
                        type_name: draft.type_name,
                        journal: draft.common.journal(&*draft.options),
                        options: draft.options,
                        codec_name: draft.codec_name,
                        codec: draft.codec,
                        timestamp: draft.timestamp,
                        records: draft.records,
                        on_decode_error: draft.common.on_decode_error,
                        out_of_order: draft.common.out_of_order.0,
                        idle_timeout: draft.common.idle_timeout.0,
                        place,
                        folder,
                    });
                }
                Draft::Operator(draft) => {
                    let (type_name, options, shape) = draft.expect("there are no problems, so it was read");
                    plan.operators.push(PlannedOperator { name, type_name, options, shape, inputs, place, folder });
                }
                Draft::Sink(draft) => {
                    let (type_name, options, common) = draft.expect("there are no problems, so it was read");
                    plan.sinks.push(PlannedSink { name, type_name, options, buffer: common.buffer, place, folder });
                }
            }
        }
        Ok(plan)
    }

    fn silences(&mut self) -> Vec<(Silence, Node<'a>)> {
        let shape = Shape::of(SilenceOptions::json_schema);
        let mut silences = Vec::new();
        for mut node in std::mem::take(&mut self.silences) {
            if node.as_table().is_none() {
                self.problems
                    .push(Found::new(&node.place, "a silence is a table").help("write each silence as `[[silences]]`"));
                continue;
            }
            self.examine(&shape, &mut node, &[], "silences");
            let read = |value: ValueDeserializer<'_>| SilenceOptions::deserialize(value);
            let options = self.parse(&node, &shape, "silences", read, SilenceOptions::problems);
            if let Some(options) = options.filter(|options| options.problems().is_empty()) {
                silences.push((options.build(), node));
            }
        }
        silences
    }

    /// What operators read by name and cannot be there.
    fn fields(&mut self, vertices: &[Vertex], drafts: &[Draft], written: &[Written<'a>], graph: &Graph) {
        let all = || vertices.iter().zip(drafts).zip(&graph.ids);
        let operators: Operators<'_> = all()
            .filter_map(|((vertex, draft), id)| match draft {
                Draft::Operator(Some((_, options, _))) if !vertex.is_relay => {
                    let inputs = vertex.inputs.are_known.then_some(vertex.inputs.names.len());
                    Some((*id, Reader { options: &**options, inputs }))
                }
                _ => None,
            })
            .collect();
        let name = |id: ComponentId| {
            let found = all().find(|(_, known)| **known == id);
            found.map_or("", |((vertex, _), _)| vertex.name.as_str())
        };
        let found: Vec<_> = (graph.ids.iter().zip(written))
            .map(|(id, written)| (fields::problems(*id, &operators, &graph.edges, name), &written.node))
            .collect();
        for (problems, node) in found {
            self.told(problems, node);
        }
    }

    /// What is wrong with the configuration for as many daemons as are to run it.
    fn scale(&mut self, members: &Members<'_>, graph: &Graph, store: Option<Place>) {
        let is_whole = self.problems.is_empty();
        self.problems.extend(match &store {
            Some(store) => scale::problems_of_several(members, &graph.edges, store, is_whole),
            // The file that says so may be the one that could not be read.
            None if self.is_partial => Vec::new(),
            None => scale::problems_of_one(members),
        });
    }

    fn daemon_options(&mut self) -> Option<DaemonOptions> {
        let table = std::mem::take(&mut self.daemon);
        let place = table.first().map_or(0..0, |(key, _)| key.place.clone());
        let mut node = Node { place, value: Value::Table(table) };
        let shape = Shape::of(DaemonOptions::json_schema);
        self.examine(&shape, &mut node, &[], "daemon");
        let read = |value: ValueDeserializer<'_>| DaemonOptions::deserialize(value);
        let mut options = self.parse(&node, &shape, "daemon", read, DaemonOptions::problems)?;
        if let (Some(data_dir), Some(place)) = (&mut options.data_dir, node.get("data_dir").map(|node| &node.place)) {
            *data_dir = self.folder(place.start).join(&*data_dir);
        }
        if let (Some(store), Some(place)) =
            (&mut options.checkpoint_store, node.get("checkpoint_store").map(|node| &node.place))
            && !store.contains("://")
        {
            *store = self.folder(place.start).join(&*store).display().to_string();
        }
        Some(options)
    }

    fn component(&mut self, component: Component<'a>) -> (Vertex, Draft) {
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

    fn sink(&mut self, key: &Key, mut node: Node<'_>) -> Option<DraftSink> {
        let common = split(&mut node, &["buffer"]);
        let (types, further) = (self.catalog.sinks, ["inputs", "buffer"]);
        let options = self.typed(key, &mut node, Kind::Sink, types, &further, |options| options.problems());
        let common = self.sink_options(key, common);
        options.zip(common).map(|((name, options), common)| (name, options, common))
    }

    fn source(&mut self, key: &Key, mut node: Node<'_>) -> Option<DraftSource> {
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
    fn codec(&mut self, key: &Key, mut node: Node<'_>) -> Option<(&'static str, Box<dyn AnyCodec>)> {
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

    fn sink_options(&mut self, key: &Key, mut common: Node<'_>) -> Option<SinkOptions> {
        let shape = Shape::of(SinkOptions::json_schema);
        self.examine(&shape, &mut common, &[], &key.name);
        self.parse(&common, &shape, &key.name, |value| SinkOptions::deserialize(value), SinkOptions::problems)
    }

    /// Takes `inputs` out of a component's table.
    fn inputs(&mut self, key: &Key, kind: Kind, node: &mut Node<'a>) -> Inputs {
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
    fn type_name(
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

    fn unknown_type(&mut self, noun: &str, name: &str, place: &Place, known: &[&'static str]) {
        let help = match nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("it is one of {}", list(known.iter().copied())),
        };
        self.problems.push(Found::new(place, format!("there is no {noun} of type {name:?}")).help(help));
    }

    /// Reads a component's own options; `further` are the names of others that it has.
    fn typed<C: ?Sized>(
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

    fn examine(&mut self, shape: &Shape, node: &mut Node<'_>, further: &[&str], what: &str) {
        let all = &self.sources.all;
        let (problems, secrets, secret_names) = (&mut self.problems, &mut self.secrets, &self.secret_names[..]);
        shape.examine(node, further, what, &mut Walk { all, problems, secrets, secret_names });
    }

    /// Reads options from a table and has them checked. Reading stops at the first problem, so what is wrong is taken out
    /// and the rest read again, until all is told.
    fn parse<T>(
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
    fn told(&mut self, problems: Vec<Problem>, node: &Node<'_>) {
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

    fn test_cases(&mut self, vertices: &[Vertex], graph: &Graph) -> Vec<Test> {
        let shape = Shape::of(TestOptions::json_schema);
        let ids = vertices.iter().zip(&graph.ids);
        let names: Names = ids.map(|(vertex, id)| (vertex.name.clone(), (*id, vertex.ports.clone()))).collect();
        let mut tests = Vec::new();
        for mut node in std::mem::take(&mut self.tests) {
            if node.as_table().is_none() {
                self.problems.push(Found::new(&node.place, "a test is a table").help("write each test as `[[tests]]`"));
                continue;
            }
            self.examine(&shape, &mut node, &[], "tests");
            let options = self.parse(&node, &shape, "tests", |value| TestOptions::deserialize(value), |_| Vec::new());
            // Where components are missing because their file could not be read, names cannot be checked.
            let Some(options) = options.filter(|_| !self.is_partial) else { continue };
            let mut problems = Vec::new();
            let place = |option: &str| self.plan_place(node.find(option).map_or(&node.place, |node| &node.place));
            let test = options.resolve(&names, &place, &mut problems);
            self.told(problems, &node);
            tests.extend(test);
        }
        tests
    }
}

/// The components by number, as far as they could be read, and both ends of each relay.
fn members<'m>(vertices: &'m [Vertex], drafts: &[Draft], written: &'m [Written<'_>], graph: &Graph) -> Members<'m> {
    let member = |at: usize, role: Role| {
        let (vertex, node) = (&vertices[at], &written[at].node);
        Member { name: &vertex.name, node, inputs: &vertex.inputs, role }
    };
    let mut members = Members::new();
    for (at, (draft, id)) in drafts.iter().zip(&graph.ids).enumerate() {
        let role = match draft {
            Draft::Source(Some(draft)) => {
                let is_journaled = draft.common.journal == Some(true);
                Role::Source { partitioned: draft.options.partitioned(), is_journaled }
            }
            Draft::Operator(Some((_, options, _))) => match options.repartition() {
                Some(repartition) => {
                    let relay = graph.relays.iter().find(|relay| relay.vertex == at).expect("it is one");
                    let partitioned = Some(Partitioned { group: String::new(), keyed_by: Some(repartition.key) });
                    let source = Role::Source { partitioned, is_journaled: false };
                    members.insert(ComponentId::Source(relay.source), member(at, source));
                    Role::Relay
                }
                None => Role::Operator { keying: options.keying(), makes: options.makes(), ports: options.ports() },
            },
            Draft::Sink(Some((_, options, common))) => Role::Sink {
                is_movable: options.is_movable(),
                is_transactional: options.is_transactional(),
                buffer: common.buffer,
            },
            Draft::Source(None) | Draft::Operator(None) | Draft::Sink(None) => continue,
        };
        members.insert(*id, member(at, role));
    }
    members
}

fn names<C: ?Sized>(types: &'static [Type<C>]) -> Vec<&'static str> {
    types.iter().map(|known| known.name).collect()
}

/// Takes the entries of these names out of a table, into one of the same place.
fn split<'a>(node: &mut Node<'a>, names: &[&str]) -> Node<'a> {
    let mut part = Node::table(node.place.clone());
    let taken: Table<'a> = names.iter().filter_map(|name| node.take(name)).collect();
    if let Some(table) = part.as_table_mut() {
        *table = taken;
    }
    part
}

/// A dotted key, as TOML has it.
fn parse_key(key: &str, base: usize) -> Option<Vec<Key>> {
    let text = format!("{key}=0");
    let mut table = DeTable::parse(&text).ok()?.into_inner();
    let mut path = Vec::new();
    loop {
        let (key, value) = table.into_iter().next()?;
        let place = key.span().start + base..key.span().end + base;
        path.push(Key { name: key.into_inner().into_owned(), place });
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

/// Puts a value at a path, making tables on the way. The key that is no table is the error.
fn insert<'a>(table: &mut Table<'a>, path: &[Key], node: Node<'a>) -> Result<(), Key> {
    let Some((key, rest)) = path.split_first() else { return Ok(()) };
    let at = table.iter().position(|(known, _)| known.name == key.name);
    if rest.is_empty() {
        match at {
            Some(at) => table[at].1 = node,
            None => table.push((key.clone(), node)),
        }
        return Ok(());
    }
    let at = at.unwrap_or_else(|| {
        table.push((key.clone(), Node::table(key.place.clone())));
        table.len() - 1
    });
    let inner = table[at].1.as_table_mut().ok_or_else(|| key.clone())?;
    insert(inner, rest, node)
}

/// What options that hold secrets are called, over all components.
fn secret_names(catalog: &Catalog) -> Vec<String> {
    let mut names = Vec::new();
    let schemas = (catalog.sources.iter().map(|known| known.schema))
        .chain(catalog.codecs.iter().map(|known| known.schema))
        .chain(catalog.operators.iter().map(|known| known.schema))
        .chain(catalog.sinks.iter().map(|known| known.schema));
    for schema in schemas {
        Shape::of(schema).secret_names(&mut names);
    }
    names
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

#[cfg(test)]
mod tests;
