use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration as Span;

use expect_test::{Expect, expect};
use tocsin_config::component::OperatorConfig as _;
use tocsin_pipeline::codec::PathTable;
use tocsin_pipeline::event::{Batch, Lane, Origin};
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Input, Operator, Output};
use tocsin_pipeline::time::Timestamp;

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
        00:01 {"alert":"operator","annotations":{"summary":"shop says 503: {{ vhost }}"},"ends_at":null,"episode":1,"evidence":[{"coordinate":{"length":53,"offset":0},"hash":"bcb51f3115dda4d3f4f1ef53d5366a4a6ce831089b785e978f4db8d646c11c8a","raw":"{\"message\":\"{{ vhost }}\",\"status\":503,\"vhost\":\"shop\"}","source":"source"}],"fingerprint":"6ce18394d3c4ec4e","firing_id":"7d6fe114d600d9ffec658c4dbb24b7e6","id":"7d6fe114d600d9ffec658c4dbb24b7e6","labels":{"severity":"critical","to_string(.status) ?? \"\"":"503","vhost":"shop"},"matches":1,"starts_at":"1970-01-01T00:00:01Z","state":"firing","values":{"status":503}}
        (aggregated 3)
        (expression errors 1)
        05:03 {"alert":"operator","annotations":{"summary":"shop says 503: {{ vhost }}"},"ends_at":"1970-01-01T00:05:03Z","episode":1,"evidence":[{"coordinate":{"length":53,"offset":0},"hash":"bcb51f3115dda4d3f4f1ef53d5366a4a6ce831089b785e978f4db8d646c11c8a","raw":"{\"message\":\"{{ vhost }}\",\"status\":503,\"vhost\":\"shop\"}","source":"source"},
        {"coordinate":{"length":43,"offset":98},"hash":"49932d97d69cd854c03fa94a9c0ffe58fb49cbd7ace128baa03b48acf8163749","raw":"{\"message\":\"y\",\"status\":503,\"vhost\":\"shop\"}","source":"source"}],"fingerprint":"6ce18394d3c4ec4e","firing_id":"7d6fe114d600d9ffec658c4dbb24b7e6","history":[[1,503],[2,503],[3,503]],"id":"c3e53c45de2a1852af0d21951bc3a185","labels":{"severity":"critical","to_string(.status) ?? \"\"":"503","vhost":"shop"},"matches":3,"starts_at":"1970-01-01T00:00:01Z","state":"resolved","values":{"status":503}}
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
        condition[5..5]: it ends where something is still to come
        group_by[1][8..8]: it ends where something is still to come
        labels.1x: "1x" is not a name of a label (write letters, digits and `_`, not beginning with a digit)
        labels.y[3..4]: unexpected end of input, expected end of variable block
        annotations.z[7..14]: filter nothing is unknown
        evidence: must be at most 100
        max_alerts: must be from 1 to 10000000
        resolve_after: must be longer than nothing
    "#]]
    .assert_eq(&script::problems::<Config>(
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
    for (_, batch) in output.batches.iter().filter(|(port, _)| *port == 0) {
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
    for seed in 0..20u64 {
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
        let flapping = "levels = [{ severity = \"a\", condition = \".errors > 90\" }, { severity = \"b\", condition = \".errors > 110\", \
                        for = \"20s\" }]\nflapping = { changes = 4, within = \"10m\" }\nresolve_after = \"3m\"";
        for config in [config, flapping] {
            let whole = windows(config, &values, 1000);
            for size in [1, 7, 50] {
                assert!(windows(config, &values, size) == whole, "seed {seed}, batches of {size}");
            }
        }
        // The script runs plain records whole and split, prepared and not, and compares.
        let story: String = (values.iter())
            .map(|(second, host, errors)| {
                let level = if *errors > 90 { "error" } else { "info" };
                format!("{:02}:{:02} {{\"host\":\"{host}\",\"level\":\"{level}\"}}\n", second / 60, second % 60)
            })
            .collect();
        script::run::<Config>(&format!("{ERRORS}resolve_after = \"2m\""), &story);
        let flapping = "resolve_after = \"2m\"\ncontext = 2\nflapping = { changes = 3, within = \"6m\" }";
        script::run::<Config>(
            &format!("{ERRORS}{flapping}"),
            &format!("{}barrier", story.replace("\n05:", "\nbarrier\n05:")),
        );
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

const LEVELS: &str = r#"
    levels = [
        { severity = "warning", condition = ".errors > 10" },
        { severity = "critical", condition = ".errors > 100", for = "2m" },
    ]
    annotations = { summary = "{{ severity }}: {{ errors }}" }
"#;

/// `TIME STATE severity=… previous=… flapping=… SUMMARY ID FIRING_ID FINGERPRINT`, ids by the order in which they come.
fn by_level(outcome: &str) -> String {
    let (mut ids, mut text) = (Vec::new(), String::new());
    let mut number = |id: &serde_json::Value| {
        let at = ids.iter().position(|known| known == id);
        at.unwrap_or_else(|| {
            ids.push(id.clone());
            ids.len() - 1
        })
    };
    for line in outcome.lines() {
        let Some((time, record)) = line.split_once(' ') else { continue };
        let Ok(record) = serde_json::from_str::<serde_json::Value>(record) else { continue };
        let (id, firing_id, print) =
            (number(&record["id"]), number(&record["firing_id"]), number(&record["fingerprint"]));
        text += &format!("{time} {} {}", record["state"].as_str().unwrap(), record["labels"]);
        for name in ["previous_level", "flapping"] {
            if let Some(value) = record.get(name) {
                text += &format!(" {name}={value}");
            }
        }
        text += &format!(" {} id {id}, of {firing_id}, fingerprint {print}\n", record["annotations"]["summary"]);
    }
    text
}

#[test]
fn there_is_one_alert_on_the_highest_level_that_holds() {
    let values = [
        (60, "a", 20),
        (120, "a", 200),
        (180, "a", 200),
        (240, "a", 300),
        (300, "a", 30),
        (360, "a", 3),
        (420, "a", 500),
        (480, "a", 500),
        (540, "a", 500),
        (600, "a", 0),
    ];
    let outcome = windows(LEVELS, &values, 100);
    expect![[r#"
        60 firing {"host":"a","severity":"warning"} "warning: 20" id 0, of 0, fingerprint 1
        240 firing {"host":"a","severity":"critical"} previous_level="warning" "critical: 300" id 2, of 0, fingerprint 1
        300 firing {"host":"a","severity":"warning"} previous_level="critical" "warning: 30" id 3, of 0, fingerprint 1
        360 resolved {"host":"a","severity":"warning"} "warning: 30" id 4, of 0, fingerprint 1
        420 firing {"host":"a","severity":"warning"} "warning: 500" id 5, of 5, fingerprint 1
        540 firing {"host":"a","severity":"critical"} previous_level="warning" "critical: 500" id 6, of 5, fingerprint 1
        600 resolved {"host":"a","severity":"critical"} "critical: 500" id 7, of 5, fingerprint 1
    "#]]
    .assert_eq(&by_level(&outcome));
    for size in [1, 3] {
        assert_eq!(windows(LEVELS, &values, size), outcome);
    }
}

#[test]
fn on_plain_records_a_level_is_over_when_it_is_not_heard_of_any_more() {
    let levels = r#"
        levels = [
            { severity = "low", condition = ".n > 1" },
            { severity = "high", condition = ".n > 10" },
        ]
        level_label = "urgency"
        labels = { host = "{{ host }}" }
        resolve_after = "1m"
    "#;
    let story = r#"
        00:00 {"host":"a","n":5}
        00:10 {"host":"a","n":50}
        00:20 {"host":"b","n":50}
        00:40 {"host":"a","n":5}
        01:05 {"host":"a","n":5}
        01:30 {"host":"a","n":5}
        end
    "#;
    expect![[r#"
        00:00 firing {"host":"a","urgency":"low"} null id 0, of 0, fingerprint 1
        00:10 firing {"host":"a","urgency":"high"} previous_level="low" null id 2, of 0, fingerprint 1
        00:20 firing {"host":"b","urgency":"high"} null id 3, of 3, fingerprint 4
        01:10 firing {"host":"a","urgency":"low"} previous_level="high" null id 5, of 0, fingerprint 1
        01:20 resolved {"host":"b","urgency":"high"} null id 6, of 3, fingerprint 4
        02:30 resolved {"host":"a","urgency":"low"} null id 7, of 0, fingerprint 1
    "#]]
    .assert_eq(&by_level(&script::run::<Config>(levels, story)));
    let crash = story
        .replace("00:40", "barrier\n00:40")
        .replace("01:30", "crash\n00:40 {\"host\":\"a\",\"n\":5}\n01:05 {\"host\":\"a\",\"n\":5}\n01:30");
    let of = |outcome: &str| by_level(outcome).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(of(&script::run::<Config>(levels, story)), of(&script::run::<Config>(levels, &crash)));
}

#[test]
fn one_that_flaps_is_told_once_and_again_when_it_is_calm() {
    let config = "condition = '.errors > 10'\nflapping = { changes = 3, within = \"5m\" }";
    let values: Vec<_> =
        (1..=20).map(|minute| (minute * 60, "a", if minute <= 10 { 20 * (minute % 2) } else { 0 })).collect();
    let outcome = windows(config, &values, 100);
    expect![[r#"
        60 firing {"host":"a"} flapping=false null id 0, of 0, fingerprint 1
        120 resolved {"host":"a"} flapping=false null id 2, of 0, fingerprint 1
        180 firing {"host":"a"} flapping=true null id 3, of 3, fingerprint 1
        900 resolved {"host":"a"} flapping=false null id 4, of 3, fingerprint 1
    "#]]
    .assert_eq(&by_level(&outcome));
    assert_eq!(windows(config, &values, 1), outcome);
}

#[test]
fn lines_around_a_record_are_kept_with_it() {
    let outcome = script::run::<Config>(
        "condition = '.level == \"error\"'\ncontext = 2\nresolve_after = \"1m\"",
        r#"
        00:01 {"m":1}
        00:02 {"m":2}
        00:03 {"m":3}
        b: 00:03 {"m":"of another lane"}
        00:04 {"level":"error"}
        barrier
        00:05 {"m":5}
        crash
        00:05 {"m":5}
        b: 00:03 {"m":"of another lane"}
        00:06 {"level":"error"}
        00:07 {"m":7}
        end
        "#,
    );
    let last = outcome.lines().rfind(|line| line.contains("resolved")).unwrap();
    let record: serde_json::Value = serde_json::from_str(last.split_once(' ').unwrap().1).unwrap();
    let mut text = String::new();
    for piece in record["evidence"].as_array().unwrap() {
        let raws = |name: &str| -> Vec<String> {
            let lines = piece[name].as_array().into_iter().flatten();
            lines.map(|line| line["raw"].as_str().unwrap().to_owned()).collect()
        };
        let raw = piece["raw"].as_str().unwrap();
        assert_eq!(piece["hash"], blake3::hash(raw.as_bytes()).to_hex().as_str());
        text += &format!("{} | {raw} | {}\n", raws("before").join(" "), raws("after").join(" "));
    }
    expect![[r#"
        {"m":2} {"m":3} | {"level":"error"} | {"m":5} {"level":"error"}
        {"level":"error"} {"m":5} | {"level":"error"} | {"m":7}
    "#]]
    .assert_eq(&text);
}

/// An operator of a configuration, as the daemon builds it.
fn build(config: &str) -> Box<dyn Operator> {
    let Built::Operator { operator, .. } = script::build::<Config>(config) else { unreachable!() };
    operator
}

fn window_batch(values: &[serde_json::Value]) -> Batch {
    let lane = Arc::new(Lane::of_operator("window".into(), Origin::Keyed(vec!["host".to_owned()].into())));
    let record = |record: &serde_json::Value| {
        let time = Timestamp::parse_rfc3339(record["window_end"].as_str().unwrap().as_bytes()).unwrap();
        (time, json::parse_value(record.to_string().as_bytes()).unwrap())
    };
    Batch::of_values(lane, values.iter().map(record).collect(), Timestamp(0))
}

fn records(output: &Output, port: usize) -> Vec<serde_json::Value> {
    let batches = output.batches.iter().filter(|(of, _)| *of == port).map(|(_, batch)| batch);
    let text = |value: &vrl::value::Value| {
        let mut text = Vec::new();
        json::write_value(value, &mut text);
        serde_json::from_slice(&text).unwrap()
    };
    batches.flat_map(|batch| batch.rows().map(|row| text(&batch.value(row))).collect::<Vec<_>>()).collect()
}

fn value(minute: u32, errors: i64, update: Option<u32>) -> serde_json::Value {
    let mut record = serde_json::json!({
        "window_start": format!("2026-11-20T12:{:02}:00Z", minute - 1), "window_end": format!("2026-11-20T12:{minute:02}:00Z"),
        "host": "a", "errors": errors,
    });
    if let Some(update) = update {
        record["update"] = update.into();
    }
    record
}

#[test]
fn a_corrected_window_that_decides_otherwise_is_an_amendment() {
    let mut operator = build("condition = '.errors > 10'\nlabels = { team = \"web\" }");
    let mut output = Output::default();
    let values = [
        value(1, 20, None),
        value(2, 30, None),
        value(3, 5, None),
        value(4, 6, None),
        // It was no error at all; it went on for longer; what was true stays true; too old to be known.
        value(1, 9, Some(1)),
        value(3, 11, Some(1)),
        value(2, 31, Some(1)),
        value(1, 8, Some(2)),
    ];
    operator.on_input(0, Input::Batch(window_batch(&values)), &mut output);
    let told = records(&output, 0);
    let mut text = String::new();
    for record in records(&output, 1) {
        let amends = told.iter().position(|told| told["id"] == record["amends"]);
        let amends = amends.map_or("null".to_owned(), |at| told[at]["state"].to_string());
        text += &format!("{} {} -> {} of {amends} {}\n", record["time"], record["was"], record["is"], record["values"]);
    }
    expect![[r#"
        "2026-11-20T12:01:00Z" true -> false of "firing" {"errors":9,"update":1}
        "2026-11-20T12:03:00Z" false -> true of "resolved" {"errors":11,"update":1}
    "#]]
    .assert_eq(&text);
}

#[test]
fn an_update_that_later_windows_have_overtaken_makes_nothing_fire() {
    let mut operator = build("condition = '.errors > 10'");
    let mut output = Output::default();
    let update = |minute, errors, update, superseded: bool| {
        let mut record = value(minute, errors, Some(update));
        record["superseded"] = superseded.into();
        record
    };
    let values = [
        value(1, 5, None),
        value(2, 5, None),
        // Told once however often it is updated, and again when it is no longer so.
        update(1, 20, 1, true),
        update(1, 21, 2, true),
        update(1, 4, 3, true),
        update(1, 22, 4, true),
        // Nothing has decided since.
        update(2, 30, 1, false),
        value(3, 1, None),
        value(4, 1, None),
        // The alert has been over for two minutes, and the window between decided that it still was.
        update(4, 40, 1, false),
        value(5, 1, None),
        value(6, 1, None),
        update(5, 50, 1, true),
    ];
    operator.on_input(0, Input::Batch(window_batch(&values)), &mut output);
    let text = |record: &serde_json::Value| {
        let time = if record["state"] == "firing" { "starts_at" } else { "ends_at" };
        let time = if record["state"] == "amended" { "time" } else { time };
        let amends = if record["amends"].is_null() { "" } else { " of what was told" };
        format!("{} {} {}{amends}\n", record["state"], record[time], record["is"])
    };
    let ids: BTreeSet<_> = records(&output, 1).iter().map(|record| record["id"].to_string()).collect();
    assert_eq!(ids.len(), records(&output, 1).len(), "each is one by itself");
    let told = [0, 1].map(|port| records(&output, port).iter().map(text).collect::<String>());
    expect![[r#"
        "firing" "2026-11-20T12:02:00Z" null
        "resolved" "2026-11-20T12:03:00Z" null
        "firing" "2026-11-20T12:04:00Z" null
        "resolved" "2026-11-20T12:05:00Z" null
        "amended" "2026-11-20T12:01:00Z" true
        "amended" "2026-11-20T12:01:00Z" false
        "amended" "2026-11-20T12:01:00Z" true
        "amended" "2026-11-20T12:05:00Z" true of what was told
    "#]]
    .assert_eq(&told.concat());
}

#[test]
fn only_what_is_told_anew_can_be_superseded() {
    let mut operator = build("condition = '.errors > 10'");
    let mut output = Output::default();
    let mut record = value(1, 20, None);
    record["superseded"] = true.into();
    operator.on_input(0, Input::Batch(window_batch(&[record])), &mut output);
    assert_eq!(records(&output, 0)[0]["state"], "firing");
}

#[test]
fn a_late_record_that_would_have_kept_an_alert_is_an_amendment() {
    let outcome = script::run::<Config>(
        "condition = '.level == \"error\"'\nresolve_after = \"1m\"",
        r#"
        00:00 {"level":"error"}
        02:00 {"level":"info"}
        00:40 {"level":"error"}
        b: 00:10 {"level":"info"}
        "#,
    );
    let told: Vec<_> = outcome.lines().filter(|line| line.starts_with("amended")).collect();
    let ended = outcome.lines().find(|line| line.contains("\"resolved\"")).unwrap();
    let ended: serde_json::Value = serde_json::from_str(ended.split_once(' ').unwrap().1).unwrap();
    let [amended] = told[..] else { panic!("{outcome}") };
    let amended: serde_json::Value = serde_json::from_str(amended.splitn(3, ' ').nth(2).unwrap()).unwrap();
    assert_eq!(amended["amends"], ended["id"]);
    assert_eq!(amended["time"], ended["ends_at"]);
    assert_eq!((&amended["was"], &amended["is"]), (&false.into(), &true.into()));
}

#[test]
fn what_was_told_is_read_back_from_the_state() {
    let mut operator = build("condition = '.errors > 10'\nhistory = 3");
    let mut output = Output::default();
    let values = [value(1, 20, None), value(2, 5, None), value(3, 20, None), value(4, 5, None), value(5, 21, None)];
    operator.on_input(0, Input::Batch(window_batch(&values)), &mut output);
    let mut pieces = Vec::new();
    operator.snapshot(true, &mut |_, piece| pieces.push(piece));
    let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
    let told = Config::told("operator", &pieces);
    assert_eq!(told.transitions, records(&output, 0)[2..]);
    let [active] = &told.active[..] else { panic!("{:?}", told.active) };
    assert_eq!(active["firing_id"], told.transitions[2]["id"]);
    assert_eq!(active["fingerprint"], told.transitions[2]["fingerprint"]);
}

#[test]
fn the_value_over_time_is_told() {
    let config = "condition = '.errors > 10'\nfor = \"2m\"";
    let outcome = windows(config, &[(60, "a", 11), (120, "a", 12), (180, "a", 13), (240, "a", 4)], 1);
    let histories = outcome.lines().map(|line| {
        let record: serde_json::Value = serde_json::from_str(line.split_once(' ').unwrap().1).unwrap();
        record["history"].to_string()
    });
    expect![[r#"
        [[60,11],[120,12],[180,13]]
        [[60,11],[120,12],[180,13],[240,4]]"#]]
    .assert_eq(&histories.collect::<Vec<_>>().join("\n"));
}

#[test]
fn alerts_of_the_first_version_of_the_state_go_on() {
    let entry = r#"[["{\"host\":\"a\"}",{"alert":{"phase":"firing","episode":3,"since":1763640000000000000,"started":1763640060000000000,"heard":1763640120000000000,"refuted":null,"patience":{"secs":300,"nanos":0}},"is_keyed":true,"labels":{"host":"a"},"annotations":{},"values":"{\"errors\":20}","evidence":{"first":[{"key":"raw","raw":"x","cut_from":null,"source":"window","coordinate":"{}"}],"last":[],"matches":1}}]]"#;
    let key = r#"{"host":"a"}"#;
    let group = tocsin_pipeline::operator::key_group(key.as_bytes());
    let mut operator = build(LEVELS);
    operator.migrate(1, group, format!(r#"{{"entries":{entry},"clock":null}}"#).as_bytes()).unwrap();
    assert_eq!(operator.alerts(), [("pending", 0), ("firing", 1)]);
    let mut output = Output::default();
    operator.on_input(0, Input::Batch(window_batch(&[value(1, 5, None)])), &mut output);
    let told = records(&output, 0);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["state"], &told[0]["episode"]), (&"resolved".into(), &3.into()));
}

#[test]
fn problems_of_levels_are_told() {
    expect![[r#"
        levels[0].condition[4..4]: it ends where something is still to come
        levels[1].severity: there is a level "low" already (combine their conditions with `||`)
        levels[2].severity: a severity has a name
        labels.severity: the label `severity` says which of the `levels` it is (give it another name, or set `level_label`)
        flapping.changes: must be from 2 to 100
        flapping.within: must be longer than nothing and at most a day
        context: must be at most 10
        history: must be at most 100000
    "#]].assert_eq(&script::problems::<Config>(
        r#"
        levels = [
            { severity = "low", condition = ".n >" },
            { severity = "low", condition = ".n > 1" },
            { severity = "", condition = "true" },
        ]
        labels = { severity = "page" }
        flapping = { changes = 1, within = "2d" }
        context = 20
        history = 1000000
        "#,
    ));
    expect![[r#"
        : it does not say what to watch for (add `condition = ".errors > 100"`, or `levels` for several severities)
    "#]]
    .assert_eq(&script::problems::<Config>("for = \"1m\""));
    expect![[r#"
        levels: each of the `levels` has a condition of its own (remove `condition`, or make it the lowest of the levels)
        group_by[0]: the label `severity` says which of the `levels` it is (give it another name, or set `level_label`)
    "#]].assert_eq(&script::problems::<Config>(
        "condition = 'true'\nlevels = [{ severity = \"a\", condition = \"true\" }]\ngroup_by = [\".x.severity\"]",
    ));
}
