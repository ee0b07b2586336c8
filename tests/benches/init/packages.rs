//! The peers' programs: Debian packages, downloaded with apt's signature check and unpacked into `target/`.
//!
//! They are not installed: no maintainer script runs, no daemon starts, dpkg's state does not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::command;

use crate::subject::Subject;

/// A few hundred kilobytes for each subject, over a slow mirror.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Sees to it that the packages of each subject lie unpacked in `directory/SUBJECT/root`; returns `directory`.
pub(crate) fn unpack(directory: &Path, subjects: &[Subject], offline: bool) -> Result<PathBuf, String> {
    for subject in subjects.iter().filter(|s| !s.packages.is_empty()) {
        let own = directory.join(subject.name);
        let done = own.join("unpacked");
        let list = subject.packages.join(" ");
        if fs::read_to_string(&done).is_ok_and(|text| text == list) {
            continue;
        }
        if offline {
            return Err(format!("{} is not unpacked yet: run once without --offline", subject.name));
        }
        unpack_one(&own, subject.packages)?;
        fs::write(&done, list).map_err(|e| format!("cannot write {}: {e}", done.display()))?;
    }
    Ok(directory.to_owned())
}

fn unpack_one(own: &Path, packages: &[&str]) -> Result<(), String> {
    let files = |what: &str| format!("cannot {what} {}", own.display());
    let (debs, root) = (own.join("debs"), own.join("root"));
    if own.exists() {
        fs::remove_dir_all(own).map_err(|e| format!("{}: {e}", files("clear")))?;
    }
    fs::create_dir_all(&debs).map_err(|e| format!("{}: {e}", files("make")))?;
    let mut apt = Command::new("apt-get");
    // apt's own user may not write below a home directory; the signature check stays.
    apt.args(["-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(&debs);
    let outcome = command::run(&mut apt, LIMIT);
    if !outcome.ok() {
        let failure = outcome.failure("apt-get download");
        return Err(format!("{failure}; the package lists may be old: run apt-get update"));
    }
    for deb in archives(own) {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("-x").arg(&deb).arg(&root);
        let outcome = command::run(&mut dpkg, LIMIT);
        if !outcome.ok() {
            return Err(outcome.failure(&format!("dpkg -x {}", deb.display())).to_string());
        }
    }
    Ok(())
}

/// The version of a subject's first package, from the archive's name `NAME_VERSION_ARCH.deb`.
pub(crate) fn version(directory: &Path, subject: &Subject) -> Option<String> {
    let package = subject.packages.first()?;
    archives(&directory.join(subject.name)).iter().find_map(|path| {
        let name = path.file_name()?.to_str()?;
        let version = name.strip_prefix(package)?.strip_prefix('_')?.split('_').next()?;
        Some(version.replace("%3a", ":"))
    })
}

fn archives(own: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(own.join("debs")).into_iter().flatten().flatten();
    let mut paths: Vec<_> =
        listed.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "deb")).collect();
    paths.sort();
    paths
}
