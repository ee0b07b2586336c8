//! The table, as Markdown for `docs/benchmarks.md`, and the machine it was made on.

use std::fs;
use std::path::Path;

use crate::measure::Figures;
use crate::packages;
use crate::statistics::{median, percentile};
use crate::subject::{Kind, Subject};

/// The load averages of the last minute and five.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Processors, kernel and load, in one line.
pub(crate) fn machine(load_before: &str, rounds: usize) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = info.lines().filter_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let name = names.next().map_or("unknown processor", |(_, name)| name).to_owned();
    let count = 1 + names.count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{count} x {name}, Linux {}; {rounds} rounds; load {load_before} before, {} after\n",
        kernel.trim(),
        load()
    )
}

type Column = (&'static str, fn(&Figures) -> Option<String>);

/// What stands in a supervisor's row, in order.
const COLUMNS: [Column; 10] = [
    ("programs, kB", |f| Some(format!("{:.0}", f.size as f64 / 1e3))),
    ("private memory, 10 services, MB", |f| Some(format!("{:.2}", megabytes(median(&f.memory_few)?)))),
    ("its Pss, MB", |f| Some(format!("{:.2}", megabytes(median(&f.proportional_few)?)))),
    ("private, 100 services, MB", |f| Some(format!("{:.2}", megabytes(median(&f.memory_many)?)))),
    ("death to main, ms: median / p99 (deaths)", |f| {
        let (middle, high) = (median(&f.deaths)?, percentile(&f.deaths, 99)?);
        Some(format!("{middle:.2} / {high:.2} ({})", f.deaths.len()))
    }),
    ("three quick deaths, ms", |f| Some(format!("{:.0}", median(&f.quick)?))),
    ("start of 100, ms: median / p99", |f| spread(&f.start)),
    ("10,000 orphans, ms", |f| Some(format!("{:.1}", median(&f.orphans_wall)?))),
    ("CPU each, us: median / p99", |f| {
        Some(format!("{:.2} / {:.2}", median(&f.orphans_cpu)?, percentile(&f.orphans_cpu, 99)?))
    }),
    ("processes for 100", |f| (f.processes > 0).then(|| f.processes.to_string())),
];
/// Behind them when at least one subject can do it.
const REEXEC: [Column; 2] = [
    ("re-exec with 100, ms: median / p99", |f| spread(&f.reexec)),
    ("bytes lost", |f| Some(format!("{:.0}", f.lost.iter().copied().reduce(f64::max)?))),
];

fn megabytes(kib: f64) -> f64 {
    kib * 1024.0 / 1e6
}

fn spread(samples: &[f64]) -> Option<String> {
    Some(format!("{:.1} / {:.1}", median(samples)?, percentile(samples, 99)?))
}

/// The whole table. A cell is empty where nothing applies or nothing could be measured.
pub(crate) fn render(subjects: &[Subject], figures: &[Figures], peers: &Path) -> String {
    let mut columns = COLUMNS.to_vec();
    if figures.iter().any(|f| !f.reexec.is_empty()) {
        columns.extend(REEXEC);
    }
    let mut lines = vec![
        format!("| subject | {} |", columns.iter().map(|(head, _)| *head).collect::<Vec<_>>().join(" | ")),
        format!("|---|{}", "---|".repeat(columns.len())),
    ];
    for (subject, figures) in subjects.iter().zip(figures) {
        let cells: Vec<_> = columns.iter().map(|(_, cell)| cell(figures).unwrap_or_default()).collect();
        let star = if subject.kind == Kind::Reaper { " (one child)" } else { "" };
        let version = packages::version(peers, subject).map(|v| format!(" {v}")).unwrap_or_default();
        lines.push(format!("| {}{version}{star} | {} |", subject.name, cells.join(" | ")));
    }
    for (subject, figures) in subjects.iter().zip(figures) {
        for failure in &figures.failures {
            lines.push(format!("\n{}: a round ended early: {failure}", subject.name));
        }
    }
    lines.join("\n")
}
