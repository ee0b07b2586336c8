//! Children: fork, and the child's way to exec.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::c_int;
use proto::control::LastExit;

use super::check;
use super::confine::{self, ConfineStep, Confinement};

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

/// A program with everything its exec needs, made once: nothing between a death and the next exec allocates.
pub(crate) struct Program {
    path: CString,
    /// Pointers into the strings of `_strings`, each list ended by a null pointer.
    arguments: Box<[*const libc::c_char]>,
    environment: Box<[*const libc::c_char]>,
    _strings: Box<[CString]>,
    /// The terminal that becomes its standard streams and its session's own.
    terminal: Option<CString>,
    /// Applied last before the exec.
    confinement: Option<Confinement>,
}

impl Program {
    /// Prepares `path` with its arguments and environment.
    pub(crate) fn new(
        path: CString,
        arguments: Vec<CString>,
        environment: Vec<CString>,
        terminal: Option<CString>,
    ) -> Program {
        // A CString's bytes stay where they are when it is moved.
        let list = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Box<[_]>>()
        };
        let (argument_list, environment_list) = (list(&arguments), list(&environment));
        let strings = arguments.into_iter().chain(environment).collect();
        Program {
            path,
            arguments: argument_list,
            environment: environment_list,
            _strings: strings,
            terminal,
            confinement: None,
        }
    }

    /// The same in a confinement.
    pub(crate) fn confined(self, confinement: Confinement) -> Program {
        Program { confinement: Some(confinement), ..self }
    }
}

/// The descriptors of a new process. All of them stay the caller's.
pub(crate) struct Descriptors<'a> {
    /// Standard input; not used with a terminal.
    pub(crate) input: BorrowedFd<'a>,
    /// Standard output and error; not used with a terminal.
    pub(crate) output: BorrowedFd<'a>,
    /// What it gets from [`PASSED_FD`] on, in this order; at most [`PASSED_MAX`].
    pub(crate) passed: &'a [BorrowedFd<'a>],
    /// Closed by a successful exec; gets an [`ExecStep`] and an errno otherwise.
    pub(crate) report: BorrowedFd<'a>,
    /// The control group's directory it is born into.
    pub(crate) group: Option<BorrowedFd<'a>>,
}

/// The first descriptor behind the standard streams.
pub(crate) const PASSED_FD: RawFd = 3;
/// Descriptors one service may be given beside its standard streams.
pub(crate) const PASSED_MAX: usize = 16;
/// Descriptors below this are the child's own; its sources are moved above it first.
const SOURCE_FD_MIN: c_int = PASSED_FD + PASSED_MAX as c_int;

/// The steps of the child, in the order of their numbers on the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExecStep {
    Session,
    Terminal,
    Descriptors,
    Program,
    Confine(ConfineStep),
}

/// Bytes of a report: step, errno, and what of the confinement failed.
const REPORT_LENGTH: usize = 7;

impl ExecStep {
    /// Reads a report: the step and its errno.
    pub(crate) fn parse(report: &[u8]) -> Option<(ExecStep, i32)> {
        let [step, a, b, c, d, part, item] = *report.first_chunk::<REPORT_LENGTH>()?;
        let step = match step {
            1 => ExecStep::Session,
            3 => ExecStep::Terminal,
            4 => ExecStep::Descriptors,
            5 => ExecStep::Program,
            6 => ExecStep::Confine(ConfineStep::from_bytes([part, item])?),
            _ => return None,
        };
        Some((step, i32::from_le_bytes([a, b, c, d])))
    }

    fn report(self, errno: i32) -> [u8; REPORT_LENGTH] {
        let (number, [part, item]) = match self {
            ExecStep::Session => (1, [0, 0]),
            ExecStep::Terminal => (3, [0, 0]),
            ExecStep::Descriptors => (4, [0, 0]),
            ExecStep::Program => (5, [0, 0]),
            ExecStep::Confine(step) => (6, step.to_bytes()),
        };
        let [a, b, c, d] = errno.to_le_bytes();
        [number, a, b, c, d, part, item]
    }
}

