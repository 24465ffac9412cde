//! Making the cgroups that are ours. Containers' own ones are made by the OCI runtime.

use std::path::Path;

use super::path::check_parent;
use super::{CgroupError, Hierarchies, Hierarchy, Version};

/// Makes a cgroup and those above it, in every hierarchy, with all controllers for what comes below. What is there stays.
///
/// # Errors
/// The kernel's answer. What was made before stays, for the next call or for removal.
pub fn make(cgroups: &Hierarchies, path: &str) -> Result<(), CgroupError> {
    check_parent(path)?;
    // The unified hierarchy of a hybrid node limits nothing.
    let v2 = cgroups.version == Version::V2;
    for hierarchy in &cgroups.all {
        let mut dir = hierarchy.mountpoint.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if v2 {
                pass_on(&dir);
            }
            dir.push(part);
            match std::fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(CgroupError::io("make cgroup", dir, source)),
            }
            inherit_cpuset(hierarchy, &dir)?;
        }
        if v2 {
            pass_on(&dir);
        }
    }
    Ok(())
}

/// v2: controllers are the children's only if the parent says so. One at a time, since one that is refused (`cpu` with
/// realtime processes about, or any in a cgroup with processes) must not take the others away; the runtime then tells which
/// limit it cannot set.
fn pass_on(dir: &Path) {
    let controllers = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace() {
        let _ = super::write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// v1: a new cpuset is empty, and no process can be put into it.
fn inherit_cpuset(hierarchy: &Hierarchy, dir: &Path) -> Result<(), CgroupError> {
    if hierarchy.unified || !hierarchy.controllers.iter().any(|name| name == "cpuset") {
        return Ok(());
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let read = |dir: &Path| {
            let path = dir.join(file);
            std::fs::read_to_string(&path).map_err(|source| CgroupError::io("read", path, source))
        };
        if read(dir)?.trim().is_empty() {
            let path = dir.join(file);
            super::write(&path, read(parent)?.trim()).map_err(|source| CgroupError::io("write", path, source))?;
        }
    }
    Ok(())
}
