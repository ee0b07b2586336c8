//! The poll loop: descriptors to events, events to the supervisor, its orders to processes.
//!
//! Every decision is the supervisor's or the shutdown's; this file carries them out. Nothing here waits except the
//! one epoll, and every handler takes a bounded amount of work before the next one gets its turn. A turn in which a
//! service dies and is started again allocates nothing: tables, buffers and programs are made when services are
//! loaded, and what the log is told comes after the start.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, read};
use proto::control::{DETAIL_MAX, LastExit};
use proto::time::Time;

use crate::boot::attempt::Attempt;
use crate::boot::recovery::Recovery;
use crate::control::socket::Server;
use crate::ctrl_alt_del::Asked;
use crate::devices::Devices;
use crate::events::{Events, Source};
use crate::fence;
use crate::host::Host;
use crate::power_button::PowerButtons;
use crate::reexec::Check;
use crate::service::cgroup::Cgroups;
use crate::service::keeper::Keeper;
use crate::service::spawn::{self, Kept, Launch, Process};
use crate::service::store::Store;
use crate::service::supervisor::{Input, Output, Supervisor};
use crate::service::unit::{Refusal, StopSignal, Unit};
use crate::service::{ServiceId, load};
use crate::shutdown::{End, Shutdown, Step};
use crate::sys::child::{self, ExecStep, Whom};
use crate::sys::netlink::Netlink;
use crate::sys::own_pages;
use crate::watch::rules::{self, Boot, Watch};
use crate::watchdog::Search;
use crate::{clock, ring, sys};

/// Ended processes collected before other events get their turn.
const REAP_MAX: usize = 256;
/// The start is over when no service has been started for so long.
const CALM: Duration = Duration::from_secs(1);

/// What differs between the machine and the container mode.
pub(crate) struct Setup {
    /// Directory of the control socket.
    pub(crate) run: PathBuf,
    /// Directory of the service files.
    pub(crate) services: PathBuf,
    /// Directory of the services' log files.
    pub(crate) logs: Option<PathBuf>,
    pub(crate) cgroups: Cgroups,
    /// Looks for a watchdog that comes late; `None` where init feeds none.
    pub(crate) watchdog_search: Option<Search>,
    /// What is known of this boot.
    pub(crate) boot: Boot,
    /// The recovery prompt, while it is shown.
    pub(crate) recovery: Option<Recovery>,
    /// STATE's device, for `System`.
    pub(crate) state_device: Option<String>,
    /// Whether this is the machine's PID 1, which may kill everything. Otherwise the end of standard input ends it.
    pub(crate) machine: bool,
}

/// What the program before this one left; nothing at a boot.
#[derive(Default)]
pub(crate) struct Inherited {
    pub(crate) control: Option<Server>,
    pub(crate) keeper: Option<Keeper>,
    /// The fence's way to the kernel.
    pub(crate) netlink: Option<Netlink>,
    /// By service name.
    pub(crate) kept: BTreeMap<String, Kept>,
}

/// What the loop cannot do without.
pub(crate) struct Tools {
    events: Events,
    null: File,
}

impl Tools {
    /// Opens them.
    ///
    /// # Errors
    /// Which one cannot be had, and the kernel's reason.
    pub(crate) fn open() -> Result<Tools, String> {
        let events = Events::new().map_err(|e| format!("cannot make an epoll set: {}", e.desc()))?;
        let null = File::open("/dev/null").map_err(|e| format!("/dev/null: {}", sys::errno_text(&e)))?;
        Ok(Tools { events, null })
    }
}

/// What the loop works with.
pub(crate) struct Manager {
    pub(crate) host: Host,
    pub(crate) setup: Setup,
    pub(crate) supervisor: Supervisor,
    /// Service files that were refused.
    pub(crate) refused: Vec<Refusal>,
    pub(crate) control: Option<Server>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) shutdown: Option<Shutdown>,
    /// A program that may take over.
    pub(crate) check: Option<Check>,
    pub(crate) events: Events,
    pub(crate) fence: fence::Shell,
    pub(crate) store: Store,
    pub(crate) watch: Watch,
    /// Records why a trial has failed.
    pub(crate) recording: Option<Attempt>,
    pub(crate) watchdog_search: Option<Search>,
    /// `/dev/null`, the services' standard input.
    pub(crate) null: File,
    /// By service number: what its starts need, or why it cannot be started.
    pub(crate) launches: Vec<Result<Launch, String>>,
    /// By service number: its process while there is one.
    pub(crate) processes: Vec<Option<Process>>,
    /// Orders being carried out. Empty between turns; its memory is kept.
    pub(crate) orders: Vec<Output>,
    pub(crate) recovery: Option<Recovery>,
    /// When the start is over; `None` from then on.
    calm_at: Option<Time>,
    buttons: PowerButtons,
}

