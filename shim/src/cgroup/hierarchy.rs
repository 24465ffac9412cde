//! Which cgroup hierarchies this node has, and where.

use std::path::{Path, PathBuf};

use crate::host::mountinfo::MountTable;

/// What kind of node this is (systemd's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Legacy: one hierarchy for each v1 controller.
    V1,
    /// The same, and a unified hierarchy beside them that limits nothing.
    Hybrid,
    /// The unified hierarchy alone.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its controllers; for a named v1 hierarchy `name=…`.
    pub controllers: Vec<String>,
    /// Whether it is the unified one.
    pub unified: bool,
}

/// All hierarchies of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Which kind of node.
    pub version: Version,
    /// Each hierarchy once.
    pub all: Vec<Hierarchy>,
    /// Mount options of the unified hierarchy that a second mount of it must repeat, else it would change them for the
    /// whole node (cgroups(7), `nsdelegate`).
    pub unified_options: Vec<String>,
    /// Whether swap can be limited.
    pub swap: bool,
}

/// The v1 mount options that are no controllers.
const NO_CONTROLLER: [&str; 6] = ["rw", "ro", "xattr", "clone_children", "noprefix", "release_agent"];
/// The options that [`Hierarchies::unified_options`] keeps.
const SHARED_OPTIONS: [&str; 5] =
    ["nsdelegate", "memory_recursiveprot", "memory_localevents", "memory_hugetlb_accounting", "favordynmods"];

impl Hierarchies {
    /// Finds them in a mount table; files are read below `root`, which is `/` but in tests.
    pub fn find(table: &MountTable, root: &Path) -> Self {
        let mut all: Vec<Hierarchy> = Vec::new();
        let mut unified_options = Vec::new();
        for mount in table.iter().filter(|mount| mount.fs_type == "cgroup" || mount.fs_type == "cgroup2") {
            let unified = mount.fs_type == "cgroup2";
            let mountpoint = mount.mountpoint.clone();
            let controllers = if unified {
                let file = under(root, &mountpoint).join("cgroup.controllers");
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.split_ascii_whitespace().map(str::to_owned).collect()
            } else {
                let named =
                    |option: &&String| !NO_CONTROLLER.iter().any(|word| option.split('=').next() == Some(*word));
                mount.super_options.iter().filter(named).cloned().collect()
            };
            // A hierarchy may be mounted at several places; the first is the one that everybody uses.
            if all.iter().any(|known| known.unified == unified && (unified || known.controllers == controllers)) {
                continue;
            }
            if unified {
                let shared = |option: &&String| SHARED_OPTIONS.contains(&option.as_str());
                unified_options = mount.super_options.iter().filter(shared).cloned().collect();
            }
            all.push(Hierarchy { mountpoint, controllers, unified });
        }
        let v1 = all.iter().any(|hierarchy| !hierarchy.unified && !hierarchy.is_named());
        let version = match (v1, all.iter().any(|hierarchy| hierarchy.unified)) {
            (false, true) => Version::V2,
            (_, false) => Version::V1,
            (true, true) => Version::Hybrid,
        };
        let mut found = Self { version, all, unified_options, swap: false };
        found.swap = found.finds_swap(root);
        found
    }

    /// Whether a controller can be used: on a hybrid node only the v1 ones can.
    pub fn has(&self, controller: &str) -> bool {
        self.with(controller).is_some()
    }

    /// The hierarchy with this controller.
    pub fn with(&self, controller: &str) -> Option<&Hierarchy> {
        let v2 = self.version == Version::V2;
        self.all.iter().find(|one| one.unified == v2 && one.controllers.iter().any(|name| name == controller))
    }

    /// The unified hierarchy, on a hybrid node too.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.all.iter().find(|hierarchy| hierarchy.unified)
    }

    /// v1 shows swap at the root. v2 does not, but in every other cgroup; without one to look at, a kernel with swap is
    /// taken at its word.
    fn finds_swap(&self, root: &Path) -> bool {
        let Some(memory) = self.with("memory") else { return false };
        let dir = under(root, &memory.mountpoint);
        if !memory.unified {
            return dir.join("memory.memsw.limit_in_bytes").exists();
        }
        let child = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).find(|path| {
            // The controller may be off for the children of the root.
            path.join("memory.current").exists()
        });
        match child {
            Some(child) => child.join("memory.swap.max").exists(),
            None => dir.join("memory.swap.max").exists() || under(root, Path::new("/proc/swaps")).exists(),
        }
    }
}

impl Hierarchy {
    /// The place of a cgroup in it.
    pub fn dir(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path.trim_start_matches('/'))
    }

    /// A v1 hierarchy without controllers.
    pub fn is_named(&self) -> bool {
        self.controllers.iter().any(|name| name.starts_with("name="))
    }
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, root: &Path) -> Hierarchies {
        Hierarchies::find(&MountTable::parse(text.as_bytes()), root)
    }

    #[test]
    fn a_hybrid_node_has_v1_controllers_and_a_unified_hierarchy() {
        let tmp = tempfile::tempdir().unwrap();
        let found = find(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x\n\
             36 31 0:32 / /elsewhere/memory rw - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n",
            tmp.path(),
        );
        assert_eq!(found.version, Version::Hybrid);
        assert_eq!(found.all.len(), 4, "a second mount of the same hierarchy does not count: {:?}", found.all);
        assert!(found.has("cpuacct") && found.has("memory") && !found.has("pids"));
        assert_eq!(found.with("memory").unwrap().dir("/a/b"), Path::new("/sys/fs/cgroup/memory/a/b"));
        assert!(!found.swap);
    }

    #[test]
    fn a_unified_node_tells_its_controllers_and_swap_in_files() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("sys/fs/cgroup");
        std::fs::create_dir_all(dir.join("init.scope")).unwrap();
        std::fs::write(dir.join("cgroup.controllers"), "cpuset cpu memory\n").unwrap();
        std::fs::write(dir.join("init.scope/memory.current"), "0").unwrap();
        let text = "25 1 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let found = find(text, tmp.path());
        assert_eq!(found.version, Version::V2);
        assert!(found.has("cpu") && !found.has("hugetlb"));
        assert_eq!(found.unified_options, ["nsdelegate", "memory_recursiveprot"]);
        assert!(!found.swap, "no file for it in a cgroup with the controller");
        std::fs::write(dir.join("init.scope/memory.swap.max"), "max").unwrap();
        assert!(find(text, tmp.path()).swap);
    }
}
