//! Routes of the host: to pods, claims of ranges, and what others have.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::Error;
use super::netlink::Socket;
use crate::Subnet;

/// The protocol on all routes of this network (`rtm_protocol`; 99 is nobody's in iproute2's list).
pub(super) const PROTOCOL: u8 = 99;

/// A route of the host, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostRoute {
    pub(super) subnet: Subnet,
    /// Whose: `rtm_protocol`.
    pub(super) protocol: u8,
    pub(super) metric: u32,
    /// The interface it leads to; none for unreachable routes.
    pub(super) device: Option<u32>,
    pub(super) unreachable: bool,
}

/// All unicast and unreachable routes of one family, host routes and default routes included.
///
/// # Errors
/// The kernel's.
pub(super) fn list(host: &mut Socket, ipv4: bool) -> Result<Vec<HostRoute>, Error> {
    let mut query = RouteMessage::default();
    query.header.address_family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let all = host.dump(Message::GetRoute(query)).map_err(Error::netlink("listing routes"))?;
    let read = |message| match message {
        Message::NewRoute(route) => host_route(&route, ipv4),
        _ => None,
    };
    Ok(all.into_iter().filter_map(read).collect())
}

fn host_route(route: &RouteMessage, ipv4: bool) -> Option<HostRoute> {
    let unreachable = route.header.kind == RouteType::Unreachable;
    if route.header.kind != RouteType::Unicast && !unreachable {
        return None;
    }
    let anywhere = if ipv4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (mut address, mut metric, mut device) = (anywhere, 0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = (*ip).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = (*ip).into(),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) if !unreachable => device = Some(*index),
            _ => {}
        }
    }
    let subnet = Subnet::new(address, route.header.destination_prefix_length)?;
    Some(HostRoute { subnet, protocol: route.header.protocol.into(), metric, device, unreachable })
}

/// Claims a range for the instance: packets to addresses that no pod has go nowhere, and others see that it is taken.
///
/// # Errors
/// The kernel's; a claim that is there already is fine.
pub(super) fn claim(host: &mut Socket, subnet: Subnet, metric: u32) -> Result<(), Error> {
    let route = Message::NewRoute(claim_route(subnet, metric));
    match host.batch(vec![(route, NLM_F_CREATE | NLM_F_EXCL, "claiming the range of pod addresses")]) {
        Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Gives a claim up.
///
/// # Errors
/// The kernel's; one that is not there is fine.
pub(super) fn disclaim(host: &mut Socket, subnet: Subnet, metric: u32) -> Result<(), Error> {
    let route = Message::DelRoute(claim_route(subnet, metric));
    match host.batch(vec![(route, 0, "giving up the range of pod addresses")]) {
        Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

fn claim_route(subnet: Subnet, metric: u32) -> RouteMessage {
    match subnet.address() {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, subnet.prefix())
            .kind(RouteType::Unreachable)
            .protocol(RouteProtocol::from(PROTOCOL))
            .priority(metric)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, subnet.prefix())
            .kind(RouteType::Unreachable)
            .protocol(RouteProtocol::from(PROTOCOL))
            .priority(metric)
            .build(),
    }
}

/// The interface that a packet to the address would leave by.
pub(super) fn route_to(host: &mut Socket, ip: IpAddr) -> io::Result<u32> {
    let mut query = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    query.header = RouteHeader {
        address_family: query.header.address_family,
        destination_prefix_length: query.header.destination_prefix_length,
        ..RouteHeader::default()
    };
    match host.get(Message::GetRoute(query))? {
        Message::NewRoute(route) if route.header.kind == RouteType::Unicast => {
            let oif = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            oif.ok_or_else(|| io::ErrorKind::NotFound.into())
        }
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

pub(super) fn route4(to: Ipv4Addr, prefix: u8, device: u32) -> RouteMessageBuilder<Ipv4Addr> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(device).protocol(RouteProtocol::from(PROTOCOL));
    if prefix == 0 { route } else { route.destination_prefix(to, prefix) }
}

pub(super) fn route6(to: Ipv6Addr, prefix: u8, device: u32) -> RouteMessageBuilder<Ipv6Addr> {
    let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(device).protocol(RouteProtocol::from(PROTOCOL));
    if prefix == 0 { route } else { route.destination_prefix(to, prefix) }
}

pub(super) fn pod_route(ip: IpAddr, device: u32) -> RouteMessage {
    match ip {
        IpAddr::V4(ip) => route4(ip, 32, device).scope(RouteScope::Link).build(),
        IpAddr::V6(ip) => route6(ip, 128, device).build(),
    }
}
