//! What can be typed.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tocsin_config::lints::Allowance;
use tocsin_pipeline::time::Timestamp;

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
    ///
    /// Where nothing is wrong, what is hardly meant is told as warnings: `tocsin help checks` lists them. Exit status 0, or 1 where
    /// anything was told.
    Check(CheckArguments),
    /// Run the `[[tests]]` of a configuration on a virtual clock.
    Test(ConfigurationArguments),
    /// Run the rules over old logs, at full speed in event time, and tell which alerts and notifications they would have made.
    ///
    /// Nothing is sent, and no source, sink or data directory is opened: only the logs are read. Each record counts as having
    /// arrived when it happened.
    Replay(ReplayArguments),
    /// Replay logs with two configurations, and tell which alerts are gained, lost and changed, and who is told more or less.
    ///
    /// Exit status as that of diff: 0 the same, 1 different, 2 trouble.
    Diff(DiffArguments),
    /// Tell how a configuration is run, or why a rule told or did not tell somebody.
    ///
    /// With files alone: what is fused, pre-filtered, decoded, and what is guaranteed. With a rule, and a key if one of its alerts
    /// is meant: the way of its records from the sources to the receivers, and the one cause, of the running daemon at
    /// `daemon.admin` or else as of the newest checkpoint in `daemon.data_dir`.
    Explain(ExplainArguments),
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
    /// Look whether the records that made an alert are still there, and still what they were.
    ///
    /// They are read again from where they stood, in rotated and compressed files too, and held against the hash that the alert
    /// carries. Exit status 0, or 1 where one is gone, has changed, or cannot be read from here.
    Evidence(EvidenceArguments),
    /// Ask a running daemon to take up its changed configuration.
    ///
    /// SIGHUP does the same, and so does a change of a file under `run --watch`. A configuration that is wrong or cannot run
    /// changes nothing: exit status 1, with the reason.
    Reload(ReloadArguments),
    /// Tell a receiver something.
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// List the alerts that a running daemon knows, and why people were told of each or not; or take care of one.
    Alerts(AlertsArguments),
    /// Keep alerts quiet for a while: whoever does so says who they are, why, and until when.
    Silence {
        #[command(subcommand)]
        action: SilenceAction,
    },
    /// Draw the pipeline.
    Graph(GraphArguments),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print the reference page of a kind of component, or the list of them.
    Help {
        /// A component's type, such as `window`; `checks` or the code of one, such as `T012`.
        r#type: Option<String>,
        /// All pages: the reference; with `checks`, those of all checks.
        #[arg(long)]
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

#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Send a notification that is marked as a test, and tell what was answered.
    ///
    /// One attempt is made, without the rest of the pipeline and without a data directory. Exit status 0: delivered; 1: not.
    Test(NotifyTestArguments),
}

