//! The options that all sources, all operators or all sinks have, and those of the daemon itself. Their doc comments are
//! part of the reference.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time;

use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tocsin_pipeline::graph::JournalOptions;
use tocsin_pipeline::source::{Multiline, MultilineMode, RecordOptions, TooLong};
use tocsin_pipeline::store::object::{FORMS, Location};
use tocsin_pipeline::timestamp::{TimestampFormat, TimestampOptions as Timestamps};

use crate::component::{AnySource, Problem};
use crate::types::{ByteSize, Duration};

/// The daemon itself: where it keeps its state, how often, and how much it may use.
///
/// ```toml
/// [daemon]
/// data_dir = "/var/lib/tocsin"
/// admin = "127.0.0.1:9477"
/// memory = "512MiB"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DaemonOptions {
    /// The folder for checkpoints and whatever else must survive a restart; a relative path starts at the configuration
    /// file's folder. Without it nothing survives: every start is a fresh one.
    pub data_dir: Option<PathBuf>,
    /// Where the checkpoints of a pipeline that several daemons share are kept: a folder that all of them see, or
    /// `"s3://BUCKET/FOLDER"`, `"gs://BUCKET/FOLDER"` or `"az://CONTAINER/FOLDER"`; see docs/kafka.md. A relative path starts
    /// at the configuration file's folder. Credentials are taken from the environment, such as `AWS_ACCESS_KEY_ID`.
    pub checkpoint_store: Option<String>,
    /// The name of this daemon among those that share a pipeline, the same after each start: a daemon that comes back under
    /// its name before the others have missed it goes on with what it had (static membership). No two may have the same, so it
    /// is best made of something that differs by itself, such as `"${HOSTNAME}"`. Letters, digits, `.`, `_` and `-`.
    pub instance: Option<String>,
    /// The address that metrics, health and the commands for a running daemon are served at, such as `"127.0.0.1:9477"`.
    /// Without it nothing is served. There is no authentication: keep it on the loopback or behind something that has.
    pub admin: Option<SocketAddr>,
    /// How often a checkpoint is taken: what must be read again after a crash is at most about this much.
    #[serde(default = "one_second")]
    pub checkpoint_interval: Duration,
    /// How many threads work on records. Results do not depend on it. At most 1024. Default: one per core.
    pub threads: Option<NonZeroUsize>,
    /// How much memory the records that are on their way may take, all edges together. A full edge makes its writer wait.
    #[serde(default = "memory")]
    pub memory: ByteSize,
    /// How long SIGTERM and SIGINT wait for what has been read to reach its sinks. What has not by then is read or sent
    /// again after the next start.
    #[serde(default = "fifteen_seconds")]
    pub shutdown_timeout: Duration,
    /// How much the daemon tells of itself on stderr.
    #[serde(default)]
    pub log: LogLevel,
    /// What `tocsin check` does not tell because it is meant: codes such as `"T012"`, or `"T012:NAME"` for one component. `tocsin help checks`
    /// lists them.
    #[serde(default)]
    pub allow: Vec<String>,
}

/// How much the daemon tells of itself; each level includes those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Only what stopped something.
    Error,
    /// What needs a look, such as a peer that is away.
    Warn,
    /// What happened.
    #[default]
    Info,
    /// Why it happened.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word it is written as.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self {
            data_dir: None,
            checkpoint_store: None,
            instance: None,
            admin: None,
            checkpoint_interval: one_second(),
            threads: None,
            memory: memory(),
            shutdown_timeout: fifteen_seconds(),
            log: LogLevel::default(),
            allow: Vec::new(),
        }
    }
}

impl DaemonOptions {
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(Err(problem)) = self.checkpoint_store.as_deref().map(str::parse::<Location>) {
            problems.push(Problem::new("checkpoint_store", problem).help(FORMS));
        }
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || ".-_".contains(letter);
        if self.instance.as_deref().is_some_and(|name| name.is_empty() || !name.chars().all(is_plain)) {
            problems.push(
                Problem::new("instance", "not a name for a daemon")
                    .help("write letters, digits, `.`, `_` and `-`, such as \"node-1\" or \"${HOSTNAME}\""),
            );
        }
        if self.checkpoint_interval.0 < time::Duration::from_millis(10) {
            problems.push(
                Problem::new("checkpoint_interval", "checkpoints cannot be taken that often")
                    .help("write at least \"10ms\"; the default is \"1s\""),
            );
        }
        if self.threads.is_some_and(|threads| threads.get() > 1024) {
            problems.push(
                Problem::new("threads", "too many threads").help("write at most 1024; the default is one per core"),
            );
        }
        if self.memory.0 < 4 << 20 {
            problems.push(
                Problem::new("memory", "too little memory for records on their way")
                    .help("write at least \"4MiB\"; the default is \"256MiB\""),
            );
        }
        problems
    }
}

