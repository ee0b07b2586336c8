//! PID 1 of Evenkeel: boot, services, watchdog, shutdown. One thread, one poll loop.
//!
//! | folder | subject |
//! |---|---|
//! | [`boot`] | from the kernel's first call to running services |
//! | [`service`] | service files, the life of a service, its process |
//! | [`control`] | what others may ask of init |
//! | [`sys`] | the kernel interfaces without a safe wrapper; the only unsafe code |
//!
//! Pure, driven by arguments: `boot::{cmdline, disk}`, `service::{supervisor, unit}`, [`ring`], [`shutdown`]. The
//! rest touches the kernel and decides nothing that could be decided there.
//!
//! It owns the processes, the watchdog and `reboot(2)`; it owns no address and knows no configuration of the
//! cluster. `init --container --services DIR --run DIR [--logs DIR]` runs services only, for tests, until its
//! standard input ends.

mod boot;
mod clock;
mod control;
mod events;
mod host;
mod klog;
mod machine;
mod manager;
mod power_button;
mod ring;
mod service;
mod shutdown;
mod sys;
mod watchdog;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use shutdown::End;

/// Exit code of the container mode when a reboot was asked for.
const EXIT_REBOOT: u8 = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_none_or(|a| a != "--container") {
        // The kernel passes words of its command line that it does not know as arguments: they are not looked at.
        if std::process::id() == 1 {
            // The kernel's log survives in pstore; standard error leads nowhere.
            std::panic::set_hook(Box::new(|info| {
                let _ = std::fs::write("/dev/kmsg", format!("<2>init: internal error: {info}\n"));
            }));
            boot::run();
        }
        eprintln!(
            "init is started by the kernel as process 1; for tests: init --container --services DIR --run DIR"
        );
        return ExitCode::from(2);
    }
    let options: BTreeMap<&str, PathBuf> = arguments
        .get(1..)
        .unwrap_or_default()
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()?.as_str(), PathBuf::from(pair.last()?))))
        .collect();
    let (Some(services), Some(run)) = (options.get("--services"), options.get("--run")) else {
        eprintln!("usage: init --container --services DIR --run DIR [--logs DIR]");
        return ExitCode::from(2);
    };
    match boot::run_container(services, run, options.get("--logs").map(PathBuf::as_path)) {
        End::PowerOff => ExitCode::SUCCESS,
        End::Reboot => ExitCode::from(EXIT_REBOOT),
    }
}
