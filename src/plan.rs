//! `tocsin plan`: what becomes of state when the configuration is changed, before it is.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::json;
use tocsin_config::build::build;
use tocsin_pipeline::checkpoint::{epochs, read_epoch};
use tocsin_pipeline::evolution::{Facts, Role, Verdict, compare, losses};
use tocsin_pipeline::store::Disk;

use crate::catalog::CATALOG;
use crate::cli::{Arguments, ConfigurationArguments, PlanArguments, ReportFormat};
use crate::commands::{checked, print};

/// Tells what becomes of each component's state.
pub fn plan(arguments: &PlanArguments) -> anyhow::Result<ExitCode> {
    let (old, new) = match (&arguments.configurations[..], &arguments.data_dir) {
        ([old, new], None) => (Some(old), new),
        ([new], Some(_)) => (None, new),
        _ => Arguments::command()
            .error(
                ErrorKind::WrongNumberOfValues,
                "give two configurations, OLD and NEW, or --data-dir and the new one alone",
            )
            .exit(),
    };
    let read =
        |path: &Path| checked(&ConfigurationArguments { files: vec![path.to_owned()], set: arguments.set.clone() });
    let Some(plan) = read(new) else { return Ok(ExitCode::from(1)) };
    let graph = build(&plan);
    let facts = graph.facts();
    let (before, from) = match (old, &arguments.data_dir) {
        (Some(old), _) => {
            let Some(old) = read(old) else { return Ok(ExitCode::from(1)) };
            (build(&old).facts(), None)
        }
        (None, Some(data_dir)) => {
            let (before, from) = kept(data_dir, &facts)?;
            (before, Some(from))
        }
        (None, None) => unreachable!("one of them was asked for"),
    };
    let verdicts = compare(&before, &facts);
    let stateless: Vec<_> = graph.operators.iter().filter(|node| !facts.contains_key(&*node.name)).collect();
    let text = match arguments.format {
        ReportFormat::Text => {
            let stateless = stateless.iter().map(|node| &*node.name);
            format!("{}{}", from.unwrap_or_default(), text(&verdicts, stateless))
        }
        ReportFormat::Json => lines(&verdicts, stateless.iter().map(|node| &*node.name)),
    };
    print(&text)?;
    let is_refused = arguments.no_state_loss && losses(&verdicts).next().is_some();
    Ok(ExitCode::from(u8::from(is_refused)))
}

/// What the newest epoch that can be read speaks of, and a line that says which that is.
fn kept(data_dir: &Path, new: &Facts) -> anyhow::Result<(Facts, String)> {
    let numbers = epochs(&Disk, data_dir)?;
    let mut reasons = Vec::new();
    for number in numbers.iter().rev() {
        match read_epoch(&Disk, data_dir, *number) {
            Ok(mut epoch) => {
                epoch.restored.count_undelivered(new, |sink, state| CATALOG.undelivered(sink, state));
                let from = format!("epoch {number} of {}, written {}\n", data_dir.display(), epoch.written_at());
                return Ok((epoch.restored.facts, from));
            }
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        return Ok((Facts::new(), format!("{} holds no checkpoint\n", data_dir.display())));
    }
    bail!("no checkpoint of {} can be read: {}; see: tocsin recover", data_dir.display(), reasons.join("; "))
}

const STATELESS: &str = "keeps no state";

fn text<'a>(verdicts: &[Verdict], stateless: impl Iterator<Item = &'a str>) -> String {
    let mut rows: Vec<(Role, &str, String)> = verdicts
        .iter()
        .map(|verdict| {
            let fate = match verdict.fate.reason() {
                Some(reason) => format!("{}: {reason}", verdict.fate.as_str()),
                None => verdict.fate.as_str().to_owned(),
            };
            (verdict.role, &*verdict.name, fate)
        })
        .collect();
    rows.extend(stateless.map(|name| (Role::Operator, name, STATELESS.to_owned())));
    rows.sort_by_key(|(role, name, _)| (*role, *name));
    let width = rows.iter().map(|(_, name, _)| name.len()).max().unwrap_or(0);
    let mut text: String =
        rows.iter().map(|(role, name, fate)| format!("{:<8}  {name:<width$}  {fate}\n", role.as_str())).collect();
    match losses(verdicts).count() {
        0 => text.push_str("nothing is lost\n"),
        1 => text.push_str("the state of 1 component is lost\n"),
        lost => text.push_str(&format!("the state of {lost} components is lost\n")),
    }
    text
}

fn lines<'a>(verdicts: &[Verdict], stateless: impl Iterator<Item = &'a str>) -> String {
    let told = verdicts.iter().map(|verdict| {
        json!({ "role": verdict.role, "name": verdict.name, "fate": verdict.fate.as_str(), "reason": verdict.fate.reason() })
    });
    let stateless =
        stateless.map(|name| json!({ "role": Role::Operator, "name": name, "fate": "stateless", "reason": null }));
    told.chain(stateless).map(|line| format!("{line}\n")).collect()
}
