//! One seal among three acceptors and two proposers that write different values. `write-once`: all who learn a value learn
//! the same, for ever.
//!
//! There is no time in it. The network keeps what was sent: each message may arrive at any time, in any order, again
//! and again, or never. A crash takes everything but what is on disk; what was on its way there may have got there.
//!
//! Three things keep it small without leaving anything out:
//! - What a proposer hears shows only when a majority has said it. So two answers arrive together, at the moment when the
//!   second would have arrived; before, the first is still under way.
//! - An answer that its proposer will never heed again, for it is about an earlier ballot or comes too late, is dropped.
//! - Acceptors that may meet the same are interchangeable: worlds that differ in their names alone are one.

use super::explore::{Order, World, damage, explore, fingerprint, hunt};
use super::{proving, timed};
use crate::rules::{Rule, Rules};
use crate::seal::*;
use crate::voters::Voters;
use proto::envelope::{decode, encode};
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use std::collections::BTreeSet;
use std::rc::Rc;

#[derive(Clone, Debug)]
struct Bounds {
    /// How many write, one or two, and the rounds of each.
    proposers: usize,
    rounds: [u64; 2],
    /// Crashes of acceptors, none or one, and of the first proposer. Who will not crash any more writes at once.
    acceptors_crash: u8,
    proposer_crashes: u8,
    /// A third member that only learns. It asks each acceptor once, at any time, and forgets what it heard until that is
    /// enough. Nobody is told of a decision here, so that only votes tell.
    learner: bool,
    /// The same vote may arrive twice before another does. Acceptors have names then.
    twice: bool,
    rules: Rules,
}

const BASE: Bounds = Bounds {
    proposers: 2,
    rounds: [1, 1],
    acceptors_crash: 0,
    proposer_crashes: 0,
    learner: false,
    twice: false,
    rules: Rules::ALL,
};

#[derive(Clone, Hash)]
struct Voter {
    acceptor: Acceptor,
    disk: Record,
    writing: Option<(u64, Record)>,
}

#[derive(Clone, Hash)]
struct Writer {
    proposer: Proposer,
    disk: Round,
    writing: Option<(u64, Round)>,
}

#[derive(Clone)]
struct Small {
    bounds: Bounds,
    // Shared with the world before: a step changes one of them.
    voters: Vec<Rc<Voter>>,
    writers: Vec<Rc<Writer>>,
    sent: Rc<BTreeSet<(MemberId, Message)>>,
    acceptors_crash: u8,
    proposer_crashes: u8,
    learnt: BTreeSet<Value>,
    contradiction: bool,
}

impl std::hash::Hash for Small {
    fn hash<H: std::hash::Hasher>(&self, to: &mut H) {
        let mut voters: Vec<u64> = (0..self.voters.len()).map(|n| self.seen_at(n)).collect();
        if !self.bounds.twice {
            let (crash, others) = voters.split_at_mut(usize::from(self.acceptors_crash));
            crash.sort_unstable();
            others.sort_unstable();
        }
        (voters, &self.writers, &self.learnt, self.contradiction).hash(to);
        (self.acceptors_crash, self.proposer_crashes).hash(to);
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// To an acceptor.
    Ask(usize, Message),
    /// To a proposer, one after the other.
    Hear(usize, Vec<Message>),
    AnotherRound(usize),
    VoterWrites(usize),
    VoterCrashes(usize),
    WriterWrites(usize),
    WriterCrashes(usize),
}

const REGISTER: Register = Register([7; 32]);

fn id(n: usize) -> MemberId {
    MemberId([n as u8 + 1; 32])
}

fn value(name: &str) -> Value {
    Value::new(name.as_bytes()).unwrap()
}

impl Bounds {
    fn list(&self) -> Voters {
        Voters::new(1, (0..3).map(id)).unwrap()
    }

    fn acceptor(&self, n: usize, record: Record) -> Acceptor {
        Acceptor::new(id(n), REGISTER, self.list(), record).with_rules(self.rules)
    }

