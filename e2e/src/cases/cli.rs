//! The command line, run as a person runs it, against the server under test.

use super::{Ctx, cases, network::get};
use crate::{
    fail::{Fail, Res, ensure, same},
    sh::{self, Out},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

cases!("cli":
    run_shows_output_and_exit_code, a_missing_program_is_127, an_interrupt_ends_and_removes, in_the_background_to_the_end,
    in_the_background_and_removed_at_the_end,
    options_reach_the_container, json_shows_what_kubelet_does_not_see, images_come_and_go, config_check_names_the_mistake,
    completions_and_manual, without_a_server_it_says_how_to_start_one,
);

/// The binary and where its server listens.
struct Cli {
    program: PathBuf,
    endpoint: String,
}

impl Cli {
    fn of(ctx: &Ctx, sock: &Path) -> Res<Self> {
        Ok(Self { program: ctx.world()?.crisp.clone(), endpoint: format!("unix://{}", sock.display()) })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(&self.program);
        c.args(["--endpoint", &self.endpoint]).args(args);
        c
    }

    async fn out(&self, args: &[&str]) -> Res<Out> {
        sh::output(&mut self.command(args), 30).await
    }

    /// Its standard output, an error unless it exits with 0.
    async fn ok(&self, args: &[&str]) -> Res<String> {
        sh::run(&mut self.command(args), 30).await
    }

    async fn json(&self, args: &[&str]) -> Res<Vec<Value>> {
        let text = self.ok(args).await?;
        serde_json::from_str(&text).map_err(|e| Fail::Wrong(format!("{args:?} prints no JSON list ({e}): {text}")))
    }

    /// Names of all pods of the command line; kubelet's list does not have them.
    async fn pods(&self) -> Res<Vec<String>> {
        let all = self.json(&["pods", "--output", "json"]).await?;
        let mine = all.iter().filter(|p| p["namespace"] != crate::client::NAMESPACE);
        Ok(mine.filter_map(|p| p["name"].as_str().map(str::to_owned)).collect())
    }
}

/// Runs `work`; nothing may be left after it, and what is left all the same is removed.
async fn with(ctx: &Ctx, work: impl AsyncFnOnce(&Cli) -> Res) -> Res {
    ctx.only_crisp("it is crisp's own command line")?;
    let sock = ctx.shared().as_ref().map(|s| s.sock.clone());
    let Some(sock) = sock else { return crate::fail::skip("needs a server of its own") };
    let cli = Cli::of(ctx, &sock)?;
    ctx.cri.ensure(&ctx.busybox()).await?;
    let result = work(&cli).await;
    let left = cli.pods().await?;
    for name in &left {
        let _ = cli.out(&["rm", "--force", name]).await;
    }
    result?;
    same!("pods left", left, Vec::<String>::new());
    Ok(())
}

async fn run_shows_output_and_exit_code(ctx: &Ctx) -> Res {
    let image = ctx.busybox();
    with(ctx, async |cli| {
        let said = cli.out(&["run", "--rm", &image, "sh", "-c", "echo hi; echo oh >&2; exit 7"]).await?;
        same!("code and output", (said.code, said.stdout.as_str()), (7, "hi\n"));
        ensure!(said.stderr.contains("oh"), "standard error is {:?}", said.stderr);
        Ok(())
    })
    .await
}

async fn a_missing_program_is_127(ctx: &Ctx) -> Res {
    let image = ctx.busybox();
    with(ctx, async |cli| {
        let said = cli.out(&["run", "--rm", &image, "no-such-program"]).await?;
        same!("code", said.code, 127);
        ensure!(said.stderr.contains("no-such-program"), "it says {:?}", said.stderr);
        Ok(())
    })
    .await
}

async fn an_interrupt_ends_and_removes(ctx: &Ctx) -> Res {
    let image = ctx.busybox();
    with(ctx, async |cli| {
        let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
        let mut command = cli.command(&["run", "--rm", &image, "sh", "-c", script]);
        let mut run = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(run.stdout.take().ok_or(Fail::Wrong("no stdout".into()))?).lines();
        let ended = async {
            same!("first line", lines.next_line().await?, Some("up".to_owned()));
            let pid = run.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw);
            let pid = pid.ok_or(Fail::Wrong("it has ended".into()))?;
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
            same!("next line", lines.next_line().await?, Some("bye".to_owned()));
            same!("exit code", run.wait().await?.code(), Some(3));
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await?
    })
    .await
}

async fn in_the_background_to_the_end(ctx: &Ctx) -> Res {
    let image = ctx.busybox();
    with(ctx, async |cli| {
        let script = "mkdir /www; echo a page > /www/index.html; echo serving; exec httpd -f -v -p 80 -h /www";
        let name = cli.ok(&["run", "-d", "--name", "web", "-p", "18085:80", &image, "sh", "-c", script]).await?;
        same!("it prints the name", name, "web\n");
        let listed = cli.ok(&["ps"]).await?;
        ensure!(listed.contains("web") && listed.contains("running"), "ps: {listed}");
        same!("through the host port", get("192.0.2.2:18085").await?, "a page\n");
        let logs = cli.ok(&["logs", "web"]).await?;
        ensure!(logs.starts_with("serving\n"), "logs: {logs}");
        let said = cli.out(&["exec", "web", "sh", "-c", "cat /www/index.html; exit 5"]).await?;
        same!("exec", (said.code, said.stdout.as_str()), (5, "a page\n"));
        let shown = cli.json(&["inspect", "web"]).await?;
        ensure!(!shown.is_empty() && shown[0].to_string().contains("18085"), "inspect: {shown:?}");
        let twice = cli.out(&["run", "-d", "--name", "web", &image, "true"]).await?;
        ensure!(twice.code != 0 && twice.stderr.contains("web"), "the same name again: {twice:?}");
        cli.ok(&["stop", "-t", "0", "web"]).await?;
        let (running, all) = (cli.ok(&["ps"]).await?, cli.ok(&["ps", "--all"]).await?);
        ensure!(!running.contains("web") && all.contains("exited"), "after stop: {running}{all}");
        ensure!(cli.ok(&["logs", "web"]).await?.starts_with("serving\n"), "the log is gone after stop");
        cli.ok(&["rm", "web"]).await.map(drop)
    })
    .await
}

async fn in_the_background_and_removed_at_the_end(ctx: &Ctx) -> Res {
    let image = ctx.busybox();
    ctx.only_crisp("it is crisp's own command line")?;
    let mut server = ctx.own(|_| ()).await?;
    let cli = Cli::of(ctx, &server.sock)?;
    let cri = server.cri().await?;
    cri.ensure(&image).await?;
    for (name, time) in [("short", "0.5"), ("long", "4"), ("stopped", "600")] {
        cli.ok(&["run", "-d", "--rm", "--name", name, &image, "sleep", time]).await?;
    }
    cli.ok(&["stop", "-t", "0", "stopped"]).await?;
    let gone = async |names: &[&str]| {
        for _ in 0..100 {
            let pods = cli.pods().await?;
            if !pods.iter().any(|pod| names.contains(&pod.as_str())) {
                return Ok(pods);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        crate::fail::wrong("it is not removed when it has ended")
    };
    same!("pods", gone(&["short", "stopped"]).await?, ["long"]);
    // It ends while there is no server: the next one removes it.
    server.kill9();
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.start_again().await?;
    same!("pods", gone(&["long"]).await?, [""; 0]);
    server.finish().await
}

async fn options_reach_the_container(ctx: &Ctx) -> Res {
    let (image, dir) = (ctx.busybox(), ctx.tmp()?);
    fs::write(dir.join("f"), "from the host\n")?;
    let volume = format!("{}:/data:ro", dir.display());
    with(ctx, async |cli| {
        let script = "echo $A; pwd; id -u; id -g; cat /data/f; touch /data/x 2>/dev/null || echo read-only; \
                      cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; \
                      cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true";
        let options = ["-e", "A=b c", "-w", "/var", "-u", "1000:1001", "-v", &volume];
        let limits = ["--entrypoint", "sh", "--memory", "64m", "--cpus", "0.5"];
        let args = [&["run", "--rm"][..], &options, &limits, &[&image, "-c", script]].concat();
        let out = cli.ok(&args).await?;
        let lines: Vec<&str> = out.lines().collect();
        let want = ["b c", "/var", "1000", "1001", "from the host", "read-only", "67108864"];
        same!("what it sees", lines.get(..7), Some(&want[..]));
        ensure!(lines.get(7).is_some_and(|l| l.starts_with("50000")), "half a processor is {:?}", lines.get(7));
        ensure!(!dir.join("x").exists(), "it wrote to a read-only volume");
        Ok(())
    })
    .await
}

async fn json_shows_what_kubelet_does_not_see(ctx: &Ctx) -> Res {
    let image = ctx.busybox();
    with(ctx, async |cli| {
        cli.ok(&["run", "-d", "--name", "mine", &image, "sleep", "3600"]).await?;
        same!("pods of the command line", cli.pods().await?, ["mine"]);
        let id = cli.json(&["pods", "--output", "json"]).await?[0]["id"].as_str().unwrap_or_default().to_owned();
        let quiet = cli.ok(&["pods", "-q"]).await?;
        ensure!(quiet.trim().len() >= 12 && id.starts_with(quiet.trim()), "pods -q: {quiet:?}, the id is {id:?}");
        same!("pods that kubelet sees", ctx.cri.pods(Default::default()).await?.len(), 0);
        same!("containers that kubelet sees", ctx.cri.containers(Default::default()).await?.len(), 0);
        cli.ok(&["rm", "--force", "mine"]).await.map(drop)
    })
    .await
}

async fn images_come_and_go(ctx: &Ctx) -> Res {
    let (name, tag) = (ctx.image("k8s-staging-cri-tools/test-image-1"), "latest");
    let image = format!("{name}:{tag}");
    with(ctx, async |cli| {
        cli.ok(&["pull", &image]).await?;
        let has = |text: &str| text.lines().any(|l| l.contains(&name) && l.contains(tag));
        let listed = cli.ok(&["images"]).await?;
        ensure!(has(&listed), "images: {listed}");
        cli.ok(&["rmi", &image]).await?;
        let listed = cli.ok(&["images"]).await?;
        ensure!(!has(&listed) && ctx.cri.image(&image).await?.is_none(), "after rmi: {listed}");
        let again = cli.out(&["rmi", &image]).await?;
        ensure!(again.code != 0 && again.stderr.contains("test-image-1"), "rmi of what is not there: {again:?}");
        Ok(())
    })
    .await
}

async fn config_check_names_the_mistake(ctx: &Ctx) -> Res {
    let file = ctx.tmp()?.join("config.toml");
    let path = file.to_string_lossy().into_owned();
    with(ctx, async |cli| {
        fs::write(&file, "[network]\nmode = \"builtin\"\n")?;
        cli.ok(&["config", "check", &path]).await?;
        fs::write(&file, "[network]\nmoode = \"builtin\"\n[cni]\ntimeout_seconds = \"long\"\n")?;
        let said = cli.out(&["config", "check", &path]).await?;
        ensure!(said.code != 0, "a wrong file passes: {said:?}");
        for word in ["moode", "timeout_seconds"] {
            ensure!(said.stderr.contains(word), "{word} is not named: {}", said.stderr);
        }
        fs::write(&file, cli.ok(&["config", "default"]).await?)?;
        cli.ok(&["config", "check", &path]).await.map(drop)
    })
    .await
}

async fn completions_and_manual(ctx: &Ctx) -> Res {
    with(ctx, async |cli| {
        for shell in ["bash", "zsh", "fish"] {
            let text = cli.ok(&["completions", shell]).await?;
            ensure!(text.contains("crisp") && text.contains("inspect"), "{shell}: {} bytes", text.len());
        }
        ensure!(cli.ok(&["man"]).await?.contains(".TH"), "the manual is no manual page");
        let dir = ctx.tmp()?;
        cli.ok(&["man", &dir.to_string_lossy()]).await?;
        ensure!(dir.join("crisp-run.1").exists(), "crisp-run.1 is missing");
        Ok(())
    })
    .await
}

async fn without_a_server_it_says_how_to_start_one(ctx: &Ctx) -> Res {
    let sock = ctx.tmp()?.join("none.sock");
    with(ctx, async |cli| {
        let nobody = Cli { program: cli.program.clone(), endpoint: format!("unix://{}", sock.display()) };
        for (args, code) in [(&["ps"][..], 1), (&["run", "--rm", "busybox", "true"], 125)] {
            let said = nobody.out(args).await?;
            same!(format!("code of {args:?}"), said.code, code);
            ensure!(said.stderr.contains("crisp serve") && said.stderr.contains("none.sock"), "{}", said.stderr);
        }
        Ok(())
    })
    .await
}
