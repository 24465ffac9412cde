//! Namespaces that outlive whoever made them. Root: real namespaces and mounts, below a directory of the test's own.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Scratch, apart, destroy, inode};
use crisp_netns::pin::{Error, layout};
use crisp_netns::{IdMapping, Pins, PodNamespaces, UserMapping, enter};
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn all() -> PodNamespaces {
    PodNamespaces {
        net: true,
        ipc: true,
        uts: true,
        hostname: Some("web-0".to_owned()),
        domainname: Some("example.org".to_owned()),
        user: None,
        shm_size: None,
        sysctls: BTreeMap::new(),
    }
}

fn mapped() -> PodNamespaces {
    let ids = vec![IdMapping { container_id: 0, host_id: 1_000_000, length: 65536 }];
    PodNamespaces { user: Some(UserMapping { uids: ids.clone(), gids: ids }), ..all() }
}

/// Looks around inside the private mount namespace, as the process that fetches a pod's namespaces does.
fn inside<T: Send>(scratch: &Scratch, work: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open(scratch.state().join(layout::DIR).join(layout::MNT)).unwrap();
    apart(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
        work()
    })
}

/// Enters one of the pod's namespaces on a thread of its own.
fn joined<T: Send>(
    scratch: &Scratch,
    pod: &str,
    name: &str,
    kind: LinkNameSpaceType,
    work: impl FnOnce() -> T + Send,
) -> T {
    let path = Path::new(layout::PODS).join(pod).join(name);
    let namespace = inside(scratch, || fs::File::open(path).unwrap());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

fn sysctl(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).unwrap().trim().to_owned()
}

fn lo_is_up() -> bool {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", "lo"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().contains("LOOPBACK,UP")
}

#[test]
fn a_pod_has_namespaces_of_its_own_set_up_and_pinned() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let mut pod = all();
    pod.sysctls = BTreeMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
        ("kernel.msgmax".to_owned(), "12345".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "17".to_owned()),
    ]);
    pins.create("a1", &pod).unwrap();
    assert!(pins.exists("a1", &pod));

    let net = pins.net_path("a1");
    assert_ne!(inode(&net), inode("/proc/self/ns/net"));
    let (up, port, range) = enter::netns(&net, || {
        (lo_is_up(), sysctl("net.ipv4.ip_unprivileged_port_start"), sysctl("net.ipv4.ping_group_range"))
    })
    .unwrap();
    assert!(up, "lo is not up");
    assert_eq!((port.as_str(), range.as_str()), ("0", "0\t2147483647"));

    let (msgmax, mqueue) = joined(&scratch, "a1", layout::IPC, LinkNameSpaceType::InterProcessCommunication, || {
        (sysctl("kernel.msgmax"), sysctl("fs.mqueue.msg_max"))
    });
    assert_eq!((msgmax.as_str(), mqueue.as_str()), ("12345", "17"));
    let names = joined(&scratch, "a1", layout::UTS, LinkNameSpaceType::HostNameAndNISDomainName, || {
        (sysctl("kernel.hostname"), sysctl("kernel.domainname"))
    });
    assert_eq!(names, ("web-0".to_owned(), "example.org".to_owned()));

    let (mode, table) = inside(&scratch, || {
        let mode = fs::metadata("/pods/a1/shm").unwrap().permissions().mode();
        let stat = rustix::fs::statvfs("/pods/a1/shm").unwrap();
        (mode, stat)
    });
    assert_eq!(mode & 0o7777, 0o1777);
    assert_eq!(table.f_blocks * table.f_frsize, 64 << 20);
    let flags = rustix::fs::StatVfsMountFlags::NOSUID
        | rustix::fs::StatVfsMountFlags::NODEV
        | rustix::fs::StatVfsMountFlags::NOEXEC;
    assert!(table.f_flag.contains(flags), "{:?}", table.f_flag);
    destroy(&scratch.state(), pins);
}

