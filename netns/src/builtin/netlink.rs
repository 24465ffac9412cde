//! A netlink socket: requests out, answers in, blocking.
//!
//! rtnetlink's own connection is asynchronous and sends one request at a time; this package is synchronous, and attaching a
//! pod is two batches in two network namespaces. So its message types are used, and its connection is not.
//! A socket belongs to the network namespace of the thread that opened it, wherever it is used.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with, sockopt};

use super::Error;

/// Netlink answers are at most this long (`NLMSG_GOODSIZE` and dumps of 32 KiB).
const BUFFER: usize = 64 << 10;
/// The kernel answers while it is asked; an answer that is this late was lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// `nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A request and the words for its error.
pub(super) type Request = (RouteNetlinkMessage, u16, &'static str);

/// A socket of one netlink protocol in one network namespace.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Routing: links, addresses, routes.
    pub(super) fn route() -> Result<Self, Error> {
        Self::open(None)
    }

    /// Netfilter: tables and connections.
    pub(super) fn netfilter() -> Result<Self, Error> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> Result<Self, Error> {
        let open = || {
            let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
            Ok::<_, rustix::io::Errno>(fd)
        };
        let fd =
            open().map_err(|errno| Error::Netlink { what: "opening a socket".to_owned(), source: errno.into() })?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends the requests as one batch.
    ///
    /// # Errors
    /// The first request that failed, in its own words. The kernel takes the later ones nevertheless.
    pub(super) fn batch(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        let words: Vec<_> = requests.iter().map(|(.., what)| *what).collect();
        for (answer, what) in self.each(requests)?.into_iter().zip(words) {
            answer.map_err(Error::netlink(what))?;
        }
        Ok(())
    }

    /// Sends the requests as one batch and gives the answer to each.
    ///
    /// # Errors
    /// The batch could not be sent, or was not answered.
    pub(super) fn each(&mut self, requests: Vec<Request>) -> Result<Vec<io::Result<()>>, Error> {
        let what = requests.first().map_or("asking the kernel", |(.., what)| what);
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut answers: Vec<_> = requests.iter().map(|_| None).collect();
        for (message, flags, _) in requests {
            bytes.extend(self.encode(message, flags | NLM_F_ACK));
        }
        self.send(&bytes).map_err(Error::netlink(what))?;
        while answers.iter().any(Option::is_none) {
            let note = |kind, sequence: u32, message: &[u8]| {
                let place = sequence.checked_sub(first).and_then(|at| answers.get_mut(at as usize));
                if let (NLMSG_ERROR, Some(place)) = (kind, place) {
                    *place = Some(answer(&message[HEADER..]));
                }
            };
            self.receive(note).map_err(Error::netlink(what))?;
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Asks for one object.
    ///
    /// # Errors
    /// The kernel's: `ENODEV`, `ENOENT`, `ENETUNREACH`…
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut found = self.query(message, 0)?;
        found.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Asks for all objects.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.query(message, NLM_F_DUMP)
    }

    fn query(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.encode(message, if flags == 0 { NLM_F_ACK } else { flags });
        let mut found = Vec::new();
        self.exchange(&bytes, |message| {
            // A message that this version of the types cannot read is none that is asked for here.
            if let Ok(NetlinkPayload::InnerMessage(message)) = NetlinkMessage::deserialize(message).map(|m| m.payload) {
                found.push(message);
            }
        })?;
        Ok(found)
    }

    /// Sends one raw request, whose header says how it is answered (`NLM_F_ACK` or `NLM_F_DUMP`), and hands every answer
    /// to `each`, header included.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn exchange(&mut self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(request)?;
        let mut end = None;
        while end.is_none() {
            let expected = self.sequence;
            self.receive(|kind, sequence, message| match kind {
                _ if sequence != expected => {}
                NLMSG_ERROR => end = Some(answer(&message[HEADER..])),
                // A dump that was cut off by an error says so in its end.
                NLMSG_DONE => end = Some(answer(&message[HEADER..])),
                _ => each(message),
            })?;
        }
        end.unwrap_or(Ok(()))
    }

    /// A header for a raw request; the length is filled in by [`finish`].
    pub(super) fn header(&mut self, kind: u16, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags | NLM_F_REQUEST;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes[..message.buffer_len()]);
        bytes
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| sendto(&self.fd, bytes, SendFlags::empty(), &kernel))?;
        Ok(())
    }

    /// One datagram's messages: type, sequence number, bytes from the header on.
    fn receive(&self, mut each: impl FnMut(u16, u32, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0u8; BUFFER];
        let (length, whole) = rustix::io::retry_on_intr(|| recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC))?;
        if whole > length {
            return Err(io::Error::other("the kernel's answer is too long"));
        }
        let mut rest = &buffer[..length];
        while let Some((length, kind, sequence)) = parse_header(rest) {
            each(kind, sequence, &rest[..length]);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

fn parse_header(bytes: &[u8]) -> Option<(usize, u16, u32)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    (HEADER..=bytes.len()).contains(&length).then_some((length, kind, sequence))
}

/// The errno that an error message or a dump's end starts with; 0 is an acknowledgement.
fn answer(payload: &[u8]) -> io::Result<()> {
    match payload.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes) {
        None | Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// Fills in the length of a raw request.
pub(super) fn finish(mut request: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request
}

/// Appends an attribute: length, type, value, padding.
pub(super) fn attribute(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

/// The attributes that stand one after another, as far as they are whole: type, flags included, and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
