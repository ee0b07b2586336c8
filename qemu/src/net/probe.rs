//! The probing host: a station on one segment that asks who owns each watched VIP and plays a client that
//! measures how long it is out of reach. No socket, no clock: frames and time in, frames and events out.
//!
//! | question | IPv4 | IPv6 | answered |
//! |---|---|---|---|
//! | who owns it? | ARP request from one of 16 link-local addresses, each with a hardware address of its own | NS likewise | by unicast to that address: every answer finds its question |
//! | is it in reach? | ICMP echo | ICMPv6 echo | to the host's own address |
//!
//! Duplicate checks (from 0.0.0.0 or `::`) would leave no trace in the machines, but they look like somebody who is
//! about to take the address, and a kernel's answer to the IPv6 one is byte for byte an announcement. So questions
//! come from a small fixed set of link-local addresses: 16 entries in each machine's neighbour tables and no more.
//!
//! The host answers for its own addresses and resolves VIPs as clients do: by a question each second, and from
//! what it overhears.

use super::config::{HostConfig, ProbeTiming};
use super::frames::{self, Advertise, Arp, Echo, Frame, Packet, Solicit, group_mac, solicited_node};
use super::mac::Mac;
use super::owners::{Owners, QUESTIONS_KEPT};
use super::reach::Reach;
use super::report::{NetEvent, VipReport};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use proto::time::{Duration, Time};
use std::collections::BTreeMap;

/// Most watched VIPs. At 100 ms each they make 640 questions a second, which two emulated nodes still bear.
pub const VIPS_MAX: usize = 64;
/// The probing host asks where a measured VIP is this often.
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);

/// Questions carry this many different numbers, each a station of its own to the machines: as many as are kept.
const SLOTS: u32 = QUESTIONS_KEPT as u32;
/// Names the probing host's echoes.
const IDENT: u16 = 0x454b;

/// Why a VIP cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Nothing changed.
    #[error("cannot watch {ip}: {VIPS_MAX} addresses are watched already; unwatch one")]
    TooMany {
        /// The address.
        ip: IpAddr,
    },
    /// Nothing changed.
    #[error(
        "cannot measure {ip}: the probing host has no address of its family; give it one or watch without measuring"
    )]
    NoSource {
        /// The address.
        ip: IpAddr,
    },
    /// Nothing changed.
    #[error("cannot watch {ip}: it is not the address of one station")]
    NotUnicast {
        /// The address.
        ip: IpAddr,
    },
    /// There is no such watch.
    #[error("{ip} is not watched: watch it first")]
    NotWatched {
        /// The address.
        ip: IpAddr,
    },
}

/// What the host wants sent and told.
#[derive(Debug, Default)]
pub struct ProbeOut {
    /// Frames for the segment.
    pub frames: Vec<Vec<u8>>,
    /// News for the subscribers.
    pub events: Vec<NetEvent>,
}

#[derive(Debug)]
struct Watched {
    owners: Owners,
    reach: Option<Reach>,
    marked: Time,
    next_question: Time,
    next_echo: Time,
    next_resolve: Time,
}

/// The probing host.
#[derive(Debug)]
pub struct ProbeHost {
    timing: ProbeTiming,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    link_local: Ipv6Addr,
    vips: BTreeMap<IpAddr, Watched>,
    /// Goes with every echo, so that another lab's echoes are not taken for ours.
    nonce: [u8; 8],
}

impl ProbeHost {
    /// A host that watches nothing yet.
    pub fn new(host: &HostConfig, timing: ProbeTiming, seed: u64) -> ProbeHost {
        ProbeHost {
            timing: timing.bounded(),
            v4: host.v4.map(|n| n.addr()),
            v6: host.v6.map(|n| n.addr()),
            link_local: link_local(Mac::PROBE),
            vips: BTreeMap::new(),
            nonce: seed.to_be_bytes(),
        }
    }

