//! A medium whose power is cut on purpose, for tests.
//!
//! ```text
//! write ---> cache (sectors) ---sync---> platter
//!              |
//!              +-- power cut: any sectors of the cache reach the platter, in any order, one of them torn anywhere
//! ```
//! A disk promises little: what was not synced may be lost, may have been written in another order than asked for, and
//! the sector under the head when the power went may hold new bytes at its front and old ones behind.
//! [`CrashDisk::survivors`] gives every image that can be found afterwards, or a fair choice of them. [`CrashFolder`] does
//! the same for files that grow and change their names.

mod folder;

pub use folder::{CrashFile, CrashFolder, Fault};

use crate::medium::Medium;
use std::io;

/// Bytes a disk writes at once at best.
pub const SECTOR: usize = 512;

/// Cached sectors up to which [`CrashDisk::survivors`] tries every subset; beyond, prefixes, suffixes and single ones.
const ALL_SUBSETS_MAX: usize = 8;

/// Where the power goes: counted in bytes written, a sync counts as one.
#[derive(Clone, Debug)]
pub struct CrashDisk {
    platter: Vec<u8>,
    /// Sector number and the bytes it is to have, in the order of writing.
    cache: Vec<(usize, Vec<u8>)>,
    /// Steps until the power goes; `None`: it stays.
    fuel: Option<usize>,
    used: usize,
}

impl CrashDisk {
    /// A disk with `image` on its platter whose power goes after `fuel` steps.
    pub fn new(image: Vec<u8>, fuel: Option<usize>) -> CrashDisk {
        CrashDisk { platter: image, cache: Vec::new(), fuel, used: 0 }
    }

    /// The same disk with its power back on and its cache kept, as after the death of a process: only it knew of a cut.
    pub fn powered(mut self) -> CrashDisk {
        self.fuel = None;
        self
    }

    /// Steps used so far: a run without a cut tells how many cuts there are to try.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Spends up to `wanted` steps and tells how many there were.
    fn spend(&mut self, wanted: usize) -> usize {
        let left = self.fuel.map_or(wanted, |fuel| fuel.saturating_sub(self.used));
        let got = wanted.min(left);
        self.used += got;
        got
    }

    /// What the platter may hold after the power has gone.
    pub fn survivors(&self) -> Vec<Vec<u8>> {
        let n = self.cache.len();
        let mut images = Vec::new();
        for choice in &choices(n) {
            let mut image = self.platter.clone();
            for i in choice {
                self.land(&mut image, *i, SECTOR);
            }
            // One more sector was under the head.
            for torn in (0..n).filter(|i| !choice.contains(i)) {
                for at in [1, 4, 8, 16, 20, 28, SECTOR / 2, SECTOR - 1] {
                    let mut image = image.clone();
                    self.land(&mut image, torn, at);
                    images.push(image);
                }
            }
            images.push(image);
        }
        images
    }

    /// Puts the first `len` bytes of cached sector `i` onto `image`.
    fn land(&self, image: &mut [u8], i: usize, len: usize) {
        let (sector, bytes) = &self.cache[i];
        let start = sector * SECTOR;
        let len = len.min(bytes.len());
        image[start..start + len].copy_from_slice(&bytes[..len]);
    }

    fn gone() -> io::Error {
        io::Error::other("power cut")
    }
}

/// Which of `n` things may have reached the platter: every subset of few, of many a fair choice.
fn choices(n: usize) -> Vec<Vec<usize>> {
    let mut choices: Vec<Vec<usize>> = vec![];
    if n <= ALL_SUBSETS_MAX {
        choices.extend((0..1usize << n).map(|bits| (0..n).filter(|i| bits >> i & 1 == 1).collect()));
    } else {
        choices.extend((0..=n).map(|cut| (0..cut).collect()));
        choices.extend((1..n).map(|cut| (cut..n).collect()));
        choices.extend((0..n).map(|one| vec![one]));
    }
    choices
}

impl Medium for CrashDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut seen = self.platter.clone();
        for i in 0..self.cache.len() {
            self.land(&mut seen, i, SECTOR);
        }
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let Some(found) = seen.get(start..).and_then(|rest| rest.get(..buffer.len())) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        if start + data.len() > self.platter.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let got = self.spend(data.len());
        let mut seen = self.platter.clone();
        for i in 0..self.cache.len() {
            self.land(&mut seen, i, SECTOR);
        }
        seen[start..start + got].copy_from_slice(&data[..got]);
        if got > 0 {
            for sector in start / SECTOR..=(start + got - 1) / SECTOR {
                let end = ((sector + 1) * SECTOR).min(seen.len());
                self.cache.push((sector, seen[sector * SECTOR..end].to_vec()));
            }
        }
        if got < data.len() { Err(Self::gone()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.spend(1) == 0 {
            return Err(Self::gone());
        }
        let mut platter = std::mem::take(&mut self.platter);
        for i in 0..self.cache.len() {
            self.land(&mut platter, i, SECTOR);
        }
        self.platter = platter;
        self.cache.clear();
        Ok(())
    }
}
