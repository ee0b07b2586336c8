//! The random seed that one boot leaves for the next.
//!
//! ```text
//! seed of the last boot --mixed in--> kernel's pool
//!                       --replaced on disk, synced--> and only then --credited--> pool ready
//! pool ready --drawn--> seed for the next boot (now, and once more at the shutdown)
//! ```
//! A seed is credited once: what is on the disk when it is credited is already another one. It is not credited when
//! it was drawn from a pool that was not ready, when it cannot be replaced (a disk that is full, dead or read-only),
//! or when another machine has left it: a copied disk would give two machines the same secrets. The boot's own id,
//! the machine's UUID and the time are mixed in besides, without credit.
//!
//! The file is one sector, overwritten in place: that works on a full disk, leaves no old seed behind, and a sector is
//! written whole or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::boot::block_file::{self, SECTOR};
use crate::sys;
use crate::sys::random::KernelPool;

/// The file below init's directory on STATE.
const FILE: &str = "seed";
/// What it begins with.
const MAGIC: [u8; 8] = *b"EKSEED1\0";
/// Bytes of a seed; twice what the kernel's pool holds.
const SEED_LEN: usize = 64;
/// What a seed drawn from a ready pool is worth: the kernel calls its pool ready with this many bits.
const CREDIT_BITS: i32 = 256;

/// A seed as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seed {
    /// Drawn from a pool that was ready.
    good: bool,
    /// UUID of the machine that drew it; zeros when it has none.
    machine: [u8; 16],
    bytes: [u8; SEED_LEN],
}

impl Seed {
    /// `None` for a file that holds none yet.
    fn parse(sector: &[u8; SECTOR]) -> Option<Seed> {
        let (magic, rest) = sector.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first_chunk::<8>()?;
        let (machine, rest) = rest.split_first_chunk::<16>()?;
        let seed = Seed { good: flags[0] == 1, machine: *machine, bytes: *rest.first_chunk()? };
        (*magic == MAGIC).then_some(seed)
    }

    fn sector(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let fields = [&MAGIC[..], &[u8::from(self.good); 1], &[0; 7], &self.machine, &self.bytes];
        for (to, from) in sector.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        sector
    }
}

/// The kernel's random number generator, as far as a seed needs it.
pub(crate) trait Pool {
    /// Adds bytes that count for nothing.
    fn mix(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Adds bytes that count for `bits`.
    fn credit(&mut self, bytes: &[u8], bits: i32) -> io::Result<()>;
    /// Fills `bytes` without waiting; whether the pool was ready.
    fn draw(&mut self, bytes: &mut [u8]) -> io::Result<bool>;
}

/// Uses the seed in `directory` and replaces it, with `own` mixed in: what only this boot of this machine has.
/// Returns what was done, for people. Blocks as long as the disk does.
///
/// # Errors
/// What failed and whether the old seed counts; the pool has then got what could be read, without credit.
pub(crate) fn load(
    pool: &mut dyn Pool,
    directory: &Path,
    machine: [u8; 16],
    own: &[u8],
) -> Result<String, String> {
    let io = |what: &'static str| move |e: io::Error| format!("{what}: {}", sys::errno_text(&e));
    pool.mix(own).map_err(io("mixing in failed"))?;
    let file = block_file::open(&directory.join(FILE)).map_err(io("no seed file"))?;
    let old = Seed::parse(&block_file::read(&file).map_err(io("unreadable seed"))?);
    if let Some(old) = &old {
        pool.mix(&old.bytes).map_err(io("mixing in failed"))?;
    }
    let kept = replace(pool, &file, machine).map_err(io("not credited, the seed cannot be replaced"))?;
    let (said, credited) = match &old {
        None => ("the first one is made", false),
        Some(old) if !old.good => ("mixed in without credit: it was drawn too early", false),
        Some(old) if old.machine != machine => {
            ("mixed in without credit: another machine has left it", false)
        }
        Some(old) => {
            pool.credit(&old.bytes, CREDIT_BITS).map_err(io("not credited"))?;
            ("credited", true)
        }
    };
    if credited && !kept {
        // The pool is ready now, it was not when the old seed was replaced.
        replace(pool, &file, machine).map_err(io("credited, but none is left for the next boot"))?;
    }
    Ok(said.to_owned())
}

/// Leaves a seed for the next boot. Blocks as long as the disk does.
///
/// # Errors
/// What failed; the old one stays.
pub(crate) fn save(pool: &mut dyn Pool, directory: &Path, machine: [u8; 16]) -> Result<(), String> {
    block_file::open(&directory.join(FILE))
        .and_then(|file| replace(pool, &file, machine))
        .map(drop)
        .map_err(|e| format!("no seed for the next boot: {}", sys::errno_text(&e)))
}

/// Writes a new seed over the old one; it is on the disk when this returns. Whether it is a good one.
fn replace(pool: &mut dyn Pool, file: &File, machine: [u8; 16]) -> io::Result<bool> {
    let mut seed = Seed { good: false, machine, bytes: [0; SEED_LEN] };
    seed.good = pool.draw(&mut seed.bytes)?;
    file.write_all_at(&seed.sector(), 0)?;
    file.sync_data()?;
    Ok(seed.good)
}

impl Pool for KernelPool {
    fn mix(&mut self, bytes: &[u8]) -> io::Result<()> {
        KernelPool::mix(self, bytes)
    }

