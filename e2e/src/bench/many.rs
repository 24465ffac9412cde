//! What many pods cost: memory, a restart, and whether the next one starts as fast as the first.

use super::{Figures, Maker, four, ms, p50};
use crate::{
    budget::field,
    client::Cri,
    fail::{Fail, Res},
    server::Server,
};
use crisp_cri_proto::v1::*;
use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// What forty pods cost, and how long a killed server takes to come back with them.
pub(super) async fn forty(maker: &Maker, server: &mut Server, out: &mut Figures) -> Res {
    let us = memory(server, &["sleep"]);
    let mut pods = Vec::new();
    for _ in 0..40 {
        pods.push(maker.start(&["sleep", "36000"]).await?);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = memory(server, &["sleep"]);
    out.insert("memory a pod, Pss", (now.0.saturating_sub(us.0)) as f64 / 40.0);
    out.insert("threads a pod", (now.1.saturating_sub(us.1)) as f64 / 40.0);
    let pss = server
        .pid()
        .map_or(0, |p| field(&fs::read_to_string(format!("/proc/{p}/smaps_rollup")).unwrap_or_default(), "Pss:"));
    out.insert("server with 40 pods, Pss", pss as f64);
    out.insert("ListContainers, 40 pods", lists(&maker.cri).await?);
    server.kill9();
    let t = Instant::now();
    out.insert("kill -9 to first list, 40 pods", {
        server.spawn_again()?;
        loop {
            if let Ok(cri) = Cri::connect(&server.sock).await
                && cri.containers(ContainerFilter::default()).await.is_ok_and(|l| l.len() >= 40)
            {
                break ms(t);
            }
            if t.elapsed() > Duration::from_secs(60) {
                return Err(Fail::Wrong("the server does not come back".into()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let cri = server.cri().await?;
    let maker = Maker { cri, ..maker.clone() };
    for (pod, c, ..) in pods {
        maker.end(&pod, &c).await?;
    }
    Ok(())
}

/// Pss in kB and threads of everything here but the registry, ourselves, the server, and the workload by name.
fn memory(server: &Server, workload: &[&str]) -> (u64, u64) {
    let us = std::process::id();
    let (mut pss, mut threads) = (0, 0);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let read = |f: &str| fs::read_to_string(entry.path().join(f)).unwrap_or_default();
        let comm = read("comm");
        let comm = comm.trim();
        if pid == us || Some(pid) == server.pid() || workload.contains(&comm) || comm == "docker-registry" {
            continue;
        }
        pss += field(&read("smaps_rollup"), "Pss:");
        threads += field(&read("status"), "Threads:");
    }
    (pss, threads)
}

/// How the start of a pod, and a list, grow from ten pods to five hundred.
pub(super) async fn growth(maker: &Maker, out: &mut Figures) -> Res {
    let pods = Arc::new(Mutex::new(Vec::new()));
    let more = |n: usize| {
        let (maker, pods) = (maker.clone(), pods.clone());
        four(n, move || {
            let (maker, pods) = (maker.clone(), pods.clone());
            async move {
                let (pod, c, ..) = maker.start(&["sleep", "36000"]).await?;
                pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((pod, c));
                Ok(())
            }
        })
    };
    more(10).await?;
    let few = starts(maker).await?;
    more(490).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    out.insert("pod start, 500 pods to 10 pods", starts(maker).await? / few);
    out.insert("ListContainers, 500 pods", lists(&maker.cri).await?);
    let maker = maker.clone();
    four(500, move || {
        let (maker, pods) = (maker.clone(), pods.clone());
        async move {
            let next = pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
            match next {
                Some((pod, c)) => maker.end(&pod, &c).await.map(drop),
                None => Ok(()),
            }
        }
    })
    .await
    .map(drop)
}

/// The p50 of some starts beside what runs.
async fn starts(maker: &Maker) -> Res<f64> {
    let mut times = Vec::new();
    for _ in 0..20 {
        let (pod, c, _, t) = maker.start(&["sleep", "36000"]).await?;
        times.push(t[0]);
        maker.end(&pod, &c).await?;
    }
    Ok(p50(times))
}

/// The p50 of some lists.
async fn lists(cri: &Cri) -> Res<f64> {
    let mut times = Vec::new();
    for _ in 0..20 {
        let t = Instant::now();
        cri.containers(ContainerFilter::default()).await?;
        times.push(ms(t));
    }
    Ok(p50(times))
}
