//! What stands while there are pods: forwarding, claimed ranges, the table, opened forward chains. All of it is checked
//! with every attach, by two questions to the kernel that take microseconds, and made again where it is gone.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use serde_json::json;

use super::forward::{self, Forward};
use super::netlink::Socket;
use super::rules::{Entry, Layout};
use super::state::{Phase, Shared, State};
use super::subnets::{self, Wish};
use super::{Error, host, netfilter, program, route, rules};
use crate::{Status, Subnet};

const NO_NFT: &str = "there is no program nft (install the package nftables)";

/// What this server made.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) subnets: Vec<Subnet>,
    /// Why pods have no IPv6 here.
    ipv6_missing: Option<String>,
    /// Why there is no table.
    table_missing: Option<String>,
    forward: Forward,
    /// Whether there may be rules of ours in others' chains.
    touched: bool,
    /// Whether the table closes for what others' chains dropped; `None`: not known yet.
    closed: Option<bool>,
    /// The ruleset's generation when it was last looked at.
    generation: Option<u32>,
}

impl Base {
    pub(super) fn table_missing(&self) -> Option<&str> {
        self.table_missing.as_deref()
    }
}

impl Shared {
    /// Makes the base, or what is gone of it.
    pub(super) fn ensure(&self, state: &mut State) -> Result<(), Error> {
        let ensured = self.look(state);
        state.failed = ensured.as_ref().err().map(ToString::to_string);
        ensured
    }

    fn look(&self, state: &mut State) -> Result<(), Error> {
        let there = self.has_table()?;
        let generation = generation();
        if let Some(base) = &state.base {
            let expected = base.generation.map(|seen| seen.wrapping_add(self.transactions.load(Relaxed)));
            if there && generation.is_some() && generation == expected {
                return Ok(());
            }
        } else {
            state.stands = true;
            state.base = Some(self.lay(state)?);
        }
        let nft = program::find("nft");
        // Ours closes before theirs are opened. A table that is there may be an earlier server's, of another version: it is
        // made anew, in one transaction.
        let dropping = forward::find(nft.as_deref(), &self.names);
        let closed = Some(!dropping.is_empty());
        let mut lacking = None;
        if !there || state.base.as_ref().is_none_or(|base| base.closed != closed) {
            lacking = self.make_table(state, nft.as_deref(), closed == Some(true)).err();
            tracing::debug!(
                table = self.names.table,
                pods = state.pods.len(),
                there,
                ?lacking,
                "made the pod network's table"
            );
        }
        let found = if lacking.is_none() { dropping.open(nft.as_deref(), &self.names) } else { dropping.leave() };
        for problem in &found.problems {
            tracing::warn!("pods may not reach outside: {problem}");
        }
        if let Some(base) = &mut state.base {
            base.forward = found;
            base.touched |= closed == Some(true);
            base.closed = closed.filter(|_| lacking.is_none());
            base.table_missing = lacking;
            let _still = self.ruleset.lock().unwrap_or_else(PoisonError::into_inner);
            self.transactions.store(0, Relaxed);
            base.generation = self::generation();
        }
        Ok(())
    }

    /// Forwarding and ranges.
    fn lay(&self, state: &mut State) -> Result<Base, Error> {
        let mut ipv6_missing = host::ipv6_missing().map(str::to_owned);
        let mut kernel = Socket::route()?;
        let mut routes = route::list(&mut kernel, true)?;
        let routes6 = if ipv6_missing.is_none() { route::list(&mut kernel, false)? } else { Vec::new() };
        host::forward_ipv4()?;
        // A range that is configured for IPv6 is meant to be used; without one IPv6 is taken where it is to be had.
        let asked = self.subnets.iter().any(|subnet| subnet.address().is_ipv6());
        if ipv6_missing.is_none() && (asked || self.subnets.is_empty()) {
            match host::forward_ipv6(&self.names.prefix) {
                Err(error) if !asked => ipv6_missing = Some(error.to_string()),
                forwards => forwards?,
            }
        }
        routes.extend(routes6.iter().cloned());
        let before = self.records.subnets();
        let random = RandomState::new().hash_one(&self.names.instance);
        let metric = self.names.metric;
        let wish = Wish {
            configured: &self.subnets,
            before: &before,
            routes: &routes,
            metric,
            ipv6_missing: ipv6_missing.as_deref(),
            random,
        };
        let subnets = subnets::choose(&wish)?;
        if self.subnets.is_empty() && subnets != before {
            self.records.write_subnets(&subnets)?;
        }
        state.fill(&subnets, &self.records.last())?;
        for subnet in &subnets {
            route::claim(&mut kernel, *subnet, metric)?;
        }
        tracing::debug!(?subnets, "the pod network has its ranges");
        Ok(Base {
            subnets,
            ipv6_missing,
            table_missing: None,
            forward: Forward::default(),
            touched: false,
            closed: None,
            generation: None,
        })
    }

