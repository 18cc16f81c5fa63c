//! The log against a model, on a disk that fails and whose power is cut at any operation.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// A file: what is on the platters, and what programs read.
#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Whether its name survives a power cut.
    is_named: bool,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    /// How many operations that change something still work.
    works: Option<u32>,
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<State>>);

impl Memory {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        match &mut state.works {
            Some(0) => return Err(io::Error::other("the disk is broken")),
            Some(works) => *works -= 1,
            None => {}
        }
        Ok(change(&mut state))
    }

    fn fail_after(&self, operations: Option<u32>) {
        self.0.lock().unwrap().works = operations;
    }

    /// Cuts the power: of what was not synced a part is there, one byte of it wrong if `is_torn`.
    fn cut_power(&self, kept: usize, is_torn: bool) {
        let mut state = self.0.lock().unwrap();
        state.works = None;
        state.files.retain(|_, file| file.is_named);
        for file in state.files.values_mut() {
            let durable = file.durable.len();
            if file.current.len() <= durable {
                file.current = file.durable.clone();
                continue;
            }
            file.current.truncate(durable + kept % (file.current.len() - durable + 1));
            if is_torn && file.current.len() > durable {
                let at = durable + kept % (file.current.len() - durable);
                file.current[at] ^= 0x40;
            }
            file.durable = file.current.clone();
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().unwrap().files.keys().cloned().collect()
    }
}

#[derive(Debug)]
struct Appending(Memory, PathBuf);

impl Append for Appending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let path = &self.1;
        let whole = self.0.change(|state| state.files.get_mut(path).unwrap().current.extend_from_slice(bytes));
        if whole.is_err() {
            // A part of it, as a full disk does.
            let mut state = self.0.0.lock().unwrap();
            state.files.get_mut(path).unwrap().current.extend_from_slice(&bytes[..bytes.len() / 2]);
        }
        whole
    }

    fn sync(&mut self) -> io::Result<()> {
        let path = &self.1;
        self.0.change(|state| {
            let file = state.files.get_mut(path).unwrap();
            file.durable = file.current.clone();
        })
    }
}

impl Storage for Memory {
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let file = File { durable: content.to_vec(), current: content.to_vec(), is_named: false };
        self.change(|state| drop(state.files.insert(path.to_owned(), file)))
    }

    fn create_new(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        unreachable!("a log takes nothing before others")
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Append>> {
        Ok(Box::new(Appending(self.clone(), path.to_owned())))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.0.lock().unwrap();
        state.files.get(path).map(|file| file.current.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(self.read(path)?.into_iter().skip(offset as usize).take(length).collect())
    }

    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        self.change(|state| {
            let file = state.files.get_mut(path).unwrap();
            file.current.truncate(length as usize);
            file.durable = file.current.clone();
        })
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        unreachable!("a log renames nothing")
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state| drop(state.files.remove(path)))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.change(|state| state.files.values_mut().for_each(|file| file.is_named = true))
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(self.paths().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

const SMALL: u64 = 200;

fn open(disk: &Memory) -> Log {
    Log::open(Arc::new(disk.clone()), Path::new("log"), SMALL, 0).unwrap().0
}

/// The records from `position` on, as text.
fn read(log: &Log, position: u64) -> Vec<(u64, String)> {
    let mut cursor = Log::cursor(position);
    std::iter::from_fn(|| log.next(&mut cursor).unwrap())
        .map(|(position, payload)| (position, String::from_utf8(payload).unwrap()))
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Sync,
    GiveUp,
    /// Everything below this part of the log is deleted.
    Trim(u8),
    Reopen,
    CutPower(usize, bool),
    FailAfter(u32),
    Mend,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..90).prop_map(Step::Append),
        4 => Just(Step::Sync),
        1 => Just(Step::GiveUp),
        1 => any::<u8>().prop_map(Step::Trim),
        1 => Just(Step::Reopen),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(kept, torn)| Step::CutPower(kept, torn)),
        1 => (0u32..5).prop_map(Step::FailAfter),
        1 => Just(Step::Mend),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was synced is read back, in order, after anything; what was not may be there, but then as it was written.
    #[test]
    fn what_was_made_durable_is_read_back(steps in steps()) {
        let disk = Memory::default();
        let mut log = open(&disk);
        // What must be read, and what was added at a position at any time: one that was given up may be back after a restart.
        let (mut all, mut durable, mut first) = (BTreeMap::<u64, String>::new(), 0, 0);
        let mut added = std::collections::BTreeSet::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(length) => {
                    let text = format!("{number}{}", "x".repeat(length));
                    let position = log.append(&[&text.as_bytes()[..1], &text.as_bytes()[1..]]);
                    added.insert((position, text.clone()));
                    all.insert(position, text);
                }
                Step::Sync => match log.sync() {
                    Ok(()) => durable = log.end(),
                    Err(_) => prop_assert!(disk.0.lock().unwrap().works.is_some()),
                },
                Step::GiveUp => log.give_up(),
                Step::Trim(part) => {
                    let position = first + (log.end() - first) * u64::from(part) / 255;
                    let _ = log.trim(position.min(durable));
                    first = log.begin().max(first);
                    prop_assert!(first <= position.min(durable));
                }
                Step::Reopen | Step::CutPower(..) => {
                    disk.fail_after(None);
                    drop(log);
                    if let Step::CutPower(kept, is_torn) = step {
                        disk.cut_power(kept, is_torn);
                    }
                    log = open(&disk);
                    prop_assert!(log.end() >= durable, "{} records are gone", durable - log.end());
                    let back = read(&log, durable);
                    prop_assert!(back.iter().all(|record| added.contains(record)), "{:?}", back);
                    all.split_off(&durable);
                    all.extend(back);
                    durable = log.end();
                }
                Step::FailAfter(operations) => disk.fail_after(Some(operations)),
                Step::Mend => disk.fail_after(None),
            }
            let read = read(&log, first.max(log.begin()));
            let known: Vec<_> = all
                .range(first.max(log.begin())..durable)
                .map(|(position, text)| (*position, text.clone()))
                .collect();
            prop_assert_eq!(read, known);
        }
    }

    /// Whatever is flipped below the end is told, or the record was the last.
    #[test]
    fn a_flipped_bit_is_told_or_was_in_what_came_last(bit in any::<prop::sample::Index>(), file in any::<prop::sample::Index>()) {
        let disk = Memory::default();
        let mut log = open(&disk);
        for number in 0..12 {
            log.append(&[format!("record {number} {}", "y".repeat(40)).as_bytes()]);
            log.sync().unwrap();
        }
        let whole = read(&log, 0);
        drop(log);
        let paths = disk.paths();
        prop_assert!(paths.len() > 2);
        let path = &paths[file.index(paths.len())];
        {
            let mut state = disk.0.lock().unwrap();
            let content = &mut state.files.get_mut(path).unwrap().current;
            let bit = bit.index(content.len() * 8);
            content[bit / 8] ^= 1 << (bit % 8);
        }
        let Ok((log, found)) = Log::open(Arc::new(disk.clone()), Path::new("log"), SMALL, 0) else { return Ok(()) };
        let mut cursor = Log::cursor(0);
        let mut got = Vec::new();
        let is_told = loop {
            match log.next(&mut cursor) {
                Ok(Some((position, payload))) => got.push((position, String::from_utf8(payload).unwrap())),
                Ok(None) => break false,
                Err(error) => {
                    let file = path.file_name().unwrap().to_string_lossy().into_owned();
                    prop_assert!(error.to_string().contains(&file), "{}", error);
                    break true;
                }
            }
        };
        prop_assert_eq!(&got[..], &whole[..got.len()]);
        prop_assert!(is_told || found.torn > 0 && got.len() == whole.len() - 1, "{} read, {:?}", got.len(), found);
    }
}