    /// Watches `ip`, and measures its reachability or not. Again on a watched one only changes `measure`.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn watch(&mut self, now: Time, ip: IpAddr, measure: bool) -> Result<(), WatchError> {
        if ip.is_multicast() || ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(WatchError::NotUnicast { ip });
        }
        if measure && self.source_for(ip).is_none() {
            return Err(WatchError::NoSource { ip });
        }
        let count = self.vips.len();
        if count >= VIPS_MAX && !self.vips.contains_key(&ip) {
            return Err(WatchError::TooMany { ip });
        }
        let t = self.timing;
        let watched = self.vips.entry(ip).or_insert_with(|| Watched {
            owners: Owners::new(now, ip, t.answer_window, t.silent_after),
            reach: None,
            marked: now,
            // Spread over the interval: a burst of questions would wait in the machines' queues.
            next_question: now + t.owner_interval * (count as u32 % 8) / 8,
            next_echo: now,
            next_resolve: now,
        });
        match (measure, &watched.reach) {
            (true, None) => {
                watched.reach = Some(Reach::new(now, t.reach_interval, t.outage_floor));
                (watched.next_echo, watched.next_resolve) = (now, now);
            }
            (false, Some(_)) => watched.reach = None,
            (true, Some(_)) | (false, None) => {}
        }
        Ok(())
    }

    /// Ends the watch of `ip`.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn unwatch(&mut self, ip: IpAddr) -> Result<(), WatchError> {
        self.vips.remove(&ip).map(drop).ok_or(WatchError::NotWatched { ip })
    }

    /// The watched addresses.
    pub fn watched(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.keys().copied()
    }

    /// Who answers for `ip` now.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn holder(&self, ip: IpAddr) -> Result<Option<Mac>, WatchError> {
        self.vips.get(&ip).map(|w| w.owners.holder()).ok_or(WatchError::NotWatched { ip })
    }

    /// Begins a new measurement of `ip`.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn mark(&mut self, now: Time, ip: IpAddr) -> Result<(), WatchError> {
        let watched = self.vips.get_mut(&ip).ok_or(WatchError::NotWatched { ip })?;
        watched.owners.mark();
        watched.marked = now;
        if let Some(reach) = &mut watched.reach {
            reach.mark(now);
        }
        Ok(())
    }

    /// What was found out about `ip` since its last mark.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn report(&self, now: Time, ip: IpAddr) -> Result<VipReport, WatchError> {
        let watched = self.vips.get(&ip).ok_or(WatchError::NotWatched { ip })?;
        let owners = &watched.owners;
        Ok(VipReport {
            vip: ip,
            holder: owners.holder(),
            last_answer: owners.last_answer,
            marked: watched.marked,
            questions: owners.asked,
            samples: owners.samples,
            double_owner_samples: owners.doubles.clone(),
            double_owners_seen: owners.doubles_seen,
            quick_moves: owners.quick_moves,
            late_answers: owners.late,
            reach: watched.reach.as_ref().map(|r| r.report(now)),
        })
    }

    /// Takes a frame from the segment.
    pub fn handle(&mut self, now: Time, bytes: &[u8], out: &mut ProbeOut) {
        let Some(frame) = frames::parse(bytes) else { return };
        match frame.packet {
            Packet::Arp(arp) => self.handle_arp(now, &arp, out),
            Packet::Echo(echo) => self.handle_echo(now, &frame, &echo, out),
            Packet::Solicit(solicit) => self.handle_solicit(&frame, &solicit, out),
            Packet::Advertise(say) => self.handle_advertise(now, &frame, &say, out),
            Packet::Tcp { .. } | Packet::Other => {}
        }
    }

    /// Asks what is due and notices silence.
    pub fn handle_timeout(&mut self, now: Time, out: &mut ProbeOut) {
        let timing = self.timing;
        let (v4, link_local, v6, nonce) = (self.v4, self.link_local, self.v6, self.nonce);
        for (&ip, w) in &mut self.vips {
            w.owners.handle_timeout(now, &mut out.events);
            if w.next_question <= now {
                let number = w.owners.ask(now);
                out.frames.push(owner_question(ip, number));
                w.next_question = following(w.next_question, timing.owner_interval, now);
            }
            let (Some(reach), Some(source)) = (&mut w.reach, source_of(ip, v4, v6, link_local)) else {
                continue;
            };
            if w.next_resolve <= now {
                out.frames.extend(resolve_question(source, ip));
                w.next_resolve = following(w.next_resolve, RESOLVE_INTERVAL, now);
            }
            if w.next_echo <= now {
                let sequence = reach.send(now.since(w.next_echo));
                if let Some(station) = reach.station() {
                    let ping =
                        Echo { reply: false, source, destination: ip, ident: IDENT, sequence, data: &nonce };
                    out.frames.extend(frames::echo(Mac::PROBE, station, &ping));
                }
                w.next_echo = following(w.next_echo, timing.reach_interval, now);
            }
        }
    }

    /// When [`ProbeHost::handle_timeout`] has something to do next.
    pub fn next_wakeup(&self) -> Option<Time> {
        let next = |w: &Watched| match w.reach {
            Some(_) => w.next_question.min(w.next_echo).min(w.next_resolve),
            None => w.next_question,
        };
        self.vips.values().map(next).min()
    }

    fn handle_arp(&mut self, now: Time, arp: &Arp, out: &mut ProbeOut) {
        if let Some(w) = self.vips.get_mut(&IpAddr::V4(arp.sender)) {
            match arp.target_mac.number_after(Mac::QUESTION_V4_PREFIX) {
                Some(number) if arp.reply => {
                    w.owners.answered(now, number, SLOTS, arp.sender_mac, &mut out.events);
                    out.frames.extend(w.owners.follow_up(now).map(|n| owner_question(arp.sender.into(), n)));
                }
                _ => {
                    if let Some(reach) = &mut w.reach {
                        reach.resolved(arp.sender_mac, true);
                    }
                }
            }
        }
        if !arp.reply && Some(arp.target) == self.v4 && arp.sender_mac.is_station() {
            let answer = Arp {
                reply: true,
                sender_mac: Mac::PROBE,
                sender: arp.target,
                target_mac: arp.sender_mac,
                target: arp.sender,
            };
            out.frames.push(frames::arp(arp.sender_mac, &answer));
        }
    }

    fn handle_echo(&mut self, now: Time, frame: &Frame<'_>, echo: &Echo<'_>, out: &mut ProbeOut) {
        if !self.is_own(echo.destination) || frame.destination != Mac::PROBE {
            return;
        }
        if !echo.reply {
            let (source, destination) = (echo.destination, echo.source);
            let answer = Echo { reply: true, source, destination, ..*echo };
            out.frames.extend(frames::echo(Mac::PROBE, frame.source, &answer));
            return;
        }
        let Some(w) = self.vips.get_mut(&echo.source) else { return };
        let ours = echo.ident == IDENT && echo.data == self.nonce;
        if let (true, Some(reach)) = (ours, &mut w.reach)
            && reach.reply(now, echo.sequence)
        {
            w.owners.alive(now, frame.source, &mut out.events);
        }
    }

    fn handle_solicit(&mut self, frame: &Frame<'_>, ask: &Solicit, out: &mut ProbeOut) {
        if let (Some(mac), Some(w)) = (ask.source_mac, self.vips.get_mut(&IpAddr::V6(ask.source)))
            && let Some(reach) = &mut w.reach
        {
            reach.resolved(mac, true);
        }
        let own = match question_slot(ask.target) {
            Some(slot) => Mac::numbered(Mac::QUESTION_V6_PREFIX, slot),
            None if self.is_own(ask.target.into()) => Mac::PROBE,
            None => return,
        };
        // A question from nobody (a duplicate check) is answered to everybody.
        let nobody = ask.source.is_unspecified();
        let (to, destination) = match nobody {
            true => (group_mac(frames::ALL_NODES), frames::ALL_NODES),
            false => (ask.source_mac.unwrap_or(frame.source), ask.source),
        };
        let answer = Advertise {
            source: ask.target,
            destination,
            target: ask.target,
            target_mac: Some(own),
            solicited: !nobody,
            overrides: true,
        };
        out.frames.push(frames::advertise(own, to, &answer));
    }

    fn handle_advertise(&mut self, now: Time, frame: &Frame<'_>, say: &Advertise, out: &mut ProbeOut) {
        let Some(w) = self.vips.get_mut(&IpAddr::V6(say.target)) else { return };
        let mac = say.target_mac.unwrap_or(frame.source);
        match question_slot(say.destination) {
            Some(slot) => {
                w.owners.answered(now, slot, SLOTS, mac, &mut out.events);
                out.frames.extend(w.owners.follow_up(now).map(|n| owner_question(say.target.into(), n)));
            }
            None => {
                if let Some(reach) = &mut w.reach {
                    reach.resolved(mac, say.overrides);
                }
            }
        }
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => Some(ip) == self.v4,
            IpAddr::V6(ip) => Some(ip) == self.v6 || ip == self.link_local,
        }
    }

    fn source_for(&self, ip: IpAddr) -> Option<IpAddr> {
        source_of(ip, self.v4, self.v6, self.link_local)
    }
}

