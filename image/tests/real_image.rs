//! Builds images from the real kernel package and checks them with other people's tools.
//!
//! The package comes from the download cache, else through apt: a host that has neither fails these tests.
//! The device programs are made up; nothing is started.

#![allow(clippy::unwrap_used)] // helpers of tests, too

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use image::{BuildOptions, Built, ExtraFile, PROGRAMS, Quiet, Source, build, default_cache, describe, uki};

/// A folder with made-up programs, removed at the end.
struct Bench(PathBuf);

impl Bench {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("evenkeel-real-{}-{n}", std::process::id()));
        fs::create_dir_all(dir.join("programs")).unwrap();
        for name in PROGRAMS {
            fs::write(dir.join("programs").join(name), format!("\x7fELF {name}").repeat(1000)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn options(&self, out: &str) -> BuildOptions {
        BuildOptions::new(self.path("programs"), self.path(out))
    }

    /// The names in the bench, to see what a build leaves behind.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build_quietly(options: &BuildOptions) -> Built {
    build(options, &mut Quiet).unwrap_or_else(|e| panic!("{}", proto::text::one_line(&e)))
}

/// Fetches the kernel package if it is not there, for what builds offline.
fn fill_cache() {
    let cache = image::Cache { dir: &default_cache(), offline: false, refresh: false };
    for chosen in [cache.choose(image::Flavour::Cloud), cache.choose_package("e2fsck-static")] {
        chosen.unwrap_or_else(|e| panic!("{}", proto::text::one_line(&e)));
    }
}

fn same_bytes(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut one, mut two) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    loop {
        let n = a.read(&mut one).unwrap();
        if n == 0 {
            return b.read(&mut two).unwrap() == 0;
        }
        if b.read_exact(&mut two[..n]).is_err() || one[..n] != two[..n] {
            return false;
        }
    }
}

/// Runs a checker; its words are part of the failure.
fn sound(program: &str, package: &str, args: &[&str], file: &Path) -> String {
    let output = Command::new(program)
        .args(args)
        .arg(file)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; install the Debian package {package}"));
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {words}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    words
}

