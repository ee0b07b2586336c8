//! What a build is asked for, what it reports while it runs and what it hands back.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::BuildError;

/// Which of Debian's kernels the image carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Flavour {
    /// Virtual machines: small, virtio and NVMe built in.
    #[default]
    Cloud,
    /// Real hardware: everything a module.
    Generic,
}

impl Flavour {
    /// The metapackage whose dependency is the kernel to take.
    pub const fn metapackage(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-6.12-cloud-amd64",
            Self::Generic => "linux-image-6.12-amd64",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        })
    }
}

impl FromStr for Flavour {
    type Err = BuildError;
    fn from_str(text: &str) -> Result<Self, BuildError> {
        match text {
            "cloud" => Ok(Self::Cloud),
            "generic" => Ok(Self::Generic),
            other => Err(BuildError::BadOption {
                option: "--flavour",
                detail: format!("\"{other}\" is not one of cloud, generic"),
            }),
        }
    }
}

/// The hardware watchdog that the loader arms and init feeds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Watchdog {
    /// i6300esb for the cloud flavour; the generic one must be told, because the hardware is not known here.
    #[default]
    ByFlavour,
    /// A driver of the kernel by its module name.
    Driver(String),
    /// No watchdog: a system that hangs stays hung.
    None,
}

impl FromStr for Watchdog {
    type Err = BuildError;
    fn from_str(text: &str) -> Result<Self, BuildError> {
        match text {
            "none" => Ok(Self::None),
            "" => Err(BuildError::BadOption {
                option: "--watchdog",
                detail: "empty; name a driver, or none".into(),
            }),
            driver => Ok(Self::Driver(driver.to_owned())),
        }
    }
}

/// Container of the disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Sparse raw bytes: what is written to a disk, and what the lab puts its overlays on.
    #[default]
    Raw,
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = BuildError;
    fn from_str(text: &str) -> Result<Self, BuildError> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            other => Err(BuildError::BadOption {
                option: "--format",
                detail: format!("\"{other}\" is not one of raw, qcow2"),
            }),
        }
    }
}

/// Where an extra file's bytes come from.
#[derive(Debug, Clone)]
pub enum Source {
    Bytes(Vec<u8>),
    Host(PathBuf),
}

/// One file put over the root and all overlays.
#[derive(Debug, Clone)]
pub struct ExtraFile {
    /// Absolute path on the device.
    pub path: String,
    pub source: Source,
    /// Permission bits, e.g. 0o644.
    pub mode: u16,
}

/// Everything a build depends on. Start from [`BuildOptions::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Folder with the static device programs `init`, `netd`, `provisiond`, `keel`.
    pub programs: PathBuf,
    /// The image to write. The manifest is written beside it as `<out>.manifest.toml`.
    pub out: PathBuf,
    pub flavour: Flavour,
    pub watchdog: Watchdog,
    /// Seconds the loader gives a boot until init has taken the watchdog over. From there on init's own time-out counts.
    pub watchdog_timeout: u16,
    /// Base root tree.
    pub root: PathBuf,
    /// Trees copied over the base root, in this order.
    pub overlays: Vec<PathBuf>,
    /// Single files put over everything else.
    pub extra_files: Vec<ExtraFile>,
    /// More modules to load after the root was switched, by name.
    pub modules: Vec<String>,
    /// Appended to the kernel command line of slot and rescue system.
    pub extra_cmdline: String,
    /// Download cache.
    pub cache: PathBuf,
    /// Take the kernel package from the cache only; never ask apt.
    pub offline: bool,
    /// Ask apt again which kernel is current, although the cache has one.
    pub refresh: bool,
    /// Size of the disk in bytes, a multiple of 1 MiB.
    pub disk_size: u64,
    pub format: Format,
    /// Also write `<out>.vmlinuz` and `<out>.initramfs`, for starting the kernel without firmware.
    pub boot_files: bool,
    /// Folder with the keys that sign loader, slot and rescue system for Secure Boot.
    pub secure_boot: Option<PathBuf>,
    /// systemd's EFI stub.
    pub stub: PathBuf,
    /// EFI Boot Guard.
    pub loader: PathBuf,
}

impl BuildOptions {
    /// The defaults: cloud flavour, i6300esb with 30 s, 1 GiB raw disk, the user's cache.
    pub fn new(programs: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self {
            programs: programs.into(),
            out: out.into(),
            flavour: Flavour::default(),
            watchdog: Watchdog::default(),
            watchdog_timeout: 30,
            root: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/root")),
            overlays: Vec::new(),
            extra_files: Vec::new(),
            modules: Vec::new(),
            extra_cmdline: String::new(),
            cache: default_cache(),
            offline: false,
            refresh: false,
            disk_size: 1 << 30,
            format: Format::default(),
            boot_files: false,
            secure_boot: None,
            stub: PathBuf::from("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
            loader: PathBuf::from("/usr/lib/x86_64-linux-gnu/efibootguard/efibootguardx64.efi"),
        }
    }
}

/// `$EVENKEEL_CACHE`, else `$XDG_CACHE_HOME/evenkeel/packages`, else `~/.cache/evenkeel/packages`.
pub fn default_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(cache) = set("EVENKEEL_CACHE") {
        return cache;
    }
    let base = set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    base.join("evenkeel/packages")
}

/// Told what the build is at. A build takes seconds; a person wants to see which step.
pub trait Progress {
    fn step(&mut self, what: &str);
}

/// Says nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn step(&mut self, _: &str) {}
}

impl<F: FnMut(&str)> Progress for F {
    fn step(&mut self, what: &str) {
        self(what);
    }
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Built {
    pub image: PathBuf,
    pub manifest: PathBuf,
    /// Hex digest over everything the image depends on.
    pub key: String,
    /// False when an image with the same key was already there and nothing was done.
    pub fresh: bool,
    /// Name and bytes of each part: `kernel`, `modules`, `programs`, `squashfs`, `initramfs`, `uki`, ….
    pub parts: Vec<(String, u64)>,
    /// With [`BuildOptions::boot_files`]: the kernel as it is in the boot file.
    pub vmlinuz: Option<PathBuf>,
    /// With [`BuildOptions::boot_files`]: the initramfs as it is in the boot file.
    pub initramfs: Option<PathBuf>,
    /// The kernel command line of the slots.
    pub cmdline: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_parsed_and_refused_by_name() {
        assert_eq!("generic".parse::<Flavour>().unwrap(), Flavour::Generic);
        assert_eq!("none".parse::<Watchdog>().unwrap(), Watchdog::None);
        assert_eq!("iTCO_wdt".parse::<Watchdog>().unwrap(), Watchdog::Driver("iTCO_wdt".into()));
        assert_eq!("qcow2".parse::<Format>().unwrap(), Format::Qcow2);
        let error = "arm".parse::<Flavour>().unwrap_err().to_string();
        assert_eq!(error, "--flavour: \"arm\" is not one of cloud, generic");
    }
}
