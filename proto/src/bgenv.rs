//! EFI Boot Guard's environment: which file of which slot to start, and how long the watchdog waits. The only place
//! that knows its bytes: the builder writes the first ones, the device arms and confirms slots with them, the lab
//! changes them on a disk.
//!
//! `BGENV.DAT`, little endian, 132,104 bytes:
//! ```text
//! 0       510  kernel file, UTF-16, NUL padded     "L:SLOT-A:linux.efi"
//! 510     510  kernel arguments, UTF-16            empty: the boot file's own command line counts
//! 1020      1  in progress                         1 = being written, never started
//! 1021      1  state: 0 ok, 1 installed, 2 testing, 3 failed
//! 1022      2  watchdog, seconds                   0 = do not arm
//! 1024      4  revision                            the highest is started; 0 = never
//! 1028 131072  user variables                      unused, zeroed when one is written again
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
    /// The state that the byte of an environment says.
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ok, Self::Installed, Self::Testing, Self::Failed].get(usize::from(byte)).copied()
    }
}

/// Why bytes are no environment that the loader can be trusted with. Reading changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// The file is not there, or it cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// Cut short or too long.
    #[error("{found} bytes instead of {SIZE}")]
    Size { found: usize },
    /// Damaged, or a write of it was torn.
    #[error("checksum {stored:08x}, computed {computed:08x}")]
    Checksum { stored: u32, computed: u32 },
    /// A state that this release does not know.
    #[error("state {found}, expected 0 to 3")]
    State { found: u8 },
    /// A string that fills its field has no end; the loader would cut it.
    #[error("{field} without an end")]
    Endless { field: &'static str },
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

    /// Reads `BGENV.DAT`. What it gives can be encoded again.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvironmentError> {
        if bytes.len() != SIZE {
            return Err(EnvironmentError::Size { found: bytes.len() });
        }
        let stored = u32::from_le_bytes(bytes[CRC..].try_into().expect("four bytes"));
        let computed = crc32fast::hash(&bytes[..CRC]);
        if stored != computed {
            return Err(EnvironmentError::Checksum { stored, computed });
        }
        let found = bytes[STATE];
        let state = State::from_byte(found).ok_or(EnvironmentError::State { found })?;
        Ok(Self {
            kernel_file: string(&bytes[..ARGUMENTS], "kernel file")?,
            arguments: string(&bytes[ARGUMENTS..IN_PROGRESS], "kernel arguments")?,
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

fn string(field: &[u8], name: &'static str) -> Result<String, EnvironmentError> {
    let units = field.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units = units.take_while(|unit| *unit != 0).collect::<Vec<_>>();
    if units.len() == STRING_UNITS {
        return Err(EnvironmentError::Endless { field: name });
    }
    // A unit that is no character becomes one of one unit: the string does not grow.
    Ok(char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect())
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
        let short = Environment::decode(&good[1..]).unwrap_err();
        assert_eq!(short.to_string(), "132103 bytes instead of 132104");
        for at in [0, STATE, REVISION, 5000, SIZE - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let refusal = Environment::decode(&bad).unwrap_err();
            assert!(matches!(refusal, EnvironmentError::Checksum { .. }), "byte {at}: {refusal}");
        }
        let signed = |change: fn(&mut [u8])| {
            let mut bytes = good.clone();
            change(&mut bytes);
            let crc = crc32fast::hash(&bytes[..CRC]);
            bytes[CRC..].copy_from_slice(&crc.to_le_bytes());
            Environment::decode(&bytes)
        };
        assert_eq!(signed(|b| b[STATE] = 4), Err(EnvironmentError::State { found: 4 }));
        let endless = signed(|b| b[ARGUMENTS..IN_PROGRESS].fill(b'x'));
        assert_eq!(endless, Err(EnvironmentError::Endless { field: "kernel arguments" }));
        // Half a surrogate pair, and the longest string there is.
        let odd = signed(|b| b[..ARGUMENTS - 2].fill(0xd8)).unwrap();
        assert_eq!(Environment::decode(&odd.encode()), Ok(odd));
    }
}
