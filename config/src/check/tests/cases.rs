//! `[[tests]]` in configurations.

use super::*;

#[test]
fn tests_are_resolved() {
    check(
        &format!(
            "{GOOD}{}",
            r#"
[[tests]]
name = "an error gets through"
input = [
  { source = "access", at = "2026-11-20T12:00:00Z", record = "500" },
  { source = "access", at = "+10s", records = ["200", "500"] },
]
advance = "1m"
expect = [{ from = "errors", records = [{ status = "500", at = 2026-11-20T12:00:00Z }, "500"], exact = true }]
alerts = [{ rule = "errors", at = "+1m", state = "firing", labels = { severity = "critical" } }]
notifications = [{ receiver = "out", at = "+1m", subject = "x" }]
"#
        ),
        expect![[r#"
            a.toml:2 access (tail)
            a.toml:7 errors (filter) 0←access
            a.toml:12 out (print) 0←errors
            Test {
                name: "an error gets through",
                start: Timestamp(
                    1795176000000000000,
                ),
                input: [
                    TestInput {
                        source: 0,
                        at: Timestamp(
                            1795176000000000000,
                        ),
                        records: [
                            "500",
                        ],
                    },
                    TestInput {
                        source: 0,
                        at: Timestamp(
                            1795176010000000000,
                        ),
                        records: [
                            "200",
                            "500",
                        ],
                    },
                ],
                until: Some(
                    Timestamp(
                        1795176070000000000,
                    ),
                ),
                expect: [
                    ExpectedRecords {
                        from: Outlet {
                            component: Operator(
                                0,
                            ),
                            port: 0,
                        },
                        name: "errors",
                        records: [
                            Object {
                                "at": String("2026-11-20T12:00:00Z"),
                                "status": String("500"),
                            },
                            String("500"),
                        ],
                        exact: true,
                        place: Place {
                            file: "a.toml",
                            line: 23,
                        },
                    },
                ],
                alerts: [
                    ExpectedAlert {
                        rule: 0,
                        at: Some(
                            Timestamp(
                                1795176060000000000,
                            ),
                        ),
                        state: Firing,
                        labels: {
                            "severity": String("critical"),
                        },
                        place: Place {
                            file: "a.toml",
                            line: 24,
                        },
                    },
                ],
                notifications: Some(
                    [
                        ExpectedNotification {
                            receiver: 0,
                            at: Timestamp(
                                1795176060000000000,
                            ),
                            subject: Some(
                                "x",
                            ),
                            body: None,
                            place: Place {
                                file: "a.toml",
                                line: 25,
                            },
                        },
                    ],
                ),
                place: Place {
                    file: "a.toml",
                    line: 16,
                },
            }
        "#]],
    );
}

#[test]
fn tests_that_cannot_be_run_are_problems() {
    check(
        &format!(
            "{GOOD}{}",
            r#"
[[tests]]
name = "nothing"
input = [{ source = "acess", at = "noon", record = "x" }]
advance = "1m"
until = "+5m"

[[tests]]
input = [
  { source = "access", at = "+10s", record = "x" },
  { source = "access", at = "+5s", records = [], record = "x" },
]
name = "order"
until = "+1s"
expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] }]

[[tests]]
name = "receivers"
input = []
alerts = [{ rule = "access", state = "burning" }]
notifications = [{ receiver = "errors", at = "x" }]
"#
        ),
        expect![[r#"
            a.toml:16:1: error: the test "nothing" expects nothing, so it cannot fail
            16 | [[tests]]
               | ^^^^^^^^^
            help: add `expect`, `alerts` or `notifications`

            a.toml:18:21: error: there is no source called `acess`
            18 | input = [{ source = "acess", at = "noon", record = "x" }]
               |                     ^^^^^^^
            help: did you mean `access`?

            a.toml:18:35: error: "noon" is not a moment
            18 | input = [{ source = "acess", at = "noon", record = "x" }]
               |                                   ^^^^^^
            help: write "2026-11-20T12:00:00Z", or "+90s" for so long after the start

            a.toml:20:9: error: `advance` and `until` say the same
            20 | until = "+5m"
               |         ^^^^^
            help: remove one of them

            a.toml:25:3: error: an input has either `record` or `records`
            25 |   { source = "access", at = "+5s", records = [], record = "x" },
               |   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            help: write `record = "…"` for one, `records = ["…", "…"]` for several

            a.toml:25:29: error: "+5s" is before the input above it or before the start
            25 |   { source = "access", at = "+5s", records = [], record = "x" },
               |                             ^^^^^
            help: the clock does not go back: order the input by time

            a.toml:28:9: error: this is before the last input
            28 | until = "+1s"
               |         ^^^^^
            help: write a later moment

            a.toml:29:20: error: `errors` has no output `late`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                    ^^^^^^^^^^^^^

            a.toml:29:61: error: `access` has no output `reject`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                                                             ^^^^^^^^^^^^^^^
            help: did you mean `access.rejected`?

            a.toml:29:96: error: `expect` has no option `form`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                                                                                                ^^^^
            help: did you mean `from`?

            a.toml:29:103: error: there is no component called `x`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                                                                                                       ^^^

            a.toml:34:38: error: "burning" is not one of the values it can have
            34 | alerts = [{ rule = "access", state = "burning" }]
               |                                      ^^^^^^^^^
            help: it is one of `pending`, `firing`, `resolved` and `amended`

            12 problems
        "#]],
    );
}
