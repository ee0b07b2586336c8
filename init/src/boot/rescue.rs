//! The rescue prompt: a few commands on every console when the system cannot be brought up, or when asked for.
//!
//! It needs nothing but the kernel: no root, no service, no file of the image. Nobody at the console must not mean
//! a dead machine: after a failure it restarts the machine by itself unless somebody types, which also lets the
//! boot loader turn to the other slot when this one was on trial.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::unistd::{read, write};

use crate::boot::state;
use crate::clock;
use crate::ctrl_alt_del::Asked;
use crate::host::Host;
use crate::ring::Splitter;
use crate::shutdown::End;

/// Without a word from anybody, a failed boot is tried again after this, unless `evenkeel.rescue_timeout=` says
/// otherwise.
pub(crate) const UNATTENDED_DEFAULT_S: u32 = 300;
/// Bounds of `evenkeel.rescue_timeout=`: time to find the console, and a machine that comes back within a day.
pub(crate) const UNATTENDED_RANGE_S: RangeInclusive<u32> = 10..=86_400;
/// What a console may take to show one answer; 9600 baud make 900 characters a second.
const SHOW_LIMIT: Duration = Duration::from_secs(10);
/// Log lines that `log` shows.
const LOG_LINES: usize = 40;
/// Consoles served.
const CONSOLES_MAX: usize = 4;

const HELP: &str = "\
commands:
  log           what init did so far
  mounts        mounted file systems
  disks         named partitions of all disks
  format-state  make STATE empty (asks first)
  retry         try again (or go on booting)
  reboot        restart the machine
  power-off     switch the machine off
";

/// What has to be typed before STATE is formatted.
const FORMAT_WORD: &str = "destroy";
const FORMAT_WARNING: &str = "\
STATE is made empty. Lost are: the node's identity and key, its cluster file, its
records and logs. The node has to get its personality anew. This cannot be undone.
Type \"destroy\" to do it, anything else to leave it: ";

/// Why the prompt is there.
pub(crate) enum Reason<'a> {
    /// The command line asks for it.
    Asked,
    /// `step` failed.
    Failed { step: &'a str, error: &'a str },
}

/// How it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Go on where the prompt came in.
    Retry,
    End(End),
}

struct Console {
    name: String,
    fd: OwnedFd,
    line: Splitter,
    /// The next line answers [`FORMAT_WARNING`].
    asked_to_format: bool,
}

