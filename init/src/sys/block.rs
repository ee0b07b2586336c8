//! Loop devices and the size of a mounted ext4.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::c_ulong;

use super::check;

const LOOP_CONFIGURE: c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: c_ulong = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const EXT4_IOC_RESIZE_FS: c_ulong = 0x4008_6610;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

// The kernel copies exactly this many bytes.
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// The number of a free loop device.
pub(crate) fn loop_get_free(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Makes `backing` the read-only content of the loop device `device`, until its last user is gone.
pub(crate) fn loop_configure(device: &File, backing: &File) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: all-zero bytes are a valid LoopConfig: it has integers and arrays of integers only.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = fd;
    config.info.flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    // SAFETY: the pointer is to a LoopConfig of the size the kernel reads (asserted above).
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }).map(drop)
}

/// Grows the mounted ext4 file system that `directory` lies on to `blocks` blocks.
pub(crate) fn ext4_resize(directory: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
}
