//! SIGTERM under load: it ends in time, and after the next start nothing is lost and nothing is there twice.

use std::time::{Duration, Instant};

use crate::scene::{Keeper, Scene, Writer, alerts, both, judge_alerts, numbers, windows};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::receiver::{Manner, Receiver};

pub const SIGTERM: Campaign = Campaign { name: "sigterm", variable: "TOCSIN_STOPS", sizes: (10, 500), body: sigterm };

/// Files, windows, alerts to a file and to a receiver.
pub const PIPELINE: &str = r#"
[daemon]
checkpoint_interval = "200ms"
shutdown_timeout = "3s"

[sources.log]
type = "file"
paths = ["${IN}/app.log"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1h"

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG"'

[operators.by_second]
type = "window"
inputs = ["kept"]
tumbling = "1s"
aggregates = { count = "count()", sum = "sum(.seq)" }

[operators.failed]
type = "alert"
inputs = ["kept"]
condition = '.level == "ERROR"'
group_by = [".job"]
resolve_after = "1s"

[sinks.kept_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson"

[sinks.windows_out]
type = "file"
inputs = ["by_second"]
path = "${OUT}/windows.ndjson"

[sinks.alerts_out]
type = "file"
inputs = ["failed"]
path = "${OUT}/alerts.ndjson"

[sinks.alerts_told]
type = "webhook"
inputs = ["failed"]
url = "http://127.0.0.1:${PORT}/alerts"
allow_private = true
timeout = "1s"
retry = { initial = "10ms", max = "100ms" }
"#;

/// `shutdown_timeout` holds for stopping the sources, for a last checkpoint and for draining the sinks; the rest is for a
/// busy machine.
pub const IN_TIME: Duration = Duration::from_secs(3 * 3 + 6);

fn sigterm(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut random = order.random();
    let mut longest = Duration::ZERO;
    while outcome.runs < order.size && outcome.is_clean() {
        let receiver = Receiver::start(random.word());
        let scene = Scene::new(order, PIPELINE, vec![("PORT", receiver.port().to_string())]);
        let mut keeper = Keeper::new(&scene);
        let mut writer = Writer::default();
        let mut is_hurried = false;
        for stop in 0..10.min(order.size - outcome.runs) {
            writer.append(&scene.log(), random.between(2_000, 12_000));
            let is_dead = stop % 5 == 3;
            receiver.set(if is_dead { Manner::Hang } else { Manner::Well });
            keeper.start(&[]);
            keeper.until_it_listens()?;
            std::thread::sleep(Duration::from_millis(random.below(400)));
            let begun = Instant::now();
            keeper.signal("TERM");
            if stop % 5 == 4 {
                // The second signal ends it at once, as a crash does.
                keeper.signal("TERM");
                is_hurried = true;
            }
            let status = keeper.end()?;
            let took = begun.elapsed();
            longest = longest.max(took);
            if took > IN_TIME {
                outcome.violations.push(format!("it took {took:?} to stop"));
            }
            if !(status.success() || is_hurried && status.code() == Some(130)) {
                outcome.violations.push(format!("it ended badly: {status}\n{}", scene.told()));
            }
            outcome.runs += 1;
        }
        receiver.set(Manner::Well);
        keeper.finish()?;
        let found = scene.records("kept.ndjson", outcome);
        outcome.compare("kept.ndjson", writer.kept(), numbers(&found));
        let found = scene.records("windows.ndjson", outcome);
        outcome.compare("windows.ndjson", writer.windows(), windows(&found));
        let found = scene.records("alerts.ndjson", outcome);
        outcome.compare("alerts.ndjson", both(&writer.failed()), alerts(&found));
        let repeats = judge_alerts(&receiver.accepted("/alerts"), &both(&writer.failed()), outcome);
        // Without a second signal none is told twice.
        let allowed = if is_hurried { 2 * 8 } else { 0 };
        if repeats > allowed {
            outcome.violations.push(format!("{repeats} alerts were told again after a stop"));
        }
        scene.audit(outcome);
    }
    outcome.note("longest_ms", longest.as_millis() as u64);
    Ok(())
}
