//! Which slot this system was started from.

use std::fs;

use proto::boot::SLOTS;

use crate::boot::cmdline::Cmdline;

/// What the boot file's stub writes: the GUID of the partition it was loaded from (Boot Loader Interface).
const VARIABLE: &str = "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The slot as the command line says it (`evenkeel.slot=`), else as the boot loader's variable does; empty when
/// unknown. Blocks as long as the firmware does.
pub(crate) fn find(cmdline: &Cmdline) -> String {
    let known = |name: &str| SLOTS.iter().map(|(_, n)| *n).find(|n| *n == name);
    let named = cmdline.value("evenkeel.slot").and_then(known);
    named.or_else(|| of_variable(&fs::read(VARIABLE).ok()?)).unwrap_or_default().to_owned()
}

/// Four bytes of attributes, then a GUID as UTF-16, ended by a zero.
fn of_variable(bytes: &[u8]) -> Option<&'static str> {
    let (units, _) = bytes.get(4..)?.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|u| u16::from_le_bytes(*u)).take_while(|u| *u != 0).collect();
    let guid = String::from_utf16(&units).ok()?;
    SLOTS.iter().find(|(id, _)| id.eq_ignore_ascii_case(&guid)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(guid: &str) -> Vec<u8> {
        let text = guid.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        [6, 0, 0, 0].into_iter().chain(text).collect()
    }

    #[test]
    fn the_slot_is_read_from_the_variable_and_the_command_line() {
        for (guid, name) in SLOTS {
            assert_eq!(of_variable(&variable(&guid.to_uppercase())), Some(name));
        }
        for bytes in [vec![], vec![6, 0, 0, 0], vec![6, 0, 0, 0, 0x41], variable("other")] {
            assert_eq!(of_variable(&bytes), None);
        }
        assert_eq!(find(&Cmdline::parse(b"evenkeel.slot=SLOT-B")), "SLOT-B");
    }
}