/// What every source can be told about its records.
///
/// Every source has the output `NAME.rejected`: records that are too long or that the codec cannot read, as dead letters.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceOptions {
    /// Where an event's time is, if not where the codec says. A record without a time counts as of its arrival.
    pub timestamp: Option<TimestampOptions>,
    /// Lines that belong together: stack traces, wrapped messages. Only for sources that read lines.
    pub multiline: Option<MultilineOptions>,
    /// Longer records are cut off or rejected, as `too_long` says, and never buffered. At most `"256MiB"`.
    #[serde(default = "one_mebibyte")]
    pub max_record_bytes: ByteSize,
    /// What becomes of a record longer than `max_record_bytes`.
    #[serde(default)]
    pub too_long: TooLongOption,
    /// What becomes of a record that the codec cannot read.
    #[serde(default)]
    pub on_decode_error: OnDecodeError,
    /// How far an event's time may be behind the greatest seen so far in its partition without being late. Windows and
    /// alerts wait so much longer.
    #[serde(default = "zero")]
    pub out_of_order: Duration,
    /// After how long without records a healthy partition stops holding others back: event time then follows the clock.
    #[serde(default = "ten_seconds")]
    pub idle_timeout: Duration,
    /// Whether what comes in is written to a journal in the data directory, made durable, and only then worked on: after a
    /// crash it is read again from there. Only for sources that cannot be read again otherwise, such as `http` or `socket`.
    /// Default: `true` for `http` with `acknowledge = true` where there is a `data_dir`, else `false`.
    pub journal: Option<bool>,
    /// How large the journal may become: it holds what came in since the oldest checkpoint that is kept. Beyond it, and while
    /// its disk is full or broken, clients that wait for an acknowledgement are refused, and all others wait. At least
    /// `"1MiB"`.
    #[serde(default = "one_gibibyte")]
    pub journal_max_bytes: ByteSize,
}

/// Where an event's time is, and how it is written.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimestampOptions {
    /// The field that holds it, such as `".ts"` or `".event.created"`.
    pub field: String,
    /// How it is written: `"rfc3339"`, `"unix"` (seconds, with decimals or without), `"unix_ms"`, `"unix_us"`, `"unix_ns"`,
    /// `"clf"` (that of access logs), `"syslog"` (without a year: the one that puts it nearest before the arrival), a strftime
    /// pattern such as `"%d/%b/%Y:%H:%M:%S %z"`, or `"auto"`: what its shape says among `rfc3339`, `clf` and `syslog`.
    #[serde(default = "auto")]
    pub format: String,
    /// The time zone of a pattern without `%z`: an IANA name such as `"Europe/Prague"`. Default: UTC.
    pub timezone: Option<String>,
}

/// Which lines make one record.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultilineOptions {
    /// The regular expression that lines are tested with.
    pub pattern: String,
    /// What a match says of a line.
    pub mode: MultilineModeOption,
    /// A record is complete when no further line has come for so long.
    #[serde(default = "one_second")]
    pub timeout: Duration,
    /// A record is complete when it has so many lines. At least 1.
    #[serde(default = "one_thousand")]
    pub max_lines: usize,
}

/// What a match of `pattern` says of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MultilineModeOption {
    /// It begins a record; all others continue one.
    Start,
    /// It ends a record.
    End,
    /// It is continued by the next line, as one that ends in a backslash.
    ContinuePast,
    /// It continues the record before it, as one that is indented.
    ContinueThrough,
}

/// What becomes of a record that is too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLongOption {
    /// It becomes a dead letter that holds its head.
    #[default]
    Reject,
    /// Its head goes on, the rest is left out.
    Truncate,
}

