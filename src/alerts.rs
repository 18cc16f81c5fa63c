//! `tocsin alerts`: what a running daemon's `notify` knows, and somebody who takes care.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value as Json, json};

use crate::api::to_the_second;
use crate::cli::{AlertsAction, AlertsArguments, ReportFormat};
use crate::client;
use crate::commands::{address, print};

/// Why no receivers stand with the alerts.
const NO_NOTIFY: &str = "the configuration has no `notify`, so nobody is told by one: this is what the rules hold";

/// What to do where a configuration tells no address.
pub const OTHERWISE: &str = "give it one, or the command the address with --admin";

pub fn alerts(arguments: &AlertsArguments) -> anyhow::Result<ExitCode> {
    if let Some(AlertsAction::Ack { id, by, daemon }) = &arguments.action {
        let Some(address) = address(daemon.admin, &daemon.config, OTHERWISE)? else { return Ok(ExitCode::from(1)) };
        let told = client::tell(address, "/api/v1/acknowledge", &json!({ "id": id, "by": by }))?;
        return print(&acknowledged(&told));
    }
    let Some(address) = address(arguments.admin, &arguments.files, OTHERWISE)? else { return Ok(ExitCode::from(1)) };
    let query: Vec<_> = arguments.filter.iter().map(|text| ("filter", text.as_str())).collect();
    let told = client::ask(address, "/api/v1/alerts", &query)?;
    let alerts = told["alerts"].as_array().context("the daemon tells no alerts")?;
    if told["has_no_notify"] == true {
        eprintln!("{NO_NOTIFY}");
    }
    print(&match arguments.format {
        ReportFormat::Text => text(alerts, told["more"].as_u64().unwrap_or(0)),
        ReportFormat::Json => alerts.iter().map(|alert| format!("{alert}\n")).collect(),
    })
}

fn acknowledged(told: &Json) -> String {
    let groups = told["acknowledged"].as_array().into_iter().flatten();
    let line = |group: &Json| {
        let (receiver, by) = (plain(&group["receiver"]), plain(&group["acknowledged"]["by"]));
        format!(
            "{by} takes care of {}, of which {receiver} is told by {}\n",
            plain(&group["key"]),
            plain(&group["notify"])
        )
    };
    groups.map(line).collect()
}

/// An alert in a line, and below it one for each receiver: why it was told or not. `more` are not among them.
fn text(alerts: &[Json], more: u64) -> String {
    if alerts.is_empty() {
        return "no alerts\n".to_owned();
    }
    let mut text = String::new();
    for alert in alerts {
        let head = [&alert["state"], &alert["alert"], &alert["fingerprint"]].map(plain).join("  ");
        text += &format!("{head}  since {}\n  {}\n", when(&alert["starts_at"]), labels(&alert["labels"]));
        if alert["state"] == "pending" {
            text += &format!("  fires at {} if it goes on\n", when(&alert["fires_at"]));
        }
        if let Some(summary) = alert["annotations"]["summary"].as_str() {
            text += &format!("  {}\n", summary.lines().collect::<Vec<_>>().join(" "));
        }
        for verdict in alert["receivers"].as_array().into_iter().flatten() {
            text += &format!("  {} at {}: {}\n", plain(&verdict["receiver"]), plain(&alert["notify"]), cause(verdict));
        }
    }
    if more > 0 {
        text += &format!("and {more} more, which are not shown\n");
    }
    text
}

/// Why a receiver was told or not, in words.
fn cause(verdict: &Json) -> String {
    let of = |name: &str| plain(&verdict[name]);
    let at = |name: &str| when(&verdict[name]);
    let list = |name: &str| {
        let names = verdict[name].as_array().into_iter().flatten().map(plain);
        names.collect::<Vec<_>>().join(", ")
    };
    match verdict["cause"].as_str().unwrap_or_default() {
        "silenced" => format!("silenced by {}", list("silences")),
        "inhibited" => format!("inhibited by {}", of("by")),
        "muted" => format!("muted by the interval {} until {}", of("interval"), at("until")),
        "over_budget" => format!("over its budget: in the digest at {}", at("digest_at")),
        "digested" => "told in a digest".to_owned(),
        "acknowledged" => format!("told, and {} takes care", of("by")),
        "notified" => format!("told at {} (event time), again at {}", at("at"), at("repeats_at")),
        "group_wait" => format!("waits for its group until {}", at("until")),
        "group_interval" => format!("waits until {}, as its group was told not long ago", at("until")),
        other => other.to_owned(),
    }
}

/// `{a="b", c="d"}`
pub fn labels(labels: &Json) -> String {
    let labels = labels.as_object().into_iter().flatten();
    let labels: Vec<_> = labels.map(|(name, value)| format!("{name}={}", Json::from(plain(value)))).collect();
    format!("{{{}}}", labels.join(", "))
}

/// A moment as people read it.
pub fn when(value: &Json) -> String {
    value.as_str().map_or_else(|| plain(value), to_the_second)
}

/// A value as text; what there is none of as a dash.
pub fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn each_alert_is_told_with_the_reason_why_each_receiver_was_told_or_not() {
        let alert = |receivers: Json| {
            json!({
                "notify": "oncall", "state": "firing", "alert": "disk", "fingerprint": "0123456789abcdef",
                "starts_at": "2026-11-29T12:00:00Z", "labels": { "alertname": "disk", "host": "a" },
                "annotations": { "summary": "disk of a\nis full" }, "receivers": receivers,
            })
        };
        let alerts = [
            alert(json!([
                { "receiver": "default", "cause": "notified", "at": "2026-11-29T12:00:00Z", "repeats_at": null },
                { "receiver": "pager", "cause": "group_wait", "until": "2026-11-29T12:00:30Z" },
            ])),
            alert(json!([{ "receiver": "default", "cause": "silenced", "silences": ["s", "t"] }])),
            json!({
                "alert": "disk", "state": "pending", "labels": { "host": "b" }, "starts_at": "2026-11-29T12:00:00Z",
                "fires_at": "2026-11-29T12:02:00Z", "receivers": [],
            }),
        ];
        expect![[r#"
            firing  disk  0123456789abcdef  since 2026-11-29T12:00:00Z
              {alertname="disk", host="a"}
              disk of a is full
              default at oncall: told at 2026-11-29T12:00:00Z (event time), again at -
              pager at oncall: waits for its group until 2026-11-29T12:00:30Z
            firing  disk  0123456789abcdef  since 2026-11-29T12:00:00Z
              {alertname="disk", host="a"}
              disk of a is full
              default at oncall: silenced by s, t
            pending  disk  -  since 2026-11-29T12:00:00Z
              {host="b"}
              fires at 2026-11-29T12:02:00Z if it goes on
        "#]]
        .assert_eq(&text(&alerts, 0));
        assert!(text(&alerts, 7).ends_with("\nand 7 more, which are not shown\n"));
    }
}
