//! The built image as a cluster in QEMU: what a user sees of each fault.
//!
//! One cluster is booted and serves all scenarios in their order; before each of them every fault is undone and every
//! VIP answers. The name of a scenario is its row in `docs/scenarios.md`. Figures are medians over [`RUNS`] runs, told
//! by the lab's probing host: an echo every 10 ms, and a question to all stations every 100 ms who owns a VIP. Two
//! owners of any VIP fail the scenario, but for the time from a thaw until the cluster has settled.
//!
//! `cargo test -p evenkeel-tests --test e2e -- NAME` runs the scenarios whose names contain NAME; `--list` lists all.
//! The last line is `N passed, N failed`. Names that choose nothing are other tests' and no mistake.

use lab::dir;
use lab::error::LabError;
use lab::events::Hub;
use lab::lab::{Lab, LabSpec, test_name};
use lab::machine::State;
use lab::prepare::{self, Prepared};
use lab::progress::Terminal;
use lab::signals;
use lab::table::{self, seconds};
use lab::test_command;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

type Outcome = Result<String, Box<dyn Error>>;

/// Repetitions of a fault.
const RUNS: usize = 5;
/// Undoing faults: hold-downs of ports grow to seconds when they are pulled often.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// A state that has lasted this long has settled: longer than the first hold-downs of a port.
const STEADY: Duration = Duration::from_millis(1500);
/// A move that takes longer than this did not happen.
const MOVE_LIMIT: Duration = Duration::from_secs(20);
/// A node's whole way from reset to its prompt, beside three others.
const REBOOT_LIMIT: Duration = Duration::from_secs(120);

/// A scenario and what it needs.
struct Scenario {
    name: &'static str,
    run: fn(&World) -> Outcome,
}

const SCENARIOS: [Scenario; 9] = [
    Scenario { name: "v16_every_vip_is_served_after_power_on", run: v16_every_vip_is_served_after_power_on },
    Scenario { name: "v01_port_pulled", run: v01_port_pulled },
    Scenario { name: "v02_all_ports_of_a_node_pulled", run: v02_all_ports_of_a_node_pulled },
    Scenario { name: "v03_netd_killed", run: v03_netd_killed },
    Scenario { name: "v04b_node_frozen_and_thawed", run: v04b_node_frozen_and_thawed },
    Scenario { name: "b01_reboot_hands_over", run: b01_reboot_hands_over },
    Scenario {
        name: "b02_power_off_moves_vips_and_power_on_rejoins",
        run: b02_power_off_moves_vips_and_power_on_rejoins,
    },
    Scenario { name: "b03_power_cuts_in_the_first_boot", run: b03_power_cuts_in_the_first_boot },
    Scenario { name: "b04_damaged_state_ends_in_rescue", run: b04_damaged_state_ends_in_rescue },
];

/// The cluster, how it came up, and what was seen of it.
struct World {
    lab: Arc<Lab>,
    prepared: Prepared,
    /// From power on to the last VIP's first answer.
    served_after: Duration,
    /// Since the scenario began.
    owners: RefCell<Owners>,
    /// A node was thawed and the cluster has not settled since: the node believes in its lease, so two may answer.
    thawed: Cell<bool>,
}

/// Answered owner questions for all VIPs.
#[derive(Default)]
struct Owners {
    samples: u64,
    /// Those that two stations answered.
    doubles: u64,
    /// Their VIPs.
    doubled: BTreeSet<String>,
    /// The same between a thaw and the cluster's settling: measured, not forbidden.
    doubles_after_thaw: u64,
}

impl World {
    /// Starts a measurement of every VIP; what the last one saw is counted.
    fn mark(&self) -> Result<(), LabError> {
        let mut owners = self.owners.borrow_mut();
        for (vip, _) in self.lab.wires().vips() {
            let report = self.lab.wires().report(vip)?;
            owners.samples += report.samples;
            match report.double_owners_seen {
                0 => {}
                seen if self.thawed.get() => owners.doubles_after_thaw += seen,
                seen => {
                    owners.doubles += seen;
                    owners.doubled.insert(vip.to_owned());
                }
            }
            self.lab.mark(vip)?;
        }
        Ok(())
    }

