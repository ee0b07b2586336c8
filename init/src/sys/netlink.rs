//! Deleting addresses by rtnetlink: messages made by hand, of a fixed size, in memory set aside once.
//!
//! ```text
//! nlmsghdr (16)  len | type = RTM_DELADDR | flags = REQUEST, ACK | sequence | port = 0
//! ifaddrmsg (8)  family | prefix length | flags | scope | interface index
//! rtattr (4+n)   IFA_LOCAL: the address, 4 or 16 bytes
//! ```
//! Sources: netlink(7), rtnetlink(7), linux/netlink.h, linux/if_addr.h. The kernel works on a request within the call
//! that sends it, so that the answers are there when it returns: nothing here waits, beyond the kernel's own lock on
//! its interfaces.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, send, socket,
};

/// Deletions of one call: their answers fit the socket's receive buffer several times over.
pub(crate) const DELETIONS_MAX: usize = 64;
/// `nlmsghdr`, `ifaddrmsg` and one attribute with an IPv6 address.
const MESSAGE_MAX: usize = 16 + 8 + 4 + 16;
/// `nlmsghdr`, the errno, and the header of the request.
const ANSWER_LEN: usize = 16 + 4 + 16;
/// Packets looked at for the answers of one call; more than there are requests means somebody else writes to us.
const ANSWERS_MAX: usize = 2 * DELETIONS_MAX;

/// An address on an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deletion {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    /// Compared for IPv6 only: the kernel finds an IPv4 address by itself.
    pub(crate) prefix: u8,
}

/// A route netlink socket that deletes addresses.
pub(crate) struct Netlink {
    socket: OwnedFd,
    /// Of the next message.
    sequence: u32,
    requests: Vec<u8>,
}

impl Netlink {
    /// Opens the socket and sets the memory aside.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn open() -> io::Result<Netlink> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Netlink::resume(socket, 1))
    }

    /// One that another program opened; `sequence` is that of its next message, so that no old answer is taken for a
    /// new one.
    pub(crate) fn resume(socket: OwnedFd, sequence: u32) -> Netlink {
        Netlink { socket, sequence, requests: Vec::with_capacity(DELETIONS_MAX * MESSAGE_MAX) }
    }

    /// What another program needs to go on: the socket and the sequence number.
    pub(crate) fn save(&self) -> (RawFd, u32) {
        (self.socket.as_raw_fd(), self.sequence)
    }

    /// Deletes up to [`DELETIONS_MAX`] addresses; further ones are not looked at. Returns an errno for each, 0 for
    /// a deleted one, `ETIMEDOUT` for one without an answer.
    pub(crate) fn delete(&mut self, list: &[Deletion]) -> [i32; DELETIONS_MAX] {
        let mut results = [Errno::ETIMEDOUT as i32; DELETIONS_MAX];
        let list = list.get(..DELETIONS_MAX).unwrap_or(list);
        let first = self.sequence;
        self.requests.clear();
        for deletion in list {
            request(&mut self.requests, self.sequence, deletion);
            self.sequence = self.sequence.wrapping_add(1);
        }
        if list.is_empty() {
            return results;
        }
        if let Err(errno) = send(self.socket.as_raw_fd(), &self.requests, MsgFlags::MSG_DONTWAIT) {
            return [errno as i32; DELETIONS_MAX];
        }
        let mut left = list.len();
        for _ in 0..ANSWERS_MAX {
            if left == 0 {
                break;
            }
            let mut packet = [0; 128];
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut packet) {
                // Port 0 is the kernel; other processes may write to this socket too.
                Ok((count, Some(from))) if from.pid() == 0 => {
                    let answered = answer(packet.get(..count).unwrap_or_default()).and_then(|(to, errno)| {
                        let slot = usize::try_from(to.wrapping_sub(first)).ok()?;
                        Some((results.get_mut(slot).filter(|_| slot < list.len())?, errno))
                    });
                    if let Some((result, errno)) = answered {
                        *result = errno;
                        left -= 1;
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                // No more answers: some were lost (ENOBUFS), or there is none (EAGAIN).
                Err(_) => break,
            }
        }
        results
    }
}

