//! Blob download: a stream that survives cuts, stalls and bad hosts.
//!
//! ```text
//!   ask ─► read ─► all there? ─► look for more than was promised ─► end
//!    ▲       │ cut, stall, short
//!    └───────┘ from the next byte on (Range), at the next host
//! ```
//!
//! Bytes that were handed on stay valid whoever sends the rest, because the blob is named by its digest.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, stream};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE},
};
use url::Url;

use super::{
    Cause, Error, Failure, Kind, Session,
    endpoint::{Ask, Endpoint},
    http::{Call, Reply, is_content, without_query},
    rota::Rota,
    tls::Tls,
};
use crate::media::Descriptor;

/// Progress that gives new tries, in bytes: less might be a host that sends a byte a connection.
const PROGRESS: u64 = 1 << 20;
/// Least that must come within the stall limit, in bytes.
const MIN_PER_STALL: u64 = 4 << 10;
/// Most places outside registries that a foreign layer is looked for at.
const MAX_URLS: usize = 8;

/// The bytes of a blob: exactly as many as its descriptor says, or an error at the end. What they hash to is for the
/// consumer to check ([`Verifier`](crate::digest::Verifier)), which reads until the stream ends; if they are wrong,
/// [`Session::reject`] tells whether another host may be asked.
pub struct BlobStream {
    inner: Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>,
}

impl BlobStream {
    pub(super) fn new(session: Session, descriptor: Descriptor) -> Self {
        let download = Download { session, descriptor, offset: 0, since_progress: 0, rota: None, body: None };
        let inner = stream::try_unfold(download, |mut download| async move {
            Ok(download.next().await?.map(|bytes| (bytes, download)))
        });
        Self { inner: Box::pin(inner) }
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(context)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobStream")
    }
}

struct Download {
    session: Session,
    descriptor: Descriptor,
    /// Bytes handed on.
    offset: u64,
    since_progress: u64,
    rota: Option<Rota>,
    body: Option<Body>,
}

/// An answer that is being read.
struct Body {
    host: usize,
    host_name: String,
    url: String,
    response: Response,
    /// Bytes to drop, when the host sent the blob from its beginning.
    skip: u64,
    pace: Pace,
}

