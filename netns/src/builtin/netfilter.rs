//! Two questions to the kernel's netfilter that need no program: is our table there, and end a pod's UDP flows.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::NLM_F_ACK;

use super::netlink::{Socket, attribute, finish};

// linux/netfilter/nfnetlink.h, nf_tables.h, nfnetlink_conntrack.h
const SUBSYSTEM_NFTABLES: u16 = 10 << 8;
const SUBSYSTEM_CTNETLINK: u16 = 1 << 8;
const GET_TABLE: u16 = SUBSYSTEM_NFTABLES | 1;
const GET_GENERATION: u16 = SUBSYSTEM_NFTABLES | 16;
const DELETE_FLOWS: u16 = SUBSYSTEM_CTNETLINK | 2;
const FAMILY_INET: u8 = 1;
const TABLE_NAME: u16 = 1;
const GENERATION_ID: u16 = 1;
const NESTED: u16 = 1 << 15;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION_PORT: u16 = 3;
const FILTER: u16 = 25;
const FILTER_ORIGINAL_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
// Bits of CTA_FILTER_*_FLAGS, net/netfilter/nf_conntrack_netlink.c.
const BY_SOURCE: u32 = 1 << 0;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// Whether a table of the `inet` family is there.
pub(super) fn has_table(socket: &mut Socket, name: &str) -> io::Result<bool> {
    let mut request = socket.header(GET_TABLE, NLM_F_ACK);
    request.extend([FAMILY_INET, 0, 0, 0]);
    let mut value = name.as_bytes().to_vec();
    value.push(0);
    attribute(&mut request, TABLE_NAME, &value);
    match socket.exchange(&finish(request), |_| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of the ruleset's present state; every transaction of anybody raises it.
pub(super) fn generation(socket: &mut Socket) -> io::Result<u32> {
    let mut request = socket.header(GET_GENERATION, NLM_F_ACK);
    request.extend([0, 0, 0, 0]);
    let mut generation = None;
    socket.exchange(&finish(request), |message| {
        // nlmsghdr (16), nfgenmsg (4), then NFTA_GEN_ID first: length, type, value.
        if let Some([.., a, b, c, d]) = message.get(20..28).filter(|a| a[2..4] == GENERATION_ID.to_ne_bytes()) {
            generation = Some(u32::from_be_bytes([*a, *b, *c, *d]));
        }
    })?;
    generation.ok_or_else(|| io::Error::other("the kernel did not name its ruleset's generation"))
}

/// Ends UDP flows to a host port at one of the host's addresses: of clients that spoke to it before the pod came, which else
/// would stay untranslated as long as they go on. Flows to that port elsewhere are others'.
pub(super) fn end_flows_to_port(socket: &mut Socket, host: IpAddr, port: u16) -> io::Result<()> {
    let mut tuple = address(host, IP_V4_DESTINATION, IP_V6_DESTINATION);
    let mut protocol = Vec::new();
    attribute(&mut protocol, PROTOCOL_NUMBER, &[17]);
    attribute(&mut protocol, PROTOCOL_DESTINATION_PORT, &port.to_be_bytes());
    attribute(&mut tuple, TUPLE_PROTOCOL | NESTED, &protocol);
    let by = BY_DESTINATION | BY_PROTOCOL | BY_DESTINATION_PORT;
    delete_flows(socket, host.is_ipv4(), TUPLE_ORIGINAL, &tuple, [by, 0])
}

/// Ends the flows that answer from the address: of clients of a pod that went.
pub(super) fn end_flows_from(socket: &mut Socket, pod: IpAddr) -> io::Result<()> {
    let tuple = address(pod, IP_V4_SOURCE, IP_V6_SOURCE);
    delete_flows(socket, pod.is_ipv4(), TUPLE_REPLY, &tuple, [0, BY_SOURCE])
}

/// A tuple's address, as attribute `v4` or `v6`.
fn address(ip: IpAddr, v4: u16, v6: u16) -> Vec<u8> {
    let mut address = Vec::new();
    match ip {
        IpAddr::V4(ip) => attribute(&mut address, v4, &ip.octets()),
        IpAddr::V6(ip) => attribute(&mut address, v6, &ip.octets()),
    }
    let mut tuple = Vec::new();
    attribute(&mut tuple, TUPLE_IP | NESTED, &address);
    tuple
}

fn delete_flows(socket: &mut Socket, ipv4: bool, which: u16, tuple: &[u8], flags: [u32; 2]) -> io::Result<()> {
    let mut request = socket.header(DELETE_FLOWS, NLM_F_ACK);
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    // Version 1 makes the kernel heed the family.
    request.extend([u8::try_from(family).unwrap_or(0), 1, 0, 0]);
    attribute(&mut request, which | NESTED, tuple);
    let mut filter = Vec::new();
    attribute(&mut filter, FILTER_ORIGINAL_FLAGS, &flags[0].to_ne_bytes());
    attribute(&mut filter, FILTER_REPLY_FLAGS, &flags[1].to_ne_bytes());
    attribute(&mut request, FILTER | NESTED, &filter);
    match socket.exchange(&finish(request), |_| {}) {
        // No flow at all, as far as some kernels tell.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
