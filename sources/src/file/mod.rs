//! The `file` source.

mod archive;
mod content;
mod find;
mod generation;
mod identity;
mod reread;
mod utf16;
mod watch;
mod worker;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SourceConfig};
use tocsin_config::types::Duration;
use tocsin_pipeline::source::{Source, SourceContext, SourceError};

pub use self::archive::{Archive, find};
pub use self::reread::{reread, rotated};

use self::find::Pattern;
use self::worker::Worker;

/// Reads files record by record, and follows them as they grow, are rotated, truncated and compressed.
///
/// A file is known by device, inode and time of birth, and confirmed by its content: never by its name. So a log that is
/// renamed is read to its end under its new name before its successor begins, one that is copied and truncated goes on in
/// the copy, and one that was compressed while Tocsin was down is finished in the compressed file. A copy of what is
/// read already, as rotation by copying leaves behind, is not read again.
///
/// Files in gzip and zstd (told by their first bytes, not their name) are read as what they hold; offsets are then those of
/// the content. Text in UTF-16 that begins with a byte order mark is turned into UTF-8. Whatever else is in a file passes
/// unchanged. Only regular files are read; links are followed.
///
/// The last line of a file is a record only when its newline has come, or when the file will not grow any more: at its
/// end with `once`, when it was rotated or deleted, and in compressed files.
///
/// With `once`, files are read one after the other: ordered by name, but those of one rotation from the oldest to the
/// newest (`app.log.2.gz`, `app.log.1`, `app.log`).
///
/// **State:** for each file its identity, offset and guards, some 200 bytes, kept for `forget_after` once it is gone. Each
/// quiet file that is open takes a file descriptor, at most `max_open_files`; beyond that the quietest are closed and
/// opened again when they change.
///
/// **Late events:** each file is a partition of its own: the time of one does not make records of another late.
///
/// **After a crash:** nothing is lost and nothing is repeated, as positions are part of the checkpoint and rotated files are
/// looked up by identity and content. Lost is what nobody could have read: a file that was written, rotated and deleted
/// while Tocsin was down, and what `copytruncate` of logrotate loses itself between copying and truncating.
///
/// ```toml
/// [sources.access]
/// type = "file"
/// paths = ["/var/log/nginx/access.log*"]
/// codec = "combined"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The files: paths with `*`, `?`, `[a-z]`, `{a,b}` within a name, and `**` for folders of any depth. Relative paths
    /// start at the folder of the configuration file. At least one.
    pub(super) paths: Vec<String>,
    /// Files that are not read although `paths` names them.
    #[serde(default)]
    pub(super) exclude: Vec<String>,
    /// Where a file that is there at the very first start is read from. Files that come later are read from their
    /// beginning, and those known from a checkpoint from where reading ended.
    #[serde(default)]
    pub(super) read_from: ReadFrom,
    /// Read everything that is there and finish, instead of waiting for more. The same as `tocsin run --once`, for this
    /// source alone.
    #[serde(default)]
    pub(super) once: bool,
    /// How long a rotated or deleted file must have been quiet before it is closed, as its writer may not have noticed yet.
    #[serde(default = "five_seconds")]
    pub(super) rotate_wait: Duration,
    /// Files that were last written longer ago than this when they are found are left alone until they change. Default:
    /// none are.
    pub(super) ignore_older: Option<Duration>,
    /// How many files are held open at most. At least 1.
    #[serde(default = "one_thousand")]
    pub(super) max_open_files: usize,
    /// How often everything is looked at again, beside being told of changes by the system: what finds changes on network
    /// file systems. At least 10 ms.
    #[serde(default = "one_second")]
    pub(super) poll_interval: Duration,
    /// How long the position of a file that is gone is kept: it may come back, renamed or restored.
    #[serde(default = "seven_days")]
    pub(super) forget_after: Duration,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReadFrom {
    /// With the first record.
    #[default]
    Beginning,
    /// With what is written from now on.
    End,
}

fn one_second() -> Duration {
    Duration(time::Duration::from_secs(1))
}

fn five_seconds() -> Duration {
    Duration(time::Duration::from_secs(5))
}

fn seven_days() -> Duration {
    Duration(time::Duration::from_secs(7 * 86_400))
}

fn one_thousand() -> usize {
    1000
}

impl SourceConfig for Config {
    const NAME: &'static str = "file";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.paths.is_empty() {
            problems.push(Problem::new("paths", "no files are named").help("write paths = [\"/var/log/app.log\"]"));
        }
        for (option, patterns) in [("paths", &self.paths), ("exclude", &self.exclude)] {
            for pattern in patterns {
                if let Err(error) = Pattern::new(pattern, &PathBuf::new()) {
                    problems.push(Problem::new(option, format!("{pattern:?} is not a pattern of paths: {error}")));
                }
            }
        }
        if self.max_open_files == 0 {
            problems.push(
                Problem::new("max_open_files", "nothing can be read without an open file").help("write 1 or more"),
            );
        }
        if self.poll_interval.0 < time::Duration::from_millis(10) {
            problems.push(
                Problem::new("poll_interval", "files cannot be looked at that often").help("write at least \"10ms\""),
            );
        }
        if self.once && self.read_from == ReadFrom::End {
            problems.push(
                Problem::new("read_from", "with `once` nothing comes after the end")
                    .help("leave out `once` or `read_from`"),
            );
        }
        problems
    }

    fn is_replayable(&self) -> bool {
        true
    }

    fn names_file(&self, path: &Path, folder: &Path) -> bool {
        let is_among = |patterns: &[String]| {
            patterns.iter().any(|pattern| Pattern::new(pattern, folder).is_ok_and(|pattern| pattern.matches(path)))
        };
        is_among(&self.paths) && !is_among(&self.exclude)
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        let compile = |patterns: &[String]| {
            let compiled = patterns.iter().map(|pattern| Pattern::new(pattern, &context.folder));
            compiled.collect::<Result<_, _>>().expect("the patterns were checked")
        };
        Box::new(FileSource { paths: compile(&self.paths), exclude: compile(&self.exclude), options: self.clone() })
    }
}

struct FileSource {
    paths: Vec<Pattern>,
    exclude: Vec<Pattern>,
    options: Config,
}

impl Source for FileSource {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        // Files may come later, and become readable later: there is nothing that must be there.
        Box::pin(std::future::ready(Ok(())))
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            // Reading files blocks; one thread is enough, as the kernel reads ahead and the channel lets it work while
            // what is downstream does.
            let runtime = tokio::runtime::Handle::current();
            let worker = Worker::new(self.options, self.paths, self.exclude, context, runtime);
            match tokio::task::spawn_blocking(move || worker.run()).await {
                Ok(outcome) => outcome,
                Err(error) => Err(SourceError(format!("reading files: {error}"))),
            }
        })
    }
}
