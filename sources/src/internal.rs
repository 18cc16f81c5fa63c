//! The source `internal`.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tocsin_config::component::{BuildContext, Problem, SourceConfig};
use tocsin_config::types::Duration;
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::health::Change;
use tocsin_pipeline::source::{Block, Framing, Source, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::time::Timestamp;
use tokio::sync::broadcast::{self, error::RecvError};

/// Tells what is wrong with the daemon itself, so that a rule can watch it: a disk that is full, a checkpoint that cannot be
/// written. It needs no disk: `internal` → `alert` → `email` or `webhook` tells of a data directory that takes nothing.
///
/// A record when something goes wrong, another every `repeat` while it is so, and one when it is over:
///
/// ```json
/// {"event": "checkpoint_failed", "state": "raised", "component": "checkpoints", "message": "…: No space left on device", "time": "2026-11-20T12:00:00Z"}
/// ```
///
/// `state` is `raised` or `cleared`. With a `resolve_after` longer than `repeat`, an alert on `raised` lasts as long as the trouble.
///
/// | `event` | |
/// |---|---|
/// | `checkpoint_failed` | a checkpoint could not be written, or a sink could not prepare for it; the one before stays the truth |
/// | `checkpoint_slow` | a checkpoint has taken more than 30 seconds: something downstream is slow or away |
/// | `checkpoint_damaged` | damaged checkpoints were passed over at the start; over with the next one that is written |
/// | `imbalance` | records are not accounted for: see `tocsin audit` |
/// | `outbox_journal` | a sink cannot write its journal: notifications go on leaving, and a crash may repeat some |
/// | `outbox_full` | as many notifications wait as may: what comes is told in a digest |
/// | `receiver_away` | a sink is told nothing but failures by a receiver: attempts are paused |
/// | `alert_late` | a rule with an `slo` fires and a receiver was told later than that, or still is not; of the component that is the rule |
/// | `ingest_journal` | a source cannot write its journal: its clients are not answered |
/// | `buffer` | a buffer on disk cannot be written |
/// | `source_stalled` | a source cannot read what it should |
/// | `state_full` | the state of a component is at its bound, and records were dropped for that |
/// | `poison_skipped` | a record that stopped a component was left out; told once |
///
/// The metric `tocsin_trouble{event,component}` is 1 while something is wrong.
///
/// **State:** none. A trouble is told once when it begins, whatever tells of it, so that notifications about notifications
/// do not feed themselves.
///
/// **Late events:** none: an event happens when it is told.
///
/// **After a crash:** what is still wrong is told again when it is found again.
///
/// ```toml
/// [sources.self]
/// type = "internal"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// How often something is told again while it is wrong. Default `"30s"`, at least `"10ms"`.
    #[serde(default = "half_a_minute")]
    repeat: Duration,
}

fn half_a_minute() -> Duration {
    Duration(StdDuration::from_secs(30))
}

impl SourceConfig for Config {
    const NAME: &'static str = "internal";

    fn problems(&self) -> Vec<Problem> {
        let is_short = self.repeat.0 < StdDuration::from_millis(10);
        is_short.then(|| Problem::new("repeat", "must be at least \"10ms\"")).into_iter().collect()
    }

    fn default_codec(&self) -> &'static str {
        "json"
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Internal { repeat: self.repeat.0, told: None })
    }
}

struct Internal {
    repeat: StdDuration,
    /// What was wrong when it was opened, and what changes from then on.
    told: Option<(Vec<Change>, broadcast::Receiver<Change>)>,
}

impl Source for Internal {
    fn open<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.told = Some(context.health.listen());
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let (standing, mut changes) = self.told.expect("opened before it is run");
            let health = context.health.clone();
            let mut teller = Teller { lane: context.lane("", Origin::Stream), offset: 0, context };
            teller.tell(&standing).await?;
            if teller.context.once {
                // There is no end to what may go wrong, so what has is all there is to read.
                return Ok(teller.context.emit(SourceEvent::Closed { lane: teller.lane, keep: None }).await?);
            }
            let stop = teller.context.stop.clone();
            let mut repeats = tokio::time::interval(self.repeat);
            repeats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            repeats.reset();
            teller.idle().await?;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    change = changes.recv() => match change {
                        Ok(change) => teller.tell(&[change]).await?,
                        Err(RecvError::Lagged(_)) => teller.tell(&health.standing()).await?,
                        Err(RecvError::Closed) => return Ok(()),
                    },
                    _ = repeats.tick() => teller.tell(&health.standing()).await?,
                }
                teller.idle().await?;
            }
        })
    }
}