impl Manager {
    /// Reads the services and opens what serves them. What cannot be had is said and done without.
    pub(crate) fn new(mut host: Host, tools: Tools, setup: Setup) -> Manager {
        let path = setup.run.join("init.sock");
        let control = match Server::listen(&path) {
            Ok(server) => Some(server),
            Err(error) => {
                let path = path.display();
                host.log.error(format_args!("no control socket: {path}: {}", sys::errno_text(&error)));
                None
            }
        };
        let keeper = setup.logs.as_deref().map(Keeper::start);
        Manager::with(host, tools, setup, Inherited { control, keeper, ..Inherited::default() })
    }

    /// The same with what another program opened.
    pub(crate) fn with(mut host: Host, tools: Tools, mut setup: Setup, inherited: Inherited) -> Manager {
        let (mut units, mut refused) = load::load(&setup.services);
        if setup.boot.is_degraded() {
            let why = rules::degraded_reason(setup.boot);
            host.log.error(format_args!("degraded: {why}"));
            units = load::leave_out(units, &mut refused, &rules::NEEDED, &why);
        }
        host.log.info(format_args!("{} services, {} refused", units.len(), refused.len()));
        for refusal in &refused {
            host.log.error(format_args!("service refused: {refusal}"));
        }
        setup.cgroups.enable_for(&units);
        let watched = (0..).zip(&units).map(|(i, u)| (u.name.as_str(), ServiceId(i), u.watchdog));
        let watch = Watch::new(clock::now(), setup.boot, watched);
        let mut kept = inherited.kept;
        let mut launch =
            |unit: &Unit| Launch::prepare(unit, &setup.cgroups, kept.remove(&unit.name).unwrap_or_default());
        let launches: Vec<_> = units.iter().map(&mut launch).collect();
        let buttons = if setup.machine { PowerButtons::open() } else { PowerButtons::default() };
        let mut manager = Manager {
            host,
            processes: launches.iter().map(|_| None).collect(),
            // The most a turn can order at a time, in practice; more would only allocate.
            orders: Vec::with_capacity(4 * launches.len() + 4),
            launches,
            supervisor: Supervisor::new(clock::now(), units),
            refused,
            control: inherited.control,
            keeper: inherited.keeper,
            shutdown: None,
            check: None,
            events: tools.events,
            fence: fence::Shell::open(inherited.netlink),
            store: Store::default(),
            watch,
            recording: None,
            watchdog_search: setup.watchdog_search.take(),
            null: tools.null,
            recovery: setup.recovery.take(),
            calm_at: Some(clock::now() + CALM),
            buttons,
            setup,
        };
        manager.register();
        manager.hold_terminals();
        manager
    }

    /// Puts everything that is there from the beginning into the epoll set.
    fn register(&mut self) {
        let mut failed: Option<nix::errno::Errno> = None;
        let mut add = |result: nix::Result<()>| failed = result.err().or(failed);
        if let Some(fd) = &self.host.signals {
            add(self.events.add(Rc::as_ref(fd), Source::Signals));
        }
        if let Some(fd) = &self.host.ctrl_alt_del {
            add(self.events.add(Rc::as_ref(fd), Source::CtrlAltDel));
        }
        if let Some(server) = &self.control {
            add(self.events.add(server.listener(), Source::Listener));
            for (number, fd) in server.clients() {
                add(self.events.add(fd, Source::Client(number)));
            }
        }
        for (index, launch) in (0..).zip(&self.launches) {
            if let Some(capture) = launch.as_ref().ok().and_then(|l| l.capture.as_ref()) {
                add(self.events.add(capture.fd(), Source::Output(ServiceId(index))));
            }
        }
        for fd in self.host.devices.iter().flat_map(Devices::fds) {
            add(self.events.add(fd, Source::Devices));
        }
        for (index, fd) in self.recovery.iter().flat_map(Recovery::fds) {
            add(self.events.add(fd, Source::Recovery(index)));
        }
        if !self.setup.machine {
            add(self.events.add(std::io::stdin(), Source::Starter));
        }
        if let Some(errno) = failed {
            self.host.log.error(format_args!("cannot wait for all events: {}", errno.desc()));
        }
        self.watch_buttons();
    }

