//! Scenarios, each with one true cause.

use expect_test::{Expect, expect};
use serde_json::{Value as Json, json};
use tocsin_config::build::build;
use tocsin_config::{EmptyEnvironment, Plan, SourceFile};
use tocsin_pipeline::ledger::Ledger;
use tocsin_pipeline::simulation::Simulation;
use tocsin_pipeline::time::Timestamp;

use super::standing::{Standing, of_simulation};
use super::why::why;
use crate::catalog::CATALOG;

/// A rule over a window over a filter over a source, with a `notify` and two receivers. `NOTIFY` and `RULE` stand for further options.
const CONFIGURATION: &str = r#"
[sources.app]
type = "stdin"
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1s"

[operators.errors]
type = "filter"
inputs = ["app"]
condition = '.level == "ERROR"'

[operators.rate]
type = "window"
inputs = ["errors"]
tumbling = "1m"
group_by = [".host"]
aggregates = { errors = "count()" }

[operators.too_many]
type = "alert"
inputs = ["rate"]
condition = ".errors >= 2"
labels = { severity = "warning" }
RULE

[operators.oncall]
type = "notify"
inputs = ["too_many"]
NOTIFY

[sinks.mail]
type = "webhook"
inputs = ["oncall"]
url = "https://example.org/"
"#;

struct Scenario {
    rule: &'static str,
    notify: &'static str,
    more: &'static str,
    key: Option<&'static str>,
    at: Option<&'static str>,
    /// The last attempt of the sink `mail`, by its outcome.
    delivery: Option<(&'static str, &'static str)>,
}

const PLAIN: Scenario = Scenario { rule: "", notify: "", more: "", key: None, at: None, delivery: None };

fn plan(scenario: &Scenario) -> Plan {
    let text = CONFIGURATION.replace("RULE", scenario.rule).replace("NOTIFY", scenario.notify) + scenario.more;
    let files = [SourceFile { name: "a.toml".to_owned(), text }];
    match tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[]) {
        Ok(plan) => plan,
        Err(report) => panic!("{}", report.render(false)),
    }
}

/// Runs a story of lines `MM:SS RECORD`, `MM:SS commands RECORD`, and `MM:SS` (the clock goes there), where `ERROR HOST` and `INFO HOST`
/// stand for records.
fn standing(plan: &Plan, story: &str, scenario: &Scenario) -> Standing {
    let mut simulation = Simulation::new(build(plan), Timestamp(0));
    let source = |name: &str| plan.sources.iter().position(|source| *source.name == *name).unwrap();
    for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (time, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (minutes, seconds) = time.split_once(':').unwrap();
        let at = Timestamp::from_secs(minutes.parse::<i64>().unwrap() * 60 + seconds.parse::<i64>().unwrap());
        simulation.advance(at);
        match rest.split_once(' ') {
            Some(("commands", record)) => simulation.input(source("commands"), &[record.as_bytes()]),
            Some((level @ ("ERROR" | "INFO"), host)) => {
                let record = json!({ "ts": at.to_string(), "level": level, "host": host }).to_string();
                simulation.input(source("app"), &[record.as_bytes()]);
            }
            _ if rest.is_empty() => {}
            _ => simulation.input(source("app"), &[rest.as_bytes()]),
        }
    }
    let components = simulation.accounts().map(|(name, account)| (name.to_string(), account)).collect();
    let ledger = Ledger { components, ..Ledger::default() };
    let of =
        |simulation: &Simulation| of_simulation(plan, simulation, ledger.clone(), "the test".to_owned(), scenario.key);
    let mut standing = of(&simulation);
    // A checkpoint tells the same as the pipeline that it was taken of.
    let mut restored = Simulation::new(build(plan), Timestamp(0));
    restored.restore(&simulation.snapshot()).unwrap();
    let restored = of(&restored);
    for (name, view) in &standing.views {
        for part in ["alerts", "told", "notifications", "silences", "open"] {
            assert_eq!(view[part], restored.views[name][part], "{part} of {name}");
        }
    }
    if let Some((outcome, why)) = scenario.delivery {
        let notifications = standing.views["oncall"]["notifications"].as_array().unwrap();
        let id = notifications.last().map_or(Json::Null, |told| told["id"].clone());
        let delivery =
            json!({ "sink": "mail", "at": "1970-01-01T00:02:00Z", "id": id, "outcome": outcome, "why": why });
        standing.deliveries = Some(vec![delivery]);
    }
    standing
}

