//! How long this node answers for its addresses, and when it says so to whoever deletes them otherwise.
//!
//! ```text
//!   beat leaves      word ends: killed, addresses deleted         peers may take over
//!   |-- 2/3 lease ---------------------------|-- 1/3 lease -------------|
//!   lab  0                                  2.0 s                      3.0 s
//!   lan  0                                  100 ms                     150 ms
//! ```
//! Peers call a node down a lease after its last beat; so its word counts from the *sending* of a beat, not from the
//! time it is given. Two thirds leave a node that stands still as long as can be had (a beat less than that: 1.75 s in the
//! lab, 80 ms on a LAN), and a third for the kill, the reaping and the deletions. The lab's third bears even a process that
//! is stuck in the kernel, whose end init awaits for 500 ms; a LAN's bears an end that takes less than 50 ms.
//!
//! A cluster file's lease is three beats or more: two thirds of it bear one lost word.

use core::time::Duration;
use proto::cluster::Timing;
use proto::status::Participation;
use proto::time::Time;

/// Shortest time in which init, busy with something else, can be relied upon to answer.
const PATIENCE_MIN: Duration = Duration::from_millis(20);
/// Longest time that the other VIPs may have to wait for it.
const PATIENCE_MAX: Duration = Duration::from_millis(250);

/// Decides about this node's word.
#[derive(Clone, Debug)]
pub struct FencePace {
    timing: Timing,
    word: Option<Time>,
}

impl FencePace {
    /// No word was given yet: what a former life said stands until this one has sent a beat of its own.
    pub fn new(timing: Timing) -> FencePace {
        FencePace { timing, word: None }
    }

    /// A status was sent at `sent`, with this participation. The word to give now, if there is a new one that is worth a
    /// packet: statuses of changes come up to twenty times as often as beats.
    ///
    /// A node that stood still has no word to give before it has listened again, nor one that leaves.
    pub fn sent(&mut self, sent: Time, participation: Participation) -> Option<Time> {
        match participation {
            Participation::Starting | Participation::Ready => {}
            Participation::Late | Participation::Leaving => return None,
        }
        let word = sent + self.timing.lease * 2 / 3;
        let gap = self.timing.beat / 2;
        if self.word.is_some_and(|last| word.since(last) < gap) {
            return None;
        }
        self.word = Some(word);
        self.word
    }

    /// The word in force at `now`; `None` when there is none or it has passed.
    pub fn word(&self, now: Time) -> Option<Time> {
        self.word.filter(|word| *word > now)
    }

    /// How long an answer of init's may hold everything else up: no longer than a beat.
    pub fn patience(&self) -> Duration {
        self.timing.beat.clamp(PATIENCE_MIN, PATIENCE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn the_word_ends_well_before_peers_take_over() {
        let tightest = Timing { beat: Duration::from_millis(50), lease: Duration::from_millis(150) };
        for (timing, millis) in [(Timing::LAB, 2000), (Timing::LAN, 100), (tightest, 100)] {
            let mut pace = FencePace::new(timing);
            let word = pace.sent(at(7), Participation::Ready).unwrap();
            assert_eq!(word, at(7 + millis));
            assert!(word.since(at(7)) >= 2 * timing.beat, "one lost word is borne");
            assert!(pace.patience() <= timing.beat);
        }
        // The longest that init may be told.
        let longest = Timing { beat: Duration::from_secs(10), lease: Duration::from_secs(60) };
        let word = FencePace::new(longest).sent(at(0), Participation::Starting).unwrap();
        assert!(word.as_nanos() <= proto::control::FENCE_AHEAD_NS_MAX);
    }

    #[test]
    fn a_burst_of_changes_is_not_a_burst_of_words() {
        let mut pace = FencePace::new(Timing::LAB);
        let words: Vec<Time> = (0..=500).filter_map(|ms| pace.sent(at(ms), Participation::Ready)).collect();
        assert_eq!(words, [at(2000), at(2125), at(2250), at(2375), at(2500)]);
    }

    #[test]
    fn who_was_late_or_leaves_has_no_new_word() {
        let mut pace = FencePace::new(Timing::LAB);
        assert_eq!(pace.word(at(0)), None, "nothing was sent");
        assert_eq!(pace.sent(at(0), Participation::Starting), Some(at(2000)));
        assert_eq!(pace.sent(at(1000), Participation::Late), None);
        assert_eq!(pace.sent(at(1500), Participation::Leaving), None);
        assert_eq!(pace.word(at(1999)), Some(at(2000)), "what was said stands");
        assert_eq!(pace.word(at(2000)), None, "no longer than it was said");
    }
}
