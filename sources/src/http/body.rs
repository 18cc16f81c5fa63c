//! What a request's body becomes: first its bytes, unpacked under bounds, then records.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use hyper::StatusCode;
use serde_json::value::RawValue;
use tocsin_pipeline::event::Span;
use zstd::stream::raw;
use zstd::stream::zio;

use super::Refusal;

/// A body may become so many times as long by unpacking it: real logs reach some thirty.
const RATIO_MAX: usize = 100;
/// Up to here any ratio will do: a hundred equal lines are no attack.
const RATIO_FREE: usize = 256 << 10;
/// Frames that need a larger window than 8 MiB (all of zstd's levels below `--ultra`) are refused.
const WINDOW_LOG_MAX: u32 = 23;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Identity,
    Gzip,
    Zstd,
}

/// Unpacks a body as it arrives.
pub(crate) enum Unpacker {
    Identity(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Zstd(Box<zio::Writer<Bounded, raw::Decoder<'static>>>),
}

/// Takes what was unpacked until there is too much of it.
pub(crate) struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    /// How many bytes have come in; the ratio is to these.
    received: usize,
    has_too_much: Option<&'static str>,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.bytes.len() + bytes.len();
        if len > self.max {
            self.has_too_much = Some("the body is longer than max_body_bytes");
        } else if len > RATIO_FREE && len > self.received.saturating_mul(RATIO_MAX) {
            self.has_too_much = Some("the body grows more than a hundredfold by unpacking it");
        }
        if self.has_too_much.is_some() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Unpacker {
    pub(crate) fn new(packing: Packing, max: usize) -> io::Result<Self> {
        let bounded = Bounded { bytes: Vec::new(), max, received: 0, has_too_much: None };
        Ok(match packing {
            Packing::Identity => Self::Identity(bounded),
            Packing::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(bounded))),
            Packing::Zstd => {
                let mut decoder = raw::Decoder::new()?;
                decoder.set_parameter(raw::DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Self::Zstd(Box::new(zio::Writer::new(bounded, decoder)))
            }
        })
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.bounded().received += bytes.len();
        let pushed = match self {
            Self::Identity(bounded) => bounded.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
            Self::Zstd(decoder) => decoder.write_all(bytes),
        };
        pushed.map_err(|error| self.refusal(&error))
    }

    /// How much has been unpacked so far.
    pub(crate) fn len(&mut self) -> usize {
        self.bounded().bytes.len()
    }

    pub(crate) fn finish(mut self) -> Result<Bytes, Refusal> {
        if self.bounded().received == 0 {
            // An empty body is one, packed or not.
            return Ok(Bytes::new());
        }
        let finished = match &mut self {
            Self::Identity(_) => Ok(()),
            Self::Gzip(decoder) => decoder.try_finish(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        finished.map_err(|error| self.refusal(&error))?;
        Ok(std::mem::take(&mut self.bounded().bytes).into())
    }

    fn bounded(&mut self) -> &mut Bounded {
        match self {
            Self::Identity(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.writer_mut(),
        }
    }

    fn refusal(&mut self, error: &io::Error) -> Refusal {
        match self.bounded().has_too_much {
            Some(message) => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            None => Refusal::new(StatusCode::BAD_REQUEST, format!("the body cannot be unpacked: {error}")),
        }
    }
}

/// The objects of a body of JSON, byte for byte: those of an array, or one after the other. Either all of it is well formed
/// or there are none.
pub(crate) fn json_objects(body: &[u8], only_one: bool) -> Result<Vec<Span>, Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let not_json = |error: serde_json::Error| bad(format!("the body is not JSON: {error}"));
    let is_array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let values: Vec<&RawValue> = if is_array {
        serde_json::from_slice(body).map_err(not_json)?
    } else {
        serde_json::Deserializer::from_slice(body).into_iter().collect::<Result<_, _>>().map_err(not_json)?
    };
    if only_one && !is_array && values.len() > 1 {
        return Err(bad(
            "there is more than one JSON value; send an array, or lines as application/x-ndjson".to_owned()
        ));
    }
    let mut spans = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        let text = value.get();
        if !text.starts_with('{') {
            return Err(bad(format!("value {} is not an object; nothing was taken", at + 1)));
        }
        spans.push(Span::new(text.as_ptr() as usize - body.as_ptr() as usize, text.len()));
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(packing: Packing, body: &[u8], step: usize) -> Result<Bytes, Refusal> {
        let mut unpacker = Unpacker::new(packing, 1 << 20).unwrap();
        for chunk in body.chunks(step) {
            unpacker.push(chunk)?;
        }
        unpacker.finish()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn packed_bodies_are_unpacked_however_they_arrive() {
        let text: Vec<u8> =
            (0..20_000u32).flat_map(|n| format!("{}\n", n.wrapping_mul(2_654_435_761)).into_bytes()).collect();
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        for step in [1, 1000, usize::MAX] {
            assert_eq!(unpack(Packing::Identity, &text, step).unwrap(), text);
            assert_eq!(unpack(Packing::Gzip, &gzip(&text), step).unwrap(), text);
            assert_eq!(unpack(Packing::Zstd, &zstd, step).unwrap(), text);
        }
        assert_eq!(unpack(Packing::Gzip, &[gzip(b"a\n"), gzip(b"b\n")].concat(), 7).unwrap(), "a\nb\n");
    }

    #[test]
    fn bombs_are_refused_while_they_unpack() {
        let bombs = [
            (Packing::Gzip, gzip(&vec![b'0'; 64 << 20])),
            (Packing::Zstd, zstd::encode_all(&vec![b'0'; 64 << 20][..], 3).unwrap()),
        ];
        for (packing, bomb) in bombs {
            let refusal = unpack(packing, &bomb, 4096).unwrap_err();
            assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE, "{packing:?}");
            assert!(refusal.message.contains("hundredfold"), "{}", refusal.message);
        }
        let refusal = unpack(Packing::Identity, &vec![b'0'; (1 << 20) + 1], 4096).unwrap_err();
        assert!(refusal.message.contains("max_body_bytes"), "{}", refusal.message);
    }

    #[test]
    fn what_was_cut_or_damaged_is_refused() {
        let text: Vec<u8> = (0..2000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for (packing, whole) in [(Packing::Gzip, gzip(&text)), (Packing::Zstd, zstd::encode_all(&text[..], 3).unwrap())]
        {
            for cut in [1, 5, whole.len() / 2, whole.len() - 1] {
                let refusal = unpack(packing, &whole[..cut], 100).expect_err("it is cut");
                assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{packing:?} cut at {cut}");
            }
            assert!(unpack(packing, b"not packed at all", 100).is_err());
        }
    }

    #[test]
    fn objects_keep_their_bytes() {
        let texts = |body: &str, only_one| {
            let spans = json_objects(body.as_bytes(), only_one).map_err(|refusal| refusal.message)?;
            Ok(spans.iter().map(|span| String::from_utf8(span.of(body.as_bytes()).to_vec()).unwrap()).collect())
        };
        let body = r#" [ {"a" : 1.0e2, "a":2} ,{"b":[ ]},{}] "#;
        assert_eq!(
            texts(body, true),
            Ok(vec![r#"{"a" : 1.0e2, "a":2}"#.into(), r#"{"b":[ ]}"#.into(), "{}".to_owned()])
        );
        assert_eq!(texts("{\"a\":\n1}\n{}", false), Ok(vec!["{\"a\":\n1}".to_owned(), "{}".to_owned()]));
        assert_eq!(texts("[]", true), Ok(vec![]));
        let refused: Result<Vec<String>, String> = texts("{}{}", true);
        assert!(refused.unwrap_err().contains("more than one"));
        for bad in ["[{},{]", "[{},1]", "[{}", "[{}]x", "{\"a\":tru}", "7", "[{\"a\":\"\u{1}\"}]"] {
            assert!(texts(bad, false).is_err(), "{bad}");
        }
        assert!(json_objects(b"[{\"a\":\"\xff\"}]", true).is_err(), "JSON is UTF-8");
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
        // Taken or refused, but answered.
        let _ = json_objects(deep.as_bytes(), true);
    }
}
