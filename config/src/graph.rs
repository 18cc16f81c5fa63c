//! Who reads whom: names in `inputs` become edges; names that lead nowhere, circles, and what nobody reads are problems.

use std::collections::BTreeMap;

use globset::GlobBuilder;

use crate::plan::{ComponentId, Edge, Outlet};
use crate::report::Found;
use crate::shape::{list, nearest};
use crate::tree::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Source,
    Operator,
    Sink,
}

impl Kind {
    /// The table its components are in.
    pub(crate) fn section(self) -> &'static str {
        match self {
            Self::Source => "sources",
            Self::Operator => "operators",
            Self::Sink => "sinks",
        }
    }

    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Operator => "operator",
            Self::Sink => "sink",
        }
    }
}

/// A component as far as the graph is concerned.
pub(crate) struct Vertex {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The table's header.
    pub(crate) place: Place,
    /// The outputs beside its own name; `None` where its options are wrong, so that nobody knows.
    pub(crate) ports: Option<Vec<String>>,
    /// Sources have none.
    pub(crate) inputs: Inputs,
    /// Whether it is an operator that stands for a topic: in the graph it is a sink, and a source that its readers read.
    pub(crate) is_relay: bool,
}

/// What a component names as its inputs.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) names: Vec<(String, Place)>,
    /// Whether these are all; not where they could not be read.
    pub(crate) are_known: bool,
}

/// A graph without problems, or as much of it as can be told.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// The number of each vertex in the plan's list of its kind; of a relay, that of its sink.
    pub(crate) ids: Vec<ComponentId>,
    pub(crate) edges: Vec<Edge>,
    /// Ordered by source, so that each comes after those that lead to it.
    pub(crate) relays: Vec<RelayVertex>,
}

/// An operator that stands for a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayVertex {
    pub(crate) vertex: usize,
    /// The number of the source that reads the topic. Such sources come after all that are written.
    pub(crate) source: usize,
}

/// An edge between vertices: from which, its port, to which, its input.
type Link = (usize, usize, usize, usize);

/// Resolves all inputs. `is_partial` says that there may be components that could not be read: then a name that nobody
/// has, and a component that nobody reads, may be fine.
pub(crate) fn resolve(vertices: &[Vertex], is_partial: bool, problems: &mut Vec<Found>) -> Graph {
    let mut resolver = Resolver {
        vertices,
        names: vertices.iter().enumerate().map(|(at, vertex)| (vertex.name.as_str(), at)).collect(),
        links: Vec::new(),
        is_read: vec![false; vertices.len()],
        is_partial,
        problems,
    };
    for reader in 0..vertices.len() {
        resolver.read(reader);
    }
    if !is_partial && vertices.iter().all(|vertex| vertex.inputs.are_known) {
        resolver.unread();
    }
    resolver.circles();
    let links = std::mem::take(&mut resolver.links);
    let (kinds, links, relays) = part_relays(vertices, links);
    // What comes out of a topic comes after what goes into it.
    let order = links.iter().map(|(from, _, to, _)| (*from, *to)).chain(relays.iter().copied());
    let mut ids = number(&kinds, &order.collect::<Vec<_>>());
    let mut edges: Vec<Edge> = links
        .iter()
        .map(|(from, port, to, input)| Edge {
            from: Outlet { component: ids[*from], port: *port },
            to: ids[*to],
            input: *input,
        })
        .collect();
    // Stable: within one input the order in which the outputs were named stays.
    edges.sort_by_key(|edge| (edge.to, edge.input));
    let source = |at: usize| match ids[at] {
        ComponentId::Source(source) => source,
        ComponentId::Operator(_) | ComponentId::Sink(_) => unreachable!("what comes out of a topic is a source"),
    };
    let mut relays: Vec<_> =
        relays.iter().map(|(vertex, reads)| RelayVertex { vertex: *vertex, source: source(*reads) }).collect();
    relays.sort_by_key(|relay| relay.source);
    ids.truncate(vertices.len());
    Graph { ids, edges, relays }
}

/// Parts each relay into a sink, in its place, and a source, after all others, that its readers read. Gives the kinds of all, the
/// links between them, and which source belongs to which sink.
fn part_relays(vertices: &[Vertex], mut links: Vec<Link>) -> (Vec<Kind>, Vec<Link>, Vec<(usize, usize)>) {
    let kind = |vertex: &Vertex| if vertex.is_relay { Kind::Sink } else { vertex.kind };
    let mut kinds: Vec<Kind> = vertices.iter().map(kind).collect();
    let mut relays = Vec::new();
    for at in (0..vertices.len()).filter(|at| vertices[*at].is_relay) {
        let source = kinds.len();
        kinds.push(Kind::Source);
        relays.push((at, source));
        for (from, port, ..) in &mut links {
            if (*from, *port) == (at, 0) {
                *from = source;
            }
        }
    }
    (kinds, links, relays)
}

