//! The build: inputs -> key -> parts -> disk.
//!
//! ```text
//! programs, root, overlays, kernel package, stub, loader
//!    └─ key: the same as last time? ── yes ──> nothing to do
//!         └─ modules in order ─┬─ root tree -> squashfs ─> initramfs ─> UKI ─┐
//!                              └─ keel, init ─────────> rescue initramfs ─> UKI ─┴─> disk -> rename
//! ```
//! Everything is made in memory and written once. The output appears by rename: whoever reads it sees the old
//! image or the new one, whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checksums;
use crate::cpio::Cpio;
use crate::deb::{self, Kernel};
use crate::disk::{self, Contents};
use crate::error::BuildError;
use crate::host::{self, MCOPY, MKE2FS, MKFS_FAT};
use crate::manifest::{Choices, Input, Manifest, Part};
use crate::modules::{self, Catalogue, Module};
use crate::options::{BuildOptions, Built, Flavour, Format, Progress, Source, Watchdog};
use crate::packages::{Cache, Chosen};
use crate::secure_boot::Signer;
use crate::tree::{Tree, read_host};
use crate::{PRODUCT, digest, qcow2, uki};

/// Programs every image has. `init` is PID 1 and lives in the initramfs, the others in `/bin`.
pub const PROGRAMS: [&str; 4] = ["init", "netd", "provisiond", "keel"];
/// Mount points, in the root and in the initramfs.
const MOUNT_POINTS: [&str; 6] = ["proc", "sys", "dev", "run", "state", "tmp"];
/// The Debian package with the checker of STATE, its file there, and its place in the root.
const CHECKER_PACKAGE: &str = "e2fsck-static";
const CHECKER_FILE: &str = "sbin/e2fsck.static";
const CHECKER: &str = "/bin/e2fsck";
/// The empty file system of STATE, for init.
const STATE_IMAGE: &str = "/lib/evenkeel/state.ext4";
const CMDLINE: &str = "console=ttyS0,115200 panic=10 quiet loglevel=4";
/// Added for the rescue system, in front of the builder's own words: an open quote or a `--` in them must not hide it.
const RESCUE_FLAG: &str = "evenkeel.rescue";
/// The x86 kernel's own limit, less the rescue flag.
const CMDLINE_MAX: usize = 2000;
const OWN_MODULES: &str = "/etc/evenkeel/modules.list";
const MODULE_INDEX: &str = "/etc/evenkeel/modules.index";

