//! A head start for the runtime's move of a process into its cgroups.
//!
//! On cgroup v1 a runtime starts a process and then moves it, and the first move of anybody after a pause waits for an RCU
//! grace period, about 8 ms; those that follow within the next 15 ms do not (the kernel's `cgroup_threadgroup_rwsem` and
//! `rcu_sync`). A runtime comes to its move 10 to 30 ms after a call began. So somebody else moves from the beginning of
//! the call on, again and again: the server itself, to where it is.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Hierarchies, Hierarchy, Version, write};

/// How long a runtime may take to its move; one that is slower waits, as it would have.
const AHEAD: Duration = Duration::from_millis(80);
/// Between two moves.
const PAUSE: Duration = Duration::from_millis(5);
const THREAD: &str = "crisp-cgroups";

/// Until when somebody moves; `None`: nobody does.
static UNTIL: Mutex<Option<Instant>> = Mutex::new(None);

impl Hierarchies {
    /// Says that a runtime will soon move a process. Returns at once; what fails behind it only costs the runtime its head
    /// start. Nothing is done on v2, where runtimes start processes in their cgroup.
    pub fn expect_move(&self) {
        let v1 = self.all.iter().find(|hierarchy| !hierarchy.unified);
        let Some(v1) = v1.filter(|_| self.version != Version::V2) else { return };
        if until().replace(Instant::now() + AHEAD).is_some() {
            return;
        }
        let v1 = v1.clone();
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        if let Err(error) = thread.spawn(move || keep_moving(&v1)) {
            tracing::debug!(%error, "no head start for runtimes");
            *until() = None;
        }
    }
}

/// Moves this server to where it is, as long as somebody is expected to move.
fn keep_moving(v1: &Hierarchy) {
    loop {
        if let Err(error) = stay(v1) {
            tracing::debug!(%error, "no head start for runtimes");
            *until() = None;
            return;
        }
        std::thread::sleep(PAUSE);
        let mut until = until();
        if until.is_none_or(|until| until < Instant::now()) {
            *until = None;
            return;
        }
    }
}

/// The move. Where the server is, is looked up each time: somebody else may have moved it.
fn stay(v1: &Hierarchy) -> std::io::Result<()> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup")?;
    let procs = procs_in(v1, &cgroups).ok_or_else(|| std::io::Error::other("not in that hierarchy"))?;
    write(&procs, &std::process::id().to_string())
}

/// `cgroup.procs` of the cgroup in this hierarchy that a text like `/proc/self/cgroup` names (cgroups(7)).
fn procs_in(v1: &Hierarchy, cgroups: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let same = |name: &str| v1.controllers.iter().any(|controller| controller == name);
        controllers.split(',').all(same).then_some(path)
    })?;
    Some(v1.dir(path).join("cgroup.procs"))
}

fn until() -> MutexGuard<'static, Option<Instant>> {
    UNTIL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::host::mountinfo::MountTable;

    #[test]
    fn the_own_cgroup_is_found_by_its_controllers() {
        let controllers = ["cpu", "cpuacct"].map(str::to_owned).to_vec();
        let v1 = Hierarchy { mountpoint: "/c".into(), controllers, unified: false };
        let procs = procs_in(&v1, "4:cpuset:/no\n3:cpuacct,cpu:/a/b:c\n0::/no\n");
        assert_eq!(procs.as_deref(), Some(Path::new("/c/a/b:c/cgroup.procs")));
        assert_eq!(procs_in(&v1, "4:cpuset:/no\n0::/no\n"), None);
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
            std::fs::read_dir("/proc/self/task")
                .unwrap()
                .flatten()
                .any(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == THREAD))
        };
        assert!(!running(), "it ends when nobody is expected any more");
    }
}
