//! From a unit to its confinement, before any fork: texts, numbers and the compiled filter.
//!
//! What a child does with it is `sys::confine`'s. Nothing here is confined itself, and nothing is looked up on disk.

use std::collections::BTreeMap;
use std::ffi::CString;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::service::unit::{Limits, Unit};
use crate::sys::confine::{ConfineStep, Confinement, Mounts, Part, ResourceLimit, Wish};
use crate::sys::landlock::Access;

/// What a child needs after its filter is in force: to execute the program, or to say why it cannot and to end.
const CALLS_OF_INIT: [i64; 3] = [libc::SYS_execve, libc::SYS_write, libc::SYS_exit_group];

/// Limits of each service whatever init has itself; the kernel's own for its first process, except that a core dump
/// has to be asked for. `(resource, soft, hard)`.
const DEFAULT_LIMITS: [(libc::__rlimit_resource_t, u64, u64); 6] = [
    (libc::RLIMIT_NOFILE, 1024, 4096),
    (libc::RLIMIT_CORE, 0, 0),
    (libc::RLIMIT_MEMLOCK, 8 << 20, 8 << 20),
    (libc::RLIMIT_STACK, 8 << 20, libc::RLIM_INFINITY),
    (libc::RLIMIT_NICE, 0, 0),
    (libc::RLIMIT_RTPRIO, 0, 0),
];

/// Prepares what `unit` asks for.
///
/// # Errors
/// The part that cannot be prepared, in the words of a service's row.
pub(crate) fn prepare(unit: &Unit) -> Result<Confinement, String> {
    let Unit { privileges, sandbox, limits, .. } = unit;
    let paths = sandbox.paths.as_ref().map(|paths| {
        let read = paths.read.iter().map(|p| (p.as_str(), Access::Read));
        let write = paths.write.iter().map(|p| (p.as_str(), Access::Write));
        let program = unit.command.first().map(|p| (p.as_str(), Access::Execute));
        let each = |(path, access)| Ok((c_string(path)?, access));
        read.chain(write).chain(program).map(each).collect::<Result<Vec<_>, String>>()
    });
    let writable = sandbox.paths.iter().flat_map(|p| &p.write).map(|p| c_string(p));
    let mounts = sandbox.private_mounts.then(|| {
        Ok::<_, String>(Mounts {
            read_only_but: sandbox.read_only_root.then(|| writable.collect()).transpose()?,
            private_tmp: sandbox.private_tmp,
        })
    });
    Ok(Confinement {
        limits: resource_limits(limits),
        nice: Wish { value: limits.nice.unwrap_or(0), asked: limits.nice.is_some() },
        realtime_priority: Wish {
            value: limits.realtime_priority.map_or(0, i32::from),
            asked: limits.realtime_priority.is_some(),
        },
        oom_score_adj: Wish {
            value: c_string(&limits.oom_score_adj.unwrap_or(0).to_string())?,
            asked: limits.oom_score_adj.is_some(),
        },
        no_new_privs: privileges.no_new_privs,
        no_network: sandbox.no_network,
        mounts: mounts.transpose()?,
        paths: paths.transpose()?,
        identity: privileges.identity.map(|i| (i.user, i.group)),
        capabilities: privileges.capabilities,
        filter: sandbox.system_calls.as_ref().map(|calls| compile(calls.iter().copied())).transpose()?,
    })
}

fn resource_limits(limits: &Limits) -> Vec<ResourceLimit> {
    let asked = [
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_CORE, limits.core_dump),
        (libc::RLIMIT_MEMLOCK, limits.locked_memory),
    ];
    DEFAULT_LIMITS
        .into_iter()
        .map(|(resource, soft, hard)| {
            match asked.iter().find(|(r, _)| *r == resource).and_then(|(_, value)| *value) {
                Some(value) => ResourceLimit { resource, soft: value, hard: value, asked: true },
                None => ResourceLimit { resource, soft, hard, asked: false },
            }
        })
        .collect()
}

/// A filter that lets `calls` pass and answers every other one with `EPERM`.
fn compile(calls: impl Iterator<Item = i64>) -> Result<Vec<libc::sock_filter>, String> {
    let fail = |e: seccompiler::BackendError| format!("cannot compile its list of system calls: {e}");
    let rules: BTreeMap<_, _> = calls.chain(CALLS_OF_INIT).map(|call| (call, Vec::new())).collect();
    let processor = std::env::consts::ARCH.try_into().map_err(fail)?;
    let refusal = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, refusal, SeccompAction::Allow, processor).map_err(fail)?;
    let program: BpfProgram = filter.try_into().map_err(fail)?;
    Ok(program.into_iter().map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
}

/// Words for a step that failed in the child, without the kernel's reason.
pub(crate) fn failed_step(unit: &Unit, step: ConfineStep) -> String {
    let item = usize::from(step.item);
    let none = Vec::new();
    let (read, write) = unit.sandbox.paths.as_ref().map_or((&none, &none), |p| (&p.read, &p.write));
    match step.part {
        Part::ResourceLimit => {
            let name = match DEFAULT_LIMITS.get(item).map(|l| l.0) {
                Some(libc::RLIMIT_NOFILE) => "limits.open_files",
                Some(libc::RLIMIT_CORE) => "limits.core_dump",
                Some(libc::RLIMIT_MEMLOCK) => "limits.locked_memory",
                _ => "the default limits",
            };
            format!("cannot set {name}")
        }
        Part::Nice => "cannot set limits.nice".to_owned(),
        Part::RealtimePriority => "cannot set limits.realtime_priority".to_owned(),
        Part::OomScore => "cannot set limits.oom_score_adj".to_owned(),
        Part::NoNewPrivs => "cannot set no_new_privs".to_owned(),
        Part::Network => "cannot take the network away (sandbox.network)".to_owned(),
        Part::MountNamespace => "cannot make mounts of its own (sandbox.private_mounts)".to_owned(),
        Part::WritableMount => {
            format!("cannot keep sandbox.write[{item}] writable: {}", write.get(item).map_or("", |p| p))
        }
        Part::ReadOnlyRoot => "cannot make the mounts read-only (sandbox.read_only_root)".to_owned(),
        Part::PrivateTmp => "cannot mount its own /tmp (sandbox.private_tmp)".to_owned(),
        Part::Rules => {
            "cannot restrict paths (sandbox.read, sandbox.write need Landlock version 5, Linux 6.10)"
                .to_owned()
        }
        Part::Path => {
            match (read.get(item), item.checked_sub(read.len()).and_then(|i| Some((i, write.get(i)?)))) {
                (Some(path), _) => format!("cannot allow sandbox.read[{item}]: {path}"),
                (None, Some((i, path))) => format!("cannot allow sandbox.write[{i}]: {path}"),
                (None, None) => "cannot allow its own program".to_owned(),
            }
        }
        Part::RulesInForce => "cannot put sandbox.read and sandbox.write in force".to_owned(),
        Part::BoundingSet => "cannot drop what is not in capabilities".to_owned(),
        Part::SupplementaryGroups => "cannot drop supplementary groups".to_owned(),
        Part::Group => "cannot change to its group".to_owned(),
        Part::User => "cannot change to its user".to_owned(),
        Part::Capabilities => "cannot keep its capabilities".to_owned(),
        Part::Filter => "cannot put sandbox.system_calls in force".to_owned(),
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} contains a NUL byte"))
}
