//! The service: each method takes a request apart, calls one function, puts an answer together.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use super::v1::crisp_server::{Crisp, CrispServer};
use super::{pull, untag, v1};
use crate::container::State;
use crate::node::{Node, blocking};

/// The service over a node, ready to be served.
pub fn service(node: &Arc<Node>) -> CrispServer<Service> {
    CrispServer::new(Service { node: Arc::clone(node), since: Instant::now() })
}

/// The service.
#[derive(Debug)]
pub struct Service {
    node: Arc<Node>,
    since: Instant,
}

#[tonic::async_trait]
impl Crisp for Service {
    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        let v1::InfoRequest {} = request.into_inner();
        let paths = &self.node.paths;
        Ok(Response::new(v1::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.node.instance.clone(),
            root: paths.root().to_string_lossy().into_owned(),
            state: paths.state().to_string_lossy().into_owned(),
            logs: paths.logs().to_string_lossy().into_owned(),
            pid: std::process::id(),
            uptime: self.since.elapsed().as_secs(),
            counts: Some(counts(&self.node)),
        }))
    }

    type PullStream = pull::Events;

    async fn pull(&self, request: Request<v1::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = pull::request(request.into_inner())?;
        Ok(Response::new(pull::pull(&self.node, request)))
    }

    async fn untag(&self, request: Request<v1::UntagRequest>) -> Result<Response<v1::UntagResponse>, Status> {
        let v1::UntagRequest { image, force } = request.into_inner();
        let node = Arc::clone(&self.node);
        let gone = blocking(move || untag::untag(&node, &image, force)).await?;
        let untag::Gone { untagged, removed } = gone;
        Ok(Response::new(v1::UntagResponse { untagged, removed: removed.unwrap_or_default() }))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::WaitResponse>, Status> {
        let v1::WaitRequest { container_id } = request.into_inner();
        self.node.registry.container(&container_id)?.ended().await;
        Ok(Response::new(v1::WaitResponse {}))
    }
}

fn counts(node: &Node) -> v1::Counts {
    let (pods, containers, images) = (node.registry.sandboxes(), node.registry.containers(), node.store.images());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    v1::Counts {
        pods: count(pods.len()),
        pods_ready: count(pods.iter().filter(|pod| pod.is_ready(node)).count()),
        containers: count(containers.len()),
        containers_running: count(containers.iter().filter(|one| one.state() == State::Running).count()),
        images: count(images.len()),
        image_bytes: node.store.usage().0.bytes,
    }
}
