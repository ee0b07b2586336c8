//! The models: small worlds that drive the code that ships through everything that can happen in them.
//!
//! | model | faults |
//! |---|---|
//! | [`lease`] | delay, loss, reordering, duplication, late handlers, restarts with and without memory, clock rates, voter changes, a witness's disk |
//! | [`seal`] | delay, loss, reordering, duplication without end; crashes around every write |
//!
//! Faults come one kind at a time. Which bounds each has is written in `docs/decisions/0009-majority-register.md`.
//!
//! In an ordinary test run the bounds are small. `EVENKEEL_PROVE=1 cargo test -p evenkeel-quorum --release model` takes the
//! larger ones; `--nocapture` shows how many states each model has and how long it took.

mod explore;
mod lease;
mod seal;

use explore::Outcome;

/// Explores, and says how large the world is and how long that took.
#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test tells how long it takes")]
fn timed(name: &str, explore: impl FnOnce() -> Outcome) -> Outcome {
    let started = std::time::Instant::now();
    let outcome = explore();
    let took = started.elapsed().as_secs_f32();
    let end = if outcome.broken.is_some() { "broken" } else { "holds" };
    eprintln!("{name}: {} states, {took:.1} s, {end}", outcome.states);
    outcome
}

/// Whether the larger bounds are asked for.
fn proving() -> bool {
    std::env::var_os("EVENKEEL_PROVE").is_some_and(|value| value != "0")
}
