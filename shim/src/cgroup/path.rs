//! Paths of cgroups: which are well formed, and which are ours.

use super::CgroupError;

/// Longer ones do not fit a path with a hierarchy before them and a file after.
const MAX_LEN: usize = 3072;
/// Length of a sandbox's or container's id.
const ID_LEN: usize = 64;

/// The cgroup of a pod that was given no parent.
pub fn pod_path(instance: &str, sandbox_id: &str) -> String {
    format!("/{instance}/{sandbox_id}")
}

/// Checks that a path names a cgroup below the root of a hierarchy.
pub(super) fn check(path: &str) -> Result<(), CgroupError> {
    let refuse = |problem| Err(CgroupError::Path { path: path.to_owned(), problem });
    if !path.starts_with('/') {
        return refuse("it is not absolute");
    }
    if path.len() > MAX_LEN {
        return refuse("it is too long");
    }
    if path.contains('\0') {
        return refuse("it holds a NUL byte");
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        return refuse("it holds . or ..");
    }
    if path.split('/').all(str::is_empty) {
        return refuse("it is the root");
    }
    Ok(())
}

/// A cgroup whose name starts with an id of ours: of a pod, a container or a holder (`<id>-holder`). Only such a one is
/// removed, or has its processes killed.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnCgroup<'a>(&'a str);

impl<'a> OwnCgroup<'a> {
    pub(super) fn new(path: &'a str) -> Result<Self, CgroupError> {
        check(path)?;
        let name = path.rsplit('/').next().unwrap_or_default();
        let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let (id, rest) = name.split_at_checked(ID_LEN).unwrap_or_default();
        if id.is_empty() || !id.as_bytes().iter().all(hex) || !(rest.is_empty() || rest.starts_with('-')) {
            return Err(CgroupError::Path {
                path: path.to_owned(),
                problem: "its name is no id of a pod or container",
            });
        }
        Ok(Self(path))
    }

    /// The path below each hierarchy's root.
    pub(super) fn as_str(self) -> &'a str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_names_that_are_ids_are_ours() {
        let id = "0123456789abcdef".repeat(4);
        for path in [pod_path("crisp", &id), format!("/kubepods/pod1/{id}"), format!("/crisp/{id}/{id}-holder")] {
            assert_eq!(OwnCgroup::new(&path).unwrap().as_str(), path);
        }
        for path in ["", "/", "/kubepods", &id, &format!("/{id}/"), &format!("/{id}/x"), &format!("/../{id}")] {
            assert!(OwnCgroup::new(path).is_err(), "{path}");
        }
        for path in
            [format!("/{}", id.to_uppercase()), format!("/{id}0"), format!("/a\0/{id}"), format!("/{}", &id[1..])]
        {
            assert!(OwnCgroup::new(&path).is_err(), "{path}");
        }
        assert!(check(&format!("/{}", "a".repeat(MAX_LEN))).is_err());
        check("/a..b/.c").unwrap();
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
