//! A learning Ethernet switch with faults, without any socket or clock.
//!
//! ```text
//! ingress ── from_node fault ── learn source ── destination known?
//!                                                 ├─ no, or a group: every other port of the segment
//!                                                 └─ yes: that port ── partition? ── to_node fault ── out, at once or late
//! ```
//! A *segment* is one layer 2 network; ports of different segments never meet. Internal hosts (the probing host,
//! the TCP host) are ports like any other; hardware address prefixes can be *pinned* to a port, so that a host
//! may speak under many addresses without filling the table.
//!
//! It does not: count MTUs, know VLANs, prevent loops (a machine that bridges its ports makes one, as in life).

use super::fault::{Dice, Fault};
use super::frames;
use super::mac::Mac;
use core::cmp::Reverse;
use proto::cluster::{NetworkName, PortId};
use proto::time::{Duration, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BinaryHeap};

/// Most ports of a switch: 16 nodes with four ports and the lab's own hosts.
pub const PORTS_MAX: usize = 66;
/// Most learned addresses. An honest lab has a few dozen; a storm of invented ones replaces the stalest.
pub const TABLE_MAX: usize = 1024;
/// A learned address unheard for this long is forgotten, as in real switches.
pub const AGE_MAX: Duration = Duration::from_secs(300);
/// Most frames held back by delays: 10 000 frames/s for 400 ms. Beyond it frames are lost and counted.
pub const DELAYED_MAX: usize = 4096;

/// A port of the switch; given by [`Switch::add_port`], valid for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey(usize);

impl PortKey {
    /// Position in order of adding.
    pub fn index(self) -> usize {
        self.0
    }

    /// The port at this position.
    pub(super) fn at(index: usize) -> PortKey {
        PortKey(index)
    }
}

/// Why the switch cannot take a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The switch is unchanged.
    #[error("port {port} is on the switch already: names of ports must differ")]
    DuplicatePort {
        /// The name.
        port: PortId,
    },
    /// The switch is unchanged.
    #[error("no room for port {port}: the switch has {PORTS_MAX} ports")]
    TooManyPorts {
        /// The name.
        port: PortId,
    },
}

/// What happened to frames at one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortCounters {
    /// Frames the node sent, sound or not.
    pub from_node: u64,
    /// Frames handed towards the node.
    pub to_node: u64,
    /// Frames lost to this port's fault, either way.
    pub lost_to_fault: u64,
    /// Frames that a partition kept from this port.
    pub lost_to_partition: u64,
    /// Frames too short, from a group, or under one of the lab's own addresses.
    pub refused: u64,
    /// Frames lost because too many were delayed.
    pub lost_to_full_queue: u64,
}

/// What became of a frame at its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is in the segment.
    Taken,
    /// The port's fault lost it.
    Lost,
    /// It breaks the rules of Ethernet or speaks under the lab's addresses.
    Refused,
}

#[derive(Debug)]
struct Port {
    id: PortId,
    segment: usize,
    fault: Fault,
    /// The side of the partition it stands on; `None` hears all sides.
    side: Option<usize>,
    counters: PortCounters,
}

#[derive(Debug)]
struct Learned {
    port: PortKey,
    heard: Time,
}

/// Ordered by time, then by entry: constant delays keep the order of frames.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Time,
    number: u64,
    from: PortKey,
    to: PortKey,
    frame: Vec<u8>,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    segments: Vec<NetworkName>,
    ports: Vec<Port>,
    table: BTreeMap<(usize, Mac), Learned>,
    pinned: BTreeMap<(usize, [u8; 3]), PortKey>,
    held: BinaryHeap<Reverse<Held>>,
    held_count: u64,
    dice: Dice,
}

impl Switch {
    /// A switch without ports. The seed decides which frames percentages lose.
    pub fn new(seed: u64) -> Switch {
        Switch {
            segments: Vec::new(),
            ports: Vec::new(),
            table: BTreeMap::new(),
            pinned: BTreeMap::new(),
            held: BinaryHeap::new(),
            held_count: 0,
            dice: Dice::seeded(seed),
        }
    }

