//! The Kubernetes Container Runtime Interface, v1 at contract v0.37: what kubelet and crictl say to a runtime.
//!
//! ```text
//! proto/api.tsv     the contract as a table: every rpc, field and enum value, its number and type
//! proto/api.proto   the same as a .proto in our own words: unit, meaning, zero, gRPC codes
//! build.rs          protox compiles it (no protoc), tonic-prost-build generates Rust
//! src/lib.rs        [`v1`]: all of it, re-exported; nothing else is public
//! src/redact.rs     the Debug of AuthConfig, without secrets
//! tests/contract.rs holds the .proto against the table both ways, and every element to a comment
//! ```
//!
//! Servers implement [`RuntimeService`] and [`ImageService`] and wrap them in [`RuntimeServiceServer`] and
//! [`ImageServiceServer`]; clients use [`RuntimeServiceClient`] and [`ImageServiceClient`]. Rust names differ from the
//! contract's where Rust asks for it: `CDI_devices` is `cdi_devices`, `SANDBOX_READY` is
//! [`PodSandboxState::SandboxReady`](v1::PodSandboxState::SandboxReady), `type` is `r#type`. Enum fields are `i32`, since
//! proto3 keeps unknown numbers: read them with `TryFrom` (or with the getter, which maps unknown to zero), so that a
//! value from a newer client is refused instead of taken for another.
//!
//! [`MESSAGE_LIMIT`] is the message size that Kubernetes' own client allows; tonic's default of 4 MiB is too small for it.

mod redact;

/// Messages, enums, clients and servers of the protobuf package `runtime.v1`.
#[allow(missing_docs, reason = "tonic leaves the generated service modules' items bare")]
#[allow(clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

pub use v1::image_service_client::ImageServiceClient;
pub use v1::image_service_server::{ImageService, ImageServiceServer};
pub use v1::runtime_service_client::RuntimeServiceClient;
pub use v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// Bytes of the largest gRPC message, either way: 16 MiB, the limit of Kubernetes' CRI client. Set it with
/// `max_decoding_message_size` and `max_encoding_message_size` on each client and server.
pub const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;
