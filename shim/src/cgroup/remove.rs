//! Removing cgroups: ours with all below them, children first.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::path::{OwnCgroup, check_parent};
use super::{CgroupError, Hierarchies};

/// How long a cgroup may stay busy after its last process ended: the kernel takes them out one by one.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// Deeper trees, or wider ones, are given up: a container with a writable hierarchy can make any.
const MAX_DEPTH: usize = 64;
const MAX_CGROUPS: usize = 100_000;

/// Removes a container's or pod's cgroup with all below it, in every hierarchy. Done when there is none.
///
/// # Errors
/// The first one that could not be removed; all hierarchies were tried. Call again.
pub fn remove(cgroups: &Hierarchies, cgroup: &OwnCgroup) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut result = Ok(());
    for hierarchy in &cgroups.all {
        let removed = remove_tree(&hierarchy.dir(cgroup.as_str()), deadline);
        if result.is_ok() {
            result = removed;
        }
    }
    result
}

/// Removes a cgroup that is no longer needed, such as the instance's own, where it has no children. Never waits.
///
/// # Errors
/// The kernel's answer, but not that it is in use.
pub fn remove_if_empty(cgroups: &Hierarchies, path: &str) -> Result<(), CgroupError> {
    check_parent(path)?;
    for hierarchy in &cgroups.all {
        let dir = hierarchy.dir(path);
        match rustix::fs::rmdir(&dir) {
            Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(source) => return Err(CgroupError::io("remove cgroup", dir, source)),
        }
    }
    Ok(())
}

fn remove_tree(top: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let mut found = vec![(top.to_owned(), 0)];
    let mut next = 0;
    while let Some((dir, depth)) = found.get(next).cloned() {
        next += 1;
        for child in children(&dir)? {
            if depth == MAX_DEPTH || found.len() == MAX_CGROUPS {
                let source = std::io::Error::other("there are too many cgroups below it");
                return Err(CgroupError::io("remove cgroup", top, source));
            }
            found.push((child, depth + 1));
        }
    }
    // Each one stands behind its parent.
    found.iter().rev().try_for_each(|(dir, _)| remove_one(dir, deadline))
}

/// The cgroups in a cgroup. Its files are no directories, and there are no links.
pub(super) fn children(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let list = |source| CgroupError::io("list cgroup", dir, source);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(list(source)),
    };
    let mut children = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => children.push(entry.path()),
            Ok(_) => {}
            Err(error) if is_gone(&error) => break,
            Err(source) => return Err(list(source)),
        }
    }
    Ok(children)
}

fn remove_one(dir: &Path, deadline: Instant) -> Result<(), CgroupError> {
    loop {
        match rustix::fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(source) => return Err(CgroupError::io("remove cgroup", dir, source)),
        }
    }
}

/// A cgroup that was removed after it was opened answers ENODEV.
pub(super) fn is_gone(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}
