//! A kubelet, standalone, with one static pod: it becomes Ready, stays the same through `kill -9` of the server and a
//! restart of kubelet, and goes away clean.

use super::opts;
use crate::{
    cases::network::get,
    client::{Cri, NAMESPACE, spec},
    fail::{Fail, Res, ensure, same},
    images,
    leaks::Snapshot,
    server::{Kind, Server},
    sh,
    world::{self, World},
};
use crisp_cri_proto::v1::*;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

const PORT: &str = "127.0.0.1:10255";
/// Programs that only the server under test starts; processes of other names are kubelet's, and come and go. The kernel
/// cuts names after 15 bytes.
const OURS: [&str; 5] = ["runc", "crisp-monitor", "containerd-shim", "httpd", "sleep"];

/// The whole case.
pub(crate) async fn static_pod(world: &World, kind: Kind) -> Res<String> {
    let mut server = Server::start(world, &opts(world, kind)).await?;
    let dir = server.dir.join("kubelet");
    let manifests = dir.join("manifests");
    for d in [&manifests, &dir.join("root"), &dir.join("pki"), &dir.join("logs")] {
        fs::create_dir_all(d)?;
    }
    let root = cgroup_root(world)?;
    fs::write(dir.join("config.yaml"), config(&dir, &server.sock, &root))?;
    // The first pod of a server makes things that stay (a bridge); they are no leak of the second.
    let warm = server.cri().await?;
    warm.ensure(&world.image(images::BUSYBOX)).await?;
    warm_up(&warm, world, &dir).await?;
    let marks = [world::mark(), server.instance.clone()];

    let kubelet = start(world, &dir)?;
    healthy().await.map_err(|e| said(&dir, e))?;
    chains_are_there().await.map_err(|e| said(&dir, e))?;
    let before = Snapshot::take(Some(&server), &marks);
    fs::write(manifests.join("web.yaml"), manifest(world))?;
    let t = Instant::now();
    let first = ready(120).await.map_err(|e| said(&dir, e))?;
    let took = t.elapsed();
    ensure!(get("192.0.2.2:18080").await?.contains("from the init container"), "the host port serves another page");

    server.kill9();
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.start_again().await?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    same!("containers after kill -9 of the server", ready(60).await?, first);

    stop(kubelet).await;
    let kubelet = start(world, &dir)?;
    healthy().await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    same!("containers after a restart of kubelet", ready(60).await?, first);

    fs::remove_file(manifests.join("web.yaml"))?;
    let until = Instant::now() + Duration::from_secs(90);
    let cri = server.cri().await?;
    loop {
        let pods = cri.pods(Default::default()).await?;
        if pods.iter().all(|p| p.state != 0) && containers().await?.is_empty() {
            break;
        }
        ensure!(Instant::now() < until, "the pod is still there: {pods:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stop(kubelet).await;
    for p in cri.pods(Default::default()).await? {
        cri.stop_pod(&p.id).await?;
        cri.remove_pod(&p.id).await?;
    }
    world::unmount_below(&dir);
    let leaks: Vec<String> = before
        .leaks(Some(&server), &marks)
        .await
        .into_iter()
        .filter(|l| !l.starts_with("process ") || OURS.iter().any(|program| l.contains(program)))
        .filter(|l| !l.starts_with("cgroup ") || !l.contains("kubepods"))
        .filter(|l| !l.contains("KUBE-") && !l.contains("link cbr") && !l.contains("CNI-") && !l.contains("cbr"))
        .collect();
    server.finish().await?;
    ensure!(leaks.is_empty(), "left behind: {}", leaks.iter().take(8).cloned().collect::<Vec<_>>().join("; "));
    Ok(format!("Ready after {:.1} s", took.as_secs_f64()))
}

async fn warm_up(cri: &Cri, world: &World, dir: &Path) -> Res {
    let pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "warm".into(),
            uid: "warm".into(),
            namespace: NAMESPACE.into(),
            attempt: 0,
        }),
        hostname: "warm".into(),
        log_directory: dir.join("logs").to_string_lossy().into_owned(),
        port_mappings: vec![PortMapping { container_port: 80, host_port: 18098, ..Default::default() }],
        linux: Some(LinuxPodSandboxConfig { cgroup_parent: format!("{}/warm", world.cgroup), ..Default::default() }),
        ..Default::default()
    };
    let id = cri.run_pod(&pod).await?;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "warm".into(), attempt: 0 }),
        image: Some(spec(&world.image(images::BUSYBOX))),
        command: vec!["sleep".into(), "3600".into()],
        log_path: "warm.log".into(),
        linux: Some(LinuxContainerConfig::default()),
        ..Default::default()
    };
    let c = cri.create(&id, &container, &pod).await?;
    cri.start(&c).await?;
    cri.remove_everything().await
}

/// A cgroup of our own in each hierarchy for kubelet to live in.
fn cgroup_root(world: &World) -> Res<String> {
    let path = format!("{}/kubelet", world.cgroup);
    let top = Path::new("/sys/fs/cgroup");
    let v2 = top.join("cgroup.controllers").exists();
    let mut dirs: Vec<PathBuf> = if v2 {
        vec![top.into()]
    } else {
        fs::read_dir(top)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
    };
    dirs.sort();
    for d in dirs {
        let mut at = d.clone();
        for part in path.trim_start_matches('/').split('/') {
            let parent = at.clone();
            at = at.join(part);
            fs::create_dir_all(&at)?;
            for f in ["cpuset.cpus", "cpuset.mems"] {
                if !v2 && parent.join(f).exists() {
                    fs::write(at.join(f), fs::read(parent.join(f))?)?;
                }
            }
        }
    }
    Ok(path)
}

