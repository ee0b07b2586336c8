//! The sector in which a crash of PID 1 is written down. Pure; `docs/formats/boot.md` draws it.
//!
//! It is prepared at the boot, while everything works. The crash only fills in its numbers and its text, without
//! allocating, and nothing here can panic. The mark at the end is written with the rest: a sector without it holds no
//! crash.

use std::fmt::{self, Write};

use crate::boot::block_file::SECTOR;

/// The sector's bytes.
pub(crate) type Sector = [u8; SECTOR];

const MAGIC: [u8; 8] = *b"EKCRASH1";
const END_MARK: [u8; 8] = *b"1HSARCKE";
const SIGNAL: usize = 8;
const CODE: usize = 12;
const SENDER: usize = 16;
const TEXT_LEN: usize = 20;
const ADDRESS: usize = 24;
const INSTRUCTION: usize = 32;
const BASE: usize = 40;
const UPTIME_MS: usize = 48;
const BOOT: usize = 56;
const VERSION: usize = 64;
const TEXT: usize = 96;
const END: usize = SECTOR - END_MARK.len();

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crash {
    /// The signal's number; 0 for a panic of our own.
    pub(crate) signal: i32,
    /// `si_code`: why the signal came; above 0 from the kernel.
    pub(crate) code: i32,
    /// The process that sent it, for codes of 0 and below.
    pub(crate) sender: u32,
    /// The address it is about.
    pub(crate) address: u64,
    /// The instruction it came at.
    pub(crate) instruction: u64,
    /// Where the program is loaded: the instruction's place in the file is the difference.
    pub(crate) base: u64,
    /// Milliseconds since the kernel started.
    pub(crate) uptime_ms: u64,
}

/// A sector without a crash, for the boot of this number and this release.
pub(crate) fn prepared(boot: u64, version: &str) -> Sector {
    let mut sector = [0; SECTOR];
    put(&mut sector, 0, &MAGIC);
    put(&mut sector, BOOT, &boot.to_le_bytes());
    // One zero at least stays behind it.
    put(&mut sector, VERSION, version.as_bytes().get(..TEXT - VERSION - 1).unwrap_or(version.as_bytes()));
    sector
}

/// Writes `crash` and what there is to say into a prepared sector. What does not fit is cut.
pub(crate) fn fill(sector: &mut Sector, crash: &Crash, text: &dyn fmt::Display) {
    put(sector, SIGNAL, &crash.signal.to_le_bytes());
    put(sector, CODE, &crash.code.to_le_bytes());
    put(sector, SENDER, &crash.sender.to_le_bytes());
    put(sector, ADDRESS, &crash.address.to_le_bytes());
    put(sector, INSTRUCTION, &crash.instruction.to_le_bytes());
    put(sector, BASE, &crash.base.to_le_bytes());
    put(sector, UPTIME_MS, &crash.uptime_ms.to_le_bytes());
    let mut line = Line { buffer: sector.get_mut(TEXT..END).unwrap_or_default(), len: 0 };
    // It never fails: what does not fit is left out.
    let _ = write!(line, "{text}");
    let len = line.len as u32;
    put(sector, TEXT_LEN, &len.to_le_bytes());
    put(sector, END, &END_MARK);
}

/// The crash in a sector, the number of the boot it ended, and a line about it for people. `None` when there is none.
pub(crate) fn parse(sector: &Sector) -> Option<(Crash, u64, String)> {
    let u32_at = |at: usize| sector.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
    let u64_at = |at: usize| sector.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b));
    if !sector.starts_with(&MAGIC) || !sector.ends_with(&END_MARK) {
        return None;
    }
    let crash = Crash {
        signal: u32_at(SIGNAL)?.cast_signed(),
        code: u32_at(CODE)?.cast_signed(),
        sender: u32_at(SENDER)?,
        address: u64_at(ADDRESS)?,
        instruction: u64_at(INSTRUCTION)?,
        base: u64_at(BASE)?,
        uptime_ms: u64_at(UPTIME_MS)?,
    };
    let version = sector.get(VERSION..TEXT)?.split(|b| *b == 0).next()?;
    let text = sector.get(TEXT..END)?;
    let text = text.get(..u32_at(TEXT_LEN)? as usize).unwrap_or(text);
    let boot = u64_at(BOOT)?;
    let line = format!(
        "{crash} {}.{:03} s into boot {boot} of release {}: {}",
        crash.uptime_ms / 1000,
        crash.uptime_ms % 1000,
        String::from_utf8_lossy(version),
        String::from_utf8_lossy(text)
    );
    Some((crash, boot, line))
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(name) = name_of(self.signal) else { return f.write_str("panic") };
        // `si_code` 0 and below: sent by a process (sigaction(2)); then there is no address.
        if self.code <= 0 {
            return write!(f, "{name} sent by process {}", self.sender);
        }
        let place = self.instruction.wrapping_sub(self.base);
        write!(f, "{name} for address {:#x} at {place:#x} of the program", self.address)
    }
}

