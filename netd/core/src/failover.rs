//! Drives the parts: takes one input in, lets time pass, runs the decision pass, tells the peers.
//!
//! ```text
//!              all peers heard, or a lease passed              stood still for more than a lease
//!   Starting -------------------------------------> Ready ---------------------------------------> Late
//!      |                                              ^ |                                           |
//!      +-- Leave --> Leaving (from any) <-- Leave ----+ +<---------- half a lease ------------------+
//! ```
//! Only a `Ready` node takes VIPs. A `Starting` one keeps what it adopted. A node whose process stood still
//! cannot know what others did meanwhile: it removes its addresses before it says or does anything else.

use crate::decide::{Context, Vips};
use crate::event::{DropCause, Event};
use crate::io::{Input, Outbox, Output};
use crate::peers::{Peers, Received};
use crate::ports::Ports;
use crate::scope::Scope;
use crate::snapshot::{Ignored, Snapshot};
use crate::tempo::Tempo;
use core::fmt;
use proto::cluster::{ClusterFile, NodeName, PortName, VipName};
use proto::status::{Participation, PortState, Status};
use proto::time::{Duration, Time};
use std::collections::BTreeSet;

/// The node is not in the cluster file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownNode(pub NodeName);

impl fmt::Display for UnknownNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cluster file has no node {:?}; check the node's personality", self.0.0)
    }
}

impl core::error::Error for UnknownNode {}

/// A node's part in its failover group.
#[derive(Debug)]
pub struct Failover {
    pub(crate) scope: Scope,
    pub(crate) tempo: Tempo,
    pub(crate) incarnation: u64,
    pub(crate) ports: Ports,
    pub(crate) peers: Peers,
    pub(crate) vips: Vips,
    pub(crate) phase: Phase,
    pub(crate) ignored: Ignored,
    started: Time,
    /// When the core was called last.
    last: Time,
    /// This process paused: whatever the next input is, a decision is due.
    unexamined: bool,
    /// The first list of addresses has been acted on.
    addresses_known: bool,
    /// The first list of addresses, when it came before the list of ports, without which nothing can be
    /// adopted.
    leftovers: Option<BTreeSet<(VipName, PortName)>>,
    beat: Beat,
}

/// Whether this node takes VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting { until: Time },
    Ready,
    Late { until: Time },
    Leaving,
}

/// When and what peers were told.
#[derive(Debug)]
struct Beat {
    sequence: u64,
    sent: Option<Time>,
    /// When the next status is due although nothing changed.
    next: Time,
    /// The last status without what changes by itself.
    told: Option<Status>,
    /// The last status does not say what is the case, or a peer waits for an answer.
    stale: bool,
}

