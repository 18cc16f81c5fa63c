//! The admin address as people and other programs use it: alerts come in as from Prometheus, silences as from `amtool`, and links of
//! notifications are followed.

mod support;

use std::collections::BTreeMap;

use chrono::{Duration, SecondsFormat, Utc};
use expect_test::expect;
use serde_json::{Value as Json, json};
use support::admin::{Place, encoded};
use support::{corpus, wait_for};

const PIPELINE: &str = r#"
[sources.prometheus]
type = "alerts"

[operators.oncall]
type = "notify"
inputs = ["prometheus"]
group_by = ["alertname"]
routes = [
    { matchers = ['team="night"'], receiver = "night", mute = ["always"] },
    { matchers = ['severity="critical"'], receiver = "pager" },
]
intervals = { always = { times = ["00:00-24:00"] } }
inhibit = [{ source = ['severity="critical"'], target = ['severity="warning"'], equal = ["host"] }]
acknowledge = { url = "http://{ADMIN}", key = "0123456789abcdef0123456789abcdef" }

[[silences]]
matchers = ['host=~"test-.*"']
owner = "ana"
reason = "these machines are for tests"
ends_at = "2200-01-01T00:00:00Z"

[sinks.out]
type = "file"
inputs = ["oncall", "oncall.pager", "oncall.night"]
path = "told.ndjson"
"#;

