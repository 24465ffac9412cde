//! The end of a pull: an image that is whole gets its record and its names. Waits for the disk and for the writer's lock,
//! so it runs on a thread that may.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::Inner;
use crate::config::Document;
use crate::digest::Digest;
use crate::error::Result;
use crate::image::{Image, ImageLayer, ImageRecord};
use crate::layer::Layer;
use crate::media::Platform;
use crate::reference::Reference;
use crate::registry::Resolved;

/// Targets that are kept for an image: an index that is pushed anew each night leads to the same one.
const MAX_TARGETS: usize = 8;

/// What a pull brought.
pub(crate) struct Fetched {
    pub(crate) reference: Reference,
    /// What was asked for.
    pub(crate) platform: Platform,
    pub(crate) resolved: Resolved,
    pub(crate) config: Bytes,
    pub(crate) document: Document,
    /// Base first.
    pub(crate) held: Vec<Arc<Layer>>,
}

impl Inner {
    /// Names an image that was here a moment ago; `None` if it was removed since.
    pub(crate) fn present(
        self: &Arc<Self>,
        reference: &Reference,
        image: &Image,
        digest: &Digest,
    ) -> Result<Option<Arc<Image>>> {
        let _writer = self.writer();
        // Its names may have changed since, too.
        let Some(image) = self.index().images.get(&image.id).cloned() else { return Ok(None) };
        let named = self.name_as(reference, &image, digest)?;
        self.flush_again(&named);
        Ok(Some(named))
    }

    pub(crate) fn publish(self: &Arc<Self>, fetched: Fetched) -> Result<Arc<Image>> {
        let Fetched { reference, platform, resolved, config, document, held } = fetched;
        let manifest = &resolved.manifest;
        let id = manifest.config.digest.clone();
        let mut blobs = vec![(id.clone(), &config[..]), (resolved.descriptor.digest.clone(), &resolved.raw[..])];
        if let Some(index) = &resolved.index {
            blobs.push((resolved.digest.clone(), index));
        }
        let _writer = self.writer();
        for (digest, bytes) in &blobs {
            let path = self.layout.blob(digest);
            // What is there is whole: it was verified at open or written since.
            if !path.exists() {
                self.disk.write_bytes(&path, bytes, false)?;
            }
        }
        let mut record = match self.index().images.get(&id) {
            Some(image) => image.record.clone(),
            None => ImageRecord {
                layers: manifest
                    .layers
                    .iter()
                    .zip(&document.diff_ids)
                    .map(|(blob, diff_id)| ImageLayer {
                        blob: blob.digest.clone(),
                        size: blob.size,
                        diff_id: diff_id.clone(),
                    })
                    .collect(),
                tags: BTreeMap::new(),
                digests: BTreeMap::new(),
                targets: Vec::new(),
                blobs: BTreeMap::new(),
                id,
            },
        };
        record.blobs.extend(blobs.iter().map(|(digest, bytes)| (digest.clone(), bytes.len() as u64)));
        let target = (resolved.digest.clone(), platform);
        record.targets.retain(|known| *known != target);
        record.targets.push(target);
        let dropped = forget_oldest(&mut record, &resolved.descriptor.digest);
        let image = Image::new(record, &document, held, &self.pinned);
        let named = self.name_as(&reference, &image, &resolved.digest)?;
        // After the record that no longer names them.
        self.remove_blobs(dropped.iter());
        self.flush_again(&named);
        Ok(named)
    }

    /// A digest beside a tag decides, and the tag is no name then. The caller has the writer's lock.
    fn name_as(self: &Arc<Self>, reference: &Reference, image: &Image, digest: &Digest) -> Result<Arc<Image>> {
        let tag = reference.digest().is_none().then_some(reference);
        self.name(image, tag, &reference.with_digest(digest.clone()))
    }
}

/// Takes the oldest targets out, with the names by their digest, and their blobs, which are returned. `manifest` stays.
fn forget_oldest(record: &mut ImageRecord, manifest: &Digest) -> Vec<Digest> {
    let old: Vec<_> = record.targets.drain(..record.targets.len().saturating_sub(MAX_TARGETS)).collect();
    let mut dropped: Vec<Digest> = old.into_iter().map(|(digest, _)| digest).collect();
    let kept = |digest: &Digest| record.targets.iter().any(|(target, _)| target == digest);
    dropped.retain(|digest| !kept(digest) && digest != manifest);
    record.digests.retain(|name, _| name.digest().is_none_or(|digest| !dropped.contains(digest)));
    dropped.retain(|digest| record.blobs.remove(digest).is_some());
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::image;
    use crate::{Options, Store};

    #[test]
    fn an_image_that_was_removed_or_renamed_meanwhile_is_not_brought_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), Options::default()).unwrap();
        let inner = &store.0;
        let known = image("1", &[("busybox:1", 1)]);
        inner.replace(&known, known.record.clone()).unwrap();
        let digest = Digest::sha256(b"manifest");
        let tags = |image: &Image| image.tags.clone();
        let second = inner.present(&"busybox:2".parse().unwrap(), &known, &digest).unwrap().unwrap();
        assert_eq!(tags(&second), ["docker.io/library/busybox:1", "docker.io/library/busybox:2"]);
        let third = inner.present(&"busybox:3".parse().unwrap(), &known, &digest).unwrap().unwrap();
        assert_eq!(tags(&third).len(), 3, "the names given since it was looked up stay");
        store.remove("busybox:1").unwrap();
        assert!(inner.present(&"busybox:4".parse().unwrap(), &known, &digest).unwrap().is_none());
        assert!(store.images().is_empty());
    }
}
