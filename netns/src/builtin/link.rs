//! A pod's veth pair, its addresses and its routes.
//!
//! ```text
//!  host                                             pod
//!  crisp-4f1c09ab2  169.254.1.1/32, fe80::1/64 ────  eth0  10.77.0.5/32, fd…::5/128
//!  10.77.0.5/32, fd…::5/128 dev crisp-4f1c09ab2          169.254.1.1 dev eth0, default via it; default via fe80::1
//! ```
//! The gateway's addresses are on each host end, so ARP and neighbour discovery are answered by the kernel itself at once
//! (proxy_arp would wait up to 0.8 s), a host without any address of its own can still talk to its pods, and the pod may
//! change its hardware address. Nothing waits for duplicate address detection: both ends of a pair are known.
//! The host end makes no other address, so nothing on the host starts listening on it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::Error;
use super::host::distrust;
use super::netlink::Socket;
use super::route::{pod_route, route_to, route4, route6};

/// The interface in the pod.
pub(super) const POD_LINK: &str = "eth0";
/// Every pod's gateway; link-local, so no range of anybody's is used up.
pub(super) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Of the routes that let answers to clients on ::1 in, behind the loopback's own; each adds its interface's number, since
/// the kernel takes no two routes to one address with one metric.
const LOOPBACK_METRIC: u32 = 4096;
/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;
/// Without a route to anywhere, Ethernet's.
const MTU: u32 = 1500;

/// What a pair is made of.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) alias: &'a str,
    pub(super) ips: &'a [IpAddr],
    /// Whether clients on the host reach the pod through 127.0.0.0/8, and through ::1.
    pub(super) loopback4: bool,
    pub(super) loopback6: bool,
}

/// Makes the pair, with `host` a socket in the host's network namespace and `pod` one in the pod's. The pod's route on
/// the host comes last: where it is, all is.
///
/// # Errors
/// The step that failed; `EEXIST` on the first one: the name is taken on either side. What was made is left.
pub(super) fn create(host: &mut Socket, pod: &mut Socket, netns: BorrowedFd<'_>, pair: &Pair<'_>) -> Result<(), Error> {
    let mtu = uplink_mtu(host);
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name(POD_LINK).mtu(mtu).setns_by_fd(netns.as_raw_fd()).build();
    let veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(pair.name)
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let new = NLM_F_CREATE | NLM_F_EXCL;
    host.batch(vec![(Message::NewLink(veth), new, MAKE)])?;
    let host_index = index(host, pair.name)?;
    let pod_index = index(pod, POD_LINK)?;

    let mut inside = vec![(Message::SetLink(up(pod_index)), 0, "setting eth0 up")];
    for ip in pair.ips {
        match *ip {
            IpAddr::V4(ip) => {
                let gateway = route4(GATEWAY4, 32, pod_index).scope(RouteScope::Link).build();
                let default = route4(Ipv4Addr::UNSPECIFIED, 0, pod_index).gateway(GATEWAY4).build();
                let address = AddressMessageBuilder::<Ipv4Addr>::new().index(pod_index).address(ip, 32).build();
                inside.push((Message::NewAddress(address), new, "giving eth0 its IPv4 address"));
                inside.push((Message::NewRoute(gateway), new, "adding the pod's route to the gateway"));
                inside.push((Message::NewRoute(default), new, "adding the pod's IPv4 default route"));
            }
            IpAddr::V6(ip) => {
                let default = route6(Ipv6Addr::UNSPECIFIED, 0, pod_index).gateway(GATEWAY6).build();
                let address = AddressMessageBuilder::<Ipv6Addr>::new().index(pod_index).address(ip, 128).build();
                inside.push((Message::NewAddress(nodad(address)), new, "giving eth0 its IPv6 address"));
                inside.push((Message::NewRoute(default), new, "adding the pod's IPv6 default route"));
            }
        }
    }
    pod.batch(inside)?;

    let ipv6 = pair.ips.iter().any(IpAddr::is_ipv6);
    distrust(pair.name, ipv6)?;
    let mut outside = vec![(Message::SetLink(settings(host_index, pair, ipv6)), 0, "setting up the host's end")];
    let address = AddressMessageBuilder::<Ipv4Addr>::new().index(host_index).address(GATEWAY4, 32);
    let mut address = address.build();
    address.header.scope = AddressScope::Link;
    outside.push((Message::NewAddress(address), new, "giving the host's end the gateway's address"));
    if ipv6 {
        let address = AddressMessageBuilder::<Ipv6Addr>::new().index(host_index).address(GATEWAY6, 64).build();
        outside.push((Message::NewAddress(nodad(address)), new, "giving the host's end the gateway's IPv6 address"));
    }
    outside.push((Message::SetLink(up(host_index)), 0, "setting the host's end up"));
    if pair.loopback6 && ipv6 {
        // The kernel looks ::1 up on the interface that a packet came in on.
        let route = route6(Ipv6Addr::LOCALHOST, 128, host_index).table_id(LOCAL_TABLE).kind(RouteType::Local);
        let route = route.priority(LOOPBACK_METRIC.saturating_add(host_index)).build();
        outside.push((Message::NewRoute(route), new, "adding the route for clients on ::1"));
    }
    for ip in pair.ips {
        outside.push((Message::NewRoute(pod_route(*ip, host_index)), new, POD_ROUTE));
    }
    host.batch(outside)?;
    await_carrier(pod, pod_index);
    Ok(())
}

