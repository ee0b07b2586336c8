//! From the initramfs to running services.
//!
//! ```text
//! kernel file systems -> own files verified -> early modules -> watchdog -> [rescue asked for?] -> root -> other
//! modules -> drivers for devices (in a child, beside what follows) -> /run, /tmp, cgroup2 -> loopback
//! -> STATE -> memory of the boots -> services
//!      ^                                  |
//!      '--retry-- rescue prompt <-- r ----'
//! ```
//! The recovery prompt is shown beside the steps and is not waited for (see [`recovery`]).
//!
//! Three steps are essential, undamaged files, the root and STATE: when one fails the rescue prompt offers to try it
//! again. All others
//! say what failed and the boot goes on, because a machine that is half up can be looked at.

pub(crate) mod attempt;
pub(crate) mod block_file;
mod clock_floor;
mod cmdline;
pub(crate) mod consoles;
pub(crate) mod crash_record;
pub(crate) mod disk;
mod format;
mod machine_id;
pub(crate) mod memory;
mod modules;
pub(crate) mod mounts;
mod own_files;
mod pstore;
pub(crate) mod recovery;
mod rescue;
mod root;
mod seed;
mod settings;
mod slot;
pub(crate) mod state;
#[cfg(test)]
pub(crate) mod testdir;

use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use crate::devices::Devices;
use crate::host::Host;
use crate::manager::{Manager, Setup, Tools};
use crate::reexec::{self, state::State};
use crate::ring::Ring;
use crate::service::cgroup::Cgroups;
use crate::service::spawn;
use crate::shutdown::End;
use crate::watch::rules::Boot;
use crate::watchdog::{Search, TIMEOUT_DEFAULT_S, TIMEOUT_RANGE_S, Watchdog};
use crate::{clock, machine, sys};
use cmdline::Cmdline;
use own_files::Damage;
use recovery::Recovery;
use rescue::{Leave, Reason};

/// Runtime directory of the product.
const RUN: &str = "/run/evenkeel";
/// Service files.
const SERVICES: &str = "/etc/evenkeel/services";
/// Boots the machine and runs it until it ends.
pub(crate) fn run() -> ! {
    let mut host = Host::new();
    host.at_force = Some(machine::force);
    mounts::early(&mut host);
    host.log.open_kmsg();
    quiet_stdio(&mut host);
    catch_crashes(&mut host);
    let cmdline = Cmdline::parse(&fs::read("/proc/cmdline").unwrap_or_default());
    let damage = own_files::verify(&mut host);
    modules::load(&mut host, Path::new("/boot/modules.list"), Path::new("/boot/modules"), &damage);
    let watchdog_s = number(&mut host, &cmdline, "evenkeel.watchdog", &TIMEOUT_RANGE_S, TIMEOUT_DEFAULT_S);
    take_watchdog(&mut host, watchdog_s);
    settings::apply(&mut host);
    let rescue_s = number(
        &mut host,
        &cmdline,
        "evenkeel.rescue_timeout",
        &rescue::UNATTENDED_RANGE_S,
        rescue::UNATTENDED_DEFAULT_S,
    );
    let unattended = Duration::from_secs(rescue_s.into());
    let essential = Essential { unattended };
    let mut recovery = None;
    if cmdline.has("evenkeel.rescue") {
        let leave = rescue::prompt(&mut host, &Reason::Asked, unattended);
        host = unless_ended(host, leave);
    } else {
        let (wanted, said) = cmdline.switch("evenkeel.recovery", true);
        if let Some(said) = said {
            host.log.warn(format_args!("{said}"));
        }
        recovery = wanted.then(|| Recovery::show(clock::now())).flatten();
    }
    let (host, ()) = essential.step(host, "verifying the system's own files", |_| damage.may_boot());
    let (mut host, ()) = essential.step(host, "mounting the root", root::mount_image);
    if let Err(error) = root::switch(&mut host) {
        // Mounts are half moved: only a restart leads out of here.
        let reason = Reason::Failed { step: "switching to the root", error: &error };
        while rescue::prompt(&mut host, &reason, unattended) == Leave::Retry {}
        machine::end(host, End::Reboot);
    }
    modules::load(&mut host, Path::new("/etc/evenkeel/modules.list"), Path::new("/"), &Damage::default());
    host.devices = Devices::open(&mut host.log);
    host.serve_devices();
    if host.watchdog.is_none() {
        take_watchdog(&mut host, watchdog_s);
    }
    mounts::late(&mut host);
    if let Err(error) = sys::net::loopback_up() {
        host.log.error(format_args!("cannot set lo up: {}", sys::errno_text(&error)));
    }
    if let Err(error) = mounts::run_directories(Path::new(RUN)) {
        host.log.error(format_args!("cannot make {RUN}: {}", sys::errno_text(&error)));
    }
    // Before STATE is touched: it may be what the rescue prompt is for.
    if let Some(name) = recovery.as_ref().and_then(Recovery::pressed_anywhere) {
        recovery = None;
        let leave = rescue::prompt(&mut host, &Reason::Recovery { name: &name }, unattended);
        host = unless_ended(host, leave);
    }
    loop {
        let (ended, end) = serve(host, &cmdline, &essential, watchdog_s, recovery.take());
        host = ended;
        if end != End::Rescue {
            machine::end(host, end)
        }
        let name = host.memory.who_asked().to_owned();
        machine::pause(&mut host);
        let leave = rescue::prompt(&mut host, &Reason::Recovery { name: &name }, unattended);
        host = unless_ended(host, leave);
    }
}

