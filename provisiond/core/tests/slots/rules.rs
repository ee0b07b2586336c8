//! The rules one by one.

use crate::world::{Fault, Nature, POLICY, Rest, Stop, World, release};
use proto::bgenv::{Environment, EnvironmentError, State};
use proto::boot::{BootEnd, BootEntry};
use proto::slot::{Pair, Slot};
use proto::time::{Duration, Time};
use provisiond_core::slots::{
    Boot, Booted, Environments, Event, Failure, Found, Input, Outbox, Output, Refusal, SlotRecord, Slots,
    Stage, Step,
};

/// The factory's machine at rest.
fn machine() -> (World, Rest) {
    let mut world = World::new();
    let rest = world.run().expect("it comes to rest");
    (world, rest)
}

/// A machine with release 2 committed in slot B, release 1 behind it.
fn upgraded() -> (World, Rest) {
    let (mut world, rest) = machine();
    let rest = world.upgrade(rest, 2).expect("an upgrade");
    assert_eq!(world.settled(&rest).expect("settled"), 2);
    world.events.clear();
    (world, rest)
}

fn refusal(world: &mut World, rest: &mut Rest, input: Input) -> Refusal {
    world.ask(rest, input).expect("asked");
    match world.events.last() {
        Some(Event::Refused(refusal)) => refusal.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

fn lines(world: &World) -> Vec<String> {
    world.events.iter().map(Event::to_string).collect()
}

#[test]
fn an_upgrade_is_told_step_by_step() {
    let (mut world, rest) = machine();
    let rest = world.upgrade(rest, 2).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2);
    let expected = [
        "SLOT-A runs 1.0.1 (0a0b0c00): it counts as committed",
        "SLOT-B holds 1.0.2 (14151600), read back and verified",
        "SLOT-B with 1.0.2 (14151600) is armed for trial 1",
        "trial 1 of 1.0.2 (14151600) in SLOT-B has begun",
        "SLOT-B with 1.0.2 (14151600) is committed",
    ];
    assert_eq!(lines(&world), expected);
    let before = world.record().stages.a.to_string();
    assert_eq!(before, "1.0.1 (0a0b0c00) committed", "what the loader falls back to");
}

#[test]
fn ordinary_boots_write_nothing() {
    let (mut world, _) = upgraded();
    for _ in 0..20 {
        let before = world.disk.ticks;
        let rest = world.run().unwrap();
        assert_eq!(world.disk.ticks, before);
        assert_eq!(world.settled(&rest).unwrap(), 2);
    }
    assert_eq!(lines(&world), [""; 0]);
}

#[test]
fn a_trial_ends_as_the_system_in_it_behaves() {
    let reasons = [
        (Nature::Unfit, 1, Failure::Verdict("no gateway".into())),
        (Nature::NeverHealthy, 1, Failure::Deadline { seconds: POLICY.deadline.as_secs() }),
        (Nature::Panics, 1, Failure::Panic),
        (Nature::Hangs, 2, Failure::Unconfirmed { trials: 2 }),
        (Nature::Dead, 2, Failure::Unconfirmed { trials: 2 }),
        (Nature::PanicsEarly, 2, Failure::Unconfirmed { trials: 2 }),
    ];
    for (nature, trials, failure) in reasons {
        let (mut world, rest) = machine();
        world.nature[2] = nature;
        let mut rest = world.upgrade(rest, 2).unwrap();
        assert_eq!(world.settled(&rest).unwrap(), 1);
        assert_eq!(
            (world.trials_of(2), world.record().failure(&release(2).digest)),
            (trials, Some(&failure))
        );
        let refused = refusal(&mut world, &mut rest, Input::Install(release(2)));
        assert_eq!(refused, Refusal::FailedBefore { release: release(2), failure });
        let rest = world.upgrade(rest, 3).unwrap();
        assert_eq!(world.settled(&rest).unwrap(), 3);
    }
}

#[test]
fn one_power_cut_in_a_trial_gives_another_trial() {
    let (world, rest) = machine();
    // Every cut after the trial has begun and before it is confirmed.
    let mut cuts = 0;
    for fuse in 0.. {
        let mut world = world.clone();
        world.disk.fuse = Some(fuse);
        match world.upgrade(rest.clone(), 2) {
            Ok(_) => break,
            Err(Stop::Broken(why)) => panic!("{why}"),
            Err(Stop::Cut) => {}
        }
        if world.trials_of(2) == 0 {
            continue;
        }
        cuts += 1;
        world.disk.fuse = None;
        let rest = world.run().unwrap();
        assert_eq!(world.settled(&rest).unwrap(), 2, "cut before write {fuse}");
        assert_eq!(world.record().failed, []);
    }
    assert!(cuts > 5, "{cuts}");
}

#[test]
fn a_damaged_environment_is_made_anew_before_an_install() {
    // The name of the file, the state, the revision, the checksum.
    for at in [0, 1021, 1024, 132_100] {
        for slot in Slot::BOTH {
            let (mut world, mut rest) = upgraded();
            world.disk.damage(slot, at);
            assert!(!world.ask(&mut rest, Input::Install(release(3))).unwrap());
            let told = lines(&world);
            assert!(told[0].starts_with(&format!("{} was made anew: it was checksum", slot.environment())));
            assert_eq!(told[1], "SLOT-A holds 1.0.3 (1e1f2000), read back and verified");
            let rest = world.run().unwrap();
            assert_eq!(world.settled(&rest).unwrap(), 2, "verified, and not armed");
        }
    }
}

#[test]
fn a_damaged_environment_is_made_anew_at_the_start() {
    let (mut world, _) = upgraded();
    world.disk.damage(Slot::B, 1021);
    let rest = world.run().unwrap();
    let told = lines(&world);
    assert_eq!(told[0], "SLOT-A is running, the committed slot is SLOT-B");
    assert!(told[1].starts_with("ENV-B was made anew: it was checksum") && told.len() == 2, "{told:?}");
    // It is as good as it was, and starts at the next boot.
    drop(rest);
    let rest = world.run().unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2);
    // Both: the loader tries what is left of the first one, here its name; the rest is the record's.
    world.disk.damage(Slot::A, 1024);
    world.disk.damage(Slot::B, 1024);
    world.run().unwrap();
    let rest = world.run().unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2);
    assert_eq!(world.tally.rescues, 0);
    // Both names as well: the firmware starts the rescue system.
    world.disk.damage(Slot::A, 0);
    world.disk.damage(Slot::B, 0);
    let rest = world.run().unwrap();
    assert_eq!((world.settled(&rest).unwrap(), world.tally.rescues), (2, 1));
    let rest = world.upgrade(rest, 3).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 3);
}