#[derive(Args, Clone, Debug)]
pub struct NotifyTestArguments {
    /// The name of the sink, such as `pager` of `[sinks.pager]`.
    pub receiver: String,
    #[command(flatten)]
    pub configuration: ConfigurationArguments,
    /// The record to send, as JSON; it is marked as a test. Default: an alert that says so.
    #[arg(long, value_name = "JSON")]
    pub record: Option<String>,
    /// Send the end of the alert as well.
    #[arg(long)]
    pub resolve: bool,
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
pub struct ExplainArguments {
    /// Configuration files, and folders of them; then a rule; then one of its keys: the value of a label, `name=value`, or a
    /// fingerprint.
    #[arg(required = true, value_name = "FILES [RULE [KEY]]")]
    pub words: Vec<String>,
    /// Override an option: `--set daemon.admin=127.0.0.1:9990`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// As it was at this moment of event time, such as 2026-11-20T12:00:00Z, or 2026-11-20 for the beginning of that day, as far as
    /// that is still known.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub at: Option<Timestamp>,
    /// Look at this data directory; a daemon may be running on it.
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    pub data_dir: Option<PathBuf>,
    /// The daemon's admin address, instead of `daemon.admin`.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
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
    /// Do not tell of a check, `T012`, or of it at one component, `T012:NAME`; as `daemon.allow` does.
    #[arg(long, value_name = "CODE", value_parser = allowance)]
    pub allow: Vec<Allowance>,
    /// How problems are told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

fn allowance(text: &str) -> Result<Allowance, String> {
    Allowance::parse(text).map_err(|(problem, help)| format!("{problem}; {help}"))
}

/// Which logs, and what of them.
#[derive(Args, Clone, Debug)]
pub struct LogArguments {
    /// The logs: paths and patterns of paths, plain or compressed with gzip or zstd. Each is read as the source would whose
    /// `paths` name it, or the only one; `SOURCE=PATH` says which. `SOURCE=kafka:` is what the brokers hold of the topics of that
    /// source, from `--since` on, and `SOURCE=kafka:TIME` from that time on; no group is joined.
    #[arg(long, required = true, num_args = 1.., value_name = "LOGS")]
    pub from: Vec<String>,
    /// Tell what happens from this moment on, such as 2026-11-20 or 2026-11-20T12:00:00Z. All that `--from` names is read
    /// before it, so that windows and alerts stand as they would.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Timestamp>,
    /// Read records up to this moment, to the second, and let the clock run up to it. Without it, it ends with the logs: then windows
    /// close, and alerts that fire go on firing.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Timestamp>,
    /// How many threads decode records. Default: as the daemon has. What comes of it does not depend on it.
    #[arg(long, value_name = "N", hide = true)]
    pub threads: Option<NonZeroUsize>,
    /// How many bytes of a log are read at once. What comes of it does not depend on it.
    #[arg(long, value_name = "N", hide = true)]
    pub block_bytes: Option<NonZeroUsize>,
}

#[derive(Args, Clone, Debug)]
pub struct ReplayArguments {
    #[command(flatten)]
    pub configuration: ConfigurationArguments,
    #[command(flatten)]
    pub logs: LogArguments,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Draw when rules fire and receivers are told, as wide as the terminal.
    #[arg(long)]
    pub chart: bool,
}

#[derive(Args, Clone, Debug)]
pub struct DiffArguments {
    /// The configuration as it is and as it is to be, each a file or a folder.
    #[arg(num_args = 2, value_names = ["OLD", "NEW"], required_unless_present = "old", conflicts_with_all = ["old", "new"])]
    pub configurations: Vec<PathBuf>,
    /// The old configuration, of several files.
    #[arg(long, num_args = 1.., value_name = "FILES", requires = "new")]
    pub old: Vec<PathBuf>,
    /// The new one.
    #[arg(long, num_args = 1.., value_name = "FILES", requires = "old")]
    pub new: Vec<PathBuf>,
    #[command(flatten)]
    pub logs: LogArguments,
    /// Override an option, of both configurations.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

impl DiffArguments {
    /// The old configuration and the new one.
    pub fn sides(&self) -> (ConfigurationArguments, ConfigurationArguments) {
        let side = |files: &[PathBuf]| ConfigurationArguments { files: files.to_vec(), set: self.set.clone() };
        match &self.configurations[..] {
            [old, new] => (side(std::slice::from_ref(old)), side(std::slice::from_ref(new))),
            _ => (side(&self.old), side(&self.new)),
        }
    }
}

/// A moment, or a day for its beginning.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    let of_day = || Timestamp::parse_rfc3339(format!("{text}T00:00:00Z").as_bytes());
    Timestamp::parse_rfc3339(text.as_bytes())
        .or_else(of_day)
        .ok_or_else(|| "write 2026-11-20T12:00:00Z, or 2026-11-20 for the beginning of that day in UTC".into())
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
pub struct EvidenceArguments {
    /// The `id` of the record that told the alert, or the beginning of it; or the fingerprint of the alert, or at least six letters of
    /// it: then the newest of its records that has evidence.
    pub id: String,
    /// Configuration files: they tell the data directory.
    #[arg(value_name = "FILES", required_unless_present = "data_dir")]
    pub files: Vec<PathBuf>,
    /// The data directory; a daemon may be running on it.
    #[arg(long, value_name = "DIR", conflicts_with = "files")]
    pub data_dir: Option<PathBuf>,
    /// How it is told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AlertsArguments {
    #[command(subcommand)]
    pub action: Option<AlertsAction>,
    /// The daemon's configuration, which tells its admin address.
    #[arg(value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// The daemon's admin address, instead.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Only those that matchers are true of: `--filter 'severity="critical"'`.
    #[arg(long, value_name = "MATCHERS")]
    pub filter: Vec<String>,
    /// How they are told.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

#[derive(Clone, Debug, Subcommand)]
pub enum AlertsAction {
    /// Say that you take care: what has been told is neither repeated nor told to others.
    Ack {
        /// The fingerprint of an alert, the key of a group, or the `id` of a notification.
        id: String,
        /// Who takes care.
        #[arg(long, value_name = "NAME")]
        by: String,
        #[command(flatten)]
        daemon: DaemonArguments,
    },
}

/// Which daemon, where the command has other words to take.
#[derive(Args, Clone, Debug)]
pub struct DaemonArguments {
    /// A file or folder of the daemon's configuration, which tells its admin address.
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// The daemon's admin address, instead.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SilenceAction {
    /// Keep the alerts quiet that all matchers are true of.
    Add(SilenceArguments),
    /// List silences.
    List {
        /// Those that are over too.
        #[arg(long)]
        expired: bool,
        #[command(flatten)]
        daemon: DaemonArguments,
        /// How they are told.
        #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
        format: ReportFormat,
    },
    /// End a silence now.
    Expire {
        id: String,
        #[command(flatten)]
        daemon: DaemonArguments,
    },
    /// Tell what matchers would keep quiet: of the alerts that fire, and of the last notifications.
    Preview {
        /// Such as `'alertname="disk"'` and `'host=~"test-.*"'`.
        #[arg(required = true)]
        matchers: Vec<String>,
        #[command(flatten)]
        daemon: DaemonArguments,
        /// How it is told.
        #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
        format: ReportFormat,
    },
}

#[derive(Args, Clone, Debug)]
pub struct SilenceArguments {
    /// Such as `'alertname="disk"'` and `'host=~"test-.*"'`.
    #[arg(required = true)]
    pub matchers: Vec<String>,
    /// Who answers for it.
    #[arg(long, value_name = "NAME")]
    pub owner: String,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// How long: `2h`.
    #[arg(long = "for", value_name = "DURATION", required_unless_present = "until", conflicts_with = "until")]
    pub length: Option<tocsin_config::types::Duration>,
    /// Until when: `2026-12-01T08:00:00Z`.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// From when; otherwise from now.
    #[arg(long, value_name = "TIME")]
    pub starts: Option<String>,
    /// Only at certain times within that, as in the configuration: `{ weekdays = ["sunday"], times = ["02:00-04:00"] }`.
    #[arg(long, value_name = "INTERVAL")]
    pub during: Option<String>,
    #[command(flatten)]
    pub daemon: DaemonArguments,
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