    fn thaw(&self, node: &str) -> Result<(), LabError> {
        self.mark()?;
        self.thawed.set(true);
        self.lab.thaw(node)
    }
}

fn main() -> ExitCode {
    let chosen = match choose(std::env::args().skip(1)) {
        Some(chosen) => chosen,
        None => {
            SCENARIOS.iter().for_each(|s| println!("{}: test", s.name));
            return ExitCode::SUCCESS;
        }
    };
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    let passed = run(&chosen).unwrap_or_else(|error| {
        eprintln!("error: {}", told(error.as_ref()));
        0
    });
    println!("{passed} passed, {} failed", chosen.len() - passed);
    if passed == chosen.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The scenarios that the words of a test's command line choose; `None` when a list is wanted.
fn choose(words: impl Iterator<Item = String>) -> Option<Vec<&'static Scenario>> {
    let (mut names, mut skipped, mut exact, mut ignored) = (Vec::new(), Vec::new(), false, false);
    let mut words = words;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => return None,
            "--exact" => exact = true,
            "--ignored" => ignored = true, // none of them is
            "--skip" => skipped.extend(words.next()),
            "--test-threads" | "--color" | "--format" | "--logfile" | "-Z" => drop(words.next()),
            option if option.starts_with('-') => {}
            _ => names.push(word),
        }
    }
    let fits =
        |s: &Scenario, name: &String| if exact { s.name == name } else { s.name.contains(name.as_str()) };
    let any = |s: &Scenario, names: &[String]| names.iter().any(|name| fits(s, name));
    let chosen = |s: &&Scenario| !ignored && (names.is_empty() || any(s, &names)) && !any(s, &skipped);
    Some(SCENARIOS.iter().filter(chosen).collect())
}

/// How many of them passed.
fn run(chosen: &[&Scenario]) -> Result<usize, Box<dyn Error>> {
    let prepared = prepare::prepare(false, &mut Terminal::default())?;
    end_on_signals()?;
    let lab = start(LabSpec::demo(&test_name(), &prepared)?)?;
    let since = Instant::now();
    let booted = lab.boot().and_then(|()| lab.wait_for_vips());
    let world = World {
        lab,
        prepared,
        served_after: since.elapsed(),
        owners: RefCell::default(),
        thawed: Cell::new(false),
    };
    if let Err(error) = booted {
        keep_logs(&world.lab, "boot");
        return Err(error.into());
    }
    let mut rows = Vec::new();
    let mut passed = 0;
    for scenario in chosen {
        let since = Instant::now();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            settle(&world)?;
            (scenario.run)(&world)
        }));
        let counted = world.mark();
        let owners = world.owners.take();
        let result = match (caught, counted) {
            (Ok(Ok(_)), Ok(())) if owners.doubles > 0 => {
                let vips: Vec<&str> = owners.doubled.iter().map(String::as_str).collect();
                Err(format!("two stations answered for {}: see the events", vips.join(" ")))
            }
            (Ok(Ok(_)), Ok(())) if owners.samples == 0 => Err("no VIP's owner was ever seen".to_owned()),
            (Ok(Ok(text)), Ok(())) => Ok(text),
            (Ok(Ok(_)), Err(error)) => Err(error.chain()),
            (Ok(Err(error)), _) => Err(told(error.as_ref())),
            (Err(_), _) => Err("panicked, see above".to_owned()),
        };
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        let (Ok(text) | Err(text)) = &result;
        eprintln!("{} ... {word} ({}): {text}", scenario.name, seconds(since.elapsed()));
        match result.is_ok() {
            true => passed += 1,
            false => keep_logs(&world.lab, scenario.name),
        }
        rows.push([
            scenario.name.to_owned(),
            word.to_owned(),
            owners.samples.to_string(),
            owners.doubles.to_string(),
            owners.doubles_after_thaw.to_string(),
            text.lines().next().unwrap_or_default().to_owned(),
        ]);
    }
    let head = ["SCENARIO", "RESULT", "SAMPLES", "TWO OWNERS", "AFTER A THAW", "MEASURED"];
    print!("\n{}\n", table::render(head, &rows));
    Ok(passed)
}

