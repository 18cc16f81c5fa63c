//! `tocsin audit`: what became of every record, and whether the counts balance.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::json;
use tocsin_pipeline::checkpoint;
use tocsin_pipeline::ledger::{Account, Audit, Kind, Ledger};
use tocsin_pipeline::store::Disk;

use crate::client;

/// Where a daemon tells its audit.
pub const PATH: &str = "/api/v1/audit";

/// The audit of a running daemon, as of its last barrier.
pub fn of_daemon(address: SocketAddr) -> anyhow::Result<Audit> {
    let body = client::request(Method::GET, address, PATH)?;
    serde_json::from_slice(&body).with_context(|| format!("what {address} answered is no audit"))
}

/// The audit of a data directory, as of its newest checkpoint.
pub fn of_data_dir(data_dir: &Path) -> anyhow::Result<Audit> {
    match checkpoint::audit(&Disk, data_dir) {
        Ok(Some(audit)) => Ok(audit),
        Ok(None) => bail!("{} holds no checkpoint; is it the `daemon.data_dir`?", data_dir.display()),
        Err(error) => Err(error).with_context(|| format!("reading {}", data_dir.display())),
    }
}

/// For programs: the ledger, and the equations that do not hold.
pub fn json(audit: &Audit) -> String {
    let imbalances = audit.ledger.imbalances();
    let told = json!({
        "epoch": audit.epoch,
        "taken_at": audit.taken_at,
        "balanced": imbalances.is_empty(),
        "imbalances": imbalances,
        "components": audit.ledger.components,
        "links": audit.ledger.links,
    });
    format!("{told}\n")
}

/// For people: a table for each source, one of all components, and the verdict.
pub fn text(audit: &Audit) -> String {
    let ledger = &audit.ledger;
    let mut text = format!("epoch {}, {}\n", audit.epoch, audit.taken_at);
    for (name, account) in ledger.components.iter().filter(|(_, account)| account.kind == Kind::Source) {
        write!(text, "\n{name}\n{}", align(&source_rows(ledger, name, account), 2)).expect("texts take all");
    }
    write!(text, "\n{}\n", align(&component_rows(ledger), 0)).expect("texts take all");
    let imbalances = ledger.imbalances();
    for found in &imbalances {
        writeln!(text, "{}: {}", found.component, found.equation).expect("texts take all");
    }
    let in_flight = ledger.in_flight();
    match (imbalances.len(), in_flight) {
        (0, 0) => text.push_str("balanced\n"),
        (0, _) => writeln!(text, "balanced, with {in_flight} in flight").expect("texts take all"),
        (1, _) => text.push_str("NOT balanced: 1 of the equations does not hold\n"),
        (count, _) => writeln!(text, "NOT balanced: {count} of the equations do not hold").expect("texts take all"),
    }
    text
}

/// What was read of a source, and where its records have ended.
fn source_rows(ledger: &Ledger, name: &str, account: &Account) -> Vec<Vec<String>> {
    let row = |label: &str, count: u64, note: &str| vec![label.to_owned(), count.to_string(), note.to_owned()];
    let mut rows = vec![row("read", account.received, "")];
    let parsed = account.handed.get("").copied().unwrap_or(0);
    for (reason, count) in &account.dropped {
        rows.push(row("ended here", *count, reason));
    }
    rows.push(row("parsed", parsed, "handed on"));
    for reached in downstream(ledger, name) {
        let Some(account) = ledger.components.get(reached) else { continue };
        let others = sources_of(ledger, reached).into_iter().filter(|source| *source != name).collect::<Vec<_>>();
        let shared = if others.is_empty() { String::new() } else { format!(", with those of {}", others.join(", ")) };
        let place = format!("  at {reached}");
        for (what, count) in [("delivered", account.delivered), ("in flight", account.held)] {
            if count > 0 {
                rows.push(row(&place, count, &format!("{what}{shared}")));
            }
        }
        if account.overflowed > 0 {
            rows.push(row(&place, account.overflowed, &format!("buffer_full{shared}")));
        }
        for (reason, count) in &account.dropped {
            rows.push(row(&place, *count, &format!("{reason}{shared}")));
        }
    }
    rows
}

