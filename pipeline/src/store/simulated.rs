//! A disk in memory that can lose power: for tests.
//!
//! What is written is seen at once, and is durable only once it was synced: the content of a file by syncing the file, its
//! name by syncing the folder. A crash keeps what was durable and of everything else whatever the test chooses: any subset,
//! in any order, writes torn at sectors. Operations can be made to fail. Nothing here is random by itself.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Append, Storage};
use crate::fault::{self, Defect};

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// Numbers from a seed: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(u64),
}

type Names = BTreeMap<PathBuf, Node>;
type Contents = BTreeMap<u64, Vec<u8>>;

/// Something that was done and is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Content { file: u64, offset: usize, bytes: Vec<u8> },
    Length { file: u64, length: usize },
    Name { folder: PathBuf, name: NameChange },
}

#[derive(Clone, Debug)]
enum NameChange {
    Made(PathBuf, Node),
    Removed(PathBuf),
    Renamed(PathBuf, PathBuf, Node),
}

/// An operation that is to fail.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// The number of the first operation that fails.
    pub from: u64,
    /// How many fail in a row.
    pub count: u64,
    pub kind: io::ErrorKind,
}

#[derive(Debug, Default)]
struct State {
    names: Names,
    contents: Contents,
    durable_names: Names,
    durable_contents: Contents,
    pending: Vec<Change>,
    files: u64,
    operations: u64,
    crash_at: Option<u64>,
    is_dead: bool,
    failure: Option<Failure>,
}

