//! init beside its peers: memory, restarts, mass starts, orphans; all in one run, round by round.
//!
//! ```text
//! prepare ── helpers (gcc), init (device profile), peers (apt-get download, dpkg -x)
//!    │
//! round ──┬─ subject ── 100 services ── start, memory, deaths, three quick deaths ── gone
//!    ▲    │         └── 10 services ── memory, orphans ── gone
//!    └────┴─ next subject; the next round begins with another one
//!    │
//! table
//! ```
//! Every subject is PID 1 of user, PID and mount namespaces of its own on a root that is made for it (`namespace`):
//! nothing of the host starts, changes or stays. Rounds are interleaved, so that the machine's other work hits all
//! subjects alike. It measures and judges nothing: `docs/benchmarks.md` has the bars.
//!
//! `cargo bench --profile dev -p evenkeel-tests --bench init [-- --rounds N --only NAME,NAME --offline]`. Without `--bench`, which
//! `cargo test` does not pass, it does nothing.

mod measure;
mod namespace;
mod packages;
mod reexec;
mod reports;
mod statistics;
mod subject;
mod subjects;
mod table;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use lab::command;
use lab::programs;

use crate::measure::Figures;
use crate::namespace::Stage;
use crate::subject::Subject;

/// Each round adds `measure::DEATHS_PER_ROUND` deaths of each subject: 450 in all.
const ROUNDS: usize = 5;
/// gcc needs a second for all helpers.
const GCC_LIMIT: Duration = Duration::from_secs(60);
const HELPERS: [(&str, &str); 3] = [
    ("service", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/init/helpers/service.c")),
    ("orphans", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/init/helpers/orphans.c")),
    ("floor", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/init/helpers/floor.c")),
];

/// What the command line asks for.
struct Options {
    rounds: usize,
    only: Option<Vec<String>>,
    offline: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == namespace::INSIDE) {
        let error = namespace::inside(arguments.get(1..).unwrap_or_default());
        eprintln!("cannot start the supervisor in its namespaces: {error}");
        return ExitCode::from(125);
    }
    if !arguments.iter().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    match options(&arguments).and_then(|options| bench(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options { rounds: ROUNDS, only: None, offline: false };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--offline" => options.offline = true,
            "--rounds" => {
                let number = words.next().and_then(|n| n.parse().ok()).filter(|n| (1..=1000).contains(n));
                options.rounds = number.ok_or("--rounds wants a number, 1 to 1000")?;
            }
            "--only" => {
                let names = words.next().ok_or("--only wants names, joined by commas")?;
                options.only = Some(names.split(',').map(str::to_owned).collect());
            }
            other => return Err(format!("unknown option {other}: --rounds N, --only NAME,NAME, --offline")),
        }
    }
    Ok(options)
}

/// Runs everything; false when a subject could not be measured.
fn bench(options: &Options) -> Result<bool, String> {
    let all = subjects::all();
    if let Some(only) = &options.only
        && let Some(unknown) = only.iter().find(|n| !all.iter().any(|s| s.name == **n))
    {
        let names: Vec<_> = all.iter().map(|s| s.name).collect();
        return Err(format!("no subject is named {unknown}: {}", names.join(", ")));
    }
    let wanted = |s: &Subject| options.only.as_ref().is_none_or(|only| only.iter().any(|n| n == s.name));
    let chosen: Vec<Subject> = all.into_iter().filter(wanted).collect();

    let stage = prepare(&chosen, options.offline)?;
    let load_before = table::load();
    let mut figures: Vec<Figures> = chosen.iter().map(|_| Figures::default()).collect();
    for (subject, figures) in chosen.iter().zip(&mut figures) {
        figures.size = stage.size(subject).map_err(|e| format!("{}: {e}", subject.name))?;
    }
    for round in 0..options.rounds {
        eprintln!("round {} of {} (load {})", round + 1, options.rounds, table::load());
        for turn in 0..chosen.len() {
            let at = (turn + round) % chosen.len();
            let (Some(subject), Some(figures)) = (chosen.get(at), figures.get_mut(at)) else { continue };
            if let Err(error) = measure::round(&stage, subject, figures) {
                eprintln!("{}: {error}", subject.name);
                figures.failures.push(error);
            }
        }
    }
    println!("{}", table::machine(&load_before, options.rounds));
    println!("{}", table::render(&chosen, &figures, &stage.peers));
    Ok(figures.iter().all(|f| f.failures.is_empty()))
}

/// Compiles, builds and unpacks what `subjects` need.
fn prepare(subjects: &[Subject], offline: bool) -> Result<Stage, String> {
    let own = programs::workspace().join("target/bench-init");
    let helpers = own.join("helpers");
    std::fs::create_dir_all(&helpers).map_err(|e| format!("cannot make {}: {e}", helpers.display()))?;
    for (name, source) in HELPERS {
        compile(source, &helpers.join(name))?;
    }
    let device = programs::build_crates(&["evenkeel-init"], offline).map_err(|e| e.to_string())?;
    let peers = packages::unpack(&own.join("packages"), subjects, offline)?;
    Stage::new(helpers, device, peers)
}

fn compile(source: &str, to: &Path) -> Result<(), String> {
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-s", "-Wall", "-Werror", "-o"]).arg(to).arg(source);
    let outcome = command::run(&mut gcc, GCC_LIMIT);
    if !outcome.ok() {
        return Err(format!("gcc does not compile {source}: {}", outcome.err));
    }
    Ok(())
}
