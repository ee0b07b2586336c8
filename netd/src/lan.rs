//! A port's view of its LAN: packet sockets that send announcements and questions and see what other stations say.
//!
//! Two sockets a port, one for ARP and one for IPv6 neighbour discovery with a filter in the kernel, so that the
//! port's ordinary traffic never reaches this process. Nothing is decided here.

use crate::frames::{self, Sighting};
use crate::sys;
use proto::cluster::PortName;
use socket2::{Domain, SockFilter, Socket, Type};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Frames read before others get their turn.
const READ_BURST: usize = 32;

/// Bytes of a frame that are looked at: the longest of ours has 86.
const FRAME_MAX: usize = 256;

/// What a port saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) port: PortName,
    pub(crate) sighting: Sighting,
}

/// An open view. Closed by its drop.
#[derive(Debug)]
pub(crate) struct Lan {
    arp: Arc<AsyncFd<Socket>>,
    neighbours: Arc<AsyncFd<Socket>>,
    readers: [AbortHandle; 2],
}

impl Lan {
    /// Opens the view of interface `index`. Sightings of `watched` addresses go to `seen`; when its reader is behind
    /// they are lost, as frames on a busy LAN are.
    pub(crate) fn open(
        port: &PortName,
        index: u32,
        watched: &Arc<BTreeSet<IpAddr>>,
        seen: &mpsc::Sender<Seen>,
    ) -> io::Result<Lan> {
        let arp = Arc::new(socket(index, frames::ARP, None)?);
        let neighbours = Arc::new(socket(index, frames::IPV6, Some(&neighbour_filter()))?);
        for address in watched.iter() {
            if let IpAddr::V6(address) = address {
                sys::join_multicast(neighbours.get_ref(), index, frames::question_mac(*address))?;
            }
        }
        let read = |socket: &Arc<AsyncFd<Socket>>| {
            let reader = read(socket.clone(), port.clone(), watched.clone(), seen.clone());
            tokio::spawn(reader).abort_handle()
        };
        let readers = [read(&arp), read(&neighbours)];
        Ok(Lan { arp, neighbours, readers })
    }

    /// Sends an ARP or IPv6 frame now or fails: a full queue means that it comes too late anyway.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let is_arp = frame.get(12..14) == Some(&frames::ARP.to_be_bytes());
        let socket = if is_arp { &self.arp } else { &self.neighbours };
        let mut socket: &Socket = socket.get_ref();
        socket.write(frame).map(|_| ())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.readers.iter().for_each(AbortHandle::abort);
    }
}

fn socket(index: u32, ether_type: u16, filter: Option<&[SockFilter]>) -> io::Result<AsyncFd<Socket>> {
    // Protocol 0: it hears nothing until the filter is in place and it is bound to its interface.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    if let Some(filter) = filter {
        socket.attach_filter(filter)?;
    }
    socket.bind(&sys::packet_address(index, ether_type))?;
    sys::watched(socket)
}

/// Lets pass ICMPv6 of the types 135 and 136. Extension headers, which neighbour discovery has none of, do not pass.
fn neighbour_filter() -> [SockFilter; 7] {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6), // next header
        SockFilter::new(JUMP_EQUAL, 0, 4, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 40), // type
        SockFilter::new(JUMP_EQUAL, 1, 0, 135),
        SockFilter::new(JUMP_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, FRAME_MAX as u32),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

async fn read(
    socket: Arc<AsyncFd<Socket>>,
    port: PortName,
    watched: Arc<BTreeSet<IpAddr>>,
    seen: mpsc::Sender<Seen>,
) {
    let mut frame = [0; FRAME_MAX];
    loop {
        // Fails only when the runtime ends.
        let Ok(mut ready) = socket.readable().await else { return };
        for _ in 0..READ_BURST {
            let length = match ready.try_io(|socket| {
                let mut socket: &Socket = socket.get_ref();
                socket.read(&mut frame)
            }) {
                Ok(Ok(length)) => length,
                // The interface went down: the error is told once, then it is silent until it is up again.
                Ok(Err(_)) => continue,
                Err(_would_block) => break,
            };
            let sighting = frames::read(&frame[..length]).filter(|s| watched.contains(&s.address));
            if let Some(sighting) = sighting {
                // Full or closed: a lost frame.
                let _ = seen.try_send(Seen { port: port.clone(), sighting });
            }
        }
        tokio::task::yield_now().await;
    }
}
