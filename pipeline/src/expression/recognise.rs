//! Finds in VRL's parsed tree the shapes that [`Native`] can evaluate. What it does not know it leaves to VRL.

use memchr::memmem;
use regex::Regex;
use vrl::parser::ast::{Container, Expr, FunctionCall, Literal as AstLiteral, Node as Ast, Opcode, QueryTarget};
use vrl::parser::ast::{RootExpr, Unary};
use vrl::path::{OwnedValuePath, PathPrefix};

use super::native::{Comparison, Kind, Literal, Native, Node, Outcome, TextTest};
use crate::codec::PathTable;

/// The native form of a condition that VRL has compiled, if it has one.
pub(super) fn recognise(source: &str, paths: &mut PathTable) -> Option<Native> {
    let program = vrl::parser::parse(source).ok()?;
    let [root] = &program.0[..] else { return None };
    let RootExpr::Expr(root) = root.inner() else { return None };
    let mut recogniser = Recogniser::default();
    let root = recogniser.condition(root.inner())?;
    // Only now: a condition that is left to VRL reads other columns.
    let paths = recogniser.paths.iter().map(|path| paths.intern(path)).collect();
    Some(Native { root, paths })
}

#[derive(Default)]
pub(super) struct Recogniser {
    pub(super) paths: Vec<OwnedValuePath>,
}

impl Recogniser {
    pub(super) fn condition(&mut self, expr: &Expr) -> Option<Node> {
        match ungrouped(expr) {
            Expr::Literal(literal) => match literal.inner() {
                AstLiteral::Boolean(value) => Some(Node::Constant((*value).into())),
                AstLiteral::Null => Some(Node::Constant(Outcome::Null)),
                _ => None,
            },
            Expr::Query(_) => self.path(expr).map(Node::Truth),
            Expr::Unary(unary) => {
                let Unary::Not(not) = unary.inner();
                let (_, inner) = not.inner().clone().take();
                Some(Node::Not(Box::new(self.condition(inner.inner())?)))
            }
            Expr::Op(op) => {
                let op = op.inner();
                let (left, right) = (op.0.inner(), op.2.inner());
                let comparison = match op.1.inner() {
                    Opcode::And => return Some(Node::And(self.both(left, right)?)),
                    Opcode::Or => return Some(Node::Or(self.both(left, right)?)),
                    Opcode::Err => return Some(Node::Otherwise(self.both(left, right)?)),
                    Opcode::Eq => Comparison::Equal,
                    Opcode::Ne => Comparison::NotEqual,
                    Opcode::Lt => Comparison::Less,
                    Opcode::Le => Comparison::LessOrEqual,
                    Opcode::Gt => Comparison::Greater,
                    Opcode::Ge => Comparison::GreaterOrEqual,
                    _ => return None,
                };
                match (literal(left), literal(right)) {
                    (None, Some(literal)) => Some(Node::Compare(self.path(left)?, comparison, literal)),
                    (Some(literal), None) => Some(Node::Compare(self.path(right)?, comparison.reversed(), literal)),
                    _ => None,
                }
            }
            Expr::FunctionCall(call) => self.call(call.inner()),
            _ => None,
        }
    }

    fn both(&mut self, left: &Expr, right: &Expr) -> Option<Box<[Node; 2]>> {
        Some(Box::new([self.condition(left)?, self.condition(right)?]))
    }

    /// The number of the path of the record that an expression is.
    fn path(&mut self, expr: &Expr) -> Option<usize> {
        let Expr::Query(query) = ungrouped(expr) else { return None };
        let query = query.inner();
        let path = query.path.inner();
        if *query.target.inner() != QueryTarget::External(PathPrefix::Event) || path.is_root() {
            return None;
        }
        let known = self.paths.iter().position(|known| known == path);
        Some(known.unwrap_or_else(|| {
            self.paths.push(path.clone());
            self.paths.len() - 1
        }))
    }

    /// The path within an argument that has to be text: `string(.a)` fails just where the function around it would.
    fn text_path(&mut self, expr: &Expr) -> Option<usize> {
        match ungrouped(expr) {
            Expr::FunctionCall(call) if &**call.inner().ident.inner() == "string" => {
                let [value] = arguments(call.inner(), ["value"])?;
                self.path(value?)
            }
            _ => self.path(expr),
        }
    }