/// Makes records of changes.
struct Teller {
    context: SourceContext,
    lane: Arc<Lane>,
    offset: u64,
}

impl Teller {
    async fn tell(&mut self, changes: &[Change]) -> Result<(), SourceError> {
        if changes.is_empty() {
            return Ok(());
        }
        let arrival = self.context.clock.now();
        let text: String = changes.iter().map(|change| line(change, arrival)).collect();
        let base = self.offset;
        self.offset += text.len() as u64;
        let block = Block {
            bytes: Bytes::from(text),
            framing: Framing::Lines,
            base,
            position: json!(null),
            arrival,
            acknowledgement: None,
            notes: None,
        };
        Ok(self.context.emit(SourceEvent::Block(Arc::clone(&self.lane), block)).await?)
    }

    /// Nothing being wrong is no reason for time to stand still.
    async fn idle(&self) -> Result<(), SourceError> {
        Ok(self.context.emit(SourceEvent::Idle(Arc::clone(&self.lane))).await?)
    }
}

fn line(change: &Change, time: Timestamp) -> String {
    let event = json!({
        "event": change.trouble.as_str(),
        "state": change.state.as_str(),
        "component": &*change.component,
        "message": &*change.message,
        "time": time.to_string(),
    });
    format!("{event}\n")
}

#[cfg(test)]
mod tests {
    use tocsin_pipeline::health::Trouble;

    use super::*;
    use crate::testing::context_of;

    /// What the next event says; a block as its lines without the time.
    async fn next(events: &mut tokio::sync::mpsc::Receiver<SourceEvent>) -> String {
        loop {
            let event = tokio::time::timeout(StdDuration::from_secs(20), events.recv()).await;
            match event.expect("something is told") {
                Some(SourceEvent::Block(_, block)) => {
                    let text = String::from_utf8(block.bytes.to_vec()).unwrap();
                    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
                    let lines = lines.map(|line| format!("{} {} {}", line["component"], line["event"], line["state"]));
                    return lines.collect::<Vec<_>>().join("; ").replace('"', "");
                }
                Some(SourceEvent::Closed { .. }) => return "closed".to_owned(),
                Some(_) => {}
                None => return "ended".to_owned(),
            }
        }
    }

    fn source(repeat: StdDuration) -> Box<Internal> {
        Box::new(Internal { repeat, told: None })
    }

    #[tokio::test]
    async fn troubles_are_told_when_they_begin_while_they_last_and_when_they_end() {
        let mut test = context_of(16);
        let (health, stop) = (test.source.health.clone(), test.source.stop.clone());
        health.raise(Trouble::CheckpointDamaged, "checkpoints", "before it was opened");
        let mut source = source(StdDuration::from_millis(20));
        source.open(&test.source).await.unwrap();
        let running = tokio::spawn(source.run(test.source));
        assert_eq!(next(&mut test.events).await, "checkpoints checkpoint_damaged raised");
        health.raise(Trouble::Buffer, "hook", "full");
        while next(&mut test.events).await != "hook buffer raised" {}
        while next(&mut test.events).await != "checkpoints checkpoint_damaged raised; hook buffer raised" {}
        health.clear(Trouble::Buffer, "hook");
        while next(&mut test.events).await != "hook buffer cleared" {}
        stop.cancel();
        while next(&mut test.events).await != "ended" {}
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn where_sources_end_it_ends_with_what_is_wrong_at_the_start() {
        let mut test = context_of(16);
        test.source.once = true;
        test.source.health.raise(Trouble::Imbalance, "audit", "7 is not 8");
        let mut source = source(StdDuration::from_secs(30));
        source.open(&test.source).await.unwrap();
        tokio::spawn(source.run(test.source));
        assert_eq!(next(&mut test.events).await, "audit imbalance raised");
        assert_eq!(next(&mut test.events).await, "closed");
        assert_eq!(next(&mut test.events).await, "ended");
    }
}
