//! `lab-fault`: sends signals to this node's programs when the lab asks, so that tests can kill or stop a daemon.
//!
//! It speaks the lines of `keel agent` on a virtio port of its own: `run ID HEX`, answered by `out ID HEX` and
//! `done ID CODE`. The one command is `signal PROGRAM KILL|STOP|CONT|TERM`. In the lab's overlay only.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The port's name, as the lab's command line gives it.
const PORT: &str = "org.evenkeel.fault";
/// Bytes of the longest request.
const LINE_MAX: u64 = 4096;

fn main() -> ExitCode {
    match find(Path::new("/sys/class/virtio-ports")).and_then(|path| serve(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("port {PORT}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn find(class: &Path) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir(class)?.flatten() {
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Serves requests until the lab closes its side.
fn serve(path: &Path) -> io::Result<()> {
    let mut port = File::options().read(true).write(true).open(path)?;
    let mut reader = BufReader::new(port.try_clone()?);
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        let ["run", id, hex] = line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
        let (text, code) = match obey(Path::new("/proc"), &unhex(hex).unwrap_or_default()) {
            Ok(text) => (text, 0),
            Err(text) => (text, 1),
        };
        let hex = text.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        port.write_all(format!("out {id} {hex}\ndone {id} {code}\n").as_bytes())?;
    }
}

fn unhex(text: &str) -> Option<String> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let bytes = digits?.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    String::from_utf8(bytes).ok()
}

/// Carries a command out; what it did, or why not.
fn obey(proc: &Path, command: &str) -> Result<String, String> {
    let usage = || "expected: signal PROGRAM KILL|STOP|CONT|TERM".to_owned();
    let ["signal", program, name] = command.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err(usage());
    };
    let signal = match name {
        "KILL" => Signal::SIGKILL,
        "STOP" => Signal::SIGSTOP,
        "CONT" => Signal::SIGCONT,
        "TERM" => Signal::SIGTERM,
        _ => return Err(usage()),
    };
    let pids = running(proc, program);
    if pids.is_empty() {
        return Err(format!("no program {program} runs here"));
    }
    for pid in &pids {
        kill(Pid::from_raw(*pid), signal).map_err(|errno| format!("process {pid}: {errno}"))?;
    }
    Ok(format!("{name} to {pids:?}\n"))
}

/// Processes whose program has this name.
fn running(proc: &Path, program: &str) -> Vec<i32> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = |pid: &i32| {
        std::fs::read_to_string(proc.join(pid.to_string()).join("comm"))
            .is_ok_and(|name| name.trim() == program)
    };
    pids.filter(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_program_is_found_by_its_name_and_killed() {
        // A name of its own: other tests run programs too.
        let name = format!("ekf{}", std::process::id());
        let program = std::env::temp_dir().join(&name);
        std::fs::copy("/usr/bin/tail", &program).expect("copied");
        let mut child =
            std::process::Command::new(&program).args(["-f", "/dev/null"]).spawn().expect("spawned");
        std::fs::remove_file(&program).expect("removed");
        // The kernel names a process a moment after it lets its parent go on.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let done = loop {
            match obey(Path::new("/proc"), &format!("signal {name} KILL")) {
                Ok(done) => break done,
                Err(error) if std::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => std::thread::yield_now(),
            }
        };
        assert_eq!(done, format!("KILL to [{}]\n", child.id()));
        assert_eq!(child.wait().expect("reaped").signal(), Some(9));
    }

    #[test]
    fn nonsense_is_refused() {
        for (command, part) in [
            ("", "expected"),
            ("signal netd 9", "expected"),
            ("kill netd KILL", "expected"),
            ("signal no-such-program-here KILL", "no program"),
        ] {
            assert!(obey(Path::new("/proc"), command).expect_err("refused").contains(part), "{command}");
        }
        assert_eq!(unhex("6e6574"), Some("net".into()));
        assert_eq!(unhex("zz"), None);
    }
}