/// Minutes from now, as programs write it.
#[expect(clippy::disallowed_methods, reason = "the daemon goes by it")]
fn minutes(from_now: i64) -> String {
    (Utc::now() + Duration::minutes(from_now)).to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn alert(name: &str, host: &str, severity: &str) -> Json {
    json!({ "labels": { "alertname": name, "host": host, "severity": severity } })
}

/// What was told, in a line each.
fn told(place: &Place) -> Vec<String> {
    let line = |told: &Json| {
        let text = |name: &str| told[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {}", text("receiver"), text("reason"), text("alert"), text("state"))
    };
    place.lines("told.ndjson").iter().map(line).collect()
}

fn silence(host: &str, starts_at: &str, ends_at: &str) -> Json {
    json!({
        "matchers": [{ "name": "host", "value": host, "isRegex": false, "isEqual": true }],
        "startsAt": starts_at,
        "endsAt": ends_at,
        "createdBy": "ana",
        "comment": "works",
    })
}

/// The states of silences, by their reasons.
fn silences(place: &Place, query: &str) -> Vec<String> {
    let (status, told) = place.get(&format!("/api/v2/silences{query}"));
    assert_eq!(status, 200, "{told}");
    let line = |silence: &Json| {
        format!("{} {}", silence["status"]["state"].as_str().unwrap(), silence["comment"].as_str().unwrap())
    };
    told.as_array().unwrap().iter().map(line).collect()
}

#[test]
fn what_prometheus_sends_is_told_and_told_again_when_it_is_over() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    let mut disk = alert("disk", "a", "critical");
    disk["annotations"] = json!({ "summary": "disk full" });
    disk["generatorURL"] = "http://prometheus/graph?g0.expr=1".into();
    disk["startsAt"] = minutes(-10).into();
    disk["endsAt"] = minutes(4).into();
    let sent = json!([disk, alert("load", "a", "warning"), alert("load", "b", "warning")]);
    assert_eq!(place.post("/api/v2/alerts", &sent), (200, Json::Null));
    wait_for("the notifications", || told(&place).len() == 2);
    let mut first = told(&place);
    first.sort();
    assert_eq!(first, ["default first load firing", "pager first disk firing"]);
    let (_, alerts) = place.get("/api/v2/alerts?filter=alertname%3Ddisk");
    assert_eq!(alerts[0]["labels"], disk["labels"]);
    assert_eq!(alerts[0]["annotations"], disk["annotations"]);
    assert_eq!((&alerts[0]["startsAt"], &alerts[0]["endsAt"]), (&disk["startsAt"], &disk["endsAt"]));
    assert_eq!(alerts[0]["generatorURL"], disk["generatorURL"]);
    // Sent again without any news, as Prometheus does, and then resolved.
    assert_eq!(place.post("/api/v2/alerts", &json!([disk])).0, 200);
    disk["endsAt"] = minutes(-1).into();
    assert_eq!(place.post("/api/v2/alerts", &json!([disk])).0, 200);
    wait_for("the alert to be over", || place.get("/api/v2/alerts?filter=alertname%3Ddisk").1 == json!([]));
    // What is wrong is refused with its reason, and what is right beside it is taken.
    let sent = json!([{ "labels": {} }, alert("memory", "a", "critical")]);
    assert_eq!(place.post("/api/v2/alerts", &sent), (400, "the alert has no label".into()));
    wait_for("the other alert", || told(&place).contains(&"pager first memory firing".to_owned()));
    assert!(daemon.terminate().success());
}

#[test]
fn a_silence_is_added_changed_and_ended_as_amtool_does_it() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    let id_of = |(status, told): (u16, Json)| {
        assert_eq!(status, 200, "{told}");
        told["silenceID"].as_str().unwrap().to_owned()
    };
    let mut wanted = silence("a", &minutes(-1), &minutes(60));
    let id = id_of(place.post("/api/v2/silences", &wanted));
    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "a UUID");
    // What was answered is in force.
    let (_, known) = place.get(&format!("/api/v2/silence/{id}"));
    assert_eq!((&known["status"]["state"], &known["matchers"]), (&"active".into(), &wanted["matchers"]));
    place.post("/api/v2/alerts", &json!([alert("disk", "a", "critical")]));
    wait_for("the alert", || place.get("/api/v2/alerts").1[0]["status"]["silencedBy"] == json!([id]));
    // Later it is over: it is the same silence.
    (wanted["id"], wanted["startsAt"], wanted["endsAt"]) =
        (id.clone().into(), known["startsAt"].clone(), minutes(90).into());
    wanted["annotations"] = json!({ "ticket": "42" });
    assert_eq!(id_of(place.post("/api/v2/silences", &wanted)), id);
    let (_, known) = place.get(&format!("/api/v2/silence/{id}"));
    assert_eq!((&known["endsAt"], &known["annotations"]), (&wanted["endsAt"], &wanted["annotations"]));
    // For another machine: another silence, and the first is over.
    wanted["matchers"][0]["value"] = "b".into();
    let other = id_of(place.post("/api/v2/silences", &wanted));
    assert_ne!(other, id);
    let all = ["active works", "active these machines are for tests", "expired works"];
    assert_eq!(silences(&place, ""), all);
    assert_eq!(silences(&place, "?expired=false&filter=host%3Db"), all[..1]);
    wait_for("what it kept quiet", || told(&place).contains(&"pager first disk firing".to_owned()));
    let delete = |id: &str| place.ask("DELETE", &format!("/api/v2/silence/{id}"), &[], "");
    assert_eq!(delete(&other), (200, String::new()));
    assert_eq!(silences(&place, "?expired=false"), all[1..2]);
    assert_eq!(delete(&other).0, 200, "it is over");
    assert_eq!(delete("3e4b9a3c-5c7d-4b7e-8f0a-000000000000").0, 404);
    let configured = place.get("/api/v2/silences?expired=false").1[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(delete(&configured), (500, "\"the configuration says this silence; end it there\"".to_owned()));
    for (field, value) in
        [("createdBy", json!("")), ("comment", json!(" ")), ("matchers", json!([])), ("endsAt", "x".into())]
    {
        let mut wrong = silence("c", &minutes(0), &minutes(60));
        wrong[field] = value;
        assert_eq!(place.post("/api/v2/silences", &wrong).0, 400, "{field}");
    }
    assert!(daemon.terminate().success());
}

