//! Nowhere: for trying things out and for measuring.

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, SinkConfig};
use tocsin_config::facts::Audience;
use tocsin_pipeline::sink::{Sink, SinkContext, SinkError, SinkInput, SinkState};

use crate::receipts::Receipts;

/// Takes records, counts them, and forgets them: for trying a pipeline out, or for measuring everything before the sink.
///
/// **State:** none.
///
/// **Late events:** taken like any other.
///
/// **After a crash:** nothing is kept, so nothing can be lost; the counters begin at zero.
///
/// ```toml
/// [sinks.nowhere]
/// type = "blackhole"
/// inputs = ["access"]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl SinkConfig for Config {
    const NAME: &'static str = "blackhole";

    fn audience(&self) -> Audience {
        Audience::Nobody
    }

    fn guarantee(&self) -> &'static str {
        "nothing is kept"
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Sink> {
        Box::new(Blackhole)
    }
}

struct Blackhole;

impl Sink for Blackhole {
    fn open<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, mut context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            let mut receipts = Receipts::default();
            while let Some(queued) = context.input.recv().await {
                match queued.input {
                    SinkInput::Batch(batch) => {
                        receipts.taken(&batch);
                        receipts.accepted(&context);
                    }
                    SinkInput::Barrier { prepared, .. } => {
                        // Nobody waits for the answer of an epoch that was abandoned.
                        let _ = prepared.send(SinkState::Unchanged);
                    }
                    SinkInput::Committed { .. } | SinkInput::Watermark(_) => {}
                    SinkInput::End => break,
                }
            }
            Ok(SinkState::Unchanged)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::conformance::{Running, lines, sink, withstands};

    #[tokio::test]
    async fn it_withstands_what_every_sink_must() {
        withstands(|| sink::<Config>("{}", Path::new("")), None, async || String::new(), "").await;
    }

    #[tokio::test]
    async fn it_counts() {
        let running = Running::start(sink::<Config>("{}", Path::new("")), None, None).await.unwrap();
        running.send(lines("a\nb\nc\n").select(vec![0, 2])).await;
        running.until(|metrics| metrics.sent_events() == 2).await;
        running.end().await.unwrap();
    }
}
