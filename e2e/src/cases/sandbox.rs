//! Sandboxes: identity, namespaces, pod files, life cycle.

use super::{Ctx, cases, pod_namespaces};
use crate::fail::{Res, ensure, same};
use crisp_cri_proto::v1::*;
use std::collections::HashMap;
use tonic::Code;

cases!("sandbox":
    status_tells_what_was_asked, ids_are_accepted_by_prefix, unknown_ids, ambiguous_prefix_is_refused, filters_and_together,
    stop_and_remove_twice, remove_running_pod_takes_its_containers, hostname_and_hosts, dns_config, dns_config_absent_and_empty,
    shm_is_shared_by_the_pod, sysctls_apply, ipc_is_shared_and_own, shared_pid_namespace, target_pid_namespace, host_namespaces,
    a_retry_joins, twenty_at_once, stream_equals_list,
);

async fn status_tells_what_was_asked(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.labels = HashMap::from([("app".into(), "x".into()), ("empty".into(), String::new())]);
    config.annotations = HashMap::from([("note".into(), "a b\nc".into())]);
    let pod = ctx.up_as(config.clone()).await?;
    let s = ctx.cri.pod_status(&pod.id).await?;
    same!("metadata", s.metadata, config.metadata);
    same!("labels", s.labels, config.labels);
    same!("annotations", s.annotations, config.annotations);
    same!("state", s.state(), PodSandboxState::SandboxReady);
    ensure!(s.created_at > 1_700_000_000_000_000_000, "created_at is {}", s.created_at);
    let ip = s.network.unwrap_or_default().ip;
    ensure!(ip.parse::<std::net::IpAddr>().is_ok(), "the pod's address is {ip:?}");
    let listed = ctx.cri.pods(PodSandboxFilter { id: pod.id.clone(), ..Default::default() }).await?;
    same!("listed", listed.len(), 1);
    same!("listed annotations", listed[0].annotations, config.annotations);
    same!("created_at in list and status", listed[0].created_at, s.created_at);
    ctx.cri.stop_pod(&pod.id).await?;
    same!("state", ctx.cri.pod_status(&pod.id).await?.state(), PodSandboxState::SandboxNotready);
    Ok(())
}

async fn ids_are_accepted_by_prefix(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    same!("status by prefix", ctx.cri.pod_status(&pod.id[..20]).await?.id, pod.id);
    same!("container by prefix", ctx.cri.status(&c[..20]).await?.id, c);
    same!("exec by prefix", ctx.cri.exec(&c[..20], &["true"], 10).await?.code, 0);
    ctx.cri.stop(&c[..20], 0).await?;
    ctx.cri.remove(&c[..20]).await?;
    ctx.cri.stop_pod(&pod.id[..20]).await?;
    ctx.cri.remove_pod(&pod.id[..20]).await?;
    same!("pods left", ctx.cri.pods(PodSandboxFilter { id: pod.id.clone(), ..Default::default() }).await?.len(), 0);
    Ok(())
}

async fn unknown_ids(ctx: &Ctx) -> Res {
    let id = "0123456789abcdef".repeat(4);
    let cri = &ctx.cri;
    let code = |r: Result<(), tonic::Status>| r.err().map_or(Code::Ok, |s| s.code());
    same!("PodSandboxStatus", code(cri.pod_status(&id).await.map(drop)), Code::NotFound);
    same!("ContainerStatus", code(cri.status(&id).await.map(drop)), Code::NotFound);
    same!("ExecSync", code(cri.exec(&id, &["true"], 5).await.map(drop)), Code::NotFound);
    same!("StartContainer", code(cri.start(&id).await), Code::NotFound);
    same!("StopPodSandbox", code(cri.stop_pod(&id).await), Code::Ok);
    same!("RemovePodSandbox", code(cri.remove_pod(&id).await), Code::Ok);
    same!("StopContainer", code(cri.stop(&id, 0).await), Code::Ok);
    same!("RemoveContainer", code(cri.remove(&id).await), Code::Ok);
    let sandbox = ctx.pod();
    same!(
        "CreateContainer",
        code(cri.create(&id, &ctx.container("c", &["true"]), &sandbox).await.map(drop)),
        Code::NotFound
    );
    same!("filter by unknown id", cri.pods(PodSandboxFilter { id: id.clone(), ..Default::default() }).await?.len(), 0);
    same!("filter by unknown id", cri.containers(ContainerFilter { id, ..Default::default() }).await?.len(), 0);
    let message = cri.pod_status("feedbeef").await.err().map(|s| s.message().to_owned()).unwrap_or_default();
    ensure!(message.contains("feedbeef"), "the message does not name the id: {message:?}");
    Ok(())
}