/// Brings STATE up and runs the services until the machine is to end, or somebody wants the rescue prompt.
fn serve(
    host: Host,
    cmdline: &Cmdline,
    essential: &Essential,
    watchdog_s: u32,
    recovery: Option<Recovery>,
) -> (Host, End) {
    let state_step = match cmdline.value("evenkeel.state") {
        Some("memory") => state::in_memory,
        _ => state::bring_up,
    };
    let (mut host, state_device) = essential.step(host, "mounting STATE", state_step);
    memory::begin(&mut host, cmdline);
    let (cgroups, made) = Cgroups::new(Path::new("/sys/fs/cgroup"));
    if let Err(error) = made {
        host.log.error(format_args!("services have no control groups: {}", sys::errno_text(&error)));
    }
    let resets = host.memory.info().watchdog_resets;
    let setup = Setup {
        run: RUN.into(),
        services: SERVICES.into(),
        logs: Some(Path::new(state::MOUNT_POINT).join("log")),
        cgroups,
        watchdog_search: Some(Search::new(clock::now(), watchdog_s)),
        boot: Boot { trial: cmdline.has("evenkeel.trial"), resets },
        recovery,
        state_device: Some(state_device),
        machine: true,
    };
    let (host, tools) = essential.step(host, "starting services", |_| Tools::open());
    Manager::new(host, tools, setup).run()
}

/// Runs services only, as a child of somebody else: no mounts, no modules, no watchdog, and the end is an exit.
///
/// With `crash`, a file, a crash of this process is written there: what the machine does, for tests. The restart is
/// that of its pid namespace, so that it must be the first process of one. `cgroup` is a directory of cgroup2 that is
/// init's own, with no process in it; services with limits need it. `boot` is what a machine would find out.
pub(crate) fn run_container(
    services: &Path,
    run: &Path,
    logs: Option<&Path>,
    cgroup: Option<&Path>,
    crash: Option<&Path>,
    boot: Boot,
) -> End {
    let mut host = Host::new();
    host.log.open_stderr();
    if let Some(path) = crash
        && let Err(error) = record_crashes_at(path)
    {
        host.log.error(format_args!("{}: {}", path.display(), sys::errno_text(&error)));
    }
    if let Err(error) = sys::become_subreaper() {
        host.log.warn(format_args!("orphans go elsewhere: {}", sys::errno_text(&error)));
    }
    if let Err(error) = mounts::run_directories(run) {
        host.log.error(format_args!("cannot make {}: {}", run.display(), sys::errno_text(&error)));
    }
    let cgroups = match cgroup.map(Cgroups::new) {
        None => Cgroups::none(),
        Some((cgroups, made)) => {
            if let Err(error) = made {
                host.log.error(format_args!("services have no control groups: {}", sys::errno_text(&error)));
            }
            cgroups
        }
    };
    let setup = Setup {
        run: run.to_owned(),
        services: services.to_owned(),
        logs: logs.map(Path::to_owned),
        cgroups,
        watchdog_search: None,
        boot,
        recovery: None,
        state_device: None,
        machine: false,
    };
    match Tools::open() {
        Ok(tools) => Manager::new(host, tools, setup).run().1,
        Err(why) => {
            host.log.error(format_args!("{why}"));
            End::PowerOff
        }
    }
}

