//! A subject as PID 1 of namespaces of its own, on a root made for it.
//!
//! ```text
//! bench ── setpriv --pdeathsig KILL ── unshare -U -r -p -f --mount-proc --kill-child
//!                                         └─ bench --inside: mounts, chroot, reports the clock, exec ── the subject
//! ```
//! The bench's death kills `unshare`, whose death kills PID 1, whose death kills everything in its namespace and
//! frees the mounts; only a directory on tmpfs can stay, which the next bench removes. The subject sees the host's
//! system directories read-only, /proc of its namespace and a /dev of five harmless nodes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Pid, chdir, chroot};

use crate::reports::{self, EXEC, Report, Reports};
use crate::subject::{DEVICE, HELPERS, Launch, PEERS, Root, SOCKET, Subject};

/// The first argument of the bench when it is to become a subject.
pub(crate) const INSIDE: &str = "--inside";
/// Everything a subject is waited for comes within this; the slowest peer looks every five seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A moment that is waited through, not for.
pub(crate) const MOMENT: Duration = Duration::from_millis(5);
/// Where the host's `/usr` is on a root.
const HOST: &str = "/host";
/// A root has a merged `/usr`, as Debian 12 has.
const MERGED: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];
/// Where packages have programs and what goes with them.
const PROGRAMS: [&str; 6] = ["bin", "sbin", "lib", "usr/bin", "usr/sbin", "usr/lib"];
const DEVICES: [&str; 4] = ["null", "zero", "random", "urandom"];
const DIRECTORY: &str = "evenkeel-bench-";

/// Where everything is that subjects are made of.
pub(crate) struct Stage {
    /// On tmpfs: peers write state files, and a disk is not what is measured. The device has /run.
    base: PathBuf,
    pub(crate) helpers: PathBuf,
    device: PathBuf,
    pub(crate) peers: PathBuf,
}

impl Stage {
    /// Makes a directory for this run and removes those of dead ones.
    pub(crate) fn new(helpers: PathBuf, device: PathBuf, peers: PathBuf) -> Result<Stage, String> {
        let tmpfs = Path::new("/dev/shm");
        let parent = if tmpfs.is_dir() { tmpfs.to_owned() } else { std::env::temp_dir() };
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|n| n.strip_prefix(DIRECTORY));
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let base = parent.join(format!("{DIRECTORY}{}", std::process::id()));
        fs::create_dir_all(&base).map_err(|e| format!("cannot make {}: {e}", base.display()))?;
        Ok(Stage { base, helpers, device, peers })
    }

    fn unpacked(&self, subject: &Subject) -> PathBuf {
        self.peers.join(subject.name).join("root")
    }

    /// Bytes of the subject's programs.
    pub(crate) fn size(&self, subject: &Subject) -> io::Result<u64> {
        let places =
            [(PEERS, self.unpacked(subject)), (DEVICE, self.device.clone()), (HELPERS, self.helpers.clone())];
        let mut bytes = 0;
        for program in subject.programs {
            let place = places.iter().find_map(|(at, from)| Some((program.strip_prefix(at)?, from)));
            let outside = match place {
                Some((rest, from)) => from.join(rest.trim_start_matches('/')),
                None => PathBuf::from(program),
            };
            let found = fs::metadata(&outside);
            bytes +=
                found.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", outside.display())))?.len();
        }
        Ok(bytes)
    }

    /// Starts `subject` with `count` services.
    pub(crate) fn start(&self, subject: &Subject, count: usize) -> Result<Running, String> {
        self.start_with(subject, |root| (subject.prepare)(root, count))
    }

    /// Starts `subject` on a root that `prepare` fills.
    pub(crate) fn start_with(
        &self,
        subject: &Subject,
        prepare: impl FnOnce(&Root) -> io::Result<Launch>,
    ) -> Result<Running, String> {
        let root = Root(self.base.join("root"));
        let log = self.base.join("log");
        let cannot = |e: io::Error| format!("cannot start it: {e}");
        let unpacked = (!subject.packages.is_empty()).then(|| self.unpacked(subject));
        make_root(&root).map_err(cannot)?;
        link_programs(&root, unpacked.as_deref()).map_err(cannot)?;
        let launch = prepare(&root).map_err(cannot)?;
        let reports = Reports::bind(&root.outside(SOCKET)).map_err(cannot)?;
        let output = File::create(&log).map_err(cannot)?;
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "-U",
            "-r",
            "-p",
            "-f",
            "--mount-proc",
            "--kill-child",
        ]);
        command.arg(std::env::current_exe().map_err(cannot)?).arg(INSIDE).arg(&root.0);
        command.arg(&self.helpers).arg(HELPERS).arg(&self.device).arg(DEVICE);
        if let Some(unpacked) = &unpacked {
            command.arg(unpacked).arg(PEERS);
        }
        command.arg("--").args(&launch.words);
        command.env_clear().envs(launch.environment.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::piped()).stdout(output.try_clone().map_err(cannot)?).stderr(output);
        let child = command.spawn().map_err(|e| format!("setpriv of util-linux: {e}"))?;
        let mut running = Running {
            child,
            root,
            log,
            reports,
            scaffold: subject.scaffold,
            exec: None,
            namespace: PathBuf::new(),
        };
        let first = running.next(PATIENCE)?;
        if first.number != EXEC {
            return Err(running.told(&format!("service {} reported before the exec", first.number)));
        }
        let link = format!("/proc/{}/ns/pid", first.pid);
        running.namespace =
            fs::read_link(&link).map_err(|e| running.told(&format!("cannot read {link}: {e}")))?;
        running.exec = Some(first);
        Ok(running)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

