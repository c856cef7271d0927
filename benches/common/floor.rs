//! The floor: a server that answers without parsing, to show how far a real one is from the limit
//! that the system calls set.
//!
//! One thread, one edge-triggered epoll. A wakeup of a connection costs one read and one write: all
//! requests are GETs of one length, so the number of bytes says how many replies are due, and the
//! replies, all alike, lie ready in one buffer.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use rustix::{buffer::spare_capacity, event::epoll};

use super::wire::{Dialect, VALUE_LEN, key};

/// What one read may bring.
const READ: usize = 64 * 1024;
/// The epoll mark of the listener; connections are marked by their index.
const LISTENER: u64 = u64::MAX;

/// Serves until it is killed; prints `ready port=N` when it listens.
pub fn run() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("ready port={}", listener.local_addr()?.port());
    let mut floor = Floor::new(listener)?;
    let mut events = Vec::with_capacity(256);
    loop {
        epoll::wait(&floor.epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            match event.data.u64() {
                LISTENER => floor.accept()?,
                index => floor.serve(index as usize),
            }
        }
    }
}

struct Floor {
    epoll: OwnedFd,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    scratch: Vec<u8>,
    /// As many replies as one read can hold requests.
    replies: Vec<u8>,
    request_len: usize,
    reply_len: usize,
}

struct Connection {
    socket: TcpStream,
    /// Bytes of a request that has not come whole.
    part: usize,
}

impl Floor {
    fn new(listener: TcpListener) -> io::Result<Self> {
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        Dialect::Constant.push_get(&key(0), &mut request);
        Dialect::Constant.push_hit(&key(0), VALUE_LEN, &mut reply);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mark = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, mark, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            connections: Vec::new(),
            scratch: vec![0; READ],
            replies: reply.repeat(READ / request.len() + 1),
            request_len: request.len(),
            reply_len: reply.len(),
        })
    }

    fn accept(&mut self) -> io::Result<()> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let free = self.connections.iter().position(Option::is_none);
        let index = free.unwrap_or(self.connections.len());
        if free.is_none() {
            self.connections.push(None);
        }
        let mark = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &socket, mark, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        self.connections[index] = Some(Connection { socket, part: 0 });
        Ok(())
    }

    /// Answers what came; a connection that ends or stops reading is dropped.
    fn serve(&mut self, index: usize) {
        while let Some(connection) = &mut self.connections[index] {
            let Ok(read @ 1..) = connection.socket.read(&mut self.scratch) else {
                self.connections[index] = None;
                return;
            };
            let bytes = connection.part + read;
            connection.part = bytes % self.request_len;
            let due = &self.replies[..bytes / self.request_len * self.reply_len];
            if connection.socket.write_all(due).is_err() {
                self.connections[index] = None;
            }
            // A short read took all there was; what comes later brings an event of its own.
            if read < READ {
                return;
            }
        }
    }
}
