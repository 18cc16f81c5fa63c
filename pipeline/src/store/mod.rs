//! The files of a data directory: written so that a crash at any instruction leaves either the old or the new.
//!
//! All reading and writing of state goes through [`Storage`], so that the same code runs on a disk, on an object store, with
//! injected faults, and in simulation. A file begins with a header (magic, format version, a number of its own) and holds framed records:
//!
//! ```text
//! len u32 | crc32c u32 | epoch u64 | kind u8 | payload        (little endian; len and crc cover epoch, kind and payload)
//! ```

mod disk;
pub mod log;
pub mod object;
#[cfg(any(test, feature = "faults"))]
pub mod simulated;
pub mod term;

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

pub use self::disk::Disk;

/// The few operations that state needs. All of them block.
pub trait Storage: Debug + Send + Sync {
    /// Writes a new file and makes its content durable. The name is durable only after [`Self::sync_dir`]. A file of that
    /// name is removed first and never written over: after a crash it may be known by the name it was renamed to as well.
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Like [`Self::write_new`], but fails with `AlreadyExists` where there is a file of that name: of all that try, also on
    /// other machines, one succeeds.
    fn create_new(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Whether [`Self::write_new`] lets nobody see a part of the content, puts it in the place of what was there in one step,
    /// and makes the name durable too: then nothing is gained by writing to another name and renaming.
    fn is_atomic(&self) -> bool {
        false
    }
    /// Opens a file to add to its end, making it if there is none. The name of a new one is durable only after
    /// [`Self::sync_dir`].
    fn append(&self, path: &Path) -> io::Result<Box<dyn Append>>;
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Up to `length` bytes from `offset`; fewer where the file ends.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// How long a file is.
    fn length(&self, path: &Path) -> io::Result<u64> {
        self.read(path).map(|content| content.len() as u64)
    }
    /// Cuts a file to a length and makes that durable.
    fn cut(&self, path: &Path, length: u64) -> io::Result<()>;
    /// Replaces `to` by `from`, in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable: without it a crash can undo a rename that was already acted on.
    fn sync_dir(&self, folder: &Path) -> io::Result<()>;
    /// The names of the files in a folder, sorted; folders in it are not among them.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Makes a folder and those above it, durably.
    fn create_dir(&self, folder: &Path) -> io::Result<()>;
    /// Keeps every other daemon out of a data directory. By default nobody else can be in it.
    ///
    /// # Errors
    /// When another process is in it, or the folder cannot be written; told with the way out.
    fn lock(&self, _data_dir: &Path) -> Result<Lock, String> {
        Ok(Lock { _file: None })
    }
}

/// A file that grows at its end.
pub trait Append: Debug + Send {
    /// Adds all of `bytes`. They survive the end of the process, and a power cut after [`Self::sync`]. After an error the
    /// file may hold a part of them: write no more to it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written durable. An error is final for this file: the kernel may have dropped the pages, and a second
    /// attempt would lie.
    fn sync(&mut self) -> io::Result<()>;
}

/// What a record in a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Manifest = 1,
    /// A piece of an operator's state.
    Piece = 2,
    /// What a sink said at the barrier.
    SinkState = 3,
    /// A record of a [`log`].
    Entry = 4,
}

const MAGIC: &[u8; 8] = b"TOCSIN\x00\x01";
const HEADER: usize = 16;
const FRAME: usize = 8;
/// What stands before the payload of a record and is covered by its checksum: epoch and kind.
const BODY: usize = 9;

/// The content of a file of framed records, being put together.
#[derive(Debug)]
pub struct FileWriter {
    content: Vec<u8>,
}

impl FileWriter {
    /// `number` tells this file from every other of the directory, so that stale bytes of another are not taken for its own.
    pub fn new(number: u64) -> Self {
        let mut content = MAGIC.to_vec();
        content.extend_from_slice(&number.to_le_bytes());
        Self { content }
    }

    /// Adds a record; gives its offset.
    pub fn push(&mut self, epoch: u64, kind: Kind, payload: &[u8]) -> u64 {
        let offset = self.content.len() as u64;
        push_frame(&mut self.content, epoch, kind, &[payload]);
        offset
    }

    pub fn len(&self) -> usize {
        self.content.len()
    }

