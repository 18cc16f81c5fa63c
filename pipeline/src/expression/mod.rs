//! Expressions in VRL: conditions, aggregate arguments, keys, programs.
//!
//! A compiled expression reads a row of a batch. It is checked without a plan ([`Condition::check`] and its like) and
//! compiled against the plan's [`PathTable`], so that the fields it reads have columns. VRL compiles and so checks every
//! expression; conditions of the common shapes are then evaluated natively over columns (see [`native`]), the rest by VRL
//! over a record that holds just the paths the expression reads.

mod functions;
mod native;
mod proof;
mod recognise;
#[cfg(test)]
mod tests;
mod vm;

use std::ops::Range;
use std::sync::Arc;

use vrl::path::OwnedValuePath;
use vrl::value::Value;

use crate::codec::{FieldPath, PathTable, Projection};
use crate::event::{Batch, Field};

pub use proof::{Known, Verdict, follows, prove};
pub use vm::ProgramError;

/// What the compiler found wrong, and where in the source text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Byte offsets in the source text.
    pub within: Range<usize>,
    pub message: String,
    pub help: Option<String>,
}

/// An expression that is true or false of a record. Where it fails (a missing field, a wrong type) it is false, and counted.
#[derive(Clone, Debug)]
pub struct Condition {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Native(Arc<native::Native>),
    Vrl(vm::Vm),
}

impl Condition {
    /// Finds every problem of a source text.
    pub fn check(source: &str) -> Vec<Diagnostic> {
        vm::Vm::compile_condition(source).err().unwrap_or_default()
    }

    pub fn compile(source: &str, paths: &mut PathTable) -> Result<Self, Vec<Diagnostic>> {
        let vm = vm::Vm::compile_condition(source)?;
        let way = match recognise::recognise(source, paths) {
            Some(native) => Way::Native(Arc::new(native)),
            None => Way::Vrl(vm.bind(paths)),
        };
        Ok(Self { way })
    }

    /// As it would be run, and by VRL alone.
    #[cfg(feature = "fuzzing")]
    pub fn both_ways(source: &str, paths: &mut PathTable) -> Result<(Self, Self), Vec<Diagnostic>> {
        let vrl = vm::Vm::compile_condition(source)?.bind(paths);
        Ok((Self::compile(source, paths)?, Self { way: Way::Vrl(vrl) }))
    }

    /// The fields it reads.
    pub fn reads(&self) -> Projection {
        match &self.way {
            Way::Native(native) => native.reads(),
            Way::Vrl(vm) => vm.reads(),
        }
    }

    /// Literals of which one must stand in the text of a record's fields for the condition to be true; `None` if nothing
    /// can be said. Whether text stands in the raw bytes as it is, is for the codec to say.
    pub fn prefilter(&self) -> Option<Vec<Vec<u8>>> {
        match &self.way {
            Way::Native(native) => native.literals(),
            Way::Vrl(_) => None,
        }
    }

    /// How it is evaluated, for `tocsin explain`: `native` or `VRL`.
    pub fn way(&self) -> &'static str {
        match self.way {
            Way::Native(_) => "native",
            Way::Vrl(_) => "VRL",
        }
    }

    /// The rows of `batch` for which it is true. The fields it reads must be decoded. Failures are added to `errors`.
    pub fn select(&self, batch: &Batch, errors: &mut u64) -> Vec<u32> {
        batch.rows().filter(|row| self.is_true(batch, *row, errors)).collect()
    }

    /// Whether it is true of one row. The fields it reads must be decoded.
    pub fn is_true(&self, batch: &Batch, row: u32, errors: &mut u64) -> bool {
        let outcome = match &self.way {
            Way::Native(native) => match native.eval(batch, row) {
                native::Outcome::True => Some(true),
                native::Outcome::False => Some(false),
                native::Outcome::Null | native::Outcome::Other | native::Outcome::Failed => None,
            },
            Way::Vrl(vm) => match vm.eval(batch, row) {
                Ok(Value::Boolean(value)) => Some(value),
                Ok(_) | Err(_) => None,
            },
        };
        *errors += u64::from(outcome.is_none());
        outcome == Some(true)
    }
}

/// An expression that gives a value: an aggregate's argument, a key, a field of a template.
#[derive(Clone, Debug)]
pub struct Expression {
    vm: vm::Vm,
    path: Option<FieldPath>,
}

impl Expression {
    /// Finds every problem of a source text.
    pub fn check(source: &str) -> Vec<Diagnostic> {
        vm::Vm::compile_expression(source).err().unwrap_or_default()
    }

    pub fn compile(source: &str, paths: &mut PathTable) -> Result<Self, Vec<Diagnostic>> {
        let vm = vm::Vm::compile_expression(source)?;
        let path = vm::Vm::as_path(source, paths);
        let vm = if path.is_some() { vm } else { vm.bind(paths) };
        Ok(Self { vm, path })
    }

    pub fn reads(&self) -> Projection {
        match &self.path {
            Some(path) => Projection::new([path.clone()]),
            None => self.vm.reads(),
        }
    }

    /// The path it is, if it is nothing but a path: then [`Batch::field`] or the column gives its value without VRL.
    pub fn path(&self) -> Option<&FieldPath> {
        self.path.as_ref()
    }

    /// Its value for one row; `None` where the field is missing or the expression fails (counted in `errors`).
    /// The fields it reads must be decoded.
    pub fn eval(&self, batch: &Batch, row: u32, errors: &mut u64) -> Option<Value> {
        if let Some(path) = &self.path {
            return batch.field(row, path).to_value();
        }
        match self.vm.eval(batch, row) {
            Ok(value) => Some(value),
            Err(_) => {
                *errors += 1;
                None
            }
        }
    }

    /// As [`Self::eval`], without making a value of a field that is at hand.
    pub fn field<'a>(&self, batch: &'a Batch, row: u32) -> Option<Field<'a>> {
        self.path.as_ref().map(|path| batch.field(row, path))
    }
}

/// A program that changes a record.
#[derive(Clone, Debug)]
pub struct Program {
    vm: vm::Vm,
}

impl Program {
    /// Finds every problem of a source text.
    pub fn check(source: &str) -> Vec<Diagnostic> {
        vm::Vm::compile_program(source).err().unwrap_or_default()
    }

    pub fn compile(source: &str) -> Result<Self, Vec<Diagnostic>> {
        Ok(Self { vm: vm::Vm::compile_program(source)? })
    }

    /// Runs the program over one record and gives what it made of it.
    pub fn run(&self, batch: &Batch, row: u32) -> Result<Value, ProgramError> {
        self.run_on(batch, row, batch.value(row).into_owned())
    }

    /// As [`Self::run`], over a record whose value is at hand.
    pub fn run_on(&self, batch: &Batch, row: u32, value: Value) -> Result<Value, ProgramError> {
        self.vm.run(batch, row, value)
    }

    /// The paths of a record that it may change: those that it assigns or deletes.
    pub fn changes(&self) -> Vec<OwnedValuePath> {
        self.vm.changes()
    }

    /// Whether running it over a record may give no record.
    pub fn can_fail(&self) -> bool {
        self.vm.can_fail()
    }
}
