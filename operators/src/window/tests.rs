use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use tocsin_pipeline::event::Field;
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Built, Input, Output};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use super::Config;
use super::number::{Number, float};
use super::quantile::Sketch;
use crate::{key, script};

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

/// One record of a generated story.
#[derive(Clone, Debug)]
struct Given {
    lane: usize,
    second: i64,
    host: Option<&'static str>,
    value: Option<&'static str>,
    /// Whether the batch of its lane ends with it, the watermark is told then, and a crash follows.
    ends_batch: bool,
    tells_watermark: bool,
    crashes: bool,
}

impl Given {
    fn time(&self) -> Timestamp {
        Timestamp::from_secs(self.second)
    }

    fn json(&self) -> String {
        let mut fields = Vec::new();
        fields.extend(self.host.map(|host| format!("\"host\":\"{host}\"")));
        fields.extend(self.value.map(|value| format!("\"v\":{value}")));
        format!("{{{}}}", fields.join(","))
    }
}

fn given() -> impl Strategy<Value = Given> {
    let host = prop::sample::select(vec![Some("a"), Some("b"), Some("c"), None]);
    let value = prop::sample::select(vec![
        Some("1"),
        Some("7"),
        Some("-2.5"),
        Some("0.25"),
        Some("6.696928794914171e299"),
        Some("\"x\""),
        Some("null"),
        None,
    ]);
    (0..2usize, 0i64..60, host, value, any::<[bool; 3]>()).prop_map(|(lane, second, host, value, flags)| Given {
        lane,
        second,
        host,
        value,
        ends_batch: flags[0],
        tells_watermark: flags[1],
        crashes: flags[2],
    })
}

/// The windows that a test runs, as numbers of seconds.
#[derive(Clone, Copy, Debug)]
struct Rule {
    size: i64,
    every: i64,
    lateness: i64,
    out_of_order: i64,
    updates: bool,
}

impl Rule {
    fn config(self) -> String {
        let Self { size, every, lateness, updates, .. } = self;
        let emit = if updates { "update" } else { "close" };
        let kind = match size == every {
            true => format!("tumbling = \"{size}s\""),
            false => format!("hopping = {{ size = \"{size}s\", every = \"{every}s\" }}"),
        };
        format!(
            r#"
            {kind}
            lateness = "{lateness}s"
            emit = "{emit}"
            group_by = [".host"]
            [aggregates]
            count = "count()"
            distinct = "distinct(.v)"
            first = "first(.v)"
            last = "last(.v)"
            max = "max(.v)"
            mean = "mean(.v)"
            median = "quantile(.v, 0.5)"
            min = "min(.v)"
            positive = "count(.v > 0)"
            sum = "sum(.v)"
            "#
        )
    }
}

/// A record of a window: its second, lane and position, and what it holds.
type Row = (i64, usize, usize, Value);

/// A late record: the windows that it changes, its key and itself.
type LateRow = (Vec<i64>, Vec<u8>, Row);

/// What a window makes of its records, the naive way: a line for each window and key, one for each time that it is told anew, and one for each late
/// record.
fn reference(rule: Rule, story: &[Given]) -> Vec<String> {
    let mut windows: BTreeMap<(i64, Vec<u8>), Vec<Row>> = BTreeMap::new();
    // By the watermark that they came behind, lane and position.
    let mut updates: BTreeMap<(i64, usize, usize), LateRow> = BTreeMap::new();
    let mut late = Vec::new();
    for lane in 0..2 {
        let mut seen = i64::MIN / 2;
        for (position, given) in story.iter().enumerate().filter(|(_, given)| given.lane == lane) {
            let watermark = seen - rule.out_of_order;
            let record = json::parse_value(given.json().as_bytes()).unwrap();
            let mut host = Vec::new();
            key::encode(record.as_object().unwrap().get("host").map_or(Field::Missing, Field::of_value), &mut host);
            let row = (given.second, lane, position, record.clone());
            let first = given.second.div_euclid(rule.every) * rule.every + rule.every;
            let ends = (first..first + rule.size).step_by(rule.every as usize);
            let open: Vec<i64> = ends.filter(|end| end + rule.lateness > watermark).collect();
            let (ended, others): (Vec<_>, Vec<_>) =
                open.iter().copied().partition(|end| rule.updates && *end <= watermark);
            for end in others {
                windows.entry((end, host.clone())).or_default().push(row.clone());
            }
            if !ended.is_empty() {
                updates.insert((watermark, lane, position), (ended, host, row));
            }
            if open.is_empty() {
                late.push(line(&format!("late {lane}"), &record));
            }
            seen = seen.max(given.second);
        }
    }
    let mut lines = Vec::new();
    let mut counts: BTreeMap<(i64, Vec<u8>), i64> = BTreeMap::new();
    let mut waiting = windows.keys().cloned().collect::<Vec<_>>().into_iter().peekable();
    let turns = updates.into_iter().map(|((watermark, ..), update)| (watermark, Some(update)));
    for (watermark, update) in turns.chain([(i64::MAX, None)]) {
        while let Some(window) = waiting.next_if(|(end, _)| *end <= watermark) {
            lines.push(line(&format!("{}", window.0), &told(rule, &window, windows[&window].clone(), None)));
        }
        let Some((ends, host, row)) = update else { continue };
        ends.iter().for_each(|end| windows.entry((*end, host.clone())).or_default().push(row.clone()));
        for end in ends {
            let is_superseded =
                windows.keys().any(|(other, key)| *key == host && (end + 1..=watermark).contains(other));
            let window = (end, host.clone());
            let count = counts.entry(window.clone()).or_default();
            *count += 1;
            let record = told(rule, &window, windows[&window].clone(), Some((*count, is_superseded)));
            lines.push(line(&format!("{end}"), &record));
        }
    }
    lines.extend(late);
    lines
}