fn request(out: &mut Vec<u8>, sequence: u32, deletion: &Deletion) {
    let (family, octets, prefix): (i32, &[u8], u8) = match &deletion.address {
        IpAddr::V4(a) => (libc::AF_INET, &a.octets(), 32),
        IpAddr::V6(a) => (libc::AF_INET6, &a.octets(), deletion.prefix),
    };
    let attribute = 4 + octets.len();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    out.extend_from_slice(&u32::try_from(16 + 8 + attribute).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(&libc::RTM_DELADDR.to_ne_bytes());
    out.extend_from_slice(&u16::try_from(flags).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[u8::try_from(family).unwrap_or(0), prefix, 0, 0]);
    out.extend_from_slice(&deletion.index.to_ne_bytes());
    out.extend_from_slice(&u16::try_from(attribute).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(&libc::IFA_LOCAL.to_ne_bytes());
    out.extend_from_slice(octets);
}

/// The sequence number and the errno of an answer; `None` when it is none.
fn answer(packet: &[u8]) -> Option<(u32, i32)> {
    let packet = packet.first_chunk::<ANSWER_LEN>()?;
    let word = |at: usize| packet.get(at..at + 4).and_then(|b| b.first_chunk::<4>().copied());
    let kind = u16::from_ne_bytes([packet[4], packet[5]]);
    let sequence = u32::from_ne_bytes(word(8)?);
    let errno = i32::from_ne_bytes(word(16)?);
    (i32::from(kind) == libc::NLMSG_ERROR).then_some((sequence, errno.checked_neg()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        let mut out = Vec::new();
        request(&mut out, 7, &Deletion { index: 3, address: "10.9.0.1".parse().unwrap(), prefix: 24 });
        request(&mut out, 8, &Deletion { index: 4, address: "fd09::1".parse().unwrap(), prefix: 64 });
        let v4 = b"\x20\0\0\0\x15\0\x05\0\x07\0\0\0\0\0\0\0\x02\x20\0\0\x03\0\0\0\x08\0\x02\0\x0a\x09\0\x01";
        let v6 = b"\x2c\0\0\0\x15\0\x05\0\x08\0\0\0\0\0\0\0\x0a\x40\0\0\x04\0\0\0\x14\0\x02\0\
                   \xfd\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
        assert_eq!(out, [v4.as_slice(), v6.as_slice()].concat());
        assert!(v6.len() <= MESSAGE_MAX);
    }

    #[test]
    fn answers_are_read_and_nothing_else() {
        let mut packet = [0_u8; ANSWER_LEN];
        packet[0] = 36;
        packet[4] = 2;
        packet[8] = 9;
        packet[16..20].copy_from_slice(&(-libc::EADDRNOTAVAIL).to_ne_bytes());
        assert_eq!(answer(&packet), Some((9, libc::EADDRNOTAVAIL)));
        assert_eq!(answer(&packet[..ANSWER_LEN - 1]), None, "cut short");
        packet[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(answer(&packet), None, "no errno");
        packet[4] = 3;
        assert_eq!(answer(&packet), None, "NLMSG_DONE");
    }

    #[test]
    fn the_kernel_answers_for_every_address() {
        // Without privileges it refuses; with them there is no such interface. Either way nothing changes.
        let mut netlink = Netlink::open().unwrap();
        let unknown = Deletion { index: 0x7fff_fff0, address: "10.9.0.1".parse().unwrap(), prefix: 32 };
        for _ in 0..2 {
            let results = netlink.delete(&[unknown; DELETIONS_MAX]);
            assert!(results.iter().all(|e| [libc::EPERM, libc::ENODEV].contains(e)), "{results:?}");
        }
        assert_eq!(netlink.delete(&[]), [libc::ETIMEDOUT; DELETIONS_MAX]);
    }
}
