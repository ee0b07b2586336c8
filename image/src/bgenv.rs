//! EFI Boot Guard's environment: which file of which slot to start, and how long the watchdog waits.
//!
//! `BGENV.DAT`, little endian, 132,104 bytes:
//! ```text
//! 0       510  kernel file, UTF-16, NUL padded     "L:SLOT-A:linux.efi"
//! 510     510  kernel arguments, UTF-16            empty: the boot file's own command line counts
//! 1020      1  in progress                         1 = being written, never started
//! 1021      1  state: 0 ok, 1 installed, 2 testing, 3 failed
//! 1022      2  watchdog, seconds                   0 = do not arm
//! 1024      4  revision                            the highest is started; 0 = never
//! 1028 131072  user variables                      unused
//! 132100    4  CRC-32 of everything before
//! ```

/// Size of the file.
pub const SIZE: usize = 132_104;
/// Name of the file in the root of its partition.
pub const FILE_NAME: &str = "BGENV.DAT";
/// UTF-16 units of each of the two strings, including the closing NUL.
const STRING_UNITS: usize = 255;
const ARGUMENTS: usize = STRING_UNITS * 2;
const IN_PROGRESS: usize = 2 * ARGUMENTS;
const STATE: usize = IN_PROGRESS + 1;
const WATCHDOG: usize = STATE + 1;
const REVISION: usize = WATCHDOG + 2;
const CRC: usize = SIZE - 4;

/// The loader's view of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Confirmed.
    Ok,
    /// Written, never started: the next start is its trial.
    Installed,
    /// On trial.
    Testing,
    /// Its trial failed.
    Failed,
}

impl State {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ok, Self::Installed, Self::Testing, Self::Failed].get(usize::from(byte)).copied()
    }
}

/// One environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `L:LABEL:file`: a file of the FAT volume with that label.
    pub kernel_file: String,
    pub arguments: String,
    pub in_progress: bool,
    pub state: State,
    /// Seconds; 0 leaves the watchdog alone.
    pub watchdog_s: u16,
    pub revision: u32,
}

impl Environment {
    /// The slot with this label, started before every other of a lower revision.
    pub fn committed(label: &str, watchdog_s: u16, revision: u32) -> Self {
        Self {
            kernel_file: format!("L:{label}:linux.efi"),
            arguments: String::new(),
            in_progress: false,
            state: State::Ok,
            watchdog_s,
            revision,
        }
    }

    /// A valid environment that the loader never picks: revision 0 is below every other.
    pub fn empty(label: &str, watchdog_s: u16) -> Self {
        Self::committed(label, watchdog_s, 0)
    }

    /// The bytes of `BGENV.DAT`.
    ///
    /// # Panics
    /// When a string is longer than 254 UTF-16 units; labels are at most 11 characters.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; SIZE];
        put_string(&mut bytes[..ARGUMENTS], &self.kernel_file);
        put_string(&mut bytes[ARGUMENTS..IN_PROGRESS], &self.arguments);
        bytes[IN_PROGRESS] = u8::from(self.in_progress);
        bytes[STATE] = self.state as u8;
        bytes[WATCHDOG..WATCHDOG + 2].copy_from_slice(&self.watchdog_s.to_le_bytes());
        bytes[REVISION..REVISION + 4].copy_from_slice(&self.revision.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC]);
        bytes[CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads `BGENV.DAT`. The error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != SIZE {
            return Err(format!("{} bytes instead of {SIZE}", bytes.len()));
        }
        let stored = u32::from_le_bytes(bytes[CRC..].try_into().expect("four bytes"));
        let computed = crc32fast::hash(&bytes[..CRC]);
        if stored != computed {
            return Err(format!("checksum {stored:08x}, computed {computed:08x}"));
        }
        let state = State::from_byte(bytes[STATE]).ok_or_else(|| format!("state {}", bytes[STATE]))?;
        Ok(Self {
            kernel_file: string(&bytes[..ARGUMENTS]),
            arguments: string(&bytes[ARGUMENTS..IN_PROGRESS]),
            in_progress: bytes[IN_PROGRESS] != 0,
            state,
            watchdog_s: u16::from_le_bytes([bytes[WATCHDOG], bytes[WATCHDOG + 1]]),
            revision: u32::from_le_bytes(bytes[REVISION..REVISION + 4].try_into().expect("four bytes")),
        })
    }
}

fn put_string(field: &mut [u8], text: &str) {
    let units: Vec<u16> = text.encode_utf16().collect();
    assert!(units.len() < STRING_UNITS, "kernel file and arguments are short and ours");
    for (pair, unit) in field.chunks_exact_mut(2).zip(units) {
        pair.copy_from_slice(&unit.to_le_bytes());
    }
}

fn string(field: &[u8]) -> String {
    let units = field.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or('\u{fffd}')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for environment in [Environment::committed("SLOT-A", 30, 1), Environment::empty("SLOT-B", 0)] {
            let bytes = environment.encode();
            assert_eq!(bytes.len(), SIZE);
            assert_eq!(Environment::decode(&bytes).unwrap(), environment);
        }
        assert_eq!(Environment::committed("SLOT-A", 30, 1).encode()[..6], *b"L\0:\0S\0");
    }

    #[test]
    fn damage_is_named() {
        let good = Environment::committed("SLOT-A", 30, 1).encode();
        assert_eq!(Environment::decode(&good[1..]).unwrap_err(), "132103 bytes instead of 132104");
        for at in [0, STATE, REVISION, 5000, SIZE - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Environment::decode(&bad).unwrap_err().starts_with("checksum "), "byte {at}");
        }
    }

    /// The loader's own tool must agree about layout and checksum.
    #[test]
    fn bg_printenv_reads_it() {
        let dir = crate::testdir::TestDir::new("bgenv");
        let file = dir.path().join(FILE_NAME);
        std::fs::write(&file, Environment::committed("SLOT-A", 77, 5).encode()).unwrap();
        let output = std::process::Command::new("bg_printenv")
            .arg("--raw")
            .arg(format!("--filepath={}", file.display()))
            .output()
            .expect("install the Debian package efibootguard");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        for line in ["KERNEL=L:SLOT-A:linux.efi", "WATCHDOG_TIMEOUT=77", "REVISION=5", "USTATE=0"] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} is missing in\n{text}");
        }
    }
}
