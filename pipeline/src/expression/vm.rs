//! Expressions run by VRL itself.

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use vrl::compiler::runtime::{Runtime, Terminate};
use vrl::compiler::state::{ExternalEnv, RuntimeState};
use vrl::compiler::{CompileConfig, Program, TargetValue, TimeZone, compile_with_external};
use vrl::diagnostic::{DiagnosticList, Note};
use vrl::parser::ast::RootExpr;
use vrl::path::{OwnedTargetPath, OwnedValuePath, PathPrefix};
use vrl::value::{ObjectMap, Secrets, Value};

use super::Diagnostic;
use super::functions::{FUNCTIONS, Noticed, notice, set_circumstances};
use crate::codec::{FieldPath, PathTable, Projection};
use crate::event::Batch;

/// Why a program gave no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// It said `abort`.
    #[error("{0}")]
    Aborted(String),
    #[error("{0}")]
    Failed(String),
}

/// Times without a zone are in UTC on every machine, so that results do not depend on where they were made.
static UTC: LazyLock<TimeZone> = LazyLock::new(|| TimeZone::parse("UTC").expect("the name of a zone"));

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(Runtime::new(RuntimeState::default()));
}

#[derive(Clone, Debug)]
pub(super) struct Vm {
    program: Arc<Program>,
    /// Its text, from which what is random in it is drawn.
    source: Arc<str>,
    reads: Vec<FieldPath>,
    /// It reads the record as a whole.
    reads_all: bool,
    reads_metadata: bool,
    /// It calls functions whose values depend on the record's coordinate or arrival.
    is_impure: bool,
    /// The paths that it deletes.
    deletes: Arc<[OwnedTargetPath]>,
}

impl Vm {
    /// Compiles a condition. One that can fail as written is null where it does, which is not true.
    pub fn compile_condition(source: &str) -> Result<Self, Vec<Diagnostic>> {
        let vm = compile_coalescing(source)?;
        let kind = vm.program.final_type_info().result.kind().clone();
        if kind.contains_boolean() {
            return Ok(vm);
        }
        Err(vec![Diagnostic {
            within: 0..source.len(),
            message: format!("a condition has to be true or false, and this is always {kind}"),
            help: Some("compare it with something, as in `.status >= 500`".to_owned()),
        }])
    }

    /// Compiles an expression for its value; one that can fail gives no value where it does.
    pub fn compile_expression(source: &str) -> Result<Self, Vec<Diagnostic>> {
        compile_coalescing(source)
    }

    pub fn compile_program(source: &str) -> Result<Self, Vec<Diagnostic>> {
        compile(source, false)
    }

    /// Gives the paths it reads columns of the plan.
    pub fn bind(mut self, paths: &mut PathTable) -> Self {
        let mut reads: Vec<OwnedValuePath> = Vec::new();
        for query in &self.program.info().target_queries {
            if query.prefix == PathPrefix::Event {
                // An array cannot be put together from some of its elements: it is read whole.
                let fields = query.path.segments.iter().take_while(|segment| segment.is_field());
                reads.push(OwnedValuePath { segments: fields.cloned().collect() });
            }
        }
        if reads.iter().any(OwnedValuePath::is_root) {
            self.reads_all = true;
            return self;
        }
        // In order, a path comes right before those that begin with it, and holds what they name.
        reads.sort();
        reads.dedup_by(|path, before| path.segments.starts_with(&before.segments));
        self.reads = reads.iter().map(|path| paths.intern(path)).collect();
        self
    }

    pub fn reads(&self) -> Projection {
        Projection::new(self.reads.iter().cloned())
    }

    /// The path that `source` is, if it is nothing else.
    pub fn as_path(source: &str, paths: &mut PathTable) -> Option<FieldPath> {
        let OwnedTargetPath { prefix, path } = crate::path::parse_target(source.trim())?;
        (source.trim().starts_with('.') && prefix == PathPrefix::Event && !path.is_root()).then(|| paths.intern(&path))
    }

