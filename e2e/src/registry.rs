//! Debian's docker-registry on a loopback port, its storage in the cache or a temporary directory.

use crate::{
    fail::{Fail, Res, wrong},
    sh,
};
use std::{fs, net::TcpListener, path::Path, time::Duration};
use tokio::process::{Child, Command};

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    /// `127.0.0.1:PORT`
    pub(crate) host: String,
    _child: Child,
}

impl Registry {
    /// Starts one with its blobs in `storage`; `dir` takes its configuration and log.
    pub(crate) async fn start(storage: &Path, dir: &Path) -> Res<Self> {
        fs::create_dir_all(storage)?;
        fs::create_dir_all(dir)?;
        let host = format!("127.0.0.1:{}", free_port()?);
        let config = dir.join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: \"{host}\"}}\n",
                storage.display()
            ),
        )?;
        let log = fs::File::create(dir.join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Fail::Wrong(format!("docker-registry (Debian package of that name): {e}")))?;
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(&host).await.is_ok() {
                return Ok(Self { host, _child: child });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = sh::cmd("tail", &["-n", "5", &dir.join("registry.log").to_string_lossy()], 5).await?;
        wrong(format!("docker-registry does not answer on {host}: {log}"))
    }
}

/// A TCP port on loopback that nobody listens on now.
pub(crate) fn free_port() -> Res<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
