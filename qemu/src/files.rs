//! What machines are started from, in the lab's directory: disks, firmware variables, personalities.
//!
//! What is there already is kept: a lab that goes on has its nodes' disks and keys from before.

use crate::arguments::{FIRMWARE_VARS, MachineSpec, Nic};
use crate::cluster::NodePlan;
use crate::command;
use crate::dir::LabDir;
use crate::disk::Disk;
use crate::enrol;
use crate::error::LabError;
use crate::keys::{LabKeys, seed_of};
use crate::lab::LabSpec;
use crate::prepare;
use crate::variant::{Variant, Watchdog};
use crate::wires::sockets;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// qemu-img makes a file of a few hundred KiB.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// A port's interface, as QEMU's device id.
pub(crate) fn nic_id(port: &str) -> String {
    format!("nic-{port}")
}

/// Images that disks of labs under `root` stand on.
pub(crate) fn bases_in_use(root: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let notes = entries.filter_map(|e| std::fs::read_to_string(e.path().join("base")).ok());
    notes.flat_map(|text| text.lines().map(PathBuf::from).collect::<Vec<_>>()).collect()
}

/// Makes what machines are started from.
pub(crate) struct Files<'a> {
    pub(crate) spec: &'a LabSpec,
    pub(crate) dir: &'a LabDir,
}

impl Files<'_> {
    /// Notes which image new disks stand on; kept disks stay on theirs, which stays noted.
    pub(crate) fn base(&self) -> Result<(), LabError> {
        let note = self.dir.path().join("base");
        let text = std::fs::read_to_string(&note).unwrap_or_default();
        let base = self.spec.base.display().to_string();
        if text.lines().any(|line| line == base) {
            return Ok(());
        }
        std::fs::write(&note, format!("{text}{base}\n"))
            .map_err(LabError::io(format!("write {}", note.display())))
    }

    /// Firmware variables as they leave the factory, as qcow2 so that snapshots can hold them.
    pub(crate) fn firmware(&self) -> Result<(), LabError> {
        let template = self.dir.path().join("vars.qcow2");
        if template.exists() {
            return Ok(());
        }
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "qcow2", FIRMWARE_VARS]).arg(&template);
        let outcome = command::run(&mut convert, TOOL_LIMIT);
        if outcome.ok() { Ok(()) } else { Err(outcome.failure("qemu-img convert")) }
    }

    /// One file per SMBIOS string; keys that are there stay.
    pub(crate) fn personalities(&self, nodes: &[NodePlan]) -> Result<(), LabError> {
        let file = |node: &str, index: usize| self.dir.path().join(node).join(format!("id-{index}"));
        let keys = LabKeys::generate(nodes, |node| seed_of(&std::fs::read_to_string(file(node, 1)).ok()?))?;
        for node in nodes {
            self.dir.node(&node.name)?;
            let strings = keys.personality(&node.name, &self.spec.cluster).into_iter().flatten();
            for (index, string) in strings.enumerate() {
                let path = file(&node.name, index);
                let written = std::fs::File::options()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&path)
                    .and_then(|mut f| std::io::Write::write_all(&mut f, string.as_bytes()));
                written.map_err(LabError::io(format!("write {}", path.display())))?;
            }
        }
        Ok(())
    }

    pub(crate) fn machine(&self, node: &NodePlan) -> Result<MachineSpec, LabError> {
        let dir = self.dir.node(&node.name)?;
        let (disk, vars) = (dir.join("disk.qcow2"), dir.join("vars.qcow2"));
        if !disk.exists() {
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&self.spec.base).arg(&disk);
            let outcome = command::run(&mut create, TOOL_LIMIT);
            if !outcome.ok() {
                return Err(outcome.failure("qemu-img create"));
            }
        }
        let variant = self.spec.variants.get(&node.name).cloned().unwrap_or_default();
        if !vars.exists() {
            let template = self.dir.path().join("vars.qcow2");
            if variant.secure_boot {
                enrolled_variables(&dir, &vars)?;
            } else {
                std::fs::copy(&template, &vars)
                    .map_err(LabError::io(format!("copy {}", template.display())))?;
            }
        }
        self.environments(&dir, &disk, &variant)?;
        let nics = node.ports.iter().map(|port| {
            let (machine_end, switch_end) = sockets(self.dir.path(), &node.name, &port.id.port.0);
            Nic { id: nic_id(&port.id.port.0), mac: port.mac, slot: port.slot, machine_end, switch_end }
        });
        Ok(MachineSpec {
            node: node.name.clone(),
            uuid: uuid(&self.spec.name, &node.name),
            accel: self.spec.accel,
            vars,
            disk,
            nics: nics.collect(),
            personality: (0..4).map(|index| dir.join(format!("id-{index}"))).collect(),
            hardware: variant.hardware,
            watchdog: variant.watchdog,
            second_serial: variant.second_serial,
            free_slot: variant.free_slot,
            resets_in_place: variant.resets_in_place,
            secure_boot: variant.secure_boot,
        })
    }

    /// Has the loader start the node as its variant says. What it was told last is noted: a kept disk of a usual
    /// machine is left alone, one of another machine is told anew.
    fn environments(&self, dir: &Path, disk: &Path, variant: &Variant) -> Result<(), LabError> {
        let note = dir.join("loader");
        let wanted = match variant.watchdog {
            Watchdog::I6300esb | Watchdog::Two => variant.kernel_words.trim().to_owned(),
            Watchdog::None => format!("(no watchdog) {}", variant.kernel_words.trim()),
        };
        if std::fs::read_to_string(&note).unwrap_or_default() == wanted {
            return Ok(());
        }
        let base =
            image::describe(&self.spec.base).map_err(|e| LabError::Refused(proto::text::one_line(&e)))?;
        let own = base.boot_files.iter().find(|f| f.partition == "SLOT-A").map_or("", |f| &f.cmdline);
        let arguments = match variant.kernel_words.trim() {
            "" => String::new(),
            words => format!("{own} {words}"),
        };
        let watchdog_s = match (variant.watchdog, base.environments.first()) {
            (Watchdog::I6300esb | Watchdog::Two, Some((_, Ok(environment)))) => environment.watchdog_s,
            _ => 0,
        };
        Disk::at(disk).change_environments(|environment| {
            environment.arguments.clone_from(&arguments);
            environment.watchdog_s = watchdog_s;
        })?;
        std::fs::write(&note, wanted).map_err(LabError::io(format!("write {}", note.display())))
    }
}

