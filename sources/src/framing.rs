//! Cutting a stream of bytes into records: lines, NUL-ended records, and lines that belong together.
//!
//! A [`LineFramer`] is pure: bytes at known offsets go in, whole records come out. The common case, lines of bearable length,
//! costs one search for the last newline of a chunk and no copy. A record that is too long is never held: its head is kept
//! and the rest is passed over.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use memchr::{memchr, memchr_iter, memrchr};
use serde_json::Value as Json;
use tocsin_pipeline::event::{Lane, Span};
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::source::{
    Block, Framing, Gone, Multiline, MultilineMode, RecordOptions, SourceContext, SourceEvent, TooLong,
};
use tocsin_pipeline::time::Timestamp;

/// How much of a refused record its dead letter holds.
const HEAD_BYTES: usize = 4096;

/// What ends a record on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delimiter {
    /// `\n`; a `\r` before it does not belong to the record.
    Newline,
    /// A zero byte; the record may hold newlines.
    Nul,
}

/// What a [`LineFramer`] hands out, in the order of the stream.
#[derive(Debug)]
pub(crate) enum Framed {
    /// Whole records: what a [`Block`] is made of.
    Records {
        bytes: Bytes,
        framing: Framing,
        /// The offset of the first byte.
        base: u64,
        /// Where reading goes on after them.
        end: u64,
    },
    /// A record that was too long.
    Rejected { offset: u64, end: u64, message: String, head: Bytes },
}

/// Cuts one stream into records.
#[derive(Debug)]
pub(crate) struct LineFramer {
    options: RecordOptions,
    delimiter: Delimiter,
    /// The offset of the next byte that will be pushed.
    next: u64,
    /// What has been pushed and is not framed yet: the open group, then an unfinished line. At most two records long.
    pending: Vec<u8>,
    open: Open,
    /// When the last whole line of the open group came, by the monotonic clock.
    touched: Duration,
    /// Set while a record that is too long goes by.
    skipped: Option<Skipped>,
}

/// The lines at the front of `pending` that belong together so far.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    lines: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Skipped {
    offset: u64,
    head: Vec<u8>,
}

/// A part of a chunk, before it is cut out.
enum Piece {
    Records(Range<usize>, Framing),
    TooLong(Range<usize>),
}

impl LineFramer {
    /// A framer for a stream that is read from `offset`.
    pub(crate) fn new(options: &RecordOptions, delimiter: Delimiter, offset: u64) -> Self {
        Self {
            options: options.clone(),
            delimiter,
            next: offset,
            pending: Vec::new(),
            open: Open::default(),
            touched: Duration::ZERO,
            skipped: None,
        }
    }

    /// Where reading would have to start again to see everything that has not been handed out.
    pub(crate) fn position(&self) -> u64 {
        match &self.skipped {
            Some(skipped) => skipped.offset,
            None => self.next - self.pending.len() as u64,
        }
    }

    /// What was pushed from [`Self::position`] on: an unfinished record. Of one that is too long nothing, its head being told
    /// when it has gone by.
    pub(crate) fn unfinished(&self) -> Bytes {
        match &self.skipped {
            Some(_) => Bytes::new(),
            None => Bytes::copy_from_slice(&self.pending),
        }
    }

