//! What every step of init's life shares: its log, the watchdog, the signals, and waiting that feeds the one while
//! it watches the other.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::time::Time;

use crate::clock;
use crate::klog::Log;
use crate::watchdog::Watchdog;

/// The longest single wait: a clock step or a lost wakeup costs at most this.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Log, watchdog and signals.
pub(crate) struct Host {
    pub(crate) log: Log,
    pub(crate) watchdog: Option<Watchdog>,
    /// Shared, so that it can be polled while the host is used.
    pub(crate) signals: Option<Rc<SignalFd>>,
}

impl Host {
    /// Blocks the signals init reacts to and opens the descriptor they are read from.
    pub(crate) fn new() -> Host {
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
        Host { log, watchdog: None, signals }
    }

    /// Feeds the watchdog when it is time.
    pub(crate) fn feed(&mut self) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if let Err(error) = watchdog.feed_if_due(clock::now()) {
            self.log.error(format_args!("cannot feed the watchdog: {}", crate::sys::errno_text(&error)));
        }
    }

    /// Waits until one of `fds` is readable or `until` has come, feeding the watchdog meanwhile.
    ///
    /// Returns which of `fds` have something to read (or a hang-up to see), in their order.
    pub(crate) fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Time>) -> Vec<bool> {
        loop {
            self.feed();
            let now = clock::now();
            let feed = self.watchdog.as_ref().map(Watchdog::due);
            let next = until.into_iter().chain(feed).min();
            let wait = next.map_or(WAIT_MAX, |t| t.since(now)).min(WAIT_MAX);
            let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            let ready = poll(&mut polled, timeout(wait)).unwrap_or(0);
            let past = until.is_some_and(|t| clock::now() >= t);
            if ready > 0 || past {
                self.feed();
                return polled.iter().map(|p| p.any().unwrap_or(false)).collect();
            }
        }
    }

    /// Waits without an event to wait for. Nothing in the kernel tells when a device has settled, for example.
    pub(crate) fn pause(&mut self, time: Duration) {
        self.wait(&[], Some(clock::now() + time));
    }

    /// The signals that have arrived since the last call.
    pub(crate) fn take_signals(&mut self) -> Vec<Signal> {
        let mut taken = Vec::new();
        let Some(fd) = &self.signals else { return taken };
        // Each blocked signal is pending at most once, so that the loop ends.
        while let Ok(Some(info)) = fd.read_signal() {
            if let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok()) {
                taken.push(signal);
            }
            if taken.len() >= 64 {
                break;
            }
        }
        taken
    }
}

/// Rounds up, so that a wait never ends just before its deadline and spins.
fn timeout(wait: Duration) -> PollTimeout {
    let millis = wait.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(u32::try_from(millis).unwrap_or(u32::MAX)).unwrap_or(PollTimeout::MAX)
}
