//! What is handed to the lints of a configuration that has been read.

use std::collections::BTreeMap;

use super::{Draft, Written};
use crate::COMMANDS;
use crate::graph::{Graph, Vertex};
use crate::lints;
use crate::plan::{ComponentId, Edge, Outlet};
use crate::report::Found;
use crate::tree::Node;

/// What is wrong with what the lints are told not to tell.
pub(super) fn problems_of_allowances(daemon: &Node<'_>, vertices: &[Vertex], is_partial: bool) -> Vec<Found> {
    // A component may be in the file that could not be read.
    if is_partial {
        return Vec::new();
    }
    let names = vertices.iter().map(|vertex| vertex.name.as_str()).chain(["daemon", "silences"]);
    lints::problems_of_allowances(daemon, &names.collect())
}

/// The components as the lints look at them. Only called when there are no problems.
pub(super) fn members<'m>(
    vertices: &'m [Vertex],
    drafts: &[Draft],
    written: &'m [Written<'_>],
    graph: &Graph,
) -> BTreeMap<ComponentId, lints::Member<'m>> {
    let member = |at: usize, draft: &Draft| {
        let role = match draft {
            Draft::Source(Some(source)) => lints::Role::Source {
                is_commands: source.type_name == COMMANDS,
                is_at_admin: source.options.is_at_admin(),
            },
            Draft::Operator(Some(_)) if vertices[at].is_relay => lints::Role::Relay,
            Draft::Operator(Some((_, options, _))) => lints::Role::Operator {
                facts: options.facts(),
                keying: options.keying(),
                makes: options.makes(),
                ports: options.ports(),
            },
            Draft::Sink(Some((_, options, common))) => {
                lints::Role::Sink { audience: options.audience(), buffer: common.buffer }
            }
            Draft::Source(None) | Draft::Operator(None) | Draft::Sink(None) => return None,
        };
        Some((graph.ids[at], lints::Member { name: &vertices[at].name, node: &written[at].node, role }))
    };
    drafts.iter().enumerate().filter_map(|(at, draft)| member(at, draft)).collect()
}

/// The edges, with what comes out of a topic coming from the component that writes to it.
pub(super) fn edges(graph: &Graph) -> Vec<Edge> {
    let writer = |component: ComponentId| {
        let relay = graph.relays.iter().find(|relay| component == ComponentId::Source(relay.source));
        relay.map_or(component, |relay| graph.ids[relay.vertex])
    };
    let join = |edge: &Edge| Edge { from: Outlet { component: writer(edge.from.component), ..edge.from }, ..*edge };
    graph.edges.iter().map(join).collect()
}
