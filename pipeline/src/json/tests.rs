use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vrl::path::parse_value_path;
use vrl::value::Value;

use super::*;
use crate::codec::{Codec, Columns, DecodeError, PathTable, Projection};
use crate::event::Span;

/// The paths whose fields the tests compare; they overlap on purpose.
const PATHS: [&str; 14] = [
    ".a",
    ".b",
    ".a.b",
    ".a.b.c",
    ".a[0]",
    ".a[-1]",
    ".a[1].b",
    ".b[-2]",
    ".\"a b\"",
    ".c",
    ".\"é\"",
    ".\"\u{fffd}\"",
    ".c.\"\"",
    "[0]",
];

type Outcome = Result<Vec<Option<Value>>, DecodeError>;

/// What a projection of `paths` finds in each of the records, decoded together.
fn decode(records: &[&[u8]], paths: &[&str]) -> Vec<Outcome> {
    let mut table = PathTable::default();
    let paths: Vec<_> = paths
        .iter()
        .map(|path| table.intern(&parse_value_path(path.strip_prefix('.').unwrap_or(path)).unwrap()))
        .collect();
    let mut block = Vec::new();
    let mut spans = Vec::new();
    for record in records {
        spans.push(Span::new(block.len(), record.len()));
        block.extend_from_slice(record);
    }
    let (mut columns, mut rejected) = (Columns::default(), Vec::new());
    let mut rows = 0..spans.len() as u32;
    let projection = Projection::new(paths.iter().cloned());
    columns.decode_rows(&JsonCodec, &block, &spans, &mut rows, &projection, &mut rejected);
    (0..spans.len() as u32)
        .map(|row| {
            let fields: Vec<_> = paths.iter().map(|path| columns.field(&block, row, path).to_value()).collect();
            match rejected.iter().find(|(rejected, _)| *rejected == row) {
                Some((_, error)) => {
                    assert!(fields.iter().all(Option::is_none), "a refused record has fields");
                    Err(error.clone())
                }
                None => Ok(fields),
            }
        })
        .collect()
}

/// What the whole value of a record holds at `paths`.
fn get(record: &[u8], paths: &[&str]) -> Outcome {
    let value = JsonCodec.value(record)?;
    let path = |path: &&str| parse_value_path(path.strip_prefix('.').unwrap_or(path)).unwrap();
    Ok(paths.iter().map(|text| value.get(&path(text)).cloned()).collect())
}

