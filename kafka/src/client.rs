//! What a client of the brokers tells of itself.

use std::sync::{Arc, Mutex};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, NoCustomPartitioner, ProducerContext};
use tocsin_pipeline::metrics::ComponentMetrics;

/// Hears what librdkafka has to say: logs it, counts it, and keeps the last fault for whoever explains why nothing moves.
/// Clones hear for the same client.
#[derive(Clone)]
pub struct Listener {
    component: Arc<str>,
    metrics: ComponentMetrics,
    fault: Arc<Mutex<Option<String>>>,
}

impl Listener {
    pub fn new(component: Arc<str>, metrics: ComponentMetrics) -> Self {
        Self { component, metrics, fault: Arc::default() }
    }

    /// The last fault that was heard of, forgotten thereby.
    pub fn take_fault(&self) -> Option<String> {
        self.fault.lock().expect("no holder of this lock panics").take()
    }

    /// The last fault that was heard of.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().expect("no holder of this lock panics").clone()
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let component = &*self.component;
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::debug!(component, facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::trace!(component, facility, "librdkafka: {message}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        self.metrics.error(match code {
            Some(RDKafkaErrorCode::Authentication) => "authentication",
            Some(RDKafkaErrorCode::SSL) => "tls",
            _ => "broker",
        });
        // Connections come and go; whoever cannot go on for it says so, with this as the reason.
        tracing::debug!(component = &*self.component, "kafka: {error}: {reason}");
        let mut fault = self.fault.lock().expect("no holder of this lock panics");
        // That all are away says less than why one of them is.
        if code != Some(RDKafkaErrorCode::AllBrokersDown) || fault.is_none() {
            *fault = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Listener {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            self.metrics.error("commit");
            tracing::debug!(component = &*self.component, "the group's offsets could not be told: {error}");
        }
    }
}

/// A producer whose deliveries nobody asks for.
impl ProducerContext<NoCustomPartitioner> for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
