//! What flows and what runs it: batches, the contracts of sources, operators and sinks, checkpoints, and the engine.
//! Knows no component.

pub mod codec;
pub mod event;
pub mod expression;
pub mod json;
pub mod metrics;
pub mod operator;
pub mod sink;
pub mod source;
pub mod template;
pub mod time;
pub mod timestamp;
