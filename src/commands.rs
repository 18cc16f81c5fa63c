//! What each command does.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::CommandFactory;
use tocsin_config::{Plan, Report, SystemEnvironment, lints};

use crate::catalog::CATALOG;
use crate::cli::{
    Arguments, AuditArguments, CheckArguments, Command, ConfigurationArguments, NotifyCommand, ReportFormat,
    RunArguments,
};
use crate::{
    alerts, audit, drawing, evidence, explain, notify, plan, recover, reload, replay, run, silences, starter, state,
    testing,
};

/// What `tocsin help` lists the checks under.
const CHECKS: &str = "checks";

/// Does what was typed. Exit status 0: fine; 1: problems; wrong usage has exited with 2 before.
pub fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(arguments) => {
            let Some(plan) = checked(&arguments.configuration) else { return Ok(ExitCode::from(1)) };
            let RunArguments { configuration, once, data_dir, no_state_loss, watch } = arguments;
            run::run(plan, run::Options { configuration, once, data_dir, no_state_loss, watch })
        }
        Command::Check(arguments) => check(&arguments),
        Command::Test(configuration) => test(&configuration),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Diff(arguments) => Ok(replay::diff(&arguments)),
        Command::Explain(arguments) => explain::explain(arguments),
        Command::Plan(arguments) => plan::plan(&arguments),
        Command::Reload(arguments) => reload::reload(&arguments),
        Command::State(arguments) => state::state(&arguments),
        Command::Recover(arguments) => recover::recover(&arguments),
        Command::Audit(arguments) => audit(arguments),
        Command::Evidence(arguments) => evidence::evidence(&arguments),
        Command::Notify(NotifyCommand::Test(arguments)) => notify::test(arguments),
        Command::Alerts(arguments) => alerts::alerts(&arguments),
        Command::Silence { action } => silences::silence(action),
        Command::Graph(arguments) => {
            let Some(plan) = checked(&arguments.configuration) else { return Ok(ExitCode::from(1)) };
            print(&drawing::draw(&plan, arguments.format))
        }
        Command::Schema => {
            let schema =
                serde_json::to_string_pretty(&tocsin_config::schema(&CATALOG)).context("writing the schema")?;
            print(&format!("{schema}\n"))
        }
        Command::Help { r#type: None, all: true } => print(&tocsin_config::reference(&CATALOG)),
        Command::Help { r#type: None, all: false } => {
            let mut help = Arguments::command().render_help().to_string();
            help.push_str(&components());
            print(&help)
        }
        Command::Help { r#type: Some(name), all } => help(&name, all),
        Command::New { path } => new(&path),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tocsin", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// The page of a component or of a check.
fn help(name: &str, all: bool) -> anyhow::Result<ExitCode> {
    if name == CHECKS {
        return print(&if all { lints::checks_reference() } else { lints::checks() });
    }
    if let Some(page) = tocsin_config::reference_page(&CATALOG, name) {
        return print(&page);
    }
    if let Some(lint) = lints::lint(name) {
        return print(&lints::page(lint));
    }
    match tocsin_config::nearest_page(&CATALOG, name).or_else(|| lints::nearest_check(name)) {
        Some(nearest) => bail!("there is no component `{name}`; did you mean `{nearest}`?"),
        None => bail!("there is no component `{name}`; `tocsin help` lists them, `tocsin help {CHECKS}` the checks"),
    }
}

/// Writes to stdout; a reader that has gone away (`| head`) is no problem.
pub fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(error).context("writing to stdout"),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn read(configuration: &ConfigurationArguments) -> Result<Plan, Report> {
    let files = tocsin_config::load(&configuration.files)?;
    tocsin_config::check(&files, &SystemEnvironment, &CATALOG, &configuration.set)
}

/// The plan, or its problems on stderr.
pub fn checked(configuration: &ConfigurationArguments) -> Option<Plan> {
    match read(configuration) {
        Ok(plan) => Some(plan),
        Err(report) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            None
        }
    }
}

/// The admin address of the daemon that is meant; `None` where its configuration has problems, which are told. `otherwise` is what
/// else can be done where it has no such address.
pub fn address(admin: Option<SocketAddr>, files: &[PathBuf], otherwise: &str) -> anyhow::Result<Option<SocketAddr>> {
    if let Some(address) = admin {
        return Ok(Some(address));
    }
    if files.is_empty() {
        bail!("which daemon? give its address with --admin, or the files of its configuration");
    }
    let Some(plan) = checked(&ConfigurationArguments { files: files.to_vec(), set: Vec::new() }) else {
        return Ok(None);
    };
    match plan.daemon.admin {
        Some(address) => Ok(Some(address)),
        None => bail!("the configuration has no `daemon.admin` address; {otherwise}"),
    }
}

fn check(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    let report = match read(&arguments.configuration) {
        Ok(mut plan) => {
            plan.findings.allow(&arguments.allow);
            if plan.findings.problems.is_empty() {
                let (sources, operators) = (plan.sources.len(), plan.operators.len());
                let (sinks, tests) = (plan.sinks.len(), plan.tests.len());
                return match arguments.format {
                    ReportFormat::Text => print(&format!(
                        "fine: {sources} sources, {operators} operators, {sinks} sinks, {tests} tests\n"
                    )),
                    ReportFormat::Json => Ok(ExitCode::SUCCESS),
                };
            }
            plan.findings
        }
        Err(report) => report,
    };
    match arguments.format {
        ReportFormat::Text => eprint!("{}", report.render(std::io::stderr().is_terminal())),
        ReportFormat::Json => {
            print(&report.json_lines())?;
        }
    }
    Ok(ExitCode::from(1))
}

fn audit(arguments: AuditArguments) -> anyhow::Result<ExitCode> {
    let AuditArguments { files, set, mut admin, mut data_dir, format } = arguments;
    if !files.is_empty() {
        let Some(plan) = checked(&ConfigurationArguments { files, set }) else { return Ok(ExitCode::from(1)) };
        (admin, data_dir) = (plan.daemon.admin, plan.daemon.data_dir);
    }
    let audit = match (admin, data_dir) {
        (Some(address), _) => audit::of_daemon(address)?,
        (None, Some(data_dir)) => audit::of_data_dir(&data_dir)?,
        (None, None) => bail!("the configuration has neither `daemon.admin` nor `daemon.data_dir`, so nothing is kept"),
    };
    print(&match format {
        ReportFormat::Text => audit::text(&audit),
        ReportFormat::Json => audit::json(&audit),
    })?;
    Ok(if audit.ledger.imbalances().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn test(configuration: &ConfigurationArguments) -> anyhow::Result<ExitCode> {
    let Some(plan) = checked(configuration) else { return Ok(ExitCode::from(1)) };
    if plan.tests.is_empty() {
        bail!("the configuration has no [[tests]]; see: tocsin help tests");
    }
    let outcomes = testing::run_all(&plan);
    let mut text = String::new();
    for outcome in &outcomes {
        text.push_str(if outcome.failures.is_empty() { "ok      " } else { "FAILED  " });
        text.push_str(&outcome.name);
        text.push('\n');
        for failure in &outcome.failures {
            text.push_str("  ");
            text.push_str(&failure.replace('\n', "\n  "));
            text.push('\n');
        }
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    text.push_str(&format!("{} passed, {failed} failed\n", outcomes.len() - failed));
    print(&text)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The kinds of component, by kind.
fn components() -> String {
    let list = |names: Vec<&str>| names.join(" ");
    format!(
        "\nComponents (tocsin help TYPE):\n  sources:   {}\n  codecs:    {}\n  operators: {}\n  sinks:     {}\n",
        list(CATALOG.sources.iter().map(|kind| kind.name).collect()),
        list(CATALOG.codecs.iter().map(|kind| kind.name).collect()),
        list(CATALOG.operators.iter().map(|kind| kind.name).collect()),
        list(CATALOG.sinks.iter().map(|kind| kind.name).collect()),
    )
}

fn new(path: &std::path::Path) -> anyhow::Result<ExitCode> {
    if path.as_os_str() == "-" {
        return print(starter::STARTER);
    }
    let mut file = match std::fs::File::create_new(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; give another name, or remove it first", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
    };
    file.write_all(starter::STARTER.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    print(&format!("wrote {0}; run it: tocsin run {0}\n", path.display()))
}
