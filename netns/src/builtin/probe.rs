//! Whether a process of the host has a port that a pod wants.
//!
//! Host ports are rules, not sockets, and rules have their say before sockets: nothing in the kernel keeps a pod from taking
//! the clients of a server that goes on listening. So it is asked.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::Error;
use super::ports::{Host, Listener};
use crate::Protocol;

/// Binds each listener's address in the calling thread's network namespace, the host's, with a socket that is closed at
/// once. That takes microseconds.
///
/// # Errors
/// [`Error::PortOfHost`]. What cannot be bound for another reason, as an address that the host does not have yet, is
/// nobody's.
pub(super) fn free<'a>(listeners: impl IntoIterator<Item = &'a Listener>) -> Result<(), Error> {
    for &Listener { protocol, port, host, .. } in listeners {
        let address = match host {
            Host::Any4 => Ipv4Addr::UNSPECIFIED.into(),
            Host::Any6 => Ipv6Addr::UNSPECIFIED.into(),
            Host::At(ip) => ip,
        };
        match try_bind(protocol, SocketAddr::new(address, port)) {
            Err(Errno::ADDRINUSE) if is_served(protocol, port) => {
                return Err(Error::PortOfHost { protocol: protocol.as_str(), port, address });
            }
            Err(error) => tracing::debug!(%address, port, %error, "cannot bind a host port, but nobody serves it"),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn try_bind(protocol: Protocol, at: SocketAddr) -> rustix::io::Result<()> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        // A socket would load the module; while it is not there, nobody listens.
        Protocol::Sctp if !Path::new("/proc/thread-self/net/sctp").exists() => return Ok(()),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(number))?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Connections of a server that is gone are not in the way then, as they are not in its successor's; one that listens is.
    if protocol != Protocol::Udp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)
}

/// Whether a taken port is a server's: the kernel also gives ports to the host's own clients, and those keep their answers,
/// which belong to flows that no rule translates.
fn is_served(protocol: Protocol, port: u16) -> bool {
    // include/net/tcp_states.h; a UDP socket without a peer is TCP_CLOSE.
    let (files, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], "0A"),
        Protocol::Udp => (["udp", "udp6"], "07"),
        Protocol::Sctp => return true,
    };
    let suffix = format!(":{port:04X}");
    let is_it = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&suffix)) && words.nth(1) == Some(state)
    };
    files.iter().any(|file| match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
        Ok(sockets) => sockets.lines().any(is_it),
        // Without IPv6 there is no second file; without the first nothing is known.
        Err(_) => !file.ends_with('6'),
    })
}
