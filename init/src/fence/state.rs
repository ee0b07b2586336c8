//! What is registered, who answers for it until when, and what follows a missed deadline. Pure: time and events in,
//! an [`Action`] out.
//!
//! ```text
//!         register                     deadline missed
//! Idle ------------> Armed -------------------------------> Killing --its process has ended----> Deleting
//!  ^  ^                |  ^  \ its process ended               |  ^                              |  |
//!  |  | all released   |  |   v                                |  +-- still there after a pass ---+  |
//!  |  +----------------+  | Orphaned --deadline missed---------|---------------------------------^  |
//!  |                      |    |                               +-- REAP_MAX passed --------------^  |
//!  |                      |    |                                                                    |
//!  |     next life adopts +----+                                                                    |
//!  +-------------------------------------------------------------- every address is gone -----------+
//! ```
//! - *Adopt until the deadline*: the end of the service changes nothing about its addresses. Its next life may adopt
//!   them; if none has by the deadline they are deleted, and a process that has not adopted them is left alone.
//! - *Killing* is bounded: a process stuck in the kernel runs no more code of its own, but what it is in the middle of
//!   may still add an address. Its addresses are deleted after [`REAP_MAX`] all the same, and again until it is gone.
//! - *Deleting* goes in batches, so that other events get their turn. What the kernel does not delete is tried again;
//!   it is never given up, because an address that stays may be answered for twice.
//! - A feed's deadline is an instant, not a duration: one that lay in a queue does not last longer for that.
//! - *Another program* that takes over as PID 1 goes on in the same state, with the same instants ([`Saved`]).
//!
//! After registration nothing here sets memory aside.

use std::net::IpAddr;
use std::time::Duration;

use proto::control::{
    FENCE_ADDRESSES_MAX, FENCE_AHEAD_NS_MAX, FENCE_INTERFACES_MAX, FenceAddress, FenceInfo, FenceReport,
    FenceRow, FenceState, INTERFACE_NAME_MAX, InterfaceRef,
};
use proto::time::Time;
use serde::{Deserialize, Serialize};

use crate::service::ServiceId;

/// How long the end of a killed process is awaited before its addresses are deleted without it.
pub(crate) const REAP_MAX: Duration = Duration::from_millis(500);
/// Pause before what was not deleted is tried again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Addresses deleted before other events get their turn: about a millisecond.
pub(crate) const BATCH_MAX: usize = 64;

/// Who asks: the main process of a service that may, and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) service: ServiceId,
    pub(crate) pid: u32,
    /// The number of its connection.
    pub(crate) client: u32,
}

/// What the shell must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// Kill this process of the service, and tell its end.
    Kill { service: ServiceId, pid: u32 },
    /// Delete [`Fence::batch`] and tell each outcome, then [`Fence::batch_done`].
    Delete,
}

/// How the kernel answered a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Deleted,
    /// There is no such address, or no such interface any more.
    Absent,
    /// It may still be there; the errno.
    Failed(i32),
}

/// Why a request was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("addresses are being deleted; register again in a moment")]
    Busy,
    #[error("another service has {0} addresses registered")]
    Taken(usize),
    #[error("process {0} of the same service registered addresses and has not ended")]
    OtherProcess(u32),
    #[error("a deadline lies 1 ns to {max_s} s ahead on CLOCK_BOOTTIME; this one {what}")]
    Deadline { max_s: u64, what: &'static str },
    #[error("{0:?} with index {1} is no interface: 1 to 15 bytes of a name, index from 1 to 2147483647")]
    Interface(String, u32),
    #[error("prefix length {prefix} does not fit {address}")]
    Prefix { address: IpAddr, prefix: u8 },
    #[error("at most {FENCE_ADDRESSES_MAX} addresses are registered at one time; release some")]
    TooMany,
    #[error(
        "addresses on at most {FENCE_INTERFACES_MAX} interfaces are registered at one time; release some"
    )]
    TooManyInterfaces,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    #[default]
    Idle,
    /// `until`: when the owner's word ends.
    Armed { until: Time },
    /// `since`: the missed deadline. `until`: when to delete without waiting any longer.
    Killing { pid: u32, since: Time, until: Time },
    /// `cursor`: the first entry that was not looked at in this pass. `unreaped`: a killed process that has not ended.
    /// `retry`: when to begin the next pass.
    Deleting { since: Time, unreaped: Option<u32>, cursor: usize, retry: Option<Time> },
}

