//! The life of one node: reboot, power, damage to its disk.

use crate::world::{MOVE_LIMIT, Outcome, REBOOT_LIMIT, World, at_most, holder, outage, whole};
use image::uki;
use lab::events::Hub;
use lab::lab::Lab;
use lab::machine::State;
use lab::table::seconds;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// As much of a slot as holds its boot file.
const SLOT_READ: u64 = 48 << 20;

pub(crate) fn reboot_hands_over(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "shop-2";
    let (node, _) = holder(lab, vip)?;
    let before = lab.power(&node)?.starts;
    world.mark()?;
    // The node may go before its agent has said that it will.
    let _ = lab.keel_within(&node, "reboot --yes", Duration::from_secs(10));
    lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
        holder(lab, vip).is_ok_and(|(now, _)| now != node)
    })?;
    let moved = outage(lab, vip)?;
    let since = Instant::now();
    lab.expect_within(REBOOT_LIMIT, "the node is back", || {
        lab.power(&node).is_ok_and(|s| s.starts == before + 1) && whole(lab, &node)
    })?;
    let text =
        format!("{} ms without service; node back after {}", moved.as_millis(), seconds(since.elapsed()));
    at_most(moved, Duration::from_secs(1), text)
}

pub(crate) fn power_off_and_on(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-6";
    let (node, _) = holder(lab, vip)?;
    world.mark()?;
    lab.power_off(&node)?;
    lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
        holder(lab, vip).is_ok_and(|(now, _)| now != node)
    })?;
    let moved = outage(lab, vip)?;
    lab.power_on(&node)?;
    let back = lab.expect_within(REBOOT_LIMIT, "the node is back", || whole(lab, &node))?;
    let text = format!("{} ms without service; node back after {}", moved.as_millis(), seconds(back));
    at_most(moved, Duration::from_secs(6), text)
}

/// The power is cut while the first boot writes its disk, at several points; after the last cut the node boots and
/// serves.
pub(crate) fn cut_and_boot(lab: &Lab) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    let disk = lab.dir().join("n1/disk.qcow2");
    let written = || std::fs::metadata(&disk).map(|m| (m.mtime(), m.mtime_nsec())).unwrap_or_default();
    let mut cuts = Vec::new();
    // The loader writes nothing on an ordinary boot: the first write is init's, when it mounts STATE.
    for writes in [1, 8, 18] {
        lab.power_on("n1")?;
        let (mut seen, mut last) = (0, written());
        let hub = Hub::default();
        let cut = hub.wait(REBOOT_LIMIT, Duration::from_millis(1), || {
            let now = written();
            if now != last {
                (seen, last) = (seen + 1, now);
            }
            (seen >= writes || lab.has_prompt("n1")).then_some(seen)
        });
        lab.power_off("n1")?;
        cuts.push(
            cut.ok_or_else(|| format!("the disk was not written to {writes} times, and no prompt came"))?,
        );
    }
    lab.power_on("n1")?;
    lab.wait_for_vips()?;
    lab.expect_within(REBOOT_LIMIT, "the prompt", || lab.has_prompt("n1"))?;
    let state = lab.keel("n1", "show state")?;
    let boot = state.lines().find(|l| l.starts_with("boot")).unwrap_or("no boot line").to_owned();
    Ok(format!("power cut after {cuts:?} writes, then it serves; {boot}"))
}

/// Bytes near the end of the boot file's initramfs are not what they were. The kernel runs PID 1 on what it could unpack;
/// that finds the damage, starts nothing from it and says so.
pub(crate) fn damaged_initramfs(lab: &Lab) -> Outcome {
    // The disk is made at the first power on.
    lab.power_on("n1")?;
    lab.power_off("n1")?;
    let disk = lab.disk("n1")?;
    let slot = disk.partition("SLOT-A")?;
    let bytes = disk.read(slot.start, slot.size.min(SLOT_READ))?;
    // The only file of the slot is in one piece and begins on a sector.
    let found = (0..bytes.len()).step_by(512).find_map(|at| {
        let sections = uki::sections(bytes.get(at..)?).ok()?;
        let initrd = sections.into_iter().find(|section| section.name == ".initrd")?;
        Some(at as u64 + u64::from(initrd.offset) + u64::from(initrd.size) * 9 / 10)
    });
    let place = found.ok_or("no boot file with an initramfs in SLOT-A")?;
    disk.write(slot.start + place / 512 * 512, &[0x55; 512])?;

    let serial = lab.serial("n1")?;
    let before = serial.position();
    lab.power_on("n1")?;
    let step = "Evenkeel cannot start: verifying the system's own files failed";
    let said = serial.wait_for(before, step, REBOOT_LIMIT)?;
    serial.wait_for(said, "rescue> ", REBOOT_LIMIT)?;
    let why = serial.text_since(said);
    Ok(why.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason").to_owned())
}

/// STATE is no file system any more: the console says so and takes commands.
pub(crate) fn damage_and_boot(lab: &Lab) -> Outcome {
    // The disk is made at the first power on.
    lab.power_on("n1")?;
    lab.power_off("n1")?;
    let disk = lab.disk("n1")?;
    // The first superblock, 1 KiB into the partition.
    disk.write(disk.partition("STATE")?.start, &[0; 4096])?;

    let serial = lab.serial("n1")?;
    let before = serial.position();
    lab.power_on("n1")?;
    let said = serial.wait_for(before, "Evenkeel cannot start: mounting STATE failed", REBOOT_LIMIT)?;
    let ready = serial.wait_for(said, "rescue> ", REBOOT_LIMIT)?;
    let mut console = UnixStream::connect(lab.dir().join("n1/con"))?;
    console.write_all(b"disks\r")?;
    let listed = serial.wait_for(ready, "STATE", REBOOT_LIMIT)?;
    serial.wait_for(listed, "rescue> ", REBOOT_LIMIT)?;
    console.write_all(b"power-off\r")?;
    lab.expect_within(REBOOT_LIMIT, "the node switched off from the rescue prompt", || {
        lab.power("n1").is_ok_and(|status| matches!(status.state, State::Off { .. }))
    })?;
    let why = serial.text_since(said);
    Ok(why.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason").to_owned())
}
