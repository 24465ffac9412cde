//! RemoveContainer: ends it, then takes away all that create made, the record last.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::{Outcome, launch, stop_container};
use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::model::{ContainerRecord, MountSource};
use crate::node::{Node, blocking, remove_dir};
use crate::{cgroup, runtimes};

/// How long the monitor may take for `runtime delete` once the container has ended.
const DELETE: Duration = Duration::from_secs(30);

/// Removes the container with this id or prefix; one that is not there is removed.
pub async fn remove(node: &Arc<Node>, id: &str) -> Outcome {
    let container = match node.registry.container(id) {
        Ok(container) => container,
        Err(Error::NotFound { kind: Kind::Container, .. }) => return Ok(String::new()),
        Err(error) => return Err(Arc::new(error)),
    };
    let (worker, key) = (Arc::clone(node), format!("remove {}", container.id));
    node.jobs.join(key, async move { take_away(&worker, &container).await.map(|()| container.id.clone()) }).await
}

/// Ends and removes a container, also one that was not made to the end.
pub async fn take_away(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    let _verb = container.verb.lock().await;
    stop_container::stop_now(node, container, Duration::ZERO).await?;
    // The monitor runs `runtime delete`; where it could not, or is gone, we do.
    let over = tokio::time::timeout(DELETE, container.over()).await;
    let clean = over.is_ok_and(|status| !status.lost);
    let (worker, record) = (Arc::clone(node), container.record());
    blocking(move || {
        if !clean {
            delete_by_hand(&worker, &record.id, &record.runtime);
        }
        take_apart(&worker, &record)
    })
    .await?;
    node.registry.remove_container(&container.id);
    Ok(())
}

/// Everything on disk and in the kernel that bears the container's id; in this order a crash leaves the record for last.
pub fn take_apart(node: &Node, record: &ContainerRecord) -> Result<()> {
    let id = record.id.as_str();
    let own = cgroup::OwnCgroup::new(&record.cgroup)?;
    // Where the PID namespace is shared, some may live on that the runtime did not reach.
    cgroup::kill(&node.host.cgroups, &own)?;
    cgroup::remove(&node.host.cgroups, &own)?;
    remove_dir(&node.paths.runtime_root(&record.runtime).join(id))?;
    let views = record.config.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. }));
    for number in 0..views.count() {
        node.store.remove_snapshot(&launch::view_id(id, number))?;
    }
    node.store.remove_snapshot(id)?;
    remove_dir(&node.paths.volumes(id))?;
    remove_dir(&node.paths.container_dir(id))?;
    remove_dir(&node.paths.container(id))
}

/// What a monitor that is gone left to do. A runtime that fails here has nothing left to forget, or what it has goes with
/// its state directory and the cgroup.
pub fn delete_by_hand(node: &Node, id: &str, handler: &str) {
    let Ok(runtime) = node.runtimes.get(handler) else { return };
    let mut command = Command::new(&runtime.path);
    command.arg("--root").arg(&runtime.call.root).args(["delete", "--force", id]);
    if runtimes::run(&mut command, runtime.timeout).is_none() {
        tracing::warn!(id, runtime = handler, "the runtime could not delete a container");
    }
}
