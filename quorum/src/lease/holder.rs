//! A node's part: asks every voter each beat for its lease, and knows until when it may answer for which keys.
//!
//! ```text
//!            Want                    a majority grants it, deadline ahead
//!   (none) --------> asking ------------------------------------------------> held --Take--> address up
//!      ^              |   ^                                                    |
//!      |   others won |   | a beat or three                deadline - margin,  |  Drop
//!      |              v   |                                  voters changed    v
//!      |            yielding                      asking <---------------------+
//!      +------ GiveUp (from any; the list loses the key at once, with the successor's name) ------
//! ```
//! The deadline of a key: of each voter the latest request it granted *with this key* counts, with the time at which
//! that request was **sent**; the time that a majority of voters have reached, plus the duration, less the allowance
//! for clocks. Nothing else extends it.

use super::message::{Answer, Denial, GiveUp, Handed, KEYS_MAX, Key, Keys, Request, Vote};
use super::{DRIFT_PART, Times};
use crate::rules::{Rule, Rules};
use crate::voters::Voters;
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Requests whose time of sending is remembered. A vote for an older one could not extend anything worth having.
const SENT_MAX: usize = 64;
/// How long a node that gives way leaves a key alone: in beats, if another has won it, and if one of a lower id is
/// ahead. They differ so that two that gave way to each other do not meet again.
const YIELD_BEATS: (u32, u32) = (1, 3);

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// This node is to answer for these keys. All at once where there are many: each call sends requests.
    Want(Vec<Key>),
    /// It is no more: their addresses are gone, or go before the requests behind the [`Output::Drop`] leave. Each with
    /// its successor, if that is known: nobody else gets between.
    GiveUp(Vec<(Key, Option<MemberId>)>),
    /// A vote, already authenticated as coming from `voter`.
    Vote(Vote),
    /// The roster names other voters. An older list than the known one is ignored.
    Voters(Voters),
}

/// Something to do. The shell carries outputs out in order, one after the other: a [`Drop`](Output::Drop) is
/// finished, or has failed and is the fence's, before the request behind it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the request to a voter; to this node's own acceptor as well.
    Request(MemberId, Request),
    /// The same for a give-up of an earlier life.
    GiveUp(MemberId, GiveUp),
    /// The fence must have fired by this deadline if nothing else is heard; `None`: nothing is held.
    Fence(Option<Time>),
    /// Answer for the key.
    Take(Key),
    /// Do not answer for the key any more.
    Drop(Key, Cause),
    /// Not one key more is kept than [`KEYS_MAX`]; the key is not asked for.
    TooMany(Key),
}

/// Why a key is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was given up.
    GivenUp,
    /// The lease ran out before a majority renewed it.
    Expired,
    /// Among the voters of today's roster no majority has granted it.
    Voters,
}

/// The life before, whose votes stand in the way until they end or are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OldLife {
    /// Its incarnation.
    pub incarnation: u64,
    /// The last ballot it may have sent.
    pub ballot: u64,
}

/// What a holder is made of.
#[derive(Clone, Debug)]
pub struct Asking {
    /// This member.
    pub me: MemberId,
    /// This life; higher than every earlier one.
    pub incarnation: u64,
    /// The voters of the roster.
    pub voters: Voters,
    /// The configured times.
    pub times: Times,
    /// How long before a deadline the node steps down by itself: time to take the addresses off.
    pub margin: Duration,
    /// Between two requests.
    pub beat: Duration,
    /// The life before, when its memory was kept and its addresses are gone.
    pub gives_up: Option<OldLife>,
}

/// A key as the console shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which key.
    pub key: Key,
    /// Until when it is held, if it is.
    pub held_until: Option<Time>,
    /// Voters that grant it now.
    pub granted: usize,
    /// How many are needed.
    pub needed: usize,
    /// Voters that refuse it: who has it there, and when it is free unless renewed.
    pub refused: Vec<(MemberId, MemberId, Duration)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wish {
    /// All requests from this ballot on name the key; `None` while it is left to others.
    since: Option<u64>,
    /// When it is asked for again.
    again_at: Option<Time>,
    held_until: Option<Time>,
}