/// The components that records of `from` can come to, in the order of their names.
fn downstream<'a>(ledger: &'a Ledger, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        for link in ledger.links.iter().filter(|link| link.from == at) {
            if reached.insert(link.to.as_str()) {
                open.push(&link.to);
            }
        }
    }
    reached
}

fn sources_of<'a>(ledger: &'a Ledger, component: &str) -> Vec<&'a str> {
    let sources = ledger.components.iter().filter(|(_, account)| account.kind == Kind::Source);
    sources
        .filter(|(source, _)| downstream(ledger, source).contains(component))
        .map(|(name, _)| name.as_str())
        .collect()
}

fn component_rows(ledger: &Ledger) -> Vec<Vec<String>> {
    let head = ["component", "received", "made", "handed on", "delivered", "dropped", "in flight"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, account) in &ledger.components {
        let handed = account.handed.values().sum();
        let dropped = account.dropped.values().sum::<u64>();
        let counts = [account.received, account.made, handed, account.delivered, dropped, account.held];
        rows.push(std::iter::once(name.clone()).chain(counts.map(|count| count.to_string())).collect());
    }
    rows
}

/// Rows as lines whose columns stand below each other: words to the left, numbers to the right.
fn align(rows: &[Vec<String>], indent: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let is_number = column > 0 && rows.last().is_some_and(|row| row[column].parse::<u64>().is_ok());
            match is_number {
                true => write!(line, "  {cell:>width$}"),
                false if column == 0 => write!(line, "{cell:<width$}"),
                false => write!(line, "  {cell:<width$}"),
            }
            .expect("texts take all");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use tocsin_pipeline::ledger::LinkAccount;

    use super::*;

    fn audit(delivered: u64) -> Audit {
        let account = |kind, received, handed: &[(&str, u64)], dropped: &[(&str, u64)], delivered| Account {
            kind,
            received,
            handed: handed.iter().map(|(port, count)| ((*port).to_owned(), *count)).collect(),
            dropped: dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            delivered,
            ..Account::default()
        };
        let link = |from: &str, to: &str, records| {
            let (from, to) = (from.to_owned(), to.to_owned());
            LinkAccount { from, port: String::new(), to, records }
        };
        let components = [
            ("app", account(Kind::Source, 1000, &[("", 990)], &[("undecodable", 10)], 0)),
            ("web", account(Kind::Source, 5, &[("", 5)], &[], 0)),
            ("errors", account(Kind::Operator, 990, &[("", 12)], &[("filtered", 978)], 0)),
            ("out", account(Kind::Sink, 17, &[], &[], delivered)),
        ];
        let ledger = Ledger {
            components: components.into_iter().map(|(name, account)| (name.to_owned(), account)).collect(),
            links: vec![link("app", "errors", 990), link("errors", "out", 12), link("web", "out", 5)],
        };
        Audit { epoch: 12, taken_at: "2026-11-20T12:00:00Z".to_owned(), ledger }
    }

    #[test]
    fn every_source_is_told_with_where_its_records_have_ended() {
        expect![[r#"
            epoch 12, 2026-11-20T12:00:00Z

            app
              read         1000
              ended here     10  undecodable
              parsed        990  handed on
                at errors   978  filtered
                at out       17  delivered, with those of web

            web
              read       5
              parsed     5  handed on
                at out  17  delivered, with those of app

            component  received  made  handed on  delivered  dropped  in flight
            app            1000     0        990          0       10          0
            errors          990     0         12          0      978          0
            out              17     0          0         17        0          0
            web               5     0          5          0        0          0

            balanced
        "#]]
        .assert_eq(&text(&audit(17)));
    }

    #[test]
    fn what_does_not_balance_is_told_with_its_numbers() {
        let text = text(&audit(15));
        let verdict: Vec<_> = text.lines().rev().take(2).collect();
        expect![[r#"
            NOT balanced: 1 of the equations does not hold
            out: received 17, but delivered 15"#]]
        .assert_eq(&verdict.join("\n"));
    }

    #[test]
    fn what_a_program_reads_is_an_audit_again() {
        let told = json(&audit(15));
        assert_eq!(serde_json::from_str::<Audit>(&told).unwrap(), audit(15));
        assert!(told.contains("\"balanced\":false"), "{told}");
    }
}
