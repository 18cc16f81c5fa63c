use expect_test::{Expect, expect};
use tocsin_config::{EmptyEnvironment, SourceFile, check as checked};

use super::*;
use crate::catalog::CATALOG;

/// Rules over a log, and what is told of them.
const RULES: &str = r#"
[sources.app]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.errors]
type = "window"
inputs = ["app"]
tumbling = "1m"
group_by = [".service"]
aggregates = { errors = "count()" }

[operators.many]
type = "alert"
inputs = ["errors"]
condition = ".errors >= 2"
for = "1m"
annotations = { summary = "{{ errors }} errors of {{ service }}" }

[operators.seen]
type = "alert"
inputs = ["app"]
condition = 'exists(.disk)'
resolve_after = "1500ms"

[sinks.chat]
type = "webhook"
inputs = ["many", "seen"]
url = "https://chat.example.org/hooks/1"
body = """
{{ state }}
{{ alert }}
since {{ starts_at }}
"""
"#;

fn outcomes(tests: &str) -> Vec<(Outcome, u64)> {
    let files = [SourceFile { name: "rules.toml".into(), text: format!("{RULES}{tests}") }];
    let plan = checked(&files, &EmptyEnvironment, &CATALOG, &[]);
    let plan = plan.unwrap_or_else(|report| panic!("{}", report.render(false)));
    plan.tests.iter().map(|test| run(&plan, test)).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(tests: &str, expected: Expect) {
    let told = outcomes(tests).into_iter().map(|(outcome, _)| match &outcome.failures[..] {
        [] => format!("ok {}\n", outcome.name),
        failures => format!("FAILED {}\n{}\n", outcome.name, failures.join("\n")),
    });
    expected.assert_eq(&told.collect::<String>());
}

#[test]
fn timers_are_told_at_their_very_moment() {
    // A source is idle after ten seconds; from then on event time follows the clock that far behind.
    check(
        r#"
[[tests]]
name = "a timer of a fraction of a second"
start = "2026-11-20T12:00:00Z"
input = [{ source = "app", at = "+250ms", record = '{"ts":"2026-11-20T12:00:00.250Z","disk":1}' }]
advance = "1m"
alerts = [{ rule = "seen", at = "+1750ms", state = "resolved" }]
notifications = [
  { receiver = "chat", at = "+250ms" },
  { receiver = "chat", at = "+11750ms" },
]

[[tests]]
name = "a window closes when event time comes to its end"
start = "2026-11-20T12:00:07Z"
input = [
  { source = "app", at = "+1500ms", records = [
    '{"ts":"2026-11-20T12:00:08.5Z","service":"cart"}',
    '{"ts":"2026-11-20T12:00:08.5Z","service":"cart"}',
  ] },
  { source = "app", at = "+53s", records = [
    '{"ts":"2026-11-20T12:01:00Z","service":"cart"}',
    '{"ts":"2026-11-20T12:01:00.001Z","service":"cart"}',
  ] },
]
advance = "2m"
alerts = [
  { rule = "many", at = "2026-11-20T12:01:00Z", state = "pending" },
  { rule = "many", at = "2026-11-20T12:02:00Z", state = "firing" },
]
notifications = [{ receiver = "chat", at = "2026-11-20T12:02:10Z" }]
"#,
        expect![[r#"
            ok a timer of a fraction of a second
            ok a window closes when event time comes to its end
        "#]],
    );
}

#[test]
fn a_pending_alert_can_be_asked_for_and_nobody_is_told_of_it() {
    check(
        r#"
[[tests]]
name = "pending is not told"
start = "2026-11-20T12:00:00Z"
input = [{ source = "app", records = [
  '{"ts":"2026-11-20T12:00:08Z","service":"cart"}', '{"ts":"2026-11-20T12:00:08Z","service":"cart"}',
] }]
advance = "2m"
alerts = [{ rule = "many", at = "+1m", state = "pending", labels = { service = "cart" } }]
notifications = []

[[tests]]
name = "another is pending"
start = "2026-11-20T12:00:00Z"
input = [{ source = "app", records = [
  '{"ts":"2026-11-20T12:00:08Z","service":"cart"}', '{"ts":"2026-11-20T12:00:08Z","service":"cart"}',
] }]
advance = "2m"
alerts = [{ rule = "many", state = "pending", labels = { service = "search" } }]
"#,
        expect![[r#"
            ok pending is not told
            FAILED another is pending
            rules.toml:55: `many` was not pending with {"service":"search"}
              + pending at 2026-11-20T12:01:00Z {"service":"cart"}
        "#]],
    );
}

#[test]
fn what_nobody_else_reads_can_be_looked_at() {
    check(
        r#"
[[tests]]
name = "late records, and what they say of an alert"
start = "2026-11-20T12:00:00Z"
input = [
  { source = "app", records = [
    '{"ts":"2026-11-20T12:00:01Z","disk":1}',
    '{"ts":"2026-11-20T12:01:10Z","service":"cart"}',
    '{"ts":"2026-11-20T12:00:02Z","disk":1}',
  ] },
]
expect = [{ from = "errors.late", records = [{ disk = 1, ts = "2026-11-20T12:00:02Z" }], exact = true }]
alerts = [{ rule = "seen", at = "2026-11-20T12:00:02.500Z", state = "amended" }]

[[tests]]
name = "nothing was amended"
start = "2026-11-20T12:00:00Z"
input = [{ source = "app", records = ['{"ts":"2026-11-20T12:00:01Z","disk":1}'] }]
alerts = [{ rule = "seen", state = "amended" }]
"#,
        expect![[r#"
            ok late records, and what they say of an alert
            FAILED nothing was amended
            rules.toml:55: `seen` was not amended
              it made no transition at all
        "#]],
    );
}

#[test]
fn what_was_sent_stands_beside_what_is_expected() {
    check(
        r#"
[[tests]]
name = "texts, and times"
start = "2026-11-20T12:00:00Z"
input = [
  { source = "app", at = "+1s", record = '{"ts":"2026-11-20T12:00:01Z","disk":1}' },
  { source = "app", at = "+1m", record = '{"ts":"2026-11-20T12:01:00Z","disk":1}' },
]
advance = "1m"
notifications = [
  { receiver = "chat", at = "+1s", body = "firing\nseen\nsince yesterday\n" },
  { receiver = "chat", at = "+13s" },
  { receiver = "chat", at = "+1m", subject = "seen", body = "firing\nseen\nsince 2026-11-20T12:01:00Z\n" },
]
"#,
        expect![[r#"
            FAILED texts, and times
            rules.toml:38: other notifications are sent than expected
              - expected and not sent, + sent and not expected, ~ with another text
              ~ 2026-11-20T12:00:01Z (+1s) chat
                    firing
                    seen
                  - since yesterday
                  + since 2026-11-20T12:00:01Z
              + 2026-11-20T12:00:12.500Z (+12.500s) chat
                  resolved
                  seen
                  since 2026-11-20T12:00:01Z
              - 2026-11-20T12:00:13Z (+13s) chat
              ~ 2026-11-20T12:01:00Z (+1m) chat
                  - subject: seen
                  + no subject
              + 2026-11-20T12:01:11.500Z (+1m11s) chat
                  resolved
                  seen
                  since 2026-11-20T12:01:00Z
        "#]],
    );
}

#[test]
fn six_hours_cost_a_step_for_each_moment_at_which_something_can_happen() {
    let quiet = outcomes(
        r#"
[[tests]]
name = "six quiet hours"
start = "2026-11-20T12:00:00Z"
input = [{ source = "app", at = "+1s", record = '{"ts":"2026-11-20T12:00:01Z","disk":1}' }]
advance = "6h"
notifications = [{ receiver = "chat", at = "+1s" }, { receiver = "chat", at = "+12500ms" }]
"#,
    );
    assert_eq!(quiet[0].0.failures, Vec::<String>::new());
    // The clock stops at the input, where the alert ends, where the window closes, and at the end.
    expect!["4 steps"].assert_eq(&format!("{} steps", quiet[0].1));
    let mut busy = String::from(
        "[[tests]]\nname = \"a record each minute for six hours\"\nstart = \"2026-11-20T12:00:00Z\"\nnotifications = []\ninput = [\n",
    );
    for minute in 0..360 {
        let (hour, minute) = (12 + minute / 60, minute % 60);
        let time = format!("2026-11-20T{hour}:{minute:02}:00Z");
        busy += &format!(
            "{{ source = \"app\", at = \"{time}\", record = '{{\"ts\":\"{time}\",\"service\":\"cart\"}}' }},\n"
        );
    }
    busy += "]\nadvance = \"1m\"\n";
    let busy = outcomes(&busy);
    assert_eq!(busy[0].0.failures, Vec::<String>::new());
    expect!["360 steps"].assert_eq(&format!("{} steps", busy[0].1));
}
