//! `crisp serve`: open, recover, listen, and leave in good order.
//!
//! On SIGTERM and SIGINT the server ends; pods, monitors, namespaces and networks stay. SIGHUP is no request to end.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crisp_cri_proto::{ImageServiceServer, MESSAGE_LIMIT, RuntimeServiceServer};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::Config;
use crate::cri::{Images, Runtime};
use crate::error::{Error, Result};
use crate::node::{Node, Place};
use crate::recover;

/// How long requests may go on after the signal to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until a signal ends it.
pub async fn serve(place: Place, config: Config, listen: Option<PathBuf>) -> Result<()> {
    let node = tokio::task::spawn_blocking(move || Node::open(&place, config));
    let node = node.await.map_err(|error| Error::Internal(error.to_string()))??;
    recover::recover(&node).await?;
    let socket = listen.unwrap_or_else(|| node.paths.socket());
    let listener = bind(&socket).await?;
    tracing::info!(socket = %socket.display(), instance = node.instance, "serving");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::spawn(watchdog(socket.clone()));
    let (end, ended) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        wait_for_end().await;
        let _ = end.send(true);
    });
    let shutdown = |mut ended: tokio::sync::watch::Receiver<bool>| async move {
        let _ = ended.wait_for(|now| *now).await;
    };
    let server = Server::builder()
        .add_service(limits(RuntimeServiceServer::new(Runtime(Arc::clone(&node)))))
        .add_service(image_limits(ImageServiceServer::new(Images(Arc::clone(&node)))))
        .add_service(crate::api::service(&node))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown(ended.clone()));
    let over = async {
        shutdown(ended).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| Error::Internal(format!("serve on {}: {error}", socket.display())))?,
        () = over => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    node.store.flush().await;
    if node.registry.sandboxes().is_empty() {
        // Only here: between pods it would go while a runtime is making the next one's below it.
        crate::cgroup::remove_if_empty(&node.host.cgroups, &format!("/{}", node.instance))?;
    }
    tracing::info!("ended; pods go on");
    Ok(())
}

fn limits<T: crisp_cri_proto::RuntimeService>(service: RuntimeServiceServer<T>) -> RuntimeServiceServer<T> {
    service.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
}

fn image_limits<T: crisp_cri_proto::ImageService>(service: ImageServiceServer<T>) -> ImageServiceServer<T> {
    service.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
}

/// Takes the place of a socket that nobody listens on; mode 0660.
async fn bind(path: &Path) -> Result<UnixListener> {
    if !path.is_absolute() {
        return Err(Error::Invalid(format!("the socket's path {:?} is not absolute", path.display())));
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("make directory", dir))?;
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(Error::Invalid(format!("{} is there and is no socket", path.display())));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(Error::Precondition(format!("another server listens on {}: give --listen", path.display())));
        }
        std::fs::remove_file(path).map_err(Error::io("remove the old socket", path))?;
    }
    let listener = UnixListener::bind(path).map_err(Error::io("listen on", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(Error::io("set the mode of", path))?;
    Ok(listener)
}

async fn wait_for_end() {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => return,
            _ = hup.recv() => tracing::info!("SIGHUP: registries and CNI are read anew at each use; other settings need a restart"),
        }
    }
}

/// Tells systemd that requests are still answered: a connection of our own through the socket, as a client makes one.
async fn watchdog(socket: PathBuf) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::time::sleep(limit / 3).await;
        if crate::cli::client::version(&socket).await.is_ok() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}
