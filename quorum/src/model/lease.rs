//! The lease among three acceptors and two nodes that want one key. `one-holder`: never two nodes that may answer for it.
//!
//! A node answers from its [`Output::Take`](HolderOutput::Take) until its `Drop`, and no longer than the fence lets it: the
//! last deadline that it was told plus the bound.
//!
//! Time goes in ticks. In each tick the nodes have a turn to ask, the voters one to answer and the nodes one to listen: of
//! the messages that are under way to it, each may arrive in its turn, in any order, or stay under way for a while. So a
//! message takes no time, is late, lost or overtaken. Turns of one kind do not hear each other, so that their order
//! makes no difference: one is enough. A timer runs when it is due, or, where the model says so, any time later.

use super::explore::{Order, World, damage, explore, hunt};
use super::{proving, timed};
use crate::lease::*;
use crate::rules::{Rule, Rules};
use crate::voters::Voters;
use proto::envelope::{decode, encode};
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use std::collections::BTreeSet;

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
    /// Requests of each node that the network carries.
    rounds: [u8; 2],
    /// Ticks that a request and a vote may be under way.
    delay: [u64; 2],
    /// Messages that arrive twice.
    duplicates: u8,
    /// Acceptors that restart, by where their votes go: without memory, with it, or from the disk.
    restarts: u8,
    restart: Restart,
    /// Nodes that start a new life, and whether with the memory of the old one.
    lives: u8,
    lives_remember: bool,
    /// Times that the first node gives the key up, to nobody or to the second, or wants it again.
    give_ups: u8,
    successor: bool,
    /// The first node wants the key from the start; else at any time, as the second.
    eager: bool,
    /// The first node's handlers may run late.
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
    horizon: 3,
    times: (2, 1),
    acceptors_times: (1, 1),
    beat: 1,
    rounds: [1, 1],
    delay: [0, 0],
    duplicates: 0,
    restarts: 0,
    restart: Restart::Forgets,
    lives: 0,
    lives_remember: false,
    give_ups: 0,
    successor: false,
    eager: true,
    late: true,
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
    /// Whose turn in this tick it is: nodes ask, voters answer, nodes listen.
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
    Want,
    SealVoters,
    Learn,
}

enum Whose {
    Asks(usize),
    Answers(usize),
    Listens(usize),
    Time,
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

