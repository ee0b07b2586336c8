//! The log keeper: a child that writes services' lines to `/state/log/NAME.log`.
//!
//! A disk that stops answering stops who writes to it. That must not be PID 1, so lines go through a socket that
//! is never waited for: when the keeper is stuck, lines are left out of the files (and counted there later) while
//! the rings in memory have them. Files are capped; the one before stays as `NAME.log.1`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proto::control::LogLine;
use proto::time::Time;

use crate::{clock, sys};

/// Bytes of a log file before it is renamed; two per service and 64 services stay below a small STATE's 32 MiB.
const FILE_MAX: u64 = 256 * 1024;
/// Bytes of one packet to the keeper.
const PACKET_MAX: usize = 32 * 1024;
/// A keeper that dies is started again, but not more often than this.
const RESTART_EVERY: Duration = Duration::from_secs(10);

/// init's side of the keeper.
pub(crate) struct Keeper {
    directory: PathBuf,
    socket: Option<OwnedFd>,
    pid: Option<u32>,
    started: Time,
    lost: u64,
}

impl Keeper {
    /// Starts the keeper's process for files in `directory`.
    pub(crate) fn start(directory: &Path) -> Keeper {
        let mut keeper = Keeper {
            directory: directory.to_owned(),
            socket: None,
            pid: None,
            started: clock::now(),
            lost: 0,
        };
        keeper.fork();
        keeper
    }

    /// Hands over lines of `service`; those that find no room are counted.
    pub(crate) fn write(&mut self, service: &str, lines: &[LogLine]) {
        let mut rest = lines;
        while !rest.is_empty() {
            let mut packet = format!("{service}\0");
            if self.lost > 0 {
                packet.push_str(&format!("({} lines are missing here)\n", self.lost));
            }
            let mut count = 0;
            for line in rest {
                if packet.len() + line.text.len() + 24 > PACKET_MAX && count > 0 {
                    break;
                }
                let (s, ms) = (line.at_ms / 1000, line.at_ms % 1000);
                packet.push_str(&format!("[{s:>6}.{ms:03}] {}\n", line.text));
                count += 1;
            }
            if self.send(packet.as_bytes()) {
                self.lost = 0;
            } else {
                self.lost = self.lost.saturating_add(count as u64);
            }
            rest = rest.get(count..).unwrap_or_default();
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

    fn send(&mut self, packet: &[u8]) -> bool {
        if self.socket.is_none() && clock::now().since(self.started) >= RESTART_EVERY {
            self.fork();
        }
        let Some(socket) = &self.socket else { return false };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(socket.as_raw_fd(), packet, flags) {
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
