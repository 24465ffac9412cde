//! crictl through its whole life cycle, as a person types it.

use super::opts;
use crate::{
    fail::{Res, ensure, same},
    images,
    server::{Kind, Server},
    sh,
    world::World,
};
use serde_json::{Value, json};
use std::fs;
use tokio::process::Command;

/// pull, images, rmi, runp, create, start, exec -s, logs, ps, pods, inspect, stop, rm, stopp, rmp, info, version.
pub(crate) async fn life_cycle(world: &World, kind: Kind) -> Res<String> {
    let server = Server::start(world, &opts(world, kind)).await?;
    let program = world.parts.get("crictl", "crictl")?;
    let endpoint = format!("unix://{}", server.sock.display());
    let crictl = async |args: &[&str]| -> Res<String> {
        let mut c = Command::new(&program);
        c.args(["--config", "/dev/null", "-r", &endpoint, "-i", &endpoint, "-t", "60s"]).args(args);
        Ok(sh::run(&mut c, 90).await?.trim().to_owned())
    };
    let json = async |args: &[&str]| -> Res<Value> { Ok(serde_json::from_str(&crictl(args).await?)?) };
    let version = crictl(&["version"]).await?;
    ensure!(version.contains("RuntimeApiVersion:  v1"), "{version}");
    let info = json(&["info"]).await?;
    ensure!(info["status"]["conditions"].as_array().is_some_and(|c| c.len() >= 2), "info: {info}");

    let image = world.image(images::BUSYBOX);
    crictl(&["pull", &image]).await?;
    let listed = crictl(&["images"]).await?;
    ensure!(listed.contains("e2e-test-images/busybox") && listed.contains("1.29-2"), "images: {listed}");
    same!("inspecti", json(&["inspecti", &image]).await?["status"]["repoTags"], json!([image]));

    let dir = server.dir.join("crictl");
    let logs = dir.join("logs");
    fs::create_dir_all(&logs)?;
    let (pod_file, ctr_file) = (dir.join("pod.json"), dir.join("container.json"));
    fs::write(&pod_file, json!({"metadata": {"name": "p", "namespace": "crisp-e2e", "uid": "u1", "attempt": 0}, "hostname": "p", "log_directory": logs,
        "linux": {"cgroup_parent": format!("{}/crictl", world.cgroup)}}).to_string())?;
    fs::write(&ctr_file, json!({"metadata": {"name": "c", "attempt": 0}, "image": {"image": image}, "log_path": "c.log",
        "command": ["sh", "-c", "echo hello from $HOSTNAME; trap 'exit 0' TERM; while :; do sleep 0.1; done"], "linux": {}}).to_string())?;
    let (pod_file, ctr_file) = (pod_file.to_string_lossy().into_owned(), ctr_file.to_string_lossy().into_owned());
    let pod = crictl(&["runp", &pod_file]).await?;
    let id = crictl(&["create", &pod, &ctr_file, &pod_file]).await?;
    crictl(&["start", &id]).await?;
    same!("exec -s", crictl(&["exec", "-s", &id, "echo", "inside"]).await?, "inside");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    same!("logs", crictl(&["logs", &id]).await?, "hello from p");
    same!("ps", crictl(&["ps", "-q"]).await?, id);
    same!("pods", crictl(&["pods", "-q", "--name", "p"]).await?, pod);
    same!("inspect", json(&["inspect", &id]).await?["status"]["state"], "CONTAINER_RUNNING");
    same!("inspectp", json(&["inspectp", &pod]).await?["status"]["state"], "SANDBOX_READY");
    crictl(&["stop", "-t", "5", &id]).await?;
    let status = json(&["inspect", &id]).await?;
    same!(
        "state and exit code",
        (&status["status"]["state"], &status["status"]["exitCode"]),
        (&json!("CONTAINER_EXITED"), &json!(0))
    );
    crictl(&["rm", &id]).await?;
    // As a person does it in one go.
    let id = crictl(&["run", &ctr_file, &pod_file]).await;
    ensure!(id.is_ok() || kind == Kind::Containerd, "run: {id:?}");
    for p in crictl(&["pods", "-q"]).await?.lines() {
        crictl(&["stopp", p]).await?;
        crictl(&["rmp", p]).await?;
    }
    same!("pods left", crictl(&["pods", "-q"]).await?, "");
    crictl(&["rmi", &image]).await?;
    let left = crictl(&["images", "-q"]).await?;
    let pause = usize::from(kind == Kind::Containerd);
    ensure!(left.lines().count() <= pause, "images left: {left}");
    server.finish().await?;
    Ok(String::new())
}
