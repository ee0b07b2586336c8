//! Writes an image to a whole disk, or to a file that stands for one, and reads it back.
//!
//! ```text
//! Target::open ── refused: mounted, in use, a partition, other sectors ──> nothing changed
//!      │ (a person confirms its name)
//!      └─ write ── too small, no image of ours ──────────────────────────> nothing changed
//!            └─ front cleared ─> partitions ─> sync, read back ─> table, both copies ─> sync, read back ─> done
//!                 from here until the table is there the disk has none: nothing starts from half an image
//! ```
//! Afterwards every byte of the disk that the image has is the image's, holes as zeros, but for the table: STATE
//! reaches to the disk's end, and the table's copy is there. What lies behind the image's own end is handed back to the
//! disk where the disk can do that, and is left alone elsewhere; init grows STATE's file system over it at the next boot.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice};
use nix::unistd::Whence;
use sha2::{Digest, Sha256};

use crate::error::InspectError;
use crate::gpt::{self, Table};
use crate::host::BLOCKDEV;
use crate::inspect::{self, Raw};
use crate::options::Progress;

/// What is read, written and compared at once; the image's partitions start and end on multiples of it.
const CHUNK: u64 = 1 << 20;
/// Buffers for reading past the page cache begin on such an address; it suits every disk's sectors.
const BUFFER_ALIGN: usize = 4096;

/// Why an image was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nothing was changed.
    #[error("cannot open {} for writing", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// Nothing was changed.
    #[error("{} is neither a disk nor a file: give a whole disk like /dev/sdb", path.display())]
    NotADisk { path: PathBuf },
    /// Nothing was changed.
    #[error("{} is a partition: give the whole disk, {disk}", path.display())]
    Partition { path: PathBuf, disk: String },
    /// Nothing was changed.
    #[error("{device} is mounted on {at}: unmount it, or give another disk than {}", path.display())]
    Mounted { path: PathBuf, device: String, at: String },
    /// Nothing was changed.
    #[error("{} is in use: end the program that has it open, switch swap, LVM or RAID on it off, and try again", path.display())]
    InUse { path: PathBuf },
    /// Nothing was changed.
    #[error("{} has sectors of {found} bytes, the image is made for sectors of {}: take another disk", path.display(), gpt::SECTOR)]
    SectorSize { path: PathBuf, found: u64 },
    /// Nothing was changed.
    #[error(
        "{} has {disk} bytes ({}), the image needs {image} ({}): take a larger disk, or build the image with a smaller --disk-size",
        path.display(), Size(*disk), Size(*image)
    )]
    TooSmall { path: PathBuf, disk: u64, image: u64 },
    /// Nothing was changed.
    #[error("{} is the image itself: give the disk to write it to", path.display())]
    Same { path: PathBuf },
    /// Nothing was changed.
    #[error(transparent)]
    Image(#[from] InspectError),
    /// The disk has no partition table; nothing starts from it.
    #[error("cannot {doing} {}; what was written of it is not usable", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The disk has no partition table, or a damaged one.
    #[error(
        "{} gave back other bytes than were written to it, at {} MiB: it is faulty; take another disk",
        path.display(), at >> 20
    )]
    Differs { path: PathBuf, at: u64 },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the disk.
    pub disk: u64,
    /// Bytes of the STATE partition, which the image may have smaller.
    pub state: u64,
    /// Bytes that were written and not zero.
    pub data: u64,
    /// Whether it was read back from the disk itself, past the host's page cache.
    pub direct: bool,
}

/// A disk that an image can be written to, claimed: no other program can mount it meanwhile.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: File,
    size: u64,
    /// What its maker calls it; files have none.
    model: String,
    block: bool,
}

