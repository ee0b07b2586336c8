//! A lab's directory: short (socket paths end at 107 bytes), private, and owned by one process at a time.
//!
//! ```text
//! /tmp/evenkeel-<uid>/          0700
//!   demo.lock                   held (flock) by the process that owns the lab; text: its process id
//!   demo.supervisor.log         what the supervisor of a named lab said last
//!   demo/                       control, base, vars.qcow2, capture.pcap
//!     a1/                       con, con.log, disk.qcow2, vars.qcow2, id-0…, qemu.log, port sockets
//! ```
//! The kernel gives a lock back when its holder dies, however it dies: a directory whose lock is free belongs to a
//! dead lab. A lab takes its directory with it when it ends, and the next lab that starts removes what dead ones left;
//! only a lab that is kept leaves its disks, keys and logs for the next one of its name.

use crate::error::LabError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a directory of a throw-away lab contains.
const THROW_AWAY: &str = "throw-away";
/// `sockaddr_un` ends here; the longest name in a node's directory must fit.
const SOCKET_PATH_MAX: usize = 107;
/// `/` + node (32) + `/` + port (32) + `.vm`.
const INSIDE_MAX: usize = 1 + 32 + 1 + 32 + 3;

/// Where this user's labs live.
pub fn default_root() -> PathBuf {
    PathBuf::from(format!("/tmp/evenkeel-{}", nix::unistd::getuid()))
}

/// A lab's name: 1 to 20 of `a-z 0-9 -`.
pub fn check_name(name: &str) -> Result<(), LabError> {
    let fits = (1..=20).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(()) } else { Err(LabError::Refused(format!("lab name {name:?}: use 1 to 20 of a-z 0-9 -"))) }
}

/// The lab's directory, owned as long as this value lives.
#[derive(Debug)]
pub struct LabDir {
    path: PathBuf,
    lock_path: PathBuf,
    throw_away: bool,
    _lock: Flock<File>,
}

