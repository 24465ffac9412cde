//! Runs cases one after the other, looks for leaks after each, and sums up.

use crate::{
    cases::{self, Case, Ctx, differences},
    fail::{Fail, Res},
    leaks::{self, OpenFds, Snapshot},
    server::{Kind, Opts, Server},
    world::{self, World},
};
use std::time::{Duration, Instant};

/// A case gets this long.
const PATIENCE: Duration = Duration::from_secs(90);

/// The sums of one or more runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Sums {
    /// The line that ends a run.
    pub(crate) fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the cases whose `topic::name` holds one of the words against a server of `kind`.
pub(crate) async fn server(world: World, kind: Kind, words: &[String]) -> Res<(Sums, World)> {
    let server = Server::start(&world, &Opts::new(kind)).await?;
    let cri = server.cri().await?;
    let host = world.host.clone();
    let ctx = Ctx::new(Some(world), Some(kind), Some(server), cri, host)?;
    let sums = all(&ctx, words).await?;
    let server = ctx.shared().take();
    if let Some(s) = server {
        s.finish().await?;
    }
    let world = ctx.world.ok_or_else(|| Fail::Wrong("the world is gone".into()))?;
    Ok((sums, world))
}

/// Runs them against whatever listens there; what needs a server of its own is skipped.
pub(crate) async fn endpoint(path: &str, registry: &str, words: &[String]) -> Res<Sums> {
    let cri = crate::client::Cri::connect(std::path::Path::new(path.trim_start_matches("unix://"))).await?;
    let ctx = Ctx::new(None, None, None, cri, registry.to_owned())?;
    let sums = all(&ctx, words).await;
    let _ = std::fs::remove_dir_all(ctx.dir.parent().unwrap_or(&ctx.dir));
    world::remove_cgroups(&world::mark());
    sums
}

async fn all(ctx: &Ctx, words: &[String]) -> Res<Sums> {
    let chosen: Vec<Case> = cases::all()
        .into_iter()
        .filter(|c| words.is_empty() || words.iter().any(|w| format!("{}::{}", c.topic, c.name).contains(w.as_str())))
        .collect();
    println!(
        "\nrunning {} cases against {}",
        chosen.len(),
        ctx.kind.map_or("the endpoint".into(), |k| format!("{k:?}").to_lowercase())
    );
    warm_up(ctx).await?;
    let fds = ctx.shared().as_ref().and_then(OpenFds::of);
    let mut sums = Sums::default();
    let mut failed = Vec::new();
    for case in chosen {
        let name = format!("{}::{}", case.topic, case.name);
        let t = Instant::now();
        let result = one(ctx, &case).await;
        let took = t.elapsed().as_secs_f64();
        let known = match ctx.kind {
            Some(Kind::Containerd) => differences::CONTAINERD,
            Some(Kind::Crisp) | None => &[],
        };
        let known = known.iter().find(|(n, _)| *n == name);
        match (result, known) {
            (Ok(()), None) => {
                sums.passed += 1;
                println!("test {name} ... ok ({took:.1} s)");
            }
            (Err(Fail::Skip(why)), _) => {
                sums.skipped += 1;
                println!("test {name} ... skipped: {why}");
            }
            (Err(Fail::Wrong(_)), Some((_, why))) => {
                sums.skipped += 1;
                println!("test {name} ... fails as known: {why}");
            }
            (Ok(()), Some(_)) => {
                sums.failed += 1;
                println!("test {name} ... FAILED: passes, but is listed as a known difference: take it off the list");
                failed.push(name);
            }
            (Err(Fail::Wrong(why)), None) => {
                sums.failed += 1;
                println!("test {name} ... FAILED ({took:.1} s): {why}");
                failed.push(name);
            }
        }
        revive(ctx).await?;
    }
    // Few in each case, and so within what one case may leave open, would still be many in the end.
    let server = ctx.shared().take();
    if let (Some(fds), Some(server)) = (fds, &server)
        && let Some(grown) = fds.grown(server).await
    {
        sums.failed += 1;
        println!("after all cases ... FAILED: the server has {grown}");
        failed.push("fds of the server".into());
    }
    *ctx.shared() = server;
    if !failed.is_empty() {
        println!("failed: {}", failed.join(" "));
    }
    println!("{}", sums.line());
    Ok(sums)
}

