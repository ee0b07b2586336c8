//! The ACPI power button, where its drivers (`button`, `evdev`) are loaded.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of `struct input_event` on 64-bit machines: time (16), type (2), code (2), value (4).
const EVENT_LEN: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// Buttons watched; machines have one or two.
const BUTTONS_MAX: usize = 4;

/// The buttons' open devices.
#[derive(Default)]
pub(crate) struct PowerButtons(Vec<File>);

impl PowerButtons {
    /// Opens every input device that calls itself a power button.
    pub(crate) fn open() -> PowerButtons {
        let devices = fs::read_dir("/sys/class/input").into_iter().flatten().flatten();
        let buttons = devices.filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("device/name")).ok()?;
            let node = Path::new("/dev/input").join(entry.file_name());
            let is_event = entry.file_name().to_string_lossy().starts_with("event");
            (name.trim() == "Power Button" && is_event).then_some(())?;
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(node).ok()
        });
        PowerButtons(buttons.take(BUTTONS_MAX).collect())
    }

    /// The descriptor of each; its place is its number.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Reads what button `index` has to say; true when it was pressed.
    pub(crate) fn pressed(&mut self, index: usize) -> bool {
        let mut events = [0; 16 * EVENT_LEN];
        let Some(device) = self.0.get_mut(index) else { return false };
        match device.read(&mut events) {
            Ok(count) => events.get(..count).unwrap_or_default().chunks_exact(EVENT_LEN).any(is_press),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => false,
            // The device is gone; a descriptor that stays readable would spin the loop.
            Err(_) => {
                self.0.clear();
                false
            }
        }
    }

    /// Whether any of them was pressed and nobody has looked yet.
    pub(crate) fn any_pressed(&mut self) -> bool {
        (0..self.0.len()).any(|index| self.pressed(index))
    }
}

fn is_press(event: &[u8]) -> bool {
    let Some(&[t0, t1, c0, c1, v0, v1, v2, v3]) = event.get(16..).and_then(|e| e.first_chunk::<8>()) else {
        return false;
    };
    u16::from_le_bytes([t0, t1]) == EV_KEY
        && u16::from_le_bytes([c0, c1]) == KEY_POWER
        && i32::from_le_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let event = |kind: u8, code: u8, value: u8| {
            let mut e = [0; EVENT_LEN];
            (e[16], e[18], e[20]) = (kind, code, value);
            e
        };
        assert!(is_press(&event(1, 116, 1)));
        for other in [event(1, 116, 0), event(1, 28, 1), event(0, 116, 1)] {
            assert!(!is_press(&other));
        }
        assert!(!is_press(&[0; 20]));
    }
}