impl SimulatedDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power goes in the middle of the operation of this number, counted from 0: it, and all after it, fail.
    pub fn crash_at(&self, operation: u64) {
        self.state().crash_at = Some(operation);
    }

    /// The power goes now.
    pub fn crash(&self) {
        self.state().is_dead = true;
    }

    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Makes operations fail.
    pub fn fail(&self, failure: Failure) {
        self.state().failure = Some(failure);
    }

    /// How many changes are not durable.
    pub fn pending(&self) -> usize {
        self.state().pending.len()
    }

    /// The disk after the power has come back: what was durable, and of the changes that were not those named, in that
    /// order. With `tear` each sector of what was written may be missing.
    pub fn after_crash(&self, survived: &[usize], mut tear: Option<&mut Random>) -> Self {
        let state = self.state();
        let (mut names, mut contents) = (state.durable_names.clone(), state.durable_contents.clone());
        for at in survived {
            match &state.pending[*at] {
                Change::Content { file, offset, bytes } => {
                    let content = contents.entry(*file).or_default();
                    let (mut at, end) = (*offset, offset + bytes.len());
                    while at < end {
                        let next = ((at / SECTOR + 1) * SECTOR).min(end);
                        if tear.as_mut().is_none_or(|random| !random.one_in(3)) {
                            write_at(content, at, &bytes[at - offset..next - offset]);
                        }
                        at = next;
                    }
                }
                Change::Length { file, length } => contents.entry(*file).or_default().resize(*length, 0),
                Change::Name { name, .. } => rename(&mut names, name),
            }
        }
        // A folder that is gone takes what is in it with it.
        let folders: Vec<PathBuf> =
            names.iter().filter(|(_, node)| **node == Node::Folder).map(|(path, _)| path.clone()).collect();
        names.retain(|path, _| {
            path.ancestors().skip(1).all(|above| is_root(above) || folders.iter().any(|f| f == above))
        });
        for node in names.values() {
            if let Node::File(file) = node {
                contents.entry(*file).or_default();
            }
        }
        Self(Arc::new(Mutex::new(State {
            durable_names: names.clone(),
            durable_contents: contents.clone(),
            names,
            contents,
            files: state.files,
            ..State::default()
        })))
    }

    /// The disk as every process sees it, all of it durable: the end of a process alone loses nothing.
    pub fn after_kill(&self) -> Self {
        let state = self.state();
        Self(Arc::new(Mutex::new(State {
            names: state.names.clone(),
            contents: state.contents.clone(),
            durable_names: state.durable_names.clone(),
            durable_contents: state.durable_contents.clone(),
            pending: state.pending.clone(),
            files: state.files,
            ..State::default()
        })))
    }

    /// The files with their content.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.state();
        let files = state.names.iter().filter_map(|(path, node)| match node {
            Node::File(file) => Some((path.clone(), state.contents[file].clone())),
            Node::Folder => None,
        });
        files.collect()
    }

    /// Puts other bytes in the place of a file's content, durably: what a failing disk does.
    pub fn replace(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state();
        if let Some(Node::File(file)) = state.names.get(path).copied() {
            state.contents.insert(file, content.clone());
            state.durable_contents.insert(file, content);
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/")
}

fn write_at(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

fn rename(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Made(path, node) => drop(names.insert(path.clone(), *node)),
        NameChange::Removed(path) => drop(names.remove(path)),
        NameChange::Renamed(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the power is gone")
}

impl State {
    /// Counts an operation that leaves `changes` behind; fails if it is to, or if it is the last thing that happens.
    fn operate(&mut self, changes: Vec<Change>) -> io::Result<()> {
        if self.is_dead {
            return Err(dead());
        }
        let number = self.operations;
        self.operations += 1;
        if self.crash_at == Some(number) {
            // Whether an operation that the power went in took place is for the test to choose, like any other.
            self.pending.extend(changes);
            self.is_dead = true;
            return Err(dead());
        }
        if let Some(failure) =
            self.failure.filter(|failure| (failure.from..failure.from + failure.count).contains(&number))
        {
            // A write that fails may have done a part of its work.
            if let Some(Change::Content { file, offset, bytes }) = changes.into_iter().next() {
                let half = bytes[..bytes.len() / 2].to_vec();
                self.apply(Change::Content { file, offset, bytes: half });
            }
            return Err(failure.kind.into());
        }
        for change in changes {
            self.apply(change);
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match &change {
            Change::Content { file, offset, bytes } => {
                write_at(self.contents.entry(*file).or_default(), *offset, bytes);
            }
            Change::Length { file, length } => self.contents.entry(*file).or_default().resize(*length, 0),
            Change::Name { name, .. } => rename(&mut self.names, name),
        }
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(file)) => Ok(*file),
            Some(Node::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn folder(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = path.parent().unwrap_or(Path::new(""));
        match self.names.get(folder) {
            _ if is_root(folder) => Ok(folder.to_owned()),
            Some(Node::Folder) => Ok(folder.to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens a file for writing, making it if there is none.
    fn open(&mut self, path: &Path) -> io::Result<u64> {
        let folder = self.folder(path)?;
        match self.file(path) {
            Ok(file) => {
                self.operate(Vec::new())?;
                Ok(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files += 1;
                let file = self.files;
                let name = NameChange::Made(path.to_owned(), Node::File(file));
                self.operate(vec![Change::Name { folder, name }])?;
                self.contents.entry(file).or_default();
                Ok(file)
            }
            Err(error) => Err(error),
        }
    }

    fn sync(&mut self, file: u64) -> io::Result<()> {
        if fault::is_planted(Defect::NoFileSync) {
            return Ok(());
        }
        let concerns = |change: &Change| match change {
            Change::Content { file: of, .. } | Change::Length { file: of, .. } => *of == file,
            Change::Name { .. } => false,
        };
        let result = self.operate(Vec::new());
        if self.is_dead {
            return result;
        }
        let (concerned, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(concerns);
        self.pending = others;
        // After a failed fsync the pages count as clean: what was in them never reaches the disk.
        if result.is_ok() {
            for change in concerned {
                let content = self.durable_contents.entry(file).or_default();
                match change {
                    Change::Content { offset, bytes, .. } => write_at(content, offset, &bytes),
                    Change::Length { length, .. } => content.resize(length, 0),
                    Change::Name { .. } => unreachable!("names are not content"),
                }
            }
        }
        result
    }

    fn sync_names(&mut self, path: &Path) -> io::Result<()> {
        if fault::is_planted(Defect::NoFolderSync) {
            return Ok(());
        }
        self.operate(Vec::new())?;
        let (concerned, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|change| matches!(change, Change::Name { folder, .. } if folder == path));
        self.pending = others;
        for change in concerned {
            let Change::Name { name, .. } = change else { unreachable!("only names are concerned") };
            rename(&mut self.durable_names, &name);
        }
        Ok(())
    }
}

impl Storage for SimulatedDisk {
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if self.state().file(path).is_ok() {
            self.remove(path)?;
        }
        self.create_new(path, content)
    }

    fn create_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.file(path).is_ok() {
            return Err(if state.is_dead { dead() } else { io::ErrorKind::AlreadyExists.into() });
        }
        let file = state.open(path)?;
        // In two writes, so that a crash can come between.
        let (first, second) = content.split_at(content.len() / 2);
        for (offset, bytes) in [(0, first), (first.len(), second)] {
            state.operate(vec![Change::Content { file, offset, bytes: bytes.to_vec() }])?;
        }
        match state.sync(file) {
            Err(_) if fault::is_planted(Defect::RetriedSync) => state.sync(file),
            result => result,
        }
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Append>> {
        let file = self.state().open(path)?;
        Ok(Box::new(Appended { disk: self.clone(), file }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        if state.is_dead {
            return Err(dead());
        }
        Ok(state.contents[&state.file(path)?].clone())
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let content = self.read(path)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        Ok(content[from..from.saturating_add(length).min(content.len())].to_vec())
    }

    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let file = state.file(path)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        state.operate(vec![Change::Length { file, length }])?;
        state.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = Node::File(state.file(from)?);
        let folder = state.folder(to)?;
        let name = NameChange::Renamed(from.to_owned(), to.to_owned(), node);
        state.operate(vec![Change::Name { folder, name }])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.file(path)?;
        let folder = state.folder(path)?;
        state.operate(vec![Change::Name { folder, name: NameChange::Removed(path.to_owned()) }])
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.state().sync_names(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if state.is_dead {
            return Err(dead());
        }
        let files = state.names.iter().filter(|(path, node)| path.parent() == Some(folder) && **node != Node::Folder);
        Ok(files.filter_map(|(path, _)| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn create_dir(&self, folder: &Path) -> io::Result<()> {
        if is_root(folder) || self.state().names.get(folder) == Some(&Node::Folder) {
            return Ok(());
        }
        let above = folder.parent().unwrap_or(Path::new("")).to_owned();
        self.create_dir(&above)?;
        let mut state = self.state();
        let name = NameChange::Made(folder.to_owned(), Node::Folder);
        state.operate(vec![Change::Name { folder: above.clone(), name }])?;
        state.sync_names(&above)
    }
}

#[derive(Debug)]
struct Appended {
    disk: SimulatedDisk,
    file: u64,
}

impl Append for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let offset = state.contents.get(&self.file).map_or(0, Vec::len);
        state.operate(vec![Change::Content { file: self.file, offset, bytes: bytes.to_vec() }])
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.state().sync(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(disk: &SimulatedDisk, path: &str) -> Option<String> {
        disk.read(Path::new(path)).ok().map(|content| String::from_utf8(content).unwrap())
    }

    #[test]
    fn a_file_survives_once_it_and_its_folder_are_synced() {
        let disk = SimulatedDisk::default();
        disk.create_dir(Path::new("/d")).unwrap();
        disk.write_new(Path::new("/d/a"), b"content").unwrap();
        assert_eq!(text(&disk, "/d/a").unwrap(), "content");
        assert_eq!(text(&disk.after_crash(&[], None), "/d/a"), None, "its name was not durable");
        assert_eq!(
            text(&disk.after_crash(&[0], None), "/d/a").unwrap(),
            "content",
            "it may have been written by chance"
        );
        disk.sync_dir(Path::new("/d")).unwrap();
        assert_eq!(text(&disk.after_crash(&[], None), "/d/a").unwrap(), "content");
    }

    #[test]
    fn what_was_appended_and_not_synced_may_be_there_in_part() {
        let disk = SimulatedDisk::default();
        let mut file = disk.append(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write(b"one ").unwrap();
        file.sync().unwrap();
        file.write(b"two ").unwrap();
        file.write(b"three").unwrap();
        assert_eq!(text(&disk.after_kill(), "/a").unwrap(), "one two three");
        assert_eq!(text(&disk.after_crash(&[], None), "/a").unwrap(), "one ");
        assert_eq!(text(&disk.after_crash(&[0], None), "/a").unwrap(), "one two ");
        assert_eq!(text(&disk.after_crash(&[1], None), "/a").unwrap(), "one \0\0\0\0three");
    }

    #[test]
    fn what_a_failed_fsync_has_dropped_never_reaches_the_disk() {
        let disk = SimulatedDisk::default();
        let mut file = disk.append(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write(b"lost").unwrap();
        disk.fail(Failure { from: disk.operations(), count: 1, kind: io::ErrorKind::Other });
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(text(&disk, "/a").unwrap(), "lost");
        assert_eq!(text(&disk.after_crash(&[], None), "/a").unwrap(), "");
    }

    #[test]
    fn nothing_works_after_the_power_is_gone() {
        let disk = SimulatedDisk::default();
        disk.crash_at(1);
        assert!(disk.write_new(Path::new("/a"), b"content").is_err());
        assert!(disk.is_dead() && disk.read(Path::new("/a")).is_err());
        assert_eq!(disk.pending(), 2);
    }
}
