//! Lints: the examples of their pages have what they find, the remedies have not, and what is near to it is left alone.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use expect_test::{Expect, expect, expect_file};
use tocsin_config::component::Catalog;
use tocsin_config::lints::{Allowance, LINTS};
use tocsin_config::{Environment, Report, SourceFile};
use tocsin_pipeline::time::Timestamp;

use support::tocsin;

static CATALOG: Catalog = Catalog {
    sources: tocsin_sources::SOURCES,
    codecs: tocsin_sources::CODECS,
    operators: tocsin_operators::OPERATORS,
    sinks: tocsin_sinks::SINKS,
};

/// It is always the same day, and every file holds the same.
struct Fixed;

impl Environment for Fixed {
    fn variable(&self, _: &str) -> Result<Option<String>, String> {
        Ok(None)
    }

    fn file(&self, _: &Path, _: u64) -> Result<String, String> {
        Ok("0123456789abcdef0123456789abcdef".to_owned())
    }

    fn now(&self) -> Option<Timestamp> {
        Timestamp::parse_rfc3339(b"2026-11-20T12:00:00Z")
    }
}

/// What the lints find in a configuration that is right.
fn findings(text: &str) -> Report {
    let files = [SourceFile { name: "a.toml".to_owned(), text: text.to_owned() }];
    match tocsin_config::check(&files, &Fixed, &CATALOG, &[]) {
        Ok(plan) => plan.findings,
        Err(report) => panic!("{}\n{text}", report.render(false)),
    }
}

/// Those of one lint.
fn findings_of(code: &str, text: &str) -> Report {
    let mut report = findings(text);
    report.problems.retain(|problem| problem.code == Some(code));
    report
}

/// A part of a configuration, with the sources that it names and a sink for what nobody reads.
fn complete(part: &str) -> String {
    let table: toml::Table = part.parse().unwrap_or_else(|error| panic!("{error}\n{part}"));
    let (mut named, mut components) = (BTreeSet::new(), BTreeSet::new());
    for kind in ["sources", "operators", "sinks"] {
        for (name, component) in table.get(kind).and_then(toml::Value::as_table).into_iter().flatten() {
            components.insert((kind, name.as_str()));
            let inputs = component.get("inputs").and_then(toml::Value::as_array).into_iter().flatten();
            named.extend(inputs.filter_map(toml::Value::as_str).map(|input| input.split('.').next().unwrap()));
        }
    }
    if components.is_empty() {
        named.insert("app");
    }
    let mut whole = part.to_owned();
    let mut unread: Vec<_> = components
        .iter()
        .filter(|(kind, name)| *kind != "sinks" && !named.contains(name))
        .map(|(_, name)| *name)
        .collect();
    for source in named.iter().filter(|name| !components.iter().any(|(_, known)| known == *name)) {
        write!(whole, "\n[sources.{source}]\ntype = \"stdin\"\ncodec = \"json\"\n").unwrap();
    }
    if components.is_empty() {
        unread.push("app");
    }
    if !unread.is_empty() {
        write!(whole, "\n[sinks.kept]\ntype = \"file\"\ninputs = {unread:?}\npath = \"kept.ndjson\"\n").unwrap();
    }
    whole
}

/// The examples of a page: one that has what it is about, and one that has not.
fn examples(page: &str) -> [String; 2] {
    let blocks: Vec<_> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    [complete(blocks[0]), complete(blocks[1])]
}

#[test]
fn codes_and_names_are_told_apart_and_codes_rise() {
    assert!(LINTS.len() >= 25, "{}", LINTS.len());
    assert!(LINTS.windows(2).all(|two| two[0].code < two[1].code), "each code is there once, and they rise");
    let names: BTreeSet<_> = LINTS.iter().map(|lint| lint.name).collect();
    assert_eq!(names.len(), LINTS.len());
    for lint in LINTS {
        assert!(lint.name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'), "{}", lint.name);
        assert!(lint.page.contains("**When it is fine.**"), "{}", lint.code);
    }
}

#[test]
fn the_first_example_of_a_page_has_it_and_the_remedy_has_not() {
    let mut told = String::new();
    for lint in LINTS {
        let [has, has_not] = examples(lint.page);
        let found = findings_of(lint.code, &has);
        assert!(!found.problems.is_empty(), "{} finds nothing in its example\n{has}", lint.code);
        writeln!(told, "# {} {}\n{}", lint.code, lint.name, found.render(false)).unwrap();
        let found = findings_of(lint.code, &has_not);
        assert!(
            found.problems.is_empty(),
            "{} finds something in its remedy\n{}\n{has_not}",
            lint.code,
            found.render(false)
        );
    }
    expect_file!["checks.txt"].assert_eq(&told);
}

/// What a lint finds in a part of a configuration; nothing if it is near to it and not it.
#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(code: &str, part: &str, expected: Expect) {
    let report = findings_of(code, &complete(part));
    let lines: String = report.problems.iter().map(|problem| problem.line() + "\n").collect();
    expected.assert_eq(&lines);
}

