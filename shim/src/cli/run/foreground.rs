//! A container in the foreground: its output as it comes, Ctrl-C handed on, its exit code.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use crisp_cri_proto::v1;
use tokio::sync::mpsc;

use super::Started;
use crate::cli::client::Client;
use crate::cli::error::{self, CliError, INTERRUPTED, Result};
use crate::cli::interrupts::Interrupts;
use crate::cli::log::{self, Show};
use crate::cli::{exec, logs, rm, stop};

/// How long a container may take to end after Ctrl-C before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Likewise, when nobody reads its output any more: somebody waits for the prompt.
const UNSEEN: Duration = Duration::from_secs(2);
/// Exit code of a process that was killed.
const KILLED: u8 = 137;

/// Shows the container until it ends; then the pod is stopped, or removed.
pub async fn follow(client: &mut Client, started: &Started, remove: bool, interrupts: Interrupts) -> Result<ExitCode> {
    let shown = match show(client, started, interrupts).await {
        Err(given_up) if given_up.code == INTERRUPTED => return Err(given_up),
        shown => shown,
    };
    if shown.is_err() {
        // Nobody sees its output any more: that it runs on, unseen, is what -d is for.
        stop::container_of(client, &started.container, UNSEEN).await?;
    }
    let request = v1::ContainerStatusRequest { container_id: started.container.clone(), verbose: false };
    let status = match client.runtime.container_status(request).await {
        Ok(answer) => answer.into_inner().status.unwrap_or_default(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            return Err(CliError::new(format!("{} was removed while it ran", started.name)).code(KILLED));
        }
        Err(status) => return Err(status.into()),
    };
    if remove {
        rm::remove_pod(client, &started.pod).await?;
    } else {
        // The address and the host ports are free again; logs and exit code stay.
        stop::pod_of(client, &started.pod, &[], Duration::ZERO).await?;
    }
    shown?;
    if status.reason == "OOMKilled" {
        eprintln!("error: {} was killed: it used more memory than its limit", started.name);
    }
    Ok(exec::exit(status.exit_code))
}

async fn show(client: &mut Client, started: &Started, mut interrupts: Interrupts) -> Result {
    let request = v1::ContainerStatusRequest { container_id: started.container.clone(), verbose: false };
    let status = client.runtime.container_status(request).await?.into_inner().status.unwrap_or_default();
    let log = logs::open(&status.log_path, Show::default())?;
    let (mut waiter, id) = (client.clone(), started.container.clone());
    let ended = async move { logs::wait(&mut waiter, &id).await };
    // On a thread of its own: while a write waits for a reader, Ctrl-C is still heard.
    let mut shown = tokio::spawn(log::follow(log, ended));
    let (failed, mut failures) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            done = &mut shown => {
                return match done {
                    Ok(done) => done.map_err(error::output),
                    Err(_) => Err(CliError::new("showing the output ended badly")),
                };
            }
            number = interrupts.next() => match number {
                1 | 2 => end(client, started, number, failed.clone()),
                _ => return Err(given_up(started, "it was not stopped in time".to_owned())),
            },
            Some(error) = failures.recv() => {
                if error.is_lost_server() {
                    return Err(given_up(started, error.message));
                }
                error.report();
            }
        }
    }
}

/// Nobody waits any longer for a container that could not be stopped.
fn given_up(started: &Started, why: String) -> CliError {
    let hint = format!("{0} may run on: \"crisp rm --force {0}\" ends and removes it", started.name);
    CliError::new(why).hint(hint).code(INTERRUPTED)
}

/// Stops it the first time, kills it the second. The end is seen by the one who waits for it.
fn end(client: &Client, started: &Started, number: u32, failed: mpsc::UnboundedSender<CliError>) {
    let time = if number == 1 { PATIENCE } else { Duration::ZERO };
    if number == 1 && io::stderr().is_terminal() {
        eprintln!("\nstopping {}; Ctrl-C again kills it", started.name);
    }
    let (mut client, id) = (client.clone(), started.container.clone());
    tokio::spawn(async move {
        if let Err(error) = stop::container_of(&mut client, &id, time).await {
            let _ = failed.send(error);
        }
    });
}