    fn watch_buttons(&mut self) {
        for (index, fd) in (0..).zip(self.buttons.fds()) {
            if let Err(errno) = self.events.add(fd, Source::Button(index)) {
                self.host.log.error(format_args!("cannot wait for the power button: {}", errno.desc()));
            }
        }
    }

    /// Takes the power buttons there are now in place of those there were.
    pub(crate) fn reopen_buttons(&mut self) {
        let mut old = std::mem::replace(&mut self.buttons, PowerButtons::open());
        for fd in old.fds() {
            self.events.remove(fd);
        }
        self.watch_buttons();
        if old.any_pressed() {
            self.begin_shutdown(End::PowerOff, "the power button");
        }
    }

    /// Starts the services and serves until the machine is to end. Returns how.
    pub(crate) fn run(mut self) -> (Host, End) {
        self.begin();
        loop {
            if let Some(end) = self.progress_of_shutdown() {
                return (self.host, end);
            }
            self.turn();
        }
    }

    /// Starts what waits for nobody, and finds what ended before this program took over.
    pub(crate) fn begin(&mut self) {
        self.reap();
        // Pressed during the boot: then there is nothing to start.
        self.take_ctrl_alt_del();
        if let Some(name) = self.recovery.as_ref().and_then(Recovery::pressed_anywhere) {
            self.recover(&name);
        }
        self.supervisor.start(clock::now(), &mut self.orders);
        self.perform();
    }

    /// Waits for the next event or timer and handles what there is.
    pub(crate) fn turn(&mut self) {
        let timers = [
            self.supervisor.next_wakeup(),
            self.control.as_ref().and_then(|server| server.next_wakeup(self.fence.feeder())),
            self.fence.next_wakeup(),
            self.watch.next_wakeup(),
            self.watchdog_search.as_ref().and_then(Search::next_wakeup),
            self.shutdown.as_ref().and_then(Shutdown::next_wakeup),
            self.reexec_wakeup(),
            self.host.memory.next_wakeup(),
            self.host.devices.as_ref().and_then(Devices::next_wakeup),
            self.recovery.as_ref().map(Recovery::until),
            self.calm_at,
        ];
        self.host.wait_for(&mut self.events, timers.into_iter().flatten().min());
        let mut index = 0;
        while let Some(source) = self.events.get(index) {
            self.dispatch(source);
            index += 1;
        }
        self.timeouts();
    }

