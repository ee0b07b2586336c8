//! The STATE partition: found, checked, mounted on `/state` and grown to its partition's size.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;
use proto::control::FilesystemInfo;

use crate::boot::attempt::attempt;
use crate::boot::disk::{self, Choice, Partition};
use crate::boot::{format, memory, mounts};
use crate::host::Host;
use crate::{clock, sys};

/// Where it is mounted.
pub(crate) const MOUNT_POINT: &str = "/state";
/// How long to wait for a disk with STATE; slow controllers take seconds.
const DISK_LIMIT: Duration = Duration::from_secs(15);
/// How long to wait for a better disk once a lone STATE partition was seen.
const BETTER_DISK_LIMIT: Duration = Duration::from_secs(1);
/// How often `/sys/class/block` is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Limit of a mount with a journal to replay.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Limit of a check; 100 ms are usual for 1 GiB.
const CHECK_LIMIT: Duration = Duration::from_secs(300);
/// Limit of growing; 50 ms are usual to 1 GiB.
const GROW_LIMIT: Duration = Duration::from_secs(120);
/// The file system checker, when the image has one.
const CHECKER: &str = "/bin/e2fsck";
/// Partitions looked at.
const PARTITIONS_MAX: usize = 256;

/// Finds STATE and mounts it. Returns the device's path. May be repeated after a failure.
///
/// # Errors
/// What failed, on which device, and what to do.
pub(crate) fn bring_up(host: &mut Host) -> Result<String, String> {
    let device = find(host)?;
    let path = format!("/dev/{device}");
    if format::has_image() && format::is_blank(host, &path) {
        host.log.warn(format_args!("STATE: {path} is blank and gets an empty file system"));
        format::format(host, &path)?;
    }
    check(host, &path);
    let flags = mounts::DATA | MsFlags::MS_NOATIME;
    attempt(host, MOUNT_LIMIT, || {
        mount(Some(path.as_str()), MOUNT_POINT, Some("ext4"), flags, Some("data=ordered"))
            .map(|()| String::new())
            .map_err(|e| e.desc().to_owned())
    })
    .map_err(|e| format!("cannot mount {path} (STATE) on {MOUNT_POINT} as ext4: {e}"))?;
    // A file system that stays small is a nuisance, not a reason to stay down.
    match attempt(host, GROW_LIMIT, || grow(&device)) {
        Ok(said) => host.log.info(format_args!("STATE: {path} on {MOUNT_POINT}, {said}")),
        Err(error) => host.log.error(format_args!("STATE: {path} cannot be grown: {error}")),
    }
    directories(host);
    Ok(path)
}

/// Gives the STATE partition an empty file system, as a person at the rescue prompt asked. What it held is lost.
///
/// # Errors
/// Why not; nothing was changed unless it names the device.
pub(crate) fn format_on_request(host: &mut Host) -> Result<String, String> {
    if !format::has_image() {
        return Err(format!("this system does not carry {}; start a slot's system", format::IMAGE));
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|l| l.split(' ').nth(1) == Some(MOUNT_POINT)) {
        return Err("STATE is mounted: restart with evenkeel.rescue or format from another system".to_owned());
    }
    let device = match disk::choose(&partitions()) {
        Choice::Found { device, .. } => device,
        Choice::None => return Err("no disk has a partition named STATE".to_owned()),
        Choice::Ambiguous(devices) => {
            return Err(format!(
                "several partitions are named STATE: {}; leave only one",
                devices.join(", ")
            ));
        }
    };
    let path = format!("/dev/{device}");
    host.log.warn(format_args!("STATE: {path} is formatted as asked at the rescue prompt"));
    format::format(host, &path).map(|()| path)
}

/// Uses memory instead of STATE, as `evenkeel.state=memory` asks.
///
/// # Errors
/// The kernel's reason.
pub(crate) fn in_memory(host: &mut Host) -> Result<String, String> {
    mount(Some("state"), MOUNT_POINT, Some("tmpfs"), mounts::DATA, Some("mode=0755,size=32m"))
        .map_err(|e| format!("cannot mount a tmpfs on {MOUNT_POINT}: {}", e.desc()))?;
    host.log
        .warn(format_args!("STATE: in memory as the command line asks; nothing survives the next reboot"));
    directories(host);
    Ok("tmpfs".to_owned())
}

/// Size and use of what is mounted on `/state`.
pub(crate) fn info(device: &str) -> Option<FilesystemInfo> {
    let s = statvfs(MOUNT_POINT).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(s.fragment_size());
    Some(FilesystemInfo {
        device: device.to_owned(),
        size_bytes: bytes(s.blocks()),
        used_bytes: bytes(s.blocks().saturating_sub(s.blocks_free())),
    })
}

