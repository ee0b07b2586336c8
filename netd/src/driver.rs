//! The loop around the core: feeds it what happened, carries out what it says, decides nothing.
//!
//! ```text
//! signals ─┐                          ┌─> netlink (add, remove; awaited in order)
//! peers ───┤   ┌──────┐   outputs     ├─> peers (broadcast)
//! LAN ─────┼──>│ core │──────────────>┼─> announcer, prober (schedules) ──> packet sockets
//! kernel ──┤   └──────┘               ├─> log
//! timers ──┘                          ├─> bus (rows, on change)
//!                                     └─> fence (before an address, after a beat, after a removal)
//! ```
//! Reports of the kernel only wake the loop; full lists decide. Carriers are looked at every 50 ms anyway, and every
//! 5 ms for 2 s after a report: the kernel may report a lost carrier up to a second late when another report preceded it.

use crate::addressing::Addressing;
use crate::announce::Announcer;
use crate::carrier::Carriers;
use crate::fence::{Fence, Place};
use crate::frames::{self, Saying};
use crate::lan::{Lan, Seen};
use crate::netlink::{Changes, Kernel, NetlinkError, host_prefix};
use crate::part::{News, PartFile};
use crate::peers::{Peers, PeersError};
use crate::ports::PortTable;
use crate::probe::{Prober, Step};
use crate::{bus, clock, events};
use ::bus::net1::NetState;
use daemon::{Progress, SIGN_OF_LIFE_EVERY};
use netd_core::{Failover, Input, Operation, Outbox, Output, UnknownNode};
use proto::cluster::{Guard, NodeName, PortName, VipName};
use proto::control::{FenceAddress, InterfaceRef};
use proto::part::NetdPart;
use proto::text::one_line;
use proto::time::{Duration, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// Between two looks at the carriers.
const LINK_POLL: Duration = Duration::from_millis(50);

/// The same after a report of the kernel, for [`LINK_POLL_FAST_FOR`].
const LINK_POLL_FAST: Duration = Duration::from_millis(5);

/// How long the kernel may hold back a second report.
const LINK_POLL_FAST_FOR: Duration = Duration::from_secs(2);

/// Between two full lists of links without a report or a difference.
const LINK_LIST: Duration = Duration::from_secs(1);

/// Between two lists of addresses without a report.
const ADDRESS_POLL: Duration = Duration::from_secs(10);

/// From a report to the list of addresses: many reports come together.
const ADDRESS_SETTLE: Duration = Duration::from_millis(20);

/// Until a port that could not be set up is tried again.
const SET_UP_RETRY: Duration = Duration::from_secs(1);

/// Between two looks at the part: a key that was taken out has its session cut well within a second.
const PART_POLL: Duration = Duration::from_millis(250);

/// Between two looks whether the bus has news.
const PUBLISH_GAP: Duration = Duration::from_millis(100);

/// Between two looks without an event: times of beats.
const PUBLISH_IDLE: Duration = Duration::from_secs(1);

/// Between two conflicts told of one VIP: whoever floods the LAN must not flood the core.
const CONFLICT_GAP: Duration = Duration::from_millis(100);

/// Peers' messages taken in one go, before timers: a peer is not judged late while its word waits here.
const PEER_BURST: usize = 256;

/// Sightings that wait for the loop; more on a LAN at once is a flood.
const SEEN_QUEUE: usize = 256;

/// Lists of links that may fail in a row before the daemon gives up and is started anew.
const LIST_FAILURES_MAX: u32 = 10;

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The kernel's lists cannot be had.
    #[error("the kernel does not tell its interfaces")]
    Kernel(#[from] NetlinkError),
    /// The peers cannot be talked to.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// This node does not belong any more. Its VIPs are given up.
    #[error(
        "node {node} was taken out of the roster; see \"keel roster show\", have it added with a new key to bring it back"
    )]
    Removed { node: NodeName },
    /// Signals cannot be had.
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
}