/// An error with its causes, where it has them.
fn told(error: &(dyn Error + 'static)) -> String {
    error.downcast_ref::<LabError>().map_or_else(|| error.to_string(), LabError::chain)
}

/// Labs to end when the test is told to.
static LABS: Mutex<Vec<Weak<Lab>>> = Mutex::new(Vec::new());

fn start(spec: LabSpec) -> Result<Arc<Lab>, LabError> {
    // Held while it starts: a signal then waits until there is something to end.
    let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Arc::new(Lab::start(spec)?);
    labs.push(Arc::downgrade(&lab));
    Ok(lab)
}

/// Ctrl-C ends the machines and removes the directories before it ends the test.
fn end_on_signals() -> Result<(), Box<dyn Error>> {
    let signals = signals::ending()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = signals.read_signal();
        let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
        labs.iter().filter_map(Weak::upgrade).for_each(|lab| lab.stop());
        eprintln!("interrupted");
        std::process::exit(1);
    })?;
    Ok(())
}

fn keep_logs(lab: &Lab, name: &str) {
    let to = test_command::failure_dir().join(name);
    match lab.keep_logs(&to) {
        Ok(()) => eprintln!("logs and capture: {}", to.display()),
        Err(error) => eprintln!("{}", error.chain()),
    }
}

/// Undoes every fault and waits until the cluster is whole: all nodes up with every port operative, every VIP served.
fn settle(world: &World) -> Result<(), Box<dyn Error>> {
    let lab = &world.lab;
    for node in lab.status().nodes {
        match lab.power(&node.name)?.state {
            State::Off { .. } => lab.power_on(&node.name)?,
            State::Frozen => world.thaw(&node.name)?,
            State::On => {}
        }
        for port in node.ports.iter().filter_map(|p| p.strip_suffix('!')) {
            lab.plug(&format!("{}:{port}", node.name))?;
        }
    }
    lab.wait_for_vips()?;
    // What a node tells of itself is a moment old: a state counts that has lasted.
    let since = Cell::new(None);
    lab.expect_within(SETTLE_LIMIT, "a whole cluster that agrees on its VIPs", || {
        if !lab.nodes().iter().all(|n| whole(lab, &n.name) && agrees(lab, &n.name, &n.group)) {
            since.set(None);
        } else if since.get().is_none() {
            since.set(Some(Instant::now()));
        }
        since.get().is_some_and(|since| since.elapsed() >= STEADY)
    })?;
    world.mark()?;
    world.thawed.set(false);
    Ok(())
}

/// All ports operative and all peers up, as the node itself says.
fn whole(lab: &Lab, node: &str) -> bool {
    let all = |command: &str, word: &str| {
        lab.keel(node, command).is_ok_and(|text| {
            let rows: Vec<&str> = text.lines().skip(1).collect();
            !rows.is_empty() && rows.iter().all(|row| row.split_whitespace().any(|cell| cell == word))
        })
    };
    lab.has_prompt(node) && all("show ports", "operative") && all("show peers", "up")
}

/// The node names the holder of each of its group's VIPs that answers to the probing host.
fn agrees(lab: &Lab, node: &str, group: &str) -> bool {
    lab.keel(node, "show vips").is_ok_and(|text| {
        lab.wires().vips().filter(|(_, vip)| vip.group.0 == group).all(|(name, _)| {
            let row = text
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>())
                .find(|r| r.first() == Some(&name));
            row.is_some_and(|row| lab.holder(name).is_some_and(|holder| row.contains(&holder.as_str())))
        })
    })
}