#[test]
fn two_builds_from_one_cache_are_identical_and_sound() {
    let bench = Bench::new();
    // An overlay with the same contents twice, of another age, with other permissions, its files made in another order.
    let files = [("etc/one", 0o644), ("etc/two", 0o755), ("bin/three", 0o644)];
    let overlay = |place: &str, order: &[(&str, u32)], strip: u32| {
        let overlay = bench.path(place).join("overlay");
        for (name, mode) in order {
            let path = overlay.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & !strip)).unwrap();
            let age = std::time::Duration::from_secs(86_400 * u64::from(strip));
            File::open(&path).unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        overlay
    };
    let reversed: Vec<_> = files.iter().rev().copied().collect();
    let (here, there) = (overlay("here", &files, 0), overlay("there/deeper", &reversed, 0o077));
    let first = build_quietly(&BuildOptions { overlays: vec![here], ..bench.options("a.img") });
    assert!(first.fresh);

    // Somebody else's surroundings: another process, folder, umask, time zone, language, and variables of the tools.
    let out = bench.path("there/b.img");
    let script = "umask 077; cd \"$1\"; shift; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(bench.path("there"))
        .args([env!("CARGO_BIN_EXE_image"), "build", "--offline", "--out", "b.img", "--overlay"])
        .arg(&there)
        .arg("--programs")
        .arg(bench.path("programs"))
        .env("EVENKEEL_CACHE", default_cache())
        .env("TZ", "Pacific/Auckland")
        .env("LC_ALL", "C.UTF-8")
        .env("SOURCE_DATE_EPOCH", "1")
        .envs([("MTOOLS_NO_VFAT", "1"), ("MTOOLS_LOWER_CASE", "1"), ("MKE2FS_FIRST_META_BG", "1")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let second = image::Manifest::read(&bench.path("there/b.img.manifest.toml")).unwrap();
    assert_eq!(first.key, second.key);
    assert!(same_bytes(&first.image, &out), "two builds differ");
    assert_eq!(bench.names(), ["a.img", "a.img.manifest.toml", "here", "programs", "there"]);

    let words = sound("/usr/sbin/sgdisk", "gdisk", &["-v"], &first.image);
    assert!(words.contains("No problems found"), "{words}");
    image::verify_ours(&first.image).unwrap();
    let description = describe(&first.image).unwrap();
    for partition in &description.table.partitions {
        let file = bench.path("partition");
        image::extract(&first.image, partition, &file).unwrap();
        if partition.name == "STATE" {
            sound("/usr/sbin/e2fsck", "e2fsprogs", &["-f", "-n"], &file);
        } else {
            sound("/usr/sbin/fsck.fat", "dosfstools", &["-n"], &file);
        }
    }

    let environments: Vec<_> = description.environments.iter().map(|(_, e)| e.as_ref().unwrap()).collect();
    assert_eq!(environments[0].kernel_file, "L:SLOT-A:linux.efi");
    assert_eq!((environments[0].revision, environments[0].watchdog_s), (1, 30));
    assert_eq!(environments[1].kernel_file, "L:SLOT-B:linux.efi");
    assert_eq!(environments[1].revision, 0, "the loader must never start the empty slot");
    let files: Vec<_> =
        description.boot_files.iter().map(|f| (f.partition.as_str(), f.cmdline.as_str())).collect();
    let slot = "console=ttyS0,115200 panic=10 quiet loglevel=4";
    assert_eq!(files, [("SLOT-A", slot), ("RESCUE", format!("{slot} evenkeel.rescue").as_str())]);
    // Sparse on the host: what the parts need and little more.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&first.image).unwrap());
    assert!(blocks * 512 < 128 << 20, "{} MiB on disk", (blocks * 512) >> 20);
    assert!(describe(&first.image).unwrap().to_string().contains("STATE"));
}

#[test]
fn an_unchanged_image_is_left_alone_and_a_changed_input_is_noticed() {
    let bench = Bench::new();
    let mut options = bench.options("a.img");
    let key = build_quietly(&options).key;
    let again = build_quietly(&BuildOptions { offline: true, ..options.clone() });
    assert!(!again.fresh);
    assert_eq!(again.key, key);
    assert!(again.parts.iter().any(|(name, size)| name == "uki" && *size > 10 << 20), "{:?}", again.parts);

    // Somebody wrote to the image after its manifest.
    let mut file = fs::OpenOptions::new().write(true).open(&options.out).unwrap();
    file.seek(SeekFrom::Start(40 << 20)).unwrap();
    file.write_all(b"written").unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
    drop(file);
    assert!(build_quietly(&options).fresh);

    options.extra_files.push(ExtraFile {
        path: "/etc/evenkeel/extra".into(),
        source: Source::Bytes(b"1".to_vec()),
        mode: 0o600,
    });
    let built = build_quietly(&options);
    assert!(built.fresh);
    assert_ne!(built.key, key);
}

/// The initramfs as the kernel gets it: `(path, mode, data)`.
fn cpio_entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let field = |i: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + i * 8..at + 14 + i * 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let (mode, size, name) = (field(1), field(6) as usize, field(11) as usize);
        let path = String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap();
        if path == "TRAILER!!!" {
            return entries;
        }
        let data = (at + 110 + name).next_multiple_of(4);
        entries.push((path, mode, bytes[data..data + size].to_vec()));
        at = (data + size).next_multiple_of(4);
    }
}

