//! Records that make a component fail: found, set aside as dead letters, and not met again.
//!
//! What is stateless is tried again on halves of the batch until the culprit is alone. What has state may be torn by a panic:
//! the pipeline goes back to its checkpoint, and the records that were in hand are then handled one by one; the one that fails
//! alone is passed over from then on. Where not only the operator but the process ended (an abort, a stack that overflowed,
//! no memory left), the file `in-hand` says what every thread had in hand, and the file `aborted` that it was the process's
//! own doing: a kill from outside makes no record suspicious.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};

use crate::event::{Batch, Lane, Origin};

/// How many threads can say what they have in hand; further ones share.
const SLOTS: u64 = 256;
const SLOT_BYTES: usize = 64;
/// How many records to pass over are remembered between starts; the oldest are forgotten first, and then found again.
const SKIPS_MAX: usize = 1000;

/// What a thread is working on: which records at which component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The component.
    at: u64,
    lane: u64,
    /// The first offset in the lane, and the last.
    from: u64,
    to: u64,
    /// The record, where it is handled alone; 0 otherwise.
    name: u64,
}

/// A record that a component cannot take.
#[derive(Debug)]
pub struct Culprit {
    /// The record alone.
    pub batch: Batch,
    pub why: String,
}

/// An operator with state failed on an input.
#[derive(Debug)]
pub struct Panicked {
    pub component: String,
    pub why: String,
    /// What it had in hand; `None` if it failed as time went on.
    pub held: Option<Held>,
}

impl Panicked {
    /// For those who cannot go back to a checkpoint.
    ///
    /// # Panics
    /// Always: with what the operator said.
    pub fn resume(self) -> ! {
        panic!("{} failed on a record: {}", self.component, self.why)
    }
}

/// Knows which records are suspicious and which are to be passed over.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    suspects: Vec<Held>,
    /// Components and records.
    skips: Vec<(u64, u64)>,
    /// Where it is written down what is in hand; `None`: nowhere.
    marker: Option<Arc<Marker>>,
    /// Held by who handles a suspicious record: there is one at a time, so that it is the one if the process ends.
    alone: Arc<Mutex<()>>,
}

/// The files of a guard in a data directory.
#[derive(Debug)]
struct Marker {
    folder: PathBuf,
    in_hand: File,
}

/// A part of a batch, as a guard takes it apart.
pub enum Piece {
    /// To be handled together, or alone where the record is suspicious.
    Sound(Batch, Held),
    Skipped(Culprit),
}

