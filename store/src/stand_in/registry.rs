//! Stands in for the registry client until that is in: plain HTTP, one platform, no credentials.
#![allow(missing_docs, clippy::unwrap_used)]
use crate::{digest::Digest, media::*, reference::Reference};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {}
#[derive(Debug, Clone)]
pub struct Credentials {}
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Http(String),
}
#[derive(Debug, Clone)]
pub struct Registry {
    client: reqwest::Client,
}
#[derive(Debug, Clone)]
pub struct Session {
    client: reqwest::Client,
    reference: Reference,
}
#[derive(Debug, Clone)]
pub struct Resolved {
    pub digest: Digest,
    pub index: Option<Bytes>,
    pub descriptor: Descriptor,
    pub manifest: Manifest,
    pub raw: Bytes,
}
impl Registry {
    pub fn new(_: RegistryOptions) -> Result<Self, Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self { client: reqwest::Client::builder().build().unwrap() })
    }
    pub fn session(&self, reference: &Reference, _: Option<Credentials>) -> Session {
        Session { client: self.client.clone(), reference: reference.clone() }
    }
}
impl Session {
    fn url(&self, kind: &str, what: &str) -> String {
        format!("http://{}/v2/{}/{kind}/{what}", self.reference.registry_host(), self.reference.repository())
    }
    async fn get(&self, m: reqwest::Method, kind: &str, what: &str) -> Result<reqwest::Response, Error> {
        let r = self
            .client
            .request(m, self.url(kind, what))
            .header(
                "Accept",
                "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
            )
            .send()
            .await
            .map_err(|e| Error::Http(format!("{e:?}")))?;
        r.error_for_status().map_err(|e| Error::Http(e.to_string()))
    }
    pub async fn head(&self) -> Result<Digest, Error> {
        let r = self.get(reqwest::Method::HEAD, "manifests", self.reference.target()).await?;
        Ok(r.headers()["docker-content-digest"].to_str().unwrap().parse().unwrap())
    }
    pub async fn resolve(&self, _: &Platform) -> Result<Resolved, Error> {
        let r = self.get(reqwest::Method::GET, "manifests", self.reference.target()).await?;
        let raw = r.bytes().await.map_err(|e| Error::Http(e.to_string()))?;
        let digest = Digest::sha256(&raw);
        Ok(Resolved {
            descriptor: Descriptor { media_type: String::new(), digest: digest.clone(), size: raw.len() as u64 },
            digest,
            index: None,
            manifest: serde_json::from_slice(&raw).map_err(|e| Error::Http(e.to_string()))?,
            raw,
        })
    }
    pub async fn config(&self, d: &Descriptor) -> Result<Bytes, Error> {
        self.get(reqwest::Method::GET, "blobs", d.digest.as_str())
            .await?
            .bytes()
            .await
            .map_err(|e| Error::Http(e.to_string()))
    }
    pub fn blob(&self, d: &Descriptor) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let (this, d) = (self.clone(), d.clone());
        futures_util::stream::once(async move {
            this.get(reqwest::Method::GET, "blobs", d.digest.as_str()).await.map(|r| r.bytes_stream())
        })
        .flat_map(|r| match r {
            Ok(s) => s.map(|b| b.map_err(|e| Error::Http(e.to_string()))).left_stream(),
            Err(e) => futures_util::stream::once(async { Err(e) }).right_stream(),
        })
    }
}
