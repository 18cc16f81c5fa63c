//! The source `stdin`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tocsin_config::component::{BuildContext, SourceConfig};
use tocsin_pipeline::event::Origin;
use tocsin_pipeline::source::{Source, SourceContext, SourceError, SourceEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::framing::{Delimiter, LineFramer, emit};

/// The most that is taken by one read; pipes hold 64 KiB unless they were told otherwise.
const READ_BYTES: usize = 256 << 10;
/// Reads that wait for the engine.
const READS_WAITING: usize = 2;
/// How often the thread that reads looks whether it should stop, when nothing comes.
const STOP_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Reads lines from standard input until its end; a pipeline whose sources have all ended, ends.
///
/// **State:** a byte counter. While it runs, the unfinished line; a reload hands it on.
///
/// **Late events:** lines are in the order in which they came.
///
/// **After a crash:** nothing repeats. What had been read from the pipe and was not yet in a checkpoint is lost: a pipe cannot
/// be read again. With `journal = true` only what was not yet in the journal is lost, the last 5 milliseconds or 64 KiB. To
/// read a file so that it can be read again, use `file`.
///
/// ```toml
/// [sources.pipe]
/// type = "stdin"
/// codec = "json"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl SourceConfig for Config {
    const NAME: &'static str = "stdin";

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Stdin { input: None, unread: &UNREAD })
    }
}

/// What was read from standard input and not handed over when the source was stopped: the next one begins with it. At most
/// an unfinished record and [`READS_WAITING`] reads and one under way.
type Unread = Mutex<Vec<Bytes>>;

/// There is one standard input, whichever source of whichever graph reads it.
static UNREAD: Unread = Mutex::new(Vec::new());

struct Stdin {
    input: Option<OwnedFd>,
    unread: &'static Unread,
}

impl Source for Stdin {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            if self.input.is_none() {
                let input = io::stdin().as_fd().try_clone_to_owned();
                self.input = Some(input.map_err(|error| SourceError(format!("cannot read standard input: {error}")))?);
            }
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let input = self.input.ok_or_else(|| SourceError("the source was not opened".to_owned()))?;
            let (chunks, reads) = mpsc::channel(READS_WAITING);
            let stop = context.stop.clone();
            // A thread of its own: a read that waits would keep the runtime from ending.
            std::thread::Builder::new()
                .name("stdin".to_owned())
                .spawn(move || read(&input, &chunks, &stop))
                .map_err(|error| SourceError(format!("cannot start the thread that reads standard input: {error}")))?;
            hand_over(context, reads, self.unread).await
        })
    }
}

/// Reads until the end, a fault, or `stop`.
fn read(input: &OwnedFd, chunks: &mpsc::Sender<io::Result<Bytes>>, stop: &CancellationToken) {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    while !stop.is_cancelled() {
        let mut ready = [PollFd::new(input, PollFlags::IN)];
        match poll(&mut ready, Some(&STOP_CHECK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => {
                let _ = chunks.blocking_send(Err(error.into()));
                return;
            }
        }
        buffer.clear();
        let chunk = match rustix::io::read(input, spare_capacity(&mut buffer)) {
            Ok(0) => return,
            Ok(_) => Ok(Bytes::copy_from_slice(&buffer)),
            // Another program may have set the terminal or pipe that it shares with us to non-blocking.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(error) => Err(error.into()),
        };
        let is_fault = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || is_fault {
            return;
        }
    }
}

async fn hand_over(
    context: SourceContext,
    mut reads: mpsc::Receiver<io::Result<Bytes>>,
    unread: &Unread,
) -> Result<(), SourceError> {
    let lane = context.lane("", Origin::Stream);
    let start = context.positions.get("").and_then(|position| position["offset"].as_u64()).unwrap_or(0);
    let mut framer = LineFramer::new(&context.records, Delimiter::Newline, start);
    let position = |offset| json!({ "offset": offset });
    let before = std::mem::take(&mut *unread.lock().unwrap_or_else(PoisonError::into_inner));
    for chunk in before {
        let mut framed = Vec::new();
        framer.push(chunk, context.clock.monotonic(), &mut framed);
        emit(&context, &lane, framed, context.clock.now(), position).await?;
    }
    loop {
        let (mut framed, now) = (Vec::new(), context.clock.monotonic());
        let chunk = match reads.try_recv() {
            Ok(chunk) => Some(chunk),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                context.emit(SourceEvent::Idle(Arc::clone(&lane))).await?;
                let due = framer.deadline().map(|due| due.saturating_sub(now));
                tokio::select! {
                    biased;
                    () = context.stop.cancelled() => return leave(&framer, reads, unread).await,
                    chunk = reads.recv() => chunk,
                    () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                        framer.flush_due(context.clock.monotonic(), &mut framed);
                        emit(&context, &lane, framed, context.clock.now(), position).await?;
                        continue;
                    }
                }
            }
        };
        match chunk {
            Some(Ok(chunk)) => {
                framer.push(chunk, now, &mut framed);
                emit(&context, &lane, framed, context.clock.now(), position).await?;
            }
            Some(Err(error)) => {
                context.metrics.error("read");
                return Err(SourceError(format!("cannot read standard input: {error}")));
            }
            None if context.stop.is_cancelled() => return leave(&framer, reads, unread).await,
            None => {
                framer.finish(&mut framed);
                emit(&context, &lane, framed, context.clock.now(), position).await?;
                let keep = Some(position(framer.position()));
                context.emit(SourceEvent::Closed { lane, keep }).await?;
                return Ok(());
            }
        }
    }
}