/// What becomes of a record that the codec cannot read. Counted in either case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDecodeError {
    /// It becomes a dead letter at `NAME.rejected`.
    #[default]
    Reject,
    /// It ends here.
    Drop,
}

/// What every sink can be told about waiting records.
///
/// Every sink has the output `NAME.rejected`: records refused for good, as dead letters. Sinks that tell somebody have
/// `NAME.failed` besides: the same records as they came, and those that are not delivered within `max_age` or `fallback_after`.
/// Another sink that has it among its `inputs` tells somebody else.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkOptions {
    /// How many bytes may wait for the sink, and what happens then.
    #[serde(default)]
    pub buffer: BufferOptions,
}

/// How many bytes may wait for a sink, and what happens then.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferOptions {
    /// How many bytes of records may wait.
    #[serde(default = "sixty_four_mebibytes")]
    pub max: ByteSize,
    /// What happens when they do.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait on disk, with `when_full = "spill"`. Beyond it, and while the disk is full or broken, whoever writes
    /// to the sink waits. At least `"1MiB"`.
    #[serde(default = "ten_gibibytes")]
    pub max_disk: ByteSize,
}

impl Default for BufferOptions {
    fn default() -> Self {
        Self { max: sixty_four_mebibytes(), when_full: WhenFull::default(), max_disk: ten_gibibytes() }
    }
}

/// What happens when a sink's buffer is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Whoever writes to the sink waits, back to the source. Nothing is lost.
    #[default]
    Block,
    /// New records are dropped, and counted: a dead sink does not hold up the others.
    DropNewest,
    /// Records go to disk, in the data directory, and are read back in order: nothing is lost, and a dead sink holds up
    /// neither the others nor the checkpoints. See docs/buffers.md.
    Spill,
}

impl TimestampOptions {
    /// Checks what types cannot. Paths of problems begin at the table of the timestamp.
    fn check(&self, problems: &mut Vec<Problem>) -> Option<Timestamps> {
        let found = problems.len();
        let path = tocsin_pipeline::path::parse(&self.field).filter(|path| !path.segments.is_empty());
        if path.is_none() {
            problems.push(
                Problem::new("timestamp.field", format!("{:?} is not a path to a field", self.field))
                    .help("write a path such as \".ts\" or \".event.created\""),
            );
        }
        let format = TimestampFormat::parse(&self.format).unwrap_or_else(|problem| {
            let names: Vec<_> = TimestampFormat::NAMES.iter().map(|name| format!("{name:?}")).collect();
            problems.push(
                Problem::new("timestamp.format", problem)
                    .help(format!("write {}, or a pattern such as \"%Y-%m-%d %H:%M:%S\"", names.join(", "))),
            );
            TimestampFormat::default()
        });
        let timezone = self.timezone.as_deref().map(str::parse::<Tz>);
        if let Some(Err(_)) = timezone {
            let name = self.timezone.as_deref().unwrap_or_default();
            problems.push(
                Problem::new("timestamp.timezone", format!("{name:?} is not a time zone"))
                    .help("write an IANA name such as \"UTC\" or \"Europe/Prague\""),
            );
        }
        let timezone = timezone.and_then(Result::ok).unwrap_or(Tz::UTC);
        (problems.len() == found).then_some(Timestamps { path, format, timezone })
    }
}

impl SinkOptions {
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.buffer.max_disk.0 < 1 << 20 {
            problems.push(
                Problem::new("buffer.max_disk", "too little for a buffer on disk")
                    .help("write at least \"1MiB\"; the default is \"10GiB\""),
            );
        }
        if self.buffer.max.0 == 0 {
            problems.push(Problem::new("buffer.max", "a buffer of nothing").help("the default is \"64MiB\""));
        }
        problems
    }
}

impl SourceOptions {
    /// Checks what types cannot, and gives what the engine and a running source are told of records.
    pub(crate) fn check(&self) -> (Vec<Problem>, RecordOptions, Option<Timestamps>) {
        let mut problems = Vec::new();
        let records = self.records(&mut problems);
        if self.journal_max_bytes.0 < 1 << 20 {
            problems.push(
                Problem::new("journal_max_bytes", "too little for a journal")
                    .help("write at least \"1MiB\"; the default is \"1GiB\""),
            );
        }
        let timestamp = self.timestamp.as_ref().and_then(|timestamp| timestamp.check(&mut problems));
        (problems, records, timestamp)
    }

