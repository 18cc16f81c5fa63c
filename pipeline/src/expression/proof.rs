//! What can be said of a condition before any record comes: that it is true of none, or of all.
//!
//! Comparisons of fields with literals are reasoned about, alone and together; whatever else a condition is made of may be true or
//! false. So nothing is said that is not certain, and much that is true is not said.

use std::collections::BTreeMap;

use vrl::parser::ast::{Expr, Opcode, RootExpr, Unary};
use vrl::path::OwnedValuePath;

use super::native::{Comparison, Literal, Node, Outcome};
use super::recognise::{Recogniser, ungrouped};

/// So many ways in which a condition may become true are gone through. One that has more is taken to be true of some.
const WAYS_MAX: usize = 10_000;
/// Greater integers are not exact as a double, so that nothing is said of them.
const EXACT_MAX: i64 = 1 << 53;

/// What is known of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is true of no record.
    Never,
    /// It is true of every record.
    Always,
    Depends,
}

/// What is known of the field of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    /// It may be missing, and of any type.
    Nothing,
    /// It is a number, not less than `least`.
    Number {
        least: f64,
        is_integer: bool,
        /// Whether it can be null instead.
        is_nullable: bool,
    },
}

/// What can be said of a condition whose records have such fields. Nothing can of one that cannot be read.
pub fn prove(source: &str, known: impl Fn(&OwnedValuePath) -> Known) -> Verdict {
    let Ok(program) = vrl::parser::parse(source) else { return Verdict::Depends };
    let [root] = &program.0[..] else { return Verdict::Depends };
    let RootExpr::Expr(root) = root.inner() else { return Verdict::Depends };
    let prover = Prover { known };
    if !prover.can_be(root.inner(), true) {
        return Verdict::Never;
    }
    match prover.cannot_fail(root.inner()) && !prover.can_be(root.inner(), false) {
        true => Verdict::Always,
        false => Verdict::Depends,
    }
}

/// Whether a condition is true of every record that another is true of, as far as that is certain.
pub fn follows(condition: &str, from: &str, known: impl Fn(&OwnedValuePath) -> Known) -> bool {
    let (Ok(to), Ok(from)) = (vrl::parser::parse(condition), vrl::parser::parse(from)) else { return false };
    let ([to], [from]) = (&to.0[..], &from.0[..]) else { return false };
    let (RootExpr::Expr(to), RootExpr::Expr(from)) = (to.inner(), from.inner()) else { return false };
    let (to, from) = (to.inner(), from.inner());
    let prover = Prover { known };
    // Where it fails it is not true; what is ordered against the like does not fail.
    let is_sure = prover.cannot_fail(to)
        || matches!((order(to), order(from)), (Some(to), Some(from)) if to.0 == from.0 && to.1 == from.1);
    let (holds, not) = (claim(from, true), claim(to, false));
    is_sure && !prover.can_hold(&mut vec![&holds, &not], &mut Vec::new(), &mut 0)
}

/// Of a comparison by order, the field, and whether it is compared with a number.
fn order(expr: &Expr) -> Option<(OwnedValuePath, bool)> {
    match claim(expr, true) {
        Claim::Test(path, comparison, literal) if !matches!(comparison, Comparison::Equal | Comparison::NotEqual) => {
            Some((path, literal.as_f64().is_some()))
        }
        _ => None,
    }
}

/// What must hold for a condition to be true, or to be false.
#[derive(Debug)]
enum Claim {
    /// Always.
    True,
    False,
    /// Nobody knows.
    Perhaps,
    Test(OwnedValuePath, Comparison, Literal),
    All(Vec<Claim>),
    Any(Vec<Claim>),
}

struct Prover<F> {
    known: F,
}

impl<F: Fn(&OwnedValuePath) -> Known> Prover<F> {
    fn can_be(&self, expr: &Expr, truth: bool) -> bool {
        let claim = claim(expr, truth);
        self.can_hold(&mut vec![&claim], &mut Vec::new(), &mut 0)
    }

