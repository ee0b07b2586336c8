//! The poll loop: descriptors to events, events to the supervisor, its orders to processes.
//!
//! Every decision is the supervisor's or the shutdown's; this file carries them out. Nothing here waits except the
//! one `poll`, and every handler takes a bounded amount of work before the next one gets its turn.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, read};
use proto::control::{DETAIL_MAX, LastExit, LogLine};

use crate::control::socket::Server;
use crate::host::Host;
use crate::power_button::PowerButtons;
use crate::service::cgroup::Cgroups;
use crate::service::keeper::Keeper;
use crate::service::output::Capture;
use crate::service::spawn::{self, Process};
use crate::service::supervisor::{Input, Output, Supervisor};
use crate::service::unit::{Refusal, StopSignal};
use crate::shutdown::{End, Shutdown, Step};
use crate::sys::child::ExecStep;
use crate::{clock, ring, sys};

/// Ended processes collected before other events get their turn.
const REAP_MAX: usize = 256;

/// What the manager works with; boot and the container mode fill it differently.
pub(crate) struct Manager {
    pub(crate) host: Host,
    pub(crate) supervisor: Supervisor,
    /// Service files that were refused.
    pub(crate) refused: Vec<Refusal>,
    pub(crate) cgroups: Cgroups,
    pub(crate) control: Option<Server>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) buttons: PowerButtons,
    /// STATE's device, for `System`.
    pub(crate) state_device: Option<String>,
    /// Whether this is the machine's PID 1, which may kill everything. Otherwise the end of standard input ends it.
    pub(crate) machine: bool,
    pub(crate) captures: BTreeMap<String, Capture>,
    pub(crate) processes: BTreeMap<String, Process>,
    pub(crate) shutdown: Option<Shutdown>,
}

/// Where a readable descriptor leads.
enum Source {
    Signals,
    Listener,
    Client(u64),
    Output(String),
    Report(String),
    Notify(String),
    Button(usize),
    /// Standard input of the container mode.
    Starter,
}

impl Manager {
    /// Starts the services and serves until the machine is to end. Returns how.
    pub(crate) fn run(mut self) -> (Host, End) {
        for refusal in &self.refused {
            self.host.log.error(format_args!("service refused: {refusal}"));
        }
        let mut orders = Vec::new();
        self.supervisor.start(clock::now(), &mut orders);
        self.perform(orders);
        let mut reap_again = false;
        loop {
            if let Some(end) = self.progress_of_shutdown() {
                return (self.host, end);
            }
            for source in self.wait(reap_again) {
                self.dispatch(source);
            }
            // Whatever woke the loop: a signal that was lost costs nothing this way.
            reap_again = self.reap();
            self.timeouts();
        }
    }

