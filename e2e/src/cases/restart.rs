//! The server is killed with SIGKILL at bad moments and started again: nothing that runs notices, nothing is lost.

use super::{Ctx, cases};
use crate::{
    fail::{Res, ensure, same},
    logs,
    server::Kind,
};
use crisp_cri_proto::v1::*;
use std::time::{Duration, Instant};
use tonic::Code;

cases!("restart":
    running_containers_go_on, exit_while_down, log_is_whole, pulled_images_are_there, killed_while_starting_pods,
    killed_while_creating_containers, killed_while_stopping, killed_while_pulling, orderly_stop_keeps_containers, exec_and_stop_after_restart,
    created_is_still_created, forty_pods_restart_fast, a_long_exec_dies_with_its_container,
);

async fn running_containers_go_on(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.sleeper().await?;
    let before = (cri.pod_status(&pod.id).await?, cri.status(&c).await?);
    server.kill9();
    server.start_again().await?;
    let cri = server.cri().await?;
    let after = (cri.pod_status(&pod.id).await?, cri.status(&c).await?);
    same!("pod", after.0, before.0);
    same!("container", after.1, before.1);
    same!("exec", cri.exec(&c, &["echo", "x"], 10).await?.stdout, "x\n");
    server.finish().await
}

async fn exit_while_down(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let config = ctx.container("c", &["sh", "-c", "echo up; sleep 1.5; echo bye; exit 42"]);
    let c = pod.start(&config).await?;
    server.kill9();
    logs::until(&pod.log(&config), 10, "its last line", |l| l.iter().any(|l| l.text == "bye")).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.start_again().await?;
    let s = server.cri().await?.wait_exit(&c, 5).await?;
    same!("exit code and reason", (s.exit_code, s.reason.as_str()), (42, "Error"));
    ensure!(s.finished_at > s.started_at, "finished_at {}", s.finished_at);
    server.finish().await
}

async fn log_is_whole(ctx: &Ctx) -> Res {
    ctx.only_crisp("its log pipes belong to the server, and a container that writes gets SIGPIPE")?;
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let config = ctx.container(
        "c",
        &["sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); [ $((i%100)) = 0 ] && sleep 0.05; done"],
    );
    let c = pod.start(&config).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.kill9();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.start_again().await?;
    }
    let cri = server.cri().await?;
    same!("exit code", cri.wait_exit(&c, 20).await?.exit_code, 0);
    let text = logs::stream(&logs::read(&pod.log(&config))?, "stdout");
    ensure!(text == (0..3000).map(|i| format!("{i}\n")).collect::<String>(), "{} lines of 3000", text.lines().count());
    server.finish().await
}

async fn pulled_images_are_there(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let id = cri.pull(&ctx.busybox()).await?;
    server.kill9();
    server.start_again().await?;
    let cri = server.cri().await?;
    same!("image", cri.image(&ctx.busybox()).await?.map(|i| i.id), Some(id));
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    same!("it runs", pod.script("echo x", |_| ()).await?, "x\n");
    server.finish().await
}

/// Starts `what` in the background, kills the server after each of these times, and starts it again.
async fn killed_during<F, Fut>(ctx: &Ctx, times: &[u64], what: F) -> Res
where
    F: Fn(crate::client::Cri, PodSandboxConfig, ContainerConfig) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut server = ctx.own(|_| ()).await?;
    server.cri().await?.ensure(&ctx.busybox()).await?;
    for ms in times {
        let pod = ctx.pod();
        std::fs::create_dir_all(&pod.log_directory)?;
        let task = tokio::spawn(what(server.cri().await?, pod.clone(), ctx.container("c", &["sleep", "3600"])));
        tokio::time::sleep(Duration::from_millis(*ms)).await;
        server.kill9();
        task.abort();
        server.start_again().await?;
        // What a kubelet does next: ask for the same again, then take it all away.
        let cri = server.cri().await?;
        let retry = async {
            let id = cri.run_pod(&pod).await?;
            let made = cri.create(&id, &ctx.container("c", &["sleep", "3600"]), &pod).await;
            let c = match made {
                // It had got as far as running: a kubelet sees that in the list and does not ask again.
                Err(e) if e.code() == Code::AlreadyExists => {
                    let all = cri.containers(ContainerFilter { pod_sandbox_id: id, ..Default::default() }).await?;
                    all.into_iter().next().map(|c| c.id).ok_or(e)?
                }
                made => made?,
            };
            if cri.status(&c).await?.state() == ContainerState::ContainerCreated {
                cri.start(&c).await?;
            }
            cri.exec(&c, &["true"], 10).await
        };
        let retry = retry.await;
        // containerd forgets what was not finished and may refuse; then a kubelet removes the pod and makes another.
        if server.kind == Kind::Crisp {
            ensure!(retry.is_ok(), "killed after {ms} ms, the retry fails: {retry:?}");
        }
        cri.remove_everything().await?;
        same!(format!("pods left, killed after {ms} ms"), cri.pods(PodSandboxFilter::default()).await?.len(), 0);
    }
    server.finish().await
}

