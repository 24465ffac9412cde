//! A pod to run specifications in: a process in namespaces of its own, a bundle, and runc.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::cgroup;

/// Every runc that is there, by path.
fn runtimes() -> Vec<PathBuf> {
    let cache = std::env::var_os("CRISP_CACHE").map_or_else(|| PathBuf::from("/var/cache/crisp"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join("runc"));
    let found: Vec<PathBuf> =
        in_path.into_iter().find(|runc| runc.is_file()).into_iter().chain([cache.join("bin/runc")]).collect();
    let found: Vec<PathBuf> = found.into_iter().filter(|runc| runc.is_file()).collect();
    assert!(!found.is_empty() && rustix::process::getuid().is_root(), "needs runc and root");
    found
}

/// A pod with a bundle in it, and the runtime that runs it.
pub(super) struct Pod {
    pub(super) case: Case,
    pub(super) runtime: PathBuf,
    pub(super) id: String,
    pub(super) dir: tempfile::TempDir,
    holder: Child,
}

impl Pod {
    pub(super) fn new(runtime: &Path, user: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let owner = if user { 100_000 } else { 0 };
        let rootfs = dir.path().join("rootfs");
        for name in ["", "bin", "etc", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir(rootfs.join(name)).unwrap();
            chown(rootfs.join(name), Some(owner), Some(owner)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "mount", "unshare", "touch", "cat", "ls", "id", "grep", "ps", "hostname", "stat", "true"] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        for file in ["hosts", "resolv.conf", "hostname"] {
            std::fs::write(dir.path().join(file), format!("of the pod: {file}\n")).unwrap();
        }
        std::fs::create_dir(dir.path().join("shm")).unwrap();
        std::fs::set_permissions(dir.path().join("shm"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--ipc", "--uts"]).args(user.then_some("--user"));
        let holder = unshare.args(["sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
        let namespaces = PathBuf::from(format!("/proc/{}/ns", holder.id()));
        let mut case = Case::new();
        case.host = HostFacts::read().unwrap();
        let features = Command::new(runtime).arg("features").output().unwrap();
        case.features = Features::parse(&features.stdout).unwrap();
        case.paths = BundlePaths {
            rootfs,
            ipc: namespaces.join("ipc"),
            uts: namespaces.join("uts"),
            user: namespaces.join("user"),
            net: namespaces.join("net"),
            shm: dir.path().join("shm"),
            ..BundlePaths::new(dir.path(), dir.path(), Path::new(""))
        };
        let id = format!("{:0>64}", format!("{:x}{:x}", holder.id(), std::process::id()));
        let pod = Self { case, runtime: runtime.to_owned(), id, dir, holder };
        pod.wait_for("its namespaces", || {
            let other = |name| {
                std::fs::read_link(namespaces.join(name)).ok()
                    != std::fs::read_link(Path::new("/proc/self/ns").join(name)).ok()
            };
            other("uts") && (!user || other("user"))
        });
        if user {
            for map in ["uid_map", "gid_map"] {
                std::fs::write(format!("/proc/{}/{map}", pod.holder.id()), "0 100000 65536").unwrap();
            }
        }
        pod
    }

    pub(super) fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "no {what} with {}", self.runtime.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn cgroup(&self) -> String {
        format!("/crisp-test-run/{}", self.id)
    }

    pub(super) fn call(&self, verb: &[&str]) -> Output {
        let root = self.dir.path().join("runtime");
        let mut runtime = Command::new(&self.runtime);
        runtime.arg("--root").arg(root).args(verb).env_clear().stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a shell script as the container, and gives what it wrote.
    pub(super) fn run(&mut self, script: &str) -> String {
        let script = format!("exec 2>&1; {script}; exit 0");
        self.case.container.command = strings(&["/bin/sh", "-c", &script]);
        self.case.container.envs = vec![("PATH".into(), "/bin".into())];
        let shared = shared(&self.case.sandbox, &self.case.container).unwrap();
        self.case.node = Node::read(&self.case.container, &shared).unwrap();
        let cgroup = self.cgroup();
        let spec = build(&Inputs {
            sandbox: &self.case.sandbox,
            container: &self.case.container,
            image: &self.case.image,
            user: &self.case.user,
            host: &self.case.host,
            features: &self.case.features,
            node: &self.case.node,
            cgroup: &cgroup,
            paths: &self.case.paths,
            open_files: self.case.open_files,
        });
        self.run_spec(&spec.unwrap())
    }

    fn run_spec(&self, spec: &oci::Spec) -> String {
        self.write(spec);
        let output = self.call(&["run", "--bundle", self.dir.path().to_str().unwrap(), &self.id]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // The runtime's own warnings go to its standard error, what the container says to its output.
        assert!(
            output.status.success(),
            "{}: {}{}",
            self.runtime.display(),
            text(&output.stderr),
            text(&output.stdout)
        );
        text(&output.stdout)
    }

    pub(super) fn write(&self, spec: &oci::Spec) {
        std::fs::write(self.dir.path().join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let own = cgroup::OwnCgroup::new(&self.cgroup()).unwrap();
        self.call(&["delete", "--force", &self.id]);
        let _ = cgroup::kill(&self.case.host.cgroups, &own);
        let _ = cgroup::remove(&self.case.host.cgroups, &own);
        let _ = cgroup::remove_if_empty(&self.case.host.cgroups, "/crisp-test-run");
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A volume of a directory of the node.
pub(super) fn volume(source: &Path, destination: &str, readonly: bool) -> Mount {
    Mount {
        container_path: destination.into(),
        source: MountSource::Host(source.to_str().unwrap().into()),
        readonly,
        recursive_read_only: false,
        propagation: Propagation::Private,
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    }
}

pub(super) fn each(user: bool, test: impl Fn(Pod)) {
    for runtime in runtimes() {
        test(Pod::new(&runtime, user));
    }
}

/// Removes a directory of a test's own.
pub(super) struct Removed(pub(super) PathBuf);

/// Takes away a mount of a test's own.
pub(super) struct Mounted(pub(super) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
