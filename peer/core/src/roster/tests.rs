//! Each rule by name, golden bytes, and chains made at random.

use super::entry::{Body, Signed};
use super::*;
use crate::id::member_id;
use crate::key::SecretKey;
use proptest::prelude::*;
use proto::cluster::NodeName;
use proto::envelope::{EnvelopeError, decode, encode};
use proto::identity::{ClusterId, MemberId};
use proto::text::{hex, unhex};

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn public(seed: u8) -> [u8; 32] {
    *key(seed).public()
}

const ADMIN: u8 = 200;
const RECOVERY: [u8; 3] = [201, 202, 203];

fn node(n: u8) -> NodeName {
    NodeName(format!("n{n}"))
}

/// 2 of 3 recovery keys, members n1 and n2 with keys of seeds 1 and 2, both voting.
fn first() -> Draft {
    let recovery = Recovery { threshold: 2, keys: RECOVERY.map(public).to_vec() };
    let mut draft = Draft::first([9; 32], "demo.lan", public(ADMIN), recovery);
    for n in [1, 2] {
        draft.add(node(n), public(n), Role::Member).unwrap().vote(&node(n), true).unwrap();
    }
    draft
}

fn chain() -> RosterChain {
    RosterChain::found(first().sign(&[&key(ADMIN)]).unwrap()).unwrap()
}

/// The next entry as `change` makes it, signed by `signers`.
fn next(chain: &RosterChain, signers: &[u8], change: impl FnOnce(&mut Draft)) -> Result<Entry, Refused> {
    let mut draft = Draft::after(chain);
    change(&mut draft);
    let keys: Vec<SecretKey> = signers.iter().map(|seed| key(*seed)).collect();
    draft.sign(&keys.iter().collect::<Vec<_>>())
}

fn apply(chain: &RosterChain, signers: &[u8], change: impl FnOnce(&mut Draft)) -> Result<Applied, Refused> {
    next(chain, signers, change).and_then(|entry| chain.apply(entry))
}

fn refusal(chain: &RosterChain, signers: &[u8], change: impl FnOnce(&mut Draft)) -> Refused {
    apply(chain, signers, change).expect_err("a breach")
}

/// A later entry with its parts as `change` leaves them, signed by the admin: what no draft would make.
fn forged(chain: &RosterChain, change: impl FnOnce(&mut Body)) -> Result<Applied, Refused> {
    let mut body = next(chain, &[], |_| ()).unwrap().body;
    change(&mut body);
    let hash = Entry::hash_of(&body);
    let signature = key(ADMIN).sign(super::entry::SIGN_PURPOSE, &hash);
    chain.apply(Entry::assemble(body, vec![Signed { key: public(ADMIN), signature }])?)
}

#[test]
fn members_come_rotate_and_go_and_the_change_says_so() {
    let chain = chain();
    let added = apply(&chain, &[ADMIN], |d| {
        d.add(node(3), public(3), Role::Witness).unwrap().vote(&node(3), true).unwrap();
    })
    .unwrap();
    assert_eq!(added.change.number, 1);
    assert_eq!(added.change.added[0].id, member_id(&public(3)));
    assert_eq!(added.change.vote_given, Some(member_id(&public(3))));
    let rotated = apply(&added.chain, &[ADMIN], |d| {
        d.rotate(&node(1), public(11)).unwrap();
    })
    .unwrap();
    assert_eq!(rotated.change.rotated, [(node(1), public(1))]);
    let content = rotated.chain.newest().content();
    assert_eq!(content.member(&node(1)).unwrap().id, member_id(&public(1)), "the id outlives the key");
    assert_eq!(content.burned, [public(1)]);
    let removed = apply(&rotated.chain, &[ADMIN], |d| {
        d.remove(&node(1)).unwrap();
    })
    .unwrap();
    assert_eq!(removed.change.removed[0].key, public(11));
    assert_eq!(removed.change.vote_taken, Some(member_id(&public(1))));
    assert_eq!(
        removed.chain.machines().to_string(),
        format!("n2:{},n3:{}", hex(&public(2)), hex(&public(3)))
    );
    assert_eq!(chain.newest().number(), 0, "the chain that was asked is as it was");
}

