//! Listening sockets that outlive the graph they were bound for: while one graph takes over from another, clients are not
//! refused but wait to be accepted, and datagrams wait to be read.
//!
//! Of each socket that is bound a second handle is kept here. Between [`hand_over`] and [`release`] binding the same address
//! takes that socket instead of making one; what nobody has taken by then is closed.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// What is kept of an address.
struct Kept<T> {
    socket: T,
    is_taken: bool,
}

/// At most as many as the configuration has sources that listen.
struct Sockets<T>(Mutex<BTreeMap<String, Kept<T>>>);

static TCP: Sockets<TcpListener> = Sockets(Mutex::new(BTreeMap::new()));
static UDP: Sockets<UdpSocket> = Sockets(Mutex::new(BTreeMap::new()));

impl<T> Sockets<T> {
    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<String, Kept<T>>) -> R) -> R {
        // The map is whole at every step.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The socket of an address that is handed over.
    fn take(&self, address: &str, clone: impl FnOnce(&T) -> io::Result<T>) -> Option<io::Result<T>> {
        self.with(|kept| {
            let kept = kept.get_mut(address).filter(|kept| !kept.is_taken)?;
            kept.is_taken = true;
            Some(clone(&kept.socket))
        })
    }

    fn keep(&self, address: &str, socket: T) {
        self.with(|kept| kept.insert(address.to_owned(), Kept { socket, is_taken: true }));
    }

    fn hand_over(&self) {
        self.with(|kept| kept.values_mut().for_each(|kept| kept.is_taken = false));
    }

    fn release(&self) {
        self.with(|kept| kept.retain(|_, kept| kept.is_taken));
    }
}

/// Another graph is about to be opened: it may take the sockets of the one before.
pub fn hand_over() {
    TCP.hand_over();
    UDP.hand_over();
}

/// The graph is open: what it has not taken is closed.
pub fn release() {
    TCP.release();
    UDP.release();
}

/// No graph follows: closes the sockets as soon as their sources do.
pub fn close() {
    hand_over();
    release();
}

/// Each bind of port 0 is a new port, so there is nothing to take.
fn is_fixed(address: &str) -> bool {
    !address.ends_with(":0")
}

/// Listens on an address, or takes the socket that does.
pub(crate) async fn tcp(address: &str) -> io::Result<tokio::net::TcpListener> {
    if let Some(listener) = TCP.take(address, TcpListener::try_clone) {
        return tokio::net::TcpListener::from_std(listener?);
    }
    let listener = tokio::net::TcpListener::bind(address).await?.into_std()?;
    if is_fixed(address) {
        TCP.keep(address, listener.try_clone()?);
    }
    tokio::net::TcpListener::from_std(listener)
}

/// Receives at an address, or takes the socket that does.
pub(crate) async fn udp(address: &str) -> io::Result<tokio::net::UdpSocket> {
    if let Some(socket) = UDP.take(address, UdpSocket::try_clone) {
        return tokio::net::UdpSocket::from_std(socket?);
    }
    let socket = tokio::net::UdpSocket::bind(address).await?.into_std()?;
    if is_fixed(address) {
        UDP.keep(address, socket.try_clone()?);
    }
    tokio::net::UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_over_once_and_closed_when_nobody_takes_it() {
        // A port that was free a moment ago; nothing else in these tests binds fixed ports.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let first = tcp(&address).await.unwrap();
        assert!(tcp(&address).await.is_err(), "two sources cannot listen on one address");
        hand_over();
        drop(first);
        // In between, clients wait.
        let mut client = tokio::net::TcpStream::connect(&address).await.unwrap();
        let second = tcp(&address).await.unwrap();
        assert!(tcp(&address).await.is_err());
        release();
        let (mut served, _) = second.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut served, b"x").await.unwrap();
        assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut client).await.unwrap(), b'x');
        hand_over();
        drop(second);
        release();
        assert!(tokio::net::TcpStream::connect(&address).await.is_err());
    }
}
