//! Two questions to the kernel's netfilter that need no program: is our table there, and end a pod's UDP flows.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};

use super::netlink::{Socket, attribute, attributes, finish};

// linux/netfilter/nfnetlink.h, nf_tables.h, nfnetlink_conntrack.h
const SUBSYSTEM_NFTABLES: u16 = 10 << 8;
const SUBSYSTEM_CTNETLINK: u16 = 1 << 8;
const GET_TABLE: u16 = SUBSYSTEM_NFTABLES | 1;
const GET_GENERATION: u16 = SUBSYSTEM_NFTABLES | 16;
const GET_FLOWS: u16 = SUBSYSTEM_CTNETLINK | 1;
const DELETE_FLOWS: u16 = SUBSYSTEM_CTNETLINK | 2;
const FAMILY_INET: u8 = 1;
const TABLE_NAME: u16 = 1;
const GENERATION_ID: u16 = 1;
const NESTED: u16 = 1 << 15;
/// Of an attribute's type, all but its flags.
const KIND: u16 = 0x3fff;
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
const FLOW_ID: u16 = 12;
const ZONE: u16 = 18;
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

/// Flows to be ended.
#[derive(Debug)]
pub(super) struct Flows {
    ipv4: bool,
    /// The tuple to look at: of the packets of whoever began, or of the answers.
    which: u16,
    /// What that tuple must have.
    tuple: Vec<u8>,
    /// The same as bits, for each of the two tuples.
    by: [u32; 2],
}

impl Flows {
    /// UDP flows to a host port at one of the host's addresses: of clients that spoke to it before the pod came, which else
    /// would stay untranslated as long as they go on. Flows to that port elsewhere are others'.
    pub(super) fn to_port(host: IpAddr, port: u16) -> Self {
        let mut tuple = address(host, IP_V4_DESTINATION, IP_V6_DESTINATION);
        let mut protocol = Vec::new();
        attribute(&mut protocol, PROTOCOL_NUMBER, &[17]);
        attribute(&mut protocol, PROTOCOL_DESTINATION_PORT, &port.to_be_bytes());
        attribute(&mut tuple, TUPLE_PROTOCOL | NESTED, &protocol);
        let by = [BY_DESTINATION | BY_PROTOCOL | BY_DESTINATION_PORT, 0];
        Self { ipv4: host.is_ipv4(), which: TUPLE_ORIGINAL, tuple, by }
    }

    /// The flows that answer from the address: of clients of a pod that went.
    pub(super) fn from_pod(pod: IpAddr) -> Self {
        let tuple = address(pod, IP_V4_SOURCE, IP_V6_SOURCE);
        Self { ipv4: pod.is_ipv4(), which: TUPLE_REPLY, tuple, by: [0, BY_SOURCE] }
    }

    /// Ends them with one request, which kernels before 6.8 refuse as incomplete.
    pub(super) fn end(&self, socket: &mut Socket) -> io::Result<()> {
        let mut request = self.request(socket, DELETE_FLOWS, NLM_F_ACK);
        attribute(&mut request, self.which | NESTED, &self.tuple);
        let mut filter = Vec::new();
        attribute(&mut filter, FILTER_ORIGINAL_FLAGS, &self.by[0].to_ne_bytes());
        attribute(&mut filter, FILTER_REPLY_FLAGS, &self.by[1].to_ne_bytes());
        attribute(&mut request, FILTER | NESTED, &filter);
        delete(socket, request)
    }

    /// Ends them on any kernel: reads all flows of the family, and names those that are meant one by one.
    pub(super) fn end_one_by_one(&self, socket: &mut Socket) -> io::Result<()> {
        let request = self.request(socket, GET_FLOWS, NLM_F_DUMP);
        let mut names = Vec::new();
        socket
            .exchange(&finish(request), |message| names.extend(message.get(20..).and_then(|flow| self.pick(flow))))?;
        let mut ended = Ok(());
        for name in names {
            let mut request = self.request(socket, DELETE_FLOWS, NLM_F_ACK);
            request.extend(name);
            // One that stays is no reason to leave the others.
            ended = ended.and(delete(socket, request));
        }
        ended
    }

    fn request(&self, socket: &mut Socket, kind: u16, flags: u16) -> Vec<u8> {
        let mut request = socket.header(kind, flags);
        let family = if self.ipv4 { libc::AF_INET } else { libc::AF_INET6 };
        // Version 1 makes the kernel heed the family.
        request.extend([u8::try_from(family).unwrap_or(0), 1, 0, 0]);
        request
    }

