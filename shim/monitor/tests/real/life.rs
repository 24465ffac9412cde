//! Create, start, output, exit: what happens when all goes well.

use std::fs;

use crisp_monitor::protocol::{Phase, Request};
use crisp_monitor::spawn;

use crate::common::{Client, Sut, cgroup, eventually, line, runc, runcs};

#[test]
fn a_container_runs_and_leaves_its_output_and_exit_code() {
    for runtime in runcs() {
        let script = "echo out; echo err >&2; cat /etc/top; echo new > /etc/new; printf unfinished; exit 7";
        let mut sut = Sut::new(&runtime, script);
        let created = sut.create().unwrap();
        assert_eq!(created.phase, Phase::Created);
        let process = created.process.unwrap();
        assert!(
            fs::read_to_string(format!("/proc/{}/stat", process.pid))
                .unwrap()
                .contains(&process.start_time.to_string())
        );
        assert!(sut.log().is_empty());

        sut.start().unwrap();
        let state = sut.finish();
        let exit = state.exit.unwrap();
        assert_eq!((exit.exit_code, exit.signal, exit.oom_killed, &*exit.reason), (7, 0, false, ""));
        assert!(0 < exit.started_at && exit.started_at <= exit.finished_at);
        let log = sut.log();
        let out: Vec<_> = log.iter().filter(|l| l.0 == "stdout").cloned().collect();
        assert_eq!(out, [line("stdout", "F", "out"), line("stdout", "F", "top"), line("stdout", "P", "unfinished")]);
        assert!(log.contains(&line("stderr", "F", "err")));
        let phases: Vec<_> = sut.client().states.iter().map(|s| s.phase).filter(|p| *p != Phase::Creating).collect();
        assert_eq!(phases, [Phase::Created, Phase::Running, Phase::Exited, Phase::Deleted]);
        assert_eq!(fs::read_to_string(sut.temp.path().join("upper/etc/new")).unwrap(), "new\n");
        assert_eq!(fs::read_dir(sut.temp.path().join("runtime")).unwrap().count(), 0, "the runtime has forgotten it");
        assert!(!cgroup("memory", &sut.launch.id).exists());
    }
}

#[test]
fn nothing_of_it_is_mounted_on_the_host() {
    let mut sut = Sut::new(&runc(), "sleep 60");
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = sut.create().unwrap();
    let ours = |text: &str| text.lines().filter(|l| l.contains(&sut_id(text))).count();
    fn sut_id(_: &str) -> String {
        format!("crisp-monitor-test-{}-", std::process::id())
    }
    let now = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!((ours(&before), ours(&now)), (0, 0));
    assert_eq!(fs::read_dir(sut.launch.bundle.join("rootfs")).unwrap().count(), 0);
    let inside = fs::read_to_string(format!("/proc/{}/mountinfo", state.process.unwrap().pid)).unwrap();
    assert!(inside.contains("overlay"), "{inside}");
    // Nor does the monitor have a namespace of its own.
    let [a, b] = ["self".into(), sut.pid().to_string()].map(|p| fs::read_link(format!("/proc/{p}/ns/mnt")).unwrap());
    assert_eq!(a, b);
}

#[test]
fn a_signal_is_told_as_a_shell_would() {
    let mut sut = Sut::new(&runc(), "exec sleep 60");
    let pid = sut.create().unwrap().process.unwrap().pid;
    sut.start().unwrap();
    kill(pid, "KILL");
    let exit = sut.finish().exit.unwrap();
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
}

#[test]
fn killed_before_its_start_it_ends_all_the_same() {
    let mut sut = Sut::new(&runc(), "true");
    let pid = sut.create().unwrap().process.unwrap().pid;
    kill(pid, "KILL");
    let exit = sut.finish().exit.unwrap();
    assert_eq!((exit.exit_code, exit.started_at), (137, 0));
    assert!(exit.finished_at > 0);
}

#[test]
fn out_of_memory_is_told_apart_from_a_kill() {
    // The kill hits the one process there is; a shell's variable grows until then.
    let mut sut = Sut::new(&runc(), "a=xxxxxxxxxxxxxxxx; while true; do a=$a$a; done");
    sut.spec.memory = Some(16 << 20);
    let exit = sut.run().exit.unwrap();
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, true));
}

#[test]
fn a_child_that_was_killed_for_memory_does_not_make_a_later_kill_one() {
    let mut sut = Sut::new(&runc(), "(a=xxxxxxxxxxxxxxxx; while true; do a=$a$a; done); echo went on; exec sleep 60");
    sut.spec.memory = Some(16 << 20);
    let pid = sut.create().unwrap().process.unwrap().pid;
    sut.start().unwrap();
    eventually("the child was killed", || sut.log().iter().any(|(.., text)| text == "went on"));
    std::thread::sleep(std::time::Duration::from_millis(2800));
    kill(pid, "KILL");
    let exit = sut.finish().exit.unwrap();
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
}

