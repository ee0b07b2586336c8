//! The log keeper: a child that writes services' lines to `/state/log/NAME.log`.
//!
//! A disk that stops answering stops who writes to it. That must not be PID 1, so lines go through a socket that
//! is never waited for: when the keeper is stuck, lines are left out of the files (and counted there later) while
//! the rings in memory have them. Files are capped; the one before stays as `NAME.log.1`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proto::time::Time;

use crate::reexec::state;
use crate::{clock, sys};

/// Bytes of a log file before it is renamed; two per service and 64 services stay below a small STATE's 32 MiB.
const FILE_MAX: u64 = 256 * 1024;
/// Bytes of one packet to the keeper.
const PACKET_MAX: usize = 32 * 1024;
/// Bytes of the time in front of a line and its end.
const STAMP_LEN: usize = 24;
/// A keeper that dies is started again, but not more often than this.
const RESTART_EVERY: Duration = Duration::from_secs(10);

/// init's side of the keeper.
pub(crate) struct Keeper {
    directory: PathBuf,
    socket: Option<OwnedFd>,
    pid: Option<u32>,
    started: Time,
    /// Lines that found no room since the last one that did.
    lost: u64,
    /// The packet being filled; its memory is kept.
    packet: String,
    /// Lines in it.
    lines: u64,
}

impl Keeper {
    /// Starts the keeper's process for files in `directory`.
    pub(crate) fn start(directory: &Path) -> Keeper {
        let nothing = state::Keeper { socket: None, pid: None, started: clock::now(), lost: 0 };
        let mut keeper = Keeper::resume(directory, None, &nothing);
        keeper.fork();
        keeper
    }

    /// One whose process another program started.
    pub(crate) fn resume(directory: &Path, socket: Option<OwnedFd>, saved: &state::Keeper) -> Keeper {
        Keeper {
            directory: directory.to_owned(),
            socket,
            pid: saved.pid,
            started: saved.started,
            lost: saved.lost,
            packet: String::with_capacity(PACKET_MAX + proto::control::LOG_LINE_MAX),
            lines: 0,
        }
    }

    /// What another program needs to go on.
    pub(crate) fn save(&self) -> state::Keeper {
        let socket = self.socket.as_ref().map(AsRawFd::as_raw_fd);
        state::Keeper { socket, pid: self.pid, started: self.started, lost: self.lost }
    }

    /// Adds a line of `service` to the packet that [`Keeper::flush`] sends. Between two flushes all lines are of one
    /// service.
    pub(crate) fn write(&mut self, service: &str, at_ms: u64, text: &str) {
        if self.lines > 0 && self.packet.len() + text.len() + STAMP_LEN > PACKET_MAX {
            self.flush();
        }
        // Writing into a String cannot fail.
        if self.lines == 0 {
            self.packet.clear();
            let _ = write!(self.packet, "{service}\0");
            if self.lost > 0 {
                let _ = writeln!(self.packet, "({} lines are missing here)", self.lost);
            }
        }
        let _ = writeln!(self.packet, "[{:>6}.{:03}] {text}", at_ms / 1000, at_ms % 1000);
        self.lines += 1;
    }

    /// Hands over what was written; lines that find no room are counted.
    pub(crate) fn flush(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines > 0 {
            self.lost = if self.send() { 0 } else { self.lost.saturating_add(lines) };
        }
    }

    /// Lets the keeper finish; it ends by itself when it has written everything.
    pub(crate) fn close(&mut self) {
        self.socket = None;
        self.started = clock::now();
    }

    /// Notes that the process `pid` has ended.
    pub(crate) fn ended(&mut self, pid: u32) {
        if self.pid == Some(pid) {
            self.pid = None;
            self.socket = None;
        }
    }

    /// Whether no keeper's process is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.pid.is_none()
    }

    fn send(&mut self) -> bool {
        if self.socket.is_none() && clock::now().since(self.started) >= RESTART_EVERY {
            self.fork();
        }
        let Some(socket) = &self.socket else { return false };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(socket.as_raw_fd(), self.packet.as_bytes(), flags) {
            Ok(_) => true,
            Err(nix::errno::Errno::EAGAIN) => false,
            Err(_) => {
                self.socket = None;
                false
            }
        }
    }

    fn fork(&mut self) {
        self.started = clock::now();
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let Ok((ours, theirs)) = pair else { return };
        let directory = self.directory.clone();
        // A failed fork is tried again with the next line after RESTART_EVERY.
        if let Ok(pid) = sys::child::fork_job(&[theirs.as_raw_fd()], || keep(&theirs, &directory)) {
            self.pid = Some(pid);
            self.socket = Some(ours);
        }
    }
}

/// The keeper's life: packets to files until init closes the socket. A failed write loses its lines, nothing else.
fn keep(socket: &OwnedFd, directory: &Path) -> i32 {
    let mut files: BTreeMap<String, File> = BTreeMap::new();
    let mut buffer = vec![0; PACKET_MAX + proto::control::LOG_LINE_MAX];
    loop {
        let count = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return 0,
            Ok(n) => n,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return 1,
        };
        let packet = buffer.get(..count).unwrap_or_default();
        let Some(end) = packet.iter().position(|b| *b == 0) else { continue };
        let (name, text) = packet.split_at(end);
        let (name, text) = (String::from_utf8_lossy(name).into_owned(), text.get(1..).unwrap_or_default());
        let path = directory.join(format!("{name}.log"));
        let grown = files.get(&name).and_then(|f| f.metadata().ok()).is_some_and(|m| m.len() > FILE_MAX);
        if grown {
            files.remove(&name);
            let _ = fs::rename(&path, directory.join(format!("{name}.log.1")));
        }
        if let Some(file) = files.get_mut(&name) {
            let _ = file.write_all(text);
        } else if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&path) {
            let _ = file.write_all(text);
            files.insert(name, file);
        }
    }
}