fn make_root(root: &Root) -> io::Result<()> {
    for directory in
        ["proc", "dev", "run", "tmp", "etc", "var/log", "var/run", "services", "logs", "host/usr"]
    {
        fs::create_dir_all(root.outside(directory))?;
    }
    for place in [HELPERS, DEVICE, PEERS] {
        fs::create_dir_all(root.outside(place))?;
    }
    for device in DEVICES.iter().chain(&["console"]) {
        File::create(root.outside("dev").join(device))?;
    }
    for (name, target) in MERGED {
        symlink(target, root.outside(name))?;
    }
    Ok(())
}

/// Fills `/usr` of the root with links: the host's libraries below [`HOST`], and over them what the subject's packages
/// bring. Peers know each other by their absolute paths.
fn link_programs(root: &Root, unpacked: Option<&Path>) -> io::Result<()> {
    let host = (Path::new("/"), HOST, &["usr/lib", "usr/lib64"][..]);
    let peer = unpacked.map(|from| (from, PEERS, &PROGRAMS[..]));
    for (from, seen_at, folders) in [Some(host), peer].into_iter().flatten() {
        for folder in folders {
            // Packages older than the merge of /usr use both names.
            let merged =
                if folder.starts_with("usr/") { (*folder).to_owned() } else { format!("usr/{folder}") };
            fs::create_dir_all(root.outside(&merged))?;
            for entry in fs::read_dir(from.join(folder)).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let link = root.outside(&merged).join(&name);
                if !link.is_symlink() {
                    symlink(Path::new(seen_at).join(folder).join(&name), link)?;
                }
            }
        }
    }
    let shell = root.outside("usr/bin/sh");
    fs::create_dir_all(root.outside("usr/bin"))?;
    if shell.is_symlink() { Ok(()) } else { symlink(Path::new(HOST).join("usr/bin/sh"), shell) }
}

/// Becomes the subject. `arguments`: the root, pairs of what is mounted where on it, `--`, the command. Returns only
/// the reason why it could not.
pub(crate) fn inside(arguments: &[String]) -> io::Error {
    match enter(arguments) {
        Ok(words) => {
            let Some((program, rest)) = words.split_first() else { return io::Error::other("no command") };
            match reports::report_exec(Path::new(SOCKET)) {
                Ok(()) => Command::new(program).args(rest).exec(),
                Err(error) => error,
            }
        }
        Err(error) => error,
    }
}

fn enter(arguments: &[String]) -> io::Result<&[String]> {
    let (root, rest) = arguments.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let root = Root(PathBuf::from(root));
    let border = rest.iter().position(|word| word == "--").ok_or(io::ErrorKind::InvalidInput)?;
    let (mounts, command) = rest.split_at(border);
    bind_read_only(Path::new("/usr"), &root.outside(HOST).join("usr"))?;
    for pair in mounts.chunks_exact(2) {
        if let [from, to] = pair {
            bind_read_only(Path::new(from), &root.outside(to))?;
        }
    }
    for device in DEVICES {
        bind(&Path::new("/dev").join(device), &root.outside("dev").join(device))?;
    }
    // A supervisor that talks to the console must not reach the host's.
    bind(Path::new("/dev/null"), &root.outside("dev/console"))?;
    bind(Path::new("/proc"), &root.outside("proc"))?;
    chroot(&root.0)?;
    chdir("/")?;
    Ok(command.get(1..).unwrap_or_default())
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    let at = |e: nix::Error| {
        io::Error::other(format!("mount {} on {}: {}", from.display(), to.display(), e.desc()))
    };
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).map_err(at)
}

