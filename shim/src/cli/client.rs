//! The way to the server: its three services over one connection to its socket.

use std::io;
use std::path::{Path, PathBuf};

use crisp_cri_proto::{ImageServiceClient, MESSAGE_LIMIT, RuntimeServiceClient, v1};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::args::DEFAULT_ENDPOINT;
use super::error::{CliError, Result};
use crate::api;
use crate::api::v1::crisp_client::CrispClient;

/// Clients of the three services.
#[derive(Debug, Clone)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub crisp: CrispClient<Channel>,
}

impl Client {
    /// Connects to `unix:///PATH` or a path.
    pub async fn connect(endpoint: &str) -> Result<Self> {
        // An empty variable is one that is not set.
        let endpoint = if endpoint.is_empty() { DEFAULT_ENDPOINT } else { endpoint };
        let socket = socket(endpoint)?;
        // A connection of its own first: its error says why, where gRPC's would only say that.
        UnixStream::connect(&socket).await.map_err(|error| no_server(endpoint, &socket, &error))?;
        let channel = channel(&socket);
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            crisp: CrispClient::new(channel),
        })
    }
}

/// A request for a list that is to hold the CLI's own pods, too.
pub fn all<T>(message: T) -> Request<T> {
    with_header(message, api::ALL_HEADER, "true")
}

/// A request for a pod that is the CLI's.
pub fn of_cli<T>(message: T) -> Request<T> {
    with_header(message, api::ORIGIN_HEADER, api::ORIGIN)
}

fn with_header<T>(message: T, key: &'static str, value: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(key, tonic::metadata::MetadataValue::from_static(value));
    request
}

/// Asks the server that listens on `socket` for its version.
pub async fn version(socket: &Path) -> std::result::Result<v1::VersionResponse, tonic::Status> {
    let answer = RuntimeServiceClient::new(channel(socket)).version(v1::VersionRequest::default()).await?;
    Ok(answer.into_inner())
}

/// Connects with the first request, and again after the server was restarted.
fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

fn socket(endpoint: &str) -> Result<PathBuf> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') && path.len() > 1 {
        return Ok(path.into());
    }
    let error = CliError::new(format!("{endpoint:?} is no endpoint of a crisp server"));
    Err(error.hint(format!("give the path of its socket, like {DEFAULT_ENDPOINT}")))
}

fn no_server(endpoint: &str, socket: &Path, error: &io::Error) -> CliError {
    let at = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => CliError::new(format!("no permission to talk to the crisp server at {at}"))
            .hint("the socket is for root and its group: try again with sudo"),
        kind => {
            let why = match kind {
                io::ErrorKind::NotFound => "there is no such socket".to_owned(),
                io::ErrorKind::ConnectionRefused => "nobody listens on this socket".to_owned(),
                _ => error.to_string(),
            };
            let start = if endpoint == DEFAULT_ENDPOINT {
                "start one with \"sudo crisp serve\", or as a service with \"sudo systemctl start crisp\"".to_owned()
            } else {
                format!("start one with \"sudo crisp serve --listen unix://{at}\"")
            };
            CliError::new(format!("no crisp server at {at}: {why}")).hint(start)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_path_with_or_without_scheme() {
        assert_eq!(socket("unix:///run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert_eq!(socket("/run/x.sock").unwrap(), Path::new("/run/x.sock"));
        for text in ["", "/", "unix://", "unix://run/x", "tcp://127.0.0.1:1", "http://x"] {
            assert!(socket(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn without_a_server_the_way_out_is_told() {
        let error = Client::connect("unix:///nowhere/crisp.sock").await.unwrap_err();
        assert_eq!(error.code, 1);
        assert!(error.message.contains("/nowhere/crisp.sock"), "{error}");
        assert!(error.hint.unwrap().contains("crisp serve --listen unix:///nowhere/crisp.sock"));
        let denied = no_server(DEFAULT_ENDPOINT, Path::new("/run/x"), &io::ErrorKind::PermissionDenied.into());
        assert!(denied.hint.unwrap().contains("sudo"));
        let none = no_server(DEFAULT_ENDPOINT, Path::new("/run/x"), &io::ErrorKind::ConnectionRefused.into());
        assert!(none.hint.unwrap().contains("systemctl start crisp"));
    }
}