#[test]
fn the_host_sees_three_mounts_and_one_more_for_each_pod() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let pod = all();
    pins.create("a1", &pod).unwrap();
    let before = scratch.mounts();
    assert_eq!(before.len(), 4, "state/ns, state/ns/mnt, netns, and the pod: {before:?}");
    pins.create("a2", &pod).unwrap();
    assert_eq!(scratch.mounts().len(), 5);
    let table = inside(&scratch, || fs::read_dir("/").unwrap().count());
    assert_eq!(table, 1, "only /pods: nothing of the host is kept busy");
    destroy(&scratch.state(), pins);
}

#[test]
fn making_a_pod_again_changes_nothing_and_a_later_server_finds_it() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pins.create("a1", &all()).unwrap();
    let net = inode(pins.net_path("a1"));
    let private = inode(scratch.state().join("ns/mnt"));
    pins.create("a1", &all()).unwrap();
    assert_eq!(inode(pins.net_path("a1")), net);

    drop(pins);
    let pins = scratch.pins();
    assert_eq!(inode(scratch.state().join("ns/mnt")), private);
    assert!(pins.exists("a1", &all()));
    assert_eq!(pins.list().unwrap().into_iter().collect::<Vec<_>>(), ["a1"]);
    destroy(&scratch.state(), pins);
}

#[test]
fn a_removed_pod_leaves_nothing_and_can_be_removed_again() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pins.remove("never").unwrap();
    pins.create("a1", &mapped()).unwrap();
    pins.remove("a1").unwrap();
    pins.remove("a1").unwrap();
    assert!(!pins.exists("a1", &all()));
    assert!(pins.list().unwrap().is_empty());
    assert_eq!(scratch.mounts().len(), 3);
    assert_eq!(inside(&scratch, || fs::read_dir("/pods").unwrap().count()), 0);
    destroy(&scratch.state(), pins);
    assert!(!scratch.state().join("ns").exists());
}

#[test]
fn a_pod_is_removed_while_somebody_uses_its_namespaces_and_when_its_pin_is_gone() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pins.create("a1", &all()).unwrap();
    let path = pins.net_path("a1");
    enter::netns(&path, || pins.remove("a1").unwrap()).unwrap();
    assert!(!path.exists());

    pins.create("a2", &all()).unwrap();
    let path = pins.net_path("a2");
    rustix::mount::unmount(&path, UnmountFlags::DETACH).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!pins.exists("a2", &all()));
    pins.remove("a2").unwrap();
    assert!(pins.list().unwrap().is_empty());
    destroy(&scratch.state(), pins);
}

#[test]
fn what_a_crash_cut_short_is_made_anew() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    for gone in [layout::IPC, layout::UTS, layout::USER, layout::SHM, "net"] {
        pins.create("a1", &mapped()).unwrap();
        let path = pins.net_path("a1");
        if gone == "net" {
            rustix::mount::unmount(&path, UnmountFlags::DETACH).unwrap();
        } else {
            inside(&scratch, || {
                rustix::mount::unmount(format!("/pods/a1/{gone}"), UnmountFlags::DETACH).unwrap();
            });
        }
        assert!(!pins.exists("a1", &mapped()), "{gone}");
        assert_eq!(pins.list().unwrap().len(), 1);
        pins.create("a1", &mapped()).unwrap();
        assert!(pins.exists("a1", &mapped()), "{gone}");
    }
    destroy(&scratch.state(), pins);
}

#[test]
fn files_that_a_reboot_left_are_no_pins() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pins.create("a1", &all()).unwrap();
    drop(pins);
    // A reboot takes all mounts; where /run is on a disk, the files stay.
    for mount in scratch.mounts().iter().rev() {
        rustix::mount::unmount(mount, UnmountFlags::DETACH).unwrap();
    }
    assert!(scratch.state().join("ns/mnt").is_file());

    let pins = scratch.pins();
    assert!(!pins.exists("a1", &all()));
    assert_eq!(pins.list().unwrap().into_iter().collect::<Vec<_>>(), ["a1"], "its leftover is attributed");
    pins.create("a1", &all()).unwrap();
    assert!(pins.exists("a1", &all()));
    destroy(&scratch.state(), pins);
}

