//! A voter's part: who has a lease, and which keys it covers.
//!
//! ```text
//!             request, key free                  list without the key, or give-up
//!   free  ---------------------------> granted ------------------------------------> free
//!    ^                                  |   |                                          ^
//!    +--- lease + fence bound passed ---+   +-- handed to S --> reserved for S --------+  S waits: granted at once
//! ```
//! One lease for each (member, incarnation); its renewal renews every key granted to it. A voter never asks for
//! anything, and it says nothing that it has not been asked, but for one case: a key that was handed to a node
//! which waits for it is granted by a second vote for the request that the node last sent.

use super::message::{Answer, Denial, GiveUp, Handed, KEY_MAX, KEYS_MAX, Key, Refused, Request, Vote};
use super::{Ceiling, Times};
use crate::rules::{Rule, Rules};
use crate::voters::Voters;
use proto::envelope::{Message, kind};
use proto::identity::MemberId;
use proto::status::bounded;
use proto::time::{Duration, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Leases a voter keeps: nodes of the largest cluster, each with a life or two that has not run out.
pub const LEASES_MAX: usize = 128;
/// Leases of one member: a daemon that restarts again and again waits rather than crowding others out.
pub const LIVES_MAX: usize = 4;
/// Keys a voter keeps, over all nodes.
pub const GRANTS_MAX: usize = 4096;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A request, already authenticated as coming from `member`.
    Request(Request),
    /// A give-up, already authenticated as coming from `member`.
    GiveUp(GiveUp),
    /// The roster names other voters. It is on disk by now. An older list than the known one is ignored.
    Voters(Voters),
    /// The cluster file names other times; [`Ceiling`] covers them.
    Times(Times),
    /// The ceiling on disk was raised. It is never lowered within a life.
    Ceiling(Ceiling),
    /// The record of [`Output::Persist`] is on disk.
    Persisted(u64),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the vote to `vote.member`.
    Send(Vote),
    /// Write the record, then answer with [`Input::Persisted`] and this token. A later one replaces it. Only a
    /// witness asks for it.
    Persist(u64, Record),
}

/// Where an acceptor keeps its votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keeping {
    /// In memory; after a restart without it the acceptor is silent.
    Memory,
    /// On disk (a witness): each new grant is written before it is told.
    Disk,
}

/// How an acceptor begins its life.
#[derive(Clone, Debug)]
pub enum Start {
    /// It remembers nothing: silent for the ceiling.
    Silent,
    /// The memory of the life before, from the same boot of the node, no older than the last vote that left.
    Memory(Memory),
    /// The last record that was written, from whenever.
    Record(Record),
}

/// What an acceptor is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This member.
    pub me: MemberId,
    /// The voters of the roster on disk.
    pub voters: Voters,
    /// The configured times.
    pub times: Times,
    /// The longest there can be, as recorded on disk *before*.
    pub ceiling: Ceiling,
    /// Where votes are kept.
    pub keeping: Keeping,
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Lease {
    /// Of the last request that was granted.
    ballot: u64,
    /// The list of keys it asks for; the next life has it sent again.
    #[serde(skip)]
    list: u64,
    #[serde(skip)]
    wanted: BTreeSet<Key>,
    /// The longest that any of its requests asked for, for the record.
    duration: Duration,
    fence: Duration,
    /// From when on another may be granted its keys.
    free_at: Time,
}

/// Which life of which member.
type Owner = (MemberId, u64);

/// A key kept free for a successor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Reserved {
    for_whom: MemberId,
    until: Time,
}

/// All that an acceptor must not forget within one boot; netd keeps it in the memory that outlives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memory {
    last: Time,
    silent_until: Option<Time>,
    leases: BTreeMap<Owner, Lease>,
    grants: BTreeMap<Key, Owner>,
    reserved: BTreeMap<Key, Reserved>,
}