    fn dispatch(&mut self, source: Source) {
        let now = clock::now();
        match source {
            Source::Signals => self.take_signals(),
            Source::CtrlAltDel => self.take_ctrl_alt_del(),
            Source::Recording => self.finish_recording(),
            Source::Recovery(index) => self.read_recovery(index),
            Source::Listener => {
                if let Some(server) = &mut self.control {
                    let (supervisor, processes) = (&self.supervisor, &self.processes);
                    server.accept(now, &self.events, |pid| {
                        service_of(processes, pid)
                            .is_some_and(|id| supervisor.unit(id).is_some_and(|u| u.fence))
                    });
                }
            }
            Source::Client(id) => {
                self.serve(id);
            }
            Source::Exit(id) => self.collect_service(id),
            Source::Output(id) => self.collect_output(id, false),
            Source::Report(id) => {
                if let Some(input) = self.read_report(id) {
                    self.tell(id, input);
                }
            }
            Source::Notify(id) => {
                if let Some(input) = self.read_notify(id) {
                    self.tell(id, input);
                }
            }
            Source::Starter => {
                let mut nothing = [0; 64];
                // Whoever started it is gone: so that a killed test leaves no process behind.
                if !matches!(read(std::io::stdin().as_fd(), &mut nothing), Ok(n) if n > 0) {
                    self.events.remove(std::io::stdin());
                    self.begin_shutdown(End::PowerOff, "the end of standard input");
                }
            }
            Source::Button(index) => {
                if self.buttons.pressed(index.into()) {
                    self.begin_shutdown(End::PowerOff, "the power button");
                }
            }
            Source::Devices => self.host.serve_devices(),
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.host.take_signal() {
            match signal {
                Signal::SIGTERM | Signal::SIGPWR => self.begin_shutdown(End::PowerOff, signal.as_str()),
                Signal::SIGCHLD => self.reap(),
                _ => {}
            }
        }
    }

    fn take_ctrl_alt_del(&mut self) {
        match self.host.take_asked() {
            Asked::Nothing => {}
            Asked::InOrder => self.begin_shutdown(End::Reboot, "Ctrl-Alt-Del"),
            Asked::AtOnce => {
                self.watch.end();
                let now = clock::now();
                self.shutdown.get_or_insert_with(|| Shutdown::new(now, End::Reboot)).force();
            }
        }
    }

    fn timeouts(&mut self) {
        self.fence_timeout();
        self.watch_timeout();
        let now = clock::now();
        self.host.memory.handle_timeout(now);
        if self.recovery.as_ref().is_some_and(|r| r.until() <= now) {
            self.end_recovery();
        }
        self.supervisor.handle_timeout(now, &mut self.orders);
        self.perform();
        if let Some(server) = &mut self.control {
            server.handle_timeout(now, &self.events, self.fence.feeder());
        }
        self.reexec_timeout(now);
        self.devices_timeout();
        if self.calm_at.take_if(|at| *at <= now).is_some() {
            self.settle_in();
        }
    }

    /// Forgets the pages that only the start needed.
    fn settle_in(&mut self) {
        if let Err(error) = own_pages::keep_the_used() {
            let why = sys::errno_text(&error);
            self.host.log.info(format_args!("the pages it works with are not locked in memory: {why}"));
        }
    }

    /// Keeps services from the terminals on which the recovery prompt is shown.
    fn hold_terminals(&mut self) {
        let Some(recovery) = &self.recovery else { return };
        for id in (0..).map(ServiceId).take(self.launches.len()) {
            let tty = self.supervisor.unit(id).and_then(|unit| unit.tty.as_deref());
            if tty.is_some_and(|tty| recovery.is_on(&spawn::terminal_path(tty))) {
                self.supervisor.hold(id);
            }
        }
    }

    fn read_recovery(&mut self, index: u16) {
        let Some(recovery) = &mut self.recovery else { return };
        match recovery.pressed(index) {
            Ok(None) => {}
            Ok(Some(name)) => {
                let name = name.to_owned();
                self.recover(&name);
            }
            Err(_gone) => {
                if let Some((_, fd)) = recovery.fds().find(|(i, _)| *i == index) {
                    self.events.remove(fd);
                }
                recovery.lose(index);
            }
        }
    }

    /// Somebody wants the rescue prompt.
    fn recover(&mut self, console: &str) {
        // In this order: nobody is started only to be stopped.
        self.begin_shutdown(End::Rescue, console);
        self.end_recovery();
    }

    /// Gives the terminals back, and to the services that wait for them.
    fn end_recovery(&mut self) {
        let Some(recovery) = self.recovery.take() else { return };
        for (_, fd) in recovery.fds() {
            self.events.remove(fd);
        }
        drop(recovery);
        self.supervisor.release(clock::now(), &mut self.orders);
        self.perform();
    }

    /// Carries out orders until none are left; a failed start is an event that may order more. What the log is told
    /// comes last: nobody waits for it.
    pub(crate) fn perform(&mut self) {
        let mut orders = std::mem::take(&mut self.orders);
        let mut index = 0;
        while let Some(order) = orders.get(index) {
            match *order {
                Output::Spawn(id) => {
                    let input = self.spawn(id);
                    self.supervisor.handle(clock::now(), id, input, &mut orders);
                }
                Output::Terminate(id) => {
                    let signal = self.supervisor.unit(id).map(|u| u.stop_signal).unwrap_or_default();
                    self.signal(id, signal_of(signal));
                }
                Output::Kill(id) => {
                    self.signal(id, Signal::SIGKILL);
                    self.kill_descendants(id);
                }
                Output::Note(..) => {}
            }
            index += 1;
        }
        for order in orders.drain(..) {
            let Output::Note(id, note) = order else { continue };
            let name = self.supervisor.unit(id).map_or("", |u| u.name.as_str());
            match note.is_bad() {
                true => self.host.log.warn(format_args!("{name}: {note}")),
                false => self.host.log.info(format_args!("{name}: {note}")),
            }
        }
        self.orders = orders;
    }

    fn spawn(&mut self, id: ServiceId) -> Input {
        match self.start(id) {
            Ok(pid) => Input::Spawned { pid },
            Err(mut why) => {
                ring::shorten(&mut why, DETAIL_MAX);
                Input::SpawnFailed { why, jitter: clock::jitter() }
            }
        }
    }

    fn start(&mut self, id: ServiceId) -> Result<u32, String> {
        self.calm_at = self.calm_at.map(|_| clock::now() + CALM);
        let gone = || "there is no such service".to_owned();
        let launch = self.launches.get_mut(id.index()).ok_or_else(gone)?;
        if launch.is_err() {
            // What was missing when the services were loaded may be there now.
            *launch = Launch::prepare(
                self.supervisor.unit(id).ok_or_else(gone)?,
                &self.setup.cgroups,
                Kept::default(),
            );
            if let Some(capture) = launch.as_ref().ok().and_then(|l| l.capture.as_ref()) {
                let added = self.events.add(capture.fd(), Source::Output(id));
                added.map_err(|e| format!("cannot wait for its output: {}", e.desc()))?;
            }
        }
        let process = launch.as_ref().map_err(Clone::clone)?.start(self.null.as_fd(), self.store.take(id))?;
        let pid = process.pid;
        self.watch(id, &process);
        if let Some(slot) = self.processes.get_mut(id.index()) {
            *slot = Some(process);
        }
        Ok(pid)
    }

    /// Waits for what `process` of `id` has to tell.
    pub(crate) fn watch(&mut self, id: ServiceId, process: &Process) {
        // SIGCHLD tells as well: a process that cannot be waited for is still collected.
        let _ = self.events.add(&process.pidfd, Source::Exit(id));
        for (fd, source) in [(&process.report, Source::Report(id)), (&process.notify, Source::Notify(id))] {
            if let Some(Err(errno)) = fd.as_ref().map(|fd| self.events.add(fd, source)) {
                let pid = process.pid;
                self.host.log.error(format_args!("cannot wait for process {pid}: {}", errno.desc()));
            }
        }
    }

    /// Sends a signal to the main process of `id`. It may have ended already; then its end is on its way.
    pub(crate) fn signal(&self, id: ServiceId, signal: Signal) {
        if let Some(Some(process)) = self.processes.get(id.index()) {
            let _ = child::signal(process.pidfd.as_fd(), signal as i32);
        }
    }

    /// The main process of `id`, until it is collected.
    pub(crate) fn pid_of(&self, id: ServiceId) -> Option<u32> {
        self.processes.get(id.index())?.as_ref().map(|process| process.pid)
    }

    /// The service whose main process is `pid`.
    pub(crate) fn service_of(&self, pid: u32) -> Option<ServiceId> {
        service_of(&self.processes, pid)
    }

    /// Learns whether the program of `id` was executed.
    fn read_report(&mut self, id: ServiceId) -> Option<Input> {
        let process = self.processes.get_mut(id.index())?.as_mut()?;
        let fd = process.report.as_ref()?;
        let mut report = [0; 8];
        let input = match read(fd.as_fd(), &mut report) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return None,
            Ok(0) => Input::Executed,
            Ok(n) => match (self.supervisor.unit(id), ExecStep::parse(report.get(..n).unwrap_or_default())) {
                (Some(unit), Some((step, errno))) => {
                    let mut why = spawn::failed_step(unit, step, errno);
                    ring::shorten(&mut why, DETAIL_MAX);
                    Input::ExecFailed { why }
                }
                _ => Input::ExecFailed { why: "its start failed before the program ran".to_owned() },
            },
            Err(errno) => Input::ExecFailed { why: format!("its start is unknown: {}", errno.desc()) },
        };
        self.events.remove(fd);
        process.report = None;
        Some(input)
    }