/// Waits until the pod's end sends. It came up before it had a carrier, so the kernel turns its queue on in a work item
/// of its own, and drops what is sent before: a client would see that as a second's delay. Kernels from 6.6 on do that work
/// at once when they are asked for the interface; older ones are asked until it is done.
fn await_carrier(pod: &mut Socket, index: u32) {
    let query = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
    for _ in 0..100 {
        let Ok(Message::NewLink(link)) = pod.get(Message::GetLink(query.clone())) else { return };
        if link.attributes.contains(&LinkAttribute::OperState(State::Up)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    tracing::warn!("a pod's interface is not up after 0.1 s");
}

/// The words of the step that fails with `EEXIST` when either end's name is taken.
pub(super) const MAKE: &str = "making the veth pair";
/// The words of the step that fails with `EEXIST` when the address has another owner.
pub(super) const POD_ROUTE: &str = "adding the host's route to the pod";

/// Takes away the pod's routes on the host, so that its traffic ends now; the pair itself takes the kernel longer.
///
/// # Errors
/// The kernel's; a link that is gone has no routes.
pub(super) fn unroute(host: &mut Socket, name: &str, ips: &[IpAddr]) -> Result<(), Error> {
    let Ok(index) = index(host, name) else { return Ok(()) };
    for ip in ips {
        let gone =
            host.batch(vec![(Message::DelRoute(pod_route(*ip, index)), 0, "deleting the host's route to the pod")]);
        match gone {
            Err(Error::Netlink { source, .. }) if matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {
            }
            other => other?,
        }
    }
    Ok(())
}

/// Deletes the pair. Waits for RCU grace periods in the kernel, some ten milliseconds.
///
/// # Errors
/// The kernel's; a pair that is not there is deleted.
pub(super) fn delete(host: &mut Socket, name: &str) -> Result<(), Error> {
    let link = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
    match host.batch(vec![(Message::DelLink(link), 0, "deleting the veth pair")]) {
        Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Deletes many pairs in the time that one takes: they go into a group, and the group goes.
///
/// # Errors
/// The kernel's; pairs that are not there are deleted.
pub(super) fn delete_all(host: &mut Socket, names: &[String], group: u32) -> Result<(), Error> {
    let what = "deleting veth pairs";
    let into = |name: &String| LinkMessageBuilder::<LinkUnspec>::new().name(name.as_str()).link_group(group).build();
    let mut requests: Vec<_> = names.iter().map(|name| (Message::SetLink(into(name)), 0, what)).collect();
    requests.push((Message::DelLink(LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build()), 0, what));
    for answer in host.each(requests)? {
        match answer {
            Err(source) if source.raw_os_error() != Some(libc::ENODEV) => return Err(Error::netlink(what)(source)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the host still routes all the addresses to the pair.
pub(super) fn is_whole(host: &mut Socket, name: &str, ips: &[IpAddr]) -> bool {
    let Ok(index) = index(host, name) else { return false };
    ips.iter().all(|ip| route_to(host, *ip).is_ok_and(|found| found == index))
}

/// Whether there is such an interface.
pub(super) fn exists(socket: &mut Socket, name: &str) -> bool {
    index(socket, name).is_ok()
}

fn name(message: Message) -> Option<String> {
    let Message::NewLink(link) = message else { return None };
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// The host's own addresses of one family.
///
/// # Errors
/// The kernel's.
pub(super) fn addresses(host: &mut Socket, ipv4: bool) -> Result<BTreeSet<IpAddr>, Error> {
    let mut query = AddressMessage::default();
    query.header.family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let all = host.dump(Message::GetAddress(query)).map_err(Error::netlink("listing addresses"))?;
    let own = |message: &Message| {
        let Message::NewAddress(message) = message else { return None };
        // `Local` where it differs from the peer's, which is `Address` then.
        let find = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
        };
        find(true).or_else(|| find(false))
    };
    Ok(all.iter().filter_map(own).collect())
}

/// Names of the host ends of veth pairs that start with the prefix.
///
/// # Errors
/// The kernel's.
pub(super) fn names(host: &mut Socket, prefix: &str) -> Result<Vec<String>, Error> {
    let all = host.dump(Message::GetLink(LinkMessage::default())).map_err(Error::netlink("listing interfaces"))?;
    let veth = |message: &Message| match message {
        Message::NewLink(link) => link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => false,
        }),
        _ => false,
    };
    Ok(all.into_iter().filter(veth).filter_map(name).filter(|name| name.starts_with(prefix)).collect())
}

/// The smaller MTU of the interfaces that lead outside: pods' packets must fit there.
fn uplink_mtu(host: &mut Socket) -> u32 {
    // Documentation addresses (RFC 5737, RFC 3849): looked up, never sent to.
    let outside: [IpAddr; 2] =
        [Ipv4Addr::new(203, 0, 113, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let mtu = |host: &mut Socket, ip| {
        let query = LinkMessageBuilder::<LinkUnspec>::new().index(route_to(host, ip).ok()?).build();
        match host.get(Message::GetLink(query)).ok()? {
            Message::NewLink(link) => link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(mtu),
                _ => None,
            }),
            _ => None,
        }
    };
    let smallest = outside.into_iter().filter_map(|ip| mtu(host, ip)).min();
    // IPv6 needs 1280; the loopback's 65536 is no uplink's.
    smallest.filter(|mtu| (1280..=9216).contains(mtu)).unwrap_or(MTU)
}

fn index(socket: &mut Socket, name: &str) -> Result<u32, Error> {
    let query = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
    match socket.get(Message::GetLink(query)).map_err(Error::netlink("finding an interface"))? {
        Message::NewLink(link) => Ok(link.header.index),
        _ => Err(Error::netlink("finding an interface")(io::ErrorKind::NotFound.into())),
    }
}

fn up(index: u32) -> LinkMessage {
    LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build()
}

fn settings(index: u32, pair: &Pair<'_>, ipv6: bool) -> LinkMessage {
    let mut families = Vec::new();
    if pair.loopback4 {
        let mut conf = InetDevConf::default();
        conf.route_localnet = 1;
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]));
    }
    if ipv6 {
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
    }
    let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).alias(pair.alias);
    if families.is_empty() {
        link.build()
    } else {
        link.append_extra_attribute(LinkAttribute::AfSpecUnspec(families)).build()
    }
}

fn nodad(mut address: AddressMessage) -> AddressMessage {
    address.header.flags |= AddressHeaderFlags::Nodad;
    address
}
