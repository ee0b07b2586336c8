//! The lease among three acceptors and two nodes that want one key. `one-holder`: never two nodes that may answer for it.
//!
//! A node answers from its [`Output::Take`](HolderOutput::Take) until its `Drop`, and no longer than the fence lets it: the
//! last deadline that it was told plus the bound.
//!
//! Time goes in ticks, and in each tick every node and every voter has one turn: any of the messages that are under way to
//! it arrive, in any order, and what it sends is under way from the next tick on, for a while. So a message may be late,
//! lost or overtaken, and since nothing that is said in a tick is heard in it, the order of turns makes no difference:
//! one is enough. A timer runs when it is due, or, where the model says so, any time later.

use super::explore::{World, explore};
use super::proving;
use crate::lease::*;
use crate::rules::{Rule, Rules};
use crate::voters::Voters;
use proto::envelope::{decode, encode};
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use std::collections::BTreeSet;
use std::time::Instant;

/// Clock units of one tick; small against the allowance for drift, so that rates fit between ticks.
const TICK: u64 = 1024;

/// What a model allows to happen.
#[derive(Clone, Debug)]
struct Bounds {
    /// The lists of voters, in the order of their versions; the first is in force.
    voters: &'static [&'static [u8]],
    /// Ticks.
    horizon: u64,
    /// Of the nodes' requests and of the acceptors' configuration.
    times: (u64, u64),
    acceptors_times: (u64, u64),
    /// Ticks between requests.
    beat: u64,
    /// Requests of one node that the network carries.
    rounds: u8,
    /// Ticks that a message may be under way.
    delay: u64,
    /// Messages that arrive twice.
    duplicates: u8,
    /// Acceptors that restart, by where their votes go: without memory, with it, or from the disk.
    restarts: u8,
    restart: Restart,
    /// Nodes that start a new life, and whether with the memory of the old one.
    lives: u8,
    lives_remember: bool,
    /// Keys that are given up, to nobody or to the other node, and wanted again.
    give_ups: u8,
    successor: bool,
    /// Handlers may run late.
    late: bool,
    /// Units by which the nodes' clocks lag and the acceptors' lead, each tick.
    drift: u64,
    /// The next list of voters waits until a majority of today's is settled.
    settles: bool,
    rules: Rules,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Restart {
    Forgets,
    Remembers,
    Disk,
}

const BASE: Bounds = Bounds {
    voters: &[&[0, 1, 2]],
    horizon: 5,
    times: (3, 1),
    acceptors_times: (1, 1),
    beat: 2,
    rounds: 2,
    delay: 2,
    duplicates: 0,
    restarts: 0,
    restart: Restart::Forgets,
    lives: 0,
    lives_remember: false,
    give_ups: 0,
    successor: false,
    late: false,
    drift: 0,
    settles: true,
    rules: Rules::ALL,
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Request(Request),
    GiveUp(GiveUp),
    Vote(Vote),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Flight {
    to: u8,
    message: Message,
    /// The first and the last tick at which it may arrive.
    from: u64,
    until: u64,
}

/// One life of a node, as far as addresses go: what it answers for, and until when the fence lets it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Served {
    serving: bool,
    fence: Option<Time>,
}

#[derive(Clone, Hash)]
struct Node {
    holder: Holder,
    served: Served,
    /// Of earlier lives; their addresses stay until the fence.
    before: Vec<Served>,
    incarnation: u64,
    rounds: u8,
    /// Version of the voters it knows, as an index.
    knows: usize,
}

#[derive(Clone, Hash)]
struct Voter {
    acceptor: Acceptor,
    knows: usize,
    /// What the disk has for certain, and what is on its way there.
    disk: Record,
    writing: Option<(u64, Record)>,
}

#[derive(Clone)]
struct Small {
    bounds: Bounds,
    tick: u64,
    /// Whose turn in this tick it is: nodes, then voters.
    turn: usize,
    nodes: Vec<Node>,
    voters: Vec<Voter>,
    flights: BTreeSet<Flight>,
    duplicates: u8,
    restarts: u8,
    lives: u8,
    give_ups: u8,
    /// The latest list of voters that was sealed, as an index.
    sealed: usize,
    wrong: Option<String>,
}