async fn ambiguous_prefix_is_refused(ctx: &Ctx) -> Res {
    // Seventeen ids: two of them begin with the same hex digit.
    let mut config = ctx.pod();
    pod_namespaces(&mut config).network = NamespaceMode::Node as i32;
    config.hostname = String::new();
    let mut ids: Vec<String> = Vec::new();
    for attempt in 0..17 {
        let mut c = config.clone();
        c.metadata.get_or_insert_default().attempt = attempt;
        ids.push(ctx.up_as(c).await?.id);
        if let Some(twin) = ids.iter().find(|i| ids.iter().filter(|o| o[..1] == i[..1]).count() > 1) {
            let status = ctx.cri.pod_status(&twin[..1]).await;
            return ctx.refused(&format!("prefix {} of two pods", &twin[..1]), status, Code::InvalidArgument);
        }
    }
    Ok(())
}

async fn filters_and_together(ctx: &Ctx) -> Res {
    let run = format!("run{}", ctx.number());
    let mut ids = Vec::new();
    for app in ["a", "b"] {
        let mut config = ctx.pod();
        config.labels = HashMap::from([("run".into(), run.clone()), ("app".into(), app.into())]);
        ids.push(ctx.up_as(config).await?.id);
    }
    ctx.cri.stop_pod(&ids[1]).await?;
    let by = |labels: &[(&str, &str)], state: Option<PodSandboxState>| PodSandboxFilter {
        label_selector: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        state: state.map(|s| PodSandboxStateValue { state: s as i32 }),
        ..Default::default()
    };
    let count = async |f| -> Res<usize> { Ok(ctx.cri.pods(f).await?.len()) };
    same!("by one label", count(by(&[("run", &run)], None)).await?, 2);
    same!("by two labels", count(by(&[("run", &run), ("app", "a")], None)).await?, 1);
    same!("by label and state", count(by(&[("run", &run)], Some(PodSandboxState::SandboxReady))).await?, 1);
    same!("by both, none", count(by(&[("app", "b"), ("run", &run)], Some(PodSandboxState::SandboxReady))).await?, 0);
    Ok(())
}

