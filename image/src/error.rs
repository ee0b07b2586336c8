//! What can go wrong while an image is built, described or verified.
//!
//! Every message is one line: the object, what was expected, what came, the next step. In every case the
//! image at the output path (if there was one) is unchanged: the builder writes to a temporary file and renames it.

use std::io;
use std::path::{Path, PathBuf};

/// A build that did not come to an image. The output path is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file or folder could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },

    /// The file system of the output (or of the cache) is full.
    #[error("no space left to write {}: about {} MiB are needed; free some, or choose another folder", path.display(), need.div_ceil(1 << 20))]
    NoSpace { path: PathBuf, need: u64 },

    /// A host program is not installed.
    #[error("cannot run {tool}: no such program; install the Debian package {package}")]
    MissingTool { tool: &'static str, package: &'static str },

    /// A host program ran and failed.
    #[error("{tool} failed to {doing}: {detail}")]
    Tool { tool: &'static str, doing: String, detail: String },

    /// A file that a Debian package brings is not there.
    #[error("{} is missing: install the Debian package {package}", path.display())]
    MissingFile { path: PathBuf, package: &'static str },

    /// The folder of device programs lacks one.
    #[error(
        "no device program {name} in {}: build the device programs first (init, netd, provisiond, keel) and give their folder with --programs",
        dir.display()
    )]
    MissingProgram { name: &'static str, dir: PathBuf },

    /// apt has no such package in its lists.
    #[error(
        "apt knows no package {package}: run \"apt-get update\", or give a filled --cache with --offline"
    )]
    UnknownPackage { package: String },

    /// An offline build whose cache lacks the package.
    #[error(
        "the cache {} has no package for {wanted}: build once without --offline",
        cache.display()
    )]
    NotCached { wanted: String, cache: PathBuf },

    /// A package's bytes are not what was recorded, or cannot be unpacked.
    #[error("package {} is damaged ({detail}): delete it and build again without --offline", path.display())]
    DamagedPackage { path: PathBuf, detail: String },

    /// The cache's index cannot be understood.
    #[error("the cache index {} cannot be read ({detail}): delete it and build again", path.display())]
    DamagedIndex { path: PathBuf, detail: String },

    /// The chosen kernel lacks a module of the lists.
    #[error("kernel {kernel} has no module {module}{}: remove it from --module, or choose another --flavour", wanted_by(.by))]
    NoModule { module: String, by: Option<String>, kernel: String },

    /// Two modules need each other.
    #[error("the modules {chain} need each other: the kernel package cannot be ordered")]
    ModuleCycle { chain: String },

    /// A module file is not a kernel module.
    #[error(
        "module {module} of kernel {kernel} is damaged ({detail}): delete the package from the cache and build again"
    )]
    DamagedModule { module: String, kernel: String, detail: String },

    /// `--watchdog KIND` without a driver in the chosen kernel.
    #[error(
        "kernel {kernel} has no watchdog driver {kind}: it has {have}; name one of them with --watchdog, or none"
    )]
    NoWatchdog { kind: String, kernel: String, have: String },

    /// A tree (root, overlay, extra files) that cannot become part of the root.
    #[error("{} cannot be put into the image: {detail}", path.display())]
    BadTree { path: PathBuf, detail: String },

    /// An option with an impossible value.
    #[error("{option}: {detail}")]
    BadOption { option: &'static str, detail: String },

    /// The parts do not fit on the disk.
    #[error(
        "the partitions need {need_mib} MiB, the disk has {disk_mib} MiB: give a --disk-size of at least {need_mib}M"
    )]
    DiskTooSmall { need_mib: u64, disk_mib: u64 },

    /// A key or certificate for Secure Boot that cannot be used.
    #[error("{} cannot be used ({detail}): make keys with \"image secure-boot-keys DIR\"", path.display())]
    BadKey { path: PathBuf, detail: String },

    /// A file that cannot be signed.
    #[error("cannot sign the {name}: {detail}")]
    Unsignable { name: String, detail: String },

    /// The stub cannot take the sections.
    #[error("cannot make the boot file from {}: {detail}", stub.display())]
    Stub { stub: PathBuf, detail: String },
}

/// Why a file is not (or cannot be shown to be) one of our images. Nothing is changed by looking.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It can be read, but it is something else.
    #[error("{} is not an Evenkeel image: {detail}; build one with \"image build\"", path.display())]
    NotOurs { path: PathBuf, detail: String },

    /// It cannot be read.
    #[error("cannot read the disk image {}", path.display())]
    Io { path: PathBuf, source: io::Error },

    /// A host program is missing or failed.
    #[error(transparent)]
    Host(#[from] BuildError),
}

fn wanted_by(by: &Option<String>) -> String {
    by.as_ref().map(|by| format!(" (needed by {by})")).unwrap_or_default()
}

impl BuildError {
    /// Sorts an I/O error: a full disk has a variant (and a number) of its own.
    pub(crate) fn io(doing: &'static str, path: &Path, need: u64, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::NoSpace { path: path.to_owned(), need };
        }
        Self::Io { doing, path: path.to_owned(), source }
    }

    /// A failed read: the disk cannot be full.
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Io { doing: "read", path: path.to_owned(), source }
    }
}
