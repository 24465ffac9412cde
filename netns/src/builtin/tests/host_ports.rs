//! Host ports, from everywhere.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

/// Instance, ranges, and the addresses by which the host shows itself to pods behind NAT.
fn server() -> Server {
    Server::new("t1", &["10.213.1.0/24", "fd00:213:1::/64"])
}

#[test]
fn every_client_reaches_a_host_port_by_both_families() {
    on_a_host(|| {
        let outside = outside();
        // The strictest setting that distributions come with.
        sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
        let server = server();
        let (web, ips) = server.pod("web", &[port(Protocol::Tcp, "", 8080, 80)]);
        let (other, other_ips) = server.pod("other", &[]);
        web.serve(80, "web");

        // From outside the client's own address is seen.
        assert_eq!(outside.run(|| ask(ip("192.0.2.2"), 8080)).unwrap(), "web sees 192.0.2.1");
        assert_eq!(outside.run(|| ask(ip("fd00:99::2"), 8080)).unwrap(), "web sees fd00:99::1");
        // On the host: loopback, and its own addresses.
        assert_eq!(ask(LOOPBACK4, 8080).unwrap(), "web sees 10.213.1.1");
        assert_eq!(ask(ip("127.0.0.53"), 8080).unwrap(), "web sees 10.213.1.1");
        assert_eq!(ask(LOOPBACK6, 8080).unwrap(), "web sees fd00:213:1::1");
        assert_eq!(ask(ip("192.0.2.2"), 8080).unwrap(), "web sees 192.0.2.2");
        assert_eq!(ask(ip("fd00:99::2"), 8080).unwrap(), "web sees fd00:99::2");
        // Another pod of this node, by its own address; and the pod itself.
        for (host, at) in [("192.0.2.2", 0), ("fd00:99::2", 1)] {
            assert_eq!(other.run(|| ask(ip(host), 8080)).unwrap(), format!("web sees {}", other_ips[at]));
            let itself = web.run(|| ask(ip(host), 8080)).unwrap();
            assert_eq!(itself, ["web sees 10.213.1.1", "web sees fd00:213:1::1"][at]);
        }
        // Past the host port too, and no other port.
        assert!(ask(ips[0], 80).is_ok() && ask(ips[1], 80).is_ok());
        assert!(ask(LOOPBACK4, 8081).is_err() && ask(LOOPBACK6, 8081).is_err());

        server.detach("web");
        assert!(ask(LOOPBACK4, 8080).is_err() && outside.run(|| ask(ip("192.0.2.2"), 8080)).is_err());
        server.detach("other");
        assert_clean(&server);
    });
}

#[test]
fn a_host_address_narrows_a_port() {
    on_a_host(|| {
        let outside = outside();
        let server = server();
        let ports = [
            port(Protocol::Tcp, "127.0.0.1", 8080, 80),
            port(Protocol::Tcp, "fd00:99::2", 8081, 80),
            port(Protocol::Tcp, "0.0.0.0", 8082, 80),
            port(Protocol::Sctp, "", 8080, 80),
        ];
        let (web, _) = server.pod("web", &ports);
        web.serve(80, "web");
        assert!(ask(LOOPBACK4, 8080).is_ok());
        assert!(ask(LOOPBACK6, 8080).is_err() && ask(ip("192.0.2.2"), 8080).is_err());
        assert!(outside.run(|| ask(ip("192.0.2.2"), 8080)).is_err());
        assert!(outside.run(|| ask(ip("fd00:99::2"), 8081)).is_ok() && ask(ip("fd00:99::2"), 8081).is_ok());
        assert!(ask(LOOPBACK6, 8081).is_err());
        assert!(outside.run(|| ask(ip("192.0.2.2"), 8082)).is_ok() && ask(LOOPBACK6, 8082).is_err());
        server.detach("web");
        assert_clean(&server);
    });
}

#[test]
fn a_pod_cannot_use_the_way_back_to_loopback_clients() {
    on_a_host(|| {
        let server = server();
        serve(SocketAddr::new(LOOPBACK4, 9999), "secret");
        let (evil, ips) = server.pod("evil", &[port(Protocol::Tcp, "", 8080, 80)]);
        evil.serve(80, "evil");
        assert!(ask(LOOPBACK4, 8080).is_ok());
        // Root in the pod can send packets to 127.0.0.1 through eth0.
        let line = "ip addr del 127.0.0.1/8 dev lo; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet;
            ip route add 127.0.0.1 via 169.254.1.1 dev eth0 src";
        evil.run(|| sh(&format!("{line} {}", ips[0])));
        let attack = || evil.run(|| ask(LOOPBACK4, 9999));
        assert!(attack().is_err());
        // This test can fail: without the guard the same packets arrive.
        sh("nft flush chain inet t1-pods guard");
        assert_eq!(attack().unwrap(), format!("secret sees {}", ips[0]));
        server.detach("evil");
        assert_clean(&server);
    });
}

