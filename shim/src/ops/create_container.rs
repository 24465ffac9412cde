//! CreateContainer: record → snapshot → bundle → monitor, which runs `runtime create` → record.

use std::sync::Arc;

use super::launch::{self, Plan};
use super::{Outcome, auto_remove, both, holder, remove_container, run_pod_sandbox};
use crate::container::{Container, State, Status};
use crate::error::{Error, Result};
use crate::model::{ContainerConfig, ContainerName, ContainerRecord, NamespaceMode, Process, ResolvedUser};
use crate::monitor::{Birth, Link, Questions, follow};
use crate::node::{Node, blocking};
use crate::sandbox::Sandbox;
use crate::{spec, sys};

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// Full id or prefix.
    pub sandbox: String,
    pub config: ContainerConfig,
}

/// The key of the job that makes the container of this name.
pub fn job_key(sandbox: &str, name: &ContainerName) -> String {
    format!("container {sandbox} {} {}", name.name, name.attempt)
}

/// Makes the container, or gives the one that is in the making. One that was made, never started, and is asked for with
/// another configuration is replaced.
pub async fn create(node: &Arc<Node>, request: Request) -> Outcome {
    let sandbox = node.registry.sandbox(&request.sandbox)?;
    let key = job_key(&sandbox.id, &request.config.name);
    node.jobs.settled(&run_pod_sandbox::undo_key(&key)).await;
    let worker = Arc::clone(node);
    node.jobs.join(key, async move { make(&worker, &sandbox, request.config).await }).await
}

