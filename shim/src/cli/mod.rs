//! The user's verbs.

pub mod client;
