//! A node's QEMU command line, as a pure function of its description.

use crate::accel::Accel;
use crate::cluster::PciSlot;
use crate::variant::{Hardware, Watchdog};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The firmware every node starts with; its variables are a copy per node.
pub const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The same with Secure Boot; it wants its variables out of the system's reach.
pub const FIRMWARE_CODE_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// What the copies are made of.
pub const FIRMWARE_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The device ids of the virtio ports, as QEMU's events call them.
pub const AGENT_PORT: &str = "agent-port";
/// The other one.
pub const FAULTS_PORT: &str = "faults-port";
/// The device that a free slot takes: keys, for whose driver the image waits until they are there.
pub const PLUGGED_IN: [(&str, &str); 3] =
    [("driver", "virtio-keyboard-pci"), ("id", "keys"), ("bus", "free")];
/// Below this the firmware spins without a word.
pub const MEMORY_MIB: u32 = 256;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// QEMU's device id: the port's name behind `nic-`.
    pub id: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Where it sits.
    pub slot: PciSlot,
    /// The datagram socket QEMU binds.
    pub machine_end: PathBuf,
    /// The datagram socket the switch binds.
    pub switch_end: PathBuf,
}

/// What a machine is made of. Paths exist when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The node's name, also the machine's serial number.
    pub node: String,
    /// The machine's UUID; the same node of the same lab keeps it.
    pub uuid: String,
    /// How instructions are executed.
    pub accel: Accel,
    /// Firmware variables, qcow2.
    pub vars: PathBuf,
    /// System disk, qcow2.
    pub disk: PathBuf,
    /// Interfaces in slot order of your choice.
    pub nics: Vec<Nic>,
    /// Files, one SMBIOS type 11 string each.
    pub personality: Vec<PathBuf>,
    /// What its disk and its interfaces are made of.
    pub hardware: Hardware,
    /// Its hardware watchdog.
    pub watchdog: Watchdog,
    /// Whether it has a second serial line.
    pub second_serial: bool,
    /// Whether it has a slot for [`PLUGGED_IN`].
    pub free_slot: bool,
    /// Whether QEMU goes on after a reset; otherwise it ends.
    pub resets_in_place: bool,
    /// Whether its firmware asks for signatures.
    pub secure_boot: bool,
}

/// Descriptor numbers of the machine's ends of its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// QMP.
    pub control: i32,
    /// Serial line.
    pub console: i32,
    /// The second one, when the machine has it.
    pub second_serial: Option<i32>,
    /// The virtio port `org.evenkeel.keel`.
    pub agent: i32,
    /// The virtio port `org.evenkeel.fault`.
    pub faults: i32,
}

