//! Several daemons, each with some of the partitions of a topic: whether a configuration gives the same then as on one, and which
//! part of it runs for a partition.
//!
//! Each partition has a pipeline of its own, with state of its own. So an operator that keeps state by key sees all records of a
//! key only if they are in one partition. What decides that is followed from the source through everything that might change it.

#[cfg(test)]
mod fakes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tocsin_pipeline::path;
use vrl::path::{OwnedSegment, OwnedValuePath};

use crate::component::{Assigns, Keying, Makes, Partitioned};
use crate::graph::Inputs;
use crate::options::{BufferOptions, WhenFull};
use crate::plan::{ComponentId, Edge, Outlet, Plan};
use crate::report::Found;
use crate::shape::list;
use crate::tree::{Node, Place};

/// What the source of a relay is called, behind the name of its operator: what comes out of it. Nobody else can have such a name.
pub(crate) const OUT: &str = ":out";

/// What runs for a partition: a source and everything that its records get to. What records of several sources get to is part of
/// several sections, and runs for the partitions of each by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its source's.
    pub name: Arc<str>,
    /// The number in [`Plan::sources`].
    pub source: usize,
    /// The numbers in [`Plan::operators`], rising.
    pub operators: Vec<usize>,
    /// The numbers in [`Plan::sinks`], rising.
    pub sinks: Vec<usize>,
}

/// The sections of a plan, in the order of its sources.
pub fn sections(plan: &Plan) -> Vec<Section> {
    let section = |source: usize| {
        let mut section =
            Section { name: Arc::clone(&plan.sources[source].name), source, operators: Vec::new(), sinks: Vec::new() };
        for component in reached(&plan.edges, ComponentId::Source(source)) {
            match component {
                ComponentId::Source(_) => {}
                ComponentId::Operator(at) => section.operators.push(at),
                ComponentId::Sink(at) => section.sinks.push(at),
            }
        }
        section
    };
    (0..plan.sources.len()).map(section).collect()
}

/// Everything that what a component gives out gets to, and the component itself.
pub(crate) fn reached(edges: &[Edge], from: ComponentId) -> BTreeSet<ComponentId> {
    let mut reached = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(component) = open.pop() {
        for edge in edges.iter().filter(|edge| edge.from.component == component) {
            if reached.insert(edge.to) {
                open.push(edge.to);
            }
        }
    }
    reached
}

/// A component as far as scaling is concerned.
pub(crate) struct Member<'a> {
    /// Of both ends of a relay, that of the operator.
    pub(crate) name: &'a str,
    /// As it is written.
    pub(crate) node: &'a Node<'a>,
    pub(crate) inputs: &'a Inputs,
    pub(crate) role: Role,
}

pub(crate) enum Role {
    Source {
        partitioned: Option<Partitioned>,
        /// Whether a journal is asked for.
        is_journaled: bool,
    },
    Operator {
        keying: Keying,
        makes: Makes,
        ports: Vec<String>,
    },
    Sink {
        is_movable: bool,
        is_transactional: bool,
        buffer: BufferOptions,
    },
    /// The end of a relay that is written to.
    Relay,
}

impl Member<'_> {
    /// The place of an option, or of the component where it is not given.
    fn place(&self, option: &str) -> &Place {
        self.node.find(option).map_or(&self.node.place, |option| &option.place)
    }

    fn found(&self, message: impl Into<String>) -> Found {
        Found::new(&self.node.place, message)
    }

    fn is_transactional(&self) -> bool {
        matches!(self.role, Role::Sink { is_transactional: true, .. } | Role::Relay)
    }
}

pub(crate) type Members<'a> = BTreeMap<ComponentId, Member<'a>>;

/// What is wrong with a configuration for one daemon.
pub(crate) fn problems_of_one(members: &Members<'_>) -> Vec<Found> {
    let mut problems: Vec<Found> = members
        .values()
        .filter(|member| matches!(member.role, Role::Relay))
        .map(|relay| {
            let message = format!(
                "`{}` is for daemons that share the work, and there is no `daemon.checkpoint_store`",
                relay.name
            );
            relay.found(message).help(
                "remove it and name what it reads in the `inputs` of its readers; or set `daemon.checkpoint_store`, so that \
                 several daemons can run this",
            )
        })
        .collect();
    problems.extend(members.values().filter_map(spilled_transaction));
    // Relays are told of already.
    problems.extend(transactions(members.values().filter(|member| !matches!(member.role, Role::Relay))));
    problems
}