#[test]
fn a_damaged_committed_slot_gives_way_to_the_one_before() {
    // Found from the rescue system, which the firmware starts when the loader cannot start the slot.
    let (mut world, _) = upgraded();
    world.disk.spoil(Slot::B);
    let rest = world.run().unwrap();
    assert_eq!((world.settled(&rest).unwrap(), world.tally.rescues), (1, 1));
    assert!(
        lines(&world).contains(
            &"SLOT-B is damaged: SLOT-A with 1.0.1 (0a0b0c00) is the committed slot now".to_owned()
        )
    );
    let rest = world.upgrade(rest, 3).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 3);
    // Found from the slot that ran before, with the committed one's environment damaged as well.
    let (mut world, _) = upgraded();
    world.disk.spoil(Slot::B);
    world.disk.damage(Slot::B, 1021);
    let rest = world.run().unwrap();
    assert_eq!((world.settled(&rest).unwrap(), world.tally.rescues), (1, 0));
    // Nothing is left: the rescue system stays, and says why.
    let (mut world, _) = upgraded();
    world.disk.spoil(Slot::A);
    world.disk.spoil(Slot::B);
    assert!(matches!(world.run(), Err(Stop::Broken(_))), "no slot can run");
    assert_eq!(world.tally.rescues, 12);
    assert_eq!(world.record().committed, Slot::B, "a slot without good bytes takes no one's place");
}

