//! Files: exactly once, whatever happens to the daemon.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod ledger;
mod output;
mod path;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types;
use tocsin_pipeline::sink::{Sink, SinkContext, SinkError, SinkState};

use crate::encoding::{self, Encoder};
use output::Compression;
use path::{Parsed, PathTemplate};
use writer::{Writer, recover};

/// Appends records to files, one record a line.
///
/// `path` may hold dates (`%Y-%m-%d`, of the record's event time, in UTC) and fields (`{{ host }}`): each record goes to the
/// file that its own path names. What a field holds cannot leave the folder: everything but letters, digits, `_`, `-` and
/// inner dots is percent-encoded, long names are cut and given a hash, a missing field is `_`, and symbolic links below the
/// literal part of the path are not followed. A file that is moved or deleted from outside is made again within a
/// checkpoint interval.
///
/// What has come is written as soon as nothing more is waiting, so a reader sees a line within milliseconds; compressed
/// files are written at each checkpoint. A disk that is full makes the sink wait, and with it the pipeline; nothing is
/// dropped.
///
/// **Rotation:** with `rotate`, files are named `path.1`, `path.2`, …; the greatest number is the one being written. No
/// file is ever renamed.
///
/// **State:** the names and lengths of the open files; and in the data_dir a journal of files opened since the checkpoint.
///
/// **Late events:** written like any other, into the file of their own event time.
///
/// **After a crash:** files are cut back to the last checkpoint and the records after it are written again: each stands in
/// the files exactly once, if the source can be read again. A reader that follows the file sees what is cut off. The sink
/// refuses to start when a file has become shorter than the checkpoint says, or is another file of the same name.
///
/// ```toml
/// [sinks.archive]
/// type = "file"
/// inputs = ["server_errors"]
/// path = "/var/log/tocsin/errors-%Y-%m-%d.ndjson"
/// rotate = { size = "100MiB", keep = 10 }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to write: a path with dates and fields. What is literal up to the last `/` before them is the folder.
    path: String,
    /// How a record is written: `"json"`, `"logfmt"`, `"text"`, `"raw"`, `"pretty"` or `{ template = "…" }`. Default: as it
    /// came in; as JSON where an operator changed it.
    encoding: Option<encoding::Config>,
    /// `"none"`, `"gzip"` or `"zstd"`. A gzip member or zstd frame ends at every checkpoint; readers take them as one file.
    #[serde(default)]
    compression: Compression,
    /// When to begin a new file under the same path. Default: never.
    rotate: Option<Rotation>,
    /// How many files are open at once; the one unused for longest is closed for another.
    #[serde(default = "two_hundred_and_fifty_six")]
    max_open_files: usize,
    /// A file not written to for so long is closed.
    #[serde(default = "five_minutes")]
    idle_close: types::Duration,
    /// The permissions of files that are made, in octal, less the daemon's umask.
    #[serde(default = "owner_and_group")]
    mode: String,
    /// Whether each checkpoint waits until the files are on the disk. `false` is quicker on slow disks: a power cut may
    /// then lose what the system had not written yet, a crash of the daemon alone still loses nothing.
    #[serde(default = "yes")]
    sync: bool,
}

/// When a new file begins.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// A new file begins with the first record after this size is reached.
    size: Option<types::ByteSize>,
    /// A new file begins with the first record whose event time is in another stretch of this length; stretches are
    /// counted from 1970. Late records go into the file being written.
    every: Option<types::Duration>,
    /// How many files are kept beside the one being written; older ones are deleted. Default: all.
    keep: Option<u64>,
}

fn two_hundred_and_fifty_six() -> usize {
    256
}

fn five_minutes() -> types::Duration {
    types::Duration(Duration::from_secs(300))
}

fn owner_and_group() -> String {
    "0640".to_owned()
}

fn yes() -> bool {
    true
}

/// The permissions that an octal number stands for.
fn parse_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok().filter(|mode| *mode <= 0o777)
}

impl SinkConfig for Config {
    const NAME: &'static str = "file";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = encoding::problems(self.encoding.as_ref());
        if let Err(error) = Parsed::parse(&self.path) {
            problems.push(Problem::new("path", error.message).within(error.within));
        }
        if parse_mode(&self.mode).is_none() {
            problems.push(
                Problem::new("mode", format!("{:?} are no permissions", self.mode)).help("write \"0640\" or the like"),
            );
        }
        if self.max_open_files == 0 {
            problems.push(Problem::new("max_open_files", "must be at least 1"));
        }
        if let Some(rotation) = &self.rotate {
            if rotation.size.is_none() && rotation.every.is_none() {
                problems.push(Problem::new("rotate", "needs `size` or `every`"));
            }
            if rotation.size.is_some_and(|size| size.0 == 0) {
                problems.push(Problem::new("rotate.size", "must be at least 1 byte"));
            }
            if rotation.every.is_some_and(|every| every.0 < Duration::from_secs(1)) {
                problems.push(Problem::new("rotate.every", "must be at least \"1s\""));
            }
        }
        problems
    }

    fn needs_time(&self) -> bool {
        Parsed::parse(&self.path).is_ok_and(|path| path.has_time())
            || self.rotate.is_some_and(|rotation| rotation.every.is_some())
    }

    fn is_movable(&self) -> bool {
        false
    }

    fn guarantee(&self) -> &'static str {
        "exactly once"
    }

    /// The files are known by their names below the folder.
    fn state_shape(&self) -> Json {
        json!({ "folder": Parsed::parse(&self.path).map(|path| path.folder().to_owned()).unwrap_or_default() })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let parsed = Parsed::parse(&self.path).expect("`problems` has parsed it before");
        Box::new(FileSink {
            path: parsed.intern(context.paths, &context.folder),
            settings: Arc::new(Settings {
                encoder: Encoder::new(self.encoding.as_ref()),
                compression: self.compression,
                rotation: self.rotate,
                max_open_files: self.max_open_files,
                idle_close: self.idle_close.0,
                mode: parse_mode(&self.mode).expect("`problems` has parsed it before"),
                sync: self.sync,
            }),
            recovered: None,
        })
    }
}

/// What of the options the writer needs.
struct Settings {
    encoder: Encoder,
    compression: Compression,
    rotation: Option<Rotation>,
    max_open_files: usize,
    idle_close: Duration,
    mode: u32,
    sync: bool,
}

struct FileSink {
    path: PathTemplate,
    settings: Arc<Settings>,
    /// What `open` found, for `run`.
    recovered: Option<writer::Recovered>,
}

impl Sink for FileSink {
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let folder = self.path.folder().to_owned();
            let (storage, data_dir) = (Arc::clone(&context.storage), context.data_dir.clone());
            let restored = context.restored.clone();
            let keeps_all = self.settings.rotation.is_none_or(|rotation| rotation.keep.is_none());
            let recovered = tokio::task::spawn_blocking(move || {
                recover(&folder, storage, data_dir.as_deref(), restored.as_deref(), keeps_all)
            });
            self.recovered = Some(recovered.await.map_err(|error| SinkError(error.to_string()))??);
            Ok(())
        })
    }

    /// Files are written on a thread of their own: a disk can take its time, and the others must not wait for it.
    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            let runtime = tokio::runtime::Handle::current();
            let recovered = self.recovered.expect("a sink is opened before it runs");
            let writer = Writer::new(self.path, self.settings, recovered, context, runtime);
            tokio::task::spawn_blocking(move || writer.run())
                .await
                .unwrap_or_else(|error| Err(SinkError(format!("the writer stopped: {error}"))))
        })
    }
}

#[cfg(test)]
mod tests;
