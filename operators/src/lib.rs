//! What is done to records.

mod alert;
mod dedupe;
mod fields;
mod filter;
mod key;
mod named;
mod notify;
mod remap;
mod repartition;
mod route;
mod sample;
#[cfg(test)]
mod script;
mod throttle;
mod window;

pub use named::is_named;
use tocsin_config::component::OperatorType;

/// Every operator that a configuration can name.
pub static OPERATORS: &[OperatorType] = &[
    OperatorType::of::<alert::Config>(),
    OperatorType::of::<dedupe::Config>(),
    OperatorType::of::<filter::Config>(),
    OperatorType::of::<notify::Config>(),
    OperatorType::of::<remap::Config>(),
    OperatorType::of::<repartition::Config>(),
    OperatorType::of::<route::Config>(),
    OperatorType::of::<sample::Config>(),
    OperatorType::of::<throttle::Config>(),
    OperatorType::of::<window::Config>(),
];
