//! Manifests and indexes: bytes in, checked values out.

use serde::Deserialize;

use super::{
    DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, Descriptor, MAX_LAYERS, MAX_MANIFEST, OCI_CONFIG,
    OCI_INDEX, OCI_MANIFEST, Platform, essence, null_is_default,
};

/// What a manifest's bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An OCI index or a docker manifest list.
    Index(Index),
    /// An OCI or docker schema 2 manifest.
    Manifest(Manifest),
}

/// A list of manifests for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its media type.
    pub media_type: String,
    /// In the order of the document.
    pub manifests: Vec<Descriptor>,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its media type.
    pub media_type: String,
    /// The image config; its digest is the image id.
    pub config: Descriptor,
    /// Layers, the lowest first. Each has a media type of a layer.
    pub layers: Vec<Descriptor>,
}

/// Why a document is not an image that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not JSON, or JSON of another shape.
    #[error("not a valid {what}: {reason}")]
    Malformed {
        /// `manifest`, `image config`.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// Larger than is read.
    #[error("the {what} is larger than {limit} bytes")]
    TooLarge {
        /// `manifest`, `image config`.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Docker's schema 1, which has no content-addressed config.
    #[error(
        "the image is stored in docker's old schema 1 format ({0}), which is not supported: push it again with a current docker, podman or skopeo"
    )]
    Schema1(String),
    /// A media type that is no manifest.
    #[error("media type {0:?} is neither an image manifest nor an image index")]
    MediaType(String),
    /// Says to be one thing and has the fields of another.
    #[error("ambiguous manifest: {0}")]
    Ambiguous(&'static str),
    /// A Helm chart, a signature, any other artifact.
    #[error("not a container image: its {what} has media type {media_type:?}")]
    NotAnImage {
        /// `config` or `layer`.
        what: &'static str,
        /// As found.
        media_type: String,
    },
    /// More layers than are accepted.
    #[error("the image has {0} layers, at most {MAX_LAYERS} are accepted")]
    TooManyLayers(usize),
    /// Indexes that point to indexes.
    #[error("the image index is nested more than {0} deep")]
    TooDeep(usize),
    /// Nothing that runs here.
    #[error("no image for {wanted}; there is: {}", join(.available))]
    PlatformMismatch {
        /// What was asked for.
        wanted: Box<Platform>,
        /// What the image has.
        available: Vec<Platform>,
    },
}

fn join(platforms: &[Platform]) -> String {
    const SHOWN: usize = 16;
    if platforms.is_empty() {
        return "none".to_owned();
    }
    let mut text = platforms.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if platforms.len() > SHOWN {
        text.push_str(&format!(" and {} more", platforms.len() - SHOWN));
    }
    text
}

/// All fields of both kinds of document; which are there decides what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    #[serde(default, deserialize_with = "null_is_default")]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses `bytes` that were served as `media_type` (the Content-Type or the descriptor's; empty when unknown).
    ///
    /// # Errors
    /// Every [`Error`] but `PlatformMismatch` and `TooDeep`.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(Error::TooLarge { what: "manifest", limit: MAX_MANIFEST });
        }
        let served = essence(media_type);
        if served.starts_with(DOCKER_SCHEMA1) {
            return Err(Error::Schema1(served.to_owned()));
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|e| Error::Malformed { what: "manifest", reason: e.to_string().chars().take(200).collect() })?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(Error::Schema1("schemaVersion 1".to_owned()));
        }
        let inner = essence(&raw.media_type);
        let media_type = match (is_manifest_type(served), is_manifest_type(inner)) {
            (true, true) if served != inner => {
                return Err(Error::Ambiguous("its Content-Type and its mediaType differ"));
            }
            (true, true) => served,
            // A mediaType that is there and unknown is what the document says of itself: an artifact of some kind.
            (true, false) if inner.is_empty() => served,
            (_, false) if !inner.is_empty() => return Err(Error::MediaType(inner.chars().take(120).collect())),
            (false, true) => inner,
            // Servers of plain files send application/json or text/plain for an OCI document without mediaType.
            _ if raw.manifests.is_some() => OCI_INDEX,
            _ if raw.config.is_some() => OCI_MANIFEST,
            _ => return Err(Error::MediaType(served.chars().take(120).collect())),
        }
        .to_owned();
        if matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST) {
            if raw.config.is_some() || raw.layers.is_some() {
                return Err(Error::Ambiguous("an index with the config or layers of a manifest"));
            }
            let manifests = raw.manifests.ok_or_else(|| missing("manifests"))?;
            return Ok(Self::Index(Index { media_type, manifests }));
        }
        if raw.manifests.is_some() {
            return Err(Error::Ambiguous("a manifest with the manifests of an index"));
        }
        let config = raw.config.ok_or_else(|| missing("config"))?;
        let layers = raw.layers.ok_or_else(|| missing("layers"))?;
        Manifest::checked(media_type, config, layers).map(Self::Manifest)
    }

    /// Its media type.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Index(index) => &index.media_type,
            Self::Manifest(manifest) => &manifest.media_type,
        }
    }
}