#[test]
fn dead_hardware_is_replaced_under_its_name() {
    let replaced = apply(&chain(), &[ADMIN], |d| {
        d.remove(&node(1)).unwrap().add(node(1), public(11), Role::Member).unwrap();
    })
    .unwrap();
    assert_eq!((replaced.change.removed.len(), replaced.change.added.len()), (1, 1));
    assert_eq!(replaced.change.vote_taken, Some(member_id(&public(1))), "only a person gives the vote anew");
}

#[test]
fn people_are_in_the_roster_but_not_among_machines() {
    let chain = apply(&chain(), &[ADMIN], |d| {
        d.add("alice".into(), public(50), Role::Operator).unwrap();
        d.add("bob".into(), public(51), Role::Viewer).unwrap();
    })
    .unwrap()
    .chain;
    assert_eq!(chain.machines().len(), 2);
    let vote = refusal(&chain, &[ADMIN], |d| {
        d.vote(&"alice".into(), true).unwrap();
    });
    assert_eq!(vote, Refused::VoterRole { name: "alice".into(), role: Role::Operator });
    let machine = refusal(&chain, &[ADMIN], |d| {
        d.content.members.iter_mut().find(|m| m.name.0 == "alice").unwrap().role = Role::Member;
    });
    assert_eq!(machine, Refused::RoleChange { name: "alice".into(), from: Role::Operator, to: Role::Member });
}

#[test]
fn only_the_next_number() {
    let zero = chain();
    let one = apply(&zero, &[ADMIN], |d| {
        d.remove(&node(2)).unwrap();
    })
    .unwrap()
    .chain;
    let two = next(&one, &[ADMIN], |_| ()).unwrap();
    assert_eq!(zero.apply(two).unwrap_err(), Refused::Gap { number: 2, current: 0 });
    assert_eq!(one.apply(one.newest().clone()).unwrap_err(), Refused::Known { number: 1 });
    assert_eq!(one.apply(zero.newest().clone()).unwrap_err(), Refused::Known { number: 0 });
    assert_eq!(RosterChain::found(one.newest().clone()).unwrap_err(), Refused::Gap { number: 1, current: 0 });
}

#[test]
fn only_the_same_cluster() {
    let ours = chain();
    let mut other = first();
    other.content.domain = "other.lan".into();
    let other = RosterChain::found(other.sign(&[&key(ADMIN)]).unwrap()).unwrap();
    let expected = Refused::OtherCluster { ours: ours.cluster(), theirs: other.cluster() };
    assert_eq!(ours.apply(other.newest().clone()).unwrap_err(), expected);
    assert_eq!(ours.apply(next(&other, &[ADMIN], |_| ()).unwrap()).unwrap_err(), expected);
    assert_eq!(RosterChain::join(ours.cluster(), other.newest().clone()).unwrap_err(), expected);
    assert!(RosterChain::join(other.cluster(), other.newest().clone()).is_ok());
}

#[test]
fn only_on_the_hash_of_the_entry_before() {
    let chain = chain();
    let breach = forged(&chain, |body| body.previous[0] ^= 1).unwrap_err();
    let mut theirs = *chain.newest().hash();
    theirs[0] ^= 1;
    assert_eq!(breach, Refused::Fork { number: 0, ours: *chain.newest().hash(), theirs });
}

