//! What tests of codecs share: every codec must find the same fields by projection as in the whole record.

#[cfg(test)]
use expect_test::Expect;
#[cfg(test)]
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::{Codec, Columns, PathTable, Projection};
use tocsin_pipeline::event::Span;
use vrl::path::{OwnedSegment, OwnedValuePath};
use vrl::value::{KeyString, Value};

use super::top_level;

/// Text is text, whichever of the two kinds it is held in; objects read back from JSON hold the other one.
fn plain(value: Value) -> Value {
    match value {
        Value::String(text) => Value::Bytes(bytes::Bytes::copy_from_slice(text.as_bytes())),
        Value::Object(object) => Value::Object(object.into_iter().map(|(key, value)| (key, plain(value))).collect()),
        Value::Array(values) => Value::Array(values.into_iter().map(plain).collect()),
        other => other,
    }
}

/// Decodes paths of one record, with other records before and after it in the block.
fn decode(codec: &dyn Codec, record: &[u8], paths: &[OwnedValuePath]) -> Result<Vec<Option<Value>>, String> {
    let block = [b"before", record, b"after"].concat();
    let spans = [Span::new(6, record.len())];
    let mut table = PathTable::default();
    let fields: Vec<_> = paths.iter().map(|path| table.intern(path)).collect();
    let (mut columns, mut rejected) = (Columns::default(), Vec::new());
    let projection = Projection::new(fields.iter().cloned());
    columns.decode_rows(codec, &block, &spans, &mut (0..1), &projection, &mut rejected);
    let found = fields.iter().map(|field| columns.field(&block, 0, field).to_value().map(plain)).collect();
    match rejected.pop() {
        Some((_, error)) => {
            assert!(
                columns.cells(&fields[0]).is_none_or(|cells| cells[0] == Default::default()),
                "a refused row is empty"
            );
            Err(error.to_string())
        }
        None => Ok(found),
    }
}

/// Checks that projection and whole record agree on one record: what is accepted, why not, and every field.
pub(crate) fn check(codec: &dyn Codec, record: &[u8]) {
    let shown = String::from_utf8_lossy(record);
    let value = match codec.value(record) {
        Ok(value) => plain(value),
        Err(error) => {
            let projected = decode(codec, record, &[top_level("message")]);
            assert_eq!(projected, Err(error.to_string()), "only one accepts {shown:?}");
            assert!(!codec.accepts_all(), "does not accept {shown:?}");
            return;
        }
    };
    let Value::Object(object) = &value else {
        // JSON that is no object has no fields, and is refused by none.
        assert_eq!(decode(codec, record, &[top_level("message")]), Ok(vec![None]), "{shown:?}");
        return;
    };
    let mut paths: Vec<OwnedValuePath> = object.keys().map(|key| top_level(key)).collect();
    // A field that is not there, and paths below fields.
    paths.push(top_level("no such field"));
    for path in paths.clone() {
        for below in [OwnedSegment::field("x"), OwnedSegment::Index(0)] {
            let mut deeper = path.clone();
            deeper.segments.push(below);
            paths.push(deeper);
        }
    }
    for (outer, inner) in object.iter().filter_map(|(key, inner)| Some((key, inner.as_object()?))) {
        let mut below = |key: &KeyString| {
            let mut path = top_level(outer);
            path.segments.push(OwnedSegment::Field(key.clone()));
            paths.push(path.clone());
            path
        };
        let inner: Vec<_> = inner.iter().map(|(key, value)| (below(key), value)).collect();
        for (path, value) in inner {
            for key in value.as_object().into_iter().flat_map(|object| object.keys()) {
                let mut path = path.clone();
                path.segments.push(OwnedSegment::Field(key.clone()));
                paths.push(path);
            }
        }
    }
    let together = decode(codec, record, &paths).unwrap_or_else(|error| panic!("only one accepts {shown:?}: {error}"));
    for (path, found) in paths.iter().zip(together) {
        let expected = value.get(path).cloned();
        assert_eq!(found, expected, "{path} of {shown:?}, decoded with others");
        let alone = decode(codec, record, std::slice::from_ref(path)).expect("accepted with others");
        assert_eq!(alone[0], expected, "{path} of {shown:?}, decoded alone");
    }
    assert!(decode(codec, record, &[]).is_ok(), "refused when nothing is wanted: {shown:?}");
}

#[cfg(test)]
/// Checks some records, and what becomes of each when it is cut short or one of its bytes changes.
pub(super) fn check_all(codec: &dyn Codec, records: &[&str]) {
    for record in records {
        let record = record.as_bytes();
        check(codec, record);
        for at in 0..record.len() {
            check(codec, &record[..at]);
            for byte in [0, b' ', b'"', b'\\', b'-', b'=', b']', b'9', 0xff] {
                let mut changed = record.to_vec();
                changed[at] = byte;
                check(codec, &changed);
            }
        }
    }
}

#[cfg(test)]
/// The event a codec makes of a record, as JSON, or why it refuses it.
pub(super) fn show(codec: &dyn Codec, record: &str) -> String {
    match codec.value(record.as_bytes()) {
        Ok(value) => value.to_string(),
        Err(error) => format!("{}: {error}", error.reason),
    }
}

#[cfg(test)]
/// Builds a codec from its options and checks it on some records, whose events must be `expected`.
pub(super) fn check_events<C: CodecConfig>(options: &str, records: &[&str], expected: Expect) {
    let config: C = toml::from_str(options).unwrap();
    assert_eq!(config.problems(), []);
    let codec = config.build();
    check_all(&*codec, records);
    let shown: Vec<_> = records.iter().map(|record| show(&*codec, record)).collect();
    expected.assert_eq(&shown.join("\n"));
}
