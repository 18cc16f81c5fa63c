//! Which file is which: identities, content guards, and the decisions taken on them. No I/O here.
//!
//! A path is a place, not a file, and an inode number is used again at once on some file systems. A generation of a log is
//! therefore known by device, inode and time of birth together, and confirmed by its content: a hash of its first bytes and
//! a checksum of the bytes just before the place where reading goes on.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use tocsin_pipeline::fault::{self, Defect};

/// How much of the beginning of a file the head guard covers at most.
pub(super) const HEAD_BYTES: u64 = 1024;

/// How many bytes before the position the tail guard covers at most.
pub(super) const TAIL_BYTES: u64 = 256;

/// A head shorter than this says too little to take one file for a copy of another: many logs begin alike.
const LEAST_HEAD_OF_A_COPY: u64 = 64;

/// What tells a file from every other, deleted ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Identity {
    pub dev: u64,
    pub ino: u64,
    /// Nanoseconds since 1970; 0 where the file system does not know, and then the guards must do.
    pub btime: i64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let btime = metadata.created().ok().and_then(|created| created.duration_since(UNIX_EPOCH).ok());
        let btime = btime.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0);
        let btime = if fault::is_planted(Defect::InodeAlone) { 0 } else { btime };
        Self { dev: metadata.dev(), ino: metadata.ino(), btime }
    }

    /// The name of a generation's lane: that of the file it was first seen in, numbered as a truncated file starts anew.
    pub(super) fn partition(&self, generation: u32) -> String {
        format!("{:x}-{}-{}.{generation}", self.dev, self.ino, self.btime)
    }
}

/// How far a generation has been read, and how to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Where it was first seen: what its coordinates tell, whatever it is called later.
    pub path: String,
    /// The file that holds it now; another than at first once it has been copied or compressed.
    #[serde(flatten)]
    pub identity: Identity,
    pub generation: u32,
    /// Of the next record; in the decompressed stream where the file is compressed.
    pub offset: u64,
    /// blake3 of the first `head_len` bytes.
    pub head: String,
    pub head_len: u64,
    /// crc32c of the bytes before `offset`, [`TAIL_BYTES`] of them or as many as there are.
    pub tail: Option<u32>,
    /// The size of the file when it was read to its end for good.
    pub finished: Option<u64>,
    /// When the file was last there, in nanoseconds since 1970.
    pub last_seen: i64,
}

/// Whether the content of a file is what had been read of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guards {
    Match,
    /// As far as it goes; it ends before the position.
    Shorter,
    Differ,
}

/// What is done with a file whose identity is that of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    Seek,
    /// It was truncated, or it is another file that cannot be told from the first by its identity.
    Fresh,
}

pub(super) fn on_resume(guards: Guards) -> Resume {
    match guards {
        Guards::Match => Resume::Seek,
        Guards::Shorter | Guards::Differ => Resume::Fresh,
    }
}

/// What is known of a file that no position has the identity of, beside a generation of the same rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Whether it stands where the generation was first seen: then it is its successor.
    pub is_successor: bool,
    pub guards: Guards,
    /// `None` where it is compressed.
    pub size: Option<u64>,
}

/// What has become of the file that a generation was last read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Original {
    /// It is there, so long.
    Intact { size: u64 },
    /// It was deleted or truncated.
    Gone,
}

/// What a file without a position is to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: it has a content of its own.
    Fresh,
    /// A copy of what is read elsewhere, or has been: reading it would repeat records.
    Shadow,
    /// The rest of it is to be read here.
    Continues,
}

pub(super) fn on_found(stored: &Position, original: Original, candidate: Candidate) -> Found {
    if candidate.is_successor || stored.head_len < LEAST_HEAD_OF_A_COPY || candidate.guards == Guards::Differ {
        return Found::Fresh;
    }
    match original {
        Original::Gone if candidate.guards == Guards::Match => Found::Continues,
        // Everything in it has been read.
        Original::Gone => Found::Shadow,
        // A copy cannot hold more than what it was made of.
        Original::Intact { size } if candidate.size.is_some_and(|copied| copied > size) => Found::Fresh,
        Original::Intact { .. } => Found::Shadow,
    }
}

/// What an open file is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Nothing,
    Read,
    Truncated,
}

/// `tail_matches` is asked only where the size alone does not tell: a truncated file may have grown past the offset again.
pub(super) fn on_look(size: u64, offset: u64, tail_matches: impl FnOnce() -> bool) -> Look {
    if size < offset || !tail_matches() {
        Look::Truncated
    } else if size == offset {
        Look::Nothing
    } else {
        Look::Read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(head_len: u64) -> Position {
        Position {
            path: "app.log".into(),
            identity: Identity { dev: 1, ino: 2, btime: 3 },
            generation: 0,
            offset: 500,
            head: String::new(),
            head_len,
            tail: Some(7),
            finished: None,
            last_seen: 0,
        }
    }

    #[test]
    fn a_file_with_the_right_identity_goes_on_only_if_its_content_is_right_too() {
        assert_eq!(on_resume(Guards::Match), Resume::Seek);
        assert_eq!(on_resume(Guards::Shorter), Resume::Fresh);
        assert_eq!(on_resume(Guards::Differ), Resume::Fresh);
    }

    #[test]
    fn a_file_without_position_is_fresh_or_a_copy() {
        let intact = Original::Intact { size: 600 };
        // (head length, original, is successor, guards, size) and what follows.
        let table = [
            (500, Original::Gone, false, Guards::Match, Some(600), Found::Continues),
            (500, Original::Gone, false, Guards::Match, None, Found::Continues),
            (500, Original::Gone, false, Guards::Shorter, Some(400), Found::Shadow),
            (500, Original::Gone, false, Guards::Differ, Some(600), Found::Fresh),
            (500, Original::Gone, true, Guards::Match, Some(600), Found::Fresh),
            (63, Original::Gone, false, Guards::Match, Some(600), Found::Fresh),
            (64, Original::Gone, false, Guards::Match, Some(600), Found::Continues),
            (500, intact, false, Guards::Match, Some(600), Found::Shadow),
            (500, intact, false, Guards::Shorter, Some(100), Found::Shadow),
            (500, intact, false, Guards::Match, None, Found::Shadow),
            (500, intact, false, Guards::Match, Some(601), Found::Fresh),
            (500, intact, false, Guards::Differ, Some(100), Found::Fresh),
            (500, intact, true, Guards::Match, Some(600), Found::Fresh),
        ];
        for (head_len, original, is_successor, guards, size, expected) in table {
            let candidate = Candidate { is_successor, guards, size };
            assert_eq!(
                on_found(&stored(head_len), original, candidate),
                expected,
                "{head_len} {original:?} {candidate:?}"
            );
        }
    }

    #[test]
    fn a_truncated_file_is_known_by_its_size_or_by_what_stands_before_the_offset() {
        assert_eq!(on_look(10, 10, || true), Look::Nothing);
        assert_eq!(on_look(11, 10, || true), Look::Read);
        assert_eq!(on_look(9, 10, || unreachable!("the size says it")), Look::Truncated);
        assert_eq!(on_look(11, 10, || false), Look::Truncated);
        assert_eq!(on_look(10, 10, || false), Look::Truncated);
    }

    #[test]
    fn positions_are_stored_as_they_are_documented() {
        let text = serde_json::to_string(&stored(64)).unwrap();
        expect_test::expect![[r#"{"path":"app.log","dev":1,"ino":2,"btime":3,"generation":0,"offset":500,"head":"","head_len":64,"tail":7,"finished":null,"last_seen":0}"#]]
            .assert_eq(&text);
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), stored(64));
    }
}
