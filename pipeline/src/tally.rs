//! What a task counts while records run through it: once per batch, by place and not by name, and told to the metrics and
//! to the task's book in one step.
//!
//! A block may be worked on ahead of its turn, on any thread; what was counted of it goes into the book when its turn comes,
//! between the same barriers as its position. So the books of an epoch agree with each other.

use std::sync::Arc;

use crate::event::Batch;
use crate::graph::{Chain, Intake, Node, PortLinks};
use crate::ledger::{Account, Kind};
use crate::metrics::ComponentMetrics;
use crate::operator::{Output, Reason};

/// What was counted at one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub received: u64,
    pub bytes: u64,
    /// Records that came to be there: windows, alerts, dead letters, copies.
    pub made: u64,
    /// By port, as far as any record was handed on.
    pub handed: Vec<u64>,
    pub dropped: [u64; Reason::ALL.len()],
    pub expression_errors: u64,
}

impl Counts {
    pub fn receive(&mut self, records: usize, bytes: usize) {
        self.received += records as u64;
        self.bytes += bytes as u64;
    }

    pub fn hand_on(&mut self, port: usize, records: usize) {
        if self.handed.len() <= port {
            self.handed.resize(port + 1, 0);
        }
        self.handed[port] += records as u64;
    }

    pub fn drop(&mut self, reason: Reason, records: usize) {
        self.dropped[reason as usize] += records as u64;
    }

    /// Counts a batch that leaves by a port: handed on, or at its end where nothing is connected.
    pub fn leave(&mut self, port: usize, batch: &Batch, is_connected: bool) {
        match is_connected {
            true => self.hand_on(port, batch.len()),
            false => self.drop(Reason::Unconnected, batch.len()),
        }
    }

    /// Counts what an operator says of its output, beside the batches.
    pub fn take(&mut self, output: &Output) {
        self.made += output.made;
        self.expression_errors += output.expression_errors;
        for (reason, records) in &output.dropped {
            self.dropped[*reason as usize] += records;
        }
    }

    fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.bytes += other.bytes;
        self.made += other.made;
        self.expression_errors += other.expression_errors;
        if self.handed.len() < other.handed.len() {
            self.handed.resize(other.handed.len(), 0);
        }
        self.handed.iter_mut().zip(&other.handed).for_each(|(sum, records)| *sum += records);
        self.dropped.iter_mut().zip(&other.dropped).for_each(|(sum, records)| *sum += records);
    }
}

/// What a task has counted since it was started, by component.
#[derive(Debug)]
pub struct Book {
    pages: Vec<Page>,
}

#[derive(Debug)]
struct Page {
    name: Arc<str>,
    kind: Kind,
    ports: Vec<Arc<str>>,
    metrics: ComponentMetrics,
    counts: Counts,
}

impl Book {
    /// The book of a chain: a page for each node, in their order.
    pub fn of_chain<W>(chain: &Chain<W>) -> Self {
        Self { pages: chain.nodes.iter().map(Page::of_node).collect() }
    }

    /// The book of a source: its own page first.
    pub fn of_intake(intake: &Intake) -> Self {
        let own = Page {
            name: Arc::clone(&intake.name),
            kind: Kind::Source,
            ports: vec!["".into(), "rejected".into()],
            metrics: intake.metrics.clone(),
            counts: Counts::default(),
        };
        Self { pages: std::iter::once(own).chain(intake.chain.nodes.iter().map(Page::of_node)).collect() }
    }

    /// Adds what was counted, page by page, here and to the metrics: all counts of sources and operators come this way.
    pub fn add<'a>(&mut self, counted: impl IntoIterator<Item = &'a Counts>) {
        for (page, counts) in self.pages.iter_mut().zip(counted) {
            page.metrics.add(counts);
            page.counts.add(counts);
        }
    }

    /// The accounts of all pages.
    pub fn accounts(&self) -> Vec<(Arc<str>, Account)> {
        self.pages.iter().map(|page| (Arc::clone(&page.name), page.account())).collect()
    }
}

impl Page {
    fn of_node<W>(node: &Node<W>) -> Self {
        Self {
            name: Arc::clone(&node.name),
            kind: Kind::Operator,
            ports: node.ports.iter().map(|PortLinks { name, .. }| Arc::clone(name)).collect(),
            metrics: node.metrics.clone(),
            counts: Counts::default(),
        }
    }

    fn account(&self) -> Account {
        let Counts { received, made, handed, dropped, .. } = &self.counts;
        let mut account = Account { kind: self.kind, received: *received, made: *made, ..Account::default() };
        for (port, records) in self.ports.iter().zip(handed).filter(|(_, records)| **records > 0) {
            account.handed.insert(port.to_string(), *records);
        }
        for (reason, records) in Reason::ALL.into_iter().zip(dropped).filter(|(_, records)| **records > 0) {
            account.dropped.insert(reason.as_str().to_owned(), *records);
        }
        account
    }
}
