//! The cable between a port of the switch and a machine: UNIX datagram sockets, one datagram for one frame, as
//! QEMU's `-netdev dgram` speaks. Either side may come and go; a machine that is not there loses its frames.
//!
//! The kernel queues few datagrams for a receiver (`net.unix.max_dgram_qlen`, often 10), fewer than a TCP burst
//! has. So up to [`WAITING_MAX`] frames wait here for at most [`WAITING_TIME`]: a machine that is merely busy
//! loses nothing, one that stands still gets no flood of old frames when it goes on.

use super::error::FabricError;
use super::frames::FRAME_MAX;
use super::report::LinkCounters;
use proto::time::{Duration, Time};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

/// Frames that wait for a machine at most: two TCP windows of 64 KiB and some.
pub const WAITING_MAX: usize = 128;
/// A frame waits at most this long, as emulated machines stand still for when the host is busy; later the sender's
/// retransmission is the better copy.
pub const WAITING_TIME: Duration = Duration::from_millis(200);
/// Waiting frames are tried again this often: a full receiver gives no sign when it has room.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(1);
/// Longest path of a UNIX socket (`sockaddr_un` less the final zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// One such cable. Its socket file is removed with it.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixDatagram,
    own_path: PathBuf,
    machine: SocketAddr,
    waiting: VecDeque<(Time, Vec<u8>)>,
    counters: LinkCounters,
}

impl Link {
    /// Makes the switch's socket at `own_path`. A file that a dead fabric left there is replaced.
    pub(super) fn bind(own_path: &Path, machine_path: &Path) -> Result<Link, FabricError> {
        for path in [own_path, machine_path] {
            let length = path.as_os_str().len();
            if length > SOCKET_PATH_MAX {
                return Err(FabricError::PathTooLong { path: path.to_owned(), length });
            }
        }
        let failed = |source| FabricError::Bind { path: own_path.to_owned(), source };
        let machine = SocketAddr::from_pathname(machine_path).map_err(failed)?;
        let socket = match UnixDatagram::bind(own_path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                if !is_left_over(own_path) {
                    return Err(FabricError::InUse { path: own_path.to_owned() });
                }
                std::fs::remove_file(own_path).map_err(failed)?;
                UnixDatagram::bind(own_path)
            }
            other => other,
        }
        .map_err(failed)?;
        let link = Link {
            socket,
            own_path: own_path.to_owned(),
            machine,
            waiting: VecDeque::new(),
            counters: LinkCounters::default(),
        };
        link.socket.set_nonblocking(true).map_err(failed)?;
        Ok(link)
    }

    /// The next frame from the machine, if one is there. `buffer` is longer than [`FRAME_MAX`], so that longer
    /// frames are seen; they come out empty and counted.
    pub(super) fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        // Any error means that there is nothing to read: a datagram socket has no end.
        let length = self.socket.recv(buffer).ok()?;
        self.counters.received += 1;
        if length > FRAME_MAX {
            self.counters.oversize += 1;
            return Some(&[]);
        }
        Some(&buffer[..length])
    }

    /// Hands a frame to the machine, now or soon.
    pub(super) fn send(&mut self, now: Time, frame: &[u8]) {
        self.retry(now);
        if self.waiting.is_empty() && self.try_send(frame) {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.counters.full += 1;
        } else {
            self.waiting.push_back((now, frame.to_vec()));
        }
    }

    /// Tries what waits; drops what waited too long.
    pub(super) fn retry(&mut self, now: Time) {
        while let Some((since, frame)) = self.waiting.pop_front() {
            if now.since(since) > WAITING_TIME {
                self.counters.full += 1;
            } else if !self.try_send(&frame) {
                self.waiting.push_front((since, frame));
                return;
            }
        }
    }

    /// True when frames wait for the machine.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What passed so far.
    pub(super) fn counters(&self) -> LinkCounters {
        LinkCounters { waiting: self.waiting.len(), ..self.counters }
    }

    /// False when the machine has no room now.
    fn try_send(&mut self, frame: &[u8]) -> bool {
        match self.socket.send_to_addr(frame, &self.machine) {
            Ok(_) => self.counters.sent += 1,
            Err(e) if no_room(&e) => return false,
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                self.counters.absent += 1;
            }
            Err(_) => self.counters.failed += 1,
        }
        true
    }
}

