//! The journal of an outbox: what was about to be sent and what was settled, written before and after.
//!
//! A file of a header and frames: `length u32 | CRC-32C u32 | kind u8 | payload`, numbers little-endian, the length and the
//! checksum being those of kind and payload.
//!
//! After each fsync a mark is written: all before it was durable. What a crash or a power cut leaves behind the last mark may
//! be torn anywhere, since a disk writes in whatever order it likes: from the first frame there that does not read, it is
//! cut off. A frame before a mark that does not read is damage, and is told rather than skipped: what was sent is never
//! guessed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tocsin_pipeline::store::{Append, Storage};
use tocsin_pipeline::time::Timestamp;

use super::digest::{Digest, Folded};
use super::queue::Row;

/// The name of the file.
pub(crate) const NAME: &str = "outbox.log";
/// Magic and version of the format.
pub(super) const HEADER: &[u8; 16] = b"tocsin outbox 1\n";
/// No frame is longer: a payload is at most 4 MiB, see `PAYLOAD_MAX`.
const FRAME_MAX: usize = 8 << 20;
const INTENT: u8 = 1;
const SETTLED: u8 = 2;
const MARK: u8 = 3;
const FOLDED: u8 = 4;
const TOLD: u8 = 5;
const DIGESTS: u8 = 6;
const DIGEST: u8 = 7;
/// As the ones before, of a row with its record.
const INTENT_WITH_RECORD: u8 = 8;
const TOLD_WITH_RECORD: u8 = 9;
/// A frame with a kind and a place.
const MARK_LENGTH: usize = 8 + 9;

/// An entry of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The row is about to be sent.
    Intent(Row),
    /// The row of this name was delivered, or refused for good.
    Settled(String),
    /// A notification has gone into the digest of its receiver.
    Folded(Folded),
    /// By the change of this number, the digest of the row's receiver has become the row.
    Told(u64, Row),
    /// So many digests follow; they are all there are after the change of this number.
    Digests(u64, u32),
    Digest(Digest),
}

impl Entry {
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        let mut content = Vec::new();
        match self {
            Self::Intent(row) if row.has_record() => {
                content.push(INTENT_WITH_RECORD);
                append_row_with_record(row, &mut content);
            }
            Self::Intent(row) => {
                content.push(INTENT);
                append_row(row, &mut content);
            }
            Self::Settled(id) => {
                content.push(SETTLED);
                content.extend_from_slice(id.as_bytes());
            }
            Self::Folded(folded) => {
                content.push(FOLDED);
                append_json(folded, &mut content);
            }
            Self::Told(number, row) if row.has_record() => {
                content.push(TOLD_WITH_RECORD);
                content.extend_from_slice(&number.to_le_bytes());
                append_row_with_record(row, &mut content);
            }
            Self::Told(number, row) => {
                content.push(TOLD);
                content.extend_from_slice(&number.to_le_bytes());
                append_row(row, &mut content);
            }
            Self::Digests(number, count) => {
                content.push(DIGESTS);
                content.extend_from_slice(&number.to_le_bytes());
                content.extend_from_slice(&count.to_le_bytes());
            }
            Self::Digest(digest) => {
                content.push(DIGEST);
                append_json(digest, &mut content);
            }
        }
        append_frame(&content, out);
    }

    fn read(content: &[u8]) -> Option<Self> {
        let (kind, mut rest) = content.split_first()?;
        match *kind {
            INTENT | INTENT_WITH_RECORD => {
                let row = read_row(&mut rest, *kind == INTENT_WITH_RECORD)?;
                rest.is_empty().then_some(Self::Intent(row))
            }
            SETTLED => Some(Self::Settled(String::from_utf8(rest.to_vec()).ok()?)),
            FOLDED => serde_json::from_slice(rest).ok().map(Self::Folded),
            TOLD | TOLD_WITH_RECORD => {
                let number = read_number(&mut rest)?;
                let row = read_row(&mut rest, *kind == TOLD_WITH_RECORD)?;
                rest.is_empty().then_some(Self::Told(number, row))
            }
            DIGESTS => {
                let number = read_number(&mut rest)?;
                Some(Self::Digests(number, u32::from_le_bytes(rest.try_into().ok()?)))
            }
            DIGEST => serde_json::from_slice(rest).ok().map(Self::Digest),
            _ => None,
        }
    }
}

