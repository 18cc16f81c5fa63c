//! The counters of the daemon, kept by the `prometheus` crate and emitted once per batch.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::ledger::{Account, Kind};
use crate::operator::Reason;
use crate::tally::Counts;

/// All metrics of one daemon.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    received_events: IntCounterVec,
    sent_events: IntCounterVec,
    received_bytes: IntCounterVec,
    dropped_events: IntCounterVec,
    expression_errors: IntCounterVec,
    errors: IntCounterVec,
    notifications: IntCounterVec,
    held: IntGaugeVec,
    latency: HistogramVec,
    alert_latency: HistogramVec,
    /// The rules there are, each with its `slo`.
    rules: Arc<Mutex<BTreeMap<String, Option<Duration>>>>,
    pub edge_bytes: IntGaugeVec,
    pub journal_bytes: IntGaugeVec,
    pub buffer_bytes: IntGaugeVec,
    pub buffer_disk_bytes: IntGaugeVec,
    pub source_lag: GaugeVec,
    source_lag_events: IntGaugeVec,
    pub watermark: GaugeVec,
    pub checkpoint_duration: Histogram,
    pub checkpoint_bytes: IntGauge,
    pub checkpoint_epoch: IntGauge,
    pub checkpoint_failures: IntCounter,
    pub reloads: IntCounterVec,
    pub audit_imbalance: IntGauge,
    /// For [`Health`](crate::health::Health).
    pub troubles: IntGaugeVec,
    pub alerts: IntGaugeVec,
    pub state_bytes: IntGaugeVec,
    /// By source; see [`ComponentMetrics::expect_bytes`].
    expected: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// # Panics
    /// Never: the names are distinct and well formed, which the test below shows.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Registry::new())
    }

    /// The metrics of one of several pipelines in the process, told apart by the label `lane`.
    ///
    /// # Panics
    /// Never: the label is well formed.
    pub fn of_lane(lane: &str) -> Self {
        let labels = [("lane".to_owned(), lane.to_owned())].into();
        Self::with(Registry::new_custom(None, Some(labels)).expect("a well-formed label"))
    }

    fn with(registry: Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("a well-formed name");
            registry.register(Box::new(counters.clone())).expect("a name of its own");
            counters
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels).expect("a well-formed name");
            registry.register(Box::new(gauges.clone())).expect("a name of its own");
            gauges
        };
        let float_gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = GaugeVec::new(Opts::new(name, help), labels).expect("a well-formed name");
            registry.register(Box::new(gauges.clone())).expect("a name of its own");
            gauges
        };
        let latencies = |name: &str, help: &str, label: &str| {
            let buckets = [
                0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
                5.0, 10.0, 60.0,
            ];
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let latencies = HistogramVec::new(options, &[label]).expect("a well-formed name");
            registry.register(Box::new(latencies.clone())).expect("a name of its own");
            latencies
        };
        let latency = latencies(
            "tocsin_event_latency_seconds",
            "From arrival at the source to acceptance by the sink, by batch.",
            "component",
        );
        let alert_latency = latencies(
            "tocsin_alert_latency_seconds",
            "From arrival of the record that made an alert fire to acceptance by a receiver, by rule.",
            "rule",
        );
        let checkpoint_duration = Histogram::with_opts(
            HistogramOpts::new(
                "tocsin_checkpoint_duration_seconds",
                "From a barrier's start to its complete checkpoint.",
            )
            .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0]),
        )
        .expect("a well-formed name");
        registry.register(Box::new(checkpoint_duration.clone())).expect("a name of its own");
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a well-formed name");
            registry.register(Box::new(gauge.clone())).expect("a name of its own");
            gauge
        };
        let checkpoint_bytes = gauge("tocsin_checkpoint_bytes", "Bytes written for the last checkpoint.");
        let checkpoint_epoch = gauge("tocsin_checkpoint_epoch", "The number of the last complete checkpoint.");
        let audit_imbalance =
            gauge("tocsin_audit_imbalance", "Equations between the counts of records that do not hold; 0 is right.");
        let checkpoint_failures =
            IntCounter::new("tocsin_checkpoint_failures_total", "Checkpoints that were abandoned.")
                .expect("a well-formed name");
        registry.register(Box::new(checkpoint_failures.clone())).expect("a name of its own");
        let reloads = IntCounterVec::new(
            Opts::new("tocsin_reloads_total", "Reloads of the configuration, by what became of them."),
            &["result"],
        )
        .expect("it is well formed");
        registry.register(Box::new(reloads.clone())).expect("a name of its own");
        let component = &["component"][..];
        Self {
            received_events: counters(
                "tocsin_component_received_events_total",
                "Records a component took in.",
                &["component", "kind"],
            ),
            sent_events: counters(
                "tocsin_component_sent_events_total",
                "Records a component handed on.",
                &["component", "kind"],
            ),
            received_bytes: counters(
                "tocsin_component_received_bytes_total",
                "Bytes a component took in.",
                &["component", "kind"],
            ),
            dropped_events: counters(
                "tocsin_component_dropped_events_total",
                "Records that ended at a component, by reason.",
                &["component", "reason"],
            ),
            expression_errors: counters(
                "tocsin_expression_errors_total",
                "Conditions and expressions that failed on a record and so counted as false or as no value.",
                component,
            ),
            errors: counters(
                "tocsin_component_errors_total",
                "Faults outside that were met, by what failed.",
                &["component", "error"],
            ),
            notifications: counters(
                "tocsin_notifications_total",
                "Notifications by outcome: delivered, retried, refused.",
                &["receiver", "result"],
            ),
            held: gauges(
                "tocsin_held_events",
                "Records that a sink has taken and not delivered yet, as of its last barrier.",
                component,
            ),
            edge_bytes: gauges("tocsin_edge_bytes", "Bytes waiting between two components.", &["from", "to"]),
            journal_bytes: gauges("tocsin_journal_bytes", "How large the journal of a source is.", component),
            buffer_bytes: gauges("tocsin_buffer_bytes", "Memory that the buffer of a sink takes.", component),
            buffer_disk_bytes: gauges(
                "tocsin_buffer_disk_bytes",
                "What the buffer of a sink takes on disk.",
                component,
            ),
            source_lag: float_gauges(
                "tocsin_source_lag_seconds",
                "How far the newest event time is behind the clock.",
                component,
            ),
            source_lag_events: gauges(
                "tocsin_source_lag_events",
                "Records that a partition holds and that are not read yet.",
                &["component", "partition"],
            ),
            watermark: float_gauges("tocsin_watermark_seconds", "The watermark, as seconds since 1970.", component),
            alerts: gauges("tocsin_alerts", "Alerts by rule and state.", &["rule", "state"]),
            state_bytes: gauges("tocsin_state_bytes", "About how much memory an operator's state takes.", component),
            latency,
            alert_latency,
            rules: Arc::default(),
            checkpoint_duration,
            checkpoint_bytes,
            checkpoint_epoch,
            checkpoint_failures,
            reloads,
            audit_imbalance,
            troubles: gauges(
                "tocsin_trouble",
                "1 while something is wrong with the daemon, by what; see the source `internal`.",
                &["event", "component"],
            ),
            expected: Arc::default(),
            registry,
        }
    }

    /// That an operator is a rule, and its `slo`.
    pub fn rule(&self, name: &str, slo: Option<Duration>) {
        self.rules.lock().expect("no holder of this lock panics").insert(name.to_owned(), slo);
    }

    /// The counters of one component. `kind` is `source`, `operator` or `sink`.
    pub fn component(&self, name: &str, kind: &str) -> ComponentMetrics {
        ComponentMetrics(Arc::new(Counters {
            received_events: self.received_events.with_label_values(&[name, kind]),
            sent_events: self.sent_events.with_label_values(&[name, kind]),
            received_bytes: self.received_bytes.with_label_values(&[name, kind]),
            dropped: Reason::ALL.map(|reason| self.dropped_events.with_label_values(&[name, reason.as_str()])),
            expression_errors: self.expression_errors.with_label_values(&[name]),
            latency: self.latency.with_label_values(&[name]),
            alert_latency: self.alert_latency.clone(),
            rules: Arc::clone(&self.rules),
            errors: self.errors.clone(),
            held: self.held.clone(),
            made: AtomicU64::new(0),
            notifications: self.notifications.clone(),
            lag: self.source_lag.with_label_values(&[name]),
            lag_events: self.source_lag_events.clone(),
            expected: self
                .expected
                .lock()
                .expect("no holder of this lock panics")
                .entry(name.to_owned())
                .or_default()
                .clone(),
            name: name.to_owned(),
        }))
    }
}