    /// Proposers are members of their own: what reaches a proposer reaches no acceptor.
    fn proposer(&self, n: usize, round: Round) -> Proposer {
        let patience = Duration::from_nanos(1);
        Proposer::new(id(3 + n), REGISTER, self.list(), round, patience, Time::ZERO).with_rules(self.rules)
    }

    fn start(&self) -> Small {
        let voter = |n| {
            let acceptor = self.acceptor(n, Record::default());
            Rc::new(Voter { acceptor, disk: Record::default(), writing: None })
        };
        let writer =
            |n| Rc::new(Writer { proposer: self.proposer(n, Round(0)), disk: Round(0), writing: None });
        let mut small = Small {
            bounds: self.clone(),
            voters: (0..3).map(voter).collect(),
            writers: (0..if self.learner { 3 } else { 2 }).map(writer).collect(),
            sent: Rc::default(),
            acceptors_crash: self.acceptors_crash,
            proposer_crashes: self.proposer_crashes,
            learnt: BTreeSet::new(),
            contradiction: false,
        };
        small.tell(0, ProposerInput::Propose(value("a")));
        if self.proposers > 1 {
            small.tell(1, ProposerInput::Propose(value("b")));
        }
        if self.learner {
            small.tell(2, ProposerInput::Learn);
        }
        small
    }
}

impl Small {
    /// Everything about one acceptor but its name: itself, and what is under way to it and from it.
    fn seen_at(&self, n: usize) -> u64 {
        let voter = &self.voters[n];
        let under_way = self.sent.iter().filter_map(|(to, message)| {
            let (arrives, left) = (*to == id(n), message.from == id(n));
            (arrives || left).then_some((arrives, if arrives { message.from } else { *to }, &message.body))
        });
        fingerprint(&(voter.acceptor.state(), &voter.disk, &voter.writing, under_way.collect::<Vec<_>>()))
    }

    /// Whether a proposer may get another life, which may heed what this one does not.
    fn may_crash(&self, n: usize) -> bool {
        n == 0 && self.proposer_crashes > 0
    }

    fn drop_unheeded(&mut self) {
        let unheeded = |small: &Small, to: &MemberId, message: &Message| {
            let n = usize::from(to.0[0]) - 1;
            let says_nothing = message.body == Body::Undecided { accepted: None };
            n >= 3
                && !small.may_crash(n - 3)
                && (says_nothing || !small.writers[n - 3].proposer.may_heed(&message.body))
        };
        if self.sent.iter().any(|(to, message)| unheeded(self, to, message)) {
            let kept = self.sent.iter().filter(|(to, message)| !unheeded(self, to, message)).cloned();
            self.sent = Rc::new(kept.collect());
        }
    }

    /// What proposer `n` may hear next: a decision, a refusal, or the same kind of answer from two acceptors.
    fn hear_actions(&self, n: usize, all: &mut Vec<Action>) {
        let proposer = &self.writers[n].proposer;
        let mine: Vec<&Message> = self
            .sent
            .iter()
            .filter(|(to, message)| *to == id(3 + n) && proposer.may_heed(&message.body))
            .map(|(_, message)| message)
            .collect();
        for (at, first) in mine.iter().enumerate() {
            if matches!(first.body, Body::Decided(_) | Body::Behind { .. }) {
                all.push(Action::Hear(n, vec![(*first).clone()]));
                continue;
            }
            if self.bounds.twice && matches!(first.body, Body::Voted(_)) {
                all.push(Action::Hear(n, vec![(*first).clone(); 2]));
            }
            let same = std::mem::discriminant(&first.body);
            let others = mine[at + 1..]
                .iter()
                .filter(|second| second.from != first.from && std::mem::discriminant(&second.body) == same);
            all.extend(others.map(|second| Action::Hear(n, vec![(*first).clone(), (*second).clone()])));
        }
    }

    fn tell(&mut self, n: usize, input: ProposerInput) {
        let mut out = Vec::new();
        self.writer(n).proposer.handle(Time::ZERO, input, &mut out);
        self.carry_out(n, out);
    }

