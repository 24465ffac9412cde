//! RuntimeService.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crisp_cri_proto::{RuntimeService, v1};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::convert::{self, ContainerQuery, SandboxQuery};
use super::info;
use super::stream::{Pieces, fits, pieces};
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::ops::{
    create_container, exec_sync, remove_container, remove_pod_sandbox, reopen_log, run_pod_sandbox, start_container,
    stop_container, stop_pod_sandbox,
};
use crate::{api, sys};

/// The service.
#[derive(Debug, Clone)]
pub struct Runtime(pub Arc<Node>);

/// Name in `Version`.
const NAME: &str = "crisp";

fn unimplemented<T>(rpc: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{rpc} is not served by this version of crisp")))
}

/// What all who joined a job share.
fn status(error: Arc<Error>) -> Status {
    Status::from(&*error)
}

impl Runtime {
    fn sandboxes(
        &self,
        filter: Option<v1::PodSandboxFilter>,
        metadata: &MetadataMap,
    ) -> Result<Vec<v1::PodSandbox>, Status> {
        let query = SandboxQuery::new(filter, api::wants_all(metadata))?;
        let all = self.0.registry.sandboxes();
        let fitting = all.iter().filter(|sandbox| query.fits(&self.0, sandbox));
        Ok(fitting.map(|sandbox| convert::sandbox_item(&self.0, sandbox)).collect())
    }

