//! Expressions run by VRL itself.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use vrl::compiler::runtime::{Runtime, Terminate};
use vrl::compiler::state::{ExternalEnv, RuntimeState};
use vrl::compiler::{CompileConfig, Function, Program, TargetValue, TimeZone, compile_with_external};
use vrl::diagnostic::DiagnosticList;
use vrl::path::{OwnedTargetPath, PathPrefix, parse_target_path};
use vrl::value::{ObjectMap, Secrets, Value};

use super::Diagnostic;
use crate::codec::{FieldPath, PathTable, Projection};
use crate::event::Batch;

/// Why a program gave no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramError {
    /// It said `abort`.
    Aborted(String),
    Failed(String),
}

/// The standard library that needs no network.
static FUNCTIONS: LazyLock<Vec<Box<dyn Function>>> = LazyLock::new(vrl::stdlib::all);

/// Times without a zone are in UTC on every machine, so that results do not depend on where they were made.
static UTC: LazyLock<TimeZone> = LazyLock::new(|| TimeZone::parse("UTC").expect("the name of a zone"));

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(Runtime::new(RuntimeState::default()));
}

#[derive(Clone, Debug)]
pub(super) struct Vm {
    program: Arc<Program>,
    reads: Vec<FieldPath>,
    /// It reads the record as a whole.
    reads_all: bool,
    reads_metadata: bool,
}

impl Vm {
    /// Compiles a condition; one that can fail as written is compiled as `(condition) ?? false`.
    pub fn compile_condition(source: &str) -> Result<Self, Vec<Diagnostic>> {
        match compile(source, true) {
            Ok(vm) => Ok(vm),
            Err(problems) => compile_guarded(source, "false").map_err(|_| problems),
        }
    }

    /// Compiles an expression for its value; one that can fail gives no value where it does.
    pub fn compile_expression(source: &str) -> Result<Self, Vec<Diagnostic>> {
        match compile(source, true) {
            Ok(vm) => Ok(vm),
            Err(problems) => compile_guarded(source, "null").map_err(|_| problems),
        }
    }

    pub fn compile_program(source: &str) -> Result<Self, Vec<Diagnostic>> {
        compile(source, false)
    }

    /// Gives the paths it reads columns of the plan.
    pub fn bind(mut self, paths: &mut PathTable) -> Self {
        for query in &self.program.info().target_queries {
            match query.prefix {
                PathPrefix::Event if query.path.is_root() => self.reads_all = true,
                PathPrefix::Event => self.reads.push(paths.intern(&query.path)),
                PathPrefix::Metadata => self.reads_metadata = true,
            }
        }
        self
    }

    pub fn reads(&self) -> Projection {
        Projection::new(if self.reads_all { Vec::new() } else { self.reads.clone() })
    }

    /// The path that `source` is, if it is nothing else.
    pub fn as_path(&self, source: &str, paths: &mut PathTable) -> Option<FieldPath> {
        let OwnedTargetPath { prefix, path } = parse_target_path(source.trim()).ok()?;
        (source.trim().starts_with('.') && prefix == PathPrefix::Event && !path.is_root()).then(|| paths.intern(&path))
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

    /// Runs over the whole record and gives the record afterwards.
    pub fn run(&self, batch: &Batch, row: u32) -> Result<Value, ProgramError> {
        self.resolve(batch, row, batch.value(row).into_owned()).map(|(_, record)| record)
    }

    fn resolve(&self, batch: &Batch, row: u32, value: Value) -> Result<(Value, Value), ProgramError> {
        let metadata = if self.reads_metadata { batch.metadata(row) } else { Value::Object(ObjectMap::new()) };
        let mut target = TargetValue { value, metadata, secrets: Secrets::new() };
        RUNTIME.with_borrow_mut(|runtime| {
            let result = runtime.resolve(&mut target, &self.program, &UTC);
            runtime.clear();
            match result {
                Ok(result) => Ok((result, target.value)),
                Err(Terminate::Abort(error)) => Err(ProgramError::Aborted(error.to_string())),
                Err(error) => Err(ProgramError::Failed(error.to_string())),
            }
        })
    }
}

/// Compiles an expression that can fail so that it then gives `instead`. Braces are for what ends in a comment, which
/// parentheses, in which no line may end, cannot hold.
fn compile_guarded(source: &str, instead: &str) -> Result<Vm, Vec<Diagnostic>> {
    compile(&format!("({}) ?? {instead}", source.trim()), true)
        .or_else(|_| compile(&format!("{{ {source}\n}} ?? {instead}"), true))
}

fn compile(source: &str, is_read_only: bool) -> Result<Vm, Vec<Diagnostic>> {
    let mut config = CompileConfig::default();
    if is_read_only {
        config.set_read_only();
    }
    let compiled = compile_with_external(source, &FUNCTIONS, &ExternalEnv::default(), config)
        .map_err(|list| diagnostics(&list))?;
    Ok(Vm { program: Arc::new(compiled.program), reads: Vec::new(), reads_all: false, reads_metadata: false })
}

fn diagnostics(list: &DiagnosticList) -> Vec<Diagnostic> {
    list.iter()
        .filter(|diagnostic| diagnostic.is_problem())
        .map(|diagnostic| {
            let within = diagnostic.labels().first().map_or(0..0, |label| label.span.range());
            let labels: Vec<_> = diagnostic.labels().iter().map(|label| label.message.clone()).collect();
            let message = match labels.is_empty() {
                true => diagnostic.message().to_owned(),
                false => format!("{}: {}", diagnostic.message(), labels.join(", ")),
            };
            Diagnostic { within, message, help: None }
        })
        .collect()
}
