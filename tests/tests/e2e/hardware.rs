//! The generic image on devices that real machines have.

use crate::stage::NODE;
use crate::world::{Outcome, REBOOT_LIMIT};
use lab::lab::Lab;
use lab::table::seconds;
use lab::variant::{Hardware, Variant};
use std::error::Error;
use std::time::Instant;

pub(crate) fn sata() -> Variant {
    Variant { hardware: Hardware::Ahci, ..Variant::default() }
}

pub(crate) fn nvme() -> Variant {
    Variant { hardware: Hardware::Nvme, ..Variant::default() }
}

pub(crate) fn on_sata(lab: &Lab) -> Outcome {
    serves(lab, "/dev/sd", "ahci")
}

pub(crate) fn on_nvme(lab: &Lab) -> Outcome {
    serves(lab, "/dev/nvme", "nvme")
}

/// It serves from a disk and through ports that are not virtio's. What it keeps is on that disk: after a power cut it
/// counts on. Nothing is shown of a lost carrier: QEMU 7.2's e1000e raises no interrupt for one, so that the guest's
/// kernel goes on saying that there is one.
fn serves(lab: &Lab, disk: &str, driver: &str) -> Outcome {
    let since = Instant::now();
    boot(lab)?;
    let first = since.elapsed();
    let modules = lab.fault(NODE, "read /proc/modules")?;
    let has = |name: &str| modules.lines().any(|line| line.split(' ').next() == Some(name));
    if !has(driver) || !has("e1000e") {
        return Err(format!("no drivers {driver} and e1000e:\n{modules}").into());
    }
    let mounts = lab.fault(NODE, "read /proc/mounts")?;
    if !mounts.lines().any(|line| line.starts_with(disk) && line.split(' ').nth(1) == Some("/state")) {
        return Err(format!("STATE is not on {disk}*:\n{mounts}").into());
    }

    lab.power_off(NODE)?;
    boot(lab)?;
    let told = lab.keel(NODE, "show boot")?;
    let number = told.lines().next().unwrap_or_default();
    if !number.contains("number 2 ") {
        return Err(format!("this is not its second boot:\n{told}").into());
    }
    Ok(format!("serves after {}, and after a power cut; {number}", seconds(first)))
}

fn boot(lab: &Lab) -> Result<(), Box<dyn Error>> {
    lab.power_on(NODE)?;
    lab.expect_within(REBOOT_LIMIT, "the node's prompt", || lab.has_prompt(NODE))?;
    Ok(lab.wait_for_vips()?)
}
