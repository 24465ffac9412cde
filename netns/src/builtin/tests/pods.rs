//! Pods' own traffic, ranges, instances, and how long it takes.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::*;
use crate::Bandwidth;

#[test]
fn pods_reach_each_other_as_themselves_and_outside_as_the_host() {
    on_a_host(|| {
        let outside = outside();
        outside.serve(80, "outside");
        let server = Server::new("t2", &["10.213.2.0/24", "fd00:213:2::/64"]);
        let (a, a_ips) = server.pod("a", &[]);
        let (b, b_ips) = server.pod("b", &[]);
        b.serve(80, "b");
        for (at, machine) in [ip("192.0.2.1"), ip("fd00:99::1")].into_iter().enumerate() {
            assert_eq!(a.run(|| ask(b_ips[at], 80)).unwrap(), format!("b sees {}", a_ips[at]));
            assert_eq!(a.run(|| ask(machine, 80)).unwrap(), ["outside sees 192.0.2.2", "outside sees fd00:99::2"][at]);
        }
        // The host's own services, at the host's address and at the gateway's.
        serve(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 81)), "host");
        for (at, host) in [(0, "192.0.2.2"), (0, "169.254.1.1"), (1, "fd00:99::2")] {
            assert_eq!(a.run(|| ask(ip(host), 81)).unwrap(), format!("host sees {}", a_ips[at]));
        }
        // Pods' packets fit the way out.
        assert!(a.run(|| sh("ip link show eth0")).contains("mtu 1400"));
        // An address that no pod has goes nowhere, not to the default gateway.
        let nobody = a.run(|| ask(ip("10.213.2.200"), 80)).unwrap_err();
        assert_ne!(nobody.kind(), io::ErrorKind::TimedOut, "{nobody}");
        // A pod cannot speak as another.
        a.run(|| {
            sh(&format!(
                "ip addr add {} dev eth0; ip addr add {} dev eth0 nodad",
                "10.213.2.77/32", "fd00:213:2::77/128"
            ))
        });
        for (source, target) in [("10.213.2.77", ip("192.0.2.1")), ("fd00:213:2::77", ip("fd00:99::1"))] {
            let gateway = if target.is_ipv4() { "169.254.1.1" } else { "fe80::1" };
            a.run(|| sh(&format!("ip route replace {target} via {gateway} dev eth0 src {source}")));
            assert!(a.run(|| ask(target, 80)).is_err(), "{source}");
        }
        server.detach("a");
        server.detach("b");
        assert_clean(&server);
    });
}

#[test]
fn on_a_host_without_any_address_pods_and_host_ports_work() {
    on_a_host(|| {
        let server = Server::new("t3", &[]);
        let (web, ips) = server.pod("web", &[port(Protocol::Tcp, "", 8080, 80)]);
        web.serve(80, "web");
        assert_eq!(ips[0], ip("10.77.0.2"));
        assert!(ips[1].to_string().starts_with("fd"), "{ips:?}");
        assert_eq!(ask(ips[0], 80).unwrap(), "web sees 169.254.1.1");
        assert!(ask(ips[1], 80).is_ok() && ask(LOOPBACK4, 8080).is_ok() && ask(LOOPBACK6, 8080).is_ok());
        server.detach("web");
        assert_clean(&server);
    });
}

