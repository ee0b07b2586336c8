//! PID 1 of Evenkeel: boot, services, watchdog, shutdown. One thread, one poll loop.
//!
//! | folder | subject |
//! |---|---|
//! | [`boot`] | from the kernel's first call to running services |
//! | [`service`] | service files, the life of a service, its process |
//! | [`control`] | what others may ask of init |
//! | [`devices`] | drivers for the devices that a machine has |
//! | [`reexec`] | another program takes over while services run |
//! | [`fence`] | addresses that must not outlive the service that answers for them |
//! | [`watch`] | who must make progress, and what happens to the machine when nobody does |
//! | [`sys`] | the kernel interfaces without a safe wrapper; the only unsafe code |
//!
//! Pure, driven by arguments: `boot::{cmdline, disk}`, [`ctrl_alt_del`], `devices::{queue, work}`, `fence::state`,
//! `service::{supervisor, unit}`, [`ring`], [`shutdown`], `watch::rules`. The rest touches the kernel and decides
//! nothing that could be decided there.
//!
//! It owns the processes, the watchdog and `reboot(2)`; it adds no address and knows no configuration of the
//! cluster. `init --container --services DIR --run DIR [--logs DIR]` runs services only, for tests, until its
//! standard input ends; `--boot trial` and `--boot degraded` put it into the state that a machine boots into.

mod boot;
mod clock;
mod control;
mod ctrl_alt_del;
mod devices;
mod events;
mod fence;
mod host;
mod klog;
mod machine;
mod manager;
mod power_button;
mod reexec;
mod ring;
mod service;
mod shutdown;
mod sys;
mod watch;
mod watchdog;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shutdown::End;
use watch::rules::{Boot, RESETS_MAX};

/// Exit code of the container mode when a reboot was asked for.
const EXIT_REBOOT: u8 = 10;
/// Exit code for arguments that are none.
const EXIT_USAGE: u8 = 2;
const USAGE: &str = "\
init is started by the kernel as process 1; for tests:
  init --container --services DIR --run DIR [--logs DIR] [--cgroup DIR] [--boot trial|degraded]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_pid_1 = std::process::id() == 1;
    if is_pid_1 {
        std::panic::set_hook(Box::new(|info| {
            sys::crash::panicked(info);
            // Too early for that, or a child: standard error leads nowhere.
            let _ = std::fs::write("/dev/kmsg", format!("<2>init: internal error: {info}\n"));
        }));
    }
    match *words.as_slice() {
        [reexec::CHECK_ARGUMENT, state] => {
            let result = reexec::check(state);
            let said = result.as_ref().map_or_else(String::clone, |()| reexec::CHECK_PASSED.to_owned());
            // Whoever does not hear it does not hand over.
            let _ = std::io::stdout().write_all(said.as_bytes());
            if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        [reexec::RESUME_ARGUMENT, state] => match boot::resume(state) {
            Ok(end) => exit_code(end),
            // Nothing was taken over: these are words of the kernel's command line.
            Err(_) if is_pid_1 => boot::run(),
            Err(why) => {
                eprintln!("init: cannot take over: {why}");
                ExitCode::FAILURE
            }
        },
        ["--container", ref rest @ ..] => container(rest),
        // The kernel passes words of its command line that it does not know as arguments: they are not looked at.
        _ if is_pid_1 => boot::run(),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn container(rest: &[&str]) -> ExitCode {
    let value =
        |key: &str| rest.chunks_exact(2).find(|pair| pair.first() == Some(&key))?.last().map(PathBuf::from);
    let boot = match value("--boot").as_deref().map(Path::to_str) {
        None => Some(Boot::default()),
        Some(Some("trial")) => Some(Boot { trial: true, resets: 0 }),
        Some(Some("degraded")) => Some(Boot { trial: false, resets: RESETS_MAX }),
        Some(_) => None,
    };
    match (value("--services"), value("--run"), value("--logs"), boot) {
        (Some(services), Some(run), logs, Some(boot)) => {
            let (cgroup, crashes) = (value("--cgroup"), value("--crash-record"));
            let (logs, cgroup, crashes) = (logs.as_deref(), cgroup.as_deref(), crashes.as_deref());
            exit_code(boot::run_container(&services, &run, logs, cgroup, crashes, boot))
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn exit_code(end: End) -> ExitCode {
    match end {
        End::PowerOff | End::Rescue => ExitCode::SUCCESS,
        End::Reboot | End::ForcedReboot => ExitCode::from(EXIT_REBOOT),
    }
}