    /// Makes the table with all its pods; the error says why there is none.
    fn make_table(&self, state: &State, nft: Option<&Path>, closed: bool) -> Result<(), String> {
        let Some(nft) = nft else { return Err(NO_NFT.to_owned()) };
        let subnets = state.pools.iter().map(|pool| (pool.subnet(), pool.host())).collect();
        let ips = state.pods.values().flat_map(|held| &held.record.ips);
        let strays = ips.filter(|ip| !state.pools.iter().any(|pool| pool.subnet().contains(**ip))).copied().collect();
        let pods = state.pods.values().filter(|held| !held.phase.is_over());
        let entries = pods.map(|held| Entry { id: &held.record.id, ips: &held.record.ips, listeners: &held.listeners });
        let document = rules::remake(&self.names, &Layout { subnets, strays, closed }, entries);
        program::run(nft, &["-f", "-"], &document).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Changes a pod's elements in the table.
    pub(super) fn transact(&self, document: &str) -> Result<(), Error> {
        let nft = program::find("nft").ok_or_else(|| Error::NoHostPorts(NO_NFT.to_owned()))?;
        let _alone = self.ruleset.lock().unwrap_or_else(PoisonError::into_inner);
        program::run(&nft, &["-f", "-"], document)?;
        self.transactions.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Whether the table stands. A kernel without nftables has none.
    pub(super) fn has_table(&self) -> Result<bool, Error> {
        let asked = Socket::netfilter().and_then(|mut kernel| {
            netfilter::has_table(&mut kernel, &self.names.table).map_err(Error::netlink("finding the nftables table"))
        });
        match asked {
            Err(Error::Netlink { source, .. }) if unsupported(&source) => Ok(false),
            asked => asked,
        }
    }

    /// Makes again what somebody removed, if there are pods that need it; and tries again what failed.
    pub(super) fn heal(this: &Arc<Self>) {
        let mut state = this.lock();
        let needed = state.pods.values().any(|held| !held.phase.is_over());
        if (needed || state.failed.is_some())
            && let Err(error) = this.ensure(&mut state)
        {
            tracing::warn!(%error, "the pod network could not be made whole");
        }
        Self::let_go(this, &mut state);
    }

    /// Takes all down that no pod needs: chains and claims first, the table last, since it tells that there is something.
    pub(super) fn raze(&self, state: &mut State) -> Result<(), Error> {
        let base = state.base.take();
        let nft = program::find("nft");
        if base.as_ref().is_none_or(|base| base.touched) {
            forward::close(nft.as_deref(), &self.names)?;
        }
        let mut kernel = Socket::route()?;
        let metric = self.names.metric;
        for ipv4 in [true, false] {
            let routes = route::list(&mut kernel, ipv4).unwrap_or_default();
            let claims = routes.iter().filter(|route| route.protocol == route::PROTOCOL && route.metric == metric);
            for claim in claims.filter(|route| route.unreachable) {
                route::disclaim(&mut kernel, claim.subnet, metric)?;
            }
        }
        if let Some(nft) = nft
            && self.has_table()?
        {
            program::run(&nft, &["-f", "-"], &rules::drop_table(&self.names))?;
        }
        state.stands = false;
        Ok(())
    }

    pub(super) fn status(&self) -> Status {
        let state = self.lock();
        let mut details = BTreeMap::new();
        let mut flaws = Vec::new();
        let no_nft = || program::find("nft").is_none().then(|| NO_NFT.to_owned());
        let lacking = state.base.as_ref().map_or_else(no_nft, |base| base.table_missing.clone());
        if let Some(why) = lacking {
            flaws.push(format!("pods reach nothing outside this machine, and host ports are refused: {why}"));
        }
        let ipv6_missing = match &state.base {
            Some(base) => base.ipv6_missing.as_deref(),
            None => host::ipv6_missing(),
        };
        if let Some(why) = ipv6_missing {
            details.insert("ipv6".to_owned(), json!(format!("none: {why}")));
        }
        if let Some(base) = &state.base {
            details.insert("subnets".to_owned(), json!(base.subnets));
            details.insert("forward.opened".to_owned(), json!(base.forward.opened));
            flaws.extend(base.forward.problems.iter().map(|problem| format!("pods may not reach outside: {problem}")));
        } else if !self.subnets.is_empty() {
            details.insert("subnets".to_owned(), json!(self.subnets));
        }
        details.insert(
            "attached".to_owned(),
            json!(state.pods.values().filter(|held| held.phase == Phase::Attached).count()),
        );
        if !flaws.is_empty() {
            details.insert("flaws".to_owned(), json!(flaws));
        }
        // Only what no pod can do without; flaws are for people.
        let (reason, failed) = match &state.failed {
            Some(failed) => ("NetworkPluginNotReady", Some(failed.clone())),
            None => ("", None),
        };
        let ready = failed.is_none();
        Status { ready, reason: reason.to_owned(), message: failed.unwrap_or_else(|| flaws.join("; ")), details }
    }
}

/// The ruleset's generation; `None`: not to be had, so it counts as changed.
fn generation() -> Option<u32> {
    netfilter::generation(&mut Socket::netfilter().ok()?).ok()
}

/// Whether an answer means that the kernel has no such part.
pub(super) fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT))
}
