//! Killed between any two steps: a retry, a detach or garbage collection finishes.

use super::super::link::{self, Pair};
use super::super::netlink::Socket;
use super::super::records::Record;
use super::super::rules::{self, Entry};
use super::super::{ports, state::Shared};
use super::*;

const ID: &str = "web";

fn mapping() -> [PortMapping; 2] {
    [port(Protocol::Tcp, "", 8080, 80), port(Protocol::Udp, "", 8080, 80)]
}

/// Does the first steps of an attach, as far as a server got that was then killed.
fn half_attach(server: &Server, namespace: &Namespace, steps: usize) {
    let shared: &Shared = &server.builtin().shared;
    let ports = mapping();
    let mut state = shared.lock();
    if steps >= 1 {
        shared.ensure(&mut state).unwrap();
    }
    let mut record = Record { id: ID.to_owned(), link: shared.names.link(ID), ips: Vec::new(), ports: ports.to_vec() };
    if steps >= 2 {
        record = state.reserve(&shared.names, ID, &ports, true).unwrap();
        shared.records.write(&record).unwrap();
    }
    let name = record.link.clone();
    if steps == 3 {
        // The pair, and nothing else.
        sh(&format!("ip link add {name} type veth peer name eth0 netns {}", namespace.path().display()));
    }
    if steps >= 4 {
        let mut inside = namespace.run(|| Socket::route().unwrap());
        let pair = Pair { name: &name, alias: "x", ips: &record.ips, loopback4: true, loopback6: true };
        link::create(&mut Socket::route().unwrap(), &mut inside, namespace.0.as_fd(), &pair).unwrap();
    }
    if steps >= 5 {
        let listeners = ports::listeners(&ports);
        shared
            .transact(&rules::add(&shared.names, &Entry { id: ID, ips: &record.ips, listeners: &listeners }))
            .unwrap();
    }
    drop(state);
}

/// Does the first steps of a detach.
fn half_detach(server: &Server, steps: usize) {
    let shared: &Shared = &server.builtin().shared;
    let state = shared.lock();
    let record = state.pods[ID].record.clone();
    let listeners = ports::listeners(&record.ports);
    drop(state);
    if steps >= 1 {
        shared
            .transact(&rules::remove(&shared.names, &Entry { id: ID, ips: &record.ips, listeners: &listeners }))
            .unwrap();
    }
    if steps >= 2 {
        link::unroute(&mut Socket::route().unwrap(), &record.link, &record.ips).unwrap();
    }
    if steps >= 3 {
        link::delete(&mut Socket::route().unwrap(), &record.link).unwrap();
    }
}

#[test]
fn an_attach_that_was_killed_is_finished_by_a_retry() {
    for steps in 0..=5 {
        on_a_host(move || {
            let mut server = Server::new("c1", &["10.213.10.0/24", "fd00:213:10::/64"]);
            let namespace = Namespace::new();
            half_attach(&server, &namespace, steps);
            server.restart();
            let ips = server.attach(ID, &namespace.path(), &mapping()).unwrap();
            namespace.serve(80, "web");
            assert!(ask(LOOPBACK4, 8080).is_ok() && ask(LOOPBACK6, 8080).is_ok() && ask(ips[0], 80).is_ok(), "{steps}");
            server.detach(ID);
            assert_clean(&server);
        });
    }
}

#[test]
fn an_attach_that_was_killed_is_undone_by_detach_or_by_gc() {
    for steps in 0..=5 {
        for gc in [false, true] {
            on_a_host(move || {
                let mut server = Server::new("c2", &["10.213.11.0/24", "fd00:213:11::/64"]);
                let namespace = Namespace::new();
                half_attach(&server, &namespace, steps);
                server.restart();
                if !gc {
                    server.detach(ID);
                }
                server.builtin().gc(&|_| false).unwrap();
                assert_clean(&server);
            });
        }
    }
}

#[test]
fn a_detach_that_was_killed_is_finished_by_a_retry_or_by_gc() {
    for steps in 0..=3 {
        for gc in [false, true] {
            on_a_host(move || {
                let mut server = Server::new("c3", &["10.213.12.0/24", "fd00:213:12::/64"]);
                let (_namespace, _) = server.pod(ID, &mapping());
                let (other, _) = server.pod("other", &[port(Protocol::Tcp, "", 8081, 80)]);
                other.serve(80, "other");
                half_detach(&server, steps);
                server.restart();
                match gc {
                    false => server.detach(ID),
                    true => server.builtin().gc(&|id| id == "other").unwrap(),
                }
                server.builtin().settle();
                assert_eq!(sh("ip -o link | grep -c c3-"), "1\n");
                assert!(ask(LOOPBACK4, 8081).is_ok() && ask(LOOPBACK4, 8080).is_err());
                server.detach("other");
                assert_clean(&server);
            });
        }
    }
}

#[test]
fn pods_and_ports_outlive_a_restart_and_a_flush_meanwhile() {
    on_a_host(|| {
        let mut server = Server::new("c4", &[]);
        let (web, ips) = server.pod(ID, &mapping());
        web.serve(80, "web");
        server.restart();
        assert!(ask(LOOPBACK4, 8080).is_ok());
        let second = Namespace::new();
        let taken = server.attach("second", &second.path(), &mapping()).unwrap_err();
        assert!(matches!(taken, Error::PortInUse { .. }), "{taken}");
        std::mem::forget(server.builtin.take());
        sh("nft flush ruleset");
        server.start();
        assert!(ask(LOOPBACK4, 8080).is_ok());
        let (_third, third_ips) = server.pod("third", &[]);
        assert_ne!(third_ips[0], ips[0]);
        // The range stays what it was, also where it is no longer what would be configured.
        assert_eq!(server.attach(ID, &web.path(), &mapping()).unwrap(), ips);
        server.builtin().gc(&|_| false).unwrap();
        assert_clean(&server);
    });
}

#[test]
fn pods_keep_their_addresses_when_the_configured_ranges_change() {
    on_a_host(|| {
        let outside = outside();
        outside.serve(80, "outside");
        let mut server = Server::new("c5", &["10.213.14.0/24"]);
        let (old, _) = server.pod("old", &[]);
        server.subnets = vec!["10.213.15.0/24".parse().unwrap()];
        server.restart();
        let (new, ips) = server.pod("new", &[]);
        assert_eq!(ips, [ip("10.213.15.2")]);
        for pod in [&old, &new] {
            assert_eq!(pod.run(|| ask(ip("192.0.2.1"), 80)).unwrap(), "outside sees 192.0.2.2");
        }
        server.detach("old");
        server.detach("new");
        assert_clean(&server);
    });
}

#[test]
fn state_that_was_lost_leaves_interfaces_that_gc_and_attach_replace() {
    on_a_host(|| {
        let mut server = Server::new("c6", &["10.213.16.0/24"]);
        let (_web, _) = server.pod(ID, &[]);
        let (_other, _) = server.pod("other", &[]);
        std::mem::forget(server.builtin.take());
        std::fs::remove_dir_all(server.dir.path().join("state")).unwrap();
        server.start();
        let namespace = Namespace::new();
        // The old pods' addresses are routed still: others are found.
        let ips = server.attach(ID, &namespace.path(), &[]).unwrap();
        assert!(!ips.is_empty());
        server.builtin().gc(&|id| id == ID).unwrap();
        assert_eq!(sh("ip -o link | grep -c c6-"), "1\n");
        server.detach(ID);
        assert_clean(&server);
    });
}