/// A port that has been set up.
#[derive(Debug)]
struct Configured {
    index: u32,
    /// It was administratively up when last looked at.
    up: bool,
    /// It had carrier then.
    carrier: bool,
    lan: Option<Lan>,
    /// It is to be set up again at this time.
    retry: Option<Time>,
}

/// Everything the loop owns.
pub(crate) struct Driver {
    part: NetdPart,
    file: PartFile,
    udp_port: u16,
    core: Failover,
    out: Outbox,
    kernel: Kernel,
    changes: watch::Receiver<Changes>,
    seen_changes: Changes,
    addressing: Addressing,
    fence: Fence,
    ports: PortTable,
    configured: BTreeMap<PortName, Configured>,
    peers: Peers,
    announcer: Announcer,
    prober: Prober,
    watched: Arc<BTreeSet<IpAddr>>,
    seen: mpsc::Receiver<Seen>,
    see: mpsc::Sender<Seen>,
    /// VIPs on own ports, as carried out.
    held: BTreeMap<VipName, PortName>,
    conflict_told: BTreeMap<VipName, Time>,
    state: watch::Sender<NetState>,
    next: Deadlines,
    fast_until: Time,
    carriers: Carriers,
    list_failures: u32,
}

/// When to do what the core does not know of.
struct Deadlines {
    /// A look at the carriers.
    links: Time,
    /// A full list of links.
    link_list: Time,
    addresses: Time,
    publish: Time,
    /// The next word to init that this loop turns.
    sign_of_life: Time,
    /// A look at the part.
    part: Time,
}

/// Whether the loop goes on.
enum Then {
    GoOn,
    /// Leave in order and start anew with another part.
    StartAnew,
    /// Leave in order: this node was taken out of the roster.
    Removed,
}

/// What ended a wait.
enum Wake {
    Leave,
    Peer(Input),
    Seen(Seen),
    Changed,
    Timer,
}

/// SIGTERM and SIGINT: both ask to leave.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn leave(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

impl Driver {
    /// A driver that has done nothing yet, and where the bus reads its rows.
    pub(crate) fn new(
        (file, part): (PartFile, NetdPart),
        incarnation: u64,
        (kernel, changes): (Kernel, watch::Receiver<Changes>),
        fence: Fence,
        udp_port: u16,
    ) -> Result<(Driver, watch::Receiver<NetState>), UnknownNode> {
        let now = clock::now();
        let core = Failover::new(&part.cluster, part.node.clone(), incarnation, now)?;
        let node = part.cluster.nodes.get(&part.node).ok_or_else(|| UnknownNode(part.node.clone()))?;
        let ports = PortTable::new(node);
        let addressing = Addressing::new(kernel.clone(), &part.cluster, &part.node);
        let watched = Arc::new(addressing.vip_addresses());
        let (state, reader) = watch::channel(NetState::default());
        let (see, seen) = mpsc::channel(SEEN_QUEUE);
        let driver = Driver {
            part,
            file,
            udp_port,
            core,
            out: Outbox::new(),
            kernel,
            changes,
            seen_changes: Changes::default(),
            addressing,
            fence,
            ports,
            configured: BTreeMap::new(),
            peers: Peers::none(),
            announcer: Announcer::default(),
            prober: Prober::default(),
            watched,
            seen,
            see,
            held: BTreeMap::new(),
            conflict_told: BTreeMap::new(),
            state,
            next: Deadlines {
                links: now,
                link_list: now,
                addresses: now + ADDRESS_POLL,
                publish: now,
                sign_of_life: now,
                part: now,
            },
            fast_until: now,
            carriers: Carriers::default(),
            list_failures: 0,
        };
        Ok((driver, reader))
    }