#[test]
fn two_entries_of_one_number_are_a_fork_with_both_hashes() {
    let zero = chain();
    let here = apply(&zero, &[ADMIN], |d| {
        d.remove(&node(2)).unwrap();
    })
    .unwrap()
    .chain;
    let there = apply(&zero, &[ADMIN], |d| {
        d.add(node(3), public(3), Role::Member).unwrap();
    })
    .unwrap()
    .chain;
    let fork = Refused::Fork { number: 1, ours: *here.newest().hash(), theirs: *there.newest().hash() };
    assert_eq!(here.apply(there.newest().clone()).unwrap_err(), fork);
    // The other branch's continuation says it as well.
    assert_eq!(here.apply(next(&there, &[ADMIN], |_| ()).unwrap()).unwrap_err(), fork);
    // Also later, and from recovery keys.
    let later = apply(&here, &[ADMIN], |_| ()).unwrap().chain;
    assert_eq!(later.apply(there.newest().clone()).unwrap_err(), fork);
    // Nobody can make a fork up.
    let stranger = next(&zero, &[99], |d| {
        d.remove(&node(1)).unwrap();
    })
    .unwrap();
    assert_eq!(here.apply(stranger).unwrap_err(), Refused::Signer { key: public(99) });
}

#[test]
fn an_old_roster_played_again_is_refused_even_when_it_is_not_kept_any_more() {
    let zero = chain();
    let one = apply(&zero, &[ADMIN], |_| ()).unwrap().chain;
    let two = apply(&one, &[ADMIN], |_| ()).unwrap().chain;
    let short = RosterChain::join(two.cluster(), two.newest().clone()).unwrap();
    for old in [zero, one] {
        let number = old.newest().number();
        assert_eq!(two.apply(old.newest().clone()).unwrap_err(), Refused::Known { number });
        assert_eq!(short.apply(old.newest().clone()).unwrap_err(), Refused::Old { number, current: 2 });
    }
}

#[test]
fn signed_by_the_admin_of_the_entry_before_or_k_recovery_keys() {
    let chain = chain();
    assert_eq!(refusal(&chain, &[], |_| ()), Refused::Unsigned { have: 0, need: 2 });
    assert_eq!(refusal(&chain, &[201], |_| ()), Refused::Unsigned { have: 1, need: 2 });
    assert_eq!(refusal(&chain, &[1], |_| ()), Refused::Signer { key: public(1) });
    for good in [&[ADMIN][..], &[201, 203], &[201, 202, 203], &[ADMIN, 202]] {
        assert!(apply(&chain, good, |_| ()).is_ok(), "{good:?}");
    }
    let twice = next(&chain, &[201, 201], |_| ()).unwrap_err();
    assert_eq!(twice, Refused::Order { what: "signatures" }, "one key is one vote");
    let handed_over = apply(&chain, &[ADMIN], |d| d.content.admin = public(210)).unwrap();
    assert!(handed_over.change.admin);
    // The old admin key is burned: it signs nothing and stays out.
    assert_eq!(refusal(&handed_over.chain, &[ADMIN], |_| ()), Refused::Signer { key: public(ADMIN) });
    let back = refusal(&handed_over.chain, &[210], |d| d.content.admin = public(ADMIN));
    assert_eq!(back, Refused::Burned { owner: "the admin".into() });
}

#[test]
fn a_signature_of_another_purpose_or_entry_is_none() {
    let chain = chain();
    let good = next(&chain, &[ADMIN], |_| ()).unwrap();
    let with = |signature| {
        let entry =
            Entry::assemble(good.body.clone(), vec![Signed { key: public(ADMIN), signature }]).unwrap();
        chain.apply(entry).unwrap_err()
    };
    let wrong = Refused::Signature { key: public(ADMIN) };
    assert_eq!(with(key(ADMIN).sign("evenkeel fact 1", good.hash())), wrong);
    assert_eq!(with(key(ADMIN).sign(super::entry::SIGN_PURPOSE, chain.newest().hash())), wrong);
    assert_eq!(with(key(99).sign(super::entry::SIGN_PURPOSE, good.hash())), wrong);
}

#[test]
fn first_entry_is_signed_by_its_own_admin() {
    let unsigned = first().sign(&[]).unwrap();
    assert!(matches!(RosterChain::found(unsigned), Err(Refused::Unsigned { have: 0, .. })));
    let recovery = first().sign(&[&key(201), &key(202)]).unwrap();
    assert!(matches!(RosterChain::found(recovery), Err(Refused::Unsigned { have: 2, .. })));
    assert!(matches!(RosterChain::found(first().sign(&[&key(1)]).unwrap()), Err(Refused::Signer { .. })));
    let mut pinned = first();
    pinned.content.pin = Some(Pin { domain: "old.lan".into(), number: 0, hash: [1; 32] });
    assert!(matches!(pinned.sign(&[&key(ADMIN)]), Err(Refused::First { .. })));
}

