//! `cargo lab test`: every stage of the project's tests, each with its own minutes.
//!
//! A stage runs in a process group of its own with nothing on standard input. It fails by its exit code, or by
//! needing half as much again as its budget (`tests/budget.toml`): then its group is ended.

use crate::error::LabError;
use crate::events::Hub;
use crate::progress::{Terminal, print};
use crate::sys::{self, Waited};
use crate::table::{self, seconds};
use crate::{programs, signals};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The stages in their order.
pub const STAGES: [&str; 6] = ["format", "lints", "rules", "unit", "image", "e2e"];
/// A stage that was told to end gets this long before it is killed.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetFile {
    stage: BTreeMap<String, Budget>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    minutes: f64,
}

/// Time each stage may take.
fn budgets(text: &str) -> Result<BTreeMap<String, Duration>, LabError> {
    let refused = |what: String| LabError::Refused(format!("tests/budget.toml: {what}"));
    let file: BudgetFile = toml::from_str(text).map_err(|e| refused(e.to_string()))?;
    let mut budgets = BTreeMap::new();
    for name in STAGES {
        let minutes = file.stage.get(name).map(|b| b.minutes).filter(|m| (0.01..=120.0).contains(m));
        let minutes =
            minutes.ok_or_else(|| refused(format!("[stage.{name}] needs minutes from 0.01 to 120")))?;
        budgets.insert(name.to_owned(), Duration::from_secs_f64(minutes * 60.0));
    }
    match file.stage.keys().find(|name| !STAGES.contains(&name.as_str())) {
        Some(other) => Err(refused(format!("stage {other} does not exist; stages: {}", STAGES.join(" ")))),
        None => Ok(budgets),
    }
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// Passed, over its budget by less than half.
    Slow,
    Failed,
    /// Ended because it needed half as much again as its budget.
    OverBudget,
    /// Somebody wants the whole test to end.
    Interrupted,
}

fn judge(passed: bool, took: Duration, budget: Duration) -> Outcome {
    match passed {
        false => Outcome::Failed,
        true if took > budget.mul_f64(1.5) => Outcome::OverBudget,
        true if took > budget => Outcome::Slow,
        true => Outcome::Passed,
    }
}

/// The commands of a stage, one after the other. `lab` is this program.
fn commands(stage: &str, lab: &PathBuf, offline: bool) -> Vec<Command> {
    let cargo = |words: &[&str]| {
        let mut command = programs::cargo();
        command.args(words);
        if offline && words[0] != "fmt" {
            command.env("CARGO_NET_OFFLINE", "true");
        }
        command
    };
    match stage {
        "format" => vec![cargo(&["fmt", "--all", "--check"])],
        "lints" => {
            let clippy = |targets: &[&str]| {
                cargo(&[&["clippy", "--quiet", "--workspace"], targets, &["--", "-D", "warnings"]].concat())
            };
            // "All" leaves out what a plain test run leaves out.
            vec![clippy(&["--all-targets"]), clippy(&["--test", "dependencies", "--test", "e2e"])]
        }
        "rules" => vec![cargo(&["test", "--quiet", "--workspace", "--test", "dependencies"])],
        "unit" => vec![cargo(&["test", "--quiet", "--no-fail-fast", "--workspace"])],
        "image" => {
            let mut command = Command::new(lab);
            command.arg("prepare");
            if offline {
                command.arg("--offline");
            }
            vec![command]
        }
        _ => vec![cargo(&["test", "--quiet", "--workspace", "--test", "e2e", "--", "--test-threads=1"])],
    }
}

/// Where failed end-to-end runs leave their serial logs and captures.
pub fn failure_dir() -> PathBuf {
    crate::prepare::build_dir().join("failed")
}

/// Runs the chosen stages (all when none is chosen); true when all passed.
pub fn run(chosen: &[String], offline: bool) -> Result<bool, LabError> {
    if let Some(unknown) = chosen.iter().find(|c| !STAGES.contains(&c.as_str())) {
        return Err(LabError::Refused(format!("no stage {unknown}; stages: {}", STAGES.join(" "))));
    }
    let path = programs::workspace().join("tests/budget.toml");
    let text = std::fs::read_to_string(&path).map_err(LabError::io(format!("read {}", path.display())))?;
    let budgets = budgets(&text)?;
    // Taken now: a stage may replace the program under our feet.
    let lab = std::env::current_exe().map_err(LabError::io("find the lab's own program"))?;
    let mut progress = Terminal::default();
    crate::packages::ensure(&mut crate::packages::ThisHost, offline, &mut progress)?;
    let _ = std::fs::remove_dir_all(failure_dir());

    let signals = signals::ending()?;

    let mut rows = Vec::new();
    let mut good = true;
    for stage in STAGES.iter().filter(|s| chosen.is_empty() || chosen.iter().any(|c| c == *s)) {
        let budget = budgets[*stage];
        eprintln!("==> {stage} (budget {})", seconds(budget));
        let since = Instant::now();
        let mut outcome = Outcome::Passed;
        for command in commands(stage, &lab, offline) {
            let left = budget.mul_f64(1.5).saturating_sub(since.elapsed());
            outcome = run_one(command, left, &signals)?;
            if outcome != Outcome::Passed {
                break;
            }
        }
        let took = since.elapsed();
        if outcome == Outcome::Passed {
            outcome = judge(true, took, budget);
        }
        let word = match outcome {
            Outcome::Passed => "passed",
            Outcome::Slow => "passed, over budget",
            Outcome::Failed => "FAILED",
            Outcome::OverBudget => "FAILED: over budget by half",
            Outcome::Interrupted => "interrupted",
        };
        eprintln!("    {word} ({})", seconds(took));
        rows.push([(*stage).to_owned(), word.to_owned(), seconds(took), seconds(budget)]);
        good &= matches!(outcome, Outcome::Passed | Outcome::Slow);
        if !good && *stage == "e2e" {
            eprintln!("    serial logs and captures: {}", failure_dir().display());
        }
        if outcome == Outcome::Interrupted {
            break;
        }
    }
    eprintln!();
    let _ = print(&table::render(["STAGE", "RESULT", "TOOK", "BUDGET"], &rows));
    Ok(good)
}

