//! The Kubernetes Container Runtime Interface, v1 at contract v0.37.

/// Messages, enums, clients and servers of the protobuf package `runtime.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