#[test]
fn the_boot_file_carries_root_modules_overlays_and_extra_files() {
    let bench = Bench::new();
    let overlay = bench.path("overlay");
    fs::create_dir_all(overlay.join("etc/evenkeel/services")).unwrap();
    fs::write(overlay.join("etc/evenkeel/services/extra.toml"), "x").unwrap();
    let options = BuildOptions {
        overlays: vec![overlay],
        extra_files: vec![ExtraFile {
            path: "/bin/demo".into(),
            source: Source::Host(bench.path("programs/keel")),
            mode: 0o755,
        }],
        extra_cmdline: "audit=0 -- \"open".into(),
        modules: vec!["bridge".into()],
        watchdog_timeout: 120,
        boot_files: true,
        ..bench.options("a.img")
    };
    let built = build_quietly(&options);
    let initramfs = fs::read(built.initramfs.as_ref().unwrap()).unwrap();
    let [slot, rescue] = &describe(&built.image).unwrap().boot_files[..] else { panic!("two boot files") };
    assert_eq!(slot.cmdline, built.cmdline);
    assert!(slot.cmdline.ends_with(" loglevel=4 audit=0 -- \"open"), "{}", slot.cmdline);
    assert!(
        rescue.cmdline.ends_with(" evenkeel.rescue audit=0 -- \"open"),
        "nothing hides it: {}",
        rescue.cmdline
    );

    let entries = cpio_entries(&initramfs);
    let find = |path: &str| entries.iter().find(|(p, _, _)| p == path).unwrap_or_else(|| panic!("no {path}"));
    assert_eq!(find("dev/console").1, 0o020600);
    assert_eq!(find("init").1, 0o100755);
    let list = String::from_utf8(find("boot/modules.list").2.clone()).unwrap();
    let early: Vec<&str> = list.lines().collect();
    assert_eq!(early[..2], ["/boot/modules/watchdog.ko", "/boot/modules/i6300esb.ko"]);
    for path in &early {
        assert_eq!(&find(path.trim_start_matches('/')).2[..4], b"\x7fELF", "{path}");
    }

    let squashfs = find("root.squashfs").2.clone();
    let root = backhand::FilesystemReader::from_reader(std::io::Cursor::new(squashfs)).unwrap();
    let read = |path: &str| {
        let node =
            root.files().find(|n| n.fullpath == Path::new(path)).unwrap_or_else(|| panic!("no {path}"));
        let mut bytes = Vec::new();
        if let backhand::InnerNode::File(file) = &node.inner {
            root.file(file).reader().read_to_end(&mut bytes).unwrap();
        }
        bytes
    };
    for path in
        ["/proc", "/sys", "/dev", "/run", "/state", "/tmp", "/bin/netd", "/bin/provisiond", "/bin/keel"]
    {
        read(path);
    }
    assert_eq!(read("/etc/evenkeel/services/extra.toml"), b"x");
    assert_eq!(read("/bin/demo"), fs::read(bench.path("programs/keel")).unwrap());
    let list = String::from_utf8(read("/etc/evenkeel/modules.list")).unwrap();
    let position = |name: &str| list.lines().position(|l| l.ends_with(&format!("/{name}.ko")));
    assert!(
        position("failover") < position("net_failover") && position("net_failover") < position("virtio_net")
    );
    assert!(position("virtio_net").is_some() && position("bridge").is_some());
    assert_eq!(position("squashfs"), None, "early modules are not loaded twice");
    for path in list.lines() {
        assert_eq!(&read(path)[..4], b"\x7fELF", "{path}");
    }
    let release: toml::Table = String::from_utf8(read("/etc/evenkeel/release")).unwrap().parse().unwrap();
    let keys: Vec<&str> = release.keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 5, "{keys:?}");
    assert!(release["build_time"].as_integer().unwrap() > 1_700_000_000);
    assert!(String::from_utf8(read("/etc/evenkeel/manifest")).unwrap().contains(&built.key));

    // The kernel in the boot file is the one of the package.
    let vmlinuz = fs::read(built.vmlinuz.as_ref().unwrap()).unwrap();
    assert_eq!(&vmlinuz[0x202..0x206], b"HdrS");
    assert!(uki::sections(&vmlinuz).is_ok(), "the kernel is an EFI program itself");
}

/// Runs `image write` with a line on standard input.
fn run_write(image: &Path, disk: &Path, more: &[&str], line: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_image"))
        .arg("write")
        .args([image, disk])
        .args(more)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused the disk already, without reading.
    let _ = child.stdin.take().unwrap().write_all(line.as_bytes());
    child.wait_with_output().unwrap()
}