struct Resolver<'a> {
    vertices: &'a [Vertex],
    names: BTreeMap<&'a str, usize>,
    links: Vec<Link>,
    is_read: Vec<bool>,
    is_partial: bool,
    problems: &'a mut Vec<Found>,
}

impl Resolver<'_> {
    fn read(&mut self, reader: usize) {
        let vertices = self.vertices;
        let vertex = &vertices[reader];
        let inputs = &vertex.inputs.names;
        for (input, (text, place)) in inputs.iter().enumerate() {
            if let Some((_, first)) = inputs[..input].iter().find(|(other, _)| other == text) {
                self.problems
                    .push(Found::new(place, format!("the input `{text}` is named twice")).note(first, "here first"));
                continue;
            }
            let outputs = if text.contains(['*', '?', '[', '{']) {
                self.matching(reader, text, place)
            } else {
                self.named(text, place).into_iter().collect()
            };
            for (from, port) in outputs {
                self.is_read[from] = true;
                let is_known = self.links.iter().any(|link| (link.0, link.1, link.2) == (from, port, reader));
                // What an entry names by itself it gets, even if a pattern before it did: `join` counts its inputs.
                if !is_known || !text.contains(['*', '?', '[', '{']) {
                    self.links.push((from, port, reader, input));
                }
            }
        }
    }

    /// What a name stands for.
    fn named(&mut self, text: &str, place: &Place) -> Option<(usize, usize)> {
        let (name, port) = match text.split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        let Some(at) = self.names.get(name).copied() else {
            let meant = nearest(name, self.names.keys().copied());
            if let Some(meant) = meant {
                // Else the one that was meant would be told to have no reader.
                self.is_read[self.names[meant]] = true;
            }
            if !self.is_partial {
                let help = match meant {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => self.offers(),
                };
                self.problems.push(Found::new(place, format!("no source or operator is called `{name}`")).help(help));
            }
            return None;
        };
        self.is_read[at] = true;
        let vertex = &self.vertices[at];
        let Some(port) = port else {
            if vertex.kind == Kind::Sink {
                let ports = vertex.ports.as_deref().unwrap_or_default().iter().map(String::as_str);
                let ports = ports.chain(vertex.ports.is_none().then_some("rejected"));
                let ports = ports.map(|port| format!("`{name}.{port}`")).collect::<Vec<_>>().join(" and ");
                let message = format!("`{name}` is a sink: nothing comes out of it but {ports}");
                self.problems.push(
                    Found::new(place, message).help("read what the sink reads, or its `rejected` for dead letters"),
                );
                return None;
            }
            return Some((at, 0));
        };
        let ports = vertex.ports.as_ref()?;
        if let Some(found) = ports.iter().position(|known| known == port) {
            return Some((at, found + 1));
        }
        let help = match nearest(port, ports.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean `{name}.{meant}`?"),
            None if ports.is_empty() => format!("all that comes out of it is `{name}`"),
            None => format!(
                "it has {}",
                list(ports.iter().map(|port| format!("{name}.{port}")).collect::<Vec<_>>().iter().map(String::as_str))
            ),
        };
        self.problems.push(Found::new(place, format!("`{name}` has no output `{port}`")).help(help));
        None
    }

    /// What a pattern stands for: names, or outputs if the pattern has a dot. Never the reader's own.
    fn matching(&mut self, reader: usize, text: &str, place: &Place) -> Vec<(usize, usize)> {
        // `/` occurs in no name, so no character is special to the pattern but its own.
        let glob = match GlobBuilder::new(text).literal_separator(false).backslash_escape(false).build() {
            Ok(glob) => glob.compile_matcher(),
            Err(error) => {
                self.problems.push(
                    Found::new(place, format!("`{text}` is not a pattern for names: {}", error.kind()))
                        .help("a pattern looks like `web_*`, `web_?` or `{web,api}_errors`"),
                );
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for (at, vertex) in self.vertices.iter().enumerate().filter(|(at, _)| *at != reader) {
            if !text.contains('.') {
                // What people say is for those who obey it alone.
                let is_offered = vertex.kind != Kind::Sink && vertex.name != crate::COMMANDS;
                if is_offered && glob.is_match(&vertex.name) {
                    found.push((at, 0));
                }
                continue;
            }
            for (port, name) in vertex.ports.iter().flatten().enumerate() {
                if glob.is_match(format!("{}.{name}", vertex.name)) {
                    found.push((at, port + 1));
                }
            }
        }
        let is_certain = !self.is_partial && self.vertices.iter().all(|vertex| vertex.ports.is_some());
        if found.is_empty() && is_certain {
            let help = self.offers();
            self.problems.push(Found::new(place, format!("nothing matches `{text}`")).help(help));
        }
        found
    }

    /// What could be read, for where no name is near.
    fn offers(&self) -> String {
        let readable = self.vertices.iter().filter(|vertex| vertex.kind != Kind::Sink);
        let names: Vec<&str> = readable.map(|vertex| vertex.name.as_str()).collect();
        match names.len() {
            0 => "there is no source yet: begin with a table `[sources.NAME]`".to_owned(),
            1..=12 => format!("there is {}", list(names)),
            count => format!("there are {count} sources and operators; the first is `{}`", names[0]),
        }
    }

    fn unread(&mut self) {
        for (vertex, is_read) in self.vertices.iter().zip(&self.is_read) {
            if vertex.kind != Kind::Sink && !is_read {
                let message = format!("nothing reads the {} `{}`", vertex.kind.noun(), vertex.name);
                self.problems.push(
                    Found::new(&vertex.place, message)
                        .help("name it in the `inputs` of an operator or a sink, or remove it"),
                );
            }
        }
    }

    /// Tells each circle once, at the input that closes it. Without recursion: chains can be as long as the configuration.
    fn circles(&mut self) {
        let mut readers: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.vertices.len()];
        for (from, _, to, input) in &self.links {
            readers[*from].push((*to, *input));
        }
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let mut states = vec![State::New; self.vertices.len()];
        for start in 0..self.vertices.len() {
            if states[start] != State::New {
                continue;
            }
            states[start] = State::Open;
            let mut path = vec![(start, 0)];
            while let Some((at, next)) = path.last_mut() {
                let Some((to, input)) = readers[*at].get(*next).copied() else {
                    states[*at] = State::Done;
                    path.pop();
                    continue;
                };
                *next += 1;
                match states[to] {
                    State::New => {
                        states[to] = State::Open;
                        path.push((to, 0));
                    }
                    State::Open => {
                        let from = path.iter().position(|(at, _)| *at == to).unwrap_or(0);
                        let mut names: Vec<&str> =
                            path[from..].iter().map(|(at, _)| self.vertices[*at].name.as_str()).collect();
                        names.push(&self.vertices[to].name);
                        let vertex = &self.vertices[to];
                        let place = vertex.inputs.names.get(input);
                        let place = place.map_or(&vertex.place, |(_, place)| place);
                        let help = "a record would go round for ever: take one of these inputs away";
                        self.problems.push(
                            Found::new(place, format!("the inputs make a circle: {}", names.join(" → "))).help(help),
                        );
                    }
                    State::Done => {}
                }
            }
        }
    }
}

