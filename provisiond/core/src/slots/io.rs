//! What the machine is told and what it says.

use super::control::Environments;
use super::record::{Digest, Failure, Release, SlotRecord};
use crate::version::Version;
use core::fmt;
use proto::bgenv::Environment;
use proto::boot::BootEntry;
use proto::slot::Slot;
use proto::text::hex;
use proto::time::Time;
use std::collections::VecDeque;

/// What this boot was started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Booted {
    Slot(Slot),
    Rescue,
    /// Nothing says; a boot without the loader, for instance.
    Unknown,
}

impl Booted {
    /// As init tells it: a partition's name, or nothing.
    pub fn from_name(name: &str) -> Booted {
        match (Slot::from_name(name), name) {
            (Some(slot), _) => Booted::Slot(slot),
            (None, "RESCUE") => Booted::Rescue,
            (None, _) => Booted::Unknown,
        }
    }
}

impl fmt::Display for Booted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Booted::Slot(slot) => slot.fmt(f),
            Booted::Rescue => f.write_str("the rescue system"),
            Booted::Unknown => f.write_str("an unknown place"),
        }
    }
}

/// What is known when the machine starts.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The record, if there is one. A damaged one is none: what the node runs is adopted, what failed is forgotten.
    pub record: Option<SlotRecord>,
    pub booted: Booted,
    /// The version that runs.
    pub running: Version,
    /// When this boot began. The deadline of a trial counts from it: a daemon that restarts puts nothing off.
    pub began: Time,
    /// Number of this boot (`proto::boot::BootRecord::count`).
    pub count: u64,
    /// The boots before it and how they ended.
    pub history: Vec<BootEntry>,
    /// Disks beside the one that was booted from that carry environments of our names.
    pub foreign: Vec<String>,
}

/// Which step an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub(super) u64);

/// The answer to a step, or what somebody asks for.
#[derive(Clone, Debug)]
pub enum Input {
    /// The step was carried out.
    Done(Token),
    /// The answer to [`Step::ReadEnvironments`].
    Environments(Token, Environments),
    /// The answer to [`Step::ReRead`].
    ReRead(Token, Found),
    /// The step was not carried out, or not wholly.
    NotDone(Token, String),
    /// Put this release into the target. Its bundle's manifest has been verified.
    Install(Release),
    /// Restart into the target, now.
    Try,
    /// What the checks of the running system say.
    Healthy(bool),
    /// The trial is over: the system in it is not fit.
    Unfit(String),
}

/// The bytes of a slot's boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub digest: Digest,
    pub size: u64,
}

/// What to do. One step at a time; the next comes when this one is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read both environments from the disk: [`super::control::read_environments`].
    ReadEnvironments,
    /// [`super::control::write_environment`].
    WriteEnvironment(Slot, Environment),
    /// Write the release's boot file into the slot, under the slot's label.
    WriteSlot(Slot, Release),
    /// Return once all writes to the slot and its environment are on the disk.
    Sync(Slot),
    /// Read the slot's boot file from the disk, past every cache, and hash it.
    ReRead(Slot),
    /// Store the record; answered once it is on the disk. A shell that cannot must end: what is not remembered must
    /// not be done.
    Persist(SlotRecord),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::ReadEnvironments => f.write_str("read the loader's environments"),
            Step::WriteEnvironment(slot, _) => write!(f, "write {}", slot.environment()),
            Step::WriteSlot(slot, release) => write!(f, "write {release} into {slot}"),
            Step::Sync(slot) => write!(f, "bring {slot} to the disk"),
            Step::ReRead(slot) => write!(f, "read {slot} back"),
            Step::Persist(_) => f.write_str("store the slots' record"),
        }
    }
}

/// What the shell carries out, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Answer it with the token.
    Step(Token, Step),
    /// Ask init for an orderly restart.
    Restart,
    /// Tell those who are interested.
    Event(Event),
}

/// Outputs that have not been carried out.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Output>,
}

impl Outbox {
    /// An empty one.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    pub(super) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    /// Takes the next one out.
    pub fn pop(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }
}