/// `struct clone_args` of linux/sched.h, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Starts `program` in a process of its own: clone3(2), straight into its control group. Returns its number and its
/// pidfd; how far it came is told on the report pipe.
///
/// Memory is copied, not shared: a child that shares it would suspend PID 1 until its exec, which may wait for a disk.
pub(crate) fn start(program: &Program, descriptors: &Descriptors<'_>) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: c_int = -1;
    let mut arguments = CloneArgs {
        // Handlers of this process must not run in the child.
        flags: libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(group) = &descriptors.group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the kernel reads one CloneArgs of this size and writes one int to `pidfd`. Without a stack the child
    // runs on a copy of this one, like after fork(2). init has one thread; the child makes async-signal-safe calls
    // only, until it executes or exits.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) } as c_int;
    match check(pid)? {
        0 => {
            let (step, error) = prepare_and_exec(program, descriptors);
            let report = step.report(error.raw_os_error().unwrap_or(0));
            // SAFETY: the pointer and the length are those of one array; _exit never returns.
            unsafe {
                libc::write(descriptors.report.as_raw_fd(), report.as_ptr().cast(), report.len());
                libc::_exit(127)
            }
        }
        pid => Ok((pid.cast_unsigned(), super::owned(pidfd))),
    }
}

/// The child's way from clone to exec. Returns only when a step failed.
fn prepare_and_exec(program: &Program, descriptors: &Descriptors<'_>) -> (ExecStep, io::Error) {
    let run = || -> Result<(), (ExecStep, io::Error)> {
        let at = |step| move |error| (step, error);
        unblock_signals();
        // SAFETY: integers only.
        check(unsafe { libc::setsid() }).map_err(at(ExecStep::Session))?;
        place(program, descriptors)?;
        // SAFETY: a constant mask and a constant path.
        unsafe {
            libc::umask(0o022);
            libc::chdir(c"/".as_ptr());
        }
        if let Some(confinement) = &program.confinement {
            confine::apply(confinement).map_err(|(step, error)| (ExecStep::Confine(step), error))?;
        }
        // SAFETY: all three are NUL-terminated, the lists end with a null pointer, and `program` outlives the call.
        unsafe {
            libc::execve(program.path.as_ptr(), program.arguments.as_ptr(), program.environment.as_ptr())
        };
        Err((ExecStep::Program, io::Error::last_os_error()))
    };
    match run() {
        Err(failure) => failure,
        Ok(()) => (ExecStep::Program, io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Puts every descriptor where the program looks for it and keeps the others from it.
fn place(program: &Program, descriptors: &Descriptors<'_>) -> Result<(), (ExecStep, io::Error)> {
    let (input, output) = match &program.terminal {
        None => (descriptors.input.as_raw_fd(), descriptors.output.as_raw_fd()),
        Some(path) => {
            let fd = open_terminal(path).map_err(|error| (ExecStep::Terminal, error))?;
            (fd, fd)
        }
    };
    let place = || -> io::Result<()> {
        // A source may have the number of another one's target: all move out of the way first.
        let input = move_up(input)?;
        let output = move_up(output)?;
        let mut passed = [-1; PASSED_MAX];
        for (to, from) in passed.iter_mut().zip(descriptors.passed) {
            *to = move_up(from.as_raw_fd())?;
        }
        move_to(input, 0)?;
        move_to(output, 1)?;
        move_to(output, 2)?;
        let mut next = PASSED_FD;
        for source in passed.into_iter().take_while(|fd| *fd >= 0) {
            move_to(source, next)?;
            next += 1;
        }
        // Everything of init's is close-on-exec already; this also covers what a kernel call forgot.
        // SAFETY: integers only.
        let r = unsafe { libc::syscall(libc::SYS_close_range, next, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        check(r as c_int).map(drop)
    };
    place().map_err(|error| (ExecStep::Descriptors, error))
}

/// Sends `signal` to the very process that `pidfd` stands for.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo stands for the one kill(2) makes.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    check(r as c_int).map(drop)
}

/// Whom to collect.
#[derive(Clone, Copy)]
pub(crate) enum Whom<'a> {
    /// The process of a pidfd.
    This(BorrowedFd<'a>),
    /// Any child.
    Any,
}

/// Collects a child that has ended: its number and how. `None` when there is none to collect now.
///
/// Not nix's `waitid`: it calls the end by a real-time signal an error, after the child was collected.
pub(crate) fn collect(whom: Whom<'_>) -> Option<(u32, LastExit)> {
    let (kind, id) = match whom {
        Whom::This(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned()),
        Whom::Any => (libc::P_ALL, 0),
    };
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t.
    let r = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
    if r != 0 {
        return None;
    }
    // SAFETY: waitid fills these members; with WNOHANG and nobody to collect the number stays 0.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let how =
        if info.si_code == libc::CLD_EXITED { LastExit::Code(status) } else { LastExit::Signal(status) };
    (pid > 0).then_some((pid.cast_unsigned(), how))
}

/// Whether this process has children, collected or not.
pub(crate) fn has_children() -> bool {
    // SAFETY: a null siginfo is allowed; WNOWAIT leaves everything as it is.
    let r = unsafe {
        libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    };
    r == 0
}

/// Signals at their default action, but for SIGPIPE: whatever started this program, it begins like this, and its
/// children have one signal less to set right. The mask stays: what a former program of this process blocked and did
/// not read is still to be read.
pub(crate) fn begin_with_default_signals() {
    default_dispositions();
    // SAFETY: SIG_IGN is a valid disposition. A write to a closed pipe is an error to handle, not an end.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// What a child of [`start`] has to undo: CLONE_CLEAR_SIGHAND has reset what had a handler.
fn unblock_signals() {
    // SAFETY: SIG_DFL is a valid disposition; an all-zero sigset is the empty set, and sigemptyset initialises it.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// All signals unblocked and at their default action: what init ignores or blocks must not be inherited.
fn default_signals() {
    default_dispositions();
    // SAFETY: an all-zero sigset is the empty set on Linux, and sigemptyset initialises it anyway.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn default_dispositions() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition; SIGKILL, SIGSTOP and libc's own signals refuse, which is right.
        unsafe { libc::signal(number, libc::SIG_DFL) };
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
