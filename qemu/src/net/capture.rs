//! Writes what crosses the switch to a pcap file (nanoseconds, Ethernet) that Wireshark and tcpdump read.
//!
//! One file for all segments, capped at [`CAPTURE_MAX`]: then it stops with a note in [`CaptureStatus`], and so it
//! does when the disk refuses. A capture never stops the switch.

use proto::time::Time;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Size after which a capture stops: about half an hour of an idle cluster under measurement.
pub const CAPTURE_MAX: u64 = 64 << 20;

/// Little-endian magic of pcap with nanoseconds.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINK_TYPE_ETHERNET: u32 = 1;
const FILE_HEADER: u64 = 24;
const RECORD_HEADER: u64 = 16;
/// Longest part of a frame that is kept; above any frame the switch takes.
const SNAP_LENGTH: u32 = 65_535;

/// How a capture stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// The file.
    pub path: PathBuf,
    /// Frames in it.
    pub frames: u64,
    /// Its length once everything is written out.
    pub bytes: u64,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
}

/// An open capture file.
#[derive(Debug)]
pub struct Capture {
    file: Option<BufWriter<File>>,
    status: CaptureStatus,
    limit: u64,
    /// Nanoseconds between the origin of [`Time`] and 1970.
    origin: u64,
}

impl Capture {
    /// Creates the file, over an earlier one. `now` is this very moment in the switch's time.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path, now: Time) -> io::Result<Capture> {
        Capture::with_limit(path, now, CAPTURE_MAX)
    }

    fn with_limit(path: &Path, now: Time, limit: u64) -> io::Result<Capture> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        file.write_all(&[2, 0, 4, 0])?; // version 2.4
        file.write_all(&[0; 8])?; // UTC, accuracy: never filled in by anyone
        file.write_all(&SNAP_LENGTH.to_le_bytes())?;
        file.write_all(&LINK_TYPE_ETHERNET.to_le_bytes())?;
        file.flush()?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Ok(Capture {
            file: Some(file),
            status: CaptureStatus { path: path.to_owned(), frames: 0, bytes: FILE_HEADER, stopped: None },
            limit,
            origin: u64::try_from(since_1970).unwrap_or(0).saturating_sub(now.as_nanos()),
        })
    }

    /// Adds a frame. The first one that would pass the limit stops the capture.
    pub fn frame(&mut self, now: Time, frame: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let kept = &frame[..frame.len().min(SNAP_LENGTH as usize)];
        let size = RECORD_HEADER + kept.len() as u64;
        if self.status.bytes + size > self.limit {
            self.stop(format!("the file has reached its limit of {} bytes", self.limit));
            return;
        }
        match write_record(file, self.origin.saturating_add(now.as_nanos()), kept, frame.len()) {
            Ok(()) => {
                self.status.frames += 1;
                self.status.bytes += size;
            }
            Err(e) => self.stop(format!("writing failed: {e}")),
        }
    }

    /// Hands what is buffered to the file, so that a reader sees it.
    pub fn flush(&mut self) {
        if let Some(Err(e)) = self.file.as_mut().map(Write::flush) {
            self.stop(format!("writing failed: {e}"));
        }
    }

    /// How it stands.
    pub fn status(&self) -> &CaptureStatus {
        &self.status
    }

    fn stop(&mut self, why: String) {
        self.status.stopped = Some(why);
        // Dropping it writes the rest out, as far as the disk lets it.
        self.file = None;
    }
}

fn write_record(file: &mut impl Write, nanos: u64, kept: &[u8], full: usize) -> io::Result<()> {
    let seconds = u32::try_from(nanos / 1_000_000_000).unwrap_or(u32::MAX);
    let rest = (nanos % 1_000_000_000) as u32;
    for word in [seconds, rest, kept.len() as u32, full as u32] {
        file.write_all(&word.to_le_bytes())?;
    }
    file.write_all(kept)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TempDir, read_capture};
    use super::*;
    use proto::time::Duration;

    #[test]
    fn records_are_readable_and_dated() {
        let dir = TempDir::new("capture");
        let path = dir.path().join("x.pcap");
        let start = Time::from_nanos(5_000_000_123);
        let mut capture = Capture::create(&path, start).unwrap();
        capture.frame(start, b"first");
        capture.frame(start + Duration::from_millis(2500), b"second one");
        capture.flush();
        let frames = read_capture(&path);
        assert_eq!(frames.iter().map(|(_, f)| &f[..]).collect::<Vec<_>>(), [&b"first"[..], b"second one"]);
        assert_eq!(frames[1].0 - frames[0].0, 2_500_000_000);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(frames[0].0 <= now && now - frames[0].0 < 60_000_000_000);
        assert_eq!(capture.status().bytes, std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn it_stops_at_its_limit_with_a_note() {
        let dir = TempDir::new("capture-limit");
        let path = dir.path().join("x.pcap");
        let mut capture = Capture::with_limit(&path, Time::ZERO, 24 + 2 * 26).unwrap();
        for _ in 0..5 {
            capture.frame(Time::ZERO, &[7; 10]);
        }
        assert_eq!(capture.status().frames, 2);
        assert!(capture.status().stopped.as_deref().unwrap().contains("limit of 76 bytes"));
        assert_eq!(read_capture(&path).len(), 2);
    }

    #[test]
    fn a_full_disk_stops_it_only() {
        let dir = TempDir::new("capture-full");
        let mut capture = Capture::create(&dir.path().join("x.pcap"), Time::ZERO).unwrap();
        // Behind the header the disk is full.
        let full = File::options().write(true).open("/dev/full").unwrap();
        capture.file = Some(BufWriter::new(full));
        capture.frame(Time::ZERO, &[7; 10]);
        capture.flush();
        assert!(capture.status().stopped.as_deref().unwrap().starts_with("writing failed"));
        capture.frame(Time::ZERO, &[7; 10]);
        assert_eq!(capture.status().frames, 1);
    }
}
