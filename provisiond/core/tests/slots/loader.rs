//! What EFI Boot Guard 0.13 does at each boot with the two environments, as its source has it (`env/fatvars.c`,
//! `main.c`), oddities included:
//! - it reads a damaged environment's fields nevertheless, and starts environment 0 when no revision is above 0;
//! - the one it falls back to is started whatever its state is;
//! - it writes the whole file, in place.

use proto::bgenv::{SIZE, State};
use proto::slot::{Pair, Slot};

const IN_PROGRESS: usize = 1020;
const STATE: usize = 1021;
const REVISION: usize = 1024;
const CRC: usize = SIZE - 4;

/// What a boot comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The slot whose file is named by the environment; nothing when the name is garbage.
    pub(crate) slot: Option<Slot>,
    /// The environment that is to be written before the slot is started.
    pub(crate) write: Option<(Slot, Vec<u8>)>,
    /// The slot that is started is on trial: when its file does not load, the machine is reset.
    pub(crate) trial: bool,
}

/// One boot.
pub(crate) fn choose(files: &Pair<Vec<u8>>) -> Choice {
    let revision = |slot: Slot| number(&files[slot][REVISION..]);
    let valid = |slot: Slot| crc32fast::hash(&files[slot][..CRC]) == number(&files[slot][CRC..]);
    let (mut latest, mut before) = ((0, Slot::A), (0, Slot::A));
    for slot in Slot::BOTH.into_iter().filter(|slot| valid(*slot)) {
        if revision(slot) > latest.0 {
            before = latest;
            latest = (revision(slot), slot);
        } else if revision(slot) > before.0 {
            before = (revision(slot), slot);
        }
    }
    let (mut started, mut write) = (latest.1, None);
    let file = &files[latest.1];
    let mut trial = file[STATE] == State::Testing as u8;
    if file[IN_PROGRESS] == 1 {
        started = before.1;
    } else if file[STATE] == State::Testing as u8 {
        write = Some((latest.1, changed(file, State::Failed, 0)));
        (started, trial) = (before.1, false);
    } else if file[STATE] == State::Installed as u8 {
        write = Some((latest.1, changed(file, State::Testing, revision(latest.1))));
        trial = true;
    }
    Choice { slot: named(&files[started]), write, trial }
}

fn changed(file: &[u8], state: State, revision: u32) -> Vec<u8> {
    let mut file = file.to_vec();
    file[STATE] = state as u8;
    file[REVISION..REVISION + 4].copy_from_slice(&revision.to_le_bytes());
    let crc = crc32fast::hash(&file[..CRC]);
    file[CRC..].copy_from_slice(&crc.to_le_bytes());
    file
}

/// The slot of `L:SLOT-A:linux.efi`.
fn named(file: &[u8]) -> Option<Slot> {
    let text: Vec<u8> = file.chunks(2).map(|unit| unit[0]).take_while(|byte| *byte != 0).collect();
    Slot::BOTH.into_iter().find(|slot| text == format!("L:{slot}:linux.efi").as_bytes())
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::bgenv::Environment;

    fn file(slot: Slot, state: State, revision: u32) -> Vec<u8> {
        Environment { state, ..Environment::committed(slot.name(), 30, revision) }.encode()
    }

    fn boot(files: &mut Pair<Vec<u8>>) -> (Option<Slot>, Option<Environment>) {
        let choice = choose(files);
        let wrote = choice.write.map(|(slot, bytes)| {
            let environment = Environment::decode(&bytes).expect("the loader writes good ones");
            files[slot] = bytes;
            environment
        });
        (choice.slot, wrote)
    }

    /// The cycle that was seen on a real loader.
    #[test]
    fn a_trial_is_started_once_and_then_given_up() {
        let mut files = Pair { a: file(Slot::A, State::Ok, 1), b: file(Slot::B, State::Installed, 2) };
        let (slot, wrote) = boot(&mut files);
        assert_eq!((slot, wrote.map(|e| (e.state, e.revision))), (Some(Slot::B), Some((State::Testing, 2))));
        let confirmed = Pair { b: file(Slot::B, State::Ok, 2), ..files.clone() };
        let (slot, wrote) = boot(&mut files);
        assert_eq!((slot, wrote.map(|e| (e.state, e.revision))), (Some(Slot::A), Some((State::Failed, 0))));
        assert_eq!(boot(&mut files), (Some(Slot::A), None));
        assert_eq!(boot(&mut confirmed.clone()), (Some(Slot::B), None));
    }

    #[test]
    fn what_is_damaged_or_in_progress_is_passed_over() {
        let good = Pair { a: file(Slot::A, State::Ok, 1), b: file(Slot::B, State::Ok, 2) };
        let mut files = good.clone();
        files.b[STATE] ^= 1;
        assert_eq!(boot(&mut files), (Some(Slot::A), None));
        files.a[0] ^= 1;
        assert_eq!(boot(&mut files), (None, None), "environment 0 is tried with what is left of it");
        let mut files = good;
        let progress = Environment { in_progress: true, ..Environment::committed("SLOT-B", 30, 2) };
        files.b = progress.encode();
        assert_eq!(boot(&mut files), (Some(Slot::A), None));
    }
}
