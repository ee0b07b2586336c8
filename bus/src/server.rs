//! Serving: one socket, one task per client, everything bounded.
//!
//! ```text
//! accept -> room for a client? -> peer credentials -> handshake -> connection <-> watch channels
//!             no: close           no: close           late: close   signal late, or client gone: close
//! ```
//! A connection's queue of signals is its `watch` receiver: it holds the newest state only, so a slow client misses
//! intermediate states instead of filling memory. What a client has not read within [`SEND_DEADLINE`] costs it the
//! connection.
//!
//! It does not decide per method: whoever may connect may call everything.

use crate::client::own_uid;
use crate::freedesktop::Bus;
use crate::init1::{self, Init1, InitState};
use crate::net1::{self, Net1, NetState};
use crate::provision1::{self, ApplyRoster, Provision1, ProvisionState};
use crate::{sasl, wire};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Clients served at a time: a console, an agent, a few watching tools. More are closed at once.
pub const MAX_CLIENTS: usize = 16;

/// From accept to the end of the handshake. A client on this machine needs a millisecond.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(2);

/// How long a client may leave a signal unread.
pub const SEND_DEADLINE: Duration = Duration::from_secs(2);

/// Between two signals to one client: a port that flaps does not fill a serial console.
pub const SIGNAL_GAP: Duration = Duration::from_millis(100);

/// After accept failed (out of descriptors, mostly) until it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Messages read ahead per client.
const QUEUE: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not zero");

/// Longest path of a UNIX socket in bytes (`sun_path` with its NUL), less the ending of the temporary name.
const PATH_MAX: usize = 107 - TEMPORARY.len();

/// Ending of the name under which a socket is made before it is renamed into place.
const TEMPORARY: &str = ".new";

/// Which interfaces a daemon serves. Each is fed by a `watch` channel.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    /// `org.evenkeel.Init1`.
    pub init: Option<watch::Receiver<InitState>>,
    /// `org.evenkeel.Net1`.
    pub net: Option<watch::Receiver<NetState>>,
    /// `org.evenkeel.Provision1`.
    pub provision: Option<watch::Receiver<ProvisionState>>,
    /// Where its calls go that change something; without it they are refused.
    pub apply_roster: Option<mpsc::Sender<ApplyRoster>>,
}

/// Why a socket could not be made. Nothing was replaced, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit into a socket address.
    #[error("socket path {path} has {len} bytes, at most {PATH_MAX} fit")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// Somebody answers on the socket: another instance runs.
    #[error("{path} is served already; is another instance running?")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not a socket has the name.
    #[error("{path} exists and is not a socket; move it away")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot make socket {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// A bound socket. Clients that connect wait until [`Server::serve`] runs, so a daemon may tell its readiness as soon
/// as it has this. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    path: PathBuf,
    /// Device and inode of the socket this server made: what another instance put in its place is not removed.
    made: (u64, u64),
}

impl Server {
    /// Makes the socket: mode 0600, its directory made when missing (0755), a stale socket replaced.
    pub fn bind(path: &Path) -> Result<Server, BindError> {
        let len = path.as_os_str().len();
        if len > PATH_MAX {
            return Err(BindError::PathTooLong { path: path.to_owned(), len });
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if StdStream::connect(path).is_ok() => {
                return Err(BindError::InUse { path: path.to_owned() });
            }
            Ok(_) | Err(_) => {}
        }
        make(path).map_err(|source| BindError::Io { path: path.to_owned(), source })
    }

