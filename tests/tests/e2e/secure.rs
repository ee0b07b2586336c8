//! Secure Boot: what is signed boots, what is not is refused.

use crate::stage::NODE;
use crate::world::{Outcome, REBOOT_LIMIT};
use lab::lab::Lab;
use lab::table::seconds;
use lab::variant::Variant;
use proto::bgenv::State;
use std::time::{Duration, Instant};

/// As much of a slot as holds its boot file.
const SLOT_READ: u64 = 48 << 20;
/// Seconds that the loader gives a boot: what is refused is over after them.
const TRIAL_S: u16 = 60;
/// The firmware refuses, the watchdog runs out in both of its stages, and the other slot boots on a busy host.
const RETURN_LIMIT: Duration = Duration::from_secs(300);
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

pub(crate) fn secure_boot() -> Variant {
    Variant { secure_boot: true, resets_in_place: true, ..Variant::default() }
}

/// The signed image serves with Secure Boot on. A slot whose boot file has lost its signature is tried and refused; the
/// watchdog ends the trial and the committed slot serves again.
pub(crate) fn signed_and_unsigned(lab: &Lab) -> Outcome {
    let since = Instant::now();
    lab.power_on(NODE)?;
    lab.expect_within(REBOOT_LIMIT, "the node's prompt", || lab.has_prompt(NODE))?;
    lab.wait_for_vips()?;
    let first = since.elapsed();
    if !lab.fault(NODE, &format!("read {SECURE_BOOT}"))?.trim_end().ends_with('\u{1}') {
        return Err("the firmware does not say that Secure Boot is on".into());
    }
    // The drivers came as modules: those of the network at least are in use.
    let modules = lab.fault(NODE, "read /proc/modules")?;
    if !modules.contains("virtio_net") {
        return Err(format!("no driver was loaded:\n{modules}").into());
    }
    lab.power_off(NODE)?;

    let disk = lab.disk(NODE)?;
    let (a, b) = (disk.partition("SLOT-A")?, disk.partition("SLOT-B")?);
    let mut bytes = disk.read(a.start, a.size.min(SLOT_READ))?;
    unsign(&mut bytes).ok_or("no signed boot file in SLOT-A")?;
    // The label is in the first sector and in the root directory, both in front of the boot file.
    for at in 0..1 << 20 {
        if bytes[at..].starts_with(b"SLOT-A     ") {
            bytes[at..at + 6].copy_from_slice(b"SLOT-B");
        }
    }
    disk.write(b.start, &bytes)?;
    disk.change_environments(|environment| {
        if environment.kernel_file.contains("SLOT-B") {
            (environment.revision, environment.state) = (2, State::Installed);
        }
        environment.watchdog_s = TRIAL_S;
    })?;
    let since = Instant::now();
    let run = lab.power(NODE)?.starts;
    lab.power_on(NODE)?;
    lab.expect_within(RETURN_LIMIT, "the committed slot's prompt after the trial was refused", || {
        lab.power(NODE).is_ok_and(|s| s.starts == run + 2) && lab.has_prompt(NODE)
    })?;
    lab.wait_for_vips()?;
    let back = since.elapsed();
    let end = lab.power(NODE)?.last_end.ok_or("the trial did not end")?;
    if !end.watchdog {
        return Err(format!("the trial ended otherwise than by the watchdog: {end:?}").into());
    }
    lab.power_off(NODE)?;
    let states = (disk.environment("ENV-A")?.state, disk.environment("ENV-B")?.state);
    if states != (State::Ok, State::Failed) {
        return Err(format!("the loader's environments are {states:?}").into());
    }
    Ok(format!("serves after {}; unsigned slot refused, back after {}", seconds(first), seconds(back)))
}

/// Takes the signature of the boot file in a slot's bytes out of its header.
fn unsign(slot: &mut [u8]) -> Option<()> {
    let at = (0..slot.len())
        .step_by(512)
        .find(|at| image::uki::sections(&slot[*at..]).is_ok_and(|s| s.len() > 8))?;
    let header = u32::from_le_bytes(slot.get(at + 0x3c..at + 0x40)?.try_into().ok()?) as usize;
    // Behind the signature "PE" and the COFF header: the fifth directory of the optional header.
    let entry = slot.get_mut(at + header + 24 + 144..)?.get_mut(..8)?;
    let signed = entry.iter().any(|b| *b != 0);
    entry.fill(0);
    signed.then_some(())
}
