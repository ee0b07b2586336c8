//! Memory that outlives the service it belongs to: one sealed memfd for each service with `keeps_memory = true`.
//!
//! A service hands it over while it runs (`proto::control::Request::KeepMemory`); its next life finds it as the
//! descriptor named in `STORE_FD`, also after a crash, because init holds it, and the program that takes over from
//! init after it. What it holds is the service's
//! business: init neither reads nor writes it, so that it costs PID 1 a descriptor and no memory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use proto::control::MEMORY_MAX;

use super::ServiceId;

/// What is kept, by service.
#[derive(Default)]
pub(crate) struct Store {
    kept: BTreeMap<ServiceId, OwnedFd>,
}

impl Store {
    /// Keeps `memory` for `service`, instead of what was kept before. Returns its size in bytes.
    ///
    /// # Errors
    /// What is wrong with it; what was kept before stays.
    pub(crate) fn keep(&mut self, service: ServiceId, memory: OwnedFd) -> Result<u64, String> {
        // First, because only file systems in memory have seals: nothing after this can wait for a device.
        let seals = fcntl(memory.as_fd(), FcntlArg::F_GET_SEALS)
            .map_err(|_| "the descriptor is no memfd that allows seals".to_owned())?;
        let needed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        if !SealFlag::from_bits_retain(seals).contains(needed) {
            return Err("the memory lacks the seals F_SEAL_SHRINK and F_SEAL_GROW; add them first".to_owned());
        }
        let stat = fstat(&memory).map_err(|e| format!("the memory cannot be looked at: {}", e.desc()))?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if !(1..=MEMORY_MAX).contains(&size) {
            return Err(format!("the memory has {size} bytes; 1 to {MEMORY_MAX} are kept"));
        }
        self.kept.insert(service, memory);
        Ok(size)
    }

    /// What the next process of `service` is to inherit. It stays kept.
    pub(crate) fn take(&self, service: ServiceId) -> Option<BorrowedFd<'_>> {
        self.kept.get(&service).map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    const NETD: ServiceId = ServiceId(0);

    fn memory(size: u64, seals: SealFlag) -> OwnedFd {
        let fd = memfd_create("store-test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&fd, i64::try_from(size).unwrap()).unwrap();
        fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(seals)).unwrap();
        fd
    }

    fn inode(fd: BorrowedFd<'_>) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    #[test]
    fn only_sealed_memory_of_a_bounded_size_is_kept() {
        let both = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        let mut store = Store::default();
        assert!(store.take(NETD).is_none());
        let first = memory(MEMORY_MAX, both);
        let number = inode(first.as_fd());
        assert_eq!(store.keep(NETD, first), Ok(MEMORY_MAX));
        assert_eq!(inode(store.take(NETD).unwrap()), number);
        let cases = [
            (memory(4096, SealFlag::F_SEAL_GROW), "lacks the seals"),
            (memory(4096, SealFlag::F_SEAL_SHRINK), "lacks the seals"),
            (memory(0, both), "has 0 bytes"),
            (memory(MEMORY_MAX + 1, both), "1 to 1048576"),
            (std::fs::File::open("/dev/null").unwrap().into(), "no memfd"),
            (std::io::pipe().unwrap().0.into(), "no memfd"),
        ];
        for (bad, words) in cases {
            let refused = store.keep(NETD, bad).unwrap_err();
            assert!(refused.contains(words), "{refused}");
            assert_eq!(inode(store.take(NETD).unwrap()), number, "what was kept stays");
        }
        let second = memory(1, both);
        let number = inode(second.as_fd());
        assert_eq!(store.keep(NETD, second), Ok(1));
        assert_eq!(inode(store.take(NETD).unwrap()), number);
        assert!(store.take(ServiceId(1)).is_none());
    }
}