/// A socket file outlives its process; one that refuses is nobody's. Files of other kinds are somebody's.
fn is_left_over(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let answer = UnixDatagram::unbound().and_then(|s| s.connect(path));
    is_socket && answer.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

fn no_room(e: &io::Error) -> bool {
    e.kind() == ErrorKind::WouldBlock || e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32)
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.own_path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::*;

    const NOW: Time = Time::ZERO;

    fn pair(dir: &TempDir) -> (Link, PathBuf) {
        let machine = dir.path().join("n0.vm");
        (Link::bind(&dir.path().join("n0.sw"), &machine).unwrap(), machine)
    }

    #[test]
    fn machines_come_and_go() {
        let dir = TempDir::new("link");
        let (mut link, path) = pair(&dir);
        link.send(NOW, b"nobody there");
        for round in 0..2 {
            let vm = UnixDatagram::bind(&path).unwrap();
            link.send(NOW, b"to you");
            let mut buffer = [0; 32];
            let length = vm.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"to you");
            vm.send_to(b"back", dir.path().join("n0.sw")).unwrap();
            assert_eq!(link.receive(&mut [0; 64]), Some(&b"back"[..]), "round {round}");
            assert_eq!(link.receive(&mut [0; 64]), None);
            drop(vm);
            link.send(NOW, b"refused");
            std::fs::remove_file(&path).unwrap();
            link.send(NOW, b"no file");
        }
        let expected = LinkCounters { received: 2, sent: 2, absent: 5, ..LinkCounters::default() };
        assert_eq!(link.counters(), expected);
    }

    #[test]
    fn frames_wait_a_little_in_order_and_no_more() {
        let dir = TempDir::new("link-full");
        let (mut link, path) = pair(&dir);
        let vm = UnixDatagram::bind(&path).unwrap();
        let total = 2000u32;
        for n in 0..total {
            link.send(NOW, &n.to_be_bytes());
        }
        let full = link.counters();
        assert_eq!(full.waiting, WAITING_MAX);
        assert_eq!(full.sent + full.full + WAITING_MAX as u64, u64::from(total));
        // Room again: what waited comes behind what was queued.
        vm.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        while {
            let mut word = [0; 4];
            let more = vm.recv(&mut word).is_ok();
            more.then(|| got.push(u32::from_be_bytes(word)));
            link.retry(NOW + WAITING_TIME);
            more || link.is_waiting()
        } {}
        assert_eq!(got, (0..got.len() as u32).collect::<Vec<_>>());
        assert_eq!(got.len() as u64, full.sent + WAITING_MAX as u64);
        // What waited too long is dropped.
        for n in 0..total {
            link.send(NOW, &n.to_be_bytes());
        }
        link.retry(NOW + WAITING_TIME + Duration::from_nanos(1));
        assert!(!link.is_waiting());
    }

    #[test]
    fn oversize_frames_are_counted_not_cut() {
        let dir = TempDir::new("link-oversize");
        let (mut link, path) = pair(&dir);
        let vm = UnixDatagram::bind(&path).unwrap();
        vm.send_to(&vec![2; FRAME_MAX + 50], dir.path().join("n0.sw")).unwrap();
        vm.send_to(&vec![2; FRAME_MAX], dir.path().join("n0.sw")).unwrap();
        let mut buffer = vec![0; FRAME_MAX + 1];
        assert_eq!(link.receive(&mut buffer), Some(&[][..]));
        assert_eq!(link.receive(&mut buffer).map(<[u8]>::len), Some(FRAME_MAX));
        assert_eq!(link.counters().oversize, 1);
    }

    #[test]
    fn socket_files_are_replaced_when_dead_and_refused_when_alive() {
        let dir = TempDir::new("link-stale");
        let (own, machine) = (dir.path().join("n0.sw"), dir.path().join("n0.vm"));
        drop(UnixDatagram::bind(&own).unwrap());
        assert!(own.exists());
        let link = Link::bind(&own, &machine).unwrap();
        assert!(matches!(Link::bind(&own, &machine), Err(FabricError::InUse { .. })));
        assert!(own.exists(), "a refused bind must not remove the other's file");
        drop(link);
        assert!(!own.exists());
        std::fs::write(&own, "a file").unwrap();
        assert!(matches!(Link::bind(&own, &machine), Err(FabricError::InUse { .. })));
        assert_eq!(std::fs::read(&own).unwrap(), b"a file");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(Link::bind(&own, &long), Err(FabricError::PathTooLong { .. })));
    }
}