    /// Adds a port to a segment; a segment begins with its first port.
    ///
    /// # Errors
    /// When the name is taken or the switch is full; it is unchanged then.
    pub fn add_port(&mut self, id: PortId, segment: &NetworkName) -> Result<PortKey, SwitchError> {
        if self.ports.iter().any(|p| p.id == id) {
            return Err(SwitchError::DuplicatePort { port: id });
        }
        if self.ports.len() >= PORTS_MAX {
            return Err(SwitchError::TooManyPorts { port: id });
        }
        let segment = self.segments.iter().position(|s| s == segment).unwrap_or_else(|| {
            self.segments.push(segment.clone());
            self.segments.len() - 1
        });
        self.ports.push(Port {
            id,
            segment,
            fault: Fault::NONE,
            side: None,
            counters: PortCounters::default(),
        });
        Ok(PortKey(self.ports.len() - 1))
    }

    /// Sends everything for addresses that begin with `prefix` to `port`; only that port may speak under them.
    pub fn pin(&mut self, prefix: [u8; 3], port: PortKey) {
        self.pinned.insert((self.port(port).segment, prefix), port);
    }

    /// The port of this name.
    pub fn find(&self, id: &PortId) -> Option<PortKey> {
        self.ports.iter().position(|p| p.id == *id).map(PortKey)
    }

    /// All ports in order of adding.
    pub fn ports(&self) -> impl Iterator<Item = (PortKey, &PortId)> {
        self.ports.iter().enumerate().map(|(i, p)| (PortKey(i), &p.id))
    }

    /// The segment a port is on.
    pub fn segment(&self, port: PortKey) -> &NetworkName {
        &self.segments[self.port(port).segment]
    }

    /// What happened at a port so far.
    pub fn counters(&self, port: PortKey) -> PortCounters {
        self.port(port).counters
    }

    /// The fault in force at a port.
    pub fn fault(&self, port: PortKey) -> Fault {
        self.port(port).fault
    }

    /// Replaces a port's fault. Frames on their way see it too, as far as it cuts.
    pub fn set_fault(&mut self, port: PortKey, fault: Fault) {
        self.ports[port.0].fault = fault;
    }

    /// Divides the switch: ports of different sets no longer hear each other. A port in no set hears all and is
    /// heard by all. Replaces an earlier partition; a port in several sets stands on the side of the last.
    pub fn partition(&mut self, sides: &[Vec<PortKey>]) {
        self.ports.iter_mut().for_each(|p| p.side = None);
        for (side, ports) in sides.iter().enumerate() {
            for port in ports {
                self.ports[port.0].side = Some(side);
            }
        }
    }

    /// Ends the partition and every port's fault. Frames already delayed stay delayed.
    pub fn heal(&mut self) {
        for port in &mut self.ports {
            (port.side, port.fault) = (None, Fault::NONE);
        }
    }

    /// Forgets what was learned on a port, as when its cable is pulled.
    pub fn flush(&mut self, port: PortKey) {
        self.table.retain(|_, learned| learned.port != port);
    }

    /// Where a station was last heard, in the segment of `near`.
    pub fn learned(&self, near: PortKey, mac: Mac) -> Option<PortKey> {
        self.table.get(&(self.port(near).segment, mac)).map(|l| l.port)
    }

    /// Number of learned addresses.
    pub fn table_len(&self) -> usize {
        self.table.len()
    }

    /// Frames held back by delays.
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Takes a frame that arrives at `from`. Ports that get it now are appended to `out`; the caller hands them
    /// these same bytes. What is delayed comes out of [`Switch::due`].
    pub fn ingress(&mut self, now: Time, from: PortKey, frame: &[u8], out: &mut Vec<PortKey>) -> Entry {
        let Port { segment, fault, .. } = *self.port(from);
        self.counters_mut(from).from_node += 1;
        let stations = frames::stations(frame).filter(|_| frame.len() <= frames::FRAME_MAX);
        let Some((source, destination)) = stations.filter(|(source, _)| source.is_station()) else {
            self.counters_mut(from).refused += 1;
            return Entry::Refused;
        };
        let pinned = self.pinned.get(&(segment, source.prefix())).copied();
        if pinned.is_some_and(|owner| owner != from) {
            self.counters_mut(from).refused += 1;
            return Entry::Refused;
        }
        if fault.from_node.loses(&mut self.dice) {
            self.counters_mut(from).lost_to_fault += 1;
            return Entry::Lost;
        }
        if pinned.is_none() {
            self.learn(now, segment, source, from);
        }
        let late = fault.from_node.bounded_delay();
        match self.lookup(now, segment, destination) {
            Some(to) if to == from => {} // both ends behind one port: they have met already
            Some(to) => self.egress(now, late, (from, to), frame, out),
            None => {
                for to in (0..self.ports.len()).map(PortKey) {
                    if to != from && self.port(to).segment == segment {
                        self.egress(now, late, (from, to), frame, out);
                    }
                }
            }
        }
        Entry::Taken
    }