#[test]
fn the_rescue_system_makes_environments_anew_although_the_slot_cannot_be_read() {
    let (mut world, _) = machine();
    world.disk.damage(Slot::A, 0);
    world.disk.damage(Slot::B, 0);
    world.faults = vec![("read SLOT-A back", Fault::NotDone)];
    let rest = world.run().unwrap();
    assert_eq!((world.settled(&rest).unwrap(), world.tally.rescues), (1, 1));
    assert_eq!(world.faults, []);
}

#[test]
fn a_lost_record_is_made_from_what_runs() {
    let (mut world, _) = upgraded();
    world.forget = true;
    let rest = world.run().unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2);
    assert_eq!(lines(&world), ["SLOT-B runs 1.0.2 (14151600): it counts as committed"]);
    let rest = world.upgrade(rest, 3).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 3);
}

#[test]
fn a_trial_without_a_record_is_not_committed() {
    let (mut world, mut rest) = machine();
    assert!(!world.ask(&mut rest, Input::Install(release(2))).unwrap());
    assert!(world.ask(&mut rest, Input::Try).unwrap(), "a restart");
    world.forget = true;
    let mut rest = world.run().unwrap();
    assert_eq!(
        lines(&world).last().unwrap(),
        "SLOT-B is running (Testing, revision 2), nothing is known of the slots: restart into a slot"
    );
    let booted = Booted::Slot(Slot::B);
    assert_eq!(refusal(&mut world, &mut rest, Input::Try), Refusal::NotAdopted { booted });
    // The loader takes the trial back.
    let rest = world.run().unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 1);
}

#[test]
fn a_second_disk_is_named_and_nothing_is_installed() {
    let (mut world, _) = upgraded();
    world.foreign = vec!["vdb".into()];
    let mut rest = world.run().unwrap();
    assert_eq!(lines(&world), ["disk vdb carries environments of this product, too: remove it"]);
    for input in [Input::Install(release(3)), Input::Try] {
        assert_eq!(refusal(&mut world, &mut rest, input), Refusal::Foreign { disk: "vdb".into() });
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (mut world, mut rest) = upgraded();
    let installed = Refusal::Installed { slot: Slot::B, release: release(2) };
    assert_eq!(refusal(&mut world, &mut rest, Input::Install(release(2))), installed);
    let nothing = refusal(&mut world, &mut rest, Input::Try).to_string();
    assert_eq!(nothing, "SLOT-A holds nothing to try (1.0.1 (0a0b0c00) committed): install a release first");
    assert_eq!(refusal(&mut world, &mut rest, Input::Unfit("x".into())), Refusal::NoTrial);
    assert_eq!(world.settled(&rest).unwrap(), 2);
    let mut rest = world.upgrade(rest, 3).unwrap();
    let below = refusal(&mut world, &mut rest, Input::Install(release(1))).to_string();
    assert_eq!(
        below,
        "release 1.0.1 (0a0b0c00) is older than 1.0.2, the oldest that this node may return to"
    );
    let rest = world.upgrade(rest, 2).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2, "down to the floor");
    assert_eq!(world.record().floor, release(2).version, "the floor stays");
}