impl Download {
    /// The next piece; nothing at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.body.is_none() {
                if self.offset == self.descriptor.size {
                    return Ok(None);
                }
                self.body = Some(self.open().await?);
            }
            match self.read().await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => return Ok(None),
                Err(Stop::Host(host, failure)) => {
                    self.body = None;
                    self.host_failed(host, failure).await?;
                }
                Err(Stop::Blob(failure)) => {
                    return Err(Error::Failed { what: self.what(), failures: vec![failure] });
                }
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Stop> {
        let Some(body) = &mut self.body else { return Ok(None) };
        let failure = |body: &Body, cause| Failure { host: body.host_name.clone(), url: body.url.clone(), cause };
        loop {
            let left = self.descriptor.size - self.offset;
            let begun = Instant::now();
            let chunk = self.session.clients().chunk(&mut body.response).await;
            let mut bytes = match chunk {
                Ok(Some(bytes)) => bytes,
                Ok(None) if left == 0 => return Ok(None),
                Ok(None) => {
                    let cause = Cause::Cut(format!("the answer ended {left} bytes early"));
                    return Err(Stop::Host(body.host, failure(body, cause)));
                }
                // Everything is here: how the connection ends is no concern any more.
                Err(_) if left == 0 => return Ok(None),
                Err(cause) => return Err(Stop::Host(body.host, failure(body, cause))),
            };
            if left > 0 && !body.pace.keeps(begun.elapsed(), bytes.len() as u64) {
                let cause = Cause::Timeout { what: "data to speak of", after: body.pace.limit };
                return Err(Stop::Host(body.host, failure(body, cause)));
            }
            let dropped = body.skip.min(bytes.len() as u64);
            body.skip -= dropped;
            bytes.advance(dropped as usize);
            if bytes.is_empty() {
                continue;
            }
            let got = bytes.len() as u64;
            if got > left {
                let cause = crate::digest::Mismatch::Size {
                    digest: self.descriptor.digest.clone(),
                    expected: self.descriptor.size,
                    got: self.offset + got,
                };
                return Err(Stop::Blob(failure(body, cause.into())));
            }
            self.offset += got;
            self.since_progress += got;
            if self.since_progress >= PROGRESS {
                self.since_progress = 0;
                if let Some(rota) = &mut self.rota {
                    rota.progressed();
                }
            }
            return Ok(Some(bytes));
        }
    }

    /// Finds a host that has the rest.
    async fn open(&mut self) -> Result<Body, Error> {
        loop {
            let session = self.session.clone();
            let endpoints = session.endpoints().await?;
            let urls = self.foreign_urls();
            let rota = match &mut self.rota {
                Some(rota) => rota,
                None => {
                    let mut hosts = session.blob_order(endpoints, &self.descriptor.digest);
                    hosts.extend((0..urls.len()).map(|n| endpoints.len() + n));
                    self.rota.insert(session.rota(hosts, u32::MAX))
                }
            };
            let Some(host) = rota.next().await else {
                let failures = self.rota.take().map(Rota::into_failures).unwrap_or_default();
                return Err(Error::Failed { what: self.what(), failures });
            };
            let opened = match endpoints.get(host) {
                Some(endpoint) => self.ask(endpoint, host).await,
                None => self.ask_elsewhere(&urls[host - endpoints.len()], host).await,
            };
            match opened {
                Ok(body) => {
                    if let Some(endpoint) = endpoints.get(host) {
                        endpoint.set_down(false);
                    }
                    session.note_served(&self.descriptor.digest, host);
                    return Ok(body);
                }
                Err(failure) => self.host_failed(host, failure).await?,
            }
        }
    }

    async fn host_failed(&mut self, host: usize, failure: Failure) -> Result<(), Error> {
        if let Some(endpoint) = self.session.endpoints().await?.get(host) {
            endpoint.set_down(failure.cause.kind() == Kind::Unavailable);
        }
        if let Some(rota) = &mut self.rota {
            rota.failed(host, failure);
        }
        Ok(())
    }

    async fn ask(&self, endpoint: &Endpoint, host: usize) -> Result<Body, Failure> {
        let ask = Ask {
            method: &Method::GET,
            area: "blobs",
            name: self.descriptor.digest.as_str(),
            accept: "*/*",
            from: self.offset,
            addressed: true,
        };
        let reply = endpoint.ask(self.session.clients(), ask).await?;
        self.body(host, endpoint.host().name.clone(), reply)
    }

    /// Asks one of the places that a foreign layer's descriptor names: no registry, so no credentials.
    async fn ask_elsewhere(&self, url: &Url, host: usize) -> Result<Body, Failure> {
        let name = url.host_str().unwrap_or_default().to_owned();
        let failure = |url, cause| Failure { host: name.clone(), url, cause };
        let mut headers = HeaderMap::new();
        if self.offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", self.offset));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let call = Call {
            method: Method::GET,
            url: url.clone(),
            headers,
            private: HeaderMap::new(),
            body: None,
            tls: &Tls::default(),
            connect: None,
            addressed: true,
        };
        let reply = self.session.clients().exchange(call).await.map_err(|(url, cause)| failure(url, cause))?;
        if !is_content(reply.response.status()) {
            return Err(failure(without_query(url), self.session.clients().refusal(reply.response).await));
        }
        self.body(host, name.clone(), reply)
    }

    /// The places outside registries; none but for foreign layers, and https only.
    fn foreign_urls(&self) -> Vec<Url> {
        if !self.descriptor.is_foreign() {
            return Vec::new();
        }
        let urls = self.descriptor.urls.iter().filter_map(|text| Url::parse(text).ok());
        urls.filter(|url| url.scheme() == "https" && url.host_str().is_some()).take(MAX_URLS).collect()
    }

    /// Holds the head of an answer against what was asked for.
    fn body(&self, host: usize, host_name: String, reply: Reply) -> Result<Body, Failure> {
        let Reply { response, url, .. } = reply;
        let size = self.descriptor.size;
        let wrong = |got| crate::digest::Mismatch::Size { digest: self.descriptor.digest.clone(), expected: size, got };
        let checked = if response.status() == StatusCode::PARTIAL_CONTENT {
            match content_range(response.headers()) {
                Some((first, _)) if first != self.offset => {
                    Err(Cause::Invalid(format!("asked for bytes from {} on, got them from {first} on", self.offset)))
                }
                Some((_, Some(total))) if total != size => Err(wrong(total).into()),
                Some(_) => Ok(0),
                None => Err(Cause::Invalid("a partial answer that does not say which part".to_owned())),
            }
        } else {
            // The host ignores Range and begins at the beginning.
            match response.content_length() {
                Some(total) if total != size => Err(wrong(total).into()),
                _ => Ok(self.offset),
            }
        };
        let pace = Pace::new(self.session.clients().options().timeouts.stall);
        match checked {
            Ok(skip) => Ok(Body { host, host_name, url, response, skip, pace }),
            Err(cause) => Err(Failure { host: host_name, url, cause }),
        }
    }

    fn what(&self) -> String {
        format!("blob {}", self.session.reference().with_digest(self.descriptor.digest.clone()))
    }
}

/// Who is done for: the host, or the blob as a whole.
enum Stop {
    Host(usize, Failure),
    Blob(Failure),
}

/// Watches that a little comes in each span of waiting. Time that the consumer takes does not count.
struct Pace {
    limit: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, bytes: 0 }
    }

    /// Whether `bytes` after a wait of `waited` are still fast enough.
    fn keeps(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.limit {
            return true;
        }
        let enough = self.bytes >= MIN_PER_STALL;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        enough
    }
}

/// `bytes first-last/total`; the total may be unknown.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((first.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_rubbish_is_not() {
        let range =
            |text: &str| content_range(&HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_str(text).unwrap())]));
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        for bad in ["", "bytes", "bytes */10", "bytes 5-9", "items 5-9/10", "bytes a-b/c"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_trickle_is_a_stall_and_a_slow_consumer_is_not() {
        let mut pace = Pace::new(Duration::from_secs(10));
        assert!((0..20).any(|_| !pace.keeps(Duration::from_secs(1), 10)));
        let mut pace = Pace::new(Duration::from_secs(10));
        assert!((0..1000).all(|_| pace.keeps(Duration::from_millis(1), 10)));
        assert!((0..100).all(|_| pace.keeps(Duration::from_secs(1), MIN_PER_STALL)));
    }
}