    /// The paths of a record that running it may change.
    pub fn changes(&self) -> Vec<OwnedValuePath> {
        let targets = self.program.info().target_assignments.iter().chain(&*self.deletes);
        let mut changes: Vec<_> =
            targets.filter(|target| target.prefix == PathPrefix::Event).map(|target| target.path.clone()).collect();
        changes.sort();
        changes.dedup();
        changes
    }

    /// Whether running it over a record may give no record.
    pub fn can_fail(&self) -> bool {
        let info = self.program.info();
        info.fallible || info.abortable
    }

    /// The value of the expression for a row, over just the paths it reads.
    pub fn eval(&self, batch: &Batch, row: u32) -> Result<Value, ProgramError> {
        let value = if self.reads_all || batch.changed(row).is_some() {
            batch.value(row).into_owned()
        } else {
            let mut record = Value::Object(ObjectMap::new());
            for path in &self.reads {
                if let Some(value) = batch.field(row, path).to_value() {
                    record.insert(path.path(), value);
                }
            }
            record
        };
        self.resolve(batch, row, value).map(|(result, _)| result)
    }

    /// Runs over a record, of which `value` is all, and gives the record afterwards.
    pub fn run(&self, batch: &Batch, row: u32, value: Value) -> Result<Value, ProgramError> {
        self.resolve(batch, row, value).map(|(_, record)| record)
    }

    fn resolve(&self, batch: &Batch, row: u32, value: Value) -> Result<(Value, Value), ProgramError> {
        if self.is_impure {
            set_circumstances(&self.source, batch, row);
        }
        let metadata = if self.reads_metadata { batch.metadata(row) } else { Value::Object(ObjectMap::new()) };
        let mut target = TargetValue { value, metadata, secrets: Secrets::new() };
        RUNTIME.with_borrow_mut(|runtime| {
            // Some functions of VRL break on text that is not UTF-8. A record must not stop the pipeline.
            let result = catch_unwind(AssertUnwindSafe(|| runtime.resolve(&mut target, &self.program, &UTC)));
            runtime.clear();
            match result {
                Ok(Ok(result)) => Ok((result, target.value)),
                Ok(Err(Terminate::Abort(error))) => Err(ProgramError::Aborted(error.to_string())),
                Ok(Err(error)) => Err(ProgramError::Failed(error.to_string())),
                Err(_) => Err(ProgramError::Failed("a function broke on this record".to_owned())),
            }
        })
    }
}

/// How VRL's problems begin that say no more than that something can fail, or that `??` is used where nothing can.
const FALLIBLE: [&str; 3] = [
    "unhandled error",
    "invalid argument type: this expression resolves to any",
    "unnecessary error coalescing operation",
];

/// Compiles an expression that only reads; one that can fail as written becomes null where it does.
fn compile_coalescing(source: &str) -> Result<Vm, Vec<Diagnostic>> {
    let problems = match compile(source, true) {
        Ok(vm) => return Ok(vm),
        Err(problems) => problems,
    };
    let parsed = vrl::parser::parse(source);
    if parsed.is_ok_and(|parsed| parsed.0.iter().any(|root| matches!(root.inner(), RootExpr::Error(_)))) {
        return Err(problems);
    }
    // A line break ends a comment on the last line. One byte is put before the source, so that places can be told.
    let wrapped = format!("{{{source}\n}} ?? null");
    let mut within_source = match compile(&wrapped, true) {
        Ok(vm) => return Ok(vm),
        Err(problems) => problems,
    };
    // Together with other problems VRL also tells that things can fail, which is allowed for here.
    let of_failing = |problem: &Diagnostic| FALLIBLE.iter().any(|fallible| problem.message.starts_with(fallible));
    if !within_source.iter().all(of_failing) {
        within_source.retain(|problem| !of_failing(problem));
    }
    for problem in &mut within_source {
        let place = |at: usize| at.saturating_sub(1).min(source.len());
        problem.within = place(problem.within.start)..place(problem.within.end);
    }
    Err(within_source)
}

