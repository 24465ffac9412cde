//! From a reference to the manifest for a platform.
//!
//! ```text
//!   target ── manifest ─────────────────────► its config must be for the platform
//!          └─ index ──► candidates, best first ──► manifest ─► done
//!                                               └─ index ──► … (bounded depth and number)
//! ```
//!
//! An entry of an index that names its platform is believed; one that does not is judged by its config.

use bytes::Bytes;

use super::{Error, Session};
use crate::{
    digest::Digest,
    media::{self, Descriptor, Document, MAX_NESTING, Manifest, Platform, config_platform},
    reference::Reference,
};

/// Most documents that are fetched to find the one for a platform.
const MAX_DOCUMENTS: usize = 16;

/// What a reference comes to on a platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the tag or digest names, index or manifest. `repository@` it is the repo digest.
    pub digest: Digest,
    /// The bytes of `digest`, when it is an index.
    pub index: Option<Bytes>,
    /// The manifest for the platform.
    pub descriptor: Descriptor,
    /// The manifest's bytes, verified.
    pub raw: Bytes,
    /// The manifest, parsed. Its config's digest is the image id.
    pub manifest: Manifest,
}

/// An entry that may be the one, and how deep the index is that it came from.
struct Candidate {
    descriptor: Descriptor,
    depth: usize,
}

impl Session {
    /// From the reference to the manifest for `platform`.
    ///
    /// # Errors
    /// Any [`Error`]; its kind is `PlatformMismatch` when there is no image for the platform, and the message lists those
    /// that there are.
    pub async fn resolve(&self, platform: &Platform) -> Result<Resolved, Error> {
        let target = self.target().await?;
        let (served, bytes) = match &target.bytes {
            Some(bytes) => (target.media_type.clone(), bytes.clone()),
            None => self.document("manifests", &target.digest, None).await?,
        };
        let digest = target.digest.clone();
        let what = self.reference().to_string();
        let bad = |source| Error::Image { what: what.clone(), source };
        let index = match Document::parse(&served, &bytes).map_err(bad)? {
            Document::Manifest(manifest) => {
                self.check_platform(&manifest, platform)
                    .await?
                    .map_err(|found| bad(mismatch(platform, vec![found])))?;
                let descriptor = Descriptor::new(&*manifest.media_type, digest.clone(), bytes.len() as u64);
                return Ok(Resolved { digest, index: None, descriptor, raw: bytes, manifest });
            }
            Document::Index(index) => index,
        };
        let mut available = index.platforms();
        let entries = |index: &media::Index, depth| -> Result<Vec<Candidate>, media::Error> {
            let found = index.candidates(platform)?.into_iter().cloned();
            // The last one is taken first.
            Ok(found.rev().map(|descriptor| Candidate { descriptor, depth }).collect())
        };
        let mut candidates = entries(&index, 1).map_err(bad)?;
        let mut fetched = 0;
        while let Some(Candidate { descriptor, depth }) = candidates.pop() {
            if fetched == MAX_DOCUMENTS {
                break;
            }
            fetched += 1;
            let (served, raw) = self.document("manifests", &descriptor.digest, Some(descriptor.size)).await?;
            let what = self.reference().with_digest(descriptor.digest.clone());
            match parse(&served, &descriptor.media_type, &what, &raw)? {
                Document::Index(_) if depth == MAX_NESTING => return Err(bad(media::Error::TooDeep(MAX_NESTING))),
                Document::Index(nested) => match entries(&nested, depth + 1) {
                    Ok(mut found) => candidates.append(&mut found),
                    Err(_) => available.append(&mut nested.platforms()),
                },
                Document::Manifest(manifest) => {
                    if descriptor.platform.is_none()
                        && let Err(found) = self.check_platform(&manifest, platform).await?
                    {
                        available.push(found);
                        continue;
                    }
                    return Ok(Resolved { digest, index: Some(bytes), descriptor, raw, manifest });
                }
            }
        }
        Err(bad(mismatch(platform, available)))
    }

    /// Whether the image runs on `platform`, by its config; if not, what it is for.
    async fn check_platform(&self, manifest: &Manifest, platform: &Platform) -> Result<Result<(), Platform>, Error> {
        let config = self.config(&manifest.config).await?;
        let what = || format!("image config {}", self.reference().with_digest(manifest.config.digest.clone()));
        let found = config_platform(&config).map_err(|source| Error::Image { what: what(), source })?;
        Ok(platform.rank(&found).map(|_| ()).ok_or(found))
    }
}

/// The parsed form of bytes that were served as one media type and described as another.
fn parse(served: &str, described: &str, what: &Reference, bytes: &[u8]) -> Result<Document, Error> {
    let media_type = if media::is_manifest_type(served) { served } else { described };
    Document::parse(media_type, bytes).map_err(|source| Error::Image { what: what.to_string(), source })
}

fn mismatch(platform: &Platform, available: Vec<Platform>) -> media::Error {
    media::Error::PlatformMismatch { wanted: Box::new(platform.clone()), available }
}
