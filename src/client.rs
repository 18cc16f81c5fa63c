//! Requests to the admin address of a running daemon.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::TcpStream;
use url::form_urlencoded;

/// A daemon that does not answer for so long is not waited for. It waits itself until what it is told is safe.
const TIMEOUT: Duration = Duration::from_secs(40);
/// An answer is not longer.
const ANSWER_BYTES: usize = 64 << 20;

/// Asks the daemon whose admin address is `address`; gives what it answered if that was well.
///
/// # Errors
/// When nobody answers there, or with another status than 2xx: then with what was told.
pub fn request(method: Method, address: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    send(method, address, path, None)
}

/// What the daemon answers in JSON to a question.
///
/// # Errors
/// As [`request`]; and when it answers something else.
pub fn ask(address: SocketAddr, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Json> {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    read(&send(Method::GET, address, &format!("{path}?{query}"), None)?)
}

/// What the daemon answers in JSON when it is told something.
///
/// # Errors
/// As [`ask`].
pub fn tell(address: SocketAddr, path: &str, body: &Json) -> anyhow::Result<Json> {
    read(&send(Method::POST, address, path, Some(body))?)
}

fn read(answer: &Bytes) -> anyhow::Result<Json> {
    serde_json::from_slice(answer).context("reading what the daemon answered")
}

fn send(method: Method, address: SocketAddr, path: &str, body: Option<&Json>) -> anyhow::Result<Bytes> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a thread")?;
    let (status, body) = executor.block_on(async {
        match tokio::time::timeout(TIMEOUT, exchange(method, address, path, body)).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer within {} s", TIMEOUT.as_secs()),
        }
        .with_context(|| format!("asking the daemon at {address}; is it running, and is that its `daemon.admin`?"))
    })?;
    if !status.is_success() {
        // Its API tells reasons in JSON.
        let reason = serde_json::from_slice::<String>(&body);
        let reason = reason.unwrap_or_else(|_| String::from_utf8_lossy(&body).trim_end().to_owned());
        bail!("the daemon at {address} answered {status}: {reason}");
    }
    Ok(body)
}

async fn exchange(
    method: Method,
    address: SocketAddr,
    path: &str,
    body: Option<&Json>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder().method(method).uri(path).header("host", address.to_string());
    let request = match body {
        Some(body) => {
            let body = Full::new(Bytes::from(body.to_string()));
            request.header("content-type", "application/json").body(body)?
        }
        None => request.body(Full::<Bytes>::default())?,
    };
    // The connection is driven while the answer is read, and ends with it.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
    Ok((status, body.to_bytes()))
}
