//! The network of pods: which one serves, and the one way to it.
//!
//! ```text
//!                 mode = builtin ───────────────────────────────► built-in
//!                 mode = cni ───────────────────────────────────► CNI, or not ready
//! mode = auto ─┬─ a file in the CNI configuration directory ────► CNI (remembered), or not ready when none is valid
//!              ├─ this machine belongs to a cluster, or CNI was
//!              │  here before ──────────────────────────────────► not ready, until a configuration comes
//!              └─ else ─────────────────────────────────────────► built-in
//! ```
//!
//! The network that attached a pod is written into the pod's record ([`Attachment`]), and takes it down, whatever the
//! mode has become since.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::builtin::{self, Builtin};
use crate::cni::{self, Cni};
use crate::{Subnet, durable};

/// Which network serves new pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// CNI where there is a configuration, else the built-in network (but not on a cluster's machine).
    #[default]
    Auto,
    /// The built-in network, whatever is configured for CNI.
    Builtin,
    /// CNI only.
    Cni,
}

/// How a [`Network`] is opened.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Prefix of every name given to the kernel: interfaces, tables.
    pub instance: String,
    /// Which network serves new pods.
    pub mode: Mode,
    /// Ranges that the built-in network takes pod addresses from, at most one per IP version; empty: its own defaults.
    pub subnets: Vec<Subnet>,
    /// Where CNI configurations lie, `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are searched, in this order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Durable state: `<root>/cni`, `<root>/network` below it.
    pub root_dir: PathBuf,
    /// State of this boot.
    pub state_dir: PathBuf,
    /// How long one CNI plugin may run before it is killed.
    pub plugin_timeout: Duration,
    /// Where a machine's membership in a cluster shows: `/etc/kubernetes`, holding `*kubelet.conf`.
    pub cluster_dir: PathBuf,
}

/// A transport protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name in lower case, as CNI and nftables write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub container_port: u16,
    /// The host's port; 0 is no host port, and such an entry is skipped.
    pub host_port: u16,
    /// The host address that listens; `None`: all addresses of both families.
    pub host_ip: Option<IpAddr>,
}

/// Limits of a pod's traffic, in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

/// The pod's resolver settings, as far as a CNI plugin wants them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// A pod, as a network sees it. Attach and detach get the same one.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The sandbox's id.
    pub id: &'a str,
    /// Kubernetes name of the pod.
    pub name: &'a str,
    /// Kubernetes namespace of the pod.
    pub namespace: &'a str,
    /// Kubernetes uid of the pod.
    pub uid: &'a str,
    /// Where its network namespace is pinned. At detach it may be gone.
    pub netns: &'a Path,
    /// Host ports.
    pub ports: &'a [PortMapping],
    /// Traffic limits.
    pub bandwidth: Option<Bandwidth>,
    /// Resolver settings.
    pub dns: Option<&'a Dns>,
    /// The pod's cgroup, as the kubelet names it.
    pub cgroup_parent: &'a str,
    /// The pod's annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// More capability arguments for CNI plugins, by capability: `ips`, `mac`, `infinibandGUID`, `deviceID`, `aliases`.
    /// A plugin gets what it declares (CONVENTIONS.md of the CNI project); these go before what the other fields give.
    pub capabilities: &'a BTreeMap<String, serde_json::Value>,
}

/// The network that a pod is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The built-in network.
    Builtin,
    /// A CNI network.
    Cni {
        /// The name in its configuration.
        network: String,
    },
}

/// What came of attaching a pod; part of the pod's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network that did it, and that will undo it.
    pub kind: Kind,
    /// The pod's addresses, in the network's order. Never empty.
    pub ips: Vec<IpAddr>,
    /// The network's own words: the result of a CNI chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<serde_json::Value>,
}

/// Whether pods can be attached now: the CRI's NetworkReady.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether pods can be attached.
    pub ready: bool,
    /// One CamelCase word for a program; empty when ready.
    pub reason: String,
    /// A sentence for a person: what is missing and where it was looked for.
    pub message: String,
    /// More about the network, for a verbose status: mode, network, configuration, degraded parts.
    pub details: BTreeMap<String, serde_json::Value>,
}

