//! Object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage. What is kept in one is shared by
//! the daemons that know of it.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt::{self, Debug};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    ClientConfigKey, ClientOptions, Error, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, RetryConfig,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use url::Url;

use super::{Append, Disk, Storage};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one request may take, plus a second for each mebibyte that goes with it: a peer that is slower counts as away.
const REQUEST: Duration = Duration::from_secs(30);
/// For how long a request that failed is sent again.
const RETRIES: Duration = Duration::from_secs(60);
/// How a [`Location`] is written, for those who have written something else.
pub const FORMS: &str = "write a folder, or s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER; credentials are \
                         taken from the environment";

/// Where several daemons keep what they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder that all of them see.
    Folder(PathBuf),
    /// A part of an object store.
    Bucket(Url),
}

impl FromStr for Location {
    type Err = String;

    /// Looks at nothing outside.
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return match text {
                "" => Err("it is empty".to_owned()),
                folder => Ok(Self::Folder(folder.into())),
            };
        }
        let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials do not belong into a configuration".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            return Err("there is more to it than a bucket and a folder".to_owned());
        }
        match url.scheme() {
            "file" => url.to_file_path().map(Self::Folder).map_err(|()| "it names no folder".to_owned()),
            "s3" | "gs" | "az" if url.host_str().is_none_or(str::is_empty) => Err("it names no bucket".to_owned()),
            "s3" | "gs" | "az" => match ObjectStoreScheme::parse(&url) {
                Ok(_) => Ok(Self::Bucket(url)),
                Err(error) => Err(error.to_string()),
            },
            scheme => Err(format!("{scheme}:// is not known")),
        }
    }
}

impl Location {
    /// Its storage, and the folder in that. Credentials, regions and endpoints are taken from the environment, by the names
    /// that the tools of each provider use. Connects to nothing.
    pub fn open(&self) -> Result<(Arc<dyn Storage>, PathBuf), String> {
        match self {
            Self::Folder(folder) => Ok((Arc::new(Disk), folder.clone())),
            Self::Bucket(url) => {
                let told = |error: Error| format!("{url}: {}", chain(&error));
                let (scheme, key) = ObjectStoreScheme::parse(url).map_err(|error| format!("{url}: {error}"))?;
                let store = connect(&scheme, url).map_err(told)?;
                let storage = ObjectStorage::new(store).map_err(|error| format!("{url}: {error}"))?;
                Ok((Arc::new(storage), PathBuf::from(key.as_ref())))
            }
        }
    }
}

/// Opens what a [`Location`] is written as.
pub fn open(text: &str) -> Result<(Arc<dyn Storage>, PathBuf), String> {
    text.parse::<Location>()?.open()
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(formatter, "{}", folder.display()),
            Self::Bucket(url) => write!(formatter, "{url}"),
        }
    }
}

fn connect(scheme: &ObjectStoreScheme, url: &Url) -> Result<Arc<dyn ObjectStore>, Error> {
    let retry = RetryConfig { retry_timeout: RETRIES, ..RetryConfig::default() };
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => Arc::new(
            AmazonS3Builder::from_env()
                .with_url(url.as_str())
                .with_retry(retry)
                .with_http_connector(Connector)
                .build()?,
        ),
        ObjectStoreScheme::GoogleCloudStorage => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry)
                .with_http_connector(Connector)
                .build()?,
        ),
        ObjectStoreScheme::MicrosoftAzure => Arc::new(
            MicrosoftAzureBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry)
                .with_http_connector(Connector)
                .build()?,
        ),
        _ => unreachable!("no other scheme is taken for a bucket"),
    })
}

/// An object store. Its folders are there once something is in them. Requests run on a thread of its own, because callers may
/// be in any runtime or none: they wait for an answer as they wait for a disk.
#[derive(Debug)]
pub struct ObjectStorage {
    store: Arc<dyn ObjectStore>,
    requests: Handle,
    /// The thread ends when this is dropped.
    _end: oneshot::Sender<()>,
}