    /// Whether all that is `open` can hold beside the tests.
    fn can_hold<'c>(
        &self,
        open: &mut Vec<&'c Claim>,
        tests: &mut Vec<(&'c OwnedValuePath, Comparison, &'c Literal)>,
        ways: &mut usize,
    ) -> bool {
        *ways += 1;
        if *ways > WAYS_MAX {
            return true;
        }
        let Some(next) = open.pop() else { return true };
        match next {
            Claim::True | Claim::Perhaps => self.can_hold(open, tests, ways),
            Claim::False => false,
            Claim::Test(path, comparison, literal) => {
                tests.push((path, *comparison, literal));
                self.is_possible(path, tests) && self.can_hold(open, tests, ways)
            }
            Claim::All(all) => {
                open.extend(all);
                self.can_hold(open, tests, ways)
            }
            Claim::Any(any) => any.iter().any(|one| {
                let (mut open, mut tests) = (open.clone(), tests.clone());
                open.push(one);
                self.can_hold(&mut open, &mut tests, ways)
            }),
        }
    }

    /// Whether some value of the field passes all tests of it.
    fn is_possible(&self, path: &OwnedValuePath, tests: &[(&OwnedValuePath, Comparison, &Literal)]) -> bool {
        let of_path = tests.iter().filter(|(tested, ..)| *tested == path);
        let of_path: Vec<_> = of_path.map(|(_, comparison, literal)| (*comparison, *literal)).collect();
        let known = (self.known)(path);
        let is_nullable = !matches!(known, Known::Number { is_nullable: false, .. });
        is_nullable && passes(&of_path, &Literal::Null)
            || is_number_possible(&of_path, known)
            || known == Known::Nothing && is_other_possible(&of_path)
    }

    /// Whether it is true or false of every record, rather than failing or null.
    fn cannot_fail(&self, expr: &Expr) -> bool {
        match ungrouped(expr) {
            Expr::Unary(unary) => {
                let Unary::Not(not) = unary.inner();
                let (_, inner) = not.inner().clone().take();
                self.cannot_fail(inner.inner())
            }
            Expr::Op(op) if matches!(op.inner().1.inner(), Opcode::And | Opcode::Or | Opcode::Err) => {
                self.cannot_fail(op.inner().0.inner()) && self.cannot_fail(op.inner().2.inner())
            }
            expr => {
                let mut recogniser = Recogniser::default();
                match recogniser.condition(expr) {
                    Some(Node::Constant(outcome)) => matches!(outcome, Outcome::True | Outcome::False),
                    Some(Node::Compare(_, Comparison::Equal | Comparison::NotEqual, _)) => true,
                    Some(Node::Compare(path, _, literal)) => {
                        let known = (self.known)(&recogniser.paths[path]);
                        literal.as_f64().is_some() && matches!(known, Known::Number { is_nullable: false, .. })
                    }
                    _ => false,
                }
            }
        }
    }
}

/// What must hold for the condition to be true or false. Where it fails it is neither.
fn claim(expr: &Expr, truth: bool) -> Claim {
    match ungrouped(expr) {
        Expr::Unary(unary) => {
            let Unary::Not(not) = unary.inner();
            let (_, inner) = not.inner().clone().take();
            claim(inner.inner(), !truth)
        }
        Expr::Op(op) if matches!(op.inner().1.inner(), Opcode::And | Opcode::Or | Opcode::Err) => {
            let op = op.inner();
            let sides = vec![claim(op.0.inner(), truth), claim(op.2.inner(), truth)];
            match (op.1.inner(), truth) {
                (Opcode::And, true) | (Opcode::Or, false) => Claim::All(sides),
                // The second side of `??` decides where the first fails.
                _ => Claim::Any(sides),
            }
        }
        expr => {
            let mut recogniser = Recogniser::default();
            match recogniser.condition(expr) {
                Some(Node::Constant(Outcome::True)) if truth => Claim::True,
                Some(Node::Constant(Outcome::False)) if !truth => Claim::True,
                Some(Node::Constant(Outcome::True | Outcome::False)) => Claim::False,
                Some(Node::Compare(path, comparison, literal)) => {
                    let comparison = if truth { comparison } else { comparison.negated() };
                    Claim::Test(recogniser.paths[path].clone(), comparison, literal)
                }
                _ => Claim::Perhaps,
            }
        }
    }
}