pub(super) fn append_frame(content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(content).to_le_bytes());
    out.extend_from_slice(content);
}

/// A mark holds its own place, so that no text inside an entry is taken for one.
fn append_mark(at: u64, out: &mut Vec<u8>) {
    let mut content = vec![MARK];
    content.extend_from_slice(&at.to_le_bytes());
    append_frame(&content, out);
}

fn is_mark(content: &[u8], at: usize) -> bool {
    content.split_first() == Some((&MARK, &(at as u64).to_le_bytes()))
}

pub(super) fn append_row(row: &Row, out: &mut Vec<u8>) {
    for field in [row.id.as_bytes(), row.receiver.as_bytes(), row.thread.as_bytes(), &row.payload] {
        append_bytes(field, out);
    }
    out.extend_from_slice(&row.attempts.to_le_bytes());
    for time in [row.next, row.created, row.arrival] {
        out.extend_from_slice(&time.0.to_le_bytes());
    }
}

pub(super) fn append_row_with_record(row: &Row, out: &mut Vec<u8>) {
    append_row(row, out);
    append_bytes(&row.record, out);
    out.push(row.is_handed_on.into());
}

pub(super) fn append_json<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("digests have string keys, and memory takes everything");
}

pub(super) fn append_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn read_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(take(from, 4)?.try_into().ok()?);
    take(from, length as usize)
}

pub(super) fn read_text(from: &mut &[u8]) -> Option<String> {
    String::from_utf8(read_bytes(from)?.to_vec()).ok()
}

pub(super) fn read_number(from: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(from, 8)?.try_into().ok()?))
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

/// Reads what [`append_row`] has written, or [`append_row_with_record`].
pub(super) fn read_row(from: &mut &[u8], has_record: bool) -> Option<Row> {
    let (id, receiver, thread) = (read_text(from)?, read_text(from)?, read_text(from)?);
    let payload = Bytes::copy_from_slice(read_bytes(from)?);
    let attempts = u32::from_le_bytes(take(from, 4)?.try_into().ok()?);
    let mut time = || Some(Timestamp(i64::from_le_bytes(take(from, 8)?.try_into().ok()?)));
    let (next, created, arrival) = (time()?, time()?, time()?);
    let (mut record, mut is_handed_on) = (Bytes::new(), false);
    if has_record {
        record = Bytes::copy_from_slice(read_bytes(from)?);
        is_handed_on = take(from, 1)? != [0];
    }
    Some(Row { id, receiver, thread, payload, record, attempts, is_handed_on, next, created, arrival })
}

/// What a journal holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    /// Up to here it is whole; what follows was being written when the daemon died.
    pub(super) whole: usize,
}

/// A journal is damaged where it was durable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged at byte {at}: {what}")]
pub(super) struct Damage {
    pub(super) at: usize,
    pub(super) what: &'static str,
}

/// Reads a journal.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, Damage> {
    let mut entries = Vec::new();
    if bytes.len() < HEADER.len() && HEADER.starts_with(bytes) {
        return Ok(Contents { entries, whole: 0 });
    }
    if !bytes.starts_with(HEADER) {
        return Err(Damage { at: 0, what: "not a journal of an outbox, or of another version" });
    }
    let mut at = HEADER.len();
    while at < bytes.len() {
        match frame(&bytes[at..]) {
            Some((content, length)) if is_mark(content, at) => at += length,
            Some((content, length)) => {
                let entry = Entry::read(content).ok_or(Damage { at, what: "an entry that cannot be understood" })?;
                entries.push(entry);
                at += length;
            }
            None if has_mark(bytes, at + 1) => {
                return Err(Damage { at, what: "a frame that does not read, although it was durable" });
            }
            None => break,
        }
    }
    Ok(Contents { entries, whole: at })
}

