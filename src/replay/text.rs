//! A replay as text for people, and as JSON, an object a line, for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;
use tocsin_pipeline::time::Timestamp;

use super::outcome::{Outcome, Sent, Transition};

/// Something that is told of a moment.
enum Told<'a> {
    Alert(&'a Transition),
    Notification(&'a Sent),
}

/// Alerts and notifications in one row, ordered by time; of one moment the alerts come first.
fn row(outcome: &Outcome) -> Vec<Told<'_>> {
    let mut alerts = outcome.transitions.iter().filter(|told| outcome.is_told(told.time)).peekable();
    let mut row = Vec::new();
    for sent in &outcome.sent {
        while let Some(alert) = alerts.next_if(|alert| alert.time <= sent.time) {
            row.push(Told::Alert(alert));
        }
        row.push(Told::Notification(sent));
    }
    row.extend(alerts.map(Told::Alert));
    row
}

/// What happened, a line each.
pub fn timeline(outcome: &Outcome) -> String {
    let mut text = String::new();
    for told in row(outcome) {
        match told {
            Told::Alert(told) => {
                let Transition { time, rule, state, labels, .. } = told;
                let summary =
                    told.summary.as_deref().map_or(String::new(), |summary| format!("  {}", one_line(summary)));
                writeln!(text, "{time}  {:<8}  {rule} {}{summary}", state.as_str(), labels_text(labels))
            }
            Told::Notification(sent) => {
                writeln!(text, "{}  {:<8}  {}: {}", sent.time, "-> told", sent.receiver, one_line(sent.line()))
            }
        }
        .expect("writing to a string");
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// What it comes to.
pub fn summary(outcome: &Outcome) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let Outcome { read, undecodable, late, left_out, .. } = outcome;
    rows.push(("records".into(), format!("{read} read, {undecodable} undecodable, {late} late")));
    if let Some((from, to)) = outcome.stretch() {
        rows.push(("span".into(), format!("{from} to {to}, {}", short(to.since(from)))));
    }
    for (rule, summary) in outcome.by_rule() {
        let mut told = format!("fired {}, resolved {}", summary.fired, summary.resolved);
        if summary.longest > Duration::ZERO {
            write!(told, ", longest {}", short(summary.longest)).expect("writing to a string");
        }
        if summary.firing > 0 {
            write!(told, ", firing at the end {}", summary.firing).expect("writing to a string");
        }
        if summary.amended > 0 {
            write!(told, ", amended {}", summary.amended).expect("writing to a string");
        }
        rows.push((format!("rule {rule}"), told));
    }
    let receivers = outcome.by_receiver();
    for (receiver, count) in &receivers {
        rows.push((format!("receiver {receiver}"), notifications(*count)));
    }
    if receivers.is_empty() {
        rows.push(("receivers".into(), "nobody is told anything".into()));
    }
    if *left_out > 0 {
        rows.push(("left out".into(), format!("{left_out} more, as these are all that are told one by one")));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.into_iter().map(|(name, told)| format!("{name:<width$}  {told}\n")).collect()
}

pub fn notifications(count: u64) -> String {
    if count == 1 { "1 notification".into() } else { format!("{count} notifications") }
}

/// The same as JSON.
pub fn json(outcome: &Outcome) -> String {
    let moment = |time: Timestamp| time.to_string();
    let mut lines: Vec<_> = row(outcome)
        .into_iter()
        .map(|told| match told {
            Told::Alert(told) => json!({
                "kind": "alert", "time": moment(told.time), "rule": &*told.rule, "state": told.state.as_str(),
                "fingerprint": told.fingerprint, "labels": told.labels, "summary": told.summary,
            }),
            Told::Notification(sent) => json!({
                "kind": "notification", "time": moment(sent.time), "receiver": &*sent.receiver, "subject": sent.subject,
                "body": sent.body,
            }),
        })
        .collect();
    let rules = outcome.by_rule().into_iter().map(|(name, rule)| {
        let told = json!({
            "fired": rule.fired, "resolved": rule.resolved, "longest_seconds": rule.longest.as_secs_f64(),
            "firing": rule.firing, "amended": rule.amended,
        });
        (name.to_owned(), told)
    });
    let rules: serde_json::Map<_, _> = rules.collect();
    let stretch = outcome.stretch();
    lines.push(json!({
        "kind": "summary", "read": outcome.read, "undecodable": outcome.undecodable, "late": outcome.late,
        "from": stretch.map(|(from, _)| moment(from)), "to": stretch.map(|(_, to)| moment(to)),
        "rules": rules, "receivers": outcome.by_receiver(), "left_out": outcome.left_out,
    }));
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

/// `{severity="critical"}`
pub fn labels_text(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{{{}}}", labels.join(", "))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A length of time in its two largest units: `2h5m`, `1m30s`, `1.5s`.
pub fn short(length: Duration) -> String {
    let seconds = length.as_secs();
    let pair = |large: u64, unit: u64, names: (&str, &str)| match (seconds / large, seconds % large / unit) {
        (whole, 0) => format!("{whole}{}", names.0),
        (whole, part) => format!("{whole}{}{part}{}", names.0, names.1),
    };
    match seconds {
        0..60 if length.subsec_nanos() > 0 => format!("{:.3}s", length.as_secs_f64()),
        0..60 => format!("{seconds}s"),
        60..3600 => pair(60, 1, ("m", "s")),
        3600..86_400 => pair(3600, 60, ("h", "m")),
        _ => pair(86_400, 3600, ("d", "h")),
    }
}
