//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::recover::Cost;

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
    /// exits at once, which is as safe as a crash is. SIGHUP reloads the configuration.
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
    /// Tell what a data directory holds: epochs, positions, state. It may be that of a running daemon.
    State(StateArguments),
    /// Decide what the daemon must not decide by itself: go back to an older epoch, start without one, go on without a damaged
    /// journal. Tells what it would do and what that costs; does it with `--accept`.
    Recover(RecoverArguments),
    /// Tell what became of every record, and whether the counts balance.
    ///
    /// Of a running daemon as of its last barrier, or of a data directory as of its newest checkpoint. Exit status 1: they
    /// do not balance.
    Audit(AuditArguments),
    /// Ask a running daemon to take up its changed configuration.
    ///
    /// SIGHUP does the same, and so does a change of a file under `run --watch`. A configuration that is wrong or cannot run
    /// changes nothing: exit status 1, with the reason.
    Reload(ReloadArguments),
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
    /// Reload when a file of the configuration changes.
    #[arg(long)]
    pub watch: bool,
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

#[derive(Args, Clone, Debug)]
pub struct ReloadArguments {
    /// The daemon's configuration, which tells its admin address.
    #[arg(value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// The daemon's admin address, instead.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
}

#[derive(Args, Clone, Debug)]
pub struct StateArguments {
    /// The data directory.
    #[arg(value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Show this epoch alone.
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// Show all that is known of one component, in the newest epoch or in that of `--epoch`.
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Read every byte of every file instead, and tell what is damaged. Exit status 1 if anything is.
    #[arg(long, conflicts_with_all = ["epoch", "component"])]
    pub verify: bool,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

#[derive(Args, Clone, Debug)]
pub struct RecoverArguments {
    /// The data directory. No daemon may be running on it.
    #[arg(value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Go back to this epoch, one of those that `tocsin state` lists.
    #[arg(long, value_name = "N")]
    pub from: Option<u64>,
    /// What may happen.
    #[arg(long, value_enum)]
    pub accept: Vec<Cost>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Args, Clone, Debug)]
pub struct AuditArguments {
    /// Configuration files: they tell the daemon's admin address, or its data directory where it has none.
    #[arg(value_name = "FILES", required_unless_present_any = ["admin", "data_dir"])]
    pub files: Vec<PathBuf>,
    /// Override an option of theirs.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "files")]
    pub set: Vec<String>,
    /// The admin address of a running daemon.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["files", "data_dir"])]
    pub admin: Option<SocketAddr>,
    /// A data directory; a daemon may be running on it.
    #[arg(long, value_name = "DIR", conflicts_with = "files")]
    pub data_dir: Option<PathBuf>,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
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
