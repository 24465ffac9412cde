//! What we build, run for real: needs root, busybox-static, util-linux and runc (in PATH, and the one in the test cache
//! where there is one).

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::pod::{Mounted, Pod, Removed, each, volume};
use super::*;

/// The static monitor: the program of a PID namespace's holder.
static MONITOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crisp-monitor"));

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
        let pods = dir.parent().unwrap().parent().unwrap();
        pod.case.container.mounts = vec![volume(pods, "/cgroup", true)];
        let file = Path::new("/cgroup").join(limit.strip_prefix(pods).unwrap());
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
        let dir = Removed(Path::new("/dev/shm").join(format!("crisp-test-{}", pod.id)));
        std::fs::create_dir(&dir.0).unwrap();
        std::fs::write(dir.0.join("file"), "content").unwrap();
        pod.case.container.mounts = vec![volume(&dir.0, "/data", true)];
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

#[test]
fn a_mapped_volume_keeps_the_owners_of_the_node() {
    each(true, |mut pod| {
        pod.case.sandbox.namespaces.user = Some(mapping());
        let dir = pod.dir.path().join("volume");
        std::fs::create_dir(&dir).unwrap();
        let mut mount = volume(&dir, "/data", false);
        (mount.uid_mappings, mount.gid_mappings) = (mapping().uids, mapping().gids);
        pod.case.container.mounts = vec![mount];
        if !pod.case.features.idmap {
            let shared = shared(&pod.case.sandbox, &pod.case.container).unwrap();
            pod.case.node = Node::read(&pod.case.container, &shared).unwrap();
            return assert!(pod.case.error().contains("id mapping"), "an old runtime would leave it out silently");
        }
        assert_eq!(pod.run("stat -c %u /data; touch /data/x; stat -c %u /data/x"), "0\n0\n");
        let made = std::fs::metadata(dir.join("x")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0);
    });
}

#[test]
fn only_recursive_read_only_reaches_what_is_mounted_below() {
    each(false, |mut pod| {
        let dir = pod.dir.path().join("volume");
        let below = Mounted(dir.join("below"));
        std::fs::create_dir_all(&below.0).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&below.0).status().unwrap();
        assert!(mounted.success());
        let mut mount = volume(&dir, "/data", true);
        let script = "touch /data/x; touch /data/below/x && echo written";
        pod.case.container.mounts = vec![mount.clone()];
        let out = pod.run(script);
        assert!(out.contains("/data/x: Read-only") && out.contains("written"), "{out}");
        mount.recursive_read_only = true;
        pod.case.container.mounts = vec![mount];
        let out = pod.run(script);
        assert!(out.contains("/data/below/x: Read-only") && !out.contains("written"), "{out}");
    });
}

#[test]
fn a_restricted_container_runs() {
    each(false, |mut pod| {
        pod.case.user = ResolvedUser { uid: 1000, gid: 1000, groups: vec![1000] };
        let security = &mut pod.case.container.security;
        security.drop_capabilities = strings(&["ALL"]);
        (security.no_new_privs, security.readonly_rootfs) = (true, true);
        security.seccomp = SeccompProfile::RuntimeDefault;
        pod.case.container.devices = vec![crate::model::Device {
            container_path: "/dev/nothing".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }];
        let out = pod.run("id -u; grep -E '^(Cap(Bnd|Eff|Inh|Amb)|Seccomp):' /proc/self/status; echo x > /dev/nothing");
        let none = "0000000000000000";
        assert_eq!(
            out,
            format!("1000\nCapInh:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\nSeccomp:\t2\n")
        );
    });
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
