//! A head start for the runtime's move of a process into its cgroups.
//!
//! On cgroup v1 a runtime starts a process and then moves it, and the first move of anybody after a pause waits for an RCU
//! grace period, about 8 ms; those that follow within the next 15 ms do not (the kernel's `cgroup_threadgroup_rwsem` and
//! `rcu_sync`). A runtime comes to its move some 10 ms after a call began: time enough to have waited already.

use std::sync::Mutex;

use super::{Hierarchies, Version, write};

/// One at a time is enough for all.
static WAITING: Mutex<()> = Mutex::new(());

impl Hierarchies {
    /// Waits out the grace period by "moving" this server to where it is. To be called beside the work that ends in a move;
    /// it blocks. Where it does not work, the runtime waits as it would have. On v2, runtimes start processes in their cgroup.
    pub fn expect_move(&self) {
        let Ok(_waiting) = WAITING.try_lock() else { return };
        let Ok(cgroups) = std::fs::read_to_string("/proc/self/cgroup") else { return };
        if self.version != Version::V2
            && let Some(procs) = self.procs_of(&cgroups)
            && let Err(error) = write(&procs, &std::process::id().to_string())
        {
            tracing::debug!(procs = %procs.display(), %error, "no head start for the runtime");
        }
    }

    /// `cgroup.procs` of one of the v1 cgroups in a text like `/proc/self/cgroup` (cgroups(7)).
    fn procs_of(&self, cgroups: &str) -> Option<std::path::PathBuf> {
        let v1 = self.all.iter().find(|hierarchy| !hierarchy.unified)?;
        let path = cgroups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let same = |name: &str| v1.controllers.iter().any(|controller| controller == name);
            controllers.split(',').all(same).then_some(path)
        })?;
        Some(v1.dir(path).join("cgroup.procs"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cgroup::Hierarchy;
    use crate::host::mountinfo::MountTable;

    #[test]
    fn the_own_cgroup_is_found_by_its_controllers() {
        let hierarchy = |at: &str, controllers: &[&str], unified| Hierarchy {
            mountpoint: at.into(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            unified,
        };
        let all = vec![hierarchy("/u", &[], true), hierarchy("/c", &["cpu", "cpuacct"], false)];
        let found = Hierarchies { version: Version::Hybrid, all, unified_options: Vec::new(), swap: false };
        let text = "4:cpuset:/no\n3:cpuacct,cpu:/a/b:c\n0::/no\n";
        assert_eq!(found.procs_of(text).as_deref(), Some(Path::new("/c/a/b:c/cgroup.procs")));
        assert_eq!(found.procs_of("4:cpuset:/no\n0::/no\n"), None);
    }

    #[test]
    fn it_leaves_the_server_where_it_is() {
        let cgroups = || std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = cgroups();
        Hierarchies::find(&MountTable::read().unwrap(), Path::new("/")).expect_move();
        assert_eq!(cgroups(), before);
    }
}
