//! One VIP in the eyes of one node: what this node does about it.
//!
//! ```text
//!             placed on a port of ours          unanswered                     every live peer knows,
//!   Backup ------------------------> Probing ------------> Claiming -----------nobody has a better right-----> Holding
//!     ^ ^                               |                   |    ^                                            |   |
//!     | |                      answered |      two beats,   |    | unanswered                   port went out |   |
//!     | |                               v    someone silent v    |                         other own port: move   |
//!     | +----- time is over ------- Waiting <-answered- Rechecking                                                |
//!     |                                                                                                           |
//!     +--- a live holder, a better claim, our port went out (from any state) <---- no other port, a better right -+
//! ```
//! - **Probing** comes before claiming, because a silent holder may be alive on the LAN. Once begun, a take is given up only
//!   for the reasons in the last line, not because placement meanwhile prefers another port: views change while VIPs of a lost
//!   node find new places, and two nodes that keep handing a VIP to each other serve nobody.
//! - **Claiming** ends when all live peers have *seen* the claim: a peer that has seen it will not start one of its own, and one
//!   that holds the VIP says so in the same message. A peer that is silent for two beats is worked around by **Rechecking**:
//!   probing once more right before the take.
//! - **Holding** ends by the holder's own decision or for a better right: higher epoch, then lower node name.
//!
//! An adopted VIP (on our port when netd started) is held with epoch 0 until the start quarantine is over: whoever took it while we
//! were away has the better right.

use crate::event::{DropCause, Event, Hindrance, MoveCause, Rival, TakeCause};
use crate::io::{Mac, Outbox, Output};
use crate::tempo::Tempo;
use core::time::Duration;
use proto::cluster::{NodeName, PortId, PortName, VipName};
use proto::time::Time;

/// What this node does about a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing.
    Backup,
    /// Asks the LAN whether anybody has it; without an answer from the shell until `until` the attempt has failed.
    Probing { port: PortName, attempt: u32, until: Time },
    /// Has found nobody and tells the peers. `told`: the status that did, and when patience with silent peers ends.
    /// `cleared`: patience ended and the LAN was asked again, so the peers need not answer any more.
    Claiming { port: PortName, epoch: u64, told: Option<Told>, cleared: bool },
    /// Has waited for silent peers long enough and asks the LAN again; still claims.
    Rechecking { port: PortName, epoch: u64, attempt: u32, until: Time },
    /// Has it. `unapplied`: the kernel's answer to the last Add is awaited until then.
    Holding { port: PortName, epoch: u64, since: Time, unapplied: Option<Time>, contest: Contest },
    /// Should take it but was hindered; tries again at `until`.
    Waiting { port: PortName, cause: Hindrance, until: Time },
}

/// The status message that carried a claim first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) sequence: u64,
    pub(crate) until: Time,
}

/// Others that have a held VIP too, by lesser right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contest {
    /// When the LAN was last told that we have it, against a rival.
    pub(crate) announced: Option<Time>,
    /// A live peer says that it holds it, too.
    pub(crate) open: bool,
}

/// The last station that claimed a held VIP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) mac: Mac,
    pub(crate) at: Time,
    pub(crate) times: u64,
}

/// Everything this node knows of one VIP.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: VipName,
    pub(crate) role: Role,
    /// When the role was entered.
    pub(crate) since: Time,
    /// The highest epoch heard of or used.
    pub(crate) top_epoch: u64,
    /// Who held it last, as far as known.
    pub(crate) last: Option<PortId>,
    /// Since when `last` has held it.
    pub(crate) held_since: Time,
    /// Since when and why nobody is known to hold it; `None` while somebody does.
    pub(crate) unserved: Option<(Time, TakeCause)>,
    /// Length of the next wait; grows with each hindrance.
    retry: Duration,
    pub(crate) conflict: Option<Seen>,
    /// The last reason told for having no place, so that it is told once.
    pub(crate) unplaceable: Option<String>,
}

impl Record {
    pub(crate) fn new(name: VipName, now: Time, tempo: Tempo) -> Record {
        Record {
            name,
            role: Role::Backup,
            since: now,
            top_epoch: 0,
            last: None,
            held_since: now,
            unserved: Some((now, TakeCause::NeverHeld)),
            retry: tempo.retry_first(),
            conflict: None,
            unplaceable: None,
        }
    }

    fn enter(&mut self, now: Time, role: Role) {
        self.role = role;
        self.since = now;
    }

    /// The port and epoch by which this node holds it.
    pub(crate) fn holding(&self) -> Option<(&PortName, u64)> {
        match &self.role {
            Role::Holding { port, epoch, .. } => Some((port, *epoch)),
            _ => None,
        }
    }

    /// The port and epoch by which this node claims it.
    pub(crate) fn claim(&self) -> Option<(&PortName, u64)> {
        match &self.role {
            Role::Claiming { port, epoch, .. } | Role::Rechecking { port, epoch, .. } => Some((port, *epoch)),
            _ => None,
        }
    }