fn written(text: &str) -> String {
    let mut out = Vec::new();
    match parse_value(text.as_bytes()) {
        Ok(value) => write_value(&value, &mut out),
        Err(error) => out.extend_from_slice(format!("{}: {error}", error.reason).as_bytes()),
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn values_are_read_and_written_back() {
    for (text, expected) in [
        (r#" {"b": 1, "a" : [true,false,null]} "#, r#"{"a":[true,false,null],"b":1}"#),
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#),
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775808", "9.223372036854776e+18"),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("1.0", "1.0"),
        ("12.345", "12.345"),
        ("0.1", "0.1"),
        ("1e2", "100.0"),
        ("1e-400", "0.0"),
        ("1e400", "number_out_of_range: a number that no double can hold at byte 0"),
        (r#""\u0000\b\f\n\r\t\"\\\/\u001f\u007f""#, "\"\\u0000\\b\\f\\n\\r\\t\\\"\\\\/\\u001f\u{7f}\""),
        (r#""\ud83d\ude00""#, "\"😀\""),
        (r#""\ud83d""#, "\"\u{fffd}\""),
        (r#""\ude00x\ud83dA""#, "\"\u{fffd}x\u{fffd}A\""),
        (r#""\ud83d\ud83d\ude00""#, "\"\u{fffd}😀\""),
        ("", "invalid_json: expected a value at byte 0"),
        ("{\"a\":1}x", "invalid_json: text after the end of the value at byte 7"),
        ("{\"a\":1,}", "invalid_json: expected a key in quotes at byte 7"),
        ("[1 2]", "invalid_json: expected a comma or the end of the array at byte 3"),
        ("\"a\tb\"", "invalid_json: a control character within a string at byte 2"),
        ("\"abc", "invalid_json: a string does not end at byte 4"),
        (r#""\x""#, "invalid_json: an escape that JSON does not have at byte 1"),
        ("01", "invalid_json: text after the end of the value at byte 1"),
        ("nul", "invalid_json: expected true, false or null at byte 0"),
    ] {
        assert_eq!(written(text), expected, "{text}");
    }
}

#[test]
fn a_record_may_be_nested_128_deep_and_no_deeper() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert!(parse_value(nested(128).as_bytes()).is_ok());
        assert_eq!(parse_value(nested(129).as_bytes()).unwrap_err().reason, "too_deep");
        let (fits, deep) = (nested(128), nested(129));
        let decoded = decode(&[fits.as_bytes(), deep.as_bytes()], &[".a.a.b", ".x", "[0][-1]"]);
        assert!(decoded[0].is_ok());
        assert_eq!(decoded[1].as_ref().unwrap_err().reason, "too_deep");
    }
}

#[test]
fn text_that_is_not_utf8_is_kept_and_written_with_replacements() {
    let record = b"{\"a\":\"x\xffy\",\"\xff\":1}";
    let value = parse_value(record).unwrap();
    assert_eq!(value.get(&parse_value_path("a").unwrap()), Some(&Value::Bytes(b"x\xffy"[..].into())));
    let mut out = Vec::new();
    write_value(&value, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "{\"a\":\"x\u{fffd}y\",\"\u{fffd}\":1}");
    assert_eq!(decode(&[record], &PATHS)[0], get(record, &PATHS));
}

#[test]
fn times_are_written_as_chrono_writes_them() {
    for text in [
        "1970-01-01T00:00:00Z",
        "2026-11-20T12:00:00.5Z",
        "2024-02-29T23:59:59.000001Z",
        "0001-01-01T00:00:00.000000001Z",
        "2016-12-31T23:59:60.25Z",
    ] {
        let time = chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc();
        let expected = format!("\"{}\"", time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true));
        let mut out = Vec::new();
        write_value(&Value::Timestamp(time), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn floats_that_json_cannot_spell_are_null() {
    assert_eq!(float_text(f64::INFINITY), "null");
    assert_eq!(float_text(f64::NAN), "null");
    assert_eq!(float_text(3.0), "3.0");
}

#[test]
fn layouts_that_change_are_followed() {
    let records: Vec<&[u8]> = vec![
        br#"{"ts":1,"a":"x","b":2}"#,
        br#"{"ts":2,"a":"y","b":3}"#,
        br#"{"ts":3,"b":4}"#,
        br#"{"ts": 4, "a": "z", "b": 5}"#,
        br#"{"ts":5,"a": "w","b":6} "#,
        br#"{"b":7,"a":"v","ts":6}"#,
        br#"{"ts":1,"a":"x","b":2,"a":"last"}"#,
        br#"{"ts":1,"a":"x","b":2,}"#,
        br#"{"ts":1,"a":"x","b":2"#,
        br#"{"ts":1,"a":"x" "b":2}"#,
        br#"{}"#,
        br#"[{"a":1}]"#,
        br#"{"ts":2,"a":"y","b":3}}"#,
        br#"{"ts":2,"a":{"b":{"c":1}},"a":{"b":2},"b":3}"#,
        br#"{"ts":2,"a":"escaped \" quote \u00e9","b":-1.5e3}"#,
    ];
    let expected: Vec<_> = records.iter().map(|record| get(record, &PATHS)).collect();
    assert_eq!(decode(&records, &PATHS), expected);
}

/// Pieces of JSON and near-JSON, so that random concatenations often are records and often almost are.
fn json_text() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        any::<i64>().prop_map(|integer| integer.to_string()),
        any::<f64>()
            .prop_filter("JSON has no infinities", |float| float.is_finite())
            .prop_map(|float| format!("{float:e}")),
        "-?[0-9]{1,40}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        "\"[ -~]{0,12}\"",
        "\"([a-zé]|\\\\n|\\\\u00e9|\\\\ud83d|\\\\ude00|\\\\\"){0,9}\"",
    ];
    let key = prop_oneof!["\"[abc]\"", Just("\"a b\"".to_owned()), Just("\"\\u0061\"".to_owned()), "\"[é\\\\]?\""];
    let space = prop_oneof![9 => Just(""), 1 => Just(" "), 1 => Just("\n\t")];
    let value = leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec((inner.clone(), space.clone()), 0..4).prop_map(|elements| {
                let elements: Vec<_> =
                    elements.into_iter().map(|(value, space)| format!("{space}{value}{space}")).collect();
                format!("[{}]", elements.join(","))
            }),
            proptest::collection::vec((key.clone(), inner, space.clone()), 0..5).prop_map(|members| {
                let members: Vec<_> = members
                    .into_iter()
                    .map(|(key, value, space)| format!("{space}{key}{space}:{space}{value}"))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    });
    // A byte changed at random is what tells a strict parser from a lenient one.
    (value, proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()))).prop_map(|(text, change)| {
        let mut text = text.into_bytes();
        if let Some((index, byte)) = change {
            let at = index.index(text.len());
            text[at] = byte;
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decoded_field_is_the_field_of_the_whole_value(records in proptest::collection::vec(json_text(), 1..8)) {
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let expected: Vec<_> = records.iter().map(|record| get(record, &PATHS)).collect();
        prop_assert_eq!(decode(&records, &PATHS), expected);
    }

    #[test]
    fn what_is_accepted_in_utf8_is_what_serde_json_accepts(text in json_text()) {
        if let Ok(text) = std::str::from_utf8(&text) {
            let known = serde_json::from_str::<serde_json::Value>(text);
            // Our one leniency that shows in UTF-8 text.
            let has_lone_surrogate = known.as_ref().is_err_and(|error| error.to_string().contains("surrogate") || error.to_string().contains("hex escape"));
            if !has_lone_surrogate {
                prop_assert_eq!(parse_value(text.as_bytes()).is_ok(), known.is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same(text in json_text()) {
        if let Ok(value) = parse_value(&text) {
            let mut out = Vec::new();
            write_value(&value, &mut out);
            let again = parse_value(&out).unwrap();
            let mut twice = Vec::new();
            write_value(&again, &mut twice);
            prop_assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(twice).unwrap());
            if std::str::from_utf8(&text).is_ok() {
                prop_assert_eq!(value, again);
            }
        }
    }

    #[test]
    fn decimal_fractions_are_rounded_as_the_standard_library_does(text in "-?(0|[1-9][0-9]{0,16})\\.[0-9]{1,17}") {
        let Ok(Value::Float(float)) = parse_value(text.as_bytes()) else { panic!("{text}") };
        prop_assert_eq!(float.into_inner().to_bits(), text.parse::<f64>().unwrap().to_bits());
    }
}

fn corpus() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    std::env::var_os("TOCSIN_CORPUS").map_or(default, PathBuf::from)
}

/// <https://github.com/nst/JSONTestSuite>: texts that every parser must accept (`y_`), must refuse (`n_`), or may (`i_`).
#[test]
fn the_public_conformance_suite_is_passed() {
    let folder = corpus().join("json_test_suite/test_parsing");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: no {}", folder.display());
        return;
    };
    let mut cases: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    // The two that are too large for a file of the suite's copy.
    cases.push(("n_structure_100000_opening_arrays.json".into(), b"[".repeat(100_000)));
    cases.push(("n_structure_open_array_object.json".into(), b"[{\"\":".repeat(50_000)));
    let mut wrong = Vec::new();
    for (name, text) in &cases {
        let value = JsonCodec.value(text);
        let decoded = decode(&[text], &PATHS).remove(0);
        assert_eq!(value.as_ref().err(), decoded.as_ref().err(), "{name}");
        match (name.as_bytes()[0], value.is_ok()) {
            (b'y', false) | (b'n', true) => wrong.push(name),
            _ => {}
        }
    }
    assert!(cases.len() > 200);
    assert!(wrong.is_empty(), "{wrong:?}");
}
