//! A machine: a disk with a write cache, the loader, init's record of boots, and the slots' core, which is run as a shell
//! would run it. Power may go at every single write.

use crate::files::{self, File};
use proto::bgenv::Environment;
use proto::boot::{Action, BootRecord, Evidence};
use proto::slot::{Pair, Slot};
use proto::time::{Duration, Time};
use provisiond_core::slots::control::SECTOR;
use provisiond_core::slots::{
    Boot, Booted, Event, Found, Input, Outbox, Output, Policy, Release, SlotRecord, Slots, Stage, Step,
};
use provisiond_core::version::Version;
use std::collections::BTreeSet;
use std::fmt;

pub(crate) const POLICY: Policy =
    Policy { soak: Duration::from_secs(60), deadline: Duration::from_secs(300) };
/// Sectors of a slot's boot file.
const BLOCKS: usize = 3;
/// Boots after which a machine that is left alone has to be at rest.
const BOOTS_MAX: usize = 12;

/// How the system of a release behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    /// Its checks end it.
    Unfit,
    /// Its checks never become good.
    NeverHealthy,
    Panics,
    /// The watchdog resets it, and nobody knows why.
    Hangs,
    /// The same before its init could note anything.
    Dead,
    /// Its kernel panics before its init could note anything: the panic is put down to the boot before.
    PanicsEarly,
}

/// The releases of the world by number: 1 is the factory's, the last number says how it behaves.
pub(crate) fn release(n: u8) -> Release {
    let digest = digest(&content(n));
    let version = Version { major: 1, minor: 0, patch: u32::from(n) };
    // The third one forbids to return behind the second.
    let floor = Version { major: 1, minor: 0, patch: if n < 3 { 0 } else { 2 } };
    Release { digest, size: (BLOCKS * SECTOR) as u64, version, floor }
}

fn content(n: u8) -> [u8; BLOCKS] {
    [n * 10, n * 10 + 1, n * 10 + 2]
}

fn digest(blocks: &[u8; BLOCKS]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest[..BLOCKS].copy_from_slice(blocks);
    digest
}

/// A sector that is on its way to the disk.
#[derive(Clone, Debug)]
enum Write {
    Environment { slot: Slot, at: usize, bytes: Vec<u8> },
    Block { slot: Slot, at: usize, block: u8 },
}

/// What a power cut made of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Done,
    /// The second half of the sector is neither the old nor the new one.
    Torn,
}

/// The power is gone.
#[derive(Debug)]
pub(crate) struct Cut;

/// Why a run stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    Cut,
    /// A promise does not hold.
    Broken(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Cut => f.write_str("power cut"),
            Stop::Broken(why) => f.write_str(why),
        }
    }
}

impl From<Cut> for Stop {
    fn from(_: Cut) -> Stop {
        Stop::Cut
    }
}

fn broken<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Broken(why.into()))
}

#[derive(Clone)]
pub(crate) struct Disk {
    files: Pair<File>,
    blocks: Pair<[u8; BLOCKS]>,
    cache: Vec<Write>,
    /// Writes and flushes until the power goes.
    pub(crate) fuse: Option<usize>,
    /// Writes and flushes so far.
    pub(crate) ticks: usize,
    /// The disk says that it has flushed, and has not.
    pub(crate) lies: bool,
}

