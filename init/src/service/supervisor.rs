//! The life of every service: order, readiness, restarts, stopping. Pure: time and events in, orders out.
//!
//! ```text
//! Waiting --dependencies allow--> Starting --executed or notified--> Ready
//!    ^                               |  \                              |
//!    |                 ready_timeout |   \ ended                       | ended
//!    |                               v    \                            |
//!    |           operator's restart, |     \                           |
//!    |           shutdown -----> Stopping --+--> restart policy <------+
//!    |                               |             |         |
//!    |  shutdown: Stopped <----------+             v         v
//!    +------------------ delay passed --------- Backoff   Finished
//! ```
//! - *Dependencies* order the first start only. `requires`: the other is ready (or finished with code 0). `after`:
//!   the other is ready or has failed to become so, itself or through what it requires. Once a service has been
//!   ready, its restarts wait for nobody: netd must come back although provisiond is broken.
//! - *Held* services wait for their terminal, which PID 1 still reads itself.
//! - *Restarts* come at once, then after 50 ms, doubling to 10 s; 10 s of readiness forget the past. They are never
//!   given up.
//! - *Stopping everything* goes against the order: a service is asked to stop when all that come after it are gone.
//!
//! It does not limit the shutdown as a whole (see `shutdown`), nor does it know processes beyond their number.

use std::fmt;
use std::time::Duration;

use proto::control::{LastExit, ServiceRow, ServiceState};
use proto::time::Time;
use serde::{Deserialize, Serialize};

use super::ServiceId;
use super::unit::{Readiness, Restart, Unit};

/// The second restart's delay; the first comes at once.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// The longest delay: a technician who watches sees the next attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Readiness of this length forgets earlier failures.
const STABLE: Duration = Duration::from_secs(10);

/// What happened to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Its process exists.
    Spawned { pid: u32 },
    /// There is no process; `why` names the step. `jitter` as for [`Input::Exited`].
    SpawnFailed { why: String, jitter: u16 },
    /// The process runs the program.
    Executed,
    /// The process could not run the program and will end.
    ExecFailed { why: String },
    /// It told readiness.
    Notified,
    /// Its main process is gone. `jitter` is random and shortens a back-off by up to a quarter.
    Exited { how: LastExit, jitter: u16 },
}

/// What the shell must do, in this order; notes may wait until the rest is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Start the process; answer with `Spawned` or `SpawnFailed`.
    Spawn(ServiceId),
    /// Send the stop signal.
    Terminate(ServiceId),
    /// Kill the process and all its descendants.
    Kill(ServiceId),
    /// Tell the log.
    Note(ServiceId, Note),
}

/// What the log is told of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Ready { after: Duration },
    NotReady { limit: Duration },
    StopIgnored { limit: Duration },
    Ended { how: LastExit, asked: bool, next: Following },
}

/// What follows the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Following {
    Stopped,
    StartAsAsked,
    StartAtOnce,
    StartIn(Duration),
    NoStart,
}

impl Note {
    /// Whether it is something that should not be.
    pub(crate) fn is_bad(&self) -> bool {
        match self {
            Note::Ready { .. } => false,
            Note::NotReady { .. } | Note::StopIgnored { .. } => true,
            Note::Ended { how, asked, .. } => !asked && *how != LastExit::Code(0),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Ready { after } => write!(f, "ready after {} ms", after.as_millis()),
            Note::NotReady { limit } => write!(f, "not ready after {} s, stopping it", limit.as_secs()),
            Note::StopIgnored { limit } => {
                write!(f, "still there {} s after its stop signal, killing it", limit.as_secs())
            }
            Note::Ended { how, next, .. } => write!(f, "ended ({how}), {next}"),
        }
    }
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Following::Stopped => f.write_str("stopped"),
            Following::StartAsAsked => f.write_str("starting again as asked"),
            Following::StartAtOnce => f.write_str("starting again at once"),
            Following::StartIn(delay) => write!(f, "starting again in {} ms", delay.as_millis()),
            Following::NoStart => f.write_str("not started again"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    #[default]
    Waiting,
    /// `deadline`: when to call the start failed.
    Starting {
        deadline: Time,
    },
    Ready,
    /// `deadline`: when to kill.
    Stopping {
        deadline: Time,
        killed: bool,
        next: Next,
    },
    /// `until`: when to start again.
    Backoff {
        until: Time,
    },
    Finished,
    Stopped,
}

/// What follows a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Next {
    /// An operator's restart: at once.
    Restart,
    /// The restart policy, as after a failure.
    Policy,
    /// Nothing: the system goes down.
    Rest,
}

