//! What PID 1 remembers from boot to boot. Pure: init reads and writes it through `store`.
//!
//! ```text
//!            begin(what is known of the end)                      leave(action, who asked)
//! last boot ---------------------------------> this boot running ---------------------------> this boot ended
//!     '--> history, the last HISTORY_MAX                '-- ran(seconds): at least this long
//! ```
//! Time is counted in seconds that the machine was running, never by a wall clock: a reset that a wrong clock moved
//! by an hour must count all the same. A boot that is not ended in order has run *at least* as long as was noted, so
//! that resets are rather counted too close together than too far apart.

use crate::envelope::{Message, kind};
use crate::record::{BOOT_ID_LEN, VERSION_MAX};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Ended boots that are kept.
pub const HISTORY_MAX: usize = 8;
/// Bytes of the longest name of who asked for a shutdown, and of the longest reason of a failed trial.
pub const BY_MAX: usize = 64;
/// Bytes of the longest text about a crash or a panic.
pub const FAULT_MAX: usize = 400;
/// Bytes of the longest slot name.
pub const SLOT_MAX: usize = 16;
/// When a running boot is noted again, in seconds since it began: the last one is the longest time that
/// [`BootRecord::watchdog_resets`] is asked about.
pub const NOTED_AT_S: [u64; 4] = [60, 180, 360, 600];

/// The slots' partition GUIDs, which are the same in every image, and their names. The loader's variable
/// `LoaderDevicePartUUID` says which one the boot file came from.
pub const SLOTS: [(&str, &str); 3] = [
    ("29c5279a-bbaf-839c-9cc2-e26485fcb90a", "SLOT-A"),
    ("84516933-6718-8661-839c-0507bcf18461", "SLOT-B"),
    ("4b35c64e-5456-84fc-8fdf-3a5f67026312", "RESCUE"),
];

/// What the machine does after an orderly shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Reboot,
    PowerOff,
}

impl core::fmt::Display for Action {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            Action::Reboot => "reboot",
            Action::PowerOff => "power-off",
        })
    }
}

/// How a boot ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootEnd {
    /// Nothing tells: the power went, or somebody pressed reset.
    PowerOrReset,
    /// All services were stopped. `by` names who asked for it.
    Orderly { action: Action, by: String },
    /// PID 1 crashed and restarted the machine; [`BootRecord::last_fault`] says where.
    Crash,
    /// The kernel panicked; [`BootRecord::last_fault`] has its line.
    Panic,
    /// The watchdog reset the machine.
    Watchdog,
    /// Restarted without waiting for anything. `by` names who insisted.
    Forced { by: String },
    /// The trial of a slot that failed: the watchdog was not fed any more, so that it reset the machine.
    FailedTrial { why: String },
}

impl core::fmt::Display for BootEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BootEnd::PowerOrReset => f.write_str("power or reset"),
            BootEnd::Orderly { action, by } => write!(f, "{action}, asked for by {by}"),
            BootEnd::Crash => f.write_str("crash of init"),
            BootEnd::Panic => f.write_str("kernel panic"),
            BootEnd::Watchdog => f.write_str("watchdog"),
            BootEnd::Forced { by } => write!(f, "restart forced by {by}"),
            BootEnd::FailedTrial { why } => write!(f, "failed trial: {why}"),
        }
    }
}

/// A boot that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootEntry {
    /// Its number.
    pub count: u64,
    /// The slot it ran from; empty when unknown.
    pub slot: String,
    /// Seconds it ran; at least these when it did not end in order.
    pub ran_s: u64,
    /// How it ended.
    pub ended: BootEnd,
}

/// The last crash of PID 1 or panic of the kernel, one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The boot it ended.
    pub count: u64,
    /// What happened, at most [`FAULT_MAX`] bytes.
    pub text: String,
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Boots so far, this one included.
    pub count: u64,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// The slot it runs from; empty when unknown.
    pub slot: String,
    /// The release it runs.
    pub release: String,
    /// Seconds this boot has run at least.
    pub ran_s: u64,
    /// How this boot ended, once it has.
    pub ended: Option<BootEnd>,
    /// The last wall clock that was saved and believed, in seconds since 1970.
    pub wall_s: u64,
    /// The random machine id, for machines without one of their own.
    pub machine_id: Option<[u8; 16]>,
    /// The boots before this one, the oldest first; at most [`HISTORY_MAX`].
    pub history: Vec<BootEntry>,
    /// The last crash or panic there was.
    pub last_fault: Option<Fault>,
}

