//! The partition table: protective MBR, primary GPT at the start, its copy at the end.
//!
//! ```text
//! sector 0          protective MBR
//!        1          header            ──┐ CRC-32 of itself and of the entries
//!        2 … 33     128 entries         │
//!        …          partitions          │
//!        end-32 …   128 entries (copy)  │
//!        end        header (copy)     ──┘
//! ```
//! A table of our own writing because every identity in it is derived, never random.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::digest::Guid;

pub const SECTOR: u64 = 512;
/// Partitions start on this boundary: whole erase blocks and pages of any disk.
pub const ALIGN: u64 = 1 << 20;

const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const ENTRY_SECTORS: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;
const HEADER: usize = 92;
const SIGNATURE: &[u8] = b"EFI PART";
/// First sector that belongs to a partition; as many are kept at the end.
const FIRST_USABLE: u64 = 2 + ENTRY_SECTORS;
/// Longest partition name, UTF-16 units.
const NAME_UNITS: usize = 36;

/// Types defined elsewhere.
pub const TYPE_ESP: Guid =
    Guid([0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
/// "Basic data": with the ESP's type the only one in which the loader's tools look for environments.
pub const TYPE_FAT: Guid =
    Guid([0xeb, 0xd0, 0xa0, 0xa2, 0xb9, 0xe5, 0x44, 0x33, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7]);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub name: String,
    pub kind: Guid,
    pub id: Guid,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub disk: Guid,
    /// Bytes of the whole disk.
    pub size: u64,
    pub partitions: Vec<Partition>,
}

/// A table that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("{0}")]
    NotGpt(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Bytes that the last partition must leave free at the end of the disk.
pub const TAIL: u64 = ALIGN;

impl Table {
    pub fn partition(&self, name: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.name == name)
    }

    fn entries(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; ENTRIES * ENTRY];
        for (slot, partition) in bytes.chunks_exact_mut(ENTRY).zip(&self.partitions) {
            slot[..16].copy_from_slice(&partition.kind.to_disk());
            slot[16..32].copy_from_slice(&partition.id.to_disk());
            slot[32..40].copy_from_slice(&(partition.start / SECTOR).to_le_bytes());
            slot[40..48].copy_from_slice(&((partition.start + partition.size) / SECTOR - 1).to_le_bytes());
            for (pair, unit) in slot[56..].chunks_exact_mut(2).zip(partition.name.encode_utf16()) {
                pair.copy_from_slice(&unit.to_le_bytes());
            }
        }
        bytes
    }

    fn header(&self, own: u64, other: u64, entries_at: u64, entries_crc: u32) -> Vec<u8> {
        let last = self.size / SECTOR - 1;
        let mut bytes = vec![0u8; SECTOR as usize];
        bytes[..8].copy_from_slice(SIGNATURE);
        bytes[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
        bytes[24..32].copy_from_slice(&own.to_le_bytes());
        bytes[32..40].copy_from_slice(&other.to_le_bytes());
        bytes[40..48].copy_from_slice(&FIRST_USABLE.to_le_bytes());
        bytes[48..56].copy_from_slice(&(last - ENTRY_SECTORS - 1).to_le_bytes());
        bytes[56..72].copy_from_slice(&self.disk.to_disk());
        bytes[72..80].copy_from_slice(&entries_at.to_le_bytes());
        bytes[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
        bytes[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        bytes[88..92].copy_from_slice(&entries_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..HEADER]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Writes the table to a disk of `self.size` bytes. Nothing between the two copies is touched.
    pub fn write(&self, disk: &mut (impl Write + Seek)) -> io::Result<()> {
        let last = self.size / SECTOR - 1;
        let entries = self.entries();
        let crc = crc32fast::hash(&entries);

        let mut start = vec![0u8; SECTOR as usize];
        start[446 + 1..446 + 4].copy_from_slice(&[0x00, 0x02, 0x00]); // from cylinder 0, head 0, sector 2
        start[446 + 4] = 0xee; // "the whole disk is GPT"
        start[446 + 5..446 + 8].copy_from_slice(&[0xff, 0xff, 0xff]);
        start[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
        start[446 + 12..446 + 16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
        start[510..512].copy_from_slice(&[0x55, 0xaa]);
        start.extend(self.header(1, last, 2, crc));
        start.extend(&entries);
        disk.seek(SeekFrom::Start(0))?;
        disk.write_all(&start)?;

        disk.seek(SeekFrom::Start((last - ENTRY_SECTORS) * SECTOR))?;
        disk.write_all(&entries)?;
        disk.write_all(&self.header(last, 1, last - ENTRY_SECTORS, crc))
    }

    /// Reads and checks the primary table.
    pub fn read(disk: &mut (impl Read + Seek)) -> Result<Self, TableError> {
        let not = |what: &str| TableError::NotGpt(what.to_owned());
        let size = disk.seek(SeekFrom::End(0))?;
        if size < (FIRST_USABLE + 1) * SECTOR {
            return Err(TableError::NotGpt(format!("{size} bytes hold no partition table")));
        }
        let mut header = [0u8; HEADER];
        disk.seek(SeekFrom::Start(SECTOR))?;
        disk.read_exact(&mut header)?;
        if &header[..8] != SIGNATURE {
            return Err(not("no GPT partition table"));
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let mut blank = header;
        blank[16..20].fill(0);
        if word(12) as usize != HEADER || word(16) != crc32fast::hash(&blank) {
            return Err(not("its partition table's header is damaged"));
        }
        // We read tables of the usual shape only: the firmware's and our own.
        if (word(80) as usize, word(84) as usize, long(72)) != (ENTRIES, ENTRY, 2) {
            return Err(not("its partition table has an unusual shape"));
        }
        let mut entries = vec![0u8; ENTRIES * ENTRY];
        disk.seek(SeekFrom::Start(2 * SECTOR))?;
        disk.read_exact(&mut entries)?;
        if crc32fast::hash(&entries) != word(88) {
            return Err(not("its partition table's entries are damaged"));
        }
        let partitions = entries.chunks_exact(ENTRY).filter(|e| e[..16] != [0; 16]).map(|e| entry(e, size));
        let partitions: Option<Vec<_>> = partitions.collect();
        Ok(Self {
            disk: Guid::from_disk(header[56..72].try_into().expect("sixteen bytes")),
            size,
            partitions: partitions.ok_or_else(|| not("a partition reaches beyond its end"))?,
        })
    }
}

/// One entry, or nothing when it leaves the disk.
fn entry(bytes: &[u8], disk_size: u64) -> Option<Partition> {
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let guid = |at: usize| Guid::from_disk(bytes[at..at + 16].try_into().expect("sixteen bytes"));
    let start = long(32).checked_mul(SECTOR)?;
    let end = long(40).checked_add(1)?.checked_mul(SECTOR)?;
    let units = bytes[56..56 + 2 * NAME_UNITS].chunks_exact(2).map(|p| u16::from_le_bytes([p[0], p[1]]));
    let name = char::decode_utf16(units.take_while(|u| *u != 0)).map(|c| c.unwrap_or('\u{fffd}')).collect();
    let size = end.checked_sub(start)?;
    (end <= disk_size).then_some(Partition { name, kind: guid(0), id: guid(16), start, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn table() -> Table {
        let partition = |name: &str, start_mib: u64, mib: u64, kind| Partition {
            name: name.into(),
            kind,
            id: Guid::derived(name),
            start: start_mib << 20,
            size: mib << 20,
        };
        Table {
            disk: Guid::derived("disk"),
            size: 16 << 20,
            partitions: vec![partition("ESP", 1, 4, TYPE_ESP), partition("STATE", 5, 10, TYPE_FAT)],
        }
    }

    fn written() -> Vec<u8> {
        let mut disk = Cursor::new(vec![0u8; 16 << 20]);
        table().write(&mut disk).unwrap();
        disk.into_inner()
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Table::read(&mut Cursor::new(written())).unwrap(), table());
    }

    #[test]
    fn sgdisk_finds_no_fault() {
        let dir = crate::testdir::TestDir::new("gpt");
        let file = dir.path().join("disk");
        std::fs::write(&file, written()).unwrap();
        let run = |flag: &str| {
            let output = std::process::Command::new("/usr/sbin/sgdisk")
                .arg(flag)
                .arg(&file)
                .output()
                .expect("install the Debian package gdisk");
            assert!(output.status.success());
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let said = run("-v");
        assert!(said.contains("No problems found"), "{said}");
        let said = run("-p");
        assert!(said.contains("EF00  ESP"), "{said}");
    }

    #[test]
    fn damage_and_other_things_are_named() {
        let read = |bytes: Vec<u8>| Table::read(&mut Cursor::new(bytes)).unwrap_err().to_string();
        assert_eq!(read(vec![]), "0 bytes hold no partition table");
        assert_eq!(read(vec![0; 1 << 20]), "no GPT partition table");
        for (at, say) in [
            (512 + 56, "its partition table's header is damaged"),
            (1024 + 56, "its partition table's entries are damaged"),
        ] {
            let mut bad = written();
            bad[at] ^= 1;
            assert_eq!(read(bad), say);
        }
        let mut short = written();
        short.truncate(4 << 20);
        assert_eq!(read(short), "a partition reaches beyond its end");
    }
}
