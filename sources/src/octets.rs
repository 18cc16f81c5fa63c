//! Records that are counted in octets, and the mixture of counts and trailers that syslog senders speak (RFC 6587).
//!
//! Nothing here waits or reads: bytes go in, whole records come out as spans of the very buffer they were read into. A
//! record longer than the bound is never held: its head is kept and the rest is passed over as it arrives. Streams of lines
//! alone are cut by [`crate::framing::LineFramer`].

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use tocsin_pipeline::event::Span;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::source::TooLong;

/// A count of octets has at most so many digits: more cannot be meant, and fewer cannot overflow.
const COUNT_DIGITS: usize = 9;
/// How much of what is refused is kept for the dead letter.
const HEAD_BYTES: usize = 4096;

/// How the end of a record is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// By the number of its bytes in front of it (RFC 6587 §3.4.1). One newline at its end is left out.
    OctetCounted,
    /// Syslog: counted where `<` follows a count and a space, otherwise up to a newline or NUL (RFC 6587 §3.4.2).
    Syslog,
}

/// How a stream came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The other side said so: what is left without a delimiter is a record.
    Closed,
    /// It was cut: what is left is only a part of one.
    Broken,
}

/// A part of the stream, with the records in it.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Bytes that were passed over before it.
    pub(crate) skipped: u64,
    pub(crate) bytes: Bytes,
    pub(crate) records: Vec<Span>,
    pub(crate) refused: Vec<Refused>,
}

/// Something in a piece that is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) span: Span,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

/// What is to be passed over before the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Discard {
    Nothing,
    /// The end of a line.
    Line,
    Bytes(u64),
}

/// What stands at the beginning of some bytes.
enum Frame {
    Record {
        start: usize,
        len: usize,
        next: usize,
    },
    /// Its head, as long as a record may be, is there.
    TooLong {
        start: usize,
        next: usize,
        discard: Discard,
    },
    /// Nothing that belongs to a record.
    Filler(usize),
    Incomplete,
    Nonsense(&'static str),
}

/// Cuts one stream.
#[derive(Debug)]
pub(crate) struct Cutter {
    style: Style,
    max: usize,
    too_long: TooLong,
    discard: Discard,
    /// So many bytes of the buffer hold no end of a line.
    scanned: usize,
    skipped: u64,
    is_lost: bool,
}

impl Cutter {
    pub(crate) fn new(style: Style, max: usize, too_long: TooLong) -> Self {
        Self { style, max: max.max(1), too_long, discard: Discard::Nothing, scanned: 0, skipped: 0, is_lost: false }
    }

    /// Whether there is no telling any more where records begin: the stream should be closed.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Takes the whole records out of the front of the buffer. To be called until there is nothing more to take.
    pub(crate) fn cut(&mut self, buffer: &mut BytesMut) -> Option<Piece> {
        self.pass_over(buffer);
        if buffer.is_empty() || self.is_lost {
            return None;
        }
        let (mut at, mut spans, mut refused) = (0, Vec::new(), Vec::new());
        let mut scanned = std::mem::take(&mut self.scanned);
        while at < buffer.len() && self.discard == Discard::Nothing {
            match self.frame(&buffer[at..], std::mem::take(&mut scanned)) {
                Frame::Record { start, len, next } => {
                    if len > 0 {
                        spans.push(Span::new(at + start, len));
                    }
                    at += next;
                }
                Frame::TooLong { start, next, discard } => {
                    match self.too_long {
                        TooLong::Truncate => spans.push(Span::new(at + start, self.max)),
                        TooLong::Reject => refused.push(Refused {
                            span: Span::new(at + start, self.max.min(HEAD_BYTES)),
                            reason: Reason::TooLong,
                            message: format!("longer than {} bytes", self.max),
                        }),
                    }
                    self.discard = discard;
                    at += next;
                }
                Frame::Filler(bytes) => at += bytes,
                Frame::Incomplete => {
                    self.scanned = buffer.len() - at;
                    break;
                }
                Frame::Nonsense(message) => {
                    let span = Span::new(at, (buffer.len() - at).min(HEAD_BYTES));
                    refused.push(Refused { span, reason: Reason::Undecodable, message: message.to_owned() });
                    self.is_lost = true;
                    at = buffer.len();
                }
            }
        }
        if at == 0 {
            return None;
        }
        let bytes = buffer.split_to(at).freeze();
        Some(self.piece(bytes, spans, refused))
    }

