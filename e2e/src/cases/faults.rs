//! Parts around the server that fail, hang, talk rubbish or are missing; a disk that is full.

use super::{Ctx, cases};
use crate::{
    client::Cri,
    fail::{Res, ensure, same},
    server::Net,
    sh,
};
use crisp_cri_proto::v1::*;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

cases!("faults":
    missing_runtime, runtime_that_fails, runtime_that_talks_rubbish, runtime_that_hangs_in_create, runtime_that_hangs_in_start,
    cni_plugin_missing, cni_plugin_that_fails, cni_plugin_that_talks_rubbish, cni_plugin_that_hangs, cni_delete_that_fails_is_retried,
    no_space_left, monitor_is_killed, container_killed_from_outside, client_goes_away, registry_mirror_falls_over,
);

/// An executable shell script.
pub(crate) fn program(path: &Path, script: &str) -> Res<PathBuf> {
    fs::write(path, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

/// A runtime that does `script` for `verb` and is runc for everything else.
fn runtime(ctx: &Ctx, verb: &str, script: &str) -> Res<PathBuf> {
    let runc = &ctx.world()?.runc;
    program(
        &ctx.tmp()?.join("runtime"),
        &format!("for a in \"$@\"; do [ \"$a\" = {verb} ] && {{ {script}; }}; done; exec {} \"$@\"", runc.display()),
    )
}

/// A pod with one container on `cri`; what the first failing step said.
async fn attempt(ctx: &Ctx, cri: &Cri) -> Result<(), tonic::Status> {
    let config = ctx.pod();
    let _ = fs::create_dir_all(&config.log_directory);
    let id = cri.run_pod(&config).await?;
    let c = cri.create(&id, &ctx.container("c", &["sleep", "3600"]), &config).await?;
    cri.start(&c).await
}

async fn missing_runtime(ctx: &Ctx) -> Res {
    let missing = ctx.tmp()?.join("no-such-runtime");
    let path = missing.clone();
    let opened = ctx
        .own(move |o| {
            o.runtime = Some(path);
            o.net = Net::Empty;
        })
        .await;
    // Not starting at all, or RuntimeReady false, or failing pods: each with the path in the words.
    match opened {
        Err(e) => ensure!(e.to_string().contains("no-such-runtime"), "{e}"),
        Ok(server) => {
            let cri = server.cri().await?;
            let conditions = cri.conditions().await?;
            let error = attempt(ctx, &cri).await.err().map(|e| e.message().to_owned()).unwrap_or_default();
            let told =
                conditions.iter().any(|(t, ok, why)| t == "RuntimeReady" && !ok && why.contains("no-such-runtime"));
            ensure!(
                told || error.contains("no-such-runtime") || ctx.kind == Some(crate::server::Kind::Containerd),
                "{conditions:?} {error}"
            );
            server.finish().await?;
        }
    }
    Ok(())
}

async fn runtime_that_fails(ctx: &Ctx) -> Res {
    let r = runtime(ctx, "create", "echo 'the moon is in the wrong house' >&2; exit 1")?;
    let server = ctx.own(move |o| o.runtime = Some(r)).await?;
    let cri = server.cri().await?;
    cri.ensure(&ctx.busybox()).await?;
    let e = attempt(ctx, &cri).await.err();
    ensure!(e.is_some(), "a failing runtime goes unnoticed");
    if ctx.kind != Some(crate::server::Kind::Containerd) {
        ensure!(e.as_ref().is_some_and(|e| e.message().contains("wrong house")), "its words are lost: {e:?}");
    }
    server.finish().await
}

async fn runtime_that_talks_rubbish(ctx: &Ctx) -> Res {
    for verb in ["create", "features"] {
        let r = runtime(ctx, verb, "head -c 100000 /dev/urandom; exit 0")?;
        let server = ctx.own(move |o| o.runtime = Some(r)).await?;
        let cri = server.cri().await?;
        cri.ensure(&ctx.busybox()).await?;
        let made = attempt(ctx, &cri).await;
        // Without features a runtime is one with the oldest ones; without a process there is no container.
        same!(format!("{verb} with rubbish lets a container start"), made.is_ok(), verb == "features");
        cri.conditions().await?;
        server.finish().await?;
    }
    Ok(())
}

async fn runtime_that_hangs_in_create(ctx: &Ctx) -> Res {
    hanging(ctx, "create").await
}

async fn runtime_that_hangs_in_start(ctx: &Ctx) -> Res {
    hanging(ctx, "start").await
}

async fn hanging(ctx: &Ctx, verb: &str) -> Res {
    ctx.only_crisp("it waits for its runtime without a limit")?;
    let r = runtime(ctx, verb, "exec sleep 3600")?;
    let server = ctx
        .own(move |o| {
            o.runtime = Some(r);
            o.extra = "timeout_seconds = 5\n".into();
        })
        .await?;
    let cri = server.cri().await?;
    cri.ensure(&ctx.busybox()).await?;
    let t = Instant::now();
    let (attempt, reads) = tokio::join!(attempt(ctx, &cri), async {
        // Others are served meanwhile.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let t = Instant::now();
        cri.conditions().await?;
        cri.containers(ContainerFilter::default()).await?;
        cri.pods(PodSandboxFilter::default()).await?;
        Ok::<_, crate::fail::Fail>(t.elapsed())
    });
    ensure!(reads? < Duration::from_secs(2), "reads wait for a runtime that hangs");
    let said = attempt.err().map(|e| e.message().to_owned()).unwrap_or_default();
    ensure!(said.contains("5"), "the limit is not told after {:?}: {said:?}", t.elapsed());
    ensure!(t.elapsed() < Duration::from_secs(20), "the limit is 5 s, the answer came after {:?}", t.elapsed());
    tokio::time::timeout(Duration::from_secs(40), cri.remove_everything()).await??;
    server.finish().await
}

/// A server whose network is one plugin made by `script`.
async fn with_plugin(ctx: &Ctx, script: &str) -> Res<crate::server::Server> {
    let dir = ctx.tmp()?;
    program(&dir.join("odd"), script)?;
    ctx.own(move |o| o.net = Net::Plugin("odd".into(), dir)).await
}

async fn cni_plugin_missing(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?;
    let server = ctx.own(move |o| o.net = Net::Plugin("absent".into(), dir)).await;
    // Whether it is ready and fails pods, or is not ready, the plugin is named.
    let text = match server {
        Err(e) => e.to_string(),
        Ok(s) => {
            let cri = s.cri().await?;
            let e = cri.run_pod(&ctx.pod()).await.err().map(|e| e.message().to_owned()).unwrap_or_default();
            s.finish().await?;
            e
        }
    };
    ensure!(text.contains("absent"), "{text}");
    Ok(())
}

async fn cni_plugin_that_fails(ctx: &Ctx) -> Res {
    let script = r#"cat >/dev/null; case $CNI_COMMAND in ADD) echo '{"cniVersion":"1.0.0","code":11,"msg":"no addresses today"}'; exit 1;; VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';; esac; exit 0"#;
    let server = with_plugin(ctx, script).await?;
    let cri = server.cri().await?;
    let e = cri.run_pod(&ctx.pod()).await.err();
    ensure!(e.as_ref().is_some_and(|e| e.message().contains("no addresses today")), "{e:?}");
    same!("pods left", cri.pods(PodSandboxFilter::default()).await?.len(), 0);
    server.finish().await
}

async fn cni_plugin_that_talks_rubbish(ctx: &Ctx) -> Res {
    for script in [
        "cat >/dev/null; echo '<html>'",
        "cat >/dev/null; exit 0",
        "cat >/dev/null; echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"not an address\"}]}'",
        "cat >/dev/null; yes | head -c 50000000",
    ] {
        let server = with_plugin(ctx, script).await?;
        let cri = server.cri().await?;
        let r = cri.run_pod(&ctx.pod()).await;
        ensure!(r.is_err(), "a pod starts on `{script}`");
        server.finish().await?;
    }
    Ok(())
}

async fn cni_plugin_that_hangs(ctx: &Ctx) -> Res {
    ctx.only_crisp("its pods stay reserved until the plugin returns")?;
    let dir = ctx.tmp()?;
    program(&dir.join("odd"), "cat >/dev/null; case $CNI_COMMAND in ADD) exec sleep 3600;; esac; exit 0")?;
    let server = ctx
        .own(move |o| {
            o.net = Net::Plugin("odd".into(), dir);
            o.cni = "timeout_seconds = 5".into();
        })
        .await?;
    let cri = server.cri().await?;
    let t = Instant::now();
    let config = ctx.pod();
    let (made, reads) = tokio::join!(cri.run_pod(&config), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let t = Instant::now();
        cri.conditions().await?;
        cri.pods(PodSandboxFilter::default()).await?;
        Ok::<_, crate::fail::Fail>(t.elapsed())
    });
    ensure!(reads? < Duration::from_secs(2), "reads wait for a plugin that hangs");
    ensure!(made.as_ref().err().is_some_and(|e| e.message().contains("odd")), "the plugin is not named: {made:?}");
    ensure!(t.elapsed() < Duration::from_secs(20), "the limit is 5 s, the answer came after {:?}", t.elapsed());
    server.finish().await
}

async fn cni_delete_that_fails_is_retried(ctx: &Ctx) -> Res {
    let mark = ctx.tmp()?.join("works-now");
    let result = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.9/24"}]}"#;
    let script = format!(
        "cat >/dev/null; case $CNI_COMMAND in ADD) echo '{result}';; DEL) [ -e {0} ] || {{ echo '{{\"code\":7,\"msg\":\"not now\"}}'; exit 1; }};; esac; exit 0",
        mark.display()
    );
    let server = with_plugin(ctx, &script).await?;
    let cri = server.cri().await?;
    let id = cri.run_pod(&ctx.pod()).await?;
    let e = cri.stop_pod(&id).await.err();
    ensure!(e.as_ref().is_some_and(|e| e.message().contains("not now")), "{e:?}");
    same!("the pod is still there", cri.pods(PodSandboxFilter::default()).await?.len(), 1);
    fs::write(mark, "")?;
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    server.finish().await
}

async fn no_space_left(ctx: &Ctx) -> Res {
    let small = ctx.tmp()?;
    sh::script(&small, "mkdir d && mount -t tmpfs -o size=24m e2e-small d", 10).await?;
    let root = small.join("d/root");
    let path = root.clone();
    let server = ctx.own(move |o| o.root = Some(path)).await?;
    let cri = server.cri().await?;
    let result = async {
        cri.ensure(&ctx.busybox()).await?;
        let pod = ctx.up_on(&cri, ctx.pod()).await?;
        let c = pod.sleeper().await?;
        let e = cri.pull(&ctx.image(crate::images::NGINX)).await.err();
        let said = e.as_ref().map(|e| e.message().to_lowercase()).unwrap_or_default();
        ensure!(said.contains("no space"), "pulling onto a full disk: {e:?}");
        ensure!(cri.image(&ctx.image(crate::images::NGINX)).await?.is_none(), "an image is listed that is not whole");
        same!("the container goes on", cri.exec(&c, &["echo", "x"], 10).await?.stdout, "x\n");
        fs::write(small.join("d/ballast"), vec![0u8; 30 << 20]).err();
        let _ = attempt(ctx, &cri).await;
        cri.conditions().await?;
        fs::remove_file(small.join("d/ballast"))?;
        same!("room again: a pod starts", ctx.up_on(&cri, ctx.pod()).await?.script("echo y", |_| ()).await?, "y\n");
        Ok(())
    };
    let result: Res = result.await;
    let finished = server.finish().await;
    crate::world::unmount_below(&small);
    result.and(finished)
}

async fn monitor_is_killed(ctx: &Ctx) -> Res {
    ctx.only_crisp("its shim is another process with other rules")?;
    let server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.sleeper().await?;
    for m in crate::budget::monitors(&server) {
        if let Some(pid) = i32::try_from(m).ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let state = cri.status(&c).await?.state();
    ensure!(state == ContainerState::ContainerUnknown || state == ContainerState::ContainerExited, "{state:?}");
    cri.stop(&c, 1).await?;
    cri.remove(&c).await?;
    server.finish().await
}

async fn container_killed_from_outside(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["sleep", "7991"])).await?;
    ctx.world()?;
    sh::script(Path::new("/"), "for p in /proc/[0-9]*; do grep -qz 7991 $p/cmdline 2>/dev/null && grep -qzx sleep $p/cmdline && kill -9 ${p#/proc/}; done; true", 10).await?;
    let s = ctx.cri.wait_exit(&c, 5).await?;
    same!("exit code and reason", (s.exit_code, s.reason.as_str()), (137, "Error"));
    Ok(())
}

