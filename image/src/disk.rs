//! The disk: partitions laid out, made and filled in place, without root, loop devices or mounts.
//!
//! `docs/formats/image.md` has the table of partitions: what they hold and who writes them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::digest::{Guid, fat_serial};
use crate::error::BuildError;
use crate::gpt::{self, Partition, Table};
use crate::host::{MCOPY, MKE2FS, MKFS_FAT, MMD};
use proto::bgenv::{self, Environment};

const MIB: u64 = 1 << 20;
const ESP_SIZE: u64 = 8 * MIB;
const ENV_SIZE: u64 = MIB;
/// Slots and rescue grow in such steps, so that small changes of the contents do not move partitions.
const STEP: u64 = 16 * MIB;
/// Size of a new STATE file system; init grows it to its partition.
const STATE_FS: u64 = 16 * MIB;
/// ext4 blocks of 4 KiB: STATE can be grown online to 1 TiB.
const STATE_BLOCKS_MAX: u64 = 1 << 28;
const EXT4_BLOCK: u64 = 4096;

/// Name of the boot file in a slot, as its environment has it.
pub(crate) const SLOT_FILE: &str = "linux.efi";
pub(crate) const REMOVABLE_PATH: &str = "EFI/BOOT/BOOTX64.EFI";
/// Tells the rescue partition from others with a boot file; `startup.nsh` looks for it.
const RESCUE_MARK: &str = "RESCUE.ID";

/// All partitions of an image, in disk order.
pub const PARTITIONS: [&str; 7] = ["ESP", "ENV-A", "ENV-B", "SLOT-A", "SLOT-B", "RESCUE", "STATE"];

/// The shell of virtual machines' firmware runs this from the ESP when nothing else could be started.
const STARTUP_NSH: &str = "@echo -off\r\n\
    for %i run (0 15)\r\n\
    \x20 if exist fs%i:\\RESCUE.ID then\r\n\
    \x20   fs%i:\\EFI\\BOOT\\BOOTX64.EFI\r\n\
    \x20 endif\r\n\
    endfor\r\n";

/// What goes onto the disk.
pub(crate) struct Contents<'a> {
    pub(crate) loader: &'a [u8],
    pub(crate) uki: &'a [u8],
    pub(crate) rescue: &'a [u8],
    /// The empty file system of STATE, as [`state_file_system`] makes it.
    pub(crate) state: &'a [u8],
    pub(crate) watchdog_s: u16,
    /// Time of every file, seconds since 1970.
    pub(crate) time: u32,
}

impl Contents<'_> {
    /// About how many bytes the image takes on the host's disk.
    pub(crate) fn needed(&self) -> u64 {
        // Boot file and its copy while it is moved into the partition, rescue likewise, file systems' own blocks.
        2 * (self.uki.len() + self.rescue.len() + self.loader.len()) as u64 + 8 * MIB
    }
}

/// Places the partitions for boot files of these sizes on a disk of `disk_size` bytes.
pub(crate) fn layout(uki: u64, rescue: u64, disk_size: u64) -> Result<Table, BuildError> {
    if !disk_size.is_multiple_of(MIB) {
        let detail = format!("{disk_size} bytes are not a multiple of 1 MiB");
        return Err(BuildError::BadOption { option: "--disk-size", detail });
    }
    let slot = (4 * uki).next_multiple_of(STEP);
    let rescue = (2 * rescue).next_multiple_of(STEP);
    let fixed = [ESP_SIZE, ENV_SIZE, ENV_SIZE, slot, slot, rescue];
    let need = gpt::ALIGN + fixed.iter().sum::<u64>() + STATE_FS + gpt::TAIL;
    let Some(more) = disk_size.checked_sub(need) else {
        return Err(BuildError::DiskTooSmall { need_mib: need / MIB, disk_mib: disk_size / MIB });
    };
    let mut start = gpt::ALIGN;
    let sizes = fixed.into_iter().chain([STATE_FS + more]);
    let partitions = PARTITIONS.iter().zip(sizes).map(|(name, size)| {
        let partition = Partition {
            name: (*name).to_owned(),
            kind: kind_of(name),
            id: Guid::derived(&format!("partition {name}")),
            start,
            size,
        };
        start += size;
        partition
    });
    Ok(Table { disk: disk_id(), size: disk_size, partitions: partitions.collect() })
}

/// The identity every image's disk carries.
pub(crate) fn disk_id() -> Guid {
    Guid::derived("disk")
}

fn kind_of(name: &str) -> Guid {
    match name {
        // Firmware that reads types looks for boot files in partitions of this one.
        "ESP" | "RESCUE" => gpt::TYPE_ESP,
        "STATE" => Guid::derived("type STATE"),
        _ => gpt::TYPE_FAT,
    }
}