/// What is told of a window and key whose records are `rows`.
fn told(rule: Rule, (end, host): &(i64, Vec<u8>), mut rows: Vec<Row>, update: Option<(i64, bool)>) -> Value {
    rows.sort_by_key(|(second, lane, position, _)| (*second, *lane, *position));
    let values: Vec<&Value> =
        rows.iter().filter_map(|row| row.3.as_object().unwrap().get("v")).filter(|v| !v.is_null()).collect();
    let mut numbers: Vec<Number> = values.iter().filter_map(|value| Number::of(Field::of_value(value))).collect();
    numbers.sort_by(|left, right| left.order(*right));
    let mut sketch = Sketch::default();
    numbers.iter().for_each(|number| assert!(sketch.add(*number)));
    // Sums of small multiples of 1/4 are exact; one of 2^996 hides them, and several make an exact product, so that nothing
    // small decides how that is rounded.
    let (huge, small): (Vec<f64>, Vec<f64>) = numbers
        .iter()
        .map(|number| match number {
            Number::Integer(value) => *value as f64,
            Number::Float(value) => *value,
            Number::Time(_) => unreachable!(),
        })
        .partition(|value| value.abs() > 1e200);
    let total = huge.len() as f64 * 2f64.powi(996) + small.iter().sum::<f64>();
    let sum = match numbers.iter().any(|number| matches!(number, Number::Float(_))) {
        true => float(total),
        false => Value::Integer(total as i64),
    };
    let mean = if numbers.is_empty() { Value::Null } else { float(total / numbers.len() as f64) };
    let shown = |number: Option<&Number>| number.map_or(Value::Null, |number| number.to_value());
    let edge = |value: Option<&&Value>| value.map_or(Value::Null, |value| (*value).clone());
    let distinct = values.iter().map(|value| value.to_string()).collect::<BTreeSet<_>>().len();
    let positive = numbers.iter().filter(|number| number.order(Number::Integer(0)).is_gt()).count();
    let fields = [
        ("count", Value::Integer(rows.len() as i64)),
        ("distinct", Value::Integer(distinct as i64)),
        ("first", edge(values.first())),
        ("host", key::decode(&mut &host[..]).unwrap()),
        ("last", edge(values.last())),
        ("max", shown(numbers.last())),
        ("mean", mean),
        ("median", sketch.quantile(0.5)),
        ("min", shown(numbers.first())),
        ("positive", Value::Integer(positive as i64)),
        ("sum", sum),
        ("window_end", Value::from(Timestamp::from_secs(*end).to_string().as_str())),
        ("window_start", Value::from(Timestamp::from_secs(*end - rule.size).to_string().as_str())),
    ];
    let update = update.map(|(count, is_superseded)| {
        [("update", Value::Integer(count)), ("superseded", Value::Boolean(is_superseded))]
    });
    let update = update.into_iter().flatten();
    Value::Object(fields.into_iter().chain(update).map(|(name, value)| (name.into(), value)).collect())
}

fn line(prefix: &str, record: &Value) -> String {
    let mut json = Vec::new();
    json::write_value(record, &mut json);
    format!("{prefix} {}", String::from_utf8(json).unwrap())
}

