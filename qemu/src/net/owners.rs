//! Who answers for an address? Questions carry numbers, so that each answer counts for the question it belongs to.
//!
//! Two stations that answer one question are a *suspicion* only: an emulated machine may find the question in its
//! queue, take the address, and then answer what was asked before. So a suspicion is followed at once by a second
//! question. A move cannot make the same two stations answer that as well; two owners do. A late answer shows life
//! but not ownership.
//!
//! ```text
//! unknown ──answer──> held(mac) ──answer of another, newer question──> held(other)     VipMoved
//!    ^  VipAnswered     │  ^ ^
//!    │                  │  │ └── question closes with one answer ── double ── VipMoved if another is left
//!    │                  │  └─ not both again (a quick move) ─┐        ^
//!    └──nothing for a   └──second answer in one window──> suspicion ──┘ both again     DoubleOwner
//!       while: silent ── VipSilent; the next answer: VipAnswered, and VipMoved if it is another's
//! ```

use super::mac::Mac;
use super::report::{Answer, DOUBLES_MAX, DoubleOwner, NetEvent};
use core::net::IpAddr;
use proto::time::{Duration, Time};
use std::collections::VecDeque;

/// Most stations counted for one question; more than the groups of a lab have nodes.
pub const ANSWERS_MAX: usize = 8;
/// Questions kept for late answers. Their numbers are told apart modulo this.
pub const QUESTIONS_KEPT: usize = 16;

#[derive(Clone, Debug)]
struct Question {
    number: u32,
    asked: Time,
    answers: Vec<Answer>,
    closed: bool,
    /// The question whose two answers this one verifies.
    verifies: Option<u32>,
}

/// The owner questions of one VIP.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    ip: IpAddr,
    window: Duration,
    silent_after: Duration,
    next_number: u32,
    questions: VecDeque<Question>,
    /// The newest question that was answered; older ones say nothing new about the holder.
    newest_answered: Option<u32>,
    /// Who answered last and when; kept through a silence, so that the next one can be told apart.
    last: Option<Answer>,
    silent: bool,
    /// Since the last proof of two owners: who a question asked before it was answered by says nothing.
    double: Option<Time>,
    /// A question with two answers that is to be followed up.
    suspicion: Option<u32>,
    /// Start of the time in which nobody answered.
    quiet_since: Time,
    /// When anybody last answered.
    pub(super) last_answer: Option<Time>,
    pub(super) asked: u64,
    pub(super) samples: u64,
    pub(super) late: u64,
    pub(super) quick_moves: u64,
    pub(super) doubles: Vec<DoubleOwner>,
    pub(super) doubles_seen: u64,
}

impl Owners {
    pub(super) fn new(now: Time, ip: IpAddr, window: Duration, silent_after: Duration) -> Owners {
        Owners {
            ip,
            window,
            silent_after,
            next_number: 0,
            questions: VecDeque::new(),
            newest_answered: None,
            last: None,
            silent: false,
            double: None,
            suspicion: None,
            quiet_since: now,
            last_answer: None,
            asked: 0,
            samples: 0,
            late: 0,
            quick_moves: 0,
            doubles: Vec::new(),
            doubles_seen: 0,
        }
    }

    /// Resets what is counted; the holder stays known.
    pub(super) fn mark(&mut self) {
        (self.asked, self.samples, self.late, self.quick_moves, self.doubles_seen) = (0, 0, 0, 0, 0);
        (self.doubles, self.suspicion) = (Vec::new(), None);
        // What was asked before the mark is not counted after it.
        self.questions.iter_mut().for_each(|q| q.closed = true);
    }

    /// The station that answers now.
    pub(super) fn holder(&self) -> Option<Mac> {
        self.last.filter(|_| !self.silent).map(|a| a.mac)
    }

    /// Opens a question and gives its number.
    pub(super) fn ask(&mut self, now: Time) -> u32 {
        self.open(now, None)
    }

    /// Opens the question that follows up a suspicion, if there is one, and gives its number.
    pub(super) fn follow_up(&mut self, now: Time) -> Option<u32> {
        let suspicious = self.suspicion.take()?;
        Some(self.open(now, Some(suspicious)))
    }

