//! What receivers need of a record, whatever it is: a transition of an alert, an amendment, a notification of several alerts, a
//! digest of what was not told one by one, or a record that is no alert.

mod wording;

use std::collections::BTreeMap;

use tocsin_pipeline::json::write_value;
use vrl::value::{ObjectMap, Value};

pub(crate) use wording::{Config as WordingConfig, Wording, Words, as_it_is, cut};

/// A title is not longer.
const TITLE_MAX: usize = 250;
/// How many alerts of a notification are listed in its text.
const ALERTS_MAX: usize = 10;
/// How many are listed where there is room for more.
const ALERTS_ALL_MAX: usize = 100;
/// How many records of the evidence are.
const EVIDENCE_MAX: usize = 3;
/// A line of the text is not longer.
const LINE_MAX: usize = 500;
/// How many links are told.
const LINKS_MAX: usize = 10;

/// How an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    Firing,
    Resolved,
    /// What came late says that something was decided wrongly: nothing fires, and nothing is over.
    Amended,
    /// The record is no alert, or a digest of many.
    None,
}

/// How bad it is, as the label `severity` says. Without one, or with a word that nobody knows, an alert counts as an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Info,
    Warning,
    Error,
    Critical,
}

impl Severity {
    fn of(word: &str) -> Option<Self> {
        match &*word.to_lowercase() {
            "critical" | "crit" | "fatal" | "emergency" | "emerg" | "alert" | "disaster" | "page" | "p1" => {
                Some(Self::Critical)
            }
            "error" | "err" | "major" | "high" | "p2" => Some(Self::Error),
            "warning" | "warn" | "minor" | "medium" | "average" | "p3" => Some(Self::Warning),
            "info" | "informational" | "information" | "notice" | "low" | "debug" | "none" | "p4" | "p5" => {
                Some(Self::Info)
            }
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// Somewhere to go on reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) text: String,
    pub(crate) url: String,
}

/// What receivers need of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) state: State,
    /// The rule; empty where there is none.
    pub(crate) name: String,
    /// One line that says what is going on.
    pub(crate) title: String,
    /// What the rule says of it in words; empty where it says nothing.
    pub(crate) summary: String,
    /// The rest, line by line.
    pub(crate) lines: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) severity: Severity,
    pub(crate) links: Vec<Link>,
    /// The same for all that is told of one episode of an alert or group, and of nothing else.
    pub(crate) key: String,
    /// RFC 3339; empty where nobody says.
    pub(crate) starts_at: String,
    pub(crate) is_digest: bool,
    /// Somebody tries whether it arrives: `tocsin notify test`.
    is_test: bool,
    /// What a silence that is over kept quiet: a digest that nobody has to do anything about, as what still fires is told by itself.
    pub(crate) is_summary: bool,
}

impl Notice {
    pub(crate) fn of(record: &Value) -> Self {
        let fields = Fields(record.as_object());
        let state = match (&*fields.text("state"), fields.has("alert")) {
            ("pending", true) => State::Pending,
            ("firing", true) => State::Firing,
            ("resolved", true) => State::Resolved,
            ("amended", true) => State::Amended,
            _ => State::None,
        };
        let is_digest = fields.value("digest") == Some(&Value::Boolean(true));
        let mut notice = Self {
            state,
            name: fields.text("alert"),
            title: String::new(),
            summary: match state {
                State::Amended => fields.amendment(),
                _ => Fields(fields.object("annotations")).text("summary"),
            },
            lines: Vec::new(),
            labels: fields.texts("labels"),
            severity: fields.severity(state, is_digest),
            links: fields.links(),
            key: fields.key(record),
            starts_at: fields.text("starts_at"),
            is_digest,
            is_test: fields.value("test") == Some(&Value::Boolean(true)),
            is_summary: is_digest && fields.text("reason") == "summary",
        };
        notice.lines = match (state, is_digest) {
            (State::None, false) => other_lines(&fields),
            // Nothing else tells of what ended while it was quiet.
            (State::None, true) if notice.is_summary => fields.alerts(ALERTS_ALL_MAX),
            (State::None, true) => fields.alerts(ALERTS_MAX),
            (State::Amended, _) => amendment_lines(&fields),
            _ => alert_lines(&fields, &notice.links),
        };
        let title = match (state, is_digest) {
            (State::None, true) => format!("[DIGEST] {}", notice.summary),
            (State::None, false) if fields.has("message") => fields.text("message"),
            (State::None, false) => json_of(record),
            (State::Amended, _) => amendment_title(&fields, &notice),
            _ => alert_title(&fields, &notice),
        };
        notice.title = one_line(&notice.marked(title, as_it_is), TITLE_MAX);
        notice
    }

