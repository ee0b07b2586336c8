//! The kernel's random number generator: random(4), getrandom(2).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use libc::{c_int, c_ulong};

use super::check;

const RNDADDENTROPY: c_ulong = 0x4008_5203;
/// Bytes that one call can credit.
const CREDIT_MAX: usize = 64;

/// `struct rand_pool_info` of linux/random.h with room for [`CREDIT_MAX`] bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: c_int,
    buf_size: c_int,
    buf: [u8; CREDIT_MAX],
}

/// The pool, open for adding to it.
pub(crate) struct KernelPool(File);

impl KernelPool {
    /// Opens it.
    pub(crate) fn open() -> io::Result<KernelPool> {
        OpenOptions::new().write(true).open("/dev/urandom").map(KernelPool)
    }

    /// Adds bytes that count for nothing.
    pub(crate) fn mix(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Adds at most [`CREDIT_MAX`] bytes that count for `bits`.
    pub(crate) fn credit(&mut self, bytes: &[u8], bits: c_int) -> io::Result<()> {
        let mut info = RandPoolInfo { entropy_count: bits, buf_size: 0, buf: [0; CREDIT_MAX] };
        for (to, from) in info.buf.iter_mut().zip(bytes) {
            *to = *from;
            info.buf_size += 1;
        }
        // SAFETY: the kernel reads the two integers and `buf_size` bytes behind them, which are at most the array.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), RNDADDENTROPY, &raw const info) }).map(drop)
    }
}

/// Fills `bytes` without ever waiting. Whether the pool was ready: if not, they are the best there is.
pub(crate) fn draw(bytes: &mut [u8]) -> io::Result<bool> {
    for (flags, ready) in [(libc::GRND_NONBLOCK, true), (libc::GRND_INSECURE, false)] {
        // SAFETY: the kernel writes at most the length of the buffer.
        let r = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), flags) };
        match usize::try_from(r) {
            // Up to 256 bytes come whole.
            Ok(n) if n == bytes.len() => return Ok(ready),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EAGAIN) && ready => {}
                e => return Err(e),
            },
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}
