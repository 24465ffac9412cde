//! A registry of one's own, and images to put into it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp_store::digest::Digest;
use crisp_store::{Image, Options, PullRequest, Result, Store};
use serde_json::json;
use tar_core::{EntryType, Header};

/// Debian's docker-registry on a free loopback port, gone when dropped.
pub struct Registry {
    child: Child,
    pub host: String,
    dir: tempfile::TempDir,
    http: reqwest::Client,
}

impl Registry {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let yaml = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n",
            storage.display()
        );
        fs::write(&config, yaml).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("these tests need Debian's docker-registry");
        let start = Instant::now();
        while TcpStream::connect(&host).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the registry did not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { child, host, dir, http: reqwest::Client::new() }
    }

    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let base = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let answer = self.http.post(base).send().await.unwrap().error_for_status().unwrap();
        let mut place: url::Url = answer.headers()["location"].to_str().unwrap().parse().unwrap();
        place.query_pairs_mut().append_pair("digest", digest.as_str());
        let put = self.http.put(place.as_str()).body(bytes.to_vec()).send().await.unwrap();
        put.error_for_status().unwrap();
        digest
    }

    pub async fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: Vec<u8>) -> Digest {
        let digest = Digest::sha256(&bytes);
        let place = format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        let put = self.http.put(place).header("content-type", media_type).body(bytes).send().await.unwrap();
        put.error_for_status().unwrap();
        digest
    }

    /// Pushes an image and returns its name.
    pub async fn push(&self, name: &str, image: &Build) -> String {
        let (repository, tag) = name.split_once(':').unwrap();
        let mut layers = Vec::new();
        for layer in &image.layers {
            let digest = self.push_blob(repository, &layer.blob).await;
            layers.push(json!({"mediaType": layer.media_type, "digest": digest, "size": layer.blob.len()}));
        }
        let config = image.config();
        let digest = self.push_blob(repository, &config).await;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()},
            "layers": layers,
        });
        self.push_manifest(repository, tag, OCI_MANIFEST, manifest.to_string().into_bytes()).await;
        format!("{}/{name}", self.host)
    }

    /// Digest and size of the manifest that a tag names.
    pub async fn manifest(&self, name: &str) -> (Digest, usize) {
        let (repository, tag) = name.strip_prefix(&format!("{}/", self.host)).unwrap().split_once(':').unwrap();
        let place = format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        let answer = self.http.get(place).header("accept", OCI_MANIFEST).send().await.unwrap();
        let bytes = answer.error_for_status().unwrap().bytes().await.unwrap();
        (Digest::sha256(&bytes), bytes.len())
    }

    /// Has the last byte of a blob change on the registry's disk.
    pub fn spoil_blob(&self, digest: &Digest) {
        let hex = digest.hex();
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    }

    /// How many requests with this method and this part in their path the registry has answered.
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines().filter(|line| line.contains(&format!("\"{method} ")) && line.contains(part)).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image in the making.
#[derive(Default, Clone)]
pub struct Build {
    pub layers: Vec<LayerBlob>,
    pub config: Option<serde_json::Value>,
    pub platform: Option<(&'static str, &'static str)>,
    /// Instead of the true ones.
    pub diff_ids: Option<Vec<Digest>>,
}

#[derive(Clone)]
pub struct LayerBlob {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: String,
}

impl Build {
    pub fn layer(mut self, tar: Tar) -> Self {
        let tar = tar.end();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        self.layers.push(LayerBlob {
            blob: gzip.finish().unwrap(),
            diff_id: Digest::sha256(&tar),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        });
        self
    }

    /// A layer as it is, with any media type.
    pub fn blob(mut self, blob: Vec<u8>, tar: &[u8], media_type: &str) -> Self {
        self.layers.push(LayerBlob { blob, diff_id: Digest::sha256(tar), media_type: media_type.into() });
        self
    }

    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let (os, architecture) = self.platform.unwrap_or(("linux", "amd64"));
        json!({
            "os": os, "architecture": architecture, "created": "2026-01-02T03:04:05Z",
            "config": self.config.clone().unwrap_or_else(|| json!({"Env": ["A=1"], "Cmd": ["sh"]})),
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids.clone().unwrap_or(diff_ids)},
        })
        .to_string()
        .into_bytes()
    }
}

/// A tar archive in the making.
#[derive(Default, Clone)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn add(mut self, path: &str, kind: EntryType, link: &str, content: &[u8], mode: u32) -> Self {
        let mut header = Header::new_ustar();
        header.set_path(path.as_bytes()).unwrap();
        header.set_entry_type(kind);
        header.set_link_name(link.as_bytes()).unwrap();
        header.set_mode(mode).unwrap();
        header.set_uid(0).unwrap();
        header.set_gid(0).unwrap();
        header.set_mtime(1000).unwrap();
        header.set_size(content.len() as u64).unwrap();
        header.set_checksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn dir(self, path: &str) -> Self {
        self.add(path, EntryType::Directory, "", b"", 0o755)
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.add(path, EntryType::Regular, "", content.as_bytes(), 0o644)
    }

    pub fn hard(self, path: &str, target: &str) -> Self {
        self.add(path, EntryType::Link, target, b"", 0o644)
    }

    /// Data that does not compress, different for each seed.
    pub fn noise(self, path: &str, bytes: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut data = Vec::with_capacity(bytes + 8);
        while data.len() < bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend_from_slice(&state.to_le_bytes());
        }
        self.add(path, EntryType::Regular, "", &data[..bytes], 0o644)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A store in a directory of its own.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn open(&self) -> Store {
        self.open_with(Options::default())
    }

    pub fn open_with(&self, options: Options) -> Store {
        open(&self.root(), options).unwrap()
    }

    pub fn list(&self, part: &str) -> Vec<String> {
        list(&self.root().join(part))
    }
}

/// Opens a store as soon as whoever had it before has let go of it.
pub fn open(root: &Path, options: Options) -> Result<Store> {
    let start = Instant::now();
    loop {
        match Store::open(root.to_owned(), options.clone()) {
            Err(crisp_store::Error::Locked(_)) if start.elapsed() < Duration::from_secs(10) => {
                // Those that have it may need this thread.
                tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(5)));
            }
            other => return other,
        }
    }
}

pub fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub async fn pull(store: &Store, name: &str) -> Result<Arc<Image>> {
    let reference = name.parse().unwrap();
    store.pull(PullRequest { reference, credentials: None, platform: None, progress: None }).await
}

/// Waits for something that happens in the background.
pub async fn eventually(what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a shell script in a mount namespace of its own, in `dir`.
pub fn in_namespace(dir: &Path, script: &str) -> String {
    let output = Command::new("unshare").args(["-m", "sh", "-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
