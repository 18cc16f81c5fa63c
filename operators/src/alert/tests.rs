use expect_test::{Expect, expect};
use tocsin_config::component::OperatorConfig as _;
use tocsin_pipeline::codec::PathTable;

use super::*;
use crate::script;

/// Runs a story on plain records and tells the transitions in short.
#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(config: &str, story: &str, expected: Expect) {
    expected.assert_eq(&short(&script::run::<Config>(config, story)));
}

/// `TIME STATE LABELS starts..ends xMATCHES`, for each alert of an outcome; other lines as they are.
fn short(outcome: &str) -> String {
    let mut text = String::new();
    for line in outcome.lines() {
        let Some((time, record)) = line.split_once(" {") else {
            text += &format!("{line}\n");
            continue;
        };
        let record: serde_json::Value = serde_json::from_str(&format!("{{{record}")).unwrap();
        let clock = |name: &str| record[name].as_str().map_or("…", |time| &time[14..19]).to_owned();
        let (starts, ends) = (clock("starts_at"), clock("ends_at"));
        let labels = record["labels"].to_string();
        text +=
            &format!("{time} {} {labels} {starts}..{ends} ×{}\n", record["state"].as_str().unwrap(), record["matches"]);
    }
    text
}

const ERRORS: &str = r#"
    condition = '.level == "error"'
    labels = { host = "{{ host }}" }
"#;