    fn voter(&mut self, n: usize) -> &mut Voter {
        Rc::make_mut(&mut self.voters[n])
    }

    fn writer(&mut self, n: usize) -> &mut Writer {
        Rc::make_mut(&mut self.writers[n])
    }

    fn send(&mut self, to: MemberId, message: Message) {
        let untold = self.bounds.learner && matches!(message.body, Body::Decided(_));
        if !untold && !self.sent.contains(&(to, message.clone())) {
            Rc::make_mut(&mut self.sent).insert((to, message));
        }
    }

    fn carry_out(&mut self, n: usize, out: Vec<ProposerOutput>) {
        for output in out {
            match output {
                ProposerOutput::Send(to, message) => {
                    self.send(to, message);
                }
                ProposerOutput::Persist(token, round) => {
                    self.writer(n).writing = Some((token, round));
                    if !self.may_crash(n) {
                        self.write_round(n);
                    }
                }
                ProposerOutput::Decided(value) => {
                    self.learnt.insert(value);
                }
            }
        }
    }

    fn write_round(&mut self, n: usize) {
        if let Some((token, round)) = self.writer(n).writing.take() {
            self.writer(n).disk = round;
            self.tell(n, ProposerInput::Persisted(token));
        }
    }

    fn ask(&mut self, n: usize, input: AcceptorInput) {
        let mut out = Vec::new();
        self.voter(n).acceptor.handle(input, &mut out);
        for output in out {
            match output {
                AcceptorOutput::Send(to, message) => {
                    self.send(to, message);
                }
                AcceptorOutput::Persist(token, record) => {
                    self.voter(n).writing = Some((token, record));
                    if !self.voter_may_crash(n) {
                        self.write(n);
                    }
                }
                AcceptorOutput::Decided(value) => {
                    self.learnt.insert(value);
                }
                AcceptorOutput::Contradiction(..) => self.contradiction = true,
            }
        }
    }

    fn voter_may_crash(&self, n: usize) -> bool {
        n < usize::from(self.acceptors_crash)
    }

    fn write(&mut self, n: usize) {
        if let Some((token, record)) = self.voter(n).writing.take() {
            self.voter(n).disk = record;
            self.ask(n, AcceptorInput::Persisted(token));
        }
    }
}

impl World for Small {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let to_voter = |(to, message): &(MemberId, Message)| {
            let n = usize::from(to.0[0]) - 1;
            (n < 3).then(|| Action::Ask(n, message.clone()))
        };
        let mut all: Vec<_> = self.sent.iter().filter_map(to_voter).collect();
        for (n, writer) in self.writers.iter().enumerate() {
            self.hear_actions(n, &mut all);
            if writer.proposer.waits()
                && self.bounds.rounds.get(n).is_some_and(|rounds| writer.disk.0 < *rounds)
            {
                all.push(Action::AnotherRound(n));
            }
            if writer.writing.is_some() {
                all.push(Action::WriterWrites(n));
            }
        }
        if self.proposer_crashes > 0 {
            all.push(Action::WriterCrashes(0));
        }
        for (n, voter) in self.voters.iter().enumerate() {
            if voter.writing.is_some() {
                all.push(Action::VoterWrites(n));
            }
            if self.voter_may_crash(n) {
                all.push(Action::VoterCrashes(n));
            }
        }
        all
    }