#[test]
fn an_install_that_does_not_work_leaves_the_target_empty() {
    let cases = [
        ("write 1.0.3", Fault::NotDone, "cannot write 1.0.3 (1e1f2000) into SLOT-A: I/O error"),
        (
            "write 1.0.3",
            Fault::Wrong,
            "SLOT-A was to hold 1e1f2000 of 1536 bytes, it reads back 00000000 of 1536",
        ),
        ("read SLOT-A back", Fault::NotDone, "cannot read SLOT-A back: I/O error"),
        (
            "read SLOT-A back",
            Fault::Wrong,
            "SLOT-A was to hold 1e1f2000 of 1536 bytes, it reads back 1e1f2000 of 0",
        ),
        ("bring SLOT-A", Fault::NotDone, "cannot bring SLOT-A to the disk: I/O error"),
        ("write ENV-A", Fault::NotDone, "cannot write ENV-A: I/O error"),
        ("write ENV-A", Fault::Wrong, "ENV-A was written but reads back Ok, revision 1: replace the disk"),
        ("read the loader", Fault::NotDone, "cannot read the loader's environments: I/O error"),
    ];
    for (step, fault, told) in cases {
        let (mut world, mut rest) = upgraded();
        world.faults = vec![(step, fault)];
        assert!(!world.ask(&mut rest, Input::Install(release(3))).unwrap());
        assert_eq!(world.faults, [], "{step}");
        assert!(lines(&world)[0].starts_with(told), "{step}: {:?}", lines(&world));
        assert!(!matches!(world.record().stages.a, Stage::Writing { .. } | Stage::Verified { .. }), "{step}");
        // The next boot, and the next attempt.
        let rest = world.run().unwrap();
        assert_eq!(world.settled(&rest).unwrap(), 2, "{step}");
        let rest = world.upgrade(rest, 3).unwrap();
        assert_eq!(world.settled(&rest).unwrap(), 3, "{step}");
    }
}

#[test]
fn what_cannot_be_remembered_is_not_done() {
    let (mut world, mut rest) = upgraded();
    world.faults = vec![("store", Fault::NotDone)];
    world.ask(&mut rest, Input::Install(release(3))).unwrap();
    assert_eq!(lines(&world), ["cannot store the slots' record: I/O error"]);
    assert_eq!(refusal(&mut world, &mut rest, Input::Install(release(3))), Refusal::Halted);
    let rest = world.run().unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2);
}

#[test]
fn a_confirmation_that_does_not_work_is_tried_again() {
    let (mut world, rest) = machine();
    // The third write of the environment confirms it.
    world.ask(&mut rest.clone(), Input::Install(release(2))).unwrap();
    let mut rest = world.run().unwrap();
    world.ask(&mut rest, Input::Try).unwrap();
    world.faults = vec![("write ENV-B", Fault::NotDone)];
    let mut rest = world.run().unwrap();
    assert!(matches!(world.record().stages.b, Stage::Healthy { .. }), "{:?}", lines(&world));
    world.ask(&mut rest, Input::Healthy(true)).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 2);
}

#[test]
fn what_is_armed_can_be_replaced() {
    let (mut world, mut rest) = upgraded();
    world.ask(&mut rest, Input::Install(release(3))).unwrap();
    assert!(world.ask(&mut rest, Input::Try).unwrap());
    assert!(matches!(world.record().stages.a, Stage::Armed { attempt: 1, .. }));
    // Before the machine restarts. The world checks that an armed slot is never written.
    world.ask(&mut rest, Input::Install(release(4))).unwrap();
    let rest = world.run().unwrap();
    assert_eq!((world.settled(&rest).unwrap(), world.trials_of(3)), (2, 0));
    let rest = world.upgrade(rest, 4).unwrap();
    assert_eq!(world.settled(&rest).unwrap(), 4);
}

/// A core in the first trial of release 2 in slot B, on a disk on which everything works.
struct Bench {
    slots: Slots,
    out: Outbox,
    both: Environments,
    record: Option<SlotRecord>,
    events: Vec<Event>,
    restarts: usize,
}

fn at(s: u64) -> Time {
    Time::ZERO + Duration::from_secs(s)
}

impl Bench {
    fn new(stage: Stage, foreign: &[&str], booted: Slot, state: State) -> Bench {
        Bench::after(stage, foreign, booted, state, Vec::new())
    }

