//! Pulling an image.
//!
//! ```text
//!   HEAD name ─▶ digest ─▶ known here? ─▶ name it, done          one request
//!                        └▶ manifest, configuration ─▶ layers (flight.rs), all at once ─▶ publish
//! ```
//!
//! Every call asks the registry with its own credentials, also for an image that is here: that is how kubelet learns
//! that a pod may use it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::config::Document;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::flight::{Claim, Wanted};
use crate::image::Image;
use crate::layer::{Layer, chain_ids};
use crate::media::{Manifest, Platform};
use crate::progress::{LayerState, Progress, ProgressEvent};
use crate::publish::Fetched;
use crate::reference::Reference;
use crate::registry::{Credentials, Session};
use crate::{Inner, Store, sys};

/// overlayfs stacks 500, and old kernels take one page of mount options: at 14 bytes a layer that is enough for these.
const MAX_LAYERS: usize = 256;

/// What to pull.
pub struct PullRequest {
    /// Its name.
    pub reference: Reference,
    /// For this call, and no other.
    pub credentials: Option<Credentials>,
    /// What it has to run on; this machine if `None`.
    pub platform: Option<Platform>,
    /// Who wants to hear how it goes.
    pub progress: Option<Arc<dyn Progress>>,
}

impl std::fmt::Debug for PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullRequest").field("reference", &self.reference).field("platform", &self.platform).finish()
    }
}

/// Counts a running pull.
struct Running<'a>(&'a Inner);

impl<'a> Running<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.pulls.fetch_add(1, Ordering::AcqRel);
        Self(inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.0.pulls.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Buffers of a pull are a multiple of what the server needs else.
            self.0.cleaner.push(sys::trim_heap);
        }
    }
}

impl Store {
    /// Pulls an image. When this returns it can be used at once; it is made durable in the background
    /// ([`Store::flush`]).
    ///
    /// Dropping the future ends this call only: what others wait for goes on, the rest ends half a minute later.
    ///
    /// # Errors
    /// The registry refuses or fails, what it sends is not what it says, or the disk is full or fails. Layers that
    /// came whole are kept for ten minutes for the next try.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>> {
        let PullRequest { reference, credentials, platform, progress } = request;
        let tell = |event| {
            if let Some(progress) = &progress {
                progress.event(event);
            }
        };
        let platform = platform.unwrap_or_else(Platform::host);
        let pull = Pull { inner: &self.0, name: reference.to_string(), reference, platform, tell: &tell };
        let _running = Running::new(&self.0);
        tell(ProgressEvent::Resolving);
        let session = self.0.registry.session(&pull.reference, credentials);
        let digest = session.head().await.map_err(|source| pull.registry(source))?;
        let present = match pull.known(&digest) {
            Some(image) => pull.present(&image, &digest).await?,
            None => None,
        };
        let image = match present {
            Some(image) => image,
            None => pull.fetch(session).await?,
        };
        tell(ProgressEvent::Done);
        Ok(image)
    }
}

struct Pull<'a> {
    inner: &'a Arc<Inner>,
    reference: Reference,
    name: String,
    platform: Platform,
    tell: &'a (dyn Fn(ProgressEvent) + Sync),
}

