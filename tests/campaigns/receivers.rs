//! Receivers of alerts that hang, reset, refuse, stammer and die, while the daemon is killed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;

use crate::scene::{Keeper, Scene, Writer, both, judge_alerts};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::receiver::{Manner, Receiver};

pub const RECEIVERS: Campaign =
    Campaign { name: "receivers", variable: "TOCSIN_RECEIVER_KILLS", sizes: (20, 3000), body: receivers };

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["${IN}/app.log"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1h"

[operators.failed]
type = "alert"
inputs = ["log"]
condition = '.level == "ERROR"'
group_by = [".job"]
resolve_after = "1s"

[sinks.alerts_told]
type = "webhook"
inputs = ["failed"]
url = "http://127.0.0.1:${PORT}/alerts"
allow_private = true
timeout = "1s"
concurrency = 8
retry = { initial = "10ms", max = "100ms" }
"#;

/// So many requests are under way at a time, and so many alerts may be told again after a kill.
const CONCURRENCY: usize = 8;

fn receivers(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut random = order.random();
    // A folder sees some kills, then another is begun: else the last would carry the alerts of all.
    while outcome.runs < order.size && outcome.is_clean() {
        let receiver = Receiver::start(random.word());
        let scene = Scene::new(order, PIPELINE, vec![("PORT", receiver.port().to_string())]);
        let mut keeper = Keeper::new(&scene);
        let mut writer = Writer::default();
        let told = || receiver.accepted("/alerts");
        let ids = || told().into_iter().map(|request| request.id).collect::<BTreeSet<_>>();
        // How many had been taken when the daemon was killed.
        let mut kills = Vec::new();
        // With checkpoints this far apart much is told between them, which only the journal knows after a kill.
        let arguments = ["--set", "daemon.checkpoint_interval=1s"];
        for _ in 0..10.min(order.size - outcome.runs) {
            let bad = [Manner::Flapping, Manner::Flapping, Manner::Hang, Manner::Reset, Manner::Broken];
            let manner = if outcome.runs.is_multiple_of(2) { Manner::Well } else { *random.pick(&bad) };
            receiver.set(manner);
            writer.append(&scene.log(), random.between(1500, 3000));
            keeper.start(&arguments);
            if manner == Manner::Well {
                let fired = writer.failed().len();
                keeper.wait("all alerts", || ids().len() >= fired)?;
            } else {
                std::thread::sleep(Duration::from_millis(random.between(50, 800)));
            }
            keeper.kill();
            kills.push((told().len(), manner == Manner::Well));
            outcome.runs += 1;
        }
        receiver.set(Manner::Well);
        keeper.start(&arguments);
        let fired = writer.failed().len();
        keeper.wait("the alerts that fired", || ids().len() >= fired)?;
        keeper.terminate()?;
        keeper.finish().context("to the end of the input")?;
        let requests = told();
        judge_alerts(&requests, &both(&writer.failed()), outcome);
        // What was under way at a kill is told again when the receiver is well, which may be some kills later.
        let mut allowed = 0;
        for (at, (killed, _)) in kills.iter().enumerate() {
            let (end, is_well) = kills.get(at + 1).copied().unwrap_or((requests.len(), true));
            allowed += CONCURRENCY;
            let before: BTreeSet<&str> = requests[..*killed].iter().map(|request| &*request.id).collect();
            let again = requests[*killed..end].iter().filter(|request| before.contains(&*request.id)).count();
            if again > allowed {
                outcome.violations.push(format!("{again} alerts were told again, where {allowed} may have been"));
            }
            if is_well {
                // All but what was told last has come by then.
                allowed = allowed.min(CONCURRENCY);
            }
        }
        scene.audit(outcome);
    }
    Ok(())
}