/// The latest vote of one voter that granted a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Heard {
    ballot: u64,
    sent: Time,
    list: u64,
    refused: BTreeMap<Key, (MemberId, Duration)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GivingUp {
    old: OldLife,
    /// Voters that have not confirmed.
    pending: BTreeSet<MemberId>,
    until: Time,
}

/// A node that asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    me: MemberId,
    incarnation: u64,
    voters: Voters,
    times: Times,
    margin: Duration,
    beat: Duration,
    /// The last one that was sent.
    ballot: u64,
    list: u64,
    wishes: BTreeMap<Key, Wish>,
    /// Keys given up for a successor, and how long that is told.
    handed: BTreeMap<Key, (MemberId, Time)>,
    sent: VecDeque<(u64, Time)>,
    votes: BTreeMap<MemberId, Heard>,
    denials: BTreeMap<MemberId, Denial>,
    giving_up: Option<GivingUp>,
    next_request: Option<Time>,
    /// Until when an empty list is worth telling.
    tell_until: Time,
    told_fence: Option<Time>,
    last: Time,
    rules: Rules,
    /// Only where votes of one voter count more than once, in tests.
    #[cfg(test)]
    again: Vec<(MemberId, Time)>,
}

impl Holder {
    /// A holder that starts at `now` and wants nothing yet.
    pub fn new(asking: Asking, now: Time) -> Holder {
        let Asking { me, incarnation, voters, times, margin, beat, gives_up } = asking;
        let giving_up = gives_up.map(|old| GivingUp {
            old,
            pending: voters.members().collect(),
            until: now + times.duration.saturating_add(times.fence),
        });
        Holder {
            me,
            incarnation,
            voters,
            times,
            margin,
            // A zero beat would make every instant a wakeup.
            beat: beat.max(Duration::from_nanos(1)),
            ballot: 0,
            list: 1,
            wishes: BTreeMap::new(),
            handed: BTreeMap::new(),
            sent: VecDeque::new(),
            votes: BTreeMap::new(),
            denials: BTreeMap::new(),
            next_request: giving_up.is_some().then_some(now),
            giving_up,
            tell_until: now,
            told_fence: None,
            last: now,
            rules: Rules::default(),
            #[cfg(test)]
            again: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_rules(self, rules: Rules) -> Holder {
        Holder { rules, ..self }
    }

    /// Takes one input in; puts what is to be done into `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        let now = self.enter(now, false, out);
        match input {
            Input::Want(keys) => self.want(now, keys, out),
            Input::GiveUp(keys) => self.give_up(now, keys, out),
            Input::Vote(vote) => self.vote(now, vote),
            Input::Voters(voters) => self.change_voters(voters),
        }
        self.run(now, out);
    }

    /// To be called when [`next_wakeup`](Self::next_wakeup) has come; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Time, out: &mut Vec<Output>) {
        let now = self.enter(now, true, out);
        self.run(now, out);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called; to be asked again after every call.
    pub fn next_wakeup(&self) -> Option<Time> {
        let wishes = self.wishes.values();
        // to step down
        let deadlines =
            wishes.clone().filter_map(|wish| wish.held_until.map(|until| self.step_down_at(until)));
        // to ask again for what was left to others
        let again = wishes.filter_map(|wish| wish.again_at);
        // to ask for the lease
        deadlines.chain(again).chain(self.next_request).min()
    }

    /// Until when this node may answer for `key`; `None` when it may not.
    pub fn held_until(&self, key: &Key) -> Option<Time> {
        self.wishes.get(key).and_then(|wish| wish.held_until)
    }

    /// The life to give up should this one end without having done so. The shell stores it after each call and before it
    /// sends what the call put out.
    pub fn life(&self) -> OldLife {
        OldLife { incarnation: self.incarnation, ballot: self.ballot }
    }

    /// Why voters grant nothing at all.
    pub fn denials(&self) -> impl Iterator<Item = (MemberId, Denial)> + '_ {
        self.denials.iter().map(|(voter, denial)| (*voter, *denial))
    }

