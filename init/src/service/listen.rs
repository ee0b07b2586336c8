//! Listening sockets: made by init once, before the service runs, and kept over all its restarts.
//!
//! Whoever connects while the service is down waits in the socket's queue instead of being refused. When one
//! cannot be made the service does not start; each attempt to start it tries again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::service::unit::{Address, Kind, Socket, Unit};
use crate::sys;

/// Connections that wait for a service; the kernel's `somaxconn` bounds it too.
const BACKLOG: i32 = 128;

/// The sockets of `unit`, in its order: those of `kept`, from an earlier program, or new ones.
///
/// # Errors
/// The first socket that cannot be made, and why. None is left.
pub(crate) fn open(unit: &Unit, kept: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, String> {
    if kept.len() == unit.sockets.len() {
        return Ok(kept);
    }
    let each = |wanted: &Socket| {
        make(wanted, unit)
            .map_err(|e| format!("cannot make its socket {}: {}", wanted.address, sys::errno_text(&e)))
    };
    unit.sockets.iter().map(each).collect()
}

/// Gives the sockets the flags a new one has: a service that made one non-blocking has done so for its successors.
///
/// # Errors
/// The kernel's.
pub(crate) fn reset(sockets: &[OwnedFd]) -> nix::Result<()> {
    sockets.iter().try_for_each(|s| fcntl(s.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).map(drop))
}

fn make(wanted: &Socket, unit: &Unit) -> io::Result<OwnedFd> {
    let kind = match wanted.kind {
        Kind::Stream => SockType::Stream,
        Kind::Datagram => SockType::Datagram,
        Kind::Seqpacket => SockType::SeqPacket,
    };
    let fd = match &wanted.address {
        Address::Path { path, mode } => {
            let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            // What an earlier init left. Anything but a socket is somebody's file, and bind says so.
            if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                fs::remove_file(path)?;
            }
            bind(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
            // Nobody connects before listen; by then it belongs to the service.
            if let Some(identity) = unit.privileges.identity {
                chown(path, Some(identity.user), Some(identity.group))?;
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
            fd
        }
        Address::Internet(address) => {
            let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
            // Addresses are netd's and may come later than the socket.
            setsockopt(&fd, sockopt::IpFreebind, &true)?;
            if address.is_ipv6() {
                // Each family for itself: what listens does not depend on a kernel setting.
                setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            }
            if wanted.kind == Kind::Stream {
                // Connections of an earlier life in TIME_WAIT do not keep the port.
                setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            }
            bind(fd.as_raw_fd(), &SockaddrStorage::from(*address))?;
            fd
        }
    };
    if wanted.kind != Kind::Datagram {
        listen(&fd, Backlog::new(BACKLOG)?)?;
    }
    Ok(fd)
}
