//! Which partition is ours. Pure: the kernel's block devices in, a choice or a reason out.
//!
//! The GPT name decides, never the device's name: a disk may be `vda` today and `nvme0n1` tomorrow. A second disk
//! with a partition of the same name (a rescue stick, a swapped-in disk) must not become STATE by accident.

use std::collections::{BTreeMap, BTreeSet};

/// The names of a complete installation.
pub(crate) const OUR_PARTITIONS: [&str; 7] = ["ESP", "ENV-A", "ENV-B", "SLOT-A", "SLOT-B", "RESCUE", "STATE"];
/// The partition init mounts.
pub(crate) const STATE: &str = "STATE";

/// A partition as `/sys/class/block` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Partition {
    /// Kernel name, like `vda7`.
    pub(crate) device: String,
    /// Kernel name of its disk, like `vda`.
    pub(crate) disk: String,
    /// Its GPT name.
    pub(crate) name: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// No disk has a partition of this name (yet).
    None,
    /// This one; `foreign` are partitions of the same name on other disks.
    Found { device: String, complete: bool, foreign: Vec<String> },
    /// Several disks could be meant.
    Ambiguous(Vec<String>),
}

/// Reads a partition from its `uevent` file and its disk's name. `None` for whole disks and partitions without name.
pub(crate) fn parse(uevent: &str, disk: &str) -> Option<Partition> {
    let value = |key: &str| uevent.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    (value("DEVTYPE")? == "partition").then_some(())?;
    Some(Partition {
        device: value("DEVNAME")?.to_owned(),
        disk: disk.to_owned(),
        name: value("PARTNAME")?.to_owned(),
    })
}

/// Chooses the STATE partition: on the one complete disk, else on the one disk that has any.
pub(crate) fn choose(partitions: &[Partition]) -> Choice {
    let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for p in partitions {
        names.entry(&p.disk).or_default().insert(&p.name);
    }
    let candidates: Vec<_> = partitions.iter().filter(|p| p.name == STATE).collect();
    let is_complete = |p: &Partition| {
        names.get(p.disk.as_str()).is_some_and(|n| OUR_PARTITIONS.iter().all(|o| n.contains(o)))
    };
    let complete: Vec<_> = candidates.iter().filter(|p| is_complete(p)).collect();
    let chosen = match (complete.as_slice(), candidates.as_slice()) {
        (_, []) => return Choice::None,
        ([one], _) => one,
        ([], [one]) => one,
        _ => return Choice::Ambiguous(candidates.iter().map(|p| p.device.clone()).collect()),
    };
    Choice::Found {
        device: chosen.device.clone(),
        complete: !complete.is_empty(),
        foreign: candidates.iter().filter(|p| p.device != chosen.device).map(|p| p.device.clone()).collect(),
    }
}

/// What the ext4 superblock says of the file system's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ext4 {
    /// Bytes of a block.
    pub(crate) block_size: u64,
    /// Blocks of the file system.
    pub(crate) blocks: u64,
}

/// Bytes at the front of a partition that hold the superblock.
pub(crate) const SUPERBLOCK_END: usize = 2048;

/// Reads the superblock from the first [`SUPERBLOCK_END`] bytes of a partition. `None` when it is not ext4.
pub(crate) fn ext4(front: &[u8]) -> Option<Ext4> {
    let field = |at: usize| front.get(1024 + at..)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b));
    let magic = field(0x38)? & 0xffff;
    let log_size = field(0x18)?;
    if magic != 0xef53 || log_size > 6 {
        return None;
    }
    // The upper half counts only with the 64bit feature.
    let high = if field(0x60)? & 0x80 != 0 { field(0x150)? } else { 0 };
    Some(Ext4 { block_size: 1024 << log_size, blocks: u64::from(high) << 32 | u64::from(field(4)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(disk: &str, names: &[&str]) -> Vec<Partition> {
        let part = |(i, n): (usize, &&str)| Partition {
            device: format!("{disk}{}", i + 1),
            disk: disk.to_owned(),
            name: (*n).to_owned(),
        };
        names.iter().enumerate().map(part).collect()
    }

    fn found(device: &str, complete: bool, foreign: &[&str]) -> Choice {
        let foreign = foreign.iter().map(|f| (*f).to_owned()).collect();
        Choice::Found { device: device.to_owned(), complete, foreign }
    }

    #[test]
    fn a_partition_is_read_from_its_uevent() {
        let uevent = "MAJOR=254\nDEVNAME=vda7\nDEVTYPE=partition\nPARTN=7\nPARTNAME=STATE\n";
        assert_eq!(parse(uevent, "vda"), disk("vda", &["", "", "", "", "", "", "STATE"]).pop());
        assert_eq!(parse("DEVNAME=vda\nDEVTYPE=disk\n", "vda"), None);
        assert_eq!(parse("DEVNAME=vda1\nDEVTYPE=partition\nPARTN=1\n", "vda"), None);
    }

    #[test]
    fn the_complete_disk_wins_and_doubt_is_said() {
        let ours = disk("vda", &OUR_PARTITIONS);
        let half = disk("sdb", &["STATE"]);
        let cases = [
            (vec![], Choice::None),
            (disk("sda", &["ESP", "data"]), Choice::None),
            (ours.clone(), found("vda7", true, &[])),
            (half.clone(), found("sdb1", false, &[])),
            ([half.clone(), ours.clone()].concat(), found("vda7", true, &["sdb1"])),
            ([half, disk("sdc", &["STATE"])].concat(), Choice::Ambiguous(vec!["sdb1".into(), "sdc1".into()])),
            (
                [ours, disk("vdb", &OUR_PARTITIONS)].concat(),
                Choice::Ambiguous(vec!["vda7".into(), "vdb7".into()]),
            ),
        ];
        for (partitions, expected) in cases {
            assert_eq!(choose(&partitions), expected, "{partitions:?}");
        }
    }

    #[test]
    fn the_superblock_is_read_with_its_bounds() {
        let mut front = vec![0; SUPERBLOCK_END];
        front[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        front[1024 + 0x18] = 2;
        front[1024 + 4..][..4].copy_from_slice(&4096u32.to_le_bytes());
        front[1024 + 0x150] = 1;
        assert_eq!(ext4(&front), Some(Ext4 { block_size: 4096, blocks: 4096 }));
        front[1024 + 0x60] = 0x80;
        assert_eq!(ext4(&front), Some(Ext4 { block_size: 4096, blocks: (1 << 32) + 4096 }));
        front[1024 + 0x18] = 7;
        assert_eq!(ext4(&front), None, "a block size no kernel mounts");
        assert_eq!(ext4(&front[..1100]), None, "cut short");
        assert_eq!(ext4(&[0; SUPERBLOCK_END]), None, "no magic number");
    }
}