/// The arguments of `qemu-system-x86_64`. The machine starts stopped: links are set first, then it may run.
pub fn arguments(spec: &MachineSpec, fds: Descriptors) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.add("-name", &format!("guest={}", spec.node));
    line.0.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
    if !spec.resets_in_place {
        line.0.push("-no-reboot".into());
    }
    line.0.push("-S".into());
    line.add("-display", "none");
    let firmware = if spec.secure_boot {
        line.add("-machine", "pc-q35-7.2,smm=on");
        line.add("-global", "driver=cfi.pflash01,property=secure,value=on");
        FIRMWARE_CODE_SECURE
    } else {
        line.add("-machine", "pc-q35-7.2,smm=off");
        FIRMWARE_CODE
    };
    match spec.accel {
        Accel::Kvm => {
            line.add("-accel", "kvm");
            line.add("-cpu", "host");
        }
        Accel::Tcg => {
            line.add("-accel", "tcg");
            line.add("-cpu", "max");
        }
    }
    line.add("-m", &MEMORY_MIB.to_string());
    // A second processor costs more under emulation and is no faster.
    line.add("-smp", "1");

    line.add("-chardev", &format!("socket,id=control,fd={}", fds.control));
    line.add("-mon", "chardev=control,mode=control");
    line.add("-chardev", &format!("socket,id=console,fd={}", fds.console));
    line.add("-serial", "chardev:console");
    if let Some(fd) = fds.second_serial {
        line.add("-chardev", &format!("socket,id=second,fd={fd}"));
        line.add("-serial", "chardev:second");
    }
    line.add("-chardev", &format!("socket,id=agent,fd={}", fds.agent));
    line.add("-device", "virtio-serial-pci,addr=0x06");
    line.add("-device", &format!("virtserialport,id={AGENT_PORT},chardev=agent,name=org.evenkeel.keel"));
    line.add("-chardev", &format!("socket,id=faults,fd={}", fds.faults));
    line.add("-device", &format!("virtserialport,id={FAULTS_PORT},chardev=faults,name=org.evenkeel.fault"));

    let watchdogs: &[&str] = match spec.watchdog {
        Watchdog::None => &[],
        Watchdog::I6300esb => &["0x03"],
        Watchdog::Two => &["0x03", "0x07"],
    };
    for slot in watchdogs {
        line.add("-device", &format!("i6300esb,addr={slot}"));
    }
    if !watchdogs.is_empty() {
        line.add("-action", "watchdog=reset");
    }
    if spec.free_slot {
        line.add("-device", "pcie-root-port,id=free,chassis=1,addr=0x08");
    }
    line.add("-device", "virtio-rng-pci,addr=0x04");
    line.add("-smbios", &format!("type=1,serial={},uuid={}", spec.node, spec.uuid));
    for file in &spec.personality {
        line.add_path("-smbios", "type=11,path=", file, "");
    }

    line.add_path("-drive", "if=pflash,unit=0,format=raw,readonly=on,file=", Path::new(firmware), "");
    line.add_path("-drive", "if=pflash,unit=1,format=qcow2,file=", &spec.vars, "");
    line.add_path("-drive", "if=none,id=d0,format=qcow2,cache=unsafe,file=", &spec.disk, "");
    line.add(
        "-device",
        match spec.hardware {
            Hardware::Virtio => "virtio-blk-pci,drive=d0,addr=0x05,serial=disk0",
            Hardware::Ahci => "ide-hd,drive=d0,bus=ide.0,serial=disk0",
            Hardware::Nvme => "nvme,drive=d0,addr=0x05,serial=disk0",
        },
    );

    let model = match spec.hardware {
        Hardware::Virtio => "virtio-net-pci",
        Hardware::Ahci | Hardware::Nvme => "e1000e",
    };
    for nic in &spec.nics {
        let mut netdev = OsString::from(format!("dgram,id=w-{},local.type=unix,local.path=", nic.id));
        netdev.push(doubled(&nic.machine_end));
        netdev.push(",remote.type=unix,remote.path=");
        netdev.push(doubled(&nic.switch_end));
        line.0.extend(["-netdev".into(), netdev]);
        let [a, b, c, d, e, f] = nic.mac;
        // Functions above 0 are only scanned when function 0 says there are more.
        let shared = spec.nics.iter().any(|n| n.slot.device == nic.slot.device && n.slot.function > 0);
        line.add(
            "-device",
            &format!(
                "{model},id={id},netdev=w-{id},mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},\
                 addr={slot},romfile={multi}",
                id = nic.id,
                slot = nic.slot,
                multi = if shared { ",multifunction=on" } else { "" },
            ),
        );
    }
    line.0
}

/// Arguments under construction.
struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, option: &str, value: &str) {
        self.0.extend([option.into(), value.into()]);
    }

    fn add_path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let mut value = OsString::from(before);
        value.push(doubled(path));
        value.push(after);
        self.0.extend([option.into(), value]);
    }
}

