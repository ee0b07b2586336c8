//! Carries out what [`Watch`](super::rules::Watch) decides.

use nix::sys::signal::Signal;

use super::rules::{Order, RECORD_MAX};
use crate::boot::attempt::Attempt;
use crate::clock;
use crate::events::Source;
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
                    self.host.log.error(format_args!("the trial has failed: {reason}"));
                    self.begin_recording(&reason);
                }
                Order::Withhold => self.withhold(),
            }
        }
    }

    /// Has a child write the reason to the disk; PID 1 goes on meanwhile.
    fn begin_recording(&mut self, reason: &str) {
        let begun = self.host.memory.record_failed_trial(reason);
        self.await_recording(begun);
    }

    /// Waits for a child that was begun, here or by the program before.
    pub(crate) fn await_recording(&mut self, begun: Result<Attempt, String>) {
        let awaited = begun.and_then(|attempt| match self.events.add(attempt.fd(), Source::Recording) {
            Ok(()) => Ok(attempt),
            Err(errno) => {
                attempt.give_up();
                Err(format!("cannot wait for it: {}", errno.desc()))
            }
        });
        match awaited {
            Ok(attempt) => self.recording = Some(attempt),
            Err(why) => self.recorded(Err(why)),
        }
    }

    /// The child has answered, or ended.
    pub(crate) fn finish_recording(&mut self) {
        let Some(attempt) = self.recording.take() else { return };
        self.events.remove(attempt.fd());
        self.recorded(attempt.finish().map(drop));
    }

    /// Nothing more is to be waited for, whether it is on the disk or not.
    fn recorded(&mut self, result: Result<(), String>) {
        if let Err(why) = result {
            self.host.log.error(format_args!("why the trial has failed is not recorded: {why}"));
        }
        self.watch.recorded();
    }

    fn withhold(&mut self) {
        if let Some(attempt) = self.recording.take() {
            self.events.remove(attempt.fd());
            attempt.give_up();
            let seconds = RECORD_MAX.as_secs();
            self.host.log.error(format_args!(
                "why the trial has failed is not recorded: no answer within {seconds} s"
            ));
        }
        match &mut self.host.watchdog {
            Some(watchdog) => {
                watchdog.withhold();
                self.watchdog_search = None;
                self.host
                    .log
                    .error(format_args!("the watchdog is not fed any more, the other slot comes next"));
            }
            None => self.begin_shutdown(End::Reboot, "the failed trial, without a watchdog"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::memory::Memory;
    use crate::boot::testdir::TestDir;
    use crate::host::Host;
    use crate::manager::testing::the_only_manager;
    use crate::manager::{Setup, Tools};
    use crate::service::cgroup::Cgroups;
    use crate::watch::rules::Boot;
    use crate::watchdog::Watchdog;
    use nix::fcntl::{Flock, FlockArg};
    use proto::boot::{BootEnd, BootRecord};
    use std::fs::{self, File};
    use std::time::Duration;
    use store::Record;

    const REASON: &str = "netd made no progress for 1 s of the trial";

    /// A trial with a netd that falls silent once it is ready, until the watchdog is withheld; what the log says, and
    /// how many milliseconds the failed trial was still fed.
    fn fail_a_trial(memory: Memory) -> (String, u64) {
        let _alone = the_only_manager();
        let dir = TestDir::new();
        let silent = "command = ['/bin/sh', '-c', 'echo >&$NOTIFY_FD; exec sleep 1000']\nready = 'notify'\nwatchdog_s = 1\n";
        fs::write(dir.path().join("netd.toml"), silent).unwrap();
        let setup = Setup {
            run: dir.path().to_owned(),
            services: dir.path().to_owned(),
            logs: None,
            cgroups: Cgroups::none(),
            watchdog_search: None,
            boot: Boot { trial: true, resets: 0 },
            recovery: None,
            state_device: None,
            machine: true,
        };
        let mut host = Host::new();
        host.memory = memory;
        host.watchdog = Some(Watchdog::of_null(30));
        let mut manager = Manager::new(host, Tools::open().unwrap(), setup);
        manager.begin();
        let until = clock::now() + Duration::from_secs(30);
        while !manager.host.watchdog.as_ref().unwrap().is_withheld() {
            assert!(clock::now() < until, "the watchdog is still fed");
            manager.turn();
        }
        let id = manager.supervisor.find("netd").unwrap();
        manager.signal(id, Signal::SIGKILL);
        let lines = manager.host.log.ring.last(usize::MAX);
        let at = |text: &str| lines.iter().find(|l| l.text.contains(text)).unwrap().at_ms;
        let fed_ms = at("not fed any more") - at("the trial has failed");
        (lines.into_iter().map(|l| l.text + "\n").collect(), fed_ms)
    }

    #[test]
    fn a_failed_trial_is_on_the_disk_before_the_watchdog_is_withheld() {
        let state = TestDir::new();
        let (said, _) = fail_a_trial(Memory::in_directory(state.path()));
        assert!(said.contains(&format!("the trial has failed: {REASON}")), "{said}");
        assert!(!said.contains("not recorded"), "{said}");
        let record = Record::<BootRecord>::open(&state.path().join("boot")).unwrap().unwrap();
        assert_eq!(record.get().ended, Some(BootEnd::FailedTrial { why: REASON.to_owned() }));
    }

    #[test]
    fn a_trial_whose_end_cannot_be_recorded_fails_all_the_same() {
        let state = TestDir::new();
        let (said, fed_ms) = fail_a_trial(Memory::in_directory(&state.path().join("nowhere")));
        assert!(fed_ms < 1000, "there is nothing to wait for: {fed_ms}");
        assert!(said.contains("is not recorded: ") && said.contains("No such file"), "{said}");
        assert!(fail_a_trial(Memory::default()).0.contains("is not recorded: this boot has no record"));
    }

    #[test]
    fn a_disk_that_does_not_answer_delays_the_withholding_no_longer_than_its_limit() {
        let state = TestDir::new();
        // As a child that hangs in the disk holds it.
        let turn = Flock::lock(File::open(state.path()).unwrap(), FlockArg::LockExclusive).unwrap();
        let (said, fed_ms) = fail_a_trial(Memory::in_directory(state.path()));
        // The limit begins a moment before the first line is written, and both times are cut to milliseconds.
        assert!((1900..10_000).contains(&fed_ms), "{fed_ms}");
        assert!(said.contains("is not recorded: no answer within 2 s"), "{said}");
        drop(turn);
        assert!(!state.path().join("boot").exists());
    }
}
