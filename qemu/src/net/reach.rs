//! How long was an address out of reach? The probing host plays a client: it sends an echo every few milliseconds
//! to the station in its neighbour cache and looks at the gaps between the answers.
//!
//! A gap is measured between the *arrivals* of two answers, less one interval: a machine that was frozen and then
//! answers everything it missed was away for its client all the same.

use super::mac::Mac;
use super::report::{OUTAGES_MAX, Outage, ReachReport};
use proto::time::{Duration, Time};
use std::collections::VecDeque;

/// Answers older than this many echoes are nobody's: a sequence number's half circle.
const SEQUENCES_KEPT: u16 = 1 << 15;

/// Reachability of one VIP.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    interval: Duration,
    floor: Duration,
    station: Option<Mac>,
    next_sequence: u16,
    in_flight: u16,
    last_reply: Time,
    sent: u64,
    answered: u64,
    outages: VecDeque<Outage>,
    outages_seen: u64,
    longest: Outage,
    lateness: Duration,
}

impl Reach {
    /// `floor`: shorter outages are not listed.
    pub(super) fn new(now: Time, interval: Duration, floor: Duration) -> Reach {
        let none = Outage { start: now, length: Duration::ZERO };
        Reach {
            interval,
            floor,
            station: None,
            next_sequence: 0,
            in_flight: 0,
            last_reply: now,
            sent: 0,
            answered: 0,
            outages: VecDeque::new(),
            outages_seen: 0,
            longest: none,
            lateness: Duration::ZERO,
        }
    }

    /// Begins a new measurement; the neighbour cache stays. A running outage counts from now on.
    pub(super) fn mark(&mut self, now: Time) {
        let (station, next_sequence) = (self.station, self.next_sequence);
        *self = Reach { station, next_sequence, ..Reach::new(now, self.interval, self.floor) };
    }

    /// Where echoes go.
    pub(super) fn station(&self) -> Option<Mac> {
        self.station
    }

    /// The neighbour says where it is. Without `overrides` a known place stays (neighbour discovery's rule).
    pub(super) fn resolved(&mut self, mac: Mac, overrides: bool) {
        if mac.is_station() && (overrides || self.station.is_none()) {
            self.station = Some(mac);
        }
    }