    /// Boot 2, after the boots of `history`.
    fn after(stage: Stage, foreign: &[&str], booted: Slot, state: State, history: Vec<BootEntry>) -> Bench {
        let mut record = SlotRecord::adopted(Slot::A, release(1), 30);
        record.stages.b = stage;
        let boot = Boot {
            record: Some(record),
            booted: Booted::Slot(booted),
            running: release(2).version,
            began: at(0),
            count: 2,
            history,
            foreign: foreign.iter().map(|disk| (*disk).to_owned()).collect(),
        };
        let both = Pair {
            a: Ok(Environment::committed("SLOT-A", 30, 1)),
            b: Ok(Environment { state, ..Environment::committed("SLOT-B", 30, 2) }),
        };
        let mut out = Outbox::new();
        let slots = Slots::start(POLICY, boot, at(20), &mut out);
        Bench { slots, out, both, record: None, events: Vec::new(), restarts: 0 }
    }

    fn on_trial() -> Bench {
        let armed = Stage::Armed { release: release(2), attempt: 1, boot: 1 };
        let mut bench = Bench::new(armed, &[], Slot::B, State::Testing);
        bench.answer(0);
        bench
    }

    /// Answers until the core asks for nothing.
    fn answer(&mut self, s: u64) {
        while let Some(output) = self.out.pop() {
            let (token, step) = match output {
                Output::Step(token, step) => (token, step),
                Output::Restart => {
                    self.restarts += 1;
                    continue;
                }
                Output::Event(event) => {
                    self.events.push(event);
                    continue;
                }
            };
            let input = match step {
                Step::ReadEnvironments => Input::Environments(token, self.both.clone()),
                Step::WriteEnvironment(slot, environment) => {
                    self.both[slot] = Ok(environment);
                    Input::Done(token)
                }
                Step::ReRead(_) => {
                    Input::ReRead(token, Found { digest: release(2).digest, size: release(2).size })
                }
                Step::Persist(record) => {
                    self.record = Some(record);
                    Input::Done(token)
                }
                Step::WriteSlot(..) | Step::Sync(_) => Input::Done(token),
            };
            self.slots.handle(at(s), input, &mut self.out);
        }
    }

    fn tell(&mut self, s: u64, input: Input) {
        self.slots.handle(at(s), input, &mut self.out);
        self.answer(s);
    }

    fn timeout(&mut self, s: u64) {
        self.slots.handle_timeout(at(s), &mut self.out);
        self.answer(s);
    }
}

#[test]
fn a_trial_is_committed_after_a_soak_without_a_break() {
    let mut bench = Bench::on_trial();
    assert_eq!(bench.slots.next_wakeup(), Some(at(300)));
    bench.tell(10, Input::Healthy(true));
    bench.tell(20, Input::Healthy(true));
    assert_eq!(bench.slots.next_wakeup(), Some(at(70)), "from the first good check on");
    bench.tell(69, Input::Healthy(false));
    assert_eq!(bench.slots.next_wakeup(), Some(at(300)));
    bench.tell(100, Input::Healthy(true));
    bench.timeout(159);
    assert!(matches!(bench.record.as_ref().unwrap().stages.b, Stage::Trying { attempt: 1, boot: 2, .. }));
    bench.timeout(160);
    assert_eq!(bench.events.last(), Some(&Event::Committed { slot: Slot::B, release: release(2) }));
    assert_eq!(bench.both.b, Ok(Environment::committed("SLOT-B", 30, 2)));
    assert_eq!((bench.slots.next_wakeup(), bench.restarts), (None, 0));
}

#[test]
fn a_verdict_that_comes_early_waits_until_it_can_be_acted_on() {
    let armed = Stage::Armed { release: release(2), attempt: 1, boot: 1 };
    let mut bench = Bench::new(armed, &[], Slot::B, State::Testing);
    bench.slots.handle(at(20), Input::Unfit("no gateway".into()), &mut bench.out);
    bench.answer(20);
    let failure = Failure::Verdict("no gateway".into());
    assert_eq!(bench.record.unwrap().stages.b, Stage::Failed { release: release(2), failure });
    assert_eq!(bench.restarts, 1);
}