/// A file of a disk's size with the remains of other things everywhere.
fn used_disk(path: &Path, size: u64) {
    let mut file = File::create(path).unwrap();
    let piece: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8 | 1).collect();
    let mut left = size;
    while left > 0 {
        let n = left.min(piece.len() as u64);
        file.write_all(&piece[..n as usize]).unwrap();
        left -= n;
    }
}

#[test]
fn a_disk_gets_the_image_and_state_reaches_to_its_end() {
    let bench = Bench::new();
    const MIB: u64 = 1 << 20;
    let built = build_quietly(&BuildOptions { disk_size: 384 * MIB, ..bench.options("a.img") });
    let from = describe(&built.image).unwrap();
    let disk = bench.path("disk");
    // As large as the image; larger, with an odd end as disks have.
    for (image, size) in [(&built.image, 384 * MIB), (&built.image, 500 * MIB + 7 * 512)] {
        used_disk(&disk, size);
        let output = run_write(image, &disk, &[], "disk\n");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("read back: the same"), "{said}");
        assert_eq!(fs::metadata(&disk).unwrap().len(), size);
        let words = sound("/usr/sbin/sgdisk", "gdisk", &["-v"], &disk);
        assert!(words.contains("No problems found") && !words.contains("Warning"), "{words}");

        let written = describe(&disk).unwrap();
        assert_eq!(written.table.size, size);
        assert_eq!(written.boot_files.len(), 2);
        let (last, others) = written.table.partitions.split_last().unwrap();
        let (from_last, from_others) = from.table.partitions.split_last().unwrap();
        assert_eq!(others, from_others, "only STATE changes");
        assert_eq!((last.start, &last.id), (from_last.start, &from_last.id));
        // The last MiB is the table's; before it STATE ends on a boundary.
        assert_eq!(last.start + last.size, (size - MIB) / MIB * MIB);
        for (there, here) in written.table.partitions.iter().zip(&from.table.partitions) {
            let (a, b) = (bench.path("there"), bench.path("here"));
            let size = here.size;
            image::extract(&disk, &image::gpt::Partition { size, ..there.clone() }, &a).unwrap();
            image::extract(&built.image, here, &b).unwrap();
            assert!(same_bytes(&a, &b), "{} has remains of what was there", here.name);
        }
        let state = bench.path("state");
        image::extract(&disk, last, &state).unwrap();
        sound("/usr/sbin/e2fsck", "e2fsprogs", &["-f", "-n"], &state);
        // What init does with the mounted file system.
        sound("/usr/sbin/resize2fs", "e2fsprogs", &[], &state);
        sound("/usr/sbin/e2fsck", "e2fsprogs", &["-f", "-n"], &state);
    }
}

