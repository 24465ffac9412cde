//! RunPodSandbox: record → namespaces and pod files → network → record. No process is started.

use std::sync::Arc;

use crisp_netns::{Dns, Pod, PodNamespaces};

use super::{Outcome, both, pod_files, remove_pod_sandbox};
use crate::error::{Error, Result};
use crate::model::{NamespaceMode, SandboxConfig, SandboxName, SandboxRecord};
use crate::node::{Node, blocking};
use crate::sandbox::Sandbox;
use crate::{spec, sys};

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    pub config: SandboxConfig,
    pub runtime_handler: String,
    pub origin: String,
}

/// The key under which recovery undoes what a server before this one was making under `key`.
pub fn undo_key(key: &str) -> String {
    format!("undo {key}")
}

/// The key of the job that makes the sandbox of this name.
pub fn job_key(name: &SandboxName) -> String {
    format!("sandbox {name}")
}

/// Makes the sandbox, or gives the one of that name that is there or in the making.
///
/// A call for a name that is taken gets that sandbox whatever its configuration says: kubelet stamps each of its calls
/// with the time at which it read the pod, so two calls for one sandbox differ.
pub async fn run(node: &Arc<Node>, request: Request) -> Outcome {
    let key = job_key(&request.config.name);
    node.jobs.settled(&undo_key(&key)).await;
    let worker = Arc::clone(node);
    node.jobs.join(key, async move { make(&worker, request).await }).await
}

async fn make(node: &Arc<Node>, request: Request) -> Result<String> {
    let Request { config, runtime_handler, origin } = request;
    if let Some(there) = node.registry.sandbox_named(&config.name) {
        return if there.is_ready(node) {
            Ok(there.id.clone())
        } else {
            Err(Error::AlreadyExists(format!(
                "pod sandbox {} has the name {} and is not ready any more: remove it, or ask with the next attempt",
                there.id, config.name
            )))
        };
    }
    // Everything that can be refused is refused before the first effect.
    node.runtimes.get(&runtime_handler)?;
    spec::check_sandbox(&config, &node.host)?;
    let sysctls = spec::sysctl::of_pod(&config);
    let hostname = pod_files::hostname(&config)?;
    let id = sys::new_id().map_err(Error::io("read", std::path::Path::new("/dev/urandom")))?;
    let record = SandboxRecord {
        id: id.clone(),
        config,
        runtime_handler,
        origin,
        created_at: sys::now(),
        epoch: node.epoch.clone(),
        made: false,
        attachment: None,
        stopped_at: None,
    };
    let sandbox = Sandbox::new(record);
    tracing::debug!(id, name = %sandbox.record().config.name, "making a pod sandbox");
    match build(node, &sandbox, sysctls, hostname).await {
        Ok(()) => {
            node.registry.add_sandbox(Arc::clone(&sandbox));
            Ok(id)
        }
        Err(error) => {
            let undone = remove_pod_sandbox::take_apart(node, &sandbox).await;
            if undone.is_err() {
                // Listed as not ready, so that kubelet's Stop and Remove can finish the undoing.
                node.registry.add_sandbox(sandbox);
            }
            Err(both(error, undone))
        }
    }
}

async fn build(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    sysctls: std::collections::BTreeMap<String, String>,
    hostname: String,
) -> Result<()> {
    let (worker, record) = (Arc::clone(node), sandbox.record());
    let attachment = blocking(move || {
        let id = record.id.as_str();
        // The intent, before anything else is there. What a CNI plugin keeps is in the plugin's journal.
        let file = worker.paths.sandbox_record(id);
        worker.disk.make_dir(&worker.paths.sandbox(id), 0o700)?;
        worker.disk.write_volatile(&file, &*record)?;
        let namespaces = namespaces(&record.config, &hostname, sysctls);
        worker.pins.create(id, &namespaces).map_err(Error::pins(id))?;
        pod_files::write(&worker.paths.pod(id), &record.config, &hostname)?;
        pod_files::own_by_pod_root(&worker.paths.pod(id), &record.config)?;
        if !namespaces.net {
            return Ok(None);
        }
        let attached = with_pod(&worker, &record, |pod| worker.network.attach(pod));
        let attachment = attached.map_err(Error::network(id))?;
        worker.pins.set_interface_sysctls(id, &namespaces).map_err(Error::pins(id))?;
        pod_files::add_addresses(&worker.paths.pod(id), &hostname, &attachment.ips)?;
        Ok(Some(attachment))
    });
    let attachment = attachment.await?;
    sandbox
        .update(node, |record| {
            record.attachment = attachment;
            record.made = true;
        })
        .await
}

/// The namespaces that a pod has of its own.
pub fn namespaces(
    config: &SandboxConfig,
    hostname: &str,
    sysctls: std::collections::BTreeMap<String, String>,
) -> PodNamespaces {
    let net = config.namespaces.network != NamespaceMode::Node;
    PodNamespaces {
        net,
        ipc: config.namespaces.ipc != NamespaceMode::Node,
        // The host name goes with the network: with the node's network, the node's name.
        uts: net,
        hostname: net.then(|| hostname.to_owned()),
        domainname: None,
        user: config.namespaces.user.clone(),
        shm_size: None,
        sysctls,
    }
}

/// CNI arguments that the CRI has no field for.
static NO_CAPABILITIES: std::collections::BTreeMap<String, serde_json::Value> = std::collections::BTreeMap::new();

/// Shows the pod to a network as it sees pods.
pub fn with_pod<T>(node: &Node, record: &SandboxRecord, call: impl FnOnce(&Pod<'_>) -> T) -> T {
    let config = &record.config;
    let netns = node.pins.net_path(&record.id);
    let dns = config.dns.as_ref().map(|dns| Dns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    });
    call(&Pod {
        id: &record.id,
        name: &config.name.name,
        namespace: &config.name.namespace,
        uid: &config.name.uid,
        netns: &netns,
        ports: &config.ports,
        bandwidth: config.bandwidth,
        dns: dns.as_ref(),
        cgroup_parent: &config.cgroup_parent,
        annotations: &config.annotations,
        capabilities: &NO_CAPABILITIES,
    })
}
