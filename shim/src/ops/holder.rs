//! The holder of a pod's PID namespace: the one process that crisp itself runs in a pod, and only where containers share
//! one PID namespace.
//!
//! A container like others to its monitor and to the runtime, but with a root file system that holds nothing but the static
//! monitor (role `pause`), and without a record: whatever is found under its id belongs to the sandbox.

use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crisp_monitor::launch::{Launch, Pins};
use crisp_monitor::protocol::Request;
use crisp_netns::pin::layout;

use super::{launch, remove_container};
use crate::container::{Container, State, Status};
use crate::error::{Error, Result};
use crate::model::{
    ContainerConfig, ContainerName, ContainerRecord, NamespaceMode, Process, ResolvedUser, Resources, SandboxRecord,
    Security,
};
use crate::monitor::{Birth, Link, Questions, follow};
use crate::node::{Node, blocking, make_dir};
use crate::sandbox::Sandbox;
use crate::spec::{self, BundlePaths, pause};

/// Ends the holder's id, after its sandbox's: no container's id is longer than 64 digits.
const SUFFIX: &str = "-holder";

/// The holder's id.
pub fn id(sandbox: &str) -> String {
    format!("{sandbox}{SUFFIX}")
}

/// The sandbox of a holder's id.
pub fn sandbox_of(id: &str) -> Option<&str> {
    id.strip_suffix(SUFFIX)
}

