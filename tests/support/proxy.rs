//! A proxy between a client and a Kafka broker that makes things go wrong at a request of a chosen kind.
//!
//! It understands just enough of the protocol to tell requests apart: a frame is a length and so many bytes, and a request
//! begins with the key of its kind, a version and a number that its answer repeats. Answers come in the order of their
//! requests. Nothing is rewritten: brokers must advertise the proxy's address themselves, on a listener of their own.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames beyond this are not Kafka's: its own bound on a request is 100 MiB unless told otherwise.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// The kinds of requests a client sends, by the protocol's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::enum_variant_names, reason = "these are the protocol's names")]
pub enum Api {
    Produce,
    Fetch,
    ListOffsets,
    Metadata,
    OffsetCommit,
    OffsetFetch,
    FindCoordinator,
    JoinGroup,
    Heartbeat,
    LeaveGroup,
    SyncGroup,
    SaslHandshake,
    ApiVersions,
    InitProducerId,
    OffsetForLeaderEpoch,
    AddPartitionsToTxn,
    AddOffsetsToTxn,
    EndTxn,
    TxnOffsetCommit,
    SaslAuthenticate,
    ConsumerGroupHeartbeat,
    Other(i16),
}

impl Api {
    fn of(key: i16) -> Self {
        match key {
            0 => Self::Produce,
            1 => Self::Fetch,
            2 => Self::ListOffsets,
            3 => Self::Metadata,
            8 => Self::OffsetCommit,
            9 => Self::OffsetFetch,
            10 => Self::FindCoordinator,
            11 => Self::JoinGroup,
            12 => Self::Heartbeat,
            13 => Self::LeaveGroup,
            14 => Self::SyncGroup,
            17 => Self::SaslHandshake,
            18 => Self::ApiVersions,
            22 => Self::InitProducerId,
            23 => Self::OffsetForLeaderEpoch,
            24 => Self::AddPartitionsToTxn,
            25 => Self::AddOffsetsToTxn,
            26 => Self::EndTxn,
            28 => Self::TxnOffsetCommit,
            36 => Self::SaslAuthenticate,
            68 => Self::ConsumerGroupHeartbeat,
            other => Self::Other(other),
        }
    }
}

/// On which side of the broker something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The broker has not seen the request.
    Before,
    /// The broker has answered, and the client has not seen it: what it asked for is done, and it cannot know.
    After,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is closed, and what was in hand is gone.
    Cut,
    /// The same, and the client is told by a reset.
    Reset,
    /// What was in hand, and all that comes behind it in the connection, goes on later.
    Delay(Duration),
    /// A network that takes everything and passes nothing on, for so long and for all connections, new ones too. Those in
    /// which something was lost are closed afterwards.
    Silence(Duration),
}

struct Rule {
    api: Api,
    /// How many requests of this kind are still let through.
    passes: u64,
    when: When,
    fault: Fault,
}

#[derive(Default)]
struct State {
    seen: BTreeMap<Api, u64>,
    rules: Vec<Rule>,
    struck: u64,
    silent_until: Option<Instant>,
    // Held by their threads alone, so that a connection ends when those do. The others are forgotten when one is opened.
    connections: Vec<Weak<Connection>>,
}

/// What a test wants to go wrong, and what has been seen. Several proxies share one: a rule counts the requests of all.
#[derive(Default)]
pub struct Faults(Mutex<State>);

impl Faults {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes something happen to the `nth` request of a kind from now on; 1 is the next one. Each rule strikes once.
    pub fn inject(&self, api: Api, nth: u64, when: When, fault: Fault) {
        assert!(nth > 0, "requests are counted from one");
        self.state().rules.push(Rule { api, passes: nth - 1, when, fault });
    }