/// The process that answers for the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    /// The connection it feeds over. Numbers are not used again: when it has ended, nobody can feed over it.
    client: u32,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    service: ServiceId,
    /// `None` once its process has ended.
    holder: Option<Holder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Entry {
    /// A place in `Fence::interfaces`.
    interface: u8,
    address: FenceAddress,
    /// Deleted or absent in this pass.
    gone: bool,
}

impl Entry {
    fn key(&self) -> (u8, FenceAddress) {
        (self.interface, self.address)
    }
}

/// One address to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// Its place, for [`Fence::answered`].
    pub(crate) slot: usize,
    pub(crate) interface: &'a InterfaceRef,
    pub(crate) address: FenceAddress,
}

/// The fence of one machine.
pub(crate) struct Fence {
    state: State,
    owner: Option<Owner>,
    interfaces: Vec<InterfaceRef>,
    /// In the order of their keys.
    entries: Vec<Entry>,
    feeds: u64,
    deleted: u32,
    absent: u32,
    /// The last errno of this round of deletions.
    failed: Option<i32>,
    last: Option<FenceReport>,
}

/// All that another program needs to go on. The service by name: numbers may differ there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    state: State,
    service: Option<String>,
    holder: Option<Holder>,
    interfaces: Vec<InterfaceRef>,
    entries: Vec<Entry>,
    feeds: u64,
    deleted: u32,
    absent: u32,
    failed: Option<i32>,
    last: Option<FenceReport>,
}

impl Saved {
    /// Whether nothing is registered.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether a fence can go on from it.
    ///
    /// # Errors
    /// What contradicts itself.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let bounded =
            self.entries.len() <= FENCE_ADDRESSES_MAX && self.interfaces.len() <= FENCE_INTERFACES_MAX;
        let in_order = self.entries.is_sorted_by(|a, b| a.key() < b.key());
        let placed = self.entries.iter().all(|e| usize::from(e.interface) < self.interfaces.len());
        match () {
            () if !bounded => Err("it has more fenced addresses or interfaces than there may be"),
            () if !in_order => Err("its fenced addresses are not in their order"),
            () if !placed => Err("a fenced address is on an interface that it does not list"),
            () if self.is_idle() != self.entries.is_empty() => {
                Err("its fence has addresses without a deadline, or a deadline without addresses")
            }
            () => Ok(()),
        }
    }
}

/// What a pass over the addresses came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// More to do: ask for the next batch.
    More,
    /// All are gone.
    Done(FenceReport),
    /// Some are not: tried again after [`RETRY_AFTER`]. An errno, when the kernel refused.
    Again(Option<i32>),
}

impl Fence {
    /// Nothing registered.
    pub(crate) fn new() -> Fence {
        Fence {
            state: State::Idle,
            owner: None,
            interfaces: Vec::new(),
            entries: Vec::new(),
            feeds: 0,
            deleted: 0,
            absent: 0,
            failed: None,
            last: None,
        }
    }

    /// What another program needs to go on; `name` is that of [`Fence::service`].
    pub(crate) fn save(&self, name: Option<&str>) -> Saved {
        Saved {
            state: self.state,
            service: name.map(str::to_owned),
            holder: self.owner.and_then(|owner| owner.holder),
            interfaces: self.interfaces.clone(),
            entries: self.entries.clone(),
            feeds: self.feeds,
            deleted: self.deleted,
            absent: self.absent,
            failed: self.failed,
            last: self.last,
        }
    }