/// What is wrong with a configuration for several daemons. `store` is where it says that there are several; `is_whole` that all
/// members and edges are known.
pub(crate) fn problems_of_several(members: &Members<'_>, edges: &[Edge], store: &Place, is_whole: bool) -> Vec<Found> {
    let mut problems = Vec::new();
    let shared: Vec<usize> = members
        .iter()
        .filter_map(|(id, member)| match (id, &member.role) {
            (ComponentId::Source(at), Role::Source { partitioned: Some(_), .. }) => Some(*at),
            _ => None,
        })
        .collect();
    if shared.is_empty() && is_whole {
        let message =
            "`checkpoint_store` is for daemons that share the partitions of a topic, and no source reads one so";
        problems.push(
            Found::new(store, message)
                .help(format!("read the topic with a `kafka` source that has a `group`, or {ONE_DAEMON}")),
        );
    }
    for member in members.values() {
        problems.extend(standing_alone(member, !shared.is_empty()));
    }
    if is_whole {
        for source in &shared {
            let reached = reached(edges, ComponentId::Source(*source));
            problems.extend(transactions(reached.iter().filter_map(|id| members.get(id))));
        }
        problems.extend(Following::new(members, edges, &shared).problems());
    }
    problems
}

/// The way out of all of it.
const ONE_DAEMON: &str = "leave out `daemon.checkpoint_store` and run one daemon";

/// What is wrong with a component whatever the others are. `is_shared` says that there is something that daemons can share.
fn standing_alone(member: &Member<'_>, is_shared: bool) -> Vec<Found> {
    let mut problems = Vec::new();
    match &member.role {
        Role::Source { partitioned, is_journaled } => {
            if partitioned.is_none() && is_shared {
                let message = format!("daemons cannot share what `{}` reads: it has no partitions", member.name);
                problems.push(member.found(message).help(format!(
                    "read it in a pipeline of its own that writes to a topic with a `kafka` sink, and read that topic here; or \
                     {ONE_DAEMON}"
                )));
            }
            if *is_journaled {
                let message = "a journal is on the disk of one machine, and partitions move to others";
                problems.push(
                    Found::new(member.place("journal"), message)
                        .help("remove it: what has partitions can be read again from where it is"),
                );
            }
        }
        Role::Sink { is_movable, buffer, .. } => {
            if !is_movable {
                let message = format!(
                    "`{}` writes to the disk of the machine it runs on, and partitions move to others",
                    member.name
                );
                problems.push(member.found(message).help(format!(
                    "write to a topic with a `kafka` sink, and from there to files in a pipeline of its own on one daemon; or \
                     {ONE_DAEMON}"
                )));
            }
            if buffer.when_full == WhenFull::Spill {
                let message = "what waits on the disk of one machine cannot move to another";
                problems.push(
                    Found::new(member.place("buffer.when_full"), message).help(
                        "remove it: the sink makes its writers wait, and what is not read yet waits in its topic",
                    ),
                );
            }
        }
        Role::Operator { .. } | Role::Relay => {}
    }
    problems
}

/// A buffer on disk answers for a sink that cannot take what comes just now; a transaction cannot be answered for.
fn spilled_transaction(member: &Member<'_>) -> Option<Found> {
    let Role::Sink { is_transactional: true, buffer, .. } = &member.role else { return None };
    (buffer.when_full == WhenFull::Spill).then(|| {
        let message = format!("`{}` writes in transactions, and what waits on disk is part of none", member.name);
        Found::new(member.place("buffer.when_full"), message).help(
            "leave out `when_full`: what it cannot write just now waits in the topics and files that it is read from",
        )
    })
}

/// Tells of each that writes in transactions beside the first.
fn transactions<'m, 'a: 'm>(members: impl Iterator<Item = &'m Member<'a>>) -> Vec<Found> {
    let mut members = members.filter(|member| member.is_transactional());
    let Some(first) = members.next() else { return Vec::new() };
    members
        .map(|member| {
            let message = format!(
                "`{}` and `{}` both write in transactions, and no protocol makes two transactions one",
                first.name, member.name
            );
            member
                .found(message)
                .note(&first.node.place, format!("`{}` is here", first.name))
                .help("split the pipeline: let one write to a topic, and another read that topic and write the rest")
        })
        .collect()
}