/// Where a journal is damaged, and how.
pub(crate) fn verify(bytes: &[u8]) -> Result<(), (u64, String)> {
    read(bytes).map(drop).map_err(|damage| (damage.at as u64, damage.what.to_owned()))
}

/// Whether there is a mark at `from` or later.
fn has_mark(bytes: &[u8], from: usize) -> bool {
    // Only what has the length of a mark is looked at closer: checksums of everything would take for ever.
    let mut frames = bytes.windows(MARK_LENGTH).enumerate().skip(from);
    frames.any(|(at, bytes)| {
        bytes.starts_with(&[9, 0, 0, 0]) && frame(bytes).is_some_and(|(content, _)| is_mark(content, at))
    })
}

/// The content and the whole length of the frame that `bytes` begin with, if it is whole and right.
fn frame(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (head, rest) = bytes.split_at_checked(8)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let checksum = u32::from_le_bytes(head[4..].try_into().ok()?);
    if length == 0 || length > FRAME_MAX {
        return None;
    }
    let content = rest.get(..length)?;
    (crc32c::crc32c(content) == checksum).then_some((content, 8 + length))
}

/// The file itself. All calls block.
pub(super) struct Journal {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// `None` once a write or an fsync has failed: the file holds nobody knows what, and only writing it anew helps.
    file: Option<Box<dyn Append>>,
    pub(super) length: u64,
}