/// The counters of one component; cheap to clone.
#[derive(Clone, Debug)]
pub struct ComponentMetrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    received_events: IntCounter,
    sent_events: IntCounter,
    received_bytes: IntCounter,
    dropped: [IntCounter; Reason::ALL.len()],
    expression_errors: IntCounter,
    latency: Histogram,
    alert_latency: HistogramVec,
    rules: Arc<Mutex<BTreeMap<String, Option<Duration>>>>,
    errors: IntCounterVec,
    notifications: IntCounterVec,
    held: IntGaugeVec,
    /// Dead letters of a sink; of other components their tasks keep count.
    made: AtomicU64,
    lag: Gauge,
    lag_events: IntGaugeVec,
    /// How many bytes a finite source will have read at its end, plus one; 0 while it does not know.
    expected: Arc<AtomicU64>,
    name: String,
}

impl ComponentMetrics {
    /// Adds what a task has counted of the component.
    pub fn add(&self, counts: &Counts) {
        let metrics = &*self.0;
        let sent: u64 = counts.handed.iter().sum();
        for (counter, count) in [
            (&metrics.received_events, counts.received),
            (&metrics.received_bytes, counts.bytes),
            (&metrics.sent_events, sent),
            (&metrics.expression_errors, counts.expression_errors),
        ] {
            if count > 0 {
                counter.inc_by(count);
            }
        }
        for (counter, count) in metrics.dropped.iter().zip(&counts.dropped).filter(|(_, count)| **count > 0) {
            counter.inc_by(*count);
        }
    }

