//! System call filters.
//!
//! ```text
//! RuntimeDefault  seccomp-default.json ─┐  Profile: rules under conditions        resolve      linux.seccomp
//! Localhost       a file of the node ───┴─ (architecture, capabilities, kernel) ──────────►  the runtime compiles it
//! ```
//!
//! A profile is the JSON that the whole field reads (Docker's, the one of containers/common, and the OCI's own, which is
//! the same without conditions). The built-in one allows what ordinary programs call and answers EPERM to all else;
//! capabilities that a container was given open the calls that they are for. runc answers ENOSYS to calls that are
//! newer than all that a profile names, so that programs fall back.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::capabilities::CapSet;
use super::{Inputs, SpecError, oci};
use crate::model::SeccompProfile;

mod profile;

pub use profile::Profile;

/// The built-in profile, of our own making, arranged by purpose.
const DEFAULT: &[u8] = include_bytes!("seccomp-default.json");
/// A larger file is refused: the field's own profiles take 15 to 60 kB.
const MAX_LEN: u64 = 1 << 20;

/// Why a profile is none.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file.
    #[error("cannot read seccomp profile {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not absolute, or not a regular file.
    #[error("seccomp profile {0} is not an absolute path of a regular file")]
    NotAFile(PathBuf),
    /// Beyond the limit.
    #[error("seccomp profile {0} takes more than {MAX_LEN} bytes")]
    TooLarge(PathBuf),
    /// Not JSON, or not a profile's.
    #[error("seccomp profile {path} is not the JSON of a profile")]
    Json {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A word that no profile knows, or that is not served.
    #[error("seccomp profile {path}: {problem}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong with what.
        problem: String,
    },
}

impl Profile {
    /// The profile that was asked for; none if none was.
    ///
    /// # Errors
    /// See [`SeccompError`].
    pub fn load(wanted: &SeccompProfile) -> Result<Option<Self>, SeccompError> {
        match wanted {
            SeccompProfile::Unset | SeccompProfile::Unconfined => Ok(None),
            SeccompProfile::RuntimeDefault => Self::parse(Path::new("(built in)"), DEFAULT).map(Some),
            SeccompProfile::Localhost(path) => Self::read(Path::new(path)).map(Some),
        }
    }

    fn read(path: &Path) -> Result<Self, SeccompError> {
        if !path.is_absolute() {
            return Err(SeccompError::NotAFile(path.to_owned()));
        }
        let failed = |source| SeccompError::Read { path: path.to_owned(), source };
        // A pipe without a writer must not hold us.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = std::fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(SeccompError::NotAFile(path.to_owned()));
        }
        let mut json = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut json).map_err(failed)?;
        if json.len() as u64 > MAX_LEN {
            return Err(SeccompError::TooLarge(path.to_owned()));
        }
        Self::parse(path, &json)
    }
}

/// `linux.seccomp`.
pub(super) fn build(inputs: &Inputs<'_>, granted: CapSet) -> Result<Option<oci::Seccomp>, SpecError> {
    let Some(profile) = inputs.node.seccomp.as_ref().filter(|_| !inputs.container.security.privileged) else {
        return Ok(None);
    };
    if !inputs.host.has_seccomp() {
        return Err(SpecError::unsupported("a seccomp profile", "the kernel has no seccomp filters"));
    }
    if inputs.features.seccomp == Some(false) {
        return Err(SpecError::unsupported("a seccomp profile", "the runtime was built without seccomp"));
    }
    Ok(Some(profile.resolve(inputs.host.arch, granted, inputs.host.kernel)))
}

#[cfg(test)]
mod tests;
