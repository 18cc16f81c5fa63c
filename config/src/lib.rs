//! Configuration: text in, a checked plan out, with a place and a way out for every problem.
//!
//! [`load()`] reads files, [`check()`] makes a [`Plan`] of them or a [`Report`] of all their problems. [`schema()`] and
//! [`reference()`] tell what can be written.

pub mod build;
mod check;
pub mod component;
pub mod facts;
#[cfg(test)]
mod fakes;
mod fields;
mod graph;
pub mod interval;
pub mod lints;
mod load;
pub mod matcher;
pub mod options;
mod pattern;
pub mod plan;
mod reference;
mod report;
pub mod scale;
mod schema;
mod shape;
pub mod silence;
mod substitute;
pub mod testing;
mod text;
mod tree;
pub mod types;

pub use check::{SourceFile, check};
pub use load::load;
pub use plan::Plan;
pub use reference::{nearest_page, reference, reference_page};
pub use report::{Excerpt, Level, Note, Report, Reported};
pub use schema::schema;
pub use substitute::{EmptyEnvironment, Environment, SystemEnvironment};

/// The source of what people say to a running daemon: its type, and the name of the one that each configuration with a `notify` has
/// without being written.
pub const COMMANDS: &str = "commands";

/// The output of a rule at which it says what it would have decided otherwise.
pub const AMENDED: &str = "amended";
