//! Silences: for which alerts nobody is told for a while, and who said so.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_pipeline::time::Timestamp;

use crate::component::Problem;
use crate::interval::{Interval, IntervalOptions};
use crate::matcher::Matchers;

/// No owner, reason or identity is longer.
const TEXT_MAX: usize = 1024;
/// No silence has more annotations.
const ANNOTATIONS_MAX: usize = 64;

/// A silence: while it lasts nobody is told of the alerts that it matches. Silences can be added while the daemon runs too, with
/// `tocsin silence add`; those of the configuration can only be ended there.
///
/// ```toml
/// [[silences]]
/// matchers = ['alertname="disk_full"', 'host=~"test-.*"']
/// owner = "ana@example.org"
/// reason = "test machines are being rebuilt"
/// ends_at = "2026-12-24T00:00:00Z"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SilenceOptions {
    /// Which alerts: matchers such as `'severity="warning"'` and `'host=~"test-.*"'`, all of which must be true. At least one.
    pub matchers: Vec<String>,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// When it begins, such as `"2026-11-29T08:00:00Z"`. Default: it has begun.
    pub starts_at: Option<String>,
    /// When it is over for good, such as `"2026-12-01T08:00:00Z"`. None is for ever.
    pub ends_at: String,
    /// Within that time it lasts only then: stretches of time that recur, such as `{ weekdays = ["sunday"], times = ["02:00-04:00"] }`.
    pub during: Option<IntervalOptions>,
    /// What else there is to say of it, by name: for programs that read silences.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl SilenceOptions {
    /// What is wrong with it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.matchers.is_empty() {
            problems.push(
                Problem::new("matchers", "has no matcher, so that the silence would be for every alert")
                    .help("say which alerts, such as `['alertname=\"disk_full\"']`"),
            );
        }
        for (at, text) in self.matchers.iter().enumerate() {
            if let Err(error) = Matchers::parse(text) {
                problems.push(Problem::new(format!("matchers[{at}]"), error.message).within(error.within));
            }
        }
        for (option, text) in [("owner", &self.owner), ("reason", &self.reason)] {
            if text.trim().is_empty() || text.len() > TEXT_MAX {
                problems.push(Problem::new(option, format!("must have from 1 to {TEXT_MAX} characters")));
            }
        }
        let texts = self.annotations.iter().flat_map(|(name, value)| [name, value]);
        if self.annotations.len() > ANNOTATIONS_MAX || texts.clone().any(|text| text.len() > TEXT_MAX) {
            problems.push(Problem::new(
                "annotations",
                format!("are at most {ANNOTATIONS_MAX}, of at most {TEXT_MAX} characters each"),
            ));
        }
        let mut moment = |option: &str, text: &str| {
            let moment = Timestamp::parse_rfc3339(text.as_bytes());
            if moment.is_none() {
                problems.push(
                    Problem::new(option, format!("{text:?} is not a moment"))
                        .help("write a date and time such as \"2026-12-01T08:00:00Z\""),
                );
            }
            moment
        };
        let starts_at = self.starts_at.as_deref().map(|text| moment("starts_at", text));
        let ends_at = moment("ends_at", &self.ends_at);
        if let (Some(Some(starts_at)), Some(ends_at)) = (starts_at, ends_at)
            && starts_at >= ends_at
        {
            problems.push(Problem::new("ends_at", "is not after `starts_at`, so that the silence never lasts"));
        }
        if let Some(during) = &self.during {
            problems.extend(during.problems("during"));
        }
        problems
    }

    /// Only called when there are no problems. Two that say the same are one.
    pub fn build(&self) -> Silence {
        let moment = |text: &str| Timestamp::parse_rfc3339(text.as_bytes()).expect("checked");
        let content = json!({
            "matchers": self.matchers,
            "owner": self.owner,
            "reason": self.reason,
            "starts_at": self.starts_at,
            "ends_at": self.ends_at,
            "during": self.during.as_ref().map(|during| format!("{during:?}")),
            "annotations": self.annotations,
        });
        Silence {
            id: uuid(*blake3::hash(content.to_string().as_bytes()).as_bytes()),
            matchers: Matchers::all(&self.matchers),
            starts_at: self.starts_at.as_deref().map_or(Timestamp::MIN, moment),
            ends_at: moment(&self.ends_at),
            owner: self.owner.clone(),
            reason: self.reason.clone(),
            updated_at: Timestamp::MIN,
            during: self.during.as_ref().map(|during| (during.to_json(), during.build())),
            annotations: self.annotations.clone(),
        }
    }
}

