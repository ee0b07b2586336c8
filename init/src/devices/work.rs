//! Loading modules for devices, as decisions: what a child is started for, when, and what becomes of it. Pure.
//!
//! ```text
//!          +------------------------- the child ended without a word: said ----------------------+
//!          v                                                                                     |
//! Idle(not before) --something waits--> Running(job, deadline) --finished--> Idle(+ pause) ------+
//!                                          | each report: deadline anew
//!                                          +-- deadline: killed, its module never tried again, a walk for the rest
//! ```
//! One child at a time. It does not know which modules are loaded already; the child sees that for itself.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use nix::errno::Errno;
use proto::time::Time;

use super::queue::{Job, Queue};
use super::report::Report;
use super::uevent::{Action, Uevent};

/// How long a child may be silent: one module, whose driver may look for its devices meanwhile. Drivers that take
/// longer go on in the kernel; only nobody waits for them.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// From the start of one child to the next: devices come in bunches, and a flood of them must not become one of
/// processes.
const SERVE_EVERY: Duration = Duration::from_millis(50);
/// The same for walks, each of which reads all of `/sys/bus`.
const WALK_EVERY: Duration = Duration::from_secs(1);
/// Modules whose refusal is remembered, so that it is said once. A machine with more has been told enough.
const REFUSED_MAX: usize = 64;
/// Modules that are never tried again because a child hung in them. With more of them there are no further walks.
const STUCK_MAX: usize = 8;

/// What there is to say to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Refused { name: String, errno: i32, firmware: bool },
    Trouble(String),
    Stuck(String),
    Died,
    Loaded { modaliases: usize, loaded: usize },
}

impl Note {
    /// Whether something is not as it should be.
    pub(crate) fn is_bad(&self) -> bool {
        !matches!(self, Note::Loaded { .. })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Refused { name, errno, firmware } => {
                write!(f, "module {name}: {}", Errno::from_raw(*errno).desc())?;
                match firmware {
                    true => f.write_str("; it may want firmware, which the image does not have"),
                    false => Ok(()),
                }
            }
            Note::Trouble(text) => write!(f, "devices: {text}"),
            Note::Stuck(name) if name.is_empty() => {
                write!(f, "devices: not looked at within {} s; given up", SILENCE_MAX.as_secs())
            }
            Note::Stuck(name) => {
                let seconds = SILENCE_MAX.as_secs();
                write!(f, "module {name}: not loaded within {seconds} s; going on without it")
            }
            Note::Died => f.write_str("devices: the child that loads modules died; going on"),
            Note::Loaded { modaliases, loaded } => {
                write!(f, "devices: {modaliases} modaliases, {loaded} modules loaded for them")
            }
        }
    }
}

#[derive(Debug)]
struct Running {
    job: u32,
    walk: bool,
    deadline: Time,
    /// The module being loaded; empty between two.
    loading: String,
}

/// What is waiting, running and known.
#[derive(Debug, Default)]
pub(crate) struct Work {
    queue: Queue,
    running: Option<Running>,
    /// The number of the last job.
    job: u32,
    /// Start of the last child.
    started: Option<Time>,
    refused: BTreeSet<String>,
    stuck: BTreeSet<String>,
    input_changed: bool,
}

impl Work {
    /// Takes a message of the kernel in.
    pub(crate) fn uevent(&mut self, event: &Uevent<'_>) {
        if let (Action::Add, Some(modalias)) = (event.action, event.modalias) {
            self.queue.push(modalias);
        }
        self.input_changed |= event.subsystem == "input" && event.action != Action::Other;
    }

    /// Messages were lost, or none have been heard yet: everything has to be looked at.
    pub(crate) fn look_at_all(&mut self) {
        self.queue.walk();
        self.input_changed = true;
    }

    /// Whether input devices have come or gone since the last call.
    pub(crate) fn take_input_changed(&mut self) -> bool {
        std::mem::take(&mut self.input_changed)
    }

    /// Modules that a child leaves alone.
    pub(crate) fn stuck(&self) -> &BTreeSet<String> {
        &self.stuck
    }