#[test]
fn a_first_start_that_was_killed_is_finished() {
    let scratch = Scratch::new();
    // Killed after the directory was bound, before it was private and before the pin was more than a file.
    let dir = scratch.state().join("ns");
    fs::create_dir_all(&dir).unwrap();
    rustix::mount::mount_bind(&dir, &dir).unwrap();
    fs::write(dir.join("mnt"), "").unwrap();
    let pins = scratch.pins();
    pins.create("a1", &all()).unwrap();
    assert_eq!(scratch.mounts().iter().filter(|mount| **mount == dir).count(), 1);
    destroy(&scratch.state(), pins);
}

#[test]
fn a_private_namespace_that_cannot_be_entered_is_an_error_and_stays() {
    let scratch = Scratch::new();
    scratch.pins().create("a1", &all()).unwrap();
    let mnt = scratch.state().join("ns/mnt");
    // In its place stands something that setns refuses, as it refuses anything when there is no memory or no descriptor.
    rustix::mount::mount_bind("/proc/self/ns/uts", &mnt).unwrap();
    let refused = Pins::open_in(&scratch.state(), &scratch.name, &scratch.netns_dir()).unwrap_err();
    assert!(matches!(refused, Error::Path { ref path, .. } if *path == mnt), "{refused}");
    rustix::mount::unmount(&mnt, UnmountFlags::DETACH).unwrap();
    let pins = scratch.pins();
    assert!(pins.exists("a1", &all()));
    destroy(&scratch.state(), pins);
}

#[test]
fn namespaces_of_another_instance_are_not_listed() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let other = format!("{}-2", scratch.name);
    let state = scratch.path("state2");
    let others = Pins::open_in(&state, &other, &scratch.netns_dir()).unwrap();
    others.create("b1", &PodNamespaces { net: true, ..PodNamespaces::default() }).unwrap();
    assert!(pins.list().unwrap().is_empty());
    assert_eq!(others.list().unwrap().len(), 1);
    destroy(&state, others);
    destroy(&scratch.state(), pins);
}

#[test]
fn pods_and_ip_netns_share_a_directory() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("run")).unwrap();
    apart(|| {
        // A machine with an empty /run.
        #[allow(deprecated)] // sound for this flag
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        rustix::mount::mount_bind(scratch.path("run"), "/run").unwrap();
        let ip = |arguments: &[&str]| {
            let status = std::process::Command::new("ip").args(arguments).status().unwrap();
            assert!(status.success(), "{arguments:?}");
        };
        let pins = Pins::open(Path::new("/run/state"), &scratch.name).unwrap();
        pins.create("a1", &all()).unwrap();
        // Would bind the directory onto itself, over the pin, had it not been done before.
        ip(&["netns", "add", "other"]);
        pins.create("a2", &all()).unwrap();
        ip(&["netns", "exec", &format!("{}-a1", scratch.name), "true"]);
        pins.remove("a1").unwrap();
        pins.remove("a2").unwrap();
        assert!(!pins.net_path("a1").exists() && !pins.net_path("a2").exists());
        ip(&["netns", "exec", "other", "true"]);
        ip(&["netns", "del", "other"]);
        destroy(Path::new("/run/state"), pins);
    });
}

#[test]
fn a_pod_on_the_host_has_nothing_pinned() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pins.create("a1", &PodNamespaces::default()).unwrap();
    assert!(pins.exists("a1", &PodNamespaces::default()));
    assert!(pins.list().unwrap().is_empty());
    assert!(!scratch.netns_dir().exists(), "the netns directory is made when it is needed");
    destroy(&scratch.state(), pins);
}

