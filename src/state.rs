//! `tocsin state`: what a data directory holds.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value as Json, json};
use tocsin_pipeline::checkpoint::Epoch;
use tocsin_pipeline::evolution::{Facts, Role};
use tocsin_pipeline::time::{Clock, SystemClock, Timestamp};

use crate::catalog::CATALOG;
use crate::cli::{ReportFormat, StateArguments};
use crate::commands::print;
use crate::data_dir::{self, Found};

/// Lists the epochs, shows one or one component of it, or reads everything.
pub fn state(arguments: &StateArguments) -> anyhow::Result<ExitCode> {
    let is_json = arguments.format == ReportFormat::Json;
    if arguments.verify {
        return verify(arguments, is_json);
    }
    let now = SystemClock::default().now();
    let (mut text, mut count) = (String::new(), 0);
    data_dir::each_epoch(&arguments.data_dir, |found| {
        // Without a number, a component is shown as of the newest epoch that can be read.
        let is_wanted = match (arguments.epoch, &arguments.component) {
            (Some(epoch), _) => epoch == found.number,
            (None, Some(_)) => count == 0 && found.epoch.is_ok(),
            (None, None) => true,
        };
        if !is_wanted {
            return;
        }
        count += 1;
        match (&arguments.component, found.epoch) {
            (Some(name), Ok(epoch)) => text.push_str(&component(&epoch, name, is_json).unwrap_or_default()),
            (_, epoch) if is_json => {
                let _ = writeln!(text, "{}", epoch_json(&Found { number: found.number, epoch }));
            }
            (_, epoch) => epoch_text(&Found { number: found.number, epoch }, now, &mut text),
        }
    })?;
    let dir = arguments.data_dir.display();
    match (count, arguments.epoch, &arguments.component) {
        (0, Some(epoch), _) => bail!("{dir} holds no epoch {epoch}; `tocsin state {dir}` lists them"),
        (0, None, Some(_)) => bail!("{dir} holds no epoch that can be read"),
        (0, None, None) if !is_json => text = format!("{dir} holds no checkpoint\n"),
        (_, _, Some(name)) if text.is_empty() => {
            bail!("there is no `{name}` in it; `tocsin state {dir}` lists what there is")
        }
        _ => {}
    }
    print(&text)
}

fn verify(arguments: &StateArguments, is_json: bool) -> anyhow::Result<ExitCode> {
    let verified = data_dir::verify(&arguments.data_dir)?;
    let mut text = String::new();
    for damage in &verified.damages {
        let path = arguments.data_dir.join(&damage.path);
        let _ = match is_json {
            true => writeln!(text, "{}", json!({ "file": path, "offset": damage.offset, "problem": damage.problem })),
            false => writeln!(text, "{}: damaged at byte {}: {}", path.display(), damage.offset, damage.problem),
        };
    }
    if !is_json {
        let read = format!("{} files, {} bytes read", verified.files, verified.bytes);
        let _ = match verified.damages.len() {
            0 => writeln!(text, "{read}: all of it is whole"),
            1 => writeln!(text, "{read}: 1 is damaged; `tocsin recover` tells what can be done"),
            damages => writeln!(text, "{read}: {damages} are damaged; `tocsin recover` tells what can be done"),
        };
    }
    print(&text)?;
    Ok(ExitCode::from(u8::from(!verified.damages.is_empty())))
}

fn epoch_text(found: &Found, now: Timestamp, text: &mut String) {
    let number = found.number;
    let epoch = match &found.epoch {
        Ok(epoch) => epoch,
        Err(damage) => {
            let _ = writeln!(text, "epoch {number}, damaged: {damage}");
            return;
        }
    };
    let age = Timestamp::parse_rfc3339(epoch.written_at().as_bytes())
        .map_or(String::new(), |at| format!(", {} s ago", now.since(at).as_secs()));
    let segments = epoch.segments.len();
    let _ = writeln!(
        text,
        "epoch {number}, written {}{age}, {} bytes in {segments} segments",
        epoch.written_at(),
        epoch.bytes()
    );
    for line in components(epoch) {
        let _ = writeln!(text, "  {:<8}  {}: {}", line.role.as_str(), line.name, line.told);
    }
}

