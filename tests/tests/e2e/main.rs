//! The built image in QEMU: what a user sees of each fault.
//!
//! | scenarios | what they run on |
//! |---|---|
//! | of the cluster | four nodes, booted once; before each scenario every fault is undone and every VIP answers |
//! | of a new node | a lab of one node with a new disk for each; its machine may differ from the usual one |
//! | of the node | a lab of one node for all of them; before each it is up and serves |
//!
//! The name of a scenario begins with its row in `docs/scenarios.md`. Figures of the cluster are medians over
//! [`vips::RUNS`] runs, told by the lab's probing host: an echo every 10 ms, and a question to all stations every 100 ms
//! who owns a VIP. Two owners of any VIP fail the scenario, but for the time from a thaw until the cluster has settled.
//!
//! `cargo test --workspace --test e2e -- NAME` runs the scenarios whose names contain NAME; `--list` lists all.
//! The last line is `N passed, N failed`. Names that choose nothing are other tests' and no mistake.

mod boot;
mod hardware;
mod init;
mod secure;
mod stage;
mod vips;
mod world;

use lab::lab::Lab;
use lab::prepare;
use lab::progress::Terminal;
use lab::table::{self, seconds};
use lab::variant::Variant;
use stage::{Stage, end_on_signals};
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;
use world::{Outcome, Owners, World, told};

/// A scenario and what it needs.
struct Scenario {
    name: &'static str,
    on: On,
}

/// What a scenario runs on. Nothing is started that the chosen scenarios do not need.
enum On {
    /// The cluster, whole and settled.
    Cluster(fn(&World) -> Outcome),
    /// One node with a new disk, switched off, and gone afterwards.
    NewNode(fn() -> Variant, fn(&Lab) -> Outcome),
    /// The one node that these scenarios share in their order: up and serving.
    Node(fn(&Lab) -> Outcome),
}

const fn scenario(name: &'static str, on: On) -> Scenario {
    Scenario { name, on }
}

const SCENARIOS: [Scenario; 28] = [
    scenario("v16_every_vip_is_served_after_power_on", On::Cluster(vips::served_after_power_on)),
    scenario("v01_port_pulled", On::Cluster(vips::port_pulled)),
    scenario("v02_all_ports_of_a_node_pulled", On::Cluster(vips::all_ports_of_a_node_pulled)),
    scenario("v03_netd_killed", On::Cluster(vips::netd_killed)),
    scenario("v03_netd_stopped", On::Cluster(vips::netd_stopped)),
    scenario("v04b_node_frozen_and_thawed", On::Cluster(vips::node_frozen_and_thawed)),
    scenario("b01_reboot_hands_over", On::Cluster(boot::reboot_hands_over)),
    scenario("b02_power_off_moves_vips_and_power_on_rejoins", On::Cluster(boot::power_off_and_on)),
    scenario("b03_power_cuts_in_the_first_boot", On::NewNode(Variant::default, boot::cut_and_boot)),
    scenario("b04_damaged_state_ends_in_rescue", On::NewNode(Variant::default, boot::damage_and_boot)),
    scenario("b19_damaged_initramfs_is_noticed", On::NewNode(Variant::default, boot::damaged_initramfs)),
    scenario("b20_secure_boot", On::NewNode(secure::secure_boot, secure::signed_and_unsigned)),
    scenario("b21_generic_image_on_sata", On::NewNode(hardware::sata, hardware::on_sata)),
    scenario("b22_generic_image_on_nvme", On::NewNode(hardware::nvme, hardware::on_nvme)),
    scenario("b05_services_killed_in_turn_come_back", On::Node(init::services_killed_in_turn)),
    scenario("b06_stuck_console_holds_nothing_up", On::Node(init::stuck_console)),
    scenario("b07_ctrl_alt_del_restarts_in_order", On::Node(init::ctrl_alt_del)),
    scenario("b08_kernel_panic_resets", On::Node(init::kernel_panic)),
    scenario("b09_power_button_switches_off_in_order", On::Node(init::power_button)),
    scenario("b11_greedy_service_ends_at_its_limits", On::Node(init::greedy_service)),
    scenario("b12_another_init_takes_over", On::Node(init::re_exec)),
    scenario("b13_full_state", On::Node(init::full_state)),
    scenario("b14_crashed_pid_1_restarts", On::Node(init::crashed_pid_1)),
    scenario("b18_forced_restart_and_recovery", On::Node(init::forced_restart_and_recovery)),
    scenario("b10_without_watchdog", On::NewNode(init::no_watchdog, init::without_watchdog)),
    scenario("b15_damaged_state_is_repaired", On::NewNode(Variant::default, init::damaged_state_is_repaired)),
    scenario("b16_hung_pid_1_is_reset_thrice", On::NewNode(init::short_watchdogs, init::hung_pid_1)),
    scenario("b17_hung_netd_on_trial_is_reset", On::NewNode(init::trial, init::hung_netd_on_trial)),
];

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
    let mut stage = Stage::new(prepared);
    let mut rows = Vec::new();
    let mut passed = 0;
    for scenario in chosen {
        let since = Instant::now();
        let (result, owners) = match &scenario.on {
            On::Cluster(run) => stage.cluster(scenario.name, *run),
            On::NewNode(machine, run) => stage.new_node(scenario.name, machine(), *run),
            On::Node(run) => stage.node(scenario.name, *run),
        };
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        let (Ok(text) | Err(text)) = &result;
        eprintln!("{} ... {word} ({}): {text}", scenario.name, seconds(since.elapsed()));
        passed += usize::from(result.is_ok());
        let count = |of: fn(&Owners) -> u64| owners.as_ref().map_or("-".to_owned(), |o| of(o).to_string());
        rows.push([
            scenario.name.to_owned(),
            word.to_owned(),
            count(|o| o.samples),
            count(|o| o.doubles),
            count(|o| o.doubles_after_thaw),
            text.lines().next().unwrap_or_default().to_owned(),
        ]);
    }
    let head = ["SCENARIO", "RESULT", "SAMPLES", "TWO OWNERS", "AFTER A THAW", "MEASURED"];
    print!("\n{}\n", table::render(head, &rows));
    Ok(passed)
}
