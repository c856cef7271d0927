//! A TCP connection to a store's server that knows what a client library above it doesn't tell: whether
//! anything of a request has left this process, and how long its answer has become.
//!
//! Who is given up must not act late: closing drops what the system hasn't sent yet (`SO_LINGER` of 0,
//! so a close is a reset), and the system itself gives up a peer that acknowledges nothing.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// An idle connection whose peer is gone is noticed after this and a few probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// See the module's doc.
pub(super) struct Wire {
    stream: TcpStream,
    meter: Arc<Meter>,
}

/// What went over a wire since the last request began.
#[derive(Debug, Default)]
pub(super) struct Meter {
    sent: AtomicBool,
    left: AtomicU64,
    is_over: AtomicBool,
}

impl Meter {
    /// A request begins, whose answer has at most so many bytes.
    pub(super) fn begin(&self, answer: u64) {
        self.sent.store(false, Relaxed);
        self.left.store(answer, Relaxed);
        self.is_over.store(false, Relaxed);
    }

    /// Whether anything of the request has left this process.
    pub(super) fn has_sent(&self) -> bool {
        self.sent.load(Relaxed)
    }

    /// Whether the connection was given up, since the answer is longer than it may be.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    fn take(&self, count: usize) -> io::Result<()> {
        let left = self.left.load(Relaxed);
        let Some(left) = left.checked_sub(count as u64) else {
            self.is_over.store(true, Relaxed);
            return Err(io::Error::other("the answer is too long"));
        };
        self.left.store(left, Relaxed);
        Ok(())
    }
}

impl Wire {
    /// Connects; nothing has been sent yet, and nothing may be read before [`Meter::begin`].
    pub(super) async fn connect(host: &str, port: u16) -> io::Result<(Self, Arc<Meter>)> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        stream.set_zero_linger()?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, PROBE_EVERY)?;
        sockopt::set_tcp_keepcnt(&stream, PROBES)?;
        sockopt::set_tcp_user_timeout(&stream, KEEPALIVE.as_millis() as u32)?;
        let meter = Arc::new(Meter::default());
        Ok((Self { stream, meter: meter.clone() }, meter))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buf))?;
        Poll::Ready(self.meter.take(buf.filled().len() - before))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.meter.sent.fetch_or(count > 0, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        self.meter.sent.fetch_or(count > 0, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn it_knows_what_was_sent_and_bounds_what_comes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mut wire, meter) = Wire::connect("127.0.0.1", port).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        meter.begin(5);
        assert!(!meter.has_sent());
        wire.write_all(b"ask").await.unwrap();
        assert!(meter.has_sent());
        peer.write_all(b"12345").await.unwrap();
        let mut answer = [0; 5];
        wire.read_exact(&mut answer).await.unwrap();
        assert!(!meter.is_over());
        peer.write_all(b"6").await.unwrap();
        assert!(wire.read_u8().await.is_err() && meter.is_over());
        meter.begin(1);
        assert!(!meter.has_sent() && !meter.is_over());
    }
}
