//! What must be known after a crash to cut files back to a checkpoint.
//!
//! The state in a checkpoint lists the files that were open at its barrier, with their lengths. Every other file may have
//! been opened, or made, after it; those are in the journal: a line, made durable before the first byte is written to the
//! file, that says how long the file was. Cutting back is then a pure function of the two.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tocsin_pipeline::fault;
use tocsin_pipeline::store::{Append, Storage};

use super::path::Identity;

/// The name of the file.
pub(crate) const NAME: &str = "opened";

/// How many checkpoints the daemon may go back; one more than it keeps.
const EPOCHS_KEPT: usize = 4;

/// So many lines may be of no use before the journal is written anew.
const LINES_IDLE: usize = 1024;

/// A file that was open at a barrier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenFile {
    /// Its path below the folder, without the sequence number.
    pub(super) path: String,
    /// 0 where files are not rotated.
    pub(super) sequence: u64,
    /// Which stretch of event time it holds, where files are rotated by time.
    pub(super) period: Option<i64>,
    #[serde(flatten)]
    pub(super) identity: Identity,
    pub(super) length: u64,
}

impl OpenFile {
    pub(super) fn name(&self) -> String {
        name(&self.path, self.sequence)
    }
}

/// The name of a file of a sequence.
pub(super) fn name(path: &str, sequence: u64) -> String {
    if sequence == 0 { path.to_owned() } else { format!("{path}.{sequence}") }
}

/// What the sink says at a barrier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) version: u16,
    pub(super) epoch: u64,
    pub(super) files: Vec<OpenFile>,
}

/// The version of [`State`] that is written and read.
pub(super) const STATE_VERSION: u16 = 1;

/// A line of the journal: a file that was opened after the barrier of `epoch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opened {
    pub(super) epoch: u64,
    pub(super) name: String,
    /// Which file, and how long; `None` if it was about to be made.
    pub(super) before: Option<(Identity, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Opened(Opened),
    /// As one line, so that a write that was cut short leaves one damaged line at the end and never one in the middle.
    OpenedTogether(Vec<Opened>),
    /// From here on there is a checkpoint to start from.
    Committed(u64),
}

/// What is to be done to a file after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing of it belongs to the checkpoint.
    Remove { name: String },
    /// Only its first `length` bytes belong to the checkpoint.
    Cut {
        name: String,
        identity: Identity,
        length: u64,
        /// The name was used again after the file had been moved away, so another file under it is no surprise and goes.
        was_opened_again: bool,
    },
}

/// What cuts all files back to `state`; without one, to before the first record was written, if there was no checkpoint.
pub(super) fn recovery(state: Option<&State>, journal: &Journal) -> Vec<Step> {
    if state.is_none() && journal.has_committed {
        // The checkpoints were taken away. What was written before is not written again by this start, so it stays.
        return Vec::new();
    }
    let epoch = state.map_or(0, |state| state.epoch);
    let mut opened: BTreeMap<&str, &Opened> = BTreeMap::new();
    for entry in journal.entries.iter().filter(|entry| entry.epoch >= epoch) {
        // The earliest says how it was at the barrier.
        opened.entry(&entry.name).or_insert(entry);
    }
    let mut steps = Vec::new();
    for file in state.map_or(&[][..], |state| &state.files) {
        let name = file.name();
        let was_opened_again = opened.remove(&*name).is_some();
        steps.push(Step::Cut { name, identity: file.identity, length: file.length, was_opened_again });
    }
    steps.extend(opened.into_values().map(|entry| match entry.before {
        None => Step::Remove { name: entry.name.clone() },
        Some((identity, length)) => Step::Cut { name: entry.name.clone(), identity, length, was_opened_again: false },
    }));
    steps
}

/// Where the journal is kept.
#[derive(Debug)]
struct Place {
    storage: Arc<dyn Storage>,
    path: PathBuf,
}