    pub fn is_empty(&self) -> bool {
        self.content.len() == HEADER
    }

    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

/// Adds a framed record whose payload is `parts`, one after the other.
fn push_frame(content: &mut Vec<u8>, epoch: u64, kind: Kind, parts: &[&[u8]]) {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(payload + BODY).expect("records are below 4 GiB");
    let mut body = [0; BODY];
    body[..8].copy_from_slice(&epoch.to_le_bytes());
    body[8] = kind as u8;
    let crc = parts.iter().fold(crc32c::crc32c(&body), |crc, part| crc32c::crc32c_append(crc, part));
    content.reserve(FRAME + length as usize);
    content.extend_from_slice(&length.to_le_bytes());
    content.extend_from_slice(&crc.to_le_bytes());
    content.extend_from_slice(&body);
    for part in parts {
        content.extend_from_slice(part);
    }
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem} at byte {offset}")]
pub struct Damaged {
    pub file: String,
    pub offset: u64,
    pub problem: String,
}

/// A file of framed records, read whole.
#[derive(Debug)]
pub struct FileReader<'a> {
    name: &'a str,
    content: &'a [u8],
}

impl<'a> FileReader<'a> {
    pub fn new(name: &'a str, number: u64, content: &'a [u8]) -> Result<Self, Damaged> {
        let reader = Self { name, content };
        if content.len() < HEADER || &content[..8] != MAGIC {
            return Err(reader.damaged(0, "no header of a known format"));
        }
        let found = u64::from_le_bytes(content[8..16].try_into().expect("eight bytes"));
        if found != number {
            return Err(reader.damaged(8, &format!("it is file {found}, not {number}")));
        }
        Ok(reader)
    }

    /// The payload of the record at `offset`, which must be of `kind`; and where the next begins.
    pub fn record(&self, offset: u64, epoch: u64, kind: Kind) -> Result<(&'a [u8], u64), Damaged> {
        let (found, payload, next) = self.any(offset, epoch)?;
        if found != kind as u8 {
            return Err(self.damaged(offset, &format!("it is record {found} of epoch {epoch}")));
        }
        Ok((payload, next))
    }

    /// Reads every record, whatever its kind: all of them are of `epoch`.
    pub fn verify(&self, epoch: u64) -> Result<(), Damaged> {
        let mut at = FIRST_RECORD;
        while at < self.content.len() as u64 {
            (_, _, at) = self.any(at, epoch)?;
        }
        Ok(())
    }

    /// The kind and the payload of the record at `offset`, and where the next begins.
    fn any(&self, offset: u64, epoch: u64) -> Result<(u8, &'a [u8], u64), Damaged> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let frame = self
            .content
            .get(at..at.saturating_add(FRAME))
            .ok_or_else(|| self.damaged(offset, "the file ends before the record"))?;
        let length = u32::from_le_bytes(frame[..4].try_into().expect("four bytes")) as usize;
        let crc = u32::from_le_bytes(frame[4..].try_into().expect("four bytes"));
        let body = self
            .content
            .get(at + FRAME..(at + FRAME).saturating_add(length))
            .filter(|body| body.len() >= BODY)
            .ok_or_else(|| self.damaged(offset, "the record is cut short"))?;
        if crc32c::crc32c(body) != crc {
            return Err(self.damaged(offset, "the checksum does not match"));
        }
        let found = u64::from_le_bytes(body[..8].try_into().expect("eight bytes"));
        if found != epoch {
            return Err(self.damaged(offset, &format!("it is record {} of epoch {found}", body[8])));
        }
        Ok((body[8], &body[BODY..], offset + (FRAME + length) as u64))
    }

    fn damaged(&self, offset: u64, problem: &str) -> Damaged {
        Damaged { file: self.name.to_owned(), offset, problem: problem.to_owned() }
    }
}

/// The offset of the first record of a file.
pub const FIRST_RECORD: u64 = HEADER as u64;

/// The lock of a data directory: one daemon at a time. Released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct Lock {
    /// `None` on a disk that one process has for itself.
    _file: Option<File>,
}

