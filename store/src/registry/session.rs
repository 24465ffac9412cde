//! One pull's conversation with a registry.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderMap},
};
use tokio::sync::OnceCell;

use super::{
    BlobStream, Cause, Credentials, Error, Failure, Kind, Registry,
    endpoint::{Ask, Endpoint},
    hosts,
    http::{Clients, Reply},
    rota::Rota,
};
use crate::{
    digest::{Digest, Verifier},
    media::{self, ACCEPT_MANIFESTS, Descriptor, MAX_CONFIG, MAX_MANIFEST},
    reference::Reference,
};

/// Times that a request for a document goes round the hosts; a caller with nothing in hand should hear soon.
const DOCUMENT_TRIES: u32 = 3;

/// One pull's view of a registry. Cheap to clone; clones share tokens and what was learned about hosts.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    reference: Reference,
    credentials: Option<Credentials>,
    endpoints: OnceCell<Vec<Endpoint>>,
    target: OnceCell<Target>,
    /// The config that platform choice had to look at.
    config: Mutex<Option<(Digest, Bytes)>>,
    /// Who sent bytes of a blob, and whose bytes were wrong, by host number.
    served: Mutex<HashMap<Digest, BTreeSet<usize>>>,
    rejected: Mutex<HashMap<Digest, BTreeSet<usize>>>,
}

/// What the reference names, and its bytes where they came along.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Option<Bytes>,
}

/// What may be asked of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capability {
    Resolve,
    Pull,
}

/// One host's answer on its way. Boxed and with a lifetime of its own: of an async closure over any endpoint the compiler
/// cannot prove that a pull can move between threads (rust-lang/rust#102211).
type Answer<'s, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 's>>;

impl Session {
    pub(super) fn new(registry: Registry, reference: &Reference, credentials: Option<Credentials>) -> Self {
        Self {
            inner: Arc::new(Inner {
                registry,
                reference: reference.clone(),
                credentials,
                endpoints: OnceCell::new(),
                target: OnceCell::new(),
                config: Mutex::default(),
                served: Mutex::default(),
                rejected: Mutex::default(),
            }),
        }
    }

    /// Whether this is a clone of the other, or the other of this.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The reference it was made for.
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// Asks what the reference names, without fetching it where the registry allows, and proves that the credentials
    /// are good for it: a reference by digest is asked for too. The registry is asked once in a session.
    ///
    /// # Errors
    /// Any [`Error`]; its kind is `NotFound` when the registry does not know the tag or digest.
    pub async fn head(&self) -> Result<Digest, Error> {
        Ok(self.target().await?.digest.clone())
    }

    pub(super) async fn target(&self) -> Result<&Target, Error> {
        self.inner.target.get_or_try_init(|| self.ask_target()).await
    }

    async fn ask_target(&self) -> Result<Target, Error> {
        let reference = &self.inner.reference;
        let capability = if reference.digest().is_some() { Capability::Pull } else { Capability::Resolve };
        self.each_host(&reference.to_string(), capability, |endpoint| {
            Box::pin(async move {
                match self.by_head(endpoint).await? {
                    Some(target) => Ok(target),
                    None => self.by_get(endpoint).await,
                }
            })
        })
        .await
    }

