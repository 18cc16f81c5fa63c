//! What a message in the topic of a `repartition` says beside its record: when it happened, and how far event time had come where it
//! was written.
//!
//! A lane that writes to the topic is one of many that do, and their messages meet in a partition in any order. So each message
//! names the lane it comes from, and each lane writes marks: messages without a record that say what watermark all comes behind
//! that follows from it. Whoever reads finds each record late or not as it was for its writer, and event time where the slowest of
//! the writers has come to.

use tocsin_pipeline::time::Timestamp;

/// The header that holds it.
pub const HEADER: &str = "tocsin";

/// The format. Whoever finds another refuses the message: daemons of two releases may share a topic while they are replaced.
const VERSION: u8 = 1;
const RECORD: u8 = 0;
const MARK: u8 = 1;

/// What is said of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub content: Content,
    /// Of the lane: just before the record, or that all that follows comes behind.
    pub watermark: Timestamp,
    /// The partition that the lane reads, as [`Place::lane`](crate::place::Place::lane) names it.
    pub lane: String,
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A record of this event time.
    Record(Timestamp),
    /// Nothing: the watermark is all there is to say.
    Mark,
}

impl Stamp {
    /// Version and kind, a byte each; event time (of records) and watermark in nanoseconds since 1970, 8 bytes each, lowest first;
    /// then the lane.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(18 + self.lane.len());
        match self.content {
            Content::Record(at) => {
                bytes.extend([VERSION, RECORD]);
                bytes.extend(at.0.to_le_bytes());
            }
            Content::Mark => bytes.extend([VERSION, MARK]),
        }
        bytes.extend(self.watermark.0.to_le_bytes());
        bytes.extend(self.lane.as_bytes());
        bytes
    }

    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "is cut short".to_owned();
        let (version, rest) = bytes.split_first().ok_or_else(cut)?;
        if *version != VERSION {
            return Err(format!("has version {version}, and this release reads version {VERSION}"));
        }
        let (kind, rest) = rest.split_first().ok_or_else(cut)?;
        let (content, rest) = match *kind {
            RECORD => {
                let (at, rest) = time(rest).ok_or_else(cut)?;
                (Content::Record(at), rest)
            }
            MARK => (Content::Mark, rest),
            kind => return Err(format!("is of an unknown kind {kind}")),
        };
        let (watermark, lane) = time(rest).ok_or_else(cut)?;
        let lane = std::str::from_utf8(lane).map_err(|_| "names its lane with bytes that are no text".to_owned())?;
        if lane.is_empty() {
            return Err("names no lane".to_owned());
        }
        Ok(Self { content, watermark, lane: lane.to_owned() })
    }
}

fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (time, rest) = bytes.split_first_chunk()?;
    Some((Timestamp(i64::from_le_bytes(*time)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps() -> impl Iterator<Item = Stamp> {
        let times = [Timestamp::MIN, Timestamp(-1), Timestamp(0), Timestamp::from_secs(1_700_000_000), Timestamp::MAX];
        let contents = times.map(Content::Record).into_iter().chain([Content::Mark]);
        contents.flat_map(move |content| {
            let of = move |watermark| Stamp { content, watermark, lane: "orders/7".to_owned() };
            times.map(of)
        })
    }

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        for stamp in stamps() {
            assert_eq!(Stamp::read(&stamp.write()), Ok(stamp));
        }
        let record =
            Stamp { content: Content::Record(Timestamp(258)), watermark: Timestamp(1), lane: "a/0".to_owned() };
        assert_eq!(record.write(), b"\x01\x00\x02\x01\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a/0", "other daemons read it");
    }

    #[test]
    fn what_is_no_stamp_is_refused_wherever_it_is_cut_or_changed() {
        for stamp in stamps() {
            let bytes = stamp.write();
            let head = bytes.len() - stamp.lane.len();
            for end in 0..=head {
                assert!(Stamp::read(&bytes[..end]).is_err(), "{stamp:?} until {end}");
            }
            for (at, wrong) in [(0, 0), (0, 2), (1, 2), (1, 255), (head, 0xff)] {
                let mut bytes = bytes.clone();
                bytes[at] = wrong;
                assert!(Stamp::read(&bytes).is_err(), "{stamp:?} with {wrong} at {at}");
            }
        }
        assert_eq!(
            Stamp::read(&[2]),
            Err("has version 2, and this release reads version 1".to_owned()),
            "it says what to do: bring both to one release"
        );
    }
}
