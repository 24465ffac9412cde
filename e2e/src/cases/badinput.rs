//! Requests that no kubelet would send: refused by name, and the server goes on.

use super::{Ctx, cases, pod_namespaces, pod_security, security};
use crate::{
    fail::{Res, ensure, same},
    server::Kind,
};
use crisp_cri_proto::v1::*;
use tonic::{Code, Status};

cases!("badinput":
    empty_requests, pod_without_identity, container_without_identity, wrong_namespaces, bad_port_mappings, odd_names, nul_bytes,
    huge_strings, ids_that_are_paths, unknown_runtime_handler, fields_not_served_are_refused, negative_numbers, container_in_a_stopped_pod,
    methods_not_served_say_so, many_connections, rubbish_on_the_socket,
);

fn code<T>(r: &Result<T, Status>) -> Code {
    r.as_ref().err().map_or(Code::Ok, Status::code)
}

async fn empty_requests(ctx: &Ctx) -> Res {
    let (mut rt, mut im) = (ctx.cri.rt.clone(), ctx.cri.im.clone());
    let bad = |name: &str, c: Code, want: Code| -> Res {
        let right = c == want || ctx.kind != Some(Kind::Crisp) && c != Code::Ok && c != Code::Internal;
        ensure!(right, "{name} with an empty request is {c:?}, not {want:?}");
        Ok(())
    };
    let run = rt.run_pod_sandbox(RunPodSandboxRequest::default()).await;
    bad("RunPodSandbox", code(&run), Code::InvalidArgument)?;
    let create = rt.create_container(CreateContainerRequest::default()).await;
    bad("CreateContainer", code(&create), Code::InvalidArgument)?;
    // An empty id names nothing.
    bad("StartContainer", code(&rt.start_container(StartContainerRequest::default()).await), Code::NotFound)?;
    bad("PodSandboxStatus", code(&rt.pod_sandbox_status(PodSandboxStatusRequest::default()).await), Code::NotFound)?;
    bad("ContainerStatus", code(&rt.container_status(ContainerStatusRequest::default()).await), Code::NotFound)?;
    bad("ExecSync", code(&rt.exec_sync(ExecSyncRequest::default()).await), Code::NotFound)?;
    bad("PullImage", code(&im.pull_image(PullImageRequest::default()).await), Code::InvalidArgument)?;
    for p in ctx.cri.pods(PodSandboxFilter::default()).await? {
        ensure!(!p.id.is_empty(), "an empty request made a pod");
    }
    // Without an id these must not mean "any".
    let pod = ctx.up().await?;
    let _ = ctx.cri.stop_pod("").await;
    let _ = ctx.cri.remove_pod("").await;
    same!("the pod", ctx.cri.pod_status(&pod.id).await?.state(), PodSandboxState::SandboxReady);
    Ok(())
}

async fn pod_without_identity(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.metadata = None;
    ctx.refused("a pod without metadata", ctx.cri.run_pod(&config).await, Code::InvalidArgument)
}

async fn container_without_identity(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    config.metadata = None;
    ctx.refused("a container without metadata", pod.create(&config).await, Code::InvalidArgument)?;
    let mut config = ctx.container("c", &["true"]);
    config.image = None;
    ctx.refused("a container without image", pod.create(&config).await, Code::InvalidArgument)
}

async fn wrong_namespaces(ctx: &Ctx) -> Res {
    ctx.only_crisp("it takes what it does not know for POD")?;
    for change in [
        |n: &mut NamespaceOption| n.network = 1,
        |n: &mut NamespaceOption| n.ipc = 3,
        |n: &mut NamespaceOption| n.pid = 77,
    ] {
        let mut config = ctx.pod();
        change(pod_namespaces(&mut config));
        same!("code", code(&ctx.cri.run_pod(&config).await), Code::InvalidArgument);
    }
    Ok(())
}

