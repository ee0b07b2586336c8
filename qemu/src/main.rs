//! `cargo lab`: clusters of the built image in QEMU, and all tests.

use clap::{Parser, Subcommand, ValueEnum};
use lab::control::{Client, KEEL_LIMIT_MAX_S, Reply, Request};
use lab::error::LabError;
use lab::machine::Press;
use lab::progress::{Progress, Terminal, print};
use lab::{dir, lab as lab_file, prepare, prove_command, supervisor, terminal, test_command, up};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Boots clusters of the built image in QEMU and runs all tests. Needs no root (only missing packages do).
///
/// Exit codes: 0 done; 1 failed or refused; 2 bad command line; 3 packages are missing (the line to run is printed);
/// `keel` passes the exit code of the command on.
#[derive(Parser)]
#[command(name = "lab", bin_name = "cargo lab", version, subcommand_required = true)]
struct Arguments {
    /// Which lab: two may run at once.
    #[arg(long, global = true, default_value = "demo")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, boot a cluster, show live events until Ctrl-C.
    Up {
        /// Return when the cluster serves; it goes on until `down`.
        #[arg(long)]
        detach: bool,
        /// Fetch nothing: work from the caches.
        #[arg(long)]
        offline: bool,
        /// Cluster file to boot instead of the demo cluster (qemu/demo.toml).
        #[arg(long, value_name = "FILE")]
        cluster: Option<PathBuf>,
        /// Keep disks, keys and logs at the end, and go on with those of the last lab of this name that was kept.
        #[arg(long)]
        keep: bool,
        /// Words behind the kernel command line of every node: `--append evenkeel.watchdog=10`.
        #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
        append: String,
    },
    /// Show nodes, VIPs and who answers for them.
    Status,
    /// Use a node's serial console; Ctrl-] leaves.
    Console { node: String },
    /// Run a keel command on a node: `cargo lab keel a1 -- show vips`.
    Keel {
        node: String,
        /// Seconds to wait for its end.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=KEEL_LIMIT_MAX_S))]
        limit: u64,
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Plug a node's port in or pull it.
    Link { node: String, port: String, state: UpDown },
    /// Switch a node on, or cut its power.
    Power { node: String, state: OnOff },
    /// Stop a node's processor and clocks.
    Freeze { node: String },
    /// Let a frozen node go on.
    Thaw { node: String },
    /// Press a node's power button: it shuts down in order. Or another button.
    Button {
        node: String,
        #[arg(value_enum, default_value_t = Press::Power)]
        button: Press,
    },
    /// Have lab-fault on a node do something: `fault a1 -- read /proc/1/status`; `fault a1 -- help` lists what.
    Fault {
        node: String,
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Send a signal to a program on a node: `signal a1 netd KILL`.
    Signal {
        node: String,
        program: String,
        #[arg(value_parser = ["KILL", "STOP", "CONT", "TERM"])]
        signal: String,
    },
    /// Print everything a node's console said.
    Logs { node: String },
    /// Carry TCP connections of this host to a VIP: `forward 127.0.0.1:8080 web-1:80`.
    Forward {
        listen: SocketAddr,
        #[arg(value_name = "VIP:PORT")]
        to: String,
    },
    /// End the lab.
    Down,
    /// Install packages, build device programs and image; boot nothing.
    Prepare {
        /// Fetch nothing: work from the caches.
        #[arg(long)]
        offline: bool,
    },
    /// Run all tests, each stage against its budget (tests/budget.toml).
    Test {
        /// Only this stage; may be given several times.
        #[arg(long, value_name = "NAME", value_parser = test_command::STAGES)]
        stage: Vec<String>,
        /// Fetch nothing: work from the caches.
        #[arg(long)]
        offline: bool,
    },
    /// Explore what is too large for the tests: models with larger bounds (docs/proof.md).
    Prove {
        /// Only this proof; may be given several times.
        #[arg(long, value_name = "NAME", value_parser = prove_command::NAMES)]
        proof: Vec<String>,
    },
    /// The process behind a running lab; started by `up`.
    #[command(hide = true)]
    Supervise,
}

#[derive(Clone, Copy, ValueEnum)]
enum UpDown {
    Up,
    Down,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, LabError> {
    let name = arguments.name;
    let connect = || Client::connect(&dir::default_root(), &name);
    let ask = |request: &Request| -> Result<(), LabError> {
        if let Reply::Done(word) = connect()?.call(request, up::CALL_LIMIT)? {
            let _ = print(&format!("{word}\n"));
        }
        Ok(())
    };
    match arguments.command {
        Command::Up { detach, offline, cluster, keep, append } => {
            up::run(&up::Options { name, cluster, detach, offline, keep, append })?;
        }
        Command::Status => {
            let _ = print(&up::render(&up::ask_status(&mut connect()?)?));
        }
        Command::Console { node } => {
            let status = up::ask_status(&mut connect()?)?;
            let found = status.nodes.iter().find(|n| n.name == node).ok_or_else(|| no_node(&node))?;
            terminal::attach(&node, found.console.as_ref())?;
        }
        Command::Keel { node, limit, command } => {
            let request = Request::Keel { node, command: command.join(" "), limit_s: limit };
            // The lab itself gives up at the limit: its answer says more than ours would.
            let answer = connect()?.call(&request, Duration::from_secs(limit) + up::CALL_LIMIT)?;
            if let Reply::Answer { code, text } = answer {
                let _ = print(&text);
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
        }
        Command::Link { node, port, state } => {
            ask(&Request::Link { port: format!("{node}:{port}"), up: matches!(state, UpDown::Up) })?;
        }
        Command::Power { node, state } => ask(&Request::Power { node, on: matches!(state, OnOff::On) })?,
        Command::Freeze { node } => ask(&Request::Freeze { node, frozen: true })?,
        Command::Thaw { node } => ask(&Request::Freeze { node, frozen: false })?,
        Command::Button { node, button } => ask(&Request::Press { node, button })?,
        Command::Fault { node, command } => {
            let request = Request::Fault { node, command: command.join(" ") };
            if let Reply::Answer { text, .. } = connect()?.call(&request, up::CALL_LIMIT * 2)? {
                let _ = print(&text);
            }
        }
        Command::Signal { node, program, signal } => ask(&Request::Signal { node, program, signal })?,
        Command::Logs { node } => {
            dir::check_name(&name)?;
            // Also after the lab's end: its logs stay until the next one of its name.
            let path = dir::default_root().join(&name).join(&node).join("con.log");
            let plain = !node.contains('/') && !node.starts_with('.');
            let mut log = std::fs::File::open(&path).ok().filter(|_| plain).ok_or_else(|| no_node(&node))?;
            // Whoever reads may have seen enough.
            let _ = std::io::copy(&mut log, &mut std::io::stdout());
        }
        Command::Forward { listen, to } => ask(&Request::Forward { listen, to })?,
        Command::Down => up::down(&mut connect()?, &mut Terminal::default())?,
        Command::Prepare { offline } => {
            let prepared = prepare::prepare(offline, &mut Terminal::default())?;
            Terminal::default().detail(&prepared.base.display().to_string());
            lab_file::check(&lab_file::demo_file())?;
        }
        Command::Test { stage, offline } => {
            if !test_command::run(&stage, offline)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Prove { proof } => {
            if !prove_command::run(&proof)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Supervise => supervisor::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn no_node(node: &str) -> LabError {
    LabError::Refused(format!("the lab has no node {node}; see `cargo lab status`"))
}
