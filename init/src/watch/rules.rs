//! When a service is late, when the watchdog is not fed any more, when the machine runs degraded. Pure.
//!
//! ```text
//!            end of trial
//! Trial -------------------> Committed        too many resets: Degraded, from the beginning
//!   |
//!   | netd or provisiond makes no progress
//!   v
//! Recording(reason) --recorded, or RECORD_MAX passed--> Withheld --the watchdog's timeout--> reset, other slot
//! ```
//! - *On every boot* a service with `watchdog_s` must write a line at least that often once it is ready. A late one is
//!   killed; the supervisor starts it again.
//! - *On a trial* the node proves that the new system can do its work: when [`NEEDED`] services make no progress, the
//!   hardware ends the trial and the loader turns to the other slot. A service that is killed and comes back does
//!   not take that back: a trial fails once. The reason is recorded before the feeding ends, because nobody will be
//!   there to tell it afterwards.
//! - *On a committed slot* there is no other slot to turn to: the watchdog is fed while init itself is alive. Init or
//!   the kernel may still hang. After [`RESETS_MAX`] resets within ten running minutes netd and provisiond are not
//!   started: the node holds no address, stays where it is, and a person can look at it.
//!
//! Another program that takes over as PID 1 goes on by the same instants ([`Saved`]): nobody gets more time by it.
//!
//! It does not judge whether a trial is good, only whether it is alive; committing is provisiond's business.

use std::time::Duration;

use proto::control::{WatchInfo, WatchRow, WatchState};
use proto::time::Time;
use serde::{Deserialize, Serialize};

use crate::service::ServiceId;

/// The services a trial cannot do without, and a degraded node does not start.
pub(crate) const NEEDED: [&str; 2] = ["netd", "provisiond"];
/// Watchdog resets within the last ten running minutes that make a committed slot run degraded.
pub(crate) const RESETS_MAX: u32 = 3;
/// How long a needed service may take to become ready on a trial, from the start of the services or its last end.
/// Two starts that time out fit.
pub(crate) const TRIAL_READY_MAX: Duration = Duration::from_secs(180);
/// How long a reason may take to be recorded: a disk that does not take it must not keep the trial alive.
pub(crate) const RECORD_MAX: Duration = Duration::from_secs(2);

/// What is known of this boot before services are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// Whether this is the first boot of a slot that is not committed.
    pub(crate) trial: bool,
    /// Watchdog resets within the last ten running minutes before it.
    pub(crate) resets: u32,
}

impl Boot {
    /// Whether [`NEEDED`] services are to be left out.
    pub(crate) fn is_degraded(self) -> bool {
        !self.trial && self.resets >= RESETS_MAX
    }
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Kill this service and say that it was silent for so long.
    Kill { service: ServiceId, silent: Duration },
    /// Record the reason durably, then call [`Watch::recorded`]. The watchdog is still fed.
    Record(String),
    /// Stop feeding the watchdog.
    Withhold,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    #[default]
    Committed,
    Trial,
    /// `until`: when to go on without the record.
    Recording {
        reason: String,
        until: Time,
    },
    /// `done`: the order was given.
    Withheld {
        reason: String,
        done: bool,
    },
    Degraded,
}

/// Where a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Life {
    NotReady { since: Time },
    Ready { heard: Time },
}

struct Service {
    name: String,
    /// `None` when there is no such service.
    id: Option<ServiceId>,
    /// Its `watchdog_s`.
    limit: Option<Duration>,
    life: Life,
}

impl Service {
    fn needed(&self) -> bool {
        NEEDED.contains(&self.name.as_str())
    }

    fn since(&self) -> Time {
        match self.life {
            Life::NotReady { since } => since,
            Life::Ready { heard } => heard,
        }
    }

    /// How long it may be silent now.
    fn limit(&self, trial: bool) -> Option<Duration> {
        match self.life {
            Life::NotReady { .. } => (trial && self.needed()).then_some(TRIAL_READY_MAX),
            Life::Ready { .. } => self.limit,
        }
    }

    fn due(&self, trial: bool) -> Option<Time> {
        self.limit(trial).map(|limit| self.since() + limit)
    }
}

/// All that another program needs to go on. What its own files say of a service, its limit above all, counts there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) boot: Boot,
    state: State,
    /// By service name.
    lives: Vec<(String, Life)>,
}