async fn bad_port_mappings(ctx: &Ctx) -> Res {
    for m in [
        PortMapping { container_port: 80, host_port: 70_000, ..Default::default() },
        PortMapping { container_port: -1, host_port: 18090, ..Default::default() },
        PortMapping { container_port: 80, host_port: 18090, host_ip: "not an address".into(), ..Default::default() },
    ] {
        let mut config = ctx.pod();
        config.port_mappings = vec![m.clone()];
        ctx.refused(&format!("{m:?}"), ctx.cri.run_pod(&config).await, Code::InvalidArgument)?;
    }
    Ok(())
}

async fn odd_names(ctx: &Ctx) -> Res {
    for name in ["../../../tmp/x", "a/b", "name with spaces", "ünï", "-rf", "$(reboot)", "a\nb"] {
        let mut config = ctx.pod();
        config.metadata.get_or_insert_default().name = name.into();
        if let Ok(id) = ctx.cri.run_pod(&config).await {
            same!("name", ctx.cri.pod_status(&id).await?.metadata.unwrap_or_default().name, name);
        }
    }
    Ok(())
}

async fn nul_bytes(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["echo", "a\0b"]);
    config.working_dir = "/tmp\0x".into();
    let r = match pod.create(&config).await {
        Ok(c) => ctx.cri.start(&c).await,
        Err(e) => Err(e),
    };
    ctx.refused("a NUL in an argument", r, Code::InvalidArgument)?;
    ctx.cri.conditions().await?;
    Ok(())
}

async fn huge_strings(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.annotations.insert("big".into(), "x".repeat(4 << 20));
    if let Ok(id) = ctx.cri.run_pod(&config).await {
        same!("annotation", ctx.cri.pod_status(&id).await?.annotations["big"].len(), 4 << 20);
    }
    let mut config = ctx.pod();
    config.hostname = "h".repeat(5000);
    ctx.refused("a hostname of 5000 bytes", ctx.cri.run_pod(&config).await, Code::InvalidArgument)
}

async fn ids_that_are_paths(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    for id in ["../", "/", ".", "..", "../../../../etc", "a/../b", "*", "%00", "\n"] {
        let _ = ctx.cri.remove_pod(id).await;
        let _ = ctx.cri.remove(id).await;
        ctx.refused(&format!("status of {id:?}"), ctx.cri.pod_status(id).await, Code::NotFound)?;
    }
    same!("the pod", ctx.cri.pod_status(&pod.id).await?.state(), PodSandboxState::SandboxReady);
    Ok(())
}

async fn unknown_runtime_handler(ctx: &Ctx) -> Res {
    let request = RunPodSandboxRequest { config: Some(ctx.pod()), runtime_handler: "no-such-handler".into() };
    let r = ctx.cri.rt.clone().run_pod_sandbox(request).await;
    ensure!(r.as_ref().is_err_and(|e| e.message().contains("no-such-handler")), "{r:?}");
    ctx.refused("an unknown handler", r, Code::InvalidArgument)
}

async fn fields_not_served_are_refused(ctx: &Ctx) -> Res {
    ctx.only_crisp("it serves or ignores others than we do")?;
    let pod = ctx.up().await?;
    type Change = fn(&mut ContainerConfig);
    let changes: [(&str, Change); 4] = [
        ("cdi", |c| c.cdi_devices = vec![CdiDevice { name: "vendor.example/x=y".into() }]),
        ("apparmor", |c| {
            security(c).apparmor = Some(SecurityProfile { profile_type: 2, localhost_ref: "no-such-profile".into() })
        }),
        ("ambient", |c| {
            security(c).capabilities =
                Some(Capability { add_ambient_capabilities: vec!["CHOWN".into()], ..Default::default() })
        }),
        ("mount_options", |c| {
            c.mounts = vec![Mount {
                host_path: "/tmp".into(),
                container_path: "/x".into(),
                mount_options: vec!["noexec".into()],
                ..Default::default()
            }]
        }),
    ];
    for (word, change) in changes {
        let mut config = ctx.container(&format!("c{}", ctx.number()), &["true"]);
        change(&mut config);
        let e = pod.create(&config).await.err();
        let named = |e: &Status| e.code() == Code::Unimplemented && e.message().to_lowercase().contains(word);
        ensure!(e.as_ref().is_some_and(named), "{word}: {e:?}");
    }
    Ok(())
}

