//! Which network serves. Root.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::Scratch;
use crisp_netns::{Error, Mode, Network, NetworkOptions, Pod};

const VALID: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;

fn network(scratch: &Scratch, mode: Mode) -> Network {
    let options = NetworkOptions {
        instance: scratch.name.clone(),
        mode,
        subnets: Vec::new(),
        cni_conf_dir: scratch.path("net.d"),
        cni_bin_dirs: vec!["/usr/lib/cni".into()],
        root_dir: scratch.path("root"),
        state_dir: scratch.state(),
        plugin_timeout: Duration::from_secs(5),
        cluster_dir: scratch.path("kubernetes"),
    };
    Network::open(options).unwrap()
}

fn serving(network: &Network) -> String {
    network.status().details["network"].as_str().unwrap().to_owned()
}

fn attach(network: &Network) -> Error {
    let (annotations, capabilities) = (BTreeMap::new(), BTreeMap::new());
    let pod = Pod {
        id: "a1",
        name: "web",
        namespace: "default",
        uid: "u-1",
        netns: Path::new("/nonexistent"),
        ports: &[],
        bandwidth: None,
        dns: None,
        cgroup_parent: "",
        annotations: &annotations,
        capabilities: &capabilities,
    };
    network.attach(&pod).unwrap_err()
}

fn put(scratch: &Scratch, file: &str, text: &str) {
    let path = scratch.path(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_machine_of_its_own_has_the_built_in_network_until_cni_is_configured() {
    let scratch = Scratch::new();
    let network = network(&scratch, Mode::Auto);
    assert_eq!(serving(&network), "builtin");
    fs::create_dir_all(scratch.path("net.d")).unwrap();
    put(&scratch, "kubernetes/manifests/README", "");
    assert_eq!(serving(&network), "builtin");
    put(&scratch, "net.d/10.conflist", VALID);
    assert_eq!(serving(&network), "cni");
    assert!(network.status().ready);
}

#[test]
fn a_machine_of_a_cluster_waits_for_cni() {
    for file in ["kubelet.conf", "bootstrap-kubelet.conf"] {
        let scratch = Scratch::new();
        put(&scratch, &format!("kubernetes/{file}"), "");
        let network = network(&scratch, Mode::Auto);
        let status = network.status();
        assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
        assert!(status.message.contains(file), "{}", status.message);
        assert!(matches!(attach(&network), Error::NotReady(why) if why.contains(file)));
        put(&scratch, "net.d/10.conflist", VALID);
        assert_eq!(serving(&network), "cni");
    }
}

#[test]
fn where_cni_was_it_is_waited_for() {
    let scratch = Scratch::new();
    put(&scratch, "net.d/10.conflist", VALID);
    assert_eq!(serving(&network(&scratch, Mode::Auto)), "cni");
    // The network's own removal takes the directory, too.
    fs::remove_dir_all(scratch.path("net.d")).unwrap();
    let network = network(&scratch, Mode::Auto);
    let status = network.status();
    assert!(!status.ready && status.message.contains("was here before"), "{}", status.message);
    put(&scratch, "net.d/20.conf", r#"{"name": "n", "type": "bridge"}"#);
    assert!(network.status().ready, "found again in a directory made anew");
}

#[test]
fn an_invalid_configuration_is_no_reason_for_the_built_in_network() {
    let scratch = Scratch::new();
    put(&scratch, "net.d/10.conflist", r#"{"name": "n"}"#);
    let network = network(&scratch, Mode::Auto);
    let status = network.status();
    assert_eq!(serving(&network), "cni");
    assert!(!status.ready && status.message.contains("10.conflist: it has no plugins"), "{}", status.message);
    assert!(matches!(attach(&network), Error::Cni(_)));
}

#[test]
fn a_mode_that_is_set_is_kept_to() {
    let scratch = Scratch::new();
    let status = network(&scratch, Mode::Cni).status();
    assert!(!status.ready && status.message.contains("net.d"), "{}", status.message);
    put(&scratch, "net.d/10.conflist", VALID);
    put(&scratch, "kubernetes/kubelet.conf", "");
    assert_eq!(serving(&network(&scratch, Mode::Builtin)), "builtin");
}
