//! Images: what the store knows by name and id.
//!
//! ```text
//!   images/<id>.json   ImageRecord: names, blobs and layers; the id is the digest of the configuration
//!   blobs/<digest>     the configuration, the manifest, and the index that led to it, byte for byte
//! ```
//!
//! A name belongs to one image. A pull that moves it writes the new owner's record before the old one's; each name has
//! a stamp, and if a crash left it with both, the newer stamp counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::config::{Document, ImageConfig};
use crate::digest::Digest;
use crate::durable::Record;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::media::Platform;
use crate::reference::Reference;

/// What `images/<id>.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    /// Tags, and since when (a stamp that only grows).
    pub(crate) tags: BTreeMap<Reference, u64>,
    /// Digests by which it was pulled, likewise.
    pub(crate) digests: BTreeMap<Reference, u64>,
    /// What a registry's answer led to this image: digest and platform asked for; the last few, newest last.
    pub(crate) targets: Vec<(Digest, Platform)>,
    /// Sizes of the blobs kept for it: configuration, manifests, indexes.
    pub(crate) blobs: BTreeMap<Digest, u64>,
    /// Base first.
    pub(crate) layers: Vec<ImageLayer>,
}

impl Record for ImageRecord {
    const KIND: &'static str = "image";
    const VERSION: u32 = 1;
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Digest of the compressed blob.
    pub blob: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
}

/// An image that is in the store. Whoever holds one keeps its layers from being removed.
#[derive(Debug)]
pub struct Image {
    /// Digest of the configuration: CRI's image id.
    pub id: Digest,
    /// Tags, sorted: CRI's `repo_tags`.
    pub tags: Vec<String>,
    /// `registry/repository@digest`, sorted: CRI's `repo_digests`.
    pub repo_digests: Vec<String>,
    /// Bytes of the content as it comes from the registry: layers compressed, manifest and configuration.
    pub size: u64,
    /// Bytes on disk of the unpacked layers.
    pub unpacked: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// When it was built, RFC 3339 as its author wrote it; may be empty.
    pub created: String,
    /// What it runs on.
    pub platform: Platform,
    /// Base first.
    pub layers: Vec<ImageLayer>,
    /// Configured to be kept by garbage collectors.
    pub pinned: bool,
    pub(crate) record: ImageRecord,
    /// Record, blobs and layers are known to be on the device.
    pub(crate) durable: AtomicBool,
    /// In the order of `layers`.
    pub(crate) held: Vec<Arc<Layer>>,
}

impl Image {
    pub(crate) fn new(record: ImageRecord, document: &Document, held: Vec<Arc<Layer>>, pinned: &[String]) -> Self {
        Self {
            id: record.id.clone(),
            tags: texts(&record.tags),
            repo_digests: texts(&record.digests),
            size: record.blobs.values().sum::<u64>() + record.layers.iter().map(|layer| layer.size).sum::<u64>(),
            unpacked: held.iter().map(|layer| layer.record.bytes).sum(),
            config: document.config.clone(),
            created: document.created.clone(),
            platform: document.platform(),
            layers: record.layers.clone(),
            pinned: is_pinned(&record, pinned),
            durable: AtomicBool::new(false),
            held,
            record,
        }
    }

    /// The same image after its names changed.
    pub(crate) fn with_record(&self, record: ImageRecord, pinned: &[String]) -> Self {
        Self {
            id: self.id.clone(),
            tags: texts(&record.tags),
            repo_digests: texts(&record.digests),
            size: self.size,
            unpacked: self.unpacked,
            config: self.config.clone(),
            created: self.created.clone(),
            platform: self.platform.clone(),
            layers: self.layers.clone(),
            pinned: is_pinned(&record, pinned),
            durable: AtomicBool::new(false),
            held: self.held.clone(),
            record,
        }
    }

    /// When the name came to this image, if it has it.
    fn stamp(&self, name: &Reference) -> Option<u64> {
        self.record.tags.get(name).or_else(|| self.record.digests.get(name)).copied()
    }
}

fn texts(names: &BTreeMap<Reference, u64>) -> Vec<String> {
    names.keys().map(Reference::to_string).collect()
}

fn is_pinned(record: &ImageRecord, patterns: &[String]) -> bool {
    let mut names = record.tags.keys().chain(record.digests.keys()).map(Reference::to_string);
    names.any(|name| patterns.iter().any(|pattern| matches(pattern, &name)))
}

/// The full form of a name to pin, as [`matches`] compares it: `busybox:1` is `docker.io/library/busybox:1`. What ends in
/// `*` is the beginning of full names, and stays as it is.
///
/// # Errors
/// It is no name of an image.
pub fn pin_pattern(given: &str) -> std::result::Result<String, crate::reference::Error> {
    if given.ends_with('*') {
        return Ok(given.to_owned());
    }
    let name: Reference = given.parse()?;
    let last = given.rsplit('/').next().unwrap_or_default();
    Ok(if last.contains([':', '@']) { name.to_string() } else { name.name() })
}