/// The same by the operator: batches cut as the story says, the lanes interleaved as it says.
fn outcome(rule: Rule, story: &[Given], is_prepared: bool) -> Vec<String> {
    let build = || match script::build::<Config>(&rule.config()) {
        Built::Operator { operator, prepare, .. } => (operator, prepare.unwrap()),
        Built::Transform(_) => unreachable!(),
    };
    let (mut operator, mut prepare) = build();
    let lanes = ["0", "1"].map(|name| script::lane(name, Duration::from_secs(rule.out_of_order as u64)));
    let (mut seen, mut offsets) = ([Timestamp::MIN; 2], [0u64; 2]);
    let mut waiting: [Vec<&Given>; 2] = [Vec::new(), Vec::new()];
    let (mut lines, mut late) = (Vec::new(), [Vec::new(), Vec::new()]);
    let mut tell = |output: Output| {
        for (port, batch) in output.batches {
            for row in batch.rows() {
                let record = batch.value(row);
                match port {
                    0 => lines.push(line(&format!("{}", batch.time(row).0 / 1_000_000_000), &record)),
                    _ => {
                        let lane: usize = batch.lane.partition.parse().unwrap();
                        late[lane].push(line(&format!("late {lane}"), &record));
                    }
                }
            }
        }
    };
    for (at, given) in story.iter().enumerate() {
        let lane = given.lane;
        waiting[lane].push(given);
        let is_last = !story[at + 1..].iter().any(|next| next.lane == lane);
        if !given.ends_batch && !is_last {
            continue;
        }
        let jsons: Vec<_> = waiting[lane].iter().map(|given| (given.time(), given.json())).collect();
        waiting[lane].clear();
        let records: Vec<_> = jsons.iter().map(|(time, json)| (*time, json.as_str())).collect();
        let mut batch = script::batch(&lanes[lane], offsets[lane], Timestamp::MIN, &records);
        offsets[lane] += batch.block.len() as u64;
        let (before, max) = (seen[lane], batch.times.as_ref().unwrap().max);
        let input = if is_prepared {
            let mut prepared = prepare.prepare(batch);
            prepared.seen_before = before;
            Input::Prepared(prepared)
        } else {
            batch.seen_before = before;
            Input::Batch(batch)
        };
        seen[lane] = seen[lane].max(max);
        let mut output = Output::default();
        operator.on_input(0, input, &mut output);
        // A lane without a record says nothing yet; one that the story does not have does not exist.
        let lanes = (0..2).filter(|lane| story.iter().any(|given| given.lane == *lane));
        let least = lanes.map(|lane| seen[lane]).min().unwrap_or(Timestamp::MIN);
        if given.tells_watermark && least != Timestamp::MIN {
            let merged = least.saturating_sub(Duration::from_secs(rule.out_of_order as u64));
            operator.on_watermark(merged, &mut output);
        }
        tell(output);
        if given.crashes {
            let mut pieces = Vec::new();
            operator.snapshot(true, &mut |group, piece| pieces.push((group, piece)));
            (operator, prepare) = build();
            for (group, piece) in pieces {
                operator.restore(group, &piece).unwrap();
            }
        }
    }
    let mut output = Output::default();
    operator.on_watermark(Timestamp::MAX, &mut output);
    tell(output);
    lines.extend(late.into_iter().flatten());
    lines
}

fn text(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the batches, the interleaving of lanes, the moments at which watermarks are told, and the crashes.
    #[test]
    fn the_outcome_is_that_of_going_record_by_record(
        story in prop::collection::vec(given(), 0..60),
        hops in 1i64..6,
        every in 1i64..15,
        lateness in prop::sample::select(vec![0i64, 3, 20]),
        out_of_order in prop::sample::select(vec![0i64, 5]),
    ) {
        let rule = Rule { size: hops * every, every, lateness, out_of_order, updates: false };
        let expected = text(&reference(rule, &story));
        prop_assert_eq!(&text(&outcome(rule, &story, true)), &expected);
        prop_assert_eq!(&text(&outcome(rule, &story, false)), &expected);
    }
}

/// Leaves of the times that a window is told anew the last alone, in no order, and without what was told before it.
fn without_steps(lines: Vec<String>) -> (Vec<String>, BTreeMap<String, String>) {
    let (mut others, mut last) = (Vec::new(), BTreeMap::new());
    for line in lines {
        let line = line.replace("\"superseded\":true,", "").replace("\"superseded\":false,", "");
        let record = line
            .split_once(' ')
            .map_or(Value::Null, |(_, json)| json::parse_value(json.as_bytes()).unwrap_or(Value::Null));
        let fields = record.as_object().filter(|fields| fields.contains_key("update"));
        match fields {
            Some(fields) => drop(last.insert(format!("{} {}", fields["window_end"], fields["host"]), line)),
            None => others.push(line),
        }
    }
    (others, last)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Windows that are told anew: of one lane each step is the same. Of several lanes, what is told first and last; which of two records of
    /// different lanes that came behind the same watermark is told before the other is not defined.
    #[test]
    fn updates_are_those_of_going_record_by_record(
        mut story in prop::collection::vec(given(), 0..60),
        is_one_lane in any::<bool>(),
        hops in 1i64..4,
        every in 1i64..15,
        lateness in prop::sample::select(vec![3i64, 20, 50]),
        out_of_order in prop::sample::select(vec![0i64, 5]),
    ) {
        let rule = Rule { size: hops * every, every, lateness, out_of_order, updates: true };
        story.iter_mut().filter(|_| is_one_lane).for_each(|given| given.lane = 0);
        let expected = reference(rule, &story);
        for is_prepared in [true, false] {
            let outcome = outcome(rule, &story, is_prepared);
            if is_one_lane {
                prop_assert_eq!(&text(&outcome), &text(&expected));
            }
            prop_assert_eq!(without_steps(outcome), without_steps(expected.clone()));
        }
    }
}

#[test]
fn windows_are_kept_by_what_they_are_grouped_by() {
    expect![[r#"By { option: "group_by", key: [".host"] }, Windows"#]].assert_eq(&script::keying::<Config>(COUNT));
}
