//! One generation of a log while it is read: from its first record to the rotation that ends it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value as Json;
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::source::{RecordOptions, SourceContext};
use tocsin_pipeline::time::Timestamp;

use super::content::{Content, hash};
use super::find;
use super::identity::{HEAD_BYTES, Identity, Position, TAIL_BYTES};
use crate::framing::{Delimiter, LineFramer};

/// How far a generation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is more to read, or may be.
    Live,
    /// Read to its end, and its lane is closed. It is opened again should it grow.
    Finished,
    /// Not there. Its position is kept for a while.
    Vanished,
}

pub(super) struct Generation {
    pub lane: Arc<Lane>,
    /// After the last block that was handed over.
    pub position: Position,
    /// Where it is now, as far as is known.
    pub path: PathBuf,
    pub family: PathBuf,
    pub state: State,
    /// `None` where it is not open: not yet, not any more, or as there are too many.
    pub content: Option<Content>,
    pub framer: LineFramer,
    /// The bytes just before `recent_end`, from which the next tail guard is made.
    recent: Vec<u8>,
    recent_end: u64,
    /// The generation that this one follows in the same place: it is read to its end first.
    pub after: Option<u64>,
    pub is_idle_told: bool,
    /// It was found under another name, or not at all, since then.
    pub displaced: Option<Duration>,
    /// When bytes came last.
    pub grown: Duration,
    /// Its end is the end for good.
    pub is_ending: bool,
    /// Size and time of modification when it was last looked at.
    pub looked: Option<(u64, Timestamp)>,
    pub failures: u32,
    /// Not before then, after a failure.
    pub retry: Option<Duration>,
}

impl Generation {
    pub(super) fn new(context: &SourceContext, partition: String, position: Position, path: PathBuf) -> Self {
        let lane = context.lane(partition, Origin::File(Arc::from(position.path.as_str())));
        let framer = framer(&context.records, position.offset);
        let family = find::family(Path::new(&position.path));
        Self {
            lane,
            path,
            family,
            state: State::Live,
            content: None,
            framer,
            recent: Vec::new(),
            recent_end: position.offset,
            after: None,
            is_idle_told: false,
            displaced: None,
            grown: Duration::ZERO,
            is_ending: false,
            looked: None,
            failures: 0,
            retry: None,
            position,
        }
    }

    /// Closes the file; what has been read and not handed over is read again.
    pub(super) fn close(&mut self, records: &RecordOptions) {
        self.content = None;
        self.framer = framer(records, self.position.offset);
        self.recent.clear();
        self.recent_end = self.position.offset;
    }

    /// Goes on in another file that holds the same.
    pub(super) fn move_to(&mut self, path: PathBuf, identity: Identity, records: &RecordOptions) {
        self.close(records);
        self.path = path;
        self.position.identity = identity;
        self.position.finished = None;
        self.state = State::Live;
        self.is_ending = true;
        self.displaced = None;
        self.looked = None;
    }

    pub(super) fn identity(&self) -> Identity {
        self.position.identity
    }

    /// Remembers the bytes before where the framer stands. `chunk` was pushed at `start`.
    pub(super) fn remember(&mut self, chunk: &Bytes, start: u64) {
        let end = self.framer.position();
        self.recent = before(&self.recent, self.recent_end, chunk, start, end).unwrap_or_default();
        self.recent_end = end;
    }