/// The own address from which `ip` is spoken to.
fn source_of(ip: IpAddr, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, link_local: Ipv6Addr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(_) => v4.map(IpAddr::V4),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(link_local.into()),
        IpAddr::V6(_) => v6.map(IpAddr::V6),
    }
}

/// The next time of a periodic task; periods that were missed are left out, not made up for.
fn following(due: Time, interval: Duration, now: Time) -> Time {
    let next = due + interval;
    if next > now { next } else { now + interval }
}

fn owner_question(ip: IpAddr, number: u32) -> Vec<u8> {
    match ip {
        IpAddr::V4(target) => {
            // Not a probe from 0.0.0.0: RFC 5227 makes that somebody about to take the address, which a machine that
            // is about to take it must respect. Link-local senders (RFC 3927) are strangers who merely ask.
            let slot = number % SLOTS;
            let own = Mac::numbered(Mac::QUESTION_V4_PREFIX, slot);
            let sender = Ipv4Addr::new(169, 254, 81, 1 + slot as u8);
            let question = Arp { reply: false, sender_mac: own, sender, target_mac: Mac::ZERO, target };
            frames::arp(Mac::BROADCAST, &question)
        }
        IpAddr::V6(target) => {
            let slot = number % SLOTS;
            let own = Mac::numbered(Mac::QUESTION_V6_PREFIX, slot);
            let group = solicited_node(target);
            let question =
                Solicit { source: question_address(slot), destination: group, target, source_mac: Some(own) };
            frames::solicit(own, group_mac(group), &question)
        }
    }
}