    /// Reads what `id` says on its readiness pipe: a line end means ready, the rest is not looked at.
    fn read_notify(&mut self, id: ServiceId) -> Option<Input> {
        let process = self.processes.get_mut(id.index())?.as_mut()?;
        let fd = process.notify.as_ref()?;
        let mut said = [0; 256];
        match read(fd.as_fd(), &mut said) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => None,
            // The pipe stays open: a service that writes again must not die of SIGPIPE.
            Ok(n) if n > 0 => said.iter().take(n).any(|b| *b == b'\n').then_some(Input::Notified),
            _ => {
                self.events.remove(fd);
                process.notify = None;
                None
            }
        }
    }

    pub(crate) fn tell(&mut self, id: ServiceId, input: Input) {
        if input == Input::Notified {
            self.watch.progress(clock::now(), id);
        }
        self.supervisor.handle(clock::now(), id, input, &mut self.orders);
        self.perform();
    }

    fn collect_output(&mut self, id: ServiceId, last: bool) {
        let launch = self.launches.get_mut(id.index()).and_then(|l| l.as_mut().ok());
        let Some(capture) = launch.and_then(|l| l.capture.as_mut()) else { return };
        let name = self.supervisor.unit(id).map_or("", |u| u.name.as_str());
        let keeper = &mut self.keeper;
        capture.drain(last, |at_ms, text| {
            if let Some(keeper) = keeper {
                keeper.write(name, at_ms, text);
            }
        });
        if let Some(keeper) = keeper {
            keeper.flush();
        }
    }

    /// What is kept of a service's output; `None` when it is not kept.
    pub(crate) fn output_of(&self, id: ServiceId) -> Option<&ring::Ring> {
        let launch = self.launches.get(id.index())?.as_ref().ok()?;
        launch.capture.as_ref().map(|capture| &capture.ring)
    }

    /// Collects the process of `id`, which has ended.
    fn collect_service(&mut self, id: ServiceId) {
        let Some(Some(process)) = self.processes.get(id.index()) else { return };
        if let Some((_, how)) = child::collect(Whom::This(process.pidfd.as_fd())) {
            self.ended(id, how);
        }
    }

    /// Collects ended processes, [`REAP_MAX`] at most; when there may be more the next turn comes at once, because
    /// the signal is raised again.
    fn reap(&mut self) {
        for _ in 0..REAP_MAX {
            let Some((pid, how)) = child::collect(Whom::Any) else { return };
            match self.service_of(pid) {
                Some(id) => self.ended(id, how),
                None => {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.ended(pid);
                    }
                    self.devices_process_ended(pid);
                    // Killed because its service is none any more: it may have been adding an address.
                    self.fence_process_ended(pid);
                    self.reexec_check_ended(pid, &how);
                }
            }
        }
        let _ = nix::sys::signal::raise(Signal::SIGCHLD);
    }

    /// The main process of `id` is gone and collected.
    fn ended(&mut self, id: ServiceId, how: LastExit) {
        // What it said before its end comes first.
        for input in [self.read_report(id), self.read_notify(id)].into_iter().flatten() {
            self.tell(id, input);
        }
        self.kill_descendants(id);
        self.collect_output(id, true);
        if let Some(process) = self.processes.get_mut(id.index()).and_then(Option::take) {
            self.events.remove(&process.pidfd);
            for fd in [&process.report, &process.notify].into_iter().flatten() {
                self.events.remove(fd);
            }
            // Before its next life can ask for anything.
            self.fence_process_ended(process.pid);
        }
        self.watch.ended(clock::now(), id);
        self.tell(id, Input::Exited { how, jitter: clock::jitter() });
    }

    /// Kills what the service's main process has left behind or is leaving.
    fn kill_descendants(&self, id: ServiceId) {
        let grouped =
            self.launches.get(id.index()).and_then(|l| l.as_ref().ok()).is_some_and(Launch::kill_group);
        if let (false, Some(Some(process))) = (grouped, self.processes.get(id.index())) {
            // Without a control group only those that stayed in its process group can be found. The number is not
            // anybody else's yet, although it may have been collected just now: numbers are given out in a circle.
            let _ = kill(Pid::from_raw(-process.pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// Begins to go down. The first reason counts.
    pub(crate) fn begin_shutdown(&mut self, end: End, why: &str) {
        if self.shutdown.is_some() {
            return;
        }
        let what = match end {
            End::Reboot | End::ForcedReboot => "reboot",
            End::PowerOff => "power-off",
            End::Rescue => "rescue prompt",
        };
        self.host.log.warn(format_args!("{what} asked for by {why}: stopping services"));
        self.host.memory.asked_by(why);
        let now = clock::now();
        self.shutdown = Some(Shutdown::new(now, end));
        self.watch.end();
        if let Some(devices) = &mut self.host.devices {
            devices.end();
        }
        self.supervisor.stop_all(now, &mut self.orders);
        self.perform();
    }

    fn progress_of_shutdown(&mut self) -> Option<End> {
        loop {
            let shutdown = self.shutdown.as_mut()?;
            let services_stopped = self.supervisor.all_stopped();
            if let Some(keeper) = self.keeper.as_mut().filter(|_| services_stopped) {
                keeper.close();
            }
            // The log keeper may finish its files before everything is killed.
            let stopped = services_stopped && self.keeper.as_ref().is_none_or(Keeper::is_gone);
            match shutdown.step(clock::now(), stopped, child::has_children()) {
                Step::Wait => return None,
                Step::KillAll { late } => {
                    if late {
                        let names = self.supervisor.running().join(", ");
                        self.host.log.error(format_args!("still running, killing: {names}"));
                    }
                    if self.setup.machine {
                        // Everything but this process and the kernel's threads.
                        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
                    } else {
                        (0..)
                            .map(ServiceId)
                            .take(self.processes.len())
                            .for_each(|id| self.kill_descendants(id));
                    }
                    // An event may be here already; look again at once.
                    self.reap();
                    // What nobody released would be answered for until the machine is off.
                    self.fence_now();
                }
                Step::Finish => return Some(shutdown.end()),
            }
        }
    }
}

fn service_of(processes: &[Option<Process>], pid: u32) -> Option<ServiceId> {
    let index = processes.iter().position(|p| p.as_ref().is_some_and(|p| p.pid == pid))?;
    u16::try_from(index).ok().map(ServiceId)
}

fn signal_of(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::SIGTERM,
        StopSignal::Int => Signal::SIGINT,
        StopSignal::Quit => Signal::SIGQUIT,
        StopSignal::Hup => Signal::SIGHUP,
        StopSignal::Usr1 => Signal::SIGUSR1,
        StopSignal::Usr2 => Signal::SIGUSR2,
        StopSignal::Kill => Signal::SIGKILL,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// To be held by a test for as long as it has a manager: a second one in the same process would collect the first
    /// one's children, which then waits for them for ever.
    pub(crate) fn the_only_manager() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::the_only_manager;
    use super::*;
    use crate::boot::consoles::testing::Line;
    use crate::boot::recovery::testing::on_lines as recovery_on_lines;
    use crate::sys::allocations;
    use proto::control::ServiceState;
    use std::fs;

    /// A manager of one service that sleeps.
    fn manager(test: &str) -> Manager {
        manager_with(test, "", None)
    }

    /// The same with the recovery prompt and a second service that has a line more in its file.
    fn manager_with(test: &str, line: &str, recovery: Option<Recovery>) -> Manager {
        let directory = std::env::temp_dir().join(format!("evenkeel-manager-{}-{test}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let command = "command = ['/bin/sleep', '1000']\n";
        fs::write(directory.join("a.toml"), command).unwrap();
        if !line.is_empty() {
            fs::write(directory.join("b.toml"), format!("{command}{line}\n")).unwrap();
        }
        let setup = Setup {
            run: directory.clone(),
            services: directory.clone(),
            logs: None,
            cgroups: Cgroups::none(),
            watchdog_search: None,
            boot: Boot::default(),
            recovery,
            state_device: None,
            machine: true,
        };
        let manager = Manager::new(Host::new(), Tools::open().unwrap(), setup);
        fs::remove_dir_all(&directory).unwrap();
        manager
    }

    #[test]
    fn ctrl_alt_del_before_the_loop_starts_nothing() {
        let _alone = the_only_manager();
        let mut manager = manager("early");
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        manager.begin();
        assert_eq!(manager.shutdown.as_ref().map(Shutdown::end), Some(End::Reboot));
        assert_eq!(manager.supervisor.rows(clock::now())[0].state, ServiceState::Stopped);
        assert!(manager.processes.iter().all(Option::is_none));
    }

    #[test]
    fn services_start_beside_the_recovery_prompt_but_not_on_its_terminal() {
        let _alone = the_only_manager();
        let lines = [Line::new()];
        let recovery = recovery_on_lines(clock::now(), &lines);
        let until = recovery.until();
        let mut manager = manager_with("beside", "tty = 'ttyT0'", Some(recovery));
        manager.begin();
        let row = |m: &Manager, i: usize| m.supervisor.rows(clock::now()).remove(i);
        while row(&manager, 0).state != ServiceState::Ready {
            manager.turn();
        }
        assert!(clock::now() < until, "nobody else waits for it");
        assert_eq!(
            (row(&manager, 1).state, row(&manager, 1).detail.as_str()),
            (ServiceState::Waiting, "waits for its terminal")
        );
        lines[0].type_keys("x\n");
        while row(&manager, 1).state == ServiceState::Waiting {
            manager.turn();
        }
        assert!(clock::now() >= until && manager.recovery.is_none() && manager.shutdown.is_none());
        manager.signal(ServiceId(0), Signal::SIGKILL);
    }

    #[test]
    fn r_stops_the_services_for_the_rescue_prompt() {
        let _alone = the_only_manager();
        let lines = [Line::new()];
        // Shown a minute later: a slow machine must not let it end.
        let later = || clock::now() + std::time::Duration::from_secs(60);
        // Pressed while the boot had no time for it: nothing starts.
        let recovery = recovery_on_lines(later(), &lines);
        lines[0].type_keys("r");
        let mut early = manager_with("r-early", "tty = 'ttyT0'", Some(recovery));
        early.begin();
        // Pressed while services run: they are stopped, and the one that waits for the line never starts.
        let recovery = recovery_on_lines(later(), &lines);
        let mut late = manager_with("r-late", "tty = 'ttyT0'", Some(recovery));
        late.begin();
        lines[0].type_keys("r");
        let until = later();
        while !late.supervisor.all_stopped() {
            assert!(clock::now() < until, "r is not heard");
            late.turn();
        }
        for (manager, starts) in [(&early, 0), (&late, 1)] {
            assert_eq!(manager.shutdown.as_ref().map(Shutdown::end), Some(End::Rescue));
            assert!(manager.recovery.is_none(), "the line is given back");
            let said: String = manager.host.log.ring.last(99).into_iter().map(|l| l.text + "\n").collect();
            assert_eq!(said.matches("ended (signal 15)").count(), starts, "{said}");
            assert!(said.contains("rescue prompt asked for by ttyT0"), "{said}");
        }
    }

    #[test]
    fn a_service_that_dies_is_back_without_an_allocation() {
        let _alone = the_only_manager();
        let mut manager = manager("death");
        let id = manager.supervisor.find("a").unwrap();
        let ready = |m: &Manager| m.supervisor.rows(clock::now())[0].state == ServiceState::Ready;
        manager.begin();
        while !ready(&manager) {
            manager.turn();
        }
        let first = manager.processes[id.index()].as_ref().unwrap().pid;

        manager.signal(id, Signal::SIGKILL);
        let before = allocations::count();
        let pid = |m: &Manager| m.processes[id.index()].as_ref().map(|p| p.pid);
        while pid(&manager).is_none_or(|pid| pid == first) {
            manager.turn();
        }
        assert_eq!(allocations::count() - before, 0);
        assert_eq!(manager.supervisor.rows(clock::now())[0].restarts, 1);
        manager.signal(id, Signal::SIGKILL);
    }
}
