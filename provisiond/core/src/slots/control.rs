//! The loader's two environments, as a shell reaches them. The only back-end today is EFI Boot Guard's `BGENV.DAT`.
//!
//! An environment is written in place and only where it changes: two or three sectors. A write that is torn leaves a
//! checksum that does not hold, and the loader uses the other environment.

use proto::bgenv::{Environment, EnvironmentError, SIZE};
use proto::slot::{Pair, Slot};

/// What is written at once: the smallest sector of a disk.
pub const SECTOR: usize = 512;

/// Both environments as they were read, or what is wrong with them.
pub type Environments = Pair<Result<Environment, EnvironmentError>>;

/// Two files of [`SIZE`] bytes on a disk. A shell reaches its disk by them, a test its memory.
pub trait SlotControl {
    /// What can go wrong.
    type Error: core::fmt::Display;

    /// All bytes of the environment of `slot`, from the disk and not from a cache above it.
    fn read(&mut self, slot: Slot) -> Result<Vec<u8>, Self::Error>;

    /// Replaces the bytes from `offset` on. Lost or torn by a power cut until [`SlotControl::sync`] has returned.
    fn write(&mut self, slot: Slot, offset: usize, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Returns once all that was written is on the disk.
    fn sync(&mut self, slot: Slot) -> Result<(), Self::Error>;
}

/// Reads both environments back.
pub fn read_environments<C: SlotControl>(control: &mut C) -> Environments {
    Pair::of(|slot| match control.read(slot) {
        Ok(bytes) => Environment::decode(&bytes),
        Err(error) => Err(EnvironmentError::Unreadable(error.to_string())),
    })
}

/// Writes the sectors of an environment that are to change. The caller syncs and reads back.
pub fn write_environment<C: SlotControl>(
    control: &mut C,
    slot: Slot,
    environment: &Environment,
) -> Result<(), C::Error> {
    let wanted = environment.encode();
    let there = control.read(slot)?;
    if there.len() != SIZE {
        return control.write(slot, 0, &wanted);
    }
    for (at, (new, old)) in wanted.chunks(SECTOR).zip(there.chunks(SECTOR)).enumerate() {
        if new != old {
            control.write(slot, at * SECTOR, new)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory {
        files: Pair<Vec<u8>>,
        writes: Vec<(Slot, usize, usize)>,
    }

    impl SlotControl for Memory {
        type Error = &'static str;

        fn read(&mut self, slot: Slot) -> Result<Vec<u8>, &'static str> {
            if self.files[slot].is_empty() { Err("no such file") } else { Ok(self.files[slot].clone()) }
        }

        fn write(&mut self, slot: Slot, offset: usize, bytes: &[u8]) -> Result<(), &'static str> {
            self.writes.push((slot, offset, bytes.len()));
            self.files[slot].get_mut(offset..offset + bytes.len()).ok_or("outside")?.copy_from_slice(bytes);
            Ok(())
        }

        fn sync(&mut self, _: Slot) -> Result<(), &'static str> {
            Ok(())
        }
    }

    #[test]
    fn only_what_changes_is_written() {
        let mut memory = Memory::default();
        let a = Environment::committed(Slot::A.name(), 30, 1);
        memory.files.a = a.encode();
        let both = read_environments(&mut memory);
        assert_eq!(both.a, Ok(a.clone()));
        assert_eq!(both.b.unwrap_err().to_string(), "no such file");
        let raised = Environment { revision: 2, ..a };
        write_environment(&mut memory, Slot::A, &raised).unwrap();
        assert_eq!(memory.writes, [(Slot::A, 1024, 512), (Slot::A, 132_096, 8)]);
        assert_eq!(read_environments(&mut memory).a, Ok(raised.clone()));
        write_environment(&mut memory, Slot::A, &raised).unwrap();
        assert_eq!(memory.writes.len(), 2);
    }
}
