//! Connections to `monitor.sock`: requests in, states out. A client that does not read is dropped; nothing ever waits for one.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crisp_monitor::protocol::{DecodeError, Frames, Message, Request, State, decode_request, encode_message};

/// Servers, and whoever debugs: more than this at once are turned away.
pub(crate) const MAX_CLIENTS: usize = 8;
/// What a client may leave unread before it is dropped.
const MAX_UNREAD: usize = 128 * 1024;

/// Names a client for as long as the monitor lives.
pub(crate) type ClientId = u32;

#[derive(Debug)]
struct Client {
    id: ClientId,
    socket: UnixStream,
    frames: Frames,
    unread: Vec<u8>,
    /// Said hello: gets pushed states.
    greeted: bool,
    dead: bool,
}

/// All of them, and the door.
#[derive(Debug)]
pub(crate) struct Clients {
    listener: UnixListener,
    list: Vec<Client>,
    last_id: ClientId,
}

impl Clients {
    /// `listener` is bound and listening.
    pub(crate) fn new(listener: UnixListener) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, list: Vec::new(), last_id: 0 })
    }

    /// What to poll for reading: the door.
    pub(crate) fn door(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// What to poll, and whether for writing too.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.list.iter().map(|c| (c.socket.as_fd(), !c.unread.is_empty()))
    }

    /// Lets in who waits; `true`: someone came.
    pub(crate) fn accept(&mut self) -> bool {
        let before = self.last_id;
        while let Ok((socket, _)) = self.listener.accept() {
            if self.list.len() < MAX_CLIENTS && socket.set_nonblocking(true).is_ok() {
                self.last_id += 1;
                let client = Client {
                    id: self.last_id,
                    socket,
                    frames: Frames::default(),
                    unread: Vec::new(),
                    greeted: false,
                    dead: false,
                };
                self.list.push(client);
            }
        }
        self.last_id != before
    }

    /// Writes what is unread and reads what came, from all clients; the requests, in the order of each client.
    pub(crate) fn exchange(&mut self) -> Vec<(ClientId, u32, Request)> {
        let mut requests = Vec::new();
        for client in &mut self.list {
            client.write();
            client.read(&mut requests);
        }
        self.list.retain(|c| !c.dead);
        requests
    }

    /// Answers `client`, if it is still there. A state is the answer to its hello, too.
    pub(crate) fn answer(&mut self, client: ClientId, seq: u32, message: &Message) {
        if let Some(client) = self.list.iter_mut().find(|c| c.id == client) {
            client.greeted |= matches!(message, Message::State(_));
            client.send(seq, message);
        }
    }

    /// Tells everyone who said hello.
    pub(crate) fn push(&mut self, state: State) {
        let message = Message::State(state);
        self.list.iter_mut().filter(|c| c.greeted).for_each(|c| c.send(0, &message));
    }
}

impl Client {
    fn send(&mut self, seq: u32, message: &Message) {
        encode_message(seq, message, &mut self.unread);
        self.write();
        self.dead |= self.unread.len() > MAX_UNREAD;
    }

    fn write(&mut self) {
        while !self.unread.is_empty() && !self.dead {
            match self.socket.write(&self.unread) {
                Ok(n @ 1..) => drop(self.unread.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                _ => self.dead = true,
            }
        }
        self.unread = Vec::new();
    }

    fn read(&mut self, requests: &mut Vec<(ClientId, u32, Request)>) {
        let mut chunk = [0; 1024];
        // One chunk a round: who floods waits like everyone else.
        match self.socket.read(&mut chunk) {
            Ok(n @ 1..) => self.frames.push(&chunk[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            _ => {
                self.dead = true;
                return;
            }
        }
        loop {
            let unknown = match self.frames.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => match decode_request(frame) {
                    Ok((seq, request)) => {
                        requests.push((self.id, seq, request));
                        continue;
                    }
                    Err(DecodeError::UnknownVerb { verb, seq }) => (seq, format!("unknown request `{verb}`")),
                    Err(_) => return self.dead = true,
                },
                Err(_) => return self.dead = true,
            };
            self.send(unknown.0, &Message::Reply(Some(unknown.1)));
        }
    }
}
