use super::*;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(1u8..=255, 1..12)
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    bytes().prop_map(path)
}

fn any_runtime() -> impl Strategy<Value = Runtime> {
    let name = bytes().prop_map(|mut n| {
        n.iter_mut().filter(|b| **b == b'=').for_each(|b| *b = b'_');
        OsString::from_vec(n)
    });
    let env = vec((name, bytes().prop_map(OsString::from_vec)), 0..3);
    (any_path(), any_path(), any::<bool>(), vec(bytes().prop_map(OsString::from_vec), 0..3), env)
        .prop_map(|(path, root, systemd_cgroup, args, env)| Runtime { path, root, systemd_cgroup, args, env })
}

fn any_launch() -> impl Strategy<Value = Launch> {
    let overlay = (any_path(), vec(any_path(), 1..130), any_path(), any_path(), any::<bool>())
        .prop_map(|(layers_dir, lowers, upper, work, volatile)| Overlay { layers_dir, lowers, upper, work, volatile });
    let view = (any_path(), any_path(), vec(any_path(), 1..3), any_path())
        .prop_map(|(target, layers_dir, lowers, sub_path)| View { target, layers_dir, lowers, sub_path });
    let pins = (any_path(), any_path(), any::<[bool; 4]>()).prop_map(|(mnt_ns, dir, [ipc, uts, user, shm])| Pins {
        mnt_ns,
        dir,
        ipc,
        uts,
        user,
        shm,
    });
    let paths = (any_path(), any_path(), any_path(), of(any_path()), of(any_path()), of(any_path()));
    let rest = (any::<[bool; 4]>(), 1..=DEFAULT_LINE_MAX, any::<u32>());
    ("[a-z0-9]{1,64}", any_runtime(), of(overlay), vec(view, 0..3), of(pins), paths, rest).prop_map(
        |(id, runtime, rootfs, views, pins, (dir, bundle, exit_run, log_path, memory_cgroup, exit_disk), rest)| {
            let ([tty, stdin, stdin_once, idmap], line_max, millis) = rest;
            Launch {
                id,
                dir,
                bundle,
                runtime,
                tty,
                stdin,
                stdin_once,
                log_path,
                line_max,
                rootfs,
                views,
                pins,
                idmap,
                memory_cgroup,
                exit_run,
                exit_disk,
                runtime_timeout: Duration::from_millis(millis.into()),
            }
        },
    )
}

proptest! {
    #[test]
    fn a_container_comes_back(launch in any_launch()) {
        prop_assert_eq!(Launch::from_conf(&launch.to_conf()), Ok(launch));
    }

    #[test]
    fn an_exec_comes_back(id in "[a-z]{1,9}", dir in any_path(), runtime in any_runtime(), timeout in of(any::<u32>()), kill_on_hangup: bool, limit: u32) {
        let timeout = timeout.map(|t| Duration::from_millis(t.into()));
        let exec = Exec { id, dir, runtime, timeout, kill_on_hangup, runtime_timeout: Duration::from_millis(limit.into()) };
        prop_assert_eq!(Exec::from_conf(&exec.to_conf()), Ok(exec));
    }

    #[test]
    fn any_bytes_are_read_without_harm(text: Vec<u8>) {
        let _ = Launch::from_conf(&text);
        let _ = Exec::from_conf(&text);
    }
}

#[test]
fn what_is_missing_or_broken_is_named() {
    assert_eq!(Launch::from_conf(b"id=a\ndir=/d\n"), Err(ParseError::Missing("bundle")));
    assert_eq!(Launch::from_conf(b"id=a\nnonsense\n"), Err(ParseError::Line(2)));
    assert_eq!(Launch::from_conf(b"view.lower=a\n"), Err(ParseError::Line(1)));
    assert_eq!(Launch::from_conf(b"line_max=-1\n"), Err(ParseError::Line(1)));
    assert_eq!(Exec::from_conf(b"id=a\ndir=/d\n"), Err(ParseError::Missing("runtime.path")));
}

#[test]
fn keys_of_newer_servers_are_ignored() {
    let mut conf = Launch::new("a", Path::new("/d"), Runtime { path: "/r".into(), ..Default::default() }).to_conf();
    conf.extend_from_slice(b"colour=green\npins.colour=red\n");
    assert_eq!(Launch::from_conf(&conf).unwrap().id, "a");
}
