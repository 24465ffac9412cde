//! HTTP clients, and one exchange: request, redirects, head of the answer.
//!
//! HTTP/1.1 only: layers come over a connection each, so one that stalls or breaks off holds up no other. Redirects
//! are followed here and not by the library, because a host's headers and client certificate must stay behind when a
//! redirect leaves it.

use std::{
    collections::HashMap,
    error::Error as _,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Client, Method, Response, StatusCode,
    header::{HeaderMap, LOCATION},
    redirect::Policy,
};
use rustls::pki_types::CertificateDer;
use url::Url;

use super::{
    Cause, RegistryOptions,
    error::{printable, registry_message},
    hosts::is_loopback,
    tls::Tls,
};
use crate::digest::Digest;

/// As browsers have it.
const MAX_REDIRECTS: usize = 10;
/// Most pools kept; the one unused for longest goes.
const MAX_CLIENTS: usize = 64;
/// Most of an error's body that is looked at, in bytes.
const MAX_ERROR_BODY: u64 = 64 << 10;

/// Connection pools, one per way of connecting.
pub(super) struct Clients {
    options: Arc<RegistryOptions>,
    pools: Mutex<HashMap<Key, (Client, Instant)>>,
}

/// What makes two requests able to share a connection pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// The host's TLS settings and the state of the machine's certificates; nothing for plain HTTP.
    tls: Option<(Digest, Option<SystemTime>)>,
    connect: Duration,
    proxy: bool,
}

/// A request, without what is particular to its host.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// For whoever answers.
    pub(super) headers: HeaderMap,
    /// For the first host only: credentials, and what `hosts.toml` adds.
    pub(super) private: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) tls: &'a Tls,
    pub(super) connect: Option<Duration>,
    /// The content is checked against a digest known beforehand, so where it comes from does not matter.
    pub(super) addressed: bool,
}

/// The head of an answer; its body is still to be read.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response,
    /// Where it came from, without query.
    pub(super) url: String,
    /// A redirect led to another host.
    pub(super) strayed: bool,
}

impl Clients {
    pub(super) fn new(options: Arc<RegistryOptions>) -> Self {
        Self { options, pools: Mutex::default() }
    }

    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// Sends `call` and follows redirects to the head of the answer. An error names the URL that it is about.
    pub(super) async fn exchange(&self, call: Call<'_>) -> Result<Reply, (String, Cause)> {
        let Call { method, mut url, headers, private, body, tls, connect, addressed } = call;
        let mut tls = tls.clone();
        let mut strayed = false;
        for _ in 0..=MAX_REDIRECTS {
            let shown = without_query(&url);
            let fail = |cause| (shown.clone(), cause);
            let client = self.client(&url, &tls, connect).await.map_err(fail)?;
            let mut request = client.request(method.clone(), url.clone()).headers(headers.clone());
            if !strayed {
                request = request.headers(private.clone());
            }
            if let Some(body) = &body {
                request = request.body(body.clone());
            }
            let limit = connect.unwrap_or(self.options.timeouts.connect) + self.options.timeouts.answer;
            let response = match tokio::time::timeout(limit, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(fail(self.cause(error, connect))),
                Err(_) => return Err(fail(Cause::Timeout { what: "answer", after: limit })),
            };
            let follows = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
                && (method == Method::GET || method == Method::HEAD);
            let location = response.headers().get(LOCATION).filter(|_| follows);
            let Some(location) = location else {
                return Ok(Reply { response, url: shown, strayed });
            };
            let next = location.to_str().ok().and_then(|text| url.join(text).ok());
            let next = next.ok_or_else(|| fail(Cause::Redirect("its Location is not a URL".to_owned())))?;
            if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
                return Err(fail(Cause::Redirect(format!("to {}", without_query(&next)))));
            }
            if url.scheme() == "https" && next.scheme() == "http" && !addressed {
                let reason = format!("from https to {}, where the answer could be forged", without_query(&next));
                return Err(fail(Cause::Redirect(reason)));
            }
            if next.origin() != url.origin() && !strayed {
                strayed = true;
                tls = tls.without_client();
            }
            url = next;
        }
        Err((without_query(&url), Cause::Redirect(format!("more than {MAX_REDIRECTS} in a row"))))
    }

    /// The client for `url` under these settings.
    async fn client(&self, url: &Url, tls: &Tls, connect: Option<Duration>) -> Result<Client, Cause> {
        let secure = url.scheme() == "https";
        let key = Key {
            tls: secure.then(|| (tls.fingerprint(), machine_stamp())),
            connect: connect.unwrap_or(self.options.timeouts.connect),
            proxy: !url.host_str().is_some_and(is_loopback),
        };
        let found = self.pools().get_mut(&key).map(|(client, used)| {
            *used = Instant::now();
            client.clone()
        });
        if let Some(client) = found {
            return Ok(client);
        }
        let tls = if secure { tls.clone() } else { Tls::default() };
        let (wanted, agent) = (key.clone(), self.options.user_agent.clone());
        // Reading the machine's certificates takes some ten milliseconds.
        let built = tokio::task::spawn_blocking(move || build(&tls, &wanted, &agent)).await;
        let client = match built {
            Ok(Ok(client)) => client,
            Ok(Err(reason)) => return Err(Cause::Connect(reason)),
            Err(error) => return Err(Cause::Connect(format!("cannot set up a client: {error}"))),
        };
        let mut pools = self.pools();
        if pools.len() >= MAX_CLIENTS
            && let Some(oldest) = pools.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone())
        {
            pools.remove(&oldest);
        }
        // Another request may have been as fast: one pool is enough.
        Ok(pools.entry(key).or_insert((client, Instant::now())).0.clone())
    }

    fn pools(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (Client, Instant)>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cause(&self, error: reqwest::Error, connect: Option<Duration>) -> Cause {
        if error.is_timeout() && error.is_connect() {
            return Cause::Timeout { what: "connection", after: connect.unwrap_or(self.options.timeouts.connect) };
        }
        let connecting = error.is_connect();
        let text = explain(error);
        if connecting { Cause::Connect(text) } else { Cause::Cut(text) }
    }

    /// The next piece of a body; nothing at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Cause> {
        let stall = self.options.timeouts.stall;
        match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Cause::Cut(explain(error))),
            Err(_) => Err(Cause::Timeout { what: "data", after: stall }),
        }
    }

    /// A whole body of at most `limit` bytes; `None` when it is larger.
    pub(super) async fn body(&self, mut response: Response, limit: u64) -> Result<Option<Bytes>, Cause> {
        if response.content_length().is_some_and(|length| length > limit) {
            return Ok(None);
        }
        let deadline = Instant::now() + self.options.timeouts.stall * 4;
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
            if Instant::now() > deadline {
                return Err(Cause::Timeout { what: "complete answer", after: self.options.timeouts.stall * 4 });
            }
        }
        Ok(Some(body.into()))
    }

    /// What an answer that is no success says.
    pub(super) async fn refusal(&self, response: Response) -> Cause {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        // A body that is not to be had is no message; the status says enough.
        let body = self.body(response, MAX_ERROR_BODY).await.ok().flatten().unwrap_or_default();
        Cause::Status { status: status.as_u16(), message: registry_message(&body), retry_after }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("pools", &self.pools().len()).finish()
    }
}

