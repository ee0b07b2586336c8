//! What every step of init's life shares: its log, the watchdog, the signals, and waiting that feeds the one while
//! it watches the other.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::time::Time;

use crate::boot::memory::Memory;
use crate::ctrl_alt_del::{Asked, PRESSES, Presses, WITHIN};
use crate::devices::Devices;
use crate::events::Events;
use crate::klog::Log;
use crate::watchdog::{self, Watchdog};
use crate::{clock, sys};

/// The longest single wait: a lost wakeup costs at most this.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Log, watchdog, signals, Ctrl-Alt-Del, what is remembered of the boots, and the drivers of devices.
pub(crate) struct Host {
    pub(crate) log: Log,
    pub(crate) watchdog: Option<Watchdog>,
    /// Shared, so that it can be polled while the host is used.
    pub(crate) signals: Option<Rc<SignalFd>>,
    pub(crate) memory: Memory,
    /// Once the root is there; only on a machine.
    pub(crate) devices: Option<Devices>,
    /// SIGINT has a descriptor of its own: it must be heard where nobody has time for the other signals.
    pub(crate) ctrl_alt_del: Option<Rc<SignalFd>>,
    presses: Presses,
    /// The strongest that was asked for and not taken yet.
    asked: Asked,
    /// What a forced restart is, where one cannot be left to the caller: inside of a wait. `None` where waiting is
    /// not for the machine.
    pub(crate) at_force: Option<fn(&mut Host) -> !>,
}

impl Host {
    /// Blocks the signals init reacts to and opens the descriptor they are read from.
    pub(crate) fn new() -> Host {
        sys::child::begin_with_default_signals();
        let mut log = Log::default();
        let mask: SigSet =
            [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGPWR, Signal::SIGHUP, Signal::SIGPIPE]
                .into_iter()
                .collect();
        let keys: SigSet = [Signal::SIGINT].into_iter().collect();
        // At one stroke: what another program of this process left pending must not get through.
        let blocked = mask.into_iter().chain(&keys).collect::<SigSet>().thread_set_mask();
        let mut receive = |mask: SigSet| {
            let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
            blocked
                .and_then(|()| SignalFd::with_flags(&mask, flags))
                .inspect_err(|errno| log.error(format_args!("cannot receive signals: {}", errno.desc())))
                .map(Rc::new)
                .ok()
        };
        let signals = receive(mask);
        let ctrl_alt_del = receive(keys);
        Host {
            log,
            watchdog: None,
            signals,
            memory: Memory::default(),
            devices: None,
            ctrl_alt_del,
            presses: Presses::default(),
            asked: Asked::Nothing,
            at_force: None,
        }
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
    /// Returns which of `fds` have something to read (or a hang-up to see), in their order. Ctrl-Alt-Del does not end
    /// the wait: it is remembered for [`Host::take_asked`], or forces a restart from here.
    pub(crate) fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Time>) -> Vec<bool> {
        let keys = self.ctrl_alt_del.clone();
        loop {
            self.serve_devices();
            let devices = self.devices.as_ref().and_then(Devices::next_wakeup);
            let wait = self.next_wait(until.into_iter().chain(devices).min());
            let more = keys.iter().map(|fd| fd.as_fd()).chain(self.devices.iter().flat_map(Devices::fds));
            let all = fds.iter().copied().chain(more);
            let mut polled: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // EINTR finds nothing ready, which is true.
            let _ = poll(&mut polled, wait);
            let ready: Vec<_> = polled.iter().take(fds.len()).map(|p| p.any().unwrap_or(false)).collect();
            self.hear_ctrl_alt_del();
            if self.asked == Asked::AtOnce
                && let Some(restart) = self.at_force.take()
            {
                restart(self);
            }
            if ready.contains(&true) || until.is_some_and(|t| clock::now() >= t) {
                self.feed();
                return ready;
            }
        }
    }

    /// What Ctrl-Alt-Del has asked for since the last call, the strongest.
    pub(crate) fn take_asked(&mut self) -> Asked {
        self.hear_ctrl_alt_del();
        std::mem::take(&mut self.asked)
    }

    fn hear_ctrl_alt_del(&mut self) {
        let Some(keys) = self.ctrl_alt_del.clone() else { return };
        // A blocked signal is pending at most once, so that reading ends.
        while let Ok(Some(_)) = keys.read_signal() {
            let asked = self.presses.pressed(clock::now());
            match asked {
                Asked::AtOnce => {
                    self.log.error(format_args!(
                        "Ctrl-Alt-Del {PRESSES} times within {} s: restarting at once",
                        WITHIN.as_secs()
                    ));
                    self.memory.insisted_on_by("Ctrl-Alt-Del");
                }
                Asked::InOrder | Asked::Nothing => self.log.warn(format_args!(
                    "Ctrl-Alt-Del: a restart in order comes next; {PRESSES} times within {} s force one",
                    WITHIN.as_secs()
                )),
            }
            self.asked = self.asked.max(asked);
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
        clock::poll_ms(wait)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::attempt::attempt;
    use nix::sys::signal::raise;

    fn press() {
        raise(Signal::SIGINT).unwrap();
    }

    #[test]
    fn ctrl_alt_del_during_a_step_of_the_boot_is_not_lost() {
        let mut host = Host::new();
        assert_eq!(host.take_asked(), Asked::Nothing);
        press();
        let done = attempt(&mut host, Duration::from_secs(30), || Ok("done".to_owned()));
        assert_eq!(done.as_deref(), Ok("done"), "the step goes on");
        assert_eq!(host.take_asked(), Asked::InOrder);
        assert_eq!(host.take_asked(), Asked::Nothing, "asked once");
        press();
        drop(host);
        let mut next = Host::new();
        assert_eq!(next.take_asked(), Asked::InOrder, "the next program reads what this one did not");
    }

    #[test]
    #[should_panic(expected = "restarted by \"Ctrl-Alt-Del\"")]
    fn seven_presses_do_not_wait_for_the_end_of_a_step() {
        let mut host = Host::new();
        host.at_force = Some(|host| panic!("restarted by {:?}", host.memory.who_asked()));
        let far = clock::now() + Duration::from_secs(30);
        for _ in 0..PRESSES {
            press();
            // Read one by one: two that are pending are one.
            host.wait(&[], Some(clock::now()));
        }
        host.wait(&[], Some(far));
    }
}
