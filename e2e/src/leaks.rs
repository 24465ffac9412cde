//! What is on the machine, before and after: whatever is there afterwards and was not before is a leak.
//!
//! Inside our own namespaces (see `world`) mounts, links, rules, processes and `/run` are ours alone, so the comparison is
//! exact. Cgroups are picked by mark; files are those of the server, without the content that pulling adds on purpose.

use crate::{
    server::{Kind, Server},
    world,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Everything found, one line each, with its kind in front.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    things: BTreeSet<String>,
    fds: usize,
}

impl Snapshot {
    /// Looks at the machine, and at the server if one shall be there.
    pub(crate) fn take(server: Option<&Server>, marks: &[String]) -> Self {
        let mut t = BTreeSet::new();
        mounts("/proc/self/mountinfo", "mount", &mut t);
        for mark in marks {
            t.extend(world::cgroups(mark).into_iter().map(|c| format!("cgroup {}", c.display())));
        }
        processes(&mut t);
        for (what, program, args) in [
            ("link", "ip", &["-o", "link"][..]),
            ("address", "ip", &["-o", "addr"]),
            ("route", "ip", &["route"]),
            ("route6", "ip", &["-6", "route"]),
            ("rule", "ip", &["rule"]),
            ("nft", "nft", &["-s", "list", "ruleset"]),
            ("iptables", "iptables-save", &[]),
            ("netns", "ls", &["/run/netns"]),
        ] {
            t.extend(lines(program, args).into_iter().map(|l| format!("{what} {}", steady(what, &l))));
        }
        files(Path::new("/run"), &|p| p.starts_with("/run/xtables.lock") || is_lock(p), &mut t);
        let mut fds = 0;
        if let Some(s) = server {
            let kind = s.kind;
            let (root, state) = (s.root.clone(), s.state.clone());
            files(&s.state, &|p| kind == Kind::Containerd && containerd_keeps(p), &mut t);
            files(
                &s.root,
                &|p| if kind == Kind::Crisp { p.starts_with(root.join("store")) } else { containerd_keeps(p) },
                &mut t,
            );
            files(&root.join("store"), &|p| kept_by_store(&root.join("store"), p), &mut t);
            files(&s.dir.join("ipam"), &|p| p.to_string_lossy().contains("last_reserved_ip"), &mut t);
            pinned(&state.join("ns"), &mut t);
            fds = s.pid().map_or(0, open_files);
        }
        Self { things: t, fds }
    }