    fn containers(
        &self,
        filter: Option<v1::ContainerFilter>,
        metadata: &MetadataMap,
    ) -> Result<Vec<v1::Container>, Status> {
        let query = ContainerQuery::new(filter, api::wants_all(metadata))?;
        let all = self.0.registry.containers();
        let fitting = all.iter().filter(|container| query.fits(&self.0, container));
        Ok(fitting.map(|container| convert::container_item(container)).collect())
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, request: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        let v1::VersionRequest { version: _ } = request.into_inner();
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let origin = api::origin(request.metadata());
        let v1::RunPodSandboxRequest { config, runtime_handler } = request.into_inner();
        let config = convert::sandbox_config(config, &self.0.host)?;
        let request = run_pod_sandbox::Request { config, runtime_handler, origin };
        let pod_sandbox_id = run_pod_sandbox::run(&self.0, request).await.map_err(status)?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        let v1::StopPodSandboxRequest { pod_sandbox_id } = request.into_inner();
        stop_pod_sandbox::stop(&self.0, &pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(Default::default()))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        let v1::RemovePodSandboxRequest { pod_sandbox_id } = request.into_inner();
        remove_pod_sandbox::remove(&self.0, &pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(Default::default()))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let v1::PodSandboxStatusRequest { pod_sandbox_id, verbose } = request.into_inner();
        let sandbox = self.0.registry.sandbox(&pod_sandbox_id)?;
        let containers = self.0.registry.containers_of(&sandbox.id);
        let info = if verbose { convert::spec_info(&info::sandbox(&self.0, &sandbox)) } else { HashMap::new() };
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(&self.0, &sandbox)),
            info,
            containers_statuses: containers.iter().map(|one| convert::container_status(&self.0, one)).collect(),
            timestamp: sys::now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let (metadata, _, v1::ListPodSandboxRequest { filter }) = request.into_parts();
        fits(v1::ListPodSandboxResponse { items: self.sandboxes(filter, &metadata)? }, "StreamPodSandboxes")
    }

    type StreamPodSandboxesStream = Pieces<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let (metadata, _, v1::StreamPodSandboxesRequest { filter }) = request.into_parts();
        let items = self.sandboxes(filter, &metadata)?;
        Ok(pieces(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        // The sandbox's own record says what the sandbox is; kubelet's second copy adds nothing to it.
        let v1::CreateContainerRequest { pod_sandbox_id, config, sandbox_config: _ } = request.into_inner();
        let config = convert::container_config(config, &self.0.host)?;
        let request = create_container::Request { sandbox: pod_sandbox_id, config };
        let container_id = create_container::create(&self.0, request).await.map_err(status)?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let v1::StartContainerRequest { container_id } = request.into_inner();
        start_container::start(&self.0, &container_id).await.map_err(status)?;
        Ok(Response::new(Default::default()))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let v1::StopContainerRequest { container_id, timeout } = request.into_inner();
        let timeout = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        stop_container::stop(&self.0, &container_id, timeout).await.map_err(status)?;
        Ok(Response::new(Default::default()))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        let v1::RemoveContainerRequest { container_id } = request.into_inner();
        remove_container::remove(&self.0, &container_id).await.map_err(status)?;
        Ok(Response::new(Default::default()))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let (metadata, _, v1::ListContainersRequest { filter }) = request.into_parts();
        fits(v1::ListContainersResponse { containers: self.containers(filter, &metadata)? }, "StreamContainers")
    }

    type StreamContainersStream = Pieces<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let (metadata, _, v1::StreamContainersRequest { filter }) = request.into_parts();
        let items = self.containers(filter, &metadata)?;
        Ok(pieces(items, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let v1::ContainerStatusRequest { container_id, verbose } = request.into_inner();
        let container = self.0.registry.container(&container_id)?;
        let info = if verbose { convert::spec_info(&info::container(&self.0, &container)) } else { HashMap::new() };
        let status = Some(convert::container_status(&self.0, &container));
        Ok(Response::new(v1::ContainerStatusResponse { status, info }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        let v1::ReopenContainerLogRequest { container_id } = request.into_inner();
        reopen_log::reopen(&self.0, &container_id).await?;
        Ok(Response::new(Default::default()))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let v1::ExecSyncRequest { container_id, cmd, timeout } = request.into_inner();
        let timeout = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        let exec_sync::Output { stdout, stderr, exit_code } =
            exec_sync::exec_sync(&self.0, &container_id, cmd, timeout).await?;
        Ok(Response::new(v1::ExecSyncResponse { stdout, stderr, exit_code }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let v1::StatusRequest { verbose } = request.into_inner();
        let node = Arc::clone(&self.0);
        let (network, info) = blocking(move || {
            let info = if verbose { convert::spec_info(&info::node(&node)) } else { HashMap::new() };
            Ok((node.network.status(), info))
        })
        .await?;
        let condition = |kind: &str, status, reason: String, message: String| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason,
            message,
        };
        let runtime = match self.0.runtimes.get("") {
            Ok(_) => condition("RuntimeReady", true, String::new(), String::new()),
            Err(error) => condition("RuntimeReady", false, "RuntimeMissing".to_owned(), error.chain()),
        };
        let network = condition("NetworkReady", network.ready, network.reason, network.message);
        let handler = |name: &str, runtime: &crate::runtimes::Runtime| v1::RuntimeHandler {
            name: name.to_owned(),
            features: Some(v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: runtime.features.recursive_read_only() && self.0.host.has_mount_setattr(),
                user_namespaces: runtime.features.idmap && self.0.host.has_idmapped_overlay(),
            }),
        };
        // The empty name stands for the default handler.
        let default = self.0.runtimes.get("").ok().map(|runtime| handler("", runtime));
        let all = self.0.runtimes.usable().map(|runtime| handler(&runtime.name, runtime));
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: vec![runtime, network] }),
            info,
            runtime_handlers: default.into_iter().chain(all).collect(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: false,
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    /// Kubelet tells the node's pod CIDRs, comma-separated; CNI plugins with `ipRanges` get them.
    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        let v1::UpdateRuntimeConfigRequest { runtime_config } = request.into_inner();
        let network = runtime_config.and_then(|v1::RuntimeConfig { network_config }| network_config);
        let cidrs = network.map(|v1::NetworkConfig { pod_cidr }| pod_cidr).unwrap_or_default();
        if cidrs.is_empty() {
            return Ok(Response::new(Default::default()));
        }
        let subnets: Result<Vec<crisp_netns::Subnet>, _> = cidrs.split(',').map(|cidr| cidr.trim().parse()).collect();
        let subnets = subnets.map_err(|error| Error::Invalid(format!("network_config.pod_cidr: {error}")))?;
        let node = Arc::clone(&self.0);
        let set = move || {
            let set = node.network.set_pod_cidrs(&subnets);
            set.map_err(|source| Error::Network { of: "all pod sandboxes".to_owned(), source })
        };
        blocking(set).await?;
        Ok(Response::new(Default::default()))
    }

    async fn update_container_resources(
        &self,
        _: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        unimplemented("UpdateContainerResources")
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        unimplemented("UpdatePodSandboxResources")
    }

    async fn exec(&self, _: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        unimplemented("Exec")
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        unimplemented("Attach")
    }

    async fn port_forward(
        &self,
        _: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        unimplemented("PortForward")
    }

    async fn container_stats(
        &self,
        _: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        unimplemented("ContainerStats")
    }

    async fn list_container_stats(
        &self,
        _: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        unimplemented("ListContainerStats")
    }

    type StreamContainerStatsStream = Pieces<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        unimplemented("StreamContainerStats")
    }

    async fn pod_sandbox_stats(
        &self,
        _: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        unimplemented("PodSandboxStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        unimplemented("ListPodSandboxStats")
    }

    type StreamPodSandboxStatsStream = Pieces<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        unimplemented("StreamPodSandboxStats")
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        unimplemented("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        unimplemented("CheckpointPod")
    }

    async fn restore_pod(&self, _: Request<v1::RestorePodRequest>) -> Result<Response<v1::RestorePodResponse>, Status> {
        unimplemented("RestorePod")
    }

    type GetContainerEventsStream = Pieces<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        unimplemented("GetContainerEvents")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        unimplemented("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        unimplemented("ListPodSandboxMetrics")
    }

    type StreamPodSandboxMetricsStream = Pieces<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        unimplemented("StreamPodSandboxMetrics")
    }
}
