//! Which modules an image carries, by flavour.
//!
//! Early modules are in the initramfs: without them there is no watchdog and no root. The others are in the root.
//! Not here on purpose: `bonding` makes an interface `bond0` as soon as it is loaded.

use super::Want;
use crate::options::Flavour;

/// Without these no root: the root is a squashfs file in the initramfs.
const EARLY: &[&str] = &["loop", "squashfs"];

/// Disks, wanted by the slot system for STATE and by the rescue system for everything.
const CLOUD_DISKS: &[&str] = &["virtio_blk"];
/// `crc32c_generic` first: ext4 and libcrc32c ask for the algorithm by an alias, which `depends` does not show.
const GENERIC_DISKS: &[&str] =
    &["crc32c_generic", "ext4", "virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "sd_mod"];

/// What the rescue system needs to mend environments and slots.
const REPAIR: &[&str] = &["fat", "vfat", "nls_cp437", "nls_ascii"];

const ROOT: &[&str] = &[
    "failover",
    "net_failover",
    "virtio_net", // ports of a virtual machine
    "virtio_rng",
    "virtio_console",
    "button", // the power key, read through ...
    "evdev",  // ... its event device
    "efivarfs",
    "fat",
    "vfat",
    "nls_cp437",
    "nls_ascii", // environments and slots
    "inet_diag",
    "tcp_diag", // closing the connections of an address that moved
    "nfnetlink",
    "nf_tables",
    "efi_pstore", // a panic's last words
    "8021q",
];

/// For devices that ask for them: what the cloud kernel has for ports and disks of virtual machines.
const CLOUD_DEVICES: &[&str] = &[
    "ena",
    "gve",
    "hv_netvsc",
    "ixgbevf",
    "mana",
    "vmxnet3",
    "xen_netfront", // ports
    "hv_storvsc",
    "sd_mod",
    "virtio_scsi",
    "vmw_pvscsi",
    "xen_blkfront", // disks
    "hyperv_keyboard",
    "virtio_input", // keys
];

/// The same for real machines and the generic kernel.
const GENERIC_DEVICES: &[&str] = &[
    "atlantic",
    "bnx2x",
    "bnxt_en",
    "e1000",
    "e1000e",
    "i40e",
    "iavf",
    "ice",
    "igb",
    "igbvf",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mlx4_en",
    "mlx5_core",
    "r8169",
    "realtek", // the PHY r8169 looks for
    "tg3",
    "vmxnet3", // ports
    "cdc_ether",
    "cdc_ncm",
    "r8152",
    "ax88179_178a", // ports on USB
    "ahci",
    "ata_piix",
    "hpsa",
    "megaraid_sas",
    "mmc_block",
    "mpt3sas",
    "nvme",
    "sd_mod",
    "sdhci_acpi",
    "sdhci_pci",
    "smartpqi",
    "uas",
    "usb_storage",
    "virtio_scsi",
    "vmd",
    "vmw_pvscsi", // disks
    "ehci_pci",
    "hid_generic",
    "usbhid",
    "xhci_pci", // keys
];

/// Watchdogs of real machines, for one that the builder did not name; with what makes their devices appear.
const GENERIC_WATCHDOGS: &[&str] =
    &["lpc_ich", "i2c_i801", "iTCO_wdt", "wdat_wdt", "sp5100_tco", "i6300esb", "hpwdt"];

fn all(names: &[&str], make: fn(&str) -> Want) -> Vec<Want> {
    names.iter().copied().map(make).collect()
}

/// Modules of the initramfs. The watchdog comes first: the loader has started it, and it counts.
pub(crate) fn early_names(flavour: Flavour, watchdog: Option<&str>) -> Vec<Want> {
    let mut wanted: Vec<Want> = watchdog.map(Want::must).into_iter().collect();
    wanted.extend(all(EARLY, Want::must));
    wanted.extend(match flavour {
        Flavour::Cloud => all(CLOUD_DISKS, Want::must),
        Flavour::Generic => all(GENERIC_DISKS, Want::must),
    });
    wanted
}

/// Modules of the rescue system: the early ones and what repairs need.
pub(crate) fn rescue_names(flavour: Flavour, watchdog: Option<&str>) -> Vec<Want> {
    let mut wanted = early_names(flavour, watchdog);
    wanted.extend(all(REPAIR, Want::must));
    wanted
}

/// Modules of the root that every boot loads; those that are early already are left out of its list.
pub(crate) fn root_names(more: &[String]) -> Vec<Want> {
    let mut wanted = all(ROOT, Want::must);
    wanted.extend(more.iter().map(|name| Want::must(name)));
    wanted
}

/// Modules of the root that a device has to ask for. All are optional: the lists span kernels. An image without a
/// watchdog gets none by a device either.
pub(crate) fn device_names(flavour: Flavour, watchdog: Option<&str>) -> Vec<Want> {
    match flavour {
        Flavour::Cloud => all(CLOUD_DEVICES, Want::may),
        Flavour::Generic => {
            let mut wanted = all(GENERIC_DEVICES, Want::may);
            if watchdog.is_some() {
                wanted.extend(all(GENERIC_WATCHDOGS, Want::may));
            }
            wanted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_loaded_first() {
        assert_eq!(early_names(Flavour::Cloud, Some("i6300esb"))[0], Want::must("i6300esb"));
        assert_eq!(early_names(Flavour::Cloud, None)[0], Want::must("loop"));
        assert!(rescue_names(Flavour::Generic, None).contains(&Want::must("vfat")));
        assert!(root_names(&["bridge".into()]).contains(&Want::must("bridge")));
    }

    #[test]
    fn an_image_without_a_watchdog_has_no_driver_for_one() {
        let has = |watchdog| device_names(Flavour::Generic, watchdog).contains(&Want::may("iTCO_wdt"));
        assert!(has(Some("i6300esb")) && !has(None));
    }
}