    /// The offset of the next byte to be pushed.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next
    }

    /// Moves the unfinished record to the front of an empty buffer that the caller goes on filling and then pushes as a
    /// whole: so the next chunk needs no copy. Does nothing where the buffer is small beside the record, as a record that
    /// comes in many small pieces would be copied once for each.
    pub(crate) fn carry(&mut self, buffer: &mut Vec<u8>) {
        debug_assert!(buffer.is_empty(), "the record must stand at the front");
        if !self.pending.is_empty() && self.pending.len() <= buffer.capacity() / 8 {
            buffer.extend_from_slice(&self.pending);
            self.next -= self.pending.len() as u64;
            self.pending.clear();
        }
    }

    /// Takes the next bytes of the stream and hands out the records that are whole. `now` is the monotonic clock.
    pub(crate) fn push(&mut self, mut chunk: Bytes, now: Duration, out: &mut Vec<Framed>) {
        if let Some(skipped) = &self.skipped {
            let Some(end) = memchr(self.delimiter.byte(), &chunk) else {
                self.next += chunk.len() as u64;
                return;
            };
            self.next += end as u64 + 1;
            let length = self.next - 1 - skipped.offset;
            out.extend(self.skipped.take().map(|skipped| skipped.into_framed(&self.options, length, self.next)));
            chunk = chunk.slice(end + 1..);
        }
        if chunk.is_empty() {
            return;
        }
        self.next += chunk.len() as u64;
        let lines_before = self.open;
        if self.pending.is_empty() {
            let framed = self.frame(&chunk, out);
            self.pending.extend_from_slice(&chunk[framed..]);
        } else {
            // What is pending holds no end of a record that is not known yet, so it is not searched again without need.
            let whole = memchr(self.delimiter.byte(), &chunk).is_some();
            self.pending.extend_from_slice(&chunk);
            if whole {
                let joined = Bytes::from(std::mem::take(&mut self.pending));
                let framed = self.frame(&joined, out);
                self.pending = if framed == 0 {
                    joined.try_into_mut().map_or_else(|shared| shared.to_vec(), Vec::from)
                } else {
                    joined[framed..].to_vec()
                };
            }
        }
        if self.open.lines != lines_before.lines || self.open.bytes != lines_before.bytes {
            self.touched = now;
        }
        self.skip_what_is_too_long(out);
    }

    /// When [`Self::flush_due`] should be called, by the monotonic clock.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let multiline = self.options.multiline.as_ref()?;
        (self.open.lines > 0).then(|| self.touched + multiline.timeout)
    }

    /// Hands out lines that belong together when no further one has come for the time configured.
    pub(crate) fn flush_due(&mut self, now: Duration, out: &mut Vec<Framed>) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.close_open(out);
        }
    }

    /// The stream has ended: what is left is a record too, as if its end had come.
    pub(crate) fn finish(&mut self, out: &mut Vec<Framed>) {
        let (end, first) = (self.next, out.len());
        if self.skipped.is_some() || self.pending.len() > self.open.bytes {
            self.push(Bytes::copy_from_slice(&[self.delimiter.byte()]), self.touched, out);
        }
        self.close_open(out);
        self.next = end;
        for framed in &mut out[first..] {
            framed.cut_off(end);
        }
    }

    fn close_open(&mut self, out: &mut Vec<Framed>) {
        self.close(self.open.bytes, out);
    }

    /// Hands out the first bytes of what is pending as one record.
    fn close(&mut self, length: usize, out: &mut Vec<Framed>) {
        if length == 0 {
            return;
        }
        let base = self.next - self.pending.len() as u64;
        let bytes = Bytes::copy_from_slice(&self.pending[..length]);
        self.pending.drain(..length);
        self.open = Open::default();
        let framing = if self.is_plain() {
            Framing::Lines
        } else {
            let record = self.delimiter.trim(&bytes);
            Framing::Spans(if record.is_empty() { Vec::new() } else { vec![Span::new(0, record.len())] })
        };
        out.push(Framed::Records { end: base + bytes.len() as u64, bytes, framing, base });
    }

    fn is_plain(&self) -> bool {
        self.delimiter == Delimiter::Newline && self.options.multiline.is_none()
    }

    /// Cuts the whole records out of a chunk that ends at `self.next`; returns how much of it they take.
    fn frame(&mut self, chunk: &Bytes, out: &mut Vec<Framed>) -> usize {
        let mut pieces = Vec::new();
        let framed =
            if self.is_plain() { self.frame_lines(chunk, &mut pieces) } else { self.frame_spans(chunk, &mut pieces) };
        let start = self.next - chunk.len() as u64;
        for piece in pieces {
            out.push(match piece {
                Piece::Records(range, framing) => Framed::Records {
                    base: start + range.start as u64,
                    end: start + range.end as u64,
                    bytes: chunk.slice(range),
                    framing,
                },
                Piece::TooLong(range) => {
                    let head = &chunk[range.start..range.end.min(range.start + self.head_bytes())];
                    Skipped { offset: start + range.start as u64, head: head.to_vec() }.into_framed(
                        &self.options,
                        range.len() as u64,
                        start + range.end as u64 + 1,
                    )
                }
            });
        }
        framed
    }

    /// Lines, without looking at each: as long as there is a newline within every stretch of the greatest length, no
    /// line can be longer.
    fn frame_lines(&self, chunk: &[u8], pieces: &mut Vec<Piece>) -> usize {
        let Some(last) = memrchr(b'\n', chunk) else { return 0 };
        let max = self.options.max_record_bytes;
        let end = last + 1;
        let (mut run, mut at) = (0, 0);
        while end - at > max + 2 {
            // Two more than the record: for `\r\n`.
            if let Some(newline) = memrchr(b'\n', &chunk[at..=at + max]) {
                at += newline + 1;
                continue;
            }
            let newline = at + memchr(b'\n', &chunk[at..]).expect("the chunk was cut after a newline");
            if self.is_too_long(&chunk[at..newline]) {
                if at > run {
                    pieces.push(Piece::Records(run..at, Framing::Lines));
                }
                pieces.push(Piece::TooLong(at..newline));
                run = newline + 1;
            }
            at = newline + 1;
        }
        // What is left is short enough to be one line that is two bytes too long at most.
        if end > at && self.is_too_long(&chunk[at..last]) && !chunk[at..last].contains(&b'\n') {
            if at > run {
                pieces.push(Piece::Records(run..at, Framing::Lines));
            }
            pieces.push(Piece::TooLong(at..last));
            run = end;
        }
        if end > run {
            pieces.push(Piece::Records(run..end, Framing::Lines));
        }
        end
    }

    /// Records that have to be found one by one.
    fn frame_spans(&mut self, chunk: &[u8], pieces: &mut Vec<Piece>) -> usize {
        let max = self.options.max_record_bytes;
        let max_lines = self.options.multiline.as_ref().map_or(1, |multiline| multiline.max_lines);
        let (mut run, mut spans) = (0, Vec::new());
        // A group begins at `group`, has `lines` lines, and the next line begins at `at`.
        let (mut group, mut lines, mut at) = (0, self.open.lines, self.open.bytes);
        let delimiter = self.delimiter;
        let close = |run: usize, range: Range<usize>, spans: &mut Vec<Span>| {
            let record = delimiter.trim(&chunk[range.clone()]);
            if !record.is_empty() {
                spans.push(Span::new(range.start - run, record.len()));
            }
        };
        let first = at;
        for end in memchr_iter(delimiter.byte(), &chunk[first..]).map(|end| first + end) {
            let line = delimiter.trim(&chunk[at..=end]);
            if line.len() > max {
                if lines > 0 {
                    close(run, group..at, &mut spans);
                }
                if at > run {
                    pieces.push(Piece::Records(run..at, Framing::Spans(std::mem::take(&mut spans))));
                }
                pieces.push(Piece::TooLong(at..end));
                (run, group, lines) = (end + 1, end + 1, 0);
            } else {
                let joins = self.options.multiline.as_ref().map_or(Joins::ALONE, |multiline| joins(multiline, line));
                if lines > 0 && (joins.begins || end - group > max) {
                    close(run, group..at, &mut spans);
                    (group, lines) = (at, 0);
                }
                lines += 1;
                if joins.ends || lines >= max_lines {
                    close(run, group..end + 1, &mut spans);
                    (group, lines) = (end + 1, 0);
                }
            }
            at = end + 1;
        }
        if group > run {
            pieces.push(Piece::Records(run..group, Framing::Spans(spans)));
        }
        self.open = Open { lines, bytes: if lines == 0 { 0 } else { at - group } };
        group
    }

    /// An unfinished line that is too long already is kept no longer.
    fn skip_what_is_too_long(&mut self, out: &mut Vec<Framed>) {
        // One more than the record: for a `\r` whose newline has not come yet.
        if self.pending.len() - self.open.bytes <= self.options.max_record_bytes + 1 {
            return;
        }
        self.close_open(out);
        let offset = self.next - self.pending.len() as u64;
        let mut head = std::mem::take(&mut self.pending);
        head.truncate(self.head_bytes());
        head.shrink_to_fit();
        self.skipped = Some(Skipped { offset, head });
    }

    fn head_bytes(&self) -> usize {
        match self.options.too_long {
            TooLong::Truncate => self.options.max_record_bytes,
            TooLong::Reject => HEAD_BYTES.min(self.options.max_record_bytes),
        }
    }

    fn is_too_long(&self, line: &[u8]) -> bool {
        line.strip_suffix(b"\r").unwrap_or(line).len() > self.options.max_record_bytes
    }
}

