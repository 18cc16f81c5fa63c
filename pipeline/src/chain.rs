//! Running fused operators: one loop, no channel and no copy between them.

use std::sync::Arc;

use crate::event::Batch;
use crate::fault;
use crate::graph::{Chain, Link, Node, PortLinks, Stateless, TaskId, Work};
use crate::operator::{Input, Output, Prepared, Reason, Transform, dead_letter};
use crate::poison::{self, Culprit, Guard, Held, Panicked, Piece};
use crate::tally::{Book, Counts};
use crate::time::Timestamp;

/// Something on its way to another task.
pub struct Sent {
    pub to: TaskId,
    pub entry: usize,
    pub content: Content,
}

/// What goes over an edge.
pub enum Content {
    Batch(Batch),
    /// What the stateless part of the operator behind the edge made of a batch, and which records those were.
    Prepared(Prepared, Held),
    /// A record that it failed on.
    Refused(Culprit),
}

impl Content {
    /// About how much memory it holds: what bounded edges count.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.bytes(),
            Self::Prepared(prepared, _) => prepared.bytes,
            Self::Refused(culprit) => culprit.batch.bytes(),
        }
    }

    /// How many records it stands for.
    pub fn records(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.len(),
            Self::Prepared(prepared, _) => prepared.records,
            Self::Refused(_) => 1,
        }
    }

    /// Says what the lane had shown before: done when the order of blocks is restored.
    pub fn set_seen_before(&mut self, seen: Timestamp) {
        match self {
            Self::Batch(batch) => batch.seen_before = seen,
            Self::Prepared(prepared, _) => prepared.seen_before = seen,
            Self::Refused(_) => {}
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
            Link::Edge { .. } => cross(&self.guard, link, batch, &mut passage.sent),
            Link::Node { node: index, .. } => {
                let node = &self.nodes[*index];
                passage.counts[*index].receive(batch.len(), 0);
                let work = |batch| transform(node, &*node.work, batch);
                self.guard.run(&node.name, batch, &work, &mut |outcome| {
                    let output = settle(node, outcome, &mut passage.counts[*index]);
                    for (port, batch) in output.batches {
                        let links = leave(&node.ports, port, &batch, &mut passage.counts[*index]);
                        self.run(links, batch, passage);
                    }
                });
            }
        });
    }
}

impl Chain<Work> {
    /// Hands something to a node.
    ///
    /// # Errors
    /// When an operator with state panics: what it holds can then not be relied on.
    pub fn deliver(
        &mut self,
        index: usize,
        input: usize,
        content: Content,
        passage: &mut Passage,
    ) -> Result<(), Panicked> {
        let bytes = if matches!(self.nodes[index].work, Work::Operator(_)) { content.bytes() } else { 0 };
        passage.counts[index].receive(content.records(), bytes);
        match content {
            Content::Refused(culprit) => {
                let output = settle(&self.nodes[index], Err(culprit), &mut passage.counts[index]);
                self.route(index, output, passage)
            }
            Content::Prepared(prepared, held) => {
                let held = held.at(&self.nodes[index].name);
                self.operate(index, input, Input::Prepared(prepared), held, passage)
            }
            Content::Batch(batch) => match &self.nodes[index].work {
                Work::Transform(work) => {
                    let (work, node) = (Arc::clone(work), &self.nodes[index]);
                    let mut outputs = Vec::new();
                    self.guard.run(&node.name, batch, &|batch| transform(node, &*work, batch), &mut |outcome| {
                        outputs.push(settle(node, outcome, &mut passage.counts[index]));
                    });
                    outputs.into_iter().try_for_each(|output| self.route(index, output, passage))
                }
                Work::Operator(_) if self.guard.is_watchful() => {
                    for piece in self.guard.pieces(&self.nodes[index].name, batch) {
                        match piece {
                            Piece::Sound(batch, held) => {
                                self.operate(index, input, Input::Batch(batch), held, passage)?;
                            }
                            Piece::Skipped(culprit) => {
                                let output = settle(&self.nodes[index], Err(culprit), &mut passage.counts[index]);
                                self.route(index, output, passage)?;
                            }
                        }
                    }
                    Ok(())
                }
                Work::Operator(_) => {
                    let held = poison::held(&self.nodes[index].name, &batch);
                    self.operate(index, input, Input::Batch(batch), held, passage)
                }
            },
        }
    }

