//! A real runtime's containers in a pod's namespaces, fetched as the module documentation of `pin` tells: nothing of it is
//! mounted on the host. Root; needs busybox (static) and runc, Debian's and the newer one where it was built.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod common;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Scratch, apart, cache, destroy, inode};
use crisp_netns::pin::layout;
use crisp_netns::{IdMapping, PodNamespaces, UserMapping};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde_json::json;

const NAMES: [&str; 4] = [layout::IPC, layout::UTS, layout::USER, layout::SHM];

/// Runs a shell script in a container of the pod and gives what it wrote.
fn container(
    scratch: &Scratch,
    runc: &Path,
    pod: &str,
    number: u32,
    user: Option<&UserMapping>,
    script: &str,
) -> String {
    let bundle = scratch.path(&format!("bundle{number}"));
    fs::create_dir_all(bundle.join("ns")).unwrap();
    fs::create_dir(bundle.join(layout::SHM)).unwrap();
    for name in [layout::IPC, layout::UTS, layout::USER] {
        fs::write(bundle.join("ns").join(name), "").unwrap();
    }
    let id = format!("{}c{number}", scratch.name);
    let path = |name: &str| bundle.join("ns").join(name);
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "pid"}),
        json!({"type": "network", "path": scratch.netns_dir().join(format!("{}-{pod}", scratch.name))}),
        json!({"type": "ipc", "path": path(layout::IPC)}),
        json!({"type": "uts", "path": path(layout::UTS)}),
    ];
    let mut linux = json!({"cgroupsPath": format!("/{id}")});
    if let Some(user) = user {
        namespaces.push(json!({"type": "user", "path": path(layout::USER)}));
        let lines = |ids: &[IdMapping]| -> Vec<_> {
            let line =
                |id: &IdMapping| json!({"containerID": id.container_id, "hostID": id.host_id, "size": id.length});
            ids.iter().map(line).collect()
        };
        linux["uidMappings"] = lines(&user.uids).into();
        linux["gidMappings"] = lines(&user.gids).into();
    }
    linux["namespaces"] = namespaces.into();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": scratch.path("rootfs"), "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "bind", "source": bundle.join(layout::SHM),
             "options": ["rbind", "rw", "nosuid", "nodev", "noexec"]},
        ],
        "linux": linux,
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();

    let output = apart(|| {
        fetch(&scratch.state(), pod, &bundle);
        // The child inherits this thread's mount namespace.
        Command::new(runc)
            .args(["--root".as_ref(), scratch.path("runc").as_os_str(), "run".as_ref(), "--bundle".as_ref()])
            .args([bundle.as_os_str(), id.as_ref()])
            .output()
            .unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{runc:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The four steps.
fn fetch(state: &Path, pod: &str, bundle: &Path) {
    let host = fs::File::open("/proc/thread-self/ns/mnt").unwrap();
    let private = fs::File::open(state.join(layout::DIR).join(layout::MNT)).unwrap();
    move_into_link_name_space(private.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let trees: Vec<(&str, OwnedFd)> = NAMES
        .into_iter()
        .filter_map(|name| Some((name, open_tree(CWD, Path::new(layout::PODS).join(pod).join(name), flags).ok()?)))
        .collect();
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
    #[allow(deprecated)] // sound for this flag
    rustix::thread::unshare(UnshareFlags::NEWNS).unwrap();
    rustix::mount::mount_bind(bundle, bundle).unwrap();
    rustix::mount::mount_change(bundle, MountPropagationFlags::PRIVATE).unwrap();
    for (name, tree) in trees {
        // Paths from before the bind lead below it: resolved anew here.
        let target = if name == layout::SHM { bundle.join(name) } else { bundle.join("ns").join(name) };
        move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
    }
}

fn runtimes() -> Vec<PathBuf> {
    let debian = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().map(PathBuf::from);
    let found: Vec<PathBuf> = debian.chain([cache().join("bin/runc")]).filter(|path| path.exists()).collect();
    assert!(!found.is_empty(), "no runc: install the package `runc`");
    found
}

fn rootfs(scratch: &Scratch) {
    let rootfs = scratch.path("rootfs");
    for dir in ["bin", "proc", "dev"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("install the package `busybox-static`");
    for applet in ["sh", "cat", "hostname", "stat", "readlink", "ls"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    // A pod's root must reach its root file system by path.
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o711)).unwrap();
}

fn share(user: Option<UserMapping>) {
    for runc in runtimes() {
        let scratch = Scratch::new();
        rootfs(&scratch);
        let pins = scratch.pins();
        let pod = PodNamespaces {
            net: true,
            ipc: true,
            uts: true,
            hostname: Some("web-0".to_owned()),
            user: user.clone(),
            ..PodNamespaces::default()
        };
        pins.create("p1", &pod).unwrap();
        let before = scratch.mounts();
        let first = container(
            &scratch,
            &runc,
            "p1",
            1,
            user.as_ref(),
            "hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; echo hello > /dev/shm/word",
        );
        let second = container(
            &scratch,
            &runc,
            "p1",
            2,
            user.as_ref(),
            "hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; cat /dev/shm/word; stat -c %u:%a /dev/shm",
        );
        let lines: Vec<&str> = second.lines().collect();
        assert_eq!(lines[0], "web-0");
        assert_eq!(lines[1], format!("net:[{}]", inode(pins.net_path("p1"))));
        assert_eq!(first.lines().collect::<Vec<_>>(), lines[..3], "both containers are in the same namespaces");
        assert_eq!(lines[3..], ["hello", "0:1777"], "the pod's /dev/shm is shared, and its root's");
        assert_eq!(scratch.mounts(), before, "nothing of a container is left on the host");
        assert!(pins.exists("p1", &pod), "the pod's own pins are untouched");
        destroy(&scratch.state(), pins);
    }
}

#[test]
fn containers_of_a_pod_share_its_namespaces() {
    share(None);
}

#[test]
fn containers_of_a_pod_with_a_user_namespace_share_its_namespaces() {
    let ids = vec![IdMapping { container_id: 0, host_id: 1_000_000, length: 65536 }];
    share(Some(UserMapping { uids: ids.clone(), gids: ids }));
}
