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
    /// What a ledger begins with, where sinks hold records of a time before there was one: they count as made there.
    pub fn opening(held: impl IntoIterator<Item = (String, u64)>) -> Self {
        let accounts = held.into_iter().filter(|(_, held)| *held > 0);
        let account = |held| Account { kind: Kind::Sink, made: held, held, ..Account::default() };
        Self { components: accounts.map(|(sink, held)| (sink, account(held))).collect(), links: Vec::new() }
    }

    /// What became of the records of several pipelines of one configuration.
    pub fn sum<'a>(ledgers: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for ledger in ledgers {
            for (name, account) in &ledger.components {
                sum.components.entry(name.clone()).or_default().add(account);
            }
            for link in &ledger.links {
                let is_it = |known: &&mut LinkAccount| {
                    (&known.from, &known.port, &known.to) == (&link.from, &link.port, &link.to)
                };
                match sum.links.iter_mut().find(is_it) {
                    Some(known) => known.records += link.records,
                    None => sum.links.push(link.clone()),
                }
            }
        }
        sum
    }

    /// The state of a sink is not gone on from: what it held ends with it.
    pub fn forget(&mut self, sink: &str) {
        if let Some(account) = self.components.get_mut(sink) {
            match std::mem::take(&mut account.held) {
                0 => {}
                held => *account.dropped.entry("state_lost".to_owned()).or_default() += held,
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// An account from `KIND NAME WHAT=COUNT …`, where `WHAT` is `received`, `made`, `delivered`, `held`, `overflowed`,
    /// `handed`, `handed.PORT`, or a reason.
    fn account(line: &str) -> (String, Account) {
        let mut words = line.split_whitespace();
        let kind = match words.next() {
            Some("source") => Kind::Source,
            Some("operator") => Kind::Operator,
            Some("sink") => Kind::Sink,
            other => panic!("no kind: {other:?}"),
        };
        let name = words.next().unwrap().to_owned();
        let mut account = Account { kind, ..Account::default() };
        for (what, count) in words.map(|word| word.split_once('=').unwrap()) {
            let count = count.parse().unwrap();
            match what {
                "received" => account.received = count,
                "made" => account.made = count,
                "delivered" => account.delivered = count,
                "held" => account.held = count,
                "overflowed" => account.overflowed = count,
                what => match what.strip_prefix("handed") {
                    Some(port) => account.handed.insert(port.trim_start_matches('.').to_owned(), count),
                    None => account.dropped.insert(what.to_owned(), count),
                }
                .map_or((), drop),
            }
        }
        (name, account)
    }

    /// A ledger from accounts, and links as `FROM -> TO COUNT` with `NAME.PORT` for a port.
    fn ledger(text: &str) -> Ledger {
        let mut ledger = Ledger::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once(" -> ") {
                Some((from, rest)) => {
                    let (to, records) = rest.split_once(' ').unwrap();
                    let (from, port) = from.split_once('.').unwrap_or((from, ""));
                    let (from, port, to) = (from.to_owned(), port.to_owned(), to.to_owned());
                    ledger.links.push(LinkAccount { from, port, to, records: records.parse().unwrap() });
                }
                None => ledger.components.extend([account(line)]),
            }
        }
        ledger
    }

    fn check(text: &str, expected: Expect) {
        let told: Vec<_> = ledger(text)
            .imbalances()
            .into_iter()
            .map(|found| format!("{}: {} ({} and {})\n", found.component, found.equation, found.left, found.right))
            .collect();
        expected.assert_eq(&told.concat());
    }

    const BALANCED: &str = "
        source log received=100 made=3 handed=97 handed.rejected=3 undecodable=2 too_long=1
        log -> errors 97
        log -> all 97
        log.rejected -> letters 3
        operator errors received=97 handed=7 filtered=90
        errors -> windows 7
        operator windows received=7 made=2 handed=2 aggregated=6 handed.late=1
        windows -> out 2
        windows.late -> letters 1
        sink out received=2 made=1 handed.rejected=1 delivered=0 refused=1 held=1
        out.rejected -> letters 1
        sink letters received=5 delivered=5
        sink all received=90 overflowed=7 delivered=90
    ";

    #[test]
    fn where_every_record_is_accounted_for_nothing_is_told() {
        check(BALANCED, expect![[""]]);
        assert_eq!(ledger(BALANCED).summary(), "100 records read, 95 delivered, 1 in flight");
    }

    #[test]
    fn a_record_that_is_lost_or_counted_twice_is_told_where_it_is() {
        check(
            &BALANCED.replace("filtered=90", "filtered=89"),
            expect![[r#"
            errors: received 97, but handed on 7 + dropped as filtered 89 = 96 (97 and 96)
        "#]],
        );
        check(
            &BALANCED.replace("made=2", "made=3"),
            expect![[r#"
            windows: received 7 + made 3 = 10, but handed on 2 + handed on at late 1 + dropped as aggregated 6 = 9 (10 and 9)
        "#]],
        );
        check(
            &BALANCED.replace("letters received=5 delivered=5", "letters received=4 delivered=4"),
            expect![[r#"
            letters: handed over by log.rejected 3 + handed over by windows.late 1 + handed over by out.rejected 1 = 5, but received 4 (5 and 4)
        "#]],
        );
        check(
            &BALANCED.replace("overflowed=7 ", ""),
            expect![[r#"
            all: handed over by log 97, but received 90 (97 and 90)
        "#]],
        );
        check(
            &BALANCED.replace(" held=1", ""),
            expect![[r#"
            out: received 2 + made 1 = 3, but handed on at rejected 1 + dropped as refused 1 = 2 (3 and 2)
        "#]],
        );
        check(
            &BALANCED.replace("received=100", "received=101"),
            expect![[r#"
            log: read 101 + made 3 = 104, but handed on 97 + handed on at rejected 3 + dropped as too_long 1 + dropped as undecodable 2 = 103 (104 and 103)
        "#]],
        );
    }

    #[test]
    fn counting_goes_on_with_links_that_are_new_and_components_that_are_gone() {
        let before = ledger(
            "source log received=10 handed=10
             log -> old 10
             operator old received=10 handed=10
             old -> out 10
             sink out received=10 delivered=7 held=3",
        );
        let links = ledger("log -> kept 0\nlog -> out 0\nkept -> out 0").links;
        // Each task tells its own; the same operator may run in several.
        let counted = [
            "source log received=5 handed=5",
            "operator kept received=2 handed=1 filtered=1",
            "operator kept received=3 handed=3",
            "sink out overflowed=1",
            "sink out received=8 delivered=9 held=2",
        ];
        let after = before.and(&links, counted.map(account));
        assert_eq!(after.imbalances(), []);
        assert_eq!(after.components["out"], account("sink out received=18 delivered=16 held=2 overflowed=1").1);
        assert_eq!(after.components["log"].handed[""], 15);
        let records = |link: &LinkAccount| format!("{} -> {} {}", link.from, link.to, link.records);
        assert_eq!(
            after.links.iter().map(records).collect::<Vec<_>>(),
            ["log -> old 10", "old -> out 10", "log -> kept 5", "log -> out 5", "kept -> out 4"]
        );
    }
}
