//! A group of real cores in one thread, with virtual time: machines with kernels and cables, a message network
//! that loses, delays and repeats, and a LAN that answers probes according to which kernels have an address at
//! that moment.
//!
//! A happening is taken from the queue, time jumps to it, the cores' outputs are carried out, the invariants
//! are checked.

use crate::invariants::Watch;
use crate::rng::Rng;
use netd_core::{Event, Failover, Input, Mac, Operation, Outbox, Output, PortStatus, Snapshot, VipState};
use proto::cluster::{ClusterFile, NodeName, PortId, PortName, VipName};
use proto::envelope;
use proto::status::Status;
use proto::time::{Duration, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Inputs a stopped process finds waiting: about what a socket buffer keeps, oldest first.
const BACKLOG_MAX: usize = 64;
/// Lines of history told when a world fails.
const HISTORY_MAX: usize = 60;
/// Frames of a probe, and when the last answer counts.
const PROBE_FRAMES: [Duration; 3] = [ms(0), ms(12), ms(24)];
const PROBE_END: Duration = ms(45);

pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// How a machine can stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// The whole machine, with its clock: it answers nobody and does not know afterwards.
    Machine,
    /// Only netd: the kernel goes on answering for its addresses, the clock goes on.
    Process,
}

/// One node: a kernel with addresses and cables, and a netd or none.
pub(crate) struct Machine {
    core: Option<Failover>,
    incarnation: u64,
    pub(crate) powered: bool,
    pub(crate) frozen: Option<Freeze>,
    frozen_at: Time,
    /// When netd was started last.
    pub(crate) started: Time,
    pub(crate) thawed: Option<Time>,
    /// This node's clock is `now - origin`; a machine that stood still falls back further.
    origin: Duration,
    pub(crate) addresses: BTreeSet<(VipName, PortName)>,
    pub(crate) plugged: BTreeMap<PortName, bool>,
    /// When a cable was pulled or put in last.
    pub(crate) touched: BTreeMap<PortName, Time>,
    backlog: VecDeque<Input>,
    /// Additions the kernel refuses from now on.
    refuses: BTreeSet<(VipName, PortName)>,
    wake: Option<Time>,
}

impl Machine {
    /// netd runs and is not stopped.
    pub(crate) fn acts(&self) -> bool {
        self.powered && self.core.is_some() && self.frozen.is_none()
    }

    /// The kernel answers on the LAN.
    pub(crate) fn answers(&self) -> bool {
        self.powered && self.frozen != Some(Freeze::Machine)
    }
}

enum Happening {
    Wake { node: NodeName },
    Input { node: NodeName, incarnation: u64, input: Box<Input> },
    Frame { node: NodeName, incarnation: u64, vip: VipName, port: PortName, attempt: u32, last: bool },
    Announcement { node: NodeName, incarnation: u64, vip: VipName, port: PortName },
}

/// A probe that is under way.
struct Asking {
    at: PortId,
    vip: VipName,
    attempt: u32,
    answered: Option<Mac>,
}

/// How the message network treats messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) loss_percent: u64,
    pub(crate) repeat_percent: u64,
    pub(crate) delay_max: Duration,
}

impl Weather {
    pub(crate) const FAIR: Weather = Weather { loss_percent: 0, repeat_percent: 0, delay_max: ms(3) };
}