async fn killed_while_starting_pods(ctx: &Ctx) -> Res {
    killed_during(ctx, &[3, 10, 20, 35, 50, 70, 100, 150], |cri, pod, _| async move {
        let _ = cri.run_pod(&pod).await;
    })
    .await
}

async fn killed_while_creating_containers(ctx: &Ctx) -> Res {
    killed_during(ctx, &[60, 90, 110, 130, 150, 170, 190, 220, 260, 300], |cri, pod, c| async move {
        let Ok(id) = cri.run_pod(&pod).await else { return };
        let Ok(c) = cri.create(&id, &c, &pod).await else { return };
        let _ = cri.start(&c).await;
    })
    .await
}

async fn killed_while_stopping(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    for ms in [2, 8, 15, 25, 40, 60, 90] {
        let cri = server.cri().await?;
        let pod = ctx.up_on(&cri, ctx.pod()).await?;
        let c = pod.sleeper().await?;
        let (cri2, id, c2) = (cri.clone(), pod.id.clone(), c.clone());
        let task = tokio::spawn(async move {
            let _ = cri2.stop(&c2, 0).await;
            let _ = cri2.remove(&c2).await;
            let _ = cri2.stop_pod(&id).await;
            let _ = cri2.remove_pod(&id).await;
        });
        tokio::time::sleep(Duration::from_millis(ms)).await;
        server.kill9();
        task.abort();
        server.start_again().await?;
        let cri = server.cri().await?;
        cri.stop_pod(&pod.id).await?;
        cri.remove_pod(&pod.id).await?;
        same!(
            format!("container, killed after {ms} ms"),
            cri.status(&c).await.err().map(|e| e.code()),
            Some(Code::NotFound)
        );
    }
    server.finish().await
}

async fn killed_while_pulling(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let image = ctx.image(crate::images::NGINX);
    for ms in [10, 100, 400, 900] {
        let cri = server.cri().await?;
        let name = image.clone();
        let task = tokio::spawn(async move { cri.pull(&name).await });
        tokio::time::sleep(Duration::from_millis(ms)).await;
        server.kill9();
        task.abort();
        server.start_again().await?;
        let cri = server.cri().await?;
        if let Some(i) = cri.image(&image).await? {
            cri.remove_image(&i.id).await?;
        }
    }
    let cri = server.cri().await?;
    cri.pull(&image).await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let out = pod.script("nginx -v 2>&1 | cut -d: -f1", |c| c.image = Some(crate::client::spec(&image))).await?;
    same!("it runs", out, "nginx version\n");
    server.finish().await
}

async fn orderly_stop_keeps_containers(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.sleeper().await?;
    server.stop().await;
    server.start_again().await?;
    same!("container", server.cri().await?.status(&c).await?.state(), ContainerState::ContainerRunning);
    server.finish().await
}

async fn exec_and_stop_after_restart(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.start(&ctx.container("c", &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"])).await?;
    server.kill9();
    server.start_again().await?;
    let cri = server.cri().await?;
    cri.stop(&c, 10).await?;
    same!("exit code", cri.status(&c).await?.exit_code, 3);
    server.finish().await
}

async fn created_is_still_created(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let config = ctx.container("c", &["sleep", "3600"]);
    let c = pod.create(&config).await?;
    server.kill9();
    server.start_again().await?;
    let cri = server.cri().await?;
    let status = cri.status(&c).await;
    // The peer may forget it, or take it for one that has ended; then a kubelet makes another.
    let gone = status.as_ref().map_or_else(|e| e.code() == Code::NotFound, |s| s.exit_code != 0);
    if server.kind == Kind::Crisp || !gone {
        same!("state", status?.state(), ContainerState::ContainerCreated);
        cri.start(&c).await?;
        same!("it runs", cri.exec(&c, &["echo", "x"], 10).await?.stdout, "x\n");
    }
    server.finish().await
}

async fn forty_pods_restart_fast(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let mut ids = Vec::new();
    for _ in 0..40 {
        let pod = ctx.up_on(&cri, ctx.pod()).await?;
        ids.push(pod.sleeper().await?);
    }
    server.kill9();
    let t = Instant::now();
    server.start_again().await?;
    let cri = server.cri().await?;
    let running = cri
        .containers(ContainerFilter { state: Some(ContainerStateValue { state: 1 }), ..Default::default() })
        .await?
        .len();
    let took = t.elapsed();
    same!("running", running, 40);
    // The goal is 60 ms on a quiet machine (bench); here it is only that nothing grows out of hand.
    ensure!(took < Duration::from_secs(5), "{took:?}");
    crate::budget::check(&server)?;
    server.finish().await
}

async fn a_long_exec_dies_with_its_container(ctx: &Ctx) -> Res {
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.sleeper().await?;
    let (cri2, c2) = (cri.clone(), c.clone());
    let exec = tokio::spawn(async move { cri2.exec(&c2, &["sleep", "3600"], 0).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill9();
    let _ = exec.await;
    server.start_again().await?;
    let cri = server.cri().await?;
    cri.stop(&c, 0).await?;
    cri.remove(&c).await?;
    server.finish().await
}
