//! `tocsin silence`: silences of a running daemon.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value as Json, json};
use tocsin_pipeline::time::{Clock, SystemClock, Timestamp};

use crate::alerts::{OTHERWISE, labels, plain, when};
use crate::cli::{ReportFormat, SilenceAction, SilenceArguments};
use crate::client;
use crate::commands::{address, print};

pub fn silence(action: SilenceAction) -> anyhow::Result<ExitCode> {
    let daemon = match &action {
        SilenceAction::Add(arguments) => &arguments.daemon,
        SilenceAction::List { daemon, .. }
        | SilenceAction::Expire { daemon, .. }
        | SilenceAction::Preview { daemon, .. } => daemon,
    };
    let Some(address) = address(daemon.admin, &daemon.config, OTHERWISE)? else { return Ok(ExitCode::from(1)) };
    match action {
        SilenceAction::Add(arguments) => {
            let wanted = wanted(&arguments, SystemClock::default().now())?;
            let told = client::tell(address, "/api/v1/silences", &wanted)?;
            for warning in told["warnings"].as_array().into_iter().flatten() {
                eprintln!("warning: {}", plain(warning));
            }
            print(&format!("{}\n", plain(&told["id"])))
        }
        SilenceAction::List { expired, format, .. } => {
            let expired = if expired { "true" } else { "false" };
            let told = client::ask(address, "/api/v1/silences", &[("expired", expired)])?;
            let silences = told["silences"].as_array().context("the daemon tells no silences")?;
            print(&match format {
                ReportFormat::Text => text(silences),
                ReportFormat::Json => silences.iter().map(|silence| format!("{silence}\n")).collect(),
            })
        }
        SilenceAction::Expire { id, .. } => {
            client::tell(address, "/api/v1/silences/expire", &json!({ "id": id }))?;
            print(&format!("the silence {id} is over\n"))
        }
        SilenceAction::Preview { matchers, format, .. } => {
            let query: Vec<_> = matchers.iter().map(|text| ("matchers", text.as_str())).collect();
            let told = client::ask(address, "/api/v1/silences/preview", &query)?;
            print(&match format {
                ReportFormat::Text => preview(&told),
                ReportFormat::Json => format!("{told}\n"),
            })
        }
    }
}

/// The silence that the arguments ask for.
fn wanted(arguments: &SilenceArguments, now: Timestamp) -> anyhow::Result<Json> {
    let starts_at = arguments.starts.as_deref().map(|text| moment("--starts", text)).transpose()?;
    let ends_at = match (&arguments.length, &arguments.until) {
        (Some(length), _) => starts_at.unwrap_or(now).saturating_add(length.0),
        (None, Some(text)) => moment("--until", text)?,
        (None, None) => anyhow::bail!("say how long: --for or --until"),
    };
    let during = arguments.during.as_deref().map(interval).transpose()?;
    Ok(json!({
        "matchers": arguments.matchers,
        "owner": arguments.owner,
        "reason": arguments.reason,
        "starts_at": starts_at.map(|time| time.to_string()),
        "ends_at": ends_at.to_string(),
        "during": during,
    }))
}

fn moment(option: &str, text: &str) -> anyhow::Result<Timestamp> {
    Timestamp::parse_rfc3339(text.as_bytes())
        .with_context(|| format!("{option}: {text:?} is not a moment; write it as 2026-12-01T08:00:00Z"))
}

/// Recurring times, as the configuration has them or in JSON.
fn interval(text: &str) -> anyhow::Result<Json> {
    if let Ok(json) = serde_json::from_str(text) {
        return Ok(json);
    }
    let mut table: toml::Table = toml::from_str(&format!("during = {text}")).context("--during")?;
    let during = table.remove("during").context("--during says nothing")?;
    serde_json::to_value(during).context("--during")
}

fn text(silences: &[Json]) -> String {
    if silences.is_empty() {
        return "no silences\n".to_owned();
    }
    let mut text = String::new();
    for silence in silences {
        let matchers = silence["matchers"].as_array().into_iter().flatten().map(plain);
        let matchers: Vec<_> = matchers.collect();
        let of = |name: &str| plain(&silence[name]);
        let configured = if silence["configured"] == true { ", in the configuration" } else { "" };
        let state = match silence["state"].as_str() {
            Some("active") => "active".to_owned(),
            Some("pending") => format!("waiting until {}", when(&silence["next"])),
            _ => "over".to_owned(),
        };
        text += &format!("{state}  {}  {}{configured}\n", of("id"), matchers.join(", "));
        text += &format!("  from {} to {}", when(&silence["starts_at"]), when(&silence["ends_at"]));
        if !silence["during"].is_null() {
            text += &format!(" during {}", silence["during"]);
        }
        text += &format!("\n  {}: {}; {} muted\n", of("owner"), of("reason"), of("muted"));
    }
    text
}