    /// Goes on from what another program has left; `find` gives the number of the service with this name. When there
    /// is no such service any more its word ends now; the shell has killed its process.
    pub(crate) fn resume(now: Time, saved: &Saved, find: impl Fn(&str) -> Option<ServiceId>) -> Fence {
        let mut entries = Vec::new();
        if !saved.entries.is_empty() {
            // As at a registration: nothing needs memory from here on.
            entries.reserve_exact(FENCE_ADDRESSES_MAX);
            entries.extend_from_slice(&saved.entries);
        }
        let owner = saved.service.as_deref().and_then(find);
        let mut fence = Fence {
            state: saved.state,
            owner: owner.map(|service| Owner { service, holder: saved.holder }),
            interfaces: saved.interfaces.clone(),
            entries,
            feeds: saved.feeds,
            deleted: saved.deleted,
            absent: saved.absent,
            failed: saved.failed,
            last: saved.last,
        };
        if let (None, State::Armed { until }) = (owner, saved.state) {
            let since = until.min(now);
            match saved.holder {
                Some(Holder { pid, .. }) => {
                    fence.state = State::Killing { pid, since, until: now + REAP_MAX };
                }
                // Asked for again by the next timeout, which is due at once.
                None => drop(fence.begin_pass(since, None)),
            }
        }
        fence
    }

    /// Registers `addresses` on `interface`, adopts what the service's former life registered, and feeds.
    ///
    /// # Errors
    /// The rule that is broken; nothing has changed then.
    pub(crate) fn register(
        &mut self,
        now: Time,
        caller: Caller,
        until: Time,
        interface: &InterfaceRef,
        addresses: &[FenceAddress],
    ) -> Result<(), Refused> {
        self.may_change(caller)?;
        word(now, until)?;
        let named = (1..=INTERFACE_NAME_MAX).contains(&interface.name.len())
            && interface.name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !named || interface.index == 0 || i32::try_from(interface.index).is_err() {
            let name = interface.name.chars().take(INTERFACE_NAME_MAX).collect();
            return Err(Refused::Interface(name, interface.index));
        }
        for FenceAddress { address, prefix } in addresses {
            if *prefix > if address.is_ipv4() { 32 } else { 128 } {
                return Err(Refused::Prefix { address: *address, prefix: *prefix });
            }
        }
        self.enter(interface, addresses)?;
        self.hold(caller, until);
        Ok(())
    }

    /// Lets `caller` answer for what its service's former life registered, and feeds.
    ///
    /// # Errors
    /// The rule that is broken; nothing has changed then.
    pub(crate) fn adopt(&mut self, now: Time, caller: Caller, until: Time) -> Result<(), Refused> {
        self.may_change(caller)?;
        word(now, until)?;
        self.hold(caller, until);
        Ok(())
    }

    /// Takes the word of the connection `client` that its service is alive until `until`; a word of more than the
    /// longest time counts for that. From a connection that did not register last it is nothing.
    pub(crate) fn feed(&mut self, now: Time, client: u32, until: Time) {
        if let State::Armed { until: deadline } = &mut self.state
            && self.owner.as_ref().is_some_and(|o| o.holder.is_some_and(|h| h.client == client))
        {
            *deadline = until.min(furthest(now));
            self.feeds = self.feeds.saturating_add(1);
        }
    }

    /// Forgets `addresses` on the interface `index`; the last one ends the deadline.
    ///
    /// # Errors
    /// The rule that is broken; nothing has changed then.
    pub(crate) fn release(
        &mut self,
        caller: Caller,
        index: u32,
        addresses: &[FenceAddress],
    ) -> Result<(), Refused> {
        self.may_change(caller)?;
        let Some(place) = self.interfaces.iter().position(|i| i.index == index) else { return Ok(()) };
        let Ok(place) = u8::try_from(place) else { return Ok(()) };
        for address in addresses {
            if let Ok(at) = self.find((place, *address)) {
                self.entries.remove(at);
            }
        }
        if self.entries.is_empty() {
            self.rest();
        }
        Ok(())
    }