impl Disk {
    /// A moment in which the power may go.
    fn tick(&mut self) -> Result<(), Cut> {
        self.ticks += 1;
        match &mut self.fuse {
            Some(0) => Err(Cut),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Cut> {
        self.tick()?;
        if !self.lies {
            let done = vec![Fate::Done; self.cache.len()];
            self.settle(&done);
        }
        self.tick()
    }

    /// The cache's writes meet their fates.
    pub(crate) fn settle(&mut self, fates: &[Fate]) {
        for (write, fate) in std::mem::take(&mut self.cache).into_iter().zip(fates) {
            apply(&mut self.files, &mut self.blocks, &write, *fate);
        }
    }

    pub(crate) fn cached(&self) -> usize {
        self.cache.len()
    }

    fn write(&mut self, write: Write) -> Result<(), Cut> {
        self.tick()?;
        self.cache.push(write);
        Ok(())
    }

    /// As a reader sees it: with what is in the cache.
    fn seen(&self) -> (Pair<File>, Pair<[u8; BLOCKS]>) {
        let (mut files, mut blocks) = (self.files.clone(), self.blocks);
        for write in &self.cache {
            apply(&mut files, &mut blocks, write, Fate::Done);
        }
        (files, blocks)
    }

    pub(crate) fn damage(&mut self, slot: Slot, at: usize) {
        self.files[slot].sector(at / SECTOR * SECTOR)[at % SECTOR] ^= 0x55;
    }

    pub(crate) fn spoil(&mut self, slot: Slot) {
        self.blocks[slot][1] ^= 0x55;
    }
}

fn apply(files: &mut Pair<File>, blocks: &mut Pair<[u8; BLOCKS]>, write: &Write, fate: Fate) {
    match (write, fate) {
        (_, Fate::Lost) => {}
        (Write::Environment { slot, at, bytes }, _) => {
            let old = files[*slot].sector(*at);
            old.copy_from_slice(bytes);
            if fate == Fate::Torn {
                old[bytes.len() / 2..].iter_mut().for_each(|byte| *byte ^= 0xa5);
            }
        }
        (Write::Block { slot, at, block }, _) => {
            blocks[*slot][*at] = if fate == Fate::Torn { 0xff } else { *block };
        }
    }
}

/// What is counted over all runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) boots: usize,
    pub(crate) trials: usize,
    pub(crate) rescues: usize,
    pub(crate) repairs: usize,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) disk: Disk,
    record: Option<SlotRecord>,
    boots: BootRecord,
    evidence: Evidence,
    /// How each release behaves.
    pub(crate) nature: [Nature; 6],
    /// Releases that reported to be healthy.
    proven: BTreeSet<u8>,
    /// Trials of each release.
    trials: [usize; 6],
    now: Time,
    pub(crate) tally: Tally,
    pub(crate) events: Vec<Event>,
    /// Steps that go wrong, by the beginning of their name, each once.
    pub(crate) faults: Vec<(&'static str, Fault)>,
    /// Disks with a second pair of environments.
    pub(crate) foreign: Vec<String>,
    /// STATE is lost before the next boot.
    pub(crate) forget: bool,
}

/// How a step goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails.
    NotDone,
    /// Something else is written or read.
    Wrong,
}

/// Where a machine that is left alone has come to rest.
#[derive(Clone)]
pub(crate) struct Rest {
    slots: Slots,
    booted: Booted,
}

enum Outcome {
    Rest(Box<Rest>),
    Restart,
    Reset,
}

impl World {
    /// As it leaves the factory.
    pub(crate) fn new() -> World {
        let files = Pair {
            a: File::of(&Environment::committed("SLOT-A", 30, 1)),
            b: File::of(&Environment::empty("SLOT-B", 30)),
        };
        let disk = Disk {
            files,
            blocks: Pair { a: content(1), b: [0; BLOCKS] },
            cache: Vec::new(),
            fuse: None,
            ticks: 0,
            lies: false,
        };
        World {
            disk,
            record: None,
            boots: BootRecord::default(),
            evidence: Evidence::default(),
            nature: [Nature::Good; 6],
            proven: BTreeSet::from([1]),
            trials: [0; 6],
            now: Time::ZERO,
            tally: Tally::default(),
            events: Vec::new(),
            faults: Vec::new(),
            foreign: Vec::new(),
            forget: false,
        }
    }

    pub(crate) fn record(&self) -> &SlotRecord {
        self.record.as_ref().expect("a slot has been adopted")
    }

    pub(crate) fn trials_of(&self, n: u8) -> usize {
        self.trials[usize::from(n)]
    }

    /// The power comes back, or the machine was reset: boots until it is at rest.
    pub(crate) fn run(&mut self) -> Result<Rest, Stop> {
        for _ in 0..BOOTS_MAX {
            let (booted, trial) = self.load()?;
            match self.boot(booted, trial)? {
                Outcome::Rest(rest) => return Ok(*rest),
                Outcome::Restart => self.boots.leave(Action::Reboot, "provisiond", 1),
                Outcome::Reset => {}
            }
        }
        broken(format!("not at rest after {BOOTS_MAX} boots: {:?}", self.events))
    }

    /// The firmware, the loader and the boot file.
    fn load(&mut self) -> Result<(Booted, bool), Stop> {
        loop {
            self.tally.boots += 1;
            let choice = files::load(&self.disk.seen().0);
            if let Some((slot, sectors)) = choice.write {
                for (at, bytes) in sectors {
                    self.disk.write(Write::Environment { slot, at, bytes })?;
                }
                self.disk.flush()?;
            }
            let loads = choice.slot.and_then(|slot| Some((slot, self.held(slot)?)));
            match loads {
                Some((slot, n)) => {
                    if choice.trial {
                        self.trials[usize::from(n)] += 1;
                        self.tally.trials += 1;
                    } else if !self.proven.contains(&n) {
                        return broken(format!("{slot} with release {n} was started, it was never healthy"));
                    }
                    return Ok((Booted::Slot(slot), choice.trial));
                }
                None if choice.trial => {}
                None => {
                    self.tally.rescues += 1;
                    return Ok((Booted::Rescue, false));
                }
            }
        }
    }

