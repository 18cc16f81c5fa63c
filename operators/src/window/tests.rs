mod reference;

use std::time::Duration;

use expect_test::{Expect, expect};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::operator::{Built, Input, Output};
use tocsin_pipeline::time::Timestamp;

use super::Config;
use crate::script;

fn check(config: &str, story: &str, outcome: Expect) {
    // The dates of windows say nothing that the times before them do not.
    outcome.assert_eq(&script::run::<Config>(config, story).replace("1970-01-01T00:", ""));
}

const COUNT: &str = r#"
    tumbling = "1m"
    group_by = [".host"]
    aggregates = { n = "count()" }
"#;

#[test]
fn a_window_closes_when_the_watermark_passes_its_end() {
    check(
        COUNT,
        r#"
        00:00 {"host":"b"}
        00:30 {"host":"a"}
        00:59.999 {"host":"b"}
        01:00 {"host":"b"}
        watermark 00:59.999
        watermark 01:00
        watermark 01:30
        end
        "#,
        expect![[r#"
            (aggregated 4)
            01:00 {"host":"a","n":1,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":2,"window_end":"01:00Z","window_start":"00:00Z"}
            02:00 {"host":"b","n":1,"window_end":"02:00Z","window_start":"01:00Z"}
        "#]],
    );
}

#[test]
fn a_record_is_late_against_those_before_it_and_not_against_its_batch() {
    check(
        COUNT,
        r#"
        00:10 {"host":"a","is":"in time"}
        01:00 {"host":"a","is":"what closes the first window"}
        00:59 {"host":"a","is":"late"}
        watermark 01:00
        00:59 {"host":"a","is":"late as well"}
        b: 00:58 {"host":"a","is":"in time for its lane, but emitted already"}
        end
        "#,
        expect![[r#"
            late: 00:59 {"host":"a","is":"late"}
            (aggregated 2)
            01:00 {"host":"a","n":1,"window_end":"01:00Z","window_start":"00:00Z"}
            late: 00:59 {"host":"a","is":"late as well"}
            late: 00:58 {"host":"a","is":"in time for its lane, but emitted already"}
            02:00 {"host":"a","n":1,"window_end":"02:00Z","window_start":"01:00Z"}
        "#]],
    );
}

#[test]
fn lateness_keeps_windows_open() {
    check(
        r#"
        tumbling = "10s"
        lateness = "5s"
        aggregates = { n = "count()" }
        "#,
        r#"
        00:01 {}
        00:14 {}
        00:02 {}
        watermark 00:14
        00:15 {}
        00:09 {}
        watermark 00:15
        end
        "#,
        expect![[r#"
            (aggregated 3)
            late: 00:09 {}
            (aggregated 1)
            00:10 {"n":2,"window_end":"00:10Z","window_start":"00:00Z"}
            00:20 {"n":2,"window_end":"00:20Z","window_start":"00:10Z"}
        "#]],
    );
}

#[test]
fn records_may_be_out_of_order_as_far_as_their_source_says() {
    check(
        COUNT,
        r#"
        out_of_order 00:10
        00:30 {"host":"a"}
        01:09 {"host":"a"}
        00:31 {"host":"a"}
        01:10 {"host":"a"}
        00:32 {"host":"a"}
        end
        "#,
        expect![[r#"
            late: 00:32 {"host":"a"}
            (aggregated 4)
            01:00 {"host":"a","n":2,"window_end":"01:00Z","window_start":"00:00Z"}
            02:00 {"host":"a","n":2,"window_end":"02:00Z","window_start":"01:00Z"}
        "#]],
    );
}

#[test]
fn a_late_record_tells_its_window_anew() {
    check(
        r#"
        tumbling = "1m"
        lateness = "2m"
        group_by = [".host"]
        aggregates = { n = "count()" }
        emit = "update"
        "#,
        r#"
        00:10 {"host":"a"}
        01:01 {"host":"a","is":"what ends the first window"}
        00:20 {"host":"a","is":"late"}
        00:30 {"host":"b","is":"late, of a key of which nothing was told"}
        watermark 01:01
        00:40 {"host":"a","is":"late as well"}
        03:00 {"host":"a","is":"what closes the first window"}
        00:50 {"host":"a","is":"too late"}
        01:50 {"host":"a","is":"late for the second"}
        end
        "#,
        expect![[r#"
            (aggregated 4)
            01:00 {"host":"a","n":1,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"a","n":2,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":1,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"a","n":3,"superseded":false,"update":2,"window_end":"01:00Z","window_start":"00:00Z"}
            late: 00:50 {"host":"a","is":"too late"}
            (aggregated 3)
            02:00 {"host":"a","n":1,"window_end":"02:00Z","window_start":"01:00Z"}
            02:00 {"host":"a","n":2,"superseded":false,"update":1,"window_end":"02:00Z","window_start":"01:00Z"}
            04:00 {"host":"a","n":1,"window_end":"04:00Z","window_start":"03:00Z"}
        "#]],
    );
}

#[test]
fn what_is_late_in_a_lane_waits_until_the_others_have_come_there() {
    check(
        r#"
        tumbling = "1m"
        lateness = "1h"
        aggregates = { n = "count()" }
        emit = "update"
        "#,
        r#"
        00:10 {}
        01:01 {}
        00:20 {"is":"late in its lane"}
        b: 00:30 {"is":"in time in its lane"}
        watermark 00:30
        b: 02:00 {}
        watermark 01:01
        b: 00:40 {"is":"late, and nobody has come there yet"}
        watermark 01:30
        watermark 02:00
        end
        "#,
        expect![[r#"
            (aggregated 4)
            (aggregated 1)
            01:00 {"n":2,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"n":3,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"00:00Z"}
            (aggregated 1)
            02:00 {"n":1,"window_end":"02:00Z","window_start":"01:00Z"}
            01:00 {"n":4,"superseded":true,"update":2,"window_end":"01:00Z","window_start":"00:00Z"}
            03:00 {"n":1,"window_end":"03:00Z","window_start":"02:00Z"}
        "#]],
    );
}

#[test]
fn a_crash_changes_nothing_of_updates() {
    check(
        r#"
        hopping = { size = "2m", every = "1m" }
        lateness = "2m"
        group_by = [".host"]
        aggregates = { n = "count()", last = "last(.v)" }
        emit = "update"
        "#,
        r#"
        00:10 {"host":"a","v":1}
        01:01 {"host":"a","v":2}
        00:20 {"host":"a","v":3,"is":"late, and waits"}
        barrier
        crash
        watermark 01:01
        barrier
        00:30 {"host":"a","v":4}
        crash
        00:30 {"host":"a","v":4}
        watermark 01:01
        00:30 {"host":"b","v":5}
        barrier
        crash
        02:02 {"host":"a","v":6}
        watermark 02:02
        00:40 {"host":"a","v":7,"is":"late for two windows"}
        end
        barrier
        crash
        end
        "#,
        expect![[r#"
            (aggregated 3)
            01:00 {"host":"a","last":1,"n":1,"window_end":"01:00Z","window_start":"1969-12-31T23:59:00Z"}
            01:00 {"host":"a","last":3,"n":2,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"1969-12-31T23:59:00Z"}
            01:00 {"host":"a","last":4,"n":3,"superseded":false,"update":2,"window_end":"01:00Z","window_start":"1969-12-31T23:59:00Z"}
            (aggregated 1)
            (aggregated 1)
            01:00 {"host":"a","last":4,"n":3,"superseded":false,"update":2,"window_end":"01:00Z","window_start":"1969-12-31T23:59:00Z"}
            01:00 {"host":"b","last":5,"n":1,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"1969-12-31T23:59:00Z"}
            (aggregated 1)
            (aggregated 1)
            02:00 {"host":"a","last":2,"n":4,"window_end":"02:00Z","window_start":"00:00Z"}
            02:00 {"host":"b","last":5,"n":1,"window_end":"02:00Z","window_start":"00:00Z"}
            01:00 {"host":"a","last":7,"n":4,"superseded":true,"update":3,"window_end":"01:00Z","window_start":"1969-12-31T23:59:00Z"}
            02:00 {"host":"a","last":2,"n":5,"superseded":false,"update":1,"window_end":"02:00Z","window_start":"00:00Z"}
            (aggregated 1)
            03:00 {"host":"a","last":6,"n":2,"window_end":"03:00Z","window_start":"01:00Z"}
            04:00 {"host":"a","last":6,"n":1,"window_end":"04:00Z","window_start":"02:00Z"}
        "#]],
    );
}

#[test]
fn what_was_told_stays_told_whatever_has_changed() {
    check(
        r#"
        tumbling = "1m"
        lateness = "1h"
        group_by = [".host"]
        aggregates = { n = "count()" }
        emit = "update"
        "#,
        r#"
        00:10 {"host":"a"}
        01:01 {"host":"b"}
        00:20 {"host":"a"}
        watermark 01:01
        barrier
        02:01 {"host":"b"}
        watermark 02:01
        barrier
        crash
        end
        "#,
        expect![[r#"
            (aggregated 3)
            01:00 {"host":"a","n":1,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"a","n":2,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"00:00Z"}
            (aggregated 1)
            02:00 {"host":"b","n":1,"window_end":"02:00Z","window_start":"01:00Z"}
            03:00 {"host":"b","n":1,"window_end":"03:00Z","window_start":"02:00Z"}
        "#]],
    );
}

#[test]
fn hopping_windows_overlap_and_a_record_counts_for_those_it_is_not_late_for() {
    check(
        r#"
        hopping = { size = "30s", every = "10s" }
        aggregates = { n = "count()", last = "last(.n)" }
        "#,
        r#"
        00:05 {"n":1}
        00:25 {"n":2}
        00:09 {"n":3}
        watermark 00:25
        01:05 {"n":4}
        00:35 {"n":5}
        watermark 01:05
        00:45 {"n":6}
        end
        "#,
        expect![[r#"
            (aggregated 3)
            00:10 {"last":1,"n":1,"window_end":"00:10Z","window_start":"1969-12-31T23:59:40Z"}
            00:20 {"last":1,"n":1,"window_end":"00:20Z","window_start":"1969-12-31T23:59:50Z"}
            late: 00:35 {"n":5}
            (aggregated 1)
            00:30 {"last":2,"n":3,"window_end":"00:30Z","window_start":"00:00Z"}
            00:40 {"last":2,"n":1,"window_end":"00:40Z","window_start":"00:10Z"}
            00:50 {"last":2,"n":1,"window_end":"00:50Z","window_start":"00:20Z"}
            (aggregated 1)
            01:10 {"last":4,"n":2,"window_end":"01:10Z","window_start":"00:40Z"}
            01:20 {"last":4,"n":1,"window_end":"01:20Z","window_start":"00:50Z"}
            01:30 {"last":4,"n":1,"window_end":"01:30Z","window_start":"01:00Z"}
        "#]],
    );
}

#[test]
fn every_aggregate_is_computed_of_what_has_a_value() {
    check(
        r#"
        tumbling = "1m"
        aggregates.n = "count()"
        aggregates.slow = "count(.ms > 10)"
        aggregates.per_second = "rate()"
        aggregates.sum = "sum(.ms)"
        aggregates.mean = "mean(.ms)"
        aggregates.least = "min(.ms)"
        aggregates.greatest = "max(.ms)"
        aggregates.half = "quantile(.ms, 0.5)"
        aggregates.users = "distinct(.user)"
        aggregates.first = "first(.user)"
        aggregates.last = "last(.user)"
        aggregates.computed = "max(to_int!(.ms) * 2)"
        aggregates.none = "mean(.nothing)"
        "#,
        r#"
        00:03 {"ms":7,"user":"c"}
        00:01 {"ms":100,"user":"a"}
        00:02 {"ms":0.5,"user":"b"}
        00:04 {"ms":"fast","user":{"id":1}}
        00:05 {"user":null}
        00:04 {"ms":3,"user":"a"}
        end
        "#,
        expect![[r#"
            (aggregated 6)
            (expression errors 22)
            01:00 {"computed":200,"first":"a","greatest":100,"half":3.0155440414507773,"last":"a","least":0.5,"mean":27.625,"n":6,"none":null,"per_second":0.1,"slow":1,"sum":110.5,"users":4,"window_end":"01:00Z","window_start":"00:00Z"}
        "#]],
    );
}

#[test]
fn keys_are_told_apart_by_type_and_come_in_their_order() {
    check(
        r#"
        tumbling = "1m"
        group_by = [".request.host", ".status"]
        aggregates = { n = "count()" }
        "#,
        r#"
        00:01 {"request":{"host":"b"},"status":200}
        00:01 {"request":{"host":"b"},"status":"200"}
        00:01 {"request":{"host":"b"},"status":1000}
        00:01 {"request":{"host":"b"},"status":200.5}
        00:01 {"request":{"host":"b"},"status":-1}
        00:01 {"request":{"host":"ab"},"status":true}
        00:01 {"request":{"host":null}}
        00:01 {"status":null}
        00:01 {"request":{"host":["x",{"y":"é\n"}]}}
        end
        "#,
        expect![[r#"
            (aggregated 9)
            01:00 {"host":null,"n":2,"status":null,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"ab","n":1,"status":true,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":1,"status":-1,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":1,"status":200,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":1,"status":1000,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":1,"status":200.5,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","n":1,"status":"200","window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":["x",{"y":"é\n"}],"n":1,"status":null,"window_end":"01:00Z","window_start":"00:00Z"}
        "#]],
    );
}

#[test]
fn a_crash_changes_nothing() {
    check(
        r#"
        hopping = { size = "20s", every = "10s" }
        group_by = [".host"]
        aggregates = { n = "count()", q = "quantile(.v, 0.5)", d = "distinct(.v)", s = "sum(.v)", l = "last(.v)", m = "min(.v)" }
        "#,
        r#"
        00:01 {"host":"a","v":1.5}
        00:02 {"host":"b","v":2}
        barrier
        00:05 {"host":"a","v":77}
        crash
        00:05 {"host":"a","v":3}
        00:11 {"host":"a","v":-1}
        watermark 00:11
        barrier
        crash
        00:09 {"host":"a","v":5}
        00:31 {"host":"b","v":6}
        watermark 00:31
        barrier
        crash
        00:19 {"host":"c","v":7}
        end
        barrier
        crash
        end
        "#,
        expect![[r#"
            (aggregated 2)
            (aggregated 1)
            (aggregated 2)
            00:10 {"d":2,"host":"a","l":3,"m":1.5,"n":2,"q":1.5,"s":4.5,"window_end":"00:10Z","window_start":"1969-12-31T23:59:50Z"}
            00:10 {"d":1,"host":"b","l":2,"m":2,"n":1,"q":2.0,"s":2,"window_end":"00:10Z","window_start":"1969-12-31T23:59:50Z"}
            (aggregated 2)
            00:20 {"d":4,"host":"a","l":-1,"m":-1,"n":4,"q":1.5077720207253886,"s":8.5,"window_end":"00:20Z","window_start":"00:00Z"}
            00:20 {"d":1,"host":"b","l":2,"m":2,"n":1,"q":2.0,"s":2,"window_end":"00:20Z","window_start":"00:00Z"}
            00:30 {"d":1,"host":"a","l":-1,"m":-1,"n":1,"q":-1.0,"s":-1,"window_end":"00:30Z","window_start":"00:10Z"}
            late: 00:19 {"host":"c","v":7}
            00:40 {"d":1,"host":"b","l":6,"m":6,"n":1,"q":6.0,"s":6,"window_end":"00:40Z","window_start":"00:20Z"}
            00:50 {"d":1,"host":"b","l":6,"m":6,"n":1,"q":6.0,"s":6,"window_end":"00:50Z","window_start":"00:30Z"}
        "#]],
    );
}

#[test]
fn windows_that_closed_empty_stay_closed_after_a_crash() {
    check(
        COUNT,
        r#"
        watermark 01:00
        barrier
        crash
        00:30 {"host":"a"}
        "#,
        expect![[r#"
            late: 00:30 {"host":"a"}
        "#]],
    );
}

#[test]
fn after_the_end_what_is_appended_finds_its_window_open() {
    check(
        COUNT,
        r#"
        00:30 {"host":"a"}
        end
        barrier
        crash
        00:31 {"host":"a"}
        01:01 {"host":"a"}
        end
        "#,
        expect![[r#"
            (aggregated 1)
            01:00 {"host":"a","n":1,"window_end":"01:00Z","window_start":"00:00Z"}
            late: 00:31 {"host":"a"}
            (aggregated 1)
            02:00 {"host":"a","n":1,"window_end":"02:00Z","window_start":"01:00Z"}
        "#]],
    );
}

/// Takes records in under one `emit`, restarts under the other, and tells what comes before and after.
fn switched(from: &str, to: &str) -> String {
    let build = |emit: &str| match script::build::<Config>(&format!("{COUNT}\nlateness = \"1h\"\nemit = \"{emit}\"")) {
        Built::Operator { operator, .. } => operator,
        Built::Transform(_) => unreachable!(),
    };
    let text = |output: Output| -> String {
        let batches = output.batches.into_iter().filter(|(port, _)| *port == 0).map(|(_, batch)| batch);
        let told = |batch: Batch| {
            let lines = batch.rows().map(|row| {
                let value = batch.value(row);
                let fields = value.as_object().unwrap();
                let update = fields.get("update").map_or(String::new(), |update| format!(" update {update}"));
                format!("{} {}{update}\n", batch.time(row), fields["n"])
            });
            lines.collect::<String>()
        };
        batches.map(told).collect()
    };
    let (mut operator, mut output) = (build(from), Output::default());
    let lane = script::lane("a", Duration::ZERO);
    let record = |second| (Timestamp::from_secs(second), r#"{"host":"a"}"#);
    let batch = script::batch(&lane, 0, Timestamp::MIN, &[record(10), record(61), record(20)]);
    operator.on_input(0, Input::Batch(batch), &mut output);
    operator.on_watermark(Timestamp::from_secs(60), &mut output);
    let before = text(output);
    let (mut next, mut output) = (build(to), Output::default());
    operator.snapshot(true, &mut |group, piece| next.restore(group, &piece).unwrap());
    next.on_watermark(Timestamp::from_secs(61), &mut output);
    let batch = script::batch(&lane, 100, Timestamp::from_secs(61), &[record(30)]);
    next.on_input(0, Input::Batch(batch), &mut output);
    next.on_watermark(Timestamp::MAX, &mut output);
    format!("{before}{to}\n{}", text(output))
}

#[test]
fn how_windows_are_told_can_change_while_they_are_open() {
    expect![[r#"
        1970-01-01T00:01:00Z 1
        close
        1970-01-01T00:01:00Z 3
        1970-01-01T00:02:00Z 1
    "#]]
    .assert_eq(&switched("update", "close"));
    expect![[r#"
        update
        1970-01-01T00:01:00Z 2
        1970-01-01T00:01:00Z 3 update 1
        1970-01-01T00:02:00Z 1
    "#]]
    .assert_eq(&switched("close", "update"));
}

#[test]
fn bounds_on_keys_are_kept_and_counted() {
    check(
        r#"
        tumbling = "1m"
        group_by = [".host"]
        aggregates = { n = "count()", longest = "last(.text)" }
        max_keys = 2
        max_value_bytes = "10"
        "#,
        r#"
        00:01 {"host":"a","text":"short"}
        00:01 {"host":"b","text":"this is far too long"}
        00:01 {"host":"c"}
        00:02 {"host":"a","text":"shorter"}
        00:02 {"host":"a far too long host"}
        end
        01:00 {"host":"c"}
        end
        "#,
        expect![[r#"
            (aggregated 3)
            (state_full 2)
            (expression errors 3)
            01:00 {"host":"a","longest":"shorter","n":2,"window_end":"01:00Z","window_start":"00:00Z"}
            01:00 {"host":"b","longest":null,"n":1,"window_end":"01:00Z","window_start":"00:00Z"}
            (aggregated 1)
            (expression errors 1)
            02:00 {"host":"c","longest":null,"n":1,"window_end":"02:00Z","window_start":"01:00Z"}
        "#]],
    );
    check(
        r#"
        tumbling = "1m"
        lateness = "1h"
        group_by = [".host"]
        aggregates = { n = "count()" }
        emit = "update"
        max_keys = 2
        "#,
        r#"
        02:00 {"host":"a"}
        00:01 {"host":"b"}
        02:01 {"host":"c"}
        00:02 {"host":"b"}
        end
        "#,
        expect![[r#"
            (aggregated 2)
            (state_full 2)
            01:00 {"host":"b","n":1,"superseded":false,"update":1,"window_end":"01:00Z","window_start":"00:00Z"}
            03:00 {"host":"a","n":1,"window_end":"03:00Z","window_start":"02:00Z"}
        "#]],
    );
    check(
        r#"
        tumbling = "1m"
        aggregates = { n = "count()" }
        max_bytes = "0"
        "#,
        "00:01 {}",
        expect![[r#"
            (state_full 1)
        "#]],
    );
}

#[test]
fn times_at_the_ends_of_the_world_are_survived() {
    ["close", "update"].into_iter().for_each(survive_the_ends_of_the_world);
}

fn survive_the_ends_of_the_world(emit: &str) {
    let config = format!(
        r#"
        tumbling = "1m"
        lateness = "3650d"
        aggregates = {{ n = "count()" }}
        emit = "{emit}"
        "#
    );
    let Built::Operator { mut operator, prepare, .. } = script::build::<Config>(&config) else { panic!() };
    let lane = script::lane("a", Duration::MAX);
    for time in [i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1, 0] {
        let batch = script::batch(
            &lane,
            0,
            Timestamp(time),
            &[(Timestamp(time), "{}"), (Timestamp(-time.max(-i64::MAX)), "{}")],
        );
        let mut output = Output::default();
        operator.on_input(0, Input::Prepared(prepare.as_ref().unwrap().prepare(batch)), &mut output);
        operator.on_watermark(Timestamp(time), &mut output);
    }
}

#[test]
fn damaged_state_is_refused() {
    refuse_damaged(COUNT, &[(Timestamp(1), r#"{"host":"a"}"#)], 0);
    let updates = format!("{COUNT}\nlateness = \"1h\"\nemit = \"update\"");
    let held = [(Timestamp::from_secs(90), r#"{"host":"a"}"#), (Timestamp(1), r#"{"host":"a"}"#)];
    // Without what is known of updates it is what a window has that is told once.
    refuse_damaged(&updates, &held, 1);
}

fn refuse_damaged(config: &str, records: &[(Timestamp, &str)], whole: usize) {
    let Built::Operator { mut operator, .. } = script::build::<Config>(config) else { panic!() };
    let batch = script::batch(&script::lane("a", Duration::ZERO), 0, Timestamp::MIN, records);
    operator.on_input(0, Input::Batch(batch), &mut Output::default());
    let mut pieces = Vec::new();
    operator.snapshot(true, &mut |group, piece| pieces.push((group, piece)));
    let (group, piece) = pieces.into_iter().rev().find(|(_, piece)| !piece.is_empty()).unwrap();
    let restore = |piece: &[u8]| {
        let Built::Operator { mut operator, .. } = script::build::<Config>(config) else { panic!() };
        operator.restore(group, piece).is_ok()
    };
    assert!(restore(&piece));
    let taken: Vec<_> = (1..piece.len()).filter(|len| restore(&piece[..*len])).collect();
    assert!(taken.len() <= whole, "cut after {taken:?}");
    assert!(!restore(&[0xff; 64]));
}

#[test]
fn every_problem_is_told_where_it_is() {
    let problems = |config: &str, outcome: Expect| outcome.assert_eq(&script::problems::<Config>(config));
    problems(
        r#"
        tumbling = "0s"
        lateness = "4000d"
        group_by = [".a.n", ".b.n", ".window_end", "1 + 1", ".x +"]
        emit = "update"
        max_keys = 0

        [aggregates]
        n = "count()"
        a = "avg(.x)"
        b = "median(.x)"
        c = "  sum(.x, .y)"
        d = "quantile(.x, 99)"
        e = ".x"
        f = "count(.x >)"
        g = "mean(nope)"
        h = "count(.x); count(.y)"
        i = "sum(value: .x)"
        j = "stddev(.x)"
        k = "count!()"
        l = "sum(upcase(.x))"
        "#,
        expect![[r#"
            tumbling: must be longer than nothing and at most ten years
            lateness: must be at most ten years
            group_by.4[4..4]: it ends where something is still to come
            aggregates.a[0..3]: there is no aggregate function `avg` (did you mean `mean`?)
            aggregates.b[0..6]: there is no aggregate function `median` (write one of count, sum, mean, min, max, quantile, distinct, first, last, rate, such as `mean(.latency_ms)`)
            aggregates.c[2..13]: `sum` takes one expression (write `sum(.latency_ms)`)
            aggregates.d[13..15]: must be a number from 0 to 1 (the 99th percentile is `0.99`)
            aggregates.e[0..2]: must be a call of an aggregate function (write one of count, sum, mean, min, max, quantile, distinct, first, last, rate, such as `mean(.latency_ms)`)
            aggregates.f[10..11]: `)` cannot stand here
            aggregates.g[5..9]: call to undefined variable: did you mean "null"?
            aggregates.h[0..20]: must be one call (write one of count, sum, mean, min, max, quantile, distinct, first, last, rate, such as `mean(.latency_ms)`)
            aggregates.i[4..13]: arguments of aggregate functions have no names
            aggregates.j[0..6]: `stddev` is not supported yet
            aggregates.k[0..5]: aggregate functions take neither `!` nor a closure
            group_by.1: its value would be named `n`, as `.a.n` is (rename the field in a `remap` before)
            group_by.2: its value would be named `window_end`, as `window_end` is (rename the field in a `remap` before)
            group_by.3: which name its value should have is not clear: it does not read one field (compute it in a `remap` before, and name the field)
            aggregates.n: the record has a field of this name already: `.a.n`
            max_keys: must be at least 1
        "#]],
    );
    problems(
        "aggregates = {}",
        expect![[r#"
        : it does not say which windows (add `tumbling = "1m"` or `hopping = { size = "5m", every = "10s" }`)
        aggregates: there is nothing to compute (write `aggregates = { n = "count()" }`)
    "#]],
    );
    problems(
        r#"
        session = { gap = "1m" }
        group_by = [".update"]
        aggregates = { n = "count()" }
        emit = "update"
        "#,
        expect![[r#"
            session: windows by session are not supported yet (use `tumbling` or `hopping`)
            group_by.0: its value would be named `update`, as `update` is (rename the field in a `remap` before)
            emit: no record is late and still counts: `lateness` is nothing (say for how long windows are told anew, such as `lateness = "10m"`)
        "#]],
    );
    problems(
        r#"
        hopping = { size = "1h", every = "1s" }
        lateness = "1h"
        aggregates = { n = "count()" }
        emit = "update"
        "#,
        expect![[r#"
            hopping.every: each late record would tell 3600 windows anew (with `emit = "update"` at most 100 may overlap)
        "#]],
    );
    problems(
        r#"
        tumbling = "1m"
        hopping = { size = "1m", every = "7s" }
        aggregates = { n = "count()" }
        "#,
        expect![[r#"
            hopping: a window cannot be both `tumbling` and `hopping`
            hopping.size: 1m is not a multiple of `every`, which is 7s (windows are put together from panes of `every`)
        "#]],
    );
}

#[test]
fn windows_are_kept_by_what_they_are_grouped_by() {
    expect![[r#"By { option: "group_by", key: [".host"] }, Windows"#]].assert_eq(&script::keying::<Config>(COUNT));
}
