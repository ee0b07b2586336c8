//! One round of one subject, and what its rounds add up to.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::command;

use crate::namespace::{MOMENT, PATIENCE, Running, Stage};
use crate::reexec;
use crate::reports::{self, Report};
use crate::subject::{Kind, Subject};

pub(crate) const MANY: usize = 100;
const FEW: usize = 10;
/// Different services killed in a round, each once.
pub(crate) const DEATHS_PER_ROUND: usize = 90;
/// Deaths of one round take no longer: a peer that lets a second pass between turns has fewer of them, as told.
const DEATHS_BUDGET: i64 = 3_000_000_000;
/// The service that dies three times in a row; none of those that die once.
const QUICK: usize = MANY - 1;
const QUICK_DEATHS: usize = 3;
/// runit and daemontools restart a service that has lived so long at once, and let a second pass otherwise; for dinit
/// it is 0.2 s. For init every first death is restarted at once.
const SETTLED: i64 = 1_500_000_000;
pub(crate) const ORPHANS: usize = 10_000;
/// Making them takes a second, more on a busy machine.
const ORPHANS_LIMIT: Duration = Duration::from_secs(120);

/// What all rounds of a subject gave; a list has one entry for each run.
#[derive(Default)]
pub(crate) struct Figures {
    /// Bytes of its programs.
    pub(crate) size: u64,
    /// Private memory with [`FEW`] services (a [`Kind::Reaper`]: with its child), KiB.
    pub(crate) memory_few: Vec<f64>,
    /// Proportional memory with [`FEW`] services, KiB.
    pub(crate) proportional_few: Vec<f64>,
    /// Private memory with [`MANY`] services, KiB.
    pub(crate) memory_many: Vec<f64>,
    /// Processes of the supervisor with [`MANY`] services.
    pub(crate) processes: usize,
    /// exec of the supervisor to the last of [`MANY`] mains, ms.
    pub(crate) start: Vec<f64>,
    /// kill to the successor's main, ms.
    pub(crate) deaths: Vec<f64>,
    /// First kill to the third successor's main, each killed as soon as it reports, ms.
    pub(crate) quick: Vec<f64>,
    /// [`ORPHANS`] collected, ms.
    pub(crate) orphans_wall: Vec<f64>,
    /// The supervisor's processor time for each of them, us.
    pub(crate) orphans_cpu: Vec<f64>,
    /// Request to the first answer of the new program, ms.
    pub(crate) reexec: Vec<f64>,
    /// Bytes of output lost over a re-exec.
    pub(crate) lost: Vec<f64>,
    /// Rounds that did not come to their end.
    pub(crate) failures: Vec<String>,
}

/// Measures everything that applies, once.
pub(crate) fn round(stage: &Stage, subject: &Subject, figures: &mut Figures) -> Result<(), String> {
    match subject.kind {
        Kind::Reaper => {
            let running = stage.start(subject, 1)?;
            let lives = all_up(&running, 1)?;
            settle(&running, &lives)?;
            remember(&memory(&running)?, figures);
            orphans(stage, &running, figures)
        }
        Kind::Supervisor => {
            many(stage, subject, figures)?;
            let running = stage.start(subject, FEW)?;
            let lives = all_up(&running, FEW)?;
            settle(&running, &lives)?;
            remember(&memory(&running)?, figures);
            // With few services: what they cost is no part of it.
            if subject.scaffold.is_empty() {
                orphans(stage, &running, figures)?;
            }
            drop(running);
            if subject.control {
                let (ms, lost) = reexec::measure(stage, subject)?;
                figures.reexec.push(ms);
                figures.lost.push(lost);
            }
            Ok(())
        }
    }
}

fn many(stage: &Stage, subject: &Subject, figures: &mut Figures) -> Result<(), String> {
    let running = stage.start(subject, MANY)?;
    let lives = all_up(&running, MANY)?;
    let last = lives.iter().map(|r| r.at).max().unwrap_or_default();
    figures.start.push(ms(last - running.exec_at()));
    settle(&running, &lives)?;
    figures.memory_many.push(memory(&running)?.private);
    figures.processes = running.supervisors().len();

    let begin = reports::now();
    for life in lives.iter().take(DEATHS_PER_ROUND) {
        let killed = running.kill(life)?;
        let successor = successor(&running, life.number)?;
        figures.deaths.push(ms(successor.at - killed));
        if reports::now() - begin > DEATHS_BUDGET {
            break;
        }
        // What the supervisor still does after a restart must not hit the next one.
        running.quiet(MOMENT)?;
    }

    let mut victim = *lives.get(QUICK).ok_or("no service for the quick deaths")?;
    let mut first = None;
    for _ in 0..QUICK_DEATHS {
        let killed = running.kill(&victim)?;
        first.get_or_insert(killed);
        victim = successor(&running, victim.number)?;
    }
    figures.quick.push(ms(victim.at - first.unwrap_or(victim.at)));
    Ok(())
}

