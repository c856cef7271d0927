//! A client's socket, TCP or unix; TLS will be a third kind.
//!
//! It is split so that the worker can keep a handle to the writing half: to end the reading half at a
//! drain while the connection's task waits for it.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    net::{TcpStream, UnixStream, tcp, unix},
};

/// The reading half.
pub(super) enum Source {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

/// The writing half.
pub(super) enum Sink {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

/// A socket that was accepted, on its way to a worker.
pub(super) enum Accepted {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Accepted {
    /// Registers the socket with this thread's runtime.
    pub(super) fn register(self) -> io::Result<(Source, Sink)> {
        Ok(match self {
            Self::Tcp(stream) => {
                let (source, sink) = TcpStream::from_std(stream)?.into_split();
                (Source::Tcp(source), Sink::Tcp(sink))
            }
            Self::Unix(stream) => {
                let (source, sink) = UnixStream::from_std(stream)?.into_split();
                (Source::Unix(source), Sink::Unix(sink))
            }
        })
    }
}

impl Source {
    /// Reads into a buffer of the worker's. 0 bytes: the client has closed.
    #[inline]
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        let polled = match self {
            Self::Tcp(half) => Pin::new(half).poll_read(cx, &mut buf),
            Self::Unix(half) => Pin::new(half).poll_read(cx, &mut buf),
        };
        polled.map_ok(|()| buf.filled().len())
    }

    /// Reads behind what a buffer of the connection's own holds, into its spare room.
    pub(super) fn poll_append(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(half) => pin!(half.read_buf(buf)).poll(cx),
            Self::Unix(half) => pin!(half.read_buf(buf)).poll(cx),
        }
    }
}

impl Sink {
    /// Writes as much as the socket takes.
    #[inline]
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write(bytes),
            Self::Unix(half) => half.try_write(bytes),
        }
    }

    /// Writes as much of several pieces as the socket takes.
    pub(super) fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write_vectored(pieces),
            Self::Unix(half) => half.try_write_vectored(pieces),
        }
    }

    /// Waits until the socket may take more.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.writable().await,
            Self::Unix(half) => half.writable().await,
        }
    }

    /// Ends both halves; whoever waits for either is woken.
    pub(super) fn end(&self) {
        self.shutdown(Shutdown::Both);
    }

    /// Ends the reading half: what has arrived is still read, then the client seems to have closed.
    pub(super) fn end_reading(&self) {
        self.shutdown(Shutdown::Read);
    }

    fn shutdown(&self, how: Shutdown) {
        // It fails where the client has gone already.
        let _ = match self {
            Self::Tcp(half) => socket2::SockRef::from(half.as_ref()).shutdown(how),
            Self::Unix(half) => socket2::SockRef::from(half.as_ref()).shutdown(how),
        };
    }
}