    /// Forgets the rules that have not struck, and ends a silence.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.silent_until = None;
    }

    /// How many rules have struck so far. One that strikes after the broker has answered is counted then.
    pub fn struck(&self) -> u64 {
        self.state().struck
    }

    /// How often each kind of request has been seen, whatever became of it.
    pub fn seen(&self) -> BTreeMap<Api, u64> {
        self.state().seen.clone()
    }

    /// Closes all connections there are now, as when a broker goes away and comes back.
    pub fn cut_all(&self) {
        for connection in self.state().connections.drain(..) {
            if let Some(connection) = connection.upgrade() {
                connection.close();
            }
        }
    }

    /// From now on everything is taken and nothing passed on, for so long.
    pub fn silence(&self, length: Duration) {
        self.state().silent_until = Some(Instant::now() + length);
    }

    /// Counts a request and tells what is to happen to it. Of several rules that have come due, the oldest strikes.
    fn judge(&self, api: Api) -> Option<(When, Fault)> {
        let mut state = self.state();
        *state.seen.entry(api).or_default() += 1;
        let mut due = None;
        for (index, rule) in state.rules.iter_mut().enumerate().filter(|(_, rule)| rule.api == api) {
            if rule.passes == 0 {
                due = due.or(Some(index));
            } else {
                rule.passes -= 1;
            }
        }
        due.map(|index| state.rules.remove(index)).map(|rule| (rule.when, rule.fault))
    }

    /// Does to a connection what a rule says. Whether it can still be used.
    fn strike(&self, fault: Fault, connection: &Connection) -> bool {
        self.state().struck += 1;
        match fault {
            Fault::Cut => connection.close(),
            Fault::Reset => connection.reset(),
            Fault::Delay(length) => std::thread::sleep(length),
            Fault::Silence(length) => self.silence(length),
        }
        matches!(fault, Fault::Delay(_) | Fault::Silence(_))
    }

    /// Waits while there is silence, at most until the connection is closed. Whether there was any.
    fn was_silent(&self, connection: &Connection) -> bool {
        let mut was_silent = false;
        while self.state().silent_until.is_some_and(|end| Instant::now() < end)
            && !connection.is_closed.load(Ordering::Acquire)
        {
            was_silent = true;
            std::thread::sleep(Duration::from_millis(5));
        }
        was_silent
    }
}

/// A client's connection and the one to the broker that belongs to it.
struct Connection {
    client: TcpStream,
    // Absent while there is silence: nobody is behind a connection that was taken then.
    broker: Option<TcpStream>,
    is_closed: AtomicBool,
    /// The requests that the broker has not answered yet, in order: number, and what happens when it has. A client has so
    /// many in flight as its settings allow, which bounds it.
    waiting: Mutex<VecDeque<(i32, Option<Fault>)>>,
}

