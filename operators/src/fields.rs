//! Which fields options read by name, and where in their texts.

use std::collections::BTreeSet;
use std::ops::Range;

use tocsin_config::component::FieldRead;
use tocsin_pipeline::codec::{PathTable, Projection};
use tocsin_pipeline::expression::{Condition, Expression};
use tocsin_pipeline::template::{Escape, Template};
use vrl::path::OwnedSegment;

/// The fields at the top that a condition reads; none of one that does not compile, as that is told already.
pub(crate) fn of_condition(option: &str, source: &str) -> Vec<FieldRead> {
    let reads = Condition::compile(source, &mut PathTable::default()).map(|condition| condition.reads());
    of_paths(option, source, &reads.unwrap_or_default())
}

/// As [`of_condition`], of an expression.
pub(crate) fn of_expression(option: &str, source: &str) -> Vec<FieldRead> {
    let reads = Expression::compile(source, &mut PathTable::default()).map(|expression| expression.reads());
    of_paths(option, source, &reads.unwrap_or_default())
}

fn of_paths(option: &str, source: &str, reads: &Projection) -> Vec<FieldRead> {
    let tops = reads.paths().iter().filter_map(|path| match path.path().segments.first() {
        Some(OwnedSegment::Field(name)) => Some(name.to_string()),
        _ => None,
    });
    let tops: BTreeSet<_> = tops.collect();
    let read = |field: String| {
        let within = place(source, &format!(".{field}")).unwrap_or(0..source.len());
        FieldRead { option: option.to_owned(), within, field }
    };
    tops.into_iter().map(read).collect()
}

/// The fields at the top that a template names.
pub(crate) fn of_template(option: &str, source: &str) -> Vec<FieldRead> {
    let Ok(template) = Template::compile(source, Escape::None) else { return Vec::new() };
    let read = |field: &String| {
        // What stands before the first place where a field can be named is text.
        let from = source.find("{{").into_iter().chain(source.find("{%")).min().unwrap_or(0);
        let within = place(&source[from..], field).map(|within| from + within.start..from + within.end);
        FieldRead { option: option.to_owned(), within: within.unwrap_or(0..source.len()), field: field.clone() }
    };
    template.variables().iter().map(read).collect()
}

/// Where a name stands by itself.
fn place(source: &str, name: &str) -> Option<Range<usize>> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let is_alone = |at: usize| {
        let before = source[..at].chars().next_back();
        let after = source[at + name.len()..].chars().next();
        // A path within another (`.a.name`), or a longer name.
        !before.is_some_and(|letter| is_part(letter) || matches!(letter, '.' | ')' | ']' | '"'))
            && !after.is_some_and(is_part)
    };
    source.match_indices(name).map(|(at, _)| at).find(|at| is_alone(*at)).map(|at| at..at + name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(read: &[FieldRead], source: &str) -> Vec<String> {
        read.iter().map(|read| format!("{} at {:?}", read.field, &source[read.within.clone()])).collect()
    }

    #[test]
    fn fields_are_found_with_their_places() {
        let condition = ".a.name > 3 && exists(.name) && contains(string!(.\"b c\"), \".named\") && .list[0] == 1";
        assert_eq!(
            told(&of_condition("x", condition), condition),
            ["a at \".a\"", &format!("b c at {condition:?}"), "list at \".list\"", "name at \".name\""]
        );
        let template = "name: {{ names }} {% if name %}{{ name.x | upper }}{% endif %}";
        assert_eq!(told(&of_template("x", template), template), ["name at \"name\"", "names at \"names\""]);
        assert_eq!(of_template("x", template)[0].within.start, 24);
        assert_eq!(of_condition("x", "nothing("), []);
    }
}