    /// What names a flow to the kernel, where it is one of these: its tuple and zone, and its number, so that another flow
    /// that has that tuple by then stays.
    fn pick(&self, flow: &[u8]) -> Option<Vec<u8>> {
        let (_, tuple) = attributes(flow).find(|(kind, _)| kind & KIND == self.which)?;
        if !has(tuple, &self.tuple) {
            return None;
        }
        let mut name = Vec::new();
        for (kind, value) in
            attributes(flow).filter(|(kind, _)| [TUPLE_ORIGINAL, FLOW_ID, ZONE].contains(&(kind & KIND)))
        {
            attribute(&mut name, kind, value);
        }
        Some(name)
    }
}

/// Whether a tuple has all that is wanted of it.
fn has(tuple: &[u8], wanted: &[u8]) -> bool {
    attributes(wanted).all(|(kind, wanted)| {
        let mut alike = attributes(tuple).filter(|(other, _)| other & KIND == kind & KIND);
        alike.any(|(_, value)| if kind & NESTED == 0 { value == wanted } else { has(value, wanted) })
    })
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

fn delete(socket: &mut Socket, request: Vec<u8>) -> io::Result<()> {
    match socket.exchange(&finish(request), |_| {}) {
        // Gone meanwhile; or no flow at all, as far as some kernels tell.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "192.0.2.2";

    /// A tuple as the kernel writes it: both addresses, protocol, both ports.
    fn tuple(source: &str, destination: &str, protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let nested = |parts: [(u16, &[u8]); 3]| {
            let mut bytes = Vec::new();
            parts.iter().filter(|(kind, _)| *kind != 0).for_each(|(kind, value)| attribute(&mut bytes, *kind, value));
            bytes
        };
        let octets = |ip: &str| match ip.parse::<IpAddr>().unwrap() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let (from, to) =
            if source.contains(':') { (IP_V6_SOURCE, IP_V6_DESTINATION) } else { (IP_V4_SOURCE, IP_V4_DESTINATION) };
        let ips = nested([(from, &octets(source)), (to, &octets(destination)), (0, &[])]);
        let [source, destination] = ports.map(u16::to_be_bytes);
        let protocol =
            nested([(PROTOCOL_NUMBER, &[protocol]), (2, &source), (PROTOCOL_DESTINATION_PORT, &destination)]);
        nested([(TUPLE_IP | NESTED, &ips), (TUPLE_PROTOCOL | NESTED, &protocol), (0, &[])])
    }

    /// A flow in a zone, with a status that does not name it.
    fn flow(original: &[u8], reply: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let parts: [(u16, &[u8]); 5] = [
            (TUPLE_ORIGINAL | NESTED, original),
            (TUPLE_REPLY | NESTED, reply),
            (3, &[0, 0, 1, 0x8e]),
            (FLOW_ID, &[1, 2, 3, 4]),
            (ZONE, &[0, 7]),
        ];
        for (kind, value) in parts {
            attribute(&mut bytes, kind, value);
        }
        bytes
    }

    #[test]
    fn a_flow_is_picked_by_what_the_filter_asks_and_named_whole() {
        let original = tuple("192.0.2.1", HOST, 17, [40000, 5353]);
        let reply = tuple("10.77.0.5", "192.0.2.1", 17, [53, 40000]);
        let flow = flow(&original, &reply);
        let mut name = Vec::new();
        attribute(&mut name, TUPLE_ORIGINAL | NESTED, &original);
        attribute(&mut name, FLOW_ID, &[1, 2, 3, 4]);
        attribute(&mut name, ZONE, &[0, 7]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(Flows::to_port(ip(HOST), 5353).pick(&flow), Some(name.clone()));
        assert_eq!(Flows::from_pod(ip("10.77.0.5")).pick(&flow), Some(name));
        for other in
            [Flows::to_port(ip(HOST), 5354), Flows::to_port(ip("192.0.2.1"), 5353), Flows::from_pod(ip("192.0.2.1"))]
        {
            assert_eq!(other.pick(&flow), None, "{other:?}");
        }
    }

    #[test]
    fn other_protocols_and_what_is_cut_off_are_not_picked() {
        let flows = Flows::to_port("fd00:99::2".parse().unwrap(), 5353);
        let of = |protocol| {
            let original = tuple("fd00:99::1", "fd00:99::2", protocol, [40000, 5353]);
            flow(&original, &tuple("fd00:99::2", "fd00:99::1", protocol, [5353, 40000]))
        };
        assert!(flows.pick(&of(17)).is_some() && flows.pick(&of(6)).is_none());
        let original = 4 + tuple("fd00:99::1", "fd00:99::2", 17, [0; 2]).len();
        for length in 0..original {
            assert_eq!(flows.pick(&of(17)[..length]), None, "{length}");
        }
    }
}
