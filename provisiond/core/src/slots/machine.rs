//! The machine: a job is a list of acts, carried out one after the other. An act that touches the disk is a step, and
//! the next act waits for its answer.

use super::control::Environments;
use super::environment::{self, Repair};
use super::io::{Boot, Booted, Event, Found, Input, Outbox, Output, Refusal, Step, Token, Trouble};
use super::record::{Failure, Release, SlotRecord, Stage};
use super::start;
use crate::version::Version;
use proto::bgenv::Environment;
use proto::slot::Slot;
use proto::time::{Duration, Time};
use std::collections::VecDeque;

/// How long a trial takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long the checks have to be good without a break.
    pub soak: Duration,
    /// When the trial fails although nobody says so.
    pub deadline: Duration,
}

/// A change of the record.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    Whole(SlotRecord),
    Stage(Slot, Stage),
    Failed(Release, Failure),
    /// The target takes the committed slot's place, which becomes what the loader falls back to.
    Committed(Release),
    /// The same, and the slot that was committed is of no use any more.
    Fallback,
}

/// One thing of a job.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Compares what is there with the record.
    Judge,
    /// Makes the environments what the record wants, one after the other.
    Repair,
    /// The target's environment becomes: in progress, installed, confirmed.
    Progress,
    Install,
    Confirm,
    Write(Slot, Environment),
    Sync(Slot),
    /// Both environments are read; the one that was written has to be there.
    Check,
    Mark(Mark),
    Fill(Slot, Release),
    /// The slot is read back and has to hold this release.
    Verify(Slot, Release),
    /// The same for the committed slot, while something else runs.
    VerifyCommitted(Slot),
    /// The slot is read, what it holds becomes the committed release.
    Adopt(Slot),
    BeginTrial,
    Say(Event),
    Restart,
}

/// Confirms a trial. The other environment comes last: it must not keep a healthy slot from being confirmed.
pub(super) fn commit(slot: Slot, release: Release, attempt: u8, boot: u64) -> Vec<Act> {
    vec![
        Act::Mark(Mark::Stage(slot, Stage::Healthy { release, attempt, boot })),
        Act::Confirm,
        Act::Mark(Mark::Committed(release)),
        Act::Say(Event::Committed { slot, release }),
        Act::Repair,
    ]
}

/// Ends a trial.
pub(super) fn fail(slot: Slot, release: Release, failure: Failure) -> Vec<Act> {
    vec![
        Act::Mark(Mark::Failed(release, failure.clone())),
        Act::Say(Event::Failed { slot, release, failure }),
        Act::Repair,
    ]
}

/// The trial that runs, as long as this process does. Timers count from its beginning, in running time.
#[derive(Clone, Debug)]
struct Trial {
    /// When to fail it.
    deadline: Time,
    /// Since when the checks are good.
    healthy: Option<Time>,
}

impl Trial {
    fn soaked(&self, policy: &Policy) -> Option<Time> {
        self.healthy.map(|since| since + policy.soak)
    }
}

/// A step that has not been answered.
#[derive(Clone, Debug)]
struct Pending {
    token: Token,
    step: Step,
    act: Act,
}

/// The slots of a node. The module's head has the stages.
#[derive(Clone, Debug)]
pub struct Slots {
    policy: Policy,
    boot: Boot,
    /// As it is on the disk.
    record: Option<SlotRecord>,
    /// Both environments as they were read; nothing while one may have changed.
    both: Option<Environments>,
    /// What was written to the target's environment and has to be read back.
    written: Option<(Slot, Environment)>,
    job: VecDeque<Act>,
    pending: Option<Pending>,
    trial: Option<Trial>,
    /// The verdict on the trial, until it can be acted on.
    unfit: Option<String>,
    /// The record could not be stored.
    halted: bool,
    tokens: u64,
}

