//! What a start finds, and what follows from it: the record is compared with the environments, with the slot that was
//! booted, and with how the boots before ended.

use super::control::Environments;
use super::environment::startable;
use super::io::{Boot, Booted, Event};
use super::machine::{Act, Mark, commit, fail};
use super::record::{Failure, Release, SlotRecord, Stage};
use proto::bgenv::State;
use proto::boot::BootEnd;
use proto::slot::Slot;

/// Trials that may end without a word. One may have been a power cut.
const TRIALS_MAX: u8 = 2;

/// Without a record: whether what runs may count as committed. The error says why not.
pub(super) fn adoptable(boot: &Boot, both: &Environments) -> Result<Slot, String> {
    let Booted::Slot(slot) = boot.booted else { return Err("no slot".to_owned()) };
    let other = both[slot.other()].as_ref().ok().filter(|e| startable(e));
    match (&both[slot], other) {
        (Ok(e), _) if !startable(e) => Err(super::environment::told(e)),
        (Ok(e), Some(other)) if other.revision >= e.revision => Err("not what the loader starts".to_owned()),
        (Err(e), Some(_)) => Err(e.to_string()),
        _ => Ok(slot),
    }
}

/// What is to be done at the start, with a record.
pub(super) fn judge(record: &SlotRecord, both: &Environments, boot: &Boot) -> Vec<Act> {
    match boot.booted {
        Booted::Slot(slot) if slot == record.committed => at_home(record, both, boot),
        Booted::Slot(slot) => away(record, both, boot, slot),
        // Why is it not the committed one? Its bytes may be damaged.
        Booted::Rescue => {
            vec![not_committed(record, boot), Act::VerifyCommitted(record.committed), Act::Repair]
        }
        Booted::Unknown => vec![not_committed(record, boot), Act::Repair],
    }
}

fn not_committed(record: &SlotRecord, boot: &Boot) -> Act {
    Act::Say(Event::NotCommitted { booted: boot.booted, committed: record.committed })
}

/// The committed slot runs: how far had the other one come?
fn at_home(record: &SlotRecord, both: &Environments, boot: &Boot) -> Vec<Act> {
    let slot = record.target();
    let found = both[slot].as_ref().ok();
    match &record.stages[slot] {
        Stage::Empty | Stage::Verified { .. } | Stage::Committed { .. } | Stage::Failed { .. } => {
            vec![Act::Repair]
        }
        Stage::Writing { release } => vec![
            Act::Mark(Mark::Stage(slot, Stage::Empty)),
            Act::Say(Event::Unfinished { slot, release: *release }),
            Act::Repair,
        ],
        Stage::Armed { release, attempt, boot: armed } => {
            // Only a boot after the one that armed it can have been a trial.
            let since = armed.saturating_add(1);
            let tried = boot.count > *armed && !found.is_some_and(|e| e.in_progress);
            match found {
                Some(e) if e.state == State::Installed && tried => {
                    // The loader started this slot nevertheless; a person chose it. The trial is still to come.
                    vec![Act::Repair, Act::Say(Event::Armed { slot, release: *release, attempt: *attempt })]
                }
                _ if tried => came_back(record, boot, *release, *attempt, since),
                _ => again(record, boot, *release, *attempt),
            }
        }
        Stage::Trying { release, attempt, boot: trial } => {
            came_back(record, boot, *release, *attempt, *trial)
        }
        // It had proven healthy and was not confirmed in time: that trial does not count.
        Stage::Healthy { release, attempt, boot: trial } => match verdict(boot, slot, *trial) {
            Some(failure) => fail(slot, *release, failure),
            None => again(record, boot, *release, *attempt),
        },
    }
}

