//! What verbose statuses say beyond the contract: JSON for people and tools.

use serde_json::{Value, json};

use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;

pub fn node(node: &Node) -> Value {
    let network = node.network.status();
    let runtimes: Vec<Value> = node
        .runtimes
        .usable()
        .map(|runtime| json!({ "name": runtime.name, "path": runtime.path, "version": runtime.features.version }))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": node.instance,
        "root": node.paths.root(),
        "state": node.paths.state(),
        "config": node.config,
        "runtimes": runtimes,
        "network": { "reason": network.reason, "message": network.message, "details": network.details },
        "host": {
            "kernel": format!("{}.{}", node.host.kernel.major, node.host.kernel.minor),
            "cgroups": format!("{:?}", node.host.cgroups.version),
            "apparmor": node.host.apparmor,
            "selinux": node.host.selinux,
            "can_lower_oom_score": node.host.can_lower_oom_score,
        },
    })
}

pub fn sandbox(node: &Node, sandbox: &Sandbox) -> Value {
    let record = sandbox.record();
    let network = sandbox.has_network().then(|| node.pins.net_path(&sandbox.id));
    json!({
        "record": &*record,
        "network_namespace": network,
        "files": node.paths.pod(&sandbox.id),
    })
}

pub fn container(node: &Node, container: &Container) -> Value {
    let record = container.record();
    let status = container.status();
    let dir = node.paths.container_dir(&container.id);
    let spec = std::fs::read(dir.join("bundle/config.json")).ok();
    let spec: Option<Value> = spec.and_then(|text| serde_json::from_slice(&text).ok());
    json!({
        "sandboxID": record.sandbox_id,
        "pid": status.process.map_or(0, |process| process.pid),
        "record": &*record,
        "monitor": dir,
        "runtimeSpec": spec,
    })
}
