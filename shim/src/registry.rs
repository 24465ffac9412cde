//! All sandboxes and containers in memory: by id, by unique prefix, by name. Rebuilt from the records at start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::model::{ContainerName, SandboxName};
use crate::sandbox::Sandbox;

/// The index. Its lock is held for look-ups only, never over I/O, so that reads do not wait on a writer.
#[derive(Debug, Default)]
pub struct Registry {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    sandbox_names: HashMap<SandboxName, String>,
    container_names: HashMap<(String, ContainerName), String>,
}

impl Registry {
    fn read<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The sandbox with this id or unique prefix of one.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.read(|inner| by_prefix(&inner.sandboxes, Kind::Sandbox, id))
    }

    /// The container with this id or unique prefix of one.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.read(|inner| by_prefix(&inner.containers, Kind::Container, id))
    }

    /// The sandbox of that name.
    pub fn sandbox_named(&self, name: &SandboxName) -> Option<Arc<Sandbox>> {
        self.read(|inner| inner.sandboxes.get(inner.sandbox_names.get(name)?).cloned())
    }

    /// The container of that name in that sandbox (full id).
    pub fn container_named(&self, sandbox: &str, name: &ContainerName) -> Option<Arc<Container>> {
        let key = (sandbox.to_owned(), name.clone());
        self.read(|inner| inner.containers.get(inner.container_names.get(&key)?).cloned())
    }

    /// All sandboxes, by id.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.read(|inner| inner.sandboxes.values().cloned().collect())
    }

    /// All containers, by id.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.read(|inner| inner.containers.values().cloned().collect())
    }

    /// The containers of a sandbox (full id).
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.read(|inner| inner.containers.values().filter(|c| c.record().sandbox_id == sandbox).cloned().collect())
    }

    /// Lists a sandbox.
    pub fn add_sandbox(&self, sandbox: Arc<Sandbox>) {
        let name = sandbox.record().config.name.clone();
        self.write(|inner| {
            inner.sandbox_names.insert(name, sandbox.id.clone());
            inner.sandboxes.insert(sandbox.id.clone(), sandbox);
        });
    }

    /// Lists a container.
    pub fn add_container(&self, container: Arc<Container>) {
        let record = container.record();
        let key = (record.sandbox_id.clone(), record.config.name.clone());
        self.write(|inner| {
            inner.container_names.insert(key, container.id.clone());
            inner.containers.insert(container.id.clone(), container);
        });
    }

    /// Forgets a sandbox and frees its name.
    pub fn remove_sandbox(&self, id: &str) {
        self.write(|inner| {
            if let Some(sandbox) = inner.sandboxes.remove(id) {
                inner.sandbox_names.remove(&sandbox.record().config.name);
            }
        });
    }

    /// Forgets a container and frees its name.
    pub fn remove_container(&self, id: &str) {
        self.write(|inner| {
            if let Some(container) = inner.containers.remove(id) {
                let record = container.record();
                inner.container_names.remove(&(record.sandbox_id.clone(), record.config.name.clone()));
            }
        });
    }
}

/// An empty id names nothing: with a prefix rule it would name the only one there is.
fn by_prefix<T>(all: &BTreeMap<String, Arc<T>>, kind: Kind, id: &str) -> Result<Arc<T>> {
    if let Some(exact) = all.get(id) {
        return Ok(Arc::clone(exact));
    }
    let mut found = all.range(id.to_owned()..).take_while(|(full, _)| full.starts_with(id));
    match (found.next(), id.is_empty()) {
        (Some((_, one)), false) => match found.count() {
            0 => Ok(Arc::clone(one)),
            more => Err(Error::Ambiguous { kind, id: id.to_owned(), count: more + 1 }),
        },
        _ => Err(Error::NotFound { kind, id: id.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_by_unique_prefix_and_never_by_nothing() {
        let all: BTreeMap<String, Arc<u8>> =
            ["abc1", "abd2", "b"].iter().map(|id| ((*id).to_owned(), Arc::new(0))).collect();
        let find = |id| by_prefix(&all, Kind::Container, id);
        assert!(find("abc").is_ok() && find("b").is_ok());
        assert!(matches!(find("ab"), Err(Error::Ambiguous { count: 2, .. })));
        assert!(matches!(find(""), Err(Error::NotFound { .. })));
        assert!(matches!(find("abc12"), Err(Error::NotFound { .. })));
    }
}
