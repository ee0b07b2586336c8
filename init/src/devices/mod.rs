//! Drivers for the devices that a machine has: all there are at the start (coldplug), then whatever comes.
//!
//! ```text
//! kernel --uevents--> [socket] --> Work: a bounded queue, or a walk --fork--> child: /sys/bus/*/devices/*/modalias
//!                        |           ^                                         index, finit_module in its order
//!                        |           +------------- packets ---------------------+
//!                        +-- input devices: the power buttons are opened anew
//! ```
//! The socket is opened before the first walk, so that no device falls between the two. Messages that got lost, a full
//! queue and a change of PID 1 mean another walk: it is the truth, messages only say that something has changed. After
//! such a change the former program's child finds that nobody listens, ends behind the module it is at and is
//! collected; the walk leaves alone what is loaded by then. A module that hung is tried once more.
//!
//! | file | subject |
//! |---|---|
//! | `uevent`, `index`, `glob`, `report` | pure: the texts |
//! | `queue`, `work` | pure: what is done when |
//! | `socket`, `loader`, here | the kernel |
//!
//! It makes no device nodes (devtmpfs does), names nothing, runs nothing, and never unloads a module. What a machine
//! needs whatever it has is in `modules.list`.

mod glob;
mod index;
mod loader;
mod queue;
mod report;
mod socket;
mod uevent;
mod work;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;
use proto::time::Time;

use crate::clock;
use crate::klog::Log;
use crate::manager::Manager;
use crate::sys;
use loader::{Places, Unheard};
use queue::Job;
use report::REPORT_MAX;
use socket::{MESSAGE_MAX, Received, Uevents};
use work::{Note, Work};

/// Messages of the kernel taken in one turn; the others come with the next.
const UEVENTS_MAX: usize = 64;
/// Packets of the child taken in one turn.
const REPORTS_MAX: usize = 64;

/// The socket, the child and what waits for it.
pub(crate) struct Devices {
    /// Without it there is only the walk at the start.
    uevents: Option<Uevents>,
    work: Work,
    /// The children's packets come here.
    reports: OwnedFd,
    /// The children's end, kept so that `reports` stays in the poll loop from child to child.
    reporting: OwnedFd,
    /// The last child, until it is collected.
    child: Option<u32>,
    places: Places,
    /// The machine is going down.
    ending: bool,
}

impl Devices {
    /// Listens from now on, and asks for a walk. What cannot be had is said.
    pub(crate) fn open(log: &mut Log) -> Option<Devices> {
        let uevents = match Uevents::open() {
            Ok(uevents) => Some(uevents),
            Err(errno) => {
                log.error(format_args!("devices that come later get no drivers: {}", errno.desc()));
                None
            }
        };
        Devices::with(log, uevents, Places::of_machine())
    }

