//! Filters, and items of lists.

use crisp_cri_proto::v1;

use super::common::string_map;
use crate::container::{Container, State};
use crate::error::{Error, Result};
use crate::model::StringMap;
use crate::node::Node;
use crate::sandbox::Sandbox;

/// What a list of sandboxes is narrowed to; all conditions must hold.
#[derive(Debug, Default)]
pub struct SandboxQuery {
    id: String,
    ready: Option<bool>,
    labels: StringMap,
    /// Pods made by the CLI, too.
    pub all: bool,
}

impl SandboxQuery {
    pub fn new(filter: Option<v1::PodSandboxFilter>, all: bool) -> Result<Self> {
        let Some(v1::PodSandboxFilter { id, state, label_selector }) = filter else {
            return Ok(Self { all, ..Self::default() });
        };
        let ready = match state.map(|v1::PodSandboxStateValue { state }| v1::PodSandboxState::try_from(state)) {
            None => None,
            Some(Ok(v1::PodSandboxState::SandboxReady)) => Some(true),
            Some(Ok(v1::PodSandboxState::SandboxNotready)) => Some(false),
            Some(Err(error)) => return Err(Error::Invalid(format!("filter.state: {error}"))),
        };
        Ok(Self { id, ready, labels: string_map(label_selector), all })
    }

    pub fn fits(&self, node: &Node, sandbox: &Sandbox) -> bool {
        let record = sandbox.record();
        sandbox.id.starts_with(&self.id)
            && (self.all || record.origin.is_empty())
            && self.ready.is_none_or(|ready| ready == sandbox.is_ready(node))
            && selects(&self.labels, &record.config.labels)
    }
}

/// What a list of containers is narrowed to; all conditions must hold.
#[derive(Debug, Default)]
pub struct ContainerQuery {
    id: String,
    state: Option<State>,
    sandbox: String,
    labels: StringMap,
    /// Containers of pods made by the CLI, too.
    pub all: bool,
}

impl ContainerQuery {
    pub fn new(filter: Option<v1::ContainerFilter>, all: bool) -> Result<Self> {
        let Some(v1::ContainerFilter { id, state, pod_sandbox_id, label_selector }) = filter else {
            return Ok(Self { all, ..Self::default() });
        };
        let state = match state.map(|v1::ContainerStateValue { state }| v1::ContainerState::try_from(state)) {
            None => None,
            Some(Ok(state)) => Some(match state {
                v1::ContainerState::ContainerCreated => State::Created,
                v1::ContainerState::ContainerRunning => State::Running,
                v1::ContainerState::ContainerExited => State::Exited,
                v1::ContainerState::ContainerUnknown => State::Unknown,
            }),
            Some(Err(error)) => return Err(Error::Invalid(format!("filter.state: {error}"))),
        };
        Ok(Self { id, state, sandbox: pod_sandbox_id, labels: string_map(label_selector), all })
    }

    pub fn fits(&self, node: &Node, container: &Container) -> bool {
        let record = container.record();
        let visible = || node.registry.sandbox(&record.sandbox_id).is_ok_and(|pod| pod.record().origin.is_empty());
        container.id.starts_with(&self.id)
            && record.sandbox_id.starts_with(&self.sandbox)
            && self.state.is_none_or(|state| state == container.state())
            && selects(&self.labels, &record.config.labels)
            && (self.all || visible())
    }
}

fn selects(selector: &StringMap, labels: &StringMap) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub fn sandbox_item(node: &Node, sandbox: &Sandbox) -> v1::PodSandbox {
    let record = sandbox.record();
    v1::PodSandbox {
        id: sandbox.id.clone(),
        metadata: Some(super::status::sandbox_metadata(&record.config.name)),
        state: super::status::sandbox_state(sandbox.is_ready(node)),
        created_at: record.created_at,
        labels: record.config.labels.clone().into_iter().collect(),
        annotations: record.config.annotations.clone().into_iter().collect(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub fn container_item(container: &Container) -> v1::Container {
    let record = container.record();
    let config = &record.config;
    v1::Container {
        id: container.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: Some(super::status::container_metadata(&config.name)),
        image: Some(super::status::image_spec(config)),
        image_ref: record.image_id.clone(),
        state: super::status::container_state(container.state()),
        created_at: record.created_at,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        image_id: record.image_id.clone(),
    }
}
