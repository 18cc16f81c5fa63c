//! Amendments that somebody reads who can do nothing with them.

use super::Draft;
use crate::AMENDED;
use crate::facts::Facts;
use crate::graph::{Graph, Vertex};
use crate::plan::{ComponentId, Outlet};
use crate::report::Found;

pub(super) fn problems(vertices: &[Vertex], drafts: &[Draft], graph: &Graph) -> Vec<Found> {
    let at = |id: ComponentId| graph.ids.iter().position(|known| *known == id);
    let amended = |outlet: Outlet| {
        let (at, port) = (at(outlet.component)?, outlet.port.checked_sub(1)?);
        let Draft::Operator(Some((_, options, _))) = &drafts[at] else { return None };
        let is_amended = matches!(options.facts(), Facts::Rule(_)) && options.ports().get(port)? == AMENDED;
        is_amended.then(|| format!("{}.{AMENDED}", vertices[at].name))
    };
    let mut problems = Vec::new();
    for edge in &graph.edges {
        let Some(reader) = at(edge.to) else { continue };
        let (type_name, takes) = match &drafts[reader] {
            Draft::Operator(Some((name, options, _))) => (name, options.takes_amendments()),
            Draft::Sink(Some((name, options, _))) => (name, options.takes_amendments()),
            _ => continue,
        };
        let Some((_, place)) = vertices[reader].inputs.names.get(edge.input).filter(|_| !takes) else { continue };
        if let Some(outlet) = amended(edge.from) {
            let message = format!("`{type_name}` does not take amendments, which is what `{outlet}` hands on");
            let help = format!(
                "an amendment says that something was decided wrongly, and is neither a beginning nor an end: read `{outlet}` with a \
                 sink for a chat, a mail or a file"
            );
            problems.push(Found::new(place, message).help(help));
        }
    }
    problems
}
