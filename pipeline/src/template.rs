//! Text with `{{ fields }}` of a record in it: annotations, labels, subjects, bodies.
//!
//! Templates come from the configuration and are trusted; what they are filled with is not. So what a field holds is never
//! read as a template, is escaped where the text is HTML, and neither the text nor the work to make it is unbounded.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use vrl::value::Value;

/// No rendered text is longer; what goes beyond is cut off, with a mark.
pub const MAX_BYTES: usize = 64 << 10;

/// What is put at the end of a text that was cut off.
const CUT: &str = "…";

/// How many instructions a rendering may take: a loop over 10,000 entries, some ten each.
const FUEL: u64 = 100_000;

/// The only template of its environment.
const NAME: &str = "template";

/// How what the fields hold is written into the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// As it is.
    None,
    /// So that it stands in HTML as text and cannot be markup.
    Html,
}

/// A template does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Byte offsets in the template text.
    pub within: Range<usize>,
    pub message: String,
}

/// What a template made of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Why the text is not what the template says it should be: a field that is missing (it stands as nothing in the text)
    /// or a filter that failed (then the text ends there).
    pub failure: Option<String>,
}

/// A template that parses.
#[derive(Clone, Debug)]
pub struct Template {
    /// The text itself where it has nothing to fill in.
    constant: Option<Arc<str>>,
    environment: Arc<Environment<'static>>,
    variables: Arc<BTreeSet<String>>,
}

impl Template {
    pub fn compile(source: &str, escape: Escape) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_debug(true);
        environment.set_fuel(Some(FUEL));
        let mut syntax = SyntaxConfig::builder();
        syntax.keep_trailing_newline(true);
        environment.set_syntax(syntax.build().expect("the usual delimiters"));
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        // A null stands for nothing, not for the word.
        environment.set_formatter(|out, state, value| {
            if value.is_none() { Ok(()) } else { minijinja::escape_formatter(out, state, value) }
        });
        environment.set_auto_escape_callback(move |_| match escape {
            Escape::None => AutoEscape::None,
            Escape::Html => AutoEscape::Html,
        });
        // It prints all variables: of no use in a notification, and secrets may be among them.
        environment.remove_global("debug");
        let told = |error: &minijinja::Error| {
            let end = source.len();
            let within = error.range().map_or(0..end, |range| range.start.min(end)..range.end.min(end));
            let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
            TemplateError { within, message }
        };
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| told(&error))?;
        // The parser lets names pass that only rendering looks up. Those on the way through an empty record are found here.
        let mut dry = environment.clone();
        dry.set_undefined_behavior(UndefinedBehavior::Chainable);
        let dry = dry.get_template(NAME).expect("just added").render(());
        if let Some(error) = dry.err().filter(|error| {
            matches!(error.kind(), ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction)
        }) {
            return Err(told(&error));
        }
        let template = environment.get_template(NAME).expect("just added");
        let globals: BTreeSet<_> = environment.globals().map(|(name, _)| name.to_owned()).collect();
        let variables =
            template.undeclared_variables(false).into_iter().filter(|name| !globals.contains(name)).collect();
        let constant = (!source.contains("{{") && !source.contains("{%") && !source.contains("{#"))
            .then(|| Arc::from(cut(source.to_owned())));
        Ok(Self { constant, environment: Arc::new(environment), variables: Arc::new(variables) })
    }

    /// The top-level fields it may read.
    pub fn variables(&self) -> &BTreeSet<String> {
        &self.variables
    }

    /// Fills in the fields of `record`.
    pub fn render(&self, record: &Value) -> Rendered {
        match &self.constant {
            Some(text) => Rendered { text: text.to_string(), failure: None },
            None => self.render_context(&context(record)),
        }
    }

    /// As [`Self::render`], for a record that several templates are filled with: see [`context`].
    pub fn render_context(&self, context: &minijinja::Value) -> Rendered {
        let (text, error) = self.attempt(&self.environment, context);
        let Some(error) = error else { return Rendered { text, failure: None } };
        let failure = Some(describe(&error));
        if error.kind() != ErrorKind::UndefinedError {
            return Rendered { text, failure };
        }
        // A missing field is no reason to say nothing at all.
        let mut lenient = Environment::clone(&self.environment);
        lenient.set_undefined_behavior(UndefinedBehavior::Chainable);
        Rendered { text: self.attempt(&lenient, context).0, failure }
    }

    /// Renders as far as it goes.
    fn attempt(
        &self,
        environment: &Environment<'static>,
        context: &minijinja::Value,
    ) -> (String, Option<minijinja::Error>) {
        let template = environment.get_template(NAME).expect("added when it was compiled");
        let mut text = Bounded::default();
        let error = template.render_captured_to(context.clone(), &mut text).err();
        let is_full = text.is_full;
        let mut text = String::from_utf8(text.bytes).unwrap_or_else(|error| {
            // Only a cut in the middle of a character makes it invalid.
            let valid = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(valid);
            String::from_utf8(bytes).expect("valid up to there")
        });
        if is_full {
            text.push_str(CUT);
            return (text, None);
        }
        (text, error)
    }
}

/// A record as templates read it: see [`context`].
pub type Context = minijinja::Value;