    /// What a child has to be started for now, and its job's number. Whoever cannot start it says [`Work::died`].
    pub(crate) fn next_job(&mut self, now: Time) -> Option<(u32, Job)> {
        if self.starts_at().is_none_or(|at| at > now) {
            return None;
        }
        let job = self.queue.take()?;
        self.job = self.job.wrapping_add(1);
        self.started = Some(now);
        self.running = Some(Running {
            job: self.job,
            walk: job == Job::Walk,
            deadline: now + SILENCE_MAX,
            loading: String::new(),
        });
        Some((self.job, job))
    }

    /// When the next child is to be started; `None` when one runs or nothing waits.
    fn starts_at(&self) -> Option<Time> {
        if self.running.is_some() || self.queue.is_empty() {
            return None;
        }
        let every = if self.queue.wants_walk() { WALK_EVERY } else { SERVE_EVERY };
        Some(self.started.map_or(Time::ZERO, |started| started + every))
    }

    /// When [`Work::next_job`] or [`Work::overdue`] has something to do.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        self.running.as_ref().map(|running| running.deadline).or_else(|| self.starts_at())
    }

    /// Takes a child's packet in.
    pub(crate) fn report(&mut self, now: Time, packet: &[u8]) -> Option<Note> {
        let (job, report) = Report::parse(packet)?;
        let running = self.running.as_mut().filter(|running| running.job == job)?;
        running.deadline = now + SILENCE_MAX;
        running.loading.clear();
        match report {
            Report::Loading(name) => {
                running.loading = name;
                None
            }
            Report::Refused { name, errno, firmware } => {
                let new = self.refused.len() < REFUSED_MAX && self.refused.insert(name.clone());
                new.then_some(Note::Refused { name, errno, firmware })
            }
            Report::Trouble(text) => Some(Note::Trouble(text)),
            Report::Finished { modaliases, loaded } => {
                let walk = running.walk;
                self.running = None;
                (walk || loaded > 0).then_some(Note::Loaded { modaliases, loaded })
            }
        }
    }

    /// The child ended. After its last word that is nothing new.
    pub(crate) fn died(&mut self) -> Option<Note> {
        self.running.take().map(|_| Note::Died)
    }

    /// Gives up on a child that has been silent for too long: it is to be killed. What it was asked for is done by a
    /// walk, without the module it hung in.
    pub(crate) fn overdue(&mut self, now: Time) -> Option<Note> {
        let running = self.running.take_if(|running| running.deadline <= now)?;
        if !running.loading.is_empty() && self.stuck.len() < STUCK_MAX {
            self.stuck.insert(running.loading.clone());
            self.queue.walk();
        }
        Some(Note::Stuck(running.loading))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn added(alias: &str) -> Uevent<'_> {
        Uevent { action: Action::Add, subsystem: "pci", modalias: Some(alias) }
    }

    fn serve(list: &[&str]) -> Job {
        Job::Serve(list.iter().map(|s| (*s).to_owned()).collect())
    }

    fn finished(job: u32) -> String {
        Report::Finished { modaliases: 1, loaded: 0 }.packet(job)
    }

    #[test]
    fn one_child_at_a_time_and_not_too_often() {
        let mut work = Work::default();
        assert_eq!((work.next_wakeup(), work.next_job(at(0))), (None, None));
        work.look_at_all();
        work.uevent(&added("a"));
        assert_eq!(work.next_job(at(5)), Some((1, Job::Walk)), "the walk finds what came before it");
        work.uevent(&added("b"));
        assert_eq!(work.next_job(at(60)), None, "one runs");
        assert_eq!(work.next_wakeup(), Some(at(5) + SILENCE_MAX));
        assert_eq!(
            work.report(at(10), finished(1).as_bytes()),
            Some(Note::Loaded { modaliases: 1, loaded: 0 })
        );
        work.uevent(&added("c"));
        assert_eq!((work.next_job(at(54)), work.next_wakeup()), (None, Some(at(55))));
        assert_eq!(work.next_job(at(55)), Some((2, serve(&["b", "c"]))));
        assert_eq!(work.report(at(56), finished(2).as_bytes()), None, "nothing loaded, nothing said");
        work.look_at_all();
        assert_eq!((work.next_job(at(1054)), work.next_wakeup()), (None, Some(at(1055))));
        assert_eq!(work.next_job(at(1055)), Some((3, Job::Walk)));
    }

    #[test]
    fn only_what_comes_wants_modules_and_only_input_wants_buttons() {
        let mut work = Work::default();
        let gone = Uevent { action: Action::Remove, subsystem: "usb", modalias: Some("usb:v1") };
        work.uevent(&gone);
        work.uevent(&Uevent { action: Action::Other, subsystem: "input", modalias: Some("input:b") });
        assert_eq!((work.next_job(at(0)), work.take_input_changed()), (None, false));
        for action in [Action::Add, Action::Remove] {
            work.uevent(&Uevent { action, subsystem: "input", modalias: None });
            assert_eq!((work.take_input_changed(), work.take_input_changed()), (true, false));
        }
        work.look_at_all();
        assert!(work.take_input_changed(), "it may have been among what was lost");
    }

    #[test]
    fn a_silent_child_is_given_up_and_the_rest_is_done_without_its_module() {
        let mut work = Work::default();
        work.uevent(&added("a"));
        let (job, _) = work.next_job(at(0)).unwrap();
        work.report(at(20_000), Report::Loading("one".into()).packet(job).as_bytes());
        work.report(at(40_000), Report::Loading("two".into()).packet(job).as_bytes());
        assert_eq!(work.overdue(at(69_999)), None, "each word counts anew");
        assert_eq!(work.overdue(at(70_000)), Some(Note::Stuck("two".into())));
        assert_eq!(work.report(at(70_001), finished(job).as_bytes()), None, "a late word");
        assert_eq!(work.died(), None, "the kill's own work");
        assert_eq!(work.next_job(at(70_002)), Some((2, Job::Walk)));
        assert!(work.stuck().contains("two") && !work.stuck().contains("one"));
        // Hanging elsewhere would hang the next one, too.
        assert_eq!(work.overdue(at(200_000)), Some(Note::Stuck(String::new())));
        assert_eq!(work.next_job(at(200_000)), None);
    }

    #[test]
    fn walks_end_when_too_much_hangs() {
        let mut work = Work::default();
        work.look_at_all();
        let mut now = 0;
        let mut children = 0;
        while let Some((job, _)) = work.next_job(at(now)) {
            children += 1;
            work.report(at(now), Report::Loading(format!("m{job}")).packet(job).as_bytes());
            now += 100_000;
            assert!(work.overdue(at(now)).is_some());
        }
        assert_eq!(children, STUCK_MAX + 1);
    }

    #[test]
    fn a_refusal_is_said_once() {
        let mut work = Work::default();
        work.look_at_all();
        let (job, _) = work.next_job(at(0)).unwrap();
        let refused =
            |name: &str| Report::Refused { name: name.into(), errno: libc::ENODEV, firmware: name == "f" };
        let said = |work: &mut Work, name: &str| {
            work.report(at(1), refused(name).packet(job).as_bytes()).map(|note| note.to_string())
        };
        assert_eq!(said(&mut work, "tg3").as_deref(), Some("module tg3: No such device"));
        assert_eq!(said(&mut work, "tg3"), None);
        let firmware = said(&mut work, "f").unwrap();
        assert_eq!(firmware, "module f: No such device; it may want firmware, which the image does not have");
        (0..1000).for_each(|i| drop(said(&mut work, &format!("m{i}"))));
        assert_eq!(work.refused.len(), REFUSED_MAX);
    }

    #[test]
    fn a_child_that_dies_is_said_and_does_not_hold_the_queue() {
        let mut work = Work::default();
        work.look_at_all();
        assert!(work.next_job(at(0)).is_some());
        work.uevent(&added("a"));
        assert_eq!((work.died(), work.died()), (Some(Note::Died), None));
        assert_eq!(work.next_job(at(1000)), Some((2, serve(&["a"]))));
    }
}
