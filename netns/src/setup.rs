//! What is set up inside fresh namespaces before anybody can see them: names, loopback, kernel parameters.
//!
//! The steps run on the thread that made the namespaces or, with a user namespace, in a forked child. There nothing may
//! be allocated; so all texts are prepared before, and a failed step is told by its number.

use std::ffi::CString;
use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::pin::{Error, PodNamespaces};
use crate::sys;
use crate::sysctl::{self, Scope};

/// The prepared steps, in order.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
    Loopback,
    Sysctl { name: String, path: CString, value: Vec<u8> },
}

impl Setup {
    /// The steps for a pod's namespaces; parameters of interfaces come later.
    pub(crate) fn new(namespaces: &PodNamespaces) -> Result<Self, Error> {
        let mut steps = Vec::new();
        if namespaces.uts {
            steps.extend(namespaces.hostname.as_ref().map(|name| Step::Hostname(name.clone().into_bytes())));
            steps.extend(namespaces.domainname.as_ref().map(|name| Step::Domainname(name.clone().into_bytes())));
        }
        if namespaces.net {
            steps.push(Step::Loopback);
        }
        steps.extend(sysctls(namespaces, |scope| scope != Scope::Interface)?);
        Ok(Self { steps })
    }

    /// The steps that wait for the network: parameters of its interfaces.
    pub(crate) fn of_interfaces(namespaces: &PodNamespaces) -> Result<Self, Error> {
        Ok(Self { steps: sysctls(namespaces, |scope| scope == Scope::Interface)? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Runs all steps in the calling thread's namespaces. Async-signal-safe. The error holds the failed step's number.
    pub(crate) fn run(&self) -> Result<(), (usize, Errno)> {
        for (number, step) in self.steps.iter().enumerate() {
            step.run().map_err(|errno| (number, errno))?;
        }
        Ok(())
    }

    /// The error that tells of a failed step.
    pub(crate) fn error(&self, number: usize, source: io::Error) -> Error {
        match self.steps.get(number) {
            Some(Step::Sysctl { name, value, .. }) => {
                Error::Sysctl { name: name.clone(), value: String::from_utf8_lossy(value).into_owned(), source }
            }
            Some(Step::Hostname(name)) => {
                Error::Namespace { action: "set host name", subject: String::from_utf8_lossy(name).into(), source }
            }
            Some(Step::Domainname(name)) => {
                Error::Namespace { action: "set domain name", subject: String::from_utf8_lossy(name).into(), source }
            }
            Some(Step::Loopback) | None => {
                Error::Namespace { action: "turn on interface", subject: "lo".to_owned(), source }
            }
        }
    }
}

impl Step {
    fn run(&self) -> Result<(), Errno> {
        match self {
            Self::Hostname(name) => rustix::system::sethostname(name),
            Self::Domainname(name) => rustix::system::setdomainname(name),
            Self::Loopback => {
                let socket =
                    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
                sys::loopback_up(socket)
            }
            Self::Sysctl { path, value, .. } => {
                let file = rustix::fs::open(path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                let written = rustix::io::write(&file, value)?;
                if written == value.len() { Ok(()) } else { Err(Errno::INVAL) }
            }
        }
    }
}

fn sysctls(namespaces: &PodNamespaces, wanted: impl Fn(Scope) -> bool) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for (name, value) in &namespaces.sysctls {
        let refuse = |reason| Error::SysctlRefused { name: name.clone(), reason };
        let (scope, path) = sysctl::locate(name).map_err(refuse)?;
        match scope {
            Scope::Net | Scope::Interface if !namespaces.net => return Err(refuse("the pod uses the host's network")),
            Scope::Ipc if !namespaces.ipc => return Err(refuse("the pod uses the host's IPC namespace")),
            scope if wanted(scope) => {
                steps.push(Step::Sysctl { name: name.clone(), path, value: value.clone().into_bytes() });
            }
            _ => {}
        }
    }
    Ok(steps)
}
