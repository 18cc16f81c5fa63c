//! The loop of a replay: merges logs by event time, a second at a time, and moves the simulated clock with them.
//!
//! A record arrives when it happened. Operators run on one thread, in an order that only the logs decide; decoding and what
//! keeps no state runs on others.

use std::collections::BTreeMap;
use std::sync::Arc;

use tocsin_config::Plan;
use tocsin_config::build::build_watched;
use tocsin_config::plan::{ComponentId, Outlet};
use tocsin_pipeline::graph::{Graph, Target};
use tocsin_pipeline::ledger::Kind;
use tocsin_pipeline::operator::{Built, Reason};
use tocsin_pipeline::replay::cell;
use tocsin_pipeline::simulation::Simulation;
use tocsin_pipeline::time::Timestamp;

use super::Stretch;
use super::logs::{Named, Pool, Reading, Waiting};
use super::outcome::{Collector, Outcome};
use crate::testing::reader;

/// How much is read at once of all logs together, and of one at the least and at the most.
const BLOCKS_BYTES: usize = 32 << 20;
const BLOCK_BYTES: (usize, usize) = (64 << 10, 1 << 20);

/// Replays `logs`.
///
/// # Errors
/// When a log cannot be read, or tells no time.
pub fn drive(plan: &Plan, logs: &[Named], stretch: &Stretch) -> anyhow::Result<Outcome> {
    let amendments: Vec<_> = (0..plan.operators.len()).filter_map(|rule| plan.amendments(rule)).collect();
    let mut graph = build_watched(plan, &amendments);
    let rules = watch_rules(&mut graph, &amendments);
    // Every record has its moment here, whether or not its readers ask for it.
    graph.sinks.iter_mut().for_each(|sink| sink.needs_time = true);
    graph.operators.iter_mut().for_each(|operator| operator.needs_time = true);
    let names = graph.sinks.iter().map(|sink| Arc::clone(&sink.name)).collect();
    let mut simulation = Simulation::new(graph, Timestamp::MIN);
    let mut waiting = Vec::new();
    for log in logs {
        waiting.extend(Waiting::of(plan, log, &simulation.intake(log.source))?);
    }
    waiting.sort_by(|one, other| other.order().cmp(&one.order()));
    let Some(first) = waiting.last().map(|waiting| waiting.first) else {
        return Ok(Outcome::default());
    };
    let block_bytes = BLOCKS_BYTES / waiting.len();
    let block_bytes = stretch.block_bytes.unwrap_or(block_bytes.clamp(BLOCK_BYTES.0, BLOCK_BYTES.1));
    simulation.without_lanes(cell(first));
    let collector = Collector::new(rules, names, stretch.since);
    std::thread::scope(|scope| {
        let pool = Pool::start(scope, stretch.threads.max(1));
        let drive = Drive { simulation, pool, waiting, reading: Vec::new(), collector, stretch, block_bytes };
        drive.run(first)
    })
}

/// Adds readers to every rule; gives their names by the number of the reader.
fn watch_rules(graph: &mut Graph, amendments: &[Outlet]) -> BTreeMap<usize, Arc<str>> {
    let mut rules = BTreeMap::new();
    for (at, node) in graph.operators.iter_mut().enumerate() {
        let Built::Operator { operator, .. } = &node.built else { continue };
        if operator.alerts().is_empty() {
            continue;
        }
        let amended = amendments.iter().filter(|outlet| outlet.component == ComponentId::Operator(at));
        for port in std::iter::once(0).chain(amended.map(|outlet| outlet.port)) {
            let sink = graph.sinks.len();
            graph.sinks.push(reader("replay"));
            node.outputs[port].push(Target::Sink(sink));
            rules.insert(sink, Arc::clone(&node.name));
        }
    }
    rules
}

struct Drive<'a> {
    simulation: Simulation,
    pool: Pool,
    /// Logs that are not read yet, the last to be opened first.
    waiting: Vec<Waiting>,
    reading: Vec<Reading>,
    collector: Collector,
    stretch: &'a Stretch,
    block_bytes: usize,
}

impl Drive<'_> {
    fn run(mut self, first: Timestamp) -> anyhow::Result<Outcome> {
        let mut now = cell(first);
        let mut last = Timestamp::MIN;
        let mut is_cut = false;
        while let Some((at, number)) = self.next()? {
            if at > now {
                self.settle();
                is_cut = self.stretch.until.is_some_and(|until| at >= until);
                if is_cut {
                    break;
                }
                self.advance(at);
                now = at;
                // Logs at their end are gone, so the numbers have changed.
                continue;
            }
            let reading = &mut self.reading[number];
            let taken = reading.take().expect("it has told of a slice");
            last = last.max(taken.seen_max);
            self.simulation.deliver(reading.source, taken);
            self.collector.take(&mut self.simulation);
        }
        self.settle();
        match self.stretch.until {
            Some(until) => self.advance(until),
            None => {
                self.collector.ends(last);
                self.simulation.end();
                self.collector.take(&mut self.simulation);
            }
        }
        let mut counts = BTreeMap::<String, u64>::new();
        let mut read = 0;
        for (_, account) in self.simulation.accounts() {
            if account.kind == Kind::Source {
                read += account.received;
            }
            for (reason, records) in account.dropped {
                *counts.entry(reason).or_default() += records;
            }
        }
        let count = |reason: Reason| counts.get(reason.as_str()).copied().unwrap_or(0);
        let mut outcome = self.collector.finish();
        outcome.span = Some((first, if is_cut { self.stretch.until.unwrap_or(last).max(last) } else { last }));
        outcome.until = self.stretch.until;
        outcome.read = read;
        outcome.undecodable = count(Reason::Undecodable) + count(Reason::TooLong);
        outcome.late = count(Reason::Late);
        Ok(outcome)
    }

    /// The log whose next records come first, and their second. Opens those whose time has come.
    fn next(&mut self) -> anyhow::Result<Option<(Timestamp, usize)>> {
        loop {
            // Several blocks are worked on at once, of one log or of several.
            let depth = (self.pool_depth() / self.reading.len().max(1)).max(1);
            let mut next: Option<(Timestamp, usize)> = None;
            for (number, reading) in self.reading.iter_mut().enumerate() {
                if let Some(at) = reading.next_cell(&self.pool, depth)? {
                    next = Some(next.map_or((at, number), |next| next.min((at, number))));
                }
            }
            let is_due = |waiting: &Waiting| next.is_none_or(|(at, _)| cell(waiting.first) <= at);
            let Some(waiting) = self.waiting.pop_if(|waiting| is_due(waiting)) else { return Ok(next) };
            self.reading.push(Reading::new(waiting, self.block_bytes)?);
        }
    }

    fn pool_depth(&self) -> usize {
        self.stretch.threads.max(1) * 2
    }

    /// A second is over: all its records have arrived. Logs that are at their end hold nothing back any more.
    fn settle(&mut self) {
        self.simulation.settle();
        let mut number = 0;
        while number < self.reading.len() {
            if self.reading[number].is_done() {
                let reading = self.reading.remove(number);
                self.simulation.close(reading.source, reading.partition());
            } else {
                number += 1;
            }
        }
        self.collector.take(&mut self.simulation);
    }

    fn advance(&mut self, to: Timestamp) {
        self.simulation.advance(to);
        self.collector.take(&mut self.simulation);
    }
}