struct Service {
    unit: Unit,
    /// Numbers of the unit's `after`, those that do not exist left out.
    after: Vec<ServiceId>,
    /// Numbers of the unit's `requires`.
    requires: Vec<ServiceId>,
    life: Life,
}

/// Where a service stands. It goes along when another program takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    state: State,
    since: Time,
    pid: Option<u32>,
    /// Processes asked for so far.
    starts: u32,
    /// Ends since the last stable readiness; the back-off's exponent.
    failures: u32,
    /// A first start has failed: `after` no longer waits for it.
    attempted: bool,
    /// Dependencies are behind it.
    was_ready: bool,
    /// Why the program of the running process could not be executed.
    not_executed: Option<String>,
    last_exit: Option<LastExit>,
}

/// One for each state and for each thing in it.
#[cfg(test)]
pub(crate) fn all_lives() -> Vec<Life> {
    // A new variant does not compile here: it belongs into the list below.
    let _ = |state: &State, next: &Next, exit: &LastExit| match (state, next, exit) {
        (
            State::Waiting
            | State::Starting { .. }
            | State::Ready
            | State::Stopping { .. }
            | State::Backoff { .. }
            | State::Finished
            | State::Stopped,
            Next::Restart | Next::Policy | Next::Rest,
            LastExit::Code(_) | LastExit::Signal(_) | LastExit::NotStarted(_),
        ) => {}
    };
    let at = Time::from_nanos;
    let stopping = |next| State::Stopping { deadline: at(300), killed: true, next };
    let states = [
        (State::Waiting, None),
        (State::Starting { deadline: at(300) }, None),
        (State::Ready, Some(LastExit::Signal(9))),
        (stopping(Next::Restart), None),
        (stopping(Next::Policy), None),
        (stopping(Next::Rest), None),
        (State::Backoff { until: at(300) }, Some(LastExit::NotStarted("why".to_owned()))),
        (State::Finished, Some(LastExit::Code(-1))),
        (State::Stopped, None),
    ];
    let life = |(state, last_exit)| Life {
        state,
        since: at(5),
        pid: Some(7),
        starts: 2,
        failures: 1,
        attempted: true,
        was_ready: true,
        not_executed: Some("no such file".to_owned()),
        last_exit,
    };
    states.into_iter().map(life).collect()
}

/// All accepted services.
pub(crate) struct Supervisor {
    /// In name order; a service's number is its place.
    services: Vec<Service>,
    /// Not to be started yet, whatever their dependencies say.
    held: Vec<ServiceId>,
    going_down: bool,
}

impl Supervisor {
    /// Every unit waits; [`Supervisor::start`] sets them going. Units are in name order and references free of cycles
    /// (`unit::check`).
    pub(crate) fn new(now: Time, units: Vec<Unit>) -> Supervisor {
        let names: Vec<String> = units.iter().map(|u| u.name.clone()).collect();
        let numbers = |wanted: &[String]| {
            wanted.iter().filter_map(|name| find(names.iter().map(String::as_str), name)).collect()
        };
        let service = |unit: Unit| Service {
            after: numbers(&unit.after),
            requires: numbers(&unit.requires),
            unit,
            life: Life { since: now, ..Life::default() },
        };
        Supervisor { services: units.into_iter().map(service).collect(), held: Vec::new(), going_down: false }
    }

    /// The number of the service `name`.
    pub(crate) fn find(&self, name: &str) -> Option<ServiceId> {
        find(self.services.iter().map(|s| s.unit.name.as_str()), name)
    }

    /// Where the service `id` stands.
    pub(crate) fn life(&self, id: ServiceId) -> Option<&Life> {
        self.get(id).map(|s| &s.life)
    }

    /// Lets the service `id` stand where it stood in another program.
    pub(crate) fn resume(&mut self, id: ServiceId, life: Life) {
        if let Some(s) = self.services.get_mut(id.index()) {
            s.life = life;
        }
    }

    /// Keeps the service `id` from being started until [`Supervisor::release`].
    pub(crate) fn hold(&mut self, id: ServiceId) {
        self.held.push(id);
    }