impl std::hash::Hash for Small {
    fn hash<H: std::hash::Hasher>(&self, to: &mut H) {
        (self.tick, self.turn, &self.nodes, &self.voters, &self.flights).hash(to);
        (self.duplicates, self.restarts, self.lives, self.give_ups, self.sealed, &self.wrong).hash(to);
    }
}

#[derive(Clone, Debug)]
enum Action {
    Tick,
    /// The actor whose turn it is: what arrives, in this order, and when its timer runs. Then it is the next one's turn.
    Turn(Vec<Flight>, Timer),
    /// One message arrives, and arrives again later.
    Duplicate(Flight),
    Restart {
        /// What was on its way to the disk is there.
        written: bool,
    },
    Written,
    NewLife,
    GiveUp,
    WantAgain,
    SealVoters,
    Learn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Before,
    After,
    Never,
}

fn id(n: u8) -> MemberId {
    MemberId([n + 1; 32])
}

fn key() -> Key {
    Key::new(b"k").unwrap()
}

fn ticks(n: u64) -> Duration {
    Duration::from_nanos(n * TICK)
}

impl Bounds {
    fn list(&self, index: usize) -> Voters {
        Voters::new(index as u64 + 1, self.voters[index].iter().map(|n| id(*n))).unwrap()
    }

    fn ceiling(&self) -> Ceiling {
        Ceiling(ticks(self.times.0 + self.times.1))
    }

    fn times(&self) -> Times {
        Times { duration: ticks(self.times.0), fence: ticks(self.times.1) }
    }

    fn holder(&self, node: usize, incarnation: u64, knows: usize, gives_up: Option<OldLife>, now: Time) -> Holder {
        let asking = Asking {
            me: id(node as u8),
            incarnation,
            voters: self.list(knows),
            times: self.times(),
            margin: Duration::ZERO,
            beat: ticks(self.beat),
            gives_up,
        };
        Holder::new(asking, now).with_rules(self.rules)
    }

    fn acceptor(&self, n: usize, knows: usize, start: Start, now: Time) -> Acceptor {
        let (duration, fence) = (ticks(self.acceptors_times.0), ticks(self.acceptors_times.1));
        let keeping = if self.restart == Restart::Disk { Keeping::Disk } else { Keeping::Memory };
        let (me, voters) = (id(n as u8), self.list(knows));
        let setup = Setup { me, voters, times: Times { duration, fence }, ceiling: self.ceiling(), keeping };
        Acceptor::new(setup, start, now).with_rules(self.rules)
    }

    /// Both nodes have just been asked to hold the key; the voters have long been there.
    fn start(&self) -> Small {
        let all: BTreeSet<u8> = self.voters.iter().flat_map(|list| list.iter().copied()).collect();
        let begin = self.times.0 + self.times.1;
        let mut small = Small {
            bounds: self.clone(),
            tick: begin,
            turn: 0,
            nodes: Vec::new(),
            voters: Vec::new(),
            flights: BTreeSet::new(),
            duplicates: self.duplicates,
            restarts: self.restarts,
            lives: self.lives,
            give_ups: self.give_ups,
            sealed: 0,
            wrong: None,
        };
        for n in 0..all.len() {
            let acceptor = self.acceptor(n, 0, Start::Record(Record::default()), Time::ZERO);
            small.voters.push(Voter { acceptor, knows: 0, disk: Record::default(), writing: None });
        }
        for n in 0..2 {
            let holder = self.holder(n, 1, 0, None, small.node_clock());
            let served = Served::default();
            small.nodes.push(Node { holder, served, before: vec![], incarnation: 1, rounds: 0, knows: 0 });
        }
        for n in 0..2 {
            small.tell(n, HolderInput::Want(vec![key()]));
        }
        small
    }
}

impl Small {
    fn node_clock(&self) -> Time {
        Time::from_nanos(self.tick * (TICK - self.bounds.drift))
    }