    /// What is left when nothing more will come.
    pub(crate) fn end(&mut self, buffer: &mut BytesMut, end: End) -> Option<Piece> {
        self.pass_over(buffer);
        if buffer.is_empty() || self.is_lost {
            return None;
        }
        let is_counted = match self.style {
            Style::OctetCounted => true,
            Style::Syslog => matches!(count(buffer), Count::Of { .. }),
        };
        let bytes = std::mem::take(buffer).freeze();
        if end == End::Closed && !is_counted {
            let spans = vec![Span::new(0, without_carriage_return(&bytes).len())];
            return Some(self.piece(bytes, spans, Vec::new()));
        }
        let message = match end {
            End::Closed => "the stream ended in the middle of a counted record",
            End::Broken => "the connection was cut in the middle of a record",
        };
        let refused = Refused {
            span: Span::new(0, bytes.len().min(HEAD_BYTES)),
            reason: Reason::Undecodable,
            message: message.to_owned(),
        };
        Some(self.piece(bytes, Vec::new(), vec![refused]))
    }

    fn piece(&mut self, bytes: Bytes, records: Vec<Span>, refused: Vec<Refused>) -> Piece {
        Piece { skipped: std::mem::take(&mut self.skipped), bytes, records, refused }
    }

    fn pass_over(&mut self, buffer: &mut BytesMut) {
        let bytes = match self.discard {
            Discard::Nothing => return,
            Discard::Line => match memchr2(b'\n', 0, buffer) {
                Some(at) => {
                    self.discard = Discard::Nothing;
                    at + 1
                }
                None => buffer.len(),
            },
            Discard::Bytes(left) => {
                let bytes = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - bytes as u64;
                self.discard = if left == 0 { Discard::Nothing } else { Discard::Bytes(left) };
                bytes
            }
        };
        self.skipped += bytes as u64;
        self.scanned = 0;
        // Not `advance`: the memory of what was passed over is given back when the rest is taken.
        let _ = buffer.split_to(bytes);
    }

    fn frame(&self, bytes: &[u8], scanned: usize) -> Frame {
        match self.style {
            Style::OctetCounted => match count(bytes) {
                Count::Of { header, len } => self.counted(bytes, header, len),
                Count::Unfinished => Frame::Incomplete,
                Count::None => Frame::Nonsense("a record must begin with the count of its bytes and a space"),
            },
            Style::Syslog => {
                // Between records some senders leave a trailer too many, or a space.
                if matches!(bytes[0], b' ' | b'\n' | b'\r' | 0) {
                    return Frame::Filler(1);
                }
                match count(bytes) {
                    // Text may begin with a number: only a priority after it makes it a count.
                    Count::Of { header, len } => match bytes.get(header) {
                        Some(b'<') => return self.counted(bytes, header, len),
                        Some(_) => {}
                        None => return Frame::Incomplete,
                    },
                    Count::Unfinished => return Frame::Incomplete,
                    Count::None => {}
                }
                self.line(bytes, scanned)
            }
        }
    }

    /// A record up to a newline or NUL, which is not among the first `scanned` bytes.
    fn line(&self, bytes: &[u8], scanned: usize) -> Frame {
        match memchr2(b'\n', 0, &bytes[scanned..]).map(|end| scanned + end) {
            Some(end) => match without_carriage_return(&bytes[..end]).len() {
                len if len > self.max => Frame::TooLong { start: 0, next: end + 1, discard: Discard::Nothing },
                len => Frame::Record { start: 0, len, next: end + 1 },
            },
            // One byte more than the bound may be a `\r`.
            None if bytes.len() > self.max + 1 => {
                Frame::TooLong { start: 0, next: bytes.len(), discard: Discard::Line }
            }
            None => Frame::Incomplete,
        }
    }

    fn counted(&self, bytes: &[u8], header: usize, len: usize) -> Frame {
        if len > self.max {
            if bytes.len() < header + self.max {
                return Frame::Incomplete;
            }
            let discard = Discard::Bytes((len - self.max) as u64);
            return Frame::TooLong { start: header, next: header + self.max, discard };
        }
        match bytes.get(header..header + len) {
            Some(record) => {
                let kept = record.strip_suffix(b"\n").unwrap_or(record).len();
                Frame::Record { start: header, len: kept, next: header + len }
            }
            None => Frame::Incomplete,
        }
    }
}

/// What `bytes` begin with, read as `MSG-LEN SP` of RFC 6587.
enum Count {
    Of { header: usize, len: usize },
    Unfinished,
    None,
}

fn count(bytes: &[u8]) -> Count {
    if bytes.first() == Some(&b'0') {
        return Count::None;
    }
    let mut len = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' if at < COUNT_DIGITS => len = len * 10 + usize::from(byte - b'0'),
            b' ' if at > 0 => return Count::Of { header: at + 1, len },
            _ => return Count::None,
        }
    }
    Count::Unfinished
}

