//! What the server knows: records (facts, on disk) and the states that follow from them.
//!
//! ```text
//! <root>/sandboxes/<id>/record.json      SandboxRecord    immutable but for its network result and stop time
//! <root>/containers/<id>/record.json     ContainerRecord  immutable but for its process and start time
//! <root>/containers/<id>/exit.json       ExitRecord       written by the monitor
//! ```
//!
//! Nothing here knows CRI types: `crate::cri::convert` makes these from requests and answers from them.

mod common;
mod container;
mod sandbox;

pub use common::*;
pub use container::*;
pub use sandbox::*;