impl Framed {
    /// Takes away what lies past the end of the stream.
    fn cut_off(&mut self, stream_end: u64) {
        match self {
            Self::Records { bytes, base, end, .. } if *end > stream_end => {
                // Of a record that was cut to its head, nothing lies there, whatever its last byte looks like.
                bytes.truncate(usize::try_from(stream_end - *base).unwrap_or(usize::MAX));
                *end = stream_end;
            }
            Self::Rejected { end, .. } => *end = stream_end.min(*end),
            Self::Records { .. } => {}
        }
    }
}

impl Skipped {
    fn into_framed(self, options: &RecordOptions, length: u64, end: u64) -> Framed {
        let Self { offset, head } = self;
        match options.too_long {
            TooLong::Truncate => {
                let framing = Framing::Spans(vec![Span::new(0, head.len())]);
                Framed::Records { bytes: head.into(), framing, base: offset, end }
            }
            TooLong::Reject => Framed::Rejected {
                offset,
                end,
                message: format!(
                    "a record of {length} bytes is longer than max_record_bytes, which is {}",
                    options.max_record_bytes
                ),
                head: head.into(),
            },
        }
    }
}

impl Delimiter {
    fn byte(self) -> u8 {
        match self {
            Self::Newline => b'\n',
            Self::Nul => 0,
        }
    }

