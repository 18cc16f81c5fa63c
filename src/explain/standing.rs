//! How a pipeline stands: what its records have become, what its operators say, how deliveries went. Of a running daemon, or of what a
//! data directory holds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tocsin_config::Plan;
use tocsin_config::build::build;
use tocsin_pipeline::checkpoint::Snapshot;
use tocsin_pipeline::ledger::Ledger;
use tocsin_pipeline::simulation::Simulation;
use tocsin_pipeline::time::Timestamp;

use crate::views::Views;
use crate::{client, data_dir};

/// Where a daemon tells how it stands.
const PATH: &str = "/api/v1/standing";

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// As of the last barrier.
    pub ledger: Ledger,
    /// What operators say, by name.
    pub views: BTreeMap<String, Json>,
    /// The last attempts to tell somebody, the newest first; `None`: nobody knows.
    pub deliveries: Option<Vec<Json>>,
    /// What it is the standing of, in words.
    pub source: String,
}

/// What operators are asked: all they know, or what they know of a key.
fn question(key: Option<&str>) -> Json {
    json!({ "key": key })
}

/// How the pipelines of this process stand.
pub async fn of_pipelines(views: &Views, key: Option<&str>) -> Standing {
    let audit = views.audit();
    let mut standing = Standing {
        ledger: audit.map(|audit| audit.ledger.clone()).unwrap_or_default(),
        source: "the running daemon".to_owned(),
        ..Standing::default()
    };
    let mut deliveries = Vec::new();
    for status in views.statuses() {
        deliveries.extend(status.deliveries.newest());
        for operator in status.inquiries.operators() {
            if let Some(view) = status.inquiries.ask(&operator, question(key)).await.filter(|view| !view.is_null()) {
                standing.views.insert(operator.to_string(), view);
            }
        }
    }
    standing.deliveries = Some(deliveries);
    standing
}

/// How a running daemon stands.
pub fn of_daemon(address: SocketAddr, key: Option<&str>) -> anyhow::Result<Standing> {
    let path = match key {
        None => PATH.to_owned(),
        Some(key) => {
            let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("key", key).finish();
            format!("{PATH}?{query}")
        }
    };
    let body = client::request(Method::GET, address, &path)?;
    serde_json::from_slice(&body).with_context(|| format!("what {address} answered tells no standing"))
}

/// How a pipeline stood at its newest checkpoint.
pub fn of_data_dir(plan: &Plan, folder: &Path, key: Option<&str>) -> anyhow::Result<Standing> {
    let mut found = None;
    data_dir::each_epoch(folder, |candidate| {
        if let (None, Ok(epoch)) = (&found, candidate.epoch) {
            found = Some(epoch);
        }
    })?;
    let Some(epoch) = found else { bail!("{} holds no checkpoint that can be read", folder.display()) };
    let source = format!("epoch {} in {}", epoch.restored.epoch, folder.display());
    let ledger = epoch.restored.ledger.clone().unwrap_or_default();
    let operators = epoch.restored.operators.clone();
    let mut simulation = Simulation::new(build(plan), Timestamp(0));
    let snapshot = Snapshot { operators, ..Snapshot::default() };
    simulation.restore(&snapshot).context("what the checkpoint holds is not of this configuration")?;
    Ok(of_simulation(plan, &simulation, ledger, source, key))
}

/// How a simulated pipeline stands.
pub fn of_simulation(
    plan: &Plan,
    simulation: &Simulation,
    ledger: Ledger,
    source: String,
    key: Option<&str>,
) -> Standing {
    let names = plan.operators.iter().map(|operator| operator.name.to_string());
    let view = |name: String| {
        let view = simulation.view(&name, &question(key)).filter(|view| !view.is_null())?;
        Some((name, view))
    };
    Standing { ledger, views: names.filter_map(view).collect(), deliveries: None, source }
}