/// A trial is over and was not confirmed.
fn came_back(record: &SlotRecord, boot: &Boot, release: Release, attempt: u8, since: u64) -> Vec<Act> {
    let slot = record.target();
    if let Some(failure) = verdict(boot, slot, since) {
        return fail(slot, release, failure);
    }
    if attempt >= TRIALS_MAX {
        return fail(slot, release, Failure::Unconfirmed { trials: attempt });
    }
    let mut acts = vec![Act::Say(Event::Interrupted { slot, release, attempt })];
    acts.extend(again(record, boot, release, attempt + 1));
    acts
}

/// Arms a slot whose bytes have been verified before, and restarts into it.
pub(super) fn again(record: &SlotRecord, boot: &Boot, release: Release, attempt: u8) -> Vec<Act> {
    // With a second pair of environments the loader may start neither.
    if !boot.foreign.is_empty() {
        return vec![Act::Repair];
    }
    let slot = record.target();
    vec![
        Act::Repair,
        Act::Verify(slot, release),
        Act::Mark(Mark::Stage(slot, Stage::Armed { release, attempt, boot: boot.count })),
        Act::Install,
        Act::Say(Event::Armed { slot, release, attempt }),
        Act::Restart,
    ]
}

/// What the boots of `slot` since `since` left behind. An entry of another slot says nothing: a panic before init
/// noted its boot is written to the boot before.
fn verdict(boot: &Boot, slot: Slot, since: u64) -> Option<Failure> {
    let trials = boot.history.iter().filter(|entry| entry.count >= since && entry.slot == slot.name());
    trials.rev().find_map(|entry| match &entry.ended {
        BootEnd::FailedTrial { why } => Some(Failure::verdict(why)),
        BootEnd::Panic => Some(Failure::Panic),
        BootEnd::Crash => Some(Failure::Crash),
        BootEnd::PowerOrReset | BootEnd::Orderly { .. } | BootEnd::Watchdog | BootEnd::Forced { .. } => None,
    })
}

/// Another slot than the committed one runs.
fn away(record: &SlotRecord, both: &Environments, boot: &Boot, slot: Slot) -> Vec<Act> {
    // Only these are states in which the loader starts a trial. It starts a failed slot when it can read no other
    // environment.
    let trial = both[slot].as_ref().is_ok_and(|e| matches!(e.state, State::Testing | State::Installed));
    match &record.stages[slot] {
        Stage::Armed { release, attempt, .. } if trial => begin(slot, boot, *release, *attempt),
        Stage::Trying { boot: same, .. } if *same == boot.count => vec![Act::BeginTrial, Act::Repair],
        // A second boot that the loader did not count.
        Stage::Trying { release, attempt, .. } if trial && *attempt < TRIALS_MAX => {
            begin(slot, boot, *release, attempt + 1)
        }
        Stage::Trying { release, attempt, .. } if trial => {
            let mut acts = fail(slot, *release, Failure::Unconfirmed { trials: *attempt });
            acts.push(Act::Restart);
            acts
        }
        Stage::Healthy { release, attempt, .. } => commit(slot, *release, *attempt, boot.count),
        Stage::Committed { .. } => {
            vec![not_committed(record, boot), Act::VerifyCommitted(record.committed), Act::Repair]
        }
        Stage::Empty
        | Stage::Writing { .. }
        | Stage::Verified { .. }
        | Stage::Armed { .. }
        | Stage::Trying { .. }
        | Stage::Failed { .. } => {
            // Restarting helps only where the loader had no choice and has one then.
            let helps = !both[record.committed].as_ref().is_ok_and(startable);
            let mut acts = vec![not_committed(record, boot), Act::Repair];
            acts.extend(helps.then_some(Act::Restart));
            acts
        }
    }
}

fn begin(slot: Slot, boot: &Boot, release: Release, attempt: u8) -> Vec<Act> {
    vec![
        Act::Mark(Mark::Stage(slot, Stage::Trying { release, attempt, boot: boot.count })),
        Act::Say(Event::Trying { slot, release, attempt }),
        Act::BeginTrial,
        Act::Repair,
    ]
}