    /// Holds nobody any more.
    pub(crate) fn release(&mut self, now: Time, out: &mut Vec<Output>) {
        self.held.clear();
        self.advance(now, out);
    }

    /// Starts what waits for nobody.
    pub(crate) fn start(&mut self, now: Time, out: &mut Vec<Output>) {
        self.advance(now, out);
    }

    /// The unit of a service, to run it.
    pub(crate) fn unit(&self, id: ServiceId) -> Option<&Unit> {
        self.services.get(id.index()).map(|s| &s.unit)
    }

    /// Takes what happened to the service `id`. An event that does not fit its state changes nothing.
    pub(crate) fn handle(&mut self, now: Time, id: ServiceId, input: Input, out: &mut Vec<Output>) {
        let going_down = self.going_down;
        let Some(s) = self.services.get_mut(id.index()) else { return };
        match input {
            Input::Spawned { pid } => s.life.pid = Some(pid),
            Input::SpawnFailed { why, jitter } => {
                s.ended(now, id, LastExit::NotStarted(why), jitter, going_down, out);
            }
            Input::Executed if s.unit.ready == Readiness::Exec => s.becomes_ready(now, id, out),
            Input::Executed => {}
            Input::ExecFailed { why } => s.life.not_executed = Some(why),
            Input::Notified if s.unit.ready == Readiness::Notify => s.becomes_ready(now, id, out),
            Input::Notified => {}
            Input::Exited { how, jitter } => {
                let how = s.life.not_executed.take().map_or(how, LastExit::NotStarted);
                s.ended(now, id, how, jitter, going_down, out);
            }
        }
        self.advance(now, out);
    }

    /// Stops a service and starts it again at once, forgetting its back-off.
    ///
    /// # Errors
    /// The reason in the operator's words; nothing has changed then.
    pub(crate) fn restart(&mut self, now: Time, name: &str, out: &mut Vec<Output>) -> Result<(), String> {
        if self.going_down {
            return Err("the system is going down".to_owned());
        }
        let id = self.find(name).ok_or_else(|| format!("there is no service {name:?}"))?;
        let waits_for = self.waits_for(id);
        let Some(s) = self.services.get_mut(id.index()) else { return Ok(()) };
        match &mut s.life.state {
            State::Waiting => return Err(format!("{name} has not been started yet: it {waits_for}")),
            State::Starting { .. } | State::Ready => s.stop(now, id, Next::Restart, out),
            State::Stopping { next, .. } => *next = Next::Restart,
            State::Backoff { .. } | State::Finished | State::Stopped => s.enter(now, State::Waiting),
        }
        s.life.failures = 0;
        self.advance(now, out);
        Ok(())
    }

    /// Stops everything, what comes last first. Nothing is started any more.
    pub(crate) fn stop_all(&mut self, now: Time, out: &mut Vec<Output>) {
        self.going_down = true;
        for s in &mut self.services {
            match &mut s.life.state {
                State::Waiting | State::Backoff { .. } | State::Finished => s.enter(now, State::Stopped),
                State::Stopping { next, .. } => *next = Next::Rest,
                State::Starting { .. } | State::Ready | State::Stopped => {}
            }
        }
        self.advance(now, out);
    }

    /// Whether [`Supervisor::stop_all`] has done its work.
    pub(crate) fn all_stopped(&self) -> bool {
        self.going_down && self.services.iter().all(|s| s.life.state == State::Stopped)
    }

    /// Names of the services whose process is still there.
    pub(crate) fn running(&self) -> Vec<String> {
        self.services.iter().filter(|s| s.life.pid.is_some()).map(|s| s.unit.name.clone()).collect()
    }

    /// Does what is due at `now`.
    pub(crate) fn handle_timeout(&mut self, now: Time, out: &mut Vec<Output>) {
        for (id, s) in (0..).map(ServiceId).zip(&mut self.services) {
            match &mut s.life.state {
                State::Starting { deadline } if *deadline <= now => {
                    s.life.attempted = true;
                    out.push(Output::Note(id, Note::NotReady { limit: s.unit.ready_timeout }));
                    s.stop(now, id, Next::Policy, out);
                }
                State::Stopping { deadline, killed, .. } if *deadline <= now => {
                    // A process in an uninterruptible wait survives its kill: said once, repeated quietly.
                    let first = !std::mem::replace(killed, true);
                    *deadline = now + s.unit.stop_timeout;
                    if first {
                        out.push(Output::Note(id, Note::StopIgnored { limit: s.unit.stop_timeout }));
                    }
                    out.push(Output::Kill(id));
                }
                State::Backoff { until } if *until <= now => s.enter(now, State::Waiting),
                _ => {}
            }
        }
        self.advance(now, out);
    }