    /// A record without what ends it.
    pub(crate) fn trim(self, record: &[u8]) -> &[u8] {
        match self {
            Self::Newline => {
                let record = record.strip_suffix(b"\n").unwrap_or(record);
                record.strip_suffix(b"\r").unwrap_or(record)
            }
            Self::Nul => record.strip_suffix(b"\0").unwrap_or(record),
        }
    }
}

/// What a line does to the group that is open.
#[derive(Clone, Copy)]
struct Joins {
    /// It does not belong to it.
    begins: bool,
    /// It is the last of its group.
    ends: bool,
}

impl Joins {
    const ALONE: Self = Self { begins: true, ends: true };
}

fn joins(multiline: &Multiline, line: &[u8]) -> Joins {
    let matches = multiline.pattern.is_match(line);
    match multiline.mode {
        MultilineMode::Start => Joins { begins: matches, ends: false },
        MultilineMode::End => Joins { begins: false, ends: matches },
        MultilineMode::ContinuePast => Joins { begins: false, ends: !matches },
        MultilineMode::ContinueThrough => Joins { begins: !matches, ends: false },
    }
}

/// Hands over what was framed. `position` makes the lane's position of an offset.
pub(crate) async fn emit(
    context: &SourceContext,
    lane: &Arc<Lane>,
    framed: Vec<Framed>,
    arrival: Timestamp,
    mut position: impl FnMut(u64) -> Json + Send,
) -> Result<(), Gone> {
    for framed in framed {
        match framed {
            Framed::Records { bytes, framing, base, end } => {
                let position = position(end);
                let block = Block { bytes, framing, base, position, arrival, acknowledgement: None, notes: None };
                context.emit(SourceEvent::Block(Arc::clone(lane), block)).await?;
            }
            Framed::Rejected { offset, end, message, head } => {
                let (lane, position) = (Arc::clone(lane), position(end));
                let reason = Reason::TooLong;
                context.emit(SourceEvent::Rejected { lane, offset, reason, message, raw: head, position }).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