    /// Whether a source of these options is journaled.
    pub(crate) fn journal(&self, source: &dyn AnySource) -> Option<JournalOptions> {
        let is_wanted = self.journal.unwrap_or_else(|| source.acknowledges());
        let (is_asked_for, max_bytes) = (self.journal.is_some(), self.journal_max_bytes.0);
        is_wanted.then_some(JournalOptions { is_asked_for, max_bytes })
    }

    fn records(&self, problems: &mut Vec<Problem>) -> RecordOptions {
        // A block holds at least one record, and blocks stay well below the 4 GiB that spans can address.
        const MOST: u64 = 256 << 20;
        if self.max_record_bytes.0 == 0 || self.max_record_bytes.0 > MOST {
            problems.push(
                Problem::new("max_record_bytes", format!("{} is out of range", self.max_record_bytes))
                    .help("write a size from \"1\" to \"256MiB\""),
            );
        }
        RecordOptions {
            max_record_bytes: usize::try_from(self.max_record_bytes.0.clamp(1, MOST)).expect("MOST fits any usize"),
            too_long: match self.too_long {
                TooLongOption::Reject => TooLong::Reject,
                TooLongOption::Truncate => TooLong::Truncate,
            },
            multiline: self.multiline.as_ref().and_then(|multiline| multiline.check(problems)),
        }
    }
}

impl MultilineOptions {
    fn check(&self, problems: &mut Vec<Problem>) -> Option<Multiline> {
        if self.max_lines == 0 {
            problems
                .push(Problem::new("multiline.max_lines", "a record has at least one line").help("write 1 or more"));
        }
        let pattern = match regex::bytes::RegexBuilder::new(&self.pattern).size_limit(10 << 20).build() {
            Ok(pattern) => pattern,
            Err(error) => {
                problems.push(regex_problem("multiline.pattern", &self.pattern, &error));
                return None;
            }
        };
        Some(Multiline {
            pattern,
            mode: match self.mode {
                MultilineModeOption::Start => MultilineMode::Start,
                MultilineModeOption::End => MultilineMode::End,
                MultilineModeOption::ContinuePast => MultilineMode::ContinuePast,
                MultilineModeOption::ContinueThrough => MultilineMode::ContinueThrough,
            },
            timeout: self.timeout.0,
            max_lines: self.max_lines,
        })
    }
}

/// The problem with a regular expression. The parser is asked again for the place, which the compiler does not tell.
pub fn regex_problem(option: &str, pattern: &str, error: &regex::Error) -> Problem {
    match regex_syntax::parse(pattern) {
        Err(regex_syntax::Error::Parse(error)) => {
            Problem::new(option, format!("not a regular expression: {}", error.kind()))
                .within(error.span().start.offset..error.span().end.offset)
        }
        Err(regex_syntax::Error::Translate(error)) => {
            Problem::new(option, format!("not a regular expression: {}", error.kind()))
                .within(error.span().start.offset..error.span().end.offset)
        }
        _ => match error {
            regex::Error::CompiledTooBig(limit) => {
                Problem::new(option, format!("the regular expression needs more than {limit} bytes when compiled"))
                    .help("make its repetitions smaller")
            }
            error => Problem::new(option, format!("not a regular expression: {error}")),
        },
    }
}

fn zero() -> Duration {
    Duration(time::Duration::ZERO)
}

fn one_second() -> Duration {
    Duration(time::Duration::from_secs(1))
}

fn ten_seconds() -> Duration {
    Duration(time::Duration::from_secs(10))
}

fn fifteen_seconds() -> Duration {
    Duration(time::Duration::from_secs(15))
}

fn memory() -> ByteSize {
    ByteSize(256 << 20)
}

fn one_mebibyte() -> ByteSize {
    ByteSize(1 << 20)
}

fn one_gibibyte() -> ByteSize {
    ByteSize(1 << 30)
}

fn ten_gibibytes() -> ByteSize {
    ByteSize(10 << 30)
}

fn sixty_four_mebibytes() -> ByteSize {
    ByteSize(64 << 20)
}

fn one_thousand() -> usize {
    1000
}

fn auto() -> String {
    "auto".to_owned()
}
