//! The read-only root: `/root.squashfs` of the initramfs on a loop device, made the root of everything.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC};
use nix::unistd::{chdir, chroot};

use crate::boot::attempt::attempt;
use crate::boot::mounts;
use crate::host::Host;
use crate::sys;

/// The root's file in the initramfs.
pub(crate) const IMAGE: &str = "/root.squashfs";
/// Where it is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";
/// The other kind of file system an initramfs is unpacked to.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// The mount reads a few blocks from memory; more time than this means something is broken.
const MOUNT_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Mounts the root's file. May be repeated after a failure.
///
/// # Errors
/// The step that failed and the kernel's reason; the initramfs is still the root then.
pub(crate) fn mount_image(host: &mut Host) -> Result<(), String> {
    fs::create_dir_all(NEW_ROOT).map_err(|e| format!("cannot make {NEW_ROOT}: {}", sys::errno_text(&e)))?;
    let size = fs::metadata(IMAGE).map_err(|e| format!("{IMAGE}: {}", sys::errno_text(&e)))?.len();
    let device = attempt(host, MOUNT_LIMIT, || {
        let fail = |what: &str| {
            let what = what.to_owned();
            move |e: std::io::Error| format!("{what}: {}", sys::errno_text(&e))
        };
        let backing = File::open(IMAGE).map_err(fail(IMAGE))?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        let control = control.map_err(fail("/dev/loop-control (is the loop module loaded?)"))?;
        let number = sys::block::loop_get_free(&control).map_err(fail("no free loop device"))?;
        let path = format!("/dev/loop{number}");
        let device = File::open(&path).map_err(fail(&path))?;
        sys::block::loop_configure(&device, &backing).map_err(fail(&path))?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some(path.as_str()), NEW_ROOT, Some("squashfs"), flags, None::<&str>)
            .map_err(|e| format!("cannot mount {path} ({IMAGE}) as squashfs: {}", e.desc()))?;
        Ok(path)
    })?;
    host.log.info(format_args!("root: {IMAGE}, {} KiB, on {device}", size / 1024));
    Ok(())
}

/// Moves to the mounted root. The program stays the one that runs.
///
/// # Errors
/// The step that failed; what was moved so far stays moved, only a restart of the machine helps.
pub(crate) fn switch(host: &mut Host) -> Result<(), String> {
    let step = |what: &'static str| move |e: nix::errno::Errno| format!("{what}: {}", e.desc());
    free_initramfs(host);
    for from in mounts::MOVED {
        let to = format!("{NEW_ROOT}{from}");
        mount(Some(from), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|e| format!("cannot move {from} to {to}: {}", e.desc()))?;
    }
    chdir(NEW_ROOT).map_err(step("cannot enter the new root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(step("cannot move the new root to /"))?;
    chroot(".").map_err(step("cannot make the new root the root"))?;
    chdir("/").map_err(step("cannot enter the root"))
}

/// Frees the memory of what the initramfs held beside the root's file: nobody can reach it after the switch.
fn free_initramfs(host: &mut Host) {
    // Started by mistake on a machine with a root of its own, this must not empty it.
    let kind = nix::sys::statfs::statfs("/").map(|s| s.filesystem_type());
    if !matches!(kind, Ok(TMPFS_MAGIC | RAMFS_MAGIC)) {
        return;
    }
    for path in ["/boot", "/init", "/lib", "/bin"].map(Path::new) {
        let removed = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => Ok(()),
        };
        if let Err(error) = removed {
            let path = path.display();
            host.log.warn(format_args!("cannot free {path} of the initramfs: {}", sys::errno_text(&error)));
        }
    }
}