/// Writes a disk image to `path`, a temporary name that the caller renames to `target` (which is what messages name).
/// `scratch` is an empty folder.
pub(crate) fn write(
    path: &Path,
    target: &Path,
    scratch: &Path,
    table: &Table,
    contents: &Contents<'_>,
) -> Result<(), BuildError> {
    let need = contents.needed();
    let failed = |e| BuildError::io("write", target, need, e);
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.set_len(table.size).map_err(failed)?;
    table.write(&mut file).map_err(failed)?;

    let disk = Disk { path, target, scratch, time: contents.time, need };
    let part = |name: &str| table.partition(name).expect("the layout has every partition");
    disk.fat(part("ESP"), &[(REMOVABLE_PATH, contents.loader), ("STARTUP.NSH", STARTUP_NSH.as_bytes())])?;
    let a = Environment::committed("SLOT-A", contents.watchdog_s, 1).encode();
    let b = Environment::empty("SLOT-B", contents.watchdog_s).encode();
    disk.fat(part("ENV-A"), &[(bgenv::FILE_NAME, &a)])?;
    disk.fat(part("ENV-B"), &[(bgenv::FILE_NAME, &b)])?;
    disk.fat(part("SLOT-A"), &[(SLOT_FILE, contents.uki)])?;
    disk.fat(part("SLOT-B"), &[])?;
    disk.fat(part("RESCUE"), &[(REMOVABLE_PATH, contents.rescue), (RESCUE_MARK, b"evenkeel rescue\r\n")])?;
    write_sparsely(&file, part("STATE").start, contents.state).map_err(failed)?;

    // The tools may have cut or extended the file; the last sector is the table's.
    file.sync_all().map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size != table.size {
        let detail = format!("the disk has {size} bytes instead of {}", table.size);
        return Err(BuildError::Tool {
            tool: "mke2fs",
            doing: format!("keep the size of {}", path.display()),
            detail,
        });
    }
    Ok(())
}

/// FAT width in bits and sectors per cluster for a partition of `size` bytes. FAT16 wants between 4,085 and 65,524
/// clusters; with half of that as the aim there is room on both sides.
fn fat_shape(size: u64) -> (u32, u64) {
    let sectors = size / gpt::SECTOR;
    if sectors < 8192 {
        return (12, 1);
    }
    // Larger clusters than 64 sectors are not portable, which ends FAT16 at about 2 GiB.
    let cluster = (sectors / 32_768).next_power_of_two().min(64);
    if sectors / cluster < 65_000 { (16, cluster) } else { (32, cluster) }
}

struct Disk<'a> {
    path: &'a Path,
    target: &'a Path,
    scratch: &'a Path,
    time: u32,
    need: u64,
}

impl Disk<'_> {
    /// Makes a FAT file system labelled with the partition's name and puts files into it.
    fn fat(&self, partition: &Partition, files: &[(&str, &[u8])]) -> Result<(), BuildError> {
        let name = &partition.name;
        let (bits, cluster_sectors) = fat_shape(partition.size);
        let mut mkfs = MKFS_FAT.command();
        // Spelled out, because the program guesses the shape from the whole disk, not from the partition.
        mkfs.arg("--invariant")
            .args(["-F", &bits.to_string(), "-s", &cluster_sectors.to_string(), "-g", "255/63"])
            .args(["-h", &(partition.start / gpt::SECTOR).to_string()])
            .args(["-i", &format!("{:08x}", fat_serial(name))])
            .args(["-n", name])
            .arg(format!("--offset={}", partition.start / gpt::SECTOR))
            .arg(self.path)
            .arg((partition.size / 1024).to_string());
        MKFS_FAT.run(&mut mkfs, &format!("make the file system of {name}"), self.target, self.need)?;

        let inside = format!("{}@@{}", self.path.display(), partition.start);
        for (path, bytes) in files {
            let doing = format!("write {path} into {name}");
            for (at, _) in path.match_indices('/') {
                let mut mmd = MMD.command();
                mmd.env("SOURCE_DATE_EPOCH", self.time.to_string());
                mmd.args(["-i", &inside]).arg(format!("::/{}", &path[..at]));
                MMD.run(&mut mmd, &doing, self.target, self.need)?;
            }
            let host = self.stage(path, bytes)?;
            let mut mcopy = MCOPY.command();
            mcopy.env("SOURCE_DATE_EPOCH", self.time.to_string());
            mcopy.args(["-m", "-i", &inside]).arg(&host).arg(format!("::/{path}"));
            MCOPY.run(&mut mcopy, &doing, self.target, self.need)?;
            fs::remove_file(&host).map_err(|e| BuildError::io("remove", &host, 0, e))?;
        }
        Ok(())
    }

    /// Puts bytes where mcopy can take them from, with the time they shall have.
    fn stage(&self, path: &str, bytes: &[u8]) -> Result<PathBuf, BuildError> {
        let host = self.scratch.join(path.replace('/', "_"));
        let time = UNIX_EPOCH + Duration::from_secs(u64::from(self.time));
        File::create(&host)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.set_modified(time)))
            .map_err(|e| BuildError::io("write", self.target, self.need, e))?;
        Ok(host)
    }
}

