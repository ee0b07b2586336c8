//! `always-bootable`, in pure form: the power goes at every write of an upgrade, in every way the cached writes may have
//! reached the disk, the loader's own included. Then the machine comes up in a slot that was healthy, and the next
//! upgrade succeeds.

use crate::world::{Fate, Nature, Rest, Stop, Tally, World, release};
use provisiond_core::slots::{Event, Input, Refusal};

/// One way through an upgrade.
struct Story {
    name: &'static str,
    nature: Nature,
    /// Release 2 is in slot B, committed, before it begins: the upgrade goes the other way.
    second: bool,
}

const STORIES: [Story; 6] = [
    Story { name: "good", nature: Nature::Good, second: false },
    Story { name: "good, from B to A", nature: Nature::Good, second: true },
    Story { name: "unfit", nature: Nature::Unfit, second: false },
    Story { name: "never healthy", nature: Nature::NeverHealthy, second: true },
    Story { name: "panics", nature: Nature::Panics, second: true },
    Story { name: "hangs", nature: Nature::Hangs, second: false },
];

/// The release that is installed when the power goes, and the one afterwards.
const TRIED: u8 = 3;
const NEXT: u8 = 4;

#[derive(Default, Debug)]
struct Outcomes {
    cuts: usize,
    runs: usize,
    old: usize,
    new: usize,
    failed: usize,
    tally: Tally,
}

impl Outcomes {
    fn add(&mut self, world: &World, held: u8) {
        self.runs += 1;
        if held == TRIED {
            self.new += 1
        } else {
            self.old += 1
        }
        self.failed += usize::from(world.record().failure(&release(TRIED).digest).is_some());
        self.tally.boots += world.tally.boots;
        self.tally.trials += world.tally.trials;
        self.tally.rescues += world.tally.rescues;
        self.tally.repairs += world.tally.repairs;
        self.tally.fallbacks += world.tally.fallbacks;
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

/// Runs the upgrade until the power goes before its `at`th write; nothing when it has fewer.
fn cut(world: &World, rest: &Rest, at: usize) -> Result<Option<World>, Stop> {
    let mut world = world.clone();
    world.disk.fuse = Some(at);
    match world.upgrade(rest.clone(), TRIED) {
        Ok(rest) => world.settled(&rest).map(|_| None),
        Err(Stop::Cut) => Ok(Some(world)),
        Err(broken) => Err(broken),
    }
}

/// The power comes back.
fn come_back(cut: &World, fates: &[Fate], outcomes: &mut Outcomes) -> Result<(), Stop> {
    let mut world = cut.clone();
    world.disk.settle(fates);
    world.disk.fuse = None;
    let rest = world.run()?;
    check(world, rest, outcomes)
}

/// The machine is at rest after cuts: is all as it was promised, and does it take the next release?
fn check(mut world: World, mut rest: Rest, outcomes: &mut Outcomes) -> Result<(), Stop> {
    let held = world.settled(&rest)?;
    let good = world.nature[usize::from(TRIED)] == Nature::Good;
    let failed = world.record().failure(&release(TRIED).digest).is_some();
    let (trials, rescues) = (world.trials_of(TRIED), world.tally.rescues);
    let wrong =
        |why: &str| Err(Stop::Broken(format!("{why}: {trials} trials, {rescues} rescues, {held} runs")));
    match (good, held == TRIED) {
        (false, true) => return wrong("a bad release was committed"),
        (true, false) if trials > 0 => return wrong("a good release was tried and not committed"),
        (false, false) if trials > 0 && !failed => {
            return wrong("a bad release was tried and has not failed");
        }
        _ => {}
    }
    if rescues > 0 {
        return wrong("a slot should have been started");
    }
    outcomes.add(&world, held);
    if failed {
        world.ask(&mut rest, Input::Install(release(TRIED)))?;
        let refused = |event: &Event| matches!(event, Event::Refused(Refusal::FailedBefore { .. }));
        if !world.events.last().is_some_and(refused) {
            return wrong("what failed is offered again");
        }
    }
    world.tally = Tally::default();
    let rest = world.upgrade(rest, NEXT)?;
    if world.settled(&rest)? == NEXT { Ok(()) } else { wrong("the next release was not committed") }
}

/// Cuts the power once, everywhere.
fn cut_once(story: &Story, lies: bool, outcomes: &mut Outcomes) -> Result<(), String> {
    let (mut world, rest) = story.begin();
    world.disk.lies = lies;
    for at in 0.. {
        let told = |stop: Stop| format!("{}, power cut before write {at}: {stop:?}", story.name);
        let Some(cut) = cut(&world, &rest, at).map_err(told)? else { return Ok(()) };
        outcomes.cuts += 1;
        // A disk that lies keeps everything in its cache: all fates of that are too many.
        for fates in fates(cut.disk.cached().min(5)) {
            come_back(&cut, &fates, outcomes).map_err(|stop| {
                format!("{}, power cut before write {at}, {fates:?}: {stop:?}", story.name)
            })?;
        }
    }
    unreachable!("an upgrade has an end")
}

#[test]
fn power_may_go_at_every_write_of_an_upgrade() {
    for story in &STORIES {
        let mut outcomes = Outcomes::default();
        let begun = std::time::Instant::now();
        let result = cut_once(story, false, &mut outcomes);
        println!("{:<20} {outcomes:?} {:?}", story.name, begun.elapsed());
        result.unwrap();
    }
}
