//! One file being written: what is buffered for it, and its compression.

use std::fs::File;
use std::io::{self, Write};

use flate2::Compression as GzipLevel;
use flate2::write::GzEncoder;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_pipeline::fault;

use super::path::{Identity, identity};

/// From this size on, a run of lines is written from the block it stands in, without being copied.
const DIRECT_BYTES: usize = 64 * 1024;

/// How much room an empty buffer keeps: there may be hundreds of them.
const KEPT_BYTES: usize = 128 * 1024;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

/// What compresses since the last boundary; made when there is something to compress.
enum Compressor {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Compressor {
    fn new(compression: Compression) -> io::Result<Option<Self>> {
        Ok(match compression {
            Compression::None => None,
            Compression::Gzip => Some(Self::Gzip(GzEncoder::new(Vec::new(), GzipLevel::default()))),
            // 0 is the library's own default level.
            Compression::Zstd => Some(Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 0)?)),
        })
    }

    /// Compresses `text` and gives what has become ready.
    fn push(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => {
                encoder.write_all(text)?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Self::Zstd(encoder) => {
                encoder.write_all(text)?;
                Ok(std::mem::take(encoder.get_mut()))
            }
        }
    }

    /// Ends the gzip member or the zstd frame.
    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// An open file.
pub(super) struct Output {
    pub(super) path: String,
    pub(super) sequence: u64,
    pub(super) period: Option<i64>,
    pub(super) identity: Identity,
    file: File,
    compression: Compression,
    compressor: Option<Compressor>,
    /// Records not compressed yet; unused where nothing is compressed.
    text: Vec<u8>,
    /// Bytes for the file, of which `written` are written.
    ready: Vec<u8>,
    written: usize,
    /// How long the file is.
    length: u64,
    /// Whether something was written that is not known to be durable.
    is_dirty: bool,
    /// When it was written last, by the monotonic clock.
    pub(super) touched: std::time::Duration,
}

impl Output {
    pub(super) fn new(
        path: String,
        sequence: u64,
        period: Option<i64>,
        file: File,
        compression: Compression,
    ) -> io::Result<Self> {
        let (identity, length) = identity(&file)?;
        Ok(Self {
            path,
            sequence,
            period,
            identity,
            file,
            compression,
            compressor: None,
            text: Vec::new(),
            ready: Vec::new(),
            written: 0,
            length,
            is_dirty: false,
            touched: std::time::Duration::ZERO,
        })
    }

    /// The name of the file below the folder.
    pub(super) fn name(&self) -> String {
        super::ledger::name(&self.path, self.sequence)
    }

    /// Where records are appended.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.compression == Compression::None { &mut self.ready } else { &mut self.text }
    }

    /// How long the file will be when everything is written; of what is not compressed yet, its full length is taken.
    pub(super) fn length(&self) -> u64 {
        self.length + (self.ready.len() - self.written + self.text.len()) as u64
    }

    /// Appends lines; long runs go straight to the file.
    pub(super) fn append_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.len() < DIRECT_BYTES || self.compression != Compression::None || self.drain().is_err() {
            self.buffer().extend_from_slice(lines);
            return Ok(());
        }
        let mut rest = lines;
        fault::point("output.write");
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) => {
                    self.length += count as u64;
                    self.is_dirty = true;
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Nothing is lost: it is written when writing works again.
                    self.ready.extend_from_slice(rest);
                    return Err(error);
                }
            }
        }
        fault::point("output.written");
        Ok(())
    }

    /// Hands everything to the system that can be. After an error it can be called again: nothing is lost or repeated.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.text.is_empty() {
            if self.compressor.is_none() {
                self.compressor = Compressor::new(self.compression)?;
            }
            if let Some(compressor) = &mut self.compressor {
                let ready = compressor.push(&self.text)?;
                self.ready.extend_from_slice(&ready);
            }
            self.text.clear();
        }
        self.drain()
    }

    /// As [`Self::flush`], ending the gzip member or zstd frame, so that the file can be cut here.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(compressor) = self.compressor.take() {
            self.ready.extend_from_slice(&compressor.finish()?);
        }
        self.drain()
    }

    fn drain(&mut self) -> io::Result<()> {
        if self.written < self.ready.len() {
            fault::point("output.write");
        }
        while self.written < self.ready.len() {
            match self.file.write(&self.ready[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    self.length += count as u64;
                    self.is_dirty = true;
                    fault::point("output.written");
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.ready.clear();
        self.ready.shrink_to(KEPT_BYTES);
        self.written = 0;
        Ok(())
    }

    /// Makes what was written durable, if that is asked for, and gives the true length of the file. After an error the
    /// file is not to be used any more: the system may have forgotten what it could not write, and would not say so again.
    pub(super) fn sync(&mut self, must_be_durable: bool) -> io::Result<u64> {
        if self.is_dirty && must_be_durable {
            fault::point("output.sync");
            self.file.sync_data()?;
            fault::point("output.synced");
            self.is_dirty = false;
        }
        self.length = identity(&self.file)?.1;
        Ok(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_loses_nothing_of_what_is_buffered() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut output = Output::new("x".into(), 0, None, full, Compression::None).unwrap();
        output.append_lines(b"one\n").unwrap();
        assert_eq!(output.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
        let long = vec![b'x'; DIRECT_BYTES];
        output.append_lines(&long).unwrap();
        assert_eq!(output.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
        // The disk has room again.
        let mut file = tempfile::tempfile().unwrap();
        output.file = file.try_clone().unwrap();
        output.finish().unwrap();
        let mut text = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut text).unwrap();
        assert_eq!(text, [b"one\n", &long[..]].concat());
    }
}
