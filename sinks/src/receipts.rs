//! What was taken from the input and is not yet accepted outside: counted, with its latency, when it is.

use tocsin_pipeline::event::Batch;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::SinkContext;
use tocsin_pipeline::time::Timestamp;

/// Batches between input and acceptance. As long as what a sink has buffered, which is bounded.
#[derive(Debug, Default)]
pub(crate) struct Receipts(Vec<(usize, Timestamp)>);

impl Receipts {
    /// A batch has been taken.
    pub(crate) fn taken(&mut self, batch: &Batch) {
        if !batch.is_empty() {
            self.0.push((batch.len(), batch.arrival));
        }
    }

    /// How many batches are on their way.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Everything taken so far has been accepted.
    pub(crate) fn accepted(&mut self, context: &SinkContext) {
        if self.0.is_empty() {
            return;
        }
        let now = context.clock.now();
        for (records, arrival) in self.0.drain(..) {
            context.metrics.sent(records);
            context.metrics.latency(now.since(arrival).as_secs_f64());
        }
    }

    /// Nothing taken so far will ever be accepted: who takes it has gone.
    pub(crate) fn refused(&mut self, context: &SinkContext) {
        self.0.drain(..).for_each(|(records, _)| context.metrics.dropped(Reason::Refused, records as u64));
    }
}
