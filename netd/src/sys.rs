//! The kernel's raw interface where no crate has a safe one: packet socket addresses.

#![allow(unsafe_code)]

use socket2::{SockAddr, SockAddrStorage, Socket};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use tokio::io::unix::AsyncFd;

/// The address that binds a packet socket to one interface and one EtherType.
pub(crate) fn packet_address(index: u32, ether_type: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the address types a sockaddr_storage is made to hold; all-zero is valid for it.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ether_type.to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the storage holds a sockaddr_ll, and the length is that type's.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Has the interface receive frames to the multicast address `mac` for as long as the packet socket is open.
pub(crate) fn join_multicast(socket: &Socket, index: u32, mac: [u8; 6]) -> io::Result<()> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&mac);
    let request = libc::packet_mreq {
        mr_ifindex: index as i32,
        mr_type: libc::PACKET_MR_MULTICAST as u16,
        mr_alen: 6,
        mr_address: address,
    };
    // SAFETY: the pointer is to a packet_mreq that lives through the call, the length is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A non-blocking socket that the runtime watches.
pub(crate) fn watched(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a socket2 socket owns its descriptor, gives the same one every time and closes it only with its drop;
    // the watching ends before that.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_address_is_laid_out_as_the_kernel_reads_it() {
        let address = packet_address(7, 0x0806);
        assert_eq!(usize::try_from(address.len()), Ok(size_of::<libc::sockaddr_ll>()));
        assert_eq!(i32::from(address.family()), libc::AF_PACKET);
    }
}