/// `registry/repository` patterns of the configuration: the whole name, or its beginning when it ends in `*`; a pattern
/// without tag fits any tag.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern || name.strip_prefix(pattern).is_some_and(|rest| rest.starts_with([':', '@'])),
    }
}

/// Finds an image by id, name, or a prefix of its id that no other has. `name:tag@digest` means the digest.
pub(crate) fn find<'a>(images: impl Iterator<Item = &'a Arc<Image>> + Clone, given: &str) -> Result<&'a Arc<Image>> {
    let hex = given.strip_prefix("sha256:").unwrap_or(given);
    if let Some(image) = images.clone().find(|image| image.id.as_str() == given || image.id.hex() == hex) {
        return Ok(image);
    }
    if let Ok(name) = given.parse::<Reference>() {
        let name = match name.digest() {
            Some(digest) => name.with_digest(digest.clone()),
            None => name,
        };
        let owners = images.clone().filter_map(|image| Some((image.stamp(&name)?, image)));
        if let Some((_, image)) = owners.max_by_key(|(stamp, _)| *stamp) {
            return Ok(image);
        }
    }
    let fits: Vec<_> = images.filter(|image| !hex.is_empty() && image.id.hex().starts_with(hex)).collect();
    match fits[..] {
        [] => Err(Error::NotFound(given.to_owned())),
        [image] => Ok(image),
        _ => {
            Err(Error::Ambiguous { given: given.to_owned(), ids: fits.iter().map(|image| image.id.clone()).collect() })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn image(text: &str, names: &[(&str, u64)]) -> Arc<Image> {
        let id = Digest::sha256(text.as_bytes());
        let mut record = ImageRecord {
            id,
            tags: BTreeMap::new(),
            digests: BTreeMap::new(),
            targets: Vec::new(),
            blobs: BTreeMap::new(),
            layers: Vec::new(),
        };
        for (name, stamp) in names {
            let name: Reference = name.parse().unwrap();
            let names = if name.digest().is_some() { &mut record.digests } else { &mut record.tags };
            names.insert(name, *stamp);
        }
        let document = Document::parse(br#"{"rootfs":{}}"#).unwrap();
        Arc::new(Image::new(record, &document, Vec::new(), &["docker.io/library/pause".into(), "k8s.io/*".into()]))
    }

    #[test]
    fn names_to_pin_are_written_as_people_write_names() {
        for (given, full) in [
            ("busybox:1", "docker.io/library/busybox:1"),
            ("busybox", "docker.io/library/busybox"),
            ("localhost:5000/a", "localhost:5000/a"),
            ("k8s.io/*", "k8s.io/*"),
        ] {
            assert_eq!(pin_pattern(given).unwrap(), full);
        }
        assert!(pin_pattern("Not A Name").is_err());
    }

    #[test]
    fn images_are_found_by_id_name_and_prefix() {
        let digest = Digest::sha256(b"manifest");
        let by_digest = format!("quay.io/a/b@{digest}");
        let images = [image("1", &[("busybox", 1), (&by_digest, 1)]), image("2", &[("quay.io/a/b:v1", 1)])];
        let find = |given: &str| find(images.iter(), given).map(|image| image.id.clone());
        let one = images[0].id.clone();
        for given in [
            one.as_str(),
            one.hex(),
            &one.hex()[..8],
            &format!("sha256:{}", &one.hex()[..8]),
            "busybox",
            "busybox:latest",
            "docker.io/library/busybox",
            &by_digest,
            &format!("quay.io/a/b:v1@{digest}"),
        ] {
            assert_eq!(find(given).unwrap(), one, "{given}");
        }
        assert_eq!(find("quay.io/a/b:v1").unwrap(), images[1].id);
        for given in ["", "sha256:", "quay.io/a/b", "alpine", "zz", "A/B"] {
            assert!(matches!(find(given), Err(Error::NotFound(_))), "{given}");
        }
    }

    #[test]
    fn a_prefix_of_two_ids_is_ambiguous() {
        let images: Vec<_> = (0..40).map(|i| image(&i.to_string(), &[])).collect();
        let error = (b'0'..=b'9').find_map(|digit| match find(images.iter(), std::str::from_utf8(&[digit]).unwrap()) {
            Err(error @ Error::Ambiguous { .. }) => Some(error),
            _ => None,
        });
        assert!(error.unwrap().to_string().contains("is ambiguous"));
    }

    #[test]
    fn of_two_owners_of_a_name_the_newer_counts() {
        let images = [image("1", &[("busybox", 1)]), image("2", &[("busybox", 2)])];
        assert_eq!(find(images.iter(), "busybox").unwrap().id, images[1].id);
    }

    #[test]
    fn pins() {
        assert!(image("1", &[("pause:3.9", 1)]).pinned);
        assert!(image("1", &[("k8s.io/x/y:1", 1)]).pinned);
        assert!(!image("1", &[("pauses", 1), ("quay.io/pause", 1)]).pinned);
    }
}