/// Builds an image, or finds that it is there already.
///
/// # Errors
/// Every [`BuildError`] leaves what was at the output path unchanged.
pub fn build(options: &BuildOptions, progress: &mut dyn Progress) -> Result<Built, BuildError> {
    check(options)?;
    progress.step("reading the inputs");
    let inputs = Inputs::read(options)?;
    let manifest = inputs.manifest(options);
    let paths = Paths::of(&options.out);
    if let Some(built) = paths.unchanged(&manifest.key, options.format, options.boot_files) {
        return Ok(built);
    }

    progress.step(&format!("unpacking {} {}", inputs.package.package, inputs.package.version));
    let cache = cache(options);
    let deb = cache.read(&inputs.package)?;
    let kernel = deb::unpack(&options.cache.join(&inputs.package.file), &deb)?;
    drop(deb);

    progress.step("ordering the modules");
    let sets = ModuleSets::select(options, &kernel)?;

    progress.step("packing the root");
    let deb = cache.read(&inputs.checker)?;
    let checker = deb::file(&options.cache.join(&inputs.checker.file), &deb, CHECKER_FILE)?;
    drop(deb);
    let work = WorkDir::beside(&options.out)?;
    let state = disk::state_file_system(&work.0, &options.out, kernel.time)?;
    let own = [(CHECKER, 0o755, checker), (STATE_IMAGE, 0o644, state.clone())];
    let root = root_tree(options, &inputs, &kernel, &sets, &manifest, own)?;
    let squashfs = root.squashfs(kernel.time)?;
    let initramfs = initramfs(&inputs, &kernel, &sets.early, Payload::Root(&squashfs));
    let release = release(options.flavour, &kernel);
    let rescue_initramfs = initramfs_of_rescue(&inputs, &kernel, &sets.rescue, &release);

    progress.step("making the boot files");
    let uki = boot_file(options, &inputs, &kernel, &cmdline(options, ""), &initramfs)?;
    let rescue = boot_file(options, &inputs, &kernel, &cmdline(options, RESCUE_FLAG), &rescue_initramfs)?;

    let uki = inputs.signed("boot file", uki)?;
    let rescue = inputs.signed("rescue system", rescue)?;
    let loader = inputs.signed("loader", inputs.loader.clone())?;

    let total = |modules: &[Module]| modules.iter().map(|m| m.bytes.len() as u64).sum::<u64>();
    let mut manifest = manifest;
    manifest.container = options.format.to_string();
    manifest.part = [
        ("kernel", kernel.vmlinuz.len() as u64),
        ("modules", total(&sets.early) + total(&sets.root) + total(&sets.devices)),
        ("programs", inputs.programs.iter().map(|(_, bytes)| bytes.len() as u64).sum()),
        ("squashfs", squashfs.len() as u64),
        ("initramfs", initramfs.len() as u64),
        ("uki", uki.len() as u64),
        ("rescue", rescue.len() as u64),
    ]
    .map(|(name, size)| Part { name: name.into(), size })
    .into();

    progress.step("writing the disk");
    let table = disk::layout(uki.len() as u64, rescue.len() as u64, options.disk_size)?;
    let contents = Contents {
        loader: &loader,
        uki: &uki,
        rescue: &rescue,
        state: &state,
        watchdog_s: watchdog_seconds(options),
        time: kernel.time,
    };
    let raw = work.0.join("disk");
    disk::write(&raw, &options.out, &work.0, &table, &contents)?;
    let finished = match options.format {
        Format::Raw => raw,
        Format::Qcow2 => to_qcow2(&raw, &work.0.join("disk.qcow2"), &options.out, contents.needed())?,
    };
    if options.boot_files {
        work.publish_bytes(&kernel.vmlinuz, &paths.vmlinuz)?;
        work.publish_bytes(&initramfs, &paths.initramfs)?;
    }
    rename(&finished, &options.out)?;
    // Last, because it vouches for the image.
    work.publish_bytes(manifest.text().as_bytes(), &paths.manifest)?;
    Ok(paths.built(&manifest, true, options.boot_files))
}

fn cache(options: &BuildOptions) -> Cache<'_> {
    Cache { dir: &options.cache, offline: options.offline, refresh: options.refresh }
}

fn check(options: &BuildOptions) -> Result<(), BuildError> {
    let bad = |option, detail: &str| Err(BuildError::BadOption { option, detail: detail.to_owned() });
    if options.flavour == Flavour::Generic && options.watchdog == Watchdog::ByFlavour {
        return bad(
            "--watchdog",
            "name the hardware's driver (iTCO_wdt, …) or none: a generic image cannot know it",
        );
    }
    if options.watchdog != Watchdog::None && options.watchdog_timeout == 0 {
        return bad("--watchdog-timeout", "0 seconds; give the time to boot in, or --watchdog none");
    }
    let cmdline = cmdline(options, "");
    if cmdline.len() > CMDLINE_MAX || !cmdline.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return bad(
            "--cmdline",
            "it must be printable ASCII, at most 2000 characters with the built-in part",
        );
    }
    Ok(())
}

/// Name of the driver, if the image has a watchdog.
fn watchdog_driver(options: &BuildOptions) -> Option<&str> {
    match &options.watchdog {
        Watchdog::ByFlavour => Some("i6300esb"),
        Watchdog::Driver(name) => Some(name),
        Watchdog::None => None,
    }
}

fn watchdog_seconds(options: &BuildOptions) -> u16 {
    watchdog_driver(options).map_or(0, |_| options.watchdog_timeout)
}

