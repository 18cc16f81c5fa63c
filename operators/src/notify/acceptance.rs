//! Alertmanager's acceptance scenarios, where they are (`TOCSIN_CORPUS`), on a virtual clock: what is pushed to it are
//! records here, what it sends to a webhook is what leaves by the port of a receiver.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration as Span;

use serde_json::{Map, Value as Json, json};
use serde_yaml_ng::Value as Yaml;
use tocsin_config::COMMANDS;
use tocsin_config::component::OperatorConfig as _;
use tocsin_config::types::Duration;
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::operator::{Built, Input, Operator, Output};
use tocsin_pipeline::time::Timestamp;

use super::Config;
use super::corpus::{Other, Translation, entries, judge, not_translated, port, require, scalar, yaml};
use crate::script;

/// Where the seconds of the scenarios begin.
const START: Timestamp = Timestamp::from_secs(1_764_000_000);

/// What is told at other times here than there: which case, when, and why.
const DIFFERENT: [(&str, [f64; 2], &str); 2] = [
    (
        "send_test.go/TestRetry",
        [2.0, 5.0],
        "what is repeated is told when its time has come, and not with the next `group_interval` after it",
    ),
    (
        "send_test.go/TestReload",
        [2.0, 8.0],
        "a reload, which the case leaves out, does not begin the intervals of groups anew",
    ),
];

/// How the operator is run. It must not show.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Time is told by records alone.
    Records,
    /// And by watermarks, many times a second.
    Watermarks,
    /// Each time something is pushed, the operator is made anew from its snapshot.
    Restarts,
}

fn moment(seconds: f64) -> Timestamp {
    START.saturating_add(Span::from_millis((seconds * 1000.0).round() as u64))
}

fn seconds(time: &Json) -> Option<f64> {
    let time = Timestamp::parse_rfc3339(time.as_str()?.as_bytes())?;
    Some(time.since(START).as_secs_f64())
}

/// A notification as it left: when, and of which alerts.
#[derive(Debug, PartialEq)]
struct Told {
    at: f64,
    alerts: Vec<Json>,
}

/// The operator, fed by hand.
struct Daemon {
    config: String,
    way: Way,
    operator: Box<dyn Operator>,
    receivers: Vec<String>,
    told: BTreeMap<String, Vec<Told>>,
    offset: u64,
    now: Timestamp,
}

fn build(config: &str) -> Box<dyn Operator> {
    let Built::Operator { operator, .. } = script::build::<Config>(config) else { panic!("it has state") };
    operator
}

impl Daemon {
    fn new(config: String, way: Way) -> Result<Self, Other> {
        let parsed: Config = toml::from_str(&config).map_err(|error| Other::Differs(error.to_string()))?;
        let problems = parsed.problems();
        require(problems.is_empty(), || format!("{problems:?}\n{config}"))?;
        let operator = build(&config);
        let receivers = ["default".to_owned()].into_iter().chain(parsed.ports()).collect();
        Ok(Self { config, way, operator, receivers, told: BTreeMap::new(), offset: 0, now: START })
    }

    fn go_on(&mut self, time: Timestamp) {
        match self.way {
            Way::Records => {}
            Way::Watermarks => {
                // Between the moments at which something happens.
                let mut watermark = self.now.saturating_add(Span::from_millis(25));
                while watermark < time {
                    self.advance(watermark);
                    watermark = watermark.saturating_add(Span::from_millis(50));
                }
            }
            Way::Restarts => {
                let mut pieces = Vec::new();
                self.operator.snapshot(true, &mut |group, piece| pieces.push((group, piece)));
                self.operator = build(&self.config);
                for (group, piece) in pieces {
                    self.operator.restore(group, &piece).unwrap();
                }
            }
        }
        self.now = time;
    }

    fn feed(&mut self, source: &str, time: Timestamp, record: &Json) {
        self.go_on(time);
        let lane = Lane {
            source: source.into(),
            partition: String::new(),
            origin: Origin::Stream,
            codec: Arc::new(script::Json),
            out_of_order: Span::ZERO,
        };
        let record = record.to_string();
        let batch = script::batch(&Arc::new(lane), self.offset, Timestamp::MIN, &[(time, &record)]);
        self.offset += batch.block.len() as u64;
        let mut output = Output::default();
        self.operator.on_input(0, Input::Batch(batch), &mut output);
        self.collect(output);
    }

    fn advance(&mut self, watermark: Timestamp) {
        let mut output = Output::default();
        self.operator.on_watermark(watermark, &mut output);
        self.collect(output);
    }