/// What a witness writes: whose each key is. Renewals change nothing in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    #[serde(deserialize_with = "bounded::<_, _, LEASES_MAX>")]
    leases: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Kept {
    member: MemberId,
    incarnation: u64,
    duration: Duration,
    fence: Duration,
    #[serde(deserialize_with = "bounded::<_, _, KEYS_MAX>")]
    keys: Vec<Key>,
}

const KEY_LEN: usize = 1 + KEY_MAX;
const LEASE_LEN: usize = 32 + 10 + 2 * 15 + 2;

impl Message for Record {
    const KIND: u16 = kind::LEASE_RECORD;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 2 + LEASES_MAX * LEASE_LEN + GRANTS_MAX * KEY_LEN;
}

impl Message for Memory {
    const KIND: u16 = kind::LEASE_MEMORY;
    const VERSION: u16 = 1;
    const MAX_LEN: usize =
        10 + 11 + 3 * 2 + LEASES_MAX * (LEASE_LEN + 2 * 10) + GRANTS_MAX * (2 * KEY_LEN + 2 * 42);
}

/// A voter of the lease register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    me: MemberId,
    voters: Voters,
    times: Times,
    ceiling: Ceiling,
    keeping: Keeping,
    memory: Memory,
    /// The version known before, whose requests are answered until `closed_at`.
    before: u64,
    /// From when on only requests that count by today's version or a later one are answered.
    closed_at: Time,
    /// What was asked to be written last, and its token.
    written: Record,
    token: u64,
    /// The highest token that is on disk.
    durable: u64,
    /// The latest vote for each owner, by the token it waits for.
    waiting: BTreeMap<Owner, (u64, Vote)>,
    rules: Rules,
}

