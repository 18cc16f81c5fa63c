//! Standard output and standard error.

use std::io::IsTerminal;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_pipeline::sink::{Queued, Sink, SinkContext, SinkError, SinkInput, SinkState};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::encoding::{self, Encoder, append_escaped};
use crate::receipts::Receipts;

/// How much is gathered before it is written. What has come is written at once when nothing more is waiting.
const BUFFER_BYTES: usize = 64 * 1024;

/// Writes records to standard output or standard error, one a line.
///
/// On a terminal, control characters in records are written as `\u001b`: log text cannot move the cursor, change the title
/// or hide lines. `encoding = "pretty"` shows alerts as lines for people, in colour on a terminal unless `NO_COLOR` is set.
///
/// When the reader goes away (`tocsin run … | head`), the sink ends. While the reader stands still, so does the pipeline.
///
/// **State:** none.
///
/// **Late events:** written like any other.
///
/// **After a crash:** what was written since the last checkpoint is written again; nothing is lost.
///
/// ```toml
/// [sinks.screen]
/// type = "console"
/// inputs = ["high_error_rate"]
/// encoding = "pretty"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Which of the two.
    #[serde(default)]
    target: Target,
    /// How a record is written: `"json"`, `"logfmt"`, `"text"`, `"raw"`, `"pretty"` or `{ template = "…" }`. Default: as it
    /// came in; as JSON where an operator changed it.
    encoding: Option<encoding::Config>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Target {
    #[default]
    Stdout,
    Stderr,
}

impl SinkConfig for Config {
    const NAME: &'static str = "console";

    fn problems(&self) -> Vec<Problem> {
        encoding::problems(self.encoding.as_ref())
    }

    fn guarantee(&self) -> &'static str {
        "at least once"
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Sink> {
        Box::new(Console { target: self.target, encoder: Encoder::new(self.encoding.as_ref()) })
    }
}

struct Console {
    target: Target,
    encoder: Encoder,
}

impl Sink for Console {
    fn open<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        match self.target {
            Target::Stdout => {
                Box::pin(write(tokio::io::stdout(), std::io::stdout().is_terminal(), self.encoder, context))
            }
            Target::Stderr => {
                Box::pin(write(tokio::io::stderr(), std::io::stderr().is_terminal(), self.encoder, context))
            }
        }
    }
}

/// Writes what comes to `writer` until the end of the input or of the writer.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    is_terminal: bool,
    encoder: Encoder,
    mut context: SinkContext,
) -> Result<SinkState, SinkError> {
    let is_coloured = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let encoder = if is_coloured { encoder.coloured() } else { encoder };
    let must_escape = is_terminal && !encoder.is_for_people();
    let (mut buffer, mut plain, mut receipts) = (Vec::new(), Vec::new(), Receipts::default());
    loop {
        let next = match context.input.try_recv() {
            Ok(queued) if buffer.len() < BUFFER_BYTES => Some(queued.input),
            next => {
                let stop = context.stop.clone();
                let flushed = tokio::select! {
                    flushed = flush(&mut writer, &mut buffer) => flushed,
                    () = stop.cancelled() => {
                        receipts.refused(&context);
                        return Ok(SinkState::Unchanged);
                    }
                };
                match flushed {
                    Ok(()) => receipts.accepted(&context),
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                        tracing::info!(sink = %context.name, "the reader of the output has gone");
                        receipts.refused(&context);
                        return Ok(SinkState::Unchanged);
                    }
                    Err(error) => return Err(SinkError(format!("writing to the console: {error}"))),
                }
                match next {
                    Ok(queued) => Some(queued.input),
                    Err(_) => context.input.recv().await.map(Queued::split).map(|(input, _)| input),
                }
            }
        };
        match next {
            Some(SinkInput::Batch(batch)) => {
                receipts.taken(&batch);
                if must_escape {
                    plain.clear();
                    context.metrics.expression_errors(encoder.append_all(&batch, &mut plain));
                    append_escaped(&plain, &mut buffer);
                } else {
                    context.metrics.expression_errors(encoder.append_all(&batch, &mut buffer));
                }
            }
            Some(SinkInput::Barrier { prepared, .. }) => {
                // The answer must not come before the records are out, else a crash would lose them.
                let stop = context.stop.clone();
                let state = tokio::select! {
                    flushed = flush(&mut writer, &mut buffer) => match flushed {
                        Ok(()) => SinkState::Unchanged,
                        Err(error) => SinkState::Failed(error.to_string()),
                    },
                    () = stop.cancelled() => SinkState::Failed("the console takes nothing".to_owned()),
                };
                if state == SinkState::Unchanged {
                    receipts.accepted(&context);
                }
                // Nobody waits for the answer of an epoch that was abandoned.
                let _ = prepared.send(state);
            }
            Some(SinkInput::Committed { .. } | SinkInput::Watermark(_)) => {}
            Some(SinkInput::End) | None => {
                let stop = context.stop.clone();
                tokio::select! {
                    flushed = flush(&mut writer, &mut buffer) => if flushed.is_ok() { receipts.accepted(&context) },
                    () = stop.cancelled() => {}
                }
                receipts.refused(&context);
                return Ok(SinkState::Unchanged);
            }
        }
    }
}