/// Runs one command in a group of its own, which ends at `limit` or with us.
pub(crate) fn run_one(
    mut command: Command,
    limit: Duration,
    signals: &SignalFd,
) -> Result<Outcome, LabError> {
    command.stdin(Stdio::null());
    sys::own_group(&mut command);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(LabError::io(format!("start {name}")))?;
    let waited = sys::wait_child(&mut child, limit, Some(signals.as_fd()));
    match waited.map_err(LabError::io(format!("wait for {name}")))? {
        Waited::Ended(status) => Ok(if status.success() { Outcome::Passed } else { Outcome::Failed }),
        Waited::Late => {
            end_group(&mut child);
            Ok(Outcome::OverBudget)
        }
        Waited::Other => {
            end_group(&mut child);
            Ok(Outcome::Interrupted)
        }
    }
}

/// Ends the child and everything it started in its group; what those bound to themselves goes with them. cargo ends
/// at once, the test it runs has a lab to clean up: a group is there as long as one of its processes is.
fn end_group(child: &mut Child) {
    let Some(group) = i32::try_from(child.id()).ok().map(Pid::from_raw) else { return };
    let _ = killpg(group, Signal::SIGTERM);
    let _ = sys::wait_child(child, END_LIMIT, None);
    let gone = Hub::default().wait(END_LIMIT, INTERVAL, || killpg(group, None).is_err().then_some(()));
    if gone.is_none() {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = sys::wait_child(child, END_LIMIT, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::SigSet;

    #[test]
    fn the_budget_file_names_every_stage_and_no_other() {
        let text = std::fs::read_to_string(programs::workspace().join("tests/budget.toml")).expect("there");
        let budgets = budgets(&text).expect("valid");
        assert_eq!(budgets.len(), STAGES.len());
        let sum: Duration = budgets.values().sum();
        // 35 minutes are the limit of the finished product on two cores; what is to come needs its share.
        assert!(sum <= Duration::from_secs(31 * 60), "all stages together: {sum:?}");
    }

    #[test]
    fn bad_budgets_are_named() {
        let all = |minutes: &str| STAGES.map(|s| format!("[stage.{s}]\nminutes = {minutes}\n")).concat();
        for (text, part) in [
            (all("0.0"), "[stage.format]"),
            (all("1.0").replace("[stage.e2e]\nminutes = 1.0\n", ""), "[stage.e2e]"),
            (all("1.0") + "[stage.more]\nminutes = 1\n", "stage more"),
            (all("\"x\""), "minutes"),
        ] {
            let error = budgets(&text).expect_err("refused").to_string();
            assert!(error.contains(part), "{error} names {part}");
        }
    }

    #[test]
    fn half_over_the_budget_fails() {
        let minute = Duration::from_secs(60);
        for (passed, seconds, expected) in [
            (true, 60, Outcome::Passed),
            (true, 61, Outcome::Slow),
            (true, 90, Outcome::Slow),
            (true, 91, Outcome::OverBudget),
            (false, 1, Outcome::Failed),
        ] {
            assert_eq!(judge(passed, Duration::from_secs(seconds), minute), expected, "{passed} {seconds}");
        }
    }

    #[test]
    fn a_stage_is_ended_with_everything_it_started() {
        let signals = SignalFd::new(&SigSet::empty()).expect("signalfd");
        let mut command = Command::new("sh");
        // The leader ends at once; the other one has something to do first.
        command.args(["-c", "(trap exit TERM; tail -f /dev/null & wait) & exec tail -f /dev/null"]);
        let since = Instant::now();
        let outcome = run_one(command, Duration::from_millis(50), &signals).expect("ran");
        assert_eq!(outcome, Outcome::OverBudget);
        // Twice: in a container whose first process reaps nobody a group never goes.
        assert!(since.elapsed() < 2 * END_LIMIT, "SIGTERM sufficed");
        let mut quick = Command::new("sh");
        quick.args(["-c", "exit 1"]);
        assert_eq!(run_one(quick, END_LIMIT, &signals).expect("ran"), Outcome::Failed);
    }
}
