//! Reading a data directory as a whole: its epochs, and every byte of its files. Nothing is locked or written, so it may be that
//! of a running daemon; what vanishes meanwhile is not missed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tocsin_pipeline::checkpoint::{self, CheckpointError, Epoch, epochs, read_epoch};
use tocsin_pipeline::store::{Disk, log};

/// An epoch as it was found.
pub struct Found {
    pub number: u64,
    pub epoch: Result<Epoch, String>,
}

/// What a damaged file is: it decides what can be done without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// State: an older epoch may do.
    Checkpoint,
    /// A journal of a sink: without it something may be delivered or written twice.
    Journal,
    /// Records that are nowhere else.
    Records,
}

/// A file that does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Below the data directory.
    pub path: PathBuf,
    pub part: Part,
    pub offset: u64,
    pub problem: String,
}

/// What reading everything has found.
#[derive(Debug, Default)]
pub struct Verified {
    pub files: usize,
    pub bytes: u64,
    pub damages: Vec<Damage>,
}

/// The epochs of a data directory, the newest first, each read whole and handed to `each`.
pub fn each_epoch(data_dir: &Path, mut each: impl FnMut(Found)) -> anyhow::Result<()> {
    let mut numbers = match epochs(&Disk, data_dir) {
        Ok(numbers) => numbers,
        Err(CheckpointError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound && data_dir.is_dir() => {
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        let epoch = read_epoch(&Disk, data_dir, number);
        // A daemon that is running may have deleted it since.
        let is_gone = epoch.is_err() && !data_dir.join(format!("checkpoints/manifest-{number:012}")).exists();
        if !is_gone {
            each(Found { number, epoch });
        }
    }
    Ok(())
}

/// Reads every byte of every file.
pub fn verify(data_dir: &Path) -> anyhow::Result<Verified> {
    if !data_dir.is_dir() {
        bail!("{} is no folder", data_dir.display());
    }
    let mut verified = Verified::default();
    folder(data_dir, Path::new(""), &mut verified)?;
    verified.damages.sort_by(|one, other| one.path.cmp(&other.path));
    // That every epoch has its pieces is told by reading it.
    each_epoch(data_dir, |found| {
        if let Err(problem) = found.epoch {
            let path = PathBuf::from(format!("checkpoints/manifest-{:012}", found.number));
            let is_known = |damage: &Damage| {
                damage.part == Part::Checkpoint
                    && damage.path.file_name().is_some_and(|name| problem.starts_with(&*name.to_string_lossy()))
            };
            if !verified.damages.iter().any(is_known) {
                verified.damages.push(Damage { path, part: Part::Checkpoint, offset: 0, problem });
            }
        }
    })?;
    Ok(verified)
}

/// What was put aside before is not looked at.
fn is_aside(relative: &Path) -> bool {
    relative == Path::new("damaged") || relative == Path::new("checkpoints/damaged")
}

fn folder(data_dir: &Path, relative: &Path, verified: &mut Verified) -> anyhow::Result<()> {
    if is_aside(relative) {
        return Ok(());
    }
    let absolute = data_dir.join(relative);
    let mut names = Vec::new();
    for entry in fs::read_dir(&absolute).with_context(|| format!("listing {}", absolute.display()))? {
        let entry = entry.with_context(|| format!("listing {}", absolute.display()))?;
        let below = relative.join(entry.file_name());
        if entry.path().is_dir() {
            folder(data_dir, &below, verified)?;
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    for (at, name) in names.iter().enumerate() {
        let path = relative.join(name);
        let content = match fs::read(data_dir.join(&path)) {
            Ok(content) => content,
            // Deleted by a daemon that is running.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        verified.files += 1;
        verified.bytes += content.len() as u64;
        let until = names.get(at + 1).and_then(|next| log::first_record(next));
        if let Some((part, Err((offset, problem)))) = file(relative, name, &content, until) {
            verified.damages.push(Damage { path, part, offset, problem });
        }
    }
    Ok(())
}

/// Whether a file reads: where it does not, and why.
type Outcome = Result<(), (u64, String)>;

/// Reads one file to its end; `None`: nothing is known of it.
fn file(folder: &Path, name: &str, content: &[u8], until: Option<u64>) -> Option<(Part, Outcome)> {
    let framed = |damage: tocsin_pipeline::store::Damaged| (damage.offset, damage.problem);
    if folder == Path::new("checkpoints") {
        return Some((Part::Checkpoint, checkpoint::verify(name, content)?.map_err(framed)));
    }
    if let Some(read) = log::verify(name, content, until) {
        return Some((Part::Records, read.map_err(framed)));
    }
    Some((Part::Journal, tocsin_sinks::verify(name, content)?))
}