impl ObjectStorage {
    pub fn new(store: Arc<dyn ObjectStore>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let requests = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("object-store".to_owned()).spawn(move || {
            // An error says that it was dropped, which is what is waited for.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { store, requests, _end: end })
    }

    /// Runs requests and waits for what comes of them. There are as many at a time as there are callers, so none waits for
    /// those of another lane.
    fn wait<T: Send + 'static>(
        &self,
        allowance: Duration,
        requests: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.requests.spawn(async move {
            let outcome = match tokio::time::timeout(allowance, requests).await {
                Ok(outcome) => outcome.map_err(into_io),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {allowance:?}"))),
            };
            let _ = answer.send(outcome);
        });
        answered.recv().unwrap_or_else(|_| Err(io::Error::other("the thread of the object store has ended")))
    }

    fn put(&self, path: &Path, content: &[u8], mode: PutMode) -> io::Result<()> {
        let (store, key, content) = (Arc::clone(&self.store), key(path)?, Bytes::copy_from_slice(content));
        self.wait(allowance(RETRIES, content.len() as u64), async move {
            store.put_opts(&key, content.into(), mode.into()).await.map(drop)
        })
    }
}

impl Storage for ObjectStorage {
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.put(path, content, PutMode::Overwrite)
    }

    fn create_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.put(path, content, PutMode::Create)
    }

    fn is_atomic(&self) -> bool {
        true
    }

    fn append(&self, _: &Path) -> io::Result<Box<dyn Append>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing that grows at its end is kept in an object store"))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let (store, key) = (Arc::clone(&self.store), key(path)?);
        let found = self.wait(allowance(RETRIES, 0), async move { store.get(&key).await })?;
        let content = self.wait(allowance(RETRIES, found.meta.size), found.bytes())?;
        Ok(content.into())
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = self.length(path)?.min(offset.saturating_add(length as u64));
        if offset >= end {
            return Ok(Vec::new());
        }
        let (store, key) = (Arc::clone(&self.store), key(path)?);
        let content =
            self.wait(allowance(RETRIES, end - offset), async move { store.get_range(&key, offset..end).await })?;
        Ok(content.into())
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        let (store, key) = (Arc::clone(&self.store), key(path)?);
        self.wait(allowance(RETRIES, 0), async move { store.head(&key).await.map(|found| found.size) })
    }

    fn cut(&self, _: &Path, _: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing in an object store is made shorter"))
    }

    /// Two steps: between them there are both. Nobody can tell, because what is in the place of `to` is whole at any time.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (store, from, to) = (Arc::clone(&self.store), key(from)?, key(to)?);
        self.wait(allowance(RETRIES, 0) * 2, async move {
            store.copy(&from, &to).await?;
            store.delete(&from).await
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (store, key) = (Arc::clone(&self.store), key(path)?);
        self.wait(allowance(RETRIES, 0), async move { store.delete(&key).await })
    }

    /// An object that was put is durable with its name.
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let (store, key) = (Arc::clone(&self.store), key(folder)?);
        let found = self.wait(allowance(RETRIES, 0), async move { store.list_with_delimiter(Some(&key)).await })?;
        let names: BTreeSet<String> =
            found.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect();
        Ok(names.into_iter().collect())
    }

    /// A folder comes to be with what is in it.
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// How long may be waited for requests that are sent again for so long and carry so many bytes.
fn allowance(tried: Duration, bytes: u64) -> Duration {
    tried + REQUEST + Duration::from_secs(bytes >> 20)
}

/// The key of the object at a path: its parts, joined with slashes.
fn key(path: &Path) -> io::Result<Key> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Key::parse(parts.join("/")).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn into_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        Error::NotSupported { .. } | Error::NotImplemented { .. } => io::ErrorKind::Unsupported,
        Error::InvalidPath { .. } => io::ErrorKind::InvalidInput,
        _ => match cause::<HttpError>(&error).map(HttpError::kind) {
            Some(HttpErrorKind::Timeout) => io::ErrorKind::TimedOut,
            Some(HttpErrorKind::Connect) => io::ErrorKind::NotConnected,
            Some(HttpErrorKind::Interrupted | HttpErrorKind::Request) => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::Other,
        },
    };
    io::Error::new(kind, chain(&error))
}

/// The first of an error's causes that is of a type.
fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error and those of its causes that it does not tell itself, in one line.
fn chain(error: &Error) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !told.contains(&text) {
            told.push_str(": ");
            told.push_str(&text);
        }
        next = cause.source();
    }
    told.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Connects with the HTTP client and the TLS that everything else here uses, in the place of another of each.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient, Error> {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let builder = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| Error::Generic { store: "TLS", source: Box::new(error) })?;
        let is_clear_allowed = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        let builder = if is_clear_allowed { builder.https_or_http() } else { builder.https_only() };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(builder.enable_http1().wrap_connector(tcp));
        Ok(HttpClient::new(Connected(client)))
    }
}

