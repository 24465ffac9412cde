//! ReopenContainerLog: the monitor opens the log anew by its path, after kubelet has moved it away.

use std::sync::Arc;

use crisp_monitor::protocol::Request;

use crate::container::State;
use crate::error::{Error, Result};
use crate::node::Node;

/// Reopens the log of the running container with this id or prefix.
pub async fn reopen(node: &Arc<Node>, id: &str) -> Result<()> {
    let container = node.registry.container(id)?;
    if container.state() != State::Running {
        return Err(Error::Precondition(format!(
            "container {} is not running, so nothing writes its log",
            container.id
        )));
    }
    container.link.ask(&container.id, &container.record().runtime, "reopen the log", Request::ReopenLog).await
}
