//! Components that nobody writes: the ends of the topics that records go through, and the source of what people say.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use toml::de::DeTable;

use super::{Checker, Draft, Written};
use crate::COMMANDS;
use crate::component::{AnySource, Relay, RelayOptions};
use crate::graph::{Graph, Inputs, Kind, RelayVertex, Vertex};
use crate::plan::ComponentId;
use crate::report::Found;
use crate::scale;
use crate::tree::{Key, Node, Place, Value, table_from_toml};

/// The two ends of a relay.
pub(super) struct Ends {
    /// That of its operator.
    pub(super) vertex: usize,
    /// The number of the source.
    pub(super) source: usize,
    pub(super) sink: Draft,
    pub(super) reader: Draft,
    /// How the source would be written.
    written: Json,
    /// That of the source which told how to connect: files that it names are looked for there.
    pub(super) folder: PathBuf,
}

/// A source whose servers have the topic of a relay.
struct Origin<'a> {
    name: &'a str,
    options: &'a dyn AnySource,
    written: Json,
    folder: &'a Path,
}

impl<'a> Checker<'a> {
    /// The source of what people say, which nobody has to write, for the operators that obey it.
    pub(super) fn commands(
        &mut self,
        vertices: &mut Vec<Vertex>,
        drafts: &mut Vec<Draft>,
        written: &mut Vec<Written<'a>>,
    ) {
        let obeys = |draft: &Draft| matches!(draft, Draft::Operator(Some((_, options, _))) if options.obeys());
        let obeying: Vec<_> = (0..drafts.len()).filter(|at| obeys(&drafts[*at])).collect();
        let Some(first) = obeying.first() else { return };
        match vertices.iter().position(|vertex| vertex.name == COMMANDS) {
            Some(taken) => {
                let is_it = matches!(&drafts[taken], Draft::Source(Some(source)) if source.type_name == COMMANDS);
                if !is_it {
                    let message = format!("`{COMMANDS}` is the name of the source of what people say to `notify`");
                    self.problems.push(Found::new(&vertices[taken].place, message).help("give it another name"));
                    return;
                }
            }
            None => {
                let place = vertices[*first].place.clone();
                let key = Key { name: COMMANDS.to_owned(), place: place.clone() };
                // Nothing is heard of people for long, and nobody waits for them.
                let text = format!("type = \"{COMMANDS}\"\nidle_timeout = \"0s\"");
                let node = as_written(&text, &place);
                let source = self.source(&key, node);
                let inputs = Inputs { are_known: true, ..Inputs::default() };
                let ports = Some(vec!["rejected".to_owned()]);
                let (name, kind) = (key.name, Kind::Source);
                vertices.push(Vertex { name, kind, place: place.clone(), ports, inputs, is_relay: false });
                drafts.push(Draft::Source(source.map(Box::new)));
                let written_there = &written[*first];
                let (node, folder) = (Node::table(place), written_there.folder.clone());
                written.push(Written { node, place: written_there.place.clone(), folder });
            }
        }
        for at in obeying {
            let place = vertices[at].place.clone();
            vertices[at].inputs.names.push((COMMANDS.to_owned(), place));
        }
    }

    /// The two ends of each relay.
    pub(super) fn relays(
        &mut self,
        vertices: &[Vertex],
        drafts: &[Draft],
        written: &[Written<'a>],
        graph: &Graph,
    ) -> Vec<Ends> {
        let mut made: Vec<Ends> = Vec::new();
        for relay in &graph.relays {
            let sink = graph.ids[relay.vertex];
            let leads_here = |source: usize| scale::reached(&graph.edges, ComponentId::Source(source)).contains(&sink);
            // Where several sources lead here, the first tells where the topic is.
            let of_sources = vertices.iter().zip(drafts).zip(written).zip(&graph.ids);
            let before = of_sources.filter_map(|(((vertex, draft), written), id)| match (draft, id) {
                (Draft::Source(Some(draft)), ComponentId::Source(source)) if leads_here(*source) => Some(Origin {
                    name: &vertex.name,
                    options: &*draft.options,
                    written: written.node.to_json(),
                    folder: &written.folder,
                }),
                _ => None,
            });
            let behind = made.iter().filter_map(|ends| match &ends.reader {
                Draft::Source(Some(draft)) if leads_here(ends.source) => Some(Origin {
                    name: &vertices[ends.vertex].name,
                    options: &*draft.options,
                    written: ends.written.clone(),
                    folder: &ends.folder,
                }),
                _ => None,
            });
            // There is none where the ends of the relay before it are wrong.
            let mut origins = before.chain(behind);
            let Some(origin) = origins.next() else { continue };
            let others = origins.map(|other| other.written).collect();
            let Draft::Operator(Some((_, operator, _))) = &drafts[relay.vertex] else { continue };
            let Some(repartition) = operator.repartition() else { continue };
            let asked = Relay { name: vertices[relay.vertex].name.clone(), repartition, others };
            let ends = self.ends(*relay, &asked, &vertices[relay.vertex].place, &origin);
            made.extend(ends);
        }
        made
    }

    /// The two ends of a relay, read as if they were written.
    fn ends(&mut self, relay: RelayVertex, asked: &Relay, place: &Place, origin: &Origin<'_>) -> Option<Ends> {
        let Some(RelayOptions { sink, source }) = origin.options.relay(asked, &origin.written) else {
            let message = format!(
                "`{}` reads from no servers that have topics, so nothing can go through one there",
                origin.name
            );
            self.problems.push(Found::new(place, message).help(
                "write what it reads to a topic with a `kafka` sink in a pipeline of its own, and read that topic here",
            ));
            return None;
        };
        let before = self.problems.len();
        let (sink_text, source_text) = (toml_of(&sink), toml_of(&source));
        let key = |name: String| Key { name, place: place.clone() };
        let sink = self.sink(&key(asked.name.clone()), as_written(&sink_text, place));
        let reader = self.source(&key(format!("{}{}", asked.name, scale::OUT)), as_written(&source_text, place));
        // None of it is written, so all that is wrong with it is at the operator.
        for problem in &mut self.problems[before..] {
            problem.place = place.clone();
        }
        Some(Ends {
            vertex: relay.vertex,
            source: relay.source,
            sink: Draft::Sink(sink),
            reader: Draft::Source(reader.map(Box::new)),
            written: Json::Object(source),
            folder: origin.folder.to_owned(),
        })
    }
}

fn toml_of(options: &serde_json::Map<String, Json>) -> String {
    toml::to_string(options).expect("components write what can be written in a configuration")
}

/// Options as if they were written at a place.
fn as_written<'t>(text: &'t str, place: &Place) -> Node<'t> {
    let table = DeTable::parse(text).expect("it was made from a table").into_inner();
    Node { place: place.clone(), value: Value::Table(table_from_toml(table, 0)) }.moved(place.start)
}
