//! A node's disk while the node is off: its partitions, bytes to read and to damage, the loader's environments.
//!
//! QEMU's own tools do it: they know qcow2 and its locks, so that a disk in use is refused and stays as it is.

use crate::command;
use crate::error::LabError;
use image::gpt::{Partition, Table};
use proto::bgenv::{self, Environment};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The tools copy at most a partition.
const TOOL_LIMIT: Duration = Duration::from_secs(60);
/// Where the tools take bytes from and put them, in the disk's directory.
const SCRATCH: &str = "disk.part";
/// What the partition table occupies at the front of a disk.
const TABLE_LEN: u64 = 1 << 20;
/// The loader's environment begins on a sector.
const SECTOR: usize = 512;
/// Longest kernel command line that an environment holds, in UTF-16 units.
const ARGUMENTS_MAX: usize = 254;

/// A qcow2 disk that no machine has open.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    name: String,
}

impl Disk {
    /// The disk at `path`.
    pub fn at(path: &Path) -> Disk {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Disk { dir: path.parent().unwrap_or(Path::new(".")).to_owned(), name }
    }

    /// The partition of this GPT name.
    ///
    /// # Errors
    /// There is no readable partition table, or none of that name in it.
    pub fn partition(&self, name: &str) -> Result<Partition, LabError> {
        let broken = |detail: String| LabError::Refused(format!("{}: {detail}", self.path().display()));
        let info = self.tool("qemu-img", &["info", "--output=json", &self.name])?;
        let info: serde_json::Value = serde_json::from_str(&info).map_err(|e| broken(e.to_string()))?;
        let size = info["virtual-size"].as_u64().ok_or_else(|| broken("no size".into()))?;
        let front = self.read(0, TABLE_LEN.min(size))?;
        // The table is checked against the whole disk's size: a file of that size with a hole behind the front.
        let scratch = self.write_scratch(&front)?;
        let table = File::options().read(true).write(true).open(&scratch).and_then(|mut file| {
            file.set_len(size)?;
            Ok(Table::read(&mut file))
        });
        let _ = std::fs::remove_file(&scratch);
        let table = table.map_err(self.io("read the partition table of"))?;
        let table = table.map_err(|e| broken(e.to_string()))?;
        let found = table.partition(name).cloned();
        found.ok_or_else(|| {
            let names: Vec<&str> = table.partitions.iter().map(|p| p.name.as_str()).collect();
            broken(format!("no partition {name}; partitions: {}", names.join(" ")))
        })
    }

    /// `length` bytes from `start` on; both multiples of 512.
    pub fn read(&self, start: u64, length: u64) -> Result<Vec<u8>, LabError> {
        let sector = SECTOR as u64;
        if !start.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return Err(LabError::Refused(format!("{start} and {length} are not whole sectors")));
        }
        // A window on the disk: what `qemu-img dd` makes of `skip` with `count` depends on its version.
        let window = format!(
            "driver=raw,offset={start},size={length},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
            self.name
        );
        self.tool("qemu-img", &["convert", "--image-opts", "-O", "raw", &window, SCRATCH])?;
        let scratch = self.dir.join(SCRATCH);
        let bytes = std::fs::read(&scratch).map_err(self.io("read"));
        let _ = std::fs::remove_file(&scratch);
        bytes
    }

    /// Replaces what is at `start`. A machine that runs on the disk keeps it: then nothing is written.
    pub fn write(&self, start: u64, bytes: &[u8]) -> Result<(), LabError> {
        self.write_scratch(bytes)?;
        let order = format!("write -q -s {SCRATCH} {start} {}", bytes.len());
        let done = self.tool("qemu-io", &["-f", "qcow2", "-c", &order, &self.name]);
        let _ = std::fs::remove_file(self.dir.join(SCRATCH));
        done.map(drop)
    }

    /// Changes both of the loader's environments in place.
    ///
    /// # Errors
    /// One of them is not readable, or its kernel command line would be longer than 254 characters. Those before it
    /// are changed already.
    pub fn change_environments(&self, change: impl Fn(&mut Environment)) -> Result<(), LabError> {
        for name in ["ENV-A", "ENV-B"] {
            let (place, mut environment) = self.placed_environment(name)?;
            change(&mut environment);
            if environment.arguments.encode_utf16().count() > ARGUMENTS_MAX {
                return Err(LabError::Refused(format!(
                    "a kernel command line holds at most {ARGUMENTS_MAX} characters here, not \"{}\"",
                    environment.arguments
                )));
            }
            self.write(place, &environment.encode())?;
        }
        Ok(())
    }

    /// What the loader's environment in the partition of this name says.
    ///
    /// # Errors
    /// It is not readable.
    pub fn environment(&self, name: &str) -> Result<Environment, LabError> {
        self.placed_environment(name).map(|(_, environment)| environment)
    }

    fn placed_environment(&self, name: &str) -> Result<(u64, Environment), LabError> {
        let partition = self.partition(name)?;
        let bytes = self.read(partition.start, partition.size)?;
        let damaged = || LabError::Refused(format!("{}: no environment in {name}", self.path().display()));
        let (at, environment) = find_environment(&bytes).ok_or_else(damaged)?;
        Ok((partition.start + at as u64, environment))
    }

    fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    fn io(&self, doing: &str) -> impl FnOnce(std::io::Error) -> LabError {
        LabError::io(format!("{doing} {}", self.path().display()))
    }

    fn write_scratch(&self, bytes: &[u8]) -> Result<PathBuf, LabError> {
        let scratch = self.dir.join(SCRATCH);
        std::fs::write(&scratch, bytes).map_err(self.io("change"))?;
        Ok(scratch)
    }

    /// Runs a tool in the disk's directory, so that no name on its command line needs quoting.
    fn tool(&self, name: &str, words: &[&str]) -> Result<String, LabError> {
        let outcome = command::run(Command::new(name).args(words).current_dir(&self.dir), TOOL_LIMIT);
        if outcome.ok() { Ok(outcome.out) } else { Err(outcome.failure(&format!("{name} {}", words[0]))) }
    }
}