fn holder(lab: &Lab, vip: &str) -> Result<(String, String), Box<dyn Error>> {
    let holder = lab.holder(vip).ok_or_else(|| format!("nobody answers for {vip}"))?;
    let (node, port) = holder.split_once(':').ok_or_else(|| format!("{vip} is answered for by {holder}"))?;
    Ok((node.to_owned(), port.to_owned()))
}

/// The other nodes of a node's group, and its partner.
fn neighbours(lab: &Lab, node: &str) -> (Vec<String>, Option<String>) {
    let me = lab.nodes().iter().find(|n| n.name == node).expect("a node of the lab");
    let others = || lab.nodes().iter().filter(|n| n.name != node);
    let group = others().filter(|n| n.group == me.group).map(|n| n.name.clone()).collect();
    let partner = others().find(|n| n.pair.is_some() && n.pair == me.pair).map(|n| n.name.clone());
    (group, partner)
}

/// Data ports of a node: those on the network that has VIPs.
fn data_ports(lab: &Lab, node: &str) -> Vec<String> {
    let node = lab.nodes().iter().find(|n| n.name == node).expect("a node of the lab");
    let networks: Vec<_> = lab.wires().vips().map(|(_, vip)| vip.network.clone()).collect();
    node.ports.iter().filter(|p| networks.contains(&p.network)).map(|p| p.id.port.0.clone()).collect()
}

/// Waits until the VIP is in reach again; how long it was not since its mark.
fn outage(lab: &Lab, vip: &str) -> Result<Duration, Box<dyn Error>> {
    lab.expect_within(MOVE_LIMIT, &format!("{vip} in reach again"), || {
        lab.wires()
            .report(vip)
            .is_ok_and(|r| r.reach.is_some_and(|reach| !reach.ongoing && reach.answered > 0))
    })?;
    Ok(lab.outage(vip)?)
}

/// Median and all figures.
fn figures(mut values: Vec<Duration>) -> (Duration, String) {
    values.sort();
    let median = values[values.len() / 2];
    let all: Vec<String> = values.iter().map(|v| v.as_millis().to_string()).collect();
    (median, format!("median {} ms without service ({})", median.as_millis(), all.join(" ")))
}

fn at_most(median: Duration, limit: Duration, text: String) -> Outcome {
    if median <= limit {
        Ok(text)
    } else {
        Err(format!("{text}; at most {} ms are allowed", limit.as_millis()).into())
    }
}

fn v16_every_vip_is_served_after_power_on(world: &World) -> Outcome {
    let lab = &world.lab;
    for (name, vip) in lab.wires().vips() {
        let (node, port) = holder(lab, name)?;
        let home = lab.nodes().iter().find(|n| n.name == vip.home.node.0).ok_or("a home that is no node")?;
        let at = lab.nodes().iter().find(|n| n.name == node).ok_or("a holder that is no node")?;
        if at.group != home.group || !data_ports(lab, &node).contains(&port) {
            return Err(format!("{name} is on {node}:{port}, outside group {}", home.group).into());
        }
    }
    Ok(format!("{} from power on to the last VIP's first answer", seconds(world.served_after)))
}

fn v01_port_pulled(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-1";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        settle(world)?;
        let (node, port) = holder(lab, vip)?;
        let pulled = format!("{node}:{port}");
        world.mark()?;
        lab.unplug(&pulled)?;
        lab.expect_within(MOVE_LIMIT, "the VIP on another port", || {
            lab.holder(vip).is_some_and(|h| h != pulled)
        })?;
        let (after, _) = holder(lab, vip)?;
        if after != node {
            return Err(format!("{vip} went from {pulled} to {after}, though {node} has another port").into());
        }
        outages.push(outage(lab, vip)?);
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_millis(300), text)
}

