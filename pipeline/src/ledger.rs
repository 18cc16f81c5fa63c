//! What became of every record: the accounts of all components and of the links between them, and the equations that hold
//! where none was lost or counted twice.
//!
//! A ledger counts from the first start with a data directory on. It belongs to an epoch as positions and state do, so it
//! goes on from a checkpoint exactly where they do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What a component is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Source,
    #[default]
    Operator,
    Sink,
}

/// What became of records at one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    pub kind: Kind,
    /// Taken from the edges; of a source: read.
    pub received: u64,
    /// Came to be here: windows, alerts, dead letters, copies.
    #[serde(skip_serializing_if = "is_zero")]
    pub made: u64,
    /// Handed on, by port: the component's own name is the empty one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub handed: BTreeMap<String, u64>,
    /// Of a sink: accepted outside, or durable in its outbox.
    #[serde(skip_serializing_if = "is_zero")]
    pub delivered: u64,
    /// Ended here, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, u64>,
    /// Of a sink: in its state, not delivered yet.
    #[serde(skip_serializing_if = "is_zero")]
    pub held: u64,
    /// Of a sink: dropped by its full buffer, before it received them.
    #[serde(skip_serializing_if = "is_zero")]
    pub overflowed: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A link from an output to a component that reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAccount {
    pub from: String,
    /// Empty for the component's own name.
    pub port: String,
    pub to: String,
    /// Handed over since there is the link.
    pub records: u64,
}

/// The accounts of a pipeline. What the configuration no longer names stays in it: its records went somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    pub components: BTreeMap<String, Account>,
    pub links: Vec<LinkAccount>,
}

/// A ledger and what it is of: what `tocsin audit` looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The barrier it was taken at; 0 where no checkpoints are kept.
    pub epoch: u64,
    pub taken_at: String,
    #[serde(flatten)]
    pub ledger: Ledger,
}

/// An equation that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imbalance {
    pub component: String,
    /// Both sides, with their parts, for people.
    pub equation: String,
    pub left: u64,
    pub right: u64,
}

impl Account {
    fn add(&mut self, other: &Self) {
        self.kind = other.kind;
        self.received += other.received;
        self.made += other.made;
        self.delivered += other.delivered;
        self.held += other.held;
        self.overflowed += other.overflowed;
        for (sums, counts) in [(&mut self.handed, &other.handed), (&mut self.dropped, &other.dropped)] {
            for (name, count) in counts {
                *sums.entry(name.clone()).or_default() += count;
            }
        }
    }
}

impl Ledger {
    /// What this ledger becomes by what the tasks of a run have counted since it was started. `links` are those of the run.
    pub fn and(&self, links: &[LinkAccount], counted: impl IntoIterator<Item = (String, Account)>) -> Self {
        let mut run: BTreeMap<String, Account> = BTreeMap::new();
        for (name, account) in counted {
            run.entry(name).or_default().add(&account);
        }
        let mut ledger = self.clone();
        for link in links {
            let handed = run.get(&link.from).and_then(|account| account.handed.get(&link.port)).copied().unwrap_or(0);
            let same =
                |known: &&mut LinkAccount| (&known.from, &known.port, &known.to) == (&link.from, &link.port, &link.to);
            match ledger.links.iter_mut().find(same) {
                Some(known) => known.records += handed,
                None => ledger.links.push(LinkAccount { records: handed, ..link.clone() }),
            }
        }
        for (name, account) in run {
            let sum = ledger.components.entry(name).or_default();
            // What a sink holds now is not added to what it held.
            sum.held = 0;
            sum.add(&account);
        }
        ledger
    }

    /// The equations that do not hold; none where every record is accounted for.
    pub fn imbalances(&self) -> Vec<Imbalance> {
        let mut found = Vec::new();
        let mut check = |component: &str, left: Side, right: Side| {
            if left.sum != right.sum {
                let equation = format!("{}, but {}", left.told(), right.told());
                let (left, right) = (left.sum, right.sum);
                found.push(Imbalance { component: component.to_owned(), equation, left, right });
            }
        };
        for (name, account) in &self.components {
            if account.kind != Kind::Source {
                let mut handed = Side::default();
                for link in self.links.iter().filter(|link| link.to == *name) {
                    handed.add(&format!("handed over by {}", output(&link.from, &link.port)), link.records);
                }
                let mut received = Side::default();
                received.add("received", account.received);
                received.add_some("dropped by its full buffer", account.overflowed);
                check(name, handed, received);
            }
            let mut came = Side::default();
            came.add(if account.kind == Kind::Source { "read" } else { "received" }, account.received);
            came.add_some("made", account.made);
            let mut went = Side::default();
            for (port, records) in &account.handed {
                went.add(
                    &if port.is_empty() { "handed on".to_owned() } else { format!("handed on at {port}") },
                    *records,
                );
            }
            went.add_some("delivered", account.delivered);
            for (reason, records) in &account.dropped {
                went.add(&format!("dropped as {reason}"), *records);
            }
            went.add_some("in flight", account.held);
            check(name, came, went);
        }
        found
    }

    /// Records that sinks hold in their state: taken, but not delivered yet.
    pub fn in_flight(&self) -> u64 {
        self.components.values().map(|account| account.held).sum()
    }

    /// The balance in one line.
    pub fn summary(&self) -> String {
        let all = |kind, count: fn(&Account) -> u64| -> u64 {
            self.components.values().filter(|account| account.kind == kind).map(count).sum()
        };
        let mut line = format!(
            "{} records read, {} delivered",
            all(Kind::Source, |account| account.received),
            all(Kind::Sink, |account| account.delivered)
        );
        let in_flight = self.in_flight();
        if in_flight > 0 {
            write!(line, ", {in_flight} in flight").expect("texts take all");
        }
        line
    }
}

/// How an output is named among `inputs`.
pub fn output(component: &str, port: &str) -> String {
    if port.is_empty() { component.to_owned() } else { format!("{component}.{port}") }
}

/// A side of an equation: its sum, and its parts in words.
#[derive(Default)]
struct Side {
    sum: u64,
    parts: Vec<String>,
}

impl Side {
    fn add(&mut self, name: &str, records: u64) {
        self.sum += records;
        self.parts.push(format!("{name} {records}"));
    }

    fn add_some(&mut self, name: &str, records: u64) {
        if records > 0 {
            self.add(name, records);
        }
    }

    fn told(&self) -> String {
        match self.parts.len() {
            0 => "nothing".to_owned(),
            1 => self.parts[0].clone(),
            _ => format!("{} = {}", self.parts.join(" + "), self.sum),
        }
    }
}
