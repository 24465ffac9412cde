//! Paths of cgroups: which are well formed, and which are ours.

use super::CgroupError;
use crate::sys::{ID_LEN, is_id};

/// Longer ones do not fit a path with a hierarchy before them and a file after.
const MAX_LEN: usize = 3072;

/// Checks what a pod gives as its cgroup parent (cgroupfs driver: a path below each hierarchy's root).
///
/// # Errors
/// A relative path, one with `.` or `..`, or one of the systemd driver.
pub fn check_parent(parent: &str) -> Result<(), CgroupError> {
    let refuse = |problem| Err(CgroupError::Path { path: parent.to_owned(), problem });
    if parent.ends_with(".slice") && !parent.contains('/') || parent.contains(':') {
        return refuse("this is a systemd slice, but the cgroup driver here is cgroupfs: set cgroupDriver in kubelet");
    }
    if !parent.starts_with('/') {
        return refuse("it is not absolute");
    }
    if parent.len() > MAX_LEN {
        return refuse("it is too long");
    }
    if parent.contains(['\0', '\n']) {
        return refuse("it holds a NUL byte or a newline");
    }
    let relative = |part: &str| part == "." || part == "..";
    if parent.split('/').any(relative) {
        return refuse("it holds . or ..");
    }
    if parent.split('/').all(str::is_empty) {
        return refuse("the root cannot hold a pod");
    }
    Ok(())
}

/// The cgroup that holds a pod's containers: the given parent, or one of our own.
///
/// # Errors
/// See [`check_parent`].
pub fn pod_path(parent: &str, instance: &str, sandbox_id: &str) -> Result<String, CgroupError> {
    if parent.is_empty() {
        return Ok(format!("/{instance}/{sandbox_id}"));
    }
    check_parent(parent)?;
    let parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    Ok(format!("/{}", parts.join("/")))
}

/// The cgroup of a container, or of the PID namespace's holder, in its pod's.
pub fn container_path(pod: &str, id: &str) -> String {
    format!("{pod}/{id}")
}

/// A cgroup whose name starts with an id of ours: of a pod, a container or a holder (`<id>-holder`). Only such a one is
/// removed, or has its processes killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCgroup(String);

impl OwnCgroup {
    /// Of a container's, holder's or pod's path.
    ///
    /// # Errors
    /// Its last part starts with no id, or it is no path of a cgroup.
    pub fn new(path: &str) -> Result<Self, CgroupError> {
        check_parent(path)?;
        let name = path.rsplit('/').next().unwrap_or_default();
        let (id, rest) = name.split_at_checked(ID_LEN).unwrap_or_default();
        if !is_id(id) || !(rest.is_empty() || rest.starts_with('-')) {
            return Err(CgroupError::Path {
                path: path.to_owned(),
                problem: "its name is no id of a pod or container",
            });
        }
        Ok(Self(path.to_owned()))
    }

    /// The path below each hierarchy's root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pod_without_a_parent_goes_below_the_instance() {
        let id = "a".repeat(64);
        let pod = pod_path("", "crisp", &id).unwrap();
        assert_eq!(pod, format!("/crisp/{id}"));
        assert_eq!(container_path(&pod, "c"), format!("/crisp/{id}/c"));
        assert_eq!(pod_path("//kubepods/burstable//pod1/", "crisp", &id).unwrap(), "/kubepods/burstable/pod1");
    }

    #[test]
    fn parents_are_paths_of_the_cgroupfs_driver() {
        for (parent, problem) in [
            ("kubepods-besteffort.slice", "set cgroupDriver in kubelet"),
            ("system.slice:crisp:x", "set cgroupDriver in kubelet"),
            ("kubepods", "not absolute"),
            ("/", "root"),
            ("//", "root"),
            ("/a/../b", ". or .."),
            ("/./a", ". or .."),
            ("/a\n", "newline"),
        ] {
            let error = check_parent(parent).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        check_parent("/kubepods.slice/kubepods-pod1.slice").unwrap();
        check_parent("/a..b/.c").unwrap();
        assert!(check_parent(&format!("/{}", "a".repeat(MAX_LEN))).is_err());
    }

    #[test]
    fn only_names_that_are_ids_are_ours() {
        let id = "0123456789abcdef".repeat(4);
        for path in [format!("/kubepods/{id}"), format!("/crisp/{id}/{id}-holder")] {
            assert_eq!(OwnCgroup::new(&path).unwrap().as_str(), path);
        }
        for path in ["", "/", "/kubepods", &id, &format!("/{id}/"), &format!("/{id}/x"), &format!("/../{id}")] {
            assert!(OwnCgroup::new(path).is_err(), "{path}");
        }
        for path in [format!("/{}", id.to_uppercase()), format!("/{id}0"), format!("/{}", &id[1..])] {
            assert!(OwnCgroup::new(&path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_of_ours_leaves_its_hierarchy(path in "[./a\\-]{0,6}/[0-9a-f]{64}(/\\.\\.)?") {
            if OwnCgroup::new(&path).is_ok() {
                prop_assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".."));
            }
        }
    }
}