    /// Moves the delayed frames whose time has come to `out`, in order.
    pub fn due(&mut self, now: Time, out: &mut Vec<(PortKey, Vec<u8>)>) {
        while self.held.peek().is_some_and(|Reverse(h)| h.due <= now) {
            let Some(Reverse(held)) = self.held.pop() else { return };
            // The world may have changed while it was on its way.
            if self.port(held.to).fault.to_node.cut {
                self.counters_mut(held.to).lost_to_fault += 1;
            } else if self.parted(held.from, held.to) {
                self.counters_mut(held.to).lost_to_partition += 1;
            } else {
                self.counters_mut(held.to).to_node += 1;
                out.push((held.to, held.frame));
            }
        }
    }

    /// When [`Switch::due`] has something next.
    pub fn next_wakeup(&self) -> Option<Time> {
        self.held.peek().map(|Reverse(h)| h.due)
    }

    fn egress(
        &mut self,
        now: Time,
        late: Duration,
        (from, to): (PortKey, PortKey),
        frame: &[u8],
        out: &mut Vec<PortKey>,
    ) {
        if self.parted(from, to) {
            self.counters_mut(to).lost_to_partition += 1;
            return;
        }
        let impairment = self.port(to).fault.to_node;
        if impairment.loses(&mut self.dice) {
            self.counters_mut(to).lost_to_fault += 1;
            return;
        }
        let delay = late + impairment.bounded_delay();
        if delay.is_zero() {
            self.counters_mut(to).to_node += 1;
            out.push(to);
        } else if self.held.len() >= DELAYED_MAX {
            self.counters_mut(to).lost_to_full_queue += 1;
        } else {
            self.held_count += 1;
            let number = self.held_count;
            self.held.push(Reverse(Held { due: now + delay, number, from, to, frame: frame.to_vec() }));
        }
    }

    fn learn(&mut self, now: Time, segment: usize, mac: Mac, port: PortKey) {
        if let Some(learned) = self.table.get_mut(&(segment, mac)) {
            *learned = Learned { port, heard: now };
            return;
        }
        if self.table.len() >= TABLE_MAX {
            let stalest = self.table.iter().min_by_key(|(_, l)| l.heard).map(|(key, _)| *key);
            stalest.map(|key| self.table.remove(&key));
        }
        self.table.insert((segment, mac), Learned { port, heard: now });
    }

    /// The one port behind which a station is; `None` floods.
    fn lookup(&self, now: Time, segment: usize, mac: Mac) -> Option<PortKey> {
        if mac.is_multicast() {
            return None;
        }
        if let Some(port) = self.pinned.get(&(segment, mac.prefix())) {
            return Some(*port);
        }
        let learned = self.table.get(&(segment, mac))?;
        (now.since(learned.heard) < AGE_MAX).then_some(learned.port)
    }

    fn parted(&self, a: PortKey, b: PortKey) -> bool {
        matches!((self.port(a).side, self.port(b).side), (Some(x), Some(y)) if x != y)
    }

    fn port(&self, key: PortKey) -> &Port {
        &self.ports[key.0]
    }

