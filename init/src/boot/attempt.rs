//! Work that a dead device may block for ever, done in a child with a deadline.
//!
//! Mounts, ioctls on a file system and `sync` act for the whole machine whoever calls them, so a child can do them
//! for PID 1. When the deadline passes the child is killed and forgotten; a process stuck in the kernel stays there,
//! which is better than PID 1 stuck there. The child is reaped by init's general reaping.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2, write};

use crate::host::Host;
use crate::{clock, sys};

/// Bytes of a child's answer.
const ANSWER_MAX: u64 = 4096;

/// Runs `job` in a child and returns what it returned.
///
/// # Errors
/// The job's own, or that it gave no answer within `limit`, in the words of a technician's log.
pub(crate) fn attempt(
    host: &mut Host,
    limit: Duration,
    job: impl FnOnce() -> Result<String, String>,
) -> Result<String, String> {
    let (reader, writer) =
        pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("cannot make a pipe: {}", e.desc()))?;
    let pid = sys::child::fork_job(&[writer.as_raw_fd()], || {
        let (mark, text) = match job() {
            Ok(text) => ('+', text),
            Err(text) => ('-', text),
        };
        let mut answer = format!("{mark}{text}");
        crate::ring::shorten(&mut answer, ANSWER_MAX as usize);
        // One write below the pipe's capacity: it neither blocks nor comes in parts.
        i32::from(write(&writer, answer.as_bytes()).is_err())
    })
    .map_err(|e| format!("cannot fork: {}", sys::errno_text(&e)))?;
    drop(writer);
    let readable = host.wait(&[reader.as_fd()], Some(clock::now() + limit));
    if !readable.contains(&true) {
        // It may be beyond reach of signals; it is left behind either way.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        return Err(format!("no answer within {} s", limit.as_secs()));
    }
    let mut answer = String::new();
    io::Read::take(std::fs::File::from(reader), ANSWER_MAX)
        .read_to_string(&mut answer)
        .map_err(|e| format!("unreadable answer: {}", sys::errno_text(&e)))?;
    match answer.split_at_checked(1) {
        Some(("+", text)) => Ok(text.to_owned()),
        Some((_, text)) => Err(text.to_owned()),
        None => Err("ended without an answer".to_owned()),
    }
}
