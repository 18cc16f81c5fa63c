//! A log of records in segments: what the ingest journal and the disk buffers are written to.
//!
//! A record has a position: its number, which rises over the life of the log. A segment is a file of framed records named
//! `NUMBER-FIRST`: its own number, and the position of its first record. What a segment holds counts up to the first position
//! of the next one, so that whatever a failed write or a crash has left behind is passed over by beginning a new segment: no
//! file is written to again after an error, and none after a restart.
//!
//! The payload of a record begins with the position up to which the log was durable when the record was written. A record that
//! does not read, at the end of the last segment, is one that was being written when the machine stopped, unless one after it
//! says that it was durable: that, and whatever does not read anywhere else, is damage, and told.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Append, BODY, Damaged, FIRST_RECORD, FRAME, FileReader, FileWriter, HEADER, Kind, Storage, push_frame};

/// A segment that has grown to this size is the last but one.
pub const SEGMENT_BYTES: u64 = 16 << 20;
/// How much is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// What stands before the payload: the position up to which the log was durable.
const DURABLE: usize = 8;

/// A log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{}: {damage}; `tocsin recover` moves it aside, and what it holds is lost", folder.display())]
    Damaged { folder: PathBuf, damage: Damaged },
}

#[derive(Debug)]
struct Segment {
    number: u64,
    first: u64,
    bytes: u64,
}

/// A log, open. All of its operations block.
#[derive(Debug)]
pub struct Log {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    segment_bytes: u64,
    /// In order.
    segments: VecDeque<Segment>,
    /// The last segment, if it may be written to.
    file: Option<Box<dyn Append>>,
    next_number: u64,
    /// The records that are not durable, framed.
    pending: Vec<u8>,
    /// Whether they stand in the last segment.
    is_written: bool,
    /// The position of the next record.
    end: u64,
    /// Records below are durable.
    durable: u64,
}

/// What was found when a log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many bytes at its end were of records that never became durable.
    pub torn: u64,
}

impl Log {
    /// Opens the log in a folder, making it if there is none. The next record has the position `floor` at the least.
    pub fn open(
        storage: Arc<dyn Storage>,
        folder: &Path,
        segment_bytes: u64,
        floor: u64,
    ) -> Result<(Self, Found), LogError> {
        let mut log = Self {
            storage,
            folder: folder.to_owned(),
            segment_bytes,
            segments: VecDeque::new(),
            file: None,
            next_number: 1,
            pending: Vec::new(),
            is_written: false,
            end: floor,
            durable: floor,
        };
        let io = |action| move |error| LogError::Io { action, path: folder.to_owned(), error };
        log.storage.create_dir(folder).map_err(io("making"))?;
        let names = log.storage.list(folder).map_err(io("listing"))?;
        let mut found: Vec<(u64, u64)> = names.iter().filter_map(|name| parse(name)).collect();
        found.sort_unstable();
        // A segment that is found counts from now on, so its name must not vanish: the ones before it may be deleted.
        log.storage.sync_dir(folder).map_err(io("syncing"))?;
        log.next_number = found.last().map_or(1, |(number, _)| number + 1);
        let mut torn = Found::default();
        let mut end = None;
        while let Some((number, first)) = found.pop() {
            if log.segments.front().is_some_and(|next| next.first <= first) {
                // Nothing of it counts. Left where it is if it cannot be removed: it never will.
                let _ = log.storage.remove(&log.path(number, first));
                continue;
            }
            let bytes = match end {
                Some(_) => {
                    let path = log.path(number, first);
                    log.storage.length(&path).map_err(|error| LogError::Io { action: "looking at", path, error })?
                }
                None => match log.scan(number, first, &mut torn)? {
                    Some((bytes, last)) => {
                        end = Some(last);
                        bytes
                    }
                    None => {
                        let _ = log.storage.remove(&log.path(number, first));
                        continue;
                    }
                },
            };
            log.segments.push_front(Segment { number, first, bytes });
        }
        log.end = end.unwrap_or(0).max(floor);
        log.durable = log.end;
        Ok((log, torn))
    }

