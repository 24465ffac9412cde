//! Runtimes that are missing, fail, hang or lie; monitors that are killed; clients that misbehave.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crisp_monitor::exit_record::{ExitRecord, REASON_CREATE_ERROR, REASON_START_ERROR};
use crisp_monitor::protocol::{Phase, Request};
use crisp_monitor::spawn::{self, SpawnError};

use crate::common::{Client, Sut, eventually, line, monitor, runc, runcs, script_runtime};
use crate::life::kill;

/// Why create failed, checked against the record that it leaves.
fn create_error(sut: &mut Sut) -> String {
    let text = sut.create().unwrap_err();
    assert!(sut.child.as_mut().unwrap().wait().unwrap().success());
    let record = ExitRecord::read(&sut.launch.exit_run).unwrap().unwrap();
    assert_eq!((record.exit_code, &*record.reason, &record.message), (128, REASON_CREATE_ERROR, &text));
    assert!(!sut.launch.exit_disk.as_ref().unwrap().exists());
    assert!(!spawn::is_locked(sut.dir()).unwrap());
    text
}

fn scripted(body: &str) -> Sut {
    let mut sut = Sut::new(&runc(), "true");
    sut.launch.runtime.path = script_runtime(sut.temp.path(), body);
    sut
}

#[test]
fn a_runtime_that_is_not_there_is_named() {
    let mut sut = Sut::new(Path::new("/nonexistent/runc"), "true");
    let text = create_error(&mut sut);
    assert!(text.contains("/nonexistent/runc") && text.contains("No such file"), "{text}");
}

#[test]
fn the_runtimes_own_words_are_passed_on() {
    for runtime in runcs() {
        let mut sut = Sut::new(&runtime, "true");
        sut.spec.args = vec!["/no/such/program".into()];
        let text = create_error(&mut sut);
        assert!(text.contains("/no/such/program") && text.contains("no such file"), "{text}");
        assert_eq!(fs::read_dir(sut.temp.path().join("runtime")).unwrap().count(), 0);
        assert!(sut.log().is_empty(), "the runtime's output is not the container's");
    }
}

#[test]
fn rubbish_is_bounded_and_its_end_is_shown() {
    let mut sut = scripted(
        "[ $verb = create ] && { head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo the cause >&2; exit 9; }",
    );
    let text = create_error(&mut sut);
    assert!(text.ends_with("the cause") && text.len() <= 4096, "{} bytes", text.len());
    let text = create_error(&mut scripted("kill -9 $$"));
    assert!(text.contains("signal: 9"), "{text}");
}

