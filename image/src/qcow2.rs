//! A raw disk image in QEMU's container, version 3, of our own writing: what `qemu-img convert` makes depends on its
//! version and on the holes that the host's file system keeps.
//!
//! ```text
//! cluster 0    header
//!         1    refcount table: where the refcount blocks are
//!         …    refcount blocks: every cluster of the file is used once
//!         …    L1 table: one entry for 512 MiB of the disk, where its L2 table is
//!         …    L2 tables: one entry for each cluster of 64 KiB, where its bytes are; 0: zeros
//!         …    clusters that are not all zeros, in the disk's order
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use crate::write::next_data;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of 8 bytes in a table of one cluster.
const TABLE: u64 = CLUSTER / 8;
/// Counters of 16 bits in a refcount block.
const COUNTERS: u64 = CLUSTER / 2;
const HEADER: u32 = 104;
/// "This cluster is used once": QEMU may write in place.
const ONCE: u64 = 1 << 63;

/// Writes `raw`, of `size` bytes (whole sectors), to `out`, which is empty. Equal bytes give equal bytes.
pub(crate) fn write(raw: &File, size: u64, out: &File) -> io::Result<()> {
    let mut bytes = vec![0; CLUSTER as usize];
    // The disk's clusters that hold something.
    let mut used = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(raw, at)?.filter(|data| *data < size) {
        let cluster = data / CLUSTER;
        if read(raw, size, cluster, &mut bytes)? {
            used.push(cluster);
        }
        at = (cluster + 1) * CLUSTER;
    }
    let mut tables: Vec<u64> = used.iter().map(|cluster| cluster / TABLE).collect();
    tables.dedup();

    let l1_entries = size.div_ceil(CLUSTER * TABLE).max(1);
    let l1_clusters = l1_entries.div_ceil(TABLE);
    let without_counters = 2 + l1_clusters + (tables.len() + used.len()) as u64;
    // The blocks count themselves, too.
    let mut blocks = without_counters.div_ceil(COUNTERS);
    while (without_counters + blocks).div_ceil(COUNTERS) > blocks {
        blocks += 1;
    }
    if blocks > TABLE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a qcow2 image of more than 16 TiB"));
    }
    let l1 = 2 + blocks;
    let l2 = l1 + l1_clusters;
    let data = l2 + tables.len() as u64;

    let mut file = BufWriter::with_capacity(1 << 20, out);
    let mut header = b"QFI\xfb".to_vec();
    let word = |n: u64| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    header.extend(3u32.to_be_bytes());
    header.extend([0; 12]); // no backing file
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend([0; 4]); // not encrypted
    header.extend(word(l1_entries)?.to_be_bytes());
    header.extend((l1 * CLUSTER).to_be_bytes());
    header.extend(CLUSTER.to_be_bytes()); // the refcount table
    header.extend(1u32.to_be_bytes());
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no features
    header.extend(4u32.to_be_bytes()); // counters of 1 << 4 bits
    header.extend(HEADER.to_be_bytes());
    debug_assert_eq!(header.len(), HEADER as usize);
    padded(&mut file, &header, 1)?;
    padded(&mut file, &entries((2..l1).map(|block| block * CLUSTER)), 1)?;
    let counters: Vec<u8> =
        std::iter::repeat_n(1u16.to_be_bytes(), (data as usize) + used.len()).flatten().collect();
    padded(&mut file, &counters, blocks)?;

    let mut l1_table = vec![0; l1_entries as usize];
    for (i, table) in tables.iter().enumerate() {
        l1_table[*table as usize] = ((l2 + i as u64) * CLUSTER) | ONCE;
    }
    padded(&mut file, &entries(l1_table), l1_clusters)?;
    let mut place = data;
    for clusters in used.chunk_by(|a, b| a / TABLE == b / TABLE) {
        let mut table = vec![0; TABLE as usize];
        for cluster in clusters {
            table[(cluster % TABLE) as usize] = (place * CLUSTER) | ONCE;
            place += 1;
        }
        padded(&mut file, &entries(table), 1)?;
    }
    for cluster in used {
        read(raw, size, cluster, &mut bytes)?;
        file.write_all(&bytes)?;
    }
    file.flush()
}

/// Reads a cluster, the last one filled up with zeros; whether anything is in it.
fn read(raw: &File, size: u64, cluster: u64, bytes: &mut [u8]) -> io::Result<bool> {
    let at = cluster * CLUSTER;
    let length = (size - at).min(CLUSTER) as usize;
    bytes[length..].fill(0);
    raw.read_exact_at(&mut bytes[..length], at)?;
    Ok(bytes.iter().any(|b| *b != 0))
}

fn entries(list: impl IntoIterator<Item = u64>) -> Vec<u8> {
    list.into_iter().flat_map(u64::to_be_bytes).collect()
}

fn padded(file: &mut impl Write, bytes: &[u8], clusters: u64) -> io::Result<()> {
    file.write_all(bytes)?;
    file.write_all(&vec![0; (clusters * CLUSTER) as usize - bytes.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;
    use std::process::Command;

    fn qemu_img(words: &[&str], dir: &TestDir) -> String {
        let output = Command::new("qemu-img").args(words).current_dir(dir.path()).output();
        let output = output.expect("install the Debian package qemu-utils");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Writes these pieces and has QEMU's tool check the container and compare the disks.
    fn made(size: u64, pieces: &[(u64, usize)]) -> u64 {
        let dir = TestDir::new("qcow2");
        let raw =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("raw")).unwrap();
        raw.set_len(size).unwrap();
        for (at, length) in pieces {
            raw.write_all_at(&vec![0x5a; *length], *at).unwrap();
        }
        let out = |name: &str| {
            let file = File::create(dir.path().join(name)).unwrap();
            write(&raw, size, &file).unwrap();
            std::fs::read(dir.path().join(name)).unwrap()
        };
        let bytes = out("qcow2");
        // Zeros that are written and zeros in a hole are the same.
        raw.write_all_at(&[0; 512], size - 512).unwrap();
        assert!(out("again") == bytes);
        let said = qemu_img(&["check", "-f", "qcow2", "qcow2"], &dir);
        assert!(said.contains("No errors were found"), "{said}");
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "raw", "qcow2"], &dir);
        bytes.len() as u64
    }

    #[test]
    fn qemus_tool_finds_no_fault_and_the_same_disk() {
        const MIB: u64 = 1 << 20;
        assert_eq!(made(MIB, &[]), 4 * CLUSTER, "an empty disk is header and tables");
        assert_eq!(made(MIB, &[(0, 1), (3 * CLUSTER + 9, 100_000)]), (5 + 3) * CLUSTER);
        // Over the border between two L2 tables, and in a third; the disk's end within a cluster.
        let far = 3 << 30;
        made(far + 512 * 7, &[(512 * MIB - 1, 2), (far, 512)]);
    }

    #[test]
    fn the_last_sector_of_a_disk_that_ends_within_a_cluster_is_kept() {
        let dir = TestDir::new("qcow2-end");
        let raw =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("raw")).unwrap();
        raw.set_len(CLUSTER + 512).unwrap();
        raw.write_all_at(&[1; 512], CLUSTER).unwrap();
        write(&raw, CLUSTER + 512, &File::create(dir.path().join("qcow2")).unwrap()).unwrap();
        qemu_img(&["check", "-f", "qcow2", "qcow2"], &dir);
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "raw", "qcow2"], &dir);
    }
}