async fn make(node: &Arc<Node>, sandbox: &Arc<Sandbox>, config: ContainerConfig) -> Result<String> {
    let _gate = sandbox.gate.read().await;
    if !sandbox.is_ready(node) {
        return Err(Error::Precondition(format!("pod sandbox {} is not ready: make a new one", sandbox.id)));
    }
    if let Some(there) = node.registry.container_named(&sandbox.id, &config.name) {
        match there.state() {
            State::Created if there.record().config == config => return Ok(there.id.clone()),
            State::Created => remove_container::take_away(node, &there).await?,
            State::Running | State::Exited | State::Unknown => {
                return Err(Error::AlreadyExists(format!(
                    "container {} of pod sandbox {} has the name {:?} (attempt {}): remove it, or ask with the next attempt",
                    there.id, sandbox.id, config.name.name, config.name.attempt
                )));
            }
        }
    }
    node.host.cgroups.expect_move();
    let sandbox_record = sandbox.record();
    let runtime = node.runtimes.get(&sandbox_record.runtime_handler)?.clone();
    let image = match node.store.find(&config.image) {
        Err(error) if crate::cri::is_unknown_image(&error) => return Err(Error::NoImage { image: config.image }),
        found => found?,
    };
    // Refuses what does not fit the sandbox, before the first effect.
    let pid_mode = spec::shared(&sandbox_record.config, &config)?.pid;
    let pid_owner = pid_owner(node, sandbox, pid_mode, &config.security.namespaces.target).await?;
    let log_path = launch::log_path(&sandbox_record.config.log_directory, &config.log_path)?;
    let id = sys::new_id().map_err(Error::io("read", std::path::Path::new("/dev/urandom")))?;
    let record = ContainerRecord {
        cgroup: launch::cgroup(node, &sandbox_record, &id)?,
        sandbox_id: sandbox.id.clone(),
        image_id: image.id.to_string(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        runtime: runtime.name.clone(),
        log_path,
        user: ResolvedUser::default(),
        stop_signal: launch::stop_signal(&config, &image.config.stop_signal)?,
        image_mounts: Default::default(),
        image_volumes: Vec::new(),
        created_at: sys::now(),
        epoch: node.epoch.clone(),
        process: None,
        started_at: None,
        start_error: None,
        config,
        id: id.clone(),
    };
    tracing::debug!(id, sandbox = sandbox.id, name = record.config.name.name, "making a container");
    let plan = Plan { sandbox: sandbox_record, record, image, runtime, pid_owner };
    let (link, questions) = Link::new();
    let container = Container::new(plan.record.clone(), Status::default(), link);
    match build(node, &container, plan, questions).await {
        Ok(()) => {
            node.registry.add_container(Arc::clone(&container));
            auto_remove::when_ended(node, &container);
            Ok(id)
        }
        Err(Error::Runtime { text, .. }) if is_about_the_program(&text) => {
            stillborn(node, &container, text).await?;
            Ok(id)
        }
        Err(error) => {
            let undone = remove_container::take_away(node, &container).await;
            if undone.is_err() {
                node.registry.add_container(container);
            }
            Err(both(error, undone))
        }
    }
}

/// Whether the runtime's words are about the program to run, which it looks up in `create` already. For kubelet that is a
/// failure of the start, which ends the container; a failed creation it would try again for ever.
fn is_about_the_program(text: &str) -> bool {
    ["exec: \"", "executable file"].iter().any(|words| text.contains(words))
}

/// Lists a container that StartContainer will say the reason of. Its monitor has ended, what was made for it stays until
/// it is removed.
async fn stillborn(node: &Arc<Node>, failed: &Arc<Container>, reason: String) -> Result<()> {
    failed.over().await;
    let mut record = ContainerRecord::clone(&failed.record());
    record.start_error = Some(reason);
    let status = Status { over: true, ..Status::default() };
    let container = Container::new(record, status, Link::new().0);
    if let Err(error) = container.update(node, |_| {}).await {
        return Err(both(error, remove_container::take_away(node, failed).await));
    }
    node.registry.add_container(container);
    Ok(())
}

/// Whose PID namespace the container joins.
async fn pid_owner(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    mode: NamespaceMode,
    target: &str,
) -> Result<Option<Process>> {
    match mode {
        NamespaceMode::Pod => holder::ensure(node, sandbox).await.map(Some),
        NamespaceMode::Target => target_process(node, &sandbox.id, target).map(Some),
        NamespaceMode::Container | NamespaceMode::Node => Ok(None),
    }
}

/// The process of the container that is targeted: of the same sandbox, and running.
pub fn target_process(node: &Node, sandbox: &str, target: &str) -> Result<Process> {
    let container = node.registry.container(target)?;
    let status = container.status();
    match status.process {
        _ if container.record().sandbox_id != sandbox => {
            Err(Error::Invalid(format!("target container {} is not in pod sandbox {sandbox}", container.id)))
        }
        Some(process) if status.state() == State::Running => Ok(process),
        _ => Err(Error::Precondition(format!("target container {} is not running", container.id))),
    }
}

async fn build(node: &Arc<Node>, container: &Arc<Container>, plan: Plan, questions: Questions) -> Result<()> {
    let worker = Arc::clone(node);
    let started = blocking(move || {
        let Plan { record, .. } = &plan;
        // The intent; the rest of the record is known once the image has been looked into.
        worker.disk.make_dir(&worker.paths.container(&record.id), 0o700)?;
        worker.disk.write_volatile(&worker.paths.container_record(&record.id), record)?;
        let (launch, record) = launch::prepare(&worker, plan)?;
        let child = crisp_monitor::spawn::container(std::os::fd::AsFd::as_fd(&worker.monitor), &launch)
            .map_err(|source| Error::Spawn { id: record.id.clone(), source })?;
        Ok((child, record, launch.dir))
    })
    .await;
    let (child, record, dir) = match started {
        Ok(started) => started,
        Err(error) => {
            container.never_was();
            return Err(error);
        }
    };
    let runtime = record.runtime.clone();
    let (tell, born) = tokio::sync::oneshot::channel();
    let status = container.status.clone();
    tokio::spawn(async move { follow(&dir, Some(child), questions, status, Some(tell)).await });
    let failed = |text: String| Error::Runtime { runtime, verb: "create", id: container.id.clone(), text };
    match born.await {
        Ok(Birth::Created(process)) => {
            container
                .update(node, |on_disk| {
                    *on_disk = record;
                    on_disk.process = Some(process);
                })
                .await
        }
        Ok(Birth::Failed(text)) => Err(failed(text)),
        Err(_) => {
            let exit = container.ended().await.exit;
            Err(match exit {
                Some(exit) => failed(exit.message.clone()),
                None => Error::MonitorLost { id: container.id.clone() },
            })
        }
    }
}