impl Lock {
    /// # Errors
    /// When another process holds it, or the folder cannot be written.
    pub fn take(data_dir: &Path) -> Result<Self, String> {
        let path: PathBuf = data_dir.join("LOCK");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&path)
            .map_err(|error| format!("cannot open {}: {error}; is the folder writable?", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(format!(
                    "{} is in use by another tocsin; stop it, or give this one a data_dir of its own",
                    data_dir.display()
                ));
            }
            Err(fs::TryLockError::Error(error)) => return Err(format!("cannot lock {}: {error}", path.display())),
        }
        let mut file = file;
        // For people who look; the lock itself is the kernel's.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: Some(file) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let mut writer = FileWriter::new(7);
        let offset = writer.push(3, Kind::Piece, b"state");
        let content = writer.content().to_vec();
        let read = |content: &[u8]| {
            FileReader::new("f", 7, content)
                .and_then(|reader| reader.record(offset, 3, Kind::Piece).map(|(payload, _)| payload.to_vec()))
        };
        assert_eq!(read(&content).unwrap(), b"state");
        for bit in 0..content.len() * 8 {
            let mut damaged = content.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..content.len() {
            assert!(read(&content[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_record_of_another_epoch_or_kind_is_refused() {
        let mut writer = FileWriter::new(7);
        let offset = writer.push(3, Kind::Piece, b"state");
        let reader = FileReader::new("f", 7, writer.content()).unwrap();
        assert!(reader.record(offset, 4, Kind::Piece).is_err());
        assert!(reader.record(offset, 3, Kind::Manifest).is_err());
        assert!(FileReader::new("f", 8, writer.content()).is_err());
    }

    /// What each storage does alike, in a folder that is not there yet.
    pub(super) fn conform(storage: &dyn Storage, folder: &Path) {
        let path = |name: &str| folder.join("d").join(name);
        let names = |folder: &Path| storage.list(folder).unwrap();
        let kind = |error: io::Error| error.kind();
        storage.create_dir(&folder.join("d/below")).unwrap();
        storage.create_dir(&folder.join("d/below")).unwrap();
        assert!(names(&folder.join("d")).is_empty(), "folders are not listed");
        assert_eq!(kind(storage.read(&path("a")).unwrap_err()), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.length(&path("a")).unwrap_err()), io::ErrorKind::NotFound);

        storage.write_new(&path("b"), b"first").unwrap();
        storage.write_new(&path("b"), b"second one").unwrap();
        storage.write_new(&path("a"), b"").unwrap();
        storage.write_new(&folder.join("d/below/c"), b"apart").unwrap();
        storage.sync_dir(&folder.join("d")).unwrap();
        assert_eq!(storage.read(&path("b")).unwrap(), b"second one");
        assert_eq!((storage.length(&path("b")).unwrap(), storage.length(&path("a")).unwrap()), (10, 0));
        assert_eq!(
            (names(&folder.join("d")), names(&folder.join("d/below"))),
            (vec!["a".into(), "b".into()], vec!["c".into()])
        );
        for (offset, length, content) in
            [(0, 3, &b"sec"[..]), (7, 3, b"one"), (7, 100, b"one"), (10, 1, b""), (100, 1, b""), (3, 0, b"")]
        {
            assert_eq!(storage.read_at(&path("b"), offset, length).unwrap(), content, "{length} from {offset}");
        }

        storage.create_new(&path("e"), b"made").unwrap();
        for there in ["e", "b", "a"] {
            assert_eq!(kind(storage.create_new(&path(there), b"again").unwrap_err()), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(storage.read(&path("e")).unwrap(), b"made");

        storage.rename(&path("e"), &path("b")).unwrap();
        assert_eq!(storage.read(&path("b")).unwrap(), b"made");
        assert_eq!(kind(storage.read(&path("e")).unwrap_err()), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.rename(&path("e"), &path("b")).unwrap_err()), io::ErrorKind::NotFound);

        storage.remove(&path("b")).unwrap();
        storage.sync_dir(&folder.join("d")).unwrap();
        assert_eq!(names(&folder.join("d")), ["a"]);
        storage.create_new(&path("b"), b"anew").unwrap();
        assert_eq!(storage.read(&path("b")).unwrap(), b"anew");
        let many = vec![7; 300_000];
        storage.write_new(&path("many"), &many).unwrap();
        assert!(storage.read(&path("many")).unwrap() == many);
    }

    #[test]
    fn storages_do_alike() {
        let folder = tempfile::tempdir().unwrap();
        conform(&Disk, folder.path());
        conform(&simulated::SimulatedDisk::default(), Path::new("/data"));
        conform(&object::ObjectStorage::new(Arc::new(InMemory::new())).unwrap(), Path::new("data/of/tests"));
    }

    #[test]
    fn a_data_directory_has_one_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        assert!(Lock::take(folder.path()).unwrap_err().contains("in use by another"));
        drop(lock);
        Lock::take(folder.path()).unwrap();
    }
}
