//! Finding, naming and removing images.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::digest::Digest;
use crate::error::Result;
use crate::image::{Image, ImageRecord, find};
use crate::reference::Reference;
use crate::{Inner, Store};

/// What [`Store::untag`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// The image has lost this name and has others.
    Untagged(String),
    /// That was its last name: the image with this id is gone.
    Image(Digest),
}

impl Store {
    /// All images, sorted by id.
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.0.index().images.values().cloned().collect()
    }

    /// An image by name, id (with or without `sha256:`), or a prefix of its id that no other image has.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Ambiguous`].
    pub fn find(&self, given: &str) -> Result<Arc<Image>> {
        find(self.0.index().images.values(), given).cloned()
    }

    /// Removes an image with all its names, whichever of them is given. Its layers stay while snapshots, other images or
    /// holders of the [`Image`] use them.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Ambiguous`], or the disk fails: then the image is still there.
    pub fn remove(&self, given: &str) -> Result<Digest> {
        let _writer = self.0.writer();
        let image = self.find(given)?;
        let id = image.id.clone();
        self.0.remove_image(image)?;
        Ok(id)
    }

    /// Takes a name from its image; with the last tag the image goes too.
    ///
    /// # Errors
    /// As [`Store::remove`]; ids are not names.
    pub fn untag(&self, name: &str) -> Result<Removed> {
        let reference: Reference = name.parse()?;
        let _writer = self.0.writer();
        let image = self.find(name)?;
        let mut record = image.record.clone();
        match reference.digest() {
            Some(digest) => record.digests.remove(&reference.with_digest(digest.clone())),
            None => record.tags.remove(&reference),
        };
        if record.tags.is_empty() && (reference.digest().is_none() || record.digests.is_empty()) {
            let id = image.id.clone();
            self.0.remove_image(image)?;
            return Ok(Removed::Image(id));
        }
        self.0.replace(&image, record)?;
        Ok(Removed::Untagged(reference.to_string()))
    }
}

impl Inner {
    /// The caller has the writer's lock.
    fn remove_image(&self, image: Arc<Image>) -> Result<()> {
        self.disk.remove(&self.layout.image(&image.id))?;
        let mut index = self.index();
        index.images.remove(&image.id);
        // Somebody wants space: layers of unfinished pulls are no longer kept for a next try.
        index.recent.clear();
        drop(index);
        self.remove_blobs(image.record.blobs.keys());
        drop(image);
        self.sweep();
        Ok(())
    }

    /// Removes those of the blobs that no image names. The caller has the writer's lock.
    pub(crate) fn remove_blobs<'a>(&self, blobs: impl Iterator<Item = &'a Digest>) {
        let images: Vec<_> = self.index().images.values().cloned().collect();
        let named: BTreeSet<&Digest> = images.iter().flat_map(|image| image.record.blobs.keys()).collect();
        for blob in blobs.filter(|blob| !named.contains(blob)) {
            if let Err(error) = self.disk.remove(&self.layout.blob(blob)) {
                tracing::warn!(%error, "cannot remove a blob; the next start does");
            }
        }
    }

    /// Writes a changed record of an image. The caller has the writer's lock.
    pub(crate) fn replace(self: &Arc<Self>, image: &Image, record: ImageRecord) -> Result<Arc<Image>> {
        self.disk.write_volatile(&self.layout.image(&record.id), &record)?;
        let image = Arc::new(image.with_record(record, &self.pinned));
        self.index().images.insert(image.id.clone(), image.clone());
        self.flush_image_soon(image.id.clone());
        Ok(image)
    }

    /// Gives `image` the names of a pull, and takes the tag from the image that had it. The caller has the writer's lock.
    pub(crate) fn name(
        self: &Arc<Self>,
        image: &Image,
        tag: Option<&Reference>,
        digest: &Reference,
    ) -> Result<Arc<Image>> {
        let stamp = self.stamp();
        let mut record = image.record.clone();
        if let Some(tag) = tag
            && !record.tags.contains_key(tag)
        {
            record.tags.insert(tag.clone(), stamp);
        }
        record.digests.entry(digest.clone()).or_insert(stamp);
        let named = if record == image.record && self.index().images.contains_key(&record.id) {
            self.index().images[&record.id].clone()
        } else {
            self.replace(image, record)?
        };
        let Some(tag) = tag else { return Ok(named) };
        let others: Vec<_> = self.index().images.values().filter(|other| other.id != named.id).cloned().collect();
        for other in others.iter().filter(|other| other.record.tags.contains_key(tag)) {
            let mut record = other.record.clone();
            record.tags.remove(tag);
            self.replace(other, record)?;
        }
        Ok(named)
    }

    /// Nanoseconds since 1970, or a little more: newer than any stamp in use, whatever the clock says.
    fn stamp(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let index = self.index();
        let used =
            index.images.values().flat_map(|image| image.record.tags.values().chain(image.record.digests.values()));
        used.max().map_or(now, |newest| now.max(newest + 1))
    }
}