    /// The process `pid` has ended and been collected: it can add no address any more.
    pub(crate) fn process_ended(&mut self, now: Time, pid: u32) -> Action {
        match &mut self.state {
            State::Armed { .. } => {
                if let Some(owner) = &mut self.owner
                    && owner.holder.is_some_and(|h| h.pid == pid)
                {
                    owner.holder = None;
                }
                self.handle_timeout(now)
            }
            State::Killing { pid: killed, since, .. } if *killed == pid => {
                let since = *since;
                self.begin_pass(since, None)
            }
            State::Deleting { unreaped: Some(killed), since, .. } if *killed == pid => {
                // What was deleted while it ended may be there again.
                let since = *since;
                self.begin_pass(since, None)
            }
            _ => Action::None,
        }
    }

    /// Ends the owner's word now: the machine goes down, or runs degraded.
    pub(crate) fn fence_now(&mut self, now: Time) -> Action {
        if let State::Armed { until } = &mut self.state {
            *until = (*until).min(now);
        }
        self.handle_timeout(now)
    }

    /// Does what is due at `now`.
    pub(crate) fn handle_timeout(&mut self, now: Time) -> Action {
        match self.state {
            State::Armed { until } if until <= now => match self.owner {
                Some(Owner { service, holder: Some(Holder { pid, .. }) }) => {
                    self.state = State::Killing { pid, since: until, until: now + REAP_MAX };
                    Action::Kill { service, pid }
                }
                _ => self.begin_pass(until, None),
            },
            State::Killing { pid, since, until } if until <= now => self.begin_pass(since, Some(pid)),
            State::Deleting { retry: Some(retry), .. } if retry > now => Action::None,
            State::Deleting { since, unreaped, retry: Some(_), .. } => {
                self.state = State::Deleting { since, unreaped, cursor: 0, retry: None };
                Action::Delete
            }
            State::Deleting { retry: None, .. } => Action::Delete,
            State::Idle | State::Armed { .. } | State::Killing { .. } => Action::None,
        }
    }

