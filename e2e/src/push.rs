//! Makes images in memory and pushes them with oci-client, a registry client that is not ours.

use crate::{fail::Res, tar::Tar};
use flate2::{Compression, write::GzEncoder};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol, Config, ImageLayer},
    manifest::{OciDescriptor, OciImageManifest},
    secrets::RegistryAuth,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// `sha256:…` of these bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |s, b| s + &format!("{b:02x}"))
}

/// A layer as the registry holds it, and the digest of its tar.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) blob: bytes::Bytes,
    pub(crate) media: &'static str,
    pub(crate) diff_id: String,
}

impl Layer {
    /// A gzip layer of `tar`.
    pub(crate) fn gzip(tar: &Tar) -> Res<Self> {
        Self::gzip_bytes(&tar.end())
    }

    /// A gzip layer of these bytes, tar or not.
    pub(crate) fn gzip_bytes(tar: &[u8]) -> Res<Self> {
        let mut z = GzEncoder::new(Vec::new(), Compression::new(6));
        z.write_all(tar)?;
        Ok(Self { blob: z.finish()?.into(), media: GZIP, diff_id: digest(tar) })
    }

    /// A zstd layer.
    pub(crate) fn zstd_bytes(tar: &[u8]) -> Res<Self> {
        Ok(Self { blob: zstd::encode_all(tar, 6)?.into(), media: ZSTD, diff_id: digest(tar) })
    }

    /// A layer that is not compressed.
    pub(crate) fn plain(tar: &Tar) -> Self {
        let tar = tar.end();
        Self { diff_id: digest(&tar), blob: tar.into(), media: PLAIN }
    }
}

/// What images call this machine's architecture: Go's name of it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The JSON of an image's config: `config` is its inner object (Env, Cmd, User …).
pub(crate) fn config_json(layers: &[Layer], config: &Value) -> Vec<u8> {
    let history = json!({"created": "2026-01-01T00:00:00Z", "created_by": "crisp-e2e"});
    json!({
        "architecture": architecture(), "os": "linux", "created": "2026-01-01T00:00:00Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>()},
        "history": vec![history; layers.len()],
    })
    .to_string()
    .into_bytes()
}

/// The JSON of its manifest.
pub(crate) fn manifest_json(layers: &[Layer], config: &[u8]) -> Vec<u8> {
    let layers: Vec<Value> =
        layers.iter().map(|l| json!({"mediaType": l.media, "digest": digest(&l.blob), "size": l.blob.len()})).collect();
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {"mediaType": CONFIG, "digest": digest(config), "size": config.len()},
    })
    .to_string()
    .into_bytes()
}

/// Pushes one image to a plain-HTTP registry under each of `names` (`repo:tag`).
pub(crate) async fn push(host: &str, names: &[&str], layers: &[Layer], config: &Value) -> Res {
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..Default::default() });
    let cfg = config_json(layers, config);
    let blob = |media: &str, data: &[u8]| OciDescriptor {
        media_type: media.into(),
        digest: digest(data),
        size: data.len() as i64,
        ..Default::default()
    };
    let manifest = OciImageManifest {
        media_type: Some(MANIFEST.into()),
        config: blob(CONFIG, &cfg),
        layers: layers.iter().map(|l| blob(l.media, &l.blob)).collect(),
        ..Default::default()
    };
    for name in names {
        let reference: Reference = format!("{host}/{name}").parse()?;
        let blobs: Vec<ImageLayer> =
            layers.iter().map(|l| ImageLayer::new(l.blob.clone(), l.media.into(), None)).collect();
        let config = Config::new(cfg.clone(), CONFIG.into(), None);
        client.push(&reference, &blobs, config, &RegistryAuth::Anonymous, Some(manifest.clone())).await?;
    }
    Ok(())
}
