use super::*;
use proptest::prelude::*;

const NETD: ServiceId = ServiceId(0);
const OTHER: ServiceId = ServiceId(1);
const LIFE_1: Caller = Caller { service: NETD, pid: 10, client: 1 };
const LIFE_2: Caller = Caller { service: NETD, pid: 20, client: 2 };
const KILL_1: Action = Action::Kill { service: NETD, pid: 10 };

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

fn eth(index: u32) -> InterfaceRef {
    InterfaceRef { index, name: format!("eth{index}") }
}

fn v4(count: u32) -> Vec<FenceAddress> {
    (0..count).map(|n| FenceAddress { address: IpAddr::V4((0x0a09_0000 + n).into()), prefix: 32 }).collect()
}

/// Registered by the first life at 0, good until 150 ms.
fn armed(count: u32) -> Fence {
    let mut fence = Fence::new();
    assert_eq!(fence.register(at(0), LIFE_1, at(150), &eth(3), &v4(count)), Ok(()));
    fence
}

fn state(fence: &Fence, now: Time) -> (FenceState, Option<u64>, usize) {
    let info = fence.info(now, None);
    (info.state, info.left_ms, info.rows.len())
}

/// Answers whole batches with `outcome` until nothing more is to be done at `now`; the number of deletions.
fn delete_all(fence: &mut Fence, now: Time, outcome: impl Fn(FenceAddress) -> Outcome) -> (usize, Pass) {
    let mut count = 0;
    loop {
        let batch: Vec<_> = fence.batch().map(|t| (t.slot, t.address)).collect();
        assert!(batch.len() <= BATCH_MAX);
        for (slot, address) in &batch {
            fence.answered(*slot, outcome(*address));
        }
        count += batch.len();
        match fence.batch_done(now) {
            Pass::More if !batch.is_empty() => assert_eq!(fence.handle_timeout(now), Action::Delete),
            pass => return (count, pass),
        }
    }
}

fn done(at_ms: u64, deleted: u32, absent: u32, took_us: u64) -> Pass {
    Pass::Done(FenceReport { at_ms, deleted, absent, took_us })
}

#[test]
fn feeds_move_the_deadline_and_a_missed_one_kills_waits_and_deletes() {
    let mut f = armed(100);
    assert_eq!((f.next_wakeup(), f.feeder()), (Some(at(150)), Some(1)));
    assert_eq!(f.handle_timeout(at(149)), Action::None);
    f.feed(at(140), 1, at(290));
    assert_eq!(f.handle_timeout(at(289)), Action::None);
    assert_eq!(f.handle_timeout(at(290)), KILL_1);
    assert_eq!(state(&f, at(290)), (FenceState::Killing, Some(500), 100));
    assert_eq!(f.batch().count(), 0, "nothing is deleted while the process may still add");
    f.feed(at(291), 1, at(440));
    assert_eq!(f.process_ended(at(292), 11), Action::None, "somebody else's end");
    assert_eq!(f.process_ended(at(293), 10), Action::Delete);
    let first = f.batch().next().map(|t| (t.slot, t.interface.clone(), t.address));
    assert_eq!(first, Some((0, eth(3), v4(1)[0])));
    assert_eq!(delete_all(&mut f, at(294), |_| Outcome::Deleted), (100, done(294, 100, 0, 4000)));
    assert_eq!((state(&f, at(295)), f.next_wakeup()), ((FenceState::Idle, None, 0), None));
    assert_eq!(f.info(at(295), None).last.map(|r| r.deleted), Some(100));
}

#[test]
fn the_last_feed_counts_and_only_over_the_holders_connection() {
    let mut f = armed(1);
    f.feed(at(10), 9, at(900));
    assert_eq!(f.next_wakeup(), Some(at(150)), "another connection");
    f.feed(at(10), 1, at(50));
    assert_eq!(f.next_wakeup(), Some(at(50)), "a feed may shorten the time");
    f.feed(at(10), 1, at(600_000));
    assert_eq!(f.next_wakeup(), Some(at(60_010)), "a word is bounded");
    f.feed(at(20), 1, at(15));
    assert_eq!(f.handle_timeout(at(20)), KILL_1, "one that was too old when it came");
    assert_eq!(f.info(at(20), None).feeds, 3);
}

