//! Attaching a pod, from its namespace to its host ports.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::link::{self, Pair};
use super::netfilter::Flows;
use super::netlink::Socket;
use super::ports::{Host, Listener, listeners};
use super::records::Record;
use super::rules::{self, Entry};
use super::state::{Phase, Shared, State};
use super::{Error, base, host, names, probe};
use crate::{Attachment, Pod, Protocol, enter};

/// How many addresses are tried when others on the host route them.
const TRIES: usize = 16;

impl Shared {
    pub(super) fn attach(this: &Arc<Self>, pod: &Pod<'_>) -> Result<Vec<IpAddr>, Error> {
        let attached = this.try_attach(pod);
        if attached.is_err() {
            // What was made for the first pod goes again.
            Self::let_go(this, &mut this.lock());
        }
        attached
    }

    fn try_attach(&self, pod: &Pod<'_>) -> Result<Vec<IpAddr>, Error> {
        let id = pod.id;
        if !names::valid_id(id) {
            return Err(Error::Id(id.to_owned()));
        }
        let (netns, mut inside, ipv6) = look_inside(pod)?;
        if let Some(ips) = self.attached_before(id)? {
            return Ok(ips);
        }
        say_limits(pod);
        let wanted = listeners(pod.ports);
        for _ in 1..TRIES {
            let mut state = self.lock();
            self.ensure(&mut state)?;
            if let (false, Some(why)) = (wanted.is_empty(), table_missing(&state)) {
                return Err(Error::NoHostPorts(why));
            }
            probe::free(wanted.iter().filter(|listener| state.serves(listener.host, ipv6)))?;
            let record = loop {
                match state.reserve(&self.names, id, pod.ports, ipv6) {
                    Err(Error::PortInUse { pod, .. })
                        if state.pods.get(&pod).is_some_and(|p| p.phase == Phase::Leaving) =>
                    {
                        state = self.wait(state);
                    }
                    reserved => break reserved?,
                }
            };
            let listeners = state.pods.get(id).map(|held| held.listeners.clone()).unwrap_or_default();
            let last: Vec<IpAddr> = state.pools.iter().map(super::pool::Pool::last).collect();
            // Under the lock: it is one file.
            let noted = self.records.write_last(&last);
            drop(state);

            let made = noted.and_then(|()| self.make(pod, &netns, &mut inside, &record, &listeners));
            let mut undone = Ok(());
            if made.is_err() {
                undone = self.unmake(&record, &listeners);
            }
            let mut state = self.lock();
            match (&made, undone) {
                (Err(_), Ok(())) => state.forget(id),
                (Err(_), Err(error)) => {
                    tracing::warn!(pod = id, %error, "a pod that could not be attached is left for detach");
                    state.set_phase(id, Phase::Attached);
                }
                (Ok(()), _) => state.set_phase(id, Phase::Attached),
            }
            // Somebody else on this host has the address: it stays taken here, and the next one is tried.
            let stranger =
                made.as_ref().is_err_and(|error| error.exists(link::POD_ROUTE)) && !state.pods.contains_key(id);
            if stranger {
                state.pools.iter_mut().for_each(|pool| record.ips.iter().for_each(|ip| pool.hold(*ip)));
            }
            self.changed.notify_all();
            drop(state);
            match made {
                Err(error) if stranger => {
                    tracing::warn!(pod = id, %error, ips = ?record.ips, "trying the next address")
                }
                made => return made.map(|()| record.ips),
            }
        }
        Err(Error::Differs {
            id: id.to_owned(),
            what: "others on this host route the addresses of the pod network".to_owned(),
        })
    }

    /// The addresses of a pod that is attached. One that is so only in part is removed.
    fn attached_before(&self, id: &str) -> Result<Option<Vec<IpAddr>>, Error> {
        let mut state = self.lock();
        while state.pods.get(id).is_some_and(|held| matches!(held.phase, Phase::Attaching | Phase::Leaving)) {
            state = self.wait(state);
        }
        let Some(held) = state.pods.get_mut(id) else { return Ok(None) };
        let (record, listeners, phase) = (held.record.clone(), held.listeners.clone(), held.phase);
        if phase == Phase::Attached && link::is_whole(&mut Socket::route()?, &record.link, &record.ips) {
            self.ensure(&mut state)?;
            drop(state);
            // Killed after the links were made: these may be missing.
            self.open_ports(&record, &listeners)?;
            return Ok(Some(record.ips));
        }
        held.phase = Phase::Attaching;
        drop(state);
        let undone = self.unmake(&record, &listeners);
        let mut state = self.lock();
        match &undone {
            Ok(()) => state.forget(id),
            Err(_) => state.set_phase(id, phase),
        }
        self.changed.notify_all();
        undone.map(|()| None)
    }

