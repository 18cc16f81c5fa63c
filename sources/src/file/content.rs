//! The bytes of a file: as they stand, decompressed, or turned into UTF-8; and the buffers they are read into.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::source::BLOCK_BYTES;

use super::identity::{Guards, HEAD_BYTES, Identity, Position, TAIL_BYTES};

/// Buffers of a whole block that are kept for the next one. More than that are in use only while what is downstream is
/// behind, and are given back to the system.
const BUFFERS_KEPT: usize = 16;

/// From so much on, reading is worth a buffer of a whole block; smaller ones are made to measure, as thousands of quiet
/// files would hold a block each otherwise.
const LARGE: usize = BLOCK_BYTES / 4;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A window of 128 MiB is what `zstd --long` makes; frames that ask for more are refused rather than given the memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Opens a file for reading if it is a regular one: opening a FIFO would wait for its writer, and reading a device may
/// never end.
///
/// Links are followed, as `/var/log/containers` is made of them; what they lead to is what is looked at.
pub(super) fn open(path: &Path) -> io::Result<(File, Identity)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    let file = File::from(fd);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, Identity::of(&metadata)))
}

/// How the bytes of a file are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Gzip,
    Zstd,
    Utf16 { is_big_endian: bool },
}

impl Form {
    /// By the first bytes; the name says nothing reliable.
    pub(super) fn of(head: &[u8]) -> Self {
        if head.starts_with(&GZIP) {
            Self::Gzip
        } else if head.starts_with(&ZSTD) {
            Self::Zstd
        } else if head.starts_with(&[0xff, 0xfe]) {
            Self::Utf16 { is_big_endian: false }
        } else if head.starts_with(&[0xfe, 0xff]) {
            Self::Utf16 { is_big_endian: true }
        } else {
            Self::Plain
        }
    }

    /// Whether the file was written as a whole, and its end is the end.
    pub(super) fn is_compressed(self) -> bool {
        matches!(self, Self::Gzip | Self::Zstd)
    }
}

/// An open file at a place in its content.
pub(super) struct Content {
    pub file: File,
    pub form: Form,
    /// What turns the file into its content, where that is not the same; it stands at `offset`.
    stream: Option<Box<dyn Read + Send>>,
    /// Of the next byte of content.
    offset: u64,
    /// The first bytes of a content that cannot be read at will.
    head: Vec<u8>,
    /// What went wrong after bytes that were good: told when they have been taken.
    fault: Option<io::Error>,
}