/// Numbers the vertices of each kind, so that each comes after all that lead to it and otherwise in their order.
fn number(kinds: &[Kind], links: &[(usize, usize)]) -> Vec<ComponentId> {
    let mut waits = vec![0usize; kinds.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); kinds.len()];
    for (from, to) in links {
        waits[*to] += 1;
        readers[*from].push(*to);
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..kinds.len()).filter(|vertex| waits[*vertex] == 0).collect();
    let mut order = Vec::with_capacity(kinds.len());
    while let Some(vertex) = ready.pop_first() {
        order.push(vertex);
        for reader in &readers[vertex] {
            waits[*reader] -= 1;
            if waits[*reader] == 0 {
                ready.insert(*reader);
            }
        }
    }
    // What is in a circle comes last: it is a problem already.
    order.extend((0..kinds.len()).filter(|vertex| waits[*vertex] > 0));
    let (mut sources, mut operators, mut sinks) = (0, 0, 0);
    let mut ids = vec![ComponentId::Source(0); kinds.len()];
    for vertex in order {
        let count = match kinds[vertex] {
            Kind::Source => &mut sources,
            Kind::Operator => &mut operators,
            Kind::Sink => &mut sinks,
        };
        ids[vertex] = match kinds[vertex] {
            Kind::Source => ComponentId::Source(*count),
            Kind::Operator => ComponentId::Operator(*count),
            Kind::Sink => ComponentId::Sink(*count),
        };
        *count += 1;
    }
    ids
}
