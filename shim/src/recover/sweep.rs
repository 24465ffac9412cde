//! What bears an id that no record has: removed, each kind by whoever made it.
//!
//! ```text
//! records   ◄── ids ──  <state>/runtimes/<handler>/<id>   runtime delete --force: the process, its cgroup
//!                       <state>/containers/<id>           once its monitor has ended
//!                       pins, pod files, volumes, snapshots, attachments
//! program   ◄── name ── bin/monitor-<hash>, holder/monitor-<hash>   of servers before this one
//! ```
//!
//! Requests of this server's life are safe: their ids are looked up in the records anew for each thing found, and a
//! record is written before anything else.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp_monitor::spawn;

use crate::error::{Error, Result};
use crate::node::{Node, blocking, remove_dir};
use crate::ops::{holder, remove_container};
use crate::sys;

/// How long a monitor may take to end once its container is deleted: it waits 3 s for output that others still write.
const MONITOR_END: Duration = Duration::from_secs(10);

/// Removes all of it; what could not be removed is tried again at the next start.
pub(super) async fn sweep(node: &Arc<Node>) -> Result<()> {
    let worker = Arc::clone(node);
    blocking(move || {
        containers(&worker)?;
        sandboxes(&worker)?;
        programs(&worker)
    })
    .await
}

fn is_sandbox(node: &Node, id: &str) -> bool {
    node.paths.sandbox(id).try_exists().unwrap_or(true)
}

/// Whether a container's id, or a holder's, has a record.
fn is_owned(node: &Node, id: &str) -> bool {
    match holder::sandbox_of(id) {
        Some(sandbox) => is_sandbox(node, sandbox),
        None => node.paths.container(id).try_exists().unwrap_or(true),
    }
}

/// Whether a name is a container's or holder's id: runtimes keep other things beside their containers (crun: `.cache`).
fn is_container(name: &str) -> bool {
    sys::is_id(holder::sandbox_of(name).unwrap_or(name))
}

fn containers(node: &Node) -> Result<()> {
    for runtime in node.runtimes.usable() {
        for id in node.disk.list(&node.paths.runtime_root(&runtime.name))? {
            if is_container(&id) && !is_owned(node, &id) {
                tracing::warn!(id, runtime = runtime.name, "ending a container that no record knows");
                remove_container::delete_by_hand(node, &id, &runtime.name);
            }
        }
    }
    for id in node.disk.list(&node.paths.container_dirs())? {
        if !is_owned(node, &id) {
            let dir = node.paths.container_dir(&id);
            wait_for_monitor(&dir);
            remove_dir(&dir)?;
        }
    }
    for id in node.disk.list(&node.paths.all_volumes())? {
        if !is_owned(node, &id) {
            remove_dir(&node.paths.volumes(&id))?;
        }
    }
    for id in node.store.snapshots() {
        let owner = id.split('.').next().unwrap_or(&id);
        if !is_owned(node, owner) {
            node.store.remove_snapshot(&id)?;
        }
    }
    Ok(())
}

fn wait_for_monitor(dir: &Path) {
    let until = Instant::now() + MONITOR_END;
    while spawn::is_locked(dir).unwrap_or(true) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sandboxes(node: &Node) -> Result<()> {
    for id in node.pins.list().map_err(|source| Error::Pins { of: "all pod sandboxes".to_owned(), source })? {
        if !is_sandbox(node, &id) {
            node.pins.remove(&id).map_err(Error::pins(&id))?;
        }
    }
    for id in node.disk.list(&node.paths.pods())? {
        if !is_sandbox(node, &id) {
            remove_dir(&node.paths.pod(&id))?;
        }
    }
    // A pod's record is there before its network is, so pods may be attached meanwhile.
    node.network
        .gc(&|id| is_sandbox(node, id))
        .map_err(|source| Error::Network { of: "all pod sandboxes".to_owned(), source })
}

/// Programs of other versions. A monitor that runs holds its own; a holder that waits for its start still needs its root
/// file system, so those stay as long as there is any holder.
fn programs(node: &Node) -> Result<()> {
    let current = node.monitor_path.file_name().unwrap_or_default();
    let is_old = |name: &str| name.starts_with("monitor-") && current != name;
    for bin in [node.paths.bin(), node.paths.bin_on_disk()] {
        for name in node.disk.list(&bin)?.iter().filter(|name| is_old(name)) {
            node.disk.remove(&bin.join(name))?;
        }
    }
    let holders = node.disk.list(&node.paths.container_dirs())?;
    if !holders.iter().any(|id| holder::sandbox_of(id).is_some()) {
        for name in node.disk.list(&node.paths.holder())?.iter().filter(|name| is_old(name)) {
            remove_dir(&node.paths.holder().join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_by_an_id_is_taken_for_a_container() {
        let id = "0123456789abcdef".repeat(4);
        assert!(is_container(&id) && is_container(&holder::id(&id)));
        for name in [".cache", "", "abc", &id.to_uppercase(), &format!("{id}0"), &format!("{id}-other")] {
            assert!(!is_container(name), "{name}");
        }
    }
}