impl Message for BootRecord {
    const KIND: u16 = kind::BOOT_RECORD;
    const VERSION: u16 = 1;
    /// Twice the longest today: a record's file never grows, and a later layout has to fit into it.
    const MAX_LEN: usize = 2
        * (4 * 10
            + (1 + BOOT_ID_LEN)
            + (1 + SLOT_MAX)
            + (1 + VERSION_MAX)
            + 2 * (3 + BY_MAX)
            + 17
            + HISTORY_MAX * (2 * 10 + 1 + SLOT_MAX + 3 + BY_MAX)
            + 1
            + 13
            + FAULT_MAX);
}

/// What a boot knows of the end of the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// PID 1's crash record.
    pub crash: Option<String>,
    /// The kernel's panic, from pstore.
    pub panic: Option<String>,
    /// The watchdog says that it caused the last reset.
    pub watchdog: bool,
}

impl BootRecord {
    /// Begins the boot `boot_id` and closes the one before it. When this boot has begun already, it goes on: an end
    /// that was noted was none, but for a failed trial.
    ///
    /// What was written at the moment of the end (a crash, a panic) counts more than what was planned: an orderly
    /// shutdown that panics on its last step is a panic. A watchdog that ends an orderly reboot is a slow firmware.
    pub fn begin(&mut self, boot_id: &str, slot: &str, release: &str, evidence: Evidence) {
        if boot_id == self.boot_id && self.count > 0 {
            self.ended = self.ended.take().filter(|end| matches!(end, BootEnd::FailedTrial { .. }));
            return;
        }
        let ended = self.ended.take();
        let fault = evidence.crash.as_ref().or(evidence.panic.as_ref());
        if let Some(text) = fault {
            self.last_fault = Some(Fault { count: self.count, text: shortened(text, FAULT_MAX) });
        }
        if self.count > 0 {
            let ended = match (evidence, ended) {
                (Evidence { crash: Some(_), .. }, _) => BootEnd::Crash,
                (Evidence { panic: Some(_), .. }, _) => BootEnd::Panic,
                (_, Some(ended)) => ended,
                (Evidence { watchdog: true, .. }, None) => BootEnd::Watchdog,
                _ => BootEnd::PowerOrReset,
            };
            let slot = std::mem::take(&mut self.slot);
            self.history.push(BootEntry { count: self.count, slot, ran_s: self.ran_s, ended });
            let surplus = self.history.len().saturating_sub(HISTORY_MAX);
            self.history.drain(..surplus);
        }
        self.count = self.count.saturating_add(1);
        self.boot_id = shortened(boot_id, BOOT_ID_LEN);
        self.slot = shortened(slot, SLOT_MAX);
        self.release = shortened(release, VERSION_MAX);
        self.ran_s = 0;
    }

    /// Notes that this boot has run for `seconds`.
    pub fn ran(&mut self, seconds: u64) {
        self.ran_s = self.ran_s.max(seconds);
    }

    /// Notes that this boot ends in order after `seconds`.
    pub fn leave(&mut self, action: Action, by: &str, seconds: u64) {
        self.ran(seconds);
        self.end_as(BootEnd::Orderly { action, by: shortened(by, BY_MAX) });
    }

    /// Notes that this boot ends after `seconds` without waiting for anything, because `by` insists.
    pub fn forced(&mut self, by: &str, seconds: u64) {
        self.ran(seconds);
        self.end_as(BootEnd::Forced { by: shortened(by, BY_MAX) });
    }

    /// Notes after `seconds` that this boot is a trial that has failed, and `why`. However it ends then, that counts.
    pub fn failed_trial(&mut self, why: &str, seconds: u64) {
        self.ran(seconds);
        self.end_as(BootEnd::FailedTrial { why: shortened(why, BY_MAX) });
    }

    fn end_as(&mut self, end: BootEnd) {
        if !matches!(self.ended, Some(BootEnd::FailedTrial { .. })) {
            self.ended = Some(end);
        }
    }
}

