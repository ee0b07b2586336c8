//! Looks at a finished image: is it ours, and what is on it. Changes nothing.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::disk::{PARTITIONS, REMOVABLE_PATH, SLOT_FILE, disk_id};
use crate::error::{BuildError, InspectError};
use crate::gpt::{Partition, Table, TableError};
use crate::host::{self, MCOPY, QEMU_IMG};
use crate::uki;
use proto::bgenv::{self, Environment, EnvironmentError};

const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// What an image holds.
#[derive(Debug)]
pub struct Description {
    pub path: PathBuf,
    pub table: Table,
    /// `ENV-A` and `ENV-B`, or what is wrong with them.
    pub environments: Vec<(String, Result<Environment, EnvironmentError>)>,
    /// Boot files by partition; a slot without one is not listed.
    pub boot_files: Vec<BootFile>,
}

/// A boot file on a partition.
#[derive(Debug)]
pub struct BootFile {
    pub partition: String,
    pub size: u64,
    /// Name and size of its sections, or what is wrong with it.
    pub sections: Result<Vec<(String, u64)>, String>,
    pub cmdline: String,
}

/// Says whether a disk image (raw or qcow2) is one of ours, by its partitions.
pub fn verify_ours(path: &Path) -> Result<(), InspectError> {
    let raw = Raw::open(path)?;
    ours(path, &raw).map(|_| ())
}

/// Describes an image of ours. Reads files out of its FAT partitions with mtools.
pub fn describe(path: &Path) -> Result<Description, InspectError> {
    let raw = Raw::open(path)?;
    let table = ours(path, &raw)?;
    let part = |name: &str| table.partition(name).expect("an image of ours has every partition");
    let mut environments = Vec::new();
    for name in ["ENV-A", "ENV-B"] {
        let environment = match raw.fat_file(part(name), bgenv::FILE_NAME)? {
            Some(bytes) => Environment::decode(&bytes),
            None => Err(EnvironmentError::Unreadable(format!("no {}", bgenv::FILE_NAME))),
        };
        environments.push((name.to_owned(), environment));
    }
    let mut boot_files = Vec::new();
    for (name, file) in [("SLOT-A", SLOT_FILE), ("SLOT-B", SLOT_FILE), ("RESCUE", REMOVABLE_PATH)] {
        if let Some(bytes) = raw.fat_file(part(name), file)? {
            let cmdline = uki::section(&bytes, ".cmdline").unwrap_or_default();
            boot_files.push(BootFile {
                partition: name.to_owned(),
                size: bytes.len() as u64,
                sections: uki::sections(&bytes)
                    .map(|list| list.into_iter().map(|s| (s.name, u64::from(s.size))).collect()),
                cmdline: String::from_utf8_lossy(cmdline).into_owned(),
            });
        }
    }
    Ok(Description { path: path.to_owned(), table, environments, boot_files })
}

/// The boot file in slot A of an image of ours, if there is one.
pub(crate) fn slot_file(path: &Path) -> Result<Option<Vec<u8>>, InspectError> {
    let raw = Raw::open(path)?;
    let table = ours(path, &raw)?;
    raw.fat_file(table.partition("SLOT-A").expect("an image of ours has every partition"), SLOT_FILE)
}

pub(crate) fn ours(path: &Path, raw: &Raw) -> Result<Table, InspectError> {
    let not = |detail: String| InspectError::NotOurs { path: path.to_owned(), detail };
    let io = |source| InspectError::Io { path: path.to_owned(), source };
    let mut file = File::open(&raw.path).map_err(io)?;
    let table = match Table::read(&mut file) {
        Ok(table) => table,
        Err(TableError::NotGpt(detail)) => return Err(not(detail)),
        Err(TableError::Io(source)) => return Err(io(source)),
    };
    if let Some(missing) = PARTITIONS.iter().find(|name| table.partition(name).is_none()) {
        return Err(not(format!("no partition named {missing}")));
    }
    if table.disk != disk_id() {
        return Err(not(format!("its disk identity is {} instead of {}", table.disk, disk_id())));
    }
    Ok(table)
}