#[test]
fn the_next_life_adopts_until_the_deadline() {
    let mut f = armed(3);
    assert_eq!(f.adopt(at(1), LIFE_2, at(200)), Err(Refused::OtherProcess(10)));
    assert_eq!(f.process_ended(at(100), 10), Action::None);
    assert_eq!(state(&f, at(100)), (FenceState::Orphaned, Some(50), 3));
    f.feed(at(101), 1, at(900));
    f.feed(at(101), 2, at(900));
    assert_eq!((f.next_wakeup(), f.feeder()), (Some(at(150)), None), "nobody feeds for the dead");
    assert_eq!(f.adopt(at(149), LIFE_2, at(299)), Ok(()));
    f.feed(at(250), 2, at(400));
    assert_eq!(state(&f, at(250)), (FenceState::Armed, Some(150), 3));
    assert_eq!(f.handle_timeout(at(400)), Action::Kill { service: NETD, pid: 20 });
}

#[test]
fn what_nobody_adopts_goes_without_a_kill() {
    let mut f = armed(2);
    assert_eq!(f.process_ended(at(100), 10), Action::None);
    assert_eq!(f.handle_timeout(at(150)), Action::Delete);
    assert_eq!(f.adopt(at(150), LIFE_2, at(300)), Err(Refused::Busy));
    assert_eq!(f.register(at(150), LIFE_2, at(300), &eth(3), &v4(1)), Err(Refused::Busy));
    let absent_first = |a: FenceAddress| if a == v4(1)[0] { Outcome::Absent } else { Outcome::Deleted };
    assert_eq!(delete_all(&mut f, at(151), absent_first), (2, done(151, 1, 1, 1000)));
    assert_eq!(f.register(at(152), LIFE_2, at(300), &eth(3), &v4(1)), Ok(()));
    // The end and the deadline at the same time.
    assert_eq!(f.process_ended(at(300), 20), Action::Delete);
}

#[test]
fn a_process_that_does_not_end_holds_nothing_up() {
    let mut f = armed(2);
    assert_eq!(f.handle_timeout(at(150)), KILL_1);
    assert_eq!((f.handle_timeout(at(649)), f.next_wakeup()), (Action::None, Some(at(650))));
    assert_eq!(f.handle_timeout(at(650)), Action::Delete);
    assert_eq!(delete_all(&mut f, at(651), |_| Outcome::Deleted), (2, Pass::Again(None)));
    assert_eq!((state(&f, at(651)).0, f.next_wakeup()), (FenceState::Killing, Some(at(1151))));
    assert_eq!(f.register(at(652), LIFE_2, at(900), &eth(3), &v4(1)), Err(Refused::Busy));
    assert_eq!(
        f.process_ended(at(700), 10),
        Action::Delete,
        "what it was in the middle of may be there again"
    );
    assert_eq!(delete_all(&mut f, at(701), |_| Outcome::Absent), (2, done(701, 0, 2, 551_000)));

    let mut f = armed(200);
    assert_eq!((f.handle_timeout(at(150)), f.handle_timeout(at(650))), (KILL_1, Action::Delete));
    let slots: Vec<_> = f.batch().map(|t| t.slot).collect();
    slots.iter().for_each(|slot| f.answered(*slot, Outcome::Deleted));
    assert_eq!(f.batch_done(at(651)), Pass::More);
    assert_eq!(f.process_ended(at(652), 10), Action::Delete);
    assert_eq!(f.batch().next().map(|t| t.slot), Some(0), "from the beginning");
    assert_eq!(delete_all(&mut f, at(653), |_| Outcome::Deleted).0, 200);
}

#[test]
fn what_the_kernel_does_not_delete_is_never_given_up() {
    let mut f = armed(100);
    assert_eq!((f.process_ended(at(1), 10), f.handle_timeout(at(150))), (Action::None, Action::Delete));
    let stubborn = v4(100)[70];
    let refuse = |a: FenceAddress| if a == stubborn { Outcome::Failed(16) } else { Outcome::Deleted };
    assert_eq!(delete_all(&mut f, at(151), refuse), (100, Pass::Again(Some(16))));
    for round in 0..20 {
        let now = at(251 + round * 100);
        assert_eq!(f.handle_timeout(at(250 + round * 100)), Action::None);
        assert_eq!((f.batch().count(), f.next_wakeup()), (0, Some(now)), "not before its time");
        assert_eq!(f.handle_timeout(now), Action::Delete);
        assert_eq!(delete_all(&mut f, now, refuse), (1, Pass::Again(Some(16))));
    }
    assert_eq!(f.handle_timeout(at(3000)), Action::Delete);
    assert_eq!(delete_all(&mut f, at(3000), |_| Outcome::Absent), (1, done(3000, 99, 1, 2_850_000)));
}