#[test]
fn a_neighbour_does_not_reach_a_host_port_on_loopback() {
    on_a_host(|| {
        let outside = outside();
        let server = server();
        let ports = [port(Protocol::Tcp, "127.0.0.1", 8080, 80), port(Protocol::Tcp, "", 8081, 80)];
        let (web, _) = server.pod("web", &ports);
        web.serve(80, "web");
        outside.run(|| {
            sh("ip addr del 127.0.0.1/8 dev lo; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet;
                ip route add 127.0.0.1 via 192.0.2.2 dev eth0 src 192.0.2.1")
        });
        let reached = |port| outside.run(|| ask(LOOPBACK4, port));
        assert!(reached(8080).is_err() && reached(8081).is_err());
        for port in [8080, 8081] {
            assert_eq!(ask(LOOPBACK4, port).unwrap(), "web sees 10.213.1.1");
        }
        assert!(outside.run(|| ask(ip("192.0.2.2"), 8081)).is_ok());
        // This test can fail: without the guard the same packets arrive.
        sh("nft flush chain inet t1-pods guard");
        assert_eq!(reached(8080).unwrap(), "web sees 192.0.2.1");
        server.detach("web");
        assert_clean(&server);
    });
}

#[test]
fn udp_clients_that_came_before_the_pod_and_stay_after_it_are_served() {
    serves_udp_clients(false);
}

/// As kernels before 6.8 have it.
#[test]
fn udp_clients_are_served_where_flows_end_one_by_one() {
    serves_udp_clients(true);
}

fn serves_udp_clients(one_by_one: bool) {
    on_a_host(move || {
        let outside = outside();
        let server = server();
        server.builtin().shared.one_by_one.store(one_by_one, Relaxed);
        let ports = [port(Protocol::Udp, "", 5353, 53)];
        let clients = ["192.0.2.2", "fd00:99::2"].map(|host| {
            outside.run(|| {
                let client = UdpSocket::bind(if host.contains(':') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
                client.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
                (client, SocketAddr::new(ip(host), 5353))
            })
        });
        let ask = |(client, host): &(UdpSocket, SocketAddr)| {
            let mut said = [0; 64];
            client.send_to(b"?", host)?;
            // The answer to the packet before this one may be an error: nobody listened.
            let length =
                client.recv(&mut said).or_else(|_| client.send_to(b"?", host).and_then(|_| client.recv(&mut said)))?;
            io::Result::Ok(String::from_utf8_lossy(&said[..length]).into_owned())
        };
        // Connection tracking must be on before the pod, as where other rules use it.
        sh(
            "nft 'add table inet other; add chain inet other c { type filter hook prerouting priority 0; }; add rule inet other c ct state new counter'",
        );
        clients.iter().for_each(|client| assert!(ask(client).is_err()));
        let (first, _) = server.pod("first", &ports);
        first.serve_udp(53, "first");
        clients.iter().for_each(|client| assert_eq!(ask(client).unwrap(), "first"));
        server.detach("first");
        let (second, _) = server.pod("second", &ports);
        second.serve_udp(53, "second");
        clients.iter().for_each(|client| assert_eq!(ask(client).unwrap(), "second"));
        server.detach("second");
        sh("nft delete table inet other");
        assert_clean(&server);
    });
}

#[test]
fn a_udp_host_port_leaves_flows_to_that_port_elsewhere_alone() {
    [false, true].into_iter().for_each(leaves_flows_elsewhere);
}

fn leaves_flows_elsewhere(one_by_one: bool) {
    on_a_host(move || {
        let outside = outside();
        let socket = outside.run(|| UdpSocket::bind("192.0.2.1:5353").unwrap());
        std::thread::spawn(move || {
            // Tells the port that NAT gave the client, which a new flow would get anew.
            while let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
                let _ = socket.send_to(peer.port().to_string().as_bytes(), peer);
            }
        });
        let server = server();
        server.builtin().shared.one_by_one.store(one_by_one, Relaxed);
        let (client, _) = server.pod("client", &[]);
        let client = client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let ask = || {
            let mut said = [0; 64];
            client.send_to(b"?", "192.0.2.1:5353").unwrap();
            let length = client.recv(&mut said).unwrap();
            String::from_utf8_lossy(&said[..length]).into_owned()
        };
        let before = ask();
        let _dns = server.pod("dns", &[port(Protocol::Udp, "", 5353, 53)]);
        assert_eq!(ask(), before);
        server.detach("client");
        server.detach("dns");
        assert_clean(&server);
    });
}

#[test]
fn a_taken_host_port_names_its_pod_and_changes_nothing() {
    on_a_host(|| {
        let server = server();
        let ports = [port(Protocol::Tcp, "", 8080, 80)];
        let (web, _) = server.pod("web", &ports);
        web.serve(80, "web");
        let second = Namespace::new();
        let refused = server.attach("second", &second.path(), &ports).unwrap_err();
        assert!(matches!(refused, Error::PortInUse { port: 8080, ref pod, .. } if pod == "web"), "{refused}");
        assert_eq!(second.run(|| sh("ip -o link | grep eth0 || true")), "");
        assert!(ask(LOOPBACK4, 8080).is_ok());
        server.detach("web");
        // Free at once, though the first pod's interface may still be going.
        let ips = server.attach("second", &second.path(), &ports).unwrap();
        second.serve(80, "second");
        assert!(ask(LOOPBACK4, 8080).unwrap().starts_with("second"));
        assert_ne!(ips[0], ip("10.213.1.2"));
        server.detach("second");
        assert_clean(&server);
    });
}

#[test]
fn a_host_port_on_which_the_host_listens_is_refused_and_leaves_nothing() {
    on_a_host(|| {
        let server = server();
        sh("ip addr add 192.0.2.2/24 dev lo");
        serve(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 22)), "sshd");
        serve(SocketAddr::new(LOOPBACK4, 23), "local");
        let _dns = UdpSocket::bind("127.0.0.53:53").unwrap();
        // Answers are kept open, so that there is a connection that must not count.
        let client = TcpStream::connect((LOOPBACK4, 22)).unwrap();
        let namespace = Namespace::new();
        for (taken, shown) in [
            (port(Protocol::Tcp, "", 22, 22), "22/tcp on 0.0.0.0"),
            (port(Protocol::Tcp, "::", 22, 22), "22/tcp on ::"),
            (port(Protocol::Tcp, "192.0.2.2", 22, 22), "22/tcp on 192.0.2.2"),
            (port(Protocol::Tcp, "", 23, 22), "23/tcp on 0.0.0.0"),
            (port(Protocol::Udp, "", 53, 53), "53/udp on 0.0.0.0"),
        ] {
            let ports = [port(Protocol::Tcp, "", 8080, 80), taken];
            let refused = server.attach("web", &namespace.path(), &ports).unwrap_err();
            assert!(matches!(refused, Error::PortOfHost { .. }) && refused.to_string().contains(shown), "{refused}");
        }
        assert!(ask(LOOPBACK4, 22).unwrap().starts_with("sshd"));
        assert_eq!(namespace.run(|| sh("ip -o link | grep eth0 || true")), "");
        assert_clean(&server);
        // Other addresses, families and protocols, addresses that the host does not have, and a client's port are free.
        let ports = [
            port(Protocol::Tcp, "192.0.2.2", 23, 80),
            port(Protocol::Tcp, "::", 23, 80),
            port(Protocol::Tcp, "192.0.2.2", 53, 80),
            port(Protocol::Udp, "", 22, 80),
            port(Protocol::Sctp, "", 22, 80),
            port(Protocol::Tcp, "198.51.100.9", 22, 80),
            port(Protocol::Tcp, "", client.local_addr().unwrap().port(), 80),
        ];
        let ips = server.attach("web", &namespace.path(), &ports).unwrap();
        // Who comes later does not stand in the way of what is attached.
        let _late = UdpSocket::bind("0.0.0.0:22").unwrap();
        assert_eq!(server.attach("web", &namespace.path(), &ports).unwrap(), ips);
        server.detach("web");
        assert_clean(&server);
    });
}

