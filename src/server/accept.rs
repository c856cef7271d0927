//! Accepting connections, and giving each to the worker with the fewest.

use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinHandle,
};

use super::{
    refusals::Refusals,
    worker::{Message, Post},
};
use crate::{
    command::{session::Client, shared::Shared},
    config::{Endpoint, Settings},
    error::Error,
};

/// How long accepting rests when the system has no descriptor or memory left.
const REST: Duration = Duration::from_millis(100);
/// Connections to the admin address that the system keeps waiting.
const ADMIN_BACKLOG: u32 = 64;

/// Why a connection isn't taken: for the log, and for the client.
struct Refusal {
    why: &'static str,
    reply: &'static [u8],
}

const FULL: Refusal =
    Refusal { why: "`maxclients` is reached", reply: b"-ERR max number of clients reached\r\n" };
const PROTECTED: Refusal = Refusal {
    why: "`protected-mode` is on, and there is no `requirepass`",
    reply: b"-DENIED Larder is running in protected mode because protected mode is enabled and no password is set for the default user. In this mode connections are only accepted from the loopback interface. To accept others, set a password (requirepass in the configuration file, or CONFIG SET requirepass from the loopback interface), or turn protected mode off with 'CONFIG SET protected-mode no' if the server can't be reached from outside.\r\n",
};
const CANT_ACCEPT: &str = "the system can't accept them";

/// What those who accept share.
#[derive(Clone)]
struct Hall {
    shared: Arc<Shared>,
    posts: Arc<Vec<Post>>,
    refusals: Arc<Refusals>,
}

/// What listens: the addresses, and the tasks that accept there.
#[derive(Default)]
pub(super) struct Listening {
    pub(super) addresses: Vec<String>,
    /// Who was turned away.
    pub(super) refusals: Arc<Refusals>,
    tasks: Vec<JoinHandle<()>>,
    unixsocket: Option<PathBuf>,
}

impl Listening {
    /// Stops accepting: whoever connects now is refused by the system.
    pub(super) fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.refusals.tell_all();
        if let Some(path) = &self.unixsocket {
            let _ = fs::remove_file(path);
        }
    }
}

/// Binds every address and starts accepting.
pub(super) async fn listen(
    shared: &Arc<Shared>,
    settings: &Settings,
    posts: Vec<Post>,
) -> Result<Listening, Error> {
    let mut listening = Listening::default();
    let refusals = listening.refusals.clone();
    let hall = Hall { shared: shared.clone(), posts: Arc::new(posts), refusals };
    let mut port = settings.port;
    // As INFO names them: 0 is TCP, 1 a Unix socket.
    let mut tcp = String::from("name=tcp");
    let mut listeners = Vec::new();
    for bind in &settings.bind {
        match bind_tcp(&bind.host, port, settings.tcp_backlog) {
            Ok(listener) => {
                let address = listener.local_addr()?;
                // Port 0 is the system's choice: the same for all addresses.
                port = address.port();
                listening.addresses.push(address.to_string());
                tcp += &format!(",bind={}", address.ip());
                let task = tokio::spawn(hall.clone().accept_tcp(listener));
                listening.tasks.push(task);
            }
            Err(why) if bind.optional && is_absent(&why) => {
                tracing::debug!("{} is left out: {why}", bind.host);
            }
            Err(why) => return Err(Error::Bind(format!("{}:{port}", bind.host), why)),
        }
    }
    if listening.addresses.is_empty() && settings.unixsocket.is_none() {
        let why = io::Error::new(io::ErrorKind::AddrNotAvailable, "this machine has none of them");
        return Err(Error::Bind("the addresses of `bind`".into(), why));
    }
    if !listening.addresses.is_empty() {
        shared.port.store(u32::from(port), Relaxed);
        listeners.push(("listener0", format!("{tcp},port={port}")));
    }
    if let Some(path) = &settings.unixsocket {
        let fail = |why| Error::Bind(path.display().to_string(), why);
        let listener = bind_unix(path, settings.unixsocketperm).map_err(fail)?;
        let address = path.display().to_string();
        let task = tokio::spawn(hall.accept_unix(listener, address.clone()));
        listeners.push(("listener1", format!("name=unix,bind={address}")));
        listening.addresses.push(address);
        listening.tasks.push(task);
        listening.unixsocket = Some(path.clone());
    }
    // Once at most: the server is new.
    let _ = shared.listeners.set(listeners);
    Ok(listening)
}