    fn voter_clock(&self) -> Time {
        Time::from_nanos(self.tick * (TICK + self.bounds.drift))
    }

    fn tell(&mut self, n: usize, input: HolderInput) {
        let mut out = Vec::new();
        let now = self.node_clock();
        self.nodes[n].holder.handle(now, input, &mut out);
        self.carry_out(n, out);
    }

    fn carry_out(&mut self, n: usize, out: Vec<HolderOutput>) {
        let now = self.node_clock();
        let (from, until) = (self.tick + 1, self.tick + self.bounds.delay);
        let mut asked = false;
        for output in out {
            let node = &mut self.nodes[n];
            match output {
                HolderOutput::Take(_) => node.served.serving = true,
                HolderOutput::Drop(..) => node.served.serving = false,
                HolderOutput::Fence(fence) => node.served.fence = fence,
                HolderOutput::Request(to, request) => {
                    if node.served.serving && node.served.fence.is_none_or(|fence| fence <= now) {
                        self.wrong = Some(format!("node {n} spoke before it stepped down"));
                    }
                    asked = true;
                    if node.rounds < self.bounds.rounds {
                        let to = to.0[0] - 1;
                        self.flights.insert(Flight { to, message: Message::Request(request), from, until });
                    }
                }
                HolderOutput::GiveUp(to, give_up) => {
                    let (to, message) = (to.0[0] - 1, Message::GiveUp(give_up));
                    self.flights.insert(Flight { to, message, from, until });
                }
                HolderOutput::TooMany(_) => unreachable!("one key is not too many"),
            }
        }
        let node = &mut self.nodes[n];
        node.rounds += u8::from(asked && node.rounds < self.bounds.rounds);
        if node.holder.held_until(&key()).is_some_and(|until| until <= now) {
            self.wrong = Some(format!("node {n} holds what has expired"));
        }
    }

    fn ask(&mut self, n: usize, input: AcceptorInput) {
        let mut out = Vec::new();
        let now = self.voter_clock();
        self.voters[n].acceptor.handle(now, input, &mut out);
        for output in out {
            match output {
                AcceptorOutput::Send(vote) => {
                    let (from, until) = (self.tick + 1, self.tick + self.bounds.delay);
                    let to = vote.member.0[0] - 1;
                    self.flights.insert(Flight { to, message: Message::Vote(vote), from, until });
                }
                AcceptorOutput::Persist(token, record) => self.voters[n].writing = Some((token, record)),
            }
        }
    }

    fn deliver(&mut self, flight: &Flight) {
        let to = usize::from(flight.to);
        match flight.message.clone() {
            Message::Request(request) => self.ask(to, AcceptorInput::Request(request)),
            Message::GiveUp(give_up) => self.ask(to, AcceptorInput::GiveUp(give_up)),
            Message::Vote(vote) => self.tell(to, HolderInput::Vote(vote)),
        }
    }

    fn restart(&mut self, n: usize) {
        let (bounds, now) = (self.bounds.clone(), self.voter_clock());
        let voter = &mut self.voters[n];
        let start = match bounds.restart {
            Restart::Forgets => Start::Silent,
            Restart::Remembers => Start::Memory(decode(&encode(voter.acceptor.memory())).unwrap()),
            Restart::Disk => Start::Record(decode(&encode(&voter.disk)).unwrap()),
        };
        voter.writing = None;
        voter.acceptor = bounds.acceptor(n, voter.knows, start, now);
    }

    fn new_life(&mut self, n: usize) {
        let (bounds, now) = (self.bounds.clone(), self.node_clock());
        let node = &mut self.nodes[n];
        node.incarnation += 1;
        let old = node.holder.life();
        // A life that knows of the one before takes its addresses off first; else they stay until the fence.
        let served = std::mem::take(&mut node.served);
        let gives_up = bounds.lives_remember.then_some(old);
        if !bounds.lives_remember && served.serving {
            node.before.push(served);
        }
        node.holder = bounds.holder(n, node.incarnation, node.knows, gives_up, now);
        node.rounds = 0;
        self.tell(n, HolderInput::Want(vec![key()]));
    }