    /// Reads the last segment to its end: how many bytes of it count, and the position after its last record. `None`: it has
    /// not come to be.
    fn scan(&self, number: u64, first: u64, torn: &mut Found) -> Result<Option<(u64, u64)>, LogError> {
        let path = self.path(number, first);
        let content =
            self.storage.read(&path).map_err(|error| LogError::Io { action: "reading", path: path.clone(), error })?;
        let name = file_name(number, first);
        let reader = match FileReader::new(&name, number, &content) {
            Ok(reader) => reader,
            // The header is durable before the first record is written.
            Err(_) if content.len() <= HEADER => {
                torn.torn += content.len() as u64;
                return Ok(None);
            }
            Err(damage) => return Err(self.damaged(damage)),
        };
        let (mut at, mut position) = (FIRST_RECORD, first);
        while at < content.len() as u64 {
            match reader.record(at, position, Kind::Entry) {
                Ok((payload, next)) if payload.len() >= DURABLE => (at, position) = (next, position + 1),
                Ok(_) => return Err(self.damage(&name, at, "the record is too short")),
                Err(damage) => {
                    if was_durable(&content[at as usize..], position) {
                        return Err(self.damaged(damage));
                    }
                    torn.torn += content.len() as u64 - at;
                    break;
                }
            }
        }
        // Also where nothing is torn: what was written and not made durable counts from now on, so it has to be.
        self.storage.cut(&path, at).map_err(|error| LogError::Io { action: "cutting", path, error })?;
        Ok(Some((at, position)))
    }

    /// The position of the first record that is kept.
    pub fn begin(&self) -> u64 {
        self.segments.front().map_or(self.durable, |segment| segment.first.min(self.durable))
    }

    /// The position of the next record.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes it takes on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// How many bytes wait to be made durable.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Adds a record whose payload is `parts`, one after the other; gives its position. It is durable after [`Self::sync`].
    pub fn append(&mut self, parts: &[&[u8]]) -> u64 {
        debug_assert!(!self.is_written, "what is written is made durable or given up before more is added");
        let durable = self.durable.to_le_bytes();
        let mut all = Vec::with_capacity(parts.len() + 1);
        all.push(&durable[..]);
        all.extend_from_slice(parts);
        let position = self.end;
        push_frame(&mut self.pending, position, Kind::Entry, &all);
        self.end += 1;
        position
    }