/// Whether a value, given as a literal, passes the tests.
fn passes(tests: &[(Comparison, &Literal)], value: &Literal) -> bool {
    tests.iter().all(|(comparison, literal)| {
        let (number, other) = (value.as_f64(), literal.as_f64());
        let is_equal = if number.is_some() && other.is_some() { number == other } else { value == *literal };
        let order = match (value, literal) {
            (Literal::Text(value), Literal::Text(literal)) => Some(value.cmp(literal)),
            _ => number.zip(other).and_then(|(number, other)| number.partial_cmp(&other)),
        };
        match comparison {
            Comparison::Equal => is_equal,
            Comparison::NotEqual => !is_equal,
            Comparison::Less => order.is_some_and(|order| order.is_lt()),
            Comparison::LessOrEqual => order.is_some_and(|order| order.is_le()),
            Comparison::Greater => order.is_some_and(|order| order.is_gt()),
            Comparison::GreaterOrEqual => order.is_some_and(|order| order.is_ge()),
        }
    })
}

/// Whether some number passes the tests: one of those that are written, one between two of them, or one beyond all.
fn is_number_possible(tests: &[(Comparison, &Literal)], known: Known) -> bool {
    let is_inexact = |(_, literal): &&(Comparison, &Literal)| match literal {
        Literal::Integer(number) => number.unsigned_abs() > EXACT_MAX.unsigned_abs(),
        Literal::Float(number) => !number.is_finite() || number.abs() > EXACT_MAX as f64,
        _ => false,
    };
    if tests.iter().find(is_inexact).is_some() {
        return true;
    }
    let (least, is_integer) = match known {
        Known::Nothing => (f64::NEG_INFINITY, false),
        Known::Number { least, is_integer, .. } => (least, is_integer),
    };
    let mut marks: Vec<f64> = tests.iter().filter_map(|(_, literal)| literal.as_f64()).collect();
    marks.extend(least.is_finite().then_some(least));
    marks.push(0.0);
    marks.sort_by(f64::total_cmp);
    let mut candidates = vec![marks[0] - 1.0, marks[marks.len() - 1] + 1.0];
    for (at, mark) in marks.iter().enumerate() {
        candidates.push(*mark);
        match is_integer {
            true => candidates.extend([mark.floor(), mark.ceil(), mark.floor() - 1.0, mark.ceil() + 1.0]),
            false => candidates.extend(marks.get(at + 1).map(|next| mark + (next - mark) / 2.0)),
        }
    }
    let is_known = |number: &f64| *number >= least && (!is_integer || number.fract() == 0.0);
    candidates.iter().filter(|number| is_known(number)).any(|number| passes(tests, &Literal::Float(*number)))
}

