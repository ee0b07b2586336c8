//! The child's way into its confinement, between fork and exec.
//!
//! ```text
//! limits, scheduling, OOM score -> no_new_privs -> network -> mounts -> paths -> bounding set -> groups, user
//!   -> capabilities -> system calls
//! ```
//! The order is fixed by who may do what: namespaces, mounts and the bounding set need root's capabilities, a filter
//! of system calls would forbid what comes after it. Everything here is async-signal-safe and allocates nothing;
//! `service::confine` has made all of it ready before the fork. The report pipe stays open: none of the steps
//! concerns open descriptors.

use std::ffi::{CStr, CString};
use std::io;

use libc::c_int;

use super::check;
use super::landlock::{Access, Ruleset};

/// Flags of a private `/tmp`: data only.
const TMP_FLAGS: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
/// Its size is bounded like that of the machine's own.
const TMP_OPTIONS: &CStr = c"mode=1777,size=32m";
/// `MOUNT_ATTR_RDONLY`, `linux/mount.h`.
const MOUNT_ATTR_RDONLY: u64 = 1;
/// `_LINUX_CAPABILITY_VERSION_3`, `linux/capability.h`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Capabilities the kernel's interface has room for.
const CAPABILITIES_MAX: u32 = 64;

/// All that is done to the child. Made before the fork, once for all starts of a service.
pub(crate) struct Confinement {
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) nice: Wish<c_int>,
    /// Priority in `SCHED_FIFO`; 0 is the ordinary class.
    pub(crate) realtime_priority: Wish<c_int>,
    /// Text for `/proc/self/oom_score_adj`.
    pub(crate) oom_score_adj: Wish<CString>,
    pub(crate) no_new_privs: bool,
    pub(crate) no_network: bool,
    pub(crate) mounts: Option<Mounts>,
    /// The only paths it may use.
    pub(crate) paths: Option<Vec<(CString, Access)>>,
    /// User and group.
    pub(crate) identity: Option<(libc::uid_t, libc::gid_t)>,
    /// The capabilities that stay, a bit each.
    pub(crate) capabilities: Option<u64>,
    /// The compiled filter of system calls.
    pub(crate) filter: Option<Vec<libc::sock_filter>>,
}

/// A value that was asked for, or init's default.
pub(crate) struct Wish<T> {
    pub(crate) value: T,
    /// A default that cannot be had is no failure: without root's rights, in a container, what is inherited stays.
    pub(crate) asked: bool,
}

/// One `setrlimit(2)`.
pub(crate) struct ResourceLimit {
    pub(crate) resource: libc::__rlimit_resource_t,
    pub(crate) soft: libc::rlim_t,
    pub(crate) hard: libc::rlim_t,
    /// Otherwise a default, which never raises what the starter of init allows.
    pub(crate) asked: bool,
}

/// A mount namespace of its own and what changes in it.
pub(crate) struct Mounts {
    /// Make every mount read-only except at these paths.
    pub(crate) read_only_but: Option<Vec<CString>>,
    pub(crate) private_tmp: bool,
}

/// Where the child failed: the part, and which entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfineStep {
    pub(crate) part: Part,
    pub(crate) item: u8,
}

/// The parts in the order in which they are applied; their numbers go over the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Part {
    /// `item`: index in [`Confinement::limits`].
    ResourceLimit,
    Nice,
    RealtimePriority,
    OomScore,
    NoNewPrivs,
    Network,
    MountNamespace,
    /// `item`: index in [`Mounts::read_only_but`].
    WritableMount,
    ReadOnlyRoot,
    PrivateTmp,
    Rules,
    /// `item`: index in [`Confinement::paths`].
    Path,
    RulesInForce,
    BoundingSet,
    SupplementaryGroups,
    Group,
    User,
    Capabilities,
    Filter,
}

impl Part {
    const ALL: [Part; 19] = [
        Part::ResourceLimit,
        Part::Nice,
        Part::RealtimePriority,
        Part::OomScore,
        Part::NoNewPrivs,
        Part::Network,
        Part::MountNamespace,
        Part::WritableMount,
        Part::ReadOnlyRoot,
        Part::PrivateTmp,
        Part::Rules,
        Part::Path,
        Part::RulesInForce,
        Part::BoundingSet,
        Part::SupplementaryGroups,
        Part::Group,
        Part::User,
        Part::Capabilities,
        Part::Filter,
    ];
}

