//! What can go wrong between the lab and its network.

use super::probe::WatchError;
use super::switch::SwitchError;
use super::tcp::TcpError;
use core::net::SocketAddr;
use proto::cluster::PortId;
use std::io;
use std::path::PathBuf;

/// Why the fabric did not start, or did not do what it was asked. Unless a variant says otherwise nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// A socket of the switch could not be made.
    #[error("cannot make the switch's socket {path:?}: check that its directory exists and is writable")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another fabric lives there.
    #[error("socket {path:?} is in use by another process: end the other lab, or use another directory")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The kernel takes shorter paths only.
    #[error("socket path {path:?} has {length} bytes, at most 107 are possible: use a shorter directory")]
    PathTooLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The switch refused a port.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// No such port on the switch.
    #[error("the switch has no port {port}: see the ports of the cluster file")]
    UnknownPort {
        /// The name.
        port: PortId,
    },
    /// The capture file could not be made.
    #[error("cannot make the capture {path:?}")]
    Capture {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread or its wake-up could not be made.
    #[error("cannot start the fabric's thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The probing host refused.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The fabric was started without a probing host.
    #[error("the fabric has no probing host: start it with one")]
    NoProbe,
    /// The fabric was started without a TCP host.
    #[error("the fabric has no TCP host: start it with one")]
    NoTcp,
    /// TCP into the segment failed.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// A forward would be open to other hosts.
    #[error("cannot listen on {address}: forwards listen on loopback only (127.0.0.1 or ::1)")]
    NotLoopback {
        /// What was asked.
        address: SocketAddr,
    },
    /// The host's side of a forward could not be opened.
    #[error("cannot listen on {address}: choose another port, or port 0 for any free one")]
    Listen {
        /// What was asked.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Too many forwards.
    #[error("cannot forward {address}: there are {max} forwards already")]
    TooManyForwards {
        /// What was asked.
        address: SocketAddr,
        /// The bound.
        max: usize,
    },
    /// More calls wait than the fabric queues.
    #[error("the fabric has too many calls waiting: call from fewer threads")]
    Busy,
    /// The call may still take effect.
    #[error("the fabric did not answer within {seconds} s: the host is overloaded, or its disk stands still")]
    NotAnswering {
        /// How long was waited.
        seconds: u64,
    },
    /// The fabric has stopped.
    #[error("the fabric has stopped")]
    Stopped,
    /// A condition did not come true in time.
    #[error("waited {seconds:.1} s for {what}")]
    Waited {
        /// For what, with the last state.
        what: String,
        /// How long.
        seconds: f64,
    },
}
