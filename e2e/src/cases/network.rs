//! The pod's network, with CNI plugins, with the built-in one, with none.

use super::{Ctx, cases};
use crate::{
    fail::{Fail, Res, ensure, same},
    server::Net,
};
use crisp_cri_proto::v1::*;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

cases!("network":
    pods_reach_each_other_and_the_node, host_port, host_port_on_one_address, loopback_is_up, host_port_is_freed,
    netns_is_entered_by_others, network_not_ready_without_a_plugin, builtin_network, builtin_is_dual_stack, builtin_host_port,
);

const SERVE: &str = "mkdir -p /w; echo hello from $HOSTNAME > /w/index.html; httpd -f -p 80 -h /w";

/// Body of `http://address/`, tried for five seconds.
pub(crate) async fn get(address: &str) -> Res<String> {
    let mut last = String::new();
    for _ in 0..50 {
        let once = async {
            let mut s = TcpStream::connect(address).await?;
            s.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            let mut text = String::new();
            s.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        match tokio::time::timeout(Duration::from_secs(2), once).await {
            Ok(Ok(text)) if text.contains("200 OK") => {
                return Ok(text.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default());
            }
            other => last = format!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Fail::Wrong(format!("http://{address}/ gives no page: {last}")))
}

async fn pods_reach_each_other_and_the_node(ctx: &Ctx) -> Res {
    let (a, b) = (ctx.up().await?, ctx.up().await?);
    a.start(&ctx.container("web", &["sh", "-c", SERVE])).await?;
    let ip = ctx.cri.pod_status(&a.id).await?.network.unwrap_or_default().ip;
    let want = format!("hello from {}\n", a.config.hostname);
    same!("from the node", get(&format!("{ip}:80")).await?, want);
    same!("from a pod", b.script(&format!("wget -qO- http://{ip}/"), |_| ()).await?, want);
    let seen = b.script("ip -4 -o addr show eth0 | awk '{print $4}'", |_| ()).await?;
    let own = ctx.cri.pod_status(&b.id).await?.network.unwrap_or_default().ip;
    ensure!(seen.starts_with(&own), "eth0 has {seen}, status says {own}");
    Ok(())
}

fn port(host: i32, ip: &str) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp as i32, container_port: 80, host_port: host, host_ip: ip.into() }
}

async fn host_port(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.port_mappings = vec![port(18081, ""), PortMapping { container_port: 81, ..Default::default() }];
    let pod = ctx.up_as(config).await?;
    pod.start(&ctx.container("web", &["sh", "-c", SERVE])).await?;
    let want = format!("hello from {}\n", pod.config.hostname);
    for address in ["192.0.2.2:18081", "127.0.0.1:18081"] {
        same!(address, get(address).await?, want);
    }
    let other = ctx.up().await?;
    same!("from another pod", other.script("wget -qO- http://192.0.2.2:18081/", |_| ()).await?, want);
    same!("from itself", pod.script("wget -qO- http://192.0.2.2:18081/", |_| ()).await?, want);
    Ok(())
}

async fn host_port_on_one_address(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    config.port_mappings = vec![port(18082, "192.0.2.2")];
    let pod = ctx.up_as(config).await?;
    pod.start(&ctx.container("web", &["sh", "-c", SERVE])).await?;
    get("192.0.2.2:18082").await?;
    ensure!(TcpStream::connect("127.0.0.1:18082").await.is_err(), "the port answers on another address too");
    Ok(())
}

async fn loopback_is_up(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    same!("ping", pod.script("ping -c1 -w2 127.0.0.1 >/dev/null && echo up", |_| ()).await?, "up\n");
    Ok(())
}

async fn host_port_is_freed(ctx: &Ctx) -> Res {
    for _ in 0..2 {
        let mut config = ctx.pod();
        config.port_mappings = vec![port(18083, "")];
        let pod = ctx.up_as(config).await?;
        pod.start(&ctx.container("web", &["sh", "-c", SERVE])).await?;
        same!("page", get("192.0.2.2:18083").await?, format!("hello from {}\n", pod.config.hostname));
        pod.down().await?;
    }
    Ok(())
}