#[test]
fn salt_tells_clusters_of_one_admin_apart() {
    let recovery = Recovery { threshold: 2, keys: RECOVERY.map(public).to_vec() };
    let mut other = Draft::first([8; 32], "demo.lan", public(ADMIN), recovery);
    other.content = first().content;
    let other = RosterChain::found(other.sign(&[&key(ADMIN)]).unwrap()).unwrap();
    assert_ne!(other.cluster(), chain().cluster());
}

#[test]
fn one_voter_per_step_and_never_none() {
    let chain = chain();
    let two = refusal(&chain, &[ADMIN], |d| {
        d.add(node(3), public(3), Role::Member).unwrap().vote(&node(3), true).unwrap();
        d.vote(&node(1), false).unwrap();
    });
    assert_eq!(two, Refused::Voters { changed: 2 });
    let one = apply(&chain, &[ADMIN], |d| {
        d.vote(&node(1), false).unwrap();
    })
    .unwrap()
    .chain;
    assert_eq!(
        refusal(&one, &[ADMIN], |d| {
            d.remove(&node(2)).unwrap();
        }),
        Refused::NoVoter
    );
    let ghost = MemberId([7; 32]);
    assert_eq!(
        refusal(&one, &[ADMIN], |d| d.content.voters.push(ghost)),
        Refused::UnknownVoter { id: ghost }
    );
}

#[test]
fn votes_are_bounded() {
    let mut chain = chain();
    for n in 3..=7 {
        let vote = |d: &mut Draft| {
            d.add(node(n), public(n), Role::Member).unwrap().vote(&node(n), true).unwrap();
        };
        chain = apply(&chain, &[ADMIN], vote).unwrap().chain;
    }
    let eighth = refusal(&chain, &[ADMIN], |d| {
        d.add(node(8), public(8), Role::Member).unwrap().vote(&node(8), true).unwrap();
    });
    assert_eq!(
        eighth,
        Refused::TooMany { what: "voters that are members", count: 8, max: MEMBER_VOTERS_MAX }
    );
}

#[test]
fn no_key_and_no_name_twice() {
    let chain = chain();
    let twice = |what: fn(&mut Draft)| refusal(&chain, &[ADMIN], what).to_string();
    let text = twice(|d| {
        d.add(node(3), public(2), Role::Member).unwrap();
    });
    assert_eq!(text, "the roster entry gives n2 and n3 the same key");
    let text = twice(|d| {
        d.add(node(3), public(ADMIN), Role::Member).unwrap();
    });
    assert_eq!(text, "the roster entry gives the admin and n3 the same key");
    let text = twice(|d| {
        d.rotate(&node(1), public(RECOVERY[0])).unwrap();
    });
    assert_eq!(text, "the roster entry gives recovery and n1 the same key");
    let mut draft = Draft::after(&chain);
    assert_eq!(
        draft.add(node(1), public(3), Role::Member).unwrap_err(),
        DraftError::Exists { name: node(1) }
    );
    let name = forged(&chain, |body| {
        let member = Member { key: public(3), id: member_id(&public(3)), ..body.content.members[1].clone() };
        body.content.members.push(member);
    });
    assert_eq!(name.unwrap_err(), Refused::Order { what: "members" });
    let id = forged(&chain, |body| {
        let id = body.content.members[0].id;
        body.content.members.push(Member { name: node(3), key: public(3), id, role: Role::Member });
    });
    assert_eq!(id.unwrap_err(), Refused::DuplicateId { first: node(1), second: node(3) });
}

