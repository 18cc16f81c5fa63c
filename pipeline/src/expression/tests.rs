use std::sync::Arc;

use bytes::Bytes;
use expect_test::expect;
use proptest::prelude::*;
use vrl::value::Value;

use super::*;
use crate::event::{Lane, Origin, Span};
use crate::json::{JsonCodec, write_value};
use crate::time::Timestamp;

/// A batch of JSON records from a file.
fn batch(records: &[&[u8]]) -> Batch {
    let lane = Lane {
        source: "test".into(),
        partition: "1".to_owned(),
        origin: Origin::File("test.log".into()),
        codec: Arc::new(JsonCodec),
        out_of_order: std::time::Duration::ZERO,
    };
    let (mut block, mut spans) = (Vec::new(), Vec::new());
    for record in records {
        spans.push(Span::new(block.len(), record.len()));
        block.extend_from_slice(record);
        block.push(b'\n');
    }
    Batch::new(Arc::new(lane), Bytes::from(block), 100, spans, Timestamp::from_secs(1_763_640_000))
}

/// The same records, each turned into a value as an operator would leave it.
fn changed(batch: &Batch) -> Batch {
    let mut changed = batch.clone();
    for row in batch.rows() {
        changed.replace(row, batch.value(row).into_owned());
    }
    changed
}

/// `true`, `false`, or `false!` where the condition failed.
fn verdict(condition: &Condition, batch: &Batch, row: u32) -> &'static str {
    let mut errors = 0;
    match (condition.is_true(batch, row, &mut errors), errors) {
        (true, 0) => "true",
        (false, 0) => "false",
        (false, 1) => "false!",
        _ => panic!("true, and failed"),
    }
}

fn check(source: &str, record: &str, expected: &str) {
    let condition = Condition::compile(source, &mut PathTable::default()).unwrap();
    let mut batch = batch(&[record.as_bytes()]);
    batch.decode(&condition.reads());
    let found = format!("{} {}", condition.way(), verdict(&condition, &batch, 0));
    assert_eq!(found, expected, "{source} of {record}");
}