#[test]
fn a_soak_that_ends_after_the_deadline_is_too_late() {
    let mut bench = Bench::on_trial();
    bench.tell(250, Input::Healthy(true));
    assert_eq!(bench.slots.next_wakeup(), Some(at(300)));
    // However late the call comes.
    bench.timeout(10_000);
    let failure = Failure::Deadline { seconds: 300 };
    assert_eq!(bench.record.unwrap().stages.b, Stage::Failed { release: release(2), failure });
    assert_eq!(bench.restarts, 1);
}

#[test]
fn a_soak_that_ended_in_time_counts_however_late_the_call_comes() {
    let mut bench = Bench::on_trial();
    bench.tell(240, Input::Healthy(true));
    bench.timeout(10_000);
    assert_eq!(bench.record.unwrap().committed, Slot::B);
}

#[test]
fn a_daemon_that_restarts_in_its_trial_counts_nothing() {
    let trying = Stage::Trying { release: release(2), attempt: 2, boot: 2 };
    let mut bench = Bench::new(trying, &[], Slot::B, State::Testing);
    bench.answer(0);
    assert_eq!((bench.record, bench.slots.next_wakeup()), (None, Some(at(300))));
    // The same in a boot that the loader did not count.
    for (attempt, stage) in [(1, "on trial 2"), (2, "failed: 2 trials ended without a word")] {
        let trying = Stage::Trying { release: release(2), attempt, boot: 1 };
        let mut bench = Bench::new(trying, &[], Slot::B, State::Testing);
        bench.answer(0);
        let record = bench.record.unwrap();
        assert!(record.stages.b.to_string().ends_with(stage), "{}", record.stages.b);
        assert_eq!(bench.restarts, usize::from(attempt) - 1);
    }
}

#[test]
fn a_failed_slot_that_the_loader_had_to_start_is_left_again() {
    let failed = Stage::Failed { release: release(2), failure: Failure::Panic };
    let mut bench = Bench::new(failed, &[], Slot::B, State::Failed);
    bench.both.a = Err(EnvironmentError::Size { found: 0 });
    bench.answer(0);
    assert_eq!(bench.both.a.as_ref().map(|e| (e.state, e.revision)), Ok((State::Ok, 3)));
    assert_eq!((bench.restarts, bench.record), (1, None));
}

#[test]
fn the_committed_environment_is_made_anew_below_a_trial() {
    let armed = Stage::Armed { release: release(2), attempt: 1, boot: 1 };
    let mut bench = Bench::new(armed, &[], Slot::B, State::Testing);
    bench.both.a = Err(EnvironmentError::Size { found: 0 });
    bench.answer(0);
    // The trial goes on, and the loader has somewhere to return to.
    assert_eq!(bench.both.a.as_ref().map(|e| (e.state, e.revision)), Ok((State::Ok, 1)));
    assert_eq!((bench.restarts, bench.slots.next_wakeup()), (0, Some(at(300))));
}

#[test]
fn only_a_boot_of_the_slot_after_it_was_armed_can_be_its_trial() {
    let entry = |count, slot: &str, ended| BootEntry { count, slot: slot.into(), ran_s: 1, ended };
    let failed = || BootEnd::FailedTrial { why: "no gateway".into() };
    let cases = [
        (vec![], "armed for trial 2"),
        (vec![entry(1, "SLOT-B", failed())], "failed: no gateway"),
        (vec![entry(1, "SLOT-B", BootEnd::Panic)], "failed: its kernel panicked"),
        (vec![entry(1, "SLOT-B", BootEnd::Crash)], "failed: its init crashed"),
        (vec![entry(1, "SLOT-B", failed()), entry(2, "SLOT-A", BootEnd::PowerOrReset)], "failed: no gateway"),
        (vec![entry(1, "SLOT-B", BootEnd::Watchdog)], "armed for trial 2"),
        // Another slot's, and one from before.
        (vec![entry(1, "SLOT-A", BootEnd::Panic)], "armed for trial 2"),
        (vec![entry(0, "SLOT-B", BootEnd::Panic)], "armed for trial 2"),
    ];
    for (history, told) in cases {
        let armed = Stage::Armed { release: release(2), attempt: 1, boot: 0 };
        let mut bench = Bench::after(armed, &[], Slot::A, State::Failed, history.clone());
        bench.answer(0);
        let stage = bench.record.unwrap().stages.b.to_string();
        assert!(stage.ends_with(told), "{history:?}: {stage}");
        assert_eq!(bench.restarts, usize::from(told.starts_with("armed")));
    }
}

