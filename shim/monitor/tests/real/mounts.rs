//! What a container sees mounted, and what the host does not.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crisp_monitor::launch::{Pins, View};
use crisp_monitor::protocol::Phase;

use crate::common::{Sut, eventually, line, runc, runcs};

fn lines(sut: &Sut) -> Vec<String> {
    sut.log().into_iter().map(|(_, _, text)| text).collect()
}

#[test]
fn a_hundred_and_twenty_eight_layers_are_one_root() {
    let mut sut = Sut::new(&runc(), "cat /etc/layer; ls /layers | busybox wc -l");
    let overlay = sut.launch.rootfs.as_mut().unwrap();
    for n in 0..126 {
        let root = overlay.layers_dir.join(format!("layer{n:03}/fs"));
        for dir in ["etc", "layers"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("etc/layer"), format!("{n}\n")).unwrap();
        fs::write(root.join(format!("layers/{n}")), "").unwrap();
        overlay.lowers.insert(0, format!("layer{n:03}/fs").into());
    }
    assert_eq!(overlay.lowers.len(), 128);
    sut.run();
    assert_eq!(lines(&sut), ["125", "126"]);
}

#[test]
fn an_overlay_that_the_kernel_refuses_is_explained() {
    let mut sut = Sut::new(&runc(), "true");
    sut.launch.rootfs.as_mut().unwrap().lowers.push("missing/fs".into());
    let text = sut.create().unwrap_err();
    assert!(text.starts_with("mount overlay at ") && text.contains("missing/fs"), "{text}");
}

/// An image of two layers with a link that tries to get out.
fn image(sut: &Sut) -> View {
    let layers_dir = sut.temp.path().join("images");
    fs::create_dir_all(layers_dir.join("a/fs/data/deep")).unwrap();
    fs::create_dir_all(layers_dir.join("b/fs/data")).unwrap();
    fs::write(layers_dir.join("a/fs/data/deep/file"), "deep\n").unwrap();
    fs::write(layers_dir.join("b/fs/data/upper"), "upper\n").unwrap();
    symlink("/data/deep/file", layers_dir.join("a/fs/link")).unwrap();
    symlink("../../../../etc/hostname", layers_dir.join("a/fs/out")).unwrap();
    View { target: "views/0".into(), layers_dir, lowers: vec!["b/fs".into(), "a/fs".into()], sub_path: PathBuf::new() }
}

