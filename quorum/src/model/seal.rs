//! One seal among three acceptors and two proposers that write different values. `write-once`: all who learn a value learn
//! the same, for ever.
//!
//! There is no time in it. The network keeps what was sent: each message may arrive at any time, in any order, again
//! and again, or never. A crash takes everything but what is on disk; what was on its way there may have got there.

use super::explore::{Order, Outcome, World, explore, hunt};
use super::proving;
use crate::rules::{Rule, Rules};
use crate::seal::*;
use crate::voters::Voters;
use proto::envelope::{decode, encode};
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use std::collections::BTreeSet;
use std::time::Instant;

#[derive(Clone, Debug)]
struct Bounds {
    /// Rounds of each proposer.
    rounds: [u64; 2],
    /// Crashes of acceptors and of the first proposer. Where an acceptor never crashes it writes at once.
    acceptors_crash: u8,
    proposer_crashes: u8,
    /// A third member that only learns.
    learner: bool,
    rules: Rules,
}

const BASE: Bounds =
    Bounds { rounds: [2, 1], acceptors_crash: 0, proposer_crashes: 0, learner: false, rules: Rules::ALL };

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
    voters: Vec<Voter>,
    writers: Vec<Writer>,
    sent: BTreeSet<(MemberId, Message)>,
    acceptors_crash: u8,
    proposer_crashes: u8,
    learnt: BTreeSet<Value>,
    contradiction: bool,
}

impl std::hash::Hash for Small {
    fn hash<H: std::hash::Hasher>(&self, to: &mut H) {
        (&self.voters, &self.writers, &self.sent, &self.learnt, self.contradiction).hash(to);
        (self.acceptors_crash, self.proposer_crashes).hash(to);
    }
}

#[derive(Clone, Debug)]
enum Action {
    Deliver(MemberId, Message),
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
        let voter = |n| Voter {
            acceptor: self.acceptor(n, Record::default()),
            disk: Record::default(),
            writing: None,
        };
        let writer = |n| Writer { proposer: self.proposer(n, Round(0)), disk: Round(0), writing: None };
        let mut small = Small {
            bounds: self.clone(),
            voters: (0..3).map(voter).collect(),
            writers: (0..if self.learner { 3 } else { 2 }).map(writer).collect(),
            sent: BTreeSet::new(),
            acceptors_crash: self.acceptors_crash,
            proposer_crashes: self.proposer_crashes,
            learnt: BTreeSet::new(),
            contradiction: false,
        };
        small.tell(0, ProposerInput::Propose(value("a")));
        small.tell(1, ProposerInput::Propose(value("b")));
        if self.learner {
            small.tell(2, ProposerInput::Learn);
        }
        small
    }
}

impl Small {
    fn tell(&mut self, n: usize, input: ProposerInput) {
        let mut out = Vec::new();
        self.writers[n].proposer.handle(Time::ZERO, input, &mut out);
        self.carry_out(n, out);
    }

