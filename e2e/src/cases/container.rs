//! Containers: states, exit codes, commands, environment, idempotence.

use super::{Ctx, cases, security};
use crate::{
    fail::{Res, ensure, same},
    push::{Layer, push},
    tar::Tar,
};
use crisp_cri_proto::v1::*;
use serde_json::json;
use std::collections::HashMap;
use tonic::Code;

cases!("container":
    life_cycle_and_times, exit_codes_and_reasons, status_tells_what_was_asked, command_and_args, environment, environment_is_bytes,
    working_directory, start_twice_runs_once, remove_running_stops_it, a_retry_of_create_joins, unstarted_is_replaced,
    started_is_not_replaced, missing_command_is_a_start_error, no_command_at_all, out_of_memory, list_filters,
    created_not_started_is_removed, a_hundred_exits_are_seen, stdin_reads_nothing,
);

async fn life_cycle_and_times(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.create(&ctx.container("c", &["sleep", "3600"])).await?;
    let s = ctx.cri.status(&c).await?;
    same!("state", s.state(), ContainerState::ContainerCreated);
    ensure!(
        s.created_at > 0 && s.started_at == 0 && s.finished_at == 0,
        "times {} {} {}",
        s.created_at,
        s.started_at,
        s.finished_at
    );
    ctx.cri.start(&c).await?;
    let s = ctx.cri.status(&c).await?;
    same!("state", s.state(), ContainerState::ContainerRunning);
    ensure!(
        s.started_at >= s.created_at && s.finished_at == 0,
        "times {} {} {}",
        s.created_at,
        s.started_at,
        s.finished_at
    );
    ctx.cri.stop(&c, 0).await?;
    let s = ctx.cri.status(&c).await?;
    same!("state", s.state(), ContainerState::ContainerExited);
    same!("exit code", s.exit_code, 137);
    ensure!(s.finished_at >= s.started_at, "times {} {} {}", s.created_at, s.started_at, s.finished_at);
    ctx.cri.remove(&c).await?;
    same!("after remove", ctx.cri.status(&c).await.err().map(|s| s.code()), Some(Code::NotFound));
    Ok(())
}