impl Acceptor {
    /// An acceptor that starts at `now`.
    pub fn new(setup: Setup, start: Start, now: Time) -> Acceptor {
        let Setup { me, voters, times, ceiling, keeping } = setup;
        let before = voters.version();
        let silent = Memory {
            last: now,
            silent_until: Some(now + ceiling.0),
            leases: BTreeMap::new(),
            grants: BTreeMap::new(),
            reserved: BTreeMap::new(),
        };
        let mut written = Record::default();
        let memory = match start {
            Start::Silent => silent,
            // From another boot: its instants mean nothing here.
            Start::Memory(memory) if memory.last > now => silent,
            Start::Memory(memory) => Memory { last: now, ..memory },
            Start::Record(record) => {
                let memory = Memory { silent_until: None, ..silent };
                written = record;
                written.wake(memory, now)
            }
        };
        Acceptor {
            me,
            voters,
            times,
            ceiling,
            keeping,
            memory,
            before,
            closed_at: now,
            written,
            token: 0,
            durable: 0,
            waiting: BTreeMap::new(),
            rules: Rules::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_rules(self, rules: Rules) -> Acceptor {
        Acceptor { rules, ..self }
    }

    /// Takes one input in; puts what is to be done into `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        let now = self.enter(now);
        let mut votes = Vec::new();
        match input {
            Input::Request(request) => self.request(now, request, &mut votes),
            Input::GiveUp(give_up) => self.give_up(&give_up, &mut votes),
            Input::Voters(voters) => self.change_voters(now, voters),
            Input::Times(times) => self.times = times,
            Input::Ceiling(ceiling) => self.ceiling = self.ceiling.max(ceiling),
            Input::Persisted(token) => self.durable = self.durable.max(token.min(self.token)),
        }
        self.answer(votes, out);
    }

    /// Forgets what has ended. Harmless at any time, needed at none: every handler does it first.
    pub fn handle_timeout(&mut self, now: Time, out: &mut Vec<Output>) {
        self.enter(now);
        self.answer(Vec::new(), out);
    }

    /// When something ends next; `None` when nothing is kept.
    pub fn next_wakeup(&self) -> Option<Time> {
        let leases = self.memory.leases.values().map(|lease| lease.free_at);
        let reserved = self.memory.reserved.values().map(|reserved| reserved.until);
        leases.chain(reserved).chain(self.memory.silent_until).min()
    }

    /// What the next life must know to go on where this one ends. The shell stores it after each call and before it
    /// sends what the call put out.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether nobody can any more rely on an answer that this voter gave by an older list than today's. The next step of
    /// the voters may be sealed once a majority of today's voters are settled; see [`crate::lease`].
    pub fn is_settled(&self, now: Time) -> bool {
        now >= self.closed_at + self.ceiling.0
    }

    /// To whom `key` is granted, and when it is free unless that one renews.
    pub fn holder(&self, key: &Key) -> Option<(MemberId, u64, Time)> {
        let owner = self.memory.grants.get(key)?;
        self.memory.leases.get(owner).map(|lease| (owner.0, owner.1, lease.free_at))
    }

    /// First thing in every handler: time never runs back, and what has ended is forgotten.
    fn enter(&mut self, now: Time) -> Time {
        let memory = &mut self.memory;
        let now = now.max(memory.last);
        memory.last = now;
        memory.leases.retain(|_, lease| lease.free_at > now);
        let leases = &memory.leases;
        memory.grants.retain(|_, owner| leases.contains_key(owner));
        memory.reserved.retain(|_, reserved| reserved.until > now);
        memory.silent_until = memory.silent_until.filter(|until| *until > now);
        now
    }

    fn request(&mut self, now: Time, request: Request, votes: &mut Vec<Vote>) {
        if !self.voters.contains(self.me) {
            return;
        }
        let owner = (request.member, request.incarnation);
        let last = self.memory.leases.get(&owner).map(|lease| lease.ballot);
        if last.is_some_and(|last| request.ballot <= last) && self.rules.keep(Rule::BallotsRise) {
            return;
        }
        self.memory.forget_past_lives(owner);
        let ballot = request.ballot;
        let answer = match self.denial(now, &request) {
            Some(denial) => Answer::Denied(denial),
            None => self.grant(now, request, votes),
        };
        votes.push(self.vote(owner, ballot, answer));
    }

    /// Why the request gets nothing at all.
    fn denial(&self, now: Time, request: &Request) -> Option<Denial> {
        let memory = &self.memory;
        if let Some(until) = memory.silent_until
            && self.rules.keep(Rule::SilentAfterRestart)
        {
            return Some(Denial::Silent { left: until - now });
        }
        let oldest = if now < self.closed_at { self.before } else { self.voters.version() };
        if request.voters < oldest && self.rules.keep(Rule::OldVoters) {
            return Some(Denial::OldVoters { oldest });
        }
        if request.duration.saturating_add(request.fence) > self.ceiling.0 {
            return Some(Denial::TooLong { ceiling: self.ceiling.0 });
        }
        let lives =
            memory.leases.range((request.member, 0)..=(request.member, u64::MAX)).map(|(owner, _)| owner.1);
        if let Some(known) = lives.clone().next_back()
            && known > request.incarnation
        {
            return Some(Denial::OldLife { known });
        }
        let new = !memory.leases.contains_key(&(request.member, request.incarnation));
        let full = memory.leases.len() >= LEASES_MAX || lives.count() >= LIVES_MAX;
        (new && full).then_some(Denial::Full)
    }

    /// Grants or renews the lease, with the keys of its list that are free.
    fn grant(&mut self, now: Time, request: Request, votes: &mut Vec<Vote>) -> Answer {
        let owner = (request.member, request.incarnation);
        let known = self.memory.leases.get(&owner);
        if request.keys.is_none() && known.is_none_or(|lease| lease.list != request.list) {
            return Answer::ListNeeded;
        }
        let (duration, fence) = if self.rules.keep(Rule::LongerTimes) {
            (request.duration.max(self.times.duration), request.fence.max(self.times.fence))
        } else {
            (self.times.duration, self.times.fence)
        };
        let waited = if self.rules.keep(Rule::FenceBound) { fence } else { Duration::ZERO };
        // Whatever this node's own configuration adds stays below the ceiling: the silence after a restart counts on it.
        let free_at = now + duration.saturating_add(waited).min(self.ceiling.0);
        let lease = self.memory.leases.entry(owner).or_insert_with(|| Lease {
            ballot: 0,
            list: 0,
            wanted: BTreeSet::new(),
            duration,
            fence,
            free_at,
        });
        let shorten = !self.rules.keep(Rule::NeverShorten);
        lease.ballot = request.ballot;
        lease.free_at = if shorten { free_at } else { lease.free_at.max(free_at) };
        (lease.duration, lease.fence) = (lease.duration.max(duration), lease.fence.max(fence));
        if let Some(keys) = request.keys {
            lease.list = request.list;
            lease.wanted = keys.wanted.into_iter().collect();
            self.release(now, owner, duration, &keys.handed, votes);
        }
        let list = request.list;
        Answer::Granted { list, refused: self.fill(now, owner) }
    }

    /// Frees the owner's keys that its list does not name any more, or passes them to the successors it names.
    fn release(
        &mut self,
        now: Time,
        owner: Owner,
        keep_for: Duration,
        handed: &[Handed],
        votes: &mut Vec<Vote>,
    ) {
        let Memory { leases, grants, reserved, .. } = &mut self.memory;
        let wanted = leases.get(&owner).map(|lease| lease.wanted.clone()).unwrap_or_default();
        let mut waiting = BTreeSet::new();
        for Handed { key, to } in handed {
            if grants.get(key) != Some(&owner) || wanted.contains(key) || *to == owner.0 {
                continue;
            }
            let lives = leases.range((*to, 0)..=(*to, u64::MAX));
            match lives.rev().find(|(_, lease)| lease.wanted.contains(key)) {
                Some((successor, _)) => {
                    grants.insert(key.clone(), *successor);
                    waiting.insert(*successor);
                }
                // As many as there are grants: the key's own is removed below.
                None if reserved.len() < GRANTS_MAX => {
                    let until = now + keep_for;
                    reserved.insert(key.clone(), Reserved { for_whom: *to, until });
                }
                None => {}
            }
        }
        grants.retain(|key, of| *of != owner || wanted.contains(key));
        for successor in waiting {
            let Some(lease) = self.memory.leases.get(&successor) else { continue };
            let (ballot, list) = (lease.ballot, lease.list);
            let answer = Answer::Granted { list, refused: self.fill(now, successor) };
            votes.push(self.vote(successor, ballot, answer));
        }
    }

    /// Grants the owner what is free of its list; returns what is not.
    fn fill(&mut self, now: Time, owner: Owner) -> Vec<Refused> {
        let Memory { leases, grants, reserved, .. } = &mut self.memory;
        let Some(lease) = leases.get(&owner) else { return Vec::new() };
        let mut refused = Vec::new();
        for key in &lease.wanted {
            let in_the_way = match grants.get(key) {
                Some(of) if *of == owner => continue,
                Some(_) if !self.rules.keep(Rule::NeverReplace) => None,
                Some(of) if of.0 == owner.0 && !self.rules.keep(Rule::LivesDiffer) => None,
                Some(of) => Some((of.0, leases.get(of).map_or(Duration::ZERO, |lease| lease.free_at - now))),
                None => match reserved.get(key) {
                    Some(reserved) if reserved.for_whom != owner.0 => {
                        Some((reserved.for_whom, reserved.until - now))
                    }
                    _ if grants.len() >= GRANTS_MAX => Some((self.me, Duration::ZERO)),
                    _ => None,
                },
            };
            if let Some((holder, free_in)) = in_the_way {
                refused.push(Refused { key: key.clone(), holder, free_in });
            } else {
                reserved.remove(key);
                grants.insert(key.clone(), owner);
            }
        }
        refused
    }

    fn give_up(&mut self, give_up: &GiveUp, votes: &mut Vec<Vote>) {
        let owner = (give_up.member, give_up.incarnation);
        let Memory { leases, grants, .. } = &mut self.memory;
        let exactly = self.rules.keep(Rule::GiveUpExactly);
        if let Some(lease) = leases.get_mut(&owner) {
            if lease.ballot > give_up.ballot && exactly {
                return;
            }
            // It stays without keys until it ends: requests of that life which are still under way are old now.
            lease.ballot = give_up.ballot;
            lease.wanted.clear();
        }
        grants.retain(|_, of| *of != owner && (exactly || of.0 != owner.0));
        votes.push(self.vote(owner, give_up.ballot, Answer::GivenUp));
    }

    fn change_voters(&mut self, now: Time, voters: Voters) {
        if voters.version() <= self.voters.version() {
            return;
        }
        self.before = self.voters.version();
        // Holders have as long to hear of the new list as the longest lease lasts.
        self.closed_at = now + self.ceiling.0;
        self.voters = voters;
    }

    fn vote(&self, owner: Owner, ballot: u64, answer: Answer) -> Vote {
        let (member, incarnation) = owner;
        Vote { voter: self.me, member, incarnation, ballot, voters: self.voters.version(), answer }
    }

    /// Lets votes go, those of a witness when what they tell is on disk.
    fn answer(&mut self, votes: Vec<Vote>, out: &mut Vec<Output>) {
        if self.keeping == Keeping::Disk {
            let record = Record::of(&self.memory);
            if record != self.written {
                self.token += 1;
                self.written = record.clone();
                out.push(Output::Persist(self.token, record));
            }
        }
        for vote in votes {
            let grants = matches!(vote.answer, Answer::Granted { .. });
            if grants && self.durable < self.token && self.rules.keep(Rule::DurableFirst) {
                self.waiting.insert((vote.member, vote.incarnation), (self.token, vote));
            } else {
                out.push(Output::Send(vote));
            }
        }
        let (durable, leases) = (self.durable, &self.memory.leases);
        self.waiting.retain(|owner, (token, vote)| {
            let due = *token <= durable;
            if due {
                out.push(Output::Send(vote.clone()));
            }
            !due && leases.contains_key(owner)
        });
    }
}

impl Memory {
    /// Lives before this one that hold nothing: their late requests are refused by the later life's lease.
    fn forget_past_lives(&mut self, owner: Owner) {
        let grants = &self.grants;
        let past = |of: &Owner| of.0 == owner.0 && of.1 < owner.1;
        self.leases.retain(|of, _| !past(of) || grants.values().any(|holder| holder == of));
    }
}

impl Record {
    fn of(memory: &Memory) -> Record {
        let mut keys: BTreeMap<Owner, Vec<Key>> = BTreeMap::new();
        for (key, owner) in &memory.grants {
            keys.entry(*owner).or_default().push(key.clone());
        }
        let kept = keys.into_iter().filter_map(|(owner, keys)| {
            let lease = memory.leases.get(&owner)?;
            let (member, incarnation) = owner;
            Some(Kept { member, incarnation, duration: lease.duration, fence: lease.fence, keys })
        });
        Record { leases: kept.collect() }
    }