impl Connection {
    fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        let _ = self.client.shutdown(Shutdown::Both);
        self.close_broker();
    }

    /// The client's connection ends with a reset when its last user lets go of it, which closing the reading side makes them do.
    fn reset(&self) {
        self.is_closed.store(true, Ordering::Release);
        rustix::net::sockopt::set_socket_linger(&self.client, Some(Duration::ZERO)).unwrap();
        let _ = self.client.shutdown(Shutdown::Read);
        self.close_broker();
    }

    fn close_broker(&self) {
        if let Some(broker) = &self.broker {
            let _ = broker.shutdown(Shutdown::Both);
        }
    }

    /// Takes requests from the client and hands them to the broker, until something ends.
    fn pass_requests(&self, faults: &Faults) -> io::Result<()> {
        let mut broker = self.broker.as_ref().expect("requests are passed where there is a broker");
        loop {
            let frame = read_frame(&mut &self.client)?;
            let header = frame.get(4..12).ok_or(io::ErrorKind::InvalidData)?;
            let api = Api::of(i16::from_be_bytes([header[0], header[1]]));
            let number = i32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let fault = faults.judge(api);
            let (before, after) = match fault {
                Some((When::Before, fault)) => (Some(fault), None),
                Some((When::After, fault)) => (None, Some(fault)),
                None => (None, None),
            };
            if before.is_some_and(|fault| !faults.strike(fault, self)) || faults.was_silent(self) {
                return Ok(());
            }
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back((number, after));
            broker.write_all(&frame)?;
        }
    }

    /// Takes answers from the broker and hands them to the client, until something ends.
    fn pass_answers(&self, faults: &Faults) -> io::Result<()> {
        let mut broker = self.broker.as_ref().expect("answers are passed where there is a broker");
        loop {
            let frame = read_frame(&mut broker)?;
            let number = frame.get(4..8).ok_or(io::ErrorKind::InvalidData)?;
            let number = i32::from_be_bytes([number[0], number[1], number[2], number[3]]);
            let after = self.answered(number)?;
            if after.is_some_and(|fault| !faults.strike(fault, self)) || faults.was_silent(self) {
                return Ok(());
            }
            (&self.client).write_all(&frame)?;
        }
    }

    /// What is to happen now that a request is answered. Those before it that are not were sent without wanting an answer.
    fn answered(&self, number: i32) -> io::Result<Option<Fault>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((request, fault)) = waiting.pop_front() {
            if request == number {
                return Ok(fault);
            }
        }
        Err(io::Error::other("an answer to what nobody had asked"))
    }
}

/// A frame with its length, as it is on the wire.
fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let bytes = usize::try_from(i32::from_be_bytes(length)).ok().filter(|bytes| *bytes <= FRAME_BYTES_MAX);
    let mut frame = vec![0; 4 + bytes.ok_or(io::ErrorKind::InvalidData)?];
    frame[..4].copy_from_slice(&length);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

/// A running proxy. Dropped, it stops, and all connections are closed, those of proxies that share its faults as well.
pub struct Proxy {
    address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    faults: Arc<Faults>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at an address of the loopback. The target need not be there yet, and may go and come back: a connection
    /// that finds nobody there is closed at once.
    pub fn start(target: SocketAddr, faults: Arc<Faults>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let is_stopped = Arc::<AtomicBool>::default();
        let (is_over, shared) = (Arc::clone(&is_stopped), Arc::clone(&faults));
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::Acquire) {
                    return;
                }
                // A client may be gone before it is taken.
                if let Ok(client) = client {
                    open(client, target, &shared);
                }
            }
        });
        Self { address, is_stopped, faults, accepting: Some(accepting) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        // A connection of our own is what the thread wakes up for.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.faults.cut_all();
    }
}

fn open(client: TcpStream, target: SocketAddr, faults: &Arc<Faults>) {
    let is_silent = faults.state().silent_until.is_some_and(|end| Instant::now() < end);
    let broker = if is_silent { None } else { TcpStream::connect(target).ok() };
    if broker.is_none() && !is_silent {
        return;
    }
    for stream in [Some(&client), broker.as_ref()].into_iter().flatten() {
        let _ = stream.set_nodelay(true);
    }
    let connection =
        Arc::new(Connection { client, broker, is_closed: AtomicBool::new(false), waiting: Mutex::default() });
    {
        let mut state = faults.state();
        state.connections.retain(|connection| connection.strong_count() > 0);
        state.connections.push(Arc::downgrade(&connection));
    }
    let run = |work: fn(&Connection, &Faults) -> io::Result<()>| {
        let (connection, faults) = (Arc::clone(&connection), Arc::clone(faults));
        std::thread::spawn(move || {
            // However one direction ends, the other has nothing left to do.
            let _ = work(&connection, &faults);
            if !connection.is_closed.load(Ordering::Acquire) {
                connection.close();
            }
        })
    };
    if is_silent {
        run(|connection, faults| {
            faults.was_silent(connection);
            Ok(())
        });
    } else {
        run(Connection::pass_requests);
        run(Connection::pass_answers);
    }
}
