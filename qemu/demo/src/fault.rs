//! `lab-fault`: breaks things on this node when the lab asks, and looks at what came of it.
//!
//! It speaks the lines of `keel agent` on a virtio port of its own: `run ID HEX`, answered by `out ID HEX` and
//! `done ID CODE`. Its commands are in [`USAGE`]. It runs as root and asks nobody: in the lab's overlay only.
//!
//! `lab-fault orphans N`, `lab-fault nothing` and `lab-fault bomb` are what the commands of these names run.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The port's name, as the lab's command line gives it.
const PORT: &str = "org.evenkeel.fault";
/// Bytes of the longest request.
const LINE_MAX: u64 = 4096;

/// Bytes of the longest file that is read.
const READ_MAX: u64 = 64 * 1024;
/// Orphans at once: as many processes as a small machine bears.
const ORPHANS_MAX: u32 = 500;
/// Memory that is asked for at once: more than a small machine has.
const EAT_MAX_MIB: usize = 1024;
/// Where the group of what hangs is made.
const HUNG: &str = "/sys/fs/cgroup/lab-hung";
/// `mov eax, [0]`: a fault of the processor's own, on x86-64.
const READ_NULL: [u8; 7] = [0x8b, 0x04, 0x25, 0, 0, 0, 0];
/// Bytes reserved at once when a disk is filled: the first and the last step.
const FILL_STEP: i64 = 1 << 30;
const FILL_LAST: i64 = 4096;

const USAGE: &str = "\
signal PROGRAM KILL|STOP|CONT|TERM|SEGV   to all processes of that name
read PATH                                 a file's text
write PATH TEXT                           e.g. write /proc/sysrq-trigger c: the kernel panics
fill PATH                                 a file that grows until the disk is full
remove PATH
orphans N                                 N processes whose parent is gone, all ended at once
zombies                                   how many ended processes nobody has collected
corrupt PROGRAM                           its next instruction reads from address 0
hang PROGRAM                              frozen by the kernel, as no signal can do it to PID 1
bomb                                      processes that make processes without end, in this service's group
eat MIB                                   memory that is used, by this service
";

fn main() -> ExitCode {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => {}
        [what, count] if what == "orphans" => return make_orphans(count.parse().unwrap_or(0)),
        [what] if what == "bomb" => explode(),
        _ => return ExitCode::SUCCESS, // one of the orphans
    }
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

/// Carries a command out; what came of it, or why nothing did.
fn obey(proc: &Path, command: &str) -> Result<String, String> {
    let told = |path: &str| {
        let path = path.to_owned();
        move |error: io::Error| format!("{path}: {error}")
    };
    match command.split_whitespace().collect::<Vec<_>>()[..] {
        ["help"] => Ok(USAGE.to_owned()),
        ["signal", program, name] => send_signal(proc, program, name),
        ["read", path] => read(path).map_err(told(path)),
        ["write", path, ref words @ ..] if !words.is_empty() => {
            std::fs::write(path, words.join(" ")).map(|()| String::new()).map_err(told(path))
        }
        ["fill", path] => fill(path).map(|bytes| format!("{bytes} bytes\n")).map_err(told(path)),
        ["remove", path] => std::fs::remove_file(path).map(|()| String::new()).map_err(told(path)),
        ["orphans", count] => orphans(count),
        ["zombies"] => Ok(format!("{}\n", zombies(proc))),
        ["corrupt", program] => corrupt(proc, program),
        ["hang", program] => hang(proc, program),
        ["bomb"] => bomb(),
        ["eat", mib] => eat(mib),
        _ => Err(format!("expected one of:\n{USAGE}")),
    }
}