fn preview(told: &Json) -> String {
    let alerts = told["alerts"].as_array().map_or(&[][..], Vec::as_slice);
    let mut text = match alerts.len() {
        0 => "no alert that fires now would be muted\n".to_owned(),
        1 => "1 alert that fires now would be muted\n".to_owned(),
        count => format!("{count} alerts that fire now would be muted\n"),
    };
    for alert in alerts {
        text += &format!(
            "  {}  {}  since {}\n",
            plain(&alert["fingerprint"]),
            labels(&alert["labels"]),
            when(&alert["starts_at"])
        );
    }
    let past = &told["notifications"];
    let of = |name: &str| past[name].as_u64().unwrap_or(0);
    if of("looked_at") == 0 {
        return text + "there were no notifications yet\n";
    }
    text += &format!(
        "of the last {} notifications, since {}, {} would not have been sent, and {} with fewer alerts\n",
        of("looked_at"),
        when(&past["since"]),
        of("muted"),
        of("shortened")
    );
    for (receiver, count) in past["muted_by_receiver"].as_object().into_iter().flatten() {
        text += &format!("  {receiver}: {count} fewer\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use expect_test::expect;

    use super::*;
    use crate::cli::{Arguments, Command};

    fn typed(line: &[&str]) -> Result<String, String> {
        let line = ["tocsin", "silence", "add", "host=a", "--admin", "127.0.0.1:1"].iter().chain(line);
        let arguments = Arguments::try_parse_from(line).map_err(|error| error.kind().to_string())?;
        let Command::Silence { action: SilenceAction::Add(arguments) } = arguments.command else { unreachable!() };
        let now = Timestamp::parse_rfc3339(b"2026-11-29T12:00:00Z").unwrap();
        wanted(&arguments, now).map(|wanted| wanted.to_string()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_silence_is_asked_for_with_owner_reason_and_end() {
        let who = ["--owner", "ana", "--reason", "works"];
        let lines = [
            typed(&[&who[..], &["--for", "2h"]].concat()),
            typed(&[&who[..], &["--until", "2026-12-01T08:00:00Z", "--starts", "2026-11-30T08:00:00Z"]].concat()),
            typed(&[&who[..], &["--for", "7d", "--during", "{ times = [\"02:00-04:00\"] }"]].concat()),
            typed(&[&who[..], &["--for", "7d", "--during", "[{\"weekdays\":[\"sunday\"]}]"]].concat()),
            typed(&[&who[..], &["--until", "tomorrow"]].concat()),
            typed(&who),
            typed(&["--owner", "ana", "--for", "2h"]),
            typed(&["--reason", "works", "--for", "2h"]),
        ];
        let told = lines.map(|line| line.unwrap_or_else(|problem| format!("problem: {problem}")));
        expect![[r#"
            {"during":null,"ends_at":"2026-11-29T14:00:00Z","matchers":["host=a"],"owner":"ana","reason":"works","starts_at":null}
            {"during":null,"ends_at":"2026-12-01T08:00:00Z","matchers":["host=a"],"owner":"ana","reason":"works","starts_at":"2026-11-30T08:00:00Z"}
            {"during":{"times":["02:00-04:00"]},"ends_at":"2026-12-06T12:00:00Z","matchers":["host=a"],"owner":"ana","reason":"works","starts_at":null}
            {"during":[{"weekdays":["sunday"]}],"ends_at":"2026-12-06T12:00:00Z","matchers":["host=a"],"owner":"ana","reason":"works","starts_at":null}
            problem: --until: "tomorrow" is not a moment; write it as 2026-12-01T08:00:00Z
            problem: one or more required arguments were not provided
            problem: one or more required arguments were not provided
            problem: one or more required arguments were not provided"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn silences_and_what_one_would_do_are_told_in_words() {
        let silence = |state: &str, muted: u64| {
            json!({
                "id": "s", "matchers": ["host=\"a\""], "owner": "ana", "reason": "works", "starts_at": null,
                "ends_at": "2026-11-30T12:00:00Z", "during": [{ "times": ["02:00-04:00"] }], "state": state,
                "next": "2026-11-30T02:00:00Z", "configured": true, "muted": muted,
            })
        };
        let silences = [silence("active", 3), silence("pending", 0), silence("expired", 0)];
        let told = json!({
            "alerts": [{ "fingerprint": "f", "labels": { "host": "a" }, "starts_at": "2026-11-29T12:00:00Z" }],
            "notifications": {
                "looked_at": 20, "since": "2026-11-28T12:00:00Z", "muted": 4, "shortened": 1,
                "muted_by_receiver": { "default": 4 },
            },
        });
        expect![[r#"
            active  s  host="a", in the configuration
              from - to 2026-11-30T12:00:00Z during [{"times":["02:00-04:00"]}]
              ana: works; 3 muted
            waiting until 2026-11-30T02:00:00Z  s  host="a", in the configuration
              from - to 2026-11-30T12:00:00Z during [{"times":["02:00-04:00"]}]
              ana: works; 0 muted
            over  s  host="a", in the configuration
              from - to 2026-11-30T12:00:00Z during [{"times":["02:00-04:00"]}]
              ana: works; 0 muted
            1 alert that fires now would be muted
              f  {host="a"}  since 2026-11-29T12:00:00Z
            of the last 20 notifications, since 2026-11-28T12:00:00Z, 4 would not have been sent, and 1 with fewer alerts
              default: 4 fewer
        "#]]
        .assert_eq(&(text(&silences) + &preview(&told)));
    }
}
