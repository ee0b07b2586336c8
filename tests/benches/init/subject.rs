//! A subject: a supervisor, what it consists of, and how its root is filled for a number of services.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where the helper programs are on a subject's root.
pub(crate) const HELPERS: &str = "/bench";
/// Where a subject's Debian packages are unpacked on its root.
pub(crate) const PEERS: &str = "/peers";
/// Where init's device build is on its root.
pub(crate) const DEVICE: &str = "/device";
/// Where services report.
pub(crate) const SOCKET: &str = "/bench.sock";

/// What a subject can do, and so what is measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Starts any number of services and starts them again.
    Supervisor,
    /// Has one child and collects orphans.
    Reaper,
}

/// One row of the table.
pub(crate) struct Subject {
    /// The row's name, for `--only` too.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Debian packages it comes in, with those libraries that a minimal Debian lacks.
    pub(crate) packages: &'static [&'static str],
    /// Paths on its root of what runs or is mapped while it supervises, the C library aside; their sizes are summed.
    pub(crate) programs: &'static [&'static str],
    /// Programs that run beside it for the bench's sake only; not counted.
    pub(crate) scaffold: &'static [&'static str],
    /// Whether init's control protocol is spoken.
    pub(crate) control: bool,
    /// Fills its root for services 0 to `count` - 1 and says what to execute as PID 1.
    pub(crate) prepare: fn(root: &Root, count: usize) -> io::Result<Launch>,
}

/// What becomes PID 1.
pub(crate) struct Launch {
    /// Program, as a path on its root, and arguments.
    pub(crate) words: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Launch {
    /// `words` with a `PATH` that finds the peer's programs, then the host's.
    pub(crate) fn new<const N: usize>(words: [&str; N]) -> Launch {
        let path = "/usr/bin:/usr/sbin:/host/usr/bin:/host/usr/sbin".to_owned();
        let libraries = ["/usr/lib", "/lib"].map(|f| format!("{PEERS}{f}/x86_64-linux-gnu")).join(":");
        Launch {
            words: words.map(str::to_owned).to_vec(),
            environment: vec![("PATH", path), ("LD_LIBRARY_PATH", libraries)],
        }
    }
}

/// The root a subject gets, still seen from outside.
pub(crate) struct Root(pub(crate) PathBuf);

impl Root {
    /// `path`, absolute on the root, as seen from outside.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Writes a file and the directories above it.
    pub(crate) fn file(&self, path: &str, text: &str) -> io::Result<()> {
        let outside = self.outside(path);
        fs::create_dir_all(outside.parent().unwrap_or(Path::new("/")))?;
        fs::write(outside, text)
    }

    /// Writes an executable shell script.
    pub(crate) fn script(&self, path: &str, text: &str) -> io::Result<()> {
        self.file(path, &format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(self.outside(path), fs::Permissions::from_mode(0o755))
    }

    /// Makes `path` lead to `target`.
    pub(crate) fn link(&self, path: &str, target: &str) -> io::Result<()> {
        let outside = self.outside(path);
        fs::create_dir_all(outside.parent().unwrap_or(Path::new("/")))?;
        symlink(target, outside)
    }

    /// The layout of the daemontools family: a directory for each service with a program `run`. It is the service
    /// itself and no script around it: a shell's start is not the supervisor's time.
    pub(crate) fn run_directories(&self, count: usize) -> io::Result<()> {
        (0..count).try_for_each(|n| self.link(&format!("/service/{n}/run"), &service_program()))
    }
}

/// The helper service's path on every root.
pub(crate) fn service_program() -> String {
    format!("{HELPERS}/service")
}

/// Service `number` as one command line.
pub(crate) fn service_line(number: usize) -> String {
    format!("{} {SOCKET} {number}", service_program())
}
