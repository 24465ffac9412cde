//! Against the real kernel, `nft` and `iptables`. Root. Each test makes a network namespace that plays the host, others
//! that play pods and a machine outside; the real host is not touched, and all of it goes with the test's threads.

mod crash;
mod forward;
mod host_ports;
mod pods;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::thread::UnshareFlags;

use super::{Builtin, Error, Options};
use crate::{Attachment, Kind, Pod, PortMapping, Protocol, Subnet, enter, sys};

/// Runs a test with a network namespace of its own as the host's.
fn on_a_host(test: impl FnOnce() + Send + 'static) {
    let done = std::thread::spawn(|| {
        sys::unshare(UnshareFlags::NEWNET).expect("these tests run as root");
        up();
        test();
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

fn up() {
    sys::loopback_up(UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
}

/// A network namespace that lasts as long as this.
#[derive(Debug)]
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            sys::unshare(UnshareFlags::NEWNET).unwrap();
            up();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        enter::netns_fd(self.0.as_fd(), work).unwrap()
    }

    /// Serves on a TCP port: tells each client the address that it is seen with, and `name`.
    fn serve(&self, port: u16, name: &'static str) {
        self.run(|| serve(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), name));
    }

    fn serve_udp(&self, port: u16, name: &'static str) {
        let socket = self.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }
}

fn serve(at: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{name} sees {}", peer.ip().to_canonical());
        }
    });
}

/// What the server at the address says. The limit is
/// long enough for a lost first packet to be sent again.
fn ask(ip: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip.into(), port), Duration::from_millis(2500))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs a command line that must succeed, in the calling thread's namespaces.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// A server's network, with its directories.
struct Server {
    builtin: Option<Builtin>,
    dir: tempfile::TempDir,
    instance: String,
    subnets: Vec<Subnet>,
}

impl Server {
    fn new(instance: &str, subnets: &[&str]) -> Self {
        let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self { builtin: None, dir, instance: instance.to_owned(), subnets };
        server.start();
        server
    }

    fn start(&mut self) {
        let (root_dir, state_dir) = (self.dir.path().join("root"), self.dir.path().join("state"));
        let options = Options { instance: self.instance.clone(), subnets: self.subnets.clone(), root_dir, state_dir };
        self.builtin = Some(Builtin::open(options).unwrap());
    }

    /// Kill and restart: nothing in memory is used again, nothing is cleaned up.
    fn restart(&mut self) {
        std::mem::forget(self.builtin.take());
        self.start();
    }

    fn builtin(&self) -> &Builtin {
        self.builtin.as_ref().unwrap()
    }

    fn attach(&self, id: &str, netns: &Path, ports: &[PortMapping]) -> Result<Vec<IpAddr>, Error> {
        self.builtin().attach(&pod(id, netns, ports))
    }

    fn detach(&self, id: &str) {
        self.builtin().detach(id).unwrap();
    }

    fn check(&self, id: &str, netns: &Path, ips: &[IpAddr]) -> Result<(), Error> {
        let attachment = Attachment { kind: Kind::Builtin, ips: ips.to_vec(), raw: None };
        self.builtin().check(&pod(id, netns, &[]), &attachment)
    }

    /// A pod in a namespace of its own, IPv4 address first.
    fn pod(&self, id: &str, ports: &[PortMapping]) -> (Namespace, Vec<IpAddr>) {
        let namespace = Namespace::new();
        let ips = self.attach(id, &namespace.path(), ports).unwrap();
        (namespace, ips)
    }
}

static NO_ANNOTATIONS: BTreeMap<String, String> = BTreeMap::new();
static NO_CAPABILITIES: BTreeMap<String, serde_json::Value> = BTreeMap::new();

fn pod<'a>(id: &'a str, netns: &'a Path, ports: &'a [PortMapping]) -> Pod<'a> {
    Pod {
        id,
        name: id,
        namespace: "default",
        uid: id,
        netns,
        ports,
        bandwidth: None,
        dns: None,
        cgroup_parent: "",
        annotations: &NO_ANNOTATIONS,
        capabilities: &NO_CAPABILITIES,
    }
}

fn port(protocol: Protocol, host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = (!host_ip.is_empty()).then(|| ip(host_ip));
    PortMapping { protocol, container_port, host_port, host_ip }
}

/// A machine outside: `192.0.2.1` and `fd00:99::1`, the host's default gateway; the host is `192.0.2.2` and `fd00:99::2`.
fn outside() -> Namespace {
    let outside = Namespace::new();
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", outside.path().display()));
    sh(
        "ip addr add 192.0.2.2/24 dev uplink; ip addr add fd00:99::2/64 dev uplink nodad; ip link set uplink mtu 1400 up",
    );
    outside.run(|| {
        sh("ip addr add 192.0.2.1/24 dev eth0; ip addr add fd00:99::1/64 dev eth0 nodad; ip link set eth0 mtu 1400 up")
    });
    // Asking for an interface turns its queue on.
    sh("ip link show uplink");
    outside.run(|| sh("ip link show eth0"));
    sh("ip route add default via 192.0.2.1; ip route add default via fd00:99::1");
    outside
}

/// Nothing of any instance is left on this host.
fn assert_clean(server: &Server) {
    server.builtin().settle();
    let links = sh("ip -o link | grep -v -e ': lo:' -e ': uplink@' -e ': sit0@' -e ': tunl0@' -e ': ip6tnl0@' || true");
    let routes = sh("ip route show proto 99; ip -6 route show proto 99; ip -6 route show table local proto 99");
    let rules = sh("nft list tables");
    assert_eq!((links.as_str(), routes.as_str(), rules.as_str()), ("", "", ""));
    for dir in ["state/network/pods", "root/network/pods"] {
        let left: Vec<_> = std::fs::read_dir(server.dir.path().join(dir)).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

const LOOPBACK4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