impl LabDir {
    /// Takes the directory of lab `name` under `root`, creating both. With `keep` its contents stay, otherwise it is
    /// emptied. Directories of dead throw-away labs are removed on the way.
    ///
    /// # Errors
    /// Another process owns it, or the root is not this user's own.
    pub fn claim(root: &Path, name: &str, keep: bool, throw_away: bool) -> Result<LabDir, LabError> {
        check_name(name)?;
        own_root(root)?;
        clean_dead(root);
        let path = root.join(name);
        if path.as_os_str().len() + INSIDE_MAX > SOCKET_PATH_MAX {
            return Err(LabError::Refused(format!("{} is too long for sockets in it", path.display())));
        }
        let lock_path = lock_path(root, name);
        let Some(mut lock) = try_lock(&lock_path)? else {
            let owner = owner(root, name).map(|pid| format!(" (process {pid})")).unwrap_or_default();
            return Err(LabError::Refused(format!(
                "lab {name} is already up{owner}: use it, end it with `cargo lab --name {name} down`, or start another with --name"
            )));
        };
        let doing = || format!("prepare {}", path.display());
        if !keep && path.exists() {
            fs::remove_dir_all(&path).map_err(LabError::io(doing()))?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(LabError::io(doing()))?;
        if throw_away {
            File::create(path.join(THROW_AWAY)).map_err(LabError::io(doing()))?;
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(LabError::io(format!("write {}", lock_path.display())))?;
        Ok(LabDir { path, lock_path, throw_away, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A node's directory, created when it is not there.
    pub fn node(&self, name: &str) -> Result<PathBuf, LabError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(LabError::io(format!("create {}", path.display())))?;
        Ok(path)
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        if self.throw_away {
            let _ = fs::remove_dir_all(&self.path);
            if let (Some(root), Some(name)) =
                (self.path.parent(), self.path.file_name().and_then(|n| n.to_str()))
            {
                let _ = fs::remove_file(supervisor_log(root, name));
            }
        }
        // Removed while held: who waits for it finds another file under the name and tries again.
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// The process that owns lab `name`, if one does.
pub fn owner(root: &Path, name: &str) -> Option<u32> {
    let path = lock_path(root, name);
    let file = File::open(&path).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => None,
        Err((file, _)) => {
            let mut text = String::new();
            file.take(16).read_to_string(&mut text).ok()?;
            text.trim().parse().ok()
        }
    }
}

/// What the supervisor of a lab said last.
pub fn supervisor_log(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.supervisor.log"))
}

fn lock_path(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.lock"))
}

/// `None` when another process holds it.
fn try_lock(path: &Path) -> Result<Option<Flock<File>>, LabError> {
    let doing = || format!("lock {}", path.display());
    // A holder that ends removes the file: then the lock we got is on a file nobody else can see.
    for _ in 0..8 {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(LabError::io(doing()))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(LabError::io(doing())(errno.into())),
        };
        let same = match (fs::metadata(path), lock.metadata()) {
            (Ok(named), Ok(held)) => named.ino() == held.ino(),
            _ => false,
        };
        if same {
            return Ok(Some(lock));
        }
    }
    Ok(None)
}

/// /tmp is everybody's: a root that somebody else made could be a trap.
fn own_root(root: &Path) -> Result<(), LabError> {
    let doing = || format!("create {}", root.display());
    match DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(LabError::io(doing())(error));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(root).map_err(LabError::io(doing()))?;
    if !meta.is_dir() || meta.uid() != nix::unistd::getuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(LabError::Refused(format!(
            "{} must be a directory of yours that nobody else may write to: remove it and try again",
            root.display()
        )));
    }
    Ok(())
}

/// Removes directories of throw-away labs whose owner is dead. Best effort: what cannot be removed waits.
fn clean_dead(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.path().join(THROW_AWAY).exists() || check_name(&name).is_err() {
            continue;
        }
        if let Ok(Some(_lock)) = try_lock(&lock_path(root, &name)) {
            let _ = fs::remove_dir_all(entry.path());
            let _ = fs::remove_file(supervisor_log(root, &name));
            let _ = fs::remove_file(lock_path(root, &name));
        }
    }
}

/// Directories for tests, removed when they end.
#[cfg(test)]
pub(crate) mod testing {
    use std::path::{Path, PathBuf};

    /// A directory of its own, gone with the value.
    pub(crate) struct TestDir(PathBuf);

    impl TestDir {
        pub(crate) fn new(name: &str) -> TestDir {
            let path = std::env::temp_dir().join(format!("ek-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).expect("temporary directory");
            TestDir(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::TestDir;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn refused<T: std::fmt::Debug>(result: Result<T, LabError>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn one_owner_at_a_time_and_contents_stay_only_when_asked() {
        let tmp = TestDir::new("dir-owner");
        let root = tmp.path().join("r");
        let lab = LabDir::claim(&root, "demo", false, false).expect("free");
        assert_eq!(owner(&root, "demo"), Some(std::process::id()));
        let text = refused(LabDir::claim(&root, "demo", false, false));
        assert!(text.contains(&format!("already up (process {})", std::process::id())), "{text}");
        LabDir::claim(&root, "other", false, true).expect("two labs may run at once");
        fs::write(lab.node("a1").expect("made").join("disk.qcow2"), "x").expect("written");
        drop(lab);
        assert_eq!(owner(&root, "demo"), None);
        let kept = LabDir::claim(&root, "demo", true, false).expect("free again");
        assert!(kept.path().join("a1/disk.qcow2").exists());
        drop(kept);
        let fresh = LabDir::claim(&root, "demo", false, false).expect("free again");
        assert!(!fresh.path().join("a1").exists());
    }

    #[test]
    fn what_dead_throw_away_labs_left_is_removed() {
        let tmp = TestDir::new("dir-stale");
        let root = tmp.path().join("r");
        let alive = LabDir::claim(&root, "alive", false, true).expect("free");
        // A dead lab: its directory and its lock file are there, the lock is free.
        fs::create_dir_all(root.join("dead/a1")).expect("made");
        fs::write(root.join("dead").join(THROW_AWAY), "").expect("written");
        fs::write(root.join("dead.lock"), "1").expect("written");
        fs::create_dir_all(root.join("named/a1")).expect("made");
        let _next = LabDir::claim(&root, "next", false, true).expect("free");
        assert!(!root.join("dead").exists() && !root.join("dead.lock").exists());
        assert!(root.join("named/a1").exists(), "named labs keep their disks");
        assert!(alive.path().exists());
        drop(alive);
        assert!(!root.join("alive").exists() && !root.join("alive.lock").exists());
    }

    #[test]
    fn foreign_roots_and_bad_names_are_refused() {
        let tmp = TestDir::new("dir-foreign");
        let open = tmp.path().join("open");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("set");
        assert!(refused(LabDir::claim(&open, "demo", false, true)).contains("nobody else may write"));
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(tmp.path(), &link).expect("linked");
        assert!(refused(LabDir::claim(&link, "demo", false, true)).contains("nobody else may write"));
        for bad in ["", "a/b", "..", "Demo", "a-name-longer-than-twenty"] {
            assert!(refused(LabDir::claim(tmp.path(), bad, false, true)).contains("lab name"), "{bad}");
        }
    }
}