#[test]
fn registering_and_releasing_are_safe_to_repeat() {
    let mut f = armed(4);
    let more = [v4(5), v4(5)].concat();
    assert_eq!(f.register(at(1), LIFE_1, at(200), &eth(3), &more), Ok(()));
    assert_eq!(f.register(at(1), LIFE_1, at(200), &eth(4), &v4(1)), Ok(()));
    assert_eq!((state(&f, at(0)).2, f.next_wakeup()), (6, Some(at(200))));
    assert_eq!(f.release(LIFE_1, 9, &v4(5)), Ok(()), "an interface nobody knows");
    assert_eq!(f.release(LIFE_1, 4, &v4(5)), Ok(()));
    assert_eq!(f.release(LIFE_1, 4, &v4(5)), Ok(()));
    assert_eq!(state(&f, at(0)), (FenceState::Armed, Some(200), 5));
    assert_eq!(f.release(LIFE_1, 3, &v4(5)), Ok(()));
    assert_eq!((state(&f, at(0)), f.next_wakeup(), f.feeder()), ((FenceState::Idle, None, 0), None, None));
    assert_eq!(f.handle_timeout(at(900)), Action::None, "nothing is left to answer for");
    assert_eq!(f.adopt(at(900), LIFE_1, at(901)), Ok(()), "and nothing to adopt");
    assert_eq!(f.next_wakeup(), None);
}

#[test]
fn a_renamed_interface_keeps_its_place() {
    let mut f = armed(1);
    let renamed = InterfaceRef { index: 3, name: "lan".into() };
    assert_eq!(f.register(at(1), LIFE_1, at(150), &renamed, &v4(2)), Ok(()));
    let info = f.info(at(1), Some("netd"));
    assert_eq!((info.interfaces, info.rows.len()), (vec![renamed], 2));
    assert_eq!(info.service.as_deref(), Some("netd"));
}

#[test]
fn each_breach_is_refused_and_changes_nothing() {
    let mut f = armed(2);
    let stranger = Caller { service: OTHER, pid: 30, client: 3 };
    let good = v4(3);
    let bad = [FenceAddress { address: "10.9.0.1".parse().unwrap(), prefix: 33 }];
    let far = [v4(1)[0], FenceAddress { address: "fd09::1".parse().unwrap(), prefix: 129 }];
    let name = |name: &str| InterfaceRef { index: 3, name: name.into() };
    let breaches = [
        (stranger, at(200), eth(3), good.as_slice()),
        (LIFE_2, at(200), eth(3), &good),
        (LIFE_1, at(100), eth(3), &good),
        (LIFE_1, at(60_101), eth(3), &good),
        (LIFE_1, at(200), eth(0), &good),
        (LIFE_1, at(200), InterfaceRef { index: 1 << 31, name: "a".into() }, &good),
        (LIFE_1, at(200), name(""), &good),
        (LIFE_1, at(200), name("sixteen-bytes-xx"), &good),
        (LIFE_1, at(200), name("a/b"), &good),
        (LIFE_1, at(200), name("a\0"), &good),
        (LIFE_1, at(200), eth(3), &bad),
        (LIFE_1, at(200), eth(3), &far),
    ];
    for (caller, until, interface, addresses) in breaches {
        let refused = f.register(at(100), caller, until, &interface, addresses);
        assert!(refused.is_err(), "{caller:?} {until:?} {interface:?} {addresses:?}");
        assert_eq!((state(&f, at(100)), f.feeder()), ((FenceState::Armed, Some(50), 2), Some(1)));
    }
    assert_eq!(f.release(stranger, 3, &good), Err(Refused::Taken(2)));
    assert_eq!(f.adopt(at(100), LIFE_1, at(100)).map_err(|e| e.to_string()).unwrap_err(), {
        "a deadline lies 1 ns to 60 s ahead on CLOCK_BOOTTIME; this one has passed"
    });
}

