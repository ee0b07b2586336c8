//! The register from outside: whole groups in virtual time, and anything that a wire or a clock may bring.
#![allow(clippy::unwrap_used)] // a group that cannot go on has failed

use proptest::prelude::*;
use proto::envelope::{Message as _, decode, encode};
use proto::identity::MemberId;
use proto::time::{Duration, Time};
use quorum::lease::{self, *};
use quorum::seal;
use quorum::voters::Voters;
use std::collections::BTreeMap;

fn id(n: u8) -> MemberId {
    MemberId([n; 32])
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn key(name: &str) -> Key {
    Key::new(name.as_bytes()).unwrap()
}

fn voters(version: u64, members: &[u8]) -> Voters {
    Voters::new(version, members.iter().map(|n| id(*n))).unwrap()
}

const TIMES: Times = Times { duration: Duration::from_millis(150), fence: Duration::from_millis(60) };
const BEAT: Duration = Duration::from_millis(20);

fn holder(n: u8, incarnation: u64, list: &Voters, gives_up: Option<OldLife>, now: Time) -> Holder {
    let margin = ms(10);
    let asking =
        Asking { me: id(n), incarnation, voters: list.clone(), times: TIMES, margin, beat: BEAT, gives_up };
    Holder::new(asking, now)
}

/// Nodes that are voters too; messages take 1 ms, or never arrive where a link is cut.
struct Group {
    now: Time,
    list: Voters,
    acceptors: BTreeMap<MemberId, Acceptor>,
    holders: BTreeMap<MemberId, Holder>,
    cut: Vec<MemberId>,
    mail: Vec<(Time, MemberId, MemberId, Mail)>,
    held: BTreeMap<(MemberId, Key), Time>,
    requests: usize,
}

enum Mail {
    Request(Request),
    GiveUp(GiveUp),
    Vote(Vote),
}

impl Group {
    fn new(members: &[u8]) -> Group {
        let list = voters(1, members);
        let acceptor = |n: &u8| {
            let ceiling = Ceiling(TIMES.duration + TIMES.fence);
            let setup =
                Setup { me: id(*n), voters: list.clone(), times: TIMES, ceiling, keeping: Keeping::Memory };
            (id(*n), Acceptor::new(setup, Start::Silent, Time::ZERO))
        };
        Group {
            now: Time::ZERO,
            acceptors: members.iter().map(acceptor).collect(),
            holders: members.iter().map(|n| (id(*n), holder(*n, 1, &list, None, Time::ZERO))).collect(),
            list,
            cut: vec![],
            mail: vec![],
            held: BTreeMap::new(),
            requests: 0,
        }
    }

    fn tell(&mut self, n: u8, input: HolderInput) {
        let mut out = Vec::new();
        self.holders.get_mut(&id(n)).unwrap().handle(self.now, input, &mut out);
        self.carry_out(id(n), out);
    }

    fn want(&mut self, n: u8, name: &str) {
        self.tell(n, HolderInput::Want(vec![key(name)]));
    }

    fn carry_out(&mut self, from: MemberId, out: Vec<HolderOutput>) {
        for output in out {
            match output {
                HolderOutput::Request(to, request) => {
                    self.requests += 1;
                    let request = decode(&encode(&request)).unwrap();
                    self.mail.push((self.now + ms(1), from, to, Mail::Request(request)));
                }
                HolderOutput::GiveUp(to, give_up) => {
                    self.mail.push((self.now + ms(1), from, to, Mail::GiveUp(give_up)));
                }
                HolderOutput::Take(key) => {
                    self.held.insert((from, key), self.now);
                }
                HolderOutput::Drop(key, _) => {
                    self.held.remove(&(from, key)).expect("only what was taken is dropped");
                }
                HolderOutput::Fence(_) | HolderOutput::TooMany(_) => {}
            }
        }
        for key in self.held.keys().map(|(_, key)| key) {
            assert!(self.held.keys().filter(|(_, other)| other == key).count() < 2, "one-holder: {key:?}");
        }
    }

    /// Goes from one event to the next for so long.
    fn pass(&mut self, how_long: Duration) {
        let end = self.now + how_long;
        loop {
            let mail = self.mail.iter().map(|(at, ..)| *at).min();
            let timers = self.holders.values().filter_map(Holder::next_wakeup);
            let Some(next) = timers.chain(mail).min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now;
            let (arrived, rest) = std::mem::take(&mut self.mail).into_iter().partition(|(at, ..)| *at <= now);
            self.mail = rest;
            for (_, from, to, mail) in arrived {
                if self.cut.contains(&from) || self.cut.contains(&to) {
                    continue;
                }
                let mut out = Vec::new();
                match mail {
                    Mail::Request(it) => {
                        self.acceptors.get_mut(&to).unwrap().handle(now, AcceptorInput::Request(it), &mut out)
                    }
                    Mail::GiveUp(it) => {
                        self.acceptors.get_mut(&to).unwrap().handle(now, AcceptorInput::GiveUp(it), &mut out)
                    }
                    Mail::Vote(vote) => {
                        let mut out = Vec::new();
                        self.holders.get_mut(&to).unwrap().handle(now, HolderInput::Vote(vote), &mut out);
                        self.carry_out(to, out);
                    }
                }
                for output in out {
                    if let AcceptorOutput::Send(vote) = output {
                        self.mail.push((now + ms(1), vote.voter, vote.member, Mail::Vote(vote)));
                    }
                }
            }
            let due: Vec<_> = self.holders.keys().copied().collect();
            for member in due {
                let it = self.holders.get_mut(&member).unwrap();
                if it.next_wakeup().is_some_and(|due| due <= now) {
                    let mut out = Vec::new();
                    it.handle_timeout(now, &mut out);
                    assert!(it.next_wakeup().is_none_or(|due| due > now), "a wakeup that does not pass");
                    self.carry_out(member, out);
                }
            }
        }
        self.now = end;
    }

    fn holds(&self, n: u8, name: &str) -> bool {
        self.held.contains_key(&(id(n), key(name)))
    }
}

#[test]
fn a_free_key_is_held_after_one_round_trip_and_for_as_long_as_it_is_renewed() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(2));
    assert!(group.holds(1, "web"));
    let taken = group.held[&(id(1), key("web"))];
    group.pass(ms(5000));
    assert_eq!(group.held[&(id(1), key("web"))], taken, "never dropped and taken again");
}

