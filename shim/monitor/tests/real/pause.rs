//! The holder of a shared PID namespace.

use std::fs;
use std::process::Command;

use crisp_monitor::protocol::Phase;

use crate::common::{Sut, eventually, monitor, runc};
use crate::life::kill;

/// All that it calls, from its first instruction to its end; the seccomp allow-list of the holder is this list (and execve).
const SYSCALLS: &[&str] = &[
    "arch_prctl",
    "brk",
    "execve",
    "exit_group",
    "fstat",
    "getrandom",
    "mprotect",
    "munmap",
    "newfstatat",
    "prctl",
    "prlimit64",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigprocmask",
    "rt_sigtimedwait",
    "set_robust_list",
    "set_tid_address",
    "wait4",
];

/// As the server would run it: a root file system that is nothing but the program.
fn holder() -> Sut {
    let mut sut = Sut::new(&runc(), "");
    let root = sut.launch.bundle.join("rootfs");
    let path = root.join("pause");
    std::io::copy(&mut monitor(), &mut fs::File::create(&path).unwrap()).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    fs::create_dir(root.join("proc")).unwrap();
    fs::create_dir(root.join("dev")).unwrap();
    sut.launch.rootfs = None;
    sut.spec.args = vec!["/pause".into(), "pause".into()];
    sut.spec.caps = "";
    let names = SYSCALLS.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(",");
    // With no_new_privs the runtime sets the filter last; these are what it still does in between (Go's runtime may do more).
    sut.spec.process = ",\"noNewPrivileges\":true";
    let runtime = r#""openat2","clone","clone3","sched_getaffinity","exit","clock_nanosleep","dup3","execveat","close","write","openat","futex","rt_sigaction","rt_sigreturn","sigaltstack","gettid","tgkill","getpid","nanosleep","epoll_pwait","read","fcntl","mmap","madvise","sched_yield","close_range","getdents64","statx","fstatfs","epoll_ctl","getppid","faccessat2","faccessat""#;
    sut.spec.linux = format!(
        r#","seccomp":{{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":[{{"names":[{names},{runtime}],"action":"SCMP_ACT_ALLOW"}}]}}"#
    );
    sut
}

#[test]
fn it_holds_the_namespace_reaps_orphans_and_ends_on_term() {
    let mut sut = holder();
    let pid = sut.create().unwrap().process.unwrap().pid;
    sut.start().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    println!(
        "{}",
        status.lines().filter(|l| l.starts_with("Rss") || l.starts_with("VmRSS")).collect::<Vec<_>>().join(", ")
    );
    // An orphan of another process in the namespace becomes its child.
    let orphan = "(sleep 0.2 &) ; true";
    assert!(
        Command::new("nsenter").args(["-t", &pid.to_string(), "-p", "sh", "-c", orphan]).status().unwrap().success()
    );
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    eventually("the orphan arrives", || !children().trim().is_empty());
    eventually("the orphan is reaped", || children().trim().is_empty());
    kill(pid, "TERM");
    let exit = sut.client().until(|s| s.phase == Phase::Exited).exit.unwrap();
    assert_eq!((exit.exit_code, exit.signal), (0, 0));
}

#[test]
fn it_calls_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (program, trace) = (dir.path().join("pause"), dir.path().join("trace"));
    std::io::copy(&mut monitor(), &mut fs::File::create(&program).unwrap()).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let Ok(mut strace) = Command::new("strace").arg("-qq").arg("-o").arg(&trace).arg(&program).arg("pause").spawn()
    else {
        println!("skipped: no strace");
        return;
    };
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", strace.id())).unwrap();
    eventually("it waits", || fs::read_to_string(&trace).is_ok_and(|t| t.contains("rt_sigtimedwait")));
    let pid: i32 = children().trim().parse().unwrap();
    kill(pid, "CHLD");
    kill(pid, "TERM");
    assert!(strace.wait().unwrap().success());
    for line in fs::read_to_string(&trace).unwrap().lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        assert!(SYSCALLS.contains(&name), "{line}");
    }
}