async fn negative_numbers(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    security(&mut config).run_as_user = Some(Int64Value { value: -5 });
    let r = match pod.create(&config).await {
        Ok(c) => ctx.cri.start(&c).await,
        Err(e) => Err(e),
    };
    ctx.refused("uid -5", r, Code::InvalidArgument)?;
    let mut config = ctx.pod();
    pod_security(&mut config).run_as_group = Some(Int64Value { value: 3 });
    let r = ctx.cri.run_pod(&config).await;
    if ctx.kind == Some(Kind::Crisp) {
        ctx.refused("a group without a user", r, Code::InvalidArgument)?;
    }
    ctx.cri.conditions().await?;
    Ok(())
}

async fn container_in_a_stopped_pod(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    ctx.cri.stop_pod(&pod.id).await?;
    let r = pod.create(&ctx.container("c", &["true"])).await;
    let r = match r {
        Ok(c) => ctx.cri.start(&c).await,
        Err(e) => Err(e),
    };
    ctx.refused("a container in a stopped pod", r, Code::FailedPrecondition)
}

/// Calls each of these with an empty request: its name and what came.
macro_rules! calls {
    ($rt:expr, $($rpc:literal $method:ident),+ $(,)?) => {
        [$(($rpc, $rt.clone().$method(tonic::Request::new(Default::default())).await.err())),+]
    };
}

async fn methods_not_served_say_so(ctx: &Ctx) -> Res {
    ctx.only_crisp("it serves most of them")?;
    let answers = calls!(
        ctx.cri.rt,
        "Exec" exec,
        "Attach" attach,
        "PortForward" port_forward,
        "ContainerStats" container_stats,
        "ListContainerStats" list_container_stats,
        "StreamContainerStats" stream_container_stats,
        "PodSandboxStats" pod_sandbox_stats,
        "ListPodSandboxStats" list_pod_sandbox_stats,
        "StreamPodSandboxStats" stream_pod_sandbox_stats,
        "ListMetricDescriptors" list_metric_descriptors,
        "ListPodSandboxMetrics" list_pod_sandbox_metrics,
        "StreamPodSandboxMetrics" stream_pod_sandbox_metrics,
        "GetContainerEvents" get_container_events,
        "UpdateContainerResources" update_container_resources,
        "UpdatePodSandboxResources" update_pod_sandbox_resources,
        "CheckpointContainer" checkpoint_container,
        "CheckpointPod" checkpoint_pod,
        "RestorePod" restore_pod,
    );
    for (rpc, error) in answers {
        let named = |e: &Status| e.code() == Code::Unimplemented && e.message().contains(rpc);
        ensure!(error.as_ref().is_some_and(named), "{rpc}: {error:?}");
    }
    Ok(())
}

async fn many_connections(ctx: &Ctx) -> Res {
    let sock = ctx.shared().as_ref().map(|s| s.sock.clone());
    let Some(sock) = sock else { return crate::fail::skip("needs a server of its own") };
    {
        let mut all = Vec::new();
        for _ in 0..200 {
            all.push(crate::client::Cri::connect(&sock).await?);
        }
        for c in &all {
            c.conditions().await?;
        }
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    Ok(())
}

async fn rubbish_on_the_socket(ctx: &Ctx) -> Res {
    use tokio::io::AsyncWriteExt;
    let sock = ctx.shared().as_ref().map(|s| s.sock.clone());
    let Some(sock) = sock else { return crate::fail::skip("needs a server of its own") };
    for junk in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 70_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut s = tokio::net::UnixStream::connect(&sock).await?;
        let _ = s.write_all(junk).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    ctx.cri.conditions().await?;
    Ok(())
}