/// What is known of where the records of a stream are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Placed {
    /// Those with the same values of these paths are in one partition.
    By(Vec<OwnedValuePath>),
    /// The source does not tell.
    Untold,
    /// An operator may change a path that it depends on.
    Changed { by: String, path: OwnedValuePath },
    /// The records of this output do not hold a path that it depends on.
    Missing { from: String, path: OwnedValuePath },
}

/// A stream of records of one kind. An output gives several where several kinds meet before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stream {
    placed: Placed,
    /// Of records of windows, the names that they hold their key under.
    windows: Option<Vec<OwnedValuePath>>,
}

impl Stream {
    fn of(partitioned: &Partitioned) -> Self {
        let keyed_by = partitioned.keyed_by.as_deref().unwrap_or_default();
        let paths: Vec<_> = keyed_by.iter().filter_map(|text| path_of(text)).collect();
        // A key of nothing tells as little as none does, and what is no path cannot be followed.
        let is_told = !paths.is_empty() && paths.len() == keyed_by.len();
        Self { placed: if is_told { Placed::By(paths) } else { Placed::Untold }, windows: None }
    }

    /// What becomes of it at a port of dead letters, which hold records as text.
    fn as_dead_letters(&self, component: &str) -> Self {
        let placed = match &self.placed {
            Placed::By(paths) => Placed::Missing { from: format!("{component}.rejected"), path: paths[0].clone() },
            unknown => unknown.clone(),
        };
        Self { placed, windows: None }
    }

    /// What the first output of an operator makes of it.
    fn behind(&self, operator: &str, keying: &Keying, makes: &Makes) -> Self {
        let Placed::By(paths) = &self.placed else { return self.clone() };
        let changed = |path: &OwnedValuePath| match keying {
            Keying::Stateless { assigns: Assigns::Everything } => true,
            Keying::Stateless { assigns: Assigns::Paths(changes) } => {
                changes.iter().filter_map(|text| path_of(text)).any(|change| {
                    change.segments.starts_with(&path.segments) || path.segments.starts_with(&change.segments)
                })
            }
            _ => false,
        };
        if let Some(path) = paths.iter().find(|path| changed(path)) {
            return Self {
                placed: Placed::Changed { by: operator.to_owned(), path: path.clone() },
                windows: self.windows.clone(),
            };
        }
        let (under, except): (_, &[String]) = match makes {
            Makes::Same => return self.clone(),
            Makes::Windows => (OwnedValuePath::root(), &[]),
            Makes::Within { path, except } => (path_of(path).expect("components know their paths"), except),
        };
        let key = Key::of(keying, self);
        let name = |path: &OwnedValuePath| {
            let mut name = under.clone();
            name.segments.extend(path.segments.iter().rev().find(|segment| segment.is_field()).cloned());
            name
        };
        let is_hidden = |path: &OwnedValuePath| {
            let name = name(path);
            matches!(name.segments.last(), Some(OwnedSegment::Field(name)) if except.iter().any(|other| *other == **name))
        };
        // What the key holds only as a part of a value is not looked for.
        let placed = match paths.iter().find(|path| !key.paths.contains(path) || is_hidden(path)) {
            Some(path) => Placed::Missing { from: operator.to_owned(), path: path.clone() },
            None => Placed::By(paths.iter().map(name).collect()),
        };
        let windows = (*makes == Makes::Windows).then(|| key.paths.iter().map(name).collect());
        Self { placed, windows }
    }
}

/// What an operator keeps the state of a stream's records by.
struct Key {
    /// All of it, as it is written.
    texts: Vec<String>,
    /// What of it are paths.
    paths: Vec<OwnedValuePath>,
}

impl Key {
    fn of(keying: &Keying, stream: &Stream) -> Self {
        let texts: Vec<String> = match (keying, &stream.windows) {
            (Keying::ByWindow { .. }, Some(names)) => names.iter().map(text_of).collect(),
            (Keying::ByWindow { otherwise: key } | Keying::By { key, .. }, _) => key.clone(),
            (Keying::Stateless { .. } | Keying::Whole, _) => Vec::new(),
        };
        let paths = texts.iter().filter_map(|text| path_of(text)).collect();
        Self { texts, paths }
    }

