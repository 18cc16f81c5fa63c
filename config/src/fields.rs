//! Which fields the records that an operator reads can have at all: where that is known, one that it names and that none of
//! them has is a mistake.

use std::collections::{BTreeMap, BTreeSet};

use crate::component::{AnyOperator, Assigns, FieldRead, Keying, Makes, Problem};
use crate::plan::{ComponentId, Edge, Outlet};
use crate::shape::{list, nearest};

/// The operators whose options could be read.
pub(crate) type Operators<'a> = BTreeMap<ComponentId, Reader<'a>>;

/// An operator as far as fields are concerned.
pub(crate) struct Reader<'a> {
    pub(crate) options: &'a dyn AnyOperator,
    /// How many entries its `inputs` has, if all could be read.
    pub(crate) inputs: Option<usize>,
}

/// What an operator reads by name and cannot be there. `name` tells what a component is called.
pub(crate) fn problems<'n>(
    id: ComponentId,
    operators: &Operators<'_>,
    edges: &[Edge],
    name: impl Fn(ComponentId) -> &'n str,
) -> Vec<Problem> {
    let Some(reader) = operators.get(&id) else { return Vec::new() };
    let read = reader.options.reads_fields();
    if read.is_empty() {
        return Vec::new();
    }
    let Some(known) = of_inputs(id, operators, edges) else { return Vec::new() };
    let inputs: BTreeSet<_> = edges.iter().filter(|edge| edge.to == id).map(|edge| name(edge.from.component)).collect();
    let inputs: Vec<_> = inputs.into_iter().map(|name| format!("`{name}`")).collect();
    let missing = read.into_iter().filter(|FieldRead { field, .. }| !known.contains(field));
    let problem = |FieldRead { option, within, field }: FieldRead| {
        let problem = Problem::new(option, format!("the records of {} have no field `{field}`", inputs.join(" and ")));
        let help = match nearest(&field, known.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("they have {}", list(known.iter().map(String::as_str))),
        };
        Problem { within: Some(within), help: Some(help), ..problem }
    };
    missing.map(problem).collect()
}

/// The fields of all that an operator reads; `None` where they may be any.
fn of_inputs(id: ComponentId, operators: &Operators<'_>, edges: &[Edge]) -> Option<BTreeSet<String>> {
    let inputs = operators.get(&id)?.inputs?;
    let mut fields = BTreeSet::new();
    for input in 0..inputs {
        let mut outlets = edges.iter().filter(|edge| edge.to == id && edge.input == input).peekable();
        // It names what is not there, or is part of a circle: that is told already.
        outlets.peek()?;
        for edge in outlets {
            fields.extend(of_outlet(edge.from, operators, edges)?);
        }
    }
    Some(fields)
}

fn of_outlet(outlet: Outlet, operators: &Operators<'_>, edges: &[Edge]) -> Option<BTreeSet<String>> {
    // What sources read is not known, nor what others than operators reject.
    let options = operators.get(&outlet.component)?.options;
    let is_rejected = outlet.port > 0 && options.ports().get(outlet.port - 1).is_none_or(|port| port == "rejected");
    match (options.keying(), options.makes()) {
        _ if is_rejected => None,
        (_, Makes::Windows | Makes::Within { .. }) => options.fields().filter(|_| outlet.port == 0),
        (Keying::Stateless { assigns }, Makes::Same) => {
            let mut fields = of_inputs(outlet.component, operators, edges)?;
            match assigns {
                Assigns::Nothing => {}
                Assigns::Paths(paths) => {
                    for path in paths {
                        fields.insert(first_field(&path)?);
                    }
                }
                Assigns::Everything => return None,
            }
            Some(fields)
        }
        // It hands on records that it has read; an operator that does not say by what it keeps its state may do anything.
        (Keying::By { .. }, Makes::Same) if outlet.port == 0 => of_inputs(outlet.component, operators, edges),
        _ => None,
    }
}

/// The field at the top that a path begins with; `None` where it stands for the whole record, or is not understood.
fn first_field(path: &str) -> Option<String> {
    let path = path.strip_prefix('.')?;
    match path.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').map(|(name, _)| name.to_owned()).filter(|name| !name.contains('\\')),
        None => path.split(['.', '[']).next().filter(|name| !name.is_empty()).map(str::to_owned),
    }
}