    /// The own port this node has it on or is about to take it to.
    pub(crate) fn port(&self) -> Option<&PortName> {
        match &self.role {
            Role::Backup => None,
            Role::Probing { port, .. }
            | Role::Claiming { port, .. }
            | Role::Rechecking { port, .. }
            | Role::Holding { port, .. }
            | Role::Waiting { port, .. } => Some(port),
        }
    }

    /// When this VIP needs attention if nothing is heard.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Probing { until, .. } | Role::Rechecking { until, .. } | Role::Waiting { until, .. } => {
                Some(*until)
            }
            Role::Claiming { told, .. } => told.map(|told| told.until),
            Role::Backup | Role::Holding { .. } => None,
        }
    }

    /// Somebody holds it: the next time it is lost the first attempt comes at once.
    pub(crate) fn served_by(&mut self, now: Time, holder: PortId, tempo: Tempo) {
        if self.unserved.is_some() || self.last.as_ref() != Some(&holder) {
            self.last = Some(holder);
            self.held_since = now;
        }
        self.unserved = None;
        self.retry = tempo.retry_first();
        self.unplaceable = None;
    }

    /// Gives a take up. Nothing is on the port yet.
    pub(crate) fn stand_back(&mut self, now: Time) {
        self.enter(now, Role::Backup);
    }

    /// Backup, Claiming -> Probing, Rechecking.
    pub(crate) fn probe(&mut self, now: Time, tempo: Tempo, port: PortName, attempt: u32, out: &mut Outbox) {
        let until = now + tempo.probe_patience();
        out.push(Output::Probe { vip: self.name.clone(), port: port.clone(), attempt });
        let role = match self.claim() {
            Some((_, epoch)) => Role::Rechecking { port, epoch, attempt, until },
            None => Role::Probing { port, attempt, until },
        };
        self.enter(now, role);
    }

    /// The LAN's answer to `attempt`; one that is not awaited changes nothing.
    pub(crate) fn probe_done(
        &mut self,
        now: Time,
        tempo: Tempo,
        rank: usize,
        attempt: u32,
        answered: Option<Mac>,
        out: &mut Outbox,
    ) {
        let next = match &self.role {
            Role::Probing { port, attempt: awaited, .. } if *awaited == attempt => {
                let epoch = self.top_epoch.saturating_add(1);
                Role::Claiming { port: port.clone(), epoch, told: None, cleared: false }
            }
            Role::Rechecking { port, epoch, attempt: awaited, .. } if *awaited == attempt => {
                Role::Claiming { port: port.clone(), epoch: *epoch, told: None, cleared: true }
            }
            _ => return,
        };
        match answered {
            None => self.enter(now, next),
            Some(mac) => self.wait(now, tempo, rank, Hindrance::ProbeAnswered { mac }, out),
        }
    }

    /// Probing, Rechecking -> Waiting, twice as long as the last time.
    pub(crate) fn wait(&mut self, now: Time, tempo: Tempo, rank: usize, cause: Hindrance, out: &mut Outbox) {
        let Some(port) = self.port().cloned() else { return };
        let retry_in = self.retry + tempo.retry_stagger(rank);
        self.retry = (2 * self.retry).min(tempo.lease);
        let event = Event::VipWaiting { vip: self.name.clone(), port: port.clone(), cause, retry_in };
        out.event(event);
        self.enter(now, Role::Waiting { port, cause, until: now + retry_in });
    }

    /// A status with this node's claim has left.
    pub(crate) fn claim_told(&mut self, now: Time, tempo: Tempo, sequence: u64) {
        if let Role::Claiming { told: told @ None, .. } = &mut self.role {
            *told = Some(Told { sequence, until: now + tempo.claim_patience() });
        }
    }

    /// Claiming -> Holding; also from Backup, for a leftover.
    pub(crate) fn take(
        &mut self,
        now: Time,
        tempo: Tempo,
        at: PortId,
        epoch: u64,
        leftover: bool,
        out: &mut Outbox,
    ) {
        let (since, cause) = self.unserved.clone().unwrap_or((now, TakeCause::NeverHeld));
        let cause = if leftover { TakeCause::Leftover } else { cause };
        self.top_epoch = self.top_epoch.max(epoch);
        let contest = Contest::default();
        let port = at.port.clone();
        self.enter(
            now,
            Role::Holding {
                port: port.clone(),
                epoch,
                since: now,
                unapplied: Some(now + tempo.lease),
                contest,
            },
        );
        out.push(Output::Add { vip: self.name.clone(), port: port.clone() });
        out.push(Output::Announce { vip: self.name.clone(), port: port.clone() });
        let unserved_for = now - since;
        out.event(Event::VipTaken { vip: self.name.clone(), port, epoch, cause, unserved_for });
        self.served_by(now, at, tempo);
    }

    /// Holding -> Holding on another port of this node. The epoch stays: the holder does.
    pub(crate) fn move_to(
        &mut self,
        now: Time,
        tempo: Tempo,
        to: PortId,
        cause: MoveCause,
        out: &mut Outbox,
    ) {
        let Role::Holding { port: from, epoch, since, .. } = self.role.clone() else { return };
        out.push(Output::Remove { vip: self.name.clone(), port: from.clone() });
        out.push(Output::Add { vip: self.name.clone(), port: to.port.clone() });
        out.push(Output::Announce { vip: self.name.clone(), port: to.port.clone() });
        let held_for = now - since;
        out.event(Event::VipMoved {
            vip: self.name.clone(),
            from,
            to: to.port.clone(),
            epoch,
            cause,
            held_for,
        });
        let contest = Contest::default();
        let unapplied = Some(now + tempo.lease);
        self.enter(now, Role::Holding { port: to.port.clone(), epoch, since: now, unapplied, contest });
        self.served_by(now, to, tempo);
    }

    /// Holding -> Backup, address first. The event follows by [`tell_dropped`](Self::tell_dropped), which lets a late node
    /// remove everything before it says anything.
    pub(crate) fn remove(&mut self, now: Time, out: &mut Outbox) -> Option<Dropped> {
        let Role::Holding { port, epoch, since, .. } = self.role.clone() else { return None };
        out.push(Output::Remove { vip: self.name.clone(), port: port.clone() });
        self.enter(now, Role::Backup);
        self.unserved = Some((now, TakeCause::OwnDrop));
        Some(Dropped { vip: self.name.clone(), port, epoch, held_for: now - since })
    }

    /// Holding -> Backup.
    pub(crate) fn drop(&mut self, now: Time, cause: DropCause, out: &mut Outbox) {
        if let Some(dropped) = self.remove(now, out) {
            dropped.tell(cause, out);
        }
    }

    /// A live peer holds it by lesser right, or a station's frame claims it: tells the LAN again, but only so often.
    pub(crate) fn defend(&mut self, now: Time, tempo: Tempo, rival: Rival, out: &mut Outbox) {
        let Role::Holding { port, contest, .. } = &mut self.role else { return };
        match &rival {
            Rival::Node(_) => contest.open = true,
            Rival::Mac(mac) => {
                let times = self.conflict.map_or(0, |c| c.times).saturating_add(1);
                self.conflict = Some(Seen { mac: *mac, at: now, times });
            }
        }
        if contest.announced.is_some_and(|last| now - last < tempo.conflict_gap()) {
            return;
        }
        contest.announced = Some(now);
        let (vip, port) = (self.name.clone(), port.clone());
        out.push(Output::Announce { vip: vip.clone(), port: port.clone() });
        out.event(Event::VipConflict { vip, port, with: rival });
    }

    /// No live peer holds it any more: what the LAN last heard may have come from one that did.
    pub(crate) fn close_contest(&mut self, out: &mut Outbox) {
        if let Role::Holding { port, contest, .. } = &mut self.role
            && contest.open
        {
            contest.open = false;
            out.push(Output::Announce { vip: self.name.clone(), port: port.clone() });
        }
    }

    /// The list of addresses lacks this held VIP, although the kernel has acknowledged it: puts it back.
    pub(crate) fn repair(&mut self, now: Time, tempo: Tempo, out: &mut Outbox) {
        let Role::Holding { port, unapplied, .. } = &mut self.role else { return };
        if unapplied.is_some_and(|until| now < until) {
            return;
        }
        *unapplied = Some(now + tempo.lease);
        let (vip, port) = (self.name.clone(), port.clone());
        out.push(Output::Add { vip: vip.clone(), port: port.clone() });
        out.push(Output::Announce { vip: vip.clone(), port: port.clone() });
        out.event(Event::AddressRepaired { vip, port });
    }

    /// The kernel has put it on `port`.
    pub(crate) fn applied(&mut self, on: &PortName) {
        if let Role::Holding { port, unapplied, .. } = &mut self.role
            && port == on
        {
            *unapplied = None;
        }
    }

    /// The start quarantine is over and nobody has a better right: an adopted VIP becomes an ordinary one.
    pub(crate) fn confirm(&mut self) {
        if let Role::Holding { epoch: epoch @ 0, .. } = &mut self.role {
            self.top_epoch = self.top_epoch.saturating_add(1);
            *epoch = self.top_epoch;
        }
    }

    /// Nobody holds it any more: remembers since when and why. `me` and `alive` tell the reasons apart.
    pub(crate) fn unserved(&mut self, now: Time, me: &NodeName, silent_since: Option<Time>) {
        if self.unserved.is_some() {
            return;
        }
        let cause = match (&self.last, silent_since) {
            (None, _) => TakeCause::NeverHeld,
            (Some(last), _) if last.node == *me => TakeCause::OwnDrop,
            (Some(last), Some(_)) => TakeCause::HolderDown { node: last.node.clone() },
            (Some(last), None) => TakeCause::HolderDropped { node: last.node.clone() },
        };
        self.unserved = Some((silent_since.unwrap_or(now), cause));
    }
}

/// A VIP that was just removed.
#[derive(Debug)]
pub(crate) struct Dropped {
    vip: VipName,
    port: PortName,
    epoch: u64,
    held_for: Duration,
}

impl Dropped {
    pub(crate) fn tell(self, cause: DropCause, out: &mut Outbox) {
        let Dropped { vip, port, epoch, held_for } = self;
        out.event(Event::VipDropped { vip, port, epoch, cause, held_for });
    }
}