#[test]
fn a_kill_forgets_neither_a_silence_nor_who_takes_care() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    place.post("/api/v2/alerts", &json!([alert("disk", "a", "critical"), alert("memory", "b", "critical")]));
    wait_for("the notifications", || told(&place).len() == 2);
    let fingerprint = place.get("/api/v2/alerts?filter=host%3Da").1[0]["fingerprint"].clone();
    let (status, added) = place.post(
        "/api/v1/silences",
        &json!({ "matchers": ["host=b"], "owner": "ana", "reason": "works", "ends_at": minutes(60) }),
    );
    assert_eq!(status, 200, "{added}");
    let (status, taken) = place.post("/api/v1/acknowledge", &json!({ "id": fingerprint, "by": "Bob" }));
    assert_eq!((status, &taken["acknowledged"][0]["acknowledged"]["by"]), (200, &"Bob".into()), "{taken}");
    daemon.kill();
    let daemon = place.start();
    let causes = || {
        let (_, told) = place.get("/api/v1/alerts");
        let alerts = told["alerts"].as_array().cloned().unwrap_or_default();
        let cause = |alert: &Json| alert["receivers"][0]["cause"].as_str().unwrap_or_default().to_owned();
        let mut causes: Vec<_> = alerts.iter().map(cause).collect();
        causes.sort();
        causes
    };
    // What is in the journal and in no checkpoint is read again while the daemon answers already.
    wait_for("what was said", || causes() == ["acknowledged", "silenced"]);
    assert_eq!(place.get("/api/v1/silences").1["silences"][0]["id"], added["id"]);
    assert_eq!(place.post("/api/v1/silences/expire", &json!({ "id": added["id"] })).0, 200);
    assert!(!causes().contains(&"silenced".to_owned()), "{:?}", causes());
    assert!(daemon.terminate().success());
}

#[test]
fn the_link_of_a_notification_leads_to_a_page_on_which_somebody_takes_care() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    place.post("/api/v2/alerts", &json!([alert("disk", "<a>", "critical")]));
    wait_for("the notification", || told(&place).len() == 1);
    let url = place.lines("told.ndjson")[0]["acknowledge"]["url"].as_str().unwrap().to_owned();
    let link = url.strip_prefix(&format!("http://{}", place.admin)).unwrap().to_owned();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let cause = || place.get("/api/v1/alerts").1["alerts"][0]["receivers"][0]["cause"].clone();
    for _ in 0..2 {
        let (status, page) = place.ask("GET", &link, &[], "");
        assert_eq!(status, 200);
        assert!(page.contains("<h1>Do you take care of this?</h1>") && page.contains("host=&lt;a&gt;"), "{page}");
    }
    assert_eq!(cause(), "notified", "looking changes nothing");
    // Made up: another signature, another notification, another operator.
    let (start, signature) = link.rsplit_once('/').unwrap();
    let other = if signature.starts_with('0') { "1" } else { "0" };
    let forged = [
        format!("{start}/{other}{}", &signature[1..]),
        format!("{start}/"),
        format!("/acknowledge/oncall/{}/{signature}", "0".repeat(32)),
        link.replace("oncall", "nobody"),
    ];
    for forged in forged {
        assert_eq!(place.ask("GET", &forged, &[], "").0, 404, "{forged}");
        assert_eq!(place.ask("POST", &forged, &form, "by=Mallory").0, 404, "{forged}");
    }
    let of_others = [form[0], ("origin", "http://example.org")];
    assert_eq!(place.ask("POST", &link, &of_others, "by=Mallory").0, 403);
    assert_eq!(place.ask("POST", &link, &form, "by=+").0, 400);
    assert_eq!(cause(), "notified");
    let origin = format!("http://{}", place.admin);
    let (status, page) = place.ask("POST", &link, &[form[0], ("origin", &origin)], "by=Ana+M%C3%BCller");
    assert_eq!(status, 200);
    assert!(page.contains("<h1>Ana Müller takes care of this</h1>") && !page.contains("<form"), "{page}");
    assert_eq!(cause(), "acknowledged");
    // Who was first does it.
    let (_, page) = place.ask("POST", &link, &form, "by=Bob");
    assert!(page.contains("Ana Müller takes care"), "{page}");
    assert!(daemon.terminate().success());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the daemon goes by it")]