#[test]
fn a_second_server_finds_the_state_and_the_first_may_be_gone() {
    let mut sut = Sut::new(&runc(), "read x; exit 3");
    sut.launch.stdin = true;
    let process = sut.create().unwrap().process;
    sut.client = None;
    let mut second = Client::connect(sut.dir());
    let state = second.until(|_| true);
    assert_eq!((state.phase, state.process), (Phase::Created, process));
    second.ask(&Request::Start).unwrap();
    second.ask(&Request::Start).unwrap();
    drop(second);
    kill(process.unwrap().pid, "KILL");
    // Nobody listens: the records are there.
    assert!(sut.child.as_mut().unwrap().wait().unwrap().success());
    let record = crisp_monitor::exit_record::ExitRecord::read(&sut.launch.exit_run).unwrap().unwrap();
    assert_eq!(record.exit_code, 137);
    assert_eq!(spawn::connect(sut.dir()).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_terminal_is_logged_and_resized() {
    for runtime in runcs() {
        let mut sut = Sut::new(&runtime, "stty size; read x < /dev/null; sleep 0.3; stty size");
        sut.launch.tty = true;
        sut.create().unwrap();
        assert!(!sut.dir().join("console.sock").exists());
        sut.client().ask(&Request::Resize { rows: 24, cols: 80 }).unwrap();
        sut.client().ask(&Request::Resize { rows: 0, cols: 0 }).unwrap();
        sut.start().unwrap();
        sut.client().ask(&Request::Resize { rows: 50, cols: 132 }).unwrap();
        assert_eq!(sut.finish().exit.unwrap().exit_code, 0);
        assert_eq!(sut.log().last().unwrap(), &line("stdout", "F", "50 132"));
    }
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_moment_is_not_lost() {
    for runtime in runcs() {
        let script = "echo here; exec </dev/null >/dev/null 2>&1; sleep 0.5; echo back >/dev/console; sleep 0.3; echo end >/dev/console";
        let mut sut = Sut::new(&runtime, script);
        sut.launch.tty = true;
        sut.create().unwrap();
        sut.start().unwrap();
        eventually("it is away", || sut.log().len() == 1);
        std::thread::sleep(std::time::Duration::from_millis(200));
        sut.client().ask(&Request::Resize { rows: 24, cols: 80 }).unwrap();
        assert_eq!(sut.finish().exit.unwrap().exit_code, 0);
        let words: Vec<_> = sut.log().into_iter().map(|(.., text)| text).collect();
        assert_eq!(words, ["here", "back", "end"]);
    }
}

#[test]
fn rotation_loses_no_line() {
    let mut sut = Sut::new(&runc(), "for i in $(seq 400); do echo $i; sleep 0.005; done");
    let path = sut.launch.log_path.clone().unwrap();
    sut.create().unwrap();
    sut.start().unwrap();
    let rotated = path.with_extension("rotated");
    eventually("some lines", || fs::metadata(&path).unwrap().len() > 2000);
    fs::rename(&path, &rotated).unwrap();
    sut.client().ask(&Request::ReopenLog).unwrap();
    eventually("some more lines", || fs::metadata(&path).unwrap().len() > 2000);
    // kubelet believes that the reopen failed, and renames back over the new file.
    fs::rename(&rotated, &path).unwrap();
    assert_eq!(sut.finish().exit.unwrap().exit_code, 0);
    let numbers: Vec<u32> = {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(numbers, (1..=400).collect::<Vec<_>>());
    sut.client = None;
}

#[test]
fn long_lines_are_split_and_no_log_is_no_trouble() {
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end";
    let mut sut = Sut::new(&runc(), &script.replace("tr ", "busybox tr "));
    assert_eq!(sut.run().exit.unwrap().exit_code, 0);
    let log = sut.log();
    let shape: Vec<_> = log.iter().map(|(_, tag, text)| (tag.as_str(), text.len())).collect();
    assert_eq!(shape, [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384), ("F", 3)]);

    let mut sut = Sut::new(&runc(), "head -c 1000000 /dev/zero; exit 4");
    sut.launch.log_path = None;
    assert_eq!(sut.run().exit.unwrap().exit_code, 4);
}

pub(crate) fn kill(pid: i32, signal: &str) {
    assert!(std::process::Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap().success());
}