async fn stop_and_remove_twice(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    pod.sleeper().await?;
    for _ in 0..2 {
        ctx.cri.stop_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        ctx.cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn remove_running_pod_takes_its_containers(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    ctx.cri.stop_pod(&pod.id).await?;
    same!("container", ctx.cri.status(&c).await?.state(), ContainerState::ContainerExited);
    ctx.cri.remove_pod(&pod.id).await?;
    same!("container", ctx.cri.status(&c).await.err().map(|s| s.code()), Some(Code::NotFound));
    Ok(())
}

async fn hostname_and_hosts(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let name = &pod.config.hostname;
    let out = pod.script("hostname; cat /etc/hostname; echo $HOSTNAME; grep -c localhost /etc/hosts", |_| ()).await?;
    let lines: Vec<&str> = out.lines().collect();
    ensure!(
        lines.len() == 4 && lines[..3].iter().all(|l| l == name),
        "hostname, /etc/hostname and $HOSTNAME are {lines:?}, not {name}"
    );
    Ok(())
}

async fn dns_config(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.1.2.3".into(), "10.1.2.4".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    let out = ctx.up_as(config).await?.script("cat /etc/resolv.conf", |_| ()).await?;
    same!(
        "resolv.conf",
        out,
        "search a.example b.example\nnameserver 10.1.2.3\nnameserver 10.1.2.4\noptions ndots:5\n"
    );
    Ok(())
}

async fn dns_config_absent_and_empty(ctx: &Ctx) -> Res {
    let host = std::fs::read_to_string("/etc/resolv.conf")?;
    let out = ctx.up().await?.script("cat /etc/resolv.conf", |_| ()).await?;
    same!("absent: the host's", out.trim_end(), host.trim_end());
    let mut config = ctx.pod();
    config.dns_config = Some(DnsConfig::default());
    let out = ctx.up_as(config).await?.script("wc -c < /etc/resolv.conf", |_| ()).await?;
    same!("empty: size", out.trim(), "0");
    Ok(())
}

async fn shm_is_shared_by_the_pod(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    pod.script("echo hello > /dev/shm/x", |_| ()).await?;
    let out = pod.script("cat /dev/shm/x; stat -c %a /dev/shm; df -k /dev/shm | tail -n1 | awk '{print $2}'; grep ' /dev/shm ' /proc/mounts", |_| ()).await?;
    let lines: Vec<&str> = out.lines().collect();
    same!("content, mode, size", lines[..3], ["hello", "1777", "65536"]);
    for o in ["nosuid", "nodev", "noexec"] {
        ensure!(lines[3].contains(o), "/dev/shm lacks {o}: {}", lines[3]);
    }
    Ok(())
}

async fn sysctls_apply(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_local_port_range".into(), "1024 65000".into());
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let out = ctx.up_as(config).await?.script("cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start", |_| ()).await?;
    same!("sysctls", out.split_whitespace().collect::<Vec<_>>(), ["1024", "65000", "1", "0"]);
    Ok(())
}

async fn ipc_is_shared_and_own(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let look = "for n in ipc net uts pid; do readlink /proc/self/ns/$n; done";
    let (a, b) = (pod.script(look, |_| ()).await?, pod.script(look, |_| ()).await?);
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    same!("ipc, net and uts of two containers", a[..3], b[..3]);
    let host = std::fs::read_link("/proc/self/ns/ipc")?;
    ensure!(host.to_string_lossy() != a[0], "the pod has the host's IPC namespace");
    Ok(())
}

async fn shared_pid_namespace(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    pod_namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    let pod = ctx.up_as(config).await?;
    let mut sleeper = ctx.container("s", &["sleep", "7231"]);
    super::security(&mut sleeper).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
    let s = pod.start(&sleeper).await?;
    let out = pod.script("echo me $$; ps -o pid,args | grep 7231 | grep -v grep | wc -l", |c| {
        super::security(c).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
    });
    let out = out.await?;
    ensure!(!out.starts_with("me 1\n"), "the container's process is PID 1: nothing reaps the pod's orphans");
    ensure!(out.ends_with("\n1\n"), "one container does not see the other: {out}");
    // Whoever is PID 1 survives a container and reaps what it leaves.
    ctx.cri.sh(&s, "(sh -c 'sleep 0.2' &) ; sleep 0.6; ps -o stat | grep -c Z || true").await.and_then(|z| {
        same!("zombies", z.trim(), "0");
        Ok(())
    })
}

async fn target_pid_namespace(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let target = pod.start(&ctx.container("target", &["sleep", "7232"])).await?;
    let join = |id: &str| {
        let id = id.to_owned();
        move |c: &mut ContainerConfig| {
            super::security(c).namespace_options =
                Some(NamespaceOption { pid: NamespaceMode::Target as i32, target_id: id, ..Default::default() });
        }
    };
    let out = pod.script("ps -o pid,args", join(&target)).await?;
    ensure!(
        out.lines().any(|l| l.trim().starts_with("1 ") && l.contains("sleep 7232")),
        "the target is not PID 1 in: {out}"
    );
    let other = ctx.up().await?;
    let mut c = ctx.container("x", &["true"]);
    join(&target)(&mut c);
    ensure!(other.create(&c).await.is_err(), "a target in another pod is accepted");
    ctx.cri.stop(&target, 0).await?;
    let mut c = ctx.container("y", &["true"]);
    join(&target)(&mut c);
    ensure!(pod.create(&c).await.is_err(), "a target that ended is accepted");
    Ok(())
}

async fn host_namespaces(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.hostname = String::new();
    *pod_namespaces(&mut config) = NamespaceOption {
        network: NamespaceMode::Node as i32,
        pid: NamespaceMode::Node as i32,
        ipc: NamespaceMode::Node as i32,
        ..Default::default()
    };
    let options = pod_namespaces(&mut config).clone();
    let pod = ctx.up_as(config).await?;
    let status = ctx.cri.pod_status(&pod.id).await?;
    same!("address", status.network.unwrap_or_default().ip, "");
    let out = pod.script("for n in net uts pid ipc; do readlink /proc/self/ns/$n; done", |c| {
        super::security(c).namespace_options = Some(options);
    });
    let have: Vec<String> = out.await?.lines().map(str::to_owned).collect();
    let mut want = Vec::new();
    for ns in ["net", "uts", "pid", "ipc"] {
        want.push(std::fs::read_link(format!("/proc/self/ns/{ns}"))?.to_string_lossy().into_owned());
    }
    same!("namespaces", have, want);
    Ok(())
}

async fn a_retry_joins(ctx: &Ctx) -> Res {
    let config = ctx.pod();
    let (a, b) = tokio::join!(ctx.cri.run_pod(&config), ctx.cri.run_pod(&config));
    same!("two calls at once", a?, b?);
    let first = ctx.cri.run_pod(&config).await?;
    let mut changed = config.clone();
    changed.annotations.insert("kubernetes.io/config.seen".into(), "later".into());
    same!("called again after it was made", ctx.cri.run_pod(&changed).await?, first);
    same!(
        "pods",
        ctx.cri.pods(PodSandboxFilter::default()).await?.iter().filter(|p| p.metadata == config.metadata).count(),
        1
    );
    Ok(())
}

async fn twenty_at_once(ctx: &Ctx) -> Res {
    let configs: Vec<PodSandboxConfig> = (0..20).map(|_| ctx.pod()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for c in &configs {
        let (cri, c) = (ctx.cri.clone(), c.clone());
        tasks.spawn(async move { cri.run_pod(&c).await });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(r) = tasks.join_next().await {
        ids.insert(r??);
    }
    same!("pods", ids.len(), 20);
    let mut ips = std::collections::BTreeSet::new();
    for id in &ids {
        ips.insert(ctx.cri.pod_status(id).await?.network.unwrap_or_default().ip);
    }
    same!("addresses", ips.len(), 20);
    Ok(())
}

async fn stream_equals_list(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let mut stream = ctx.cri.rt.clone().stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await?.into_inner();
    let mut pods = Vec::new();
    while let Some(m) = stream.message().await? {
        pods.extend(m.pod_sandboxes);
    }
    ensure!(pods.iter().any(|p| p.id == pod.id), "the pod is not in the stream");
    same!("pods", pods.len(), ctx.cri.pods(PodSandboxFilter::default()).await?.len());
    let mut stream = ctx.cri.rt.clone().stream_containers(StreamContainersRequest::default()).await?.into_inner();
    let mut containers = Vec::new();
    while let Some(m) = stream.message().await? {
        containers.extend(m.containers);
    }
    ensure!(containers.iter().any(|k| k.id == c), "the container is not in the stream");
    Ok(())
}