fn build(tls: &Tls, key: &Key, agent: &str) -> Result<Client, String> {
    let machine = || if key.tls.is_some() { machine_certificates() } else { Vec::new() };
    let config = tls.client_config(machine).map_err(|e| format!("TLS settings: {e}"))?;
    let mut builder = Client::builder()
        .tls_backend_preconfigured(config)
        .http1_only()
        .redirect(Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .user_agent(agent)
        .connect_timeout(key.connect);
    if !key.proxy {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|e| format!("cannot set up a client: {}", explain(e)))
}

/// The certificates that this machine trusts; none where there are none, which fails no plain HTTP.
fn machine_certificates() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        tracing::warn!(errors = ?found.errors, "no trusted certificates on this machine: install ca-certificates");
    }
    found.certs
}

/// Changes when the machine's certificates do, so that an update is seen without a restart.
fn machine_stamp() -> Option<SystemTime> {
    let named = std::env::var_os("SSL_CERT_FILE");
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let paths = named.iter().map(Path::new).chain(usual.map(Path::new));
    paths.filter_map(|path| path.metadata().ok()?.modified().ok()).next()
}

/// The wait that a server asks for, in seconds. The form with a date is rare and depends on two clocks: not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The innermost reasons of an HTTP error, and the way out of the usual ones.
fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reasons: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        source = inner.source();
        if text.starts_with("client error") {
            continue;
        }
        // Wrappers repeat what they wrap.
        reasons.retain(|outer| !outer.contains(&text));
        if !reasons.iter().any(|outer| text.contains(outer.as_str())) {
            reasons.push(text);
        } else if let Some(last) = reasons.last_mut() {
            *last = text;
        }
    }
    let text = if reasons.is_empty() { error.to_string() } else { reasons.join(": ") };
    let hint = if text.contains("UnknownIssuer") {
        " (no authority that this machine trusts signed it: add it to the machine's, or as \"ca\" in the host's hosts.toml)"
    } else if text.contains("InvalidContentType") {
        " (it does not speak TLS: if it is meant to be plain HTTP, say so with http:// in its hosts.toml)"
    } else {
        ""
    };
    format!("{}{hint}", printable(&text, 300))
}

/// A URL that is safe to show: links to storage carry signatures in their query.
pub(super) fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    printable(url.as_str(), 400)
}

/// Whether a status is the success that a request for content wants.
pub(super) fn is_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
}
