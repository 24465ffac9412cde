//! At start: from records, monitors and the kernel to the registry.
//!
//! ```text
//! sandbox record   made ─────────────────────────► listed (READY in this epoch, else NOTREADY)
//!                  not made ─────────────────────► undone, in the background; calls for its name wait
//! container record process, same epoch, lock held ► followed: CREATED, RUNNING
//!                  process, exit record ─────────► EXITED
//!                  process, neither ─────────────► UNKNOWN (this epoch), EXITED 255 (another one)
//!                  no process ───────────────────► undone, in the background; calls for its name wait
//! anything else that bears an id: directories, snapshots, namespaces, cgroups ─► removed, in the background
//! ```
//!
//! The index is whole before the server answers: an empty list would make kubelet start everything again.

mod sweep;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp_monitor::exit_record::ExitRecord;
use crisp_monitor::spawn;
use crisp_store::durable::ErrorKind;

use crate::container::{Container, Status};
use crate::error::{Error, Result};
use crate::model::{ContainerRecord, SandboxRecord};
use crate::monitor::{Link, follow};
use crate::node::{Node, blocking, remove_dir};
use crate::ops::{
    auto_remove, create_container, holder, remove_container, remove_pod_sandbox, run_pod_sandbox, stop_container,
};
use crate::sandbox::Sandbox;
use crate::{epoch, sys};

/// How long listed states may lag behind the kernel at start: monitors answer in microseconds.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// Fills the registry; what takes longer goes on in tasks.
pub async fn recover(node: &Arc<Node>) -> Result<()> {
    let begun = Instant::now();
    let worker = Arc::clone(node);
    let (sandboxes, containers) = blocking(move || {
        // An exec has no record that would tell those of this server's life from older ones: so before the first request.
        for id in worker.disk.list(&worker.paths.execs())? {
            if let Err(error) = end_exec(&worker.paths.exec(&id)) {
                tracing::warn!(id, error = error.chain(), "an exec of an earlier server could not be ended");
            }
        }
        Ok((sandbox_records(&worker)?, container_records(&worker)?))
    })
    .await?;
    let mut followed = Vec::new();
    for record in sandboxes {
        let made = record.made;
        let sandbox = Sandbox::new(record);
        if made {
            followed.extend(holder::adopt(node, &sandbox).await?);
            node.registry.add_sandbox(sandbox);
        } else {
            undo_sandbox(node, sandbox);
        }
    }
    followed.extend(containers.into_iter().filter_map(|record| adopt(node, record)));
    for container in node.registry.containers() {
        auto_remove::when_ended(node, &container);
    }
    let spoken = async {
        for container in followed {
            container.born().await;
        }
    };
    let _ = tokio::time::timeout(FIRST_WORD, spoken).await;
    tracing::info!(
        sandboxes = node.registry.sandboxes().len(),
        containers = node.registry.containers().len(),
        ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "recovered"
    );
    let worker = Arc::clone(node);
    tokio::spawn(async move {
        if let Err(error) = sweep::sweep(&worker).await {
            tracing::warn!(error = error.chain(), "leftovers of an earlier server could not all be removed");
        }
    });
    Ok(())
}

fn sandbox_records(node: &Node) -> Result<Vec<SandboxRecord>> {
    let mut records = Vec::new();
    for id in node.disk.list(&node.paths.sandboxes())? {
        match node.disk.read::<SandboxRecord>(&node.paths.sandbox_record(&id)) {
            Ok(Some(record)) => records.push(record),
            // A directory without a record: made before it, or left after it. Nothing else can be there.
            Ok(None) => remove_dir(&node.paths.sandbox(&id))?,
            Err(error) if matches!(error.kind, ErrorKind::Damaged(_)) => {
                tracing::error!(id, %error, "the record of a pod sandbox is damaged: forgetting it, its leftovers are removed");
                remove_dir(&node.paths.sandbox(&id))?;
            }
            Err(error) => {
                tracing::error!(id, %error, "a pod sandbox is left alone and not listed: its record cannot be read")
            }
        }
    }
    Ok(records)
}

fn container_records(node: &Node) -> Result<Vec<ContainerRecord>> {
    let mut records = Vec::new();
    for id in node.disk.list(&node.paths.containers())? {
        match node.disk.read::<ContainerRecord>(&node.paths.container_record(&id)) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => remove_dir(&node.paths.container(&id))?,
            Err(error) if matches!(error.kind, ErrorKind::Damaged(_)) => {
                tracing::error!(id, %error, "the record of a container is damaged: forgetting it, its leftovers are removed");
                remove_dir(&node.paths.container(&id))?;
            }
            Err(error) => {
                tracing::error!(id, %error, "a container is left alone and not listed: its record cannot be read")
            }
        }
    }
    Ok(records)
}