    /// Whether records of one such key have the same values of these paths.
    fn holds(&self, paths: &[OwnedValuePath]) -> bool {
        let holds = |path: &OwnedValuePath| self.paths.iter().any(|key| path.segments.starts_with(&key.segments));
        paths.iter().all(holds)
    }

    /// The operator that brings all records of such a key together; `None` where no path is among it.
    fn repartition(&self, inputs: &Inputs) -> Option<String> {
        let name = match self.paths.first()?.segments.last() {
            Some(OwnedSegment::Field(name)) if name.chars().all(|letter| letter.is_ascii_alphanumeric()) => name,
            _ => "key",
        };
        let key: Vec<_> = self.paths.iter().map(text_of).collect();
        let inputs: Vec<_> = inputs.names.iter().map(|(name, _)| name).collect();
        Some(format!(
            "`[operators.by_{name}]` with `type = \"repartition\"`, `inputs = {inputs:?}` and `key = {key:?}`"
        ))
    }
}

/// The path that an expression is, if it is one.
fn path_of(text: &str) -> Option<OwnedValuePath> {
    let text = text.trim();
    text.starts_with('.').then(|| path::parse(text)).flatten()
}

fn text_of(path: &OwnedValuePath) -> String {
    format!(".{path}")
}

fn listed(paths: &[OwnedValuePath]) -> String {
    list(paths.iter().map(text_of).collect::<Vec<_>>().iter().map(String::as_str))
}

/// Follows the records of each source through the operators, and tells of those that do not see all records of a key.
struct Following<'a> {
    members: &'a Members<'a>,
    edges: &'a [Edge],
    shared: &'a [usize],
    /// By source, what its records get to.
    reached: BTreeMap<usize, BTreeSet<ComponentId>>,
    problems: Vec<Found>,
}

impl<'a> Following<'a> {
    fn new(members: &'a Members<'a>, edges: &'a [Edge], shared: &'a [usize]) -> Self {
        let reached = shared.iter().map(|source| (*source, reached(edges, ComponentId::Source(*source)))).collect();
        Self { members, edges, shared, reached, problems: Vec::new() }
    }

    fn problems(mut self) -> Vec<Found> {
        for source in self.shared {
            self.follow(*source);
        }
        self.problems
    }

    /// Operators are numbered so that each comes after those that it reads from.
    fn follow(&mut self, source: usize) {
        let (members, edges) = (self.members, self.edges);
        let from = ComponentId::Source(source);
        let member = &members[&from];
        let Role::Source { partitioned: Some(partitioned), .. } = &member.role else { return };
        let first = Stream::of(partitioned);
        let mut given = BTreeMap::from([(Outlet { component: from, port: 0 }, vec![first.clone()])]);
        let reached = self.reached[&source].clone();
        for (id, operator) in members.iter().filter(|(id, _)| reached.contains(id)) {
            let Role::Operator { keying, makes, ports } = &operator.role else { continue };
            let mut read: Vec<Stream> = Vec::new();
            for edge in edges.iter().filter(|edge| edge.to == *id && reached.contains(&edge.from.component)) {
                // Ports that nothing is given by are those of dead letters.
                let letters = || vec![first.as_dead_letters(members[&edge.from.component].name)];
                let streams = given.get(&edge.from).cloned().unwrap_or_else(letters);
                read.extend(streams.into_iter().filter(|stream| !read.contains(stream)).collect::<Vec<_>>());
            }
            if let Some(problem) = self.problem(*id, operator, keying, &read, member) {
                self.problems.push(problem);
                // What comes behind would be told of for the same reason.
                read.clear();
            }
            let made: Vec<_> = read.iter().map(|stream| stream.behind(operator.name, keying, makes)).collect();
            let is_made = matches!(makes, Makes::Within { .. });
            given.insert(Outlet { component: *id, port: 0 }, made.clone());
            for (port, _) in (1..).zip(ports).filter(|(_, name)| *name != "rejected") {
                let streams = if is_made { made.clone() } else { read.clone() };
                given.insert(Outlet { component: *id, port }, streams);
            }
        }
    }