    /// Writes what was added. After an error the next attempt writes it to a new segment.
    pub fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() || self.is_written {
            return Ok(());
        }
        let outcome = self.try_write();
        self.is_written = outcome.is_ok();
        outcome.inspect_err(|_| self.file = None)
    }

    fn try_write(&mut self) -> io::Result<()> {
        let is_full = self.segments.back().is_none_or(|segment| segment.bytes >= self.segment_bytes);
        if self.file.is_none() || is_full {
            self.begin_segment()?;
        }
        self.file.as_mut().expect("a segment has begun").write(&self.pending)
    }

    /// Makes what was added durable. After an error the next attempt writes it to a new segment.
    pub fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        self.is_written = false;
        // Taken out, so that after an error nothing is ever written to it again.
        let mut file = self.file.take().expect("it was written to");
        file.sync()?;
        self.file = Some(file);
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes += self.pending.len() as u64;
        }
        self.durable = self.end;
        self.pending = Vec::new();
        Ok(())
    }

    /// Forgets what was added and is not durable.
    pub fn give_up(&mut self) {
        if self.is_written {
            self.file = None;
        }
        self.is_written = false;
        self.pending = Vec::new();
        self.end = self.durable;
    }

    /// Goes on at `position`: what stands from there on is given up, and before it there may be a gap.
    pub fn restart_at(&mut self, position: u64) {
        self.give_up();
        self.file = None;
        self.end = position;
        self.durable = position;
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        self.file = None;
        let (number, first) = (self.next_number, self.durable);
        self.next_number += 1;
        let path = self.path(number, first);
        let made = self
            .storage
            .write_new(&path, FileWriter::new(number).content())
            .and_then(|()| self.storage.sync_dir(&self.folder))
            .and_then(|()| self.storage.append(&path));
        match made {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                let _ = self.storage.remove(&path);
                return Err(error);
            }
        }
        while let Some(superseded) = self.segments.pop_back_if(|last| last.first >= first) {
            // Left behind if that fails; it is removed when the log is opened.
            let _ = self.storage.remove(&self.path(superseded.number, superseded.first));
        }
        self.segments.push_back(Segment { number, first, bytes: FIRST_RECORD });
        Ok(())
    }

    /// Deletes the segments that hold nothing from `position` on; the last one stays, as its name says where the log is.
    pub fn trim(&mut self, position: u64) -> io::Result<()> {
        while self.segments.get(1).is_some_and(|next| next.first <= position) {
            let segment = &self.segments[0];
            match self.storage.remove(&self.path(segment.number, segment.first)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => drop(self.segments.pop_front()),
            }
        }
        Ok(())
    }

    /// A place to read from.
    pub fn cursor(position: u64) -> Cursor {
        Cursor { position, segment: 0, at: FIRST_RECORD, record: 0, chunk: Vec::new(), chunk_at: 0 }
    }

    /// The next durable record, with its position; `None` at the end.
    pub fn next(&self, cursor: &mut Cursor) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        if cursor.position >= self.durable {
            return Ok(None);
        }
        let found = self.segments.iter().rposition(|segment| segment.first <= cursor.position);
        let Some(segment) = found.map(|at| &self.segments[at]) else {
            let first = self.segments.front().map_or(self.durable, |segment| segment.first);
            let problem = format!("the log begins at record {first}, and record {} is asked for", cursor.position);
            return Err(self.damage("the first segment", 0, &problem));
        };
        if cursor.segment != segment.number {
            let head = self.read(segment, 0, HEADER)?;
            let name = file_name(segment.number, segment.first);
            FileReader::new(&name, segment.number, &head).map_err(|damage| self.damaged(damage))?;
            (cursor.segment, cursor.at, cursor.record) = (segment.number, FIRST_RECORD, segment.first);
            (cursor.chunk, cursor.chunk_at) = (Vec::new(), 0);
        }
        loop {
            let payload = self.record(segment, cursor)?;
            let record = cursor.record;
            cursor.record += 1;
            if record == cursor.position {
                cursor.position += 1;
                return Ok(Some((record, payload)));
            }
        }
    }

    /// Reads the record that the cursor stands at and moves the cursor past it.
    fn record(&self, segment: &Segment, cursor: &mut Cursor) -> Result<Vec<u8>, LogError> {
        let name = file_name(segment.number, segment.first);
        let (at, record) = (cursor.at, cursor.record);
        let short = || self.damage(&name, at, "the file ends before the record");
        // A file that another has superseded may be longer than what counts of it, never shorter.
        let frame = self.piece(segment, cursor, FRAME)?.ok_or_else(short)?;
        let length = u32::from_le_bytes(frame[..4].try_into().expect("four bytes")) as usize;
        if at + (FRAME + length) as u64 > segment.bytes {
            return Err(short());
        }
        let content = self.piece(segment, cursor, FRAME + length)?.ok_or_else(short)?;
        let file = FileReader { name: &name, content };
        let (payload, _) = file.record(0, record, Kind::Entry).map_err(|mut damage| {
            damage.offset = at;
            self.damaged(damage)
        })?;
        let payload = payload.get(DURABLE..).ok_or_else(short)?.to_vec();
        cursor.at += (FRAME + length) as u64;
        Ok(payload)
    }

    /// `length` bytes from where the cursor stands; `None` where the file ends before.
    fn piece<'a>(
        &self,
        segment: &Segment,
        cursor: &'a mut Cursor,
        length: usize,
    ) -> Result<Option<&'a [u8]>, LogError> {
        let covered = |cursor: &Cursor| {
            let from = cursor.at.checked_sub(cursor.chunk_at).and_then(|from| usize::try_from(from).ok())?;
            (from.saturating_add(length) <= cursor.chunk.len()).then_some(from)
        };
        if covered(cursor).is_none() {
            cursor.chunk = self.read(segment, cursor.at, length.max(CHUNK_BYTES))?;
            cursor.chunk_at = cursor.at;
        }
        Ok(covered(cursor).map(|from| &cursor.chunk[from..from + length]))
    }

    fn read(&self, segment: &Segment, offset: u64, length: usize) -> Result<Vec<u8>, LogError> {
        let path = self.path(segment.number, segment.first);
        self.storage.read_at(&path, offset, length).map_err(|error| LogError::Io { action: "reading", path, error })
    }

    fn damage(&self, file: &str, offset: u64, problem: &str) -> LogError {
        self.damaged(Damaged { file: file.to_owned(), offset, problem: problem.to_owned() })
    }

    fn damaged(&self, damage: Damaged) -> LogError {
        LogError::Damaged { folder: self.folder.clone(), damage }
    }

    fn path(&self, number: u64, first: u64) -> PathBuf {
        self.folder.join(file_name(number, first))
    }
}