/// The question of a client that wants to talk to `ip`.
fn resolve_question(source: IpAddr, ip: IpAddr) -> Option<Vec<u8>> {
    match (source, ip) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            let question =
                Arp { reply: false, sender_mac: Mac::PROBE, sender, target_mac: Mac::ZERO, target };
            Some(frames::arp(Mac::BROADCAST, &question))
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let group = solicited_node(target);
            let question = Solicit { source, destination: group, target, source_mac: Some(Mac::PROBE) };
            Some(frames::solicit(Mac::PROBE, group_mac(group), &question))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// The link-local address that goes with a hardware address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let words = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]].map(u16::from_be_bytes);
    Ipv6Addr::new(0xfe80, 0, 0, 0, words[0], words[1], words[2], words[3])
}

/// The address IPv6 question number `slot` is asked from.
fn question_address(slot: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x4551, 0, 0, slot as u16)
}

fn question_slot(address: Ipv6Addr) -> Option<u32> {
    let slot = u32::from(address.segments()[7]);
    (slot < SLOTS && address == question_address(slot)).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Responder;
    use super::*;
    use proptest::prelude::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);

    fn host() -> HostConfig {
        HostConfig {
            segment: "data".into(),
            v4: Some("10.9.0.250/24".parse().unwrap()),
            v6: Some("fd09::250/64".parse().unwrap()),
        }
    }

    fn probe() -> ProbeHost {
        ProbeHost::new(&host(), timing(), 7)
    }

    /// Windows that end before the next question make for easy counting.
    fn timing() -> ProbeTiming {
        ProbeTiming { answer_window: Duration::from_millis(100), ..ProbeTiming::default() }
    }

    fn vips() -> [IpAddr; 3] {
        ["10.9.0.100", "fd09::100", "fe80::77"].map(|ip| ip.parse().unwrap())
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    /// Runs until `to`, every frame reaching every responder at once and every answer coming back `lag` later.
    fn run(p: &mut ProbeHost, from: u64, to: u64, lag: u64, who: &mut [&mut Responder]) -> Vec<NetEvent> {
        let mut events = Vec::new();
        let mut answers: Vec<(u64, Vec<u8>)> = Vec::new();
        for now in from..to {
            let mut out = ProbeOut::default();
            while answers.first().is_some_and(|(due, _)| *due <= now) {
                p.handle(at(now), &answers.remove(0).1, &mut out);
            }
            p.handle_timeout(at(now), &mut out);
            for frame in &out.frames {
                for responder in who.iter_mut() {
                    answers.extend(responder.answer(frame).into_iter().map(|a| (now + lag, a)));
                }
            }
            events.append(&mut out.events);
        }
        events
    }

    #[test]
    fn one_owner_is_found_and_moves_are_seen() {
        for vip in vips() {
            let mut p = probe();
            p.watch(at(0), vip, false).unwrap();
            let (mut a, mut b) = (Responder::new(A, &[vip]), Responder::new(B, &[]));
            let events = run(&mut p, 0, 1000, 3, &mut [&mut a, &mut b]);
            assert!(matches!(events[..], [NetEvent::VipAnswered { mac: A, .. }]), "{vip}: {events:?}");
            assert_eq!(p.holder(vip), Ok(Some(A)));
            (a.vips, b.vips) = (b.vips, a.vips);
            let events = run(&mut p, 1000, 2000, 3, &mut [&mut a, &mut b]);
            assert!(matches!(events[..], [NetEvent::VipMoved { from: A, to: B, .. }]), "{vip}: {events:?}");
            b.vips.clear();
            let events = run(&mut p, 2000, 4000, 3, &mut [&mut a, &mut b]);
            assert!(matches!(events[..], [NetEvent::VipSilent { .. }]), "{vip}: {events:?}");
            let report = p.report(at(4000), vip).unwrap();
            assert_eq!((report.holder, report.questions, report.samples), (None, 39, 20));
            assert_eq!((report.double_owners_seen, report.late_answers), (0, 0));
        }
    }

    /// A node that is about to take a VIP must give way to whoever asks from nowhere (RFC 5227 2.1.1, RFC 4862 5.4.3):
    /// the lab must never look like that rival.
    #[test]
    fn no_question_looks_like_a_duplicate_check() {
        for vip in vips() {
            let mut p = probe();
            p.watch(at(0), vip, true).unwrap();
            let mut asked = 0;
            for now in 0..2500 {
                let mut out = ProbeOut::default();
                p.handle_timeout(at(now), &mut out);
                for frame in &out.frames {
                    let asker: IpAddr = match frames::parse(frame).expect("own frames are whole").packet {
                        Packet::Arp(arp) => arp.sender.into(),
                        Packet::Solicit(ask) => ask.source.into(),
                        _ => continue,
                    };
                    assert!(!asker.is_unspecified() && asker != vip, "{vip} is asked for by {asker}");
                    asked += 1;
                }
            }
            assert!(asked >= 25, "{vip}: {asked} questions");
        }
    }

    #[test]
    fn two_owners_are_caught_and_named() {
        for vip in vips() {
            let mut p = probe();
            p.watch(at(0), vip, false).unwrap();
            let (mut a, mut b) = (Responder::new(A, &[vip]), Responder::new(B, &[vip]));
            let events = run(&mut p, 0, 1050, 3, &mut [&mut a, &mut b]);
            let doubles = events.iter().filter(|e| matches!(e, NetEvent::DoubleOwner { .. })).count();
            assert_eq!(doubles, 1, "{vip}: {events:?}");
            let report = p.report(at(1050), vip).unwrap();
            assert_eq!(report.double_owner_samples.len(), 11);
            let macs: Vec<Mac> = report.double_owner_samples[3].answers.iter().map(|a| a.mac).collect();
            assert_eq!(macs, [A, B]);
        }
    }

    #[test]
    fn an_outage_is_measured() {
        for vip in vips() {
            let mut p = probe();
            p.watch(at(0), vip, true).unwrap();
            let mut a = Responder::new(A, &[vip]);
            run(&mut p, 0, 500, 2, &mut [&mut a]);
            p.mark(at(500), vip).unwrap();
            run(&mut p, 500, 1000, 2, &mut [&mut a]);
            let steady = p.report(at(1000), vip).unwrap().reach.unwrap();
            assert_eq!((steady.outages.len(), steady.station), (0, Some(A)), "{vip}: {steady:?}");
            assert!(steady.sent >= 100 && steady.sent - steady.answered <= 1, "{steady:?}");
            a.vips.clear();
            run(&mut p, 1000, 1300, 2, &mut [&mut a]);
            a.vips.push(vip);
            run(&mut p, 1300, 1600, 2, &mut [&mut a]);
            let report = p.report(at(1600), vip).unwrap().reach.unwrap();
            assert_eq!(report.outages.len(), 1, "{report:?}");
            let length = report.outages[0].length.as_millis();
            assert!((295..=305).contains(&length), "{length} ms");
        }
    }

    #[test]
    fn a_client_follows_announcements() {
        for vip in vips() {
            let mut p = probe();
            p.watch(at(0), vip, true).unwrap();
            let (mut a, mut b) = (Responder::new(A, &[vip]), Responder::new(B, &[]));
            run(&mut p, 0, 300, 2, &mut [&mut a, &mut b]);
            p.mark(at(300), vip).unwrap();
            (a.vips, b.vips) = (b.vips, a.vips);
            let mut out = ProbeOut::default();
            p.handle(at(310), &b.announce(vip), &mut out);
            assert!(out.frames.is_empty() && out.events.is_empty());
            run(&mut p, 310, 500, 2, &mut [&mut a, &mut b]);
            let reach = p.report(at(500), vip).unwrap().reach.unwrap();
            assert_eq!(reach.station, Some(B));
            assert!(reach.longest.length < Duration::from_millis(20), "{reach:?}");
        }
    }

    /// Without an announcement the client finds the new place by its next question.
    #[test]
    fn a_client_asks_again_each_second() {
        let [vip, ..] = vips();
        let mut p = probe();
        p.watch(at(0), vip, true).unwrap();
        let (mut a, mut b) = (Responder::new(A, &[vip]), Responder::new(B, &[]));
        run(&mut p, 0, 300, 2, &mut [&mut a, &mut b]);
        (a.vips, b.vips) = (b.vips, a.vips);
        run(&mut p, 300, 1200, 2, &mut [&mut a, &mut b]);
        let longest = p.report(at(1200), vip).unwrap().reach.unwrap().longest.length.as_millis();
        assert!((690..=715).contains(&longest), "{longest} ms");
    }

    /// Both stations answer, but of an instant that is long past.
    #[test]
    fn slow_answers_are_late_not_double() {
        let [vip, ..] = vips();
        let mut p = probe();
        p.watch(at(0), vip, false).unwrap();
        let (mut a, mut b) = (Responder::new(A, &[vip]), Responder::new(B, &[vip]));
        run(&mut p, 0, 1000, 150, &mut [&mut a, &mut b]);
        let report = p.report(at(1000), vip).unwrap();
        assert_eq!((report.double_owners_seen, report.samples), (0, 0));
        assert!(report.late_answers >= 16 && report.holder.is_some(), "{report:?}");
    }

    #[test]
    fn it_answers_for_its_own_addresses() {
        let mut p = probe();
        let own: [IpAddr; 3] =
            ["10.9.0.250", "fd09::250", "fe80::45:4bff:fe00:1"].map(|ip| ip.parse().unwrap());
        let ask = |p: &mut ProbeHost, frame: &[u8]| {
            let mut out = ProbeOut::default();
            p.handle(at(0), frame, &mut out);
            out.frames
        };
        for ip in own {
            let source: IpAddr = if ip.is_ipv4() { "10.9.0.1".parse() } else { "fd09::1".parse() }.unwrap();
            let question = match (source, ip) {
                (IpAddr::V4(sender), IpAddr::V4(target)) => frames::arp(
                    Mac::BROADCAST,
                    &Arp { reply: false, sender_mac: A, sender, target_mac: Mac::ZERO, target },
                ),
                (IpAddr::V6(source), IpAddr::V6(target)) => {
                    let destination = solicited_node(target);
                    frames::solicit(
                        A,
                        group_mac(destination),
                        &Solicit { source, destination, target, source_mac: Some(A) },
                    )
                }
                other => panic!("{other:?}"),
            };
            let answers = ask(&mut p, &question);
            assert_eq!(answers.len(), 1);
            assert_eq!(frames::stations(&answers[0]), Some((Mac::PROBE, A)));
            let ping = Echo { reply: false, source, destination: ip, ident: 1, sequence: 2, data: b"hello" };
            let answers = ask(&mut p, &frames::echo(A, Mac::PROBE, &ping).unwrap());
            let pong = Echo { reply: true, source: ip, destination: source, ..ping };
            assert_eq!(frames::parse(&answers[0]).unwrap().packet, Packet::Echo(pong));
            // Not for others.
            let other = Echo { destination: if ip.is_ipv4() { vips()[0] } else { vips()[1] }, ..ping };
            assert!(ask(&mut p, &frames::echo(A, Mac::PROBE, &other).unwrap()).is_empty());
        }
    }

    /// A machine that checks whether the address of a question still lives gets its answer.
    #[test]
    fn question_addresses_can_be_verified() {
        let mut p = probe();
        let target = question_address(3);
        let ask =
            Solicit { source: "fe80::1".parse().unwrap(), destination: target, target, source_mac: Some(A) };
        let mut out = ProbeOut::default();
        p.handle(at(0), &frames::solicit(A, Mac::numbered(Mac::QUESTION_V6_PREFIX, 3), &ask), &mut out);
        let Packet::Advertise(say) = frames::parse(&out.frames[0]).unwrap().packet else { panic!("{out:?}") };
        assert_eq!(say.target_mac, Some(Mac::numbered(Mac::QUESTION_V6_PREFIX, 3)));
        assert_eq!(question_slot(question_address(16)), None);
    }

    #[test]
    fn what_cannot_be_watched_is_refused() {
        let mut p = ProbeHost::new(&HostConfig { v6: None, ..host() }, timing(), 7);
        let [v4, v6, link_local] = vips();
        assert_eq!(p.watch(at(0), v6, true), Err(WatchError::NoSource { ip: v6 }));
        assert_eq!(p.watch(at(0), v6, false), Ok(()));
        assert_eq!(p.watch(at(0), link_local, true), Ok(()));
        assert_eq!(p.mark(at(0), v4), Err(WatchError::NotWatched { ip: v4 }));
        let group = "224.0.0.1".parse().unwrap();
        assert_eq!(p.watch(at(0), group, false), Err(WatchError::NotUnicast { ip: group }));
        for n in 2..VIPS_MAX as u8 {
            p.watch(at(0), Ipv4Addr::new(10, 9, 1, n).into(), false).unwrap();
        }
        assert_eq!(p.watch(at(0), v4, false), Err(WatchError::TooMany { ip: v4 }));
        p.unwatch(v6).unwrap();
        assert_eq!(p.watch(at(0), v4, true), Ok(()));
    }

    #[test]
    fn missed_periods_are_not_made_up_for() {
        let mut p = probe();
        p.watch(at(0), vips()[0], true).unwrap();
        let mut out = ProbeOut::default();
        p.handle_timeout(at(0), &mut out);
        out.frames.clear();
        p.handle_timeout(at(5000), &mut out);
        assert!(out.frames.len() <= 3, "{}", out.frames.len());
        assert_eq!(p.next_wakeup(), Some(at(5005)));
    }

    proptest! {
        #[test]
        fn any_frame_is_borne(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut p = probe();
            for vip in vips() {
                p.watch(at(0), vip, true).unwrap();
            }
            let mut out = ProbeOut::default();
            p.handle(at(1), &bytes, &mut out);
            prop_assert!(out.frames.len() <= 1);
        }
    }
}
