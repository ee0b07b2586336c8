//! What the environments should say, given the record and what they say. Leaves: they compute and return.
//!
//! | slot | its environment |
//! |---|---|
//! | committed | OK, finished, revision above 0 |
//! | `Empty`, `Failed` | revision below the committed one's, nothing that the loader would try |
//! | `Writing`, `Verified` | in progress, revision 0 |
//! | `Armed` | INSTALLED, revision above the committed one's; the loader makes it TESTING, then FAILED |
//! | `Trying`, `Healthy` | as the loader left it, until it is confirmed |
//! | `Committed` before | OK, revision below the committed one's: what the loader falls back to |

use super::control::Environments;
use super::io::Trouble;
use super::record::{SlotRecord, Stage};
use proto::bgenv::{Environment, State};
use proto::slot::Slot;

/// An environment that has to be written, and what is wrong with the one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repair {
    pub(super) slot: Slot,
    pub(super) environment: Environment,
    pub(super) found: String,
}

/// The next environment that is not as the record wants it; `None` when both are. The committed one comes first: it is
/// what the node starts from. It is only written when the loader would not start it as it is.
pub(super) fn repair(record: &SlotRecord, both: &Environments) -> Option<Repair> {
    let (committed, target) = (record.committed, record.target());
    let active =
        matches!(record.stages[target], Stage::Armed { .. } | Stage::Trying { .. } | Stage::Healthy { .. });
    let below = both[target].as_ref().map_or(0, |e| e.revision);
    let found = match &both[committed] {
        Ok(e) if startable(e) => None,
        Ok(e) => Some(told(e)),
        Err(e) => Some(e.to_string()),
    };
    if let Some(found) = found {
        // Below a trial that is under way, above everything else.
        let revision = if active { below.saturating_sub(1).max(1) } else { below.saturating_add(1) };
        let environment = made(record, both, committed, State::Ok, revision);
        return Some(Repair { slot: committed, environment, found });
    }
    let above = both[committed].as_ref().map_or(0, |e| e.revision);
    let now = both[target].as_ref();
    let idle = |e: &&Environment| {
        e.revision < above && (e.in_progress || !matches!(e.state, State::Installed | State::Testing))
    };
    let (fits, state, revision) = match &record.stages[target] {
        Stage::Armed { .. } | Stage::Trying { .. } | Stage::Healthy { .. } => (now.is_ok(), State::Failed, 0),
        Stage::Writing { .. } | Stage::Verified { .. } => {
            (now.is_ok_and(|e| e.in_progress && e.revision == 0), State::Ok, 0)
        }
        Stage::Empty => (now.as_ref().is_ok_and(idle), State::Ok, 0),
        Stage::Failed { .. } => (now.as_ref().is_ok_and(idle), State::Failed, 0),
        Stage::Committed { .. } => {
            let fallback = |e: &&Environment| e.state == State::Ok && !e.in_progress && e.revision < above;
            (now.as_ref().is_ok_and(fallback), State::Ok, above.saturating_sub(1))
        }
    };
    if fits {
        return None;
    }
    let mut environment = made(record, both, target, state, revision);
    environment.in_progress = matches!(record.stages[target], Stage::Writing { .. } | Stage::Verified { .. });
    let found = match &both[target] {
        Ok(e) => told(e),
        Err(e) => e.to_string(),
    };
    Some(Repair { slot: target, environment, found })
}

/// Whether the loader starts the slot, boot after boot, and counts nothing down.
pub(super) fn startable(environment: &Environment) -> bool {
    environment.state == State::Ok && !environment.in_progress && environment.revision > 0
}

/// The target's environment while its bytes are replaced.
pub(super) fn in_progress(record: &SlotRecord, both: &Environments) -> Environment {
    Environment { in_progress: true, ..made(record, both, record.target(), State::Ok, 0) }
}

