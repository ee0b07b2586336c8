//! Runs helper programs: never asks anything, never waits for ever, keeps their last words.

use crate::error::LabError;
use crate::sys::{self, Waited};
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Output kept of one stream of one program.
const OUTPUT_MAX: u64 = 4 << 20;

/// How a program ended and what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code; 127 when there is no such program, -1 when a signal or the deadline ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Outcome {
    /// Whether it ended well.
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// The outcome as an error of `command`.
    pub fn failure(&self, command: &str) -> LabError {
        let mut last = self.err.lines().chain(self.out.lines()).map(str::trim);
        // apt puts its reason on lines that begin with E:; other programs say it last.
        let reason = last.clone().find(|l| l.starts_with("E:")).or_else(|| last.rfind(|l| !l.is_empty()));
        LabError::Command {
            command: command.to_owned(),
            status: match self.code {
                127 => "not found".into(),
                -1 => "ended by a signal or the deadline".into(),
                code => format!("exit code {code}"),
            },
            detail: reason.map(|text| format!(": {text}")).unwrap_or_default(),
        }
    }
}

/// Runs `command` with nothing on standard input and its output kept.
pub fn run(command: &mut Command, limit: Duration) -> Outcome {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { -1 };
            return Outcome { code, out: String::new(), err: error.to_string() };
        }
    };
    let out = child.stdout.take().map(collect);
    let err = child.stderr.take().map(collect);
    let code = end(&mut child, limit);
    let text = |thread: Option<JoinHandle<String>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
    Outcome { code, out: text(out), err: text(err) }
}

/// Runs `command` with its output going where ours goes.
///
/// # Errors
/// It could not be started, failed, or passed `limit`.
pub fn stream(command: &mut Command, name: &str, limit: Duration) -> Result<(), LabError> {
    command.stdin(Stdio::null());
    let mut child = command.spawn().map_err(LabError::io(format!("start {name}")))?;
    match end(&mut child, limit) {
        0 => Ok(()),
        code => Err(Outcome { code, ..Outcome::default() }.failure(name)),
    }
}

/// Waits for the child's end; at the deadline it is killed.
fn end(child: &mut Child, limit: Duration) -> i32 {
    match sys::wait_child(child, limit, None) {
        Ok(Waited::Ended(status)) => status.code().unwrap_or(-1),
        _ => {
            let _ = child.kill();
            let _ = child.wait(); // after SIGKILL this is the kernel's clean-up only
            -1
        }
    }
}

/// Reads a pipe to its end on a thread of its own, keeping the front.
fn collect(pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut pipe = pipe;
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(OUTPUT_MAX).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink()); // a full pipe would stop the program
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn output_and_code_are_kept() {
        let outcome = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), LIMIT);
        assert_eq!(outcome, Outcome { code: 3, out: "out\n".into(), err: "err\n".into() });
        assert_eq!(outcome.failure("sh").to_string(), "`sh` failed (exit code 3): out");
    }

    #[test]
    fn missing_and_endless_programs_are_told() {
        let missing = run(&mut Command::new("evenkeel-no-such-program"), LIMIT);
        assert_eq!(missing.code, 127);
        let endless = run(Command::new("tail").args(["-f", "/dev/null"]), Duration::from_millis(50));
        assert_eq!(endless.code, -1);
    }

    #[test]
    fn apts_reason_is_found_among_its_words() {
        let err = "W: something\nE: held broken packages\nmore".to_owned();
        let outcome = Outcome { code: 100, out: String::new(), err };
        assert_eq!(
            outcome.failure("apt-get").to_string(),
            "`apt-get` failed (exit code 100): E: held broken packages"
        );
    }
}
