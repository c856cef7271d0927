//! Loading the keys: one connection, batches of SETs, every reply checked.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

/// SETs per batch; their replies fit any socket buffer, so that writing ahead can't lock up.
const BATCH: u64 = 512;

/// No server may be silent for longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a loopback port whose reads don't wait for ever.
pub fn connect(port: u16) -> io::Result<TcpStream> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends `count` requests, each appended by `push` for its number, and expects `reply` to each.
/// One batch is under way while the next is encoded.
pub fn fill(
    socket: &mut TcpStream,
    count: u64,
    reply: &[u8],
    mut push: impl FnMut(u64, &mut Vec<u8>),
) -> io::Result<()> {
    let mut batch = Vec::new();
    let mut owed = 0;
    for first in (0..count).step_by(BATCH as usize) {
        let numbers = first..count.min(first + BATCH);
        let sent = (numbers.end - numbers.start) as usize;
        batch.clear();
        numbers.for_each(|number| push(number, &mut batch));
        socket.write_all(&batch)?;
        expect(socket, reply, owed)?;
        owed = sent;
    }
    expect(socket, reply, owed)
}

/// Sends one request and expects exactly `reply`.
pub fn ask(socket: &mut TcpStream, request: &[u8], reply: &[u8]) -> io::Result<()> {
    socket.write_all(request)?;
    expect(socket, reply, 1)
}

/// Reads `reply`, `times` over.
fn expect(socket: &mut TcpStream, reply: &[u8], times: usize) -> io::Result<()> {
    let mut got = vec![0; reply.len() * times];
    let mut filled = 0;
    while filled < got.len() {
        match socket.read(&mut got[filled..])? {
            0 => return Err(io::Error::other("the server closed the connection")),
            n => filled += n,
        }
        // Looked at as it comes: an error is shorter than what is waited for.
        let right = reply.iter().cycle();
        if let Some(at) = got[..filled].iter().zip(right).position(|(is, ought)| is != ought) {
            let shown = got[at / reply.len() * reply.len()..filled].escape_ascii().to_string();
            return Err(io::Error::other(format!("wrong reply: \"{shown:.100}\"")));
        }
    }
    Ok(())
}