impl Content {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut magic = [0; 4];
        let length = read_at(&file, &mut magic, 0)?;
        let form = Form::of(&magic[..length]);
        let mut content = Self { file, form, stream: None, offset: 0, head: Vec::new(), fault: None };
        if form != Form::Plain {
            content.rewind()?;
            let mut head = Vec::with_capacity(HEAD_BYTES as usize);
            content.read(&mut head)?;
            if form.is_compressed() && Form::of(&head).is_compressed() {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "compressed twice"));
            }
            content.head = head;
            content.rewind()?;
        }
        Ok(content)
    }

    fn rewind(&mut self) -> io::Result<()> {
        // A handle of its own would share the place in the file, so the raw bytes are read at places of our own.
        let raw = At { file: self.file.try_clone()?, offset: 0 };
        self.stream = match self.form {
            Form::Plain => None,
            Form::Gzip => Some(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 << 10, raw)))),
            Form::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(raw)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Some(Box::new(decoder))
            }
            Form::Utf16 { is_big_endian } => Some(Box::new(super::utf16::ToUtf8::new(raw, is_big_endian))),
        };
        self.offset = 0;
        Ok(())
    }

    /// How long the content is, where the file's size tells.
    pub(super) fn size(&self) -> io::Result<Option<u64>> {
        match self.form {
            Form::Plain => Ok(Some(self.file.metadata()?.len())),
            _ => Ok(None),
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends what comes next until the buffer is at its capacity or the content at its end; returns how much.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let before = buffer.len();
        while buffer.len() < buffer.capacity() {
            let start = buffer.len();
            let outcome = match &mut self.stream {
                None => rustix::io::pread(&self.file, spare_capacity(buffer), self.offset).map_err(io::Error::from),
                Some(stream) => {
                    let room = (buffer.capacity() - buffer.len()) as u64;
                    stream.by_ref().take(room).read_to_end(buffer)
                }
            };
            self.offset += (buffer.len() - start) as u64;
            match outcome {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if buffer.len() > before => {
                    self.fault = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(buffer.len() - before)
    }

    /// Goes to a place at or after the present one; `Ok(false)` where the content ends before it.
    pub(super) fn seek(&mut self, offset: u64) -> io::Result<bool> {
        if self.stream.is_none() {
            self.offset = offset;
            return Ok(true);
        }
        if offset < self.offset {
            self.rewind()?;
        }
        let mut skipped = Vec::with_capacity(64 << 10);
        while self.offset < offset {
            skipped.clear();
            let room = (offset - self.offset).min(64 << 10);
            let stream = self.stream.as_mut().expect("plain files have returned above");
            let length = stream.by_ref().take(room).read_to_end(&mut skipped)? as u64;
            if length == 0 {
                return Ok(false);
            }
            self.offset += length;
        }
        Ok(true)
    }

    /// The content `start..end`, or less if it is shorter. Moves a stream.
    pub(super) fn slice(&mut self, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.stream.is_none() {
            bytes.resize((end - start) as usize, 0);
            let length = read_at(&self.file, &mut bytes, start)?;
            bytes.truncate(length);
        } else if self.seek(start)? {
            bytes.reserve_exact((end - start) as usize);
            while start + (bytes.len() as u64) < end {
                let room = end - start - bytes.len() as u64;
                let stream = self.stream.as_mut().expect("plain files were read above");
                let length = stream.by_ref().take(room).read_to_end(&mut bytes)? as u64;
                if length == 0 {
                    break;
                }
                self.offset += length;
            }
        }
        Ok(bytes)
    }

    /// The place after the last newline, or the end where the last line is longer than `line_max`.
    pub(super) fn last_newline(&mut self, line_max: usize) -> io::Result<u64> {
        let mut end = 0;
        let mut buffer = Vec::with_capacity(64 << 10);
        if self.stream.is_some() {
            // There is no way to the end but through everything.
            let mut last = 0;
            while self.read(&mut buffer)? > 0 {
                if let Some(newline) = memchr::memrchr(b'\n', &buffer) {
                    last = end + newline as u64 + 1;
                }
                end += buffer.len() as u64;
                buffer.clear();
            }
            return Ok(if self.form.is_compressed() { end } else { last });
        }
        let size = self.file.metadata()?.len();
        end = size;
        while end > 0 && size - end <= line_max as u64 {
            let start = end.saturating_sub(64 << 10);
            if let Some(newline) = memchr::memrchr(b'\n', &self.slice(start, end)?) {
                return Ok(start + newline as u64 + 1);
            }
            end = start;
        }
        Ok(if end == 0 { 0 } else { size })
    }

    /// The first bytes, `length` of them or as many as there are.
    pub(super) fn head(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let length = length.min(HEAD_BYTES);
        match self.form {
            Form::Plain => self.slice(0, length),
            // A growing file in UTF-16 may have had less when it was opened.
            Form::Utf16 { .. } if (self.head.len() as u64) < length => {
                let at = self.offset;
                self.head = self.slice(0, HEAD_BYTES)?;
                self.seek(at)?;
                self.head(self.head.len().min(length as usize) as u64)
            }
            _ => Ok(self.head[..self.head.len().min(length as usize)].to_vec()),
        }
    }

    /// The checksum of what stands before `offset`, where it can be read without reading everything again.
    pub(super) fn tail(&mut self, offset: u64) -> io::Result<Option<u32>> {
        if self.form != Form::Plain {
            return Ok(None);
        }
        let bytes = self.slice(offset.saturating_sub(TAIL_BYTES), offset)?;
        Ok((bytes.len() as u64 == offset.min(TAIL_BYTES)).then(|| crc32c::crc32c(&bytes)))
    }

    /// Compares the content with what had been read when `position` was stored. Leaves the content at the position where
    /// it matches.
    pub(super) fn guards(&mut self, position: &Position) -> io::Result<Guards> {
        if fault::is_planted(Defect::InodeAlone) || fault::is_planted(Defect::SizeAlone) {
            let is_shorter = self.size()?.is_some_and(|size| size < position.offset);
            return Ok(if !is_shorter && self.seek(position.offset)? { Guards::Match } else { Guards::Shorter });
        }
        let head = self.head(position.head_len)?;
        if (head.len() as u64) < position.head_len {
            // What is there may still be the beginning of it; a hash of it does not tell, so it counts as other.
            return Ok(Guards::Differ);
        }
        if position.head_len > 0 && hash(&head) != position.head {
            return Ok(Guards::Differ);
        }
        if self.size()?.is_some_and(|size| size < position.offset) {
            return Ok(Guards::Shorter);
        }
        let Some(expected) = position.tail else {
            return Ok(if self.seek(position.offset)? { Guards::Match } else { Guards::Shorter });
        };
        let length = position.offset.min(TAIL_BYTES);
        let tail = self.slice(position.offset - length, position.offset)?;
        Ok(if (tail.len() as u64) < length {
            Guards::Shorter
        } else if crc32c::crc32c(&tail) != expected {
            Guards::Differ
        } else if self.seek(position.offset)? {
            Guards::Match
        } else {
            Guards::Shorter
        })
    }
}

pub(super) fn hash(head: &[u8]) -> String {
    blake3::hash(head).to_hex().to_string()
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

/// The raw bytes of a file from a place of its own.
struct At {
    file: File,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = rustix::io::pread(&self.file, buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// Buffers of whole blocks, used again: to get a mebibyte from the system and to give it back costs more than to fill it.
#[derive(Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// Gives what is not in use back to the system.
    pub(super) fn release(&self) {
        *self.0.lock().expect("no holder of this lock panics") = Vec::new();
    }

    /// An empty buffer for `wanted` bytes, or for a whole block where that is more.
    pub(super) fn get(&self, wanted: usize) -> Vec<u8> {
        if wanted < LARGE {
            return Vec::with_capacity(wanted);
        }
        let kept = self.0.lock().expect("no holder of this lock panics").pop();
        kept.unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES))
    }

    /// Shares what was read; the buffer comes back when nobody holds a piece of it any more.
    pub(super) fn share(&self, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() < BLOCK_BYTES {
            return buffer.into();
        }
        Bytes::from_owner(Lent { buffer, home: Arc::clone(&self.0) })
    }
}

struct Lent {
    buffer: Vec<u8>,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut home = self.home.lock().expect("no holder of this lock panics");
        if home.len() < BUFFERS_KEPT {
            home.push(buffer);
        }
    }
}
