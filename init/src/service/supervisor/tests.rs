use std::collections::BTreeMap;

use super::*;
use crate::service::unit::{Limits, Privileges, Sandbox, StopSignal};

/// A supervisor with a clock of its own and processes that do what the test says.
struct World {
    now: Time,
    supervisor: Supervisor,
    /// Orders in the order they came, in short: `spawn a`, `term a`, `kill a`. Notes are left out.
    orders: Vec<String>,
    next_pid: u32,
}

fn unit(name: &str) -> Unit {
    Unit {
        name: name.to_owned(),
        command: vec![format!("/bin/{name}")],
        after: Vec::new(),
        requires: Vec::new(),
        ready: Readiness::Notify,
        ready_timeout: Duration::from_secs(30),
        restart: Restart::Always,
        stop_signal: StopSignal::Term,
        stop_timeout: Duration::from_secs(5),
        tty: None,
        watchdog: None,
        fence: false,
        keeps_memory: false,
        environment: BTreeMap::new(),
        privileges: Privileges::default(),
        sandbox: Sandbox::default(),
        limits: Limits::default(),
        sockets: Vec::new(),
    }
}

fn after(name: &str, others: &[&str]) -> Unit {
    Unit { after: others.iter().map(|o| (*o).to_owned()).collect(), ..unit(name) }
}

fn requires(name: &str, others: &[&str]) -> Unit {
    Unit { requires: others.iter().map(|o| (*o).to_owned()).collect(), ..unit(name) }
}

const CRASH: LastExit = LastExit::Signal(9);
const CLEAN: LastExit = LastExit::Code(0);

impl World {
    fn new(units: Vec<Unit>) -> World {
        let supervisor = Supervisor::new(Time::ZERO, units);
        let mut world = World { now: Time::ZERO, supervisor, orders: Vec::new(), next_pid: 100 };
        let mut out = Vec::new();
        world.supervisor.start(world.now, &mut out);
        world.take(out);
        world
    }

    fn take(&mut self, out: Vec<Output>) {
        for order in out {
            match order {
                Output::Spawn(id) => {
                    let name = self.name(id);
                    self.orders.push(format!("spawn {name}"));
                    self.next_pid += 1;
                    self.event(&name, Input::Spawned { pid: self.next_pid });
                }
                Output::Terminate(id) => self.orders.push(format!("term {}", self.name(id))),
                Output::Kill(id) => self.orders.push(format!("kill {}", self.name(id))),
                Output::Note(..) => {}
            }
        }
    }

    fn name(&self, id: ServiceId) -> String {
        self.supervisor.unit(id).unwrap().name.clone()
    }

    fn event(&mut self, name: &str, input: Input) {
        let mut out = Vec::new();
        let id = self.supervisor.find(name).unwrap();
        self.supervisor.handle(self.now, id, input, &mut out);
        self.take(out);
    }

    fn ready(&mut self, name: &str) {
        self.event(name, Input::Notified);
    }

    fn ends(&mut self, name: &str, how: LastExit) {
        self.event(name, Input::Exited { how, jitter: 0 });
    }

    fn stop_all(&mut self) {
        let mut out = Vec::new();
        self.supervisor.stop_all(self.now, &mut out);
        self.take(out);
    }

