//! Processes in a running container: output, exit codes, timeouts, a server that goes away.

use std::fs;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crisp_monitor::exec_record;
use crisp_monitor::exit_record::REASON_TIMEOUT;
use crisp_monitor::launch::Exec;
use crisp_monitor::protocol::{Phase, State};
use crisp_monitor::spawn::{self, ExecStdio};

use crate::common::{Client, Sut, eventually, monitor, runc, runcs, script_runtime};
use crate::trouble::alive;

struct Running {
    child: Child,
    client: Client,
    out: PipeReader,
    err: PipeReader,
    exec: Exec,
}

impl Running {
    fn read(&mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.err.read_to_string(&mut err).unwrap();
        (out, err)
    }

    fn finish(&mut self) -> State {
        let state = self.client.until(|s| matches!(s.phase, Phase::Exited | Phase::Failed));
        assert_eq!(self.child.wait().unwrap().success(), state.phase == Phase::Exited);
        state
    }
}

fn container(runtime: &std::path::Path) -> Sut {
    let mut sut = Sut::new(runtime, "exec sleep 600");
    sut.create().unwrap();
    sut.start().unwrap();
    sut
}

fn exec(sut: &Sut, script: &str, change: impl FnOnce(&mut Exec)) -> Running {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = sut.temp.path().join(format!("exec-{number}"));
    fs::create_dir(&dir).unwrap();
    let process =
        format!(r#"{{"user":{{"uid":0,"gid":0}},"args":["/bin/sh","-c",{script:?}],"env":["PATH=/bin"],"cwd":"/"}}"#);
    fs::write(dir.join("process.json"), process).unwrap();
    let mut exec = Exec::new(&sut.launch.id, &dir, sut.launch.runtime.clone());
    exec.kill_on_hangup = true;
    change(&mut exec);
    let exe = monitor();
    let ((out, write_out), (err, write_err), (read_in, mut write_in)) =
        (pipe().unwrap(), pipe().unwrap(), pipe().unwrap());
    let (stdin, stdout, stderr) = (Some(read_in.as_fd()), Some(write_out.as_fd()), Some(write_err.as_fd()));
    let (child, socket) = spawn::exec(exe.as_fd(), &exec, &ExecStdio { stdin, stdout, stderr }).unwrap();
    write_in.write_all(b"input\n").unwrap();
    Running { child, client: Client::over(socket), out, err, exec }
}

#[test]
fn output_input_and_exit_code() {
    for runtime in runcs() {
        let sut = container(&runtime);
        let mut running = exec(&sut, "cat; echo err >&2; exit 5", |_| ());
        assert_eq!(running.read(), ("input\n".into(), "err\n".into()));
        let state = running.finish();
        let exit = state.exit.unwrap();
        assert_eq!((exit.exit_code, exit.signal, &*exit.reason), (5, 0, ""));
        assert_eq!(exec_record::read(&running.exec.dir).unwrap(), state.process);
        let phases: Vec<_> = running.client.states.iter().map(|s| s.phase).collect();
        assert_eq!(phases, [Phase::Running, Phase::Exited]);
    }
}

#[test]
fn a_timeout_kills_the_process_and_its_group() {
    let sut = container(&runc());
    let mut running =
        exec(&sut, "echo begun; sleep 4331.5 & sleep 4332.5", |e| e.timeout = Some(Duration::from_millis(700)));
    let began = Instant::now();
    let exit = running.finish().exit.unwrap();
    assert_eq!((exit.exit_code, &*exit.reason), (137, REASON_TIMEOUT));
    assert!((600..3000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    // The pipes end, so nobody is left.
    assert_eq!(running.read().0, "begun\n");
    assert!(!alive("4331.5") && !alive("4332.5"));
}

#[test]
fn when_the_server_hangs_up_it_is_killed_if_that_is_wanted() {
    let sut = container(&runc());
    let Running { client, mut child, .. } = exec(&sut, "exec sleep 4333.5", |_| ());
    eventually("it runs", || alive("4333.5"));
    drop(client);
    assert!(child.wait().unwrap().success());
    assert!(!alive("4333.5"));

    let Running { client, mut child, exec, .. } = exec(&sut, "exec sleep 4334.5", |e| e.kill_on_hangup = false);
    eventually("it runs", || alive("4334.5"));
    drop(client);
    std::thread::sleep(Duration::from_millis(300));
    assert!(alive("4334.5"), "a session's end is not the server's");
    let process = exec_record::read(&exec.dir).unwrap().unwrap();
    crate::life::kill(process.pid, "KILL");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_killed_helper_leaves_a_record_to_kill_by() {
    let sut = container(&runc());
    let mut running = exec(&sut, "exec sleep 4335.5", |_| ());
    running.client.until(|s| s.phase == Phase::Running);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    eventually("the process goes on", || alive("4335.5"));
    let process = exec_record::read(&running.exec.dir).unwrap().unwrap();
    crate::life::kill(process.pid, "KILL");
    eventually("it is gone", || !alive("4335.5"));
}

#[test]
fn trouble_is_told_in_the_runtimes_words() {
    for runtime in runcs() {
        let sut = container(&runtime);
        let running = exec(&sut, "true", |e| {
            let process = r#"{"user":{"uid":0,"gid":0},"args":["/no/such"],"cwd":"/"}"#;
            fs::write(e.dir.join("process.json"), process).unwrap();
        });
        let text = { running }.finish().text;
        assert!(text.contains("/no/such") && text.contains("no such file"), "{text}");
        let text = exec(&sut, "true", |e| e.runtime.path = "/nonexistent/runc".into()).finish().text;
        assert!(text.contains("/nonexistent/runc"), "{text}");
        let text = exec(&sut, "true", |e| e.id = "no-such-container".into()).finish().text;
        assert!(text.contains("does not exist"), "{text}");
        let hangs = script_runtime(sut.temp.path(), "sleep 4336.5");
        let mut running =
            exec(&sut, "true", |e| (e.runtime.path, e.runtime_timeout) = (hangs, Duration::from_millis(300)));
        assert!(running.finish().text.contains("longer than"), "{:?}", running.client.states);
        assert!(!alive("4336.5"));
    }
}

#[test]
fn a_helper_costs_a_millisecond() {
    let sut = container(&runc());
    let runtime = &sut.launch.runtime;
    let process = sut.temp.path().join("process.json");
    fs::write(&process, r#"{"user":{"uid":0,"gid":0},"args":["/bin/sh","-c","true"],"env":["PATH=/bin"],"cwd":"/"}"#)
        .unwrap();
    let pid_file = sut.temp.path().join("pid");
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    // In turn, for the machine may be busy.
    for _ in 0..31 {
        let began = Instant::now();
        let mut command = Command::new(&runtime.path);
        command.arg("--root").arg(&runtime.root).args(["exec", "--detach", "--pid-file"]).arg(&pid_file);
        assert!(command.arg("--process").arg(&process).arg(&sut.launch.id).status().unwrap().success());
        bare.push(began.elapsed());
        let began = Instant::now();
        let mut running = exec(&sut, "true", |_| ());
        assert_eq!(running.client.until(|s| s.phase == Phase::Exited).exit.unwrap().exit_code, 0);
        ours.push(began.elapsed());
        running.child.wait().unwrap();
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    println!("exec, median of 31: runc alone {:?}, with the helper {:?}", median(&mut bare), median(&mut ours));
}
