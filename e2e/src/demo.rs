//! The main job, shown to a person on the machine as it is: pull an image, run a pod with a web server, read its log,
//! get its page. Needs root, Rust and Debian's packages; everything it makes carries a name of its own and is removed.

use crate::{
    cases::{namespaces, network::get},
    client::{Cri, NAMESPACE, spec},
    fail::{Res, ensure, wrong},
    images, logs, parts,
    push::{Layer, push},
    registry::{Registry, free_port},
    server::Server,
    sh, world,
};
use crisp_cri_proto::v1::*;
use serde_json::json;
use std::{fs, path::Path, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};

const IMAGE: &str = "demo/web:1";

/// Prints a step.
fn say(text: impl AsRef<str>) {
    println!("\n==> {}", text.as_ref());
}

/// The whole demo. Ctrl-C ends it at any time, and what it made is removed all the same.
pub(crate) async fn demo() -> Res {
    ensure!(rustix::process::geteuid().is_root(), "the demo needs root: it starts containers");
    // One for all steps: it keeps a signal that comes between two of them.
    let mut ctrl_c = signal(SignalKind::interrupt())?;
    unless(&mut ctrl_c, prepare()).await?;
    let dir = std::env::temp_dir().join(world::mark());
    let cleanup = Cleanup(dir.clone());
    fs::create_dir_all(&dir)?;

    let registry = unless(&mut ctrl_c, publish(&dir)).await?;
    say("crisp serve, without any configuration; only its names and directories are its own");
    let server = Server::plain(&dir, &parts::crisp()).await?;
    println!("    {}", server.command_line());
    let cri = server.cri().await?;
    let shown = unless(&mut ctrl_c, show(&cri, &dir, &format!("{}/{IMAGE}", registry.host))).await;
    say("cleaning up: the pod, the server, its directories");
    if shown.is_err() {
        // What the server was asked for goes on there without us, and a pod is listed once it is made.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let removed = cri.remove_everything().await;
    let instance = server.instance.clone();
    server.finish().await?;
    drop(registry);
    drop(cleanup);
    for table in sh::cmd("nft", &["list", "tables"], 10).await?.lines().filter(|l| l.contains(&instance)) {
        println!("    removing the empty {table}");
        let words: Vec<&str> = ["delete"].into_iter().chain(table.split(' ')).collect();
        sh::cmd("nft", &words, 10).await?;
    }
    shown.and(removed)?;
    say("done: the main job works on this machine");
    Ok(())
}

/// Does `work`, or leaves it at Ctrl-C.
async fn unless<T>(ctrl_c: &mut Signal, work: impl Future<Output = Res<T>>) -> Res<T> {
    tokio::select! {
        // The signal reaches programs that `work` waits for as well, and is why they fail then.
        biased;
        _ = ctrl_c.recv() => wrong("interrupted"),
        done = work => done,
    }
}

async fn prepare() -> Res {
    say("what it needs: runc, nftables, a registry and busybox, from Debian");
    parts::apt(parts::DEMO).await?;
    say("building crisp (a first build takes some minutes)");
    cargo(&["build", "--release", "--package", "crisp"]).await
}

/// A registry that has the image.
async fn publish(dir: &Path) -> Res<Registry> {
    say("a registry on loopback, with one image: busybox and a web page");
    let registry = Registry::start(&dir.join("registry"), dir).await?;
    let mut tar = images::rootfs(Path::new("/bin/busybox"), "", "").await?;
    tar.dir("www").file("www/index.html", "It works: this page comes from a pod that crisp runs.\n", 0o644);
    push(
        &registry.host,
        &[IMAGE],
        &[Layer::gzip(&tar)?],
        &json!({
            "Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "echo serving on port 80; exec httpd -f -v -p 80 -h /www"]
        }),
    )
    .await?;
    Ok(registry)
}

/// What the server says of itself.
async fn introduce(cri: &Cri) -> Res {
    let version = cri.rt.clone().version(VersionRequest::default()).await?.into_inner();
    println!(
        "    it answers: {} {}, CRI {}",
        version.runtime_name, version.runtime_version, version.runtime_api_version
    );
    for (what, ok, why) in cri.conditions().await? {
        println!("    {what}: {ok} {why}");
    }
    Ok(())
}

async fn show(cri: &Cri, dir: &Path, image: &str) -> Res {
    introduce(cri).await?;
    say(format!("pulling {image}"));
    let id = cri.pull(image).await?;
    println!("    image {id}");

    say("a pod on the built-in network, one container in it");
    let port = free_port()?;
    let pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "demo".into(),
            uid: world::mark(),
            namespace: NAMESPACE.into(),
            attempt: 0,
        }),
        hostname: "demo".into(),
        log_directory: dir.join("logs").to_string_lossy().into_owned(),
        port_mappings: vec![PortMapping { container_port: 80, host_port: i32::from(port), ..Default::default() }],
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    fs::create_dir_all(&pod.log_directory)?;
    let pod_id = cri.run_pod(&pod).await?;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "web".into(), attempt: 0 }),
        image: Some(spec(image)),
        log_path: "web.log".into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let id = cri.create(&pod_id, &container, &pod).await?;
    cri.start(&id).await?;
    let ip = cri.pod_status(&pod_id).await?.network.unwrap_or_default().ip;
    println!("    pod {} has the address {ip}; port {port} of this machine leads to it", &pod_id[..12]);

    say(format!("its page: http://{ip}/ and http://127.0.0.1:{port}/"));
    let page = get(&if ip.contains(':') { format!("[{ip}]:80") } else { format!("{ip}:80") }).await?;
    let again = get(&format!("127.0.0.1:{port}")).await?;
    print!("    {page}");
    ensure!(page == again && page.starts_with("It works"), "the host port answers {again:?}");

    say("its log");
    let log = dir.join("logs/web.log");
    let lines = logs::until(&log, 10, "the requests", |l| l.iter().any(|l| l.text.contains("200"))).await?;
    for l in &lines {
        println!("    {} {} {}", l.time, l.stream, l.text);
    }
    say("a command inside: ps");
    print!("{}", cri.exec(&id, &["ps"], 10).await?.stdout);
    cri.stop(&id, 1).await?;
    Ok(())
}

/// Runs cargo in the checkout with its output shown.
pub(crate) async fn cargo(args: &[&str]) -> Res {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = tokio::process::Command::new(program)
        .args(args)
        .current_dir(parts::checkout())
        .stdin(std::process::Stdio::null())
        .status()
        .await?;
    ensure!(status.success(), "cargo {} failed", args.join(" "));
    Ok(())
}

/// Removes the directory of the demo, whatever happens.
struct Cleanup(std::path::PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        world::unmount_below(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}
