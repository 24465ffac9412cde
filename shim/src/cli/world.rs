//! All pods and containers, and which of them a person means.
//!
//! A text is tried as, in this order: a whole id; the name of a pod that `crisp run` made; a name with its namespace
//! (`namespace/pod`, `namespace/pod/container`, `pod/container`); a pod's or a container's bare name; the beginning of an
//! id. The first of these that fits anything decides. Kubernetes makes a new pod or container of the same name when one
//! ended: of these the running one is meant, else the newest.

use std::collections::{BTreeMap, HashMap};

use crisp_cri_proto::v1;

use super::client::{self, Client};
use super::error::{CliError, Result};
use super::output::short;

/// Namespace of pods that `crisp run` makes.
pub const NAMESPACE: &str = "crisp";
/// Label of such pods, with their origin.
pub const ORIGIN_LABEL: &str = "io.crisp.origin";
/// Annotation of such pods and their containers: the host ports, for people.
pub const PORTS: &str = "io.crisp.ports";
/// Annotation of such containers: the command as it was given, for people.
pub const COMMAND: &str = "io.crisp.command";

/// What there is.
#[derive(Debug, Default)]
pub struct World {
    pub pods: Vec<v1::PodSandbox>,
    pub containers: Vec<v1::Container>,
}

/// A way in which a text may name a thing.
type Tier = fn(&World, Thing<'_>, &str) -> bool;

/// What a text names.
#[derive(Debug, Clone, Copy)]
pub enum Thing<'a> {
    Pod(&'a v1::PodSandbox),
    Container(&'a v1::Container),
}

/// Asks for all, also for pods of the CLI; newest first.
pub async fn fetch(client: &mut Client) -> Result<World> {
    let mut world = World::default();
    let request = client::all(v1::StreamPodSandboxesRequest::default());
    let mut pods = client.runtime.stream_pod_sandboxes(request).await?.into_inner();
    while let Some(part) = pods.message().await? {
        world.pods.extend(part.pod_sandboxes);
    }
    let request = client::all(v1::StreamContainersRequest::default());
    let mut containers = client.runtime.stream_containers(request).await?.into_inner();
    while let Some(part) = containers.message().await? {
        world.containers.extend(part.containers);
    }
    world.pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    world.containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    Ok(world)
}

pub fn pod_name(pod: &v1::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

pub fn pod_namespace(pod: &v1::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.namespace)
}

pub fn container_name(container: &v1::Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// Whether `crisp run` made the pod.
pub fn is_cli(labels: &HashMap<String, String>) -> bool {
    labels.get(ORIGIN_LABEL).is_some_and(|origin| origin == crate::api::ORIGIN)
}

/// How the pod is called: its name if it is the CLI's, else with its namespace.
pub fn full_name(pod: &v1::PodSandbox) -> String {
    if is_cli(&pod.labels) { pod_name(pod).to_owned() } else { format!("{}/{}", pod_namespace(pod), pod_name(pod)) }
}

pub fn is_ready(pod: &v1::PodSandbox) -> bool {
    pod.state == i32::from(v1::PodSandboxState::SandboxReady)
}

pub fn is_running(container: &v1::Container) -> bool {
    container.state == i32::from(v1::ContainerState::ContainerRunning)
}

impl World {
    /// The pod of a container.
    pub fn pod_of(&self, container: &v1::Container) -> Option<&v1::PodSandbox> {
        self.pods.iter().find(|pod| pod.id == container.pod_sandbox_id)
    }

    /// The containers of a pod.
    pub fn containers_of<'a>(&'a self, pod: &'a v1::PodSandbox) -> impl Iterator<Item = &'a v1::Container> {
        self.containers.iter().filter(|container| container.pod_sandbox_id == pod.id)
    }

    /// How the container is called.
    pub fn name_of(&self, container: &v1::Container) -> String {
        match self.pod_of(container) {
            Some(pod) if is_cli(&pod.labels) && pod_name(pod) == container_name(container) => pod_name(pod).to_owned(),
            Some(pod) => format!("{}/{}", full_name(pod), container_name(container)),
            None => container_name(container).to_owned(),
        }
    }

    /// The pod or container that is meant.
    pub fn find(&self, given: &str) -> Result<Thing<'_>> {
        match self.maybe(given)? {
            Some(thing) => Ok(thing),
            None => Err(CliError::new(format!("no pod or container is called {given:?}, or has an id that begins so"))
                .hint("\"crisp ps --all\" and \"crisp pods\" show what there is")),
        }
    }

    /// As [`World::find`], but nothing is no error.
    pub fn maybe(&self, given: &str) -> Result<Option<Thing<'_>>> {
        let names: [Tier; 4] = [Self::whole_id, Self::cli_name, Self::path, Self::bare_name];
        let tiers = names.into_iter().map(|tier| (tier, true)).chain([(Self::prefix as Tier, false)]);
        for (tier, by_name) in tiers {
            let fits: Vec<Thing<'_>> = self.things().filter(|thing| tier(self, *thing, given)).collect();
            let fits = if by_name { self.current(fits) } else { fits };
            match fits[..] {
                [] => {}
                [one] => return Ok(Some(one)),
                _ => return Err(self.ambiguous(given, &fits)),
            }
        }
        Ok(None)
    }

    /// The container that is meant, by its own name or by that of a pod that has no other.
    pub fn container(&self, given: &str) -> Result<&v1::Container> {
        let pod = match self.find(given)? {
            Thing::Container(container) => return Ok(container),
            Thing::Pod(pod) => pod,
        };
        let all = self.current(self.containers_of(pod).map(Thing::Container).collect());
        match all[..] {
            [Thing::Container(one)] => Ok(one),
            [] => Err(CliError::new(format!("pod {} has no container", full_name(pod)))),
            _ => {
                let names: Vec<String> = all.iter().map(|thing| self.called(*thing)).collect();
                let error = CliError::new(format!("pod {} has {} containers", full_name(pod), names.len()));
                Err(error.hint(format!("name one of {}", names.join(", "))))
            }
        }
    }

    fn things(&self) -> impl Iterator<Item = Thing<'_>> {
        self.pods.iter().map(Thing::Pod).chain(self.containers.iter().map(Thing::Container))
    }

    fn whole_id(&self, thing: Thing<'_>, given: &str) -> bool {
        id(thing) == given
    }

    fn cli_name(&self, thing: Thing<'_>, given: &str) -> bool {
        matches!(thing, Thing::Pod(pod) if is_cli(&pod.labels) && pod_name(pod) == given)
    }

    fn path(&self, thing: Thing<'_>, given: &str) -> bool {
        match thing {
            Thing::Pod(pod) => format!("{}/{}", pod_namespace(pod), pod_name(pod)) == given,
            Thing::Container(container) => self.pod_of(container).is_some_and(|pod| {
                let short = format!("{}/{}", pod_name(pod), container_name(container));
                short == given || format!("{}/{short}", pod_namespace(pod)) == given
            }),
        }
    }

    fn bare_name(&self, thing: Thing<'_>, given: &str) -> bool {
        match thing {
            Thing::Pod(pod) => pod_name(pod) == given,
            Thing::Container(container) => container_name(container) == given,
        }
    }

    fn prefix(&self, thing: Thing<'_>, given: &str) -> bool {
        !given.is_empty() && id(thing).starts_with(given)
    }

    /// Of those with one name the one that runs, else the newest.
    fn current<'a>(&'a self, things: Vec<Thing<'a>>) -> Vec<Thing<'a>> {
        let mut best: BTreeMap<(bool, String), Thing<'a>> = BTreeMap::new();
        for thing in things {
            let key = (matches!(thing, Thing::Pod(_)), self.called(thing));
            let rank = |thing: Thing<'_>| match thing {
                Thing::Pod(pod) => (is_ready(pod), pod.created_at),
                Thing::Container(container) => (is_running(container), container.created_at),
            };
            match best.get(&key) {
                Some(there) if rank(*there) >= rank(thing) => {}
                _ => {
                    best.insert(key, thing);
                }
            }
        }
        best.into_values().collect()
    }

    fn called(&self, thing: Thing<'_>) -> String {
        match thing {
            Thing::Pod(pod) => full_name(pod),
            Thing::Container(container) => self.name_of(container),
        }
    }

    fn ambiguous(&self, given: &str, things: &[Thing<'_>]) -> CliError {
        let show = |thing: &Thing<'_>| {
            let kind = if matches!(thing, Thing::Pod(_)) { "pod" } else { "container" };
            format!("{kind} {} ({})", self.called(*thing), short(id(*thing)))
        };
        let shown: Vec<String> = things.iter().take(5).map(show).collect();
        let more = if things.len() > 5 { ", …" } else { "" };
        CliError::new(format!("{given:?} may be {}{more}", shown.join(", ")))
            .hint("give more of the id, or the whole name")
    }
}

