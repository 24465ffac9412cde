//! Hosts whose own forward chains drop what they do not know.

use super::*;

fn server() -> Server {
    Server::new("f1", &["10.213.20.0/24", "fd00:213:20::/64"])
}

/// A pod with a host port works in all directions, and what was dropped before still is.
fn works_and_stays_closed(server: &Server, outside: &Namespace) {
    outside.serve(80, "outside");
    let (a, _) = server.pod("a", &[port(Protocol::Tcp, "", 8080, 80)]);
    let (b, b_ips) = server.pod("b", &[]);
    a.serve(80, "a");
    b.serve(80, "b");
    for (host, machine) in [("192.0.2.2", "192.0.2.1"), ("fd00:99::2", "fd00:99::1")] {
        assert_eq!(outside.run(|| ask(ip(host), 8080)).unwrap(), format!("a sees {machine}"));
        assert_eq!(a.run(|| ask(ip(machine), 80)).unwrap(), format!("outside sees {host}"));
        assert!(b.run(|| ask(ip(host), 8080)).is_ok());
    }
    assert!(a.run(|| ask(b_ips[0], 80)).is_ok() && a.run(|| ask(b_ips[1], 80)).is_ok());
    outside.run(|| sh("ip route add 10.213.20.0/24 via 192.0.2.2; ip route add fd00:213:20::/64 via fd00:99::2"));
    assert!(outside.run(|| ask(b_ips[0], 80)).is_err() && outside.run(|| ask(b_ips[1], 80)).is_err());
    let opened = server.builtin().status().details["forward.opened"].clone();
    assert!(!opened.as_array().unwrap().is_empty());
    server.detach("a");
    server.detach("b");
    server.builtin().settle();
}

#[test]
fn a_policy_of_iptables_nft() {
    on_a_host(|| {
        let outside = outside();
        sh("iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i docker0 -j ACCEPT");
        let before = sh("iptables-nft-save | grep -v '^#'");
        let server = server();
        let (_c, _) = server.pod("c", &[]);
        // Those who own the chain can still read and change it.
        assert!(sh("iptables-nft -S FORWARD").contains("-i f1-+"));
        server.detach("c");
        works_and_stays_closed(&server, &outside);
        assert_eq!(sh("iptables-nft-save | grep -v '^#'"), before);
    });
}

#[test]
fn a_last_rule_of_iptables_nft_that_rejects() {
    for rule in ["-j REJECT", "-m comment --comment 'the rest' -j REJECT --reject-with icmp-host-prohibited"] {
        on_a_host(move || {
            let outside = outside();
            let rule = format!("-A FORWARD {rule}");
            let rule6 = rule.replace("icmp-host-prohibited", "icmp6-adm-prohibited");
            sh(&format!("iptables-nft {rule}; ip6tables-nft {rule6}"));
            works_and_stays_closed(&server(), &outside);
        });
    }
}

#[test]
fn a_policy_of_iptables_legacy() {
    on_a_host(|| {
        let outside = outside();
        sh("iptables-legacy -w -P FORWARD DROP; ip6tables-legacy -w -P FORWARD DROP");
        let server = server();
        works_and_stays_closed(&server, &outside);
        assert_eq!(
            sh("iptables-legacy -w -S FORWARD; ip6tables-legacy -w -S FORWARD"),
            "-P FORWARD DROP\n-P FORWARD DROP\n"
        );
    });
}

#[test]
fn a_firewall_that_ends_in_reject_and_comes_after_the_first_pod() {
    on_a_host(|| {
        let outside = outside();
        let server = server();
        let (early, _) = server.pod("early", &[]);
        early.serve(80, "early");
        sh(
            "nft 'table inet fw { chain last { type filter hook forward priority 10; ct state established accept; reject with icmpx admin-prohibited; }; }'",
        );
        assert!(early.run(|| ask(ip("192.0.2.1"), 80)).is_err());
        assert!(server.builtin().status().ready);
        works_and_stays_closed(&server, &outside);
        server.detach("early");
        server.builtin().settle();
        assert!(!sh("nft list table inet fw").contains("f1-"));
        assert_eq!(sh("nft list tables"), "table inet fw\n");
    });
}

#[test]
fn our_chain_closes_before_theirs_is_opened() {
    on_a_host(|| {
        let _outside = outside();
        sh("iptables-nft -P FORWARD DROP");
        let mut monitor = Command::new("stdbuf");
        let mut monitor = monitor.args(["-oL", "nft", "monitor"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let server = server();
        let _pod = server.pod("a", &[]);
        std::thread::sleep(Duration::from_millis(300));
        monitor.kill().unwrap();
        let mut events = String::new();
        monitor.stdout.take().unwrap().read_to_string(&mut events).unwrap();
        monitor.wait().unwrap();
        let first = |part: &str| events.lines().position(|line| line.contains(part)).expect(part);
        assert!(first("add chain inet f1-pods forward") < first("f1-pods accepts"), "{events}");
        // Open chains that drop no more hold no rule of ours afterwards, either.
        sh("iptables-nft -P FORWARD ACCEPT");
        assert!(server.builtin().status().ready);
        server.detach("a");
        server.builtin().settle();
        assert!(!sh("nft list ruleset").contains("f1-"));
    });
}

#[test]
fn chains_that_accept_are_left_alone() {
    on_a_host(|| {
        let _outside = outside();
        sh("iptables-nft -A FORWARD -i docker0 -j DROP");
        let server = server();
        let _pod = server.pod("a", &[]);
        assert!(!sh("nft list ruleset").contains("f1-pods accepts"));
        server.detach("a");
        server.builtin().settle();
    });
}
