//! What every step of init's life shares: its log, the watchdog, the signals, and waiting that feeds the one while
//! it watches the other.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::time::Time;

use crate::boot::memory::Memory;
use crate::devices::Devices;
use crate::events::Events;
use crate::klog::Log;
use crate::watchdog::{self, Watchdog};
use crate::{clock, sys};

/// The longest single wait: a lost wakeup costs at most this.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Log, watchdog, signals, what is remembered of the boots, and the drivers of devices.
pub(crate) struct Host {
    pub(crate) log: Log,
    pub(crate) watchdog: Option<Watchdog>,
    /// Shared, so that it can be polled while the host is used.
    pub(crate) signals: Option<Rc<SignalFd>>,
    pub(crate) memory: Memory,
    /// Once the root is there; only on a machine.
    pub(crate) devices: Option<Devices>,
}

impl Host {
    /// Blocks the signals init reacts to and opens the descriptor they are read from.
    pub(crate) fn new() -> Host {
        sys::child::begin_with_default_signals();
        let mut log = Log::default();
        let mask: SigSet = [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGPWR,
            Signal::SIGHUP,
            Signal::SIGPIPE,
        ]
        .into_iter()
        .collect();
        let open = || SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        let signals = match mask.thread_block().and_then(|()| open()) {
            Ok(fd) => Some(Rc::new(fd)),
            Err(errno) => {
                log.error(format_args!("cannot receive signals: {}", errno.desc()));
                None
            }
        };
        Host { log, watchdog: None, signals, memory: Memory::default(), devices: None }
    }

    /// Feeds `watchdog` from now on. The one before, a software one, is disarmed.
    pub(crate) fn use_watchdog(&mut self, watchdog: Watchdog) {
        let info = watchdog.info();
        self.log.info(format_args!(
            "watchdog: {}, {} s, boot status {}",
            info.identity, info.timeout_s, info.boot_status
        ));
        let others = watchdog::others(info);
        if !others.is_empty() {
            self.log.info(format_args!("watchdogs left alone: {others}"));
        }
        if let Some(Err(error)) = self.watchdog.replace(watchdog).map(Watchdog::disarm) {
            self.log.warn(format_args!("cannot disarm the watchdog: {}", sys::errno_text(&error)));
        }
    }

    /// Takes in what the kernel says about devices, and has modules loaded for them.
    pub(crate) fn serve_devices(&mut self) {
        if let Some(devices) = &mut self.devices {
            devices.turn(clock::now(), &mut self.log);
        }
    }

    /// Feeds the watchdog when it is time.
    pub(crate) fn feed(&mut self) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if let Err(error) = watchdog.feed_if_due(clock::now()) {
            self.log.error(format_args!("cannot feed the watchdog: {}", sys::errno_text(&error)));
        }
    }

    /// Waits until one of `fds` is readable or `until` has come, feeding the watchdog and serving devices meanwhile:
    /// what is waited for, a disk or a keyboard, may be such a device.
    ///
    /// Returns which of `fds` have something to read (or a hang-up to see), in their order.
    pub(crate) fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Time>) -> Vec<bool> {
        loop {
            self.serve_devices();
            let devices = self.devices.as_ref().and_then(Devices::next_wakeup);
            let wait = self.next_wait(until.into_iter().chain(devices).min());
            let more = self.devices.iter().flat_map(Devices::fds);
            let all = fds.iter().copied().chain(more);
            let mut polled: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // EINTR finds nothing ready, which is true.
            let _ = poll(&mut polled, wait);
            let ready: Vec<_> = polled.iter().take(fds.len()).map(|p| p.any().unwrap_or(false)).collect();
            if ready.contains(&true) || until.is_some_and(|t| clock::now() >= t) {
                self.feed();
                return ready;
            }
        }
    }

    /// The same for a set of descriptors that is kept. The events are in `events` afterwards.
    pub(crate) fn wait_for(&mut self, events: &mut Events, until: Option<Time>) {
        loop {
            let wait = self.next_wait(until);
            if events.wait(wait) > 0 || until.is_some_and(|t| clock::now() >= t) {
                return self.feed();
            }
        }
    }

    /// Feeds the watchdog and tells in milliseconds how long the next single wait may be.
    fn next_wait(&mut self, until: Option<Time>) -> u16 {
        self.feed();
        let feed = self.watchdog.as_ref().map(Watchdog::due);
        let next = until.into_iter().chain(feed).min();
        let wait = next.map_or(WAIT_MAX, |t| t.since(clock::now())).min(WAIT_MAX);
        // Rounded up, so that a wait never ends just before its deadline and spins.
        u16::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX)
    }

    /// Waits without an event to wait for. Nothing in the kernel tells when a device has settled, for example.
    pub(crate) fn pause(&mut self, time: Duration) {
        self.wait(&[], Some(clock::now() + time));
    }

    /// The next signal that has arrived. Each blocked signal is pending at most once, so that asking again ends.
    pub(crate) fn take_signal(&mut self) -> Option<Signal> {
        let info = self.signals.as_ref()?.read_signal().ok()??;
        i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok())
    }
}