    /// When [`Supervisor::handle_timeout`] is due next.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        self.services.iter().filter_map(Service::deadline).min()
    }

    /// A row per service, in name order.
    pub(crate) fn rows(&self, now: Time) -> Vec<ServiceRow> {
        (0..).map(ServiceId).zip(&self.services).map(|(id, s)| self.row(now, id, s)).collect()
    }

    fn row(&self, now: Time, id: ServiceId, s: &Service) -> ServiceRow {
        let (state, detail) = match &s.life.state {
            State::Waiting => (ServiceState::Waiting, self.waits_for(id)),
            State::Starting { deadline } => {
                (ServiceState::Starting, format!("has {} s left to become ready", left_s(*deadline, now)))
            }
            State::Ready => (ServiceState::Ready, String::new()),
            State::Stopping { deadline, killed, .. } => {
                let what = if *killed { "killed, still there; again" } else { "killed" };
                (ServiceState::Stopping, format!("{what} in {} s", left_s(*deadline, now)))
            }
            State::Backoff { until } => {
                (ServiceState::Backoff, format!("starts again in {} s", left_s(*until, now)))
            }
            State::Finished => (ServiceState::Finished, "its restart policy leaves it ended".to_owned()),
            State::Stopped => (ServiceState::Stopped, String::new()),
        };
        ServiceRow {
            name: s.unit.name.clone(),
            state,
            detail,
            pid: s.life.pid,
            restarts: s.life.starts.saturating_sub(1),
            since_s: now.since(s.life.since).as_secs(),
            last_exit: s.life.last_exit.clone(),
        }
    }

    /// Starts and stops what the present states allow, until nothing more follows.
    fn advance(&mut self, now: Time, out: &mut Vec<Output>) {
        // Each round moves one service one state onwards, and no state is entered twice without an input.
        while let Some(id) = self.next_move() {
            let Some(s) = self.services.get_mut(id.index()) else { return };
            if self.going_down {
                s.stop(now, id, Next::Rest, out);
            } else {
                s.life.starts = s.life.starts.saturating_add(1);
                let deadline = now + s.unit.ready_timeout;
                s.enter(now, State::Starting { deadline });
                out.push(Output::Spawn(id));
            }
        }
    }

    /// A service that may be started, or when everything goes down, one that may be stopped.
    fn next_move(&self) -> Option<ServiceId> {
        let may_move = |id: ServiceId, s: &Service| match (&s.life.state, self.going_down) {
            (State::Waiting, false) => {
                !self.held.contains(&id) && (s.life.was_ready || self.blockers(s).next().is_none())
            }
            (State::Starting { .. } | State::Ready, true) => self.dependants_gone(id),
            _ => false,
        };
        (0..).map(ServiceId).zip(&self.services).find(|(id, s)| may_move(*id, s)).map(|(id, _)| id)
    }

    fn get(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(id.index())
    }

    /// What keeps `s` from its first start.
    fn blockers<'a>(&'a self, s: &'a Service) -> impl Iterator<Item = ServiceId> {
        let required = s.requires.iter().filter(|r| !self.get(**r).is_some_and(Service::satisfied));
        let ordered = s.after.iter().filter(|a| !self.settled(**a));
        required.chain(ordered).copied()
    }

    /// Whether nothing more is to be expected of `id` for those that come after it.
    fn settled(&self, id: ServiceId) -> bool {
        let Some(s) = self.get(id) else { return true };
        match s.life.state {
            State::Waiting if !s.life.attempted => {
                s.requires.iter().any(|r| self.settled(*r) && !self.get(*r).is_some_and(Service::satisfied))
            }
            State::Starting { .. } => s.life.attempted,
            _ => true,
        }
    }

    fn dependants_gone(&self, id: ServiceId) -> bool {
        let depends = |s: &&Service| s.after.contains(&id) || s.requires.contains(&id);
        self.services.iter().filter(depends).all(|s| s.life.state == State::Stopped)
    }

    fn waits_for(&self, id: ServiceId) -> String {
        let Some(s) = self.get(id) else { return String::new() };
        let name = |id| self.unit(id).map_or("", |u| u.name.as_str());
        let held = self.held.contains(&id).then_some("its terminal");
        let names: Vec<_> = self.blockers(s).map(name).chain(held).collect();
        format!("waits for {}", names.join(", "))
    }
}