    fn run_timer(&mut self, n: usize) {
        if self.due(n) {
            let mut out = Vec::new();
            let now = self.node_clock();
            self.nodes[n].holder.handle_timeout(now, &mut out);
            self.carry_out(n, out);
        }
    }

    fn settled(&self) -> bool {
        let list = self.bounds.list(self.sealed);
        let now = self.voter_clock();
        let settled = self.voters.iter().enumerate().filter(|(n, voter)| {
            list.contains(id(*n as u8)) && voter.knows == self.sealed && voter.acceptor.is_settled(now)
        });
        settled.count() >= list.majority()
    }

    fn due(&self, n: usize) -> bool {
        self.nodes[n].holder.next_wakeup().is_some_and(|due| due <= self.node_clock())
    }

    /// What may arrive at the actor whose turn it is.
    fn arriving(&self) -> Vec<Flight> {
        let to_node = self.turn < self.nodes.len();
        let n = if to_node { self.turn } else { self.turn - self.nodes.len() };
        let mine = |flight: &&Flight| {
            let is_vote = matches!(flight.message, Message::Vote(_));
            is_vote == to_node && usize::from(flight.to) == n && flight.from <= self.tick
        };
        self.flights.iter().filter(mine).cloned().collect()
    }

    fn node_actions(&self, n: usize, all: &mut Vec<Action>) {
        let bounds = &self.bounds;
        // Votes that arrive in one tick do so in one order: which of two comes first makes no difference to a holder.
        let due = self.due(n);
        for arrive in subsets(&self.arriving()) {
            match (due, bounds.late) {
                (true, true) => {
                    for timer in [Timer::After, Timer::Before, Timer::Never] {
                        all.push(Action::Turn(arrive.clone(), timer));
                    }
                }
                (true, false) => all.push(Action::Turn(arrive, Timer::After)),
                // What arrives may make it due.
                (false, true) => {
                    all.push(Action::Turn(arrive.clone(), Timer::After));
                    all.push(Action::Turn(arrive, Timer::Never));
                }
                (false, false) => all.push(Action::Turn(arrive, Timer::After)),
            }
        }
        if self.lives > 0 {
            all.push(Action::NewLife);
        }
        if self.give_ups > 0 {
            let wants = !self.nodes[n].holder.rows().is_empty();
            all.push(if wants { Action::GiveUp } else { Action::WantAgain });
        }
        if self.nodes[n].knows < self.sealed {
            all.push(Action::Learn);
        }
    }

    fn voter_actions(&self, n: usize, all: &mut Vec<Action>) {
        let voter = &self.voters[n];
        let arriving = self.arriving();
        for arrive in subsets(&arriving).into_iter().flat_map(orders) {
            all.push(Action::Turn(arrive, Timer::Never));
        }
        if self.duplicates > 0 {
            all.extend(arriving.into_iter().map(Action::Duplicate));
        }
        if self.restarts > 0 {
            all.push(Action::Restart { written: false });
            if voter.writing.is_some() {
                all.push(Action::Restart { written: true });
            }
        }
        if voter.writing.is_some() {
            all.push(Action::Written);
        }
        if voter.knows < self.sealed {
            all.push(Action::Learn);
        }
    }
}

/// Every choice of some of them.
fn subsets(all: &[Flight]) -> Vec<Vec<Flight>> {
    let mut sets = vec![vec![]];
    for flight in all {
        let with: Vec<_> = sets.iter().cloned().map(|mut set: Vec<Flight>| {
            set.push(flight.clone());
            set
        });
        sets.extend(with.collect::<Vec<_>>());
    }
    sets
}

/// Every order of them.
fn orders(of: Vec<Flight>) -> Vec<Vec<Flight>> {
    if of.len() < 2 {
        return vec![of];
    }
    let mut all = Vec::new();
    for first in 0..of.len() {
        let mut rest = of.clone();
        let head = rest.remove(first);
        for mut order in orders(rest) {
            order.insert(0, head.clone());
            all.push(order);
        }
    }
    all
}

