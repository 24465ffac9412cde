//! The built-in network: not served yet, every call says so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

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
    /// State of this boot.
    pub state_dir: PathBuf,
}

/// Why the built-in network could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This build has no built-in network.
    #[error("this build has no built-in network: put a configuration into the CNI directory")]
    Missing,
}

/// The built-in network of one instance.
#[derive(Debug)]
pub struct Builtin {}

impl Builtin {
    /// Reads the state on disk. It is opened on machines with CNI too, so the kernel is first touched by `attach`.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn open(_options: Options) -> Result<Self, Error> {
        Ok(Self {})
    }

    /// Attaches a pod; a call for a pod that is attached already gives its addresses again.
    ///
    /// # Errors
    /// What failed; all that was done is undone, or left for `detach`.
    pub fn attach(&self, _pod: &Pod<'_>) -> Result<Vec<IpAddr>, Error> {
        Err(Error::Missing)
    }

    /// Takes a pod off the network. Succeeds when it is not attached or its namespace is gone.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn detach(&self, _pod: &Pod<'_>, _attachment: Option<&Attachment>) -> Result<(), Error> {
        Ok(())
    }

    /// Verifies an attached pod.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, _pod: &Pod<'_>, _attachment: &Attachment) -> Result<(), Error> {
        Err(Error::Missing)
    }

    /// Whether pods can be attached now.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: Error::Missing.to_string(),
            details: std::collections::BTreeMap::new(),
        }
    }

    /// Removes what belongs to pods that are not in `live`.
    ///
    /// # Errors
    /// What could not be removed; the rest was.
    pub fn gc(&self, _live: &BTreeSet<String>) -> Result<(), Error> {
        Ok(())
    }
}
