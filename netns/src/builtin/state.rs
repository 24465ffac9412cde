//! What is known of the pods: in memory, rebuilt from the records.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::base::Base;
use super::names::Names;
use super::pool::Pool;
use super::ports::{Host, Listener, Ports, listeners};
use super::records::{Record, Records};
use super::{Error, Options};
use crate::{PortMapping, Subnet};

/// Where a pod is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A call is making it.
    Attaching,
    /// It is attached, or an earlier server or a failed attach left it here.
    Attached,
    /// Nothing reaches it; the reaper removes the rest.
    Leaving,
    /// The reaper failed; it tries again with the next look at the network.
    Stuck,
}

impl Phase {
    /// Whether the pod was detached.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Leaving | Self::Stuck)
    }
}

/// A pod that has a record.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) record: Record,
    pub(super) listeners: Vec<Listener>,
    pub(super) phase: Phase,
}

/// All that one lock guards.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) pods: BTreeMap<String, Held>,
    pub(super) pools: Vec<Pool>,
    pub(super) ports: Ports,
    /// What this server made and, as far as it knows, still stands.
    pub(super) base: Option<Base>,
    /// Whether there may be something of the base: an earlier server's, or this one's.
    pub(super) stands: bool,
    /// Why the base could not be made when it was last tried.
    pub(super) failed: Option<String>,
    /// Pods whose pairs are to be deleted.
    pub(super) leaving: Vec<String>,
    pub(super) reaper: Option<JoinHandle<()>>,
    /// The base goes with the last pod at once.
    pub(super) hurry: bool,
}

/// One instance's network, shared with its reaper.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) names: Names,
    pub(super) subnets: Vec<Subnet>,
    pub(super) records: Records,
    pub(super) state: Mutex<State>,
    /// Signalled whenever a pod's phase or the reaper's work changes.
    pub(super) changed: Condvar,
    /// Our own transactions since the ruleset was last looked at.
    pub(super) transactions: AtomicU32,
    /// Held while the ruleset and that number change together.
    pub(super) ruleset: Mutex<()>,
    /// Set when the kernel refused to end flows other than one by one.
    pub(super) one_by_one: AtomicBool,
}

impl Shared {
    pub(super) fn open(options: Options) -> Result<Self, Error> {
        let Options { instance, subnets, root_dir, state_dir } = options;
        let records = Records::open(&root_dir, &state_dir)?;
        let mut state = State { stands: true, ..State::default() };
        for record in records.load()? {
            let listeners = listeners(&record.ports);
            if let Err(error) = state.ports.take(&record.id, &listeners) {
                tracing::warn!(pod = record.id, %error, "two recorded pods have one host port");
            }
            state.pods.insert(record.id.clone(), Held { record, listeners, phase: Phase::Attached });
        }
        Ok(Self {
            names: Names::new(&instance),
            subnets,
            records,
            state: Mutex::new(state),
            changed: Condvar::new(),
            transactions: AtomicU32::new(0),
            ruleset: Mutex::new(()),
            one_by_one: AtomicBool::new(false),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a pod, which may have IPv6 or not, gets an address of the family that such a listener leads to.
    pub(super) fn serves(&self, host: Host, ipv6: bool) -> bool {
        let ipv4 = host.is_ipv4();
        (ipv4 || ipv6) && self.pools.iter().any(|pool| pool.subnet().address().is_ipv4() == ipv4)
    }

    /// Takes an address of each range that the pod can have, and its host ports.
    pub(super) fn reserve(
        &mut self,
        names: &Names,
        id: &str,
        ports: &[PortMapping],
        ipv6: bool,
    ) -> Result<Record, Error> {
        let link = names.link(id);
        if let Some(other) = self.pods.values().find(|held| held.record.link == link) {
            return Err(Error::NameTaken { link, pod: other.record.id.clone() });
        }
        let listeners = listeners(ports);
        for listener in &listeners {
            if let (Host::At(host_ip), false) = (listener.host, self.serves(listener.host, ipv6)) {
                return Err(Error::HostIp { port: listener.port, host_ip });
            }
        }
        self.ports.take(id, &listeners)?;
        let mut ips = Vec::new();
        for pool in self.pools.iter_mut().filter(|pool| ipv6 || pool.subnet().address().is_ipv4()) {
            match pool.take() {
                Some(ip) => ips.push(ip),
                None => {
                    let full = pool.subnet();
                    self.ports.release(id, &listeners);
                    self.release(&ips);
                    return Err(Error::NoAddress(full));
                }
            }
        }
        let record = Record { id: id.to_owned(), link, ips, ports: ports.to_vec() };
        let held = Held { record: record.clone(), listeners, phase: Phase::Attaching };
        self.pods.insert(id.to_owned(), held);
        Ok(record)
    }

    /// Forgets a pod of which nothing is left, and gives its addresses and ports back.
    pub(super) fn forget(&mut self, id: &str) {
        if let Some(held) = self.pods.remove(id) {
            self.ports.release(id, &held.listeners);
            self.release(&held.record.ips);
        }
    }

    pub(super) fn set_phase(&mut self, id: &str, phase: Phase) {
        if let Some(held) = self.pods.get_mut(id) {
            held.phase = phase;
        }
    }

    /// Makes the pools of these ranges, with all that pods hold.
    pub(super) fn fill(&mut self, subnets: &[Subnet], last: &[IpAddr]) -> Result<(), Error> {
        let too_small = |subnet| Error::Subnet { subnet, reason: "it is too small for pods".to_owned() };
        let pools = subnets.iter().map(|subnet| Pool::new(*subnet).ok_or_else(|| too_small(*subnet)));
        self.pools = pools.collect::<Result<_, _>>()?;
        for pool in &mut self.pools {
            last.iter().for_each(|ip| pool.resume(*ip));
            for ip in self.pods.values().flat_map(|held| &held.record.ips) {
                pool.hold(*ip);
            }
        }
        Ok(())
    }

    fn release(&mut self, ips: &[IpAddr]) {
        for pool in &mut self.pools {
            ips.iter().for_each(|ip| pool.release(*ip));
        }
    }
}
