//! What we build, run for real: needs root, busybox-static, util-linux and runc (in PATH, and the one in the test cache
//! where there is one). A pod is here a process in namespaces of its own.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::cgroup;

/// The static monitor: the program of a PID namespace's holder.
static MONITOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crisp-monitor"));

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
struct Pod {
    case: Case,
    runtime: PathBuf,
    id: String,
    dir: tempfile::TempDir,
    holder: Child,
}

impl Pod {
    fn new(runtime: &Path, user: bool) -> Self {
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

    fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "no {what} with {}", self.runtime.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn cgroup(&self) -> String {
        format!("/crisp-test-run/{}", self.id)
    }

    fn call(&self, verb: &[&str]) -> Output {
        let root = self.dir.path().join("runtime");
        let mut runtime = Command::new(&self.runtime);
        runtime.arg("--root").arg(root).args(verb).env_clear().stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a shell script as the container, and gives what it wrote.
    fn run(&mut self, script: &str) -> String {
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

    fn write(&self, spec: &oci::Spec) {
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

fn each(user: bool, test: impl Fn(Pod)) {
    for runtime in runtimes() {
        test(Pod::new(&runtime, user));
    }
}

#[test]
fn an_ordinary_container_is_what_it_was_asked_to_be() {
    each(false, |mut pod| {
        pod.case.user = ResolvedUser { uid: 12, gid: 34, groups: vec![34, 56] };
        pod.case.container.working_dir = "/made/for/me".into();
        pod.case.container.security.masked_paths = strings(&["/proc/interrupts", "/not/there"]);
        pod.case.container.security.readonly_paths = strings(&["/proc/sys"]);
        pod.case.container.security.no_new_privs = true;
        let out = pod.run(
            "id -u; id -g; id -G; pwd; hostname; echo $HOSTNAME; cat /etc/hosts; grep NoNewPrivs /proc/self/status;\
             ls /dev/shm/; touch /dev/shm/x && echo shm; touch /sys/x; grep -c . /proc/interrupts; echo $$",
        );
        let expected = "12\n34\n34 56\n/made/for/me\npod-host\npod-host\nof the pod: hosts\nNoNewPrivs:\t1\nshm\n";
        assert!(out.starts_with(expected), "{out}");
        assert!(out.contains("touch: /sys/x: Read-only file system") && out.contains("0\n1\n"), "{out}");
    });
}

#[test]
fn limits_reach_the_cgroup() {
    each(false, |mut pod| {
        let host = &pod.case.host;
        let v2 = host.cgroups.version == Version::V2;
        let Some(dir) = host.cgroups.memory_dir(&pod.cgroup()) else { return };
        let resources = &mut pod.case.container.resources;
        (resources.memory_limit, resources.cpu_quota, resources.cpu_shares) = (64 << 20, 20_000, 512);
        resources.oom_score_adj = -1000;
        let lowest = if host.can_lower_oom_score { -1000 } else { host.oom_score_adj };
        let limit = dir.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
        // The node's cgroups, seen from inside while the container runs.
        pod.case.container.mounts = vec![Mount {
            container_path: "/cgroup".into(),
            source: MountSource::Host(dir.parent().unwrap().parent().unwrap().to_str().unwrap().into()),
            readonly: true,
            recursive_read_only: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }];
        let file = Path::new("/cgroup").join(limit.strip_prefix(dir.parent().unwrap().parent().unwrap()).unwrap());
        let out = pod.run(&format!("cat {} /proc/self/oom_score_adj", file.display()));
        assert_eq!(out, format!("{}\n{lowest}\n", 64 << 20));
    });
}

#[test]
fn a_privileged_container_can_do_what_the_node_can() {
    each(false, |mut pod| {
        let script = "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted; ls /dev; touch /sys/x";
        let ordinary = pod.run(script);
        assert!(ordinary.contains("CapEff:\t00000000a80425fb") && !ordinary.contains("mounted"), "{ordinary}");
        (pod.case.sandbox.privileged, pod.case.container.security.privileged) = (true, true);
        let out = pod.run(script);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        assert!(out.contains(&format!("CapEff:\t{own}\nmounted\n")), "{out}");
        assert!(out.contains("\nkmsg\n") && !ordinary.contains("\nkmsg\n"), "{out}");
        assert!(!out.contains("/sys/x: Read-only"), "{out}");
    });
}

#[test]
fn a_read_only_container_writes_to_shm_only() {
    each(false, |mut pod| {
        pod.case.container.security.readonly_rootfs = true;
        let out =
            pod.run("for f in /x /etc/hosts /etc/resolv.conf /dev/shm/x; do touch $f && echo $f is writable; done");
        assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
        assert!(out.contains("/dev/shm/x is writable"), "{out}");
    });
}

#[test]
fn the_built_in_profile_keeps_user_namespaces_out() {
    each(false, |mut pod| {
        let script = "unshare -U true && echo made; grep ^Seccomp: /proc/self/status; unshare -U true; echo $?";
        let unconfined = pod.run(script);
        assert!(unconfined.contains("made") && unconfined.contains("Seccomp:\t0"), "{unconfined}");
        pod.case.container.security.seccomp = SeccompProfile::RuntimeDefault;
        let out = pod.run(script);
        assert!(
            !out.contains("made") && out.contains("Operation not permitted") && out.contains("Seccomp:\t2"),
            "{out}"
        );
        // What a capability is for, it opens.
        pod.case.container.security.add_capabilities = strings(&["SYS_ADMIN"]);
        assert!(pod.run(script).contains("made"));
    });
}

#[test]
fn a_profile_of_the_node_is_obeyed() {
    each(false, |mut pod| {
        let profile = pod.dir.path().join("profile.json");
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],
            "action":"SCMP_ACT_ERRNO","errnoRet":2}]}"#;
        std::fs::write(&profile, json).unwrap();
        symlink("busybox", pod.case.paths.rootfs.join("bin/mkdir")).unwrap();
        pod.case.container.security.seccomp = SeccompProfile::Localhost(profile.to_str().unwrap().into());
        let out = pod.run("mkdir /tmp/x; touch /tmp/y && echo touched");
        assert!(out.contains("No such file or directory") && out.contains("touched"), "{out}");
    });
}

#[test]
fn in_a_user_namespace_root_is_nobody() {
    each(true, |mut pod| {
        pod.case.sandbox.namespaces.user = Some(mapping());
        // On a mount with flags that cannot be cleared from inside.
        let volume = Path::new("/dev/shm").join(format!("crisp-test-{}", pod.id));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("file"), "content").unwrap();
        let volume = scopeguard(volume);
        pod.case.container.mounts = vec![Mount {
            container_path: "/data".into(),
            source: MountSource::Host(volume.0.to_str().unwrap().into()),
            readonly: true,
            recursive_read_only: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }];
        let out = pod.run(
            "cat /proc/self/uid_map; id -u; stat -c %u /bin; touch /made && stat -c %u /made; cat /data/file; echo;\
             stat -c %u /data; touch /data/x; hostname; ls -d /sys/class/net/lo /dev/mqueue /dev/pts/ptmx",
        );
        let fields: Vec<&str> = out.split_ascii_whitespace().take(9).collect();
        assert_eq!(fields, ["0", "100000", "65536", "0", "0", "0", "content", "65534", "touch:"], "{out}");
        assert!(out.contains("/data/x: Read-only file system") && out.contains("pod-host"), "{out}");
        assert!(out.contains("/sys/class/net/lo\n"), "{out}");
        let made = std::fs::metadata(pod.case.paths.rootfs.join("made")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
    });
}

/// Removes a directory of a test's own.
struct Removed(PathBuf);

fn scopeguard(path: PathBuf) -> Removed {
    Removed(path)
}

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_holder_gives_its_pid_namespace_and_nothing_else() {
    each(false, |pod| holder(pod, None));
    each(true, |pod| holder(pod, Some(mapping())));
}

fn holder(mut pod: Pod, user: Option<UserMapping>) {
    pod.case.sandbox.namespaces.user = user;
    pod.case.container.security.namespaces.pid = NamespaceMode::Pod;
    let mut first = Pod::new(&pod.runtime, false);
    let rootfs = first.dir.path().join("holder");
    for name in ["", "proc", "dev"] {
        std::fs::create_dir(rootfs.join(name)).unwrap();
    }
    std::fs::write(rootfs.join("pause"), MONITOR).unwrap();
    std::fs::set_permissions(rootfs.join("pause"), std::fs::Permissions::from_mode(0o755)).unwrap();
    first.case.paths = pod.case.paths.clone();
    let shared = shared(&pod.case.sandbox, &pod.case.container).unwrap();
    let spec = pause::build(&pause::Holder {
        rootfs: &rootfs,
        args: &["/pause", "pause"],
        shared: &shared,
        paths: &pod.case.paths,
        cgroup: &first.cgroup(),
        host: &pod.case.host,
        features: &pod.case.features,
    });
    first.write(&spec.unwrap());
    let pid_file = first.dir.path().join("pid");
    // Its output goes nowhere: the process lives longer than the call.
    let mut create = Command::new(&first.runtime);
    create.arg("--root").arg(first.dir.path().join("runtime")).args(["create", "--pid-file"]).arg(&pid_file);
    create.arg("--bundle").arg(first.dir.path()).arg(&first.id).env_clear();
    let log = std::fs::File::create(first.dir.path().join("log")).unwrap();
    create.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let said = || std::fs::read_to_string(first.dir.path().join("log")).unwrap();
    assert!(create.status().unwrap().success(), "{}: {}", first.runtime.display(), said());
    let started = first.call(&["start", &first.id]);
    assert!(started.status.success(), "{}{}", String::from_utf8_lossy(&started.stderr), said());
    let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    first.wait_for("program", || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "pause");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    pod.case.paths.pid = Some(format!("/proc/{pid}/ns/pid").into());
    let out = pod.run("ps -o pid,comm; cat /proc/1/environ; cat /proc/1/mem; ls /proc/1/root/");
    assert!(out.contains("1 pause\n"), "{out}");
    assert!(out.matches("Permission denied").count() >= 2, "{out}");
    // It reaps what is orphaned, and ends when it is told to.
    first.call(&["kill", &first.id, "TERM"]);
    first.wait_for("end of the holder", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}