    /// Finds and sets up the ports, and tells the core what an earlier life left on them. After this the node is
    /// reachable and beats.
    pub(crate) async fn start(&mut self) -> Result<(), DriverError> {
        let links = self.kernel.links().await?;
        self.ports.update(&links);
        self.set_up_ports().await;
        // Now that the own address is there.
        self.peers = Peers::open(&self.part, self.udp_port)?;
        // The ports' state after they were set up: some have their carrier only now.
        let links = self.kernel.links().await?;
        self.ports.update(&links);
        self.set_up_ports().await;
        self.feed(Input::Ports(self.ports.status())).await;

        let found = self.addressing.inspect(&self.ports).await?;
        if let Err(error) = self.addressing.remove_strays(&found).await {
            tracing::warn!(%error, "an address of nobody stays");
        }
        for (vip, port) in &found.vips {
            if let Some(place) = self.place(vip, port) {
                self.fence.found(vip, port, place);
            }
        }
        self.held = found.vips.iter().cloned().collect();
        self.feed(Input::Addresses(found.vips)).await;
        self.publish(clock::now());
        Ok(())
    }

    /// Runs until a signal asks to leave, and leaves: VIPs are given up and everybody is told.
    pub(crate) async fn run(mut self, mut progress: Progress) -> Result<(), DriverError> {
        let mut signals = Signals::new().map_err(DriverError::Signals)?;
        let ended = loop {
            // The wait below ends at the next look at the links at the latest.
            if self.next.sign_of_life <= clock::now() {
                self.next.sign_of_life = clock::now() + SIGN_OF_LIFE_EVERY;
                progress.tell();
            }
            match self.wait(&mut signals).await {
                Wake::Leave => break Ok(()),
                Wake::Peer(input) => {
                    self.feed(input).await;
                    self.drain_peers().await;
                }
                Wake::Seen(seen) => {
                    self.sighted(seen).await;
                    for _ in 0..SEEN_QUEUE {
                        let Ok(seen) = self.seen.try_recv() else { break };
                        self.sighted(seen).await;
                    }
                }
                Wake::Changed => self.kernel_reported(),
                // A busy machine: what has arrived counts before what has not.
                Wake::Timer => self.drain_peers().await,
            }
            self.run_due().await?;
            match self.look_at_part()? {
                Then::GoOn => {}
                Then::StartAnew => break Ok(()),
                Then::Removed => break Err(DriverError::Removed { node: self.part.node.clone() }),
            }
        };
        tracing::info!("leaving");
        self.feed(Input::Leave).await;
        self.peers.close().await;
        ended
    }

    /// Takes over what provisiond has put into the part's place.
    fn look_at_part(&mut self) -> Result<Then, DriverError> {
        if clock::now() < self.next.part {
            return Ok(Then::GoOn);
        }
        self.next.part = clock::now() + PART_POLL;
        match self.file.look(&self.part) {
            Ok(None) => {}
            Ok(Some(News::Roster(roster))) => {
                tracing::info!(nodes = roster.len(), "another roster is in force");
                self.part.roster = roster;
                self.peers.replace_roster(&self.part, self.udp_port)?;
            }
            Ok(Some(News::Removed)) => return Ok(Then::Removed),
            Ok(Some(News::Other)) => {
                tracing::info!("another configuration is there, starting anew");
                return Ok(Then::StartAnew);
            }
            Err(error) => tracing::warn!("{}, going on as before", one_line(&error)),
        }
        Ok(Then::GoOn)
    }

    async fn wait(&mut self, signals: &mut Signals) -> Wake {
        let deadline = [
            self.core.next_wakeup(),
            self.announcer.next(),
            self.prober.next(),
            self.configured.values().filter_map(|c| c.retry).min(),
            Some(self.next.links),
            Some(self.next.addresses),
            Some(self.next.publish),
            Some(self.next.part),
        ];
        let deadline = deadline.into_iter().flatten().min().expect("some are always there");
        tokio::select! {
            biased;
            () = signals.leave() => Wake::Leave,
            input = self.peers.next() => Wake::Peer(input),
            Some(seen) = self.seen.recv() => Wake::Seen(seen),
            // An error: no reports any more. Polling goes on, at the timer's pace.
            Ok(()) = self.changes.changed() => Wake::Changed,
            () = sleep(clock::until(deadline)) => Wake::Timer,
        }
    }

