//! The built-in network: routed veth pairs, an address pool, NAT and host ports. No bridge, no plugin, no configuration.
//!
//! ```text
//!   attach ─ attach.rs ──┬─ state.rs    who has which address and port; pool.rs, ports.rs, records.rs (on disk)
//!                        ├─ base.rs     what stands while there are pods: forwarding, ranges (subnets.rs), the table
//!                        │              (rules.rs), other owners' forward chains (forward.rs)
//!                        ├─ probe.rs    whether processes of the host listen on the pod's ports
//!                        └─ link.rs     the veth pair, in two batches of netlink messages (netlink.rs)
//!   detach ─ detach.rs ──┬─ at once      the pod's routes on the host: nothing reaches it any more
//!                        └─ the reaper   host ports, UDP flows (netfilter.rs), the pair, then the record;
//!                                        with the last pod, a moment later, the base
//! ```
//! The order makes it crash-only. A record is written first and removed last; between the two every step can be repeated
//! or undone without knowing how far it got, and `gc` does so for pods that are no more. The table is made before claims
//! and chains and removed after them, so where it stands, something may be left to remove.
//!
//! Deleting a veth pair, and elements of a set, makes the kernel wait for RCU grace periods, some ten milliseconds each.
//! Detach does not wait for that: once a pod's routes are gone nothing reaches it, and a thread that lives as long as there is
//! work removes the rest of all pods that left meanwhile, together. Who asks for a host port that such a pod still has waits
//! for it. The same thread takes the base down two seconds after the last pod, so that pods that come one after another do
//! not each pay for making it.

mod attach;
mod base;
mod detach;
mod forward;
mod host;
mod link;
mod names;
mod netfilter;
mod netlink;
mod pool;
mod ports;
mod probe;
mod program;
mod records;
mod route;
mod rules;
mod state;
mod subnets;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use crate::{Attachment, Pod, Status, Subnet};

/// How [`Builtin`] is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Prefix of interfaces and of the nftables table.
    pub instance: String,
    /// Ranges of pod addresses, at most one per IP version; empty: defaults.
    pub subnets: Vec<Subnet>,
    /// Durable state lies below `<root>/network`.
    pub root_dir: PathBuf,
    /// State of this boot lies below `<state>/network`.
    pub state_dir: PathBuf,
}

