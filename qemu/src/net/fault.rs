//! What can be wrong with a port's cable: nothing passes, some frames are lost, all are late. Each direction on
//! its own, because one-way faults are the ones that fool a failure detector.

use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Longest delay a fault may add; what is asked beyond it is cut to it. Longer ones only fill the queue.
pub const DELAY_MAX: Duration = Duration::from_secs(10);

/// What befalls frames in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Impairment {
    /// Nothing passes.
    pub cut: bool,
    /// This share of the frames is lost, 0 to 100 percent.
    pub drop_percent: u8,
    /// Every frame is this much late, at most [`DELAY_MAX`]. The order stays.
    pub delay: Duration,
}

/// The fault of one port. The default is a sound cable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Frames the node sends.
    pub from_node: Impairment,
    /// Frames the node would receive.
    pub to_node: Impairment,
}

impl Fault {
    /// A sound cable.
    pub const NONE: Fault = Fault::both(Impairment::NONE);
    /// Nothing passes either way. Carrier stays: that is the machine's business (QMP `set_link`).
    pub const CUT: Fault = Fault::both(Impairment::CUT);
    /// The node hears, but is not heard.
    pub const MUTE: Fault = Fault { from_node: Impairment::CUT, to_node: Impairment::NONE };
    /// The node is heard, but does not hear.
    pub const DEAF: Fault = Fault { from_node: Impairment::NONE, to_node: Impairment::CUT };

    /// The same impairment both ways.
    pub const fn both(impairment: Impairment) -> Fault {
        Fault { from_node: impairment, to_node: impairment }
    }

    /// Loses `percent` of the frames in each direction.
    pub const fn drop(percent: u8) -> Fault {
        Fault::both(Impairment { drop_percent: percent, ..Impairment::NONE })
    }

    /// Delays every frame by `delay` in each direction.
    pub const fn delay(delay: Duration) -> Fault {
        Fault::both(Impairment { delay, ..Impairment::NONE })
    }
}

impl Impairment {
    /// Nothing wrong.
    pub const NONE: Impairment = Impairment { cut: false, drop_percent: 0, delay: Duration::ZERO };
    /// Nothing passes.
    pub const CUT: Impairment = Impairment { cut: true, drop_percent: 0, delay: Duration::ZERO };

    /// True when this frame is lost.
    pub(super) fn loses(&self, dice: &mut Dice) -> bool {
        self.cut || (self.drop_percent > 0 && dice.percent() < self.drop_percent)
    }

    /// The delay, within its bound.
    pub(super) fn bounded_delay(&self) -> Duration {
        self.delay.min(DELAY_MAX)
    }
}

/// Repeatable random numbers (splitmix64): the same seed loses the same frames.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn seeded(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 99.
    fn percent(&mut self) -> u8 {
        (self.next() % 100) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_follow_the_percentage_and_the_seed() {
        for (percent, low, high) in [(0u8, 0, 0), (10, 800, 1200), (50, 4700, 5300), (100, 10_000, 10_000)] {
            let impairment = Impairment { drop_percent: percent, ..Impairment::NONE };
            let lost = |seed| {
                let mut dice = Dice::seeded(seed);
                (0..10_000).filter(|_| impairment.loses(&mut dice)).count()
            };
            assert!((low..=high).contains(&lost(1)), "{percent} %: {}", lost(1));
            assert_eq!(lost(7), lost(7));
        }
    }

    #[test]
    fn delays_are_bounded() {
        let slow = Impairment { delay: Duration::MAX, ..Impairment::NONE };
        assert_eq!(slow.bounded_delay(), DELAY_MAX);
    }
}
