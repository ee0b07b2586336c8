//! A member's vote for one register, on disk.
//!
//! ```text
//!             Prepare(b), b >= promised        Propose(b, v), b >= promised         Decided(v)
//!   nothing ---------------------------> promised(b) ----------------> voted(b, v) ------------> decided(v)
//! ```
//! Every answer that tells of a change waits until the change is on disk.

use super::message::{Accepted, Body, Message, Record, Register, Value};
use crate::rules::{Rule, Rules};
use crate::voters::Voters;
use proto::identity::MemberId;
use std::collections::BTreeMap;

/// Answers that wait for the disk, one for each asker. Who is one too many asks again.
pub const WAITING_MAX: usize = 64;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A message, already authenticated as coming from `from`.
    Message(Message),
    /// The record of [`Output::Persist`] is on disk.
    Persisted(u64),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the message to this member.
    Send(MemberId, Message),
    /// Write the record, then answer with [`Input::Persisted`] and this token. A later one replaces it.
    Persist(u64, Record),
    /// The register's value, once in a life, when it is on disk.
    Decided(Value),
    /// Somebody told of another value than the one that is decided. Nothing was changed; one of the two nodes is broken.
    Contradiction(MemberId, Value),
}

/// An acceptor of one register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    me: MemberId,
    register: Register,
    /// Fixed when the register was named.
    acceptors: Voters,
    record: Record,
    token: u64,
    durable: u64,
    waiting: BTreeMap<MemberId, (u64, Body)>,
    told: bool,
    rules: Rules,
}

impl Acceptor {
    /// An acceptor with the record that is on disk; the default one for a register it has not heard of. A record that
    /// should be there and is damaged or lost is no default one: such a member must not vote.
    pub fn new(me: MemberId, register: Register, acceptors: Voters, record: Record) -> Acceptor {
        Acceptor {
            me,
            register,
            acceptors,
            record,
            token: 0,
            durable: 0,
            waiting: BTreeMap::new(),
            told: false,
            rules: Rules::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_rules(self, rules: Rules) -> Acceptor {
        Acceptor { rules, ..self }
    }

    /// All that its further answers depend on, without its name and without how often it wrote.
    #[cfg(test)]
    pub(crate) fn state(&self) -> impl core::hash::Hash + '_ {
        let ago = |token: u64| self.token - token;
        let waiting: Vec<_> =
            self.waiting.iter().map(|(to, (token, body))| (to, ago(*token), body)).collect();
        (&self.record, ago(self.durable), waiting, self.told)
    }

    /// What is decided, whether or not it is on this disk yet.
    pub fn decided(&self) -> Option<&Value> {
        self.record.decided.as_ref()
    }

    /// Takes one input in; puts what is to be done into `out`.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Message(message) if message.register == self.register => self.message(message, out),
            Input::Message(_) => {}
            Input::Persisted(token) => self.durable = self.durable.max(token.min(self.token)),
        }
        self.let_go(out);
    }

    fn message(&mut self, Message { from, body, .. }: Message, out: &mut Vec<Output>) {
        let before = self.record.clone();
        let answer = match body {
            Body::Decided(value) => {
                match &self.record.decided {
                    Some(known) if *known != value => out.push(Output::Contradiction(from, value)),
                    Some(_) => {}
                    None => self.record.decided = Some(value),
                }
                None
            }
            Body::Prepare(_) | Body::Propose(_) | Body::Ask if self.record.decided.is_some() => {
                self.record.decided.clone().map(Body::Decided)
            }
            // Others know and tell what is decided; they have no vote.
            _ if !self.acceptors.contains(self.me) => None,
            Body::Prepare(ballot) if ballot.member == from => Some(match self.record.promised {
                Some(promised) if promised > ballot => Body::Behind { asked: ballot, promised },
                _ => {
                    self.record.promised = Some(ballot);
                    Body::Promise { ballot, accepted: self.record.accepted.clone() }
                }
            }),
            Body::Propose(accepted) if accepted.ballot.member == from => self.propose(accepted),
            Body::Ask => Some(Body::Undecided { accepted: self.record.accepted.clone() }),
            _ => None,
        };
        if self.record != before {
            self.token += 1;
            out.push(Output::Persist(self.token, self.record.clone()));
        }
        if let Some(body) = answer {
            self.waiting.insert(from, (self.token, body));
        }
    }

    fn propose(&mut self, accepted: Accepted) -> Option<Body> {
        let ballot = accepted.ballot;
        match self.record.promised {
            Some(promised) if promised > ballot && self.rules.keep(Rule::PromiseHolds) => {
                return Some(Body::Behind { asked: ballot, promised });
            }
            _ => {}
        }
        match &self.record.accepted {
            // One ballot has one value; who says otherwise is broken and gets no vote.
            Some(known) if known.ballot == ballot && known.value != accepted.value => return None,
            Some(known) if known.ballot == ballot => {}
            _ => {
                self.record.promised = Some(ballot);
                self.record.accepted = Some(accepted);
            }
        }
        Some(Body::Voted(ballot))
    }

    /// Sends what is on disk by now.
    fn let_go(&mut self, out: &mut Vec<Output>) {
        let durable = if self.rules.keep(Rule::DurableFirst) { self.durable } else { self.token };
        let (from, register) = (self.me, self.register);
        self.waiting.retain(|to, (token, body)| {
            let due = *token <= durable;
            if due {
                out.push(Output::Send(*to, Message { register, from, body: body.clone() }));
            }
            !due
        });
        while self.waiting.len() > WAITING_MAX {
            self.waiting.pop_last();
        }
        if let Some(value) = &self.record.decided
            && !self.told
            && self.token <= durable
        {
            self.told = true;
            out.push(Output::Decided(value.clone()));
        }
    }
}
