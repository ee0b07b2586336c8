//! `image`: builds images, describes them and writes them to disks, makes releases.

use std::io::{BufRead as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use image::{
    BuildError, BuildOptions, Built, Flavour, Format, ReleaseError, ReleaseOptions, Target, Watchdog,
    WriteError,
};
use proto::text::one_line;
use provisiond_core::version::Version;

#[derive(Parser)]
#[command(name = "image", about = "Builds, describes and verifies Evenkeel images")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a disk image; nothing is done when it is there and nothing changed
    Build(Box<Build>),
    /// Describe a disk image: partitions, environments, boot files
    Show { file: PathBuf },
    /// Say whether a disk image is an Evenkeel image
    Verify { file: PathBuf },
    /// Make keys for Secure Boot: PK, KEK and db to enrol into the firmware, db to sign with
    SecureBootKeys {
        /// The folder to make
        dir: PathBuf,
    },
    /// Write a disk image to a disk, and read it back
    Write(Write),
    /// Make the bundle of a release: a boot file, signed, for nodes to install
    Release(Release),
}

#[derive(Args)]
struct Build {
    /// Folder with the static device programs init, netd, provisiond, keel
    #[arg(long, value_name = "DIR", default_value = "target/x86_64-unknown-linux-gnu/device")]
    programs: PathBuf,
    /// The image to write; its manifest is put beside it
    #[arg(long, value_name = "FILE", default_value = "target/evenkeel.img")]
    out: PathBuf,
    /// Kernel: cloud (virtual machines) or generic (hardware)
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// Watchdog driver, or none [default: i6300esb for cloud]
    #[arg(long, value_name = "KIND")]
    watchdog: Option<Watchdog>,
    /// Seconds the loader gives a boot until init has taken the watchdog over; see also evenkeel.watchdog= for --cmdline
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    watchdog_timeout: u16,
    /// Tree copied over the root; may be repeated, later ones win
    #[arg(long, value_name = "DIR")]
    overlay: Vec<PathBuf>,
    /// Base root tree [default: image/root of the sources]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// One more kernel module to load; may be repeated
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Appended to the kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    cmdline: String,
    /// Size of the disk, e.g. 1G, 512M
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    disk_size: u64,
    /// raw or qcow2 [default: qcow2 for a FILE.qcow2, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// Sign loader, slot and rescue system with db.key of this folder; see secure-boot-keys
    #[arg(long, value_name = "DIR")]
    secure_boot: Option<PathBuf>,
    /// Also write FILE.vmlinuz and FILE.initramfs
    #[arg(long)]
    boot_files: bool,
    /// Download cache [default: $EVENKEEL_CACHE or evenkeel/packages in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Take the kernel from the cache only
    #[arg(long, conflicts_with = "refresh")]
    offline: bool,
    /// Ask apt for the current kernel although the cache has one
    #[arg(long)]
    refresh: bool,
}

