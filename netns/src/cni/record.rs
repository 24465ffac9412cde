//! What DEL needs to know of an ADD: written before its first plugin runs, on disk before it is said to be done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conflist::Conflist;
use super::error::{Error, state};
use super::version::Version;
use crate::durable;

/// An attachment, begun or made: the configuration and the arguments that it is made with, and must be unmade with, even
/// if the configuration's file is changed or gone by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// 1.
    pub(crate) format: u32,
    pub(crate) network: String,
    pub(crate) version: Version,
    pub(crate) disable_check: bool,
    pub(crate) plugins: Vec<Map<String, Value>>,
    pub(crate) ifname: String,
    pub(crate) netns: PathBuf,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// All capability arguments, whether or not a plugin declares them.
    pub(crate) capabilities: Map<String, Value>,
}

impl Record {
    pub(crate) fn new(list: &Conflist, version: Version, netns: &Path) -> Self {
        Self {
            format: 1,
            network: list.name.clone(),
            version,
            disable_check: list.disable_check,
            plugins: list.plugins.clone(),
            ifname: super::result::IFNAME.to_owned(),
            netns: netns.to_owned(),
            args: String::new(),
            capabilities: Map::new(),
        }
    }
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, Error> {
        std::fs::create_dir_all(&dir).map_err(state("make directory", &dir))?;
        Ok(Self { dir })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn record(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.json"))
    }

    fn result(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.result.json"))
    }

    /// The record of a pod. One that cannot be understood can help nobody: it is set aside, with a warning.
    pub(crate) fn load(&self, id: &str) -> Result<Option<Record>, Error> {
        let path = self.record(id);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(state("read", &path))?,
        };
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) if record.format == 1 => Ok(Some(record)),
            other => {
                let reason = other.map_or_else(|error| error.to_string(), |record| format!("format {}", record.format));
                tracing::error!(path = %path.display(), reason, "record of a CNI attachment set aside: its DEL is not run");
                std::fs::rename(&path, path.with_extension("bad")).map_err(state("set aside", &path))?;
                Ok(None)
            }
        }
    }

    /// Writes the record. From here on a crash of the server leads to DEL; a power cut does so after [`Self::flush`].
    pub(crate) fn begin(&self, id: &str, record: &Record) -> Result<(), Error> {
        let path = self.record(id);
        let text = serde_json::to_vec(record).map_err(|error| state("write", &path)(error.into()))?;
        durable::write_lazily(&path, &text).map_err(state("write", &path))
    }

    /// Brings the record to disk.
    pub(crate) fn flush(&self, id: &str) -> Result<(), Error> {
        let path = self.record(id);
        durable::flush(&path).map_err(state("flush", &path))
    }

    /// Keeps the result of ADD beside the record. The caller's own record has it too, durably; so it is not flushed, and
    /// what does not read is none.
    pub(crate) fn keep_result(&self, id: &str, result: &Value) -> Result<(), Error> {
        let path = self.result(id);
        durable::write_lazily(&path, result.to_string().as_bytes()).map_err(state("write", &path))
    }

    pub(crate) fn load_result(&self, id: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.result(id)).ok()?).ok()
    }

    /// Forgets a pod. The record goes last: until then DEL is still to be run.
    pub(crate) fn forget(&self, id: &str) -> Result<(), Error> {
        for path in [self.result(id), self.record(id)] {
            durable::remove(&path).map_err(state("remove", &path))?;
        }
        Ok(())
    }

    /// The ids of all pods with a record.
    pub(crate) fn ids(&self) -> Result<BTreeSet<String>, Error> {
        let mut ids = BTreeSet::new();
        for entry in std::fs::read_dir(&self.dir).map_err(state("read", &self.dir))? {
            let name = entry.map_err(state("read", &self.dir))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let id = name.strip_suffix(".json").filter(|id| crate::pin::check_id(id).is_ok());
            ids.extend(id.map(str::to_owned));
        }
        Ok(ids)
    }
}
