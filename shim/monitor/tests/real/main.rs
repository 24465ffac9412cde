//! Whole lives of containers, with the static monitor as it is shipped and the real runtimes. As root.

#![allow(clippy::unwrap_used)]

#[path = "../../static_build.rs"]
mod static_build;

mod budget;
mod common;
mod exec;
mod life;
mod mounts;
mod pause;
mod trouble;