    /// An echo leaves, `late` behind its time; gives its number.
    pub(super) fn send(&mut self, late: Duration) -> u16 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_add(1).min(SEQUENCES_KEPT);
        self.sent += 1;
        self.lateness = self.lateness.max(late);
        sequence
    }

    /// An answer arrives. False when it is to no echo of this measurement.
    pub(super) fn reply(&mut self, now: Time, sequence: u16) -> bool {
        let age = self.next_sequence.wrapping_sub(1).wrapping_sub(sequence);
        if age >= self.in_flight {
            return false;
        }
        let gap = self.gap(now);
        if gap.length > self.longest.length {
            self.longest = gap;
        }
        if gap.length >= self.floor {
            self.outages_seen += 1;
            self.keep(gap);
        }
        self.answered += 1;
        self.last_reply = now;
        true
    }

    /// The state for a report at `now`.
    pub(super) fn report(&self, now: Time) -> ReachReport {
        let current = self.gap(now);
        let ongoing = current.length >= self.floor;
        let mut outages: Vec<Outage> = self.outages.iter().copied().collect();
        if ongoing {
            outages.push(current);
        }
        ReachReport {
            station: self.station,
            sent: self.sent,
            answered: self.answered,
            outages,
            outages_seen: self.outages_seen,
            longest: if current.length > self.longest.length { current } else { self.longest },
            ongoing,
            own_lateness_max: self.lateness,
        }
    }

    fn gap(&self, now: Time) -> Outage {
        Outage { start: self.last_reply, length: now.since(self.last_reply).saturating_sub(self.interval) }
    }

    /// Keeps the longest ones, in order of time.
    fn keep(&mut self, outage: Outage) {
        self.outages.push_back(outage);
        if self.outages.len() > OUTAGES_MAX {
            let shortest = self.outages.iter().enumerate().min_by_key(|(_, o)| o.length).map(|(i, _)| i);
            shortest.map(|i| self.outages.remove(i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + ms(millis)
    }

    fn reach() -> Reach {
        Reach::new(at(0), ms(5), ms(20))
    }

    /// Echoes every 5 ms from `from` to `to`, each answered a millisecond later.
    fn served(r: &mut Reach, from: u64, to: u64) {
        for t in (from..to).step_by(5) {
            let n = r.send(Duration::ZERO);
            assert!(r.reply(at(t + 1), n));
        }
    }

    #[test]
    fn steady_service_has_no_outage() {
        let mut r = reach();
        served(&mut r, 0, 1000);
        let report = r.report(at(1000));
        assert_eq!((report.sent, report.answered, report.outages.len()), (200, 200, 0));
        assert_eq!((report.longest.length, report.ongoing), (Duration::ZERO, false));
    }

    #[test]
    fn a_gap_is_an_outage_less_one_interval() {
        let mut r = reach();
        served(&mut r, 0, 100); // last answer at 96
        for _ in 0..50 {
            r.send(Duration::ZERO);
        }
        assert_eq!(r.report(at(300)).outages, [Outage { start: at(96), length: ms(199) }]);
        assert!(r.report(at(300)).ongoing);
        served(&mut r, 350, 400); // next answer at 351
        let report = r.report(at(400));
        assert_eq!(report.outages, [Outage { start: at(96), length: ms(250) }]);
        assert_eq!((report.longest, report.outages_seen, report.ongoing), (report.outages[0], 1, false));
    }

    #[test]
    fn without_any_answer_the_outage_runs_from_the_mark() {
        let mut r = reach();
        assert_eq!(r.report(at(500)).longest, Outage { start: at(0), length: ms(495) });
        r.mark(at(500));
        assert_eq!(r.report(at(505)).longest.length, Duration::ZERO);
        assert_eq!(r.report(at(600)).longest, Outage { start: at(500), length: ms(95) });
    }

    #[test]
    fn answers_to_nothing_and_to_before_the_mark_do_not_count() {
        let mut r = reach();
        assert!(!r.reply(at(1), 0));
        let old = r.send(Duration::ZERO);
        r.mark(at(10));
        assert!(!r.reply(at(11), old));
        let new = r.send(Duration::ZERO);
        assert!(!r.reply(at(12), new.wrapping_add(1)));
        assert!(r.reply(at(12), new));
    }

    #[test]
    fn sequence_numbers_go_round() {
        let mut r = reach();
        for t in 0..200_000u64 {
            let n = r.send(Duration::ZERO);
            assert!(r.reply(at(t), n));
        }
        assert_eq!(r.report(at(200_000)).answered, 200_000);
    }

    #[test]
    fn the_cache_obeys_the_override_flag() {
        let mut r = reach();
        r.resolved(A, false);
        r.resolved(B, false);
        assert_eq!(r.station(), Some(A));
        r.resolved(B, true);
        r.resolved(Mac::BROADCAST, true);
        r.mark(at(1));
        assert_eq!(r.station(), Some(B));
    }

    #[test]
    fn the_longest_outages_are_kept() {
        let mut r = reach();
        let mut now = 0;
        for n in 0..400u64 {
            now += 26 + n;
            let sequence = r.send(ms(n % 7));
            r.reply(at(now), sequence);
        }
        let report = r.report(at(now));
        assert_eq!((report.outages.len(), report.outages_seen), (OUTAGES_MAX, 400));
        assert_eq!(report.outages.iter().map(|o| o.length).min(), Some(ms(21 + 400 - OUTAGES_MAX as u64)));
        assert_eq!(report.own_lateness_max, ms(6));
    }
}