    fn make(
        &self,
        pod: &Pod<'_>,
        netns: &File,
        inside: &mut Socket,
        record: &Record,
        listeners: &[Listener],
    ) -> Result<(), Error> {
        self.records.write(record)?;
        let mut outside = Socket::route()?;
        let loopback = |ipv4| listeners.iter().any(|l| l.host.is_ipv4() == ipv4 && l.host.has_loopback());
        let alias = self.names.alias(&record.id);
        let (loopback4, loopback6) = (loopback(true), loopback(false));
        let pair = Pair { name: &record.link, alias: &alias, ips: &record.ips, loopback4, loopback6 };
        match link::create(&mut outside, inside, netns.as_fd(), &pair) {
            Err(error) if error.exists(link::MAKE) => {
                if link::exists(inside, link::POD_LINK) {
                    return Err(Error::Occupied(pod.netns.to_owned()));
                }
                // Left by a server that lost its records: no pod that is known has this name.
                link::delete(&mut outside, &record.link)?;
                link::create(&mut outside, inside, netns.as_fd(), &pair)?;
            }
            made => made?,
        }
        self.open_ports(record, listeners)
    }

    fn open_ports(&self, record: &Record, listeners: &[Listener]) -> Result<(), Error> {
        let document = rules::add(&self.names, &Entry { id: &record.id, ips: &record.ips, listeners });
        if document.is_empty() {
            return Ok(());
        }
        if !self.has_table()? {
            // Flushed since: made again with all pods, this one too.
            let mut state = self.lock();
            self.ensure(&mut state)?;
            if let Some(why) = table_missing(&state) {
                return Err(Error::NoHostPorts(why));
            }
        }
        self.transact(&document)?;
        for listener in listeners.iter().filter(|listener| listener.protocol == Protocol::Udp) {
            let hosts = match listener.host {
                Host::At(ip) => BTreeSet::from([ip]),
                Host::Any4 | Host::Any6 => link::addresses(&mut Socket::route()?, listener.host.is_ipv4())?,
            };
            for host in hosts {
                self.end_flows(&Flows::to_port(host, listener.port))?;
            }
        }
        Ok(())
    }

    /// Ends flows. A kernel that refuses is only told of: old clients are served when their flows time out then.
    pub(super) fn end_flows(&self, flows: &Flows) -> Result<(), Error> {
        let mut kernel = Socket::netfilter()?;
        let mut ended = Ok(());
        if !self.one_by_one.load(Relaxed) {
            ended = flows.end(&mut kernel);
            let refused = ended.as_ref().is_err_and(base::unsupported);
            self.one_by_one.fetch_or(refused, Relaxed);
        }
        if self.one_by_one.load(Relaxed) {
            ended = flows.end_one_by_one(&mut kernel);
        }
        match ended {
            Err(error) if base::unsupported(&error) => tracing::debug!(%error, "this kernel cannot end flows"),
            Err(error) => tracing::warn!(%error, "old UDP flows could not be ended"),
            Ok(()) => {}
        }
        Ok(())
    }

    pub(super) fn check(&self, pod: &Pod<'_>, attachment: &Attachment) -> Result<(), Error> {
        let differs = |what: &str| Error::Differs { id: pod.id.to_owned(), what: what.to_owned() };
        let (_, mut inside, _) = look_inside(pod)?;
        let mut state = self.lock();
        let held = state.pods.get(pod.id).filter(|held| held.phase == Phase::Attached);
        let record = held
            .map(|held| held.record.clone())
            .ok_or_else(|| differs("it is not attached to the built-in network"))?;
        if record.ips != attachment.ips {
            return Err(differs("its record has other addresses"));
        }
        self.ensure(&mut state)?;
        drop(state);
        if !link::is_whole(&mut Socket::route()?, &record.link, &record.ips) {
            return Err(differs("the host does not route its addresses to its interface"));
        }
        if !link::exists(&mut inside, link::POD_LINK) {
            return Err(differs("its namespace has no eth0"));
        }
        Ok(())
    }
}

/// Traffic limits are a wish, not a condition: the pod runs without them, but not without a word.
fn say_limits(pod: &Pod<'_>) {
    let limited = |rate: Option<u64>| rate.is_some_and(|rate| rate > 0);
    if pod.bandwidth.is_some_and(|limits| limited(limits.ingress) || limited(limits.egress)) {
        tracing::warn!(
            pod = pod.id,
            name = format!("{}/{}", pod.namespace, pod.name),
            "the pod's bandwidth is not limited: the built-in network does not shape traffic, a CNI configuration with the \
             bandwidth plugin does"
        );
    }
}

fn table_missing(state: &State) -> Option<String> {
    state.base.as_ref().and_then(|base| base.table_missing()).map(str::to_owned)
}

/// Opens the pod's namespace, a netlink socket in it, and tells whether it may have IPv6.
fn look_inside(pod: &Pod<'_>) -> Result<(File, Socket, bool), Error> {
    let fail = |source| Error::Namespace { path: pod.netns.to_owned(), source };
    let netns = File::open(pod.netns).map_err(fail)?;
    let here = std::fs::metadata("/proc/thread-self/ns/net").map_err(fail)?;
    let there = netns.metadata().map_err(fail)?;
    if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
        return Err(Error::HostNamespace(pod.netns.to_owned()));
    }
    let look = || (Socket::route(), host::ipv6_missing().is_none());
    let (socket, ipv6) = enter::netns_fd(netns.as_fd(), look).map_err(fail)?;
    Ok((netns, socket?, ipv6))
}