/// Place and contents of the environment in the bytes of its partition. The file is in one piece: the factory wrote it
/// into an empty file system, and everybody since then in place.
fn find_environment(partition: &[u8]) -> Option<(usize, Environment)> {
    let places = (0..partition.len().checked_sub(bgenv::SIZE)?).step_by(SECTOR);
    let mut found = places.filter_map(|at| {
        let bytes = partition.get(at..at + bgenv::SIZE)?;
        Some((at, Environment::decode(bytes).ok().filter(|e| !e.kernel_file.is_empty())?))
    });
    found.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::testing::TestDir;
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    fn disk(dir: &TestDir) -> Disk {
        let path = dir.path().join("disk.qcow2");
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("4M").status();
        assert!(made.expect("qemu-img runs").success());
        Disk::at(&path)
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_changes() {
        let dir = TestDir::new("disk-rw");
        let disk = disk(&dir);
        disk.write(1000, b"evenkeel").expect("written");
        let bytes = disk.read(512, 1024).expect("read");
        assert_eq!(&bytes[488..496], b"evenkeel");
        assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 8);
        assert!(disk.read(1, 512).expect_err("refused").to_string().contains("sectors"));
        let error = disk.partition("STATE").expect_err("no table").to_string();
        assert!(error.contains("disk.qcow2: no GPT partition table"), "{error}");
        let left: Vec<_> =
            std::fs::read_dir(dir.path()).expect("there").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["disk.qcow2"], "nothing is left behind");
    }

    #[test]
    fn a_disk_in_use_is_refused() {
        let dir = TestDir::new("disk-used");
        let disk = disk(&dir);
        let mut user = Command::new("qemu-io")
            .args(["-f", "qcow2"])
            .arg(disk.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        // It answers once it has the disk.
        let mut answers = BufReader::new(user.stdout.take().expect("piped"));
        user.stdin.as_mut().expect("piped").write_all(b"length\n").expect("asked");
        let mut answer = String::new();
        while !answer.contains("MiB") {
            answer.clear();
            assert_ne!(answers.read_line(&mut answer).expect("read"), 0, "it ended");
        }
        let refused = disk.write(0, b"x").err();
        user.kill().expect("killed");
        user.wait().expect("reaped");
        let error = refused.expect("refused while it is in use").to_string();
        assert!(error.contains("another process using the image"), "{error}");
        disk.write(0, b"x").expect("free again");
    }

    #[test]
    fn an_environment_is_found_where_it_begins() {
        let environment = Environment::committed("SLOT-A", 30, 1);
        let mut partition = vec![0; 1 << 20];
        assert_eq!(find_environment(&partition), None);
        partition[5 * SECTOR..5 * SECTOR + bgenv::SIZE].copy_from_slice(&environment.encode());
        assert_eq!(find_environment(&partition), Some((5 * SECTOR, environment)));
        partition[5 * SECTOR] ^= 1;
        assert_eq!(find_environment(&partition), None);
        assert_eq!(find_environment(&[]), None);
    }
}