impl ConfineStep {
    /// As two bytes of a report.
    pub(crate) fn to_bytes(self) -> [u8; 2] {
        [self.part as u8, self.item]
    }

    /// From two bytes of a report.
    pub(crate) fn from_bytes([part, item]: [u8; 2]) -> Option<ConfineStep> {
        Some(ConfineStep { part: *Part::ALL.get(usize::from(part))?, item })
    }
}

type Failure = (ConfineStep, io::Error);

/// Confines the calling process, for good.
///
/// # Errors
/// The first part that cannot be applied, with the kernel's reason. The process is half confined then and must end.
pub(crate) fn apply(confinement: &Confinement) -> Result<(), Failure> {
    limits(confinement)?;
    if confinement.no_new_privs {
        // SAFETY: integers only.
        let r = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        check(r).map_err(at(Part::NoNewPrivs, 0))?;
    }
    if confinement.no_network {
        // SAFETY: integers only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map_err(at(Part::Network, 0))?;
    }
    if let Some(mounts) = &confinement.mounts {
        change_mounts(mounts)?;
    }
    if let Some(paths) = &confinement.paths {
        let rules = Ruleset::new().map_err(at(Part::Rules, 0))?;
        for (i, (path, access)) in paths.iter().enumerate() {
            rules.allow(path, *access).map_err(at(Part::Path, i))?;
        }
        rules.restrict().map_err(at(Part::RulesInForce, 0))?;
    }
    if let Some(kept) = confinement.capabilities {
        drop_bounding(kept).map_err(at(Part::BoundingSet, 0))?;
    }
    if let Some((user, group)) = confinement.identity {
        become_user(user, group, confinement.capabilities.is_some_and(|kept| kept != 0))?;
    }
    if let Some(kept) = confinement.capabilities {
        keep_capabilities(kept).map_err(at(Part::Capabilities, 0))?;
    }
    if let Some(filter) = &confinement.filter {
        install(filter).map_err(at(Part::Filter, 0))?;
    }
    Ok(())
}

fn at(part: Part, item: usize) -> impl Fn(io::Error) -> Failure {
    let step = ConfineStep { part, item: u8::try_from(item).unwrap_or(u8::MAX) };
    move |error| (step, error)
}

fn limits(confinement: &Confinement) -> Result<(), Failure> {
    for (i, limit) in confinement.limits.iter().enumerate() {
        set_limit(limit).map_err(at(Part::ResourceLimit, i))?;
    }
    let Confinement { nice, realtime_priority, oom_score_adj, .. } = confinement;
    // SAFETY: integers only; 0 means the calling process.
    let result = check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice.value) });
    unless_default(nice.asked, result.map(drop)).map_err(at(Part::Nice, 0))?;
    let policy = if realtime_priority.value == 0 { libc::SCHED_OTHER } else { libc::SCHED_FIFO };
    let parameter = libc::sched_param { sched_priority: realtime_priority.value };
    // SAFETY: the pointer is to one sched_param.
    let result = check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) });
    unless_default(realtime_priority.asked, result.map(drop)).map_err(at(Part::RealtimePriority, 0))?;
    let result = write_file(c"/proc/self/oom_score_adj", oom_score_adj.value.to_bytes());
    unless_default(oom_score_adj.asked, result).map_err(at(Part::OomScore, 0))
}

fn unless_default(asked: bool, result: io::Result<()>) -> io::Result<()> {
    if asked { result } else { Ok(()) }
}

fn set_limit(limit: &ResourceLimit) -> io::Result<()> {
    let mut wanted = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    if !limit.asked {
        let mut present = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to one rlimit.
        check(unsafe { libc::getrlimit(limit.resource, &raw mut present) })?;
        wanted.rlim_max = wanted.rlim_max.min(present.rlim_max);
        wanted.rlim_cur = wanted.rlim_cur.min(wanted.rlim_max);
    }
    // SAFETY: the pointer is to one rlimit.
    check(unsafe { libc::setrlimit(limit.resource, &raw const wanted) }).map(drop)
}