    /// When [`Fence::handle_timeout`] is due next; an instant in the past while there is a batch to delete.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        match self.state {
            State::Idle => None,
            State::Armed { until } | State::Killing { until, .. } => Some(until),
            State::Deleting { retry, .. } => Some(retry.unwrap_or(Time::ZERO)),
        }
    }

    /// The connection that feeds; it may be silent for as long as its deadline lets it.
    pub(crate) fn feeder(&self) -> Option<u32> {
        Some(self.owner.as_ref()?.holder?.client)
    }

    /// The addresses to delete now, [`BATCH_MAX`] at most.
    pub(crate) fn batch(&self) -> impl Iterator<Item = Target<'_>> {
        let from = match self.state {
            State::Deleting { cursor, retry: None, .. } => cursor,
            _ => self.entries.len(),
        };
        let left = self.entries.iter().enumerate().skip(from).filter(|(_, e)| !e.gone).take(BATCH_MAX);
        left.filter_map(|(slot, e)| {
            let interface = self.interfaces.get(usize::from(e.interface))?;
            Some(Target { slot, interface, address: e.address })
        })
    }

    /// The kernel's answer to the deletion of the address at `slot`.
    pub(crate) fn answered(&mut self, slot: usize, outcome: Outcome) {
        let (State::Deleting { cursor, .. }, Some(entry)) = (&mut self.state, self.entries.get_mut(slot))
        else {
            return;
        };
        *cursor = (*cursor).max(slot + 1);
        match outcome {
            Outcome::Failed(errno) => self.failed = Some(errno),
            Outcome::Deleted => {
                entry.gone = true;
                self.deleted = self.deleted.saturating_add(1);
            }
            Outcome::Absent => {
                entry.gone = true;
                self.absent = self.absent.saturating_add(1);
            }
        }
    }

    /// All answers of a batch are in. Returns what comes next.
    pub(crate) fn batch_done(&mut self, now: Time) -> Pass {
        let State::Deleting { since, unreaped, cursor, .. } = self.state else { return Pass::More };
        if self.entries.iter().skip(cursor).any(|e| !e.gone) {
            return Pass::More;
        }
        if self.entries.iter().any(|e| !e.gone) {
            self.state = State::Deleting { since, unreaped, cursor: 0, retry: Some(now + RETRY_AFTER) };
            return Pass::Again(self.failed.take());
        }
        if let Some(pid) = unreaped {
            self.state = State::Killing { pid, since, until: now + REAP_MAX };
            return Pass::Again(None);
        }
        let report = FenceReport {
            at_ms: now.as_nanos() / 1_000_000,
            deleted: self.deleted,
            absent: self.absent,
            took_us: u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX),
        };
        self.last = Some(report);
        self.rest();
        Pass::Done(report)
    }

    /// The service whose addresses these are.
    pub(crate) fn service(&self) -> Option<ServiceId> {
        self.owner.map(|owner| owner.service)
    }

    /// How many addresses are registered.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Everything, for people; `name` is that of [`Fence::service`].
    pub(crate) fn info(&self, now: Time, name: Option<&str>) -> FenceInfo {
        let (state, deadline) = match self.state {
            State::Idle => (FenceState::Idle, None),
            State::Armed { until } => {
                let held = self.owner.as_ref().is_some_and(|o| o.holder.is_some());
                (if held { FenceState::Armed } else { FenceState::Orphaned }, Some(until))
            }
            State::Killing { until, .. } => (FenceState::Killing, Some(until)),
            State::Deleting { retry, .. } => (FenceState::Deleting, retry),
        };
        let row = |e: &Entry| FenceRow { interface: e.interface, address: e.address };
        FenceInfo {
            state,
            service: name.map(str::to_owned),
            left_ms: deadline.map(|t| u64::try_from(t.since(now).as_millis()).unwrap_or(u64::MAX)),
            feeds: self.feeds,
            interfaces: self.interfaces.clone(),
            rows: self.entries.iter().map(row).collect(),
            last: self.last,
        }
    }

    /// Whether `caller` may register and release now.
    fn may_change(&self, caller: Caller) -> Result<(), Refused> {
        if matches!(self.state, State::Killing { .. } | State::Deleting { .. }) {
            return Err(Refused::Busy);
        }
        match &self.owner {
            Some(owner) if owner.service != caller.service => Err(Refused::Taken(self.entries.len())),
            Some(Owner { holder: Some(holder), .. }) if holder.pid != caller.pid => {
                Err(Refused::OtherProcess(holder.pid))
            }
            _ => Ok(()),
        }
    }

    /// Enters the addresses that are new. On an error none is.
    fn enter(&mut self, interface: &InterfaceRef, addresses: &[FenceAddress]) -> Result<(), Refused> {
        let known = self.interfaces.iter().position(|i| i.index == interface.index);
        let place = match known {
            Some(place) => place,
            None if self.interfaces.len() < FENCE_INTERFACES_MAX => self.interfaces.len(),
            // One whose addresses were all released makes room.
            None => (0..FENCE_INTERFACES_MAX)
                .find(|p| !self.entries.iter().any(|e| usize::from(e.interface) == *p))
                .ok_or(Refused::TooManyInterfaces)?,
        };
        let number = u8::try_from(place).map_err(|_| Refused::TooManyInterfaces)?;
        // What is counted here may name an address twice or one that is known: too many only by what is new.
        let new = |a: &&FenceAddress| known.is_none() || self.find((number, **a)).is_err();
        if self.entries.len() + addresses.iter().filter(new).count() > FENCE_ADDRESSES_MAX {
            return Err(Refused::TooMany);
        }
        if addresses.is_empty() {
            return Ok(());
        }
        // Once for all: nothing needs memory from here on.
        self.entries.reserve_exact(FENCE_ADDRESSES_MAX - self.entries.len());
        // A known one may have been renamed.
        match self.interfaces.get_mut(place) {
            Some(old) => old.clone_from(interface),
            None => self.interfaces.push(interface.clone()),
        }
        for address in addresses {
            if let Err(at) = self.find((number, *address)) {
                self.entries.insert(at, Entry { interface: number, address: *address, gone: false });
            }
        }
        Ok(())
    }

    /// Without addresses there is nothing to answer for, and no deadline.
    fn hold(&mut self, caller: Caller, until: Time) {
        if self.entries.is_empty() {
            return;
        }
        let holder = Some(Holder { pid: caller.pid, client: caller.client });
        self.owner = Some(Owner { service: caller.service, holder });
        self.state = State::Armed { until };
    }

    fn find(&self, key: (u8, FenceAddress)) -> Result<usize, usize> {
        self.entries.binary_search_by(|e| e.key().cmp(&key))
    }

    fn begin_pass(&mut self, since: Time, unreaped: Option<u32>) -> Action {
        for entry in &mut self.entries {
            entry.gone = false;
        }
        (self.deleted, self.absent, self.failed) = (0, 0, None);
        self.state = State::Deleting { since, unreaped, cursor: 0, retry: None };
        Action::Delete
    }

    fn rest(&mut self) {
        self.state = State::Idle;
        self.owner = None;
        self.entries.clear();
        self.interfaces.clear();
    }
}

