//! Carries out what [`Fence`] decides: kills by the process table, deletes by netlink, answers the control socket.
//!
//! From a missed deadline to the last deletion nothing here sets memory aside or waits for somebody else; what is said
//! about it is said after it is done.

use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;
use proto::control::{FenceAddress, FenceInfo, InterfaceRef, Reply};
use proto::time::Time;

use super::state::{Action, BATCH_MAX, Caller, Fence, Outcome, Pass, Refused, Saved};
use crate::clock;
use crate::manager::Manager;
use crate::sys;
use crate::sys::netlink::{DELETIONS_MAX, Deletion, Netlink};

/// Packets of the feeding connection read before its deadline is judged: more than its socket holds.
const FEEDS_MAX: usize = 512;
/// Failed passes between two lines in the log about them.
const SAY_EVERY: u32 = 100;

// One call deletes one batch.
const _: () = assert!(BATCH_MAX <= DELETIONS_MAX);

/// The fence and its way to the kernel.
pub(crate) struct Shell {
    fence: Fence,
    /// Opened ahead: when it is needed there may be no descriptor left.
    netlink: Result<Netlink, String>,
    /// Passes that left addresses behind since the last complete one.
    failures: u32,
}

impl Shell {
    /// Opens the netlink socket, unless another program has left one. Without one every registration is refused.
    pub(crate) fn open(left: Option<Netlink>) -> Shell {
        let netlink = left.map_or_else(Netlink::open, Ok).map_err(|error| sys::errno_text(&error));
        Shell { fence: Fence::new(), netlink, failures: 0 }
    }

    /// The netlink socket, if there is one.
    pub(crate) fn netlink(&self) -> Option<&Netlink> {
        self.netlink.as_ref().ok()
    }

    /// When [`Manager::fence_timeout`] is due.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        self.fence.next_wakeup()
    }

    /// The connection that may be silent for as long as its deadline lets it.
    pub(crate) fn feeder(&self) -> Option<u32> {
        self.fence.feeder()
    }

    /// A feed over the connection `client`.
    pub(crate) fn feed(&mut self, client: u32, until_ns: u64) {
        self.fence.feed(clock::now(), client, Time::from_nanos(until_ns));
    }

    /// Registers addresses; see [`Fence::register`].
    ///
    /// # Errors
    /// Words for the caller; nothing has changed then.
    pub(crate) fn register(
        &mut self,
        caller: Caller,
        until_ns: u64,
        interface: &InterfaceRef,
        addresses: &[FenceAddress],
    ) -> Result<Reply, String> {
        if let Err(why) = &self.netlink {
            // Who registers is about to rely on it.
            let again = Netlink::open();
            let why = format!("init could not delete them again, it has no netlink socket: {why}");
            self.netlink = Ok(again.map_err(|_| why)?);
        }
        let until = Time::from_nanos(until_ns);
        accepted(self.fence.register(clock::now(), caller, until, interface, addresses))
    }

    /// Lets a new life answer for the addresses; see [`Fence::adopt`].
    ///
    /// # Errors
    /// Words for the caller; nothing has changed then.
    pub(crate) fn adopt(&mut self, caller: Caller, until_ns: u64) -> Result<Reply, String> {
        accepted(self.fence.adopt(clock::now(), caller, Time::from_nanos(until_ns)))
    }

    /// Forgets addresses; see [`Fence::release`].
    ///
    /// # Errors
    /// Words for the caller; nothing has changed then.
    pub(crate) fn release(
        &mut self,
        caller: Caller,
        index: u32,
        addresses: &[FenceAddress],
    ) -> Result<Reply, String> {
        accepted(self.fence.release(caller, index, addresses))
    }

    /// Deletes one batch.
    fn delete_batch(&mut self) -> Pass {
        let mut slots = [0; BATCH_MAX];
        let mut outcomes = [Outcome::Failed(Errno::ENOTCONN as i32); BATCH_MAX];
        let mut count = 0;
        if let Ok(netlink) = &mut self.netlink {
            count = delete(netlink, &self.fence, &mut slots, &mut outcomes);
        }
        for (slot, outcome) in slots.iter().zip(outcomes).take(count) {
            self.fence.answered(*slot, outcome);
        }
        self.fence.batch_done(clock::now())
    }
}