    /// Does everything whose time has come.
    async fn run_due(&mut self) -> Result<(), DriverError> {
        if self.next.links <= clock::now() {
            self.look_at_links().await?;
        }
        if self.configured.values().any(|c| c.retry.is_some_and(|at| at <= clock::now())) {
            self.set_up_ports().await;
        }
        if self.next.addresses <= clock::now() {
            self.look_at_addresses().await;
        }
        let now = clock::now();
        if self.core.next_wakeup().is_some_and(|at| at <= now) {
            self.core.handle_timeout(now, &mut self.out);
            self.carry_out().await;
        }
        for step in self.prober.due(clock::now()) {
            self.probe_step(step).await;
        }
        for (vip, port) in self.announcer.due(clock::now()) {
            self.announce(&vip, &port);
        }
        let now = clock::now();
        if self.next.publish <= now {
            self.publish(now);
        }
        Ok(())
    }

    async fn drain_peers(&mut self) {
        for _ in 0..PEER_BURST {
            let Some(input) = self.peers.try_next() else { return };
            self.feed(input).await;
        }
    }

    /// One input, and everything that follows from it.
    async fn feed(&mut self, input: Input) {
        self.core.handle(clock::now(), input, &mut self.out);
        self.carry_out().await;
    }

    /// Carries the outputs out in order. What the kernel says to one may add more at the end.
    async fn carry_out(&mut self) {
        while let Some(output) = self.out.pop() {
            match output {
                Output::Broadcast(status) => {
                    let sent = clock::now();
                    self.peers.broadcast(&status);
                    self.fence.beat(sent, status.participation);
                }
                Output::Add { vip, port } => self.apply(vip, port, Operation::Add).await,
                Output::Remove { vip, port } => self.apply(vip, port, Operation::Remove).await,
                Output::Announce { vip, port } => self.announcer.start(clock::now(), &vip, &port),
                Output::Probe { vip, port, attempt } => {
                    self.prober.start(clock::now(), vip, port, attempt);
                }
                Output::Event(event) => {
                    events::log(&event);
                    self.next.publish = self.next.publish.min(clock::now() + PUBLISH_GAP);
                }
            }
        }
    }

    async fn apply(&mut self, vip: VipName, port: PortName, operation: Operation) {
        if operation == Operation::Remove {
            // Nothing may be announced once it is being taken away.
            self.announcer.stop(&vip);
        }
        let result = match (self.place(&vip, &port), operation) {
            (Some(place), Operation::Add) => self.add(&vip, &port, place).await,
            (Some(Place { interface, address }), Operation::Remove) => {
                self.addressing.remove_vip(address.address, interface.index).await
            }
            // An address cannot be on an interface that is not there.
            (None, Operation::Remove) => Ok(()),
            (None, Operation::Add) => {
                let what = format!("add {vip} to port {port}");
                Err(NetlinkError::Broken { what, reason: "the port has no interface".to_owned() })
            }
        };
        if operation == Operation::Remove && result.is_ok() {
            self.fence.removed(clock::now(), &vip, &port);
        }
        if let Err(error) = &result {
            tracing::warn!(%vip, %port, %error, "address not changed");
        } else if operation == Operation::Add {
            self.held.insert(vip.clone(), port.clone());
        } else if self.held.get(&vip) == Some(&port) {
            self.held.remove(&vip);
        }
        let result = result.map_err(|error| error.to_string());
        let input = Input::Applied { vip, port, operation, result };
        self.core.handle(clock::now(), input, &mut self.out);
    }

    /// Where a VIP is, or would be.
    fn place(&self, vip: &VipName, port: &PortName) -> Option<Place> {
        let (address, link) = self.addressing.vip(vip).zip(self.ports.link(port))?;
        let interface = InterfaceRef { index: link.index, name: link.name.clone() };
        Some(Place { interface, address: FenceAddress { address, prefix: host_prefix(address) } })
    }

