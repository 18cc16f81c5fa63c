//! `tocsin explain`: how a configuration is run, and why a rule told or did not tell somebody.

mod standing;
#[cfg(test)]
mod tests;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use tocsin_config::Plan;
use tocsin_pipeline::metrics::Metrics;

use crate::cli::{ConfigurationArguments, ExplainArguments, ReportFormat};
use crate::commands::{checked, print};

pub use standing::{Standing, of_pipelines};

/// Explains the plan, or a rule where one is named.
pub fn explain(arguments: ExplainArguments) -> anyhow::Result<ExitCode> {
    let ExplainArguments { words, set, at, data_dir, admin, format } = arguments;
    // What is no file or folder names a rule and a key.
    let files = words.iter().position(|word| !is_file(word)).unwrap_or(words.len());
    let (files, asked) = words.split_at(files);
    if files.is_empty() || asked.len() > 2 {
        bail!("name configuration files first, then at most a rule and a key: tocsin explain FILES [RULE [KEY]]");
    }
    let files = files.iter().map(PathBuf::from).collect();
    let Some(plan) = checked(&ConfigurationArguments { files, set }) else { return Ok(ExitCode::from(1)) };
    let Some(rule) = asked.first() else {
        return print(&of_plan(&plan));
    };
    let key = asked.get(1).map(String::as_str);
    let standing = match (admin.or(plan.daemon.admin), data_dir.or_else(|| plan.daemon.data_dir.clone())) {
        (Some(address), None) => standing::of_daemon(address, key)?,
        (Some(address), Some(data_dir)) => match standing::of_daemon(address, key) {
            Ok(standing) => standing,
            Err(error) => {
                eprintln!("{error:#}; looking at {}", data_dir.display());
                standing::of_data_dir(&plan, &data_dir, key)?
            }
        },
        (None, Some(data_dir)) => standing::of_data_dir(&plan, &data_dir, key)?,
        (None, None) => {
            bail!("the configuration has neither `daemon.admin` nor `daemon.data_dir`, so there is nobody to ask")
        }
    };
    let answer = why::why(&plan, &standing, rule, key, at)?;
    print(&match format {
        ReportFormat::Text => answer.text(),
        ReportFormat::Json => format!("{}\n", answer.json()),
    })
}

fn is_file(word: &str) -> bool {
    let is_named_so = PathBuf::from(word).extension().is_some_and(|extension| extension == "toml");
    is_named_so || PathBuf::from(word).exists()
}

/// The plan in words, and what is guaranteed between each source and sink.
fn of_plan(plan: &Plan) -> String {
    let mut text = tocsin_config::build::build(plan).into_tasks(&Metrics::new()).explain();
    text.push_str("\nafter a crash\n");
    for source in &plan.sources {
        let from = match source.journal {
            _ if source.options.is_replayable() => "read again from the last checkpoint",
            Some(_) if plan.daemon.data_dir.is_some() && source.options.acknowledges() => {
                "read again from its journal: nothing that was acknowledged is lost"
            }
            Some(_) if plan.daemon.data_dir.is_some() => {
                "read again from its journal: what came in the last 5 ms or 64 KiB can be lost"
            }
            _ => "cannot be read again: what was not in a checkpoint is lost, or sent again by its client",
        };
        text.push_str(&format!("  {} ({}): {from}\n", source.name, source.type_name));
    }
    for sink in &plan.sinks {
        text.push_str(&format!("  {} ({}): {}\n", sink.name, sink.type_name, sink.options.guarantee()));
    }
    text
}