    /// The release that a slot holds whole.
    fn held(&self, slot: Slot) -> Option<u8> {
        let blocks = self.disk.seen().1[slot];
        (1..6).find(|n| content(*n) == blocks)
    }

    /// One boot of the system.
    fn boot(&mut self, booted: Booted, trial: bool) -> Result<Outcome, Stop> {
        let (name, running) = match booted {
            Booted::Slot(slot) => (slot.name(), self.held(slot).expect("it was started")),
            Booted::Rescue | Booted::Unknown => ("RESCUE", 0),
        };
        let nature = self.nature[usize::from(running)];
        if !(trial && matches!(nature, Nature::Dead | Nature::PanicsEarly)) {
            self.begin(name);
        }
        if trial && matches!(nature, Nature::Panics | Nature::PanicsEarly) {
            self.evidence.panic = Some("panic".to_owned());
            return Ok(Outcome::Reset);
        }
        if std::mem::take(&mut self.forget) {
            self.record = None;
        }
        if trial && matches!(nature, Nature::Hangs | Nature::Dead) {
            self.evidence.watchdog = true;
            return Ok(Outcome::Reset);
        }
        let boot = Boot {
            record: self.record.clone(),
            booted,
            running: release(running).version,
            began: self.now,
            count: self.boots.count,
            history: self.boots.history.clone(),
            foreign: self.foreign.clone(),
        };
        let mut out = Outbox::new();
        let mut slots = Slots::start(POLICY, boot, self.now, &mut out);
        let mut restart = self.carry_out(&mut slots, &mut out)?;
        while let Some(due) = slots.next_wakeup().filter(|_| !restart) {
            let input = match nature {
                Nature::Good => Some(Input::Healthy(true)),
                Nature::Unfit => {
                    self.boots.failed_trial("no gateway", 1);
                    Some(Input::Unfit("no gateway".to_owned()))
                }
                _ => None,
            };
            if nature == Nature::Good {
                self.proven.insert(running);
            }
            match input {
                Some(input) => slots.handle(self.now, input, &mut out),
                None => {
                    self.now = due;
                    slots.handle_timeout(due, &mut out);
                }
            }
            restart |= self.carry_out(&mut slots, &mut out)?;
            if let Some(due) = slots.next_wakeup().filter(|_| nature == Nature::Good) {
                self.now = due;
                slots.handle_timeout(due, &mut out);
                restart |= self.carry_out(&mut slots, &mut out)?;
            }
        }
        if restart {
            return Ok(Outcome::Restart);
        }
        if booted == Booted::Rescue {
            // A person looks at it and restarts.
            return Ok(Outcome::Restart);
        }
        Ok(Outcome::Rest(Box::new(Rest { slots, booted })))
    }

    fn begin(&mut self, slot: &str) {
        let id = format!("boot {}", self.boots.count + 1);
        self.boots.begin(&id, slot, "", std::mem::take(&mut self.evidence));
    }

    /// Carries out what the core says, and answers. Tells whether a restart was asked for.
    fn carry_out(&mut self, slots: &mut Slots, out: &mut Outbox) -> Result<bool, Stop> {
        let mut restart = false;
        while let Some(output) = out.pop() {
            let (token, step) = match output {
                Output::Step(token, step) => (token, step),
                Output::Restart => {
                    restart = true;
                    continue;
                }
                Output::Event(event) => {
                    self.happened(event)?;
                    continue;
                }
            };
            let fault = self.faults.iter().position(|(name, _)| step.to_string().starts_with(name));
            let fault = fault.map(|at| self.faults.remove(at).1);
            if fault == Some(Fault::NotDone) {
                slots.handle(self.now, Input::NotDone(token, "I/O error".to_owned()), out);
                continue;
            }
            let answer = match step {
                Step::ReadEnvironments => Input::Environments(token, files::read(&self.disk.seen().0)),
                Step::WriteEnvironment(slot, environment) => {
                    let sectors = files::write(&self.disk.seen().0, slot, &environment);
                    for (at, bytes) in sectors.into_iter().filter(|_| fault.is_none()) {
                        self.disk.write(Write::Environment { slot, at, bytes })?;
                    }
                    Input::Done(token)
                }
                Step::WriteSlot(slot, release) => {
                    self.may_be_written(slot)?;
                    for (at, block) in release.digest[..BLOCKS].iter().enumerate() {
                        let block = if fault.is_some() { 0 } else { *block };
                        self.disk.write(Write::Block { slot, at, block })?;
                    }
                    Input::Done(token)
                }
                Step::Sync(_) => {
                    self.disk.flush()?;
                    Input::Done(token)
                }
                Step::ReRead(slot) => {
                    // Past every cache; a disk that lies answers from its own.
                    let disk = &self.disk;
                    let blocks = if disk.lies { disk.seen().1[slot] } else { disk.blocks[slot] };
                    let size = if fault.is_some() { 0 } else { release(1).size };
                    Input::ReRead(token, Found { digest: digest(&blocks), size })
                }
                Step::Persist(record) => {
                    self.disk.tick()?;
                    self.record = Some(record);
                    // It is on the disk, but nobody knows yet.
                    self.disk.flush()?;
                    Input::Done(token)
                }
            };
            slots.handle(self.now, answer, out);
        }
        Ok(restart)
    }