async fn exit_codes_and_reasons(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    for (i, (script, code, reason)) in
        [("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("kill -9 $$", 137, "Error")].iter().enumerate()
    {
        // The shell is PID 1 of its container; only a signal from outside its namespace could kill it with -9.
        let script = if *code == 137 { "sleep 3600" } else { script };
        let c = pod.start(&ctx.container(&format!("c{i}"), &["sh", "-c", script])).await?;
        if *code == 137 {
            ctx.cri.stop(&c, 0).await?;
        }
        let s = ctx.cri.wait_exit(&c, 10).await?;
        same!(format!("`{script}`"), (s.exit_code, s.reason.as_str()), (*code, *reason));
    }
    Ok(())
}

async fn status_tells_what_was_asked(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sleep", "3600"]);
    config.labels = HashMap::from([("a".into(), "b".into()), ("empty".into(), String::new())]);
    config.annotations = HashMap::from([("n".into(), "v".into())]);
    config.metadata.get_or_insert_default().attempt = 3;
    let dir = ctx.tmp()?;
    config.mounts =
        vec![Mount { container_path: "/data".into(), host_path: dir.to_string_lossy().into(), ..Default::default() }];
    let c = pod.start(&config).await?;
    let s = ctx.cri.status(&c).await?;
    same!("metadata", s.metadata, config.metadata);
    same!("labels", s.labels, config.labels);
    same!("annotations", s.annotations, config.annotations);
    same!("log path", s.log_path, pod.log(&config).to_string_lossy());
    same!(
        "mounts",
        s.mounts.iter().map(|m| (&m.container_path, &m.host_path)).collect::<Vec<_>>(),
        [(&"/data".to_owned(), &dir.to_string_lossy().into_owned())]
    );
    let image = ctx.cri.image(&ctx.busybox()).await?.unwrap_or_default();
    same!("image_id", s.image_id, image.id);
    same!("image.image", s.image.unwrap_or_default().image, ctx.busybox());
    ensure!(image.repo_digests.contains(&s.image_ref), "image_ref {} is none of {:?}", s.image_ref, image.repo_digests);
    let limits = s.resources.and_then(|r| r.linux).unwrap_or_default();
    same!("memory limit in status", limits.memory_limit_in_bytes, 128 << 20);
    let listed = ctx.cri.containers(ContainerFilter { id: c, ..Default::default() }).await?;
    same!("listed", listed.len(), 1);
    same!("list: image_id", listed[0].image_id, image.id);
    same!("list: annotations", listed[0].annotations, config.annotations);
    same!("list: pod", listed[0].pod_sandbox_id, pod.id);
    Ok(())
}

async fn command_and_args(ctx: &Ctx) -> Res {
    let name = ctx.fresh("entry");
    let base = base(ctx).await?;
    push(
        &ctx.registry,
        &[&name],
        &[base],
        &json!({"Env": ["PATH=/bin"], "Entrypoint": ["echo", "entry"], "Cmd": ["cmd"]}),
    )
    .await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    let pod = ctx.up().await?;
    for (command, args, want) in [
        (&[][..], &[][..], "entry cmd\n"),
        (&[], &["args"], "entry args\n"),
        (&["echo", "own"], &[], "own\n"),
        (&["echo", "own"], &["args"], "own args\n"),
    ] {
        let mut c = ctx.container(&format!("c{}", ctx.number()), command);
        c.image = Some(crate::client::spec(&image));
        c.args = args.iter().map(|s| (*s).to_owned()).collect();
        same!(format!("command {command:?} args {args:?}"), pod.run(&c).await?.stdout, want);
    }
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

/// busybox as one layer, from the registry's own image of it: its blob is taken over HTTP.
pub(crate) async fn base(ctx: &Ctx) -> Res<Layer> {
    let bb = crate::parts::cache().join("images/busybox");
    if !bb.exists() {
        return crate::fail::skip("needs the cache of test images");
    }
    let _ = ctx;
    Layer::gzip(&crate::images::rootfs(&bb, "", "").await?)
}

async fn environment(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let kv = |k: &str, v: &str| KeyValue { key: k.into(), value: v.as_bytes().to_vec() };
    let out =
        pod.script("env", |c| c.envs = vec![kv("A", "1"), kv("B", "x y=z"), kv("A", "2"), kv("EMPTY", "")]).await?;
    let has = |l: &str| out.lines().any(|o| o == l);
    ensure!(has("A=2") && !has("A=1"), "the later of two equal names wins: {out}");
    ensure!(has("B=x y=z") && has("EMPTY="), "values arrive as they are: {out}");
    ensure!(out.contains("PATH=/usr/local/sbin"), "the image's PATH is there: {out}");
    ensure!(!out.contains("NOTIFY_SOCKET") && !out.contains("CRISP_"), "nothing of the server's own: {out}");
    Ok(())
}

async fn environment_is_bytes(ctx: &Ctx) -> Res {
    ctx.only_crisp("Go's JSON turns bytes that are no UTF-8 into U+FFFD")?;
    let pod = ctx.up().await?;
    let out = pod.script("cat /proc/self/environ | tr '\\0' '\\n' | grep ^RAW= | od -An -tx1", |c| {
        c.envs = vec![KeyValue { key: "RAW".into(), value: vec![0xff, 0xfe, b'a'] }];
    });
    match out.await {
        Ok(out) => same!("bytes", out.trim(), "52 41 57 3d ff fe 61 0a"),
        // An OCI configuration is JSON: a runtime cannot be told such a byte. Refusing by name is honest, mangling is not.
        Err(e) => ensure!(e.to_string().contains("RAW"), "an error that names the variable: {e}"),
    }
    Ok(())
}

async fn working_directory(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    same!("default", pod.script("pwd", |_| ()).await?, "/\n");
    same!("given", pod.script("pwd", |c| c.working_dir = "/var/www".into()).await?, "/var/www\n");
    let made = pod.script("pwd; stat -c '%u %a' .", |c| c.working_dir = "/not/there/yet".into()).await?;
    same!("made if missing", made, "/not/there/yet\n0 755\n");
    Ok(())
}

async fn start_twice_runs_once(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["sh", "-c", "echo once; sleep 3600"])).await?;
    let first = ctx.cri.status(&c).await?;
    // Refused, or taken for a retry of the first: either way nothing changes.
    let _ = ctx.cri.start(&c).await;
    same!("status", ctx.cri.status(&c).await?, first);
    ctx.cri.stop(&c, 0).await?;
    ensure!(ctx.cri.start(&c).await.is_err(), "a start after the end is accepted");
    same!("state", ctx.cri.status(&c).await?.state(), ContainerState::ContainerExited);
    Ok(())
}

async fn remove_running_stops_it(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    ctx.cri.remove(&c).await?;
    same!("left", ctx.cri.containers(ContainerFilter { id: c, ..Default::default() }).await?.len(), 0);
    Ok(())
}

async fn a_retry_of_create_joins(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container("c", &["sleep", "3600"]);
    let (a, b) = tokio::join!(pod.create(&config), pod.create(&config));
    let (a, b) = (a?, b?);
    same!("two calls at once", a, b);
    same!(
        "containers",
        ctx.cri.containers(ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() }).await?.len(),
        1
    );
    same!("again", pod.create(&config).await?, a);
    ctx.cri.start(&a).await?;
    Ok(())
}

async fn unstarted_is_replaced(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    pod.create(&ctx.container("c", &["echo", "old"])).await?;
    let new = ctx.container("c", &["echo", "new"]);
    let said = pod.run(&new).await?;
    same!("what ran", said.stdout, "new\n");
    same!(
        "containers",
        ctx.cri.containers(ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() }).await?.len(),
        0
    );
    Ok(())
}

