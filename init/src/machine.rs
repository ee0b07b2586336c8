//! The end of the machine: file systems, watchdog, `reboot(2)`. Nothing else calls it.

use std::convert::Infallible;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use crate::boot::attempt::attempt;
use crate::boot::{memory, state};
use crate::host::Host;
use crate::shutdown::End;
use crate::sys;

/// Limit for what is still to be written; a disk that takes longer is broken.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// The same when somebody insists on a restart.
const FORCED_SYNC_LIMIT: Duration = Duration::from_secs(1);

/// Writes what is in memory to disk, releases STATE, and ends the machine. All services are gone by now.
pub(crate) fn end(mut host: Host, end: End) -> ! {
    go_down(&mut host, end)
}

/// The same, in the middle of something that is not waited for any more.
pub(crate) fn force(host: &mut Host) -> ! {
    go_down(host, End::ForcedReboot)
}

fn go_down(host: &mut Host, end: End) -> ! {
    if end == End::ForcedReboot {
        // Who goes on pressing must not cut short what is written about it.
        host.at_force = None;
    }
    memory::close(host, end);
    let limit = match end {
        End::ForcedReboot => FORCED_SYNC_LIMIT,
        End::Reboot | End::PowerOff | End::Rescue => SYNC_LIMIT,
    };
    match attempt(host, limit, release_state) {
        Ok(said) => host.log.info(format_args!("STATE: {said}")),
        Err(error) => host.log.error(format_args!("STATE: {error}; going down all the same")),
    }
    let result = match end {
        End::Reboot | End::ForcedReboot | End::Rescue => restart(host),
        End::PowerOff => power_off(host),
    };
    let Err(errno) = result;
    host.log.error(format_args!(
        "the kernel refuses to go down: {}; switch the machine off by hand",
        errno.desc()
    ));
    // Without feeding: an armed watchdog still ends this.
    host.watchdog = None;
    loop {
        host.pause(Duration::from_secs(60));
    }
}

/// Lets go of STATE for the rescue prompt, which may format it. All services are gone by now. The boot counts as ended
/// unless its record is begun again.
pub(crate) fn pause(host: &mut Host) {
    memory::close(host, End::Rescue);
    match attempt(host, SYNC_LIMIT, release_state) {
        Ok(said) => host.log.info(format_args!("STATE: {said}")),
        Err(error) => host.log.error(format_args!("STATE: {error}")),
    }
}

/// Restarts the machine at once, with nothing written and nobody asked: the end of a crash. It returns only if the
/// kernel refuses. Async-signal-safe: one system call.
pub(crate) fn restart_at_once() {
    let Err(_refused) = reboot(RebootMode::RB_AUTOBOOT);
}

fn release_state() -> Result<String, String> {
    sync();
    match umount(state::MOUNT_POINT) {
        Ok(()) => Ok("unmounted".to_owned()),
        // Not mounted at all.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok("was not mounted".to_owned()),
        Err(busy) => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, state::MOUNT_POINT, None::<&str>, flags, None::<&str>)
                .map(|()| format!("read-only ({} when unmounting)", busy.desc()))
                .map_err(|e| format!("cannot be made read-only: {}", e.desc()))
        }
    }
}

fn restart(host: &mut Host) -> Result<Infallible, Errno> {
    if let Some(Err(error)) = host.watchdog.as_ref().map(crate::watchdog::Watchdog::arm_for_reboot) {
        host.log.warn(format_args!("cannot arm the watchdog for the reboot: {}", sys::errno_text(&error)));
    }
    host.log.info(format_args!("restarting the machine"));
    reboot(RebootMode::RB_AUTOBOOT)
}

fn power_off(host: &mut Host) -> Result<Infallible, Errno> {
    if let Some(Err(error)) = host.watchdog.take().map(crate::watchdog::Watchdog::disarm) {
        host.log.warn(format_args!("cannot disarm the watchdog: {}", sys::errno_text(&error)));
    }
    host.log.info(format_args!("switching the machine off"));
    // A machine without power control refuses; halted, it may be switched off by hand.
    reboot(RebootMode::RB_POWER_OFF).or_else(|_| reboot(RebootMode::RB_HALT_SYSTEM))
}
