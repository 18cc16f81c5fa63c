//! What fuzzers call: each function takes any bytes, and panics where a promise does not hold. See `fuzz/`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::Codec;
use tocsin_pipeline::event::Span;
use tocsin_pipeline::source::{Framing, Multiline, MultilineMode, RecordOptions, TooLong};

use crate::codec::{agreement, combined, common, csv, json, logfmt, regex, syslog, text};
use crate::framing::{Delimiter, Framed, LineFramer};
use crate::http::body::{Packing, Unpacker, json_objects};
use crate::octets::{Cutter, End, Piece, Style};

/// A codec finds by projection what stands in the whole record, or both refuse it for the same reason.
macro_rules! codec {
    ($name:ident, $config:ty, $options:tt) => {
        pub fn $name(data: &[u8]) {
            static CODEC: LazyLock<Arc<dyn Codec>> = LazyLock::new(|| {
                let config: $config = serde_json::from_value(json!($options)).expect("the options are right");
                config.build()
            });
            agreement::check(&**CODEC, data);
        }
    };
}

codec!(codec_json, json::Config, {});
codec!(codec_logfmt, logfmt::Config, {});
codec!(codec_combined, combined::Config, {});
codec!(codec_common, common::Config, {});
codec!(codec_syslog, syslog::Config, {});
codec!(codec_csv, csv::Config, { "columns": ["a", "b", "c"] });
codec!(codec_regex, regex::Config, { "pattern": r"^(?P<a>\w+) (?P<n>-?[\d.e]+)(?: (?P<rest>.*))?$" });
codec!(codec_text, text::Config, {});

/// The records of framed bytes and the refusals between them, without the blocks they came in.
fn told(framed: &[Framed], delimiter: Delimiter) -> Vec<(u64, Vec<u8>, bool)> {
    let mut told = Vec::new();
    for framed in framed {
        match framed {
            Framed::Records { bytes, framing, base, end } => {
                assert!(base + bytes.len() as u64 <= *end, "records end where reading goes on, or before");
                let spans = match framing {
                    Framing::Spans(spans) => spans.clone(),
                    _ => lines(bytes, delimiter),
                };
                let record = |span: &Span| (base + u64::from(span.start), span.of(bytes).to_vec(), true);
                told.extend(spans.iter().map(record));
            }
            Framed::Rejected { offset, head, .. } => told.push((*offset, head.to_vec(), false)),
        }
    }
    told
}

fn lines(bytes: &[u8], delimiter: Delimiter) -> Vec<Span> {
    let mut start = 0;
    let mut spans = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let record = delimiter.trim(line);
        if !record.is_empty() {
            spans.push(Span::new(start, record.len()));
        }
        start += line.len();
    }
    spans
}

/// What comes out does not depend on how the bytes come in.
fn frame(options: &RecordOptions, delimiter: Delimiter, step: usize, data: &[u8]) {
    let run = |step: usize| {
        let (mut framer, mut out) = (LineFramer::new(options, delimiter, 0), Vec::new());
        for chunk in data.chunks(step) {
            framer.push(Bytes::copy_from_slice(chunk), Duration::ZERO, &mut out);
            assert!(framer.position() <= framer.next_offset());
        }
        framer.finish(&mut out);
        told(&out, delimiter)
    };
    assert_eq!(run(step), run(data.len().max(1)), "{step} bytes at a time");
}

fn options(how: u8, multiline: Option<Multiline>) -> RecordOptions {
    let too_long = if how & 1 == 0 { TooLong::Reject } else { TooLong::Truncate };
    let max_record_bytes = if how & 2 == 0 { 16 } else { 1 << 20 };
    RecordOptions { max_record_bytes, too_long, multiline }
}

pub fn framing_newline(data: &[u8]) {
    let [how, step, rest @ ..] = data else { return };
    frame(&options(*how, None), Delimiter::Newline, usize::from(*step).max(1), rest);
}

pub fn framing_nul(data: &[u8]) {
    let [how, step, rest @ ..] = data else { return };
    frame(&options(*how, None), Delimiter::Nul, usize::from(*step).max(1), rest);
}

pub fn framing_multiline(data: &[u8]) {
    let [how, step, rest @ ..] = data else { return };
    let (mode, pattern) = match (how >> 2) & 3 {
        0 => (MultilineMode::Start, r"^\d"),
        1 => (MultilineMode::End, r";$"),
        2 => (MultilineMode::ContinuePast, r"\\$"),
        _ => (MultilineMode::ContinueThrough, r"^\s"),
    };
    let pattern = ::regex::bytes::Regex::new(pattern).expect("a right pattern");
    let multiline = Multiline { pattern, mode, timeout: Duration::from_secs(1), max_lines: 4 };
    frame(&options(*how, Some(multiline)), Delimiter::Newline, usize::from(*step).max(1), rest);
}

/// Octet-counted, or counted and ended by newlines as syslog comes: cut the same however the bytes come in, and never held without bound.
pub fn framing_octets(data: &[u8]) {
    const MAX: usize = 20;
    let [how, step, rest @ ..] = data else { return };
    let style = if how & 1 == 0 { Style::OctetCounted } else { Style::Syslog };
    let too_long = if how & 4 == 0 { TooLong::Reject } else { TooLong::Truncate };
    let end = if how & 8 == 0 { End::Closed } else { End::Broken };
    let run = |step: usize| {
        let (mut cutter, mut buffer) = (Cutter::new(style, MAX, too_long), BytesMut::new());
        let (mut told, mut passed) = (Vec::new(), 0u64);
        let mut tell = |piece: Piece| {
            passed += piece.skipped;
            let records = piece.records.iter().map(|span| (*span, true));
            let refused = piece.refused.iter().map(|refused| (refused.span, false));
            for (span, is_record) in records.chain(refused) {
                // How much of nonsense a refusal shows depends on how much has come.
                let text = if is_record { span.of(&piece.bytes).to_vec() } else { Vec::new() };
                told.push((passed + u64::from(span.start), is_record, text));
            }
            passed += piece.bytes.len() as u64;
        };
        for chunk in rest.chunks(step) {
            buffer.extend_from_slice(chunk);
            while let Some(piece) = cutter.cut(&mut buffer) {
                tell(piece);
            }
            assert!(cutter.is_lost() || buffer.len() <= MAX + 16 + step, "{} bytes are held", buffer.len());
        }
        if let Some(piece) = cutter.end(&mut buffer, end) {
            tell(piece);
        }
        told.sort();
        (told, cutter.is_lost())
    };
    assert_eq!(run(usize::from(*step).max(1)), run(rest.len().max(1)), "{step} bytes at a time, {style:?}");
}

/// A body is unpacked within bounds, the same however it arrives, and its objects are taken.
pub fn http_body(data: &[u8]) {
    const MAX: usize = 1 << 20;
    let [how, step, rest @ ..] = data else { return };
    let packing = [Packing::Identity, Packing::Gzip, Packing::Zstd][usize::from(how % 3)];
    let run = |step: usize| {
        let mut unpacker = Unpacker::new(packing, MAX).expect("a decoder");
        for chunk in rest.chunks(step) {
            let pushed = unpacker.push(chunk);
            assert!(unpacker.len() <= MAX);
            pushed.ok()?;
        }
        unpacker.finish().ok()
    };
    let body = run(usize::from(*step).max(1));
    assert_eq!(body, run(rest.len().max(1)), "{step} bytes at a time");
    for only_one in [false, true] {
        if let Some(Ok(spans)) = body.as_ref().map(|body| json_objects(body, only_one)) {
            assert!(spans.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start), "one after the other");
        }
    }
}