/// The rules of one boot.
pub(crate) struct Watch {
    boot: Boot,
    state: State,
    services: Vec<Service>,
    /// The machine goes down: everybody may be silent.
    over: bool,
}

impl Watch {
    /// At the start of the services; for each its name, number and `watchdog_s`.
    pub(crate) fn new<'a>(
        now: Time,
        boot: Boot,
        services: impl Iterator<Item = (&'a str, ServiceId, Option<Duration>)>,
    ) -> Watch {
        let state = match boot {
            boot if boot.is_degraded() => State::Degraded,
            Boot { trial: true, .. } => State::Trial,
            Boot { trial: false, .. } => State::Committed,
        };
        let life = Life::NotReady { since: now };
        let watched = |(name, id, limit): (&str, ServiceId, Option<Duration>)| {
            let service = Service { name: name.to_owned(), id: Some(id), limit, life };
            (limit.is_some() || service.needed()).then_some(service)
        };
        let mut services: Vec<_> = services.filter_map(watched).collect();
        if boot.trial {
            let absent = |name: &&str| !services.iter().any(|s| s.name == *name);
            let lacking: Vec<_> = NEEDED.iter().filter(|name| absent(name)).collect();
            let service = |name: &&str| Service { name: (*name).to_owned(), id: None, limit: None, life };
            services.extend(lacking.into_iter().map(service));
        }
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Watch { boot, state, services, over: false }
    }

    /// What another program needs to go on. None does on the way down.
    pub(crate) fn save(&self) -> Saved {
        let lives = self.services.iter().map(|s| (s.name.clone(), s.life)).collect();
        Saved { boot: self.boot, state: self.state.clone(), lives }
    }

    /// Goes on, after [`Watch::new`] with the boot of `saved`, from what another program has left. A service that it
    /// did not watch has its time from `new` on.
    pub(crate) fn resume(&mut self, saved: &Saved) {
        self.state = saved.state.clone();
        for service in &mut self.services {
            let life = saved.lives.iter().find(|(name, _)| *name == service.name).map(|(_, life)| *life);
            match life {
                // Its file is gone since, and its process with it.
                Some(Life::Ready { .. }) if service.id.is_none() => {}
                Some(life) => service.life = life,
                None => {}
            }
        }
    }

    /// The service has become ready, or has written a line after that.
    pub(crate) fn progress(&mut self, now: Time, id: ServiceId) {
        if let Some(service) = self.find(id) {
            service.life = Life::Ready { heard: now };
        }
    }

    /// The process of the service has ended.
    pub(crate) fn ended(&mut self, now: Time, id: ServiceId) {
        if let Some(service) = self.find(id) {
            service.life = Life::NotReady { since: now };
        }
    }

    /// The slot is committed. Too late for a trial that has failed.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub(crate) fn end_trial(&mut self) -> Result<(), String> {
        match &self.state {
            State::Trial => self.state = State::Committed,
            State::Committed => {}
            State::Degraded => return Err("this boot is no trial: the machine runs degraded".to_owned()),
            State::Recording { reason, .. } | State::Withheld { reason, .. } => {
                return Err(format!("the trial has failed: {reason}"));
            }
        }
        Ok(())
    }

    /// The machine goes down: nobody is late any more. A failed trial stays one.
    pub(crate) fn end(&mut self) {
        self.over = true;
    }

    /// The reason is on disk.
    pub(crate) fn recorded(&mut self) {
        if let State::Recording { reason, .. } = &mut self.state {
            self.state = State::Withheld { reason: std::mem::take(reason), done: false };
        }
    }

    /// What to do at `now`; to be asked again until there is nothing.
    pub(crate) fn next_order(&mut self, now: Time) -> Option<Order> {
        match &mut self.state {
            State::Recording { until, .. } if *until <= now => self.recorded(),
            State::Withheld { done, .. } if !*done => {
                *done = true;
                return Some(Order::Withhold);
            }
            _ => {}
        }
        if self.over {
            return None;
        }
        let trial = self.state == State::Trial;
        let late = self.services.iter_mut().find(|s| s.due(trial).is_some_and(|due| due < now));
        if let Some(service) = late {
            if trial && service.needed() {
                let reason = why(now, service);
                self.state = State::Recording { reason: reason.clone(), until: now + RECORD_MAX };
                return Some(Order::Record(reason));
            }
            let silent = now.since(service.since());
            // Its end comes next; if it does not, the order comes again.
            service.life = Life::Ready { heard: now };
            if let Some(id) = service.id {
                return Some(Order::Kill { service: id, silent });
            }
        }
        matches!(self.state, State::Withheld { done: false, .. }).then(|| self.next_order(now)).flatten()
    }

    /// When [`Watch::next_order`] is due next. Just behind the last instant that is in time.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        let state = match &self.state {
            State::Recording { until, .. } => Some(*until),
            State::Withheld { done: false, .. } => Some(Time::ZERO),
            _ => None,
        };
        let trial = self.state == State::Trial;
        let due = |s: &Service| s.due(trial).map(|due| due + Duration::from_nanos(1));
        let services = self.services.iter().filter(|_| !self.over).filter_map(due);
        services.chain(state).min()
    }

    /// Everything, for people.
    pub(crate) fn info(&self, now: Time) -> WatchInfo {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (state, reason) = match &self.state {
            State::Committed => (WatchState::Committed, String::new()),
            State::Trial => (WatchState::Trial, String::new()),
            State::Recording { reason, .. } => (WatchState::Trial, reason.clone()),
            State::Withheld { reason, .. } => (WatchState::Withheld, reason.clone()),
            State::Degraded => (WatchState::Degraded, degraded_reason(self.boot)),
        };
        let trial = self.state == State::Trial;
        let row = |s: &Service| WatchRow {
            service: s.name.clone(),
            silent_ms: millis(now.since(s.since())),
            limit_ms: s.limit(trial).map(millis),
        };
        WatchInfo { state, reason, rows: self.services.iter().map(row).collect() }
    }

    fn find(&mut self, id: ServiceId) -> Option<&mut Service> {
        self.services.iter_mut().find(|s| s.id == Some(id))
    }
}

