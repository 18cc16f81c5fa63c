//! `tocsin replay` and `tocsin diff`: small logs in, what is told of them out.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use expect_test::{Expect, expect};
use support::random::Random;
use support::tocsin;

/// Rules over the log of an application and over another that says when jobs are done.
const RULES: &str = r#"
[sources.app]
type = "file"
paths = ["app.log*"]
codec = "json"
timestamp = { field = ".ts" }

[sources.jobs]
type = "file"
paths = ["jobs/*.log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.errors]
type = "window"
inputs = ["app", "jobs"]
tumbling = "1m"
group_by = [".service"]
aggregates = { errors = "count(.level == \"ERROR\")" }

[operators.many_errors]
type = "alert"
inputs = ["errors"]
condition = ".errors >= LIMIT"
labels = { severity = "critical" }
annotations = { summary = "{{ errors }} errors of {{ service }}" }

[operators.disk_full]
type = "alert"
inputs = ["app"]
condition = '.level == "DISK"'
resolve_after = "90s"
emit_pending = true
labels = { service = "{{ service }}" }

[sinks.mail]
type = "email"
inputs = ["many_errors", "disk_full"]
smtp = "smtp://mail.example.org:587"
from = "tocsin@example.org"
to = ["oncall@example.org"]

[sinks.chat]
type = "webhook"
inputs = ["disk_full"]
url = "https://chat.example.org/hooks/1"
body = '{{ state }}: {{ labels.service }}'

# It would fail at once if it were opened, and write if it were run.
[sinks.archive]
type = "file"
inputs = ["many_errors.rejected", "app.rejected", "jobs.rejected"]
path = "/dev/null/archive.ndjson"
"#;

/// Lines of `HH:MM:SS[.mmm] LEVEL SERVICE` of one day as a log; others stand in it as they are.
fn log(lines: &str) -> String {
    let mut log = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [time, level, service] => {
                writeln!(log, r#"{{"ts":"2026-11-20T{time}Z","level":"{level}","service":"{service}"}}"#)
            }
            _ => writeln!(log, "{line}"),
        }
        .unwrap();
    }
    log
}

/// A folder with the rules, with these files beside them.
fn folder(limit: &str, files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.toml"), RULES.replace("LIMIT", limit)).unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

/// Runs a command in a folder; gives its exit status and what it said, errors behind.
fn said(folder: &Path, arguments: &str) -> (i32, String) {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = tocsin(&arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap().replace(folder.to_str().unwrap(), "FOLDER"))
}

#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(folder: &Path, arguments: &str, expected: Expect) {
    let (status, said) = said(folder, arguments);
    expected.assert_eq(&format!("{said}exit status {status}\n"));
}

const BURST: &str = "
    12:00:05 ERROR cart
    12:00:20.250 ERROR cart
    no json at all
    12:00:40 DISK db
    12:01:10 INFO cart
    12:01:30 INFO cart
    12:02:01 INFO cart
    12:04:00.500 ERROR cart
    12:04:01 ERROR cart
    12:04:02 ERROR search
";

