//! What the node itself is asked and told: its configuration, its runtimes, systemd.

use super::{Ctx, cases, faults::program};
use crate::fail::{Fail, Res, ensure, same};
use crisp_cri_proto::v1::*;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::net::UnixDatagram;
use tonic::Code;

cases!("node":
    the_cgroup_driver_is_told, pod_cidrs_are_taken, pinned_images_are_shown, a_second_runtime_handler,
    systemd_hears_that_it_is_ready_and_alive,
);

async fn the_cgroup_driver_is_told(ctx: &Ctx) -> Res {
    let config = ctx.cri.rt.clone().runtime_config(RuntimeConfigRequest {}).await?.into_inner();
    same!("driver", config.linux.unwrap_or_default().cgroup_driver(), CgroupDriver::Cgroupfs);
    Ok(())
}

async fn pod_cidrs_are_taken(ctx: &Ctx) -> Res {
    let server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let told = async |pod_cidr: &str| {
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.into() });
        let runtime_config = Some(RuntimeConfig { network_config });
        cri.rt.clone().update_runtime_config(UpdateRuntimeConfigRequest { runtime_config }).await
    };
    told("10.77.3.0/24").await?;
    told("10.77.3.0/24,fd00:77::/64").await?;
    told("").await?;
    if ctx.only_crisp("it looks at them only when it has a template").is_ok() {
        ctx.refused("no CIDR", told("10.77.3.0/99").await, Code::InvalidArgument)?;
    }
    same!("pods start", ctx.up_on(&cri, ctx.pod()).await?.script("echo x", |_| ()).await?, "x\n");
    server.finish().await
}

async fn pinned_images_are_shown(ctx: &Ctx) -> Res {
    ctx.only_crisp("it has another configuration")?;
    let (pinned, other) = (ctx.busybox(), ctx.image("k8s-staging-cri-tools/test-image-1:latest"));
    let extra = format!("[images]\npinned = [\"{pinned}\"]\n");
    let server = ctx.own(|o| o.extra = extra).await?;
    let cri = server.cri().await?;
    for (image, want) in [(&pinned, true), (&other, false)] {
        cri.pull(image).await?;
        same!(format!("status of {image}"), cri.image(image).await?.unwrap_or_default().pinned, want);
    }
    let listed: Vec<(Vec<String>, bool)> = cri.images().await?.into_iter().map(|i| (i.repo_tags, i.pinned)).collect();
    ensure!(listed.contains(&(vec![pinned.clone()], true)) && listed.contains(&(vec![other], false)), "{listed:?}");
    cri.remove_image(&pinned).await?;
    ensure!(cri.image(&pinned).await?.is_none(), "a pinned image cannot be removed");
    server.finish().await
}

/// The other one is Debian's, where it is there, behind a script that notes how it was called.
async fn a_second_runtime_handler(ctx: &Ctx) -> Res {
    ctx.only_crisp("it has another configuration")?;
    let dir = ctx.tmp()?;
    let debian = Path::new("/usr/sbin/runc");
    let runc = if debian.exists() { debian } else { &ctx.world()?.runc };
    let notes = dir.join("calls");
    let script = format!("echo \"$@\" >> {}; exec {} \"$@\"", notes.display(), runc.display());
    let second = program(&dir.join("second"), &script)?;
    let extra = format!("[runtimes.second]\npath = \"{}\"\n", second.display());
    let server = ctx.own(|o| o.extra = extra).await?;
    let cri = server.cri().await?;
    let handlers = cri.rt.clone().status(StatusRequest { verbose: false }).await?.into_inner().runtime_handlers;
    ensure!(handlers.iter().any(|h| h.name == "second"), "Status tells of {handlers:?}");

    fs::write(&notes, "")?;
    same!("the default one", ctx.up_on(&cri, ctx.pod()).await?.script("echo x", |_| ()).await?, "x\n");
    same!("calls of the second", fs::read_to_string(&notes)?, "");

    let config = ctx.pod();
    fs::create_dir_all(&config.log_directory)?;
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "second".into() };
    let id = cri.rt.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    same!("told by the pod", cri.pod_status(&id).await?.runtime_handler, "second");
    let container = ctx.container("c", &["sleep", "3600"]);
    let c = cri.create(&id, &container, &config).await?;
    cri.start(&c).await?;
    same!("exec", cri.exec(&c, &["echo", "y"], 10).await?.stdout, "y\n");
    cri.stop(&c, 0).await?;
    same!("exit code", cri.status(&c).await?.exit_code, 137);
    cri.remove(&c).await?;
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    let calls = fs::read_to_string(&notes)?;
    for verb in ["create", "start", "exec", "delete"] {
        ensure!(calls.split_whitespace().any(|w| w == verb), "the second runtime was never told to {verb}: {calls}");
    }
    server.finish().await
}

async fn systemd_hears_that_it_is_ready_and_alive(ctx: &Ctx) -> Res {
    ctx.only_crisp("it knows no watchdog")?;
    let path = ctx.tmp()?.join("notify");
    let systemd = UnixDatagram::bind(&path)?;
    let env = vec![
        ("NOTIFY_SOCKET".to_owned(), path.to_string_lossy().into_owned()),
        ("WATCHDOG_USEC".to_owned(), "2000000".to_owned()),
    ];
    let t = Instant::now();
    let mut server = ctx.own(|o| o.env = env).await?;
    hears(&systemd, "READY=1").await?;
    for _ in 0..3 {
        hears(&systemd, "WATCHDOG=1").await?;
    }
    ensure!(t.elapsed() < Duration::from_secs(10), "three signs of life took {:?}, the limit is 2 s each", t.elapsed());
    let cri = server.cri().await?;
    let env = ctx.up_on(&cri, ctx.pod()).await?.script("env", |_| ()).await?;
    ensure!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "a container has the server's {env}");
    cri.remove_everything().await?;
    server.stop().await;
    hears(&systemd, "STOPPING=1").await
}

/// Waits for a message, five seconds; others may come before it.
async fn hears(systemd: &UnixDatagram, want: &str) -> Res {
    let mut heard = Vec::new();
    let listen = async {
        loop {
            let mut buffer = [0; 4096];
            let n = systemd.recv(&mut buffer).await?;
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            let found = text.lines().any(|l| l == want);
            heard.push(text);
            if found {
                return Ok::<_, Fail>(());
            }
        }
    };
    let result = tokio::time::timeout(Duration::from_secs(5), listen).await;
    result.unwrap_or_else(|_| Err(Fail::Wrong(format!("systemd hears {heard:?} and no {want} within 5 s"))))
}
