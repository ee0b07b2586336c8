//! `always-bootable`, in pure form: the power goes at every write of an upgrade, in every way the cached writes may have
//! reached the disk, the loader's own included. Then the machine comes up in a slot that was healthy, and the next
//! upgrade succeeds.

use crate::world::{Fate, Nature, Rest, Stop, Tally, World, release};
use provisiond_core::slots::{Event, Failure, Input, Refusal};
use std::fmt;

/// One way through an upgrade.
struct Story {
    name: &'static str,
    nature: Nature,
    /// Release 2 is in slot B, committed, before it begins: the upgrade goes the other way.
    second: bool,
}

const STORIES: [Story; 7] = [
    Story { name: "good", nature: Nature::Good, second: false },
    Story { name: "good, from B to A", nature: Nature::Good, second: true },
    Story { name: "unfit", nature: Nature::Unfit, second: false },
    Story { name: "never healthy", nature: Nature::NeverHealthy, second: true },
    Story { name: "panics", nature: Nature::Panics, second: true },
    Story { name: "hangs", nature: Nature::Hangs, second: false },
    Story { name: "panics early", nature: Nature::PanicsEarly, second: false },
];

/// The release that is installed when the power goes, and the one afterwards.
const TRIED: u8 = 3;
const NEXT: u8 = 4;

#[derive(Default)]
struct Outcomes {
    /// A cut after the verdict, before the loader knows, gives a good release one trial more.
    trials_max: usize,
    cuts: usize,
    runs: usize,
    old: usize,
    new: usize,
    failed: usize,
    tally: Tally,
}

impl Outcomes {
    fn add(&mut self, world: &World, held: u8, failed: bool) {
        self.runs += 1;
        *(if held == TRIED { &mut self.new } else { &mut self.old }) += 1;
        self.failed += usize::from(failed);
        self.tally.boots += world.tally.boots;
        self.tally.trials += world.tally.trials;
        self.tally.rescues += world.tally.rescues;
        self.tally.repairs += world.tally.repairs;
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcomes { cuts, runs, old, new, failed, .. } = self;
        let Tally { boots, trials, rescues, repairs } = self.tally;
        write!(
            f,
            "{cuts} cuts, {runs} disks: {old} run the old release ({failed} know that the new one failed), "
        )?;
        write!(f, "{new} the new one; {boots} boots, {trials} trials, {repairs} repairs, {rescues} rescues")
    }
}

impl Story {
    /// The machine before the upgrade.
    fn begin(&self) -> (World, Rest) {
        let mut world = World::new();
        world.nature[usize::from(TRIED)] = self.nature;
        let mut rest = world.run().expect("the factory's release runs");
        if self.second {
            rest = world.upgrade(rest, 2).expect("the second release is committed");
        }
        assert_eq!(world.settled(&rest).expect("at rest"), if self.second { 2 } else { 1 });
        (world, rest)
    }
}

/// All ways in which `writes` writes can end.
fn fates(writes: usize) -> Vec<Vec<Fate>> {
    (0..writes).fold(vec![vec![]], |all, _| {
        let one = |fates: Vec<Fate>| {
            [Fate::Lost, Fate::Done, Fate::Torn].map(|fate| [fates.clone(), vec![fate]].concat())
        };
        all.into_iter().flat_map(one).collect()
    })
}

/// Something that a power cut interrupts: an upgrade, or the boots after a cut.
type Course<'a> = &'a dyn Fn(&mut World) -> Result<Rest, Stop>;

/// The machine as the power goes before write `at` of the course; nothing when it has fewer.
fn cut(world: &World, course: Course<'_>, at: usize) -> Result<Option<World>, Stop> {
    let mut world = world.clone();
    world.disk.fuse = Some(at);
    match course(&mut world) {
        Ok(rest) => world.settled(&rest).map(|_| None),
        Err(Stop::Cut) => Ok(Some(world)),
        Err(broken) => Err(broken),
    }
}

/// The machine with what the cut left on its disk.
fn left(cut: &World, fates: &[Fate]) -> World {
    let mut world = cut.clone();
    world.disk.settle(fates);
    world.disk.fuse = None;
    world
}

