//! From a unit to a process.
//!
//! What can be made ahead is made once, when services are loaded ([`Launch`]); a start is two pipes at most and one
//! clone. A process is known by its pidfd: signals reach it and nobody who got its number later.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::cgroup::{Cgroups, Group};
use super::output::Capture;
use super::unit::{Readiness, Unit};
use super::{confine, listen};
use crate::sys;
use crate::sys::child::{self, Descriptors, ExecStep, PASSED_FD, PASSED_MAX, Program};

/// What stands in a unit's `tty` for whatever terminal the kernel's own messages go to.
const KERNEL_CONSOLE: &str = "console";

/// All that a service's starts have in common.
pub(crate) struct Launch {
    program: Program,
    group: Option<Group>,
    readiness: Readiness,
    keeps_memory: bool,
    /// What it writes; `None` with a terminal of its own.
    pub(crate) capture: Option<Capture>,
    /// Its listening sockets, for all its lives.
    pub(crate) sockets: Vec<OwnedFd>,
}

/// What a service keeps when another program takes over.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) capture: Option<Capture>,
    pub(crate) sockets: Vec<OwnedFd>,
}

/// A started service's process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Readable when it has ended.
    pub(crate) pidfd: OwnedFd,
    /// Hangs up when the program runs; gives a step and an errno when it cannot.
    pub(crate) report: Option<OwnedFd>,
    /// Readable when the service tells readiness.
    pub(crate) notify: Option<OwnedFd>,
}

impl Launch {
    /// Makes ready what every start of `unit` needs. `kept` is what it has when it has been started before.
    ///
    /// # Errors
    /// Why it cannot be started; nothing is left behind.
    pub(crate) fn prepare(unit: &Unit, cgroups: &Cgroups, kept: Kept) -> Result<Launch, String> {
        let c_string = |s: &str| CString::new(s).map_err(|_| format!("{s:?} contains a NUL byte"));
        let path = c_string(unit.command.first().map_or("", String::as_str))?;
        let arguments = unit.command.iter().map(|a| c_string(a)).collect::<Result<Vec<_>, _>>()?;
        let (terminal, capture) = match &unit.tty {
            Some(tty) => (Some(c_string(&terminal_path(tty))?), None),
            None => {
                let capture = kept.capture.map_or_else(Capture::new, Ok);
                (None, Some(capture.map_err(fail("cannot make its output pipe"))?))
            }
        };
        let notify_number = PASSED_FD.to_string();
        let mut variables = BTreeMap::from([("PATH", "/bin"), ("TERM", "dumb")]);
        variables.extend(unit.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        if unit.ready == Readiness::Notify {
            variables.insert("NOTIFY_FD", &notify_number);
        }
        let socket_count = unit.sockets.len().to_string();
        let socket_names = unit.sockets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(":");
        if !unit.sockets.is_empty() {
            variables.extend([("LISTEN_FDS", socket_count.as_str()), ("LISTEN_FDNAMES", &socket_names)]);
        }
        let memory_number =
            (PASSED_FD as usize + usize::from(unit.ready == Readiness::Notify) + unit.sockets.len())
                .to_string();
        if unit.keeps_memory {
            // In every life: as long as nothing is kept, /dev/null is behind it.
            variables.insert("STORE_FD", &memory_number);
        }
        let environment =
            variables.iter().map(|(k, v)| c_string(&format!("{k}={v}"))).collect::<Result<Vec<_>, _>>()?;
        let group = cgroups.group(unit)?;
        let program = Program::new(path, arguments, environment, terminal).confined(confine::prepare(unit)?);
        let sockets = listen::open(unit, kept.sockets)?;
        Ok(Launch {
            program,
            group,
            readiness: unit.ready,
            keeps_memory: unit.keeps_memory,
            capture,
            sockets,
        })
    }

    /// Starts the program. `null` is `/dev/null`, open for reading; `memory` is what is kept for a service that asks
    /// for it.
    ///
    /// # Errors
    /// Why there is no process. Nothing is left behind.
    pub(crate) fn start(
        &self,
        null: BorrowedFd<'_>,
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<Process, String> {
        let pipe = |what| -> Result<(OwnedFd, OwnedFd), String> {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("{what}: {}", e.desc()))?;
            nonblocking(&reader).map_err(fail(what))?;
            Ok((reader, writer))
        };
        let output = match &self.capture {
            // Not used: the terminal takes its place.
            None => null,
            Some(capture) => {
                // A service that made its end of the pipe non-blocking has done so for its successors too.
                let flags = fcntl(capture.writer(), FcntlArg::F_SETFL(OFlag::empty()));
                flags.map_err(|e| format!("cannot prepare its output: {}", e.desc()))?;
                capture.writer()
            }
        };
        let (report, report_writer) = pipe("cannot make its report pipe")?;
        let (notify, notify_writer) = match self.readiness {
            Readiness::Notify => {
                let (reader, writer) = pipe("cannot make its readiness pipe")?;
                (Some(reader), Some(writer))
            }
            Readiness::Exec => (None, None),
        };
        listen::reset(&self.sockets).map_err(|e| format!("cannot prepare its sockets: {}", e.desc()))?;
        let notify_end = notify_writer.as_ref().map(OwnedFd::as_fd);
        let memory = self.keeps_memory.then(|| memory.unwrap_or(null));
        let sockets = self.sockets.iter().map(OwnedFd::as_fd);
        let mut passed = [report_writer.as_fd(); PASSED_MAX];
        let mut count = 0;
        for (to, from) in passed.iter_mut().zip(notify_end.into_iter().chain(sockets).chain(memory)) {
            *to = from;
            count += 1;
        }
        let descriptors = Descriptors {
            input: null,
            output,
            passed: passed.get(..count).unwrap_or_default(),
            report: report_writer.as_fd(),
            group: self.group.as_ref().map(Group::directory),
        };
        let (pid, pidfd) = child::start(&self.program, &descriptors).map_err(fail("cannot clone"))?;
        Ok(Process { pid, pidfd, report: Some(report), notify })
    }

    /// Kills everything in the service's control group. True when there is one and the kernel took the order.
    pub(crate) fn kill_group(&self) -> bool {
        self.group.as_ref().is_some_and(Group::kill)
    }
}

fn fail(what: &'static str) -> impl Fn(io::Error) -> String {
    move |e| format!("{what}: {}", sys::errno_text(&e))
}

/// Words for a report of the child.
pub(crate) fn failed_step(unit: &Unit, step: ExecStep, errno: i32) -> String {
    let program = unit.command.first().map_or("", String::as_str);
    let what = match step {
        ExecStep::Session => "cannot make its session".to_owned(),
        ExecStep::Terminal => format!("cannot use terminal {}", unit.tty.as_deref().unwrap_or_default()),
        ExecStep::Descriptors => "cannot prepare its descriptors".to_owned(),
        ExecStep::Program => format!("cannot run {program}"),
        ExecStep::Confine(step) => confine::failed_step(unit, step),
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
pub(crate) fn terminal_path(tty: &str) -> String {
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
