//! `crisp run -d --rm`: the pod goes when its container has ended, by whichever server lives then.

use std::sync::Arc;

use super::remove_pod_sandbox;
use crate::api;
use crate::container::Container;
use crate::node::Node;

/// Removes the container's pod when the container has ended, if `crisp run` asked for that. Whoever lists a container calls
/// it once: the container is made, or found by recovery.
pub fn when_ended(node: &Arc<Node>, container: &Arc<Container>) {
    let record = container.record();
    let of_cli = |id: &str| node.registry.sandbox(id).is_ok_and(|sandbox| sandbox.record().origin == api::ORIGIN);
    if !record.config.labels.contains_key(api::REMOVE_LABEL) || !of_cli(&record.sandbox_id) {
        return;
    }
    let (node, container) = (Arc::clone(node), Arc::clone(container));
    tokio::spawn(async move {
        container.over().await;
        let id = &container.record().sandbox_id;
        if let Err(error) = remove_pod_sandbox::remove(&node, id).await {
            tracing::warn!(id, error = error.chain(), "a pod could not be removed when its container had ended");
        }
    });
}