    fn call(&mut self, call: &FunctionCall) -> Option<Node> {
        let kind = match &**call.ident.inner() {
            "contains" => return self.text_test(call, TextTest::contains),
            "starts_with" => return self.text_test(call, TextTest::starts_with),
            "ends_with" => return self.text_test(call, TextTest::ends_with),
            "match" => {
                let [value, pattern] = arguments(call, ["value", "pattern"])?;
                let Expr::Literal(pattern) = ungrouped(pattern?) else { return None };
                let AstLiteral::Regex(pattern) = pattern.inner() else { return None };
                let test = TextTest::Matches(Box::new(Regex::new(pattern).ok()?));
                return Some(Node::Text(self.text_path(value?)?, test));
            }
            "exists" => {
                let [field] = arguments(call, ["field"])?;
                return self.path(field?).map(Node::Exists);
            }
            "includes" => {
                let [value, item] = arguments(call, ["value", "item"])?;
                let (value, item) = (ungrouped(value?), item?);
                if let Some(item) = literal(item) {
                    return Some(Node::Includes(self.path(value)?, item));
                }
                let Expr::Container(list) = value else { return None };
                let Container::Array(list) = list.inner() else { return None };
                let list: Option<Vec<_>> =
                    list.inner().clone().into_iter().map(|element| literal(element.inner())).collect();
                return Some(Node::OneOf(self.path(item)?, list?));
            }
            "is_string" => Kind::Text,
            "is_integer" => Kind::Integer,
            "is_float" => Kind::Float,
            "is_boolean" => Kind::Boolean,
            "is_null" => Kind::Null,
            "is_timestamp" => Kind::Timestamp,
            "is_array" => Kind::Array,
            "is_object" => Kind::Object,
            "is_empty" => Kind::Empty,
            "is_nullish" => Kind::Nullish,
            _ => return None,
        };
        let [value] = arguments(call, ["value"])?;
        Some(Node::Is(self.path(value?)?, kind))
    }

    fn text_test(&mut self, call: &FunctionCall, test: fn(&str, bool) -> TextTest) -> Option<Node> {
        let [value, substring, case_sensitive] = arguments(call, ["value", "substring", "case_sensitive"])?;
        let Some(Literal::Text(substring)) = literal(substring?) else { return None };
        let is_case_sensitive = match case_sensitive.map(literal) {
            None => true,
            Some(Some(Literal::Boolean(value))) => value,
            Some(_) => return None,
        };
        Some(Node::Text(self.text_path(value?)?, test(std::str::from_utf8(&substring).ok()?, is_case_sensitive)))
    }
}

pub(super) fn ungrouped(mut expr: &Expr) -> &Expr {
    while let Expr::Container(container) = expr
        && let Container::Group(group) = container.inner()
    {
        expr = group.inner().0.inner();
    }
    expr
}

fn literal(expr: &Expr) -> Option<Literal> {
    let Expr::Literal(literal) = ungrouped(expr) else { return None };
    Some(match literal.inner() {
        AstLiteral::String(template) if template.0.is_empty() => Literal::Text(Vec::new()),
        AstLiteral::String(template) => Literal::Text(template.as_literal_string()?.into()),
        AstLiteral::RawString(text) => Literal::Text(text.as_str().into()),
        AstLiteral::Integer(value) => Literal::Integer(*value),
        AstLiteral::Float(value) => Literal::Float(value.into_inner()),
        AstLiteral::Boolean(value) => Literal::Boolean(*value),
        AstLiteral::Null => Literal::Null,
        AstLiteral::Regex(_) | AstLiteral::Timestamp(_) => return None,
    })
}

/// The arguments of a call by parameter: the named ones have their places, the others fill what is left, in order.
fn arguments<'a, const N: usize>(call: &'a FunctionCall, parameters: [&str; N]) -> Option<[Option<&'a Expr>; N]> {
    if call.closure.is_some() {
        return None;
    }
    let mut places = [None; N];
    for argument in call.arguments.iter().map(Ast::inner) {
        if let Some(name) = &argument.ident {
            let place = parameters.iter().position(|parameter| *parameter == &**name.inner())?;
            places[place] = Some(argument.expr.inner());
        }
    }
    for argument in call.arguments.iter().map(Ast::inner).filter(|argument| argument.ident.is_none()) {
        let place = places.iter().position(Option::is_none)?;
        places[place] = Some(argument.expr.inner());
    }
    Some(places)
}

