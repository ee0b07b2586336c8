//! How a node's machine differs from the usual one: what tests of PID 1 and of the boot choose.
//!
//! | part | where it takes effect |
//! |---|---|
//! | watchdog, second serial line, free slot, resets in place | QEMU's command line ([`crate::arguments`]) |
//! | disk and ports | QEMU's command line; the lab's image has to have their drivers ([`crate::prepare::generic`]) |
//! | Secure Boot | firmware on the command line, the lab's keys in its variables ([`crate::enrol`]) |
//! | kernel words; no watchdog for the loader either | the loader's environments on the node's disk ([`crate::disk`]) |
//!
//! The boot file's own command line is sealed into it. The loader passes its environment's instead when there is one,
//! and the stub takes that as long as the boot file is not signed (version 252 reads no words from SMBIOS yet).

use serde::{Deserialize, Serialize};

/// A machine's hardware watchdog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Watchdog {
    /// Intel's 6300ESB, as the image's driver expects it.
    #[default]
    I6300esb,
    /// Two of them: the loader starts one.
    Two,
    /// None, and the loader is told so: it would refuse to start a system otherwise.
    None,
}

/// What a machine's disk and ports are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hardware {
    /// virtio for both.
    #[default]
    Virtio,
    /// A SATA disk at the chipset's AHCI controller, ports of Intel's 82574L (`e1000e`).
    Ahci,
    /// An NVMe disk, ports of Intel's 82574L.
    Nvme,
}

/// One node's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variant {
    /// Its watchdog.
    pub watchdog: Watchdog,
    /// Its disk and its ports.
    pub hardware: Hardware,
    /// Words behind the boot file's own kernel command line.
    pub kernel_words: String,
    /// A second serial line, `ttyS1` in the guest.
    pub second_serial: bool,
    /// A free PCI Express slot that takes a device while the machine runs.
    pub free_slot: bool,
    /// A reset leaves QEMU's process alone, so that devices keep what real ones keep over a reset: the watchdog knows
    /// that it was the one. Usually each run has a process of its own.
    pub resets_in_place: bool,
    /// Firmware that starts only what the lab's keys signed. Kernel words are of no use then: the boot file's own count.
    pub secure_boot: bool,
}

impl Variant {
    /// The usual machine with these words on its kernel's command line.
    pub fn with_words(words: &str) -> Variant {
        Variant { kernel_words: words.to_owned(), ..Variant::default() }
    }
}