/// Lists a container; gives it back when a monitor speaks for it.
fn adopt(node: &Arc<Node>, record: ContainerRecord) -> Option<Arc<Container>> {
    let dir = node.paths.container_dir(&record.id);
    let (link, questions) = Link::new();
    let has_sandbox = node.registry.sandbox(&record.sandbox_id).is_ok();
    if !has_sandbox && node.paths.sandbox(&record.sandbox_id).try_exists().unwrap_or(true) {
        tracing::error!(id = record.id, sandbox = record.sandbox_id, "a container is left alone with its pod sandbox");
        return None;
    }
    // Without a sandbox nobody would ever ask for its end.
    let finished = has_sandbox && (record.process.is_some() || record.start_error.is_some());
    let locked = || {
        spawn::is_locked(&dir).unwrap_or_else(|error| {
            tracing::warn!(id = record.id, %error, "the lock of a container's monitor cannot be looked at");
            false
        })
    };
    let lives = record.epoch == node.epoch && locked();
    // The process of one that lives is for its monitor to tell: until then nothing has been heard.
    let process = record.process.filter(|_| !lives);
    let mut status = Status { process, started_at: record.started_at, ..Status::default() };
    if !lives {
        status.over = true;
        let exit = exit_record(&dir.join("exit.json")).or_else(|| exit_record(&node.paths.container_exit(&record.id)));
        match exit {
            Some(exit) => {
                status.started_at = status.started_at.or((exit.started_at > 0).then_some(exit.started_at));
                status.exit = Some(Arc::new(exit));
            }
            None if record.epoch != node.epoch || !record.process.is_some_and(epoch::is_alive) => {
                let exit = stop_container::unwitnessed(&record);
                if finished {
                    keep_exit(&node.paths.container_exit(&record.id), exit.clone());
                }
                status.exit = Some(Arc::new(exit));
            }
            None => status.lost = true,
        }
    }
    let id = record.id.clone();
    let container = Container::new(record, status, link);
    if lives {
        let status = container.status.clone();
        tokio::spawn(async move { follow(&dir, None, questions, status, None).await });
    }
    if finished {
        node.registry.add_container(Arc::clone(&container));
        return lives.then_some(container);
    }
    let (worker, record) = (Arc::clone(node), container.record());
    let key = create_container::job_key(&record.sandbox_id, &record.config.name);
    tracing::info!(id, "undoing a container that was not made to the end");
    in_background(node, &key, async move {
        let undone = remove_container::take_away(&worker, &container).await;
        if undone.is_err() {
            worker.registry.add_container(container);
        }
        undone.map(|()| String::new())
    });
    None
}

/// An exit record that cannot be read is none: what it would have said is lost, the container is not.
fn exit_record(path: &Path) -> Option<ExitRecord> {
    ExitRecord::read(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "an exit record cannot be read");
        None
    })
}

/// Writes down an end that nobody saw, so that the next server tells the same time. Nobody waits for it: after a reboot
/// there is one for each container.
fn keep_exit(path: &Path, exit: ExitRecord) {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = exit.write(&path, true) {
            tracing::warn!(path = %path.display(), %error, "an exit record cannot be written");
        }
    });
}

fn undo_sandbox(node: &Arc<Node>, sandbox: Arc<Sandbox>) {
    tracing::info!(id = sandbox.id, "undoing a pod sandbox that was not made to the end");
    let key = run_pod_sandbox::job_key(&sandbox.record().config.name);
    let worker = Arc::clone(node);
    in_background(node, &key, async move {
        let undone = remove_pod_sandbox::take_apart(&worker, &sandbox).await;
        if undone.is_err() {
            worker.registry.add_sandbox(sandbox);
        }
        undone.map(|()| String::new())
    });
}

/// Undoes what was being made under `key`; calls for it wait.
fn in_background(node: &Arc<Node>, key: &str, work: impl Future<Output = Result<String>> + Send + 'static) {
    let key = run_pod_sandbox::undo_key(key);
    let mut job = node.jobs.start(key.clone(), work);
    tokio::spawn(async move {
        if let Ok(Some(Err(error))) = job.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            tracing::warn!(key, error = error.chain(), "undoing failed; Stop and Remove will finish it");
        }
    });
}

/// Ends an exec whose server is gone: its helper does so when it sees the socket close; this is for a helper that was
/// killed, too.
fn end_exec(dir: &Path) -> Result<()> {
    if let Some(record) = crisp_monitor::exec_record::read(dir).map_err(Error::io("read", dir))? {
        let process = crate::model::Process { pid: record.pid, start_time: record.start_time };
        sys::signal(process, libc::SIGKILL).map_err(Error::io("end the exec of", dir))?;
    }
    remove_dir(dir)
}