fn a_silence_that_recurs_waits_for_its_hours_and_one_that_does_nothing_is_told() {
    let rule = r#"
[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.failing]
type = "alert"
inputs = ["log"]
condition = ".status >= 500"
group_by = [".path"]

[operators.oncall]
type = "notify"
inputs = ["failing"]

[sinks.out]
type = "file"
inputs = ["oncall"]
path = "told.ndjson"
"#;
    let place = Place::new(rule);
    let daemon = place.start();
    let run = |matcher: &str, during: &str| {
        let add =
            ["silence", "add", matcher, "--owner", "ana", "--reason", "works", "--for", "10d", "--during", during];
        let output = place.command(&[&add[..], &["--config", "pipeline.toml"]].concat());
        [output.stdout, output.stderr].map(|told| String::from_utf8(told).unwrap())
    };
    let day = (Utc::now() + Duration::days(3)).format("%A").to_string().to_lowercase();
    let [id, warning] = run("pth=\"/checkout\"", &format!("{{ weekdays = [\"{day}\"] }}"));
    assert_eq!(warning, "warning: no rule makes alerts with a label `pth`; there are `alertname`, `path`\n");
    let output = place.command(&["silence", "list", "--config", "pipeline.toml"]);
    let listed = String::from_utf8(output.stdout).unwrap();
    let begins = (Utc::now() + Duration::days(3)).format("%Y-%m-%dT00:00:00Z");
    assert!(listed.starts_with(&format!("waiting until {begins}  {}  pth=", id.trim())), "{listed}");
    let [told, refusal] = run("path=\"/\"", "{ years = [\"2190\"] }");
    assert!(told.is_empty() && refusal.contains("`during` holds at no time from "), "{refusal}");
    let [_, warning] = run("path=\"/\"", "{ times = [\"00:00-24:00\"] }");
    assert_eq!(warning, "");
    assert!(daemon.terminate().success());
}

#[test]
fn commands_list_alerts_and_silence_them() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    place.post("/api/v2/alerts", &json!([alert("disk", "a", "critical"), alert("memory", "b", "critical")]));
    wait_for("the notifications", || told(&place).len() == 2);
    let admin = place.admin.to_string();
    let run = |arguments: &[&str]| {
        let output = place.command(arguments);
        let (told, problem) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        if output.status.success() { told } else { format!("{}: {problem}", output.status) }
    };
    let listed = run(&["alerts", "pipeline.toml", "--filter", "host=a"]);
    assert!(listed.starts_with("firing  disk  ") && listed.contains("\n  pager at oncall: told at "), "{listed}");
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let listed = run(&["alerts", "--admin", &admin, "--format", "json"]);
    let listed: Vec<Json> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 2);
    let preview = run(&["silence", "preview", "host=~\"a|c\"", "--admin", &admin]);
    let expected = "2 notifications";
    assert!(preview.starts_with("1 alert that fires now would be muted\n") && preview.contains(expected), "{preview}");
    assert!(preview.ends_with("1 would not have been sent, and 0 with fewer alerts\n  pager: 1 fewer\n"), "{preview}");
    let add = ["silence", "add", "host=a", "--owner", "ana", "--reason", "new disks", "--for", "2h"];
    let id = run(&[&add[..], &["--config", "pipeline.toml"]].concat());
    let id = id.trim_end();
    let listed = run(&["silence", "list", "--admin", &admin]);
    assert!(
        listed.starts_with(&format!("active  {id}  host=\"a\"\n")) && listed.contains("ana: new disks; "),
        "{listed}"
    );
    let listed = run(&["alerts", "pipeline.toml", "--filter", "host=a"]);
    assert!(listed.ends_with(&format!("pager at oncall: silenced by {id}\n")), "{listed}");
    assert_eq!(run(&["silence", "expire", id, "--admin", &admin]), format!("the silence {id} is over\n"));
    let listed = run(&["silence", "list", "--expired", "--format", "json", "--admin", &admin]);
    assert!(listed.lines().last().is_some_and(|line| line.contains(id) && line.contains("\"expired\"")), "{listed}");
    let fingerprint = place.get("/api/v2/alerts?filter=host%3Db").1[0]["fingerprint"].as_str().unwrap().to_owned();
    let taken = run(&["alerts", "ack", &fingerprint, "--by", "Bob", "--admin", &admin]);
    let key = "{}/{severity=\"critical\"}:{alertname=\"memory\"}";
    assert_eq!(taken, format!("Bob takes care of {key}, of which pager is told by oncall\n"));
    let refused = run(&["alerts", "ack", "nobody", "--by", "Bob", "--admin", &admin]);
    assert!(refused.ends_with("answered 404 Not Found: nothing that fires is called \"nobody\"\n"), "{refused}");
    assert!(daemon.terminate().success());
}