async fn flush(writer: &mut (impl AsyncWrite + Unpin), buffer: &mut Vec<u8>) -> std::io::Result<()> {
    if !buffer.is_empty() {
        writer.write_all(buffer).await?;
        buffer.clear();
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use super::*;
    use crate::conformance::{Running, lines, records, sink};

    /// A console that writes into a pipe instead.
    struct Piped {
        writer: DuplexStream,
        is_terminal: bool,
        encoder: Encoder,
    }

    impl Sink for Piped {
        fn open<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
            Box::pin(async { Ok(()) })
        }

        fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
            Box::pin(write(self.writer, self.is_terminal, self.encoder, context))
        }
    }

    async fn start(size: usize, is_terminal: bool) -> (DuplexStream, Running) {
        let (reader, writer) = duplex(size);
        let piped = Piped { writer, is_terminal, encoder: Encoder::new(None) };
        (reader, Running::start(Box::new(piped), None, None).await.unwrap())
    }

    #[tokio::test]
    async fn records_are_out_before_a_barrier_is_answered() {
        let (mut reader, running) = start(4096, false).await;
        running.send(lines("one\ntwo\n")).await;
        running.send(records(&[r#"{"a": "\u001b"}"#])).await;
        assert_eq!(running.barrier(1).await, SinkState::Unchanged);
        let mut text = vec![0; 4096];
        let read = reader.read(&mut text).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&text[..read]), "one\ntwo\n{\"a\":\"\\u001b\"}\n");
        assert_eq!(running.metrics.sent_events(), 3);
        running.end().await.unwrap();
    }

    #[tokio::test]
    async fn a_terminal_is_not_driven_by_what_is_written() {
        let (mut reader, running) = start(4096, true).await;
        running.send(lines("\x1b]0;title\x07\n")).await;
        running.end().await.unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "\\u001b]0;title\\u0007\n");
    }

    #[tokio::test]
    async fn a_reader_that_goes_ends_the_sink_without_fault() {
        let (reader, running) = start(4096, false).await;
        drop(reader);
        running.send(lines("one\n")).await;
        running.finished().await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_does_not_keep_it_from_stopping() {
        let (_reader, running) = start(4, false).await;
        running.send(lines("one two three\n")).await;
        running.stop.cancel();
        running.finished().await.unwrap();
    }

    #[test]
    fn its_options_are_read() {
        sink::<Config>(r#"{"target": "stderr", "encoding": "pretty"}"#, Path::new(""));
        assert!(serde_json::from_str::<Config>(r#"{"target": "printer"}"#).is_err());
    }
}
