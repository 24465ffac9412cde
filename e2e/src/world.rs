//! The world that the tests live in: namespaces of their own, a temporary root, the registry.
//!
//! The program runs itself again in new mount, network and PID namespaces, with an empty `/run` and CNI cache there:
//! whatever a server mounts, links, filters or starts is ours, the host never sees it, and it all ends with the run.
//! Only cgroups are the machine's; they are told by the unique mark in their names.
//! PID 1 in there is a shell that waits: orphans need somebody who reaps them.

use crate::{
    fail::{Fail, Res},
    images,
    parts::{self, Parts},
    registry::Registry,
    sh,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

const INSIDE: &str = "CRISP_E2E_INSIDE";

/// What every case may use.
#[derive(Debug)]
pub(crate) struct World {
    /// `/tmp/crisp-e2e-<pid>`; its name marks all that is ours.
    pub(crate) dir: PathBuf,
    /// Cgroup parent of the pods, `/crisp-e2e-<pid>`.
    pub(crate) cgroup: String,
    pub(crate) parts: Parts,
    /// The runc to use: the pinned one, unless another is asked for.
    pub(crate) runc: PathBuf,
    /// The crisp binary under test.
    pub(crate) crisp: PathBuf,
    /// Host and port of the registry.
    pub(crate) host: String,
    pub(crate) registry: Option<Registry>,
}

impl World {
    /// Sets up parts, registry and images. Call it inside the namespaces.
    pub(crate) async fn new(crisp: Option<PathBuf>) -> Res<Self> {
        let dir = std::env::temp_dir().join(mark());
        fs::create_dir_all(&dir)?;
        let parts = Parts::all().await?;
        let storage = parts::cache().join("registry");
        let registry = Registry::start(&storage, &dir.join("registry")).await?;
        images::fill(&registry.host, &storage).await?;
        let crisp = match crisp {
            Some(c) => fs::canonicalize(c)?,
            None => parts::crisp(),
        };
        Ok(Self {
            cgroup: format!("/{}", mark()),
            runc: parts.get("runc", "runc")?,
            parts,
            crisp,
            host: registry.host.clone(),
            registry: Some(registry),
            dir,
        })
    }

    /// A reference in the registry.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.registry = None;
        // The names of images that cases pushed; the blobs are those of the next run as well.
        let pushed = parts::cache().join("registry/docker/registry/v2/repositories/cases").join(mark());
        let _ = fs::remove_dir_all(pushed);
        // Containers that a failed case left behind keep their cgroups, which are the machine's.
        kill_marked(&mark());
        remove_cgroups(&mark());
        unmount_below(&self.dir);
        if std::env::var_os("CRISP_E2E_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The unique mark of this run, from the process id on the machine. It ends in a letter: no mark begins another.
pub(crate) fn mark() -> String {
    format!("crisp-e2e-{}x", pid())
}

/// The process id of this run on the machine; our own is another one inside.
pub(crate) fn pid() -> u32 {
    std::env::var(INSIDE).ok().and_then(|p| p.parse().ok()).unwrap_or_else(std::process::id)
}

/// Whether we are in the namespaces.
pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again in namespaces of its own and returns its exit code; `None`: we are inside.
pub(crate) async fn enter() -> Res<Option<i32>> {
    if inside() {
        furnish().await?;
        return Ok(None);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Fail::Wrong("this needs root: it starts containers".into()));
    }
    let exe = std::env::current_exe()?;
    let mut child = tokio::process::Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "--mount-proc", "--"])
        .args(["sh", "-c", "\"$@\" & wait $!", "e2e-init"])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, std::process::id().to_string())
        .spawn()?;
    // Ctrl-C goes to the whole process group; the inner one cleans up and we wait for it.
    loop {
        tokio::select! {
            status = child.wait() => return Ok(Some(status?.code().unwrap_or(1))),
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}

/// Makes the new namespaces look like a machine: shared mounts, an empty /run, a network card with a default route.
async fn furnish() -> Res {
    let resolv = fs::canonicalize("/etc/resolv.conf").unwrap_or_default();
    let text = fs::read(&resolv).unwrap_or_default();
    let script = "mount --make-rshared /; mount -t tmpfs -o mode=755 e2e-run /run; mkdir -p /var/lib/cni /run/lock; \
                  mount -t tmpfs -o mode=755 e2e-cni /var/lib/cni; mount -t tmpfs -o mode=755 e2e-log /var/log; ip link set lo up; ip link add eth0 type veth peer name uplink; ip link set uplink up; \
                  ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.1; \
                  ip -6 addr add 2001:db8::2/64 dev eth0 nodad && ip -6 route add default via 2001:db8::1 || true";
    sh::script(Path::new("/"), script, 20).await?;
    if resolv.starts_with("/run") {
        fs::create_dir_all(resolv.parent().unwrap_or(Path::new("/run")))?;
        fs::write(resolv, text)?;
    }
    Ok(())
}

/// Processes whose command line or cgroup holds `mark`, other than ourselves.
pub(crate) fn marked(mark: &str) -> Vec<(i32, String)> {
    let us = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let read = |f: &str| {
            fs::read(entry.path().join(f)).map(|b| String::from_utf8_lossy(&b).replace('\0', " ")).unwrap_or_default()
        };
        let cmdline = read("cmdline");
        if pid != us && (cmdline.contains(mark) || read("cgroup").contains(mark)) {
            found.push((pid, cmdline));
        }
    }
    found
}

/// SIGKILLs them; for cleaning up after a failure.
pub(crate) fn kill_marked(mark: &str) {
    for (pid, _) in marked(mark) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// All cgroups whose path below a hierarchy holds `mark`, deepest first.
pub(crate) fn cgroups(mark: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, mark: &str, depth: u32, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if depth < 8 && entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&entry.path(), mark, depth + 1, found);
                if entry.path().to_string_lossy().contains(mark) {
                    found.push(entry.path());
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), mark, 0, &mut found);
    found
}

/// Removes cgroups by their mark.
pub(crate) fn remove_cgroups(mark: &str) {
    for _ in 0..20 {
        let mut left = false;
        for c in cgroups(mark) {
            left |= fs::remove_dir(c).is_err();
        }
        if !left {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Mount points below `dir` here, last mounted first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let prefix = dir.to_string_lossy().into_owned();
    table
        .lines()
        .rev()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|m| m.starts_with(&prefix))
        .map(str::to_owned)
        .collect()
}

/// Unmounts what is left below `dir`.
pub(crate) fn unmount_below(dir: &Path) {
    for m in mounts_below(dir) {
        let _ = rustix::mount::unmount(m.as_str(), rustix::mount::UnmountFlags::DETACH);
    }
}
