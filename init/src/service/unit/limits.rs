//! `[limits]`: how much of the machine a service may use.
//!
//! What the control group bounds counts for the service with all its descendants, the rest for each of its processes.

use serde::Deserialize;
use toml::Spanned;

use super::Refusal;
use super::place::{Source, shorten};

/// Less than this runs no program: the first page faults already end it.
const MEMORY_MIN: u64 = 256 * 1024;
/// Largest size in a file: the kernel's counters are signed.
const SIZE_MAX: u64 = i64::MAX as u64;
/// The kernel's own bound on process numbers (`PID_MAX_LIMIT`).
const PROCESSES_MAX: u64 = 4 * 1024 * 1024;
/// Per cent of one processor; 64 processors.
const CPU_PERCENT_MAX: u64 = 6400;
/// A service starts with up to twelve descriptors; the kernel's `fs.nr_open` is the upper bound.
const OPEN_FILES: std::ops::RangeInclusive<u64> = 16..=1024 * 1024;

/// Limits of one service; what is absent has init's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of the control group.
    pub(crate) group: GroupLimits,
    /// `RLIMIT_NOFILE`.
    pub(crate) open_files: Option<u64>,
    /// `RLIMIT_CORE`, bytes.
    pub(crate) core_dump: Option<u64>,
    /// `RLIMIT_MEMLOCK`, bytes.
    pub(crate) locked_memory: Option<u64>,
    /// Whom the kernel ends first when memory is short: -1000 (never) to 1000.
    pub(crate) oom_score_adj: Option<i32>,
    /// -20 (most) to 19 (least of the processor).
    pub(crate) nice: Option<i32>,
    /// Priority in `SCHED_FIFO`.
    pub(crate) realtime_priority: Option<u8>,
}

/// What a control group of cgroup v2 bounds; each needs its controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupLimits {
    /// Bytes (`memory.max`); the whole group is ended when it needs more.
    pub(crate) memory: Option<u64>,
    /// Processes and threads (`pids.max`).
    pub(crate) processes: Option<u64>,
    /// Per cent of one processor (`cpu.max`).
    pub(crate) cpu_percent: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    memory: Option<Spanned<String>>,
    processes: Option<Spanned<u64>>,
    cpu_percent: Option<Spanned<u64>>,
    open_files: Option<Spanned<u64>>,
    core_dump: Option<Spanned<String>>,
    locked_memory: Option<Spanned<String>>,
    oom_score_adj: Option<Spanned<i32>>,
    nice: Option<Spanned<i32>>,
    realtime_priority: Option<Spanned<u8>>,
}

/// # Errors
/// The first key that breaks a rule.
pub(super) fn parse(raw: Option<&Raw>, source: &Source<'_>) -> Result<Limits, Refusal> {
    let Some(raw) = raw else { return Ok(Limits::default()) };
    Ok(Limits {
        group: GroupLimits {
            memory: size(&raw.memory, "limits.memory", MEMORY_MIN, source)?,
            processes: source.within(&raw.processes, "limits.processes", 1..=PROCESSES_MAX)?,
            cpu_percent: source.within(&raw.cpu_percent, "limits.cpu_percent", 1..=CPU_PERCENT_MAX)?,
        },
        open_files: source.within(&raw.open_files, "limits.open_files", OPEN_FILES)?,
        core_dump: size(&raw.core_dump, "limits.core_dump", 0, source)?,
        locked_memory: size(&raw.locked_memory, "limits.locked_memory", 0, source)?,
        oom_score_adj: source.within(&raw.oom_score_adj, "limits.oom_score_adj", -1000..=1000)?,
        nice: source.within(&raw.nice, "limits.nice", -20..=19)?,
        realtime_priority: source.within(&raw.realtime_priority, "limits.realtime_priority", 1..=99)?,
    })
}

/// A size like `"32M"` in bytes, at least `min`.
fn size(
    value: &Option<Spanned<String>>,
    key: &str,
    min: u64,
    source: &Source<'_>,
) -> Result<Option<u64>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let refuse = |rule: String| Err(source.refuse_value(value, key, rule));
    let text = value.get_ref().as_str();
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return refuse(format!(
            "expected a size like \"512K\", \"32M\" or \"1G\", found {:?}",
            shorten(text)
        ));
    }
    // All digits: only an overflow can fail.
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|n| *n <= SIZE_MAX);
    match bytes {
        None => refuse(format!("{} is more than any machine has", shorten(text))),
        Some(bytes) if bytes < min => {
            refuse(format!("{} is too little for any program: at least {} K", shorten(text), min / 1024))
        }
        Some(bytes) => Ok(Some(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::unit::tests::{refused, unit};

    #[test]
    fn every_limit_is_read() {
        let l = unit(
            "[limits]\nmemory = '32M'\nprocesses = 16\ncpu_percent = 50\nopen_files = 64\ncore_dump = '0'\n\
             locked_memory = '1G'\noom_score_adj = -900\nnice = -5\nrealtime_priority = 10",
        )
        .limits;
        let group = GroupLimits { memory: Some(32 << 20), processes: Some(16), cpu_percent: Some(50) };
        assert_eq!(l.group, group);
        assert_eq!((l.open_files, l.core_dump, l.locked_memory), (Some(64), Some(0), Some(1 << 30)));
        assert_eq!((l.oom_score_adj, l.nice, l.realtime_priority), (Some(-900), Some(-5), Some(10)));
        assert_eq!(unit("[limits]").limits, Limits::default());
        assert_eq!(unit("[limits]\nmemory = '262144'").limits.group.memory, Some(256 << 10));
    }

    #[test]
    fn impossible_limits_are_refused_with_line_and_key() {
        let cases = [
            ("memory = '0'", "limits.memory: 0 is too little"),
            ("memory = '17179869184G'", "limits.memory: 17179869184G is more than any machine has"),
            ("memory = '99999999999999999999'", "limits.memory: 99999999999999999999 is more"),
            ("memory = '8589934592G'", "limits.memory: 8589934592G is more"),
            ("memory = 'M'", "limits.memory: expected a size"),
            ("memory = '-1M'", "limits.memory: expected a size"),
            ("memory = '1 M'", "limits.memory: expected a size"),
            ("memory = '1MiB'", "limits.memory: expected a size"),
            ("memory = '1µ'", "limits.memory: expected a size"),
            ("memory = ''", "limits.memory: expected a size"),
            ("memory = 32", "limits.memory: invalid type"),
            ("processes = 0", "limits.processes: expected 1 to 4194304, found 0"),
            ("processes = 99999999999999999999", ""),
            ("cpu_percent = 0", "limits.cpu_percent: expected 1 to 6400"),
            ("open_files = 15", "limits.open_files: expected 16 to 1048576, found 15"),
            ("open_files = 1048577", "limits.open_files: expected 16"),
            ("oom_score_adj = -1001", "limits.oom_score_adj: expected -1000 to 1000"),
            ("nice = 20", "limits.nice: expected -20 to 19, found 20"),
            ("realtime_priority = 0", "limits.realtime_priority: expected 1 to 99"),
            ("realtime_priority = 256", "limits.realtime_priority: invalid value"),
            ("threads = 1", "limits.threads: unknown field"),
        ];
        for (text, expected) in cases {
            let said = refused(&format!("[limits]\n{text}"));
            assert!(said.starts_with(&format!("a.toml:3: {expected}")), "{text}: {said}");
        }
    }
}