    fn open(&mut self, now: Time, verifies: Option<u32>) -> u32 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        if self.questions.len() >= QUESTIONS_KEPT {
            self.questions.pop_front();
        }
        let answers = Vec::new();
        self.questions.push_back(Question { number, asked: now, answers, closed: false, verifies });
        number
    }

    /// `mac` answers the newest question whose number ends in these bits (`modulus` is a power of two, at least
    /// [`QUESTIONS_KEPT`]). Returns false when there is none: an old answer, or an invented one. Ask for
    /// [`Owners::follow_up`] afterwards.
    pub(super) fn answered(
        &mut self,
        now: Time,
        bits: u32,
        modulus: u32,
        mac: Mac,
        events: &mut Vec<NetEvent>,
    ) -> bool {
        self.close_due(now, events);
        let found = self.questions.iter_mut().rev().find(|q| q.number % modulus == bits % modulus);
        let Some(question) = found.filter(|_| mac.is_station()) else { return false };
        let (number, verifies) = (question.number, question.verifies);
        if question.closed {
            self.late += 1;
        } else if question.answers.iter().all(|a| a.mac != mac) && question.answers.len() < ANSWERS_MAX {
            question.answers.push(Answer { mac, at: now });
            match (verifies, question.answers.len()) {
                (None, 2) => self.suspicion = Some(number),
                (Some(first), 2..) => self.verify(now, first, number, events),
                _ => {}
            }
        }
        // Wrapping numbers: the newest is at most a queue's length ahead.
        let fresh = self.newest_answered.is_none_or(|n| (number.wrapping_sub(n) as i32) > 0);
        if fresh {
            self.newest_answered = Some(number);
        }
        self.alive(now, mac, events);
        // While a suspicion is verified nobody is called the new holder: the next question tells.
        if fresh && self.double.is_none() && verifies.is_none() {
            self.held_by(now, mac, events);
        }
        true
    }

    /// `mac` answered, in whichever way: a silence is over, and nothing more is concluded.
    pub(super) fn alive(&mut self, now: Time, mac: Mac, events: &mut Vec<NetEvent>) {
        (self.quiet_since, self.last_answer) = (now, Some(now));
        if self.silent && self.last.is_some() {
            self.silent = false;
            events.push(NetEvent::VipAnswered { ip: self.ip, mac, at: now });
            self.held_by(now, mac, events);
        } else if self.last.is_none_or(|last| last.mac == mac) {
            self.held_by(now, mac, events);
        }
    }

    /// Closes questions and notices silence.
    pub(super) fn handle_timeout(&mut self, now: Time, events: &mut Vec<NetEvent>) {
        self.close_due(now, events);
        if !self.silent && now.since(self.quiet_since) >= self.silent_after {
            self.silent = true;
            self.double = None;
            events.push(NetEvent::VipSilent { ip: self.ip, at: now });
        }
    }

    fn held_by(&mut self, now: Time, mac: Mac, events: &mut Vec<NetEvent>) {
        let before = self.last.replace(Answer { mac, at: now });
        let (ip, at) = (self.ip, now);
        match before {
            None => {
                self.silent = false;
                events.push(NetEvent::VipAnswered { ip, mac, at });
            }
            Some(before) if before.mac != mac => {
                events.push(NetEvent::VipMoved {
                    ip,
                    from: before.mac,
                    to: mac,
                    gap: now.since(before.at),
                    at,
                });
            }
            Some(_) => {}
        }
    }

    /// Two answers to a question that followed a suspicion: are they the same two?
    fn verify(&mut self, now: Time, first: u32, again: u32, events: &mut Vec<NetEvent>) {
        let of = |number| self.questions.iter().find(|q| q.number == number);
        let (Some(suspicious), Some(verifying)) = (of(first), of(again)) else { return };
        let both = verifying.answers.iter().filter(|a| suspicious.answers.iter().any(|s| s.mac == a.mac));
        let macs: Vec<Mac> = both.map(|a| a.mac).collect();
        // Exactly two: a third answer to the same question is no further sample.
        if macs.len() != 2 || verifying.answers.last().is_none_or(|last| last.mac != macs[1]) {
            return;
        }
        self.doubles_seen += 1;
        if self.doubles.len() < DOUBLES_MAX {
            self.doubles.push(DoubleOwner {
                asked: suspicious.asked,
                answers: suspicious.answers.clone(),
                asked_again: verifying.asked,
                answers_again: verifying.answers.clone(),
            });
        }
        if self.double.replace(now).is_none() {
            events.push(NetEvent::DoubleOwner { ip: self.ip, macs, at: now });
        }
    }

    /// Counts the questions whose window is over.
    fn close_due(&mut self, now: Time, events: &mut Vec<NetEvent>) {
        let mut single = None;
        for question in self.questions.iter_mut().filter(|q| !q.closed) {
            if now.since(question.asked) < self.window {
                break; // asked in order, closed in order
            }
            question.closed = true;
            if question.verifies.is_some() {
                // Counted with the question it verifies.
                self.quick_moves += u64::from(question.answers.len() < 2);
                continue;
            }
            self.asked += 1;
            self.samples += u64::from(!question.answers.is_empty());
            single = match question.answers[..] {
                [only] => Some((question.asked, only)),
                _ => None,
            };
        }
        if let (Some(since), Some((asked, only))) = (self.double, single)
            && asked >= since
        {
            self.double = None;
            self.held_by(only.at, only.mac, events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    const IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 100));
    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
    const WRAP: u32 = 1 << 24;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn owners() -> Owners {
        Owners::new(at(0), IP, Duration::from_millis(100), Duration::from_secs(1))
    }

    /// Asks every 100 ms and lets `who` answer after 5 ms; returns the events.
    fn run(o: &mut Owners, from: u64, rounds: u64, who: &[Mac]) -> Vec<NetEvent> {
        let mut events = Vec::new();
        for round in 0..rounds {
            let start = from + round * 100;
            o.handle_timeout(at(start), &mut events);
            let number = o.ask(at(start));
            for mac in who {
                assert!(o.answered(at(start + 5), number, WRAP, *mac, &mut events));
            }
            if let Some(again) = o.follow_up(at(start + 5)) {
                for mac in who {
                    assert!(o.answered(at(start + 10), again, WRAP, *mac, &mut events));
                }
                assert_eq!(o.follow_up(at(start + 10)), None, "one follow-up for a question");
            }
        }
        o.handle_timeout(at(from + rounds * 100), &mut events);
        events
    }

    #[test]
    fn first_answer_move_and_silence() {
        let mut o = owners();
        assert_eq!(run(&mut o, 0, 3, &[A]), [NetEvent::VipAnswered { ip: IP, mac: A, at: at(5) }]);
        assert_eq!(o.holder(), Some(A));
        let moved =
            NetEvent::VipMoved { ip: IP, from: A, to: B, gap: Duration::from_millis(100), at: at(305) };
        assert_eq!(run(&mut o, 300, 3, &[B]), [moved]);
        assert_eq!(run(&mut o, 600, 12, &[]), [NetEvent::VipSilent { ip: IP, at: at(1600) }]);
        assert_eq!(o.holder(), None);
        let back = run(&mut o, 1800, 1, &[A]);
        assert_eq!(back[0], NetEvent::VipAnswered { ip: IP, mac: A, at: at(1805) });
        assert!(matches!(back[1], NetEvent::VipMoved { from: B, to: A, .. }), "{back:?}");
        assert_eq!((o.asked, o.samples, o.doubles_seen, o.late), (19, 7, 0, 0));
    }

    #[test]
    fn a_vip_that_never_answers_is_silent_once() {
        let mut o = owners();
        assert_eq!(run(&mut o, 0, 30, &[]), [NetEvent::VipSilent { ip: IP, at: at(1000) }]);
        assert_eq!(run(&mut o, 3000, 1, &[A]), [NetEvent::VipAnswered { ip: IP, mac: A, at: at(3005) }]);
    }

    #[test]
    fn two_answers_to_one_question_are_a_double_owner_told_once() {
        let mut o = owners();
        run(&mut o, 0, 2, &[A]);
        let events = run(&mut o, 200, 3, &[B, A]);
        let macs = vec![B, A];
        // The first answer of the episode may look like a move; from then on the holder is not argued about.
        assert_eq!(events.iter().filter(|e| matches!(e, NetEvent::DoubleOwner { .. })).count(), 1);
        assert!(events.contains(&NetEvent::DoubleOwner { ip: IP, macs, at: at(210) }));
        assert!(events.iter().filter(|e| matches!(e, NetEvent::VipMoved { .. })).count() <= 1);
        assert_eq!((o.doubles_seen, o.samples), (3, 5));
        assert_eq!((o.doubles[0].asked, o.doubles[0].asked_again), (at(200), at(205)));
        assert_eq!(o.quick_moves, 0);
        // One is left: the episode ends, and the holder is the one who is left.
        run(&mut o, 500, 2, &[A]);
        assert_eq!(o.holder(), Some(A));
        assert!(run(&mut o, 700, 2, &[B, A]).iter().any(|e| matches!(e, NetEvent::DoubleOwner { .. })));
    }

    #[test]
    fn a_move_between_questions_is_no_double_owner() {
        let mut o = owners();
        for round in 0..10 {
            run(&mut o, round * 100, 1, &[if round % 2 == 0 { A } else { B }]);
        }
        assert_eq!((o.doubles_seen, o.samples), (0, 10));
    }

    /// A window longer than the interval leaves questions open from before.
    #[test]
    fn questions_from_before_do_not_end_the_episode() {
        let mut o = Owners::new(at(0), IP, Duration::from_millis(250), Duration::from_secs(1));
        let mut events = run(&mut o, 0, 5, &[A]);
        events.extend(run(&mut o, 500, 10, &[A, B]));
        let doubles = events.iter().filter(|e| matches!(e, NetEvent::DoubleOwner { .. })).count();
        assert_eq!((doubles, events.len()), (1, 2), "{events:?}");
        let after = run(&mut o, 1500, 5, &[B]);
        assert!(matches!(after[..], [NetEvent::VipMoved { from: A, to: B, .. }]), "{after:?}");
    }

    /// The address moves while a question is on its way; both stations answer it in good faith.
    #[test]
    fn a_move_under_way_is_no_double_owner() {
        for then in [&[B][..], &[A], &[]] {
            let mut o = owners();
            run(&mut o, 0, 2, &[A]);
            let mut events = Vec::new();
            let number = o.ask(at(200));
            o.answered(at(205), number, WRAP, A, &mut events);
            o.answered(at(260), number, WRAP, B, &mut events);
            let again = o.follow_up(at(260)).unwrap();
            for mac in then {
                o.answered(at(265), again, WRAP, *mac, &mut events);
            }
            // And back again, the same way: the first suspicion must not prove the second.
            let back = o.ask(at(300));
            o.answered(at(305), back, WRAP, B, &mut events);
            o.answered(at(306), back, WRAP, A, &mut events);
            let again = o.follow_up(at(306)).unwrap();
            o.answered(at(310), again, WRAP, A, &mut events);
            events.extend(run(&mut o, 500, 1, &[A]));
            assert_eq!((o.doubles_seen, o.quick_moves, o.samples), (0, 2, 5), "{then:?}: {events:?}");
            assert!(events.iter().all(|e| matches!(e, NetEvent::VipMoved { .. })), "{events:?}");
            assert_eq!(o.holder(), Some(A));
        }
    }

    #[test]
    fn late_and_invented_answers_do_not_count_as_owners() {
        let mut o = owners();
        let mut events = Vec::new();
        let first = o.ask(at(0));
        o.answered(at(5), first, WRAP, A, &mut events);
        let second = o.ask(at(100));
        // B answers the first question long after its window: no double, no move.
        assert!(o.answered(at(150), first, WRAP, B, &mut events));
        assert!(o.answered(at(151), second, WRAP, A, &mut events));
        assert!(!o.answered(at(152), 77, WRAP, B, &mut events));
        assert!(!o.answered(at(152), second, WRAP, Mac::BROADCAST, &mut events));
        o.handle_timeout(at(300), &mut events);
        assert_eq!((o.late, o.doubles_seen, o.holder()), (1, 0, Some(A)));
        assert_eq!(events.len(), 1, "{events:?}");
        // A machine so slow that all its answers are late still holds the address.
        let mut slow = owners();
        let number = slow.ask(at(0));
        slow.answered(at(700), number, WRAP, B, &mut events);
        assert_eq!((slow.holder(), slow.samples, slow.late), (Some(B), 0, 1));
    }

    #[test]
    fn few_bits_tell_the_kept_questions_apart() {
        let mut o = owners();
        let mut events = Vec::new();
        for n in 0..40u64 {
            o.ask(at(n * 10));
        }
        let kept = QUESTIONS_KEPT as u32;
        assert!(o.answered(at(400), 39 % kept, kept, A, &mut events));
        assert_eq!((o.late, o.questions.len()), (0, QUESTIONS_KEPT));
        assert!(o.answered(at(400), 24 % kept, kept, A, &mut events));
        assert_eq!(o.late, 1);
    }

    #[test]
    fn a_mark_forgets_counts_and_open_questions() {
        let mut o = owners();
        run(&mut o, 0, 5, &[A, B]);
        let open = o.ask(at(500));
        let mut events = Vec::new();
        o.answered(at(505), open, WRAP, A, &mut events);
        o.answered(at(506), open, WRAP, B, &mut events);
        o.mark();
        assert_eq!(o.follow_up(at(506)), None);
        let open = o.ask(at(507));
        o.mark();
        o.answered(at(508), open, WRAP, A, &mut events);
        o.answered(at(509), open, WRAP, B, &mut events);
        assert_eq!(o.follow_up(at(509)), None);
        o.handle_timeout(at(700), &mut events);
        assert_eq!((o.asked, o.samples, o.doubles_seen, o.doubles.len()), (0, 0, 0, 0));
    }

    #[test]
    fn lists_are_bounded() {
        let mut o = owners();
        let crowd: Vec<Mac> = (1..=20).map(|n| Mac([2, 0, 0, 0, 1, n])).collect();
        run(&mut o, 0, 100, &crowd);
        assert_eq!((o.doubles.len(), o.doubles_seen), (DOUBLES_MAX, 100));
        assert_eq!(o.doubles[0].answers.len(), ANSWERS_MAX);
    }
}
