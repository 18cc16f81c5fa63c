//! What the admin address looks at: the pipelines that this process runs. There is one, or one for each partition where
//! several daemons share them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use prometheus::proto::MetricFamily;
use tocsin_pipeline::health::{Health, Trouble};
use tocsin_pipeline::ledger::{Audit, Ledger};
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::runtime::Status;

/// What the process counts by itself where each pipeline has metrics of its own.
const OF_THE_PROCESS: [&str; 2] = ["tocsin_component_errors_total", "tocsin_reloads_total"];

/// A pipeline that runs.
#[derive(Clone)]
pub struct View {
    pub metrics: Metrics,
    pub status: Arc<Status>,
    pub health: Health,
}

/// All pipelines that run, by name; clones are the same.
#[derive(Clone, Default)]
pub struct Views {
    views: Arc<Mutex<BTreeMap<String, View>>>,
    /// Why the process as a whole is not ready, whatever its pipelines are.
    waiting: Arc<Mutex<Option<String>>>,
    /// Those of the process, where each pipeline has its own.
    metrics: Arc<OnceLock<Metrics>>,
    /// See [`Plan::labels`](tocsin_config::Plan).
    labels: Arc<Mutex<Option<BTreeSet<String>>>>,
}

impl Views {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, View>> {
        self.views.lock().expect("no holder of this lock panics")
    }

    pub fn add(&self, name: &str, view: View) {
        self.lock().insert(name.to_owned(), view);
    }

    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// The process is not ready for this reason, or no longer for any of its own.
    pub fn wait_for(&self, reason: Option<String>) {
        *self.waiting.lock().expect("no holder of this lock panics") = reason;
    }

    /// What runs from now on makes alerts of these labels.
    pub fn make(&self, labels: Option<BTreeSet<String>>) {
        *self.labels.lock().expect("no holder of this lock panics") = labels;
    }

    /// The labels that alerts can have; `None`: any.
    pub fn labels(&self) -> Option<BTreeSet<String>> {
        self.labels.lock().expect("no holder of this lock panics").clone()
    }

    /// Tells of these metrics beside those of the pipelines.
    pub fn keep(&self, metrics: Metrics) {
        self.metrics.get_or_init(|| metrics);
    }

    /// Whether the process is ready and has nothing to do: others run all pipelines.
    pub fn is_standing_by(&self) -> bool {
        self.is_running() && self.lock().is_empty()
    }

    /// Whether all pipelines have been opened, if none has been given to this process either.
    pub fn is_running(&self) -> bool {
        self.waiting.lock().expect("no holder of this lock panics").is_none()
            && self.lock().values().all(|view| view.status.is_ready.load(Ordering::Relaxed))
    }

    /// What each pipeline tells of itself.
    pub fn statuses(&self) -> Vec<Arc<Status>> {
        self.lock().values().map(|view| Arc::clone(&view.status)).collect()
    }

    /// Why not everything is read and written that should be; empty if it is.
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles: Vec<_> =
            self.waiting.lock().expect("no holder of this lock panics").clone().into_iter().collect();
        for (name, view) in &*self.lock() {
            let whose = if name.is_empty() { String::new() } else { format!("{name}: ") };
            let told = obstacles.len();
            let standing = view.health.standing();
            let stalled = standing
                .iter()
                .filter(|change| matches!(change.trouble, Trouble::SourceStalled | Trouble::SinkStalled))
                .map(|change| format!("{whose}{}: {}", change.component, change.message));
            obstacles.extend(stalled);
            if obstacles.len() == told && !view.status.is_ready.load(Ordering::Relaxed) {
                obstacles.push(format!("{whose}not all sources and sinks are open"));
            }
        }
        obstacles
    }

    /// What has become of all records, of all pipelines together; `None`: no barrier has passed yet.
    pub fn audit(&self) -> Option<Arc<Audit>> {
        let audits: Vec<_> = self.lock().values().filter_map(|view| of(&view.status)).collect();
        match &audits[..] {
            [] => None,
            [one] => Some(Arc::clone(one)),
            several => {
                let ledger = Ledger::sum(several.iter().map(|audit| &audit.ledger));
                let epoch = several.iter().map(|audit| audit.epoch).max().unwrap_or(0);
                let taken_at = several.iter().map(|audit| audit.taken_at.clone()).max().unwrap_or_default();
                Some(Arc::new(Audit { epoch, taken_at, ledger }))
            }
        }
    }

    /// All metrics, each name once.
    pub fn gather(&self) -> Vec<MetricFamily> {
        let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
        let of_the_process = self.metrics.get().into_iter().flat_map(|metrics| metrics.registry.gather());
        let of_the_process = of_the_process.filter(|family| OF_THE_PROCESS.contains(&family.name()));
        let views = self.lock();
        let of_pipelines = views.values().flat_map(|view| view.metrics.registry.gather());
        for mut family in of_the_process.chain(of_pipelines) {
            match families.get_mut(family.name()) {
                Some(known) => known.mut_metric().extend(family.take_metric()),
                None => drop(families.insert(family.name().to_owned(), family)),
            }
        }
        families.into_values().collect()
    }
}

fn of(status: &Status) -> Option<Arc<Audit>> {
    status.audit.lock().expect("no holder of this lock panics").clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(lane: Option<&str>) -> View {
        let metrics = lane.map_or_else(Metrics::new, Metrics::of_lane);
        View { metrics, status: Arc::default(), health: Health::default() }
    }

    #[test]
    fn what_cannot_be_read_or_written_is_a_reason_not_to_be_ready() {
        let views = Views::default();
        let one = view(None);
        views.add("", one.clone());
        assert_eq!(views.obstacles(), ["not all sources and sinks are open"]);
        one.status.is_ready.store(true, Ordering::Relaxed);
        assert!(views.obstacles().is_empty());
        one.health.raise(Trouble::SourceStalled, "orders", "cannot reach the brokers");
        one.health.raise(Trouble::Buffer, "out", "full");
        assert_eq!(views.obstacles(), ["orders: cannot reach the brokers"]);
        one.health.clear(Trouble::SourceStalled, "orders");
        views.wait_for(Some("no partition is assigned".to_owned()));
        assert_eq!(views.obstacles(), ["no partition is assigned"]);
    }

    #[test]
    fn a_process_that_others_leave_nothing_to_do_is_ready_and_stands_by() {
        let views = Views::default();
        views.wait_for(Some("it is no member".to_owned()));
        assert!(!views.is_standing_by());
        views.wait_for(None);
        assert!(views.is_standing_by() && views.obstacles().is_empty());
        views.add("orders/0", view(Some("orders/0")));
        assert!(!views.is_standing_by() && !views.obstacles().is_empty());
    }

    #[test]
    fn metrics_of_lanes_are_told_apart_and_share_their_names() {
        let views = Views::default();
        for lane in ["orders/0", "orders/1"] {
            let view = view(Some(lane));
            view.metrics.component("orders", "source").received(3, 9);
            views.add(lane, view);
        }
        let families = views.gather();
        let family = families.iter().find(|it| it.name() == "tocsin_component_received_events_total").unwrap();
        let lanes: Vec<_> = family
            .get_metric()
            .iter()
            .flat_map(|metric| metric.get_label().iter().filter(|label| label.name() == "lane"))
            .map(|label| label.value().to_owned())
            .collect();
        assert_eq!(lanes, ["orders/0", "orders/1"]);
        let mut text = Vec::new();
        prometheus::Encoder::encode(&prometheus::TextEncoder::new(), &families, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.matches("# TYPE tocsin_component_received_events_total").count(), 1, "{text}");
    }
}