/// Why the built-in network could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod's id could not name a file.
    #[error("{0:?} is no pod id: at most 64 letters, digits, '-', '_' and '.'")]
    Id(String),
    /// The pod's network namespace could not be entered.
    #[error("enter the pod's network namespace {}: {source}", path.display())]
    Namespace {
        /// Where it should be pinned.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The namespace is the one that the server runs in.
    #[error("{} is the host's own network namespace", .0.display())]
    HostNamespace(PathBuf),
    /// The namespace has an `eth0` that is not ours.
    #[error("there is an interface eth0 in the pod's network namespace {} already", .0.display())]
    Occupied(PathBuf),
    /// The interface's name on the host belongs to another pod.
    #[error("interface {link} is pod {pod}'s")]
    NameTaken {
        /// The interface.
        link: String,
        /// Whose it is.
        pod: String,
    },
    /// A range cannot be used for pods.
    #[error("network.subnets: {subnet}: {reason}")]
    Subnet {
        /// The range.
        subnet: Subnet,
        /// Why not.
        reason: String,
    },
    /// None of the default ranges is free.
    #[error(
        "every default range, 10.64.0.0/16 to 10.87.0.0/16 and those of 172.16.0.0/12, is in use on this host: set network.subnets"
    )]
    NoSubnet,
    /// All addresses of a range are taken.
    #[error("no address is free in {0}: set a wider range in network.subnets")]
    NoAddress(Subnet),
    /// Another pod has the host port.
    #[error("host port {port}/{protocol} is already in use by pod {pod}")]
    PortInUse {
        /// `tcp`, `udp` or `sctp`.
        protocol: &'static str,
        /// The host's port.
        port: u16,
        /// Who has it.
        pod: String,
    },
    /// A process of the host listens on the host port.
    #[error("host port {port}/{protocol} on {address} is already in use by a process of this host")]
    PortOfHost {
        /// `tcp`, `udp` or `sctp`.
        protocol: &'static str,
        /// The host's port.
        port: u16,
        /// The host address asked for; unspecified: all of its family.
        address: IpAddr,
    },
    /// A host port's address is of a family that pods have no address of.
    #[error("host port {port} on {host_ip}: pods have no address of that IP version here")]
    HostIp {
        /// The host's port.
        port: u16,
        /// The host address asked for.
        host_ip: IpAddr,
    },
    /// Host ports are not to be had on this host.
    #[error("host ports are not available: {0}")]
    NoHostPorts(String),
    /// A program could not be run, or hung.
    #[error("run {command}: {source}")]
    Program {
        /// The command line.
        command: String,
        /// What failed; `TimedOut`: it was killed.
        source: io::Error,
    },
    /// A program failed.
    #[error("{command} failed ({status}): {text}")]
    Refused {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its own words.
        text: String,
    },
    /// The kernel refused a change of interfaces, addresses or routes.
    #[error("{what}: {source}")]
    Netlink {
        /// The step.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A kernel parameter could not be set.
    #[error("set {} to {value}: {source}", path.display())]
    Sysctl {
        /// The parameter's file.
        path: PathBuf,
        /// The value.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A record could not be read or written.
    #[error("network record {}: {source}", path.display())]
    Record {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A pod is not attached as it should be.
    #[error("pod {id}: {what}")]
    Differs {
        /// The pod.
        id: String,
        /// What is missing.
        what: String,
    },
}

impl Error {
    /// Makes an error of a netlink request's answer.
    fn netlink(what: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |source| Self::Netlink { what, source }
    }

    /// Whether a step failed because what it makes is there.
    fn exists(&self, step: &str) -> bool {
        matches!(self, Self::Netlink { what, source } if what == step && source.raw_os_error() == Some(libc::EEXIST))
    }
}

/// The built-in network of one instance. Calls for one pod come one after another; those for different pods in parallel.
#[derive(Debug)]
pub struct Builtin {
    shared: Arc<state::Shared>,
}

impl Builtin {
    /// Reads the records. Where there are pods, a table that somebody removed meanwhile is made again; else the kernel is
    /// first touched by `attach`.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn open(options: Options) -> Result<Self, Error> {
        let shared = Arc::new(state::Shared::open(options)?);
        // One question, so that a restart is not held up; the rest is looked at with the first call.
        if !shared.lock().pods.is_empty() && !shared.has_table()? {
            state::Shared::heal(&shared);
        }
        Ok(Self { shared })
    }

    /// Attaches a pod; a call for a pod that is attached already gives its addresses again.
    ///
    /// # Errors
    /// What failed; all that was done is undone, or left for `detach`.
    pub fn attach(&self, pod: &Pod<'_>) -> Result<Vec<IpAddr>, Error> {
        state::Shared::attach(&self.shared, pod)
    }

    /// Takes a pod off the network. Succeeds when it is not attached or its namespace is gone. Nothing reaches the pod when
    /// this returns; its interface and its host ports go a moment later ([`Builtin::settle`]).
    ///
    /// # Errors
    /// What could not be removed.
    pub fn detach(&self, id: &str) -> Result<(), Error> {
        state::Shared::detach(&self.shared, id)
    }

    /// Verifies an attached pod.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, pod: &Pod<'_>, attachment: &Attachment) -> Result<(), Error> {
        self.shared.check(pod, attachment)
    }

    /// Whether pods can be attached now. Makes again what somebody removed from the kernel, so that a flushed ruleset is
    /// whole again with the next look.
    #[must_use]
    pub fn status(&self) -> Status {
        state::Shared::retry(&self.shared);
        state::Shared::heal(&self.shared);
        self.shared.status()
    }

    /// Removes what belongs to pods that `lives` does not know. Pods may be attached meanwhile.
    ///
    /// # Errors
    /// What could not be removed; the rest was.
    pub fn gc(&self, lives: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        state::Shared::gc(&self.shared, lives)
    }

    /// Waits until the interfaces of detached pods are gone, and with the last pod the table and all else of the instance.
    pub fn settle(&self) {
        self.shared.settle();
    }
}

impl Drop for Builtin {
    fn drop(&mut self) {
        self.settle();
    }
}
