//! One VIP in the eyes of one node: what this node does about it.
//!
//! ```text
//!           placed on a port of ours         nobody answers, every live peer knows
//!   Backup ------------------------> Claiming ----------------------------------> Holding --+
//!     ^ ^                            |   ^  | nobody answers, but a peer            |  ^    | port went out,
//!     | |            somebody answers|   |  | does not know: ask the LAN again,     |  +----+ another own port
//!     | |                            v   +--+ now or after two beats                |
//!     | +----- time is over ----- Waiting                                           |
//!     |                                                                             |
//!     +--- a live holder, a better claim, our port went out <-- no other own port, a better right
//! ```
//! - **Claiming** tells the peers and asks the LAN at the same time. The peers, because one that has *seen* the
//!   claim will not start one of its own, and one that holds the VIP says so in the message that acknowledges.
//!   The LAN, because a silent holder may be alive there. The LAN's answer must be fresh when the VIP is taken:
//!   two claimants that do not hear each other then still meet on the LAN. A live peer that does not
//!   acknowledge for two beats is worked around by asking the LAN alone.
//! - Once begun, a take is given up only for the reasons in the last line, not because placement meanwhile
//!   prefers another port: views change while VIPs of a lost node find new places, and two nodes that keep
//!   handing a VIP to each other serve nobody.
//! - **Holding** ends by the holder's own decision or for a better right: higher epoch, then lower node name.
//!
//! An adopted VIP (on our port when netd started) is held with epoch 0 until the start quarantine is over:
//! whoever took it while we were away has the better right.

use crate::event::{DropCause, Event, Hindrance, MoveCause, Rival, TakeCause};
use crate::io::{Mac, Outbox, Output};
use crate::tempo::Tempo;
use core::time::Duration;
use proto::cluster::{NodeName, PortId, PortName, VipName};
use proto::time::Time;

/// How often the LAN is told of a held VIP when nothing happens.
const REFRESH: Duration = Duration::from_secs(30);

/// What this node does about a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing.
    Backup,
    /// Tells the peers and asks the LAN. `told`: the status that carried the claim first.
    Claiming { port: PortName, epoch: u64, told: Option<Told>, probe: Probe },
    /// Has it. `unapplied`: the kernel's answer to the last Add is awaited until then. `announced`: when the
    /// LAN was told last.
    Holding {
        port: PortName,
        epoch: u64,
        since: Time,
        unapplied: Option<Time>,
        announced: Time,
        contest: Contest,
    },
    /// Should take it but was hindered; tries again at `until`.
    Waiting { port: PortName, cause: Hindrance, until: Time },
}

/// What the LAN said of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// The shell asks; without a result until `until` the attempt has failed.
    Asked { attempt: u32, until: Time },
    /// Nobody answered, at that time.
    Unanswered { at: Time },
}

/// The status message that carried a claim first, and when patience with peers that do not know it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) sequence: u64,
    pub(crate) until: Time,
}

/// Others that have a held VIP too, by lesser right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contest {
    /// When the LAN was last told that we have it, against a rival.
    pub(crate) defended: Option<Time>,
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
            Role::Claiming { port, epoch, .. } => Some((port, *epoch)),
            _ => None,
        }
    }

    /// The own port this node has it on or is about to take it to.
    pub(crate) fn port(&self) -> Option<&PortName> {
        match &self.role {
            Role::Backup => None,
            Role::Claiming { port, .. } | Role::Holding { port, .. } | Role::Waiting { port, .. } => {
                Some(port)
            }
        }
    }

    /// When this VIP needs attention if nothing is heard.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Claiming { probe: Probe::Asked { until, .. }, .. } | Role::Waiting { until, .. } => {
                Some(*until)
            }
            Role::Claiming { told, probe: Probe::Unanswered { .. }, .. } => told.map(|told| told.until),
            Role::Holding { announced, .. } => Some(*announced + REFRESH),
            Role::Backup => None,
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
        if self.role != Role::Backup {
            self.enter(now, Role::Backup);
        }
    }

    /// Backup -> Claiming; Claiming again with another question to the LAN. The claim stays the same then.
    pub(crate) fn claim_and_ask(
        &mut self,
        now: Time,
        tempo: Tempo,
        port: PortName,
        attempt: u32,
        out: &mut Outbox,
    ) {
        out.push(Output::Probe { vip: self.name.clone(), port: port.clone(), attempt });
        let asked = Probe::Asked { attempt, until: now + tempo.probe_patience() };
        if let Role::Claiming { probe, .. } = &mut self.role {
            *probe = asked;
        } else {
            let epoch = self.top_epoch.saturating_add(1);
            self.enter(now, Role::Claiming { port, epoch, told: None, probe: asked });
        }
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
        let Role::Claiming { probe, .. } = &mut self.role else { return };
        if !matches!(probe, Probe::Asked { attempt: awaited, .. } if *awaited == attempt) {
            return;
        }
        match answered {
            None => *probe = Probe::Unanswered { at: now },
            Some(mac) => self.wait(now, tempo, rank, Hindrance::ProbeAnswered { mac }, out),
        }
    }

    /// Claiming -> Waiting, twice as long as the last time.
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
        let port = at.port.clone();
        self.hold(now, tempo, port.clone(), epoch);
        out.push(Output::Add { vip: self.name.clone(), port: port.clone() });
        out.push(Output::Announce { vip: self.name.clone(), port: port.clone() });
        let unserved_for = now - since;
        out.event(Event::VipTaken { vip: self.name.clone(), port, epoch, cause, unserved_for });
        self.served_by(now, at, tempo);
    }

    fn hold(&mut self, now: Time, tempo: Tempo, port: PortName, epoch: u64) {
        let unapplied = Some(now + tempo.lease);
        let contest = Contest::default();
        self.enter(now, Role::Holding { port, epoch, since: now, unapplied, announced: now, contest });
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
        self.hold(now, tempo, to.port.clone(), epoch);
        self.served_by(now, to, tempo);
    }

    /// Holding -> Backup, address first. The event follows by [`Dropped::tell`], which lets
    /// a late node remove everything before it says anything.
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

    /// A live peer holds it by lesser right, or a station's frame claims it: tells the LAN again, but only so
    /// often.
    pub(crate) fn defend(&mut self, now: Time, tempo: Tempo, rival: Rival, out: &mut Outbox) {
        let Role::Holding { port, contest, announced, .. } = &mut self.role else { return };
        match &rival {
            Rival::Node(_) => contest.open = true,
            Rival::Mac(mac) => {
                let times = self.conflict.map_or(0, |c| c.times).saturating_add(1);
                self.conflict = Some(Seen { mac: *mac, at: now, times });
            }
        }
        if contest.defended.is_some_and(|last| now - last < tempo.conflict_gap()) {
            return;
        }
        contest.defended = Some(now);
        *announced = now;
        let (vip, port) = (self.name.clone(), port.clone());
        out.push(Output::Announce { vip: vip.clone(), port: port.clone() });
        out.event(Event::VipConflict { vip, port, with: rival });
    }

    /// Tells the LAN again when it has not been told for long: a station may have learned from somebody whose
    /// address is gone since, and this node never heard of it.
    pub(crate) fn refresh(&mut self, now: Time, out: &mut Outbox) {
        if let Role::Holding { port, announced, .. } = &mut self.role
            && *announced + REFRESH <= now
        {
            *announced = now;
            out.push(Output::Announce { vip: self.name.clone(), port: port.clone() });
        }
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