    /// HEAD costs no rate limit at some registries. Nothing when the answer does not name the digest.
    async fn by_head(&self, endpoint: &Endpoint) -> Result<Option<Target>, Failure> {
        let reference = &self.inner.reference;
        let reply = match endpoint.ask(self.clients(), self.ask_manifest(&Method::HEAD, reference.target())).await {
            Ok(reply) => reply,
            // Not every server knows HEAD, and its refusal has no words: GET either works or says why not.
            Err(Failure { cause: Cause::Status { status, .. }, .. }) if is_final(status) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let headers = reply.response.headers();
        let (named, media_type) = (content_digest(headers), text(headers, CONTENT_TYPE.as_str()));
        let digest = match (reference.digest(), named) {
            (Some(wanted), Some(named)) if named.algorithm() == wanted.algorithm() && named != *wanted => {
                let mismatch = crate::digest::Mismatch::Digest { expected: wanted.clone(), got: named };
                return Err(endpoint.failure(reply.url, mismatch.into()));
            }
            (Some(wanted), _) => wanted.clone(),
            (None, Some(named)) => named,
            (None, None) => return Ok(None),
        };
        Ok(Some(Target { digest, media_type, bytes: None }))
    }

    async fn by_get(&self, endpoint: &Endpoint) -> Result<Target, Failure> {
        let reference = &self.inner.reference;
        let reply = endpoint.ask(self.clients(), self.ask_manifest(&Method::GET, reference.target())).await?;
        let named = reference.digest().cloned().or_else(|| content_digest(reply.response.headers()));
        let media_type = text(reply.response.headers(), CONTENT_TYPE.as_str());
        let (url, bytes) = self.read(endpoint, reply, "manifest", MAX_MANIFEST).await?;
        let digest = Digest::of(named.as_ref().map_or(crate::digest::Algorithm::Sha256, Digest::algorithm), &bytes);
        match named {
            Some(expected) if expected != digest => {
                Err(endpoint.failure(url, crate::digest::Mismatch::Digest { expected, got: digest }.into()))
            }
            _ => Ok(Target { digest, media_type, bytes: Some(bytes) }),
        }
    }

    fn ask_manifest<'a>(&self, method: &'a Method, name: &'a str) -> Ask<'a> {
        let addressed = name.contains(':');
        Ask { method, area: "manifests", name, accept: ACCEPT_MANIFESTS, from: 0, addressed }
    }

    /// The bytes of a manifest or index, verified.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        Ok(self.document("manifests", &descriptor.digest, Some(descriptor.size)).await?.1)
    }