fn compile(source: &str, is_read_only: bool) -> Result<Vm, Vec<Diagnostic>> {
    let mut config = CompileConfig::default();
    if is_read_only {
        config.set_read_only();
    }
    let (compiled, Noticed { is_impure, deletes }) =
        notice(|| compile_with_external(source, &FUNCTIONS, &ExternalEnv::default(), config));
    let program = compiled.map_err(|list| diagnostics(&list, source))?.program;
    let info = program.info();
    let reads_metadata =
        info.target_queries.iter().chain(&info.target_assignments).any(|path| path.prefix == PathPrefix::Metadata);
    let (program, source) = (Arc::new(program), source.into());
    Ok(Vm { program, source, reads: Vec::new(), reads_all: false, reads_metadata, is_impure, deletes: deletes.into() })
}

/// What others write, and what it is here.
const OTHERWISE: [(&str, &str); 9] = [
    ("=>", ">="),
    ("=<", "<="),
    ("<>", "!="),
    ("===", "=="),
    ("and", "&&"),
    ("or", "||"),
    ("not", "!"),
    ("&", "&&"),
    ("is", "=="),
];

/// A problem of syntax in fewer words than the parser's, which lists all that might stand there; and what may be meant.
fn syntax(message: &str, within: &Range<usize>, source: &str) -> Option<(String, Option<String>)> {
    if message == "mutation of read-only value" {
        return Some((message.to_owned(), Some("`=` changes the record; `==` compares".to_owned())));
    }
    let problem = message.strip_prefix("syntax error: ")?;
    if problem.starts_with("unexpected end of program") {
        return Some(("it ends where something is still to come".to_owned(), None));
    }
    problem.strip_prefix("unexpected syntax token: ")?;
    let found = source.get(within.clone()).filter(|found| !found.trim().is_empty())?;
    // A sign may be told by a part of it.
    let is_sign = |sign: char| "=<>!&|".contains(sign);
    let (before, behind) = (source.get(..within.start)?, source.get(within.end..)?);
    let found = if found.starts_with(is_sign) {
        let from = before.trim_end_matches(is_sign).len();
        let to = source.len() - behind.trim_start_matches(is_sign).len();
        source.get(from..to)?
    } else {
        found
    };
    let word = before.trim_end().rsplit(|letter: char| !letter.is_alphanumeric()).next();
    let meant = OTHERWISE.iter().find(|(other, _)| *other == found || word == Some(*other));
    let help = meant.map(|(other, here)| format!("`{other}` is written `{here}`"));
    Some((format!("`{found}` cannot stand here"), help))
}

fn diagnostics(list: &DiagnosticList, source: &str) -> Vec<Diagnostic> {
    list.iter()
        .filter(|diagnostic| diagnostic.is_problem())
        .map(|diagnostic| {
            let spans = diagnostic.labels().iter().map(|label| label.span.range());
            let within = spans.clone().find(|span| !span.is_empty()).or(spans.clone().next()).unwrap_or(0..0);
            let mut message = diagnostic.message().to_owned();
            for label in diagnostic.labels().iter().map(|label| label.message.as_str()) {
                if !message.ends_with(label) {
                    message += if message.ends_with(':') { " " } else { ": " };
                    message += label.trim_end();
                }
            }
            // A function that refuses its arguments says so in a diagnostic within VRL's own, code and all.
            if let Some(inner) = message.strip_prefix("function compilation error: error[")
                && let Some((_, inner)) = inner.split_once("] ")
            {
                message = inner.to_owned();
            }
            let help = diagnostic.notes().iter().find_map(|note| match note {
                Note::Hint(hint) => Some(hint.clone()),
                _ => None,
            });
            match syntax(&message, &within, source) {
                Some((message, meant)) => Diagnostic { within, message, help: meant.or(help) },
                None => Diagnostic { within, message, help },
            }
        })
        .collect()
}