/// A component of an epoch, for people and for programs.
struct Line {
    role: Role,
    name: String,
    told: String,
    json: Json,
}

fn components(epoch: &Epoch) -> Vec<Line> {
    let restored = &epoch.restored;
    let mut lines: Vec<_> = restored
        .facts
        .iter()
        .map(|(name, fact)| {
            let kind = fact.kind.clone();
            let told_kind = kind.as_deref().unwrap_or("type not told");
            let (told, detail) = match fact.role {
                Role::Source => {
                    let lanes = restored.sources.get(name).map_or(0, |lanes| lanes.len());
                    (format!("{told_kind}, {lanes} positions"), json!({ "positions": lanes }))
                }
                Role::Operator => {
                    let groups = restored.operators.get(name).map(|(_, groups)| groups);
                    let bytes: usize = groups.map_or(0, |groups| groups.values().map(|piece| piece.len()).sum());
                    let groups = groups.map_or(0, |groups| groups.len());
                    (
                        format!("{told_kind}, version {}, {bytes} bytes in {groups} key groups", fact.version),
                        json!({ "version": fact.version, "bytes": bytes, "groups": groups }),
                    )
                }
                Role::Sink => {
                    let bytes = restored.sinks.get(name).map_or(0, |state| state.len());
                    let undelivered =
                        undelivered(&restored.facts, name, restored.sinks.get(name).map(|state| &state[..]));
                    let waiting = undelivered.map_or(String::new(), |count| format!(", {count} not delivered"));
                    (
                        format!("{told_kind}, {bytes} bytes{waiting}"),
                        json!({ "bytes": bytes, "undelivered": undelivered }),
                    )
                }
            };
            let mut json = json!({ "role": fact.role, "name": name, "type": kind });
            if let (Some(json), Json::Object(detail)) = (json.as_object_mut(), detail) {
                json.extend(detail);
            }
            Line { role: fact.role, name: name.clone(), told, json }
        })
        .collect();
    lines.sort_by(|one, other| (one.role, &one.name).cmp(&(other.role, &other.name)));
    lines
}

fn undelivered(facts: &Facts, name: &str, state: Option<&[u8]>) -> Option<u64> {
    let Some(state) = state else { return Some(0) };
    CATALOG.undelivered(facts.get(name)?.kind.as_deref()?, state)
}

fn epoch_json(found: &Found) -> Json {
    match &found.epoch {
        Ok(epoch) => json!({
            "epoch": found.number,
            "written_at": epoch.written_at(),
            "bytes": epoch.bytes(),
            "segments": epoch.segments.len(),
            "components": components(epoch).into_iter().map(|line| line.json).collect::<Vec<_>>(),
        }),
        Err(damage) => json!({ "epoch": found.number, "damage": damage }),
    }
}

/// Everything that is known of one component; `None` if there is none of this name.
fn component(epoch: &Epoch, name: &str, is_json: bool) -> Option<String> {
    let line = components(epoch).into_iter().find(|line| line.name == name)?;
    let restored = &epoch.restored;
    let mut json = line.json;
    json["epoch"] = restored.epoch.into();
    json["shape"] = restored.facts.get(name).and_then(|fact| fact.shape.clone()).into();
    match line.role {
        Role::Source => json["positions"] = json!(restored.sources.get(name)),
        Role::Operator => {
            let groups = restored.operators.get(name).map(|(_, groups)| groups);
            let sizes = groups.into_iter().flatten().map(|(group, piece)| (group.to_string(), piece.len().into()));
            json["groups"] = Json::Object(sizes.collect());
        }
        // What is JSON or text says more than its length.
        Role::Sink => {
            if let Some(state) = restored.sinks.get(name) {
                json["state"] = serde_json::from_slice(state)
                    .ok()
                    .or_else(|| std::str::from_utf8(state).ok().map(Json::from))
                    .unwrap_or(Json::Null);
            }
        }
    }
    Some(match is_json {
        true => format!("{json}\n"),
        false => format!("{json:#}\n"),
    })
}