    /// The summary and the lines.
    pub(crate) fn text(&self) -> String {
        let summary = std::iter::once(&self.summary).filter(|summary| !summary.is_empty() && !self.is_digest);
        summary.chain(&self.lines).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// All that a digest lists, a line each.
    pub(crate) fn all_alerts(record: &Value) -> Vec<String> {
        Fields(record.as_object()).alerts(usize::MAX)
    }

    /// The alerts that a notification is about, a line each; none where it is about one.
    pub(crate) fn alerts(record: &Value) -> Vec<String> {
        let fields = Fields(record.as_object());
        let is_one = fields.list("alerts").len() < 2 && fields.number("more") <= 0;
        if is_one { Vec::new() } else { fields.alerts(ALERTS_ALL_MAX) }
    }

    /// A heading, by a template too, that says of a test that it is one. `escape` makes a text harmless in the receiver's markup.
    pub(crate) fn marked(&self, heading: String, escape: fn(&str) -> String) -> String {
        let mark = escape("[TEST] ");
        if self.is_test && !heading.contains(mark.trim_end()) { mark + &heading } else { heading }
    }

    /// Whether it is none of those that keep alerts open until they are told of the end: they would open what nothing closes.
    pub(crate) fn opens_nothing(&self) -> bool {
        matches!(self.state, State::Pending | State::Amended) || self.is_summary
    }

    /// A colour for it, as `0xRRGGBB`.
    pub(crate) fn colour(&self) -> u32 {
        match (self.state, self.severity) {
            (State::Resolved, _) => 0x2e_7d32,
            (State::Amended, _) => 0x54_6e7a,
            (State::None, _) if !self.is_digest => 0x54_6e7a,
            (_, Severity::Critical) => 0xc6_2828,
            (_, Severity::Error) => 0xe6_5100,
            (_, Severity::Warning) => 0xf9_a825,
            (_, Severity::Info) => 0x15_65c0,
        }
    }
}

/// The fields of an object; none where there is no object.
#[derive(Clone, Copy)]
struct Fields<'a>(Option<&'a ObjectMap>);

