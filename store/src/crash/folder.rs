//! A directory with files whose power is cut on purpose, or whose disk fails, for tests.
//!
//! ```text
//! write, grow, rename, ... ---> pending ---sync of the file or of the directory---> durable
//!                                 |
//!                                 +-- power cut: any of them, in any order, one sector torn or ruined
//! ```
//! A length that became durable before its bytes shows whatever lay on the disk before: [`CrashFolder::set_stale`]. A
//! rename is one step: both names change or none. Locks are not modelled.

use super::choices;
use crate::folder::{Folder, IDENTITY_LEN};
use crate::medium::{Growing, Medium};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::rc::Rc;

/// What a sector under the head reads as when the drive lost it whole.
const RUINED: u8 = 0xa5;
/// Bytes of a torn sector that reached the platter: within and between the fields of heads, and beyond.
const TORN_AT: [usize; 8] = [1, 4, 8, 24, 32, 40, 200, 511];
/// Where file numbers that random choices are made of come from.
const LCG: (u64, u64) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);

/// A step that fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The step that fails; see [`CrashFolder::used`].
    pub step: usize,
    /// With which error of the kernel.
    pub errno: i32,
    /// Whether all later ones fail, too.
    pub lasting: bool,
}

#[derive(Clone, Debug)]
enum Pending {
    Sector { file: usize, index: usize, bytes: Vec<u8> },
    Length { file: usize, len: usize },
    Names(Vec<(OsString, Option<usize>)>),
}

#[derive(Clone, Debug, Default)]
struct State {
    files: Vec<Vec<u8>>,
    names: BTreeMap<OsString, usize>,
}