pub(crate) fn without_carriage_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    /// Feeds `input` in steps of `step` bytes and tells what came out, a line each.
    fn cut_in_steps(style: Style, too_long: TooLong, input: &[u8], step: usize, end: End) -> String {
        let max = 20;
        let mut cutter = Cutter::new(style, max, too_long);
        let (mut buffer, mut told, mut passed) = (BytesMut::new(), String::new(), 0u64);
        let mut tell = |piece: Piece| {
            passed += piece.skipped;
            let records = piece.records.into_iter().map(|span| (span, String::new()));
            let refused =
                piece.refused.into_iter().map(|refused| (refused.span, format!(" refused: {}", refused.message)));
            let mut all: Vec<_> = records.chain(refused).collect();
            all.sort_by_key(|(span, _)| span.start);
            for (span, refused) in all {
                let at = passed + u64::from(span.start);
                writeln!(told, "{at} {:?}{refused}", String::from_utf8_lossy(span.of(&piece.bytes))).unwrap();
            }
            passed += piece.bytes.len() as u64;
        };
        for chunk in input.chunks(step) {
            buffer.extend_from_slice(chunk);
            while let Some(piece) = cutter.cut(&mut buffer) {
                tell(piece);
            }
            // What is held is bounded whatever comes: a record, its count, and what came last.
            assert!(buffer.len() <= max + COUNT_DIGITS + 2 + step, "{} bytes are held", buffer.len());
        }
        if let Some(piece) = cutter.end(&mut buffer, end) {
            tell(piece);
        }
        if cutter.is_lost() {
            told.push_str("lost\n");
        }
        told
    }

    fn check(style: Style, input: impl AsRef<[u8]>, expect: Expect) {
        let input = input.as_ref();
        let whole = cut_in_steps(style, TooLong::Reject, input, input.len().max(1), End::Closed);
        expect.assert_eq(&whole);
        for step in 1..7 {
            let stepwise = cut_in_steps(style, TooLong::Reject, input, step, End::Closed);
            assert_eq!(stepwise, whole, "{step} bytes at a time");
        }
    }

    #[test]
    fn counted_records_hold_whatever_they_hold() {
        check(
            Style::OctetCounted,
            "3 a\nb2 c\n1 \u{0}5 12345",
            expect![[r#"
            2 "a\nb"
            7 "c"
            11 "\0"
            14 "12345"
        "#]],
        );
    }

    #[test]
    fn a_count_that_is_none_loses_the_stream() {
        for nonsense in ["x 1", "1x", "0 ", " 1 a", "1234567890 a"] {
            let told = cut_in_steps(Style::OctetCounted, TooLong::Reject, nonsense.as_bytes(), 1, End::Closed);
            assert!(told.ends_with("lost\n"), "{nonsense}: {told}");
        }
    }

    #[test]
    fn a_counted_record_that_is_too_long_is_passed_over() {
        check(
            Style::OctetCounted,
            format!("30 {}3 abc", "x".repeat(30)),
            expect![[r#"
            3 "xxxxxxxxxxxxxxxxxxxx" refused: longer than 20 bytes
            35 "abc"
        "#]],
        );
    }

    #[test]
    fn the_rest_of_a_cut_line_does_not_become_a_record() {
        let input = format!("a\n{}\nb\n", "x".repeat(31));
        for step in 1..40 {
            let told = cut_in_steps(Style::Syslog, TooLong::Truncate, input.as_bytes(), step, End::Closed);
            assert_eq!(told, "0 \"a\"\n2 \"xxxxxxxxxxxxxxxxxxxx\"\n34 \"b\"\n", "{step} bytes at a time");
        }
    }

    #[test]
    fn a_line_of_just_the_greatest_length_passes_whatever_ends_it() {
        let line = "x".repeat(20);
        for end in ["\n", "\r\n", "\0", ""] {
            let input = format!("{line}{end}");
            for step in 1..23 {
                let told = cut_in_steps(Style::Syslog, TooLong::Reject, input.as_bytes(), step, End::Closed);
                assert_eq!(told, format!("0 \"{line}\"\n"), "{end:?}, {step} bytes at a time");
            }
        }
    }

    #[test]
    fn syslog_senders_may_count_or_end_their_records_even_on_one_connection() {
        check(
            Style::Syslog,
            "5 <1>ab<2>c\n <3>d\r\n<4>e\x0017 birds\n2026-01\n42\n",
            expect![[r#"
            2 "<1>ab"
            7 "<2>c"
            13 "<3>d"
            19 "<4>e"
            24 "17 birds"
            33 "2026-01"
            41 "42"
        "#]],
        );
    }

    #[test]
    fn a_cut_connection_leaves_no_half_record() {
        let told = cut_in_steps(Style::Syslog, TooLong::Reject, b"a\nhal", 2, End::Broken);
        expect![[r#"
            0 "a"
            2 "hal" refused: the connection was cut in the middle of a record
        "#]]
        .assert_eq(&told);
    }

    #[test]
    fn a_hundred_megabytes_without_an_end_are_not_held() {
        for first in ["x", "999999999 <1>"] {
            let mut cutter = Cutter::new(Style::Syslog, 1 << 20, TooLong::Reject);
            let (mut buffer, mut refused, chunk) = (BytesMut::from(first), 0, vec![b'x'; 1 << 16]);
            for _ in 0..1600 {
                buffer.extend_from_slice(&chunk);
                while let Some(piece) = cutter.cut(&mut buffer) {
                    refused += piece.refused.len();
                }
                assert!(buffer.len() <= (1 << 20) + (1 << 16) + 20);
            }
            assert_eq!(refused, 1);
        }
    }

    #[test]
    fn any_bytes_give_the_same_records_however_they_arrive() {
        // A small alphabet, so that counts, delimiters and priorities meet in every order.
        let alphabet = b"019 <>\n\r\0a";
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for round in 0..300 {
            let input: Vec<u8> = (0..60)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    alphabet[(state % alphabet.len() as u64) as usize]
                })
                .collect();
            let whole = cut_in_steps(Style::Syslog, TooLong::Truncate, &input, 60, End::Closed);
            for step in [1, 7, 23] {
                let stepwise = cut_in_steps(Style::Syslog, TooLong::Truncate, &input, step, End::Closed);
                assert_eq!(stepwise, whole, "round {round}, {step} bytes: {input:?}");
            }
        }
    }

    /// The vectors of a Go parser that is widely used: a frame for each of its results that has a message, a refusal
    /// for each that has only an error.
    #[test]
    fn published_vectors_are_framed_as_they_say() {
        let Some(vectors) = crate::conformance::corpus("syslog/framing.jsonl") else { return };
        let (mut agree, mut differ) = (0, Vec::new());
        for line in vectors.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let vector: serde_json::Value = serde_json::from_slice(line).unwrap();
            let is_counted = vector["framing"] == "octetcounting";
            let style = if is_counted { Style::OctetCounted } else { Style::Syslog };
            for trailer in if is_counted { &[""][..] } else { &["\n", "\0"] } {
                let input = vector["input"].as_str().unwrap().replace("%[1]s", trailer);
                let mut cutter = Cutter::new(style, 1 << 20, TooLong::Reject);
                let (mut buffer, mut frames, mut refused) = (BytesMut::from(input.as_bytes()), 0, 0);
                let mut count = |piece: Piece| {
                    frames += piece.records.len();
                    refused += piece.refused.len();
                };
                while let Some(piece) = cutter.cut(&mut buffer) {
                    count(piece);
                }
                if let Some(piece) = cutter.end(&mut buffer, End::Closed) {
                    count(piece);
                }
                let wanted = vector["best_effort_results"].as_array().unwrap();
                if frames + refused == wanted.len() {
                    agree += 1;
                } else {
                    differ.push(format!(
                        "{}: {frames} frames, {refused} refused, wanted {}",
                        vector["id"],
                        wanted.len()
                    ));
                }
            }
        }
        println!("{agree} vectors agree, {} differ", differ.len());
        expect![[r#""octetcounting/0": 0 frames, 0 refused, wanted 1"#]].assert_eq(&differ.join("\n"));
    }
}
