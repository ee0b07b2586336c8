//! The whole group in one thread: cores, kernels, cables, messages and a LAN, all from one seed.
//!
//! `SIM_SEED=n cargo test -p evenkeel-netd-core --test sim -- --exact NAME` runs one world of one test.

#![allow(clippy::unwrap_used)] // a simulation that cannot go on has failed

mod invariants;
mod random;
mod rng;
mod scenarios;
mod world;

#[path = "../../src/testing.rs"]
mod cluster;

/// Runs `world` for `count` seeds, or for the one in `SIM_SEED`.
fn seeds(count: u64, world: impl Fn(u64)) {
    match std::env::var("SIM_SEED") {
        Ok(seed) => world(seed.parse().expect("SIM_SEED is a number")),
        Err(_) => (0..count).for_each(world),
    }
}
