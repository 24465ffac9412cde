//! RemovePodSandbox: its containers, all that stopping ends, its files, its cgroup, and last its record.

use std::sync::Arc;

use super::{Outcome, pod_files, remove_container, stop_pod_sandbox};
use crate::cgroup;
use crate::error::{Error, Kind, Result};
use crate::node::{Node, blocking, remove_dir};
use crate::sandbox::Sandbox;

/// Removes the sandbox with this id or prefix; one that is not there is removed.
pub async fn remove(node: &Arc<Node>, id: &str) -> Outcome {
    let sandbox = match node.registry.sandbox(id) {
        Ok(sandbox) => sandbox,
        Err(Error::NotFound { kind: Kind::Sandbox, .. }) => return Ok(String::new()),
        Err(error) => return Err(Arc::new(error)),
    };
    let (worker, key) = (Arc::clone(node), format!("remove sandbox {}", sandbox.id));
    let work = async move {
        let _gate = sandbox.gate.write().await;
        take_apart(&worker, &sandbox).await?;
        worker.registry.remove_sandbox(&sandbox.id);
        Ok(sandbox.id.clone())
    };
    node.jobs.join(key, work).await
}

/// Takes everything away that the sandbox is made of, in an order that leaves the record for last: cut short anywhere, the
/// next try, or recovery, finishes it. Also undoes a sandbox that was not made to the end.
pub async fn take_apart(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    for container in node.registry.containers_of(&sandbox.id) {
        remove_container::take_away(node, &container).await?;
    }
    stop_pod_sandbox::halt(node, sandbox).await?;
    let (worker, record) = (Arc::clone(node), sandbox.record());
    blocking(move || {
        let id = record.id.as_str();
        pod_files::remove(&worker.paths.pod(id))?;
        if record.config.cgroup_parent.is_empty() {
            let own = cgroup::pod_path("", &worker.instance, id)?;
            cgroup::remove(&worker.host.cgroups, &cgroup::OwnCgroup::new(&own)?)?;
        }
        if let Some(logs) = crate::api::log_directory(&worker.paths.logs(), &record) {
            remove_dir(&logs)?;
        }
        remove_dir(&worker.paths.sandbox(id))
    })
    .await
}
