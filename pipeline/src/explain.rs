//! The plan in words: which operators run fused in which task, what is decoded where, and what crosses the edges.

use std::fmt::Write as _;

use crate::codec::Projection;
use crate::graph::{Chain, Intake, Link, TaskId, Tasks, Work};
use crate::operator::{Operator, Transform};

/// What a node says of itself.
trait Explained {
    fn lines(&self) -> Vec<String>;
}

impl Explained for std::sync::Arc<dyn Transform> {
    fn lines(&self) -> Vec<String> {
        self.explain()
    }
}

impl Explained for Work {
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Transform(transform) => transform.explain(),
            Self::Operator(operator) => Operator::explain(&**operator),
        }
    }
}

impl Tasks {
    /// One paragraph a task, in the order in which records pass them.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for source in &self.sources {
            self.explain_source(&source.intake, &mut text);
        }
        for stage in &self.stages {
            writeln!(text, "task {}", stage.name).expect("writing to a string");
            self.explain_chain(&stage.chain, &mut text);
            text.push('\n');
        }
        for sink in &self.sinks {
            writeln!(text, "task {} (sink): holds at most {} bytes", sink.name, sink.buffer_bytes)
                .expect("writing to a string");
        }
        text
    }

    fn explain_source(&self, intake: &Intake, text: &mut String) {
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("task {} (source, codec {})", intake.name, intake.options.codec.name()));
        match &intake.prefilter {
            Some(prefilter) => line(format!("  {}", prefilter.describe())),
            None => line("  every record is looked at".to_owned()),
        }
        line(format!("  decodes first: {}", paths(&intake.decode)));
        line(match (&intake.options.timestamp, intake.needs_time) {
            (_, false) => "  event times: not needed".to_owned(),
            (Some((_, path)), true) => format!("  event times: from {}", path_text(path)),
            (None, true) => "  event times: the arrival".to_owned(),
        });
        line(format!("  to {}", self.links(&intake.chain, &intake.entry)));
        if !intake.rejected.is_empty() {
            line(format!("  dead letters to {}", self.links(&intake.chain, &intake.rejected)));
        }
        self.explain_chain(&intake.chain, text);
        text.push('\n');
    }

    fn explain_chain<W: Explained>(&self, chain: &Chain<W>, text: &mut String) {
        for node in &chain.nodes {
            writeln!(text, "  fused: {}", node.name).expect("writing to a string");
            if !node.decode.is_empty() {
                writeln!(text, "    reads {}", paths(&node.decode)).expect("writing to a string");
            }
            for line in node.work.lines() {
                writeln!(text, "    {line}").expect("writing to a string");
            }
            for (number, port) in node.ports.iter().enumerate().filter(|(_, port)| !port.links.is_empty()) {
                let port_name = if number == 0 { String::new() } else { format!("port {number} ") };
                writeln!(text, "    {port_name}to {}", self.links(chain, &port.links)).expect("writing to a string");
            }
        }
    }

    fn links<W>(&self, chain: &Chain<W>, links: &[Link]) -> String {
        let names: Vec<_> = links
            .iter()
            .map(|link| match link {
                Link::Node { node, .. } => format!("{} (fused)", chain.nodes[*node].name),
                Link::Edge { to, entry, prepare } => {
                    let name = match to {
                        TaskId::Source(at) => self.sources[*at].name.to_string(),
                        TaskId::Stage(at) => {
                            let (node, _) = self.stages[*at].entries[*entry];
                            self.stages[*at].chain.nodes[node].name.to_string()
                        }
                        TaskId::Sink(at) => self.sinks[*at].name.to_string(),
                    };
                    let what = if prepare.is_some() { "partial results" } else { "records" };
                    format!("{name} ({what} over an edge)")
                }
            })
            .collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    }
}

fn paths(projection: &Projection) -> String {
    let paths: Vec<_> = projection.paths().iter().map(path_text).collect();
    if paths.is_empty() { "nothing".to_owned() } else { paths.join(" ") }
}

fn path_text(path: &crate::codec::FieldPath) -> String {
    format!(".{}", path.path())
}
