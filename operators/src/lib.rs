//! What is done to records.

mod alert;
mod dedupe;
mod key;
#[cfg(test)]
mod script;
mod window;

use tocsin_config::component::OperatorType;

/// Every operator that a configuration can name.
pub static OPERATORS: &[OperatorType] = &[OperatorType::of::<alert::Config>(), OperatorType::of::<dedupe::Config>(), OperatorType::of::<window::Config>()];
