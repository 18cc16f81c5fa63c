//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Streams of logs and events: filter, aggregate, and be told at once when something breaks.
#[derive(Debug, Parser)]
#[command(name = "tocsin", version, disable_help_subcommand = true, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline.
    ///
    /// SIGTERM and SIGINT stop reading, bring what was read to the sinks, and take a last checkpoint; a second signal
    /// exits at once, which is as safe as a crash is.
    Run(RunArguments),
    /// Check a configuration without touching anything outside; tell every problem at once.
    Check(CheckArguments),
    /// Run the `[[tests]]` of a configuration on a virtual clock.
    Test(ConfigurationArguments),
    /// Tell how a configuration is run: what is fused, pre-filtered, decoded, and what is guaranteed.
    Explain(ConfigurationArguments),
    /// Tell what becomes of state if the configuration is changed: kept, migrated, lost, new.
    ///
    /// Exit status 0, or 1 where `--no-state-loss` is given and something would be lost.
    Plan(PlanArguments),
    /// Draw the pipeline.
    Graph(GraphArguments),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print the reference page of a kind of component, or the list of them.
    Help {
        /// A component's type, such as `window`.
        r#type: Option<String>,
        /// All pages: the reference.
        #[arg(long, conflicts_with = "type")]
        all: bool,
    },
    /// Write a starter configuration.
    New {
        /// Where to; `-` prints it.
        #[arg(default_value = "tocsin.toml")]
        path: PathBuf,
    },
    /// Print shell completions.
    Completions { shell: clap_complete::Shell },
}

/// Which configuration.
#[derive(Args, Clone, Debug)]
pub struct ConfigurationArguments {
    /// Configuration files, and folders of them (`*.toml`); together they are one configuration.
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// Override an option: `--set sinks.mail.smtp=smtp://localhost:2525`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    #[command(flatten)]
    pub configuration: ConfigurationArguments,
    /// Read the sources to their end, close all windows, and exit.
    #[arg(long)]
    pub once: bool,
    /// Where state is kept; instead of `daemon.data_dir`.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Do not start if state would be lost because the configuration has changed: see `tocsin plan`.
    #[arg(long)]
    pub no_state_loss: bool,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArguments {
    #[command(flatten)]
    pub configuration: ConfigurationArguments,
    /// How problems are told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

#[derive(Args, Clone, Debug)]
pub struct PlanArguments {
    /// The configuration as it is and as it is to be, each a file or a folder; with `--data-dir` the latter alone.
    #[arg(required = true, num_args = 1..=2, value_names = ["OLD", "NEW"])]
    pub configurations: Vec<PathBuf>,
    /// Go by the state in this data directory instead of an old configuration. It may be that of a running daemon.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Override an option, of both configurations.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Exit with 1 if state would be lost.
    #[arg(long)]
    pub no_state_loss: bool,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Args, Clone, Debug)]
pub struct GraphArguments {
    #[command(flatten)]
    pub configuration: ConfigurationArguments,
    /// How it is drawn.
    #[arg(long, value_enum, default_value_t = GraphFormat::Mermaid)]
    pub format: GraphFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    Mermaid,
    Dot,
    Svg,
}
