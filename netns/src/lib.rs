//! What a pod is made of besides its containers: namespaces that outlive every process, and its network.
//!
//! ```text
//!           shim (the server)
//!             │  Pins::create / remove          Network::attach / detach / check / status / gc
//!             ▼                                   ▼
//!   pin ── private (one mount namespace)     network ── mode: CNI, or the built-in network
//!    │  ├─ userns (made in a child process)     ├─ cni/      conflists, plugins, results, journal
//!    │  └─ setup  (lo, hostname, sysctls)       └─ builtin/  routed veth pairs, pool, nftables
//!    └─ enter (a thread of its own inside a network namespace)
//! ```
//!
//! The package is synchronous: it is called from threads that may block. It knows neither the CRI, nor images, nor the
//! server. Every name it gives to something in the kernel or on disk derives from the instance and the pod's id, so that
//! whatever is left after a crash can be attributed and removed.

pub mod builtin;
pub mod cni;
pub mod enter;
pub mod network;
pub mod pin;
pub mod subnet;

mod durable;
mod netdir;
mod private;
mod setup;
mod sys;
mod sysctl;
mod userns;

pub use network::{
    Attachment, Bandwidth, Dns, Error, Kind, Mode, Network, NetworkOptions, Pod, PortMapping, Protocol, Status,
};
pub use pin::{IdMapping, Pins, PodNamespaces, UserMapping};
pub use subnet::Subnet;
