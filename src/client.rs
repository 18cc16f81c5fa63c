//! Requests to the admin address of a running daemon.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A daemon that does not answer for so long is not waited for.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An answer is not longer.
const ANSWER_BYTES: usize = 64 << 20;

/// Asks the daemon whose admin address is `address`; gives what it answered if that was well.
///
/// # Errors
/// When nobody answers there, or with another status than 2xx: then with what was told.
pub fn request(method: Method, address: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a thread")?;
    let (status, body) = executor.block_on(async {
        match tokio::time::timeout(TIMEOUT, ask(method, address, path)).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer within {} s", TIMEOUT.as_secs()),
        }
        .with_context(|| format!("asking the daemon at {address}; is it running, and is that its `daemon.admin`?"))
    })?;
    if !status.is_success() {
        bail!("the daemon at {address} answered {status}: {}", String::from_utf8_lossy(&body).trim_end());
    }
    Ok(body)
}

async fn ask(method: Method, address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        Request::builder().method(method).uri(path).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    // The connection is driven while the answer is read, and ends with it.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
    Ok((status, body.to_bytes()))
}
