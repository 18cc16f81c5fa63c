//! Checking: text in, a plan or all its problems out. Nothing but the [`Environment`] is asked of the outside world.

mod amendments;
mod findings;
mod reading;
mod typing;
mod unwritten;

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema as _;
use serde::Deserialize;
use serde_json::Value as Json;
use toml::de::ValueDeserializer;

use self::unwritten::Ends;
use crate::component::{AnyCodec, AnyOperator, AnySink, AnySource, Catalog, Partitioned};
use crate::fields::{self, Operators, Reader};
use crate::graph::{self, Graph, Kind, Vertex};
use crate::lints;
use crate::options::{DaemonOptions, SinkOptions, SourceOptions};
use crate::plan::{
    ComponentId, Place as PlanPlace, Plan, PlannedOperator, PlannedRelay, PlannedSink, PlannedSource, Test,
};
use crate::report::{Found, Report, Secrets, Sources};
use crate::scale::{self, Member, Members, Role};
use crate::shape::Shape;
use crate::silence::{Silence, SilenceOptions};
use crate::substitute::Environment;
use crate::testing::{Names, TestOptions};
use crate::tree::{Key, Node, Place, Table, Value};

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

impl<'a> Checker<'a> {
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
        self.problems.extend(amendments::problems(&vertices, &drafts, &graph));
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
        let (found, labels) = (lints::find(&view, &self.sources.all), lints::label_names(&view));
        let mut plan = Plan {
            daemon,
            sources: Vec::new(),
            operators: Vec::new(),
            sinks: Vec::new(),
            edges: graph.edges,
            relays: Vec::new(),
            silences: silences.into_iter().map(|(silence, _)| silence).collect(),
            tests,
            labels,
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

#[cfg(test)]
mod tests;
