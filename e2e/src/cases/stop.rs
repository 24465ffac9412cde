//! StopContainer: signals, time limits, retries.

use super::{Ctx, cases, container};
use crate::{
    fail::{Res, ensure, same},
    logs,
    push::push,
};
use serde_json::json;
use std::time::{Duration, Instant};

cases!("container":
    stop_signal_then_kill, stop_with_timeout_zero_kills_at_once, a_shorter_stop_wins, stop_is_idempotent, image_stop_signal,
    background_child_does_not_hold_stop,
);

async fn stop_signal_then_kill(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let polite = pod
        .start(
            &ctx.container(
                "polite",
                &["sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"],
            ),
        )
        .await?;
    logs::until(&pod.log(&ctx.container("polite", &[])), 10, "a start", |l| !l.is_empty()).await?;
    ctx.cri.stop(&polite, 10).await?;
    same!("a container that obeys", ctx.cri.status(&polite).await?.exit_code, 3);
    let deaf =
        pod.start(&ctx.container("deaf", &["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])).await?;
    logs::until(&pod.log(&ctx.container("deaf", &[])), 10, "a start", |l| !l.is_empty()).await?;
    let t = Instant::now();
    ctx.cri.stop(&deaf, 1).await?;
    let took = t.elapsed();
    same!("a container that does not", ctx.cri.status(&deaf).await?.exit_code, 137);
    ensure!(took >= Duration::from_millis(900) && took < Duration::from_secs(4), "stop with timeout 1 took {took:?}");
    Ok(())
}

async fn stop_with_timeout_zero_kills_at_once(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod
        .start(&ctx.container("c", &["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"]))
        .await?;
    logs::until(&pod.log(&ctx.container("c", &[])), 10, "a start", |l| !l.is_empty()).await?;
    let t = Instant::now();
    ctx.cri.stop(&c, 0).await?;
    same!("exit code", ctx.cri.status(&c).await?.exit_code, 137);
    ensure!(t.elapsed() < Duration::from_secs(2), "took {:?}", t.elapsed());
    Ok(())
}

async fn a_shorter_stop_wins(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])).await?;
    logs::until(&pod.log(&ctx.container("c", &[])), 10, "a start", |l| !l.is_empty()).await?;
    let (cri, id) = (ctx.cri.clone(), c.clone());
    let long = tokio::spawn(async move { cri.stop(&id, 60).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let t = Instant::now();
    ctx.cri.stop(&c, 1).await?;
    ensure!(t.elapsed() < Duration::from_secs(5), "the second stop took {:?}", t.elapsed());
    tokio::time::timeout(Duration::from_secs(5), long).await???;
    Ok(())
}

async fn stop_is_idempotent(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["true"])).await?;
    ctx.cri.wait_exit(&c, 10).await?;
    ctx.cri.stop(&c, 5).await?;
    ctx.cri.stop(&c, 0).await?;
    same!("exit code stays", ctx.cri.status(&c).await?.exit_code, 0);
    ctx.cri.remove(&c).await?;
    ctx.cri.remove(&c).await?;
    Ok(())
}

async fn image_stop_signal(ctx: &Ctx) -> Res {
    let name = ctx.fresh("stopsignal");
    push(
        &ctx.registry,
        &[&name],
        &[container::base(ctx).await?],
        &json!({"Env": ["PATH=/bin"], "StopSignal": "SIGUSR1"}),
    )
    .await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done"]);
    config.image = Some(crate::client::spec(&image));
    let c = pod.start(&config).await?;
    logs::until(&pod.log(&config), 10, "a start", |l| !l.is_empty()).await?;
    ctx.cri.stop(&c, 10).await?;
    same!("exit code", ctx.cri.status(&c).await?.exit_code, 9);
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn background_child_does_not_hold_stop(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["sh", "-c", "setsid sleep 3600 & exit 0"])).await?;
    same!("exit code", ctx.cri.wait_exit(&c, 10).await?.exit_code, 0);
    let t = Instant::now();
    ctx.cri.stop(&c, 5).await?;
    pod.down().await?;
    ensure!(t.elapsed() < Duration::from_secs(5), "stop took {:?}", t.elapsed());
    Ok(())
}