impl Guard {
    /// The guard of a data directory: learns from how the process before came to its end.
    ///
    /// # Errors
    /// When the files cannot be read or made.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let (in_hand, skipped) = (data_dir.join("in-hand"), read(&data_dir.join("poison"))?);
        let was_aborted = !read(&Self::abort_file(data_dir))?.is_empty();
        let slots = read(&in_hand)?;
        let mut guard = Self { skips: read_skips(&skipped), ..Self::default() };
        if was_aborted {
            for held in slots.chunks(SLOT_BYTES).filter_map(Held::read) {
                guard = guard.learn(held);
            }
        }
        std::fs::write(Self::abort_file(data_dir), b"")?;
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&in_hand)?;
        guard.marker = Some(Arc::new(Marker { folder: data_dir.to_owned(), in_hand: file }));
        guard.remember()?;
        Ok(guard)
    }

    /// The file that is not empty after the process has ended itself.
    pub fn abort_file(data_dir: &Path) -> PathBuf {
        data_dir.join("aborted")
    }

    /// Takes into account that a component failed with this in hand: a record that was alone is passed over from now on,
    /// others are handled alone.
    #[must_use]
    pub fn learn(&self, held: Held) -> Self {
        let mut guard = self.clone();
        match held.name {
            0 => guard.suspects.push(held),
            name => {
                guard.skips.push((held.at, name));
                let beyond = guard.skips.len().saturating_sub(SKIPS_MAX);
                guard.skips.drain(..beyond);
            }
        }
        guard
    }

    /// Writes down which records are to be passed over.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn remember(&self) -> io::Result<()> {
        let Some(marker) = &self.marker else { return Ok(()) };
        let numbers = self.skips.iter().flat_map(|(at, name)| [at.to_le_bytes(), name.to_le_bytes()]);
        std::fs::write(marker.folder.join("poison"), numbers.collect::<Vec<_>>().concat())
    }

    /// Runs stateless work on a batch; where it fails, on its halves, and so on. `done` is handed the outcomes in the
    /// order of the records.
    pub fn run<T>(
        &self,
        component: &str,
        batch: Batch,
        work: &dyn Fn(Batch) -> T,
        done: &mut dyn FnMut(Result<T, Culprit>),
    ) {
        if self.suspects.is_empty() && self.skips.is_empty() {
            return self.attempt(held(component, &batch), batch, work, done);
        }
        for piece in self.pieces(component, batch) {
            match piece {
                Piece::Sound(batch, held) => self.attempt(held, batch, work, done),
                Piece::Skipped(culprit) => done(Err(culprit)),
            }
        }
    }

    fn attempt<T>(
        &self,
        held: Held,
        batch: Batch,
        work: &dyn Fn(Batch) -> T,
        done: &mut dyn FnMut(Result<T, Culprit>),
    ) {
        // Without the columns: else what is decoded would have to be copied.
        let backup = batch.undecoded();
        match self.catch(held, || work(batch)) {
            Ok(outcome) => done(Ok(outcome)),
            Err(why) if backup.len() <= 1 => done(Err(Culprit { batch: backup, why })),
            Err(_) => {
                let rows: Vec<u32> = backup.rows().collect();
                let (first, second) = rows.split_at(rows.len() / 2);
                for half in [first, second] {
                    self.attempt(held, backup.select(half.to_vec()), work, done);
                }
            }
        }
    }

    /// Takes a batch apart where records of it are suspicious or to be passed over.
    pub fn pieces(&self, component: &str, batch: Batch) -> Vec<Piece> {
        let whole = held(component, &batch);
        let is_suspicious = |offset: u64| {
            let of_lane = self.suspects.iter().filter(|suspect| suspect.at == whole.at && suspect.lane == whole.lane);
            // What operators make has no offsets that mean anything.
            let is_made = matches!(batch.lane.origin, Origin::Operator | Origin::Keyed(_));
            of_lane.into_iter().any(|suspect| is_made || (suspect.from..=suspect.to).contains(&offset))
        };
        let has_skips = self.skips.iter().any(|(at, _)| *at == whole.at);
        let (mut pieces, mut sound) = (Vec::new(), Vec::new());
        for row in batch.rows() {
            let is_suspect = is_suspicious(batch.offset(row));
            let name = if is_suspect || has_skips { name(&batch, row) } else { 0 };
            let is_skipped = has_skips && self.skips.contains(&(whole.at, name));
            if !is_suspect && !is_skipped {
                sound.push(row);
                continue;
            }
            if !sound.is_empty() {
                pieces.push(Piece::Sound(batch.select(std::mem::take(&mut sound)), whole));
            }
            let alone = batch.select(vec![row]);
            pieces.push(match is_skipped {
                true => {
                    Piece::Skipped(Culprit { batch: alone, why: "it has made the component fail before".to_owned() })
                }
                false => {
                    let (from, to) = (batch.offset(row), batch.offset(row));
                    Piece::Sound(alone, Held { from, to, name, ..whole })
                }
            });
        }
        match (pieces.is_empty(), sound.is_empty()) {
            (true, _) => pieces.push(Piece::Sound(batch, whole)),
            (false, false) => pieces.push(Piece::Sound(batch.select(sound), whole)),
            (false, true) => {}
        }
        pieces
    }

    /// Whether batches must be taken apart.
    pub fn is_watchful(&self) -> bool {
        !self.suspects.is_empty() || !self.skips.is_empty()
    }

    /// What a component has in hand with a batch; a record that is alone is named where batches are taken apart.
    pub fn alone(&self, component: &str, batch: &Batch) -> Held {
        let held = held(component, batch);
        match batch.rows().next() {
            Some(row) if self.is_watchful() && batch.len() == 1 => Held { name: name(batch, row), ..held },
            _ => held,
        }
    }

    /// Does work with this in hand; a panic in it is an error that says what and where.
    ///
    /// # Errors
    /// When `work` panics.
    pub fn catch<T>(&self, held: Held, work: impl FnOnce() -> T) -> Result<T, String> {
        if held.name == 0 {
            self.hold(held);
            return catch(work);
        }
        let _alone = self.alone.lock().expect("no holder of this lock panics");
        self.hold(held);
        let outcome = catch(work);
        self.hold(Held::default());
        outcome
    }

    /// Writes down what this thread has in hand now.
    fn hold(&self, held: Held) {
        thread_local! {
            static SLOT: Cell<Option<u64>> = const { Cell::new(None) };
        }
        static THREADS: AtomicU64 = AtomicU64::new(0);
        let Some(marker) = &self.marker else { return };
        let slot = SLOT.get().unwrap_or_else(|| THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS);
        SLOT.set(Some(slot));
        // What cannot be written down is not found by it; everything else goes on.
        let _ = marker.in_hand.write_all_at(&held.bytes(), slot * SLOT_BYTES as u64);
    }
}

impl Held {
    /// The same at another component.
    #[must_use]
    pub fn at(self, component: &str) -> Self {
        Self { at: place(component), ..self }
    }

    fn bytes(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        for (at, number) in [self.at, self.lane, self.from, self.to, self.name].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at * 8..at * 8 + 8)?.try_into().ok()?));
        let checksum = u32::from_le_bytes(bytes.get(40..44)?.try_into().ok()?);
        let held = Self { at: number(0)?, lane: number(1)?, from: number(2)?, to: number(3)?, name: number(4)? };
        (checksum == crc32c::crc32c(&bytes[..40]) && held != Self::default()).then_some(held)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