#[test]
fn a_user_namespace_owns_the_others() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let mut pod = mapped();
    pod.sysctls = BTreeMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("fs.mqueue.queues_max".to_owned(), "33".to_owned()),
    ]);
    pins.create("a1", &pod).unwrap();
    assert!(pins.exists("a1", &pod));
    assert!(!pins.exists("a2", &pod));

    let port = enter::netns(&pins.net_path("a1"), || {
        assert!(lo_is_up());
        sysctl("net.ipv4.ip_unprivileged_port_start")
    });
    assert_eq!(port.unwrap(), "0");
    // Parameters below /proc/sys/net show as files of the owner's root.
    let uid = enter::netns(&pins.net_path("a1"), || fs::metadata("/proc/sys/net/core/somaxconn").unwrap().uid());
    assert_eq!(uid.unwrap(), 1_000_000);
    let ipc = joined(&scratch, "a1", layout::IPC, LinkNameSpaceType::InterProcessCommunication, || {
        (sysctl("kernel.shm_rmid_forced"), sysctl("fs.mqueue.queues_max"))
    });
    assert_eq!(ipc, ("1".to_owned(), "33".to_owned()));
    let shm = inside(&scratch, || fs::metadata("/pods/a1/shm").unwrap());
    assert_eq!((shm.uid(), shm.gid()), (1_000_000, 1_000_000));
    destroy(&scratch.state(), pins);
}

