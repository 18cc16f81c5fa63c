//! Running fused operators: one loop, no channel and no copy between them.

use std::sync::Arc;

use crate::event::Batch;
use crate::graph::{Chain, Link, Node, PortLinks, Stateless, TaskId, Work};
use crate::metrics::ComponentMetrics;
use crate::operator::{Input, Output, Reason, Transform};
use crate::time::Timestamp;

/// Something on its way to another task.
pub struct Sent {
    pub to: TaskId,
    pub entry: usize,
    pub input: Input,
}

impl Input {
    /// About how much memory it holds: what bounded edges count.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.bytes(),
            Self::Prepared(prepared) => prepared.bytes,
        }
    }

    /// How many records it stands for.
    pub fn records(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.len(),
            Self::Prepared(prepared) => prepared.records,
        }
    }

    /// Says what the lane had shown before: done when the order of blocks is restored.
    pub fn set_seen_before(&mut self, seen: Timestamp) {
        match self {
            Self::Batch(batch) => batch.seen_before = seen,
            Self::Prepared(prepared) => prepared.seen_before = seen,
        }
    }
}

impl Stateless {
    /// Runs a batch from `links` on and adds what leaves the task to `out`.
    pub fn run(&self, links: &[Link], batch: Batch, out: &mut Vec<Sent>) {
        each_with_last(links, batch, |link, batch| match link {
            Link::Edge { .. } => cross(link, batch, out),
            Link::Node { node, .. } => {
                let node = &self.nodes[*node];
                let (ports, output) = transform(node, &*node.work, batch);
                for (port, batch) in output.batches {
                    self.run(port_links(&ports, port, &batch, &node.metrics), batch, out);
                }
            }
        });
    }
}

impl Chain<Work> {
    /// Hands an input to a node and adds what leaves the task to `out`.
    pub fn deliver(&mut self, node: usize, input: usize, content: Input, out: &mut Vec<Sent>) {
        let (ports, output) = self.run_node(node, input, content);
        self.route(node, &ports, output, out);
    }

    /// Tells the operators, each after those that feed it, how far event time has come.
    pub fn on_watermark(&mut self, watermark: Timestamp, out: &mut Vec<Sent>) {
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            let Work::Operator(operator) = &mut node.work else { continue };
            let mut output = Output::default();
            operator.on_watermark(watermark, &mut output);
            count(&node.metrics, &output);
            let ports = Arc::clone(&node.ports);
            self.route(index, &ports, output, out);
        }
    }

    fn run_node(&mut self, index: usize, input: usize, content: Input) -> (Arc<[PortLinks]>, Output) {
        let node = &mut self.nodes[index];
        match (&mut node.work, content) {
            (Work::Transform(work), Input::Batch(batch)) => {
                let work = Arc::clone(work);
                transform(node, &*work, batch)
            }
            (Work::Transform(_), Input::Prepared(_)) => unreachable!("only operators with state have prepared input"),
            (Work::Operator(operator), mut content) => {
                let bytes = match &mut content {
                    Input::Batch(batch) => {
                        batch.decode(&node.decode);
                        batch.bytes()
                    }
                    Input::Prepared(prepared) => prepared.bytes,
                };
                node.metrics.received(content.records(), bytes);
                let mut output = Output::default();
                operator.on_input(input, content, &mut output);
                count(&node.metrics, &output);
                (Arc::clone(&node.ports), output)
            }
        }
    }

    fn route(&mut self, node: usize, ports: &[PortLinks], output: Output, out: &mut Vec<Sent>) {
        for (port, batch) in output.batches {
            let links = port_links(ports, port, &batch, &self.nodes[node].metrics);
            each_with_last(links, batch, |link, batch| match link {
                Link::Edge { .. } => cross(link, batch, out),
                Link::Node { node, input } => self.deliver(*node, *input, Input::Batch(batch), out),
            });
        }
    }
}

fn transform<W>(node: &Node<W>, work: &dyn Transform, mut batch: Batch) -> (Arc<[PortLinks]>, Output) {
    node.metrics.received(batch.len(), 0);
    batch.decode(&node.decode);
    let mut output = Output::default();
    work.apply(batch, &mut output);
    count(&node.metrics, &output);
    (Arc::clone(&node.ports), output)
}

fn count(metrics: &ComponentMetrics, output: &Output) {
    let sent: usize = output.batches.iter().map(|(_, batch)| batch.len()).sum();
    if sent > 0 {
        metrics.sent(sent);
    }
    for (reason, records) in &output.dropped {
        metrics.dropped(*reason, *records);
    }
    if output.expression_errors > 0 {
        metrics.expression_errors(output.expression_errors);
    }
}

/// The links of a port. Where there are none, the batch's records end here and are counted.
fn port_links<'a>(ports: &'a [PortLinks], port: usize, batch: &Batch, metrics: &ComponentMetrics) -> &'a [Link] {
    let Some(port) = ports.get(port) else {
        metrics.dropped(Reason::Unconnected, batch.len() as u64);
        return &[];
    };
    if port.links.is_empty() && !port.is_side {
        metrics.dropped(Reason::Unconnected, batch.len() as u64);
    }
    &port.links
}

/// Calls `f` for each link; only the last gets the batch itself, the others a (cheap) clone.
fn each_with_last(links: &[Link], batch: Batch, mut f: impl FnMut(&Link, Batch)) {
    let Some((last, others)) = links.split_last() else { return };
    for link in others {
        f(link, batch.clone());
    }
    f(last, batch);
}

/// Sends a batch over an edge, after the stateless part of the operator behind it.
pub fn cross(link: &Link, batch: Batch, out: &mut Vec<Sent>) {
    let Link::Edge { to, entry, prepare } = link else { unreachable!("the caller has matched an edge") };
    let input = match prepare {
        Some(prepare) => Input::Prepared(prepare.prepare(batch)),
        None => Input::Batch(batch),
    };
    out.push(Sent { to: *to, entry: *entry, input });
}