#[derive(Args)]
struct Write {
    image: PathBuf,
    /// A whole disk like /dev/sdb, or a file of a disk's size
    disk: PathBuf,
    /// Do not ask for the disk's name
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
struct Release {
    /// Boot file, or a disk image with one in slot A
    from: PathBuf,
    /// File with the seed of the key that signs, 64 hexadecimal digits
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The bundle to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Kind of hardware it is for; may be repeated [default: x86_64-cloud or x86_64-generic, as its kernel]
    #[arg(long, value_name = "NAME")]
    hardware: Vec<String>,
    /// Lowest version that a node may return to once it has committed this one
    #[arg(long, value_name = "VERSION", default_value = "0.0.0")]
    floor: Version,
    /// Lowest version that it may be installed from
    #[arg(long, value_name = "VERSION", default_value = "0.0.0")]
    source: Version,
}

impl Build {
    fn options(self) -> BuildOptions {
        let named =
            if self.out.extension().is_some_and(|e| e == "qcow2") { Format::Qcow2 } else { Format::Raw };
        let defaults = BuildOptions::new(self.programs, self.out);
        BuildOptions {
            flavour: self.flavour,
            watchdog: self.watchdog.unwrap_or_default(),
            watchdog_timeout: self.watchdog_timeout,
            overlays: self.overlay,
            root: self.root.unwrap_or(defaults.root),
            modules: self.module,
            extra_cmdline: self.cmdline,
            disk_size: self.disk_size,
            format: self.format.unwrap_or(named),
            boot_files: self.boot_files,
            secure_boot: self.secure_boot,
            cache: self.cache.unwrap_or(defaults.cache),
            offline: self.offline,
            refresh: self.refresh,
            ..defaults
        }
    }
}

/// `512M`, `1G`, or bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number with K, M or G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

fn report(built: &Built) {
    if built.fresh {
        println!("{}", built.image.display());
    } else {
        println!("{} is up to date", built.image.display());
    }
    for (name, size) in &built.parts {
        println!("  {name:<10} {size:>10} bytes");
    }
    println!("  key        {}", &built.key[..16.min(built.key.len())]);
}

fn build(build: Build) -> Result<(), BuildError> {
    let mut progress = |what: &str| eprintln!("image: {what}");
    report(&image::build(&build.options(), &mut progress)?);
    Ok(())
}

fn release(release: Release) -> Result<(), ReleaseError> {
    let Release { from, key, out, hardware, floor, source } = release;
    let bundle = image::release(&ReleaseOptions { from, key, out: out.clone(), hardware, floor, source })?;
    let manifest = &bundle.manifest;
    println!("{}", out.display());
    println!("  release    {} {} for {}", manifest.product, manifest.version, manifest.hardware.join(", "));
    println!("  boot file  {:>10} bytes in {} chunks", manifest.size, manifest.chunks.len());
    println!("  signed by  {}", bundle.key);
    println!("  sha256     {}", bundle.sha256);
    Ok(())
}

fn write(write: &Write) -> Result<(), String> {
    let say = |e: WriteError| one_line(&e);
    let target = Target::open(&write.disk).map_err(say)?;
    if !write.yes {
        eprintln!("image: everything on {target} will be lost");
        eprint!("image: type its name to go on: ");
        let mut typed = String::new();
        // Longer than any name: whatever is piped in.
        let _ = std::io::stdin().lock().take(4096).read_line(&mut typed);
        if !target.is_named(&typed) {
            return Err(format!("{} is unchanged: that was not its name", write.disk.display()));
        }
    }
    let mut progress = |what: &str| eprintln!("image: {what}");
    let written = target.write(&write.image, &mut progress).map_err(say)?;
    println!("{}", write.disk.display());
    println!("  disk       {:>14} bytes", written.disk);
    println!("  STATE      {:>14} bytes", written.state);
    println!("  written    {:>14} bytes, the rest of the image is zeros", written.data);
    match written.direct {
        true => println!("  read back: the same"),
        false => println!("  read back: the same, but perhaps from memory: the disk cannot be read past it"),
    }
    Ok(())
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Build(options) => build(*options).map_err(|e| one_line(&e)),
        Command::Show { file } => image::describe(&file).map(|d| print!("{d}")).map_err(|e| one_line(&e)),
        Command::Verify { file } => image::verify_ours(&file)
            .map(|()| println!("{} is an Evenkeel image", file.display()))
            .map_err(|e| one_line(&e)),
        Command::SecureBootKeys { dir } => image::secure_boot::make_keys(&dir)
            .map(|()| {
                println!(
                    "{}: enrol PK.cer, KEK.cer and db.cer, keep the .key files away from devices",
                    dir.display()
                )
            })
            .map_err(|e| one_line(&e)),
        Command::Write(options) => write(&options),
        Command::Release(options) => release(options).map_err(|e| one_line(&e)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("image: {line}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1G", 1 << 30), ("512M", 512 << 20), ("64k", 65536), ("4096", 4096)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for text in ["", "G", "1.5G", "-1", "99999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
