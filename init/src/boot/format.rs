//! A new, empty STATE: the file system that the image carries, written onto the partition.
//!
//! A partition that is blank is formatted without asking. One that holds anything, however damaged, is formatted only
//! when a person at the rescue prompt says so. The first block, with the superblock, is written last: a cut leaves no
//! file system, never half of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::boot::attempt::attempt;
use crate::host::Host;
use crate::sys;

/// The empty file system, as large as the smallest STATE; it is grown when it is mounted.
pub(crate) const IMAGE: &str = "/lib/evenkeel/state.ext4";
/// Limit for writing some 16 MiB to a slow disk.
const LIMIT: Duration = Duration::from_secs(120);
/// Limit for reading as much.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// The front of the partition that must hold nothing but zeros for it to be blank, and the places behind it where a
/// file system of 4 KiB blocks has copies of its superblock (groups 1, 3, 5, 7).
const BLANK_FRONT: u64 = 16 << 20;
const BACKUPS: [u64; 4] = [128 << 20, 384 << 20, 640 << 20, 896 << 20];
/// The part that is written last.
const FIRST: usize = 4096;
const PIECE: usize = 1 << 20;

/// Whether the partition at `path` was never written to. In doubt it was.
pub(crate) fn is_blank(host: &mut Host, path: &str) -> bool {
    let look = || File::open(path).and_then(|device| blank(&device)).map_err(|e| sys::errno_text(&e));
    let answer =
        attempt(host, LOOK_LIMIT, || look().map(|blank| if blank { "blank" } else { "" }.to_owned()));
    answer.is_ok_and(|text| text == "blank")
}

/// Writes the empty file system onto `path`: what was there is lost.
///
/// # Errors
/// What failed; the partition holds no file system then, or its old one where nothing could be written.
pub(crate) fn format(host: &mut Host, path: &str) -> Result<(), String> {
    let done = attempt(host, LIMIT, || {
        let image = File::open(IMAGE).map_err(|e| format!("{IMAGE}: {}", sys::errno_text(&e)))?;
        let device = OpenOptions::new().write(true).open(path);
        let device = device.map_err(|e| format!("{path}: {}", sys::errno_text(&e)))?;
        write(&image, &device).map_err(|e| format!("{path}: {}", sys::errno_text(&e)))?;
        Ok(String::new())
    });
    done.map(drop).map_err(|e| format!("cannot format STATE: {e}"))
}

/// Whether a format is possible here: the rescue system carries no file system.
pub(crate) fn has_image() -> bool {
    Path::new(IMAGE).exists()
}

fn blank(device: &File) -> io::Result<bool> {
    let mut piece = vec![0; PIECE];
    for at in (0..BLANK_FRONT).step_by(PIECE) {
        if !zeros(device, &mut piece, at)? {
            return Ok(false);
        }
    }
    let mut block = [0; FIRST];
    for at in BACKUPS {
        if !zeros(device, &mut block, at)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether there are only zeros from `at` on, as far as `buffer` and the device reach.
fn zeros(device: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    let n = device.read_at(buffer, at)?;
    Ok(buffer.iter().take(n).all(|b| *b == 0))
}

fn write(mut image: &File, device: &File) -> io::Result<()> {
    device.write_all_at(&[0; FIRST], 0)?;
    device.sync_data()?;
    let mut first = [0; FIRST];
    image.read_exact(&mut first)?;
    let mut at = FIRST as u64;
    let mut piece = vec![0; PIECE];
    loop {
        let n = image.read(&mut piece)?;
        if n == 0 {
            break;
        }
        device.write_all_at(piece.get(..n).unwrap_or_default(), at)?;
        at += n as u64;
    }
    device.sync_data()?;
    device.write_all_at(&first, 0)?;
    device.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;
    use std::fs;

    #[test]
    fn only_a_partition_without_any_trace_is_blank() {
        let dir = TestDir::new();
        let path = dir.path().join("disk");
        for (length, written, expected) in [
            (1 << 30, None, true),
            (20 << 20, None, true),
            (1 << 30, Some(0), false),
            // A zeroed superblock: damaged, not blank.
            (1 << 30, Some(4096), false),
            (1 << 30, Some((16 << 20) - 1), false),
            (1 << 30, Some((128 << 20) + 1080), false),
        ] {
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            file.set_len(length).unwrap();
            if let Some(at) = written {
                file.write_all_at(b"x", at).unwrap();
            }
            assert_eq!(blank(&file).unwrap(), expected, "{length} {written:?}");
        }
    }

    #[test]
    fn the_image_is_written_whole_over_what_was_there() {
        let dir = TestDir::new();
        let image: Vec<u8> = (0..3 * PIECE + 17).map(|i| (i / 7) as u8).collect();
        let (from, to) = (dir.path().join("image"), dir.path().join("disk"));
        fs::write(&from, &image).unwrap();
        fs::write(&to, vec![0xee; 4 * PIECE]).unwrap();
        write(&File::open(&from).unwrap(), &File::options().write(true).open(&to).unwrap()).unwrap();
        let written = fs::read(&to).unwrap();
        assert!(written[..image.len()] == image[..] && written[image.len()] == 0xee);
    }
}
