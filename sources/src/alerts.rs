//! The source `alerts`.

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, SourceConfig};
use tocsin_pipeline::source::Source;

use crate::desk::Desk;

/// Takes the alerts that others send, as Alertmanager does: what Prometheus, Grafana or `amtool` POST to `/api/v2/alerts` at the admin address
/// (`daemon.admin`). In Prometheus that address is a target of `alertmanagers`.
///
/// Each alert is a record in the shape in which `alert` makes them, so that the same `notify` tells of both:
///
/// ```json
/// {"alert": "InstanceDown", "state": "firing", "fingerprint": "…", "labels": {"alertname": "InstanceDown", "instance": "a:9100"},
///  "annotations": {…}, "starts_at": "…", "ends_at": "…", "generator_url": "…"}
/// ```
///
/// `ends_at` of an alert that fires is the time at which it is over unless it is sent again; it is 5 minutes after the arrival where the
/// sender says nothing. An alert whose `ends_at` has come is resolved.
///
/// **State:** none.
///
/// **Late events:** alerts count as of their arrival.
///
/// **After a crash:** what was answered comes from the journal, or was in the checkpoint. Without a `data_dir` it is lost, and senders send it again.
///
/// ```toml
/// [sources.prometheus]
/// type = "alerts"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl SourceConfig for Config {
    const NAME: &'static str = "alerts";

    fn acknowledges(&self) -> bool {
        true
    }

    fn is_at_admin(&self) -> bool {
        true
    }

    fn default_codec(&self) -> &'static str {
        "json"
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Desk::new(Config::NAME))
    }
}