    /// Tells the operators, each after those that feed it, how far event time has come.
    ///
    /// # Errors
    /// As [`Self::deliver`].
    pub fn on_watermark(&mut self, watermark: Timestamp, passage: &mut Passage) -> Result<(), Panicked> {
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            let Work::Operator(operator) = &mut node.work else { continue };
            let mut output = Output::default();
            poison::catch(|| operator.on_watermark(watermark, &mut output)).map_err(|why| Panicked {
                component: node.name.to_string(),
                why,
                held: None,
            })?;
            passage.counts[index].take(&output);
            self.route(index, output, passage)?;
        }
        Ok(())
    }

    /// Hands an input to an operator with state.
    fn operate(
        &mut self,
        index: usize,
        input: usize,
        mut content: Input,
        held: Held,
        passage: &mut Passage,
    ) -> Result<(), Panicked> {
        let node = &mut self.nodes[index];
        let Work::Operator(operator) = &mut node.work else { unreachable!("only operators have prepared input") };
        let mut output = Output::default();
        let outcome = self.guard.catch(held, || {
            if let Input::Batch(batch) = &mut content {
                fault::strike(&node.name, batch);
                batch.decode(&node.decode);
            }
            operator.on_input(input, content, &mut output);
        });
        outcome.map_err(|why| Panicked { component: node.name.to_string(), why, held: Some(held) })?;
        passage.counts[index].take(&output);
        self.route(index, output, passage)
    }

    fn route(&mut self, index: usize, output: Output, passage: &mut Passage) -> Result<(), Panicked> {
        let ports = Arc::clone(&self.nodes[index].ports);
        for (port, batch) in output.batches {
            let links = leave(&ports, port, &batch, &mut passage.counts[index]);
            let mut outcome = Ok(());
            each_with_last(links, batch, |link, batch| match link {
                Link::Edge { .. } => cross(&self.guard, link, batch, &mut passage.sent),
                Link::Node { node, input } if outcome.is_ok() => {
                    outcome = self.deliver(*node, *input, Content::Batch(batch), passage);
                }
                Link::Node { .. } => {}
            });
            outcome?;
        }
        Ok(())
    }
}

fn transform<W>(node: &Node<W>, work: &dyn Transform, mut batch: Batch) -> Output {
    fault::strike(&node.name, &batch);
    batch.decode(&node.decode);
    let mut output = Output::default();
    work.apply(batch, &mut output);
    output
}

/// Counts what came of a batch; a record that the component failed on becomes a dead letter.
fn settle<W>(node: &Node<W>, outcome: Result<Output, Culprit>, counts: &mut Counts) -> Output {
    let output = match outcome {
        Ok(output) => output,
        Err(Culprit { batch, why }) => {
            let (reason, mut output) = (Reason::Poison, Output::default());
            let letters: Vec<_> = batch
                .rows()
                .map(|row| (batch.time(row), dead_letter(&node.name, reason.as_str(), &why, &batch, row)))
                .collect();
            for (_, letter) in &letters {
                tracing::error!(component = %node.name, why, %letter, "a record made the component fail; it is passed over");
            }
            output.drop(reason, letters.len());
            let rejected = node.ports.iter().position(|port| &*port.name == "rejected" && !port.links.is_empty());
            if let Some(port) = rejected {
                output.make(letters.len());
                output.emit(port, Batch::of_values(Arc::clone(&batch.lane), letters, batch.arrival));
            }
            output
        }
    };
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
fn cross(guard: &Guard, link: &Link, batch: Batch, out: &mut Vec<Sent>) {
    let Link::Edge { to, entry, prepare } = link else { unreachable!("the caller has matched an edge") };
    let (to, entry) = (*to, *entry);
    let Some(prepare) = prepare else { return out.push(Sent { to, entry, content: Content::Batch(batch) }) };
    let work = |batch: Batch| {
        let held = guard.alone(&prepare.component, &batch);
        fault::strike(&prepare.component, &batch);
        (prepare.work.prepare(batch), held)
    };
    guard.run(&prepare.component, batch, &work, &mut |outcome| {
        let content = match outcome {
            Ok((prepared, held)) => Content::Prepared(prepared, held),
            Err(culprit) => Content::Refused(culprit),
        };
        out.push(Sent { to, entry, content });
    });
}