    fn credit(&mut self, bytes: &[u8], bits: i32) -> io::Result<()> {
        KernelPool::credit(self, bytes, bits)
    }

    fn draw(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        sys::random::draw(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;
    use std::fs;

    /// Remembers what it was given, and what lay on the disk when it was credited.
    struct FakePool {
        file: std::path::PathBuf,
        ready: bool,
        drawn: u8,
        mixed: Vec<Vec<u8>>,
        credited: Vec<(Vec<u8>, i32)>,
    }

    impl Pool for FakePool {
        fn mix(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.mixed.push(bytes.to_owned());
            Ok(())
        }

        fn credit(&mut self, bytes: &[u8], bits: i32) -> io::Result<()> {
            let on_disk = fs::read(&self.file).unwrap();
            assert_ne!(on_disk[32..96], *bytes, "credited before it was replaced");
            self.credited.push((bytes.to_owned(), bits));
            self.ready = true;
            Ok(())
        }

        fn draw(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
            self.drawn += 1;
            bytes.fill(self.drawn);
            Ok(self.ready)
        }
    }

    fn pool(dir: &TestDir) -> FakePool {
        FakePool {
            file: dir.path().join(FILE),
            ready: false,
            drawn: 0,
            mixed: Vec::new(),
            credited: Vec::new(),
        }
    }

    const ME: [u8; 16] = [1; 16];

    fn put(dir: &TestDir, seed: &Seed) {
        let file = block_file::open(&dir.path().join(FILE)).unwrap();
        file.write_all_at(&seed.sector(), 0).unwrap();
    }

    fn on_disk(dir: &TestDir) -> Seed {
        Seed::parse(&block_file::read(&File::open(dir.path().join(FILE)).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_good_seed_is_replaced_then_credited_then_followed_by_a_good_one() {
        let dir = TestDir::new();
        put(&dir, &Seed { good: true, machine: ME, bytes: [9; SEED_LEN] });
        let mut pool = pool(&dir);
        assert_eq!(load(&mut pool, dir.path(), ME, b"boot").as_deref(), Ok("credited"));
        assert_eq!(pool.credited, [(vec![9; SEED_LEN], 256)]);
        assert_eq!(pool.mixed, [b"boot".to_vec(), vec![9; SEED_LEN]]);
        assert_eq!(on_disk(&dir), Seed { good: true, machine: ME, bytes: [2; SEED_LEN] });
        // Once: another start of the same disk finds another seed.
        assert_eq!(load(&mut pool, dir.path(), ME, b"boot").as_deref(), Ok("credited"));
        assert_eq!(pool.credited[1].0, vec![2; SEED_LEN]);
    }

    #[test]
    fn what_may_not_count_is_mixed_in_only() {
        let old = Seed { good: true, machine: ME, bytes: [9; SEED_LEN] };
        let cases = [
            (None, ME, "the first one is made"),
            (
                Some(Seed { good: false, ..old.clone() }),
                ME,
                "mixed in without credit: it was drawn too early",
            ),
            (Some(old), [2; 16], "mixed in without credit: another machine has left it"),
        ];
        for (seed, machine, said) in cases {
            let dir = TestDir::new();
            if let Some(seed) = &seed {
                put(&dir, seed);
            }
            let mut pool = pool(&dir);
            assert_eq!(load(&mut pool, dir.path(), machine, b"").as_deref(), Ok(said));
            assert_eq!(pool.credited, []);
            assert_eq!(pool.mixed.len(), 1 + usize::from(seed.is_some()));
            assert_eq!(on_disk(&dir), Seed { good: false, machine, bytes: [1; SEED_LEN] });
        }
    }

    #[test]
    fn a_seed_that_cannot_be_replaced_is_not_credited() {
        let dir = TestDir::new();
        let mut pool = pool(&dir);
        // A directory in its place: nothing can be written there, whoever tries.
        fs::create_dir(dir.path().join(FILE)).unwrap();
        let error = load(&mut pool, dir.path(), ME, b"x").unwrap_err();
        assert_eq!(error, "no seed file: Is a directory");
        assert_eq!((pool.credited.len(), pool.mixed.len()), (0, 1));
        assert!(save(&mut pool, dir.path(), ME).unwrap_err().starts_with("no seed for the next boot: "));
    }

    #[test]
    fn the_shutdown_leaves_a_seed() {
        let dir = TestDir::new();
        let mut pool = pool(&dir);
        pool.ready = true;
        save(&mut pool, dir.path(), ME).unwrap();
        assert_eq!(on_disk(&dir), Seed { good: true, machine: ME, bytes: [1; SEED_LEN] });
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap()[..16], *b"EKSEED1\0\x01\0\0\0\0\0\0\0");
    }
}
