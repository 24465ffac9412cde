//! Attachments on disk: one small file a pod, so that addresses and host ports stay its own whatever happens to the server.
//!
//! ```text
//! <state>/network/pods/<id>.json    this boot: what is in the kernel for the pod
//! <state>/network/last.json         the address handed out last in each range
//! <root>/network/subnets.json       the ranges that were chosen where none are configured
//! ```
//! A record is written before anything is done in the kernel and removed after all is undone.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, names};
use crate::{PortMapping, Subnet, durable};

/// What a pod has of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The sandbox's id.
    pub(super) id: String,
    /// The interface on the host.
    pub(super) link: String,
    /// The pod's addresses, IPv4 first.
    pub(super) ips: Vec<IpAddr>,
    /// Host ports, as asked for.
    pub(super) ports: Vec<PortMapping>,
}

/// The files.
#[derive(Debug)]
pub(super) struct Records {
    root: PathBuf,
    state: PathBuf,
}

impl Records {
    pub(super) fn open(root: &Path, state: &Path) -> Result<Self, Error> {
        let records = Self { root: root.join("network"), state: state.join("network") };
        for dir in [records.root.clone(), records.pods()] {
            std::fs::create_dir_all(&dir).map_err(|source| Error::Record { path: dir, source })?;
        }
        Ok(records)
    }

    /// All records. Files that are none, which a kill or a full disk may leave, are removed: nothing is attached without
    /// a whole record.
    pub(super) fn load(&self) -> Result<Vec<Record>, Error> {
        let dir = self.pods();
        let fail = |source| Error::Record { path: dir.clone(), source };
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let read = || {
                let record: Record = serde_json::from_slice(&std::fs::read(&path)?)?;
                let named = names::valid_id(&record.id) && path == self.pod(&record.id);
                if named { Ok(record) } else { Err(io::Error::other("its name and its content differ")) }
            };
            match read() {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "removing a file that is no record of an attached pod");
                    durable::remove(&path).map_err(|source| Error::Record { path, source })?;
                }
            }
        }
        Ok(records)
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        write(&self.pod(&record.id), record, durable::write_lazily)
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.pod(id);
        durable::remove(&path).map_err(|source| Error::Record { path, source })
    }

    /// The addresses handed out last.
    pub(super) fn last(&self) -> Vec<IpAddr> {
        read(&self.state.join("last.json")).unwrap_or_default()
    }

    pub(super) fn write_last(&self, last: &[IpAddr]) -> Result<(), Error> {
        write(&self.state.join("last.json"), &last, durable::write_lazily)
    }

    /// The ranges chosen before.
    pub(super) fn subnets(&self) -> Vec<Subnet> {
        read(&self.root.join("subnets.json")).unwrap_or_default()
    }

    pub(super) fn write_subnets(&self, subnets: &[Subnet]) -> Result<(), Error> {
        write(&self.root.join("subnets.json"), &subnets, durable::write)
    }

    fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    fn pod(&self, id: &str) -> PathBuf {
        self.pods().join(format!("{id}.json"))
    }
}

/// What can be lost: `None` when it is not there or not whole.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write<T: Serialize>(path: &Path, value: &T, how: fn(&Path, &[u8]) -> io::Result<()>) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::from);
    bytes.and_then(|bytes| how(path, &bytes)).map_err(|source| Error::Record { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        let ips = vec!["10.77.0.2".parse().unwrap()];
        Record { id: id.to_owned(), link: "crisp-web".to_owned(), ips, ports: Vec::new() }
    }

    #[test]
    fn keeps_whole_records_and_drops_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Records::open(&dir.path().join("root"), &dir.path().join("state")).unwrap();
        open().write(&record("web")).unwrap();
        let pods = dir.path().join("state/network/pods");
        for (name, content) in [("empty.json", ""), ("half.json", "{\"id\":\"ha"), ("db.json.new", "{}")] {
            std::fs::write(pods.join(name), content).unwrap();
        }
        std::fs::copy(pods.join("web.json"), pods.join("other.json")).unwrap();
        assert_eq!(open().load().unwrap(), [record("web")]);
        assert_eq!(std::fs::read_dir(&pods).unwrap().count(), 1);
        open().remove("web").unwrap();
        open().remove("web").unwrap();
        assert_eq!(open().load().unwrap(), []);
    }
}
