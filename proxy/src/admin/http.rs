//! Answers over HTTP/1.1, for monitoring on this host: alive, ready, metrics and the snapshot. It only reads. It listens
//! on loopback alone, since it has no TLS, and heeds only requests that name it by a name of this host: a web page
//! elsewhere cannot have its own name resolve to here and read (DNS rebinding). Connections, header bytes and time are bounded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use hyper::header::{HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::pieces::{self, Pieces};
use super::{metrics, page, ready};
use crate::health::unix;
use crate::net::listen_tcp;
use crate::problem::Problem;
use crate::snapshot::Facts;

/// Connections at a time; more wait in the kernel.
const CONNECTIONS: usize = 16;
const HEAD_BYTES: usize = 8192;
const HEADERS: usize = 32;
const HEAD_TAKES: Duration = Duration::from_secs(3);
/// One request and its answer.
const ALL_TAKES: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What the page may do: load its own files, and ask here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// No page from elsewhere may load an answer, not even without reading it.
const SAME_ORIGIN_ONLY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What is answered from.
pub(crate) struct Http {
    pub(crate) listen: SocketAddr,
    pub(crate) facts: Arc<Facts>,
    /// Whether the snapshot, with peers and roles, is told.
    pub(crate) status: bool,
    /// True once the tunnels' listeners close.
    pub(crate) closing: watch::Receiver<bool>,
}

/// Opens the listener; a start without it fails.
pub(crate) fn open(listen: SocketAddr) -> Result<TcpListener, Problem> {
    listen_tcp(listen).map_err(|error| {
        Problem::new(
            "O05",
            format!("[admin] cannot listen on {listen}"),
            error.to_string(),
            "choose a free port of 127.0.0.1 or [::1] for [admin] listen",
        )
    })
}

/// Answers until the process ends.
pub(crate) async fn serve(listener: TcpListener, http: Http) {
    let (http, places) = (Arc::new(http), Arc::new(Semaphore::new(CONNECTIONS)));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let http = Arc::clone(&http);
                tokio::spawn(async move {
                    // Whoever asks badly and leaves is no failure of ours.
                    let _ = timeout(ALL_TAKES, converse(stream, http)).await;
                    drop(place);
                });
            }
            // When nothing can be accepted, the next try would fail the same at once.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn converse(stream: TcpStream, http: Arc<Http>) -> hyper::Result<()> {
    let answer = service_fn(move |request: Request<Incoming>| {
        let http = Arc::clone(&http);
        async move {
            let (head, _) = request.into_parts();
            Ok::<_, Infallible>(http.answer(&head).await)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TAKES)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

/// The body of an answer.
enum Answer {
    /// None: it is sent.
    Whole(Option<Bytes>),
    /// It ends with an error where it could not be made to its end, so that nobody takes it for whole.
    Pieces(Pieces),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = serde_json::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let data = match &mut *self {
            Self::Whole(text) => text.take().map(Ok),
            Self::Pieces(pieces) => {
                task::ready!(pieces.poll_recv(context)).map(|piece| piece.map(Bytes::from))
            }
        };
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl From<&'static str> for Answer {
    fn from(text: &'static str) -> Self {
        Self::Whole(Some(Bytes::from_static(text.as_bytes())))
    }
}

impl From<Pieces> for Answer {
    fn from(pieces: Pieces) -> Self {
        Self::Pieces(pieces)
    }
}

impl Http {
    async fn answer(&self, request: &Parts) -> Response<Answer> {
        let Parts {
            method,
            uri,
            headers,
            ..
        } = request;
        if !names_this_host(headers, uri, self.listen) {
            return reply(
                StatusCode::MISDIRECTED_REQUEST,
                TEXT,
                format!(
                    "the Host header names another host or port: ask for http://{0}/, and through ssh with the same \
                     port at both ends (ssh -L {1}:{0})\n",
                    self.listen,
                    self.listen.port()
                ),
            );
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refusal = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this only reads\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            refusal.headers_mut().insert(ALLOW, allowed);
            return refusal;
        }
        match uri.path() {
            "/healthz" => reply(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" => self.ready(uri.query().unwrap_or_default()),
            "/metrics" => match metrics::text(&self.facts).await {
                Ok(text) => reply(StatusCode::OK, metrics::TYPE, text),
                Err(error) => failed(&error),
            },
            path => self.tell(path),
        }
    }

    /// The page and what it reads, where that is allowed.
    fn tell(&self, path: &str) -> Response<Answer> {
        let file = page::file(path);
        let told = match path {
            "/status.json" | "/history.json" => true,
            _ => file.is_some(),
        };
        match (path, file) {
            _ if !told => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /healthz, /readyz, /metrics, /status.json and a page at /\n",
            ),
            _ if !self.status => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                "not told here: it needs `status = true` under [admin], and a restart\n",
            ),
            (_, Some((kind, text))) => reply(StatusCode::OK, kind, text),
            ("/history.json", None) => reply(StatusCode::OK, JSON, pieces::history(&self.facts)),
            (_, None) => reply(StatusCode::OK, JSON, pieces::snapshot(&self.facts)),
        }
    }

    /// Whether new sessions can be had, and on demand whether one streams.
    fn ready(&self, query: &str) -> Response<Answer> {
        let replication = query
            .split('&')
            .any(|word| word.split('=').next() == Some("replication"));
        let closing = *self.closing.borrow();
        let missing = ready::missing(&self.facts, closing, replication, unix(SystemTime::now()));
        if missing.is_empty() {
            reply(StatusCode::OK, TEXT, "ready\n")
        } else {
            reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing)
        }
    }
}

fn failed(error: &dyn std::error::Error) -> Response<Answer> {
    reply(
        StatusCode::INTERNAL_SERVER_ERROR,
        TEXT,
        format!("{error}\n"),
    )
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Answer>) -> Response<Answer> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let fixed: [(HeaderName, &'static str); 6] = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (SAME_ORIGIN_ONLY, "same-origin"),
    ];
    for (name, value) in fixed {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Exactly one Host (RFC 9112, section 3.2), which names us, as does the target if it is in absolute form.
fn names_this_host(headers: &HeaderMap, uri: &Uri, listen: SocketAddr) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let target = uri.authority();
    host.to_str().is_ok_and(|host| is_ours(host, listen))
        && target.is_none_or(|target| is_ours(target.as_str(), listen))
}

/// A name of loopback or the address we listen on, with our port or none.
fn is_ours(host: &str, listen: SocketAddr) -> bool {
    let port = format!(":{}", listen.port());
    let name = host.strip_suffix(port.as_str()).unwrap_or(host);
    let configured = match listen {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    name.eq_ignore_ascii_case("localhost")
        || name == "127.0.0.1"
        || name == "[::1]"
        || name == configured
}