#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(scenario: Scenario, story: &str, expected: Expect) {
    let plan = plan(&scenario);
    let standing = standing(&plan, story, &scenario);
    let at = scenario.at.map(|at| Timestamp::parse_rfc3339(at.as_bytes()).unwrap());
    let answer = why(&plan, &standing, "too_many", scenario.key, at).unwrap();
    // The identities of notifications and silences are no matter here.
    expected.assert_eq(&answer.text());
}

const FIRING: &str = "
    00:10 ERROR a
    00:20 ERROR a
    01:30 INFO a
    02:00";

#[test]
fn nothing_was_read() {
    check(
        PLAIN,
        "05:00",
        expect![[r#"
            too_many: no records
              because no record has been read from app

              source app: 0 records read, 0 not readable

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn nothing_can_be_read() {
    check(
        PLAIN,
        "00:10 not json at all\n02:00",
        expect![[r#"
            too_many: undecodable
              because the codec could read none of the records that came

              source app: 1 records read, 1 not readable

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn a_filter_lets_nothing_through() {
    check(
        PLAIN,
        "00:10 INFO a\n00:20 INFO a\n02:00",
        expect![[r#"
            too_many: filtered
              because `errors` let none of 2 records through

              source app: 2 records read, 0 not readable
              filter errors: 2 records came, 0 went on (2 filtered)
              window rate: 0 records came, 0 went on

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn the_window_is_open() {
    check(
        PLAIN,
        "00:10 ERROR a\n00:20 ERROR a",
        expect![[r#"
            too_many: window open
              because the first window of `rate` closes when event time comes to 1970-01-01T00:01:00Z, and has not yet

              source app: 2 records read, 0 not readable
              filter errors: 2 records came, 2 went on
              window rate: 2 records came, 0 went on (2 aggregated)
              window rate: open until 1970-01-01T00:01:00Z, so far errors 2, host "a"
              rule too_many: 0 records judged

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn the_condition_is_false() {
    check(
        PLAIN,
        "00:10 ERROR a\n01:30 INFO a\n02:00",
        expect![[r#"
            too_many: condition false
              because the condition was true of no record, or has ceased to be while it was pending

              source app: 2 records read, 0 not readable
              filter errors: 2 records came, 1 went on (1 filtered)
              window rate: 1 records came, 1 went on (1 aggregated)
              rule too_many: 1 records judged

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn the_condition_is_false_for_this_key() {
    let story = "00:10 ERROR a\n00:20 ERROR a\n00:30 ERROR b\n01:30 INFO a\n02:00";
    check(
        Scenario { key: Some("host=b"), ..PLAIN },
        story,
        expect![[r#"
            too_many for host=b: unknown key
              because no alert with the key host=b is known: the condition was true of no record of it, or no record has it; known are: host=a severity=warning

              source app: 4 records read, 0 not readable
              filter errors: 4 records came, 3 went on (1 filtered)
              window rate: 3 records came, 2 went on (3 aggregated)
              rule too_many: 2 records judged

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

/// Two alerts of the rule.
const TWO_FIRE: &str = "
    00:10 ERROR a
    00:20 ERROR a
    00:30 ERROR b
    00:40 ERROR b
    01:30 INFO a
    02:00";

#[test]
fn several_are_active_and_the_one_that_needs_it_most_is_explained() {
    let silence = r#"{"command":"silence","silence":{"id":"s1","matchers":["host=b"],"owner":"bob","reason":"x","ends_at":"1970-01-01T02:00:00Z"}}"#;
    let story = format!("00:05 commands {silence}\n{TWO_FIRE}");
    check(
        PLAIN,
        &story,
        expect![[r#"
            too_many: 2 alerts are active
              host=b severity=warning: silenced, because the silence s1 mutes it
              host=a severity=warning: notified, because it was handed to `mail`

            too_many for host=b severity=warning: silenced
              because the silence s1 mutes it

              source app: 5 records read, 0 not readable
              filter errors: 5 records came, 4 went on (1 filtered)
              window rate: 4 records came, 2 went on (4 aggregated)
              rule too_many: host=b severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: the silence s1 mutes it

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
    let answer = why(&plan(&PLAIN), &standing(&plan(&PLAIN), &story, &PLAIN), "too_many", None, None).unwrap();
    expect![[r#"{"active":2,"alerts":[{"because":"the silence s1 mutes it","cause":"silenced","fingerprint":"a622a4de8acb9a21","labels":{"host":"b","severity":"warning"},"state":"firing"},{"because":"it was handed to `mail`","cause":"notified","fingerprint":"b795e3cbb590e136","labels":{"host":"a","severity":"warning"},"state":"firing"}],"because":"the silence s1 mutes it","cause":"silenced","facts":["source app: 5 records read, 0 not readable","filter errors: 5 records came, 4 went on (1 filtered)","window rate: 4 records came, 2 went on (4 aggregated)","rule too_many: host=b severity=warning fires since 1970-01-01T00:01:00Z, values {\"errors\":2}","notify oncall, receiver default: the silence s1 mutes it"],"key":null,"rule":"too_many","source":"the test"}"#]].assert_eq(&answer.json().to_string());
    // As many as can be read are listed.
    let hosts = (0..25).map(|host| format!("00:10 ERROR h{host}\n00:20 ERROR h{host}\n"));
    check(
        PLAIN,
        &(hosts.collect::<String>() + "01:30 INFO a\n02:00"),
        expect![[r#"
            too_many: 25 alerts are active
              host=h1 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h10 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h11 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h12 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h13 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h14 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h15 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h16 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h17 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h18 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h19 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h2 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h20 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h21 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h22 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h23 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h24 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h3 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h4 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              host=h5 severity=warning: group interval, because its group was told before and is again at 1970-01-01T00:06:00Z
              and 5 more

            too_many for host=h1 severity=warning: group interval
              because its group was told before and is again at 1970-01-01T00:06:00Z

              source app: 51 records read, 0 not readable
              filter errors: 51 records came, 50 went on (1 filtered)
              window rate: 50 records came, 25 went on (50 aggregated)
              rule too_many: host=h1 severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: its group was told before and is again at 1970-01-01T00:06:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn an_alert_is_meant_by_what_it_is_told_with() {
    let plan = plan(&PLAIN);
    let fingerprint = "b795e3cbb590e136";
    let cause = |key: &'static str| {
        let scenario = Scenario { key: Some(key), ..PLAIN };
        why(&plan, &standing(&plan, FIRING, &scenario), "too_many", Some(key), None).unwrap().cause
    };
    for key in ["a", "host=a", "warning", "severity=warning", "alertname=too_many", fingerprint] {
        assert_eq!(cause(key), "notified", "{key}");
    }
    for key in ["b", "host=b", "host", "severity=critical", &fingerprint[1..]] {
        assert_eq!(cause(key), "unknown_key", "{key}");
    }
}

#[test]
fn a_level_is_a_label_too() {
    let text = CONFIGURATION.replace("condition = \".errors >= 2\"\nlabels = { severity = \"warning\" }\nRULE", LEVELS);
    let files = [SourceFile { name: "a.toml".to_owned(), text: text.replace("NOTIFY", "") }];
    let plan = tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[]).ok().unwrap();
    let scenario = Scenario { key: Some("severity=critical"), ..PLAIN };
    let answer = why(&plan, &standing(&plan, FIRING, &scenario), "too_many", scenario.key, None).unwrap();
    assert_eq!(answer.cause, "notified", "{}", answer.text());
}

const LEVELS: &str = r#"levels = [
    { severity = "warning", condition = ".errors >= 1" },
    { severity = "critical", condition = ".errors >= 2" },
]"#;

#[test]
fn nobody_knows_the_key() {
    check(
        Scenario { key: Some("host=nope"), ..PLAIN },
        TWO_FIRE,
        expect![[r#"
            too_many for host=nope: unknown key
              because no alert with the key host=nope is known: the condition was true of no record of it, or no record has it; known are: host=a severity=warning · host=b severity=warning

              source app: 5 records read, 0 not readable
              filter errors: 5 records came, 4 went on (1 filtered)
              window rate: 4 records came, 2 went on (4 aggregated)
              rule too_many: 2 records judged

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
    check(
        Scenario { key: Some("host=nope"), ..PLAIN },
        "00:10 ERROR a\n01:30 INFO a\n02:00",
        expect![[r#"
            too_many for host=nope: unknown key
              because no alert with the key host=nope is known: the condition was true of no record of it, or no record has it; the rule has none at all now

              source app: 2 records read, 0 not readable
              filter errors: 2 records came, 1 went on (1 filtered)
              window rate: 1 records came, 1 went on (1 aggregated)
              rule too_many: 1 records judged

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn all_that_is_known_of_a_key_is_an_amendment() {
    let scenario = Scenario { key: Some("host=b"), ..PLAIN };
    let text = CONFIGURATION.replace("RULE", "").replace("NOTIFY", "");
    let text = text.replace("tumbling = \"1m\"", "tumbling = \"1m\"\nlateness = \"10m\"\nemit = \"update\"");
    let files = [SourceFile { name: "a.toml".to_owned(), text }];
    let plan = tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[]).ok().unwrap();
    let late = r#"{"ts":"1970-01-01T00:00:40Z","level":"ERROR","host":"b"}"#;
    let story = format!("00:10 ERROR b\n01:10 ERROR b\n02:10 INFO a\n03:00\n03:10 {late}\n03:30");
    let answer = why(&plan, &standing(&plan, &story, &scenario), "too_many", scenario.key, None).unwrap();
    expect![[r#"
        too_many for host=b: amended
          because all that is known of it is an amendment of 1970-01-01T00:01:00Z: what came late would have changed what was decided then, which is told at `too_many.amended` alone

          source app: 4 records read, 0 not readable
          filter errors: 4 records came, 3 went on (1 filtered)
          window rate: 3 records came, 3 went on (3 aggregated)
          rule too_many: amended: at 1970-01-01T00:01:00Z the condition was false of host=b severity=warning and would be true with what came late, values {"errors":2,"superseded":true,"update":1}

        (as of the test; times are event time, but for those of deliveries)
    "#]].assert_eq(&answer.text());
}

#[test]
fn it_is_pending() {
    check(
        Scenario { rule: "for = \"2m\"", ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: pending
              because the condition has held since 1970-01-01T00:01:00Z and must hold until 1970-01-01T00:03:00Z (`for`)

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning is pending since 1970-01-01T00:01:00Z, values {"errors":2}

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_is_over() {
    check(
        PLAIN,
        &format!("{FIRING}\n02:10 ERROR a\n03:30 INFO a\n04:00"),
        expect![[r#"
            too_many: resolved
              because it fired until 1970-01-01T00:03:00Z, and nothing has made it fire since

              source app: 5 records read, 0 not readable
              filter errors: 5 records came, 3 went on (2 filtered)
              window rate: 3 records came, 2 went on (3 aggregated)
              rule too_many: host=a severity=warning was over at 1970-01-01T00:03:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_was_told() {
    check(
        PLAIN,
        FIRING,
        expect![[r#"
            too_many: notified
              because it was handed to `mail`

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: told at 1970-01-01T00:01:00Z (event time), and again at 1970-01-01T04:01:00Z if nothing changes
              sink mail: how deliveries went is known to the running daemon alone

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_was_delivered() {
    check(
        Scenario { delivery: Some(("delivered", "")), key: Some("a"), ..PLAIN },
        FIRING,
        expect![[r#"
            too_many for a: delivered
              because `mail` delivered it at 1970-01-01T00:02:00Z

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: told at 1970-01-01T00:01:00Z (event time), and again at 1970-01-01T04:01:00Z if nothing changes
              sink mail: `mail` delivered it at 1970-01-01T00:02:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn its_delivery_fails() {
    let delivery = Some(("again", "the receiver answered 503"));
    check(
        Scenario { delivery, ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: delivery fails
              because `mail` could not deliver it at 1970-01-01T00:02:00Z and tries again: the receiver answered 503

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: told at 1970-01-01T00:01:00Z (event time), and again at 1970-01-01T04:01:00Z if nothing changes
              sink mail: `mail` could not deliver it at 1970-01-01T00:02:00Z and tries again: the receiver answered 503

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn its_receiver_refused_it() {
    let delivery = Some(("refused", "the receiver answered 410"));
    check(
        Scenario { delivery, ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: refused
              because the receiver of `mail` refused it for good at 1970-01-01T00:02:00Z: the receiver answered 410

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: told at 1970-01-01T00:01:00Z (event time), and again at 1970-01-01T04:01:00Z if nothing changes
              sink mail: the receiver of `mail` refused it for good at 1970-01-01T00:02:00Z: the receiver answered 410

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_is_silenced() {
    let more = "
        [[silences]]
        matchers = [\"host=a\"]
        owner = \"ana\"
        reason = \"works\"
        ends_at = \"1970-01-02T00:00:00Z\"";
    check(
        Scenario { more, ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: silenced
              because the silence c919805d-4ea7-8f98-8853-3113f554c66b mutes it

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: the silence c919805d-4ea7-8f98-8853-3113f554c66b mutes it

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn somebody_silences_it() {
    let silence = r#"{"command":"silence","silence":{"id":"s1","matchers":["severity=warning"],"owner":"bob","reason":"x","ends_at":"1970-01-01T02:00:00Z"}}"#;
    check(
        PLAIN,
        &format!("00:05 commands {silence}\n{FIRING}"),
        expect![[r#"
            too_many: silenced
              because the silence s1 mutes it

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: the silence s1 mutes it

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_is_inhibited() {
    let more = r#"
        [operators.any]
        type = "alert"
        inputs = ["errors"]
        condition = "true"
        group_by = [".host"]
        labels = { severity = "critical" }

        [sinks.other]
        type = "blackhole"
        inputs = ["any"]
        "#;
    let notify = r#"inhibit = [{ source = ["severity=critical"], target = ["severity=warning"], equal = ["host"] }]"#;
    let scenario = Scenario { more, notify, ..PLAIN };
    let mut plan_text = CONFIGURATION.replace("RULE", "").replace("NOTIFY", notify) + more;
    plan_text = plan_text.replace("inputs = [\"too_many\"]", "inputs = [\"too_many\", \"any\"]");
    let files = [SourceFile { name: "a.toml".to_owned(), text: plan_text }];
    let plan = tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[]).ok().unwrap();
    let answer = why(&plan, &standing(&plan, FIRING, &scenario), "too_many", None, None).unwrap();
    assert_eq!(answer.cause, "inhibited", "{}", answer.text());
}

#[test]
fn an_interval_mutes_it() {
    let notify = r#"
        intervals = { night = { times = ["00:00-06:00"] } }
        routes = [{ matchers = ["severity=warning"], receiver = "default", mute = ["night"] }]"#;
    check(
        Scenario { notify, ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: muted
              because the interval night mutes its route until 1970-01-01T06:00:00Z

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: the interval night mutes its route until 1970-01-01T06:00:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn its_group_waits() {
    check(
        Scenario { notify: "group_wait = \"10m\"", ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: group wait
              because its group waits for more alerts until 1970-01-01T00:11:00Z

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: its group waits for more alerts until 1970-01-01T00:11:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn its_group_was_told_before() {
    let story = "00:10 ERROR a\n00:20 ERROR a\n01:10 ERROR b\n01:20 ERROR b\n02:30 INFO a\n03:00";
    check(
        Scenario { key: Some("b"), ..PLAIN },
        story,
        expect![[r#"
            too_many for b: group interval
              because its group was told before and is again at 1970-01-01T00:06:00Z

              source app: 5 records read, 0 not readable
              filter errors: 5 records came, 4 went on (1 filtered)
              window rate: 4 records came, 2 went on (4 aggregated)
              rule too_many: host=b severity=warning fires since 1970-01-01T00:02:00Z, values {"errors":2}
              notify oncall, receiver default: its group was told before and is again at 1970-01-01T00:06:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn the_budget_is_spent() {
    let notify = r#"
        group_by = ["host"]
        receivers = { default = { budget = { max = 1, per = "1h" } } }"#;
    let story = "00:10 ERROR a\n00:20 ERROR a\n01:10 ERROR b\n01:20 ERROR b\n02:30 INFO a\n03:00";
    check(
        Scenario { key: Some("b"), notify, ..PLAIN },
        story,
        expect![[r#"
            too_many for b: over budget
              because the budget is spent; a digest tells of it at 1970-01-01T01:01:00Z

              source app: 5 records read, 0 not readable
              filter errors: 5 records came, 4 went on (1 filtered)
              window rate: 4 records came, 2 went on (4 aggregated)
              rule too_many: host=b severity=warning fires since 1970-01-01T00:02:00Z, values {"errors":2}
              notify oncall, receiver default: the budget is spent; a digest tells of it at 1970-01-01T01:01:00Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn somebody_takes_care() {
    let ack = r#"{"command":"acknowledge","id":"{}:{alertname=\"too_many\"}","by":"ana"}"#;
    check(
        PLAIN,
        &format!("{FIRING}\n02:30 commands {ack}\n03:00"),
        expect![[r#"
            too_many: acknowledged
              because ana takes care of it

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver default: ana takes care of it

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn nobody_reads_its_receiver() {
    let notify = r#"routes = [{ matchers = ["severity=warning"], receiver = "nobody" }]"#;
    check(
        Scenario { notify, ..PLAIN },
        FIRING,
        expect![[r#"
            too_many: nobody reads
              because no sink reads the receiver `nobody` of `oncall`

              source app: 3 records read, 0 not readable
              filter errors: 3 records came, 2 went on (1 filtered)
              window rate: 2 records came, 1 went on (2 aggregated)
              rule too_many: host=a severity=warning fires since 1970-01-01T00:01:00Z, values {"errors":2}
              notify oncall, receiver nobody: told at 1970-01-01T00:01:00Z (event time), and again at 1970-01-01T04:01:00Z if nothing changes

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_was_so_at_a_time() {
    let story = format!("{FIRING}\n02:10 ERROR a\n03:30 INFO a\n04:00");
    check(
        Scenario { at: Some("1970-01-01T00:01:30Z"), ..PLAIN },
        &story,
        expect![[r#"
            too_many: notified
              because default was told at 1970-01-01T00:01:00Z (event time; first)

              rule too_many: host=a severity=warning was firing since 1970-01-01T00:01:00Z, values {"errors":2}
              notification d8509458852c33747d53ae4d93a14119: default was told at 1970-01-01T00:01:00Z (event time; first)

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
    check(
        Scenario { at: Some("1970-01-01T00:00:30Z"), ..PLAIN },
        &story,
        expect![[r#"
            too_many: nothing told
              because of what is still known, nothing was told of it before 1970-01-01T00:00:30Z


            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
    check(
        Scenario { at: Some("1970-01-01T00:03:30Z"), ..PLAIN },
        &story,
        expect![[r#"
            too_many: resolved
              because it was over at 1970-01-01T00:03:00Z

              rule too_many: host=a severity=warning was resolved since 1970-01-01T00:03:00Z, values {"errors":1}

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn why_it_was_quiet_at_a_time() {
    let silence = r#"{"command":"silence","silence":{"id":"s1","matchers":["alertname=too_many","host=a"],"owner":"bob","reason":"works","starts_at":"1970-01-01T00:02:20Z","ends_at":"1970-01-01T02:00:00Z"}}"#;
    let ack = r#"{"command":"acknowledge","id":"b795e3cbb590e136","by":"ana"}"#;
    let expire = r#"{"command":"expire","id":"s1"}"#;
    // It is over, and so are the silence and the group, when somebody asks.
    let story = format!(
        "{FIRING}\n02:10 commands {ack}\n02:20 commands {silence}\n02:30 commands {expire}\n03:10 ERROR a\n04:30 INFO a\n20:00"
    );
    let cause = |at: &'static str| {
        let scenario = Scenario { at: Some(at), ..PLAIN };
        let plan = plan(&scenario);
        let moment = Timestamp::parse_rfc3339(at.as_bytes());
        why(&plan, &standing(&plan, &story, &scenario), "too_many", None, moment).unwrap().cause
    };
    let causes = [
        ("1970-01-01T00:00:59Z", "nothing_told"),
        ("1970-01-01T00:02:09Z", "notified"),
        ("1970-01-01T00:02:10Z", "acknowledged"),
        ("1970-01-01T00:02:20Z", "silenced"),
        ("1970-01-01T00:02:30Z", "acknowledged"),
        ("1970-01-01T00:04:00Z", "resolved"),
    ];
    for (at, expected) in causes {
        assert_eq!(cause(at), expected, "{at}");
    }
    check(
        Scenario { at: Some("1970-01-01T00:02:25Z"), ..PLAIN },
        &story,
        expect![[r#"
            too_many: silenced
              because the silence s1 of bob muted it (works), until 1970-01-01T00:02:30Z

              rule too_many: host=a severity=warning was firing since 1970-01-01T00:01:00Z, values {"errors":2}
              notification d8509458852c33747d53ae4d93a14119: default was told at 1970-01-01T00:01:00Z (event time; first)
              ana had taken care of it since 1970-01-01T00:02:10Z
              the silence s1 of bob muted it (works), until 1970-01-01T00:02:30Z

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn it_fired_at_a_time_and_nobody_was_told_of_it() {
    let story = format!("{TWO_FIRE}\n02:30");
    check(
        Scenario { at: Some("1970-01-01T00:02:00Z"), notify: "group_wait = \"10m\"", ..PLAIN },
        &story,
        expect![[r#"
            too_many: 2 alerts were active
              host=b severity=warning: firing, because it fired since 1970-01-01T00:01:00Z, and of what is still known no notification told of it
              host=a severity=warning: firing, because it fired since 1970-01-01T00:01:00Z, and of what is still known no notification told of it

            too_many for host=b severity=warning: firing
              because it fired since 1970-01-01T00:01:00Z, and of what is still known no notification told of it

              rule too_many: host=b severity=warning was firing since 1970-01-01T00:01:00Z, values {"errors":2}

            (as of the test; times are event time, but for those of deliveries)
        "#]],
    );
}

#[test]
fn a_long_notification_may_have_told_of_any_alert() {
    let scenario = Scenario { notify: "group_wait = \"30s\"", ..PLAIN };
    let hosts = (0..25).map(|host| format!("00:10 ERROR h{host}\n00:20 ERROR h{host}\n"));
    let story = hosts.collect::<String>() + "01:40 INFO a\n02:30";
    let plan = plan(&scenario);
    let at = Timestamp::parse_rfc3339(b"1970-01-01T00:02:00Z");
    let answer = why(&plan, &standing(&plan, &story, &scenario), "too_many", None, at).unwrap().json();
    let of_cause = |cause: &str| answer["alerts"].as_array().unwrap().iter().filter(|it| it["cause"] == cause).count();
    assert_eq!((of_cause("notified"), of_cause("firing")), (20, 5), "{answer:#}");
    expect!["it fired since 1970-01-01T00:01:00Z, and of what is still known no notification told of it; one of 1970-01-01T00:01:30Z told of 25 alerts, of which 20 are still known"].assert_eq(answer["because"].as_str().unwrap());
}

#[test]
fn what_is_to_come_is_not_told() {
    let plan = plan(&PLAIN);
    let at = Timestamp::parse_rfc3339(b"1970-01-01T01:00:00Z");
    let error = why(&plan, &standing(&plan, FIRING, &PLAIN), "too_many", None, at).unwrap_err();
    expect!["1970-01-01T01:00:00Z is after all that is known: the last moment that is, in event time, is 1970-01-01T00:01:59Z"].assert_eq(&error.to_string());
}

#[test]
fn a_rule_that_is_not_there_is_said() {
    let plan = plan(&PLAIN);
    let error = why(&plan, &Standing::default(), "too_few", None, None).unwrap_err();
    assert_eq!(error.to_string(), "there is no rule `too_few`; the rules are: too_many");
}
