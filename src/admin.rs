//! The admin address: `/metrics`, `/healthz`, `/readyz`, `/api/v1/audit`.
//!
//! It tells, and changes something only where it is asked to by POST: `/api/v1/reload`. It is bound to the loopback unless the configuration says otherwise.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::audit;
use crate::reload::{self, Reloads};
use crate::views::Views;

/// How many clients are served at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The admin address, bound but not yet served.
pub struct Admin {
    listener: TcpListener,
    views: Views,
    reloads: Reloads,
}

impl Admin {
    /// # Errors
    /// When the address cannot be listened on, with the remedy.
    pub async fn bind(address: SocketAddr, views: Views, reloads: Reloads) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            anyhow::anyhow!(
                "cannot listen on {address} for `daemon.admin`: {error}; choose another address, or leave it out"
            )
        })?;
        Ok(Self { listener, views, reloads })
    }

    /// Serves until the task is aborted.
    pub async fn serve(self) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (views, reloads) = (self.views, self.reloads);
        loop {
            let permit = Arc::clone(&connections).acquire_owned().await.expect("it is never closed");
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: it passes, and a busy loop would not help.
                    tracing::warn!(%error, "the admin address cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (views, reloads) = (views.clone(), reloads.clone());
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let response = match is_change(&request) {
                        false => Some(answer(&request, &views)),
                        true => None,
                    };
                    let reloads = reloads.clone();
                    async move {
                        Ok::<_, Infallible>(match response {
                            Some(response) => response,
                            None => change(&request, &reloads).await,
                        })
                    }
                });
                // A client that breaks off is no concern of ours.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(permit);
            });
        }
    }
}

/// Whether something is to be changed: never by GET.
fn is_change<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && request.uri().path() == reload::PATH
}

async fn change<B>(request: &Request<B>, reloads: &Reloads) -> Response<Full<Bytes>> {
    // A browser says so when a page of somebody else's makes it ask; commands have no origin.
    if request.headers().contains_key(ORIGIN) {
        return text(StatusCode::FORBIDDEN, "pages of other origins may not change anything\n");
    }
    match reloads.answered().await {
        Ok(told) => text(StatusCode::OK, &told),
        Err(reason) => text(StatusCode::CONFLICT, &format!("{}\n", reason.trim_end())),
    }
}

fn answer<B>(request: &Request<B>, views: &Views) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered, and POST where something is changed\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "alive\n"),
        "/readyz" => match views.obstacles() {
            obstacles if obstacles.is_empty() && views.is_standing_by() => {
                text(StatusCode::OK, "ready, and standing by: other daemons have all partitions\n")
            }
            obstacles if obstacles.is_empty() => text(StatusCode::OK, "ready\n"),
            obstacles => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", obstacles.join("\n"))),
        },
        "/metrics" => {
            let mut body = Vec::new();
            match TextEncoder::new().encode(&views.gather(), &mut body) {
                Ok(()) => {
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    let kind = hyper::header::HeaderValue::from_static(prometheus::TEXT_FORMAT);
                    response.headers_mut().insert(CONTENT_TYPE, kind);
                    response
                }
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            }
        }
        reload::PATH => text(StatusCode::METHOD_NOT_ALLOWED, "a reload is asked for by POST\n"),
        audit::PATH => match views.audit() {
            Some(audit) => {
                let mut response = text(StatusCode::OK, &audit::json(&audit));
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
                response
            }
            None => text(StatusCode::SERVICE_UNAVAILABLE, "no barrier has passed yet; ask again in a second\n"),
        },
        "/" => text(StatusCode::OK, "tocsin: /metrics /healthz /readyz /api/v1/audit /api/v1/reload\n"),
        _ => text(StatusCode::NOT_FOUND, "there is /metrics, /healthz, /readyz, /api/v1/audit and /api/v1/reload\n"),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tocsin_pipeline::health::Health;
    use tocsin_pipeline::metrics::Metrics;
    use tocsin_pipeline::runtime::Status;

    use super::*;
    use crate::views::View;

    /// What is looked at where one pipeline runs.
    fn views(status: Arc<Status>) -> Views {
        let views = Views::default();
        views.add("", View { metrics: Metrics::new(), status, health: Health::default() });
        views
    }

    fn status_of(path: &str, method: Method, is_ready: bool) -> StatusCode {
        let request = Request::builder().uri(path).method(method).body(()).unwrap();
        let status = Arc::new(Status::default());
        status.is_ready.store(is_ready, Ordering::Relaxed);
        answer(&request, &views(status)).status()
    }

    #[test]
    fn readiness_follows_the_pipeline() {
        assert_eq!(status_of("/readyz", Method::GET, false), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status_of("/readyz", Method::GET, true), StatusCode::OK);
        assert_eq!(status_of("/healthz", Method::GET, false), StatusCode::OK);
    }

    #[test]
    fn the_audit_is_told_once_there_is_one() {
        assert_eq!(status_of(audit::PATH, Method::GET, true), StatusCode::SERVICE_UNAVAILABLE);
        let status = Arc::new(Status::default());
        *status.audit.lock().unwrap() = Some(Arc::default());
        let request = Request::builder().uri(audit::PATH).body(()).unwrap();
        let response = answer(&request, &views(status));
        assert_eq!(
            (response.status(), &response.headers()[CONTENT_TYPE]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn a_command_gets_the_audit_of_a_running_daemon() {
        let status = Arc::new(Status::default());
        let address = "127.0.0.1:0".parse().unwrap();
        let admin = Admin::bind(address, views(Arc::clone(&status)), Reloads::new().0).await.unwrap();
        let address = admin.listener.local_addr().unwrap();
        let served = tokio::spawn(admin.serve());
        let ask = || tokio::task::spawn_blocking(move || audit::of_daemon(address));
        let told = ask().await.unwrap().unwrap_err().to_string();
        assert!(told.contains("answered 503") && told.contains("no barrier has passed yet"), "{told}");
        let known = tocsin_pipeline::ledger::Audit { epoch: 7, ..Default::default() };
        *status.audit.lock().unwrap() = Some(Arc::new(known.clone()));
        assert_eq!(ask().await.unwrap().unwrap(), known);
        served.abort();
    }

    #[test]
    fn nothing_is_changed_but_by_post_and_not_by_pages_of_others() {
        let request = |method: &str, origin: bool| {
            let request = Request::builder().method(method).uri(reload::PATH);
            let request = if origin { request.header(ORIGIN, "http://example.org") } else { request };
            request.body(()).unwrap()
        };
        assert!(!is_change(&request("GET", false)) && is_change(&request("POST", false)));
        let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = executor.block_on(change(&request("POST", true), &Reloads::new().0));
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(status_of(reload::PATH, Method::GET, true), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status_of("/metrics", Method::POST, true), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status_of("/metrics", Method::GET, true), StatusCode::OK);
        assert_eq!(status_of("/etc/passwd", Method::GET, true), StatusCode::NOT_FOUND);
    }
}
