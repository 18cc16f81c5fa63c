//! A log that is there as a whole, read once from its beginning to its end: for `tocsin replay`. Framed and decompressed as the
//! `file` source does it, without its identities, positions and waiting.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tocsin_pipeline::replay::{Log, Piece};
use tocsin_pipeline::source::{Block, RecordOptions};
use tocsin_pipeline::time::{Timestamp, nanos};

use super::content::{self, Content};
use super::find::{Matches, Pattern};
use crate::framing::{Delimiter, Framed, LineFramer};

/// A log that is being read.
pub struct Archive {
    content: Content,
    framer: LineFramer,
    block_bytes: usize,
    written: Timestamp,
    is_at_end: bool,
}

impl Archive {
    /// Opens a log: as it stands, or compressed with gzip or zstd.
    ///
    /// # Errors
    /// When it cannot be opened or is no regular file.
    pub fn open(path: &Path, records: &RecordOptions, block_bytes: usize) -> io::Result<Self> {
        let (file, _) = content::open(path)?;
        let modified = file.metadata()?.modified()?;
        let written = Timestamp(nanos(modified.duration_since(UNIX_EPOCH).unwrap_or_default()));
        let framer = LineFramer::new(records, Delimiter::Newline, 0);
        Ok(Self { content: Content::new(file)?, framer, block_bytes: block_bytes.max(1), written, is_at_end: false })
    }
}

impl Log for Archive {
    /// Blocks arrive when the file was written last: a time without a year goes by that.
    fn read(&mut self) -> io::Result<Vec<Piece>> {
        let mut framed = Vec::new();
        while framed.is_empty() && !self.is_at_end {
            let mut buffer = Vec::with_capacity(self.block_bytes);
            self.framer.carry(&mut buffer);
            match self.content.read(&mut buffer)? {
                0 => {
                    // What was carried over is the unfinished record again.
                    self.framer.push(buffer.into(), Duration::ZERO, &mut framed);
                    self.framer.finish(&mut framed);
                    self.is_at_end = true;
                }
                _ => self.framer.push(buffer.into(), Duration::ZERO, &mut framed),
            }
        }
        let pieces = framed.into_iter().map(|framed| match framed {
            Framed::Records { bytes, framing, base, .. } => Piece::Block(Box::new(Block {
                bytes,
                framing,
                base,
                position: serde_json::Value::Null,
                arrival: self.written,
                acknowledgement: None,
                notes: None,
            })),
            Framed::Rejected { offset, message, head, .. } => Piece::Rejected { offset, message, head },
        });
        Ok(pieces.collect())
    }
}

/// The files that a pattern of paths stands for, as `paths` of the source has them.
///
/// # Errors
/// What is wrong with the pattern.
pub fn find(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let folder = std::path::absolute(".").map_err(|error| error.to_string())?;
    let matches = Matches::of(&[Pattern::new(pattern, &folder)?], &[]);
    Ok(matches.paths.into_iter().filter(|path| path.is_file()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use tocsin_pipeline::source::{Framing, Multiline, MultilineMode};

    use super::*;

    fn records(path: &Path, options: &RecordOptions, block_bytes: usize) -> Vec<String> {
        let mut archive = Archive::open(path, options, block_bytes).unwrap();
        let mut records = Vec::new();
        loop {
            let pieces = archive.read().unwrap();
            if pieces.is_empty() {
                return records;
            }
            for piece in pieces {
                match piece {
                    Piece::Block(block) => {
                        let Block { bytes, framing, base, .. } = *block;
                        let spans = match framing {
                            Framing::Lines => tocsin_pipeline::intake::lines(&bytes),
                            Framing::Spans(spans) => spans,
                        };
                        records.extend(spans.iter().map(|span| {
                            format!("{} {}", base + u64::from(span.start), String::from_utf8_lossy(span.of(&bytes)))
                        }));
                    }
                    Piece::Rejected { offset, message, .. } => records.push(format!("{offset} refused: {message}")),
                }
            }
        }
    }

    #[test]
    fn a_log_is_read_the_same_whatever_it_is_packed_in_and_however_large_the_blocks_are() {
        let folder = tempfile::tempdir().unwrap();
        let text: String =
            (0..200).map(|n| format!("{n} {}\n", "x".repeat(n % 37))).chain(["no newline".into()]).collect();
        let (plain, gzip, zstd) =
            (folder.path().join("log"), folder.path().join("log.gz"), folder.path().join("log.zst"));
        fs::write(&plain, &text).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        fs::write(&gzip, packed.finish().unwrap()).unwrap();
        fs::write(&zstd, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        let options = RecordOptions::default();
        let expected = records(&plain, &options, 1 << 20);
        assert_eq!((expected.len(), &*expected[200]), (201, &*format!("{} no newline", text.len() - 10)));
        for path in [&plain, &gzip, &zstd] {
            for block_bytes in [1, 7, 64, 1000, 1 << 20] {
                assert_eq!(records(path, &options, block_bytes), expected, "{} {block_bytes}", path.display());
            }
        }
    }

    #[test]
    fn lines_that_belong_together_are_one_record_and_long_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "a\n  b\n  c\nd\nlong long long long\ne\n").unwrap();
        let multiline = Multiline {
            pattern: regex::bytes::Regex::new("^ ").unwrap(),
            mode: MultilineMode::ContinueThrough,
            timeout: Duration::from_secs(1),
            max_lines: 100,
        };
        let options = RecordOptions { multiline: Some(multiline), max_record_bytes: 12, ..RecordOptions::default() };
        for block_bytes in [1, 5, 1 << 20] {
            let found = records(&path, &options, block_bytes);
            assert_eq!(found[..2], ["0 a\n  b\n  c".to_owned(), "10 d".to_owned()], "{block_bytes}");
            assert!(found[2].starts_with("12 refused: ") && found[3] == "32 e", "{block_bytes}: {found:?}");
        }
    }

    #[test]
    fn files_are_found_by_patterns() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.log", "a.log.1", "b.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = find(&format!("{}/a.log*", folder.path().display())).unwrap();
        assert_eq!(found, [folder.path().join("a.log"), folder.path().join("a.log.1")]);
    }
}
