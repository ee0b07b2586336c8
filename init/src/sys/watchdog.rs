//! The watchdog's ioctls (linux/watchdog.h).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_ulong};

use super::check;

const WDIOC_GETSUPPORT: c_ulong = 0x8028_5700;
const WDIOC_GETBOOTSTATUS: c_ulong = 0x8004_5702;
const WDIOC_KEEPALIVE: c_ulong = 0x8004_5705;
const WDIOC_SETTIMEOUT: c_ulong = 0xc004_5706;
const WDIOC_GETTIMEOUT: c_ulong = 0x8004_5707;

/// `struct watchdog_info` of linux/watchdog.h.
#[repr(C)]
struct WatchdogSupport {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

// The kernel copies exactly this many bytes.
const _: () = assert!(size_of::<WatchdogSupport>() == 40);

/// The watchdog driver's name.
pub(crate) fn identity(device: &File) -> io::Result<String> {
    let mut support = WatchdogSupport { options: 0, firmware_version: 0, identity: [0; 32] };
    // SAFETY: the kernel writes one watchdog_info of the size asserted above.
    check(unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_GETSUPPORT, &raw mut support) })?;
    let name = CStr::from_bytes_until_nul(&support.identity).map_or(&support.identity[..], CStr::to_bytes);
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Asks for a timeout in seconds; returns the one the hardware took.
pub(crate) fn set_timeout(device: &File, seconds: u32) -> io::Result<u32> {
    let mut value = c_int::try_from(seconds).unwrap_or(c_int::MAX);
    // SAFETY: the kernel reads and writes one int.
    check(unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_SETTIMEOUT, &raw mut value) })?;
    timeout(device)
}

/// The timeout in force, in seconds.
pub(crate) fn timeout(device: &File) -> io::Result<u32> {
    let mut value: c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_GETTIMEOUT, &raw mut value) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// The flags that say how the last boot ended.
pub(crate) fn boot_status(device: &File) -> io::Result<u32> {
    let mut value: c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_GETBOOTSTATUS, &raw mut value) })?;
    Ok(value.cast_unsigned())
}

/// Starts the watchdog's time anew.
pub(crate) fn feed(device: &File) -> io::Result<()> {
    // SAFETY: WDIOC_KEEPALIVE ignores its argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_KEEPALIVE, 0) }).map(drop)
}
