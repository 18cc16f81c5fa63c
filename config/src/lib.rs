//! Configuration: text in, a checked plan out, with a place and a way out for every problem.

pub mod component;
pub mod options;
pub mod plan;
pub mod testing;
pub mod types;
