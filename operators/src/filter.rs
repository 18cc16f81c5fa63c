//! Records for which a condition is true go on.

use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use tocsin_config::component::{Assigns, BuildContext, FieldRead, Keying, OperatorConfig, Problem};
use tocsin_config::facts::{Branch, Facts};
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::expression::{Condition, Diagnostic};
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::operator::{Built, Output, Reason, Transform};

use crate::fields::of_condition;

/// Hands on the records for which `condition` is true, unchanged; the others end here under the reason `filtered`.
///
/// Where a condition fails on a record (a field is missing or of another type), it is false, and counted in
/// `tocsin_expression_errors_total`. Conditions of the common shapes (comparisons of a field with a literal, `contains`,
/// `starts_with`, `ends_with`, `match`, `exists`, `includes`, `is_…`, joined by `&&`, `||`, `!`) are evaluated natively;
/// where one implies that some text must stand in the record, as `.level == "ERROR"` does, the other records need not even
/// be split into lines. `tocsin explain` tells which.
///
/// **State:** none.
///
/// **Late records:** like any other.
///
/// **After a crash:** records that are read again are decided as they were the first time.
///
/// ```toml
/// [operators.errors]
/// type = "filter"
/// inputs = ["access"]
/// condition = '.status >= 500 && !starts_with(.path, "/health")'
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// A VRL expression that is true of the records that go on.
    condition: String,
}

/// The problems of a condition or program given under `option`.
pub(crate) fn problems_of(option: &str, found: Vec<Diagnostic>) -> Vec<Problem> {
    found
        .into_iter()
        .map(|found| Problem {
            option: option.to_owned(),
            within: Some(found.within),
            message: found.message,
            help: found.help,
        })
        .collect()
}

impl OperatorConfig for Config {
    const NAME: &'static str = "filter";

    fn problems(&self) -> Vec<Problem> {
        problems_of("condition", Condition::check(&self.condition))
    }

    fn keying(&self) -> Keying {
        Keying::Stateless { assigns: Assigns::Nothing }
    }

    fn reads_fields(&self) -> Vec<FieldRead> {
        of_condition("condition", &self.condition)
    }

    fn facts(&self) -> Facts {
        let condition = self.condition.clone();
        Facts::Branches(vec![Branch { option: "condition".to_owned(), condition, port: None }])
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let condition = Condition::compile(&self.condition, context.paths).expect("the configuration was checked");
        let reads = condition.reads();
        Built::Transform(Arc::new(Filter { condition, reads }))
    }
}

struct Filter {
    condition: Condition,
    reads: Projection,
}

impl Transform for Filter {
    fn apply(&self, mut batch: Batch, output: &mut Output) {
        batch.decode(&self.reads);
        let mut rows = self.condition.select(&batch, &mut output.expression_errors);
        output.drop(Reason::Filtered, batch.len() - rows.len());
        if fault::is_planted(Defect::UncountedDrop) {
            let mut place = 0;
            rows.retain(|_| {
                place += 1;
                place % 1000 != 0
            });
        }
        if rows.len() < batch.len() {
            batch = batch.select(rows);
        }
        output.emit(0, batch);
    }

    fn reads(&self) -> Projection {
        self.reads.clone()
    }

    fn is_selective(&self) -> bool {
        true
    }

    fn prefilter(&self) -> Option<Vec<Vec<u8>>> {
        self.condition.prefilter()
    }

    fn explain(&self) -> Vec<String> {
        vec![format!("condition: {}", self.condition.way())]
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::script;

    #[test]
    fn only_records_for_which_the_condition_is_true_go_on() {
        let story = r#"
            00:01 {"status":500,"path":"/a"}
            00:02 {"status":200,"path":"/a"}
            00:03 {"status":503,"path":"/health"}
            00:04 {"path":"/a"}
            00:05 { "status" : 501, "path":"/b" }
        "#;
        expect![[r#"
            00:01 {"path":"/a","status":500}
            00:05 {"path":"/b","status":501}
            (filtered 3)
            (expression errors 1)
        "#]]
        .assert_eq(&script::run::<Config>("condition = '.status >= 500 && !starts_with!(.path, \"/health\")'", story));
        expect![[r#"
            00:03 {"path":"/health","status":503}
            (filtered 4)
        "#]]
        .assert_eq(&script::run::<Config>("condition = 'length(.path) > 2'", story));
    }

    #[test]
    fn a_condition_that_cannot_be_is_told() {
        expect![[r#"
            condition[0..11]: a condition has to be true or false, and this is always string, integer, float or null (compare it with something, as in `.status >= 500`)
        "#]].assert_eq(&script::problems::<Config>("condition = '.status + 1'"));
        expect![[r#"
            condition[0..9]: call to undefined function: did you mean "upcase"?
        "#]]
        .assert_eq(&script::problems::<Config>("condition = 'uppercase(.a) == 1'"));
    }

    #[test]
    fn what_must_stand_in_a_record_is_known_before_it_is_read() {
        let Built::Transform(filter) = script::build::<Config>("condition = '.level == \"ERROR\"'") else { panic!() };
        assert_eq!(filter.prefilter(), Some(vec![b"ERROR".to_vec()]));
        assert_eq!(filter.explain(), ["condition: native"]);
    }
}