/// Why a pod could not be attached, detached or checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network serves at this time; the text is the one of [`Status::message`].
    #[error("the pod network is not ready: {0}")]
    NotReady(String),
    /// The built-in network failed.
    #[error(transparent)]
    Builtin(#[from] builtin::Error),
    /// The CNI network failed.
    #[error(transparent)]
    Cni(#[from] cni::Error),
    /// The choice of the network could not be written down.
    #[error("remember in {} that CNI was configured", path.display())]
    Remember {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The one way to the networks.
#[derive(Debug)]
pub struct Network {
    mode: Mode,
    cluster_dir: PathBuf,
    /// Says by being there that CNI was configured once.
    seen: PathBuf,
    builtin: Builtin,
    cni: Cni,
}

/// Who serves new pods at this moment.
enum Serving {
    Builtin,
    Cni,
    /// Nobody, for the reason given.
    Nobody(String),
}

impl Network {
    /// Opens both networks' state. Nothing is changed in the kernel, no plugin is run.
    ///
    /// # Errors
    /// The state directories cannot be made or read.
    pub fn open(options: NetworkOptions) -> Result<Self, Error> {
        let dir = options.root_dir.join("cni");
        let cni = Cni::open(cni::Options {
            conf_dir: options.cni_conf_dir,
            bin_dirs: options.cni_bin_dirs,
            dir: dir.clone(),
            lock_dir: options.state_dir.join("cni"),
            plugin_timeout: options.plugin_timeout,
        })?;
        let builtin = Builtin::open(builtin::Options {
            instance: options.instance,
            subnets: options.subnets,
            root_dir: options.root_dir,
            state_dir: options.state_dir,
        })?;
        Ok(Self { mode: options.mode, cluster_dir: options.cluster_dir, seen: dir.join(".configured"), builtin, cni })
    }

    fn serving(&self) -> Result<Serving, Error> {
        match self.mode {
            Mode::Builtin => return Ok(Serving::Builtin),
            Mode::Cni => return Ok(Serving::Cni),
            Mode::Auto => {}
        }
        if self.cni.configured() {
            if !self.seen.exists() {
                let remember = |source| Error::Remember { path: self.seen.clone(), source };
                durable::write(&self.seen, b"").map_err(remember)?;
            }
            return Ok(Serving::Cni);
        }
        let why = if self.seen.exists() {
            format!("one was here before (to use the built-in network again, remove {})", self.seen.display())
        } else if let Some(path) = self.cluster_config() {
            format!("this machine belongs to a cluster ({})", path.display())
        } else {
            return Ok(Serving::Builtin);
        };
        Ok(Serving::Nobody(format!("cni plugin not initialized: no CNI configuration, and {why}")))
    }

    /// A kubelet's credentials: `kubelet.conf`, `bootstrap-kubelet.conf`.
    fn cluster_config(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.cluster_dir).ok()?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(b"kubelet.conf")))
    }

    /// Attaches a pod whose network namespace exists. On an error all that was done is undone, or known for `detach`.
    ///
    /// # Errors
    /// No network is ready, or the one that serves failed.
    pub fn attach(&self, pod: &Pod<'_>) -> Result<Attachment, Error> {
        match self.serving()? {
            Serving::Builtin => {
                let ips = self.builtin.attach(pod)?;
                Ok(Attachment { kind: Kind::Builtin, ips, raw: None })
            }
            Serving::Cni => Ok(self.cni.attach(pod)?),
            Serving::Nobody(why) => Err(Error::NotReady(why)),
        }
    }

    /// Takes a pod off its network. Succeeds when it is not attached, and when its namespace is gone; on an error the
    /// caller tries again. Without a recorded attachment each network looks into its own state.
    ///
    /// # Errors
    /// The network that attached the pod failed to detach it.
    pub fn detach(&self, pod: &Pod<'_>, attachment: Option<&Attachment>) -> Result<(), Error> {
        let kind = attachment.map(|attachment| &attachment.kind);
        if matches!(kind, None | Some(Kind::Cni { .. })) {
            self.cni.detach(pod.id, attachment.and_then(|attachment| attachment.raw.as_ref()))?;
        }
        if matches!(kind, None | Some(Kind::Builtin)) {
            self.builtin.detach(pod.id)?;
        }
        Ok(())
    }

    /// Verifies that an attached pod is still as the network left it: CNI's CHECK. No rpc of the CRI asks for it, so the server
    /// does not call it; it is there for a tool that looks for what is wrong on a node, at any time between attach and detach.
    ///
    /// # Errors
    /// The network says what differs.
    pub fn check(&self, pod: &Pod<'_>, attachment: &Attachment) -> Result<(), Error> {
        match attachment.kind {
            Kind::Builtin => Ok(self.builtin.check(pod, attachment)?),
            Kind::Cni { .. } => Ok(self.cni.check(pod.id, attachment)?),
        }
    }

    /// Whether pods can be attached now.
    #[must_use]
    pub fn status(&self) -> Status {
        let (network, mut status) = match self.serving() {
            Ok(Serving::Builtin) => ("builtin", self.builtin.status()),
            Ok(Serving::Cni) => ("cni", self.cni.status()),
            Ok(Serving::Nobody(why)) => ("none", not_ready(why)),
            Err(error) => ("none", not_ready(cni::whole(&error))),
        };
        status.details.insert("network.mode".to_owned(), serde_json::json!(self.mode));
        status.details.insert("network".to_owned(), network.into());
        status
    }

    /// Keeps the node's pod CIDRs, given by the kubelet, for CNI plugins that declare the capability `ipRanges`.
    ///
    /// # Errors
    /// They could not be written.
    pub fn set_pod_cidrs(&self, cidrs: &[Subnet]) -> Result<(), Error> {
        Ok(self.cni.set_pod_ranges(cidrs)?)
    }

    /// Removes what belongs to pods that are no more. `lives` tells of an id whether there is a sandbox that still needs a
    /// network; it is asked for each thing found, so pods may be attached meanwhile, if what it looks at is there before
    /// their attach. To be called at start: it also waits for CNI plugins that a server before left running.
    ///
    /// # Errors
    /// What could not be removed; the rest was.
    pub fn gc(&self, lives: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        let cni = self.cni.gc(lives);
        let builtin = self.builtin.gc(lives);
        if let (Err(first), Err(second)) = (&cni, &builtin) {
            tracing::warn!(%first, %second, "both networks left something behind");
        }
        cni?;
        Ok(builtin?)
    }
}

fn not_ready(message: String) -> Status {
    Status { ready: false, reason: "NetworkPluginNotReady".to_owned(), message, details: BTreeMap::new() }
}