impl World for Small {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let bounds = &self.bounds;
        let mut all = Vec::new();
        if self.turn < self.nodes.len() {
            self.node_actions(self.turn, &mut all);
        } else if self.turn < self.nodes.len() + self.voters.len() {
            self.voter_actions(self.turn - self.nodes.len(), &mut all);
        } else {
            if self.sealed + 1 < bounds.voters.len() && (self.settled() || !bounds.settles) {
                all.push(Action::SealVoters);
            }
            if self.tick < bounds.times.0 + bounds.times.1 + bounds.horizon {
                all.push(Action::Tick);
            }
        }
        all
    }

    fn step(&mut self, action: &Action) {
        let at_node = self.turn < self.nodes.len();
        let n = if at_node { self.turn } else { self.turn.wrapping_sub(self.nodes.len()) };
        match action {
            Action::Tick => {
                self.tick += 1;
                self.turn = 0;
                let tick = self.tick;
                self.flights.retain(|flight| flight.until >= tick);
            }
            Action::Turn(arrive, timer) => {
                if at_node && *timer == Timer::Before {
                    self.run_timer(n);
                }
                for flight in arrive {
                    self.flights.remove(flight);
                    self.deliver(flight);
                }
                if at_node && *timer == Timer::After {
                    self.run_timer(n);
                }
                self.turn += 1;
            }
            Action::Duplicate(flight) => {
                self.duplicates -= 1;
                self.flights.remove(flight);
                self.flights.insert(Flight { from: self.tick + 1, ..flight.clone() });
                self.deliver(flight);
            }
            Action::Restart { written } => {
                self.restarts -= 1;
                if let Some((_, record)) = self.voters[n].writing.take()
                    && *written
                {
                    self.voters[n].disk = record;
                }
                self.restart(n);
            }
            Action::Written => {
                if let Some((token, record)) = self.voters[n].writing.take() {
                    self.voters[n].disk = record;
                    self.ask(n, AcceptorInput::Persisted(token));
                }
            }
            Action::NewLife => {
                self.lives -= 1;
                self.new_life(n);
            }
            Action::GiveUp => {
                self.give_ups -= 1;
                let to = self.bounds.successor.then(|| id(1 - n as u8));
                self.tell(n, HolderInput::GiveUp(vec![(key(), to)]));
            }
            Action::WantAgain => {
                self.give_ups -= 1;
                self.tell(n, HolderInput::Want(vec![key()]));
            }
            Action::SealVoters => self.sealed += 1,
            Action::Learn if at_node => {
                let knows = self.nodes[n].knows + 1;
                self.nodes[n].knows = knows;
                self.tell(n, HolderInput::Voters(self.bounds.list(knows)));
            }
            Action::Learn => {
                let knows = self.voters[n].knows + 1;
                self.voters[n].knows = knows;
                self.ask(n, AcceptorInput::Voters(self.bounds.list(knows)));
            }
        }
    }

    fn broken(&self) -> Option<String> {
        let (now, bound) = (self.node_clock(), ticks(self.bounds.times.1));
        let answers = |served: &Served| served.serving && served.fence.is_some_and(|fence| now < fence + bound);
        let holders = self.nodes.iter().filter(|node| answers(&node.served) || node.before.iter().any(answers));
        let two = (holders.count() > 1).then(|| "one-holder: two nodes answer for the key".to_owned());
        two.or_else(|| self.wrong.clone())
    }
}


/// Explores the model and says how large it is.
fn run(name: &str, bounds: &Bounds) -> Option<String> {
    let started = Instant::now();
    let outcome = explore(bounds.start(), 20_000_000);
    let took = started.elapsed().as_secs_f32();
    eprintln!("lease {name}: {} states, {took:.1} s, {}", outcome.states, if outcome.broken.is_some() {"broken"} else {"holds"});
    outcome.broken
}

#[test]
fn basic() {
    for rounds in 1..3 { for delay in 1..3 { for horizon in 5..8 {
    assert_eq!(run(&format!("basic h{horizon} r{rounds} d{delay}"), &Bounds { horizon, rounds, delay, ..BASE }), None);
    }}}
}