/// Something that must not become true, with its name.
type Never = (&'static str, fn(&World) -> bool);

pub(crate) struct World {
    seed: u64,
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    pub(crate) file: ClusterFile,
    pub(crate) machines: BTreeMap<NodeName, Machine>,
    queue: BTreeMap<(Time, u64), Happening>,
    serial: u64,
    pub(crate) weather: Weather,
    /// Ways on which messages are lost: from, to.
    pub(crate) cut: BTreeSet<(NodeName, NodeName)>,
    /// Ports that were moved to another LAN segment than 0.
    pub(crate) segments: BTreeMap<PortId, u8>,
    asking: Vec<Asking>,
    /// Where the LAN's stations send a VIP's frames.
    pub(crate) believed: BTreeMap<VipName, PortId>,
    /// Every event told, by whom and when.
    pub(crate) events: Vec<(Time, NodeName, Event)>,
    history: VecDeque<String>,
    watch: Watch,
    never: Vec<Never>,
}

impl World {
    /// All machines switched on at once.
    pub(crate) fn seeded(seed: u64, file: ClusterFile) -> World {
        let mut world = World::dark(seed, file);
        for node in world.names() {
            world.power_on(&node);
        }
        world
    }

    /// All machines off.
    pub(crate) fn dark(seed: u64, file: ClusterFile) -> World {
        let machine = |node: &proto::cluster::Node, origin: Duration| Machine {
            core: None,
            incarnation: 0,
            powered: false,
            frozen: None,
            frozen_at: Time::ZERO,
            started: Time::ZERO,
            thawed: None,
            origin,
            addresses: BTreeSet::new(),
            plugged: node.ports.keys().map(|p| (p.clone(), true)).collect(),
            touched: BTreeMap::new(),
            backlog: VecDeque::new(),
            refuses: BTreeSet::new(),
            wake: None,
        };
        let mut rng = Rng::new(seed);
        // Clocks of nodes have nothing to do with each other.
        let machines = file.nodes.iter().map(|(n, node)| (n.clone(), machine(node, ms(rng.below(500_000)))));
        World {
            seed,
            machines: machines.collect(),
            rng,
            now: Time::ZERO + secs(1000),
            file,
            queue: BTreeMap::new(),
            serial: 0,
            weather: Weather::FAIR,
            cut: BTreeSet::new(),
            segments: BTreeMap::new(),
            asking: Vec::new(),
            believed: BTreeMap::new(),
            events: Vec::new(),
            history: VecDeque::new(),
            watch: Watch::default(),
            never: Vec::new(),
        }
    }

    pub(crate) fn names(&self) -> Vec<NodeName> {
        self.file.nodes.keys().cloned().collect()
    }

    // ---- what is done to the world

    pub(crate) fn plug(&mut self, port: &str) {
        self.cable(port, true);
    }

    pub(crate) fn unplug(&mut self, port: &str) {
        self.cable(port, false);
    }

    fn cable(&mut self, port: &str, plugged: bool) {
        self.note(format!("{} {port}", if plugged { "plug" } else { "unplug" }));
        let (node, port) = port.split_once(':').unwrap();
        let (node, port) = (NodeName::from(node), PortName::from(port));
        let now = self.now;
        let machine = self.machines.get_mut(&node).unwrap();
        if machine.plugged.insert(port.clone(), plugged) != Some(plugged) {
            // Addresses on a port that comes back while netd is not there yet to clean it up answer again.
            let blind = !machine.acts() || now - machine.started < ms(50);
            if plugged && blind && machine.addresses.iter().any(|(_, p)| *p == port) {
                self.watch.excuse(now);
            }
            machine.touched.insert(port, now);
            self.tell_ports(&node);
        }
    }

    /// netd dies; what is on the ports stays there.
    pub(crate) fn kill(&mut self, node: &str) {
        self.note(format!("kill netd of {node}"));
        let machine = self.machines.get_mut(&NodeName::from(node)).unwrap();
        machine.core = None;
        machine.backlog.clear();
        if machine.frozen == Some(Freeze::Process) {
            machine.frozen = None;
        }
    }

    /// The machine loses power.
    pub(crate) fn crash(&mut self, node: &str) {
        self.kill(node);
        self.note(format!("power off {node}"));
        let machine = self.machines.get_mut(&NodeName::from(node)).unwrap();
        machine.powered = false;
        machine.frozen = None;
        machine.addresses.clear();
    }

    /// Starts what does not run: the machine, or netd on it.
    pub(crate) fn restart(&mut self, node: &str) {
        self.power_on(&node.into());
    }

    fn power_on(&mut self, node: &NodeName) {
        if self.machines[node].core.is_some() {
            return;
        }
        self.note(format!("start {node}"));
        let started = ms(self.rng.below(30));
        let machine = self.machines.get_mut(node).unwrap();
        machine.powered = true;
        machine.started = self.now;
        machine.incarnation += 1;
        let core = Failover::new(&self.file, node.clone(), machine.incarnation, machine.clock(self.now));
        machine.core = Some(core.unwrap());
        let leftovers = machine.addresses.iter().cloned().collect();
        self.tell_ports(node);
        self.input_in(started, node, Input::Addresses(leftovers));
    }

    /// netd is asked to stop, and does.
    pub(crate) fn leave(&mut self, node: &str) {
        self.note(format!("stop netd of {node}"));
        self.feed(&node.into(), Input::Leave);
        self.kill(node);
    }

    pub(crate) fn freeze(&mut self, node: &str, how: Freeze) {
        self.note(format!("freeze {node} {how:?}"));
        let now = self.now;
        let machine = self.machines.get_mut(&NodeName::from(node)).unwrap();
        if machine.powered && machine.frozen.is_none() {
            machine.frozen = Some(how);
            machine.frozen_at = now;
        }
    }

    pub(crate) fn thaw(&mut self, node: &str) {
        self.note(format!("thaw {node}"));
        let (node, now) = (NodeName::from(node), self.now);
        let machine = self.machines.get_mut(&node).unwrap();
        let Some(how) = machine.frozen.take() else { return };
        machine.thawed = Some(now);
        if how == Freeze::Machine {
            machine.origin += now - machine.frozen_at;
        }
        let backlog = core::mem::take(&mut machine.backlog);
        for input in backlog {
            self.feed(&node, input);
        }
        self.tell_ports(&node);
        machine_wake(self, &node);
    }

    /// Messages between the two sides are lost, both ways.
    pub(crate) fn partition(&mut self, side: &[&str]) {
        self.note(format!("partition {side:?}"));
        for a in self.names() {
            for b in self.names() {
                if side.contains(&a.0.as_str()) != side.contains(&b.0.as_str()) {
                    self.cut.insert((a.clone(), b));
                }
            }
        }
    }

    /// Messages on this way only are lost.
    pub(crate) fn cut_way(&mut self, from: &str, to: &str) {
        self.note(format!("cut {from} -> {to}"));
        self.cut.insert((from.into(), to.into()));
    }

    /// Messages arrive again everywhere.
    pub(crate) fn heal(&mut self) {
        self.note("heal messages".to_owned());
        self.cut.clear();
    }

    /// The LAN of these nodes' ports is apart from the others'.
    pub(crate) fn split_lan(&mut self, nodes: &[&str]) {
        self.note(format!("split LAN {nodes:?}"));
        for node in nodes {
            let node = NodeName::from(*node);
            for port in self.file.nodes[&node].ports.keys() {
                self.segments.insert(PortId { node: node.clone(), port: port.clone() }, 1);
            }
        }
    }

    /// The LAN is one again.
    pub(crate) fn join_lan(&mut self) {
        self.note("join LAN".to_owned());
        self.segments.clear();
        self.watch.excuse(self.now);
    }

    /// Somebody removes an address behind netd's back, or puts one there; netd is shown the list.
    pub(crate) fn meddle(&mut self, vip: &str, port: &str, there: bool) {
        self.note(format!("meddle {vip} {port} {there}"));
        let port = crate::cluster::port_id(port);
        let machine = self.machines.get_mut(&port.node).unwrap();
        let entry = (VipName::from(vip), port.port);
        if there {
            machine.addresses.insert(entry);
            self.watch.excuse(self.now);
        } else {
            machine.addresses.remove(&entry);
        }
        let list = self.machines[&port.node].addresses.iter().cloned().collect();
        self.input_in(ms(2), &port.node, Input::Addresses(list));
    }

    /// The kernel refuses this address from now on.
    pub(crate) fn refuse(&mut self, vip: &str, port: &str) {
        let port = crate::cluster::port_id(port);
        self.machines.get_mut(&port.node).unwrap().refuses.insert((vip.into(), port.port));
    }

    /// No kernel refuses anything any more.
    pub(crate) fn accept(&mut self) {
        self.machines.values_mut().for_each(|machine| machine.refuses.clear());
    }

    /// From now on this must not become true.
    pub(crate) fn expect_never(&mut self, what: &'static str, is: fn(&World) -> bool) {
        self.never.push((what, is));
    }

    // ---- what can be seen of the world

    /// Ports whose kernels answer for `vip`.
    pub(crate) fn answering(&self, vip: &VipName) -> Vec<PortId> {
        let mut list = Vec::new();
        for (node, machine) in self.machines.iter().filter(|(_, m)| m.answers()) {
            for (_, port) in machine.addresses.iter().filter(|(v, port)| v == vip && machine.plugged[port]) {
                list.push(PortId { node: node.clone(), port: port.clone() });
            }
        }
        list
    }

    /// The one port that answers for `vip`, as `node:port`.
    pub(crate) fn holder(&self, vip: &str) -> Option<String> {
        match self.answering(&vip.into()).as_slice() {
            [one] => Some(one.to_string()),
            _ => None,
        }
    }

    pub(crate) fn snapshot(&self, node: &str) -> Snapshot {
        let machine = &self.machines[&NodeName::from(node)];
        machine.core.as_ref().unwrap().snapshot(machine.clock(self.now))
    }

    /// What `node` says of `vip`.
    pub(crate) fn state(&self, node: &str, vip: &str) -> VipState {
        let rows = self.snapshot(node).vips;
        rows.into_iter().find(|row| row.vip.0 == vip).unwrap().state
    }

    /// Events of this name since `since`.
    pub(crate) fn count(&self, name: &str, since: Time) -> usize {
        self.events.iter().filter(|(at, _, event)| *at >= since && event.name() == name).count()
    }

    /// Every VIP is answered for by exactly one port, all nodes agree on which, and the LAN believes it.
    pub(crate) fn settled(&self) -> bool {
        self.unsettled().is_none()
    }

    /// The first thing that is not settled.
    pub(crate) fn unsettled(&self) -> Option<String> {
        for (name, vip) in &self.file.vips {
            let answering = self.answering(name);
            let [holder] = answering.as_slice() else {
                return Some(format!("{name} is answered for by {answering:?}"));
            };
            if self.believed.get(name) != Some(holder) {
                return Some(format!("{name}: the LAN believes {:?}, not {holder}", self.believed.get(name)));
            }
            for (node, machine) in self.machines.iter().filter(|(_, m)| m.acts()) {
                if self.file.nodes[node].group != vip.group {
                    continue;
                }
                let rows = machine.core.as_ref().unwrap().snapshot(machine.clock(self.now)).vips;
                let row = rows.into_iter().find(|row| row.vip == *name).unwrap();
                if row.state != VipState::Held || row.holder.as_ref() != Some(holder) {
                    return Some(format!(
                        "{node} says of {name}: {:?} {:?}, not {holder}",
                        row.state, row.holder
                    ));
                }
            }
        }
        None
    }

    // ---- how time passes

    /// Lets `time` pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
        self.check();
    }

    /// Lets time pass until `done`, at most `limit`. Returns how long it took.
    pub(crate) fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&World) -> bool,
    ) -> Duration {
        let start = self.now;
        let end = start + limit;
        while !done(self) {
            if !self.step(end) {
                let why = self.unsettled().unwrap_or_default();
                self.fail(&format!("not within {limit:?}: {what} ({why})"));
            }
        }
        self.now - start
    }

    /// Takes the next happening that is due by `end`.
    fn step(&mut self, end: Time) -> bool {
        let Some((&(at, serial), _)) = self.queue.range(..=(end, u64::MAX)).next() else { return false };
        let happening = self.queue.remove(&(at, serial)).unwrap();
        self.now = self.now.max(at);
        match happening {
            Happening::Wake { node } => self.wake(&node),
            Happening::Input { node, incarnation, input } => {
                if self.machines[&node].incarnation == incarnation {
                    self.feed(&node, *input);
                }
            }
            Happening::Frame { node, incarnation, vip, port, attempt, last } => {
                if self.alive(&node, incarnation) {
                    self.frame(PortId { node, port }, vip, attempt, last);
                }
            }
            Happening::Announcement { node, incarnation, vip, port } => {
                if self.alive(&node, incarnation) {
                    self.announce(&PortId { node, port }, &vip);
                }
            }
        }
        self.check();
        true
    }

    fn alive(&self, node: &NodeName, incarnation: u64) -> bool {
        let machine = &self.machines[node];
        machine.acts() && machine.incarnation == incarnation
    }

    fn later(&mut self, delay: Duration, happening: Happening) {
        self.serial += 1;
        self.queue.insert((self.now + delay, self.serial), happening);
    }

    fn input_in(&mut self, delay: Duration, node: &NodeName, input: Input) {
        let incarnation = self.machines[node].incarnation;
        self.later(delay, Happening::Input { node: node.clone(), incarnation, input: Box::new(input) });
    }

    /// The kernel's link event reaches netd a little later and carries what is then the case; one event more or
    /// less matters not.
    fn tell_ports(&mut self, node: &NodeName) {
        let delay = ms(1 + self.rng.below(20));
        // The list is filled in on arrival.
        self.input_in(delay, node, Input::Ports(Vec::new()));
    }

    fn wake(&mut self, node: &NodeName) {
        let machine = self.machines.get_mut(node).unwrap();
        if machine.wake.is_some_and(|at| at <= self.now) {
            machine.wake = None;
        }
        if !machine.acts() {
            return;
        }
        let clock = machine.clock(self.now);
        if machine.core.as_ref().unwrap().next_wakeup().is_none_or(|due| clock < due) {
            machine_wake(self, node);
            return;
        }
        let mut out = Outbox::new();
        let core = machine.core.as_mut().unwrap();
        core.handle_timeout(clock, &mut out);
        let idle = core.next_wakeup().is_none_or(|due| clock < due);
        self.carry_out(node, &mut out);
        if !idle {
            self.fail(&format!("{node} wants to be woken at once again and again"));
        }
    }

    fn feed(&mut self, node: &NodeName, input: Input) {
        let machine = self.machines.get_mut(node).unwrap();
        if !machine.powered || machine.core.is_none() {
            return;
        }
        if machine.frozen.is_some() {
            if machine.backlog.len() < BACKLOG_MAX {
                machine.backlog.push_back(input);
            }
            return;
        }
        let input = match input {
            Input::Ports(_) => Input::Ports(machine.port_list()),
            other => other,
        };
        let mut out = Outbox::new();
        let clock = machine.clock(self.now);
        machine.core.as_mut().unwrap().handle(clock, input, &mut out);
        self.carry_out(node, &mut out);
    }

    fn carry_out(&mut self, node: &NodeName, out: &mut Outbox) {
        while let Some(output) = out.pop() {
            match output {
                Output::Broadcast(status) => self.broadcast(node, &status),
                Output::Add { vip, port } => self.apply(node, vip, port, Operation::Add),
                Output::Remove { vip, port } => self.apply(node, vip, port, Operation::Remove),
                Output::Announce { vip, port } => {
                    self.note(format!("{node}: announce {vip} on {port}"));
                    self.announce(&PortId { node: node.clone(), port: port.clone() }, &vip);
                    let incarnation = self.machines[node].incarnation;
                    for delay in [ms(50), ms(200), ms(1000)] {
                        let (node, vip, port) = (node.clone(), vip.clone(), port.clone());
                        self.later(delay, Happening::Announcement { node, incarnation, vip, port });
                    }
                }
                Output::Probe { vip, port, attempt } => self.probe(node, vip, port, attempt),
                Output::Event(event) => {
                    self.note(format!("{node}: {event:?}"));
                    self.events.push((self.now, node.clone(), event));
                }
            }
        }
        machine_wake(self, node);
    }

    fn apply(&mut self, node: &NodeName, vip: VipName, port: PortName, operation: Operation) {
        self.note(format!("{node}: {operation:?} {vip} {port}"));
        let machine = self.machines.get_mut(node).unwrap();
        let entry = (vip.clone(), port.clone());
        let result = match operation {
            Operation::Add if machine.refuses.contains(&entry) => Err("no such device".to_owned()),
            Operation::Add => {
                machine.addresses.insert(entry);
                Ok(())
            }
            Operation::Remove => {
                machine.addresses.remove(&entry);
                Ok(())
            }
        };
        let delay = ms(self.rng.below(3));
        self.input_in(delay, node, Input::Applied { vip, port, operation, result });
    }

    fn broadcast(&mut self, from: &NodeName, status: &Status) {
        // Through its bytes, as between real nodes.
        let status: Status = envelope::decode(&envelope::encode(status)).unwrap();
        let group = &self.file.nodes[from].group;
        let to: Vec<NodeName> = self.file.group_members(group).map(|(n, _)| n.clone()).collect();
        for to in to.into_iter().filter(|to| to != from) {
            if self.cut.contains(&(from.clone(), to.clone())) {
                continue;
            }
            let copies = 1 + u64::from(self.rng.chance(self.weather.repeat_percent));
            for _ in 0..copies {
                if self.rng.chance(self.weather.loss_percent) {
                    continue;
                }
                let most = u64::try_from(self.weather.delay_max.as_micros()).unwrap();
                let delay = Duration::from_micros(100 + self.rng.below(most));
                self.input_in(delay, &to, Input::Peer { status: status.clone() });
            }
        }
    }

    fn segment(&self, port: &PortId) -> u8 {
        self.segments.get(port).copied().unwrap_or(0)
    }

    /// Ports that hear a frame from `from`: plugged, same network, same segment, another node.
    fn hearing<'a>(&'a self, from: &'a PortId) -> impl Fn(&PortId) -> bool + 'a {
        let network = |p: &PortId| &self.file.nodes[&p.node].ports[&p.port].network;
        let sends = self.machines[&from.node].plugged[&from.port];
        move |to| {
            sends
                && to.node != from.node
                && self.machines[&to.node].plugged[&to.port]
                && network(to) == network(from)
                && self.segment(to) == self.segment(from)
        }
    }

    fn announce(&mut self, at: &PortId, vip: &VipName) {
        let machine = &self.machines[&at.node];
        if !machine.addresses.contains(&(vip.clone(), at.port.clone())) || !machine.plugged[&at.port] {
            return;
        }
        self.believed.insert(vip.clone(), at.clone());
        let hearing = self.hearing(at);
        let rivals: Vec<PortId> = self.answering(vip).into_iter().filter(|p| hearing(p)).collect();
        drop(hearing);
        for rival in rivals {
            let input = Input::Conflict { vip: vip.clone(), mac: self.mac(at) };
            self.input_in(ms(1), &rival.node, input);
        }
    }

    fn probe(&mut self, node: &NodeName, vip: VipName, port: PortName, attempt: u32) {
        self.note(format!("{node}: probe {vip} on {port} ({attempt})"));
        let at = PortId { node: node.clone(), port: port.clone() };
        self.asking.push(Asking { at, vip: vip.clone(), attempt, answered: None });
        let incarnation = self.machines[node].incarnation;
        for delay in PROBE_FRAMES {
            let (node, vip, port) = (node.clone(), vip.clone(), port.clone());
            self.later(delay, Happening::Frame { node, incarnation, vip, port, attempt, last: false });
        }
        let node = node.clone();
        self.later(PROBE_END, Happening::Frame { node, incarnation, vip, port, attempt, last: true });
    }

    /// One frame of a probe, or its end.
    fn frame(&mut self, at: PortId, vip: VipName, attempt: u32, last: bool) {
        if last {
            let own = |asking: &Asking| asking.at == at && asking.vip == vip && asking.attempt == attempt;
            if let Some(index) = self.asking.iter().position(own) {
                let Asking { at, vip, attempt, answered } = self.asking.swap_remove(index);
                self.feed(&at.node, Input::ProbeDone { vip, port: at.port, attempt, answered });
            }
            return;
        }
        let answer = {
            let hearing = self.hearing(&at);
            self.answering(&vip).into_iter().find(|port| hearing(port)).map(|port| self.mac(&port))
        };
        let heard_by: Vec<bool> = {
            let hearing = self.hearing(&at);
            self.asking.iter().map(|asking| asking.vip == vip && hearing(&asking.at)).collect()
        };
        let mac = self.mac(&at);
        for (asking, hears) in self.asking.iter_mut().zip(heard_by) {
            if hears {
                asking.answered = Some(mac);
            }
            if asking.at == at && asking.vip == vip && asking.attempt == attempt && answer.is_some() {
                asking.answered = answer;
            }
        }
    }

    fn mac(&self, port: &PortId) -> Mac {
        let index = self.file.nodes.keys().position(|n| *n == port.node).unwrap();
        Mac([2, 0, 0, 0, u8::try_from(index).unwrap(), port.port.0.as_bytes()[1]])
    }

    // ---- judgement

    fn check(&mut self) {
        let mut watch = core::mem::take(&mut self.watch);
        let verdict = watch.check(self);
        self.watch = watch;
        if let Err(broken) = verdict {
            self.fail(&broken);
        }
        if let Some((what, _)) = self.never.iter().find(|(_, is)| is(self)) {
            let what = format!("never: {what}");
            self.fail(&what);
        }
    }

    pub(crate) fn note(&mut self, line: String) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(format!("{:>9.3} {line}", (self.now - Time::ZERO).as_secs_f64() - 1000.0));
    }

    /// Ends the test. The last line says how to see it again.
    pub(crate) fn fail(&self, why: &str) -> ! {
        for line in &self.history {
            println!("{line}");
        }
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let seed = self.seed;
        panic!("{why}\nagain: SIM_SEED={seed} cargo test -p evenkeel-netd-core --test sim -- --exact {test}");
    }
}

impl Machine {
    /// This node's own clock.
    fn clock(&self, now: Time) -> Time {
        Time::ZERO + (now - (Time::ZERO + self.origin))
    }

    fn port_list(&self) -> Vec<PortStatus> {
        let status = |(port, plugged): (&PortName, &bool)| PortStatus {
            port: port.clone(),
            present: true,
            carrier: *plugged,
        };
        self.plugged.iter().map(status).collect()
    }
}

/// Sees to it that `node` is woken when its core wants to be.
fn machine_wake(world: &mut World, node: &NodeName) {
    let machine = world.machines.get_mut(node).unwrap();
    let Some(due) = machine.core.as_ref().and_then(Failover::next_wakeup) else { return };
    let at = (due + machine.origin).max(world.now);
    if machine.acts() && machine.wake.is_none_or(|wake| at < wake || wake < world.now) {
        machine.wake = Some(at);
        let delay = at - world.now;
        world.later(delay, Happening::Wake { node: node.clone() });
    }
}
