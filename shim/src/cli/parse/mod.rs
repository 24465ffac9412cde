//! Readers of what people type as values: pure, each with the sentence that helps when it cannot be read.

pub mod env;
pub mod port;
pub mod quantity;
pub mod time;
pub mod volume;