fn cmdline(options: &BuildOptions, flag: &str) -> String {
    let words = [CMDLINE, flag, options.extra_cmdline.trim()];
    words.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Everything read from the host, once: what is hashed is what is used.
struct Inputs {
    programs: Vec<(&'static str, Vec<u8>)>,
    stub: Vec<u8>,
    loader: Vec<u8>,
    signer: Option<Signer>,
    base: Tree,
    overlays: Vec<(PathBuf, Tree)>,
    extra: Vec<(String, u16, Vec<u8>)>,
    package: Chosen,
    checker: Chosen,
}

impl Inputs {
    fn read(options: &BuildOptions) -> Result<Self, BuildError> {
        let mut programs = Vec::new();
        for name in PROGRAMS {
            let path = options.programs.join(name);
            if !path.is_file() {
                return Err(BuildError::MissingProgram { name, dir: options.programs.clone() });
            }
            programs.push((name, read_host(&path)?));
        }
        let tree = |dir: &Path| {
            let mut tree = Tree::new();
            tree.copy_from(dir).map(|()| tree)
        };
        let mut overlays = Vec::new();
        for dir in &options.overlays {
            overlays.push((dir.clone(), tree(dir)?));
        }
        let mut extra = Vec::new();
        for file in &options.extra_files {
            let bytes = match &file.source {
                Source::Bytes(bytes) => bytes.clone(),
                Source::Host(path) => read_host(path)?,
            };
            extra.push((file.path.clone(), file.mode, bytes));
        }
        Ok(Self {
            programs,
            stub: read_packaged(&options.stub, "systemd-boot-efi")?,
            loader: read_packaged(&options.loader, "efibootguard")?,
            signer: options.secure_boot.as_deref().map(Signer::open).transpose()?,
            base: tree(&options.root)?,
            overlays,
            extra,
            package: cache(options).choose(options.flavour)?,
            checker: cache(options).choose_package(CHECKER_PACKAGE)?,
        })
    }

    /// A file for the firmware as it goes onto the disk: signed, when there is a key.
    fn signed(&self, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, BuildError> {
        match &self.signer {
            Some(signer) => signer.sign(name, &bytes),
            None => Ok(bytes),
        }
    }

    fn program(&self, name: &str) -> &[u8] {
        let found = self.programs.iter().find(|(n, _)| *n == name);
        found.map(|(_, bytes)| bytes.as_slice()).expect("all of PROGRAMS have been read")
    }

    fn manifest(&self, options: &BuildOptions) -> Manifest {
        let input = |kind: &str, name: &str, version: &str, sha256: String| Input {
            kind: kind.into(),
            name: name.into(),
            version: version.into(),
            sha256,
        };
        let package = |p: &Chosen| input("package", &p.package, &p.version, p.sha256.clone());
        let mut inputs = vec![
            package(&self.package),
            package(&self.checker),
            input(
                "stub",
                "linuxx64.efi.stub",
                &host::package_version("systemd-boot-efi"),
                digest::sha256(&self.stub),
            ),
            input(
                "loader",
                "efibootguardx64.efi",
                &host::package_version("efibootguard"),
                digest::sha256(&self.loader),
            ),
        ];
        inputs.extend(
            self.signer.iter().map(|s| input("certificate", "db", "", digest::sha256(&s.certificate))),
        );
        inputs.extend(
            self.programs.iter().map(|(name, bytes)| input("program", name, "", digest::sha256(bytes))),
        );
        inputs.push(input("root", "root", "", self.base.digest()));
        for (path, tree) in &self.overlays {
            // The last component only: the same overlay elsewhere on the host gives the same image.
            let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            inputs.push(input("overlay", &name, "", tree.digest()));
        }
        for (path, mode, bytes) in &self.extra {
            inputs.push(input("file", path, &format!("{mode:04o}"), digest::sha256(bytes)));
        }
        for tool in [MKFS_FAT, MCOPY, MKE2FS] {
            inputs.push(input("tool", tool.package, &tool.version(), String::new()));
        }
        let choices = Choices {
            flavour: options.flavour.to_string(),
            watchdog: watchdog_driver(options).unwrap_or("none").to_owned(),
            watchdog_timeout_s: watchdog_seconds(options),
            cmdline: cmdline(options, ""),
            modules: options.modules.clone(),
            disk_size: options.disk_size,
        };
        Manifest::new(choices, inputs)
    }
}

fn read_packaged(path: &Path, package: &'static str) -> Result<Vec<u8>, BuildError> {
    if !path.is_file() {
        return Err(BuildError::MissingFile { path: path.to_owned(), package });
    }
    read_host(path)
}

struct ModuleSets {
    early: Vec<Module>,
    rescue: Vec<Module>,
    root: Vec<Module>,
    /// Loaded when a device asks for them.
    devices: Vec<Module>,
}

impl ModuleSets {
    fn select(options: &BuildOptions, kernel: &Kernel) -> Result<Self, BuildError> {
        let catalogue = Catalogue::new(kernel);
        let watchdog = watchdog_driver(options);
        if let Some(kind) = watchdog.filter(|kind| !catalogue.is_watchdog(kind)) {
            return Err(BuildError::NoWatchdog {
                kind: kind.to_owned(),
                kernel: kernel.release.clone(),
                have: catalogue.watchdogs().join(", "),
            });
        }
        let early = catalogue.select(&modules::early_names(options.flavour, watchdog), &[])?;
        let rescue = catalogue.select(&modules::rescue_names(options.flavour, watchdog), &[])?;
        let root = catalogue.select(&modules::root_names(&options.modules), &early)?;
        let loaded: Vec<Module> = early.iter().chain(&root).cloned().collect();
        let devices = catalogue.select(&modules::device_names(options.flavour, watchdog), &loaded)?;
        Ok(Self { early, rescue, root, devices })
    }
}

/// `/etc/evenkeel/release`.
fn release(flavour: Flavour, kernel: &Kernel) -> String {
    format!(
        "product = \"{PRODUCT}\"\nversion = \"{}\"\nflavour = \"{flavour}\"\nkernel = \"{}\"\nbuild_time = {}\n",
        env!("CARGO_PKG_VERSION"),
        kernel.release,
        kernel.time
    )
}

fn root_tree(
    options: &BuildOptions,
    inputs: &Inputs,
    kernel: &Kernel,
    sets: &ModuleSets,
    manifest: &Manifest,
    own: [(&str, u16, Vec<u8>); 2],
) -> Result<Tree, BuildError> {
    let mut tree = inputs.base.clone();
    for point in MOUNT_POINTS {
        tree.dir(point, 0o755)?;
    }
    for (name, bytes) in inputs.programs.iter().filter(|(name, _)| *name != "init") {
        tree.file(&format!("/bin/{name}"), 0o755, bytes.clone())?;
    }
    for (path, mode, bytes) in own {
        tree.file(path, mode, bytes)?;
    }
    let directory = format!("/lib/modules/{}", kernel.release);
    let mut list = String::new();
    for module in &sets.root {
        list.push_str(&format!("{directory}/{}\n", module.path));
    }
    for module in sets.root.iter().chain(&sets.devices) {
        tree.file(&format!("{directory}/{}", module.path), 0o644, module.bytes.clone())?;
    }
    tree.file(OWN_MODULES, 0o644, list)?;
    tree.file(MODULE_INDEX, 0o644, modules::index(&directory, &sets.devices)?)?;
    tree.file("/etc/evenkeel/release", 0o644, release(options.flavour, kernel))?;
    tree.file("/etc/evenkeel/manifest", 0o644, manifest.text())?;
    for (_, overlay) in &inputs.overlays {
        tree.overlay(overlay)?;
    }
    for (path, mode, bytes) in &inputs.extra {
        tree.file(path, *mode, bytes.clone())?;
    }
    Ok(tree)
}

/// What an initramfs carries besides PID 1 and the early modules.
enum Payload<'a> {
    Root(&'a [u8]),
    Rescue { keel: &'a [u8], release: &'a str },
}

fn initramfs_of_rescue(inputs: &Inputs, kernel: &Kernel, modules: &[Module], release: &str) -> Vec<u8> {
    initramfs(inputs, kernel, modules, Payload::Rescue { keel: inputs.program("keel"), release })
}

fn initramfs(inputs: &Inputs, kernel: &Kernel, modules: &[Module], payload: Payload<'_>) -> Vec<u8> {
    let list: String = modules.iter().map(|m| format!("/boot/modules/{}\n", m.file)).collect();
    let mut files: Vec<(String, u32, &[u8])> = vec![
        ("/init".into(), 0o755, inputs.program("init")),
        ("/boot/modules.list".into(), 0o644, list.as_bytes()),
    ];
    files.extend(modules.iter().map(|m| (format!("/boot/modules/{}", m.file), 0o644, m.bytes.as_slice())));
    let mut folders = vec!["boot", "boot/modules"];
    match payload {
        Payload::Root(squashfs) => files.push(("/root.squashfs".into(), 0o644, squashfs)),
        Payload::Rescue { keel, release } => {
            folders.extend(["bin", "etc", "etc/evenkeel"]);
            files.push(("/bin/keel".into(), 0o755, keel));
            files.push(("/etc/evenkeel/release".into(), 0o644, release.as_bytes()));
        }
    }
    let mut cpio = Cpio::new(kernel.time);
    for folder in MOUNT_POINTS.into_iter().chain(folders) {
        cpio.dir(folder);
    }
    // First: an archive that is cut short behind it still names what is missing.
    let checksums = checksums::list(files.iter().map(|(path, _, bytes)| (path.as_str(), *bytes)));
    cpio.file("boot/files.list", 0o644, checksums.as_bytes());
    // Opened by the kernel for PID 1 before /dev is mounted.
    cpio.char_device("dev/console", 0o600, 5, 1);
    // What replaces it where the kernel has no console: a program without standard streams aborts at its start.
    cpio.char_device("dev/null", 0o666, 1, 3);
    for (path, mode, bytes) in &files {
        cpio.file(path, *mode, bytes);
    }
    cpio.finish()
}

fn boot_file(
    options: &BuildOptions,
    inputs: &Inputs,
    kernel: &Kernel,
    cmdline: &str,
    initramfs: &[u8],
) -> Result<Vec<u8>, BuildError> {
    let version = env!("CARGO_PKG_VERSION");
    let os =
        format!("ID={PRODUCT}\nNAME=Evenkeel\nVERSION_ID={version}\nPRETTY_NAME=\"Evenkeel {version}\"\n");
    uki::assemble(
        &inputs.stub,
        &[
            (".osrel", os.as_bytes()),
            (".cmdline", cmdline.as_bytes()),
            (".uname", kernel.release.as_bytes()),
            (".linux", &kernel.vmlinuz),
            (".initrd", initramfs),
        ],
    )
    .map_err(|detail| BuildError::Stub { stub: options.stub.clone(), detail })
}

fn to_qcow2(raw: &Path, out: &Path, target: &Path, need: u64) -> Result<PathBuf, BuildError> {
    let from = fs::File::open(raw).map_err(|e| BuildError::read(raw, e))?;
    let size = from.metadata().map_err(|e| BuildError::read(raw, e))?.len();
    let written = fs::File::create(out)
        .and_then(|file| qcow2::write(&from, size, &file).and_then(|()| file.sync_all()));
    written.map_err(|e| BuildError::io("write", target, need, e))?;
    Ok(out.to_owned())
}

fn rename(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::rename(from, to).map_err(|e| BuildError::io("write", to, 0, e))
}

/// A folder beside the output (on the same file system, so that a rename does it), removed at the end.
struct WorkDir(PathBuf);

impl WorkDir {
    fn beside(out: &Path) -> Result<Self, BuildError> {
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|e| BuildError::io("create", parent, 0, e))?;
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let path = parent.join(format!(".{name}.{}", host::unique()));
        let _ = fs::remove_dir_all(&path); // of a build with that process id that was killed
        fs::create_dir(&path).map_err(|e| BuildError::io("create", &path, 0, e))?;
        Ok(Self(path))
    }

    fn publish_bytes(&self, bytes: &[u8], to: &Path) -> Result<(), BuildError> {
        let new = self.0.join("new");
        fs::write(&new, bytes).map_err(|e| BuildError::io("write", to, bytes.len() as u64, e))?;
        rename(&new, to)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The output and its companions.
struct Paths {
    image: PathBuf,
    manifest: PathBuf,
    vmlinuz: PathBuf,
    initramfs: PathBuf,
}

impl Paths {
    fn of(out: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = out.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            image: out.to_owned(),
            manifest: with(".manifest.toml"),
            vmlinuz: with(".vmlinuz"),
            initramfs: with(".initramfs"),
        }
    }

    /// The image of an earlier build with this key, if nobody has written to it since.
    fn unchanged(&self, key: &str, format: Format, boot_files: bool) -> Option<Built> {
        let manifest =
            Manifest::read(&self.manifest).filter(|m| m.key == key && m.container == format.to_string())?;
        let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        let vouched = changed(&self.manifest)?;
        let mut files = vec![&self.image];
        if boot_files {
            files.extend([&self.vmlinuz, &self.initramfs]);
        }
        let kept = files.iter().all(|file| changed(file).is_some_and(|time| time <= vouched));
        let whole =
            format != Format::Raw || fs::metadata(&self.image).ok()?.len() == manifest.choices.disk_size;
        (kept && whole).then(|| self.built(&manifest, false, boot_files))
    }

    fn built(&self, manifest: &Manifest, fresh: bool, boot_files: bool) -> Built {
        Built {
            image: self.image.clone(),
            manifest: self.manifest.clone(),
            key: manifest.key.clone(),
            fresh,
            parts: manifest.part.iter().map(|p| (p.name.clone(), p.size)).collect(),
            vmlinuz: boot_files.then(|| self.vmlinuz.clone()),
            initramfs: boot_files.then(|| self.initramfs.clone()),
            cmdline: manifest.choices.cmdline.clone(),
        }
    }
}
