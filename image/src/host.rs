//! Host programs: run with a fixed environment, a missing one named with its Debian package.

use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::BuildError;

/// A host program and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) const MKFS_FAT: Tool = Tool { name: "mkfs.fat", package: "dosfstools" };
pub(crate) const MCOPY: Tool = Tool { name: "mcopy", package: "mtools" };
pub(crate) const MMD: Tool = Tool { name: "mmd", package: "mtools" };
pub(crate) const MKE2FS: Tool = Tool { name: "mke2fs", package: "e2fsprogs" };
pub(crate) const QEMU_IMG: Tool = Tool { name: "qemu-img", package: "qemu-utils" };
pub(crate) const OPENSSL: Tool = Tool { name: "openssl", package: "openssl" };
pub(crate) const BLOCKDEV: Tool = Tool { name: "blockdev", package: "util-linux" };
pub(crate) const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
pub(crate) const APT_CACHE: Tool = Tool { name: "apt-cache", package: "apt" };
pub(crate) const DPKG_QUERY: Tool = Tool { name: "dpkg-query", package: "dpkg" };

/// Longest piece of a program's own words in one of our messages.
const DETAIL_MAX: usize = 300;

impl Tool {
    /// A command whose output depends on neither the user's language, time zone nor configuration files.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new(self.name);
        // mkfs.fat, mke2fs live in sbin, which an ordinary user's PATH may lack.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        command.env("LC_ALL", "C").env("TZ", "UTC").env("MTOOLSRC", "/dev/null");
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs the command; a non-zero exit is an error that carries the last words of the program.
    /// `target` is the file being written, for the message of a full disk.
    pub(crate) fn run(
        self,
        command: &mut Command,
        doing: &str,
        target: &Path,
        need: u64,
    ) -> Result<Output, BuildError> {
        let output = self.output(command)?;
        if output.status.success() {
            return Ok(output);
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if words.contains("No space left on device") {
            return Err(BuildError::NoSpace { path: target.to_owned(), need });
        }
        let mut detail = last_line(&words).unwrap_or_else(|| output.status.to_string());
        if detail.len() > DETAIL_MAX {
            let cut = (0..=DETAIL_MAX).rev().find(|i| detail.is_char_boundary(*i)).unwrap_or(0);
            detail.truncate(cut);
        }
        Err(BuildError::Tool { tool: self.name, doing: doing.to_owned(), detail })
    }

    /// Runs the command and hands back whatever came.
    pub(crate) fn output(self, command: &mut Command) -> Result<Output, BuildError> {
        command.output().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BuildError::MissingTool { tool: self.name, package: self.package },
            _ => BuildError::Io { doing: "run", path: self.name.into(), source },
        })
    }

    /// The version of the package this program came with, for the manifest; "unknown" off Debian.
    pub(crate) fn version(self) -> String {
        package_version(self.package)
    }
}

/// The installed version of a Debian package, or "unknown".
pub(crate) fn package_version(package: &str) -> String {
    let mut command = DPKG_QUERY.command();
    command.args(["--show", "--showformat=${Version}", package]);
    match DPKG_QUERY.output(&mut command) {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// A suffix for temporary names that no other build has, in this process or another.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The last line that says something: apt and the mkfs programs put the reason there.
fn last_line(words: &str) -> Option<String> {
    words.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let tool = Tool { name: "mkfs.evenkeel-none", package: "dosfstools" };
        let error = tool.output(&mut tool.command()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot run mkfs.evenkeel-none: no such program; install the Debian package dosfstools"
        );
    }

    #[test]
    fn a_failing_program_is_quoted_and_a_full_disk_recognised() {
        let sh = Tool { name: "sh", package: "dash" };
        let mut command = sh.command();
        command.args(["-c", "echo first >&2; echo 'the reason' >&2; exit 3"]);
        let error = sh.run(&mut command, "do it", Path::new("/x"), 0).unwrap_err();
        assert_eq!(error.to_string(), "sh failed to do it: the reason");

        let mut command = sh.command();
        command.args(["-c", "echo 'write: No space left on device' >&2; exit 1"]);
        let error = sh.run(&mut command, "do it", Path::new("/x/disk"), 5 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no space left to write /x/disk: about 5 MiB are needed; free some, or choose another folder"
        );
    }
}
