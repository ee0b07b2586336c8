//! The firmware's boot entries for the loader and, right behind it, the rescue system.
//!
//! ```text
//! BootOrder   numbers, 16 bits each            Boot0003   attributes 4: 1 = active
//!                                                         length of the path 2
//! loader gives up ──> next entry: RESCUE                  description, UTF-16, NUL
//!                                                         path: HD(number, start, size, GUID) / file / end
//! ```
//! Firmware makes one entry for a disk by itself, which leads to the loader. When that returns, because no environment can
//! be used, another entry has to lead to the rescue system, or the machine waits in the firmware's menu for ever. Entries
//! live in the machine, not on the disk: a new board or a cleared memory has none, so they are looked at on every healthy
//! boot. A path in this short form is found whatever the disk is plugged into.
//!
//! Entries of others are neither changed nor moved. Not here: reading and writing variables.

use std::collections::BTreeMap;

/// Where loader and rescue system are in their partitions: the place that firmware tries by itself, too.
pub const FILE: &str = r"\EFI\BOOT\BOOTX64.EFI";
/// What firmware's menu calls them.
pub const LOADER: &str = "Evenkeel";
/// The other one.
pub const RESCUE: &str = "Evenkeel rescue";

const ACTIVE: u32 = 1;
const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE_PATH: u8 = 4;
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
const HARD_DRIVE_LEN: u16 = 42;

/// A partition as firmware finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the table, from 1 on.
    pub number: u32,
    /// First sector of 512 bytes.
    pub start: u64,
    /// Sectors.
    pub size: u64,
    /// Its GUID, in the byte order of the disk.
    pub id: [u8; 16],
}

/// The firmware's variables, without the four bytes of attributes in front that efivarfs has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// `BootOrder`; empty when there is none.
    pub order: Vec<u8>,
    /// `Boot0000` to `BootFFFF` by their numbers.
    pub entries: BTreeMap<u16, Vec<u8>>,
}

/// A variable to write, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `BootNNNN`, which is not there yet or is one of ours.
    Entry(u16, Vec<u8>),
    /// `BootOrder`, after the entries that it names.
    Order(Vec<u8>),
}

/// The bytes of an entry that starts [`FILE`] of a partition.
pub fn entry(description: &str, partition: &Partition) -> Vec<u8> {
    let text = |s: &str| s.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let file = text(FILE);
    let mut path = vec![MEDIA, HARD_DRIVE];
    path.extend(HARD_DRIVE_LEN.to_le_bytes());
    path.extend(partition.number.to_le_bytes());
    path.extend(partition.start.to_le_bytes());
    path.extend(partition.size.to_le_bytes());
    path.extend(partition.id);
    path.extend([2, 2]); // a GPT, known by its GUID
    path.extend([MEDIA, FILE_PATH]);
    path.extend((4 + file.len() as u16).to_le_bytes());
    path.extend(file);
    path.extend(END);
    let mut bytes = ACTIVE.to_le_bytes().to_vec();
    bytes.extend((path.len() as u16).to_le_bytes());
    bytes.extend(text(description));
    bytes.extend(path);
    bytes
}

/// What has to be written so that the loader is started and the rescue system behind it; nothing when that is so.
///
/// A number that is free is taken for an entry that is missing. An entry of ours that is not right any more, because the
/// disk has another table or somebody switched it off, is written again under its number.
pub fn changes(now: &Variables, loader: &Partition, rescue: &Partition) -> Vec<Change> {
    let mut list = Vec::new();
    let mut taken: Vec<u16> = now.entries.keys().copied().collect();
    let mut number = |description: &str, partition: &Partition| -> Option<u16> {
        let wanted = entry(description, partition);
        let same = now.entries.iter().find(|(_, bytes)| **bytes == wanted);
        if let Some((number, _)) = same {
            return Some(*number);
        }
        let ours = now.entries.iter().find(|(_, bytes)| is_called(bytes, description));
        let number =
            ours.map(|(number, _)| *number).or_else(|| (0..=u16::MAX).find(|n| !taken.contains(n)))?;
        taken.push(number);
        list.push(Change::Entry(number, wanted));
        Some(number)
    };
    let (Some(loader), Some(rescue)) = (number(LOADER, loader), number(RESCUE, rescue)) else {
        return list;
    };
    // Half a number at the end is nobody's.
    let order: Vec<u16> = now.order.as_chunks::<2>().0.iter().map(|n| u16::from_le_bytes(*n)).collect();
    let wanted = ordered(&order, loader, rescue);
    if wanted != order {
        list.push(Change::Order(wanted.into_iter().flat_map(u16::to_le_bytes).collect()));
    }
    list
}