impl Journal {
    /// Opens the journal of a folder, cuts off what a crash left incomplete, and gives what it holds. That is durable then:
    /// what was read is acted on.
    pub(super) fn open(storage: Arc<dyn Storage>, folder: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let path = folder.join(NAME);
        let bytes = match storage.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let contents = read(&bytes).map_err(|damage| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{damage}; `tocsin recover` moves it aside, which may repeat notifications"),
            )
        })?;
        let mut journal = Self { storage, path, file: None, length: contents.whole as u64 };
        if contents.whole == 0 {
            journal.rewrite(&[])?;
            return Ok((journal, contents.entries));
        }
        if contents.whole < bytes.len() {
            journal.storage.cut(&journal.path, journal.length)?;
        }
        journal.file = Some(journal.storage.append(&journal.path)?);
        journal.sync()?;
        Ok((journal, contents.entries))
    }

    /// Puts a new journal with these frames in the place of the old one, whole or not at all. Also the way out when a write
    /// failed.
    pub(super) fn rewrite(&mut self, frames: &[u8]) -> io::Result<()> {
        // Once the new one has its name, nothing may be written to the old one any more, whatever fails after that.
        self.file = None;
        let mut content = HEADER.to_vec();
        content.extend_from_slice(frames);
        append_mark(content.len() as u64, &mut content);
        let fresh = self.path.with_extension("new");
        self.storage.write_new(&fresh, &content)?;
        self.storage.rename(&fresh, &self.path)?;
        // Without this the rename may be forgotten by a power cut.
        self.storage.sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        self.file = Some(self.storage.append(&self.path)?);
        self.length = content.len() as u64;
        Ok(())
    }

    /// Appends frames. They survive the end of the process, and a power cut after [`Self::sync`].
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        let mut file = self.take()?;
        file.write(frames)?;
        self.length += frames.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Makes durable what was appended, and marks it as such.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let mut file = self.take()?;
        file.sync()?;
        let mut mark = Vec::new();
        append_mark(self.length, &mut mark);
        file.write(&mark)?;
        self.length += mark.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Takes the file out, so that a failure leaves none behind.
    fn take(&mut self) -> io::Result<Box<dyn Append>> {
        self.file.take().ok_or_else(|| io::Error::other("it could not be written before"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tocsin_pipeline::store::Disk;
    use tocsin_pipeline::store::simulated::{Random, SimulatedDisk};

    use super::*;
    use crate::conformance::{Call, Failing};

    fn intent(id: &str) -> Entry {
        Entry::Intent(Row {
            id: id.into(),
            receiver: "ä@example.org".into(),
            thread: "t".into(),
            payload: Bytes::from_static(b"body\0"),
            record: Bytes::from_static(if id == "b" { b"12345678{}" } else { &[] }),
            attempts: 3,
            is_handed_on: id == "b",
            next: Timestamp(1),
            created: Timestamp(-2),
            arrival: Timestamp(3),
        })
    }

    fn journal() -> (Vec<u8>, Vec<Entry>) {
        let entries = vec![intent("a"), intent("b"), Entry::Settled("a".into())];
        let mut bytes = HEADER.to_vec();
        entries[..2].iter().for_each(|entry| entry.append(&mut bytes));
        append_mark(bytes.len() as u64, &mut bytes);
        entries[2].append(&mut bytes);
        (bytes, entries)
    }

    fn open(folder: &Path) -> io::Result<(Journal, Vec<Entry>)> {
        Journal::open(Arc::new(Disk), folder)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, entries) = journal();
        assert_eq!(read(&bytes), Ok(Contents { entries, whole: bytes.len() }));
    }

    #[test]
    fn a_journal_cut_anywhere_gives_what_was_whole() {
        let (bytes, entries) = journal();
        let mut last = 0;
        for length in 0..bytes.len() {
            let contents = read(&bytes[..length]).unwrap();
            assert!(entries.starts_with(&contents.entries), "cut to {length}");
            assert!(contents.entries.len() >= last && contents.whole <= length, "cut to {length}");
            last = contents.entries.len();
        }
        assert_eq!(last, 2);
    }

    #[test]
    fn damage_of_what_was_durable_is_told_with_its_place() {
        let (bytes, _) = journal();
        let mark = bytes.len() - (8 + 2) - MARK_LENGTH;
        for at in 0..mark {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let damage = read(&damaged).expect_err("damage goes unseen");
            assert!(damage.at <= at, "byte {at}: {damage}");
        }
    }

    #[test]
    fn what_was_not_durable_may_be_torn_anywhere() {
        let mut bytes = HEADER.to_vec();
        intent("a").append(&mut bytes);
        append_mark(bytes.len() as u64, &mut bytes);
        let durable = bytes.len();
        intent("b").append(&mut bytes);
        // The disk has written what came later, and not this.
        bytes[durable..].fill(0);
        Entry::Settled("b".into()).append(&mut bytes);
        assert_eq!(read(&bytes), Ok(Contents { entries: vec![intent("a")], whole: durable }));
    }

    #[test]
    fn a_text_that_looks_like_a_mark_is_none() {
        let mut looks = Vec::new();
        append_mark(7, &mut looks);
        let Entry::Intent(mut row) = intent("a") else { unreachable!() };
        row.payload = looks.into();
        let mut bytes = HEADER.to_vec();
        bytes.extend_from_slice(&[9, 0, 0, 0, 1, 2, 3, 4, 5]);
        Entry::Intent(row).append(&mut bytes);
        assert_eq!(read(&bytes), Ok(Contents { entries: Vec::new(), whole: HEADER.len() }));
    }

    #[test]
    fn a_journal_is_opened_appended_rewritten_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, entries) = journal();
        let (mut journal, found) = open(folder.path()).unwrap();
        assert_eq!(found, []);
        let mut frames = Vec::new();
        entries.iter().for_each(|entry| entry.append(&mut frames));
        journal.append(&frames).unwrap();
        journal.sync().unwrap();
        journal.append(&[9, 0, 0]).unwrap();
        let length = journal.length - 3;
        let (mut journal, found) = open(folder.path()).unwrap();
        // The sync at opening leaves a mark.
        assert_eq!((found, journal.length), (entries, length + MARK_LENGTH as u64));
        let mut frames = Vec::new();
        intent("c").append(&mut frames);
        journal.rewrite(&frames).unwrap();
        journal.append(&frames).unwrap();
        let (_, found) = open(folder.path()).unwrap();
        assert_eq!(found, [intent("c"), intent("c")]);
        fs::write(folder.path().join("outbox.log"), &bytes[1..]).unwrap();
        assert!(open(folder.path()).is_err());
    }

    #[test]
    fn after_a_failed_write_only_a_new_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(Failing::default());
        let (mut journal, _) = Journal::open(storage.clone(), folder.path()).unwrap();
        let mut frames = Vec::new();
        intent("a").append(&mut frames);
        for failing in [Call::Write, Call::Sync] {
            storage.fail(Some(failing));
            assert!(journal.append(&frames).and_then(|()| journal.sync()).is_err());
            storage.fail(None);
            assert!(journal.append(&frames).is_err() && journal.sync().is_err(), "{failing:?}");
            journal.rewrite(&frames).unwrap();
            journal.append(&frames).unwrap();
        }
        // The name has gone over to the new file, or may have.
        storage.fail(Some(Call::SyncDir));
        assert!(journal.rewrite(&[]).is_err());
        storage.fail(None);
        assert!(journal.append(&frames).is_err());
        journal.rewrite(&frames).unwrap();
        assert_eq!(open(folder.path()).unwrap().1, [intent("a")]);
    }

    /// What the disk may be after the power has gone: any of what was not durable, in any order, torn.
    fn after_power_cut(disk: &SimulatedDisk, random: &mut Random) -> SimulatedDisk {
        let mut survived: Vec<usize> = (0..disk.pending()).filter(|_| random.below(2) == 0).collect();
        random.shuffle(&mut survived);
        disk.after_crash(&survived, Some(random))
    }

    #[test]
    fn after_a_power_cut_at_any_operation_it_holds_what_was_durable_and_is_never_refused() {
        let folder = Path::new("/data");
        let frames = |entries: &[Entry]| {
            let mut frames = Vec::new();
            entries.iter().for_each(|entry| entry.append(&mut frames));
            frames
        };
        for seed in 0..2000 {
            let mut random = Random(seed);
            let disk = SimulatedDisk::default();
            disk.create_dir(folder).unwrap();
            disk.crash_at(disk.operations() + random.below(40));
            // What was made durable last, and what was written since; in a rewrite, the new may be there or the old.
            let (mut durable, mut since, mut anew) = (Vec::new(), Vec::new(), None);
            let mut live = || -> io::Result<()> {
                let (mut journal, found) = Journal::open(Arc::new(disk.clone()), folder)?;
                assert_eq!(found, []);
                for number in 0.. {
                    let row = intent(&format!("{number}-{}", "x".repeat(random.below(900) as usize)));
                    match random.below(4) {
                        0 => {
                            journal.sync()?;
                            durable.append(&mut since);
                        }
                        1 if number % 3 == 0 => {
                            anew = Some(vec![row.clone()]);
                            journal.rewrite(&frames(&[row]))?;
                            (durable, since) = (anew.take().unwrap_or_default(), Vec::new());
                        }
                        _ => {
                            since.push(row.clone());
                            journal.append(&frames(&[row]))?;
                        }
                    }
                }
                Ok(())
            };
            live().expect_err("the power goes");
            let disk = after_power_cut(&disk, &mut random);
            let (mut journal, found) =
                Journal::open(Arc::new(disk.clone()), folder).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let is_old = found.starts_with(&durable) && since.starts_with(&found[durable.len()..]);
            assert!(is_old || Some(&found) == anew.as_ref(), "seed {seed}: {} entries", found.len());
            // What was read has been made durable, and can be added to.
            let disk_again = after_power_cut(&disk, &mut random);
            let (_, found_again) = Journal::open(Arc::new(disk_again), folder).unwrap();
            assert_eq!(found_again, found, "seed {seed}");
            journal.append(&frames(&[intent("later")])).unwrap();
            journal.sync().unwrap();
            let (_, later) = Journal::open(Arc::new(after_power_cut(&disk, &mut random)), folder).unwrap();
            assert_eq!(later.len(), found.len() + 1, "seed {seed}");
        }
    }
}