/// Puts by what was read and not handed over, once the thread that reads has ended: two must not read at a time.
async fn leave(
    framer: &LineFramer,
    mut reads: mpsc::Receiver<io::Result<Bytes>>,
    unread: &Unread,
) -> Result<(), SourceError> {
    let mut left = vec![framer.unfinished()];
    while let Some(Ok(chunk)) = reads.recv().await {
        left.push(chunk);
    }
    left.retain(|chunk| !chunk.is_empty());
    *unread.lock().unwrap_or_else(PoisonError::into_inner) = left;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::testing::{Running, context, context_of};

    fn piped() -> (io::PipeWriter, Box<dyn Source>) {
        let (reader, writer) = io::pipe().unwrap();
        (writer, Box::new(Stdin { input: Some(reader.into()), unread: Box::leak(Box::default()) }))
    }

    #[tokio::test]
    async fn what_was_read_and_not_handed_over_is_left_to_the_next() {
        let (reader, mut pipe) = io::pipe().unwrap();
        let unread: &'static Unread = Box::leak(Box::default());
        let next = || Box::new(Stdin { input: Some(reader.try_clone().unwrap().into()), unread });
        let mut running = Running::start(next(), context()).await;
        pipe.write_all(b"one\ntwo and").unwrap();
        assert_eq!(running.told(1).await, ["one"]);
        running.stop().await.unwrap();
        pipe.write_all(b" more\nthree\n").unwrap();
        let mut test = context();
        test.source.positions.insert(String::new(), json!({ "offset": 4 }));
        let mut running = Running::start(next(), test).await;
        assert_eq!(running.told(2).await, ["two and more", "three"]);
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn lines_come_at_once_and_the_end_ends_the_source() {
        let (mut pipe, source) = piped();
        let mut running = Running::start(source, context()).await;
        pipe.write_all(b"one\ntwo").unwrap();
        assert_eq!(running.told(1).await, ["one"]);
        pipe.write_all(b"\n\xff\0last").unwrap();
        drop(pipe);
        assert_eq!(running.told(2).await, ["two", "\u{fffd}\0last"]);
        let Some(SourceEvent::Closed { keep, .. }) = running.event().await else { panic!("not closed") };
        assert_eq!(keep, Some(json!({ "offset": 14 })));
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_pipe_does_not_hold_up_a_stop() {
        let (_pipe, source) = piped();
        let running = Running::start(source, context()).await;
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_busy_pipeline_makes_the_pipe_wait() {
        let (mut pipe, source) = piped();
        let mut running = Running::start(source, context_of(1)).await;
        let text: String = (0..100_000).map(|number| format!("{number:050}\n")).collect();
        let sent = text.clone();
        let sender = std::thread::spawn(move || pipe.write_all(sent.as_bytes()));
        assert!(running.bytes_to_the_end().await == text.as_bytes());
        sender.join().unwrap().unwrap();
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn the_offset_counts_on_after_a_restart() {
        let (mut pipe, source) = piped();
        let mut test = context();
        test.source.positions.insert(String::new(), json!({ "offset": 7 }));
        let mut running = Running::start(source, test).await;
        pipe.write_all(b"one\n").unwrap();
        let block = running.whole_block().await;
        assert_eq!((block.base, block.position), (7, json!({ "offset": 11 })));
        running.stop().await.unwrap();
    }
}
