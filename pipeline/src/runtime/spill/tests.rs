//! The buffer with a sink that is let go on step by step, on a disk that loses power: what the sink has written at the end is
//! what an undisturbed one would have.

use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::metrics::Metrics;
use crate::sink::Inputs;
use crate::store::simulated::{Failure as DiskFailure, Random, SimulatedDisk};
use crate::testing::{TextCodec, text_batch, text_lane};

/// What a sink that is exactly once writes to: cut back to its state when it is opened, as the file sink does.
type Output = Arc<Mutex<Vec<u64>>>;

/// A sink that takes as many inputs as it is let.
async fn sink(mut input: Inputs, output: Output, steps: Arc<Semaphore>, metrics: ComponentMetrics) -> SinkState {
    let state = |output: &Output| SinkState::State(output.lock().unwrap().len().to_string().into());
    loop {
        let Ok(step) = steps.acquire().await else { return state(&output) };
        step.forget();
        let Some(queued) = input.recv().await else { return SinkState::Unchanged };
        match queued.input {
            SinkInput::Batch(batch) => {
                let numbers: Vec<u64> = batch
                    .rows()
                    .map(|row| std::str::from_utf8(batch.record(row)).unwrap().trim_start_matches('x').parse().unwrap())
                    .collect();
                metrics.sent(numbers.len());
                output.lock().unwrap().extend(numbers);
            }
            SinkInput::Barrier { prepared, .. } => drop(prepared.send(state(&output))),
            SinkInput::Committed { .. } | SinkInput::Watermark(_) => {}
            SinkInput::End => return state(&output),
        }
    }
}

const ENDLESS: usize = 1 << 30;
const MAX: usize = 64 << 10;

struct Rig {
    input: mpsc::Sender<Queued>,
    complete: watch::Sender<(u64, u64)>,
    till: Till,
    steps: Arc<Semaphore>,
    metrics: ComponentMetrics,
    task: JoinHandle<Result<Done, Failure>>,
    disk_gauge: IntGauge,
    memory_gauge: IntGauge,
}

fn start(disk: &SimulatedDisk, output: &Output, restored: &(Buffer, Option<Bytes>), max_disk: u64) -> Rig {
    let (buffer, state) = restored.clone();
    let length = state.as_ref().map_or(0, |state| std::str::from_utf8(state).unwrap().parse().unwrap());
    output.lock().unwrap().truncate(length);
    let folder = Path::new("data/sinks/out/buffer");
    let (log, _) = Log::open(Arc::new(disk.clone()), folder, 16 << 10, buffer.to).unwrap();
    let all = Metrics::new();
    let metrics = all.component("out", "sink");
    let till = Till::open(&metrics);
    let (sender, input) = mpsc::channel(8);
    let (queue, queued) = mpsc::channel(64);
    let inputs = Inputs::new(queued, metrics.clone());
    let (complete_sender, complete) = watch::channel((0, 0));
    let taken = inputs.progress();
    let steps = Arc::new(Semaphore::new(0));
    let mut running = JoinSet::new();
    let run = sink(inputs, Arc::clone(output), Arc::clone(&steps), metrics.clone());
    running.spawn(async { Ok(run.await) });
    let spill = Spill {
        sink: "out".into(),
        number: 0,
        lanes: Lanes::new([("in".into(), Arc::new(TextCodec) as Arc<dyn crate::codec::Codec>)].into()),
        shares: Shares::of(MAX),
        max_disk,
        input,
        complete,
        queue,
        running,
        taken,
        till: till.clone(),
        metrics: metrics.clone(),
        health: Default::default(),
        memory_gauge: all.buffer_bytes.with_label_values(&["out"]),
        disk_gauge: all.buffer_disk_bytes.with_label_values(&["out"]),
    };
    let (memory_gauge, disk_gauge) = (spill.memory_gauge.clone(), spill.disk_gauge.clone());
    let task = tokio::spawn(spill.run(log, buffer, state, 0));
    Rig { input: sender, complete: complete_sender, till, steps, metrics, task, disk_gauge, memory_gauge }
}

/// A record of about a kilobyte that says its number.
fn record(number: u64) -> Batch {
    text_batch(&text_lane("in"), &format!("{number:x>1000}\n"))
}

impl Rig {
    async fn send(&self, number: u64) -> bool {
        self.input.send(Queued::free(SinkInput::Batch(record(number)))).await.is_ok()
    }