/// A rule over windows of `app`, with further options.
fn rule(aggregate: &str, options: &str) -> String {
    format!(
        "[operators.w]\ntype = \"window\"\ninputs = [\"app\"]\nhopping = {{ size = \"5m\", every = \"1m\" }}\ngroup_by = [\".host\"]\n\
         aggregates = {{ n = \"{aggregate}\" }}\n\n[operators.busy]\ntype = \"filter\"\ninputs = [\"w\"]\ncondition = \".host != \\\"test\\\"\"\n\n\
         [operators.rule]\ntype = \"alert\"\ninputs = [\"busy\"]\n{options}\n"
    )
}

#[test]
fn values_of_windows_are_known_through_a_filter_and_no_further() {
    check(
        "T001",
        &rule("count()", "condition = '.n == \"5\"'"),
        expect![[r#"
        a.toml:16:13: no record fulfils this condition, so that `rule` never fires
    "#]],
    );
    check("T001", &rule("first(.n)", "condition = '.n == \"5\"'"), expect![[""]]);
    check(
        "T001",
        &rule("distinct(.user)", "condition = '.n < 0'"),
        expect![[r#"
        a.toml:16:13: no record fulfils this condition, so that `rule` never fires
    "#]],
    );
    check("T001", &rule("sum(.n)", "condition = '.n < 0'"), expect![[""]]);
    let remap = rule("count()", "condition = '.n < 0'").replace("type = \"filter\"", "type = \"remap\"");
    check("T001", &remap.replace("condition = \".host != \\\"test\\\"\"", "program = \".n = 5\""), expect![[""]]);
    check("T003", &rule("count(.status >= 500)", "condition = '.n == 0'"), expect![[""]]);
    check("T003", &rule("count()", "condition = '.n == 0 || .host == \"a\"'"), expect![[""]]);
    check("T002", &rule("mean(.n)", "condition = '.n >= 0 || .n < 0'"), expect![[""]]);
    check(
        "T002",
        &rule("rate()", "condition = '.n >= 0 || .n < 0'"),
        expect![[r#"
        a.toml:16:13: every window fulfils this condition, so that `rule` fires for each key and no window resolves it
    "#]],
    );
    check("T002", "[operators.r]\ntype = \"alert\"\ninputs = [\"app\"]\ncondition = \"true\"\n", expect![[""]]);
}

#[test]
fn times_of_a_rule_are_held_against_how_far_windows_are_apart() {
    check("T004", &rule("count()", "condition = '.n > 5'\nfor = \"1m\""), expect![[""]]);
    check(
        "T004",
        &rule("count()", "condition = '.n > 5'\nfor = \"59s\""),
        expect![[r#"
        a.toml:17:7: there is a window each 1m, so that `for = "59s"` waits for the next one as `for = "1m"` does
    "#]],
    );
    check("T005", &rule("count()", "condition = '.n > 5'\nresolve_after = \"1m\""), expect![[""]]);
    check(
        "T005",
        &rule("count()", "condition = '.n > 5'\nfor = \"2m\"\nresolve_after = \"59s\""),
        expect![[r#"
        a.toml:18:17: there is a window each 1m, and after 59s without one an alert is given up before the next window comes, and with `for` it never fires
    "#]],
    );
    let plain = "[operators.r]\ntype = \"alert\"\ninputs = [\"app\"]\ncondition = \".n > 5\"\nfor = \"1s\"\nresolve_after = \"1s\"\n";
    check("T004", plain, expect![[""]]);
    check("T005", plain, expect![[""]]);
}

#[test]
fn levels_that_rise_are_left_alone() {
    let levels = |first: &str, second: &str| {
        let level = |name, text: &str| format!("{{ severity = \"{name}\", {text} }}");
        rule("count()", &format!("levels = [\n{},\n{},\n]", level("a", first), level("b", second)))
    };
    check(
        "T013",
        &levels("condition = '.n > 9'", "condition = '.n > 5'"),
        expect![[r#"
            a.toml:17:31: an alert is never on this level: wherever this holds, a level above it does
        "#]],
    );
    // It is told until the one above has held for as long.
    check("T013", &levels("condition = '.n > 9'", "condition = '.n > 5', for = \"5m\""), expect![[""]]);
    check("T013", &levels("condition = '.n > 9'", "condition = '.host == \"a\"'"), expect![[""]]);
}

#[test]
fn labels_and_keys_that_have_few_values_are_left_alone() {
    let plain = |options: &str| {
        format!("[operators.r]\ntype = \"alert\"\ninputs = [\"app\"]\ncondition = \".n > 5\"\n{options}\n")
    };
    check(
        "T006",
        &plain("group_by = [\".host\", \".request_id\"]"),
        expect![[r#"
        a.toml:5:22: `request_id` differs from record to record, so that each makes an alert of its own
    "#]],
    );
    check("T006", &plain("group_by = [\".message_type\"]\nannotations = { what = \"{{ message }}\" }"), expect![[""]]);
    check("T006", &plain("labels = { message = \"fixed\" }"), expect![[""]]);
    let keyed = plain("group_by = [\".host\"]\nlabels = { what = \"{{ msg }}\" }");
    check("T006", &keyed, expect![[""]]);
    check(
        "T007",
        &keyed,
        expect![[r#"
        a.toml:6:19: `msg` is another one each time: the label says what it was when the alert began, and silences and routes cannot go by it
    "#]],
    );
    check("T007", &rule("count()", "condition = '.n > 5'\nlabels = { host = \"{{ host }}\" }"), expect![[""]]);
    check(
        "T007",
        &rule("count()", "condition = '.n > 5'\nlabels = { at = \"{{ window_end }}\" }"),
        expect![[r#"
        a.toml:17:17: `window_end` is another one each time: the label says what it was when the alert began, and silences and routes cannot go by it
    "#]],
    );
}

/// Two rules that `notify` reads, and further options of it.
fn notify(options: &str) -> String {
    format!(
        "[operators.down]\ntype = \"alert\"\ninputs = [\"app\"]\ncondition = \".n > 5\"\ngroup_by = [\".host\"]\n\
         labels = {{ severity = \"critical\", team = \"{{{{ team }}}}\" }}\n\n\
         [operators.slow]\ntype = \"alert\"\ninputs = [\"app\"]\ncondition = \".n > 3\"\ngroup_by = [\".host\"]\n\
         labels = {{ severity = \"warning\" }}\n\n\
         [operators.oncall]\ntype = \"notify\"\ninputs = [\"down\", \"slow\"]\n{options}\n"
    )
}

#[test]
fn routes_are_unreachable_only_behind_what_takes_all_of_theirs() {
    let routes = |first: &str, second: &str| notify(&format!("routes = [\n  {{ {first} }},\n  {{ {second} }},\n]"));
    check(
        "T020",
        &routes("receiver = \"a\"", "matchers = ['team=\"x\"'], receiver = \"b\""),
        expect![[r#"
        a.toml:20:16: no alert gets here: a route before it takes all that this one is for
    "#]],
    );
    check(
        "T020",
        &routes("receiver = \"a\", continue = true", "matchers = ['team=\"x\"'], receiver = \"b\""),
        expect![[""]],
    );
    check(
        "T020",
        &routes("matchers = ['team=~\"x|y\"']", "matchers = ['team=~\"y|z\"'], receiver = \"b\""),
        expect![[""]],
    );
    check(
        "T020",
        &routes("matchers = ['team=~\"x.*\"']", "matchers = ['team=\"xy\"', 'host=\"a\"']"),
        expect![[r#"
        a.toml:20:16: no alert gets here: a route before it takes all that this one is for
    "#]],
    );
    check(
        "T021",
        &routes("matchers = ['team=\"x\"'], routes = [{ matchers = ['team=\"y\"'] }]", "receiver = \"b\""),
        expect![[r#"
        a.toml:19:53: no alert is both: what is asked of `team` excludes itself
    "#]],
    );
}

#[test]
fn what_no_rule_makes_is_known_only_where_all_alerts_come_from_rules() {
    let route = "routes = [{ matchers = ['alertname=\"elsewhere\"'] }]";
    check(
        "T022",
        &notify(route),
        expect![[r#"
        a.toml:18:24: no rule makes alerts that take this route
    "#]],
    );
    let others =
        notify(route).replace("\"slow\"]", "\"slow\", \"prometheus\"]") + "\n[sources.prometheus]\ntype = \"alerts\"\n";
    check("T022", &others, expect![[""]]);
    check(
        "T022",
        &notify("routes = [{ matchers = ['team=\"x\"'] }, { matchers = ['alertname=~\"down|gone\"'] }]"),
        expect![[""]],
    );
    check(
        "T022",
        &notify("routes = [{ matchers = ['team=\"x\"', 'severity=\"warning\"'] }]"),
        expect![[r#"
        a.toml:18:24: no rule makes alerts that take this route
    "#]],
    );
    check("T039", &notify("group_by = [\"...\"]"), expect![[""]]);
    check(
        "T026",
        &notify("inhibit = [{ source = ['severity=\"critical\"'], target = ['severity=\"info\"'] }]"),
        expect![[r#"
        a.toml:18:57: no rule makes alerts that are a target of this, so that it keeps nothing silent
    "#]],
    );
}

#[test]
fn receivers_that_somebody_reads_and_that_nobody_names_are_told_apart() {
    let many = "critical = ['severity=\"critical\"']\nreceivers = { a = { budget = { max = 2, per = \"1h\" } } }\nrepeat_interval = \"10m\"\n";
    check(
        "T037",
        &notify(&format!("{many}routes = [{{ matchers = ['severity=\"critical\"'], receiver = \"a\" }}]")),
        expect![[""]],
    );
    check(
        "T037",
        &notify(&format!("{many}routes = [{{ matchers = ['team=\"x\"'], receiver = \"a\" }}]")),
        expect![[r#"
        a.toml:19:30: one alert that lasts is repeated 6 times in 1h, and the budget has 1 for single notifications
    "#]],
    );
    check(
        "T023",
        &notify("routes = [{ receiver = \"a\" }]\n[sinks.out]\ntype = \"file\"\ninputs = [\"oncall.a\"]\npath = \"x\""),
        expect![[""]],
    );
    let read = "[sinks.out]\ntype = \"file\"\ninputs = [\"oncall.a\"]\npath = \"x\"";
    check(
        "T023",
        &notify(&format!("routes = [{{ matchers = ['team=\"x\"'], receiver = \"a\" }}]\n{read}")),
        expect![[r#"
        a.toml:15:1: nobody is told: no sink reads `oncall`, where notifications for `default` leave
    "#]],
    );
    check(
        "T023",
        &notify(&format!("receiver = \"a\"\nescalate = [{{ after = \"1m\", receiver = \"b\" }}]\n{read}")),
        expect![[r#"
        a.toml:19:40: nobody is told: no sink reads `oncall.b`, where notifications for `b` leave
    "#]],
    );
}

#[test]
fn silences_of_all_rules_by_name_are_silences_of_everything() {
    let silence = |matchers: &str| {
        notify("")
            + &format!(
                "[[silences]]\nmatchers = [{matchers}]\nowner = \"ana\"\nreason = \"r\"\nends_at = \"2026-12-01T00:00:00Z\"\n"
            )
    };
    check(
        "T040",
        &silence("'alertname=~\"down|slow\"'"),
        expect![[r#"
        a.toml:20:12: this silence is for every alert: while it lasts nobody is told of anything
    "#]],
    );
    check("T040", &silence("'alertname=~\"down|slow\"', 'host=\"a\"'"), expect![[""]]);
    check("T042", &silence("'host=\"a\"'"), expect![[""]]);
    check("T041", &silence("'host=\"a\"'"), expect![[""]]);
}

#[test]
fn people_are_told_of_few_records() {
    let mail = |inputs: &str| {
        format!(
            "[sinks.mail]\ntype = \"email\"\ninputs = [{inputs}]\nsmtp = \"smtps://mail.example.org\"\nfrom = \"a@example.org\"\n\
             to = [\"b@example.org\"]\n"
        )
    };
    let found = || {
        expect![[r#"
            a.toml:3:10: each record of `app` is told by itself: nothing on the way here makes few of many
        "#]]
    };
    check("T050", &mail("\"app.rejected\""), found());
    let few = "[operators.few]\ntype = \"throttle\"\ninputs = [\"app\"]\nevents = 3\nper = \"1h\"\n";
    check("T050", &(mail("\"few\"") + few), expect![[""]]);
    check("T050", &(mail("\"few\", \"few.throttled\"") + few), found());
    let fallback = mail("\"few\"") + few + &mail("\"mail.failed\"").replace("sinks.mail", "sinks.other");
    check("T050", &fallback, expect![[""]]);
}

#[test]
fn secrets_are_told_by_what_they_are_for() {
    let hook = |options: &str| format!("[sinks.hook]\ntype = \"webhook\"\ninputs = [\"app\"]\n{options}\n");
    check("T054", &hook("url = \"https://example.org/hook\"\nheaders = { accept = \"text/plain\" }"), expect![[""]]);
    check(
        "T054",
        &hook("url = \"https://example.org/hook\"\nheaders = { Authorization = \"Bearer x\" }"),
        expect![[r#"
        a.toml:5:29: `headers.Authorization` is a secret, and stands in the configuration for everybody to read
    "#]],
    );
    // What is empty, or comes from a file whatever that is called, gives nothing away.
    let others =
        "secret = \"${file:a:-b}\"\nheaders = { Authorization = \"${NONE:-}\", accept = \"${NONE:-text/plain}\" }";
    check("T061", &hook(&format!("url = \"${{NONE:-https://example.org/hook}}\"\n{others}")), expect![[""]]);
    check(
        "T061",
        &hook("url = \"https://example.org/hook\"\nheaders = { Authorization = \"Bearer ${NONE:-x}\" }"),
        expect![[r#"
            a.toml:5:29: where its variable is not set, `headers.Authorization` is a secret that everybody can read here
        "#]],
    );
    let link = "[operators.oncall]\ntype = \"notify\"\ninputs = [\"app\"]\n\
                acknowledge = { url = \"https://example.org\", key = \"${NONE:-0123456789abcdef}\" }\n";
    check(
        "T061",
        link,
        expect![[r#"
        a.toml:4:52: where its variable is not set, `acknowledge.key` is a secret that everybody can read here
    "#]],
    );
    check("T061", &link.replace("0123456789abcdef", ""), expect![[""]]);
    let report = findings(&complete(&hook("url = \"https://example.org/hook\"\nsecret = \"swordfish\"")));
    assert!(!report.render(false).contains("swordfish"), "{}", report.render(false));
}

#[test]
fn amendments_are_read_by_those_who_can_tell_them() {
    let rule = "[sources.app]\ntype = \"stdin\"\ncodec = \"json\"\ntimestamp = { field = \".ts\" }\n\n[operators.failing]\n\
                type = \"alert\"\ninputs = [\"app\"]\ncondition = \".status >= 500\"\n";
    let reader =
        |kind: &str, options: &str| format!("\n[{kind}.x]\ninputs = [\"failing\", \"failing.amended\"]\n{options}\n");
    let told = |part: &str| {
        let files = [SourceFile { name: "a.toml".to_owned(), text: format!("{rule}{part}") }];
        tocsin_config::check(&files, &Fixed, &CATALOG, &[]).err().map_or(String::new(), |report| report.render(false))
    };
    let out = "[sinks.out]\ntype = \"console\"\ninputs = [\"x\"]\n";
    expect![[r#"
        a.toml:12:22: error: `notify` does not take amendments, which is what `failing.amended` hands on
        12 | inputs = ["failing", "failing.amended"]
           |                      ^^^^^^^^^^^^^^^^^
        help: an amendment says that something was decided wrongly, and is neither a beginning nor an end: read `failing.amended` with a sink for a chat, a mail or a file

        1 problem
    "#]].assert_eq(&told(&(reader("operators", "type = \"notify\"") + out)));
    let pagers = [
        "type = \"pagerduty\"\nrouting_key = \"k\"",
        "type = \"opsgenie\"\napi_key = \"k\"",
        "type = \"alertmanager\"\nurls = [\"https://am.example.org\"]",
    ];
    for pager in pagers {
        let said = told(&reader("sinks", pager));
        assert!(said.contains("does not take amendments"), "{said}");
    }
    assert_eq!(told(&reader("sinks", "type = \"slack\"\nurl = \"https://hooks.slack.com/services/x\"")), "");
    // An output of that name of anything else holds what it likes.
    let route = "\n[operators.split]\ntype = \"route\"\ninputs = [\"failing\"]\nroutes.amended = \".state == \\\"firing\\\"\"\n\n\
                 [operators.x]\ntype = \"notify\"\ninputs = [\"split.amended\", \"split.other\"]\n";
    assert_eq!(told(&format!("{route}{out}")), "");
}

#[test]
fn findings_are_warnings_that_can_be_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let text = "[daemon]\nadmin = \"0.0.0.0:9477\"\n\n[sources.app]\ntype = \"stdin\"\n\n[sinks.out]\ntype = \"console\"\ninputs = [\"app\"]\n";
    fs::write(&path, text).unwrap();
    let check = |arguments: &[&str]| {
        let output = tocsin(&["check", "a.toml"]).args(arguments).current_dir(folder.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        format!("{:?}\n{}", output.status.code(), String::from_utf8(said).unwrap())
    };
    expect![[r#"
        Some(1)
        a.toml:2:9: warning[T057]: whoever reaches 0.0.0.0:9477 can silence alerts and reload: nobody is asked who he is
        2 | admin = "0.0.0.0:9477"
          |         ^^^^^^^^^^^^^^
        help: write "127.0.0.1:PORT", and put something before it that asks

        1 finding; `tocsin help T057` tells more, and how to allow what is meant
    "#]]
    .assert_eq(&check(&[]));
    expect![[r#"
        Some(1)
        {"file":"a.toml","line":2,"column":9,"level":"warning","code":"T057","component":"daemon","message":"whoever reaches 0.0.0.0:9477 can silence alerts and reload: nobody is asked who he is","help":"write \"127.0.0.1:PORT\", and put something before it that asks"}
    "#]]
    .assert_eq(&check(&["--format", "json"]));
    let fine = "Some(0)\nfine: 1 sources, 0 operators, 1 sinks, 0 tests\n";
    assert_eq!(check(&["--allow", "T057"]), fine);
    assert_eq!(check(&["--allow", "T057:daemon"]), fine);
    assert!(check(&["--allow", "T057:app"]).starts_with("Some(1)"));
    assert_eq!(check(&["--set", "daemon.allow=[\"T057\"]"]), fine);
    assert!(check(&["--allow", "T999"]).starts_with("Some(2)"), "{}", check(&["--allow", "T999"]));
    expect![[r#"
        Some(1)
        --set:1:15: error: there is no check `T0577`
        1 | daemon.allow=["T0577","T001:ap"]
          |               ^^^^^^^
        help: did you mean `T057`?

        --set:1:23: error: there is no component `ap`
        1 | daemon.allow=["T0577","T001:ap"]
          |                       ^^^^^^^^^
        help: did you mean `app`?

        2 problems
    "#]]
    .assert_eq(&check(&["--set", "daemon.allow=[\"T0577\",\"T001:ap\"]"]));
    // It runs all the same, and says so.
    let set = ["--set", "daemon.admin=127.0.0.1:0", "--set", "daemon.allow=[\"T057\"]"];
    let mut run = tocsin(&["run", "--once", "a.toml"]);
    let run = run.args(set).env("TOCSIN_LOG", "warn").current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success() && said.contains("\"code\":\"T060\""), "{said}");
}

#[test]
fn allowances_are_read_by_code_and_component() {
    assert!(Allowance::parse("T001").is_ok() && Allowance::parse("t001:x").is_ok());
    assert_eq!(Allowance::parse("T01").unwrap_err().1, "did you mean `T001`?");
    assert_eq!(Allowance::parse("").unwrap_err().0, "there is no check ``");
}

#[test]
fn examples_and_stories_are_free_of_findings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for folder in ["examples", "tests/cases"] {
        for case in fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            let files = fs::read_dir(&case).unwrap().map(|entry| entry.unwrap().path());
            let is_wrong = case.join("expected.err").exists();
            for file in files.filter(|file| !is_wrong && file.extension().is_some_and(|end| end == "toml")) {
                let output = tocsin(&["check"]).arg(&file).env("CASE", "in").env("OUT", "out").output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{}: {said}", file.display());
                count += 1;
            }
        }
    }
    assert!(count > 5, "there are examples and stories");
}