fn read_skips(bytes: &[u8]) -> Vec<(u64, u64)> {
    let numbers: Vec<u64> =
        bytes.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes"))).collect();
    let skips: BTreeSet<_> = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    skips.into_iter().take(SKIPS_MAX).collect()
}

/// The number of a component: the same in every process.
fn place(component: &str) -> u64 {
    u64::from(crc32c::crc32c(component.as_bytes())) << 32 | component.len() as u64
}

fn lane_number(lane: &Lane) -> u64 {
    u64::from(crc32c::crc32c(lane.source.as_bytes())) << 32 | u64::from(crc32c::crc32c(lane.partition.as_bytes()))
}

/// What a component has in hand with a batch.
pub fn held(component: &str, batch: &Batch) -> Held {
    let (first, last) = (batch.rows().next(), batch.rows().next_back());
    let offset = |row: Option<u32>| row.map_or(batch.base, |row| batch.offset(row));
    Held { at: place(component), lane: lane_number(&batch.lane), from: offset(first), to: offset(last), name: 0 }
}

/// The number of a record of a lane: the same when it is read again.
fn name(batch: &Batch, row: u32) -> u64 {
    let mut told = batch.raw(row).to_vec();
    if let Some(value) = batch.changed(row) {
        crate::json::write_value(value, &mut told);
    }
    // Never 0, which stands for none.
    (u64::from(crc32c::crc32c(&told)) << 32 | (batch.offset(row) & 0x7fff_ffff) << 1) | 1
}

thread_local! {
    /// What the panic that is being caught said, and whether one is being caught.
    static CAUGHT: Cell<Option<String>> = const { Cell::new(None) };
    static IS_CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it is an error that says what and where.
///
/// # Errors
/// When `work` panics.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_CATCHING.get() {
                return before(info);
            }
            let text = info.payload_as_str().unwrap_or("no message");
            let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
            CAUGHT.set(Some(format!("{text}{}", place.unwrap_or_default())));
        }));
    });
    let is_nested = IS_CATCHING.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    IS_CATCHING.set(is_nested);
    outcome.map_err(|_| CAUGHT.take().unwrap_or_else(|| "no message".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{text_batch, text_lane};

    fn batch() -> Batch {
        text_batch(&text_lane("in"), "one\ntwo\nbad\nthree\nbad too\nfour")
    }

    fn text(batch: &Batch) -> String {
        let records: Vec<_> = batch.rows().map(|row| String::from_utf8_lossy(batch.record(row)).into_owned()).collect();
        records.join(",")
    }

    /// Runs work that fails on bad records; what came of it, in order.
    fn run(guard: &Guard, batch: Batch) -> String {
        let work = |batch: Batch| {
            assert!(!text(&batch).contains("bad"), "a bad record");
            text(&batch)
        };
        let mut told = Vec::new();
        guard.run("op", batch, &work, &mut |outcome| {
            told.push(match outcome {
                Ok(text) => text,
                Err(culprit) => {
                    let why = culprit.why.split(" (").next().unwrap_or_default().to_owned();
                    format!("<{}: {why}>", text(&culprit.batch))
                }
            });
        });
        told.join(" ")
    }

    #[test]
    fn the_records_that_work_fails_on_are_found_and_the_others_stay_in_order() {
        assert_eq!(run(&Guard::default(), batch()), "one two <bad: a bad record> three <bad too: a bad record> four");
    }

    #[test]
    fn a_process_that_ended_itself_handles_what_it_had_in_hand_alone_and_passes_over_what_it_fails_on_again() {
        let folder = tempfile::tempdir().unwrap();
        let alone = |guard: &Guard| -> Vec<String> {
            let pieces = guard.pieces("op", batch()).into_iter();
            let tell = |piece| match piece {
                Piece::Sound(batch, held) => {
                    guard.hold(held);
                    text(&batch)
                }
                Piece::Skipped(culprit) => format!("<{}>", text(&culprit.batch)),
            };
            // The process ends on the third record it has to do with.
            pieces.map(tell).take(3).collect()
        };
        let guard = Guard::open(folder.path()).unwrap();
        assert_eq!(alone(&guard), ["one,two,bad,three,bad too,four"]);
        drop(guard);
        assert_eq!(
            alone(&Guard::open(folder.path()).unwrap()),
            ["one,two,bad,three,bad too,four"],
            "killed from outside"
        );
        std::fs::write(Guard::abort_file(folder.path()), "!").unwrap();
        assert_eq!(alone(&Guard::open(folder.path()).unwrap()), ["one", "two", "bad"]);
        std::fs::write(Guard::abort_file(folder.path()), "!").unwrap();
        assert_eq!(alone(&Guard::open(folder.path()).unwrap()), ["one,two", "<bad>", "three,bad too,four"]);
        assert_eq!(alone(&Guard::open(folder.path()).unwrap()), ["one,two", "<bad>", "three,bad too,four"], "for good");
    }
}