#[test]
fn the_key_of_a_silent_node_moves_after_lease_and_fence() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(100));
    group.want(2, "web");
    group.pass(ms(100));
    assert!(group.holds(1, "web"), "held by another: waits");
    group.cut.push(id(1));
    let cut_at = group.now;
    group.pass(ms(500));
    let moved = group.held[&(id(2), key("web"))].since(cut_at);
    assert!(!group.holds(1, "web"), "the cut node stepped down by itself");
    assert!(moved >= ms(150) && moved <= ms(210) + 3 * BEAT, "{moved:?}");
}

#[test]
fn a_planned_move_takes_one_way_to_the_voters_and_one_back() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(100));
    group.want(2, "web");
    group.want(3, "web");
    group.pass(ms(100));
    group.tell(1, HolderInput::GiveUp(vec![(key("web"), Some(id(3)))]));
    group.pass(ms(2));
    assert!(group.holds(3, "web"), "the named one, whoever else waits");
}

#[test]
fn split_votes_do_not_stay_split() {
    for members in [&[1, 2, 3][..], &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5, 6, 7]] {
        let mut group = Group::new(members);
        group.pass(ms(300));
        // Each is heard first by its own voter, as all ask in the same instant.
        for n in members {
            group.want(*n, "web");
        }
        // Two of them are gone with what they were granted.
        group.pass(ms(1));
        group.pass(40 * BEAT);
        assert_eq!(members.iter().filter(|n| group.holds(**n, "web")).count(), 1, "of {members:?}");
    }
}

#[test]
fn any_minority_may_be_lost() {
    let mut group = Group::new(&[1, 2, 3, 4, 5]);
    group.pass(ms(300));
    group.cut = vec![id(4), id(5)];
    for n in [3, 2, 1] {
        group.want(n, "web");
    }
    group.pass(40 * BEAT);
    assert_eq!([1, 2, 3].iter().filter(|n| group.holds(**n, "web")).count(), 1);
    group.cut.push(id(3));
    group.pass(ms(400));
    assert!(group.held.is_empty(), "nor is anything held without a majority");
    group.cut.clear();
    group.pass(ms(1000));
    assert_eq!(group.held.len(), 1, "and all heals");
}