#[test]
fn a_log_goes_on_elsewhere_and_what_stood_there_is_given_up() {
    let disk = Memory::default();
    let mut log = open(&disk);
    for text in ["a", "b", "c", "d"] {
        log.append(&[text.as_bytes()]);
    }
    log.sync().unwrap();
    log.restart_at(2);
    log.append(&[b"C"]);
    log.sync().unwrap();
    log.restart_at(10);
    log.append(&[b"k"]);
    log.sync().unwrap();
    let log = open(&disk);
    assert_eq!(log.end(), 11);
    let texts = |position, count| read_some(&log, position, count);
    assert_eq!(texts(0, 3), ["a", "b", "C"]);
    assert_eq!(texts(10, 1), ["k"]);
    assert!(log.next(&mut Log::cursor(5)).unwrap_err().to_string().contains("the file ends before the record"));
}

fn read_some(log: &Log, position: u64, count: usize) -> Vec<String> {
    let mut cursor = Log::cursor(position);
    (0..count).map(|_| String::from_utf8(log.next(&mut cursor).unwrap().unwrap().1).unwrap()).collect()
}

#[test]
fn nothing_is_written_to_a_file_whose_write_or_fsync_failed() {
    for works in 0..5 {
        let disk = Memory::default();
        let mut log = open(&disk);
        log.append(&[b"before"]);
        log.sync().unwrap();
        let before: BTreeMap<_, _> = disk.0.lock().unwrap().files.clone();
        log.append(&[b"after"]);
        disk.fail_after(Some(works));
        let failed = log.sync().is_err();
        let broken: BTreeMap<_, _> = disk.0.lock().unwrap().files.clone();
        disk.fail_after(None);
        log.sync().unwrap();
        assert_eq!(read_some(&log, 0, 2), ["before", "after"]);
        for (path, file) in disk.0.lock().unwrap().files.iter().filter(|_| failed) {
            let then = broken.get(path);
            assert!(then.is_none_or(|then| then.current == file.current), "{works}: {path:?} {before:?}");
        }
    }
}

#[test]
fn a_segment_that_is_needed_and_gone_is_told() {
    let disk = Memory::default();
    let mut log = open(&disk);
    for _ in 0..10 {
        log.append(&[&[b'z'; 100]]);
        log.sync().unwrap();
    }
    log.trim(6).unwrap();
    assert!(log.begin() > 0 && log.begin() <= 6);
    let told = log.next(&mut Log::cursor(0)).unwrap_err().to_string();
    assert!(told.contains("record 0 is asked for"), "{told}");
}
