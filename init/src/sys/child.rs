//! Children: fork, and the child's way to exec.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::check;

/// Runs `job` in a child made by fork and ends the child with the code `job` returns. Returns the child's number.
///
/// The child keeps the descriptors of `keep`, all others are closed in it: it must not hold the watchdog or a
/// listening socket. Its signals are unblocked; it dies with this process.
pub(crate) fn fork_job(keep: &[RawFd], job: impl FnOnce() -> i32) -> io::Result<u32> {
    // SAFETY: init has one thread, so that the child's copy of memory, locks included, is consistent.
    match check(unsafe { libc::fork() })? {
        0 => {
            // SAFETY: integers only; a failure leaves the child without this protection, which is no harm.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
            default_signals();
            close_all_but(keep);
            let code = job();
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid.cast_unsigned()),
    }
}

/// What the child of [`fork_exec`] needs, made before the fork because the child must not allocate.
pub(crate) struct Exec {
    pub(crate) program: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// `cgroup.procs` of the service's own group.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Standard input, output and error.
    pub(crate) stdio: Stdio,
    /// Becomes [`NOTIFY_FD`].
    pub(crate) notify: Option<OwnedFd>,
    /// Closed by a successful exec; gets a [`ExecStep`] and an errno otherwise.
    pub(crate) report: OwnedFd,
}

/// Where a service's standard streams go.
pub(crate) enum Stdio {
    /// `/dev/null` to read, one pipe to write.
    Captured { input: OwnedFd, output: OwnedFd },
    /// The controlling terminal at this path.
    Terminal(CString),
}

/// The descriptor a service tells its readiness on.
pub(crate) const NOTIFY_FD: RawFd = 3;
/// Descriptors below this are the child's own; its sources are moved above it first.
const SOURCE_FD_MIN: c_int = 16;

/// The steps of the child, in the order of their numbers on the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExecStep {
    Session = 1,
    Cgroup = 2,
    Terminal = 3,
    Descriptors = 4,
    Program = 5,
}

impl ExecStep {
    /// Reads a report: the step and its errno.
    pub(crate) fn parse(report: &[u8]) -> Option<(ExecStep, i32)> {
        let [step, a, b, c, d] = *report.first_chunk::<5>()?;
        let step = match step {
            1 => ExecStep::Session,
            2 => ExecStep::Cgroup,
            3 => ExecStep::Terminal,
            4 => ExecStep::Descriptors,
            5 => ExecStep::Program,
            _ => return None,
        };
        Some((step, i32::from_le_bytes([a, b, c, d])))
    }
}

/// Forks and executes `exec`. Returns the child's number; how far it came is told on the report pipe.
pub(crate) fn fork_exec(exec: &Exec) -> io::Result<u32> {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(&exec.arguments), pointers(&exec.environment));
    // SAFETY: init has one thread; the child calls async-signal-safe functions only, until it executes or exits.
    match check(unsafe { libc::fork() })? {
        0 => {
            let (step, error) = prepare_and_exec(exec, &arguments, &environment);
            let errno = error.raw_os_error().unwrap_or(0).to_le_bytes();
            let report = [step as u8, errno[0], errno[1], errno[2], errno[3]];
            // SAFETY: the buffer is five bytes long; _exit never returns.
            unsafe {
                libc::write(exec.report.as_raw_fd(), report.as_ptr().cast(), report.len());
                libc::_exit(127)
            }
        }
        pid => Ok(pid.cast_unsigned()),
    }
}

/// The child's way from fork to exec. Returns only when a step failed.
fn prepare_and_exec(
    exec: &Exec,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> (ExecStep, io::Error) {
    let run = || -> Result<(), (ExecStep, io::Error)> {
        let at = |step| move |error| (step, error);
        default_signals();
        // SAFETY: integers only.
        check(unsafe { libc::setsid() }).map_err(at(ExecStep::Session))?;
        if let Some(procs) = &exec.cgroup {
            // SAFETY: writes one byte from a constant; "0" stands for the writer itself.
            let written = unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) };
            check(written as c_int).map_err(at(ExecStep::Cgroup))?;
        }
        let (input, output) = match &exec.stdio {
            Stdio::Captured { input, output } => (input.as_raw_fd(), output.as_raw_fd()),
            Stdio::Terminal(path) => {
                let fd = open_terminal(path).map_err(at(ExecStep::Terminal))?;
                (fd, fd)
            }
        };
        let place = || -> io::Result<()> {
            // A source may have the number of another one's target: all move out of the way first.
            let input = move_up(input)?;
            let output = move_up(output)?;
            let notify = exec.notify.as_ref().map(|n| move_up(n.as_raw_fd())).transpose()?;
            move_to(input, 0)?;
            move_to(output, 1)?;
            move_to(output, 2)?;
            if let Some(notify) = notify {
                move_to(notify, NOTIFY_FD)?;
            }
            let first_unused = if notify.is_some() { NOTIFY_FD + 1 } else { NOTIFY_FD };
            // Everything of init's is close-on-exec already; this also covers what a kernel call forgot.
            // SAFETY: integers only.
            let r = unsafe {
                libc::syscall(libc::SYS_close_range, first_unused, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
            };
            check(r as c_int).map(drop)
        };
        place().map_err(at(ExecStep::Descriptors))?;
        // SAFETY: a constant mask and a constant path.
        unsafe {
            libc::umask(0o022);
            libc::chdir(c"/".as_ptr());
        }
        // SAFETY: all three are NUL-terminated, the arrays end with a null pointer, and `exec` outlives the call.
        unsafe { libc::execve(exec.program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        Err((ExecStep::Program, io::Error::last_os_error()))
    };
    match run() {
        Err(failure) => failure,
        Ok(()) => (ExecStep::Program, io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// All signals unblocked and at their default action: what init ignores or blocks must not be inherited.
fn default_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition; SIGKILL, SIGSTOP and libc's own signals refuse, which is right.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset is the empty set on Linux, and sigemptyset initialises it anyway.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn move_up(fd: RawFd) -> io::Result<RawFd> {
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, SOURCE_FD_MIN) })
}

fn move_to(fd: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: integers only. dup2 leaves close-on-exec off, as wanted.
    check(unsafe { libc::dup2(fd, target) }).map(drop)
}

/// Closes every descriptor from 3 on that is not in `keep`.
fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > from {
            // SAFETY: integers only; these descriptors are copies that nothing in the child uses.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Opens a terminal as the session's own, with a line discipline a shell can start from.
fn open_terminal(path: &CStr) -> io::Result<RawFd> {
    // Without O_NONBLOCK the open of a serial line waits for its carrier.
    // SAFETY: the path is NUL-terminated.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK) })?;
    // SAFETY: TIOCSCTTY takes an integer: 1 takes the terminal from a session that has it.
    check(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 1) })?;
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, 0) })?;
    // SAFETY: an all-zero termios is valid; tcgetattr fills it.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to one termios.
    check(unsafe { libc::tcgetattr(fd, &raw mut modes) })?;
    // A shell that crashed may have left raw mode behind. No XON/XOFF: line noise must not freeze the console.
    modes.c_iflag = libc::ICRNL | libc::BRKINT;
    modes.c_oflag = libc::OPOST | libc::ONLCR;
    modes.c_lflag = libc::ISIG
        | libc::ICANON
        | libc::IEXTEN
        | libc::ECHO
        | libc::ECHOE
        | libc::ECHOK
        | libc::ECHOCTL
        | libc::ECHOKE;
    modes.c_cflag |= libc::CREAD | libc::CLOCAL;
    // SAFETY: the pointer is to one termios.
    check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const modes) })?;
    Ok(fd)
}
