//! The manager's side: check the program, hand over, take over.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{execve, pipe2, read};
use proto::control::{LastExit, Reply};
use proto::time::Time;

use super::state::{self, State};
use super::{CHECK_ARGUMENT, CHECK_LIMIT, CHECK_PASSED, RESUME_ARGUMENT, SELF};
use crate::boot::attempt::Attempt;
use crate::boot::memory;
use crate::control::socket::{Client, Server};
use crate::host::Host;
use crate::manager::{Inherited, Manager, Setup, Tools};
use crate::service::ServiceId;
use crate::service::cgroup::Cgroups;
use crate::service::keeper::Keeper;
use crate::service::output::Capture;
use crate::service::spawn::{Kept, Process, nonblocking};
use crate::service::supervisor::Life;
use crate::sys::child::{self, Descriptors, ExecStep, PASSED_FD, Program};
use crate::sys::netlink::Netlink;
use crate::watchdog::Watchdog;
use crate::{clock, sys};

/// A program that is being tried.
pub(crate) struct Check {
    path: String,
    pid: u32,
    pidfd: OwnedFd,
    /// What it says.
    output: OwnedFd,
    /// Whether it ran at all.
    report: OwnedFd,
    /// Who gets the answer.
    client: u32,
    deadline: Time,
}