/// Deletes the fence's batch: each address on the interface with the registered index, and when it is not there, on
/// the one that has the registered name by now. Returns how many slots and outcomes it has filled in.
fn delete(
    netlink: &mut Netlink,
    fence: &Fence,
    slots: &mut [usize; BATCH_MAX],
    outcomes: &mut [Outcome; BATCH_MAX],
) -> usize {
    const NOTHING: Deletion =
        Deletion { index: 0, address: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), prefix: 0 };
    let mut list = [NOTHING; BATCH_MAX];
    let mut count = 0;
    for ((target, slot), entry) in fence.batch().zip(slots.iter_mut()).zip(list.iter_mut()) {
        let FenceAddress { address, prefix } = target.address;
        *slot = target.slot;
        *entry = Deletion { index: target.interface.index, address, prefix };
        count += 1;
    }
    let results = netlink.delete(list.get(..count).unwrap_or_default());
    for (outcome, errno) in outcomes.iter_mut().zip(results) {
        *outcome = outcome_of(errno);
    }
    // Entries are in the order of their interfaces: each name is looked up once.
    let mut looked_up: Option<(u32, Option<u32>)> = None;
    for ((target, outcome), entry) in fence.batch().zip(outcomes.iter_mut()).zip(list) {
        if *outcome != Outcome::Absent {
            continue;
        }
        let InterfaceRef { index, name } = target.interface;
        let now = match looked_up {
            Some((of, now)) if of == *index => now,
            _ => if_nametoindex(name.as_str()).ok(),
        };
        looked_up = Some((*index, now));
        if let Some(now) = now.filter(|now| now != index) {
            *outcome = outcome_of(netlink.delete(&[Deletion { index: now, ..entry }])[0]);
        }
    }
    count
}

fn outcome_of(errno: i32) -> Outcome {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno if errno == 0 => Outcome::Deleted,
        // No such address, no such interface, the interface or the kernel without this family.
        Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENXIO | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => {
            Outcome::Absent
        }
        _ => Outcome::Failed(errno),
    }
}

fn accepted(result: Result<(), Refused>) -> Result<Reply, String> {
    result.map(|()| Reply::Accepted).map_err(|refused| refused.to_string())
}

impl Manager {
    /// Does what is due about the fence. What the feeding connection has sent is heard first: a deadline is not
    /// missed because init was late.
    pub(crate) fn fence_timeout(&mut self) {
        let due = |m: &Manager| m.fence.next_wakeup().is_some_and(|t| t <= clock::now());
        if due(self)
            && let Some(client) = self.fence.feeder()
        {
            for _ in 0..FEEDS_MAX {
                if !due(self) || !self.serve(client) {
                    break;
                }
            }
        }
        let action = self.fence.fence.handle_timeout(clock::now());
        self.fence_perform(action);
    }

    /// Deletes all registered addresses, after killing who answers for them.
    pub(crate) fn fence_now(&mut self) {
        let action = self.fence.fence.fence_now(clock::now());
        self.fence_perform(action);
    }

    /// The fence, for people.
    pub(crate) fn fence_info(&self) -> FenceInfo {
        self.fence.fence.info(clock::now(), self.fenced_service())
    }

    /// The fence, for another program. How often it has failed to delete does not go along: that is said once more.
    pub(crate) fn fence_save(&self) -> Saved {
        self.fence.fence.save(self.fenced_service())
    }

    /// Goes on with the fence that another program has left.
    pub(crate) fn fence_resume(&mut self, saved: &Saved) {
        self.fence.fence = Fence::resume(clock::now(), saved, |name| self.supervisor.find(name));
    }

    fn fenced_service(&self) -> Option<&str> {
        let id = self.fence.fence.service()?;
        self.supervisor.unit(id).map(|unit| unit.name.as_str())
    }

    /// The process `pid` has ended and was collected; also one whose service is none any more.
    pub(crate) fn fence_process_ended(&mut self, pid: u32) {
        let action = self.fence.fence.process_ended(clock::now(), pid);
        self.fence_perform(action);
    }

    fn fence_perform(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Kill { service, pid } => {
                if self.pid_of(service) == Some(pid) {
                    self.signal(service, Signal::SIGKILL);
                    let name = self.supervisor.unit(service).map_or("", |u| u.name.as_str());
                    self.host.log.error(format_args!(
                        "{name}: has missed its fence deadline; killed process {pid}, {} addresses go with it",
                        self.fence.fence.count()
                    ));
                } else {
                    // It has ended and that was not told: then there is nothing to wait for.
                    self.fence_process_ended(pid);
                }
            }
            Action::Delete => self.fence_delete(),
        }
    }

    fn fence_delete(&mut self) {
        match self.fence.delete_batch() {
            Pass::More => {}
            Pass::Done(report) => {
                self.fence.failures = 0;
                self.host.log.error(format_args!(
                    "fence: {} addresses deleted, {} were not there; the last one {} after the deadline",
                    report.deleted,
                    report.absent,
                    milliseconds(Duration::from_micros(report.took_us))
                ));
            }
            Pass::Again(Some(errno)) => {
                if self.fence.failures.is_multiple_of(SAY_EVERY) {
                    let why = Errno::from_raw(errno).desc();
                    self.host.log.error(format_args!(
                        "fence: addresses are left that may be answered for twice: {why}; trying again"
                    ));
                }
                self.fence.failures = self.fence.failures.saturating_add(1);
            }
            Pass::Again(None) => {}
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{}.{:03} ms", time.as_millis(), time.as_micros() % 1000)
}