impl Pull<'_> {
    fn registry(&self, source: crate::registry::Error) -> Error {
        Error::Registry { image: self.name.clone(), source }
    }

    fn invalid(&self, why: impl Into<String>) -> Error {
        Error::Invalid { image: self.name.clone(), why: why.into() }
    }

    /// The image that an earlier pull of this digest for this platform led to.
    fn known(&self, digest: &Digest) -> Option<Arc<Image>> {
        let index = self.inner.index();
        let leads = |image: &&Arc<Image>| {
            image.record.targets.iter().any(|(target, platform)| target == digest && *platform == self.platform)
        };
        index.images.values().find(leads).cloned()
    }

    /// Tells and names an image that is known; `None` if it was removed meanwhile.
    async fn present(&self, image: &Arc<Image>, digest: &Digest) -> Result<Option<Arc<Image>>> {
        let layers: Vec<_> = image.layers.iter().map(|layer| (layer.blob.clone(), layer.size)).collect();
        (self.tell)(ProgressEvent::Resolved { digest: digest.clone(), layers });
        for layer in &image.layers {
            self.layer(&layer.blob, LayerState::Present);
        }
        let (reference, image, digest) = (self.reference.clone(), image.clone(), digest.clone());
        self.blocking(move |inner| inner.present(&reference, &image, &digest)).await
    }

    /// The writer's lock is held over writes.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|e| Err(Error::io("publish in", &self.inner.layout.images())(e.into())))
    }

    fn layer(&self, digest: &Digest, state: LayerState) {
        (self.tell)(ProgressEvent::Layer { digest: digest.clone(), state });
    }

    async fn fetch(&self, session: Session) -> Result<Arc<Image>> {
        let resolved = session.resolve(&self.platform).await.map_err(|source| self.registry(source))?;
        let manifest = &resolved.manifest;
        let config = session.config(&manifest.config).await.map_err(|source| self.registry(source))?;
        let document = self.check(manifest, &config)?;
        let layers: Vec<_> = manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
        (self.tell)(ProgressEvent::Resolved { digest: resolved.digest.clone(), layers });
        let held = self.layers(&session, manifest, &document.diff_ids).await?;
        let (reference, platform) = (self.reference.clone(), self.platform.clone());
        let fetched = Fetched { reference, platform, resolved, config, document, held };
        self.blocking(move |inner| inner.publish(fetched)).await
    }

    /// Holds manifest and configuration against each other. The registry client has verified both and the platform.
    fn check(&self, manifest: &Manifest, config: &[u8]) -> Result<Document> {
        let document =
            Document::parse(config).map_err(|e| self.invalid(format!("its configuration cannot be read: {e}")))?;
        let (layers, diff_ids) = (manifest.layers.len(), document.diff_ids.len());
        if layers != diff_ids {
            return Err(self.invalid(format!("its manifest has {layers} layers, its configuration {diff_ids}")));
        }
        if layers > MAX_LAYERS {
            return Err(self.invalid(format!("it has {layers} layers, at most {MAX_LAYERS} can be stacked")));
        }
        Ok(document)
    }

    /// All layers, base first; those that are missing come in parallel.
    async fn layers(&self, session: &Session, manifest: &Manifest, diff_ids: &[Digest]) -> Result<Vec<Arc<Layer>>> {
        let places = chain_ids(diff_ids).into_iter().zip(diff_ids.iter().cloned());
        let mut below = None;
        let mut waiting = FuturesUnordered::new();
        for (i, (descriptor, (chain_id, diff_id))) in manifest.layers.iter().zip(places).enumerate() {
            let wanted = Arc::new(Wanted {
                session: session.clone(),
                descriptor: descriptor.clone(),
                diff_id,
                chain_id,
                below: below.take(),
                failed: OnceLock::new(),
            });
            below = Some(wanted.clone());
            // Claimed in order: a layer that waits for those below takes no place from them.
            let claim = self.inner.claim(&wanted);
            let present = matches!(claim, Claim::Present(_));
            waiting.push(async move {
                let digest = &wanted.descriptor.digest;
                let landed = self.inner.land(&wanted, claim, |state| self.layer(digest, state)).await;
                let layer = landed.map_err(|source| Error::Layer {
                    image: self.name.clone(),
                    layer: digest.clone(),
                    source,
                })?;
                self.layer(digest, if present { LayerState::Present } else { LayerState::Done });
                Ok::<_, Error>((i, layer))
            });
        }
        let mut layers = BTreeMap::new();
        let mut failed = None;
        while let Some(landed) = waiting.next().await {
            match landed {
                Ok((i, layer)) => drop(layers.insert(i, layer)),
                // A layer that waited for another one knows less than that one does.
                Err(error) if error.is_below() => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        failed.map_or_else(|| Ok(layers.into_values().collect()), Err)
    }
}