#[derive(Debug)]
struct Connected(Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

impl HttpService for Connected {
    fn call<'service, 'call>(&'service self, request: HttpRequest) -> BoxFuture<'call, Result<HttpResponse, HttpError>>
    where
        'service: 'call,
        Self: 'call,
    {
        Box::pin(async move {
            let allowance = allowance(Duration::ZERO, request.body().content_length() as u64);
            let response = match tokio::time::timeout(allowance, self.0.request(request)).await {
                Err(elapsed) => return Err(HttpError::new(HttpErrorKind::Timeout, elapsed)),
                Ok(Err(error)) if error.is_connect() => return Err(HttpError::new(HttpErrorKind::Connect, error)),
                // Whether it was acted upon is not known: what can be repeated is.
                Ok(Err(error)) => return Err(HttpError::new(HttpErrorKind::Interrupted, error)),
                Ok(Ok(response)) => response,
            };
            Ok(response.map(|body| {
                HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error)))
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::super::tests::conform;
    use super::*;
    use crate::store::term;

    fn parse(text: &str) -> Result<Location, String> {
        text.parse()
    }

    #[test]
    fn a_location_is_a_folder_or_a_bucket() {
        assert_eq!(parse("/shared/state").unwrap(), Location::Folder("/shared/state".into()));
        assert_eq!(parse("state").unwrap(), Location::Folder("state".into()));
        assert_eq!(parse("file:///shared/a%20b").unwrap(), Location::Folder("/shared/a b".into()));
        for bucket in ["s3://logs", "s3://logs/", "s3://logs/tocsin/state", "gs://logs/tocsin", "az://logs/tocsin"] {
            assert_eq!(parse(bucket).unwrap().to_string(), bucket);
        }
        for (wrong, problem) in [
            ("", "it is empty"),
            ("s3://", "no bucket"),
            ("s3:///state", "no bucket"),
            ("file://host/state", "it names no folder"),
            ("https://s3.amazonaws.com/logs", "https:// is not known"),
            ("s3://key:secret@logs/state", "credentials do not belong"),
            ("s3://logs/state?region=eu", "more to it than a bucket"),
            ("s3://logs:9000/state", "more to it than a bucket"),
            ("s3://logs/a//b", "Path"),
            ("s3://lo gs/", "not a URL"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(problem) && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn callers_may_be_in_any_runtime_or_none_and_as_many_as_they_are() {
        let storage = Arc::new(ObjectStorage::new(Arc::new(InMemory::new())).unwrap());
        let write = |number: u64| {
            let path = PathBuf::from(format!("d/{number}"));
            storage.write_new(&path, b"content").unwrap();
            assert_eq!(storage.read(&path).unwrap(), b"content");
        };
        write(0);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { write(1) });
        tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async { write(2) });
        std::thread::scope(|scope| (3..20).for_each(|number| drop(scope.spawn(move || write(number)))));
        assert_eq!(storage.list(Path::new("d")).unwrap().len(), 20);
    }

    #[test]
    fn a_server_that_is_not_there_is_told_in_time_and_by_its_kind() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let retry = RetryConfig { max_retries: 1, ..RetryConfig::default() };
        let store = AmazonS3Builder::new()
            .with_bucket_name("logs")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_endpoint(format!("http://{address}"))
            .with_allow_http(true)
            .with_retry(retry)
            .with_http_connector(Connector)
            .build()
            .unwrap();
        let error = ObjectStorage::new(Arc::new(store)).unwrap().read(Path::new("d/a")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        assert!(error.to_string().contains("refused") && !error.to_string().contains("secret"), "{error}");
    }

    /// `TOCSIN_S3` is the URL of an empty folder in a bucket, with the rest in the environment as in production.
    #[test]
    fn a_server_does_as_the_others() {
        let Ok(url) = std::env::var("TOCSIN_S3") else {
            eprintln!("skipped a_server_does_as_the_others: TOCSIN_S3 names no bucket");
            return;
        };
        let (storage, folder) = open(&url).unwrap();
        term::check(&*storage, &folder).unwrap();
        conform(&*storage, &folder.join("alike"));
        for number in 1..4 {
            assert_eq!(term::Term::take(&*storage, &folder.join("lane"), "a test").unwrap().number(), number);
        }
        let takers = folder.join("taken at once");
        let mut taken: Vec<_> = std::thread::scope(|scope| {
            let take = || term::Term::take(&*storage, &takers, "one of many").unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 8);
    }
}
