//! A pod sandbox in memory: its record, and what keeps its verbs apart.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;

use crate::container::Container;
use crate::error::Result;
use crate::model::{NamespaceMode, SandboxRecord};
use crate::node::{Node, blocking};

/// A sandbox that is listed, or about to be.
#[derive(Debug)]
pub struct Sandbox {
    /// Full id.
    pub id: String,
    record: RwLock<Arc<SandboxRecord>>,
    /// Taken by whoever changes the record on disk.
    writing: Mutex<()>,
    /// Held shared while a container is made in it, exclusively while it is stopped or removed.
    pub gate: tokio::sync::RwLock<()>,
    /// The process that holds the pod's PID namespace, when there is one: see `ops::holder`.
    pub holder: Mutex<Option<Arc<Container>>>,
    holder_lost: AtomicBool,
}

impl Sandbox {
    pub fn new(record: SandboxRecord) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            record: RwLock::new(Arc::new(record)),
            writing: Mutex::new(()),
            gate: tokio::sync::RwLock::new(()),
            holder: Mutex::new(None),
            holder_lost: AtomicBool::new(false),
        })
    }

    /// The facts as they are now.
    pub fn record(&self) -> Arc<SandboxRecord> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the record: first on disk, then for readers.
    pub async fn update(&self, node: &Arc<Node>, change: impl FnOnce(&mut SandboxRecord)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut record = SandboxRecord::clone(&self.record());
        change(&mut record);
        let record = Arc::new(record);
        let (on_disk, worker) = (Arc::clone(&record), Arc::clone(node));
        blocking(move || worker.keep(worker.paths.sandbox_record(&on_disk.id), &*on_disk)).await?;
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = record;
        Ok(())
    }

    /// READY: made in this epoch, not stopped, its PID namespace alive.
    pub fn is_ready(&self, node: &Node) -> bool {
        let record = self.record();
        record.made
            && record.stopped_at.is_none()
            && record.epoch == node.epoch
            && !self.holder_lost.load(Ordering::Relaxed)
    }

    /// The process that held the pod's PID namespace has died: every process in it went with it.
    pub fn lose_holder(&self) {
        self.holder_lost.store(true, Ordering::Relaxed);
    }

    /// Whether the pod has a network namespace of its own.
    pub fn has_network(&self) -> bool {
        self.record().config.namespaces.network != NamespaceMode::Node
    }
}