/// The holder's process, started if there is none yet. One that has died is not replaced: its pod is not ready any more.
pub async fn ensure(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<Process> {
    let mut holder = sandbox.holder.lock().await;
    if let Some(holder) = &*holder {
        // After a restart its monitor may not have spoken yet.
        let status = holder.born().await;
        return match (status.process, status.state()) {
            (Some(process), State::Running) => Ok(process),
            // The server before this one was killed between the two.
            (Some(process), State::Created) => {
                holder.link.ask(&holder.id, &holder.record().runtime, "start", Request::Start).await?;
                Ok(process)
            }
            _ => {
                sandbox.lose_holder();
                Err(Error::Precondition(format!("the PID namespace of pod sandbox {} is gone", sandbox.id)))
            }
        };
    }
    let (container, questions) = new(node, &sandbox.record())?;
    match start(node, sandbox, &container, questions).await {
        Ok(process) => {
            watch(sandbox, &container);
            *holder = Some(container);
            Ok(process)
        }
        Err(error) => {
            let undone = remove_container::take_away(node, &container).await;
            if undone.is_err() {
                *holder = Some(container);
                sandbox.lose_holder();
            }
            Err(super::both(error, undone))
        }
    }
}

/// Ends it, if there is one.
pub async fn stop(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let mut holder = sandbox.holder.lock().await;
    if let Some(there) = &*holder {
        remove_container::take_away(node, there).await?;
        *holder = None;
    }
    Ok(())
}

/// Takes over a holder that a server before this one has started.
pub async fn adopt(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<Option<Arc<Container>>> {
    let dir = node.paths.container_dir(&id(&sandbox.id));
    if !dir.exists() {
        return Ok(None);
    }
    let (container, questions) = new(node, &sandbox.record())?;
    let status = container.status.clone();
    tokio::spawn(async move { follow(&dir, None, questions, status, None).await });
    watch(sandbox, &container);
    *sandbox.holder.lock().await = Some(Arc::clone(&container));
    Ok(Some(container))
}

fn watch(sandbox: &Arc<Sandbox>, holder: &Arc<Container>) {
    let (sandbox, holder) = (Arc::downgrade(sandbox), Arc::clone(holder));
    tokio::spawn(async move {
        holder.ended().await;
        if let Some(sandbox) = sandbox.upgrade() {
            sandbox.lose_holder();
        }
    });
}

fn new(node: &Node, sandbox: &SandboxRecord) -> Result<(Arc<Container>, Questions)> {
    let id = id(&sandbox.id);
    let runtime = match sandbox.runtime_handler.as_str() {
        "" => node.runtimes.default_name(),
        handler => handler,
    };
    let record = ContainerRecord {
        cgroup: launch::cgroup(node, sandbox, &id)?,
        sandbox_id: sandbox.id.clone(),
        config: ContainerConfig {
            name: ContainerName { name: String::new(), attempt: 0 },
            user_image: String::new(),
            image: String::new(),
            command: Vec::new(),
            args: Vec::new(),
            working_dir: String::new(),
            envs: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: String::new(),
            stdin: false,
            stdin_once: false,
            tty: false,
            stop_signal: None,
            resources: Resources::default(),
            security: Security::default(),
        },
        image_id: String::new(),
        image_ref: String::new(),
        runtime: runtime.to_owned(),
        log_path: String::new(),
        user: ResolvedUser::default(),
        stop_signal: libc::SIGKILL,
        image_mounts: Default::default(),
        image_volumes: Vec::new(),
        created_at: sandbox.created_at,
        epoch: sandbox.epoch.clone(),
        process: None,
        started_at: None,
        start_error: None,
        id,
    };
    let (link, questions) = Link::new();
    Ok((Container::new(record, Status::default(), link), questions))
}

async fn start(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    questions: Questions,
) -> Result<Process> {
    let (worker, pod, record) = (Arc::clone(node), sandbox.record(), container.record());
    let dir = node.paths.container_dir(&container.id);
    let run_dir = dir.clone();
    let started = blocking(move || {
        let launch = prepare(&worker, &pod, &record, &run_dir)?;
        crisp_monitor::spawn::container(worker.monitor.as_fd(), &launch)
            .map_err(|source| Error::Spawn { id: record.id.clone(), source })
    })
    .await;
    let child = started.inspect_err(|_| container.never_was())?;
    let (tell, born) = tokio::sync::oneshot::channel();
    let status = container.status.clone();
    tokio::spawn(async move { follow(&dir, Some(child), questions, status, Some(tell)).await });
    let runtime = container.record().runtime.clone();
    match born.await {
        Ok(Birth::Created(process)) => {
            container.link.ask(&container.id, &runtime, "start", Request::Start).await?;
            Ok(process)
        }
        Ok(Birth::Failed(text)) => Err(Error::Runtime { runtime, verb: "create", id: container.id.clone(), text }),
        Err(_) => Err(Error::MonitorLost { id: container.id.clone() }),
    }
}

fn prepare(node: &Node, sandbox: &SandboxRecord, record: &ContainerRecord, dir: &Path) -> Result<Launch> {
    let runtime = node.runtimes.get(&record.runtime)?;
    let rootfs = rootfs(node)?;
    let bundle = dir.join("bundle");
    make_dir(dir)?;
    make_dir(&bundle)?;
    let shared = spec::shared(&sandbox.config, &record.config)?;
    let shared = spec::Shared { pid: NamespaceMode::Container, ..shared };
    let paths = BundlePaths::new(&bundle, &node.paths.pod(&sandbox.id), &node.pins.net_path(&sandbox.id));
    let spec = pause::build(&pause::Holder {
        rootfs: &rootfs,
        args: &["/crisp-monitor", "pause"],
        shared: &shared,
        paths: &paths,
        cgroup: &record.cgroup,
        host: &node.host,
        features: &runtime.features,
    })?;
    let json = serde_json::to_vec(&spec).map_err(|error| Error::Internal(error.to_string()))?;
    let path = bundle.join("config.json");
    std::fs::write(&path, json).map_err(Error::io("write", &path))?;
    Ok(Launch {
        pins: Some(Pins {
            mnt_ns: node.paths.state().join(layout::DIR).join(layout::MNT),
            dir: Path::new(layout::PODS).join(&sandbox.id),
            ipc: shared.ipc,
            uts: shared.uts,
            user: shared.user.is_some(),
            shm: false,
        }),
        memory_cgroup: node.host.cgroups.memory_dir(&record.cgroup),
        runtime_timeout: runtime.timeout.max(Duration::from_secs(1)),
        ..Launch::new(&record.id, dir, runtime.call.clone())
    })
}

/// One root file system for all holders, on the disk: the state directory may forbid programs. Named by the program, so
/// that a holder of an older server keeps what it runs from.
fn rootfs(node: &Node) -> Result<PathBuf> {
    let name = node.monitor_path.file_name().unwrap_or_default();
    let rootfs = node.paths.holder().join(name);
    let program = rootfs.join("crisp-monitor");
    if program.exists() {
        return Ok(rootfs);
    }
    make_dir(&node.paths.holder())?;
    // Readable: in a user namespace the runtime opens them as one of the others.
    for dir in ["", "proc", "dev"] {
        let dir = rootfs.join(dir);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&dir).map_err(Error::io("make directory", &dir))?;
    }
    let temp = rootfs.join(format!(".{}", crate::sys::now()));
    std::fs::copy(&node.monitor_path, &temp).map_err(Error::io("copy the monitor to", &temp))?;
    std::fs::set_permissions(&temp, std::fs::Permissions::from_mode(0o755))
        .map_err(Error::io("set the mode of", &temp))?;
    std::fs::rename(&temp, &program).map_err(Error::io("rename", &temp))?;
    Ok(rootfs)
}