/// Goes on from the state that another init has left in descriptor `number`. Returns how it ended, if it was no
/// machine's.
///
/// # Errors
/// The state cannot be read; nothing was touched.
pub(crate) fn resume(number: &str) -> Result<End, String> {
    let state = State::read(reexec::take(number)?)?;
    let machine = state.machine;
    let mut host = Host::new();
    match machine {
        true => {
            host.at_force = Some(machine::force);
            host.log.open_kmsg();
            catch_crashes(&mut host);
        }
        false => {
            host.log.open_stderr();
            if state.crash_file.is_some()
                && let Err(error) = catch_crashes_in_container()
            {
                host.log.error(format_args!("crashes are not written down: {}", sys::errno_text(&error)));
            }
        }
    }
    host.log.ring = Ring::resume(&state.log);
    if machine {
        // What came while nobody listened is found by its walk.
        host.devices = Devices::open(&mut host.log);
    }
    let resumed = match Tools::open() {
        Ok(tools) => reexec::resume(host, tools, state),
        Err(why) => Err(Box::new((host, why))),
    };
    let (host, end) = match resumed {
        Ok(manager) => manager.run(),
        Err(failed) => {
            // Nobody knows the running services any more: a restart is the way back to a known state.
            let (mut host, why) = *failed;
            host.log.error(format_args!("cannot take over: {why}; restarting the machine"));
            (host, End::Reboot)
        }
    };
    if machine {
        machine::end(host, end)
    }
    Ok(end)
}

/// Steps that a boot cannot do without.
struct Essential {
    /// How long the rescue prompt waits for somebody.
    unattended: Duration,
}

impl Essential {
    /// Does `step` until it succeeds or somebody at the rescue prompt ends the machine.
    fn step<T>(
        &self,
        mut host: Host,
        name: &str,
        step: impl Fn(&mut Host) -> Result<T, String>,
    ) -> (Host, T) {
        loop {
            match step(&mut host) {
                Ok(value) => return (host, value),
                Err(error) => {
                    let reason = Reason::Failed { step: name, error: &error };
                    let leave = rescue::prompt(&mut host, &reason, self.unattended);
                    host = unless_ended(host, leave);
                }
            }
        }
    }
}

fn unless_ended(host: Host, leave: Leave) -> Host {
    match leave {
        Leave::Retry => host,
        Leave::End(end) => machine::end(host, end),
    }
}

/// From here on a crash of PID 1 restarts the machine; it is written down once STATE is up.
fn catch_crashes(host: &mut Host) {
    let log = fs::OpenOptions::new().write(true).open("/dev/kmsg").ok();
    if let Err(error) = sys::crash::install(log, Some(machine::restart_at_once)) {
        host.log.error(format_args!("a crash would be a kernel panic: {}", sys::errno_text(&error)));
    }
}

fn catch_crashes_in_container() -> std::io::Result<()> {
    // Elsewhere reboot(2) would mean the machine of whoever runs the test.
    let first = std::process::id() == 1;
    sys::crash::install(None, first.then_some(machine::restart_at_once as fn()))
}

fn record_crashes_at(path: &Path) -> std::io::Result<()> {
    catch_crashes_in_container()?;
    sys::crash::prepare(&crash_record::prepared(0, env!("CARGO_PKG_VERSION")));
    sys::crash::set_file(block_file::open(path)?);
    Ok(())
}

/// Nothing init or a library prints may block on a console that nobody reads.
fn quiet_stdio(host: &mut Host) {
    let done = spawn::dev_null().and_then(|null| sys::replace_stdio(null.as_fd()));
    if let Err(error) = done {
        host.log.warn(format_args!("standard streams stay on the console: {}", sys::errno_text(&error)));
    }
}

/// A number of the command line. One that cannot be used is said.
fn number(host: &mut Host, cmdline: &Cmdline, name: &str, range: &RangeInclusive<u32>, default: u32) -> u32 {
    let (number, said) = cmdline.number(name, range, default);
    if let Some(said) = said {
        host.log.warn(format_args!("{said}"));
    }
    number
}

/// Opens the watchdog with a timeout of `seconds`, if there is one by now.
fn take_watchdog(host: &mut Host, seconds: u32) {
    match Watchdog::open(clock::now(), seconds) {
        Ok(watchdog) => host.use_watchdog(watchdog),
        Err(error) => host.log.warn(format_args!("no watchdog yet: {}", sys::errno_text(&error))),
    }
}