fn start(world: &World, dir: &Path) -> Res<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
    let d = |n: &str| dir.join(n).to_string_lossy().into_owned();
    Ok(Command::new(world.parts.get("kubelet", "kubelet")?)
        .args([
            "--config",
            &d("config.yaml"),
            "--root-dir",
            &d("root"),
            "--cert-dir",
            &d("pki"),
            "--hostname-override",
            "e2e-node",
            "--node-ip",
            "192.0.2.2",
            "-v",
            "2",
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?)
}

async fn stop(mut kubelet: Child) {
    if let Some(pid) = kubelet.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(Duration::from_secs(15), kubelet.wait()).await.is_err() {
        let _ = kubelet.kill().await;
    }
}

/// Waits until kubelet answers.
async fn healthy() -> Res {
    for _ in 0..300 {
        if sh::cmd("curl", &["-sf", "-m", "2", "http://127.0.0.1:10248/healthz"], 5).await.is_ok_and(|t| t == "ok") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(Fail::Wrong("kubelet is not healthy after 60 s".into()))
}

/// Waits until kubelet has made its chains of both families, which it does beside its start: they are no leak of the pod.
async fn chains_are_there() -> Res {
    let mut there = 0;
    for _ in 0..100 {
        let rules = sh::cmd("nft", &["list", "ruleset"], 10).await?;
        there = rules.matches("chain KUBE-KUBELET-CANARY").count();
        // One each in mangle, nat and filter.
        if there == 6 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(Fail::Wrong(format!("kubelet has made {there} of its 6 canary chains after 20 s")))
}

async fn pods() -> Res<Value> {
    Ok(serde_json::from_str(&sh::cmd("curl", &["-sf", "-m", "5", &format!("http://{PORT}/pods")], 10).await?)?)
}

/// Ids of all containers that kubelet knows.
async fn containers() -> Res<Vec<String>> {
    let list = pods().await?;
    let mut ids = Vec::new();
    for p in list["items"].as_array().into_iter().flatten() {
        for kind in ["initContainerStatuses", "containerStatuses"] {
            ids.extend(
                p["status"][kind]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|c| c["containerID"].as_str().map(str::to_owned)),
            );
        }
    }
    Ok(ids)
}

/// Waits until the pod is Ready; the ids of its containers.
async fn ready(secs: u64) -> Res<Vec<String>> {
    let until = Instant::now() + Duration::from_secs(secs);
    loop {
        let list = pods().await.unwrap_or_default();
        let yes = list["items"].as_array().into_iter().flatten().any(|p| {
            p["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        });
        if yes {
            return containers().await;
        }
        ensure!(Instant::now() < until, "the pod is not Ready after {secs} s: {}", list["items"][0]["status"]);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Adds the last errors of kubelet's log.
fn said(dir: &Path, e: Fail) -> Fail {
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let last: Vec<&str> =
        log.lines().filter(|l| l.starts_with(['E', 'F']) || l.contains("rror")).rev().take(6).collect();
    Fail::Wrong(format!("{e}; kubelet says: {}", last.join(" | ")))
}

fn config(dir: &Path, sock: &Path, cgroup: &str) -> String {
    let d = dir.display();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\ncgroupDriver: cgroupfs\ncgroupRoot: {cgroup}\n\
         staticPodPath: {d}/manifests\ncontainerRuntimeEndpoint: unix://{}\npodLogsDir: {d}/logs\nauthentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
         authorization: {{mode: AlwaysAllow}}\nreadOnlyPort: 10255\naddress: 127.0.0.1\nfailSwapOn: false\nlocalStorageCapacityIsolation: false\nfileCheckFrequency: 1s\n\
         enforceNodeAllocatable: [none]\nresolvConf: \"\"\nvolumePluginDir: {d}/plugins\n\
         evictionHard: {{memory.available: 10Mi, nodefs.available: \"0%\", nodefs.inodesFree: \"0%\", imagefs.available: \"0%\", imagefs.inodesFree: \"0%\"}}\n",
        sock.display()
    )
}

fn manifest(world: &World) -> String {
    let image = world.image(images::BUSYBOX);
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: crisp-e2e}}
spec:
  terminationGracePeriodSeconds: 2
  volumes: [{{name: site, emptyDir: {{}}}}]
  initContainers:
  - name: init
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo page from the init container > /site/index.html"]
    volumeMounts: [{{name: site, mountPath: /site}}]
  containers:
  - name: web
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "exec httpd -f -v -p 80 -h /site"]
    ports: [{{containerPort: 80, hostPort: 18080}}]
    readinessProbe: {{httpGet: {{path: /, port: 80}}, periodSeconds: 1}}
    livenessProbe: {{exec: {{command: [test, -e, /site/index.html]}}, periodSeconds: 2}}
    resources: {{requests: {{cpu: 20m, memory: 16Mi}}, limits: {{memory: 64Mi}}}}
    volumeMounts: [{{name: site, mountPath: /site}}]
  - name: side
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "trap 'exit 0' TERM; while :; do date >> /site/log; sleep 1; done"]
    readinessProbe: {{exec: {{command: [cat, /site/log]}}, periodSeconds: 1}}
    volumeMounts: [{{name: site, mountPath: /site}}]
"#
    )
}
