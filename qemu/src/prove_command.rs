//! `cargo lab prove`: the explorations that take longer than a test run may, with the bounds of `docs/proof.md`.
//!
//! A proof is a choice of a crate's tests, optimised, with `EVENKEEL_PROVE=1`, in a process group of its own. What counts is
//! each test in it, as its harness tells. A proof that does not build, is late or has no test at all fails as a whole:
//! a filter that fits nothing any more shows nothing.

use crate::error::LabError;
use crate::progress::print;
use crate::table::seconds;
use crate::test_command::{Outcome, run_one};
use crate::{programs, signals};
use std::io::{BufRead, BufReader, Read};
use std::process::Command;
use std::time::{Duration, Instant};

/// An exploration that is too large for an ordinary test run.
struct Proof {
    name: &'static str,
    /// Where its tests are, and what their names have in common.
    package: &'static str,
    filter: &'static str,
    /// From a fresh clone on two busy cores; beyond it a bound has grown.
    limit: Duration,
}

/// All of them. A later one gets a line here and a section in `docs/proof.md`.
const PROOFS: [Proof; 1] = [Proof {
    name: "quorum",
    package: "evenkeel-quorum",
    filter: "model::",
    limit: Duration::from_secs(30 * 60),
}];

/// Their names.
pub const NAMES: [&str; PROOFS.len()] = [PROOFS[0].name];

impl Proof {
    /// Its tests tell on standard error what they explored.
    fn command(&self) -> Command {
        let mut command = programs::cargo();
        let choice = ["--package", self.package, "--lib", self.filter];
        command.args(["test", "--quiet", "--release"]).args(choice).args(["--", "--nocapture"]);
        command.env("EVENKEEL_PROVE", "1");
        command
    }
}

/// Tests of one proof, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Reads what a test harness says of itself.
    fn read(said: impl Read) -> Tally {
        let mut tally = Tally::default();
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            if let Some((passed, failed)) = result(&line) {
                tally.passed += passed;
                tally.failed += failed;
            }
        }
        tally
    }

    /// What a whole proof came to: its tests, and one failure more when it ended badly for another reason than theirs.
    fn judged(self, outcome: Outcome) -> Tally {
        let bad = outcome != Outcome::Passed || self.passed == 0;
        Tally { failed: if bad { self.failed.max(1) } else { self.failed }, ..self }
    }
}

/// `test result: ok. 31 passed; 0 failed; ...`
fn result(line: &str) -> Option<(u32, u32)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.parse().ok());
    Some((count(" passed")?, count(" failed")?))
}

/// Runs the chosen proofs (all when none is chosen); true when all passed.
///
/// # Errors
/// Nothing was run, or the rest was not.
pub fn run(chosen: &[String]) -> Result<bool, LabError> {
    let signals = signals::ending()?;
    let mut all = Tally::default();
    for proof in PROOFS.iter().filter(|p| chosen.is_empty() || chosen.iter().any(|c| c == p.name)) {
        eprintln!("==> {} (at most {})", proof.name, seconds(proof.limit));
        let since = Instant::now();
        let (said, out) = std::io::pipe().map_err(LabError::io("make a pipe"))?;
        let mut command = proof.command();
        command.stdout(out);
        let (outcome, tally) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| Tally::read(said));
            // The command goes with the call, and with it our end of the pipe.
            let outcome = run_one(command, proof.limit, &signals);
            (outcome, reader.join().unwrap_or_default())
        });
        let outcome = outcome?;
        let tally = tally.judged(outcome);
        let word = match outcome {
            Outcome::OverBudget => "FAILED: it takes too long",
            Outcome::Interrupted => "interrupted",
            Outcome::Passed | Outcome::Slow if tally.failed == 0 => "passed",
            Outcome::Passed | Outcome::Slow => "FAILED: there is no such test",
            Outcome::Failed => "FAILED",
        };
        eprintln!("    {word} ({})", seconds(since.elapsed()));
        all = Tally { passed: all.passed + tally.passed, failed: all.failed + tally.failed };
        if outcome == Outcome::Interrupted {
            break;
        }
    }
    let _ = print(&format!("{} passed, {} failed\n", all.passed, all.failed));
    Ok(all.failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_is_understood() {
        let ok =
            "test result: ok. 31 passed; 0 failed; 0 ignored; 0 measured; 21 filtered out; finished in 3.02s";
        assert_eq!(result(ok), Some((31, 0)));
        let bad = "test result: FAILED. 2 passed; 10 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(result(bad), Some((2, 10)));
        for other in ["running 31 tests", "test result: ok", "test result: ok. many passed; 0 failed", ""] {
            assert_eq!(result(other), None, "{other}");
        }
        let said = format!("\nrunning 31 tests\n...\n{ok}\n\n{bad}\n");
        assert_eq!(Tally::read(said.as_bytes()), Tally { passed: 33, failed: 10 });
    }

    #[test]
    fn a_proof_fails_that_ends_badly_or_shows_nothing() {
        let tally = |passed, failed| Tally { passed, failed };
        for (said, outcome, expected) in [
            (tally(31, 0), Outcome::Passed, tally(31, 0)),
            (tally(30, 1), Outcome::Failed, tally(30, 1)),
            (tally(0, 0), Outcome::Passed, tally(0, 1)),
            (tally(0, 0), Outcome::Failed, tally(0, 1)),
            (tally(0, 0), Outcome::OverBudget, tally(0, 1)),
            (tally(0, 0), Outcome::Interrupted, tally(0, 1)),
        ] {
            assert_eq!(said.judged(outcome), expected, "{said:?} {outcome:?}");
        }
    }

    #[test]
    fn each_proof_is_told_of() {
        let told = std::fs::read_to_string(programs::workspace().join("docs/proof.md")).expect("there");
        for name in NAMES {
            assert!(told.contains(&format!("## {name}\n")), "docs/proof.md has a section on {name}");
        }
    }
}