/// How many of the boots of `history` (the oldest first) the watchdog ended within the last `window` of running
/// time, seen from `uptime` into the boot that follows them.
///
/// ```
/// use proto::boot::{BootEnd, BootEntry, watchdog_resets};
/// use std::time::Duration;
/// let reset = |ran_s| BootEntry { count: 1, slot: String::new(), ran_s, ended: BootEnd::Watchdog };
/// let minutes = |m: u64| Duration::from_secs(60 * m);
/// // The later reset was 2 minutes ago, the earlier one 2 + 7.
/// assert_eq!(watchdog_resets(&[reset(0), reset(420)], minutes(2), minutes(10)), 2);
/// assert_eq!(watchdog_resets(&[reset(0), reset(420)], minutes(4), minutes(10)), 1);
/// ```
pub fn watchdog_resets(history: &[BootEntry], uptime: Duration, window: Duration) -> u32 {
    let mut age = uptime;
    let mut resets = 0;
    for entry in history.iter().rev() {
        if age > window {
            break;
        }
        resets += u32::from(entry.ended == BootEnd::Watchdog);
        age = age.saturating_add(Duration::from_secs(entry.ran_s));
    }
    resets
}

/// The first `max` bytes of `text` at most, without half a character at the end.
fn shortened(text: &str, max: usize) -> String {
    let end = (0..=max.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{decode, encode};

    fn orderly(by: &str) -> BootEnd {
        BootEnd::Orderly { action: Action::Reboot, by: by.into() }
    }

    /// These bytes are what release 1 writes; they are never edited, a change of layout raises the version.
    #[test]
    fn golden_bytes() {
        let record = BootRecord {
            count: 300,
            boot_id: "b2".into(),
            slot: "A".into(),
            release: "0.1".into(),
            ran_s: 60,
            ended: Some(BootEnd::Orderly { action: Action::PowerOff, by: "u".into() }),
            wall_s: 5,
            machine_id: Some([7; 16]),
            history: vec![
                BootEntry { count: 1, slot: "".into(), ran_s: 9, ended: BootEnd::PowerOrReset },
                BootEntry { count: 2, slot: "B".into(), ran_s: 9, ended: BootEnd::Watchdog },
            ],
            last_fault: Some(Fault { count: 2, text: "x".into() }),
        };
        let mut bytes = vec![0x03, 0x04, 1, 0, 49, 0, 0, 0];
        bytes.extend(b"\xac\x02\x02b2\x01A\x030.1\x3c\x01\x01\x01\x01u\x05\x01");
        bytes.extend([7; 16]);
        bytes.extend(b"\x02\x01\x00\x09\x00\x02\x01B\x09\x04\x01\x02\x01x");
        assert_eq!(encode(&record), bytes);
        assert_eq!(decode(&bytes), Ok(record));
        let mut record = BootRecord::default();
        record.forced("u", 3);
        let mut trial = BootRecord::default();
        trial.failed_trial("w", 3);
        assert_eq!(encode(&record), b"\x03\x04\x01\0\x0d\0\0\0\0\0\0\0\x03\x01\x05\x01u\0\0\0\0");
        assert_eq!(encode(&trial), b"\x03\x04\x01\0\x0d\0\0\0\0\0\0\0\x03\x01\x06\x01w\0\0\0\0");
        trial.leave(Action::Reboot, "u", 4);
        trial.forced("u", 5);
        assert_eq!((trial.ended, trial.ran_s), (Some(BootEnd::FailedTrial { why: "w".into() }), 5));
    }

    #[test]
    fn the_end_of_a_boot_is_told_by_the_strongest_evidence() {
        let crash = Some("SIGSEGV".to_owned());
        let panic = Some("Kernel panic".to_owned());
        let forced = BootEnd::Forced { by: "keys".into() };
        let cases = [
            (Evidence::default(), None, BootEnd::PowerOrReset),
            (Evidence { watchdog: true, ..Evidence::default() }, None, BootEnd::Watchdog),
            (Evidence { watchdog: true, ..Evidence::default() }, Some(orderly("keel")), orderly("keel")),
            (Evidence::default(), Some(orderly("keel")), orderly("keel")),
            (Evidence { watchdog: true, ..Evidence::default() }, Some(forced.clone()), forced.clone()),
            (Evidence { panic: panic.clone(), ..Evidence::default() }, Some(orderly("keel")), BootEnd::Panic),
            (Evidence { panic: panic.clone(), watchdog: true, crash: None }, None, BootEnd::Panic),
            (Evidence { crash: crash.clone(), panic, watchdog: true }, None, BootEnd::Crash),
        ];
        for (evidence, ended, expected) in cases {
            let mut r =
                BootRecord { count: 4, boot_id: "four".into(), ended, ran_s: 7, ..BootRecord::default() };
            r.slot = "SLOT-A".into();
            let fault = evidence.crash.clone().or(evidence.panic.clone());
            r.begin("five", "SLOT-B", "0.2", evidence.clone());
            let last = BootEntry { count: 4, slot: "SLOT-A".into(), ran_s: 7, ended: expected };
            assert_eq!(r.history, [last], "{evidence:?}");
            assert_eq!(r.last_fault, fault.map(|text| Fault { count: 4, text }));
            assert_eq!((r.count, r.ran_s, r.ended, r.slot.as_str()), (5, 0, None, "SLOT-B"));
        }
    }

    #[test]
    fn one_boot_is_begun_once_and_the_first_has_no_past() {
        let mut r = BootRecord::default();
        r.begin("one", "", "", Evidence { watchdog: true, ..Evidence::default() });
        assert_eq!((r.count, r.history.len()), (1, 0));
        r.ran(60);
        r.ran(20);
        r.begin("one", "", "", Evidence::default());
        assert_eq!((r.count, r.history.len(), r.ran_s), (1, 0, 60));
        r.leave(Action::Reboot, "the console", 70);
        r.begin("one", "", "", Evidence::default());
        assert_eq!((r.count, r.ended.as_ref()), (1, None), "the rescue prompt was left with retry");
        let failed = BootEnd::FailedTrial { why: "w".into() };
        r.failed_trial("w", 80);
        r.begin("one", "", "", Evidence::default());
        assert_eq!(r.ended, Some(failed));
    }

    #[test]
    fn history_and_texts_are_bounded() {
        let mut r = BootRecord::default();
        for n in 0..100 {
            let crash = Some("é".repeat(FAULT_MAX));
            r.begin(
                &format!("{n:036}"),
                &"S".repeat(99),
                &"v".repeat(99),
                Evidence { crash, ..Evidence::default() },
            );
            r.leave(Action::Reboot, &"w".repeat(999), u64::MAX);
            r.count += u64::MAX / 200;
            (r.wall_s, r.machine_id) = (u64::MAX, Some([0xff; 16]));
        }
        assert_eq!(r.history.len(), HISTORY_MAX);
        assert!(r.history.windows(2).all(|w| w[0].count < w[1].count));
        assert!(encode(&r).len() <= 8 + BootRecord::MAX_LEN / 2, "{}", encode(&r).len());
    }

    #[test]
    fn resets_are_counted_in_running_time() {
        let entry =
            |ran_s, ended: &BootEnd| BootEntry { count: 0, slot: "".into(), ran_s, ended: ended.clone() };
        let (dog, power) = (&BootEnd::Watchdog, &BootEnd::PowerOrReset);
        let quick = vec![entry(0, dog); 3];
        let cases = [
            (vec![], 0, 0),
            (quick.clone(), 0, 3),
            (quick.clone(), 600, 3),
            (quick, 601, 0),
            // A power cut between two resets counts nothing and costs its time.
            (vec![entry(5, dog), entry(300, power), entry(0, dog)], 200, 2),
            (vec![entry(5, dog), entry(500, power), entry(0, dog)], 200, 1),
            (vec![entry(0, dog), entry(600, dog), entry(600, dog)], 1, 1),
            (vec![entry(u64::MAX, dog), entry(u64::MAX, dog)], 1, 1),
            // A slot whose trial failed says nothing about the committed one.
            (vec![entry(0, dog), entry(0, &BootEnd::FailedTrial { why: "".into() })], 1, 1),
        ];
        for (history, uptime, expected) in cases {
            let s = Duration::from_secs;
            assert_eq!(watchdog_resets(&history, s(uptime), s(600)), expected, "{history:?} {uptime}");
        }
    }
}