/// A hash in the shape in which Alertmanager's clients expect the identity of a silence: a UUID of version 8.
fn uuid(mut hash: [u8; 32]) -> String {
    hash[6] = hash[6] & 0x0f | 0x80;
    hash[8] = hash[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in hash.iter().take(16).enumerate() {
        text += if [4, 6, 8, 10].contains(&at) { "-" } else { "" };
        text += &format!("{byte:02x}");
    }
    text
}

/// A silence as it is used.
#[derive(Clone, Debug)]
pub struct Silence {
    /// What it is called.
    pub id: String,
    pub matchers: Matchers,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub owner: String,
    pub reason: String,
    /// When somebody said it last.
    pub updated_at: Timestamp,
    /// The stretches within that time to which it is limited, as they are written and as they are used.
    pub during: Option<(Json, Interval)>,
    pub annotations: BTreeMap<String, String>,
}

impl Silence {
    /// Whether it mutes now.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.starts_at <= now
            && now < self.ends_at
            && self.during.as_ref().is_none_or(|(_, during)| during.contains(now))
    }

    /// Whether it is for an alert of these labels.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.matchers.matches(label)
    }

    /// When it begins or ends to mute next, `now` itself not included.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        if now >= self.ends_at {
            return None;
        }
        if now < self.starts_at {
            return Some(self.starts_at);
        }
        let recurs = self.during.as_ref().and_then(|(_, during)| during.next_change(now));
        Some(recurs.map_or(self.ends_at, |recurs| recurs.min(self.ends_at)))
    }

    /// The first moment from `now` on at which it mutes; `None`: it never does any more.
    pub fn begins(&self, now: Timestamp) -> Option<Timestamp> {
        let from = now.max(self.starts_at);
        let begins = match &self.during {
            Some((_, during)) if !during.contains(from) => during.next_change(from)?,
            _ => from,
        };
        Some(begins).filter(|begins| *begins < self.ends_at)
    }

    /// As it is told and kept.
    pub fn to_json(&self) -> Json {
        let moment = |time: Timestamp| if time == Timestamp::MIN { Json::Null } else { time.to_string().into() };
        json!({
            "id": self.id,
            "matchers": self.matchers.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "owner": self.owner,
            "reason": self.reason,
            "starts_at": moment(self.starts_at),
            "ends_at": moment(self.ends_at),
            "updated_at": moment(self.updated_at),
            "during": self.during.as_ref().map(|(during, _)| during),
            "annotations": self.annotations,
        })
    }

    /// The opposite of [`Self::to_json`]; its `id` must be given.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_json(json: &Json) -> Result<Self, String> {
        let mut fields: BTreeMap<String, Json> =
            serde_json::from_value(json.clone()).map_err(|_| "a silence is a table of fields".to_owned())?;
        fields.retain(|_, value| !value.is_null());
        let id = match fields.remove("id") {
            Some(Json::String(id)) if !id.is_empty() && id.len() <= TEXT_MAX => id,
            _ => return Err("the silence has no `id`".to_owned()),
        };
        let updated_at = fields.remove("updated_at");
        let options = SilenceOptions::deserialize(Json::Object(fields.into_iter().collect()))
            .map_err(|error| format!("the silence cannot be read: {error}"))?;
        if let Some(problem) = options.problems().into_iter().next() {
            return Err(format!("`{}` of the silence: {}", problem.option, problem.message));
        }
        let updated_at = updated_at.as_ref().and_then(Json::as_str);
        let updated_at = updated_at.and_then(|text| Timestamp::parse_rfc3339(text.as_bytes()));
        Ok(Self { id, updated_at: updated_at.unwrap_or(Timestamp::MIN), ..options.build() })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn options(toml: &str) -> SilenceOptions {
        toml::from_str(toml).unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check_problems(toml: &str, expected: Expect) {
        let problems = options(toml).problems();
        let told = problems.iter().map(|problem| format!("{}: {}\n", problem.option, problem.message));
        expected.assert_eq(&told.collect::<String>());
    }

    #[test]
    fn a_silence_says_for_what_by_whom_why_and_how_long() {
        check_problems(
            r#"
            matchers = []
            owner = " "
            reason = ""
            starts_at = "tomorrow"
            ends_at = "2026-11-29"
            "#,
            expect![[r#"
                matchers: has no matcher, so that the silence would be for every alert
                owner: must have from 1 to 1024 characters
                reason: must have from 1 to 1024 characters
                starts_at: "tomorrow" is not a moment
                ends_at: "2026-11-29" is not a moment
            "#]],
        );
        check_problems(
            r#"
            matchers = ["a=b"]
            owner = "ana"
            reason = "works"
            starts_at = "2026-11-29T10:00:00Z"
            ends_at = "2026-11-29T10:00:00Z"
            "#,
            expect![[r#"
                ends_at: is not after `starts_at`, so that the silence never lasts
            "#]],
        );
    }

    #[test]
    fn it_lasts_from_its_beginning_to_its_end_and_then_only_during_what_recurs() {
        let silence = options(
            r#"
            matchers = ['host=~"test-.*"', "team=a"]
            owner = "ana"
            reason = "nightly rebuild"
            starts_at = "2026-11-29T00:00:00Z"
            ends_at = "2026-12-01T01:30:00Z"
            during = { times = ["01:00-02:00"] }
            "#,
        )
        .build();
        let labels = |name: &str| match name {
            "host" => Some("test-1"),
            "team" => Some("a"),
            _ => None,
        };
        assert!(silence.matches(labels) && !silence.matches(|name| labels(name).filter(|_| name == "host")));
        let mut now = Timestamp::parse_rfc3339(b"2026-11-28T12:00:00Z").unwrap();
        let begins = |now| silence.begins(now).map_or("never again".to_owned(), |begins| begins.to_string());
        let mut text = format!("begins {}\n", begins(now));
        while let Some(next) = silence.next_change(now) {
            now = next;
            text += &format!("{now} {}, begins {}\n", silence.is_active(now), begins(now));
        }
        expect![[r#"
            begins 2026-11-29T01:00:00Z
            2026-11-29T00:00:00Z false, begins 2026-11-29T01:00:00Z
            2026-11-29T01:00:00Z true, begins 2026-11-29T01:00:00Z
            2026-11-29T02:00:00Z false, begins 2026-11-30T01:00:00Z
            2026-11-30T01:00:00Z true, begins 2026-11-30T01:00:00Z
            2026-11-30T02:00:00Z false, begins 2026-12-01T01:00:00Z
            2026-12-01T01:00:00Z true, begins 2026-12-01T01:00:00Z
            2026-12-01T01:30:00Z false, begins never again
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn it_comes_back_as_it_was_told() {
        let silence = options(
            r#"
            matchers = ["a=b", "c!~\"d.*\""]
            owner = "ana"
            reason = "works"
            ends_at = "2026-12-01T00:00:00Z"
            during = [{ weekdays = ["saturday", "sunday"] }, { times = ["22:00-24:00"], location = "Europe/Berlin" }]
            annotations = { ticket = "42" }
            "#,
        )
        .build();
        assert_eq!((silence.id.len(), &silence.id[14..15]), (36, "8"), "a UUID: {}", silence.id);
        let told = silence.to_json();
        let back = Silence::of_json(&told).unwrap();
        assert_eq!(back.to_json(), told);
        assert!(Silence::of_json(&json!({ "id": "x" })).is_err());
    }
}
