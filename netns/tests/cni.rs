//! CNI networks of real plugins: Debian's, and the newest where they were built. Root.
//!
//! Each test is a machine of its own: its thread leaves the host's network namespace, and so do the plugins that it
//! starts. Bridges, rules and addresses end with it.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, cache, destroy};
use crisp_netns::{
    Attachment, Kind, Mode, Network, NetworkOptions, Pins, Pod, PodNamespaces, PortMapping, Protocol, cni, enter,
};
use serde_json::{Value, json};

const DEBIAN: &str = "/usr/lib/cni";

/// A machine with its own network, plugins and configuration.
struct Machine {
    scratch: Scratch,
    pins: Pins,
    bin_dir: PathBuf,
    ports: Vec<PortMapping>,
    annotations: BTreeMap<String, String>,
    capabilities: BTreeMap<String, Value>,
}

impl Machine {
    fn new(bin_dir: &Path) -> Self {
        let scratch = Scratch::new();
        let pins = scratch.pins();
        for dir in ["net.d", "bin", "kubernetes"] {
            fs::create_dir(scratch.path(dir)).unwrap();
        }
        let bin_dir = bin_dir.to_owned();
        let (ports, annotations, capabilities) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { scratch, pins, bin_dir, ports, annotations, capabilities }
    }

    fn options(&self) -> NetworkOptions {
        NetworkOptions {
            instance: self.scratch.name.clone(),
            mode: Mode::Cni,
            subnets: Vec::new(),
            cni_conf_dir: self.scratch.path("net.d"),
            cni_bin_dirs: vec![self.scratch.path("bin"), self.bin_dir.clone()],
            root_dir: self.scratch.path("root"),
            state_dir: self.scratch.state(),
            plugin_timeout: Duration::from_secs(30),
            cluster_dir: self.scratch.path("kubernetes"),
        }
    }

    fn network(&self) -> Network {
        Network::open(self.options()).unwrap()
    }

    fn configure(&self, file: &str, config: &Value) {
        fs::write(self.scratch.path("net.d").join(file), config.to_string()).unwrap();
    }