/// The name of a signal that ends PID 1; `None` for a panic.
fn name_of(signal: i32) -> Option<&'static str> {
    match signal {
        0 => None,
        libc::SIGSEGV => Some("SIGSEGV"),
        libc::SIGBUS => Some("SIGBUS"),
        libc::SIGILL => Some("SIGILL"),
        libc::SIGFPE => Some("SIGFPE"),
        libc::SIGABRT => Some("SIGABRT"),
        libc::SIGSYS => Some("SIGSYS"),
        _ => Some("a signal"),
    }
}

/// Copies as much as fits.
fn put(sector: &mut Sector, at: usize, bytes: &[u8]) {
    for (to, from) in sector.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Text into a fixed buffer, on one line; the rest is left out.
pub(crate) struct Line<'a> {
    pub(crate) buffer: &'a mut [u8],
    pub(crate) len: usize,
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let Some(to) = self.buffer.get_mut(self.len) else { break };
            *to = if byte < b' ' { b' ' } else { byte };
            self.len += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash() -> Crash {
        Crash {
            signal: libc::SIGSEGV,
            code: 1,
            sender: 0,
            address: 0x10,
            instruction: 0x5555_0000_1234,
            base: 0x5555_0000_0000,
            uptime_ms: 61_007,
        }
    }

    /// These bytes are what release 1 writes: the next release must read them.
    #[test]
    fn golden_bytes() {
        let mut sector = prepared(12, "0.1.0");
        assert_eq!(parse(&sector), None, "nothing has happened yet");
        fill(&mut sector, &crash(), &"a\nb");
        let mut bytes = b"EKCRASH1\x0b\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0".to_vec();
        bytes.extend(b"\x10\0\0\0\0\0\0\0\x34\x12\0\0\x55\x55\0\0\0\0\0\0\x55\x55\0\0");
        bytes.extend(b"\x4f\xee\0\0\0\0\0\0\x0c\0\0\0\0\0\0\x000.1.0");
        bytes.resize(96, 0);
        bytes.extend(b"a b");
        bytes.resize(504, 0);
        bytes.extend(b"1HSARCKE");
        assert_eq!(sector.to_vec(), bytes);
    }

    #[test]
    fn a_crash_reads_as_one_line() {
        let sent = Crash { code: 0, sender: 7, ..crash() };
        let panic = Crash { signal: 0, uptime_ms: 5, ..Crash::default() };
        let cases = [
            (
                crash(),
                "SIGSEGV for address 0x10 at 0x1234 of the program 61.007 s into boot 9 of release 1: x",
            ),
            (sent, "SIGSEGV sent by process 7 61.007 s into boot 9 of release 1: x"),
            (panic, "panic 0.005 s into boot 9 of release 1: x"),
        ];
        for (crash, line) in cases {
            let mut sector = prepared(9, "1");
            fill(&mut sector, &crash, &"x");
            assert_eq!(parse(&sector), Some((crash, 9, line.to_owned())));
        }
    }

    #[test]
    fn long_texts_are_cut_and_damage_is_no_crash() {
        let mut sector = prepared(1, &"v".repeat(99));
        fill(&mut sector, &crash(), &"é".repeat(999));
        let (_, _, line) = parse(&sector).unwrap();
        assert!(line.contains(&format!("release {}: éé", "v".repeat(31))), "{line}");
        assert!(line.len() < 600);
        for at in [0, SECTOR - 1] {
            let mut damaged = sector;
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged), None);
        }
        // Lengths that lie do no harm.
        put(&mut sector, TEXT_LEN, &[0xff; 4]);
        assert!(parse(&sector).is_some());
        assert_eq!(parse(&[0; SECTOR]), None);
    }
}
