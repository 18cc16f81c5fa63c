//! Where reading of a partition begins, and what becomes of an offset that is not there. Pure.

use super::{Named, OutOfRange, ReadFrom};
use tocsin_pipeline::time::Timestamp;

/// How the first offset of a partition is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Beginning,
    End,
    Time(Timestamp),
    Offset(i64),
}

/// Where a partition begins that is not in the checkpoint. One that appears while the source runs, or since it ran last, is new:
/// everything in it has come since.
pub(super) fn begin(read_from: &ReadFrom, is_first_start: bool) -> Begin {
    if !is_first_start {
        return Begin::Beginning;
    }
    match read_from {
        ReadFrom::Default | ReadFrom::Named(Named::Beginning) => Begin::Beginning,
        ReadFrom::Named(Named::End) => Begin::End,
        ReadFrom::Time(from) => {
            Begin::Time(Timestamp::parse_rfc3339(from.time.as_bytes()).expect("`problems` has parsed it before"))
        }
        ReadFrom::Offset(from) => Begin::Offset(i64::from(from.offset)),
    }
}

/// What becomes of an offset from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Fine,
    /// Go on there; so many records are missing, as far as that can be known.
    Moved {
        to: i64,
        missing: u64,
    },
    Stop(String),
}

/// Checks the offset that is to be read next against what the partition holds: `low..high`.
pub(super) fn check(next: i64, low: i64, high: i64, policy: OutOfRange) -> Check {
    if (low..=high).contains(&next) {
        return Check::Fine;
    }
    let missing = u64::try_from(low - next).unwrap_or(0);
    match policy {
        OutOfRange::Beginning => Check::Moved { to: low, missing },
        OutOfRange::Stop => {
            let why = match next < low {
                true => format!("{missing} records after it were deleted before they were read"),
                false => "the topic was made anew, or records are lost".to_owned(),
            };
            Check::Stop(format!(
                "the checkpoint says to go on at offset {next}, and the topic holds {low} to {high}: {why}; `out_of_range = \
                 \"beginning\"` goes on with what is there"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_since_the_first_start_is_read_from_its_beginning() {
        let end = ReadFrom::Named(Named::End);
        assert_eq!(begin(&end, true), Begin::End);
        assert_eq!(begin(&end, false), Begin::Beginning);
        assert_eq!(begin(&ReadFrom::Default, true), Begin::Beginning);
    }

    #[test]
    fn an_offset_that_is_not_there_is_not_passed_over_in_silence() {
        assert_eq!(check(5, 0, 10, OutOfRange::Stop), Check::Fine);
        assert_eq!(check(10, 10, 10, OutOfRange::Stop), Check::Fine, "nothing has come since");
        assert!(matches!(check(5, 8, 10, OutOfRange::Stop), Check::Stop(why) if why.contains("3 records")));
        assert!(matches!(check(11, 8, 10, OutOfRange::Stop), Check::Stop(why) if why.contains("made anew")));
        assert_eq!(check(5, 8, 10, OutOfRange::Beginning), Check::Moved { to: 8, missing: 3 });
        assert_eq!(check(11, 8, 10, OutOfRange::Beginning), Check::Moved { to: 8, missing: 0 });
    }
}