/// The machine is at rest after its cuts: is all as it was promised, and does it take the next release?
fn check(mut world: World, outcomes: &mut Outcomes) -> Result<(), Stop> {
    let mut rest = world.run()?;
    let held = world.settled(&rest)?;
    let good = world.nature[usize::from(TRIED)] == Nature::Good;
    let failure = world.record().failure(&release(TRIED).digest).cloned();
    let (trials, rescues) = (world.trials_of(TRIED), world.tally.rescues);
    let wrong = |why: &str| {
        let told = format!("{why}: {trials} trials, {failure:?}, {rescues} rescues, release {held} runs");
        Err(Stop::Broken(told))
    };
    match (good, held == TRIED) {
        (false, true) => return wrong("a bad release was committed"),
        // Two cuts may meet both of its trials.
        (true, false) if trials > 0 && !matches!(failure, Some(Failure::Unconfirmed { trials: 2 })) => {
            return wrong("a good release was tried and not committed");
        }
        (false, false) if trials > 0 && failure.is_none() => {
            return wrong("a bad release was tried and has not failed");
        }
        _ => {}
    }
    if trials > outcomes.trials_max {
        return wrong("it was tried too often");
    }
    if rescues > 0 {
        return wrong("a slot should have been started");
    }
    outcomes.add(&world, held, failure.is_some());
    if failure.is_some() {
        world.ask(&mut rest, Input::Install(release(TRIED)))?;
        let refused = |event: &Event| matches!(event, Event::Refused(Refusal::FailedBefore { .. }));
        if !world.events.last().is_some_and(refused) {
            return wrong("what failed is offered again");
        }
    }
    let rest = world.upgrade(rest, NEXT)?;
    if world.settled(&rest)? == NEXT { Ok(()) } else { wrong("the next release was not committed") }
}

/// Cuts the power once, before every write; what was cached meets every fate.
fn cut_once(story: &Story, lies: bool, outcomes: &mut Outcomes) -> Result<(), String> {
    let (mut world, rest) = story.begin();
    world.disk.lies = lies;
    let upgrade: Course<'_> = &|world| world.upgrade(rest.clone(), TRIED);
    for at in 0.. {
        let told = |stop: Stop| format!("{}, power cut before write {at}: {stop}", story.name);
        let Some(cut) = cut(&world, upgrade, at).map_err(told)? else { return Ok(()) };
        outcomes.cuts += 1;
        // A disk that lies keeps everything in its cache: all fates of that are too many.
        for fates in fates(cut.disk.cached().min(4)) {
            check(left(&cut, &fates), outcomes)
                .map_err(|stop| format!("{}, cut before write {at}, {fates:?}: {stop}", story.name))?;
        }
    }
    unreachable!("an upgrade has an end")
}

/// Cuts the power once more, before every write after the first cut. What was cached is lost or done, in any mixture;
/// at the first cut it is all lost, or all done but the first.
fn cut_twice(story: &Story, outcomes: &mut Outcomes) -> Result<(), String> {
    let (world, rest) = story.begin();
    let upgrade: Course<'_> = &|world| world.upgrade(rest.clone(), TRIED);
    for first in 0.. {
        let told = |stop: Stop| format!("{}, power cut before write {first}: {stop}", story.name);
        let Some(once) = cut(&world, upgrade, first).map_err(told)? else { return Ok(()) };
        let cached = once.disk.cached();
        let mut mixed = vec![Fate::Done; cached];
        if let Some(fate) = mixed.first_mut() {
            *fate = Fate::Lost;
        }
        for before in [vec![Fate::Lost; cached], mixed].iter().take(1 + cached.min(1)) {
            let world = left(&once, before);
            for second in 0.. {
                let told = |stop: Stop| {
                    format!("{}, cuts before writes {first} ({before:?}), {second}: {stop}", story.name)
                };
                let Some(twice) = cut(&world, &World::run, second).map_err(told)? else { break };
                outcomes.cuts += 1;
                let fates = fates(twice.disk.cached());
                for fates in fates.iter().filter(|fates| !fates.contains(&Fate::Torn)) {
                    check(left(&twice, fates), outcomes).map_err(told)?;
                }
            }
        }
    }
    unreachable!("an upgrade has an end")
}

fn told(story: &Story, outcomes: &Outcomes) {
    println!("{:<18} {outcomes}", story.name);
}

#[test]
fn power_may_go_at_every_write_of_an_upgrade() {
    for story in &STORIES {
        let mut outcomes = Outcomes { trials_max: 3, ..Outcomes::default() };
        let result = cut_once(story, false, &mut outcomes);
        told(story, &outcomes);
        result.unwrap_or_else(|broken| panic!("{broken}"));
        assert!(outcomes.runs > 100, "the machine was cut often enough");
    }
}

#[test]
fn power_may_go_again_while_the_machine_recovers() {
    for story in &STORIES {
        let mut outcomes = Outcomes { trials_max: 4, ..Outcomes::default() };
        let result = cut_twice(story, &mut outcomes);
        told(story, &outcomes);
        result.unwrap_or_else(|broken| panic!("{broken}"));
        assert!(outcomes.runs > 1000, "the machine was cut often enough");
    }
}

/// These tests can fail: on a disk that keeps in its cache what it was told to flush, no order of writes helps.
#[test]
fn a_disk_that_lies_is_noticed() {
    for story in &STORIES {
        let broken = cut_once(story, true, &mut Outcomes { trials_max: 3, ..Outcomes::default() });
        println!("{:<18} {}", story.name, broken.expect_err("noticed"));
    }
}
