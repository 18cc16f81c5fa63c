//! `tocsin replay` and `tocsin diff`: the plan of a configuration over old logs. Nothing is sent, and nothing but the logs is
//! opened.

mod chart;
mod diff;
mod drive;
mod logs;
mod outcome;
pub mod text;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::bail;
use tocsin_config::Plan;
use tocsin_pipeline::time::Timestamp;

use crate::cli::{DiffArguments, ReplayArguments, ReportFormat};
use crate::commands::{checked, print};
use outcome::Outcome;

/// How wide a chart is where there is no terminal.
const WIDTH: usize = 100;

/// What is replayed of the logs.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// What is told begins here; what was read before has been lived through.
    pub since: Option<Timestamp>,
    /// Records of this moment and later are not read.
    pub until: Option<Timestamp>,
    /// How many threads decode.
    pub threads: usize,
    /// How much is read at once; `None`: as much as suits the number of logs.
    pub block_bytes: Option<usize>,
}

/// Replays logs and tells what the configuration would have made of them.
pub fn replay(arguments: &ReplayArguments) -> anyhow::Result<ExitCode> {
    if arguments.chart && arguments.format == ReportFormat::Json {
        bail!("a chart is text; leave out --chart or --format json");
    }
    let Some(plan) = checked(&arguments.configuration) else { return Ok(ExitCode::from(1)) };
    let outcome = run(&plan, &arguments.logs)?;
    print(&match arguments.format {
        ReportFormat::Json => text::json(&outcome),
        ReportFormat::Text => {
            let mut told = text::timeline(&outcome);
            if arguments.chart {
                told.push_str(&chart::draw(&outcome, width()));
                told.push('\n');
            }
            told.push_str(&text::summary(&outcome));
            told
        }
    })
}

/// Replays logs with two configurations. Exit status as that of `diff`: 0 the same, 1 different, 2 in trouble.
pub fn diff(arguments: &DiffArguments) -> ExitCode {
    let (old, new) = arguments.sides();
    let (Some(old), Some(new)) = (checked(&old), checked(&new)) else { return ExitCode::from(2) };
    let compared = run(&old, &arguments.logs).and_then(|old| Ok((old, run(&new, &arguments.logs)?)));
    let told = compared.and_then(|(old, new)| {
        let difference = diff::compare(&old, &new);
        print(&match arguments.format {
            ReportFormat::Json => diff::json(&difference),
            ReportFormat::Text => diff::text(&difference),
        })?;
        Ok(difference.is_none())
    });
    match told {
        Ok(is_same) => ExitCode::from(u8::from(!is_same)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(plan: &Plan, logs: &crate::cli::LogArguments) -> anyhow::Result<Outcome> {
    let stretch = Stretch {
        since: logs.since,
        until: logs.until,
        threads: logs.threads.map_or_else(|| crate::run::threads(plan), usize::from),
        block_bytes: logs.block_bytes.map(usize::from),
    };
    if let (Some(since), Some(until)) = (stretch.since, stretch.until)
        && since >= until
    {
        bail!("--since {since} is not before --until {until}");
    }
    drive::drive(plan, &logs::assign(plan, &logs.from, logs.since)?, &stretch)
}

/// How many columns a chart may have.
fn width() -> usize {
    let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    terminal.map_or(WIDTH, |(width, _)| usize::from(width.0))
}
