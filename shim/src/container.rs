//! A container in memory: its record, what its monitor says, and the state that follows.
//!
//! ```text
//! record.json ──┐
//! monitor.sock ─┼─► Status (a watch) ─► state(): exit ► EXITED · lost ► UNKNOWN · started ► RUNNING · else CREATED
//! exit.json  ───┘
//! ```

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};

use crisp_monitor::exit_record::{ExitRecord, REASON_CREATE_ERROR};
use tokio::sync::{Mutex, watch};

use crate::error::Result;
use crate::model::{ContainerRecord, Process};
use crate::monitor::Link;
use crate::node::{Node, blocking};

/// CRI's container states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// What is known of the process.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Its first process, from creation on.
    pub process: Option<Process>,
    /// Wall clock in ns; `None`: not started.
    pub started_at: Option<i64>,
    /// How it ended.
    pub exit: Option<Arc<ExitRecord>>,
    /// Its monitor is gone without leaving an exit record.
    pub lost: bool,
    /// The runtime has forgotten it, or its monitor is gone: nothing more comes.
    pub over: bool,
}

impl Status {
    /// The state that follows from the facts.
    pub fn state(&self) -> State {
        match self {
            Self { exit: Some(_), .. } => State::Exited,
            Self { lost: true, .. } => State::Unknown,
            Self { started_at: Some(_), .. } => State::Running,
            _ => State::Created,
        }
    }
}

/// A container that is listed, or about to be.
#[derive(Debug)]
pub struct Container {
    /// Full id.
    pub id: String,
    record: RwLock<Arc<ContainerRecord>>,
    /// Written by the task that follows the monitor.
    pub status: watch::Sender<Status>,
    /// The way to the monitor.
    pub link: Link,
    /// Held by Start and Remove, so that they exclude each other.
    pub verb: Mutex<()>,
    /// The stop signal was sent: once a life, not once a call.
    pub signalled: AtomicBool,
}

impl Container {
    pub fn new(record: ContainerRecord, status: Status, link: Link) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            record: RwLock::new(Arc::new(record)),
            status: watch::Sender::new(status),
            link,
            verb: Mutex::new(()),
            signalled: AtomicBool::new(false),
        })
    }

    /// The facts as they are now.
    pub fn record(&self) -> Arc<ContainerRecord> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the record: first on disk, then for readers. Callers hold `verb`, or are alone.
    pub async fn update(&self, node: &Arc<Node>, change: impl FnOnce(&mut ContainerRecord)) -> Result<()> {
        let mut record = ContainerRecord::clone(&self.record());
        change(&mut record);
        let record = Arc::new(record);
        let (on_disk, worker) = (Arc::clone(&record), Arc::clone(node));
        blocking(move || worker.keep(worker.paths.container_record(&on_disk.id), &*on_disk)).await?;
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = record;
        Ok(())
    }

    /// Whether all that there is of it is the reason why it cannot be started: see `ops::create_container`.
    pub fn is_stillborn(&self) -> bool {
        let status = self.status.borrow();
        status.process.is_none() && status.exit.is_none() && self.record().start_error.is_some()
    }

    /// Nothing was started that could end: there is nothing to wait for.
    pub fn never_was(&self) {
        let exit = ExitRecord {
            exit_code: 128,
            finished_at: crate::sys::now(),
            reason: REASON_CREATE_ERROR.to_owned(),
            ..ExitRecord::default()
        };
        self.status.send_modify(|status| {
            status.exit = Some(Arc::new(exit));
            status.over = true;
        });
    }

    /// Its first process, as the monitor tells it, else the record.
    pub fn process(&self) -> Option<Process> {
        self.status.borrow().process.or(self.record().process)
    }

    /// The status as it is now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The state as it is now.
    pub fn state(&self) -> State {
        self.status.borrow().state()
    }

    /// Waits until it has ended (or is lost).
    pub async fn ended(&self) -> Status {
        self.wait(|status| status.exit.is_some() || status.lost).await
    }

    /// Waits until it has a process, or will never have one.
    pub async fn born(&self) -> Status {
        self.wait(|status| status.process.is_some() || status.exit.is_some() || status.lost || status.over).await
    }

    /// Waits until its monitor has nothing more to do.
    pub async fn over(&self) -> Status {
        self.wait(|status| status.over).await
    }

    async fn wait(&self, until: impl FnMut(&Status) -> bool) -> Status {
        let mut changes = self.status.subscribe();
        // The sender lives as long as `self`.
        match changes.wait_for(until).await {
            Ok(status) => status.clone(),
            Err(_) => self.status(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_from_the_facts_and_an_exit_outweighs_all() {
        let mut status = Status::default();
        assert_eq!(status.state(), State::Created);
        status.started_at = Some(1);
        assert_eq!(status.state(), State::Running);
        status.lost = true;
        assert_eq!(status.state(), State::Unknown);
        status.exit = Some(Arc::new(ExitRecord::default()));
        assert_eq!(status.state(), State::Exited);
    }
}