/// A record as templates read it. Bytes that are not UTF-8 are replaced by `�`.
pub fn context(record: &Value) -> Context {
    match record {
        Value::Null => minijinja::Value::from(()),
        Value::Boolean(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Float(value) => value.into_inner().into(),
        Value::Bytes(text) => String::from_utf8_lossy(text).into_owned().into(),
        Value::String(text) => String::from_utf8_lossy(text.as_bytes()).into_owned().into(),
        Value::Timestamp(time) => crate::time::Timestamp::from_datetime(time).to_string().into(),
        Value::Regex(regex) => regex.as_str().to_owned().into(),
        Value::Array(values) => values.iter().map(context).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.to_string(), context(value)));
            fields.collect::<BTreeMap<_, _>>().into()
        }
    }
}

fn describe(error: &minijinja::Error) -> String {
    let place = error.range().and_then(|range| error.template_source()?.get(range).map(str::to_owned));
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    place.map_or(what.clone(), |place| format!("`{place}`: {what}"))
}

/// Cuts a text to [`MAX_BYTES`].
fn cut(mut text: String) -> String {
    if text.len() > MAX_BYTES {
        text.truncate((0..=MAX_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push_str(CUT);
    }
    text
}

/// A writer that takes no more than [`MAX_BYTES`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_BYTES - self.bytes.len();
        if bytes.len() > room {
            self.bytes.extend_from_slice(&bytes[..room]);
            self.is_full = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(template: &str, escape: Escape, record: &str, expected: Expect) {
        let record = crate::json::parse_value(record.as_bytes()).unwrap();
        let rendered = Template::compile(template, escape).unwrap().render(&record);
        let failure = rendered.failure.map(|failure| format!("\n! {failure}")).unwrap_or_default();
        expected.assert_eq(&format!("{}{failure}", rendered.text));
    }

    #[test]
    fn fields_are_filled_in() {
        check(
            "{{ vhost }}: {{ errors }} errors, {{ at.host }}, {{ list[1] }}, {{ ratio }}",
            Escape::None,
            r#"{"vhost": "shop", "errors": 7, "at": {"host": "a"}, "list": [1, 2], "ratio": 0.25}"#,
            expect!["shop: 7 errors, a, 2, 0.25"],
        );
        check("no field\n", Escape::None, "{}", expect![["no field\n"]]);
    }

    #[test]
    fn a_missing_field_is_nothing_and_is_told() {
        check(
            "[{{ a.b.c }}|{{ b }}]",
            Escape::None,
            r#"{"b": 1}"#,
            expect![[r#"
            [|1]
            ! `a.b`: `a` is undefined"#]],
        );
        check("{{ a | default('-') }} {% if a %}x{% endif %}", Escape::None, "{}", expect!["- "]);
        check("[{{ a }}]", Escape::None, r#"{"a": null}"#, expect!["[]"]);
    }

    #[test]
    fn what_a_field_holds_is_not_read_as_a_template() {
        check("{{ a }}", Escape::None, r#"{"a": "{{ b }}{% for", "b": "secret"}"#, expect!["{{ b }}{% for"]);
    }

    #[test]
    fn html_is_escaped() {
        check(
            "<b>{{ a }}</b>",
            Escape::Html,
            r#"{"a": "<script>'\"&"}"#,
            expect!["<b>&lt;script&gt;&#x27;&quot;&amp;</b>"],
        );
    }

    #[test]
    fn a_filter_that_fails_ends_the_text_and_is_told() {
        check(
            "a {{ a | round }} b",
            Escape::None,
            r#"{"a": "x"}"#,
            expect![[r#"
            a 
            ! `round`: cannot round value (string)"#]],
        );
    }

    #[test]
    fn json_can_be_written() {
        check(
            "{{ a | tojson }}",
            Escape::None,
            r#"{"a": {"x": ["</b>", null]}}"#,
            expect![[r#"{"x": ["\u003c/b\u003e", null]}"#]],
        );
    }

    #[test]
    fn a_text_has_an_end() {
        let template = Template::compile("{% for i in range(90000) %}{{ a }}{% endfor %}", Escape::None).unwrap();
        let record = crate::json::parse_value(format!(r#"{{"a": "{}"}}"#, "ä".repeat(500)).as_bytes()).unwrap();
        let rendered = template.render(&record);
        assert_eq!(rendered.text.len(), MAX_BYTES + CUT.len());
        let endless = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}";
        let rendered = Template::compile(endless, Escape::None).unwrap().render(&record);
        assert_eq!(rendered.failure.as_deref(), Some("`range(90000)`: engine ran out of fuel"));
        let long = Template::compile(&"ä".repeat(MAX_BYTES), Escape::None).unwrap().render(&record);
        assert_eq!(long.text.len(), MAX_BYTES + CUT.len());
    }

    #[test]
    fn a_template_that_does_not_parse_is_told_with_its_place() {
        let told = |source: &str| {
            let error = Template::compile(source, Escape::None).unwrap_err();
            format!("{:?}: {}", &source[error.within.clone()], error.message)
        };
        expect![[r#""}": unexpected `}`"#]].assert_eq(&told("a {{ b %} c"));
        expect![[r#""nothing": filter nothing is unknown"#]].assert_eq(&told("{{ a | nothing }}"));
        expect![[r#""include": unknown statement include"#]].assert_eq(&told("{% include 'x' %}"));
    }

    #[test]
    fn it_knows_the_fields_it_reads() {
        let template =
            Template::compile("{{ a.b }} {% for x in list %}{{ x }}{% endfor %} {{ range(3) }}", Escape::None);
        assert_eq!(template.unwrap().variables().iter().collect::<Vec<_>>(), ["a", "list"]);
    }
}