/// The target's environment for a trial.
pub(super) fn installed(record: &SlotRecord, both: &Environments) -> Result<Environment, Trouble> {
    Ok(made(record, both, record.target(), State::Installed, next_revision(record, both)?))
}

/// The target's environment once it has proven healthy. The loader gave it its revision.
pub(super) fn confirmed(record: &SlotRecord, both: &Environments) -> Result<Environment, Trouble> {
    let next = next_revision(record, both)?;
    let given = both[record.target()].as_ref().map_or(0, |e| e.revision);
    Ok(made(record, both, record.target(), State::Ok, given.max(next)))
}

fn next_revision(record: &SlotRecord, both: &Environments) -> Result<u32, Trouble> {
    let revision = both[record.committed].as_ref().map_or(0, |e| e.revision);
    revision.checked_add(1).ok_or(Trouble::Revision { slot: record.committed, revision })
}

/// An environment of `slot`. What both share (watchdog, arguments) comes from the one that runs, else from the other,
/// else from the record.
fn made(record: &SlotRecord, both: &Environments, slot: Slot, state: State, revision: u32) -> Environment {
    let shared = both[record.committed].as_ref().or(both[record.target()].as_ref()).ok();
    Environment {
        state,
        arguments: shared.map(|e| e.arguments.clone()).unwrap_or_default(),
        ..Environment::committed(slot.name(), shared.map_or(record.watchdog_s, |e| e.watchdog_s), revision)
    }
}

/// An environment in words.
pub(super) fn told(e: &Environment) -> String {
    let progress = if e.in_progress { ", in progress" } else { "" };
    format!("{:?}{progress}, revision {}", e.state, e.revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{Failure, Release};
    use crate::version::Version;
    use proto::bgenv::EnvironmentError;
    use proto::slot::Pair;

    /// Everything that an environment may be.
    fn environments(slot: Slot) -> Vec<Result<Environment, EnvironmentError>> {
        let mut all = vec![Err(EnvironmentError::Size { found: 0 })];
        for state in [State::Ok, State::Installed, State::Testing, State::Failed] {
            for revision in [0, 1, 2, 3, u32::MAX] {
                for in_progress in [false, true] {
                    let made = Environment::committed(slot.name(), 30, revision);
                    all.push(Ok(Environment { state, in_progress, ..made }));
                }
            }
        }
        all
    }

    /// Every stage with every pair of environments: after at most three writes nothing is left to write, and the
    /// loader starts the committed slot, or one that is under way.
    #[test]
    fn repairs_come_to_an_end() {
        let version = Version::default();
        let release = Release { digest: [1; 32], size: 1, version, floor: version };
        let (attempt, boot) = (1, 1);
        let resting = [
            Stage::Empty,
            Stage::Writing { release },
            Stage::Verified { release },
            Stage::Committed { release },
            Stage::Failed { release, failure: Failure::Panic },
        ];
        let active = [
            Stage::Armed { release, attempt, boot },
            Stage::Trying { release, attempt, boot },
            Stage::Healthy { release, attempt, boot },
        ];
        for (at, stage) in resting.iter().chain(&active).enumerate() {
            for (a, b) in environments(Slot::A)
                .iter()
                .flat_map(|a| environments(Slot::B).into_iter().map(move |b| (a, b)))
            {
                let mut record = SlotRecord::adopted(Slot::A, release, 30);
                record.stages.b = stage.clone();
                let mut both = Pair { a: a.clone(), b };
                let begun = format!("{stage:?} {both:?}");
                let mut writes = 0;
                while let Some(repair) = repair(&record, &both) {
                    both[repair.slot] = Ok(repair.environment);
                    writes += 1;
                    assert!(writes <= 3, "{begun}: {both:?}");
                }
                let (a, b) = (both.a.expect("good"), both.b.expect("good"));
                assert!(startable(&a), "{begun}: {a:?}");
                assert!(at >= resting.len() || b.revision < a.revision, "{begun}: {a:?} {b:?}");
            }
        }
    }
}