fn bind_read_only(from: &Path, to: &Path) -> io::Result<()> {
    bind(from, to)?;
    // In a user namespace the flags a mount came with are locked (mount_namespaces(7)): they are repeated.
    let had = statvfs(to)?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = pairs.iter().filter(|(f, _)| had.contains(*f)).fold(MsFlags::empty(), |all, (_, m)| all | *m);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
    mount(None::<&str>, to, None::<&str>, flags, None::<&str>)
        .map_err(|e| io::Error::other(format!("make {} read-only: {}", to.display(), e.desc())))
}

/// A started subject. Dropping it ends it and all its processes.
pub(crate) struct Running {
    child: Child,
    pub(crate) root: Root,
    log: PathBuf,
    pub(crate) reports: Reports,
    scaffold: &'static [&'static str],
    exec: Option<Report>,
    /// What `/proc/PID/ns/pid` of its processes leads to.
    namespace: PathBuf,
}

impl Running {
    /// When it was executed, nanoseconds.
    pub(crate) fn exec_at(&self) -> i64 {
        self.exec.map_or(0, |r| r.at)
    }

    /// PID 1 of its namespace, in our numbers.
    pub(crate) fn pid(&self) -> i32 {
        self.exec.map_or(0, |r| r.pid)
    }

    /// The next report, within `limit`.
    pub(crate) fn next(&self, limit: Duration) -> Result<Report, String> {
        match self.reports.next(limit) {
            Ok(Some(report)) => Ok(report),
            Ok(None) => Err(self.told(&format!("no service reported within {} s", limit.as_secs()))),
            Err(error) => Err(self.told(&format!("reports: {error}"))),
        }
    }

    /// Waits `span` in which nothing may start.
    pub(crate) fn quiet(&self, span: Duration) -> Result<(), String> {
        match self.reports.next(span) {
            Ok(None) => Ok(()),
            Ok(Some(report)) => Err(self.told(&format!("service {} started unasked", report.number))),
            Err(error) => Err(self.told(&format!("reports: {error}"))),
        }
    }

    /// Kills a service, noting the clock just before; returns that.
    pub(crate) fn kill(&self, service: &Report) -> Result<i64, String> {
        let at = reports::now();
        kill(Pid::from_raw(service.pid), Signal::SIGKILL).map_err(|e| {
            self.told(&format!("service {} is not there to be killed: {}", service.number, e.desc()))
        })?;
        Ok(at)
    }

    /// All processes that make up the supervisor, in our numbers: those of the namespace that still have a program
    /// which is neither the service nor the bench's scaffold.
    pub(crate) fn supervisors(&self) -> Vec<i32> {
        let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = listed.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        numbers
            .filter(|pid| {
                let of = Path::new("/proc").join(pid.to_string());
                let within = fs::read_link(of.join("ns/pid")).is_ok_and(|link| link == self.namespace);
                let program = fs::read_link(of.join("exe")).ok();
                let name = program.as_deref().and_then(Path::file_name).and_then(|n| n.to_str());
                within && name.is_some_and(|n| n != "service" && !self.scaffold.contains(&n))
            })
            .collect()
    }

    /// `text` with the subject's last words.
    pub(crate) fn told(&self, text: &str) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().filter(|l| !l.trim().is_empty()).take(5).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        if last.is_empty() { text.to_owned() } else { format!("{text}; it said: {}", last.join(" | ")) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // With --kill-child the rest follows at once, but not in the same moment.
        let gone = || self.exec.is_none() || !Path::new("/proc").join(self.pid().to_string()).exists();
        let deadline = reports::now() + PATIENCE.as_nanos() as i64;
        while !gone() && reports::now() < deadline {
            let _ = self.reports.next(MOMENT);
        }
        let _ = fs::remove_dir_all(&self.root.0);
    }
}