#[test]
fn a_disk_that_is_too_small_or_not_meant_stays_as_it_is() {
    let bench = Bench::new();
    const MIB: u64 = 1 << 20;
    let built = build_quietly(&BuildOptions { disk_size: 384 * MIB, ..bench.options("a.img") });
    let (disk, before) = (bench.path("disk"), bench.path("before"));
    used_disk(&disk, 384 * MIB - 512);
    fs::copy(&disk, &before).unwrap();
    let said = complaint(&run_write(&built.image, &disk, &["--yes"], ""));
    assert!(
        said.contains(
            "has 402652672 bytes (402.6 MB), the image needs 402653184 (402.6 MB): take a larger disk"
        ),
        "{said}"
    );
    for line in ["", "y\n", "yes\n", "/dev/disk\n"] {
        let output = run_write(&built.image, &disk, &[], line);
        assert!(complaint(&output).ends_with("is unchanged: that was not its name"), "{line:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("/disk (402.6 MB) will be lost"), "{said}");
    }
    let said = complaint(&run_write(&built.manifest, &disk, &["--yes"], ""));
    assert!(said.contains("is not an Evenkeel image"), "{said}");
    assert!(same_bytes(&disk, &before), "refused, yet written to");
    let said = complaint(&run_write(&built.image, &built.image, &["--yes"], ""));
    assert!(said.ends_with("is the image itself: give the disk to write it to"), "{said}");
    assert!(!build_quietly(&BuildOptions { disk_size: 384 * MIB, ..bench.options("a.img") }).fresh);
    let none = bench.path("none");
    complaint(&run_write(&built.image, &none, &["--yes"], ""));
    assert!(!none.exists(), "a mistyped name makes no file");
}

#[test]
fn qcow2_holds_the_same_disk_and_is_the_same_every_time() {
    let bench = Bench::new();
    fill_cache();
    let raw = build_quietly(&bench.options("a.img"));
    // The name chooses the container.
    let [one, two] = ["a.qcow2", "b.qcow2"].map(|name| {
        let out = bench.path(name);
        let output = run_build(&bench, |_| (), &["--offline", "--out", out.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    });
    assert!(same_bytes(&one, &two), "two builds differ");
    assert!(fs::metadata(&one).unwrap().len() < 128 << 20);
    let said = sound("qemu-img", "qemu-utils", &["check", "-f", "qcow2"], &one);
    assert!(said.contains("No errors were found"), "{said}");
    let raw_path = raw.image.to_str().unwrap();
    sound("qemu-img", "qemu-utils", &["compare", "-f", "raw", "-F", "qcow2", raw_path], &one);
    image::verify_ours(&one).unwrap();
    assert_eq!(describe(&one).unwrap().boot_files.len(), 2);

    let options = BuildOptions { format: image::Format::Qcow2, ..bench.options("a.qcow2") };
    let again = build_quietly(&options);
    assert!(!again.fresh);
    assert_eq!(again.key, raw.key, "the container is not the disk");
    let other = build_quietly(&BuildOptions { format: image::Format::Raw, ..options });
    assert!(other.fresh, "another container under the same name is made");
}

#[test]
fn with_keys_everything_the_firmware_starts_is_signed_and_builds_are_the_same() {
    let bench = Bench::new();
    let keys = bench.path("keys");
    image::secure_boot::make_keys(&keys).unwrap();
    let options = BuildOptions { secure_boot: Some(keys.clone()), ..bench.options("a.img") };
    let first = build_quietly(&options);
    let second = build_quietly(&BuildOptions { out: bench.path("b.img"), ..options });
    assert_eq!(first.key, second.key);
    assert!(same_bytes(&first.image, &second.image), "two builds differ");
    assert_ne!(build_quietly(&bench.options("c.img")).key, first.key);
    let table = describe(&first.image).unwrap().table;
    for (partition, name) in
        [("ESP", "EFI/BOOT/BOOTX64.EFI"), ("SLOT-A", "linux.efi"), ("RESCUE", "EFI/BOOT/BOOTX64.EFI")]
    {
        let start = table.partition(partition).unwrap().start;
        let file = bench.path("file.efi");
        let place = format!("{}@@{start}", first.image.display());
        let copied =
            Command::new("mcopy").args(["-n", "-o", "-i", &place, &format!("::/{name}")]).arg(&file).status();
        assert!(copied.unwrap().success());
        sound("sbverify", "sbsigntool", &["--cert", keys.join("db.crt").to_str().unwrap()], &file);
    }
}

#[test]
fn without_a_watchdog_the_loader_arms_none() {
    let bench = Bench::new();
    let none = BuildOptions { watchdog: image::Watchdog::None, boot_files: true, ..bench.options("a.img") };
    let built = build_quietly(&none);
    let description = describe(&built.image).unwrap();
    assert!(description.environments.iter().all(|(_, e)| e.as_ref().unwrap().watchdog_s == 0));
    let initramfs = fs::read(built.initramfs.unwrap()).unwrap();
    assert!(cpio_entries(&initramfs).iter().all(|(path, _, _)| !path.contains("i6300esb")));

    let unknown = BuildOptions { watchdog: "iTCO_wdt".parse().unwrap(), ..bench.options("b.img") };
    let error = build(&unknown, &mut Quiet).unwrap_err().to_string();
    assert!(error.contains("has no watchdog driver iTCO_wdt: it has "), "{error}");
    assert!(
        error.contains("i6300esb, ") && error.ends_with("name one of them with --watchdog, or none"),
        "{error}"
    );
}

/// Runs the program on the bench's programs.
fn run_build(bench: &Bench, prepare: impl FnOnce(&mut Command), more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_image"));
    command.arg("build").arg("--programs").arg(bench.path("programs")).args(more);
    prepare(&mut command);
    command.output().unwrap()
}

/// The last line on standard error: what a person acts upon.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn missing_things_are_named_with_the_next_step() {
    let bench = Bench::new();
    fill_cache();
    let out = bench.path("a.img");
    let out = out.to_str().unwrap();

    let output = run_build(&bench, |c| _ = c.env("PATH", "/nonexistent"), &["--out", out, "--offline"]);
    let said = complaint(&output);
    assert_eq!(said, "image: cannot run mmd: no such program; install the Debian package mtools");

    let empty = bench.path("empty-cache");
    let empty = empty.to_str().unwrap();
    let said = complaint(&run_build(&bench, |_| (), &["--out", out, "--offline", "--cache", empty]));
    assert!(said.ends_with("has no package for cloud: build once without --offline"), "{said}");

    let said = complaint(&run_build(&bench, |_| (), &["--out", out, "--module", "no_such_driver"]));
    assert!(said.contains("has no module no_such_driver"), "{said}");

    let said = complaint(&run_build(&bench, |_| (), &["--out", out, "--disk-size", "64M"]));
    assert!(said.contains("the disk has 64 MiB: give a --disk-size of at least "), "{said}");

    fs::remove_file(bench.path("programs/netd")).unwrap();
    let said = complaint(&run_build(&bench, |_| (), &["--out", out]));
    assert!(said.starts_with("image: no device program netd in "), "{said}");
    assert_eq!(bench.names(), ["programs"], "nothing is left behind");
}

#[test]
fn a_damaged_package_is_refused_and_the_old_image_kept() {
    let bench = Bench::new();
    build_quietly(&bench.options("a.img"));
    let cache = bench.path("cache");
    fs::create_dir(&cache).unwrap();
    for entry in fs::read_dir(default_cache()).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), cache.join(entry.file_name())).unwrap();
        }
    }
    for entry in fs::read_dir(&cache).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|e| e == "deb") {
            let file = fs::OpenOptions::new().write(true).open(entry.path()).unwrap();
            file.set_len(1 << 20).unwrap(); // as a download that broke off
        }
    }
    let options = BuildOptions { cache, watchdog_timeout: 99, ..bench.options("a.img") };
    let error = build(&options, &mut Quiet).unwrap_err().to_string();
    assert!(error.starts_with("package ") && error.contains(" is damaged (SHA-256 "), "{error}");
    assert!(error.ends_with("): delete it and build again without --offline"), "{error}");
    assert!(!build_quietly(&bench.options("a.img")).fresh, "the old image is still there, unchanged");
}

/// A full disk, real: a small file system in a mount namespace of our own.
#[test]
fn a_full_disk_is_named_with_the_bytes_needed() {
    let bench = Bench::new();
    fill_cache();
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    // Too small for the first file, for the copy into the partition, and for the rescue system.
    for mib in ["1", "20", "30"] {
        let script = r#"mount -t tmpfs -o size="$1"m none "$2" && "$3" build --offline --programs "$4" --out "$2/a.img"
            code=$?; ls -A "$2" >&2; exit $code"#;
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", mib])
            .args([&small, Path::new(env!("CARGO_BIN_EXE_image")), &bench.path("programs")])
            .env("EVENKEEL_CACHE", default_cache())
            .output()
            .unwrap();
        let said = complaint(&output); // the last line: nothing is listed behind it
        let expected = format!("image: no space left to write {}", small.display());
        assert!(
            said.starts_with(&expected) && said.contains(" MiB are needed; free some"),
            "{mib} MiB: {said}"
        );
    }
}