/// Why a node runs degraded, and what to do.
pub(crate) fn degraded_reason(boot: Boot) -> String {
    let names = NEEDED.join(" and ");
    format!(
        "the watchdog has reset the machine {} times within ten running minutes: {names} are not started; look at \
         the log, then run \"reboot\"",
        boot.resets
    )
}

fn why(now: Time, service: &Service) -> String {
    let seconds = now.since(service.since()).as_secs();
    match (service.life, service.id) {
        (_, None) => format!("the trial has no service {}", service.name),
        (Life::NotReady { .. }, _) => format!("{} was not ready for {seconds} s of the trial", service.name),
        (Life::Ready { .. }, _) => {
            format!("{} made no progress for {seconds} s of the trial", service.name)
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// One for each state.
    pub(crate) fn all_saved() -> Vec<Saved> {
        // A new variant does not compile here: it belongs into the list below.
        let _ = |state: &State, life: &Life| match (state, life) {
            (
                State::Committed
                | State::Trial
                | State::Recording { .. }
                | State::Withheld { .. }
                | State::Degraded,
                Life::NotReady { .. } | Life::Ready { .. },
            ) => {}
        };
        let lives = vec![
            ("netd".to_owned(), Life::Ready { heard: Time::from_nanos(300) }),
            ("provisiond".to_owned(), Life::NotReady { since: Time::from_nanos(2) }),
        ];
        let reason = "silent".to_owned();
        let states = [
            State::Committed,
            State::Trial,
            State::Recording { reason: reason.clone(), until: Time::from_nanos(9) },
            State::Withheld { reason, done: true },
            State::Degraded,
        ];
        let saved = |state: State| {
            let boot = Boot { trial: !matches!(state, State::Committed | State::Degraded), resets: 3 };
            Saved { boot, state, lives: lives.clone() }
        };
        states.into_iter().map(saved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETD: ServiceId = ServiceId(0);
    const PROVISIOND: ServiceId = ServiceId(1);
    const OTHER: ServiceId = ServiceId(2);

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn watch(trial: bool, resets: u32) -> Watch {
        watch_from(at(0), Boot { trial, resets })
    }

    fn watch_from(now: Time, boot: Boot) -> Watch {
        let services = [
            ("netd", NETD, Some(Duration::from_secs(2))),
            ("provisiond", PROVISIOND, None),
            ("other", OTHER, Some(Duration::from_secs(5))),
            ("console", ServiceId(3), None),
        ];
        Watch::new(now, boot, services.into_iter())
    }

    /// As another program finds it that takes over at `now`.
    fn over(watch: &Watch, now: Time) -> Watch {
        let saved = watch.save();
        let mut next = watch_from(now, saved.boot);
        next.resume(&saved);
        assert_eq!((next.save(), next.next_wakeup()), (saved, watch.next_wakeup()));
        assert_eq!(format!("{:?}", next.info(now)), format!("{:?}", watch.info(now)));
        next
    }

    fn orders(watch: &mut Watch, now: Time) -> Vec<Order> {
        std::iter::from_fn(|| watch.next_order(now)).take(10).collect()
    }

    fn withheld(watch: &Watch) -> bool {
        watch.info(at(0)).state == WatchState::Withheld
    }

    fn kill(service: ServiceId, ms: u64) -> Vec<Order> {
        vec![Order::Kill { service, silent: Duration::from_millis(ms) }]
    }

    #[test]
    fn on_a_committed_slot_a_late_service_is_killed_and_the_watchdog_is_fed() {
        let mut w = watch(false, 2);
        assert_eq!(w.next_wakeup(), None, "nothing is asked before readiness");
        w.progress(at(1000), NETD);
        w.progress(at(1000), OTHER);
        assert_eq!(orders(&mut w, at(3000)), []);
        assert_eq!(w.next_wakeup(), Some(at(3000) + Duration::from_nanos(1)));
        assert_eq!(orders(&mut w, at(3001)), kill(NETD, 2001));
        assert_eq!(orders(&mut w, at(3002)), [], "said once");
        assert_eq!(orders(&mut w, at(5002)), kill(NETD, 2001), "and again while it is still there");
        w.ended(at(5003), NETD);
        assert_eq!(orders(&mut w, at(6001)), kill(OTHER, 5001));
        w.ended(at(6002), OTHER);
        assert_eq!((orders(&mut w, at(900_000)), w.next_wakeup()), (vec![], None));
        assert_eq!(w.info(at(0)).state, WatchState::Committed);
        assert_eq!(w.end_trial(), Ok(()), "it is none already");
    }

    #[test]
    fn lines_keep_a_service_alive() {
        let mut w = watch(true, 0);
        w.progress(at(0), PROVISIOND);
        for ms in (0..20_000).step_by(1900) {
            w.progress(at(ms), NETD);
            assert_eq!(orders(&mut w, at(ms + 1899)), []);
        }
        assert_eq!(w.info(at(20_000)).state, WatchState::Trial);
        assert_eq!(w.end_trial(), Ok(()));
        assert_eq!(w.info(at(20_000)).state, WatchState::Committed);
    }

    #[test]
    fn a_hanging_netd_fails_the_trial_after_the_reason_is_recorded() {
        let mut w = watch(true, 0);
        w.progress(at(0), PROVISIOND);
        w.progress(at(1000), NETD);
        let reason = "netd made no progress for 2 s of the trial";
        let mut both = vec![Order::Record(reason.to_owned())];
        both.extend(kill(NETD, 2001));
        assert_eq!(orders(&mut w, at(3001)), both, "killed as on any boot");
        assert!(!withheld(&w), "fed until the reason is recorded");
        assert_eq!(w.end_trial(), Err(format!("the trial has failed: {reason}")));
        w.recorded();
        assert_eq!(w.next_wakeup(), Some(Time::ZERO));
        assert_eq!(orders(&mut w, at(3002)), [Order::Withhold]);
        w.ended(at(3003), NETD);
        w.progress(at(3010), NETD);
        assert_eq!((orders(&mut w, at(4000)), withheld(&w)), (vec![], true), "a trial fails once");
        let info = w.info(at(4000));
        assert_eq!((info.state, info.reason.as_str()), (WatchState::Withheld, reason));
        assert!(w.end_trial().is_err());
    }

    #[test]
    fn a_disk_that_takes_no_record_does_not_keep_the_trial_alive() {
        let mut w = watch(true, 0);
        w.progress(at(0), NETD);
        w.progress(at(0), PROVISIOND);
        assert_eq!(orders(&mut w, at(2001)).len(), 2);
        w.ended(at(2002), NETD);
        assert_eq!((orders(&mut w, at(4000)), w.next_wakeup()), (vec![], Some(at(4001))));
        assert_eq!(orders(&mut w, at(4001)), [Order::Withhold]);
    }

    #[test]
    fn a_trial_needs_its_services_ready() {
        let mut w = watch(true, 0);
        w.progress(at(0), NETD);
        w.ended(at(1000), NETD);
        w.progress(at(2000), PROVISIOND);
        assert_eq!(orders(&mut w, at(181_000)), []);
        let reason = "netd was not ready for 180 s of the trial".to_owned();
        assert_eq!(orders(&mut w, at(181_001)), [Order::Record(reason)]);

        let mut w = Watch::new(at(0), Boot { trial: true, resets: 9 }, std::iter::empty());
        assert_eq!(orders(&mut w, at(180_000)), []);
        let reason = "the trial has no service netd".to_owned();
        assert_eq!(orders(&mut w, at(180_001)), [Order::Record(reason)]);
    }

    #[test]
    fn the_third_reset_of_a_committed_slot_makes_it_degraded() {
        let cases = [(false, 2, false), (false, 3, true), (false, 9, true), (true, 9, false)];
        for (trial, resets, degraded) in cases {
            assert_eq!(Boot { trial, resets }.is_degraded(), degraded, "trial {trial}, {resets} resets");
        }
        let mut w = watch(false, 3);
        assert_eq!((orders(&mut w, at(900_000)), withheld(&w)), (vec![], false));
        let info = w.info(at(1));
        assert_eq!(info.state, WatchState::Degraded);
        assert!(info.reason.starts_with("the watchdog has reset the machine 3 times"), "{}", info.reason);
        assert!(w.end_trial().is_err());
    }

    #[test]
    fn a_trial_runs_out_at_the_same_instant_in_another_program() {
        let mut w = watch(true, 0);
        w.progress(at(10), PROVISIOND);
        w.progress(at(1000), NETD);
        for ms in [1000, 2000, 2999, 3000] {
            w = over(&w, at(ms));
            assert_eq!(orders(&mut w, at(ms)), []);
        }
        let reason = "netd made no progress for 2 s of the trial";
        assert_eq!(w.next_order(at(3001)), Some(Order::Record(reason.to_owned())));
        w = over(&w, at(3500));
        assert_eq!(w.end_trial(), Err(format!("the trial has failed: {reason}")));
        assert_eq!(orders(&mut w, at(3500)), kill(NETD, 2500));
        w.ended(at(3501), NETD);
        assert_eq!((orders(&mut w, at(5000)), w.next_wakeup()), (vec![], Some(at(5001))));
        w.recorded();
        w = over(&w, at(5000));
        assert_eq!(orders(&mut w, at(5000)), [Order::Withhold], "given by the one that is there");
        w = over(&w, at(5001));
        assert_eq!((orders(&mut w, at(900_000)), withheld(&w)), (vec![], true), "and once");

        let mut late = watch(true, 0);
        late.progress(at(0), NETD);
        late.progress(at(1500), NETD);
        let mut late = over(&late, at(1600));
        assert_eq!(late.end_trial(), Ok(()));
        let mut late = over(&late, at(1700));
        assert_eq!(late.info(at(1700)).state, WatchState::Committed, "the boot's word is not asked again");
        assert_eq!(orders(&mut late, at(3501)), kill(NETD, 2001));
        let degraded = over(&watch(false, 3), at(5));
        assert_eq!(degraded.info(at(5)).state, WatchState::Degraded);
    }

    #[test]
    fn services_may_come_and_go_between_two_programs() {
        let mut w = watch(true, 0);
        w.progress(at(1000), NETD);
        let services = [("new", NETD, Some(Duration::from_secs(1))), ("provisiond", OTHER, None)];
        let mut next = Watch::new(at(2000), w.save().boot, services.into_iter());
        next.resume(&w.save());
        let since: Vec<_> = next.services.iter().map(|s| (s.name.as_str(), s.since())).collect();
        assert_eq!(since, [("netd", at(2000)), ("new", at(2000)), ("provisiond", at(0))]);
        let reason = "provisiond was not ready for 180 s of the trial".to_owned();
        assert_eq!(orders(&mut next, at(180_001)), [Order::Record(reason)]);
        let mut next = Watch::new(at(2000), w.save().boot, services.into_iter());
        next.resume(&w.save());
        next.progress(at(2000), OTHER);
        let reason = "the trial has no service netd".to_owned();
        assert_eq!(orders(&mut next, at(182_001)), [Order::Record(reason)]);
    }

    #[test]
    fn nobody_is_late_on_the_way_down() {
        let mut w = watch(true, 0);
        w.progress(at(0), NETD);
        w.end();
        assert_eq!((orders(&mut w, at(900_000)), w.next_wakeup()), (vec![], None));
    }
}
