//! A request that was read whole, and what it can be answered.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tocsin_config::matcher::Matchers;
use url::form_urlencoded;

/// No body is longer: a larger batch of alerts is to be sent in pieces.
const BODY_BYTES: usize = 4 << 20;
/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// Why something is not done, and the status that says so. The API tells it as Alertmanager does: as a text in JSON.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: StatusCode,
    pub message: String,
}

impl Failure {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn answer(&self) -> Answer {
        let mut answer = json(&self.message);
        *answer.status_mut() = self.status;
        answer
    }
}

/// A request, whole.
#[derive(Debug)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    /// Reads it to its end.
    ///
    /// # Errors
    /// When it is too long, takes too long or breaks off.
    pub async fn read<B>(request: Request<B>) -> Result<Self, Failure>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("a request has at most {BODY_BYTES} bytes; send it in pieces");
                return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(Err(error)) => return Err(Failure::bad(format!("reading the request: {error}"))),
            Err(_) => return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end")),
        };
        let query = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        Ok(Self { method: head.method, path: head.uri.path().to_owned(), query, headers: head.headers, body })
    }

    /// Whether it only wants to know something.
    pub fn is_look(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }

    fn header(&self, name: hyper::header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The page that a browser says makes it ask; commands and other programs have none.
    pub fn origin(&self) -> Option<&str> {
        self.headers.get(ORIGIN).map(|value| value.to_str().unwrap_or("null"))
    }

    /// Whether it comes from a page of ours, or of none: of the host that was asked, or of that URL.
    pub fn is_of(&self, url: &str) -> bool {
        let Some(origin) = self.origin() else { return true };
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        let is_ours = url.strip_prefix(origin).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        is_ours || (!host.is_empty() && self.header(HOST) == Some(host))
    }

    fn is_of_type(&self, kind: &str) -> bool {
        let found = self.header(CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default();
        found.trim().eq_ignore_ascii_case(kind)
    }

    /// All that the query says under a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.query.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The last that the query says under a name.
    pub fn one<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).last()
    }

    /// # Errors
    /// When it is neither true nor false.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Failure> {
        match self.one(name) {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(Failure::bad(format!("`{name}` is true or false, and not {other:?}"))),
        }
    }

    /// The matchers that the query says under a name, together.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn matchers(&self, name: &str) -> Result<Matchers, Failure> {
        let mut matchers = Vec::new();
        for text in self.all(name) {
            let parsed = Matchers::parse(text).map_err(|error| error.message);
            match parsed {
                Ok(parsed) if parsed.0.is_empty() => {
                    return Err(Failure::bad(format!("`{name}`: {text:?} has no matcher")));
                }
                Ok(parsed) => matchers.extend(parsed.0),
                Err(message) => return Err(Failure::bad(format!("`{name}`: {text:?}: {message}"))),
            }
        }
        Ok(Matchers(matchers))
    }

    /// What it says in JSON.
    ///
    /// # Errors
    /// When that is something else.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        // Pages of others can send other types without asking first.
        if !self.is_of_type("application/json") {
            let message = "send JSON, and say so: `Content-Type: application/json`";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        serde_json::from_slice(&self.body).map_err(|error| Failure::bad(format!("the request cannot be read: {error}")))
    }

    /// What a form has under a name.
    pub fn form(&self, name: &str) -> Option<String> {
        let is_form = self.is_of_type("application/x-www-form-urlencoded");
        let mut fields = form_urlencoded::parse(&self.body).filter(|_| is_form);
        fields.find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
    }
}

/// An answer of a type. Nobody may keep it: it is of this moment.
pub fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub fn text(status: StatusCode, body: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.to_owned())
}

pub fn json(told: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(told).expect("texts, numbers and maps by text");
    answer(StatusCode::OK, "application/json", body)
}