#[test]
fn a_flushed_ruleset_is_whole_again_with_the_next_look() {
    on_a_host(|| {
        let server = server();
        let (web, _) = server.pod("web", &[port(Protocol::Tcp, "", 8080, 80)]);
        web.serve(80, "web");
        sh("nft flush ruleset");
        assert!(ask(LOOPBACK4, 8080).is_err());
        assert!(server.builtin().status().ready);
        assert!(ask(LOOPBACK4, 8080).is_ok());
        sh("nft flush ruleset");
        let (next, _) = server.pod("next", &[port(Protocol::Tcp, "", 8081, 80)]);
        next.serve(80, "next");
        assert!(ask(LOOPBACK4, 8080).is_ok() && ask(LOOPBACK4, 8081).is_ok());
        // Nobody is in the way of taking pods off, either.
        sh("nft flush ruleset");
        server.detach("web");
        server.detach("next");
        assert_clean(&server);
    });
}

#[test]
fn without_nft_pods_start_and_host_ports_are_refused_with_the_way_out() {
    on_a_host(|| {
        // A mount namespace in which nft is no program.
        sys::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
        let nft = crate::builtin::program::find("nft").unwrap();
        sh(&format!("mount --make-rprivate /; mount --bind /dev/null {}", nft.canonicalize().unwrap().display()));
        let server = server();
        let (pod, ips) = server.pod("web", &[]);
        pod.serve(80, "web");
        assert!(ask(ips[0], 80).is_ok());
        let second = Namespace::new();
        let refused = server.attach("second", &second.path(), &[port(Protocol::Tcp, "", 8080, 80)]).unwrap_err();
        assert!(matches!(refused, Error::NoHostPorts(_)) && refused.to_string().contains("nftables"), "{refused}");
        let status = server.builtin().status();
        assert!(status.ready && status.message.contains("nftables"), "{status:?}");
        server.detach("web");
        server.builtin().settle();
        assert_eq!(sh("ip -o link | grep t1- || true; ip route show proto 99"), "");
    });
}
