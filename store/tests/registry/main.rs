//! The registry client against registries that behave badly, and against a real one.
#![allow(clippy::unwrap_used)]

mod auth;
mod blobs;
mod manifests;
mod mirrors;
mod process;
mod real;
mod server;

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use crisp_store::{
    digest::Digest,
    media::{self, Descriptor, Platform},
    reference::Reference,
    registry::{BlobStream, Error, Registry, RegistryOptions, Session, Timeouts},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use server::{Reply, Request};

pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Options that make a test of waiting short.
pub(crate) fn options() -> RegistryOptions {
    RegistryOptions {
        timeouts: Timeouts {
            connect: Duration::from_millis(400),
            answer: Duration::from_millis(600),
            stall: Duration::from_millis(400),
            retry_after: Duration::from_secs(2),
            helper: Duration::from_secs(2),
        },
        backoff: Duration::from_millis(5),
        tries: 4,
        ..RegistryOptions::default()
    }
}

/// With a `hosts.toml` for `registry`, in `dir`.
pub(crate) fn options_with_hosts(dir: &Path, registry: &str, hosts: &str) -> RegistryOptions {
    let place = dir.join(registry);
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("hosts.toml"), hosts).unwrap();
    RegistryOptions { config_path: dir.to_owned(), ..options() }
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(crate) fn session(image: &str) -> Session {
    Registry::new(options()).unwrap().session(&reference(image), None)
}

pub(crate) fn linux(architecture: &str) -> Platform {
    Platform::new("linux", architecture, None)
}

/// Reads a blob to its end.
pub(crate) async fn collect(mut blob: BlobStream) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(bytes) = blob.next().await {
        let bytes: Bytes = bytes?;
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// Bytes that differ everywhere, so that a wrong offset shows.
pub(crate) fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub(crate) fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::new(LAYER, Digest::sha256(bytes), bytes.len() as u64)
}

/// What a well-behaved repository `a` has: paths below `/v2/a/`, their Content-Type and bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repository {
    files: HashMap<String, (String, Vec<u8>)>,
}

impl Repository {
    fn put(&mut self, area: &str, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::new(media_type, Digest::sha256(&bytes), bytes.len() as u64);
        self.files.insert(format!("/v2/a/{area}/{}", descriptor.digest), (media_type.to_owned(), bytes));
        descriptor
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        self.put("blobs", media_type, bytes)
    }

    pub(crate) fn document(&mut self, media_type: &str, value: &Value) -> Descriptor {
        self.put("manifests", media_type, serde_json::to_vec(value).unwrap())
    }

    /// An image of one layer for a platform; its manifest.
    pub(crate) fn image(&mut self, os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        let config = json!({"os": os, "architecture": architecture, "variant": variant, "rootfs": {"type": "layers"}});
        let config = self.blob(media::OCI_CONFIG, serde_json::to_vec(&config).unwrap());
        let layer = self.blob(LAYER, format!("{os} {architecture} {variant:?}").into_bytes());
        self.document(media::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
    }

    /// An index of entries, each for a platform or without one.
    pub(crate) fn index(&mut self, entries: &[(Descriptor, Option<Platform>)]) -> Descriptor {
        let entries: Vec<Descriptor> = entries
            .iter()
            .map(|(entry, platform)| Descriptor { platform: platform.clone(), ..entry.clone() })
            .collect();
        self.document(media::OCI_INDEX, &json!({"schemaVersion": 2, "manifests": entries}))
    }

    pub(crate) fn tag(&mut self, tag: &str, descriptor: &Descriptor) {
        let file = self.files[&format!("/v2/a/manifests/{}", descriptor.digest)].clone();
        self.files.insert(format!("/v2/a/manifests/{tag}"), file);
    }

    /// The right answer.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        match self.files.get(request.path()) {
            None => Reply::not_found(),
            Some((media_type, bytes)) => Reply::part(request, bytes)
                .with("content-type", media_type)
                .with("docker-content-digest", Digest::sha256(bytes).as_str()),
        }
    }

    pub(crate) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}

/// A repository with one image for amd64, tagged `1`; and its manifest.
pub(crate) fn simple() -> (Repository, Descriptor) {
    let mut repository = Repository::default();
    let manifest = repository.image("linux", "amd64", None);
    repository.tag("1", &manifest);
    (repository, manifest)
}