/// Why something that was asked for is not done. Nothing has changed, the running slot is untouched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the slots are busy: {0}; wait for it, \"keel show slots\" tells")]
    Busy(String),
    #[error("the slots' record could not be stored; see the log, then restart provisiond")]
    Halted,
    #[error("this node does not know its slots yet: {booted} is running; restart into a slot")]
    NotAdopted { booted: Booted },
    #[error("{booted} is running, the committed slot is {committed}: restart into it first")]
    NotCommitted { booted: Booted, committed: Slot },
    #[error("a trial of {release} is under way in {slot}: wait until it is committed or has failed")]
    OnTrial { slot: Slot, release: Release },
    #[error(
        "disk {disk} carries environments of this product, too: remove it, or the wrong one may be written"
    )]
    Foreign { disk: String },
    #[error("release {release} failed on this node ({failure}): offer another one")]
    FailedBefore { release: Release, failure: Failure },
    #[error("release {release} is committed in {slot} already")]
    Installed { slot: Slot, release: Release },
    #[error("release {release} is older than {floor}, the oldest that this node may return to")]
    BelowFloor { release: Release, floor: Version },
    #[error("{slot} holds nothing to try ({found}): install a release first")]
    NothingToTry { slot: Slot, found: String },
    #[error("no trial is under way")]
    NoTrial,
}

/// What did not work. What is on the disk is as the record says, or will be made so at the next start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("cannot {step}: {why}")]
    Step { step: String, why: String },
    #[error("{} was written but reads back {found}: replace the disk", slot.environment())]
    Environment { slot: Slot, found: String },
    #[error("{slot} was to hold {} of {} bytes, it reads back {} of {}: install it again", hex(&expected.digest[..4]), expected.size, hex(&found.digest[..4]), found.size)]
    Bytes { slot: Slot, expected: Release, found: Found },
    #[error("{} has revision {revision}, the last there is: it cannot be raised, write both anew from the rescue system", slot.environment())]
    Revision { slot: Slot, revision: u32 },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There was no record: what runs counts as committed from now on.
    Adopted {
        slot: Slot,
        release: Release,
    },
    /// There is no record, and what runs may not count as committed.
    NotAdopted {
        booted: Booted,
        found: String,
    },
    /// An environment was made anew; `found` is what was wrong.
    Repaired {
        slot: Slot,
        found: String,
    },
    /// Another disk carries environments of our names.
    Foreign {
        disk: String,
    },
    /// What runs is not what is committed.
    NotCommitted {
        booted: Booted,
        committed: Slot,
    },
    /// The committed slot cannot be used any more; the one that runs has been committed before and takes its place.
    Fallback {
        lost: Slot,
        committed: Slot,
        release: Release,
    },
    /// The bytes of an install were cut off.
    Unfinished {
        slot: Slot,
        release: Release,
    },
    Refused(Refusal),
    Verified {
        slot: Slot,
        release: Release,
    },
    /// The next boot is a trial.
    Armed {
        slot: Slot,
        release: Release,
        attempt: u8,
    },
    /// A trial ended without a word.
    Interrupted {
        slot: Slot,
        release: Release,
        attempt: u8,
    },
    Trying {
        slot: Slot,
        release: Release,
        attempt: u8,
    },
    Committed {
        slot: Slot,
        release: Release,
    },
    Failed {
        slot: Slot,
        release: Release,
        failure: Failure,
    },
    Trouble(Trouble),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Adopted { slot, release } => write!(f, "{slot} runs {release}: it counts as committed"),
            Event::NotAdopted { booted, found } => {
                write!(f, "{booted} is running ({found}), nothing is known of the slots: restart into a slot")
            }
            Event::Repaired { slot, found } => {
                write!(f, "{} was made anew: it was {found}", slot.environment())
            }
            Event::Foreign { disk } => {
                write!(f, "disk {disk} carries environments of this product, too: remove it")
            }
            Event::NotCommitted { booted, committed } => {
                write!(f, "{booted} is running, the committed slot is {committed}")
            }
            Event::Fallback { lost, committed, release } => {
                write!(f, "{lost} is damaged: {committed} with {release} is the committed slot now")
            }
            Event::Unfinished { slot, release } => {
                write!(f, "{slot}: the install of {release} was cut off; install it again")
            }
            Event::Refused(refusal) => refusal.fmt(f),
            Event::Verified { slot, release } => write!(f, "{slot} holds {release}, read back and verified"),
            Event::Armed { slot, release, attempt } => {
                write!(f, "{slot} with {release} is armed for trial {attempt}")
            }
            Event::Interrupted { slot, release, attempt } => {
                write!(f, "trial {attempt} of {release} in {slot} ended without a word")
            }
            Event::Trying { slot, release, attempt } => {
                write!(f, "trial {attempt} of {release} in {slot} has begun")
            }
            Event::Committed { slot, release } => write!(f, "{slot} with {release} is committed"),
            Event::Failed { slot, release, failure } => write!(f, "{release} in {slot} failed: {failure}"),
            Event::Trouble(trouble) => trouble.fmt(f),
        }
    }
}