impl Native {
    /// Literals of which one stands in the text of a record for which the condition is true.
    pub fn literals(&self) -> Option<Vec<Vec<u8>>> {
        self.root.literals().map(|mut literals| {
            literals.sort();
            literals.dedup();
            // What holds another literal is found where that one is.
            let all = literals.clone();
            literals.retain(|long| !all.iter().any(|short| short != long && memmem::find(long, short).is_some()));
            literals
        })
    }
}

/// More literals than these are searched for no faster than records are decoded.
const MAX_LITERALS: usize = 256;

impl Node {
    fn literals(&self) -> Option<Vec<Vec<u8>>> {
        let found = match self {
            Self::And(sides) => match (sides[0].literals(), sides[1].literals()) {
                (Some(left), Some(right)) => Some(better(left, right)),
                (left, right) => left.or(right),
            },
            Self::Or(sides) | Self::Otherwise(sides) => {
                let mut literals = sides[0].literals()?;
                literals.extend(sides[1].literals()?);
                Some(literals)
            }
            // It is never true, so every literal will do. None is kept: the condition is wrong rather than fast.
            Self::Constant(_) => None,
            Self::Compare(_, Comparison::Equal, Literal::Text(text)) | Self::Includes(_, Literal::Text(text)) => {
                Some(vec![text.clone()])
            }
            Self::OneOf(_, list) => list
                .iter()
                .map(|literal| match literal {
                    Literal::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            Self::Text(_, test) => test.literals(),
            Self::Compare(..) | Self::Includes(..) | Self::Not(_) | Self::Truth(_) | Self::Exists(_) | Self::Is(..) => {
                None
            }
        };
        found.filter(|literals| {
            (1..=MAX_LITERALS).contains(&literals.len()) && literals.iter().all(|literal| !literal.is_empty())
        })
    }
}

/// The set that fewer records are likely to hold: that with the longer shortest literal, then the smaller one.
fn better(left: Vec<Vec<u8>>, right: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let rank = |literals: &[Vec<u8>]| {
        let shortest = literals.iter().map(Vec::len).min().unwrap_or(0);
        (shortest.min(4), std::cmp::Reverse(literals.len()), shortest)
    };
    if rank(&right) > rank(&left) { right } else { left }
}

impl TextTest {
    fn literals(&self) -> Option<Vec<Vec<u8>>> {
        let literals = match self {
            Self::Contains(finder) => vec![finder.needle().to_vec()],
            Self::StartsWith(needle) | Self::EndsWith(needle) => vec![needle.clone()],
            Self::Matches(regex) => required(&regex_syntax::parse(regex.as_str()).ok()?)?,
            Self::ContainsIgnoringCase(_) | Self::StartsWithIgnoringCase(_) | Self::EndsWithIgnoringCase(_) => {
                return None;
            }
        };
        // VRL looks for these in text with replacements, which the raw bytes of the record do not have.
        let is_lossy = !matches!(self, Self::StartsWith(_));
        let is_found = |literal: &Vec<u8>| !is_lossy || !super::native::has_replacement(literal);
        literals.iter().all(is_found).then_some(literals)
    }
}

/// Literals of which one stands in every text that a regex matches.
fn required(hir: &regex_syntax::hir::Hir) -> Option<Vec<Vec<u8>>> {
    use regex_syntax::hir::HirKind;
    let found = match hir.kind() {
        HirKind::Literal(literal) => Some(vec![literal.0.to_vec()]),
        HirKind::Capture(capture) => required(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => required(&repetition.sub),
        HirKind::Concat(parts) => parts.iter().filter_map(required).reduce(better),
        HirKind::Alternation(branches) => {
            let all: Option<Vec<_>> = branches.iter().map(required).collect();
            Some(all?.into_iter().flatten().collect())
        }
        HirKind::Empty | HirKind::Class(_) | HirKind::Look(_) | HirKind::Repetition(_) => None,
    };
    found.filter(|literals| literals.iter().all(|literal| !literal.is_empty()))
}