    /// Everything that is asked for.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(key, wish): (&Key, &Wish)| Row {
            key: key.clone(),
            held_until: wish.held_until,
            granted: self.grants(key, wish).count(),
            needed: self.voters.majority(),
            refused: (self.votes.iter())
                .filter_map(|(voter, heard)| heard.refused.get(key).map(|(who, when)| (*voter, *who, *when)))
                .collect(),
        };
        self.wishes.iter().map(row).collect()
    }

    /// First thing in every handler: time never runs back, and what has expired goes before anything else is said.
    fn enter(&mut self, now: Time, timer: bool, out: &mut Vec<Output>) -> Time {
        let now = now.max(self.last);
        self.last = now;
        if self.rules.keep(Rule::StepDownFirst) && (timer || self.rules.keep(Rule::EveryHandler)) {
            self.step_down(now, out);
        }
        now
    }

    fn step_down_at(&self, until: Time) -> Time {
        Time::ZERO + until.since(Time::ZERO + self.margin)
    }

    fn step_down(&mut self, now: Time, out: &mut Vec<Output>) {
        let margin = self.margin;
        for (key, wish) in &mut self.wishes {
            if wish.held_until.is_some_and(|until| until <= now + margin) {
                wish.held_until = None;
                out.push(Output::Drop(key.clone(), Cause::Expired));
            }
        }
    }

    fn want(&mut self, now: Time, keys: Vec<Key>, out: &mut Vec<Output>) {
        let mut changed = false;
        for key in keys {
            if self.wishes.contains_key(&key) {
                continue;
            }
            if self.wishes.len() >= KEYS_MAX {
                out.push(Output::TooMany(key));
                continue;
            }
            self.handed.remove(&key);
            let since = Some(self.ballot.saturating_add(1));
            self.wishes.insert(key, Wish { since, again_at: None, held_until: None });
            changed = true;
        }
        if changed {
            self.list_changed(now);
        }
    }

    fn give_up(&mut self, now: Time, keys: Vec<(Key, Option<MemberId>)>, out: &mut Vec<Output>) {
        let mut changed = false;
        for (key, to) in keys {
            let Some(wish) = self.wishes.remove(&key) else { continue };
            changed = true;
            if wish.held_until.is_some() {
                out.push(Output::Drop(key.clone(), Cause::GivenUp));
            }
            if let Some(to) = to
                && self.handed.len() < KEYS_MAX
            {
                self.handed.insert(key, (to, now + self.times.duration));
            }
        }
        if changed {
            self.list_changed(now);
        }
    }

    /// The voters are told at once.
    fn list_changed(&mut self, now: Time) {
        self.list = self.list.saturating_add(1);
        self.next_request = Some(now);
        self.tell_until = now + self.times.duration.saturating_add(self.times.fence);
    }

    fn vote(&mut self, now: Time, vote: Vote) {
        if vote.member != self.me || !self.voters.contains(vote.voter) {
            return;
        }
        if let (Some(giving_up), Answer::GivenUp) = (&mut self.giving_up, &vote.answer) {
            if (vote.incarnation, vote.ballot) == (giving_up.old.incarnation, giving_up.old.ballot) {
                giving_up.pending.remove(&vote.voter);
            }
            return;
        }
        if vote.incarnation != self.incarnation {
            return;
        }
        let Some((_, sent)) = self.sent.iter().find(|(ballot, _)| *ballot == vote.ballot) else { return };
        let sent = if self.rules.keep(Rule::FromSending) { *sent } else { now };
        match vote.answer {
            Answer::Granted { list, refused } => {
                let wishes = &self.wishes;
                let refused: BTreeMap<_, _> = (refused.into_iter())
                    .filter(|refused| wishes.contains_key(&refused.key))
                    .map(|refused| (refused.key, (refused.holder, refused.free_in)))
                    .collect();
                self.denials.remove(&vote.voter);
                #[cfg(test)]
                if !self.rules.keep(Rule::DistinctVoters) && refused.is_empty() {
                    self.again.push((vote.voter, sent));
                }
                let heard = Heard { ballot: vote.ballot, sent, list, refused };
                match self.votes.get_mut(&vote.voter) {
                    Some(known) if known.ballot > heard.ballot => {}
                    // A second vote for one request only ever grants more: a key was handed to this node.
                    Some(known) if known.ballot == heard.ballot => {
                        known.refused.retain(|key, _| heard.refused.contains_key(key));
                    }
                    _ => {
                        self.votes.insert(vote.voter, heard);
                    }
                }
            }
            // The next request has it; not at once, or two that do not understand each other would never pause.
            Answer::ListNeeded => {
                if let Some(known) = self.votes.get_mut(&vote.voter) {
                    known.list = 0;
                }
            }
            Answer::Denied(denial) => {
                self.denials.insert(vote.voter, denial);
            }
            Answer::GivenUp => {}
        }
    }

    fn change_voters(&mut self, voters: Voters) {
        if voters.version() <= self.voters.version() {
            return;
        }
        self.votes.retain(|voter, _| voters.contains(*voter));
        self.denials.retain(|voter, _| voters.contains(*voter));
        if let Some(giving_up) = &mut self.giving_up {
            giving_up.pending.retain(|voter| voters.contains(*voter));
        }
        self.voters = voters;
    }

    /// Last thing in every handler: count, take, drop, give way, ask.
    fn run(&mut self, now: Time, out: &mut Vec<Output>) {
        self.count(now, out);
        self.come_back(now);
        if !self.rules.keep(Rule::StepDownFirst) {
            if self.next_request.is_some_and(|due| due <= now) {
                self.ask(now, out);
            }
            self.step_down(now, out);
        }
        let fence = self.wishes.values().filter_map(|wish| wish.held_until).min();
        if fence != self.told_fence {
            self.told_fence = fence;
            out.push(Output::Fence(fence));
        }
        if self.next_request.is_some_and(|due| due <= now) {
            self.ask(now, out);
        }
    }

    /// Voters that grant the key by their latest vote, and when the request they granted was sent.
    fn grants<'a>(&'a self, key: &'a Key, wish: &'a Wish) -> impl Iterator<Item = (MemberId, Time)> + 'a {
        let since = if self.rules.keep(Rule::SinceWanted) { wish.since } else { wish.since.map(|_| 0) };
        self.votes.iter().filter_map(move |(voter, heard)| {
            let granted =
                since.is_some_and(|since| heard.ballot >= since) && !heard.refused.contains_key(key);
            granted.then_some((*voter, heard.sent))
        })
    }

    /// The deadline that a majority has granted.
    fn deadline(&self, key: &Key, wish: &Wish) -> Option<Time> {
        let mut sent = self.voters.reached(self.grants(key, wish));
        #[cfg(test)]
        if !self.rules.keep(Rule::DistinctVoters) {
            sent = self.voters.reached(self.again.iter().copied());
        }
        if !self.rules.keep(Rule::FreshMajority) {
            sent = sent.and_then(|_| self.grants(key, wish).map(|(_, sent)| sent).max());
        }
        let Times { duration, fence } = self.times;
        let drift = duration.saturating_add(fence) / DRIFT_PART;
        let drift = if self.rules.keep(Rule::Drift) { drift } else { Duration::ZERO };
        Some(sent? + duration.saturating_sub(drift))
    }

    fn count(&mut self, now: Time, out: &mut Vec<Output>) {
        let mut wishes = core::mem::take(&mut self.wishes);
        for (key, wish) in &mut wishes {
            let until = self.deadline(key, wish).filter(|until| *until > now + self.margin);
            match (wish.held_until, until) {
                (None, Some(_)) => out.push(Output::Take(key.clone())),
                (Some(_), None)
                    if self.rules.keep(Rule::EveryHandler) && self.rules.keep(Rule::StepDownFirst) =>
                {
                    out.push(Output::Drop(key.clone(), Cause::Voters));
                }
                (Some(_), None) => continue,
                (Some(_), Some(_)) | (None, None) => {}
            }
            wish.held_until = until;
        }
        self.wishes = wishes;
    }

    /// Asks again for what was left to others long enough.
    fn come_back(&mut self, now: Time) {
        let mut changed = false;
        for wish in self.wishes.values_mut() {
            if wish.again_at.is_some_and(|again| again <= now) {
                wish.again_at = None;
                wish.since = Some(self.ballot.saturating_add(1));
                changed = true;
            }
        }
        if changed {
            self.list_changed(now);
        }
    }

    /// Leaves a key that is contended for to whoever will win it, so that votes which are split do not stay so; and asks
    /// again later.
    fn give_way(&mut self, now: Time) {
        let longest = self.times.duration.saturating_add(self.times.fence);
        let mut changed = false;
        let mut wishes = core::mem::take(&mut self.wishes);
        for (key, wish) in &mut wishes {
            let contends = wish.held_until.is_none() && self.grants(key, wish).next().is_some();
            if !contends {
                continue;
            }
            // A rival that does not renew is about to lose the key: there is nothing to leave it to.
            let renews = |free_in: Duration, told: Time| {
                free_in.saturating_sub(now - told).saturating_add(2 * self.beat) >= longest
            };
            let mut rivals: BTreeMap<MemberId, usize> = BTreeMap::new();
            for heard in self.votes.values() {
                if let Some((holder, free_in)) = heard.refused.get(key)
                    && renews(*free_in, heard.sent)
                {
                    *rivals.entry(*holder).or_default() += 1;
                }
            }
            let won = rivals.values().any(|votes| *votes >= self.voters.majority());
            let ahead = rivals.keys().next().is_some_and(|lowest| *lowest < self.me);
            if won || ahead {
                let beats = if won { YIELD_BEATS.0 } else { YIELD_BEATS.1 };
                wish.since = None;
                wish.again_at = Some(now + self.beat * beats);
                changed = true;
            }
        }
        self.wishes = wishes;
        if changed {
            self.list_changed(now);
        }
    }

    /// One request to every voter, with a ballot of its own.
    fn ask(&mut self, now: Time, out: &mut Vec<Output>) {
        // Only now: the first vote of a round says nothing about those that are still under way.
        self.give_way(now);
        self.handed.retain(|_, (_, until)| *until > now);
        self.tell_give_up(now, out);
        self.next_request = None;
        let wanted: Vec<Key> =
            self.wishes.iter().filter(|(_, wish)| wish.since.is_some()).map(|(key, _)| key.clone()).collect();
        let known =
            |voter: &MemberId, list: u64| self.votes.get(voter).is_some_and(|heard| heard.list == list);
        let all_know = self.voters.members().all(|voter| known(&voter, self.list));
        let silent = wanted.is_empty() && (all_know || now >= self.tell_until);
        if self.giving_up.is_some() || !silent {
            self.next_request = Some(now + self.beat);
        }
        if silent || self.ballot == u64::MAX {
            return;
        }
        if self.rules.keep(Rule::BallotsOnce) || self.ballot == 0 {
            self.ballot += 1;
        }
        self.sent.retain(|(ballot, _)| *ballot != self.ballot);
        self.sent.push_back((self.ballot, now));
        while self.sent.len() > SENT_MAX {
            self.sent.pop_front();
        }
        let handed = self.handed.iter().map(|(key, (to, _))| Handed { key: key.clone(), to: *to });
        let keys = Keys { wanted, handed: handed.collect() };
        for voter in self.voters.members() {
            let request = Request {
                member: self.me,
                incarnation: self.incarnation,
                ballot: self.ballot,
                voters: self.voters.version(),
                duration: self.times.duration,
                fence: self.times.fence,
                list: self.list,
                keys: (!known(&voter, self.list)).then(|| keys.clone()),
            };
            out.push(Output::Request(voter, request));
        }
    }

    fn tell_give_up(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(GivingUp { old, pending, until }) = &self.giving_up else { return };
        if pending.is_empty() || now >= *until {
            self.giving_up = None;
            return;
        }
        let OldLife { incarnation, ballot } = *old;
        for voter in pending {
            out.push(Output::GiveUp(*voter, GiveUp { member: self.me, incarnation, ballot }));
        }
    }
}
