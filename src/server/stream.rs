//! A client's socket, TCP or unix alike; TLS will wrap it.
//!
//! All calls return at once: what can't be done now is `WouldBlock`, and the worker's poll says when it
//! may be tried again.

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
};

use mio::{Interest, Registry, Token, unix::SourceFd};
use rustix::{
    buffer::spare_capacity,
    io::ioctl_fionread,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown},
};

/// A connected socket that never blocks.
pub(super) struct Stream(OwnedFd);

impl Stream {
    /// A socket that was accepted, and set not to block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Has a poll tell, at each change for the better, when the socket may be read or written.
    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        let changes = Interest::READABLE | Interest::WRITABLE;
        // A read ends short at urgent data, whatever lies behind it.
        #[cfg(target_os = "linux")]
        let changes = changes | Interest::PRIORITY;
        registry.register(&mut SourceFd(&self.0.as_raw_fd()), token, changes)
    }

    /// Reads into a buffer of the worker's. 0 bytes: the client has closed.
    #[inline]
    pub(super) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, buf, RecvFlags::empty())?.0)
    }

    /// Reads behind what a buffer of the connection's own holds, into its spare room.
    pub(super) fn read_behind(&self, buf: &mut Vec<u8>) -> io::Result<usize> {
        Ok(recv(&self.0, spare_capacity(buf), RecvFlags::empty())?.0)
    }

    /// Writes as much as the socket takes.
    #[inline]
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    /// Writes as much of several pieces as the socket takes.
    pub(super) fn write_pieces(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut nothing = SendAncillaryBuffer::default();
        Ok(sendmsg(&self.0, pieces, &mut nothing, SendFlags::NOSIGNAL)?)
    }

    /// Ends both halves.
    pub(super) fn end(&self) {
        // It fails where the client has gone already.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    /// Bytes that have arrived and weren't read.
    pub(super) fn arrived(&self) -> usize {
        ioctl_fionread(&self.0).map_or(0, |bytes| bytes as usize)
    }
}
