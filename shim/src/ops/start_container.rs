//! StartContainer: the monitor runs `runtime start`. A failed start ends the container (CRI: EXITED, StartError).

use std::sync::Arc;

use crisp_monitor::exit_record::ExitRecord;
use crisp_monitor::protocol::Request;

use super::{Outcome, create_container, stop_container};
use crate::container::{Container, State};
use crate::error::{Error, Result};
use crate::model::NamespaceMode;
use crate::node::{Node, blocking};
use crate::sys;

/// Starts the container with this id or prefix.
pub async fn start(node: &Arc<Node>, id: &str) -> Outcome {
    let container = node.registry.container(id)?;
    let (worker, key) = (Arc::clone(node), format!("start {}", container.id));
    node.jobs.join(key, async move { launch(&worker, &container).await.map(|()| container.id.clone()) }).await
}

async fn launch(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    let _verb = container.verb.lock().await;
    let record = container.record();
    match container.state() {
        State::Created => {}
        // A retry of a call whose answer was lost.
        State::Running => return Ok(()),
        State::Exited | State::Unknown => {
            return Err(Error::Precondition(format!("container {} has run already: make a new one", container.id)));
        }
    }
    if let (true, Some(reason)) = (container.is_stillborn(), &record.start_error) {
        let exit = ExitRecord { exit_code: 128, finished_at: sys::now(), ..ExitRecord::default() };
        let (path, on_disk) = (node.paths.container_exit(&container.id), exit.clone());
        blocking(move || on_disk.write(&path, true).map_err(Error::io("write", &path))).await?;
        container.status.send_modify(|status| status.exit = Some(Arc::new(exit)));
        return Err(Error::Runtime {
            runtime: record.runtime.clone(),
            verb: "start",
            id: container.id.clone(),
            text: reason.clone(),
        });
    }
    let sandbox = node.registry.sandbox(&record.sandbox_id)?;
    if !sandbox.is_ready(node) {
        return Err(Error::Precondition(format!("pod sandbox {} is not ready", sandbox.id)));
    }
    let namespaces = &record.config.security.namespaces;
    if namespaces.pid == NamespaceMode::Target {
        create_container::target_process(node, &sandbox.id, &namespaces.target)?;
    }
    let started = container.link.ask(&container.id, &record.runtime, "start", Request::Start).await;
    if let Err(error) = &started {
        let text = error.chain();
        // The exit record says it too, so a disk that is full now is not the end of it.
        note(container.update(node, |record| record.start_error = Some(text)).await, &container.id);
        let (worker, target) = (Arc::clone(node), Arc::clone(container));
        note(blocking(move || stop_container::kill(&worker, &target)).await, &container.id);
    } else {
        // The monitor's word comes on the same connection before its answer. For the server after us.
        let at = container.status().started_at.unwrap_or_else(sys::now);
        note(container.update(node, |record| record.started_at = Some(at)).await, &container.id);
    }
    started
}

/// What fails beside a start that went well, or badly, does not change how it went.
fn note(result: Result<()>, id: &str) {
    if let Err(error) = result {
        tracing::warn!(id, error = error.chain(), "after the start of a container");
    }
}