/// In QEMU's option syntax a comma inside a value is written twice.
fn doubled(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MachineSpec {
        let nic = |id: &str, device, function| Nic {
            id: id.into(),
            mac: [0x52, 0x54, 0, 9, 0, 10],
            slot: PciSlot { device, function },
            machine_end: format!("/l/{id}.vm").into(),
            switch_end: format!("/l/{id}.sw").into(),
        };
        MachineSpec {
            node: "a1".into(),
            uuid: "00000000-0000-4000-8000-000000000001".into(),
            accel: Accel::Tcg,
            vars: "/l/vars.qcow2".into(),
            disk: "/l,1/disk.qcow2".into(),
            nics: vec![nic("nic-p1", 0x10, 0), nic("nic-p2", 0x10, 1), nic("nic-m", 0x18, 0)],
            personality: vec!["/l/id-0".into(), "/l/id-1".into()],
            hardware: Hardware::Virtio,
            watchdog: Watchdog::I6300esb,
            second_serial: false,
            free_slot: false,
            resets_in_place: false,
            secure_boot: false,
        }
    }

    fn text(spec: &MachineSpec) -> String {
        let second_serial = spec.second_serial.then_some(14);
        let fds = Descriptors { control: 10, console: 11, second_serial, agent: 12, faults: 13 };
        let words = arguments(spec, fds).into_iter().map(|w| w.into_string().expect("plain text"));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn devices_sit_where_the_guest_looks_for_them() {
        let line = text(&spec());
        for part in [
            "-no-reboot -S ",
            "-machine pc-q35-7.2,smm=off -accel tcg -cpu max -m 256 -smp 1 ",
            "-chardev socket,id=control,fd=10 -mon chardev=control,mode=control ",
            "-chardev socket,id=console,fd=11 -serial chardev:console ",
            "-device virtserialport,id=agent-port,chardev=agent,name=org.evenkeel.keel ",
            "-chardev socket,id=faults,fd=13 -device virtserialport,id=faults-port,chardev=faults,name=org.evenkeel.fault ",
            "-device i6300esb,addr=0x03 -action watchdog=reset ",
            "-smbios type=11,path=/l/id-0 -smbios type=11,path=/l/id-1 ",
            "-drive if=none,id=d0,format=qcow2,cache=unsafe,file=/l,,1/disk.qcow2 ",
            "-netdev dgram,id=w-nic-p1,local.type=unix,local.path=/l/nic-p1.vm,remote.type=unix,remote.path=/l/nic-p1.sw ",
            "-device virtio-net-pci,id=nic-p1,netdev=w-nic-p1,mac=52:54:00:09:00:0a,addr=0x10,romfile=,multifunction=on ",
            "addr=0x10.1,romfile=,multifunction=on ",
        ] {
            assert!(line.contains(part), "{part:?} is in {line}");
        }
        assert!(line.ends_with("addr=0x18,romfile="), "a lone function needs no multifunction: {line}");
    }

    #[test]
    fn variants_differ_in_their_part_only() {
        let usual = text(&spec());
        let none = text(&MachineSpec { watchdog: Watchdog::None, ..spec() });
        assert_eq!(none, usual.replace("-device i6300esb,addr=0x03 -action watchdog=reset ", ""));
        let one = "-device i6300esb,addr=0x03 ";
        let two = text(&MachineSpec { watchdog: Watchdog::Two, ..spec() });
        assert_eq!(two, usual.replace(one, &format!("{one}-device i6300esb,addr=0x07 ")));
        let free = text(&MachineSpec { free_slot: true, ..spec() });
        let port = "-device pcie-root-port,id=free,chassis=1,addr=0x08 ";
        assert_eq!(free, usual.replace("-device virtio-rng-pci", &format!("{port}-device virtio-rng-pci")));
        let in_place = text(&MachineSpec { resets_in_place: true, ..spec() });
        assert_eq!(in_place, usual.replace("-no-reboot ", ""));
        let secure = text(&MachineSpec { secure_boot: true, ..spec() });
        let kept = "smm=on -global driver=cfi.pflash01,property=secure,value=on ";
        assert_eq!(secure, usual.replace("smm=off ", kept).replace(FIRMWARE_CODE, FIRMWARE_CODE_SECURE));
        for (hardware, disk) in
            [(Hardware::Ahci, "ide-hd,drive=d0,bus=ide.0,"), (Hardware::Nvme, "nvme,drive=d0,addr=0x05,")]
        {
            let real = text(&MachineSpec { hardware, ..spec() });
            let expected = usual.replace("virtio-blk-pci,drive=d0,addr=0x05,", disk);
            assert_eq!(real, expected.replace("virtio-net-pci", "e1000e"));
        }
        let second = text(&MachineSpec { second_serial: true, ..spec() });
        let first = "-serial chardev:console ";
        let both = format!("{first}-chardev socket,id=second,fd=14 -serial chardev:second ");
        assert_eq!(second, usual.replace(first, &both));
    }

    #[test]
    fn the_accelerator_brings_its_processor() {
        let line = text(&MachineSpec { accel: Accel::Kvm, ..spec() });
        assert!(line.contains("-accel kvm -cpu host ") && !line.contains("tcg"), "{line}");
    }
}