#[test]
fn numbers_are_bounded_and_memory_is_set_aside_once() {
    let mut f = armed(1);
    let capacity = f.entries.capacity();
    assert_eq!(capacity, FENCE_ADDRESSES_MAX);
    let all = v4(FENCE_ADDRESSES_MAX as u32 + 1);
    assert_eq!(f.register(at(1), LIFE_1, at(150), &eth(3), &all), Err(Refused::TooMany));
    assert_eq!(state(&f, at(1)).2, 1);
    assert_eq!(
        f.register(at(1), LIFE_1, at(150), &eth(3), &all[..FENCE_ADDRESSES_MAX]),
        Ok(()),
        "one of them is known"
    );
    assert_eq!(
        f.register(at(1), LIFE_1, at(150), &eth(3), &all[..FENCE_ADDRESSES_MAX]),
        Ok(()),
        "all are known"
    );
    assert_eq!((state(&f, at(1)).2, f.entries.capacity()), (FENCE_ADDRESSES_MAX, capacity));

    let mut f = Fence::new();
    for index in 1..=FENCE_INTERFACES_MAX as u32 {
        assert_eq!(f.register(at(0), LIFE_1, at(150), &eth(index), &v4(1)), Ok(()));
    }
    let late = f.register(at(0), LIFE_1, at(150), &eth(99), &v4(1));
    assert_eq!(late, Err(Refused::TooManyInterfaces));
    assert_eq!(f.release(LIFE_1, 7, &v4(1)), Ok(()));
    assert_eq!(f.register(at(0), LIFE_1, at(150), &eth(99), &v4(1)), Ok(()), "a free one makes room");
    assert_eq!(f.info(at(0), None).interfaces[6], eth(99));
}

#[test]
fn the_end_of_the_machine_fences_at_once() {
    let mut f = armed(1);
    assert_eq!(f.fence_now(at(10)), KILL_1);
    assert_eq!(f.process_ended(at(11), 10), Action::Delete);
    let mut f = armed(1);
    assert_eq!(f.process_ended(at(5), 10), Action::None);
    assert_eq!(f.fence_now(at(10)), Action::Delete);
    assert_eq!(delete_all(&mut f, at(12), |_| Outcome::Deleted), (1, done(12, 1, 0, 2000)));
    assert_eq!(Fence::new().fence_now(at(10)), Action::None);
}

/// Whatever happens in whatever order: an address leaves the fence by being released or deleted, it is deleted only
/// when its owner can add no more (or did not end in time), and everything that waits has a wakeup.
#[test]
fn invariants_hold_for_any_order_of_events() {
    for seed in 1..=300_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut f = Fence::new();
        let mut now = 0;
        let mut life = 1;
        // The killed process that has not ended, and since when.
        let mut dying: Option<(u32, u64)> = None;
        for _ in 0..300 {
            now += next(120);
            let caller = Caller { service: NETD, pid: life, client: life };
            let before = state(&f, at(now)).2;
            let mut released = false;
            let action = match next(8) {
                0 | 1 => {
                    let _ = f.register(
                        at(now),
                        caller,
                        at(now + 150),
                        &eth(1 + next(3) as u32),
                        &v4(next(90) as u32),
                    );
                    Action::None
                }
                2 => {
                    released = f.release(caller, 1 + next(3) as u32, &v4(next(90) as u32)).is_ok();
                    Action::None
                }
                3 => {
                    f.feed(at(now), life, at(now + 150));
                    Action::None
                }
                4 => {
                    let _ = f.adopt(at(now), caller, at(now + 150));
                    Action::None
                }
                5 => {
                    let ended = dying.take().map_or(life, |(pid, _)| pid);
                    life = life.max(ended) + 1;
                    f.process_ended(at(now), ended)
                }
                _ => f.handle_timeout(at(now)),
            };
            match action {
                Action::Kill { pid, .. } => {
                    assert_eq!(dying, None, "seed {seed}: one at a time");
                    dying = Some((pid, now));
                }
                Action::Delete => {
                    let late = dying.is_none_or(|(_, since)| now >= since + 500);
                    assert!(late, "seed {seed}: deleted before the end of the process");
                    let ok = next(4) > 0;
                    let outcome = move |_| if ok { Outcome::Deleted } else { Outcome::Failed(1) };
                    let (_, pass) = delete_all(&mut f, at(now), outcome);
                    if matches!(pass, Pass::Done(_)) {
                        assert_eq!((ok, dying), (true, None), "seed {seed}");
                        continue;
                    }
                }
                Action::None => {}
            }
            let after = state(&f, at(now));
            assert!(after.2 >= before || released, "seed {seed}: an address was lost");
            assert_eq!(after.2 > 0, f.next_wakeup().is_some(), "seed {seed}: {after:?} waits for nothing");
        }
    }
}

/// As another program finds it that takes over at `now`.
fn over(fence: &Fence, now: Time) -> Fence {
    let saved = fence.save(fence.service().map(|_| "netd"));
    assert_eq!(saved.check(), Ok(()));
    Fence::resume(now, &saved, |name| (name == "netd").then_some(NETD))
}

