//! Our side of the socket: a CRI client with the words that cases use.

use crate::fail::{Fail, Res, wrong};
use crisp_cri_proto::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient, *};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// The namespace of all pods that this program makes, so that cleaning up meets no others.
pub(crate) const NAMESPACE: &str = "crisp-e2e";

/// A connection to a server.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    /// The runtime service as it is, for calls without a word here.
    pub(crate) rt: RuntimeServiceClient<Channel>,
    /// The image service.
    pub(crate) im: ImageServiceClient<Channel>,
}

/// What a command in a container said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cri {
    /// Connects to a Unix socket.
    pub(crate) async fn connect(path: &Path) -> Res<Self> {
        let path = path.to_owned();
        let channel = Endpoint::try_from("http://localhost")?
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move {
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(path).await?))
                }
            }))
            .await?;
        let max = 64 << 20;
        Ok(Self {
            rt: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(max)
                .max_encoding_message_size(max),
            im: ImageServiceClient::new(channel).max_decoding_message_size(max).max_encoding_message_size(max),
        })
    }

    /// The conditions of Status: type, whether it holds, reason and message.
    pub(crate) async fn conditions(&self) -> Res<Vec<(String, bool, String)>> {
        let status =
            self.rt.clone().status(StatusRequest { verbose: false }).await?.into_inner().status.unwrap_or_default();
        Ok(status.conditions.into_iter().map(|c| (c.r#type, c.status, format!("{} {}", c.reason, c.message))).collect())
    }

    pub(crate) async fn pull(&self, image: &str) -> Result<String, Status> {
        self.pull_as(image, None).await
    }

    pub(crate) async fn pull_as(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
        let request = PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
        Ok(self.im.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub(crate) async fn image(&self, image: &str) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.im.clone().image_status(request).await?.into_inner().image)
    }

    pub(crate) async fn images(&self) -> Result<Vec<Image>, Status> {
        Ok(self.im.clone().list_images(ListImagesRequest { filter: None }).await?.into_inner().images)
    }

    pub(crate) async fn remove_image(&self, image: &str) -> Result<(), Status> {
        self.im.clone().remove_image(RemoveImageRequest { image: Some(spec(image)) }).await.map(drop)
    }

    /// Pulls it unless it is there.
    pub(crate) async fn ensure(&self, image: &str) -> Res {
        if self.image(image).await?.is_none() {
            self.pull(image).await?;
        }
        Ok(())
    }

    pub(crate) async fn run_pod(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.rt.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        self.rt.clone().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        self.rt.clone().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn pod_status(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        Ok(self.rt.clone().pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default())
    }

    pub(crate) async fn pods(&self, filter: PodSandboxFilter) -> Result<Vec<PodSandbox>, Status> {
        Ok(self.rt.clone().list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner().items)
    }

    pub(crate) async fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.rt.clone().create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), Status> {
        self.rt.clone().start_container(StartContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        self.rt.clone().stop_container(StopContainerRequest { container_id: id.into(), timeout }).await.map(drop)
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        self.rt.clone().remove_container(RemoveContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub(crate) async fn status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        Ok(self.rt.clone().container_status(request).await?.into_inner().status.unwrap_or_default())
    }

    pub(crate) async fn containers(&self, filter: ContainerFilter) -> Result<Vec<Container>, Status> {
        Ok(self
            .rt
            .clone()
            .list_containers(ListContainersRequest { filter: Some(filter) })
            .await?
            .into_inner()
            .containers)
    }

    pub(crate) async fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Result<Said, Status> {
        let cmd = cmd.iter().map(|s| (*s).to_owned()).collect();
        let r =
            self.rt.clone().exec_sync(ExecSyncRequest { container_id: id.into(), cmd, timeout }).await?.into_inner();
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Ok(Said { code: r.exit_code, stdout: text(r.stdout), stderr: text(r.stderr) })
    }

    /// `sh -c script` in a container; its stdout, an error unless it exits with 0.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> Res<String> {
        let said = self.exec(id, &["sh", "-c", script], 20).await?;
        if said.code != 0 {
            return wrong(format!(
                "`{script}` in the container exits with {}: {}{}",
                said.code, said.stdout, said.stderr
            ));
        }
        Ok(said.stdout)
    }

    /// Waits until the container has ended.
    pub(crate) async fn wait_exit(&self, id: &str, secs: u64) -> Res<ContainerStatus> {
        let until = Instant::now() + Duration::from_secs(secs);
        loop {
            let status = self.status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > until {
                return wrong(format!("container {id} is {:?} after {secs} s, not exited", status.state()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops and removes all pods of ours.
    pub(crate) async fn remove_everything(&self) -> Res {
        let mut first = Ok(());
        for p in self.pods(PodSandboxFilter::default()).await? {
            if p.metadata.as_ref().is_some_and(|m| m.namespace != NAMESPACE) {
                continue;
            }
            for c in self.containers(ContainerFilter { pod_sandbox_id: p.id.clone(), ..Default::default() }).await? {
                let _ = self.stop(&c.id, 0).await;
                let _ = self.remove(&c.id).await;
            }
            let end = async {
                self.stop_pod(&p.id).await?;
                self.remove_pod(&p.id).await
            };
            if let Err(e) = end.await {
                first = first.and(Err(Fail::Wrong(format!("removing pod {}: {e}", p.id))));
            }
        }
        first
    }
}

/// An image by this name.
pub(crate) fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), user_specified_image: image.into(), ..Default::default() }
}
