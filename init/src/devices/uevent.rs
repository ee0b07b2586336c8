//! The kernel's messages about devices, as they come from its socket.
//!
//! ```text
//! add@/devices/pci0000:00/0000:00:05.0 NUL ACTION=add NUL DEVPATH=... NUL SUBSYSTEM=pci NUL MODALIAS=pci:v... NUL
//! ```
//! Source: lib/kobject_uevent.c of the kernel, Documentation/ABI/testing/sysfs-uevent. udev's own messages have the
//! same socket but another head, and come from a process; they are no messages of the kernel.

/// Bytes of the values of one message, and so of a modalias: `UEVENT_BUFFER_SIZE` of the kernel.
pub(crate) const MODALIAS_MAX: usize = 2048;
/// Values of one message: twice the kernel's `UEVENT_NUM_ENVP`.
const VALUES_MAX: usize = 128;

/// What of a message is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uevent<'a> {
    pub(crate) action: Action,
    pub(crate) subsystem: &'a str,
    /// Printable ASCII.
    pub(crate) modalias: Option<&'a str>,
}

/// What happened to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Add,
    Remove,
    /// `change`, `move`, `bind`…
    Other,
}

/// Reads a message; `None` when it is none of the kernel's.
pub(crate) fn parse(message: &[u8]) -> Option<Uevent<'_>> {
    let mut parts = message.split(|byte| *byte == 0);
    let head = parts.next()?;
    if !head.contains(&b'@') {
        return None;
    }
    let (mut action, mut subsystem, mut modalias) = (None, "", None);
    for part in parts.take(VALUES_MAX) {
        let Some((key, value)) = std::str::from_utf8(part).ok().and_then(|text| text.split_once('=')) else {
            continue;
        };
        match key {
            "ACTION" => action = Some(value),
            "SUBSYSTEM" => subsystem = value,
            "MODALIAS" => modalias = Some(value).filter(|alias| is_modalias(alias)),
            _ => {}
        }
    }
    let action = match action? {
        "add" => Action::Add,
        "remove" => Action::Remove,
        _ => Action::Other,
    };
    Some(Uevent { action, subsystem, modalias })
}

/// Whether `text` may be a modalias: printable ASCII within the kernel's bounds.
pub(crate) fn is_modalias(text: &str) -> bool {
    (1..=MODALIAS_MAX).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDED: &[u8] = b"add@/devices/pci0000:00/0000:00:05.0\0ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:05.0\0\
        SUBSYSTEM=pci\0PCI_CLASS=10000\0MODALIAS=pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00\0SEQNUM=42\0";

    #[test]
    fn a_message_of_the_kernel_is_read() {
        let modalias = Some("pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00");
        assert_eq!(parse(ADDED), Some(Uevent { action: Action::Add, subsystem: "pci", modalias }));
        let removed = b"remove@/d/event0\0ACTION=remove\0SUBSYSTEM=input\0";
        assert_eq!(
            parse(removed),
            Some(Uevent { action: Action::Remove, subsystem: "input", modalias: None })
        );
        assert_eq!(parse(b"bind@/d\0ACTION=bind\0").map(|e| e.action), Some(Action::Other));
    }

    #[test]
    fn what_is_not_the_kernels_is_nothing() {
        for message in
            [&b""[..], b"\0\0\0", b"libudev\0\xfe\xed\xca\xfe", b"add@/d\0SUBSYSTEM=pci\0", b"add@/d"]
        {
            assert_eq!(parse(message), None);
        }
        let long = [b"add@/d\0ACTION=add\0MODALIAS=".to_vec(), vec![b'x'; MODALIAS_MAX + 1]].concat();
        for message in [
            b"add@/d\0ACTION=add\0MODALIAS=a\nb\0".to_vec(),
            b"add@/d\0ACTION=add\0MODALIAS=\0".to_vec(),
            long,
        ] {
            assert_eq!(parse(&message).map(|e| e.modalias), Some(None));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            if let Some(event) = parse(&bytes) {
                prop_assert!(event.modalias.is_none_or(is_modalias));
            }
        }

        #[test]
        fn a_damaged_message_is_read_without_a_panic(at in 0..ADDED.len(), byte: u8, cut in 0..ADDED.len()) {
            let mut bytes = ADDED.to_vec();
            bytes[at] = byte;
            bytes.truncate(cut);
            if let Some(event) = parse(&bytes) {
                prop_assert!(event.modalias.is_none_or(is_modalias));
            }
        }
    }
}
