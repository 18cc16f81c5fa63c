//! Running fused operators: one loop, no channel and no copy between them.

use std::sync::Arc;

use crate::event::Batch;
use crate::graph::{Chain, Link, Node, PortLinks, Stateless, TaskId, Work};
use crate::operator::{Input, Output, Transform};
use crate::tally::{Book, Counts};
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

/// What running a chain has led to: what leaves the task, and what was counted at each node.
#[derive(Default)]
pub struct Passage {
    pub sent: Vec<Sent>,
    pub counts: Vec<Counts>,
}

impl Passage {
    pub fn of<W>(chain: &Chain<W>) -> Self {
        Self { sent: Vec::new(), counts: vec![Counts::default(); chain.nodes.len()] }
    }

    /// Puts what was counted into the task's book.
    pub fn settle(&mut self, book: &mut Book) {
        book.add(&self.counts);
        self.counts.fill(Counts::default());
    }
}

impl Stateless {
    /// Runs a batch from `links` on.
    pub fn run(&self, links: &[Link], batch: Batch, passage: &mut Passage) {
        each_with_last(links, batch, |link, batch| match link {
            Link::Edge { .. } => cross(link, batch, &mut passage.sent),
            Link::Node { node: index, .. } => {
                let node = &self.nodes[*index];
                let output = transform(node, &*node.work, batch, &mut passage.counts[*index]);
                for (port, batch) in output.batches {
                    let links = leave(&node.ports, port, &batch, &mut passage.counts[*index]);
                    self.run(links, batch, passage);
                }
            }
        });
    }
}

impl Chain<Work> {
    /// Hands an input to a node.
    pub fn deliver(&mut self, node: usize, input: usize, content: Input, passage: &mut Passage) {
        let (ports, output) = self.run_node(node, input, content, &mut passage.counts[node]);
        self.route(node, &ports, output, passage);
    }

    /// Tells the operators, each after those that feed it, how far event time has come.
    pub fn on_watermark(&mut self, watermark: Timestamp, passage: &mut Passage) {
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            let Work::Operator(operator) = &mut node.work else { continue };
            let mut output = Output::default();
            operator.on_watermark(watermark, &mut output);
            passage.counts[index].take(&output);
            let ports = Arc::clone(&node.ports);
            self.route(index, &ports, output, passage);
        }
    }

    fn run_node(
        &mut self,
        index: usize,
        input: usize,
        content: Input,
        counts: &mut Counts,
    ) -> (Arc<[PortLinks]>, Output) {
        let node = &mut self.nodes[index];
        let output = match (&mut node.work, content) {
            (Work::Transform(work), Input::Batch(batch)) => {
                let work = Arc::clone(work);
                transform(node, &*work, batch, counts)
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
                counts.receive(content.records(), bytes);
                let mut output = Output::default();
                operator.on_input(input, content, &mut output);
                counts.take(&output);
                output
            }
        };
        (Arc::clone(&node.ports), output)
    }

    fn route(&mut self, node: usize, ports: &[PortLinks], output: Output, passage: &mut Passage) {
        for (port, batch) in output.batches {
            let links = leave(ports, port, &batch, &mut passage.counts[node]);
            each_with_last(links, batch, |link, batch| match link {
                Link::Edge { .. } => cross(link, batch, &mut passage.sent),
                Link::Node { node, input } => self.deliver(*node, *input, Input::Batch(batch), passage),
            });
        }
    }
}

fn transform<W>(node: &Node<W>, work: &dyn Transform, mut batch: Batch, counts: &mut Counts) -> Output {
    counts.receive(batch.len(), 0);
    batch.decode(&node.decode);
    let mut output = Output::default();
    work.apply(batch, &mut output);
    counts.take(&output);
    output
}

/// Counts a batch that leaves a node by a port, and gives the links it takes.
fn leave<'a>(ports: &'a [PortLinks], port: usize, batch: &Batch, counts: &mut Counts) -> &'a [Link] {
    let links = ports.get(port).map_or(&[][..], |port| &port.links);
    counts.leave(port, batch, !links.is_empty());
    links
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
