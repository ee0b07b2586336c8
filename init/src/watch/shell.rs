//! Carries out what [`Watch`](super::rules::Watch) decides.

use nix::sys::signal::Signal;

use super::rules::Order;
use crate::clock;
use crate::manager::Manager;
use crate::shutdown::End;

impl Manager {
    /// Does what is due about progress, and looks for a watchdog that has come late.
    pub(crate) fn watch_timeout(&mut self) {
        if let Some(search) = &mut self.watchdog_search
            && let Some(found) = search.look(clock::now(), self.host.watchdog.as_ref())
        {
            self.host.use_watchdog(found);
        }
        while let Some(order) = self.watch.next_order(clock::now()) {
            match order {
                Order::Kill { service, silent } => {
                    self.signal(service, Signal::SIGKILL);
                    let name = self.supervisor.unit(service).map_or("", |u| u.name.as_str());
                    let seconds = silent.as_secs();
                    self.host.log.warn(format_args!("{name}: no sign of life for {seconds} s, killing it"));
                }
                Order::Record(reason) => {
                    self.host.log.error(format_args!(
                        "trial: {reason}; the watchdog is not fed any more, the other slot comes next"
                    ));
                    // Said to the kernel's log, which is at once. What takes longer has RECORD_MAX for it.
                    self.watch.recorded();
                }
                Order::Withhold => match &mut self.host.watchdog {
                    Some(watchdog) => {
                        watchdog.withhold();
                        self.watchdog_search = None;
                    }
                    None => self.begin_shutdown(End::Reboot, "the failed trial, without a watchdog"),
                },
            }
        }
    }
}