/// Whether `until` is a word that can be taken at `now`.
fn word(now: Time, until: Time) -> Result<(), Refused> {
    let max_s = FENCE_AHEAD_NS_MAX / 1_000_000_000;
    match until {
        until if until <= now => Err(Refused::Deadline { max_s, what: "has passed" }),
        until if until > furthest(now) => Err(Refused::Deadline { max_s, what: "lies further ahead" }),
        _ => Ok(()),
    }
}

/// The longest word that is taken at `now`.
fn furthest(now: Time) -> Time {
    now + Duration::from_nanos(FENCE_AHEAD_NS_MAX)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// One for each state, with something in every field.
    pub(crate) fn all_saved() -> Vec<Saved> {
        let at = Time::from_nanos;
        // A new variant does not compile here: it belongs into the list below.
        let _ = |state| match state {
            State::Idle | State::Armed { .. } | State::Killing { .. } | State::Deleting { .. } => {}
        };
        let idle = Saved {
            feeds: 300,
            last: Some(FenceReport { at_ms: 1, deleted: 2, absent: 3, took_us: 4 }),
            ..Saved::default()
        };
        let entry = |address: &str, prefix, gone| {
            let address = FenceAddress { address: address.parse().expect("an address"), prefix };
            Entry { interface: 0, address, gone }
        };
        let armed = Saved {
            state: State::Armed { until: at(5) },
            service: Some("netd".to_owned()),
            holder: Some(Holder { pid: 7, client: 1 }),
            interfaces: vec![InterfaceRef { index: 2, name: "eth0".to_owned() }],
            entries: vec![entry("10.9.0.1", 32, false), entry("fd09::1", 128, true)],
            deleted: 1,
            absent: 2,
            failed: Some(16),
            ..idle.clone()
        };
        let with = |state| Saved { state, ..armed.clone() };
        let killing = with(State::Killing { pid: 7, since: at(5), until: at(6) });
        let deleting =
            with(State::Deleting { since: at(5), unreaped: Some(7), cursor: 1, retry: Some(at(8)) });
        let orphaned = Saved { holder: None, ..armed.clone() };
        vec![idle, armed, orphaned, killing, deleting]
    }
}

#[cfg(test)]
mod tests;
