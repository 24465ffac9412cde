//! StopPodSandbox: containers → holder → network → namespaces → record. Twice is no error, nor is anything that is gone.

use std::sync::Arc;
use std::time::Duration;

use super::{Outcome, holder, run_pod_sandbox, stop_container};
use crate::error::{Error, Kind, Result};
use crate::model::SandboxRecord;
use crate::node::{Node, blocking};
use crate::sandbox::Sandbox;
use crate::sys;

/// Stops the sandbox with this id or prefix; one that is not there is stopped.
pub async fn stop(node: &Arc<Node>, id: &str) -> Outcome {
    let sandbox = match node.registry.sandbox(id) {
        Ok(sandbox) => sandbox,
        Err(Error::NotFound { kind: Kind::Sandbox, .. }) => return Ok(String::new()),
        Err(error) => return Err(Arc::new(error)),
    };
    let (worker, key) = (Arc::clone(node), format!("stop sandbox {}", sandbox.id));
    let work = async move {
        let _gate = sandbox.gate.write().await;
        halt(&worker, &sandbox).await?;
        Ok(sandbox.id.clone())
    };
    node.jobs.join(key, work).await
}

/// Ends everything that runs in the sandbox, and its network. The caller holds the gate, or the sandbox is not listed.
pub async fn halt(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let containers = node.registry.containers_of(&sandbox.id);
    let mut stops = tokio::task::JoinSet::new();
    for container in containers {
        let node = Arc::clone(node);
        stops.spawn(async move { stop_container::stop_now(&node, &container, Duration::ZERO).await });
    }
    while let Some(stopped) = stops.join_next().await {
        stopped.map_err(|error| Error::Internal(error.to_string()))??;
    }
    holder::stop(node, sandbox).await?;
    let record = sandbox.record();
    let worker = Arc::clone(node);
    let network = sandbox.has_network();
    blocking(move || {
        let id = record.id.as_str();
        if network {
            run_pod_sandbox::with_pod(&worker, &record, |pod| worker.network.detach(pod, record.attachment.as_ref()))
                .map_err(Error::network(id))?;
        }
        worker.pins.remove(id).map_err(Error::pins(id))
    })
    .await?;
    if sandbox.record().stopped_at.is_none() {
        let stopped = |record: &mut SandboxRecord| {
            record.stopped_at = Some(sys::now());
            record.attachment = None;
        };
        sandbox.update(node, stopped).await?;
    }
    Ok(())
}
