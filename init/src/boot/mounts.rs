//! The kernel's file systems and the temporary ones.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::host::Host;

/// What no file system of data needs: programs, devices, set-user-id.
pub(crate) const DATA: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// One mount: source, target, type, flags, options.
type Entry = (&'static str, &'static str, &'static str, MsFlags, &'static str);

/// Needed for everything else; mounted in the initramfs and moved with the root.
const EARLY: [Entry; 5] = [
    ("proc", "/proc", "proc", DATA, ""),
    ("sysfs", "/sys", "sysfs", DATA, ""),
    ("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0755"),
    (
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "mode=0620,gid=5,ptmxmode=0666",
    ),
    ("shm", "/dev/shm", "tmpfs", DATA, "mode=1777,size=16m"),
];

/// Mounted once the root is in place. The sizes bound what a program gone wild can take of 256 MiB.
const LATE: [Entry; 5] = [
    ("run", "/run", "tmpfs", DATA, "mode=0755,size=32m"),
    ("tmp", "/tmp", "tmpfs", DATA, "mode=1777,size=32m"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", DATA, "nsdelegate"),
    ("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", DATA, ""),
    ("pstore", "/sys/fs/pstore", "pstore", DATA, ""),
];

/// What the early mounts move to below the new root.
pub(crate) const MOVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Mounts the early file systems. Failures are said and not fatal: what cannot do without them says so itself.
pub(crate) fn early(host: &mut Host) {
    for entry in EARLY {
        // The initramfs may hold nothing but /init.
        let _ = fs::create_dir_all(entry.1);
        one(host, entry);
    }
}

/// Mounts the later file systems and makes init's directories below /run.
pub(crate) fn late(host: &mut Host) {
    for entry in LATE {
        // Without the directory the kernel does not have this facility: no EFI, no pstore.
        if Path::new(entry.1).is_dir() {
            one(host, entry);
        }
    }
}

/// Makes the run directory `run` and what services expect in it.
///
/// # Errors
/// The first directory that cannot be made.
pub(crate) fn run_directories(run: &Path) -> io::Result<()> {
    for (path, mode) in [(run.to_owned(), 0o755), (run.join("bus"), 0o700), (run.join("parts"), 0o700)] {
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn one(host: &mut Host, (source, target, kind, flags, options): Entry) {
    match mount(Some(source), target, Some(kind), flags, Some(options)) {
        // The kernel may have mounted /dev itself.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
        Err(errno) => host.log.warn(format_args!("cannot mount {kind} on {target}: {}", errno.desc())),
    }
}