#[test]
fn a_new_life_that_remembers_takes_over_at_once() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(100));
    let old = group.holders[&id(1)].life();
    group.held.clear(); // its addresses are gone with it
    group.holders.insert(id(1), holder(1, 2, &group.list, Some(old), group.now));
    group.want(1, "web");
    group.pass(3 * BEAT);
    assert!(group.holds(1, "web"));
}

#[test]
fn a_new_life_that_does_not_waits_for_the_old_lease() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(100));
    let ended_at = group.now;
    group.held.clear();
    group.holders.insert(id(1), holder(1, 2, &group.list, None, group.now));
    group.want(1, "web");
    group.pass(ms(500));
    let taken = group.held[&(id(1), key("web"))].since(ended_at);
    assert!(taken >= ms(150), "{taken:?}");
}

#[test]
fn a_settled_node_sends_one_small_request_to_each_voter_each_beat() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.tell(1, HolderInput::Want((0..100).map(|n| key(&format!("vip-{n}"))).collect()));
    group.pass(ms(100));
    assert_eq!(group.held.len(), 100);
    group.requests = 0;
    group.pass(50 * BEAT);
    assert!((147..=153).contains(&group.requests), "{}", group.requests);
    let mut out = Vec::new();
    let it = group.holders.get_mut(&id(1)).unwrap();
    it.handle_timeout(group.now + BEAT, &mut out);
    let HolderOutput::Request(_, request) = out.pop().unwrap() else { panic!("{out:?}") };
    assert!(request.keys.is_none() && encode(&request).len() < 80, "{} bytes", encode(&request).len());
}

#[test]
fn a_node_that_wants_nothing_falls_silent() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(100));
    group.tell(1, HolderInput::GiveUp(vec![(key("web"), None)]));
    group.pass(ms(500));
    assert!(group.holders[&id(1)].next_wakeup().is_none());
    group.want(2, "web");
    group.pass(ms(2));
    assert!(group.holds(2, "web"));
}

#[test]
fn voters_change_under_a_holder_without_a_gap() {
    let mut group = Group::new(&[1, 2, 3]);
    group.pass(ms(300));
    group.want(1, "web");
    group.pass(ms(500));
    let taken = group.held[&(id(1), key("web"))];
    let next = voters(2, &[1, 2]);
    assert!(group.list.steps_to(&next));
    // The voters hear of it a while before the holder does.
    for acceptor in group.acceptors.values_mut() {
        acceptor.handle(group.now, AcceptorInput::Voters(next.clone()), &mut Vec::new());
    }
    group.pass(ms(150));
    for n in [1, 2, 3] {
        group.tell(n, HolderInput::Voters(next.clone()));
    }
    group.pass(ms(1000));
    assert_eq!(group.held[&(id(1), key("web"))], taken);
    assert!(group.acceptors[&id(2)].is_settled(group.now));
}

#[test]
fn keys_are_bounded() {
    let mut it = holder(1, 1, &voters(1, &[1, 2, 3]), None, Time::ZERO);
    let mut out = Vec::new();
    let many = (0..=KEYS_MAX as u32).map(|n| Key::new(&n.to_le_bytes()).unwrap()).collect();
    it.handle(Time::ZERO, HolderInput::Want(many), &mut out);
    assert!(out.iter().any(|output| matches!(output, HolderOutput::TooMany(_))));
    assert_eq!(it.rows().len(), KEYS_MAX);
    assert!(Key::new(&[0; KEY_MAX + 1]).is_err() && Key::new(&[0; KEY_MAX]).is_ok());
    let HolderOutput::Request(_, request) = out.pop().unwrap() else { panic!("requests come last") };
    assert_eq!(decode::<Request>(&encode(&request)), Ok(request), "a full list fits");
}

