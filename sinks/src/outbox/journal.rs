//! The journal of an outbox: what was about to be sent and what was settled, written before and after.
//!
//! A file of a header and frames: `length u32 | CRC-32C u32 | kind u8 | payload`, numbers little-endian, the length and the
//! checksum being those of kind and payload. A write that was cut short by a crash leaves an incomplete last frame, which is
//! cut off. Anything else that does not read is damage, and is told rather than skipped: what was sent is never guessed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tocsin_pipeline::time::Timestamp;

use super::queue::Row;

/// Magic and version of the format.
const HEADER: &[u8; 16] = b"tocsin outbox 1\n";
/// No frame is longer: a payload is at most 4 MiB, see `PAYLOAD_MAX`.
const FRAME_MAX: usize = 8 << 20;
const INTENT: u8 = 1;
const SETTLED: u8 = 2;

/// An entry of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The row is about to be sent.
    Intent(Row),
    /// The row of this name was delivered, or refused for good.
    Settled(String),
}

impl Entry {
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        let mut content = Vec::new();
        match self {
            Self::Intent(row) => {
                content.push(INTENT);
                append_row(row, &mut content);
            }
            Self::Settled(id) => {
                content.push(SETTLED);
                content.extend_from_slice(id.as_bytes());
            }
        }
        out.extend_from_slice(&(content.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
        out.extend_from_slice(&content);
    }

    fn read(content: &[u8]) -> Option<Self> {
        let (kind, mut rest) = content.split_first()?;
        match *kind {
            INTENT => {
                let row = read_row(&mut rest)?;
                rest.is_empty().then_some(Self::Intent(row))
            }
            SETTLED => Some(Self::Settled(String::from_utf8(rest.to_vec()).ok()?)),
            _ => None,
        }
    }
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

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

pub(super) fn read_row(from: &mut &[u8]) -> Option<Row> {
    let (id, receiver, thread) = (read_text(from)?, read_text(from)?, read_text(from)?);
    let payload = Bytes::copy_from_slice(read_bytes(from)?);
    let attempts = u32::from_le_bytes(take(from, 4)?.try_into().ok()?);
    let mut time = || Some(Timestamp(i64::from_le_bytes(take(from, 8)?.try_into().ok()?)));
    Some(Row { id, receiver, thread, payload, attempts, next: time()?, created: time()?, arrival: time()? })
}

/// What a journal holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    /// Up to here it is whole; what follows is an incomplete last frame.
    pub(super) whole: usize,
}

/// A journal is damaged in the middle.
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
            Some((content, length)) => {
                let entry = Entry::read(content).ok_or(Damage { at, what: "an entry that cannot be understood" })?;
                entries.push(entry);
                at += length;
            }
            // What a crash cut short has nothing whole behind it.
            None if (at + 1..bytes.len()).any(|later| frame(&bytes[later..]).is_some()) => {
                return Err(Damage { at, what: "a frame that does not read, with others behind it" });
            }
            None => break,
        }
    }
    Ok(Contents { entries, whole: at })
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
    path: PathBuf,
    file: File,
    pub(super) length: u64,
}

impl Journal {
    /// Opens the journal of a folder, cuts off what a crash left incomplete, and gives what it holds.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let path = folder.join("outbox.log");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let contents = read(&bytes).map_err(|damage| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{damage}; move the file away to go on, which may repeat notifications"),
            )
        })?;
        if contents.whole == 0 {
            return Ok((Self::write(&path, &[])?, contents.entries));
        }
        let file = OpenOptions::new().append(true).open(&path)?;
        if contents.whole < bytes.len() {
            file.set_len(contents.whole as u64)?;
            file.sync_all()?;
        }
        Ok((Self { path, file, length: contents.whole as u64 }, contents.entries))
    }

    /// Puts a new journal in the place of the old one, whole or not at all.
    fn write(path: &Path, frames: &[u8]) -> io::Result<Self> {
        let fresh = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&fresh)?;
        file.write_all(HEADER)?;
        file.write_all(frames)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        // Without this the rename may be forgotten by a power cut.
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(Self { path: path.to_owned(), file, length: (HEADER.len() + frames.len()) as u64 })
    }

    /// Puts these frames in the place of all there are. Also the way out when a write failed: the file that failed is never
    /// written to again.
    pub(super) fn rewrite(&mut self, frames: &[u8]) -> io::Result<()> {
        *self = Self::write(&self.path, frames)?;
        Ok(())
    }

    /// Appends frames. They survive the end of the process, and a power cut after [`Self::sync`].
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        self.file.write_all(frames)?;
        self.length += frames.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(id: &str) -> Entry {
        Entry::Intent(Row {
            id: id.into(),
            receiver: "ä@example.org".into(),
            thread: "t".into(),
            payload: Bytes::from_static(b"body\0"),
            attempts: 3,
            next: Timestamp(1),
            created: Timestamp(-2),
            arrival: Timestamp(3),
        })
    }

    fn journal() -> (Vec<u8>, Vec<Entry>) {
        let entries = vec![intent("a"), intent("b"), Entry::Settled("a".into())];
        let mut bytes = HEADER.to_vec();
        entries.iter().for_each(|entry| entry.append(&mut bytes));
        (bytes, entries)
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
    fn damage_before_a_whole_frame_is_told_with_its_place() {
        let (bytes, _) = journal();
        let last = bytes.len() - (8 + 2);
        for at in 0..last {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let damage = read(&damaged).expect_err("damage goes unseen");
            assert!(damage.at <= at, "byte {at}: {damage}");
        }
        // In the last frame it cannot be told from a write cut short.
        let mut damaged = bytes.clone();
        damaged[last + 8] ^= 0x40;
        assert_eq!(read(&damaged).unwrap().whole, last);
    }

    #[test]
    fn a_journal_is_opened_appended_rewritten_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, entries) = journal();
        let (mut journal, found) = Journal::open(folder.path()).unwrap();
        assert_eq!(found, []);
        journal.append(&bytes[HEADER.len()..]).unwrap();
        journal.append(&[9, 0, 0]).unwrap();
        journal.sync().unwrap();
        let (mut journal, found) = Journal::open(folder.path()).unwrap();
        assert_eq!((found, journal.length), (entries, bytes.len() as u64));
        let mut frames = Vec::new();
        intent("c").append(&mut frames);
        journal.rewrite(&frames).unwrap();
        journal.append(&frames).unwrap();
        let (_, found) = Journal::open(folder.path()).unwrap();
        assert_eq!(found, [intent("c"), intent("c")]);
        fs::write(folder.path().join("outbox.log"), b"something else entirely").unwrap();
        assert!(Journal::open(folder.path()).is_err());
    }
}
