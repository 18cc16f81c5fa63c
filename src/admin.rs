//! The admin address: how the daemon stands, at `/metrics`, `/healthz`, `/readyz` and `/api/v1/audit`, and what people and other programs
//! ask and say of alerts (see [`crate::api`]).
//!
//! It changes something only where it is asked to by another method than GET. It is bound to the loopback unless the configuration says
//! otherwise.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use tocsin_pipeline::time::Clock;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::api::{self, Answer, Api, Asked, text};
use crate::audit;
use crate::reload::{self, Reloads};
use crate::views::Views;

/// How many clients are served at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// What there is, for those who look around.
const PATHS: &str = "/metrics, /healthz, /readyz, /api/v1/audit, /api/v1/reload, /api/v1/alerts, /api/v1/silences and Alertmanager's /api/v2/";

/// The admin address, bound but not yet served.
pub struct Admin {
    listener: TcpListener,
    desk: Desk,
}

/// What answers.
#[derive(Clone)]
struct Desk {
    views: Views,
    reloads: Reloads,
    api: Api,
}

impl Admin {
    /// # Errors
    /// When the address cannot be listened on, with the remedy.
    pub async fn bind(
        address: SocketAddr,
        views: Views,
        reloads: Reloads,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            anyhow::anyhow!(
                "cannot listen on {address} for `daemon.admin`: {error}; choose another address, or leave it out"
            )
        })?;
        let api = Api::new(views.clone(), clock);
        Ok(Self { listener, desk: Desk { views, reloads, api } })
    }

    /// Serves until the task is aborted.
    pub async fn serve(self) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
            let desk = self.desk.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let desk = desk.clone();
                    async move {
                        Ok::<_, Infallible>(match Asked::read(request).await {
                            Ok(asked) => desk.answer(&asked).await,
                            Err(failure) => failure.answer(),
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

impl Desk {
    async fn answer(&self, asked: &Asked) -> Answer {
        // A browser says so when a page of somebody else's makes it ask; commands have no origin. The page that people are
        // sent a link to looks at that itself.
        if !asked.is_look() && asked.origin().is_some() && !asked.path.starts_with("/acknowledge/") {
            return text(StatusCode::FORBIDDEN, "pages of other origins may not change anything\n");
        }
        if let Some(answer) = self.api.answer(asked).await {
            return answer;
        }
        if asked.method == Method::POST && [reload::PATH, "/-/reload"].contains(&asked.path.as_str()) {
            return match self.reloads.answered().await {
                Ok(told) => text(StatusCode::OK, &told),
                Err(reason) => text(StatusCode::CONFLICT, &format!("{}\n", reason.trim_end())),
            };
        }
        if !asked.is_look() {
            let told = "only GET is answered, and POST where something is changed\n";
            return text(StatusCode::METHOD_NOT_ALLOWED, told);
        }
        look(&asked.path, &self.views)
    }
}

/// How the daemon stands. `/-/healthy` and `/-/ready` are what Alertmanager calls it.
fn look(path: &str, views: &Views) -> Answer {
    match path {
        "/healthz" | "/-/healthy" => text(StatusCode::OK, "alive\n"),
        "/readyz" | "/-/ready" => match views.obstacles() {
            obstacles if obstacles.is_empty() && views.is_standing_by() => {
                text(StatusCode::OK, "ready, and standing by: other daemons have all partitions\n")
            }
            obstacles if obstacles.is_empty() => text(StatusCode::OK, "ready\n"),
            obstacles => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", obstacles.join("\n"))),
        },
        "/metrics" => {
            let mut body = Vec::new();
            match TextEncoder::new().encode(&views.gather(), &mut body) {
                Ok(()) => api::answer(StatusCode::OK, prometheus::TEXT_FORMAT, body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            }
        }
        reload::PATH => text(StatusCode::METHOD_NOT_ALLOWED, "a reload is asked for by POST\n"),
        audit::PATH => match views.audit() {
            Some(audit) => api::answer(StatusCode::OK, "application/json", audit::json(&audit)),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "no barrier has passed yet; ask again in a second\n"),
        },
        "/" => text(StatusCode::OK, &format!("tocsin: {PATHS}\n")),
        _ => text(StatusCode::NOT_FOUND, &format!("there is {PATHS}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::Request;
    use hyper::header::{CONTENT_TYPE, ORIGIN};
    use tocsin_pipeline::health::Health;
    use tocsin_pipeline::metrics::Metrics;
    use tocsin_pipeline::runtime::Status;
    use tocsin_pipeline::time::{ManualClock, Timestamp};

    use super::*;
    use crate::views::View;

    /// What is looked at where one pipeline runs.
    fn views(status: Arc<Status>) -> Views {
        let views = Views::default();
        views.add("", View { metrics: Metrics::new(), status, health: Health::default() });
        views
    }

    fn clock() -> Arc<dyn Clock> {
        Arc::new(ManualClock::new(Timestamp(0)))
    }

    async fn answer(status: Arc<Status>, request: hyper::http::request::Builder) -> Answer {
        let views = views(status);
        let desk = Desk { api: Api::new(views.clone(), clock()), views, reloads: Reloads::new().0 };
        desk.answer(&Asked::read(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()).await
    }

    async fn status_of(path: &str, method: Method, is_ready: bool) -> StatusCode {
        let status = Arc::new(Status::default());
        status.is_ready.store(is_ready, Ordering::Relaxed);
        answer(status, Request::builder().uri(path).method(method)).await.status()
    }

    #[tokio::test]
    async fn readiness_follows_the_pipeline() {
        for path in ["/readyz", "/-/ready"] {
            assert_eq!(status_of(path, Method::GET, false).await, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(status_of(path, Method::GET, true).await, StatusCode::OK);
        }
        assert_eq!(status_of("/healthz", Method::GET, false).await, StatusCode::OK);
        assert_eq!(status_of("/-/healthy", Method::HEAD, false).await, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_audit_is_told_once_there_is_one() {
        assert_eq!(status_of(audit::PATH, Method::GET, true).await, StatusCode::SERVICE_UNAVAILABLE);
        let status = Arc::new(Status::default());
        *status.audit.lock().unwrap() = Some(Arc::default());
        let response = answer(status, Request::builder().uri(audit::PATH)).await;
        assert_eq!(
            (response.status(), &response.headers()[CONTENT_TYPE]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn a_command_gets_the_audit_of_a_running_daemon() {
        let status = Arc::new(Status::default());
        let address = "127.0.0.1:0".parse().unwrap();
        let admin = Admin::bind(address, views(Arc::clone(&status)), Reloads::new().0, clock()).await.unwrap();
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

    #[tokio::test]
    async fn nothing_is_changed_but_by_post_and_not_by_pages_of_others() {
        for path in [reload::PATH, "/api/v2/silences", "/api/v1/acknowledge"] {
            let request = Request::builder().method("POST").uri(path).header(ORIGIN, "http://example.org");
            let request = request.header("host", "example.org");
            assert_eq!(answer(Arc::default(), request).await.status(), StatusCode::FORBIDDEN, "{path}");
        }
        assert_eq!(status_of(reload::PATH, Method::GET, true).await, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status_of("/metrics", Method::POST, true).await, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status_of("/metrics", Method::GET, true).await, StatusCode::OK);
        assert_eq!(status_of("/etc/passwd", Method::GET, true).await, StatusCode::NOT_FOUND);
        assert_eq!(status_of("/api/v2/everything", Method::GET, true).await, StatusCode::NOT_FOUND);
    }
}