async fn started_is_not_replaced(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["sleep", "3600"])).await?;
    let other = pod.create(&ctx.container("c", &["sleep", "7200"])).await;
    ctx.refused("another configuration for a container that runs", other, Code::AlreadyExists)?;
    same!("the first", ctx.cri.status(&c).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}

async fn missing_command_is_a_start_error(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.create(&ctx.container("c", &["/no/such/program"])).await;
    let Ok(c) = c else {
        return crate::fail::wrong("create fails already; kubelet expects the failure of StartContainer");
    };
    let error = ctx.cri.start(&c).await.err();
    ensure!(
        error.as_ref().is_some_and(|e| e.message().contains("/no/such/program")),
        "start must fail and name the program: {error:?}"
    );
    let s = ctx.cri.status(&c).await?;
    same!("state", s.state(), ContainerState::ContainerExited);
    same!("reason", s.reason, "StartError");
    same!("exit code", s.exit_code, 128);
    ensure!(s.message.contains("/no/such/program"), "message {:?}", s.message);
    ensure!(s.finished_at > 0, "finished_at is 0");
    Ok(())
}

async fn no_command_at_all(ctx: &Ctx) -> Res {
    let name = ctx.fresh("nocmd");
    push(
        &ctx.registry,
        &[&name],
        &[Layer::gzip(Tar::default().file("x", "x", 0o644))?],
        &json!({"Env": ["PATH=/bin"]}),
    )
    .await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    let pod = ctx.up().await?;
    let mut c = ctx.container("c", &[]);
    c.image = Some(crate::client::spec(&image));
    let error = pod.create(&c).await.err();
    ensure!(error.as_ref().is_some_and(|e| e.message().contains("command")), "no command: {error:?}");
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn out_of_memory(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        ..Default::default()
    });
    let c = pod.start(&config).await?;
    let s = ctx.cri.wait_exit(&c, 30).await?;
    same!("reason and code", (s.reason.as_str(), s.exit_code), ("OOMKilled", 137));
    Ok(())
}

async fn list_filters(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let run = format!("r{}", ctx.number());
    let mut a = ctx.container("a", &["sleep", "3600"]);
    a.labels = HashMap::from([("run".into(), run.clone()), ("k".into(), "a".into())]);
    let mut b = ctx.container("b", &["sleep", "3600"]);
    b.labels = HashMap::from([("run".into(), run.clone()), ("k".into(), "b".into())]);
    let a = pod.start(&a).await?;
    pod.create(&b).await?;
    let count = async |f: ContainerFilter| -> Res<usize> { Ok(ctx.cri.containers(f).await?.len()) };
    let labels = |k: &str, v: &str| HashMap::from([(k.to_owned(), v.to_owned())]);
    let state = |s: ContainerState| Some(ContainerStateValue { state: s as i32 });
    same!("all of the pod", count(ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() }).await?, 2);
    same!(
        "created",
        count(ContainerFilter {
            label_selector: labels("run", &run),
            state: state(ContainerState::ContainerCreated),
            ..Default::default()
        })
        .await?,
        1
    );
    same!(
        "running",
        count(ContainerFilter {
            label_selector: labels("run", &run),
            state: state(ContainerState::ContainerRunning),
            ..Default::default()
        })
        .await?,
        1
    );
    same!(
        "id and wrong state",
        count(ContainerFilter { id: a.clone(), state: state(ContainerState::ContainerExited), ..Default::default() })
            .await?,
        0
    );
    same!(
        "id and label",
        count(ContainerFilter { id: a, label_selector: labels("k", "a"), ..Default::default() }).await?,
        1
    );
    Ok(())
}

async fn created_not_started_is_removed(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.create(&ctx.container("c", &["sleep", "1"])).await?;
    ctx.cri.stop(&c, 1).await?;
    ctx.cri.remove(&c).await?;
    pod.down().await
}

async fn a_hundred_exits_are_seen(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    for i in 0..25 {
        let names: Vec<String> = (0..4).map(|k| format!("c{i}-{k}")).collect();
        let configs: Vec<ContainerConfig> = names.iter().map(|n| ctx.container(n, &["sh", "-c", "exit 5"])).collect();
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| pod.start(&configs[k]));
        let (a, b, c, d) = tokio::join!(a, b, c, d);
        for id in [a?, b?, c?, d?] {
            same!("exit code", ctx.cri.wait_exit(&id, 10).await?.exit_code, 5);
            ctx.cri.remove(&id).await?;
        }
    }
    Ok(())
}

async fn stdin_reads_nothing(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    same!("without stdin", pod.script("wc -c", |_| ()).await?.trim(), "0");
    let out = pod.script("id -u; cat /proc/self/oom_score_adj", |c| {
        security(c).run_as_user = Some(Int64Value { value: 65534 });
    });
    ensure!(out.await?.starts_with("65534\n"), "runs as the user");
    Ok(())
}
