//! `tocsin graph`: the pipeline as Mermaid, DOT or SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tocsin_config::plan::{ComponentId, Plan};

use crate::cli::GraphFormat;

/// A box of the drawing.
struct Drawn {
    id: String,
    name: String,
    type_name: &'static str,
    component: ComponentId,
}

/// An arrow, with the name of the port it leaves by if that is not the component's own.
struct Arrow {
    from: usize,
    to: usize,
    label: String,
}

pub fn draw(plan: &Plan, format: GraphFormat) -> String {
    let boxes: Vec<Drawn> = plan
        .components()
        .enumerate()
        .map(|(at, component)| Drawn {
            id: format!("c{at}"),
            name: plan.name(component).to_string(),
            type_name: match component {
                ComponentId::Source(at) => plan.sources[at].type_name,
                ComponentId::Operator(at) => plan.operators[at].type_name,
                ComponentId::Sink(at) => plan.sinks[at].type_name,
            },
            component,
        })
        .collect();
    let at = |component| boxes.iter().position(|drawn| drawn.component == component).expect("every component is drawn");
    let arrows: Vec<Arrow> = plan
        .edges
        .iter()
        .map(|edge| {
            let name = plan.outlet_name(edge.from);
            let label = name.split_once('.').map_or(String::new(), |(_, port)| port.to_owned());
            Arrow { from: at(edge.from.component), to: at(edge.to), label }
        })
        .collect();
    match format {
        GraphFormat::Mermaid => mermaid(&boxes, &arrows),
        GraphFormat::Dot => dot(&boxes, &arrows),
        GraphFormat::Svg => svg(&boxes, &arrows),
    }
}

// Names are of letters, digits, `-` and `_`: nothing in them needs escaping in any of the formats.

fn mermaid(boxes: &[Drawn], arrows: &[Arrow]) -> String {
    let mut text = String::from("flowchart LR\n");
    for Drawn { id, name, type_name, component } in boxes {
        let (open, close) = match component {
            ComponentId::Source(_) => ("([", "])"),
            ComponentId::Operator(_) => ("[", "]"),
            ComponentId::Sink(_) => ("[/", "/]"),
        };
        writeln!(text, "    {id}{open}\"{name}<br/>{type_name}\"{close}").expect("writing to a string");
    }
    for Arrow { from, to, label } in arrows {
        let label = if label.is_empty() { String::new() } else { format!("|{label}|") };
        writeln!(text, "    {} -->{label} {}", boxes[*from].id, boxes[*to].id).expect("writing to a string");
    }
    text
}

fn dot(boxes: &[Drawn], arrows: &[Arrow]) -> String {
    let mut text = String::from("digraph tocsin {\n    rankdir = LR\n");
    for Drawn { id, name, type_name, component } in boxes {
        let shape = match component {
            ComponentId::Source(_) => "oval",
            ComponentId::Operator(_) => "box",
            ComponentId::Sink(_) => "parallelogram",
        };
        writeln!(text, "    {id} [shape = {shape}, label = \"{name}\\n{type_name}\"]").expect("writing to a string");
    }
    for Arrow { from, to, label } in arrows {
        writeln!(text, "    {} -> {} [label = \"{label}\"]", boxes[*from].id, boxes[*to].id)
            .expect("writing to a string");
    }
    text.push_str("}\n");
    text
}

const WIDTH: usize = 180;
const HEIGHT: usize = 44;
const GAP: (usize, usize) = (80, 20);

/// Columns by the longest way from a source; rows in the order of the configuration.
fn svg(boxes: &[Drawn], arrows: &[Arrow]) -> String {
    let mut column = vec![0usize; boxes.len()];
    // The pipeline has no cycle, so as many rounds as boxes settle every column.
    for _ in boxes {
        for arrow in arrows {
            column[arrow.to] = column[arrow.to].max(column[arrow.from] + 1);
        }
    }
    let mut rows: BTreeMap<usize, usize> = BTreeMap::new();
    let places: Vec<(usize, usize)> = column
        .iter()
        .map(|column| {
            let row = rows.entry(*column).or_default();
            *row += 1;
            (20 + column * (WIDTH + GAP.0), 20 + (*row - 1) * (HEIGHT + GAP.1))
        })
        .collect();
    let right = places.iter().map(|(x, _)| x + WIDTH + 20).max().unwrap_or(40);
    let bottom = places.iter().map(|(_, y)| y + HEIGHT + 20).max().unwrap_or(40);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{right}\" height=\"{bottom}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<defs><marker id=\"tip\" markerWidth=\"8\" markerHeight=\"8\" refX=\"7\" refY=\"3\" \
         orient=\"auto\"><path d=\"M0,0 L7,3 L0,6 z\"/></marker></defs>\n"
    );
    for Arrow { from, to, label } in arrows {
        let (x1, y1) = (places[*from].0 + WIDTH, places[*from].1 + HEIGHT / 2);
        let (x2, y2) = (places[*to].0, places[*to].1 + HEIGHT / 2);
        let middle = (x1 + x2) / 2;
        writeln!(
            text,
            "<path d=\"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}\" fill=\"none\" stroke=\"#555\" \
             marker-end=\"url(#tip)\"/>"
        )
        .expect("writing to a string");
        if !label.is_empty() {
            writeln!(
                text,
                "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>",
                (y1 + y2) / 2 - 4
            )
            .expect("writing to a string");
        }
    }
    for (Drawn { name, type_name, component, .. }, (x, y)) in boxes.iter().zip(&places) {
        let fill = match component {
            ComponentId::Source(_) => "#dff0df",
            ComponentId::Operator(_) => "#e4ecf7",
            ComponentId::Sink(_) => "#f7e9dc",
        };
        let middle = x + WIDTH / 2;
        writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"{fill}\" stroke=\"#555\"/>\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{name}</text>\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{type_name}</text>",
            y + 19,
            y + 35
        )
        .expect("writing to a string");
    }
    text.push_str("</svg>\n");
    text
}