impl Slots {
    /// Compares what is there with the record, finishes or gives up what was under way.
    pub fn start(policy: Policy, boot: Boot, now: Time, out: &mut Outbox) -> Slots {
        for disk in &boot.foreign {
            out.push(Output::Event(Event::Foreign { disk: disk.clone() }));
        }
        let mut slots = Slots {
            policy,
            record: boot.record.clone(),
            boot,
            both: None,
            written: None,
            job: VecDeque::from([Act::Judge]),
            pending: None,
            trial: None,
            unfit: None,
            halted: false,
            tokens: 0,
        };
        slots.proceed(now, out);
        slots
    }

    /// Takes one input in.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        match input {
            Input::Done(token) => {
                if let Some(act) = self.answered(token, |step| !asks(step)) {
                    self.done(act);
                }
            }
            Input::Environments(token, both) => {
                if let Some(act) = self.answered(token, |step| *step == Step::ReadEnvironments) {
                    self.read(act, both, out);
                }
            }
            Input::ReRead(token, found) => {
                if let Some(act) = self.answered(token, |step| matches!(step, Step::ReRead(_))) {
                    self.reread(act, found, out);
                }
            }
            Input::NotDone(token, why) => self.not_done(token, why, out),
            Input::Install(release) => self.asked(out, |slots| slots.install(release)),
            Input::Try => self.asked(out, |slots| slots.try_target()),
            Input::Healthy(healthy) => self.healthy(now, healthy),
            Input::Unfit(why) if self.on_trial() => self.unfit = Some(why),
            Input::Unfit(_) => out.push(Output::Event(Event::Refused(Refusal::NoTrial))),
        }
        self.proceed(now, out);
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Time, out: &mut Outbox) {
        self.proceed(now, out);
    }

    /// When [`Slots::handle_timeout`] is due. Nothing while a step is not answered: its answer looks at the time.
    pub fn next_wakeup(&self) -> Option<Time> {
        let trial = self.trial.as_ref().filter(|_| self.pending.is_none() && !self.halted)?;
        Some(trial.soaked(&self.policy).map_or(trial.deadline, |soaked| soaked.min(trial.deadline)))
    }

    /// What is remembered, as it is on the disk; nothing before a slot has been adopted.
    pub fn record(&self) -> Option<&SlotRecord> {
        self.record.as_ref()
    }

    /// The step that everything waits for.
    pub fn waits_for(&self) -> Option<&Step> {
        self.pending.as_ref().map(|pending| &pending.step)
    }

    // Inputs.

    /// The act whose step is answered. An answer to a step that was given up changes nothing, nor does one of another
    /// kind: bytes that nobody read are not verified.
    fn answered(&mut self, token: Token, fits: impl FnOnce(&Step) -> bool) -> Option<Act> {
        let pending = self.pending.take_if(|pending| pending.token == token && fits(&pending.step))?;
        if let Step::Persist(record) = pending.step {
            self.record = Some(record);
        }
        Some(pending.act)
    }

    /// A step without an answer of its own is done.
    fn done(&mut self, act: Act) {
        if let Act::Write(slot, environment) = act {
            self.written = Some((slot, environment));
        }
    }

    fn read(&mut self, act: Act, both: Environments, out: &mut Outbox) {
        if let Some((slot, environment)) = self.written.take()
            && both[slot].as_ref() != Ok(&environment)
        {
            let found = match &both[slot] {
                Ok(found) => environment::told(found),
                Err(error) => error.to_string(),
            };
            return self.give_up(Trouble::Environment { slot, found }, out);
        }
        self.both = Some(both);
        if !matches!(act, Act::Check) {
            self.job.push_front(act);
        }
    }

    fn reread(&mut self, act: Act, found: Found, out: &mut Outbox) {
        let expected = match act {
            Act::Verify(_, release) => Some(release),
            Act::VerifyCommitted(slot) => {
                self.record.as_ref().and_then(|r| r.stages[slot].release()).copied()
            }
            Act::Adopt(slot) => return self.adopt(slot, found),
            _ => None,
        };
        let (Act::Verify(slot, _) | Act::VerifyCommitted(slot), Some(expected)) = (&act, expected) else {
            return;
        };
        if found != (Found { digest: expected.digest, size: expected.size }) {
            let slot = *slot;
            out.push(Output::Event(Event::Trouble(Trouble::Bytes { slot, expected, found })));
            self.spoiled(&act);
        }
    }

    /// What runs counts as committed from now on.
    fn adopt(&mut self, slot: Slot, found: Found) {
        // Nobody told its floor: the next release that is committed does.
        let release = Release {
            digest: found.digest,
            size: found.size,
            version: self.boot.running,
            floor: Version::default(),
        };
        let known = self.both.iter().flat_map(|both| [&both[slot], &both[slot.other()]]);
        let watchdog_s = known.flatten().next().map_or(0, |e| e.watchdog_s);
        self.job.extend([
            Act::Mark(Mark::Whole(SlotRecord::adopted(slot, release, watchdog_s))),
            Act::Say(Event::Adopted { slot, release }),
            Act::Repair,
        ]);
    }

    /// A slot does not hold what it should, or cannot be read.
    fn spoiled(&mut self, act: &Act) {
        let Some(record) = &self.record else { return };
        match act {
            Act::Verify(slot, _) if *slot == record.target() => {
                self.job = VecDeque::from([Act::Mark(Mark::Stage(*slot, Stage::Empty)), Act::Repair]);
            }
            // Only a slot that has been committed before can take its place, and only when its bytes are good: those
            // of the one that runs are.
            Act::VerifyCommitted(lost) => {
                let committed = lost.other();
                let Stage::Committed { release } = record.stages[committed] else { return };
                self.job.clear();
                if self.boot.booted != Booted::Slot(committed) {
                    self.job.push_back(Act::Verify(committed, release));
                }
                self.job.extend([
                    Act::Mark(Mark::Fallback),
                    Act::Say(Event::Fallback { lost: *lost, committed, release }),
                    Act::Repair,
                ]);
            }
            _ => {}
        }
    }

    fn not_done(&mut self, token: Token, why: String, out: &mut Outbox) {
        let Some(pending) = self.pending.take_if(|pending| pending.token == token) else { return };
        let trouble = Trouble::Step { step: pending.step.to_string(), why };
        if matches!(pending.step, Step::Persist(_)) {
            self.halted = true;
        }
        self.give_up(trouble, out);
        if matches!(pending.act, Act::VerifyCommitted(..)) {
            self.job.push_back(Act::Repair);
            self.spoiled(&pending.act);
        }
    }

    /// Ends the job. A slot whose bytes were being replaced holds nothing.
    fn give_up(&mut self, trouble: Trouble, out: &mut Outbox) {
        out.push(Output::Event(Event::Trouble(trouble)));
        self.job.clear();
        self.both = None;
        self.written = None;
        if let Some(record) = &self.record {
            let slot = record.target();
            if matches!(record.stages[slot], Stage::Writing { .. }) {
                self.job.push_back(Act::Mark(Mark::Stage(slot, Stage::Empty)));
            }
        }
    }

    /// Starts a job somebody asks for.
    fn asked(&mut self, out: &mut Outbox, job: impl FnOnce(&Slots) -> Result<Vec<Act>, Refusal>) {
        match self.free().and_then(|()| job(self)) {
            Ok(acts) => {
                self.both = None;
                self.job.extend(acts);
            }
            Err(refusal) => out.push(Output::Event(Event::Refused(refusal))),
        }
    }

    fn free(&self) -> Result<(), Refusal> {
        if self.halted {
            return Err(Refusal::Halted);
        }
        match (&self.pending, self.boot.foreign.first()) {
            (Some(pending), _) => Err(Refusal::Busy(pending.step.to_string())),
            (None, Some(disk)) => Err(Refusal::Foreign { disk: disk.clone() }),
            (None, None) => Ok(()),
        }
    }

    /// The record of a node that runs its committed slot.
    fn at_home(&self) -> Result<&SlotRecord, Refusal> {
        let booted = self.boot.booted;
        let record = self.record.as_ref().ok_or(Refusal::NotAdopted { booted })?;
        if booted == Booted::Slot(record.committed) {
            return Ok(record);
        }
        let slot = record.target();
        match record.stages[slot] {
            Stage::Trying { release, .. } | Stage::Healthy { release, .. }
                if booted == Booted::Slot(slot) =>
            {
                Err(Refusal::OnTrial { slot, release })
            }
            _ => Err(Refusal::NotCommitted { booted, committed: record.committed }),
        }
    }

    fn install(&self, release: Release) -> Result<Vec<Act>, Refusal> {
        let record = self.at_home()?;
        if let Some(failure) = record.failure(&release.digest) {
            return Err(Refusal::FailedBefore { release, failure: failure.clone() });
        }
        if record.release().is_some_and(|committed| committed.digest == release.digest) {
            return Err(Refusal::Installed { slot: record.committed, release });
        }
        if release.version < record.floor {
            return Err(Refusal::BelowFloor { release, floor: record.floor });
        }
        let slot = record.target();
        // The environment first: an armed slot must not be started once its bytes change.
        Ok(vec![
            Act::Repair,
            Act::Progress,
            Act::Mark(Mark::Stage(slot, Stage::Writing { release })),
            Act::Fill(slot, release),
            Act::Sync(slot),
            Act::Verify(slot, release),
            Act::Mark(Mark::Stage(slot, Stage::Verified { release })),
            Act::Say(Event::Verified { slot, release }),
        ])
    }

    fn try_target(&self) -> Result<Vec<Act>, Refusal> {
        let record = self.at_home()?;
        let slot = record.target();
        match &record.stages[slot] {
            Stage::Verified { release } => Ok(start::again(record, &self.boot, *release, 1)),
            Stage::Armed { release, attempt, .. } => Ok(start::again(record, &self.boot, *release, *attempt)),
            stage => Err(Refusal::NothingToTry { slot, found: stage.to_string() }),
        }
    }

    /// Whether this boot is a trial, or will turn out to be one once its beginning is on the disk.
    fn on_trial(&self) -> bool {
        let target = self.record.as_ref().map(|record| (record.target(), &record.stages[record.target()]));
        target.is_some_and(|(slot, stage)| {
            self.boot.booted == Booted::Slot(slot)
                && matches!(stage, Stage::Armed { .. } | Stage::Trying { .. })
        })
    }

    fn healthy(&mut self, now: Time, healthy: bool) {
        if let Some(trial) = &mut self.trial {
            trial.healthy = healthy.then(|| trial.healthy.unwrap_or(now));
            return;
        }
        // It has proven healthy before, but the disk did not take it.
        let Some(record) = self.record.as_ref().filter(|_| healthy && self.pending.is_none()) else { return };
        let slot = record.target();
        if let Stage::Healthy { release, attempt, boot } = record.stages[slot]
            && self.boot.booted == Booted::Slot(slot)
        {
            self.both = None;
            self.job.extend(commit(slot, release, attempt, boot));
        }
    }

    // The job.

    /// Goes on until a step waits for its answer or nothing is left.
    fn proceed(&mut self, now: Time, out: &mut Outbox) {
        while self.pending.is_none() && !self.halted {
            match self.job.pop_front() {
                Some(act) => self.act(act, out),
                None if self.end_trial(now) => {}
                None => return,
            }
        }
    }

    /// Whether the trial is over; then there is a job.
    fn end_trial(&mut self, now: Time) -> bool {
        let (Some(trial), Some(record)) = (&self.trial, &self.record) else { return false };
        let slot = record.target();
        let (release, attempt, boot) = match &record.stages[slot] {
            Stage::Trying { release, attempt, boot } | Stage::Healthy { release, attempt, boot } => {
                (*release, *attempt, *boot)
            }
            _ => return false,
        };
        let soaked = trial.soaked(&self.policy).filter(|soaked| *soaked <= now.min(trial.deadline));
        let failure = match &self.unfit {
            Some(why) => Some(Failure::verdict(why)),
            None if soaked.is_some() => None,
            None if trial.deadline <= now => {
                Some(Failure::Deadline { seconds: self.policy.deadline.as_secs() })
            }
            None => return false,
        };
        self.trial = None;
        self.both = None;
        self.job.extend(match failure {
            None => commit(slot, release, attempt, boot),
            Some(failure) => {
                let mut acts = fail(slot, release, failure);
                acts.push(Act::Restart);
                acts
            }
        });
        true
    }

    fn act(&mut self, act: Act, out: &mut Outbox) {
        match act {
            Act::Say(event) => out.push(Output::Event(event)),
            Act::Restart => out.push(Output::Restart),
            Act::BeginTrial => {
                self.trial = Some(Trial { deadline: self.boot.began + self.policy.deadline, healthy: None });
            }
            Act::Mark(ref mark) => {
                let record = self.marked(mark);
                self.step(Step::Persist(record), act, out);
            }
            Act::Fill(slot, release) => self.step(Step::WriteSlot(slot, release), act, out),
            Act::Sync(slot) => self.step(Step::Sync(slot), act, out),
            Act::Verify(slot, _) | Act::VerifyCommitted(slot) | Act::Adopt(slot) => {
                self.step(Step::ReRead(slot), act, out);
            }
            Act::Check => self.step(Step::ReadEnvironments, act, out),
            Act::Write(slot, ref environment) => {
                self.both = None;
                self.step(Step::WriteEnvironment(slot, environment.clone()), act, out);
            }
            Act::Judge | Act::Repair | Act::Progress | Act::Install | Act::Confirm => {
                match self.both.clone() {
                    Some(both) => self.decide(act, &both, out),
                    None => self.step(Step::ReadEnvironments, act, out),
                }
            }
        }
    }

    /// Acts that depend on what the environments say become others.
    fn decide(&mut self, act: Act, both: &Environments, out: &mut Outbox) {
        let Some(record) = &self.record else {
            // Only the first act of all comes without a record.
            match start::adoptable(&self.boot, both) {
                Ok(slot) => self.job.push_front(Act::Adopt(slot)),
                Err(found) => {
                    let booted = self.boot.booted;
                    out.push(Output::Event(Event::NotAdopted { booted, found }));
                }
            }
            return;
        };
        let slot = record.target();
        let acts = match act {
            Act::Judge => Ok(start::judge(record, both, &self.boot)),
            Act::Repair => Ok(match environment::repair(record, both) {
                None => vec![],
                Some(Repair { slot, environment, found }) => vec![
                    Act::Write(slot, environment),
                    Act::Sync(slot),
                    Act::Check,
                    Act::Say(Event::Repaired { slot, found }),
                    Act::Repair,
                ],
            }),
            Act::Progress => Ok(written(slot, environment::in_progress(record, both))),
            Act::Install => environment::installed(record, both).map(|e| written(slot, e)),
            _ => environment::confirmed(record, both).map(|e| written(slot, e)),
        };
        match acts {
            Ok(acts) => acts.into_iter().rev().for_each(|act| self.job.push_front(act)),
            Err(trouble) => self.give_up(trouble, out),
        }
    }

    /// The record with a change.
    fn marked(&self, mark: &Mark) -> SlotRecord {
        let record = self.record.clone();
        let known = || record.clone().expect("only the mark of a whole record comes before there is one");
        match mark {
            Mark::Whole(record) => record.clone(),
            Mark::Stage(slot, stage) => {
                let mut record = known();
                record.stages[*slot] = stage.clone();
                record
            }
            Mark::Failed(release, failure) => {
                let mut record = known();
                record.fail(*release, failure.clone());
                record
            }
            Mark::Committed(release) => {
                let mut record = known();
                record.commit(*release);
                record
            }
            Mark::Fallback => {
                let mut record = known();
                record.stages[record.committed] = Stage::Empty;
                record.committed = record.target();
                record
            }
        }
    }

    fn step(&mut self, step: Step, act: Act, out: &mut Outbox) {
        self.tokens += 1;
        let token = Token(self.tokens);
        out.push(Output::Step(token, step.clone()));
        self.pending = Some(Pending { token, step, act });
    }
}

/// Whether a step has an answer of its own.
fn asks(step: &Step) -> bool {
    matches!(step, Step::ReadEnvironments | Step::ReRead(_))
}

/// An environment is written, brought to the disk and read back.
fn written(slot: Slot, environment: Environment) -> Vec<Act> {
    vec![Act::Write(slot, environment), Act::Sync(slot), Act::Check]
}