#[test]
fn removed_keys_stay_burned() {
    let removed = apply(&chain(), &[ADMIN], |d| {
        d.remove(&node(1)).unwrap();
    })
    .unwrap()
    .chain;
    let back = refusal(&removed, &[ADMIN], |d| {
        d.add(node(1), public(1), Role::Member).unwrap();
    });
    assert_eq!(back, Refused::Burned { owner: "n1".into() });
    let later = apply(&removed, &[ADMIN], |_| ()).unwrap().chain;
    let back = refusal(&later, &[201, 202], |d| {
        d.rotate(&node(2), public(1)).unwrap();
    });
    assert_eq!(back, Refused::Burned { owner: "n2".into() }, "recovery keys do not bring it back either");
    let unburned = forged(&later, |body| body.content.burned.clear());
    assert_eq!(unburned.unwrap_err(), Refused::BurnedList);
    let invented = forged(&later, |body| body.content.burned.push([0xff; 32]));
    assert_eq!(invented.unwrap_err(), Refused::BurnedList);
}

#[test]
fn ids_are_of_first_keys_and_names_stay() {
    let chain = chain();
    let renamed = refusal(&chain, &[ADMIN], |d| d.content.members[0].name = node(9));
    assert_eq!(renamed, Refused::Renamed { from: node(1), to: node(9) });
    let claimed = forged(&chain, |body| {
        let id = MemberId([1; 32]);
        body.content.members.push(Member { name: node(3), id, key: public(3), role: Role::Member });
    });
    let (expected, found) = (member_id(&public(3)), MemberId([1; 32]));
    assert_eq!(claimed.unwrap_err(), Refused::FirstKey { name: node(3), expected, found });
}

#[test]
fn recovery_takes_the_cluster_back_from_a_stolen_admin_key() {
    let chain = chain();
    // The thief lets itself in, but cannot touch the recovery keys.
    let locked = refusal(&chain, &[ADMIN], |d| {
        d.content.recovery = Recovery { threshold: 1, keys: vec![public(99)] };
    });
    assert_eq!(locked, Refused::RecoveryNeeded { what: "the recovery keys", have: 0, need: 2 });
    let stolen = apply(&chain, &[ADMIN], |d| {
        d.content.admin = public(98);
        d.add("thief".into(), public(99), Role::Member).unwrap();
    })
    .unwrap()
    .chain;
    let mended = apply(&stolen, &[202, 203], |d| {
        d.content.admin = public(210);
        d.remove(&"thief".into()).unwrap();
    })
    .unwrap();
    assert_eq!(mended.change.removed[0].name, "thief".into());
    assert_eq!(refusal(&mended.chain, &[98], |_| ()), Refused::Signer { key: public(98) });
    let renewed = apply(&mended.chain, &[201, 202], |d| {
        d.content.recovery = Recovery { threshold: 1, keys: vec![public(211)] };
    });
    assert!(apply(&renewed.unwrap().chain, &[211], |_| ()).is_ok());
}