    /// What is there now and was not in `self`, once it has had some seconds to go away.
    pub(crate) async fn leaks(&self, server: Option<&Server>, marks: &[String]) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(12);
        loop {
            let now = Self::take(server, marks);
            let mut new: Vec<String> = now.things.difference(&self.things).cloned().collect();
            // A few may be opened lazily, once; a leak in each case adds up and shows all the same.
            if now.fds > self.fds + 3 {
                new.push(format!("fds of the server: {} instead of {}", now.fds, self.fds));
            }
            if new.is_empty() || Instant::now() > until {
                return new;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The lock of a server's instance: it stays for the next one.
fn is_lock(path: &Path) -> bool {
    path.to_str().is_some_and(|p| p.starts_with("/run/crisp-") && p.ends_with(".lock"))
}

/// How many fds a process has, without sockets: idle connections to a registry are kept for a while on purpose.
fn open_files(pid: u32) -> usize {
    fds(pid).into_iter().filter(|t| !t.starts_with("socket:")).count()
}

/// What the fds of a process lead to.
fn fds(pid: u32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|e| Some(fs::read_link(e.path()).ok()?.to_string_lossy().into_owned())).collect()
}

/// All fds of a server, sockets too, once idle connections have had their time.
#[derive(Debug)]
pub(crate) struct OpenFds {
    pid: u32,
    count: usize,
}

impl OpenFds {
    /// How long connections to a registry may be kept for the next pull.
    const IDLE: Duration = Duration::from_secs(100);
    /// What is opened once, by the first case that needs it.
    const LAZY: usize = 3;

    /// The baseline.
    pub(crate) fn of(server: &Server) -> Option<Self> {
        server.pid().map(|pid| Self { pid, count: fds(pid).len() })
    }

    /// What is open beyond it in the end; nothing if the server is another one by now.
    pub(crate) async fn grown(&self, server: &Server) -> Option<String> {
        let until = Instant::now() + Self::IDLE;
        loop {
            let now = fds(self.pid);
            if server.pid() != Some(self.pid) || now.len() <= self.count + Self::LAZY {
                return None;
            }
            if Instant::now() > until {
                let sockets = now.iter().filter(|t| t.starts_with("socket:")).count();
                return Some(format!("{} fds, {sockets} of them sockets, instead of {}", now.len(), self.count));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Cgroups of containers and PID namespace holders.
pub(crate) fn container_cgroups(mark: &str) -> Vec<PathBuf> {
    let is_id = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let mut found = world::cgroups(mark);
    found.retain(|c| c.file_name().and_then(|n| n.to_str()).is_some_and(|n| is_id(n.trim_end_matches("-holder"))));
    found
}

/// Those that have come since `before` and are still there once they have had some seconds to go away.
pub(crate) async fn new_container_cgroups(mark: &str, before: &[PathBuf]) -> Vec<String> {
    let until = Instant::now() + Duration::from_secs(12);
    loop {
        let mut left = container_cgroups(mark);
        left.retain(|c| !before.contains(c));
        if left.is_empty() || Instant::now() > until {
            return left.into_iter().map(|c| format!("cgroup {}", c.display())).collect();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// containerd's content, snapshots and databases: filled by pulling, emptied by its garbage collector when it likes.
fn containerd_keeps(p: &Path) -> bool {
    let p = p.to_string_lossy();
    ["io.containerd.content", "io.containerd.snapshotter", "io.containerd.metadata", "tmpmounts", "image-volumes"]
        .iter()
        .any(|s| p.contains(s))
}

/// What crisp's store keeps of images on purpose: layers and their contents, images, blobs. Unfinished things are no such.
fn kept_by_store(store: &Path, p: &Path) -> bool {
    let Ok(rest) = p.strip_prefix(store) else { return true };
    let first = rest.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    ["layers", "images", "blobs", "manifests", "configs"].contains(&first.as_str())
        && !rest.to_string_lossy().contains("tmp")
}

fn mounts(table: &str, what: &str, t: &mut BTreeSet<String>) {
    for l in fs::read_to_string(table).unwrap_or_default().lines() {
        if let Some(at) = l.split(' ').nth(4) {
            t.insert(format!("{what} {at}"));
        }
    }
}

/// Mounts in a pinned mount namespace.
fn pinned(ns: &Path, t: &mut BTreeSet<String>) {
    if ns.exists() {
        let arg = format!("--mount={}", ns.display());
        for l in lines("nsenter", &[&arg, "cat", "/proc/self/mountinfo"]) {
            if let Some(at) = l.split(' ').nth(4) {
                t.insert(format!("pinned mount {at}"));
            }
        }
    }
}

/// Processes, without ourselves and what we just started; a zombie is one too.
fn processes(t: &mut BTreeSet<String>) {
    let us = std::process::id();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let parent: u32 = tail.split(' ').nth(2).and_then(|p| p.parse().ok()).unwrap_or(0);
        if pid != us && parent != us {
            let comm = head.split_once('(').map_or("", |(_, c)| c);
            t.insert(format!("process {pid} {comm} (child of {parent})"));
        }
    }
}

/// A line without what changes by itself: the flags of a bridge follow its ports.
fn steady(what: &str, line: &str) -> String {
    match what {
        "link" | "address" => {
            line.split_whitespace().skip(1).take(if what == "link" { 1 } else { 3 }).collect::<Vec<_>>().join(" ")
        }
        _ => line.trim_end_matches(" linkdown").to_owned(),
    }
}

fn lines(program: &str, args: &[&str]) -> Vec<String> {
    let out = Command::new(program).args(args).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines()
        .map(|l| l.trim_end().to_owned())
        .filter(|l| !l.is_empty() && !l.starts_with('#') && !l.starts_with(':'))
        .collect()
}

/// All paths below `dir`, but for what `keep` names and whatever is below that.
fn files(dir: &Path, keep: &dyn Fn(&Path) -> bool, t: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if keep(&path) {
            continue;
        }
        t.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|k| k.is_dir()) && t.len() < 100_000 {
            files(&path, keep, t);
        }
    }
}
