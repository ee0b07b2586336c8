//! The hardware watchdog: taken over early, fed from whatever loop init is in.
//!
//! The boot loader may have started it long before the kernel, so the time left is unknown: opening and feeding it
//! is among the first things init does. It is disarmed in one case only, an orderly power-off.
//!
//! ```text
//! Open --withhold--> Withheld, for ever        none, or the software one: Search --a hardware one shows--> Open
//! ```
//! The loader may have locked the hardware one on while its driver, or the bus it sits on, comes late: then the
//! machine is reset unless init finds it in time. [`Search`] looks again for as long as that can matter. Of two
//! watchdogs the hardware one is fed and the other is not even opened.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use proto::control::WatchdogInfo;
use proto::time::Time;
use serde::{Deserialize, Serialize};

use crate::reexec::state;
use crate::sys;

/// Seconds without feeding after which the machine is reset, unless `evenkeel.watchdog=` says otherwise.
pub(crate) const TIMEOUT_DEFAULT_S: u32 = 30;
/// Bounds of `evenkeel.watchdog=`: below 4 s a busy machine is reset for nothing.
pub(crate) const TIMEOUT_RANGE_S: std::ops::RangeInclusive<u32> = 4..=3600;
/// What a reboot may take between init's last feeding and the firmware's takeover, in seconds.
const REBOOT_MARGIN_S: u32 = 60;
/// Feedings per timeout: three may be lost.
const FEEDS_PER_TIMEOUT: u32 = 4;
/// The softdog driver's name: it shares the kernel's fate, so any other one is preferred.
const SOFTWARE: &str = "Software Watchdog";
/// How often a missing watchdog is looked for, and how many times in all: ten minutes, a bus that settles later than
/// that is not part of this machine's boot. Looking is one read of a directory in memory.
const SEARCH_EVERY: Duration = Duration::from_secs(2);
const SEARCHES_MAX: u32 = 300;
/// Far enough ahead to be never.
const NEVER: Time = Time::from_nanos(u64::MAX);

/// An open watchdog. Dropping it leaves the timer running.
pub(crate) struct Watchdog {
    device: File,
    info: WatchdogInfo,
    /// When to feed it next.
    due: Time,
    withheld: bool,
}

impl Watchdog {
    /// Opens the machine's watchdog, a hardware one before the software one, feeds it and asks for `timeout_s`.
    ///
    /// # Errors
    /// There is none, or other programs hold them: the reason of the one that is preferred.
    pub(crate) fn open(now: Time, timeout_s: u32) -> io::Result<Watchdog> {
        let mut refusal = None;
        for candidate in candidates(Path::new("/sys/class/watchdog")) {
            match Watchdog::open_one(now, timeout_s, &candidate) {
                Ok(watchdog) => return Ok(watchdog),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
    }

    fn open_one(now: Time, timeout_s: u32, candidate: &Candidate) -> io::Result<Watchdog> {
        let device = OpenOptions::new().write(true).open(Path::new("/dev").join(&candidate.name))?;
        sys::watchdog::feed(&device)?;
        let identity = sys::watchdog::identity(&device).unwrap_or_default();
        // Hardware with a fixed timeout refuses the request: then its own one counts.
        let timeout_s = sys::watchdog::set_timeout(&device, timeout_s)
            .or_else(|_| sys::watchdog::timeout(&device))
            .unwrap_or(timeout_s)
            .max(1);
        let boot_status = sys::watchdog::boot_status(&device).unwrap_or(0);
        let info = WatchdogInfo { identity, timeout_s, boot_status };
        Ok(Watchdog { device, info, due: now, withheld: false })
    }

    /// One that another program opened.
    pub(crate) fn resume(device: OwnedFd, saved: &state::Watchdog) -> Watchdog {
        Watchdog { device: device.into(), info: saved.info.clone(), due: saved.due, withheld: saved.withheld }
    }

    /// What another program needs to go on.
    pub(crate) fn save(&self) -> state::Watchdog {
        let (info, device) = (self.info.clone(), self.device.as_raw_fd());
        state::Watchdog { device, info, due: self.due, withheld: self.withheld }
    }

    /// What the driver says of itself.
    pub(crate) fn info(&self) -> &WatchdogInfo {
        &self.info
    }

    fn is_software(&self) -> bool {
        self.info.identity == SOFTWARE
    }

    /// When [`Watchdog::feed_if_due`] is due next.
    pub(crate) fn due(&self) -> Time {
        if self.withheld { NEVER } else { self.due }
    }

    /// Stops feeding it, for ever: its timeout resets the machine.
    pub(crate) fn withhold(&mut self) {
        self.withheld = true;
    }

    /// Whether it is not fed any more.
    #[cfg(test)]
    pub(crate) fn is_withheld(&self) -> bool {
        self.withheld
    }

    /// A device that no ioctl reaches.
    #[cfg(test)]
    pub(crate) fn of_null(timeout_s: u32) -> Watchdog {
        let device = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let info = WatchdogInfo { identity: "null".to_owned(), timeout_s, boot_status: 0 };
        Watchdog { device, info, due: Time::ZERO, withheld: false }
    }

    /// Feeds it when a quarter of its timeout has passed.
    pub(crate) fn feed_if_due(&mut self, now: Time) -> io::Result<()> {
        if now < self.due() {
            return Ok(());
        }
        self.due = now + Duration::from_secs(self.info.timeout_s.into()) / FEEDS_PER_TIMEOUT;
        sys::watchdog::feed(&self.device)
    }

    /// Leaves it armed for the way into the firmware: a reboot that hangs is reset.
    pub(crate) fn arm_for_reboot(&self) -> io::Result<()> {
        sys::watchdog::set_timeout(&self.device, self.info.timeout_s.max(REBOOT_MARGIN_S))?;
        sys::watchdog::feed(&self.device)
    }

    /// Disarms it: the machine is about to be switched off on purpose, or a better one has been found.
    pub(crate) fn disarm(mut self) -> io::Result<()> {
        // The "magic close": drivers stop the timer only if the last byte before the close was this one.
        self.device.write_all(b"V")
    }
}

/// Looks for a watchdog that was not there at boot. It goes along when another program takes over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Search {
    next: Time,
    left: u32,
    timeout_s: u32,
}

impl Search {
    /// Begins at `now`, just after a look; what it finds is asked for `timeout_s`.
    pub(crate) fn new(now: Time, timeout_s: u32) -> Search {
        Search { next: now + SEARCH_EVERY, left: SEARCHES_MAX, timeout_s }
    }