fn send_signal(proc: &Path, program: &str, name: &str) -> Result<String, String> {
    let signal = match name {
        "KILL" => Signal::SIGKILL,
        "STOP" => Signal::SIGSTOP,
        "CONT" => Signal::SIGCONT,
        "TERM" => Signal::SIGTERM,
        "SEGV" => Signal::SIGSEGV,
        _ => return Err(format!("expected one of:\n{USAGE}")),
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

fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(READ_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reserves what room there is, the largest pieces first: nothing is written, so a big disk fills in no time.
/// Returns the file's size.
fn fill(path: &str) -> io::Result<u64> {
    let file = File::create(path)?;
    let (mut size, mut step) = (0, FILL_STEP);
    while step >= FILL_LAST {
        match fallocate(&file, FallocateFlags::empty(), size, step) {
            Ok(()) => size += step,
            Err(Errno::ENOSPC) => step /= 2,
            Err(errno) => return Err(errno.into()),
        }
    }
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Has a child make them: when it ends they are nobody's, so PID 1's.
fn orphans(count: &str) -> Result<String, String> {
    if !count.parse::<u32>().is_ok_and(|n| (1..=ORPHANS_MAX).contains(&n)) {
        return Err(format!("expected a number of orphans from 1 to {ORPHANS_MAX}"));
    }
    let made = Command::new("/proc/self/exe").args(["orphans", count]).status();
    match made {
        Ok(status) if status.success() => Ok(String::new()),
        Ok(status) => Err(format!("not all of them were made: {status}")),
        Err(error) => Err(error.to_string()),
    }
}

#[allow(clippy::zombie_processes)] // that they are left to somebody else is the point
fn make_orphans(count: u32) -> ExitCode {
    let made =
        (0..count).take_while(|_| Command::new("/proc/self/exe").arg("nothing").spawn().is_ok()).count();
    if made == count as usize { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Replaces the instruction behind the system call that the program's oldest process waits in (init has children of its
/// name). The kernel lets a tracer write where the
/// program itself may not.
fn corrupt(proc: &Path, program: &str) -> Result<String, String> {
    let first = running(proc, program).into_iter().min();
    let pid = first.ok_or_else(|| format!("no program {program} runs here"))?;
    let folder = proc.join(pid.to_string());
    let call = std::fs::read_to_string(folder.join("syscall")).map_err(|e| format!("its call: {e}"))?;
    // Number, six arguments, stack pointer, program counter; "running" when it waits in none.
    let counter = call.split_whitespace().nth(8).and_then(|word| word.strip_prefix("0x"));
    let Some(counter) = counter.and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
        return Err(format!("process {pid} waits in no system call: {}", call.trim()));
    };
    let memory =
        File::options().write(true).open(folder.join("mem")).map_err(|e| format!("its memory: {e}"))?;
    memory.write_all_at(&READ_NULL, counter).map_err(|e| format!("its code at {counter:#x}: {e}"))?;
    Ok(format!("{pid} reads from address 0 at {counter:#x}\n"))
}

/// Puts the program's processes into a frozen control group.
fn hang(proc: &Path, program: &str) -> Result<String, String> {
    let pids = running(proc, program);
    if pids.is_empty() {
        return Err(format!("no program {program} runs here"));
    }
    let group = Path::new(HUNG);
    let told = |error: io::Error| format!("{HUNG}: {error}");
    match std::fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(told(error)),
        _ => {}
    }
    for pid in &pids {
        std::fs::write(group.join("cgroup.procs"), pid.to_string()).map_err(told)?;
    }
    std::fs::write(group.join("cgroup.freeze"), "1").map_err(told)?;
    Ok(format!("{pids:?} frozen\n"))
}

/// Sets it off; it ends with this service.
#[allow(clippy::zombie_processes)] // it outlives the command on purpose
fn bomb() -> Result<String, String> {
    match Command::new("/proc/self/exe").arg("bomb").spawn() {
        Ok(_) => Ok(String::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes as many processes as the kernel allows; each does the same.
#[allow(clippy::zombie_processes)] // nobody collects them: that is the bomb
fn explode() -> ! {
    loop {
        if Command::new("/proc/self/exe").arg("bomb").spawn().is_err() {
            std::thread::yield_now();
        }
    }
}

/// Uses memory and gives it back, when there is so much.
fn eat(mib: &str) -> Result<String, String> {
    let Some(mib) = mib.parse::<usize>().ok().filter(|n| (1..=EAT_MAX_MIB).contains(n)) else {
        return Err(format!("expected MiB from 1 to {EAT_MAX_MIB}"));
    };
    // Not zeros: those the kernel gives without having them.
    let eaten = vec![0x5a_u8; mib << 20];
    Ok(format!("{} bytes\n", std::hint::black_box(eaten).len()))
}

/// Processes in the state Z.
fn zombies(proc: &Path) -> usize {
    let state = |pid: i32| {
        let stat = std::fs::read_to_string(proc.join(pid.to_string()).join("stat")).unwrap_or_default();
        // The name before it is in brackets and may hold any character.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    pids(proc).filter(|pid| state(*pid) == Some('Z')).count()
}

fn pids(proc: &Path) -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
}

/// Processes whose program has this name.
fn running(proc: &Path, program: &str) -> Vec<i32> {
    let named = |pid: &i32| {
        std::fs::read_to_string(proc.join(pid.to_string()).join("comm"))
            .is_ok_and(|name| name.trim() == program)
    };
    pids(proc).filter(named).collect()
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
    fn a_program_whose_code_is_broken_faults() {
        // A name of its own: other tests run programs too.
        let name = format!("ekc{}", std::process::id());
        let program = std::env::temp_dir().join(&name);
        std::fs::copy("/usr/bin/cat", &program).expect("copied");
        let stdin = std::process::Stdio::piped();
        let mut child = Command::new(&program).stdin(stdin).spawn().expect("spawned");
        std::fs::remove_file(&program).expect("removed");
        // It has to wait in its read of standard input: before that it reads its libraries.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let call = || std::fs::read_to_string(format!("/proc/{}/syscall", child.id()));
        while !call().is_ok_and(|call| call.starts_with("0 0x0 ")) {
            assert!(std::time::Instant::now() < deadline, "it does not read");
            std::thread::yield_now();
        }
        let done = obey(Path::new("/proc"), &format!("corrupt {name}")).expect("done");
        assert!(done.contains("reads from address 0"), "{done}");
        drop(child.stdin.take());
        assert_eq!(child.wait().expect("reaped").signal(), Some(Signal::SIGSEGV as i32));
    }

    #[test]
    fn files_are_written_read_and_removed() {
        let path = std::env::temp_dir().join(format!("ekf-file-{}", std::process::id()));
        let file = path.display();
        let obey = |command: String| obey(Path::new("/proc"), &command);
        assert_eq!(obey(format!("write {file} a b")), Ok(String::new()));
        assert_eq!(obey(format!("read {file}")), Ok("a b".into()));
        assert_eq!(obey(format!("remove {file}")), Ok(String::new()));
        assert!(!path.exists());
    }

    #[test]
    fn what_nobody_has_collected_is_counted() {
        let proc = std::env::temp_dir().join(format!("ekf-proc-{}", std::process::id()));
        for (pid, stat) in [("7", "7 (a) Z) S 1"), ("8", "8 (b) Z 1"), ("self", "9 (c) Z 1")] {
            std::fs::create_dir_all(proc.join(pid)).expect("made");
            std::fs::write(proc.join(pid).join("stat"), stat).expect("written");
        }
        let count = obey(&proc, "zombies");
        std::fs::remove_dir_all(&proc).expect("removed");
        assert_eq!(count, Ok("1\n".into()));
    }

    #[test]
    fn memory_is_used() {
        assert_eq!(obey(Path::new("/proc"), "eat 2"), Ok("2097152 bytes\n".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        for (command, part) in [
            ("", "expected"),
            ("signal netd 9", "expected"),
            ("kill netd KILL", "expected"),
            ("signal no-such-program-here KILL", "no program"),
            ("read /no/such/file", "/no/such/file: No such file"),
            ("write /proc/version", "expected"),
            ("write /no/such/file x", "/no/such/file: No such file"),
            ("remove /no/such/file", "/no/such/file"),
            ("orphans 0", "from 1 to 500"),
            ("orphans 501", "from 1 to 500"),
            ("corrupt no-such-program-here", "no program"),
            ("hang no-such-program-here", "no program"),
            ("eat 0", "from 1 to 1024"),
            ("eat 1025", "from 1 to 1024"),
        ] {
            assert!(obey(Path::new("/proc"), command).expect_err("refused").contains(part), "{command}");
        }
        assert_eq!(unhex("6e6574"), Some("net".into()));
        assert_eq!(unhex("zz"), None);
    }
}