/// The rescue system right behind the loader; the loader where it is, or first.
fn ordered(order: &[u16], loader: u16, rescue: u16) -> Vec<u16> {
    let mut wanted: Vec<u16> = order.iter().copied().filter(|n| *n != rescue).collect();
    if !wanted.contains(&loader) {
        wanted.insert(0, loader);
    }
    let behind = wanted.iter().position(|n| *n == loader).map_or(0, |at| at + 1);
    wanted.insert(behind, rescue);
    wanted
}

/// Whether an entry has this description.
fn is_called(bytes: &[u8], description: &str) -> bool {
    let Some(text) = bytes.get(6..) else { return false };
    let units = text.as_chunks::<2>().0.iter().map(|u| u16::from_le_bytes(*u)).take_while(|u| *u != 0);
    units.eq(description.encode_utf16())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESP: Partition = Partition { number: 1, start: 2048, size: 16384, id: [0x11; 16] };
    const OWN: Partition = Partition { number: 6, start: 348_160, size: 65_536, id: *b"0123456789abcdef" };

    fn order(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    /// Does what [`changes`] says; how much it was.
    fn apply(now: &mut Variables) -> usize {
        let list = changes(now, &ESP, &OWN);
        let count = list.len();
        for change in list {
            match change {
                Change::Entry(number, bytes) => drop(now.entries.insert(number, bytes)),
                Change::Order(bytes) => now.order = bytes,
            }
        }
        count
    }

    #[test]
    fn an_entrys_bytes_are_these() {
        let mut golden = vec![1, 0, 0, 0, 94, 0];
        golden.extend(b"E\0v\0e\0n\0k\0e\0e\0l\0 \0r\0e\0s\0c\0u\0e\0\0\0");
        golden.extend([4, 1, 42, 0, 6, 0, 0, 0]);
        golden.extend([0, 0x50, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        golden.extend(b"0123456789abcdef\x02\x02");
        golden.extend([4, 4, 48, 0]);
        golden.extend(b"\\\0E\0F\0I\0\\\0B\0O\0O\0T\0\\\0B\0O\0O\0T\0X\x006\x004\0.\0E\0F\0I\0\0\0");
        golden.extend([0x7f, 0xff, 4, 0]);
        assert_eq!(entry(RESCUE, &OWN), golden);
    }

    #[test]
    fn a_machine_that_knows_nothing_gets_both_and_nothing_the_second_time() {
        let mut now = Variables::default();
        assert_eq!(apply(&mut now), 3);
        assert_eq!(now.order, order(&[0, 1]));
        assert_eq!(now.entries, [(0, entry(LOADER, &ESP)), (1, entry(RESCUE, &OWN))].into());
        assert_eq!(apply(&mut now), 0);
    }

    #[test]
    fn entries_of_others_keep_their_bytes_and_their_order() {
        let others: BTreeMap<u16, Vec<u8>> = [(0, vec![9; 40]), (2, vec![]), (3, vec![1, 0, 0, 0, 4])].into();
        let mut now = Variables { order: order(&[3, 0, 2]), entries: others.clone() };
        assert_eq!(apply(&mut now), 3);
        assert_eq!(now.order, order(&[1, 4, 3, 0, 2]), "free numbers are taken");
        assert!(others.iter().all(|(number, bytes)| now.entries[number] == *bytes));
        // A person prefers another disk: the loader stays where it is put, the rescue system goes with it.
        now.order = order(&[3, 0, 4, 2, 1]);
        assert_eq!(apply(&mut now), 1);
        assert_eq!(now.order, order(&[3, 0, 2, 1, 4]));
    }

    #[test]
    fn what_is_lost_or_wrong_is_made_again_under_its_number() {
        let mut whole = Variables::default();
        apply(&mut whole);
        let mut off = whole.clone();
        off.entries.get_mut(&1).expect("made")[0] = 0; // not active
        let mut moved = whole.clone();
        moved.entries.insert(1, entry(RESCUE, &ESP));
        let mut gone = whole.clone();
        gone.entries.remove(&1);
        let mut cut = whole.clone();
        cut.order.pop();
        let mut empty = whole.clone();
        empty.order.clear();
        for (name, mut now) in
            [("off", off), ("moved", moved), ("gone", gone), ("cut", cut), ("empty", empty)]
        {
            assert_eq!(apply(&mut now), 1, "{name}");
            assert_eq!(now, whole, "{name}");
        }
    }

    #[test]
    fn a_machine_without_a_free_number_is_left_alone() {
        let entries = (0..=u16::MAX).map(|n| (n, vec![])).collect();
        assert_eq!(changes(&Variables { order: vec![], entries }, &ESP, &OWN), []);
    }
}