    /// Serves clients for as long as the future is polled, which must happen inside a tokio runtime with I/O and time.
    /// Ends only with an error of the kernel's at the start; dropping the future closes all connections.
    pub async fn serve(self, interfaces: Interfaces) -> io::Result<Infallible> {
        let own = own_uid()?;
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let guid = zbus::Guid::generate().to_string();
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if has_room(&mut clients) => {
                        clients.spawn(attend(stream, own, guid.clone(), interfaces.clone()));
                    }
                    Ok(_) => warn!("client refused: {MAX_CLIENTS} are connected to {}", self.path.display()),
                    Err(e) => {
                        warn!("accepting on {}: {e}", self.path.display());
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }
}

/// Whether one more client fits, once those that have left are counted out.
fn has_room(clients: &mut JoinSet<()>) -> bool {
    while clients.try_join_next().is_some() {}
    clients.len() < MAX_CLIENTS
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.made) {
            // Nobody is left to tell; the next instance replaces a socket that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket under a temporary name and renames it, so that nobody meets it before its mode is set.
fn make(path: &Path) -> io::Result<Server> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdListener::bind(&temporary)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    let found = fs::symlink_metadata(&temporary)?;
    fs::rename(&temporary, path)?;
    Ok(Server { listener, path: path.to_owned(), made: (found.dev(), found.ino()) })
}

/// Root and the daemon's own user (which in the lab's tests is not root) may call.
fn authorised(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

/// One client from its first byte to its last.
async fn attend(mut stream: UnixStream, own: u32, guid: String, mut interfaces: Interfaces) {
    let uid = match stream.peer_cred() {
        Ok(credentials) if authorised(credentials.uid(), own) => credentials.uid(),
        Ok(credentials) => return warn!("client with uid {} refused: only root may call", credentials.uid()),
        Err(e) => return warn!("client refused, its credentials are unknown: {e}"),
    };
    match timeout(HANDSHAKE_DEADLINE, sasl::accept(&mut stream, uid, &guid)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return debug!("client dropped: {e}"),
        Err(_) => return debug!("client dropped: no handshake within {HANDSHAKE_DEADLINE:?}"),
    }
    // Before the client can read anything: what changes after its first look must be told.
    if let Some(net) = &mut interfaces.net {
        net.mark_unchanged();
    }
    if let Some(init) = &mut interfaces.init {
        init.mark_unchanged();
    }
    let mut builder = zbus::connection::Builder::authenticated_socket(
        wire::Guarded::new(stream, wire::CALL_MAX),
        guid.as_str(),
    )
    .p2p()
    .max_queued(QUEUE)
    .serve_at("/org/freedesktop/DBus", Bus);
    if let Some(init) = &interfaces.init {
        builder = builder.serve_at(init1::OBJECT, Init1(init.clone()));
    }
    if let Some(net) = &interfaces.net {
        builder = builder.serve_at(net1::OBJECT, Net1(net.clone()));
    }
    if let Some(provision) = &interfaces.provision {
        let object = Provision1 { state: provision.clone(), apply: interfaces.apply_roster.clone() };
        builder = builder.serve_at(provision1::OBJECT, object);
    }
    let connection = match timeout(HANDSHAKE_DEADLINE, builder.build()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(e)) => return warn!("client dropped, its objects cannot be served: {e}"),
        Err(_) => return warn!("client dropped, its objects were not served within {HANDSHAKE_DEADLINE:?}"),
    };
    tokio::select! {
        () = connection.closed() => {}
        () = announce(&connection, interfaces.init, init1::OBJECT, init1::INTERFACE) => late(),
        () = announce(&connection, interfaces.net, net1::OBJECT, net1::INTERFACE) => late(),
    }
    // A failure here means that it is closed already.
    let _ = timeout(SEND_DEADLINE, connection.close()).await;
}

fn late() {
    debug!("client dropped: it does not read its signals");
}

/// Tells a client of changes until it fails to read one. Waits for ever when there is nothing to tell.
async fn announce<T>(
    connection: &zbus::Connection,
    state: Option<watch::Receiver<T>>,
    object: &str,
    interface: &str,
) {
    let Some(mut state) = state else { return std::future::pending().await };
    while state.changed().await.is_ok() {
        let tell = connection.emit_signal(None::<&str>, object, interface, "Changed", &());
        match timeout(SEND_DEADLINE, tell).await {
            Ok(Ok(())) => sleep(SIGNAL_GAP).await,
            Ok(Err(_)) | Err(_) => return,
        }
    }
    // The daemon's core is gone and the daemon ends; the last state can be read until then.
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_are_let_in() {
        let table =
            [(0, 0, true), (0, 1000, true), (1000, 1000, true), (1000, 0, false), (1001, 1000, false)];
        for (peer, own, expected) in table {
            assert_eq!(authorised(peer, own), expected, "peer {peer}, own {own}");
        }
    }
}
