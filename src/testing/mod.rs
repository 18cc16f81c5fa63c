//! `tocsin test`: runs the `[[tests]]` of a configuration on a virtual clock, through the plan that the daemon would run.

mod notifications;

use std::fmt::Write as _;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value as Json};
use tocsin_config::build::build_watched;
use tocsin_config::plan::{AlertState, ComponentId, ExpectedAlert, ExpectedRecords, Outlet, Plan, REJECTED, Test};
use tocsin_pipeline::evolution::Meaning;
use tocsin_pipeline::graph::{Graph, SinkNode, Target, WhenFull};
use tocsin_pipeline::json::write_value;
use tocsin_pipeline::operator::Built;
use tocsin_pipeline::simulation::{Arrival, Simulation};
use tocsin_pipeline::sink::{Sink, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::time::Timestamp;

use notifications::Sent;

/// What became of a test: nothing to say, or what was expected and did not happen.
pub struct Outcome {
    pub name: String,
    pub failures: Vec<String>,
}

/// Runs all tests of a plan.
pub fn run_all(plan: &Plan) -> Vec<Outcome> {
    plan.tests.iter().map(|test| run(plan, test).0).collect()
}

/// Something that came out at an outlet that the test looks at.
struct Seen {
    /// Event time.
    time: Timestamp,
    record: Json,
    raw: String,
}

/// Runs a test; tells also how often the virtual clock was moved.
fn run(plan: &Plan, test: &Test) -> (Outcome, u64) {
    let mut captures = Captures::default();
    let rules: Vec<_> = test.alerts.iter().map(|expected| outlet_of(plan, expected)).collect();
    // Operators do not make what nobody reads.
    let outlets: Vec<_> = test.expect.iter().map(|expected| expected.from).chain(rules.iter().copied()).collect();
    let mut graph = build_watched(plan, &outlets);
    for expected in &test.expect {
        captures.add(&mut graph, expected.from);
    }
    // Where somebody asks for it rules tell that they are pending: in a run of its own, as sinks must not hear of it.
    let mut watched = None;
    if test.alerts.iter().any(|expected| expected.state == AlertState::Pending) {
        let mut telling = build_watched(plan, &outlets);
        for node in &mut telling.operators {
            if let Built::Operator { operator, .. } = &mut node.built {
                operator.tell_pending();
            }
        }
        let mut captures = Captures::default();
        rules.into_iter().for_each(|rule| captures.add(&mut telling, rule));
        play(telling, test, |arrival, _| captures.take(arrival));
        watched = Some(captures);
    } else {
        rules.into_iter().for_each(|rule| captures.add(&mut graph, rule));
    }
    let mut sent = Vec::new();
    let steps = play(graph, test, |arrival, simulation| {
        let told = arrival.batch.rows().filter_map(|row| simulation.preview(arrival, row));
        sent.extend(told.map(|told| Sent { at: arrival.at, receiver: arrival.sink, told }));
        captures.take(arrival);
    });
    let mut failures = Vec::new();
    for expected in &test.expect {
        check_records(expected, captures.seen(expected.from), &mut failures);
    }
    for expected in &test.alerts {
        let seen = watched.as_ref().unwrap_or(&captures).seen(outlet_of(plan, expected));
        check_alert(plan, expected, seen, &mut failures);
    }
    failures.extend(notifications::check(plan, test, &sent));
    (Outcome { name: test.name.clone(), failures }, steps)
}

/// Where a rule tells what is expected of it.
fn outlet_of(plan: &Plan, expected: &ExpectedAlert) -> Outlet {
    let amendments = plan.amendments(expected.rule).filter(|_| expected.state == AlertState::Amended);
    amendments.unwrap_or(Outlet { component: ComponentId::Operator(expected.rule), port: 0 })
}

/// Runs the input of a test through a graph; gives how often the clock was moved.
fn play(graph: Graph, test: &Test, mut take: impl FnMut(&Arrival, &Simulation)) -> u64 {
    let mut simulation = Simulation::new(graph, test.start);
    for input in &test.input {
        simulation.advance(input.at);
        let records: Vec<&[u8]> = input.records.iter().map(|record| record.as_bytes()).collect();
        simulation.input(input.source, &records);
    }
    match test.until {
        Some(until) => simulation.advance(until),
        None => simulation.end(),
    }
    for arrival in simulation.take_arrivals() {
        take(&arrival, &simulation);
    }
    simulation.steps()
}

/// The outlets that a test looks at: each read by a sink that only the simulation knows.
#[derive(Default)]
struct Captures {
    /// The outlet, the number of its sink, and what came.
    outlets: Vec<(Outlet, usize, Vec<Seen>)>,
}

impl Captures {
    fn add(&mut self, graph: &mut Graph, outlet: Outlet) {
        if self.outlets.iter().any(|(known, ..)| *known == outlet) {
            return;
        }
        // What a sink is handed is seen where it arrives; everything else gets a reader of its own.
        let sink = match outlet {
            Outlet { component: ComponentId::Sink(sink), port: 0 } => sink,
            _ => {
                let sink = graph.sinks.len();
                graph.sinks.push(reader("test"));
                let targets = match outlet {
                    Outlet { component: ComponentId::Source(at), port: 0 } => &mut graph.sources[at].outputs,
                    Outlet { component: ComponentId::Source(at), .. } => &mut graph.sources[at].rejected,
                    Outlet { component: ComponentId::Operator(at), port } => &mut graph.operators[at].outputs[port],
                    // Nothing is delivered in a test, so nothing is refused either.
                    Outlet { component: ComponentId::Sink(at), port: REJECTED } => &mut graph.sinks[at].rejected,
                    Outlet { component: ComponentId::Sink(at), .. } => &mut graph.sinks[at].failed,
                };
                targets.push(Target::Sink(sink));
                sink
            }
        };
        self.outlets.push((outlet, sink, Vec::new()));
    }

    fn take(&mut self, arrival: &Arrival) {
        let batch = &arrival.batch;
        for (_, _, seen) in self.outlets.iter_mut().filter(|(_, sink, _)| *sink == arrival.sink) {
            for row in batch.rows() {
                let mut json = Vec::new();
                write_value(&batch.value(row), &mut json);
                let record = serde_json::from_slice(&json).unwrap_or(Json::Null);
                let raw = match batch.changed(row) {
                    Some(_) => String::from_utf8_lossy(&json).into_owned(),
                    None => String::from_utf8_lossy(batch.record(row)).into_owned(),
                };
                seen.push(Seen { time: batch.time(row), record, raw });
            }
        }
    }

    fn seen(&self, outlet: Outlet) -> &[Seen] {
        self.outlets.iter().find(|(known, ..)| *known == outlet).map_or(&[], |(_, _, seen)| seen)
    }
}

/// A sink that only a simulation knows: what would be handed to it is looked at where it arrives.
pub fn reader(name: &'static str) -> SinkNode {
    SinkNode {
        name: name.into(),
        meaning: Meaning::of(name),
        sink: Box::new(Discard),
        needs_time: true,
        buffer_bytes: 1,
        when_full: WhenFull::Block,
        rejected: Vec::new(),
        failed: Vec::new(),
    }
}

/// The reader of an outlet that a test looks at.
struct Discard;

impl Sink for Discard {
    fn open<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, mut context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            while let Some(queued) = context.input.recv().await {
                if let (SinkInput::End, _) = queued.split() {
                    break;
                }
            }
            Ok(SinkState::Unchanged)
        })
    }
}