    /// Moves the clock to the next deadline and returns how far that was.
    fn next(&mut self) -> Duration {
        let then = self.supervisor.next_wakeup().expect("something has a deadline");
        let waited = then.since(self.now);
        self.now = then;
        let mut out = Vec::new();
        self.supervisor.handle_timeout(self.now, &mut out);
        self.take(out);
        waited
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// The orders since the last call.
    fn orders(&mut self) -> Vec<String> {
        std::mem::take(&mut self.orders)
    }

    fn row(&self, name: &str) -> ServiceRow {
        self.supervisor.rows(self.now).into_iter().find(|r| r.name == name).unwrap()
    }

    fn state(&self, name: &str) -> ServiceState {
        self.row(name).state
    }
}

#[test]
fn services_start_in_dependency_order() {
    let mut w = World::new(vec![after("a", &["b"]), requires("b", &["c"]), unit("c"), unit("d")]);
    assert_eq!(w.orders(), ["spawn c", "spawn d"]);
    assert_eq!(w.row("b").detail, "waits for c");
    w.event("c", Input::Executed);
    assert!(w.orders().is_empty(), "executed is not ready for a service that notifies");
    w.ready("c");
    assert_eq!(w.orders(), ["spawn b"]);
    w.ready("b");
    assert_eq!(w.orders(), ["spawn a"]);
}

#[test]
fn a_service_without_notification_is_ready_when_it_runs() {
    let mut w = World::new(vec![Unit { ready: Readiness::Exec, ..unit("a") }, requires("b", &["a"])]);
    w.ready("a");
    assert_eq!(w.state("a"), ServiceState::Starting, "it has nothing to notify");
    w.event("a", Input::Executed);
    assert_eq!(w.orders(), ["spawn a", "spawn b"]);
}

#[test]
fn restarts_come_at_once_then_back_off_to_ten_seconds() {
    let mut w = World::new(vec![unit("a")]);
    w.ready("a");
    w.orders();
    w.ends("a", CRASH);
    assert_eq!(w.orders(), ["spawn a"], "the first restart does not wait");
    let mut delays = Vec::new();
    for _ in 0..10 {
        w.ends("a", CRASH);
        assert_eq!(w.state("a"), ServiceState::Backoff);
        delays.push(w.next().as_millis());
        assert_eq!(w.orders(), ["spawn a"]);
    }
    assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    assert_eq!((w.row("a").restarts, w.row("a").last_exit), (11, Some(CRASH)));
}

#[test]
fn jitter_shortens_by_a_quarter_at_most() {
    assert_eq!(backoff(0, u16::MAX), Duration::ZERO);
    assert_eq!(backoff(2, 0), Duration::from_millis(100));
    assert_eq!(backoff(u32::MAX, 0), BACKOFF_MAX);
    let shortest = backoff(u32::MAX, u16::MAX);
    assert!(shortest >= BACKOFF_MAX * 3 / 4 && shortest < BACKOFF_MAX * 4 / 5, "{shortest:?}");
}

#[test]
fn stable_readiness_forgets_the_past() {
    for (stable, delay) in [(Duration::from_millis(9999), true), (STABLE, false)] {
        let mut w = World::new(vec![unit("a")]);
        w.ready("a");
        w.ends("a", CRASH);
        w.ready("a");
        w.pass(stable);
        w.ends("a", CRASH);
        assert_eq!(w.state("a") == ServiceState::Backoff, delay, "after {stable:?}");
    }
    let mut w = World::new(vec![unit("a")]);
    w.ends("a", CRASH);
    w.pass(STABLE);
    w.ends("a", CRASH);
    assert_eq!(w.state("a"), ServiceState::Backoff, "time without readiness is not stable");
}

#[test]
fn the_restart_policy_decides_after_an_end() {
    let cases = [
        (Restart::Always, CLEAN, true),
        (Restart::Always, CRASH, true),
        (Restart::OnFailure, CLEAN, false),
        (Restart::OnFailure, LastExit::Code(1), true),
        (Restart::OnFailure, CRASH, true),
        (Restart::Never, CRASH, false),
        (Restart::Never, CLEAN, false),
    ];
    for (restart, how, again) in cases {
        let mut w = World::new(vec![Unit { restart, ..unit("a") }]);
        w.ready("a");
        w.orders();
        w.ends("a", how.clone());
        assert_eq!(!w.orders().is_empty(), again, "{restart:?} {how}");
        assert_eq!(w.state("a") == ServiceState::Finished, !again);
    }
}

#[test]
fn a_start_that_never_gets_ready_is_stopped_and_repeated() {
    let mut w = World::new(vec![unit("a"), after("b", &["a"])]);
    assert_eq!(w.next(), Duration::from_secs(30));
    assert_eq!(w.orders(), ["spawn a", "term a", "spawn b"], "what only comes after it waits no longer");
    assert_eq!(w.next(), Duration::from_secs(5));
    assert_eq!(w.orders(), ["kill a"]);
    assert_eq!(w.next(), Duration::from_secs(5), "a process stuck in the kernel is killed again");
    assert_eq!(w.orders(), ["kill a"]);
    w.ends("a", CRASH);
    assert_eq!(w.orders(), ["spawn a"]);
    w.ready("a");
    assert_eq!(w.state("a"), ServiceState::Ready);
}

#[test]
fn late_readiness_does_not_count() {
    let mut w = World::new(vec![unit("a")]);
    w.next();
    w.ready("a");
    assert_eq!(w.state("a"), ServiceState::Stopping);
}

#[test]
fn a_failing_dependency_blocks_only_those_that_require_it() {
    let units = vec![unit("a"), requires("b", &["a"]), after("c", &["b"]), after("d", &["c"])];
    let mut w = World::new(units);
    w.ends("a", CRASH);
    // b waits for a, which has failed: nothing is to be expected of b, so c must not wait for it.
    assert_eq!(w.orders(), ["spawn a", "spawn a", "spawn c"]);
    assert_eq!((w.state("b"), w.row("b").detail.as_str()), (ServiceState::Waiting, "waits for a"));
    w.ready("c");
    assert_eq!(w.orders(), ["spawn d"]);
    w.ready("a");
    assert_eq!(w.orders(), ["spawn b"]);
}

#[test]
fn a_finished_task_satisfies_those_that_require_it() {
    for (how, starts) in [(CLEAN, true), (CRASH, false)] {
        let task = Unit { restart: Restart::Never, ..unit("a") };
        let mut w = World::new(vec![task, requires("b", &["a"])]);
        w.orders();
        w.ends("a", how);
        assert_eq!(w.orders() == ["spawn b"], starts);
    }
}

#[test]
fn a_restart_does_not_wait_for_dependencies() {
    let mut w = World::new(vec![unit("a"), requires("b", &["a"])]);
    w.ready("a");
    w.ready("b");
    for _ in 0..3 {
        w.ends("a", CRASH);
    }
    w.orders();
    assert_ne!(w.state("a"), ServiceState::Ready);
    w.ends("b", CRASH);
    assert_eq!(w.orders(), ["spawn b"]);
}

#[test]
fn a_program_that_cannot_run_is_named() {
    let mut w = World::new(vec![unit("a"), unit("b")]);
    w.event("a", Input::ExecFailed { why: "cannot run /bin/a: gone".into() });
    w.ends("a", LastExit::Code(127));
    w.event("b", Input::SpawnFailed { why: "cannot fork".into(), jitter: 0 });
    assert_eq!(w.row("a").last_exit, Some(LastExit::NotStarted("cannot run /bin/a: gone".into())));
    assert_eq!(w.row("b").last_exit, Some(LastExit::NotStarted("cannot fork".into())));
    w.ends("a", CRASH);
    assert_eq!(w.row("a").last_exit, Some(CRASH), "the next end has its own reason");
}

fn restart(w: &mut World, name: &str) -> Result<(), String> {
    let mut out = Vec::new();
    let result = w.supervisor.restart(w.now, name, &mut out);
    w.take(out);
    result
}

#[test]
fn an_operator_restarts_at_once_whatever_the_state() {
    let mut w = World::new(vec![unit("a"), requires("b", &["a"])]);
    assert_eq!(restart(&mut w, "b"), Err("b has not been started yet: it waits for a".into()));
    assert_eq!(restart(&mut w, "x"), Err("there is no service \"x\"".into()));
    w.ready("a");
    w.orders();
    restart(&mut w, "a").unwrap();
    assert_eq!(w.orders(), ["term a"]);
    w.ends("a", CLEAN);
    assert_eq!(w.orders(), ["spawn a"]);
    for _ in 0..3 {
        w.ends("a", CRASH);
        if w.state("a") == ServiceState::Backoff {
            break;
        }
    }
    w.orders();
    restart(&mut w, "a").unwrap();
    assert_eq!(w.orders(), ["spawn a"], "out of its back-off");
}

#[test]
fn everything_stops_in_reverse_order() {
    let mut w = World::new(vec![unit("a"), requires("b", &["a"]), after("c", &["b"]), unit("d")]);
    for name in ["a", "b", "c", "d"] {
        w.ready(name);
    }
    w.orders();
    w.stop_all();
    assert_eq!(w.orders(), ["term c", "term d"]);
    w.ends("d", CLEAN);
    assert!(w.orders().is_empty());
    w.ends("c", CLEAN);
    assert_eq!(w.orders(), ["term b"]);
    w.ends("b", CRASH);
    assert_eq!(w.orders(), ["term a"]);
    assert!(!w.supervisor.all_stopped());
    w.ends("a", CLEAN);
    assert!(w.supervisor.all_stopped() && w.orders().is_empty());
    assert_eq!(w.supervisor.next_wakeup(), None);
}

#[test]
fn going_down_starts_nothing_and_waits_for_no_back_off() {
    let mut w = World::new(vec![unit("a"), requires("b", &["a"]), unit("c"), unit("d")]);
    w.ends("c", CRASH);
    w.ends("c", CRASH);
    w.next();
    restart(&mut w, "d").unwrap();
    w.orders();
    w.stop_all();
    assert_eq!(w.orders(), ["term a", "term c"], "b never ran, d is being stopped already");
    assert_eq!(restart(&mut w, "a"), Err("the system is going down".into()));
    for name in ["a", "c", "d"] {
        w.ends(name, CRASH);
    }
    assert!(w.orders().is_empty());
    assert!(w.supervisor.all_stopped());
}

#[test]
fn stray_events_change_nothing() {
    let mut w = World::new(vec![unit("a"), requires("b", &["a"])]);
    w.orders();
    w.event("b", Input::Notified);
    w.event("b", Input::Exited { how: CRASH, jitter: 0 });
    let mut out = Vec::new();
    w.supervisor.handle(w.now, ServiceId(2), Input::Notified, &mut out);
    assert!(out.is_empty(), "a number that nobody has");
    assert_eq!((w.state("b"), w.row("b").last_exit), (ServiceState::Waiting, None));
    assert!(w.orders().is_empty());
}
