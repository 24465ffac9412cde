//! A registry in this process that does as it is told: right, late, short, or wrong.

use crate::{
    fail::Res,
    push::{Layer, MANIFEST, config_json, digest, manifest_json},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Send only this much, then close.
    pub(crate) cut: Option<usize>,
    /// Send half, then nothing, with the connection open.
    pub(crate) stall: bool,
}

impl Reply {
    /// 200 with this type and body.
    pub(crate) fn ok(media: &str, body: &[u8]) -> Self {
        Self {
            status: 200,
            headers: vec![("Content-Type".into(), media.into())],
            body: body.into(),
            cut: None,
            stall: false,
        }
    }

    /// An error of the distribution API.
    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"told to\"}}]}}");
        Self { status, ..Self::ok("application/json", body.as_bytes()) }
    }

    /// With a header more.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// One request, as far as answers depend on it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

type Answer = dyn Fn(&Ask) -> Reply + Send + Sync;

/// A server that answers until it is dropped.
#[derive(Debug)]
pub(crate) struct Hostile {
    /// `127.0.0.1:PORT`
    pub(crate) host: String,
    asked: Arc<Mutex<Vec<Ask>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Hostile {
    /// Starts one that answers by `answer`.
    pub(crate) async fn start(answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Res<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let answer: Arc<Answer> = Arc::new(answer);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let task = tokio::spawn(async move {
            // The set goes with this task, and with it every connection that still hangs.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                open.spawn(serve(socket, answer.clone(), log.clone()));
            }
        });
        Ok(Self { host, asked, task })
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Ask> {
        self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut socket: TcpStream, answer: Arc<Answer>, log: Arc<Mutex<Vec<Ask>>>) {
    let mut head = Vec::new();
    let mut byte = [0u8];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 65_536 {
        match socket.read(&mut byte).await {
            // A TLS handshake where HTTP is spoken: answered in plain HTTP, as servers do; clients may fall back on it.
            Ok(1) if head.is_empty() && byte[0] == 0x16 => {
                let _ = socket.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
                return;
            }
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let ask = Ask {
        method: first.next().unwrap_or_default().into(),
        path: first.next().unwrap_or_default().into(),
        headers: lines
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.to_lowercase(), v.trim().to_owned()))
            .collect(),
    };
    let reply = answer(&ask);
    let head_only = ask.method == "HEAD";
    log.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(ask);
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(k, _)| k.eq_ignore_ascii_case("content-length")) {
        text += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (k, v) in &reply.headers {
        text += &format!("{k}: {v}\r\n");
    }
    text += "\r\n";
    let _ = socket.write_all(text.as_bytes()).await;
    if head_only {
        return;
    }
    let end = reply.cut.unwrap_or(if reply.stall { reply.body.len() / 2 } else { reply.body.len() });
    let _ = socket.write_all(&reply.body[..end.min(reply.body.len())]).await;
    if reply.stall {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let _ = socket.shutdown().await;
}

/// An image in memory that a hostile registry hands out.
#[derive(Clone, Debug)]
pub(crate) struct Wares {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Wares {
    /// An honest image.
    pub(crate) fn new(layers: Vec<Layer>, config: &Value) -> Self {
        let config = config_json(&layers, config);
        let manifest = manifest_json(&layers, &config);
        Self { layers, config, manifest }
    }

    /// The honest answer.
    pub(crate) fn answer(&self, ask: &Ask) -> Reply {
        // A store behind signed URLs looks at the path; the query is the signature.
        let path = ask.path.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        if ask.path == "/v2/" {
            return Reply::ok("application/json", b"{}");
        }
        if ask.path.contains("/manifests/") {
            return Reply::ok(MANIFEST, &self.manifest).with("Docker-Content-Digest", &digest(&self.manifest));
        }
        let blobs = self.layers.iter().map(|l| &l.blob[..]).chain([&self.config[..]]);
        blobs
            .into_iter()
            .find(|b| digest(b) == last)
            .map_or_else(|| Reply::error(404, "BLOB_UNKNOWN"), |b| Reply::ok("application/octet-stream", b))
    }
}
