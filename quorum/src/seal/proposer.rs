//! A member's attempt to write one register, or to learn what is written.
//!
//! ```text
//!   Idle --Learn--> Learning ---------------------- Decided, or a majority voted by one ballot ----------+
//!    |                 |                                                                                  v
//!    +----Propose------+--> Saving --round on disk--> Preparing --majority promised--> Proposing --majority voted--> Done
//!                             ^                          |                                |
//!                             +------- after a while ----+------------ Behind ------------+
//! ```
//! Messages that are lost are repeated each `patience`; a ballot that is behind is replaced after a wait which grows and
//! differs from member to member.

use super::message::{Accepted, Ballot, Body, Message, Register, Round, Value};
use crate::rules::{Rule, Rules};
use crate::voters::Voters;
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use std::collections::BTreeMap;

/// The wait before another ballot doubles so often at most.
const DOUBLINGS_MAX: u32 = 4;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Write this value, or learn what was written. A second wish is ignored.
    Propose(Value),
    /// Learn what is written, without writing.
    Learn,
    /// A message, already authenticated as coming from `from`.
    Message(Message),
    /// The round of [`Output::Persist`] is on disk.
    Persisted(u64),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the message to this member; to this node's own acceptor as well.
    Send(MemberId, Message),
    /// Write the round, then answer with [`Input::Persisted`] and this token.
    Persist(u64, Round),
    /// The register's value, which may be another than the proposed one. It is on the disks of a majority.
    Decided(Value),
}

/// A proposer of one register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    me: MemberId,
    register: Register,
    acceptors: Voters,
    patience: Duration,
    round: u64,
    /// The highest round heard of.
    seen: u64,
    wish: Option<Value>,
    stage: Stage,
    /// Ballots in a row that were behind.
    behind: u32,
    retry_at: Option<Time>,
    last: Time,
    rules: Rules,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Idle,
    Learning {
        heard: BTreeMap<MemberId, Option<Accepted>>,
    },
    /// The token is the round itself.
    Saving,
    Preparing {
        promises: BTreeMap<MemberId, Option<Accepted>>,
    },
    Proposing {
        value: Value,
        votes: BTreeMap<MemberId, usize>,
    },
    /// Another round is due at `retry_at`.
    Waiting,
    Done(Value),
}

impl Proposer {
    /// A proposer that starts at `now` with the round that is on disk; `patience` is what a round trip and a write to
    /// disk take at most, usually.
    pub fn new(
        me: MemberId,
        register: Register,
        acceptors: Voters,
        round: Round,
        patience: Duration,
        now: Time,
    ) -> Proposer {
        Proposer {
            me,
            register,
            acceptors,
            patience: patience.max(Duration::from_nanos(1)),
            round: round.0,
            seen: round.0,
            wish: None,
            stage: Stage::Idle,
            behind: 0,
            retry_at: None,
            last: now,
            rules: Rules::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_rules(self, rules: Rules) -> Proposer {
        Proposer { rules, ..self }
    }

    /// Whether another round is due.
    #[cfg(test)]
    pub(crate) fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    /// Whether a message may make a difference, now or later in this life.
    #[cfg(test)]
    pub(crate) fn may_heed(&self, body: &Body) -> bool {
        let (saves, prepares, proposes) = (
            matches!(self.stage, Stage::Saving),
            matches!(self.stage, Stage::Preparing { .. }),
            matches!(self.stage, Stage::Proposing { .. }),
        );
        match body {
            Body::Decided(_) => self.decided().is_none(),
            Body::Undecided { .. } => matches!(self.stage, Stage::Idle | Stage::Learning { .. }),
            Body::Promise { ballot, .. } => *ballot == self.ballot() && (saves || prepares),
            Body::Voted(ballot) | Body::Behind { asked: ballot, .. } => {
                *ballot == self.ballot() && (saves || prepares || proposes)
            }
            Body::Prepare(_) | Body::Propose(_) | Body::Ask => false,
        }
    }

    /// The register's value, once it is known.
    pub fn decided(&self) -> Option<&Value> {
        match &self.stage {
            Stage::Done(value) => Some(value),
            _ => None,
        }
    }

    /// Takes one input in; puts what is to be done into `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        let now = self.enter(now);
        match input {
            Input::Propose(value) => {
                if self.wish.is_none() && !matches!(self.stage, Stage::Done(_)) {
                    self.wish = Some(value);
                    self.save(now, out);
                }
            }
            Input::Learn => {
                if matches!(self.stage, Stage::Idle) {
                    self.stage = Stage::Learning { heard: BTreeMap::new() };
                    self.repeat(now, out);
                }
            }
            Input::Message(message) if message.register == self.register => self.message(now, message, out),
            Input::Message(_) => {}
            Input::Persisted(round) => {
                if matches!(self.stage, Stage::Saving) && round == self.round {
                    self.prepare(now, out);
                }
            }
        }
        self.pass(now, out);
    }

    /// To be called when [`next_wakeup`](Self::next_wakeup) has come; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Time, out: &mut Vec<Output>) {
        let now = self.enter(now);
        self.pass(now, out);
    }

    /// When to repeat what was not answered; to be asked again after every call.
    pub fn next_wakeup(&self) -> Option<Time> {
        self.retry_at
    }

    fn enter(&mut self, now: Time) -> Time {
        self.last = self.last.max(now);
        self.last
    }

    fn pass(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.retry_at.is_some_and(|due| due <= now) {
            match self.stage {
                Stage::Waiting => self.save(now, out),
                _ => self.repeat(now, out),
            }
        }
    }

    fn ballot(&self) -> Ballot {
        Ballot { round: self.round, member: self.me }
    }

