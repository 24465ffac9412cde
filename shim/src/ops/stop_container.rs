//! StopContainer: the stop signal once, then SIGKILL when the time is over; waits for the end.
//!
//! Every call has a deadline of its own and goes on when its client leaves, so a later call with a shorter time kills
//! earlier. The server signals the process itself, by pid and start time: that works without a monitor, too.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crisp_monitor::exit_record::ExitRecord;

use super::Outcome;
use crate::container::{Container, State};
use crate::error::{Error, Kind, Result};
use crate::model::ContainerRecord;
use crate::node::{Node, blocking};
use crate::{cgroup, cgroup::CgroupError, epoch, sys};

/// How long the end may take after SIGKILL: longer means that the kernel does not let go (a dead NFS server, say).
const AFTER_KILL: Duration = Duration::from_secs(60);

/// Stops the container with this id or prefix; one that is not there, or not running, is stopped.
pub async fn stop(node: &Arc<Node>, id: &str, timeout: Duration) -> Outcome {
    let container = match node.registry.container(id) {
        Ok(container) => container,
        Err(Error::NotFound { kind: Kind::Container, .. }) => return Ok(String::new()),
        Err(error) => return Err(Arc::new(error)),
    };
    if container.state() == State::Created {
        // A start may be under way.
        drop(container.verb.lock().await);
        if container.state() == State::Created {
            return Ok(container.id.clone());
        }
    }
    let worker = Arc::clone(node);
    let task = tokio::spawn(async move { stop_now(&worker, &container, timeout).await.map(|()| container.id.clone()) });
    task.await.map_err(|error| Arc::new(Error::Internal(error.to_string())))?.map_err(Arc::new)
}

/// Ends a container in whatever state it is. A time of zero sends no other signal than SIGKILL.
pub async fn stop_now(node: &Arc<Node>, container: &Arc<Container>, timeout: Duration) -> Result<()> {
    let status = container.status();
    if status.exit.is_some() || container.is_stillborn() {
        return Ok(());
    }
    if !timeout.is_zero() && matches!(status.state(), State::Running | State::Unknown) {
        if !container.signalled.swap(true, Ordering::Relaxed)
            && let Some(process) = container.process()
        {
            let signal = container.record().stop_signal;
            sys::signal(process, signal).map_err(|source| Error::Io {
                what: "send the stop signal to",
                path: format!("/proc/{}", process.pid).into(),
                source,
            })?;
        }
        if let Ok(done) = tokio::time::timeout(timeout, gone(node, container)).await {
            return done;
        }
    }
    if container.process().is_none() {
        // The runtime is still at `create`: what it makes can be killed once it is there.
        let patience = node.runtimes.get(&container.record().runtime).map_or(Duration::ZERO, |runtime| runtime.timeout);
        let _ = tokio::time::timeout(patience, container.born()).await;
    }
    let (worker, target) = (Arc::clone(node), Arc::clone(container));
    match blocking(move || kill(&worker, &target)).await {
        // The kernel has not let go of all yet: there is more time below.
        Err(Error::Cgroup(CgroupError::Busy { .. })) => {}
        killed => killed?,
    }
    match tokio::time::timeout(AFTER_KILL, gone(node, container)).await {
        Ok(done) => done,
        Err(_) => Err(Error::Timeout(format!(
            "container {} did not end within {} s after SIGKILL{}",
            container.id,
            AFTER_KILL.as_secs(),
            stuck(container)
        ))),
    }
}

/// Until its exit is known; without a monitor, until its process is gone: then the exit is what nobody saw.
async fn gone(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    let status = container.ended().await;
    if status.exit.is_some() {
        return Ok(());
    }
    while container.process().is_some_and(epoch::is_alive) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let exit = unwitnessed(&container.record());
    let (path, on_disk) = (node.paths.container_exit(&container.id), exit.clone());
    let made = container.record().process.is_some();
    if made {
        blocking(move || on_disk.write(&path, true).map_err(Error::io("write", &path))).await?;
    }
    container.status.send_modify(|status| status.exit = Some(Arc::new(exit)));
    Ok(())
}

/// The exit of a container whose end nobody saw: the node went down, or monitor and process were both killed.
pub fn unwitnessed(record: &ContainerRecord) -> ExitRecord {
    ExitRecord {
        exit_code: 255,
        started_at: record.started_at.unwrap_or(0),
        finished_at: sys::now(),
        reason: "Unknown".to_owned(),
        message: "nobody saw it end: its monitor was gone, or the node was restarted".to_owned(),
        ..ExitRecord::default()
    }
}

/// SIGKILL to the first process and to everything in the cgroup: with the node's or a shared PID namespace the end of the
/// first process ends no other.
pub fn kill(node: &Node, container: &Container) -> Result<()> {
    let record = container.record();
    if let Some(process) = container.process() {
        sys::signal(process, libc::SIGKILL).map_err(|source| Error::Io {
            what: "kill",
            path: format!("/proc/{}", process.pid).into(),
            source,
        })?;
    }
    Ok(cgroup::kill(&node.host.cgroups, &cgroup::OwnCgroup::new(&record.cgroup)?)?)
}

/// Where the kernel holds the process, for people.
fn stuck(container: &Container) -> String {
    let mut text = String::new();
    if let Some(process) = container.process() {
        for file in ["wchan", "stack"] {
            if let Ok(content) = std::fs::read_to_string(format!("/proc/{}/{file}", process.pid)) {
                let _ = write!(text, "; {file} of process {}: {}", process.pid, content.trim().replace('\n', " < "));
            }
        }
    }
    text
}
