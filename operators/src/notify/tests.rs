//! The operator by stories: alerts at given times, and whom it tells what.

use expect_test::{Expect, expect};
use serde_json::Value as Json;

use super::Config;
use crate::script;

/// A story of lines `MM:SS +NAME LABELS` (an alert fires), `MM:SS -NAME LABELS` (it is over), and what `script` knows; LABELS are
/// `name=value`. Gives a line for each notification.
#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(config: &str, story: &str, expected: Expect) {
    let told = told(config, story);
    let lines = told.iter().map(|(port, time, record)| show(port, time, record));
    expected.assert_eq(&lines.collect::<String>());
}

/// What is told: the receiver's port, the time, the record.
fn told(config: &str, story: &str) -> Vec<(String, String, Json)> {
    let story: String = story.lines().map(|line| translated(line.trim()) + "\n").collect();
    let outcome = script::run::<Config>(config, &story);
    let mut told = Vec::new();
    for line in outcome.lines() {
        let Some((head, record)) = line.split_once(" {") else { continue };
        let (port, time) = head.split_once(": ").unwrap_or(("default", head));
        told.push((port.to_owned(), time.to_owned(), serde_json::from_str(&format!("{{{record}")).unwrap()));
    }
    told
}

fn translated(line: &str) -> String {
    let mut words = line.split(' ');
    let (Some(time), Some(alert)) = (words.next(), words.next()) else { return line.to_owned() };
    let (sign, name) = alert.split_at(1);
    let state = match sign {
        "+" => "firing",
        "-" => "resolved",
        _ => return line.to_owned(),
    };
    let labels: Vec<_> = words.filter_map(|label| label.split_once('=')).collect();
    let texts: Vec<_> = labels.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
    let texts = texts.join(",");
    format!("{time} {{\"alert\":\"{name}\",\"annotations\":{{}},\"labels\":{{{texts}}},\"state\":\"{state}\"}}")
}

fn show(port: &str, time: &str, record: &Json) -> String {
    let names = |state: &str| {
        let alerts = record["alerts"].as_array().into_iter().flatten().filter(|alert| alert["state"] == state);
        let names: Vec<_> = alerts
            .map(|alert| {
                let labels = alert["labels"].as_object().into_iter().flatten();
                let labels: Vec<_> = labels.map(|(_, value)| value.as_str().unwrap_or_default()).collect();
                format!("{}({})", alert["alert"].as_str().unwrap_or("?"), labels.join(","))
            })
            .collect();
        names.join(" ")
    };
    format!(
        "{time} {port} {}: firing [{}] resolved [{}]\n",
        record["reason"].as_str().unwrap(),
        names("firing"),
        names("resolved")
    )
}

