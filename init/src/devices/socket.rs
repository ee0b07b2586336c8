//! The socket the kernel tells of devices on: netlink(7), `NETLINK_KOBJECT_UEVENT`, group 1.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};

/// The kernel's own messages; udev's are in group 2.
const KERNEL_GROUP: u32 = 1;
/// Bytes the kernel keeps for us, which it doubles for its own needs: some hundred messages. What is lost beyond that
/// costs a walk over all devices.
const BUFFER_LEN: usize = 128 * 1024;
/// A path of at most 4096 bytes, its action, and values of 2048.
pub(crate) const MESSAGE_MAX: usize = 8192;

/// What was there to receive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A message of this length from the kernel.
    Message(usize),
    /// Somebody else's; not looked at.
    Foreign,
    /// Messages were lost.
    Lost,
    Nothing,
}

/// The socket.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// Opens it. From here on no device comes unheard.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn open() -> nix::Result<Uevents> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER_LEN)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Uevents(socket))
    }

    /// Takes the next message without waiting.
    pub(crate) fn receive(&self, buffer: &mut [u8; MESSAGE_MAX]) -> Received {
        match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), buffer) {
            // Whoever may do so can write to this socket, and have the kernel pass it on: with his own number.
            Ok((_, from)) if from.is_none_or(|from| from.pid() != 0) => Received::Foreign,
            Ok((length, _)) if length < MESSAGE_MAX => Received::Message(length),
            // Cut short, or ENOBUFS: the kernel had no room.
            Ok(_) | Err(Errno::ENOBUFS) => Received::Lost,
            Err(Errno::EINTR) => Received::Foreign,
            Err(_) => Received::Nothing,
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::attempt::attempt;
    use crate::devices::uevent::{self, Action};
    use crate::host::Host;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{MsgFlags, sendto};
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    /// Runs `job` as root of user and network namespaces of its own.
    fn apart(job: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
        let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
        attempt(&mut Host::new(), Duration::from_secs(30), || {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|e| e.desc().to_owned())?;
            for (file, text) in [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("0 {user} 1")),
                ("gid_map", format!("0 {group} 1")),
            ] {
                fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("{file}: {e}"))?;
            }
            job()
        })
    }

    /// Has the kernel say something: a pair of interfaces comes.
    fn make_devices(name: &str) -> Result<(), String> {
        let made = Command::new("ip").args(["link", "add", name, "type", "veth"]).status();
        made.is_ok_and(|status| status.success()).then_some(()).ok_or_else(|| "ip failed".to_owned())
    }

    #[test]
    fn the_kernels_messages_come_and_nobody_elses() {
        let said = apart(|| {
            let events = Uevents::open().map_err(|e| e.desc().to_owned())?;
            let mut buffer = [0; MESSAGE_MAX];
            if events.receive(&mut buffer) != Received::Nothing {
                return Err("a message before there is one".to_owned());
            }
            // Straight to us, and through the kernel to everybody who listens.
            let flags = SockFlag::SOCK_CLOEXEC;
            let forger =
                socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent);
            let forger = forger.map_err(|e| e.desc().to_owned())?;
            let message = b"add@/d\0ACTION=add\0SUBSYSTEM=x\0MODALIAS=forged\0";
            for (pid, group) in
                [(nix::unistd::getpid().as_raw().cast_unsigned(), 0), (0, 0), (0, KERNEL_GROUP)]
            {
                let to = NetlinkAddr::new(pid, group);
                // One or the other is refused by some kernels.
                let _ = sendto(forger.as_raw_fd(), message, &to, MsgFlags::empty());
            }
            let mut foreign = 0;
            loop {
                match events.receive(&mut buffer) {
                    Received::Foreign => foreign += 1,
                    Received::Nothing => break,
                    other => return Err(format!("forged: {other:?}")),
                }
            }
            make_devices("uev0")?;
            loop {
                match events.receive(&mut buffer) {
                    Received::Message(length) => match uevent::parse(&buffer[..length]) {
                        Some(event) if event.action == Action::Add && event.subsystem == "net" => break,
                        Some(_) => {}
                        None => return Err(format!("not understood: {:?}", &buffer[..length])),
                    },
                    other => return Err(format!("{other:?} in place of the interface")),
                }
            }
            Ok(format!("{}", foreign > 0))
        });
        assert_eq!(
            said.as_deref(),
            Ok("true"),
            "a forged message has to reach the socket for this to say anything"
        );
    }

    #[test]
    fn lost_messages_are_noticed() {
        let said = apart(|| {
            let events = Uevents::open().map_err(|e| e.desc().to_owned())?;
            setsockopt(&events, sockopt::RcvBuf, &1).map_err(|e| e.desc().to_owned())?;
            for i in 0..8 {
                make_devices(&format!("uev{i}"))?;
            }
            let mut buffer = [0; MESSAGE_MAX];
            for _ in 0..100 {
                match events.receive(&mut buffer) {
                    Received::Lost => return Ok("lost".to_owned()),
                    Received::Nothing => break,
                    _ => {}
                }
            }
            Err("nothing was lost".to_owned())
        });
        assert_eq!(said.as_deref(), Ok("lost"));
    }
}