#[test]
fn what_is_pending_is_listed_with_the_time_at_which_it_fires() {
    let rule = r#"
[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".time" }

[operators.slow]
type = "alert"
inputs = ["log"]
condition = ".latency > 1"
group_by = [".host"]
for = "2m"
"#;
    let place =
        Place::new(&(PIPELINE.replace("inputs = [\"prometheus\"]", "inputs = [\"prometheus\", \"slow\"]") + rule));
    std::fs::write(place.path().join("app.log"), "{\"time\":\"2026-11-29T12:00:00Z\",\"host\":\"a\",\"latency\":7}\n")
        .unwrap();
    let daemon = place.start();
    let list =
        || String::from_utf8(place.command(&["alerts", "pipeline.toml", "--filter", "alertname=slow"]).stdout).unwrap();
    wait_for("the alert", || {
        list().starts_with("pending  slow  -  since 2026-11-29T12:00:00Z\n  {alertname=\"slow\", host=\"a\"}\n")
    });
    assert!(list().ends_with("  fires at 2026-11-29T12:02:00Z if it goes on\n"), "{}", list());
    assert!(daemon.terminate().success());
}

#[test]
fn where_there_is_no_notify_the_rules_say_what_they_hold() {
    let place = Place::new(
        r#"
[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".time" }

[operators.slow]
type = "alert"
inputs = ["log"]
levels = [{ severity = "critical", condition = ".latency > 5" }]
group_by = [".host"]

[operators.soon]
type = "alert"
inputs = ["log"]
condition = ".latency > 1"
for = "2m"

[sinks.out]
type = "file"
inputs = ["slow", "soon"]
path = "told.ndjson"
"#,
    );
    std::fs::write(place.path().join("app.log"), "{\"time\":\"2026-11-29T12:00:00Z\",\"host\":\"a\",\"latency\":7}\n")
        .unwrap();
    let daemon = place.start();
    let list = |filter: &str| {
        let output = place.command(&["alerts", "pipeline.toml", "--filter", filter]);
        assert!(output.status.success());
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    wait_for("the alerts", || list("alertname=~\".+\"").0.lines().count() == 5);
    let (told, note) = list("alertname=~\".+\"");
    expect![[r#"
        firing  slow  1500e213ce023879  since 2026-11-29T12:00:00Z
          {alertname="slow", host="a", severity="critical"}
        pending  soon  -  since 2026-11-29T12:00:00Z
          {alertname="soon"}
          fires at 2026-11-29T12:02:00Z if it goes on
    "#]]
    .assert_eq(&told);
    expect![[r#"
        the configuration has no `notify`, so nobody is told by one: this is what the rules hold
    "#]]
    .assert_eq(&note);
    assert_eq!(list("severity=warning").0, "no alerts\n");
    assert_eq!(place.get("/api/v2/alerts"), (200, json!([])));
    let output = place.command(&["alerts", "ack", "slow", "--by", "ana", "--config", "pipeline.toml"]);
    let problem = String::from_utf8(output.stderr).unwrap().replace(&place.admin.to_string(), "ADMIN");
    assert!(!output.status.success());
    expect![[r#"
        error: the daemon at ADMIN answered 404 Not Found: the configuration has no `notify`, so there is nobody to tell; see: tocsin help notify
    "#]].assert_eq(&problem);
    assert!(daemon.terminate().success());
}

#[test]
fn what_is_asked_follows_reloads_and_says_what_is_missing() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    let receivers = || {
        let (status, told) = place.get("/api/v2/receivers");
        let names = told.as_array().cloned().unwrap_or_default();
        (status, names.iter().map(|receiver| receiver["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(receivers(), (200, ["default", "night", "pager"].map(str::to_owned).to_vec()));
    place.configure(
        &PIPELINE.replace("oncall", "people").replace("\"pager\"", "\"phone\"").replace("people.pager", "people.phone"),
    );
    let output = place.command(&["reload", "pipeline.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(receivers(), (200, ["default", "night", "phone"].map(str::to_owned).to_vec()));
    // Neither a `notify` nor a source of alerts.
    place.configure(
        "[sources.demo]\ntype = \"demo\"\nrate = 1\n\n[sinks.out]\ntype = \"blackhole\"\ninputs = [\"demo\"]\n",
    );
    let output = place.command(&["reload", "pipeline.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(place.get("/api/v2/alerts"), (200, json!([])));
    let (status, reason) = place.post("/api/v2/silences", &silence("a", &minutes(0), &minutes(60)));
    assert_eq!(status, 404);
    assert!(reason.as_str().unwrap().contains("has no `notify`"), "{reason}");
    let (status, reason) = place.post("/api/v2/alerts", &json!([alert("disk", "a", "critical")]));
    assert_eq!(status, 404);
    assert!(reason.as_str().unwrap().contains("no source of the type `alerts`"), "{reason}");
    assert!(daemon.terminate().success());
}

#[test]
fn requests_that_are_too_long_or_of_another_kind_are_refused() {
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    let kind = ("content-type", "application/json");
    let long = format!("[{{\"labels\":{{\"a\":\"{}\"}}}}]", "x".repeat(5 << 20));
    assert_eq!(place.ask("POST", "/api/v2/alerts", &[kind, ("expect", "100-continue")], "").0, 400);
    assert_eq!(place.ask("POST", "/api/v2/alerts", &[("content-type", "text/plain")], "[]").0, 415);
    assert_eq!(place.ask("POST", "/api/v2/alerts", &[kind], "{}").0, 400);
    assert_eq!(place.ask("PUT", "/api/v2/alerts", &[kind], "[]").0, 405);
    let of_others = [kind, ("origin", "http://example.org")];
    assert_eq!(place.ask("POST", "/api/v2/alerts", &of_others, "[]").0, 403);
    // It may be told before all of it was sent, and the connection ends: then there is no answer to read.
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        place.ask("POST", "/api/v2/alerts", &[kind], &long).0
    }));
    assert!(refused.is_err() || refused.is_ok_and(|status| status == 413));
    assert_eq!(place.get("/api/v2/alerts"), (200, json!([])));
    assert!(daemon.terminate().success());
}

/// Answers as the description of Alertmanager's API has them.
struct Description {
    text: Json,
    /// Those of responses that were asked for already, by place.
    validators: std::cell::RefCell<BTreeMap<String, Option<jsonschema::Validator>>>,
}

impl Description {
    fn read(file: &std::path::Path) -> Self {
        let text = serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        Self { text, validators: Default::default() }
    }

    /// What is wrong with an answer. A status that is not described is wrong.
    fn problem(&self, path: &str, method: &str, status: u16, body: &Json) -> Option<String> {
        let response = &self.text["paths"][path][method]["responses"][status.to_string()];
        if response.is_null() {
            return Some(format!("{status} is not an answer to {method} {path}: {body}"));
        }
        let mut validators = self.validators.borrow_mut();
        let place = format!("{method} {path} {status}");
        let validator = validators.entry(place.clone()).or_insert_with(|| self.validator(response)).as_ref()?;
        let problems = validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path()));
        let problems: Vec<_> = problems.collect();
        (!problems.is_empty()).then(|| format!("{place}: {}\n{body}", problems.join("; ")))
    }

    /// The schema of a response, as it stands but for the definitions that it refers to; `None` of one that may have any body.
    fn validator(&self, response: &Json) -> Option<jsonschema::Validator> {
        let named = response["$ref"].as_str().map(|name| self.text.pointer(name.strip_prefix('#').unwrap()).unwrap());
        let schema = named.unwrap_or(response).get("schema")?;
        let schema = json!({ "allOf": [schema], "definitions": self.text["definitions"] });
        let options = jsonschema::options().with_draft(jsonschema::Draft::Draft4).should_validate_formats(true);
        Some(options.build(&schema).unwrap())
    }
}

/// All that can be said of some options, each with nothing or one of its values.
fn combinations(options: &[(&str, &[&str])]) -> Vec<Vec<(String, String)>> {
    options.iter().fold(vec![Vec::new()], |known, (name, values)| {
        let with = |query: &Vec<(String, String)>| {
            let values = values.iter().map(|value| [&query[..], &[((*name).to_owned(), (*value).to_owned())]].concat());
            std::iter::once(query.clone()).chain(values).collect::<Vec<_>>()
        };
        known.iter().flat_map(with).collect()
    })
}

#[test]
fn every_answer_is_as_alertmanagers_description_has_it() {
    let Some(file) = corpus("alertmanager/openapi_v2.yaml") else { return };
    let description = Description::read(&file);
    let place = Place::new(PIPELINE);
    let daemon = place.start();
    // Name, host, severity, receiver; whether silenced, inhibited, muted.
    let alerts = [
        ("disk", "a", "critical", "pager", false, false, false),
        ("load", "a", "warning", "default", false, true, false),
        ("memory", "test-1", "warning", "default", true, false, false),
        ("net", "test-2", "critical", "pager", true, false, false),
        ("slow", "test-2", "warning", "default", true, true, false),
        ("batch", "c", "info", "night", false, false, true),
    ];
    let mut sent: Vec<_> = alerts.iter().map(|(name, host, severity, ..)| alert(name, host, severity)).collect();
    sent[5]["labels"]["team"] = "night".into();
    sent[0]["generatorURL"] = "http://prometheus/graph".into();
    sent[0]["annotations"] = json!({ "summary": "disk full" });
    let mut checked = 0;
    let mut check = |path: &str, method: &str, (status, body): &(u16, Json)| {
        checked += 1;
        assert_eq!(description.problem(path, method, *status, body), None);
    };
    check("/alerts", "post", &place.post("/api/v2/alerts", &sent.into()));
    check("/alerts", "post", &place.post("/api/v2/alerts", &json!([{ "labels": {} }])));
    check("/alerts", "post", &place.post("/api/v2/alerts", &json!([{ "labels": { "a": "b" }, "startsAt": "x" }])));
    wait_for("the alerts", || place.get("/api/v2/alerts").1.as_array().is_some_and(|known| known.len() == 6));
    // Silences in all states: one to come, one that lasts, one that is over, beside that of the configuration.
    let pending = place.post("/api/v2/silences", &silence("x", &minutes(30), &minutes(60)));
    check("/silences", "post", &pending);
    check("/silences", "post", &place.post("/api/v2/silences", &silence("x", &minutes(0), &minutes(60))));
    let over = place.post("/api/v2/silences", &silence("y", &minutes(0), &minutes(60)));
    check("/silences", "post", &over);
    let mut wrong = silence("x", &minutes(0), &minutes(-1));
    check("/silences", "post", &place.post("/api/v2/silences", &wrong));
    wrong["id"] = "3e4b9a3c-5c7d-4b7e-8f0a-000000000000".into();
    wrong["endsAt"] = minutes(60).into();
    let unknown = place.post("/api/v2/silences", &wrong);
    assert_eq!(unknown.0, 404);
    check("/silences", "post", &unknown);
    let delete = |id: &str| {
        let (status, body) = place.ask("DELETE", &format!("/api/v2/silence/{id}"), &[], "");
        (status, serde_json::from_str(&body).unwrap_or_default())
    };
    let id_of = |told: &(u16, Json)| told.1["silenceID"].as_str().unwrap().to_owned();
    check("/silence/{silenceID}", "delete", &delete(&id_of(&over)));
    check("/silence/{silenceID}", "delete", &delete("3e4b9a3c-5c7d-4b7e-8f0a-000000000000"));
    let silences = place.get("/api/v2/silences");
    let states = silences.1.as_array().unwrap().iter().map(|silence| silence["status"]["state"].as_str().unwrap());
    assert_eq!(states.collect::<Vec<_>>(), ["active", "active", "pending", "expired"]);
    for silence in silences.1.as_array().unwrap() {
        let id = silence["id"].as_str().unwrap();
        let known = place.get(&format!("/api/v2/silence/{id}"));
        check("/silence/{silenceID}", "get", &known);
        assert_eq!(&known.1, silence);
        if silence["createdBy"] == "ana" && silence["comment"] != "works" {
            check("/silence/{silenceID}", "delete", &delete(id));
        }
    }
    check("/silence/{silenceID}", "get", &place.get("/api/v2/silence/nobody"));
    check("/status", "get", &place.get("/api/v2/status"));
    let query = |options: &[(String, String)]| {
        let options = options.iter().flat_map(|(name, values)| values.split('|').map(move |value| (name, value)));
        options.map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
    };
    const FLAG: &[&str] = &["false"];
    // Several values of one parameter are separated by a bar.
    const FILTER: &[&str] = &["severity=\"warning\"", "severity!=warning|host=~\"test-.*\"", "{"];
    const RECEIVER: &[&str] = &["pager", "(pag)?er|(pager", "p.*"];
    const RECEIVER_MATCHERS: &[&str] = &["owner=\"\"", "owner=x", "owner"];
    for options in combinations(&[("receiver_matchers", RECEIVER_MATCHERS)]) {
        check("/receivers", "get", &place.get(&format!("/api/v2/receivers?{}", query(&options))));
    }
    let flags = [("active", FLAG), ("pending", FLAG), ("expired", FLAG)];
    for options in combinations(&[&flags[..], &[("filter", &["host=x", "host=~\"test-.*\"", "="])]].concat()) {
        let told = place.get(&format!("/api/v2/silences?{}", query(&options)));
        check("/silences", "get", &told);
        let is = |name: &str| !options.iter().any(|(option, value)| option == name && value == "false");
        match options.iter().find(|(name, _)| name == "filter").map(|(_, value)| value.as_str()) {
            Some("=") => assert_eq!(told.0, 400),
            filter => {
                let count = match filter {
                    None => 2 * usize::from(is("active")) + usize::from(is("pending")) + usize::from(is("expired")),
                    Some("host=x") => usize::from(is("active")) + usize::from(is("pending")),
                    _ => usize::from(is("active")),
                };
                assert_eq!(told.1.as_array().unwrap().len(), count, "{options:?}");
            }
        }
    }
    let flags = [("active", FLAG), ("silenced", FLAG), ("inhibited", FLAG)];
    let others = [("filter", FILTER), ("receiver", RECEIVER), ("receiver_matchers", RECEIVER_MATCHERS)];
    for (path, more) in [("/alerts", ("unprocessed", FLAG)), ("/alerts/groups", ("muted", FLAG))] {
        for options in combinations(&[&flags[..], &[more], &others[..]].concat()) {
            let told = place.get(&format!("/api/v2{path}?{}", query(&options)));
            check(path, "get", &told);
            let one = |name: &str| options.iter().find(|(option, _)| option == name).map(|(_, value)| value.as_str());
            let is = |name: &str| one(name) != Some("false");
            let is_wrong = one("filter") == Some("{") || one("receiver_matchers") == Some("owner");
            // Only the last of several values of `receiver` counts.
            if is_wrong || one("receiver") == Some("(pag)?er|(pager") {
                assert_eq!(told.0, 400, "{options:?}");
                continue;
            }
            let wanted = alerts.iter().filter(|(_, host, severity, receiver, silenced, inhibited, muted)| {
                (is("active") || *silenced || *inhibited)
                    && (is("silenced") || !silenced)
                    && (is("inhibited") || !inhibited)
                    && (is("muted") || !muted)
                    && match one("filter") {
                        None => true,
                        Some("severity=\"warning\"") => *severity == "warning",
                        _ => *severity != "warning" && host.starts_with("test-"),
                    }
                    && one("receiver").is_none_or(|_| *receiver == "pager")
                    && one("receiver_matchers") != Some("owner=x")
            });
            let mut wanted: Vec<_> =
                wanted.map(|(name, .., muted)| (*name, *muted && path == "/alerts/groups")).collect();
            wanted.sort_unstable();
            let lists = told.1.as_array().unwrap();
            let lists: Vec<_> = match path {
                "/alerts" => lists.iter().collect(),
                _ => lists.iter().flat_map(|group| group["alerts"].as_array().unwrap()).collect(),
            };
            let mut found: Vec<_> = lists
                .iter()
                .map(|alert| {
                    (alert["labels"]["alertname"].as_str().unwrap(), alert["status"]["mutedBy"] == json!(["always"]))
                })
                .collect();
            found.sort_unstable();
            assert_eq!(found, wanted, "{path} {options:?}");
        }
    }
    println!("{checked} answers are as they are described");
    // That is found out where it is not so.
    let (_, mut known) = place.get("/api/v2/alerts?active=true&silenced=1&inhibited=true&unprocessed=true");
    assert_eq!(description.problem("/alerts", "get", 200, &known), None);
    known[0]["updatedAt"] = "yesterday".into();
    assert!(description.problem("/alerts", "get", 200, &known).is_some_and(|told| told.contains("date-time")));
    known[0].as_object_mut().unwrap().remove("updatedAt");
    assert!(description.problem("/alerts", "get", 200, &known).is_some_and(|told| told.contains("updatedAt")));
    assert!(description.problem("/alerts", "get", 404, &known).is_some());
    assert!(daemon.terminate().success());
}