    fn counters_mut(&mut self, key: PortKey) -> &mut PortCounters {
        &mut self.ports[key.0].counters
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::Impairment;
    use super::*;

    fn id(name: &str) -> PortId {
        PortId { node: name.into(), port: "p1".into() }
    }

    fn mac(n: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, n])
    }

    fn frame(from: Mac, to: Mac) -> Vec<u8> {
        let mut f = [to.0, from.0].concat();
        f.extend_from_slice(&[0x88, 0xb5, 1, 2, 3]);
        f
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    /// Three ports on `data`, one on `mgmt`.
    fn switch() -> (Switch, [PortKey; 4]) {
        let mut s = Switch::new(1);
        let (data, mgmt) = ("data".into(), "mgmt".into());
        let keys = [
            s.add_port(id("a"), &data).unwrap(),
            s.add_port(id("b"), &data).unwrap(),
            s.add_port(id("c"), &data).unwrap(),
            s.add_port(id("m"), &mgmt).unwrap(),
        ];
        (s, keys)
    }

    fn send(s: &mut Switch, now: Time, from: PortKey, f: &[u8]) -> Vec<PortKey> {
        let mut out = Vec::new();
        s.ingress(now, from, f, &mut out);
        out
    }

    #[test]
    fn it_floods_learns_and_keeps_segments_apart() {
        let (mut s, [a, b, c, m]) = switch();
        assert_eq!(send(&mut s, at(0), a, &frame(mac(1), mac(2))), [b, c]);
        assert_eq!(send(&mut s, at(1), b, &frame(mac(2), mac(1))), [a]);
        assert_eq!(send(&mut s, at(2), a, &frame(mac(1), mac(2))), [b]);
        assert_eq!(send(&mut s, at(3), a, &frame(mac(1), Mac::BROADCAST)), [b, c]);
        assert_eq!(send(&mut s, at(4), m, &frame(mac(9), mac(1))), []);
        // The station moves: the next word from it is enough.
        assert_eq!(send(&mut s, at(5), c, &frame(mac(2), mac(1))), [a]);
        assert_eq!(send(&mut s, at(6), a, &frame(mac(1), mac(2))), [c]);
        // And its old place hears nothing that is meant for itself.
        assert_eq!(send(&mut s, at(7), c, &frame(mac(3), mac(2))), []);
    }

    #[test]
    fn what_was_learned_ages_and_is_flushed() {
        let (mut s, [a, b, c, _]) = switch();
        send(&mut s, at(0), a, &frame(mac(1), Mac::BROADCAST));
        assert_eq!(s.learned(b, mac(1)), Some(a));
        assert_eq!(send(&mut s, at(299_999), b, &frame(mac(2), mac(1))), [a]);
        assert_eq!(send(&mut s, at(300_000), b, &frame(mac(2), mac(1))), [a, c]);
        send(&mut s, at(300_001), a, &frame(mac(1), Mac::BROADCAST));
        s.flush(a);
        assert_eq!(s.learned(b, mac(1)), None);
        assert_eq!(s.learned(b, mac(2)), Some(b));
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut s, [a, b, ..]) = switch();
        for n in 0..3000u32 {
            let source = Mac::numbered([2, 0, 0], n);
            send(&mut s, at(u64::from(n)), a, &frame(source, Mac::BROADCAST));
        }
        assert_eq!(s.table_len(), TABLE_MAX);
        assert_eq!(s.learned(b, Mac::numbered([2, 0, 0], 2999)), Some(a));
        assert_eq!(s.learned(b, Mac::numbered([2, 0, 0], 0)), None);
    }

    #[test]
    fn faults_work_each_way() {
        let all = |s: &mut Switch, [a, b, _, _]: [PortKey; 4]| {
            let out = send(s, at(1), a, &frame(mac(1), mac(2))).contains(&b);
            let back = send(s, at(1), b, &frame(mac(2), mac(1))).contains(&a);
            (out, back)
        };
        for (fault, expected) in [
            (Fault::NONE, (true, true)),
            (Fault::CUT, (false, false)),
            (Fault::MUTE, (false, true)),
            (Fault::DEAF, (true, false)),
            (Fault::drop(100), (false, false)),
        ] {
            let (mut s, keys) = switch();
            s.set_fault(keys[0], fault);
            assert_eq!(all(&mut s, keys), expected, "{fault:?}");
            s.heal();
            assert_eq!(all(&mut s, keys), (true, true));
        }
    }

    #[test]
    fn a_partition_parts_its_sides_only() {
        let (mut s, [a, b, c, _]) = switch();
        s.partition(&[vec![a], vec![b]]);
        assert_eq!(send(&mut s, at(0), a, &frame(mac(1), Mac::BROADCAST)), [c]);
        assert_eq!(send(&mut s, at(0), c, &frame(mac(3), Mac::BROADCAST)), [a, b]);
        assert_eq!(s.counters(b).lost_to_partition, 1);
        s.heal();
        assert_eq!(send(&mut s, at(0), a, &frame(mac(1), Mac::BROADCAST)), [b, c]);
    }

    #[test]
    fn delays_add_up_and_keep_the_order() {
        let (mut s, [a, b, c, _]) = switch();
        s.set_fault(a, Fault::delay(Duration::from_millis(20)));
        s.set_fault(
            b,
            Fault {
                to_node: Impairment { delay: Duration::from_millis(5), ..Impairment::NONE },
                ..Fault::NONE
            },
        );
        let (first, second) = (frame(mac(1), Mac::BROADCAST), frame(mac(1), mac(7)));
        assert_eq!(send(&mut s, at(0), a, &first), []);
        assert_eq!(send(&mut s, at(0), a, &second), []);
        assert_eq!(s.next_wakeup(), Some(at(20)));
        let mut out = Vec::new();
        s.due(at(19), &mut out);
        assert!(out.is_empty());
        s.due(at(30), &mut out);
        assert_eq!(out, [(c, first.clone()), (c, second.clone()), (b, first), (b, second)]);
        assert_eq!(s.next_wakeup(), None);
    }

    #[test]
    fn a_cut_reaches_frames_on_their_way() {
        let (mut s, [a, b, c, _]) = switch();
        s.set_fault(a, Fault::delay(Duration::from_millis(20)));
        send(&mut s, at(0), a, &frame(mac(1), Mac::BROADCAST));
        s.set_fault(b, Fault::CUT);
        let mut out = Vec::new();
        s.due(at(20), &mut out);
        assert_eq!(out.into_iter().map(|(to, _)| to).collect::<Vec<_>>(), [c]);
    }

    #[test]
    fn the_delay_queue_is_bounded() {
        let (mut s, [a, b, ..]) = switch();
        s.set_fault(a, Fault::delay(Duration::from_secs(1)));
        for _ in 0..DELAYED_MAX {
            send(&mut s, at(0), a, &frame(mac(1), Mac::BROADCAST));
        }
        assert_eq!(s.held_len(), DELAYED_MAX);
        assert_eq!(s.counters(b).lost_to_full_queue, DELAYED_MAX as u64 / 2);
    }

    #[test]
    fn bad_frames_and_the_labs_own_addresses_are_refused() {
        let (mut s, [a, b, ..]) = switch();
        s.pin(Mac::LAB_PREFIX, b);
        let mut out = Vec::new();
        for bad in [
            vec![],
            vec![0; 13],
            frame(Mac::BROADCAST, mac(2)),
            frame(Mac::ZERO, mac(2)),
            frame(Mac::PROBE, mac(2)),
            vec![2; frames::FRAME_MAX + 1],
        ] {
            assert_eq!(s.ingress(at(0), a, &bad, &mut out), Entry::Refused);
        }
        assert_eq!((out.len(), s.table_len(), s.counters(a).refused), (0, 0, 6));
        assert_eq!(s.ingress(at(0), b, &frame(Mac::PROBE, mac(2)), &mut out), Entry::Taken);
        assert_eq!((s.table_len(), send(&mut s, at(0), a, &frame(mac(1), Mac::PROBE))), (0, vec![b]));
    }

    #[test]
    fn names_and_their_number_are_checked() {
        let (mut s, _) = switch();
        assert_eq!(s.add_port(id("a"), &"mgmt".into()), Err(SwitchError::DuplicatePort { port: id("a") }));
        for n in 4..PORTS_MAX {
            s.add_port(id(&format!("n{n}")), &"data".into()).unwrap();
        }
        assert_eq!(s.add_port(id("z"), &"data".into()), Err(SwitchError::TooManyPorts { port: id("z") }));
    }
}