fn check_records(expected: &ExpectedRecords, seen: &[Seen], failures: &mut Vec<String>) {
    let matches = |want: &Json, seen: &Seen| match want {
        Json::String(text) => seen.raw == *text,
        want if expected.exact => *want == seen.record,
        want => includes(want, &seen.record),
    };
    let mut rest = seen.iter();
    let missing = expected.records.iter().find(|want| !rest.any(|seen| matches(want, seen)));
    let is_exact = expected.records.len() == seen.len()
        && expected.records.iter().zip(seen).all(|(want, seen)| matches(want, seen));
    if missing.is_none() && (is_exact || !expected.exact) {
        return;
    }
    let mut text = format!("{}: `{}` did not give what is expected", place(&expected.place), expected.name);
    for want in &expected.records {
        let mark = if seen.iter().any(|seen| matches(want, seen)) { ' ' } else { '-' };
        write!(text, "\n  {mark} {want}").expect("writing to a string");
    }
    for seen in seen.iter().filter(|seen| !expected.records.iter().any(|want| matches(want, seen))) {
        write!(text, "\n  + {}", seen.raw).expect("writing to a string");
    }
    if seen.is_empty() {
        text.push_str("\n  nothing came");
    } else if is_exact || seen.iter().all(|seen| expected.records.iter().any(|want| matches(want, seen))) {
        text.push_str("\n  all came, but in another order or number");
    }
    failures.push(text);
}

fn check_alert(plan: &Plan, expected: &ExpectedAlert, seen: &[Seen], failures: &mut Vec<String>) {
    let labels = Json::Object(expected.labels.clone());
    let is_met = seen.iter().any(|seen| {
        seen.record["state"] == expected.state.as_str()
            && expected.at.is_none_or(|at| seen.time == at)
            && includes(&labels, &seen.record["labels"])
    });
    if is_met {
        return;
    }
    let rule = &plan.operators[expected.rule].name;
    let at = expected.at.map_or(String::new(), |at| format!(" at {at}"));
    let labels = if expected.labels.is_empty() { String::new() } else { format!(" with {labels}") };
    let mut text = format!("{}: `{rule}` was not {}{at}{labels}", place(&expected.place), expected.state.as_str());
    for seen in seen {
        write!(
            text,
            "\n  + {} at {} {}",
            seen.record["state"].as_str().unwrap_or("?"),
            seen.time,
            seen.record["labels"]
        )
        .expect("writing to a string");
    }
    if seen.is_empty() {
        text.push_str("\n  it made no transition at all");
    }
    failures.push(text);
}

/// Whether `record` has all that `want` names.
fn includes(want: &Json, record: &Json) -> bool {
    match (want, record) {
        (Json::Object(want), Json::Object(record)) => includes_all(want, record),
        (Json::Number(want), Json::Number(record)) => want.as_f64() == record.as_f64(),
        (want, record) => want == record,
    }
}

fn includes_all(want: &Map<String, Json>, record: &Map<String, Json>) -> bool {
    want.iter().all(|(key, want)| record.get(key).is_some_and(|value| includes(want, value)))
}

fn place(place: &tocsin_config::plan::Place) -> String {
    format!("{}:{}", place.file, place.line)
}

#[cfg(test)]
mod tests;
