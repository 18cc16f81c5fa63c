//! Records that come by the daemon's admin address: it hands them in here, and the sources that take them are known by their type.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use serde_json::json;
use tocsin_pipeline::event::{Origin, Span};
use tocsin_pipeline::source::{Block, Framing, Source, SourceContext, SourceError, SourceEvent};
use tokio::sync::{mpsc, oneshot};

/// How many deliveries wait at a source; whoever brings further ones waits.
const WAITING_MAX: usize = 16;
/// Whoever delivers does not wait longer until its records are safe.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// Records, and where it is told that they are safe.
struct Delivery {
    records: Vec<Bytes>,
    taken: oneshot::Sender<()>,
}

type Doors = Mutex<BTreeMap<(&'static str, Arc<str>), mpsc::Sender<Delivery>>>;

/// The sources that are open, by type and name.
static DOORS: Doors = Mutex::new(BTreeMap::new());

/// Why records were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    #[error("the configuration has no source of the type `{0}`")]
    Nobody(&'static str),
    #[error("the pipeline is busy or stopping; try again")]
    Busy,
}

/// Brings records to all sources of a type. When this returns they are in the journal, or in a checkpoint where there is none; where
/// the daemon keeps nothing at all, they are on their way.
///
/// # Errors
/// When nobody takes them. What another source took stays taken.
pub async fn deliver(kind: &'static str, records: Vec<Bytes>) -> Result<(), DeskError> {
    let doors: Vec<_> = {
        let doors = DOORS.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is closed was of a configuration from before.
        let open = doors.iter().filter(|((known, _), door)| *known == kind && !door.is_closed());
        open.map(|(_, door)| door.clone()).collect()
    };
    if doors.is_empty() {
        return Err(DeskError::Nobody(kind));
    }
    for door in doors {
        let (taken, is_taken) = oneshot::channel();
        let handed = async {
            door.send(Delivery { records: records.clone(), taken }).await.ok()?;
            is_taken.await.ok()
        };
        tokio::time::timeout(TAKEN_WITHIN, handed).await.ok().flatten().ok_or(DeskError::Busy)?;
    }
    Ok(())
}

/// A source that takes what is delivered to its type.
pub(crate) struct Desk {
    kind: &'static str,
    deliveries: Option<mpsc::Receiver<Delivery>>,
}

impl Desk {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, deliveries: None }
    }
}

impl Source for Desk {
    /// Takes over from the one of the same name.
    fn open<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        self.deliveries = Some(door(self.kind, &context.name));
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        let deliveries = self.deliveries.expect("opened before it is run");
        Box::pin(take(deliveries, context))
    }
}

fn door(kind: &'static str, name: &Arc<str>) -> mpsc::Receiver<Delivery> {
    let (door, deliveries) = mpsc::channel(WAITING_MAX);
    let mut doors = DOORS.lock().unwrap_or_else(PoisonError::into_inner);
    doors.retain(|_, door| !door.is_closed());
    doors.insert((kind, Arc::clone(name)), door);
    deliveries
}

async fn take(mut deliveries: mpsc::Receiver<Delivery>, context: SourceContext) -> Result<(), SourceError> {
    let lane = context.lane("", Origin::Stream);
    let mut base = context.positions.get("").and_then(|position| position["offset"].as_u64()).unwrap_or(0);
    context.emit(SourceEvent::Idle(Arc::clone(&lane))).await?;
    if context.once {
        // Nobody delivers anything to a daemon that reads everything to its end.
        return Ok(());
    }
    loop {
        let delivery = tokio::select! {
            biased;
            () = context.stop.cancelled() => break,
            delivery = deliveries.recv() => delivery,
        };
        let Some(Delivery { records, taken }) = delivery else { break };
        let (bytes, spans) = block(&records);
        let arrival = context.clock.now();
        let length = bytes.len() as u64;
        let (acknowledgement, at_once) = match context.data_dir {
            Some(_) => (Some(taken), None),
            None => (None, Some(taken)),
        };
        let position = json!({ "offset": base + length });
        let framing = Framing::Spans(spans);
        let block = Block { bytes, framing, base, position, arrival, acknowledgement, notes: None };
        context.emit(SourceEvent::Block(Arc::clone(&lane), block)).await?;
        context.emit(SourceEvent::Idle(Arc::clone(&lane))).await?;
        base += length;
        if let Some(taken) = at_once {
            // Whoever brought them may not wait any more.
            let _ = taken.send(());
        }
    }
    Ok(())
}

fn block(records: &[Bytes]) -> (Bytes, Vec<Span>) {
    let mut bytes = BytesMut::with_capacity(records.iter().map(|record| record.len() + 1).sum());
    let mut spans = Vec::with_capacity(records.len());
    for record in records {
        spans.push(Span::new(bytes.len(), record.len()));
        bytes.put_slice(record);
        bytes.put_u8(b'\n');
    }
    (bytes.freeze(), spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stand_in_a_block_one_after_the_other() {
        let (bytes, spans) = block(&[Bytes::from_static(b"{}"), Bytes::from_static(b"[1]")]);
        assert_eq!(&bytes[..], b"{}\n[1]\n");
        assert_eq!(spans.iter().map(|span| span.of(&bytes)).collect::<Vec<_>>(), [&b"{}"[..], b"[1]"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_refused() {
        let records = vec![Bytes::from_static(b"{}")];
        assert_eq!(deliver("nobody", records.clone()).await, Err(DeskError::Nobody("nobody")));
        let desk = door("somebody", &"one".into());
        assert_eq!(deliver("somebody", records.clone()).await, Err(DeskError::Busy), "nobody has come to take them");
        drop(desk);
        assert_eq!(deliver("somebody", records).await, Err(DeskError::Nobody("somebody")), "its source has ended");
    }
}