impl State {
    /// Lets the first `len` bytes of `pending` land. New bytes of a file are `fill` where it has some.
    fn land(&mut self, pending: &Pending, sector: usize, len: usize, fill: &[u8]) {
        match pending {
            Pending::Sector { file, index, bytes } => {
                let (at, len) = (index * sector, len.min(bytes.len()));
                // A sector beyond a length that was lost is lost with it.
                if let Some(place) = self.files[*file].get_mut(at..at + len) {
                    place.copy_from_slice(&bytes[..len]);
                }
            }
            Pending::Length { file, len } => {
                let old = self.files[*file].len();
                let bytes = (old..*len).map(|at| fill.get(at).copied().unwrap_or(0));
                self.files[*file].extend(bytes);
                self.files[*file].truncate(*len);
            }
            Pending::Names(changes) => {
                for (name, file) in changes {
                    match file {
                        Some(file) => self.names.insert(name.clone(), *file),
                        None => self.names.remove(name),
                    };
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
struct World {
    sector: usize,
    durable: State,
    /// What a process sees.
    seen: State,
    pending: Vec<Pending>,
    fuel: Option<usize>,
    fault: Option<Fault>,
    used: usize,
    unreadable: Vec<(OsString, u64)>,
    stale: Vec<u8>,
    identities: u8,
}

impl World {
    fn step(&mut self) -> io::Result<()> {
        if self.fuel.is_some_and(|fuel| self.used >= fuel) {
            return Err(io::Error::other("power cut"));
        }
        let step = self.used;
        self.used += 1;
        match self.fault {
            Some(Fault { step: at, errno, lasting }) if at == step || lasting && at < step => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    fn pend(&mut self, pending: Pending) -> io::Result<()> {
        self.step()?;
        self.seen.land(&pending, self.sector, self.sector, &[]);
        self.pending.push(pending);
        Ok(())
    }

    /// Makes durable what `mine` picks.
    fn sync(&mut self, mine: impl Fn(&Pending) -> bool) -> io::Result<()> {
        self.step()?;
        let (synced, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(mine);
        for pending in &synced {
            self.durable.land(pending, self.sector, self.sector, &[]);
        }
        self.pending = rest;
        Ok(())
    }

    /// The world after a power cut in which those of `choice` landed and the first bytes of one more.
    fn survivor(&self, choice: &[usize], torn: Option<(usize, usize)>) -> CrashFolder {
        let mut state = self.durable.clone();
        for i in choice {
            state.land(&self.pending[*i], self.sector, self.sector, &self.stale);
        }
        if let Some((i, at)) = torn {
            match (&self.pending[i], at < self.sector) {
                (pending, true) => state.land(pending, self.sector, at, &[]),
                (Pending::Sector { file, index, bytes }, false) => {
                    let ruined = vec![RUINED; bytes.len()];
                    let ruined = Pending::Sector { file: *file, index: *index, bytes: ruined };
                    state.land(&ruined, self.sector, self.sector, &[]);
                }
                _ => {}
            }
        }
        CrashFolder::of(World {
            durable: state.clone(),
            seen: state,
            pending: vec![],
            fuel: None,
            fault: None,
            used: 0,
            ..self.clone_settings()
        })
    }

    fn clone_settings(&self) -> World {
        World {
            sector: self.sector,
            durable: State::default(),
            seen: State::default(),
            pending: vec![],
            fuel: None,
            fault: None,
            used: 0,
            unreadable: self.unreadable.clone(),
            stale: self.stale.clone(),
            identities: self.identities,
        }
    }
}

/// A directory of the test's own. Clones are the same directory; [`CrashFolder::fork`] makes another one.
#[derive(Clone, Debug)]
pub struct CrashFolder {
    world: Rc<RefCell<World>>,
}

impl CrashFolder {
    /// An empty directory on a disk that writes `sector` bytes at once.
    pub fn new(sector: usize) -> CrashFolder {
        CrashFolder::of(World {
            sector,
            durable: State::default(),
            seen: State::default(),
            pending: vec![],
            fuel: None,
            fault: None,
            used: 0,
            unreadable: vec![],
            stale: vec![],
            identities: 0,
        })
    }

    fn of(world: World) -> CrashFolder {
        CrashFolder { world: Rc::new(RefCell::new(world)) }
    }

    /// The same directory as it is now, with its own future; the power is on, the disk sound and the steps count anew. What
    /// was not synced is still not: this is what the next process finds when one was killed.
    pub fn fork(&self) -> CrashFolder {
        let world = World { fuel: None, fault: None, used: 0, ..self.world.borrow().clone() };
        CrashFolder::of(world)
    }

    /// The power goes after `steps` more steps: a sector written, a length, name or sync is one.
    pub fn cut_after(&self, steps: usize) {
        let mut world = self.world.borrow_mut();
        world.fuel = Some(world.used + steps);
    }

    /// Steps so far.
    pub fn used(&self) -> usize {
        self.world.borrow().used
    }

    /// Makes a step fail, or none any more.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.world.borrow_mut().fault = fault;
    }

    /// Makes reads of the byte at `offset` of `name` fail.
    pub fn set_unreadable(&self, name: &OsStr, offset: u64) {
        self.world.borrow_mut().unreadable.push((name.to_owned(), offset));
    }

    /// What lay on the disk where a file grows, by offset in the file.
    pub fn set_stale(&self, bytes: Vec<u8>) {
        self.world.borrow_mut().stale = bytes;
    }

    /// The bytes of `name` as a process sees them.
    pub fn bytes(&self, name: &OsStr) -> Option<Vec<u8>> {
        let world = self.world.borrow();
        world.seen.names.get(name).map(|file| world.seen.files[*file].clone())
    }

    /// Puts `bytes` under `name`, durably: what a test begins with.
    pub fn set_bytes(&self, name: &OsStr, bytes: Vec<u8>) {
        let mut world = self.world.borrow_mut();
        for state in [0, 1] {
            let state = if state == 0 { &mut world.durable } else { &mut world.seen };
            state.files.push(bytes.clone());
            state.names.insert(name.to_owned(), state.files.len() - 1);
        }
    }

    /// The names there are.
    pub fn names(&self) -> Vec<OsString> {
        self.world.borrow().seen.names.keys().cloned().collect()
    }

    /// Visits what may be found after a power cut now: every one, or a fair choice of very many.
    pub fn survivors(&self, mut visit: impl FnMut(CrashFolder)) {
        let world = self.world.borrow();
        let n = world.pending.len();
        for choice in choices(n) {
            visit(world.survivor(&choice, None));
            // One more sector was under the head: the first or the last of those that did not make it.
            let missing = || {
                (0..n).filter(|i| !choice.contains(i) && matches!(world.pending[*i], Pending::Sector { .. }))
            };
            let (first, last) = (missing().next(), missing().next_back());
            for torn in first.into_iter().chain(last.filter(|last| Some(*last) != first)) {
                for at in TORN_AT.into_iter().chain([world.sector]) {
                    visit(world.survivor(&choice, Some((torn, at))));
                }
            }
        }
    }

    /// One of what may be found after a power cut now, picked by `seed`.
    pub fn survivor(&self, seed: u64) -> CrashFolder {
        let world = self.world.borrow();
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(LCG.0).wrapping_add(LCG.1);
            (state >> 33) as usize
        };
        let n = world.pending.len();
        let often = 1 + random() % 8;
        let choice: Vec<usize> = (0..n).filter(|_| random() % 8 < often).collect();
        let missing: Vec<usize> = (0..n)
            .filter(|i| !choice.contains(i) && matches!(world.pending[*i], Pending::Sector { .. }))
            .collect();
        let at = [TORN_AT[random() % TORN_AT.len()], world.sector][random() % 2];
        let torn = (!missing.is_empty()).then(|| (missing[random() % missing.len()], at));
        world.survivor(&choice, torn)
    }
}

impl Folder for CrashFolder {
    type File = CrashFile;

    fn open(&mut self, name: &OsStr) -> io::Result<Option<CrashFile>> {
        let mut world = self.world.borrow_mut();
        let Some(file) = world.seen.names.get(name).copied() else { return Ok(None) };
        world.sync(|pending| matches!(pending, Pending::Names(_)))?;
        Ok(Some(CrashFile { world: self.world.clone(), file }))
    }

    fn has(&mut self, name: &OsStr) -> io::Result<bool> {
        Ok(self.world.borrow().seen.names.contains_key(name))
    }

    fn create(&mut self, name: &OsStr) -> io::Result<CrashFile> {
        let mut world = self.world.borrow_mut();
        let file = match world.seen.names.get(name).copied() {
            Some(file) => {
                world.pend(Pending::Length { file, len: 0 })?;
                file
            }
            None => {
                world.step()?;
                let file = world.seen.files.len();
                world.seen.files.push(vec![]);
                world.durable.files.push(vec![]);
                world.pend(Pending::Names(vec![(name.to_owned(), Some(file))]))?;
                file
            }
        };
        Ok(CrashFile { world: self.world.clone(), file })
    }

    fn rename(&mut self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        let file = world.seen.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        world.pend(Pending::Names(vec![(from.to_owned(), None), (to.to_owned(), Some(file))]))
    }

    fn remove(&mut self, name: &OsStr) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        if !world.seen.names.contains_key(name) {
            return Ok(());
        }
        world.pend(Pending::Names(vec![(name.to_owned(), None)]))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.world.borrow_mut().sync(|pending| matches!(pending, Pending::Names(_)))
    }

    fn identity(&mut self) -> io::Result<[u8; IDENTITY_LEN]> {
        let mut world = self.world.borrow_mut();
        world.identities += 1;
        Ok([world.identities; IDENTITY_LEN])
    }
}

/// An open file of a [`CrashFolder`].
#[derive(Debug)]
pub struct CrashFile {
    world: Rc<RefCell<World>>,
    file: usize,
}

impl Medium for CrashFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.world.borrow().seen.files[self.file].len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let world = self.world.borrow();
        let end = offset + buffer.len() as u64;
        let bad = world
            .unreadable
            .iter()
            .any(|(name, at)| world.seen.names.get(name) == Some(&self.file) && (offset..end).contains(at));
        if bad {
            return Err(io::Error::other("unreadable"));
        }
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = world.seen.files[self.file].get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut after = world.seen.files[self.file].clone();
        after.get_mut(start..start + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        let sector = world.sector;
        for index in start / sector..(start + data.len()).div_ceil(sector) {
            let bytes = after[index * sector..((index + 1) * sector).min(after.len())].to_vec();
            world.pend(Pending::Sector { file: self.file, index, bytes })?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let file = self.file;
        self.world.borrow_mut().sync(|pending| match pending {
            Pending::Sector { file: of, .. } | Pending::Length { file: of, .. } => *of == file,
            Pending::Names(_) => false,
        })
    }
}

impl Growing for CrashFile {
    fn grow(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut world = self.world.borrow_mut();
        if len <= world.seen.files[self.file].len() {
            return Ok(());
        }
        world.pend(Pending::Length { file: self.file, len })
    }
}
