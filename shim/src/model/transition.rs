//! Which verb is legal in which state: pure, no I/O.
//!
//! ```text
//!             create            start            exit
//!   (nothing) ──────► CREATED ──────► RUNNING ──────► EXITED ──remove──► (nothing)
//!                        │               │               ▲
//!                        └──runtime lost─┴──► UNKNOWN ───┘ (stop)
//! ```