#[test]
fn a_runtime_that_hangs_is_killed_with_its_children() {
    let mut sut = scripted("[ $verb = create ] && { sleep 4321.5 & wait; }");
    sut.launch.runtime_timeout = Duration::from_millis(300);
    let began = Instant::now();
    let text = create_error(&mut sut);
    assert!(text.contains("longer than 300ms"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(!alive("4321.5"));
}

#[test]
fn a_runtime_that_closes_its_output_and_hangs_costs_no_time() {
    let mut sut = scripted("[ $verb = create ] && { exec >&- 2>&-; exec sleep 4322.5; }");
    sut.launch.runtime_timeout = Duration::from_millis(600);
    sut.spawn();
    std::thread::sleep(Duration::from_millis(500));
    let stat = fs::read_to_string(format!("/proc/{}/stat", sut.pid())).unwrap();
    let ticks: u64 =
        stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2).map(|t| t.parse::<u64>().unwrap()).sum();
    assert!(ticks <= 5, "{ticks} ticks of 10 ms in half a second");
}

#[test]
fn a_pid_that_is_not_the_runtimes_is_refused() {
    for pid in ["1", "rubbish", "99999999"] {
        let body = format!(
            "[ $verb = create ] && while [ $# -gt 0 ]; do [ $1 = --pid-file ] && echo {pid} > $2; shift; done; exit 0"
        );
        let text = create_error(&mut scripted(&body));
        assert!(text.starts_with("runtime create: "), "{text}");
    }
    let text = create_error(&mut scripted("exit 0"));
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn a_start_that_fails_ends_the_container() {
    let mut sut = Sut::new(&runc(), "sleep 60");
    let real = runc();
    let body = format!("[ $verb = start ] && {{ echo will not >&2; exit 1; }}; exec {} \"$@\"", real.display());
    sut.launch.runtime.path = script_runtime(sut.temp.path(), &body);
    sut.create().unwrap();
    assert_eq!(sut.start().unwrap_err(), "will not");
    let exit = sut.finish().exit.unwrap();
    assert_eq!(
        (exit.exit_code, exit.started_at, &*exit.reason, &*exit.message),
        (128, 0, REASON_START_ERROR, "will not")
    );
}

#[test]
fn a_start_that_hangs_is_killed_and_the_container_with_it() {
    let mut sut = Sut::new(&runc(), "sleep 60");
    let body = format!("[ $verb = start ] && sleep 4323.5; exec {} \"$@\"", runc().display());
    sut.launch.runtime.path = script_runtime(sut.temp.path(), &body);
    sut.launch.runtime_timeout = Duration::from_millis(1500);
    sut.create().unwrap();
    assert!(sut.start().unwrap_err().contains("longer than"));
    assert_eq!(sut.finish().exit.unwrap().exit_code, 128);
    assert!(!alive("4323.5"));
}

#[test]
fn a_delete_that_fails_is_told() {
    let mut sut = Sut::new(&runc(), "true");
    let body = format!("[ $verb = delete ] && {{ echo stuck >&2; exit 1; }}; exec {} \"$@\"", runc().display());
    sut.launch.runtime.path = script_runtime(sut.temp.path(), &body);
    let state = sut.run();
    assert_eq!((state.text.as_str(), state.exit.unwrap().exit_code), ("stuck", 0));
}

/// A runtime whose deletes are counted in the file `deletes` beside it.
fn counted(body: &str) -> Sut {
    let mut sut = Sut::new(&runc(), "true");
    let file = sut.temp.path().join("deletes");
    let body = format!(
        "[ $verb = delete ] && {{ echo \"$*\" >> {}; {body}; }}; exec {} \"$@\"",
        file.display(),
        runc().display()
    );
    sut.launch.runtime.path = script_runtime(sut.temp.path(), &body);
    sut
}

fn deletes(sut: &Sut) -> usize {
    fs::read_to_string(sut.temp.path().join("deletes")).unwrap().lines().count()
}

#[test]
fn a_delete_that_fails_is_tried_by_force() {
    let mut sut = counted("case \"$*\" in *--force*) ;; *) echo not stopped >&2; exit 1;; esac");
    let state = sut.run();
    assert_eq!((state.text.as_str(), state.exit.unwrap().exit_code, deletes(&sut)), ("", 0, 2));
    assert_eq!(fs::read_dir(sut.temp.path().join("runtime")).unwrap().count(), 0, "the runtime has forgotten it");
}

#[test]
fn a_delete_that_hangs_is_not_tried_again() {
    let mut sut = counted("exec sleep 4326.5");
    sut.launch.runtime_timeout = Duration::from_secs(2);
    let state = sut.run();
    assert!(state.text.contains("longer than"), "{}", state.text);
    assert_eq!(deletes(&sut), 1);
    assert!(!alive("4326.5"));
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let mut sut = Sut::new(&runc(), "true");
    sut.launch.log_path = Some(sut.temp.path().join("missing/0.log"));
    let text = create_error(&mut sut);
    assert!(text.contains("missing/0.log: No such file"), "{text}");
    // A directory, a pipe, a link that leads elsewhere: none is a log.
    for make in ["mkdir", "mkfifo", "ln -s /etc/passwd"] {
        let path = sut.temp.path().join("log/0.log");
        let made =
            std::process::Command::new("/bin/sh").args(["-c", &format!("rm -rf $0; {make} $0")]).arg(&path).status();
        assert!(made.unwrap().success());
        let mut again = Sut::new(&runc(), "true");
        again.launch.log_path = Some(path);
        let text = create_error(&mut again);
        assert!(text.starts_with("open log file "), "{text}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    let mut sut = Sut::new(&runc(), "true");
    sut.launch.id = String::new();
    let exe = monitor();
    let mut child = spawn::container(std::os::fd::AsFd::as_fd(&exe), &sut.launch).unwrap();
    assert!(!child.wait().unwrap().success());
    let record = ExitRecord::read(&sut.launch.exit_run).unwrap().unwrap();
    assert!(record.message.contains("no `id`"), "{}", record.message);
}

#[test]
fn one_directory_has_one_monitor() {
    let mut sut = Sut::new(&runc(), "sleep 60");
    sut.create().unwrap();
    let exe = monitor();
    let second = spawn::container(std::os::fd::AsFd::as_fd(&exe), &sut.launch);
    assert!(matches!(second, Err(SpawnError::Locked(_))), "{second:?}");
    assert!(spawn::is_locked(sut.dir()).unwrap());
    assert_eq!(Client::connect(sut.dir()).until(|_| true).phase, Phase::Created);
}

#[test]
fn a_killed_monitor_frees_its_lock_and_leaves_the_container_running() {
    for runtime in runcs() {
        // Created but not started: the runtime's init holds whatever it inherited.
        for started in [false, true] {
            let mut sut = Sut::new(&runtime, "sleep 60");
            let pid = sut.create().unwrap().process.unwrap().pid;
            if started {
                sut.start().unwrap();
            }
            sut.child.as_mut().unwrap().kill().unwrap();
            sut.child.as_mut().unwrap().wait().unwrap();
            assert!(!spawn::is_locked(sut.dir()).unwrap(), "started: {started}");
            assert_eq!(spawn::connect(sut.dir()).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
            assert!(Path::new(&format!("/proc/{pid}")).exists());
            assert!(!sut.launch.exit_run.exists());
            kill(pid, "KILL");
        }
    }
}

#[test]
fn a_monitor_killed_during_create_takes_the_runtime_with_it() {
    let mut sut = scripted("[ $verb = create ] && exec sleep 4324.5");
    sut.spawn();
    eventually("the runtime runs", || alive("4324.5"));
    sut.child.as_mut().unwrap().kill().unwrap();
    eventually("the runtime is gone", || !alive("4324.5"));
    assert!(!spawn::is_locked(sut.dir()).unwrap());
}

#[test]
fn a_child_outside_that_holds_the_output_is_not_waited_for_for_ever() {
    let mut sut = Sut::new(&runc(), "sleep 60");
    let pid = sut.create().unwrap().process.unwrap().pid;
    sut.start().unwrap();
    // Some process of the host has the container's output open.
    let held = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    kill(pid, "KILL");
    let began = Instant::now();
    sut.client().until(|s| s.phase == Phase::Deleted);
    (&held).write_all(b"late\nunfinished").unwrap();
    sut.finish();
    assert!(began.elapsed() < Duration::from_secs(6));
    let log = sut.log();
    assert_eq!(log[log.len() - 2..], [line("stdout", "F", "late"), line("stdout", "P", "unfinished")]);
}

#[test]
fn orphans_that_share_the_hosts_pid_namespace_are_reaped_and_killed() {
    let mut sut = Sut::new(&runc(), "(sleep 0.1 & ) ; (sleep 4325.5 &); sleep 60");
    sut.spec.namespaces.retain(|n| n.0 != "pid");
    let pid = sut.create().unwrap().process.unwrap().pid;
    sut.start().unwrap();
    eventually("the orphan runs", || alive("4325.5"));
    let monitor = sut.pid();
    std::thread::sleep(Duration::from_millis(300));
    let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
    for child in children.split_whitespace() {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        assert!(!stat.contains(") Z "), "{stat}");
    }
    kill(pid, "KILL");
    assert_eq!(sut.finish().exit.unwrap().exit_code, 137);
    eventually("delete has killed the orphan", || !alive("4325.5"));
}

#[test]
fn clients_that_misbehave_are_dropped_and_disturb_nobody() {
    let mut sut = Sut::new(&runc(), "sleep 60");
    sut.create().unwrap();
    let mut floods = spawn::connect(sut.dir()).unwrap();
    floods.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    // An endless line.
    while floods.write(&[b'x'; 65536]).is_ok() {}
    // One that asks and never reads.
    let mut deaf = spawn::connect(sut.dir()).unwrap();
    deaf.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    while deaf.write(b"status\tseq=1\n").is_ok() {}
    // Many at once; those beyond the limit see the end at once.
    let crowd: Vec<_> = (0..20).map(|_| spawn::connect(sut.dir()).unwrap()).collect();
    assert_eq!(sut.client().ask(&Request::Resize { rows: 1, cols: 1 }).unwrap_err(), "the container has no terminal");
    drop(crowd);
    // The monitor has seen them go when it has answered what was asked after that.
    assert!(sut.client().ask(&Request::Resize { rows: 1, cols: 1 }).is_err());
    let mut newer = spawn::connect(sut.dir()).unwrap();
    newer.write_all(b"dance\tseq=7\tstep=2\n").unwrap();
    let mut newer = Client::over(newer);
    let (seq, answer) = newer.next().unwrap();
    assert_eq!((seq, answer), (7, crisp_monitor::protocol::Message::Reply(Some("unknown request `dance`".into()))));
}

/// Whether a process runs with exactly this argument (`sleep` with an odd time).
pub(crate) fn alive(argument: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).skip(1).any(|a| a == argument.as_bytes()) && line.starts_with(b"sleep")
    })
}