impl<'a> Fields<'a> {
    fn value(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name).filter(|value| !value.is_null())
    }

    fn has(self, name: &str) -> bool {
        self.value(name).is_some()
    }

    fn object(self, name: &str) -> Option<&'a ObjectMap> {
        self.value(name)?.as_object()
    }

    fn list(self, name: &str) -> &'a [Value] {
        self.value(name).and_then(Value::as_array).unwrap_or_default()
    }

    /// A field as people write it; empty where it is missing.
    fn text(self, name: &str) -> String {
        self.value(name).map(text_of).unwrap_or_default()
    }

    fn number(self, name: &str) -> i64 {
        self.value(name).and_then(Value::as_integer).unwrap_or_default()
    }

    fn texts(self, name: &str) -> BTreeMap<String, String> {
        let fields = self.object(name).into_iter().flatten();
        fields.map(|(name, value)| (name.to_string(), text_of(value))).collect()
    }

    /// Of several alerts, the worst.
    fn severity(self, state: State, is_digest: bool) -> Severity {
        let own = |fields: Fields<'_>| Severity::of(&Fields(fields.object("labels")).text("severity"));
        let alerts = self.list("alerts").iter().map(|alert| Fields(alert.as_object()));
        let worst = || alerts.filter(|alert| alert.text("state") == "firing").filter_map(own).max();
        let usual = match (state, is_digest) {
            (State::None, false) | (State::Amended, _) => Severity::Info,
            (State::None, true) if self.number("firing") == 0 => Severity::Info,
            _ => Severity::Error,
        };
        own(self).or_else(worst).unwrap_or(usual)
    }

    fn key(self, record: &Value) -> String {
        let [fingerprint, firing, id] = ["fingerprint", "firing_id", "id"].map(|name| self.text(name));
        match (&*fingerprint, &*firing, &*id) {
            ("", _, "") | (_, "", "") => blake3::hash(json_of(record).as_bytes()).to_hex()[..32].to_owned(),
            ("", ..) | (_, "", _) => id,
            _ => format!("{fingerprint}-{firing}"),
        }
    }

    /// Where to acknowledge, and annotations that are URLs.
    fn links(self) -> Vec<Link> {
        let acknowledge = Fields(self.object("acknowledge")).text("url");
        let acknowledge = ("acknowledge".to_owned(), acknowledge);
        let all = std::iter::once(acknowledge).chain(self.texts("annotations"));
        let links = all.filter(|(_, url)| is_url(url)).map(|(text, url)| Link { text, url });
        links.take(LINKS_MAX).collect()
    }

    /// What an amendment says, in a sentence.
    fn amendment(self) -> String {
        let (was, is) = match self.value("is") == Some(&Value::Boolean(true)) {
            true => ("did not", "held"),
            false => ("did", "did not hold"),
        };
        format!(
            "what came late says that the condition {is} at {}, and it was decided that it {was}",
            self.text("time")
        )
    }

    /// The alerts of a notification or a digest, a line each, at most so many.
    fn alerts(self, max: usize) -> Vec<String> {
        let alerts = self.list("alerts");
        let mut lines: Vec<String> = alerts.iter().take(max).map(alert_line).collect();
        let listed = alerts.len().min(max);
        let more = (alerts.len() - listed) as i64 + self.number("more").max(0);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Bytes(text) => String::from_utf8_lossy(text).into_owned(),
        Value::String(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        Value::Null => String::new(),
        value => json_of(value),
    }
}