/// One thing that happens to the fence, and all that is seen of it then.
fn step(f: &mut Fence, now: Time, what: u8, number: u8) -> String {
    let life = if number.is_multiple_of(2) { LIFE_1 } else { LIFE_2 };
    let until = now + Duration::from_millis(number.into());
    let interface = eth(u32::from(number % 3) + 1);
    let said = match what {
        0 => format!("{:?}", f.register(now, life, until, &interface, &v4(number.into()))),
        1 => format!("{:?}", f.feed(now, life.client, until)),
        2 => format!("{:?}", f.release(life, interface.index, &v4(9))),
        3 => format!("{:?}", f.process_ended(now, life.pid)),
        4 => format!("{:?}", f.adopt(now, life, until)),
        5 => format!("{:?}", f.handle_timeout(now)),
        6 => {
            let slots: Vec<_> = f.batch().map(|target| target.slot).collect();
            let outcomes = [Outcome::Deleted, Outcome::Absent, Outcome::Failed(16)];
            for (slot, outcome) in slots.iter().zip(outcomes.iter().cycle().skip(number.into())) {
                f.answered(*slot, *outcome);
            }
            format!("{slots:?} {:?}", f.batch_done(now))
        }
        _ => format!("{:?}", f.fence_now(now)),
    };
    format!("{said} {:?} {:?} {:?}", f.info(now, None), f.next_wakeup(), f.feeder())
}

proptest! {
    #[test]
    fn another_program_goes_on_where_this_one_stood(steps in prop::collection::vec((0..8_u8, 0..120_u8), 1..80)) {
        let (mut stays, mut moves) = (Fence::new(), Fence::new());
        let mut now = at(0);
        for (what, number) in steps {
            now = now + Duration::from_millis(u64::from(number) * 3);
            moves = over(&moves, now);
            prop_assert_eq!(step(&mut stays, now, what, number), step(&mut moves, now, what, number));
        }
    }
}

#[test]
fn numbers_of_services_may_differ_in_another_program() {
    let saved = armed(1).save(Some("netd"));
    let mut f = Fence::resume(at(149), &saved, |name| (name == "netd").then_some(OTHER));
    assert_eq!(f.handle_timeout(at(149)), Action::None);
    assert_eq!(f.handle_timeout(at(150)), Action::Kill { service: OTHER, pid: 10 });
}

#[test]
fn the_word_of_a_service_that_is_none_any_more_has_ended() {
    let mut held = Fence::resume(at(100), &armed(2).save(Some("netd")), |_| None);
    assert_eq!(state(&held, at(100)), (FenceState::Killing, Some(500), 2), "the shell has killed it");
    assert_eq!(held.register(at(100), LIFE_2, at(300), &eth(3), &v4(1)), Err(Refused::Busy));
    assert_eq!(held.process_ended(at(101), 10), Action::Delete);
    assert_eq!(delete_all(&mut held, at(102), |_| Outcome::Deleted), (2, done(102, 2, 0, 2000)));
    assert_eq!(held.register(at(103), LIFE_2, at(300), &eth(3), &v4(1)), Ok(()), "free for another one");

    let mut orphaned = armed(2);
    assert_eq!(orphaned.process_ended(at(50), 10), Action::None);
    let mut orphaned = Fence::resume(at(100), &orphaned.save(Some("netd")), |_| None);
    assert_eq!(
        (orphaned.next_wakeup(), orphaned.adopt(at(100), LIFE_2, at(300))),
        (Some(at(0)), Err(Refused::Busy))
    );
    assert_eq!(orphaned.handle_timeout(at(100)), Action::Delete);
    assert_eq!(delete_all(&mut orphaned, at(101), |_| Outcome::Deleted), (2, done(101, 2, 0, 1000)));
}

#[test]
fn what_contradicts_itself_is_no_fence() {
    let good = armed(3).save(Some("netd"));
    assert_eq!(good.check(), Ok(()));
    let bad = |change: fn(&mut Saved)| {
        let mut saved = good.clone();
        change(&mut saved);
        saved.check().unwrap_err()
    };
    assert!(bad(|s| s.entries.swap(0, 1)).contains("order"));
    assert!(bad(|s| s.entries[1] = s.entries[0]).contains("order"));
    assert!(bad(|s| s.entries[2].interface = 1).contains("does not list"));
    assert!(bad(|s| s.entries.clear()).contains("without addresses"));
    assert!(bad(|s| s.state = State::Idle).contains("without a deadline"));
    assert!(bad(|s| s.interfaces = vec![eth(1); FENCE_INTERFACES_MAX + 1]).contains("more"));
    assert!(bad(|s| s.entries = vec![s.entries[0]; FENCE_ADDRESSES_MAX + 1]).contains("more"));
}
