//! `tocsin notify test`: sends a receiver a notification that is marked as a test, and tells what the receiver answered.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::{Map, Value as Json, json};
use tocsin_config::Plan;
use tocsin_config::component::BuildContext;
use tocsin_config::plan::PlannedSink;
use tocsin_pipeline::codec::PathTable;
use tocsin_pipeline::event::{Batch, Lane, Origin};
use tocsin_pipeline::health::Health;
use tocsin_pipeline::json::parse_value;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::sink::{Deliveries, Delivery, DeliveryOutcome, Inputs, Queued, Rejected, SinkContext, SinkInput};
use tocsin_pipeline::store::Disk;
use tocsin_pipeline::time::{Clock, SystemClock, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cli::NotifyTestArguments;
use crate::commands::{checked, print};

/// How many answers are kept: a mail may go to 1000 addresses, twice.
const ANSWERS_MAX: usize = 4096;

pub fn test(mut arguments: NotifyTestArguments) -> anyhow::Result<ExitCode> {
    let Some(plan) = checked(&arguments.configuration) else { return Ok(ExitCode::from(1)) };
    receiver(&plan, &arguments.receiver)?;
    // One attempt each: whoever tests sees for himself whether to try again.
    arguments.configuration.set.push(format!("sinks.{}.max_age=0s", arguments.receiver));
    let Some(plan) = checked(&arguments.configuration) else { return Ok(ExitCode::from(1)) };
    let sink = receiver(&plan, &arguments.receiver)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let records = records(&arguments, clock.now())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let answers = runtime.block_on(send(sink, &records, clock))?;
    if answers.is_empty() {
        bail!("nothing was sent: `{}` does not tell anybody of such a record", sink.name);
    }
    print(&answers.iter().map(|answer| line(answer, &records)).collect::<String>())?;
    let is_fine = answers.iter().all(|answer| answer.outcome == DeliveryOutcome::Delivered);
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The sink of this name, if it tells somebody.
fn receiver<'a>(plan: &'a Plan, name: &str) -> anyhow::Result<&'a PlannedSink> {
    let is_receiver = |sink: &&PlannedSink| sink.options.hands_on();
    let Some(sink) = plan.sinks.iter().find(|sink| &*sink.name == name) else {
        let receivers: Vec<_> = plan.sinks.iter().filter(is_receiver).map(|sink| &*sink.name).collect();
        match receivers[..] {
            [] => bail!("there is no sink `{name}`, and none that tells somebody"),
            _ => bail!("there is no sink `{name}`; these tell somebody: {}", receivers.join(", ")),
        }
    };
    if !is_receiver(&sink) {
        bail!("`{name}` is of type `{}`, which tells nobody", sink.type_name);
    }
    Ok(sink)
}

/// What is sent: a record, and with `--resolve` the end of the alert.
fn records(arguments: &NotifyTestArguments, now: Timestamp) -> anyhow::Result<Vec<Json>> {
    let mut record = match &arguments.record {
        Some(text) => {
            let record: Json = serde_json::from_str(text).context("reading --record")?;
            if !record.is_object() {
                bail!("--record is an object, as `alert` and `notify` make them");
            }
            marked(record)
        }
        None => example(&arguments.receiver),
    };
    // A test of its own each time, so that nobody takes it for one that he knows.
    let [fingerprint, firing, resolved] = ["", "firing", "resolved"].map(|part| format!("test{:016x}{part}", now.0));
    record["fingerprint"] = fingerprint.into();
    record["id"] = firing.clone().into();
    record["firing_id"] = firing.into();
    if record.get("starts_at").is_none() {
        record["starts_at"] = now.to_string().into();
    }
    let mut records = vec![record.clone()];
    if arguments.resolve {
        record["id"] = resolved.into();
        record["state"] = "resolved".into();
        record["ends_at"] = now.to_string().into();
        for alert in record["alerts"].as_array_mut().into_iter().flatten() {
            alert["state"] = "resolved".into();
            alert["ends_at"] = now.to_string().into();
        }
        records.push(record);
    }
    Ok(records)
}

fn example(receiver: &str) -> Json {
    json!({
        "alert": "tocsin_test",
        "state": "firing",
        "test": true,
        "labels": { "severity": "info", "receiver": receiver },
        "annotations": { "summary": format!("this is a test of the receiver {receiver}, nothing is wrong") },
        "ends_at": null,
        "values": {},
        "evidence": [],
    })
}

/// A record that says everywhere that it is a test.
fn marked(mut record: Json) -> Json {
    record["test"] = true.into();
    if !record["annotations"].is_object() {
        record["annotations"] = Json::Object(Map::new());
    }
    let summary = record["annotations"]["summary"].as_str().unwrap_or("this is a test, nothing is wrong");
    record["annotations"]["summary"] = format!("TEST: {summary}").into();
    if let Some(message) = record["message"].as_str() {
        record["message"] = format!("TEST: {message}").into();
    }
    record
}

/// Runs the sink alone over the records, without a data directory.
async fn send(sink: &PlannedSink, records: &[Json], clock: Arc<dyn Clock>) -> anyhow::Result<Vec<Delivery>> {
    let mut built = sink.options.build(&mut BuildContext {
        name: Arc::clone(&sink.name),
        paths: &mut PathTable::default(),
        folder: sink.folder.clone(),
        connected: Vec::new(),
        silences: [].into(),
        partition: None,
    });
    let metrics = Metrics::new().component(&sink.name, "sink");
    let (input, inputs) = mpsc::channel(2);
    let (listener, mut answers) = mpsc::channel(ANSWERS_MAX);
    let context = SinkContext {
        name: Arc::clone(&sink.name),
        restored: None,
        data_dir: None,
        clock: Arc::clone(&clock),
        storage: Arc::new(Disk),
        health: Health::default(),
        metrics: metrics.clone(),
        stop: CancellationToken::new(),
        input: Inputs::new(inputs, metrics.clone()),
        rejected: Rejected::counting(Arc::clone(&sink.name), metrics),
        deliveries: Deliveries::to(listener),
    };
    let lane = Arc::new(Lane::of_operator("notify_test".into(), Origin::Operator));
    let value = |record: &Json| parse_value(record.to_string().as_bytes()).expect("it was written as JSON");
    let now = clock.now();
    let values = records.iter().map(|record| (now, value(record))).collect();
    let batch = Batch::of_values(lane, values, now);
    for input_of in [SinkInput::Batch(batch), SinkInput::End] {
        input.send(Queued::free(input_of)).await.expect("there is room for both");
    }
    built.open(&context).await.with_context(|| format!("opening `{}`", sink.name))?;
    built.run(context).await.with_context(|| format!("running `{}`", sink.name))?;
    let mut told = Vec::new();
    while let Some(answer) = answers.recv().await {
        told.push(answer);
    }
    Ok(told)
}

/// How it went, in a line.
fn line(answer: &Delivery, records: &[Json]) -> String {
    let is_told = |record: &&Json| record["id"].as_str().is_some_and(|id| answer.id.contains(id));
    let state = records.iter().find(is_told).and_then(|record| record["state"].as_str()).unwrap_or("record");
    let to = if answer.receiver.is_empty() { String::new() } else { format!(" to {}", answer.receiver) };
    match &answer.outcome {
        DeliveryOutcome::Delivered => format!("{state}{to}: delivered\n"),
        DeliveryOutcome::Again(why) => format!("{state}{to}: not delivered, would be tried again: {why}\n"),
        DeliveryOutcome::Refused(why) => format!("{state}{to}: refused: {why}\n"),
    }
}