    /// The position after the record that ends at `end`. `chunk` is what was pushed last, at `start`.
    pub(super) fn advance(&mut self, chunk: &Bytes, start: u64, end: u64, now: Timestamp) -> Json {
        let content = self.content.as_mut();
        let position = &mut self.position;
        let mut fault = None;
        let mut noted = |error: io::Error| fault = Some(error);
        if let Some(content) = content {
            let wanted = end.min(HEAD_BYTES);
            // Both guards are made of the bytes that were handed over and not read again from the file, which may have been
            // truncated and written anew by now: they exist to notice that. Where a head grows by little, it is only taken
            // from the file as long as that begins as it did.
            if position.head_len < wanted {
                match head(chunk, start, wanted).map_or_else(|| content.head(wanted), Ok) {
                    Ok(head) if goes_on(&head, position) => {
                        position.head_len = head.len() as u64;
                        position.head = hash(&head);
                    }
                    Ok(_) => {}
                    Err(error) => noted(error),
                }
            }
            position.tail = match before(&self.recent, self.recent_end, chunk, start, end) {
                Some(tail) => Some(crc32c::crc32c(&tail)),
                None => content.tail(end).unwrap_or_else(|error| {
                    noted(error);
                    None
                }),
            };
        }
        if let Some(error) = fault {
            // The guard is left as it was or out: a weaker position is better than none.
            tracing::debug!(path = %self.path.display(), %error, "reading the guards of a position");
        }
        position.offset = end;
        position.last_seen = now.0;
        position.finished = None;
        to_json(position)
    }
}

pub(super) fn framer(records: &RecordOptions, offset: u64) -> LineFramer {
    LineFramer::new(records, Delimiter::Newline, offset)
}

pub(super) fn to_json(position: &Position) -> Json {
    serde_json::to_value(position).expect("a position is numbers and text")
}

/// The first `wanted` bytes, where what was pushed at `start` holds them.
fn head(chunk: &[u8], start: u64, wanted: u64) -> Option<Vec<u8>> {
    (start == 0).then(|| chunk.get(..usize::try_from(wanted).ok()?).map(<[u8]>::to_vec)).flatten()
}

/// Whether a longer head begins with the one that is known.
fn goes_on(head: &[u8], position: &Position) -> bool {
    let known = usize::try_from(position.head_len).ok().and_then(|length| head.get(..length));
    known.is_some_and(|known| known.is_empty() || hash(known) == position.head)
}

/// The bytes before `end`, as many as a tail guard covers; `None` where they are not all at hand.
fn before(recent: &[u8], recent_end: u64, chunk: &[u8], start: u64, end: u64) -> Option<Vec<u8>> {
    let wanted = end.min(TAIL_BYTES) as usize;
    let within = usize::try_from(end.checked_sub(start)?).ok().filter(|within| *within <= chunk.len())?;
    if within >= wanted {
        return Some(chunk[within - wanted..within].to_vec());
    }
    let missing = wanted - within;
    (recent_end == start && recent.len() >= missing)
        .then(|| [&recent[recent.len() - missing..], &chunk[..within]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_made_of_what_was_read_and_grows_only_while_the_file_begins_as_it_did() {
        assert_eq!(head(b"abcdef", 0, 4), Some(b"abcd".to_vec()));
        assert_eq!(head(b"abc", 0, 4), None, "it was pushed in parts");
        assert_eq!(head(b"abcdef", 1, 4), None, "the first byte is missing");
        let mut position = Position {
            path: String::new(),
            identity: Identity::default(),
            generation: 0,
            offset: 3,
            head: hash(b"abc"),
            head_len: 3,
            tail: None,
            finished: None,
            last_seen: 0,
        };
        assert!(goes_on(b"abcdef", &position));
        assert!(!goes_on(b"xyzdef", &position), "the file was written anew");
        assert!(!goes_on(b"ab", &position), "and is shorter");
        position.head_len = 0;
        assert!(goes_on(b"xyz", &position));
    }

    #[test]
    fn the_bytes_before_a_place_are_taken_from_what_was_read() {
        assert_eq!(before(b"", 0, b"abc", 0, 2), Some(b"ab".to_vec()));
        assert_eq!(before(b"abc", 3, b"def", 3, 5), Some(b"abcde".to_vec()));
        assert_eq!(before(b"abc", 3, b"def", 3, 3), Some(b"abc".to_vec()));
        assert_eq!(before(b"bc", 3, b"def", 3, 5), None, "the first byte is missing");
        assert_eq!(before(b"abc", 3, b"def", 4, 5), None, "there is a gap");
        assert_eq!(before(b"abc", 3, b"def", 3, 7), None, "it was not read yet");
        let long: Vec<u8> = (0..=255).cycle().take(1000).collect();
        assert_eq!(before(b"", 0, &long, 500, 1300), Some(long[544..800].to_vec()));
    }
}