impl Manifest {
    fn checked(media_type: String, config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, Error> {
        let not_an_image =
            |what, media_type: &str| Error::NotAnImage { what, media_type: media_type.chars().take(120).collect() };
        if !matches!(essence(&config.media_type), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(not_an_image("config", &config.media_type));
        }
        if layers.len() > MAX_LAYERS {
            return Err(Error::TooManyLayers(layers.len()));
        }
        if let Some(layer) = layers.iter().find(|layer| layer.compression().is_none()) {
            return Err(not_an_image("layer", &layer.media_type));
        }
        Ok(Self { media_type, config, layers })
    }

    /// Bytes of config and layers as they are stored at the registry.
    pub fn size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

impl Index {
    /// The entries that may run on `host`, best first; those without a platform last. Entries that are indexes
    /// themselves are among them.
    ///
    /// # Errors
    /// `PlatformMismatch`, with the platforms that there are.
    pub fn candidates(&self, host: &Platform) -> Result<Vec<&Descriptor>, Error> {
        let candidates = host.order(&self.manifests);
        if candidates.is_empty() {
            return Err(Error::PlatformMismatch { wanted: Box::new(host.clone()), available: self.platforms() });
        }
        Ok(candidates)
    }

    /// The platforms that its entries name, attestations left out.
    pub fn platforms(&self) -> Vec<Platform> {
        self.manifests
            .iter()
            .filter(|entry| !entry.is_attestation())
            .filter_map(|entry| entry.platform.clone())
            .collect()
    }
}

/// The platform that an image config names (image-spec, config.md: `os`, `architecture`, `variant`).
///
/// # Errors
/// `Malformed` when it is no JSON object.
pub fn config_platform(config: &[u8]) -> Result<Platform, Error> {
    serde_json::from_slice(config)
        .map_err(|e| Error::Malformed { what: "image config", reason: e.to_string().chars().take(200).collect() })
}

/// Whether a media type is one of the four that manifests and indexes have.
pub(crate) fn is_manifest_type(media_type: &str) -> bool {
    matches!(essence(media_type), OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST)
}

fn missing(field: &str) -> Error {
    Error::Malformed { what: "manifest", reason: format!("it has no {field}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::Digest;

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::sha256(media_type.as_bytes()), "size": 7})
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [descriptor(LAYER)]})
    }

    fn parse(media_type: &str, value: &Value) -> Result<Document, Error> {
        Document::parse(media_type, value.to_string().as_bytes())
    }

    #[test]
    fn reads_both_families_whatever_the_content_type_says_about_charset() {
        for media_type in [OCI_MANIFEST, DOCKER_MANIFEST, "application/vnd.oci.image.manifest.v1+json; charset=utf-8"] {
            let Document::Manifest(parsed) = parse(media_type, &manifest()).unwrap() else { panic!("an index") };
            assert_eq!((parsed.layers.len(), parsed.size()), (1, 14));
        }
        for media_type in [OCI_INDEX, DOCKER_LIST, "application/json", ""] {
            let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]});
            assert!(matches!(parse(media_type, &index), Ok(Document::Index(_))), "{media_type}");
        }
    }

    #[test]
    fn schema_1_is_refused_by_name() {
        for media_type in ["application/vnd.docker.distribution.manifest.v1+prettyjws", ""] {
            let old = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
            let error = parse(media_type, &old).unwrap_err();
            assert!(error.to_string().contains("schema 1"), "{error}");
        }
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        assert!(matches!(parse(OCI_MANIFEST, &both), Err(Error::Ambiguous(_))));
        assert!(matches!(parse(OCI_INDEX, &both), Err(Error::Ambiguous(_))));
        let mut typed = manifest();
        typed["mediaType"] = json!(OCI_INDEX);
        assert!(matches!(parse(OCI_MANIFEST, &typed), Err(Error::Ambiguous(_))));
        let twice = br#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        assert!(matches!(Document::parse(OCI_INDEX, twice), Err(Error::Malformed { .. })));
    }

    #[test]
    fn artifacts_are_no_images() {
        let mut chart = manifest();
        chart["config"] = descriptor("application/vnd.cncf.helm.config.v1+json");
        assert!(matches!(parse(OCI_MANIFEST, &chart), Err(Error::NotAnImage { what: "config", .. })));
        let mut odd = manifest();
        odd["layers"] = json!([descriptor("text/plain")]);
        assert!(matches!(parse(OCI_MANIFEST, &odd), Err(Error::NotAnImage { what: "layer", .. })));
        let mut other = manifest();
        other["mediaType"] = json!("application/vnd.example+json");
        assert!(matches!(parse(OCI_MANIFEST, &other), Err(Error::MediaType(_))));
        assert!(matches!(parse("text/html", &json!({"hello": 1})), Err(Error::MediaType(_))));
    }

    #[test]
    fn sizes_and_counts_are_bounded() {
        let mut many = manifest();
        many["layers"] = json!(vec![descriptor(LAYER); MAX_LAYERS + 1]);
        assert_eq!(parse(OCI_MANIFEST, &many), Err(Error::TooManyLayers(MAX_LAYERS + 1)));
        let huge = vec![b' '; MAX_MANIFEST as usize + 1];
        assert!(matches!(Document::parse(OCI_MANIFEST, &huge), Err(Error::TooLarge { .. })));
        let deep = "[".repeat(100_000);
        assert!(matches!(Document::parse(OCI_MANIFEST, deep.as_bytes()), Err(Error::Malformed { .. })));
        assert!(matches!(Document::parse(OCI_MANIFEST, b"<html>"), Err(Error::Malformed { .. })));
    }

    #[test]
    fn an_image_for_other_platforms_says_which() {
        let mut arm = descriptor(OCI_MANIFEST);
        arm["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
        let mut attestation = descriptor(OCI_MANIFEST);
        attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        let index = json!({"schemaVersion": 2, "manifests": [arm, attestation]});
        let Document::Index(index) = parse(OCI_INDEX, &index).unwrap() else { panic!("a manifest") };
        let error = index.candidates(&Platform::new("linux", "s390x", None)).unwrap_err();
        assert_eq!(error.to_string(), "no image for linux/s390x; there is: linux/arm64/v8");
        assert_eq!(index.candidates(&Platform::new("linux", "arm64", None)).unwrap().len(), 1);
    }

    #[test]
    fn a_config_names_its_platform() {
        let platform = config_platform(br#"{"os":"linux","architecture":"arm","variant":"v7","config":{}}"#).unwrap();
        assert_eq!(platform, Platform::new("linux", "arm", Some("v7")));
        assert!(config_platform(b"[1]x").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_parsed(bytes: Vec<u8>, text in "[\\[\\]{}\":,a-z0-9]{0,60}") {
            let _ = Document::parse("", &bytes);
            let _ = Document::parse(OCI_INDEX, text.as_bytes());
            let _ = config_platform(text.as_bytes());
        }
    }
}