#[test]
fn pods_with_user_namespaces_are_made_in_parallel() {
    let scratch = Scratch::new();
    let pins = std::sync::Arc::new(scratch.pins());
    let (done, all_done) = std::sync::mpsc::channel();
    for worker in 0..16 {
        let (pins, done) = (pins.clone(), done.clone());
        // Not scoped: makers that wait for each other would hang the test instead of failing it.
        std::thread::spawn(move || {
            for round in 0..8 {
                pins.create(&format!("p{worker}x{round}"), &mapped()).unwrap();
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..16 {
        all_done.recv_timeout(Duration::from_secs(60)).expect("each child waits for the end of another");
    }
    assert_eq!(pins.list().unwrap().len(), 16 * 8);
    for id in pins.list().unwrap() {
        pins.remove(&id).unwrap();
    }
}

#[test]
fn what_cannot_be_made_says_why_and_leaves_nothing() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let with = |name: &str, value: &str, mut pod: PodNamespaces| {
        pod.sysctls = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        pins.create("a1", &pod)
    };
    assert!(matches!(with("vm.swappiness", "1", all()), Err(Error::SysctlRefused { .. })));
    assert!(matches!(
        with("net.core.somaxconn", "1", PodNamespaces { net: false, ..all() }),
        Err(Error::SysctlRefused { .. })
    ));
    for pod in [all(), mapped()] {
        let error = with("net.core.somaxconn", "many", pod.clone()).unwrap_err();
        assert!(matches!(&error, Error::Sysctl { name, .. } if name == "net.core.somaxconn"), "{error:?}");
        assert!(matches!(with("net.core.no_such_thing", "1", pod), Err(Error::Sysctl { .. })));
    }
    let long = PodNamespaces { hostname: Some("x".repeat(65)), ..all() };
    assert!(pins.create("a1", &long).unwrap_err().to_string().contains("host name"));

    let user = |container_id, host_id, length| {
        let ids = vec![IdMapping { container_id, host_id, length }];
        PodNamespaces { user: Some(UserMapping { uids: ids.clone(), gids: ids }), ..all() }
    };
    assert!(matches!(pins.create("a1", &user(1, 1_000_000, 5)), Err(Error::NoRoot(_))));
    let error = pins.create("a1", &user(0, u32::MAX, 5)).unwrap_err();
    assert!(error.to_string().contains("gid_map"), "{error}");
    for id in ["", "..", "a/b", "a-b", &"x".repeat(129)] {
        assert!(matches!(pins.create(id, &all()), Err(Error::Id(_))), "{id:?}");
    }
    assert!(pins.list().unwrap().is_empty());
    assert!(scratch.mounts().len() <= 3, "{:?}", scratch.mounts());
    destroy(&scratch.state(), pins);
}

#[test]
fn parameters_of_an_interface_are_set_once_it_is_there() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let mut pod = all();
    pod.sysctls = BTreeMap::from([("net.ipv4.conf.eth0.arp_ignore".to_owned(), "2".to_owned())]);
    pins.create("a1", &pod).unwrap();
    assert!(matches!(pins.set_interface_sysctls("a1", &pod), Err(Error::Sysctl { .. })), "no eth0 yet");
    let net = pins.net_path("a1");
    let run =
        |arguments: &[&str]| assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
    enter::netns(&net, || run(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])).unwrap();
    pins.set_interface_sysctls("a1", &pod).unwrap();
    assert_eq!(enter::netns(&net, || sysctl("net.ipv4.conf.eth0.arp_ignore")).unwrap(), "2");
    destroy(&scratch.state(), pins);
}

/// Not a test by itself: the server that `whatever_a_killed_server_left_…` kills.
#[test]
fn server_to_be_killed() {
    let Some(state) = std::env::var_os("CRISP_TEST_STATE") else { return };
    let netns = std::env::var_os("CRISP_TEST_NETNS").unwrap();
    let instance = std::env::var("CRISP_TEST_INSTANCE").unwrap();
    let pins = Pins::open_in(Path::new(&state), &instance, Path::new(&netns)).unwrap();
    for number in 0.. {
        let pod = if number % 2 == 0 { all() } else { mapped() };
        pins.create("a1", &pod).unwrap();
        pins.remove("a1").unwrap();
    }
}

#[test]
fn whatever_a_killed_server_left_the_next_one_finishes() {
    let scratch = Scratch::new();
    for round in 0..30 {
        let mut server = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_to_be_killed"])
            .env("CRISP_TEST_STATE", scratch.state())
            .env("CRISP_TEST_NETNS", scratch.netns_dir())
            .env("CRISP_TEST_INSTANCE", &scratch.name)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // A different instruction each time, from the first mount on.
        std::thread::sleep(Duration::from_micros(3000 + 773 * round));
        server.kill().unwrap();
        server.wait().unwrap();

        let pins = scratch.pins();
        let pod = if round % 3 == 0 { mapped() } else { all() };
        pins.create("a1", &pod).unwrap();
        assert!(pins.exists("a1", &pod), "round {round}");
        pins.remove("a1").unwrap();
        assert!(pins.list().unwrap().is_empty(), "round {round}");
        assert_eq!(scratch.mounts().len(), 3, "round {round}: {:?}", scratch.mounts());
        if round % 10 == 9 {
            // The first start is cut short again, too.
            destroy(&scratch.state(), pins);
        }
    }
}

/// The figure that a pod's start can afford. The limit leaves room for a debug build on a busy machine; the test prints
/// what it measured.
#[test]
fn making_a_pod_is_cheap() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    for (name, pod) in [("no user namespace", all()), ("user namespace", mapped())] {
        let mut times: Vec<[Duration; 2]> = (0..50)
            .map(|number| {
                let id = format!("p{number}");
                let begin = Instant::now();
                pins.create(&id, &pod).unwrap();
                let made = begin.elapsed();
                pins.remove(&id).unwrap();
                [made, begin.elapsed() - made]
            })
            .collect();
        let mut median = |which: usize| {
            times.sort_by_key(|time| time[which]);
            times[times.len() / 2][which]
        };
        let (create, remove) = (median(0), median(1));
        println!("{name}: create {create:?}, remove {remove:?} (median of 50)");
        assert!(create < Duration::from_millis(20) && remove < Duration::from_millis(20));
    }
    destroy(&scratch.state(), pins);
}