/// Reads a segment of a log to its end. `until` is the position of the first record of the segment after it, if there is
/// one: what stands from there on does not count. `None`: the name is not that of a segment.
pub fn verify(name: &str, content: &[u8], until: Option<u64>) -> Option<Result<(), Damaged>> {
    let (number, first) = parse(name)?;
    let read = || {
        let reader = match FileReader::new(name, number, content) {
            // It has not come to be.
            Err(_) if content.len() <= HEADER && until.is_none_or(|until| until <= first) => return Ok(()),
            reader => reader?,
        };
        let (mut at, mut position) = (FIRST_RECORD, first);
        while at < content.len() as u64 && until.is_none_or(|until| position < until) {
            match reader.record(at, position, Kind::Entry) {
                Ok((_, next)) => (at, position) = (next, position + 1),
                // It was being written when the machine stopped.
                Err(_) if until.is_none() && !was_durable(&content[at as usize..], position) => return Ok(()),
                Err(damage) => return Err(damage),
            }
        }
        Ok(())
    };
    Some(read())
}

/// The position of the first record of the segment of this name; `None`: it is not the name of one.
pub fn first_record(name: &str) -> Option<u64> {
    parse(name).map(|(_, first)| first)
}

/// A place in a log that is being read.
#[derive(Debug)]
pub struct Cursor {
    /// The position of the record asked for next.
    position: u64,
    /// The number of the segment that the following are of; 0: none yet.
    segment: u64,
    /// Where the next record stands in it, and its position.
    at: u64,
    record: u64,
    /// What was read of it, and where that stands.
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl Cursor {
    /// The position of the record that comes next.
    pub fn position(&self) -> u64 {
        self.position
    }
}

fn file_name(number: u64, first: u64) -> String {
    format!("{number:012}-{first:020}")
}

fn parse(name: &str) -> Option<(u64, u64)> {
    let (number, first) = name.split_once('-')?;
    Some((number.parse().ok()?, first.parse().ok()?))
}

/// Whether a whole record stands somewhere in `rest`, which begins with the record `bad`, that says that `bad` was durable
/// when it was written.
fn was_durable(rest: &[u8], bad: u64) -> bool {
    let least = FRAME + BODY + DURABLE;
    (1..rest.len().saturating_sub(least - 1)).any(|at| {
        let number = |from: usize| u64::from_le_bytes(rest[from..from + 8].try_into().expect("eight bytes"));
        let (position, durable) = (number(at + FRAME), number(at + FRAME + BODY));
        // The next few at most: a cheap test that random bytes do not pass.
        let is_plausible =
            position > bad && position - bad <= rest.len() as u64 && durable > bad && durable <= position;
        let file = FileReader { name: "", content: &rest[at..] };
        is_plausible && file.record(0, position, Kind::Entry).is_ok()
    })
}

#[cfg(test)]
mod tests;
