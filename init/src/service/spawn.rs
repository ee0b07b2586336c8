//! From a unit to a process: descriptors, environment, control group, fork.
//!
//! There is no pidfd: init is the only one who reaps its children, so a process number is good until init itself
//! has collected its end, and the end is learnt from SIGCHLD like that of any orphan.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::service::cgroup::Cgroups;
use crate::service::unit::{Readiness, Unit};
use crate::sys;
use crate::sys::child::{Exec, ExecStep, NOTIFY_FD, Stdio};

/// What stands in a unit's `tty` for whatever terminal the kernel's own messages go to.
const KERNEL_CONSOLE: &str = "console";

/// A started service's process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Hangs up when the program runs; gives a step and an errno when it cannot.
    pub(crate) report: Option<OwnedFd>,
    /// Readable when the service tells readiness.
    pub(crate) notify: Option<OwnedFd>,
}

/// Starts the program of `unit`, with `output` as the end of the pipe its lines go to.
///
/// # Errors
/// Why there is no process. Nothing is left behind.
pub(crate) fn spawn(unit: &Unit, cgroups: &Cgroups, output: &OwnedFd) -> Result<Process, String> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {}", sys::errno_text(&e))
    };
    let c_string = |s: &str| CString::new(s).map_err(|_| format!("{s:?} contains a NUL byte"));
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("cannot make a pipe: {}", e.desc()));

    let program = c_string(unit.command.first().map_or("", String::as_str))?;
    let arguments = unit.command.iter().map(|a| c_string(a)).collect::<Result<Vec<_>, _>>()?;
    let stdio = match &unit.tty {
        Some(tty) => Stdio::Terminal(c_string(&terminal_path(tty))?),
        None => {
            // A service that made its end of the pipe non-blocking has done so for its successors too.
            let flags = fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::empty()));
            flags.map_err(|e| format!("cannot prepare its output: {}", e.desc()))?;
            let output = output.try_clone().map_err(fail("cannot prepare its output"))?;
            Stdio::Captured { input: File::open("/dev/null").map_err(fail("/dev/null"))?.into(), output }
        }
    };
    let notify_number = NOTIFY_FD.to_string();
    let mut variables = BTreeMap::from([("PATH", "/bin"), ("TERM", "dumb")]);
    variables.extend(unit.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let (notify, notify_writer) = match unit.ready {
        Readiness::Notify => {
            let (reader, writer) = pipe()?;
            nonblocking(&reader).map_err(fail("cannot prepare its readiness pipe"))?;
            variables.insert("NOTIFY_FD", &notify_number);
            (Some(reader), Some(writer))
        }
        Readiness::Exec => (None, None),
    };
    let environment =
        variables.iter().map(|(k, v)| c_string(&format!("{k}={v}"))).collect::<Result<Vec<_>, _>>()?;
    let (report, report_writer) = pipe()?;
    nonblocking(&report).map_err(fail("cannot prepare its report pipe"))?;
    let cgroup = cgroups.enter(&unit.name).map_err(fail("cannot make its control group"))?;
    let exec =
        Exec { program, arguments, environment, cgroup, stdio, notify: notify_writer, report: report_writer };
    let pid = sys::child::fork_exec(&exec).map_err(fail("cannot fork"))?;
    Ok(Process { pid, report: Some(report), notify })
}

/// Words for a report of the child.
pub(crate) fn failed_step(unit: &Unit, step: ExecStep, errno: i32) -> String {
    let program = unit.command.first().map_or("", String::as_str);
    let what = match step {
        ExecStep::Session => "cannot make its session".to_owned(),
        ExecStep::Cgroup => "cannot enter its control group".to_owned(),
        ExecStep::Terminal => format!("cannot use terminal {}", unit.tty.as_deref().unwrap_or_default()),
        ExecStep::Descriptors => "cannot prepare its descriptors".to_owned(),
        ExecStep::Program => format!("cannot run {program}"),
    };
    format!("{what}: {}", nix::errno::Errno::from_raw(errno).desc())
}

/// Makes reads from `fd` return at once.
pub(crate) fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Why `program` cannot be run, if that can be seen before the attempt.
pub(crate) fn missing(program: &str) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    match fs::metadata(program) {
        Err(error) => Some(sys::errno_text(&error)),
        Ok(meta) if !meta.is_file() => Some("it is not a file".to_owned()),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Some("it is not executable".to_owned()),
        Ok(_) => None,
    }
}

/// The device of a unit's terminal.
fn terminal_path(tty: &str) -> String {
    if tty != KERNEL_CONSOLE {
        return format!("/dev/{tty}");
    }
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    match active.split_ascii_whitespace().next_back() {
        // tty0 stands for whichever virtual terminal is in front and cannot be a session's own.
        Some("tty0") => "/dev/tty1".to_owned(),
        Some(name) => format!("/dev/{name}"),
        None => "/dev/ttyS0".to_owned(),
    }
}

/// Opens a file that a missing `/dev/null` must not keep init from: standard streams that lead nowhere.
pub(crate) fn dev_null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}