    fn with(log: &mut Log, uevents: Option<Uevents>, places: Places) -> Option<Devices> {
        // Packets: each is one report, whole.
        match socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC) {
            Ok((reports, reporting)) => {
                let mut work = Work::default();
                work.look_at_all();
                Some(Devices { uevents, work, reports, reporting, child: None, places, ending: false })
            }
            Err(errno) => {
                log.error(format_args!("devices get no drivers: no socket pair: {}", errno.desc()));
                None
            }
        }
    }

    /// What tells that [`Devices::turn`] has something to do.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.uevents.iter().map(AsFd::as_fd).chain([self.reports.as_fd()])
    }

    /// When [`Devices::turn`] is due whatever comes.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        if self.ending { None } else { self.work.next_wakeup() }
    }

    /// Takes in what the kernel and the child have said, a bounded part of it, and starts the next child when it is
    /// time. Never waits.
    pub(crate) fn turn(&mut self, now: Time, log: &mut Log) {
        self.hear_kernel();
        // A deadline is not missed because PID 1 was late to hear.
        if self.hear_child(now, log, REPORTS_MAX)
            && let Some(note) = self.work.overdue(now)
        {
            self.kill_child();
            say(log, &note);
        }
        if !self.ending
            && let Some((number, job)) = self.work.next_job(now)
        {
            match self.start(number, &job) {
                Ok(pid) => self.child = Some(pid),
                Err(error) => {
                    log.error(format_args!("devices: cannot fork: {}", sys::errno_text(&error)));
                    self.work.died();
                    // The next one may be possible.
                    self.work.look_at_all();
                }
            }
        }
    }

    /// Whether input devices have come or gone since the last call.
    pub(crate) fn take_input_changed(&mut self) -> bool {
        self.work.take_input_changed()
    }

    /// Process `pid` has ended and was collected.
    pub(crate) fn ended(&mut self, now: Time, pid: u32, log: &mut Log) {
        if self.child == Some(pid) {
            self.child = None;
            // Nobody writes any more: what it said last is all there is.
            while !self.hear_child(now, log, REPORTS_MAX) {}
            if let Some(note) = self.work.died().filter(|_| !self.ending) {
                say(log, &note);
            }
        }
    }

    /// Starts no child any more: the machine is going down.
    pub(crate) fn end(&mut self) {
        self.ending = true;
        self.kill_child();
    }

    fn kill_child(&self) {
        if let Some(pid) = self.child {
            // Not collected yet, so that the number is still its own.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    fn hear_kernel(&mut self) {
        let Some(uevents) = &self.uevents else { return };
        let mut buffer = [0; MESSAGE_MAX];
        for _ in 0..UEVENTS_MAX {
            match uevents.receive(&mut buffer) {
                Received::Message(length) => {
                    if let Some(event) = uevent::parse(buffer.get(..length).unwrap_or_default()) {
                        self.work.uevent(&event);
                    }
                }
                Received::Foreign => {}
                Received::Lost => self.work.look_at_all(),
                Received::Nothing => return,
            }
        }
    }

    /// Takes up to `max` packets; true when there are no more.
    fn hear_child(&mut self, now: Time, log: &mut Log, max: usize) -> bool {
        let mut packet = [0; REPORT_MAX];
        for _ in 0..max {
            match recv(self.reports.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    if let Some(note) = self.work.report(now, packet.get(..length).unwrap_or_default()) {
                        say(log, &note);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
        false
    }

    fn start(&self, number: u32, job: &Job) -> io::Result<u32> {
        let reporting = self.reporting.as_raw_fd();
        sys::child::fork_job(&[reporting], || {
            let say = |report: report::Report| {
                let packet = report.packet(number);
                let sent = send(reporting, packet.as_bytes(), MsgFlags::MSG_NOSIGNAL);
                sent.map(drop).map_err(|_| Unheard)
            };
            i32::from(loader::run(job, self.work.stuck(), &self.places, say).is_err())
        })
    }
}

fn say(log: &mut Log, note: &Note) {
    match note.is_bad() {
        true => log.warn(format_args!("{note}")),
        false => log.info(format_args!("{note}")),
    }
}

impl Manager {
    /// Does what is due for devices without an event, and what this turn's events, or a wait, have brought.
    pub(crate) fn devices_timeout(&mut self) {
        let Some(devices) = &mut self.host.devices else { return };
        let now = clock::now();
        if devices.next_wakeup().is_some_and(|at| at <= now) {
            devices.turn(now, &mut self.host.log);
        }
        if devices.take_input_changed() {
            self.reopen_buttons();
        }
    }

    /// Process `pid` has ended and was collected.
    pub(crate) fn devices_process_ended(&mut self, pid: u32) {
        if let Some(devices) = &mut self.host.devices {
            devices.ended(clock::now(), pid, &mut self.host.log);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::loader::tests::Tree;
    use super::*;
    use crate::host::Host;
    use std::time::Duration;

    /// Waits as a step of the boot does until the log has a line with `word`, for at most 30 s.
    fn until(host: &mut Host, word: &str) {
        let end = clock::now() + Duration::from_secs(30);
        while !said(host).iter().any(|line| line.contains(word)) {
            assert!(clock::now() < end, "no {word:?} in {:?}", said(host));
            host.pause(Duration::from_millis(10));
        }
    }

    fn said(host: &Host) -> Vec<String> {
        host.log.ring.last(100).into_iter().map(|line| line.text).collect()
    }

    fn open(host: &mut Host, tree: &Tree) -> Devices {
        Devices::with(&mut host.log, None, tree.places()).unwrap()
    }

    #[test]
    fn a_real_child_walks_and_serves() {
        let tree = Tree::new("m one.ko\nm two.ko\nm three.ko\npci:1 0\npci:2 1\npci:3 2\n");
        tree.module("one.ko", "");
        tree.module("two.ko", "19");
        tree.module("three.ko", "");
        tree.device("pci", "a", Some("pci:1"));
        tree.device("pci", "b", Some("pci:2"));
        let mut host = Host::new();
        host.devices = Some(open(&mut host, &tree));
        until(&mut host, "2 modaliases, 1 modules loaded");
        assert!(said(&host).contains(&"module two: No such device".to_owned()), "{:?}", said(&host));
        let message = b"add@/d\0ACTION=add\0SUBSYSTEM=pci\0MODALIAS=pci:3\0";
        host.devices.as_mut().unwrap().work.uevent(&uevent::parse(message).unwrap());
        until(&mut host, "1 modaliases, 1 modules loaded");
        assert_eq!(host.devices.unwrap().next_wakeup(), None);
    }

    #[test]
    fn a_child_that_hangs_is_killed_and_the_rest_is_loaded() {
        let tree = Tree::new("m bad.ko\nm good.ko\npci:1 0\npci:2 1\n");
        tree.module("bad.ko", "hang");
        tree.module("good.ko", "");
        tree.device("pci", "a", Some("pci:1"));
        tree.device("pci", "b", Some("pci:2"));
        let mut host = Host::new();
        let mut devices = open(&mut host, &tree);
        devices.turn(clock::now(), &mut host.log);
        let child = devices.child.unwrap();
        let reports = devices.reports.as_fd().try_clone_to_owned().unwrap();
        host.wait(&[reports.as_fd()], Some(clock::now() + Duration::from_secs(30)));
        devices.turn(clock::now(), &mut host.log);
        devices.turn(clock::now() + work::SILENCE_MAX, &mut host.log);
        assert!(said(&host).contains(&"module bad: not loaded within 30 s; going on without it".to_owned()));
        let pid = Pid::from_raw(child.cast_signed());
        let status = nix::sys::wait::waitpid(pid, None).unwrap();
        assert_eq!(status, nix::sys::wait::WaitStatus::Signaled(pid, Signal::SIGKILL, false));
        host.devices = Some(devices);
        until(&mut host, "2 modaliases, 1 modules loaded");
    }

    #[test]
    fn a_child_that_dies_is_said_when_it_is_collected() {
        let tree = Tree::new("m bad.ko\npci:1 0\n");
        tree.module("bad.ko", "hang");
        tree.device("pci", "a", Some("pci:1"));
        let mut host = Host::new();
        let mut devices = open(&mut host, &tree);
        devices.turn(clock::now(), &mut host.log);
        let child = devices.child.unwrap();
        devices.kill_child();
        nix::sys::wait::waitpid(Pid::from_raw(child.cast_signed()), None).unwrap();
        devices.ended(clock::now(), child + 1, &mut host.log);
        assert_eq!(devices.child, Some(child), "somebody else");
        devices.ended(clock::now(), child, &mut host.log);
        assert!(said(&host).iter().any(|line| line.contains("died")), "{:?}", said(&host));
        devices.end();
        devices.work.look_at_all();
        devices.turn(clock::now() + Duration::from_secs(9), &mut host.log);
        assert_eq!((devices.child, devices.next_wakeup()), (None, None), "the machine is going down");
    }
}