/// These bytes are what release 0.2 writes; they are never edited, a change of layout raises the version.
#[test]
fn golden_bytes() {
    let request = Request {
        member: id(1),
        incarnation: 300,
        ballot: 2,
        voters: 3,
        duration: ms(1500),
        fence: ms(1),
        list: 4,
        keys: Some(Keys { wanted: vec![key("ab")], handed: vec![Handed { key: key("c"), to: id(2) }] }),
    };
    let mut bytes = vec![0x01, 0x06, 1, 0, 0, 0, 0, 0];
    bytes.extend([1; 32]);
    bytes.extend([0xac, 0x02, 2, 3, 1, 0x80, 0xca, 0xb5, 0xee, 0x01, 0, 0xc0, 0x84, 0x3d, 4]);
    bytes.extend([1, 1, 2, b'a', b'b', 1, 1, b'c']);
    bytes.extend([2; 32]);
    bytes[4] = (bytes.len() - 8) as u8;
    assert_eq!(encode(&request), bytes);
    assert_eq!(decode(&bytes), Ok(request));

    let refused = vec![Refused { key: key("c"), holder: id(3), free_in: ms(0) }];
    let answer = lease::Answer::Granted { list: 4, refused };
    let vote = Vote { voter: id(2), member: id(1), incarnation: 300, ballot: 2, voters: 3, answer };
    let mut bytes = vec![0x02, 0x06, 1, 0, 108, 0, 0, 0];
    bytes.extend([2; 32]);
    bytes.extend([1; 32]);
    bytes.extend([0xac, 0x02, 2, 3, 0, 4, 1, 1, b'c']);
    bytes.extend([3; 32]);
    bytes.extend([0, 0]);
    bytes[4] = (bytes.len() - 8) as u8;
    assert_eq!(encode(&vote), bytes);

    let ballot = seal::Ballot { round: 300, member: id(2) };
    let accepted = Some(seal::Accepted { ballot, value: seal::Value::new(b"v").unwrap() });
    let record = seal::Record { promised: Some(ballot), accepted, decided: None };
    let mut bytes = vec![0x12, 0x06, 1, 0, 73, 0, 0, 0, 1, 0xac, 0x02];
    bytes.extend([2; 32]);
    bytes.extend([1, 0xac, 0x02]);
    bytes.extend([2; 32]);
    bytes.extend([1, b'v', 0]);
    assert_eq!(encode(&record), bytes);
    assert_eq!(decode(&bytes), Ok(record));
}

#[test]
fn each_length_is_capped() {
    let long = |len: usize| {
        let list: Vec<u8> = vec![7; len];
        postcard::to_allocvec(&list).unwrap()
    };
    assert!(postcard::from_bytes::<Key>(&long(KEY_MAX)).is_ok());
    assert!(postcard::from_bytes::<Key>(&long(KEY_MAX + 1)).is_err());
    assert!(postcard::from_bytes::<seal::Value>(&long(seal::VALUE_MAX)).is_ok());
    assert!(postcard::from_bytes::<seal::Value>(&long(seal::VALUE_MAX + 1)).is_err());
    // A length that is announced and not sent reserves nothing.
    assert!(postcard::from_bytes::<Key>(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    let ballot = seal::Ballot { round: u64::MAX, member: id(9) };
    let value = seal::Value::new(&[1; seal::VALUE_MAX]).unwrap();
    let accepted = Some(seal::Accepted { ballot, value: value.clone() });
    let full = seal::Record { promised: Some(ballot), accepted: accepted.clone(), decided: Some(value) };
    assert!(encode(&full).len() <= seal::Record::MAX_LEN + 8);
    let body = seal::Body::Promise { ballot, accepted };
    encode(&seal::Message { register: seal::Register([1; 32]), from: id(1), body });
}

fn any_time() -> impl Strategy<Value = Time> {
    prop_oneof![0..400_000_000u64, any::<u64>()].prop_map(Time::from_nanos)
}

fn any_duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..400u64).prop_map(Duration::from_millis),
        (any::<u64>(), 0..1_000_000_000u32).prop_map(|(s, n)| Duration::new(s, n))
    ]
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![0..6u64, any::<u64>()]
}

fn any_member() -> impl Strategy<Value = MemberId> {
    (0..6u8).prop_map(id)
}

fn any_key() -> impl Strategy<Value = Key> {
    (0..4u8).prop_map(|n| Key::new(&[n]).unwrap())
}

fn any_keys() -> impl Strategy<Value = Option<Keys>> {
    let handed = (any_key(), any_member()).prop_map(|(key, to)| Handed { key, to });
    let keys = (prop::collection::vec(any_key(), 0..5), prop::collection::vec(handed, 0..4));
    prop::option::of(keys.prop_map(|(wanted, handed)| Keys { wanted, handed }))
}