#[test]
fn the_first_match_of_a_key_fires_and_silence_resolves() {
    check(
        ERRORS,
        r#"
        00:00 {"host":"a","level":"error"}
        00:10 {"host":"b","level":"error"}
        00:20 {"host":"a","level":"info"}
        01:00 {"host":"a","level":"error"}
        05:11 {"host":"c","level":"info"}
        07:00 {"host":"b","level":"error"}
        end
        "#,
        expect![[r#"
            00:00 firing {"host":"a"} 00:00..… ×1
            00:10 firing {"host":"b"} 00:10..… ×1
            05:10 resolved {"host":"b"} 00:10..05:10 ×1
            06:00 resolved {"host":"a"} 00:00..06:00 ×2
            07:00 firing {"host":"b"} 07:00..… ×1
            (filtered 2)
            (aggregated 4)
            12:00 resolved {"host":"b"} 07:00..12:00 ×1
        "#]],
    );
}

#[test]
fn with_a_time_to_hold_it_fires_at_the_first_match_after_it() {
    check(
        r#"
        condition = ".level == \"error\""
        for = "1m"
        emit_pending = true
        resolve_after = "30s"
        keep_firing_for = "15s"
        "#,
        r#"
        00:00 {"level":"error"}
        00:20 {"level":"error"}
        01:00 {"level":"error"}
        01:20 {"level":"error"}
        01:40 {"level":"error"}
        02:00 {"level":"error"}
        watermark 02:46
        "#,
        expect![[r#"
            00:00 pending {} 00:00..… ×1
            01:00 pending {} 01:00..… ×1
            02:00 firing {} 02:00..… ×4
            (aggregated 6)
            02:45 resolved {} 02:00..02:45 ×4
        "#]],
    );
}

#[test]
fn a_crash_changes_nothing_of_what_is_told() {
    let story = r#"
        00:00 {"host":"a","level":"error","ratio":0.1}
        00:10 {"host":"b","level":"error"}
        barrier
        00:20 {"host":"a","level":"error"}
        CRASH
        00:20 {"host":"a","level":"error"}
        06:00 {"host":"a","level":"error"}
        end
    "#;
    let before = script::run::<Config>(ERRORS, &story.replace("CRASH\n", "").replacen("00:20", "00:19", 1));
    let after = script::run::<Config>(ERRORS, &story.replace("CRASH", "crash"));
    let ids = |outcome: &str| -> Vec<String> {
        let lines = outcome.lines().filter_map(|line| line.split_once(" {"));
        lines
            .map(|(_, line)| serde_json::from_str::<serde_json::Value>(&format!("{{{line}")).unwrap()["id"].to_string())
            .collect()
    };
    assert_eq!(ids(&before), ids(&after));
    assert_eq!(ids(&after).len(), 6);
}

#[test]
fn a_record_has_the_documented_shape() {
    let outcome = script::run::<Config>(
        r#"
        condition = ".status >= 500"
        group_by = [".vhost", "to_string(.status) ?? \"\""]
        labels = { severity = "critical", empty = "{{ nothing }}" }
        annotations = { summary = "{{ vhost }} says {{ status }}: {{ message }}" }
        evidence = 1
        "#,
        r#"
        00:01 {"message":"{{ vhost }}","status":503,"vhost":"shop"}
        00:02 {"message":"x","status":503,"vhost":"shop"}
        00:03 {"message":"y","status":503,"vhost":"shop"}
        end
        "#,
    );
    expect![[r#"
        00:01 {"alert":"operator","annotations":{"summary":"shop says 503: {{ vhost }}"},"ends_at":null,"episode":1,"evidence":[{"coordinate":{"length":53,"offset":0},"raw":"{\"message\":\"{{ vhost }}\",\"status\":503,\"vhost\":\"shop\"}","source":"source"}],"fingerprint":"6ce18394d3c4ec4e","firing_id":"7d6fe114d600d9ffec658c4dbb24b7e6","id":"7d6fe114d600d9ffec658c4dbb24b7e6","labels":{"severity":"critical","to_string(.status) ?? \"\"":"503","vhost":"shop"},"matches":1,"starts_at":"1970-01-01T00:00:01Z","state":"firing","values":{"status":503}}
        (aggregated 3)
        (expression errors 1)
        05:03 {"alert":"operator","annotations":{"summary":"shop says 503: {{ vhost }}"},"ends_at":"1970-01-01T00:05:03Z","episode":1,"evidence":[{"coordinate":{"length":53,"offset":0},"raw":"{\"message\":\"{{ vhost }}\",\"status\":503,\"vhost\":\"shop\"}","source":"source"},
        {"coordinate":{"length":43,"offset":98},"raw":"{\"message\":\"y\",\"status\":503,\"vhost\":\"shop\"}","source":"source"}],"fingerprint":"6ce18394d3c4ec4e","firing_id":"7d6fe114d600d9ffec658c4dbb24b7e6","id":"c3e53c45de2a1852af0d21951bc3a185","labels":{"severity":"critical","to_string(.status) ?? \"\"":"503","vhost":"shop"},"matches":3,"starts_at":"1970-01-01T00:00:01Z","state":"resolved","values":{"status":503}}
    "#]].assert_eq(&outcome.replace("},{", "},\n{"));
}

#[test]
fn when_all_alerts_are_active_further_keys_are_dropped_and_those_over_make_room() {
    check(
        &format!("{ERRORS}max_alerts = 2"),
        r#"
        00:00 {"host":"a","level":"error"}
        00:01 {"host":"b","level":"error"}
        00:02 {"host":"c","level":"error"}
        06:00 {"host":"c","level":"error"}
        "#,
        expect![[r#"
            00:00 firing {"host":"a"} 00:00..… ×1
            00:01 firing {"host":"b"} 00:01..… ×1
            05:00 resolved {"host":"a"} 00:00..05:00 ×1
            05:01 resolved {"host":"b"} 00:01..05:01 ×1
            06:00 firing {"host":"c"} 06:00..… ×1
            (aggregated 3)
            (state_full 1)
        "#]],
    );
}

#[test]
fn problems_are_told_where_they_are() {
    expect![[r#"
        condition[5..5]: syntax error: unexpected end of program: expected one of: "identifier", "string literal", "raw string literal", "integer literal", "float literal", "regex literal", "timestamp literal", "function call", "path literal", "null", "true", "false", "\n", "!", "[", "{", "("
        group_by[1][8..8]: syntax error: unexpected end of program: expected one of: "identifier", "string literal", "raw string literal", "integer literal", "float literal", "regex literal", "timestamp literal", "function call", "reserved identifier", "path literal", "if", "else", "null", "true", "false", "abort", "return", "break", "\n", "!", "[", "{", "(", ")"
        labels.1x: "1x" is not a name of a label (write letters, digits and `_`, not beginning with a digit)
        labels.y[3..4]: unexpected end of input, expected end of variable block
        annotations.z[7..14]: filter nothing is unknown
        evidence: must be at most 100
        max_alerts: must be from 1 to 10000000
        resolve_after: must be longer than nothing
    "#]].assert_eq(&script::problems::<Config>(
        r#"
        condition = ".a =="
        group_by = [".b", "nothing("]
        labels = { "1x" = "a", y = "{{ b" }
        annotations = { z = "{{ a | nothing }}" }
        evidence = 1000
        max_alerts = 0
        resolve_after = "0s"
        "#,
    ));
}

/// Runs values of windows through the operator: `SECONDS KEY VALUE`, in batches of `size`.
fn windows(config: &str, values: &[(i64, &str, i64)], size: usize) -> String {
    let config: Config = toml::from_str(config).unwrap();
    assert_eq!(config.problems(), []);
    let mut paths = PathTable::default();
    let mut context = BuildContext {
        name: "rule".into(),
        paths: &mut paths,
        folder: ".".into(),
        connected: Vec::new(),
        silences: [].into(),
        partition: None,
    };
    let Built::Operator { mut operator, .. } = config.build(&mut context) else { unreachable!() };
    let lane = Arc::new(Lane::of_operator("window".into(), Origin::Keyed(vec!["host".to_owned()].into())));
    let mut output = Output::default();
    let mut seen = Timestamp::MIN;
    for values in values.chunks(size) {
        let record = |(second, host, errors): &(i64, &str, i64)| {
            let time = Timestamp::from_secs(*second);
            let record = serde_json::json!({
                "window_start": time.saturating_sub(Span::from_secs(60)).to_string(), "window_end": time.to_string(),
                "host": host, "errors": errors,
            });
            (time, json::parse_value(record.to_string().as_bytes()).unwrap())
        };
        let mut batch = Batch::of_values(Arc::clone(&lane), values.iter().map(record).collect(), Timestamp(0));
        batch.seen_before = seen;
        seen = seen.max(batch.times.as_ref().unwrap().max);
        operator.on_input(0, Input::Batch(batch), &mut output);
    }
    operator.on_watermark(Timestamp::MAX, &mut output);
    let mut text = String::new();
    for (_, batch) in &output.batches {
        for row in batch.rows() {
            let mut record = Vec::new();
            json::write_value(&batch.value(row), &mut record);
            text += &format!("{} {}\n", batch.time(row).0 / 1_000_000_000, String::from_utf8(record).unwrap());
        }
    }
    text
}

#[test]
fn on_windows_each_value_decides_key_by_key() {
    let values = [
        (60, "a", 200),
        (60, "b", 3),
        (120, "a", 300),
        (120, "b", 101),
        (180, "a", 150),
        (180, "b", 7),
        (240, "a", 2),
        (240, "b", 500),
        (300, "b", 500),
        (360, "b", 500),
        (360, "c", 500),
        (420, "c", 500),
    ];
    let config =
        "condition = \".errors > 100\"\nfor = \"2m\"\nannotations = { summary = \"{{ host }}: {{ errors }}\" }";
    expect![[r#"
        180 firing {"host":"a"} 03:00..… ×3
        240 resolved {"host":"a"} 03:00..04:00 ×3
        360 firing {"host":"b"} 06:00..… ×3
    "#]]
    .assert_eq(&short(&windows(config, &values, 100)));
}

#[test]
fn a_key_whose_windows_stay_away_is_over_after_a_while() {
    let values = [(60, "a", 200), (120, "b", 0), (361, "b", 0), (362, "b", 0)];
    expect![[r#"
        60 firing {"host":"a"} 01:00..… ×1
        360 resolved {"host":"a"} 01:00..06:00 ×1
    "#]]
    .assert_eq(&short(&windows("condition = \".errors > 100\"", &values, 1)));
}

#[test]
fn the_outcome_does_not_depend_on_how_records_are_cut_into_batches() {
    let hosts = ["a", "b", "c", "d"];
    for seed in 0..40u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let mut second = 0;
        let values: Vec<_> = (0..120)
            .map(|_| {
                second += random(90) as i64;
                (second, hosts[random(4) as usize], 50 + random(80) as i64)
            })
            .collect();
        let config = "condition = \".errors > 90\"\nfor = \"30s\"\nkeep_firing_for = \"40s\"\nemit_pending = true";
        let whole = windows(config, &values, 1000);
        assert!(whole.lines().count() > 20, "seed {seed} makes a story worth telling");
        for size in [1, 2, 7, 50] {
            assert!(windows(config, &values, size) == whole, "seed {seed}, batches of {size}");
        }
        // The script runs plain records whole and split, prepared and not, and compares.
        let story: String = (values.iter())
            .map(|(second, host, errors)| {
                let level = if *errors > 90 { "error" } else { "info" };
                format!("{:02}:{:02} {{\"host\":\"{host}\",\"level\":\"{level}\"}}\n", second / 60, second % 60)
            })
            .collect();
        script::run::<Config>(&format!("{ERRORS}resolve_after = \"2m\""), &story);
    }
}

#[test]
fn the_counts_of_alerts_follow_them() {
    let config: Config = toml::from_str(ERRORS).unwrap();
    let mut paths = PathTable::default();
    let mut context = BuildContext {
        name: "rule".into(),
        paths: &mut paths,
        folder: ".".into(),
        connected: Vec::new(),
        silences: [].into(),
        partition: None,
    };
    let Built::Operator { mut operator, .. } = config.build(&mut context) else { unreachable!() };
    let lane = script::lane("a", Span::ZERO);
    let records =
        [(Timestamp(0), r#"{"host":"a","level":"error"}"#), (Timestamp(1), r#"{"host":"b","level":"error"}"#)];
    let batch = script::batch(&lane, 0, Timestamp::MIN, &records);
    operator.on_input(0, Input::Batch(batch), &mut Output::default());
    assert_eq!(operator.alerts(), [("pending", 0), ("firing", 2)]);
    operator.on_watermark(Timestamp::MAX, &mut Output::default());
    assert_eq!(operator.alerts(), [("pending", 0), ("firing", 0)]);
}

#[test]
fn what_tells_alerts_apart_is_what_they_are_kept_by() {
    let given = "condition = '.a'\ngroup_by = ['.host', ' .http.path ', 'downcase(.x)', '.a.name', '.b.name']";
    expect![[r#"By { option: "group_by", key: [".host", " .http.path ", "downcase(.x)"] }, Within { path: ".labels", except: [] }"#]].assert_eq(&script::keying::<Config>(given));
    let labels = "condition = '.a'\nlabels = { host = '{{host}}', where = '{{ host }}/{{ path }}', team = 'web' }";
    expect![[r#"ByWindow { otherwise: [".host", ".path"] }, Within { path: ".labels", except: ["team", "where"] }"#]]
        .assert_eq(&script::keying::<Config>(labels));
}