fn directories(host: &mut Host) {
    for name in ["log", "evenkeel", memory::DIRECTORY] {
        let path = Path::new(MOUNT_POINT).join(name);
        let made = match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o700)),
        };
        if let Err(error) = made {
            host.log.error(format_args!("cannot make {}: {}", path.display(), sys::errno_text(&error)));
        }
    }
}

/// Waits for the disk with STATE.
fn find(host: &mut Host) -> Result<String, String> {
    let began = clock::now();
    loop {
        let waited = clock::now().since(began);
        match disk::choose(&partitions()) {
            Choice::Found { device, complete, foreign } if complete || waited >= BETTER_DISK_LIMIT => {
                for other in foreign {
                    host.log.error(format_args!(
                        "partition /dev/{other} is named STATE too and is left alone; remove its disk or rename it"
                    ));
                }
                return Ok(device);
            }
            Choice::Ambiguous(devices) if waited >= BETTER_DISK_LIMIT => {
                return Err(format!(
                    "several partitions are named STATE and it cannot be told which one belongs to this system: \
                     {}; leave only one of these disks in the machine",
                    devices.join(", ")
                ));
            }
            _ if waited >= DISK_LIMIT => {
                return Err(format!(
                    "no disk has a partition named STATE ({} s waited); check the disk's cabling and driver",
                    DISK_LIMIT.as_secs()
                ));
            }
            _ => host.pause(LOOK_EVERY),
        }
    }
}

/// All named partitions the kernel knows.
pub(crate) fn partitions() -> Vec<Partition> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten().take(PARTITIONS_MAX);
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            // The link leads to .../block/DISK/PARTITION.
            let link = fs::read_link(entry.path()).ok()?;
            let disk = link.parent()?.file_name()?.to_str()?.to_owned();
            disk::parse(&fs::read_to_string(entry.path().join("uevent")).ok()?, &disk)
        })
        .collect();
    found.sort();
    found
}

/// Has STATE checked where the image has a checker. First only what is safe is repaired (`-p`). Where that is not enough
/// everything is (`-y`): nobody stands by who could answer questions, and what is kept on STATE carries checksums, so
/// that a piece that a repair loses is missed by its owner instead of being believed.
fn check(host: &mut Host, path: &str) {
    if !Path::new(CHECKER).exists() {
        return;
    }
    for how in ["-p", "-y"] {
        match attempt(host, CHECK_LIMIT, || run_checker(how, path)) {
            Ok(text) => return host.log.info(format_args!("STATE: checked: {text}")),
            // The kernel's own mount is the judge of what can still be used.
            Err(error) => host.log.error(format_args!("STATE: {path} is not clean: {error}")),
        }
    }
}

/// What the checker said when the file system is clean afterwards.
fn run_checker(how: &str, path: &str) -> Result<String, String> {
    let output = Command::new(CHECKER).args([how, path]).output();
    let output = output.map_err(|e| format!("{CHECKER}: {}", sys::errno_text(&e)))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().replace('\n', " | ");
    match output.status.code() {
        // 0: clean; 1: repaired; 2: repaired, and a mounted file system would need a reboot (e2fsck(8)).
        Some(0..=2) => Ok(text),
        code => Err(format!("{CHECKER} {how} ended with {code:?}: {text}")),
    }
}

/// Grows the mounted file system on `device` to its partition.
fn grow(device: &str) -> Result<String, String> {
    let size = format!("/sys/class/block/{device}/size");
    let sectors: u64 = fs::read_to_string(&size)
        .map_err(|e| format!("{size}: {}", sys::errno_text(&e)))?
        .trim()
        .parse()
        .map_err(|_| format!("{size} is not a number"))?;
    let path = format!("/dev/{device}");
    let mut front = [0; disk::SUPERBLOCK_END];
    File::open(&path)
        .and_then(|mut f| f.read_exact(&mut front))
        .map_err(|e| format!("{path}: {}", sys::errno_text(&e)))?;
    let Some(ext4) = disk::ext4(&front) else { return Err(format!("{path} has no ext4 superblock")) };
    let mib = |blocks: u64| blocks.saturating_mul(ext4.block_size) >> 20;
    let target = sectors / (ext4.block_size / 512);
    if target <= ext4.blocks {
        return Ok(format!("{} MiB", mib(ext4.blocks)));
    }
    let directory = File::open(MOUNT_POINT).map_err(|e| sys::errno_text(&e))?;
    sys::block::ext4_resize(&directory, target)
        .map_err(|e| format!("{} to {} MiB: {}", mib(ext4.blocks), mib(target), sys::errno_text(&e)))?;
    Ok(format!("grown from {} to {} MiB", mib(ext4.blocks), mib(target)))
}