/// One case, what it left removed, and the leak check.
async fn one(ctx: &Ctx, case: &Case) -> Res {
    let marks = {
        let server = ctx.shared();
        [Some(world::mark()), server.as_ref().map(|s| s.instance.clone())].into_iter().flatten().collect::<Vec<_>>()
    };
    world::remove_cgroups(&world::mark());
    let before = (ctx.world.is_some()).then(|| Snapshot::take(ctx.shared().as_ref(), &marks));
    let cgroups_before = leaks::container_cgroups(&world::mark());
    let result = tokio::time::timeout(PATIENCE, (case.run)(ctx))
        .await
        .unwrap_or_else(|_| Err(Fail::Wrong(format!("not done after {} s", PATIENCE.as_secs()))));
    let cleaned = tokio::time::timeout(Duration::from_secs(60), ctx.cri.remove_everything())
        .await
        .unwrap_or_else(|_| Err(Fail::Wrong("cleaning up is not done after 60 s".into())));
    result?;
    cleaned?;
    // What the peer leaves after a SIGKILL depends on the moment, and is not ours to judge.
    let peer_killed = ctx.kind == Some(Kind::Containerd) && case.topic == "restart";
    let before = before.filter(|_| !peer_killed);
    let mut leaks = match before {
        Some(_) => leaks::new_container_cgroups(&world::mark(), &cgroups_before).await,
        None => Vec::new(),
    };
    // Parents of pods' cgroups are kubelet's to remove, here ours.
    world::remove_cgroups(&world::mark());
    if let Some(before) = before {
        let server = ctx.shared().take();
        leaks.extend(before.leaks(server.as_ref(), &marks).await);
        *ctx.shared() = server;
        if !leaks.is_empty() {
            let shown: Vec<&str> = leaks.iter().take(8).map(String::as_str).collect();
            return Err(Fail::Wrong(format!("{} things leaked: {}", leaks.len(), shown.join("; "))));
        }
    }
    Ok(())
}

/// What the first pods of a server make once: the bridge, chains of host ports, the images of nearly all cases, what
/// holds a shared PID namespace, the cgroup of pods that name no parent.
async fn warm_up(ctx: &Ctx) -> Res {
    use crisp_cri_proto::v1::{NamespaceMode, PortMapping};
    let mut config = ctx.pod();
    cases::pod_namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    config.port_mappings =
        vec![PortMapping { protocol: 0, container_port: 80, host_port: 18099, host_ip: String::new() }];
    let pod = ctx.up_as(config).await?;
    let mut sleeper = ctx.container("warm", &["sleep", "3600"]);
    cases::security(&mut sleeper).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
    let c = pod.start(&sleeper).await?;
    ctx.cri.exec(&c, &["true"], 10).await?;
    pod.down().await?;
    let mut config = ctx.pod();
    config.linux.get_or_insert_default().cgroup_parent = String::new();
    let pod = ctx.up_as(config).await?;
    pod.sleeper().await?;
    pod.down().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}

/// Starts the shared server again should it have died, so that one bad case does not fail all others.
async fn revive(ctx: &Ctx) -> Res {
    let server = ctx.shared().take();
    let Some(mut s) = server else { return Ok(()) };
    let alive = tokio::time::timeout(Duration::from_secs(10), ctx.cri.conditions()).await;
    if !matches!(alive, Ok(Ok(_))) {
        println!("the server does not answer; starting it again. It said: {}", s.last_words());
        s.kill9();
        s.start_again().await?;
    }
    *ctx.shared() = Some(s);
    Ok(())
}
