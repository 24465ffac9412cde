//! A head start for the runtime's move of a process into its cgroups.
//!
//! On cgroup v1 a runtime starts a process and then moves it, and the first move of anybody after a pause waits for an RCU
//! grace period, about 8 ms; those that follow within the next 15 ms do not (the kernel's `cgroup_threadgroup_rwsem` and
//! `rcu_sync`). A runtime comes to its move 10 to 30 ms after a call began. So somebody else moves from the beginning of
//! the call on, again and again: the server itself, to where it is.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Hierarchies, Version, write};

/// How long a runtime may take to its move; one that is slower waits, as it would have.
const AHEAD: Duration = Duration::from_millis(80);
/// Between two moves.
const PAUSE: Duration = Duration::from_millis(5);

/// Until when somebody moves; `None`: nobody does.
static UNTIL: Mutex<Option<Instant>> = Mutex::new(None);

impl Hierarchies {
    /// Says that a runtime will soon move a process. Returns at once; what fails behind it only costs the runtime its head
    /// start. Nothing is done on v2, where runtimes start processes in their cgroup.
    pub fn expect_move(&self) {
        if self.version == Version::V2
            || UNTIL.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now() + AHEAD).is_some()
        {
            return;
        }
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let procs = self.procs_of(&cgroups);
        let thread = std::thread::Builder::new().name("crisp-cgroups".to_owned());
        if let Err(error) = thread.spawn(move || keep_moving(procs.as_deref())) {
            tracing::debug!(%error, "no head start for runtimes");
            end();
        }
    }

    /// `cgroup.procs` of one of the v1 cgroups in a text like `/proc/self/cgroup` (cgroups(7)).
    fn procs_of(&self, cgroups: &str) -> Option<PathBuf> {
        let v1 = self.all.iter().find(|hierarchy| !hierarchy.unified)?;
        let path = cgroups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let same = |name: &str| v1.controllers.iter().any(|controller| controller == name);
            controllers.split(',').all(same).then_some(path)
        })?;
        Some(v1.dir(path).join("cgroup.procs"))
    }
}

/// Moves this server to where it is, as long as somebody is expected to move.
fn keep_moving(procs: Option<&Path>) {
    let Some(procs) = procs else { return end() };
    loop {
        if let Err(error) = write(procs, &std::process::id().to_string()) {
            tracing::debug!(procs = %procs.display(), %error, "no head start for runtimes");
            return end();
        }
        std::thread::sleep(PAUSE);
        let mut until = UNTIL.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_none_or(|until| until < Instant::now()) {
            *until = None;
            return;
        }
    }
}

fn end() {
    *UNTIL.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

#[cfg(test)]
mod tests {
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
        let node = Hierarchies::find(&MountTable::read().unwrap(), Path::new("/"));
        node.expect_move();
        std::thread::sleep(2 * AHEAD);
        assert_eq!(cgroups(), before);
        let running = || {
            std::fs::read_dir("/proc/self/task").unwrap().flatten().any(|task| {
                std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "crisp-cgroups")
            })
        };
        assert!(!running(), "it ends when nobody is expected any more");
    }
}