    /// What it says, as if every lease had just been renewed: no clock tells how long ago it was written.
    fn wake(&self, mut memory: Memory, now: Time) -> Memory {
        for kept in &self.leases {
            let owner = (kept.member, kept.incarnation);
            let (duration, fence) = (kept.duration, kept.fence);
            let free_at = now + duration.saturating_add(fence);
            let lease = Lease { ballot: 0, list: 0, wanted: BTreeSet::new(), duration, fence, free_at };
            memory.leases.insert(owner, lease);
            for key in kept.keys.iter().take(GRANTS_MAX.saturating_sub(memory.grants.len())) {
                memory.grants.insert(key.clone(), owner);
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Keys;
    use super::*;

    const A: MemberId = MemberId([1; 32]);
    const B: MemberId = MemberId([2; 32]);
    const C: MemberId = MemberId([3; 32]);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn at(n: u64) -> Time {
        Time::ZERO + ms(n)
    }

    fn key(name: &str) -> Key {
        Key::new(name.as_bytes()).unwrap()
    }

    fn setup(keeping: Keeping) -> Setup {
        Setup {
            me: C,
            voters: Voters::new(5, [A, B, C]).unwrap(),
            times: Times { duration: ms(100), fence: ms(50) },
            ceiling: Ceiling(ms(400)),
            keeping,
        }
    }

    /// Of a voter that has long been there.
    fn acceptor() -> Acceptor {
        Acceptor::new(setup(Keeping::Memory), Start::Record(Record::default()), Time::ZERO)
    }

    fn request(member: MemberId, ballot: u64, keys: &[&str]) -> Request {
        Request {
            member,
            incarnation: 1,
            ballot,
            voters: 5,
            duration: ms(100),
            fence: ms(50),
            list: ballot,
            keys: Some(Keys { wanted: keys.iter().map(|name| key(name)).collect(), handed: vec![] }),
        }
    }

    fn votes(acceptor: &mut Acceptor, now: Time, input: Input) -> Vec<Vote> {
        let mut out = Vec::new();
        acceptor.handle(now, input, &mut out);
        let vote = |output| match output {
            Output::Send(vote) => Some(vote),
            Output::Persist(..) => None,
        };
        out.into_iter().filter_map(vote).collect()
    }

    fn answer(acceptor: &mut Acceptor, now: u64, request: Request) -> Answer {
        let mut votes = votes(acceptor, at(now), Input::Request(request));
        assert_eq!(votes.len(), 1, "{votes:?}");
        votes.remove(0).answer
    }

    fn granted(list: u64) -> Answer {
        Answer::Granted { list, refused: vec![] }
    }

    #[test]
    fn a_key_is_free_again_after_lease_and_fence() {
        let mut it = acceptor();
        assert_eq!(answer(&mut it, 0, request(A, 1, &["k"])), granted(1));
        let refused = vec![Refused { key: key("k"), holder: A, free_in: ms(1) }];
        assert_eq!(answer(&mut it, 149, request(B, 1, &["k"])), Answer::Granted { list: 1, refused });
        assert_eq!(it.next_wakeup(), Some(at(150)));
        assert_eq!(answer(&mut it, 150, request(B, 2, &["k"])), granted(2));
        assert_eq!(it.holder(&key("k")), Some((B, 1, at(300))));
    }

    #[test]
    fn a_renewal_needs_no_list_once_the_voter_has_it() {
        let mut it = acceptor();
        let renewal = |ballot, list| Request { list, keys: None, ..request(A, ballot, &[]) };
        assert_eq!(answer(&mut it, 0, renewal(1, 9)), Answer::ListNeeded);
        assert_eq!(answer(&mut it, 0, Request { list: 9, ..request(A, 2, &["k"]) }), granted(9));
        assert_eq!(answer(&mut it, 50, renewal(3, 9)), granted(9));
        assert_eq!(it.holder(&key("k")), Some((A, 1, at(200))));
        assert_eq!(answer(&mut it, 60, renewal(4, 8)), Answer::ListNeeded);
        assert_eq!(it.holder(&key("k")), Some((A, 1, at(200))), "an unknown list renews nothing");
    }

    #[test]
    fn a_clean_give_up_hands_over_at_once() {
        let mut it = acceptor();
        answer(&mut it, 0, request(A, 1, &["j", "k"]));
        answer(&mut it, 1, request(A, 2, &["j"]));
        assert_eq!(answer(&mut it, 2, request(B, 1, &["k"])), granted(1));
    }

    #[test]
    fn a_named_successor_that_waits_is_granted_in_the_same_step() {
        let mut it = acceptor();
        answer(&mut it, 0, request(A, 1, &["k"]));
        answer(&mut it, 1, request(B, 7, &["k"]));
        let mut hand_over = request(A, 2, &[]);
        hand_over.keys = Some(Keys { wanted: vec![], handed: vec![Handed { key: key("k"), to: B }] });
        let votes = votes(&mut it, at(2), Input::Request(hand_over));
        let told: Vec<_> = votes.iter().map(|vote| (vote.member, vote.ballot, vote.answer.clone())).collect();
        assert_eq!(told, [(B, 7, granted(7)), (A, 2, granted(2))], "the successor's last request counts");
        assert_eq!(it.holder(&key("k")), Some((B, 1, at(151))));
    }

    #[test]
    fn a_key_is_reserved_for_a_successor_that_has_not_asked() {
        let mut it = acceptor();
        answer(&mut it, 0, request(A, 1, &["k"]));
        let mut hand_over = request(A, 2, &[]);
        hand_over.keys = Some(Keys { wanted: vec![], handed: vec![Handed { key: key("k"), to: B }] });
        answer(&mut it, 10, hand_over);
        let refused = vec![Refused { key: key("k"), holder: B, free_in: ms(90) }];
        assert_eq!(answer(&mut it, 20, request(C, 1, &["k"])), Answer::Granted { list: 1, refused });
        assert_eq!(answer(&mut it, 30, request(B, 1, &["k"])), granted(1));
        // Nobody keeps it for a successor that never comes.
        let mut it = acceptor();
        answer(&mut it, 0, request(A, 1, &["k"]));
        let mut hand_over = request(A, 2, &[]);
        hand_over.keys = Some(Keys { wanted: vec![], handed: vec![Handed { key: key("k"), to: B }] });
        answer(&mut it, 10, hand_over);
        assert_eq!(answer(&mut it, 110, request(C, 1, &["k"])), granted(1));
    }

    #[test]
    fn a_shorter_request_shortens_nothing() {
        let mut it = acceptor();
        let shorter = Request { duration: ms(1), fence: ms(0), ..request(A, 2, &["k"]) };
        let freed_at = |it: &mut Acceptor| {
            answer(it, 0, Request { duration: ms(300), ..request(A, 1, &["k"]) });
            answer(it, 10, shorter.clone());
            it.holder(&key("k")).map(|(_, _, free_at)| free_at)
        };
        assert_eq!(freed_at(&mut it), Some(at(350)));
        let mut broken = acceptor().with_rules(Rules::without(Rule::NeverShorten));
        assert_eq!(freed_at(&mut broken), Some(at(160)), "the rule is what keeps it");
    }

    #[test]
    fn each_denial_says_why() {
        let mut it = acceptor();
        let denied = |it: &mut Acceptor, now, request| match answer(it, now, request) {
            Answer::Denied(denial) => denial,
            other => panic!("{other:?}"),
        };
        let long = Request { duration: ms(351), ..request(A, 1, &[]) };
        assert_eq!(denied(&mut it, 0, long), Denial::TooLong { ceiling: ms(400) });
        let forever = Request { duration: Duration::MAX, fence: Duration::MAX, ..request(A, 1, &[]) };
        assert_eq!(denied(&mut it, 0, forever), Denial::TooLong { ceiling: ms(400) });
        let old = Request { voters: 4, ..request(A, 1, &[]) };
        assert_eq!(denied(&mut it, 0, old), Denial::OldVoters { oldest: 5 });
        answer(&mut it, 0, Request { incarnation: 2, ..request(A, 1, &[]) });
        assert_eq!(denied(&mut it, 0, request(A, 9, &[])), Denial::OldLife { known: 2 });
        let mut anew = Acceptor::new(setup(Keeping::Memory), Start::Silent, at(1000));
        assert_eq!(denied(&mut anew, 1399, request(A, 1, &["k"])), Denial::Silent { left: ms(1) });
        assert_eq!(answer(&mut anew, 1400, request(A, 2, &["k"])), granted(2));
    }

    #[test]
    fn leases_and_lives_are_bounded() {
        let mut it = acceptor();
        let mut full = 0;
        for n in 0..=LEASES_MAX {
            let member = MemberId([n as u8; 32]);
            let got = answer(&mut it, 0, request(member, 1, &[&format!("k{n}")]));
            full += usize::from(got == Answer::Denied(Denial::Full));
        }
        assert_eq!((full, it.memory.leases.len()), (1, LEASES_MAX));
        let mut it = acceptor();
        for incarnation in 1..=LIVES_MAX as u64 {
            let life = Request { incarnation, ..request(A, 1, &[&format!("k{incarnation}")]) };
            assert_eq!(answer(&mut it, 0, life), granted(1));
        }
        let one_more = Request { incarnation: 99, ..request(A, 1, &["k"]) };
        assert_eq!(answer(&mut it, 0, one_more.clone()), Answer::Denied(Denial::Full));
        assert_eq!(answer(&mut it, 150, one_more), granted(1), "when the old lives have ended");
    }

    #[test]
    fn lives_that_hold_nothing_leave_no_trace() {
        let mut it = acceptor();
        for incarnation in 1..100 {
            assert_eq!(answer(&mut it, 0, Request { incarnation, ..request(A, 1, &[]) }), granted(1));
        }
        assert_eq!(it.memory.leases.len(), 1);
    }

    #[test]
    fn a_witness_answers_when_it_is_on_disk_and_renews_without_writing() {
        let mut it = Acceptor::new(setup(Keeping::Disk), Start::Record(Record::default()), Time::ZERO);
        let mut out = Vec::new();
        it.handle(at(0), Input::Request(request(A, 1, &["k"])), &mut out);
        let [Output::Persist(1, record)] = &out[..] else { panic!("{out:?}") };
        let record = record.clone();
        assert_eq!(votes(&mut it, at(1), Input::Persisted(0)), [], "another token");
        let told = votes(&mut it, at(1), Input::Persisted(1));
        assert_eq!((told.len(), told[0].member, told[0].ballot), (1, A, 1));
        let mut out = Vec::new();
        it.handle(at(50), Input::Request(Request { list: 1, ..request(A, 2, &["k"]) }), &mut out);
        assert!(matches!(&out[..], [Output::Send(_)]), "{out:?}");
        // A new life of the witness, hours later by another clock, takes the lease for just renewed.
        let mut anew = Acceptor::new(setup(Keeping::Disk), Start::Record(record), at(7));
        assert_eq!(anew.holder(&key("k")), Some((A, 1, at(157))));
        let refused = vec![Refused { key: key("k"), holder: A, free_in: ms(149) }];
        assert_eq!(answer(&mut anew, 8, request(B, 1, &["k"])), Answer::Granted { list: 1, refused });
    }

    #[test]
    fn a_memory_of_another_boot_counts_for_nothing() {
        let mut it = acceptor();
        answer(&mut it, 5000, request(A, 1, &["k"]));
        let memory = it.memory().clone();
        let kept = Acceptor::new(setup(Keeping::Memory), Start::Memory(memory.clone()), at(5001));
        assert_eq!(kept.holder(&key("k")), Some((A, 1, at(5150))));
        let mut rebooted = Acceptor::new(setup(Keeping::Memory), Start::Memory(memory), at(10));
        assert!(matches!(
            answer(&mut rebooted, 10, request(B, 1, &[])),
            Answer::Denied(Denial::Silent { .. })
        ));
    }

    #[test]
    fn a_voter_settles_two_ceilings_after_it_learnt_of_a_list() {
        let mut it = acceptor();
        assert!(!it.is_settled(at(399)) && it.is_settled(at(400)));
        it.handle(at(1000), Input::Voters(Voters::new(6, [A, C]).unwrap()), &mut Vec::new());
        let by = |voters, ballot| Request { voters, ..request(A, ballot, &[]) };
        assert_eq!(answer(&mut it, 1399, by(5, 1)), granted(1), "holders have a while to hear of it");
        assert_eq!(answer(&mut it, 1400, by(5, 2)), Answer::Denied(Denial::OldVoters { oldest: 6 }));
        assert_eq!(answer(&mut it, 1400, by(7, 3)), granted(3), "who knows more is welcome");
        assert!(!it.is_settled(at(1799)) && it.is_settled(at(1800)));
        it.handle(at(1800), Input::Voters(Voters::new(7, [A, B]).unwrap()), &mut Vec::new());
        assert_eq!(votes(&mut it, at(1801), Input::Request(by(7, 4))), [], "it votes no more");
    }
}