/// The journal: in memory what recovery to any kept checkpoint needs, on disk at least that.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// `None` where there is no data_dir: then there are no checkpoints to go back to either.
    place: Option<Place>,
    /// `None` once a write or an fsync has failed: the file holds nobody knows what, and only writing it anew helps.
    file: Option<Box<dyn Append>>,
    entries: Vec<Opened>,
    has_committed: bool,
    /// The names with an entry of the current epoch: they need no other.
    current: BTreeSet<String>,
    epoch: u64,
    commits: VecDeque<u64>,
    /// How many lines the file has.
    lines: usize,
}

impl Journal {
    /// Reads the journal of a folder.
    pub(super) fn open(storage: Arc<dyn Storage>, folder: Option<&Path>) -> io::Result<Self> {
        let Some(folder) = folder else { return Ok(Self::default()) };
        let path = folder.join(NAME);
        let text = match storage.read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let lines = read(&text).map_err(|at| {
            let told = format!(
                "the line at byte {at} is damaged; `tocsin recover` moves the journal aside, after which what was written since the \
                 checkpoint may stand in the files twice"
            );
            io::Error::new(io::ErrorKind::InvalidData, told)
        })?;
        let mut journal = Self { place: Some(Place { storage, path }), ..Self::default() };
        for line in lines {
            match line {
                Line::Opened(entry) => journal.entries.push(entry),
                Line::OpenedTogether(entries) => journal.entries.extend(entries),
                Line::Committed(_) => journal.has_committed = true,
            }
        }
        Ok(journal)
    }

    /// Recovery is done: begins anew from the checkpoint of `epoch`.
    pub(super) fn recovered(&mut self, epoch: u64) -> io::Result<()> {
        self.entries.retain(|entry| entry.epoch < epoch);
        self.epoch = epoch;
        self.commits.extend((epoch > 0).then_some(epoch));
        self.rewrite()
    }

    /// The barrier of `epoch` has been prepared: later openings belong after it.
    pub(super) fn barrier(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.current.clear();
    }

    /// The checkpoint of `epoch` is complete: forgets what no kept checkpoint needs. An error here loses nothing, since
    /// more lines than needed do no harm.
    pub(super) fn committed(&mut self, epoch: u64) -> io::Result<()> {
        self.commits.push_back(epoch);
        if self.commits.len() > EPOCHS_KEPT {
            self.commits.pop_front();
            let oldest = self.commits[0];
            self.entries.retain(|entry| entry.epoch >= oldest);
        }
        let is_first = !std::mem::replace(&mut self.has_committed, true);
        if is_first {
            self.append(&Line::Committed(epoch))
        } else if self.lines > self.entries.len() + LINES_IDLE {
            self.rewrite()
        } else {
            Ok(())
        }
    }

    /// Whether a file about to be written has a line already.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.place.is_none() || self.current.contains(name)
    }

    /// Makes it durable that these files are about to be written.
    pub(super) fn opened(&mut self, files: Vec<(String, Option<(Identity, u64)>)>) -> io::Result<()> {
        if self.place.is_none() || files.is_empty() {
            return Ok(());
        }
        let entries: Vec<_> =
            files.into_iter().map(|(name, before)| Opened { epoch: self.epoch, name, before }).collect();
        let line = Line::OpenedTogether(entries.clone());
        let known = self.entries.len();
        self.entries.extend(entries.iter().cloned());
        let written = match self.append(&line) {
            Ok(()) => Ok(()),
            // What became of the file is not known: a new one, from memory.
            Err(_) => self.rewrite(),
        };
        match written {
            Ok(()) => self.current.extend(entries.into_iter().map(|entry| entry.name)),
            Err(_) => self.entries.truncate(known),
        }
        written
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = Vec::new();
        write_line(line, &mut text);
        // Taken out, so that a failure leaves none behind.
        let Some(mut file) = self.file.take() else { return Err(io::Error::other("the journal is not open")) };
        fault::point("ledger.write");
        file.write(&text)?;
        file.sync()?;
        fault::point("ledger.written");
        self.lines += 1;
        self.file = Some(file);
        Ok(())
    }

    /// Writes the journal anew beside the old one and puts it in its place.
    fn rewrite(&mut self) -> io::Result<()> {
        let Some(Place { storage, path }) = &self.place else { return Ok(()) };
        // Once the new one has its name, nothing may be written to the old one any more, whatever fails after that.
        self.file = None;
        let mut text = Vec::new();
        for entry in &self.entries {
            write_line(&Line::Opened(entry.clone()), &mut text);
        }
        if self.has_committed {
            write_line(&Line::Committed(self.epoch), &mut text);
        }
        let new = path.with_extension("new");
        storage.write_new(&new, &text)?;
        fault::point("ledger.rewrite");
        storage.rename(&new, path)?;
        fault::point("ledger.renamed");
        if let Some(folder) = path.parent() {
            storage.sync_dir(folder)?;
        }
        self.file = Some(storage.append(path)?);
        self.lines = self.entries.len() + 1;
        Ok(())
    }
}