impl Target {
    /// Opens and claims a disk, or a file that is there.
    pub fn open(path: &Path) -> Result<Target, WriteError> {
        let failed = |source| WriteError::Open { path: path.to_owned(), source };
        let kind = fs::metadata(path).map_err(failed)?;
        let block = kind.file_type().is_block_device();
        if !block && !kind.is_file() {
            return Err(WriteError::NotADisk { path: path.to_owned() });
        }
        let mut model = String::new();
        if block {
            let number =
                format!("{}:{}", nix::sys::stat::major(kind.rdev()), nix::sys::stat::minor(kind.rdev()));
            let facts = Facts::read(&Path::new("/sys/dev/block").join(&number));
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            facts.usable(path, &mounts)?;
            model = facts.model;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if block {
            // Of a disk: fails while a file system, swap, LVM or RAID has any part of it.
            options.custom_flags(OFlag::O_EXCL.bits());
        }
        let mut file = options.open(path).map_err(|source| match source.raw_os_error() {
            Some(errno) if errno == Errno::EBUSY as i32 => WriteError::InUse { path: path.to_owned() },
            _ => failed(source),
        })?;
        if !block && !lock(&file) {
            return Err(WriteError::InUse { path: path.to_owned() });
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Target { path: path.to_owned(), file, size, model, block })
    }

    /// Whether a person who was asked for the disk's name gave it.
    pub fn is_named(&self, typed: &str) -> bool {
        let typed = typed.trim();
        !typed.is_empty() && (Path::new(typed) == self.path || self.path.file_name() == Some(typed.as_ref()))
    }

    /// Writes an image of ours and reads it back.
    pub fn write(self, image: &Path, progress: &mut dyn Progress) -> Result<Written, WriteError> {
        let opened = Raw::open(image)?;
        let table = inspect::ours(image, &opened)?;
        let read_image = |source| InspectError::Io { path: image.to_owned(), source };
        let source = File::open(&opened.path).map_err(read_image)?;
        let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if same(&source.metadata().map_err(read_image)?, &self.file.metadata().map_err(self.io("read"))?) {
            return Err(WriteError::Same { path: self.path });
        }
        let table = self.stretched(&table)?;
        if self.block {
            progress.step(&format!("writing to {self}"));
        }

        // Whatever was on the disk, it is gone: nothing may find half of it.
        let mut parts = Parts::new(&self);
        parts.zero(0, CHUNK)?;
        self.file.sync_data().map_err(self.io("write"))?;
        let end = table.image_end;
        let mut at = CHUNK;
        while at < end {
            let data = next_data(&source, at).map_err(read_image)?.map_or(end, |data| data / CHUNK * CHUNK);
            if data > at {
                parts.zero(at, data.min(end) - at)?;
                at = data.min(end);
                continue;
            }
            let mut bytes = vec![0; (end - at).min(CHUNK) as usize];
            source.read_exact_at(&mut bytes, at).map_err(read_image)?;
            parts.put(at, &bytes)?;
            at += bytes.len() as u64;
        }
        // Behind the image: nothing is needed there, and a disk that can forget it may.
        let tail = (self.size - gpt::TAIL) / CHUNK * CHUNK;
        if tail > end {
            let _ = punch(&self.file, end, tail - end);
        }
        parts.zero(tail, self.size - tail)?;
        progress.step("reading back");
        let mut direct = parts.compare()?;
        let mut data = parts.data;

        let mut writes = Writes::default();
        table.table.write(&mut writes).map_err(self.io("make the partition table of"))?;
        let mut parts = Parts::new(&self);
        for (at, bytes) in writes.done {
            parts.put(at, &bytes)?;
        }
        direct &= parts.compare()?;
        data += parts.data;
        if self.block {
            // The kernel shows the new partitions at once; one that does not shows them when the disk is plugged in again.
            let _ = BLOCKDEV.command().arg("--rereadpt").arg(&self.path).output();
        }
        let state = table.table.partitions.last().map_or(0, |p| p.size);
        Ok(Written { disk: self.size, state, data, direct })
    }

    /// The image's table, made for this disk.
    fn stretched(&self, table: &Table) -> Result<Stretched, WriteError> {
        if self.size < table.size {
            return Err(WriteError::TooSmall { path: self.path.clone(), disk: self.size, image: table.size });
        }
        let mut table = table.clone();
        let state = table.partitions.last_mut().expect("an image of ours has partitions");
        let image_end = state.start + state.size;
        let size = self.size / gpt::SECTOR * gpt::SECTOR;
        state.size =
            ((size - gpt::TAIL) / gpt::ALIGN * gpt::ALIGN).saturating_sub(state.start).max(state.size);
        table.size = size;
        Ok(Stretched { table, image_end })
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> WriteError {
        let path = self.path.clone();
        move |source| WriteError::Io { doing, path, source }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.path.display(), Size(self.size))?;
        if !self.model.is_empty() {
            write!(f, ", {}", self.model)?;
        }
        f.write_str(")")
    }
}

struct Stretched {
    table: Table,
    /// Where the image's last partition ends in the image.
    image_end: u64,
}

/// What sysfs tells of a disk.
#[derive(Debug, Default)]
struct Facts {
    name: String,
    /// Of a partition: its disk.
    disk: Option<String>,
    model: String,
    sector: u64,
    /// Device numbers and names of it and its partitions.
    devices: Vec<(String, String)>,
}

impl Facts {
    /// `device` is its folder below `/sys/dev/block`.
    fn read(device: &Path) -> Facts {
        let folder = fs::canonicalize(device).unwrap_or_else(|_| device.to_owned());
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = |path: PathBuf| fs::read_to_string(path).map(|t| t.trim().to_owned()).ok();
        let mut devices: Vec<_> = text(folder.join("dev")).map(|d| (d, name(&folder))).into_iter().collect();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let part = entry.path();
            if part.join("partition").exists() {
                devices.extend(text(part.join("dev")).map(|d| (d, name(&part))));
            }
        }
        devices.sort();
        let disk = folder.join("partition").exists().then(|| name(folder.parent().unwrap_or(&folder)));
        let sector = text(folder.join("queue/logical_block_size")).and_then(|t| t.parse().ok());
        Facts {
            name: name(&folder),
            disk,
            model: text(folder.join("device/model")).unwrap_or_default(),
            sector: sector.unwrap_or(gpt::SECTOR),
            devices,
        }
    }