fn v02_all_ports_of_a_node_pulled(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-1";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        settle(world)?;
        let (node, _) = holder(lab, vip)?;
        let (group, partner) = neighbours(lab, &node);
        world.mark()?;
        for port in data_ports(lab, &node) {
            lab.unplug(&format!("{node}:{port}"))?;
        }
        lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
            holder(lab, vip).is_ok_and(|(now, _)| now != node)
        })?;
        outages.push(outage(lab, vip)?);
        let (now, _) = holder(lab, vip)?;
        if !group.contains(&now) || Some(&now) == partner.as_ref() {
            return Err(format!("{vip} went from {node} to {now}, outside of its group").into());
        }
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_millis(500), text)
}

fn v03_netd_killed(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "shop-1";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        settle(world)?;
        let (node, _) = holder(lab, vip)?;
        world.mark()?;
        lab.signal(&node, "netd", "KILL")?;
        lab.expect_within(SETTLE_LIMIT, "netd back", || whole(lab, &node))?;
        outages.push(outage(lab, vip)?);
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_secs(1), text)
}

fn v04b_node_frozen_and_thawed(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-2";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        let (node, _) = holder(lab, vip)?;
        world.mark()?;
        lab.freeze(&node)?;
        lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
            holder(lab, vip).is_ok_and(|(now, _)| now != node)
        })?;
        outages.push(outage(lab, vip)?);
        world.thaw(&node)?;
        settle(world)?;
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_secs(5), text)
}

fn b01_reboot_hands_over(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "shop-2";
    let (node, _) = holder(lab, vip)?;
    let before = lab.power(&node)?.starts;
    world.mark()?;
    // The node may go before its agent has said that it will.
    let _ = lab.keel_within(&node, "reboot --yes", Duration::from_secs(10));
    lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
        holder(lab, vip).is_ok_and(|(now, _)| now != node)
    })?;
    let moved = outage(lab, vip)?;
    let since = Instant::now();
    lab.expect_within(REBOOT_LIMIT, "the node is back", || {
        lab.power(&node).is_ok_and(|s| s.starts == before + 1) && whole(lab, &node)
    })?;
    let text =
        format!("{} ms without service; node back after {}", moved.as_millis(), seconds(since.elapsed()));
    at_most(moved, Duration::from_secs(1), text)
}

fn b02_power_off_moves_vips_and_power_on_rejoins(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-6";
    let (node, _) = holder(lab, vip)?;
    world.mark()?;
    lab.power_off(&node)?;
    lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
        holder(lab, vip).is_ok_and(|(now, _)| now != node)
    })?;
    let moved = outage(lab, vip)?;
    lab.power_on(&node)?;
    let back = lab.expect_within(REBOOT_LIMIT, "the node is back", || whole(lab, &node))?;
    let text = format!("{} ms without service; node back after {}", moved.as_millis(), seconds(back));
    at_most(moved, Duration::from_secs(6), text)
}

/// Starts a second lab, of one node, beside the first; keeps its logs when `scenario` fails there.
fn alone(world: &World, name: &str, scenario: fn(&Lab) -> Outcome) -> Outcome {
    const CLUSTER: &str = r#"
schema = 1
cluster = "alone"
timing = { preset = "lab" }
[networks]
data = { v4 = "10.9.0.0/24" }
mgmt = { v4 = "10.8.0.0/24" }
[[node]]
name = "n1"
group = "g"
port = [
  { name = "p1", match = "pci:00:10.0", network = "data" },
  { name = "m", match = "pci:00:11.0", network = "mgmt", v4 = "10.8.0.11" },
]
[[vip]]
name = "web"
group = "g"
network = "data"
address = "10.9.0.100"
home = "n1:p1"
"#;
    let spec = LabSpec {
        cluster: CLUSTER.into(),
        cluster_path: "alone.toml".into(),
        root: dir::default_root(),
        ..LabSpec::demo(&test_name(), &world.prepared)?
    };
    let lab = start(spec)?;
    let result = scenario(&lab);
    if result.is_err() {
        keep_logs(&lab, name);
    }
    result
}

