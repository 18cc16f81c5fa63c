//! What flows and what runs it: batches, the contracts of sources, operators and sinks, checkpoints, and the engine.
//! Knows no component.

pub mod chain;
pub mod checkpoint;
pub mod codec;
pub mod decider;
pub mod event;
pub mod evolution;
pub mod explain;
pub mod expression;
pub mod fault;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod graph;
pub mod health;
pub mod inquiry;
pub mod intake;
pub mod json;
pub mod ledger;
pub mod metrics;
pub mod operator;
pub mod path;
pub mod poison;
pub mod prefilter;
pub mod replay;
pub mod runtime;
pub mod sharing;
pub mod simulation;
pub mod sink;
pub mod source;
pub mod store;
pub mod tally;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod timestamp;
pub mod watermark;
