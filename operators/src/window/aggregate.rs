//! What is computed of a window: `count()`, `mean(.latency)`, `quantile(.latency, 0.99)`, …, read with VRL's own parser.

use std::ops::Range;

use tocsin_pipeline::codec::{PathTable, Projection};
use tocsin_pipeline::expression::{Condition, Diagnostic, Expression, Known};
use vrl::parser::ast::{Expr, Literal, RootExpr};

/// The functions, as they are told where none is recognised.
const FUNCTIONS: [&str; 10] = ["count", "sum", "mean", "min", "max", "quantile", "distinct", "first", "last", "rate"];

/// Functions of which other programs know the name, and what does the same here.
const ELSEWHERE: [(&str, &str); 8] = [
    ("avg", "mean"),
    ("average", "mean"),
    ("percentile", "quantile"),
    ("count_distinct", "distinct"),
    ("approx_distinct", "distinct"),
    ("cardinality", "distinct"),
    ("minimum", "min"),
    ("maximum", "max"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    Count,
    Rate,
    Sum,
    Mean,
    Min,
    Max,
    Quantile(f64),
    Distinct,
    First,
    Last,
}

/// What is folded of each record.
#[derive(Debug)]
pub(super) enum Argument {
    /// The record itself.
    Record,
    /// The record, if it is true.
    Condition(Condition),
    /// A value of it.
    Value(Expression),
}

/// One aggregate of a window.
#[derive(Debug)]
pub(super) struct Aggregate {
    pub name: String,
    pub function: Function,
    pub argument: Argument,
}

impl Aggregate {
    /// Finds every problem of a call.
    pub fn check(source: &str) -> Vec<Diagnostic> {
        let (function, argument) = match call(source) {
            Ok(call) => call,
            Err(problem) => return vec![*problem],
        };
        let Some(argument) = argument else { return Vec::new() };
        let text = &source[argument.clone()];
        let mut problems = match function {
            Function::Count | Function::Rate => Condition::check(text),
            _ => Expression::check(text),
        };
        for problem in &mut problems {
            // The compiler may add text of its own around the argument; its places are then the argument as a whole.
            let end = problem.within.end.min(text.len());
            let start = problem.within.start.min(end);
            problem.within = argument.start + start..argument.start + end;
        }
        problems
    }

    /// Compiles a call that [`Self::check`] has found nothing with.
    pub fn compile(name: &str, source: &str, paths: &mut PathTable) -> Self {
        const CHECKED: &str = "the configuration was checked";
        let (function, argument) = call(source).expect(CHECKED);
        let argument = match (function, argument) {
            (_, None) => Argument::Record,
            (Function::Count | Function::Rate, Some(range)) => {
                Argument::Condition(Condition::compile(&source[range], paths).expect(CHECKED))
            }
            (_, Some(range)) => Argument::Value(Expression::compile(&source[range], paths).expect(CHECKED)),
        };
        Self { name: name.to_owned(), function, argument }
    }

    pub fn reads(&self) -> Projection {
        match &self.argument {
            Argument::Record => Projection::default(),
            Argument::Condition(condition) => condition.reads(),
            Argument::Value(expression) => expression.reads(),
        }
    }
}

/// What is known of the values of a call. A window without a record is not emitted, so that there is at least one to count.
pub(super) fn known(source: &str) -> Known {
    let Ok((function, argument)) = call(source) else { return Known::Nothing };
    let number = |least: f64, is_integer, is_nullable| Known::Number { least, is_integer, is_nullable };
    match (function, argument) {
        (Function::Count, None) => number(1.0, true, false),
        (Function::Count, Some(_)) | (Function::Distinct, _) => number(0.0, true, false),
        (Function::Rate, _) => number(0.0, false, false),
        (Function::Sum, _) => number(f64::NEG_INFINITY, false, false),
        (Function::Mean | Function::Quantile(_), _) => number(f64::NEG_INFINITY, false, true),
        // They may be times, or anything.
        (Function::Min | Function::Max | Function::First | Function::Last, _) => Known::Nothing,
    }
}

/// Takes a call apart: the function, and where its argument stands.
fn call(source: &str) -> Result<(Function, Option<Range<usize>>), Box<Diagnostic>> {
    let problem = |within: Range<usize>, message: &str, help: Option<String>| {
        Box::new(Diagnostic { within, message: message.to_owned(), help })
    };
    let known = || Some(format!("write one of {}, such as `mean(.latency_ms)`", FUNCTIONS.join(", ")));
    // The compiler tells more of what it cannot read than the parser does, and where it stands.
    let unreadable = || {
        let found = Expression::check(source).into_iter().next();
        found.map_or_else(|| problem(0..source.len(), "cannot be read", known()), Box::new)
    };
    let program = vrl::parser::parse(source).map_err(|_| unreadable())?;
    let [root] = &program.0[..] else { return Err(problem(0..source.len(), "must be one call", known())) };
    let call = match &**root {
        RootExpr::Expr(expression) => match &**expression {
            Expr::FunctionCall(call) => call,
            _ => return Err(problem(root.span().range(), "must be a call of an aggregate function", known())),
        },
        RootExpr::Error(_) => return Err(unreadable()),
    };
    let within = call.ident.span().range();
    let name: &str = &call.ident;
    if call.abort_on_error || call.closure.is_some() {
        return Err(problem(within, "aggregate functions take neither `!` nor a closure", None));
    }
    if let Some(argument) = call.arguments.iter().find(|argument| argument.ident.is_some()) {
        return Err(problem(argument.span().range(), "arguments of aggregate functions have no names", None));
    }
    let argument = call.arguments.first().map(|argument| argument.span().range());
    let (function, wanted) = match name {
        "count" => (Function::Count, 0..=1),
        "rate" => (Function::Rate, 0..=1),
        "sum" => (Function::Sum, 1..=1),
        "mean" => (Function::Mean, 1..=1),
        "min" => (Function::Min, 1..=1),
        "max" => (Function::Max, 1..=1),
        "quantile" => (Function::Quantile(0.0), 2..=2),
        "distinct" => (Function::Distinct, 1..=1),
        "first" => (Function::First, 1..=1),
        "last" => (Function::Last, 1..=1),
        "top" | "stddev" | "ratio" | "collect" => {
            return Err(problem(within, &format!("`{name}` is not supported yet"), None));
        }
        _ => {
            let help = ELSEWHERE.iter().find(|(other, _)| *other == name);
            let help = help.map(|(_, here)| format!("did you mean `{here}`?")).or_else(known);
            return Err(problem(within, &format!("there is no aggregate function `{name}`"), help));
        }
    };
    if !wanted.contains(&call.arguments.len()) {
        let message = match name {
            "count" | "rate" => format!("`{name}` takes nothing or a condition"),
            "quantile" => "`quantile` takes an expression and a number from 0 to 1".to_owned(),
            _ => format!("`{name}` takes one expression"),
        };
        let help = match name {
            "count" | "rate" => None,
            "quantile" => Some("write `quantile(.latency_ms, 0.99)`".to_owned()),
            _ => Some(format!("write `{name}(.latency_ms)`")),
        };
        return Err(problem(call.span().range(), &message, help));
    }
    if let Function::Quantile(_) = function {
        let argument_q = &call.arguments[1];
        let q = match &*argument_q.expr {
            Expr::Literal(literal) => match &**literal {
                Literal::Float(q) => Some(q.into_inner()),
                Literal::Integer(q) => Some(*q as f64),
                _ => None,
            },
            _ => None,
        };
        let Some(q) = q.filter(|q| (0.0..=1.0).contains(q)) else {
            let help = Some("the 99th percentile is `0.99`".to_owned());
            return Err(problem(argument_q.span().range(), "must be a number from 0 to 1", help));
        };
        return Ok((Function::Quantile(q), argument));
    }
    Ok((function, argument))
}
