//! A control group per service: what a service started dies with it.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The groups' parent, when cgroup2 is mounted and writable.
pub(crate) struct Cgroups {
    root: Option<PathBuf>,
}

impl Cgroups {
    /// Makes `evenkeel` below the cgroup2 mount `mount`. Without it services run without a group of their own.
    pub(crate) fn new(mount: &Path) -> (Cgroups, Result<(), std::io::Error>) {
        let root = mount.join("evenkeel");
        let made = fs::metadata(mount.join("cgroup.procs")).and_then(|_| match fs::create_dir(&root) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        });
        (Cgroups { root: made.is_ok().then_some(root) }, made)
    }

    /// No groups at all.
    pub(crate) fn none() -> Cgroups {
        Cgroups { root: None }
    }

    /// Makes the group of `service` and opens the file that takes its first process.
    ///
    /// # Errors
    /// The kernel's reason; the service can run without.
    pub(crate) fn enter(&self, service: &str) -> std::io::Result<Option<OwnedFd>> {
        let Some(root) = &self.root else { return Ok(None) };
        let group = root.join(service);
        match fs::create_dir(&group) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        OpenOptions::new().write(true).open(group.join("cgroup.procs")).map(|f| Some(f.into()))
    }

    /// Kills everything in the group of `service`. True when there is a group and the kernel took the order.
    pub(crate) fn kill(&self, service: &str) -> bool {
        let Some(root) = &self.root else { return false };
        fs::write(root.join(service).join("cgroup.kill"), "1").is_ok()
    }
}
