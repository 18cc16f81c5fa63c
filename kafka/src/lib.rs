//! What everything that speaks to Apache Kafka shares: how it connects, how it names a place in a topic, and what a
//! transaction says of the checkpoint it belongs to.
//!
//! The client is librdkafka. Its calls block, so whoever uses it does so on a thread of its own.

pub mod client;
pub mod connection;
pub mod marker;
pub mod place;
pub mod stamp;
pub mod topics;