    fn collect(&mut self, output: Output) {
        for (port, batch) in output.batches {
            for row in batch.rows() {
                let mut text = Vec::new();
                tocsin_pipeline::json::write_value(&batch.value(row), &mut text);
                let record: Json = serde_json::from_slice(&text).unwrap();
                // What a silence kept quiet is told when it ends; Alertmanager does not.
                if record["reason"] != "summary" {
                    let told = Told {
                        at: seconds(&record["time"]).unwrap(),
                        alerts: record["alerts"].as_array().unwrap().clone(),
                    };
                    self.told.entry(self.receivers[port].clone()).or_default().push(told);
                }
            }
        }
    }
}

/// The configuration, and the port of each webhook in the order of their addresses.
fn translate(configuration: &Yaml) -> Result<(String, Vec<String>), Other> {
    let mut translation = Translation::default();
    let mut webhooks: Vec<(String, bool)> = Vec::new();
    let mut doubled = String::new();
    for receiver in configuration["receivers"].as_sequence().into_iter().flatten() {
        let name = port(&scalar(&receiver["name"]));
        let configs = receiver.get("webhook_configs").and_then(Yaml::as_sequence);
        for (at, webhook) in configs.into_iter().flatten().enumerate() {
            let port = if at == 0 { name.clone() } else { format!("{name}-{at}") };
            if at > 0 {
                // Each of several webhooks of a receiver is a receiver here, which all alerts go on to.
                write!(doubled, "{{ receiver = \"{port}\", continue = true }}, ").unwrap();
            }
            webhooks.push((port, webhook.get("send_resolved").and_then(Yaml::as_bool).unwrap_or(true)));
        }
    }
    for (key, value) in entries(configuration) {
        match key.as_str() {
            "route" if doubled.is_empty() => translation.root(value)?,
            "route" if value.get("routes").is_some() => {
                return not_translated("several webhooks of one receiver, and routes");
            }
            "route" => {
                translation.root(value)?;
                let first = port(&scalar(&value["receiver"]));
                writeln!(translation.notify, "routes = [{doubled}{{ receiver = \"{first}\" }}]").unwrap();
            }
            "inhibit_rules" => translation.inhibit(value)?,
            "global" | "receivers" => {}
            other => return not_translated(format!("there is no `{other}`")),
        }
    }
    for (port, _) in webhooks.iter().filter(|(_, tells_resolved)| !tells_resolved) {
        writeln!(translation.notify, "receivers.{port}.send_resolved = false").unwrap();
    }
    Ok((translation.notify, webhooks.into_iter().map(|(port, _)| port).collect()))
}

/// An alert that is pushed at that time, as a record. One without an end is over when nothing is heard of it for `patience`.
fn pushed(alert: &Json, at: f64, patience: Span) -> Json {
    let labels = alert["labels"].as_object().unwrap();
    let ends_at = match alert["endsAt"].as_f64() {
        Some(ends_at) => moment(ends_at),
        None => moment(at).saturating_add(patience),
    };
    json!({
        "alert": labels.get("alertname").cloned().unwrap_or_else(|| "alert".into()),
        "state": if ends_at <= moment(at) { "resolved" } else { "firing" },
        "labels": labels,
        "annotations": alert.get("annotations").cloned().unwrap_or_else(|| Json::Object(Map::new())),
        "starts_at": moment(alert["startsAt"].as_f64().unwrap_or(at)).to_string(),
        "ends_at": ends_at.to_string(),
    })
}

fn silence(silence: &Json) -> Json {
    let matcher = |matcher: &Json| {
        let relation = if matcher["isRegex"].as_bool().unwrap() { "=~" } else { "=" };
        format!("{}{relation}{}", matcher["name"].as_str().unwrap(), matcher["value"])
    };
    let at = |end: &str| moment(silence[end].as_f64().unwrap()).to_string();
    json!({
        "id": silence.to_string(),
        "matchers": silence["matchers"].as_array().unwrap().iter().map(matcher).collect::<Vec<_>>(),
        "owner": "a test",
        "reason": "to see it",
        "starts_at": at("startsAt"),
        "ends_at": at("endsAt"),
    })
}

/// Whether what was told are the alerts that are wanted, in any order.
fn is_wanted(told: &[Json], wanted: &[Json], tolerance: f64) -> bool {
    let is_near = |one: Option<f64>, other: Option<f64>| match (one, other) {
        (Some(one), Some(other)) => (one - other).abs() <= tolerance,
        (one, other) => one == other,
    };
    let is_same = |told: &Json, wanted: &Json| {
        let ends_at = seconds(&told["ends_at"]).filter(|_| told["state"] == "resolved");
        let annotations = wanted.get("annotations").cloned().unwrap_or_else(|| Json::Object(Map::new()));
        told["labels"] == wanted["labels"]
            && told["annotations"] == annotations
            && is_near(seconds(&told["starts_at"]), wanted["startsAt"].as_f64())
            && is_near(ends_at, wanted["endsAt"].as_f64())
    };
    told.len() == wanted.len() && wanted.iter().all(|wanted| told.iter().any(|told| is_same(told, wanted)))
}