fn with_view(script: &str, change: impl FnOnce(&mut View)) -> Sut {
    let mut sut = Sut::new(&runc(), script);
    let mut view = image(&sut);
    change(&mut view);
    let source = sut.launch.bundle.join(&view.target);
    let target = if view.sub_path.as_os_str() == "link" { "/mnt-file" } else { "/mnt" };
    sut.spec
        .mounts
        .push(format!(r#"{{"destination":"{target}","type":"bind","source":{source:?},"options":["bind","ro"]}}"#));
    sut.launch.views.push(view);
    sut
}

#[test]
fn image_volumes_are_read_only_whole_in_part_and_as_a_file() {
    let mut whole = with_view("cat /mnt/data/upper /mnt/data/deep/file; touch /mnt/x || echo read-only", |_| ());
    assert_eq!(whole.run().exit.unwrap().exit_code, 0);
    assert!(
        ["upper", "deep", "read-only"].iter().all(|l| lines(&whole).contains(&(*l).to_owned())),
        "{:?}",
        whole.log()
    );

    let mut part = with_view("cat /mnt/file", |v| v.sub_path = "data/deep".into());
    part.run();
    assert_eq!(lines(&part), ["deep"]);

    let mut file = with_view("cat /mnt-file", |v| v.sub_path = "link".into());
    file.run();
    assert_eq!(lines(&file), ["deep"]);

    let mut single =
        with_view("cat /mnt/data/deep/file; touch /mnt/x || echo read-only", |v| v.lowers = vec!["a/fs".into()]);
    single.run();
    assert_eq!(lines(&single)[0], "deep");
    assert!(!single.temp.path().join("images/a/fs/x").exists());
}

#[test]
fn an_image_volume_never_leads_out_of_the_image() {
    for path in ["out", "missing", "data/../../../etc/passwd"] {
        let text = with_view("true", |v| v.sub_path = path.into()).create().unwrap_err();
        assert!(text.starts_with("ImageVolumeMountFailed: find in the image") && text.contains(path), "{text}");
    }
    let text = with_view("true", |v| v.layers_dir = "/nonexistent".into()).create().unwrap_err();
    assert!(text.starts_with("ImageVolumeMountFailed: "), "{text}");
}

/// A private mount namespace with one pod in it, made as the server's would be, by a shell that waits for its end.
struct Pod {
    shell: Child,
    pins: Pins,
}

impl Pod {
    fn new(sut: &Sut, user: bool) -> Self {
        let dir = sut.temp.path().join("ns");
        fs::create_dir(&dir).unwrap();
        let flags = if user { "-U -i -u" } else { "-i -u" };
        let script = format!(
            r#"set -e; mount -t tmpfs pods {0}; cd {0}; mkdir pod; cd pod; touch ipc uts user; mkdir shm
               unshare {flags} sleep 600 & pid=$!
               while [ "$(readlink /proc/$pid/ns/ipc)" = "$(readlink /proc/$$/ns/ipc)" ]; do sleep 0.01; done
               if {user}; then echo 0 100000 65536 > /proc/$pid/uid_map; echo 0 100000 65536 > /proc/$pid/gid_map; fi
               nsenter -t $pid -u hostname pinned-name
               for n in ipc uts user; do mount --bind /proc/$pid/ns/$n $n; done
               mount -t tmpfs -o mode=1777 shm shm; echo shared > shm/file
               kill $pid; echo ready; read x"#,
            dir.display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let mut ready = [0; 6];
        shell.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let mnt_ns = PathBuf::from(format!("/proc/{}/ns/mnt", shell.id()));
        let pins = Pins { mnt_ns, dir: dir.join("pod"), ipc: true, uts: true, user, shm: true };
        Self { shell, pins }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Joins what the pod has pinned, by the paths in the bundle.
fn join(sut: &mut Sut, pod: &Pod) {
    let ns = sut.launch.bundle.join("ns");
    sut.launch.pins = Some(pod.pins.clone());
    sut.spec.namespaces =
        vec![("pid", None), ("mount", None), ("ipc", Some(ns.join("ipc"))), ("uts", Some(ns.join("uts")))];
    let shm = sut.launch.bundle.join("shm");
    sut.spec
        .mounts
        .push(format!(r#"{{"destination":"/dev/shm","type":"bind","source":{shm:?},"options":["rbind","rw"]}}"#));
}

#[test]
fn a_pods_namespaces_reach_its_containers_and_not_the_host() {
    for runtime in runcs() {
        let mut sut = Sut::new(
            &runtime,
            "busybox hostname; cat /dev/shm/file; echo of-a > /dev/shm/a; busybox readlink /proc/self/ns/ipc; exec sleep 60",
        );
        let pod = Pod::new(&sut, false);
        join(&mut sut, &pod);
        sut.create().unwrap();
        let temp = sut.temp.path().to_str().unwrap().to_owned();
        let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!host.contains(&temp), "{host}");
        sut.start().unwrap();
        eventually("its lines", || sut.log().len() == 3);
        let log = lines(&sut);
        assert_eq!(log[..2], ["pinned-name", "shared"]);
        assert_ne!(Path::new(&log[2]), fs::read_link("/proc/self/ns/ipc").unwrap());
        // A second container of the pod, after the first.
        let mut other = Sut::new(&runtime, "cat /dev/shm/a; busybox readlink /proc/self/ns/ipc");
        join(&mut other, &pod);
        other.run();
        assert_eq!(lines(&other), ["of-a", &log[2]]);
    }
}

#[test]
fn a_pod_that_is_not_pinned_is_named() {
    let mut sut = Sut::new(&runc(), "true");
    let pod = Pod::new(&sut, false);
    join(&mut sut, &pod);
    sut.launch.pins.as_mut().unwrap().dir = "/no-such-pod".into();
    let text = sut.create().unwrap_err();
    assert!(text.starts_with("clone the pod's pin /no-such-pod/ipc"), "{text}");
}

#[test]
fn with_a_user_namespace_layers_are_the_containers_own() {
    let mut sut = Sut::new(
        &runc(),
        "id -u; stat -c %u:%g /bin/busybox /etc/top /mnt/data/upper; echo x > /new; stat -c %u /new; cat /proc/self/uid_map",
    );
    let pod = Pod::new(&sut, true);
    join(&mut sut, &pod);
    sut.spec.namespaces.push(("user", Some(sut.launch.bundle.join("ns/user"))));
    sut.launch.idmap = true;
    let view = image(&sut);
    let source = sut.launch.bundle.join(&view.target);
    sut.spec
        .mounts
        .push(format!(r#"{{"destination":"/mnt","type":"bind","source":{source:?},"options":["bind","ro"]}}"#));
    sut.launch.views.push(view);
    for dir in ["upper", "work", "run/bundle", "run"] {
        chown(sut.temp.path().join(dir), Some(100_000), Some(100_000)).unwrap();
    }
    let state = sut.run();
    assert_eq!(state.exit.unwrap().exit_code, 0, "{:?}", sut.log());
    let log = lines(&sut);
    assert_eq!(log[..5], ["0", "0:0", "0:0", "0:0", "0"]);
    assert_eq!(log[5].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(sut.temp.path().join("upper/new")).unwrap()), 100_000);
}

/// The host's root shared, as systemd makes it: here in a namespace of the test's own.
#[test]
fn where_the_host_shares_its_mounts_volumes_reach_it_and_nothing_else_does() {
    let this = std::env::current_exe().unwrap();
    let mut inner = Command::new("unshare");
    inner.args(["-m", "--propagation", "shared"]).arg(this).args([
        "--exact",
        "mounts::inner_on_a_shared_host",
        "--ignored",
        "--nocapture",
    ]);
    let output = inner.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by where_the_host_shares_its_mounts_volumes_reach_it_and_nothing_else_does"]
fn inner_on_a_shared_host() {
    let host = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(host().lines().any(|l| l.contains(" / / ") && l.contains("shared:")), "{}", host());
    for runtime in runcs() {
        let mut sut = Sut::new(
            &runtime,
            "ls /mnt; mount -t tmpfs from-inside /mnt/in && echo mounted; while [ ! -e /mnt/out/file ]; do sleep 0.05; done; echo seen; exec sleep 60",
        );
        let pod = Pod::new(&sut, false);
        join(&mut sut, &pod);
        let volume = sut.temp.path().join("volume");
        fs::create_dir_all(volume.join("in")).unwrap();
        fs::create_dir_all(volume.join("out")).unwrap();
        sut.spec.caps = "\"CAP_SYS_ADMIN\"";
        sut.spec.rootfs_propagation = "rshared";
        sut.spec.mounts.push(format!(
            r#"{{"destination":"/mnt","type":"bind","source":{volume:?},"options":["rbind","rshared"]}}"#
        ));
        let before = host();
        sut.create().unwrap();
        assert_eq!(host(), before, "creating shows nothing");
        sut.start().unwrap();
        eventually("mounted inside", || lines(&sut).contains(&"mounted".to_owned()) || sut.log().len() > 3);
        assert!(host().contains("from-inside"), "{}", host());
        // And the other way.
        let out = volume.join("out");
        let mount = "mount -t tmpfs from-outside $0 && touch $0/file";
        assert!(Command::new("sh").args(["-c", mount]).arg(&out).status().unwrap().success());
        eventually("seen inside", || lines(&sut).contains(&"seen".to_owned()));
        let ours: Vec<_> = host().lines().filter(|l| !before.contains(*l)).map(str::to_owned).collect();
        assert_eq!(ours.len(), 2, "{ours:#?}");
        crate::life::kill(sut.client().until(|s| s.phase == Phase::Running).process.unwrap().pid, "KILL");
        sut.finish();
        for name in ["in", "out"] {
            assert!(Command::new("umount").arg(volume.join(name)).status().unwrap().success());
        }
        assert_eq!(sut.log().last().unwrap(), &line("stdout", "F", "seen"));
    }
}