    fn carry_out(&mut self, n: usize, out: Vec<ProposerOutput>) {
        for output in out {
            match output {
                ProposerOutput::Send(to, message) => {
                    self.sent.insert((to, message));
                }
                ProposerOutput::Persist(token, round) => {
                    self.writers[n].writing = Some((token, round));
                    if self.bounds.proposer_crashes == 0 || n > 0 {
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
        if let Some((token, round)) = self.writers[n].writing.take() {
            self.writers[n].disk = round;
            self.tell(n, ProposerInput::Persisted(token));
        }
    }

    fn ask(&mut self, n: usize, input: AcceptorInput) {
        let mut out = Vec::new();
        self.voters[n].acceptor.handle(input, &mut out);
        for output in out {
            match output {
                AcceptorOutput::Send(to, message) => {
                    self.sent.insert((to, message));
                }
                AcceptorOutput::Persist(token, record) => {
                    self.voters[n].writing = Some((token, record));
                    if self.bounds.acceptors_crash == 0 {
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

    fn write(&mut self, n: usize) {
        if let Some((token, record)) = self.voters[n].writing.take() {
            self.voters[n].disk = record;
            self.ask(n, AcceptorInput::Persisted(token));
        }
    }
}

impl World for Small {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let mut all: Vec<_> =
            self.sent.iter().map(|(to, message)| Action::Deliver(*to, message.clone())).collect();
        for (n, writer) in self.writers.iter().enumerate() {
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
            if self.acceptors_crash > 0 {
                all.push(Action::VoterCrashes(n));
            }
        }
        all
    }

    fn step(&mut self, action: &Action) {
        match action {
            Action::Deliver(to, message) => {
                let n = usize::from(to.0[0]) - 1;
                if n < 3 {
                    self.ask(n, AcceptorInput::Message(message.clone()));
                } else {
                    self.tell(n - 3, ProposerInput::Message(message.clone()));
                }
            }
            Action::AnotherRound(n) => {
                let mut out = Vec::new();
                let due = self.writers[*n].proposer.next_wakeup().unwrap();
                self.writers[*n].proposer.handle_timeout(due, &mut out);
                self.carry_out(*n, out);
            }
            Action::VoterWrites(n) => self.write(*n),
            Action::VoterCrashes(n) => {
                self.acceptors_crash -= 1;
                let voter = &mut self.voters[*n];
                voter.writing = None;
                voter.acceptor = self.bounds.acceptor(*n, decode(&encode(&voter.disk)).unwrap());
            }
            Action::WriterWrites(n) => self.write_round(*n),
            Action::WriterCrashes(n) => {
                self.proposer_crashes -= 1;
                let writer = &mut self.writers[*n];
                writer.writing = None;
                writer.proposer = self.bounds.proposer(*n, decode(&encode(&writer.disk)).unwrap());
                // Its next life has something else in mind.
                self.tell(*n, ProposerInput::Propose(value("c")));
            }
        }
    }

    fn broken(&self) -> Option<String> {
        let two = self.learnt.len() > 1 || self.contradiction;
        two.then(|| format!("write-once: {:?} were learnt", self.learnt))
    }
}

/// Says how large a model is.
fn tell(name: &str, started: Instant, outcome: &Outcome) {
    let took = started.elapsed().as_secs_f32();
    let end = if outcome.broken.is_some() { "broken" } else { "holds" };
    eprintln!("seal, {name}: {} states, {took:.1} s, {end}", outcome.states);
}

/// The model holds within its bounds, which are wider when a proof is asked for.
fn holds(name: &str, small: Bounds, large: Bounds) {
    let (bounds, most) = if proving() { (large, 200_000_000) } else { (small, 2_000_000) };
    let started = Instant::now();
    let outcome = explore(bounds.start(), most, Order::Eventful);
    tell(name, started, &outcome);
    if let Some(how) = outcome.broken {
        panic!("{name}: {how}");
    }
    assert!(outcome.complete, "{name} has more than {most} states: tighten its bounds");
}

/// Without the rule the model breaks a promise.
fn caught(rule: Rule, bounds: Bounds) {
    let bounds = Bounds { rules: Rules::without(rule), ..bounds };
    let started = Instant::now();
    let outcome = hunt(&bounds.start());
    tell(&format!("without {rule:?}"), started, &outcome);
    assert!(outcome.broken.is_some(), "nothing notices that {rule:?} is broken");
}

const ONE_ROUND: Bounds = Bounds { rounds: [1, 1], ..BASE };
const VOTERS_CRASH: Bounds = Bounds { acceptors_crash: 1, ..ONE_ROUND };
const WRITER_CRASHES: Bounds = Bounds { proposer_crashes: 1, ..ONE_ROUND };

#[test]
fn messages_in_any_order() {
    holds("one round each", ONE_ROUND, BASE);
}

#[test]
fn somebody_only_learns() {
    holds("a learner", Bounds { learner: true, ..ONE_ROUND }, Bounds { learner: true, ..ONE_ROUND });
}

#[test]
fn acceptors_crash() {
    holds("an acceptor crashes", VOTERS_CRASH, Bounds { acceptors_crash: 2, ..VOTERS_CRASH });
}

#[test]
fn a_proposer_crashes() {
    holds("a proposer crashes", WRITER_CRASHES, Bounds { acceptors_crash: 1, ..WRITER_CRASHES });
}

#[test]
fn a_promise_is_kept() {
    caught(Rule::PromiseHolds, ONE_ROUND);
}

#[test]
fn the_highest_vote_is_adopted() {
    caught(Rule::AdoptHighest, ONE_ROUND);
}

#[test]
fn votes_count_by_distinct_acceptor() {
    caught(Rule::DistinctVoters, ONE_ROUND);
}

#[test]
fn a_vote_is_on_disk_before_it_is_told() {
    caught(Rule::DurableFirst, VOTERS_CRASH);
}

#[test]
fn a_round_is_on_disk_before_it_is_used() {
    caught(Rule::RoundFirst, WRITER_CRASHES);
}
