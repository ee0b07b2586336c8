//! Work that a dead device may block for ever, done in a child with a deadline.
//!
//! Mounts, ioctls on a file system and `sync` act for the whole machine whoever calls them, so a child can do them
//! for PID 1. When the deadline passes the child is killed and forgotten; a process stuck in the kernel stays there,
//! which is better than PID 1 stuck there. The child is reaped by init's general reaping.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use nix::unistd::Pid;

use crate::host::Host;
use crate::{clock, ring, sys};

/// Bytes of a child's answer.
pub(crate) const ANSWER_MAX: usize = 8192;

/// Runs `job` in a child and returns what it returned.
///
/// # Errors
/// The job's own, or that it gave no answer within `limit`, in the words of a technician's log.
pub(crate) fn attempt(
    host: &mut Host,
    limit: Duration,
    job: impl FnOnce() -> Result<String, String>,
) -> Result<String, String> {
    let done = attempt_with(host, limit, || {
        job().map(|mut text| {
            ring::shorten(&mut text, ANSWER_MAX - 1);
            (text.into_bytes(), None)
        })
    });
    done.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned())
}

/// The same for bytes (less than [`ANSWER_MAX`]) and a file the child has opened: opening may block, too.
///
/// # Errors
/// As above.
pub(crate) fn attempt_with(
    host: &mut Host,
    limit: Duration,
    job: impl FnOnce() -> Result<(Vec<u8>, Option<File>), String>,
) -> Result<(Vec<u8>, Option<OwnedFd>), String> {
    let attempt = begin(job)?;
    match host.wait(&[attempt.fd()], Some(clock::now() + limit)).contains(&true) {
        true => attempt.finish(),
        false => {
            attempt.give_up();
            Err(format!("no answer within {} s", limit.as_secs()))
        }
    }
}

/// Work under way in a child, for those who have more to do than to wait for it.
pub(crate) struct Attempt {
    reader: OwnedFd,
    pid: u32,
}

impl Attempt {
    /// Can be read when there is an answer, or none will come.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Takes the answer. To be called when [`Attempt::fd`] can be read.
    ///
    /// # Errors
    /// The job's own, or that it gave no answer.
    pub(crate) fn finish(self) -> Result<(Vec<u8>, Option<OwnedFd>), String> {
        receive(&self.reader)
    }

    /// One that another program began, whose child `pid` answers to `reader`.
    pub(crate) fn resume(reader: OwnedFd, pid: u32) -> Attempt {
        Attempt { reader, pid }
    }

    /// What another program needs to go on: the descriptor and the child.
    pub(crate) fn save(&self) -> (RawFd, u32) {
        (self.reader.as_raw_fd(), self.pid)
    }

    /// Kills the child. It may be beyond reach of signals; it is left behind either way.
    pub(crate) fn give_up(self) {
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
    }
}

/// Begins `job` in a child.
///
/// # Errors
/// There is no child.
pub(crate) fn begin(
    job: impl FnOnce() -> Result<(Vec<u8>, Option<File>), String>,
) -> Result<Attempt, String> {
    // Packets: an answer comes whole, in one piece, and with its descriptor.
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (reader, writer) = pair.map_err(|e| format!("cannot make a socket pair: {}", e.desc()))?;
    let pid = sys::child::fork_job(&[writer.as_raw_fd()], || {
        let (mark, (answer, file)) = match job() {
            Ok(done) => (b"+", done),
            Err(mut text) => {
                ring::shorten(&mut text, ANSWER_MAX - 1);
                (b"-", (text.into_bytes(), None))
            }
        };
        let descriptors: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
        let passed = [ControlMessage::ScmRights(&descriptors)];
        let passed = if file.is_some() { &passed[..] } else { &[] };
        let parts = [IoSlice::new(mark), IoSlice::new(&answer)];
        i32::from(sendmsg::<()>(writer.as_raw_fd(), &parts, passed, MsgFlags::MSG_NOSIGNAL, None).is_err())
    })
    .map_err(|e| format!("cannot fork: {}", sys::errno_text(&e)))?;
    Ok(Attempt { reader, pid })
}

fn receive(reader: &OwnedFd) -> Result<(Vec<u8>, Option<OwnedFd>), String> {
    let unreadable = |e: nix::errno::Errno| format!("unreadable answer: {}", e.desc());
    let mut answer = vec![0; ANSWER_MAX];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<()>(reader.as_raw_fd(), &mut parts, Some(&mut control), flags).map_err(unreadable)?;
    let (len, cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
    let mut file = None;
    for part in message.cmsgs().map_err(unreadable)? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            // Received a moment ago: nobody else has them.
            file = descriptors.into_iter().map(sys::owned).next();
        }
    }
    answer.truncate(len);
    match answer.split_first() {
        _ if cut => Err("its answer is too long".to_owned()),
        Some((b'+', bytes)) => Ok((bytes.to_owned(), file)),
        Some((_, text)) => Err(String::from_utf8_lossy(text).into_owned()),
        None => Err("ended without an answer".to_owned()),
    }
}

/// Runs `job` in a child that nobody waits for; what it has to say it must say itself.
pub(crate) fn detach(job: impl FnOnce()) -> Result<(), String> {
    let forked = sys::child::fork_job(&[], || {
        job();
        0
    });
    forked.map(drop).map_err(|e| format!("cannot fork: {}", sys::errno_text(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;
    use std::io::Read;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn answers_errors_and_files_come_back() {
        let mut host = Host::new();
        assert_eq!(attempt(&mut host, LONG, || Ok("done".into())).as_deref(), Ok("done"));
        assert_eq!(attempt(&mut host, LONG, || Ok(String::new())).as_deref(), Ok(""));
        assert_eq!(attempt(&mut host, LONG, || Err("no".into())), Err("no".to_owned()));
        let long = attempt(&mut host, LONG, || Ok("é".repeat(ANSWER_MAX))).unwrap();
        assert!(long.len() > ANSWER_MAX - 8 && long.chars().all(|c| c == 'é'));
        let too_long = attempt_with(&mut host, LONG, || Ok((vec![1; ANSWER_MAX], None)));
        assert_eq!(too_long.unwrap_err(), "its answer is too long");

        let dir = TestDir::new();
        let path = dir.path().join("f");
        std::fs::write(&path, "text").unwrap();
        let (bytes, file) = attempt_with(&mut host, LONG, || Ok((vec![7], File::open(&path).ok()))).unwrap();
        let mut text = String::new();
        File::from(file.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((bytes, text.as_str()), (vec![7], "text"));
    }

    #[test]
    fn a_child_that_hangs_or_dies_holds_nobody() {
        let mut host = Host::new();
        let hang = || {
            nix::unistd::pause();
            Ok(String::new())
        };
        assert_eq!(
            attempt(&mut host, Duration::from_millis(50), hang),
            Err("no answer within 0 s".to_owned())
        );
        let die = || {
            let _ = nix::sys::signal::raise(Signal::SIGKILL);
            Ok(String::new())
        };
        assert_eq!(attempt(&mut host, LONG, die), Err("ended without an answer".to_owned()));
    }
}