    pub fn received(&self, events: usize, bytes: usize) {
        self.0.received_events.inc_by(events as u64);
        self.0.received_bytes.inc_by(bytes as u64);
    }

    pub fn sent(&self, events: usize) {
        self.0.sent_events.inc_by(events as u64);
    }

    pub fn dropped(&self, reason: Reason, events: u64) {
        self.0.dropped[reason as usize].inc_by(events);
    }

    /// Says how many records are in the state that a sink is about to hand out, or goes on from.
    pub fn hold(&self, events: usize) {
        self.0.held.with_label_values(&[self.0.name.as_str()]).set(events as i64);
    }

    pub(crate) fn made(&self, events: u64) {
        self.0.made.fetch_add(events, Ordering::Relaxed);
    }

    /// What a sink has counted since the metrics are kept. What its full buffer drops is counted by those who write to it,
    /// in their time, and so not here.
    pub(crate) fn of_sink(&self) -> Account {
        let dropped = Reason::ALL
            .into_iter()
            .filter(|reason| *reason != Reason::BufferFull)
            .map(|reason| (reason.as_str().to_owned(), self.dropped_events(reason)));
        Account {
            kind: Kind::Sink,
            received: self.received_events(),
            made: self.0.made.load(Ordering::Relaxed),
            delivered: self.sent_events(),
            held: self.held_events(),
            dropped: dropped.collect(),
            ..Account::default()
        }
    }

    /// What [`Self::hold`] said last.
    pub fn held_events(&self) -> u64 {
        self.0.held.with_label_values(&[self.0.name.as_str()]).get().unsigned_abs()
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn expression_errors(&self, count: u64) {
        self.0.expression_errors.inc_by(count);
    }

    /// A fault of the outside world: a connection refused, a read that failed. `error` is one of a few fixed words.
    pub fn error(&self, error: &str) {
        self.errors(error, 1);
    }

    /// Many of them, where they are learnt of together.
    pub fn errors(&self, error: &str, count: u64) {
        self.0.errors.with_label_values(&[self.0.name.as_str(), error]).inc_by(count);
    }

    /// How many there were, for tests.
    pub fn error_count(&self, error: &str) -> u64 {
        self.0.errors.with_label_values(&[self.0.name.as_str(), error]).get()
    }

    /// How a notification went: `delivered`, `retried`, `refused`, `digested`.
    pub fn notification(&self, result: &str) {
        self.0.notifications.with_label_values(&[self.0.name.as_str(), result]).inc();
    }

    /// How many there were of a result, for tests.
    pub fn notification_count(&self, result: &str) -> u64 {
        self.0.notifications.with_label_values(&[self.0.name.as_str(), result]).get()
    }

    /// How many bytes a source that comes to an end will have read by then: for progress.
    pub fn expect_bytes(&self, bytes: u64) {
        self.0.expected.store(bytes.saturating_add(1), Ordering::Relaxed);
    }

    /// What [`Self::expect_bytes`] said last.
    pub fn expected_bytes(&self) -> Option<u64> {
        self.0.expected.load(Ordering::Relaxed).checked_sub(1)
    }

    /// How long it took from the source to the sink's acceptance.
    pub fn latency(&self, seconds: f64) {
        self.0.latency.observe(seconds);
    }

    /// How long it took until a receiver was told that a rule fires.
    pub fn alert_latency(&self, rule: &str, seconds: f64) {
        self.0.alert_latency.with_label_values(&[rule]).observe(seconds);
    }

    /// How often that was, for tests.
    pub fn alert_latency_count(&self, rule: &str) -> u64 {
        self.0.alert_latency.with_label_values(&[rule]).get_sample_count()
    }

    /// The `slo` of a rule; `None` where there is no rule of this name.
    pub fn slo(&self, rule: &str) -> Option<Option<Duration>> {
        self.0.rules.lock().expect("no holder of this lock panics").get(rule).copied()
    }

    pub fn lag(&self, seconds: f64) {
        self.0.lag.set(seconds);
    }

    /// How many records of a partition are not read yet.
    pub fn lag_events(&self, partition: &str, events: u64) {
        self.0.lag_events.with_label_values(&[self.0.name.as_str(), partition]).set(events as i64);
    }

    pub fn received_events(&self) -> u64 {
        self.0.received_events.get()
    }

    pub fn received_bytes(&self) -> u64 {
        self.0.received_bytes.get()
    }

    pub fn sent_events(&self) -> u64 {
        self.0.sent_events.get()
    }

    pub fn dropped_events(&self, reason: Reason) -> u64 {
        self.0.dropped[reason as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_are_registered_once() {
        let metrics = Metrics::new();
        metrics.component("a", "source").received(2, 10);
        metrics.component("a", "source").received(1, 5);
        assert_eq!(metrics.component("a", "source").received_events(), 3);
    }
}
