//! Taking a pod off: at once what reaches it, later what takes time.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::netfilter::Flows;
use super::netlink::Socket;
use super::ports::Listener;
use super::records::Record;
use super::rules::{self, Entry};
use super::state::{Phase, Shared, State};
use super::{Error, link};
use crate::Protocol;

/// What is to be removed of a pod.
type Part = (Record, Vec<Listener>);

/// How many pods go together: a batch of netlink messages and a document of some tens of kilobytes.
const AT_ONCE: usize = 100;
/// How long the base stays after the last pod. Pods that come and go one by one need it again within milliseconds.
const LINGER: Duration = Duration::from_secs(2);

impl Shared {
    pub(super) fn detach(this: &Arc<Self>, id: &str) -> Result<(), Error> {
        let mut state = this.lock();
        while state.pods.get(id).is_some_and(|held| held.phase == Phase::Attaching) {
            state = this.wait(state);
        }
        let Some(held) = state.pods.get_mut(id) else {
            // No record, so at most an interface that a server left which lost its state.
            let link = this.names.link(id);
            let taken = state.pods.values().any(|held| held.record.link == link);
            drop(state);
            return if taken { Ok(()) } else { link::delete(&mut Socket::route()?, &link) };
        };
        match held.phase {
            Phase::Attaching | Phase::Attached => {}
            Phase::Leaving | Phase::Stuck => return Ok(()),
        }
        held.phase = Phase::Leaving;
        let record = held.record.clone();
        drop(state);

        let cut = Socket::route().and_then(|mut kernel| link::unroute(&mut kernel, &record.link, &record.ips));
        let mut state = this.lock();
        match &cut {
            Ok(()) => Self::bury(this, &mut state, id),
            Err(_) => state.set_phase(id, Phase::Attached),
        }
        this.changed.notify_all();
        cut
    }

    fn bury(this: &Arc<Self>, state: &mut State, id: &str) {
        state.set_phase(id, Phase::Leaving);
        state.leaving.push(id.to_owned());
        Self::wake_reaper(this, state);
    }

    /// Tries again to remove what the reaper could not.
    pub(super) fn retry(this: &Arc<Self>) {
        let mut state = this.lock();
        let stuck = state.pods.values().filter(|held| held.phase == Phase::Stuck).map(|held| held.record.id.clone());
        for id in stuck.collect::<Vec<_>>() {
            Self::bury(this, &mut state, &id);
        }
    }

    fn close_ports(&self, pods: &[Part]) -> Result<(), Error> {
        let entry = |(record, listeners): &Part| {
            rules::remove(&self.names, &Entry { id: &record.id, ips: &record.ips, listeners })
        };
        let document: String = pods.iter().map(entry).collect();
        if !document.is_empty() && self.has_table()? {
            self.transact(&document)?;
        }
        let udp = |listeners: &[Listener]| listeners.iter().any(|listener| listener.protocol == Protocol::Udp);
        for ip in pods.iter().filter(|(_, listeners)| udp(listeners)).flat_map(|(record, _)| &record.ips) {
            self.end_flows(&Flows::from_pod(*ip))?;
        }
        Ok(())
    }

    /// Removes all that is or may be there of a pod, and waits for it.
    pub(super) fn unmake(&self, record: &Record, listeners: &[Listener]) -> Result<(), Error> {
        self.unmake_all(&[(record.clone(), listeners.to_vec())])
    }

    fn unmake_all(&self, pods: &[Part]) -> Result<(), Error> {
        self.close_ports(pods)?;
        let links: Vec<String> = pods.iter().map(|(record, _)| record.link.clone()).collect();
        link::delete_all(&mut Socket::route()?, &links, self.names.metric)?;
        pods.iter().try_for_each(|(record, _)| self.records.remove(&record.id))
    }

    pub(super) fn gc(this: &Arc<Self>, lives: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        let mut first = Ok(());
        let mut note = |result: Result<(), Error>| match (&first, result) {
            (Ok(()), result) => first = result,
            (Err(_), Err(error)) => tracing::warn!(%error, "the pod network's leftovers could not all be removed"),
            _ => {}
        };
        let recorded: Vec<String> = this.lock().pods.keys().cloned().collect();
        for id in recorded.iter().filter(|id| !lives(id)) {
            note(Self::detach(this, id));
        }
        let mut kernel = Socket::route()?;
        for name in link::names(&mut kernel, &this.names.prefix)? {
            // Looked up one by one: an attach may go on beside this.
            let known = this.lock().pods.values().any(|held| held.record.link == name);
            if !known {
                tracing::info!(interface = name, "removing an interface that no pod has");
                note(link::delete(&mut kernel, &name));
            }
        }
        let mut state = this.lock();
        if state.pods.is_empty() && state.stands {
            note(this.raze(&mut state));
        }
        drop(state);
        Self::heal(this);
        first
    }

    /// Has the base taken down when no pod needs it.
    pub(super) fn let_go(this: &Arc<Self>, state: &mut State) {
        if state.pods.is_empty() && state.base.is_some() {
            Self::wake_reaper(this, state);
        }
    }

    /// Starts the thread that removes what is left of pods, unless it runs.
    fn wake_reaper(this: &Arc<Self>, state: &mut State) {
        if state.reaper.is_some() {
            return;
        }
        let shared = Arc::clone(this);
        match std::thread::Builder::new().name("net-reaper".to_owned()).spawn(move || shared.reap()) {
            Ok(reaper) => state.reaper = Some(reaper),
            Err(error) => {
                tracing::warn!(%error, "no thread to remove what is left of detached pods");
                for id in std::mem::take(&mut state.leaving) {
                    state.set_phase(&id, Phase::Stuck);
                }
            }
        }
    }

    fn reap(&self) {
        let mut state = self.lock();
        let mut idle_since = Instant::now();
        loop {
            if !state.leaving.is_empty() {
                let some = state.leaving.len().min(AT_ONCE);
                let ids: Vec<String> = state.leaving.drain(..some).collect();
                let held = |id| state.pods.get(id).map(|held| (held.record.clone(), held.listeners.clone()));
                let pods: Vec<_> = ids.iter().filter_map(held).collect();
                drop(state);
                let unmade = self.unmake_all(&pods);
                state = self.lock();
                if let Err(error) = &unmade {
                    tracing::warn!(pods = ids.join(" "), %error, "what is left of detached pods could not be removed yet");
                }
                for id in &ids {
                    if unmade.is_ok() { state.forget(id) } else { state.set_phase(id, Phase::Stuck) }
                }
                self.changed.notify_all();
                idle_since = Instant::now();
                continue;
            }
            let over = LINGER.saturating_sub(idle_since.elapsed());
            if !state.pods.is_empty() || !state.stands || over.is_zero() || state.hurry {
                break;
            }
            state = self.changed.wait_timeout(state, over).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.pods.is_empty()
            && state.stands
            && let Err(error) = self.raze(&mut state)
        {
            tracing::warn!(%error, "what the pod network made on this host could not all be removed");
        }
        // The next one to leave starts another thread.
        state.reaper = None;
        self.changed.notify_all();
    }

    pub(super) fn settle(&self) {
        let mut state = self.lock();
        state.hurry = true;
        self.changed.notify_all();
        while state.reaper.is_some() {
            state = self.wait(state);
        }
        state.hurry = false;
    }
}
