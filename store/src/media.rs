//! What registries hand out, parsed within bounds: descriptors, manifests, indexes, and the choice of a platform.
//!
//! ```text
//!   index / manifest list ──► manifest ──► config
//!     (platforms)                     └──► layers, lowest first
//! ```
//!
//! Both families of media types are read, OCI's (image-spec v1.1) and docker's schema 2, which have the same shape.
//! Every document here comes from outside: sizes, counts and depths are bounded, ambiguity is refused
//! (CVE-2021-41190: one document that is index and manifest at once).

mod manifest;
mod platform;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use self::manifest::is_manifest_type;
pub use self::{
    manifest::{Document, Error, Index, Manifest, config_platform},
    platform::Platform,
};
use crate::digest::Digest;

/// Largest manifest or index, in bytes: the limit that registries themselves set (distribution-spec, "Pushing Manifests").
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image config, in bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// How deep an index may point to an index, the first one counted.
pub const MAX_NESTING: usize = 3;
/// Most layers in one manifest. What can be mounted is less, and the snapshotter's business.
pub const MAX_LAYERS: usize = 512;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker manifest list, the index of schema 2.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The start of the two media types of docker's schema 1, plain and signed.
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The `Accept` header of a manifest request: all that is understood, then anything, so that a registry names what it
/// has instead of answering "not found".
pub const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A pointer to content (image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// What it hashes to.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Where else it may be had; used for foreign layers only.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub urls: Vec<String>,
    /// Notes of who made it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what the manifest runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor with nothing but the three fields that every one has.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Whether it points to an index or a manifest list.
    pub fn is_index(&self) -> bool {
        matches!(essence(&self.media_type), OCI_INDEX | DOCKER_LIST)
    }

    /// A layer that its maker keeps out of registries (Windows base layers): its `urls` say where it is.
    pub fn is_foreign(&self) -> bool {
        let media_type = essence(&self.media_type);
        media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
            || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
    }

    /// What its media type says about compression; nothing for a type that is no layer.
    pub fn compression(&self) -> Option<Compression> {
        Compression::of(&self.media_type)
    }

    /// Build attestations live in indexes beside the images, for the platform `unknown/unknown`.
    fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown" || p.architecture == "unknown")
    }
}

/// How a layer's tar is packed, by its media type. Images exist whose type lies: whoever unpacks looks at the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compression {
    /// The compression that a layer's media type names; nothing for a type that is no layer.
    pub fn of(media_type: &str) -> Option<Self> {
        match essence(media_type) {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Some(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The media type without parameters such as `; charset=utf-8`.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Go programs write `null` for an empty list or map.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_named_by_the_media_type() {
        let of = |media_type| Compression::of(media_type);
        assert_eq!(of("application/vnd.oci.image.layer.v1.tar"), Some(Compression::None));
        assert_eq!(of("application/vnd.docker.image.rootfs.diff.tar.gzip"), Some(Compression::Gzip));
        assert_eq!(of("application/vnd.oci.image.layer.v1.tar+zstd; x=y"), Some(Compression::Zstd));
        assert_eq!(of("application/vnd.cncf.helm.chart.content.v1.tar+gzip"), None);
    }

    #[test]
    fn foreign_layers_are_told_apart() {
        let digest = Digest::sha256(b"");
        assert!(
            Descriptor::new("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", digest.clone(), 1)
                .is_foreign()
        );
        assert!(!Descriptor::new("application/vnd.oci.image.layer.v1.tar", digest, 1).is_foreign());
    }

    #[test]
    fn descriptors_keep_what_matters_and_skip_what_is_empty() {
        let text =
            format!(r#"{{"mediaType":"m","digest":"{}","size":3,"urls":null,"future":1}}"#, Digest::sha256(b"abc"));
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        assert_eq!(descriptor, Descriptor::new("m", Digest::sha256(b"abc"), 3));
        assert!(!serde_json::to_string(&descriptor).unwrap().contains("urls"));
        assert!(serde_json::from_str::<Descriptor>(&text.replace(":3", ":-3")).is_err());
    }
}