/// netns-rs, which knows nothing of us, enters a pod's namespace by its pin.
async fn netns_is_entered_by_others(ctx: &Ctx) -> Res {
    ctx.only_crisp("its pins are below its state directory here")?;
    let pod = ctx.up().await?;
    let ip = ctx.cri.pod_status(&pod.id).await?.network.unwrap_or_default().ip;
    let name = {
        let shared = ctx.shared();
        let instance = shared.as_ref().map(|s| s.instance.clone()).unwrap_or_default();
        std::fs::read_dir("/run/netns")?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .find(|n| n.starts_with(&instance) && n.contains(&pod.id[..12]))
            .ok_or_else(|| Fail::Wrong(format!("no pin of pod {} in /run/netns", pod.id)))?
    };
    let path = format!("/run/netns/{name}");
    let addresses = std::thread::spawn(move || {
        let ns = netns_rs::get_from_path(path).map_err(|e| e.to_string())?;
        ns.run(|_| {
            std::process::Command::new("ip")
                .args(["-o", "addr"])
                .output()
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        })
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())
    })
    .join()
    .map_err(|_| Fail::Wrong("the thread panicked".into()))?;
    let addresses = addresses.map_err(Fail::Wrong)?;
    ensure!(addresses.contains(&ip), "{ip} is not among {addresses}");
    Ok(())
}

async fn network_not_ready_without_a_plugin(ctx: &Ctx) -> Res {
    let server = ctx.own(|o| o.net = Net::Empty).await?;
    let cri = server.cri().await?;
    let conditions = cri.conditions().await?;
    let ready =
        |what: &str| conditions.iter().find(|(t, _, _)| t == what).map(|(_, ok, why)| (*ok, why.trim().is_empty()));
    same!("RuntimeReady", ready("RuntimeReady").map(|r| r.0), Some(true));
    same!("NetworkReady, and whether a reason is missing", ready("NetworkReady"), Some((false, false)));
    let error = ctx.up_on(&cri, ctx.pod()).await.err();
    ensure!(error.is_some(), "a pod starts without a network");
    server.finish().await
}

async fn builtin_network(ctx: &Ctx) -> Res {
    ctx.only_crisp("it has no network of its own")?;
    let server = ctx.own(|o| o.net = Net::Builtin).await?;
    let cri = server.cri().await?;
    let (a, b) = (ctx.up_on(&cri, ctx.pod()).await?, ctx.up_on(&cri, ctx.pod()).await?);
    a.start(&ctx.container("web", &["sh", "-c", SERVE])).await?;
    let ip = cri.pod_status(&a.id).await?.network.unwrap_or_default().ip;
    let want = format!("hello from {}\n", a.config.hostname);
    same!("from the node", get(&format!("{ip}:80")).await?, want);
    same!("from a pod", b.script(&format!("wget -qO- http://{ip}/"), |_| ()).await?, want);
    same!(
        "out to the node's address",
        b.script("ping -c1 -w2 192.0.2.2 >/dev/null && echo reached", |_| ()).await?,
        "reached\n"
    );
    server.finish().await
}

async fn builtin_is_dual_stack(ctx: &Ctx) -> Res {
    ctx.only_crisp("it has no network of its own")?;
    let server = ctx.own(|o| o.net = Net::Builtin).await?;
    let cri = server.cri().await?;
    let pod = ctx.up_on(&cri, ctx.pod()).await?;
    let network = cri.pod_status(&pod.id).await?.network.unwrap_or_default();
    let all: Vec<&str> =
        std::iter::once(network.ip.as_str()).chain(network.additional_ips.iter().map(|i| i.ip.as_str())).collect();
    ensure!(all.iter().any(|i| i.contains(':')) && all.iter().any(|i| i.contains('.')), "addresses {all:?}");
    server.finish().await
}

async fn builtin_host_port(ctx: &Ctx) -> Res {
    ctx.only_crisp("it has no network of its own")?;
    let server = ctx.own(|o| o.net = Net::Builtin).await?;
    let cri = server.cri().await?;
    let mut config = ctx.pod();
    config.port_mappings = vec![port(18084, "")];
    let pod = ctx.up_on(&cri, config).await?;
    pod.start(&ctx.container("web", &["sh", "-c", SERVE])).await?;
    let want = format!("hello from {}\n", pod.config.hostname);
    for address in ["192.0.2.2:18084", "127.0.0.1:18084"] {
        same!(address, get(address).await?, want);
    }
    let other = ctx.up_on(&cri, ctx.pod()).await?;
    same!("from another pod", other.script("wget -qO- http://192.0.2.2:18084/", |_| ()).await?, want);
    same!("from itself", pod.script("wget -qO- http://192.0.2.2:18084/", |_| ()).await?, want);
    server.finish().await
}