/// The power is cut while the first boot writes its disk, at several points; after the last cut the node boots and
/// serves.
fn b03_power_cuts_in_the_first_boot(world: &World) -> Outcome {
    alone(world, "b03_power_cuts_in_the_first_boot_alone", cut_and_boot)
}

/// STATE is no file system any more: the console says so and takes commands.
fn b04_damaged_state_ends_in_rescue(world: &World) -> Outcome {
    alone(world, "b04_damaged_state_ends_in_rescue_alone", damage_and_boot)
}

fn damage_and_boot(lab: &Lab) -> Outcome {
    // The disk is made at the first power on.
    lab.power_on("n1")?;
    lab.power_off("n1")?;
    let disk = lab.dir().join("n1/disk.qcow2");
    let table = image::describe(&disk)?.table;
    let state = table.partitions.iter().find(|p| p.name == "STATE").ok_or("no partition STATE")?;
    // The first superblock, 1 KiB into the partition.
    let wipe = format!("write -P 0 {} 4096", state.start);
    let done = Command::new("qemu-io").args(["-f", "qcow2", "-c", &wipe]).arg(&disk).output()?;
    if !done.status.success() {
        return Err(format!("qemu-io: {}", String::from_utf8_lossy(&done.stderr)).into());
    }

    let serial = lab.serial("n1")?;
    let before = serial.position();
    lab.power_on("n1")?;
    let said = serial.wait_for(before, "Evenkeel cannot start: mounting STATE failed", REBOOT_LIMIT)?;
    let ready = serial.wait_for(said, "rescue> ", REBOOT_LIMIT)?;
    let mut console = UnixStream::connect(lab.dir().join("n1/con"))?;
    console.write_all(b"disks\r")?;
    let listed = serial.wait_for(ready, "STATE", REBOOT_LIMIT)?;
    serial.wait_for(listed, "rescue> ", REBOOT_LIMIT)?;
    console.write_all(b"power-off\r")?;
    lab.expect_within(REBOOT_LIMIT, "the node switched off from the rescue prompt", || {
        lab.power("n1").is_ok_and(|status| matches!(status.state, State::Off { .. }))
    })?;
    let why = serial.text_since(said);
    Ok(why.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason").to_owned())
}

fn cut_and_boot(lab: &Lab) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    let disk = lab.dir().join("n1/disk.qcow2");
    let written = || std::fs::metadata(&disk).map(|m| (m.mtime(), m.mtime_nsec())).unwrap_or_default();
    let mut cuts = Vec::new();
    // The loader writes nothing on an ordinary boot: the first write is init's, when it mounts STATE.
    for writes in [1, 8, 18] {
        lab.power_on("n1")?;
        let (mut seen, mut last) = (0, written());
        let hub = Hub::default();
        let cut = hub.wait(REBOOT_LIMIT, Duration::from_millis(1), || {
            let now = written();
            if now != last {
                (seen, last) = (seen + 1, now);
            }
            (seen >= writes || lab.has_prompt("n1")).then_some(seen)
        });
        lab.power_off("n1")?;
        cuts.push(
            cut.ok_or_else(|| format!("the disk was not written to {writes} times, and no prompt came"))?,
        );
    }
    lab.power_on("n1")?;
    lab.wait_for_vips()?;
    lab.expect_within(REBOOT_LIMIT, "the prompt", || lab.has_prompt("n1"))?;
    let state = lab.keel("n1", "show state")?;
    let boot = state.lines().find(|l| l.starts_with("boot")).unwrap_or("no boot line").to_owned();
    Ok(format!("power cut after {cuts:?} writes, then it serves; {boot}"))
}