    /// Takes a round that nobody has used and writes it down.
    fn save(&mut self, now: Time, out: &mut Vec<Output>) {
        // Past the last round nothing can be written any more, only learnt.
        let Some(round) = self.seen.max(self.round).checked_add(1) else {
            self.stage = Stage::Learning { heard: BTreeMap::new() };
            return self.repeat(now, out);
        };
        self.round = round;
        self.stage = Stage::Saving;
        self.retry_at = None;
        out.push(Output::Persist(round, Round(round)));
        if !self.rules.keep(Rule::RoundFirst) {
            self.prepare(now, out);
        }
    }

    fn prepare(&mut self, now: Time, out: &mut Vec<Output>) {
        self.stage = Stage::Preparing { promises: BTreeMap::new() };
        self.repeat(now, out);
    }

    /// Says what the stage says to all who have not answered it.
    fn repeat(&mut self, now: Time, out: &mut Vec<Output>) {
        let ballot = self.ballot();
        let (body, answered): (Body, Vec<MemberId>) = match &self.stage {
            Stage::Learning { heard } => (Body::Ask, heard.keys().copied().collect()),
            Stage::Preparing { promises } => (Body::Prepare(ballot), promises.keys().copied().collect()),
            Stage::Proposing { value, votes } => {
                let accepted = Accepted { ballot, value: value.clone() };
                (Body::Propose(accepted), votes.keys().copied().collect())
            }
            Stage::Idle | Stage::Saving | Stage::Waiting | Stage::Done(_) => {
                self.retry_at = None;
                return;
            }
        };
        // A majority that answered without a decision may have learnt of one since.
        let again = matches!(self.stage, Stage::Learning { .. });
        for to in self.acceptors.members().filter(|to| again || !answered.contains(to)) {
            out.push(self.message_to(to, body.clone()));
        }
        self.retry_at = Some(now + self.patience);
    }

    fn message_to(&self, to: MemberId, body: Body) -> Output {
        Output::Send(to, Message { register: self.register, from: self.me, body })
    }

    fn message(&mut self, now: Time, Message { from, body, .. }: Message, out: &mut Vec<Output>) {
        if matches!(self.stage, Stage::Done(_)) {
            return;
        }
        if let Body::Decided(value) = body {
            // Who is no acceptor may have learnt it all the same.
            self.stage = Stage::Done(value.clone());
            self.retry_at = None;
            out.push(Output::Decided(value));
            return;
        }
        if !self.acceptors.contains(from) {
            return;
        }
        let mine = self.ballot();
        let distinct = self.rules.keep(Rule::DistinctVoters);
        match (body, &mut self.stage) {
            (Body::Undecided { accepted }, Stage::Learning { heard }) => {
                heard.insert(from, accepted);
                if let Some(value) = agreed(&self.acceptors, heard) {
                    self.done(value, out);
                }
            }
            (Body::Promise { ballot, accepted }, Stage::Preparing { promises }) if ballot == mine => {
                promises.insert(from, accepted);
                if promises.len() >= self.acceptors.majority() {
                    self.propose(now, out);
                }
            }
            (Body::Voted(ballot), Stage::Proposing { value, votes }) if ballot == mine => {
                let count = votes.entry(from).or_default();
                // A vote that arrives again is the same vote.
                *count = if distinct { 1 } else { *count + 1 };
                if votes.values().sum::<usize>() >= self.acceptors.majority() {
                    let value = value.clone();
                    self.done(value, out);
                }
            }
            (Body::Behind { asked, promised }, Stage::Preparing { .. } | Stage::Proposing { .. })
                if asked == mine =>
            {
                self.seen = self.seen.max(promised.round);
                self.stage = Stage::Waiting;
                let rank = self.acceptors.members().take_while(|member| *member < self.me).count();
                let doubled = 1u32 << self.behind.min(DOUBLINGS_MAX);
                self.behind = self.behind.saturating_add(1);
                let wait = self.patience.saturating_mul(doubled);
                let stagger = self.patience * u32::try_from(rank).unwrap_or(u32::MAX).min(16) / 2;
                self.retry_at = Some(now + wait.saturating_add(stagger));
            }
            _ => {}
        }
    }

    /// A majority promised: the value of the highest ballot any of them voted for, else the own one.
    fn propose(&mut self, now: Time, out: &mut Vec<Output>) {
        let Stage::Preparing { promises } = &self.stage else { return };
        let highest = promises.values().flatten().max_by_key(|accepted| accepted.ballot);
        let adopted =
            highest.map(|accepted| accepted.value.clone()).filter(|_| self.rules.keep(Rule::AdoptHighest));
        let Some(value) = adopted.or_else(|| self.wish.clone()) else { return };
        self.stage = Stage::Proposing { value, votes: BTreeMap::new() };
        self.repeat(now, out);
    }

    /// A majority voted: tell everybody.
    fn done(&mut self, value: Value, out: &mut Vec<Output>) {
        self.stage = Stage::Done(value.clone());
        self.retry_at = None;
        for to in self.acceptors.members() {
            out.push(self.message_to(to, Body::Decided(value.clone())));
        }
        out.push(Output::Decided(value));
    }
}

/// The value that a majority voted for by one ballot.
fn agreed(acceptors: &Voters, heard: &BTreeMap<MemberId, Option<Accepted>>) -> Option<Value> {
    let mut counts: BTreeMap<Ballot, usize> = BTreeMap::new();
    for accepted in heard.values().flatten() {
        *counts.entry(accepted.ballot).or_default() += 1;
    }
    let ballot = counts.into_iter().find(|(_, count)| *count >= acceptors.majority())?.0;
    heard.values().flatten().find(|accepted| accepted.ballot == ballot).map(|accepted| accepted.value.clone())
}