fn any_request() -> impl Strategy<Value = Request> {
    let numbers = (any_number(), any_number(), any_number(), any_number());
    (any_member(), numbers, any_duration(), any_duration(), any_keys()).prop_map(
        |(member, (incarnation, ballot, voters, list), duration, fence, keys)| Request {
            member,
            incarnation,
            ballot,
            voters,
            duration,
            fence,
            list,
            keys,
        },
    )
}

fn any_vote() -> impl Strategy<Value = Vote> {
    let refused = (any_key(), any_member(), any_duration()).prop_map(|(key, holder, free_in)| Refused {
        key,
        holder,
        free_in,
    });
    let refused = prop::collection::vec(refused, 0..4);
    let answer = prop_oneof![
        (any_number(), refused).prop_map(|(list, refused)| lease::Answer::Granted { list, refused }),
        Just(lease::Answer::ListNeeded),
        Just(lease::Answer::GivenUp),
        any_duration().prop_map(|left| lease::Answer::Denied(Denial::Silent { left })),
    ];
    (any_member(), any_member(), any_number(), any_number(), any_number(), answer).prop_map(
        |(voter, member, incarnation, ballot, voters, answer)| Vote {
            voter,
            member,
            incarnation,
            ballot,
            voters,
            answer,
        },
    )
}

fn any_voters() -> impl Strategy<Value = Voters> {
    (any_number(), prop::collection::vec(any_member(), 0..6))
        .prop_map(|(version, members)| Voters::new(version, members).unwrap())
}

fn any_acceptor_input() -> impl Strategy<Value = AcceptorInput> {
    let give_up = (any_member(), any_number(), any_number())
        .prop_map(|(member, incarnation, ballot)| GiveUp { member, incarnation, ballot });
    prop_oneof![
        6 => any_request().prop_map(AcceptorInput::Request),
        1 => give_up.prop_map(AcceptorInput::GiveUp),
        1 => any_voters().prop_map(AcceptorInput::Voters),
        1 => any_number().prop_map(AcceptorInput::Persisted),
        1 => any_duration().prop_map(|most| AcceptorInput::Ceiling(Ceiling(most))),
        1 => (any_duration(), any_duration())
            .prop_map(|(duration, fence)| AcceptorInput::Times(Times { duration, fence })),
    ]
}

fn any_holder_input() -> impl Strategy<Value = HolderInput> {
    let keys = prop::collection::vec(any_key(), 0..4);
    let given = prop::collection::vec((any_key(), prop::option::of(any_member())), 0..3);
    prop_oneof![
        6 => any_vote().prop_map(HolderInput::Vote),
        2 => keys.prop_map(HolderInput::Want),
        1 => given.prop_map(HolderInput::GiveUp),
        1 => any_voters().prop_map(HolderInput::Voters),
    ]
}