    fn holder(
        &self,
        node: usize,
        incarnation: u64,
        knows: usize,
        gives_up: Option<OldLife>,
        now: Time,
    ) -> Holder {
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

    /// The first node has just been asked to hold the key, the second will be; the voters have long been there.
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
        if self.eager {
            small.tell(0, HolderInput::Want(vec![key()]));
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
        let (from, until) = (self.tick, self.tick + self.bounds.delay[0]);
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
                    if node.rounds < self.bounds.rounds[n] {
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
        node.rounds += u8::from(asked && node.rounds < self.bounds.rounds[n]);
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
                    let (from, until) = (self.tick, self.tick + self.bounds.delay[1]);
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

    /// Whose turn it is: a node that asks, a voter, a node that listens, or time's.
    fn whose(&self) -> Whose {
        let (nodes, voters) = (self.nodes.len(), self.voters.len());
        match self.turn {
            n if n < nodes => Whose::Asks(n),
            n if n < nodes + voters => Whose::Answers(n - nodes),
            n if n < nodes + voters + nodes => Whose::Listens(n - nodes - voters),
            _ => Whose::Time,
        }
    }

    /// What may arrive at an actor.
    fn arriving(&self, at_node: bool, n: usize) -> Vec<Flight> {
        let mine = |flight: &&Flight| {
            let is_vote = matches!(flight.message, Message::Vote(_));
            is_vote == at_node && usize::from(flight.to) == n && flight.from <= self.tick
        };
        self.flights.iter().filter(mine).cloned().collect()
    }

    fn listen_actions(&self, n: usize, all: &mut Vec<Action>) {
        // Votes that arrive in one tick do so in one order: which of two comes first makes no difference to a holder.
        let arriving = self.arriving(true, n);
        for arrive in subsets(&arriving) {
            if self.bounds.late && n == 0 {
                if self.due(n) && !arrive.is_empty() {
                    all.push(Action::Turn(arrive.clone(), Timer::Before));
                }
                all.push(Action::Turn(arrive.clone(), Timer::Never));
            }
            all.push(Action::Turn(arrive, Timer::After));
        }
        if self.duplicates > 0 {
            all.extend(arriving.into_iter().map(Action::Duplicate));
        }
    }

    fn ask_actions(&self, n: usize, all: &mut Vec<Action>) {
        all.push(Action::Turn(vec![], Timer::After));
        if self.bounds.late && n == 0 && self.due(n) {
            all.push(Action::Turn(vec![], Timer::Never));
        }
        if self.lives > 0 {
            all.push(Action::NewLife);
        }
        let wants = !self.nodes[n].holder.rows().is_empty();
        if n == 0 && self.give_ups > 0 {
            all.push(if wants { Action::GiveUp } else { Action::Want });
        }
        if (n == 1 || !self.bounds.eager) && !wants {
            all.push(Action::Want);
        }
        if self.nodes[n].knows < self.sealed {
            all.push(Action::Learn);
        }
    }

    fn voter_actions(&self, n: usize, all: &mut Vec<Action>) {
        let voter = &self.voters[n];
        let arriving = self.arriving(false, n);
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
        for at in 0..sets.len() {
            let mut with = sets[at].clone();
            with.push(flight.clone());
            sets.push(with);
        }
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
        match self.whose() {
            Whose::Asks(n) => self.ask_actions(n, &mut all),
            Whose::Answers(n) => self.voter_actions(n, &mut all),
            Whose::Listens(n) => self.listen_actions(n, &mut all),
            Whose::Time => {
                if self.sealed + 1 < bounds.voters.len() && (self.settled() || !bounds.settles) {
                    all.push(Action::SealVoters);
                }
                if self.tick < bounds.times.0 + bounds.times.1 + bounds.horizon {
                    all.push(Action::Tick);
                }
            }
        }
        all
    }

    fn step(&mut self, action: &Action) {
        let (at_node, n) = match self.whose() {
            Whose::Asks(n) | Whose::Listens(n) => (true, n),
            Whose::Answers(n) => (false, n),
            Whose::Time => (false, 0),
        };
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
            Action::Want => {
                self.give_ups -= u8::from(n == 0 && self.bounds.eager);
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
        let answers =
            |served: &Served| served.serving && served.fence.is_some_and(|fence| now < fence + bound);
        let holders =
            self.nodes.iter().filter(|node| answers(&node.served) || node.before.iter().any(answers));
        let two = (holders.count() > 1).then(|| "one-holder: two nodes answer for the key".to_owned());
        two.or_else(|| self.wrong.clone())
    }
}

/// The model holds within its bounds, which are wider when a proof is asked for.
fn holds(name: &str, small: Bounds, large: Bounds) {
    let (bounds, most) = if proving() { (large, 200_000_000) } else { (small, 2_000_000) };
    let explored = || explore(bounds.start(), most, Order::Eventful);
    let outcome = timed(&format!("lease, {name}"), explored);
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
    let outcome = timed(&format!("lease, without {rule:?}"), || hunt(&bounds.start()));
    assert!(outcome.broken.is_some(), "nothing notices that {rule:?} is broken");
}

/// Where one voter is enough to show the damage.
const ONE: &[&[u8]] = &[&[0]];
/// Where time and lives matter, not who is in the majority.
const TWO: &[&[u8]] = &[&[0, 1]];
const LATE_VOTES: Bounds = Bounds { delay: [0, 1], ..BASE };
const RENEWALS: Bounds = Bounds { rounds: [2, 1], ..BASE };
const DUPLICATES: Bounds = Bounds { duplicates: 1, delay: [0, 1], horizon: 1, late: false, ..BASE };
const FORGETS: Bounds = Bounds { restarts: 1, horizon: 2, late: false, ..BASE };
const REMEMBERS: Bounds = Bounds { restart: Restart::Remembers, ..FORGETS };
const WITNESSES: Bounds = Bounds { restart: Restart::Disk, ..FORGETS };
const LIVES: Bounds = Bounds { lives: 1, horizon: 2, late: false, ..BASE };
const GIVES_UP: Bounds = Bounds { give_ups: 1, rounds: [2, 1], horizon: 1, late: false, ..BASE };
const DRIFTS: Bounds = Bounds { drift: 1, ..BASE };
const STEPS: Bounds =
    Bounds { voters: &[&[0], &[0, 1], &[1]], times: (1, 0), horizon: 4, eager: false, late: false, ..BASE };

#[test]
fn messages_late_lost_and_reordered() {
    holds("late votes", LATE_VOTES, LATE_VOTES);
}

#[test]
fn renewals() {
    holds("renewals", Bounds { voters: TWO, ..RENEWALS }, RENEWALS);
}

#[test]
fn messages_twice() {
    holds("duplicates", DUPLICATES, DUPLICATES);
}

#[test]
fn voters_restart() {
    holds("restarts without memory", FORGETS, FORGETS);
    holds("restarts with memory", REMEMBERS, REMEMBERS);
    holds("witnesses restart", Bounds { voters: TWO, ..WITNESSES }, WITNESSES);
}

#[test]
fn nodes_start_new_lives() {
    holds("new lives", Bounds { voters: TWO, ..LIVES }, LIVES);
    let remember = Bounds { lives_remember: true, ..LIVES };
    holds(
        "new lives that give the old one up",
        Bounds { voters: TWO, horizon: 1, ..remember.clone() },
        Bounds { voters: TWO, ..remember },
    );
}

#[test]
fn keys_are_given_up_and_handed_over() {
    holds("give-ups", Bounds { voters: TWO, ..GIVES_UP }, GIVES_UP);
    let hands = Bounds { successor: true, ..GIVES_UP };
    holds("hand-overs", Bounds { voters: TWO, ..hands.clone() }, hands);
}

#[test]
fn clocks_drift() {
    holds("drift", DRIFTS, DRIFTS);
}

#[test]
fn voters_change_one_by_one() {
    const MORE: Bounds = Bounds { voters: &[&[0], &[0, 1], &[0, 1, 2]], ..STEPS };
    holds("one voter, two, another one", STEPS, STEPS);
    holds("one voter, two, three", Bounds { horizon: 2, ..MORE }, Bounds { horizon: 2, ..MORE });
}

#[test]
fn two_kinds_of_fault_at_once() {
    let late = Bounds { delay: [0, 1], late: true, ..FORGETS };
    holds("late votes and restarts", Bounds { voters: TWO, ..late.clone() }, late);
    let drifts = Bounds { drift: 1, ..FORGETS };
    holds("drift and restarts", Bounds { voters: TWO, ..drifts.clone() }, drifts);
    let late = Bounds { drift: 1, ..LATE_VOTES };
    holds("drift and late votes", Bounds { voters: TWO, ..late.clone() }, late);
    let lives = Bounds { voters: TWO, restarts: 1, ..LIVES };
    holds("new lives and restarts", Bounds { horizon: 1, ..lives.clone() }, lives);
}

#[test]
fn a_deadline_counts_from_the_sending() {
    caught(Rule::FromSending, Bounds { voters: ONE, ..LATE_VOTES });
}

#[test]
fn every_handler_looks_at_the_deadline() {
    caught(Rule::EveryHandler, Bounds { voters: TWO, rounds: [2, 1], ..LATE_VOTES });
}

#[test]
fn what_expired_is_dropped_before_anything_is_said() {
    caught(Rule::StepDownFirst, RENEWALS);
}

#[test]
fn votes_count_by_distinct_voter() {
    caught(Rule::DistinctVoters, DUPLICATES);
}

#[test]
fn a_renewal_needs_a_fresh_majority() {
    caught(Rule::FreshMajority, RENEWALS);
}

#[test]
fn ballots_are_never_reused() {
    caught(Rule::BallotsOnce, Bounds { voters: ONE, delay: [0, 1], ..RENEWALS });
}

#[test]
fn a_vote_before_the_wish_says_nothing_about_it() {
    caught(Rule::SinceWanted, Bounds { horizon: 2, give_ups: 2, ..GIVES_UP });
}

#[test]
fn clocks_rates_are_allowed_for() {
    caught(Rule::Drift, DRIFTS);
}

#[test]
fn a_live_lease_of_another_is_never_replaced() {
    caught(Rule::NeverReplace, BASE);
}

#[test]
fn another_life_is_another_owner() {
    caught(Rule::LivesDiffer, Bounds { voters: ONE, give_ups: 1, rounds: [2, 1], ..LIVES });
}

#[test]
fn a_give_up_ends_what_it_names_and_no_other() {
    caught(Rule::GiveUpExactly, Bounds { voters: ONE, lives_remember: true, delay: [1, 0], ..LIVES });
}

#[test]
fn an_old_request_changes_nothing() {
    caught(Rule::BallotsRise, Bounds { voters: ONE, give_ups: 2, rounds: [3, 1], delay: [1, 0], ..GIVES_UP });
}

#[test]
fn the_longer_times_of_request_and_configuration_count() {
    caught(Rule::LongerTimes, BASE);
}

#[test]
fn after_a_lease_the_fence_is_waited_for() {
    caught(Rule::FenceBound, BASE);
}

#[test]
fn a_voter_without_its_memory_is_silent() {
    caught(Rule::SilentAfterRestart, FORGETS);
}

#[test]
fn a_witness_answers_when_its_vote_is_on_disk() {
    caught(Rule::DurableFirst, Bounds { voters: ONE, ..WITNESSES });
}

#[test]
fn lists_of_voters_two_steps_apart_do_not_meet() {
    caught(Rule::OldVoters, STEPS);
    let hasty = Bounds { settles: false, ..STEPS };
    assert!(hunt(&hasty.start()).broken.is_some(), "nothing notices a hasty step");
}