#[test]
fn the_first_leaves_at_once_and_what_follows_is_told_together() {
    check(
        r#"group_by = ["alertname"]
           group_interval = "1m"
           repeat_interval = "5m""#,
        "
        00:10 +down i=a
        00:20 +down i=b
        00:30 +down i=c
        00:31 +full i=a
        00:40 -down i=b
        watermark 01:10
        watermark 01:11
        watermark 06:00
        watermark 07:00
        07:10 -down i=a
        07:11 -down i=c
        watermark 07:30
        watermark 08:00
        ",
        expect![[r#"
            00:10 default first: firing [down(a)] resolved []
            00:31 default first: firing [full(a)] resolved []
            01:10 default changed: firing [down(a) down(c)] resolved [down(b)]
            05:31 default repeat: firing [full(a)] resolved []
            06:10 default repeat: firing [down(a) down(c)] resolved []
            07:10 default changed: firing [down(c)] resolved [down(a)]
        "#]],
    );
}

const TREE: &str = r#"
    group_by = ["alertname"]
    group_interval = "1m"
    repeat_interval = "1h"
    routes = [
        { matchers = ['severity="critical"'], receiver = "pager", continue = true, group_by = ["..."] },
        { matchers = ['team="web"'], receiver = "web", group_wait = "30s", routes = [{ matchers = ["env=test"], receiver = "default" }] },
    ]
"#;

#[test]
fn routes_say_who_is_told_and_when() {
    check(
        TREE,
        "
        00:00 +a severity=critical team=web
        00:01 +b team=web
        00:02 +c team=web env=test
        00:03 +d team=db
        watermark 00:31
        watermark 01:00
        00:00 -a severity=critical team=web
        ",
        expect![[r#"
            00:03 default first: firing [d(db)] resolved []
            00:00 pager first: firing [a(critical,web)] resolved []
            00:30 web first: firing [a(critical,web)] resolved []
            00:32 default first: firing [c(test,web)] resolved []
            00:31 web first: firing [b(web)] resolved []
        "#]],
    );
}

#[test]
fn one_whose_labels_change_is_over_for_those_who_are_not_told_any_more() {
    let alert = |time: &str, severity: &str| {
        format!(
            "{time} {{\"alert\":\"cpu\",\"annotations\":{{}},\"fingerprint\":\"f\",\"labels\":{{\"severity\":\"{severity}\"}},\"state\":\"firing\"}}\n"
        )
    };
    check(
        r#"group_interval = "1m"
           routes = [{ matchers = ["severity=critical"], receiver = "pager" }]"#,
        &[
            alert("00:00", "warning"),
            alert("00:10", "critical"),
            "watermark 01:10\n".to_owned(),
            alert("02:00", "warning"),
        ]
        .concat(),
        expect![[r#"
            00:00 default first: firing [cpu(warning)] resolved []
            00:10 pager first: firing [cpu(critical)] resolved []
            01:00 default resolved: firing [] resolved [cpu(warning)]
            02:00 default first: firing [cpu(warning)] resolved []
            02:00 pager resolved: firing [] resolved [cpu(critical)]
        "#]],
    );
    // Where the same are told, they are told of the change.
    check(
        r#"group_interval = "1m""#,
        &[alert("00:00", "warning"), alert("00:10", "critical"), "watermark 01:10\n".to_owned()].concat(),
        expect![[r#"
            00:00 default first: firing [cpu(warning)] resolved []
            01:00 default changed: firing [cpu(critical)] resolved []
        "#]],
    );
}

#[test]
fn one_that_is_inhibited_is_told_when_that_is_over() {
    check(
        r#"group_by = ["alertname"]
           group_interval = "1m"
           inhibit = [{ source = ["alertname=dead"], target = ["alertname=slow"], equal = ["host"] }]"#,
        "
        00:00 +dead host=a
        00:01 +slow host=a
        00:02 +slow host=b
        00:10 -slow host=b
        02:00 -dead host=a
        watermark 03:00
        ",
        expect![[r#"
            00:00 default first: firing [dead(a)] resolved []
            00:02 default first: firing [slow(b)] resolved []
            01:02 default resolved: firing [] resolved [slow(b)]
            02:00 default resolved: firing [] resolved [dead(a)]
            02:02 default first: firing [slow(a)] resolved []
        "#]],
    );
    // One that ends while it is inhibited was never told, and is not told now.
    check(
        r#"inhibit = [{ source = ["alertname=dead"], target = ["alertname=slow"] }]"#,
        "00:00 +dead x=1
        00:01 +slow x=1
        00:02 -slow x=1
        00:03 -dead x=1
        watermark 10:00",
        expect![[r#"
            00:00 default first: firing [dead(1)] resolved []
            05:00 default resolved: firing [] resolved [dead(1)]
        "#]],
    );
}

#[test]
fn what_a_silence_kept_quiet_is_in_the_digest_though_it_is_forgotten() {
    check(
        r#"group_by = ["..."]
           receivers = { default = { budget = { max = 2, per = "1h" } } }"#,
        r#"
        commands: 00:01 {"command":"silence","silence":{"ends_at":"1970-01-01T00:05:00Z","id":"s","matchers":["alertname=disk"],"owner":"ana","reason":"new disks"}}
        00:10 +disk h=a
        00:20 +disk h=b
        00:30 -disk h=a
        04:00 +net h=c
        watermark 06:00
        watermark 59:00
        "#,
        expect![[r#"
            04:00 default first: firing [net(c)] resolved []
            34:00 default digest: firing [disk(b)] resolved [disk(a)]
        "#]],
    );
}

#[test]
fn without_a_key_there_is_no_link() {
    let link = |key: &str| {
        let config = format!("acknowledge = {{ url = \"https://tocsin.example.org\", key = \"{key}\" }}");
        told(&config, "00:10 +disk h=a").remove(0).2["acknowledge"].is_object()
    };
    assert!(link("0123456789abcdef") && !link(""));
}

#[test]
fn a_silence_is_heeded_and_told_of_when_it_ends() {
    check(
        r#"group_by = ["..."]
           group_interval = "30s""#,
        r#"
        00:00 +disk host=a
        commands: 00:10 {"command":"silence","silence":{"ends_at":"1970-01-01T00:05:00Z","id":"s","matchers":["alertname=disk"],"owner":"ana","reason":"new disks","starts_at":"1970-01-01T00:00:10Z"}}
        00:20 +disk host=b
        00:30 +disk host=c
        00:40 -disk host=c
        00:50 -disk host=a
        watermark 05:00
        watermark 05:01
        "#,
        expect![[r#"
            00:00 default first: firing [disk(a)] resolved []
            05:00 default summary: firing [disk(b)] resolved [disk(c) disk(a)]
            05:00 default resolved: firing [] resolved [disk(a)]
            05:00 default first: firing [disk(b)] resolved []
        "#]],
    );
    check(
        r#"group_by = ["..."]"#,
        r#"
        commands: 00:10 {"command":"silence","silence":{"ends_at":"1970-01-01T00:05:00Z","id":"s","matchers":["alertname=disk"],"owner":"ana","reason":"new disks"}}
        00:20 +disk host=b
        commands: 00:30 {"command":"expire","id":"s"}
        commands: 00:40 {"command":"expire","id":"t"}
        commands: 00:50 {"command":"dance"}
        "#,
        expect![[r#"
            00:30 default summary: firing [disk(b)] resolved []
            00:30 default first: firing [disk(b)] resolved []
        "#]],
    );
}

#[test]
fn an_interval_mutes_a_route_to_its_very_end() {
    check(
        r#"intervals = { first = { times = ["00:00-00:02"] } }
           group_interval = "30s"
           routes = [{ matchers = ["a=1"], receiver = "day", mute = ["first"] }, { matchers = ["a=2"], receiver = "night", active = ["first"] }]"#,
        "
        00:30 +x a=1
        00:40 +y a=2
        01:00 +z a=2
        watermark 02:00
        watermark 02:01
        03:00 -y a=2
        ",
        expect![[r#"
            00:40 night first: firing [y(2)] resolved []
            01:00 night first: firing [z(2)] resolved []
            02:00 day first: firing [x(1)] resolved []
        "#]],
    );
}

#[test]
fn a_budget_turns_what_goes_beyond_it_into_one_digest() {
    check(
        r#"group_by = ["..."]
           receivers = { default = { budget = { max = 3, per = "10m", wait = "1m" } } }"#,
        "
        00:00 +a h=1
        00:01 +a h=2
        00:02 +a h=3
        00:03 +a h=4
        00:04 -a h=3
        00:05 +a severity=critical
        watermark 01:03
        03:00 +a h=5
        watermark 10:02
        watermark 15:00
        20:00 +a h=6
        ",
        expect![[r#"
            00:00 default first: firing [a(1)] resolved []
            00:01 default first: firing [a(2)] resolved []
            00:05 default first: firing [a(critical)] resolved []
            10:00 default digest: firing [a(4) a(5)] resolved [a(3)]
            20:00 default first: firing [a(6)] resolved []
        "#]],
    );
}

#[test]
fn who_does_not_answer_is_followed_by_the_next_until_somebody_takes_care() {
    let config = r#"group_interval = "1m"
        repeat_interval = "20m"
        escalate = [{ after = "5m", receiver = "phone" }, { after = "10m", receiver = "boss" }]"#;
    check(
        config,
        "
        00:00 +down h=a
        watermark 05:00
        watermark 05:01
        watermark 15:00
        watermark 25:00
        26:00 -down h=a
        ",
        expect![[r#"
            00:00 default first: firing [down(a)] resolved []
            05:00 phone escalated: firing [down(a)] resolved []
            10:00 boss escalated: firing [down(a)] resolved []
            20:00 default repeat: firing [down(a)] resolved []
            26:00 default resolved: firing [] resolved [down(a)]
            26:00 boss resolved: firing [] resolved [down(a)]
            26:00 phone resolved: firing [] resolved [down(a)]
        "#]],
    );
    check(
        config,
        r#"
        00:00 +down h=a
        watermark 05:01
        commands: 06:00 {"by":"ana","command":"acknowledge","id":"{}:{alertname=\"down\"}"}
        watermark 30:00
        31:00 +down h=b
        watermark 37:00
        "#,
        expect![[r#"
            00:00 default first: firing [down(a)] resolved []
            05:00 phone escalated: firing [down(a)] resolved []
            31:00 default changed: firing [down(a) down(b)] resolved []
            36:00 phone escalated: firing [down(a) down(b)] resolved []
        "#]],
    );
}

#[test]
fn who_takes_care_before_it_is_known_of_what_is_heard_when_it_is() {
    check(
        r#"repeat_interval = "10m"
           escalate = [{ after = "5m", receiver = "phone" }]"#,
        r#"
        commands: 00:00 {"by":"ana","command":"acknowledge","id":"{}:{alertname=\"down\"}"}
        barrier
        crash
        00:01 +down h=a
        00:02 +full h=a
        watermark 12:00
        "#,
        expect![[r#"
            00:01 default first: firing [down(a)] resolved []
            00:02 default first: firing [full(a)] resolved []
            10:02 default repeat: firing [full(a)] resolved []
            05:02 phone escalated: firing [full(a)] resolved []
        "#]],
    );
}

#[test]
fn what_people_say_does_not_hurry_on_a_pipeline_that_is_behind() {
    check(
        r#"group_interval = "5m"
           repeat_interval = "1h""#,
        r#"
        00:00 +down h=a
        00:10 +down h=b
        commands: 59:00 {"command":"silence","silence":{"ends_at":"1970-01-01T02:00:00Z","id":"s","matchers":["h=c"],"owner":"ana","reason":"works"}}
        00:20 +down h=c
        watermark 04:00
        watermark 06:00
        "#,
        expect![[r#"
            00:00 default first: firing [down(a)] resolved []
            05:00 default changed: firing [down(a) down(b)] resolved []
        "#]],
    );
}

#[test]
fn a_crash_changes_nothing() {
    let story = |crash: &str| {
        format!(
            r#"
            00:00 +a severity=critical team=web
            {crash}
            commands: 00:01 {{"command":"silence","silence":{{"ends_at":"1970-01-01T00:05:00Z","id":"s","matchers":["alertname=b"],"owner":"ana","reason":"works"}}}}
            00:02 +b team=web
            00:03 +c team=web
            {crash}
            watermark 00:40
            00:41 -c team=web
            {crash}
            watermark 04:00
            {crash}
            watermark 06:00
            06:01 -a severity=critical team=web
            "#
        )
    };
    let (straight, crashed) = (told(TREE, &story("")), told(TREE, &story("barrier\ncrash")));
    assert_eq!(straight, crashed);
    assert!(straight.len() >= 6, "{straight:?}");
}

#[test]
fn all_input_ended_tells_what_waits() {
    check(
        r#"group_wait = "30s"
           group_interval = "5m""#,
        "
        00:00 +a h=1
        00:10 +b h=1
        00:40 +a h=2
        end
        ",
        expect![[r#"
            00:30 default first: firing [a(1)] resolved []
            00:40 default first: firing [b(1)] resolved []
            05:30 default changed: firing [a(1) a(2)] resolved []
        "#]],
    );
}

#[test]
fn a_storm_within_a_budget_lists_every_alert_in_few_notifications() {
    let mut story = String::new();
    for alert in 0..10_000 {
        story += &format!("{:02}:{:02} +down h={alert}\n", alert / 600, alert / 10 % 60);
    }
    let config = r#"group_by = ["..."]
        receivers = { default = { budget = { max = 10, per = "1h" } } }"#;
    let told = told(config, &(story + "watermark 59:00\n"));
    assert!(told.len() <= 10, "{} notifications", told.len());
    let mut listed: Vec<_> = told
        .iter()
        .flat_map(|(_, _, record)| record["alerts"].as_array().unwrap())
        .map(|alert| alert["labels"]["h"].as_str().unwrap().parse::<u32>().unwrap())
        .collect();
    listed.sort_unstable();
    listed.dedup();
    assert!(listed.iter().copied().eq(0..10_000), "{} alerts are listed", listed.len());
}

#[test]
fn options_that_cannot_be_are_told() {
    let problems = script::problems::<Config>(
        r#"
        receiver = "a b"
        group_interval = "0s"
        routes = [{ matchers = ["a=~("], mute = ["nights"], escalate = [{ after = "0s", receiver = "x" }] }]
        inhibit = [{ source = ["="] }]
        receivers = { nobody = { budget = { max = 0, per = "0s" } } }
        critical = ["!"]
        acknowledge = { url = "tocsin.example.org", key = "short" }
        max_alerts = 0
        "#,
    );
    expect![[r#"
        receiver: "a b" cannot be named among inputs (use letters, digits, `_` and `-`)
        group_interval: must be longer than nothing
        routes[0].matchers[0][3..4]: not a regular expression: unclosed group
        routes[0].escalate[0].after: must be longer than nothing
        routes[0].mute[0]: there is no interval "nights" (define it as `intervals.nights`)
        inhibit[0].source[0][0..1]: expected the name of a label, and this is `=`
        critical[0][0..1]: `!` is to be followed by `=` or `~`
        receivers.nobody.budget.max: must be from 1 to 10000
        receivers.nobody.budget.per: must be longer than nothing
        acknowledge.url: is not the URL of a page (write the admin address as people reach it, such as "https://tocsin.example.org")
        acknowledge.key: has less than 16 characters, so that links could be made up (write one of `openssl rand -hex 32` into a file, and `${file:…}` here)
        max_alerts: must be from 1 to 1000000
    "#]].assert_eq(&problems);
    let problems = script::problems::<Config>(r#"receivers = { nobody = {} }"#);
    expect![[r#"
        receivers.nobody: no route names a receiver `nobody` (there is default)
    "#]]
    .assert_eq(&problems);
}
