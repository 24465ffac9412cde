//! Requests that no kubelet would send: refused by name, and the server goes on.

use super::{Ctx, cases, pod_namespaces, pod_security, security};
use crate::fail::{Res, ensure, same};
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
    let bad = |name: &str, c: Code| -> Res {
        ensure!(c != Code::Ok && c != Code::Internal || c == Code::Unknown, "{name} with an empty request: {c:?}");
        Ok(())
    };
    bad("RunPodSandbox", code(&rt.run_pod_sandbox(RunPodSandboxRequest::default()).await))?;
    bad("CreateContainer", code(&rt.create_container(CreateContainerRequest::default()).await))?;
    bad("StartContainer", code(&rt.start_container(StartContainerRequest::default()).await))?;
    bad("PodSandboxStatus", code(&rt.pod_sandbox_status(PodSandboxStatusRequest::default()).await))?;
    bad("ContainerStatus", code(&rt.container_status(ContainerStatusRequest::default()).await))?;
    bad("ExecSync", code(&rt.exec_sync(ExecSyncRequest::default()).await))?;
    bad("PullImage", code(&im.pull_image(PullImageRequest::default()).await))?;
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
    ensure!(ctx.cri.run_pod(&config).await.is_err(), "a pod without metadata");
    Ok(())
}

async fn container_without_identity(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    config.metadata = None;
    ensure!(pod.create(&config).await.is_err(), "a container without metadata");
    let mut config = ctx.container("c", &["true"]);
    config.image = None;
    ensure!(pod.create(&config).await.is_err(), "a container without image");
    Ok(())
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
        ensure!(ctx.cri.run_pod(&config).await.is_err(), "{m:?} is accepted");
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
    ensure!(r.is_err(), "a NUL in an argument is accepted");
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
    ensure!(ctx.cri.run_pod(&config).await.is_err(), "a hostname of 5000 bytes");
    Ok(())
}

async fn ids_that_are_paths(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    for id in ["../", "/", ".", "..", "../../../../etc", "a/../b", "*", "%00", "\n"] {
        let _ = ctx.cri.remove_pod(id).await;
        let _ = ctx.cri.remove(id).await;
        same!(format!("status of {id:?}"), ctx.cri.pod_status(id).await.is_err(), true);
    }
    same!("the pod", ctx.cri.pod_status(&pod.id).await?.state(), PodSandboxState::SandboxReady);
    Ok(())
}

async fn unknown_runtime_handler(ctx: &Ctx) -> Res {
    let request = RunPodSandboxRequest { config: Some(ctx.pod()), runtime_handler: "no-such-handler".into() };
    let e = ctx.cri.rt.clone().run_pod_sandbox(request).await.err();
    ensure!(e.as_ref().is_some_and(|e| e.message().contains("no-such-handler")), "{e:?}");
    Ok(())
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
        ensure!(e.as_ref().is_some_and(|e| e.message().to_lowercase().contains(word)), "{word}: {e:?}");
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
    ensure!(r.is_err(), "uid -5 is accepted");
    let mut config = ctx.pod();
    pod_security(&mut config).run_as_group = Some(Int64Value { value: 3 });
    let _ = ctx.cri.run_pod(&config).await;
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
    ensure!(r.is_err(), "a container starts in a stopped pod");
    Ok(())
}

async fn methods_not_served_say_so(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    let r = ctx
        .cri
        .rt
        .clone()
        .checkpoint_container(CheckpointContainerRequest {
            container_id: c.clone(),
            location: "/tmp/x".into(),
            timeout: 1,
        })
        .await;
    if let Err(e) = &r {
        ensure!(!e.message().is_empty(), "{e:?}");
    }
    ctx.cri.conditions().await?;
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
