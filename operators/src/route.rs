//! Records are sent where conditions say.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{Assigns, BuildContext, FieldRead, Keying, OperatorConfig, Problem};
use tocsin_config::facts::{Branch, Facts};
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::expression::Condition;
use tocsin_pipeline::operator::{Built, Output, Ports, Transform};

use crate::fields::of_condition;
use crate::filter::problems_of;

/// Sends each record to `NAME.route` for every route whose condition is true of it, unchanged, and to `NAME.other` if none
/// is. With `exclusive = true` it goes to the first of them only, in the alphabetical order of their names.
///
/// `NAME` itself gives nothing: operators and sinks name the routes among their `inputs`. A record for a route that nothing
/// reads is counted as dropped under `unconnected`. Where a condition fails on a record, it is false, and counted in
/// `tocsin_expression_errors_total`.
///
/// **State:** none.
///
/// **Late records:** like any other.
///
/// **After a crash:** records that are read again are sent where they were the first time.
///
/// ```toml
/// [operators.by_speed]
/// type = "route"
/// inputs = ["access"]
/// routes = { slow = ".latency > 1", failed = ".status >= 500" }
///
/// [sinks.slow]
/// type = "file"
/// inputs = ["by_speed.slow"]
/// path = "slow.ndjson"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// VRL conditions by the name of their route. The names `other` and `rejected` are taken.
    routes: BTreeMap<String, String>,
    /// Whether a record goes to one route at most. Default: `false`.
    #[serde(default)]
    exclusive: bool,
}

/// Where records go of which no condition is true.
const OTHER: &str = "other";

impl OperatorConfig for Config {
    const NAME: &'static str = "route";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.routes.is_empty() {
            problems.push(
                Problem::new("routes", "there is no route")
                    .help("name at least one, `routes = { slow = \".latency > 1\" }`"),
            );
        }
        for (name, condition) in &self.routes {
            let option = format!("routes.{name}");
            let is_name = !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
            if !is_name {
                problems.push(
                    Problem::new(&option, format!("{name:?} cannot be named among inputs"))
                        .help("use letters, digits, `_` and `-`"),
                );
            } else if name == OTHER || name == "rejected" {
                problems.push(
                    Problem::new(&option, format!("`{name}` is the name of an output that is there anyway"))
                        .help("give the route another name"),
                );
            }
            problems.extend(problems_of(&option, Condition::check(condition)));
        }
        problems
    }

    fn ports(&self) -> Ports {
        self.routes.keys().map(String::as_str).chain([OTHER]).map(str::to_owned).collect()
    }

    fn keying(&self) -> Keying {
        Keying::Stateless { assigns: Assigns::Nothing }
    }

    fn reads_fields(&self) -> Vec<FieldRead> {
        self.routes.iter().flat_map(|(name, condition)| of_condition(&format!("routes.{name}"), condition)).collect()
    }

    fn facts(&self) -> Facts {
        let branch = |(name, condition): (&String, &String)| Branch {
            option: format!("routes.{name}"),
            condition: condition.clone(),
            port: Some(name.clone()),
        };
        Facts::Branches(self.routes.iter().map(branch).collect())
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let routes: Vec<_> = self
            .routes
            .values()
            .map(|source| Condition::compile(source, context.paths).expect("the configuration was checked"))
            .collect();
        let reads = routes.iter().fold(Projection::default(), |reads, condition| reads.union(&condition.reads()));
        Built::Transform(Arc::new(Route {
            names: self.routes.keys().cloned().collect(),
            routes,
            reads,
            is_exclusive: self.exclusive,
        }))
    }
}

struct Route {
    names: Vec<String>,
    routes: Vec<Condition>,
    reads: Projection,
    is_exclusive: bool,
}

impl Transform for Route {
    fn apply(&self, mut batch: Batch, output: &mut Output) {
        batch.decode(&self.reads);
        let mut other: Vec<u32> = batch.rows().collect();
        for (place, condition) in self.routes.iter().enumerate() {
            // A record that an exclusive route has taken is not looked at again.
            let looked_at = if self.is_exclusive { batch.select(other.clone()) } else { batch.clone() };
            let rows = condition.select(&looked_at, &mut output.expression_errors);
            let open = other.len();
            other = without(&other, &rows);
            // Records that an earlier route has taken too leave by this one as copies.
            output.make(rows.len() - (open - other.len()));
            output.emit(place + 1, batch.select(rows));
        }
        output.emit(self.routes.len() + 1, batch.select(other));
    }

    fn reads(&self) -> Projection {
        self.reads.clone()
    }

    fn explain(&self) -> Vec<String> {
        self.names.iter().zip(&self.routes).map(|(name, condition)| format!("{name}: {}", condition.way())).collect()
    }
}

/// `rows` less those in `taken`; both rise.
fn without(rows: &[u32], taken: &[u32]) -> Vec<u32> {
    let mut taken = taken.iter().copied().peekable();
    rows.iter()
        .copied()
        .filter(|row| {
            while taken.next_if(|next| next < row).is_some() {}
            taken.next_if_eq(row).is_none()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::script;

    const STORY: &str = r#"
        00:01 {"latency":2,"status":200}
        00:02 {"latency":0.5,"status":500}
        00:03 {"latency":3,"status":500}
        00:04 {"latency":"3","status":200}
        00:05 {"status":200}
    "#;

    #[test]
    fn a_record_goes_where_conditions_are_true_of_it() {
        expect![[r#"
            failed: 00:02 {"latency":0.5,"status":500}
            failed: 00:03 {"latency":3,"status":500}
            slow: 00:01 {"latency":2,"status":200}
            slow: 00:03 {"latency":3,"status":500}
            other: 00:04 {"latency":"3","status":200}
            other: 00:05 {"status":200}
            (expression errors 2)
        "#]]
        .assert_eq(&script::run::<Config>("routes = { slow = '.latency > 1', failed = '.status >= 500' }", STORY));
    }

    #[test]
    fn an_exclusive_route_takes_what_it_gets() {
        expect![[r#"
            failed: 00:02 {"latency":0.5,"status":500}
            failed: 00:03 {"latency":3,"status":500}
            slow: 00:01 {"latency":2,"status":200}
            other: 00:04 {"latency":"3","status":200}
            other: 00:05 {"status":200}
            (expression errors 2)
        "#]]
        .assert_eq(&script::run::<Config>(
            "exclusive = true\nroutes = { slow = '.latency > 1', failed = '.status >= 500' }",
            STORY,
        ));
    }

    #[test]
    fn routes_that_cannot_be_are_told() {
        expect![[r#"
            routes: there is no route (name at least one, `routes = { slow = ".latency > 1" }`)
        "#]]
        .assert_eq(&script::problems::<Config>("routes = {}"));
        expect![[r#"
            routes.a b: "a b" cannot be named among inputs (use letters, digits, `_` and `-`)
            routes.c[5..5]: it ends where something is still to come
            routes.other: `other` is the name of an output that is there anyway (give the route another name)
            routes.rejected: `rejected` is the name of an output that is there anyway (give the route another name)
            routes.rejected[0..1]: a condition has to be true or false, and this is always integer (compare it with something, as in `.status >= 500`)
        "#]].assert_eq(&script::problems::<Config>(
            "routes = { other = 'true', \"a b\" = '.a', c = '.a ==', rejected = '1' }",
        ));
    }
}