fn any_body() -> impl Strategy<Value = seal::Body> {
    let ballot = || (any_number(), any_member()).prop_map(|(round, member)| seal::Ballot { round, member });
    let value = || (0..3u8).prop_map(|n| seal::Value::new(&[n]).unwrap());
    let accepted = move || (ballot(), value()).prop_map(|(ballot, value)| seal::Accepted { ballot, value });
    let option = move || prop::option::of(accepted());
    prop_oneof![
        ballot().prop_map(seal::Body::Prepare),
        (ballot(), option()).prop_map(|(ballot, accepted)| seal::Body::Promise { ballot, accepted }),
        accepted().prop_map(seal::Body::Propose),
        ballot().prop_map(seal::Body::Voted),
        (ballot(), ballot()).prop_map(|(asked, promised)| seal::Body::Behind { asked, promised }),
        Just(seal::Body::Ask),
        option().prop_map(|accepted| seal::Body::Undecided { accepted }),
        value().prop_map(seal::Body::Decided),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_makes_an_acceptor_panic_or_wake_for_nothing(
        disk in any::<bool>(),
        inputs in prop::collection::vec((any_time(), any_acceptor_input()), 0..60),
    ) {
        let keeping = if disk { Keeping::Disk } else { Keeping::Memory };
        let ceiling = Ceiling(ms(400));
        let setup = Setup { me: id(1), voters: voters(1, &[1, 2, 3]), times: TIMES, ceiling, keeping };
        let mut it = Acceptor::new(setup.clone(), Start::Record(Record::default()), Time::ZERO);
        let mut last = Time::ZERO;
        for (now, input) in inputs {
            last = last.max(now);
            let mut out = Vec::new();
            it.handle(now, input, &mut out);
            it.handle_timeout(now, &mut out);
            prop_assert!(out.len() <= 12, "{out:?}");
            prop_assert!(it.next_wakeup().is_none_or(|due| due > last || last == Time::from_nanos(u64::MAX)));
            for output in out {
                if let AcceptorOutput::Persist(_, record) = output {
                    let back = decode::<Record>(&encode(&record));
                    prop_assert_eq!(back.as_ref(), Ok(&record));
                    Acceptor::new(setup.clone(), Start::Record(record), now);
                }
            }
            let memory: Memory = decode(&encode(it.memory())).unwrap();
            Acceptor::new(setup.clone(), Start::Memory(memory), last);
        }
    }

    #[test]
    fn nothing_makes_a_holder_panic_or_hold_what_has_expired(
        inputs in prop::collection::vec((any_time(), any_holder_input()), 0..60),
    ) {
        let mut it = holder(1, 1, &voters(1, &[1, 2, 3]), Some(OldLife { incarnation: 0, ballot: 3 }), Time::ZERO);
        let mut last = Time::ZERO;
        for (now, input) in inputs {
            last = last.max(now);
            let mut out = Vec::new();
            it.handle(now, input, &mut out);
            for row in it.rows() {
                prop_assert!(row.held_until.is_none_or(|until| until > last));
            }
            it.handle_timeout(now, &mut out);
            prop_assert!(it.next_wakeup().is_none_or(|due| due > last || last == Time::from_nanos(u64::MAX)));
        }
    }

    #[test]
    fn nothing_makes_a_seal_panic_or_change(
        inputs in prop::collection::vec((any_time(), any_member(), any_body(), any::<bool>()), 0..60),
    ) {
        let (register, list) = (seal::Register([7; 32]), voters(1, &[1, 2, 3]));
        let mut acceptor = seal::Acceptor::new(id(1), register, list.clone(), seal::Record::default());
        let mut proposer = seal::Proposer::new(id(2), register, list, seal::Round(0), ms(10), Time::ZERO);
        let mut round = 0;
        let mut decided = None;
        for (now, from, body, propose) in inputs {
            let message = seal::Message { register, from, body };
            let mut out = Vec::new();
            acceptor.handle(seal::AcceptorInput::Message(message.clone()), &mut out);
            for output in std::mem::take(&mut out) {
                if let seal::AcceptorOutput::Persist(token, record) = output {
                    prop_assert_eq!(decode::<seal::Record>(&encode(&record)), Ok(record));
                    acceptor.handle(seal::AcceptorInput::Persisted(token), &mut out);
                }
            }
            decided = decided.or(acceptor.decided().cloned());
            prop_assert_eq!(&decided, &acceptor.decided().cloned(), "a decided value stays");
            let mut out = Vec::new();
            let input = if propose {
                seal::ProposerInput::Propose(seal::Value::new(&[9]).unwrap())
            } else {
                seal::ProposerInput::Message(message)
            };
            proposer.handle(now, input, &mut out);
            proposer.handle_timeout(now, &mut out);
            for output in std::mem::take(&mut out) {
                if let seal::ProposerOutput::Persist(token, seal::Round(next)) = output {
                    prop_assert!(next > round, "a round is never used again");
                    round = next;
                    proposer.handle(now, seal::ProposerInput::Persisted(token), &mut out);
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = postcard::from_bytes::<Request>(&bytes);
        let _ = postcard::from_bytes::<Vote>(&bytes);
        let _ = postcard::from_bytes::<GiveUp>(&bytes);
        let _ = postcard::from_bytes::<Record>(&bytes);
        let _ = postcard::from_bytes::<Memory>(&bytes);
        let _ = postcard::from_bytes::<seal::Message>(&bytes);
        let _ = postcard::from_bytes::<seal::Record>(&bytes);
    }
}