/// All that is told in a scenario until the last moment for it, by receiver.
fn run(case: &Json, configuration: &Yaml, config: &str, way: Way) -> Result<BTreeMap<String, Vec<Told>>, Other> {
    let mut daemon = Daemon::new(config.to_owned(), way)?;
    let patience = configuration.get("global").and_then(|global| global.get("resolve_timeout"));
    let patience = patience.map_or(Span::from_secs(300), |text| scalar(text).parse::<Duration>().unwrap().0);
    let mut ops: Vec<&Json> = case["ops"].as_array().unwrap().iter().collect();
    let last = ops.iter().filter_map(|op| op["between"][1].as_f64()).fold(0.0, f64::max);
    // The order of what happens at one time is as written.
    let at = |op: &Json| op["at"].as_f64().unwrap_or_default();
    ops.sort_by(|one, other| at(one).total_cmp(&at(other)));
    for op in ops {
        let at = at(op);
        match op["op"].as_str().unwrap() {
            "start" | "Want" => {}
            "Push" => {
                for alert in op["alerts"].as_array().unwrap() {
                    daemon.feed("alerts", moment(at), &pushed(alert, at, patience));
                }
            }
            "SetSilence" => {
                let command = json!({ "command": "silence", "silence": silence(&op["silence"]) });
                daemon.feed(COMMANDS, moment(at), &command);
            }
            "DelSilence" => {
                let command = json!({ "command": "expire", "id": op["silence"].to_string() });
                daemon.feed(COMMANDS, moment(at), &command);
            }
            other => return not_translated(format!("there is no operation {other:?}")),
        }
    }
    let end = moment(last + case["tolerance_s"].as_f64().unwrap());
    daemon.go_on(end);
    daemon.advance(end);
    Ok(daemon.told)
}

/// What of the wants of a collector is not met, and what comes without being wanted.
fn unmet(case: &Json, collector: &str, told: &[Told]) -> String {
    let tolerance = case["tolerance_s"].as_f64().unwrap();
    let mut told: Vec<&Told> = told.iter().collect();
    let mut unmet = String::new();
    let wants = case["ops"].as_array().unwrap().iter().filter(|op| op["op"] == "Want" && op["on"] == collector);
    for want in wants {
        let [from, to] = [0, 1].map(|end| want["between"][end].as_f64().unwrap());
        let is_in_time = |told: &Told| told.at >= from - tolerance && told.at <= to + tolerance;
        // Without alerts: nothing is to come.
        let Some(wanted) = want["alerts"].as_array() else { continue };
        match told.iter().position(|told| is_in_time(told) && is_wanted(&told.alerts, wanted, tolerance)) {
            Some(found) => drop(told.remove(found)),
            None => writeln!(unmet, "{collector} between {from} and {to}: not {wanted:?}").unwrap(),
        }
    }
    for Told { at, alerts } in told {
        writeln!(unmet, "{collector} at {at}: unexpected {alerts:?}").unwrap();
    }
    unmet
}

#[test]
fn the_scenarios_of_alertmanager_are_met() {
    judge("acceptance_scenarios.jsonl", |case| {
        let configuration = yaml(case["configs"]["conf"].as_str().unwrap());
        let (config, ports) = translate(&configuration)?;
        let told = run(case, &configuration, &config, Way::Records)?;
        for way in [Way::Watermarks, Way::Restarts] {
            let again = run(case, &configuration, &config, way)?;
            require(again == told, || format!("not the same by {way:?}:\n{told:?}\n{again:?}"))?;
        }
        let mut differing = String::new();
        let mut is_judged = false;
        let troubled = |webhook: &str| {
            let behaviours = case["webhook_behaviour"].as_array().unwrap();
            behaviours.iter().any(|behaviour| behaviour["webhook"] == webhook)
        };
        for ((webhook, collector), port) in case["webhooks"].as_object().unwrap().iter().zip(&ports) {
            // When a receiver that fails gets it in the end is for the sink to see to.
            if !troubled(webhook) {
                let collector = case["collectors"][collector.as_str().unwrap()].as_str().unwrap();
                differing += &unmet(case, collector, told.get(port).map(Vec::as_slice).unwrap_or_default());
                is_judged = true;
            }
        }
        if !is_judged {
            return not_translated("how a sink tries again");
        }
        let id = case["id"].as_str().unwrap();
        match DIFFERENT.iter().find(|(different, ..)| *different == id) {
            Some((_, at, why)) => {
                let times: Vec<f64> = told[&ports[0]].iter().map(|told| told.at).collect();
                require(times == at && !differing.is_empty(), || format!("told at {times:?}"))?;
                Err(Other::OnPurpose((*why).to_owned()))
            }
            None => require(differing.is_empty(), || differing),
        }
    });
}