    /// `mounts` is what `/proc/self/mountinfo` says.
    fn usable(&self, path: &Path, mounts: &str) -> Result<(), WriteError> {
        let path = path.to_owned();
        if let Some(disk) = &self.disk {
            return Err(WriteError::Partition { path, disk: format!("/dev/{disk}") });
        }
        if self.sector != gpt::SECTOR {
            return Err(WriteError::SectorSize { path, found: self.sector });
        }
        // `ID PARENT MAJOR:MINOR ROOT PLACE …`
        for line in mounts.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let (Some(number), Some(at)) = (words.get(2), words.get(4)) else { continue };
            if let Some((_, name)) = self.devices.iter().find(|(device, _)| device == number) {
                let device = if name.is_empty() { self.name.clone() } else { name.clone() };
                return Err(WriteError::Mounted {
                    path,
                    device: format!("/dev/{device}"),
                    at: (*at).to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// What was put onto a disk, to be compared when it is read back.
struct Parts<'a> {
    target: &'a Target,
    /// Place, length, and hash of the bytes; none: zeros.
    list: Vec<(u64, usize, Option<[u8; 32]>)>,
    data: u64,
}

impl<'a> Parts<'a> {
    fn new(target: &'a Target) -> Self {
        Parts { target, list: Vec::new(), data: 0 }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), WriteError> {
        if bytes.iter().all(|b| *b == 0) {
            return self.zero(at, bytes.len() as u64);
        }
        self.target.file.write_all_at(bytes, at).map_err(self.target.io("write"))?;
        self.list.push((at, bytes.len(), Some(Sha256::digest(bytes).into())));
        self.data += bytes.len() as u64;
        Ok(())
    }

    fn zero(&mut self, at: u64, length: u64) -> Result<(), WriteError> {
        if length == 0 {
            return Ok(());
        }
        zero(&self.target.file, at, length).map_err(self.target.io("write"))?;
        for start in (at..at + length).step_by(CHUNK as usize) {
            self.list.push((start, (at + length - start).min(CHUNK) as usize, None));
        }
        Ok(())
    }

    /// Reads everything back once the disk has it. Says whether the page cache was out of the way.
    fn compare(&self) -> Result<bool, WriteError> {
        let target = self.target;
        target.file.sync_all().map_err(target.io("write"))?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(&target.path);
        // tmpfs cannot do it. The kernel is asked to forget the pages, and may.
        let (reader, direct) = match direct {
            Ok(file) => (file, true),
            Err(_) => {
                let file = File::open(&target.path).map_err(target.io("read back"))?;
                let _ = nix::fcntl::posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                (file, false)
            }
        };
        let mut room = vec![0u8; CHUNK as usize + BUFFER_ALIGN];
        let skip = room.as_ptr().align_offset(BUFFER_ALIGN);
        for (at, length, hash) in &self.list {
            // Whole sectors of any disk, past the page cache too.
            let (before, whole) = window(*at, *length, target.size);
            let buffer = &mut room[skip..skip + whole];
            read_at(&reader, buffer, at - before as u64).map_err(target.io("read back"))?;
            let bytes = &buffer[before..before + length];
            let same = match hash {
                Some(hash) => Sha256::digest(bytes)[..] == hash[..],
                None => bytes.iter().all(|b| *b == 0),
            };
            if !same {
                return Err(WriteError::Differs { path: target.path.clone(), at: *at });
            }
        }
        Ok(direct)
    }
}

/// Bytes in front of `at` and length of what is to be read so that both ends are on pages, as far as the disk goes.
fn window(at: u64, length: usize, size: u64) -> (usize, usize) {
    let page = BUFFER_ALIGN as u64;
    let start = at / page * page;
    let end = (at + length as u64).next_multiple_of(page).min(size.max(at + length as u64));
    ((at - start) as usize, (end - start) as usize)
}

/// Fills the buffer; the last piece of a file that is no whole number of pages may come short.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Where the next byte that is not in a hole lies, from `at` on.
pub(crate) fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
    match nix::unistd::lseek(file, at, Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).ok()),
        Err(Errno::ENXIO) => Ok(None),
        // A file system without holes: everything is data.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(u64::try_from(at).ok()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a range read as zeros without writing it: a hole in a file, a command to a disk that has one.
fn punch(file: &File, at: u64, length: u64) -> nix::Result<()> {
    allocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, at, length)
}

fn allocate(file: &File, how: FallocateFlags, at: u64, length: u64) -> nix::Result<()> {
    let signed = |n: u64| i64::try_from(n).map_err(|_| Errno::EFBIG);
    nix::fcntl::fallocate(file, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, signed(at)?, signed(length)?)
}

/// Zeros in the quickest way that the disk has.
fn zero(file: &File, at: u64, length: u64) -> io::Result<()> {
    let done =
        punch(file, at, length).or_else(|_| allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, at, length));
    if done.is_ok() {
        return Ok(());
    }
    let zeros = vec![0u8; CHUNK as usize];
    for start in (at..at + length).step_by(zeros.len()) {
        file.write_all_at(&zeros[..(at + length - start).min(CHUNK) as usize], start)?;
    }
    Ok(())
}

/// Locks a whole file against every other program that locks, QEMU above all.
fn lock(file: &File) -> bool {
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // A file system without locks is no reason to refuse.
    !matches!(nix::fcntl::fcntl(file, FcntlArg::F_OFD_SETLK(&whole)), Err(Errno::EAGAIN | Errno::EACCES))
}

/// Notes what is written where, instead of writing it.
#[derive(Default)]
struct Writes {
    at: u64,
    done: Vec<(u64, Vec<u8>)>,
}

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.done.push((self.at, bytes.to_vec()));
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Writes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(at) => self.at = at,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(self.at)
    }
}