/// The place of `name` among sorted names.
fn find<'a>(names: impl Iterator<Item = &'a str>, name: &str) -> Option<ServiceId> {
    (0..).map(ServiceId).zip(names).find(|(_, n)| *n == name).map(|(id, _)| id)
}

impl Service {
    fn enter(&mut self, now: Time, state: State) {
        self.life.state = state;
        self.life.since = now;
    }

    fn deadline(&self) -> Option<Time> {
        match self.life.state {
            State::Starting { deadline } | State::Stopping { deadline, .. } => Some(deadline),
            State::Backoff { until } => Some(until),
            State::Waiting | State::Ready | State::Finished | State::Stopped => None,
        }
    }

    /// Whether those that require it may start.
    fn satisfied(&self) -> bool {
        self.life.state == State::Ready
            || (self.life.state == State::Finished && self.life.last_exit == Some(LastExit::Code(0)))
    }

    fn becomes_ready(&mut self, now: Time, id: ServiceId, out: &mut Vec<Output>) {
        if matches!(self.life.state, State::Starting { .. }) {
            let after = now.since(self.life.since);
            self.enter(now, State::Ready);
            self.life.was_ready = true;
            out.push(Output::Note(id, Note::Ready { after }));
        }
    }

    /// Asks the process to stop. Without a process there is nothing to wait for.
    fn stop(&mut self, now: Time, id: ServiceId, next: Next, out: &mut Vec<Output>) {
        if self.life.pid.is_none() {
            self.enter(now, if next == Next::Rest { State::Stopped } else { State::Waiting });
            return;
        }
        let deadline = now + self.unit.stop_timeout;
        self.enter(now, State::Stopping { deadline, killed: false, next });
        out.push(Output::Terminate(id));
    }

    fn ended(
        &mut self,
        now: Time,
        id: ServiceId,
        how: LastExit,
        jitter: u16,
        going_down: bool,
        out: &mut Vec<Output>,
    ) {
        self.life.pid = None;
        self.life.not_executed = None;
        let next = match self.life.state {
            _ if going_down => Next::Rest,
            State::Starting { .. } => {
                self.life.attempted = true;
                Next::Policy
            }
            State::Ready => {
                if now.since(self.life.since) >= STABLE {
                    self.life.failures = 0;
                }
                Next::Policy
            }
            State::Stopping { next, .. } => next,
            // No process was known: a stray event.
            State::Waiting | State::Backoff { .. } | State::Finished | State::Stopped => return,
        };
        let wanted = match self.unit.restart {
            Restart::Always => true,
            Restart::OnFailure => how != LastExit::Code(0),
            Restart::Never => false,
        };
        let asked = matches!(self.life.state, State::Stopping { .. }) && next != Next::Policy;
        let (state, following) = match next {
            Next::Rest => (State::Stopped, Following::Stopped),
            Next::Restart => (State::Waiting, Following::StartAsAsked),
            Next::Policy if !wanted => (State::Finished, Following::NoStart),
            Next::Policy => {
                let delay = backoff(self.life.failures, jitter);
                self.life.failures = self.life.failures.saturating_add(1);
                if delay.is_zero() {
                    (State::Waiting, Following::StartAtOnce)
                } else {
                    (State::Backoff { until: now + delay }, Following::StartIn(delay))
                }
            }
        };
        out.push(Output::Note(id, Note::Ended { how: how.clone(), asked, next: following }));
        self.life.last_exit = Some(how);
        self.enter(now, state);
    }
}

/// The delay before restart number `failures` (from 0) of a series, up to a quarter shorter by `jitter`.
fn backoff(failures: u32, jitter: u16) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let base = BACKOFF_FIRST.saturating_mul(1 << doublings.min(16)).min(BACKOFF_MAX);
    base - base * u32::from(jitter) / (4 * 65536)
}

/// Whole seconds until `deadline`, rounded up.
fn left_s(deadline: Time, now: Time) -> u64 {
    deadline.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