    /// Registers a VIP with the fence and puts it onto its port. Without the fence only an `available` one.
    async fn add(&mut self, vip: &VipName, port: &PortName, place: Place) -> Result<(), NetlinkError> {
        let (index, address) = (place.interface.index, place.address.address);
        let available = self.part.cluster.vips.get(vip).is_some_and(|vip| vip.guard == Guard::Available);
        match self.fence.add(clock::now(), vip, port, place) {
            Err(error) if !available => {
                let what = format!("register {vip} with init");
                return Err(NetlinkError::Broken { what, reason: one_line(&error) });
            }
            Ok(()) | Err(_) => {}
        }
        self.addressing.add_vip(address, port, index).await
    }

    fn announce(&self, vip: &VipName, port: &PortName) {
        let Some(address) = self.addressing.vip(vip) else { return };
        let Some(mac) = self.ports.link(port).and_then(|link| link.mac) else { return };
        for frame in frames::announcements(mac, address) {
            // Repeated by its schedule; a port that is down announces when it is told so again.
            if let Err(error) = self.send(port, &frame) {
                tracing::debug!(%vip, %port, %error, "announcement not sent");
            }
        }
    }

    /// Tells the LAN of the port's own addresses. Peers that asked for them before they were there then need not wait
    /// until they ask again.
    fn announce_own(&self, port: &PortName) {
        let Some(mac) = self.ports.link(port).and_then(|link| link.mac) else { return };
        for frame in self.addressing.own(port).flat_map(|address| frames::announcements(mac, address)) {
            if let Err(error) = self.send(port, &frame) {
                tracing::debug!(%port, %error, "own address not announced");
            }
        }
    }

    async fn probe_step(&mut self, step: Step) {
        match step {
            Step::Ask { vip, port } => {
                let mac = self.ports.link(&port).and_then(|link| link.mac);
                let question =
                    self.addressing.vip(&vip).zip(mac).map(|(address, mac)| frames::probe(mac, address));
                let sent = match question {
                    Some(frame) => self.send(&port, &frame),
                    None => Err(io::ErrorKind::NotFound.into()),
                };
                if let Err(error) = sent {
                    // Silence would be taken for "nobody answers". No result makes the core try again.
                    tracing::debug!(%vip, %port, %error, "question not sent");
                    self.prober.cancel(&vip, &port);
                }
            }
            Step::Done { vip, port, attempt, answered } => {
                self.feed(Input::ProbeDone { vip, port, attempt, answered }).await;
            }
        }
    }

    fn send(&self, port: &PortName, frame: &[u8]) -> io::Result<()> {
        let lan = self.configured.get(port).and_then(|configured| configured.lan.as_ref());
        lan.ok_or(io::ErrorKind::NotConnected)?.send(frame)
    }

    /// Another station's frame about a VIP.
    async fn sighted(&mut self, Seen { port, sighting }: Seen) {
        if self.ports.is_own(sighting.mac) {
            return;
        }
        let Some(vip) = self.addressing.vip_at(sighting.address).cloned() else { return };
        if let Some(step) = self.prober.sighted(&vip, &port, sighting.mac) {
            self.probe_step(step).await;
        }
        let now = clock::now();
        let told = self.conflict_told.get(&vip);
        if sighting.saying == Saying::Uses
            && self.held.contains_key(&vip)
            && told.is_none_or(|told| now.since(*told) >= CONFLICT_GAP)
        {
            self.conflict_told.insert(vip.clone(), now);
            self.feed(Input::Conflict { vip, mac: sighting.mac }).await;
        }
    }

    fn kernel_reported(&mut self) {
        let changes = *self.changes.borrow_and_update();
        let now = clock::now();
        if changes.links != self.seen_changes.links {
            self.fast_until = now + LINK_POLL_FAST_FOR;
            self.next.links = now;
            self.next.link_list = now;
        }
        if changes.addresses != self.seen_changes.addresses {
            self.next.addresses = self.next.addresses.min(now + ADDRESS_SETTLE);
        }
        self.seen_changes = changes;
    }