    /// The bytes of an image config, verified.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let known = lock(&self.inner.config).clone();
        match known {
            Some((digest, bytes)) if digest == descriptor.digest => Ok(bytes),
            _ => {
                let bytes = self.document("blobs", &descriptor.digest, Some(descriptor.size)).await?.1;
                *lock(&self.inner.config) = Some((descriptor.digest.clone(), bytes.clone()));
                Ok(bytes)
            }
        }
    }

    /// A whole document by digest, from the first host that has the right one, and the Content-Type it came with.
    pub(super) async fn document<'s>(
        &'s self,
        area: &'static str,
        digest: &'s Digest,
        size: Option<u64>,
    ) -> Result<(String, Bytes), Error> {
        let (what, accept, limit) = match area {
            "manifests" => ("manifest", ACCEPT_MANIFESTS, MAX_MANIFEST),
            _ => ("image config", "*/*", MAX_CONFIG),
        };
        let name = format!("{what} {}", self.inner.reference.with_digest(digest.clone()));
        if size.is_some_and(|size| size > limit) {
            return Err(Error::Image { what: name, source: media::Error::TooLarge { what, limit } });
        }
        let ask = Ask { method: &Method::GET, area, name: digest.as_str(), accept, from: 0, addressed: true };
        self.each_host(&name, Capability::Pull, |endpoint| {
            Box::pin(async move {
                let reply = endpoint.ask(self.clients(), ask).await?;
                let media_type = text(reply.response.headers(), CONTENT_TYPE.as_str());
                let (url, bytes) = self.read(endpoint, reply, what, limit).await?;
                let mut verifier = Verifier::new(digest, size.unwrap_or(bytes.len() as u64));
                match verifier.update(&bytes).and_then(|()| verifier.finish()) {
                    Ok(()) => Ok((media_type, bytes)),
                    Err(mismatch) => Err(endpoint.failure(url, mismatch.into())),
                }
            })
        })
        .await
    }

    async fn read(
        &self,
        endpoint: &Endpoint,
        reply: Reply,
        what: &'static str,
        limit: u64,
    ) -> Result<(String, Bytes), Failure> {
        match self.clients().body(reply.response, limit).await {
            Ok(Some(bytes)) => Ok((reply.url, bytes)),
            Ok(None) => Err(endpoint.failure(reply.url, media::Error::TooLarge { what, limit }.into())),
            Err(cause) => Err(endpoint.failure(reply.url, cause)),
        }
    }

    /// Asks host by host until one has an answer.
    async fn each_host<'s, T>(
        &'s self,
        what: &str,
        capability: Capability,
        ask: impl Fn(&'s Endpoint) -> Answer<'s, T> + Send,
    ) -> Result<T, Error> {
        let endpoints = self.endpoints().await?;
        let hosts = self.order(endpoints, capability, None);
        let mut rota = self.rota(hosts, DOCUMENT_TRIES);
        while let Some(number) = rota.next().await {
            let endpoint = &endpoints[number];
            match ask(endpoint).await {
                Ok(found) => {
                    endpoint.set_down(false);
                    return Ok(found);
                }
                Err(failure) => {
                    endpoint.set_down(failure.cause.kind() == Kind::Unavailable);
                    rota.failed(number, failure);
                }
            }
        }
        Err(Error::Failed { what: what.to_owned(), failures: rota.into_failures() })
    }

    /// Starts the download of a blob. Nothing is sent before the stream is polled.
    pub fn blob(&self, descriptor: &Descriptor) -> BlobStream {
        BlobStream::new(self.clone(), descriptor.clone())
    }

    /// Tells that a blob's bytes did not match its digest: the hosts that they came from are not asked for it again.
    /// True when another host is left, so that [`blob`](Self::blob) may be tried once more.
    pub fn reject(&self, digest: &Digest) -> bool {
        let served = lock(&self.inner.served).remove(digest).unwrap_or_default();
        let mut rejected = lock(&self.inner.rejected);
        let bad = rejected.entry(digest.clone()).or_default();
        let news = !served.is_subset(bad);
        bad.extend(served);
        let endpoints = self.inner.endpoints.get().map(Vec::as_slice).unwrap_or_default();
        news && endpoints.iter().enumerate().any(|(number, endpoint)| endpoint.host().pull && !bad.contains(&number))
    }

    pub(super) fn note_served(&self, digest: &Digest, host: usize) {
        lock(&self.inner.served).entry(digest.clone()).or_default().insert(host);
    }

    /// The hosts of this session. Reads configuration; once.
    pub(super) async fn endpoints(&self) -> Result<&[Endpoint], Error> {
        let endpoints = self.inner.endpoints.get_or_try_init(|| async { self.make_endpoints() }).await?;
        Ok(endpoints)
    }

    fn make_endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        let (reference, options) = (&self.inner.reference, self.clients().options());
        let registry = reference.registry();
        let secret = match &self.inner.credentials {
            Some(credentials) => credentials.secret(registry)?,
            None => None,
        };
        let hosts = hosts::load(&options.config_path, reference)?;
        let belongs = |name: &str| self.inner.credentials.as_ref().is_some_and(|given| given.belong_to(name, registry));
        if secret.is_some() && !hosts.iter().any(|host| belongs(&host.name)) {
            let address =
                self.inner.credentials.as_ref().map(|given| given.server_address.as_str()).unwrap_or_default();
            tracing::warn!(%reference, server_address = address, "credentials are for another host and stay unused");
        }
        let endpoint = |host: hosts::Host| {
            let given = secret.clone().filter(|_| belongs(&host.name));
            Endpoint::new(host, given, options.docker_config.clone(), reference.repository())
        };
        Ok(hosts.into_iter().map(endpoint).collect())
    }

    /// Host numbers in the order in which to ask, those that did not answer lately at the end.
    fn order(&self, endpoints: &[Endpoint], capability: Capability, digest: Option<&Digest>) -> Vec<usize> {
        let rejected = digest.and_then(|digest| lock(&self.inner.rejected).get(digest).cloned()).unwrap_or_default();
        let able = |endpoint: &Endpoint| match capability {
            Capability::Resolve => endpoint.host().resolve,
            Capability::Pull => endpoint.host().pull,
        };
        let mut order: Vec<usize> =
            (0..endpoints.len()).filter(|n| able(&endpoints[*n]) && !rejected.contains(n)).collect();
        order.sort_by_key(|number| endpoints[*number].is_down());
        order
    }

    /// Host numbers to ask for a blob.
    pub(super) fn blob_order(&self, endpoints: &[Endpoint], digest: &Digest) -> Vec<usize> {
        self.order(endpoints, Capability::Pull, Some(digest))
    }

    pub(super) fn rota(&self, hosts: Vec<usize>, tries: u32) -> Rota {
        let options = self.clients().options();
        Rota::new(hosts, tries.min(options.tries).max(1), options.backoff, options.timeouts.retry_after)
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.inner.registry.clients
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("reference", &self.inner.reference).finish_non_exhaustive()
    }
}

/// A status that the same request will get again. A 401 is what is left when authentication was tried.
fn is_final(status: u16) -> bool {
    matches!(status, 400..=499 | 501) && !matches!(status, 401 | 408 | 429)
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, "docker-content-digest").parse().ok()
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
