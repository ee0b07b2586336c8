//! Goes through every state that a small world can reach, depth first, each once.
//!
//! Depth first because of memory: of visited states only a fingerprint is kept, and whole states only along one path. So
//! the path to a broken promise is at hand when it is found, and is not the shortest one.

use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A small world: everything that counts is in it, time included, as small numbers.
pub(super) trait World: Clone + Hash {
    /// What can happen next.
    type Action: Debug;

    /// All of it, from the quietest to the most eventful.
    fn actions(&self) -> Vec<Self::Action>;
    /// The world after it.
    fn step(&mut self, action: &Self::Action);
    /// Which promise is broken here.
    fn broken(&self) -> Option<String>;
}

/// What an exploration came to.
pub(super) struct Outcome {
    /// Different states.
    pub(super) states: usize,
    /// The first broken promise found, with the path to it.
    pub(super) broken: Option<String>,
    /// Every state was seen.
    pub(super) complete: bool,
}

/// What is tried first. It matters only to how soon damage is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Eventful,
    Quiet,
}

/// Looks for damage in one order and in the other, in a few states, then in many.
pub(super) fn hunt<W: World>(start: &W) -> Outcome {
    let tries =
        [(Order::Eventful, 60_000), (Order::Quiet, 60_000), (Order::Eventful, MANY), (Order::Quiet, MANY)];
    let mut last = Outcome { states: 0, broken: None, complete: false };
    for (order, most) in tries {
        last = explore(start.clone(), most, order);
        if last.broken.is_some() || last.complete {
            break;
        }
    }
    last
}

/// Looks a while for damage in a world that keeps every rule. Were there any, a broken rule would show nothing there.
pub(super) fn damage<W: World>(start: &W) -> Option<String> {
    let orders = [Order::Eventful, Order::Quiet];
    orders.into_iter().find_map(|order| explore(start.clone(), 100_000, order).broken)
}

/// More than any small model may have.
const MANY: usize = 1_000_000;

/// A fast hash of 64 bits: a state is a kilobyte, and nobody chooses states so that they collide.
#[derive(Default)]
struct Mix(u64);

impl Mix {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }
    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }
    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }
}

/// A fingerprint is a hash already.
#[derive(Default)]
struct Through(u64);

impl Hasher for Through {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed")
    }
    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}

pub(super) fn fingerprint(world: &impl Hash) -> u64 {
    let mut hasher = Mix::default();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Explores `start`, at most `states_max` states.
#[expect(
    clippy::disallowed_types,
    reason = "a test: the order of visited states does not matter, their number does"
)]
pub(super) fn explore<W: World>(start: W, states_max: usize, order: Order) -> Outcome {
    struct Level<W: World> {
        world: W,
        /// What led here; told only when it led to damage, for to tell costs more than a step.
        by: Option<W::Action>,
        actions: Vec<W::Action>,
    }
    let mut seen: std::collections::HashSet<u64, BuildHasherDefault<Through>> = Default::default();
    let actions_of = |world: &W| {
        let mut actions = world.actions();
        if order == Order::Quiet {
            actions.reverse();
        }
        actions
    };
    seen.insert(fingerprint(&start));
    let actions = actions_of(&start);
    let mut stack = vec![Level { world: start, by: None, actions }];
    while let Some(level) = stack.last_mut() {
        let Some(action) = level.actions.pop() else {
            stack.pop();
            continue;
        };
        let mut world = level.world.clone();
        world.step(&action);
        if !seen.insert(fingerprint(&world)) {
            continue;
        }
        if let Some(mut told) = world.broken() {
            for action in stack.iter().filter_map(|level| level.by.as_ref()).chain([&action]) {
                told += &format!("\n  {action:?}");
            }
            return Outcome { states: seen.len(), broken: Some(told), complete: false };
        }
        if seen.len() >= states_max {
            return Outcome { states: seen.len(), broken: None, complete: false };
        }
        let actions = actions_of(&world);
        stack.push(Level { world, by: Some(action), actions });
    }
    Outcome { states: seen.len(), broken: None, complete: true }
}

mod tests {
    use super::*;

    /// Counts to `end`, and may jump once.
    #[derive(Clone, Hash)]
    struct Counter {
        at: u8,
        jumped: bool,
        bad: u8,
    }

    impl World for Counter {
        type Action = u8;
        fn actions(&self) -> Vec<u8> {
            if self.at >= 10 {
                return vec![];
            }
            if self.jumped { vec![1] } else { vec![1, 3] }
        }
        fn step(&mut self, by: &u8) {
            self.at += by;
            self.jumped |= *by == 3;
        }
        fn broken(&self) -> Option<String> {
            (self.jumped && self.at == self.bad).then(|| "bad".into())
        }
    }

    #[test]
    fn every_state_is_seen_once_and_a_bad_one_is_found() {
        let all = explore(Counter { at: 0, jumped: false, bad: 99 }, 100, Order::Quiet);
        assert_eq!((all.states, all.broken), (11 + 10, None), "0..=10, and 3..=12 jumped");
        let found = explore(Counter { at: 0, jumped: false, bad: 12 }, 100, Order::Eventful).broken.unwrap();
        assert!(found.starts_with("bad\n") && found.ends_with("3"), "{found}");
    }

    #[test]
    fn an_exploration_that_is_cut_short_says_so() {
        let cut = explore(Counter { at: 0, jumped: false, bad: 99 }, 20, Order::Quiet);
        assert!(!cut.complete && cut.broken.is_none());
        assert!(hunt(&Counter { at: 0, jumped: false, bad: 11 }).broken.is_some());
        assert!(hunt(&Counter { at: 0, jumped: false, bad: 99 }).complete);
        assert!(damage(&Counter { at: 0, jumped: false, bad: 11 }).is_some());
        assert_eq!(damage(&Counter { at: 0, jumped: false, bad: 99 }), None);
    }
}