    async fn look_at_links(&mut self) -> Result<(), DriverError> {
        let now = clock::now();
        self.next.links = now + if now < self.fast_until { LINK_POLL_FAST } else { LINK_POLL };
        if now < self.next.link_list && self.carriers.agree(&self.ports) {
            return Ok(());
        }
        self.next.link_list = now + LINK_LIST;
        let list = self.kernel.links().await;
        let now = clock::now();
        let list = match list {
            Ok(list) => list,
            Err(error) => {
                self.list_failures += 1;
                self.next.link_list = now;
                tracing::warn!(%error, failures = self.list_failures, "interfaces not listed");
                return if self.list_failures < LIST_FAILURES_MAX { Ok(()) } else { Err(error.into()) };
            }
        };
        self.list_failures = 0;
        if self.ports.update(&list) {
            self.fast_until = now + LINK_POLL_FAST_FOR;
            // First what it means for the VIPs, then the rest.
            self.feed(Input::Ports(self.ports.status())).await;
            self.set_up_ports().await;
            self.next.publish = self.next.publish.min(now + PUBLISH_GAP);
        }
        Ok(())
    }

    /// Sets up ports that are new, that came up again (the kernel forgets routes of an interface that is set down), or
    /// that failed to be set up a while ago.
    async fn set_up_ports(&mut self) {
        let now = clock::now();
        let ports = &self.ports;
        self.configured.retain(|port, _| ports.link(port).is_some());
        let found: Vec<_> = ports.found().map(|(port, link)| (port.clone(), link.clone())).collect();
        for (port, link) in found {
            let known = self.configured.get(&port).filter(|known| known.index == link.index);
            let first = known.is_none();
            let came_up = known.is_some_and(|known| link.up && !known.up);
            let retry = known.is_some_and(|known| known.retry.is_some_and(|at| at <= now));
            if !(first || came_up || retry) {
                let had = self.configured.get_mut(&port).map(|known| {
                    known.up = link.up;
                    std::mem::replace(&mut known.carrier, link.carrier)
                });
                if link.carrier && had == Some(false) {
                    self.announce_own(&port);
                }
                continue;
            }
            let result = self.addressing.set_up_port(&port, &link, first).await;
            let lan = match self.configured.remove(&port).filter(|known| known.index == link.index) {
                Some(Configured { lan: Some(lan), .. }) => Ok(lan),
                _ => Lan::open(&port, link.index, &self.watched, &self.see),
            };
            let mut retry = None;
            if let Err(error) = result {
                tracing::warn!(%port, interface = link.name, %error, "port not set up, trying again");
                retry = Some(now + SET_UP_RETRY);
            } else {
                tracing::info!(%port, interface = link.name, index = link.index, "port set up");
            }
            let lan = match lan {
                Ok(lan) => Some(lan),
                Err(error) => {
                    tracing::warn!(%port, interface = link.name, %error, "port is deaf, trying again");
                    retry = Some(now + SET_UP_RETRY);
                    None
                }
            };
            let configured =
                Configured { index: link.index, up: link.up || first, carrier: link.carrier, lan, retry };
            self.configured.insert(port.clone(), configured);
            self.announce_own(&port);
        }
    }

    async fn look_at_addresses(&mut self) {
        self.next.addresses = clock::now() + ADDRESS_POLL;
        match self.addressing.inspect(&self.ports).await {
            Ok(found) => {
                for port in &found.incomplete {
                    // Somebody took an own address away: set the port up again at once.
                    if let Some(known) = self.configured.get_mut(port) {
                        known.retry = Some(clock::now());
                    }
                }
                self.held = found.vips.iter().cloned().collect();
                self.feed(Input::Addresses(found.vips)).await;
            }
            Err(error) => tracing::warn!(%error, "addresses not listed"),
        }
    }

    fn publish(&mut self, now: Time) {
        self.next.publish = now + PUBLISH_IDLE;
        let snapshot = self.core.snapshot(now);
        let rows = bus::rows(now, &snapshot, &self.part.cluster, &self.addressing, &self.ports);
        bus::publish(&self.state, rows);
    }
}
