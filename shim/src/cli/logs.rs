//! `crisp logs`: read from the log file itself; what a person sees does not wait for the server.

use std::io;
use std::path::Path;

use crisp_cri_proto::v1;

use super::args::Logs;
use super::client::Client;
use super::error::{self, CliError, Result};
use super::log::{Log, Show, follow};
use super::world::fetch;

/// Shows a container's output.
pub async fn logs(client: &mut Client, args: Logs) -> Result {
    let Logs { name, follow: go_on, tail, since, timestamps } = args;
    let world = fetch(client).await?;
    let id = world.container(&name)?.id.clone();
    let request = v1::ContainerStatusRequest { container_id: id.clone(), verbose: false };
    let status = client.runtime.container_status(request).await?.into_inner().status.unwrap_or_default();
    if status.log_path.is_empty() {
        return Err(CliError::new(format!("container {name} was made without a log")));
    }
    let log = open(&status.log_path, Show { tail, since, timestamps })?;
    let mut client = client.clone();
    let ended = async move {
        if go_on {
            wait(&mut client, &id).await;
        }
    };
    // On a thread of its own: a write that nobody reads is waited for there.
    match tokio::spawn(follow(log, ended)).await {
        Ok(done) => done.map_err(error::output),
        Err(_) => Err(CliError::new("showing the log ended badly")),
    }
}

/// Opens a container's log.
pub fn open(path: &str, show: Show) -> Result<Log> {
    Log::open(Path::new(path), show).map_err(|error| {
        let text = CliError::new(format!("read the log {path}: {error}"));
        match error.kind() {
            io::ErrorKind::PermissionDenied => text.hint("logs are for root: try again with sudo"),
            _ => text,
        }
    })
}

/// Waits until a container has ended, or is not there any more; also over a restart of the server.
pub async fn wait(client: &mut Client, id: &str) {
    const AGAIN: std::time::Duration = std::time::Duration::from_millis(300);
    loop {
        let request = crate::api::v1::WaitRequest { container_id: id.to_owned() };
        match client.crisp.wait(request).await.map_err(CliError::from) {
            Err(error) if error.is_lost_server() => tokio::time::sleep(AGAIN).await,
            _ => return,
        }
    }
}
