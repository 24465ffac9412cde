//! A client of the server's socket.

use std::path::Path;

use crisp_cri_proto::{RuntimeServiceClient, v1};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// Connects to the server that listens on `socket`.
pub async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// Asks for the server's version.
pub async fn version(socket: &Path) -> Result<v1::VersionResponse, tonic::Status> {
    let channel = connect(socket).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let answer = RuntimeServiceClient::new(channel).version(v1::VersionRequest::default()).await?;
    Ok(answer.into_inner())
}