/// Firmware variables with the lab's keys for Secure Boot.
fn enrolled_variables(dir: &Path, vars: &Path) -> Result<(), LabError> {
    let factory = std::fs::read(FIRMWARE_VARS).map_err(LabError::io(format!("read {FIRMWARE_VARS}")))?;
    let enrolled = enrol::enrolled(&factory, &prepare::secure_boot_keys())
        .map_err(|detail| LabError::Refused(format!("cannot enrol keys into {FIRMWARE_VARS}: {detail}")))?;
    let raw = dir.join("vars.fd");
    std::fs::write(&raw, enrolled).map_err(LabError::io(format!("write {}", raw.display())))?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, vars].map(|p| p as &Path));
    let outcome = command::run(&mut convert, TOOL_LIMIT);
    let _ = std::fs::remove_file(&raw);
    if outcome.ok() { Ok(()) } else { Err(outcome.failure("qemu-img convert")) }
}

/// The same node of the same lab is the same machine every time.
fn uuid(lab: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("evenkeel lab {lab} node {node}"));
    let hex = proto::text::hex(&digest[..16]);
    // Version 8 (vendor specific), variant 1.
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_keep_their_uuid_and_share_it_with_none() {
        let a1 = uuid("demo", "a1");
        assert_eq!(a1, uuid("demo", "a1"));
        assert_ne!(a1, uuid("demo", "a2"));
        assert_ne!(a1, uuid("other", "a1"));
        assert_eq!(a1.len(), 36);
        let fields: Vec<usize> = a1.split('-').map(str::len).collect();
        assert_eq!(fields, [8, 4, 4, 4, 12]);
    }
}