#[test]
fn trust_domain_moves_with_the_old_entry_pinned_until_closed() {
    let chain = chain();
    let alone = refusal(&chain, &[ADMIN], |d| {
        d.move_domain("new.lan");
    });
    assert_eq!(alone, Refused::RecoveryNeeded { what: "the trust domain", have: 0, need: 2 });
    let breach = |change: &dyn Fn(&mut Draft)| match refusal(&chain, &[201, 202], change) {
        Refused::DomainChange { what } => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(breach(&|d| d.content.domain = "new.lan".into()), "it does not pin the old domain");
    assert_eq!(
        breach(&|d| d.move_domain("new.lan").content.pin.as_mut().unwrap().number = 7),
        "it pins another entry than the one before it"
    );
    assert_eq!(
        breach(&|d| {
            d.move_domain("demo.lan");
        }),
        "it pins an old domain but changes none"
    );
    assert_eq!(
        breach(&|d| {
            d.move_domain("new.lan").remove(&node(1)).unwrap();
        }),
        "it changes members too; do that in a step of its own"
    );
    let moved = apply(&chain, &[201, 202], |d| {
        d.move_domain("new.lan");
        d.content.admin = public(210);
    })
    .unwrap()
    .chain;
    let pin = moved.newest().content().pin.clone().unwrap();
    assert_eq!((pin.domain.as_str(), pin.number, pin.hash), ("demo.lan", 0, *chain.newest().hash()));
    assert_eq!(moved.cluster(), chain.cluster(), "it is the same cluster");
    let again = refusal(&moved, &[201, 202], |d| {
        d.move_domain("third.lan");
    });
    assert_eq!(again, Refused::DomainChange { what: "another change is still open; close it first" });
    let meanwhile = apply(&moved, &[210], |d| {
        d.remove(&node(2)).unwrap();
    })
    .unwrap()
    .chain;
    let closed = apply(&meanwhile, &[210], |d| {
        d.close_domain();
    })
    .unwrap()
    .chain;
    assert_eq!(closed.newest().content().pin, None);
}

#[test]
fn sizes_are_bounded_and_the_fullest_entry_fits() {
    // Distinct usable keys are slow to make; 1,500 of them take part of a second.
    let keys: Vec<[u8; 32]> = (0..(MEMBERS_MAX + BURNED_MAX + RECOVERY_MAX) as u32)
        .map(|n| {
            let mut seed = [5; 32];
            seed[..4].copy_from_slice(&n.to_le_bytes());
            *SecretKey::from_seed(seed).public()
        })
        .collect();
    let (members, rest) = keys.split_at(MEMBERS_MAX);
    let (burned, recovery) = rest.split_at(BURNED_MAX);
    let sorted = |keys: &[[u8; 32]]| {
        let mut keys = keys.to_vec();
        keys.sort();
        keys
    };
    let mut voters: Vec<MemberId> = members[..VOTERS_MAX].iter().map(member_id).collect();
    voters.sort();
    let member = |(n, key): (usize, &[u8; 32])| Member {
        name: NodeName(format!("n{n:031}")),
        id: member_id(key),
        key: *key,
        role: if n < 2 { Role::Witness } else { Role::Member },
    };
    let content = Content {
        domain: "d".repeat(DOMAIN_MAX),
        admin: public(ADMIN),
        recovery: Recovery { threshold: 15, keys: sorted(recovery) },
        members: members.iter().enumerate().map(member).collect(),
        voters,
        pools: Vec::new(),
        burned: sorted(burned),
        pin: Some(Pin { domain: "p".repeat(DOMAIN_MAX), number: u64::MAX, hash: [1; 32] }),
    };
    let body = Body { number: u64::MAX, cluster: ClusterId([1; 16]), previous: [2; 32], content };
    let mut signed: Vec<Signed> = (0..SIGNATURES_MAX as u8)
        .map(|n| Signed { key: [n; 32], signature: key(1).sign("any", &[n]) })
        .collect();
    let full = Entry::assemble(body.clone(), signed.clone()).unwrap();
    assert!(full.bytes().len() <= ENTRY_MAX, "{} bytes", full.bytes().len());
    assert_eq!(Entry::decode(full.bytes()), Ok(full));

    signed.push(Signed { key: [99; 32], ..signed[0] });
    let many = |result: Result<Entry, Refused>| match result {
        Err(Refused::TooMany { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(many(Entry::assemble(body.clone(), signed)), "signatures");
    let with = |change: fn(&mut Content)| {
        let mut body = body.clone();
        change(&mut body.content);
        many(Entry::assemble(body, vec![]))
    };
    assert_eq!(with(|c| c.members.push(c.members[0].clone())), "members");
    assert_eq!(with(|c| c.burned.push([0xff; 32])), "burned keys");
    assert_eq!(with(|c| c.recovery.keys.push([0xff; 32])), "recovery keys");
    assert_eq!(with(|c| c.voters.push(MemberId([0xff; 32]))), "voters");
}

#[test]
fn what_one_entry_breaks_alone_has_its_own_refusal() {
    let with = |change: &dyn Fn(&mut Content)| {
        let mut draft = first();
        change(&mut draft.content);
        draft.sign(&[&key(ADMIN)]).unwrap_err()
    };
    assert_eq!(with(&|c| c.pools.push(Pool::Minted { key: [1; 32], count: 4 })), Refused::Pools);
    assert_eq!(with(&|c| c.recovery.threshold = 0), Refused::Threshold { threshold: 0, keys: 3 });
    assert_eq!(with(&|c| c.recovery.threshold = 4), Refused::Threshold { threshold: 4, keys: 3 });
    assert_eq!(with(&|c| c.members[0].name = "N1".into()), Refused::Name);
    for domain in ["", "a b", "Demo", &"d".repeat(DOMAIN_MAX + 1)] {
        assert_eq!(with(&|c| c.domain = domain.into()), Refused::Domain, "{domain}");
    }
    let mut neutral = [0; 32];
    neutral[0] = 1;
    assert_eq!(with(&|c| c.admin = neutral), Refused::Key { owner: "the admin".into() });
}

#[test]
fn the_record_brings_the_chain_back_and_keeps_the_newest_within_its_bound() {
    let mut chain = chain();
    for _ in 0..3 {
        chain = apply(&chain, &[ADMIN], |_| ()).unwrap().chain;
    }
    let record = chain.record();
    let read: RosterRecord = decode(&encode(&record)).unwrap();
    assert_eq!(RosterChain::load(&read), Ok(chain.clone()));
    assert_eq!(chain.entry(0).unwrap().number(), 0);

    // Names that fill the bound soon.
    let mut wide = chain;
    for n in 0..200u8 {
        let fill = |d: &mut Draft| {
            for i in 0..3u32 {
                let mut seed = [77; 32];
                seed[..4].copy_from_slice(&(u32::from(n) * 8 + i).to_le_bytes());
                let key = SecretKey::from_seed(seed);
                if d.content.members.len() < 100 {
                    d.add(NodeName(format!("w{n}-{i}")), *key.public(), Role::Viewer).unwrap();
                }
            }
        };
        wide = apply(&wide, &[ADMIN], fill).unwrap().chain;
    }
    assert!(wide.entry(0).is_none(), "the oldest made room");
    let record = wide.record();
    let bytes = encode(&record); // Panics beyond its bound.
    assert!(bytes.len() > KEPT_BYTES_MAX / 2, "it keeps what fits: {}", bytes.len());
    assert_eq!(RosterChain::load(&record), Ok(wide.clone()));
    assert!(matches!(wide.apply(first().sign(&[&key(ADMIN)]).unwrap()), Err(Refused::Old { number: 0, .. })));
}

#[test]
fn a_damaged_record_is_said_to_be_damaged() {
    #[derive(serde::Serialize)]
    struct Layout {
        cluster: ClusterId,
        entries: Vec<Vec<u8>>,
    }
    let one = apply(&chain(), &[ADMIN], |_| ()).unwrap().chain;
    let bytes = [one.entry(0).unwrap().bytes().to_vec(), one.entry(1).unwrap().bytes().to_vec()];
    let load = |entries: Vec<Vec<u8>>| {
        let layout = postcard::to_allocvec(&Layout { cluster: one.cluster(), entries }).unwrap();
        RosterChain::load(&postcard::from_bytes(&layout).unwrap())
    };
    assert_eq!(load(bytes.to_vec()), Ok(one.clone()));
    assert_eq!(load(vec![]), Err(LoadError::Empty));
    let mut flipped = bytes.to_vec();
    *flipped[1].last_mut().unwrap() ^= 1;
    assert!(matches!(load(flipped), Err(LoadError::Entry { at: 1, .. })));
    let mut swapped = bytes.to_vec();
    swapped.swap(0, 1);
    assert!(matches!(load(swapped), Err(LoadError::Entry { at: 1, source: Refused::Old { .. } })));
}

/// These bytes are what release 1 writes; they are never edited, a change of layout raises the version.
#[test]
fn golden_bytes() {
    let recovery = Recovery { threshold: 1, keys: vec![public(201)] };
    let mut draft = Draft::first([9; 32], "demo.lan", public(ADMIN), recovery);
    draft.add("a1".into(), public(1), Role::Member).unwrap().vote(&"a1".into(), true).unwrap();
    let entry = draft.sign(&[&key(ADMIN)]).unwrap();
    let golden = include_str!("../../testdata/roster-entry-1.hex").split_whitespace().collect::<String>();
    assert_eq!(hex(entry.bytes()), golden, "hash {}", hex(entry.hash()));
    let read = Entry::decode(&unhex(&golden).unwrap()).unwrap();
    assert_eq!(hex(read.hash()), include_str!("../../testdata/roster-entry-1.hash").trim());
    assert!(RosterChain::found(read).is_ok());
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let chain = chain();
    let entry = next(&chain, &[ADMIN], |d| {
        d.remove(&node(2)).unwrap();
    })
    .unwrap();
    let bytes = entry.bytes();
    for cut in 0..bytes.len() {
        assert!(matches!(Entry::decode(&bytes[..cut]), Err(Refused::Bytes(_))), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << bit;
            let judged = Entry::decode(&flipped).and_then(|entry| chain.apply(entry));
            assert!(judged.is_err(), "bit {bit} of byte {at}");
        }
    }
    let mut long = entry.bytes().to_vec();
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Entry::decode(&long), Err(Refused::Bytes(EnvelopeError::TooLong { .. }))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let _ = Entry::decode(&bytes);
        // Damage to a good entry gets further in.
        let chain = chain();
        let mut good = next(&chain, &[ADMIN], |_| ()).unwrap().bytes().to_vec();
        for (index, byte) in at {
            let at = index.index(good.len());
            good[at] = byte;
        }
        if let Ok(entry) = Entry::decode(&good) {
            let _ = chain.apply(entry);
        }
        let _ = postcard::from_bytes::<RosterRecord>(&bytes).map(|record| RosterChain::load(&record));
    }

    /// Whatever drafts are signed, what a chain takes keeps its invariants.
    #[test]
    fn invariants_of_a_chain(steps in prop::collection::vec((0u8..6, 1u8..8, 1u8..24), 1..24)) {
        let mut chain = chain();
        for (what, who, seed) in steps {
            let mut draft = Draft::after(&chain);
            let name = node(who);
            let done = match what {
                0 => draft.add(name, public(seed), Role::Member).map(drop),
                1 => draft.remove(&name).map(drop),
                2 => draft.rotate(&name, public(seed)).map(drop),
                3 => draft.vote(&name, seed % 2 == 0).map(drop),
                4 => draft.add(name.clone(), public(seed), Role::Witness).and_then(|d| d.vote(&name, true)).map(drop),
                _ => { draft.content.admin = public(ADMIN); Ok(()) }
            };
            if done.is_err() { continue }
            let Ok(applied) = draft.sign(&[&key(ADMIN)]).and_then(|entry| chain.apply(entry)) else { continue };
            let (old, new) = (chain.newest().content().clone(), applied.chain.newest().content().clone());
            prop_assert_eq!(applied.chain.newest().number(), chain.newest().number() + 1);
            prop_assert!(old.burned.iter().all(|k| new.burned.contains(k)), "burned keys stay");
            prop_assert!(new.keys().all(|(k, _)| !new.burned.contains(k)), "no burned key is in use");
            let changed = old.voters.iter().filter(|v| !new.voters.contains(v)).count()
                + new.voters.iter().filter(|v| !old.voters.contains(v)).count();
            prop_assert!(changed <= 1 && !new.voters.is_empty());
            for member in &old.members {
                let here = new.member_by_id(&member.id);
                prop_assert!(here.is_some_and(|m| m.key == member.key) || new.burned.contains(&member.key));
            }
            let loaded = RosterChain::load(&applied.chain.record());
            prop_assert_eq!(loaded.as_ref(), Ok(&applied.chain));
            chain = applied.chain;
        }
    }
}
