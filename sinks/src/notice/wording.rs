//! The words of a message: those of the notice, or those of templates, in the spelling of the receiver.

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;
use tocsin_pipeline::sink::Notification;
use tocsin_pipeline::template::{self, Escape, Template};
use vrl::value::{ObjectMap, Value};

use super::Notice;

/// What a message says, where the words that are usual will not do.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Config {
    /// The first line as a text with `{{ field }}`; the record as a whole is `record`. Default: the state, the rule and its
    /// `summary`; of other records `message`.
    title: Option<String>,
    /// The rest. It may have the markup of the receiver in it; what stands in fields is shown as it is. Default: `summary`, the
    /// other annotations, labels, values, times, and up to ten alerts of a notification.
    text: Option<String>,
}

impl Config {
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (option, text) in [("title", &self.title), ("text", &self.text)] {
            if let Some(Err(error)) = text.as_ref().map(|text| Template::compile(text, Escape::None)) {
                problems.push(Problem::new(option, error.message).within(error.within));
            }
        }
        problems
    }

    /// `escape` makes a text harmless in the markup of the receiver.
    pub(crate) fn build(&self, escape: fn(&str) -> String) -> Wording {
        let compile = |text: &String| Template::compile(text, Escape::None).expect("checked");
        Wording { title: self.title.as_ref().map(compile), text: self.text.as_ref().map(compile), escape }
    }
}

/// The words of a message, in the spelling of the receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) title: String,
    pub(crate) text: String,
}

/// Makes words.
pub(crate) struct Wording {
    title: Option<Template>,
    text: Option<Template>,
    escape: fn(&str) -> String,
}

impl Wording {
    /// What a message says of a record. Digests are told in the usual words: templates are written for alerts.
    pub(crate) fn of(&self, notice: &Notice, record: &Value) -> Words {
        let templates = [&self.title, &self.text].map(|template| template.as_ref().filter(|_| !notice.is_digest));
        let context = templates.iter().any(Option::is_some).then(|| {
            let escaped = self.escaped(record);
            let mut fields = escaped.as_object().cloned().unwrap_or_else(ObjectMap::new);
            fields.insert("record".into(), escaped);
            template::context(&Value::Object(fields))
        });
        let [title, text] = templates.map(|template| {
            let (template, context) = (template?, context.as_ref()?);
            Some(template.render_context(context).text)
        });
        Words {
            title: title.map_or_else(|| (self.escape)(&notice.title), |title| notice.marked(title, self.escape)),
            text: text.unwrap_or_else(|| (self.escape)(&notice.text())),
        }
    }

    /// What the one who is told would read.
    pub(crate) fn preview(&self, record: &Value) -> Notification {
        let Words { title, text } = self.of(&Notice::of(record), record);
        Notification { subject: Some(title), body: text }
    }

    /// The same record with all texts in it made harmless.
    fn escaped(&self, value: &Value) -> Value {
        match value {
            Value::Bytes(text) => (self.escape)(&String::from_utf8_lossy(text)).into(),
            Value::String(text) => (self.escape)(&String::from_utf8_lossy(text.as_bytes())).into(),
            Value::Array(values) => values.iter().map(|value| self.escaped(value)).collect::<Vec<_>>().into(),
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(name, value)| (name.clone(), self.escaped(value))).collect())
            }
            other => other.clone(),
        }
    }
}

/// For receivers that show text as it is.
pub(crate) fn as_it_is(text: &str) -> String {
    text.to_owned()
}

/// Cuts a text to a number of letters, with a mark; never within an escape.
pub(crate) fn cut(text: &str, max: usize) -> String {
    let Some((end, _)) = text.char_indices().nth(max) else { return text.to_owned() };
    let (mark, _) = text.char_indices().nth(max.saturating_sub(1)).unwrap_or((end, ' '));
    let mut cut = &text[..mark];
    // An entity such as `&amp;` has at most eight letters.
    let tail = cut.char_indices().rev().take(8).find(|(_, letter)| matches!(letter, '&' | ';'));
    if let Some((at, '&')) = tail {
        cut = &cut[..at];
    }
    let backslashes = cut.len() - cut.trim_end_matches('\\').len();
    cut = &cut[..cut.len() - backslashes % 2];
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::tests::{DIGEST, FIRING, record};
    use super::*;

    fn loud(text: &str) -> String {
        text.replace('&', "&amp;").replace('<', "&lt;")
    }

    #[test]
    fn a_template_may_have_markup_and_what_it_is_filled_with_has_none() {
        let config: Config = serde_json::from_str(
            r#"{"title":"<b>{{ alert }}</b>","text":"{{ labels.host }} {{ record.values.errors }}"}"#,
        )
        .unwrap();
        assert_eq!(config.problems(), []);
        let wording = config.build(loud);
        let told = wording.preview(&record(FIRING));
        assert_eq!((told.subject.as_deref(), &*told.body), (Some("<b>errors</b>"), "a&lt;b> 7"));
        let told = wording.preview(&record(DIGEST));
        assert_eq!(told.subject.as_deref(), Some("[DIGEST] 12 notifications were not sent one by one"));
    }

    #[test]
    fn a_test_says_so_whatever_the_template_says() {
        for (title, expected) in [("{{ alert }}", "&lt;TEST] disk"), ("{{ record.notice }}", "&lt;TEST] ")] {
            let config: Config = serde_json::from_value(serde_json::json!({ "title": title })).unwrap();
            let escape = |text: &str| text.replace('[', "&lt;");
            let record = record(r#"{"alert":"disk","state":"firing","test":true,"labels":{}}"#);
            assert_eq!(config.build(escape).preview(&record).subject.as_deref(), Some(expected));
            let usual = Config::default().build(escape).preview(&record);
            assert_eq!(usual.subject.as_deref(), Some("&lt;TEST] &lt;FIRING] disk"));
        }
    }

    #[test]
    fn the_usual_words_are_escaped() {
        let told = Config::default().build(loud).preview(&record(FIRING));
        expect![[r#"
            [FIRING] errors: too many &amp; more
            too many &amp; more
            hint: look at *this*
            host=a&lt;b>, severity=critical
            errors: 7
            since: 2026-11-20T12:00:00Z
            access: GET / [2J
        "#]]
        .assert_eq(&format!("{}\n{}\n", told.subject.unwrap(), told.body));
    }

    #[test]
    fn a_text_is_cut_between_letters_and_not_within_an_escape() {
        for (text, max, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("äöüß", 3, "äö…"),
            ("ab&amp;cd", 6, "ab…"),
            ("ab&amp;cd", 8, "ab&amp;…"),
            ("a\\*b", 3, "a…"),
            ("a\\\\bc", 4, "a\\\\…"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, max), expected, "{text} {max}");
        }
    }

    #[test]
    fn a_template_that_does_not_parse_is_told() {
        let config: Config = serde_json::from_str(r#"{"title":"{{ a"}"#).unwrap();
        assert_eq!(config.problems()[0].option, "title");
    }
}