fn id(thing: Thing<'_>) -> &str {
    match thing {
        Thing::Pod(pod) => &pod.id,
        Thing::Container(container) => &container.id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, namespace: &str, name: &str, ready: bool, created_at: i64) -> v1::PodSandbox {
        let origin = if namespace == NAMESPACE { vec![(ORIGIN_LABEL.to_owned(), "cli".to_owned())] } else { vec![] };
        v1::PodSandbox {
            id: id.into(),
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..Default::default()
            }),
            state: i32::from(!ready),
            created_at,
            labels: origin.into_iter().collect(),
            ..Default::default()
        }
    }

    fn container(id: &str, pod: &str, name: &str, running: bool, created_at: i64) -> v1::Container {
        let state = if running { v1::ContainerState::ContainerRunning } else { v1::ContainerState::ContainerExited };
        v1::Container {
            id: id.into(),
            pod_sandbox_id: pod.into(),
            metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
            state: state.into(),
            created_at,
            ..Default::default()
        }
    }

    fn world() -> World {
        World {
            pods: vec![
                pod("a1", "crisp", "web", true, 1),
                pod("b1", "default", "web", true, 2),
                pod("b2", "kube-system", "dns", false, 3),
                pod("b3", "kube-system", "dns", true, 2),
                pod("c1", "default", "two", true, 4),
            ],
            containers: vec![
                container("d1", "a1", "web", true, 1),
                container("d2", "b1", "nginx", true, 1),
                container("d3", "b3", "coredns", false, 1),
                container("d4", "b3", "coredns", false, 2),
                container("d5", "c1", "one", true, 1),
                container("e5", "c1", "other", true, 1),
            ],
        }
    }

    fn found(given: &str) -> String {
        match world().find(given) {
            Ok(thing) => id(thing).to_owned(),
            Err(error) => error.message,
        }
    }

    #[test]
    fn names_come_before_ids_and_the_clis_own_pods_first() {
        let cases = [
            ("a1", "a1"),
            ("web", "a1"),
            ("default/web", "b1"),
            ("default/web/nginx", "d2"),
            ("web/nginx", "d2"),
            ("nginx", "d2"),
            ("a", "a1"),
            ("e", "e5"),
            // The ready one, though another is newer; of those that ended the newest.
            ("dns", "b3"),
            ("coredns", "d4"),
        ];
        for (given, id) in cases {
            assert_eq!(found(given), id, "{given}");
        }
    }

    #[test]
    fn what_fits_nothing_or_several_is_said() {
        assert!(found("nope").contains("nope"));
        assert!(found("").contains("no pod or container"));
        let text = found("b");
        assert!(text.contains("pod default/web (b1)") && text.contains("pod kube-system/dns (b3)"), "{text}");
    }

    #[test]
    fn a_pod_stands_for_its_only_container() {
        let world = world();
        let container =
            |given| world.container(given).map(|one| one.id.clone()).map_err(|error| error.hint.unwrap_or_default());
        assert_eq!(container("web"), Ok("d1".into()));
        assert_eq!(container("dns"), Ok("d4".into()));
        assert!(container("two").unwrap_err().contains("default/two/one, default/two/other"));
        assert_eq!(container("two/other"), Ok("e5".into()));
        assert_eq!(world.name_of(&world.containers[0]), "web");
        assert_eq!(world.name_of(&world.containers[1]), "default/web/nginx");
    }
}