/// The image as raw bytes: itself, or a copy of a qcow2 image that lives as long as this.
pub(crate) struct Raw {
    pub(crate) path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Raw {
    pub(crate) fn open(path: &Path) -> Result<Self, InspectError> {
        let io = |source| InspectError::Io { path: path.to_owned(), source };
        let mut magic = [0u8; 4];
        let mut file = File::open(path).map_err(io)?;
        let whole = file.read_exact(&mut magic).is_ok();
        if !whole || magic != QCOW2_MAGIC {
            return Ok(Self { path: path.to_owned(), temporary: None });
        }
        let dir = std::env::temp_dir().join(format!("evenkeel-show-{}", host::unique()));
        fs::create_dir(&dir).map_err(|source| InspectError::Io { path: dir.clone(), source })?;
        let raw = Self { path: dir.join("disk"), temporary: Some(dir) };
        let mut command = QEMU_IMG.command();
        command.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(path).arg(&raw.path);
        QEMU_IMG.run(&mut command, &format!("read {}", path.display()), &raw.path, 0)?;
        Ok(raw)
    }

    /// A file of a FAT partition, or nothing when there is none of that name.
    fn fat_file(&self, partition: &Partition, name: &str) -> Result<Option<Vec<u8>>, InspectError> {
        let mut command = MCOPY.command();
        command.args(["-i", &format!("{}@@{}", self.path.display(), partition.start)]);
        command.arg(format!("::/{name}")).arg("-");
        let output = MCOPY.output(&mut command)?;
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        let words = String::from_utf8_lossy(&output.stderr);
        if words.contains("not found") {
            return Ok(None);
        }
        let detail = words.lines().last().unwrap_or_default().to_owned();
        let doing = format!("read {name} of {}", partition.name);
        Err(BuildError::Tool { tool: MCOPY.name, doing, detail }.into())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(dir) = &self.temporary {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Copies one partition's bytes out of a raw image, e.g. to check its file system.
pub fn extract(image: &Path, partition: &Partition, to: &Path) -> std::io::Result<()> {
    let mut from = File::open(image)?;
    from.seek(SeekFrom::Start(partition.start))?;
    std::io::copy(&mut from.take(partition.size), &mut File::create(to)?).map(|_| ())
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        writeln!(
            f,
            "{}: Evenkeel image, {} MiB, disk {}",
            self.path.display(),
            self.table.size / MIB,
            self.table.disk
        )?;
        for p in &self.table.partitions {
            writeln!(f, "  {:<7} {:>6} MiB at {:>5} MiB", p.name, p.size / MIB, p.start / MIB)?;
        }
        for (name, environment) in &self.environments {
            match environment {
                Ok(e) => writeln!(
                    f,
                    "  {name}: revision {}, {:?}{}, starts {}, watchdog {} s",
                    e.revision,
                    e.state,
                    if e.in_progress { ", in progress" } else { "" },
                    e.kernel_file,
                    e.watchdog_s
                )?,
                Err(detail) => writeln!(f, "  {name}: damaged ({detail})")?,
            }
        }
        for file in &self.boot_files {
            writeln!(f, "  {}: boot file of {} bytes", file.partition, file.size)?;
            match &file.sections {
                Ok(sections) => {
                    for (name, size) in sections {
                        writeln!(f, "    {name:<9} {size:>10}")?;
                    }
                    writeln!(f, "    command line: {}", file.cmdline)?;
                }
                Err(detail) => writeln!(f, "    damaged ({detail})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Guid;
    use crate::gpt;
    use crate::testdir::TestDir;

    fn disk(dir: &TestDir, names: &[&str], id: Guid) -> PathBuf {
        let partitions = names.iter().enumerate().map(|(i, name)| Partition {
            name: (*name).to_owned(),
            kind: gpt::TYPE_FAT,
            id: Guid::derived(name),
            start: (1 + i as u64) << 20,
            size: 1 << 20,
        });
        let table = Table { disk: id, size: 16 << 20, partitions: partitions.collect() };
        let path = dir.path().join("disk");
        let mut file = File::create(&path).unwrap();
        file.set_len(table.size).unwrap();
        table.write(&mut file).unwrap();
        path
    }

    #[test]
    fn a_disk_image_that_is_not_ours() {
        let dir = TestDir::new("ours");
        let say = |path: &Path| verify_ours(path).unwrap_err().to_string();

        let path = disk(&dir, &["ESP", "root"], Guid::derived("other"));
        let expected = format!(
            "{} is not an Evenkeel image: no partition named ENV-A; build one with \"image build\"",
            path.display()
        );
        assert_eq!(say(&path), expected);

        let path = disk(&dir, &PARTITIONS, Guid::derived("other"));
        assert!(say(&path).contains("its disk identity is "));

        fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert!(say(&path).contains("is not an Evenkeel image: no GPT partition table;"));
        fs::write(&path, "text").unwrap();
        assert!(say(&path).contains("is not an Evenkeel image: 4 bytes hold no partition table;"));
        fs::write(&path, "").unwrap();
        assert!(say(&path).contains("is not an Evenkeel image: 0 bytes"));

        let nowhere = dir.path().join("nowhere");
        assert_eq!(say(&nowhere), format!("cannot read the disk image {}", nowhere.display()));
    }

    #[test]
    fn a_disk_with_our_partitions_is_ours_also_as_qcow2() {
        let dir = TestDir::new("ours");
        let path = disk(&dir, &PARTITIONS, disk_id());
        verify_ours(&path).unwrap();
        let qcow2 = dir.path().join("disk.qcow2");
        let mut command = QEMU_IMG.command();
        command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&path).arg(&qcow2);
        QEMU_IMG.run(&mut command, "convert", &qcow2, 0).unwrap();
        verify_ours(&qcow2).unwrap();
    }

    /// The loader's own tool must agree about layout and checksum.
    #[test]
    fn bg_printenv_reads_it() {
        let dir = TestDir::new("bgenv");
        let file = dir.path().join(bgenv::FILE_NAME);
        fs::write(&file, Environment::committed("SLOT-A", 77, 5).encode()).unwrap();
        let output = std::process::Command::new("bg_printenv")
            .arg("--raw")
            .arg(format!("--filepath={}", file.display()))
            .output()
            .expect("install the Debian package efibootguard");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        for line in ["KERNEL=L:SLOT-A:linux.efi", "WATCHDOG_TIMEOUT=77", "REVISION=5", "USTATE=0"] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} is missing in\n{text}");
        }
    }
}