#[test]
fn conditions_mean_what_they_mean_in_vrl() {
    for (source, record, expected) in [
        (r#".level == "ERROR""#, r#"{"level":"ERROR"}"#, "native true"),
        (r#"("ERROR" == (.level))"#, r#"{"level":"\u0045RROR"}"#, "native true"),
        (r#".level == "ERROR""#, r#"{}"#, "native false"),
        (".status >= 500", r#"{"status":500}"#, "native true"),
        (".status >= 500", r#"{"status":"500"}"#, "native false!"),
        (".status >= 500", "{}", "native false!"),
        ("500 < .status", r#"{"status":500.5}"#, "native true"),
        (".a == 1", r#"{"a":1.0}"#, "native true"),
        ("includes([1, 2], .a)", r#"{"a":1.0}"#, "native false"),
        ("includes(.tags, \"x\")", r#"{"tags":["y","x"]}"#, "native true"),
        ("includes(.tags, \"x\")", r#"{"tags":"x"}"#, "native false!"),
        (".a", r#"{"a":true}"#, "native true"),
        (".a", r#"{"a":"true"}"#, "native false!"),
        ("exists(.a)", r#"{"a":null}"#, "native true"),
        ("!exists(.a)", "{}", "native true"),
        (".a != null && .a > 2", "{}", "native false"),
        (".a > 2 || .b == 1", r#"{"b":1}"#, "native false!"),
        ("(.a > 2 ?? false) || .b == 1", r#"{"b":1}"#, "native true"),
        ("contains!(.m, \"x\")", r#"{"m":1}"#, "native false!"),
        ("contains(string!(.m), \"X\", case_sensitive: false)", r#"{"m":"axb"}"#, "native true"),
        ("starts_with(.m, \"ab\") && ends_with(.m, \"yz\")", r#"{"m":"ab yz"}"#, "native true"),
        ("match(.m, r'^a.*z$')", r#"{"m":"abz"}"#, "native true"),
        (".a == 1 # one\n", r#"{"a":1}"#, "native true"),
        ("length(.a) > 2", r#"{"a":"abc"}"#, "VRL true"),
        ("length(.a) > 2", r#"{"a":1}"#, "VRL false!"),
        ("x = .a; x == 1", r#"{"a":1}"#, "VRL true"),
        ("x = to_int(.a) ?? 0; x == 1", r#"{"a":"1"}"#, "VRL true"),
        ("%source == \"test\"", "{}", "VRL true"),
        (".a == .b", r#"{"a":1,"b":1}"#, "VRL true"),
        ("length(.a[1]) == 1 && exists(.a[0])", r#"{"a":[null,"x"]}"#, "VRL true"),
        ("length(.a[1]) == 1 || exists(.a[2])", r#"{"a":[null,"xy"]}"#, "VRL false"),
    ] {
        check(source, record, expected);
    }
}

#[test]
fn problems_are_told_at_their_place() {
    let problems = |source: &str| -> String {
        let problems = Condition::check(source);
        let told = problems.iter().map(|problem| {
            let help = problem.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
            format!("{:?} {}{help}\n", &source[problem.within.clone()], problem.message)
        });
        told.collect()
    };
    assert_eq!(problems(".status >= 500"), "");
    assert_eq!(problems("now() > .a"), "");
    expect![[r#"
        "no_such" call to undefined function: did you mean "for_each"?
    "#]]
    .assert_eq(&problems("length(.a) > 1 && no_such(.b)"));
    expect![[r#"
        "1 + 1" a condition has to be true or false, and this is always integer (compare it with something, as in `.status >= 500`)
    "#]]
    .assert_eq(&problems("1 + 1"));
    expect![[r#"
        "" it ends where something is still to come
    "#]]
    .assert_eq(&problems(".a =="));
    expect![[r#"
        ".a =" mutation of read-only value (`=` changes the record; `==` compares)
    "#]]
    .assert_eq(&problems(".a = 1"));
    expect![[r#"
        "!" non-boolean negation: negation only works on boolean values: this expression resolves to any
    "#]]
    .assert_eq(&problems("!.a"));
    for call in ["dns_lookup!(.a)", "http_request!(\"http://x\")", "reverse_dns!(.a)", "get_env_var!(\"HOME\")"] {
        let problems = problems(&format!("{call} == \"x\""));
        assert!(problems.contains("is not available: it "), "{problems}");
    }
    let others = [".a => 3", ".a =< 3", ".a <> 3", ".a === 3", ".a and .b", "not .a", ".a & .b", ".a && && .b", ".a )"];
    expect![[r#"
        "=>" `=>` cannot stand here (`=>` is written `>=`)
        "=<" `=<` cannot stand here (`=<` is written `<=`)
        "<>" `<>` cannot stand here (`<>` is written `!=`)
        "===" `===` cannot stand here (`===` is written `==`)
        "and" `and` cannot stand here (`and` is written `&&`)
        "." `.` cannot stand here (`not` is written `!`)
        "&" `&` cannot stand here (`&` is written `&&`)
        "&&" `&&` cannot stand here
        ")" `)` cannot stand here
    "#]]
    .assert_eq(&others.map(&problems).concat());
    assert!(problems("parse_groks!(.a, [\"%{x}\"], alias_sources: [\"/etc/passwd\"]) == {}").contains("reads files"));
}

#[test]
fn what_must_stand_in_a_record_is_known() {
    for (source, expected) in [
        (r#".level == "ERROR""#, r#"["ERROR"]"#),
        (r#".level == "ERROR" && .status > 3"#, r#"["ERROR"]"#),
        (r#".level == "E" && contains(.m, "timeout")"#, r#"["timeout"]"#),
        (r#".level == "ERROR" || .level == "FATAL""#, r#"["ERROR", "FATAL"]"#),
        (r#".level == "ERROR" || .status > 3"#, "none"),
        (r#"includes(["a", "bc", "xa"], .level)"#, r#"["a", "bc"]"#),
        (r#"includes(["a", 1], .level)"#, "none"),
        (r#"includes(.tags, "urgent")"#, r#"["urgent"]"#),
        (r#"!(.level == "ERROR")"#, "none"),
        (r#".level != "ERROR""#, "none"),
        (r#".level == """#, "none"),
        ("match(.m, r'conn(ection)? (refused|reset)')", r#"["conn"]"#),
        ("match(.m, r'(timed out)+ after \\d+s')", r#"["timed out"]"#),
        ("match(.m, r'(?i)error')", "none"),
        ("match(.m, r'a*')", "none"),
        (r#"contains(.m, "ERROR", case_sensitive: false)"#, "none"),
        ("contains(.m, \"x\u{fffd}\")", "none"),
        (".status == 500", "none"),
    ] {
        let condition = Condition::compile(source, &mut PathTable::default()).unwrap();
        assert_eq!(condition.way(), "native", "{source}");
        let found = condition.prefilter().map_or("none".to_owned(), |literals| {
            format!("{:?}", literals.iter().map(|literal| String::from_utf8_lossy(literal)).collect::<Vec<_>>())
        });
        assert_eq!(found, expected, "{source}");
    }
}

fn run(program: &str, batch: &Batch, row: u32) -> String {
    let value = Program::compile(program).unwrap().run(batch, row).unwrap();
    let mut json = Vec::new();
    write_value(&value, &mut json);
    String::from_utf8(json).unwrap()
}

#[test]
fn what_a_program_may_change_is_known() {
    let changes = |program: &str| {
        let changes = Program::compile(program).unwrap().changes();
        changes.iter().map(|path| format!(".{path}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(changes(".a = downcase!(.b)\n.c.d, .e = to_int(.f)"), ".a .c.d .e");
    assert_eq!(changes("if exists(.x) { .new = del(.old) }\nlocal = {\"y\": 1}\ndel(local.y)"), ".new .old");
    assert_eq!(changes("for_each({\"a\": 1}) -> |key, _| { .key = key; del(.inner) }"), ".inner .key");
    assert_eq!(changes(". = merge(., {\"a\": 1})"), ".");
    assert_eq!(changes(". |= {\"a\": 1}"), ".");
    assert_eq!(changes(".list[1] = 2\n%at = 1\nabort"), ".list[1]");
}

#[test]
fn what_is_random_is_drawn_from_the_record() {
    let program = ".u = uuid_v4(); .v = uuid_v7(); .i = random_int(0, 1000000); .f = random_float(-1.0, 1.0)
        .b = random_bool(); .y = encode_base16(random_bytes(8)); .now = now(); .w = uuid_v4()";
    let batch = batch(&[b"{}", b"{}"]);
    let first = run(program, &batch, 0);
    assert_eq!(run(program, &batch, 0), first);
    assert_ne!(run(program, &batch, 1), first);
    // The same record as the only one of a later block.
    let mut alone = self::batch(&[b"{}"]);
    alone.base = batch.base + 3;
    assert_eq!(run(program, &alone, 0), run(program, &batch, 1));
    let value = crate::json::parse_value(first.as_bytes()).unwrap();
    let Value::Object(fields) = &value else { panic!("{value}") };
    let text = |name: &str| fields[name].to_str_lossy().unwrap().into_owned();
    assert_eq!(text("now"), "2025-11-20T12:00:00Z");
    assert!(text("u").len() == 36 && &text("u")[14..15] == "4" && text("u") != text("w"));
    assert_eq!(&text("v")[..15], "019aa122-be00-7");
    assert!((0..1_000_000).contains(&fields["i"].as_integer().unwrap()));
}

#[test]
fn a_function_that_breaks_on_a_record_fails_on_it() {
    let batch = batch(&[b"{}"]);
    let program = Program::compile(".a = break_down()").unwrap();
    assert!(matches!(program.run(&batch, 0), Err(ProgramError::Failed(_))));
    assert_eq!(run(".a = 1", &batch, 0), "{\"a\":1}");
}

#[test]
fn an_expression_gives_the_value_of_its_paths() {
    let mut paths = PathTable::default();
    let mut batch = batch(&[br#"{"a":{"b":[1,2]},"c":"x","t":"2026-11-20T12:00:00Z"}"#]);
    let mut value = |source: &str| {
        let expression = Expression::compile(source, &mut paths).unwrap();
        batch.decode(&expression.reads());
        let mut errors = 0;
        let value = expression.eval(&batch, 0, &mut errors);
        format!("{} {errors}", value.map_or("none".to_owned(), |value| value.to_string()))
    };
    assert_eq!(value(".a.b[-1]"), "2 0");
    assert_eq!(value(".a.b[-1] + 1"), "3 0");
    assert_eq!(value("length(.a.b) + length(.a)"), "3 0");
    assert_eq!(value(".missing"), "none 0");
    assert_eq!(value("upcase(.c)"), "\"X\" 0");
    assert_eq!(value("upcase(.a)"), "null 0");
    assert_eq!(value("parse_timestamp(.t, \"%+\")"), "t'2026-11-20T12:00:00Z' 0");
}

const TEXTS: [&str; 16] = [
    "ERROR",
    "error",
    "ERR",
    "timeout",
    "a timeout in db",
    "",
    "-",
    " ",
    "5",
    "É",
    "é",
    "K",
    "kelvin",
    "\u{fffd}",
    "x\ny",
    "aK",
];

const NOT_UTF8: &[&[u8]] =
    &[b"\"ERR\xffOR\"", b"\"\xe2\x84\"", b"\"timeout\xe2\x84\"", b"\"\x80ERROR\"", b"\"e\xc3rror\""];

fn json_record() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        8 => proptest::sample::select(&TEXTS[..]).prop_map(|text| {
            let mut json = Vec::new();
            crate::json::write_text(text.as_bytes(), &mut json);
            json
        }),
        2 => proptest::sample::select(&TEXTS[..]).prop_map(|text| {
            let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            format!("\"{escaped}\"").into_bytes()
        }),
        1 => proptest::sample::select(NOT_UTF8).prop_map(<[u8]>::to_vec),
    ];
    let leaf = prop_oneof![
        4 => text,
        1 => proptest::sample::select(&["null", "true", "false"][..]).prop_map(|text| text.as_bytes().to_vec()),
        3 => proptest::sample::select(&["5", "5.0", "-0.0", "0", "4.5", "9007199254740993", "9007199254740992.0", "123456789012345678901", "1e300"][..])
            .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let object = |value: BoxedStrategy<Vec<u8>>| {
        proptest::collection::vec(
            (proptest::sample::select(&["\"a\"", "\"b\"", "\"c\"", "\"\\u0061\""][..]), value),
            0..5,
        )
        .prop_map(|members| {
            let members: Vec<_> = members.iter().map(|(key, value)| [key.as_bytes(), b":", value].concat()).collect();
            [&b"{"[..], &members.join(&b','), b"}"].concat()
        })
    };
    let array = |value: BoxedStrategy<Vec<u8>>| {
        proptest::collection::vec(value, 0..4)
            .prop_map(|elements| [&b"["[..], &elements.join(&b", "[..]), b"]"].concat())
    };
    let value = prop_oneof![5 => leaf.clone(), 1 => array(leaf.clone().boxed()), 1 => object(leaf.boxed())].boxed();
    object(value)
}

fn condition() -> impl Strategy<Value = String> {
    let path = || proptest::sample::select(&[".a", ".b", ".c", ".a.b", ".a[0]", ".b[-1]", ".\"a\""][..]);
    let text = || {
        proptest::sample::select(&TEXTS[..]).prop_map(|text| {
            let mut json = Vec::new();
            crate::json::write_text(text.as_bytes(), &mut json);
            String::from_utf8(json).unwrap()
        })
    };
    let number =
        || proptest::sample::select(&["5", "5.0", "4.5", "0", "-1", "9007199254740992", "9007199254740993"][..]);
    let literal = || {
        prop_oneof![
            text(),
            number().prop_map(str::to_owned),
            proptest::sample::select(&["null", "true", "false"][..]).prop_map(str::to_owned),
        ]
    };
    let operator = proptest::sample::select(&["==", "!=", "<", "<=", ">", ">="][..]);
    let function = proptest::sample::select(&["contains", "starts_with", "ends_with"][..]);
    let case = proptest::sample::select(&["", "", ", case_sensitive: false", ", true"][..]);
    let regex = proptest::sample::select(&["ERR", "^e|t.m+e", "(?i)error", "[\\w ]*db$", "", "\\xff", "K|É", "^$"][..]);
    let kind = proptest::sample::select(
        &[
            "is_string",
            "is_integer",
            "is_float",
            "is_boolean",
            "is_null",
            "is_timestamp",
            "is_array",
            "is_object",
            "is_empty",
            "is_nullish",
        ][..],
    );
    let bang = || proptest::sample::select(&["", "", "!"][..]);
    let leaf = prop_oneof![
        5 => (path(), operator.clone(), literal()).prop_map(|(path, operator, literal)| format!("{path} {operator} {literal}")),
        2 => (literal(), operator, path()).prop_map(|(literal, operator, path)| format!("{literal} {operator} {path}")),
        4 => (function, bang(), path(), text(), case)
            .prop_map(|(function, bang, path, text, case)| format!("{function}{bang}({path}, {text}{case})")),
        2 => (bang(), path(), regex).prop_map(|(bang, path, regex)| format!("match{bang}(string!({path}), r'{regex}') || match{bang}({path}, r'{regex}')")),
        1 => path().prop_map(|path| format!("exists({path})")),
        1 => (bang(), path(), literal()).prop_map(|(bang, path, literal)| format!("includes{bang}({path}, {literal})")),
        1 => (proptest::collection::vec(literal(), 0..4), path())
            .prop_map(|(list, path)| format!("includes([{}], {path})", list.join(", "))),
        2 => (kind, bang(), path()).prop_map(|(kind, bang, path)| format!("{kind}{bang}({path})")),
        1 => path().prop_map(str::to_owned),
        1 => proptest::sample::select(&["true", "false", "null"][..]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 12, 2, |inner| {
        prop_oneof![
            3 => (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) && ({right})")),
            3 => (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) || ({right})")),
            2 => inner.clone().prop_map(|inner| format!("!({inner})")),
            1 => inner.clone().prop_map(|inner| format!("(({inner}) ?? false)")),
            1 => inner.prop_map(|inner| format!("(({inner}) ?? true)")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn native_conditions_agree_with_vrl(source in condition(), records in proptest::collection::vec(json_record(), 1..24)) {
        // Not all that can be written compiles: `!` wants a boolean, `??` something that can fail.
        if let Ok(vm) = vm::Vm::compile_condition(&source) {
            let mut paths = PathTable::default();
            let native = Condition::compile(&source, &mut paths).unwrap();
            prop_assert_eq!(native.way(), "native", "{}", &source);
            let whole = Condition { way: Way::Vrl(vm.clone()) };
            let by_paths = Condition { way: Way::Vrl(vm.bind(&mut paths)) };
            let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
            let mut raw = batch(&records);
            raw.decode(&native.reads().union(&by_paths.reads()));
            let changed = changed(&raw);
            let literals = native.prefilter();
            for row in raw.rows() {
                let record = String::from_utf8_lossy(raw.record(row));
                // Over the whole value, whatever the condition reads.
                let expected = verdict(&whole, &changed, row);
                prop_assert_eq!(verdict(&native, &raw, row), expected, "native: {} of {}", &source, record);
                prop_assert_eq!(verdict(&native, &changed, row), expected, "native, changed: {} of {}", &source, record);
                prop_assert_eq!(verdict(&by_paths, &raw, row), expected, "by paths: {} of {}", &source, record);
                let raw = raw.record(row);
                let is_candidate = literals.as_ref().is_none_or(|literals| {
                    raw.contains(&b'\\') || literals.iter().any(|literal| memchr::memmem::find(raw, literal).is_some())
                });
                prop_assert!(is_candidate || expected != "true", "{:?}: {} of {}", literals, &source, record);
            }
        }
    }
}
