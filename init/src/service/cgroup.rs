//! A control group per service: what a service started dies with it.
//!
//! Groups are made and opened once, when services are loaded: between a service's death and its successor nothing is
//! looked up by name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::unistd::write;

/// The groups' parent, when cgroup2 is mounted and writable.
pub(crate) struct Cgroups {
    mount: PathBuf,
    root: Option<PathBuf>,
}

impl Cgroups {
    /// Makes `evenkeel` below the cgroup2 mount `mount`. Without it services run without a group of their own.
    pub(crate) fn new(mount: &Path) -> (Cgroups, io::Result<()>) {
        let root = mount.join("evenkeel");
        let made = fs::metadata(mount.join("cgroup.procs")).and_then(|_| make(&root));
        (Cgroups { mount: mount.to_owned(), root: made.is_ok().then_some(root) }, made)
    }

    /// No groups at all.
    pub(crate) fn none() -> Cgroups {
        Cgroups { mount: PathBuf::new(), root: None }
    }

    /// The mount they are made below.
    pub(crate) fn mount(&self) -> Option<&Path> {
        self.root.is_some().then_some(self.mount.as_path())
    }

    /// Makes the group of `service`; `None` where there are no groups.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn group(&self, service: &str) -> io::Result<Option<Group>> {
        let Some(root) = &self.root else { return Ok(None) };
        let path = root.join(service);
        make(&path)?;
        let kill = OpenOptions::new().write(true).open(path.join("cgroup.kill"))?;
        Ok(Some(Group { directory: File::open(path)?, kill }))
    }
}

/// One service's group.
pub(crate) struct Group {
    directory: File,
    kill: File,
}

impl Group {
    /// What a new process is born into (`CLONE_INTO_CGROUP`).
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Kills everything in the group. True when the kernel took the order.
    pub(crate) fn kill(&self) -> bool {
        write(&self.kill, b"1").is_ok()
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}
