//! The loader's two files on the disk. All but a few sectors of one is zeros: they are kept short, and what the code
//! under test makes of them is remembered, so that thousands of machines are booted in a second.

use crate::loader::{self, Choice};
use proto::bgenv::{Environment, SIZE};
use proto::slot::{Pair, Slot};
use provisiond_core::slots::control::{SECTOR, read_environments, write_environment};
use provisiond_core::slots::{Environments, SlotControl};
use std::cell::RefCell;
use std::collections::HashMap;

const HEAD: usize = 3 * SECTOR;
/// Where the last sector begins; the file ends within it.
const TAIL_AT: usize = SIZE / SECTOR * SECTOR;
const TAIL: usize = SIZE - TAIL_AT;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    head: [u8; HEAD],
    tail: [u8; TAIL],
}

impl File {
    pub(crate) fn of(environment: &Environment) -> File {
        File::cut(&environment.encode())
    }

    fn cut(bytes: &[u8]) -> File {
        assert!(bytes[HEAD..TAIL_AT].iter().all(|byte| *byte == 0), "user variables are unused");
        let (head, _) = bytes.split_first_chunk().expect("it has sectors");
        let (_, tail) = bytes.split_last_chunk().expect("it has sectors");
        File { head: *head, tail: *tail }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        bytes[..HEAD].copy_from_slice(&self.head);
        bytes[TAIL_AT..].copy_from_slice(&self.tail);
        bytes
    }

    /// The bytes of the sector at `at` that belong to the file.
    pub(crate) fn sector(&mut self, at: usize) -> &mut [u8] {
        if at == TAIL_AT { &mut self.tail } else { &mut self.head[at..at + SECTOR] }
    }
}

/// A sector of a file and what is to be in it.
pub(crate) type SectorWrite = (usize, Vec<u8>);

/// What the loader does.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) slot: Option<Slot>,
    pub(crate) trial: bool,
    /// The file that is written, and its sectors that change; the first one as well, which has the name and could be
    /// torn like any other.
    pub(crate) write: Option<(Slot, Vec<SectorWrite>)>,
}

#[derive(Default)]
struct Memory {
    read: HashMap<Key, Environments>,
    load: HashMap<Key, Load>,
    write: HashMap<(File, String), Vec<SectorWrite>>,
}

type Key = (File, File);

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// The files as a shell reaches them.
struct Reached {
    files: Pair<Vec<u8>>,
    writes: Vec<SectorWrite>,
}

impl SlotControl for Reached {
    type Error = &'static str;

    fn read(&mut self, slot: Slot) -> Result<Vec<u8>, &'static str> {
        Ok(self.files[slot].clone())
    }

    fn write(&mut self, _: Slot, offset: usize, bytes: &[u8]) -> Result<(), &'static str> {
        self.writes.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, _: Slot) -> Result<(), &'static str> {
        Ok(())
    }
}

fn key(files: &Pair<File>) -> Key {
    (files.a.clone(), files.b.clone())
}

fn reached(files: &Pair<File>) -> Reached {
    Reached { files: Pair { a: files.a.bytes(), b: files.b.bytes() }, writes: Vec::new() }
}

/// [`read_environments`].
pub(crate) fn read(files: &Pair<File>) -> Environments {
    let make = || read_environments(&mut reached(files));
    MEMORY.with_borrow_mut(|memory| memory.read.entry(key(files)).or_insert_with(make).clone())
}

/// [`write_environment`]: the sectors it writes.
pub(crate) fn write(files: &Pair<File>, slot: Slot, environment: &Environment) -> Vec<SectorWrite> {
    let make = || {
        let mut reached = reached(files);
        write_environment(&mut reached, slot, environment).expect("memory takes it");
        reached.writes
    };
    let key = (files[slot].clone(), format!("{environment:?}"));
    MEMORY.with_borrow_mut(|memory| memory.write.entry(key).or_insert_with(make).clone())
}

/// [`loader::choose`].
pub(crate) fn load(files: &Pair<File>) -> Load {
    let make = || {
        let bytes = reached(files).files;
        let Choice { slot, write, trial } = loader::choose(&bytes);
        let write = write.map(|(slot, new)| {
            let sectors = new.chunks(SECTOR).zip(bytes[slot].chunks(SECTOR)).enumerate();
            let changed = sectors.filter(|(at, (new, old))| *at == 0 || new != old);
            (slot, changed.map(|(at, (new, _))| (at * SECTOR, new.to_vec())).collect())
        });
        Load { slot, trial, write }
    };
    MEMORY.with_borrow_mut(|memory| memory.load.entry(key(files)).or_insert_with(make).clone())
}