/// Talks on every console until somebody decides, or the time, when nobody types within `unattended`.
pub(crate) fn prompt(host: &mut Host, reason: &Reason<'_>, unattended: Duration) -> Leave {
    let began = clock::now();
    let mut consoles = open_consoles();
    let greeting = match reason {
        Reason::Asked => {
            "\nEvenkeel rescue, asked for on the kernel command line (evenkeel.rescue)\n".to_owned()
        }
        Reason::Failed { step, error } => {
            host.log.error(format_args!("{step} failed: {error}"));
            format!(
                "\nEvenkeel cannot start: {step} failed\n  {error}\n\
                 The machine restarts in {} s unless you type a command.\n",
                unattended.as_secs()
            )
        }
    };
    show_all(&mut consoles, &format!("{greeting}{HELP}rescue> "));
    let mut unattended = matches!(reason, Reason::Failed { .. }).then_some(began + unattended);
    loop {
        let signals = [host.signals.clone(), host.ctrl_alt_del.clone()];
        let mut fds: Vec<BorrowedFd<'_>> = consoles.iter().map(|c| c.fd.as_fd()).collect();
        fds.extend(signals.iter().flatten().map(|fd| fd.as_fd()));
        let ready = host.wait(&fds, unattended);
        match host.take_asked() {
            Asked::Nothing => {}
            Asked::InOrder => return Leave::End(End::Reboot),
            Asked::AtOnce => return Leave::End(End::ForcedReboot),
        }
        while let Some(signal) = host.take_signal() {
            match signal {
                Signal::SIGTERM | Signal::SIGPWR => return Leave::End(End::PowerOff),
                _ => {}
            }
        }
        if unattended.is_some_and(|t| clock::now() >= t) {
            show_all(&mut consoles, "\nnobody here: restarting\n");
            return Leave::End(End::Reboot);
        }
        let mut gone = Vec::new();
        for (console, _) in consoles.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            let mut typed = [0; 256];
            let mut lines = Vec::new();
            match read(console.fd.as_fd(), &mut typed) {
                Ok(n) if n > 0 => {
                    console.line.feed(typed.get(..n).unwrap_or_default(), |l| lines.push(l.to_owned()));
                    unattended = None;
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                _ => gone.push(console.name.clone()),
            }
            for line in lines {
                if std::mem::take(&mut console.asked_to_format) {
                    let answer = if line.trim() != FORMAT_WORD {
                        "left as it is\n".to_owned()
                    } else {
                        match state::format_on_request(host) {
                            Ok(device) => {
                                format!("{device} has an empty file system now; \"retry\" uses it\n")
                            }
                            Err(error) => format!("{error}\n"),
                        }
                    };
                    show(console, &format!("{answer}rescue> "));
                    continue;
                }
                let answer = match command(line.trim()) {
                    Command::FormatState => {
                        console.asked_to_format = true;
                        show(console, FORMAT_WARNING);
                        continue;
                    }
                    Command::Leave(leave) => return leave,
                    Command::Nothing => String::new(),
                    Command::Help => HELP.to_owned(),
                    Command::Log => {
                        let lines = host.log.ring.last(LOG_LINES);
                        lines.iter().map(|l| format!("{:>8} ms  {}\n", l.at_ms, l.text)).collect()
                    }
                    Command::Mounts => fs::read_to_string("/proc/mounts").unwrap_or_default(),
                    Command::Disks => disks(),
                    Command::Unknown => format!("no command {:?}; try \"help\"\n", line.trim()),
                };
                show(console, &format!("{answer}rescue> "));
            }
        }
        // A console that hangs up would keep the loop spinning.
        consoles.retain(|c| !gone.contains(&c.name));
    }
}

enum Command {
    Help,
    Log,
    Mounts,
    Disks,
    FormatState,
    Leave(Leave),
    Nothing,
    Unknown,
}

fn command(line: &str) -> Command {
    match line {
        "" => Command::Nothing,
        "help" | "?" => Command::Help,
        "log" => Command::Log,
        "mounts" => Command::Mounts,
        "disks" => Command::Disks,
        "format-state" => Command::FormatState,
        "retry" => Command::Leave(Leave::Retry),
        "reboot" => Command::Leave(Leave::End(End::Reboot)),
        "power-off" | "poweroff" => Command::Leave(Leave::End(End::PowerOff)),
        _ => Command::Unknown,
    }
}

fn disks() -> String {
    let partitions = state::partitions();
    if partitions.is_empty() {
        return "no disk with named partitions\n".to_owned();
    }
    partitions.iter().map(|p| format!("/dev/{:<12} {}\n", p.device, p.name)).collect()
}

fn open_consoles() -> Vec<Console> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    active
        .split_ascii_whitespace()
        .take(CONSOLES_MAX)
        .filter_map(|name| {
            let open = || -> io::Result<OwnedFd> {
                let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
                let path = format!("/dev/{name}");
                Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?.into())
            };
            Some(Console {
                name: name.to_owned(),
                fd: open().ok()?,
                line: Splitter::default(),
                asked_to_format: false,
            })
        })
        .collect()
}

fn show_all(consoles: &mut [Console], text: &str) {
    for console in consoles {
        show(console, text);
    }
}

/// Writes what the console takes within [`SHOW_LIMIT`]; the rest is dropped.
fn show(console: &mut Console, text: &str) {
    let until = clock::now() + SHOW_LIMIT;
    let text = text.replace('\n', "\r\n");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match write(&console.fd, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(nix::errno::Errno::EAGAIN) => {
                let left = until.since(clock::now()).as_millis();
                let mut fds = [PollFd::new(console.fd.as_fd(), PollFlags::POLLOUT)];
                let timeout = u16::try_from(left).unwrap_or(0);
                if left == 0 || poll(&mut fds, timeout).unwrap_or(0) == 0 {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