#[test]
fn without_ipv6_there_is_ipv4_and_the_status_says_so() {
    on_a_host(|| {
        sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        let server = Server::new("t4", &[]);
        let (web, ips) = server.pod("web", &[port(Protocol::Tcp, "", 8080, 80)]);
        web.serve(80, "web");
        assert_eq!(ips.len(), 1);
        assert!(ask(LOOPBACK4, 8080).is_ok());
        let details = server.builtin().status().details;
        assert!(details["ipv6"].as_str().unwrap().contains("disable_ipv6"), "{details:?}");
        server.detach("web");
        assert_clean(&server);
    });
    on_a_host(|| {
        // Only one pod wants none.
        let server = Server::new("t4", &[]);
        let namespace = Namespace::new();
        namespace.run(|| sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"));
        assert_eq!(server.attach("web", &namespace.path(), &[]).unwrap().len(), 1);
        assert_eq!(server.pod("other", &[]).1.len(), 2);
        server.builtin().gc(&|_| false).unwrap();
        assert_clean(&server);
    });
}

/// Advertises the pod as a router to all on its link (RFC 4861, section 4.2).
fn advertise(pod: &Namespace) {
    pod.run(|| {
        sh("ip addr replace fe80::2/64 dev eth0 nodad");
        let index = sh("ip -o link show eth0").split(':').next().unwrap().parse().unwrap();
        let raw = rustix::net::SocketType::RAW;
        let icmp = Some(rustix::net::ipproto::ICMPV6);
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET6, raw, icmp).unwrap();
        rustix::net::sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
        let all_nodes = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let flags = rustix::net::SendFlags::empty();
        assert_eq!(rustix::net::sendto(&socket, &message, flags, &all_nodes).unwrap(), message.len());
    });
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn a_pod_does_not_become_the_hosts_router() {
    for subnets in [&["10.213.12.0/24"][..], &["10.213.12.0/24", "fd00:213:12::/64"]] {
        on_a_host(move || {
            let server = Server::new("tc", subnets);
            let (evil, _) = server.pod("evil", &[]);
            // As on a host that gets its own routes from advertisements.
            sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
            advertise(&evil);
            assert_eq!(sh("ip -6 route show default"), "");
            // This test can fail: a link with the kernel's defaults believes it.
            let link = sh("ls /proc/sys/net/ipv6/conf | grep ^tc-").trim().to_owned();
            sh(&format!("cd /proc/sys/net/ipv6/conf/{link}; echo 0 > disable_ipv6; echo 1 > accept_ra"));
            sh(&format!("ip addr add fe80::9/64 dev {link} nodad"));
            advertise(&evil);
            assert!(sh("ip -6 route show default").contains("via fe80::2"));
            server.detach("evil");
            assert_clean(&server);
        });
    }
}

#[test]
fn turning_forwarding_on_keeps_the_routes_that_the_host_learns() {
    on_a_host(|| {
        let _outside = outside();
        // One interface whose router was heard, one that waits for its first advertisement, one that believes none.
        sh("ip -6 route del default; ip -6 route add default via fd00:99::1 dev uplink proto ra");
        sh("ip link add early type veth peer name ylrae; echo 0 > /proc/sys/net/ipv6/conf/ylrae/accept_ra");
        let server = Server::new("t5", &[]);
        let _pod = server.pod("web", &[]);
        let values = "for link in uplink early ylrae lo t5-*; do cat $link/accept_ra; done; cat all/forwarding";
        assert_eq!(sh(&format!("cd /proc/sys/net/ipv6/conf; {values}")), "2\n2\n0\n1\n0\n1\n");
        assert!(sh("ip -6 route show default").contains("fd00:99::1"));
        sh("ip link del early");
        server.detach("web");
        assert_clean(&server);
    });
}

#[test]
fn two_instances_never_meet() {
    on_a_host(|| {
        let [one, two] = ["one", "two"].map(|name| Server::new(name, &[]));
        let (a, a_ips) = one.pod("same-id", &[]);
        let (b, b_ips) = two.pod("same-id", &[]);
        assert_eq!((a_ips[0], b_ips[0]), (ip("10.77.0.2"), ip("10.78.0.2")));
        a.serve(80, "a");
        b.serve(80, "b");
        assert!(ask(a_ips[0], 80).unwrap().starts_with("a") && ask(b_ips[0], 80).unwrap().starts_with("b"));
        // A range that another instance has is refused by name.
        let three = Server::new("three", &["10.77.7.0/24"]);
        let namespace = Namespace::new();
        let refused = three.attach("x", &namespace.path(), &[]).unwrap_err().to_string();
        assert!(refused.contains("10.77.7.0/24") && refused.contains("another instance"), "{refused}");
        one.builtin().gc(&|_| false).unwrap();
        one.builtin().settle();
        assert!(ask(b_ips[0], 80).is_ok() && ask(a_ips[0], 80).is_err());
        // It is free now.
        three.attach("x", &namespace.path(), &[]).unwrap();
        two.detach("same-id");
        two.builtin().settle();
        three.detach("x");
        assert_clean(&three);
    });
}

#[test]
fn pods_that_start_and_stop_in_parallel_do_not_disturb_each_other() {
    on_a_host(|| {
        let server = Server::new("t0", &[]);
        let server = &server;
        std::thread::scope(|scope| {
            for worker in 0..4u16 {
                scope.spawn(move || {
                    for round in 0..5 {
                        let id = format!("pod-{worker}-{round}");
                        // All rounds of a worker want the same port.
                        let (pod, ips) = server.pod(&id, &[port(Protocol::Tcp, "", 8000 + worker, 80)]);
                        pod.serve(80, "pod");
                        assert!(ask(ips[0], 80).is_ok() && ask(LOOPBACK4, 8000 + worker).is_ok(), "{id}");
                        server.detach(&id);
                        if round == 2 {
                            server.builtin().settle();
                        }
                    }
                });
            }
        });
        assert_clean(server);
    });
}

#[test]
fn a_host_that_cannot_serve_pods_says_so_until_it_can() {
    on_a_host(|| {
        let server = Server::new("ta", &["10.213.30.0/24"]);
        assert!(server.builtin().status().ready);
        sh(
            "ip link add lan type veth peer name nal; ip addr add 10.213.30.7/24 dev lan; ip link set lan up; ip link set nal up",
        );
        let namespace = Namespace::new();
        assert!(matches!(server.attach("web", &namespace.path(), &[]), Err(Error::Subnet { .. })));
        let status = server.builtin().status();
        assert!(!status.ready && status.message.contains("10.213.30.0/24"), "{status:?}");
        sh("ip link del lan");
        assert!(server.builtin().status().ready);
        server.attach("web", &namespace.path(), &[]).unwrap();
        server.detach("web");
        assert_clean(&server);
    });
}

#[test]
fn an_address_that_somebody_else_routes_is_left_to_them() {
    on_a_host(|| {
        let server = Server::new("t6", &["10.213.6.0/24"]);
        let _first = server.pod("first", &[]);
        sh("ip link add other type veth peer name rehto; ip link set other up; ip route add 10.213.6.3 dev other");
        let (_second, ips) = server.pod("second", &[]);
        assert_eq!(ips, [ip("10.213.6.4")]);
        sh("ip link del other");
        server.detach("first");
        server.detach("second");
        assert_clean(&server);
    });
}

#[test]
fn a_full_range_says_so_and_what_is_wrong_is_refused() {
    on_a_host(|| {
        let server = Server::new("t7", &["10.213.7.0/30"]);
        let (a, _) = server.pod("a", &[]);
        let namespace = Namespace::new();
        let attach = |id: &str, ports: &[PortMapping]| server.attach(id, &namespace.path(), ports).unwrap_err();
        assert!(matches!(attach("b", &[]), Error::NoAddress(_)));
        assert!(matches!(attach("../b", &[]), Error::Id(_)));
        assert!(matches!(attach("b", &[port(Protocol::Tcp, "fd00::1", 80, 80)]), Error::HostIp { port: 80, .. }));
        assert!(matches!(server.attach("b", Path::new("/nonexistent"), &[]), Err(Error::Namespace { .. })));
        assert!(matches!(server.attach("b", Path::new("/proc/self/ns/uts"), &[]), Err(Error::Namespace { .. })));
        assert!(matches!(server.attach("b", Path::new("/proc/thread-self/ns/net"), &[]), Err(Error::HostNamespace(_))));
        server.detach("a");
        server.builtin().settle();
        assert!(server.attach("b", &a.path(), &[]).is_ok());
        server.detach("b");
        server.builtin().settle();
        namespace.run(|| sh("ip link add eth0 type veth peer name eth1"));
        assert!(matches!(attach("c", &[]), Error::Occupied(_)));
        assert_clean(&server);
    });
}

#[test]
fn detaching_twice_or_without_namespace_succeeds_and_check_sees_what_differs() {
    on_a_host(|| {
        let server = Server::new("t8", &[]);
        let (namespace, ips) = server.pod("web", &[]);
        server.check("web", &namespace.path(), &ips).unwrap();
        assert!(server.check("web", &namespace.path(), &ips[..1]).is_err());
        namespace.run(|| sh("ip link del eth0"));
        assert!(server.check("web", &namespace.path(), &ips).is_err());
        // Asked for again, it is made again.
        let again = server.attach("web", &namespace.path(), &[]).unwrap();
        server.check("web", &namespace.path(), &again).unwrap();
        assert_eq!(server.attach("web", &namespace.path(), &[]).unwrap(), again);
        drop(namespace);
        server.detach("web");
        server.detach("web");
        server.detach("unknown");
        assert_clean(&server);
    });
}

/// Prints what `--nocapture` shows. The limits are ten times what an idle machine needs: they catch growth, not noise.
#[test]
fn two_hundred_pods_start_and_stop_in_constant_time() {
    on_a_host(|| {
        let _outside = outside();
        let server = Server::new("t9", &["10.213.9.0/24", "fd00:213:9::/64"]);
        let namespaces: Vec<Namespace> = (0..200).map(|_| Namespace::new()).collect();
        let ids: Vec<String> = (0..200u64).map(|n| format!("{n:03x}{}", "4".repeat(61))).collect();
        let time = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1000.0
        };
        let print = |what: &str, times: &[f64]| {
            let part = |times: &[f64]| {
                let mut sorted = times.to_vec();
                sorted.sort_by(f64::total_cmp);
                [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() * 9 / 10]]
            };
            let (early, late) = (part(&times[1..21]), part(&times[times.len() - 20..]));
            eprintln!("{what}: {:.2} ms; least, p50, p90 of 20 early {early:.2?}, of 20 late {late:.2?}", times[0]);
            late[1]
        };
        let mut attach = Vec::new();
        for (n, (id, namespace)) in ids.iter().zip(&namespaces).enumerate() {
            let mapping = [port(Protocol::Tcp, "", 10_000 + u16::try_from(n).unwrap(), 80)];
            let ports = if n % 2 == 0 { &[][..] } else { &mapping };
            attach.push(time(&mut || drop(server.attach(id, &namespace.path(), ports).unwrap())));
        }
        let halves = |times: &[f64], odd: usize| times.iter().copied().skip(odd).step_by(2).collect::<Vec<_>>();
        let plain = print("attach", &halves(&attach, 0));
        let mapped = print("attach with a host port", &halves(&attach, 1));
        let detach: Vec<f64> = ids.iter().map(|id| time(&mut || server.detach(id))).collect();
        let undone = print("detach", &halves(&detach, 0));
        let unmapped = print("detach with a host port", &halves(&detach, 1));
        eprintln!("the rest: {:.0} ms", time(&mut || server.builtin().settle()));
        assert!(plain < 50.0 && mapped < 100.0 && undone < 50.0 && unmapped < 100.0);
        assert_clean(&server);
    });
}

/// Keeps warnings.
#[derive(Debug, Default, Clone)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

#[test]
fn limits_that_are_not_kept_are_told_once() {
    on_a_host(|| {
        let server = Server::new("td", &["10.213.13.0/24"]);
        let warnings = Warnings::default();
        tracing::subscriber::with_default(warnings.clone(), || {
            for (limits, count) in [(None, 0), (Some((Some(0), None)), 0), (Some((None, Some(1_000_000))), 1)] {
                let bandwidth = limits.map(|(ingress, egress)| Bandwidth { ingress, egress });
                let namespace = Namespace::new();
                let path = namespace.path();
                let limited = Pod { bandwidth, ..pod("web", &path, &[]) };
                server.builtin().attach(&limited).unwrap();
                server.builtin().attach(&limited).unwrap();
                let mut said = warnings.taken();
                said.retain(|said| said.contains("bandwidth"));
                assert_eq!(said.len(), count, "{said:?}");
                assert!(said.iter().all(|said| said.contains("default/web")));
                server.detach("web");
                server.builtin().settle();
            }
        });
        assert_clean(&server);
    });
}