    /// `always-bootable`: what would the loader start if the power went while the slot is half written?
    fn may_be_written(&self, slot: Slot) -> Result<(), Stop> {
        let choice = files::load(&self.disk.files);
        let other = slot.other();
        let safe = choice.slot == Some(other)
            && choice.write.is_none()
            && self.held(other).is_some_and(|n| self.proven.contains(&n));
        if safe { Ok(()) } else { broken(format!("{slot} is written while the loader would do {choice:?}")) }
    }

    fn happened(&mut self, event: Event) -> Result<(), Stop> {
        match &event {
            // `durable-first`: what was told is on the disk.
            Event::Verified { slot, release } | Event::Committed { slot, release }
                if digest(&self.disk.blocks[*slot]) != release.digest && !self.disk.lies =>
            {
                return broken(format!("told before it is on the disk: {event}"));
            }
            // `proven-slot`.
            Event::Committed { release, .. } if !self.proven.contains(&(release.version.patch as u8)) => {
                return broken(format!("was never healthy: {event}"));
            }
            Event::Repaired { .. } => self.tally.repairs += 1,
            _ => {}
        }
        self.events.push(event);
        Ok(())
    }

    /// Asks for something and waits until the machine is at rest again.
    pub(crate) fn ask(&mut self, rest: &mut Rest, input: Input) -> Result<bool, Stop> {
        let mut out = Outbox::new();
        rest.slots.handle(self.now, input, &mut out);
        self.carry_out(&mut rest.slots, &mut out)
    }

    /// Installs a release and tries it, until the machine is at rest again.
    pub(crate) fn upgrade(&mut self, mut rest: Rest, n: u8) -> Result<Rest, Stop> {
        let restart = self.ask(&mut rest, Input::Install(release(n)))?;
        if restart {
            return broken("an install restarts nothing");
        }
        if !self.ask(&mut rest, Input::Try)? {
            return Ok(rest);
        }
        self.boots.leave(Action::Reboot, "provisiond", 1);
        self.run()
    }

    /// The machine is at rest in the committed slot, whose environment the loader starts; returns the release.
    pub(crate) fn settled(&self, rest: &Rest) -> Result<u8, Stop> {
        let record = self.record();
        let choice = files::load(&self.disk.seen().0);
        let held = self.held(record.committed);
        if rest.booted != Booted::Slot(record.committed)
            || choice.slot != Some(record.committed)
            || choice.write.is_some()
            || held.map(|n| release(n).digest) != record.release().map(|release| release.digest)
        {
            return broken(format!(
                "at rest in {}, committed is {:?}, the loader would do {choice:?}, the slot holds {held:?}",
                rest.booted, record
            ));
        }
        // What the loader or the record would fall back to is a release that was healthy, too.
        let other = record.target();
        let kept = self.held(other).filter(|n| self.proven.contains(n)).map(|n| release(n).digest);
        let recorded = match &record.stages[other] {
            Stage::Committed { release } => Some(release.digest),
            _ => None,
        };
        let environment = files::read(&self.disk.seen().0)[other].clone();
        let started = environment.is_ok_and(|e| e.revision > 0 && !e.in_progress);
        if (recorded.is_some() && kept != recorded) || (started && kept.is_none()) {
            return broken(format!("{other} counts as {recorded:?}, it holds {kept:?}"));
        }
        match held {
            Some(n) if self.proven.contains(&n) => Ok(n),
            _ => broken(format!("release {held:?} was never healthy")),
        }
    }
}