/// Bytes as a disk's label has them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |unit: u64| (self.0 / unit, self.0 % unit * 10 / unit);
        let (unit, name) = match self.0 {
            1_000_000_000_000.. => (1_000_000_000_000, "TB"),
            1_000_000_000.. => (1_000_000_000, "GB"),
            _ => (1_000_000, "MB"),
        };
        let (whole, tenth) = tenths(unit);
        write!(f, "{whole}.{tenth} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    /// A disk with two partitions as sysfs shows it.
    fn sysfs(dir: &TestDir) -> PathBuf {
        let disk = dir.path().join("sdb");
        for (path, text) in [
            ("dev", "8:16\n"),
            ("device/model", "Stick 3000  \n"),
            ("queue/logical_block_size", "512\n"),
            ("sdb1/dev", "8:17\n"),
            ("sdb1/partition", "1\n"),
            ("sdb2/dev", "8:18\n"),
            ("sdb2/partition", "2\n"),
            ("holders/none", ""),
        ] {
            let path = disk.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        disk
    }

    const MOUNTS: &str = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 0:5 / /proc rw - proc proc rw\n";

    #[test]
    fn a_mounted_disk_a_partition_and_other_sectors_are_refused_by_name() {
        let dir = TestDir::new("write-facts");
        let disk = sysfs(&dir);
        let facts = Facts::read(&disk);
        assert_eq!((facts.name.as_str(), facts.model.as_str(), facts.sector), ("sdb", "Stick 3000", 512));
        let say = |facts: &Facts, mounts: &str| {
            facts.usable(Path::new("/dev/x"), mounts).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(say(&facts, MOUNTS), "");
        let mounted = format!("{MOUNTS}31 21 8:18 / /mnt/stick rw - vfat /dev/sdb2 rw\n");
        assert_eq!(
            say(&facts, &mounted),
            "/dev/sdb2 is mounted on /mnt/stick: unmount it, or give another disk than /dev/x"
        );
        let part = Facts::read(&disk.join("sdb1"));
        assert_eq!(say(&part, MOUNTS), "/dev/x is a partition: give the whole disk, /dev/sdb");
        fs::write(disk.join("queue/logical_block_size"), "4096\n").unwrap();
        assert!(say(&Facts::read(&disk), MOUNTS).contains("has sectors of 4096 bytes"));
    }

    #[test]
    fn only_the_disks_own_name_confirms() {
        let dir = TestDir::new("write-name");
        let path = dir.path().join("disk");
        fs::write(&path, [0; 512]).unwrap();
        let target = Target::open(&path).unwrap();
        for typed in ["disk", "disk\n", path.to_str().unwrap()] {
            assert!(target.is_named(typed), "{typed}");
        }
        for typed in ["", "\n", "y", "yes", "dis", "/disk", "disk2"] {
            assert!(!target.is_named(typed), "{typed}");
        }
        assert_eq!(target.to_string(), format!("{} (0.0 MB)", path.display()));
    }

    #[test]
    fn a_file_that_somebody_has_locked_is_in_use() {
        let dir = TestDir::new("write-lock");
        let path = dir.path().join("disk");
        fs::write(&path, [0; 512]).unwrap();
        let first = Target::open(&path).unwrap();
        let error = Target::open(&path).unwrap_err().to_string();
        assert!(error.contains("disk is in use: "), "{error}");
        drop(first);
        Target::open(&path).unwrap();
        assert!(Target::open(dir.path()).unwrap_err().to_string().contains("neither a disk nor a file"));
        let none = Target::open(&dir.path().join("none")).unwrap_err();
        assert!(matches!(none, WriteError::Open { .. }), "a name mistyped makes no file");
    }

    #[test]
    fn what_a_disk_gives_back_otherwise_is_found() {
        let dir = TestDir::new("write-differs");
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(8 * CHUNK + 512).unwrap();
        let target = Target::open(&path).unwrap();
        let mut parts = Parts::new(&target);
        parts.put(CHUNK, &[7; 100]).unwrap();
        parts.put(3 * CHUNK - 512, &[9; 4096]).unwrap();
        parts.zero(4 * CHUNK, 3 * CHUNK).unwrap();
        parts.put(8 * CHUNK, &[1; 512]).unwrap();
        parts.compare().unwrap();
        for (at, found) in [(CHUNK + 99, CHUNK), (3 * CHUNK + 5, 3 * CHUNK - 512), (6 * CHUNK + 3, 6 * CHUNK)]
        {
            let mut was = [0];
            target.file.read_exact_at(&mut was, at).unwrap();
            target.file.write_all_at(&[was[0] ^ 1], at).unwrap();
            let error = parts.compare().unwrap_err();
            assert!(matches!(error, WriteError::Differs { at, .. } if at == found), "{error}");
            target.file.write_all_at(&was, at).unwrap();
        }
        parts.compare().unwrap();
    }

    #[test]
    fn sizes_are_told_as_on_a_label() {
        for (bytes, text) in [
            (1 << 30, "1.0 GB"),
            (15_931_539_456, "15.9 GB"),
            (536_870_912, "536.8 MB"),
            (2_000_398_934_016, "2.0 TB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