impl Manager {
    /// Begins to try the program at `path`; `client` gets the answer when it is known.
    ///
    /// # Errors
    /// Why it is not tried. Nothing has changed.
    pub(crate) fn begin_reexec(&mut self, path: Option<&str>, client: u32) -> Result<(), String> {
        if self.shutdown.is_some() {
            return Err("the system is going down already".to_owned());
        }
        self.may_hand_over()?;
        if let Some(check) = &self.check {
            return Err(format!("{} is being tried already", check.path));
        }
        let path = path.unwrap_or(SELF);
        if !path.starts_with('/') {
            return Err(format!("expected an absolute path, found {path:?}"));
        }
        let fail = |what: &'static str| move |e: std::io::Error| format!("{what}: {}", sys::errno_text(&e));
        let c_string = |s: &str| CString::new(s).map_err(|_| format!("{s:?} contains a NUL byte"));
        let pipe = || {
            let (reader, writer) =
                pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("cannot make a pipe: {}", e.desc()))?;
            nonblocking(&reader).map_err(fail("cannot prepare a pipe"))?;
            Ok::<_, String>((reader, writer))
        };
        let state = self.state().seal().map_err(fail("cannot write the state down"))?;
        let arguments = ["init", CHECK_ARGUMENT, &PASSED_FD.to_string()].map(c_string);
        let arguments = arguments.into_iter().collect::<Result<Vec<_>, _>>()?;
        let program = Program::new(c_string(path)?, arguments, Vec::new(), None);
        let (output, output_writer) = pipe()?;
        let (report, report_writer) = pipe()?;
        let descriptors = Descriptors {
            input: self.null.as_fd(),
            output: output_writer.as_fd(),
            passed: &[state.as_fd()],
            report: report_writer.as_fd(),
            group: None,
        };
        let (pid, pidfd) = child::start(&program, &descriptors).map_err(fail("cannot clone"))?;
        let deadline = clock::now() + CHECK_LIMIT;
        self.check = Some(Check { path: path.to_owned(), pid, pidfd, output, report, client, deadline });
        Ok(())
    }

    /// When [`Manager::reexec_timeout`] is due.
    pub(crate) fn reexec_wakeup(&self) -> Option<Time> {
        self.check.as_ref().map(|c| c.deadline)
    }

    /// Ends a check that takes too long; its end then tells why.
    pub(crate) fn reexec_timeout(&mut self, now: Time) {
        if let Some(check) = self.check.as_mut().filter(|c| c.deadline <= now) {
            let _ = child::signal(check.pidfd.as_fd(), Signal::SIGKILL as i32);
            check.deadline = now + CHECK_LIMIT;
        }
    }

    /// Hears that process `pid` has ended. The one that was tried decides: hand over, or refuse.
    pub(crate) fn reexec_check_ended(&mut self, pid: u32, how: &LastExit) {
        let Some(check) = self.check.take_if(|c| c.pid == pid) else { return };
        let mut said = [0; 256];
        let count = read(&check.output, &mut said).unwrap_or(0);
        let said = String::from_utf8_lossy(said.get(..count).unwrap_or_default()).into_owned();
        let mut report = [0; 8];
        let reported = read(&check.report, &mut report).unwrap_or(0);
        let why = match ExecStep::parse(report.get(..reported).unwrap_or_default()) {
            Some((_, errno)) => format!("cannot be run: {}", nix::errno::Errno::from_raw(errno).desc()),
            None if said == CHECK_PASSED && *how == LastExit::Code(0) => return self.hand_over(&check),
            None if said.is_empty() => format!("did not say that it can take over; it ended ({how})"),
            None => said.trim_end().to_owned(),
        };
        let reason = format!("{} {why}; init runs on unchanged", check.path);
        self.refuse_reexec(&check, reason);
    }

    fn refuse_reexec(&mut self, check: &Check, mut reason: String) {
        self.host.log.error(format_args!("not handing over: {reason}"));
        crate::ring::shorten(&mut reason, proto::control::DETAIL_MAX);
        self.answer(check.client, &Reply::Refused { reason });
    }

    /// Becomes the program that was tried. Returns only when that failed.
    fn hand_over(&mut self, check: &Check) {
        if self.shutdown.is_some() {
            return self.refuse_reexec(check, "the system is going down".to_owned());
        }
        if let Err(why) = self.may_hand_over() {
            return self.refuse_reexec(check, why);
        }
        self.host.log.info(format_args!("handing over to {}", check.path));
        self.answer(check.client, &Reply::Accepted);
        let Err(why) = self.replace_program(&check.path);
        self.host.log.error(format_args!("cannot become {}: {why}; going on", check.path));
    }

    /// A key that is pressed at the prompt is for the program that shows it.
    fn may_hand_over(&self) -> Result<(), String> {
        match &self.recovery {
            None => Ok(()),
            Some(_) => Err("the recovery prompt is on the console; try again in a few seconds".to_owned()),
        }
    }

    fn replace_program(&mut self, path: &str) -> Result<std::convert::Infallible, String> {
        let state = self.state();
        let memfd =
            state.seal().map_err(|e| format!("cannot write the state down: {}", sys::errno_text(&e)))?;
        let fds: Vec<RawFd> = state.descriptors().into_iter().chain([memfd.as_raw_fd()]).collect();
        let result = fds
            .iter()
            .try_for_each(|fd| sys::pass_on(*fd, true))
            .map_err(|e| format!("a descriptor cannot go along: {}", sys::errno_text(&e)))
            .and_then(|()| {
                let c_string = |s: String| CString::new(s).map_err(|_| "NUL byte".to_owned());
                let arguments =
                    ["init".to_owned(), RESUME_ARGUMENT.to_owned(), memfd.as_raw_fd().to_string()];
                let arguments = arguments.into_iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
                let environment = std::env::vars().map(|(k, v)| c_string(format!("{k}={v}")));
                let environment = environment.collect::<Result<Vec<_>, _>>()?;
                execve(&c_string(path.to_owned())?, &arguments, &environment).map_err(|e| e.desc().to_owned())
            });
        for fd in fds {
            // It was just opened or passed on: that it is kept to ourselves again cannot fail.
            let _ = sys::pass_on(fd, false);
        }
        result
    }

    /// All that the next program has to know.
    fn state(&self) -> State {
        let number = |fd: &OwnedFd| fd.as_raw_fd();
        let service = |id: ServiceId| {
            let process = self.processes.get(id.index()).and_then(Option::as_ref);
            let launch = self.launches.get(id.index()).and_then(|l| l.as_ref().ok());
            Some(state::Service {
                name: self.supervisor.unit(id)?.name.clone(),
                life: self.supervisor.life(id)?.clone(),
                process: process.map(|p| state::Process {
                    pid: p.pid,
                    pidfd: number(&p.pidfd),
                    report: p.report.as_ref().map(number),
                    notify: p.notify.as_ref().map(number),
                }),
                output: launch.and_then(|l| l.capture.as_ref()).map(Capture::save),
                sockets: launch.map(|l| l.sockets.iter().map(number).collect()).unwrap_or_default(),
                memory: self.store.take(id).map(|fd| fd.as_raw_fd()),
            })
        };
        State {
            run: self.setup.run.clone(),
            services_directory: self.setup.services.clone(),
            logs: self.setup.logs.clone(),
            cgroup_mount: self.setup.cgroups.mount().map(Path::to_owned),
            machine: self.setup.machine,
            state_device: self.setup.state_device.clone(),
            services: (0..).map(ServiceId).map_while(service).collect(),
            control: self.control.as_ref().map(Server::save),
            keeper: self.keeper.as_ref().map(Keeper::save),
            fence: self.fence_save(),
            netlink: self.fence.netlink().map(|netlink| {
                let (socket, sequence) = netlink.save();
                state::Netlink { socket, sequence }
            }),
            watch: self.watch.save(),
            recording: self.recording.as_ref().map(|attempt| {
                let (reader, pid) = attempt.save();
                state::Recording { reader, pid }
            }),
            watchdog: self.host.watchdog.as_ref().map(Watchdog::save),
            watchdog_search: self.watchdog_search.clone(),
            memory: self.host.memory.clone(),
            crash_file: sys::crash::file(),
            log: self.host.log.ring.content(),
        }
    }
}

