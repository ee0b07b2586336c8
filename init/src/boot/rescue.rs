//! The rescue prompt: a few commands on every console when the system cannot be brought up, or when asked for.
//!
//! It needs nothing but the kernel: no root, no service, no file of the image. Nobody at the console must not mean
//! a dead machine: after a failure it restarts the machine by itself unless somebody types, which also lets the
//! boot loader turn to the other slot when this one was on trial.

use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::boot::consoles::{self, Console, Reading};
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
/// Between two looks at the watchdog meanwhile: the shortest one wants to be fed each second.
const SHOW_STEP: Duration = Duration::from_millis(500);
/// What a console may take to send what it was left with, and how often it is looked at.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
const SETTLE_EVERY: Duration = Duration::from_millis(20);
/// Log lines that `log` shows.
const LOG_LINES: usize = 40;

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
    /// Somebody has pressed r on the console `name`.
    Recovery { name: &'a str },
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

/// The prompt on one console.
struct Talk {
    console: Console,
    line: Splitter,
    /// The next line answers [`FORMAT_WARNING`].
    asked_to_format: bool,
    /// Nobody will ever type there again.
    gone: bool,
}

impl Talk {
    fn new(console: Console) -> Talk {
        Talk { console, line: Splitter::default(), asked_to_format: false, gone: false }
    }

    fn show(&self, host: &mut Host, text: &str) {
        self.show_within(host, text, SHOW_LIMIT);
    }

    /// Feeds the watchdog meanwhile: four consoles that nobody reads would outlast it.
    fn show_within(&self, host: &mut Host, text: &str, limit: Duration) {
        let until = clock::now() + limit;
        let mut rest = text.as_bytes();
        while !rest.is_empty() && clock::now() < until {
            host.feed();
            rest = self.console.offer(rest, SHOW_STEP);
        }
    }
}

/// Talks on every console until somebody decides, or the time, when nobody types within `unattended`.
pub(crate) fn prompt(host: &mut Host, reason: &Reason<'_>, unattended: Duration) -> Leave {
    talk(host, consoles::all(Reading::Lines), reason, unattended)
}

fn talk(host: &mut Host, consoles: Vec<Console>, reason: &Reason<'_>, unattended: Duration) -> Leave {
    let mut talks: Vec<_> = consoles.into_iter().map(Talk::new).collect();
    let leave = until_left(host, &mut talks, reason, unattended);
    // What was said last is dropped with a console that still has it.
    let until = clock::now() + SETTLE_LIMIT;
    while clock::now() < until && talks.iter().any(|t| t.console.is_busy()) {
        host.pause(SETTLE_EVERY);
    }
    leave
}

fn until_left(host: &mut Host, talks: &mut Vec<Talk>, reason: &Reason<'_>, unattended: Duration) -> Leave {
    let began = clock::now();
    let seconds = unattended.as_secs();
    let greeting = match reason {
        Reason::Asked => {
            "\nEvenkeel rescue, asked for on the kernel command line (evenkeel.rescue)\n".to_owned()
        }
        Reason::Recovery { name } => format!(
            "\nEvenkeel rescue, asked for on {name}\n\
             The machine restarts in {seconds} s unless you type a command.\n"
        ),
        Reason::Failed { step, error } => {
            host.log.error(format_args!("{step} failed: {error}"));
            format!(
                "\nEvenkeel cannot start: {step} failed\n  {error}\n\
                 The machine restarts in {seconds} s unless you type a command.\n"
            )
        }
    };
    show_all(host, talks, &format!("{greeting}{HELP}rescue> "));
    // Who asked on the command line has asked for exactly this machine to stay here.
    let mut unattended = (!matches!(reason, Reason::Asked)).then_some(began + unattended);
    loop {
        let signals = [host.signals.clone(), host.ctrl_alt_del.clone()];
        let mut fds: Vec<BorrowedFd<'_>> = talks.iter().map(|t| t.console.fd()).collect();
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
            show_all(host, talks, "\nnobody here: restarting\n");
            return Leave::End(End::Reboot);
        }
        for (talk, _) in talks.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            let mut typed = [0; 256];
            let mut lines = Vec::new();
            match talk.console.read(&mut typed) {
                Ok([]) => {}
                Ok(typed) => {
                    talk.line.feed(typed, |l| lines.push(l.to_owned()));
                    unattended = None;
                }
                Err(_) => talk.gone = true,
            }
            for line in lines {
                if std::mem::take(&mut talk.asked_to_format) {
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
                    talk.show(host, &format!("{answer}rescue> "));
                    continue;
                }
                let answer = match command(line.trim()) {
                    Command::FormatState => {
                        talk.asked_to_format = true;
                        talk.show(host, FORMAT_WARNING);
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
                talk.show(host, &format!("{answer}rescue> "));
            }
        }
        // A console that hangs up would keep the loop spinning.
        talks.retain(|t| !t.gone);
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

fn show_all(host: &mut Host, talks: &[Talk], text: &str) {
    talks.iter().for_each(|talk| talk.show(host, text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::consoles::testing::Line;
    use crate::watchdog::Watchdog;

    const LONG: Duration = Duration::from_secs(60);
    const FAILED: Reason<'_> = Reason::Failed { step: "mounting STATE", error: "no disk" };

    fn console(line: &Line) -> Vec<Console> {
        vec![line.open("ttyT0", Reading::Lines)]
    }

    /// What the prompt for `reason` shows, until `last` is in it, and how it is left when `keys` are typed.
    fn typed(reason: &Reason<'_>, keys: &str, last: &str) -> (String, Leave) {
        let line = Line::new();
        let consoles = console(&line);
        line.type_keys(keys);
        let leave = talk(&mut Host::new(), consoles, reason, LONG);
        (line.shown_until(last), leave)
    }

    #[test]
    fn commands_are_answered_and_lead_out() {
        let (shown, leave) = typed(&FAILED, "bogus\rlog\rretry\r", "ms  mounting STATE failed: no disk");
        assert_eq!(leave, Leave::Retry);
        for text in [
            "Evenkeel cannot start: mounting STATE failed\r\n  no disk\r\n",
            "The machine restarts in 60 s unless you type a command.\r\n",
            // What is typed is shown whenever the line gets to it, before the prompt or behind it.
            "no command \"bogus\"; try \"help\"\r\nrescue> ",
        ] {
            assert!(shown.contains(text), "{shown}");
        }
        let asked = Reason::Recovery { name: "ttyT0" };
        let (shown, leave) = typed(&asked, "power-off\r", "rescue> ");
        assert_eq!(leave, Leave::End(End::PowerOff));
        assert!(
            shown.contains("Evenkeel rescue, asked for on ttyT0\r\nThe machine restarts in 60 s"),
            "{shown}"
        );
    }

    #[test]
    fn the_watchdog_is_fed_while_a_console_takes_nothing() {
        let line = Line::new();
        let talk = Talk::new(console(&line).remove(0));
        let mut host = Host::new();
        host.watchdog = Some(Watchdog::of_null(1));
        let began = clock::now();
        talk.show_within(&mut host, &"x".repeat(1 << 20), SHOW_STEP * 2);
        let due = host.watchdog.as_ref().unwrap().due();
        // A quarter of its second after the last feed, which was in the second step.
        assert!(due.since(began) > SHOW_STEP, "{:?}", due.since(began));
        assert!(clock::now().since(began) >= SHOW_STEP * 2);
    }

    #[test]
    fn an_unattended_prompt_restarts_the_machine_unless_it_was_asked_for_on_the_command_line() {
        let short = Duration::from_millis(50);
        for reason in [FAILED, Reason::Recovery { name: "ttyT0" }] {
            let line = Line::new();
            assert_eq!(talk(&mut Host::new(), console(&line), &reason, short), Leave::End(End::Reboot));
            line.shown_until("nobody here: restarting");
            // Without a console as well.
            assert_eq!(talk(&mut Host::new(), Vec::new(), &reason, short), Leave::End(End::Reboot));
        }
        // One line, whatever it says, is somebody: only then does the second one count.
        let line = Line::new();
        let consoles = console(&line);
        let late = std::thread::spawn(move || {
            line.shown_until("rescue> ");
            line.type_keys("\r");
            line.shown_until("rescue> ");
            line.type_keys("reboot\r");
            line
        });
        assert_eq!(talk(&mut Host::new(), consoles, &Reason::Asked, short), Leave::End(End::Reboot));
        let _line = late.join().unwrap();
    }
}
