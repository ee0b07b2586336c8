//! How instructions are executed: KVM only where it is proven to work, emulation everywhere else.
//!
//! An existing `/dev/kvm` proves nothing: on hosts whose KVM is a para-virtual stand-in QEMU aborts or hangs without
//! a word, after it has chosen its accelerator. So the modules decide whether a probe is worth it, and a probe boot
//! of the real kernel decides.

use crate::error::LabError;
use crate::machine::QEMU;
use crate::sys;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation: 10 to 30 times slower, works everywhere.
    Tcg,
}

/// What can be seen of the host without starting anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// `/dev/kvm` opens for reading and writing.
    pub device: bool,
    /// `kvm_intel` or `kvm_amd` is there.
    pub hardware: bool,
    /// `kvm_pvm` is there.
    pub stand_in: bool,
}

impl Host {
    /// Looks at this host. `/sys/module` is asked, because lsmod and /proc/modules may be missing.
    pub fn look() -> Host {
        let module = |name: &str| Path::new("/sys/module").join(name).exists();
        Host {
            device: std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok(),
            hardware: module("kvm_intel") || module("kvm_amd"),
            stand_in: module("kvm_pvm"),
        }
    }

    /// Why KVM is out of the question, or `None` when a probe boot may decide.
    pub fn objection(self) -> Option<&'static str> {
        match self {
            Host { device: false, .. } => Some("/dev/kvm cannot be opened"),
            Host { stand_in: true, .. } => Some("the host's KVM is a para-virtual stand-in (kvm_pvm)"),
            Host { hardware: false, .. } => Some("neither kvm_intel nor kvm_amd is loaded"),
            Host { .. } => None,
        }
    }
}

/// How long the kernel may take to say its first word under KVM.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// The first word.
const PROBE_MARKER: &str = "Linux version";
/// A process that was killed is gone when the kernel has taken its memory back.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Decides from what the host shows, from the remembered verdict and, only when both leave it open, from `probe`.
/// Returns the accelerator and why it was chosen.
pub fn decide(host: Host, remembered: Option<Accel>, probe: impl FnOnce() -> bool) -> (Accel, &'static str) {
    if let Some(objection) = host.objection() {
        return (Accel::Tcg, objection);
    }
    match remembered {
        Some(Accel::Kvm) => (Accel::Kvm, "a probe boot worked before"),
        Some(Accel::Tcg) => (Accel::Tcg, "a probe boot failed before"),
        None if probe() => (Accel::Kvm, "a probe boot worked"),
        None => (Accel::Tcg, "a probe boot under KVM failed"),
    }
}

/// The accelerator for machines that boot `kernel`. The probe's verdict is kept in `cache` until the host boots anew.
pub fn choose(kernel: &Path, cache: &Path) -> Result<(Accel, &'static str), LabError> {
    let file = cache.join("accel");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let remembered = std::fs::read_to_string(&file).ok().and_then(|text| recall(&text, boot.trim()));
    let mut probed = false;
    let (accel, why) = decide(Host::look(), remembered, || {
        probed = true;
        probe(kernel)
    });
    if probed {
        let word = if accel == Accel::Kvm { "kvm" } else { "tcg" };
        std::fs::create_dir_all(cache)
            .and_then(|()| std::fs::write(&file, format!("{} {word}\n", boot.trim())))
            .map_err(LabError::io(format!("write {}", file.display())))?;
    }
    Ok((accel, why))
}

/// Reads a verdict of this boot of the host.
fn recall(text: &str, boot: &str) -> Option<Accel> {
    match text.trim().split_once(' ')? {
        (of, "kvm") if of == boot => Some(Accel::Kvm),
        (of, "tcg") if of == boot => Some(Accel::Tcg),
        _ => None,
    }
}

/// Whether `kernel` says its first word under KVM in time. Nothing is left behind.
fn probe(kernel: &Path) -> bool {
    let Ok((mut console, console_end)) = UnixStream::pair() else { return false };
    let mut command = Command::new(QEMU);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256"])
        .args(["-machine", "pc-q35-7.2", "-accel", "kvm", "-cpu", "host"])
        .args([
            "-chardev",
            &format!("socket,id=console,fd={}", console_end.as_raw_fd()),
            "-serial",
            "chardev:console",
        ])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::bind_to_thread(&mut command, vec![console_end.into()]);
    let Ok(mut child) = command.spawn() else { return false };
    drop(command);
    let until = Instant::now() + PROBE_LIMIT;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let works = loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || console.set_read_timeout(Some(left)).is_err() {
            break false;
        }
        match console.read(&mut buffer) {
            Ok(n @ 1..) => seen.extend_from_slice(&buffer[..n]),
            _ => break false,
        }
        if String::from_utf8_lossy(&seen).contains(PROBE_MARKER) {
            break true;
        }
    };
    let _ = child.kill();
    let _ = sys::wait_child(&mut child, END_LIMIT, None);
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_only_where_everything_speaks_for_it() {
        let host = |device, hardware, stand_in| Host { device, hardware, stand_in };
        // (host, remembered, would the probe work, verdict, is the probe run)
        let table = [
            (host(false, true, false), None, true, Accel::Tcg, false),
            (host(true, false, false), None, true, Accel::Tcg, false),
            (host(true, true, true), None, true, Accel::Tcg, false),
            (host(true, false, true), Some(Accel::Kvm), true, Accel::Tcg, false),
            (host(true, true, false), None, true, Accel::Kvm, true),
            (host(true, true, false), None, false, Accel::Tcg, true),
            (host(true, true, false), Some(Accel::Kvm), false, Accel::Kvm, false),
            (host(true, true, false), Some(Accel::Tcg), true, Accel::Tcg, false),
        ];
        for (host, remembered, works, verdict, probes) in table {
            let mut asked = false;
            let (accel, why) = decide(host, remembered, || {
                asked = true;
                works
            });
            assert_eq!((accel, asked), (verdict, probes), "{host:?} {remembered:?}: {why}");
        }
    }

    #[test]
    fn a_verdict_counts_for_one_boot_of_the_host() {
        assert_eq!(recall("b00t kvm\n", "b00t"), Some(Accel::Kvm));
        assert_eq!(recall("b00t tcg\n", "b00t"), Some(Accel::Tcg));
        for stale in ["other kvm", "b00t", "b00t maybe", ""] {
            assert_eq!(recall(stale, "b00t"), None, "{stale}");
        }
    }
}