impl Failover {
    /// A core for node `me` that starts to listen at `now`.
    ///
    /// `incarnation` must be higher than in every earlier life of this node's netd: peers ignore a lower one
    /// for a lease.
    ///
    /// # Errors
    /// [`UnknownNode`] when the file has no node `me`.
    ///
    /// ```no_run
    /// # use proto::{cluster::ClusterFile, time::Time};
    /// # fn shell(config: ClusterFile, now: fn() -> Time) -> Result<(), netd_core::UnknownNode> {
    /// use netd_core::{Failover, Input, Outbox};
    /// let mut out = Outbox::new();
    /// let mut core = Failover::new(&config, "a1".into(), 1, now())?;
    /// core.handle(now(), Input::Ports(vec![/* from the kernel */]), &mut out);
    /// core.handle(now(), Input::Addresses(vec![/* from the kernel */]), &mut out);
    /// for output in out.drain() {
    ///     // carry it out, in order
    /// }
    /// // sleep until core.next_wakeup() or the next input, whichever comes first
    /// core.handle_timeout(now(), &mut out);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(
        config: &ClusterFile,
        me: NodeName,
        incarnation: u64,
        now: Time,
    ) -> Result<Failover, UnknownNode> {
        let Some(scope) = Scope::new(config, &me) else { return Err(UnknownNode(me)) };
        let tempo = Tempo::new(config.timing);
        Ok(Failover {
            tempo,
            incarnation,
            ports: Ports::new(&scope.file.nodes[&me], now),
            peers: Peers::new(&scope, tempo.lease),
            vips: Vips::new(&scope, now, tempo),
            phase: Phase::Starting { until: now + tempo.lease },
            ignored: Ignored::default(),
            started: now,
            last: now,
            unexamined: false,
            addresses_known: false,
            leftovers: None,
            beat: Beat { sequence: 0, sent: None, next: now, told: None, stale: false },
            scope,
        })
    }

    /// Takes one input in; puts what is to be done into `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        let now = self.enter(now, out);
        let mut decide = true;
        match input {
            Input::Ports(list) => {
                let mut events = Vec::new();
                self.ignored.inputs += self.ports.update(now, &list, &mut events);
                events.into_iter().for_each(|event| out.event(event));
                if let Some(list) = self.leftovers.take() {
                    self.adopt(now, &list, out);
                }
            }
            Input::Addresses(list) => self.addresses(now, list, out),
            Input::Peer { status } => decide = self.peer(now, &status, out),
            Input::PeerLost(node) => {
                self.peers.suspect(&node);
                decide = false;
            }
            Input::ProbeDone { vip, port: _, attempt, answered } => {
                self.with_vips(now, |vips, cx| vips.probe_done(cx, &vip, attempt, answered, out));
            }
            Input::Conflict { vip, mac } => self.vips.conflict(now, self.tempo, &vip, mac, out),
            Input::Applied { vip, port, operation, result } => {
                if self.is_own_address(&vip, &port) {
                    self.vips.applied(now, self.tempo, (vip, port), operation, result, out);
                }
            }
            Input::Leave => {
                self.phase = Phase::Leaving;
                for dropped in self.vips.remove_all(now, out) {
                    dropped.tell(DropCause::Leaving, out);
                }
                // The process may be gone before the next wakeup.
                self.beat.next = now;
            }
        }
        self.run(now, decide, out);
    }

    /// To be called when [`next_wakeup`](Self::next_wakeup) has come; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Time, out: &mut Outbox) {
        let now = self.enter(now, out);
        self.run(now, true, out);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, to be asked again after every call.
    /// `None`: nothing to do before the next input.
    pub fn next_wakeup(&self) -> Option<Time> {
        let deadlines = [
            // to end a port's hold-down
            self.ports.deadline(),
            // to declare a silent peer down
            self.peers.deadline(),
            // to end a probe, a claim, a wait or a refusal
            self.vips.deadline(),
            // to take part
            self.phase.deadline().filter(|_| self.complete()),
            // to beat, or to tell what changed
            self.next_status(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The state as rows.
    pub fn snapshot(&self, now: Time) -> Snapshot {
        Snapshot::of(self, now.max(self.last))
    }

    /// First thing in every call: how long did this process stand still?
    fn enter(&mut self, now: Time, out: &mut Outbox) -> Time {
        let now = now.max(self.last);
        let gap = now - self.last;
        self.last = now;
        if gap > self.tempo.lease {
            self.stood_still(now, gap, out);
        }
        if gap > self.tempo.excusable_gap() {
            self.peers.excuse(now, gap);
            self.vips.abandon_takes(now);
            self.unexamined = true;
        }
        now
    }

    fn stood_still(&mut self, now: Time, late_for: Duration, out: &mut Outbox) {
        let dropped = self.vips.remove_all(now, out);
        self.phase = match self.phase {
            Phase::Leaving => Phase::Leaving,
            Phase::Starting { .. } if !self.complete() => Phase::Starting { until: now + self.tempo.lease },
            Phase::Starting { until } => Phase::Late { until: until.max(now + self.tempo.late_quarantine()) },
            Phase::Ready | Phase::Late { .. } => Phase::Late { until: now + self.tempo.late_quarantine() },
        };
        out.event(Event::NodeLate { late_for, dropped: dropped.len() });
        dropped.into_iter().for_each(|dropped| dropped.tell(DropCause::Late, out));
    }

    /// Returns whether the status says anything that a decision may depend on.
    fn peer(&mut self, now: Time, status: &Status, out: &mut Outbox) -> bool {
        let mut events = Vec::new();
        let received = self.peers.receive(now, status, &self.scope, self.incarnation, &mut events);
        events.into_iter().for_each(|event| out.event(event));
        match received {
            Received::Stranger => self.ignored.strangers += 1,
            Received::Stale => self.ignored.stale += 1,
            Received::News { changed, answer, ignored } => {
                self.ignored.entries += ignored;
                self.beat.stale |= answer;
                return changed || self.vips.unsettled();
            }
        }
        false
    }

    fn addresses(&mut self, now: Time, list: Vec<(VipName, PortName)>, out: &mut Outbox) {
        let all = list.len();
        let list: BTreeSet<_> =
            list.into_iter().filter(|(vip, port)| self.is_own_address(vip, port)).collect();
        self.ignored.inputs += all.saturating_sub(list.len()) as u64;
        if self.addresses_known {
            self.with_vips(now, |vips, cx| vips.reconcile(cx, &list, out));
        } else if self.ports.known() {
            self.adopt(now, &list, out);
        } else {
            self.leftovers = Some(list);
        }
    }

    /// The first list of addresses of this life.
    fn adopt(&mut self, now: Time, list: &BTreeSet<(VipName, PortName)>, out: &mut Outbox) {
        self.addresses_known = true;
        self.with_vips(now, |vips, cx| {
            for (vip, port) in list {
                vips.adopt(cx, vip, port, out);
            }
        });
    }

    /// Whether the cluster file has this VIP, of any group, and this node has this port.
    fn is_own_address(&self, vip: &VipName, port: &PortName) -> bool {
        self.scope.file.vips.contains_key(vip)
            && self.scope.file.nodes.get(&self.scope.me).is_some_and(|node| node.ports.contains_key(port))
    }

    /// Both lists of the kernel were given: this node knows itself.
    fn complete(&self) -> bool {
        self.ports.known() && self.addresses_known
    }

    /// Lets time pass, decides, tells. `decide`: the input was news.
    fn run(&mut self, now: Time, mut decide: bool, out: &mut Outbox) {
        let mut events = Vec::new();
        self.ports.tick(now, &mut events);
        self.peers.tick(now, &mut events);
        decide |= !events.is_empty();
        events.into_iter().for_each(|event| out.event(event));
        decide |= self.pass_phase(now, out);
        decide |= core::mem::take(&mut self.unexamined);
        decide |= self.vips.deadline().is_some_and(|until| until <= now);
        if decide {
            self.with_vips(now, |vips, cx| vips.decide(cx, out));
            self.beat.stale |= self.complete() && self.beat.told.as_ref() != Some(&essence(self.status(now)));
        }
        if self.next_status().is_some_and(|due| due <= now) {
            self.vips.retry_removals(now, self.tempo, out);
            self.tell(now, out);
        }
    }

    /// Ends quarantines that are over; returns whether one did.
    fn pass_phase(&mut self, now: Time, out: &mut Outbox) -> bool {
        let over = match self.phase {
            Phase::Starting { until } => self.complete() && (now >= until || self.peers.all_heard()),
            Phase::Late { until } => now >= until,
            Phase::Ready | Phase::Leaving => false,
        };
        if over {
            self.phase = Phase::Ready;
            self.vips.confirm_all();
            out.event(Event::NodeReady { after: now - self.started });
        }
        over
    }

    /// When a status is due; never before this node knows itself.
    fn next_status(&self) -> Option<Time> {
        let soon = self.beat.sent.map_or(self.beat.next, |sent| sent + self.tempo.change_gap());
        let due = if self.beat.stale { self.beat.next.min(soon) } else { self.beat.next };
        self.complete().then_some(due)
    }

    fn tell(&mut self, now: Time, out: &mut Outbox) {
        self.beat.sequence += 1;
        let status = self.status(now);
        self.beat.sent = Some(now);
        self.beat.next = now + self.tempo.beat;
        self.beat.stale = false;
        self.beat.told = Some(essence(status.clone()));
        self.vips.claims_told(now, self.tempo, self.beat.sequence);
        out.push(Output::Broadcast(status));
    }

    fn status(&self, now: Time) -> Status {
        Status {
            node: self.scope.me.clone(),
            incarnation: self.incarnation,
            sequence: self.beat.sequence,
            participation: self.phase.participation(),
            ports: self.ports.reports(now),
            holds: self.vips.holds(),
            claims: self.vips.claims(),
            epochs: self.vips.lost_epochs(&self.peers.held()),
            refused: self.vips.refusals(),
            seen: self.peers.seen(),
        }
    }

    pub(crate) fn context(&self, now: Time) -> Context<'_> {
        Context {
            now,
            tempo: self.tempo,
            scope: &self.scope,
            ports: &self.ports,
            peers: &self.peers,
            incarnation: self.incarnation,
            participation: self.phase.participation(),
            held: self.peers.held(),
            claimed: self.peers.claimed(),
        }
    }

    fn with_vips(&mut self, now: Time, act: impl FnOnce(&mut Vips, &Context<'_>)) {
        // Taken out for the call, since the context borrows the rest.
        let mut vips = core::mem::take(&mut self.vips);
        act(&mut vips, &self.context(now));
        self.vips = vips;
    }
}

impl Phase {
    pub(crate) fn participation(self) -> Participation {
        match self {
            Phase::Starting { .. } => Participation::Starting,
            Phase::Ready => Participation::Ready,
            Phase::Late { .. } => Participation::Late,
            Phase::Leaving => Participation::Leaving,
        }
    }

    /// When it ends by itself.
    pub(crate) fn deadline(self) -> Option<Time> {
        match self {
            Phase::Starting { until } | Phase::Late { until } => Some(until),
            Phase::Ready | Phase::Leaving => None,
        }
    }
}

/// A status without what changes by itself: two of them are equal when there is nothing new to tell.
fn essence(mut status: Status) -> Status {
    status.sequence = 0;
    status.seen.clear();
    for report in &mut status.ports {
        if let PortState::Operative { for_ms } = &mut report.state {
            *for_ms = 0;
        }
    }
    status
}
