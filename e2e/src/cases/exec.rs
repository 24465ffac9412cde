//! ExecSync: output, exit codes, time limits, what it inherits.

use super::{Ctx, cases, security};
use crate::fail::{Res, ensure, same};
use crisp_cri_proto::v1::*;
use std::time::{Duration, Instant};
use tonic::Code;

cases!("exec":
    output_and_exit_code, command_not_found, timeout_kills, large_output_is_capped, needs_a_running_container,
    inherits_user_and_environment, empty_command_is_refused, forty_at_once, a_child_in_the_background, stdin_is_empty,
    binary_output,
);

async fn output_and_exit_code(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let said = ctx.cri.exec(&c, &["sh", "-c", "echo out; echo err >&2; exit 3"], 10).await?;
    same!("answer", (said.code, said.stdout.as_str(), said.stderr.as_str()), (3, "out\n", "err\n"));
    let said = ctx.cri.exec(&c, &["sh", "-c", "kill -9 $$"], 10).await?;
    same!("killed by a signal", said.code, 137);
    Ok(())
}

async fn command_not_found(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    match ctx.cri.exec(&c, &["/no/such/program"], 10).await {
        Ok(said) => ensure!(said.code != 0, "a missing program exits with 0"),
        Err(e) => ensure!(e.message().contains("/no/such/program"), "the message does not name it: {e}"),
    }
    same!("the container lives", ctx.cri.status(&c).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}

async fn timeout_kills(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let t = Instant::now();
    let error = ctx.cri.exec(&c, &["sleep", "7411"], 1).await.err();
    same!("code", error.map(|e| e.code()), Some(Code::DeadlineExceeded));
    ensure!(t.elapsed() < Duration::from_secs(5), "took {:?}", t.elapsed());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = ctx.cri.sh(&c, "ps -o args | grep '[7]411' | wc -l").await?;
    same!("processes left", left.trim(), "0");
    Ok(())
}

async fn large_output_is_capped(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let said = ctx.cri.exec(&c, &["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"], 30).await?;
    same!("3 MB", said.stdout.len(), 3_000_000);
    let said = ctx.cri.exec(&c, &["sh", "-c", "head -c 40000000 /dev/zero | tr '\\0' x"], 60).await?;
    same!("exit code", said.code, 0);
    ensure!(
        said.stdout.len() > 1_000_000 && said.stdout.len() <= 16 << 20,
        "40 MB come back as {} bytes",
        said.stdout.len()
    );
    Ok(())
}

async fn needs_a_running_container(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.create(&ctx.container("c", &["sleep", "3600"])).await?;
    ensure!(ctx.cri.exec(&c, &["true"], 5).await.is_err(), "exec in a container that never ran");
    ctx.cri.start(&c).await?;
    ctx.cri.stop(&c, 0).await?;
    ensure!(ctx.cri.exec(&c, &["true"], 5).await.is_err(), "exec in a container that ended");
    Ok(())
}

async fn inherits_user_and_environment(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sleep", "3600"]);
    config.envs = vec![KeyValue { key: "X".into(), value: b"y".to_vec() }];
    config.working_dir = "/var".into();
    security(&mut config).run_as_user = Some(Int64Value { value: 1234 });
    security(&mut config).supplemental_groups = vec![77];
    security(&mut config).no_new_privs = true;
    let c = pod.start(&config).await?;
    let out = ctx.cri.sh(&c, "id -u; id -G; echo $X; pwd; grep NoNewPrivs /proc/self/status | tr -d '\\t'").await?;
    same!("what it inherits", out, "1234\n0 77\ny\n/var\nNoNewPrivs:1\n");
    Ok(())
}

async fn empty_command_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    ensure!(ctx.cri.exec(&c, &[], 5).await.is_err(), "an empty command is accepted");
    Ok(())
}

async fn forty_at_once(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..40 {
        let (cri, c) = (ctx.cri.clone(), c.clone());
        tasks.spawn(
            async move { cri.exec(&c, &["sh", "-c", &format!("echo {i}; exit {i}")], 60).await.map(|s| (i, s)) },
        );
    }
    while let Some(r) = tasks.join_next().await {
        let (i, said) = r??;
        same!("answer", (said.code, said.stdout), (i, format!("{i}\n")));
    }
    Ok(())
}

async fn a_child_in_the_background(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let t = Instant::now();
    // The child keeps stdout open; kubelet's probe must come back all the same.
    let r = ctx.cri.exec(&c, &["sh", "-c", "echo hi; sleep 30 & exit 0"], 5).await;
    ensure!(t.elapsed() < Duration::from_secs(15), "took {:?}", t.elapsed());
    if let Ok(said) = r {
        same!("answer", (said.code, said.stdout.as_str()), (0, "hi\n"));
    }
    Ok(())
}

async fn stdin_is_empty(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    same!("bytes", ctx.cri.exec(&c, &["wc", "-c"], 5).await?.stdout.trim(), "0");
    Ok(())
}

async fn binary_output(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let cmd = vec!["printf".into(), "\\377\\000\\n\\r".into()];
    let r = ctx.cri.rt.clone().exec_sync(ExecSyncRequest { container_id: c, cmd, timeout: 5 }).await?.into_inner();
    same!("bytes", r.stdout, [0xff, 0, b'\n', b'\r']);
    Ok(())
}
