//! Sockets that init has made: the descriptors behind `LISTEN_FDS`, which begin at 3 for a service without `NOTIFY_FD`.

#![allow(unsafe_code)]

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};

/// Where inherited descriptors begin.
const FIRST: u32 = 3;

/// More than a service can be given.
const SOCKETS_MAX: u32 = 8;

/// All inherited sockets, in the service file's order. To be called once, before anything else is opened.
pub(crate) fn inherited() -> Vec<TcpListener> {
    let number = std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    // The number alone is no proof: whoever set it may not have left that many open.
    let is_socket = |fd: &u32| {
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let numbers = (FIRST..FIRST + SOCKETS_MAX.min(number)).filter(is_socket);
    numbers
        .map(|fd| {
            // SAFETY: it is open and nothing else in this process owns it: it came with the program, for this use, and
            // this is done once.
            TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) })
        })
        .collect()
}
