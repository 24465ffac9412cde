//! Debian's docker-registry, with and without passwords.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use crisp_store::{
    digest::Digest,
    media,
    registry::{Kind, Registry},
};
use serde_json::json;

use crate::{auth::user, collect, content, linux, options, reference};

/// bcrypt of `secret`, cost 5, for user `crisp`.
const HTPASSWD: &str = include_str!("htpasswd");

/// A registry below a directory that goes with it.
struct Real {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    fn start(passwords: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let root = dir.path().join("data");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            root.display()
        );
        if passwords {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).unwrap();
            config.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()));
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is not installed: apt install docker-registry");
        let real = Self { child, host, _dir: dir };
        for _ in 0..200 {
            if TcpStream::connect(&real.host).is_ok() {
                return real;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("docker-registry does not listen");
    }

    /// One request; the Location of the answer, which is a success.
    fn send(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let auth = STANDARD.encode("crisp:secret");
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {auth}\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.host,
            body.len()
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap_or_default();
        location.trim().replace(&format!("http://{}", self.host), "")
    }

    fn push_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let place = self.send("POST", "/v2/team/app/blobs/uploads/", "application/octet-stream", b"");
        let joint = if place.contains('?') { '&' } else { '?' };
        self.send("PUT", &format!("{place}{joint}digest={digest}"), "application/octet-stream", bytes);
        digest
    }

    /// Pushes `team/app:1`: an index of one image with one layer. The digest of the index.
    fn push(&self, layer: &[u8]) -> Digest {
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": {"mediaType": media::OCI_CONFIG, "digest": self.push_blob(&config), "size": config.len()},
            "layers": [{"mediaType": crate::LAYER, "digest": self.push_blob(layer), "size": layer.len()}],
        })
        .to_string();
        let digest = Digest::sha256(manifest.as_bytes());
        self.send("PUT", &format!("/v2/team/app/manifests/{digest}"), media::OCI_MANIFEST, manifest.as_bytes());
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_INDEX,
            "manifests": [{
                "mediaType": media::OCI_MANIFEST, "digest": digest, "size": manifest.len(),
                "platform": {"os": "linux", "architecture": "amd64"},
            }],
        })
        .to_string();
        self.send("PUT", "/v2/team/app/manifests/1", media::OCI_INDEX, index.as_bytes());
        Digest::sha256(index.as_bytes())
    }
}

#[tokio::test]
async fn an_image_comes_back_as_it_was_pushed() {
    let real = Real::start(false);
    let layer = content(3 << 20);
    let index = real.push(&layer);
    let registry = Registry::new(options()).unwrap();
    let session = registry.session(&reference(&format!("{}/team/app:1", real.host)), None);
    assert_eq!(session.head().await.unwrap(), index);
    let resolved = session.resolve(&linux("amd64")).await.unwrap();
    assert_eq!(resolved.digest, index);
    let config = session.config(&resolved.manifest.config).await.unwrap();
    assert_eq!(media::config_platform(&config).unwrap(), linux("amd64"));
    assert!(collect(session.blob(&resolved.manifest.layers[0])).await.unwrap() == layer);
    for name in ["team/app:2", "team/none:1"] {
        let error = registry.session(&reference(&format!("{}/{name}", real.host)), None).head().await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
}

#[tokio::test]
async fn passwords_open_it() {
    let real = Real::start(true);
    let index = real.push(b"layer");
    let registry = Registry::new(options()).unwrap();
    let image = reference(&format!("{}/team/app:1", real.host));
    let right = registry.session(&image, Some(user("crisp", "secret")));
    assert_eq!(right.head().await.unwrap(), index);
    let resolved = right.resolve(&linux("amd64")).await.unwrap();
    assert_eq!(collect(right.blob(&resolved.manifest.layers[0])).await.unwrap(), b"layer");
    for credentials in [None, Some(user("crisp", "wrong")), Some(user("nobody", "secret"))] {
        let error = registry.session(&image, credentials).head().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
    }
}