fn json_of(value: &Value) -> String {
    let mut text = Vec::new();
    write_value(value, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn is_url(text: &str) -> bool {
    let is_web = text.starts_with("https://") || text.starts_with("http://");
    is_web && text.len() <= 2000 && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

fn alert_title(fields: &Fields<'_>, notice: &Notice) -> String {
    let (firing, resolved) = (fields.number("firing"), fields.number("resolved"));
    let mut title = match (notice.state, firing, resolved) {
        (State::Firing, 2.., 0) => format!("[FIRING:{firing}] "),
        (State::Firing, 1.., 1..) => format!("[FIRING:{firing}, RESOLVED:{resolved}] "),
        (State::Resolved, _, 2..) => format!("[RESOLVED:{resolved}] "),
        _ => format!("[{}] ", fields.text("state").to_uppercase()),
    };
    title.push_str(&notice.name);
    // Why it comes is told where one may think that it was told before.
    let reason = fields.text("reason");
    if ["repeat", "escalated", "summary"].contains(&&*reason) {
        title.push_str(&format!(" ({reason})"));
    }
    let labels = fields.texts(if fields.has("group_labels") { "group_labels" } else { "labels" });
    match (notice.summary.is_empty(), labels.is_empty()) {
        (false, _) => title.push_str(&format!(": {}", notice.summary)),
        (true, false) => title.push_str(&format!(": {}", pairs(&labels))),
        (true, true) => {}
    }
    title
}

fn amendment_title(fields: &Fields<'_>, notice: &Notice) -> String {
    let labels: Vec<_> = fields.texts("labels").iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!(" {{{}}}", labels.join(", ")) };
    format!("[AMENDED] {}{labels}", notice.name)
}

/// What an amendment is about, beside its sentence.
fn amendment_lines(fields: &Fields<'_>) -> Vec<String> {
    let labels = pairs(&fields.texts("labels"));
    let values = fields.texts("values").into_iter().map(|(name, value)| format!("{name}: {value}"));
    let amends = fields.has("amends").then(|| format!("amends: {}", fields.text("amends")));
    let lines = std::iter::once(labels).filter(|labels| !labels.is_empty()).chain(values).chain(amends);
    lines.map(|line| one_line(&line, LINE_MAX)).collect()
}

fn alert_lines(fields: &Fields<'_>, links: &[Link]) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, text) in fields.texts("annotations") {
        // What is a link is told as one.
        if name != "summary" && !text.is_empty() && links.iter().all(|link| link.text != name) {
            lines.push(format!("{name}: {text}"));
        }
    }
    let labels = fields.texts("labels");
    if !labels.is_empty() {
        lines.push(pairs(&labels));
    }
    // The values of one alert say nothing of the others.
    if fields.list("alerts").len() < 2 {
        lines.extend(fields.texts("values").iter().map(|(name, value)| format!("{name}: {value}")));
    }
    for (name, field) in [("since", "starts_at"), ("until", "ends_at")] {
        if fields.has(field) {
            lines.push(format!("{name}: {}", fields.text(field)));
        }
    }
    if fields.list("alerts").len() > 1 || fields.number("more") > 0 {
        lines.extend(fields.alerts(ALERTS_MAX));
    }
    let evidence = fields.list("evidence").iter().take(EVIDENCE_MAX).map(|piece| Fields(piece.as_object()));
    lines.extend(evidence.filter(|piece| piece.has("raw")).map(|piece| {
        let (source, raw) = (piece.text("source"), piece.text("raw"));
        format!("{source}: {raw}")
    }));
    lines.iter().map(|line| one_line(line, LINE_MAX)).collect()
}

fn alert_line(alert: &Value) -> String {
    let fields = Fields(alert.as_object());
    if !fields.has("alert") {
        return one_line(&format!("{} {}", fields.text("time"), fields.text("record")), LINE_MAX);
    }
    let mut line = format!("{} {}", fields.text("state").to_uppercase(), fields.text("alert"));
    let labels = fields.texts("labels");
    if !labels.is_empty() {
        line.push_str(&format!(" {{{}}}", pairs(&labels)));
    }
    let summary = Fields(fields.object("annotations")).text("summary");
    if !summary.is_empty() {
        line.push_str(&format!(": {summary}"));
    }
    one_line(&line, LINE_MAX)
}

/// The fields of a record that is no alert.
fn other_lines(fields: &Fields<'_>) -> Vec<String> {
    let fields = fields.0.into_iter().flatten().filter(|(name, _)| *name != "message");
    fields.take(50).map(|(name, value)| one_line(&format!("{name}: {}", text_of(value)), LINE_MAX)).collect()
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}

/// A text as one line without controls, cut to a number of letters.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let clean =
        |letter: char| if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') { ' ' } else { letter };
    cut(text.trim(), max).chars().map(clean).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    pub(crate) const FIRING: &str = r#"{"alert":"errors","state":"firing","fingerprint":"f1","id":"abc","firing_id":"abc",
        "labels":{"host":"a<b>","severity":"critical"},
        "annotations":{"summary":"too many & more","runbook":"https://example.org/r?a=1&b=2","hint":"look at *this*"},
        "starts_at":"2026-11-20T12:00:00Z","ends_at":null,"values":{"errors":7},
        "evidence":[{"raw":"GET /\u001b[2J","source":"access","coordinate":{}}]}"#;

    pub(crate) const RESOLVED: &str = r#"{"alert":"errors","state":"resolved","fingerprint":"f1","id":"def","firing_id":"abc",
        "labels":{"host":"a<b>","severity":"critical"},"annotations":{"summary":"too many & more"},
        "starts_at":"2026-11-20T12:00:00Z","ends_at":"2026-11-20T12:05:00Z","values":{"errors":0},"evidence":[]}"#;

    pub(crate) const AMENDED: &str = r#"{"alert":"errors","state":"amended","fingerprint":"f1","id":"ghi","amends":"abc",
        "labels":{"host":"a<b>","severity":"critical"},"time":"2026-11-20T12:03:00Z","was":false,"is":true,
        "values":{"errors":9,"update":1}}"#;

    pub(crate) const GROUP: &str = r#"{"notification":"oncall","receiver":"default","reason":"escalated","state":"firing",
        "alert":"errors","fingerprint":"g1","firing_id":"i1","id":"i2","group_labels":{"severity":"warning"},
        "group_key":"{}:{severity=\"warning\"}","labels":{"severity":"warning"},"annotations":{},
        "starts_at":"2026-11-20T12:00:00Z","ends_at":null,"values":{"errors":7},"firing":2,"resolved":1,"more":4,
        "alerts":[
            {"alert":"errors","state":"firing","fingerprint":"f1","labels":{"host":"a","severity":"warning"},
             "annotations":{"summary":"bad"},"starts_at":"2026-11-20T12:00:00Z","ends_at":null},
            {"alert":"errors","state":"firing","fingerprint":"f2","labels":{"host":"b","severity":"warning"},
             "annotations":{},"starts_at":"2026-11-20T12:01:00Z","ends_at":null},
            {"alert":"errors","state":"resolved","fingerprint":"f3","labels":{"host":"c","severity":"warning"},
             "annotations":{},"starts_at":"2026-11-20T12:00:00Z","ends_at":"2026-11-20T12:02:00Z"}],
        "acknowledge":{"url":"https://tocsin.example.org/ack/1"},"time":"2026-11-20T12:02:00Z"}"#;

    pub(crate) const DIGEST: &str = r#"{"alert":"digest","digest":true,"id":"d1","count":12,"firing":1,"labels":{},
        "annotations":{"summary":"12 notifications were not sent one by one"},"more":10,
        "alerts":[{"alert":"errors","state":"firing","fingerprint":"f1","labels":{"host":"a"},"time":"2026-11-20T12:00:00Z"},
                  {"record":"a line","time":"2026-11-20T12:00:01Z"}]}"#;

    /// What a silence kept quiet that is over.
    pub(crate) fn summary() -> String {
        let alert = |host: u32| {
            let state = if host == 0 { "firing" } else { "resolved" };
            format!(r#"{{"alert":"errors","state":"{state}","fingerprint":"f{host}","labels":{{"host":"h{host}"}}}}"#)
        };
        let alerts: Vec<_> = (0..12).map(alert).collect();
        format!(
            r#"{{"notification":"oncall","receiver":"pager","reason":"summary","digest":true,"alert":"silence","id":"s1",
            "fingerprint":"s1","firing_id":"s1","labels":{{}},"annotations":{{"summary":"a silence of ana is over"}},
            "starts_at":"2026-11-20T12:00:00Z","ends_at":"2026-11-20T13:00:00Z","firing":1,"resolved":11,"more":0,
            "alerts":[{}]}}"#,
            alerts.join(",")
        )
    }

    pub(crate) fn record(text: &str) -> Value {
        tocsin_pipeline::json::parse_value(text.as_bytes()).unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(text: &str, expected: Expect) {
        let notice = Notice::of(&record(text));
        let mut told = format!("{:?} {:?} {}\n{}\n", notice.state, notice.severity, notice.key, notice.title);
        let _ = writeln!(told, "{}", notice.text());
        notice.links.iter().for_each(|link| told.push_str(&format!("-> {} {}\n", link.text, link.url)));
        expected.assert_eq(&told);
    }

    #[test]
    fn an_alert_is_told_with_its_labels_values_and_evidence() {
        check(
            FIRING,
            expect![[r#"
                Firing Critical f1-abc
                [FIRING] errors: too many & more
                too many & more
                hint: look at *this*
                host=a<b>, severity=critical
                errors: 7
                since: 2026-11-20T12:00:00Z
                access: GET / [2J
                -> runbook https://example.org/r?a=1&b=2
            "#]],
        );
        check(
            r#"{"alert":"disk","state":"firing","labels":{"host":"a"}}"#,
            expect![[r#"
            Firing Error 71b20ca76f8295d564383e0f01a33678
            [FIRING] disk: host=a
            host=a
        "#]],
        );
        check(
            RESOLVED,
            expect![[r#"
                Resolved Critical f1-abc
                [RESOLVED] errors: too many & more
                too many & more
                host=a<b>, severity=critical
                errors: 0
                since: 2026-11-20T12:00:00Z
                until: 2026-11-20T12:05:00Z
            "#]],
        );
    }

    #[test]
    fn an_amendment_is_told_in_words() {
        check(
            AMENDED,
            expect![[r#"
            Amended Critical ghi
            [AMENDED] errors {host="a<b>", severity="critical"}
            what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not
            host=a<b>, severity=critical
            errors: 9
            update: 1
            amends: abc
        "#]],
        );
        check(
            r#"{"alert":"errors","state":"amended","labels":{},"amends":null,"time":"2026-11-20T12:03:00Z","was":true,
                "is":false,"values":{}}"#,
            expect![[r#"
                Amended Info df82768ecc58822e28bc72e6de0db9a6
                [AMENDED] errors
                what came late says that the condition did not hold at 2026-11-20T12:03:00Z, and it was decided that it did
            "#]],
        );
        assert_eq!(Notice::of(&record(AMENDED)).colour(), Notice::of(&record("{}")).colour());
    }

    #[test]
    fn a_notification_lists_its_alerts() {
        check(
            GROUP,
            expect![[r#"
                Firing Warning g1-i1
                [FIRING:2, RESOLVED:1] errors (escalated): severity=warning
                severity=warning
                since: 2026-11-20T12:00:00Z
                FIRING errors {host=a, severity=warning}: bad
                FIRING errors {host=b, severity=warning}
                RESOLVED errors {host=c, severity=warning}
                and 4 more
                -> acknowledge https://tocsin.example.org/ack/1
            "#]],
        );
    }

    #[test]
    fn a_digest_says_how_many_there_were() {
        check(
            DIGEST,
            expect![[r#"
                None Error d1
                [DIGEST] 12 notifications were not sent one by one
                FIRING errors {host=a}
                2026-11-20T12:00:01Z a line
                and 10 more
            "#]],
        );
    }

    #[test]
    fn what_a_silence_kept_quiet_is_told_alert_by_alert() {
        let notice = Notice::of(&record(&summary()));
        assert_eq!((notice.title.as_str(), notice.lines.len()), ("[DIGEST] a silence of ana is over", 12));
        assert!(notice.opens_nothing() && !Notice::of(&record(DIGEST)).opens_nothing());
    }

    #[test]
    fn any_other_record_is_told_by_its_message_and_its_fields() {
        check(
            r#"{"message":"disk\nfull","used":0.99,"host":{"name":"a"}}"#,
            expect![[r#"
                None Info 68f2d6b526d0c8280d12c9d0572c62f6
                disk full
                host: {"name":"a"}
                used: 0.99
            "#]],
        );
        check(
            r#"{"test":true,"a":null}"#,
            expect![[r#"
                None Info 45075ff201e787127d9808474a2097c3
                [TEST] {"a":null,"test":true}
                a:
                test: true
            "#]],
        );
        check(
            "[1]",
            expect![[r#"
            None Info 44730cbaaac49851b5b5dd8f1cda6e70
            [1]

        "#]],
        );
    }

    #[test]
    fn severities_are_known_by_the_words_that_people_use() {
        let words = ["Critical", "page", "ERROR", "major", "warn", "info", "P5", "whatever", ""];
        let told: Vec<_> = words.iter().map(|word| Severity::of(word).map_or("-", Severity::as_str)).collect();
        assert_eq!(told, ["critical", "critical", "error", "error", "warning", "info", "info", "-", "-"]);
    }

    #[test]
    fn only_urls_are_links() {
        for (text, is_link) in [
            ("https://example.org/x", true),
            ("http://example.org", true),
            ("javascript:alert(1)", false),
            ("https://example.org/ <script>", false),
            ("see https://example.org", false),
        ] {
            assert_eq!(is_url(text), is_link, "{text}");
        }
    }
}