    /// Why an operator does not see all records of a key, if it does not.
    fn problem(
        &self,
        id: ComponentId,
        operator: &Member<'_>,
        keying: &Keying,
        read: &[Stream],
        source: &Member<'_>,
    ) -> Option<Found> {
        if matches!(keying, Keying::Stateless { .. }) {
            return None;
        }
        // The same is found once more from the other source; it is told once.
        self.meeting(id, operator, keying, read).or_else(|| self.scattered(operator, keying, read, source))
    }

    /// That records of several topics come to an operator that keeps state: each partition of either has a state of its own. `None`
    /// where nothing is read any more.
    fn meeting(&self, id: ComponentId, operator: &Member<'_>, keying: &Keying, read: &[Stream]) -> Option<Found> {
        let mut sources = self.shared.iter().filter(|source| self.reached[*source].contains(&id));
        let (first, second) = (sources.next()?, sources.next()?);
        let mut edges = self.edges.iter().filter(|edge| edge.to == id);
        let entry = edges.find(|edge| !self.reached[first].contains(&edge.from.component));
        let place = entry.and_then(|edge| operator.inputs.names.get(edge.input)).map(|(_, place)| place);
        let [first, second] = [first, second].map(|source| &self.members[&ComponentId::Source(*source)]);
        let message = format!(
            "`{}` keeps state, and what `{}` and `{}` read does not meet in it: each partition has a state of its own",
            operator.name, first.name, second.name
        );
        let help = match Key::of(keying, read.first()?).repartition(operator.inputs) {
            Some(repartition) => format!("let both go through one topic before it: {repartition}; or {ONE_DAEMON}"),
            None => format!("let each have an operator of its own; or {ONE_DAEMON}"),
        };
        Some(Found::new(place.unwrap_or(&operator.node.place), message).help(help))
    }

    /// That records of one key can be in several partitions.
    fn scattered(&self, operator: &Member<'_>, keying: &Keying, read: &[Stream], source: &Member<'_>) -> Option<Found> {
        let place = match keying {
            Keying::By { option, .. } => operator.place(option),
            Keying::ByWindow { .. } | Keying::Whole | Keying::Stateless { .. } => &operator.node.place,
        };
        for stream in read {
            let key = Key::of(keying, stream);
            if key.texts.is_empty() {
                let message = format!(
                    "`{}` keeps one state of all records, and each partition of `{}` has a state of its own",
                    operator.name, source.name
                );
                let key = match keying {
                    Keying::By { option, .. } => format!("give it a key with `{option}`; or "),
                    Keying::ByWindow { .. } | Keying::Whole | Keying::Stateless { .. } => String::new(),
                };
                return Some(Found::new(place, message).help(format!("{key}{ONE_DAEMON}")));
            }
            let why = match (&stream.placed, &read[0].placed) {
                (Placed::By(paths), Placed::By(others)) if paths != others => {
                    format!("some are in partitions by {}, others by {}", listed(others), listed(paths))
                }
                (Placed::By(paths), _) if key.holds(paths) => continue,
                (Placed::By(paths), _) => format!("they are in partitions by {}", listed(paths)),
                (Placed::Untold, _) => format!("`{}` does not say by what they are in partitions", source.name),
                (Placed::Changed { by, path }, _) => {
                    format!("`{by}` may change `{}`, by which they are in partitions", text_of(path))
                }
                (Placed::Missing { from, path }, _) => {
                    let path = text_of(path);
                    format!("those that come from `{from}` do not hold `{path}`, by which they are in partitions")
                }
            };
            let texts = list(key.texts.iter().map(String::as_str));
            let message = format!(
                "`{}` keeps state by {texts}, and not all records of such a key are in one partition: {why}",
                operator.name
            );
            let mut ways = vec![match key.repartition(operator.inputs) {
                Some(repartition) => format!("let them go through a topic before it: {repartition}"),
                None => "let a `remap` before it put the key into a field, so that they can go through a topic by that with \
                         `repartition`"
                    .to_owned(),
            }];
            if stream.placed == Placed::Untold && !key.paths.is_empty() {
                let paths: Vec<_> = key.paths.iter().map(text_of).collect();
                ways.push(format!("say `keyed_by = {paths:?}` at `{}` if its topic is keyed so", source.name));
            }
            ways.push(ONE_DAEMON.to_owned());
            return Some(Found::new(place, message).help(ways.join("; or ")));
        }
        None
    }
}
