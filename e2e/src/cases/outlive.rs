//! The promise that the server is built for: what runs does not depend on it. A crowd that outlives a SIGKILL, and a
//! record that does not.

use super::{Ctx, cases};
use crate::{
    fail::{Res, ensure, same},
    logs, world,
};
use crisp_cri_proto::v1::*;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

cases!("restart":
    a_hundred_pods_outlive_the_server, a_damaged_record_is_cleaned_up, a_record_that_cannot_be_read_is_left_alone,
);

/// A pod of the crowd.
struct One {
    number: i32,
    pod: String,
    container: String,
    log: PathBuf,
}

/// Does all of it, four at a time, as many as kubelet does at once.
async fn four_at_a_time<T, W>(work: impl IntoIterator<Item = W>) -> Res<Vec<T>>
where
    T: Send + 'static,
    W: Future<Output = Result<T, Status>> + Send + 'static,
{
    let (mut work, mut set, mut done) = (work.into_iter(), JoinSet::new(), Vec::new());
    loop {
        while set.len() < 4
            && let Some(next) = work.next()
        {
            set.spawn(next);
        }
        let Some(one) = set.join_next().await else { return Ok(done) };
        done.push(one??);
    }
}

async fn a_hundred_pods_outlive_the_server(ctx: &Ctx) -> Res {
    ctx.only_crisp("its log pipes belong to the server, and a container that writes gets SIGPIPE")?;
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    cri.ensure(&ctx.busybox()).await?;
    // All end at one sign: however long it takes to make them, the first still runs when the server is killed.
    let gate = ctx.tmp()?;
    let made = four_at_a_time((1..=100).map(|number| {
        let script = format!(
            "i=0; while [ ! -e /gate/open ]; do echo line $i; i=$((i+1)); sleep 1; done; echo end $i; exit {number}"
        );
        let (cri, pod, mut container) = (cri.clone(), ctx.pod(), ctx.container("c", &["sh", "-c", &script]));
        container.mounts = vec![Mount {
            container_path: "/gate".into(),
            host_path: gate.to_string_lossy().into_owned(),
            readonly: true,
            ..Default::default()
        }];
        async move {
            let log = Path::new(&pod.log_directory).join(&container.log_path);
            let _ = fs::create_dir_all(&pod.log_directory);
            let id = cri.run_pod(&pod).await?;
            let c = cri.create(&id, &container, &pod).await?;
            cri.start(&c).await?;
            Ok(One { number, pod: id, container: c, log })
        }
    }))
    .await?;
    same!("running before", count(&cri, ContainerState::ContainerRunning).await?, 100);

    server.kill9();
    let sizes = |all: &[One]| -> Res<Vec<u64>> { all.iter().map(|o| Ok(fs::metadata(&o.log)?.len())).collect() };
    let before = sizes(&made)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let silent = before.iter().zip(sizes(&made)?).filter(|(before, after)| *before == after).count();
    same!("containers that wrote nothing while the server was down", silent, 0);
    server.start_again().await?;

    let cri = server.cri().await?;
    let pods = cri.pods(PodSandboxFilter::default()).await?;
    same!("pods after", pods.iter().filter(|p| p.state() == PodSandboxState::SandboxReady).count(), 100);
    same!("running after", count(&cri, ContainerState::ContainerRunning).await?, 100);

    fs::write(gate.join("open"), "")?;
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let left = count(&cri, ContainerState::ContainerRunning).await?;
        if left == 0 {
            break;
        }
        ensure!(Instant::now() < until, "{left} of 100 still run, 20 s after they were told to end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for one in &made {
        let status = cri.status(&one.container).await?;
        same!(format!("end of {}", one.number), (status.state() as i32, status.exit_code), (2, one.number));
        let text = logs::stream(&logs::read(&one.log)?, "stdout");
        let lines = text.lines().count() - 1;
        let whole = (0..lines).map(|i| format!("line {i}\n")).collect::<String>() + &format!("end {lines}\n");
        ensure!(text == whole && lines > 3, "the log of {} has gaps: {text:?}", one.number);
    }
    four_at_a_time(made.into_iter().map(|one| {
        let cri = cri.clone();
        async move {
            cri.stop_pod(&one.pod).await?;
            cri.remove(&one.container).await?;
            cri.remove_pod(&one.pod).await
        }
    }))
    .await?;
    same!("pods left", cri.pods(PodSandboxFilter::default()).await?.len(), 0);
    server.finish().await
}

async fn count(cri: &crate::client::Cri, state: ContainerState) -> Res<usize> {
    let state = Some(ContainerStateValue { state: state as i32 });
    Ok(cri.containers(ContainerFilter { state, ..Default::default() }).await?.len())
}

async fn a_damaged_record_is_cleaned_up(ctx: &Ctx) -> Res {
    ctx.only_crisp("its records are a database")?;
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.sleeper().await?;
    let other = pod.sleeper().await?;
    ensure!(!world::marked(&c).is_empty() && !world::cgroups(&c).is_empty(), "nothing to be found of {c}");
    server.kill9();
    let record = server.root.join("containers").join(&c).join("record.json");
    ensure!(record.is_file(), "{} is not there", record.display());
    fs::write(&record, "rubbish")?;
    server.start_again().await?;
    let cri = server.cri().await?;
    same!("its status", cri.status(&c).await.err().map(|e| e.code()), Some(Code::NotFound));
    let listed = cri.containers(ContainerFilter::default()).await?;
    same!("listed", listed.iter().map(|c| &c.id).collect::<Vec<_>>(), [&other]);
    same!("the other one", cri.status(&other).await?.state(), ContainerState::ContainerRunning);
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let (processes, cgroups) = (world::marked(&c), world::cgroups(&c));
        if processes.is_empty() && cgroups.is_empty() {
            break;
        }
        ensure!(Instant::now() < until, "15 s later there still are {processes:?} and {cgroups:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cri.stop_pod(&pod.id).await?;
    cri.remove_pod(&pod.id).await?;
    same!("pods left", cri.pods(PodSandboxFilter::default()).await?.len(), 0);
    server.finish().await
}

/// What a newer server wrote is for that one to read: nothing of the pod is touched until it does.
async fn a_record_that_cannot_be_read_is_left_alone(ctx: &Ctx) -> Res {
    ctx.only_crisp("its records are a database")?;
    let mut server = ctx.own(|_| ()).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let c = pod.sleeper().await?;
    let process = world::marked(&c);
    server.kill9();
    let record = server.root.join("sandboxes").join(&pod.id).join("record.json");
    let written = fs::read(&record)?;
    let mut newer: serde_json::Value = serde_json::from_slice(&written)?;
    newer["version"] = 99.into();
    fs::write(&record, serde_json::to_vec(&newer)?)?;
    server.start_again().await?;
    let cri = server.cri().await?;
    same!("pods listed", cri.pods(PodSandboxFilter::default()).await?.len(), 0);
    same!("containers listed", cri.containers(ContainerFilter::default()).await?.len(), 0);
    // Longer than recovery takes to undo and to sweep.
    tokio::time::sleep(Duration::from_secs(3)).await;
    same!("its monitor", world::marked(&c), process);
    server.kill9();
    fs::write(&record, &written)?;
    server.start_again().await?;
    let cri = server.cri().await?;
    same!("its state", cri.status(&c).await?.state(), ContainerState::ContainerRunning);
    same!("an exec", cri.exec(&c, &["echo", "x"], 10).await?.stdout, "x\n");
    server.finish().await
}
