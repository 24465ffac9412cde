//! `cargo verify`: all tests, in three layers that can be run alone, each bounded in time; the last lines say what came out.

use crate::{
    demo::cargo,
    fail::{Fail, Res},
    parts,
    run::Sums,
    world,
};
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// A layer of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Layer {
    /// Formatting, lints, and every package's own tests
    Units,
    /// The cases of this package, against containerd first and then crisp
    Blackbox,
    /// crictl, critest, kubelet and an older client
    Clients,
}

/// One line of the summary.
struct Part {
    name: &'static str,
    result: Res<Sums>,
    took: Duration,
}

/// An older one than ours, as it is on many nodes.
const DEBIANS_RUNC: &str = "/usr/sbin/runc";

/// Runs the layer, or all; the exit code.
pub(crate) async fn verify(only: Option<Layer>) -> Res<i32> {
    let want = |l: Layer| only.is_none_or(|o| o == l);
    let mut parts: Vec<Part> = Vec::new();
    let mut add = |name, t: Instant, result: Res<Sums>| parts.push(Part { name, result, took: t.elapsed() });
    if want(Layer::Units) {
        component("fmt", "rustfmt").await?;
        component("clippy", "clippy").await?;
    }
    parts::apt(parts::DEMO).await?;
    parts::apt(parts::TESTS).await?;
    if want(Layer::Units) {
        // The packages' own tests run the real ones.
        let lock = parts::lock().await?;
        parts::Parts::of(&["runc", "cni"]).await?;
        drop(lock);
        let t = Instant::now();
        add("format", t, cargo(&["fmt", "--all", "--check"]).await.map(|()| one()));
        let t = Instant::now();
        add(
            "lints",
            t,
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).await.map(|()| one()),
        );
        let t = Instant::now();
        add("units", t, stage(cargo_command(&["test", "--workspace"]), 2400, Summary::Libtest).await);
    }
    if want(Layer::Blackbox) || want(Layer::Clients) {
        let t = Instant::now();
        let built = cargo(&["build", "--release", "--package", "crisp"]).await;
        let failed = built.is_err();
        add("build", t, built.map(|()| one()));
        if !failed {
            crate::setup(false).await?;
        }
    }
    if want(Layer::Blackbox) {
        let topics = ["run", "--runtime", DEBIANS_RUNC, "security::", "container::", "mounts::"];
        for (name, args) in [
            ("blackbox, containerd", &["run", "--containerd"][..]),
            ("blackbox, crisp", &["run"]),
            ("blackbox, Debian's runc", &topics),
        ] {
            let t = Instant::now();
            add(name, t, stage(own(args)?, 1200, Summary::Ours).await);
        }
    }
    if want(Layer::Clients) {
        parts::apt(&["protobuf-compiler"]).await?;
        let t = Instant::now();
        let built =
            cargo(&["build", "--release", "--package", "crisp-e2e", "--features", "older", "--bin", "crisp-e2e-older"])
                .await;
        let result = match built {
            Ok(()) => stage(own(&["clients"])?, 1500, Summary::Ours).await,
            Err(e) => Err(e),
        };
        add("clients", t, result);
    }
    println!();
    let mut all = Sums::default();
    for p in &parts {
        let (sums, text) = match &p.result {
            Ok(s) => (*s, s.line()),
            Err(e) => (Sums { failed: 1, ..Sums::default() }, format!("FAILED: {e}")),
        };
        all.add(sums);
        println!("{:24} {:>5.0} s  {text}", p.name, p.took.as_secs_f64());
    }
    println!("{}", all.line());
    Ok(i32::from(all.failed > 0))
}

/// Whether cargo knows a command that a minimal Rust comes without; said before anything takes long.
async fn component(command: &str, component: &str) -> Res {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    crate::sh::cmd(&cargo, &[command, "--version"], 30).await.map(drop).map_err(|e| {
        Fail::Wrong(format!("the layer `units` needs `cargo {command}`: rustup component add {component}\n{e}"))
    })
}

fn one() -> Sums {
    Sums { passed: 1, ..Sums::default() }
}

fn own(args: &[&str]) -> Res<Command> {
    let mut c = Command::new(std::env::current_exe()?);
    c.args(args);
    Ok(c)
}

fn cargo_command(args: &[&str]) -> Command {
    let mut c = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    c.args(args).arg("--no-fail-fast").current_dir(parts::checkout());
    c
}

/// How a stage says what came out.
#[derive(Clone, Copy, Debug)]
enum Summary {
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; …`, one per binary.
    Libtest,
    /// `3 passed, 0 failed, 1 skipped`, the last line.
    Ours,
}

/// Runs a stage in a process group of its own, shows what it says, and sums up; after `secs` seconds all of it is killed.
async fn stage(mut command: Command, secs: u64, summary: Summary) -> Res<Sums> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
    let group = Group(child.id());
    let out = child.stdout.take().ok_or_else(|| Fail::Wrong("no stdout".into()))?;
    let read = async {
        let mut lines = BufReader::new(out).lines();
        let (mut sums, mut seen) = (Sums::default(), false);
        while let Some(line) = lines.next_line().await? {
            println!("{line}");
            let n: Vec<u32> = line.split([' ', ';', ',']).filter_map(|w| w.parse().ok()).collect();
            match summary {
                Summary::Libtest if line.starts_with("test result:") && n.len() >= 3 => {
                    sums.add(Sums { passed: n[0], failed: n[1], skipped: n[2] });
                    seen = true;
                }
                Summary::Ours if n.len() == 3 && line.ends_with(" skipped") && line.contains(" passed, ") => {
                    sums = Sums { passed: n[0], failed: n[1], skipped: n[2] };
                    seen = true;
                }
                _ => {}
            }
        }
        Ok::<_, Fail>((child.wait().await?, sums, seen))
    };
    let result = tokio::time::timeout(Duration::from_secs(secs), read).await;
    drop(group);
    let (status, mut sums, seen) = result.map_err(|_| Fail::Wrong(format!("not done after {secs} s, killed")))??;
    if !seen {
        return Err(Fail::Wrong(format!("it ended with {status} before it summed up")));
    }
    if !status.success() && sums.failed == 0 {
        sums.failed = 1;
    }
    Ok(sums)
}

/// A process group that ends with this value, with what such a run leaves when it is killed.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.0 else { return };
        if let Some(pid) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let mark = format!("crisp-e2e-{id}x");
        world::remove_cgroups(&mark);
        let _ = std::fs::remove_dir_all(std::env::temp_dir().join(mark));
    }
}