async fn client_goes_away(ctx: &Ctx) -> Res {
    ctx.only_crisp("it gives up with its client; its kubelet waits for the name")?;
    for ms in [5, 20, 40, 80] {
        let config = ctx.pod();
        fs::create_dir_all(&config.log_directory)?;
        let mut request =
            tonic::Request::new(RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() });
        request.set_timeout(Duration::from_millis(ms));
        let first = ctx.cri.rt.clone().run_pod_sandbox(request).await;
        let id = ctx.cri.run_pod(&config).await?;
        if let Ok(first) = first {
            same!("the same pod", first.into_inner().pod_sandbox_id, id);
        }
        let all = ctx.cri.pods(PodSandboxFilter::default()).await?;
        same!("pods of this name", all.iter().filter(|p| p.metadata == config.metadata).count(), 1);
    }
    Ok(())
}

async fn registry_mirror_falls_over(ctx: &Ctx) -> Res {
    let dead = crate::registry::free_port()?;
    let toml = format!(
        "server = \"http://{0}\"\n[host.\"http://127.0.0.1:{dead}\"]\n  capabilities = [\"pull\", \"resolve\"]\n[host.\"http://{0}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        ctx.registry
    );
    let server = ctx.own(move |o| o.hosts = vec![("mirrored.example".into(), toml)]).await?;
    let cri = server.cri().await?;
    let image = format!("mirrored.example/{}", crate::images::BUSYBOX);
    cri.pull(&image).await?;
    same!("tags", cri.image(&image).await?.unwrap_or_default().repo_tags, std::slice::from_ref(&image));
    server.finish().await
}