    async fn barrier(&self, epoch: u64) -> Option<Answer> {
        let (prepared, answer) = Prepared::new(self.till.clone());
        self.input.send(Queued::free(SinkInput::Barrier { epoch, prepared })).await.ok()?;
        answer.await.ok()
    }

    /// Nothing follows; the sink takes all it is handed.
    async fn end(self) -> Answer {
        self.steps.add_permits(ENDLESS);
        self.input.send(Queued::free(SinkInput::End)).await.unwrap();
        match self.task.await.unwrap().unwrap() {
            Done::Sink(0, answer) => answer,
            _ => panic!("it was a sink"),
        }
    }
}

fn facts(buffer: Buffer) -> (u64, u64, u64) {
    (buffer.from, buffer.to, buffer.records)
}

/// What a restart begins with.
fn restored(answer: &Answer) -> (Buffer, Option<Bytes>) {
    let state = match &answer.state {
        SinkState::State(state) => Some(state.clone()),
        _ => None,
    };
    (answer.buffer.expect("it is buffered"), state)
}

fn fresh() -> (Buffer, Option<Bytes>) {
    (Buffer::default(), None)
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_keeps_up_costs_no_disk() {
    let (disk, output) = (SimulatedDisk::default(), Output::default());
    let rig = start(&disk, &output, &fresh(), 1 << 30);
    rig.steps.add_permits(ENDLESS);
    for number in 0..10 {
        assert!(rig.send(number).await);
    }
    let answer = rig.barrier(1).await.unwrap();
    assert_eq!(answer.buffer.map(facts), Some((10, 10, 0)));
    assert_eq!((answer.account.received, answer.account.held), (10, 0));
    assert_eq!(disk.files(), []);
    assert_eq!(rig.end().await.state, SinkState::State("10".into()));
    assert_eq!(*output.lock().unwrap(), Vec::from_iter(0..10));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_stuck_holds_no_checkpoint_and_costs_disk_instead_of_memory() {
    let (disk, output) = (SimulatedDisk::default(), Output::default());
    let rig = start(&disk, &output, &fresh(), 1 << 30);
    rig.steps.add_permits(3);
    let mut last = None;
    for number in 0..500 {
        assert!(rig.send(number).await);
        if number % 100 == 99 {
            let answer = rig.barrier(number).await.unwrap();
            assert_eq!(answer.buffer.map(facts), Some((0, number + 1, number + 1)));
            assert_eq!((answer.account.received, answer.account.held), (number + 1, number + 1));
            last = Some(restored(&answer));
        }
        assert!(rig.memory_gauge.get() <= MAX as i64, "{} bytes in memory", rig.memory_gauge.get());
    }
    assert!(rig.disk_gauge.get() > 400_000);
    drop(rig);
    // A power cut that takes all it may.
    let disk = disk.after_crash(&[], None);
    let rig = start(&disk, &output, &last.unwrap(), 1 << 30);
    let answer = rig.end().await;
    assert_eq!(*output.lock().unwrap(), Vec::from_iter(0..500));
    assert_eq!(answer.buffer.map(facts), Some((500, 500, 0)));
    // In the ledger they were received before the crash.
    assert_eq!((answer.account.received, answer.account.held), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_used_by_the_next_epoch_and_makes_room_on_disk() {
    let (disk, output) = (SimulatedDisk::default(), Output::default());
    let rig = start(&disk, &output, &fresh(), 1 << 30);
    for number in 0..200 {
        assert!(rig.send(number).await);
    }
    assert_eq!(rig.barrier(1).await.unwrap().buffer.unwrap().from, 0);
    rig.steps.add_permits(ENDLESS);
    while output.lock().unwrap().len() < 200 {
        tokio::task::yield_now().await;
    }
    let mut epoch = 2;
    while rig.barrier(epoch).await.unwrap().buffer.unwrap().from < 200 {
        epoch += 1;
    }
    rig.complete.send_replace((epoch, 200));
    while disk.files().len() > 1 {
        tokio::task::yield_now().await;
    }
    assert!(rig.send(200).await);
    rig.end().await;
    assert_eq!(*output.lock().unwrap(), Vec::from_iter(0..201));
}

#[tokio::test(start_paused = true)]
async fn while_the_disk_is_full_writers_wait_and_nothing_is_lost() {
    let (disk, output) = (SimulatedDisk::default(), Output::default());
    let rig = start(&disk, &output, &fresh(), 40_000);
    let writer = {
        let input = rig.input.clone();
        tokio::spawn(async move {
            for number in 0..300 {
                input.send(Queued::free(SinkInput::Batch(record(number)))).await.unwrap();
            }
        })
    };
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!writer.is_finished(), "nothing more fits");
    assert!(rig.metrics.error_count("buffer_full") == 1 && rig.disk_gauge.get() < 100_000);
    rig.steps.add_permits(ENDLESS);
    writer.await.unwrap();
    rig.end().await;
    assert_eq!(*output.lock().unwrap(), Vec::from_iter(0..300));
}

#[tokio::test(start_paused = true)]
async fn a_barrier_that_cannot_be_written_is_answered_when_the_sink_has_come_so_far() {
    let (disk, output) = (SimulatedDisk::default(), Output::default());
    let rig = start(&disk, &output, &fresh(), 1 << 30);
    disk.fail(DiskFailure { from: disk.operations(), count: u64::MAX / 2, kind: io::ErrorKind::StorageFull });
    for number in 0..10 {
        assert!(rig.send(number).await);
    }
    let steps = Arc::clone(&rig.steps);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        steps.add_permits(ENDLESS);
    });
    let answer = rig.barrier(1).await.unwrap();
    assert_eq!(answer.buffer.map(facts), Some((10, 10, 0)));
}

/// Batches, steps of the sink, checkpoints and power cuts in random order; at the end everything is delivered.
async fn disturbed(seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    let (mut disk, output) = (SimulatedDisk::default(), Output::default());
    // What the last complete checkpoint says, and how many batches were before it.
    let (mut checkpoint, mut position, mut sent, mut epoch) = (fresh(), 0, 0, 0);
    let mut floors = VecDeque::from([0, 0, 0]);
    let mut ledger = 0;
    let mut rig = start(&disk, &output, &checkpoint, 1 << 30);
    for _ in 0..random.below(400) {
        match random.below(12) {
            0..7 if sent < 300 => {
                if !rig.send(sent).await {
                    return Err(format!("seed {seed}: it has ended: {:?}", rig.task.await.map(|done| done.err())));
                }
                sent += 1;
            }
            7 | 8 => rig.steps.add_permits(random.below(20) as usize),
            9 | 10 => {
                epoch += 1;
                let Some(answer) = rig.barrier(epoch).await else { return Err(format!("seed {seed}: no answer")) };
                let buffer = answer.buffer.unwrap();
                // A checkpoint may fail: then nobody is told.
                if random.one_in(5) {
                    continue;
                }
                (checkpoint, position) = (restored(&answer), sent);
                floors.push_back(buffer.from);
                floors.pop_front();
                rig.complete.send_replace((epoch, floors[0]));
                let delivered: u64 =
                    checkpoint.1.as_ref().map_or(0, |s| std::str::from_utf8(s).unwrap().parse().unwrap());
                if delivered + buffer.records != sent {
                    return Err(format!("seed {seed}: {delivered} delivered, {buffer:?} of {sent}"));
                }
                if ledger + answer.account.received != sent {
                    return Err(format!("seed {seed}: {:?} after {ledger}, of {sent}", answer.account));
                }
            }
            11 => {
                disk.crash();
                rig.task.abort();
                let _ = rig.task.await;
                let survived: Vec<usize> = (0..disk.pending()).filter(|_| random.one_in(2)).collect();
                disk = disk.after_crash(&survived, Some(&mut random));
                sent = position;
                ledger = position;
                rig = start(&disk, &output, &checkpoint, 1 << 30);
            }
            _ => {}
        }
    }
    rig.end().await;
    let output = output.lock().unwrap();
    let expected = Vec::from_iter(0..sent);
    if *output == expected { Ok(()) } else { Err(format!("seed {seed}: {output:?}, not 0 to {sent}")) }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_exactly_once_stays_so_whatever_happens() {
    for seed in 0..150 {
        disturbed(seed).await.unwrap();
    }
}

#[cfg(feature = "faults")]
#[tokio::test(start_paused = true)]
async fn a_buffer_that_forgets_what_is_on_disk_is_noticed() {
    fault::plant(Some(Defect::ForgottenSpill));
    let mut found = false;
    for seed in 0..20 {
        found |= disturbed(seed).await.is_err();
    }
    fault::plant(None);
    assert!(found);
}
