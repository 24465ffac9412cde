//! Between CRI messages and the server's own types, both ways.
//!
//! Messages that come in are taken apart completely, without `..`: a field that a newer contract adds does not build until
//! somebody has decided about it. What is not served is refused by name, never ignored.

mod common;
mod container;
mod image;
mod list;
mod sandbox;
mod status;
#[cfg(test)]
mod tests;

pub use container::container_config;
pub use image::{credentials, fs_usage, image, image_name};
pub use list::{ContainerQuery, SandboxQuery, container_item, sandbox_item};
pub use sandbox::sandbox_config;
pub use status::{container_status, sandbox_status, spec_info};
