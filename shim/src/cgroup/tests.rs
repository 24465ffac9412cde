//! Real cgroups of this node: needs root. Everything has an id of its own in its name.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::*;
use crate::host::mountinfo::MountTable;

/// This node; and of a hybrid one its v1 and its unified part alone, too.
fn nodes() -> Vec<Hierarchies> {
    let found = Hierarchies::find(&MountTable::read().unwrap(), Path::new("/"));
    assert!(rustix::process::getuid().is_root() && !found.all.is_empty(), "needs root and cgroups");
    let mut nodes = vec![found.clone()];
    if found.version == Version::Hybrid {
        for version in [Version::V1, Version::V2] {
            let mut part = Hierarchies { version, ..found.clone() };
            part.all.retain(|hierarchy| hierarchy.unified == (version == Version::V2));
            nodes.push(part);
        }
    }
    nodes
}

/// Runs a test in fresh cgroups of each kind of node that this one can be.
fn on_each(name: &str, test: impl Fn(Made)) {
    for cgroups in nodes() {
        test(Made::new(name, cgroups));
    }
}

/// A path that only this test has; taken away at its end, whatever came of it.
struct Made {
    cgroups: Hierarchies,
    instance: String,
    path: String,
    children: Vec<Child>,
}

impl Made {
    fn new(name: &str, cgroups: Hierarchies) -> Self {
        let instance = format!("crisp-test-{}-{name}", std::process::id());
        let path = pod_path("", &instance, &"a1".repeat(32)).unwrap();
        for hierarchy in &cgroups.all {
            std::fs::create_dir_all(hierarchy.dir(&path)).unwrap();
        }
        Self { cgroups, instance, path, children: Vec::new() }
    }

    fn own(&self) -> OwnCgroup {
        OwnCgroup::new(&self.path).unwrap()
    }

    fn pids(&self) -> Vec<rustix::process::Pid> {
        kill::pids_below(&kill::process_dir(&self.cgroups, &self.own()).unwrap()).unwrap()
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.cgroups.all.iter().map(|hierarchy| hierarchy.dir(&self.path)).collect()
    }

    /// A shell in the cgroup or below it, in all hierarchies.
    fn run(&mut self, below: &str, script: &str) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("read go || exit; {script}")]).stdin(std::process::Stdio::piped());
        let mut child = shell.spawn().unwrap();
        // A new cpuset takes no process before it has CPUs.
        for dir in self.dirs().into_iter().filter(|dir| !dir.starts_with("/sys/fs/cgroup/cpuset")) {
            write(&dir.join(below).join("cgroup.procs"), &child.id().to_string()).unwrap();
        }
        let mut stdin = child.stdin.take().unwrap();
        self.children.push(child);
        std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = kill(&self.cgroups, &self.own());
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = remove(&self.cgroups, &self.own());
        let _ = remove_if_empty(&self.cgroups, &format!("/{}", self.instance));
    }
}

#[test]
fn a_pods_cgroup_is_removed_in_every_hierarchy() {
    on_each("make", |made| {
        assert_eq!(made.cgroups.memory_dir(&made.path).is_some(), made.cgroups.has("memory"));
        let parent = format!("/{}", made.instance);
        remove_if_empty(&made.cgroups, &parent).unwrap();
        assert!(made.dirs().iter().all(|dir| dir.is_dir()), "not while there is a pod");
        for dir in made.dirs() {
            std::fs::create_dir_all(dir.join("deep/er")).unwrap();
        }
        remove(&made.cgroups, &made.own()).unwrap();
        remove(&made.cgroups, &made.own()).unwrap();
        assert!(made.dirs().iter().all(|dir| !dir.exists()));
        remove_if_empty(&made.cgroups, &parent).unwrap();
        assert!(made.cgroups.all.iter().all(|hierarchy| !hierarchy.dir(&parent).exists()));
    });
}

#[test]
fn everything_in_a_cgroup_dies_even_what_forks_away() {
    on_each("kill", |mut made| {
        for dir in made.dirs() {
            std::fs::create_dir(dir.join("below")).unwrap();
        }
        made.run("", "sleep 1000 & sleep 1000 & trap '' TERM; wait; while :; do /bin/true & done");
        made.run("below", "sleep 1000 & while :; do sleep 0.001 & wait $!; done");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while made.pids().len() < 4 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(made.pids().len() >= 4);
        kill(&made.cgroups, &made.own()).unwrap();
        for mut child in std::mem::take(&mut made.children) {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        assert_eq!(made.pids(), []);
        remove(&made.cgroups, &made.own()).unwrap();
        assert!(made.dirs().iter().all(|dir| !dir.exists()));
    });
}

#[test]
fn a_cgroup_that_was_left_frozen_is_thawed_by_the_next_kill() {
    on_each("frozen", |mut made| {
        let Some(freezer) = made.cgroups.with("freezer").cloned() else { return };
        made.run("", "sleep 1000");
        write(&freezer.dir(&made.path).join("freezer.state"), "FROZEN").unwrap();
        kill(&made.cgroups, &made.own()).unwrap();
        made.children[0].wait().unwrap();
    });
}

#[test]
fn what_is_not_there_is_done() {
    let cgroups = nodes().remove(0);
    let gone = OwnCgroup::new(&pod_path("", "crisp-test-none", &"b2".repeat(32)).unwrap()).unwrap();
    kill(&cgroups, &gone).unwrap();
    remove(&cgroups, &gone).unwrap();
}

#[test]
fn what_still_runs_is_not_removed() {
    on_each("busy", |mut made| {
        for dir in made.dirs() {
            std::fs::create_dir(dir.join("below")).unwrap();
        }
        made.run("below", "sleep 1000");
        let error = remove(&made.cgroups, &made.own()).unwrap_err();
        assert!(error.to_string().starts_with("cannot remove cgroup"), "{error}");
    });
}
