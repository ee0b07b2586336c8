//! The hardware watchdog: taken over early, fed from whatever loop init is in.
//!
//! The boot loader may have started it long before the kernel, so the time left is unknown: opening and feeding it
//! is among the first things init does. It is disarmed in one case only, an orderly power-off.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use proto::control::WatchdogInfo;
use proto::time::Time;

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

/// An open watchdog. Dropping it leaves the timer running.
pub(crate) struct Watchdog {
    device: File,
    info: WatchdogInfo,
    /// When to feed it next.
    due: Time,
}

impl Watchdog {
    /// Opens the machine's watchdog, feeds it and asks for `timeout_s`.
    ///
    /// # Errors
    /// There is none, or another program holds it.
    pub(crate) fn open(now: Time, timeout_s: u32) -> io::Result<Watchdog> {
        let device = OpenOptions::new().write(true).open(preferred())?;
        sys::watchdog::feed(&device)?;
        let identity = sys::watchdog::identity(&device).unwrap_or_default();
        // Hardware with a fixed timeout refuses the request: then its own one counts.
        let timeout_s = sys::watchdog::set_timeout(&device, timeout_s)
            .or_else(|_| sys::watchdog::timeout(&device))
            .unwrap_or(timeout_s)
            .max(1);
        let boot_status = sys::watchdog::boot_status(&device).unwrap_or(0);
        let info = WatchdogInfo { identity, timeout_s, boot_status };
        Ok(Watchdog { device, info, due: now })
    }

    /// One that another program opened.
    pub(crate) fn resume(device: OwnedFd, saved: &state::Watchdog) -> Watchdog {
        Watchdog { device: device.into(), info: saved.info.clone(), due: saved.due }
    }

    /// What another program needs to go on.
    pub(crate) fn save(&self) -> state::Watchdog {
        state::Watchdog { device: self.device.as_raw_fd(), info: self.info.clone(), due: self.due }
    }

    /// What the driver says of itself.
    pub(crate) fn info(&self) -> &WatchdogInfo {
        &self.info
    }

    /// When [`Watchdog::feed_if_due`] is due next.
    pub(crate) fn due(&self) -> Time {
        self.due
    }

    /// Feeds it when a quarter of its timeout has passed.
    pub(crate) fn feed_if_due(&mut self, now: Time) -> io::Result<()> {
        if now < self.due {
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

    /// Disarms it: the machine is about to be switched off on purpose.
    pub(crate) fn disarm(mut self) -> io::Result<()> {
        // The "magic close": drivers stop the timer only if the last byte before the close was this one.
        self.device.write_all(b"V")
    }
}

/// The device node of the first hardware watchdog, else of any.
fn preferred() -> PathBuf {
    let mut hardware: Vec<_> = std::fs::read_dir("/sys/class/watchdog")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| {
            std::fs::read_to_string(e.path().join("identity")).is_ok_and(|name| name.trim() != SOFTWARE)
        })
        .map(|e| e.file_name())
        .collect();
    hardware.sort();
    match hardware.into_iter().next() {
        Some(name) => PathBuf::from("/dev").join(name),
        None => PathBuf::from("/dev/watchdog"),
    }
}