/// Makes the empty file system of STATE: init writes the same bytes where STATE is blank. `scratch` is an empty folder
/// beside `target`, which messages name; `time` is seconds since 1970.
pub(crate) fn state_file_system(scratch: &Path, target: &Path, time: u32) -> Result<Vec<u8>, BuildError> {
    let path = scratch.join("state");
    let failed = |e| BuildError::io("write", target, STATE_FS, e);
    File::create(&path).and_then(|file| file.set_len(STATE_FS)).map_err(failed)?;
    let id = Guid::derived("file system STATE");
    let options = format!(
        "hash_seed={id},resize={STATE_BLOCKS_MAX},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    );
    let mut mke2fs = MKE2FS.command();
    mke2fs.env("E2FSPROGS_FAKE_TIME", time.to_string());
    mke2fs.env("SOURCE_DATE_EPOCH", time.to_string()); // of newer versions
    mke2fs.env("MKE2FS_CONFIG", "/dev/null");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-I", "256", "-i", "8192"])
        .args(["-b", &EXT4_BLOCK.to_string()])
        .args(["-O", STATE_FEATURES])
        .args(["-L", "STATE", "-U", &id.to_string()])
        .args(["-J", "size=4", "-E", &options])
        .arg(&path)
        .arg((STATE_FS / EXT4_BLOCK).to_string());
    MKE2FS.run(&mut mke2fs, "make the file system of STATE", target, STATE_FS)?;
    let bytes = fs::read(&path).map_err(|e| BuildError::read(&path, e))?;
    fs::remove_file(&path).map_err(|e| BuildError::io("remove", &path, 0, e))?;
    if bytes.len() as u64 != STATE_FS {
        let detail = format!("it made {} bytes", bytes.len());
        return Err(BuildError::Tool { tool: "mke2fs", doing: format!("make {STATE_FS} bytes"), detail });
    }
    Ok(bytes)
}

/// Writes what is not zero: the rest of the new disk is a hole.
fn write_sparsely(file: &File, start: u64, bytes: &[u8]) -> std::io::Result<()> {
    for (at, block) in (start..).step_by(EXT4_BLOCK as usize).zip(bytes.chunks(EXT4_BLOCK as usize)) {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, at)?;
        }
    }
    Ok(())
}

/// Spelled out, because the host's configuration would choose otherwise from release to release.
/// `resize_inode` lets the mounted file system grow; `orphan_file` is unknown to older repair tools.
const STATE_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_and_state_takes_the_rest() {
        let table = layout(27 * MIB + 5, 15 * MIB, 1 << 30).unwrap();
        let names: Vec<&str> = table.partitions.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, PARTITIONS);
        assert!(table.partitions.windows(2).all(|w| w[0].start + w[0].size == w[1].start));
        assert!(table.partitions.iter().all(|p| p.start % gpt::ALIGN == 0));
        let size = |name: &str| table.partition(name).unwrap().size / MIB;
        assert_eq!((size("SLOT-A"), size("SLOT-B"), size("RESCUE")), (112, 112, 32));
        assert_eq!(size("STATE"), 1024 - 2 - 8 - 2 - 224 - 32);
    }

    #[test]
    fn init_knows_the_slots_by_their_partitions() {
        for (id, name) in proto::boot::SLOTS {
            assert_eq!(Guid::derived(&format!("partition {name}")).to_string(), id, "{name}");
        }
    }

    #[test]
    fn labels_fit_into_a_fat_volume() {
        assert!(PARTITIONS.iter().all(|name| name.len() <= 11));
    }

    #[test]
    fn fat_shapes_keep_the_cluster_count_legal() {
        for mib in [8, 16, 32, 96, 112, 128, 240, 512, 1024, 1900] {
            let (bits, cluster) = fat_shape(mib * MIB);
            assert_eq!(bits, 16);
            let clusters = mib * MIB / gpt::SECTOR / cluster;
            assert!((4_200..65_000).contains(&clusters), "{mib} MiB: {clusters}");
        }
        assert_eq!(fat_shape(MIB), (12, 1));
        assert_eq!(fat_shape(4096 * MIB), (32, 64));
    }

    #[test]
    fn impossible_disks_are_refused_with_the_size_that_would_do() {
        let error = layout(30 * MIB, 10 * MIB, 256 * MIB).unwrap_err().to_string();
        assert_eq!(
            error,
            "the partitions need 316 MiB, the disk has 256 MiB: give a --disk-size of at least 316M"
        );
        assert!(layout(30 * MIB, 10 * MIB, 316 * MIB).is_ok());
        let error = layout(1, 1, 1000).unwrap_err().to_string();
        assert_eq!(error, "--disk-size: 1000 bytes are not a multiple of 1 MiB");
    }
}