/// The descriptors of a state, owned, with what each one is.
struct Taken {
    watchdog: Option<Watchdog>,
    crash_file: Option<File>,
    recording: Option<Attempt>,
    services: Vec<Service>,
    inherited: Inherited,
}

/// A service of the program before, as far as it is not in [`Inherited`].
struct Service {
    name: String,
    life: Life,
    process: Option<Process>,
    memory: Option<OwnedFd>,
}

impl Taken {
    /// Takes every descriptor that `state` names.
    ///
    /// # Errors
    /// Which one is not there.
    fn from(state: &State) -> Result<Taken, String> {
        let own =
            |fd: RawFd| sys::inherit(fd).map_err(|e| format!("descriptor {fd}: {}", sys::errno_text(&e)));
        let optional = |fd: Option<RawFd>| fd.map(own).transpose();
        let mut inherited = Inherited::default();
        if let Some(c) = &state.control {
            let client = |c: &state::Client| Ok((c.number, Client::resume(own(c.socket)?, c)));
            let clients = c.clients.iter().map(client).collect::<Result<_, String>>()?;
            inherited.control = Some(Server::resume(own(c.listener)?, clients, c.next));
        }
        if let Some(k) = &state.keeper {
            let socket = optional(k.socket)?;
            inherited.keeper = state.logs.as_deref().map(|logs| Keeper::resume(logs, socket, k));
        }
        if let Some(n) = &state.netlink {
            inherited.netlink = Some(Netlink::resume(own(n.socket)?, n.sequence));
        }
        let mut services = Vec::new();
        for s in &state.services {
            let process = |p: &state::Process| -> Result<Process, String> {
                let (report, notify) = (optional(p.report)?, optional(p.notify)?);
                Ok(Process { pid: p.pid, pidfd: own(p.pidfd)?, report, notify })
            };
            let capture = |o: &state::Output| -> Result<Capture, String> {
                Ok(Capture::resume(own(o.reader)?, own(o.writer)?, o))
            };
            let capture = s.output.as_ref().map(capture).transpose()?;
            let sockets = s.sockets.iter().map(|fd| own(*fd)).collect::<Result<_, _>>()?;
            inherited.kept.insert(s.name.clone(), Kept { capture, sockets });
            let process = s.process.as_ref().map(process).transpose()?;
            let memory = optional(s.memory)?;
            services.push(Service { name: s.name.clone(), life: s.life.clone(), process, memory });
        }
        let recording = state.recording.as_ref();
        let recording = recording.map(|r| own(r.reader).map(|fd| Attempt::resume(fd, r.pid))).transpose()?;
        let watchdog = state.watchdog.as_ref();
        let watchdog = watchdog.map(|w| own(w.device).map(|fd| Watchdog::resume(fd, w))).transpose()?;
        let crash_file = optional(state.crash_file)?.map(File::from);
        Ok(Taken { watchdog, crash_file, recording, services, inherited })
    }
}

/// Goes on where another program stopped.
///
/// # Errors
/// Why that is not possible; the host is given back to end the machine with.
pub(crate) fn resume(mut host: Host, tools: Tools, state: State) -> Result<Manager, Box<(Host, String)>> {
    let began = clock::now();
    let taken = match Taken::from(&state) {
        Ok(taken) => taken,
        Err(why) => return Err(Box::new((host, why))),
    };
    host.watchdog = taken.watchdog;
    host.memory = state.memory;
    if let Some(file) = taken.crash_file {
        memory::resume_crash_file(&host, file);
    }
    let cgroups = state.cgroup_mount.as_deref().map_or_else(Cgroups::none, |mount| Cgroups::new(mount).0);
    let setup = Setup {
        run: state.run,
        services: state.services_directory,
        logs: state.logs,
        cgroups,
        watchdog_search: state.watchdog_search,
        boot: state.watch.boot,
        // A program that shows the prompt does not hand over.
        recovery: None,
        state_device: state.state_device,
        machine: state.machine,
    };
    let mut manager = Manager::with(host, tools, setup, taken.inherited);
    manager.watch.resume(&state.watch);
    manager.fence_resume(&state.fence);
    let count = taken.services.len();
    for service in taken.services {
        manager.take_over(service);
    }
    if let Some(attempt) = taken.recording {
        manager.await_recording(Ok(attempt));
    }
    let took = clock::now().since(began).as_micros();
    manager.host.log.info(format_args!("took over {count} services in {took} us"));
    Ok(manager)
}