    /// When to look next; `None` when there was time enough.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        (self.left > 0).then_some(self.next)
    }

    /// Looks when it is time. Returns a watchdog that is to be fed instead of `fed`.
    pub(crate) fn look(&mut self, now: Time, fed: Option<&Watchdog>) -> Option<Watchdog> {
        (self.is_due(now, fed) && better_than(fed))
            .then(|| Watchdog::open(now, self.timeout_s).ok())
            .flatten()
    }

    /// Whether to look now, given what init feeds. A hardware watchdog ends the search.
    fn is_due(&mut self, now: Time, fed: Option<&Watchdog>) -> bool {
        if self.left == 0 || self.next > now {
            return false;
        }
        self.next = now + SEARCH_EVERY;
        self.left = if fed.is_some_and(|w| !w.is_software()) { 0 } else { self.left - 1 };
        self.left > 0
    }
}

/// Whether there is a hardware watchdog for a machine that feeds the software one, or any for one that feeds none.
fn better_than(fed: Option<&Watchdog>) -> bool {
    let found = candidates(Path::new("/sys/class/watchdog"));
    found.iter().any(|candidate| fed.is_none_or(|w| w.is_software() && !candidate.software))
}

/// The names of the watchdogs that are not `info`'s, for people.
pub(crate) fn others(info: &WatchdogInfo) -> String {
    let found = candidates(Path::new("/sys/class/watchdog"));
    let names: Vec<_> =
        found.into_iter().map(|c| c.identity).filter(|identity| *identity != info.identity).collect();
    names.join(", ")
}

/// A watchdog of the kernel's list.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    /// Its node below `/dev`.
    name: OsString,
    identity: String,
    software: bool,
}

/// Every watchdog below `class`, the hardware ones first, in name order.
fn candidates(class: &Path) -> Vec<Candidate> {
    let read = |entry: std::fs::DirEntry| {
        let identity = std::fs::read_to_string(entry.path().join("identity")).ok()?.trim().to_owned();
        Some(Candidate { name: entry.file_name(), software: identity == SOFTWARE, identity })
    };
    let mut found: Vec<_> =
        std::fs::read_dir(class).into_iter().flatten().flatten().filter_map(read).collect();
    found.sort_by(|a, b| (a.software, &a.name).cmp(&(b.software, &b.name)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn the_hardware_watchdog_comes_first() {
        let class = std::env::temp_dir().join(format!("evenkeel-watchdogs-{}", std::process::id()));
        for (name, identity) in
            [("watchdog0", "Software Watchdog\n"), ("watchdog1", "i6300ESB timer\n"), ("watchdog2", "iTCO\n")]
        {
            std::fs::create_dir_all(class.join(name)).unwrap();
            std::fs::write(class.join(name).join("identity"), identity).unwrap();
        }
        let names: Vec<_> = candidates(&class).into_iter().map(|c| (c.identity, c.software)).collect();
        std::fs::remove_dir_all(&class).unwrap();
        let expected =
            [("i6300ESB timer", false), ("iTCO", false), (SOFTWARE, true)].map(|(n, s)| (n.to_owned(), s));
        assert_eq!(names, expected);
        assert_eq!(candidates(&class), [], "no directory, no watchdog");
    }

    fn watchdog(software: bool) -> Watchdog {
        let mut watchdog = Watchdog::of_null(30);
        watchdog.info.identity = if software { SOFTWARE } else { "i6300ESB timer" }.to_owned();
        watchdog
    }

    #[test]
    fn a_withheld_one_is_never_fed_again() {
        let mut w = watchdog(false);
        // /dev/null knows no watchdog's ioctl: an error is an attempt to feed.
        assert!(w.feed_if_due(at(1)).is_err());
        w.withhold();
        assert_eq!(w.due(), NEVER);
        assert!(w.feed_if_due(at(1_000_000)).is_ok());
    }

    #[test]
    fn the_search_ends_with_hardware_or_after_its_time() {
        let mut s = Search::new(at(0), 30);
        assert_eq!((s.is_due(at(1), None), s.next_wakeup()), (false, Some(at(2))));
        assert!(s.is_due(at(2), None));
        assert!(s.is_due(at(4), Some(&watchdog(true))), "a hardware one may still come");
        assert!(!s.is_due(at(6), Some(&watchdog(false))));
        assert_eq!(s.next_wakeup(), None);
        let mut s = Search::new(at(0), 30);
        let looks = (1..10_000).filter(|t| s.is_due(at(*t), None)).count();
        assert_eq!((looks, s.next_wakeup()), (SEARCHES_MAX as usize - 1, None));
    }
}
