//! Whole clusters under random trouble: whatever happens, the invariants hold, and when the trouble ends every
//! VIP is served.

use crate::cluster::cluster;
use crate::rng::Rng;
use crate::seeds;
use crate::world::{Freeze, Weather, World, ms, secs};
use proto::cluster::{ClusterFile, Timing, VipName};
use proto::time::Duration;

/// Worlds of an ordinary run. More: `SIM_WORLDS=5000`.
const WORLDS: u64 = 600;

fn random_file(rng: &mut Rng) -> ClusterFile {
    let pairs = 1 + rng.below(4);
    let mut nodes = Vec::new();
    for pair in 0..pairs {
        for side in 1..=2 {
            let ports = *rng.pick(&["p1", "p1 p2", "p1 p2 b1"]);
            let letter = char::from(b'a' + u8::try_from(pair).unwrap());
            nodes.push(format!("{letter}{side} {} {ports}", if side == 1 { "east" } else { "west" }));
        }
    }
    let mut vips = Vec::new();
    for at in 0..1 + rng.below(6) {
        let node = rng.pick(&nodes).clone();
        let words: Vec<&str> = node.split(' ').collect();
        let failback = *rng.pick(&["", "", " 0", " 5"]);
        vips.push(format!("v{at} {}:{}{failback}", words[0], rng.pick(&words[2..])));
    }
    let lines = |list: &[String]| list.iter().map(|s| s.to_owned()).collect::<Vec<_>>();
    let (nodes, vips) = (lines(&nodes), lines(&vips));
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let mut file = cluster(&nodes, &vips);
    if rng.chance(20) {
        file.timing = Timing::LAN;
    }
    file
}

/// One piece of trouble.
fn trouble(world: &mut World) {
    let names = world.names();
    let node = world.rng.pick(&names).0.clone();
    let other = world.rng.pick(&names).0.clone();
    let ports: Vec<String> =
        world.machines[&node.as_str().into()].plugged.keys().map(|p| format!("{node}:{p}")).collect();
    let port = world.rng.pick(&ports).clone();
    let vips: Vec<VipName> = world.file.vips.keys().cloned().collect();
    let vip = world.rng.pick(&vips).clone();
    match world.rng.below(20) {
        0..=2 => world.unplug(&port),
        3..=5 => world.plug(&port),
        6 => world.crash(&node),
        7 => world.kill(&node),
        8 | 9 => world.restart(&node),
        10 => world.freeze(&node, Freeze::Machine),
        11 => world.freeze(&node, Freeze::Process),
        12 => world.thaw(&node),
        13 => world.partition(&[&node, &other]),
        14 => world.cut_way(&node, &other),
        15 => world.heal(),
        16 => world.leave(&node),
        17 => world.refuse(vip.0.as_str(), &port),
        18 => world.accept(),
        _ => {
            if world.segments.is_empty() {
                world.split_lan(&[&node, &other]);
            } else {
                world.join_lan();
            }
        }
    }
}

/// Ends all trouble.
fn repair(world: &mut World) {
    world.weather = Weather::FAIR;
    world.heal();
    world.accept();
    if !world.segments.is_empty() {
        world.join_lan();
    }
    for node in world.names() {
        world.thaw(&node.0);
        world.restart(&node.0);
        let ports: Vec<String> =
            world.machines[&node].plugged.keys().map(|p| format!("{node}:{p}")).collect();
        for port in ports {
            world.plug(&port);
        }
    }
}

fn random_world(seed: u64) {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let file = random_file(&mut rng);
    let beat = file.timing.beat;
    let mut world = World::seeded(seed, file);
    if rng.chance(50) {
        world.weather = Weather {
            loss_percent: rng.below(25),
            repeat_percent: rng.below(25),
            delay_max: Duration::from_micros(1 + rng.below(u64::try_from(beat.as_micros()).unwrap())),
        };
    }
    for _ in 0..5 + rng.below(20) {
        // Mostly within a few beats of each other, now and then long enough for leases to pass.
        let most = if rng.chance(30) { 20 } else { 3 };
        world.run(Duration::from_micros(rng.below(most * u64::try_from(beat.as_micros()).unwrap())));
        trouble(&mut world);
    }
    world.run(ms(rng.below(4000)));
    repair(&mut world);
    // The longest hold-down or refusal, the longest failback, then a few leases.
    world.run_until("all is well again", secs(60), World::settled);
}

#[test]
fn whatever_happens_one_holder_in_bounds_and_in_the_end_all_is_well() {
    let worlds = std::env::var("SIM_WORLDS").ok().and_then(|n| n.parse().ok()).unwrap_or(WORLDS);
    seeds(worlds, random_world);
}
