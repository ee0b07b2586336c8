//! Packets that may carry descriptors (unix(7), `SCM_RIGHTS`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::c_int;

/// Descriptors of one packet that reach us; the kernel closes further ones. One more than is ever wanted, so that too
/// many show without the truncation flag as well.
const DESCRIPTORS_MAX: usize = 2;
/// Bytes of a control message with them: a header of 16 and the numbers, aligned to 8.
const CONTROL_LEN: usize = 16 + 4 * DESCRIPTORS_MAX;

/// What came with a packet.
#[derive(Debug)]
pub(crate) enum Descriptors {
    None,
    One(OwnedFd),
    /// They are closed already.
    TooMany,
}

/// Takes the next packet of `socket` without waiting. Returns its length, at most that of `buffer`, and what came
/// with it. Nothing is left open but what is returned.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Descriptors)> {
    // A cmsghdr wants the alignment of its length.
    let mut control = [0_u64; CONTROL_LEN.div_ceil(8)];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid msghdr: no name, no parts, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header's pointers are to `buffer` and `control`, which outlive the call, with their true lengths.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;

    let mut taken: [Option<OwnedFd>; DESCRIPTORS_MAX] = [const { None }; DESCRIPTORS_MAX];
    let mut free = taken.iter_mut();
    // SAFETY: the kernel filled `control` and set its length; the macros walk within it.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: a pointer the macros return is to a whole cmsghdr within `control`.
        let (level, kind, len) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: an integer in, an integer out.
            let data = len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for i in 0..data / size_of::<c_int>() {
                // SAFETY: the numbers lie within this control message's length; they need not be aligned.
                let fd = unsafe { libc::CMSG_DATA(message).cast::<c_int>().add(i).read_unaligned() };
                // SAFETY: the kernel has just made this descriptor for us; nobody else has its number.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if let Some(place) = free.next() {
                    *place = Some(fd);
                }
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    let cut = header.msg_flags & libc::MSG_CTRUNC != 0;
    let [first, second] = taken;
    Ok(match (first, second, cut) {
        (None, None, false) => (count, Descriptors::None),
        (Some(one), None, false) => (count, Descriptors::One(one)),
        _ => (count, Descriptors::TooMany),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
    };
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    /// Sends `count` copies of the writing end of a pipe; its reader sees whether they are all closed.
    fn send(socket: &OwnedFd, count: usize) -> io::PipeReader {
        let (reader, writer) = io::pipe().unwrap();
        let numbers = vec![writer.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control: &[_] = if count > 0 { &rights } else { &[] };
        let part = [IoSlice::new(b"x")];
        sendmsg::<()>(socket.as_raw_fd(), &part, control, MsgFlags::empty(), None).unwrap();
        reader
    }

    #[test]
    fn one_descriptor_is_taken_and_more_are_closed() {
        let (ours, theirs) = pair();
        let mut buffer = [0; 8];
        for count in [0, 1, 2, 3, 100, 253] {
            let mut reader = send(&theirs, count);
            let (length, found) = receive(ours.as_fd(), &mut buffer).unwrap();
            assert_eq!(length, 1);
            match (count, found) {
                (0, Descriptors::None) => {}
                (1, Descriptors::One(fd)) => {
                    assert_eq!(nix::unistd::write(&fd, b"y"), Ok(1));
                    let mut read = [0; 1];
                    reader.read_exact(&mut read).unwrap();
                    let flags = nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
                    assert_eq!(flags, libc::FD_CLOEXEC);
                }
                (2.., Descriptors::TooMany) => {}
                (_, found) => panic!("{count}: {found:?}"),
            }
            // The end of the pipe is only seen when no copy is left.
            assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "{count}");
        }
        let none = receive(ours.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }
}