/// Reads the lines of a journal; the error is where one is damaged.
pub(super) fn read(text: &[u8]) -> Result<Vec<Line>, u64> {
    let mut lines = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match read_line(line) {
            Some(line) => lines.push(line),
            // A line that was being written when the daemon died: nothing was written to its file yet.
            None if at + line.len() == text.len() => {}
            None => return Err(at as u64),
        }
        at += line.len();
    }
    Ok(lines)
}

/// Where a journal is damaged, and how.
pub(crate) fn verify(text: &[u8]) -> Result<(), (u64, String)> {
    read(text).map(drop).map_err(|at| (at, "a line that does not read".to_owned()))
}

/// A line is a checksum, a space and JSON.
pub(super) fn write_line(line: &Line, out: &mut Vec<u8>) {
    append_checked(&serde_json::to_vec(line).expect("lines have string keys"), out);
}

pub(super) fn append_checked(json: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&blake3::hash(json).to_hex().as_bytes()[..16]);
    out.push(b' ');
    out.extend_from_slice(json);
    out.push(b'\n');
}

fn read_line(line: &[u8]) -> Option<Line> {
    let line = line.strip_suffix(b"\n")?;
    let (checksum, json) = (line.get(..16)?, line.get(17..)?);
    if &blake3::hash(json).to_hex().as_bytes()[..16] != checksum {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use tocsin_pipeline::store::Disk;
    use tocsin_pipeline::store::simulated::{Random, SimulatedDisk};

    use super::*;
    use crate::conformance::{Call, Failing};

    fn open(folder: Option<&Path>) -> io::Result<Journal> {
        Journal::open(Arc::new(Disk), folder)
    }

    const SOME: Identity = Identity { dev: 1, ino: 2 };

    fn file(path: &str, length: u64) -> OpenFile {
        OpenFile { path: path.to_owned(), sequence: 0, period: None, identity: SOME, length }
    }

    fn state(epoch: u64, files: &[(&str, u64)]) -> State {
        State { version: 1, epoch, files: files.iter().map(|(path, length)| file(path, *length)).collect() }
    }

    fn cut(name: &str, length: u64, was_opened_again: bool) -> Step {
        Step::Cut { name: name.to_owned(), identity: SOME, length, was_opened_again }
    }

    fn remove(name: &str) -> Step {
        Step::Remove { name: name.to_owned() }
    }

    /// A journal with files opened in epochs 0 to 2.
    fn journal(folder: &Path) -> Journal {
        let mut journal = open(Some(folder)).unwrap();
        journal.recovered(0).unwrap();
        journal.opened(vec![("a".into(), None)]).unwrap();
        journal.barrier(1);
        journal.opened(vec![("b".into(), None), ("c".into(), Some((SOME, 7)))]).unwrap();
        journal.barrier(2);
        journal.opened(vec![("b".into(), Some((SOME, 5)))]).unwrap();
        journal
    }

    #[test]
    fn each_checkpoint_is_gone_back_to_by_its_own_steps() {
        let folder = tempfile::tempdir().unwrap();
        journal(folder.path());
        let journal = open(Some(folder.path())).unwrap();
        assert_eq!(recovery(None, &journal), [remove("a"), remove("b"), cut("c", 7, false)]);
        assert_eq!(
            recovery(Some(&state(1, &[("a", 3)])), &journal),
            [cut("a", 3, false), remove("b"), cut("c", 7, false)]
        );
        assert_eq!(recovery(Some(&state(2, &[("c", 9)])), &journal), [cut("c", 9, false), cut("b", 5, false)]);
        assert_eq!(recovery(Some(&state(2, &[("b", 4)])), &journal), [cut("b", 4, true)]);
    }

    #[test]
    fn files_stay_when_the_checkpoints_were_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        journal(folder.path()).committed(2).unwrap();
        assert_eq!(recovery(None, &open(Some(folder.path())).unwrap()), []);
    }

    #[test]
    fn a_torn_last_line_is_forgotten_and_a_damaged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        journal(folder.path());
        let path = folder.path().join("opened");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        assert_eq!(open(Some(folder.path())).unwrap().entries.len(), 3);
        // The disk has written the end of the line and not its middle.
        let mut torn = text.clone();
        let middle = text.len() - 30;
        torn[middle..middle + 10].fill(0);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(open(Some(folder.path())).unwrap().entries.len(), 3);
        let mut damaged = text;
        damaged[20] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let error = open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.starts_with("the line at byte 0 is damaged; `tocsin recover`"), "{error}");
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = journal(folder.path());
        for epoch in 3..4000 {
            journal.barrier(epoch);
            journal.opened(vec![("d".into(), None)]).unwrap();
            journal.committed(epoch).unwrap();
        }
        assert_eq!(journal.entries.len(), EPOCHS_KEPT);
        assert!(journal.lines <= EPOCHS_KEPT + LINES_IDLE + 1, "{}", journal.lines);
        assert_eq!(open(Some(folder.path())).unwrap().entries.last(), journal.entries.last());
    }

    #[test]
    fn a_file_has_one_line_an_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = journal(folder.path());
        assert!(journal.knows("b") && !journal.knows("c"));
        journal.barrier(3);
        assert!(!journal.knows("b"));
    }

    #[test]
    fn no_line_goes_to_a_file_that_has_lost_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(Failing::default());
        let mut journal = Journal::open(storage.clone(), Some(folder.path())).unwrap();
        journal.recovered(0).unwrap();
        // The folder could not be synced, but the name has gone over to the new file.
        storage.fail(Some(Call::SyncDir));
        assert!(journal.rewrite().is_err());
        storage.fail(None);
        journal.opened(vec![("a".into(), None)]).unwrap();
        assert_eq!(open(Some(folder.path())).unwrap().entries.len(), 1);
        for failing in [Call::Write, Call::Sync] {
            storage.fail(Some(failing));
            assert!(journal.opened(vec![("b".into(), None)]).is_ok(), "a new file takes it");
            storage.fail(None);
            journal.opened(vec![("c".into(), None)]).unwrap();
        }
        assert_eq!(open(Some(folder.path())).unwrap().entries.len(), 5);
    }

    #[test]
    fn after_a_power_cut_at_any_operation_it_knows_every_file_that_was_opened() {
        for seed in 0..2000 {
            let mut random = Random(seed);
            let (disk, folder) = (SimulatedDisk::default(), Path::new("/data"));
            disk.create_dir(folder).unwrap();
            disk.crash_at(disk.operations() + random.below(40));
            let mut known = Vec::new();
            let mut live = || -> io::Result<()> {
                let mut journal = Journal::open(Arc::new(disk.clone()), Some(folder))?;
                journal.recovered(0)?;
                for epoch in 0.. {
                    let names = (0..1 + random.below(6)).map(|file| format!("{epoch}-{file}-{}", "x".repeat(200)));
                    let names: Vec<_> = names.collect();
                    journal.opened(names.iter().map(|name| (name.clone(), None)).collect())?;
                    known.extend(names);
                    if random.below(3) == 0 {
                        journal.rewrite()?;
                    }
                }
                Ok(())
            };
            live().expect_err("the power goes");
            let mut survived: Vec<usize> = (0..disk.pending()).filter(|_| random.below(2) == 0).collect();
            random.shuffle(&mut survived);
            let disk = disk.after_crash(&survived, Some(&mut random));
            let journal =
                Journal::open(Arc::new(disk), Some(folder)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let found: BTreeSet<_> = journal.entries.iter().map(|entry| &entry.name).collect();
            assert!(known.iter().all(|name| found.contains(name)), "seed {seed}");
        }
    }
}