    fn step(&mut self, action: &Action) {
        match action {
            Action::Ask(n, message) => {
                if message.body == Body::Ask {
                    Rc::make_mut(&mut self.sent).remove(&(id(*n), message.clone()));
                }
                self.ask(*n, AcceptorInput::Message(message.clone()));
            }
            Action::Hear(n, messages) => {
                let before = self.writers[*n].clone();
                for message in messages {
                    self.tell(*n, ProposerInput::Message(message.clone()));
                }
                if *n == 2 && self.writers[*n].proposer.decided().is_none() {
                    self.writers[*n] = before;
                }
            }
            Action::AnotherRound(n) => {
                let mut out = Vec::new();
                let due = self.writers[*n].proposer.next_wakeup().unwrap();
                self.writer(*n).proposer.handle_timeout(due, &mut out);
                self.carry_out(*n, out);
            }
            Action::VoterWrites(n) => self.write(*n),
            Action::VoterCrashes(n) => {
                self.acceptors_crash -= 1;
                let record = decode(&encode(&self.voters[*n].disk)).unwrap();
                let acceptor = self.bounds.acceptor(*n, record);
                let voter = self.voter(*n);
                (voter.acceptor, voter.writing) = (acceptor, None);
            }
            Action::WriterWrites(n) => self.write_round(*n),
            Action::WriterCrashes(n) => {
                self.proposer_crashes -= 1;
                let round = decode(&encode(&self.writers[*n].disk)).unwrap();
                let proposer = self.bounds.proposer(*n, round);
                let writer = self.writer(*n);
                (writer.proposer, writer.writing) = (proposer, None);
                // Its next life has something else in mind.
                self.tell(*n, ProposerInput::Propose(value("c")));
            }
        }
        self.drop_unheeded();
    }

    fn broken(&self) -> Option<String> {
        let two = self.learnt.len() > 1 || self.contradiction;
        two.then(|| format!("write-once: {:?} were learnt", self.learnt))
    }
}

/// The model holds within its bounds, which are wider when a proof is asked for.
fn holds(name: &str, small: Bounds, large: Bounds) {
    let (bounds, most) = if proving() { (large, 200_000_000) } else { (small, 600_000) };
    let explored = || explore(bounds.start(), most, Order::Eventful);
    let outcome = timed(&format!("seal, {name}"), explored);
    if let Some(how) = outcome.broken {
        panic!("{name}: {how}");
    }
    assert!(outcome.complete, "{name} has more than {most} states: tighten its bounds");
}

/// Without the rule the model breaks a promise; when a proof is asked for, with it no promise is seen to break there.
fn caught(rule: Rule, bounds: Bounds) {
    if proving() {
        assert_eq!(damage(&bounds.start()), None, "it breaks with {rule:?} kept");
    }
    let bounds = Bounds { rules: Rules::without(rule), ..bounds };
    let outcome = timed(&format!("seal, without {rule:?}"), || hunt(&bounds.start()));
    assert!(outcome.broken.is_some(), "nothing notices that {rule:?} is broken");
}

const VOTERS_CRASH: Bounds = Bounds { acceptors_crash: 1, ..BASE };
const WRITER_CRASHES: Bounds = Bounds { proposers: 1, proposer_crashes: 1, ..BASE };

#[test]
fn messages_in_any_order() {
    holds("one round each; proof: two", BASE, Bounds { rounds: [2, 2], ..BASE });
    let twice = Bounds { twice: true, ..BASE };
    holds("votes that arrive twice", twice.clone(), twice);
}

#[test]
fn somebody_only_learns() {
    holds("a learner", Bounds { learner: true, ..BASE }, Bounds { learner: true, ..BASE });
}

#[test]
fn acceptors_crash() {
    holds("an acceptor crashes", VOTERS_CRASH, VOTERS_CRASH);
}

#[test]
fn a_proposer_crashes() {
    holds("a proposer crashes; proof: one of two", WRITER_CRASHES, Bounds { proposers: 2, ..WRITER_CRASHES });
    let both = Bounds { acceptors_crash: 1, ..WRITER_CRASHES };
    holds("a proposer and an acceptor crash", both.clone(), both);
}

#[test]
fn a_promise_is_kept() {
    caught(Rule::PromiseHolds, BASE);
}

#[test]
fn the_highest_vote_is_adopted() {
    caught(Rule::AdoptHighest, BASE);
}

#[test]
fn votes_count_by_distinct_acceptor() {
    caught(Rule::DistinctVoters, Bounds { twice: true, ..BASE });
}

#[test]
fn a_vote_is_on_disk_before_it_is_told() {
    caught(Rule::DurableFirst, VOTERS_CRASH);
}

#[test]
fn a_round_is_on_disk_before_it_is_used() {
    caught(Rule::RoundFirst, WRITER_CRASHES);
}