fn write_file(path: &CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: the pointer and the length are those of one slice.
    let written = check(unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) } as c_int);
    // SAFETY: opened above, and not used after this.
    unsafe { libc::close(fd) };
    written.map(drop)
}

fn change_mounts(mounts: &Mounts) -> Result<(), Failure> {
    let own = || {
        // SAFETY: integers only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // Whatever the root's mounts are shared with: from here on nothing goes out or comes in.
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
    };
    own().map_err(at(Part::MountNamespace, 0))?;
    if let Some(writable) = &mounts.read_only_but {
        // A path becomes a mount of its own first, so that it can differ from what it lies in.
        for (i, path) in writable.iter().enumerate() {
            mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, None)
                .map_err(at(Part::WritableMount, i))?;
        }
        set_read_only(c"/", true).map_err(at(Part::ReadOnlyRoot, 0))?;
        for (i, path) in writable.iter().enumerate() {
            set_read_only(path, false).map_err(at(Part::WritableMount, i))?;
        }
    }
    if mounts.private_tmp {
        mount(Some(c"tmp"), c"/tmp", Some(c"tmpfs"), TMP_FLAGS, Some(TMP_OPTIONS))
            .map_err(at(Part::PrivateTmp, 0))?;
    }
    Ok(())
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or NUL-terminated, and all live through the call.
    let r = unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast())
    };
    check(r).map(drop)
}

/// `struct mount_attr`, `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes the mount at `path` and all below it read-only, or this one mount writable again.
fn set_read_only(path: &CStr, on: bool) -> io::Result<()> {
    let mut attr = MountAttr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    *(if on { &mut attr.attr_set } else { &mut attr.attr_clr }) = MOUNT_ATTR_RDONLY;
    // Not recursive the other way: what was mounted read-only below the path stays that.
    let flags = if on { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is NUL-terminated, the kernel reads as many bytes as the structure has.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(r as c_int).map(drop)
}

/// What is not in the bounding set cannot come back by any exec.
fn drop_bounding(kept: u64) -> io::Result<()> {
    for number in 0..CAPABILITIES_MAX {
        // SAFETY: integers only.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } {
            1 if kept >> number & 1 == 0 => {
                // SAFETY: integers only.
                check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) })?;
            }
            0 | 1 => {}
            // The first number this kernel does not know.
            _ => break,
        }
    }
    Ok(())
}

/// By raw system calls: libc's functions of these names synchronise threads, with locks.
fn become_user(user: libc::uid_t, group: libc::gid_t, keeps_some: bool) -> Result<(), Failure> {
    if keeps_some {
        // Leaving root would clear what `keep_capabilities` is to keep. The next exec resets this.
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })
            .map_err(at(Part::Capabilities, 0))?;
    }
    // SAFETY: no groups, so that the pointer is not read.
    let r = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
    check(r as c_int).map_err(at(Part::SupplementaryGroups, 0))?;
    // SAFETY: integers only.
    let r = unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) };
    check(r as c_int).map_err(at(Part::Group, 0))?;
    // SAFETY: integers only.
    let r = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
    check(r as c_int).map_err(at(Part::User, 0)).map(drop)
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// `struct __user_cap_data_struct`; there are two, for the lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the effective, permitted, inheritable and ambient sets to `kept`: the program has exactly these, whoever it
/// runs as (`capabilities(7)`).
fn keep_capabilities(kept: u64) -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let word = |bits: u32| CapabilityData { effective: bits, permitted: bits, inheritable: bits };
    let data = [word(kept as u32), word((kept >> 32) as u32)];
    // SAFETY: a header and two data words, as this version of the interface has them.
    let r = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(r as c_int)?;
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    for number in (0..CAPABILITIES_MAX).filter(|n| kept >> n & 1 == 1) {
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) })?;
    }
    Ok(())
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        // The compiler refuses filters of 4096 instructions and more.
        len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads `len` instructions through the pointer and writes nothing.
    let r = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    check(r as c_int).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_survives_the_report_pipe() {
        for (number, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(part as u8), number);
            let step = ConfineStep { part, item: 7 };
            assert_eq!(ConfineStep::from_bytes(step.to_bytes()), Some(step));
        }
        assert_eq!(ConfineStep::from_bytes([Part::ALL.len() as u8, 0]), None);
    }
}