/// Binds the admin address; `None` if there is none, or the server may start without it and can't have it.
pub(super) async fn listen_admin(admin: Option<&Endpoint>) -> Result<Option<TcpListener>, Error> {
    let Some(admin) = admin else { return Ok(None) };
    match bind_tcp(&admin.bind.host, admin.port, ADMIN_BACKLOG) {
        Ok(listener) => Ok(Some(listener)),
        Err(why) if admin.bind.optional => {
            tracing::warn!("no admin address: {admin} can't be listened on: {why}");
            Ok(None)
        }
        Err(why) => Err(Error::Bind(admin.to_string(), why)),
    }
}

/// Whether an address can't be listened on because the machine doesn't have it, or its protocol.
fn is_absent(why: &io::Error) -> bool {
    let absent = [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT];
    let code = Errno::from_io_error(why);
    code.is_some_and(|code| absent.contains(&code))
}

fn bind_tcp(host: &str, port: u16, backlog: u32) -> io::Result<TcpListener> {
    let mut addresses = (host, port).to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| io::Error::other("no such host"))?;
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog.min(i32::MAX as u32) as i32)?;
    TcpListener::from_std(socket.into())
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    // A socket that a dead server left behind is in the way; one that answers is not ours to remove.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    if fs::symlink_metadata(path).is_ok_and(|found| is_socket(&found)) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    if mode != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(listener)
}

fn is_socket(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_socket()
}

impl Hall {
    async fn accept_tcp(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.welcome_tcp(stream, peer).await,
                Err(why) => self.rest(&why).await,
            }
        }
    }

    async fn accept_unix(self, listener: UnixListener, path: String) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.welcome_unix(stream, &path).await,
                Err(why) => self.rest(&why).await,
            }
        }
    }

    /// Out of descriptors or memory: waiting is better than spinning; others are the peer's doing.
    async fn rest(&self, why: &io::Error) {
        if !matches!(why.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
            self.refusals.note(CANT_ACCEPT, why.to_string());
            tokio::time::sleep(REST).await;
        }
    }

    /// Counts a connection that is turned away; returns what it is told.
    fn refuse(&self, refusal: &Refusal, peer: String) -> &'static [u8] {
        self.shared.refused.fetch_add(1, Relaxed);
        self.refusals.note(refusal.why, peer);
        refusal.reply
    }

    async fn welcome_tcp(&self, mut stream: TcpStream, peer: SocketAddr) {
        let settings = self.shared.live.get().clone();
        let refusal = if self.is_full(&settings) {
            Some(FULL)
        } else if settings.protected_mode
            && settings.requirepass.is_empty()
            && !peer.ip().to_canonical().is_loopback()
        {
            Some(PROTECTED)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = stream.write_all(self.refuse(&refusal, peer.to_string())).await;
            return;
        }
        let _ = stream.set_nodelay(true);
        if !settings.tcp_keepalive.is_zero() {
            let keepalive = TcpKeepalive::new()
                .with_time(settings.tcp_keepalive)
                .with_interval((settings.tcp_keepalive / 3).max(Duration::from_secs(1)))
                .with_retries(3);
            if let Err(why) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
                tracing::warn!("client {peer}: no keepalive: {why}");
            }
        }
        let laddr =
            stream.local_addr().map_or_else(|_| String::new(), |address| address.to_string());
        let client = self.client(peer.to_string(), laddr, false, stream.as_raw_fd());
        if let Ok(stream) = stream.into_std() {
            self.assign(stream.into(), client);
        }
    }

    async fn welcome_unix(&self, mut stream: UnixStream, path: &str) {
        let settings = self.shared.live.get().clone();
        let address = format!("{path}:0");
        if self.is_full(&settings) {
            let _ = stream.write_all(self.refuse(&FULL, address)).await;
            return;
        }
        let client = self.client(address.clone(), address, true, stream.as_raw_fd());
        if let Ok(stream) = stream.into_std() {
            self.assign(stream.into(), client);
        }
    }

    fn is_full(&self, settings: &Settings) -> bool {
        self.shared.clients.len() >= settings.maxclients as usize
    }

    fn client(&self, addr: String, laddr: String, unix: bool, fd: i32) -> Arc<Client> {
        let now = self.shared.cache.clock().now();
        let id = self.shared.last_client.fetch_add(1, Relaxed) + 1;
        Arc::new(Client::new(id, addr, laddr, unix, fd, now))
    }

    /// Gives a connection to the worker with the fewest.
    fn assign(&self, socket: OwnedFd, client: Arc<Client>) {
        let workers = self.shared.workers.iter().enumerate();
        let fewest = workers.min_by_key(|(_, stats)| stats.clients.load(Relaxed));
        let Some((index, stats)) = fewest else { return };
        stats.clients.fetch_add(1, Relaxed);
        self.shared.clients.insert(client.id, client.clone());
        self.posts[index].send(Message::Connection(socket, client));
    }
}