    /// A plugin of the test's own: a shell script. `log` is a file that it may write to.
    fn script(&self, name: &str, text: &str) {
        let path = self.scratch.path("bin").join(name);
        let log = self.scratch.path("log");
        fs::write(&path, format!("#!/bin/sh\nlog={}\n{text}\n", log.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path("log")).unwrap_or_default()
    }

    /// The pod's network namespace, made.
    fn pod(&self, id: &str) {
        self.pins.create(id, &PodNamespaces { net: true, ..PodNamespaces::default() }).unwrap();
    }

    fn with<T>(&self, id: &str, work: impl FnOnce(&Pod<'_>) -> T) -> T {
        work(&Pod {
            id,
            name: "web",
            namespace: "default",
            uid: "u-1",
            netns: &self.pins.net_path(id),
            ports: &self.ports,
            bandwidth: None,
            dns: None,
            cgroup_parent: "/kubepods/pod1",
            annotations: &self.annotations,
            capabilities: &self.capabilities,
        })
    }

    fn attach(&self, network: &Network, id: &str) -> Result<Attachment, crisp_netns::Error> {
        self.pod(id);
        self.with(id, |pod| network.attach(pod))
    }

    fn detach(&self, network: &Network, id: &str, attachment: Option<&Attachment>) -> Result<(), crisp_netns::Error> {
        self.with(id, |pod| network.detach(pod, attachment))
    }

    /// The usual network: a bridge, addresses of both families, host ports.
    fn bridge(&self, version: &str) -> Value {
        json!({"cniVersion": version, "name": self.scratch.name, "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": {
                "type": "host-local", "dataDir": self.scratch.path("ipam"),
                "ranges": [[{"subnet": "10.241.0.0/24"}], [{"subnet": "fd00:241::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]})
    }

    /// Addresses that host-local has given out.
    fn leases(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.scratch.path("ipam").join(&self.scratch.name)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(|c: char| c.is_ascii_hexdigit())).collect();
        names.sort();
        names
    }

    /// What is left of pods: records and locks.
    fn records(&self) -> Vec<String> {
        let dirs = [self.scratch.path("root/cni"), self.scratch.state().join("cni")];
        let entries = dirs.into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    fn done(self) {
        destroy(&self.scratch.state(), self.pins);
    }
}

/// Runs a test on a machine without the host's network.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[allow(deprecated)] // sound for this flag
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
            ip(&["link", "set", "lo", "up"]);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The sets of plugins to test with, and the newest version that each speaks.
fn sets() -> Vec<(PathBuf, &'static str)> {
    assert!(Path::new(DEBIAN).join("bridge").exists(), "install the package `containernetworking-plugins`");
    let newest = cache().join("bin/cni");
    let mut sets = vec![(PathBuf::from(DEBIAN), "1.0.0")];
    if newest.join("bridge").exists() {
        sets.push((newest, "1.1.0"));
    }
    sets
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names of the interfaces on bridges.
fn ports_of_bridges() -> usize {
    ip(&["-o", "link", "show", "type", "veth"]).lines().count()
}

/// Serves one connection inside the pod, and connects to `to` from here.
fn word_from(netns: &Path, at: SocketAddr, to: SocketAddr) -> String {
    let listener = enter::netns(netns, || TcpListener::bind(at).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
        let mut word = String::new();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        stream.read_to_string(&mut word).unwrap();
        word
    })
}

#[test]
fn a_pod_is_attached_reached_and_detached() {
    for (bin_dir, version) in sets() {
        alone(|| {
            let mut machine = Machine::new(&bin_dir);
            machine.ports =
                vec![PortMapping { protocol: Protocol::Tcp, container_port: 8080, host_port: 31080, host_ip: None }];
            machine.configure("10.conflist", &machine.bridge(version));
            let network = machine.network();
            let status = network.status();
            assert!(status.ready, "{status:?}");
            assert_eq!(status.details["network.name"], machine.scratch.name.as_str());

            let attachment = machine.attach(&network, "a1").unwrap();
            assert_eq!(attachment.kind, Kind::Cni { network: machine.scratch.name.clone() });
            let addresses: Vec<String> = attachment.ips.iter().map(ToString::to_string).collect();
            assert_eq!(addresses, ["10.241.0.2", "fd00:241::2"]);
            let netns = machine.pins.net_path("a1");
            assert_eq!(word_from(&netns, "0.0.0.0:8080".parse().unwrap(), "10.241.0.2:8080".parse().unwrap()), "hello");
            let host_port = "10.241.0.1:31080".parse().unwrap();
            assert_eq!(word_from(&netns, "0.0.0.0:8080".parse().unwrap(), host_port), "hello");
            machine.detach(&network, "a1", Some(&attachment)).unwrap();
            assert_eq!((machine.leases(), machine.records(), ports_of_bridges()), (vec![], vec![], 0));
            machine.detach(&network, "a1", Some(&attachment)).unwrap();
            machine.detach(&network, "a1", None).unwrap();
            machine.done();
        });
    }
}

#[test]
fn an_attached_pod_is_checked() {
    for (bin_dir, version) in sets() {
        alone(|| {
            let machine = Machine::new(&bin_dir);
            machine.configure("10.conflist", &machine.bridge(version));
            let network = machine.network();
            let attachment = machine.attach(&network, "a1").unwrap();
            machine.with("a1", |pod| network.check(pod, &attachment)).unwrap();
            // Somebody breaks it.
            let netns = machine.pins.net_path("a1");
            enter::netns(&netns, || ip(&["addr", "del", "10.241.0.2/24", "dev", "eth0"])).unwrap();
            let error = machine.with("a1", |pod| network.check(pod, &attachment)).unwrap_err();
            assert!(matches!(&error, crisp_netns::Error::Cni(cni::Error::Plugin { verb: "CHECK", .. })), "{error:?}");
            machine.detach(&network, "a1", Some(&attachment)).unwrap();
            machine.with("a1", |pod| network.check(pod, &attachment)).unwrap_err();
            machine.done();
        });
    }
}

#[test]
fn every_version_of_the_specification_gives_the_same_pod() {
    for (bin_dir, newest) in sets() {
        alone(|| {
            let machine = Machine::new(&bin_dir);
            let network = machine.network();
            for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                if version > newest {
                    continue;
                }
                let mut config = machine.bridge(version);
                fs::remove_file(machine.scratch.path("net.d/10.conflist")).ok();
                if version < "0.3.0" {
                    // Before there were chains: a configuration of one plugin.
                    let mut plugin = config["plugins"][0].take();
                    plugin["cniVersion"] = version.into();
                    plugin["name"] = config["name"].clone();
                    machine.configure("10.conf", &plugin);
                } else {
                    fs::remove_file(machine.scratch.path("net.d/10.conf")).ok();
                    machine.configure("10.conflist", &config);
                }
                let attachment = machine.attach(&network, "a1").unwrap();
                let families: Vec<bool> = attachment.ips.iter().map(IpAddr::is_ipv4).collect();
                assert_eq!(families, [true, false], "{version}");
                assert_eq!(attachment.raw.as_ref().unwrap()["cniVersion"], version);
                machine.with("a1", |pod| network.check(pod, &attachment)).unwrap();
                machine.detach(&network, "a1", Some(&attachment)).unwrap();
                assert_eq!((machine.leases(), machine.records()), (vec![], vec![]), "{version}");
                machine.pins.remove("a1").unwrap();
            }
            machine.done();
        });
    }
}

#[test]
fn the_highest_version_that_all_know_is_spoken() {
    for (bin_dir, newest) in sets() {
        alone(|| {
            let machine = Machine::new(&bin_dir);
            let mut config = machine.bridge("0.4.0");
            config["cniVersions"] = json!(["0.3.1", "1.0.0", "1.1.0", "3.0.0"]);
            machine.configure("10.conflist", &config);
            let network = machine.network();
            let attachment = machine.attach(&network, "a1").unwrap();
            assert_eq!(attachment.raw.as_ref().unwrap()["cniVersion"], newest);
            machine.detach(&network, "a1", Some(&attachment)).unwrap();
            machine.done();
        });
    }
}

#[test]
fn a_pod_is_detached_with_what_it_was_attached_with() {
    for (bin_dir, version) in sets() {
        alone(|| {
            let machine = Machine::new(&bin_dir);
            machine.configure("10.conflist", &machine.bridge(version));
            let attachment = machine.attach(&machine.network(), "a1").unwrap();
            // The configuration goes away, the namespace too, and the server is another one.
            fs::remove_file(machine.scratch.path("net.d/10.conflist")).unwrap();
            machine.pins.remove("a1").unwrap();
            let network = machine.network();
            assert!(!network.status().ready);
            // A reboot leaves the pin as a plain file.
            fs::write(machine.pins.net_path("a1"), "").unwrap();
            machine.detach(&network, "a1", Some(&attachment)).unwrap();
            assert_eq!((machine.leases(), machine.records()), (vec![], vec![]));
            machine.done();
        });
    }
}

#[test]
fn pods_are_attached_in_parallel() {
    let (bin_dir, version) = sets().pop().unwrap();
    alone(|| {
        let machine = Machine::new(&bin_dir);
        machine.configure("10.conflist", &machine.bridge(version));
        let network = machine.network();
        let pods: Vec<String> = (0..8).map(|number| format!("a{number}")).collect();
        for pod in &pods {
            machine.pod(pod);
        }
        let ips: BTreeSet<IpAddr> = std::thread::scope(|scope| {
            let attach = |pod| machine.with(pod, |pod| network.attach(pod).unwrap().ips[0]);
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || attach(pod))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ips.len(), 8);
        assert_eq!(machine.leases().len(), 16);
        network.gc(&|_| false).unwrap();
        assert_eq!((machine.leases(), machine.records(), ports_of_bridges()), (vec![], vec![], 0));
        machine.done();
    });
}

#[test]
fn pods_that_are_no_more_are_detached_and_plugins_told_which_are_left() {
    for (bin_dir, version) in sets() {
        alone(|| {
            let machine = Machine::new(&bin_dir);
            machine.configure("10.conflist", &machine.bridge(version));
            let network = machine.network();
            for id in ["a1", "a2", "a3"] {
                machine.attach(&network, id).unwrap();
            }
            network.gc(&|id| ["a1", "a4"].contains(&id)).unwrap();
            assert_eq!(machine.leases(), ["10.241.0.2", "fd00:241::2"]);

            // Another network takes over; a1 stays with its own.
            let result = r#"{"ips": [{"address": "10.0.0.5/24"}]}"#;
            machine.script("odd", &format!("[ $CNI_COMMAND = GC ] && cat >> $log; echo '{result}'"));
            machine.configure("05.conf", &json!({"cniVersion": "1.1.0", "name": "n", "type": "odd"}));
            machine.attach(&network, "b1").unwrap();
            network.gc(&|id| ["a1", "b1"].contains(&id)).unwrap();
            let request: Value = serde_json::from_str(&machine.log()).unwrap();
            let valid = json!([{"containerID": "b1", "ifname": "eth0"}]);
            assert_eq!((&request["cni.dev/valid-attachments"], &request["name"]), (&valid, &json!("n")));

            network.gc(&|_| false).unwrap();
            assert_eq!((machine.leases(), machine.records()), (vec![], vec![]));
            machine.done();
        });
    }
}

#[test]
fn no_plugin_collects_for_a_node_without_attachments_and_none_holds_pods_up() {
    alone(|| {
        let machine = Machine::new(Path::new(DEBIAN));
        let result = r#"{"ips": [{"address": "10.0.0.5/24"}]}"#;
        // Its GC hangs.
        let script = format!("echo $CNI_COMMAND >> $log; [ $CNI_COMMAND = GC ] && exec sleep 1000; echo '{result}'");
        machine.script("odd", &script);
        machine.configure("05.conf", &json!({"cniVersion": "1.1.0", "name": "n", "type": "odd"}));
        let network = machine.network();
        // Another runtime may have pods in the network.
        network.gc(&|_| false).unwrap();
        assert_eq!(machine.log(), "");
        machine.attach(&network, "a1").unwrap();
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let collected = scope.spawn(|| network.gc(&|id| id == "a1"));
            while !machine.log().contains("GC") {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Attached while the plugin collects: when it was stopped.
            machine.attach(&network, "b1").unwrap();
            assert!(collected.join().unwrap().is_err());
        });
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
        for id in ["a1", "b1"] {
            machine.detach(&network, id, None).unwrap();
        }
        assert_eq!(machine.records(), Vec::<String>::new());
        machine.done();
    });
}

#[test]
fn collecting_waits_for_no_live_pod_where_no_plugin_collects() {
    alone(|| {
        let machine = Machine::new(Path::new(DEBIAN));
        let slow = r#"[ $CNI_COMMAND = ADD ] && sleep 2; echo '{"ips": [{"version": "4", "address": "10.0.0.5/24"}]}'"#;
        machine.script("slow", slow);
        machine.configure("05.conf", &json!({"cniVersion": "0.4.0", "name": "n", "type": "slow"}));
        let network = machine.network();
        std::thread::scope(|scope| {
            let attached = scope.spawn(|| machine.attach(&network, "a1").unwrap());
            while machine.records().is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let begin = Instant::now();
            network.gc(&|id| id == "a1").unwrap();
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            attached.join().unwrap();
        });
        machine.detach(&network, "a1", None).unwrap();
        machine.done();
    });
}

/// A plugin at the end of a chain that fails as the file `fail` beside its log says.
const FAILS: &str = r#"
echo "$CNI_COMMAND" >> "$log"
grep -qs "$CNI_COMMAND" "${log%log}fail" && { echo '{"code": 11, "msg": "not now"}'; exit 1; }
exit 0"#;

#[test]
fn an_add_that_fails_is_undone() {
    let (bin_dir, version) = sets().pop().unwrap();
    alone(|| {
        let machine = Machine::new(&bin_dir);
        machine.script("odd", FAILS);
        let mut config = machine.bridge(version);
        config["plugins"].as_array_mut().unwrap().push(json!({"type": "odd"}));
        machine.configure("10.conflist", &config);
        let network = machine.network();

        fs::write(machine.scratch.path("fail"), "ADD").unwrap();
        let error = machine.attach(&network, "a1").unwrap_err();
        let crisp_netns::Error::Cni(cni::Error::Plugin { plugin, verb, code, msg, .. }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!((plugin.as_str(), *verb, *code, msg.as_str()), ("odd", "ADD", 11, "not now"));
        assert_eq!((machine.leases(), machine.records(), ports_of_bridges()), (vec![], vec![], 0));

        fs::write(machine.scratch.path("fail"), "ADD DEL").unwrap();
        let error = machine.attach(&network, "a1").unwrap_err();
        let crisp_netns::Error::Cni(cni::Error::NotUndone { .. }) = &error else { panic!("{error:?}") };
        assert!(error.to_string().contains("ADD: not now") && error.to_string().contains("DEL: not now"), "{error}");
        assert!(!machine.leases().is_empty());
        machine.detach(&network, "a1", None).unwrap_err();

        fs::write(machine.scratch.path("fail"), "").unwrap();
        machine.detach(&network, "a1", None).unwrap();
        assert_eq!((machine.leases(), machine.records(), ports_of_bridges()), (vec![], vec![], 0));
        machine.done();
    });
}

#[test]
fn a_chain_that_gives_no_address_is_undone() {
    alone(|| {
        let machine = Machine::new(Path::new(DEBIAN));
        machine.script("odd", "echo \"$CNI_COMMAND\" >> \"$log\"; echo '{\"cniVersion\": \"1.0.0\"}'");
        machine.configure("10.conf", &json!({"cniVersion": "1.0.0", "name": "n", "type": "odd"}));
        let error = machine.attach(&machine.network(), "a1").unwrap_err();
        assert!(matches!(error, crisp_netns::Error::Cni(cni::Error::NoAddress { .. })), "{error:?}");
        assert_eq!((machine.log().as_str(), machine.records()), ("ADD\nDEL\n", vec![]));
        machine.done();
    });
}

#[test]
fn plugins_get_what_they_declare() {
    alone(|| {
        let mut machine = Machine::new(Path::new(DEBIAN));
        machine.annotations = BTreeMap::from([("color".to_owned(), "blue".to_owned())]);
        machine.capabilities = BTreeMap::from([("mac".to_owned(), json!("c2:11:22:33:44:55"))]);
        let result = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]}"#;
        let text =
            format!("echo \"$CNI_COMMAND $CNI_ARGS\" >> \"$log\"; cat >> \"$log\"; echo >> \"$log\"; echo '{result}'");
        machine.script("odd", &text);
        machine.configure(
            "10.conflist",
            &json!({"cniVersion": "1.0.0", "name": "n", "plugins": [
                {"type": "odd", "capabilities": {"mac": true, "io.kubernetes.cri.pod-annotations": true}},
                {"type": "odd", "capabilities": {"ipRanges": true, "cgroupPath": true}}]}),
        );
        let network = machine.network();
        network.set_pod_cidrs(&["10.5.0.0/24".parse().unwrap()]).unwrap();
        // They are remembered by the next server.
        drop(network);
        let network = machine.network();
        let attachment = machine.attach(&network, "a1").unwrap();
        let log = machine.log();
        let requests: Vec<Value> =
            log.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            requests[0]["runtimeConfig"],
            json!({"mac": "c2:11:22:33:44:55", "io.kubernetes.cri.pod-annotations": {"color": "blue"}})
        );
        assert_eq!(requests[0].get("prevResult"), None);
        assert_eq!(requests[0].get("capabilities"), None);
        let ranges = json!({"ipRanges": [[{"subnet": "10.5.0.0/24"}]], "cgroupPath": "/kubepods/pod1"});
        assert_eq!(requests[1]["runtimeConfig"], ranges);
        assert_eq!(requests[1]["prevResult"]["ips"][0]["address"], "10.0.0.5/24");
        assert!(log.starts_with("ADD IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"), "{log}");
        machine.detach(&network, "a1", Some(&attachment)).unwrap();
        assert!(machine.log().contains("DEL IgnoreUnknown=1;"));
        machine.done();
    });
}

#[test]
fn a_plugin_that_hangs_or_is_missing_does_not_hang_the_pod() {
    alone(|| {
        let machine = Machine::new(Path::new(DEBIAN));
        machine.configure("10.conf", &json!({"cniVersion": "1.0.0", "name": "n", "type": "odd"}));
        let network = Network::open(NetworkOptions { plugin_timeout: Duration::from_millis(200), ..machine.options() });
        let network = network.unwrap();
        let status = network.status();
        assert!(!status.ready && status.message.contains("odd is not in"), "{status:?}");
        // ADD fails, and so does the DEL of a plugin that is not there.
        machine.attach(&network, "a1").unwrap_err();
        machine.script("odd", "[ $CNI_COMMAND = ADD ] && sleep 1000; exit 0");
        assert!(network.status().ready);
        machine.detach(&network, "a1", None).unwrap();
        let begin = Instant::now();
        let error = machine.attach(&network, "a1").unwrap_err();
        assert!(matches!(error, crisp_netns::Error::Cni(cni::Error::Timeout { .. })), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(machine.records().is_empty());
        machine.done();
    });
}

#[test]
fn a_plugin_that_is_not_ready_makes_the_network_not_ready() {
    alone(|| {
        let machine = Machine::new(Path::new(DEBIAN));
        let answer = r#"{"code": 50, "msg": "no daemon", "details": "starting"}"#;
        machine.script(
            "odd",
            &format!("echo $CNI_COMMAND >> $log; test -e \"${{log%log}}ready\" || {{ echo '{answer}'; exit 1; }}"),
        );
        machine.configure("10.conf", &json!({"cniVersion": "1.1.0", "name": "n", "type": "odd"}));
        let network = machine.network();
        let status = network.status();
        assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
        assert!(status.message.contains("no daemon: starting"), "{}", status.message);
        assert_eq!(machine.log(), "STATUS\nSTATUS\n", "asked once more before the node is called not ready");
        let _ = network.status();
        assert_eq!(machine.log(), "STATUS\nSTATUS\n", "and not at every question");
        fs::write(machine.scratch.path("ready"), "").unwrap();
        assert!(machine.network().status().ready);
        machine.done();
    });
}

/// Not a test by itself: the server that `a_crash_…` kills.
#[test]
fn server_to_be_killed() {
    let Some(root) = std::env::var_os("CRISP_TEST_CRASH").map(PathBuf::from) else { return };
    let network = Network::open(NetworkOptions {
        instance: "crash".to_owned(),
        mode: Mode::Cni,
        subnets: Vec::new(),
        cni_conf_dir: root.join("net.d"),
        cni_bin_dirs: vec![root.join("bin")],
        root_dir: root.join("root"),
        state_dir: root.join("state"),
        plugin_timeout: Duration::from_secs(30),
        cluster_dir: root.join("kubernetes"),
    });
    let netns = PathBuf::from(std::env::var_os("CRISP_TEST_NETNS").unwrap());
    let (annotations, capabilities) = (BTreeMap::new(), BTreeMap::new());
    let _ = network.unwrap().attach(&Pod {
        id: "a1",
        name: "web",
        namespace: "default",
        uid: "u-1",
        netns: &netns,
        ports: &[],
        bandwidth: None,
        dns: None,
        cgroup_parent: "",
        annotations: &annotations,
        capabilities: &capabilities,
    });
}

/// Starts a server that attaches a pod with a plugin that takes `seconds`, and kills it while the plugin runs.
fn crash(machine: &Machine, seconds: &str) {
    let slow = "[ $CNI_COMMAND = ADD ] && {{ echo ADD begins >> $log; sleep SECONDS; echo ADD ends >> $log; }} || echo DEL >> $log";
    machine.script("odd", &slow.replace("{{", "{").replace("}}", "}").replace("SECONDS", seconds));
    machine.configure("10.conf", &json!({"cniVersion": "1.0.0", "name": "n", "type": "odd"}));
    machine.pod("a1");
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server_to_be_killed"])
        .env("CRISP_TEST_CRASH", machine.scratch.path(""))
        .env("CRISP_TEST_NETNS", machine.pins.net_path("a1"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !machine.log().contains("ADD begins") {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn after_a_crash_detach_waits_for_the_plugin_that_still_runs() {
    alone(|| {
        let machine = Machine::new(Path::new("/nonexistent"));
        crash(&machine, "0.5");
        machine.detach(&machine.network(), "a1", None).unwrap();
        assert_eq!(machine.log(), "ADD begins\nADD ends\nDEL\n");
        assert!(machine.records().is_empty());
        machine.done();
    });
}

#[test]
fn after_a_crash_attach_starts_over() {
    alone(|| {
        let machine = Machine::new(Path::new("/nonexistent"));
        crash(&machine, "0.3");
        machine.script("odd", "echo $CNI_COMMAND >> $log; echo '{\"ips\": [{\"address\": \"10.0.0.5/24\"}]}'");
        machine.attach(&machine.network(), "a1").unwrap();
        assert_eq!(machine.log(), "ADD begins\nADD ends\nDEL\nADD\n");
        machine.done();
    });
}

#[test]
fn after_a_crash_a_plugin_that_hangs_is_killed() {
    alone(|| {
        let machine = Machine::new(Path::new("/nonexistent"));
        crash(&machine, "1000");
        let options = NetworkOptions { plugin_timeout: Duration::from_millis(100), ..machine.options() };
        let network = Network::open(options).unwrap();
        let begin = Instant::now();
        network.gc(&|_| false).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(machine.log(), "ADD begins\nDEL\n");
        assert!(machine.records().is_empty());
        machine.done();
    });
}
