//! What has to be there before a node can boot: packages, device programs, image, accelerator.

use crate::accel::{self, Accel};
use crate::error::LabError;
use crate::packages::{self, ThisHost};
use crate::programs;
use crate::progress::Progress;
use image::{BuildOptions, ExtraFile, Flavour, Source};
use std::path::{Path, PathBuf};

/// Many machines start on few cores: the loader gives the system this long to take the watchdog over.
const WATCHDOG_S: u16 = 120;

/// Everything machines are started from.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The read-only disk under every node's overlay. Named by its contents: a later build does not touch it.
    pub base: PathBuf,
    /// How instructions are executed.
    pub accel: Accel,
    /// The device programs in the image.
    pub programs: PathBuf,
}

/// Where the lab keeps what it builds.
pub fn build_dir() -> PathBuf {
    programs::workspace().join("target/lab")
}

/// Keys with which the lab signs its images and which machines with Secure Boot trust. The lab's alone: no device gets one.
pub fn secure_boot_keys() -> PathBuf {
    build_dir().join("secure-boot")
}

/// All steps. With `offline` nothing is fetched: packages are only looked for, crates and kernel come from caches.
pub fn prepare(offline: bool, progress: &mut dyn Progress) -> Result<Prepared, LabError> {
    packages::ensure(&mut ThisHost, offline, progress)?;
    build(offline, progress)
}

/// Programs, image and accelerator, on a host that has the packages.
pub fn build(offline: bool, progress: &mut dyn Progress) -> Result<Prepared, LabError> {
    progress.begin("device programs");
    let programs = programs::build(offline)?;
    progress.end("built");

    progress.begin("image");
    let dir = build_dir();
    std::fs::create_dir_all(&dir).map_err(LabError::io(format!("create {}", dir.display())))?;
    make_keys(&secure_boot_keys()).map_err(refused)?;
    let options = image_options(&programs, &dir, offline);
    let cache = options.cache.clone();
    let built = image::build(&options, &mut |step: &str| progress.detail(step)).map_err(refused)?;
    let base = keep_by_content(&built.image, options.flavour, &built.key)?;
    progress.end(if built.fresh { "built" } else { "unchanged" });

    progress.begin("accelerator");
    let kernel = built.vmlinuz.as_deref().unwrap_or(Path::new("/nonexistent"));
    let (accel, why) = accel::choose(kernel, &cache)?;
    progress.end(&format!("{accel:?}: {why}"));
    Ok(Prepared { base, accel, programs })
}

/// The same with the generic flavour's image, which has the drivers of real hardware: for machines whose variant asks
/// for some, with the same device programs.
pub fn generic(prepared: &Prepared, progress: &mut dyn Progress) -> Result<Prepared, LabError> {
    progress.begin("generic image");
    let options = BuildOptions {
        out: build_dir().join("generic.raw"),
        flavour: Flavour::Generic,
        watchdog: image::Watchdog::Driver("i6300esb".into()),
        boot_files: false,
        ..image_options(&prepared.programs, &build_dir(), false)
    };
    let built = image::build(&options, &mut |step: &str| progress.detail(step)).map_err(refused)?;
    let base = keep_by_content(&built.image, options.flavour, &built.key)?;
    progress.end(if built.fresh { "built" } else { "unchanged" });
    Ok(Prepared { base, ..prepared.clone() })
}

fn refused(error: image::BuildError) -> LabError {
    LabError::Refused(format!("image: {}", proto::text::one_line(&error)))
}

/// Makes the keys once; two labs may want them at the same time.
fn make_keys(dir: &Path) -> Result<(), image::BuildError> {
    if dir.is_dir() {
        return Ok(());
    }
    let new = dir.with_extension(std::process::id().to_string());
    let _ = std::fs::remove_dir_all(&new); // of a lab with that process id that was killed
    image::secure_boot::make_keys(&new)?;
    if std::fs::rename(&new, dir).is_err() {
        let _ = std::fs::remove_dir_all(&new); // the other one's are there
    }
    Ok(())
}

fn image_options(programs: &Path, dir: &Path, offline: bool) -> BuildOptions {
    let mut options = BuildOptions::new(programs, dir.join("image.raw"));
    options.overlays = vec![programs::workspace().join("qemu/overlay")];
    let program = |name: &str| ExtraFile {
        path: format!("/bin/{name}"),
        source: Source::Host(programs.join(name)),
        mode: 0o755,
    };
    options.extra_files = vec![program("demo-web"), program("lab-fault")];
    options.watchdog_timeout = WATCHDOG_S;
    options.secure_boot = Some(secure_boot_keys());
    options.offline = offline;
    options.boot_files = true; // the accelerator's probe starts the kernel without firmware
    options
}

/// Links the image under a name of its own, so that running nodes keep the bytes they started with, and removes
/// those of the same flavour that no lab's disks stand on any more.
fn keep_by_content(image: &Path, flavour: Flavour, key: &str) -> Result<PathBuf, LabError> {
    let dir = build_dir();
    let prefix = format!("base-{flavour}-");
    let base = dir.join(format!("{prefix}{}.raw", &key[..key.len().min(16)]));
    if !base.exists() {
        std::fs::hard_link(image, &base).map_err(LabError::io(format!("link {}", base.display())))?;
    }
    let used = crate::files::bases_in_use(&crate::dir::default_root());
    for entry in std::fs::read_dir(&dir).map_err(LabError::io(format!("read {}", dir.display())))?.flatten() {
        let path = entry.path();
        let is_base = entry.file_name().to_string_lossy().starts_with(&prefix);
        if is_base && path != base && !used.contains(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(base)
}