/// Whether something that is neither null nor a number passes the tests. Texts lie so close that only equality is gone into.
fn is_other_possible(tests: &[(Comparison, &Literal)]) -> bool {
    let is_equality = |comparison: &Comparison| matches!(comparison, Comparison::Equal | Comparison::NotEqual);
    let orders: Vec<_> = tests.iter().filter(|(comparison, _)| !is_equality(comparison)).collect();
    let equals = tests.iter().find(|(comparison, _)| *comparison == Comparison::Equal);
    match (equals, &orders[..]) {
        (Some((_, value)), _) => !matches!(value, Literal::Null) && value.as_f64().is_none() && passes(tests, value),
        // Some text, truth or list is none of those that it must not be.
        (None, []) => true,
        // What is ordered against text is text; between two bounds there mostly is one.
        (None, orders) => {
            let mut bounds: BTreeMap<bool, Vec<&Vec<u8>>> = BTreeMap::new();
            for (comparison, literal) in orders {
                let Literal::Text(text) = literal else { return false };
                let is_below = matches!(comparison, Comparison::Less | Comparison::LessOrEqual);
                bounds.entry(is_below).or_default().push(text);
            }
            let below = bounds.get(&true).and_then(|texts| texts.iter().min());
            let above = bounds.get(&false).and_then(|texts| texts.iter().max());
            below.zip(above).is_none_or(|(below, above)| above <= below)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.n` counts records, `.p` is a number or null, everything else is unknown.
    fn verdict(source: &str) -> Verdict {
        prove(source, |path| match path.to_string().as_str() {
            "n" => Known::Number { least: 1.0, is_integer: true, is_nullable: false },
            "p" => Known::Number { least: f64::NEG_INFINITY, is_integer: false, is_nullable: true },
            _ => Known::Nothing,
        })
    }

    #[test]
    fn what_is_true_of_no_record_is_found() {
        for source in [
            "false",
            "!true",
            ".a > 5 && .a < 3",
            ".a > 5 && contains(string!(.b), \"x\") && .a < 3",
            ".a > 5 && .a <= 5",
            ".a == \"x\" && .a == \"y\"",
            ".a == 1 && (.b == 2 || .c == 3) && .a != 1",
            "(.a == 1 || .a == 2) && .a > 3",
            ".a > 5 && .a == \"x\"",
            ".a < \"a\" && .a > \"b\"",
            ".a == null && .a > 5",
            "!(.a > 3) && .a > 4",
            ".n < 1",
            ".n == 0",
            "5 > .n && .n > 4",
            ".n == 1.5",
            ".n == \"5\"",
            ".p == \"5\"",
            ".n == null",
            ".n > 3 && false",
        ] {
            assert_eq!(verdict(source), Verdict::Never, "{source}");
        }
    }

    #[test]
    fn what_is_true_of_every_record_is_found() {
        for source in [
            "true",
            "!false",
            ".a != \"x\" || .a != \"y\"",
            ".a == 1 || .a != 1",
            ".n > 0",
            ".n >= 1",
            ".n > 0.5 && true",
            ".n < 10 || .n >= 10",
            "!(.n == 0)",
        ] {
            assert_eq!(verdict(source), Verdict::Always, "{source}");
        }
    }

    #[test]
    fn what_follows_from_another_condition_is_found() {
        let follows = |condition, from| {
            follows(condition, from, |path| match path.to_string().as_str() {
                "n" => Known::Number { least: 1.0, is_integer: true, is_nullable: false },
                _ => Known::Nothing,
            })
        };
        assert!(follows(".a > 10", ".a > 100") && follows(".a >= 5", ".a > 5") && follows(".a > \"a\"", ".a > \"b\""));
        assert!(follows(".n > 1 || .n == 1", ".a == 3") && follows(".n > 10", ".n > 100 && .a == 3"));
        assert!(!follows(".a > 100", ".a > 10") && !follows(".a > 10", ".b > 100") && !follows(".a > 5", ".a == null"));
        // The one may be missing where the other decides.
        assert!(!follows(".c > 1 || .a > 0", ".a > 1") && !follows(".a > \"x\"", ".a > 5"));
    }

    #[test]
    fn nothing_is_said_of_what_may_be_either() {
        for source in [
            ".a > 3 && .a < 5",
            ".a >= 5 && .a <= 5",
            ".a > 5 && .a < 6",
            ".a > 5 || .a <= 5",
            ".a != \"x\" && .a != \"y\"",
            ".a > \"a\" && .a < \"b\"",
            ".a != 5 && .a == \"x\"",
            ".a",
            "!.a",
            ".a ?? true",
            ".a > 5 ?? true",
            "contains(string!(.a), \"x\")",
            ".n > 1",
            ".n != 3",
            ".n > 9007199254740993 && .n < 9007199254740994",
            ".p > 5 || .p <= 5",
            ".p == null",
            ".p != \"5\" && .p > 1",
            "length(string!(.a)) > 3",
            ".a == true || .a == false",
            "nonsense(",
        ] {
            assert_eq!(verdict(source), Verdict::Depends, "{source}");
        }
        let many = vec!["(.a == 1 || .b == 1 || .c == 1)"; 30].join(" && ");
        assert_eq!(verdict(&format!("{many} && .d == 1 && .d == 2")), Verdict::Never);
        assert_eq!(verdict(&format!(".d == 1 && .d == 2 && {many}")), Verdict::Depends);
    }
}
