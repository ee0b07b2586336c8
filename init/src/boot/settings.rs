//! The kernel's settings, each with its reason, and the limits of PID 1 that everything inherits.
//!
//! What is not here is left at the kernel's default on purpose:
//! * **OOM score of PID 1**: the kernel never chooses the first process (`oom_unkillable_task`), whatever its score; a
//!   score of -1000 would only be inherited by every service.
//! * **`RLIMIT_NOFILE`**: 1024 are enough for PID 1 (64 services take some 400) and what services expect.
//! * **`mlockall`**: it would make pages resident that nobody touches. See `sys/own_pages.rs` for those that are.
//! * **network settings** belong to netd.

use std::fs;

use nix::sys::resource::{Resource, setrlimit};

use crate::host::Host;
use crate::sys;

/// Path, value. Written once, before anything else runs.
const SETTINGS: [(&str, &str); 13] = [
    // A kernel panic restarts the machine, so that the loader can turn to the other slot.
    ("/proc/sys/kernel/panic", "10"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    // A task stuck for two minutes is said in the kernel's log, with its stack. No panic: a dead STATE disk leaves such
    // tasks behind, and the node has to go on without it.
    ("/proc/sys/kernel/hung_task_timeout_secs", "120"),
    ("/proc/sys/kernel/hung_task_panic", "0"),
    // From the serial line (break): sync, remount read-only, restart; nothing that shows or changes memory.
    ("/proc/sys/kernel/sysrq", "176"),
    // Memory images of daemons hold the node's private key and would fill STATE; see also RLIMIT_CORE below. A pattern
    // that is no regular file is written by nobody, also when a process raises its limit.
    ("/proc/sys/kernel/core_pattern", "/dev/null"),
    ("/proc/sys/fs/suid_dumpable", "0"),
    // The kernel's addresses and log are for root: they help whoever has broken into a daemon.
    ("/proc/sys/kernel/kptr_restrict", "1"),
    ("/proc/sys/kernel/dmesg_restrict", "1"),
    // Links, pipes and files that others have put into a world-writable directory are not followed (proc_sys_fs(5)).
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_fifos", "2"),
    ("/proc/sys/fs/protected_regular", "2"),
];

/// Puts them in force. What the kernel refuses is said; a kernel without a facility needs no setting for it.
pub(crate) fn apply(host: &mut Host) {
    for (path, value) in SETTINGS {
        match fs::write(path, value) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                host.log.warn(format_args!("{path}: {}", sys::errno_text(&error)));
            }
            _ => {}
        }
    }
    // No core dumps, for PID 1 and all it starts.
    if let Err(errno) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        host.log.warn(format_args!("core dumps are not off: {}", errno.desc()));
    }
    // Ctrl-Alt-Del becomes SIGINT to PID 1 instead of a reset without a sync.
    if let Err(errno) = nix::sys::reboot::set_cad_enabled(false) {
        host.log.warn(format_args!("Ctrl-Alt-Del resets at once: {}", errno.desc()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_knows_every_setting() {
        for (path, _) in SETTINGS {
            // Kernels of test hosts may be built without these.
            let optional = path.contains("hung_task") || path.contains("sysrq");
            assert!(optional || fs::exists(path).unwrap(), "{path}");
        }
    }
}
