//! crisp-e2e-older SOCKET IMAGE LOGS CGROUP: the basic life cycle, with the k8s-cri crate as an independent client whose
//! contract is older than ours: its messages lack fields that ours has, and it must not matter.

use k8s_cri::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient, *};
use std::error::Error;
use tonic::transport::{Endpoint, Uri};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, socket, image, logs, cgroup] = args.as_slice() else { return Err("SOCKET IMAGE LOGS CGROUP".into()) };
    std::fs::create_dir_all(logs)?;
    let path = socket.clone();
    let channel = Endpoint::try_from("http://localhost")?
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(path).await?))
            }
        }))
        .await?;
    let (mut rt, mut im) = (RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel));
    let spec = ImageSpec { image: image.clone(), ..Default::default() };
    let pulled = im
        .pull_image(PullImageRequest { image: Some(spec.clone()), ..Default::default() })
        .await?
        .into_inner()
        .image_ref;
    let status = im.image_status(ImageStatusRequest { image: Some(spec.clone()), verbose: false }).await?.into_inner();
    if status.image.map(|i| i.id) != Some(pulled) {
        return Err("ImageStatus has another id than PullImage".into());
    }
    let namespaces = NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() };
    let pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "older".into(),
            uid: "older".into(),
            namespace: "crisp-e2e".into(),
            attempt: 0,
        }),
        hostname: "older".into(),
        log_directory: logs.clone(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.clone(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let id = rt
        .run_pod_sandbox(RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() })
        .await?
        .into_inner()
        .pod_sandbox_id;
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(spec),
        command: vec!["sh".into(), "-c".into(), "echo $GREETING; sleep 3600".into()],
        envs: vec![KeyValue { key: "GREETING".into(), value: "hello".into() }],
        log_path: "c.log".into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let create = CreateContainerRequest { pod_sandbox_id: id.clone(), config: Some(config), sandbox_config: Some(pod) };
    let container_id = rt.create_container(create).await?.into_inner().container_id;
    rt.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
    let said = rt
        .exec_sync(ExecSyncRequest { container_id: container_id.clone(), cmd: vec!["hostname".into()], timeout: 10 })
        .await?
        .into_inner();
    if said.stdout != b"older\n" {
        return Err(format!("hostname says {:?}", String::from_utf8_lossy(&said.stdout)).into());
    }
    rt.stop_container(StopContainerRequest { container_id: container_id.clone(), timeout: 0 }).await?;
    let status = rt
        .container_status(ContainerStatusRequest { container_id: container_id.clone(), verbose: false })
        .await?
        .into_inner()
        .status;
    if status.map(|s| s.exit_code) != Some(137) {
        return Err("exit code is not 137 after a kill".into());
    }
    if !std::fs::read_to_string(format!("{logs}/c.log"))?.ends_with(" stdout F hello\n") {
        return Err("the log lacks the greeting".into());
    }
    rt.remove_container(RemoveContainerRequest { container_id }).await?;
    rt.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
    rt.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    Ok(())
}