#[test]
fn a_replay_tells_alerts_notifications_and_what_they_come_to() {
    let folder = folder("2", &[("app.log", log(BURST).as_bytes())]);
    check(
        folder.path(),
        "replay rules.toml --from app.log",
        expect![[r#"
            2026-11-20T12:00:40Z  pending   disk_full {service="db"}
            2026-11-20T12:00:40Z  firing    disk_full {service="db"}
            2026-11-20T12:00:40Z  -> told   chat: pending: db
            2026-11-20T12:00:40Z  -> told   chat: firing: db
            2026-11-20T12:00:40Z  -> told   mail: [PENDING] disk_full: service=db
            2026-11-20T12:00:40Z  -> told   mail: [FIRING] disk_full: service=db
            2026-11-20T12:01:00Z  firing    many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:01:10Z  -> told   mail: [FIRING] many_errors: 2 errors of cart
            2026-11-20T12:02:00Z  resolved  many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:02:10Z  resolved  disk_full {service="db"}
            2026-11-20T12:02:10Z  -> told   mail: [RESOLVED] many_errors: 2 errors of cart
            2026-11-20T12:02:20Z  -> told   chat: resolved: db
            2026-11-20T12:02:20Z  -> told   mail: [RESOLVED] disk_full: service=db
            2026-11-20T12:05:00Z  firing    many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:05:00Z  -> told   mail: [FIRING] many_errors: 2 errors of cart

            records           10 read, 1 undecodable, 0 late
            span              2026-11-20T12:00:05Z to 2026-11-20T12:05:00Z, 4m55s
            rule disk_full    fired 1, resolved 1, longest 1m30s
            rule many_errors  fired 2, resolved 1, longest 1m, firing at the end 1
            receiver chat     3 notifications
            receiver mail     6 notifications
            exit status 0
        "#]],
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing was written");
}

#[test]
fn the_same_as_json_and_as_a_chart() {
    let folder = folder("2", &[("app.log", log(BURST).as_bytes())]);
    let (status, json) = said(folder.path(), "replay rules.toml --from app.log --format json");
    assert_eq!(status, 0, "{json}");
    // How mails are worded is another matter.
    let lines = json.lines().filter(|line| !line.contains("\"receiver\":\"mail\"")).map(|line| format!("{line}\n"));
    expect![[r#"
        {"fingerprint":"6f1abd2105e0eb52","kind":"alert","labels":{"service":"db"},"rule":"disk_full","state":"pending","summary":null,"time":"2026-11-20T12:00:40Z"}
        {"fingerprint":"6f1abd2105e0eb52","kind":"alert","labels":{"service":"db"},"rule":"disk_full","state":"firing","summary":null,"time":"2026-11-20T12:00:40Z"}
        {"body":"pending: db","kind":"notification","receiver":"chat","subject":null,"time":"2026-11-20T12:00:40Z"}
        {"body":"firing: db","kind":"notification","receiver":"chat","subject":null,"time":"2026-11-20T12:00:40Z"}
        {"fingerprint":"e7cf89a6346ec9cc","kind":"alert","labels":{"service":"cart","severity":"critical"},"rule":"many_errors","state":"firing","summary":"2 errors of cart","time":"2026-11-20T12:01:00Z"}
        {"fingerprint":"e7cf89a6346ec9cc","kind":"alert","labels":{"service":"cart","severity":"critical"},"rule":"many_errors","state":"resolved","summary":"2 errors of cart","time":"2026-11-20T12:02:00Z"}
        {"fingerprint":"6f1abd2105e0eb52","kind":"alert","labels":{"service":"db"},"rule":"disk_full","state":"resolved","summary":null,"time":"2026-11-20T12:02:10Z"}
        {"body":"resolved: db","kind":"notification","receiver":"chat","subject":null,"time":"2026-11-20T12:02:20Z"}
        {"fingerprint":"e7cf89a6346ec9cc","kind":"alert","labels":{"service":"cart","severity":"critical"},"rule":"many_errors","state":"firing","summary":"2 errors of cart","time":"2026-11-20T12:05:00Z"}
        {"from":"2026-11-20T12:00:05Z","kind":"summary","late":0,"left_out":0,"read":10,"receivers":{"chat":3,"mail":6},"rules":{"disk_full":{"amended":0,"fired":1,"firing":0,"longest_seconds":90.0,"resolved":1},"many_errors":{"amended":0,"fired":2,"firing":1,"longest_seconds":60.0,"resolved":1}},"to":"2026-11-20T12:05:00Z","undecodable":1}
    "#]].assert_eq(&lines.collect::<String>());
    let (_, chart) = said(folder.path(), "replay rules.toml --from app.log --chart");
    let chart: Vec<_> = chart.split("\n\n").collect();
    expect![[r#"
        disk_full    ··········███████████████████████████··················································
        many_errors  ················██████████████████····················································█
        chat                   2                            1
        mail                   2        1                1  1                                              1
                     2026-11-20T12:00:05Z                                               2026-11-20T12:05:00Z"#]]
    .assert_eq(chart[1]);
    check(
        folder.path(),
        "replay rules.toml --from app.log --format json --chart",
        expect![[r#"
        error: a chart is text; leave out --chart or --format json
        exit status 1
    "#]],
    );
}

#[test]
fn what_is_before_since_is_lived_through_and_what_is_after_until_is_not_read() {
    let folder = folder("2", &[("app.log", log(BURST).as_bytes())]);
    check(
        folder.path(),
        "replay rules.toml --from app.log --since 2026-11-20T12:01:10Z --until 2026-11-20T12:04:01Z",
        expect![[r#"
            2026-11-20T12:01:10Z  -> told   mail: [FIRING] many_errors: 2 errors of cart
            2026-11-20T12:02:00Z  resolved  many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:02:10Z  resolved  disk_full {service="db"}
            2026-11-20T12:02:10Z  -> told   mail: [RESOLVED] many_errors: 2 errors of cart
            2026-11-20T12:02:20Z  -> told   chat: resolved: db
            2026-11-20T12:02:20Z  -> told   mail: [RESOLVED] disk_full: service=db

            records           8 read, 1 undecodable, 0 late
            span              2026-11-20T12:01:10Z to 2026-11-20T12:04:01Z, 2m51s
            rule disk_full    fired 0, resolved 1, longest 1m30s
            rule many_errors  fired 0, resolved 1, longest 1m
            receiver chat     1 notification
            receiver mail     3 notifications
            exit status 0
        "#]],
    );
    // The clock goes on to a moment after the end of the log, and time itself ends what is over.
    check(
        folder.path(),
        "replay rules.toml --from app.log --since 2026-11-20T12:02:00Z --until 2026-11-20T12:30:00Z",
        expect![[r#"
            2026-11-20T12:02:00Z  resolved  many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:02:10Z  resolved  disk_full {service="db"}
            2026-11-20T12:02:10Z  -> told   mail: [RESOLVED] many_errors: 2 errors of cart
            2026-11-20T12:02:20Z  -> told   chat: resolved: db
            2026-11-20T12:02:20Z  -> told   mail: [RESOLVED] disk_full: service=db
            2026-11-20T12:05:00Z  firing    many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:05:10Z  -> told   mail: [FIRING] many_errors: 2 errors of cart
            2026-11-20T12:10:00Z  resolved  many_errors {service="cart", severity="critical"}  2 errors of cart
            2026-11-20T12:10:10Z  -> told   mail: [RESOLVED] many_errors: 2 errors of cart

            records           10 read, 1 undecodable, 0 late
            span              2026-11-20T12:02:00Z to 2026-11-20T12:30:00Z, 28m
            rule disk_full    fired 0, resolved 1, longest 1m30s
            rule many_errors  fired 1, resolved 2, longest 5m
            receiver chat     1 notification
            receiver mail     4 notifications
            exit status 0
        "#]],
    );
    check(
        folder.path(),
        "replay rules.toml --from app.log --since 2026-11-21 --until 2026-11-20",
        expect![[r#"
        error: --since 2026-11-21T00:00:00Z is not before --until 2026-11-20T00:00:00Z
        exit status 1
    "#]],
    );
    check(
        folder.path(),
        "replay rules.toml --from app.log --since yesterday",
        expect![[r#"
        error: invalid value 'yesterday' for '--since <TIME>': write 2026-11-20T12:00:00Z, or 2026-11-20 for the beginning of that day in UTC

        For more information, try '--help'.
        exit status 2
    "#]],
    );
}

/// Logs of two sources, one of them in three rotated and packed pieces, and in one piece each.
fn rotated() -> (tempfile::TempDir, tempfile::TempDir) {
    let mut random = Random(7);
    let (mut app, mut jobs) = (String::new(), String::new());
    let mut millis = 0u64;
    for _ in 0..3000 {
        millis += random.below(1500);
        let early = random.below(400);
        let time = |millis: u64| {
            let second = millis / 1000;
            format!("{:02}:{:02}:{:02}.{:03}", 12 + second / 3600, second / 60 % 60, second % 60, millis % 1000)
        };
        let level = if (millis / 240_000).is_multiple_of(3) && random.below(3) == 0 { "ERROR" } else { "INFO" };
        let level = if random.below(500) == 0 { "DISK" } else { level };
        let line = format!("{} {level} s{}", time(millis + early), random.below(3));
        match random.below(20) {
            0 => jobs.push_str(&log(&line)),
            1 => app.push_str("a line that is not decoded\n"),
            2 => app.push_str("{\"level\":\"ERROR\",\"service\":\"no time\"}\n"),
            _ => app.push_str(&log(&line)),
        }
    }
    let lines: Vec<&str> = app.split_inclusive('\n').collect();
    let third = lines.len() / 3;
    let pieces = [lines[..third].concat(), lines[third..2 * third].concat(), lines[2 * third..].concat()];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(pieces[0].as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let jobs = ("jobs/all.log", jobs.as_bytes());
    let whole = folder("4", &[("app.log", app.as_bytes()), jobs]);
    let parts = [("app.log.2.gz", &gzip[..]), ("app.log.1", pieces[1].as_bytes()), ("app.log", pieces[2].as_bytes())];
    let parts = folder("4", &[parts[0], parts[1], parts[2], jobs]);
    (whole, parts)
}

#[test]
fn rotated_logs_are_replayed_as_if_they_had_never_been_rotated() {
    let (whole, parts) = rotated();
    let (status, expected) = said(whole.path(), "replay rules.toml --from app.log jobs/*.log");
    assert_eq!(status, 0, "{expected}");
    assert!(expected.contains("rule many_errors  fired ") && expected.contains("receiver chat"), "{expected}");
    for order in ["app.log* jobs/*.log", "jobs/all.log app.log app.log.2.gz app=app.log.1 app.log"] {
        let (status, told) = said(parts.path(), &format!("replay rules.toml --from {order}"));
        assert_eq!((status, told), (0, expected.clone()), "{order}");
    }
}

/// What tells of both rules in groups.
const GROUPS: &str = r#"
[operators.oncall]
type = "notify"
inputs = ["many_errors", "disk_full"]
group_by = ["service"]
group_wait = "1500ms"
group_interval = "1m"
repeat_interval = "10m"

[sinks.grouped]
type = "webhook"
inputs = ["oncall"]
url = "https://chat.example.org/hooks/2"
body = "{{ reason }} {{ group_key }}: {{ firing }} firing, {{ resolved }} resolved"
"#;

#[test]
fn groups_are_told_as_they_would_have_been() {
    let folder = folder("2", &[("app.log", log(BURST).as_bytes())]);
    let rules = fs::read_to_string(folder.path().join("rules.toml")).unwrap();
    fs::write(folder.path().join("rules.toml"), format!("{rules}{GROUPS}")).unwrap();
    for (arguments, expected) in [
        (
            "",
            expect![[r#"
        2026-11-20T12:00:51.500Z  -> told   grouped: first {}:{service="db"}: 1 firing, 0 resolved
        2026-11-20T12:01:11.500Z  -> told   grouped: first {}:{service="cart"}: 1 firing, 0 resolved
        2026-11-20T12:02:11.500Z  -> told   grouped: resolved {}:{service="cart"}: 0 firing, 1 resolved
        2026-11-20T12:02:21.500Z  -> told   grouped: resolved {}:{service="db"}: 0 firing, 1 resolved
        2026-11-20T12:05:01.500Z  -> told   grouped: first {}:{service="cart"}: 1 firing, 0 resolved
        receiver grouped  5 notifications
        exit status 0
    "#]],
        ),
        (
            " --until 2026-11-20T12:30:00Z",
            expect![[r#"
        2026-11-20T12:00:51.500Z  -> told   grouped: first {}:{service="db"}: 1 firing, 0 resolved
        2026-11-20T12:01:11.500Z  -> told   grouped: first {}:{service="cart"}: 1 firing, 0 resolved
        2026-11-20T12:02:11.500Z  -> told   grouped: resolved {}:{service="cart"}: 0 firing, 1 resolved
        2026-11-20T12:02:21.500Z  -> told   grouped: resolved {}:{service="db"}: 0 firing, 1 resolved
        2026-11-20T12:05:11.500Z  -> told   grouped: first {}:{service="cart"}: 1 firing, 0 resolved
        2026-11-20T12:10:11.500Z  -> told   grouped: resolved {}:{service="cart"}: 0 firing, 1 resolved
        receiver grouped  6 notifications
        exit status 0
    "#]],
        ),
    ] {
        let (status, told) = said(folder.path(), &format!("replay rules.toml --from app.log{arguments}"));
        let lines = told.lines().filter(|line| line.contains("grouped")).map(|line| format!("{line}\n"));
        expected.assert_eq(&format!("{}exit status {status}\n", lines.collect::<String>()));
    }
}

#[test]
fn what_comes_late_is_told_beside_what_was_decided() {
    let lines = "
        12:00:05 ERROR cart
        12:01:10 INFO cart
        12:02:10 ERROR search
        12:02:20 INFO cart
        12:03:05 INFO cart
        12:00:30 ERROR cart
        12:02:40 INFO search
        12:02:50 ERROR search
    ";
    let folder = folder("2", &[("app.log", log(lines).as_bytes())]);
    told_anew(folder.path());
    check(
        folder.path(),
        "replay rules.toml --from app.log",
        expect![[r#"
            2026-11-20T12:01:00Z  amended   many_errors {service="cart", severity="critical"}  what came late says that the condition held
            2026-11-20T12:03:00Z  firing    many_errors {service="search", severity="critical"}  2 errors of search
            2026-11-20T12:03:05Z  -> told   mail: [FIRING] many_errors: 2 errors of search

            records           8 read, 0 undecodable, 0 late
            span              2026-11-20T12:00:05Z to 2026-11-20T12:03:05Z, 3m
            rule disk_full    fired 0, resolved 0
            rule many_errors  fired 1, resolved 0, longest 5s, firing at the end 1, amended 1
            receiver mail     1 notification
            exit status 0
        "#]],
    );
}

/// Has the rules look at windows that are told at their end and again when a late record changes them.
fn told_anew(folder: &Path) {
    let rules = fs::read_to_string(folder.join("rules.toml")).unwrap();
    let windows = "tumbling = \"1m\"\nlateness = \"5m\"\nemit = \"update\"";
    fs::write(folder.join("rules.toml"), rules.replace("tumbling = \"1m\"", windows)).unwrap();
}

#[test]
fn blocks_and_threads_do_not_show() {
    let (_, parts) = rotated();
    let rules = fs::read_to_string(parts.path().join("rules.toml")).unwrap();
    fs::write(parts.path().join("rules.toml"), format!("{rules}{GROUPS}")).unwrap();
    told_anew(parts.path());
    let all =
        |more: &str| said(parts.path(), &format!("replay rules.toml --from app.log* jobs/*.log --format json {more}"));
    let expected = all("");
    assert_eq!(expected.0, 0);
    let mut random = Random(11);
    for (threads, most) in [(1, 1), (5, 60), (2, 300), (1, 5000), (4, 100_000), (3, 1 << 22)] {
        let block_bytes = 1 + random.below(most);
        let told = all(&format!("--threads {threads} --block-bytes {block_bytes}"));
        assert!(told == expected, "{threads} threads, blocks of {block_bytes} bytes:\n{}", told.1);
    }
}

#[test]
fn records_that_come_late_are_counted_and_those_without_a_time_count_with_the_one_before() {
    let lines = "
        12:00:05 ERROR cart
        {\"level\":\"ERROR\",\"service\":\"cart\"}
        12:01:10 INFO cart
        12:00:30 ERROR cart
        12:02:10 INFO cart
    ";
    let folder = folder("2", &[("app.log", log(lines).as_bytes())]);
    check(
        folder.path(),
        "replay rules.toml --from app.log",
        expect![[r#"
        2026-11-20T12:01:00Z  firing    many_errors {service="cart", severity="critical"}  2 errors of cart
        2026-11-20T12:01:10Z  -> told   mail: [FIRING] many_errors: 2 errors of cart
        2026-11-20T12:02:00Z  resolved  many_errors {service="cart", severity="critical"}  2 errors of cart
        2026-11-20T12:02:10Z  -> told   mail: [RESOLVED] many_errors: 2 errors of cart

        records           5 read, 0 undecodable, 1 late
        span              2026-11-20T12:00:05Z to 2026-11-20T12:02:10Z, 2m5s
        rule disk_full    fired 0, resolved 0
        rule many_errors  fired 1, resolved 1, longest 1m
        receiver mail     2 notifications
        exit status 0
    "#]],
    );
}

#[test]
fn it_must_be_clear_whose_a_log_is() {
    let burst = log(BURST);
    let logs =
        [("app.log", burst.as_bytes()), ("other.log", burst.as_bytes()), ("empty.log", b""), ("words", b"a\nb\n")];
    let folder = folder("2", &logs);
    for (from, expected) in [
        (
            "other.log",
            expect![[r#"
            error: which source is FOLDER/other.log of? write SOURCE=FOLDER/other.log; the sources are: app, jobs
            exit status 1
        "#]],
        ),
        (
            "missing*.log",
            expect![[r#"
            error: there is no file missing*.log
            exit status 1
        "#]],
        ),
        (
            "web=app.log",
            expect![[r#"
            error: there is no source `web`; the sources are: app, jobs
            exit status 1
        "#]],
        ),
        (
            "app=words",
            expect![[r#"
            error: no record of FOLDER/words has a time that the source `app` can read; is it a log of this source?
            exit status 1
        "#]],
        ),
        (
            "app=empty.log",
            expect![[r#"
            records    0 read, 0 undecodable, 0 late
            receivers  nobody is told anything
            exit status 0
        "#]],
        ),
    ] {
        check(folder.path(), &format!("replay rules.toml --from {from}"), expected);
    }
    let (status, told) = said(folder.path(), "replay rules.toml --from app=other.log");
    assert_eq!((status, told), said(folder.path(), "replay rules.toml --from app.log"));
    let timed = fs::read_to_string(folder.path().join("rules.toml")).unwrap();
    fs::write(folder.path().join("rules.toml"), timed.replace("timestamp = { field = \".ts\" }", "")).unwrap();
    check(
        folder.path(),
        "replay rules.toml --from app.log",
        expect![[r#"
        error: the source `app` has no event time: its records count as having happened when they arrive, which a replay does not know; give it a `timestamp`
        exit status 1
    "#]],
    );
}

#[test]
fn a_log_that_is_cut_off_in_the_middle_of_its_packing_is_told() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(log(&BURST.repeat(500)).as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let folder = folder("2", &[("app.log.1.gz", &gzip[..gzip.len() / 2])]);
    let (status, told) = said(folder.path(), "replay rules.toml --from app.log.1.gz");
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("reading FOLDER/app.log.1.gz: "), "{told}");
}

#[test]
fn a_diff_tells_what_a_change_would_have_changed() {
    let folder = folder("2", &[("app.log", log(BURST).as_bytes())]);
    let rules = fs::read_to_string(folder.path().join("rules.toml")).unwrap();
    let tamed =
        rules.replace(".errors >= 2", ".errors >= 1").replace("resolve_after = \"90s\"", "resolve_after = \"2m\"");
    fs::write(folder.path().join("tamed.toml"), tamed).unwrap();
    check(
        folder.path(),
        "diff rules.toml tamed.toml --from app.log",
        expect![[r#"
        ~ disk_full {service="db"}  2026-11-20T12:00:40Z to 2026-11-20T12:02:10Z -> 2026-11-20T12:00:40Z to 2026-11-20T12:02:40Z
        + many_errors {service="search", severity="critical"}  2026-11-20T12:05:00Z to the end

        alerts: 1 gained, 0 lost, 1 changed, 2 the same
        chat: 3 -> 3, 1 of them not as before
        mail: 6 -> 7, 2 of them not as before
        exit status 1
    "#]],
    );
    check(
        folder.path(),
        "diff tamed.toml rules.toml --from app.log --format json",
        expect![[r#"
        {"change":"changed","kind":"alert","labels":{"service":"db"},"new":{"ends_at":"2026-11-20T12:02:10Z","starts_at":"2026-11-20T12:00:40Z"},"old":{"ends_at":"2026-11-20T12:02:40Z","starts_at":"2026-11-20T12:00:40Z"},"rule":"disk_full"}
        {"change":"lost","kind":"alert","labels":{"service":"search","severity":"critical"},"new":null,"old":{"ends_at":null,"starts_at":"2026-11-20T12:05:00Z"},"rule":"many_errors"}
        {"kind":"receiver","new":3,"not_as_before":1,"old":3,"receiver":"chat"}
        {"kind":"receiver","new":6,"not_as_before":1,"old":7,"receiver":"mail"}
        {"is_same":false,"kind":"summary","same_alerts":2}
        exit status 1
    "#]],
    );
    check(
        folder.path(),
        "diff rules.toml rules.toml --from app.log",
        expect![[r#"
        alerts: 0 gained, 0 lost, 0 changed, 3 the same
        chat: 3 -> 3
        mail: 6 -> 6
        exit status 0
    "#]],
    );
    // Of several files each.
    let (base, rest) = rules.split_at(rules.find("[operators.many_errors]").unwrap());
    fs::write(folder.path().join("base.toml"), base).unwrap();
    fs::write(folder.path().join("rest.toml"), rest).unwrap();
    let told = said(folder.path(), "diff --old base.toml rest.toml --new tamed.toml --from app.log");
    assert_eq!(told, said(folder.path(), "diff rules.toml tamed.toml --from app.log"));
}

#[test]
fn a_diff_in_trouble_is_told_apart_from_a_difference() {
    let folder = folder("2", &[("app.log", log(BURST).as_bytes())]);
    fs::write(folder.path().join("wrong.toml"), "[sources.app]\n").unwrap();
    for arguments in [
        "diff rules.toml wrong.toml --from app.log",
        "diff rules.toml rules.toml --from missing.log",
        "diff rules.toml --from app.log",
        "diff rules.toml rules.toml",
        "diff --old rules.toml --from app.log",
    ] {
        let (status, told) = said(folder.path(), arguments);
        assert_eq!(status, 2, "{arguments}: {told}");
    }
}

#[test]
fn the_example_cries_wolf_until_it_is_tamed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let log = "--from examples/oncall/access.log.gz";
    let (status, told) = said(root, &format!("diff examples/oncall/pipeline.toml examples/oncall/tamed.toml {log}"));
    let end: Vec<_> = told.lines().rev().take(2).collect();
    assert_eq!((status, end[1]), (1, "alerts: 0 gained, 46 lost, 1 changed, 0 the same"), "{told}");
    assert!(end[0].starts_with("pager: 93 -> 2"), "{told}");
    let (status, told) = said(root, "test examples/oncall/tamed.toml");
    assert_eq!(status, 0, "{told}");
}

#[test]
fn a_topic_is_replayed_from_the_offsets_of_a_time_and_its_group_is_not_touched() {
    use support::kafka::{Cluster, Record, is_missing};

    let name = "a_topic_is_replayed_from_the_offsets_of_a_time_and_its_group_is_not_touched";
    if is_missing(name) {
        return;
    }
    let cluster = Cluster::shared();
    cluster.create_topic("replayed", 2);
    let lines = log(BURST);
    let (even, odd): (Vec<_>, Vec<_>) = lines.lines().enumerate().partition(|(number, _)| number % 2 == 0);
    for (partition, lines) in [(0, even), (1, odd)] {
        let tombstone = Record::new(Some("k"), None);
        let records = lines.into_iter().map(|(_, line)| Record::from(line));
        cluster.produce("replayed", partition, records.chain([tombstone]));
    }
    let topic = format!(
        "[sources.app]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopics = [\"replayed\"]\ngroup = \"replayed\"\n",
        cluster.bootstrap()
    );
    let folder = folder("2", &[("app.log", lines.as_bytes())]);
    let rules = fs::read_to_string(folder.path().join("rules.toml")).unwrap();
    let from_topic = rules.replace("[sources.app]\ntype = \"file\"\npaths = [\"app.log*\"]\n", &topic);
    assert_ne!(from_topic, rules);
    fs::write(folder.path().join("topic.toml"), from_topic).unwrap();
    let from_file = said(folder.path(), "replay rules.toml --from app.log");
    assert_eq!(said(folder.path(), "replay topic.toml --from app=kafka:"), from_file);
    assert_eq!(said(folder.path(), "replay topic.toml --from app=kafka:2026-11-20T12:00:00Z").0, 0);
    // What the brokers have is older than this, or younger.
    let (status, told) = said(folder.path(), "replay topic.toml --from app=kafka:2200-01-01");
    assert!(status == 0 && told.starts_with("records    0 read"), "{told}");
    let (status, told) = said(folder.path(), "replay topic.toml --from app=kafka:2000-01-01");
    assert_eq!((status, told), from_file);
    assert_eq!(cluster.committed_offset("replayed", "replayed", 0), None, "nothing was told to the brokers");
    let (status, told) = said(folder.path(), "replay rules.toml --from app=kafka:");
    assert_eq!((status, &*told), (1, "error: the source `app` is of type `file`: nobody keeps what it has read\n"));
}