    /// Waits for the next event or timer.
    fn wait(&mut self, at_once: bool) -> Vec<Source> {
        let now = clock::now();
        let timers = [
            at_once.then_some(now),
            self.supervisor.next_wakeup(),
            self.control.as_ref().and_then(Server::next_wakeup),
            self.shutdown.as_ref().and_then(Shutdown::next_wakeup),
        ];
        let signals = self.host.signals.clone();
        let mut sources: Vec<(Source, BorrowedFd<'_>)> = Vec::new();
        if let Some(fd) = &signals {
            sources.push((Source::Signals, AsFd::as_fd(Rc::as_ref(fd))));
        }
        for (name, process) in &self.processes {
            if let Some(fd) = &process.report {
                sources.push((Source::Report(name.clone()), fd.as_fd()));
            }
            if let Some(fd) = &process.notify {
                sources.push((Source::Notify(name.clone()), fd.as_fd()));
            }
        }
        for (name, capture) in &self.captures {
            sources.push((Source::Output(name.clone()), capture.fd()));
        }
        if let Some(server) = &self.control {
            sources.push((Source::Listener, server.listener()));
            sources.extend(server.clients().map(|(id, fd)| (Source::Client(id), fd)));
        }
        sources.extend(self.buttons.fds().map(|(i, fd)| (Source::Button(i), fd)));
        let stdin = std::io::stdin();
        if !self.machine && self.shutdown.is_none() {
            sources.push((Source::Starter, stdin.as_fd()));
        }
        let (names, fds): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
        let ready = self.host.wait(&fds, timers.into_iter().flatten().min());
        names.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect()
    }

    fn dispatch(&mut self, source: Source) {
        let now = clock::now();
        match source {
            Source::Signals => {
                for signal in self.host.take_signals() {
                    match signal {
                        Signal::SIGTERM | Signal::SIGPWR => {
                            self.begin_shutdown(End::PowerOff, signal.as_str())
                        }
                        // Ctrl-Alt-Del.
                        Signal::SIGINT => self.begin_shutdown(End::Reboot, signal.as_str()),
                        _ => {}
                    }
                }
            }
            Source::Listener => {
                if let Some(server) = &mut self.control {
                    server.accept(now);
                }
            }
            Source::Client(id) => self.serve(id),
            Source::Output(name) => self.collect_output(&name, false),
            Source::Report(name) => self.read_report(&name),
            Source::Notify(name) => self.read_notify(&name),
            Source::Starter => {
                let mut nothing = [0; 64];
                // Whoever started it is gone: so that a killed test leaves no process behind.
                if !matches!(read(std::io::stdin().as_fd(), &mut nothing), Ok(n) if n > 0) {
                    self.begin_shutdown(End::PowerOff, "the end of standard input");
                }
            }
            Source::Button(index) => {
                if self.buttons.pressed(index) {
                    self.begin_shutdown(End::PowerOff, "the power button");
                }
            }
        }
    }

    fn timeouts(&mut self) {
        let now = clock::now();
        let mut orders = Vec::new();
        self.supervisor.handle_timeout(now, &mut orders);
        self.perform(orders);
        if let Some(server) = &mut self.control {
            server.handle_timeout(now);
        }
    }

    /// Carries out orders until none are left; a failed start is an event that may order more.
    pub(crate) fn perform(&mut self, orders: Vec<Output>) {
        let mut queue = VecDeque::from(orders);
        while let Some(order) = queue.pop_front() {
            let mut follow_up = Vec::new();
            match order {
                Output::Spawn(name) => {
                    let input = self.spawn(&name);
                    self.supervisor.handle(clock::now(), &name, input, &mut follow_up);
                }
                Output::Terminate(name) => {
                    let signal = self.supervisor.unit(&name).map(|u| u.stop_signal).unwrap_or_default();
                    if let Some(process) = self.processes.get(&name) {
                        // The process may have ended already; then its end is on its way.
                        let _ = kill(pid_of(process), signal_of(signal));
                    }
                }
                Output::Kill(name) => {
                    if let Some(process) = self.processes.get(&name) {
                        let _ = kill(pid_of(process), Signal::SIGKILL);
                        self.kill_descendants(&name, process.pid);
                    }
                }
                Output::Note { name, bad: true, text } => self.host.log.warn(format_args!("{name}: {text}")),
                Output::Note { name, bad: false, text } => self.host.log.info(format_args!("{name}: {text}")),
            }
            queue.extend(follow_up);
        }
    }

    fn spawn(&mut self, name: &str) -> Input {
        let started = match self.supervisor.unit(name) {
            None => Err("its unit is gone".to_owned()),
            Some(unit) => match capture(&mut self.captures, name) {
                Err(error) => Err(format!("cannot make its output pipe: {}", sys::errno_text(&error))),
                Ok(capture) => spawn::spawn(unit, &self.cgroups, capture.writer()),
            },
        };
        match started {
            Ok(process) => {
                let pid = process.pid;
                self.processes.insert(name.to_owned(), process);
                Input::Spawned { pid }
            }
            Err(mut why) => {
                ring::cut(&mut why, DETAIL_MAX);
                Input::SpawnFailed { why, jitter: clock::jitter() }
            }
        }
    }

    /// Learns whether the program of `name` was executed.
    fn read_report(&mut self, name: &str) {
        let Some(process) = self.processes.get_mut(name) else { return };
        let Some(fd) = &process.report else { return };
        let mut report = [0; 8];
        let input = match read(fd.as_fd(), &mut report) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return,
            Ok(0) => Input::Executed,
            Ok(n) => match (self.supervisor.unit(name), ExecStep::parse(report.get(..n).unwrap_or_default()))
            {
                (Some(unit), Some((step, errno))) => {
                    let mut why = spawn::failed_step(unit, step, errno);
                    ring::cut(&mut why, DETAIL_MAX);
                    Input::ExecFailed { why }
                }
                _ => Input::ExecFailed { why: "its start failed before the program ran".to_owned() },
            },
            Err(errno) => Input::ExecFailed { why: format!("its start is unknown: {}", errno.desc()) },
        };
        process.report = None;
        self.tell(name, input);
    }