/// Waits until services 0 to `count` - 1 have reported.
pub(crate) fn all_up(running: &Running, count: usize) -> Result<Vec<Report>, String> {
    let mut lives = BTreeMap::new();
    while lives.len() < count {
        let report = running
            .next(PATIENCE)
            .map_err(|error| format!("{} of {count} services came up: {error}", lives.len()))?;
        if let Some(twice) = lives.insert(report.number, report) {
            return Err(running.told(&format!("service {} started twice", twice.number)));
        }
    }
    Ok(lives.into_values().collect())
}

/// Waits until the youngest service is [`SETTLED`].
fn settle(running: &Running, lives: &[Report]) -> Result<(), String> {
    let youngest = lives.iter().map(|r| r.at).max().unwrap_or_default();
    let left = youngest + SETTLED - reports::now();
    running.quiet(Duration::from_nanos(left.max(0).cast_unsigned()))
}

fn successor(running: &Running, number: u64) -> Result<Report, String> {
    let report = running.next(PATIENCE)?;
    if report.number != number {
        return Err(running.told(&format!("service {} started in place of {number}", report.number)));
    }
    Ok(report)
}

/// The memory of all processes of a supervisor, KiB.
struct Memory {
    /// Private_Clean and Private_Dirty: what each of them has alone.
    private: f64,
    /// Pss: what they share, also with strangers, divided by the number of those that share it. A program that
    /// forks looks smaller by its private memory than it is; by this one it does not.
    proportional: f64,
}

fn remember(memory: &Memory, figures: &mut Figures) {
    figures.memory_few.push(memory.private);
    figures.proportional_few.push(memory.proportional);
}

fn memory(running: &Running) -> Result<Memory, String> {
    let mut sum = Memory { private: 0.0, proportional: 0.0 };
    for pid in running.supervisors() {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {path}: {e}"))?;
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(name), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<f64>)) else {
                continue;
            };
            match name {
                "Private_Clean:" | "Private_Dirty:" => sum.private += kib,
                "Pss:" => sum.proportional += kib,
                _ => {}
            }
        }
    }
    if sum.private == 0.0 {
        return Err(running.told("it has no private memory: is it still there?"));
    }
    Ok(sum)
}

/// Nanoseconds on a processor of each of the supervisor's processes (`/proc/PID/schedstat`); all have one thread.
fn cpu(running: &Running) -> BTreeMap<i32, u64> {
    let of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
        Some((pid, text.split_ascii_whitespace().next()?.parse().ok()?))
    };
    running.supervisors().into_iter().filter_map(of).collect()
}

fn orphans(stage: &Stage, running: &Running, figures: &mut Figures) -> Result<(), String> {
    let before = cpu(running);
    let mut enter = Command::new("setpriv");
    enter.args(["--pdeathsig", "KILL", "nsenter", "--user", "--pid", "--preserve-credentials", "--target"]);
    enter.arg(running.pid().to_string()).arg(stage.helpers.join("orphans")).arg(ORPHANS.to_string());
    let outcome = command::run(&mut enter, ORPHANS_LIMIT);
    if !outcome.ok() {
        return Err(running.told(&outcome.failure("orphans").to_string()));
    }
    let wall: i64 = outcome.out.trim().parse().map_err(|_| format!("orphans said {:?}", outcome.out))?;
    // It goes back to sleep after the last one; only then is its time on the account.
    running.quiet(MOMENT)?;
    let spent: u64 =
        cpu(running).iter().map(|(pid, ns)| ns - before.get(pid).copied().unwrap_or(0).min(*ns)).sum();
    figures.orphans_wall.push(ms(wall));
    figures.orphans_cpu.push(spent as f64 / 1e3 / ORPHANS as f64);
    Ok(())
}

/// Nanoseconds as milliseconds.
pub(crate) fn ms(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e6
}