#[test]
fn a_trial_that_cannot_have_begun_is_not_counted() {
    let armed = |boot| Stage::Armed { release: release(2), attempt: 1, boot };
    // The power went before the environment was written.
    let mut bench = Bench::new(armed(1), &[], Slot::A, State::Ok);
    let Ok(environment) = &mut bench.both.b else { unreachable!("it is good") };
    (environment.in_progress, environment.revision) = (true, 0);
    bench.answer(0);
    assert_eq!(bench.record.unwrap().stages.b, Stage::Armed { release: release(2), attempt: 1, boot: 2 });
    assert_eq!(bench.both.b.map(|e| (e.state, e.revision)), Ok((State::Installed, 2)));
    // The daemon ended while it was written.
    let mut bench = Bench::new(armed(2), &[], Slot::A, State::Ok);
    bench.both.b = Err(EnvironmentError::Size { found: 0 });
    bench.answer(0);
    assert_eq!((bench.record.unwrap().stages.b, bench.restarts), (armed(2), 1));
    // The loader did not start it.
    let mut bench = Bench::new(armed(1), &[], Slot::A, State::Installed);
    bench.answer(0);
    assert_eq!((bench.record, bench.restarts), (None, 0));
}

#[test]
fn an_install_that_was_cut_off_leaves_the_target_empty() {
    let mut bench = Bench::new(Stage::Writing { release: release(2) }, &[], Slot::A, State::Failed);
    bench.answer(0);
    assert_eq!(bench.record.unwrap().stages.b, Stage::Empty);
    let told = "SLOT-B: the install of 1.0.2 (14151600) was cut off; install it again";
    assert_eq!(bench.events.iter().map(Event::to_string).next().as_deref(), Some(told));
}

#[test]
fn nothing_is_armed_beside_a_second_disk() {
    let trying = Stage::Trying { release: release(2), attempt: 1, boot: 1 };
    let mut bench = Bench::new(trying.clone(), &["vdb"], Slot::A, State::Failed);
    bench.answer(0);
    let told: Vec<String> = bench.events.iter().map(Event::to_string).collect();
    assert!(told[1].starts_with("trial 1 of 1.0.2"), "{told:?}");
    assert_eq!((bench.restarts, bench.record), (0, None));
}

#[test]
fn only_the_answer_to_the_step_counts() {
    let armed = Stage::Armed { release: release(2), attempt: 1, boot: 1 };
    let mut bench = Bench::new(armed, &[], Slot::B, State::Testing);
    let Some(Output::Step(token, Step::ReadEnvironments)) = bench.out.pop() else { panic!("it reads first") };
    bench.slots.handle(at(1), Input::Done(token), &mut bench.out);
    let found = Found { digest: release(2).digest, size: release(2).size };
    bench.slots.handle(at(1), Input::ReRead(token, found), &mut bench.out);
    assert_eq!(bench.slots.waits_for(), Some(&Step::ReadEnvironments));
    bench.tell(1, Input::Try);
    let busy = "the slots are busy: read the loader's environments; wait for it, \"keel show slots\" tells";
    assert_eq!(bench.events.last().unwrap().to_string(), busy);
    bench.tell(1, Input::Environments(token, bench.both.clone()));
    assert_eq!(bench.slots.waits_for(), None);
    let record = bench.slots.record().cloned();
    bench.tell(1, Input::NotDone(token, "late".into()));
    assert_eq!(bench.slots.record().cloned(), record);
}