impl Manager {
    /// Sends an answer that was not known when the request came.
    fn answer(&mut self, client: u32, reply: &Reply) {
        if let Some(server) = &mut self.control {
            server.reply(client, reply, &self.events);
        }
    }

    /// Goes on with a service, as far as it is still one.
    fn take_over(&mut self, Service { name, life, process, memory }: Service) {
        let Some(id) = self.supervisor.find(&name) else {
            // Its file is gone: nobody would ever stop it. It is collected like any orphan.
            if let Some(process) = process {
                self.host.log.warn(format_args!("{name} is no service any more: killing it"));
                let _ = child::signal(process.pidfd.as_fd(), Signal::SIGKILL as i32);
            }
            return;
        };
        self.supervisor.resume(id, life);
        if let Some(process) = process {
            self.adopt(id, process);
        }
        if let Some(memory) = memory.filter(|_| self.supervisor.unit(id).is_some_and(|u| u.keeps_memory))
            && let Err(why) = self.store.keep(id, memory)
        {
            self.host.log.error(format_args!("{name}: its memory is lost: {why}"));
        }
    }

    /// Waits for what a process that is there already has to tell.
    fn adopt(&mut self, id: ServiceId, process: Process) {
        self.watch(id, &process);
        if let Some(slot) = self.processes.get_mut(id.index()) {
            *slot = Some(process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::consoles::testing::Line;
    use crate::boot::memory::Memory;
    use crate::boot::recovery::{Recovery, testing::on_lines};
    use crate::boot::testdir::TestDir;
    use crate::fence::state::Caller;
    use crate::manager::testing::the_only_manager;
    use crate::ring::Ring;
    use crate::watch::rules::Boot;
    use crate::watchdog::Search;
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use proto::boot::{BootEnd, BootRecord};
    use proto::control::{FenceAddress, FenceState, InterfaceRef, WatchState};
    use std::fs;
    use std::time::Duration;

    /// Longest wait for one event.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn manager(dir: &TestDir, memory: Memory, trial: bool, recovery: Option<Recovery>) -> Manager {
        let setup = Setup {
            run: dir.path().to_owned(),
            services: dir.path().to_owned(),
            logs: None,
            cgroups: Cgroups::none(),
            watchdog_search: Some(Search::new(clock::now() + PATIENCE, 30)),
            boot: Boot { trial, resets: 0 },
            recovery,
            state_device: None,
            machine: true,
        };
        let mut host = Host::new();
        host.memory = memory;
        host.watchdog = Some(Watchdog::of_null(30));
        let mut manager = Manager::new(host, Tools::open().unwrap(), setup);
        manager.begin();
        manager
    }

    /// As execve leaves it: nothing is dropped, and what does not go along is not heard of again.
    fn next_program(manager: Manager) -> Manager {
        manager.may_hand_over().unwrap();
        let state = State::read(manager.state().seal().unwrap()).unwrap();
        std::mem::forget(manager);
        let mut host = Host::new();
        host.log.ring = Ring::resume(&state.log);
        let resumed = resume(host, Tools::open().unwrap(), state);
        let mut manager = resumed.unwrap_or_else(|failed| panic!("{}", failed.1));
        manager.begin();
        manager
    }

    fn turn_until(manager: &mut Manager, what: &str, is: impl Fn(&Manager) -> bool) {
        let until = clock::now() + PATIENCE;
        while !is(manager) {
            assert!(clock::now() < until, "{what}: not so; {:?}", said(manager));
            manager.turn();
        }
    }

    fn said(manager: &Manager) -> Vec<String> {
        manager.host.log.ring.last(usize::MAX).into_iter().map(|line| line.text).collect()
    }

    fn state(manager: &Manager) -> WatchState {
        manager.watch.info(clock::now()).state
    }

    #[test]
    fn a_failed_trial_is_recorded_by_one_program_and_withheld_by_the_next() {
        let _alone = the_only_manager();
        let (dir, disk) = (TestDir::new(), TestDir::new());
        let silent = "command = ['/bin/sh', '-c', 'echo >&$NOTIFY_FD; exec sleep 1000']\nready = 'notify'\nwatchdog_s = 1\n";
        fs::write(dir.path().join("netd.toml"), silent).unwrap();
        let mut manager = manager(&dir, Memory::in_directory(disk.path()), true, None);
        // Its answer waits for somebody's next turn.
        turn_until(&mut manager, "recording", |m| m.recording.is_some());
        let child = manager.recording.as_ref().unwrap().save();
        let mut manager = next_program(manager);
        assert_eq!(manager.recording.as_ref().map(Attempt::save), Some(child));
        assert_eq!(state(&manager), WatchState::Trial);
        assert!(!manager.host.watchdog.as_ref().unwrap().is_withheld(), "fed until it is recorded");
        assert!(manager.watchdog_search.is_some());
        turn_until(&mut manager, "withheld", |m| m.host.watchdog.as_ref().unwrap().is_withheld());
        let record = store::Record::<BootRecord>::open(&disk.path().join("boot")).unwrap().unwrap();
        let why = "netd made no progress for 1 s of the trial".to_owned();
        assert_eq!(record.get().ended, Some(BootEnd::FailedTrial { why: why.clone() }));

        let manager = next_program(manager);
        assert!(manager.host.watchdog.as_ref().unwrap().is_withheld(), "and never fed again");
        assert!(manager.watchdog_search.is_none(), "nor another one looked for");
        let info = manager.watch.info(clock::now());
        assert_eq!((info.state, info.reason), (WatchState::Withheld, why));
        let lines = said(&manager).join("\n");
        assert_eq!(lines.matches("the trial has failed").count(), 1, "{lines}");
        assert_eq!(lines.matches("not fed any more").count(), 1, "{lines}");
        manager.signal(manager.supervisor.find("netd").unwrap(), Signal::SIGKILL);
    }

    #[test]
    fn what_a_service_that_is_none_any_more_had_goes_with_it() {
        let _alone = the_only_manager();
        let dir = TestDir::new();
        let file = dir.path().join("netd.toml");
        let keys = "command = ['/bin/sleep', '1000']\nfence = true\nkeeps_memory = true\n";
        fs::write(&file, keys).unwrap();
        let mut manager = manager(&dir, Memory::default(), false, None);
        turn_until(&mut manager, "started", |m| m.processes.iter().all(Option::is_some));
        let id = manager.supervisor.find("netd").unwrap();
        let pid = manager.pid_of(id).unwrap();
        // On an interface that no kernel has: its deletion finds nothing, with and without privileges.
        let interface = InterfaceRef { index: 0x7fff_fff0, name: "ek-nowhere".to_owned() };
        let address = [FenceAddress { address: "10.9.0.1".parse().unwrap(), prefix: 32 }];
        let until = clock::now() + PATIENCE;
        let caller = Caller { service: id, pid, client: 0 };
        manager.fence.register(caller, until.as_nanos(), &interface, &address).unwrap();
        let netlink = manager.fence.netlink().unwrap().save();
        manager.store.keep(id, sys::memfd::sealed(c"kept", b"x").unwrap()).unwrap();

        let manager = next_program(manager);
        let left = manager.fence_info().left_ms.unwrap();
        assert!(left <= PATIENCE.as_millis() as u64, "{left} ms are more than at the beginning");
        assert_eq!(manager.fence_info().state, FenceState::Armed);
        assert_eq!(manager.fence.netlink().unwrap().save(), netlink, "nothing has to be opened");
        assert!(manager.store.take(id).is_some());

        fs::write(&file, keys.replace("keeps_memory = true", "")).unwrap();
        let manager = next_program(manager);
        assert!(manager.store.take(id).is_none(), "nobody would take it");

        fs::remove_file(&file).unwrap();
        let mut manager = next_program(manager);
        // Tests have threads that take the signal which tells of an orphan: look for it once it is there. It may have
        // been collected already.
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        manager.begin();
        turn_until(&mut manager, "deleted", |m| m.fence_info().state == FenceState::Idle);
        let said = said(&manager).join("\n");
        assert!(said.contains("netd is no service any more: killing it"), "{said}");
        assert!(clock::now() < until, "its word has ended before its deadline");
        assert_eq!(nix::sys::signal::kill(pid, None), Err(nix::errno::Errno::ESRCH), "deleted after its end");
        assert!(manager.fence_info().last.is_some());
    }

    #[test]
    fn only_the_recovery_prompt_refuses() {
        let _alone = the_only_manager();
        let (dir, lines) = (TestDir::new(), [Line::new()]);
        let recovery = on_lines(clock::now() + PATIENCE, &lines);
        let mut manager = manager(&dir, Memory::default(), true, Some(recovery));
        let refused = manager.begin_reexec(None, 0).unwrap_err();
        assert!(refused.contains("recovery prompt is on the console"), "{refused}");
        lines[0].type_keys("x\n");
        manager.recovery = None;
        assert_eq!(manager.may_hand_over(), Ok(()));
    }
}