    /// Reads what `name` says on its readiness pipe: a line end means ready, the rest is not looked at.
    fn read_notify(&mut self, name: &str) {
        let Some(process) = self.processes.get_mut(name) else { return };
        let Some(fd) = &process.notify else { return };
        let mut said = [0; 256];
        match read(fd.as_fd(), &mut said) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Ok(n) if n > 0 => {
                // The pipe stays open: a service that writes again must not die of SIGPIPE.
                if said.iter().take(n).any(|b| *b == b'\n') {
                    self.tell(name, Input::Notified);
                }
            }
            _ => process.notify = None,
        }
    }

    fn tell(&mut self, name: &str, input: Input) {
        let mut orders = Vec::new();
        self.supervisor.handle(clock::now(), name, input, &mut orders);
        self.perform(orders);
    }

    fn collect_output(&mut self, name: &str, last: bool) {
        let Some(capture) = self.captures.get_mut(name) else { return };
        let lines: Vec<LogLine> = capture.drain(last);
        if let Some(keeper) = self.keeper.as_mut().filter(|_| !lines.is_empty()) {
            keeper.write(name, &lines);
        }
    }

    /// Collects ended processes. True when there may be more.
    fn reap(&mut self) -> bool {
        for _ in 0..REAP_MAX {
            // First without collecting: while the number is taken, killing its process group cannot hit a stranger.
            let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let (pid, how) = match waitid(Id::All, peek) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, LastExit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, LastExit::Signal(signal as i32)),
                Err(nix::errno::Errno::EINTR) => continue,
                _ => return false,
            };
            let number = pid.as_raw().cast_unsigned();
            let service = self.processes.iter().find(|(_, p)| p.pid == number).map(|(n, _)| n.clone());
            if let Some(name) = &service {
                self.read_report(name);
                self.read_notify(name);
                self.kill_descendants(name, number);
                self.collect_output(name, true);
                self.processes.remove(name);
            } else if let Some(keeper) = &mut self.keeper {
                keeper.ended(number);
            }
            let collected = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
            if let Err(errno) = collected {
                self.host.log.error(format_args!("cannot collect process {pid}: {}", errno.desc()));
                return false;
            }
            if let Some(name) = service {
                self.tell(&name, Input::Exited { how, jitter: clock::jitter() });
            }
        }
        true
    }

    /// Kills what the service's main process has left behind.
    fn kill_descendants(&self, name: &str, pid: u32) {
        if !self.cgroups.kill(name) {
            // Without a control group only those that stayed in its process group can be found.
            let _ = kill(Pid::from_raw(-pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// Begins to go down. The first reason counts.
    pub(crate) fn begin_shutdown(&mut self, end: End, why: &str) {
        if self.shutdown.is_some() {
            return;
        }
        let what = match end {
            End::Reboot => "reboot",
            End::PowerOff => "power-off",
        };
        self.host.log.warn(format_args!("{what} asked for by {why}: stopping services"));
        let now = clock::now();
        self.shutdown = Some(Shutdown::new(now, end));
        let mut orders = Vec::new();
        self.supervisor.stop_all(now, &mut orders);
        self.perform(orders);
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
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let left = !matches!(waitid(Id::All, look), Err(nix::errno::Errno::ECHILD));
            match shutdown.step(clock::now(), stopped, left) {
                Step::Wait => return None,
                Step::KillAll { late } => {
                    if late {
                        let names = self.supervisor.running().join(", ");
                        self.host
                            .log
                            .error(format_args!("still running at the time limit, killing: {names}"));
                    }
                    if self.machine {
                        // Everything but this process and the kernel's threads.
                        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
                    } else {
                        for (name, process) in &self.processes {
                            self.kill_descendants(name, process.pid);
                        }
                    }
                    // An event may be here already; look again at once.
                    self.reap();
                }
                Step::Finish => return Some(shutdown.end()),
            }
        }
    }
}

/// The capture of `name`, made when it is first needed.
fn capture<'a>(captures: &'a mut BTreeMap<String, Capture>, name: &str) -> std::io::Result<&'a mut Capture> {
    use std::collections::btree_map::Entry;
    match captures.entry(name.to_owned()) {
        Entry::Occupied(e) => Ok(e.into_mut()),
        Entry::Vacant(e) => Ok(e.insert(Capture::new()?)),
    }
}

fn pid_of(process: &Process) -> Pid {
    Pid::from_raw(process.pid.cast_signed())
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

/// Reads and checks all service files of `directory`.
pub(crate) fn load_services(directory: &Path) -> (Vec<crate::service::unit::Unit>, Vec<Refusal>) {
    use crate::service::unit::{self, SERVICES_MAX};
    let mut parsed = Vec::new();
    let mut refused = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files.truncate(SERVICES_MAX);
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let result = match std::fs::read_to_string(&path) {
            Ok(text) => unit::parse(&name, &text),
            Err(error) => Err(Refusal::unreadable(&name, sys::errno_text(&error))),
        };
        match result {
            Ok(p) => parsed.push(p),
            Err(r) => refused.push(r),
        }
    }
    let units = unit::check(parsed, &mut refused, spawn::missing);
    (units, refused)
}
